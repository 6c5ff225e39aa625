"""The output of networks, which losses and predictions use."""

from typing import NamedTuple

from torch import Tensor


class Output(NamedTuple):
    """The outputs of a network for a batch."""

    mask: Tensor
    """Logits (N, classes, H, W); with model.instances (N, 2 · classes, H, W), the separators last."""
    presence: Tensor | None = None
    """Logits (N, classes) that a class is present in the image."""
    deep: tuple[Tensor, ...] = ()
    """Further logits of the masks' shape for deep supervision, only in training."""
