"""A generator/ that comes from somebody else: checked field by field, and before it costs memory."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load, save_file

from medgan.config import Refused
from medgan.sample import Sampler

from ..test_generate import made


@pytest.fixture
def received(trained, tmp_path):
    return Path(shutil.copytree(Path(trained) / "generator", tmp_path / "generator"))


def change(folder, **fields):
    """Fields of config.yaml, by dotted name with __."""
    file = folder / "config.yaml"
    tree = yaml.safe_load(file.read_text())
    for name, value in fields.items():
        *above, last = name.split("__")
        place = tree
        for key in above:
            place = place[key]
        place[last] = value
    file.write_text(yaml.safe_dump(tree, sort_keys=False))


FIELDS = {
    "label_counts": ([], {"NORMAL": -1, "PNEUMONIA": 1}, {"NORMAL": "many", "PNEUMONIA": 1}, {"../../x": 1}),
    "label_sets": ([{"classes": ["../../x"], "images": 1}], [{"classes": "NORMAL", "images": 1}], [1], {"a": 1}),
    "drawn": ("yes", 1),
    "figures": ([], "good"),
    "figures__images_seen": (-1, "1000", 1.5, None),
    "figures__begun_with": (["An audit found no leak"], ["0" * 63], "0" * 64, [1]),
    "figures__privacy/epsilon": (-1.0, "0.1", ".inf"),
    "figures__figure": ({"a": 1}, ["x"], "x" * 2000),
    "config": ([], None, {"model": {"name": "gpt"}}),
    "config__data__classes": (["../../x", "PNEUMONIA"], None, ["\x1b[2J", "b"]),
    "config__data__resolution": (None, 2**20),
    "config__data__manifest_sha256": ("An audit found no leak", "`x`"),
    "config__model__width": (0, 2**40, "wide"),
    "more": (1,),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in FIELDS.items() for value in values])
def test_a_field_that_cannot_be_is_refused_in_one_line(received, name, value):
    change(received, **{name: value})
    with pytest.raises(Refused) as refused:
        Sampler.open(str(received))
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("text", ["", "[]", "1", "!!python/object/apply:os.system [true]", "a: &a [*a]", "config: {"])
def test_what_is_no_description_is_refused(received, text):
    (received / "config.yaml").write_text(text)
    with pytest.raises(Refused):
        Sampler.open(str(received))


def test_a_config_that_asks_for_more_than_the_weights_are_allocates_nothing(received):
    """Some hundred gigabytes of it, where one may be had."""
    change(received, config__model__width=256, config__model__max_width=1024, config__data__resolution=512)
    script = f"""
import resource
from medgan.sample import Sampler
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    Sampler.open({str(received)!r})
except ValueError as error:
    print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    told, grown = done.stdout.splitlines()
    assert told.endswith("model.safetensors is damaged or of another config")
    assert int(grown) < 50_000  # kilobytes


@pytest.mark.parametrize("fault", ["cut", "other type", "one more", "one less", "other shape", "pickle"])
def test_weights_that_are_others_are_refused(received, fault):
    file = received / "model.safetensors"
    weights = load(file.read_bytes())  # not mapped: the file is written over
    name = next(iter(weights))
    if fault == "cut":
        file.write_bytes(file.read_bytes()[:-10])
    elif fault == "pickle":
        torch.save(weights, file)
    else:
        changed = {
            "other type": {name: weights[name].half()},
            "one more": {"more": torch.zeros(1)},
            "one less": {},
            "other shape": {name: weights[name][None].clone()},
        }[fault]
        if fault == "one less":
            del weights[name]
        save_file(weights | changed, file)
    with pytest.raises(Refused, match="model.safetensors is damaged or of another config"):
        Sampler.open(str(received))


def test_one_that_was_handed_on_draws_what_it_drew(trained, received, tmp_path):
    theirs, ours = Sampler.open(str(received)), Sampler.open(trained)
    labels = ours.labels(0, count=5)
    assert (theirs.draw(labels, 3)[0] == ours.draw(labels, 3)[0]).all()
    made(str(received), tmp_path / "out", "--count", 3)
