"""What networks give, and losses and predictions take."""

from typing import NamedTuple

from torch import Tensor


class Output(NamedTuple):
    """What a network says about a batch."""

    mask: Tensor
    """Logits (N, classes, H, W)."""
    presence: Tensor | None = None
    """Logits (N, classes): whether a class occurs in the image."""
    deep: tuple[Tensor, ...] = ()
    """Further mask logits (N, classes, H, W), only while training."""
