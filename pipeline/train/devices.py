"""One training on several devices: one process per device, connected by Lightning's DDP.

From a plain command or inside a worker process, the processes are spawned here, because Lightning's own strategies do
not fit. `ddp` starts the command line again for each device, which would decode and split again and wait for the lock
of this run. `ddp_spawn` and `ddp_notebook` send the whole Trainer with its progress bar to other processes and back. As
with torchrun, the spawning process does not train itself. It relays the output of the first device, and when one
process ends, it ends the others, even if they are waiting inside NCCL.

If torchrun or SLURM started the command on all devices, its first process runs the command, and the others only take
part in its trainings.
"""

import multiprocessing
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import connection
from typing import Any

import torch
from torch import distributed

from pipeline.core import events
from pipeline.core.config.training import TrainSettings
from pipeline.core.console import console, say
from pipeline.core.errors import PipelineError
from pipeline.core.interruption import end_with_parent, end_worker_quietly, held_back, of_worker
from pipeline.core.launch import LOG_LEVEL, Launched, launched
from pipeline.core.shortage import WorkerKilled, sentence
from pipeline.networks.device import Compute

LISTEN = 0.2
"""Seconds between two checks for messages of the processes."""
SETTLE = 2.0
"""Seconds to wait until a killed process is known to have ended, after another process lost its connection to it."""
PATIENCE = timedelta(days=30)
"""How long the other processes of torchrun wait for the next training, e.g. while images are decoded."""

Show = tuple[Any, Any, int]
"""The progress bar, its task, and the number of trainings that come after this one."""


@dataclass(frozen=True)
class Place:
    """The number of this process within a training; by default there is only one process."""

    rank: int = 0
    devices: int = 1
    """The number of devices on all machines."""
    spawned: bool = False
    """Whether this module started the process."""


Work = Callable[..., None]
"""A module-level function that takes the arguments of a job, then Show and Place."""


def check(settings: TrainSettings, compute: Compute) -> None:
    """Checks that there are as many devices and processes as the recipe requires.

    Raises:
        PipelineError: there are fewer devices, or another number of processes.
    """
    required, others = settings.devices * settings.num_nodes, launched()
    settings_text = f"train.devices is {settings.devices} and train.num_nodes {settings.num_nodes}"
    if others and others.processes != required:
        raise PipelineError(
            f"{others.by} started {others.processes} processes, but {settings_text}, which requires {required}: set "
            "train.devices to the number of processes per machine and train.num_nodes to the number of machines."
        )
    if others and settings.parallel > 1:
        raise PipelineError(
            f"train.parallel is {settings.parallel}, but {others.by} has started one process per device, and all of "
            "them train one fold together: set train.parallel=1."
        )
    if settings.num_nodes > 1 and not others:
        raise PipelineError(
            f"{settings_text}, but this command was started on one machine only: start it on every machine with srun "
            f"--ntasks-per-node={settings.devices} or torchrun --nnodes={settings.num_nodes} "
            f"--nproc-per-node={settings.devices} … -m pipeline, in a folder that all machines share."
        )
    available, kind = _devices(compute)
    if settings.devices > available:
        raise PipelineError(
            f"train.devices is {settings.devices}, but this machine has {available} {kind}{'s' * (available != 1)}: "
            f"set it to at most {available}."
        )


def everywhere(work: Work, job: tuple[Any, ...], show: Show, settings: TrainSettings, compute: Compute) -> None:
    """Calls `work(*job, show, place)` in one process per device, and returns when all processes have ended.

    Only the first process shows progress, and its output is printed here.

    Raises:
        PipelineError: a process failed or was killed; all processes have ended.
        Interrupted: a process received SIGINT or SIGTERM, which is treated as if this process had received it (in a
            notebook, KeyboardInterrupt).
    """
    global _training
    check(settings, compute)
    devices = settings.devices * settings.num_nodes
    if not launched():
        _spawn(work, job, show, devices, compute)
        return
    if not distributed.is_initialized():
        raise PipelineError(
            "training in a worker process cannot be combined with torchrun or SLURM, which have started one process "
            "per device: train the folds one after another."
        )
    _announce((work, job, devices))
    _training = True
    work(*job, show, Place(0, devices))
    _training = False


# --- spawning processes ----------------------------------------------------------------------------------------------


def _spawn(work: Work, job: tuple[Any, ...], show: Show, devices: int, compute: Compute) -> None:
    context = multiprocessing.get_context("spawn")  # forking does not work after CUDA or OpenMP have started
    queue = context.SimpleQueue()
    say(f"  starting {devices} processes, one per device, which train this fold together")
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "NODE_RANK": "0"}
    threads = max(1, torch.get_num_threads() // devices)
    processes: list[Any] = []
    try:
        for rank in range(devices):
            place = Place(rank, devices, spawned=True)
            options = (work, job, show[1:], place, address, threads, compute.accelerator, queue, console.quiet)
            process = context.Process(target=_take_part, args=options)
            with held_back(), _quiet_torch():
                process.start()
                processes.append(process)
        _listen(processes, queue, show[0])
    finally:
        for process in processes:
            process.kill()
            process.join()


def _listen(processes: list[Any], queue: Any, progress: Any) -> None:
    """Relays the messages of the processes until all have ended without an error."""
    running = processes
    while running:
        connection.wait([process.sentinel for process in running], LISTEN)
        running = [process for process in processes if process.exitcode is None]
        while not queue.empty():  # after the line above, so that the queue holds all messages of ended processes
            message = queue.get()
            if isinstance(message, PipelineError):
                raise message
            if isinstance(message, Exception):
                _wait_for_killed(processes)  # the others only see that a killed process does not answer
                raise message
            events.relay(message) if isinstance(message, str) else progress.advance(*message)
        _raise_for_killed(processes)


def _wait_for_killed(processes: list[Any]) -> None:
    end = time.monotonic() + SETTLE
    while time.monotonic() < end:
        _raise_for_killed(processes)
        time.sleep(LISTEN / 4)


def _raise_for_killed(processes: list[Any]) -> None:
    for rank, process in enumerate(processes):
        if interruption := of_worker(process.exitcode or 0):
            raise interruption
        if process.exitcode:
            killed = WorkerKilled.of(f"the process of device {rank + 1} of {len(processes)}", process.exitcode)
            raise PipelineError(sentence(killed, lower="lower train.batch_size or train.workers"))


@contextmanager
def _quiet_torch() -> Iterator[None]:
    """Makes torch log only errors in processes that are started in this context."""
    before = os.environ.get(LOG_LEVEL)
    os.environ.setdefault(LOG_LEVEL, "ERROR")
    yield
    if before is None:
        del os.environ[LOG_LEVEL]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _devices(compute: Compute) -> tuple[int, str]:
    """Returns the number of devices of this machine, and their kind."""
    if compute.accelerator == "cuda":
        return torch.cuda.device_count(), "GPU"
    if compute.accelerator == "mps":
        return 1, "Apple GPU"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores, "CPU core"


# --- inside a spawned process ----------------------------------------------------------------------------------------


class _Relay:
    """Replaces the console's file and the progress bar, and sends their input to the spawning process."""

    relays = True
    """Whether events are sent the same way."""

    def __init__(self, queue: Any) -> None:
        self.queue = queue

    def write(self, text: str) -> int:
        self.queue.put(text)
        return len(text)

    def flush(self) -> None:
        pass

    def advance(self, task: Any, share: float) -> None:
        self.queue.put((task, share))


def _take_part(
    work: Work, job: tuple[Any, ...], shown: tuple[Any, int], place: Place, address: dict[str, str], threads: int,
    accelerator: str, queue: Any, quiet: bool,
) -> None:  # fmt: skip
    end_worker_quietly()
    end_with_parent()
    relay = _Relay(queue)
    console.file, console.quiet = relay, quiet or place.rank > 0  # type: ignore[assignment]
    os.environ.update(address, LOCAL_RANK=str(place.rank))
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the machine's own name may not resolve
    torch.set_num_threads(threads)
    if accelerator == "cuda":
        torch.cuda.set_device(place.rank)  # from here on, `cuda` without a number is this device
    try:
        work(*job, (relay, *shown), place)
    except Exception as error:
        error.add_note(traceback.format_exc())  # shown for errors other than PipelineError
        queue.put(error)


def leave(place: Place) -> None:
    """Destroys the process group if the processes were started for this training only.

    All processes of the training call it at about the same time.
    """
    if place.spawned:
        distributed.destroy_process_group()


# --- processes started by torchrun or SLURM --------------------------------------------------------------------------


@contextmanager
def joined() -> Iterator[bool]:
    """Connects the processes that torchrun or SLURM started, and yields whether this is the first process.

    The first process runs the command. The others take part in its trainings, and the body of their `with` statement
    starts when the command has ended.
    """
    process = launched()
    assert process is not None
    _connect(process)
    if process.rank:
        console.quiet = True
        while (announced := _announce(None)) is not None:
            work, job, devices = announced
            work(*job, (None, None, 0), Place(process.rank, devices))
        yield False
        return
    try:
        yield True
    finally:
        if not _training:  # otherwise the others are inside a training, and torchrun or SLURM ends them
            with suppress(RuntimeError):  # the others were interrupted too
                _announce(None)
                distributed.destroy_process_group()


_waiting_room: Any = None
"""The process group in which all processes wait for the next training."""
_training = False
"""Whether the other processes are taking part in a training."""


def _connect(process: Launched) -> None:
    global _waiting_room
    if process.by == "SLURM":
        from lightning.fabric.plugins.environments import SLURMEnvironment

        slurm = SLURMEnvironment()  # knows the first machine and a port
        os.environ.update(MASTER_ADDR=slurm.main_address, MASTER_PORT=str(slurm.main_port))
        os.environ.update(RANK=str(process.rank), WORLD_SIZE=str(process.processes))
    gpu = torch.cuda.is_available()
    if gpu and process.local_rank < torch.cuda.device_count():  # `check` reports if there are too few
        torch.cuda.set_device(process.local_rank)
    distributed.init_process_group("nccl" if gpu else "gloo")
    _waiting_room = distributed.new_group(backend="gloo", timeout=PATIENCE)


def _announce(training: Any) -> Any:
    """Sends a training, or None at the end, from the first process to the others, and returns it on all."""
    values = [training]
    distributed.broadcast_object_list(values, group=_waiting_room)
    return values[0]
