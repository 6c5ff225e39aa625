"""Trains within a given time: computes the steps of each epoch of a planned training (core/plan.py)."""

import time
from dataclasses import asdict
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from pipeline.core.plan import Pace, Plan, Round, read_plan
from pipeline.core.run import Member, Run
from pipeline.train.batches.sharing import Share
from pipeline.train.collectives import from_first


class FollowPlan(Callback):
    """Sets the number of steps of each epoch from the measured speed and from the time that is left.

    The schedule of the learning rate advances with the share of the epochs, so that it ends when the time ends.
    Lightning must load the training loader again in each epoch, because its length changes.
    """

    def __init__(self, run: Run, member: Member, train: Any, held_out: int, after: int, share: Share) -> None:
        """Prepares the plan of one training.

        Args:
            run: the run.
            member: the member to train.
            train: the loader of training batches, on an EpochSampler.
            held_out: the number of held-out images.
            after: the number of trainings that follow one after another in this round.
            share: this device's part of each batch.
        """
        plan, settings = read_plan(run.plan), run.recipe.train
        self.batches, self.until, self.after, self.share = train.batch_sampler, run.until, after, share
        self.accumulate, self.planned = settings.accumulate, round_of(plan, member).seconds
        halves = round(settings.half_size * settings.epochs)
        costs = plan.costs
        self.pace = Pace(
            settings.epochs, halves, plan.validate_every, costs.half, costs.full, held_out * costs.image
        )  # fmt: skip
        self.steps: list[int] = []
        """The number of optimiser steps of each finished epoch."""
        self.next_steps = 0
        self.started = self.first_ended = self.last_ended = self.ended = 0.0
        self.batch_count = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Sets the steps of the first epoch."""
        trainer.check_val_every_n_epoch = self.pace.validate_every
        self._set_steps()

    def state_dict(self) -> dict[str, Any]:
        """Returns the steps so far and the measured speed."""
        return {"steps": self.steps, "pace": asdict(self.pace)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues an interrupted training with the time that is left now."""
        self.steps, self.pace = list(state_dict["steps"]), Pace(**state_dict["pace"])
        self._set_steps()

    @property
    def seconds_left(self) -> float:
        """The time that this training has left, in seconds; it shares what is left with the trainings that follow."""
        to_do = 1 - len(self.steps) / self.pace.epochs
        if self.until is None or not to_do:
            return to_do * self.planned
        return max(0.0, self.until.seconds_left) * to_do / (to_do + self.after)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures the time between two epochs."""
        self.started, self.batch_count = time.perf_counter(), 0
        if self.ended:
            self.pace.end = self.started - self.ended

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Records the times of the first and of the last batch."""
        self.last_ended = time.perf_counter()
        self.batch_count += 1
        if self.batch_count == 1:
            self.first_ended = self.last_ended

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Computes the steps of the next epoch; the checkpoint of this epoch, with its state, is written afterwards."""
        self.ended = time.perf_counter()
        # the first batch of an epoch also waits for the loader and, in the first epoch, for memory and kernels
        seconds, count = self.last_ended - self.first_ended, self.batch_count - 1
        if not count:
            seconds, count = self.last_ended - self.started, 1
        self.pace.measured(len(self.steps), seconds / count * self.accumulate, self.ended - self.last_ended)
        self.steps.append(self.next_steps)
        if len(self.steps) < self.pace.epochs:
            self._set_steps()

    def _set_steps(self) -> None:
        """Sets the length of the next epoch, the same on all devices."""
        steps = from_first(self.pace.steps(len(self.steps), self.seconds_left), self.share)
        images = self.accumulate * self.share.batch
        self.next_steps = steps
        self.batches.sampler.take(sum(self.steps) * images, steps * images)


def round_of(plan: Plan, member: Member) -> Round:
    """Returns the round of a plan that trains a member."""
    return next(
        (one for one in plan.rounds if member.fold in one.folds and member.seed in one.seeds), plan.rounds[-1]
    )  # fmt: skip
