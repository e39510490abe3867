"""Kermany's chest films, where MEDGAN_REAL_DATA points to them."""

import io
import os
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from medgan.data import copies, ingest, shards
from medgan.data.sources import SOURCES
from medgan.metrics import privacy
from medgan.pixels import fit_image
from medgan.tracking import read_rows

from .conftest import write_key
from .test_ray import run_job, settings

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not os.environ.get("MEDGAN_REAL_DATA"), reason="MEDGAN_REAL_DATA is not set"),
]


@pytest.fixture
def raw() -> Path:
    return Path(os.environ["MEDGAN_REAL_DATA"]) / "kermany_cxr"


def test_every_published_film_is_planned_and_no_patient_is_in_two_splits(raw, tmp_path):
    request = ingest.Request("kermany_cxr", str(raw), str(tmp_path / "data"), 64)
    plan = ingest.plan(request, ingest.find(request), bytes(32))
    assert plan.count == len(list(raw.glob("*/*/*.jpeg")))
    share = {split: len(records) / plan.count for split, records in plan.records.items()}
    assert share == pytest.approx({"train": 0.8, "val": 0.1, "test": 0.1}, abs=0.005)
    # Independent of our patient keys: names without their last number.
    people = {
        split: {re.sub(r"(_|-)\d+(_\d+)?\.jpeg$", "", Path(record.name).name) for record in records}
        for split, records in plan.records.items()
    }
    names = list(people)
    for index, split in enumerate(names):
        for other in names[index + 1 :]:
            shared = people[split] & people[other]
            assert not {name for name in shared if name.startswith("person")}
    for records in plan.records.values():
        pneumonia = sum(record.labels == (1,) for record in records) / len(records)
        assert pneumonia == pytest.approx(3909 / 5279, abs=0.02)


@pytest.mark.parametrize(
    ("source", "folder", "images", "classes"),
    [
        ("kermany_oct", "oct2017", 16, 4),
        ("nih_cxr14", "nih", 517, 14),
        ("nih_cgan_7", "nih", None, 7),
        ("medmnist", "medmnist", 5856 - 10, 2),
    ],
)
def test_other_published_sets_are_planned(tmp_path, source, folder, images, classes):
    place = Path(os.environ["MEDGAN_REAL_DATA"]) / folder
    request = ingest.Request(source, str(place), str(tmp_path / "data"), 32)
    found = ingest.find(request)
    assert len(found.classes) == classes
    assert len(found.records) == images or (images is None and 100 < len(found.records) < 517)
    plan = ingest.plan(request, found, bytes(32))
    patients = [{record.patient for record in records} for records in plan.records.values()]
    assert not patients[0] & patients[1] | patients[0] & patients[2] | patients[1] & patients[2]
    assert plan.count == len(found.records)


def test_planted_crops_are_found_and_other_patients_films_are_not_taken_for_them(raw, tmp_path):
    request = ingest.Request("kermany_cxr", str(raw), str(tmp_path / "data"), 64)
    plan = ingest.plan(request, ingest.find(request), bytes(32))

    def films(records):
        images = [SOURCES["kermany_cxr"].image((raw / record.name).read_bytes()) for record in records]
        return [np.asarray(image.convert("L")) for image in images]

    def compared(images):
        pixels = np.stack([fit_image(Image.fromarray(image), 64, 1) for image in images])
        return copies.Images.of(pixels, [str(row) for row in range(len(pixels))])

    train, held = films(plan.records["train"][:2000]), films(plan.records["test"])
    likeness, rows = copies.nearest(compared(held), compared(train))
    limit = copies.threshold(likeness.max(1))
    assert (likeness.max(1) > limit).mean() < 0.005
    random = np.random.default_rng(0)
    planted = random.choice(len(train), 200, replace=False)
    crops = []
    for index in planted:
        left, top, right, bottom = random.uniform(0, 0.04, 4)
        height, width = train[index].shape
        box = (left * width, top * height, width * (1 - right), height * (1 - bottom))
        image = Image.fromarray(train[index]).resize((200, 200), Image.Resampling.BICUBIC, box=box)
        buffer = io.BytesIO()
        image.point(lambda value: value * 0.9 + 8).save(buffer, "jpeg", quality=70)
        crops.append(np.asarray(Image.open(buffer)))
    likeness, rows = copies.nearest(compared(crops), compared(train))
    found = ((likeness > limit) & (rows == planted[:, None])).any(1)
    assert found.mean() >= 0.98


@pytest.mark.ray
def test_films_prepare_and_train_on_two_workers(raw, tmp_path):
    write_key(tmp_path / "key")
    data = tmp_path / "data"
    prepare = ("prepare", "--source", "kermany_cxr", "--raw", raw, "--out", data, "--resolution", 64)
    code, output = run_job(*prepare, "--patient-key-file", tmp_path / "key", timeout=300)
    assert code == 0, output
    manifest, _ = shards.read_manifest(data)
    reasons = pq.read_table(data / "rejected.parquet").column("reason").to_pylist()
    assert len(reasons) == manifest.rejected < 0.005 * manifest.rows("train")
    assert all(reason.endswith(("an image in val", "an image in test")) for reason in reasons)
    text = b"".join(path.read_bytes() for path in data.rglob("*") if path.is_file())
    assert not re.search(rb"person\d+_(bacteria|virus)|IM-\d{4}", text)
    size = settings(
        model__width=16,
        model__max_width=64,
        total_images=4096,
        global_batch=64,
        evaluate__interval_kimg=2,
        evaluate__n=64,
        checkpoint__interval_kimg=2,
        precision="auto",
    )
    run = ("train", "--preset", "cgan", "--data", data, "--out", tmp_path / "run", "--workers", 2)
    code, output = run_job(*run, *size, timeout=300)
    assert code == 0, output
    kids = [row["metric/kid"] for row in read_rows(tmp_path / "run/metrics.jsonl") if "metric/kid" in row]
    assert kids[-1] < kids[0]


def test_films_of_other_patients_are_no_copies_and_five_pasted_ones_are(raw, monkeypatch):
    films = sorted(raw.glob("*/*/*.jpeg"))
    chosen = np.random.default_rng(0).permutation(len(films))[:1300]
    people = [re.sub(r"(_|-)\d+(_\d+)?\.jpeg$", "", films[row].name) for row in chosen]
    patients = np.unique(people, return_inverse=True)[1]
    patients = np.random.default_rng(1).permutation(patients.max() + 1)[patients]
    pixels = []
    for row in chosen:
        with Image.open(films[row]) as film:
            pixels.append(fit_image(film, 64, 1))
    # By patient: so many to train on, others held out, and the rest in the place of samples.
    part = np.searchsorted(np.quantile(patients, [0.6, 0.8]), patients)
    member, held, drawn = (np.stack([pixels[row] for row in np.flatnonzero(part == side)]) for side in range(3))
    sides = [{"pixels": side, "patients": np.arange(len(side))} for side in (member, held)]
    monkeypatch.setattr(privacy, "real_films", lambda data, most=None: sides)
    found = privacy.copied(privacy.alike({"pixels": drawn}, data={}), data={})
    assert found["value"] <= 2  # published films hold a few copies of each other under other names
    pasted = np.concatenate([drawn, member[[1, 50, 100, 200, 300]]])
    assert privacy.copied(privacy.alike({"pixels": pasted}, data={}), data={})["value"] == found["value"] + 5
    near = privacy.nearness({"pixels": drawn}, data={}, space="aligned")
    inside = privacy.membership(near, np.random.default_rng(0))
    assert inside["low"] < 0.5 < inside["high"]
