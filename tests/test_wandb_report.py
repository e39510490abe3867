"""W&B Reports: what they hold, and that they can be saved; against a stand-in server on loopback."""

import json
import re
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from medgan import wandb_report
from tune import search

from .test_report import write_run
from .test_search_page import write_search
from .wandb_stand_in import serve

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def folder(phantoms, tmp_path_factory):
    return write_search(phantoms, tmp_path_factory.mktemp("searches") / "first")


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with serve() as seen:
        monkeypatch.setenv("WANDB_BASE_URL", seen.url)
        yield seen


def specification(report):
    return report._to_model().spec.model_dump(by_alias=True, exclude_none=True)


def headings(spec):
    found = [block for block in spec["blocks"] if block["type"] == "heading"]
    return ["".join(child.get("text", "") for child in block["children"]) for block in found]


def test_the_report_of_a_search_holds_question_winner_curves_finalists_and_evidence(folder, server):
    spec = specification(wandb_report.search_report(folder, "clinic", "medgan"))
    assert headings(spec) == [
        "Question",
        "Winner",
        "KID by architecture",
        "What was searched and what mattered",
        "Samples",
        "Finalists",
        "Evidence",
        "Data and licence",
        "How to reproduce",
    ]
    text = json.dumps(spec)
    summary = json.loads(folder.read("summary.json"))
    for words in (
        f"Trial {summary['winner']['name']}",
        summary["winner"]["why"],
        folder.settings()["manifest_sha256"],
        "phantom_cxr at 32x32",
        "not for diagnosis",
        f"{summary['finalists'][0]['mean']:.4g}",
        "real images for every trial",
    ):
        assert words in text
    grids = [block for block in spec["blocks"] if block["type"] == "panel-grid"]
    filters = [runs["filters"]["filters"] for runs in grids[0]["metadata"]["runSets"]]
    wanted = [(("group", "first"), ("tags", [model])) for model in ("cgan", "dcgan")]
    assert [tuple((f["key"]["name"], f["value"]) for f in found) for found in filters] == wanted
    panels = [panel["viewType"] for grid in grids for panel in grid["metadata"]["panelBankSectionConfig"]["panels"]]
    assert panels == ["Run History Line Plot", "Parallel Coordinates Plot", "Parameter Importance", "Media Browser"]
    assert "samples/PNEUMONIA" in text


@pytest.mark.parametrize(
    "name", ["demo", "it's", 'a"b', "a=b <c> == d", "x' or Metric('Group') != '", "back\\slash", "Ödem"]
)
def test_a_filter_chooses_by_a_name_of_any_letters(name):
    from wandb_workspaces.expr import expr_to_filters

    chosen = expr_to_filters(f"Metric('Group') == {wandb_report._literal(name)}")
    assert (chosen.op, chosen.value) == ("=", name)


def test_the_report_of_two_runs_says_what_differs(tiny, phantoms, tmp_path, server):
    runs = [write_run(tiny(seed=seed), phantoms, tmp_path / name) for seed, name in enumerate(("a", "b"))]
    spec = specification(wandb_report.pair_report(*runs, "clinic", "medgan"))
    text = json.dumps(spec)
    assert "| seed | 0 | 1 |" in text
    assert "optim.lr_g" not in text.split("Figures over real images shown")[0]
    assert "cgan bce a" in text
    assert "Run Comparer" in text


def job(*arguments, **kwargs):
    return subprocess.run(
        [sys.executable, str(ROOT / "jobs/report.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        **kwargs,
    )


def test_a_report_is_saved_by_one_command_and_refused_without_a_key(folder, server, monkeypatch):
    done = job("--search", folder.location, "--wandb", "clinic/medgan")
    assert done.returncode == 0, done.stderr
    assert f"report: {server.url}/clinic/medgan/reports/Search-first" in done.stdout
    (saved,) = server.of("upsertView")
    assert "Winner" in saved["spec"]
    assert (saved["entityName"], saved["projectName"]) == ("clinic", "medgan")
    assert job("--search", folder.location, "--wandb", "clinic").returncode == 2
    monkeypatch.delenv("WANDB_API_KEY")
    refused = job("--search", folder.location, "--wandb", "clinic/medgan")
    assert refused.returncode == 2
    assert refused.stderr.strip() == "report.py: --wandb: no API key; set WANDB_API_KEY or run `wandb login`"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--run", "nowhere"], "no run in it"),
        (["--search", "nowhere"], "no search in it"),
        (["--run", "nowhere", "--watch"], "--watch: follows a search"),
        (["--run", "a", "--against", "b"], "--against: compares two runs"),
    ],
)
def test_a_wrong_report_is_refused_in_one_line(arguments, words, tmp_path):
    refused = job(*arguments, cwd=tmp_path)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert words in refused.stderr


def test_a_running_search_is_watched_on_loopback(phantoms, tmp_path):
    folder = write_search(phantoms, tmp_path / "watched", trials=3)
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "jobs/report.py"), "--search", folder.location, "--watch", "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
    )
    killer = threading.Timer(60, process.kill)
    killer.start()
    try:
        url = re.search(r"http://127\.0\.0\.1:\d+/[\w-]{22}/", process.stdout.readline()).group(0)
        first = urllib.request.urlopen(url, timeout=20).read().decode()
        assert 'http-equiv="refresh"' in first
        assert 'data-name="003"' not in first
        record = next(r for r in folder.trials() if r["name"] == "002") | {"name": "003", "run": "002"}
        folder.write_trial(record)
        assert 'data-name="003"' in urllib.request.urlopen(url, timeout=20).read().decode()
        summary = folder.read("summary.json")
        folder.write("summary.json", b"{")
        with pytest.raises(urllib.error.HTTPError, match="503") as caught:
            urllib.request.urlopen(url, timeout=20)
        assert b"summary.json: is damaged" in caught.value.read()
        folder.write("summary.json", summary)
        port = url.split(":")[2].split("/")[0]
        for place, host in (
            (url + "search.yaml", "localhost:80"),
            (f"http://127.0.0.1:{port}/", "localhost:80"),  # another user of this host
            (url, "evil.example"),
            (url, f"evil.example:{port}"),  # a page of elsewhere, whose name leads here meanwhile
            (url, f"localhost.evil.example:{port}"),
        ):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(urllib.request.Request(place, headers={"Host": host}), timeout=20)
        for host in (f"localhost:{port}", "localhost:9000", f"[::1]:{port}"):
            urllib.request.urlopen(urllib.request.Request(url, headers={"Host": host}), timeout=20)
        with pytest.raises(urllib.error.URLError, match="refused"):  # of this host's other addresses none answers
            urllib.request.urlopen(url.replace("127.0.0.1", "127.0.0.2"), timeout=20)
    finally:
        killer.cancel()
        process.kill()
        process.communicate()
    assert search.ranking(folder.trials())
