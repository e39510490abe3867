import dataclasses
import json
import re
import runpy
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medgan.data import shards
from medgan.data.shards import DataError
from medgan.terminal import Failed

from .conftest import write_phantoms


def rows(count=5, classes=("a", "b"), shape=(1, 32, 32)):
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (count, *shape)).astype(np.uint8)
    labels = np.eye(max(len(classes), 1), dtype=np.uint8)[np.arange(count) % max(len(classes), 1)][:, : len(classes)]
    ids = {"patient": [f"p{i}" for i in range(count)], "image_id": [f"i{i}" for i in range(count)]}
    return pixels, labels, ids


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 32, 32)])
@pytest.mark.parametrize("classes", [(), ("a",), ("a", "b", "c")])
def test_rows_come_back_as_they_went_in(shape, classes):
    pixels, labels, ids = rows(5, classes, shape)
    table = pq.read_table(pa.BufferReader(shards.shard_bytes(pixels, labels, classes, ids)))
    assert np.array_equal(shards.shard_pixels(table, shape), pixels)
    assert np.array_equal(shards.shard_labels(table, classes), labels)
    assert table.column("patient").to_pylist() == ids["patient"]
    assert ("labels" in table.column_names) == bool(classes)


def test_the_schema_is_the_contract():
    schema = shards.schema((1, 32, 32), ("a", "b"))
    assert schema.field("pixels") == pa.field("pixels", pa.binary(1024), nullable=False)
    assert schema.field("labels").type.list_size == 2
    assert schema.field("labels").type.value_type == pa.uint8()
    assert not schema.field("labels").nullable
    meta = json.loads(schema.metadata[b"medgan"])
    assert meta == {"schema_version": 1, "shape": [1, 32, 32], "classes": ["a", "b"]}
    synthetic = shards.schema((1, 32, 32), (), synthetic=True)
    assert synthetic.names == ["pixels", "seed"]
    assert json.loads(synthetic.metadata[b"medgan"]) == {**meta, "classes": [], "synthetic": True}


def test_equal_rows_give_equal_bytes_and_pandas_reads_them(tmp_path):
    pixels, labels, ids = rows()
    first, second = (shards.shard_bytes(pixels, labels, ("a", "b"), ids) for _ in range(2))
    assert first == second
    (tmp_path / "s.parquet").write_bytes(first)
    frame = pd.read_parquet(tmp_path / "s.parquet")
    assert np.array_equal(np.frombuffer(frame.pixels[3], np.uint8).reshape(1, 32, 32), pixels[3])


def test_every_patient_is_in_one_split_and_every_class_is_divided_80_10_10():
    random = np.random.default_rng(0)
    patients = [(f"{label}-{random.integers(0, 400)}", (label,)) for label in random.integers(0, 2, 3000).tolist()]
    split_of = shards.split_patients(patients, seed=0)
    for label in (0, 1):
        images = Counter(split_of[patient] for patient, labels in patients if labels == (label,))
        share = {split: count / images.total() for split, count in images.items()}
        assert share == pytest.approx({"train": 0.8, "val": 0.1, "test": 0.1}, abs=0.01)
    assert split_of == shards.split_patients(reversed(patients), seed=0)
    assert split_of != shards.split_patients(patients, seed=1)


def test_a_patient_with_images_of_two_classes_stays_in_one_split():
    patients = [(str(i), (0,)) for i in range(50)] + [(str(i), (1,)) for i in range(25, 75)]
    assert len(shards.split_patients(patients, seed=0)) == 75


def test_ids_depend_on_the_key_and_tell_nothing_without_it():
    first, second = bytes(32), bytes([1]) * 32
    assert shards.keyed_id(first, "kermany_cxr", "person1") == shards.keyed_id(first, "kermany_cxr", "person1")
    assert shards.keyed_id(first, "kermany_cxr", "person1") != shards.keyed_id(second, "kermany_cxr", "person1")
    assert shards.keyed_id(first, "ab", "c") != shards.keyed_id(first, "a", "bc")
    assert len(shards.keyed_id(first, "x")) == 32


@pytest.fixture
def folder(tmp_path):
    return write_phantoms(tmp_path / "data", count=60)


def check(folder):
    manifest, _ = shards.read_manifest(folder)
    shards.verify(folder, manifest)


def test_a_sound_folder_passes(folder):
    check(folder)


def test_a_shard_cut_short_a_flipped_bit_and_a_missing_shard_are_found(folder):
    shard = folder / "train/00000.parquet"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    with pytest.raises(DataError, match=r"train/00000.parquet has \d+ bytes, the manifest says \d+"):
        check(folder)
    shard.write_bytes(bytes([*whole[:5000], whole[5000] ^ 1, *whole[5001:]]))
    with pytest.raises(DataError, match="train/00000.parquet is not what was written"):
        check(folder)
    shard.unlink()
    with pytest.raises(DataError, match="train/00000.parquet is missing"):
        check(folder)


def test_a_patient_in_two_splits_is_found_when_reading(folder):
    manifest, _ = shards.read_manifest(folder)
    train = shards.read_file(folder, manifest.splits["train"][0].path)
    leaking = {**manifest.splits, "val": [shards.Shard("val/00000.parquet", 60, len(train), "")]}
    (folder / "val/00000.parquet").write_bytes(train)
    sha256 = manifest.splits["train"][0].sha256
    leaking["val"] = [shards.Shard("val/00000.parquet", manifest.splits["train"][0].rows, len(train), sha256)]
    broken = shards.Manifest(**{**vars(manifest), "splits": leaking})
    with pytest.raises(DataError, match=r"\d+ patients are in train and in val; prepare it again"):
        shards.verify(folder, broken)


def test_a_manifest_that_is_missing_damaged_or_of_another_version_is_refused(folder):
    file = folder / "manifest.json"
    text = file.read_text()
    file.write_text(text.replace('"schema_version": 1', '"schema_version": 99'))
    with pytest.raises(DataError, match="schema version 99"):
        shards.read_manifest(folder)
    file.write_text(text[:50])
    with pytest.raises(DataError, match="damaged"):
        shards.read_manifest(folder)
    file.unlink()
    with pytest.raises(DataError, match="no manifest.json"):
        shards.read_manifest(folder)


@pytest.mark.parametrize("name", ["a\nb", "\x1b[2Jb", "\ud800", " "])
def test_a_class_that_nothing_can_show_is_refused(folder, name):
    file = folder / "manifest.json"
    tree = json.loads(file.read_text())
    file.write_text(json.dumps(tree | {"classes": ["NORMAL", name]}))
    with pytest.raises(DataError, match=r"manifest.json(: the class '.*' h| is damaged)") as refusal:
        shards.read_manifest(folder)
    assert str(refusal.value).isprintable()


def test_folders_of_real_images_do_not_say_that_they_are_drawn(folder):
    manifest, _ = shards.read_manifest(folder)
    assert "drawn" not in json.loads(manifest.to_json())
    drawn = dataclasses.replace(manifest, drawn=True)
    assert shards.Manifest.from_json(drawn.to_json()).drawn


def test_more_than_a_million_images_of_a_class_are_ours():
    assert shards.OURS.fullmatch("png/NORMAL/1000000.png")
    assert shards.OURS.fullmatch("dicom/N%2FA/1000000.dcm")
    assert not shards.OURS.fullmatch("png/N/A/000000.png")


def test_a_folder_may_be_a_uri(folder):
    manifest, sha256 = shards.read_manifest(f"file://{folder}")
    assert (manifest, sha256) == shards.read_manifest(folder)
    with pytest.raises(DataError, match="not a location"):
        shards.read_manifest("nowhere://x/y")


def test_a_folder_of_something_else_is_not_written_into(tmp_path):
    (tmp_path / "thesis.tex").write_text("dear")
    with pytest.raises(DataError, match=r"holds files that are not medgan data"):
        shards.check_target(tmp_path)
    with pytest.raises(DataError, match="is a file"):
        shards.check_target(tmp_path / "thesis.tex")


def test_everything_that_is_wrong_with_a_folder_is_named(folder):
    assert shards.problems(folder) == []
    manifest, _ = shards.read_manifest(folder)
    (folder / "val/00009.parquet").write_bytes(b"stray")
    assert shards.problems(folder) == ["val/00009.parquet: not in the manifest"]
    miscounted = shards.Manifest(
        **{**vars(manifest), "counts": {**manifest.counts, "val": {"NORMAL": 99, "PNEUMONIA": 0}}}
    )
    (folder / "manifest.json").write_text(miscounted.to_json())
    assert "val: images per class are" in shards.problems(folder)[0]
    patients = {**manifest.patients, "test": 1000}
    (folder / "manifest.json").write_text(shards.Manifest(**{**vars(manifest), "patients": patients}).to_json())
    assert re.fullmatch(r"test: \d+ patients, the manifest says 1000", shards.problems(folder)[0])
    other = shards.Manifest(**{**vars(manifest), "classes": ("a", "b"), "counts": {}})
    (folder / "manifest.json").write_text(other.to_json())
    assert all("not those of this data set" in line for line in shards.problems(folder))
    (folder / "manifest.json").write_text(manifest.to_json())
    (folder / "test/00000.parquet").rename(folder / "test/00001.parquet")
    assert shards.problems(folder) == ["test/00000.parquet is missing; prepare the folder again"]


def test_a_patient_in_two_splits_is_a_problem_too(folder):
    manifest, _ = shards.read_manifest(folder)
    shard = manifest.splits["train"][0]
    (folder / "val/00000.parquet").write_bytes(shards.read_file(folder, shard.path))
    leaking = {**manifest.splits, "val": [shards.Shard("val/00000.parquet", shard.rows, shard.bytes, shard.sha256)]}
    broken = shards.Manifest(**{**vars(manifest), "splits": leaking, "counts": {}, "patients": {}})
    (folder / "manifest.json").write_text(broken.to_json())
    assert any(re.fullmatch(r"\d+ patients are in train and in val", line) for line in shards.problems(folder))


def test_another_data_set_is_replaced_only_when_that_is_asked_for(folder):
    with pytest.raises(DataError, match="holds other data .* or --overwrite"):
        shards.prepared(folder, "another request")
    assert shards.prepared(folder, "") is not None  # the same request: it is done
    assert shards.prepared(folder, "another request", overwrite=True) is None
    shards.clear(folder)
    with pytest.raises(DataError, match=r"no manifest\.json"):
        shards.read_manifest(folder)
    assert not list(folder.glob("*/*.parquet"))


def test_a_finished_folder_that_was_damaged_is_not_called_done_and_can_be_prepared_again(folder):
    assert shards.prepared(folder, "") is not None
    shard = folder / "train/00000.parquet"
    whole = shard.read_bytes()
    shard.write_bytes(bytes([*whole[:5000], whole[5000] ^ 1, *whole[5001:]]))
    with pytest.raises(DataError, match=r"--out .*: train/00000.parquet is not what was written .* with --overwrite"):
        shards.prepared(folder, "")
    shard.write_bytes(whole)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(DataError, match=r"manifest.json is damaged .* with --overwrite"):
        shards.prepared(folder, "")
    assert shards.prepared(folder, "", overwrite=True) is None


def test_what_is_beside_the_shards_is_verified_too(folder):
    (folder / "summary.html").unlink()
    (folder / "rejected.parquet").write_bytes(b"no table")
    assert shards.problems(folder) == ["summary.html is missing", "rejected.parquet is damaged"]
    (folder / "rejected.parquet").unlink()
    assert "rejected.parquet is missing" in shards.problems(folder)


def test_rare_sets_of_classes_are_divided_together():
    people = [(f"p{number}", tuple(sorted({number % 14, number * 5 % 14, number * 3 % 11}))) for number in range(4000)]
    people += [(f"q{number}", (number % 97, 99)) for number in range(300)]  # sets of three and four patients
    share = Counter(shards.split_patients(people, 0).values())
    assert share["train"] / len(people) == pytest.approx(0.8, abs=0.01)
    assert share["val"] / len(people) == pytest.approx(0.1, abs=0.01)


def test_verifying_is_a_command_with_an_exit_code(folder, capsys):
    job = runpy.run_path(str(Path(__file__).parent.parent / "jobs/prepare.py"))
    job["main"](["--verify", str(folder)])
    assert capsys.readouterr().out.startswith(f"sound: {folder} (train ")
    (folder / "val/00000.parquet").unlink()
    with pytest.raises(Failed, match="1 thing wrong"):
        job["main"](["--verify", str(folder)])
    assert "val/00000.parquet is missing" in capsys.readouterr().out
