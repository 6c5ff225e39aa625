"""One fold's training: loss, optimiser, schedule, and the competition's own metric on the held-out fold."""

from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch.optim.lr_scheduler import ReduceLROnPlateau

from pipeline.geometry import IGNORE
from pipeline.loader import derive_seed
from pipeline.losses import WeightedLoss
from pipeline.metrics import METRICS, confusion, pooled_score
from pipeline.tiles import predict_tiled
from pipeline.workspace import Run


class SegmentationModule(LightningModule):
    """Trains a network on (pixels, masks) batches; logs train/loss, valid/loss and valid/score.

    valid/score is the competition's metric at the size of the pixel arrays, untuned (threshold 0.5, or the most
    probable class): good enough to choose an epoch by. The score that counts is computed by `tune`, at native size.
    """

    def __init__(self, network: torch.nn.Module, run: Run, fold: int) -> None:
        super().__init__()
        self.network = network
        self.recipe, self.competition, self.never = run.recipe, run.competition, list(run.never)
        self.loss = WeightedLoss(run.recipe.loss, run.competition.kind)
        self.fold = fold
        self.counts: list[np.ndarray] = []

    def on_train_epoch_start(self) -> None:
        """Seeds whatever the network itself draws (dropout), so that a resumed epoch repeats it."""
        torch.manual_seed(derive_seed(self.recipe.train.seed, self.fold, self.current_epoch))

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> torch.Tensor:
        """Returns the loss of a batch."""
        loss = self.loss(self.network(batch[0]), self._without_ignored(batch[1]))
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=len(batch[0]))
        return loss

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> None:
        """Adds a batch's loss and pixel counts."""
        pixels, masks = batch
        logits = predict_tiled(self.network, pixels, self.recipe.image.size, self.recipe.predict.overlap)
        self.log("valid/loss", self.loss(logits, self._without_ignored(masks)), batch_size=len(pixels))
        if self.competition.kind == "multiclass":
            logits[:, self.never] = -torch.inf
            labels, truth = logits.argmax(1).byte().cpu().numpy(), masks[:, 0].cpu().numpy()
            self.counts.append(confusion(labels, truth, len(self.competition.classes)))
            return
        positive, true, valid = logits > 0, masks == 1, masks != IGNORE
        planes = [(positive & true), (positive & valid), true]
        self.counts.append(torch.stack([plane.sum((2, 3)) for plane in planes]).cpu().numpy())

    def on_validation_epoch_end(self) -> None:
        """Logs the metric over the whole fold."""
        if self.competition.kind == "multiclass":
            score = pooled_score(self.competition)(np.sum(self.counts, axis=0))
        else:
            score = METRICS[self.competition.metric](*np.concatenate(self.counts, axis=1)).mean()
        self.counts.clear()
        self.log("valid/score", float(score))

    def _without_ignored(self, masks: torch.Tensor) -> torch.Tensor:
        """Masks whose ignored class is marked as ignored pixels."""
        ignored = self.competition.ignored
        return masks if ignored is None else masks.masked_fill(masks == ignored, IGNORE)

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
