"""The findings of tune on its held-out images after all choices, from which the reasons are made."""

import math
import re
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from pipeline.core.files import shown
from pipeline.core.plan import find_plan
from pipeline.core.run import Run
from pipeline.masks.metric import Metric
from pipeline.masks.metrics import metric_of
from pipeline.tune.constants import Constants
from pipeline.tune.held_out import HeldOut


@dataclass(frozen=True)
class Findings:
    """The N held-out images of a run, the predictions for them, and the content of postprocess.json."""

    held: HeldOut
    counted: np.ndarray
    """Positions (n,) of the images that count, ascending."""
    result: dict[str, Any]
    """The content of postprocess.json so far; any key may be missing."""
    scores: np.ndarray
    """The metric of every single image (N,) under the decision."""
    true: np.ndarray
    """Pixels of the true masks (N, C)."""
    predicted: np.ndarray
    """Pixels of the masks under the decision (N, C), without ignored ones."""
    rows: np.ndarray
    """The counts that the metric's score sums over the images that count (n, …), under the decision."""
    nested: np.ndarray | None
    """The same under decisions that were chosen without the image; None if it is not known per image."""
    constants: Constants
    suspects: int = 0
    """The number of labels that the networks contradict."""

    @property
    def run(self) -> Run:
        """The run."""
        return self.held.run

    @property
    def metric(self) -> Metric:
        """The competition's metric."""
        return metric_of(self.run.competition)

    @property
    def groups(self) -> np.ndarray:
        """The group of each image that counts (n,); if all belong to one group, each image is its own group."""
        images = self.held.images.iloc[self.counted]
        several = images["group"].nunique() > 1
        return images["group" if several else "image_id"].astype(str).to_numpy()

    @cached_property
    def trusted(self) -> np.ndarray:
        """Positions of the images that count and that clean has not dropped, whose masks are trusted."""
        dropped = (self.held.images["use"] == "drop").to_numpy()[self.counted]
        return self.counted[~dropped]

    @property
    def honest(self) -> float | None:
        """The score of one fold's model on images that were not used for any choice; None if it is not known."""
        score = self.result.get("scores", {}).get("fold_model", {}).get("score")
        return self.result.get("nested") if score is None else score

    def ids(self, positions: np.ndarray) -> list[str]:
        """Returns the ids of the images at these positions."""
        return self.held.images["image_id"].iloc[positions].astype(str).tolist()

    @property
    def how(self) -> str:
        """`tuned`, or `untuned` if the untuned decision is used."""
        return (self.result.get("procedure") or {}).get("ships", "tuned")

    @property
    def pictures(self) -> str:
        """The report, which shows the images; external predictions without a test set have no report, only the
        table."""
        arrays = self.run.recipe.arrays
        return shown(self.run.folder / "oof_scores.csv" if arrays and not arrays.test else self.run.report)


def longer(run: Run, epochs: int) -> str:
    """Returns the command that trains longer: the full recipe after a --quick run, twice the time of a planned run,
    else this number of epochs and twice the recipe's steps."""
    if run.budget:
        return with_more_time(run, 2)
    changed = any(word == "--name" or word.startswith("train.epochs=") for word in run.options)
    if "--quick" in run.options and not changed:
        words = tuple(word for word in run.options if word != "--quick")
        return replace(run, options=words).command()
    steps = run.recipe.train.steps
    return trained_again(run, "longer", f"train.epochs={epochs}", *([f"train.steps={2 * steps}"] if steps else []))


def with_more_time(run: Run, factor: int, all_folds: bool = False) -> str:
    """Returns the command that plans a run for `factor` times the time of this one, under a new name; with `all_folds`,
    without the chosen folds and for the time that they need, if the plan knows it."""
    words = list(run.options)
    while all_folds and any(chosen := [word.startswith("train.folds=") for word in words]):
        place = chosen.index(True)
        del words[place - 1 : place + 1]
    for option in ("--time", "--name"):
        if option in words:
            place = words.index(option)
            del words[place : place + 2]
    seconds = factor * (run.budget or 0.0)
    if all_folds and (plan := find_plan(run.folder)) and plan.for_all_folds:
        seconds = 1.05 * plan.for_all_folds  # the next run measures other speeds
    minutes = math.ceil(seconds / 60)
    return replace(run, options=tuple(words)).command("--time", f"{minutes}m")


def trained_again(run: Run, suffix: str, *assignments: str) -> str:
    """Returns the command that trains a run with other settings under a new name."""
    keys = {"--set " + assignment.partition("=")[0] for assignment in assignments} | {"--name"}
    kept = list(run.options[:1] or (run.recipe.name,))
    rest = iter(run.options[1:])
    for word in rest:
        words = [word] if word == "--quick" else [word, next(rest, "")]
        key = word if word == "--name" else " ".join(words).partition("=")[0]
        kept += [] if key in keys else words
    changes = [word for assignment in assignments for word in ("--set", assignment)]
    return replace(run, options=tuple(kept)).command(*changes, "--name", _numbered(run.name, suffix))


def _numbered(name: str, suffix: str) -> str:
    """Returns the name of a run with a suffix, numbered if the name has the suffix: x-longer, x-longer-2,
    x-longer-3."""
    before = re.fullmatch(rf"(.*-{suffix})(?:-(\d+))?", name)
    return f"{before[1]}-{int(before[2] or 1) + 1}" if before else f"{name}-{suffix}"


def named(names: list[str]) -> str:
    """Returns a list for a sentence: a, b and c. Of more than six names, only the first five are listed."""
    if len(names) > 6:
        names = [*names[:5], f"{len(names) - 5} more"]
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
