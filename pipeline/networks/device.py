"""Chooses the device and the number format for training and prediction, with the reason."""

from dataclasses import dataclass
from typing import Any, Literal

import torch

from pipeline.core.config.recipe import Recipe
from pipeline.core.errors import PipelineError, first_line
from pipeline.core.shortage import out_of_memory


@dataclass(frozen=True)
class Compute:
    """The device and number format that a network runs with."""

    accelerator: Literal["cuda", "mps", "cpu"]
    precision: Literal["32-true", "bf16-mixed", "16-mixed"]
    reason: str

    @property
    def device(self) -> torch.device:
        """The torch device."""
        return torch.device(self.accelerator)

    def autocast(self) -> Any:
        """Returns the autocast context for predictions, with the same number format as in training."""
        types = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
        return torch.autocast(self.accelerator, dtype=types[self.precision], enabled=self.precision != "32-true")


def detect(precision: Literal["auto", "32", "bf16", "16"] = "auto") -> Compute:
    """Returns the fastest reliable choice for this machine, or the requested precision, with the reason.

    Raises:
        PipelineError: fp16 is requested on a CPU, or this torch cannot compute on the GPU.
    """
    accelerator: Literal["cuda", "mps", "cpu"] = "cpu"
    if torch.cuda.is_available():
        if fault := _gpu_fault():
            raise PipelineError(
                f"torch {torch.__version__} cannot compute on {torch.cuda.get_device_name()} ({fault}): use another "
                "GPU (on Kaggle, T4 instead of P100), or set CUDA_VISIBLE_DEVICES to an empty text to use the CPU."
            )
        accelerator = "cuda"
    elif torch.backends.mps.is_available():
        accelerator = "mps"
    if precision == "16" and accelerator == "cpu":  # Lightning would silently train in bf16
        raise PipelineError("train.precision is 16, which needs a GPU; use bf16, 32 or auto on a CPU.")
    if precision != "auto":
        requested: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}
        return Compute(accelerator, requested[precision], "the recipe asks for it")
    if accelerator == "cuda":
        name = torch.cuda.get_device_name()
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Compute("cuda", "bf16-mixed", f"{name} computes bf16 in hardware")
        return Compute("cuda", "16-mixed", f"{name} has no bf16; fp16 with loss scaling")
    if accelerator == "mps":
        return Compute("mps", "32-true", "mixed precision on Apple GPUs is not tested here")
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        return Compute("cpu", "bf16-mixed", f"this CPU has bf16 instructions; {_threads()}")
    return Compute("cpu", "32-true", f"this CPU has no bf16 instructions; {_threads()}")


def use_threads(threads: int | None) -> None:
    """Sets the number of threads of torch; None leaves it unchanged."""
    if threads:
        torch.set_num_threads(threads)


def explain_memory(error: RuntimeError, recipe: Recipe, predicting: bool) -> None:
    """Raises PipelineError with advice if the error means that memory ran out in prediction or in training."""
    text = str(error).lower()
    if "dataloader worker" in text and ("killed by signal" in text or "exited unexpectedly" in text):
        raise PipelineError(
            "a loader process died, most likely because shared memory ran out: start the container with "
            "--shm-size=8g, or lower train.workers (0 uses no loader processes)."
        ) from None
    if out_of_memory(error):
        size = recipe.predict.batch_size if predicting else recipe.train.batch_size
        smaller = max(1, size // 2)
        if predicting:
            advice = f" images to predict: try --set predict.batch_size={smaller}."
        else:
            steps = round(size / smaller) * recipe.train.accumulate
            parallel = " or train.parallel" if recipe.train.parallel > 1 else ""
            advice = (
                f": try --set train.batch_size={smaller} --set train.accumulate={steps}, which keeps the number of "
                f"optimizer steps, or a smaller image.size{parallel}."
            )
        raise PipelineError(f"memory ran out with batches of {size}{advice}") from None


def _gpu_fault() -> str:
    """Returns the error of a first computation on the GPU, or "" if it works.

    A driver also reports GPUs for which this torch has no compiled code.
    """
    try:
        torch.ones(1, device="cuda").add(1).item()
    except RuntimeError as error:
        return first_line(error)
    return ""


def _threads() -> str:
    count = torch.get_num_threads()
    return f"{count} thread{'s' * (count != 1)}"
