"""The engine for a Ray cluster, either a running one or one that is started on this machine. Units are Ray tasks.

The workers get the code of this process (Ray copies the package to them) and work in its folder, PIPELINE_ROOT, which
all machines must see at the same path. If a worker or machine is lost, its unit starts again on another one and resumes
from the files that it had written.
"""

import importlib.util
import logging
import os
import re
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.markup import escape

from pipeline.core import events
from pipeline.core.console import console, say, warn
from pipeline.core.engine import IDLE, Advance, Needs, Outcome, Unit, worker_environment
from pipeline.core.errors import PipelineError, first_line
from pipeline.core.files import PACKAGE, root
from pipeline.core.shortage import WorkerKilled
from pipeline.engines.ray_room import divided, in_words, machines_there
from pipeline.engines.ray_worker import Began, Inbox, NotSeen, do

RETRIES = 3
"""How often a unit is restarted after its worker was lost. Units that fail with an error are not restarted."""
CONNECT = 5.0
"""Seconds in which a cluster must answer."""
STORE = 100 * 2**20
"""Bytes of the object store of a cluster that is started here; units send little data."""
PASSED_ON = ("PIPELINE_INPUT", "PIPELINE_UNTIL", "PYTHONPATH")
INSTALL = "pip install 'ray>=2.50', or, in a clone, pip install '.[ray]'"


class RayEngine:
    """Runs units on a Ray cluster."""

    def __init__(self, address: str | None = None) -> None:
        """Takes the address of a running cluster, host:port or auto; None starts one here before the first unit.

        Raises:
            PipelineError: Ray is not installed, or there is no cluster at the address.
        """
        if importlib.util.find_spec("ray") is None:
            raise PipelineError(f"--engine ray needs Ray, which is not installed: {INSTALL}.")
        if address and address != "auto":
            _check_answers(address)
        self.address = address
        self._inbox: Any = None
        if address:
            self._connect()

    def at_once(self, needs: Needs, count: int) -> int:
        """Returns how many of `count` units with these needs the cluster can run in parallel.

        Raises:
            PipelineError: no machine of the cluster meets the needs of a unit.
        """
        self._connect()
        return max(1, min(count, divided(machines_there(), needs).at_once))

    def run(self, units: Iterable[Unit | None], advance: Advance, count: int | None = None) -> Iterator[Outcome]:
        """Yields the outcome of every unit when it has ended; see Engine."""
        self._connect()
        with _token() as token:
            yield from self._run(iter(units), advance, token)

    def _run(self, units: Iterator[Unit | None], advance: Advance, token: Path) -> Iterator[Outcome]:
        import ray

        running: dict[Any, _Task] = {}
        more = True
        try:
            while True:
                waiting = True
                while more and waiting and _has_room(running):
                    unit = next(units, _END)
                    more, waiting = unit is not _END, unit is not None
                    if isinstance(unit, Unit):
                        task = _Task(unit)
                        running[self._start(task, token)] = task
                if not running and not more:
                    return
                if not running:
                    time.sleep(IDLE)
                    continue
                ready = ray.wait(list(running), timeout=IDLE)[0]
                self._listen(running, advance)  # after the line above, so that all messages of ended units have arrived
                for reference in ready:
                    yield _outcome(running.pop(reference), reference)
        finally:
            for reference in running:
                with suppress(Exception):
                    ray.cancel(reference, force=True)

    # --- the cluster ---

    def _connect(self) -> None:
        """Joins the cluster, or starts one on this machine."""
        if self._inbox is not None:
            return
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        if not ray.is_initialized():
            options = {"address": self.address} if self.address else {"object_store_memory": STORE}
            runtime = {"py_modules": [str(PACKAGE)]}
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            with _own_signals():
                try:
                    context = ray.init(**options, runtime_env=runtime, log_to_driver=False, logging_level=logging.ERROR)
                except Exception as error:  # Ray raises many types
                    raise PipelineError(_not_joined(self.address, first_line(error))) from error
            board = f", dashboard http://{context.dashboard_url}" if context.dashboard_url else ""
            say(f"Ray: {in_words(machines_there())}{board}")
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor: Any = ray.remote(num_cpus=0, scheduling_strategy=here)  # type: ignore[call-overload]
        self._inbox = actor(Inbox).remote()

    def _start(self, task: "_Task", token: Path) -> Any:
        """Starts a unit on the cluster and returns its reference."""
        import ray

        unit = task.unit
        plan = divided(machines_there(), unit.needs)
        environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        environment |= {"PIPELINE_ROOT": str(root()), **worker_environment(plan.threads, plan.cores)}
        options: dict[str, Any] = {"num_cpus": plan.cores, "num_gpus": plan.gpus, "max_retries": RETRIES}
        options |= {"runtime_env": {"env_vars": environment}, "name": unit.title}
        remote: Any = ray.remote(**options)
        settings = task.key, self._inbox, plan.threads, str(token), console.quiet
        return remote(do).remote(unit.work, unit.argument, *settings)

    def _listen(self, running: dict[Any, "_Task"], advance: Advance) -> None:
        """Handles the messages that the units have sent since the last call."""
        import ray

        assert self._inbox is not None
        tasks = {task.key: task for task in running.values()}
        for key, message in ray.get(self._inbox.take.remote()):
            if key not in tasks:
                continue
            if isinstance(message, str):
                events.relay(message)
            elif isinstance(message, Began):
                tasks[key].begins(message.host)
            else:
                advance(*message)


@dataclass
class _Task:
    """A unit on the cluster."""

    unit: Unit
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    hosts: list[str] = field(default_factory=list)

    def begins(self, host: str) -> None:
        """Records the host on which the unit starts; warns if it is not the first start."""
        self.hosts.append(host)
        if len(self.hosts) > 1:
            warn(
                f"[yellow]  {escape(self.unit.title)}: its worker on {escape(self.hosts[-2])} was lost; it resumes "
                f"from its last files on {escape(host)}[/yellow]"
            )


_END: Any = object()


def _has_room(running: dict[Any, _Task]) -> bool:
    """Returns whether the cluster currently has room for another unit. Units of a lost machine wait inside Ray."""
    if not running:
        return True
    try:
        return len(running) < divided(machines_there(), next(iter(running.values())).unit.needs).at_once
    except PipelineError:
        return False


def _outcome(task: _Task, reference: Any) -> Outcome:
    """Returns the outcome of a unit.

    Raises:
        PipelineError: a worker does not see the shared folder, so that all other units would fail too.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError, RuntimeEnvSetupError

    try:
        result, error = ray.get(reference)
    except RayTaskError as failed:  # raised before the unit's own code, e.g. if a worker lacks a package
        error = PipelineError(f"{task.unit.title} could not start on a worker: {first_line(failed.cause)}.")
        return Outcome(task.unit, error=error)
    except RuntimeEnvSetupError as failed:
        raise PipelineError(f"Ray could not copy the package to its workers: {first_line(failed)}.") from None
    except RayError as failed:
        lost = WorkerKilled(
            f"{task.unit.title}: its process was lost {RETRIES + 1} times, on {', '.join(dict.fromkeys(task.hosts))} "
            f"({first_line(failed).rstrip('.')}; it was killed, most likely for want of memory, or its machine was)"
        )
        return Outcome(task.unit, error=lost)
    if isinstance(error, NotSeen):
        raise PipelineError(str(error))
    return Outcome(task.unit, result, error)


# --- joining a cluster -----------------------------------------------------------------------------------------------


def _check_answers(address: str) -> None:
    if address.startswith("ray://"):
        raise PipelineError(
            f"--ray-address {address} is the address of Ray's client server; expected the address of the head itself, "
            "HOST:PORT as `ray start --head` prints it (port 6379 by default), on a machine of the cluster."
        )
    form = re.fullmatch(r"(?P<host>[^\s/:]+|\[[0-9a-fA-F:]+\]):(?P<port>\d+)", address)
    if form is None or not 0 < int(form["port"]) < 2**16:
        raise PipelineError(f"--ray-address {address}: expected HOST:PORT, as `ray start --head` prints it, or auto.")
    try:
        with socket.create_connection((form["host"].strip("[]"), int(form["port"])), CONNECT) as connected:
            if os.environ.get("RAY_USE_TLS") != "1" and not _speaks_grpc(connected):
                raise PipelineError(_no_cluster(address, "another service uses this port"))
    except OSError as error:
        raise PipelineError(_no_cluster(address, error.strerror or str(error))) from None


def _speaks_grpc(connected: socket.socket) -> bool:
    """Returns whether the server speaks gRPC, as Ray's head does. Ray itself would try for minutes."""
    settings = b"\0\0\0\x04\0\0\0\0\0"  # an empty SETTINGS frame, which HTTP/2 requires from both sides
    connected.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings)
    connected.settimeout(CONNECT)
    return connected.recv(9)[3:4] == b"\x04"


def _not_joined(address: str | None, why: str) -> str:
    if address is None:
        return f"Ray could not be started on this machine: {why}"
    if address == "auto":
        return _no_cluster(address, "none runs on this machine")
    return (
        f"--ray-address {address}: a server answers there, but Ray could not join it ({why.rstrip('.')}). Expected the "
        f"head of a cluster with the same versions of Python and Ray (here {version('ray')}). If it requires a token, "
        "set RAY_AUTH_MODE=token, with the token of its head (`ray get-auth-token`)."
    )


def _no_cluster(address: str, why: str) -> str:
    return (
        f"--ray-address {address}: no Ray cluster answers there ({why.rstrip('.')}). Start one with `ray start --head` "
        "and give the address that it prints, or omit --ray-address to start a cluster on this machine."
    )


@contextmanager
def _own_signals() -> Iterator[None]:
    """Restores the command's handlers of SIGINT and SIGTERM, which Ray replaces with its own."""
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items() if main else ():
            signal.signal(number, handler)


@contextmanager
def _token() -> Iterator[Path]:
    """Yields a temporary file by which a worker can check that it sees the shared folder."""
    path = root() / "work" / f".seen-by-workers-{uuid.uuid4().hex}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
