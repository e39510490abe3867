"""Tell Ray that this spot host will be taken away as soon as the cloud says so: Ray itself never asks.

    python notice.py aws 10.0.0.5:6379      # on every spot host, beside Ray, with the head's address; or gcp

Trainings then save a checkpoint within seconds. Needs nothing but Python and Ray.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import time
import urllib.error
import urllib.request

SERVERS = {"aws": "http://169.254.169.254", "gcp": "http://metadata.google.internal"}
LEFT_S = {"aws": 110, "gcp": 25}
"""Between a notice and the end: two minutes at AWS, half a minute at Google, less what it takes to hear of it."""
POLL_S = 2.0


def ask(url: str, method: str = "GET", **headers: str) -> str:
    """What the metadata server answers; nothing where it has none of that. Raises OSError."""
    request = urllib.request.Request(url, method=method, headers={k.replace("_", "-"): v for k, v in headers.items()})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=5) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 404:
            return ""
        raise


def noticed(cloud: str, server: str) -> bool:
    """Whether the host will be taken away. Raises OSError."""
    if cloud == "gcp":
        return ask(f"{server}/computeMetadata/v1/instance/preempted", Metadata_Flavor="Google").strip() == "TRUE"
    token = ask(f"{server}/latest/api/token", "PUT", X_aws_ec2_metadata_token_ttl_seconds="60")
    return ask(f"{server}/latest/meta-data/spot/instance-action", X_aws_ec2_metadata_token=token) != ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cloud", choices=tuple(SERVERS))
    parser.add_argument("head", help="HOST:PORT of the cluster's head")
    parser.add_argument("--server", help="another metadata server")
    args = parser.parse_args()
    drain = ["ray", "drain-node", "--address", args.head, "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    drain += ["--reason-message", "spot notice", "--deadline-remaining-seconds", str(LEFT_S[args.cloud])]
    here = {**os.environ, "RAY_ADDRESS": args.head}  # by which Ray finds out which of its nodes this host is
    told = False
    while not told:
        time.sleep(POLL_S)
        try:
            told = (
                noticed(args.cloud, args.server or SERVERS[args.cloud])
                and subprocess.run(drain, env=here).returncode == 0
            )
        except OSError as error:
            print(f"notice.py: {error}", flush=True)


if __name__ == "__main__":
    main()
