"""Calls a network as the pipeline does, and says in one sentence what is wrong with what it returns."""

import contextlib
import io
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Module

from pipeline.core.errors import first_line
from pipeline.core.files import PACKAGE
from pipeline.core.shortage import pass_on
from pipeline.networks.models import as_output
from pipeline.networks.output import Output

Status = Literal["pass", "note", "fail", "not run"]
LOGITS_ALONE = (
    "Return the logits alone. For deep supervision return pipeline.networks.output.Output(mask=…, deep=(…,)), and with "
    "a presence head (logits, presence)."
)


@dataclass(frozen=True)
class Result:
    """The outcome of one check of a network."""

    check: str
    """Its name."""
    status: Status
    """`note` is a pass with something to know."""
    finding: str
    """What was measured, or why the check failed."""
    remedy: str = ""
    """What to do; empty where there is nothing to do."""


class UnusableOutput(Exception):
    """A network failed on images, or returned something that the pipeline cannot use."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.reason, self.remedy = reason, remedy


class Probe:
    """A network whose calls are watched.

    Attributes:
        network: the network.
        channels: of its images.
        classes: of its logits.
        user_class: whether the class is the user's, and not a published architecture.
        printed: what it has printed so far.
    """

    def __init__(self, network: Module, channels: int, classes: int, user_class: bool = True) -> None:
        self.network, self.channels, self.classes, self.user_class = network, channels, classes, user_class
        self.printed = ""

    def output(self, images: Tensor) -> Output:
        """Returns what the network says about images (N, channels, H, W), float32.

        Raises:
            UnusableOutput: it raises an error, or returns something else than logits (N, classes, H, W).
        """
        value = self._called(images)
        if isinstance(value, dict):
            keys = ", ".join(map(str, value))
            raise UnusableOutput(f"forward returns a dict with the keys {keys}.", "Return the tensor of logits itself.")
        if isinstance(value, tuple | list) and not isinstance(value, Output):
            _check_presence(value, len(images), self.classes)
        if not isinstance(value, Tensor | tuple | list):
            raise UnusableOutput(
                f"forward returns {_described(value)}, not a tensor.", "End forward with `return logits`."
            )
        output = as_output(value)
        _check_logits(output.mask, images, self.classes)
        return output

    def output_in_training(self, images: Tensor) -> Output:
        """Returns the same in training mode, with gradients; raises as `output`."""
        self.network.train()
        return self.output(images)

    def logits(self, images: Tensor) -> Tensor:
        """Returns the logits of images without gradients; raises as `output`."""
        with torch.no_grad():
            return self.output(images).mask

    def _called(self, images: Tensor) -> Any:
        text = io.StringIO()
        try:
            with contextlib.redirect_stdout(text):
                return self.network(images)
        except (Exception, SystemExit) as error:  # the network is the user's code
            pass_on(error)
            raise UnusableOutput(
                f"forward fails on images of shape {tuple(images.shape)}: {described(error)}", _remedy(error)
            ) from error
        finally:
            self.printed += "" if text.closed else text.getvalue()


def described(error: BaseException) -> str:
    """Returns the type and first line of an error, with the last line of the user's code that led to it."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_user_code(Path(frame.filename))]
    where = f" ({Path(frames[-1].filename).name} line {frames[-1].lineno})" if frames else ""
    text = readable(first_line(error))
    name = type(error).__name__
    return f"{name if text == name else f'{name}: {text}'}{where}"


def readable(text: str, most: int = 300) -> str:
    """Returns a text of the user's code without control characters and lone surrogates, cut after `most` characters."""
    shown = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
    return shown if len(shown) <= most else f"{shown[:most]}…"


def _is_user_code(path: Path) -> bool:
    """Whether a file is neither the package's nor an installed library's."""
    libraries = ("site-packages", "dist-packages")
    return PACKAGE not in path.parents and not any(part in libraries for part in path.parts) and path.suffix == ".py"


def _remedy(error: BaseException) -> str:
    text = str(error)
    if isinstance(error, NotImplementedError):
        return "Fill in this part of the class."
    if "more than 1 value per channel" in text:
        return "BatchNorm needs more than one value per channel: normalise larger feature maps, or use GroupNorm."
    if "Kernel size can't be greater" in text:
        return "Feature maps have become smaller than the kernel: pad 3×3 convolutions by 1, and halve less often."
    if "channels, but got" in text:
        return "The first convolution must take `channels` (first argument of the constructor), later ones what comes."
    if "Sizes of tensors must match" in text or "size of tensor a" in text:
        return "Feature maps that are joined must have one size: pad 3×3 convolutions by 1 and halve by exactly 2."
    if "shapes cannot be multiplied" in text or "size mismatch" in text:
        return "A Linear layer fixes the size of the image: use convolutions, or pool to one size before it."
    return "Correct forward; calling the class on torch.zeros of this shape shows the whole traceback."


def _check_presence(value: Any, images: int, classes: int) -> None:
    """Raises UnusableOutput where a tuple or list is not (logits, presence)."""
    shapes = ", ".join(_described(part) for part in value)
    presence = value[1] if len(value) == 2 else None
    if not isinstance(presence, Tensor) or presence.shape != (images, classes):
        kind = "tuple" if isinstance(value, tuple) else "list"
        raise UnusableOutput(f"forward returns a {kind} of {len(value)}: {shapes}.", LOGITS_ALONE)


def _check_logits(mask: Any, images: Tensor, classes: int) -> None:
    """Raises UnusableOutput where logits are not (N, classes, H, W)."""
    if not isinstance(mask, Tensor):
        raise UnusableOutput(f"forward returns {_described(mask)} as logits, not a tensor.", LOGITS_ALONE)
    if not mask.is_floating_point() or mask.layout != torch.strided or mask.device != images.device:
        strided = mask.layout == torch.strided
        kind = f"type {mask.dtype} on {mask.device}" if strided else f"the layout {mask.layout}"
        raise UnusableOutput(
            f"forward returns logits of {kind}; expected {images.dtype} on {images.device}, as the images are.",
            "Return what the last convolution gives: no comparison, argmax, long(), to(device) or cuda() in the class.",
        )
    expected = (len(images), classes, *images.shape[2:])
    if tuple(mask.shape) == expected:
        return
    reason = f"forward returns shape {tuple(mask.shape)} for images {tuple(images.shape)}; expected {expected}."
    if mask.ndim != 4:
        remedy = "Keep all four axes (images, classes, rows, columns): no squeeze, flatten or argmax at the end."
    elif mask.shape[0] != len(images):
        remedy = "Keep the axis of the images: no reshape or mean over it."
    elif mask.shape[1] != classes:
        remedy = f"The last convolution must have `classes` = {classes} output channels (second argument)."
    elif any(side < wanted for side, wanted in zip(mask.shape[2:], images.shape[2:], strict=True)):
        remedy = "The image shrinks: pad 3×3 convolutions by 1, and upsample as often as you halve."
    else:
        remedy = "The image grows: upsample as often as you halve, and no more."
    raise UnusableOutput(reason, remedy)


def _described(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
