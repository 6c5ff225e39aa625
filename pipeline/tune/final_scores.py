"""Final scores with a competition's published metric, for decisions that were chosen with a built-in metric.

The published function scores all images, each fold, the decisions chosen without each part (nested), empty masks, and
resampled groups, with as many calls as `metric.seconds` allows.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline.core.console import say
from pipeline.core.freshness import hash_file
from pipeline.core.verdict import Level, Reason, from_json, to_json
from pipeline.masks.decision import Decision, disjoint
from pipeline.predictions import published
from pipeline.predictions.format.expected import Texts
from pipeline.predictions.metric_tables import MetricTables
from pipeline.predictions.published import Draws, Published, Table
from pipeline.split.folds import counted_rows
from pipeline.tune import estimate, nearest
from pipeline.tune.held_out import HeldOut, Weighting
from pipeline.tune.nearest import Agreement
from pipeline.tune.procedure import Parts
from pipeline.tune.selection import Cells, Choice

NEAR = 0.02
"""The mean difference between the tuning metric and the published one above which the user should check it."""
DRAWS = 400
"""The largest number of draws of groups."""
ON_PARTITIONS, ON_DRAWS = 0.25, 0.6
"""The shares of the time for calls that partitions and draws get."""
ERRORS = 2
"""The number of standard errors by which a model must be better than empty masks."""
BUILT_IN = (
    *("metric", "score", "interval_95", "nested", "nested_spread", "nested_interval_95", "untuned"),
    *("score_by_fold", "rows", "scores", "constants"),
)
"""The keys of postprocess.json whose values by the built-in metric move to `tuned_by`."""


@dataclass(frozen=True)
class Decided:
    """The decision that tune chose, and the decisions chosen without each part."""

    held: HeldOut
    counted: np.ndarray
    """Positions (n,) of the images that count."""
    parts: Parts
    weighting: Weighting
    decision: Decision
    untuned: Decision
    without: Mapping[Cells, Choice]
    weightings: Mapping[Cells, Weighting]
    """The weightings chosen without each part."""


@dataclass(frozen=True)
class Submissions:
    """Submissions of the held-out images under several decisions."""

    solution: Table
    tuned: Table
    untuned: Table
    empty: Table | None
    """Empty masks; None if every pixel must have a class."""
    nested: list[Table]
    """One table per partition, with every image under the decision chosen without its part."""


def replaced(decided: Decided, result: dict[str, Any], agreement: Agreement) -> dict[str, Any]:
    """Returns postprocess.json with the final scores by the published metric, and prints a summary.

    The scores by the built-in metric move to `tuned_by`, and reasons about the two metrics are added.

    Raises:
        PipelineError: the published metric fails.
    """
    run = decided.held.run
    function, settings = published.load(run.competition), run.competition.metric_file
    assert settings is not None  # callers check that the metric is a published one
    partitions = int(
        np.clip(ON_PARTITIONS * settings.seconds / max(agreement.seconds, 1e-6), 1, len(decided.parts.partitions))
    )
    made = _submissions(decided, partitions)
    nested = [function.score(made.solution.frame, table.frame) for table in made.nested]
    others = [made.tuned, *([made.empty] if made.empty else [])]
    draws = published.resampled(
        function,
        made.solution,
        lambda number: [made.nested[number % partitions], *others],
        DRAWS,
        ON_DRAWS * settings.seconds,
    )
    scores = _scores(function, made, decided, nested, draws)
    details = {
        **{"file": settings.file, "function": settings.function, "sha256": hash_file(function.path)},
        **{"partitions": partitions, "draws": len(draws.scores), "draws_remark": draws.reason},
        **asdict(agreement),
    }
    replaced_result = result | scores
    replaced_result |= {
        "metric": run.competition.scored_by,
        "scores": _labelled(decided, result, scores),
        "shares_of_empty": [],  # needs scores of single images
        "published": details,
        "tuned_by": {key: result[key] for key in BUILT_IN},
    }
    reasons = [*from_json(result), *_reasons(decided, replaced_result, agreement, draws)]
    _print(agreement, details, run.competition.scored_by)
    return replaced_result | {"reasons": to_json(reasons)}


def _scores(
    function: Published, made: Submissions, decided: Decided, nested: list[float], draws: Draws
) -> dict[str, Any]:
    """Returns the scores that replace those by the built-in metric."""
    images = decided.held.images.iloc[decided.counted]
    ids = images["image_id"].astype(str)
    folds = images["fold"].to_numpy()

    def score(table: Table, kept: np.ndarray | None = None) -> float:
        if kept is None or kept.all():
            return function.score(made.solution.frame, table.frame)
        return function.score(made.solution.only(ids[kept]), table.only(ids[kept]))

    sets = {name: counted_rows(images, name) for name in ("raw", "cleaned")}
    return {
        "score": score(made.tuned),
        "interval_95": draws.interval(1),
        "nested": float(np.median(nested)),
        "nested_spread": [min(nested), max(nested)],
        "nested_interval_95": draws.interval(0),
        "untuned": score(made.untuned),
        "score_by_fold": {str(fold): score(made.tuned, folds == fold) for fold in np.unique(folds)},
        "rows": {
            name: {"images": int(kept.sum()), "score": score(made.tuned, kept) if kept.any() else None}
            for name, kept in sets.items()
        },
        "constants": {"all_empty": score(made.empty) if made.empty else None, "mean_mask": None},
    }


def _labelled(decided: Decided, result: dict[str, Any], scores: dict[str, Any]) -> dict[str, Any]:
    """Returns the three scores. The optimism of choosing the epoch is only known for the built-in metric."""
    fold_model, optimistic = (dict(result["scores"][name]) for name in ("fold_model", "optimistic"))
    fold_model |= {"is": "one fold's model on images that were not used to choose its post-processing",
                   "epoch_optimism": None,
                   **{name: scores["nested"] for name in ("score", "nested")},
                   "interval_95": scores["nested_interval_95"]}  # fmt: skip
    optimistic |= {"score": scores["score"], "interval_95": scores["interval_95"]}
    submission = estimate.submission(decided.held.run, scores["nested"], None)
    return {"fold_model": fold_model, "optimistic": optimistic, "submission": submission}


# --- rows ------------------------------------------------------------------------------------------------------------


def _submissions(decided: Decided, partitions: int) -> Submissions:
    """Returns the submissions of the images that count, with nested decisions for this number of partitions."""
    held, counted = decided.held, decided.counted
    tables = nearest.tables_of(held, counted)
    parts = [
        {int(number): part for part in partition for number in counted if decided.parts.cells[number] in part}
        for partition in decided.parts.partitions[:partitions]
    ]
    texts = _texts(decided, [{of[int(number)] for of in parts} for number in counted], tables)
    of, masks = tables.submission, held.run.competition.kind != "multiclass"
    return Submissions(
        nearest.solution_of(tables),
        of([of_image["tuned"] for of_image in texts]),
        of([of_image["untuned"] for of_image in texts]),
        of([of_image["empty"] for of_image in texts]) if masks else None,
        [
            of([of_image[part_of[int(number)]] for of_image, number in zip(texts, counted, strict=True)])
            for part_of in parts
        ],
    )


def _texts(decided: Decided, without: list[set[Cells]], tables: MetricTables) -> list[dict[Any, Texts]]:
    """Returns the texts of each image that counts: tuned, untuned, empty, and as decided without each of its parts."""
    held = decided.held
    folds, places = held.images["fold"].to_numpy(), held.images["row"].to_numpy()
    position = {int(number): place for place, number in enumerate(decided.counted)}
    overlap = held.run.competition.submission.overlap
    weightings = list(dict.fromkeys([decided.weighting, *decided.weightings.values()]))

    def work(number: int, probabilities: list[np.ndarray], true: np.ndarray) -> dict[Any, Texts]:
        wanted: dict[Any, tuple[Weighting, Decision]] = {
            "tuned": (decided.weighting, decided.decision),
            "untuned": (decided.weighting, decided.untuned),
        }
        wanted |= {
            part: (decided.weightings[part], decided.without[part].decision) for part in without[position[number]]
        }
        known: dict[bytes, Texts] = {}
        image_id = held.rows[number]["image_id"]
        texts: dict[Any, Texts] = {"empty": tables.texts(image_id, np.zeros_like(true))}
        for key, (weighting, decision) in wanted.items():
            blend = held.blends(weighting)[folds[number]]
            probability = probabilities[weightings.index(weighting)]
            masks = disjoint(blend.objects(int(places[number]), probability, decision), probability, overlap)
            drawn = masks.tobytes()
            if drawn not in known:
                known[drawn] = tables.texts(image_id, masks)
            texts[key] = known[drawn]
        return texts

    return held.each(weightings, work, "write rows", decided.counted.tolist())


# --- reasons and messages --------------------------------------------------------------------------------------------


def _reasons(decided: Decided, result: dict[str, Any], agreement: Agreement, draws: Draws) -> list[Reason]:
    """Returns a reason about the metric that was used for tuning, and one if the model is no better than empty
    masks."""
    name, run = result["metric"], decided.held.run
    difference = agreement.differences.get(agreement.tuned_by)
    far = difference is None or difference > NEAR
    apart = (
        "not compared"
        if difference is None
        else f"mean difference {difference:.3f} on {agreement.probes} sets of masks"
    )
    which = "the most similar built-in metric" if agreement.chosen else "which the YAML names"
    text = f"Final scores are those of {name}; tuning, charts and the other reasons use {agreement.tuned_by}, {which} "
    text += f"({apart})."
    if far and difference is not None:
        text += " Thresholds that suit one may not suit the other: choose another one with `metric: {tune: …}`."
    if run.recipe.tune.presence_prior is not None:
        text += " It ignores tune.presence_prior."
    reasons = [Reason("check" if far and difference is not None else "note", "tuned by another metric", text)]
    empty = result["constants"]["all_empty"]
    if empty is None:
        return reasons
    sign = run.competition.metric_file.sign if run.competition.metric_file else 1
    ahead = sign * (result["nested"] - empty)
    noise = float((draws.scores[:, 0] - draws.scores[:, 2]).std()) if len(draws.scores) else 0.0
    if ahead > ERRORS * noise:
        return reasons
    level: Level = "stop" if ahead <= noise else "check"
    error = f" (standard error of the difference {noise:.3f})" if len(draws.scores) else ""
    text = f"By {name} the honest score is {result['nested']:.3f}, and empty masks score {empty:.3f}{error}."
    return [
        Reason(level, "no better than a constant", text, f"tune by another metric: {run.command('--from', 'tune')}"),
        *reasons,
    ]


def _print(agreement: Agreement, details: dict[str, Any], name: str) -> None:
    """Prints the metric that was used for tuning, and how often the published function was called."""
    listed = [f"{metric} {difference:.4f}" for metric, difference in list(agreement.differences.items())[:3]]
    how = "the most similar built-in metric" if agreement.chosen else "as the YAML says"
    say(f"  tuned by {agreement.tuned_by}, {how}; mean differences from {name}: {', '.join(listed) or 'not measured'}")
    remark = f"; {details['draws_remark']}" if details["draws_remark"] else ""
    plural = "" if details["partitions"] == 1 else "s"
    calls = f"{details['partitions']} partition{plural}, {details['draws']} draws of groups"
    say(f"  {name} takes {agreement.seconds:.3g} s per call: {calls}{remark}")
