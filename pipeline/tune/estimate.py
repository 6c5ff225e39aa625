"""What to expect of a run, in three numbers that are often confused: the optimistic score, that of a fold's model on
unseen images, and that of the submission, which no out-of-fold image can measure.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core import other_runs
from pipeline.core.config.training import TrainSettings
from pipeline.core.intact import read_arrays
from pipeline.core.run import Run
from pipeline.masks.bootstrap import FEWEST_GROUPS, epoch_optimism, gain
from pipeline.masks.metric import Metric
from pipeline.masks.metrics import metric_of
from pipeline.tune.drawn_masks import DrawnProblem
from pipeline.tune.held_out import HeldOut, Weighting
from pipeline.tune.mask_rules import MaskProblem
from pipeline.tune.selection import Cells, Choice, Fits


def files(run: Run) -> tuple[Path, ...]:
    """Returns the files of counts by epoch, those there are, of the trainings that keep the epoch their own fold scored
    best."""
    return tuple(path for path in _epoch_files(run) if path.exists())


def _epoch_files(run: Run) -> list[Path]:
    return [
        one.fold_folder(fold, seed) / "epochs.npz"
        for one in other_runs.runs_of(run)
        if one.recipe.trains and _scored_epochs(one.recipe.train)
        for fold in run.trained_folds()
        for seed in one.recipe.train.seeds
    ]


def _scored_epochs(train: TrainSettings) -> bool:
    """Whether the epoch that is kept is the one whose held-out images score best."""
    return train.keep == "best" and train.monitor == "score" and train.snapshots == 1


def epoch_selection_bias(held: HeldOut) -> float | None:
    """Returns how much the choice of the epoch flatters the score of the images that chose it: the mean over trainings,
    those that keep their last weights or their average counting 0; None where it is not known, for want of epochs or of
    groups."""
    run, paths, metric = held.run, files(held.run), metric_of(held.run.competition)
    trainings = sum(
        len(one.recipe.train.seeds) * len(run.trained_folds()) for one in other_runs.runs_of(run) if one.recipe.trains
    )
    known = trainings - (len(_epoch_files(run)) - len(paths))
    groups = dict(zip(held.images["image_id"], held.images["group"], strict=True))
    found = []
    for path in paths:
        counts, names = read_arrays(path, ("counts", "image_id"))
        ids = names.astype(str)
        counted = np.array([image_id in groups for image_id in ids])
        own = np.array([groups[image_id] for image_id in ids[counted]])
        if len(np.unique(own)) < FEWEST_GROUPS:
            known -= 1
            continue
        rows = np.stack([metric.rows(measured, units=own) for measured in counts[:, counted]])
        found.append(epoch_optimism(rows, metric.objective, own))
    return float(sum(found) / known) if known else None


def single_models(run: Run, weighting: Weighting) -> list[Weighting]:
    """Returns the weightings of one seed's models each, where there are several seeds to measure an average by."""
    seeds = run.recipe.train.seeds if run.recipe.trains and run.recipe.tune.method == "search" else []
    return [replace(weighting, model=place) for place in range(len(seeds))] if len(seeds) > 1 else []


def fold_out(choice: Choice, metric: Metric, nested: np.ndarray, folds: np.ndarray) -> dict[str, float] | None:
    """Returns what the chosen steps are worth on each fold when they are fitted to the other folds alone, and by how
    much that differs from the nested estimate, below 0 where it is worse; None of one fold.

    A fold left out takes the network away that predicted it, so this is no estimate of the submission, which all these
    networks make together. Where it is far below the nested estimate, their probabilities have different scales.

    Args:
        choice: on all images that count.
        metric: the competition's.
        nested: what the score takes the sum of, of these images (n, …), under decisions chosen without their groups.
        folds: of all images (N,).
    """
    fits = choice.fits
    numbers = np.unique(folds[fits.rows]).tolist()
    if len(numbers) < 2:
        return None
    by_fold = Fits(fits.problem, fits.rows, folds, fits.start)
    rows = by_fold.averaged(choice.path, Cells(), [[Cells([fold]) for fold in numbers]])
    found = gain(nested, rows, metric.objective, choice.groups[fits.rows])
    score = float(metric.score(rows.sum(0)))
    return {"score": score, "difference": found.value, "standard_error": found.standard_error}


def averaging(
    choices: Sequence[Choice],
    average: MaskProblem | DrawnProblem,
    counted: np.ndarray,
    tuned: float,
) -> dict[str, Any]:
    """Returns what averaging the seeds' models brings, and whether parameters tuned on one of them carry over to it.

    Args:
        choices: for every seed and part, what was chosen without the part on the seed's model alone.
        average: the mean of the seeds' models.
        counted: positions of all images that count.
        tuned: the nested score of the average, tuned on itself.
    """

    def score(total: np.ndarray) -> float:
        return float(average.metric.score(total))

    parts = [choice.fits.inside(choice.without) for choice in choices]

    def pooled(problems: Sequence[Any], decisions: Sequence[Any]) -> float:
        pairs = zip(problems, decisions, parts, strict=True)
        return score(np.sum([problem.counts(decision, part).sum(0) for problem, decision, part in pairs], axis=0))

    singles = [choice.fits.problem for choice in choices]
    chosen, plain = [choice.decision for choice in choices], [average.untuned] * len(choices)
    return {
        "models": len({id(one) for one in singles}),
        "single": {"untuned": pooled(singles, plain), "tuned": pooled(singles, chosen)},
        "average": {
            "untuned": score(average.counts(average.untuned, counted).sum(0)),
            "tuned_on_single": pooled([average] * len(choices), chosen),
            "tuned_on_average": tuned,
        },
    }


def labelled(held: HeldOut, result: dict[str, Any]) -> dict[str, Any]:
    """Returns the three numbers, each with what it is of."""
    run = held.run
    optimism = epoch_selection_bias(held)
    flattery = metric_of(run.competition).sign * (optimism or 0.0)
    nested = result["nested_interval_95"]
    honest = result["nested"] - flattery
    return {
        "fold_model": {
            "is": "one fold's model on images that chose nothing of its post-processing"
            + (", nor its epoch" if optimism is not None else ""),
            "score": honest,
            "interval_95": [end - flattery for end in nested] if nested else None,
            "nested": result["nested"],
            "epoch_optimism": optimism,
        },
        "optimistic": {
            "is": "the images that everything was chosen on",
            "score": result["score"],
            "interval_95": result["interval_95"],
        },
        "submission": submission(run, honest, result.get("averaging")),
    }


def submission(run: Run, honest: float, averaged: dict[str, Any] | None) -> dict[str, Any]:
    """Returns the bracket around the submission's score.

    With errors of models that are alike, averaging M of them takes (1 - 1/M) of the error away that an endless average
    would; two seeds measure that for their number.
    """
    models = sum(
        len(one.test_folds()) * len(one.recipe.train.seeds) for one in other_runs.runs_of(run) if one.recipe.trains
    )
    what = f"a mean of {models} models" if models > 1 else "one model"
    what += ", which out-of-fold images cannot measure"
    if run.recipe.train.final or models == 0:
        return {"is": "predictions by models without out-of-fold images" if models else "predictions made elsewhere",
                "from": None, "to": None, "models": models}  # fmt: skip
    if averaged is None:
        what += "; two seeds (train.seeds) would bracket it"
        return {"is": what, "from": honest, "to": None, "models": models}
    seeds, sign = averaged["models"], metric_of(run.competition).sign
    measured = averaged["average"]["tuned_on_average"] - averaged["single"]["tuned"]
    more = max(0.0, sign * measured * seeds / (seeds - 1) * (1 / seeds - 1 / models))
    return {"is": f"{what}; the upper end goes on from what averaging {seeds} seeds brought",
            "from": honest, "to": honest + sign * more, "models": models}  # fmt: skip


def lines(result: dict[str, Any]) -> list[str]:
    """Returns the three numbers as a person reads them."""
    scores, how = result["scores"], result.get("procedure", {}).get("ships", "tuned")
    texts = []
    for name, title in (("optimistic", "out-of-fold"), ("fold_model", "honest")):
        one = scores[name]
        why = ", no interval" if result.get("published", {}).get("draws_remark") else ", one group"
        ends = " [{:.4f}, {:.4f}]".format(*one["interval_95"]) if one["interval_95"] else why
        texts.append(f"{title:12} {one['score']:.4f}{ends}  {how}, {one['is']}")
    optimism = scores["fold_model"]["epoch_optimism"]
    if optimism is None:
        texts[-1] += " (how much the choice of the epoch flatters is not known)"
    elif optimism:
        texts[-1] += f" (nested {result['nested']:.4f}, less {optimism:.4f} for the choice of the epoch)"
    low, high = (scores["submission"][end] for end in ("from", "to"))
    shown = "not known" if low is None else f"{low:.4f}{' or better' if high is None else f' to {high:.4f}'}"
    return [*texts, f"{'submission':12} {shown}  {scores['submission']['is']}"]
