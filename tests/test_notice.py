"""A spot host's notice, from a metadata server on loopback to the command that tells Ray."""

import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "cluster/notice.py"
QUICK = """
import runpy, sys, time
sleep = time.sleep
time.sleep = lambda seconds: sleep(seconds / 40)
sys.argv[:1] = []
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Metadata(BaseHTTPRequestHandler):
    """AWS's and Google's. The second time it fails, and from the third on there is a notice."""

    asked = 0

    def do_PUT(self):
        self.answer(200 if self.headers["X-aws-ec2-metadata-token-ttl-seconds"] else 400, "secret")

    def do_GET(self):
        Metadata.asked += 1
        if Metadata.asked == 2:
            self.answer(500, "busy")
        elif self.path == "/computeMetadata/v1/instance/preempted":
            allowed = self.headers["Metadata-Flavor"] == "Google"
            self.answer(200 if allowed else 403, "TRUE" if Metadata.asked >= 3 else "FALSE")
        elif self.path == "/latest/meta-data/spot/instance-action" and Metadata.asked >= 3:
            allowed = self.headers["X-aws-ec2-metadata-token"] == "secret"
            self.answer(200 if allowed else 401, '{"action": "terminate", "time": "2026-01-01T00:00:00Z"}')
        else:
            self.answer(404, "")

    def answer(self, code, text):
        self.send_response(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *words):
        pass


@pytest.mark.parametrize(("cloud", "left"), [("aws", "110"), ("gcp", "25")])
def test_ray_is_told_when_the_cloud_gives_notice(tmp_path, cloud, left):
    Metadata.asked = 0
    # a Ray that does not answer the first time
    (tmp_path / "ray").write_text(
        f'#!/bin/sh\necho "$RAY_ADDRESS $*" >> {tmp_path}/told\n[ "$(wc -l < {tmp_path}/told)" = 2 ]\n'
    )
    (tmp_path / "ray").chmod(0o755)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        done = subprocess.run(
            [sys.executable, "-c", QUICK, SCRIPT, cloud, "10.0.0.5:6379", "--server", address],
            env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "http_proxy": "http://127.0.0.1:9"},
            capture_output=True,
            text=True,
            timeout=30,
        )
    finally:
        server.shutdown()
        serving.join()
        server.server_close()
    assert done.returncode == 0, done.stderr
    assert "HTTP Error 500" in done.stdout
    told = (
        "10.0.0.5:6379 drain-node --address 10.0.0.5:6379 --reason DRAIN_NODE_REASON_PREEMPTION "
        f"--reason-message spot notice --deadline-remaining-seconds {left}\n"
    )
    assert (tmp_path / "told").read_text() == 2 * told
