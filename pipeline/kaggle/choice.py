"""What submitted scores say: how well the estimate foretells them, and which two submissions to select at the end."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.core import freshness
from pipeline.core.config.competition import Competition
from pipeline.core.files import root
from pipeline.encode import submission
from pipeline.encode.file_kinds import files_in
from pipeline.encode.submission import Expected
from pipeline.kaggle import sent
from pipeline.masks.metrics import final_metric

FEWEST = 6
"""Submissions from which on a correlation says anything."""
NORMAL_95 = 1.959964


@dataclass(frozen=True)
class Correlation:
    """How the estimate goes with a score of the leaderboard."""

    r: float
    low: float
    high: float
    count: int


def correlation(estimates: np.ndarray, scores: np.ndarray) -> Correlation | None:
    """Returns Pearson's correlation of estimates (N,) and scores (N,) with its 95 % interval (Fisher's z); None of
    fewer than FEWEST, or where one of them does not vary."""
    count = len(estimates)
    if count < FEWEST or np.ptp(estimates) == 0 or np.ptp(scores) == 0:
        return None
    r = float(np.corrcoef(estimates, scores)[0, 1])
    z, error = math.atanh(max(-0.999999, min(0.999999, r))), NORMAL_95 / math.sqrt(count - 3)
    return Correlation(r, math.tanh(z - error), math.tanh(z + error), count)


def correlations(rows: pd.DataFrame) -> dict[str, Correlation]:
    """Returns the correlations of the estimate with the public and the private score, of those that can be told.

    Args:
        rows: of the log, of one competition.
    """
    told = {}
    for name in ("public", "private"):
        pairs = [
            (sent.number(estimate), sent.number(score))
            for estimate, score in zip(rows["estimate"], rows[name], strict=True)
        ]
        known = np.array([pair for pair in pairs if None not in pair], np.float64).reshape(-1, 2)
        if result := correlation(known[:, 0], known[:, 1]):
            told[name] = result
    return told


@dataclass(frozen=True)
class Choice:
    """Which two submissions to select, by their place in the rows, and why."""

    first: int
    second: int | None
    why: str


def choose(rows: pd.DataFrame, competition: Competition, differ: Callable[[int, int], float | None]) -> Choice | None:
    """Returns which two to select: the best honest estimate, and of those within a standard error of it the one whose
    masks differ most; None where nothing has an estimate. The public score decides nothing.

    Args:
        rows: of the log, of this competition, the best of several rows of one file kept.
        competition: the competition.
        differ: from two places to the share of mask pixels that differ; None where a file is gone.
    """
    sign = final_metric(competition).sign
    known = {place: value for place, text in enumerate(rows["estimate"]) if (value := sent.number(text)) is not None}
    usable = [place for place in known if rows["status"].iloc[place] != "error"]
    if not usable:
        return None
    first, *others = sorted(usable, key=lambda place: -sign * known[place])
    ends = [sent.number(rows[name].iloc[first]) for name in ("low", "high")]
    error = (ends[1] - ends[0]) / (2 * NORMAL_95) if ends[0] is not None and ends[1] is not None else 0.0
    best = f"{rows['run'].iloc[first]} has the best honest estimate ({known[first]:.4f})"
    if not others:
        return Choice(first, None, f"{best}; it is the only one")
    near = [place for place in others if sign * (known[first] - known[place]) <= error]
    if not near:
        second = others[0]
        why = f"{rows['run'].iloc[second]} the second best ({known[second]:.4f}); none lies within a standard error"
        return Choice(first, second, f"{best}, {why} ({error:.4f}) of the best")
    differences = {place: share for place in near if (share := differ(first, place)) is not None}
    if not differences:
        second = near[0]
        why = f"is second ({known[second]:.4f}); how much the masks differ is not known, as files are gone"
        return Choice(first, second, f"{best}, {rows['run'].iloc[second]} {why}")
    second = max(differences, key=lambda place: differences[place])
    why = (
        f"of the {len(near)} within a standard error ({error:.4f}) of it, {rows['run'].iloc[second]} "
        f"({known[second]:.4f}) differs most: in {differences[second]:.1%} of the mask pixels"
    )
    return Choice(first, second, f"{best}; {why}")


class Files:
    """The submitted files that are still here, by their hash, and how much two of them differ."""

    def __init__(self, rows: pd.DataFrame, want: Expected | None) -> None:
        """Takes rows of the log, and what a submission must hold (None: it is not known here)."""
        self.rows, self.want = rows, want
        paths = files_in(root() / "submissions")
        self.paths = {freshness.hash_file(path): path for path in paths if path != sent.log_file()}
        self._masks: dict[Path, dict[Any, np.ndarray]] = {}

    def differ(self, first: int, second: int) -> float | None:
        """Returns the share of the pixels in either mask that are not in both; None where a file is gone."""
        paths = [self.paths.get(self.rows["sha256"].iloc[place]) for place in (first, second)]
        if self.want is None or paths[0] is None or paths[1] is None:
            return None
        first_masks, second_masks = (self._read(path) for path in paths if path)
        either = both = 0
        for key in first_masks.keys() | second_masks.keys():
            masks = [known[key] for known in (first_masks, second_masks) if key in known]
            either += int(np.unpackbits(np.bitwise_or.reduce(masks)).sum())
            both += int(np.unpackbits(np.bitwise_and(*masks)).sum()) if len(masks) == 2 else 0
        return 1 - both / either if either else 0.0

    def _read(self, path: Path) -> dict[Any, np.ndarray]:
        """The masks of a file that are not empty, eight pixels a byte, by image id and class."""
        assert self.want is not None
        if path not in self._masks:
            masks: dict[Any, np.ndarray] = {}

            def keep(image_id: str, number: int, mask: np.ndarray) -> None:
                if mask.any():
                    masks[image_id, number] = np.packbits(mask)

            submission.examine(path, self.want, keep)
            self._masks[path] = masks
        return self._masks[path]
