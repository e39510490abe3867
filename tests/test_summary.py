"""The last of a data folder: what is written when, and what a name may do to its page."""

import numpy as np

from medgan.data import shards, summary


def published(out, classes=("a", "b")):
    """A folder of four black images, of its first class."""
    labels = np.eye(len(classes), dtype=np.uint8)[[0] * 4]
    ids = {"patient": ["p"] * 4, "image_id": ["i"] * 4}
    shard = shards.write_shard(out, "train/00000.parquet", np.zeros((4, 1, 32, 32), np.uint8), labels, classes, ids)
    counts = {"train": shards.label_counts(labels, classes)}
    manifest = shards.Manifest("x", classes, 32, 1, {"train": [shard]}, counts=counts, patients={"train": 1})
    summary.publish(out, manifest, {"rejected.parquet": b"none"})
    return out


def test_the_manifest_is_written_last(tmp_path, monkeypatch):
    written, write = [], summary.write_file
    monkeypatch.setattr(
        summary, "write_file", lambda out, name, content: (written.append(name), write(out, name, content))
    )
    published(tmp_path)
    assert sorted(written) == ["manifest.json", "rejected.parquet", "summary.html"]
    assert written[-1] == "manifest.json"  # without it the folder is no data


def test_a_class_name_cannot_break_out_of_the_page(tmp_path):
    page = (published(tmp_path, ("<b>x", "y")) / "summary.html").read_text()
    assert "<b>x" not in page
    assert "&lt;b&gt;x" in page
