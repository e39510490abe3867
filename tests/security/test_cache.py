"""The cache of a host holds patients' images: closed, believed only while it is what was written, and not for ever."""

import fcntl
import os
import stat
import time
from pathlib import Path

import numpy as np
import pytest

from medgan.config import Refused
from medgan.data import cache, loader
from medgan.data.loader import open_split
from medgan.folder import RunFolder
from medgan.terminal import command

from .test_strangers import STRANGER, needs_root


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDGAN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def modes(folder: Path) -> set[tuple[str, int]]:
    kind = lambda path: "folder" if path.is_dir() else "file"
    return {(kind(path), stat.S_IMODE(path.stat().st_mode)) for path in (folder, *folder.rglob("*"))}


# -- who may see it --------------------------------------------------------------------------------------------------


def test_nobody_else_can_read_what_is_derived_from_data(folder, phantoms):
    before = os.umask(0)
    try:
        split = open_split(phantoms, "train")
        cache.keep_array(split.cache / "features.npy", np.zeros(3))
    finally:
        os.umask(before)
    assert {mode & 0o077 for kind, mode in modes(folder) if kind == "folder"} == {0}
    assert {mode & 0o077 for kind, mode in modes(folder) if kind == "file"} == {0}


def test_a_folder_that_was_open_is_closed(folder):
    folder.mkdir(mode=0o755)
    folder.chmod(0o777)
    assert cache.cache_folder() == folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("way", ["folder", "link to a folder of ours", "link of ours to their folder"])
def test_a_folder_or_link_that_another_user_put_there_is_refused(folder, tmp_path, way):
    """As in /tmp, where names can be guessed."""
    needs_root()
    ours = tmp_path / "ours"
    ours.mkdir()
    if way == "folder":
        folder.mkdir()
        os.chown(folder, STRANGER, STRANGER)
    elif way == "link to a folder of ours":
        folder.symlink_to(ours)
        os.chown(folder, STRANGER, STRANGER, follow_symlinks=False)
    else:
        os.chown(ours, STRANGER, STRANGER)
        folder.symlink_to(ours)
    with pytest.raises(
        Refused, match=rf"^MEDGAN_CACHE={folder}: {folder} is not this user's .* of uid {STRANGER}; set"
    ):
        cache.cache_folder()
    assert list(ours.iterdir()) == []


def test_a_link_of_ones_own_is_followed(folder, tmp_path):
    (tmp_path / "disk").mkdir(mode=0o755)
    folder.symlink_to(tmp_path / "disk")
    assert cache.cache_folder() == folder
    assert stat.S_IMODE((tmp_path / "disk").stat().st_mode) == 0o700


def test_where_root_made_the_folder_for_all_everybody_has_one_in_it(folder, monkeypatch):
    """As a container gets a volume."""
    needs_root()
    folder.mkdir()
    folder.chmod(0o777)
    monkeypatch.setattr(os, "getuid", lambda: STRANGER)
    with pytest.raises(Refused, match="user-54321 is not this user's"):  # root's, since it is still root that makes it
        cache.cache_folder()
    os.chown(folder / f"user-{STRANGER}", STRANGER, STRANGER)
    assert cache.cache_folder() == folder / f"user-{STRANGER}"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o777


# -- what is believed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["train.pixels.npy", "train.labels.npy"])
@pytest.mark.parametrize("change", ["a bit", "shorter", "longer", "empty"])
def test_a_cache_that_was_changed_in_place_is_made_anew(folder, phantoms, name, change):
    first = open_split(phantoms, "train")
    right = np.array(first.pixels), np.array(first.labels)
    file = first.cache / name
    content = bytearray(file.read_bytes())
    content[-cache.DIGEST - 5] ^= 1
    changed = {"a bit": content, "shorter": content[:-40], "longer": content + b"0", "empty": b""}[change]
    file.write_bytes(changed)
    again = open_split(phantoms, "train")
    assert np.array_equal(again.pixels, right[0])
    assert np.array_equal(again.labels, right[1])


def test_kept_features_that_were_changed_are_none(folder):
    file = cache.place("a" * 32) / "features.npy"
    cache.keep_array(file, np.arange(5.0))
    assert cache.load_array(file).tolist() == [0, 1, 2, 3, 4]
    content = bytearray(file.read_bytes())
    content[-cache.DIGEST - 1] ^= 1
    file.write_bytes(content)
    assert cache.load_array(file) is None
    assert cache.load_array(file.with_name("other.npy")) is None


# -- what goes -------------------------------------------------------------------------------------------------------


def entry(name: str, days: float, size: int = 10) -> Path:
    made = cache.place(name)
    (made / "train.pixels.npy").write_bytes(bytes(size))
    (made / "train.lock").touch()
    used = time.time() - days * 86400
    os.utime(made, (used, used))
    return made


def there(*entries: Path) -> list[bool]:
    return [made.exists() for made in entries]


def test_what_nobody_has_used_for_long_goes_when_a_split_is_opened(folder, phantoms, monkeypatch):
    old, new, other = entry("a" * 32, 31), entry("b" * 32, 29), cache.place("medmnist")
    os.utime(other, (0, 0))
    run = RunFolder("file:///nowhere").work
    os.utime(run, (0, 0))
    open_split(phantoms, "train")
    assert there(old, new, other, run) == [False, True, True, False]
    monkeypatch.setenv("MEDGAN_CACHE_DAYS", "7")
    open_split(phantoms, "train")
    assert there(new) == [False]


def test_the_longest_unused_go_where_there_is_too_much(folder, phantoms, monkeypatch):
    entries = [entry(letter * 32, days, 40_000) for days, letter in enumerate("abc", 1)]
    monkeypatch.setenv("MEDGAN_CACHE_GB", "0.00025")
    open_split(phantoms, "train")
    left = there(*entries)
    assert left == sorted(left, reverse=True)
    assert 0 < sum(left) < 3
    assert len(open_split(phantoms, "train")) > 100


def test_what_is_being_written_stays(folder, phantoms):
    old = entry("a" * 32, 90)
    with open(old / "train.lock") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        cache.sweep()
        entry("b" * 32, 0)
        cache.sweep()
    assert there(old) == [True]
    cache.sweep()
    assert there(old) == [False]


def test_a_host_may_keep_nothing_after_a_job(folder, phantoms, monkeypatch):
    seen = []

    def main(arguments):
        split = open_split(phantoms, "train")
        seen.append(split.cache.exists())
        if arguments:
            raise Refused("no")

    for arguments, code in (([], 0), (["fail"], 2)):
        monkeypatch.setenv("MEDGAN_CACHE_DAYS", "0")
        assert command(main, arguments) == code
        assert list(folder.iterdir()) == []
    monkeypatch.setenv("MEDGAN_CACHE_DAYS", "30")
    command(main, [])
    assert len(list(folder.iterdir())) == 1
    assert seen == [True] * 3


@pytest.mark.parametrize("value", ["many", "-1", "nan"])
@pytest.mark.parametrize("name", [cache.DAYS, cache.GIGABYTES])
def test_a_limit_that_is_none_is_refused(folder, phantoms, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(Refused, match=f"^{name}={value}: give a number, at least 0$"):
        loader.open_split(phantoms, "train")
