"""Evaluates submitted scores: their correlation with the estimates, and the two submissions to select at the end."""

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
"""Minimum number of submissions for a correlation."""
NORMAL_95 = 1.959964


@dataclass(frozen=True)
class Correlation:
    """The correlation of estimates with leaderboard scores, with its 95 % interval and the number of submissions."""

    r: float
    low: float
    high: float
    count: int


def correlation(estimates: np.ndarray, scores: np.ndarray) -> Correlation | None:
    """Returns Pearson's correlation of estimates (N,) and scores (N,) with its 95 % interval (Fisher's z).

    Returns None for fewer than FEWEST submissions, or if the estimates or the scores are all equal.
    """
    count = len(estimates)
    if count < FEWEST or np.ptp(estimates) == 0 or np.ptp(scores) == 0:
        return None
    r = float(np.corrcoef(estimates, scores)[0, 1])
    z, error = math.atanh(max(-0.999999, min(0.999999, r))), NORMAL_95 / math.sqrt(count - 3)
    return Correlation(r, math.tanh(z - error), math.tanh(z + error), count)


def correlations(rows: pd.DataFrame) -> dict[str, Correlation]:
    """Returns the correlations of the estimate with the public and the private score, as far as they can be computed.

    Args:
        rows: the rows of the log for one competition.
    """
    results = {}
    for name in ("public", "private"):
        pairs = [
            (sent.number(estimate), sent.number(score))
            for estimate, score in zip(rows["estimate"], rows[name], strict=True)
        ]
        known = np.array([pair for pair in pairs if None not in pair], np.float64).reshape(-1, 2)
        if result := correlation(known[:, 0], known[:, 1]):
            results[name] = result
    return results


@dataclass(frozen=True)
class Choice:
    """The two submissions to select, by their row numbers, and the reason."""

    first: int
    second: int | None
    why: str


def choose(rows: pd.DataFrame, competition: Competition, differ: Callable[[int, int], float | None]) -> Choice | None:
    """Returns the two submissions to select; None if no submission has an estimate.

    The first is the one with the best honest estimate. The second is the one whose masks differ most from the first,
    among those whose estimates are within one standard error of the best. Public scores are not used.

    Args:
        rows: the rows of the log for this competition, with one row per file.
        competition: the competition.
        differ: a function that returns, for two row numbers, the share of mask pixels that differ; None if a file is
            missing.
    """
    sign = final_metric(competition).sign
    known = {row: value for row, text in enumerate(rows["estimate"]) if (value := sent.number(text)) is not None}
    usable = [row for row in known if rows["status"].iloc[row] != "error"]
    if not usable:
        return None
    first, *others = sorted(usable, key=lambda row: -sign * known[row])
    ends = [sent.number(rows[name].iloc[first]) for name in ("low", "high")]
    error = (ends[1] - ends[0]) / (2 * NORMAL_95) if ends[0] is not None and ends[1] is not None else 0.0
    best = f"{rows['run'].iloc[first]} has the best honest estimate ({known[first]:.4f})"
    if not others:
        return Choice(first, None, f"{best}; it is the only one")
    near = [row for row in others if sign * (known[first] - known[row]) <= error]
    if not near:
        second = others[0]
        why = f"{rows['run'].iloc[second]} the second best ({known[second]:.4f}); none is within one standard error"
        return Choice(first, second, f"{best}, {why} ({error:.4f}) of the best")
    differences = {row: share for row in near if (share := differ(first, row)) is not None}
    if not differences:
        second = near[0]
        why = f"is second ({known[second]:.4f}); the masks cannot be compared because files are missing"
        return Choice(first, second, f"{best}, {rows['run'].iloc[second]} {why}")
    second = max(differences, key=lambda row: differences[row])
    why = (
        f"of the {len(near)} within one standard error ({error:.4f}) of it, {rows['run'].iloc[second]} "
        f"({known[second]:.4f}) differs most: in {differences[second]:.1%} of the mask pixels"
    )
    return Choice(first, second, f"{best}; {why}")


class Files:
    """The submitted files that still exist, by their hash, for pairwise comparison."""

    def __init__(self, rows: pd.DataFrame, want: Expected | None) -> None:
        """Finds the files of a log's rows.

        Args:
            rows: rows of the log.
            want: the expected content of a submission; None if it is unknown.
        """
        self.rows, self.want = rows, want
        paths = files_in(root() / "submissions")
        self.paths = {freshness.hash_file(path): path for path in paths if path != sent.log_file()}
        self._masks: dict[Path, dict[Any, np.ndarray]] = {}

    def differ(self, first: int, second: int) -> float | None:
        """Returns the share of the pixels in either mask that are not in both; None if a file is missing."""
        paths = [self.paths.get(self.rows["sha256"].iloc[row]) for row in (first, second)]
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
        """The non-empty masks of a file, packed to eight pixels per byte, by image id and class."""
        assert self.want is not None
        if path not in self._masks:
            masks: dict[Any, np.ndarray] = {}

            def keep(image_id: str, number: int, mask: np.ndarray) -> None:
                if mask.any():
                    masks[image_id, number] = np.packbits(mask)

            submission.examine(path, self.want, keep)
            self._masks[path] = masks
        return self._masks[path]
