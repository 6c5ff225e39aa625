"""What a fold writes down and shows while it trains."""

import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping
from lightning.pytorch.plugins.io import TorchCheckpointIO
from rich.progress import Progress

from pipeline.console import console
from pipeline.workspace import writing


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints beside their place and renames them: Lightning's own go through the system's temporary folder,
    which on another disk means a copy that a kill can cut short."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes a checkpoint whole or not at all."""
        with writing(Path(path)) as temporary:
            torch.save(checkpoint, temporary)


class EarlyStopping(LightningEarlyStopping):
    """Lightning's early stopping, which also stops at once when a run is resumed after it had already stopped."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops before another epoch when patience was used up before the interruption."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True


class History(Callback):
    """history.csv: one row an epoch; kept in the checkpoint, so a resumed fold has all of its rows."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows, self.started = path, [], 0.0  # type: tuple[Path, list[dict[str, float]], float]

    def state_dict(self) -> dict[str, Any]:
        """The rows so far."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the rows of an interrupted run."""
        self.rows = state_dict["rows"]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the epoch's clock."""
        self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Adds the epoch's row and writes the file."""
        values = {name: float(trainer.callback_metrics[name]) for name in ("train/loss", "valid/loss", "valid/score")}
        rate, seconds = trainer.optimizers[0].param_groups[0]["lr"], time.perf_counter() - self.started
        self.rows.append({"epoch": trainer.current_epoch, **values, "learning_rate": rate, "seconds": seconds})
        with writing(self.path) as temporary:
            pd.DataFrame(self.rows).to_csv(temporary, index=False)


class ShowProgress(Callback):
    """A bar over all folds and epochs, and a line an epoch with an upper bound of the time left."""

    def __init__(self, history: History, bar: Progress, task: Any, fold: int, folds_left: int) -> None:
        self.history, self.bar, self.task, self.fold, self.folds_left = history, bar, task, fold, folds_left

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Advances the bar by a share of an epoch."""
        self.bar.advance(self.task, 1 / trainer.num_training_batches)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the epoch's line."""
        row, last = self.history.rows[-1], trainer.max_epochs or 0
        epochs = last - trainer.current_epoch - 1 + last * self.folds_left
        best = " *" if row["valid/score"] >= max(other["valid/score"] for other in self.history.rows) else ""
        console.print(
            f"  fold {self.fold} epoch {trainer.current_epoch + 1}/{last}  loss {row['train/loss']:.4f}  "
            f"valid {row['valid/loss']:.4f}  score {row['valid/score']:.4f}{best}  {row['seconds']:.1f} s, "
            f"at most {epochs * row['seconds'] / 60:.0f} min left"
        )
