import os
import signal
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from medgan.data import loader
from medgan.data.cache import cache_folder
from medgan.data.loader import Order, batches, open_split, rank_slice, row_weights
from medgan.data.shards import DataError, read_manifest

from .conftest import small_disk, write_phantoms


@pytest.mark.parametrize("world", [1, 2, 3, 4, 5])
def test_every_image_comes_once_per_epoch_in_any_world(world):
    rows, global_batch, group = 103, 20, 4
    order, seen = Order(np.zeros((rows, 2), np.uint8), seed=7), []
    for images_seen in range(0, 3 * rows + global_batch, global_batch):
        whole = order.batch(images_seen, global_batch)
        parts = [whole[rank_slice(global_batch, group, rank, world)] for rank in range(world)]
        assert np.array_equal(np.concatenate(parts), whole)
        assert all(len(part) % group == 0 and len(part) for part in parts)
        seen.extend(whole.tolist())
    for epoch in range(3):
        assert sorted(seen[epoch * rows : (epoch + 1) * rows]) == list(range(rows))
    assert seen[:rows] != seen[rows : 2 * rows]


def test_slices_are_as_even_as_whole_groups_allow():
    assert [(s.stop - s.start) for s in (rank_slice(64, 4, rank, 3) for rank in range(3))] == [20, 20, 24]
    with pytest.raises(ValueError, match="too few for 17 workers"):
        rank_slice(64, 4, 0, 17)


def test_a_batch_depends_on_seed_and_images_seen_alone(phantoms):
    split = open_split(phantoms, "train")
    stream = batches(split, Order(split.labels, 0), images_seen=0, global_batch=16, part=slice(0, 16))
    for _ in range(20):
        batch = next(stream)
    again = next(batches(split, Order(split.labels, 0), images_seen=19 * 16, global_batch=16, part=slice(0, 16)))
    assert np.array_equal(batch.rows, again.rows)
    assert torch.equal(batch.pixels, again.pixels)
    other = next(batches(split, Order(split.labels, 1), images_seen=19 * 16, global_batch=16, part=slice(0, 16)))
    assert not np.array_equal(batch.rows, other.rows)


def test_the_cache_holds_the_rows_of_the_shards_and_is_filled_once(tmp_path, monkeypatch):
    data = write_phantoms(tmp_path / "data", count=60, rows_per_shard=16)
    cold = open_split(data, "train")
    monkeypatch.setattr(loader, "_fill", lambda *_: pytest.fail("the cache was warm"))
    warm = open_split(data, "train")
    assert np.array_equal(cold.pixels, warm.pixels)
    assert isinstance(warm.pixels, np.memmap)
    tables = [pq.read_table(file) for file in sorted((data / "train").glob("*.parquet"))]
    rows = [row for table in tables for row in table.to_pylist()]
    assert [image.tobytes() for image in warm.pixels] == [row["pixels"] for row in rows]
    assert warm.labels.tolist() == [row["labels"] for row in rows]


def other_process(data, code: str, **environment) -> subprocess.Popen:
    text = f"import os, signal\nfrom medgan.data import loader\nDATA = {str(data)!r}\n{code}"
    return subprocess.Popen(
        [sys.executable, "-c", text], env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True
    )


def test_of_many_processes_of_a_node_one_fills_the_cache(tmp_path):
    data = write_phantoms(tmp_path / "data", count=60, rows_per_shard=16)
    code = """
fill = loader._fill
def noted(*arguments):
    open(os.environ["NOTE"], "a").write("filled ")
    fill(*arguments)
loader._fill = noted
assert len(loader.open_split(DATA, "train")) > 40
"""
    places = {"NOTE": str(tmp_path / "note"), "MEDGAN_CACHE": str(tmp_path / "cache")}
    for process in [other_process(data, code, **places) for _ in range(2)]:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert (tmp_path / "note").read_text() == "filled "


def test_a_writer_killed_half_way_leaves_nothing_that_is_taken_for_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDGAN_CACHE", str(tmp_path / "cache"))
    data = write_phantoms(tmp_path / "data", count=120, rows_per_shard=16)
    code = """
read_table, read = loader.read_table, []
def mortal(*arguments):
    read.append(1)
    if len(read) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return read_table(*arguments)
loader.read_table = mortal
loader.open_split(DATA, "train")
"""
    process = other_process(data, code)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    folder = cache_folder() / read_manifest(data)[1][:32]
    assert [path.name[:17] for path in folder.iterdir() if path.suffix == ".tmp"] == ["train.pixels.npy."]
    split = open_split(data, "train")
    columns = [pq.read_table(file).column("pixels") for file in sorted((data / "train").glob("*.parquet"))]
    assert [image.tobytes() for image in split.pixels] == [row for column in columns for row in column.to_pylist()]


def test_a_cache_of_other_shards_is_never_used(tmp_path):
    data = write_phantoms(tmp_path / "data", count=60)
    before = open_split(data, "train")
    for path in data.rglob("*.parquet"):
        path.unlink()
    write_phantoms(data, count=80)
    after = open_split(data, "train")
    assert after.cache != before.cache
    assert len(after) > len(before)


def test_a_full_disk_is_one_line_that_says_what_is_needed(tmp_path, monkeypatch):
    data = write_phantoms(tmp_path / "data", count=240)
    with small_disk(tmp_path / "disk", "size=64k") as disk:
        monkeypatch.setenv("MEDGAN_CACHE", str(disk))
        with pytest.raises(DataError, match=r"^cache .*: No space left on device; it needs 0 MB .* MEDGAN_CACHE"):
            open_split(data, "train")
        assert not list(disk.rglob("*.npy"))


def test_a_shard_that_changed_is_found_also_when_the_cache_is_warm(tmp_path):
    data = write_phantoms(tmp_path / "data", count=60)
    open_split(data, "train")
    shard = data / "train/00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(DataError, match="train/00000.parquet has"):
        open_split(data, "train")


def test_the_ranks_of_one_start_check_the_shards_once_per_node(tmp_path, monkeypatch):
    data = write_phantoms(tmp_path / "data", count=60, rows_per_shard=16)
    monkeypatch.setenv("MEDGAN_CACHE", str(tmp_path / "cache"))
    read, real = [], loader.read_table
    monkeypatch.setattr(loader, "read_table", lambda *arguments: read.append(1) or real(*arguments))
    shards = len(list((data / "train").glob("*.parquet")))
    for start, reads in (("monday", shards), ("monday", 0), ("tuesday", shards), ("", shards), ("", shards)):
        read.clear()
        open_split(data, "train", start)
        assert len(read) == reads


def test_balance_shows_rare_classes_as_often_as_asked_and_every_row_its_share():
    labels = np.zeros((1000, 3), np.uint8)
    labels[:900, 0] = labels[900:990, 1] = labels[990:, 2] = 1
    for balance in (0.0, 0.5, 1.0):
        wanted = np.array([0.9, 0.09, 0.01]) ** (1 - balance)
        expected = 1000 * wanted / wanted.sum()
        order = Order(labels, seed=3, balance=balance)
        for epoch in range(3):
            rows = order.epoch(epoch)
            assert len(rows) == 1000
            assert np.abs(labels[rows].sum(0) - expected).max() <= 1
            times = np.bincount(rows, minlength=1000)
            for which, share in zip(labels.T, expected, strict=True):
                each = share / which.sum()
                assert np.abs(times[which == 1] - each).max() < 1
        assert not np.array_equal(order.epoch(0), order.epoch(1))
        assert np.array_equal(order.epoch(1), Order(labels, seed=3, balance=balance).epoch(1))


def test_a_row_of_several_labels_weighs_their_mean_and_having_none_is_a_class_too():
    labels = np.array([[1, 0], [1, 0], [1, 1], [0, 0]], np.uint8)
    weights = row_weights(labels, 1.0)
    assert weights.tolist() == [4 / 3, 4 / 3, (4 / 3 + 4) / 2, 4]
    assert row_weights(labels, 0.0).tolist() == [1, 1, 1, 1]
