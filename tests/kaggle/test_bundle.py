"""What a bundle holds, which runs can be bundled, and its rehearsal in an environment like the notebook's."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import finished
import numpy as np
import pandas as pd
import predicted
import pytest
from conftest import other_code

from pipeline.core import freshness
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json
from pipeline.core.run import Run
from pipeline.kaggle.bundle import build, notebook, rehearsal

OF_TRAINING = (
    "lightning", "pytorch-lightning", "scikit-learn", "albumentations", "albucore", "ray", "optuna", "matplotlib",
    "tensorboard",
)  # fmt: skip
CODECS = ("imagecodecs", "2026.3.6", "cp312-cp312-manylinux_2_28_x86_64")
MODELS = ("segmentation_models_pytorch", "0.6.0", "cp312-cp312-manylinux_2_28_x86_64")


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    yield from predicted.split_run(tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="module")
def run(split: Run) -> Run:
    """A finished run with its bundle."""
    done = finished.finished(split, "packed", tune={"method": "fixed", "threshold": 0.3})
    write(done)
    return done


def write(run: Run, **options: Any) -> Path:
    """Writes a bundle with wheels of nothing, of the names that Kaggle's image lacks."""
    source = finished.wheel_folder(run.folder.parent / "wheels", CODECS, MODELS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build.wheels, "lock", lambda python: {})
        return build.write_bundle(run, build.Options(wheels=source, **options))


def test_it_holds_what_predicting_needs_and_no_training_image(run: Run) -> None:
    folder = build.folder_of(run)
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    own = "runs/packed"
    folds = [f"{own}/fold_{fold}/{name}" for fold in (0, 1) for name in ("fold.json", "last.safetensors")]
    in_dataset = [
        "bundle.json", "dataset-metadata.json", "competition.yaml", *folds, f"{own}/recipe.yaml", f"{own}/canary.npz",
        f"{own}/postprocess.json", f"{own}/mask_statistics.npz", "wheels/segmentation_pipeline-0.2.0-py3-none-any.whl",
        *(f"wheels/{'-'.join(one)}.whl" for one in (CODECS, MODELS)),
    ]  # fmt: skip
    kernel = {f"kernel/{name}" for name in ("inference.py", "inference.ipynb", "server.py", "kernel-metadata.json")}
    assert names == {f"dataset/{name}" for name in in_dataset} | kernel
    about = read_json(folder / "dataset" / "bundle.json")
    assert set(about["files"]) == set(in_dataset) - {"bundle.json", "dataset-metadata.json"}
    assert len(about["packages"]) == 3 and about["expect"]["nested"] is not None
    with np.load(folder / "dataset" / own / "canary.npz") as canary:
        assert canary["images"].shape == (4, 32, 64, 1)  # the test images
        assert canary["probabilities"].shape == (4, 1, 32, 64)


def test_the_metadata_is_what_kaggles_client_asks_for(run: Run) -> None:
    folder = build.folder_of(run)
    dataset = read_json(folder / "dataset" / "dataset-metadata.json")
    assert dataset == {"title": "packed-bundle", "id": "USERNAME/packed-bundle", "licenses": [{"name": "other"}]}
    kernel = read_json(folder / "kernel" / "kernel-metadata.json")
    assert kernel["enable_internet"] is False and kernel["dataset_sources"] == [dataset["id"]]
    assert kernel["title"] == "packed-inference" and kernel["id"] == "USERNAME/packed-inference"
    assert kernel["docker_image_pinning_type"] in ("original", "latest")


def test_script_and_notebook_are_the_same_code(run: Run) -> None:
    kernel = build.folder_of(run) / "kernel"
    digest = freshness.hash_file(build.folder_of(run) / "dataset" / "bundle.json")
    text = (kernel / "inference.py").read_text()
    assert f'SHA256 = "{digest}"' in text and 'LIMIT = "8h"' in text
    cells = read_json(kernel / "inference.ipynb")["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert all(cell in text for cell in code) and "".join(cells[0]["source"]).startswith("# Inference")
    for part in code:
        compile(part, "cell", "exec")


@pytest.mark.parametrize(
    "wanted", ["none is attached", "other version", "file missing", "file damaged", "other Python"]
)
def test_the_script_says_what_is_wrong_with_the_bundle(run: Run, tmp_path: Path, wanted: str) -> None:
    source, bundle = build.folder_of(run), tmp_path / "bundle"
    bundle.mkdir()
    for path in (source / "dataset").rglob("*"):
        (bundle / path.relative_to(source / "dataset")).parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            (bundle / path.relative_to(source / "dataset")).write_bytes(path.read_bytes())
    (weights,) = (bundle / "runs" / "packed" / "fold_1").glob("*.safetensors")
    about = json.loads((bundle / "bundle.json").read_text())
    digest = freshness.hash_file(bundle / "bundle.json")
    said = {
        "none is attached": "No bundle is attached: choose Add Input",
        "other version": "does not belong to this notebook: bundle.json has SHA-256",
        "file missing": "last.safetensors is missing: upload the bundle again with `--dir-mode zip`",
        "file damaged": "last.safetensors is damaged: its SHA-256 is not the one in bundle.json",
        "other Python": "is for Python 2.7, but this notebook runs Python 3",
    }
    if wanted == "none is attached":
        (bundle / "bundle.json").unlink()
    elif wanted == "other version":
        digest = "0" * 64
    elif wanted == "file missing":
        weights.unlink()
    elif wanted == "file damaged":
        weights.write_bytes(b"x")
    else:
        about["packages"] = [one | {"name": "no-such", "python": "2.7"} for one in about["packages"]]
        (bundle / "bundle.json").write_text(json.dumps(about))
        digest = freshness.hash_file(bundle / "bundle.json")
    (tmp_path / "inference.py").write_text(notebook.script_text({"SHA256": digest}))
    command = [sys.executable, str(tmp_path / "inference.py"), str(bundle)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and said[wanted] in done.stderr and "Traceback" not in done.stderr


def test_training_must_have_ended(split: Run) -> None:
    run = predicted.named(split, "untrained")
    with pytest.raises(PipelineError, match=r"last.safetensors does not exist: training of untrained is not finished"):
        write(run)
    finished.with_summaries(predicted.with_weights(run))
    with pytest.raises(PipelineError, match=r"postprocess.json does not exist: `.* --to tune` makes it"):
        write(run)
    assert not build.folder_of(run).exists()


def test_a_run_whose_code_changed_since_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before = freshness.hash_file(build.folder_of(run) / "dataset" / "bundle.json")
    with monkeypatch.context() as patch:
        other_code(patch, {"masks/decision.py": "other"})
        with pytest.raises(PipelineError, match=r"packed is not up to date \(code changed: .*--to tune"):
            write(run)
    assert freshness.hash_file(build.folder_of(run) / "dataset" / "bundle.json") == before


def test_damaged_weights_are_refused(split: Run) -> None:
    run = finished.finished(split, "hurt", predict={"tta": "none"})
    predicted.with_other_weights(run, 0)
    with pytest.raises(PipelineError, match=r"fold_0/last.safetensors is damaged or was replaced"):
        write(run)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"python": "twelve"}, "expected a version such as 3.12"),
        ({"target": "submission.txt"}, "ends in .csv, .parquet"),
        ({"target": "submission.json"}, "submissions to tiny must end in .csv"),
        ({"target": "out/submission.csv"}, "a file name without a folder"),
        ({"user": "ada/x"}, "expected a user name as in Kaggle"),
        ({"limit": "soon"}, "expected a number and a unit, for instance 8.5h, 90min or 45s, or `none`"),
    ],
)
def test_wrong_options_are_refused(run: Run, option: dict[str, str], said: str) -> None:
    with pytest.raises(PipelineError, match=said):
        write(run, **option)


def test_what_fp16_weights_change_is_measured(split: Run) -> None:
    run = finished.finished(split, "halved", predict={"tta": "none"})
    whole = write(run) / "dataset" / "runs" / "halved" / "fold_0" / "last.safetensors"
    size = whole.stat().st_size
    write(run, half=True)
    assert whole.stat().st_size < 0.7 * size
    about = build.read_about(run)
    assert about["weights"] == "fp16" and set(about["half"]) == {"score", "nested"}
    assert about["half"]["score"]["fp16"] == pytest.approx(about["half"]["score"]["fp32"], abs=0.05)


class Gateway:
    """A stand-in of a competition's inference server."""

    def __init__(self, predict: Any) -> None:
        self.predict = predict

    def run_local_gateway(self, paths: tuple[str, ...]) -> None:
        parts = [self.predict(pd.DataFrame({"id": [name]})) for name in ("t1", "t2", "t9")]
        pd.concat(parts).to_csv("submission.csv", index=False)


def test_an_inference_server_answers_as_encode_does(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Against a stand-in of the gateway, which comes with the files of such a competition."""
    submission = run.submission
    gateway = ModuleType("kaggle_evaluation.default_inference_server")
    gateway.DefaultInferenceServer = Gateway  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "kaggle_evaluation", ModuleType("kaggle_evaluation"))
    monkeypatch.setitem(sys.modules, gateway.__name__, gateway)
    monkeypatch.setattr(sys, "argv", ["server.py", str(build.folder_of(run) / "dataset")])
    monkeypatch.chdir(tmp_path)
    text = (build.folder_of(run) / "kernel" / "server.py").read_text()
    for old, new in (("/kaggle/input/COMPETITION", str(run.input)), ("\ninstall(", "\nprint("), (".png", ".tif")):
        assert old in text
        text = text.replace(old, new)
    monkeypatch.setenv("PIPELINE_ROOT", str(tmp_path))  # which it changes
    monkeypatch.setattr(sys, "path", list(sys.path))
    exec(compile(text, "server.py", "exec"), {"__name__": "server"})
    monkeypatch.undo()
    rows = pd.read_csv(tmp_path / "submission.csv", keep_default_na=False, dtype=str)
    assert rows["id"].tolist() == ["t1", "t2", "t9"] and rows["rle"].iloc[2] == ""
    assert "t9: " in capsys.readouterr().out
    wanted = pd.read_csv(submission, keep_default_na=False, dtype=str)["mask"].tolist()
    assert all(_close(one, other) for one, other in zip(rows["rle"][:2], wanted, strict=False))


def _close(one: str, other: str) -> bool:
    """Whether two masks differ in a few pixels at most, as batches of one image do."""
    from pipeline.masks import rle

    return int((rle.decode(one, (40, 60)) != rle.decode(other, (40, 60))).sum()) < 20


@pytest.mark.slow
def test_a_rehearsal_needs_no_network_and_nothing_of_training(run: Run) -> None:
    same, none, one, hidden = rehearsal.rehearse(run, without=OF_TRAINING)
    assert same.said == "the same bytes as encode"
    assert (none.images, one.images, hidden.said) == (0, 1, "3 rows of 3 images, 1 of them broken")
    record = read_json(build.folder_of(run) / "rehearsal.json")
    assert record["borrowed"]["not_for_this_python"] == ["segmentation-models-pytorch", "imagecodecs"]
    assert record["network"] in ("a network namespace without an interface", "sockets blocked in Python")
