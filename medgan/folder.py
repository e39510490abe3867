"""Folders of a run and of a search: paths or URIs, written whole files at a time: a crash leaves each old or new."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from medgan import schemas
from medgan.config import Config, ConfigError, Refused, parse_yaml, validate
from medgan.data import cache
from medgan.data.shards import (
    LARGEST,
    UNFINISHED,
    Manifest,
    check_inside,
    filesystem,
    names,
    parse_manifest,
    read_file,
    remove,
    write_file,
)
from medgan.schemas import checked

MOST_JSON = 2**26
"""Bytes of a record or a manifest."""
MOST_YAML = 2**20
"""Bytes of a config, which takes longer to read."""
MOST_PICTURE = 2**28
SAMPLES = re.compile(r"\d{6,12}\.png")
CHECKPOINT = re.compile(r"(\d{12})\.pt")


class CheckpointError(ValueError):
    """A checkpoint that cannot be opened. One line."""


class OtherSchema(CheckpointError):
    """A sound checkpoint, written by another version of medgan."""


class Stuck(RuntimeError):
    """A run has checkpoints and can go on from none of them. Raised on every rank. One line: why, and what to do."""


class Folder:
    """A folder at a path or a URI, and what lies in it by name."""

    kind = "folder"
    """What people call it."""

    def __init__(self, location: str) -> None:
        self.location = location

    def write(self, name: str, content: bytes | str) -> None:
        write_file(self.location, name, content.encode() if isinstance(content, str) else content)

    def read(self, name: str, most: int = LARGEST) -> bytes:
        """Raises FileNotFoundError or another OSError, also where there are more bytes than `most`."""
        return read_file(self.location, name, inside=True, most=most)

    def checked(self, schema: Any, name: str) -> Any:
        """A JSON file, checked against a schema of schemas.py. Raises Refused, and OSError as `read` does."""
        return checked(schema, self.read(name, MOST_JSON), f"{self.location}/{name}")

    def manifest(self) -> Manifest:
        """manifest.json. Raises Refused, and OSError as `read` does."""
        return parse_manifest(self.read("manifest.json", MOST_JSON), self.location)

    def names(self, below: str = "") -> list[str]:
        """File and folder names directly in it or in a folder below, sorted; none where that does not exist."""
        return names(self.location, below)

    def delete(self, name: str) -> None:
        """Remove a file or folder; nothing to do where there is none."""
        remove(self.location, name)

    def exists(self, name: str) -> bool:
        fs, path = filesystem(self.location)
        return bool(fs.get_file_info(f"{path}/{name}").type == pafs.FileType.File)

    def remove_unfinished(self, *below: str) -> None:
        """Remove what writers that were killed left in such folders; for whoever alone writes there."""
        for folder in below:
            for name in self.names(folder):
                if UNFINISHED.search(name):
                    self.delete(f"{folder}/{name}")

    def modified(self, name: str) -> float | None:
        """When a file was last written, as time.time() would say; None where there is none."""
        fs, path = filesystem(self.location)
        stamp = fs.get_file_info(f"{path}/{name}").mtime_ns
        return None if stamp is None else stamp / 1e9


class RunFolder(Folder):
    """RUN: config.yaml, metrics.jsonl, samples/, checkpoints/, generator/, wandb/, report.html.

    What grows line by line (metrics.jsonl, wandb/) needs a local file: `work` is RUN itself where RUN is a path, else
    a folder in the node's cache that is copied to the URI at checkpoints.
    """

    kind = "run"

    def __init__(self, location: str) -> None:
        super().__init__(location)
        self.remote = "://" in location
        self.digest = hashlib.sha256(location.encode()).hexdigest()[:16]
        self.work = cache.place("runs", self.digest) if self.remote else Path(location)

    def config(self) -> Config | None:
        """The run's settled config; None where the folder is empty or not there yet.

        Raises Refused where the location is a file, holds something else, or the config cannot be read.
        """
        fs, path = filesystem(self.location)
        if fs.get_file_info(path).type == pafs.FileType.File:
            raise Refused(f"{self.location}: is a file, a run is a folder")
        if self.exists("config.yaml"):
            where = f"{self.location}/config.yaml"
            tree = parse_yaml(self.read("config.yaml", MOST_YAML), where)
            try:
                return validate(tree)
            except ConfigError as error:
                raise ConfigError(f"{where}: {error}") from None
        other = [name for name in self.names() if not name.startswith(".")]  # the lease of a run that is starting
        if other:
            raise Refused(f"{self.location}: holds {other[0]} and is no run; choose another folder")
        return None

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def checkpoints(self) -> list[int]:
        """images_seen of every checkpoint, ascending."""
        matches = (CHECKPOINT.fullmatch(name) for name in self.names("checkpoints"))
        return sorted(int(match.group(1)) for match in matches if match)

    def save_checkpoint(self, images_seen: int, content: bytes, keep: int, best: int | None) -> None:
        """Write a checkpoint after its checksum, then drop all but the `keep` newest and the best."""
        name = checkpoint_name(images_seen)
        self.write(checksum_name(images_seen), f"{hashlib.sha256(content).hexdigest()}  {name.rpartition('/')[2]}\n")
        self.write(name, content)
        for old in self.checkpoints()[:-keep]:
            if old != best:
                self.delete(checkpoint_name(old))
                self.delete(checksum_name(old))

    def read_checkpoint(self, images_seen: int) -> bytes:
        """The bytes that were saved. Raises CheckpointError where they are others; one without checksum is old."""
        content = self.read(checkpoint_name(images_seen))
        if self.exists(checksum_name(images_seen)):
            wanted = self.read(checksum_name(images_seen)).decode("ascii", "replace").partition(" ")[0]
            if hashlib.sha256(content).hexdigest() != wanted:
                raise CheckpointError("its bytes are not those that were saved (SHA-256 differs)")
        return content

    def set_aside(self, images_seen: int) -> None:
        """Rename a checkpoint that does not open to *.damaged."""
        fs, path = filesystem(self.location)
        if isinstance(fs, pafs.LocalFileSystem):
            check_inside(path, "checkpoints")
        name = f"{path}/{checkpoint_name(images_seen)}"
        fs.move(name, f"{name}.damaged")
        self.delete(checksum_name(images_seen))

    def aside(self) -> list[str]:
        """Names of the checkpoints that were set aside."""
        return [f"checkpoints/{name}" for name in self.names("checkpoints") if name.endswith(".damaged")]

    # -- what grows in the work folder -----------------------------------------------------------------------------

    def fetch(self, name: str) -> Path:
        """The local copy of a growing file, taken over from the URI first; its folder exists."""
        local = self.work / name
        local.parent.mkdir(parents=True, exist_ok=True)
        if self.remote:
            local.unlink(missing_ok=True)
            if self.exists(name):
                local.write_bytes(self.read(name))
        return local

    def publish(self, *names: str) -> None:
        """Copy growing files and folders from the work folder to a URI; nothing to do where RUN is a path."""
        if not self.remote:
            return
        for name in names:
            source = self.work / name
            files = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
            for file in files:
                self.write(str(file.relative_to(self.work)), file.read_bytes())


def holds_generator(run: str) -> bool:
    """Whether a folder is a run with its generator/, and not such a generator/ itself."""
    return "model.safetensors" in names(f"{run}/generator")


def checkpoint_name(images_seen: int) -> str:
    return f"checkpoints/{images_seen:012d}.pt"


def checksum_name(images_seen: int) -> str:
    """Beside the checkpoint, as `sha256sum -c` reads it."""
    return f"checkpoints/{images_seen:012d}.sha256"


class SearchFolder(Folder):
    """SEARCH: search.yaml, trials/ (a run folder and a record for each), best.yaml, results.parquet, report.html."""

    kind = "search"

    def settings(self) -> dict[str, Any] | None:
        """search.yaml; None where the folder is empty or not there yet. Raises Refused where it is no search."""
        found = [name for name in self.names() if not name.startswith(".")]  # the lease of a search that is starting
        if "search.yaml" in found:
            where = f"{self.location}/search.yaml"
            told: dict[str, Any] = checked(
                schemas.Search, parse_yaml(self.read("search.yaml", MOST_YAML), where), where
            )
            return told
        if found:
            raise Refused(f"{self.location}: holds {found[0]} and is no search; choose another folder")
        return None

    def trials(self) -> list[dict[str, Any]]:
        """Every trial's record, by name."""
        files = [f"trials/{name}" for name in self.names("trials") if name.endswith(".json")]
        records = [self.checked(schemas.Record, name) for name in files]
        for file, record in zip(files, records, strict=True):
            if file != f"trials/{record['name']}.json":
                raise Refused(f"{self.location}/{file}: name: is the record of another trial")
        return sorted(records, key=lambda record: record["name"])

    def summary(self) -> dict[str, Any]:
        """summary.json; empty where there is none yet. Raises Refused."""
        return self.checked(schemas.Summary, "summary.json") if "summary.json" in self.names() else {}

    def write_trial(self, record: dict[str, Any]) -> None:
        self.write(f"trials/{record['name']}.json", json.dumps(record) + "\n")

    def run(self, record: dict[str, Any]) -> RunFolder:
        """The run folder of a trial. Raises OSError where it is a link that leads out of the search."""
        fs, path = filesystem(self.location)
        if isinstance(fs, pafs.LocalFileSystem):
            check_inside(path, f"trials/{record['run']}")
        return RunFolder(f"{self.location}/trials/{record['run']}")
