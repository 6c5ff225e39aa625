"""Chooses how probabilities become masks, on the out-of-fold predictions at native size, and estimates the score.

    python -m pipeline tune RECIPE

reads   work/<competition>/<run>/predictions/oof_fold_<k>.npy, fold_<k>/epochs.npz, work/<competition>/images.parquet,
        outliers.csv, folds/<competition>.csv and its audit
writes  work/<competition>/<run>/postprocess.json (decision, steps tried, scores, curves), oof_scores.csv (one row per
        image: its score with the decision, untuned, and nested, that is with decisions chosen without it),
        suspects.csv, mask_statistics.npz (statistics of the training masks for encode's guards; some hundred bytes per
        mask, too much for a readable JSON)

The score is over all images except broken ones, because the test set is not cleaned either. The score over the images
that clean left unchanged is given too. `tune.rows: cleaned` exchanges the two.

A step is kept only if it gains more than noise, and the kept steps are used only if together they do (selection.py).
The nested estimate repeats all choices without the groups that it scores: steps, thresholds, weights of an ensemble and
test-time augmentation.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from pipeline.core import other_runs
from pipeline.core.config.competition import Competition
from pipeline.core.console import say
from pipeline.core.errors import PipelineError
from pipeline.core.files import shown, write_json
from pipeline.core.freshness import Step
from pipeline.core.run import Run
from pipeline.core.tables import write_for_people
from pipeline.core.verdict import to_json
from pipeline.decode import table
from pipeline.masks import statistics
from pipeline.masks.bootstrap import interval, presence_weights, shares_of_empty
from pipeline.masks.decision import Rules, described
from pipeline.masks.metric import Metric
from pipeline.masks.metrics import metric_of
from pipeline.masks.overlaps import class_iou, without_ignored
from pipeline.predictions import blends, kept_views, published
from pipeline.split.folds import counted_rows, leak_remark
from pipeline.tune import (
    blending,
    calibration,
    class_biases,
    constants,
    drawn_masks,
    estimate,
    final_scores,
    histories,
    mask_rules,
    nearest,
    reasons,
    summary,
    suspects,
)
from pipeline.tune.class_biases import LabelProblem
from pipeline.tune.evidence import predicted_area
from pipeline.tune.findings import Findings
from pipeline.tune.held_out import HeldOut, Weighting, held_out
from pipeline.tune.procedure import Chosen, Parts, choose_steps
from pipeline.tune.selection import Cells, Fits, Nested, Tried

LESS_MEMORY = "set a smaller image.size or image.store, whose probabilities are tuned on, or predict.tta=none"
READS_FOLDS = "oof"
SHARES = tuple(round(share / 10, 1) for share in range(1, 10))


Rows = Callable[[np.ndarray], np.ndarray]
"""Takes positions of images (n,); returns the counts that the metric's score sums, one row per image (n, …)."""


@dataclass(frozen=True)
class Tuned:
    """The choices of tune, and the counts per image that `metric.score` sums."""

    held: HeldOut
    counted: np.ndarray
    """The positions of the images on which choices were made, in ascending order."""
    chosen: Chosen
    weighting: Weighting
    views: dict[str, Any] | None
    """The decision on test-time augmentation; see views.decide."""
    metric: Metric
    parts: Parts
    weightings: Mapping[Cells, Weighting]
    """The weightings chosen without each part."""
    rows: Rows
    """Counts under the decision."""
    nested: np.ndarray
    """Counts of the images at `counted`, under decisions chosen without the image (n, …)."""
    untuned: Rows
    """Counts under the untuned decision."""

    @property
    def nested_score(self) -> float:
        """The nested score, as the median over partitions."""
        return float(self.metric.sign * np.median(self.chosen.nested.scores))

    @property
    def decided(self) -> final_scores.Decided:
        """The decisions that a published metric scores."""
        choice = self.chosen.choice
        return final_scores.Decided(
            self.held, self.counted, self.parts, self.weighting, choice.decision, choice.fits.problem.untuned,
            self.chosen.without, self.weightings,
        )  # fmt: skip


def steps(run: Run) -> list[Step]:
    """Returns the step of this stage."""
    inputs = (run.table, run.outliers, run.folds_file, run.audit, *blends.files(run, "oof"), *estimate.files(run))
    inputs += (*histories.files(run), *filter(None, [published.file_of(run.competition)]))
    outputs = (run.postprocess, run.folder / "oof_scores.csv", run.suspects, run.mask_statistics)
    settings: dict[str, Any] = {"tune": run.recipe.tune.model_dump(mode="json"), "metric": run.competition.metric}
    if run.competition.metric_file:
        settings["metric_file"] = run.competition.metric_file.model_dump(mode="json")
    settings |= {"reading": run.remark, "never": list(run.never), "ensemble": run.recipe.ensemble}
    if run.competition.submission.size:
        settings["size"] = [*run.competition.submission.size, run.competition.submission.resize]
    if run.recipe.tune.presence_neighbours:
        settings["duplicates"] = run.competition.clean.duplicates.model_dump(mode="json")
    settings["tta"] = run.recipe.predict.tta
    if run.recipe.ensemble:  # the runs have made their own decisions on views
        settings["tta"] = {other.name: kept_views.views_of(other) for other in other_runs.runs_of(run)}
    manifest = run.folder / "postprocess.manifest.json"
    return [Step("tune", "tune", manifest, inputs, outputs, settings)]


def execute(run: Run, waiting: list[Step]) -> Iterator[Step]:
    """Makes all choices, estimates the scores, and writes the files."""
    held = held_out(run)
    counted = np.flatnonzero(counted_rows(held.images, run.recipe.tune.rows))
    if not len(counted):
        raise PipelineError(
            f"tune.rows is {run.recipe.tune.rows}, but none of the {len(held.images)} out-of-fold images is such a row."
        )
    agreement = None
    if run.competition.metric_file:
        held, agreement = nearest.nearest(held, counted)
    tuned, special, suspected = choose(held, counted)
    true, predicted = special.pop("areas")
    result = _result(tuned) | special
    result["scores"] = estimate.labelled(held, result)
    everything = np.arange(len(held.rows))
    score = tuned.metric.score
    scores = {"score": score(tuned.rows(everything)), "untuned": score(tuned.untuned(everything))}
    nested = np.full(len(everything), np.nan)
    nested[counted] = score(tuned.nested)
    constant = constants.measure(held, counted)
    result["constants"] = constant.described()
    findings = Findings(
        held, counted, result, scores["score"], true, predicted, tuned.rows(counted), tuned.nested, constant,
        len(suspected),
    )  # fmt: skip
    result["reasons"] = to_json(reasons.of(findings))
    if agreement:
        result = final_scores.replaced(tuned.decided, result, agreement)
    foreground = true if run.competition.kind != "multiclass" else true[:, 1:]
    rows = held.images.drop(columns="row").assign(true_area=foreground.sum(1), **scores, nested=nested)
    for path, rows_of in ((run.folder / "oof_scores.csv", rows), (run.suspects, suspected)):
        write_for_people(path, rows_of)
    statistics.save(run.mask_statistics, _mask_statistics(run))
    write_json(run.postprocess, result)
    summary.say_result(run, result)
    if any(reason["kind"] == "suspect labels" for reason in result["reasons"]):
        say(f"  {len(suspected)} images whose mask may be wrong, the most likely first → {shown(run.suspects)}")
    yield from waiting


def estimated(held: HeldOut, counted: np.ndarray) -> dict[str, Any]:
    """Returns the scores of these images as in postprocess.json, without writing anything."""
    return _result(choose(held, counted)[0])


def _mask_statistics(run: Run) -> statistics.Statistics:
    """Returns statistics of the masks of all training images, by class."""
    classes, exclusive = run.competition.classes, run.competition.kind == "multiclass"
    return statistics.of_table(table.read_table(run.table, "train"), classes, exclusive)


# --- choosing --------------------------------------------------------------------------------------------------------


def choose(held: HeldOut, counted: np.ndarray) -> tuple[Tuned, dict[str, Any], pd.DataFrame]:
    """Returns the choices made on the images at the positions `counted` (ascending), further entries of
    postprocess.json, and the suspects. The entry `areas` holds the pixels (N, C) of true and predicted masks."""
    return (_labels if held.run.competition.kind == "multiclass" else _masks)(held, counted)


def _masks(held: HeldOut, counted: np.ndarray) -> tuple[Tuned, dict[str, Any], pd.DataFrame]:
    """Returns the same as `choose` for a binary or multilabel competition."""
    run, parts = held.run, Parts.of(held, counted)
    settings, classes = run.recipe.tune, run.competition.classes
    weightings, views = blending.choose_weightings(held, parts.row_sets())
    distinct, singles = list(dict.fromkeys(weightings)), estimate.single_models(run, weightings[0])
    evidences = mask_rules.collect(held, [*distinct, *singles])
    weights = np.ones(evidences[0].true.shape)
    weights[counted] = presence_weights(evidences[0].true[counted], settings.presence_prior)
    separating = drawn_masks.separating(run)
    separator = blends.separator_of(run) if "separator" in separating else None
    start = mask_rules.fixed(settings, len(classes), separator) if settings.method == "fixed" else None
    fits = {
        weighting: Fits(drawn_masks.problem_of(held, weighting, evidence, weights), counted, parts.cells, start)
        for weighting, evidence in zip([*distinct, *singles], evidences, strict=True)
    }
    metric = metric_of(run.competition)
    tried = mask_rules.steps_of(settings, evidences[0], metric, blends.knows_models(run), separating)
    chosen = choose_steps(parts, [fits[weighting] for weighting in weightings], tried, settings)
    final: Any = fits[weightings[0]].problem
    decision = chosen.choice.decision
    rows, untuned = partial(final.counts, decision), partial(final.counts, final.untuned)
    of_parts = dict(zip(parts.left_out[1:], weightings[1:], strict=True))
    tuned = Tuned(
        held, counted, chosen, weightings[0], views, metric, parts, of_parts, rows, chosen.nested.rows, untuned
    )
    evidence = final.evidence_of(decision)
    selected = evidence.only(counted)
    scores = metric.by_class(final.measured(decision, counted)).mean(1)
    special = {
        "rules": described(decision, classes),
        "curves": mask_rules.curves(final, decision, counted, classes),
        "share_empty_true": float((selected.true.sum(1) == 0).mean()),
        "mean_true_area": float(selected.true.sum(1).mean()),
        "oof": mask_rules.summary(selected, decision),
        "shares_of_empty": shares_of_empty(scores, selected.true.sum(1) == 0, SHARES) if metric.by_image else [],
        "calibration": calibration.by_fold(selected, classes),
        "fold_out": estimate.fold_out(chosen.choice, metric, chosen.nested.rows, parts.folds),
    }
    if singles:
        # regions were counted at the thresholds of the average, not at those of single models
        steps = [group for group in tried if "components" not in group]
        left_out = parts.partitions[0] * len(singles)
        lone = [fits[single] for single in singles for _ in parts.partitions[0]]
        special["averaging"] = estimate.averaging(
            parts.choices(lone, steps, settings, left_out), final, counted, tuned.nested_score
        )
    special["areas"] = evidence.true, predicted_area(evidence, decision)
    return tuned, special, suspects.of_masks(evidence, decision, classes)


def _labels(held: HeldOut, counted: np.ndarray) -> tuple[Tuned, dict[str, Any], pd.DataFrame]:
    """Returns the same as `choose` for a multiclass competition."""
    run, parts = held.run, Parts.of(held, counted)
    competition, settings = run.competition, run.recipe.tune
    weightings, views = blending.choose_weightings(held, parts.row_sets())
    distinct = list(dict.fromkeys(weightings))
    drawn = zip(distinct, class_biases.draw_pixels(held, distinct, counted), strict=True)
    metric, groups = metric_of(competition), parts.groups
    fits = {
        weighting: Fits(LabelProblem(*pixels, len(held.rows), competition, run.never, groups), counted, parts.cells)
        for weighting, pixels in drawn
    }
    tried = [[step] for step in class_biases.STEPS if step in settings.steps]
    chosen = choose_steps(parts, [fits[weighting] for weighting in weightings], tried, settings)
    final, decision = fits[weightings[0]].problem, chosen.choice.decision
    matrices_of_decisions = class_biases.confusions(
        held, [weightings[0]] * 2, [[decision, final.untuned]] * len(held.rows)
    )
    everything, untuned = (
        lambda rows, matrices=matrices: metric.rows(matrices[rows], units=groups[rows])
        for matrices in matrices_of_decisions
    )
    # nested decisions are counted on drawn pixels; their difference from the decision is added to the full counts
    whole, some = everything(counted), final.counts(decision, counted)
    shift = float(metric.objective(whole.sum(0)) - metric.objective(some.sum(0)))
    nested = Nested(whole + chosen.nested.rows - some, chosen.nested.scores + shift)
    fold_out = estimate.fold_out(chosen.choice, metric, chosen.nested.rows, parts.folds)
    if fold_out:
        fold_out["score"] += metric.sign * shift
    chosen = replace(chosen, nested=nested)
    of_parts = dict(zip(parts.left_out[1:], weightings[1:], strict=True))
    tuned = Tuned(
        held, counted, chosen, weightings[0], views, metric, parts, of_parts, everything, nested.rows, untuned
    )
    special = _described_labels(tuned, matrices_of_decisions[0][counted]) | {
        "areas": (
            matrices_of_decisions[0].sum(2),
            without_ignored(matrices_of_decisions[0], competition.ignored).sum(1),
        )
    }
    special["fold_out"] = fold_out
    return tuned, special, suspects.of_labels(held.images, matrices_of_decisions[0], competition)


# --- entries of postprocess.json -------------------------------------------------------------------------------------


def _result(tuned: Tuned) -> dict[str, Any]:
    """Returns the scores, the steps and the weights of the ensemble."""
    run, images, score = tuned.held.run, tuned.held.images, tuned.metric.score
    chosen, partitions = tuned.rows(tuned.counted), tuned.metric.sign * tuned.chosen.nested.scores
    folds, groups = images["fold"].to_numpy(), images["group"].to_numpy()
    sets, search = {name: counted_rows(images, name) for name in ("raw", "cleaned")}, run.recipe.tune.method == "search"
    result: dict[str, Any] = {
        "metric": run.competition.metric,
        "remark": "; ".join(filter(None, [run.remark, leak_remark(run)])),
        "method": run.recipe.tune.method,
        "search": tuned.metric.counted,
        "presence_prior": run.recipe.tune.presence_prior,
        "score": float(score(chosen.sum(0))),
        "interval_95": interval(chosen, score, groups[tuned.counted]),
        "nested": tuned.nested_score,
        "nested_spread": [float(partitions.min()), float(partitions.max())],
        "nested_interval_95": interval(tuned.nested, score, groups[tuned.counted]),
        "untuned": float(score(tuned.untuned(tuned.counted).sum(0))),
        "score_by_fold": {
            str(fold): float(score(tuned.rows(tuned.counted[folds[tuned.counted] == fold]).sum(0)))
            for fold in np.unique(folds[tuned.counted])
        },
        "rows": {
            name: {
                "images": int(kept.sum()),
                "score": float(score(tuned.rows(np.flatnonzero(kept)).sum(0))) if kept.any() else None,
            }
            for name, kept in sets.items()
        },
        "images": len(chosen),
        "steps": [*_views(run, tuned.views), *(_step(tried, run) for tried in tuned.chosen.choice.tried)],
        "procedure": {
            "ships": "tuned" if tuned.chosen.choice.path else "untuned" if search else "fixed",
            "gain": tuned.chosen.gain.value,
            "standard_error": tuned.chosen.gain.standard_error,
        },
    }
    if tuned.views:
        result["tta"] = tuned.views
    if run.recipe.ensemble:
        result["ensemble"] = dict(zip(run.recipe.ensemble, tuned.weighting.weights, strict=True))
    return result


def _views(run: Run, decided: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Returns test-time augmentation as a step, as decided here or by the runs of an ensemble."""
    records = [decided]
    if run.recipe.ensemble:
        records = list(map(kept_views.decided_views, other_runs.runs_of(run)))
    keys = ("kept", "gain", "standard_error", "confidence")
    return [
        {"step": f"test-time augmentation {record['views']}", **{key: record[key] for key in keys}}
        for record in records
        if record and record.keys() >= {*keys}
    ]


def _step(tried: Tried, run: Run) -> dict[str, Any]:
    entry = {"step": tried.step, "kept": tried.kept, "gain": tried.gain.value,
             "standard_error": tried.gain.standard_error, "confidence": tried.gain.confidence}  # fmt: skip
    if isinstance(tried.decision, Rules):
        return entry | {"rules": described(tried.decision, run.competition.classes)}
    return entry | {"bias": tried.decision.bias, "never": tried.decision.never}


def _described_labels(tuned: Tuned, chosen: np.ndarray) -> dict[str, Any]:
    """Returns the entries only for multiclass competitions; `chosen` are confusion matrices of the images that
    count."""
    competition = tuned.held.run.competition
    folds = tuned.held.images["fold"].to_numpy()[tuned.counted]
    by_fold = {str(fold): chosen[folds == fold].sum(0) for fold in np.unique(folds)}
    decision, total = tuned.chosen.choice.decision, chosen.sum(0)
    return {
        "bias": dict(zip(competition.classes, decision.bias, strict=True)),
        "never": list(decision.never),
        "readings": _readings(total, by_fold, competition),
        "class_iou": _named(class_iou(total, competition.ignored), competition),
        "class_iou_by_fold": {
            fold: _named(class_iou(counts, competition.ignored), competition) for fold, counts in by_fold.items()
        },
        "class_share_true": _named(total.sum(1) / total.sum(), competition),
        "oof": {"class_share": _named(total.sum(0) / total.sum(), competition)},
    }


def _readings(counts: np.ndarray, by_fold: dict[str, np.ndarray], competition: Competition) -> dict[str, Any]:
    """Returns the metric over all pixels in both readings of a predicted ignored class, over all images and by fold."""
    if competition.ignored is None:
        return {}
    readings = {
        reading: metric_of(competition.model_copy(update={"ignored_prediction": reading}))
        for reading in ("leave_out", "zero")
    }
    return {
        reading: {
            "all": float(metric.by_class(counts)),
            **{fold: float(metric.by_class(matrix)) for fold, matrix in by_fold.items()},
        }
        for reading, metric in readings.items()
    }


def _named(values: np.ndarray, competition: Competition) -> dict[str, float | None]:
    pairs = zip(competition.classes, values, strict=True)
    return {name: None if np.isnan(value) else float(value) for name, value in pairs}
