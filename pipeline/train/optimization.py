"""The optimiser by name, and the schedule of the learning rate."""

import copy
import inspect
import math
from typing import Any, Literal

import numpy as np
import torch
from timm.optim import create_optimizer_v2, get_optimizer_class, get_optimizer_info, list_optimizers
from torch.nn import Parameter
from torch.optim import SGD, Optimizer
from torch.optim import lr_scheduler as schedulers
from torch.optim.lr_scheduler import LRScheduler

from pipeline.core.config.training import ScheduleSettings, TrainSettings
from pipeline.core.errors import PipelineError, did_you_mean

LOOKAHEAD = "lookahead_"
WARM_UP_START = 0.01
"""The share of the learning rate at the start of a warm-up."""


def build_optimizer(settings: TrainSettings, encoder: list[Parameter], rest: list[Parameter]) -> Optimizer:
    """Returns timm's optimiser of this name over all these parameters, all with weight decay.

    It has one parameter group, or two if the encoder has its own learning rate: first the rest, then the encoder.
    `lookahead_<name>` is timm's Lookahead around another optimiser (Zhang et al. 2019, arXiv 1907.08610).

    Raises:
        PipelineError: an unknown name or setting, a value that the optimiser does not accept, or a learning rate for an
            encoder that does not exist.
    """
    name = _known_name(settings.optimizer)
    try:
        _check_options(name, settings.optimizer_options)
        return create_optimizer_v2(
            _groups(settings, encoder, rest),
            name,
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            **_fused(settings, name) | settings.optimizer_options,
        )
    # apex and bitsandbytes raise AssertionError and ImportError without CUDA or the package
    except (AssertionError, ImportError, TypeError, ValueError) as error:
        options = f" with train.optimizer_options {settings.optimizer_options}" if settings.optimizer_options else ""
        raise PipelineError(f"train.optimizer {name}{options} cannot be built: {error}") from error


def _known_name(name: str) -> str:
    """Returns the name as timm knows it. It is checked here, because timm would accept `any_thing_adam` as adam.

    Raises:
        PipelineError: timm does not know the name, or the optimiser needs second derivatives, which training does not
            compute.
    """
    plain = [str(other) for other in list_optimizers()]
    known = [*plain, *(LOOKAHEAD + other for other in plain)]
    if name.lower() not in known:
        meant = did_you_mean(name.lower(), known, 3)
        usual = " Common ones are adam, adamw, sgd, radam and lookahead_radam." if meant == "." else ""
        raise PipelineError(f"train.optimizer is `{name}`, which timm does not know{meant}{usual}")
    if get_optimizer_info(name.lower().removeprefix(LOOKAHEAD)).second_order:
        raise PipelineError(f"train.optimizer {name} needs second derivatives, which are not computed; use another.")
    return name.lower()


def _check_options(name: str, options: dict[str, Any]) -> None:
    """Raises PipelineError for settings that the optimiser does not have or that are set elsewhere in the recipe."""
    optimizer = get_optimizer_class(name.removeprefix(LOOKAHEAD), bind_defaults=False)
    elsewhere = {"params", "lr", "weight_decay"}
    real = [option for option in inspect.signature(optimizer).parameters if option not in elsewhere]
    unknown = [option for option in options if option not in real]
    if unknown:
        raise PipelineError(
            f"train.optimizer_options: {name} has no setting {', '.join(unknown)}; it has {', '.join(real)} "
            "(and train.learning_rate and train.weight_decay)."
        )


def _fused(settings: TrainSettings, name: str) -> dict[str, bool]:
    """Returns the option of torch's optimisers that updates all weights in one pass, if they have it on all devices.

    Adagrad is left out, because it had the option only for CPUs until 2026. It is not used with train.gradient_clip:
    with float16, gradients are unscaled in this pass, and it is then too late to clip them.
    """
    optimizer = get_optimizer_class(name.removeprefix(LOOKAHEAD), bind_defaults=False)
    has = optimizer in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
    return {"fused": True} if has and not settings.gradient_clip else {}


def _groups(settings: TrainSettings, encoder: list[Parameter], rest: list[Parameter]) -> list[dict[str, Any]]:
    """Returns the parameter groups: one for all parameters, or one for the rest and one for the encoder.

    Raises:
        PipelineError: a learning rate is set for the encoder, but there is no encoder or it is frozen.
    """
    rate = settings.rate_of_encoder
    if rate is None:
        return [{"params": [*rest, *encoder]}]
    if not encoder:
        name = "encoder_learning_rate" + ("_factor" if settings.encoder_learning_rate_factor is not None else "")
        raise PipelineError(f"train.{name} is set, but the network has no trainable encoder; remove the setting.")
    return [{"params": rest}, {"params": encoder, "lr": rate}]


class Schedule:
    """The learning rates of all parameter groups: the initial rate of each, times one common multiplier.

    torch's scheduler changes the multiplier, which is the learning rate of a dummy optimiser. The rates of all groups
    are therefore proportional, although torch has only one `eta_min` for all groups, and any optimiser can be used,
    wrapped or not.
    """

    def __init__(
        self,
        settings: ScheduleSettings,
        optimizer: Optimizer,
        epochs: int,
        steps_per_epoch: int,
        snapshots: int = 1,
        curve: list[float] | None = None,
    ) -> None:
        """Sets the first learning rates.

        Args:
            settings: the schedule.
            optimizer: the optimiser, with the full learning rate in every group.
            epochs: the number of epochs of the training.
            steps_per_epoch: the number of steps of the optimiser per epoch.
            snapshots: the number of equal cycles, for the schedule restarts.
            curve: multipliers, one per epoch, that replace the schedule and its warm-up; the last one is kept.

        Raises:
            PipelineError: the warm-up leaves no step for the schedule.
        """
        self.settings, self.optimizer, self.snapshots, self.curve = settings, optimizer, snapshots, curve
        self.steps_per_epoch, self.total = steps_per_epoch, epochs * steps_per_epoch
        self.warm_up = 0 if curve is not None else round(settings.warm_up * steps_per_epoch)
        if self.warm_up >= self.total:
            raise PipelineError(
                f"train.schedule.warm_up is {settings.warm_up:g} epochs, but training has {epochs}: it must be shorter."
            )
        # torch's own key, which optimisers save, so that a reloaded optimiser keeps its full rate
        self.full = [group.setdefault("initial_lr", group["lr"]) for group in optimizer.param_groups]
        self.steps = 0
        self._begin()

    def step_batch(self) -> None:
        """Advances by one step of the optimiser; after the last step, the learning rate does not change."""
        self.steps += 1
        if self.steps == self.warm_up:
            self._begin()
        elif self.steps < self.total and (self.steps < self.warm_up or not self._by_epoch()):
            self._step()

    def step_epoch(self, loss: float, score: float) -> None:
        """Advances by one epoch with this validation loss and score."""
        if self.steps < self.warm_up or not self._by_epoch():
            return
        if isinstance(self.scheduler, schedulers.ReduceLROnPlateau):
            self._step(loss if self.settings.monitor == "loss" else score)
        else:
            self._step()

    def learning_rate(self) -> float:
        """Returns the learning rate of all parameters, except those of an encoder with its own rate."""
        return float(self.optimizer.param_groups[0]["lr"])

    def state_dict(self) -> dict[str, Any]:
        """Returns the state that load_state_dict needs to continue with exactly the same learning rates."""
        state = {"steps": self.steps, "multiplier": self._multiplier(), "scheduler": self.scheduler.state_dict()}
        return copy.deepcopy(state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state of a schedule with the same settings, and sets the learning rates."""
        self.steps = state["steps"]
        self._begin()
        # a copy, because some of torch's schedulers modify the state that they load
        self.scheduler.load_state_dict(copy.deepcopy(state["scheduler"]))
        self.unit.param_groups[0]["lr"] = state["multiplier"]
        self._apply()

    def _by_epoch(self) -> bool:
        """Returns whether the schedule advances per epoch instead of per batch after the warm-up."""
        return self.curve is not None or self.settings.name == "plateau"

    def _begin(self) -> None:
        """Starts the scheduler for the current step, at the full learning rate."""
        self.unit: Optimizer = SGD([Parameter(torch.zeros(()))], lr=1.0)
        self.scheduler = self._scheduler()
        self._apply()

    def _step(self, *metric: Any) -> None:
        """Advances the multiplier."""
        # has no effect, but torch warns if a scheduler is stepped before its optimiser
        self.unit.step()
        self.scheduler.step(*metric)
        self._apply()

    def _apply(self) -> None:
        """Sets the optimiser's learning rates."""
        for group, full in zip(self.optimizer.param_groups, self.full, strict=True):
            group["lr"] = full * self._multiplier()

    def _multiplier(self) -> float:
        """Returns the share of the full learning rate."""
        return float(self.unit.param_groups[0]["lr"])

    def _scheduler(self) -> LRScheduler:
        """Returns torch's scheduler for this step: for the curve, the warm-up, or the schedule."""
        if self.curve is not None:
            curve = self.curve
            return schedulers.LambdaLR(self.unit, lambda epoch: curve[min(epoch, len(curve) - 1)])
        if self.steps < self.warm_up:
            return schedulers.LinearLR(self.unit, WARM_UP_START, total_iters=self.warm_up)
        builders = {
            "constant": self._constant,
            "plateau": self._plateau,
            "cosine": self._cosine,
            "restarts": self._restarts,
            "cyclic": self._cyclic,
            "one_cycle": self._one_cycle,
        }
        return builders[self.settings.name]()

    def _constant(self) -> LRScheduler:
        """Returns a scheduler that keeps the multiplier at 1."""
        return schedulers.LambdaLR(self.unit, lambda step: 1.0)

    def _plateau(self) -> LRScheduler:
        """Returns a scheduler that lowers the rate when the monitored value stops improving."""
        mode: Literal["min", "max"] = "min" if self.settings.monitor == "loss" else "max"
        factor, patience = self.settings.factor, self.settings.patience
        return schedulers.ReduceLROnPlateau(self.unit, mode=mode, factor=factor, patience=patience)

    def _cosine(self) -> LRScheduler:
        """Returns half a cosine that reaches the floor at the last step (Loshchilov and Hutter 2017)."""
        last = max(1, self.total - self.warm_up - 1)
        return schedulers.CosineAnnealingLR(self.unit, T_max=last, eta_min=self.settings.floor)

    def _restarts(self) -> LRScheduler:
        """Returns cosines with restarts (Loshchilov and Hutter 2017); with snapshots, of equal length (Huang et
        al.)."""
        cycle, growth, floor = self._cycle(), self.settings.growth, self.settings.floor
        scheduler = schedulers.CosineAnnealingWarmRestarts(self.unit, T_0=cycle, T_mult=growth, eta_min=floor)
        if self.snapshots > 1 and self.warm_up:
            # models are kept at the end of cycles, which must be the end of epochs: the warm-up is part of the first
            # cycle
            scheduler.step(self.warm_up)
        return scheduler

    def _cyclic(self) -> LRScheduler:
        """Returns triangles between the floor and the full rate (Smith 2017)."""
        # momentum is not cycled, here and in one_cycle: many optimisers have none, or define it differently
        half, floor = self._cycle() / 2, self.settings.floor
        # torch's annotation is int, but its code accepts floats
        return schedulers.CyclicLR(self.unit, floor, 1.0, step_size_up=half, cycle_momentum=False)  # type: ignore[arg-type]

    def _one_cycle(self) -> LRScheduler:
        """Returns a rise from 1/25 (or the floor, if higher) and a fall to the floor (without a floor, to torch's
        default).

        This is the one-cycle policy of Smith and Topin 2018, arXiv 1708.07120, along cosines as in torch and fastai.
        """
        steps, rise, floor = self.total - self.warm_up, self.settings.rise, self.settings.floor
        if rise * steps == 1:
            # torch divides by zero if the rise ends at the first step
            rise *= 0.999
        start = min(25.0, 1 / floor) if floor > 0 else 25.0
        end = 1 / (start * floor) if floor > 0 else 1e4
        return schedulers.OneCycleLR(
            self.unit, 1.0, steps, pct_start=rise, div_factor=start, final_div_factor=end, cycle_momentum=False
        )

    def _cycle(self) -> int:
        """Returns the number of steps of the first cycle, which is at least 2."""
        if self.snapshots > 1:
            return self.total // self.snapshots
        quarter = max(self.steps_per_epoch, (self.total - self.warm_up) / 4)
        steps = quarter if self.settings.cycle is None else self.settings.cycle * self.steps_per_epoch
        # rounded up, so that no new cycle begins in the last few steps; after removing float errors as in 0.1 * 30
        return max(2, math.ceil(round(steps, 6)))


class PacedSchedule:
    """A schedule whose epochs differ in their number of steps: the multiplier depends on the share of epochs so far."""

    POINTS = 100
    """The number of points per epoch between which the multiplier is interpolated."""

    def __init__(self, settings: ScheduleSettings, optimizer: Optimizer, epochs: int, snapshots: int = 1) -> None:
        """Computes the multipliers of a Schedule with equal epochs, which must not depend on scores (plateau)."""
        self.optimizer, self.epoch, self.steps, self.steps_per_epoch = optimizer, 0, 0, 1
        self.full = [group.setdefault("initial_lr", group["lr"]) for group in optimizer.param_groups]
        unit = SGD([Parameter(torch.zeros(()))], lr=1.0)
        even = Schedule(settings, unit, epochs, self.POINTS, snapshots)
        self.curve = [even.learning_rate()]
        for _ in range(epochs * self.POINTS - 1):
            even.step_batch()
            self.curve.append(even.learning_rate())
        self.points = np.arange(len(self.curve))
        self._apply()

    def begin_epoch(self, epoch: int, steps: int) -> None:
        """Begins an epoch with this number of steps of the optimiser."""
        self.epoch, self.steps, self.steps_per_epoch = epoch, 0, steps
        self._apply()

    def step_batch(self) -> None:
        """Advances by one step of the optimiser."""
        self.steps += 1
        self._apply()

    def step_epoch(self, loss: float, score: float) -> None:
        """Does nothing, because `begin_epoch` advances the schedule."""

    def learning_rate(self) -> float:
        """Returns the learning rate of all parameters, except those of an encoder with its own rate."""
        return float(self.optimizer.param_groups[0]["lr"])

    def state_dict(self) -> dict[str, Any]:
        """Returns nothing: the epoch is all that matters."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Does nothing, because `begin_epoch` sets the rates."""

    def _apply(self) -> None:
        place = (self.epoch + self.steps / self.steps_per_epoch) * self.POINTS
        multiplier = float(np.interp(place, self.points, self.curve))
        for group, full in zip(self.optimizer.param_groups, self.full, strict=True):
            group["lr"] = full * multiplier
