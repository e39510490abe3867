"""An archive given as --raw: the same images as its folder, and nothing that an archive can do besides."""

import errno
import gzip
import io
import lzma
import os
import runpy
import stat
import tarfile
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medgan.data import ingest, shards
from medgan.data.shards import write_file
from medgan.data.sources import SOURCES, Options, Raw, SourceError
from medgan.data.sources import raw as raws
from medgan.pixels import encode_png

from .conftest import write_key

FILMS = {
    f"{split}/{name}/{number}.png": encode_png(
        np.random.default_rng([number, ord(name), count]).integers(0, 256, (1, 9, 9)).astype(np.uint8)
    )
    for split, count in (("train", 4), ("test", 2))
    for name in "ab"
    for number in range(count)
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDGAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(ingest, "_on_ray", lambda task, things: map(task, things))
    monkeypatch.setattr("medgan.ray_connect.connect", lambda verbose: {})


def zipped(files: dict[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(files: dict[str, bytes], *others: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info in others:
            archive.addfile(info)
    return buffer.getvalue()


def pack(kind: str, files: dict[str, bytes]) -> bytes:
    if kind == "zip":
        return zipped(files)
    squeeze = {
        "tar": bytes,
        "tar.gz": gzip.compress,
        "tgz": gzip.compress,
        "tar.xz": lzma.compress,
    }
    return squeeze[kind](tarred({f"./{name}": content for name, content in files.items()}))


def kept(folder: Path) -> list[Path]:
    return [path for path in (folder / "cache").rglob("*") if path.is_file() and path.stat().st_size]


def prepared(location: str, out: Path) -> dict[str, bytes]:
    write_key(out.parent / "key")
    job = runpy.run_path(str(Path(__file__).parent.parent / "jobs/prepare.py"))
    command = ["--source", "image_folder", "--raw", location, "--out", str(out), "--resolution", "32"]
    job["main"]([*command, "--split", "published", "--patient-key-file", str(out.parent / "key")])
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tgz", "tar.xz"])
def test_an_archive_gives_the_bytes_of_its_folder_and_leaves_nothing(tmp_path, kind):
    for name, content in FILMS.items():
        write_file(tmp_path / "folder", name, content)
    (tmp_path / f"films.{kind}").write_bytes(pack(kind, FILMS))
    right = prepared(str(tmp_path / "folder"), tmp_path / "right")
    for _ in range(2):  # the second time nothing is to be done
        assert prepared(str(tmp_path / f"films.{kind}"), tmp_path / "made") == right
        assert kept(tmp_path) == []


def test_archives_in_a_bucket_are_read(tmp_path, bucket):
    for kind in ("zip", "tar", "tar.gz"):
        fs, path = shards.filesystem(f"{bucket}/films.{kind}")
        with fs.open_output_stream(path, compression=None) as stream:  # or it packs what is called .gz once more
            stream.write(pack(kind, FILMS))
        raw = Raw(f"{bucket}/films.{kind}")
        raw.check()
        assert {name: raw.read(name) for name in raw.files()} == FILMS
        assert len(kept(tmp_path)) == (kind != "zip")
        raw.forget()


def test_a_compressed_tar_is_unpacked_once_for_its_owner_alone(tmp_path):
    (tmp_path / "films.tar.gz").write_bytes(pack("tar.gz", FILMS))
    raw = Raw(str(tmp_path / "films.tar.gz"))
    raw.check()
    (file,) = kept(tmp_path)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert file.read_bytes() == pack("tar", FILMS)
    assert raw.notes() == [
        f"--raw is one stream: every host unpacks it into {file.parent}, and this one alone clears that at the end"
    ]
    before = file.stat().st_mtime_ns
    raw.check()
    assert raw.read("train/a/1.png") == FILMS["train/a/1.png"]
    assert file.stat().st_mtime_ns == before
    with pytest.raises(FileNotFoundError):
        raw.read("train/a/99.png")


def link(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return info


def zip_link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


def zip_marked(place: int, value: int) -> bytes:
    """A zip of one film whose two headers have such a byte; the central one has two bytes more before it."""
    content = bytearray(zipped({"a/1.png": b"secret"}))
    content[place] = content[content.index(b"PK\x01\x02") + place + 2] = value
    return bytes(content)


ONE = {"a/1.png": os.urandom(5000), "b/2.png": os.urandom(5000)}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (zipped({"../../a/1.png": b"x", "b/1.png": b"x"}), "1 files in it have names that lead out of it"),
        (zipped({"/etc/cron.d/1.png": b"x"}), "1 files in it have names that lead out of it"),
        (zipped({"..\\a\\1.png": b"x"}), "1 files in it have names that lead out of it"),
        (tarred({"a/../../1.png": b"x"}), "1 files in it have names that lead out of it"),
        (tarred(ONE, link("a/3.png")), "1 files in it are links or no files"),
        (zipped({zip_link("a/1.png"): b"/etc/passwd"}), "1 files in it are links"),
        (zip_marked(6, 1), "1 files in it are encrypted; unpack it with its password"),
        (zip_marked(8, 9), "1 files in it are compressed in an uncommon way; unpack it, or pack it again"),
        (zipped(ONE)[:3000], "damaged, cut short or empty"),
        (tarred(ONE)[:7000], "damaged, cut short or empty"),
        (gzip.compress(tarred(ONE), mtime=0)[:7000], "damaged, cut short or empty"),
        (lzma.compress(tarred(ONE))[:7000], "damaged, cut short or empty"),
        (zipped({"XX/1.png": b"x"}).replace(b"XX", b"\xd6\xd0"), "1 file names are not UTF-8; unpack it and rename"),
        (gzip.compress(b"a volume" * 500, mtime=0), "neither a folder nor an archive of files"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(600), "neither a folder nor an archive of files"),
        (b"", "neither a folder nor an archive of files"),
        (b"PK\x03\x04\x14\x00\x00", "damaged, cut short or empty"),
        (b"PK\x05\x06", "damaged, cut short or empty"),
        (zipped({}), "damaged, cut short or empty"),
    ],
)
def test_an_archive_that_is_damaged_hostile_or_none_is_refused_in_one_line(tmp_path, content, words):
    (tmp_path / "films").write_bytes(content)
    with pytest.raises(SourceError, match=f"^--raw {tmp_path}/films: {words}[^\n]*$"):
        Raw(str(tmp_path / "films")).files()
    assert kept(tmp_path) == []


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
@given(places=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4))
@settings(derandomize=True, deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_archive_with_wrong_bytes_is_read_in_part_or_refused(tmp_path_factory, kind, places):
    content = bytearray(pack(kind, ONE))
    for place, flip in places:
        content[int(place * len(content))] ^= flip
    file = tmp_path_factory.mktemp("flipped") / "films"
    file.write_bytes(content)
    raw = Raw(str(file))
    try:
        names = raw.files()
    except SourceError:
        return
    for name in names:
        with suppress(ValueError):
            raw.read(name)
    raw.forget()


def test_what_becomes_too_large_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    bomb = {f"a/{number}.bmp": bytes(300_000) for number in range(4)}
    monkeypatch.setattr(raws, "ALLOWED", 10_000)
    (tmp_path / "films.tgz").write_bytes(gzip.compress(tarred(bomb)))
    with pytest.raises(SourceError, match="grows to over 100 times its size"):
        Raw(str(tmp_path / "films.tgz")).check()
    assert kept(tmp_path) == []
    monkeypatch.setattr(raws, "LARGEST", 200_000)
    (tmp_path / "films.zip").write_bytes(zipped(bomb))
    with pytest.raises(SourceError, match="4 files in it are larger than 2 GiB"):
        Raw(str(tmp_path / "films.zip")).check()


def test_a_cache_without_room_is_named(tmp_path, monkeypatch):
    (tmp_path / "films.tgz").write_bytes(pack("tgz", FILMS))

    def full(*arguments):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(raws.os, "open", full)
    with pytest.raises(
        SourceError, match=r"cannot be unpacked into .*/cache/raw \(No space left on device\); set MEDGAN_"
    ):
        Raw(str(tmp_path / "films.tgz")).check()


def test_one_damaged_film_is_rejected_and_named_without_its_path(tmp_path):
    content = bytearray(zipped(FILMS, zipfile.ZIP_STORED))
    content[content.index(FILMS["train/b/2.png"]) + 20] ^= 1
    (tmp_path / "films.zip").write_bytes(content)
    request = ingest.Request("image_folder", str(tmp_path / "films.zip"), str(tmp_path / "out"), 32)
    written = ingest.write(ingest.plan(request, ingest.find(request), bytes(32)))
    assert [(row.name, row.reason) for row in written.rejected] == [("train/b/2.png", "damaged in its archive")]
    assert shards.problems(tmp_path / "out") == []


def test_names_of_zips_are_read_as_their_writers_meant_them(tmp_path):
    unmarked = zipped({"XX/1.png": b"1", "b\\2.png": b"2", "b\\": b""}).replace(b"XX", "é".encode())
    (tmp_path / "films.zip").write_bytes(unmarked)
    assert Raw(str(tmp_path / "films.zip")).files() == ["b/2.png", "é/1.png"]


def test_dicom_and_medmnist_are_read_from_archives(tmp_path):
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = np.random.default_rng(len(split)).integers(0, 256, (4, 28, 28)).astype(np.uint8)
        arrays[f"{split}_labels"] = np.array([[0], [1], [0], [1]], np.uint8)
    np.savez(tmp_path / "pneumoniamnist.npz", **arrays)
    (tmp_path / "sets.zip").write_bytes(
        zipped({"x/pneumoniamnist.npz": (tmp_path / "pneumoniamnist.npz").read_bytes()})
    )
    found = SOURCES["medmnist"].listing(Raw(str(tmp_path / "sets.zip")), Options())
    assert len(found.records) == 12
    with pytest.raises(SourceError, match="neither a folder nor an archive .*; name the folder that it lies in"):
        Raw(str(tmp_path / "pneumoniamnist.npz")).check()

    from pydicom.data import get_testdata_file

    film = Path(get_testdata_file("CT_small.dcm")).read_bytes()
    table = b"PatientID;label\r\n1CT1;mass|nodule\r\n"
    (tmp_path / "dicom.tar").write_bytes(tarred({"a/labels.csv": table, "a/1": film}))
    raw = Raw(str(tmp_path / "dicom.tar"))
    found = SOURCES["dicom_folder"].listing(raw, Options())
    assert [(record.name, record.labels, record.patient) for record in found.records] == [("a/1", (0, 1), "1CT1")]
    assert found.classes == ("mass", "nodule")
    assert SOURCES["dicom_folder"].read(raw, found.records[0], Options()) == film


@pytest.mark.parametrize("fault", ["a bit of a header", "cut within a header", "cut after a film", "two archives"])
def test_a_tar_that_does_not_end_as_it_should_is_refused_and_no_film_is_lost_silently(tmp_path, fault):
    """tarfile takes the first header that it cannot read for the end."""
    for number in range(4):
        write_file(
            tmp_path / "folder", f"{'ab'[number % 2]}/p{number}.png", encode_png(np.full((1, 40, 40), 9, np.uint8))
        )
    with tarfile.open(tmp_path / "films.tar", "w") as archive:
        archive.add(tmp_path / "folder", ".")
    content = bytearray((tmp_path / "films.tar").read_bytes())
    with tarfile.open(tmp_path / "films.tar") as archive:
        third = archive.getmembers()[-1]
    if fault == "a bit of a header":
        content[third.offset + 3] ^= 1
    elif fault == "cut within a header":
        content = content[: third.offset + 200]
    elif fault == "cut after a film":
        content = content[: third.offset]
    else:
        content *= 2
    (tmp_path / "films.tar").write_bytes(content)
    with pytest.raises(SourceError, match="damaged, cut short or empty"):
        Raw(str(tmp_path / "films.tar")).files()
