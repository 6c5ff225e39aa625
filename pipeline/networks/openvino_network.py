"""A network that OpenVINO runs instead of torch, for prediction on a CPU: `predict.backend: openvino`."""

import importlib.util
import sys
import warnings
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from pipeline.core.errors import PipelineError, first_line
from pipeline.core.shortage import pass_on
from pipeline.networks.device import Compute
from pipeline.networks.output import Output

INSTALL = "pip install 'openvino>=2026', or, in a clone, pip install '.[openvino]'"
TORCH = "set predict.backend=torch"
COMPARED = 2
"""The number of images of the first batch that torch predicts as well, in float32."""
CLOSE = {"32-true": 1e-3, "bf16-mixed": 0.15}
"""The largest allowed difference of a probability from torch's in float32. The rounding of bfloat16 changes single
pixels by up to 0.05, in torch and in OpenVINO."""


def require(compute: Compute) -> None:
    """Checks that OpenVINO can predict on this machine.

    Raises:
        PipelineError: OpenVINO is not installed, or the device is not a CPU.
    """
    if compute.accelerator != "cpu":
        raise PipelineError(
            f"predict.backend is openvino, which is for CPUs, but this machine predicts on {compute.accelerator}: "
            f"{TORCH}."
        )
    if importlib.util.find_spec("openvino") is None:
        raise PipelineError(f"predict.backend is openvino, but OpenVINO is not installed: {INSTALL}, or {TORCH}.")


class OpenvinoNetwork(Module):
    """Runs a network with OpenVINO, in the number format that torch would use.

    The network is converted at the first call for each size of the images. The result is compared with torch.
    """

    def __init__(self, network: Module, compute: Compute) -> None:
        """Takes a network from raw pixels to an Output.

        Raises:
            PipelineError: as `require`.
        """
        super().__init__()
        require(compute)
        self.network, self.compute = network.eval(), compute
        self.requests: dict[tuple[torch.dtype, torch.Size], Any] = {}
        """A request for each dtype and size (C, H, W) of the images."""

    def forward(self, pixels: Tensor) -> Output:
        """Returns the outputs (N, …) float32 for pixels (N, C, H, W).

        Raises:
            PipelineError: OpenVINO cannot convert the network, or its probabilities differ from torch's.
        """
        key = pixels.dtype, pixels.shape[1:]
        if key in self.requests:
            return _infer(self.requests[key], pixels)
        request = self._converted(pixels)
        output = _infer(request, pixels)
        self._compare(pixels[:COMPARED], output)
        self.requests[key] = request
        return output

    def _converted(self, pixels: Tensor) -> Any:
        """Returns a request for images of this size."""
        openvino, core = _openvino(), _core()
        shape = [-1, *pixels.shape[1:]]
        example = torch.zeros((2, *pixels.shape[1:]), dtype=pixels.dtype)
        precision = {"32-true": "f32", "bf16-mixed": "bf16"}[self.compute.precision]
        settings = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        try:
            with (
                torch.inference_mode(False),
                torch.no_grad(),
                torch.autocast("cpu", enabled=False),
                warnings.catch_warnings(),
            ):
                # of values that are constant here; and torch.export, which should replace tracing, takes five times as
                # long
                warnings.simplefilter("ignore")
                traced = torch.jit.freeze(torch.jit.trace(_Tensors(self.network).eval(), example, check_trace=False))
                model = openvino.convert_model(traced, input=[(shape, openvino.Type(example.numpy().dtype))])
            return core.compile_model(model, "CPU", settings).create_infer_request()
        except Exception as error:  # both libraries raise many types
            pass_on(error)
            raise PipelineError(
                f"predict.backend is openvino, but OpenVINO cannot run this network ({type(error).__name__}: "
                f"{first_line(error)}): {TORCH}."
            ) from error

    def _compare(self, pixels: Tensor, output: Output) -> None:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            expected = self.network(pixels)
        pairs = [(expected.mask, output.mask), (expected.presence, output.presence)]
        differences = [
            float((ours.sigmoid() - theirs[: len(pixels)].sigmoid()).abs().max())
            for ours, theirs in pairs
            if ours is not None and theirs is not None and bool(torch.isfinite(ours).all())
        ]
        if (worst := max(differences, default=0.0)) > (allowed := CLOSE[self.compute.precision]):
            raise PipelineError(
                f"predict.backend is openvino, but its probabilities differ from torch's by up to {worst:.4f}; "
                f"expected at most {allowed:g} in {self.compute.precision}: {TORCH}."
            )


def _openvino() -> Any:
    """Returns the module, without its telemetry, which would contact a server at every import."""
    # importing a module whose entry is None fails, and OpenVINO then uses its own empty replacement
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


@cache
def _core() -> Any:
    """Returns the only Core of this process, which is never deleted.

    The CPU plugin of each Core gives signal handlers a stack of its own. After several Cores were deleted, handlers may
    be left with a stack that is already freed, and the next Ctrl-C then ends Python with a segmentation fault.
    """
    return _openvino().Core()


class _Tensors(Module):
    """A network that returns a tuple of tensors, so that it can be traced."""

    def __init__(self, network: Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Returns the logits of the masks and, if the network predicts it, of presence."""
        mask, presence, _ = self.network(pixels)
        return (mask,) if presence is None else (mask, presence)


def _infer(request: Any, pixels: Tensor) -> Output:
    results = request.infer([np.ascontiguousarray(pixels.numpy())])
    # the memory of the results is used again by the next batch
    mask, *presence = [torch.from_numpy(results[number].astype(np.float32)) for number in range(len(results))]
    return Output(mask, presence[0] if presence else None)
