"""Trainers of nnU-Net v2 that end after a given time: nnUNetTrainer_20minutes, or any other whole number of minutes.

    export nnUNet_extTrainer=benchmarks/nnunet_trainers
    nnUNetv2_train 501 2d 0 -tr nnUNetTrainer_20minutes --npz

nnU-Net's own trainers end after a number of batches. These end after a time, so that the device's speed need not be
known: the learning rate falls with the time that has passed, by nnU-Net's polynomial, and reaches zero at the end.
Everything else is nnU-Net's: network, patch size, batch size, loss, deep supervision, augmentation, and one batch of
held-out images per five training batches. Network and data are set up before the time begins.

A killed training continues with `--c` from the end of its last epoch, a twentieth of the time, with the time that is
left. On a CPU, torch uses OMP_NUM_THREADS threads if that is set, else one per core of the machine as nnU-Net chooses.
"""

import os
import re
from time import monotonic
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

EPOCHS = 20


class TimedTrainer(nnUNetTrainer):
    """nnU-Net's trainer for a time of `minutes`, which is divided into EPOCHS equal epochs."""

    minutes: int

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.save_every = EPOCHS, 1
        threads = os.environ.get("OMP_NUM_THREADS")
        if device.type == "cpu" and threads:
            torch.set_num_threads(int(threads))

    def run_training(self) -> None:
        """Trains until the time is over, in place of nnU-Net's loop over a number of batches."""
        self.on_train_start()
        budget, begin, validation = 60 * self.minutes, monotonic() - self._seconds_before(), 0.0
        for epoch in range(self.current_epoch, EPOCHS):
            self.on_epoch_start()
            self.on_train_epoch_start()
            end = budget * (epoch + 1) / EPOCHS - validation  # leaves the time that the held-out batches take
            outputs: list[dict[str, Any]] = []
            while not outputs or monotonic() - begin < end:
                self.lr_scheduler.step(EPOCHS * min(1.0, (monotonic() - begin) / budget))
                outputs.append(self.train_step(next(self.dataloader_train)))
            self.on_train_epoch_end(outputs)
            trained = monotonic()
            with torch.no_grad():
                self.on_validation_epoch_start()
                batches = range(max(1, len(outputs) // 5))
                self.on_validation_epoch_end([self.validation_step(next(self.dataloader_val)) for _ in batches])
            self.print_to_log_file(f"{len(outputs)} training batches and {len(batches)} held-out batches")
            self.on_epoch_end()
            validation = monotonic() - trained
            if monotonic() - begin >= budget:  # one batch takes longer than an epoch should
                break
        self.on_train_end()

    def _seconds_before(self) -> float:
        """Returns how long the epochs took from which this training continues."""
        starts, ends = (
            self.logger.get_value(f"epoch_{name}_timestamps", step=None)[: self.current_epoch]
            for name in ("start", "end")
        )
        return float(sum(ends) - sum(starts))


def __getattr__(name: str) -> type[TimedTrainer]:
    """Returns the trainer of this name, which nnU-Net looks up here: it finds trainers by the names of classes."""
    found = re.fullmatch(r"nnUNetTrainer_([1-9]\d*)minutes", name)
    if found is None:
        raise AttributeError(f"{__name__} has no {name}; expected a trainer nnUNetTrainer_<number>minutes.")
    return type(name, (TimedTrainer,), {"minutes": int(found[1])})
