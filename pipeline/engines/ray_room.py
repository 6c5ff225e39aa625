"""The resources of the machines of a Ray cluster, and how they are divided among units."""

from dataclasses import dataclass
from typing import Any

from pipeline.core.engine import Needs
from pipeline.core.errors import PipelineError


@dataclass(frozen=True)
class Machine:
    """The resources of one machine."""

    name: str
    cpus: int
    gpus: int


@dataclass(frozen=True)
class Plan:
    """The resources per unit, and the number of units that the cluster can run in parallel."""

    at_once: int
    gpus: float
    cores: int
    threads: int


def machines_there() -> list[Machine]:
    """Returns the machines of the cluster that this process has joined."""
    import ray

    def machine(node: dict[str, Any]) -> Machine:
        has = node["Resources"]
        return Machine(node["NodeManagerHostname"], int(has.get("CPU", 0)), int(has.get("GPU", 0)))

    return [machine(node) for node in ray.nodes() if node["Alive"]]


def divided(machines: list[Machine], needs: Needs) -> Plan:
    """Returns how the cluster is divided among units with these needs.

    With GPUs, a unit gets its share of a machine's cores. Without GPUs, it gets as many cores as it needs threads, or
    else the threads of torch in the calling process divided by per_gpu, but at most those of the smallest machine.

    Raises:
        PipelineError: no machine meets the needs of a unit.
    """
    with_gpus = [machine for machine in machines if machine.gpus]
    if with_gpus:
        rooms = [machine.gpus // needs.gpus * needs.per_gpu for machine in with_gpus]
        shares = [machine.cpus // room for machine, room in zip(with_gpus, rooms, strict=True) if room]
        cores = max(1, min(shares, default=1))
        gpus = needs.gpus / needs.per_gpu if needs.gpus == 1 else float(needs.gpus)
        wanted = f"{needs.gpus} GPU{'s' * (needs.gpus > 1)}"
    else:
        import torch

        cores = max(1, torch.get_num_threads() // needs.per_gpu)
        cores = needs.threads or min([cores, *(machine.cpus for machine in machines if machine.cpus)])
        rooms = [machine.cpus // cores for machine in machines]
        gpus, wanted = 0.0, f"{cores} core{'s' * (cores > 1)}"
    at_once = sum(rooms)
    if not at_once:
        raise PipelineError(
            f"a unit needs {wanted} on one machine, but no machine of the cluster has that: {in_words(machines)}."
        )
    return Plan(at_once, gpus, cores, needs.threads or cores)


def in_words(machines: list[Machine]) -> str:
    """Returns a description of the cluster's machines for messages."""
    parts = [
        f"{machine.name} with {machine.cpus} core{'s' * (machine.cpus != 1)} and {machine.gpus or 'no'} "
        f"GPU{'s' * (machine.gpus != 1)}"
        for machine in machines
    ]
    shown_parts = [*parts[:4], f"{len(parts) - 4} more"] if len(parts) > 4 else parts
    return ", ".join(shown_parts)
