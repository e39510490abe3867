import os

import pytest

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
"""A picture for which Pillow runs Ghostscript, unless it is told not to look for this format."""


@pytest.fixture
def ghostscript(tmp_path, monkeypatch):
    """A stand-in first in PATH; the file that it makes when it is run."""
    program, mark = tmp_path / "bin/gs", tmp_path / "ghostscript-ran"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {mark}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return mark
