"""Where figures and pictures go: nowhere, a JSON-lines file, Weights & Biases, or several of them."""

from __future__ import annotations

import io
import json
import netrc
import os
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from PIL import Image

from medgan.config import Config
from medgan.data.shards import write_file

Row = dict[str, float]


class Tracker(Protocol):
    """Takes rows of figures and pictures, each at an images_seen. Rank 0 has one that writes, the others a null."""

    def log(self, images_seen: int, row: Row) -> None: ...

    def picture(self, images_seen: int, name: str, png: bytes) -> None: ...

    def close(self, failed: bool = False) -> None: ...


class NullTracker:
    """So that no caller asks whether tracking is on."""

    def log(self, images_seen: int, row: Row) -> None:
        pass

    def picture(self, images_seen: int, name: str, png: bytes) -> None:
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

    def close(self, failed: bool = False) -> None:
        self.file.close()


class WandbTracker:
    """A W&B run: online where an API key is set, else offline in RUN/wandb.

    The step is images_seen, so that a resumed run goes on where it was. Nothing is sent but figures, the config,
    the manifest's hash and generated images: no code, no console, no host statistics, no real image.
    """

    def __init__(self, config: Config, folder: Path, run_id: str, name: str) -> None:
        import wandb

        online = config.tracking.wandb == "auto" and has_wandb_key()
        folder.mkdir(parents=True, exist_ok=True)
        self.wandb = wandb
        self.run = wandb.init(
            project=config.tracking.project,
            dir=folder,
            id=run_id,
            name=name,
            resume="allow" if online else None,
            mode="online" if online else "offline",
            config=config.dump(),
            tags=[config.model.name, config.loss.name],
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                disable_code=True,
                save_code=False,
                x_disable_stats=True,
                x_disable_meta=True,
                x_disable_machine_info=True,
            ),
        )
        self.run.define_metric("images_seen")
        self.run.define_metric("*", step_metric="images_seen")
        self.run.define_metric("metric/kid", step_metric="images_seen", summary="min")

    def log(self, images_seen: int, row: Row) -> None:
        self.run.log({"images_seen": images_seen, **row}, step=images_seen)

    def picture(self, images_seen: int, name: str, png: bytes) -> None:
        self.run.log(
            {"images_seen": images_seen, name: self.wandb.Image(Image.open(io.BytesIO(png)))}, step=images_seen
        )

    def close(self, failed: bool = False) -> None:
        self.run.finish(exit_code=int(failed))


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

    def close(self, failed: bool = False) -> None:
        for tracker in self.trackers:
            tracker.close(failed)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, without a last line that a crash cut short."""
    return parse_rows(path.read_text()) if path.exists() else []


def parse_rows(text: str) -> list[dict[str, Any]]:
    """As `read_rows`, from the file's text."""
    rows = []
    for line in text.splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def has_wandb_key() -> bool:
    """Whether W&B would find an API key: WANDB_API_KEY, or ~/.netrc for its host. WANDB_MODE=offline says no."""
    if os.environ.get("WANDB_MODE", "online") != "online":
        return False
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return netrc.netrc().authenticators(host or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False
