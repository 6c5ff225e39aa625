"""The Lightning module of one training: loss, optimiser, schedule, and the competition's metric on the held-out
fold."""

import math
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch.nn import functional

from pipeline.core.errors import PipelineError
from pipeline.core.run import Member, Run
from pipeline.masks import metrics, overlaps
from pipeline.masks.geometry import IGNORE
from pipeline.networks.models import encoder_of, encoder_parameters
from pipeline.networks.output import Output
from pipeline.networks.tiles import predict_tiled
from pipeline.train.batches.dataset import Batch
from pipeline.train.batches.device_augment import device_augmentation
from pipeline.train.batches.sampling import derive_seed, seed_of
from pipeline.train.batches.sharing import Share
from pipeline.train.callbacks import EXAMPLES
from pipeline.train.collectives import from_first, in_turn, whole, whole_output
from pipeline.train.depthwise import fast_gradients
from pipeline.train.losses import WeightedLoss
from pipeline.train.optimization import PacedSchedule, Schedule, build_optimizer

CHECKED = 50
"""The number of losses on a GPU that are checked together, because each check waits for the GPU."""
SMOOTHED = 3
"""The number of epochs over which `train.monitor: loss` averages the validation loss."""


class HeldOut(NamedTuple):
    """The results of one batch of held-out images."""

    loss: Any
    counts: np.ndarray
    """Pixel counts of every image, int32; see SegmentationModule._overlaps."""
    drawn: list[tuple[np.ndarray, np.ndarray]]
    """Predicted and true masks, if the metric needs whole masks."""
    empty: bool
    """Whether no pixel is predicted as foreground."""
    full: bool
    """Whether every pixel is predicted as foreground, or all as the same class."""


class SegmentationModule(LightningModule):
    """Trains a network on batches; logs loss, Dice and IoU of both sets, the competition's score, and the learning
    rate.

    valid/score is the competition's metric at the size of the pixel arrays, untuned (threshold 0.5, or the most
    probable class). This is sufficient to choose an epoch; `tune` computes the final score at native size.
    """

    def __init__(
        self, network: torch.nn.Module, run: Run, member: Member, ids: tuple[list[str], list[str]],
        curve: list[float] | None = None, units: np.ndarray | None = None, epochs: int | None = None,
        share: Share = Share(),
    ) -> None:  # fmt: skip
        """Prepares the training of a network.

        Args:
            network: the network.
            run: the run.
            member: the member to train.
            ids: the ids of the training table and of the test table, for messages.
            curve: the learning rates to replay, as multiples of the recipe's; None uses the schedule.
            units: the scored unit of each held-out image (N,), for metrics over groups of images.
            epochs: the number of epochs of a complete training; None is that of the recipe.
            share: this device's part of each batch.
        """
        super().__init__()
        self.network = network
        self.encoder_parameters, _ = split_parameters(network)
        self.recipe, self.competition, self.never = run.recipe, run.competition, list(run.never)
        model = run.recipe.model
        self.metric, self.units = metrics.metric_of(run.competition), units
        self.loss = WeightedLoss(run.recipe.loss, run.competition.kind, model.presence, model.instances)
        self.classes = len(run.competition.classes)
        self.member, self.ids, self.curve, self.share = member, ids, curve, share
        self.epochs = epochs or run.recipe.train.epochs
        self.seed = seed_of(member)
        self.augmentation = device_augmentation(run.recipe)
        self.paced = run.budget is not None
        self.schedule: Schedule | PacedSchedule | None = None
        self.schedule_state: dict[str, Any] | None = None
        self.unchecked: list[tuple[torch.Tensor, torch.Tensor, int]] = []
        """The loss, rows and number of each batch whose loss has not been checked yet."""
        self.validating = False
        """Whether held-out images are being predicted."""
        self.train_counts: list[torch.Tensor] = []
        self.held_out: list[HeldOut] = []
        """The held-out batches of this epoch so far."""
        self.losses: list[float] = []
        """The validation losses of the last epochs."""
        self.epoch_counts, self.collapsed = np.zeros((0,), np.int32), ""
        self.example: torch.Tensor | None = None
        """The logits of the first images of the epoch's first held-out batch."""

    # --- training ---

    def configure_optimizers(self) -> Any:
        """Returns the optimiser. This module steps the schedule itself, so that a resumed run has the same rates."""
        settings, epochs = self.recipe.train, self.trainer.max_epochs or 1
        optimizer = build_optimizer(settings, *split_parameters(self.network))
        steps = int(self.trainer.estimated_stepping_batches) // epochs
        if self.paced:
            self.schedule = PacedSchedule(settings.schedule, optimizer, epochs, settings.snapshots)
        else:
            self.schedule = Schedule(settings.schedule, optimizer, epochs, steps, settings.snapshots, self.curve)
        return optimizer

    def on_train_start(self) -> None:
        """Restores the schedule of an interrupted run."""
        if self.schedule_state and self.schedule:
            self.schedule.load_state_dict(self.schedule_state)

    def on_train_epoch_start(self) -> None:
        """Begins the epoch of a paced schedule; freezes the encoder in the first train.freeze_encoder epochs, and
        unfreezes it afterwards."""
        if isinstance(self.schedule, PacedSchedule):
            steps = math.ceil(self.trainer.num_training_batches / self.recipe.train.accumulate)
            self.schedule.begin_epoch(self.current_epoch, steps)
        encoder, frozen = encoder_of(self.network), self.current_epoch < self.recipe.train.freeze_encoder
        if encoder is not None and self.recipe.train.freeze_encoder:
            for parameter in self.encoder_parameters:
                parameter.requires_grad_(not frozen)
            self.network.train()  # modules that always stay in evaluation mode are not changed by this
            if frozen:
                encoder.eval()

    def on_train_batch_start(self, batch: Batch, index: int) -> None:
        """Seeds the network's own draws (dropout) for each batch and device.

        Loaders use the same generator, in a resumed run at other times, so its state cannot be relied on.
        """
        rank = (8, self.share.rank) if self.share.rank else ()
        torch.manual_seed(derive_seed(self.seed, self.current_epoch, index, *rank))

    def training_step(self, batch: Batch, index: int) -> torch.Tensor:
        """Returns the loss of the whole batch, which is the same on every device.

        Raises:
            PipelineError: the loss of this batch is not finite, or on a GPU that of a recent batch.
        """
        batch = self._downscaled(self._augmented(batch, index))
        # a compiled network keeps torch's gradients
        with nullcontext() if self.recipe.train.compile else fast_gradients(batch.pixels.device):
            output = self.network(batch.pixels)
        output = whole_output(output, self.share)
        batch = batch._replace(
            **{name: whole(getattr(batch, name), self.share) for name in ("masks", "rows", "weights")}
        )
        masks = self._without_ignored(batch.masks)
        loss = self._weighted(output, masks, batch)
        self._check(loss, batch, index)
        size = len(masks)
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=size)
        # a tensor on the CPU, because Lightning would send a number to the GPU and wait for it
        self.log("learning_rate", torch.tensor(self._learning_rate()), on_step=False, on_epoch=True, batch_size=size)
        logits, masks = output.mask.detach()[:, : self.classes], masks[:, : self.classes]
        self.train_counts.append(self._overlaps(self._without_never(logits), masks).sum(0))
        return loss

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """Steps the schedule after the optimiser."""
        super().optimizer_step(*arguments, **options)
        if self.schedule:
            self.schedule.step_batch()

    def on_train_batch_end(self, outputs: Any, batch: Any, index: int) -> None:
        """Logs Dice and IoU over all training pixels of the epoch, as the network saw them: augmented, dropout on."""
        if index == self.trainer.num_training_batches - 1:
            counts = torch.stack(self.train_counts).sum(0).cpu().numpy()
            pooled = {"dice": _pooled_dice(counts, self.competition), "iou": _pooled_iou(counts, self.competition)}
            for name, value in pooled.items():
                self.log(f"train/{name}", value, on_step=False, on_epoch=True)
            self.train_counts.clear()

    def on_train_epoch_end(self) -> None:
        """Steps the schedule before the checkpoint is written."""
        metrics_now = self.trainer.callback_metrics
        if self.schedule:
            loss, score = (float(metrics_now.get(name, torch.nan)) for name in ("valid/loss", "valid/score"))
            self.schedule.step_epoch(loss, self.metric.sign * score)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the schedule and the last validation losses, for a resumed run."""
        checkpoint["schedule"] = self.schedule.state_dict() if self.schedule else None
        checkpoint["losses"] = self.losses

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the state of the schedule until the optimiser exists, and restores the last validation losses."""
        self.schedule_state, self.losses = checkpoint["schedule"], list(checkpoint.get("losses", []))

    # --- validation ---

    def on_validation_epoch_start(self) -> None:
        """Records that the training part of the epoch is over."""
        self.validating = True

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> None:
        """Stores the results of a batch for the end of the epoch."""
        pixels, masks = batch
        if not len(pixels):  # NoImages
            return
        output = predict_tiled(self.network, pixels, self.recipe.image.size, self.recipe.predict.overlap)
        loss = self.loss(output, self._without_ignored(masks))
        output, masks = output._replace(mask=output.mask[:, : self.classes]), masks[:, : self.classes]
        if index == 0:
            self.example = output.mask[:EXAMPLES].clone()  # a copy, so that the whole batch is freed
        output = output._replace(mask=self._without_never(output.mask))
        counts = self._overlaps(output.mask, masks).cpu().numpy().astype(np.int32)
        drawn: list[tuple[np.ndarray, np.ndarray]] = []
        if self.metric.counted == "masks":
            predicted = (output.mask > 0).byte().cpu().numpy()
            drawn = list(zip(predicted, masks.cpu().numpy().astype(np.uint8), strict=True))
        self.held_out.append(HeldOut(loss, counts, drawn, *_empty_and_full(output.mask, masks)))

    def on_validation_epoch_end(self) -> None:
        """Logs the loss and the metric over the whole fold, and keeps the counts of every image."""
        self.validating = False
        of_device = [batch._replace(loss=float(batch.loss)) for batch in self.held_out]
        self.held_out.clear()
        batches = in_turn(of_device, self.share)
        measured = from_first(None if batches is None else self._measured(batches), self.share)
        self.log_dict({f"valid/{name}": value for name, value in measured.items()})

    def _measured(self, batches: list[HeldOut]) -> dict[str, float]:
        """Returns the loss and scores over all held-out batches, and keeps the counts of every image."""
        self.epoch_counts = np.concatenate([batch.counts for batch in batches])
        measured = counts = self.epoch_counts.astype(np.int64)
        if self.metric.counted == "masks":
            measured = self.epoch_counts = self._measured_masks([pair for batch in batches for pair in batch.drawn])
        empty, full = (all(getattr(batch, name) for batch in batches) for name in ("empty", "full"))
        self.collapsed = "empty" if empty else "full" if full else ""
        loss = float(np.average([batch.loss for batch in batches], weights=[len(batch.counts) for batch in batches]))
        self.losses = [*self.losses, loss][-SMOOTHED:]
        return {
            "loss": loss,
            # averaged, so that the BatchNorm statistics of one epoch or a few hard images do not decide the choice
            "smooth_loss": float(np.mean(self.losses)),
            "score": self.metric.score_of(measured, self.units),
            "dice": _dice(counts, self.competition),
            "iou": _iou(counts, self.competition),
        }

    def _measured_masks(self, drawn: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """Returns what the metric measures on the predicted and true held-out masks, (N, …)."""
        units = np.arange(len(drawn)) if self.units is None else self.units
        predicted, true = zip(*drawn, strict=True)
        return self.metric.measured_all(predicted, true, units)

    def _overlaps(self, logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """Returns pixel counts of every image: intersection, predicted and true (N, 3, C), or confusion (N, C, C)."""
        valid = masks != IGNORE
        if self.competition.kind == "multiclass":
            classes = len(self.competition.classes)
            bins = classes**2 + 1  # the last bin is for ignored pixels
            pairs = (masks[:, 0].long() * classes + logits.argmax(1)).masked_fill(~valid[:, 0], bins - 1)
            pairs += bins * torch.arange(len(pairs), device=pairs.device).view(-1, 1, 1)
            counts = torch.bincount(pairs.flatten(), minlength=bins * len(pairs)).view(-1, bins)
            return counts[:, :-1].view(-1, classes, classes)
        positive, true = logits > 0, (masks >= 0.5) & valid
        planes = [positive & true, positive & valid, true]
        return torch.stack([plane.sum((2, 3)) for plane in planes], 1)

    # --- details ---

    def _augmented(self, batch: Batch, index: int) -> Batch:
        """Returns the batch, augmented with the draws of its epoch and number if the loader has not augmented it."""
        if self.augmentation is None:
            return batch
        seed = derive_seed(self.seed, self.current_epoch, index, 7)  # 1 to 6 are used by the loader
        # every device makes the draws for all images of the batch
        pixels, masks = self.augmentation(whole(batch.pixels, self.share), whole(batch.masks, self.share), seed)
        part = self.share.part if self.share.devices > 1 else slice(None)
        return batch._replace(pixels=pixels[part], masks=masks[part])

    def _downscaled(self, batch: Batch) -> Batch:
        """Returns the batch, at half the size in the epochs of train.half_size."""
        return batch if self.current_epoch >= round(self.recipe.train.half_size * self.epochs) else halved(batch)

    def _without_never(self, logits: torch.Tensor) -> torch.Tensor:
        """Returns logits (N, C, H, W) in which the classes of predict.never are -inf, so that they are never chosen."""
        if not self.never:
            return logits
        return logits.index_fill(1, torch.tensor(self.never, device=logits.device), -torch.inf)

    def _weighted(self, output: Output, masks: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Returns the loss. With pseudo-labelled test images, it is the mean of their loss and that of the others,
        weighted by the sums of the weights."""
        if self.recipe.train.pseudo is None:
            return self.loss(output, masks)
        other = batch.rows < 0
        total, share = masks.new_zeros((), dtype=torch.float32), 0.0
        for which in (~other, other):
            if which.any():
                weight = float(batch.weights[which].sum())
                total, share = total + weight * self.loss(_only(output, which), masks[which]), share + weight
        return total / share

    def _without_ignored(self, masks: torch.Tensor) -> torch.Tensor:
        """Returns masks in which the pixels of the ignored class are marked as ignored, unless the class is learned."""
        ignored = None if self.recipe.loss.learn_ignored_class else self.competition.ignored
        return masks if ignored is None else masks.masked_fill(masks == ignored, IGNORE)

    def _learning_rate(self) -> float:
        return self.schedule.learning_rate() if self.schedule else 0.0

    def _check(self, loss: torch.Tensor, batch: Batch, index: int) -> None:
        """Raises if a loss is not finite: immediately on a CPU; after at most CHECKED batches, or the epoch, on a
        GPU."""
        self.unchecked.append((loss.detach(), batch.rows, index))
        last = index == self.trainer.num_training_batches - 1
        if loss.device.type == "cpu" or last or len(self.unchecked) == CHECKED:
            finite = torch.isfinite(torch.stack([loss for loss, _, _ in self.unchecked])).tolist()
            if not all(finite):
                self._stop(*self.unchecked[finite.index(False)])
            self.unchecked.clear()

    def _stop(self, loss: torch.Tensor, rows: torch.Tensor, index: int) -> None:
        train, test = self.ids
        names = [train[row] if row >= 0 else test[-1 - row] for row in rows.tolist()]
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        raise PipelineError(
            f"{self.member.title}: the loss is {float(loss.detach())} in epoch {self.current_epoch + 1}, batch "
            f"{index + 1}, at learning rate {self._learning_rate():.2e}, with the images {', '.join(names[:8])}{more}. "
            "Try a smaller train.learning_rate, train.gradient_clip=1, a longer train.schedule.warm_up, or "
            "train.precision=32."
        )


def halved(batch: Batch) -> Batch:
    """Returns a batch at half the size: means around every second pixel, and every second pixel of the masks."""
    pixels = functional.avg_pool2d(batch.pixels.float(), 3, 2, 1, count_include_pad=False)
    return batch._replace(pixels=pixels, masks=batch.masks[..., ::2, ::2])


def split_parameters(network: torch.nn.Module) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """Returns the trainable parameters of the encoder (none if there is no encoder), and the other trainable ones."""
    inside = {id(parameter) for parameter in encoder_parameters(network)}
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    encoder = [parameter for parameter in learning if id(parameter) in inside]
    return encoder, [parameter for parameter in learning if id(parameter) not in inside]


def _only(output: Output, which: torch.Tensor) -> Output:
    presence = None if output.presence is None else output.presence[which]
    return Output(output.mask[which], presence, tuple(logits[which] for logits in output.deep))


def _dice(counts: np.ndarray, competition: Any) -> float:
    """Returns the mean Dice over images from counts (N, 3, C), or the Dice over all pixels from confusion matrices
    (N, C, C)."""
    if competition.kind == "multiclass":
        return _pooled_dice(counts.sum(0), competition)
    return float(overlaps.dice(*counts.swapaxes(0, 1)).mean())


def _pooled_dice(counts: np.ndarray, competition: Any) -> float:
    """Returns the mean over classes of the Dice over all pixels, from counts (3, C) or a confusion matrix (C, C)."""
    if competition.kind == "multiclass":
        counted = overlaps.without_ignored(counts, competition.ignored)
        planes = np.diagonal(counted), counted.sum(0), counted.sum(1)
        return float(overlaps.dice(*planes)[competition.counted].mean())
    return float(overlaps.dice(*counts).mean())


def _iou(counts: np.ndarray, competition: Any) -> float:
    """Returns the mean IoU over images from counts (N, 3, C), or the IoU over all pixels from confusion matrices
    (N, C, C)."""
    if competition.kind == "multiclass":
        return _pooled_iou(counts.sum(0), competition)
    return float(overlaps.iou(*counts.swapaxes(0, 1)).mean())


def _pooled_iou(counts: np.ndarray, competition: Any) -> float:
    """Returns the mean over classes of the IoU over all pixels, from counts (3, C) or a confusion matrix (C, C)."""
    if competition.kind == "multiclass":
        return float(overlaps.mean_iou(counts, competition.ignored))
    return float(overlaps.iou(*counts).mean())


def _empty_and_full(logits: torch.Tensor, masks: torch.Tensor) -> tuple[bool, bool]:
    """Returns whether all valid pixels are predicted as background, and whether all are predicted as the same class;
    false if this is correct."""
    valid = masks != IGNORE
    if logits.shape[1] != masks.shape[1]:  # class maps
        labels = logits.argmax(1)[valid[:, 0]]
        return False, bool(len(labels) and (labels == labels[0]).all() and (masks[valid] != labels[0]).any())
    positive = logits > 0
    empty = not bool((positive & valid).any()) and bool((masks == 1).any())
    return empty, bool((positive | ~valid).all()) and bool((masks == 0).any())
