"""One command writes a run: of two that want it one gets it, a dead one's is taken over, and a late one stops."""

import threading
import time

import pytest

from medgan import lease as leases
from medgan.config import Refused
from medgan.folder import RunFolder
from medgan.lease import Heartbeat, Lease, Lost, create


@pytest.fixture
def quick(monkeypatch):
    """Seconds become tenths."""
    monkeypatch.setattr(leases, "BEAT_S", 0.1)
    monkeypatch.setattr(leases, "STALE_S", 1.0)
    monkeypatch.setattr(leases, "SETTLE_S", 0.4)


@pytest.fixture(params=["path", "bucket"])
def folder(request, tmp_path):
    if request.param == "path":
        return RunFolder(str(tmp_path / "run"))
    return RunFolder(request.getfixturevalue("bucket") + "/run")


def test_a_folder_that_cannot_be_written_is_refused(quick):
    where = "/proc/run"
    with pytest.raises(Refused, match=f"--out {where}: cannot be written: "), Heartbeat(RunFolder(where), print):
        pass


def test_of_many_that_create_a_file_at_once_exactly_one_does(folder, quick):
    for attempt in range(3):
        won, start = [], threading.Barrier(8)

        def contend(number, name=f".lease/{attempt:06d}", won=won, start=start):
            start.wait()
            if create(folder, name, str(number).encode()):
                won.append(number)

        threads = [threading.Thread(target=contend, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert folder.read(f".lease/{attempt:06d}") == str(won[0]).encode()
        assert not create(folder, f".lease/{attempt:06d}", b"late")
    assert folder.names(".lease") == ["000000", "000001", "000002"]


def test_of_two_that_wrote_a_file_one_after_the_other_the_last_has_it(bucket, quick, monkeypatch):
    """As where one was held up between looking at the claims and writing."""
    folder = RunFolder(bucket + "/held-up")
    write = RunFolder.write

    def and_another(self, name, content):
        write(self, name, content)
        if name == ".lease/000001":
            write(self, name, b"held up")

    monkeypatch.setattr(RunFolder, "write", and_another)
    assert not create(folder, ".lease/000001", b"quick")
    assert folder.read(".lease/000001") == b"held up"


def test_a_second_command_is_refused_while_the_first_lives(folder, quick):
    said = []
    second = Heartbeat(folder, said.append)
    with Heartbeat(folder, said.append), pytest.raises(Refused, match="on .*, writes this run: stop it first"):
        second.__enter__()
    assert folder.names(".lease") == []
    with Heartbeat(folder, said.append):
        pass
    assert said == []


def test_a_dead_commands_run_is_taken_over_after_its_heartbeat_stood_still_and_it_is_said(folder, quick):
    dead = Lease(folder, "dead")
    dead.take(print)
    dead.beat()
    dead.check()
    said, began = [], time.monotonic()
    with Heartbeat(folder, said.append) as owner:
        assert time.monotonic() - began >= 1.0
        assert "is silent: waiting 1 s in all" in said[0]
        assert "taking the run over" in said[1]
        with pytest.raises(Lost, match="took the run over, so nothing more is written here"):
            dead.check()
        dead.end()  # what it thinks it gives up is no longer its own
        workers = Lease(folder, owner)
        assert workers.renew()
        workers.check()


def test_later_workers_of_a_command_shut_earlier_ones_out(folder, quick):
    with Heartbeat(folder, print) as owner:
        first, second = Lease(folder, owner), Lease(folder, owner)
        assert first.renew()
        first.check()
        assert second.renew()
        second.check()
        with pytest.raises(Lost, match="later workers took the run over"):
            first.check()
    assert not [name for name in folder.names(".lease") if name[:6].isdigit()]


def test_a_run_that_is_starting_is_no_foreign_folder(tmp_path, quick):
    folder = RunFolder(str(tmp_path / "run"))
    with Heartbeat(folder, print):
        assert folder.config() is None
