"""What --raw names: a folder, or one archive of it, on a disk or at any URI that pyarrow.fs opens. It is only read.

A zip is read where it lies, member by member. A tar is one stream: one that is compressed or lies at a URI becomes a
plain tar in the node's cache, a single file that only its owner reads. No member is ever unpacked to a place that its
name says.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import io
import lzma
import os
import stat
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.fs as pafs

from medgan.config import Refused
from medgan.data import cache
from medgan.data.shards import filesystem, read_file, told

PACKED = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".7z", ".rar")
OPENED = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz")
VOLUME = ".nii.gz"
UNPACKED_BY: dict[bytes, Callable[[Any], Any]] = {b"\x1f\x8b": gzip.open, b"\xfd7zXZ": lzma.open}
ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
LARGEST = 2**31
"""Bytes of one file: a film has fewer, what has more is no image."""
SWELLING, ALLOWED = 100, 2**30
"""What is compressed may become so many times larger, and so many bytes in any case."""
CHUNK = 1 << 20
DAMAGED = (
    *(zipfile.BadZipFile, NotImplementedError, tarfile.TarError),
    *(zlib.error, lzma.LZMAError, gzip.BadGzipFile, EOFError, pa.ArrowInvalid),
)
"""What wrong bytes make the readers raise."""


class SourceError(Refused):
    """A raw folder that is not what the source expects. One line: what was found, what is expected."""


@dataclass(frozen=True)
class Member:
    """A file in an archive."""

    size: int
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Archive:
    members: dict[str, Member]
    lock: threading.Lock
    """The members share one place in the file."""
    cached: Path | None = None
    """The plain tar in the node's cache."""

    def read(self, name: str) -> bytes:
        """Raises OSError where there is no such member, and ValueError where it is damaged."""
        if name not in self.members:
            raise FileNotFoundError(2, "no such member")
        with self.lock:
            try:
                return self.members[name].read()
            except DAMAGED:
                raise ValueError("damaged in its archive") from None


@dataclass(frozen=True)
class Raw:
    """A raw folder or archive."""

    location: str

    def check(self) -> None:
        """Raises SourceError where there is neither a folder nor an archive that can be read."""
        fs, path = filesystem(self.location)
        _archive.cache_clear()
        if fs.get_file_info(path).type == pafs.FileType.NotFound:
            raise SourceError(f"--raw {self.location}: no such folder")
        try:
            _archive(self.location)
        except OSError as error:
            raise SourceError(f"--raw {self.location}: cannot be read ({told(error)})") from None

    def sizes(self) -> dict[str, int]:
        """Bytes of every visible file by its path, sorted part by part; a folder linked into itself is entered once."""
        fs, root = filesystem(self.location)
        archive = _archive(self.location)
        try:
            if archive:
                found = {name: member.size for name, member in archive.members.items()}
            elif isinstance(fs, pafs.LocalFileSystem):
                found = {name: _size(Path(root, name)) for name in _walk(root)}
            else:
                entries = fs.get_file_info(pafs.FileSelector(root, recursive=True))
                files = [entry for entry in entries if entry.type == pafs.FileType.File]
                found = {entry.path[len(root) :].lstrip("/"): entry.size or 0 for entry in files}
        except OSError as error:
            raise SourceError(f"--raw {self.location}: a folder in it cannot be read ({told(error)})") from None
        undecodable = sum(not _encodes(name) for name in found)
        if undecodable:
            how = "unpack it and rename them" if archive else "rename them"
            raise SourceError(f"--raw {self.location}: {undecodable} file names are not UTF-8; {how} (convmv does)")
        visible = sorted((name for name in found if _visible(name)), key=lambda name: name.split("/"))
        return {name: found[name] for name in visible}

    def files(self) -> list[str]:
        return list(self.sizes())

    def open(self, name: str) -> BinaryIO:
        """A file to seek in. Raises OSError, and ValueError where a member of an archive is damaged."""
        if archive := _archive(self.location):
            return io.BytesIO(archive.read(name))
        fs, root = filesystem(self.location)
        return io.BufferedReader(fs.open_input_file(f"{root}/{name}"))

    def read(self, name: str) -> bytes:
        """Raises OSError, and ValueError where a member of an archive is damaged."""
        archive = _archive(self.location)
        return archive.read(name) if archive else read_file(self.location, name)

    def notes(self) -> list[str]:
        """What a person should know of how it is read."""
        archive = _archive(self.location)
        if archive is None or archive.cached is None:
            return []
        folder = archive.cached.parent
        return [f"--raw is one stream: every host unpacks it into {folder}, and this one alone clears that at the end"]

    def forget(self) -> None:
        """Remove what this host unpacked into its cache."""
        archive = _archive(self.location)
        if archive and archive.cached:
            archive.cached.unlink(missing_ok=True)
        _archive.cache_clear()


def most_unpacked(size: int) -> int:
    """Bytes to which so many compressed ones may grow."""
    return max(ALLOWED, SWELLING * size)


def is_packed(name: str) -> bool:
    return name.lower().endswith(PACKED) and not name.lower().endswith(VOLUME)


def packed(files: Iterable[str]) -> str:
    """What to do about archives and volumes among the files, to be added to a refusal; nothing where there are none."""
    names = [name.lower() for name in files]
    archives = [name for name in names if is_packed(name)]
    volumes = sum(name.endswith(VOLUME) for name in names)
    or_name = ", or name one as --raw" if all(name.endswith(OPENED) for name in archives) else ""
    told_of = f"; there are {len(archives)} archives in it: unpack them{or_name}" if archives else ""
    return told_of + (f"; {volumes} {VOLUME} in it are volumes, which are not read" if volumes else "")


@lru_cache(maxsize=2)
def _archive(location: str) -> Archive | None:
    """The archive that lies there; None for a folder. Raises SourceError for a file that is neither."""
    fs, path = filesystem(location)
    info = fs.get_file_info(path)
    if info.type != pafs.FileType.File:
        return None
    where = f"--raw {location}"
    stream = io.BufferedReader(fs.open_input_file(path), 1 << 16)
    start = stream.peek(6)
    try:
        if start.startswith((b"PK\x03\x04", b"PK\x05\x06")) and not path.endswith(".npz"):
            return Archive(_checked(_zip_members(stream, where), where), threading.Lock())
        unpack = next((opener for magic, opener in UNPACKED_BY.items() if start.startswith(magic)), lambda file: file)
        _check_tar(unpack(stream).read(tarfile.BLOCKSIZE), where)
        stream.seek(0)
        cached = None
        if start.startswith(tuple(UNPACKED_BY)) or not isinstance(fs, pafs.LocalFileSystem):
            cached = _unpacked(unpack(stream), info, where)
            stream = io.BufferedReader(pafs.LocalFileSystem().open_input_file(str(cached)))
        return Archive(_checked(_tar_members(stream, where), where), threading.Lock(), cached)
    except DAMAGED:
        raise SourceError(f"{where}: damaged, cut short or empty; fetch or pack it again") from None


def _zip_members(stream: BinaryIO, where: str) -> list[tuple[str, Member]]:
    file = zipfile.ZipFile(stream)
    files = [(name, info) for info in file.infolist() if not (name := _zip_name(info)).endswith("/")]
    _none(where, sum(info.flag_bits & 1 for _, info in files), "are encrypted; unpack it with its password")
    odd = sum(info.compress_type not in ZIP_METHODS for _, info in files)
    _none(where, odd, "are compressed in an uncommon way; unpack it, or pack it again as a plain zip")
    links = sum(stat.S_ISLNK(info.external_attr >> 16) for _, info in files)
    _none(where, links, "are links; unpack it, or pack it again with the files themselves")
    return [(name, Member(info.file_size, partial(file.read, info))) for name, info in files]


def _zip_name(info: zipfile.ZipInfo) -> str:
    """The name of a member. Many writers say cp437 and write UTF-8, and some of Windows write its separator."""
    name = info.filename
    if not info.flag_bits & 0x800 and name == info.orig_filename.partition("\0")[0]:
        name = name.encode("cp437").decode("utf-8", "surrogateescape")
    return name.replace("\\", "/")


def _tar_members(stream: BinaryIO, where: str) -> list[tuple[str, Member]]:
    file = tarfile.TarFile(fileobj=stream)
    entries = [info for info in file.getmembers() if not info.isdir()]
    # tarfile takes a header that is damaged or cut for the end. An archive ends in zeros (POSIX, pax), which end it.
    stream.seek(file.offset)
    rest = stream.read(CHUNK)
    if not rest or any(rest) or any(any(more) for more in iter(partial(stream.read, CHUNK), b"")):
        raise tarfile.ReadError("no end, or something behind it")
    links = sum(not info.isreg() for info in entries)
    _none(where, links, "are links or no files; unpack it, or pack it again with --dereference --hard-dereference")

    def read(info: tarfile.TarInfo) -> bytes:
        content = file.extractfile(info)
        assert content is not None
        return content.read()

    return [(info.name, Member(info.size, partial(read, info))) for info in entries]


def _checked(members: list[tuple[str, Member]], where: str) -> dict[str, Member]:
    """Members by their plain names. Raises SourceError for what no archive of images has."""
    outside = sum(name.startswith("/") or ".." in name.split("/") for name, _ in members)
    _none(where, outside, "have names that lead out of it; unpack it with care")
    _none(where, sum(member.size > LARGEST for _, member in members), "are larger than 2 GiB; unpack it with care")
    return {"/".join(part for part in name.split("/") if part not in ("", ".")): member for name, member in members}


def _none(where: str, count: int, what: str) -> None:
    if count:
        raise SourceError(f"{where}: {count} files in it {what}")


def _check_tar(block: bytes, where: str) -> None:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        raise SourceError(
            f"{where}: neither a folder nor an archive of files (.zip, .tar, .tar.gz); name the folder that it lies in"
        ) from None


def _unpacked(stream: BinaryIO, info: pafs.FileInfo, where: str) -> Path:
    """The tar as a plain file in the node's cache, made by the first process of the node that needs it."""
    folder = cache.place("raw")
    name = hashlib.sha256(f"{where}/{info.size}/{info.mtime_ns}".encode()).hexdigest()[:32]
    file, part = folder / f"{name}.tar", folder / f"{name}.part"
    most = most_unpacked(info.size or 0)
    try:
        with open(folder / "lock", "a", opener=cache.closed) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if file.exists():
                return file
            try:
                with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as target:
                    while content := stream.read(CHUNK):
                        target.write(content)
                        if target.tell() > most:
                            raise SourceError(f"{where}: grows to over {SWELLING} times its size; unpack it with care")
                part.replace(file)
            finally:
                part.unlink(missing_ok=True)
    except gzip.BadGzipFile:
        raise
    except OSError as error:
        why = told(error, "no answer")
        raise SourceError(
            f"{where}: cannot be unpacked into {folder} ({why}); set MEDGAN_CACHE to a folder with room"
        ) from None
    return file


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _walk(root: str) -> Iterable[str]:
    entered = set()

    def fail(error: OSError) -> None:
        raise error

    for folder, below, files in os.walk(root, onerror=fail, followlinks=True):
        real = os.path.realpath(folder)
        if real in entered:
            below.clear()
            continue
        entered.add(real)
        yield from (str(Path(folder, name).relative_to(root)) for name in files)


def _encodes(name: str) -> bool:
    return not any("\udc80" <= letter <= "\udcff" for letter in name)


def _visible(name: str) -> bool:
    parts = name.split("/")
    return not any(part.startswith((".", "__MACOSX")) or part in ("Thumbs.db", "desktop.ini") for part in parts)
