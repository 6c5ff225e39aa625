"""One fold's training: loss, optimiser, schedule, and the competition's own metric on the held-out fold."""

from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch.optim.lr_scheduler import ReduceLROnPlateau

from pipeline.geometry import IGNORE
from pipeline.loader import derive_seed
from pipeline.losses import WeightedLoss
from pipeline.metrics import METRICS
from pipeline.recipe import Recipe


class SegmentationModule(LightningModule):
    """Trains a network on (pixels, masks) batches; logs train/loss, valid/loss and valid/score.

    valid/score is the competition's metric, mean per image and class, at network size and threshold 0.5: good enough to
    choose an epoch by. The score that counts is computed by `tune`, at native size.
    """

    def __init__(self, network: torch.nn.Module, recipe: Recipe, metric: str, fold: int) -> None:
        super().__init__()
        self.network = network
        self.recipe = recipe
        self.metric = METRICS[metric]
        self.loss = WeightedLoss(recipe.loss)
        self.fold = fold
        self.counts: list[np.ndarray] = []

    def on_train_epoch_start(self) -> None:
        """Seeds whatever the network itself draws (dropout), so that a resumed epoch repeats it."""
        torch.manual_seed(derive_seed(self.recipe.train.seed, self.fold, self.current_epoch))

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> torch.Tensor:
        """Returns the loss of a batch."""
        loss = self.loss(self.network(batch[0]), batch[1])
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=len(batch[0]))
        return loss

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> None:
        """Adds a batch's loss and pixel counts."""
        pixels, masks = batch
        logits = self.network(pixels)
        self.log("valid/loss", self.loss(logits, masks), batch_size=len(pixels))
        predicted, true, valid = logits > 0, masks == 1, masks != IGNORE
        planes = [(predicted & true), (predicted & valid), true]
        self.counts.append(torch.stack([plane.sum((2, 3)) for plane in planes]).cpu().numpy())

    def on_validation_epoch_end(self) -> None:
        """Logs the metric over the whole fold."""
        intersection, predicted, true = np.concatenate(self.counts, axis=1)
        self.counts.clear()
        self.log("valid/score", float(self.metric(intersection, predicted, true).mean()))

    def configure_optimizers(self) -> Any:
        """Returns AdamW and the plateau schedule."""
        settings = self.recipe.train
        optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        plateau = ReduceLROnPlateau(optimizer, factor=settings.plateau.factor, patience=settings.plateau.patience)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "valid/loss"}}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Does nothing: Lightning calls it after the epoch's checkpoint is written; a resumed run would miss a step."""

    def on_train_epoch_end(self) -> None:
        """Steps the schedule before the checkpoint is written."""
        scheduler: Any = self.lr_schedulers()
        scheduler.step(self.trainer.callback_metrics["valid/loss"])
