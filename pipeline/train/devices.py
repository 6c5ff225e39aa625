"""One training on several devices: one process per device, which Lightning's DDP joins to one training.

From a plain command, or inside a worker process, the processes are spawned here: Lightning's own ways do not fit.
Its `ddp` starts the command line again, once per device, which would decode and split again and wait for the lock of
this run; `ddp_spawn` and `ddp_notebook` send the whole Trainer to other processes and back, with its progress bar. As
torchrun does, this process trains nothing itself: it passes on what the first device says, and when one process ends
it ends the others, even where they wait for it inside NCCL.

Where torchrun or SLURM started the command on all devices, its first process is the command, and the others only take
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
"""Seconds between two looks at what the processes say."""
SETTLE = 2.0
"""Seconds in which a process that was killed has ended, after another one has lost its connection to it."""
PATIENCE = timedelta(days=30)
"""How long the other processes of torchrun wait for the next training, e.g. while images are decoded."""

Show = tuple[Any, Any, int]
"""Progress bar, its task, and how many trainings come after this one."""


@dataclass(frozen=True)
class Place:
    """Which process of a training this is; by default the only one."""

    rank: int = 0
    devices: int = 1
    """On all machines."""
    spawned: bool = False
    """Whether this module started it."""


Work = Callable[..., None]
"""A function of a module: takes a job's arguments, then Show and Place."""


def check(settings: TrainSettings, compute: Compute) -> None:
    """Checks that there are as many devices, and as many processes, as the recipe asks for.

    Raises:
        PipelineError: what was asked for, what is there, and what to do.
    """
    asked, others = settings.devices * settings.num_nodes, launched()
    settings_text = f"train.devices is {settings.devices} and train.num_nodes {settings.num_nodes}"
    if others and others.processes != asked:
        raise PipelineError(
            f"{others.by} started {others.processes} processes, and {settings_text}, which makes {asked}: set "
            "train.devices to the processes per machine and train.num_nodes to the machines."
        )
    if others and settings.parallel > 1:
        raise PipelineError(
            f"train.parallel is {settings.parallel}, and {others.by} has started a process for each device, all of "
            "which train one fold together: set train.parallel=1."
        )
    if settings.num_nodes > 1 and not others:
        raise PipelineError(
            f"{settings_text}, and this command was started alone: start it on every machine, by srun "
            f"--ntasks-per-node={settings.devices}, or by torchrun --nnodes={settings.num_nodes} "
            f"--nproc-per-node={settings.devices} … -m pipeline, with one folder that all of them see."
        )
    there, what = _devices(compute)
    if settings.devices > there:
        raise PipelineError(
            f"train.devices is {settings.devices}, and this machine has {there} {what}{'s' * (there != 1)}: set it to "
            f"{there} at most."
        )


def everywhere(work: Work, job: tuple[Any, ...], show: Show, settings: TrainSettings, compute: Compute) -> None:
    """Calls `work(*job, show, place)` in one process per device, and returns when all have ended.

    Only the first process shows progress, and what it prints is printed here.

    Raises:
        PipelineError: of the first process that fails, or one was killed; all have ended then.
        Interrupted: one got SIGINT or SIGTERM, as if this process had got it (in a notebook KeyboardInterrupt).
    """
    global _training
    check(settings, compute)
    devices = settings.devices * settings.num_nodes
    if not launched():
        _spawn(work, job, show, devices, compute)
        return
    if not distributed.is_initialized():
        raise PipelineError(
            "training in a worker process does not go together with torchrun or SLURM, which have started a process "
            "for each device: train one fold after the other."
        )
    _announce((work, job, devices))
    _training = True
    work(*job, show, Place(0, devices))
    _training = False


# --- processes that are started here ---------------------------------------------------------------------------------


def _spawn(work: Work, job: tuple[Any, ...], show: Show, devices: int, compute: Compute) -> None:
    context = multiprocessing.get_context("spawn")  # a fork after CUDA or OpenMP have started does not work
    queue = context.SimpleQueue()
    say(f"  starting {devices} processes, one for each device, which train this fold together")
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
    """Passes on what the processes say, until all have ended well."""
    running = processes
    while running:
        connection.wait([process.sentinel for process in running], LISTEN)
        running = [process for process in processes if process.exitcode is None]
        while not queue.empty():  # after the line above: all that those which ended have said is in it
            said = queue.get()
            if isinstance(said, PipelineError):
                raise said
            if isinstance(said, Exception):
                _wait_for_killed(processes)  # of which the others know only that it does not answer
                raise said
            events.relay(said) if isinstance(said, str) else progress.advance(*said)
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
    """Lets torch's own code say nothing but errors in processes that are started."""
    before = os.environ.get(LOG_LEVEL)
    os.environ.setdefault(LOG_LEVEL, "ERROR")
    yield
    if before is None:
        del os.environ[LOG_LEVEL]


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _devices(compute: Compute) -> tuple[int, str]:
    """How many devices this machine has, and what they are."""
    if compute.accelerator == "cuda":
        return torch.cuda.device_count(), "GPU"
    if compute.accelerator == "mps":
        return 1, "Apple GPU"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores, "CPU core"


# --- in such a process -----------------------------------------------------------------------------------------------


class _Voice:
    """Stands in for the console's file and for the progress bar, and sends what they get to the first process."""

    relays = True
    """Events go the same way."""

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
    voice = _Voice(queue)
    console.file, console.quiet = voice, quiet or place.rank > 0  # type: ignore[assignment]
    os.environ.update(address, LOCAL_RANK=str(place.rank))
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a machine's own name may lead nowhere
    torch.set_num_threads(threads)
    if accelerator == "cuda":
        torch.cuda.set_device(place.rank)  # which `cuda` without a number means from here on
    try:
        work(*job, (voice, *shown), place)
    except Exception as error:
        error.add_note(traceback.format_exc())  # shown with an error that is nobody's bad input
        queue.put(error)


def leave(place: Place) -> None:
    """Ends what a training's processes have in common, in all of them at about the same time, where they were started
    for this training alone."""
    if place.spawned:
        distributed.destroy_process_group()


# --- processes that torchrun or SLURM have started -------------------------------------------------------------------


@contextmanager
def joined() -> Iterator[bool]:
    """Joins the processes that torchrun or SLURM have started, and gives whether this is the first, which runs the
    command. The others take part in its trainings, and get here when it has ended."""
    here = launched()
    assert here is not None
    _connect(here)
    if here.rank:
        console.quiet = True
        while (announced := _announce(None)) is not None:
            work, job, devices = announced
            work(*job, (None, None, 0), Place(here.rank, devices))
        yield False
        return
    try:
        yield True
    finally:
        if not _training:  # else they wait for this one elsewhere, and torchrun or SLURM ends them
            with suppress(RuntimeError):  # they were interrupted too
                _announce(None)
                distributed.destroy_process_group()


_waiting_room: Any = None
"""A group of all processes in which the next training is waited for."""
_training = False
"""Whether the others take part in one."""


def _connect(here: Launched) -> None:
    global _waiting_room
    if here.by == "SLURM":
        from lightning.fabric.plugins.environments import SLURMEnvironment

        slurm = SLURMEnvironment()  # knows the first machine and a port
        os.environ.update(MASTER_ADDR=slurm.main_address, MASTER_PORT=str(slurm.main_port))
        os.environ.update(RANK=str(here.rank), WORLD_SIZE=str(here.processes))
    gpu = torch.cuda.is_available()
    if gpu and here.local_rank < torch.cuda.device_count():  # `check` says where there are too few
        torch.cuda.set_device(here.local_rank)
    distributed.init_process_group("nccl" if gpu else "gloo")
    _waiting_room = distributed.new_group(backend="gloo", timeout=PATIENCE)


def _announce(training: Any) -> Any:
    """Tells the other processes of a training, or None for the end; on the others, returns what the first tells."""
    values = [training]
    distributed.broadcast_object_list(values, group=_waiting_room)
    return values[0]
