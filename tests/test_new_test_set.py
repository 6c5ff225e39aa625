"""Another test set for a trained run: it needs no training image, changes nothing of the training, and is predicted."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import trainings
from conftest import TEST_IDS, TRAIN_IDS, Tiny, encoded
from typer.testing import CliRunner

from pipeline.__main__ import app
from pipeline.core import driver, freshness
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json
from pipeline.core.results import read_tuned
from pipeline.core.run import Run, open_run
from pipeline.decode import table
from pipeline.encode import submission
from pipeline.masks import rle
from pipeline.predict_folder import predict_folder
from pipeline.predictions.files import read_probabilities
from pipeline.stages import STAGES, warn_of_stale
from pipeline.train import stage as train

CHANGES: dict[str, object] = {"train": {"folds": [0, 1], "epochs": 1}, "tune": {"method": "fixed"}}
OF_TEST = ("work/tiny/test_", "work/tiny/pixels_", "work/tiny/small/predictions/test_", "submissions/")
"""What a new test set may change, beside the report."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tiny]:
    """A finished run of the tiny competition: two folds of one epoch, and a submission."""
    root = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIPELINE_ROOT", str(root))
        patch.setenv("PIPELINE_INPUT", str(root / "input"))
        tiny = Tiny(root)
        tiny.settings["shape"] = None
        tiny.images["t1"] = tiny.images["a03"]  # seen in both sets
        tiny.path("t1").write_bytes(encoded(tiny.images["t1"]))
        trainings.prepare(tiny, CHANGES)
        tiny.run(*STAGES[3:-1])
        yield tiny


@pytest.fixture
def tiny(trained: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    """A copy of it for one test."""
    shutil.copytree(trained.root, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("PIPELINE_ROOT", str(tmp_path))
    monkeypatch.setenv("PIPELINE_INPUT", str(tmp_path / "input"))
    copied = object.__new__(Tiny)
    vars(copied).update(vars(trained), root=tmp_path, input=tmp_path / "input" / "tiny")
    return copied


def opened(tiny: Tiny) -> Run:
    return open_run(str(tiny.recipe_path))


def from_predict(tiny: Tiny, *more: str) -> str:
    """Runs from predict on, which must succeed, and returns what the command line printed."""
    result = CliRunner().invoke(app, ["run", str(tiny.recipe_path), "--from", "predict", *more], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def stale_stages(run: Run) -> list[str]:
    """The stages before report that are not up to date."""
    return [stage for stage in STAGES[:-1] if driver.unfinished(run, stage)]


def hashes(tiny: Tiny) -> dict[str, str]:
    """Of every file but raw ones and the report's."""
    files = [path for folder in ("work", "folds", "submissions") for path in (tiny.root / folder).rglob("*")]
    names = {path.relative_to(tiny.root).as_posix(): path for path in files if path.is_file()}
    return {name: freshness.hash_file(path) for name, path in names.items() if "report" not in name}


def replace_test_images(tiny: Tiny, ids: list[str], sizes: list[tuple[int, int]]) -> None:
    """Puts other test images in the place of those that are there."""
    random = np.random.default_rng(5)
    shutil.rmtree(tiny.input / "test")
    (tiny.input / "test").mkdir()
    for name, size in zip(ids, sizes, strict=True):
        (tiny.input / "test" / f"{name}.tif").write_bytes(encoded(random.integers(0, 256, size, np.uint8)))
    pd.DataFrame({"id": ids, "mask": "1 1"}).to_csv(tiny.input / "sample.csv", index=False)


def without_sample(tiny: Tiny) -> None:
    """Gives this test a competition of its own, which has no sample submission, and brings the run up to date."""
    tiny.settings = {key: value for key, value in tiny.settings.items() if key != "sample_submission"}
    tiny.competition_path, tiny.recipe_path = tiny.root / "competition" / "tiny.yaml", tiny.root / "small.yaml"
    tiny.recipe = tiny.recipe | {"competition": str(tiny.competition_path)}
    tiny.save()
    tiny.run("decode", "predict", "encode")


def test_a_new_test_folder_makes_nothing_of_the_training_stale(tiny: Tiny) -> None:
    run = opened(tiny)
    assert stale_stages(run) == []
    replace_test_images(tiny, ["x1", "x2"], [(40, 60)] * 2)
    assert stale_stages(run) == ["decode", "predict", "encode"]
    assert [state.step.subset for state in driver.unfinished(run, "decode")] == ["test", "test"]
    driver.run_stage(run, "decode")
    assert [state.step.title for state in driver.unfinished(run, "clean")] == ["test duplicates"]
    driver.run_stage(run, "clean")
    assert stale_stages(run) == ["predict", "encode"]


def test_nothing_but_weights_and_test_images_is_needed(tiny: Tiny) -> None:
    run, away = opened(tiny), tiny.root / "away"
    away.mkdir()
    moved = [tiny.input / "train", tiny.input / "train.csv", run.table, run.histograms, run.thumbnails, run.outliers]
    moved += [run.outlier_pictures, run.test_duplicates, run.folds_file, run.audit]
    moved += [*run.pixels.glob("train_*"), *(run.folder / "predictions").glob("oof_*")]
    for path in moved:
        shutil.move(path, away / path.name)
    before, ids = hashes(tiny), ["n1", "n2", "n10", "n11", "n12"]
    replace_test_images(tiny, ids, [(40, 60), (60, 40), (31, 77), (64, 64), (100, 30)])
    from_predict(tiny)
    want = submission.expected(run.competition, run.input, run.competition_folder)
    assert submission.faults_of(run.submission, want) == []
    assert pd.read_csv(run.submission)["id"].tolist() == ids
    after = hashes(tiny)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert {name for name in changed if not name.startswith(OF_TEST)} == {"work/tiny/small/submission.manifest.json"}
    assert not [name for name in changed if name.startswith("work/tiny/pixels_") and "/test" not in name]
    assert run.report.stat().st_size > 1000
    assert not any(path.exists() for path in moved)


def test_a_fresh_root_with_weights_and_what_tune_chose(tiny: Tiny) -> None:
    run = opened(tiny)
    brought = [run.postprocess, run.mask_statistics]
    brought += [run.fold_folder(fold) / name for fold in (0, 1) for name in ("last.safetensors", "fold.json")]
    for path in [*(tiny.root / "work").rglob("*"), *(tiny.root / "folds").rglob("*"), *tiny.input.glob("train*")]:
        if path.is_file() and path not in brought:
            path.unlink()
    from_predict(tiny)
    assert pd.read_csv(run.submission)["id"].tolist() == TEST_IDS
    page = run.report.read_text()
    assert page.count("<td>fold 0</td>") == 2 and "train/loss" not in page  # two tables; no curves
    for content in ("", "nothing", "epoch,valid/loss\nx,y\n"):
        (run.fold_folder(0) / "history.csv").write_text(content)
        driver.run_stage(run, "report", force=True)


DAMAGED = ("", "{", "[]", "{}", "null")
COMMANDS = ["predict", "encode", "evaluate", "report", "run --from predict", "run --to split --strict"]


@pytest.mark.parametrize("command", COMMANDS)
def test_what_tune_chose_is_damaged(tiny: Tiny, command: str) -> None:
    run, (name, *more) = opened(tiny), command.split()
    whole = read_json(run.postprocess)
    lacking = [json.dumps({key: whole[key] for key in whole if key != one}) for one in ("scores", "interval_95")]
    for content in (*DAMAGED, *lacking):
        run.postprocess.write_text(content)
        found = CliRunner().invoke(app, [name, str(tiny.recipe_path), *more]).exception
        assert isinstance(found, PipelineError), (content, found)
        assert str(found).startswith("work/tiny/small/postprocess.json is damaged (it ")
        assert str(found).endswith("): restore the file, or run the tune stage again with --force.")


def test_tune_repairs_what_it_writes_and_no_folder_is_predicted_without(tiny: Tiny) -> None:
    run = opened(tiny)
    for content in DAMAGED:
        run.postprocess.write_text(content)
        with pytest.raises(PipelineError, match="postprocess.json is damaged"):
            predict_folder(run, tiny.input / "test", tiny.root / "masks.csv")
        history, whole = run.fold_folder(0) / "history.json", (run.fold_folder(0) / "history.json").read_bytes()
        history.write_text(content)
        with pytest.raises(PipelineError, match="history.json is not what train wrote"):
            driver.run_stage(run, "tune")
        history.write_bytes(whole)
        driver.run_stage(run, "tune")
        assert read_tuned(run)["metric"] == "dice"


def test_damaged_files_beside_weights_and_submission(tiny: Tiny) -> None:
    run = opened(tiny)
    fold, whole = run.fold_folder(0) / "fold.json", (run.fold_folder(0) / "fold.json").read_text()
    for content in ("{", "{}"):
        fold.write_text(content)
        with pytest.raises(
            PipelineError, match="fold_0/fold.json is not what train wrote: restore the file, or train again"
        ):
            driver.run_stage(run, "encode", force=True)
        fold.write_text(whole)
        run.record.write_text(content)
        with pytest.raises(PipelineError, match=f"{run.record.name} is not what encode wrote"):
            driver.run_stage(run, "report", force=True)
        driver.run_stage(run, "encode")
        driver.run_stage(run, "report", force=True)
        assert read_json(run.record)["rows"] == len(TEST_IDS)
    for path, stage in ((run.audit, "split"), (run.folder / "oof_scores.csv", "tune"), (run.suspects, "tune")):
        before = path.read_text()
        path.write_text("{}")
        with pytest.raises(PipelineError, match=f"{path.name} is not what {stage} wrote"):
            driver.run_stage(run, "report", force=True)
        path.write_text(before)


@pytest.mark.parametrize("has_sample", [True, False])
def test_swapped_images_of_equal_ids_are_predicted_anew(tiny: Tiny, has_sample: bool) -> None:
    if not has_sample:
        without_sample(tiny)
    run = opened(tiny)
    paths = [run.predictions("test", fold) for fold in run.test_folds()]
    before = [np.array(read_probabilities(path)[0]) for path in paths]
    first, second = (tiny.input / "test" / f"{name}.tif" for name in ("t2", "t3"))
    contents = first.read_bytes(), second.read_bytes()
    for path, content in zip((second, first), contents, strict=True):
        path.write_bytes(content)
    with pytest.raises(PipelineError, match=r"raw test images changed after .*test_images.npy was made \(.*t2.tif"):
        driver.run_stage(run, "predict")
    with pytest.raises(PipelineError, match=r"raw test images changed after .*test_fold_0.npy was predicted"):
        driver.run_stage(run, "encode")
    driver.run_stage(run, "decode", subset="test")
    for path in paths:
        path.with_suffix(".manifest.json").unlink()  # as a kill leaves it
    with pytest.raises(PipelineError, match=r"predict was interrupted: .*test_fold_0.manifest.json is missing"):
        driver.run_stage(run, "encode")
    from_predict(tiny, "--to", "encode")
    for path, old in zip(paths, before, strict=True):
        np.testing.assert_array_equal(read_probabilities(path)[0], old[[0, 2, 1, 3]])
    assert stale_stages(run) == ["clean"]  # whose list of images that both sets hold is another's


def test_a_removed_and_an_added_image_without_a_sample_submission(tiny: Tiny) -> None:
    without_sample(tiny)
    run = opened(tiny)
    (tiny.input / "test" / "t2.tif").rename(tiny.input / "test" / "t9.tif")
    (tiny.input / "test" / "t4.tif").unlink()
    from_predict(tiny, "--to", "encode")
    assert pd.read_csv(run.submission)["id"].tolist() == ["t1", "t3", "t9"]


def test_images_that_both_sets_hold_are_listed_apart(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    run = opened(tiny)
    train._mention_test_duplicates(trainings.named(run, "second", {"train": {"pseudo": {"recipe": "small"}}}))
    assert "1 training image looks like a test image: work/tiny/test_duplicates.csv" in capsys.readouterr().err
    found = pd.read_csv(run.test_duplicates)
    assert found[["image_id", "partner_id", "reason"]].to_numpy().tolist() == [["a03", "t1", "test duplicate"]]
    assert "test duplicate" not in run.outliers.read_text()
    assert (run.outlier_pictures / "test_duplicate.png").exists()
    replace_test_images(tiny, TEST_IDS, [(40, 60)] * 4)
    before = run.outliers.stat().st_mtime_ns
    tiny.run("decode", "clean")
    assert len(pd.read_csv(run.test_duplicates)) == 0 and run.outliers.stat().st_mtime_ns == before
    assert not (run.outlier_pictures / "test_duplicate.png").exists()


def test_a_test_image_with_the_id_of_a_training_image_or_of_another_type(tiny: Tiny) -> None:
    replace_test_images(tiny, ["x1", TRAIN_IDS[0]], [(40, 60)] * 2)
    tiny.run("decode")  # another image with the same name is another image
    replace_test_images(tiny, ["x1"], [(40, 60)])
    (tiny.input / "test" / "x1.tif").write_bytes(encoded(27 * np.arange(2400, dtype=np.uint16).reshape(40, 60)))
    assert "image is uint16, and the first image of the competition is uint8" in tiny.refused("decode")
    (tiny.root / "work" / "tiny" / "images.parquet").unlink()  # nothing but the weights says what they know
    driver.run_stage(opened(tiny), "decode", subset="test")
    with pytest.raises(PipelineError, match=r"was trained on uint8 images, but those to predict are uint16"):
        driver.run_stage(opened(tiny), "predict")


def test_what_is_stale_before_predict_is_said(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    run = opened(tiny)
    shutil.rmtree(tiny.input / "train")
    os.remove(run.folds_file)
    replace_test_images(tiny, ["x1"], [(40, 60)])
    driver.run_stage(run, "decode", subset="test")
    capsys.readouterr()
    warn_of_stale(run, "predict")
    said = capsys.readouterr().err
    assert "decode is not up to date" in said and "clean is not" not in said
    assert table.read_tables(run.competition_folder)["subset"].value_counts().to_dict() == {"train": 12, "test": 1}


@pytest.mark.parametrize("masks", ["csv", "png"])
def test_a_folder_outside_the_competition(tiny: Tiny, masks: str) -> None:
    run, folder, before = opened(tiny), tiny.root / "elsewhere", hashes(tiny)
    (folder / "more").mkdir(parents=True)
    expected = {"t2": (40, 60), "more/wide": (20, 90)}
    (folder / "t2.png").write_bytes(encoded(tiny.images["t2"], "png"))
    colour = np.random.default_rng(1).integers(0, 256, (20, 90, 3), np.uint8)
    (folder / "more" / "wide.tif").write_bytes(encoded(colour))
    target = tiny.root / ("masks.csv" if masks == "csv" else "masks")
    command = ["predict", str(tiny.recipe_path), "--images", str(folder), "--to", str(target), "--masks", masks]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    submitted = pd.read_csv(run.submission, keep_default_na=False).set_index("id")["mask"]
    if masks == "csv":
        found = pd.read_csv(target, keep_default_na=False).set_index("id")["mask"]
        assert set(found.index) == set(expected) and found["t2"] == submitted["t2"]
    else:
        pictures = {name: cv2.imread(str(target / f"{name}.png"), cv2.IMREAD_UNCHANGED) for name in expected}
        assert {name: picture.shape for name, picture in pictures.items() if picture is not None} == expected
        np.testing.assert_array_equal(pictures["t2"], 255 * rle.decode(submitted["t2"], (40, 60)))
    assert hashes(tiny) == before
    with pytest.raises(PipelineError, match="exists already; give another path with --to"):
        predict_folder(run, folder, target)
