"""What happens to people: two commands at one folder, a page that cannot be made, writers that are killed."""

import threading

import pytest

from medgan import report
from medgan.data import shards
from medgan.folder import Folder

from ..test_run import train


def test_two_who_write_one_file_at_once_both_succeed(tmp_path):
    """As a run and `jobs/report.py` do with report.html."""
    failed = []

    def write(content: bytes) -> None:
        for _ in range(60):
            try:
                shards.write_file(tmp_path, "report.html", content)
            except OSError as error:
                failed.append(error)

    contents = [bytes([letter]) * 5000 for letter in b"ab"]
    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert (tmp_path / "report.html").read_bytes() in contents
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.usefixtures("coarse_features")
@pytest.mark.parametrize("error", [KeyError("metric/kid"), PermissionError(13, "Permission denied")])
def test_a_page_that_cannot_be_made_ends_no_run(tiny, phantoms, tmp_path, monkeypatch, error):
    def broken(folder):
        raise error

    monkeypatch.setattr(report, "run_page", broken)
    events = []
    folder = train(tiny(total_images=128), phantoms, tmp_path / "run", events.append)
    assert events[-1]["event"] == "done"
    told = [event["reason"] for event in events if event["event"] == "pageless"]
    assert told
    assert type(error).__name__ in told[0]
    assert not folder.exists("report.html")


@pytest.mark.usefixtures("coarse_features")
def test_what_a_killed_writer_left_goes_when_the_run_goes_on(tiny, phantoms, tmp_path):
    folder = train(tiny(total_images=64), phantoms, tmp_path / "run")
    left = ["checkpoints/000000000128.pt.0123abcd.tmp", "generator/model.safetensors.89abcdef.tmp"]
    kept = "samples/notes.tmp"
    for name in (*left, kept):
        (tmp_path / "run" / name).write_bytes(b"half")
    train(tiny(total_images=128), phantoms, tmp_path / "run")
    assert [name for name in (*left, kept) if folder.exists(name)] == [kept]


def test_data_and_releases_know_their_own_unfinished_files(tmp_path):
    """So that the folder may be used again, and nothing else is taken for one."""
    Folder(str(tmp_path)).write("train/00000.parquet.0123abcd.tmp", b"half")
    shards.check_target(tmp_path)
    shards.clear(tmp_path)
    assert not list(tmp_path.rglob("*.tmp"))
    Folder(str(tmp_path)).write("train/thesis.tmp", b"dear")
    with pytest.raises(shards.DataError, match="not medgan data"):
        shards.check_target(tmp_path)
