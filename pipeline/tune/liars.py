"""Permutes the masks of held-out images, so that nothing is left to find, and lets tune estimate a score once more.

    python -m pipeline liars-test RECIPE

An honest estimate then falls to what the best constant answer scores, or below it. One that stays above it has seen the
masks that it is measured on. Nothing is written.
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
"""From held-out images and the positions of those that count to `score`, `nested` and `nested_interval_95`."""


ERRORS = 3.0
"""So many standard errors, which few permutations tell roughly, are noise."""
SMALL = 0.01
"""So is a difference of less."""


@dataclass(frozen=True)
class Answer:
    """What tune says of some masks."""

    out_of_fold: float
    nested: float
    noise: float
    """Standard error of `nested`, 0 where it is not known."""
    constant: float
    """The score of the best constant answer."""
    constant_noise: float
    name: str
    """Of that answer."""


@dataclass(frozen=True)
class Verdict:
    """The real masks beside permuted ones."""

    metric: str
    sign: int
    real: Answer
    permuted: list[Answer]

    @property
    def ahead(self) -> float:
        """How much better the estimate on permuted masks is than the best constant answer, on average."""
        return self.sign * float(np.mean([one.nested - one.constant for one in self.permuted]))

    @property
    def noise(self) -> float:
        """The standard error of that: from the spread over permutations, or, of fewer than three, from intervals."""
        if len(self.permuted) < 3:
            return float(np.mean([np.hypot(one.noise, one.constant_noise) for one in self.permuted]))
        differences = [one.nested - one.constant for one in self.permuted]
        return float(np.std(differences, ddof=1)) / len(differences) ** 0.5

    @property
    def honest(self) -> bool:
        """Whether the estimate falls to the constant answer's, within noise."""
        return self.ahead <= max(ERRORS * self.noise, SMALL)

    def lines(self) -> Iterator[str]:
        """Yields a table and a sentence for a person."""
        yield f"{self.metric:24} {'out-of-fold':>22} {'nested':>22}  best constant"
        for title, answers in (("your masks", [self.real]), (f"permuted, {len(self.permuted)} times", self.permuted)):
            cells = [_mean(getattr(one, name) for one in answers) for name in ("out_of_fold", "nested", "constant")]
            yield f"{title:24} {cells[0]:>22} {cells[1]:>22}  {cells[2]} ({', '.join(_names(answers))})"
        real = self.real.nested - self.real.constant
        if self.sign * real <= ERRORS * float(np.hypot(self.real.noise, self.real.constant_noise)):
            yield (f"This says nothing yet: the estimate of your own masks is not better than the best constant answer "
                   f"either (difference {real:+.4f}), so that there is nothing that could fall.")  # fmt: skip
            return
        compared = f"difference {self.sign * self.ahead:+.4f}, standard error"
        if self.honest:
            yield (f"The estimate is honest here: on permuted masks it falls to the best constant answer ({compared} "
                   f"{self.noise:.4f}).")  # fmt: skip
        else:
            yield (f"Do not believe the estimate: on permuted masks it stays better than the best constant answer "
                   f"({compared} {self.noise:.4f}), which no prediction can earn there.")  # fmt: skip


def _mean(values: Iterator[float]) -> str:
    known = np.array(list(values))
    spread = f" ({known.min():.4f}–{known.max():.4f})" if len(known) > 1 else ""
    return f"{known.mean():.4f}{spread}"


def _names(answers: list[Answer]) -> list[str]:
    return list(dict.fromkeys(one.name for one in answers))


def liars_test(run: Run, estimated: Estimated, permutations: int) -> Verdict:
    """Returns what tune estimates of a run's own masks, and of their permutations.

    Args:
        run: the run, whose held-out images are predicted.
        estimated: tune's choosing and its estimate.
        permutations: how many, at least 1.

    Raises:
        PipelineError: there is one held-out image only, or no prediction.
    """
    held = held_out(run)
    counted = np.flatnonzero(counted_rows(held.images, run.recipe.tune.rows))
    if len(counted) < 2 or permutations < 1:
        raise PipelineError(
            f"liars-test needs at least two held-out images and one permutation; it has {len(counted)} images and "
            f"--permutations {permutations}."
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
    """The standard error behind a 95 % interval; 0 without one."""
    return (ends[1] - ends[0]) / (2 * 1.96) if ends else 0.0


# --- permuting -------------------------------------------------------------------------------------------------------


def _permuted(held: HeldOut, counted: np.ndarray, seed: int) -> HeldOut:
    """The same images, of which each that counts has the masks of another one, of another group where that is
    possible."""
    groups = held.images["group"].astype(str).to_numpy()[counted]
    donors = counted[permutation(groups, seed)]
    rows = list(held.rows)
    for number, donor in zip(counted.tolist(), donors.tolist(), strict=True):
        rows[number] = _with_masks(held.rows[number], held.rows[donor], held.run.competition.classes)
    return replace(held, rows=rows)


def permutation(groups: np.ndarray, seed: int) -> np.ndarray:
    """Returns for every image (n,) the place of another one, each once: of another group, unless one group holds more
    than half of the images."""
    rng = np.random.default_rng([seed, len(groups)])
    names, number = np.unique(groups, return_inverse=True)
    largest = int(np.bincount(number).max())
    order = np.lexsort((rng.random(len(groups)), rng.permutation(len(names))[number]))  # groups whole, in any order
    last = len(groups) - largest
    # a step of the largest group's size leaves every group, and so does the way back
    step = int(rng.integers(largest, last + 1)) if largest <= last else max(1, len(groups) // 2)
    donors = np.empty(len(groups), np.int64)
    donors[order] = np.roll(order, -step)
    return donors


def _with_masks(row: pd.Series, donor: pd.Series, classes: list[str]) -> pd.Series:
    """A row of images.parquet with the masks of another one, resized to its own size."""
    changed = row.copy()
    for name in ["ignore", *(f"rle_{one}" for one in classes)]:
        changed[name] = _resized(donor[name], _shape(donor), _shape(row))
    return changed


def _shape(row: pd.Series) -> tuple[int, int]:
    return int(row["height"]), int(row["width"])


def _resized(text: str, before: tuple[int, int], after: tuple[int, int]) -> str:
    if before == after or not text:
        return text
    return rle.encode(cv2.resize(rle.decode(text, before), after[::-1], interpolation=cv2.INTER_NEAREST))
