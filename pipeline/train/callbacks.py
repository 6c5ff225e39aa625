"""What a fold writes down and shows while it trains, and the averages of its weights."""

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
"""The last share of the steps whose weights `train.keep: average` averages."""
PATHS = ("best_model_path", "kth_best_model_path", "last_model_path")
"""Which files Lightning's checkpoint callback remembers."""


class ModelCheckpoint(LightningModelCheckpoint):
    """Lightning's checkpoints, which know their files again where the folder was moved between two epochs."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the best score so far: Lightning forgets it when paths differ."""
        folder = Path(str(self.dirpath))

        def here(path: str) -> str:
            return str(folder / Path(path).name) if path else path

        paths = {name: here(state_dict[name]) for name in PATHS}
        best = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": best, "dirpath": self.dirpath})


class EarlyStopping(LightningEarlyStopping):
    """Lightning's early stopping, which also stops at once when a run is resumed after it had already stopped, and
    counts no epoch before `first`: at half the size a score stands still that goes on at the whole."""

    def __init__(self, first: int, **options: Any) -> None:
        super().__init__(**options)
        self.first = first

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at the score, from the first epoch on that counts."""
        if trainer.current_epoch >= self.first:
            super().on_validation_end(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops before another epoch when patience was used up before the interruption."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True


class MovingAverage(WeightAveraging):
    """Lightning's weight averaging with an exponential decay that is short at first: min(decay, (1 + n) / (10 + n)).

    Lightning's EMAWeightAveraging has no such warm-up: with decay 0.999, after 240 steps 79 % of it is the weights of
    the start. The formula is TensorFlow's ExponentialMovingAverage(num_updates).
    """

    def __init__(self, decay: float, device: torch.device) -> None:
        """Takes the device that the network will be on: it is not there yet when Lightning asks it."""

        def average(means: list[torch.Tensor], current: list[torch.Tensor], _: torch.Tensor | int) -> None:
            number = self._latest_update_step  # of updates so far; a GPU would have to be waited for to read theirs
            if means[0].is_floating_point():
                torch._foreach_lerp_(means, current, 1 - min(decay, (1 + number) / (10 + number)))
            else:  # BatchNorm's counters, which nothing reads
                torch._foreach_copy_(means, current)

        super().__init__(device=device, multi_avg_fn=average)


class TailAverage(WeightAveraging):
    """The uniform mean of the weights after each step of the last tenth of training; until then the weights themselves.

    Stochastic weight averaging (Izmailov et al. 2018, arXiv 1803.05407), over the end of a schedule that goes to zero.
    BatchNorm's running statistics lag behind the weights and belong to none of the averaged ones: they are estimated
    again at the end of every epoch of the last tenth, on training images without augmentation. From then on the
    average is what is validated and saved; as it follows the weights before, nothing has to tell the two times apart,
    and a run that was killed goes on with the same average.
    """

    def __init__(self, compute: Compute, images: DataLoader) -> None:
        """Takes where the network computes, and batches (pixels, …) of training images as they are predicted."""
        self.compute, self.images, self.first = compute, images, 0

        def average(means: list[torch.Tensor], current: list[torch.Tensor], _: torch.Tensor | int) -> None:
            torch._foreach_lerp_(means, current, 1 / max(1, self._latest_update_step + 1 - self.first))

        super().__init__(device=compute.device, use_buffers=False, multi_avg_fn=average)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finds out how many steps come before the last tenth, which has one at least."""
        total = int(trainer.estimated_stepping_batches)
        self.first = total - max(1, round(TAIL * total))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Moves the average on, and after an epoch's last batch estimates its BatchNorm statistics."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if batch_idx == trainer.num_training_batches - 1 and trainer.global_step > self.first:
            assert self._average_model is not None
            names = learning_norms(pl_module)
            estimate_norms(self._average_model.module, names, self.images, self.compute)


def learning_norms(module: torch.nn.Module) -> list[str]:
    """Returns the names of the BatchNorm layers whose running statistics training moves: not those of frozen parts."""
    return [
        name
        for name, layer in module.named_modules()
        if isinstance(layer, _BatchNorm) and layer.training and layer.track_running_stats
    ]


@torch.no_grad()
def estimate_norms(module: Any, names: list[str], images: DataLoader, compute: Compute) -> None:
    """Sets the running mean and variance of BatchNorm layers to those of all images together: the mean over batches.

    Like torch.optim.swa_utils.update_bn, but for the layers of these names, with dropout off. Leaves `module`, which
    holds `network`, in evaluation.
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
    """history.csv and .json: one row an epoch; kept in the checkpoint, so a resumed fold has all of its rows.

    Besides, every held-out image's pixel counts of every epoch, from which any score of any epoch follows.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.started, self.trained = folder, 0.0, 0.0
        self.rows: list[dict[str, Any]] = []
        self.counts: list[np.ndarray] = []

    def state_dict(self) -> dict[str, Any]:
        """The rows and counts so far."""
        return {"rows": self.rows, "counts": self.counts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the rows of an interrupted run."""
        self.rows, self.counts = state_dict["rows"], state_dict["counts"]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the epoch's clock."""
        self.started = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Notes how long training took so far, for images a second: validation is not part of it."""
        self.trained = time.perf_counter() - self.started

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Adds the epoch's row and writes the files."""
        names = MEASURED[1:]
        found = {name: float(value) for name, value in trainer.callback_metrics.items() if name in names}
        row: dict[str, Any] = {"epoch": trainer.current_epoch}
        row |= {name: found[name] for name in names if name in found}
        if "valid/score" in found:
            row["collapsed"] = pl_module.collapsed
            self.counts.append(np.asarray(pl_module.epoch_counts))
        row |= {"train_seconds": self.trained, "seconds": time.perf_counter() - self.started}
        self.rows.append(row)
        write_text(self.folder / "history.csv", pd.DataFrame(self.rows).to_csv(index=False))
        write_json(self.folder / "history.json", self.rows)


class StopInTime(Callback):
    """Stops before an epoch that `--time` has no room for: the checkpoint of the last one is what the next call goes on
    from."""

    MARGIN = 1.1
    """An epoch may take this many times as long as the longest so far."""

    def __init__(self) -> None:
        self.began, self.longest = 0.0, 0.0
        self.stopped, self.epochs = False, 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the epoch's clock."""
        self.began = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops where there is no time for one more; the checkpoint of this epoch is written afterwards."""
        self.longest = max(self.longest, time.perf_counter() - self.began)
        left = deadline.seconds_left()
        if left is None:
            return
        # the devices of one training stop together
        short = trainer.strategy.reduce_boolean_decision(left < self.MARGIN * self.longest, all=False)
        if short and not trainer.should_stop and trainer.current_epoch + 1 < (trainer.max_epochs or 0):
            self.stopped, self.epochs, trainer.should_stop = True, trainer.current_epoch + 1, True


class ShowProgress(Callback):
    """A bar over all trainings, and a line per epoch, and its event, with an upper bound of the time left."""

    def __init__(
        self, run: Run, member: Member, history: History, bar: Progress, task: Any, trainings_left: int
    ) -> None:
        self.run, self.member, self.history = run, member, history
        self.bar, self.task, self.trainings_left = bar, task, trainings_left

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Advances the bar by a share of this training."""
        self.bar.advance(self.task, 1 / (trainer.num_training_batches * (trainer.max_epochs or 1)))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the epoch's line."""
        row, last, member = self.history.rows[-1], trainer.max_epochs or 0, self.member
        left = row["seconds"] * (last - trainer.current_epoch - 1 + last * self.trainings_left)
        sign: Any = pl_module.metric.sign
        scores = [sign * other["valid/score"] for other in self.history.rows if "valid/score" in other]
        best = "valid/score" in row and scores[-1] >= max(scores)
        say(epoch_lines.line(self.run, member.title, last, row, best, left))
        events.emit(events.Epoch(
            self.run.name, member.fold, member.seed, row["epoch"] + 1, last, row["train/loss"], row.get("valid/loss"),
            row.get("valid/score"), best, round(row["seconds"], 3), round(left, 1),
        ))  # fmt: skip


class Pictures(Callback):
    """TensorBoard: the network's graph, and of each epoch's first held-out batch image, truth, probability, mask."""

    def __init__(self, channels: int, largest_pixel: int) -> None:
        self.channels, self.largest_pixel = channels, largest_pixel

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the graph, once and on the smallest image that every architecture takes; not where several devices
        train, as what they tell each other cannot be traced."""
        if trainer.current_epoch > 0 or trainer.world_size > 1:
            return
        network: Any = pl_module.network
        pixels = torch.zeros((1, self.channels, 64, 64), dtype=torch.uint8, device=pl_module.device)
        training = network.training
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # tracing warns of what is constant here
                trainer.loggers[0].experiment.add_graph(_MaskOnly(network.eval()), pixels)  # type: ignore[attr-defined]
        except Exception as error:  # tracing has its own limits; training has not
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
        rows = [self._row(*one) for one in first]
        picture = np.concatenate(rows)
        trainer.loggers[0].experiment.add_image(  # type: ignore[attr-defined]
            "valid/image_truth_probability_mask", picture, trainer.current_epoch, dataformats="HWC"
        )

    def _row(self, pixels: torch.Tensor, masks: torch.Tensor, logits: torch.Tensor) -> np.ndarray:
        """Four pictures side by side (h, 4 w, 3) uint8."""
        image = pixels[:3].permute(1, 2, 0).float().cpu().numpy() * (255 / self.largest_pixel)
        if len(logits) > len(masks):  # class maps
            scale = 255 / (len(logits) - 1)
            chosen, confidence = logits.argmax(0), logits.softmax(0).max(0).values
            planes = [masks[0].masked_fill(masks[0] == IGNORE, 0) * scale, confidence * 255, chosen * scale]
        else:
            masks = masks[: len(logits)]  # not what separates their objects
            truth = ((masks == 1).any(0) * 1.0 + (masks == IGNORE).any(0) * 0.5).clamp(max=1)
            probability = logits.sigmoid().max(0).values
            planes = [truth * 255, probability * 255, (probability >= 0.5) * 255]
        grey = [np.repeat(plane.float().cpu().numpy()[..., None], 3, 2) for plane in planes]
        colour = image if image.shape[2] == 3 else np.repeat(image[..., :1], 3, 2)
        row = np.concatenate([colour, *grey], 1).clip(0, 255).astype(np.uint8)
        shrink = min(1.0, EXAMPLE_SIDE / max(colour.shape[:2]))
        return cv2.resize(row, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)


class _MaskOnly(torch.nn.Module):
    """A network whose output can be traced: one tensor."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Returns the logits of the masks."""
        return self.network(pixels).mask
