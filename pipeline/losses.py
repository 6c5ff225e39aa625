"""Sums of losses by name. Every loss leaves ignored pixels (255) out."""

import segmentation_models_pytorch as smp
import torch

from pipeline.geometry import IGNORE
from pipeline.recipe import LossSettings


class WeightedLoss(torch.nn.Module):
    """The weighted sum of the losses that a recipe names.

    Takes logits (N, C, H, W) float and masks (N, C, H, W) uint8 of 0, 1 and 255, gives a scalar. Dice is that of the
    whole batch, which has no gradient on a batch without foreground; BCE beside it has.
    """

    def __init__(self, settings: LossSettings) -> None:
        super().__init__()
        self.weights = {name: weight for name, weight in settings.model_dump().items() if weight > 0}
        self.bce = smp.losses.SoftBCEWithLogitsLoss(ignore_index=None, reduction="none")
        self.dice = smp.losses.DiceLoss(mode="multilabel", ignore_index=IGNORE)

    def forward(self, logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """Returns the loss of a batch."""
        logits, target = logits.float(), masks.float()
        total = logits.new_zeros(())
        if "bce" in self.weights:
            valid = (masks != IGNORE).float()
            bce = (self.bce(logits, target * valid) * valid).sum() / valid.sum().clamp(min=1)
            total = total + self.weights["bce"] * bce
        if "dice" in self.weights:
            total = total + self.weights["dice"] * self.dice(logits, target)
        return total
