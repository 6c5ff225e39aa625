"""Which reasons held-out images give, at which level and in which words; and that a decent run gives none."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from evidence import held_out_of, random_images, random_labels, run_of

from pipeline.core.files import read_json, write_json
from pipeline.core.other_runs import find_run
from pipeline.core.recorded import write_recipe
from pipeline.core.run import Run
from pipeline.core.verdict import Reason, from_json, verdict_of
from pipeline.masks import metrics
from pipeline.masks.bootstrap import gain, mean_counts, mean_score
from pipeline.masks.metric import Metric
from pipeline.tune import histories, mask_checks, reasons, stage, weak_places
from pipeline.tune.constants import Constant, Constants
from pipeline.tune.findings import Findings, longer, named, trained_again, with_more_time
from pipeline.tune.held_out import HeldOut

NUMBER = 120
GROUPS = 12


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_ROOT", str(tmp_path))


def answer(scores: np.ndarray, metric: Metric) -> Constant:
    return Constant("an empty mask everywhere", float(scores.mean()), mean_counts(scores))


def decent(number: int = NUMBER, metric: str = "dice", **changes: Any) -> Findings:
    """Twelve subjects in four folds, 0.9 ± 0.05, whose masks are found; half of them are empty."""
    rng = np.random.default_rng(0)
    groups = np.arange(number) % GROUPS
    scores = np.clip(rng.normal(0.9, 0.05, number), 0, 1)
    empty = rng.random(number) < 0.5
    true = np.where(empty, 0, rng.integers(200, 400, number))[:, None]
    predicted = np.round(true * rng.normal(1, 0.1, (number, 1))).astype(int)
    images = pd.DataFrame({
        "image_id": [f"i{place}" for place in range(number)], "fold": groups % 4, "group": groups.astype(str),
        "use": "train",
    })  # fmt: skip
    run = run_of()
    if metric != "dice":
        run = replace(run, competition=run.competition.model_copy(update={"metric": metric}))
    result: dict[str, Any] = {"score": float(scores.mean()), "nested": float(scores.mean()) - 0.005}
    rows = mean_counts(scores)
    constants = Constants(
        metrics.METRICS[metric], answer(1.0 * empty, metrics.METRICS[metric]),
        answer(np.full(number, 0.2), metrics.METRICS[metric]),
    )  # fmt: skip
    found = Findings(
        HeldOut(run, images, []), np.arange(number), result, scores, true, predicted, rows, rows, constants
    )
    return replace(found, **changes)


def scored(scores: np.ndarray, found: Findings) -> Findings:
    rows = mean_counts(scores)
    result = found.result | {"score": float(scores.mean()), "nested": float(scores.mean())}
    return replace(found, scores=scores, rows=rows, nested=rows, result=result)


def told(found: Findings) -> dict[str, Reason]:
    given = reasons.of(found)
    assert all(one.text.endswith(".") for one in given)
    return {one.kind: one for one in given}


def test_a_decent_run_gives_no_reason() -> None:
    assert told(decent()) == {}
    assert told(decent(NUMBER, result=decent().result | {"fold_out": None, "calibration": {}, "procedure": {}})) == {}
    assert told(decent(result={})) == {}


# --- no better than a constant ---------------------------------------------------------------------------------------


def test_a_model_that_a_constant_answer_beats_stops() -> None:
    found = decent()
    empty = found.true[:, 0] == 0
    reason = told(scored(0.9 * empty, found))["no better than a constant"]
    assert reason.level == "stop"
    assert f"is worse than the {empty.mean():.3f} of an empty mask everywhere" in reason.text
    assert "train.epochs" in reason.command and "--name x-longer" in reason.command


@pytest.mark.parametrize("more, level", [(1.5, "check"), (0.5, "stop"), (2.5, None)])
def test_a_lead_within_noise_is_none(more: float, level: str | None) -> None:
    """Returns the number of standard errors by which the model is ahead."""
    found = decent()
    empty = 1.0 * (found.true[:, 0] == 0)
    noise = np.random.default_rng(1).normal(0, 0.4, NUMBER)
    error = gain(mean_counts(empty), mean_counts(empty + noise), mean_score, found.groups).standard_error
    scores = empty + noise - noise.mean() + more * error
    assert getattr(told(scored(scores, found)).get("no better than a constant"), "level", None) == level


@pytest.mark.parametrize("more, level", [(-0.5, "check"), (-2.5, "stop")])
def test_of_few_groups_a_constant_answer_must_be_clearly_better(more: float, level: str) -> None:
    found = decent()
    found = replace(found, held=replace(found.held, images=found.held.images.assign(group=np.arange(NUMBER) % 2)))
    empty = 1.0 * (found.true[:, 0] == 0)
    noise = np.random.default_rng(1).normal(0, 0.4, NUMBER)
    error = gain(mean_counts(empty), mean_counts(empty + noise), mean_score, found.groups).standard_error
    scores = empty + noise - noise.mean() + more * error
    assert told(scored(scores, found))["no better than a constant"].level == level


def test_without_rows_by_image_the_interval_decides() -> None:
    found = decent()
    best = found.constants.best.score
    for low, expected in ((best - 0.01, True), (best + 0.01, False)):
        result = found.result | {"nested_interval_95": [low, 0.99]}
        told_of = told(replace(found, result=result, nested=None))
        assert ("no better than a constant" in told_of) == expected


# --- masks -----------------------------------------------------------------------------------------------------------


def test_masks_seventeen_times_too_large_stop_on_24_images() -> None:
    small = decent(24)
    masks = np.where(small.true > 0, small.true * 17, 0)
    reason = told(replace(small, predicted=masks))["masks off by a factor"]
    assert reason.level == "stop"
    assert "are 17.0 times too large (mean area" in reason.text
    assert reason.images[0] == small.ids(np.array([small.true.argmax()]))[0]
    assert "too small" in told(replace(small, predicted=small.true // 17))["masks off by a factor"].text
    assert told(replace(small, predicted=small.true * 2))["masks off by a factor"].level == "check"
    assert "masks off by a factor" not in told(replace(small, predicted=np.rint(small.true * 1.3)))


def test_a_factor_within_noise_is_none() -> None:
    small = decent(24)
    predicted = small.true.copy()
    predicted[small.true.argmax()] *= 20  # one mask alone
    assert "masks off by a factor" not in told(replace(small, predicted=predicted))


def test_the_share_of_empty_masks_is_compared_in_the_same_images() -> None:
    found = decent()
    everywhere = np.where(found.true == 0, 3, found.true)
    given = [one for one in mask_checks.reasons(replace(found, predicted=everywhere)) if "empty, tuned" in one.text]
    (reason,) = [one for one in given if one.kind == "masks off by a factor"]
    assert reason.level == "stop"
    assert set(reason.images) <= set(found.ids(np.flatnonzero(found.true[:, 0] == 0)))
    few = found.true.copy()
    few[np.flatnonzero(found.true[:, 0])[:30]] = 0  # of the masks that are not empty about half
    reason = told(replace(found, predicted=few))["masks off by a factor"]
    assert reason.level == "check"


def test_missed_masks_and_false_alarms_are_counted_where_clean_believes_the_mask() -> None:
    found = decent()
    full, empty = np.flatnonzero(found.true[:, 0]), np.flatnonzero(found.true[:, 0] == 0)
    predicted = found.predicted.copy()
    predicted[full[:4]], predicted[empty[:2]] = 0, [[70], [90]]
    given = told(replace(found, predicted=predicted))
    missed, alarms = given["missed masks"], given["false alarms"]
    assert missed.text.startswith(f"4 of {len(full)} masks that are not empty (") and missed.level == "note"
    assert missed.images == found.ids(full[:4][np.argsort(-found.true[full[:4], 0], kind="stable")])
    assert alarms.images == found.ids(empty[[1, 0]]) and "the largest has 90 px" in alarms.text
    images = found.held.images.copy()
    images.loc[[full[0], empty[0], empty[1]], "use"] = "drop"
    given = told(replace(found, predicted=predicted, held=replace(found.held, images=images)))
    assert len(given["missed masks"].images) == 3 and "false alarms" not in given
    predicted[full[: len(full) // 5]] = 0
    assert told(replace(found, predicted=predicted))["missed masks"].level == "check"


# --- groups and folds ------------------------------------------------------------------------------------------------


def lowered(found: Findings, which: np.ndarray, by: float) -> Findings:
    return scored(np.where(which, found.scores - by, found.scores), found)


def test_a_weak_group_is_named_with_its_worst_images() -> None:
    found = decent()
    mine = (found.held.images["group"] == "9").to_numpy()
    reason = told(lowered(found, mine, 0.3))["weak group"]
    assert reason.level == "check"
    own = (found.scores[mine] - 0.3).mean()
    assert reason.text.startswith(f"Group 9 ({own:.2f}, 10 images) scores far worse than the other held-out")
    positions = np.flatnonzero(mine)
    assert reason.images == found.ids(positions[np.argsort(found.scores[positions])])
    assert "weak fold" not in told(lowered(found, mine, 0.3))  # the rest of its fold is as good as the others
    assert "weak group" not in told(lowered(found, mine, 0.07))  # clear, and too little to matter


def test_a_group_that_is_low_by_labels_that_clean_dropped_is_not_weak() -> None:
    found = decent()
    images = found.held.images.copy()
    wrong = np.flatnonzero(images["group"] == "9")[:4]
    images.loc[wrong, "use"] = "drop"
    low = np.isin(np.arange(NUMBER), wrong)
    assert "weak group" not in told(lowered(replace(found, held=replace(found.held, images=images)), low, 0.9))


def test_chance_makes_no_weak_group_or_fold() -> None:
    """Scores that are 0 or 1, as of empty masks, and many groups: none is weak, and some is the lowest."""
    given = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        found = decent(240)
        images = found.held.images.assign(group=[f"g{place % 40}" for place in range(240)], fold=np.arange(240) % 4)
        found = scored((rng.random(240) < 0.8) * 1.0, replace(found, held=replace(found.held, images=images)))
        given += len(weak_places.reasons(found))
    assert given <= 4  # of 40, one in ten


def test_a_weak_fold_is_named() -> None:
    found = decent()
    given = told(lowered(found, (found.held.images["fold"] == 2).to_numpy(), 0.25))
    assert given["weak fold"].text.startswith("Fold 2 (0.6") and "weak group" not in given


def test_where_lower_is_better_the_weak_group_is_the_highest(monkeypatch: pytest.MonkeyPatch) -> None:
    worse = Metric("error", lambda both, a, b: a - both, higher_is_better=False)
    monkeypatch.setitem(metrics.METRICS, "error", worse)
    found = decent(metric="error")
    mine = (found.held.images["group"] == "9").to_numpy()
    assert "weak group" not in told(scored(np.where(mine, 0.1, found.scores), found))
    assert "Group 9" in told(scored(np.where(mine, found.scores + 1, found.scores), found))["weak group"].text


# --- the estimate ----------------------------------------------------------------------------------------------------


def test_a_nested_estimate_far_below_says_why() -> None:
    found = decent()
    below = found.scores - 0.1
    result = found.result | {"nested": float(below.mean())}
    result |= {"fold_out": {"score": 0.5, "difference": -0.3, "standard_error": 0.1}}
    given = told(replace(found, nested=mean_counts(below), result=result))
    assert "the folds' networks have different scales" in given["nested far below out-of-fold"].text
    assert "train.epochs=60" in given["nested far below out-of-fold"].command  # of weights that nothing chose
    noise = np.random.default_rng(2).normal(0, 1, NUMBER)
    within = found.scores - 0.1 - (noise - noise.mean())
    given = told(replace(found, nested=mean_counts(within), result=result | {"fold_out": None}))
    assert "nested far below out-of-fold" not in given


def calibration(slopes: Sequence[float], error: float = 0.1) -> dict[str, Any]:
    """Of folds with these slopes, each with a standard error that is this share of it."""
    rest = {"intercept": 0.0, "images": 30}
    return {
        "thing": {
            str(fold): {"slope": one, "own_slope": one, "standard_error": error * one} | rest
            for fold, one in enumerate(slopes)
        }
    }


def test_a_fold_of_another_scale_is_named() -> None:
    found = decent()
    result = found.result | {"calibration": calibration([1.1, 0.9, 1.0, 4.1])}
    given = told(replace(found, result=result))
    assert given["steep fold"].level == "check" and "fold 3 is far less confident" in given["steep fold"].text
    assert "multiplies its logits by 4.10 (the others' by 1.00)" in given["steep fold"].text
    assert "flat fold" not in given and "folds of different scale" not in given
    result |= {"fold_out": {"score": 0.7, "difference": -0.2, "standard_error": 0.05}}
    assert "fold 3 (slope 4.10" in told(replace(found, result=result))["folds of different scale"].text
    shifted = calibration([1.0, 1.0, 1.0])
    shifted["thing"]["2"]["intercept"] = -2.5
    given = told(replace(found, result=result | {"calibration": shifted}))
    assert "fold 2 (shift -2.50, the others +0.00)" in given["folds of different scale"].text
    result |= {"fold_out": {"score": 0.85, "difference": -0.05, "standard_error": 0.05}}
    assert "folds of different scale" not in told(replace(found, result=result))
    flat = told(replace(found, result=found.result | {"calibration": calibration([1.1, 0.9, 0.3])}))
    assert "fold 2 is far more confident" in flat["flat fold"].text and "steep fold" not in flat
    for slopes, error in (([1.1, 0.9, 1.0, 4.1], 0.4), ([1.7, 3.7, 1.3, 3.5], 0.1)):  # noise; no usual fold
        given = told(replace(found, result=found.result | {"calibration": calibration(slopes, error)}))
        assert not {"steep fold", "flat fold"} & set(given)
    two = told(replace(found, result=found.result | {"calibration": calibration([1.0, 2.5])}))
    assert "steep fold" in two and "flat fold" not in two


def test_notes_are_no_reason_against_a_submission() -> None:
    found = decent()
    result = found.result | {"procedure": {"ships": "untuned", "gain": 0.001, "standard_error": 0.004}}
    images = found.held.images.assign(group=(np.arange(NUMBER) % 5).astype(str))
    given = told(replace(found, result=result, held=replace(found.held, images=images)))
    assert set(given) == {"untuned ships", "few groups"}
    false_alarm = replace(found, result=result, predicted=np.where(np.arange(NUMBER)[:, None] == 3, 5, found.predicted))
    assert all("untuned" in one.text for one in mask_checks.reasons(false_alarm))
    assert "+0.0010 ± 0.0040" in given["untuned ships"].text and "only 5 groups" in given["few groups"].text
    assert verdict_of(given.values()) == "fine"


# --- training --------------------------------------------------------------------------------------------------------


def trained(losses: Sequence[float | None], kept: int, options: tuple[str, ...] = (), **train: Any) -> list[Reason]:
    run = replace(run_of(train={"folds": [0], **train}), options=options)
    folder = run.fold_folder(0)
    rows = [{"epoch": place} | ({} if one is None else {"valid/loss": one}) for place, one in enumerate(losses)]
    write_json(folder / "history.json", rows)
    write_json(folder / "fold.json", {"best_epoch": kept})
    assert histories.files(run) == (folder / "history.json", folder / "fold.json")
    return histories.reasons(run)


def test_a_lucky_early_epoch_is_named() -> None:
    losses = [1.3, 1.08, 1.0, 0.6, 0.3, 0.14, 0.15]
    (reason,) = trained(losses, 1, monitor="score", keep="best")
    assert (reason.level, reason.kind) == ("check", "stopped too early")
    assert "fold 0 kept epoch 2 (held-out loss 1.080), but epoch 6 had 0.140" in reason.text
    assert reason.command.endswith("run x --set train.monitor=loss --name x-loss")
    assert trained(losses, 5, monitor="score", keep="best") == []


def test_training_that_ended_while_the_loss_fell_is_named() -> None:
    (reason,) = trained([1.0, 0.8, 0.5, 0.3, 0.2], 4, epochs=5)
    assert (
        reason.kind == "stopped too early" and "fold 0 (0.800 after epoch 2, 0.200 after epoch 5 of 5)" in reason.text
    )
    assert reason.command.endswith("run x --set train.epochs=10 --name x-longer")
    (reason,) = trained([1.0, 0.8, 0.5, 0.3], 3, options=("x", "--quick"))
    assert reason.level == "note" and reason.command.endswith("run x")  # short on purpose
    assert trained([1.0, 0.8, 0.5, 0.3, 0.29, 0.28, 0.27], 6) == []  # slowly
    assert trained([1.0, 0.01, 0.007, 0.006, 0.005], 4) == []  # of next to nothing
    assert trained([1.0, 0.8, 0.5, 0.6, 0.2], 4) == []  # up and down: no trend can be told


def test_an_epoch_kept_long_after_the_lowest_loss_is_named() -> None:
    losses = [1.0, 0.5, 0.2, 0.21, 0.22, 0.25, 0.3, 0.3]
    (reason,) = trained(losses, 7, keep="best", monitor="score")
    assert reason.kind == "trained too long" and "the lowest was 0.200 in epoch 3" in reason.text
    assert "train.monitor=loss --set train.keep=best" in reason.command
    assert trained(losses, 4, keep="best") == []
    assert trained([1.0, 0.5, 0.2, 0.21, 0.205, 0.21, 0.21, 0.21], 7, keep="best") == []
    (reason,) = trained(losses, 7, keep="best", monitor="loss")
    assert reason.command.endswith("--set train.epochs=3 --name x-shorter")


@pytest.mark.parametrize("keep", ["last", "average"])
def test_weights_of_the_end_whose_smoothed_loss_rose_are_named(keep: str) -> None:
    (reason,) = trained([1.0, 0.5, 0.2, 0.19, 0.21, 0.22, 0.23, 0.24], 7, keep=keep)
    assert (reason.level, reason.kind) == ("note", "trained too long")
    assert trained([1.0, 0.5, 0.2, 0.19, 0.21, 0.3, 0.32, 0.34], 7, keep=keep)[0].level == "check"
    assert reason.text == (
        "The held-out loss rose before the end of training: in fold 0 its mean was 0.230 from epoch 6 to 8, but 0.200 "
        "from epoch 3 to 5."
    )
    assert "train.monitor=loss --set train.keep=best" in reason.command
    assert trained([1.0, 0.5, 0.2, 0.19, 0.21, 0.21, 0.22, 0.22], 7, keep=keep) == []  # by less than a tenth
    assert trained([0.4, 0.3, 0.2, 0.24], 3, keep=keep) == []
    assert trained([0.1, 0.2, 0.4], 2, keep=keep) == []  # too few to tell


def test_epochs_without_a_prediction_are_counted() -> None:
    losses = [None, 1.0, None, 0.8, None, 0.5, None, None, 0.3, 0.2]
    (reason,) = trained(losses, 9, epochs=10)
    assert "fold 0 (0.800 after epoch 4, 0.200 after epoch 10 of 10)" in reason.text
    assert "train.epochs=20 " in reason.command
    (reason,) = trained([None, 0.9, None, 0.3, 0.1], 1, monitor="score", keep="best")
    assert "kept epoch 2 (held-out loss 0.900), but epoch 5 had 0.100" in reason.text


def test_runs_without_histories_say_nothing() -> None:
    run = run_of(train={"folds": [0]})
    assert histories.files(run) == () and histories.reasons(run) == []


# --- commands, and the whole -----------------------------------------------------------------------------------------


def quick(*options: str) -> Run:
    return replace(run_of(), options=("x", *options))


def test_commands_change_what_they_say_and_keep_the_rest() -> None:
    assert longer(quick("--quick", "--set", "image.size=[8,8]"), 8).endswith("run x --set 'image.size=[8,8]'")
    command = longer(quick("--quick", "--name", "y", "--set", "train.epochs=4"), 8)
    assert command.endswith("run x --quick --set train.epochs=8 --name x-longer")
    for name, later in (("x-longer", "x-longer-2"), ("x-longer-9", "x-longer-10"), ("longer", "longer-longer")):
        assert longer(replace(quick(), name=name), 8).endswith(f"--name {later}")
    steps = run_of(train={"steps": 100})
    assert longer(steps, 8).endswith("--set train.epochs=8 --set train.steps=200 --name x-longer")
    run = quick("--set", "train.seeds=[1]", "--set", "train.monitor=score")
    command = trained_again(run, "loss", "train.monitor=loss")
    assert command.endswith("run x --set 'train.seeds=[1]' --set train.monitor=loss --name x-loss")
    assert named(["a", "b", "c"]) == "a, b and c"
    assert named(list("abcdefgh")) == "a, b, c, d, e and 3 more"


@pytest.mark.parametrize("large", [False, True], ids=["fine", "noise"])
def test_tune_writes_constants_and_reasons(large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Predictions that know nothing of the masks give a stop; blobs that know much of them do not."""
    images = random_images(7, number=24, shape=(20, 24))
    if large:
        images.probabilities = [np.random.default_rng(place).integers(0, 256, (1, 20, 24)).astype(np.uint8)
                                for place in range(24)]  # fmt: skip
        images.presence = None
    held = held_out_of(images, run_of(tune={"method": "fixed"}))
    _, special, _ = stage.choose(held, np.arange(24))
    assert special["areas"][0].shape == special["areas"][1].shape == (24, 1)
    found = stage.estimated(held, np.arange(24))
    assert {"score", "nested", "nested_interval_95", "untuned"} <= set(found)
    monkeypatch.setattr(stage, "held_out", lambda run: held)
    monkeypatch.setattr(stage, "_mask_statistics", lambda run: None)
    monkeypatch.setattr(stage.statistics, "save", lambda *_: None)
    assert list(stage.execute(held.run, [])) == []
    result = read_json(held.run.postprocess)
    assert set(result["constants"]) == {"all_empty", "mean_mask"}
    given = from_json(result)
    assert (verdict_of(given) == "do not submit") == large
    assert ("no better than a constant" in {one.kind for one in given}) == large


def test_of_class_maps_what_is_ignored_makes_no_mask_too_large() -> None:
    """A network predicts some class on ignored pixels too; only classes that are off where pixels count are named."""
    images = random_labels(3, number=24)
    for true, probability in zip(images.truths, images.probabilities, strict=True):
        probability[:] = 0.9 * (true == 1) + 0.02
        true[:, 6:], true[0, 6:], probability[2, 6:] = 0, 1, 1  # ground below, taken for sand
        probability[:, :4], probability[3, :4] = 0, 1  # the upper rows taken for rock
    told = {"classes": ["ground", "soil", "sand", "rock"], "kind": "multiclass", "metric": "mean_iou"}
    run = run_of(told | {"ignore_class": "ground", "submission": {"format": "labels"}}, tune={"steps": []})
    held = held_out_of(images, run)
    tuned, special, _ = stage.choose(held, np.arange(24))
    rows = tuned.rows(np.arange(24))
    found = Findings(held, np.arange(24), {}, np.zeros(24), *special["areas"], rows, None, decent().constants)
    (reason,) = [one for one in mask_checks.reasons(found) if one.kind == "masks off by a factor"]
    assert "large of the class rock" in reason.text and "large of the class sand" not in reason.text
    assert reason.level == "check"


def test_a_command_for_a_run_of_an_ensemble_names_that_runs_recipe() -> None:
    write_recipe(replace(run_of(), name="other"))
    both = replace(run_of(), options=("both.yaml", "--folds", "0"))
    other = find_run(both, "other", "ensemble")
    assert other.command("--name", "y").endswith("run x --name y") and other.command().endswith("run x --name other")


def test_a_planned_run_of_one_fold_needs_more_time_for_all() -> None:
    run = replace(quick("--set", "train.folds=[0]", "--time", "10m"), budget=600.0)
    assert with_more_time(run, 2).endswith("run x --set 'train.folds=[0]' --time 20m")
    assert with_more_time(run, 4, all_folds=True).endswith("run x --time 40m")
