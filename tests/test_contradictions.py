"""The same file under several labels: in one split and in several, in one shard and in several."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from medgan.data import ingest, shards
from medgan.data.contradictions import Row, settled
from medgan.data.sources import Options
from medgan.pixels import encode_png

UNSURE = "the same file has other labels elsewhere"


@pytest.fixture(autouse=True)
def in_process(monkeypatch):
    monkeypatch.setattr(ingest, "_on_ray", lambda task, things: map(task, things))


def put(raw: Path, name: str, number: int) -> Path:
    """Noise of its own for each number, so that no two are copies of each other."""
    (raw / name).parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(number).integers(0, 256, (1, 32, 32))
    (raw / name).write_bytes(encode_png(noise.astype(np.uint8)))
    return raw


@pytest.fixture
def raw(tmp_path) -> Path:
    """40 films in train and ten in val and test each; 1 to 4 are in a and b of train, 5 in a of train and b of test,
    and 6 is twice in a."""
    folder = tmp_path / "raw"
    for number in range(60):
        split = "train" if number < 40 else "val" if number < 50 else "test"
        put(folder, f"{split}/{'ab'[number % 2]}/p{number}.png", number)
    for number in (1, 2, 3, 4):
        put(folder, f"train/{'ba'[number % 2]}/again{number}.png", number)
    put(folder, "test/a/again5.png", 5)
    put(folder, "train/a/again6.png", 6)
    return folder


def planned(raw: Path, out: Path, **options) -> ingest.Plan:
    asked = Options(patient_regex=r"(\d+)\.png", **options)
    request = ingest.Request("image_folder", str(raw), str(out), 32, options=asked, rows_per_shard=8, split="published")
    return ingest.plan(request, ingest.find(request), bytes(range(32)))


def test_films_with_two_labels_leave_every_split_and_are_counted(raw, tmp_path):
    (raw / "test/a/again5.png").rename(raw / "val/a/p105.png")  # another patient: published splits stay apart
    written = ingest.write(planned(raw, tmp_path / "out"))
    left_out = {row.name for row in written.rejected if row.reason == UNSURE}
    assert {Path(name).stem for name in left_out} == {
        *(f"{word}{number}" for number in (1, 2, 3, 4) for word in ("p", "again")),
        *("p5", "p105"),
    }
    assert len(written.rejected) == 10 == written.manifest.rejected
    assert written.manifest.rows("train") == 40 - 5 + 1
    assert "5 files are there under several labels: left out" in written.notes
    assert "1 files are the same as another of their split and labels: kept" in written.notes
    assert "5 files are there under several labels" in (tmp_path / "out/summary.html").read_text()
    assert shards.problems(tmp_path / "out") == []


def test_with_multi_label_they_are_one_row_with_all_their_labels(raw, tmp_path):
    (raw / "test/a/again5.png").unlink()
    plan = planned(raw, tmp_path / "out", multi_label=True)
    written, image_key = ingest.write(plan), plan.work.image_key
    tables = [pq.read_table(path) for path in (tmp_path / "out/train").glob("*.parquet")]
    rows = [
        row
        for table in tables
        for row in zip(*(table.column(c).to_pylist() for c in ("image_id", "labels")), strict=True)
    ]
    both = [image for image, labels in rows if labels == [1, 1]]
    ids = {shards.keyed_id(image_key, (raw / f"train/{'ab'[n % 2]}/p{n}.png").read_bytes()) for n in (1, 2, 3, 4)}
    assert set(both) == ids
    assert len(both) == 4
    assert len(rows) == 41
    assert {row.reason for row in written.rejected} == {"the same file as another, which got its labels"}
    assert sum(written.manifest.counts["train"].values()) == 41 + 4
    assert "4 files are there under several labels: each is one image with all of their labels" in written.notes


def test_a_preparation_that_is_cut_ends_with_the_same_bytes(raw, tmp_path, monkeypatch):
    (raw / "test/a/again5.png").unlink()
    ingest.write(planned(raw, tmp_path / "whole", multi_label=True))
    for cut in (4, 12):  # while shards are written, and while some are written again
        calls = []
        write_shard = shards.write_shard

        def mortal(*arguments, calls=calls, cut=cut, write_shard=write_shard):
            if len(calls) == cut:
                raise KeyboardInterrupt
            calls.append(arguments)
            return write_shard(*arguments)

        monkeypatch.setattr(ingest, "write_shard", mortal)
        with pytest.raises(KeyboardInterrupt):
            ingest.write(planned(raw, tmp_path / f"cut{cut}", multi_label=True))
        monkeypatch.setattr(ingest, "write_shard", write_shard)
        ingest.write(planned(raw, tmp_path / f"cut{cut}", multi_label=True))
        for path in (tmp_path / "whole").rglob("*.*"):
            assert (tmp_path / f"cut{cut}" / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes()


def test_what_is_the_same_is_told_from_what_contradicts():
    rows = [
        Row("train", "x", (0,), "anna"),
        Row("train", "x", (0,), "anna"),
        Row("train", "x", (0,), "berta"),
        Row("test", "x", (0,), "anna"),
        Row("train", "y", (), "carl"),
        Row("val", "y", (1,), "carl"),
        Row("train", "z", (1, 2), "dora"),
    ]
    made = settled(rows, merge=False)
    assert made.dropped == {4: UNSURE, 5: UNSURE}
    assert made.labels == {}
    assert made.notes == [
        "1 files are there under several labels: left out",
        "2 files are the same as another of their split and labels (1 of them another patient's): kept",
    ]
    merged = settled(rows, merge=True)
    assert merged.dropped == {}
    assert merged.labels == {4: (1,), 5: (1,)}
