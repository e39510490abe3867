"""Where figures and pictures go: nowhere, a JSON-lines file, Weights & Biases, or several of them."""

from __future__ import annotations

import io
import json
import netrc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from PIL import Image
from pydantic_core import from_json

from medgan import schemas
from medgan.config import Config
from medgan.data.shards import check_inside, read_file, write_file
from medgan.folder import RunFolder
from medgan.locations import redact
from medgan.names import part
from medgan.schemas import checked

Row = dict[str, float]
MOST_ROWS = 2**31
"""Bytes of metrics.jsonl or order.jsonl."""


class Tracker(Protocol):
    """Takes rows of figures and pictures, each at an images_seen. Rank 0 has one that writes, the others a null."""

    def log(self, images_seen: int, row: Row) -> None: ...

    def picture(self, images_seen: int, name: str, png: bytes) -> None: ...

    def alert(self, title: str, text: str) -> None:
        """What somebody should look at, wherever they are told of it."""

    def close(self, failed: bool = False) -> None: ...


class NullTracker:
    """So that no caller asks whether tracking is on."""

    def log(self, images_seen: int, row: Row) -> None:
        pass

    def picture(self, images_seen: int, name: str, png: bytes) -> None:
        pass

    def alert(self, title: str, text: str) -> None:
        pass

    def close(self, failed: bool = False) -> None:
        pass


class JsonlTracker:
    """metrics.jsonl: one row per event. On resume rows past the resumed point are cut, also a half-written last one."""

    def __init__(self, path: Path, resumed_at: int) -> None:
        kept = [json.dumps(row) + "\n" for row in read_rows(path) if row["images_seen"] <= resumed_at]
        write_file(path.parent, path.name, "".join(kept if resumed_at else []).encode())
        self.file = open(path, "a", buffering=1)  # noqa: SIM115

    def log(self, images_seen: int, row: Row) -> None:
        self.file.write(json.dumps({"images_seen": images_seen, **row}) + "\n")

    def picture(self, images_seen: int, name: str, png: bytes) -> None:
        pass

    def alert(self, title: str, text: str) -> None:
        pass

    def close(self, failed: bool = False) -> None:
        self.file.close()


class WandbTracker:
    """A W&B run in RUN/wandb, which a process of its own sends as it grows where there is an API key (see Courier).

    The step is images_seen, so that a resumed run goes on where it was. Nothing leaves but figures, the config,
    generated images, the manifest (counts and checksums) and, at the end, the best generator: no code, no console, no
    host statistics, no real image. W&B stops no training: where it fails, `tell` is told why, once, and it is left out
    from then on.
    """

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        run_id: str,
        name: str,
        tell: Callable[[str], None],
        until: int | None = None,
    ) -> None:
        """until: where this part of the run ends, if another one follows: nothing is waited for there."""
        folder.work.mkdir(parents=True, exist_ok=True)
        self.config, self.folder, self.tell, self.until = config, folder, tell, until
        self.seen, self.well = 0, True
        self.courier: Courier | None = None
        with self._harmless():
            self._open(run_id, name)

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # W&B's own kinds, and whatever a process of its that died leads to
            why = " ".join(f"{type(error).__name__}: {error}".split())
            self.well = False
            self.tell(
                f"W&B failed ({why}) and is left out until the run is gone on with; metrics.jsonl has every figure"
            )

    def _open(self, run_id: str, name: str) -> None:
        import wandb

        config, folder = self.config, self.folder
        self.wandb = wandb
        check_inside(str(folder.work), "wandb")
        self.run = wandb.init(
            project=config.tracking.project,
            group=config.tracking.group,
            dir=folder.work,
            id=run_id,
            name=f"{config.model.name} {config.loss.name} {name}",
            mode="offline",
            resume="allow",  # what sends it asks where the server's history ends, and goes on there
            config=config.dump(),
            tags=[config.model.name, config.loss.name, *config.tracking.tags],
            settings=wandb.Settings(
                silent=True,
                console="off",
                host="-",
                disable_git=True,
                disable_code=True,
                save_code=False,
                x_disable_stats=True,
                x_disable_meta=True,
                x_disable_machine_info=True,
                x_save_requirements=False,
            ),
        )
        self.run.define_metric("images_seen")
        self.run.define_metric("*", step_metric="images_seen")
        self.run.define_metric("metric/kid", step_metric="images_seen", summary="min")
        if folder.exists("manifest.json"):
            name = f"data-{(config.data.manifest_sha256 or 'unknown')[:12]}"
            data = self._artifact(name, "dataset", ["manifest.json"])
            # What run.use_artifact does where it is online; offline it refuses although the record is the same.
            self.run._log_artifact(data, is_user_created=True, use_after_commit=True)
        if config.tracking.wandb == "auto" and has_wandb_key():
            self.courier = Courier(Path(self.run.dir).parent, run_id, config.tracking.wait_s)

    def log(self, images_seen: int, row: Row) -> None:
        self.seen = images_seen
        if self.well:
            with self._harmless():
                self.run.log({"images_seen": images_seen, **row}, step=images_seen)

    def picture(self, images_seen: int, name: str, png: bytes) -> None:
        """The grid, and, where its rows are classes, each row by its class: W&B makes a file name of the key."""
        if not self.well:
            return
        image = Image.open(io.BytesIO(png), formats=["PNG"])
        pictures: dict[str, Image.Image] = {name: image}
        classes = (self.config.data.classes or ()) if self.config.conditional else ()
        height = image.height // max(1, len(classes))
        for index, label in enumerate(classes):
            pictures[f"{name}/{part(label)}"] = image.crop((0, index * height, image.width, (index + 1) * height))
        with self._harmless():
            logged = {key: self.wandb.Image(picture) for key, picture in pictures.items()}
            self.run.log({"images_seen": images_seen, **logged}, step=images_seen)

    def alert(self, title: str, text: str) -> None:
        if self.well:
            with self._harmless():
                self.run.alert(f"{self.run.name}: {title}", redact(text))

    def close(self, failed: bool = False) -> None:
        error = sys.exc_info()[1]
        goes_on = not failed and self.until is not None and self.until <= self.seen < self.config.total_images
        if failed:
            self.alert("stopped", f"{type(error).__name__}: {error}" if error else "the run failed")
        elif self.seen >= self.config.total_images:
            self.alert("finished", f"{self.config.total_images:,} images")
        if self.well:
            with self._harmless():
                if not failed and not goes_on:
                    self._log_generator()
                self.run.finish(exit_code=int(failed))
        if self.courier is not None:
            sent = self.courier.close(wait=self.well and not goes_on)
            if not sent and not goes_on:
                self.tell(f"W&B did not take everything; to send it later: wandb sync {self.courier.run}")

    def _log_generator(self) -> None:
        names = self.folder.names("generator")
        if names:
            files = [f"generator/{name}" for name in names]
            generator = self._artifact(f"generator-{self.run.id}", "model", files, metadata=self.config.dump())
            self.run.log_artifact(generator, aliases=["best"])

    def _artifact(self, name: str, kind: str, files: list[str], **more: Any) -> Any:
        """An artifact of files of the run. What is sent lies in the offline run's own folder: W&B alone would leave
        copies of a generator in the home and the temporary folder of whatever host trained it."""
        artifact = self.wandb.Artifact(name, kind, **more)
        kept = Path(self.run.dir).parent / "artifacts" / name
        kept.mkdir(parents=True, exist_ok=True)
        for file in files:
            path = kept / Path(file).name
            path.write_bytes(self.folder.read(file))
            artifact.add_file(str(path), path.name, skip_cache=True, policy="immutable")
        return artifact


class Courier:
    """`wandb sync` of a run while it grows, in a process of its own: whatever the server does, training never waits.

    Folders of the run that a crash or a silent server left unsent go first. The API key reaches it through the
    environment, as W&B itself takes it. The process ends with its parent: a shell holds the other end of a pipe and
    ends it when that closes.
    """

    SCRIPT = """
exec 3<&0
tool=$1 id=$2 run=$3; shift 3
send() { "$tool" beta sync --yes --id "$id" "$@" </dev/null & job=$!; wait $job; }
(trap 'kill $job 2>/dev/null; exit 1' TERM; [ $# = 0 ] || send "$@"; send --live --no-skip-synced "$run") & all=$!
(cat <&3 >/dev/null; kill $all 2>/dev/null) & wait $all
"""

    def __init__(self, run: Path, run_id: str, patience_s: float = 20.0) -> None:
        """run: the offline run's folder; patience_s: how long `close` waits for what is left to be sent."""
        self.run, self.patience_s = run, patience_s
        tool = str(Path(sys.executable).parent / "wandb")
        earlier = [path for path in sorted(run.parent.glob(f"offline-run-*-{run_id}")) if path < run]
        unsent = [str(path) for path in earlier if not list(path.glob("*.synced"))]
        environment = {**os.environ, "WANDB_SILENT": "true", "WANDB_DIR": str(run.parent.parent)}  # its logs, too
        environment.pop("WANDB_MODE", None)
        with open(run / "courier.log", "wb") as log:
            self.process = subprocess.Popen(
                ["sh", "-c", self.SCRIPT, "sh", tool, run_id, str(run), *unsent],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
            )

    def close(self, wait: bool = True) -> bool:
        """Wait for the rest, but not for long; what is not sent stays in RUN/wandb. Whether all was sent."""
        try:
            sent = self.process.wait(self.patience_s if wait else 0) == 0
        except subprocess.TimeoutExpired:
            sent = False
        assert self.process.stdin is not None
        self.process.stdin.close()
        if wait:
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return sent


class Several:
    """Passes everything on to each of its trackers."""

    def __init__(self, *trackers: Tracker) -> None:
        self.trackers = trackers

    def log(self, images_seen: int, row: Row) -> None:
        for tracker in self.trackers:
            tracker.log(images_seen, row)

    def picture(self, images_seen: int, name: str, png: bytes) -> None:
        for tracker in self.trackers:
            tracker.picture(images_seen, name, png)

    def alert(self, title: str, text: str) -> None:
        for tracker in self.trackers:
            tracker.alert(title, text)

    def close(self, failed: bool = False) -> None:
        for tracker in self.trackers:
            tracker.close(failed)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, without lines that a crash cut short or a disk damaged. Raises Refused for what no
    run writes."""
    content = read_file(path.parent, path.name, inside=True, most=MOST_ROWS) if path.exists() else b""
    return parse_rows(content, str(path))


def rows_of(run: RunFolder) -> list[dict[str, Any]]:
    """As `read_rows`, of a run folder that has a metrics.jsonl."""
    return parse_rows(run.read("metrics.jsonl", MOST_ROWS), f"{run.location}/metrics.jsonl")


def parse_rows(content: bytes, where: str) -> list[dict[str, Any]]:
    """As `read_rows`, from the file's bytes."""
    rows = []
    for line in content.split(b"\n"):
        with suppress(ValueError):
            rows.append(from_json(line))
    found: list[dict[str, Any]] = checked(list[schemas.Row], rows, where)
    return found


def kept_offline() -> bool:
    """Whether WANDB_MODE keeps W&B off the network."""
    return os.environ.get("WANDB_MODE", "online") != "online"


def has_wandb_key() -> bool:
    """Whether W&B would find an API key: WANDB_API_KEY, or $NETRC (~/.netrc) for its host and port.

    Not where W&B is kept offline.
    """
    if kept_offline():
        return False
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    try:
        # Named, since Python refuses a default file that others may read, and W&B takes it.
        file = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
        return netrc.netrc(str(file)).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
