"""Whether torchrun or SLURM started this process as one of several that train together."""

import os
from dataclasses import dataclass
from typing import Literal

LOG_LEVEL = "TORCH_CPP_LOG_LEVEL"
"""What torch's own code says. With ERROR, DDP does not warn on every device that it looks for parameters without a
gradient and finds none. Torch reads the variable when it is loaded."""


@dataclass(frozen=True)
class Launched:
    """One of the processes that torchrun or srun started."""

    by: Literal["torchrun", "SLURM"]
    rank: int
    """Its number among all of them, on all machines; 0 leads."""
    local_rank: int
    """Its number on this machine, and the number of its GPU."""
    processes: int
    """How many there are, on all machines."""


def launched() -> Launched | None:
    """Returns which of several processes this is; None where the command was started alone.

    As in Lightning, a SLURM job named `bash` or `interactive` counts as started alone.
    """
    environment = os.environ
    if "TORCHELASTIC_RUN_ID" in environment:
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
        found = Launched("torchrun", *(int(environment[name]) for name in names))
    elif "SLURM_NTASKS" in environment and environment.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        names = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS")
        found = Launched("SLURM", *(int(environment.get(name, 0)) for name in names))
    else:
        return None
    return found if found.processes > 1 else None
