"""Permutes the masks of held-out images, so that predictions carry no information, and repeats tune's estimate.

    python -m pipeline liars-test RECIPE

An honest estimate then falls to the score of the best constant answer, or below it. An estimate that stays above has
used the masks that it is measured on. Nothing is written.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import pandas as pd

from pipeline.core.console import say
from pipeline.core.errors import PipelineError
from pipeline.core.run import Run
from pipeline.masks import rle
from pipeline.masks.bootstrap import interval
from pipeline.masks.metrics import metric_of
from pipeline.split.folds import counted_rows
from pipeline.tune import constants
from pipeline.tune.held_out import HeldOut, held_out

Estimated = Callable[[HeldOut, np.ndarray], dict[str, Any]]
"""Takes held-out images and the positions of those that count; returns `score`, `nested` and `nested_interval_95`."""


ERRORS = 3.0
"""The number of standard errors that counts as noise; few permutations estimate the standard error only roughly."""
SMALL = 0.01
"""The difference below which everything counts as noise."""


@dataclass(frozen=True)
class Answer:
    """The scores that tune estimates with some masks."""

    out_of_fold: float
    nested: float
    noise: float
    """The standard error of `nested`, 0 if it is not known."""
    constant: float
    """The score of the best constant answer."""
    constant_noise: float
    """The standard error of `constant`."""
    name: str
    """The name of the best constant answer."""


@dataclass(frozen=True)
class Verdict:
    """The estimates with the real masks and with permuted ones."""

    metric: str
    sign: int
    real: Answer
    permuted: list[Answer]

    @property
    def ahead(self) -> float:
        """The mean lead of the estimate with permuted masks over the best constant answer; above 0 is better."""
        return self.sign * float(np.mean([answer.nested - answer.constant for answer in self.permuted]))

    @property
    def noise(self) -> float:
        """The standard error of `ahead`, from the spread over permutations, or from intervals if there are fewer than
        three."""
        if len(self.permuted) < 3:
            return float(np.mean([np.hypot(answer.noise, answer.constant_noise) for answer in self.permuted]))
        differences = [answer.nested - answer.constant for answer in self.permuted]
        return float(np.std(differences, ddof=1)) / len(differences) ** 0.5

    @property
    def honest(self) -> bool:
        """Whether the estimate falls to the constant answer's score, within noise."""
        return self.ahead <= max(ERRORS * self.noise, SMALL)

    def lines(self) -> Iterator[str]:
        """Yields the lines of a table and a sentence for the console."""
        yield f"{self.metric:24} {'out-of-fold':>22} {'nested':>22}  best constant"
        for title, answers in (("your masks", [self.real]), (f"permuted, {len(self.permuted)} times", self.permuted)):
            columns = ("out_of_fold", "nested", "constant")
            cells = [_mean(getattr(answer, column) for answer in answers) for column in columns]
            yield f"{title:24} {cells[0]:>22} {cells[1]:>22}  {cells[2]} ({', '.join(_names(answers))})"
        real = self.real.nested - self.real.constant
        if self.sign * real <= ERRORS * float(np.hypot(self.real.noise, self.real.constant_noise)):
            yield (f"The test is not conclusive: the estimate with your own masks is not better than the best constant "
                   f"answer either (difference {real:+.4f}), so it cannot fall.")  # fmt: skip
            return
        compared = f"difference {self.sign * self.ahead:+.4f}, standard error"
        if self.honest:
            yield (f"The estimate is honest here: on permuted masks it falls to the best constant answer ({compared} "
                   f"{self.noise:.4f}).")  # fmt: skip
        else:
            yield (f"Do not trust the estimate: on permuted masks it stays better than the best constant answer "
                   f"({compared} {self.noise:.4f}), which no prediction can achieve there.")  # fmt: skip


def _mean(values: Iterator[float]) -> str:
    known = np.array(list(values))
    spread = f" ({known.min():.4f}–{known.max():.4f})" if len(known) > 1 else ""
    return f"{known.mean():.4f}{spread}"


def _names(answers: list[Answer]) -> list[str]:
    return list(dict.fromkeys(answer.name for answer in answers))


def liars_test(run: Run, estimated: Estimated, permutations: int) -> Verdict:
    """Returns tune's estimates with the real masks of a run and with permutations of them.

    Args:
        run: the run, whose held-out images are predicted.
        estimated: makes tune's choices and returns its estimates.
        permutations: the number of permutations, at least 1.

    Raises:
        PipelineError: there is only one held-out image, or there are no predictions.
    """
    held = held_out(run)
    counted = np.flatnonzero(counted_rows(held.images, run.recipe.tune.rows))
    if len(counted) < 2 or permutations < 1:
        raise PipelineError(
            f"liars-test needs at least two held-out images and one permutation, but there are {len(counted)} images "
            f"and --permutations is {permutations}."
        )
    metric = metric_of(run.competition)
    say(f"  your masks: {len(counted)} held-out images")
    real, permuted = _answer(held, counted, estimated), []
    for number in range(permutations):
        say(f"  permutation {number + 1} of {permutations}")
        permuted.append(_answer(_permuted(held, counted, number), counted, estimated))
    return Verdict(run.competition.metric, metric.sign, real, permuted)


def _answer(held: HeldOut, counted: np.ndarray, estimated: Estimated) -> Answer:
    result, constant = estimated(held, counted), constants.measure(held, counted)
    best, metric = constant.best, constant.metric
    groups = held.images["group"].astype(str).to_numpy()[counted]
    ends = interval(best.rows, metric.score, groups)
    return Answer(
        result["score"], result["nested"], _error(result.get("nested_interval_95")), best.score, _error(ends), best.name
    )  # fmt: skip


def _error(ends: Any) -> float:
    """Returns the standard error from a 95 % interval; 0 without one."""
    return (ends[1] - ends[0]) / (2 * 1.96) if ends else 0.0


# --- permuting -------------------------------------------------------------------------------------------------------


def _permuted(held: HeldOut, counted: np.ndarray, seed: int) -> HeldOut:
    """Returns the images with the masks of those that count exchanged, between different groups if possible."""
    groups = held.images["group"].astype(str).to_numpy()[counted]
    donors = counted[permutation(groups, seed)]
    rows = list(held.rows)
    for number, donor in zip(counted.tolist(), donors.tolist(), strict=True):
        rows[number] = _with_masks(held.rows[number], held.rows[donor], held.run.competition.classes)
    return replace(held, rows=rows)


def permutation(groups: np.ndarray, seed: int) -> np.ndarray:
    """Returns a permutation (n,) that gives every image another one, from another group unless one group holds more
    than half of the images."""
    rng = np.random.default_rng([seed, len(groups)])
    names, number = np.unique(groups, return_inverse=True)
    largest = int(np.bincount(number).max())
    # sorted by group, with the groups and the images of each group in random order
    order = np.lexsort((rng.random(len(groups)), rng.permutation(len(names))[number]))
    last = len(groups) - largest
    # a shift by at least the size of the largest group, in both directions, leaves every group
    step = int(rng.integers(largest, last + 1)) if largest <= last else max(1, len(groups) // 2)
    donors = np.empty(len(groups), np.int64)
    donors[order] = np.roll(order, -step)
    return donors


def _with_masks(row: pd.Series, donor: pd.Series, classes: list[str]) -> pd.Series:
    """Returns a row of images.parquet with the masks of another row, resized to the size of the image."""
    changed = row.copy()
    for name in ["ignore", *(f"rle_{class_name}" for class_name in classes)]:
        changed[name] = _resized(donor[name], _shape(donor), _shape(row))
    return changed


def _shape(row: pd.Series) -> tuple[int, int]:
    return int(row["height"]), int(row["width"])


def _resized(text: str, before: tuple[int, int], after: tuple[int, int]) -> str:
    if before == after or not text:
        return text
    return rle.encode(cv2.resize(rle.decode(text, before), after[::-1], interpolation=cv2.INTER_NEAREST))
