import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from medgan.data import loader
from medgan.data.loader import batch_rows, batches, open_split, rank_slice
from medgan.data.shards import DataError

from .conftest import write_phantoms


@pytest.mark.parametrize("world", [1, 2, 3, 4, 5])
def test_every_image_comes_once_per_epoch_in_any_world(world):
    rows, global_batch, group = 103, 20, 4
    seen = []
    for images_seen in range(0, 3 * rows + global_batch, global_batch):
        whole = batch_rows(7, images_seen, global_batch, rows)
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
    stream = batches(split, seed=0, images_seen=0, global_batch=16, part=slice(0, 16))
    for _ in range(20):
        batch = next(stream)
    again = next(batches(split, seed=0, images_seen=19 * 16, global_batch=16, part=slice(0, 16)))
    assert np.array_equal(batch.rows, again.rows)
    assert torch.equal(batch.pixels, again.pixels)
    other = next(batches(split, seed=1, images_seen=19 * 16, global_batch=16, part=slice(0, 16)))
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


def test_a_shard_that_changed_is_found_also_when_the_cache_is_warm(tmp_path):
    data = write_phantoms(tmp_path / "data", count=60)
    open_split(data, "train")
    shard = data / "train/00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(DataError, match="train/00000.parquet has"):
        open_split(data, "train")
