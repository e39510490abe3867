"""Runs, searches and evaluated releases that come from somebody else: a page of theirs, or one line, and nothing else.

Each leaf of each of their files becomes whatever a sender may think of.
"""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import yaml

from medgan import evaluation_page, report
from medgan.config import Refused, parse_yaml
from medgan.folder import Folder, SearchFolder
from medgan.lease import FOLDER, Lease
from medgan.names import NO_TEXT
from medgan.search_page import search_page
from medgan.tracking import read_rows

from ..test_evaluation_page import WEIGHTS, evaluation
from ..test_report import write_run
from ..test_search_page import write_search
from .conftest import EPS

DEEP = None
for _ in range(40):
    DEEP = [DEEP]
NASTY = [
    *(
        None,
        True,
        -1,
        0.5,
        2**70,
        float("nan"),
        float("inf"),
        "",
        "../../x",
        "/etc",
        "x" * 10**5,
        [],
        {},
        DEEP,
        [[1, 2]],
    ),
    *("\x1b[2J", "two\nlines", "\u202egnp", "</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "🙂"),
    *({"../x": 1}, {"\x1b": {}}),
]


def leaves(tree, path=()):
    """The path of every value in a tree, branches included, the longest lists by their first two."""
    yield path
    below = tree.items() if isinstance(tree, dict) else list(enumerate(tree))[:2] if isinstance(tree, list) else ()
    for key, value in below:
        yield from leaves(value, (*path, key))


def with_leaf(tree, path, value):
    if not path:
        return value
    key, *rest = path
    copied = tree.copy()
    copied[key] = with_leaf(tree[key], rest, value)
    return copied


def made_or_refused(make, place: str) -> None:
    """A page without a tag of the sender's, or a refusal in one line that names the folder."""
    try:
        page = make()
    except Refused as error:
        said = str(error)
    else:
        assert "<script>alert" not in page
        assert "<img src=x" not in page
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e]", page)
        return
    assert place in said
    assert not NO_TEXT.search(said)
    assert len(said) < 4000


@pytest.fixture(scope="module")
def search(phantoms, tmp_path_factory):
    return write_search(phantoms, tmp_path_factory.mktemp("searches") / "theirs", trials=3)


@pytest.fixture
def theirs(search, tmp_path, monkeypatch):
    """A copy of a search, whose pages hold no plot library: many are made."""
    monkeypatch.setattr("medgan.search_page.get_plotlyjs", lambda: "")
    shutil.copytree(search.location, tmp_path / "theirs")
    return SearchFolder(str(tmp_path / "theirs"))


@pytest.mark.parametrize("name", ["trials/000.json", "summary.json", "search.yaml"])
def test_whatever_a_leaf_of_a_search_becomes_its_page_is_made_or_refused_in_one_line(theirs, name):
    content = theirs.read(name)
    tree = yaml.safe_load(content)
    paths = list(leaves(tree))
    assert len(paths) > 8
    for number, path in enumerate(paths):
        for index, value in enumerate(NASTY):
            if (number + index) % 9:
                continue  # every leaf by two or three of them, by others than the one before it
            forged = with_leaf(tree, path, value)
            text = json.dumps(forged) if name.endswith("json") else yaml.safe_dump(forged, allow_unicode=False)
            theirs.write(name, text)
            made_or_refused(lambda: search_page(theirs), theirs.location)
    theirs.write(name, content)
    assert "Winner" in search_page(theirs)


@pytest.mark.parametrize("run", ["../../elsewhere", "..", ".hidden", "a/b", "/etc", ""])
def test_a_record_of_a_trial_leads_nowhere(theirs, run):
    record = json.loads(theirs.read("trials/000.json"))
    theirs.write("trials/000.json", json.dumps(record | {"run": run}))
    with pytest.raises(Refused, match=r"trials/000\.json: run: String should match"):
        theirs.trials()


def test_a_record_is_of_the_trial_that_its_file_is_called_after(theirs):
    theirs.write("trials/000.json", theirs.read("trials/001.json"))
    with pytest.raises(Refused, match=r"trials/000\.json: name: is the record of another trial"):
        theirs.trials()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 10**5, b"1e400", b'"x"', b"null"])
@pytest.mark.parametrize("name", ["trials/000.json", "summary.json"])
def test_a_file_that_is_no_record_is_named_in_one_line(theirs, name, content):
    theirs.write(name, content)
    with pytest.raises(Refused, match=f"^{theirs.location}/{name}: "):
        search_page(theirs)


@pytest.mark.parametrize("name", ["trials/000.json", "summary.json", "search.yaml"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(theirs, name):
    (Path(theirs.location) / name).unlink()
    os.mkfifo(Path(theirs.location) / name)
    with pytest.raises(OSError, match="not a plain file"):
        search_page(theirs)


def test_aliases_of_yaml_do_not_become_billions_of_values():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for level in range(1, 30):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]")
    with pytest.raises(Refused, match="^config.yaml: holds more than 100,000 values$"):
        parse_yaml("\n".join(lines), "config.yaml")
    with pytest.raises(Refused, match="^config.yaml: "):
        parse_yaml("a: &a [*a]", "config.yaml")
    with pytest.raises(Refused, match="^config.yaml: not YAML"):
        parse_yaml("[" * 5000, "config.yaml")
    assert parse_yaml("a: &a [1, 2]\nb: *a", "config.yaml") == {"a": [1, 2], "b": [1, 2]}


# -- runs ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def their_run(tiny, phantoms, tmp_path, monkeypatch):
    monkeypatch.setattr("medgan.report.get_plotlyjs", lambda: "")
    return write_run(tiny(), phantoms, tmp_path / "theirs")


def test_whatever_a_figure_of_a_run_becomes_its_page_is_made_or_refused_in_one_line(their_run):
    lines = their_run.read("metrics.jsonl").decode().splitlines()
    rows = [json.loads(line) for line in lines]
    row = next(row for row in rows if "metric/kid" in row)
    for number, path in enumerate(leaves(row)):
        for value in NASTY[number % 4 :: 4]:
            forged = json.dumps(with_leaf(row, path, value))
            their_run.write("metrics.jsonl", "\n".join([*lines, forged]) + "\n")
            made_or_refused(lambda: report.run_page(their_run), their_run.location)
    their_run.write("metrics.jsonl", json.dumps({**row, "\x1b[2J": 1}))
    with pytest.raises(Refused, match=r"metrics\.jsonl: 0\."):
        read_rows(Path(their_run.location) / "metrics.jsonl")


def test_the_holder_of_a_lease_writes_nowhere_else(tmp_path):
    folder = Folder(str(tmp_path / "run"))
    note = {"owner": "../../elsewhere", "mark": "0" * 16, "host": "theirs", "time": 0}
    folder.write(f"{FOLDER}/000001", json.dumps(note))
    with pytest.raises(Refused, match="/000001: owner: "):
        Lease(folder, "0" * 16).take(print)
    folder.write(f"{FOLDER}/000001", json.dumps(note | {"owner": "f" * 16, "host": "a\x1b[2Jb"}))
    with pytest.raises(Refused, match="/000001: host: "):
        Lease(folder, "0" * 16).take(print)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_term_of_a_lease_that_is_a_link_to_nothing_is_not_looked_for_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr("medgan.lease.READS", 5)
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "000001").symlink_to("nowhere")
    with pytest.raises(Refused, match=r"/\.lease: its newest term cannot be read; remove it, if nobody writes here"):
        Lease(Folder(str(tmp_path)), "0" * 16).take(print)


def test_a_name_of_a_figure_moves_no_cursor_on_a_page_however_it_is_written(their_run):
    rows = their_run.read("metrics.jsonl").decode()
    evaluated = json.loads(rows.splitlines()[0])
    forged = evaluated | {"images_seen": 10000, "metric/kid/%1b[2J%E2%80%AE": 1.0}
    their_run.write("metrics.jsonl", rows + json.dumps(forged) + "\n")
    page = report.run_page(their_run)
    assert "\x1b" not in page
    assert "\u202e" not in page


def test_a_picture_of_a_search_that_is_none_calls_no_other_program(theirs, ghostscript):
    theirs.write("trials/000/generator/samples.png", EPS + b" " * 900_000)
    with pytest.raises(OSError, match="cannot identify image file"):
        search_page(theirs)
    assert not ghostscript.exists()


# -- evaluations ---------------------------------------------------------------------------------------------------


def test_whatever_a_leaf_of_an_evaluation_becomes_its_page_is_made_or_refused_in_one_line(their_run):
    now = evaluation()
    their_run.write("generator/model.safetensors", WEIGHTS)
    their_run.write("evaluation.json", json.dumps(now))
    assert evaluation_page.section(their_run)
    paths = list(leaves(now))
    for number, path in enumerate(paths):
        for index, value in enumerate(NASTY):
            if (number + index) % 5:
                continue
            their_run.write("evaluation.json", json.dumps(with_leaf(now, path, value)))
            made_or_refused(lambda: str(evaluation_page.section(their_run)), their_run.location)
