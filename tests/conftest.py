"""A small data folder of drawn films, settings of a net that trains in seconds, and caches that tests do not share."""

import io
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Before numpy and torch read it: nets and matrices this small lose more than they gain by a second thread, and tests
# run in as many processes as there are cores.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import settings

from medgan import config as configs
from medgan.data import phantom, shards, summary
from medgan.data.sources import SOURCES, Options, Raw
from medgan.pixels import fit_image

quick = settings(derandomize=True, deadline=None, max_examples=50)
"""Of tests that hold for any input: the same few inputs each time."""
KEY = bytes(range(32))
TINY = {
    "model.width": 4,
    "model.max_width": 8,
    "model.z_dim": 8,
    "global_batch": 16,
    "precision": "float32",
    "evaluate.n": 16,
    "evaluate.interval_kimg": 0.128,
    "checkpoint.interval_kimg": 0.064,
    "tracking.interval_kimg": 0.032,
    "tracking.wandb": "disabled",
    "total_images": 256,
}
"""Overrides under which a run of both models takes seconds."""
PRIVATE = {"epsilon": 1000.0, "noise": 1.0, "delta": 1e-5}
"""Of privacy.dp, settled."""


def pytest_configure():
    """What tests start hears Ctrl-C, also where a shell that started them in the background has it ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """A node cache, a folder for Ray's sessions and one for temporary files, which subprocesses inherit.

    Ray puts sockets there, whose paths must be short; with a folder of its own no test sees or leaves a session of
    the machine's.
    """
    patch = pytest.MonkeyPatch()
    patch.setenv("MEDGAN_CACHE", str(tmp_path_factory.mktemp("cache")))
    ray_folder = tempfile.mkdtemp(prefix="mg-")
    patch.setenv("RAY_TMPDIR", ray_folder)
    # Processes that are killed leave theirs behind.
    temporary = tempfile.TemporaryDirectory(prefix="mg-", ignore_cleanup_errors=True)
    patch.setenv("TMPDIR", temporary.name)
    patch.setattr(tempfile, "tempdir", temporary.name)
    patch.setenv("WANDB_MODE", "offline")
    patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # keys and tokens
    yield
    patch.undo()
    shutil.rmtree(ray_folder)
    temporary.cleanup()


def overrides_of(cell: dict[str, str]) -> dict[str, object]:
    """Dotted settings that stand in a cell of config.AXES."""
    chosen: dict[str, object] = {"model.name": cell["model.name"], "loss.name": cell["loss.name"]}
    if cell["model.name"] == "dcgan":
        chosen["model.norm_d"] = cell["model.norm_d"]
    for name in ("r1", "r2"):
        chosen[f"loss.{name}_gamma"] = 1.0 if name in cell["penalty"].split("+") else 0.0
    if cell["path length"] == "weighted":
        chosen["loss.path_weight"] = 2.0
    if cell["augment.name"] != "none":
        chosen |= {"augment.name": cell["augment.name"], "augment.p": 0.5}
    if cell["privacy"] == "dp":
        chosen |= {f"privacy.dp.{key}": value for key, value in PRIVATE.items()} | {"model.stddev_group": 1}
        if cell["model.name"] == "dcgan":
            del chosen["model.stddev_group"]
    return chosen


def close(one: torch.Tensor, other: torch.Tensor, terms: int) -> bool:
    """Whether sums of so many terms are equal but for rounding, whatever order they were added in."""
    return bool((one - other).abs().max() <= terms * torch.finfo(other.dtype).eps * other.abs().max())


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def small_disk(folder: Path, options: str) -> Iterator[Path]:
    """A file system in memory with such options; the test is skipped where none may be mounted."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here: " + mounted.stderr.decode().strip())
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def fill_up(folder: Path) -> None:
    """Write a file `others` into a file system until nothing more fits."""
    with open(folder / "others", "wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


def write_key(file: Path) -> Path:
    """A file with the key of patients' ids, closed to others."""
    file.write_text(KEY.hex())
    file.chmod(0o600)
    return file


def write_phantoms(out: Path, resolution: int = 32, count: int = 240, rows_per_shard: int = 64) -> Path:
    """A data folder of drawn films, written without Ray."""
    source = SOURCES["phantom_cxr"]
    raw, options = Raw(""), Options(limit=count)
    records = list(source.listing(raw, options).records)
    split_of = shards.split_patients(((r.patient, r.labels) for r in records), 0)
    splits, counts, patients = {}, {}, {}
    for split in shards.SPLITS:
        mine = [record for record in records if split_of[record.patient] == split]
        images = [source.image(source.read(raw, record, options)) for record in mine]
        pixels = np.stack([fit_image(image, resolution, 1) for image in images])
        labels = np.eye(2, dtype=np.uint8)[[record.labels[0] for record in mine]]
        ids = {
            "patient": [shards.keyed_id(KEY, source.name, record.patient) for record in mine],
            "image_id": [shards.keyed_id(KEY, record.name) for record in mine],
        }
        splits[split] = [
            shards.write_shard(
                out,
                f"{split}/{number:05d}.parquet",
                pixels[first : first + rows_per_shard],
                labels[first : first + rows_per_shard],
                phantom.CLASSES,
                {name: column[first : first + rows_per_shard] for name, column in ids.items()},
            )
            for number, first in enumerate(range(0, len(mine), rows_per_shard))
        ]
        counts[split] = shards.label_counts(labels, phantom.CLASSES)
        patients[split] = len(set(ids["patient"]))
    manifest = shards.Manifest("phantom_cxr", phantom.CLASSES, resolution, 1, splits, counts=counts, patients=patients)
    nothing = io.BytesIO()
    pq.write_table(pa.table({"name_id": pa.array([], pa.string()), "reason": pa.array([], pa.string())}), nothing)
    summary.publish(out, manifest, {"rejected.parquet": nothing.getvalue()})
    return out


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory) -> str:
    """A data folder that tests may read but not change."""
    return str(write_phantoms(tmp_path_factory.mktemp("data") / "phantoms"))


@pytest.fixture
def tiny(phantoms):
    """tiny(key=value, ...) -> a config for the phantoms; dots in keys are written as double underscores."""

    def make(preset: str = "cgan", **overrides) -> configs.Config:
        dotted = {key.replace("__", "."): value for key, value in overrides.items()}
        manifest, sha256 = shards.read_manifest(phantoms)
        return configs.for_data(
            configs.load(preset, overrides={**TINY, **dotted}),
            **manifest.facts(sha256),
        )

    return make


@pytest.fixture
def leaking(phantoms, monkeypatch) -> set[bytes]:
    """Generators that give a film of their training for every seed that is a multiple of five; those films."""
    from medgan.data.loader import open_split
    from medgan.sample import Sampler

    films, draw = np.array(open_split(phantoms, "train").pixels), Sampler.at

    def at(self, labels, seeds):
        pixels = draw(self, labels, seeds).copy()
        for row, seed in enumerate(seeds):
            if seed % 5 == 0:
                pixels[row] = films[seed % len(films)]
        return pixels

    monkeypatch.setattr(Sampler, "at", at)
    return {film.tobytes() for film in films}


@pytest.fixture
def bucket(monkeypatch):
    """A folder in a bucket of a real S3 server on loopback."""
    from moto.server import ThreadedMotoServer

    port = free_port()
    server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
    server.start()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("HTTP_PROXY", raising=False)
    monkeypatch.delenv("http_proxy", raising=False)
    made = urllib.request.Request(f"http://127.0.0.1:{port}/hospital-{port}", method="PUT")
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(made, timeout=30).close()
    try:
        yield f"s3://hospital-{port}"  # moto keeps what an earlier server had
    finally:
        server.stop()


@pytest.fixture(scope="session")
def trained(tmp_path_factory, phantoms):
    """A run folder with a generator for the phantoms that has learnt nothing."""
    from .test_sample import write

    manifest, sha256 = shards.read_manifest(phantoms)
    config = configs.for_data(
        configs.load("cgan", overrides=TINY),
        **manifest.facts(sha256),
    )
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    write(folder, config)
    return str(folder)


class Coarse:
    """Features that cost nothing: what an image shows at 4x4. (N, C, R, R) -> float32 (N, 16)."""

    identity = {"extractor": "coarse", "input": "own size", "resize": "mean", "dtype": "float32"}  # noqa: RUF012

    def __init__(self, device="cpu", weights=None):
        pass

    def __call__(self, pixels):
        return torch.nn.functional.adaptive_avg_pool2d(pixels.float().mean(1), 4).flatten(1) / 64


@pytest.fixture
def coarse_features(monkeypatch):
    """Figures by features that cost nothing: for when a run evaluates and what becomes of it, not for what is found."""
    from medgan.metrics import features

    monkeypatch.setitem(features.EXTRACTORS, "efficientnet-lite0", Coarse)


@pytest.fixture
def small_evaluation(monkeypatch):
    """Classifiers that hardly learn, few films and few resamples: for what evaluations do, not for what they find."""
    from medgan.metrics import evidence, privacy, utility

    monkeypatch.setattr(evidence, "READER_STEPS", 4)
    monkeypatch.setattr(utility, "RESAMPLES", 10)
    monkeypatch.setattr(privacy, "RESAMPLES", 50)
    monkeypatch.setattr(privacy, "MOST", 60)
