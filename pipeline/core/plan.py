"""The plan of a run with `--time`: how long each training may take, and what it may take it for.

A planned training has a fixed number of epochs, but an epoch is not a pass over the images: it has as many steps as
fit into its time. After each epoch, the steps of the remaining ones are computed again from the measured speed and the
time that is left. The schedule of the learning rate therefore ends when the time ends, whatever the machine does.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from pipeline.core.written import Part, read_checked

AtLeastZero = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Numbers = Annotated[list[int], Field(min_length=1)]
REMEDY = "restore the file, or plan and train again with --force"
EPOCHS, LONGEST = 20, 360.0
"""The number of epochs of a planned training, unless they would be longer than LONGEST seconds each: a killed run loses
at most one epoch."""
OF_VALIDATION = 0.05
"""The share of a training's time that held-out images may take."""
PLAN = "plan.json"
CLOCK = "clock.json"
PLANNED = ("train.epochs", "train.steps")
"""Settings that only the plan decides."""
FIRST = "-first"
"""The end of the name of a first run."""
FIRST_SHARE = 0.1
"""The share of the budget after which the first submission exists."""


class Costs(Part):
    """What training and prediction cost on this machine, in seconds."""

    half: Positive
    """One step at half the image size, including the loading of its batch."""
    full: Positive
    """One step at full size."""
    image: Positive
    """The prediction of one image, without test-time augmentation."""
    side_by_side: Annotated[float, Field(ge=1)] = 1.0
    """How much longer a step takes if several trainings share the cores of a CPU, each with its part of them."""
    stages: dict[str, AtLeastZero] = {}
    """Each later stage of the first run, for one model and one view."""


class Round(Part):
    """Trainings after which a submission is made."""

    folds: Numbers
    """The folds that are trained when the round ends, those of earlier rounds included."""
    seeds: Numbers
    trainings: Count
    """The number of trainings that this round adds."""
    at_once: Count
    """The number of trainings that run at the same time."""
    seconds: Positive
    """The time of each training."""
    passes: AtLeastZero
    """How often a training sees each image."""
    after: AtLeastZero
    """The seconds of the stages after the trainings."""

    @property
    def training(self) -> float:
        """The seconds that all trainings of the round take."""
        return self.seconds * math.ceil(self.trainings / self.at_once)


class Plan(Part):
    """The content of plan.json."""

    budget: Positive
    """The time of the whole run in seconds."""
    settings: dict[str, Any]
    """The settings that the plan changes in the recipe, with dotted keys."""
    validate_every: Count
    """The number of epochs between two predictions of the held-out images."""
    rounds: Annotated[list[Round], Field(min_length=1)]
    costs: Costs
    reasons: list[str]
    for_all_folds: Positive | None = None
    """The budget in seconds from which on all folds are planned; None if the folds were chosen."""

    def first_rounds(self, count: int) -> "Plan":
        """Returns the plan without the rounds after the first `count`."""
        rounds = self.rounds[:count]
        trained = {"train.folds": rounds[-1].folds, "train.seeds": rounds[-1].seeds}
        return self.model_copy(update={"rounds": rounds, "settings": self.settings | trained})


def read_plan(path: Path) -> Plan:
    """Returns the plan of a run.

    Raises:
        PipelineError: the file is missing or damaged.
    """
    return Plan.model_validate(read_checked(path, Plan, REMEDY))


def find_plan(folder: Path) -> Plan | None:
    """Returns the plan in the folder of a run, without the rounds that were left out; None if the run is not planned,
    or not yet.

    Raises:
        PipelineError: the plan or the clock is damaged.
    """
    if not (folder / PLAN).exists():
        return None
    plan, clock = read_plan(folder / PLAN), find_clock(folder)
    return plan.first_rounds(clock.rounds) if clock and clock.rounds else plan


class Clock(Part):
    """The content of clock.json: how much of its budget a run has used, over all its processes."""

    used: AtLeastZero
    budget: Positive | None = None
    """The time of the whole run in seconds."""
    rounds: Annotated[int, Field(ge=0)] | None = None
    """The number of rounds that are carried out, because the time was too short for the later ones. 0: not even the
    first one, so that the first run is the result; None: all."""

    @property
    def only_first(self) -> bool:
        """Whether the time was only enough for the first run."""
        return self.rounds == 0


def find_clock(folder: Path) -> Clock | None:
    """Returns the clock in the folder of a run; None if the run is not planned, or has not begun.

    Raises:
        PipelineError: the file is damaged.
    """
    remedy = f"delete the file, so that the run has its whole time again, or {REMEDY}"
    path = folder / CLOCK
    return Clock.model_validate(read_checked(path, Clock, remedy)) if path.exists() else None


# --- how long ---


def epochs_for(seconds: float, least: int = EPOCHS) -> int:
    """Returns the number of epochs of a training that takes `seconds`: a multiple of `least`."""
    return least * max(1, math.ceil(seconds / least / LONGEST))


def validations_for(seconds: float, epochs: int, held_out: float) -> int:
    """Returns the number of epochs between two predictions of the held-out images, which take `held_out` seconds."""
    affordable = max(1.0, OF_VALIDATION * seconds / max(held_out, 1e-9))
    return next(every for every in range(1, epochs + 1) if epochs % every == 0 and epochs / every <= affordable)


@dataclass
class Pace:
    """Computes how many steps the next epoch of a training has."""

    epochs: int
    halves: int
    """The number of epochs, from the first one on, at half the image size."""
    validate_every: int
    half: float
    """The seconds of a step at half the size, as last measured or planned."""
    full: float
    validation: float
    """The seconds of a prediction of the held-out images."""
    end: float = 0.0
    """The seconds between two epochs, for the checkpoint."""

    def steps(self, epoch: int, seconds: float) -> int:
        """Returns the number of steps of `epoch` if all epochs from this one on take `seconds` together.

        All of them have the same number of steps, at least one.
        """
        left = range(epoch, self.epochs)
        halves = sum(number < self.halves for number in left)
        validations = sum(self.validates(number) for number in left)
        seconds -= validations * self.validation + len(left) * self.end
        return max(1, int(seconds / (halves * self.half + (len(left) - halves) * self.full)))

    def validates(self, epoch: int) -> bool:
        """Returns whether the held-out images are predicted after `epoch`."""
        return (epoch + 1) % self.validate_every == 0

    def measured(self, epoch: int, step: float, validation: float) -> None:
        """Takes the measured seconds of a step of `epoch` and of the prediction of the held-out images after it.

        Until the first epoch at full size, its steps are assumed to differ from the plan by the same factor.
        """
        if epoch < self.halves:
            self.full, self.half = self.full * step / self.half, step
        else:
            self.full = step
        if self.validates(epoch):
            self.validation = validation
