"""Models as ONNX: the graphs give the probabilities of the pipeline, and model.json says how to use them."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import finished
import numpy as np
import predicted
import pytest

from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json
from pipeline.core.run import Run
from pipeline.export import command


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    yield from predicted.split_run(tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="module")
def run(split: Run) -> Run:
    tune, train = {"method": "fixed", "threshold": 0.3}, {"folds": [0]}
    changes: dict[str, Any] = {"tune": tune, "predict": {"tta": "none"}, "train": train}
    run = finished.with_summaries(predicted.with_weights(predicted.named(split, "exported", **changes)))
    return predicted.go(run, "validate", "tune", "predict")


def test_the_example_gives_the_predictions_of_the_pipeline(run: Run, tmp_path: Path) -> None:
    for name in command.PACKAGES:
        pytest.importorskip(name)
    folder = command.export(run, tmp_path / "models")
    files = {"fold_0.onnx", "model.json", "check.npz", "predict.py"}
    assert {path.name for path in folder.iterdir()} == files
    pixels = np.load(run.pixels / "test_images.npy").transpose(0, 3, 1, 2)
    np.save(tmp_path / "pixels.npy", pixels)
    example = [sys.executable, str(folder / "predict.py")]
    subprocess.run([*example, tmp_path / "pixels.npy", tmp_path / "probability.npy"], check=True)
    probability = np.load(tmp_path / "probability.npy")
    expected = [np.load(run.predictions("test", fold)) / 255 for fold in run.test_folds()]
    assert probability.shape == expected[0].shape
    # the pipeline rounds the probability of each fold to 255ths
    assert np.abs(probability - np.mean(expected, axis=0)).max() < 0.5 / 255 + 1e-3
    printed = subprocess.run(example, check=True, capture_output=True, text=True).stdout
    assert float(printed.rpartition(" ")[2]) < 1e-3
    with pytest.raises(PipelineError, match="models exists already; give another folder with --to"):
        command.export(run, tmp_path / "models")


def test_the_description_is_complete(run: Run) -> None:
    models = [{"file": "fold_0.onnx", "dtype": "uint8"}]
    about = command.described(run, read_json(run.postprocess), models)
    assert about["input"] == {"pixels": ["images", 1, 32, 64], "dtype": "uint8"}
    assert about["outputs"]["probability"] == ["images", 1, 32, 64]
    assert about["decision"]["rules"][run.competition.classes[0]]["threshold"] == 76  # 0.3 · 255
    assert (
        about["preprocess"][0]
        == "Read the image as grey, without scaling its values: normalisation is part of the graph."
    )
    assert len(about["not_in_the_graph"]) == 3


def test_how_images_are_read_is_said(split: Run) -> None:
    def steps(dtype: str = "uint8", **settings: Any) -> list[str]:
        competition = type(split.competition).model_validate(split.competition.model_dump(mode="json") | settings)
        return command.preprocessing(replace(split, competition=competition), dtype)

    assert "Turn it upright if its EXIF orientation says so." in steps()
    assert not any("EXIF" in step for step in steps(orientation="stored"))
    scaled = steps("int32", value_range=[0, 4095])
    assert scaled[0] == "Read the image as grey."
    assert any(
        step.startswith("Clip its values to the range [0, 4095], and scale this range to 0 to 65535") for step in scaled
    )
    several = steps("float32", value_range=[[-1, 1], [0, 0.5]], channels={"pick": [2, 0]})
    assert "Keep its channels 2, 0, counted from 0." in several
    assert any("of each channel [-1, 1], [0, 0.5], and scale this range to 0 to 1" in step for step in several)
    assert "slices" in steps(volumes={})[0]


def test_the_decision_of_class_maps_has_its_own_unit(run: Run) -> None:
    models = [{"file": "fold_0.onnx", "dtype": "uint8"}]
    about = command.described(run, {"bias": {"sky": 0.5}, "never": []}, models)
    assert about["decision"]["unit"] == "probability · exp(bias), at the image's own size"


def test_what_is_left_out_is_said(split: Run) -> None:
    changes: dict[str, Any] = {"image": {"store": [64, 64]}, "predict": {"tta": "hflip", "overlap": 0.5}}
    tiled = predicted.named(split, "tiled", **changes)
    assert any("Tiles: neighbouring tiles overlap by 50 %" in part for part in command.left_out(tiled))
    assert any(
        "(hflip): also predict the image mirrored left to right, undo" in part for part in command.left_out(tiled)
    )
    rotated = predicted.named(split, "rotated", predict={"tta": "d4"})
    assert command.left_out(rotated)[-1].startswith("A graph for images of 64 × 32 pixels")
    assert any("Cut it into tiles of 32 × 64" in step for step in command.preprocessing(tiled))


def test_what_cannot_be_exported(run: Run, split: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ensemble = predicted.named(split, "both", ensemble={"exported": None, "other": None})
    with pytest.raises(PipelineError, match="both has no models of its own: export its runs, exported, other"):
        command.export(ensemble, tmp_path / "models")
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None if name == "onnx" else True)
    with pytest.raises(PipelineError, match="export needs onnx: pip install 'onnx"):
        command.export(run, tmp_path / "models")
    assert not (tmp_path / "models").exists()
    monkeypatch.setattr(command, "PACKAGES", ())
    with pytest.raises(PipelineError, match="postprocess.json does not exist; finish the run first"):
        command.export(predicted.named(split, "unfinished"), tmp_path / "models")
