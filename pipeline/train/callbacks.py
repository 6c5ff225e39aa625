"""Lightning callbacks: checkpoints, early stopping, weight averaging, history, time limit, progress and pictures."""

import time
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, WeightAveraging
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping
from lightning.pytorch.callbacks import ModelCheckpoint as LightningModelCheckpoint
from rich.progress import Progress
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from pipeline.core import deadline, events
from pipeline.core.console import console, say
from pipeline.core.files import write_json, write_text
from pipeline.core.run import Member, Run
from pipeline.core.trainings import MEASURED
from pipeline.masks.geometry import IGNORE
from pipeline.networks.device import Compute
from pipeline.train import epoch_lines

EXAMPLES, EXAMPLE_SIDE = 4, 192
TAIL = 0.1
"""The share of the steps, at the end of training, whose weights `train.keep: average` averages."""
PATHS = ("best_model_path", "kth_best_model_path", "last_model_path")
"""The names under which Lightning's checkpoint callback stores its files."""


class ModelCheckpoint(LightningModelCheckpoint):
    """Lightning's checkpoint callback, which also resumes if the folder was moved after an interruption."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the best score so far, which Lightning drops when the paths differ."""
        folder = Path(str(self.dirpath))

        def moved(path: str) -> str:
            return str(folder / Path(path).name) if path else path

        paths = {name: moved(state_dict[name]) for name in PATHS}
        best = {moved(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": best, "dirpath": self.dirpath})


class EarlyStopping(LightningEarlyStopping):
    """Lightning's early stopping with two changes.

    It stops at once if the patience was already used up before a run was resumed. It does not count epochs before
    `first`, because a score that stagnates at half the image size may still improve at full size.
    """

    def __init__(self, first: int, **options: Any) -> None:
        super().__init__(**options)
        self.first = first

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks the score, from the first epoch that counts."""
        if trainer.current_epoch >= self.first:
            super().on_validation_end(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops before another epoch if the patience was used up before the interruption."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True


class MovingAverage(WeightAveraging):
    """Exponential moving average of the weights with a warm-up: the decay after n updates is min(decay, (1+n)/(10+n)).

    Lightning's EMAWeightAveraging has no warm-up: with decay 0.999, the initial weights still make up 79 % of the
    average after 240 steps. The formula is that of TensorFlow's ExponentialMovingAverage(num_updates).
    """

    def __init__(self, decay: float, device: torch.device) -> None:
        """Takes the device on which the network will be; it is not there yet when Lightning creates the average."""

        def average(means: list[torch.Tensor], current: list[torch.Tensor], _: torch.Tensor | int) -> None:
            number = self._latest_update_step  # the counter on a GPU is not read, because that would wait for the GPU
            if means[0].is_floating_point():
                torch._foreach_lerp_(means, current, 1 - min(decay, (1 + number) / (10 + number)))
            else:  # BatchNorm's counters, which are not used
                torch._foreach_copy_(means, current)

        super().__init__(device=device, multi_avg_fn=average)


class TailAverage(WeightAveraging):
    """The uniform mean of the weights over the steps of the last tenth of training; before, the current weights.

    This is stochastic weight averaging (Izmailov et al. 2018, arXiv 1803.05407) over the end of a schedule that decays
    to zero. BatchNorm's running statistics do not suit averaged weights, so they are estimated again at the end of
    every epoch of the last tenth, on training images without augmentation. The average is what is validated and saved.
    Because it equals the current weights before the last tenth, the two phases need no distinction, and a resumed run
    continues with the same average.
    """

    def __init__(self, compute: Compute, images: DataLoader) -> None:
        """Takes the device and number format, and batches (pixels, …) of training images without augmentation."""
        self.compute, self.images, self.first = compute, images, 0

        def average(means: list[torch.Tensor], current: list[torch.Tensor], _: torch.Tensor | int) -> None:
            torch._foreach_lerp_(means, current, 1 / max(1, self._latest_update_step + 1 - self.first))

        super().__init__(device=compute.device, use_buffers=False, multi_avg_fn=average)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Computes the number of steps before the last tenth, which has at least one step."""
        total = int(trainer.estimated_stepping_batches)
        self.first = total - max(1, round(TAIL * total))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Updates the average and, after the last batch of an epoch, estimates its BatchNorm statistics."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if batch_idx == trainer.num_training_batches - 1 and trainer.global_step > self.first:
            assert self._average_model is not None
            names = learning_norms(pl_module)
            estimate_norms(self._average_model.module, names, self.images, self.compute)


def learning_norms(module: torch.nn.Module) -> list[str]:
    """Returns the names of the BatchNorm layers whose running statistics change in training, which excludes frozen
    ones."""
    return [
        name
        for name, layer in module.named_modules()
        if isinstance(layer, _BatchNorm) and layer.training and layer.track_running_stats
    ]


@torch.no_grad()
def estimate_norms(module: Any, names: list[str], images: DataLoader, compute: Compute) -> None:
    """Sets the running mean and variance of BatchNorm layers to their means over all batches.

    It works like torch.optim.swa_utils.update_bn, but only for the named layers and without dropout. `module`, which
    holds `network`, is left in evaluation mode.
    """
    module.eval()
    layers: list[Any] = [module.get_submodule(name) for name in names]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a cumulative mean
        layer.train()
    if layers:
        for pixels, *_ in images:
            with compute.autocast():
                module.network(pixels.to(compute.device, non_blocking=True))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        layer.eval()


class History(Callback):
    """Writes history.csv and history.json with one row per epoch; the checkpoint keeps the rows for a resumed fold.

    It also collects the pixel counts of every held-out image after every epoch, from which any score of any epoch can
    be computed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.started, self.trained = folder, 0.0, 0.0
        self.rows: list[dict[str, Any]] = []
        self.counts: list[np.ndarray] = []

    def state_dict(self) -> dict[str, Any]:
        """Returns the rows and counts so far."""
        return {"rows": self.rows, "counts": self.counts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the rows and counts of an interrupted run."""
        self.rows, self.counts = state_dict["rows"], state_dict["counts"]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Records when the epoch starts."""
        self.started = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Records the training time of the epoch so far, without validation, for the images per second."""
        self.trained = time.perf_counter() - self.started

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Adds the epoch's row and writes the files."""
        # the metrics of an earlier epoch remain if this one did not predict the held-out images
        validated = (trainer.current_epoch + 1) % (trainer.check_val_every_n_epoch or 1) == 0
        names = [name for name in MEASURED[1:] if validated or not name.startswith("valid/")]
        values = {name: float(value) for name, value in trainer.callback_metrics.items() if name in names}
        row: dict[str, Any] = {"epoch": trainer.current_epoch, "batches": trainer.num_training_batches}
        row |= {name: values[name] for name in names if name in values}
        if "valid/score" in row:
            row["collapsed"] = pl_module.collapsed
            self.counts.append(np.asarray(pl_module.epoch_counts))
        row |= {"train_seconds": self.trained, "seconds": time.perf_counter() - self.started}
        self.rows.append(row)
        write_text(self.folder / "history.csv", pd.DataFrame(self.rows).to_csv(index=False))
        write_json(self.folder / "history.json", self.rows)


class StopInTime(Callback):
    """Stops training before an epoch that does not fit into `--stop-after`. The next call resumes from the last
    checkpoint."""

    MARGIN = 1.1
    """The assumed time of the next epoch as a multiple of the longest epoch so far."""

    def __init__(self) -> None:
        self.began, self.longest = 0.0, 0.0
        self.stopped, self.epochs = False, 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Records when the epoch starts."""
        self.began = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops if there is no time for another epoch; the checkpoint of this epoch is written afterwards."""
        self.longest = max(self.longest, time.perf_counter() - self.began)
        left = deadline.seconds_left()
        if left is None:
            return
        # all devices of a training must stop together
        short = trainer.strategy.reduce_boolean_decision(left < self.MARGIN * self.longest, all=False)
        if short and not trainer.should_stop and trainer.current_epoch + 1 < (trainer.max_epochs or 0):
            self.stopped, self.epochs, trainer.should_stop = True, trainer.current_epoch + 1, True


class ShowProgress(Callback):
    """Advances the progress bar over all trainings, and prints a line and emits an event per epoch.

    Both contain an upper bound of the remaining time.
    """

    def __init__(
        self, run: Run, member: Member, history: History, bar: Progress, task: Any, trainings_left: int,
        pace: Any = None,
    ) -> None:  # fmt: skip
        """Takes also, for a planned training, its FollowPlan, which knows the time that is left."""
        self.run, self.member, self.history, self.pace = run, member, history, pace
        self.bar, self.task, self.trainings_left = bar, task, trainings_left

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Advances the bar by this batch's share of the training."""
        self.bar.advance(self.task, 1 / (trainer.num_training_batches * (trainer.max_epochs or 1)))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the line of the epoch and emits its event."""
        row, last, member = self.history.rows[-1], trainer.max_epochs or 0, self.member
        left = row["seconds"] * (last - trainer.current_epoch - 1 + last * self.trainings_left)
        if self.pace:
            left = self.pace.seconds_left * (1 + self.trainings_left)
        sign: Any = pl_module.metric.sign
        scores = [sign * other["valid/score"] for other in self.history.rows if "valid/score" in other]
        best = "valid/score" in row and scores[-1] >= max(scores)
        say(epoch_lines.line(self.run, member.title, last, row, best, left))
        events.emit(events.Epoch(
            self.run.name, member.fold, member.seed, row["epoch"] + 1, last, row["train/loss"], row.get("valid/loss"),
            row.get("valid/score"), best, round(row["seconds"], 3), round(left, 1),
        ))  # fmt: skip


class Pictures(Callback):
    """Writes pictures to TensorBoard: the network's graph, and images of the first held-out batch of each epoch.

    A row shows image, true mask, probability and predicted mask.
    """

    def __init__(self, channels: int, largest_pixel: int) -> None:
        self.channels, self.largest_pixel = channels, largest_pixel

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the graph once, traced on the smallest image that every architecture accepts.

        It is skipped with several devices, because their communication cannot be traced.
        """
        if trainer.current_epoch > 0 or trainer.world_size > 1:
            return
        network: Any = pl_module.network
        pixels = torch.zeros((1, self.channels, 64, 64), dtype=torch.uint8, device=pl_module.device)
        training = network.training
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # tracing warns of values that are constant here
                trainer.loggers[0].experiment.add_graph(_MaskOnly(network.eval()), pixels)  # type: ignore[attr-defined]
        except Exception as error:  # a network that cannot be traced can still be trained
            console.print(f"  [dim]TensorBoard: no graph of this network ({type(error).__name__})[/dim]")
        finally:
            network.train(training)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Writes the picture of the first batch."""
        if batch_idx:
            return
        first = zip(*(part[:EXAMPLES] for part in (*batch, pl_module.example)), strict=True)
        rows = [self._row(*image) for image in first]
        picture = np.concatenate(rows)
        trainer.loggers[0].experiment.add_image(  # type: ignore[attr-defined]
            "valid/image_truth_probability_mask", picture, trainer.current_epoch, dataformats="HWC"
        )

    def _row(self, pixels: torch.Tensor, masks: torch.Tensor, logits: torch.Tensor) -> np.ndarray:
        """Returns four pictures side by side, (h, 4 w, 3) uint8."""
        image = pixels[:3].permute(1, 2, 0).float().cpu().numpy() * (255 / self.largest_pixel)
        if len(logits) > len(masks):  # class maps
            scale = 255 / (len(logits) - 1)
            chosen, confidence = logits.argmax(0), logits.softmax(0).max(0).values
            planes = [masks[0].masked_fill(masks[0] == IGNORE, 0) * scale, confidence * 255, chosen * scale]
        else:
            masks = masks[: len(logits)]  # without the separators
            truth = ((masks == 1).any(0) * 1.0 + (masks == IGNORE).any(0) * 0.5).clamp(max=1)
            probability = logits.sigmoid().max(0).values
            planes = [truth * 255, probability * 255, (probability >= 0.5) * 255]
        grey = [np.repeat(plane.float().cpu().numpy()[..., None], 3, 2) for plane in planes]
        colour = image if image.shape[2] == 3 else np.repeat(image[..., :1], 3, 2)
        row = np.concatenate([colour, *grey], 1).clip(0, 255).astype(np.uint8)
        shrink = min(1.0, EXAMPLE_SIDE / max(colour.shape[:2]))
        return cv2.resize(row, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)


class _MaskOnly(torch.nn.Module):
    """A network that returns a single tensor, so that it can be traced."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Returns the logits of the masks."""
        return self.network(pixels).mask
