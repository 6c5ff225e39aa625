"""Runs a competition's published metric, a Python file with `score(solution, submission, row_id_column_name)`.

Both tables have the same rows in the same order, with dtypes as pandas reads them from CSV, as on Kaggle. The file is
foreign code: any exception becomes one sentence with file and line, and its output is suppressed.
"""

import contextlib
import inspect
import io
import sys
import time
import traceback
import types
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.core.config.competition import Competition
from pipeline.core.errors import PipelineError, first_line
from pipeline.core.files import shown
from pipeline.core.run import input_folder
from pipeline.core.tables import column_names

MODULE = "competition_metric"
ON_KAGGLE = "kaggle_metric_utilities"
"""A module that exists only on the machines on which Kaggle scores submissions."""
FEWEST = 20
"""The smallest number of draws for which an interval is given."""
COPY = "-copy"
"""A suffix, followed by a number, for the ids of a group that occurs more than once in a resampled table."""


@dataclass(frozen=True)
class Published:
    """A metric's function, ready to be called."""

    path: Path
    function: Callable[..., Any]
    name: str
    """The name of the function."""
    row_id: str
    arguments: dict[str, Any]
    sign: int
    """1 if higher scores are better, otherwise -1."""

    def score(self, solution: pd.DataFrame, submission: pd.DataFrame) -> float:
        """Returns the score of all rows. The tables are not changed.

        Raises:
            PipelineError: the function raises an exception or does not return a finite number.
        """
        for name, table in (("solution", solution), ("submission", submission)):
            if self.row_id not in table:
                raise PipelineError(
                    f"metric.row_id is {self.row_id}, but the {name} has the columns {column_names(table.columns)}."
                )
        with _quiet():
            try:
                value = self.function(solution.copy(), submission.copy(), self.row_id, **self.arguments)
            except (Exception, SystemExit) as error:
                raise PipelineError(_raised(self.path, self.name, error)) from None
        try:
            number = float("nan") if isinstance(value, str | bytes | bool | np.bool_) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = float("nan")
        if not np.isfinite(number):
            raise PipelineError(
                f"{shown(self.path)}: {self.name} returned {value!r:.60} for {len(solution)} rows; expected a number."
            )
        return number


def file_of(competition: Competition) -> Path | None:
    """Returns the file of a competition's published metric; None if its metric is a built-in one."""
    return input_folder(competition) / competition.metric_file.file if competition.metric_file else None


def load(competition: Competition) -> Published:
    """Returns the function of a competition's published metric.

    Raises:
        PipelineError: the file or the function does not exist, the file has an error or needs a module that is not
            installed, or the function does not take the arguments.
    """
    settings, path = competition.metric_file, file_of(competition)
    assert settings is not None and path is not None  # callers check that the metric is a published one
    if not path.is_file():
        raise PipelineError(
            f"{shown(path)} does not exist: put the competition's published metric there, or name a built-in metric in "
            f"the YAML, e.g. `metric: {competition.metric}`."
        )
    module = types.ModuleType(MODULE)
    module.__file__ = str(path)
    with _quiet():
        try:
            # compiled here, because an import would write bytecode beside the file
            code = compile(path.read_text(encoding="utf-8"), str(path), "exec")
            sys.modules[MODULE] = module  # dataclasses and pickle look the module up
            exec(code, module.__dict__)
        except (Exception, SystemExit) as error:
            raise PipelineError(_raised(path, "", error)) from None
    function = getattr(module, settings.function, None)
    if not callable(function):
        known = [name for name, item in vars(module).items() if inspect.isfunction(item) and item.__module__ == MODULE]
        raise PipelineError(
            f"{shown(path)} has no function `{settings.function}`; it has {', '.join(known) or 'none'}: name the "
            "scoring function in `metric: {function: …}`."
        )
    row_id = settings.row_id or competition.submission.id
    _check_signature(path, settings.function, function, row_id, settings.arguments)
    return Published(path, function, settings.function, row_id, settings.arguments, settings.sign)


def _check_signature(
    path: Path, name: str, function: Callable[..., Any], row_id: str, arguments: dict[str, Any]
) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some builtins have no signature; a wrong call fails later
        return
    try:
        signature.bind(None, None, row_id, **arguments)
    except TypeError as error:
        code = getattr(inspect.unwrap(function), "__code__", None)  # a class or a partial function has none
        where = f"{shown(path)} line {code.co_firstlineno}" if code else shown(path)
        raise PipelineError(
            f"{where}: {name}{signature} cannot be called "
            f"with (solution, submission, row_id_column_name{''.join(f', {key}=…' for key in arguments)}): "
            f"{first_line(error)}. Give its other arguments as `metric: {{arguments: {{name: value}}}}`."
        ) from None


@contextlib.contextmanager
def _quiet() -> Any:
    """Suppresses printed output and warnings, and restores the working folder."""
    with (
        contextlib.chdir(Path.cwd()),
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


def _raised(path: Path, name: str, error: BaseException) -> str:
    """Returns one sentence about an exception from a metric's file, with the line of the file that led to it."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    if isinstance(error, SyntaxError) and error.filename == str(path):
        lines = [error.lineno]
    where = f"{shown(path)} line {lines[-1]}" if lines else shown(path)
    if isinstance(error, ModuleNotFoundError) and error.name:
        if error.name == ON_KAGGLE:
            return (
                f"{where} imports {ON_KAGGLE}, which exists only on Kaggle's scoring machines: copy the file and "
                "replace what it uses from that module by your own code."
            )
        return f"{where} imports {error.name}, which is not installed: install it, e.g. pip install {error.name}."
    message = " ".join(str(error).split())
    description = type(error).__name__ + (f": {message}" if message else "")
    return f"{where}: {f'{name} raised ' if name else ''}{description[:400].rstrip('.')}."


# --- tables of resampled groups --------------------------------------------------------------------------------------


def typed(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns a table of texts as pandas would read it from CSV: numeric texts as numbers, empty ones as NaN."""
    buffer = io.StringIO()
    frame.to_csv(buffer, index=False)
    buffer.seek(0)
    return pd.read_csv(buffer)


@dataclass(frozen=True)
class Table:
    """A solution or a submission with the image and the group of each row."""

    frame: pd.DataFrame
    images: np.ndarray
    """The image id (n,) of every row, as text."""
    groups: np.ndarray
    """The group (n,) of every row, as text."""
    named: tuple[str, ...]
    """Columns whose texts contain the id or the group of the image. Copies of a row get new names in them."""

    def only(self, ids: Collection[str]) -> pd.DataFrame:
        """Returns the rows of some images."""
        return self.frame[np.isin(self.images, list(ids))].reset_index(drop=True)

    def drawn(self, names: Sequence[str], times: np.ndarray) -> pd.DataFrame:
        """Returns the rows of the groups `names`, each repeated `times` (G,) times.

        From the second time on, the images and groups get new names, so that the metric sees different groups.
        """
        places = {name: np.flatnonzero(self.groups == name) for name in names}
        copies = [(places[name], copy) for name, count in zip(names, times, strict=True) for copy in range(count)]
        rows = np.concatenate([rows for rows, _ in copies])
        copy = np.repeat([copy for _, copy in copies], [len(rows) for rows, _ in copies])
        frame = self.frame.iloc[rows].reset_index(drop=True)
        for column in {*self.named} & {*frame.columns} if copy.any() else ():
            cells = zip(frame[column].astype(str), self.images[rows], self.groups[rows], copy, strict=True)
            frame[column] = [
                _renamed(text, image_id, group, number) if number else text for text, image_id, group, number in cells
            ]
        return frame


def _renamed(text: str, image_id: str, group: str, number: int) -> str:
    """Returns a text with the group of an image renamed, or with the image renamed if the text does not contain the
    group, or with a suffix if it contains neither.

    Metrics may derive the group from the id, e.g. case1_day2 from case1_day2_slice_3.
    """
    name = next((candidate for candidate in (group, image_id) if candidate and candidate in text), text)
    return text.replace(name, f"{name}{COPY}{number}", 1)


@dataclass(frozen=True)
class Draws:
    """Scores of resampled groups."""

    scores: np.ndarray
    """(draws, submissions)."""
    reason: str
    """Why there are no draws or fewer than requested; empty if there are as many as requested."""

    def interval(self, place: int) -> list[float] | None:
        """Returns the 95 % interval of the score of the submission at a position; None without draws."""
        if not len(self.scores):
            return None
        low, high = np.quantile(self.scores[:, place], [0.025, 0.975])
        return [float(low), float(high)]


def resampled(
    published: Published,
    solution: Table,
    submissions: Callable[[int], Sequence[Table]],
    draws: int,
    seconds: float,
    seed: int = 0,
) -> Draws:
    """Returns the scores of submissions on resampled groups, for a bootstrap interval.

    Whole groups are drawn with replacement, as often as the time allows.

    Args:
        published: the metric.
        solution: the true masks.
        submissions: takes the number of a draw and returns the submissions to score in it, all for the same images.
        draws: the largest number of draws.
        seconds: the time for all draws. If it does not suffice for FEWEST draws, nothing is drawn.
        seed: the seed of the draws.
    """
    names, started = np.unique(solution.groups).tolist(), time.perf_counter()
    first, groups = submissions(0), len(np.unique(solution.groups))
    no_scores = np.zeros((0, len(first)))

    def scores(tables: Sequence[Table], times: np.ndarray) -> list[float]:
        truth = solution.drawn(names, times)
        return [published.score(truth, table.drawn(names, times)) for table in tables]

    if groups < 2:
        return Draws(no_scores, "all images belong to one group")
    try:
        (once,), (twice,) = (scores(first[:1], np.full(groups, count)) for count in (1, 2))
    except PipelineError as error:
        return Draws(no_scores, f"the metric cannot score groups that are drawn twice ({str(error).rstrip('.')})")
    if not np.isclose(once, twice, rtol=1e-6, atol=1e-9):
        return Draws(no_scores, f"with every group twice the score is {twice:.6g}, with every group once {once:.6g}")
    cost = (time.perf_counter() - started) / 3 * len(first)  # the two calls scored three times the rows
    possible = min(draws, int(seconds / max(cost, 1e-6)))
    if possible < FEWEST:
        return Draws(
            no_scores, f"{FEWEST} draws take {FEWEST * cost:.2g} s, and metric.seconds leaves {seconds:.2g} s for them"
        )
    random, results = np.random.default_rng(seed), list[list[float]]()
    try:
        while len(results) < possible and (len(results) < FEWEST or time.perf_counter() - started < 2 * seconds):
            results.append(scores(submissions(len(results)), random.multinomial(groups, np.full(groups, 1 / groups))))
    except PipelineError as error:
        return Draws(no_scores, f"the metric cannot score resampled groups ({str(error).rstrip('.')})")
    few = f"metric.seconds allowed {len(results)} of {draws} draws" if len(results) < draws else ""
    return Draws(np.array(results), few)
