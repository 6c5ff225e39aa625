"""Which post-processing steps earn their place, and what the decision is worth on images that chose none of it.

A step is judged on images that it was not fitted to: each part of the images is scored by the step fitted without it,
and the step is kept if that beats the decision so far, fitted in the same way, by more than noise. The nested estimate
repeats all of it, the choice of steps included, without each part in turn.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from pipeline.masks.bootstrap import Gain, Score, gain

PARTS = 5
"""Parts that images of one fold are cut into."""


class Problem(Protocol):
    """What is tuned: how decisions are fitted to images and what they score."""

    score: Score
    untuned: Any

    def prepare(self, step: str, decisions: Sequence[Any]) -> None:
        """Counts what a step needs before it is fitted, given the decisions that it may be fitted to."""

    def fit(self, step: str, decision: Any, rows: np.ndarray, final: bool) -> Any:
        """Returns the decision with one step more, chosen on the images at `rows`; the same where nothing is better.

        `final`: the decision is to be used, and not only to judge the step.
        """

    def counts(self, decision: Any, rows: np.ndarray) -> np.ndarray:
        """Returns, for the images at `rows` (n, …), what `score` takes the sum of."""


@dataclass(frozen=True)
class Tried:
    """A step that was tried."""

    step: str
    kept: bool
    gain: Gain
    decision: Any
    """What it would have made of the decision before it."""


@dataclass
class Choice:
    """A decision chosen on some of the images, step by step."""

    problem: Problem
    rows: np.ndarray
    """Positions of the images."""
    groups: np.ndarray
    """Of all images (N,)."""
    inner: list[tuple[np.ndarray, np.ndarray]]
    """Positions of the images that a part is judged without, and of the part."""
    decision: Any
    without: list[Any]
    """The decision fitted without each part."""
    tried: list[Tried] = field(default_factory=list)

    def consider(self, alternatives: Sequence[str], confidence: float) -> None:
        """Fits steps that exclude each other, judges each against the decision so far, and keeps the best or none."""
        fits = [(step, self.problem.fit(step, self.decision, self.rows, True)) for step in alternatives]
        changed = any(fitted != self.decision for _, fitted in fits)
        before = self._counts(self.without) if changed else np.zeros(0)
        judged = [self._judge(step, fitted, before) for step, fitted in fits]
        best = max(range(len(fits)), key=lambda place: judged[place][0].value)
        found, candidates = judged[best]
        kept = found.value > 0 and found.confidence >= confidence
        for place, ((step, fitted), (one, _)) in enumerate(zip(fits, judged, strict=True)):
            self.tried.append(Tried(step, kept and place == best, one, fitted))
        if kept:
            self.decision, self.without = fits[best][1], candidates

    def _judge(self, step: str, fitted: Any, before: np.ndarray) -> tuple[Gain, list[Any]]:
        """What a step brings, and the decisions, fitted without each part, that show it."""
        if fitted == self.decision:
            return Gain(0.0, 0.0, 0.5), self.without
        candidates = [
            self.problem.fit(step, decision, fit_rows, False)
            for decision, (fit_rows, _) in zip(self.without, self.inner, strict=True)
        ]
        return gain(before, self._counts(candidates), self.problem.score, self._groups), candidates

    @property
    def _groups(self) -> np.ndarray:
        return self.groups[np.concatenate([rows for _, rows in self.inner])]

    def _counts(self, decisions: list[Any]) -> np.ndarray:
        pairs = zip(decisions, self.inner, strict=True)
        return np.concatenate([self.problem.counts(decision, rows) for decision, (_, rows) in pairs])


def select(
    choices: Sequence[Choice], steps: Sequence[Sequence[str]], confidence: float, advance: Callable[[], None]
) -> None:
    """Takes all choices through all steps, one after the other, so that what a step needs is counted once.

    Each element of `steps` lists the alternatives of which one at most is kept.
    """
    for alternatives in steps:
        problems = {id(choice.problem): choice.problem for choice in choices}
        for key, problem in problems.items():
            own = [choice for choice in choices if id(choice.problem) == key]
            decisions = [one for choice in own for one in (choice.decision, *choice.without)]
            for step in alternatives:
                problem.prepare(step, decisions)
        for choice in choices:
            choice.consider(alternatives, confidence)
            advance()


def open_choice(problem: Problem, rows: np.ndarray, folds: np.ndarray, groups: np.ndarray) -> Choice:
    """Returns a choice on the images at `rows` (positions), still without steps; folds and groups (N,) of all."""
    parts = parts_of(folds[rows], groups[rows])
    inner = [(rows[parts != part], rows[parts == part]) for part in np.unique(parts)]
    return Choice(problem, rows, groups, inner, problem.untuned, [problem.untuned] * len(inner))


def parts_of(folds: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Returns the part (N,) int64 that each image is left out with: its fold, or one of five sets of groups where
    there is one fold."""
    if not len(folds):
        return np.zeros(0, np.int64)
    _, fold = np.unique(folds, return_inverse=True)
    if fold.max() > 0:
        return fold
    _, group = np.unique(groups.astype(str), return_inverse=True)
    return np.random.default_rng(0).permutation(group.max() + 1)[group] % min(PARTS, group.max() + 1)


def verdict(step: dict[str, Any], confidence: float) -> str:
    """Returns what became of a step of postprocess.json: kept, refused, or outdone, where an alternative was better."""
    if step["kept"]:
        return "kept"
    return "outdone" if step["gain"] > 0 and step["confidence"] >= confidence else "refused"
