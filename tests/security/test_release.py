"""What leaves with a release: who has it and the generator must not find by them what the filters dropped."""

import re
from io import BytesIO

import numpy as np
import pyarrow.parquet as pq
import pydicom
import pytest

from medgan import release
from medgan.data import shards
from medgan.sample import Sampler
from medgan.streams import stream_seed

from ..conftest import write_key
from ..test_generate import files_of, made

pytestmark = pytest.mark.usefixtures("small_evaluation")


def test_nobody_recovers_a_dropped_film_from_a_release_and_its_generator(trained, phantoms, tmp_path, leaking):
    """The attack: find each slot's attempt by its seed, and draw again what was attempted before it."""
    out = made(trained, tmp_path / "out", "--per-class", 40, "--data", phantoms)
    dropped = int(re.search(r"(\d+) near-copies", (out / "README.md").read_text())[1])
    assert dropped >= 8
    table, sampler = pq.read_table(out / "train"), Sampler.open(trained)
    seeds, labels = table["seed"].to_pylist(), np.array(table["labels"].to_pylist(), np.uint8)
    released = shards.read_manifest(out)[0]
    tries = [("generate", slot) for slot in range(80)]
    tries += [(f"generate/{attempt}", slot) for attempt in range(1, release.TRIES) for slot in range(80)]
    known = {stream_seed(released.seed, name, slot): (name, slot) for name, slot in tries}
    assert not known.keys() & set(seeds)
    guesses = [stream_seed(released.seed, "generate", slot) for slot in range(80)]
    guesses += [release.seed_of("", released.seed, attempt, slot) for attempt in range(5) for slot in range(80)]
    guesses += [release.seed_of(released.request, released.seed, 0, slot) for slot in range(80)]
    # He may well draw films by seeds of his own; none of them is one that was dropped here.
    assert not set(guesses) & set(seeds)
    again = sampler.at(labels, seeds)
    assert not leaking & {image.tobytes() for image in again}
    assert np.array_equal(
        again.reshape(80, -1), np.stack([np.frombuffer(p, np.uint8) for p in table["pixels"].to_pylist()])
    )


def test_another_key_gives_other_images_and_the_same_key_the_same(trained, phantoms, tmp_path):
    keys = [write_key(tmp_path / "one"), write_key(tmp_path / "other")]
    keys[1].write_text("cd" * 32)
    asked = ("--count", 20, "--data", phantoms, "--png")
    first, second, again = (
        made(trained, tmp_path / name, *asked, "--patient-key-file", key)
        for name, key in (("a", keys[0]), ("b", keys[1]), ("c", keys[0]))
    )
    assert files_of(first) == files_of(again)
    seeds = [set(pq.read_table(out / "train")["seed"].to_pylist()) for out in (first, second)]
    assert not seeds[0] & seeds[1]
    assert shards.read_manifest(first)[0].request != shards.read_manifest(second)[0].request
    key = keys[0].read_text()
    for content in files_of(first).values():
        assert key.encode() not in content
        assert bytes.fromhex(key) not in content


def test_a_slot_that_stayed_empty_leaves_no_gap(trained, phantoms, tmp_path, monkeypatch):
    """A number that is missing would tell for which label and place the generator gives copies alone."""
    draw = Sampler.at
    slots = []

    def at(self, labels, seeds):
        slots.append(len(seeds))
        return draw(self, labels, seeds)

    monkeypatch.setattr(Sampler, "at", at)
    monkeypatch.setattr(release, "TRIES", 1)
    monkeypatch.setattr(release.privacy, "look", lambda pixels: pixels)
    alike = lambda drawn, films: (np.where(np.arange(len(drawn)) % 3 == 1, 9.0, -9.0)[:, None], None)
    monkeypatch.setattr(release.privacy, "most_alike", alike)
    monkeypatch.setattr(release.privacy, "copy_threshold", lambda data: 0.5)
    out = made(trained, tmp_path / "out", "--per-class", 6, "--data", phantoms, "--png", "--dicom")
    for kind in ("png", "dicom"):
        numbers = sorted(int(path.stem) for path in (out / kind).rglob("*.*"))
        assert numbers == list(range(8))


def test_an_unfiltered_release_needs_no_secret(trained, tmp_path, monkeypatch):
    """Nothing of the training was looked at, and anybody can draw it again."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    out = made(trained, tmp_path / "out", "--count", 10)
    seeds = pq.read_table(out / "train")["seed"].to_pylist()
    assert seeds == [stream_seed(0, "generate", slot) for slot in range(10)]
    assert not (tmp_path / "home").exists()


def test_a_class_of_any_letters_is_one_value_of_a_dicom_file_that_says_how_it_is_written():
    pixels = np.zeros((1, 32, 32), np.uint8)
    content = release.secondary_capture(pixels, "Épanchement\\à droite", "ab" * 32, 3, 0, "r")
    film = pydicom.dcmread(BytesIO(content))
    assert film.SpecificCharacterSet == "ISO_IR 192"
    assert film.SeriesDescription == "SYNTHETIC Épanchement%5Cà droite"  # a backslash would make it two (PS3.5, 6.2)
    assert "SpecificCharacterSet" not in pydicom.dcmread(
        BytesIO(release.secondary_capture(pixels, "Effusion", "ab" * 32, 3, 0, "r"))
    )
