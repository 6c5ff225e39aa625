"""Detects whether torchrun or SLURM started this process as one of several that train together."""

import os
from dataclasses import dataclass
from typing import Literal

LOG_LEVEL = "TORCH_CPP_LOG_LEVEL"
"""The environment variable with the log level of torch's C++ code, which is read when torch is loaded. With ERROR, DDP
does not print a warning on each device that it searched for parameters without a gradient and found none."""


@dataclass(frozen=True)
class Launched:
    """One of the processes that torchrun or srun started."""

    by: Literal["torchrun", "SLURM"]
    rank: int
    """Number of the process among all processes on all machines; process 0 is the main process."""
    local_rank: int
    """Number of the process on this machine, which is also the number of its GPU."""
    processes: int
    """Number of processes on all machines."""


def launched() -> Launched | None:
    """Returns which of several processes this is; None if the command was started as a single process.

    As in Lightning, a SLURM job named `bash` or `interactive` counts as a single process.
    """
    environment = os.environ
    if "TORCHELASTIC_RUN_ID" in environment:
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
        process = Launched("torchrun", *(int(environment[name]) for name in names))
    elif "SLURM_NTASKS" in environment and environment.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        names = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS")
        process = Launched("SLURM", *(int(environment.get(name, 0)) for name in names))
    else:
        return None
    return process if process.processes > 1 else None
