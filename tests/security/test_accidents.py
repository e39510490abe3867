"""What happens to people: two commands at one folder, a page that cannot be made, writers that are killed."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from jobs import evaluate, generate, search
from jobs import report as report_job
from medgan import report
from medgan.config import Refused
from medgan.data import shards
from medgan.folder import Folder, RunFolder
from medgan.lease import Heartbeat
from medgan.terminal import command

from ..conftest import fill_up, small_disk, write_key
from ..test_generate import made
from ..test_ray import ROOT, Job, until
from ..test_ray import train as arguments
from ..test_run import train

FEW = ["--trials", "1", "--set", "total_images=320", "--set", "global_batch=16"]


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


def test_a_folder_can_be_listed_at_the_moment_in_which_it_is_made(tmp_path):
    """pyarrow.fs looks for it a second time, and then complains that it could not be listed."""
    folder, over = Folder(str(tmp_path)), threading.Event()

    def make() -> None:
        while not over.is_set():
            (tmp_path / "checkpoints").mkdir()
            (tmp_path / "checkpoints").rmdir()

    maker = threading.Thread(target=make)
    maker.start()
    try:
        for _ in range(20000):
            assert folder.names("checkpoints") == []
    finally:
        over.set()
        maker.join()


# -- a host that has too little ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_evaluation", "coarse_features")
@pytest.mark.parametrize("job", ["generate", "evaluate", "report"])
def test_a_full_disk_is_one_line_that_names_the_folder_and_says_what_to_do(
    trained, phantoms, tiny, tmp_path, capsys, job
):
    with small_disk(tmp_path / "disk", "size=20m") as disk:
        if job == "report":
            train(tiny(total_images=64), phantoms, disk / "run")
        fill_up(disk)
        data = ["--data", phantoms, "--n", "20", "--extractor", "radiomics", "--fidelity"]
        main, words, code, told = {
            "generate": (
                generate.main,
                ["--run", trained, "--out", f"{disk}/out", "--count", "20"],
                2,
                "/out: cannot be",
            ),
            "evaluate": (evaluate.main, ["--run", trained, *data, "--out", f"{disk}/evaluation.json"], 1, "/"),
            "report": (report_job.main, ["--run", f"{disk}/run"], 1, "/run: No space left on device; make room there"),
        }[job]
        assert command(main, [*words, *(["--workers", "0"] if job != "report" else [])]) == code
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert f"{disk}{told}" in said[0]
    assert "No space left on device" in said[0]


@pytest.mark.parametrize(
    ("limit", "words"),
    [("-n 64", "ulimit -n 64: too few open files"), ("-v 4000000", "ulimit -v 4000000: torch and Ray map more memory")],
)
def test_a_shell_that_allows_too_little_is_told_in_one_line_what_to_set(limit, words):
    script = f"ulimit {limit}; exec {sys.executable} {ROOT}/jobs/prepare.py --sources"
    ended = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert len(ended.stderr.splitlines()) == 1
    assert words in ended.stderr


def test_the_limit_of_open_files_is_raised_as_far_as_it_may_be():
    script = (
        "import resource; from medgan.host import *; print(settle_limits(), resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    words = ["bash", "-c", f"ulimit -Sn 100; ulimit -Hn 3000; exec {sys.executable} -c '{script}'"]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout == "None (3000, 3000)\n"


def test_too_little_memory_is_one_line(capsys):
    def main(argv):
        raise MemoryError

    assert command(main, []) == 1
    assert capsys.readouterr().err.endswith(": out of memory: give this host more, or the command less to do at once\n")


# -- two commands at once ------------------------------------------------------------------------------------------


def test_of_two_searches_into_one_folder_the_second_is_refused(phantoms, tmp_path, monkeypatch):
    monkeypatch.setattr("medgan.ray_connect.connect", lambda verbose: {"CPU": 2})
    monkeypatch.setattr("medgan.ray_connect.cluster_address", lambda: "local")
    with (
        Heartbeat(Folder(str(tmp_path / "search")), print),
        pytest.raises(Refused, match="another command, .*, writes this search: stop it first"),
    ):
        search.main(["--data", phantoms, "--out", str(tmp_path / "search"), "--space", "model.name=cgan", *FEW])
    assert not (tmp_path / "search/search.yaml").exists()


SHORT = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from jobs import evaluate
from medgan.metrics import evidence
from medgan.terminal import command
evidence.READER_STEPS = 4  # for what evaluations do, not for what they find
sys.exit(command(evaluate.main))
"""


@pytest.mark.heavy
def test_two_evaluations_at_once_and_one_after_a_kill_give_what_one_alone_gives(trained, phantoms, tmp_path):
    def evaluation(name):
        words = ["--run", trained, "--data", phantoms, "--n", "40", "--extractor", "radiomics", "--fidelity"]
        words += ["--workers", "0", "--out", str(tmp_path / name / "evaluation.json")]
        return subprocess.Popen([sys.executable, "-c", SHORT, *words], stdout=subprocess.DEVNULL)

    both = [evaluation("both") for _ in range(2)]
    assert [process.wait(120) for process in both] == [0, 0]
    with evaluation("killed") as process:
        cells = tmp_path / "killed/evaluation.cells"
        until(lambda: cells.exists() and len(list(cells.glob("*.json"))) > 1, what="a cell")
        process.kill()
    kept = {cell: cell.stat().st_mtime_ns for cell in cells.glob("*.json")}
    assert evaluation("killed").wait(120) == 0
    assert {cell: cell.stat().st_mtime_ns for cell in kept} == kept
    contents = {(tmp_path / name / "evaluation.json").read_bytes() for name in ("both", "killed")}
    assert len(contents) == 1
    assert not [file for file in tmp_path.rglob("*.tmp") if file.parent.parent.name == "both"]


# -- pages and writers -----------------------------------------------------------------------------------------------


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


# -- ends ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_work_goes_on_where_nobody_reads_any_more(tmp_path, stream):
    """As in `train.py | head`."""
    script = f"""
import sys
from medgan.terminal import command
def main(arguments):
    for number in range(20000):
        print("a line of a log", number, file=sys.{stream}, flush=True)
    open({str(tmp_path / "done")!r}, "w").close()
sys.exit(command(main, []))
"""
    (tmp_path / "script.py").write_text(script)
    words = f"{sys.executable} {tmp_path}/script.py {'2>&1 >/dev/null ' if stream == 'stderr' else ''}| head -1"
    piped = ["bash", "-c", f"set -o pipefail; {words}"]
    done = subprocess.run(piped, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "a line of a log 0\n"), done.stderr
    assert "BrokenPipe" not in done.stderr
    assert (tmp_path / "done").exists()


@pytest.mark.ray
@pytest.mark.parametrize("end", ["SIGTERM to all of the group", "SIGHUP"])
def test_whatever_ends_a_training_leaves_a_checkpoint_and_says_how_to_go_on(phantoms, tmp_path, end):
    """`timeout` and systemd tell the whole group, a terminal that closes says SIGHUP."""
    folder = RunFolder(str(tmp_path / "run"))
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it would be ignored, and rightly so
    job = Job("train", *arguments(phantoms, tmp_path / "run", images=100_000))
    signal.signal(signal.SIGHUP, before)
    try:
        until(lambda: folder.checkpoints() or job.process.poll() is not None, what="a checkpoint")
        if end == "SIGHUP":
            os.kill(job.process.pid, signal.SIGHUP)
        else:
            os.killpg(job.process.pid, signal.SIGTERM)
    finally:
        code, output = job.wait(60)
    assert code == 130, output
    saved = folder.checkpoints()[-1]
    assert f"train.py: stopped at {saved:,} images; to go on: python" in output.strip().splitlines()[-1]
    assert not [name for name in folder.names() if name.startswith(".") and folder.names(name)]


@pytest.mark.ray
def test_a_training_whose_reader_has_gone_trains_to_its_end(phantoms, tmp_path):
    folder = RunFolder(str(tmp_path / "run"))
    job = Job("train", *arguments(phantoms, tmp_path / "run", images=1280))
    try:
        job.process.stdout.readline()
        job.process.stdout.close()
        assert job.process.wait(240) == 0
    finally:
        job.end()
    assert folder.checkpoints()[-1] == 1280
    assert folder.exists("report.html")


# -- two commands ----------------------------------------------------------------------------------------------------


def test_a_second_release_into_one_folder_is_refused_and_the_first_is_whole(trained, tmp_path):
    out = tmp_path / "out"
    said = []
    with Heartbeat(Folder(str(out)), said.append), pytest.raises(Refused, match="another command, on .*, writes this"):
        made(trained, out, "--count", 5)
    assert shards.problems(made(trained, out, "--count", 5)) == []
    assert not (out / ".lease").exists()


@pytest.mark.ray
def test_of_two_preparations_into_one_folder_one_is_refused_and_the_other_is_whole(tmp_path):
    key = write_key(tmp_path / "key")
    words = ["--source", "phantom_cxr", "--resolution", 32, "--limit", 1500, "--out", tmp_path / "data"]
    jobs = [Job("prepare", *words, "--patient-key-file", key) for _ in range(2)]
    ends = sorted(job.wait() for job in jobs)
    assert [code for code, _ in ends] == [0, 2], ends
    assert "another command, on " in ends[1][1]
    assert shards.problems(tmp_path / "data") == []
    assert not (tmp_path / "data/.lease").exists()
