"""DATA that comes from somebody else: everything in it is checked before it is used, whoever made the checksums."""

import hashlib
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medgan.data import shards
from medgan.data.loader import open_split
from medgan.data.shards import DataError

from ..conftest import write_phantoms


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDGAN_CACHE", str(tmp_path / "cache"))
    return write_phantoms(tmp_path / "data", count=60)


def forge(folder: Path, split: str, change, **told) -> None:
    """Change the first shard of a split, and the manifest so that it fits: the sender makes the checksums, too."""
    tree = json.loads((folder / "manifest.json").read_text())
    entry = tree["splits"][split][0]
    table = change(pq.read_table(folder / entry["path"]))
    pq.write_table(table, folder / entry["path"])
    content = (folder / entry["path"]).read_bytes()
    entry |= {"rows": len(table), "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(), **told}
    (folder / "manifest.json").write_text(json.dumps(tree))


def with_column(name, value):
    """A change of a table: the first row's value of a column."""

    def change(table):
        index = table.schema.get_field_index(name)
        values = [value, *table.column(name).to_pylist()[1:]]
        field = table.schema.field(name).with_nullable(True)
        return table.set_column(index, field, pa.array(values, field.type))

    return change


def same_patients(folder):
    """Of train in val."""
    theirs = pq.read_table(folder / "train/00000.parquet").column("patient")

    def change(table):
        index = table.schema.get_field_index("patient")
        return table.set_column(index, table.schema.field("patient"), pa.array(theirs.to_pylist()[: len(table)]))

    return change


CHANGES = {
    "no patients": lambda folder: lambda table: table.drop_columns(["patient"]),
    "a row without a patient": lambda folder: with_column("patient", None),
    "a row without pixels": lambda folder: with_column("pixels", None),
    "a row without labels": lambda folder: with_column("labels", None),
    "labels of 255": lambda folder: with_column("labels", [255, 0]),
    "other metadata": lambda folder: lambda table: table.replace_schema_metadata({"medgan": "{}"}),
}


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("name", CHANGES)
def test_what_verify_refuses_is_not_opened_either(folder, name, split):
    forge(folder, split, CHANGES[name](folder))
    manifest, _ = shards.read_manifest(folder)
    assert shards.problems(folder)
    with pytest.raises(DataError, match=f"{split}/00000.parquet: (its columns|a row without|labels that are neither)"):
        shards.verify(folder, manifest)
    with pytest.raises(DataError, match=f"{split}/00000.parquet: "):
        open_split(folder, split)


@pytest.mark.parametrize("told", [1, 10_000])
def test_fewer_or_more_rows_than_told_are_refused(folder, told):
    forge(folder, "train", lambda table: table, rows=told)
    manifest, _ = shards.read_manifest(folder)
    for read in (lambda: shards.verify(folder, manifest), lambda: open_split(folder, "train")):
        with pytest.raises(DataError, match=rf"\d+ rows, the manifest says {told}"):
            read()


@pytest.mark.parametrize("kind", ["patient", "image_id"])
def test_patients_and_images_that_two_splits_share_are_refused_before_a_training(folder, kind):
    theirs = pq.read_table(folder / "train/00000.parquet").column(kind)[0].as_py()
    forge(folder, "val", lambda table: with_column(kind, theirs)(table).cast(table.schema))
    manifest, _ = shards.read_manifest(folder)
    what = "patients" if kind == "patient" else "images"
    with pytest.raises(DataError, match=f"1 {what} are in train and in val; prepare it again"):
        shards.verify(folder, manifest)


def test_a_pipe_in_place_of_a_shard_is_not_waited_for(folder):
    shard = folder / "train/00000.parquet"
    shard.unlink()
    os.mkfifo(shard)
    manifest, _ = shards.read_manifest(folder)
    for read in (lambda: shards.verify(folder, manifest), lambda: open_split(folder, "train")):
        with pytest.raises(DataError, match=r"train/00000.parquet cannot be read"):
            read()
    (folder / "manifest.json").unlink()
    os.mkfifo(folder / "manifest.json")
    with pytest.raises(DataError, match="no manifest.json in it"):
        shards.read_manifest(folder)


def test_a_shard_is_not_read_where_its_size_is_another(folder, monkeypatch):
    """As /dev/zero, or a file that would fill the memory."""
    with open(folder / "train/00000.parquet", "ab") as file:
        file.truncate(2**40)
    manifest, _ = shards.read_manifest(folder)
    monkeypatch.setattr(shards, "read_file", None)
    with pytest.raises(DataError, match=r"train/00000.parquet has 1099511627776 bytes, the manifest says \d+"):
        shards.verify(folder, manifest)


FIELDS = {
    "resolution": ("64", 33, 2**20, -64, None, 64.0, True),
    "channels": (0, 2, 10**9, "1"),
    "classes": ("NORMAL", [1], [["a"]], ["a"] * 1001, {"a": 1}, [""], ["a", "a"], ["\x1b[31m"], ["a\u202eb"]),
    "splits": ({"../x": []}, {"train": {}}, [], {"train": [{"path": "train/00000.parquet"}]}),
    "counts": ({"train": {"NORMAL": -1}}, {"elsewhere": {}}, {"train": {"NORMAL": "many"}}),
    "patients": ({"train": -1}, {"train": 1.5}, [1]),
    "source": (1, "x" * 2000, None),
    "seed": ("0", None),
    "synthetic": ("yes", 1),
    "drawn": ("yes", 1),
    "rejected": (-1, "0"),
    "trained_on": ("x", "0" * 63, 1),
    "versions": ({"medgan": 1}, []),
    "schema_version": ("1", None, 1.0),
    "more": (1,),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in FIELDS.items() for value in values])
def test_a_field_of_the_manifest_that_cannot_be_is_refused_in_one_line(folder, name, value):
    file = folder / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))
    with pytest.raises(DataError, match=r"^--data .*: manifest.json") as refused:
        shards.read_manifest(folder)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize(
    "path",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "train/../val/00000.parquet",
        "val/00000.parquet",
        "train/1.parquet",
        "train/x",
    ],
)
def test_a_shard_lies_in_its_split_and_nowhere_else(folder, path):
    file = folder / "manifest.json"
    tree = json.loads(file.read_text())
    tree["splits"]["train"][0]["path"] = path
    file.write_text(json.dumps(tree))
    with pytest.raises(DataError, match="manifest.json is damaged"):
        shards.read_manifest(folder)


def test_a_shard_is_listed_once(folder):
    file = folder / "manifest.json"
    tree = json.loads(file.read_text())
    tree["splits"]["train"] *= 2
    file.write_text(json.dumps(tree))
    with pytest.raises(DataError, match="a shard is listed twice"):
        shards.read_manifest(folder)


@pytest.mark.parametrize("text", ["[]", "1", "null", '"x"', "{}", "[" * 100_000])
def test_what_is_no_manifest_at_all_is_refused(folder, text):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(DataError, match="manifest.json is damaged"):
        shards.read_manifest(folder)
