"""Preparing, without Ray: its tasks run one after the other in this process. On Ray: test_ray.py."""

import errno
import io
import runpy
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from medgan.config import Refused
from medgan.data import copies, ingest, shards
from medgan.data.loader import open_split
from medgan.data.shards import DataError
from medgan.data.sources import Options, SourceError
from medgan.pixels import encode_png
from medgan.terminal import Failed

from .conftest import small_disk, write_key

KEY = bytes(range(32))


@pytest.fixture(autouse=True)
def in_process(monkeypatch):
    monkeypatch.setattr(ingest, "_on_ray", lambda task, things: map(task, things))


def film(number: int, side: int = 64) -> np.ndarray:
    """uint8 (side, side): the same anatomy for all and a fine structure of one's own."""
    y, x = np.mgrid[0:side, 0:side] / side * 2 - 1
    torso = 150 - 110 * np.exp(-((np.abs(x) - 0.45) ** 2 / 0.05 + y**2 / 0.5))
    noise = torch.from_numpy(np.random.default_rng(number).normal(size=(1, 1, 24, 24))).float()
    own = F.interpolate(noise, (side, side), mode="bicubic", align_corners=False)[0, 0].numpy() * 18
    return np.clip(torso + own, 0, 255).astype(np.uint8)


def cropped(pixels: np.ndarray, left: float, top: float, right: float, bottom: float) -> bytes:
    """The image without such shares of its sides, brighter, as a JPEG of its own."""
    side = len(pixels)
    box = (left * side, top * side, side * (1 - right), side * (1 - bottom))
    image = Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS, box=box)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(np.asarray(image) * 1.08 + 6.0, 0, 255).astype(np.uint8)).save(buffer, "jpeg", quality=75)
    return buffer.getvalue()


def put(raw: Path, name: str, content: bytes | np.ndarray) -> Path:
    (raw / name).parent.mkdir(parents=True, exist_ok=True)
    (raw / name).write_bytes(content if isinstance(content, bytes) else encode_png(content[None]))
    return raw


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> Path:
    """120 films of as many patients in published splits; do not change it."""
    raw = tmp_path_factory.mktemp("films")
    for number in range(120):
        split = "test" if number < 20 else "val" if number < 35 else "train"
        put(raw, f"{split}/{'ab'[number % 2]}/p{number}.png", film(number))
    return raw


def request(raw: Path | str, out: Path | str, source: str = "image_folder", **changes) -> ingest.Request:
    options = Options(**changes.pop("options", {}))
    return ingest.Request(source, str(raw), str(out), 32, options=options, rows_per_shard=16, **changes)


def planned(*arguments, **changes) -> ingest.Plan:
    asked = request(*arguments, **changes)
    return ingest.plan(asked, ingest.find(asked), KEY)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def reasons(written: ingest.Written) -> dict[str, str]:
    return {row.name: row.reason for row in written.rejected}


# -- going on ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("killed_at", "again"), [(0, 10), (3, 7), (9, 1), (10, 2)])
def test_killed_and_run_again_it_ends_with_the_same_bytes_and_does_nothing_twice(
    films, tmp_path, monkeypatch, killed_at, again
):
    raw = tmp_path / "raw"
    for path in films.rglob("*.png"):
        put(raw, str(path.relative_to(films)), path.read_bytes())
    put(raw, "train/a/copy.png", (raw / "test/a/p0.png").read_bytes())  # so that a shard is written a second time
    put(raw, "train/a/broken.png", b"broken")
    ingest.write(planned(raw, tmp_path / "whole", split="published"))
    whole = bytes_of(tmp_path / "whole")
    assert not any(name.startswith(".parts") for name in whole)

    calls = []
    write_shard, publish = ingest.write_shard, ingest.publish

    def counted(*arguments):
        calls.append(arguments[1])
        return write_shard(*arguments)

    def mortal(*arguments, **details):
        if len(calls) == killed_at:
            raise KeyboardInterrupt
        return (counted if len(arguments) > 3 else publish)(*arguments, **details)

    monkeypatch.setattr(ingest, "write_shard", mortal)
    monkeypatch.setattr(ingest, "publish", mortal)
    with pytest.raises(KeyboardInterrupt):
        ingest.write(planned(raw, tmp_path / "cut", split="published"))
    assert shards.prepared(tmp_path / "cut", "anything") is None  # half a folder is no data set
    monkeypatch.setattr(ingest, "write_shard", counted)
    monkeypatch.setattr(ingest, "publish", publish)
    calls.clear()
    ingest.write(planned(raw, tmp_path / "cut", split="published"))
    assert bytes_of(tmp_path / "cut") == whole
    assert len(calls) == again


def test_what_another_request_left_half_done_is_not_taken_over(films, tmp_path, monkeypatch):
    monkeypatch.setattr(ingest, "_publish", lambda *_: None)
    ingest.write(planned(films, tmp_path / "out"))
    monkeypatch.undo()
    monkeypatch.setattr(ingest, "_on_ray", lambda task, things: map(task, things))
    ingest.write(planned(films, tmp_path / "out", options={"seed": 1}))
    ingest.write(planned(films, tmp_path / "fresh", options={"seed": 1}))
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "fresh")


def test_a_folder_without_a_manifest_and_without_notes_is_begun_again(films, tmp_path):
    ingest.write(planned(films, tmp_path / "out"))
    whole = bytes_of(tmp_path / "out")
    (tmp_path / "out/manifest.json").unlink()
    (tmp_path / "out/train/00000.parquet").write_bytes(b"half")
    ingest.write(planned(films, tmp_path / "out"))
    assert bytes_of(tmp_path / "out") == whole


# -- copies ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compared", [512, 4])  # in one task, in several
def test_files_and_crops_that_two_splits_share_leave_train_or_val(films, tmp_path, monkeypatch, compared):
    monkeypatch.setattr(ingest, "COMPARED", compared)
    raw = tmp_path / "raw"
    for path in films.rglob("*.png"):
        put(raw, str(path.relative_to(films)), path.read_bytes())
    put(raw, "train/a/same_as_test.png", (raw / "test/a/p0.png").read_bytes())
    put(raw, "val/a/same_as_test.png", (raw / "test/a/p2.png").read_bytes())
    put(raw, "train/b/crop_of_val.jpg", cropped(film(21), 0.03, 0.02, 0.01, 0.03))
    put(raw, "train/b/two_of_test_1.jpg", cropped(film(7), 0.0, 0.03, 0.03, 0.0))
    put(raw, "train/b/two_of_test_2.jpg", cropped(film(7), 0.02, 0.02, 0.02, 0.02))
    put(raw, "train/b/p36_again.jpg", cropped(film(36), 0.02, 0.0, 0.0, 0.02))  # twice in train is no leak
    written = ingest.write(planned(raw, tmp_path / "out", split="published"))
    assert reasons(written) == {
        "train/a/same_as_test.png": "the same file as an image in test",
        "val/a/same_as_test.png": "the same file as an image in test",
        "train/b/crop_of_val.jpg": "a near-copy of an image in val",
        "train/b/two_of_test_1.jpg": "a near-copy of an image in test",
        "train/b/two_of_test_2.jpg": "a near-copy of an image in test",
    }
    manifest = written.manifest
    assert {split: manifest.rows(split) for split in manifest.splits} == {"train": 86, "val": 15, "test": 20}
    assert manifest.rejected == 5
    assert shards.problems(tmp_path / "out") == []


def test_of_many_copies_of_one_film_none_is_left(films, tmp_path):
    raw = tmp_path / "raw"
    for path in films.rglob("*.png"):
        put(raw, str(path.relative_to(films)), path.read_bytes())
    for number in range(7):
        put(raw, f"train/a/again{number}.jpg", cropped(film(4), 0.004 * number, 0.01, 0.003 * number, 0.02))
    written = ingest.write(planned(raw, tmp_path / "out", split="published"))
    assert len(written.rejected) == 7
    assert set(reasons(written).values()) == {"a near-copy of an image in test"}


def test_a_class_without_a_usable_image_is_left_out_or_refused_where_it_was_asked_for(films, tmp_path):
    raw = tmp_path / "raw"
    for number in range(30):
        put(raw, f"{'ac'[number % 2]}/p{number}.png", film(number))
        put(raw, f"b/p{number}.png", b"broken")
    written = ingest.write(planned(raw, tmp_path / "out"))
    assert written.manifest.classes == ("a", "c")
    assert shards.problems(tmp_path / "out") == []
    assert sum(written.manifest.counts["train"].values()) == written.manifest.rows("train")
    assert "no usable image in train of b" in (tmp_path / "out/summary.html").read_text()
    with pytest.raises(DataError, match="--classes b: no usable image of it in train; 30 were left out, mostly: not"):
        ingest.write(planned(raw, tmp_path / "asked", options={"classes": ("a", "b")}))
    assert not (tmp_path / "asked/manifest.json").exists()


def test_a_class_that_nothing_can_show_is_refused_before_anything_is_written(tmp_path):
    for name in ("a\nb", "c"):
        put(tmp_path / "raw", f"{name}/p1.png", film(1))
    with pytest.raises(SourceError, match=r"the class 'a\\nb' holds U\+000A, which nothing can show; rename it"):
        ingest.find(request(tmp_path / "raw", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_images_without_labels_are_prepared_and_opened(films, tmp_path):
    raw = tmp_path / "raw"
    for number in range(20):
        put(raw, f"p{number}.png", film(number))
    written = ingest.write(planned(raw, tmp_path / "out"))
    assert written.manifest.classes == ()
    assert "labels" not in pq.read_schema(tmp_path / "out/train/00000.parquet").names
    assert shards.problems(tmp_path / "out") == []
    split = open_split(tmp_path / "out", "train")
    assert split.labels.shape == (written.manifest.rows("train"), 0)


def test_a_storage_that_fails_ends_the_preparation_and_is_not_taken_for_bad_images(films, tmp_path, monkeypatch):
    plan = planned(films, tmp_path / "out")
    read = type(ingest.SOURCES["image_folder"]).read
    failing = [True]

    def broken(self, raw, record, options):
        if failing[0] and record.name.endswith("p50.png"):
            raise OSError(errno.EIO, f"Failed to open {record.name}")
        return read(self, raw, record, options)

    monkeypatch.setattr(type(ingest.SOURCES["image_folder"]), "read", broken)
    monkeypatch.setattr(ingest.time, "sleep", lambda seconds: None)
    with pytest.raises(OSError, match=r"^--raw: a file .* cannot be read \(Input/output error\)"):
        ingest.write(plan)
    failing[0] = False
    assert ingest.write(plan).manifest.rejected == 0


def test_no_refusal_names_a_patient(films, tmp_path, capfd):
    """Where nobody looks on: `anna` is in every name and every header that these folders hold."""
    anna, table = tmp_path / "anna", "anna_7,mass\nanna_8,mass\n"
    (anna / "dicom").mkdir(parents=True)
    (anna / "dicom/labels.csv").write_text(table)
    put(anna / "kermany", "test/anna_1.jpeg", film(1))
    put(anna / "nih", "images/anna.png", film(1))
    header = "Image Index,Finding Labels,Patient ID\n"
    (anna / "nih/Data_Entry_2017.csv").write_text(header + "anna.png,Mass,anna\nanna.png,Mass,anna\n")
    put(put(anna / "kinds", "train/PNEUMONIA/anna.jpeg", film(1)), "train/NORMAL/anna.jpeg", b"anna")
    put(anna / "only_bad", "a/anna.png", b"anna")
    for source, folder in (
        ("dicom_folder", "dicom"),
        ("kermany_cxr", "kermany"),
        ("nih_cxr14", "nih"),
        ("kermany_cxr", "kinds"),
        ("image_folder", "only_bad"),
    ):
        out = anna / "kinds" if folder == "kinds" else tmp_path / "out"
        with pytest.raises(shards.Refused) as refusal:
            planned(anna / folder, out, source)
        assert "anna" not in str(refusal.value).replace(str(anna), "")
    assert "anna" not in capfd.readouterr().err


def test_a_shard_of_nothing_but_copies_is_not_there(films, tmp_path):
    raw = tmp_path / "raw"
    for number in range(8):
        put(raw, f"test/a/p{number}.png", film(number))
        put(raw, f"val/a/p{number}.png", film(number))
        put(raw, f"train/a/q{number}.png", film(100 + number))
    written = ingest.write(planned(raw, tmp_path / "out", split="published"))
    assert written.manifest.rows("train") == 8
    assert written.manifest.splits["val"] == []
    assert not list((tmp_path / "out/val").glob("*"))
    assert shards.problems(tmp_path / "out") == []


def test_the_threshold_follows_the_data_and_copies_do_not_move_it():
    z = np.random.default_rng(0).normal(1.0, 0.15, 4000)
    plain = copies.threshold(np.tanh(z))
    assert plain == pytest.approx(np.tanh(1.0 + 4.5 * 0.15), abs=0.01)
    assert copies.threshold(np.concatenate([np.tanh(z), np.full(100, 0.999)])) == pytest.approx(plain, abs=0.01)
    assert copies.threshold(np.full(1000, 0.2)) == copies.LEAST
    assert copies.threshold(np.tanh(z + 2)) == copies.SURE
    assert copies.threshold(np.zeros(3)) == 0.95


@pytest.mark.parametrize("shift", [(0.0, 0.0, 0.0, 0.0), (0.05, 0.0, 0.0, 0.05), (0.04, 0.04, 0.04, 0.04)])
def test_a_copy_is_laid_over_its_original(shift):
    films = np.stack([film(number)[None] for number in range(60)])
    moved = np.stack([np.asarray(Image.open(io.BytesIO(cropped(image[0], *shift))))[None] for image in films[:20]])
    ids = [str(number) for number in range(60)]
    likeness, rows = copies.nearest(copies.Images.of(moved, ids[:20]), copies.Images.of(films, ids))
    best = likeness.argmax(1)
    assert rows[np.arange(20), best].tolist() == list(range(20))
    assert likeness.max(1).min() > 0.94
    others = np.where(rows == np.arange(20)[:, None], -1, likeness)
    assert others.max() < 0.8


# -- what is kept of a person ------------------------------------------------------------------------------------------


def test_no_file_name_patient_or_key_is_in_what_is_written(films, tmp_path):
    raw = tmp_path / "raw"
    for number in range(30):
        put(raw, f"{'ab'[number % 2]}/anna_{number}.png", film(number))
    exif = Image.Exif()
    exif[0x010E] = "anna schmidt"
    Image.fromarray(film(31)).save(raw / "a/anna_31.jpg", exif=exif)
    put(raw, "a/anna_broken.png", b"anna")
    regex = {"options": {"patient_regex": r"(anna_\w+)"}}
    written = ingest.write(planned(raw, tmp_path / "out", **regex))
    content = b"".join(bytes_of(tmp_path / "out").values())
    assert b"anna" not in content
    assert KEY not in content
    assert KEY.hex().encode() not in content
    rows = pq.read_table(tmp_path / "out/rejected.parquet").to_pylist()
    assert rows == [
        {
            "name_id": shards.keyed_id(KEY, "name", "a/anna_broken.png"),
            "reason": "not a readable image (UnidentifiedImageError)",
        }
    ]
    asked = planned(raw, tmp_path / "kept", keep_paths=True, **regex)
    ingest.write(asked)
    assert pq.read_table(tmp_path / "kept/rejected.parquet").column("path").to_pylist() == ["a/anna_broken.png"]
    assert written.manifest.request != asked.digest


def test_messages_name_a_file_by_its_keyed_id_unless_a_person_looks_on(films, tmp_path, monkeypatch, capsys):
    raw = tmp_path / "raw"
    for number in range(30):
        put(raw, f"{'ab'[number % 2]}/anna_{number}.png", film(number))
    put(raw, "a/anna_broken.png", b"anna")
    write_key(tmp_path / "key")
    job = runpy.run_path(str(Path(__file__).parent.parent / "jobs/prepare.py"))
    monkeypatch.setattr("medgan.ray_connect.connect", lambda verbose: {})
    command = ["--source", "image_folder", "--raw", str(raw), "--resolution", "32"]
    command += ["--patient-key-file", str(tmp_path / "key"), "--out"]
    job["main"]([*command, str(tmp_path / "log")])
    output = capsys.readouterr().out
    assert "left out, 1 of these: not a readable image" in output
    assert shards.keyed_id(KEY, "name", "a/anna_broken.png") in output
    assert "anna" not in output
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    job["main"]([*command, str(tmp_path / "terminal")])
    assert "a/anna_broken.png: not a readable image" in capsys.readouterr().out
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    job["main"]([*command, str(tmp_path / "job")])
    assert "anna_broken" not in capsys.readouterr().out
    job["main"]([*command, str(tmp_path / "kept"), "--keep-paths"])
    assert "anna_broken" in capsys.readouterr().out


def test_a_patient_in_two_published_splits_is_named_only_to_a_person(films, tmp_path):
    raw = tmp_path / "raw"
    put(put(put(raw, "train/a/anna_1.png", film(1)), "test/a/anna_2.png", film(2)), "val/a/b_1.png", film(3))
    asked = {"split": "published", "options": {"patient_regex": "([a-z]+)_"}}
    with pytest.raises(SourceError, match=r"1 patients are in two splits \(test and train\); use --split ratio"):
        planned(raw, tmp_path / "out", **asked)
    with pytest.raises(SourceError, match="the first of them anna"):
        planned(raw, tmp_path / "out", show_paths=True, **asked)


def test_a_cluster_of_several_hosts_needs_a_key_that_they_share(films, tmp_path, monkeypatch):
    job = runpy.run_path(str(Path(__file__).parent.parent / "jobs/prepare.py"))
    monkeypatch.setattr("medgan.ray_connect.connect", lambda verbose: {})
    monkeypatch.setattr("medgan.ray_connect.cluster_address", lambda: "10.0.0.1:6379")
    monkeypatch.setattr("medgan.ray_connect.hosts", lambda: 3)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(shards.Refused, match="--patient-key-file: needed on a cluster of 3 hosts"):
        job["main"](["--source", "phantom_cxr", "--resolution", "32", "--out", str(tmp_path / "out")])
    assert not list(tmp_path.rglob("*"))


# -- bad input ---------------------------------------------------------------------------------------------------------


def saved(mode: str, format: str) -> bytes:
    buffer = io.BytesIO()
    pixels = film(sum(map(ord, mode)))
    if mode == "I;16":
        Image.fromarray(pixels.astype(np.uint16) * 200).save(buffer, format)
    else:
        Image.fromarray(pixels).convert(mode).save(buffer, format)
    return buffer.getvalue()


def test_a_folder_full_of_trouble_is_prepared_and_every_trouble_listed(tmp_path, monkeypatch):
    raw = tmp_path / "raw"
    for number in range(20):
        put(raw, f"ä ö/ひと_{number}.png", film(number))
    for mode, format in (("RGBA", "png"), ("P", "png"), ("I;16", "png"), ("CMYK", "jpeg")):
        put(raw, f"good/{mode}.{format}".replace(";", ""), saved(mode, format))
    put(raw, "bad/cut.jpg", saved("L", "jpeg")[:400])
    put(raw, "bad/empty.png", b"")
    put(raw, "bad/text.png", b"dear colleague")
    put(raw, "bad/bomb.png", np.zeros((400, 400), np.uint8))
    (raw / "bad/loop").symlink_to(raw)
    (raw / "bad/gone.png").symlink_to(raw / "nowhere.png")
    written = ingest.write(planned(raw, tmp_path / "out", max_pixels=120_000))
    assert reasons(written) == {
        "bad/cut.jpg": "not a readable image (OSError)",
        "bad/empty.png": "not a readable image (UnidentifiedImageError)",
        "bad/text.png": "not a readable image (UnidentifiedImageError)",
        "bad/bomb.png": "more than 120,000 pixels: --max-pixels takes more, if it is no bomb",
        "bad/gone.png": "cannot be read (No such file or directory)",
    }
    assert written.manifest.classes == ("good", "ä ö")
    counts = written.manifest.counts
    assert sum(counts[split].get("good", 0) for split in counts) == 4
    assert sum(counts[split].get("ä ö", 0) for split in counts) == 20


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("size=64k", "No space left on device; finished shards are kept: to go on: "),
        ("ro", "cannot be written: Read-only file system$"),
    ],
)
def test_a_disk_that_is_full_or_read_only_is_one_line(films, tmp_path, monkeypatch, options, words):
    write_key(tmp_path / "key")
    job = runpy.run_path(str(Path(__file__).parent.parent / "jobs/prepare.py"))
    monkeypatch.setattr("medgan.ray_connect.connect", lambda verbose: {})
    command = ["--source", "image_folder", "--raw", str(films), "--resolution", "64"]
    with small_disk(tmp_path / "disk", options) as disk:
        command += ["--patient-key-file", str(tmp_path / "key"), "--out", str(disk / "out")]
        with pytest.raises((Failed, Refused), match=f"^--out {disk}/out: {words}"):
            job["main"](command)
        assert not (disk / "out/manifest.json").exists()


# -- a bucket ----------------------------------------------------------------------------------------------------------


def test_from_bucket_to_bucket_the_same_bytes_as_on_disk(films, tmp_path, bucket):
    for path in sorted(films.rglob("*.png"))[::4]:
        name = path.relative_to(films).as_posix()
        shards.write_file(f"{bucket}/raw", name, path.read_bytes())
        put(tmp_path / "raw", name, path.read_bytes())
    ingest.write(planned(f"{bucket}/raw", f"{bucket}/data"))
    ingest.write(planned(tmp_path / "raw", tmp_path / "data"))
    manifest, sha256 = shards.read_manifest(f"{bucket}/data")
    assert sha256 == shards.read_manifest(tmp_path / "data")[1]
    assert shards.problems(f"{bucket}/data") == []
    shards.verify(f"{bucket}/data", manifest)
    assert len(open_split(f"{bucket}/data", "train")) == manifest.rows("train")
    again = planned(f"{bucket}/raw", f"{bucket}/data")
    assert shards.prepared(f"{bucket}/data", again.digest) == manifest
    shards.clear(f"{bucket}/data")
    with pytest.raises(DataError, match="no manifest"):
        shards.read_manifest(f"{bucket}/data")


# -- other readers -----------------------------------------------------------------------------------------------------


def test_pandas_duckdb_and_datasets_see_the_same_pixels(films, tmp_path, monkeypatch):
    import datasets
    import duckdb
    import pandas as pd

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    ingest.write(planned(films, tmp_path / "out"))
    file = str(tmp_path / "out/train/00000.parquet")
    table = pq.read_table(file)
    pixels, labels = shards.shard_pixels(table, (1, 32, 32)), shards.shard_labels(table, ("a", "b"))

    frame = pd.read_parquet(file)
    assert all(
        np.array_equal(np.frombuffer(row, np.uint8), one.ravel()) for row, one in zip(frame.pixels, pixels, strict=True)
    )
    assert np.array_equal(np.stack(frame.labels.to_list()), labels)
    rows = duckdb.sql(f"select pixels, labels, patient from '{file}'").fetchall()
    assert [row[0] for row in rows] == [one.tobytes() for one in pixels]
    assert [list(row[1]) for row in rows] == labels.tolist()
    loaded = datasets.load_dataset("parquet", data_files=file, split="train", cache_dir=str(tmp_path / "cache"))
    assert [row["pixels"] for row in loaded] == [one.tobytes() for one in pixels]
    assert [row["labels"] for row in loaded] == labels.tolist()


def test_the_page_shows_what_is_in_the_folder(films, tmp_path):
    raw = tmp_path / "raw"
    for path in films.rglob("*.png"):
        put(raw, str(path.relative_to(films)), path.read_bytes())
    put(raw, "train/a/broken.png", b"broken")
    ingest.write(planned(raw, tmp_path / "out"))
    page = (tmp_path / "out/summary.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert '<th>1</th><td class="text">not a readable image (UnidentifiedImageError)</td>' in page
    assert "width 64 to 64 (median 64)" in page
    assert "every file counts as a patient of its own" in page
    assert "<th>train</th><td>" in page
