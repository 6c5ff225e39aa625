"""A bundle predicts whatever test set lies there: the stages' own bytes, and a valid file when something goes wrong."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import finished
import numpy as np
import pandas as pd
import predicted
import pytest
from conftest import TEST_IDS, encoded
from safetensors.torch import load_file, save_file

from pipeline.core.engine import OneByOne
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json, root
from pipeline.core.run import Run
from pipeline.encode import file_kinds
from pipeline.kaggle.bundle import build, hidden_set, inference, parts, project, scratch
from pipeline.kaggle.bundle.inference import RERUN, infer

PARTS: dict[str, Any] = {
    "predict": {"tta": "flips", "batch_size": 2},
    "train": {"seeds": [0, 1], "folds": [0, 1]},
    "tune": {"method": "fixed", "threshold": 0.3},
}


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    yield from predicted.split_run(tmp_path_factory.mktemp("bundled"))


@pytest.fixture(scope="module")
def run(split: Run) -> Run:
    """A finished run with four views, two seeds, and two folds, and its bundle."""
    return bundled(finished.finished(split, "finished", **PARTS))


def bundled(run: Run, **options: Any) -> Run:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build.wheels, "gather", lambda *arguments: [])
        build.write_bundle(run, build.Options(limit="none", **options))
    return run


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Does the parts here, and lists them."""
    done: list[str] = []

    def run_part(one: inference.Inference, part: str, seconds: float = 1e9) -> str:
        done.append(part)
        timed = one.deadline is not None
        inference.write_json(root() / "asked.json", {"run": one.run.name, "bundle": str(one.bundle), "timed": timed})
        parts.run_part(part, root(), OneByOne())
        return ""

    monkeypatch.setattr(inference, "_run_part", run_part)
    return done


def dataset(run: Run) -> Path:
    return build.folder_of(run) / "dataset"


def predict(run: Run, folder: Path, **options: Any) -> tuple[list[str], dict[str, Any]]:
    """Runs an inference on the test set that lies there; returns the lines of its file, and inference.json."""
    target = folder / "submission.csv"
    infer(dataset(run), target, **options)
    return target.read_text().splitlines(), read_json(folder / "inference.json")


def other_input(run: Run, monkeypatch: pytest.MonkeyPatch, folder: Path, count: int | None) -> hidden_set.HiddenSet:
    place = folder / "input" / run.competition.folder
    hidden = hidden_set.write_hidden(run, place, count)
    monkeypatch.setenv("PIPELINE_INPUT", str(folder / "input"))
    return hidden


def test_the_bytes_are_those_of_encode(run: Run, tmp_path: Path, in_this_process: list[str]) -> None:
    before = os.environ["PIPELINE_ROOT"]
    lines, record = predict(run, tmp_path)
    assert (tmp_path / "submission.csv").read_bytes() == run.submission.read_bytes()
    assert record["notes"] == [] and in_this_process == ["probe", "predict"]
    assert os.environ["PIPELINE_ROOT"] == before


def test_a_test_set_without_images_ends_with_an_empty_file(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_this_process: list[str]
) -> None:
    other_input(run, monkeypatch, tmp_path, 0)
    lines, record = predict(run, tmp_path)
    assert lines == ["id,mask"] and in_this_process == []
    assert "no test image is here" in record["notes"][0]
    place = tmp_path / "input" / run.competition.folder
    (place / "sample.csv").write_text("id,mask\nx1,1 1\n")  # rows, and the images are not there
    assert predict(run, tmp_path)[0] == ["id,mask", "x1,"]


def test_one_image_is_enough(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other_input(run, monkeypatch, tmp_path, 1)
    lines, record = predict(run, tmp_path)
    assert lines == run.submission.read_text().splitlines()[:2] and record["notes"] == []


def test_a_broken_a_missing_and_an_odd_image_cost_themselves_alone(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "input" / run.competition.folder
    other_input(run, monkeypatch, tmp_path, 4)
    (place / "test" / "t2.tif").write_bytes(b"II*")
    (place / "test" / "t3.tif").unlink()
    (place / "test" / "t4.tif").write_bytes(encoded(np.full((9, 9), 9, np.uint8)))  # not 40×60
    (place / "test" / "further.tif").write_bytes(b"in no row")
    lines, _ = predict(run, tmp_path)
    whole = run.submission.read_text().splitlines()
    assert lines[:4] == [whole[0], whole[1], "t2,", "t3,"] and whole[1] != "t1,"
    assert lines[4].startswith("t4,1 ")  # predicted at its own size


def test_a_hidden_set_of_other_ids_and_count(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = other_input(run, monkeypatch, tmp_path, None)
    lines, _ = predict(run, tmp_path)
    assert [line.split(",")[0] for line in lines[1:]] == hidden.ids and not set(hidden.ids) & set(TEST_IDS)
    assert lines[2] == f"{hidden.broken[0]}," and len(hidden.ids) == 3


def test_the_competition_must_be_attached(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_INPUT", str(tmp_path / "nothing"))
    with pytest.raises(PipelineError, match="data are not attached .* choose Add Input, the competition tiny"):
        predict(run, tmp_path)
    assert not (tmp_path / "submission.csv").exists()


def test_the_file_may_be_parquet(run: Run, tmp_path: Path) -> None:
    source, target, again = tmp_path / "zeros.csv", tmp_path / "submission.parquet", tmp_path / "again.csv"
    source.write_text("id,mask\n007,1 5\n010,\nNA,2 2\n")
    inference.publish(source, target, run.competition)
    assert pd.read_parquet(target)["id"].tolist() == ["007", "010", "NA"]
    file_kinds.convert(target, again, "csv")
    assert again.read_bytes() == source.read_bytes()
    labels = run.competition.model_copy(
        update={"submission": run.competition.submission.model_copy(update={"format": "labels"})}
    )
    source.write_text("id,0,1\n007,0,2\n010,1,1\n")
    inference.publish(source, target, labels)
    assert pd.read_parquet(target).to_dict("list") == {"id": ["007", "010"], "0": [0, 1], "1": [2, 1]}
    target.write_bytes(b"PAR1")
    with pytest.raises(PipelineError, match="submission.parquet cannot be read as Parquet"):
        file_kinds.convert(target, again, "csv")


# --- the time --------------------------------------------------------------------------------------------------------


def test_where_the_time_is_short_views_seeds_and_folds_are_left_out(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "speed", lambda run: 10.0)  # one network, one view: 40 s of four images
    monkeypatch.setattr(inference, "_encoding", lambda one, images: 0.0)
    seen = predicted.images_shown(monkeypatch)
    lines, record = predict(run, tmp_path, limit="100s")
    assert "with test-time augmentation none instead of flips, 1 of 2 seeds" in record["notes"][0]
    assert len(lines) == 5 and sum(seen) == 2 * 4 + 2 * 4  # two folds see the canary's four images, then the test set's


def test_what_is_predicted_when_the_time_is_up_is_used(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    working = inference._run_part

    def run_part(one: inference.Inference, part: str, seconds: float = 1e9) -> str:
        if part != "predict":
            return working(one, part, seconds)
        predicted.images_shown(monkeypatch, iter([False, True, True]))  # after the first of two batches
        with pytest.raises(KeyboardInterrupt):
            working(one, part, seconds)
        return "the time was up"

    monkeypatch.setattr(inference, "_run_part", run_part)
    lines, record = predict(run, tmp_path)
    assert len(lines) == 5 and lines[3:] == ["t3,", "t4,"] and lines[1] != "t1,"
    assert "2 of 4 test images were not reached and get the usual answer." in record["notes"]


def test_whole_folds_are_used_when_the_time_is_up(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    working = inference._run_part

    def run_part(one: inference.Inference, part: str, seconds: float = 1e9) -> str:
        working(one, part, seconds)
        if part == "predict":
            for path in one.run.predictions("test", 1).parent.glob("test_fold_1*"):
                path.unlink()
        return "the time was up" if part == "predict" else ""

    monkeypatch.setattr(inference, "_run_part", run_part)
    lines, record = predict(run, tmp_path)
    assert len(lines) == 5 and all(line.split(",")[1] for line in lines[1:])
    assert "finished: 1 of 2 folds are predicted; the submission uses these." in record["notes"]


# --- what goes wrong -------------------------------------------------------------------------------------------------


def drifted(run: Run, folder: Path) -> Path:
    """A copy of a bundle whose networks give something else, as with another library."""
    copy = folder / "drifted"
    shutil.copytree(dataset(run), copy)
    for path in copy.rglob("*.safetensors"):
        save_file({name: value + 0.5 if "head" in name else value for name, value in load_file(path).items()}, path)
        summary = json.loads((path.parent / "fold.json").read_text())
        summary["sha256"] = [inference.freshness.hash_file(path)]
        (path.parent / "fold.json").write_text(json.dumps(summary))
    return copy


def test_drift_stops_the_commit_run_and_is_noted_in_the_scored_one(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, target = drifted(run, tmp_path), tmp_path / "submission.csv"
    with pytest.raises(PipelineError, match=r"predictions differ by .*/255 on average from the bundle's.* in fp32 too"):
        infer(bundle, target)
    monkeypatch.setenv(RERUN, "1")
    infer(bundle, target)
    assert len(target.read_text().splitlines()) == 5
    assert "predictions differ" in read_json(tmp_path / "inference.json")["notes"][0]


def test_nothing_is_raised_where_the_hidden_set_is_scored(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("something nobody thought of")

    monkeypatch.setattr(inference.driver, "run_stage", broken)
    with pytest.raises(RuntimeError):
        predict(run, tmp_path)
    monkeypatch.setenv(RERUN, "1")
    lines, record = predict(run, tmp_path)
    assert lines == ["id,mask", *(f"{name}," for name in TEST_IDS)]
    assert "RuntimeError: something nobody thought of" in record["notes"][0]


def test_damaged_weights_are_named(run: Run, tmp_path: Path) -> None:
    copy = tmp_path / "damaged"
    shutil.copytree(dataset(run), copy)
    path = next(copy.rglob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(PipelineError, match="is damaged or was replaced: its SHA-256"):
        infer(copy, tmp_path / "submission.csv")


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"bundle.json is missing, damaged or of another version"):
        infer(tmp_path, tmp_path / "submission.csv")


def test_bundles_that_lack_something_are_refused(run: Run, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(dataset(run), copy)
    for name in ("canary.npz", "runs"):
        path = copy / "runs" / run.name / name if name != "runs" else copy / name
        if name == "runs":
            shutil.rmtree(path)
            with pytest.raises(PipelineError, match="runs/finished/.* is missing: upload the bundle again"):
                infer(copy, tmp_path / "submission.csv")
            continue
        path.write_bytes(path.read_bytes()[:200])
        with pytest.raises(PipelineError, match="canary.npz is missing or damaged: write the bundle again"):
            infer(copy, tmp_path / "submission.csv")
    with pytest.raises(PipelineError, match=r"expected a name that ends in .csv, .parquet"):
        infer(copy, tmp_path / "submission.txt")


@pytest.mark.parametrize("scored", [False, True])
def test_a_test_set_of_broken_images_gets_the_usual_answer(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scored: bool
) -> None:
    other_input(run, monkeypatch, tmp_path, 4)
    for path in (tmp_path / "input" / run.competition.folder / "test").iterdir():
        path.write_bytes(b"II*")
    if scored:
        monkeypatch.setenv(RERUN, "1")
    lines, record = predict(run, tmp_path, limit="1h")
    assert lines[1:] == [f"{name}," for name in TEST_IDS] and "no test image can be read" in record["notes"][0]


def test_a_first_image_that_is_broken_does_not_spoil_the_timing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_input(run, monkeypatch, tmp_path, 4)
    for name in TEST_IDS[:3]:
        (tmp_path / "input" / run.competition.folder / "test" / f"{name}.tif").write_bytes(b"II*")
    lines, _ = predict(run, tmp_path, limit="1h")
    assert lines[1:4] == [f"{name}," for name in TEST_IDS[:3]] and len(lines) == 5


def test_what_keeps_the_networks_from_predicting_is_said(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "_run_part", lambda *_: "exit code 1, see the error above")
    with pytest.raises(PipelineError) as raised:
        predict(run, tmp_path)
    assert str(raised.value) == "the canary could not be predicted (exit code 1, see the error above)."


def test_folders_of_killed_inferences_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(scratch.tempfile, "tempdir", str(tmp_path))
    for name, age in (("bundle-old", 1000.0), ("bundle-young", 0.0)):
        mark = tmp_path / name / scratch.IN_USE
        mark.parent.mkdir()
        mark.touch()
        os.utime(mark, (mark.stat().st_mtime - age,) * 2)
    with scratch.scratch() as folder:
        os.utime(folder / scratch.IN_USE, (0, 0))
        scratch.remove_abandoned()  # as another process would
        assert folder.is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["bundle-young"]


def test_several_devices_predict_the_same(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two GPUs, which are pretended: parts of the images, put together byte for byte."""
    monkeypatch.setattr(OneByOne, "at_once", lambda self, needs, count: min(2, count))
    predict(run, tmp_path)
    assert (tmp_path / "submission.csv").read_bytes() == run.submission.read_bytes()


def test_a_format_that_the_machine_lacks_is_replaced(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def precision(asked: str) -> str:
        return parts.usable(predicted.named(run, "any", train={"precision": asked})).recipe.train.precision

    monkeypatch.setattr(parts.torch.cuda, "is_available", lambda: False)
    assert [precision(one) for one in ("auto", "32", "bf16", "16")] == ["auto", "32", "bf16", "auto"]
    monkeypatch.setattr(parts.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(parts.torch.cuda, "is_bf16_supported", lambda including_emulation: False)  # a T4
    assert [precision(one) for one in ("auto", "32", "bf16", "16")] == ["auto", "32", "auto", "16"]


def test_an_ensemble_is_bundled_with_its_fitted_weights(split: Run, run: Run, tmp_path: Path) -> None:
    other = finished.finished(split, "second", predict={"tta": "none"})
    for one in (run, other):
        for fold in one.trained_folds():
            manifest = {"inputs": {"folds/tiny.csv": {"hash": inference.freshness.hash_file(one.folds_file)}}}
            empty = {"finished": "", "seconds": 0, "settings": {}, "code": {}, "outputs": {}}
            (one.fold_folder(fold) / "manifest.json").write_text(json.dumps(empty | manifest))
    both = bundled(build.combined([run, other], None, None))
    assert both.name == "finished-and-second"
    about = build.read_about(both)
    assert about["runs"] == ["finished", "second"] and sum(about["ensemble"].values()) == pytest.approx(1)
    predicted.go(both, "encode")
    predict(both, tmp_path)
    assert (tmp_path / "submission.csv").read_bytes() == both.submission.read_bytes()
    assert [one.name for one in project.predicting(both)] == ["finished", "second"]
