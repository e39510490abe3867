import io
import sys

import pytest

from medgan.config import ConfigError, Refused
from medgan.terminal import Failed, Progress, absolute, command, duration


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Refused("--x 1: no"), 2),
        (ConfigError("a=1: no"), 2),
        (Failed("stopped"), 1),
        (OSError("disk full"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_every_end_has_its_exit_code_and_one_line(error, code, capsys):
    def main(argv):
        raise error

    assert command(main, []) == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert "Traceback" not in lines[0]
    assert str(error) in lines[0] or "stopped; to go on: python " in lines[0]


def test_what_an_error_holds_moves_no_cursor_and_breaks_no_line(capsys):
    def main(argv):
        raise Refused("--data a\nb\x1b[2J\x9b0m: no")

    command(main, [])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.isprintable()
    assert r"a\nb\x1b[2J\x9b0m" in line


def test_a_terminal_that_takes_ascii_only_ends_nothing(monkeypatch):
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, "ascii"))
    assert command(lambda argv: print("bücher", flush=True), []) == 0
    assert shown.getvalue() == b"b\\xfccher\n"


def test_verbose_shows_the_traceback(capsys):
    def main(argv):
        raise Refused("no")

    assert command(main, ["--verbose"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_relative_path_is_made_absolute_but_refused_in_a_submitted_job(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert absolute("--out", "runs/x") == f"{tmp_path}/runs/x"
    assert absolute("--out", "s3://bucket/x") == "s3://bucket/x"
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert absolute("--out", "/shared/x") == "/shared/x"
    with pytest.raises(Refused, match="--out runs/x: a relative path in a submitted job"):
        absolute("--out", "runs/x")


def test_progress_to_a_file_is_one_whole_line_per_report(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    line = Progress()
    for number in range(3):
        line.update(f"{number} images", "KID 1")
    line.say("saved")
    line.close()
    assert out.getvalue() == "0 images  KID 1\n1 images  KID 1\n2 images  KID 1\nsaved\n"


def test_progress_to_a_file_can_be_seldom(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    line = Progress(every_s=100)
    for number in range(3):
        line.images("prepare", number, 2)
    lines = out.getvalue().splitlines()
    assert [text.split(" images")[0] for text in lines] == ["prepare 0/2", "prepare 2/2"]


@pytest.mark.parametrize(
    ("columns", "shown"),
    [(80, "5 images  0:10 left  KID 1"), (22, "5 images  0:10 left"), (9, "5 images"), (6, "5 ima")],
)
def test_progress_on_a_narrow_terminal_stays_on_one_line(columns, shown, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("COLUMNS", str(columns))
    line = Progress()
    line.update("5 images", "0:10 left", "KID 1")
    line.say("saved")
    assert out.getvalue() == f"\r\x1b[K{shown}\nsaved\n"


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (95, "1:35"), (3700, "1:01:40"), (-3, "0:00")])
def test_durations(seconds, text):
    assert duration(seconds) == text
