"""Scores of finished runs for benchmarks/variants.py: compared in pairs, image by image, and averaged over seeds.

A difference over seeds is the mean of the seeds' differences. Its standard error has two parts, added in squares: that
of the images (bootstrap of the mean over seeds, groups drawn whole) and that of the seeds (their standard deviation
divided by the square root of their number). Runs that hold other images out than the first variant cannot be paired:
the bootstrap variances of both are added instead, and the table says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from pipeline.core.files import read_json
from pipeline.core.run import Run
from pipeline.core.trainings import history_of
from pipeline.masks.bootstrap import Score, bootstrap, mean_counts, mean_score
from pipeline.masks.decision import Biases, decision_of
from pipeline.masks.metrics import metric_of
from pipeline.predictions import blends
from pipeline.split.folds import counted_rows
from pipeline.tune import class_biases
from pipeline.tune.held_out import Weighting, held_out

FIGURES = {
    "train/loss": "training loss", "train/dice": "training Dice", "train/iou": "training IoU",
    "valid/loss": "held-out loss", "valid/dice": "held-out Dice", "valid/iou": "held-out IoU",
}  # fmt: skip
"""Columns of history.csv, after the kept epoch, and what a table calls them."""
LATEX = {"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}", "×": r"$\times$",
         "°": r"$^\circ$", "±": r"$\pm$"}  # fmt: skip


@dataclass(frozen=True)
class Counts:
    """What the score of some images is a function of."""

    values: np.ndarray
    """(N, …), one entry per image; `score` takes the sum."""
    groups: np.ndarray
    score: Score
    images: np.ndarray
    """Their ids (N,)."""

    @property
    def mean(self) -> float:
        """The score of all."""
        return float(self.score(self.values.sum(0)))

    @property
    def draws(self) -> np.ndarray:
        """Bootstrap scores; of the same images and groups the same ones are drawn."""
        return bootstrap(self.values, self.score, self.groups)


# --- one seed --------------------------------------------------------------------------------------------------------


def read(run: Run, present: bool) -> dict[str, Counts]:
    """Returns the counts of a finished run's held-out images, or those with a mask, and of a test set with truth."""
    found = _labels(run) if run.competition.kind == "multiclass" else _masks(run, present)
    if (run.folder / "test_scores.csv").exists():
        test = pd.read_csv(run.folder / "test_scores.csv", keep_default_na=False, dtype={"image_id": str})
        ids, scores = test["image_id"].to_numpy(), test[run.competition.metric].to_numpy()
        found["test set"] = Counts(mean_counts(scores), ids, mean_score, ids)
    return found


def _masks(run: Run, present: bool) -> dict[str, Counts]:
    text = {"group": str, "image_id": str}
    rows = pd.read_csv(run.folder / "oof_scores.csv", dtype=text, keep_default_na=False)
    rows = rows[counted_rows(rows, run.recipe.tune.rows) & ((rows["true_area"] > 0) | (not present))]
    groups, ids = rows["group"].to_numpy(), rows["image_id"].to_numpy()
    columns = {"untuned": "untuned", "tuned": "score"}
    return {
        name: Counts(mean_counts(rows[column].to_numpy()), groups, mean_score, ids) for name, column in columns.items()
    }


def _labels(run: Run) -> dict[str, Counts]:
    held = held_out(run)
    mix = Weighting(blends.plain_of(run), blends.weights_of(run))
    untuned, tuned = Biases((0.0,) * len(run.competition.classes), run.never), decision_of(read_json(run.postprocess))
    assert isinstance(tuned, Biases)
    both = class_biases.confusions(held, [mix, mix], [[untuned, tuned]] * len(held.rows))
    counted = counted_rows(held.images, run.recipe.tune.rows)
    groups, ids = (held.images[name].to_numpy()[counted] for name in ("group", "image_id"))
    score = metric_of(run.competition).score
    pairs = zip(("untuned", "tuned"), both, strict=True)
    return {name: Counts(values[counted], groups, score, ids) for name, values in pairs}


def difference(first: Counts, other: Counts) -> str:
    """Returns how much higher the score of `other` is than that of `first`, of the same images, as text: with its
    standard error and 95 % bootstrap interval; without them where the images differ."""
    if not _same_images(first, other):
        return f"{other.mean - first.mean:+.4f} (other images)"
    draws = other.draws - first.draws
    low, high = np.quantile(draws, [0.025, 0.975])
    return f"{other.mean - first.mean:+.4f} ± {draws.std():.4f} [{low:+.4f}, {high:+.4f}]"


def _same_images(first: Counts, other: Counts) -> bool:
    return np.array_equal(first.images, other.images) and np.array_equal(first.groups, other.groups)


# --- all seeds -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """How much higher a variant scores than the first one, over seeds."""

    value: float
    standard_error: float
    paired: bool
    """Whether both were scored on the same images."""


@dataclass
class Line:
    """One variant over its finished seeds."""

    variant: str
    seeds: int = 0
    scores: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Mean and standard deviation over seeds, by what is scored."""
    differences: dict[str, Difference] = field(default_factory=dict)
    """To the first variant, over the seeds that both have."""
    figures: dict[str, float] = field(default_factory=dict)
    """Means over seeds and folds, by the names of FIGURES."""
    minutes: float = float("nan")
    """Of training, per seed."""


def over_seeds(first: Sequence[Counts], other: Sequence[Counts]) -> Difference:
    """Returns the difference of the mean scores of two variants, one entry per seed, the seeds of both in one order."""
    by_seed = np.array([two.mean - one.mean for one, two in zip(first, other, strict=True)])
    paired = all(map(_same_images, first, other))
    draws = [np.mean([counts.draws for counts in variant], axis=0) for variant in (first, other)]
    variance = np.var(draws[1] - draws[0]) if paired else np.var(draws[0]) + np.var(draws[1])
    if len(by_seed) > 1:
        variance += by_seed.var(ddof=1) / len(by_seed)
    return Difference(float(by_seed.mean()), float(np.sqrt(variance)), paired)


def line_of(variant: str, runs: dict[int, Run], first: dict[int, Run], folds: Sequence[int], present: bool) -> Line:
    """Returns what a table says of a variant.

    Args:
        variant: its name.
        runs: its finished runs, by seed.
        first: those of the first variant.
        folds: which are held out.
        present: score only images that have a mask.
    """
    scored = {seed: read(run, present) for seed, run in runs.items()}
    line = Line(variant, len(runs))
    if not runs:
        return line
    for what in next(iter(scored.values())):
        means = [counts[what].mean for counts in scored.values()]
        line.scores[what] = float(np.mean(means)), float(np.std(means, ddof=1)) if len(means) > 1 else float("nan")
    common = [seed for seed in runs if seed in first]
    if runs != first and common:
        firsts = {seed: read(first[seed], present) for seed in common}
        for what in line.scores:
            pairs = [(firsts[seed][what], scored[seed][what]) for seed in common if what in firsts[seed]]
            if pairs:
                line.differences[what] = over_seeds(*zip(*pairs, strict=True))
    line.figures, line.minutes = _trained(runs, folds)
    return line


def _trained(runs: dict[int, Run], folds: Sequence[int]) -> tuple[dict[str, float], float]:
    """The figures of the kept epochs, and the minutes of training per seed."""
    rows, seconds = [], 0.0
    for seed, run in runs.items():
        for folder in (run.fold_folder(fold, seed) for fold in folds):
            fold, history = read_json(folder / "fold.json"), history_of(folder / "history.json")
            rows.append(history[history["epoch"] == fold["best_epoch"]])
            seconds += fold["seconds"]
    kept = pd.concat(rows)
    figures = {name: float(kept[name].mean()) for name in FIGURES if name in kept}
    return figures, seconds / len(runs) / 60


# --- as text ---------------------------------------------------------------------------------------------------------


def frame(lines: Sequence[Line]) -> pd.DataFrame:
    """Returns a table of texts, one row per variant. Columns of nothing are left out, and `tuned` where nothing was
    tuned."""
    scored = list(dict.fromkeys(what for line in lines for what in line.scores))
    if all(line.scores.get("tuned") == line.scores.get("untuned") for line in lines) and "untuned" in scored:
        scored = [what for what in scored if what != "tuned"]
    rows = []
    for number, line in enumerate(lines):
        cells = {"variant": line.variant, "seeds": str(line.seeds)}
        for what in scored:
            cells[what] = _spread(*line.scores[what]) if what in line.scores else ""
            cells[f"{what}: difference"] = "first" if number == 0 else _difference(line.differences.get(what))
        cells |= {title: _number(line.figures.get(name)) for name, title in FIGURES.items()}
        cells["minutes"] = f"{line.minutes:.1f}" if np.isfinite(line.minutes) else ""
        rows.append(cells)
    table = pd.DataFrame(rows)
    return table[[name for name in table if (table[name] != "").any()]]


def markdown(table: pd.DataFrame) -> str:
    """Returns a table as Markdown."""
    rows = [list(table.columns), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def latex(table: pd.DataFrame, caption: str, label: str) -> str:
    """Returns a table as LaTeX, which needs the package booktabs."""
    escaped = table.rename(columns=_latex).map(_latex)
    columns = "l" + "r" * (len(table.columns) - 1)
    options = {"index": False, "escape": False, "column_format": columns, "position": "t"}
    return escaped.to_latex(caption=_latex(caption), label=label, **options)


def _latex(text: str) -> str:
    """A text with what LaTeX reads otherwise; signs of numbers as those of mathematics."""
    escaped = "".join(LATEX.get(letter, letter) for letter in text.replace("\\", "/"))
    return f"${escaped[0]}${escaped[1:]}" if escaped[:1] in ("+", "-") else escaped


def _spread(mean: float, deviation: float) -> str:
    return f"{mean:.4f} ± {deviation:.4f}" if np.isfinite(deviation) else f"{mean:.4f}"


def _difference(found: Difference | None) -> str:
    if found is None:
        return ""
    return f"{found.value:+.4f} ± {found.standard_error:.4f}{'' if found.paired else ' (other images)'}"


def _number(value: float | None) -> str:
    return "" if value is None or not np.isfinite(value) else f"{value:.4f}"
