"""Rules of the house: imports run one way, Ray stays at the seam, the jobs need no torch to refuse."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SEAM = {"medgan/ray_connect.py", "medgan/ray_train.py", "medgan/ray_tasks.py", "medgan/data/ingest.py"}

# Who may import whom: a module may import those of lower rank.
RANKS = {
    "medgan.host": -2,
    "medgan": -1,
    "medgan.names": -1,
    "medgan.keys": 2,
    "medgan.values": -1,
    "medgan.config": 0,
    "medgan.locations": 1,
    "medgan.streams": 1,
    "medgan.pixels": 1,
    "medgan.data.isolated": 0,
    "medgan.data.limits": 0,
    "medgan.data.tiff": 1,
    "medgan.data.decode": 2,
    "medgan.data.phantom": 1,
    "medgan.data.phantom_oct": 1,
    "medgan.models.convolution": 2,
    "medgan.models.layers": 2,
    "medgan.models.dcgan": 3,
    "medgan.models.cgan": 4,
    "medgan.models.stylegan2": 4,
    "medgan.models.resgan": 4,
    "medgan.models": 5,
    "medgan.losses": 3,
    "medgan.data.shards": 2,
    "medgan.data.cache": 2,
    "medgan.data.copies": 1,
    "medgan.data.dicom_header": 1,
    "medgan.data.dicom_stored": 2,
    "medgan.data.dicom_grey": 3,
    "medgan.data.contradictions": 1,
    "medgan.data.summary": 3,
    "medgan.data.sources.masks": 1,
    "medgan.data.sources.raw": 3,
    "medgan.data.sources.base": 4,
    "medgan.data.sources.frames": 1,
    "medgan.data.sources.copies": 4,
    "medgan.data.sources.doubts": 4,
    "medgan.data.sources.layout": 5,
    "medgan.data.sources.table": 4,
    **{
        f"medgan.data.sources.{name}": 6
        for name in ("dicom_folder", "drawn", "image_folder", "kermany", "medmnist", "nih")
    },
    "medgan.data.sources": 7,
    "medgan.data.loader": 3,
    "medgan.distributed": 3,
    "medgan.schemas": 3,
    "medgan.folder": 4,
    "medgan.lease": 5,
    "medgan.terminal": 3,
    "medgan.tracking": 5,
    "medgan.metrics.features": 5,
    "medgan.metrics.fidelity": 5,
    "medgan.metrics.classifiers": 3,
    "medgan.data.ingest": 8,
    "medgan.cells": 4,
    "medgan.augment": 2,
    "medgan.private": 4,
    "medgan.state": 6,
    "medgan.step": 7,
    "medgan.guards": 8,
    "medgan.sample": 7,
    "medgan.loop": 8,
    "medgan.plan": 8,
    "medgan.page": 1,
    "medgan.evaluation_page": 7,
    "medgan.report": 8,
    "medgan.metrics.evidence": 10,
    "medgan.metrics.retrain": 9,
    "medgan.metrics.privacy": 11,
    "medgan.metrics.utility": 11,
    "medgan.search_page": 8,
    "medgan.release": 12,
    "medgan.wandb_report": 8,
    "medgan.run": 9,
    "medgan.ray_connect": 4,
    "medgan.ray_train": 10,
    "medgan.ray_tasks": 11,
    "tune": 0,
    "tune.spaces": 11,
    "tune.algorithms": 12,
    "tune.schedulers": 12,
    "tune.trial": 12,
    "tune.search": 13,
}


def files():
    return [path for folder in ("medgan", "tune") for path in sorted((ROOT / folder).rglob("*.py"))]


def module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("path", files(), ids=module)
def test_imports_run_one_way(path):
    if module(path) in ("medgan.data", "medgan.metrics"):
        assert not imports(path)
        return
    assert module(path) in RANKS, "give a new module its rank"
    for other in imports(path) & RANKS.keys() - {"medgan", "tune", module(path)}:
        assert RANKS[other] < RANKS[module(path)], f"{module(path)} imports {other}"
    above = ("jobs",) if path.is_relative_to(ROOT / "tune") else ("tune", "jobs")
    assert not any(name.partition(".")[0] in above for name in imports(path))


@pytest.mark.parametrize("path", files(), ids=module)
def test_only_the_seam_imports_ray(path):
    uses = {name for name in imports(path) if name.partition(".")[0] == "ray"}
    assert not uses or str(path.relative_to(ROOT)) in SEAM or path.is_relative_to(ROOT / "tune")


def loaded_after(statement: str) -> set[str]:
    code = f"{statement}; import sys; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, timeout=60
    )
    return set(result.stdout.split())


@pytest.fixture(scope="module")
def without_jobs() -> set[str]:
    return loaded_after("import medgan.loop, medgan.run, medgan.data.sources, medgan.release")


def test_the_loop_does_not_need_ray(without_jobs):
    assert "ray" not in without_jobs


def test_codecs_load_where_dicom_is_read_or_written_and_nowhere_else(without_jobs):
    assert "medgan.data.sources.dicom_folder" in without_jobs
    assert not without_jobs & {"pydicom", "gdcm"}


@pytest.mark.parametrize("job", ["train", "prepare", "generate", "evaluate", "report", "search"])
def test_a_job_refuses_before_it_loads_torch_or_ray(job):
    loaded = loaded_after(f"import runpy; runpy.run_path('jobs/{job}.py', run_name='job')")
    assert not loaded & {"torch", "ray", "wandb", "torchvision", "pydicom", "gdcm"}
