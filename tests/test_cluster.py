"""The files in cluster/: valid by Ray's, KubeRay's and Kubernetes' schemas, of one version, closed, without secrets."""

import fnmatch
import getpass
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from cluster import hosts
from medgan import ray_train
from medgan.config import Refused
from medgan.ray_connect import interface_of
from medgan.ray_train import Roll, Workers, placed

from .hosts import until

ROOT = Path(__file__).parent.parent
CLUSTER = ROOT / "cluster"
AUTOSCALER = ["aws", "gcp", "onprem"]
MANIFESTS = ["raycluster", "rayjob"]
PINS = dict(
    re.match(r"(\w+)[^=]*==(\S+)", line).groups()
    for line in (ROOT / "requirements.txt").read_text().splitlines()
    if "==" in line
)
DRAIN = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
ENV = dict(
    line.split("=", 1) for line in (CLUSTER / "ray.env").read_text().splitlines() if line and not line.startswith("#")
)


def load(name):
    return yaml.safe_load((CLUSTER / name).read_text())


def pods(name):
    """Every pod template of a manifest, by the name of its container."""
    spec = load(f"kuberay/{name}.yaml")["spec"]
    cluster = spec.get("rayClusterSpec", spec)
    templates = [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]
    if "submitterPodTemplate" in spec:
        templates.append(spec["submitterPodTemplate"])
    return {template["spec"]["containers"][0]["name"]: template["spec"] for template in templates}


@pytest.mark.parametrize("name", AUTOSCALER)
def test_rays_own_schema_and_loader_take_the_autoscalers_files(name):
    import ray
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = load(f"{name}.yaml")
    schema = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        jsonschema.validate({**config, "max_worker": 2}, schema)
    filled = prepare_config(config)
    validate_config(filled)
    types = filled["available_node_types"]
    head = types[filled["head_node_type"]]
    workers = [node for key, node in types.items() if key != filled["head_node_type"]]
    assert filled["max_workers"] >= 2
    if name != "onprem":
        assert [node["max_workers"] for node in workers] == [filled["max_workers"]]
        assert head["resources"] == {"CPU": 0}
        spot = workers[0]["node_config"]
        assert "spot" in json.dumps(spot).lower()
        assert "spot" not in json.dumps(head).lower()
        assert workers[0]["min_workers"] == 0


@pytest.mark.parametrize("name", AUTOSCALER)
def test_the_autoscalers_nodes_start_with_the_settings_and_the_token_and_a_dashboard_on_loopback(name):
    config = load(f"{name}.yaml")
    mounted = {Path(there).name: here for there, here in config["file_mounts"].items()}
    assert mounted["ray.env"] == "cluster/ray.env"
    assert mounted["auth_token"] == "~/.ray/auth_token"
    for where in ("head", "worker"):
        start = config[f"{where}_start_ray_commands"][-1]
        assert re.match(r"set -a; \. \S*ray\.env; set \+a;", start)
        assert "ray start" in start
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]
    header = (CLUSTER / f"{name}.yaml").read_text().split("cluster_name:")[0]
    assert header.index("export RAY_AUTH_MODE=token") < header.index("ray up")


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_spot_hosts_have_a_driver_and_room_and_listen_for_their_notice(name):
    config = load(f"{name}.yaml")
    assert config["file_mounts"]["/home/ray/notice.py"] == "cluster/notice.py"
    assert f"python /home/ray/notice.py {name} $RAY_HEAD_IP:6379" in config["worker_start_ray_commands"][-1]
    text = json.dumps(config)
    sizes = [int(size) for size in re.findall(r'(?:VolumeSize|diskSizeGb)": (\d+)', text)]
    assert len(sizes) == 2
    assert min(sizes) >= 200
    assert text.count('"ImageId": "IMAGE"') == (2 if name == "aws" else 0)  # else Ray takes an old one of its own
    assert ("install-nvidia-driver" in text and "nvidia-smi" in text) == (name == "gcp")


@pytest.mark.parametrize("name", MANIFESTS)
def test_kuberays_schema_takes_the_manifests(name):
    folder = os.environ.get("MEDGAN_SCHEMAS")
    if not folder:
        pytest.skip("MEDGAN_SCHEMAS does not point to KubeRay's schemas")
    schema = json.loads((Path(folder) / f"kuberay-{name}-v1.schema.json").read_text())
    closed = close(schema)
    validator = jsonschema.validators.validator_for(closed)(closed)  # the schema itself is Kubernetes' business
    manifest = load(f"kuberay/{name}.yaml")
    validator.validate(manifest)
    manifest["spec"]["rayVersoin"] = "2"
    with pytest.raises(jsonschema.ValidationError, match="rayVersoin"):
        validator.validate(manifest)


def close(schema):
    """The schema with unknown fields refused, as the API server drops them without a word."""
    if isinstance(schema, dict):
        closed = {key: close(value) for key, value in schema.items()}
        open_ended = "additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields")
        if isinstance(schema.get("properties"), dict) and schema.get("type") == "object" and not open_ended:
            closed["additionalProperties"] = False
        return closed
    return [close(value) for value in schema] if isinstance(schema, list) else schema


def test_kubernetes_takes_the_core_types():
    for document in yaml.safe_load_all((CLUSTER / "kuberay/settings.yaml").read_text()):
        kubernetes_validate.validate(document, "1.31", strict=True)
    for name in MANIFESTS:
        for container, spec in pods(name).items():
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": container}, "spec": spec}
            kubernetes_validate.validate(pod, "1.31", strict=True)


@pytest.mark.parametrize("name", MANIFESTS)
def test_pods_are_not_root_have_limits_probes_shared_storage_and_the_token_from_a_secret(name):
    spec = load(f"kuberay/{name}.yaml")["spec"]
    cluster = spec.get("rayClusterSpec", spec)
    assert cluster["authOptions"] == {"mode": "token", "secretName": "medgan-token"}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert name != "raycluster" or cluster["enableInTreeAutoscaling"] is True
    for role, pod in pods(name).items():
        container = pod["containers"][0]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] != 0
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert container["resources"]["limits"] == container["resources"]["requests"]
        assert (container["resources"]["limits"].get("nvidia.com/gpu") == "1") == (role == "ray-worker")
        if role != "submitter":
            assert container["readinessProbe"]["httpGet"]
            assert container["livenessProbe"]["httpGet"]
            assert container["envFrom"] == [{"configMapRef": {"name": "medgan-ray-env"}}]
            assert "/shared" in {mount["mountPath"] for mount in container["volumeMounts"]}
            # A pod that is ended has the time to save.
            assert pod["terminationGracePeriodSeconds"] > int(ENV["RAY_JOB_STOP_WAIT_TIME_S"])
        if role == "ray-worker":
            drain = {variable["name"]: variable["value"] for variable in container["env"]}[DRAIN]
            assert 60 < int(drain) < pod["terminationGracePeriodSeconds"]
    # The token is in nobody's list of processes.
    assert "--from-file=auth_token=<(openssl" in (CLUSTER / f"kuberay/{name}.yaml").read_text()


def test_ray_knows_the_settings_that_pods_are_ended_by():
    from ray._private import ray_constants

    assert hasattr(ray_constants, DRAIN)


def test_settings_on_kubernetes_are_those_of_ray_env():
    settings = next(yaml.safe_load_all((CLUSTER / "kuberay/settings.yaml").read_text()))["data"]
    assert settings == {key: value for key, value in ENV.items() if key != "RAY_AUTH_MODE"}
    assert ENV["RAY_AUTH_MODE"] == "token"


def test_on_kubernetes_nobody_but_rays_pods_kuberay_and_submitters_reaches_rays_pods():
    documents = list(yaml.safe_load_all((CLUSTER / "kuberay/settings.yaml").read_text()))
    policy = next(document["spec"] for document in documents if document["kind"] == "NetworkPolicy")
    rays = {"matchLabels": {"ray.io/is-ray-node": "yes"}}  # which KubeRay gives to every pod of a cluster
    assert policy["podSelector"] == rays
    assert policy["policyTypes"] == ["Ingress"]
    among, dashboard = policy["ingress"]
    assert among == {"from": [{"podSelector": rays}]}
    submitters, kuberay = dashboard["from"]
    labels = load("kuberay/rayjob.yaml")["spec"]["submitterPodTemplate"]["metadata"]["labels"]
    assert submitters == {"podSelector": {"matchLabels": labels}}
    assert kuberay["podSelector"] == {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}}
    ports = {port["name"]: port["containerPort"] for port in pods("raycluster")["ray-head"]["containers"][0]["ports"]}
    assert dashboard["ports"] == [{"protocol": "TCP", "port": ports["dashboard"]}]


def test_versions_are_those_of_the_requirements_everywhere():
    texts = {path: path.read_text() for path in CLUSTER.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    images = [match for text in texts.values() for match in re.findall(r"rayproject/ray:([\d.]+)-py(\d)(\d+)", text)]
    assert len(images) >= 4
    assert set(images) == {(PINS["ray"], str(sys.version_info.major), str(sys.version_info.minor))}
    assert load("kuberay/raycluster.yaml")["spec"]["rayVersion"] == PINS["ray"]
    assert load("kuberay/rayjob.yaml")["spec"]["rayClusterSpec"]["rayVersion"] == PINS["ray"]
    # Nothing else names a version of torch or ray: what is installed comes from requirements.lock.
    for path, text in texts.items():
        assert not re.search(r"(torch|ray\[?[^\s/:]*)==", text), path
    for name in ("aws", "gcp"):
        config = load(f"{name}.yaml")
        assert config["file_mounts"]["/home/ray/requirements.lock"] == "requirements.lock"
        assert any("--require-hashes -r /home/ray/requirements.lock" in command for command in config["setup_commands"])
    assert "--require-hashes -r /home/ray/medgan/requirements.lock" in texts[CLUSTER / "Dockerfile"]


SRUN = """#!/bin/bash
echo "$SRUN_CPUS_PER_TASK $*" >>"$0.log"
while [[ $1 == --* ]]; do shift; done
case $1 in
hostname) echo 192.0.2.7 ;;
ray) while [ "$1" != -- ]; do shift; done && "${@:2}" ;;
*) "$@" ;;
esac
"""
PYTHON = """#!/bin/bash
trap 'echo saved; exit 130' TERM
echo "driver $*"
while :; do sleep 0.1; done
"""
SCONTROL = """#!/bin/bash
if [ "$1" = requeue ]; then echo "queued $2"; else echo node1; fi
"""


def test_the_slurm_script_ends_the_driver_of_its_own_job_and_no_other(tmp_path):
    """Slurm is stood in for, and so is the driver."""
    (tmp_path / "cluster").mkdir()
    shutil.copy(CLUSTER / "ray.env", tmp_path / "cluster")
    (tmp_path / "token").write_text("token")
    (tmp_path / "token").chmod(0o600)
    for name, text in {"srun": SRUN, "python": PYTHON, "scontrol": SCONTROL}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = {
        **{"PATH": f"{tmp_path}:{os.environ['PATH']}", "TMPDIR": str(tmp_path), "SLURM_SUBMIT_DIR": str(tmp_path)},
        **{"SLURM_JOB_ID": "42", "SLURM_JOB_NODELIST": "node1", "SLURM_CPUS_PER_TASK": "8", "USER": getpass.getuser()},
        **{"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token"), "RAY_TMPDIR": os.environ["RAY_TMPDIR"]},
    }
    other = subprocess.Popen(["python jobs/train.py", "30"], executable=shutil.which("sleep"))
    with open(tmp_path / "said", "w") as said:
        batch = subprocess.Popen([CLUSTER / "slurm.sh", "--preset", "cgan"], env=environment, stdout=said, stderr=said)
    lines = lambda: (tmp_path / "said").read_text().splitlines()
    try:
        until(lambda: lines() or batch.poll() is not None, 20, "the driver to start")
        assert lines() == ["driver jobs/train.py --preset cgan"]
        (cache,) = tmp_path.glob("mg-*")
        assert cache.stat().st_mode & 0o777 == 0o700
        batch.terminate()
        assert batch.wait(20) == 0
        assert lines()[1:] == ["saved", "queued 42"]
        assert other.poll() is None
        assert "8 ray symmetric-run --address 192.0.2.7:20042" in (tmp_path / "srun.log").read_text()
        assert "--num-cpus 8" in (tmp_path / "srun.log").read_text()
        assert not list(tmp_path.glob("mg-*"))
    finally:
        other.kill()
        other.wait()
        batch.kill()
        batch.wait()


@pytest.mark.parametrize("length", [20, 27, 28, 59, 120])
def test_rays_folder_in_a_slurm_job_has_room_for_the_paths_of_its_sockets(tmp_path, length):
    from ray._private.utils import validate_socket_filepath

    (tmp_path / "cluster").mkdir()
    shutil.copy(CLUSTER / "ray.env", tmp_path / "cluster")
    (tmp_path / "token").write_text("token")
    (tmp_path / "token").chmod(0o600)
    srun = 'case "$4 $1" in hostname*) echo 192.0.2.7 ;; *ray) echo "$RAY_TMPDIR" ;; esac'
    scripts = {"srun": srun, "scontrol": "echo node1"}
    for name, text in scripts.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    folder = "/" + "ü" * ((length - 1) // 2) + "u" * ((length - 1) % 2)
    assert len(folder.encode()) == length
    environment = {
        **{"PATH": f"{tmp_path}:{os.environ['PATH']}", "TMPDIR": folder, "SLURM_SUBMIT_DIR": str(tmp_path)},
        **{"SLURM_JOB_ID": "42", "SLURM_JOB_NODELIST": "node1", "SLURM_CPUS_PER_TASK": "8"},
        "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token"),
    }
    done = subprocess.run([CLUSTER / "slurm.sh"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    taken = done.stdout.strip()
    assert re.fullmatch(rf"{folder if length <= 27 else '/tmp'}/mg-[a-z0-9]{{8}}", taken)
    validate_socket_filepath(f"{taken}/ray/session_2026-12-31_23-59-59_999999_4194304/sockets/plasma_store")


def test_no_requirement_is_listed_twice():
    for name in ("requirements.txt", "requirements-dev.txt"):
        lines = (ROOT / name).read_text().splitlines()
        names = [re.match(r"[\w-]+", line)[0].lower() for line in lines if re.match(r"\w", line)]
        assert len(names) > 5
        assert sorted(names) == sorted(set(names)), name


@pytest.mark.parametrize("whose", ["a link", "another user's", "everybody's"])
def test_hosts_do_not_take_a_folder_that_somebody_else_laid_out(tmp_path, monkeypatch, whose):
    folder = tmp_path / "hosts"
    monkeypatch.setenv("MEDGAN_HOSTS", str(folder))
    hosts.main(["status"])  # none is there
    (tmp_path / "elsewhere/disks/host1").mkdir(parents=True)
    if whose == "a link":
        folder.symlink_to(tmp_path / "elsewhere")
    else:
        folder.mkdir(0o755)
        hosts.main(["status"])
    if whose == "another user's":
        monkeypatch.setattr(hosts.os, "geteuid", lambda: folder.stat().st_uid + 1)
    if whose == "everybody's":
        folder.chmod(0o777)
    for action in ("status", "down"):
        with pytest.raises(Refused, match=f"{folder}: is not yours alone; name another folder with MEDGAN_HOSTS"):
            hosts.main([action])
    with pytest.raises(Refused, match="is not yours alone"):
        hosts.Hosts(folder)._network()


def test_clean_leaves_a_users_own_data_and_runs(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    mine, made = ("data/kermany64/manifest.json", "runs/kermany/config.yaml"), ("data/phantom_cxr/a", "runs/demo/b")
    for name in (*mine, *made):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    subprocess.run(["make", "clean"], cwd=tmp_path, check=True, capture_output=True)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"Makefile", *mine}


def tool(name, *arguments):
    return subprocess.run([Path(sys.executable).parent / name, *arguments], capture_output=True, text=True, cwd=ROOT)


def test_shellcheck_has_nothing_to_say(tmp_path):
    scripts = ["cluster/slurm.sh", ".ci/run"]
    checked = tool("shellcheck", "--external-sources", *scripts)
    assert checked.returncode == 0, checked.stdout
    # The commands in the autoscaler's files are shell too.
    for name in AUTOSCALER:
        config = load(f"{name}.yaml")
        for part in ("head_start_ray_commands", "worker_start_ray_commands", "initialization_commands"):
            script = tmp_path / f"{name}-{part}.sh"
            script.write_text("#!/bin/bash\n" + "\n".join(config.get(part, [])) + "\n")
            checked = tool("shellcheck", "--exclude=SC1090,SC1091,SC2086", script)
            assert checked.returncode == 0, checked.stdout
    bad = tmp_path / "bad.sh"
    bad.write_text("#!/bin/sh\ncd $1\n")
    assert tool("shellcheck", bad).returncode == 1


CODE = ("medgan", "tune", "jobs")
PRIVATE = (
    "chest_xray/train/NORMAL/IM-0001.jpeg",
    "data/films/train/00000.parquet",
    "searches/first/trials/000/config.yaml",
    "release/images/0.png",
    "runs/first/checkpoints/000000000064.pt",
    "films.zip",
    "patient.key",
    "medgan/patient.key",
)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A copy of the repository in which somebody works, and the names of what is code in it."""
    folder = tmp_path_factory.mktemp("workplace")
    for part in CODE:
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    code = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    beside = (".rayignore", ".gitignore", ".dockerignore", "pyproject.toml", "README.md", "LICENSE")
    beside = (*beside, "requirements.txt", "requirements.lock")
    for name in beside:
        shutil.copy(ROOT / name, folder)
    for name in PRIVATE:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("a patient's")
    return folder, code | {"pyproject.toml"}


@pytest.mark.parametrize("include_gitignore", [True, False])
def test_what_ray_uploads_with_a_job_is_the_code_and_nothing_of_a_patients(workplace, tmp_path, include_gitignore):
    from ray._private.runtime_env.packaging import create_package

    folder, code = workplace
    create_package(str(folder), tmp_path / "package.zip", include_gitignore=include_gitignore)
    with zipfile.ZipFile(tmp_path / "package.zip") as package:
        assert {name for name in package.namelist() if not name.endswith("/")} == code | {"requirements.txt"}
    assert {"jobs/demo.yaml", "medgan/page.css", "medgan/data/sources/base.py"} <= code


def test_the_image_holds_the_code_and_nothing_of_a_patients(workplace):
    """.dockerignore by Docker's rule: of the patterns that match a file or a folder above it, the last decides."""
    folder, code = workplace
    lines = [line for line in (folder / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]

    def copied(path):
        above = [str(path), *map(str, path.parents)]
        names = [*above, *(f"./{name}" for name in above)]  # so that **/ stands for no folder, too
        matching = [line for line in lines if any(fnmatch.fnmatch(name, line.lstrip("!")) for name in names)]
        return not matching or matching[-1].startswith("!")

    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert {str(path) for path in files if copied(path)} == code | {"requirements.lock", "README.md", "LICENSE"}


def test_hadolint_has_nothing_to_say(tmp_path):
    checked = tool("hadolint", "cluster/Dockerfile")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM debian\nRUN cd /tmp && sudo true\n")
    assert tool("hadolint", bad).returncode != 0


def test_no_file_of_the_repository_holds_a_secret():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no git repository: " + listed.stderr.strip())
    secret = re.compile(
        r"AKIA[0-9A-Z]{16}|-----BEGIN [A-Z ]*PRIVATE KEY|wandb_v1_\w{20,}|\bgh[pousr]_[A-Za-z0-9]{30,}|"
        r"(?i:token|secret|password|api_key)['\"]?\s*[:=]\s*['\"]?[0-9a-f]{32,}"
    )
    for name in listed.stdout.split():
        if (ROOT / name).exists():
            assert not secret.search((ROOT / name).read_bytes().decode(errors="ignore")), name
    for path in CLUSTER.rglob("*.y*ml"):
        assert not re.search(r"(?i)(auth_)?token: *['\"]?\w{16,}", path.read_text()), path


def test_the_interface_is_the_one_that_has_the_address():
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.1") is None
    if "00000000000000000000000000000001" in Path("/proc/net/if_inet6").read_text():
        assert interface_of("::1") == "lo"
    assert interface_of("2001:db8::1") is None


NOTHING: dict[str, float] = {}
SPOT = {"CPU": 8.0, "GPU": 1.0}


@pytest.mark.parametrize(
    ("resources", "asked", "use", "wait", "workers", "unit", "notes"),
    [
        # an autoscaled cluster before its first host
        (NOTHING, Workers(4, 4), "gpu", True, "4", "GPU", ["the cluster has 0 GPUs: waiting for 4"]),
        (NOTHING, Workers(1, 8), "gpu", True, "1-8", "GPU", ["the cluster has 0 GPUs: waiting for 1"]),
        (NOTHING, Workers(2, 2), "cpu", True, "2", "CPU", ["the cluster has 0 CPUs: waiting for 2"]),
        # what there is
        (SPOT, None, "auto", False, "1", "GPU", []),
        (SPOT, Workers(1, 8), "auto", True, "1-8", "GPU", []),
        (SPOT, None, "cpu", False, "1", "CPU", []),
        ({"CPU": 4.0}, None, "auto", False, "1", "CPU", []),
        ({"CPU": 4.0}, Workers(3, 3), "auto", False, "3", "CPU", []),
        ({"GPU": 16.0}, None, "auto", False, "4", "GPU", ["4 of 16 GPUs: global_batch=16 feeds at most 4 workers"]),
    ],
)
def test_what_workers_take_is_decided_by_what_is_asked_and_there(
    tiny, resources, asked, use, wait, workers, unit, notes
):
    placing = placed(resources, asked, use, wait, tiny())
    assert (str(placing.workers), placing.unit, placing.notes) == (workers, unit, notes)


def test_workers_may_take_several_cpus_each_of_one_host(tiny):
    def decided(cpus, asked, *by_host, wait=False, use="auto", **more):
        return placed({"CPU": float(sum(by_host)), **more}, asked, use, wait, tiny(), cpus, by_host)

    assert decided(2, None, 5).workers == Workers(2, 2)
    assert decided(3, None, 5).workers == Workers(1, 1)
    assert decided(2, Workers(1, 8), 3, 3).workers == Workers(1, 8)
    assert decided(None, Workers(1, 8), 3, 3).cpus == 1
    assert decided(1, None, 9).notes == ["this run takes 2 of 9 CPUs: --workers 4 --cpus-per-worker 1 takes more"]
    assert decided(4, None, 9, 1).notes == []
    assert decided(5, None, 9).notes == ["this run takes 5 of 9 CPUs: --cpus-per-worker 9 takes more"]
    assert decided(1, Workers(1, 1), 9).notes == decided(1, Workers(1, 2), 9).notes == []  # as somebody wants it
    assert decided(4, None, 4, 5).notes == decided(1, None, 1, 1).notes == decided(1, None, 9, GPU=1.0).notes == []
    asks = "the cluster has 0 CPUs, room for 0 workers of 3: waiting for 6"
    assert decided(3, Workers(2, 2), wait=True, use="cpu").notes == [asks]
    for words, asked in (
        ("--workers 3 --cpus-per-worker 2: the cluster has 6 CPUs, room for 2 workers of 2", (2, Workers(3, 3), 3, 3)),
        ("the cluster has 2 CPUs, room for 0 workers of 2: fewer --cpus-per-worker, or", (2, None, 1, 1)),
        ("the cluster has 1 CPU, room for 0 workers of 2", (2, Workers(1, 1), 1)),
    ):
        with pytest.raises(Refused, match=words):
            decided(*asked)
    with pytest.raises(Refused, match="--cpus-per-worker 2: these workers compute on a GPU each"):
        decided(2, None, 5, GPU=1.0)


@pytest.mark.parametrize(
    ("by_host", "cpus", "notes"),
    [
        ([1], 1, []),
        ([2], 2, []),
        ([ray_train.MOST_CPUS], ray_train.MOST_CPUS, []),
        ([64], 8, ["this run takes 8 of 64 CPUs: --workers 4 --cpus-per-worker 8 takes more"]),  # global_batch feeds 4
        ([9], 8, ["this run takes 8 of 9 CPUs: --cpus-per-worker 9 takes more"]),
        ([2, 4], 4, ["this run takes 4 of 6 CPUs: --workers 3 --cpus-per-worker 2 takes more"]),
        ([2, 4, 4], 4, ["this run takes 4 of 10 CPUs: --workers 2 --cpus-per-worker 4 takes more"]),
        ([0, 2], 2, []),  # a head that computes nothing
    ],
)
def test_without_gpus_one_worker_has_the_cpus_of_the_largest_host(tiny, by_host, cpus, notes):
    placing = placed({"CPU": float(sum(by_host))}, None, "auto", False, tiny(), None, by_host)
    assert (placing.workers, placing.unit, placing.cpus) == (Workers(1, 1), "CPU", cpus)
    assert placing.notes == notes


@pytest.mark.parametrize(
    ("resources", "asked", "use", "wait", "words"),
    [
        (NOTHING, None, "auto", False, "the cluster has no CPU and no GPU yet: say which to wait for"),
        (NOTHING, Workers(1, 8), "auto", True, "the cluster has no CPU and no GPU yet: say which to wait for"),
        # it may add GPUs, and nobody would know that they were not used
        ({"CPU": 8.0}, Workers(1, 8), "auto", True, "the cluster has no GPU yet: say which to wait for"),
        (NOTHING, None, "gpu", True, "the cluster has no GPU yet: name --workers"),
        (NOTHING, Workers(1, 8), "gpu", False, "--workers 1-8: the cluster has 0 GPUs"),
        ({"CPU": 8.0}, Workers(9, 9), "auto", False, "--workers 9: the cluster has 8 CPUs"),
    ],
)
def test_where_it_cannot_be_decided_what_workers_take_it_has_to_be_said(tiny, resources, asked, use, wait, words):
    with pytest.raises(Refused, match=words):
        placed(resources, asked, use, wait, tiny())


def test_of_workers_that_wait_for_each_other_the_one_that_does_not_say_so_is_named(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(ray_train.time, "monotonic", lambda: now[0])
    roll = Roll()

    def event(kind, rank, group="b"):
        return {"event": kind, "rank": rank, "group": group, "host": f"10.0.0.{rank}", "timeout_s": 60}

    for rank in range(4):
        assert roll.call(event("joined", rank, "a")) == []
    for rank in (2, 0, 1):  # a later group, of fewer
        assert roll.call(event("joined", rank)) == []
    for said in ("progress", "failed"):
        assert roll.call(event(said, 0)) == [event(said, 0)]
        assert roll.call(event(said, 0, "a")) == []  # cut off, and still talking
    assert roll.call(event("joined", 3, "a")) == []
    roll.call(event("waited", 3, "a"))  # a straggler of the group before
    assert roll.missing() == []
    roll.call(event("waited", 0))
    roll.call(event("waited", 2))
    assert roll.missing() == []  # others may still be about to say so
    now[0] = ray_train.PATIENCE_S / 2
    assert roll.missing() == [{"event": "silent", "ranks": {1: "10.0.0.1"}, "timeout_s": 60}]
    assert roll.missing() == []
