"""Nothing damaged is ever used: every file of a finished run, damaged in every way, is named or made again."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import trainings
from conftest import Tiny

from benchmarks.reliability.damages import HOWS, Damage, apply, artefacts
from pipeline.core import driver, freshness, intact
from pipeline.core.errors import PipelineError
from pipeline.core.files import write_json
from pipeline.core.recorded import read_recipe
from pipeline.core.run import Run, open_run
from pipeline.core.trainings import epochs_of, read_training
from pipeline.decode.table import read_table
from pipeline.networks.weights import read_trained
from pipeline.predictions.files import read_probabilities
from pipeline.report import look
from pipeline.stages import STAGES

MADE = STAGES[: STAGES.index("encode") + 1]
WORK, RUN = "work/tiny", "work/tiny/small"
PIXELS = f"{WORK}/pixels_32x32_stretch_grey"
FILES = {
    f"{WORK}/images.parquet": "decode", f"{WORK}/test_images.parquet": "decode", f"{WORK}/histograms.npy": "decode",
    f"{WORK}/test_thumbnails.npy": "decode", f"{PIXELS}/train_images.npy": "decode",
    f"{PIXELS}/train_masks.npy": "decode", f"{PIXELS}/test.manifest.json": "decode",
    f"{WORK}/test_duplicates.csv": "clean", f"{WORK}/outliers/contradiction.png": "clean",
    "folds/tiny.audit.json": "split", f"{RUN}/fold_0/last.safetensors": "train", f"{RUN}/fold_0/fold.json": "train",
    f"{RUN}/fold_0/history.json": "train", f"{RUN}/fold_0/epochs.npz": "train", f"{RUN}/fold_0/manifest.json": "train",
    f"{RUN}/fold_0/model.txt": "train",
    f"{RUN}/predictions/oof_fold_0.npy": "validate", f"{RUN}/predictions/oof_fold_0.csv": "validate",
    f"{RUN}/postprocess.json": "tune", f"{RUN}/oof_scores.csv": "tune", f"{RUN}/suspects.csv": "tune",
    f"{RUN}/mask_statistics.npz": "tune", f"{RUN}/postprocess.manifest.json": "tune",
    f"{RUN}/predictions/test_fold_1.npy": "predict", "submissions/small.csv": "encode",
    "submissions/small.json": "encode",
}  # fmt: skip
"""One file of each kind, and the stage that makes it."""
READERS = {
    f"{WORK}/images.parquet": lambda run: read_table(run.table),
    f"{PIXELS}/train_masks.npy": lambda run: intact.read_array(run.pixels / "train_masks.npy"),
    f"{RUN}/fold_0/last.safetensors": lambda run: read_trained(run.fold_folder(0) / "last.safetensors"),
    f"{RUN}/fold_0/fold.json": lambda run: read_training(run.fold_folder(0) / "fold.json"),
    f"{RUN}/fold_0/history.json": lambda run: epochs_of(run.fold_folder(0) / "history.json"),
    f"{RUN}/fold_0/epochs.npz": lambda run: intact.read_arrays(run.fold_folder(0) / "epochs.npz", ["counts"]),
    f"{RUN}/predictions/oof_fold_0.npy": lambda run: read_probabilities(run.predictions("oof", 0)),
    f"{RUN}/predictions/oof_fold_0.csv": lambda run: read_probabilities(run.predictions("oof", 0)),
    f"{RUN}/postprocess.json": look.result,
    f"{RUN}/oof_scores.csv": look.scores,
    f"{RUN}/suspects.csv": look.suspects,
    f"{RUN}/recipe.yaml": lambda run: read_recipe(run.folder / "recipe.yaml"),
}
"""How other stages, notebooks and comparisons read some of them."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The root of a finished run, trained for an epoch."""
    root = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIPELINE_ROOT", str(root))
        patch.setenv("PIPELINE_INPUT", str(root / "input"))
        tiny = Tiny(root)
        tiny.images["a02"] = tiny.images["a01"]  # a near-duplicate, whose mask contradicts
        tiny.convert("tif", tiny.images)
        run = trainings.prepare(tiny, {"train": {"epochs": 1}, "tune": {"method": "fixed"}, "model": {"options": {
            "channels": [4, 8]}}})  # fmt: skip
        trainings.train(run, "validate", "tune", "predict", "encode")
        yield root


TRIED = [how for how in HOWS if how != "forbidden"]  # which root may read all the same


@pytest.fixture
def run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A copy of the finished run, times of change included."""
    root = tmp_path / "root"
    shutil.copytree(finished, root)
    monkeypatch.setenv("PIPELINE_ROOT", str(root))
    monkeypatch.setenv("PIPELINE_INPUT", str(root / "input"))
    return open_run(str(root / "small.yaml"))


def damage(run: Run, file: str, how: str) -> Path:
    root = run.competition_folder.parents[1]
    apply(root, Damage(file, how))
    freshness._hash.cache_clear()  # of this process: a command is a new one
    return root / file


def waiting(run: Run, stage: str) -> list[str]:
    return [reason.text for state in driver.states(run, stage) for reason in state.reasons]


def test_every_kind_of_file_is_damaged_here(finished: Path) -> None:
    kinds = {Path(file).suffix for file in artefacts(finished)}
    tried = {Path(file).suffix for file in (*FILES, *READERS)} | {".html"}
    assert kinds <= tried and all((finished / file).exists() for file in (*FILES, *READERS))


@pytest.mark.parametrize("file", FILES)
def test_a_damaged_file_makes_its_stage_run_again(
    run: Run, file: str, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert waiting(run, FILES[file]) == []
    for how in TRIED:
        path = damage(run, file, how)
        with monkeypatch.context() as patch:
            patch.setattr(freshness, "_by_content", how == "kept time" and path.suffix != ".safetensors")
            reasons = waiting(run, FILES[file])
        named = file in " ".join(reasons) or reasons == ["not run yet"]
        assert reasons and (named or how == "swapped"), how  # another step's manifest speaks of other files
        path.unlink(missing_ok=True)
        shutil.copy2(finished / file, path)


@pytest.mark.parametrize("file", READERS)
def test_readers_name_a_damaged_file(run: Run, file: str, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for how in TRIED:
        path = damage(run, file, how)
        monkeypatch.setattr(freshness, "_by_content", how == "kept time")
        with pytest.raises(PipelineError) as caught:
            READERS[file](run)
        assert file.removesuffix(".csv").removesuffix(".npy") in str(caught.value), how
        path.unlink(missing_ok=True)
        shutil.copy2(finished / file, path)


@pytest.mark.parametrize("file", [
    f"{WORK}/thumbnails.npy", f"{PIXELS}/train_masks.npy", "folds/tiny.audit.json", f"{RUN}/recipe.yaml",
    f"{RUN}/fold_1/history.csv", f"{RUN}/oof_scores.csv", f"{RUN}/predictions/test_fold_0.csv",
])  # fmt: skip
def test_a_whole_run_repairs_what_is_damaged(run: Run, file: str, finished: Path) -> None:
    path = damage(run, file, "flipped")
    for stage in MADE:
        driver.run_stage(run, stage)
    assert path.read_bytes() == (finished / file).read_bytes()
    for other in (f"{RUN}/fold_0/last.safetensors", "submissions/small.csv"):
        assert (path.parents[len(Path(file).parts) - 1] / other).read_bytes() == (finished / other).read_bytes()


@pytest.mark.parametrize("file", ["last.safetensors", "fold.json", "history.json", "epochs.npz", "manifest.json"])
def test_damaged_training_stops_and_is_not_replaced(run: Run, file: str) -> None:
    path = damage(run, f"{RUN}/fold_0/{file}", "flipped")
    left = path.read_bytes()
    with pytest.raises(PipelineError, match=rf"fold_0.*{file}.*--force"):
        driver.run_stage(run, "train")
    assert path.read_bytes() == left


@pytest.mark.parametrize(("stage", "file"), [
    ("clean", f"{WORK}/histograms.npy"), ("split", f"{WORK}/images.parquet"), ("train", f"{PIXELS}/train_masks.npy"),
    ("validate", f"{PIXELS}/train_images.npy"), ("tune", f"{RUN}/predictions/oof_fold_1.npy"),
    ("predict", f"{PIXELS}/test_images.npy"), ("encode", f"{RUN}/predictions/test_fold_0.npy"),
])  # fmt: skip
def test_a_stage_alone_does_not_use_what_an_earlier_one_left_damaged(run: Run, stage: str, file: str) -> None:
    damage(run, file, "flipped")
    for force in (False, True):
        with pytest.raises(PipelineError) as caught:
            driver.run_stage(run, stage, force)
        assert file in str(caught.value) and "--name" not in str(caught.value)


def test_training_compares_its_pixels_by_content(run: Run) -> None:
    damage(run, f"{PIXELS}/train_masks.npy", "kept time")
    with pytest.raises(PipelineError, match=r"train_masks.npy is not what decode wrote"):
        driver.run_stage(trainings.named(run, "other"), "train")


def test_a_failure_names_an_input_that_changed_unseen(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    damage(run, f"{RUN}/predictions/oof_fold_0.npy", "kept time")

    def broken(*arguments: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(driver, "_execute", broken)
    with pytest.raises(PipelineError, match=r"oof_fold_0.npy is not what validate wrote.*ZeroDivisionError"):
        driver.run_stage(run, "tune", force=True)


def test_an_edited_list_is_used_and_mentioned(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    lines = run.outliers.read_text() + "a03,broken,0.0,,drop,by hand\n"
    run.outliers.write_text(lines)
    driver.run_stage(run, "clean")
    assert "work/tiny/outliers.csv was edited after clean wrote it" in " ".join(capsys.readouterr().err.split())
    assert run.outliers.read_text() == lines


def test_leftovers_of_a_kill_go(run: Run) -> None:
    folder, predictions = run.fold_folder(0), run.predictions("oof", 0).parent
    left = [folder / name for name in ("last.ckpt", "best.ckpt", "started.json", ".last.ckpt.partial", "error.txt")]
    left += [predictions / ".oof_fold_0.npy.partial", run.postprocess.with_name(".postprocess.json.partial")]
    left += [run.table.with_name(".images.parquet.partial"), run.submission.with_name(".small.csv.partial")]
    for path in left:
        path.write_text("half")
    for attempt in (predictions / ".oof_fold_0.partial", predictions / ".test_fold_0.shards"):
        attempt.mkdir()
        left.append(attempt)
    for stage in MADE:
        driver.run_stage(run, stage)
    assert [path.name for path in left if path.exists()] == []


def test_an_unfinished_training_without_its_mark_stops(run: Run) -> None:
    folder = run.fold_folder(0)
    for path in folder.glob("*.*"):
        path.unlink()
    (folder / "last.ckpt").write_bytes(b"half")
    for content in (None, "{", '{"stage": "train"}'):
        if content:
            (folder / "started.json").write_text(content)
        with pytest.raises(
            PipelineError, match=r"started.json, which records its inputs and settings, is missing or dam"
        ):
            driver.run_stage(run, "train")


def test_a_manifest_that_was_changed_counts_as_none(run: Run) -> None:
    manifest = run.folder / "postprocess.manifest.json"
    record = freshness.read_manifest(manifest)
    assert record
    write_json(manifest, record | {"seconds": 1e6})
    assert freshness.read_manifest(manifest) is None
    del record["seal"]  # as an earlier version left it
    write_json(manifest, record)
    assert freshness.read_manifest(manifest) == record
    os.utime(run.postprocess, ns=(1, 1))
    assert waiting(run, "tune") == []
