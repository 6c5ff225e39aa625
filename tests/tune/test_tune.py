"""What tune writes: encoding reproduces its score, the nested estimate does not lie, and every key is there."""

import json
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import TRAIN_IDS, Tiny
from evidence import Images, few_partitions, held_out_of, random_images, random_labels, run_of

from pipeline.core import other_runs
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json
from pipeline.core.run import Run
from pipeline.decode import table
from pipeline.masks import rle
from pipeline.masks.bootstrap import Gain, interval, mean_counts, mean_score, presence_weights
from pipeline.masks.class_bias import labels
from pipeline.masks.decision import (
    Biases,
    Decision,
    Linear,
    Presence,
    Rule,
    Rules,
    decision_of,
    described,
    in_words,
)
from pipeline.masks.geometry import IGNORE
from pipeline.masks.metrics import METRICS
from pipeline.masks.overlaps import confusion, counts, mean_iou
from pipeline.masks.regions import RegionRule
from pipeline.masks.statistics import blank
from pipeline.predictions import blends, neighbours
from pipeline.predictions.files import read_predictions, write_probabilities
from pipeline.split.folds import read_folds
from pipeline.tune import blending, class_biases, estimate, mask_rules, procedure
from pipeline.tune import stage as tune
from pipeline.tune.class_biases import LabelProblem, draw_pixels, search
from pipeline.tune.drawn_masks import APART
from pipeline.tune.evidence import image_scores
from pipeline.tune.held_out import HeldOut, Weighting
from pipeline.tune.mask_rules import STEPS as GROUPS
from pipeline.tune.mask_rules import MaskProblem
from pipeline.tune.procedure import Parts
from pipeline.tune.selection import PARTITIONS, Cells, Fits, partitions_of, verdict
from pipeline.tune.stage import Tuned

STEPS = [step for group in GROUPS for step in group if step not in APART]  # which are for metrics of instances


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_ROOT", str(tmp_path))
    few_partitions(monkeypatch, 1)


def tuned(held: HeldOut, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What tune writes about out-of-fold images."""
    monkeypatch.setattr(tune, "held_out", lambda run: held)
    monkeypatch.setattr(tune, "_mask_statistics", lambda run: blank(["thing"], False, []))  # there is no table
    assert list(tune.execute(held.run, [])) == []
    found = read_json(held.run.postprocess)
    assert isinstance(found, dict)
    return found


def written_masks(held: HeldOut, result: dict[str, Any]) -> list[np.ndarray]:
    """The masks of the out-of-fold images, as encode writes and others read them: each by its fold's network."""
    decision = decision_of(result)
    found: list[np.ndarray] = []
    for _, image in held.images.iterrows():
        (opened,) = held.opened.values()
        blend = opened[image["fold"]]
        if "ensemble" in result:
            blend = replace(blend, weights=tuple(result["ensemble"].values()))
        shape = tuple(held.rows[len(found)][["height", "width"]])
        masks = blend.decide(image["row"], blend.native(image["row"], shape), decision)
        found.append(np.stack([rle.decode(rle.encode(mask), shape) for mask in masks]))
    return found


# --- the score -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["dice", "iou_precision"])
@pytest.mark.parametrize(
    "steps", [list(STEPS), *([step] for step in STEPS)], ids=lambda steps: steps[-1] + str(len(steps))
)
def test_encoding_the_held_out_images_reproduces_the_score(
    steps: list[str], metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every step forced on the images: a confidence of a half takes any gain."""
    images, settings = random_images(7, number=80, shape=(20, 24)), {"steps": steps, "confidence": 0.5}
    images.probabilities = [(0.6 * one).astype(np.uint8) for one in images.probabilities]  # a half is too high
    run = run_of({"metric": metric}, tune=settings)
    held = held_out_of(images, run)
    result = tuned(held, monkeypatch)
    pairs = zip(written_masks(held, result), images.truths, strict=True)
    scores = np.stack([METRICS[metric](*counts(mask, true)) for mask, true in pairs])
    assert result["score"] == float(mean_score(mean_counts(scores).sum(0)))
    assert result["score"] == pytest.approx(scores.mean(), rel=1e-12)
    assert [step["step"] for step in result["steps"]] == steps
    assert any(step["kept"] for step in result["steps"])
    rows = pd.read_csv(run.folder / "oof_scores.csv")
    np.testing.assert_allclose(rows["score"], scores[:, 0], rtol=1e-12)
    assert rows["nested"].mean() == pytest.approx(result["nested"], rel=1e-9)
    plain = Rules((Rule(),))
    assert result["untuned"] == float(mean_score(mean_counts(images.scores(plain, metric)).sum(0)))
    assert result["procedure"]["ships"] == "tuned" and result["procedure"]["gain"] > 0


@pytest.mark.parametrize("kind", ["seeds", "runs", "one fold"])
def test_several_models_of_a_fold_have_its_calibration(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fold's models are calibrated as what they are tuned as, their mean; encoding reproduces the score."""
    images, rng, told = random_images(7, number=60, shape=(14, 18)), np.random.default_rng(0), {"steps": ["rank"]}
    images = with_logits_divided(images, 1, 4)
    noisy = [np.clip(one + rng.integers(-60, 61, one.shape), 0, 255).astype(np.uint8) for one in images.probabilities]
    if kind == "runs":
        monkeypatch.setattr(blends, "knows_models", lambda run: True)  # as of two trainings
        held = ensemble_of(images, replace(images, probabilities=noisy), monkeypatch, tune=told)
    elif kind == "seeds":
        held = held_out_of(images, run_of(tune=told, train={"keep": "last", "seeds": [0, 1]}), [noisy])
    else:
        images.folds = 1
        held = held_out_of(images, run_of(tune=told))
    result = tuned(held, monkeypatch)
    (rule,) = decision_of(result).rules  # type: ignore[union-attr]
    assert rule.rank is not None and set(rule.rank.folds) == ({"0"} if kind == "one fold" else {"0", "1", "2"})
    assert (len(set(rule.rank.folds.values())) == 1) == (kind == "one fold")
    pairs = zip(written_masks(held, result), images.truths, strict=True)
    scores = np.stack([METRICS["dice"](*counts(mask, true)) for mask, true in pairs])
    assert result["score"] == float(mean_score(mean_counts(scores).sum(0)))
    if kind == "one fold":
        assert rule.rank.folds["0"] == rule.rank.pooled
    if kind == "seeds":
        assert result["averaging"]["average"]["tuned_on_single"] > result["averaging"]["single"]["untuned"]


LABELS: dict[str, Any] = {
    "classes": ["ground", "soil", "sand", "rock"],
    "kind": "multiclass",
    "metric": "mean_iou",
    "submission": {"format": "labels"},
}


@pytest.mark.parametrize("told", [{}, {"ignore_class": "ground", "ignored_prediction": "zero"}], ids=["all", "zero"])
@pytest.mark.parametrize("never", [[], ["ground"]], ids=str)
def test_writing_class_maps_reproduces_the_score(
    told: dict[str, str], never: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = random_labels(1, number=24)
    run = run_of(LABELS | told, tune={"confidence": 0.5}, predict={"never": never})
    held = held_out_of(images, run)
    result = tuned(held, monkeypatch)
    total = np.zeros((4, 4), np.int64)
    for masks, true in zip(written_masks(held, result), images.truths, strict=True):
        assert (masks.sum(0) == 1).all()
        total += confusion(masks.argmax(0).astype(np.uint8), table.true_labels(true), 4)
    ignored, reading = run.competition.ignored, run.competition.ignored_prediction
    assert result["score"] == float(mean_iou(total, ignored, reading))
    decision = decision_of(result)
    assert isinstance(decision, Biases)
    assert set(run.never) <= set(decision.never)
    assert [step["step"] for step in result["steps"]] == ["bias", "never"]
    if not never:
        assert result["steps"][0]["kept"] and any(decision.bias)
        assert result["untuned"] + 0.01 < result["score"]
        assert result["nested"] < result["score"]
        assert result["interval_95"][0] < result["score"] < result["interval_95"][1]


def test_a_class_that_is_always_wrong_is_never_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    images = random_labels(2, number=24)
    for true in images.truths:
        true[0] |= true[3] == 1  # no rock in truth
        true[3] *= true[3] == IGNORE
    result = tuned(held_out_of(images, run_of(LABELS, tune={"steps": ["never"]})), monkeypatch)
    assert (result["never"], result["steps"][0]["kept"]) == ([3], True)
    assert result["bias"] == {"ground": 0, "soil": 0, "sand": 0, "rock": 0}


def test_pixels_are_drawn_from_the_images_that_count_and_from_no_others() -> None:
    images = random_labels(3)
    held = held_out_of(images, run_of(LABELS | {"ignore_class": "sand"}))
    counted = np.array([0, 2, 3, 7, 11])
    ((pixels, true, owner),) = draw_pixels(held, [Weighting((False,), (1.0,))], counted)
    assert sorted(set(owner.tolist())) == counted.tolist()
    for number in counted:
        label = table.true_labels(images.truths[number])
        kept = (label != IGNORE) & (label != 2)
        np.testing.assert_array_equal(true[owner == number], label[kept])
        np.testing.assert_array_equal(pixels[owner == number], images.probabilities[number][:, kept].T)


def test_steps_of_class_maps_see_their_rows_only() -> None:
    images, run = random_labels(4), run_of(LABELS)
    ((pixels, true, owner),) = draw_pixels(held_out_of(images, run), [Weighting((False,), (1.0,))], np.arange(12))
    problem, rows = LabelProblem(pixels, true, owner, 12, run.competition, ()), np.array([9, 1, 4, 5])
    mine = np.isin(owner, rows)
    decision = problem.fit("bias", problem.untuned, rows, True)
    assert decision == Biases(search(pixels[mine], true[mine], problem.score))
    scored = {}
    for never in ((), (0,), (1,), (2,), (3,)):
        found = confusion(labels(pixels[mine].T, decision.bias, never), true[mine], 4)
        scored[never] = float(problem.score(found))
    best = max(scored, key=lambda never: scored[never])
    assert problem.fit("never", decision, rows, True) == Biases(decision.bias, best)
    matrices = problem.counts(decision, rows)
    for matrix, row in zip(matrices, rows, strict=True):
        predicted = labels(pixels[owner == row].T, decision.bias)
        np.testing.assert_array_equal(matrix, confusion(predicted, true[owner == row], 4))
    competition = run_of(LABELS | {"classes": ["a", "b"]}).competition
    two = LabelProblem(pixels[:, :2], np.zeros_like(true), owner, 12, competition, ())
    assert two.fit("never", two.untuned, rows, True) == two.untuned  # of two, both stay possible


# --- the nested estimate ---------------------------------------------------------------------------------------------


def choose(held: HeldOut) -> Tuned:
    return tune.choose(held, np.arange(len(held.rows)))[0]


@pytest.mark.parametrize("kind", ["masks", "labels"])
def test_the_decision_for_a_part_is_chosen_without_it(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    few_partitions(monkeypatch, 2)
    if kind == "masks":
        images, run = (
            random_images(5, number=45, shape=(14, 18)),
            run_of(tune={"confidence": 0.5, "steps": ["area", "presence"]}),
        )
    else:
        images, run = random_labels(5, number=18), run_of(LABELS, tune={"confidence": 0.5})
    held = held_out_of(images, run)
    first, partitions = choose(held), Parts.of(held, np.arange(len(images.truths))).partitions
    part = partitions[0][0]
    rows = first.chosen.choice.fits.inside(part)
    flipped = [true.copy() for true in images.truths]
    for row in rows:
        true = flipped[row]
        true[:] = true[::-1, ::-1, ::-1] if kind == "labels" else np.where(true == IGNORE, IGNORE, true != 1)
    second = choose(held_out_of(replace(images, truths=flipped), run))
    before, after = first.chosen.without, second.chosen.without
    assert set(before) == set(after) == {one for partition in partitions for one in partition}
    assert all(choice.path for choice in (*before.values(), *after.values()))  # each made a decision
    assert before[part].decision == after[part].decision  # its own truth is another, its choice is not
    assert all(before[one].decision != after[one].decision for one in before if not one & part)
    total, times = np.zeros_like(second.nested, float), np.zeros(len(flipped))
    for left_out in (one for partition in partitions for one in partition):
        choice, fits = after[left_out], after[left_out].fits
        own = fits.inside(left_out)
        assert choice.without == left_out and set(fits.outside(left_out)) == set(range(len(flipped))) - set(own)
        assert choice.decision == fits.decision(choice.path, left_out)
        total[own] += fits.problem.counts(choice.decision, own)
        times[own] += 1
    assert len(partitions) == 2 and set(times) == {2}
    if kind == "masks":
        np.testing.assert_allclose(second.nested, total / 2)
    np.testing.assert_allclose(second.chosen.nested.rows, total / 2)
    score = second.metric.score
    assert float(score(first.nested.sum(0))) != float(score(second.nested.sum(0)))


def test_groups_are_left_out_within_every_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    """So no part takes a network away, and none shares a group with what it is judged by."""
    images = random_images(6, number=60, shape=(14, 18))
    images.groups = [f"patient {number % 3} {number // 3 % 6}" for number in range(60)]
    monkeypatch.setattr(procedure, "partitions_of", partitions_of)  # as many as in earnest
    outcome = choose(held_out_of(images, run_of(tune={"confidence": 0.5, "steps": ["threshold"]})))
    folds, groups = np.arange(60) % 3, np.array(images.groups)
    assert len(outcome.chosen.nested.scores) == PARTITIONS and 30 < len(outcome.chosen.without) <= 45
    for part, choice in outcome.chosen.without.items():
        own, others = choice.fits.inside(part), choice.fits.outside(part)
        assert not set(groups[own]) & set(groups[others])
        assert set(folds[others]) == {0, 1, 2}
    scores = outcome.metric.sign * outcome.chosen.nested.scores
    assert outcome.nested_score == float(np.median(scores))
    assert scores.min() <= float(outcome.metric.score(outcome.nested.sum(0))) <= scores.max()


def test_one_trained_fold_is_left_out_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    images = random_images(6, number=40, shape=(14, 18))
    images.folds, images.groups = 1, [f"patient {number // 4}" for number in range(40)]
    result_of, run = {}, run_of(tune={"confidence": 0.5, "steps": ["area", "triplet"]})
    found = choose(held_out_of(images, run)).chosen.without
    parts = [set(choice.fits.inside(part).tolist()) for part, choice in found.items()]
    assert [len(part) for part in parts] == [8] * len(parts) and set.union(*parts[:5]) == set(range(40))
    assert len(parts) == 5 and all({row // 4 * 4 for row in part} <= part for part in parts)
    for groups in (images.groups, ["one"] * 40):
        images.groups = groups
        result_of[len(set(groups))] = tuned(held_out_of(images, run), monkeypatch)
    assert result_of[10]["untuned"] != result_of[10]["nested"]
    assert result_of[10]["fold_out"] is result_of[1]["fold_out"] is None
    # of one group none can be left out: images are, and that is said
    assert result_of[1]["untuned"] < result_of[1]["nested"] <= result_of[1]["score"]
    assert result_of[1]["nested_interval_95"] is None
    (few,) = (one for one in result_of[1]["reasons"] if one["kind"] == "few groups")
    assert "only 1 group" in few["text"] and "too optimistically" in few["text"]


@pytest.mark.parametrize(("gain", "ships"), [(Gain(0.01, 0.01, 0.8), "untuned"), (Gain(-0.01, 0.01, 0.0), "untuned"),
                                           (Gain(0.01, 0.01, 0.95), "tuned")], ids=str)  # fmt: skip
@pytest.mark.parametrize("kind", ["masks", "labels"])
def test_untuned_ships_unless_the_whole_procedure_is_better(
    kind: str, gain: Gain, ships: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "masks":
        images, run = random_images(5, number=40, shape=(14, 18)), run_of(tune={"steps": ["area"]})
        plain: Decision = Rules((Rule(),))
    else:
        images, run, plain = random_labels(5, number=12), run_of(LABELS, tune={"steps": ["bias"]}), Biases((0.0,) * 4)
    monkeypatch.setattr(procedure, "gain", lambda *_: gain)
    result = tuned(held_out_of(images, run), monkeypatch)
    assert result["procedure"] == {"ships": ships, "gain": gain.value, "standard_error": gain.standard_error}
    assert result["steps"][0]["kept"] == (ships == "tuned")
    assert verdict(result["steps"][0], 0.9) == ("kept" if ships == "tuned" else "outdone")
    assert result["steps"][0]["gain"] > 0.03
    assert (decision_of(result) == plain) == (ships == "untuned")
    assert (result["score"] == result["untuned"]) == (ships == "untuned")
    if ships == "untuned":
        assert result["nested"] == pytest.approx(result["untuned"], rel=1e-12)
        np.testing.assert_allclose(result["nested_spread"], result["nested"])
        assert result["nested_interval_95"] == pytest.approx(result["interval_95"])
    else:
        assert result["nested"] < result["score"]


@pytest.mark.parametrize("steps", [[], ["bias"]], ids=["untuned", "bias"])
def test_nested_scores_of_class_maps_are_of_all_pixels(steps: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Decisions without a part are counted on drawn pixels; what these are off by, is known of the final decision."""
    images, run = random_labels(5, number=24), run_of(LABELS, tune={"steps": steps})
    exact = tuned(held_out_of(images, run), monkeypatch)
    monkeypatch.setattr(class_biases, "JUDGED", 2500 if steps else 500)  # of 7,300
    few = tuned(held_out_of(images, run), monkeypatch)
    assert few["untuned"] == exact["untuned"] and few["procedure"]["ships"] == ("tuned" if steps else "untuned")
    if steps:
        assert few["nested"] == pytest.approx(exact["nested"], abs=0.015)
        assert few["fold_out"]["score"] == pytest.approx(exact["fold_out"]["score"], abs=0.015)
    else:
        assert few["nested"] == few["fold_out"]["score"] == pytest.approx(few["untuned"], rel=1e-12)
        np.testing.assert_allclose(few["nested_spread"], few["untuned"])
        assert few["nested_interval_95"] == pytest.approx(few["interval_95"])


# --- a fold left out -------------------------------------------------------------------------------------------------


def with_logits_divided(images: Images, fold: int, by: float) -> Images:
    """The same images, of which one fold's network is less sure of itself."""
    found = []
    for place, probability in enumerate(images.probabilities):
        p = np.clip(probability, 0.5, 254.5) / 255
        said = np.rint(255 / (1 + np.exp(-np.log(p / (1 - p)) / by))).astype(np.uint8)
        found.append(said if place % images.folds == fold else probability)
    return replace(images, probabilities=found)


def sure_images() -> Images:
    """Images whose best threshold is anywhere but near a half."""
    images, rng = random_images(30, number=60, shape=(14, 18), ignored=False, head=False), np.random.default_rng(0)
    said = [np.where(rng.random(true.shape) < 0.9, np.where(true == 1, 70, 5), 40) for true in images.truths]
    return replace(images, probabilities=[one.astype(np.uint8) for one in said])


@pytest.mark.parametrize("step", ["threshold", "area"])
def test_a_fold_left_out_tells_that_scales_differ(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the fold whose logits are divided by four, no step can know of them; without a few of its groups, it can.

    The nested estimate falls too, as no one threshold suits them all, but it does not lie: see below.
    """
    images = sure_images() if step == "threshold" else random_images(30, 1, 90, False, False, shape=(14, 18))
    if step == "area":
        images.probabilities = [(0.6 * one).astype(np.uint8) for one in images.probabilities]
    for by, far in ((1, False), (4, True)):
        result = tuned(held_out_of(with_logits_divided(images, 1, by), run_of(tune={"steps": [step]})), monkeypatch)
        found = result["fold_out"]
        assert result["steps"][0]["kept"]
        assert found["score"] == pytest.approx(result["nested"] + found["difference"], abs=0.01)
        assert (found["difference"] < -2 * found["standard_error"] - 0.05) == far
        slopes = [one["slope"] for one in result["calibration"]["thing"].values()]
        assert (slopes[1] > 2 * max(slopes[0], slopes[2])) == far


def test_a_fold_left_out_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome, scores = choose(held_out_of(images := sure_images(), run_of(tune={"steps": ["threshold"]}))), []
    folds, choice = np.arange(60) % 3, outcome.chosen.choice
    problem = choice.fits.problem
    for fold in range(3):
        decision = problem.fit("threshold", problem.untuned, np.flatnonzero(folds != fold), False)
        scores.append(images.scores(decision, "dice")[folds == fold])
    found = estimate.fold_out(choice, outcome.metric, outcome.chosen.nested.rows, folds)
    assert found is not None and found["score"] == pytest.approx(np.concatenate(scores).mean())
    assert found["difference"] == pytest.approx(found["score"] - mean_score(outcome.nested.sum(0)))


def test_calibrated_by_fold_loses_little_where_scales_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """`rank` takes a fold whose logits are divided by four to the scale of the others; a threshold cannot."""
    images, scores = random_images(31, number=90, shape=(14, 18), ignored=False), {}
    for step in ("area", "rank"):
        for by in (1, 4):
            held = held_out_of(with_logits_divided(images, 1, by), run_of(tune={"steps": [step]}))
            scores[step, by] = tuned(held, monkeypatch)["nested"]
    assert scores["rank", 4] > scores["rank", 1] - 0.01
    assert scores["area", 4] < scores["area", 1] - 0.01
    assert scores["rank", 4] > scores["area", 4] + 0.05


LIARS, DRAWS = 40, 24
"""Images, and how often they are drawn."""


def gaps(
    monkeypatch: pytest.MonkeyPatch, peeks: bool, steps: Sequence[str], draws: int
) -> tuple[np.ndarray, list[bool]]:
    """How far the nested estimate is above what the decision scores on fresh data, and whether its interval holds it.

    Predictions and masks are drawn from a pool, each for itself, so that there is nothing to learn but chance; the
    score on fresh data is that of all pairs of the pool.
    """
    pool = random_images(0, number=LIARS, ignored=False, shape=(12, 16))
    assert pool.presence is not None
    left, right = (one.ravel() for one in np.indices((LIARS, LIARS)))

    def pairs(predictions: np.ndarray, masks: np.ndarray) -> Images:
        heads = pool.presence[predictions]  # type: ignore[index]
        return Images([pool.probabilities[one] for one in predictions], [pool.truths[one] for one in masks], heads)

    fresh, rng = pairs(left, right).evidence(), np.random.default_rng(0)
    run = run_of(tune={"steps": steps, "confidence": 0.5})
    monkeypatch.setattr(mask_rules, "curves", lambda *_: {})  # slow, and not asked for
    if peeks:
        monkeypatch.setattr(Fits, "outside", lambda fits, cells: fits.rows)
    found, held = [], []
    for _ in range(draws):
        images = pairs(*rng.integers(0, LIARS, (2, LIARS)))
        outcome = choose(held_out_of(images, run))
        truth = image_scores(fresh, outcome.chosen.choice.decision, "dice").mean()
        low, high = interval(outcome.nested, mean_score, np.arange(LIARS))
        found.append(outcome.nested_score - truth)
        held.append(low <= truth <= high)
    return np.array(found), held


def assert_honest(gap: np.ndarray) -> None:
    error = gap.std(ddof=1) / len(gap) ** 0.5
    assert error < 0.025
    assert abs(gap.mean()) < 2.5 * error


def test_the_nested_estimate_does_not_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    gap, held = gaps(monkeypatch, False, ["threshold", "area", "presence"], DRAWS)
    assert_honest(gap)
    assert np.mean(held) >= 0.8


def test_a_tuner_that_peeks_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The honest one, by these steps, is lower by 0.013 ± 0.020 over all draws."""
    gap, _ = gaps(monkeypatch, True, ["area", "presence"], DRAWS // 2)
    assert gap.mean() > 0
    with pytest.raises(AssertionError, match="abs"):
        assert_honest(gap)


# --- another share of empty images, neighbours, several seeds --------------------------------------------------------


@pytest.mark.parametrize("prior", [0.2, 0.5, 0.9])
def test_weights_give_every_class_the_share_of_the_test_images(prior: float) -> None:
    true = np.array([[5, 0, 0, 1], [0, 0, 0, 1], [3, 9, 0, 1], [0, 0, 0, 1], [2, 0, 0, 1]])
    weights = presence_weights(true, prior)
    for column, weight in list(zip(true.T, weights.T, strict=True))[:2]:
        assert weight[column > 0].sum() / weight.sum() == pytest.approx(prior)
        assert weight.sum() == pytest.approx(5)
        assert len(set(weight[column > 0])) == len(set(weight[column == 0])) == 1
    assert (weights[:, 2:] == 1).all()  # nothing to weigh where all images are alike
    assert (presence_weights(true, None) == 1).all()


def test_a_higher_prior_keeps_more_masks() -> None:
    images = random_images(12, number=120)
    kept = []
    for prior in (0.1, 0.3, 0.6, 0.9):
        evidence = images.evidence()
        weights = presence_weights(evidence.true, prior)
        problem = MaskProblem(evidence, "dice", weights, lambda _: (np.zeros(0), np.zeros(0)))
        decision = problem.fit("expected", problem.untuned, np.arange(120), True)
        kept.append(sum(mask.any() for mask in images.masks(decision)))
    assert kept == sorted(set(kept))


def test_the_prior_moves_every_score(monkeypatch: pytest.MonkeyPatch) -> None:
    images = random_images(13, number=40, shape=(14, 18))
    run = run_of(tune={"presence_prior": 0.2, "steps": ["threshold"], "confidence": 0.5})
    result = tuned(held_out_of(images, run), monkeypatch)
    masked = np.array([(true == 1).any() for true in images.truths])
    scores = images.scores(decision_of(result), "dice")[:, 0]  # type: ignore[arg-type]
    expected = 0.2 * scores[masked].mean() + 0.8 * scores[~masked].mean()
    assert result["score"] == pytest.approx(expected, rel=1e-12)
    assert result["presence_prior"] == 0.2
    assert abs(expected - scores.mean()) > 0.01
    shares = dict(map(tuple, result["shares_of_empty"]))
    assert shares[0.8] == pytest.approx(expected, rel=1e-12)


def descriptors_of(run: Run, ids: list[str], like: dict[str, str]) -> None:
    """Writes random descriptors of images, of which some are like others."""
    rng = np.random.default_rng(0)
    run.table.parent.mkdir(parents=True)
    pd.DataFrame({"image_id": ids}).to_parquet(run.table)
    histograms, thumbnails = rng.integers(0, 200, (len(ids), 40)), rng.standard_normal((len(ids), 256))
    for name, other in like.items():
        for values in (histograms, thumbnails):
            values[ids.index(name)] = values[ids.index(other)]
    np.save(run.histograms, histograms.astype(np.uint8))
    thumbnails -= thumbnails.mean(1, keepdims=True)
    np.save(run.thumbnails, (thumbnails / np.linalg.norm(thumbnails, axis=1, keepdims=True)).astype(np.float16))


def test_presence_is_averaged_over_near_duplicates() -> None:
    run, ids = run_of(), list("abcdefgh")
    descriptors_of(run, ids, {"c": "a", "h": "a", "f": "d"})
    presence = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.5], [0.4, 0.6]])
    found = neighbours.averaged(presence, run, ["c", "b", "a", "f"], of_test=False)  # h and d are not among them
    np.testing.assert_allclose(found, [[0.6, 0.3], [0.8, 0.2], [0.6, 0.3], [0.4, 0.6]])
    together = neighbours.averaged(np.arange(8.0)[:, None], run, ids, of_test=False)
    np.testing.assert_allclose(together[:, 0], [3, 1, 3, 4, 4, 4, 6, 3])


def test_several_seeds_measure_what_an_average_brings(monkeypatch: pytest.MonkeyPatch) -> None:
    images, rng = random_images(15, number=40, shape=(14, 18), ignored=False), np.random.default_rng(0)
    noise = [[rng.integers(-90, 91, one.shape) for one in images.probabilities] for _ in range(2)]
    models = [
        [np.clip(one + other, 0, 255).astype(np.uint8) for one, other in zip(images.probabilities, part, strict=True)]
        for part in noise
    ]
    images.probabilities = models[0]
    run = run_of(tune={"steps": ["threshold", "area"]}, train={"keep": "last", "seeds": [0, 1]})
    result = tuned(held_out_of(images, run, models[1:]), monkeypatch)
    found, plain = result["averaging"], Rules((Rule(),))
    singles = [replace(images, probabilities=model).scores(plain, "dice").mean() for model in models]
    mean = [np.rint((one + other.astype(float)) / 2).astype(np.uint8) for one, other in zip(*models, strict=True)]
    assert found["models"] == 2
    assert found["single"]["untuned"] == pytest.approx(np.mean(singles), rel=1e-12)
    assert found["average"]["untuned"] == result["untuned"]
    assert result["untuned"] == pytest.approx(
        replace(images, probabilities=mean).scores(plain, "dice").mean(), rel=1e-12
    )
    assert found["average"]["tuned_on_average"] == result["nested"]
    assert found["average"]["untuned"] > found["single"]["untuned"]
    assert found["average"]["tuned_on_single"] > found["single"]["tuned"] > 0.3
    bracket = result["scores"]["submission"]
    assert bracket["models"] == 10
    # of the whole gain of averaging, two models bring a half and ten 0.9
    gain = found["average"]["tuned_on_average"] - found["single"]["tuned"]
    assert bracket["to"] - bracket["from"] == pytest.approx(gain * 2 * (0.9 - 0.5))
    assert "averaging" not in tuned(held_out_of(images, run_of()), monkeypatch)


def test_one_model_is_expected_to_score_what_was_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    images = random_images(15, number=40, shape=(14, 18), ignored=False)
    result = tuned(held_out_of(images, run_of(train={"folds": [0]})), monkeypatch)
    honest, submission = (result["scores"][name] for name in ("fold_model", "submission"))
    assert submission["from"] == submission["to"] == honest["score"]
    assert estimate.lines(result)[-1] == f"submission   {honest['score']:.4f}  this one model; nothing is averaged"


# --- ensembles -------------------------------------------------------------------------------------------------------


def products_of(sources_of: Sequence[np.ndarray], truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values = np.stack(sources_of)
    return values @ values.T / len(truth), values @ truth / len(truth)


def test_weights_of_an_ensemble_are_found() -> None:
    rng = np.random.default_rng(0)
    one, other, useless = rng.random((3, 5000))
    weights = blending._fit(*products_of([one, other, useless], 0.7 * one + 0.3 * other))
    assert sum(weights) == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(weights, [0.7, 0.3, 0], atol=1e-3)
    weights = blending._fit(*products_of([one, other, useless], 0.62 * one + 0.21 * other + 0.17 * useless))
    assert weights == (0.6, 0.2, 0.2) or weights == (0.65, 0.2, 0.15)  # in twentieths, with sum 1
    # 0.6 · one would be best; but weights sum to 1, and of those 0.8 and 0.2 come nearest to it
    np.testing.assert_allclose(blending._fit(*products_of([one, other], 0.6 * one)), [0.8, 0.2], atol=0.02)
    truth = (rng.random(5000) < 0.4).astype(float)
    known, doubtful = (np.clip(truth + rng.normal(0, noise, 5000), 0, 1) for noise in (0.3, 0.6))
    weights = blending._fit(*products_of([useless, known, doubtful], truth))
    assert weights[0] == pytest.approx(0, abs=0.02) and weights[1] > weights[2] > 0.05
    assert sum(weights) == pytest.approx(1, abs=1e-12)
    tried = {(a, b): ((a * useless + b * known + (1 - a - b) * doubtful - truth) ** 2).mean()
             for a in np.linspace(0, 1, 51) for b in np.linspace(0, 1 - a, 51)}  # fmt: skip
    best = min(tried, key=lambda pair: tried[pair])
    np.testing.assert_allclose(weights[:2], best, atol=0.03)


def test_sources_that_say_the_same_or_nothing_have_weights_too() -> None:
    one = np.random.default_rng(0).random(100)
    for sources_of in ([one, one], [one, one * 0], [one * 0, one * 0, one * 0]):
        weights = blending._fit(*products_of(sources_of, one))
        assert sum(weights) == pytest.approx(1) and min(weights) >= 0
    assert blending._fit(np.zeros((2, 2)), np.zeros(2)) == (0.5, 0.5)


def ensemble_of(images: Images, other: Images, monkeypatch: pytest.MonkeyPatch, **recipe: Any) -> HeldOut:
    """Out-of-fold images that two runs predict; the second knows nothing of presence."""
    monkeypatch.setattr(other_runs, "runs_of", lambda run: [run, run])
    run = run_of(ensemble={"one": None, "two": None}, **recipe)
    first, second = held_out_of(images, run), held_out_of(other, run)
    pairs = {fold: (blend.by_run[0], replace(second.opened[False,][fold].by_run[0], heads=None))
             for fold, blend in first.opened[False,].items()}  # fmt: skip
    opened = {
        fold: replace(blend, by_run=pairs[fold], weights=(0.5, 0.5)) for fold, blend in first.opened[False,].items()
    }
    return replace(first, opened={(False, False): opened})


def test_weights_for_a_part_are_fitted_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """In fold 0 the second run is right, elsewhere the first."""
    images = random_images(16, number=30, shape=(14, 18))
    right = [np.where(true == 1, 200, 40).astype(np.uint8) for true in images.truths]
    wrong = [np.where(true == 1, 40, 200).astype(np.uint8) for true in images.truths]
    first = replace(images, probabilities=[(right if place % 3 else wrong)[place] for place in range(30)])
    second = replace(images, probabilities=[(wrong if place % 3 else right)[place] for place in range(30)])
    held = ensemble_of(first, second, monkeypatch, tune={"steps": ["threshold"], "confidence": 0.5})
    fold = held.images["fold"].to_numpy()
    row_sets = [np.arange(30), np.flatnonzero(fold), np.flatnonzero(fold == 0)]
    (everything, without, alone), decided = blending.choose_weightings(held, row_sets)
    assert decided is None
    assert without.weights == pytest.approx((1, 0), abs=1e-6)
    assert alone.weights == pytest.approx((0, 1), abs=1e-6)
    assert 0.5 < everything.weights[0] < 0.95 and sum(everything.weights) == pytest.approx(1)
    result = tuned(held, monkeypatch)
    assert result["ensemble"] == dict(zip(("one", "two"), everything.weights, strict=True))
    # the nested estimate fits them again without each part
    parts = Parts.of(held, np.arange(30))
    assert len(parts.left_out) == 6 and parts.left_out[0] == Cells()
    for part, rows in zip(parts.left_out, parts.row_sets(), strict=True):
        assert set(rows) == set(range(30)) - set(np.flatnonzero(np.isin(parts.cells, list(part))))
    # groups are left out within every fold, so what is left has images of both kinds, and weights hardly change
    assert abs(result["nested"] - result["score"]) < 0.05
    given = ensemble_of(first, second, monkeypatch)
    told = given.run.recipe.model_copy(update={"ensemble": {"one": 3.0, "two": 1.0}})
    given = replace(given, run=replace(given.run, recipe=told))
    assert {mix.weights for mix in blending.choose_weightings(given, [np.arange(30)] * 2)[0]} == {(0.75, 0.25)}


def test_the_score_of_an_ensemble_is_that_of_the_weighted_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    images, other = (random_images(17, number=30, shape=(14, 18), ignored=False) for _ in range(2))
    rng = np.random.default_rng(0)
    other.probabilities = [np.clip(one + rng.integers(-80, 81, one.shape), 0, 255).astype(np.uint8)
                           for one in images.probabilities]  # fmt: skip
    held = ensemble_of(images, other, monkeypatch, tune={"confidence": 0.5})
    result = tuned(held, monkeypatch)
    first, second = result["ensemble"].values()
    mean = [np.rint(np.float32(first) * one + np.float32(second) * two).astype(np.uint8)
            for one, two in zip(images.probabilities, other.probabilities, strict=True)]  # fmt: skip
    blended = replace(images, probabilities=mean)
    assert result["score"] == pytest.approx(blended.scores(decision_of(result), "dice").mean(), rel=1e-12)  # type: ignore[arg-type]
    assert first > 0.6


# --- memory ----------------------------------------------------------------------------------------------------------


def test_pixels_are_not_kept() -> None:
    """Of every further image of 40,000 pixels, tune keeps less than a byte a pixel, whatever threads overlap."""
    peaks = []
    for number in (20, 200):
        true = np.zeros((1, 200, 200), np.uint8)
        true[0, 50:90, 30:160] = 1
        images = Images([np.full((1, 200, 200), place, np.uint8) for place in range(number)], [true] * number)
        held = held_out_of(images, run_of())
        tracemalloc.start()
        (evidence,) = mask_rules.collect(held, [Weighting((False,), (1.0,))])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(evidence.true) == number
    assert peaks[1] - peaks[0] < 180 * 40_000 * 2 / 3


# --- what is written -------------------------------------------------------------------------------------------------

KEYS = {
    "metric", "remark", "method", "presence_prior", "score", "interval_95", "nested", "nested_spread",
    "nested_interval_95", "untuned", "procedure", "calibration", "fold_out",
    "score_by_fold", "rows", "images", "steps", "rules", "curves", "share_empty_true", "mean_true_area", "oof",
    "shares_of_empty", "scores",
}  # fmt: skip


def on_disk(tiny: Tiny, **settings: Any) -> dict[str, Any]:
    """What tune writes about predictions of the tiny competition, with presence heads, in files."""
    tiny.settings["clean"] = {"broken": {"action": "off"}}  # noise, to the detector
    tiny.recipe |= {"tune": settings, "train": {"keep": "last"} | tiny.recipe.get("train", {})}
    tiny.save()
    run = tiny.run("decode", "clean", "split")
    folds, masks = read_folds(run), np.load(run.pixels / "train_masks.npy")
    rng = np.random.default_rng(0)
    for fold in run.trained_folds():
        rows = np.flatnonzero(folds["fold"] == fold)
        said = np.clip(90 * masks[rows] + rng.integers(0, 160, masks[rows].shape), 0, 255).astype(np.uint8)
        heads = np.where(masks[rows].any((2, 3)), 0.8, 0.3) + rng.uniform(-0.1, 0.1, (len(rows), 1))
        path, ids = run.predictions("oof", fold), folds["image_id"].iloc[rows].tolist()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_probabilities(path, said.shape, said.dtype, iter([(said, heads)]), ids, ["thing"], lambda _: None)
    tiny.run("tune")

    def refuse(text: str) -> None:
        raise ValueError(text)

    found = json.loads(run.postprocess.read_text(), parse_constant=refuse)  # NaN is no JSON
    assert isinstance(found, dict)
    return found


def test_everything_that_is_promised_is_written(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    result = on_disk(tiny, confidence=0.5)
    assert set(result) >= KEYS
    assert (result["metric"], result["method"], result["images"]) == ("dice", "search", 12)
    assert [one["step"] for one in result["steps"]] == list(STEPS)
    assert all(set(one) == {"step", "kept", "gain", "standard_error", "confidence", "rules"} for one in result["steps"])
    assert set(result["scores"]) == {"fold_model", "optimistic", "submission"}
    assert all(one["is"] for one in result["scores"].values())
    assert result["scores"]["fold_model"]["nested"] == result["nested"]
    assert result["scores"]["optimistic"]["score"] == result["score"]
    rule = result["rules"]["thing"]
    assert set(rule) == {"threshold", "min_area", "top", "presence", "rank", "components", "separation"}
    assert f"thing: {in_words(rule)}" in capsys.readouterr().err
    assert result["score_by_fold"].keys() == {"0", "1", "2"}
    assert result["share_empty_true"] == 3 / 12
    curves = result["curves"]["thing"]
    assert [value for value, _ in curves["threshold"]] == list(range(8, 256, 8))
    assert curves["min_area"][0][0] == 0 and [rule["min_area"], result["score"]] in curves["min_area"]
    assert [share for share, _ in result["shares_of_empty"]] == [round(0.1 * place, 1) for place in range(1, 10)]
    low, high = result["nested_interval_95"]
    assert low <= result["nested"] <= high
    scores = pd.read_csv(tiny.run().folder / "oof_scores.csv")
    assert sorted(scores["image_id"]) == TRAIN_IDS
    assert scores["score"].mean() == pytest.approx(result["score"])


def test_images_of_one_patient_have_a_score_and_no_interval(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.settings |= {"group": "patient", "split": {"folds": 6}}
    tiny.recipe |= {"train": {"folds": [1]}}
    result = on_disk(tiny)
    assert result["images"] == 2
    assert result["interval_95"] is None and result["nested_interval_95"] is None
    said, ships = capsys.readouterr().err, result["procedure"]["ships"]
    assert f"out-of-fold  {result['score']:.4f}, one group  {ships}, on the images" in said
    assert f"honest       {result['nested']:.4f}, one group  {ships}, one fold's model" in said


@pytest.mark.parametrize("near", [False, True])
def test_the_files_on_disk_reproduce_the_score(tiny: Tiny, near: bool) -> None:
    tiny.path("a12").write_bytes(tiny.path("a06").read_bytes())
    result = on_disk(tiny, confidence=0.5, presence_neighbours=near)
    run, scores = tiny.run(), []
    said: dict[str, float] = {}
    heads: dict[str, float] = {}
    images = table.read_table(run.table, "train").set_index("image_id", drop=False)
    for fold in run.trained_folds():
        blend, written = (
            blends.out_of_fold(run, fold, (False,)),
            read_predictions(run.predictions("oof", fold), ["thing"])[2],
        )
        assert blend.presence is not None and written is not None
        said |= dict(zip(blend.ids, written[:, 0], strict=True))
        heads |= dict(zip(blend.ids, blend.presence[:, 0], strict=True))
        for row, name in enumerate(blend.ids):
            true = table.true_mask(images.loc[name], ["thing"])
            mask = blend.decide(row, blend.native(row, true.shape[1:]), decision_of(result))
            scores.append(METRICS["dice"](*counts(rle.decode(rle.encode(mask[0]), true.shape[1:])[None], true)))
    assert result["score"] == float(mean_score(mean_counts(np.stack(scores)).sum(0)))
    if near:
        said["a06"] = said["a12"] = (said["a06"] + said["a12"]) / 2
    assert heads == pytest.approx(said, rel=1e-6)


def test_fixed_chooses_nothing(tiny: Tiny) -> None:
    result = on_disk(tiny, method="fixed", threshold=0.6, min_area=40)
    assert result["steps"] == [] and result["method"] == "fixed"
    assert decision_of(result) == Rules((Rule(153, 40),))
    assert result["procedure"]["gain"] == 0 and result["nested_spread"] == pytest.approx([result["score"]] * 2)
    assert result["nested"] == pytest.approx(result["score"], rel=1e-12)
    assert result["score"] != result["untuned"]


@pytest.mark.parametrize(("threshold", "expected"), [(0.5, 128), (1.0, 255), (0.001, 1), (0.25, 64)])
def test_fixed_takes_the_recipes_numbers(threshold: float, expected: int) -> None:
    settings = run_of(tune={"method": "fixed", "threshold": threshold, "min_area": 11}).recipe.tune
    assert mask_rules.fixed(settings, 2) == Rules((Rule(expected, 11),) * 2)


@pytest.mark.parametrize("kind", ["perfect", "nothing", "empty"])
def test_where_there_is_nothing_to_choose(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    truths = [np.zeros((1, 6, 6), np.uint8) for _ in range(9)]
    for size, true in enumerate(truths):
        true.ravel()[: 4 * size] = kind != "empty"
    images = Images([true * (255 if kind == "perfect" else 0) for true in truths], truths)
    result = tuned(held_out_of(images, run_of(tune={"confidence": 0.5})), monkeypatch)
    assert decision_of(result) == Rules((Rule(),))
    expected = 1 / 9 if kind == "nothing" else 1.0
    assert result["score"] == result["nested"] == result["untuned"] == pytest.approx(expected)
    assert not any(step["kept"] for step in result["steps"])
    assert [step["step"] for step in result["steps"]] == [step for step in STEPS if step != "presence"]  # no head


def test_rows_that_do_not_count_choose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    images = random_images(18, number=40, shape=(14, 18))
    held = held_out_of(images, run_of(tune={"rows": "cleaned", "confidence": 0.5}))
    held.images.loc[held.images.index[:8], "use"] = "drop"
    wild = replace(images, truths=[true if place >= 8 else 1 - true % 2 for place, true in enumerate(images.truths)])
    other = held_out_of(wild, held.run)
    other.images["use"] = held.images["use"]
    first, second = tuned(held, monkeypatch), tuned(other, monkeypatch)
    for key in ("rules", "score", "nested", "interval_95", "images"):
        assert first[key] == second[key]
    assert first["images"] == first["rows"]["cleaned"]["images"] == 32
    assert first["rows"]["raw"]["score"] != second["rows"]["raw"]["score"]
    held.images["use"] = "drop"
    with pytest.raises(
        PipelineError, match="tune.rows is cleaned, but none of the 40 out-of-fold images is such a row"
    ):
        tuned(held, monkeypatch)


def test_rules_in_words() -> None:
    rule = Rule(100, 30, 200, Presence(cut=0.25), components=RegionRule(fill=True, min_size=32))
    (said,) = described(Rules((rule,)), ["thing"]).values()
    assert (
        in_words(said)
        == "threshold 100 of 255, at least 30 px at 200, presence above 0.250, holes filled, regions of at least 32 px"
    )
    (said,) = described(Rules((Rule(90, presence=Presence(worth=Linear())),)), ["thing"]).values()
    assert in_words(said) == "threshold 90 of 255, presence if the expected score is higher (p·d > 1 - p)"
