"""Trainings that follow a plan: the steps of their epochs, their order of images, and their learning rates."""

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Tiny
from trainings import prepare, summary, train

from pipeline.core import moments
from pipeline.core.config.training import ScheduleSettings
from pipeline.core.files import write_json
from pipeline.core.moments import Moment
from pipeline.core.plan import Costs, Pace, Plan, Round, validations_for
from pipeline.core.run import Run
from pipeline.core.trainings import epochs_of
from pipeline.train import pace
from pipeline.train.batches.sampling import EpochSampler
from pipeline.train.module import SegmentationModule
from pipeline.train.optimization import PacedSchedule, Schedule


def test_steps_fill_the_time_that_is_left() -> None:
    one = Pace(epochs=10, halves=5, validate_every=5, half=0.1, full=0.4, validation=2.0, end=0.5)
    steps = one.steps(0, 134.0)
    assert steps == 50  # 5 · 50 · (0.1 + 0.4) s of training, two predictions, ten checkpoints
    one.measured(0, 0.2, 0.0)  # twice as slow as planned
    assert (one.half, one.full, one.validation) == pytest.approx((0.2, 0.8, 2.0))
    assert one.steps(1, 120.0) == int((120 - 4 - 4.5) / (4 * 0.2 + 5 * 0.8))
    one.measured(5, 0.5, 0.0)
    one.measured(9, 0.5, 3.0)
    assert (one.full, one.validation) == (0.5, 3.0)
    assert one.steps(9, 0.0) == 1  # the time is over, but the schedule still ends


def test_held_out_images_are_predicted_as_often_as_a_twentieth_of_the_time_allows() -> None:
    assert [validations_for(1000, 20, seconds) for seconds in (0.1, 5.0, 10.0, 40.0, 900.0)] == [1, 2, 4, 20, 20]


def taken(sampler: EpochSampler, *counts: int) -> list[np.ndarray]:
    first, parts = 0, []
    for count in counts:
        sampler.take(first, count)
        assert len(sampler) == count
        drawn = np.array([position for _, position in sampler])
        assert len(set(drawn.tolist())) == count  # a repetition has its own number
        parts.append(drawn % sampler.length)
        first += count
    return parts


def test_epochs_of_any_length_go_through_all_images_in_turn() -> None:
    whole, parts = EpochSampler(10, 3), taken(EpochSampler(10, 3), 4, 9, 27)
    passes = []
    for epoch in range(4):
        whole.set_epoch(epoch)
        passes.append([position for _, position in whole])
    assert np.array_equal(np.concatenate(parts), np.concatenate(passes))


def test_a_part_of_a_pass_has_one_image_per_group_in_each_batch() -> None:
    groups = np.arange(12) % 4
    for part in taken(EpochSampler(12, 0, groups=groups, batch_size=4), 8, 4, 24):
        assert all(len(set(groups[batch])) == 4 for batch in part.reshape(-1, 4))


@pytest.mark.parametrize("name", ["one_cycle", "cosine"])
def test_the_learning_rate_follows_the_share_of_epochs(name: Any) -> None:
    settings = ScheduleSettings(name=name)
    optimizers = [torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1) for _ in range(2)]
    even = Schedule(settings, optimizers[0], 4, 100)
    usual = [even.learning_rate()]
    for _ in range(399):
        even.step_batch()
        usual.append(even.learning_rate())
    paced = PacedSchedule(settings, optimizers[1], 4)
    rates = []
    for epoch, steps in enumerate((1, 50, 200, 3)):
        paced.begin_epoch(epoch, steps)
        for step in range(steps):
            place = round((epoch + step / steps) * 100)
            assert paced.learning_rate() == pytest.approx(usual[min(place, 399)], abs=2e-3)
            rates.append(paced.learning_rate())
            paced.step_batch()
    assert max(rates) == pytest.approx(0.1, abs=2e-3) and paced.learning_rate() < 1e-4


def planned(tiny: Tiny, seconds: float, epochs: int = 4) -> Run:
    run = replace(prepare(tiny, {"train": {"folds": [0], "epochs": epochs, "half_size": 0.5}}), budget=60.0)
    only = Round(folds=[0], seeds=[0], trainings=1, at_once=1, seconds=seconds, passes=1.0, after=1.0)
    costs = Costs(half=0.05, full=0.2, image=0.01)
    plan = Plan(budget=60.0, settings={}, validate_every=2, rounds=[only], costs=costs, reasons=[])
    write_json(run.plan, plan.model_dump())
    return replace(run, until=Moment.after(seconds))


class SlowClock:
    """A clock on which only training steps take time."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic

    def time(self) -> float:
        return time.time() - 1e6  # the clock of the machine was set back


def test_a_training_ends_when_its_time_ends(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, step = SlowClock(), SegmentationModule.training_step

    def slow(self: SegmentationModule, *arguments: Any) -> Any:
        clock.now += 0.5 if self.current_epoch < 2 else 2.0  # ten times as slow as planned
        return step(self, *arguments)

    for module in (pace, moments):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(SegmentationModule, "training_step", slow)
    run = replace(planned(tiny, 0.6), until=Moment.after(100))
    monkeypatch.setattr(pace.FollowPlan, "setup", begin_with(4))
    train(run, "validate", "tune")
    assert clock.now - 1000 == pytest.approx(100, abs=2)
    rows = epochs_of(run.fold_folder(0) / "history.json")
    assert ["valid/score" in row for row in rows] == [False, True, False, True]
    # after 2 s, one epoch at 0.5 s per step and two at 2 s per step are left
    assert [row["batches"] for row in rows] == [4, 21, 21, 22]
    assert rows[-1]["learning_rate"] < rows[0]["learning_rate"] and summary(run)["best_epoch"] == 3


def begin_with(steps: int) -> Any:
    """Returns a `setup` of FollowPlan whose first epoch has this number of steps."""
    setup = pace.FollowPlan.setup

    def of_known_length(self: pace.FollowPlan, *arguments: Any, **options: Any) -> None:
        setup(self, *arguments, **options)
        self.next_steps = steps
        self.batches.sampler.take(0, steps * self.share.batch)

    return of_known_length


def test_a_resumed_training_uses_the_time_that_is_left(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    run, started = planned(tiny, 30.0), pace.FollowPlan.on_train_epoch_start

    def killed_in_third(self: pace.FollowPlan, *arguments: Any) -> None:
        started(self, *arguments)
        if len(self.steps) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(pace, "from_first", lambda value, share: min(value, 3))  # short epochs, but time is left
    with monkeypatch.context() as patch:
        patch.setattr(pace.FollowPlan, "on_train_epoch_start", killed_in_third)
        with pytest.raises(KeyboardInterrupt):
            train(run)
    before = epochs_of(run.fold_folder(0) / "history.json")
    train(replace(run, until=Moment.after(-1)))  # no time is left: one step per epoch, then the end
    rows = epochs_of(run.fold_folder(0) / "history.json")
    assert rows[:2] == before and [row["batches"] for row in rows] == [3, 3, 1, 1]
