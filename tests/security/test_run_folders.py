"""Runs, searches and evaluated releases that come from somebody else: a page of theirs, or one line, and nothing else.

Each leaf of each of their files becomes whatever a sender may think of.
"""

import json
import os
import re
import shutil
import struct
import time
import zlib
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import yaml

from jobs import evaluate
from medgan import evaluation_page, report, schemas, wandb_report
from medgan.cells import Cell
from medgan.config import Refused, parse_yaml
from medgan.folder import Folder, RunFolder, SearchFolder
from medgan.lease import FOLDER, Heartbeat, Lease
from medgan.names import NO_TEXT
from medgan.pixels import encode_png
from medgan.release import MARKS, SAID, with_evaluation
from medgan.schemas import checked
from medgan.search_page import search_page
from medgan.tracking import WandbTracker, read_rows

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
    huge = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + huge + struct.pack(">I", zlib.crc32(b"IHDR" + huge))
    cut = encode_png(np.random.default_rng(0).integers(0, 255, (1, 1500, 1500)).astype(np.uint8))
    for content in (EPS, EPS + b" " * 900_000, bomb, cut[: len(cut) * 2 // 3]):
        theirs.write("trials/000/generator/samples.png", content)
        with pytest.raises(Refused, match=r"/trials/000/generator/samples\.png: is no PNG"):
            search_page(theirs)
    assert not ghostscript.exists()


def test_only_pictures_that_a_run_calls_so_are_shown(theirs):
    (Path(theirs.location) / "trials/000/generator/samples.png").unlink(missing_ok=True)
    theirs.write("trials/000/samples/zzz", EPS)
    assert "Winner" in search_page(theirs)


def test_names_of_networks_and_settings_are_no_tags_in_plots_and_no_markdown_in_reports(theirs):
    record, summary = json.loads(theirs.read("trials/000.json")), theirs.summary()
    record["settings"]["model.name"] = link = "<a href='https://theirs.example'>cgan</a>"
    theirs.write("trials/000.json", json.dumps(record))
    summary["importance"] = {link: 1.0, "[x](https://theirs.example)": 0.5}
    summary["winner"]["why"] = "[x](https://theirs.example)"
    theirs.write("summary.json", json.dumps(summary))
    page = search_page(theirs)
    assert "<a href='https" not in page
    assert "\\u003ca href" not in page
    told = wandb_report._importance(summary) + wandb_report._winner(summary)
    assert "](" not in told.replace("\\]", "")


def test_a_tree_has_a_limited_depth():
    tree = []
    for _ in range(13):
        tree = [tree]
    with pytest.raises(Refused, match="^evaluation.json: fidelity: .*is deeper than 12 levels"):
        checked(schemas.Evaluation, {**evaluation(), "fidelity": {"kid": tree}}, "evaluation.json")


# -- links -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def ours(tmp_path):
    """A folder of ours with a file, which no folder of theirs may show, change or delete."""
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours/000064.png").write_bytes(b"a film of a patient")
    yield tmp_path / "ours"
    assert [path.name for path in (tmp_path / "ours").iterdir()] == ["000064.png"]
    assert (tmp_path / "ours/000064.png").read_bytes() == b"a film of a patient"


@pytest.mark.parametrize("form", ["{}", "file://{}"])
@pytest.mark.parametrize("act", ["read", "write", "delete", "set aside"])
def test_a_link_in_a_run_leads_to_nothing_of_ours(tmp_path, ours, act, form):
    run = RunFolder(form.format(tmp_path / "theirs"))
    run.write("config.yaml", "x")
    for name in ("samples", "checkpoints", "wandb"):
        (tmp_path / "theirs" / name).symlink_to(ours)
    does = {
        "read": lambda: run.read("samples/000064.png"),
        "write": lambda: run.write("samples/000064.png", b"x"),
        "delete": lambda: run.delete("samples/000064.png"),
        "set aside": lambda: run.set_aside(64),
    }
    with pytest.raises(OSError, match="leads out of it by a link: put what it points to in its place"):
        does[act]()


def test_wandb_writes_through_no_link_and_the_run_goes_on(tmp_path, ours, tiny):
    run, told = RunFolder(str(tmp_path / "theirs")), []
    run.write("config.yaml", "x")
    (tmp_path / "theirs/wandb").symlink_to(ours)
    WandbTracker(tiny(), run, "id", "name", told.append)
    assert "wandb leads out of it by a link" in told[0]


def test_a_trial_that_is_a_link_is_of_no_search(theirs, tmp_path):
    """Its page would show, and a search that goes on would write, a run of ours."""
    shutil.move(Path(theirs.location) / "trials/000", tmp_path / "our-run")
    (Path(theirs.location) / "trials/000").symlink_to(tmp_path / "our-run")
    with pytest.raises(OSError, match="trials/000 leads out of it by a link"):
        search_page(theirs)
    with pytest.raises(OSError, match="trials/000 leads out of it by a link"):
        theirs.run({"run": "000"})


def test_what_is_refused_for_a_link_says_so_wherever_it_is_told(tmp_path, ours):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / FOLDER).symlink_to(ours)
    with (
        pytest.raises(Refused, match=r"cannot be written: \.lease leads out of it by a link"),
        Heartbeat(Folder(str(tmp_path / "run")), print),
    ):
        pass


def test_a_link_in_the_place_of_a_file_is_replaced_or_removed_and_what_it_points_to_stays(tmp_path, ours):
    run = RunFolder(str(tmp_path / "theirs"))
    run.write("samples/1.png", "x")
    for name in ("file", "folder"):
        (tmp_path / "theirs" / name).symlink_to(ours / "000064.png" if name == "file" else ours)
    run.delete("folder")
    run.write("file", "of the run")
    assert not os.path.lexists(tmp_path / "theirs/folder")
    assert run.read("file") == b"of the run"
    (tmp_path / "linked").symlink_to(tmp_path / "theirs")  # a whole run may lie elsewhere, and a link may stay inside
    (tmp_path / "theirs/again").symlink_to(tmp_path / "theirs/samples")
    assert RunFolder(str(tmp_path / "linked")).read("again/1.png") == b"x"


def test_the_card_of_a_generator_that_is_a_link_is_not_carried_on(tmp_path, ours, capsys):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/README.md").symlink_to(ours / "000064.png")
    asked = Namespace(out=None, synthetic=False)
    evaluate.carry(str(tmp_path / "theirs"), str(tmp_path / "theirs"), asked, evaluation())
    assert capsys.readouterr().out.startswith("note: its card stays as it is: README.md leads out of it by a link")


@pytest.mark.parametrize("name", ["search.yaml", "trials/000.json", "trials/000/generator/samples.png"])
def test_a_file_without_an_end_is_not_read(theirs, name):
    with open(Path(theirs.location) / name, "r+b") as file:
        file.truncate(50 * 2**30)
    with pytest.raises(OSError, match=f"{name.rpartition('/')[2]} has 53,687,091,200 bytes, more than the "):
        search_page(theirs)


# -- runs, other files of theirs -------------------------------------------------------------------------------------


def test_settings_that_cannot_be_read_are_named_with_their_file_and_remarks_reach_no_page(their_run):
    before = their_run.read("config.yaml").decode()
    their_run.write("config.yaml", before + "# \u202egnp <b>\n")
    page = report.run_page(their_run)
    assert "gnp" not in page
    for line in ("seed: !!bool x", "seed: !!timestamp x", "seed: -5", "nothing: 1", "model: {name: '\\e[2J'}"):
        their_run.write("config.yaml", re.sub(r"(?m)^(seed|nothing):.*\n", "", before) + line + "\n")
        with pytest.raises(Refused) as caught:
            report.run_page(their_run)
        assert str(caught.value).startswith(f"{their_run.location}/config.yaml: ")
        assert not NO_TEXT.search(str(caught.value))


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"[]", b'{"schema_version": 1}', b'{"schema_version": "\\u001b[2J"}']
)
def test_a_manifest_that_is_none_is_named(their_run, content):
    their_run.write("manifest.json", content)
    with pytest.raises(Refused, match=f"^{their_run.location}: manifest.json") as caught:
        report.run_page(their_run)
    assert not NO_TEXT.search(str(caught.value))


def test_a_broken_line_of_figures_takes_none_of_the_others_with_it(their_run):
    lines = their_run.read("metrics.jsonl").splitlines()
    their_run.write("metrics.jsonl", b"\n".join([lines[0], b"\0\0\0", *lines[1:], lines[-1][:9]]))
    assert len(read_rows(Path(their_run.location) / "metrics.jsonl")) == len(lines)


def test_figures_without_an_end_or_of_another_folder_are_not_read(their_run, ours):
    file = Path(their_run.location) / "metrics.jsonl"
    with open(file, "r+b") as rows:
        rows.truncate(50 * 2**30)
    for read in (lambda: read_rows(file), lambda: report.run_page(their_run)):
        with pytest.raises(OSError, match="more than the 2,147,483,648 that are read"):
            read()
    file.unlink()
    file.symlink_to(ours / "000064.png")
    for read in (lambda: read_rows(file), lambda: report.run_page(their_run)):
        with pytest.raises(OSError, match="leads out of it by a link"):
            read()


def test_a_lease_of_any_term_can_be_taken_over(tmp_path, monkeypatch):
    monkeypatch.setattr("medgan.lease.STALE_S", 1.0)
    folder = Folder(str(tmp_path / "run"))
    note = {"owner": "f" * 16, "mark": "0" * 16, "host": "theirs", "time": 0}
    (tmp_path / "run" / FOLDER).mkdir(parents=True)
    (tmp_path / "run" / FOLDER / ("9" * 255)).write_text(json.dumps(note))  # none that medgan writes
    (tmp_path / "run" / FOLDER / "0000005").write_text(json.dumps(note))
    for term in ("999999", "9" * 11):
        folder.write(f"{FOLDER}/{term}", json.dumps(note))
        lease = Lease(folder, "0" * 16)
        lease.take(print)
        assert str(int(term) + 1) in folder.names(FOLDER)
        assert term not in folder.names(FOLDER)
        lease.check()
        lease.end()
    folder.write(f"{FOLDER}/{'9' * 12}", json.dumps(note))
    with pytest.raises(Refused, match="no term follows 999999999999; remove it"):
        Lease(folder, "0" * 16).take(print)


def test_a_card_of_any_number_of_marks_is_done_in_one_pass():
    begin, end = MARKS
    for card in (begin * 60_000, SAID[0] * 60_000, (begin + SAID[0]) * 30_000):
        began = time.process_time()
        with_evaluation(card, evaluation())
        assert time.process_time() - began < 5  # it took minutes
    card = with_evaluation(f"# Ours\n\n{begin}old{end}\nbetween\n{begin}older{end}\nlast\n", None)
    assert card.count(begin) == card.count(end) == 1
    assert "old" not in card.replace("folder", "")
    assert card.startswith("# Ours\n\n<!-- evaluation -->")
    assert card.endswith("between\n\nlast\n")
    assert with_evaluation(card, None) == card


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"arrays": true}', b'{"arrays": true, "result": {}}', b"[" * 200_000]
)
def test_a_cell_that_is_damaged_is_named(tmp_path, content):
    cell = Cell("a cell", "tests:none", {})
    (tmp_path / f"{cell.digest}.json").write_bytes(content)
    (tmp_path / f"{cell.digest}.npz").write_bytes(b"PK\3\4")
    with pytest.raises(Refused, match=rf"{cell.digest}\.json: damaged \(\w+\): remove it, and give the command again"):
        cell.load(str(tmp_path))


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
