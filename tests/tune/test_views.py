"""What test-time augmentation brings on out-of-fold images: by hand, by the stages, in ensembles, without a part."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from evidence import Images, held_out_of, random_images, run_of
from predicted import RECIPE, array, changed, go, named, reasons, run_of_test, split_run, with_weights

from pipeline.core import driver, freshness
from pipeline.core.config.raw_layouts import load_competition
from pipeline.core.config.recipe import TuneSettings
from pipeline.core.config.settings import merge
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json
from pipeline.core.run import Run, open_run
from pipeline.decode import table
from pipeline.masks.decision import Rule, Rules, decide, decision_of
from pipeline.masks.metrics import METRICS, metric_of
from pipeline.masks.overlaps import confusion, counts
from pipeline.masks.statistics import blank
from pipeline.predictions import blends, kept_views
from pipeline.split.folds import groups_of, read_folds
from pipeline.tune import blending, views
from pipeline.tune.held_out import HeldOut, Weighting, held_out
from pipeline.tune.views import THRESHOLDS, measure


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    yield from split_run(tmp_path_factory.mktemp("views"))


@pytest.fixture
def run(split: Run, request: pytest.FixtureRequest) -> Run:
    return run_of_test(split, request)


# --- by hand ---------------------------------------------------------------------------------------------------------


def test_measure_by_hand() -> None:
    competition = load_competition("tgs-salt").model_copy(update={"metric": "iou"})
    plain = np.array([[[5], [10], [10]], [[0], [4], [0]], [[0], [0], [0]]])[:, None]
    tta = np.array([[[10], [10], [10]], [[0], [0], [0]], [[0], [0], [0]]])[:, None]
    worse = np.stack([plain[:, 0], np.tile([[3], [30], [10]], (3, 1, 1))], axis=1)  # a threshold that is never best
    assert measure(worse, tta, np.array(list("abb")), competition, TuneSettings())[0].value > 0
    groups = np.array(["a", "b", "b"])
    search, fixed = TuneSettings(confidence=0.7), TuneSettings(method="fixed")
    found, kept = measure(plain, tta, groups, competition, search)
    assert found.value == pytest.approx(1 - (5 / 15 + 0 + 1) / 3)
    assert (found.confidence, kept) == (1.0, True)
    back, kept = measure(tta, plain, groups, competition, search)
    assert (back.value, kept) == (pytest.approx(-found.value), False)
    assert measure(tta, plain, groups, competition, fixed)[1]
    one_in_four = TuneSettings(presence_prior=0.25)
    weighted, _ = measure(plain, tta, groups, competition, one_in_four)
    assert weighted.value == pytest.approx(0.25 * (10 / 15) + 0.75 * 0.5)


def test_measure_of_class_maps_pools_pixels() -> None:
    competition = load_competition("mars-terrain")
    classes = len(competition.classes)
    right, wrong = np.zeros((2, 4, 1, classes, classes), np.int64)
    right[..., [1, 2], [1, 2]] = 10
    wrong[..., [1, 2], [2, 1]] = 10
    found, kept = measure(wrong, right, np.array(list("abcd")), competition, TuneSettings())
    assert (found.value, found.confidence, kept) == (1.0, 1.0, True)


def test_groups_are_the_competitions_then_clusters_then_images() -> None:
    images = pd.DataFrame({"image_id": ["a", "b", "c"], "group": ["p", "", ""]})
    clusters = pd.DataFrame({"image_id": ["a", "b", "c"], "cluster": ["0", "0", ""]})
    assert groups_of(images, clusters).tolist() == ["p", "cluster 0", "c"]
    assert groups_of(images, clusters[["image_id"]]).tolist() == ["p", "b", "c"]


# --- by the stages ---------------------------------------------------------------------------------------------------


def test_the_gain_is_that_of_the_best_thresholds(run: Run) -> None:
    go(run)
    images = table.read_table(run.table, "train").set_index("image_id", drop=False)
    split, ids = read_folds(run).set_index("image_id"), []
    scores: dict[bool, list[list[float]]] = {True: [], False: []}
    for fold in run.trained_folds():
        found_of = {plain: blends.out_of_fold(run, fold, (plain,)) for plain in (True, False)}
        for row, image_id in enumerate(found_of[True].ids):
            true = table.true_mask(images.loc[image_id], ["thing"])
            for plain, blend in found_of.items():
                masks = [
                    decide(blend.native(row, true.shape[1:]), Rules((Rule(int(threshold)),)))
                    for threshold in THRESHOLDS
                ]
                scores[plain].append([METRICS["dice"](*counts(mask, true)).mean() for mask in masks])
            ids.append(image_id)
    found, held = read_json(run.postprocess)["tta"], held_out(run)
    (measured,) = views.count(held)
    assert measured is not None
    assert list(found) == ["views", "kept", "gain", "standard_error", "confidence", "images"]
    best = {plain: np.mean(of, axis=0).max() for plain, of in scores.items()}
    assert found["gain"] == pytest.approx(best[False] - best[True])
    assert (found["views"], found["images"], found["kept"]) == ("hflip", len(ids), True)
    assert held.images["image_id"].tolist() == ids
    assert held.images["fold"].tolist() == split.loc[ids, "fold"].tolist()
    assert measured.plain.shape == measured.tta.shape == (len(ids), len(THRESHOLDS), 3, 1)
    np.testing.assert_allclose(METRICS["dice"](*np.moveaxis(measured.tta, 2, 0))[..., 0], scores[False])
    np.testing.assert_allclose(METRICS["dice"](*np.moveaxis(measured.plain, 2, 0))[..., 0], scores[True])
    (step,) = read_json(run.postprocess)["steps"]
    assert step == {"step": "test-time augmentation hflip"} | {key: found[key] for key in list(found)[1:5]}


def test_class_maps_in_turned_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_ROOT", str(tmp_path))
    monkeypatch.setenv("PIPELINE_INPUT", str(tmp_path / "input"))
    random = np.random.default_rng(0)
    labels = np.repeat(np.repeat(random.integers(0, 3, (14, 6, 5)), 5, 1), 10, 2)
    pairs = np.stack([labels * 60 + random.integers(0, 30, labels.shape), labels], 1).astype(float)
    (tmp_path / "input" / "maps").mkdir(parents=True)
    np.savez(tmp_path / "input" / "maps" / "maps.npz", training_set=pairs[:12], test_set=pairs[12:, 0])
    competition: dict[str, Any] = {"title": "Maps", "reader": "npz_labels", "file": "maps.npz", "metric": "mean_iou"}
    competition |= {"classes": {"ground": 0, "soil": 1, "sand": 2}, "ignore_class": "ground", "split": {"folds": 3}}
    (tmp_path / "maps.yaml").write_text(yaml.safe_dump(competition))
    recipe = merge(RECIPE, {"image": {"size": [16, 32], "store": [32, 64]}, "model": {"presence": True}})
    recipe = merge(recipe, {"competition": "maps.yaml", "predict": {"tta": "d4", "never": ["ground"]}})
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(recipe))
    run = open_run(str(tmp_path / "small.yaml"))
    for stage in ("decode", "clean", "split"):
        driver.run_stage(run, stage)
    go(with_weights(run))
    (measured,), total = views.count(held_out(run)), np.zeros((2, 3, 3), np.int64)
    assert measured is not None
    images = table.read_table(run.table, "train").set_index("image_id", drop=False)
    for fold in run.trained_folds():
        for number, plain in enumerate((True, False)):
            blend = blends.out_of_fold(run, fold, (plain,))
            assert blend.presence is not None
            for row, image_id in enumerate(blend.ids):
                true = table.true_labels(table.true_mask(images.loc[image_id], run.competition.classes))
                probability = blend.native(row, true.shape)
                np.testing.assert_allclose(probability.sum(0), 1, atol=2e-3)
                total[number] += confusion(probability.argmax(0).astype(np.uint8), true, 3)
    assert total[:, :, 0].sum() == 0  # ground is never predicted
    np.testing.assert_array_equal([measured.plain[:, 0].sum(0), measured.tta[:, 0].sum(0)], total)
    score = metric_of(run.competition).by_class
    gain = score(total[1]) - score(total[0])
    assert read_json(run.postprocess)["tta"]["gain"] == pytest.approx(float(gain))
    assert array(run.predictions("test", 0)).shape == (2, 3, 32, 64)


def test_views_of_several_seeds_are_measured_on_their_mean(run: Run) -> None:
    run = go(with_weights(changed(run, train={"seeds": [0, 7]})), "validate", "tune")
    held = held_out(run)
    (measured,) = views.count(held)
    assert measured is not None
    for number, (fold, row) in enumerate(zip(held.images["fold"], held.images["row"], strict=True)):
        for plain, found in ((True, measured.plain), (False, measured.tta)):
            mean = blends.out_of_fold(run, fold, (plain,))
            assert len(mean.by_run[0].arrays) == 2
            true = table.true_mask(held.rows[number], ["thing"])
            masks = decide(mean.native(row, true.shape[1:]), Rules((Rule(int(THRESHOLDS[7])),)))
            assert found[number, 7, :, 0].tolist() == np.stack(counts(masks, true))[:, 0].tolist()
    assert read_json(run.postprocess)["tta"]["images"] == len(held.rows)


def test_no_image_counts(run: Run) -> None:
    folds = pd.read_csv(run.folds_file, dtype=str)
    run = replace(run, recipe=changed(run, tune={"rows": "cleaned"}).recipe)
    go(run, "validate")
    kept = run.folds_file.read_bytes()
    try:
        folds.assign(use="drop").to_csv(run.folds_file, index=False)
        with pytest.raises(PipelineError, match="tune.rows is cleaned, but none of the 8 out-of-fold images is such"):
            driver.run_stage(run, "tune")
    finally:
        run.folds_file.write_bytes(kept)
    assert not run.postprocess.exists()


# --- in the nested estimate ------------------------------------------------------------------------------------------


def seen_twice(number: int, better: Any, **recipe: Any) -> tuple[Images, HeldOut]:
    """Images whose plain prediction is right where `better(fold)` says `plain`, and whose views are right elsewhere."""
    images = random_images(16, number=number, shape=(14, 18), ignored=False, head=False)
    right = [np.where(true == 1, 200, 40).astype(np.uint8) for true in images.truths]
    wrong = [np.where(true == 1, 40, 200).astype(np.uint8) for true in images.truths]
    plain_wins = [better(place % 3) == "plain" for place in range(number)]
    run = run_of(predict={"tta": "hflip"}, **recipe)

    def opened(good: list[bool]) -> HeldOut:
        chosen = [(one if is_good else other) for one, other, is_good in zip(right, wrong, good, strict=True)]
        return held_out_of(replace(images, probabilities=chosen), run)

    plain, mean = opened(plain_wins), opened([not one for one in plain_wins])
    return images, replace(mean, opened=mean.opened | {(True,): plain.opened[False,]})


def test_views_for_a_part_are_chosen_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In fold 0 the views are right, elsewhere the plain prediction."""
    monkeypatch.setenv("PIPELINE_ROOT", str(tmp_path))
    _, held = seen_twice(30, lambda fold: "views" if fold == 0 else "plain")
    fold, everyone = held.images["fold"].to_numpy(), np.arange(30)
    (told, without, alone, nobody), decided = blending.choose_weightings(
        held, [everyone, np.flatnonzero(fold), np.flatnonzero(fold == 0), np.array([], int)]
    )
    assert decided is not None
    assert (told, decided["kept"], decided["images"]) == (Weighting((True,), (1.0,)), False, 30)
    assert (without.plain, alone.plain, nobody.plain) == ((True,), (False,), (True,))
    some, decided = blending.choose_weightings(held, [np.flatnonzero(fold == 0), everyone])
    assert decided is not None and decided["kept"] and decided["images"] == 10
    assert [mix.plain for mix in some] == [(False,), (True,)]
    assert not held.run.postprocess.exists()  # an earlier decision is not asked


def test_fixed_keeps_views_that_bring_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_ROOT", str(tmp_path))
    _, held = seen_twice(12, lambda fold: "plain", tune={"method": "fixed"})
    mixed, decided = blending.choose_weightings(held, [np.arange(12), np.arange(4)])
    assert decided is not None
    assert decided["kept"] and decided["gain"] < 0 and decided["confidence"] == 0
    assert mixed == [Weighting((False,), (1.0,))] * 2


@pytest.mark.parametrize("wins", ["plain", "views"])
def test_the_score_is_that_of_the_predictions_that_are_kept(
    wins: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.tune import stage as tune

    monkeypatch.setenv("PIPELINE_ROOT", str(tmp_path))
    images, held = seen_twice(12, lambda fold: wins)
    monkeypatch.setattr(tune, "held_out", lambda run: held)
    monkeypatch.setattr(tune, "_mask_statistics", lambda run: blank(["thing"], False, []))  # there is no table
    assert list(tune.execute(held.run, [])) == []
    result = read_json(held.run.postprocess)
    assert (result["tta"]["kept"], result["score"]) == (wins == "views", 1)
    assert blends.plain_of(held.run) == (wins == "plain",)
    assert kept_views.views_of(held.run) == ("hflip" if wins == "views" else "none")
    blend = held.opened[(wins == "plain",)][0]
    masks = decide(blend.native(0, images.truths[0].shape[1:]), decision_of(result))
    np.testing.assert_array_equal(masks, images.truths[0])


# --- what an earlier decision says -----------------------------------------------------------------------------------


def test_a_decision_counts_for_its_own_views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_ROOT", str(tmp_path))
    run = run_of(predict={"tta": "hflip"})
    assert (kept_views.decided_views(run), kept_views.views_of(run), blends.plain_of(run)) == (None, "hflip", (False,))
    run.postprocess.parent.mkdir(parents=True)
    for text, expected in (("{}", "d4"), ('{"tta": {"views": "hflip", "kept": false}}', "d4"),
                           ('{"tta": {"views": "d4", "kept": false}}', "none"),
                           ('{"tta": {"views": "d4", "kept": true}}', "d4")):  # fmt: skip
        run.postprocess.write_text(text)
        assert kept_views.views_of(changed(run, predict={"tta": "d4"})) == expected
        assert kept_views.views_of(changed(run, predict={"tta": "none"})) == "none"


# --- ensembles -------------------------------------------------------------------------------------------------------


def test_the_runs_of_an_ensemble_decide_on_their_views(run: Run) -> None:
    """One keeps its views, one does not, one has none: the ensemble takes each as its test images were predicted."""
    searched = {"method": "search", "confidence": 0.999, "steps": ["threshold"]}
    runs = [named(run, f"{run.name}_{name}", **change) for name, change in (
        ("kept", {}), ("refused", {"tune": searched}), ("none", {"predict": {"tta": "none"}}),
    )]  # fmt: skip
    for other in map(with_weights, runs):
        for fold in other.trained_folds():
            freshness.record(
                freshness.Step("train", "train", other.fold_folder(fold) / "manifest.json", (run.folds_file,), (), {}),
                0,
            )
        go(other)
    names = [other.name for other in runs]
    told = {"ensemble": dict.fromkeys(names), "predict": {"tta": "none"}, "tune": searched}
    both = named(run, f"{run.name}_both", **told)
    assert blends.plain_of(both) == (False, True, False)
    driver.run_stage(both, "tune")
    result, held = read_json(both.postprocess), held_out(both)
    assert "tta" not in result and list(result["ensemble"]) == names
    kept, refused = (read_json(other.postprocess)["tta"] for other in runs[:2])
    assert [step["kept"] for step in result["steps"][:2]] == [True, False] == [kept["kept"], refused["kept"]]
    assert [step["step"] for step in result["steps"]] == ["test-time augmentation hflip"] * 2 + ["threshold"]
    measured = views.count(held)
    assert measured[2] is None
    for place, other in enumerate(runs[:2]):
        (alone,), found = views.count(held_out(other)), measured[place]
        assert alone is not None and found is not None
        np.testing.assert_array_equal(found.plain, alone.plain)
        np.testing.assert_array_equal(found.tta, alone.tta)
    mixed, decided = blending.choose_weightings(held, [np.arange(8), np.arange(4)])
    assert decided is None and mixed[0].plain == (False, True, False)

    assert reasons(both, "tune") == []
    go(changed(runs[1], tune={"method": "fixed"}), "tune")  # which keeps the views
    assert blends.plain_of(both) == (False, False, False)
    assert reasons(both, "tune") == [f"tta.{names[1]}: none → hflip"]
    fixed = changed(both, tune={"method": "fixed"})
    driver.run_stage(fixed, "tune")
    assert [step["kept"] for step in read_json(fixed.postprocess)["steps"]] == [True, True]
    # the second run's test images were predicted plain, and are not any more what its tune has decided on
    message = rf"predicted with test-time augmentation none, but tune of {names[1]} has since chosen hflip"
    with pytest.raises(PipelineError, match=message):
        blends.test(fixed, read_json(fixed.postprocess))
