"""Decides what a run with `--time` trains: how many folds and seeds, and how long each training takes.

The measure is the length of a complete training, as the recipe describes it, on this machine. Two seeds of one fold
are trained if both can have it, side by side if the machine allows; all folds, if every fold can have it; two seeds of
all folds likewise. Otherwise all of the time goes into one training of one fold, because a longer training gains more
than an average of two short ones.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

from pipeline.core.config.recipe import Recipe
from pipeline.core.console import duration
from pipeline.core.errors import PipelineError
from pipeline.core.plan import FIRST_SHARE, PLANNED, Costs, Plan, Round, epochs_for, validations_for

FEWEST_STEPS = 12
"""The smallest number of steps of the first training."""
FIRST_EPOCHS, FIRST_HALF_SIZE = 5, 0.6
"""The number of epochs of the first training, unless they would be too long, and the share of them at half the size."""
FIRST_LEAST = 0.03
"""The smallest share of the budget that the first training takes, however long everything around it takes."""
HALF_SIZE = 0.5
"""The share of the epochs at half the size, if the recipe says nothing about it and its own training does not fit."""
LATE = 0.02
"""The share of the budget that is left free, for what cannot be measured before."""
TTA_SHARE = 0.1
"""The largest share of the remaining time that test-time augmentation may take; otherwise the training is longer."""
STAGES_AFTER = ("validate", "tune", "predict", "encode", "evaluate", "report")
AT_LEAST = {"tune": 4.0, "encode": 1.5, "report": 8.0}
"""Seconds of stages that the first run has not measured."""
NAMES = ("one_cycle", "cosine")
"""The schedules that end near zero."""


@dataclass(frozen=True)
class Facts:
    """What the decision depends on, besides the recipe."""

    budget: float
    """The time of the whole run in seconds."""
    used: float
    """The seconds that the run has used so far."""
    folds: tuple[int, ...]
    """The folds that the recipe trains."""
    chosen: frozenset[str]
    """The settings that the user gave on the command line, which the plan leaves as they are."""
    images: int
    """The number of training images of a fold (samples of an epoch)."""
    held_out: int
    tests: int
    views: int
    """The number of views of the recipe's test-time augmentation."""
    together: int
    """The number of trainings that run at the same time on this machine, if there are as many."""
    shared: bool
    """Whether they share the cores of a CPU, which makes each slower."""


def first_plan(recipe: Recipe, facts: Facts, costs: Costs) -> Plan:
    """Returns the plan of the first run: a short training of one fold, so that a submission exists early.

    Raises:
        PipelineError: the budget is too small for any submission.
    """
    alone = replace(facts, views=1)
    after = seconds_after(alone, costs, models=1)
    half, full = costs.half, costs.full
    least = FEWEST_STEPS * (half + full) / 2 + facts.held_out * costs.image
    submitted = after - AT_LEAST["report"]  # the first run has no report
    needed = facts.used + least + submitted
    if needed > facts.budget:
        enough = math.ceil(needed * 1.5 / 60)
        prepared = facts.budget >= least + submitted
        again = ", or the same command again, because the data are prepared now" if prepared else ""
        raise PipelineError(
            f"--time {duration(facts.budget)} is too short: on this machine, a first submission takes about "
            f"{duration(needed)} ({duration(facts.used)} so far, {duration(least)} to train {FEWEST_STEPS} steps, and "
            f"{duration(submitted)} to tune and to predict {facts.held_out} held-out and {facts.tests} test images). "
            f"Give --time {enough}m or more{again}."
        )
    early = FIRST_SHARE * facts.budget - facts.used - after
    seconds = max(least, early, FIRST_LEAST * facts.budget)
    epochs = epochs_for(seconds, FIRST_EPOCHS)
    settings = _settings(recipe, facts, epochs, FIRST_HALF_SIZE) | {
        "train.folds": [facts.folds[0]], "train.seeds": [recipe.train.seeds[0]], "predict.tta": "none",
    }  # fmt: skip
    steps = seconds / (FIRST_HALF_SIZE * half + (1 - FIRST_HALF_SIZE) * full)
    only = Round(
        folds=[facts.folds[0]], seeds=[recipe.train.seeds[0]], trainings=1, at_once=1, seconds=seconds,
        passes=_passes(recipe, facts, steps), after=after,
    )  # fmt: skip
    return Plan(budget=facts.budget, settings=settings, validate_every=epochs, rounds=[only], costs=costs,
                reasons=["a short training of one fold, so that a submission exists early"])  # fmt: skip


def main_plan(recipe: Recipe, facts: Facts, costs: Costs) -> Plan | None:
    """Returns the plan for the time after the first run; None if too little is left for a better training.

    `recipe` has no settings of a plan, and `costs` holds the stages of the first run.
    """
    complete = _seconds_of_recipe(recipe, facts, costs)
    left, reasons, changes = facts.budget * (1 - LATE) - facts.used, [], {}
    plain = replace(facts, views=1)
    more = seconds_after(facts, costs, models=1) - seconds_after(plain, costs, models=1)
    if more > TTA_SHARE * left and "predict.tta" not in facts.chosen:
        reasons.append(f"no test-time augmentation, which would take {duration(more)} of it")
        facts, changes = plain, {"predict.tta": "none"}
    available = left - seconds_after(facts, costs, models=1)
    if available < max(2 * FIRST_LEAST * facts.budget, FEWEST_STEPS * costs.full):
        return None
    rounds = _rounds(recipe, facts, costs, available / complete, reasons)
    half_size = recipe.train.half_size
    # a recipe that says 0 itself has a reason, such as borders that are a few pixels wide
    given = recipe.train.model_fields_set | {key.removeprefix("train.") for key in facts.chosen}
    if available < complete and "half_size" not in given:
        half_size = HALF_SIZE
        reasons.append("half of the epochs at half the size")
    if recipe.train.final:
        reasons.append("no final model, which could not be scored")
    longest = max(one.seconds for one in rounds)
    epochs = epochs_for(longest)
    share = round(half_size * epochs) / epochs
    step = share * costs.half + (1 - share) * costs.full
    for one in rounds:
        slower = costs.side_by_side if one.at_once > 1 else 1.0
        one.passes = _passes(recipe, facts, one.seconds / step / slower)
    settings = _settings(recipe, facts, epochs, half_size) | {
        "train.folds": rounds[-1].folds, "train.seeds": rounds[-1].seeds,
    } | changes  # fmt: skip
    if facts.shared and "train.parallel" not in facts.chosen:
        settings["train.parallel"] = max(one.at_once for one in rounds)
    every = validations_for(longest, epochs, facts.held_out * costs.image)
    return Plan(
        budget=facts.budget, settings=settings, validate_every=every, rounds=rounds, costs=costs, reasons=reasons,
        for_all_folds=_for_all_folds(recipe, facts, costs),
    )  # fmt: skip


def seconds_after(facts: Facts, costs: Costs, models: int) -> float:
    """Returns the seconds of all stages after the trainings, for a number of models that predict the test images."""
    measured = costs.stages
    oof = measured.get("validate", facts.held_out * costs.image + 1) * facts.views * models
    test = measured.get("predict", facts.tests * costs.image + 1) * facts.views * models
    rest = {
        stage: measured.get(stage, AT_LEAST.get(stage, 0.0))
        for stage in STAGES_AFTER
        if stage not in ("validate", "predict")
    }
    rest["tune"] *= 1 + 0.5 * (facts.views > 1)
    return oof + test + sum(rest.values())


# --- details ---


def _rounds(recipe: Recipe, facts: Facts, costs: Costs, count: float, reasons: list[str]) -> list[Round]:
    """Returns the rounds of trainings that fit into the time, which is `count` times that of a complete training."""

    def fits(models: int) -> bool:
        return _in_turn(models, facts, costs) <= count

    folds, seeds = list(facts.folds), list(recipe.train.seeds)
    fixed = {"train.folds", "train.seeds"} & facts.chosen
    enough = (
        f"the time is enough for {f'{count:.1f} times' if count >= 1 else f'{count:.0%} of'} the recipe's own training"
    )
    complete = "there is time for a complete training of each"
    if fixed:
        reasons.append(f"{', '.join(sorted(fixed))} as given on the command line")
    elif len(folds) > 1 and fits(len(folds)):
        seeds = [seeds[0], seeds[0] + 1] if fits(2 * len(folds)) else seeds[:1]
        reasons.append(f"all {len(folds)} folds{' and two seeds' * (len(seeds) > 1)}, because {complete}")
    elif fits(2):
        folds, seeds = folds[:1], [seeds[0], seeds[0] + 1]
        reasons.append(f"two seeds of fold {folds[0]}, because {complete}")
    else:
        folds, seeds = folds[:1], seeds[:1]
        reasons.append(f"one training of fold {folds[0]}, because {enough}")
    steps = [(folds[:1], seeds), (folds, seeds)] if len(folds) > 1 and not fixed else [(folds, seeds)]
    rounds, before = [], 0
    for of_folds, of_seeds in steps:
        models = len(of_folds) * len(of_seeds)
        added = models - before
        together = min(facts.together, added)
        rounds.append(Round(folds=of_folds, seeds=of_seeds, trainings=added, at_once=together, seconds=1.0, passes=0,
                            after=seconds_after(facts, costs, models)))  # fmt: skip
        before = models
    in_turn = sum(math.ceil(one.trainings / one.at_once) for one in rounds)
    left = facts.budget * (1 - LATE) - facts.used - sum(one.after for one in rounds)
    for one in rounds:
        one.seconds = max(1.0, left / in_turn)
    return rounds


def _in_turn(models: int, facts: Facts, costs: Costs) -> float:
    """Returns how many times as long as one training the trainings of a number of models take."""
    slower = costs.side_by_side if min(models, facts.together) > 1 else 1.0
    return math.ceil(models / facts.together) * slower


def _for_all_folds(recipe: Recipe, facts: Facts, costs: Costs) -> float | None:
    """Returns the budget in seconds from which on all folds are planned; None if the user or the recipe chose one."""
    if len(facts.folds) == 1 or "train.folds" in facts.chosen:
        return None
    complete = _in_turn(len(facts.folds), facts, costs) * _seconds_of_recipe(recipe, facts, costs)
    needed = complete + seconds_after(facts, costs, models=1)
    return max((needed + facts.used) / (1 - LATE), needed / (1 - LATE - FIRST_SHARE))


def _seconds_of_recipe(recipe: Recipe, facts: Facts, costs: Costs) -> float:
    """Returns the seconds of the training that the recipe describes."""
    train = recipe.train
    per_epoch = max(1, facts.images // (train.batch_size * train.accumulate))
    steps = train.planned_epochs(per_epoch) * per_epoch
    return steps * (train.half_size * costs.half + (1 - train.half_size) * costs.full)


def _passes(recipe: Recipe, facts: Facts, steps: float) -> float:
    batch = min(recipe.train.batch_size, facts.images)
    return round(steps * batch * recipe.train.accumulate / facts.images, 2)


def _settings(recipe: Recipe, facts: Facts, epochs: int, half_size: float) -> dict[str, Any]:
    """Returns the settings that every planned training has: a fixed end, and no choice of the best epoch."""
    train = recipe.train
    scale = epochs / train.epochs
    settings: dict[str, Any] = {"train.epochs": epochs, "train.steps": None, "train.half_size": half_size}
    wanted = {
        "train.keep": "last", "train.early_stopping": None, "train.snapshots": 1, "train.final": False,
        "train.freeze_encoder": min(epochs - 1, math.ceil(train.freeze_encoder * scale)),
        "train.schedule.warm_up": min(train.schedule.warm_up * scale, 0.1 * epochs),
        "train.schedule.name": train.schedule.name if train.schedule.name in NAMES else "one_cycle",
    }  # fmt: skip
    changed = {key: value for key, value in wanted.items() if value != _value(recipe, key)}
    return {key: value for key, value in (settings | changed).items() if key not in facts.chosen or key in PLANNED}


def _value(recipe: Recipe, key: str) -> Any:
    value: Any = recipe
    for part in key.split("."):
        value = getattr(value, part)
    return value
