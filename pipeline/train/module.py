"""One fold's training: loss, optimiser, schedule, and the competition's own metric on the held-out fold."""

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
from pipeline.train.losses import WeightedLoss
from pipeline.train.optimization import Schedule, build_optimizer

CHECKED = 50
"""So many losses of a GPU are looked at together: it is waited for each time."""
SMOOTHED = 3
"""Over how many epochs `train.monitor: loss` averages the validation loss."""


class HeldOut(NamedTuple):
    """What is known of one batch of held-out images."""

    loss: Any
    counts: np.ndarray
    """Pixel counts of every image, int32: SegmentationModule._overlaps."""
    drawn: list[tuple[np.ndarray, np.ndarray]]
    """Predicted and true masks, where the metric needs whole masks."""
    empty: bool
    full: bool
    """Whether nothing is predicted, or everything."""


class SegmentationModule(LightningModule):
    """Trains a network on batches; logs loss, Dice and IoU of both sets, the competition's score, and the learning
    rate.

    valid/score is the competition's metric at the size of the pixel arrays, untuned (threshold 0.5, or the most
    probable class): good enough to choose an epoch by. The score that counts is computed by `tune`, at native size.
    """

    def __init__(
        self, network: torch.nn.Module, run: Run, member: Member, ids: tuple[list[str], list[str]],
        curve: list[float] | None = None, units: np.ndarray | None = None, epochs: int | None = None,
        share: Share = Share(),
    ) -> None:  # fmt: skip
        """Takes the ids of the training and of the test table, for messages, the learning rates to replay, the groups
        (N,) of the held-out images, the epochs of a whole training (None: those of the recipe), and which part of each
        batch this device has."""
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
        self.schedule: Schedule | None = None
        self.schedule_state: dict[str, Any] | None = None
        self.unchecked: list[tuple[torch.Tensor, torch.Tensor, int]] = []
        """Loss, rows and number of batches that may yet turn out to have a loss that is no number."""
        self.validating = False
        """Whether held-out images are being predicted."""
        self.train_counts: list[torch.Tensor] = []
        self.held_out: list[HeldOut] = []
        """This epoch's held-out batches so far."""
        self.losses: list[float] = []
        """The validation losses of the last epochs."""
        self.epoch_counts, self.collapsed = np.zeros((0,), np.int32), ""
        self.example: torch.Tensor | None = None
        """Logits of the epoch's first held-out batch."""

    # --- training ---

    def configure_optimizers(self) -> Any:
        """Returns the optimiser; the schedule is stepped by this module, so that it is exact when resumed."""
        settings, epochs = self.recipe.train, self.trainer.max_epochs or 1
        optimizer = build_optimizer(settings, *split_parameters(self.network))
        steps = int(self.trainer.estimated_stepping_batches) // epochs
        self.schedule = Schedule(settings.schedule, optimizer, epochs, steps, settings.snapshots, self.curve)
        return optimizer

    def on_train_start(self) -> None:
        """Takes up the schedule of an interrupted run."""
        if self.schedule_state and self.schedule:
            self.schedule.load_state_dict(self.schedule_state)

    def on_train_epoch_start(self) -> None:
        """Freezes what learns of the encoder in the epochs of train.freeze_encoder, and lets it learn afterwards."""
        encoder, frozen = encoder_of(self.network), self.current_epoch < self.recipe.train.freeze_encoder
        if encoder is not None and self.recipe.train.freeze_encoder:
            for parameter in self.encoder_parameters:
                parameter.requires_grad_(not frozen)
            self.network.train()  # which knows what stays in evaluation all along
            if frozen:
                encoder.eval()

    def on_train_batch_start(self, batch: Batch, index: int) -> None:
        """Seeds what the network itself draws (dropout), on each device otherwise: loaders draw from the same
        generator, and in a resumed run at other times."""
        rank = (8, self.share.rank) if self.share.rank else ()
        torch.manual_seed(derive_seed(self.seed, self.current_epoch, index, *rank))

    def training_step(self, batch: Batch, index: int) -> torch.Tensor:
        """Returns the loss of a batch: of all of it, on every device.

        Raises:
            PipelineError: it is no number, or that of one of the batches before it on a GPU.
        """
        batch = self._downscaled(self._augmented(batch, index))
        output = whole_output(self.network(batch.pixels), self.share)
        batch = batch._replace(
            **{name: whole(getattr(batch, name), self.share) for name in ("masks", "rows", "weights")}
        )
        masks = self._without_ignored(batch.masks)
        loss = self._weighted(output, masks, batch)
        self._check(loss, batch, index)
        size = len(masks)
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=size)
        # as a tensor of the CPU: a number would be sent to a GPU, and waited for
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
        """Logs Dice and IoU of all training pixels of the epoch, as the network saw them: augmented, dropout on."""
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
        """Keeps the schedule until the optimiser is there, and takes up the last validation losses."""
        self.schedule_state, self.losses = checkpoint["schedule"], list(checkpoint.get("losses", []))

    # --- validation ---

    def on_validation_epoch_start(self) -> None:
        """Notes that the epoch's training is over."""
        self.validating = True

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> None:
        """Adds what the end of the epoch needs to know of a batch."""
        pixels, masks = batch
        if not len(pixels):  # NoImages
            return
        output = predict_tiled(self.network, pixels, self.recipe.image.size, self.recipe.predict.overlap)
        loss = self.loss(output, self._without_ignored(masks))
        output, masks = output._replace(mask=output.mask[:, : self.classes]), masks[:, : self.classes]
        self.example = output.mask[:EXAMPLES].clone() if index == 0 else self.example  # not the whole batch
        output = output._replace(mask=self._without_never(output.mask))
        counts = self._overlaps(output.mask, masks).cpu().numpy().astype(np.int32)
        drawn: list[tuple[np.ndarray, np.ndarray]] = []
        if self.metric.counted == "masks":
            predicted = (output.mask > 0).byte().cpu().numpy()
            drawn = list(zip(predicted, masks.cpu().numpy().astype(np.uint8), strict=True))
        self.held_out.append(HeldOut(loss, counts, drawn, *_empty_and_full(output.mask, masks)))

    def on_validation_epoch_end(self) -> None:
        """Logs the loss and the metric over the whole fold, and keeps every image's counts."""
        self.validating = False
        mine = [one._replace(loss=float(one.loss)) for one in self.held_out]
        self.held_out.clear()
        batches = in_turn(mine, self.share)
        measured = from_first(None if batches is None else self._measured(batches), self.share)
        self.log_dict({f"valid/{name}": value for name, value in measured.items()})

    def _measured(self, batches: list[HeldOut]) -> dict[str, float]:
        """Returns what all held-out batches give together, and keeps every image's counts."""
        self.epoch_counts = np.concatenate([one.counts for one in batches])
        measured = counts = self.epoch_counts.astype(np.int64)
        if self.metric.counted == "masks":
            measured = self.epoch_counts = self._measured_masks([pair for one in batches for pair in one.drawn])
        empty, full = (all(getattr(one, name) for one in batches) for name in ("empty", "full"))
        self.collapsed = "empty" if empty else "full" if full else ""
        loss = float(np.average([one.loss for one in batches], weights=[len(one.counts) for one in batches]))
        self.losses = [*self.losses, loss][-SMOOTHED:]
        return {
            "loss": loss,
            # what one epoch's BatchNorm statistics or a few hard images do to its loss chooses nothing
            "smooth_loss": float(np.mean(self.losses)),
            "score": self.metric.score_of(measured, self.units),
            "dice": _dice(counts, self.competition),
            "iou": _iou(counts, self.competition),
        }

    def _measured_masks(self, drawn: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """What the metric measures of the held-out masks (N, …), predicted and true."""
        units = np.arange(len(drawn)) if self.units is None else self.units
        predicted, true = zip(*drawn, strict=True)
        return self.metric.measured_all(predicted, true, units)

    def _overlaps(self, logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """Pixel counts of every image: (N, 3, C) intersection, predicted and true; or (N, C, C) confusion."""
        valid = masks != IGNORE
        if self.competition.kind == "multiclass":
            classes = len(self.competition.classes)
            bins = classes**2 + 1  # the last for ignored pixels
            pairs = (masks[:, 0].long() * classes + logits.argmax(1)).masked_fill(~valid[:, 0], bins - 1)
            pairs += bins * torch.arange(len(pairs), device=pairs.device).view(-1, 1, 1)
            counts = torch.bincount(pairs.flatten(), minlength=bins * len(pairs)).view(-1, bins)
            return counts[:, :-1].view(-1, classes, classes)
        positive, true = logits > 0, (masks >= 0.5) & valid
        planes = [positive & true, positive & valid, true]
        return torch.stack([plane.sum((2, 3)) for plane in planes], 1)

    # --- details ---

    def _augmented(self, batch: Batch, index: int) -> Batch:
        """The batch by the draws of its epoch and number, where the loader has not augmented it."""
        if self.augmentation is None:
            return batch
        seed = derive_seed(self.seed, self.current_epoch, index, 7)  # 1 to 6 are the loader's
        # the draws are those of all images of the batch, one after another
        pixels, masks = self.augmentation(whole(batch.pixels, self.share), whole(batch.masks, self.share), seed)
        part = self.share.part if self.share.devices > 1 else slice(None)
        return batch._replace(pixels=pixels[part], masks=masks[part])

    def _downscaled(self, batch: Batch) -> Batch:
        """The batch at half the size, in the epochs of train.half_size: means around every second pixel."""
        if self.current_epoch >= round(self.recipe.train.half_size * self.epochs):
            return batch
        pixels = functional.avg_pool2d(batch.pixels.float(), 3, 2, 1, count_include_pad=False)
        return batch._replace(pixels=pixels, masks=batch.masks[..., ::2, ::2])

    def _without_never(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits (N, C, H, W) of which no class of predict.never is the largest."""
        if not self.never:
            return logits
        return logits.index_fill(1, torch.tensor(self.never, device=logits.device), -torch.inf)

    def _weighted(self, output: Output, masks: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The loss; with labelled test images, the mean of theirs and the others', each by number and weight."""
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
        """Masks whose ignored class is marked as ignored pixels, unless it is learned."""
        ignored = None if self.recipe.loss.learn_ignored_class else self.competition.ignored
        return masks if ignored is None else masks.masked_fill(masks == ignored, IGNORE)

    def _learning_rate(self) -> float:
        return self.schedule.learning_rate() if self.schedule else 0.0

    def _check(self, loss: torch.Tensor, batch: Batch, index: int) -> None:
        """Stops at a loss that is no number: at once on a CPU, within CHECKED batches and the epoch on a GPU."""
        self.unchecked.append((loss.detach(), batch.rows, index))
        last = index == self.trainer.num_training_batches - 1
        if loss.device.type == "cpu" or last or len(self.unchecked) == CHECKED:
            finite = torch.isfinite(torch.stack([one for one, _, _ in self.unchecked])).tolist()
            if not all(finite):
                self._stop(*self.unchecked[finite.index(False)])
            self.unchecked.clear()

    def _stop(self, loss: torch.Tensor, rows: torch.Tensor, index: int) -> None:
        train, test = self.ids
        names = [train[row] if row >= 0 else test[-1 - row] for row in rows.tolist()]
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        raise PipelineError(
            f"{self.member.title}: the loss is {float(loss.detach())} in epoch {self.current_epoch + 1}, batch "
            f"{index + 1}, at learning rate {self._learning_rate():.2e}, on the images {', '.join(names[:8])}{more}. "
            "Try a smaller train.learning_rate, train.gradient_clip=1, a longer train.schedule.warm_up, or "
            "train.precision=32."
        )


def split_parameters(network: torch.nn.Module) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """Returns the encoder's parameters that learn (none where there is no encoder), and the others that do."""
    inside = {id(parameter) for parameter in encoder_parameters(network)}
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    encoder = [parameter for parameter in learning if id(parameter) in inside]
    return encoder, [parameter for parameter in learning if id(parameter) not in inside]


def _only(output: Output, which: torch.Tensor) -> Output:
    presence = None if output.presence is None else output.presence[which]
    return Output(output.mask[which], presence, tuple(one[which] for one in output.deep))


def _dice(counts: np.ndarray, competition: Any) -> float:
    """The mean over images of the Dice of counts (N, 3, C); that of all pixels of confusion matrices (N, C, C)."""
    if competition.kind == "multiclass":
        return _pooled_dice(counts.sum(0), competition)
    return float(overlaps.dice(*counts.swapaxes(0, 1)).mean())


def _pooled_dice(counts: np.ndarray, competition: Any) -> float:
    """The mean over classes of the Dice of all pixels, from counts (3, C) or a confusion matrix (C, C)."""
    if competition.kind == "multiclass":
        counted = overlaps.without_ignored(counts, competition.ignored)
        planes = np.diagonal(counted), counted.sum(0), counted.sum(1)
        return float(overlaps.dice(*planes)[competition.counted].mean())
    return float(overlaps.dice(*counts).mean())


def _iou(counts: np.ndarray, competition: Any) -> float:
    """The mean over images of the IoU of counts (N, 3, C); that of all pixels of confusion matrices (N, C, C)."""
    if competition.kind == "multiclass":
        return _pooled_iou(counts.sum(0), competition)
    return float(overlaps.iou(*counts.swapaxes(0, 1)).mean())


def _pooled_iou(counts: np.ndarray, competition: Any) -> float:
    """The mean over classes of the IoU of all pixels, from counts (3, C) or a confusion matrix (C, C)."""
    if competition.kind == "multiclass":
        return float(overlaps.mean_iou(counts, competition.ignored))
    return float(overlaps.iou(*counts).mean())


def _empty_and_full(logits: torch.Tensor, masks: torch.Tensor) -> tuple[bool, bool]:
    """Whether nothing is predicted, or everything as one and the same class, where pixels count and are not all so."""
    valid = masks != IGNORE
    if logits.shape[1] != masks.shape[1]:  # class maps
        found = logits.argmax(1)[valid[:, 0]]
        return False, bool(len(found) and (found == found[0]).all() and (masks[valid] != found[0]).any())
    positive = logits > 0
    empty = not bool((positive & valid).any()) and bool((masks == 1).any())
    return empty, bool((positive | ~valid).all()) and bool((masks == 0).any())
