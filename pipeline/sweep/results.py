"""The results of a sweep: a row per trial, the winner, how optimistic its score is, and the winner as a recipe."""

import datetime
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from optuna.trial import FrozenTrial, TrialState
from rich.table import Table
from rich.text import Text

from pipeline.core.config.recipe import load_recipe
from pipeline.core.config.settings import flatten, override
from pipeline.core.console import duration
from pipeline.core.driver import listed
from pipeline.core.files import shown, write_text
from pipeline.core.tables import write_for_people
from pipeline.core.version import program
from pipeline.core.written import if_sound
from pipeline.masks.metric import Metric
from pipeline.report import compare
from pipeline.report.compare import Scored
from pipeline.split.folds import counted_rows
from pipeline.sweep import optimism, study
from pipeline.sweep.optimism import Optimism
from pipeline.sweep.pruner import FIRST_TRIALS
from pipeline.sweep.space import Space, described

NOTE = (
    "honest: on images that were not used for choices within the trial, with a 95 % interval; difference: the trial's "
    "honest score minus the winner's, on the images that both scored, ± one standard error (bootstrap over groups; not "
    "available for a score over all pixels); a difference within two standard errors may be noise."
)
ORDER = ("complete", "pruned", "running", "failed")


@dataclass(frozen=True)
class Origin:
    """The recipe of a sweep."""

    recipe: str
    """The recipe as on the command line."""
    quick: bool
    """Whether it is a quick sweep; then settings are also written to the `quick` section."""
    assignments: tuple[str, ...]
    """Settings of the whole sweep, `key=value`."""


@dataclass(frozen=True)
class Row:
    """One trial; None means not known (yet)."""

    trial: int
    run: str
    settings: dict[str, str]
    """The trial's own settings, by dotted keys."""
    score: float | None
    """The honest score on its finished folds."""
    interval_95: tuple[float, float] | None
    difference: float | None
    """Its score minus the winner's, on the images that both scored."""
    standard_error: float | None
    folds: int
    """The number of finished folds."""
    minutes: float | None
    """Minutes of training."""
    state: str
    """complete, pruned, running (in a process on any machine, or in a process that is dead) or failed."""
    error: str
    """The reason why it failed."""


@dataclass(frozen=True)
class Found:
    """The results of a sweep so far."""

    rows: list[Row]
    """The trials from the best (the winner) to the worst, the complete ones before the others."""
    optimism: Optimism | None
    """The optimism of the winner; None with fewer than two complete trials, or with one fold and too few groups."""
    metric: Metric
    folds: tuple[int, ...]

    @property
    def winner(self) -> Row | None:
        """The complete trial with the best honest score."""
        return self.rows[0] if self.rows and self.rows[0].state == "complete" else None

    @property
    def worth(self) -> float | None:
        """The winner's honest score minus the optimism of choosing it; None if that is not known."""
        if self.optimism is None or self.winner is None or self.winner.score is None:
            return None
        return self.winner.score - self.metric.sign * max(0.0, self.optimism.value)


def collect(
    trials: list[FrozenTrial], space: Space, competition: str, name: str, metric: Metric, folds: tuple[int, ...]
) -> Found:
    """Returns the results of a sweep so far, from its trials and the files of their runs."""
    scored = {trial.number: _honest(_scored(competition, f"{name}-{trial.number}")) for trial in trials}
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    best = max(complete, key=lambda trial: metric.sign * trial.values[0], default=None)  # among equal trials the first
    first = scored[best.number] if best else None
    rows = [_row(trial, space, name, scored[trial.number], first) for trial in trials]

    def place(row: Row) -> tuple[int, int, float, int]:
        score = -metric.sign * row.score if row.score is not None else np.inf
        return ORDER.index(row.state), -row.folds, score, row.trial

    there = [found for trial in complete if (found := scored[trial.number])]
    return Found(sorted(rows, key=place), _optimism(there, metric), metric, folds)


def _scored(competition: str, name: str) -> Scored | None:
    """What is known of a trial's run; None before its first fold is done."""
    found = if_sound(compare.read_runs, [f"{competition}/{name}"])
    return found[competition][0] if found else None


def _honest(scored: Scored | None) -> Scored | None:
    """A trial's run with the nested scores of its images instead of the tuned ones, if tune has written them."""
    if scored is None or scored.images is None or "nested" not in scored.images:
        return scored
    return replace(scored, images=scored.images.assign(score=scored.images["nested"]))


def _row(trial: FrozenTrial, space: Space, name: str, scored: Scored | None, first: Scored | None) -> Row:
    beside = compare.row_of(first, scored) if scored and first else None
    last = trial.intermediate_values.get(trial.last_step) if trial.last_step is not None else None
    interval = (scored.result.get("scores", {}).get("fold_model", {}) if scored else {}).get("interval_95")
    error = trial.user_attrs.get("error", "") if trial.state == TrialState.RUNNING else ""
    states = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned"}
    return Row(
        trial=trial.number,
        run=f"{name}-{trial.number}",
        settings=study.written(space, trial.params),
        score=last,
        interval_95=(interval[0], interval[1]) if interval else None,
        difference=beside.difference if beside else None,
        standard_error=beside.standard_error if beside else None,
        folds=len(trial.intermediate_values),
        minutes=beside.seconds / 60 if beside and beside.seconds is not None else None,
        state="failed" if error else states.get(trial.state, "running"),
        error=error,
    )


def _optimism(scored: list[Scored], metric: Metric) -> Optimism | None:
    """How optimistic the score of the best complete trial is, on the images that all trials scored."""
    if len(scored) < 2:
        return None
    if metric.unit == "data_set":  # scores of single images are not meaningful
        names = sorted(scored[0].result["score_by_fold"])
        scores = np.array([[trial.result["score_by_fold"].get(name, np.nan) for name in names] for trial in scored])
        images = scored[0].images
        sizes = [1.0 if images is None else float((images["fold"].astype(str) == name).sum()) for name in names]
        return optimism.leave_folds_out(metric.sign * scores, np.array(sizes), np.array(names))
    tables = [trial.images[counted_rows(trial.images, trial.rows)] for trial in scored if trial.images is not None]
    if len(tables) < len(scored):
        return None
    by_image = pd.concat([table.set_index("image_id")["score"] for table in tables], axis=1, join="inner")
    images = tables[0].set_index("image_id").loc[by_image.index]
    weights = np.ones(len(images))
    if not metric.by_image and metric.weigh != "images":  # the score of a group is repeated for each of its images
        weights = 1 / images.groupby("group")["group"].transform("size").to_numpy(np.float64)
    scores = metric.sign * by_image.to_numpy(np.float64).T
    by_fold = optimism.leave_folds_out(scores, weights, images["fold"].to_numpy())
    return by_fold or optimism.leave_groups_out(scores, weights, images["group"].to_numpy().astype(str))


# --- texts for people ------------------------------------------------------------------------------------------------


def cells(row: Row, winner: Row | None, folds: int) -> list[str]:
    """Returns a row as texts, in the order of `columns`."""
    interval = " [{:.4f}, {:.4f}]".format(*row.interval_95) if row.interval_95 else ""
    difference = "–" if row.difference is None else f"{row.difference:+.4f}"
    difference += f" ± {row.standard_error:.4f}" if row.difference is not None and row.standard_error else ""
    return [
        str(row.trial),
        *row.settings.values(),
        "–" if row.score is None else f"{row.score:.4f}{interval}",
        "winner" if row is winner else difference,
        f"{row.folds} of {folds}",
        "–" if row.minutes is None else f"{row.minutes:.1f}",
        f"{row.state}: {row.error}" if row.error else row.state,
    ]


def columns(space: Space) -> list[str]:
    """Returns the titles of the columns of a table of trials."""
    return ["trial", *space, "honest [95 %]", "difference", "folds", "minutes", "state"]


def render(found: Found, space: Space) -> Table:
    """Returns the trials as a table for the screen."""
    table = Table()
    for title in columns(space):
        table.add_column(title, justify="right" if title in ("trial", "minutes") else "left")
    for row in found.rows:
        table.add_row(*map(Text, cells(row, found.winner, len(found.folds))))
    return table


def sentences(found: Found) -> list[str]:
    """Returns sentences about the winner and how good it is."""
    winner = found.winner
    if winner is None or winner.score is None:
        return ["no trial is complete yet: there is no winner"]
    complete = [row for row in found.rows if row.state == "complete"]
    lines = [f"{found.metric.name}: winner {winner.score:.4f}, trial {winner.trial} ({_settings(winner)})"]
    if len(complete) == 1:
        return [*lines, "it is the only complete trial: nothing was chosen, so its score is not optimistic"]
    if found.optimism is None or found.worth is None:
        needed = f"two folds, or of one fold {optimism.FEWEST_UNITS} groups and a score that is a mean over them"
        return [*lines, f"how optimistic the choice among {len(complete)} trials is, is not known: that needs {needed}"]
    where = "on other folds" if found.optimism.how == "folds" else "on other images of the same fold"
    text = f"chosen {where}, it scores {found.worth:.4f}: the choice among {len(complete)} trials is too optimistic"
    text += f" by {max(0.0, found.optimism.value):.4f}"
    if found.optimism.value < 0:
        text += f" (the estimate is {found.optimism.value:.4f}, which is noise)"
    near = [row for row in complete if row is not winner and _within(row)]
    if near:
        text += f"; within two standard errors of it: {len(near)} of {len(complete) - 1} others"
    return [*lines, text]


def _within(row: Row) -> bool:
    return (
        row.difference is not None and row.standard_error is not None and abs(row.difference) <= 2 * row.standard_error
    )


def _settings(row: Row) -> str:
    return ", ".join(f"{key}={value}" for key, value in row.settings.items())


# --- files -----------------------------------------------------------------------------------------------------------


def write_table(path: Path, rows: list[Row]) -> None:
    """Writes the trials as a CSV."""
    table = [
        {
            "trial": row.trial,
            "run": row.run,
            **row.settings,
            "score": row.score,
            "low_95": row.interval_95[0] if row.interval_95 else None,
            "high_95": row.interval_95[1] if row.interval_95 else None,
            "difference": row.difference,
            "standard_error": row.standard_error,
            "folds": row.folds,
            "minutes": None if row.minutes is None else round(row.minutes, 2),
            "state": row.state,
            "error": row.error,
        }
        for row in rows
    ]
    write_for_people(path, pd.DataFrame(table))


def write_recipe(path: Path, head: list[str], origin: Origin, settings: dict[str, str]) -> None:
    """Writes a trial as a recipe: its differences from the recipe of the sweep, under a head comment. The folds stay
    those of that recipe.

    Args:
        path: the YAML.
        head: the lines of the comment.
        origin: the recipe of the sweep.
        settings: the settings of the trial, by dotted keys.
    """
    kept = [text for text in origin.assignments if not text.startswith("train.folds=")]
    changed = [*kept, *(f"{key}={value}" for key, value in settings.items())]
    changes = _with_numbers(override({}, changed))
    if origin.quick:
        # values of settings that the quick section changes, for instance epochs, are valid only for quick runs
        small = flatten(load_recipe(origin.recipe).quick)
        for_all = [text for text in changed if not _sets_one_of(text.partition("=")[0], small)]
        changes = {**_with_numbers(override({}, for_all)), "quick": changes}
    recipe = origin.recipe
    base = os.path.relpath(Path(recipe).resolve(), path.parent.resolve()) if is_path(recipe) else recipe
    comment = "".join(f"# {line}".rstrip() + "\n" for line in head)
    write_text(path, comment + yaml.safe_dump({"base": base, **changes}, sort_keys=False, allow_unicode=True))


def _sets_one_of(key: str, keys: Iterable[str]) -> bool:
    return any(f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.") for other in keys)


def winner_head(path: Path, found: Found, origin: Origin, space: Space) -> tuple[tuple[str, ...], list[str]]:
    """Returns the command that resumes the winner's run, after a quick sweep also the command of the full recipe, and
    the head comment of the winner's recipe in `path`, with the measurements."""
    winner = found.winner
    assert winner
    resume = command_of(path, winner.run, origin.quick, found.folds)
    commands = (resume, f"{program()} run {shown(path)}") if origin.quick else (resume,)
    quick = " --quick" if origin.quick else ""
    lines = [f"The winner of a sweep of {origin.recipe}{quick}: {winner.run}, {datetime.date.today()}.", ""]
    lines += [f"  {commands[0]}     resumes its training"]
    lines += [f"  {command}     the full recipe, with these settings" for command in commands[1:]] + [""]
    lines += [*sentences(found), f"measured on fold{'s' if len(found.folds) > 1 else ''} {listed(list(found.folds))}"]
    lines += [f"training took {duration(60 * winner.minutes)}"] if winner.minutes is not None else []
    return commands, lines + [f"swept: {key}={values}" for key, values in described(space).items()]


def command_of(path: Path, run: str, quick: bool, folds: tuple[int, ...]) -> str:
    """Returns the command that resumes a trial's run, by its recipe."""
    numbers = ",".join(map(str, folds))
    return f"{program()} run {shown(path)}{' --quick' if quick else ''} --name {run} --folds {numbers}"


def is_path(recipe: str) -> bool:
    """Returns whether a recipe is the path of a YAML file."""
    return recipe.endswith((".yaml", ".yml"))


def _with_numbers(value: Any) -> Any:
    """The settings with numbers for texts like 1e-3, which YAML does not read as numbers."""
    if isinstance(value, dict):
        return {key: _with_numbers(item) for key, item in value.items()}
    return float(value) if isinstance(value, str) and re.fullmatch(r"[-+]?[\d.]*\d[eE][-+]?\d+", value) else value


def how(prune: bool, trials: int | None) -> str:
    """Returns sentences about how the trials were chosen and stopped."""
    chosen = "Each combination is a trial." if trials is None else "Optuna's TPE chose the values."
    if not prune:
        return f"{chosen} All trials were trained on all folds."
    return (
        f"{chosen} A trial was pruned after a fold if its honest score so far was worse than the median of the other "
        f"trials on the same folds and at least {FIRST_TRIALS} others had such a score."
    )
