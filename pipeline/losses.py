"""Sums of losses by name. Every loss leaves ignored pixels (255) out."""

import segmentation_models_pytorch as smp
import torch
from torch.nn import functional

from pipeline.competition import Kind
from pipeline.geometry import IGNORE
from pipeline.recipe import LossSettings


class WeightedLoss(torch.nn.Module):
    """The weighted sum of the losses that a recipe names.

    Takes logits (N, C, H, W) float and masks uint8, gives a scalar. Masks are (N, C, H, W) of 0, 1 and 255, or float32
    with means of masks between 0 and 1, or, of a multiclass competition, (N, 1, H, W) class maps with 255. Dice is that
    of the whole batch, which has no gradient on a batch without foreground; cross-entropy beside it has. Both are least
    where the prediction is the mean itself.
    """

    def __init__(self, settings: LossSettings, kind: Kind = "binary") -> None:
        super().__init__()
        self.weights = {name: weight for name, weight in settings.model_dump().items() if weight > 0}
        self.cross_entropy = _softmax_cross_entropy if kind == "multiclass" else _binary_cross_entropy
        self.multiclass = kind == "multiclass"
        self.dice = smp.losses.DiceLoss(mode="multiclass" if self.multiclass else "multilabel", ignore_index=IGNORE)

    def forward(self, logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """Returns the loss of a batch."""
        logits, total = logits.float(), logits.new_zeros((), dtype=torch.float32)
        if "cross_entropy" in self.weights:
            total = total + self.weights["cross_entropy"] * self.cross_entropy(logits, masks)
        if "dice" in self.weights:
            target = masks[:, 0].long() if self.multiclass else masks.float()
            total = total + self.weights["dice"] * self.dice(logits, target)
        return total


def _binary_cross_entropy(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    valid = (masks != IGNORE).float()
    losses = functional.binary_cross_entropy_with_logits(logits, masks.float() * valid, reduction="none")
    return (losses * valid).sum() / valid.sum().clamp(min=1)


def _softmax_cross_entropy(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    labels = masks[:, 0].long()
    losses = functional.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
    return losses / (labels != IGNORE).sum().clamp(min=1)  # a batch without a valid pixel has no loss, not NaN
