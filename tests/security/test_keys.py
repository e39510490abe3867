"""The key of the patients' ids: closed to others, made once and whole, and never on its way to another process."""

import os
import pickle
import stat
import subprocess
import sys

import pytest

from medgan.config import Refused
from medgan.data import ingest
from medgan.data.sources import Options
from medgan.keys import patient_key

from ..conftest import KEY, write_key
from ..test_ingest import film, put
from .test_strangers import STRANGER, needs_root


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_a_key_is_made_once_closed_to_others(home):
    key = patient_key(None)
    file = home / ".config/medgan/patient.key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert patient_key(None) == patient_key(file) == key
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("content", [None, "not hexadecimal", "abcd", ""])
def test_a_key_file_that_is_none_is_refused(tmp_path, content):
    file = tmp_path / "key"
    if content is not None:
        write_key(file).write_text(content)
    with pytest.raises(Refused, match=str(file)):
        patient_key(file)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_key_that_others_can_read_is_closed_with_a_line(tmp_path, capsys, mode):
    file = write_key(tmp_path / "key")
    file.chmod(mode)
    assert patient_key(file) == KEY
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert f"note: others could read the patients' key, {file} (mode {mode:o})" in capsys.readouterr().out
    file.chmod(0o400)
    assert patient_key(file) == KEY
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_key_that_others_can_change_is_refused_with_what_to_do(tmp_path, mode):
    file = write_key(tmp_path / "key")
    file.chmod(mode)
    with pytest.raises(Refused, match=rf"others can read or change this key \(mode {mode:o}\); give it mode 600"):
        patient_key(file)


def test_a_key_of_somebody_else_may_be_readable_by_a_group_as_containers_get_it(tmp_path):
    needs_root()
    file = write_key(tmp_path / "key")
    os.chown(file, STRANGER, 0)
    file.chmod(0o440)
    assert patient_key(file) == KEY
    file.chmod(0o444)
    with pytest.raises(Refused, match="others can read or change this key"):
        patient_key(file)


def test_what_a_full_disk_left_of_a_key_is_no_key(home):
    file = home / ".config/medgan/patient.key"
    file.parent.mkdir(parents=True)
    write_key(file).write_text("")
    assert len(patient_key(None)) == 32
    assert patient_key(None) == patient_key(file)


@pytest.mark.parametrize("empty", [False, True])
def test_first_uses_at_one_moment_get_one_key(home, empty):
    if empty:
        (home / ".config/medgan").mkdir(parents=True)
        (home / ".config/medgan/patient.key").touch()
    script = "import sys; from medgan.keys import patient_key; sys.stdin.read(1); print(patient_key(None).hex())"
    words = [sys.executable, "-c", script]
    processes = [subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    assert len({process.communicate()[0] for process in processes}) == 1


def test_neither_the_key_nor_a_patients_name_travels_to_workers(tmp_path, monkeypatch):
    sent = []

    def sending(task, things):
        sent.extend([pickle.dumps(task), *map(pickle.dumps, things)])
        return map(task, things)

    monkeypatch.setattr(ingest, "_on_ray", sending)
    for number in range(40):
        put(tmp_path / "raw", f"{'ab'[number % 2]}/film{number}.png", film(number))
    put(tmp_path / "raw", "a/copy.png", film(1))
    # The patient is what a regular expression finds, which is then no name of a file.
    monkeypatch.setattr(ingest.SOURCES["image_folder"], "listing", named(ingest.SOURCES["image_folder"].listing))
    request = ingest.Request("image_folder", str(tmp_path / "raw"), str(tmp_path / "out"), 32, options=Options())
    plan = ingest.plan(request, ingest.find(request), KEY)
    assert any("mueller" in record.patient for records in plan.records.values() for record in records)
    ingest.write(plan)
    assert len(sent) > 5
    for content in sent:
        assert KEY not in content
        assert KEY.hex().encode() not in content
        assert b"mueller" not in content


def named(listing):
    """A source's listing whose patients have names."""
    from dataclasses import replace

    def with_names(raw, options):
        found = listing(raw, options)
        records = tuple(replace(r, patient=f"mueller {r.patient}") for r in found.records)
        return replace(found, records=records)

    return with_names


def test_a_secret_is_read_from_the_file_whose_mode_was_looked_at(tmp_path):
    """A link may lead to the key, its own mode says nothing."""
    file = write_key(tmp_path / "key")
    (tmp_path / "link").symlink_to(file)
    assert patient_key(tmp_path / "link") == KEY
    file.chmod(0o644)
    assert patient_key(tmp_path / "link") == KEY
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
