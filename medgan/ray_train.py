"""The seam to Ray: one training run as a TorchTrainer job.

Ray owns placement, process groups and restarts. What a run is lies in its own folder: after a restart every rank
reads the newest checkpoint there, so nothing of Ray's is needed to go on.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from medgan.config import Config, Refused
from medgan.folder import RunFolder
from medgan.ray_connect import interface_of

Event = dict[str, Any]
TIMEOUT_S = 900
"""How long workers wait for one that does not answer."""
PATIENCE_S = 5.0
"""How long a worker that waited in vain stays, so that the others can say so too before all are ended."""
MOST_CPUS = 8
"""Of a worker for which nobody said how many. Two threads were measured to be faster than one, more were not."""
RESIZE_S = 30.0
"""How often a run with a range of workers looks for hosts that joined."""
GROUP = "MEDGAN_GROUP"
"""In the environment of workers: which of the groups that Ray starts one after the other they are of."""


@dataclass(frozen=True)
class Workers:
    """How many training workers: a number, or a range within which the run grows and shrinks with the cluster."""

    low: int
    high: int

    @staticmethod
    def parse(text: str) -> Workers:
        """'2' or '1-3'. Raises ValueError."""
        low, dash, high = text.partition("-")
        if not low.isdigit() or (dash and not high.isdigit()):
            raise ValueError(f"--workers {text}: give a number such as 2, or a range such as 1-3")
        workers = Workers(int(low), int(high or low))
        if not 1 <= workers.low <= workers.high:
            raise ValueError(f"--workers {text}: must be at least 1, and a range must not fall")
        return workers

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}-{self.high}"


def taken(resources: Mapping[str, float], use: str, such_as: str, wait: bool = False) -> tuple[str, int]:
    """(what is taken, GPU or CPU, and how many there are now). use: auto (GPUs where there are any), gpu or cpu.

    Ray does not tell what an autoscaler could add, so where one is to `wait` for it, or nothing is there yet, it has to
    be said: then raises Refused, with `such_as` for an example.
    """
    have = {unit: int(resources.get(unit, 0)) for unit in ("GPU", "CPU")}
    if use == "auto" and not have["GPU"] and (wait or not have["CPU"]):
        there = "no GPU yet" if have["CPU"] else "no CPU and no GPU yet"
        raise Refused(f"the cluster has {there}: say which to wait for, such as --use gpu {such_as}")
    unit = ("GPU" if have["GPU"] else "CPU") if use == "auto" else use.upper()
    return unit, have[unit]


@dataclass(frozen=True)
class Placing:
    """What a training takes of a cluster: workers, each of a GPU or of so many CPUs with a thread each."""

    workers: Workers
    unit: str
    """GPU or CPU."""
    cpus: int
    notes: Sequence[str] = ()
    """What a person should know of it."""


def placed(
    resources: Mapping[str, float],
    asked: Workers | None,
    use: str,
    wait: bool,
    config: Config,
    cpus: int | None = None,
    by_host: Sequence[int] = (),
) -> Placing:
    """What a training takes of what the cluster has now.

    asked: None for every GPU; on CPUs for two workers of `cpus` each or, without those either, for one that has all
    CPUs, up to MOST_CPUS, of the host with most: threads wait less for each other than workers do. cpus: None for one
    where `asked` is given. use: as for `taken`. wait: for those that an autoscaler has yet to add. by_host: the CPUs of
    every host, since a worker takes those of one. Raises Refused.
    """
    unit, there = taken(resources, use, "--workers 1-8 --wait", wait)
    if unit == "GPU" and (cpus or 1) > 1:
        raise Refused(f"--cpus-per-worker {cpus}: these workers compute on a GPU each; leave it out, or --use cpu")
    largest = max(by_host, default=there)
    most, notes, said = config.most_workers, [], cpus is not None
    count, each, has = there, "", f"the cluster has {there} {unit}{'s'[: there != 1]}"
    if unit == "CPU" and asked is None and cpus is None:
        count, cpus = min(1, there), min(largest, MOST_CPUS)
    elif (cpus := cpus or 1) > 1:
        count, each = sum(host // cpus for host in by_host), f" --cpus-per-worker {cpus}"
        has += f", room for {count} worker{'s'[: count != 1]} of {cpus}"
    if asked is None:
        if not count:
            has = has if there else f"the cluster has no {unit}"
            fewer = "fewer --cpus-per-worker, or " if cpus > 1 else ""
            raise Refused(f"{has}{' yet' if wait else ''}: {fewer}name --workers, and --wait if more come")
        number = count if unit == "GPU" else min(2, count)
        if number > most:
            what = f"{unit}s" if cpus == 1 else "workers"
            fed = f"{most} worker{'s'[: most != 1]}"
            notes.append(f"{most} of {number} {what}: global_batch={config.global_batch} feeds at most {fed}")
        asked = Workers(min(number, most), min(number, most))
        widths = [cpus] if said else range(cpus, 0, -1)
        rooms = [(min(most, sum(host // width for host in by_host)), width) for width in widths]
        ways = [rooms[0], (asked.high, largest // asked.high), *rooms[1:]]
        better = next((way for way in ways if way[0] * way[1] > asked.high * cpus), None)
        if unit == "CPU" and better:
            flags = f"--workers {better[0]} " * (better[0] != asked.high) + f"--cpus-per-worker {better[1]}"
            notes.append(f"this run takes {asked.high * cpus} of {there} CPUs: {flags} takes more")
    if asked.low > count:
        if not wait:
            raise Refused(f"--workers {asked}{each}: {has}")
        notes.append(f"{has}: waiting for {asked.low * cpus}")
    return Placing(asked, unit, cpus, notes)


@dataclass
class Outcome:
    """How a run ended: the last event of each kind (`done`, `stopped`, or `failed` with a reason), or Ray's error."""

    events: dict[str, Event] = field(default_factory=dict)
    error: str | None = None


def fit(
    config: dict[str, Any],
    data: str,
    out: str,
    workers: Workers,
    on_event: Callable[[Event], None],
    init: str | None = None,
    max_failures: int = 3,
    owner: str | None = None,
    timeout_s: int = TIMEOUT_S,
    interrupt: Interrupt | None = None,
    gpu: bool = False,
    until: int | None = None,
    cpus: int = 1,
) -> Outcome:
    """Train on the connected cluster until done; on_event is called here, in the driver, with what the workers say.

    config: a validated config as plain types. A worker or host that dies is replaced, and the run goes on from the
    newest checkpoint in `out`, up to max_failures times without a new one. owner: whoever holds the run's lease.
    timeout_s: how long the workers wait for one that does not answer. interrupt: what asks the run to stop; Ctrl-C
    and SIGTERM if none is given. until: images after which it ends this time. Workers(0, 0) trains in this process.
    gpu: whether a worker takes a GPU, also one that an autoscaler has to add. cpus: of each worker without a GPU, which
    has as many threads.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    outcome = Outcome()
    # On this host: whatever host dies, the driver and the workers that are left can still talk.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    queue, orders = (Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here}) for _ in range(2))
    # Ray keeps notes of its own about a run; all that matters is in `out`, so they are thrown away.
    notes = f"{out}/.ray"
    payload = {"config": config, "data": data, "out": out, "queue": queue, "orders": orders, "init": init}
    payload |= {"owner": owner, "began": time.time(), "timeout_s": timeout_s, "until": until, "cpus": cpus}
    fixed = workers.low == workers.high
    if not fixed:  # Ray's minute: so long it would wait for the place of a host that has just died
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "5")

    def start() -> Training:
        trainer = TorchTrainer(
            train_worker,
            train_loop_config=payload,
            torch_config=torch_config(gpu, timeout_s),
            scaling_config=ScalingConfig(
                num_workers=workers.low if fixed else (workers.low, workers.high),
                use_gpu=gpu,
                resources_per_worker=None if gpu else {"CPU": cpus},
                elastic_resize_monitor_interval_s=RESIZE_S,
            ),
            run_config=RunConfig(
                name=f"medgan-{os.getpid()}-{uuid.uuid4().hex[:8]}",
                storage_path=notes,
                failure_config=FailureConfig(max_failures=max_failures),
            ),
        )
        training = Training(trainer)
        training.start()
        return training

    folder, roll = RunFolder(out), Roll()
    interrupt, told = interrupt or Interrupt(), False
    saved, training = max(folder.checkpoints(), default=0), start()

    def again() -> bool:
        """Start once more where workers died too often for Ray, but got further than the last time."""
        nonlocal training, saved
        if outcome.events.keys() & {"done", "stopped", "failed"} or told or training.error is None:
            return False
        try:
            before, saved = saved, max(folder.checkpoints(), default=0)
        except OSError as error:
            training.error += f"; {out} cannot be read: {error.strerror or error}"
            return False
        if saved > before:
            training = start()
        return saved > before

    with interrupt, nullcontext() if fixed else Lookout():
        while (event := _next(queue)) or training.is_alive() or again():
            if interrupt.asked and not told:
                told = True
                on_event({"event": "stopping"})
                orders.put("stop")
            for shown in roll.call(event) if event else roll.missing():
                outcome.events[shown["event"]] = shown
                on_event(shown)
            if outcome.events.get("failed", {}).get("group") in roll.over:
                del outcome.events["failed"]  # others went on
    outcome.error = training.error
    try:
        folder.delete(".ray")
    except OSError as error:  # how the run ended matters more
        on_event({"event": "storage", "reason": f"{notes} cannot be removed: {error.strerror or error}"})
    return outcome


def _next(queue: Queue) -> Event | None:
    """The next event, or None after half a second without one."""
    try:
        return queue.get(timeout=0.5)
    except Empty:
        return None


class Roll:
    """Which workers there are and which of them waited in vain, so that the silent one can be named.

    Workers that wait for one in a collective all give up at about the same time, and say so; it does not. Once workers
    of a new group have joined, what those before still say no longer counts: they may have been cut off for long.
    """

    def __init__(self) -> None:
        self.group = ""
        self.over: set[str] = set()
        """Groups that were given up."""
        self.joined: dict[int, str] = {}
        self.waited: set[int] = set()
        self.since = 0.0

    def call(self, event: Event) -> list[Event]:
        """Take an event; those of the roll itself, and of groups that were given up, are kept back."""
        if event["group"] in self.over:
            return []
        if event["event"] == "joined":
            if event["group"] != self.group:
                self.over.add(self.group)
                self.group, self.joined, self.waited = event["group"], {}, set()
            self.joined[event["rank"]] = event["host"]
        elif event["event"] == "waited":
            self.since = self.since if self.waited else time.monotonic()
            self.waited.add(event["rank"])
            self.timeout_s = event["timeout_s"]
        else:
            return [event]
        return []

    def missing(self) -> list[Event]:
        """Once all that wait have had the time to say so: who does not answer."""
        if not self.waited or time.monotonic() - self.since < PATIENCE_S / 2:
            return []
        silent = {rank: host for rank, host in self.joined.items() if rank not in self.waited}
        self.waited = set()
        return [{"event": "silent", "ranks": silent, "timeout_s": self.timeout_s}]


class Lookout(threading.Thread):
    """Within it, Ray's resource coordinator is told at once when a host has gone or come.

    By itself the coordinator looks every 20 s, and until then Ray Train goes on trying to start as many workers as
    there were before. In a thread of its own: a head that does not answer must not keep the driver from its events.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.alive: set[str] = set()
        self.over = threading.Event()

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *_: object) -> None:
        self.over.set()

    def run(self) -> None:
        while not self.over.wait(1.0):
            self.look()

    def look(self) -> None:
        before, self.alive = self.alive, {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        if self.alive == before:
            return
        try:
            coordinator = ray.get_actor("AutoscalingCoordinator", namespace="AutoscalingCoordinator")
        except ValueError:  # nobody has asked it for anything yet: it will look when it starts
            return
        coordinator.get_reserved_resources.remote(requester_id="", recompute=True)


class Interrupt:
    """Within it, the first Ctrl-C, SIGTERM or SIGHUP is only noted, and a second one ends the process at once. A SIGHUP
    that nohup has ignored stays so.

    An exception raised in the midst of one of Ray's calls can end the process without a word.
    """

    def __init__(self) -> None:
        self.asked = False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue
            self.before[number] = signal.signal(number, self._note)

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        if self.asked:
            os._exit(128 + number)
        self.asked = True


class Training(threading.Thread):
    """trainer.fit in a thread of its own, so that Ctrl-C stays ours: in the main thread Ray takes it and exits 0."""

    def __init__(self, trainer: Any) -> None:
        super().__init__(daemon=True)
        self.trainer = trainer
        self.error: str | None = None

    def run(self) -> None:
        try:
            self.trainer.fit()
        except Exception as error:  # shown by whoever started the run
            self.error = " ".join(str(error).split()) or type(error).__name__


def torch_config(gpu: bool, timeout_s: int) -> Any:
    """How the workers' process group is made: over the interface that owns the address by which Ray knows the host, and
    with a store that answers there alone.

    By default gloo takes the address that the host's name stands for, which is often a loopback one, and torch's store
    answers whoever reaches any interface.
    """
    from ray.train.torch import TorchConfig

    parent: Any = TorchConfig().backend_cls

    class OwnInterface(parent):
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            addresses = worker_group.execute(prepared, uuid.uuid4().hex)
            if len(addresses) == 1:
                return  # nobody to talk to
            store = worker_group.execute_single(0, opened_store, len(set(addresses)) == 1)
            asked = (backend_config.backend, len(addresses), store, timeout_s)
            ray.get([worker_group.execute_single_async(i, joined, i, *asked) for i in range(len(addresses))])

        def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
            """Nothing: the processes are ended next, and to leave the group in good order one would have to wait for
            those that hang or are gone."""

    @dataclass
    class Config(TorchConfig):
        backend_cls = OwnInterface

    return Config(backend="nccl" if gpu else "gloo", timeout_s=timeout_s)


def prepared(group: str) -> str:
    """On a worker before its process group is made: note which one, and tell gloo and NCCL the interface; what the
    user has set stays. Returns the address by which Ray knows this host."""
    import medgan.distributed  # noqa: F401 - its own imports have to come first, see `leave`

    os.environ[GROUP] = group
    address = str(ray.util.get_node_ip_address())
    name = interface_of(address)
    if name is not None:
        for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(variable, name)
    return address


def opened_store(one_host: bool) -> str:
    """On rank 0: open what the ranks find each other by."""
    from medgan.distributed import open_store

    session = ray._private.worker._global_node.get_session_dir_path()
    return open_store(None if one_host else ray.util.get_node_ip_address(), session)


def joined(rank: int, backend: str, size: int, store: str, timeout_s: int) -> None:
    """On every worker: make the process group."""
    from medgan.distributed import join

    join(backend, rank, size, store, timeout_s)


def train_worker(payload: dict[str, Any]) -> None:
    """What Ray runs on every worker. An end that a restart cannot mend is an event, not an exception."""
    import ray.train
    import ray.train.torch
    import torch

    from medgan import run
    from medgan.config import validate
    from medgan.data.cache import closing_cache
    from medgan.distributed import World, leave
    from medgan.folder import CheckpointError, Stuck
    from medgan.lease import Lost
    from medgan.loop import Diverged

    device = ray.train.torch.get_device()
    world = World.current(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # object collectives use the current device
    else:
        torch.set_num_threads(payload["cpus"])  # whatever OMP_NUM_THREADS says where Ray was started
    queue, group = payload["queue"], {"rank": world.rank, "group": os.environ.get(GROUP, "")}

    sent: Any = None

    def tell(event: Event) -> None:
        nonlocal sent
        sent = queue.actor.put.remote({"time": time.time(), "workers": world.size, **group, **event}, None)

    def say(event: Event) -> None:
        if world.first:
            tell(event)

    notice: Any = None

    def noticed() -> bool:
        """Whether Ray was told, since the last call, that a host of this run will be taken away."""
        nonlocal notice
        before, notice = notice, ray.train.get_preemption_info()
        return notice is not None and notice != before

    tell({"event": "joined", "host": ray.util.get_node_ip_address(), "threads": torch.get_num_threads()})
    try:
        config = validate(payload["config"])
        stopping = lambda: not payload["orders"].empty()
        given = [payload[name] for name in ("init", "owner", "began", "until")]
        with closing_cache():
            run.train(config, payload["data"], payload["out"], world, say, stopping, noticed, *given)
    except (Diverged, Lost, Stuck, Refused, CheckpointError) as error:
        if not world.first and not isinstance(error, Diverged | Lost | Stuck):
            raise  # it is this rank's alone: ended quietly, the others would wait for it
        say({"event": "failed", "kind": type(error).__name__, "reason": str(error)})
    except RuntimeError as error:
        if re.search("timed? ?out", str(error), re.IGNORECASE):
            tell({"event": "waited", "timeout_s": payload["timeout_s"]})
            time.sleep(PATIENCE_S)
        raise
    finally:
        # Once all workers have returned the driver listens no longer: what is said last must have arrived. Where the
        # driver itself is gone nobody listens.
        with suppress(RayActorError, GetTimeoutError):
            ray.get(sent, timeout=30)
    leave()  # after an error the process is ended as it is: others may hang
