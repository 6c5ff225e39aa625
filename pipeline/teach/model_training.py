"""Trains a network on eight drawn images for up to a minute: gradients, the range of its logits, and whether it learns.

The loss is the pipeline's binary cross-entropy plus Dice, each class a mask of its own.
"""

import contextlib
import io
import math
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pipeline.core.config.losses import LossSettings
from pipeline.core.console import duration, progress_bar
from pipeline.core.shortage import pass_on
from pipeline.networks.output import Output
from pipeline.teach.model_checks import listed
from pipeline.teach.model_probe import Probe, Result, Status, UnusableOutput, described
from pipeline.train.losses import WeightedLoss

FIRST_STEPS, FEWEST_STEPS = 5, 3
"""Steps whose gradients are looked at, and how many of them are taken whatever the time: layers that start at zero let
no gradient through in the first one."""
ENOUGH, GOAL = 0.9, 0.95
"""The least Dice on the eight images that passes, and the one at which training stops."""
MOST_STEPS, DECIDED = 600, 100
"""Steps after which training stops, and after which a low Dice is the network's fault and not that of the time."""
LEARNING_RATE, WARM_UP = 2e-3, 10
"""The learning rate of Adam, and the steps in which it rises to it."""
EVALUATED_EVERY = 10
DRAWN = 8
"""How often the network is asked with drawn weights: by chance, a logit of its own would have one sign in 1 of 128."""
LAST = "End with the last convolution: losses, thresholds and test-time averages of the pipeline expect logits."


class NoLearning(Exception):
    """Training on the eight images ended with an error or a loss that is no number."""


@dataclass
class Learner:
    """A network in training on drawn images.

    Attributes:
        probe: the network.
        images: (8, channels, rows, columns) float32.
        masks: (8, classes, rows, columns) uint8.
        gradients: the largest absolute value of each parameter's gradient so far, None without a gradient, NaN where
            one was not finite.
        steps: taken so far.
    """

    probe: Probe
    images: Tensor
    masks: Tensor
    gradients: dict[str, float | None] = field(default_factory=dict)
    steps: int = 0

    def __post_init__(self) -> None:
        trained = [parameter for parameter in self.probe.network.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(trained, LEARNING_RATE)
        self.loss = WeightedLoss(LossSettings(), "multilabel")

    def step(self) -> Tensor:
        """Takes one step, and returns the logits in training before it.

        Raises:
            UnusableOutput: the network fails.
            NoLearning: the loss has no gradient, or is no number.
        """
        self.optimizer.param_groups[0]["lr"] = LEARNING_RATE * min(1.0, (self.steps + 1) / WARM_UP)
        output = self.probe.output_in_training(self.images)
        value = self.loss(Output(output.mask, None, output.deep), self.masks)
        if not torch.isfinite(value):
            raise NoLearning(f"the loss is {value.item()} in step {self.steps + 1}")
        self.optimizer.zero_grad(set_to_none=True)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                value.backward()
        except (Exception, SystemExit) as error:  # autograd raises many types, and hooks are the user's code
            pass_on(error)
            raise NoLearning(f"the loss has no gradient: {described(error)}") from error
        if self.steps < FIRST_STEPS:
            self._note_gradients()
        self.optimizer.step()
        self.steps += 1
        return output.mask.detach()

    def dice(self, logits: Tensor) -> float:
        """Returns the mean Dice of logits at 0, that is probability 0.5, over images and classes."""
        predicted, true = logits > 0, self.masks > 0
        both, total = (predicted & true).sum((2, 3)), predicted.sum((2, 3)) + true.sum((2, 3))
        return float(torch.where(total > 0, 2 * both / total.clamp(min=1), 1.0).mean())

    def evaluated(self) -> tuple[float, Tensor]:
        """Returns the Dice in evaluation, and the logits."""
        self.probe.network.eval()
        logits = self.probe.logits(self.images)
        return self.dice(logits), logits

    def _note_gradients(self) -> None:
        for name, parameter in self.probe.network.named_parameters():
            if parameter.requires_grad:
                gradient = parameter.grad
                largest = None if gradient is None else float(gradient.abs().max()) if gradient.numel() else 0.0
                if gradient is not None and not torch.isfinite(gradient).all():
                    largest = float("nan")
                self.gradients[name] = _larger(self.gradients.get(name), largest)


def _larger(before: float | None, now: float | None) -> float | None:
    values = [value for value in (before, now) if value is not None]
    return next((value for value in values if math.isnan(value)), max(values)) if values else None


def check_gradients(learner: Learner, deadline: float) -> Result:
    """Returns whether every parameter has a finite gradient that is not zero, after the first steps.

    Args:
        learner: before its first step.
        deadline: by time.monotonic(); three steps are taken in any case.
    """
    try:
        while learner.steps < FIRST_STEPS and (learner.steps < FEWEST_STEPS or time.monotonic() < deadline):
            learner.step()
    except UnusableOutput as problem:
        return Result("gradients", "fail", problem.reason, problem.remedy)
    except NoLearning as problem:
        return Result(
            "gradients",
            "fail",
            f"Training fails: {problem}.",
            "Nothing may cut the graph between input and logits: no detach(), .data, numpy(), argmax or "
            "torch.no_grad(). A loss that is no number comes from a logarithm or a division by zero.",
        )
    return _gradient_result(learner)


def _gradient_result(learner: Learner) -> Result:
    gradients = learner.gradients
    broken = [name for name, value in gradients.items() if value is not None and math.isnan(value)]
    missing = [name for name, value in gradients.items() if value is None]
    zero = [name for name, value in gradients.items() if value == 0]
    # a bias in front of BatchNorm has a gradient of zero but for rounding, and does no harm
    dead = [name for name in zero if not name.endswith("bias") or _weight_of(name) in (*zero, *missing)]
    if broken:
        return Result(
            "gradients", "fail", f"The gradient of {listed(broken)} is not finite.",
            "Look for a logarithm, root or division of zero, or an exponential of large values, in forward.",
        )  # fmt: skip
    # a published architecture may have layers that it does not use; in the user's class that is a mistake
    status: Status = "fail" if learner.probe.user_class else "note"
    if missing:
        return Result(
            "gradients", status, f"No gradient reaches {listed(missing)}.",
            "Is the layer called in forward, and its result used? A detach(), .data or torch.no_grad() cuts it off. "
            "Remove layers that nothing uses.",
        )  # fmt: skip
    if dead:
        return Result(
            "gradients", status, f"The gradient of {listed(dead)} is exactly zero.",
            "The layer's result never matters: a ReLU whose input is always negative (dead: check the initialisation "
            "and the bias before it), or a factor of zero behind it.",
        )  # fmt: skip
    return Result("gradients", "pass", f"Finite and not zero in all {len(gradients)} parameter tensors.")


def _weight_of(bias: str) -> str:
    return bias.removesuffix("bias") + "weight"


def check_range(learner: Learner) -> Result:
    """Returns whether the outputs are logits: numbers of both signs without bounds.

    Bounds show in the outputs of other weights, too, so that the network is asked with some that are drawn.
    """
    probe = learner.probe
    probe.network.eval()
    try:
        values = torch.stack([probe.logits(factor * learner.images) for factor in (1, -1, 100, -100)]).float()
        drawn = _of_drawn_weights(probe, learner.images[:2])
    except UnusableOutput as problem:
        return Result("logits", "fail", problem.reason, problem.remedy)
    text = f"Outputs lie between {float(values[0].min()):.3g} and {float(values[0].max()):.3g}."
    if not torch.isfinite(values[0]).all():
        return Result("logits", "fail", "Outputs in evaluation are not finite.", "Look for a division by zero.")
    if not torch.isfinite(values).all():
        return Result("logits", "fail", "Outputs are not finite for large inputs.", "Normalise inside, or bound exp().")
    if values.shape[2] == 1 and bool((values == 1).all()):
        return Result("logits", "fail", "Every output is 1: a softmax over a single channel.", LAST)
    if float((values - values[:, :1]).abs().max()) == 0:
        return Result("logits", "fail", f"{text} They are the same for every image.", "Use the input in forward.")
    kind = _bounded(values, torch.cat([values.flatten(), drawn]))
    if kind:
        return Result("logits", "fail", f"{text} {kind}", LAST)
    if values.shape[2] > 1 and float(values.logsumexp(2).abs().max()) < 1e-3:
        return Result(
            "logits", "note", f"{text} That looks like a log_softmax.", f"It only suits exclusive classes. {LAST}"
        )
    return Result("logits", "pass", f"{text} No sigmoid, softmax or ReLU at the end.")


def _bounded(values: Tensor, every: Tensor) -> str:
    """What bounds the outputs, a sentence; "" where nothing does.

    Args:
        values: outputs (…, images, classes, rows, columns).
        every: these and those of other weights.
    """
    low, high = float(every.min()), float(every.max())
    if low >= 0 and high <= 1:
        softmax = values.shape[2] > 1 and bool((values.sum(2) - 1).abs().max() < 1e-3)
        return f"That looks like a {'softmax' if softmax else 'sigmoid'} inside the network."
    if low >= 0:
        return "None is negative, whatever the weights, as behind a ReLU."
    return "That looks like a tanh at the end." if low >= -1 and high <= 1 and max(-low, high) > 0.999 else ""


def _of_drawn_weights(probe: Probe, images: Tensor) -> Tensor:
    """The finite outputs, flat, of the network with weights that are drawn, of both signs; its own come back."""
    kept = [parameter.detach().clone() for parameter in probe.network.parameters()]
    outputs = []
    try:
        for _ in range(DRAWN):
            with torch.no_grad():
                for parameter, before in zip(probe.network.parameters(), kept, strict=True):
                    if before.is_floating_point() and before.numel():
                        parameter.copy_(2 * (before.abs().max() + 0.1) * torch.randn_like(before))
            outputs.append(probe.logits(images).float().flatten())
    finally:
        with torch.no_grad():
            for parameter, before in zip(probe.network.parameters(), kept, strict=True):
                parameter.copy_(before)
    values = torch.cat(outputs)
    return values[torch.isfinite(values)]


def check_overfit(learner: Learner, deadline: float) -> Result:
    """Returns whether the network overfits the eight images before the deadline (time.monotonic())."""
    started = time.monotonic()
    best, training = 0.0, 0.0
    try:
        with progress_bar() as bar:
            task = bar.add_task("eight images, Dice 0.00", total=MOST_STEPS, completed=learner.steps)
            while learner.steps < MOST_STEPS and time.monotonic() < deadline:
                learner.probe.network.train()
                training = learner.dice(learner.step())
                if learner.steps % EVALUATED_EVERY == 0:
                    best = max(best, learner.evaluated()[0])
                bar.update(task, completed=learner.steps, description=f"eight images, Dice {best:.2f}")
                if best >= GOAL:
                    break
        if best < GOAL:
            best = max(best, learner.evaluated()[0])
    except UnusableOutput as problem:
        return Result("overfitting", "fail", problem.reason, problem.remedy)
    except NoLearning as problem:
        return Result(
            "overfitting", "fail", f"Training fails: {problem}.", "Add normalisation; look for divisions and logs."
        )
    taken = f"{learner.steps} steps, {duration(time.monotonic() - started)}"
    if best >= ENOUGH:
        return Result("overfitting", "pass", f"Overfits the eight images: Dice {best:.2f} after {taken}.")
    if learner.steps < DECIDED:
        return Result(
            "overfitting", "fail",
            f"Not decided: the time was over after {taken}, at Dice {best:.2f}.",
            "Give it more time (--minutes), or smaller images (--size).",
        )  # fmt: skip
    if training >= ENOUGH:
        return Result(
            "overfitting", "fail",
            f"Dice {training:.2f} in training, and {best:.2f} at best in evaluation, after {taken}.",
            "BatchNorm's running statistics lag behind, or a layer does something else in evaluation: see above.",
        )  # fmt: skip
    return Result(
        "overfitting", "fail", f"Not learned: Dice {best:.2f} after {taken}; {ENOUGH} was expected.",
        "A correct network overfits eight images. Check that skips join features of the same place, that the "
        "decoder reaches full size by learned layers, and that no ReLU stands behind the last convolution.",
    )  # fmt: skip
