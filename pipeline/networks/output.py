"""What networks give, and losses and predictions take."""

from typing import NamedTuple

from torch import Tensor


class Output(NamedTuple):
    """What a network says about a batch."""

    mask: Tensor
    """Logits (N, classes, H, W); with model.instances (N, 2 · classes, H, W), those of the separators last."""
    presence: Tensor | None = None
    """Logits (N, classes): whether a class occurs in the image."""
    deep: tuple[Tensor, ...] = ()
    """Further logits of the masks' shape, only while training."""
