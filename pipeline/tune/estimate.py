"""Three scores of a run that are often confused: the optimistic score, the score of a fold's model on unseen images,
and the score of the submission, which out-of-fold images cannot measure.
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
    """Returns the existing files of counts by epoch, for trainings that keep the epoch with the best score on their own
    fold."""
    return tuple(path for path in _epoch_files(run) if path.exists())


def _epoch_files(run: Run) -> list[Path]:
    return [
        other.fold_folder(fold, seed) / "epochs.npz"
        for other in other_runs.runs_of(run)
        if other.recipe.trains and _scored_epochs(other.recipe.train)
        for fold in run.trained_folds()
        for seed in other.recipe.train.seeds
    ]


def _scored_epochs(train: TrainSettings) -> bool:
    """Returns whether the kept epoch is the one with the best score on held-out images."""
    return train.keep == "best" and train.monitor == "score" and train.snapshots == 1


def epoch_selection_bias(held: HeldOut) -> float | None:
    """Returns the optimism from choosing the best epoch on the scored fold, as the mean over trainings.

    Trainings that keep their last or averaged weights count as 0. None if it is not known, because there are too few
    epochs or groups.
    """
    run, paths, metric = held.run, files(held.run), metric_of(held.run.competition)
    trainings = sum(
        len(other.recipe.train.seeds) * len(run.trained_folds())
        for other in other_runs.runs_of(run)
        if other.recipe.trains
    )
    known = trainings - (len(_epoch_files(run)) - len(paths))
    groups = dict(zip(held.images["image_id"], held.images["group"], strict=True))
    biases = []
    for path in paths:
        counts, names = read_arrays(path, ("counts", "image_id"))
        ids = names.astype(str)
        counted = np.array([image_id in groups for image_id in ids])
        of_images = np.array([groups[image_id] for image_id in ids[counted]])
        if len(np.unique(of_images)) < FEWEST_GROUPS:
            known -= 1
            continue
        rows = np.stack([metric.rows(measured, units=of_images) for measured in counts[:, counted]])
        biases.append(epoch_optimism(rows, metric.objective, of_images))
    return float(sum(biases) / known) if known else None


def single_models(run: Run, weighting: Weighting) -> list[Weighting]:
    """Returns one weighting per seed that uses only its models, if there are several seeds to compare with their
    mean."""
    seeds = run.recipe.train.seeds if run.recipe.trains and run.recipe.tune.method == "search" else []
    return [replace(weighting, model=place) for place in range(len(seeds))] if len(seeds) > 1 else []


def fold_out(choice: Choice, metric: Metric, nested: np.ndarray, folds: np.ndarray) -> dict[str, float] | None:
    """Returns the score of the chosen steps if they are fitted without the whole fold that they are scored on.

    The result also has the difference from the nested estimate, below 0 if it is worse. None if there is only one fold.
    Leaving out a fold also leaves out the network that predicted it, so this is not an estimate for the submission,
    which all these networks make together. If it is far below the nested estimate, the probabilities of the networks
    have different scales.

    Args:
        choice: the choice on all images that count.
        metric: the competition's metric.
        nested: the counts of these images that the score sums (n, …), under decisions chosen without their groups.
        folds: the folds of all images (N,).
    """
    fits = choice.fits
    numbers = np.unique(folds[fits.rows]).tolist()
    if len(numbers) < 2:
        return None
    by_fold = Fits(fits.problem, fits.rows, folds, fits.start)
    rows = by_fold.averaged(choice.path, Cells(), [[Cells([fold]) for fold in numbers]])
    difference = gain(nested, rows, metric.objective, choice.groups[fits.rows])
    score = float(metric.score(rows.sum(0)))
    return {"score": score, "difference": difference.value, "standard_error": difference.standard_error}


def averaging(
    choices: Sequence[Choice],
    average: MaskProblem | DrawnProblem,
    counted: np.ndarray,
    tuned: float,
) -> dict[str, Any]:
    """Returns the gain from averaging the models of several seeds, and whether parameters tuned on single models suit
    the average.

    Args:
        choices: for every seed and part, the choice made without the part on the model of this seed.
        average: the problem on the mean of the models.
        counted: the positions of all images that count.
        tuned: the nested score of the average, tuned on the average.
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
        "models": len({id(problem) for problem in singles}),
        "single": {"untuned": pooled(singles, plain), "tuned": pooled(singles, chosen)},
        "average": {
            "untuned": score(average.counts(average.untuned, counted).sum(0)),
            "tuned_on_single": pooled([average] * len(choices), chosen),
            "tuned_on_average": tuned,
        },
    }


def labelled(held: HeldOut, result: dict[str, Any]) -> dict[str, Any]:
    """Returns the three scores, each with a description."""
    run = held.run
    optimism = epoch_selection_bias(held)
    correction = metric_of(run.competition).sign * (optimism or 0.0)
    nested = result["nested_interval_95"]
    honest = result["nested"] - correction
    return {
        "fold_model": {
            "is": "one fold's model on images that were not used to choose its post-processing"
            + (" or its epoch" if optimism is not None else ""),
            "score": honest,
            "interval_95": [end - correction for end in nested] if nested else None,
            "nested": result["nested"],
            "epoch_optimism": optimism,
        },
        "optimistic": {
            "is": "on the images that were used for all choices",
            "score": result["score"],
            "interval_95": result["interval_95"],
        },
        "submission": submission(run, honest, result.get("averaging")),
    }


def submission(run: Run, honest: float, averaged: dict[str, Any] | None) -> dict[str, Any]:
    """Returns lower and upper bounds for the submission's score.

    If the errors of models are similar, averaging M of them removes the share (1 - 1/M) of the error that an infinite
    average would remove. With several seeds, this is measured and extrapolated.
    """
    models = sum(
        len(other.test_folds()) * len(other.recipe.train.seeds)
        for other in other_runs.runs_of(run)
        if other.recipe.trains
    )
    description = f"a mean of {models} models, which out-of-fold images cannot measure"
    if run.recipe.train.final or models == 0:
        return {"is": "predictions by models without out-of-fold images" if models else "external predictions",
                "from": None, "to": None, "models": models}  # fmt: skip
    if models == 1:
        return {"is": "this one model; nothing is averaged", "from": honest, "to": honest, "models": models}
    if averaged is None:
        description += "; two seeds (train.seeds) would give an upper bound"
        return {"is": description, "from": honest, "to": None, "models": models}
    seeds, sign = averaged["models"], metric_of(run.competition).sign
    measured = averaged["average"]["tuned_on_average"] - averaged["single"]["tuned"]
    more = max(0.0, sign * measured * seeds / (seeds - 1) * (1 / seeds - 1 / models))
    return {"is": f"{description}; the upper bound is extrapolated from the gain of averaging {seeds} seeds",
            "from": honest, "to": honest + sign * more, "models": models}  # fmt: skip


def lines(result: dict[str, Any]) -> list[str]:
    """Returns the three scores as lines for the console."""
    scores, how = result["scores"], result.get("procedure", {}).get("ships", "tuned")
    texts = []
    for name, title in (("optimistic", "out-of-fold"), ("fold_model", "honest")):
        score = scores[name]
        why = ", no interval" if result.get("published", {}).get("draws_remark") else ", one group"
        ends = " [{:.4f}, {:.4f}]".format(*score["interval_95"]) if score["interval_95"] else why
        texts.append(f"{title:12} {score['score']:.4f}{ends}  {how}, {score['is']}")
    optimism = scores["fold_model"]["epoch_optimism"]
    if optimism is None:
        texts[-1] += " (the optimism from choosing the epoch is not known)"
    elif optimism:
        texts[-1] += f" (nested {result['nested']:.4f}, minus {optimism:.4f} for the choice of the epoch)"
    low, high = (scores["submission"][end] for end in ("from", "to"))
    more = " or better" if high is None else f" to {high:.4f}" if high != low else ""
    shown = "not known" if low is None else f"{low:.4f}{more}"
    return [*texts, f"{'submission':12} {shown}  {scores['submission']['is']}"]
