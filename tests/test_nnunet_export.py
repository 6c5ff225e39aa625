"""What benchmarks/nnunet.py writes for nnU-Net, and what it makes of nnU-Net's predictions; nnU-Net is not needed."""

import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import SHAPE, TEST_IDS, TRAIN_IDS, Tiny

from benchmarks import nnunet
from pipeline import stages
from pipeline.core.errors import PipelineError
from pipeline.core.run import Run, open_run

DROPPED = "a06"


@pytest.fixture
def split(tiny: Tiny) -> Run:
    """The tiny competition, decoded and split, with one image that is dropped from training."""
    run = tiny.run("decode", "clean", "split")
    folds = pd.read_csv(run.folds_file, dtype=str, keep_default_na=False)
    folds.loc[folds["image_id"] == DROPPED, "use"] = "drop"
    folds.to_csv(run.folds_file, index=False)
    return run


def export(run: Run, root: Path, **options: Any) -> Path:
    return nnunet.export(run, root / "raw", root / "preprocessed", 7, **options)


def read(path: Path) -> np.ndarray:
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert image is not None, f"{path} is no image"
    return image


def splits_of(root: Path) -> list[dict[str, list[str]]]:
    return json.loads((root / "preprocessed" / "Dataset007_Tiny" / "splits_final.json").read_text())


def fold_of(run: Run) -> dict[str, int]:
    return pd.read_csv(run.folds_file).set_index("image_id")["fold"].to_dict()


# --- export ----------------------------------------------------------------------------------------------------------


def test_export_images_and_labels(split: Run, tiny: Tiny, tmp_path: Path) -> None:
    folder = export(split, tmp_path)
    assert folder == tmp_path / "raw" / "Dataset007_Tiny"
    assert {path.name for path in (folder / "imagesTr").iterdir()} == {f"{name}_0000.png" for name in TRAIN_IDS}
    assert {path.name for path in (folder / "imagesTs").iterdir()} == {f"{name}_0000.png" for name in TEST_IDS}
    assert {path.name for path in (folder / "labelsTr").iterdir()} == {f"{name}.png" for name in TRAIN_IDS}
    for name in TRAIN_IDS:  # not transposed: 40×60
        np.testing.assert_array_equal(read(folder / "imagesTr" / f"{name}_0000.png"), tiny.images[name])
        np.testing.assert_array_equal(read(folder / "labelsTr" / f"{name}.png"), tiny.masks[name])
    described = json.loads((folder / "dataset.json").read_text())
    assert described["labels"] == {"background": 0, "thing": 1}
    assert (described["numTraining"], described["channel_names"]) == (12, {"0": "grey"})
    assert described["overwrite_image_reader_writer"] == "NaturalImage2DIO"


def test_export_splits_are_ours(split: Run, tmp_path: Path) -> None:
    export(split, tmp_path)
    splits, folds = splits_of(tmp_path), fold_of(split)
    assert len(splits) == 3
    for fold, one in enumerate(splits):
        assert set(one["val"]) == {name for name in TRAIN_IDS if folds[name] == fold}
        assert set(one["train"]) == set(TRAIN_IDS) - set(one["val"]) - {DROPPED}
    assert sum(DROPPED in one["val"] for one in splits) == 1


def test_export_leaves_out_what_the_recipe_excludes(split: Run, tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "listed.csv").write_text("image_id\na03\n")
    tiny.recipe["train"] = {"exclude": "listed.csv"}
    tiny.save()
    export(open_run(str(tiny.recipe_path)), tmp_path)
    assert not any("a03" in one["train"] for one in splits_of(tmp_path))
    assert sum("a03" in one["val"] for one in splits_of(tmp_path)) == 1


def test_export_again_replaces_all(split: Run, tmp_path: Path) -> None:
    export(split, tmp_path)
    folder = export(split, tmp_path, limit=1)
    names = {path.stem for path in (folder / "labelsTr").iterdir()}
    assert len(names) == 3 == len({fold_of(split)[name] for name in names})
    assert len(list((folder / "imagesTs").iterdir())) == 1
    assert json.loads((folder / "dataset.json").read_text())["numTraining"] == 3
    for one in splits_of(tmp_path):
        assert set(one["train"]) | set(one["val"]) <= names
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_export_replaces_nobody_elses_folder(split: Run, tmp_path: Path) -> None:
    other = tmp_path / "raw" / "Dataset007_Tiny" / "dataset.json"
    other.parent.mkdir(parents=True)
    other.write_text("{}")
    with pytest.raises(PipelineError, match="not made by this script"):
        export(split, tmp_path)
    assert other.read_text() == "{}"


def test_export_rgb(tiny: Tiny, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    images = {name: rng.integers(0, 256, (*SHAPE, 3), np.uint8) for name in TRAIN_IDS + TEST_IDS}
    tiny.convert("png", images)
    tiny.recipe["image"]["channels"] = 3
    tiny.save()
    folder = export(tiny.run("decode", "clean", "split"), tmp_path)
    np.testing.assert_array_equal(read(folder / "imagesTr" / "a02_0000.png")[..., ::-1], images["a02"])
    assert list(json.loads((folder / "dataset.json").read_text())["channel_names"].values()) == ["red", "green", "blue"]


def test_export_refuses_multilabel(tiny: Tiny, tmp_path: Path) -> None:
    tiny.settings["kind"] = "multilabel"
    tiny.save()
    with pytest.raises(PipelineError, match="tiny is multilabel"):
        export(open_run(str(tiny.recipe_path)), tmp_path)


def test_export_needs_folds(tiny: Tiny, tmp_path: Path) -> None:
    run = tiny.run("decode")
    with pytest.raises(PipelineError, match="folds/tiny.csv does not exist; run .* --to split"):
        export(run, tmp_path)


# --- collect ---------------------------------------------------------------------------------------------------------


def predict(run: Run, results: Path, masks: dict[str, np.ndarray]) -> None:
    """Writes what nnU-Net leaves, with 0.9 for the true class (height, width) int of each image."""
    count = max(2, len(run.competition.classes))
    for name, fold in fold_of(run).items():
        values = np.where(np.arange(count)[:, None, None] == masks[name], 0.9, 0.1 / (count - 1)).astype(np.float32)
        path = results / f"fold_{fold}" / "validation" / f"{name}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, probabilities=values[:, None])


def test_collect_is_read_by_tune(split: Run, tiny: Tiny, tmp_path: Path) -> None:
    predict(split, tmp_path / "trained", tiny.masks)
    out = nnunet.collect(split, tmp_path / "trained", tmp_path / "oof.npy")
    array, index = np.load(out), pd.read_csv(out.with_suffix(".csv"))
    assert (array.shape, array.dtype) == ((12, *SHAPE), np.float32)
    assert dict(zip(index["image_id"], index["fold"], strict=True)) == fold_of(split)
    for values, name in zip(array, index["image_id"], strict=True):
        np.testing.assert_array_equal(values > 0.5, tiny.masks[name] == 1)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({
        "competition": str(tiny.competition_path), "arrays": {"oof": "oof.npy"}
    }))  # fmt: skip
    run = open_run(str(tmp_path / "mine.yaml"))
    stages.run_through(run, "tune")
    assert json.loads(run.postprocess.read_text())["score"] == 1


def test_collect_some_folds(split: Run, tiny: Tiny, tmp_path: Path) -> None:
    predict(split, tmp_path / "trained", tiny.masks)
    out = nnunet.collect(split, tmp_path / "trained", tmp_path / "oof.npy", folds=[2], limit=1)
    assert pd.read_csv(out.with_suffix(".csv"))["fold"].tolist() == [2]
    with pytest.raises(PipelineError, match=r"--folds is \[3\]; expected some of 0, 1, 2"):
        nnunet.collect(split, tmp_path / "trained", out, folds=[3])


def test_collect_says_what_is_missing(
    split: Run, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    predict(split, tmp_path / "trained", tiny.masks)
    gone = tmp_path / "trained" / f"fold_{fold_of(split)['a05']}" / "validation" / "a05.npz"
    gone.unlink()
    words = ["collect", str(tiny.recipe_path), str(tmp_path / "trained"), str(tmp_path / "oof.npy")]
    monkeypatch.setattr(sys, "argv", ["nnunet", *words])
    with pytest.raises(SystemExit) as caught:
        nnunet.main()
    message = capsys.readouterr().err
    assert caught.value.code == 2
    assert message.startswith(f"1 of 12 predictions are missing, the first {gone}; ")
    assert message.count("\n") == 1
    assert not (tmp_path / "oof.npy").exists()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.zeros((2, 1, *SHAPE[::-1])), "2×1×60×40; expected 2×1×40×60"),
        (np.zeros((3, 1, *SHAPE)), "3×1×40×60; expected 2×1×40×60"),
        (None, r"a01.npz cannot be read \(BadZipFile\)"),
    ],
)
def test_collect_refuses_a_bad_file(
    split: Run, tiny: Tiny, tmp_path: Path, values: np.ndarray | None, expected: str
) -> None:
    predict(split, tmp_path / "trained", tiny.masks)
    path = tmp_path / "trained" / f"fold_{fold_of(split)['a01']}" / "validation" / "a01.npz"
    if values is None:
        path.write_bytes(path.read_bytes()[:-100])
    else:
        np.savez_compressed(path, probabilities=values)
    with pytest.raises(PipelineError, match=expected):
        nnunet.collect(split, tmp_path / "trained", tmp_path / "oof.npy")
    assert not list(tmp_path.glob("*oof*"))


def test_collect_images_of_several_sizes(tiny: Tiny, tmp_path: Path) -> None:
    tiny.images["a01"] = tiny.images["a01"][:30, :50]
    tiny.masks["a01"] = tiny.masks["a01"][:30, :50]
    tiny.row("a01")["mask"] = ""  # the first of the masks is empty
    tiny.convert("png", tiny.images)
    run = tiny.run("decode", "clean", "split")
    predict(run, tmp_path / "trained", tiny.masks)
    array = np.load(nnunet.collect(run, tmp_path / "trained", tmp_path / "oof.npy"))
    assert array.shape == (12, 32, 32)  # the recipe's
    for values, name in zip(array, pd.read_csv(tmp_path / "oof.csv")["image_id"], strict=True):
        assert abs((values > 0.5).mean() - tiny.masks[name].mean()) < 0.03


# --- several classes -------------------------------------------------------------------------------------------------


def test_multiclass(tiny: Tiny, tmp_path: Path) -> None:
    """Class maps whose background counts nowhere: it is nnU-Net's label `ignore`."""
    rng = np.random.default_rng(0)
    training = rng.integers(0, 256, (12, 2, 12, 20), np.uint8)
    training[:, 1] %= 3
    tiny.settings = {
        "title": "Plains", "reader": "npz_labels", "file": "plains.npz", "metric": "mean_iou", "split": {"folds": 3},
        "classes": {"background": 0, "soil": 1, "rock": 2}, "ignore_class": "background",
    }  # fmt: skip
    np.savez(tiny.input / "plains.npz", training_set=training, test_set=training[:2, 0])
    tiny.save()
    run = tiny.run("decode", "clean", "split")
    folder = export(run, tmp_path)
    assert json.loads((folder / "dataset.json").read_text())["labels"] == {
        "background": 0, "soil": 1, "rock": 2, "ignore": 3,
    }  # fmt: skip
    truth = {f"train_{number}": one[1] for number, one in enumerate(training)}
    for name, labels in truth.items():
        np.testing.assert_array_equal(read(folder / "labelsTr" / f"{name}.png"), np.where(labels == 0, 3, labels))
    predict(run, tmp_path / "trained", truth)
    array = np.load(nnunet.collect(run, tmp_path / "trained", tmp_path / "oof.npy"))
    assert array.shape == (12, 3, 12, 20)
    for values, name in zip(array, pd.read_csv(tmp_path / "oof.csv")["image_id"], strict=True):
        np.testing.assert_array_equal(values.argmax(0), truth[name])
