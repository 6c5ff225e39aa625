"""Datasets, kernels, sessions and trainings on a fake Kaggle."""

import io
import json
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY, Tiny
from kaggle_server import TOKEN, USER, Kaggle, serve

from pipeline.core.config.recipe import load_recipe
from pipeline.core.errors import PipelineError
from pipeline.core.files import write_json
from pipeline.core.run import Run
from pipeline.kaggle import remote, session, training_kernel
from pipeline.kaggle.client import connect
from pipeline.kaggle.push import push
from pipeline.kaggle.training_kernel import OUTPUT, write_kernel


@pytest.fixture
def kaggle(tmp_path: Path) -> Iterator[Kaggle]:
    yield from serve(tmp_path / "home")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """What `bundle` writes, as far as pushing it goes."""
    folder = tmp_path / "bundle"
    (folder / "weights").mkdir(parents=True)
    (folder / "weights" / "fold_0.safetensors").write_bytes(b"weights")
    (folder / "bundle.json").write_text("{}")
    cells = [{"cell_type": "code", "source": ["1"], "outputs": [], "metadata": {}, "execution_count": None}]
    (folder / "inference.ipynb").write_text(json.dumps({"cells": cells}))
    named = {"id": "INSERT_USERNAME/tiny-bundle", "title": "tiny-bundle"}
    write_json(folder / "dataset-metadata.json", named | {"licenses": [{"name": "CC0-1.0"}]})
    write_json(folder / "kernel-metadata.json", {
        "id": "INSERT_USERNAME/tiny-inference", "title": "tiny-inference", "code_file": "inference.ipynb",
        "language": "python", "kernel_type": "notebook", "enable_internet": False, "enable_gpu": True,
        "dataset_sources": ["INSERT_USERNAME/tiny-bundle"], "competition_sources": ["tiny-cup"],
    })  # fmt: skip
    return folder


# --- a bundle --------------------------------------------------------------------------------------------------------


def test_a_bundle_is_pushed_when_its_weights_are_ready(kaggle: Kaggle, bundle: Path, tmp_path: Path) -> None:
    kaggle.busy, kaggle.kernel_files = 2, {"submission.csv": b"id,mask\n"}
    for version in (1, 2):
        pushed = push(bundle, f"try {version}", tmp_path / "out")
        assert (pushed.kernel, pushed.version, pushed.dataset_version) == (f"{USER}/tiny-inference", version, version)
        assert pushed.output.read_bytes() == b"id,mask\n"
    assert len(kaggle.calls("CreateDataset")) == len(kaggle.calls("CreateDatasetVersion")) == 1
    (first, _) = kaggle.calls("SaveKernel")
    assert first["datasetDataSources"] == [f"{USER}/tiny-bundle"] and first["enableInternet"] is False
    assert {token.partition("-")[2] for token in kaggle.uploads} == {
        "bundle.json", "inference.ipynb", "weights.zip"
    }  # fmt: skip


def test_the_kernel_waits_for_the_new_version(kaggle: Kaggle, bundle: Path, tmp_path: Path) -> None:
    """Kaggle says `ready` of the old version while the new one is processed."""
    kaggle.kernel_files = {"submission.csv": b"x"}
    push(bundle, "first", tmp_path / "out")
    kaggle.busy = 3
    asked = len(kaggle.asked)
    push(bundle, "second", tmp_path / "out")
    methods = [method for method, _ in kaggle.asked[asked:]]
    upload = methods.index("CreateDatasetVersion")
    assert methods[upload:].count("GetDatasetStatus") == 4
    assert methods.index("SaveKernel") > upload + 7


def test_a_kernel_that_fails_shows_its_log(kaggle: Kaggle, bundle: Path, tmp_path: Path, capsys: Any) -> None:
    kaggle.kernel_ends = {"status": "ERROR", "failureMessage": "Notebook Threw Exception"}
    kaggle.log.append({"stream_name": "stderr", "time": 2.0, "data": "Traceback: no such weights\n"})
    with pytest.raises(PipelineError, match="tiny-inference, version 1, failed: Notebook Threw Exception"):
        push(bundle, "first", tmp_path / "out")
    assert "Traceback: no such weights" in (said := capsys.readouterr().err) and TOKEN not in said


def test_what_is_checked_of_a_commit_run(kaggle: Kaggle, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="did not write submission.csv"):
        push(bundle, "first", tmp_path / "out")
    kaggle.kernel_files = {"submission.csv": b"x"}
    with pytest.raises(PipelineError, match="that is not valid: row 2: no mask"):
        push(bundle, "first", tmp_path / "out", faults=lambda path: ["row 2: no mask"])
    kaggle.invalid = {"invalidCompetitionSources": ["tiny-cup"]}
    with pytest.raises(PipelineError, match="pushed without tiny-cup, which does not exist on Kaggle"):
        push(bundle, "first", tmp_path / "out")
    kaggle.invalid = {"error": "Notebook is too large."}
    with pytest.raises(PipelineError, match="rejects the kernel ada/tiny-inference: Notebook is too large."):
        push(bundle, "first", tmp_path / "out")


def test_no_bundle_and_an_upload_that_breaks_off(kaggle: Kaggle, bundle: Path, tmp_path: Path) -> None:
    kaggle.upload_status = 400
    with pytest.raises(PipelineError, match="Could not upload the dataset ada/tiny-bundle: Upload unsuccessful"):
        push(bundle, "first", tmp_path / "out")
    assert not kaggle.datasets
    (bundle / "dataset-metadata.json").unlink()
    with pytest.raises(PipelineError, match="has no dataset-metadata.json: `bundle` writes it"):
        push(bundle, "first", tmp_path / "out")


def test_an_upload_whose_connection_is_cut_ends_with_a_sentence(
    kaggle: Kaggle, bundle: Path, tmp_path: Path, capsys: Any
) -> None:
    kaggle.upload_status = 0
    with pytest.raises(PipelineError, match="was interrupted 3 times: try again later"):
        push(bundle, "first", tmp_path / "out")
    assert capsys.readouterr().err.count("weights.zip was interrupted") == 3 and not kaggle.datasets


def test_the_client_leaves_standard_input_open(tmp_path: Path) -> None:
    """Importing it without a token calls the builtin exit(), which closes standard input."""
    pytest.importorskip("kaggle")
    code = (
        "from pipeline.kaggle import client\nclient._client_class()\n"
        "try: client.connect()\nexcept client.PipelineError as error: print(str(error)[:30])\nprint(input())"
    )
    environment = {"HOME": str(tmp_path), "PATH": "", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", code], input="yes\n", env=environment, cwd=tmp_path, capture_output=True, text=True,
        timeout=100,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1:] == ["yes"], done.stderr


# --- a session -------------------------------------------------------------------------------------------------------


def test_a_session_is_saved_and_put_back(kaggle: Kaggle, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny.run("decode", "clean", "split")
    (run.fold_folder(0)).mkdir(parents=True)
    (run.fold_folder(0) / "last.ckpt").write_bytes(b"an epoch")
    (run.folder / "bundle" / "dataset").mkdir(parents=True)
    (run.folder / "bundle" / "dataset" / "bundle.json").write_text("{}")  # made again by one command
    said = session.save("tiny-session", "after an epoch")
    assert f"as {USER}/tiny-session, version 1" in said
    (content,) = kaggle.uploads.values()
    names = zipfile.ZipFile(io.BytesIO(content)).namelist()
    assert "work/tiny/small/fold_0/last.ckpt" in names and "folds/tiny.csv" in names
    assert not [name for name in names if "pixels_" in name or "/bundle/" in name or name.endswith(".lock")]
    with pytest.raises(PipelineError, match="exist already .* --force overwrites them"):
        session.restore("tiny-session")
    other = tiny.root / "next"
    monkeypatch.setenv("PIPELINE_ROOT", str(other))
    assert f"restored {len(names)} files" in session.restore(f"{USER}/tiny-session")
    assert (other / "work/tiny/small/fold_0/last.ckpt").read_bytes() == b"an epoch"
    assert not [path for path in other.iterdir() if path.name.startswith(".")]


def test_an_attached_session_needs_no_network(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.run("decode")
    (tiny.root / "input" / "tiny-session").mkdir()
    session.pack(session.session_files(), tiny.root / "input" / "tiny-session" / session.PACK)
    monkeypatch.setenv("PIPELINE_ROOT", str(tiny.root / "next"))
    session.restore("ada/tiny-session")
    assert (tiny.root / "next" / "work" / "tiny" / "images.parquet").exists()
    with zipfile.ZipFile(tiny.root / "input" / "tiny-session" / session.PACK, "a") as opened:
        opened.writestr("../evil.txt", "")
    with pytest.raises(PipelineError, match="which does not belong to a session; nothing was restored"):
        session.restore("tiny-session", force=True)


# --- a training ------------------------------------------------------------------------------------------------------


@pytest.fixture
def ready(tiny: Tiny) -> Run:
    tiny.settings["kaggle"] = "tiny-cup"
    tiny.recipe |= {"train": {"epochs": 3, "folds": [0, 1]}}
    tiny.save()
    return tiny.run("decode", "clean", "split")


def test_the_kernel_holds_all_that_a_run_needs(ready: Run, tmp_path: Path) -> None:
    write_kernel(ready, tmp_path / "kernel", USER, "NvidiaTeslaT4", "8.5h")
    metadata = json.loads((tmp_path / "kernel" / "kernel-metadata.json").read_text())
    assert metadata["id"] == f"{USER}/train-tiny-small" and metadata["competition_sources"] == ["tiny-cup"]
    assert metadata["machine_shape"] == "NvidiaTeslaT4"
    source = (tmp_path / "kernel" / "train.py").read_text()
    compile(source, "train.py", "exec")
    assert '"run", str(home / "small.yaml"), "--to", "validate", "--stop-after", "8.5h"' in source
    with tarfile.open(fileobj=io.BytesIO(training_kernel._payload(ready))) as payload:
        payload.extractall(tmp_path / "home", filter="data")
    assert (tmp_path / "home" / "root" / "folds" / "tiny.csv").read_bytes() == ready.folds_file.read_bytes()
    assert (tmp_path / "home" / "pipeline" / "__main__.py").exists()
    recipe = load_recipe(str(tmp_path / "home" / "small.yaml"))
    assert recipe.train == ready.recipe.train and recipe.image == ready.recipe.image and recipe.name == "small"
    competition = yaml.safe_load((tmp_path / "home" / "tiny.yaml").read_text())
    assert competition["kaggle"] == "tiny-cup" and competition["columns"] == {"rle": "mask"}


def trained_pack(run: Run, folder: Path, name: str = "last.safetensors") -> bytes:
    """What such a kernel leaves."""
    path = folder / OUTPUT
    with zipfile.ZipFile(path, "w") as opened:
        for fold in (0, 1):
            opened.writestr(f"work/tiny/{run.name}/fold_{fold}/{name}", b"weights")
        opened.writestr("folds/tiny.csv", run.folds_file.read_bytes())
    return path.read_bytes()


def test_a_run_is_trained_there_and_fetched(
    kaggle: Kaggle, ready: Run, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not remote.train(ready, "8h", "NvidiaTeslaT4", None, False)  # nobody waits without a terminal
    monkeypatch.setattr(time, "localtime", lambda *_: time.gmtime(2e9))  # a kernel is known by what it holds
    assert not remote.train(ready, "8h", "NvidiaTeslaT4", None, False)
    assert len(kaggle.calls("SaveKernel")) == 1
    assert kaggle.calls("SaveKernel")[0]["machineShape"] == "NvidiaTeslaT4"
    kaggle.busy, kaggle.kernel_files = 2, {OUTPUT: trained_pack(ready, tmp_path)}
    assert remote.train(ready, "8h", "NvidiaTeslaT4", 5.0, False)
    assert (ready.fold_folder(0) / "last.safetensors").read_bytes() == b"weights"
    assert remote.train(ready, "8h", "NvidiaTeslaT4", 5.0, False) and len(kaggle.calls("SaveKernel")) == 1
    assert "canary: largest difference 0/255" in capsys.readouterr().err  # the log is followed


def test_a_training_goes_on_in_the_next_session(kaggle: Kaggle, ready: Run, tmp_path: Path) -> None:
    kaggle.kernel_files = {OUTPUT: trained_pack(ready, tmp_path, "last.ckpt")}
    assert not remote.train(ready, "8h", "NvidiaTeslaT4", 5.0, False)  # its time was up
    kaggle.kernel_files = {OUTPUT: trained_pack(ready, tmp_path)}
    assert remote.train(ready, "8h", "NvidiaTeslaT4", 5.0, False)
    first, second = kaggle.calls("SaveKernel")
    assert "datasetDataSources" not in first and second["datasetDataSources"] == [f"{USER}/train-tiny-small-state"]
    (state,) = (io.BytesIO(content) for content in kaggle.uploads.values())
    names = zipfile.ZipFile(state).namelist()
    assert "work/tiny/small/fold_1/last.ckpt" in names and not [name for name in names if "/kaggle/" in name]


def test_training_of_this_machine_stays(kaggle: Kaggle, ready: Run) -> None:
    ready.fold_folder(0).mkdir(parents=True)
    (ready.fold_folder(0) / "last.ckpt").write_bytes(b"")
    with pytest.raises(
        PipelineError, match="contains training done on this machine: train another run on Kaggle with `--name"
    ):
        remote.train(ready, "8h", "NvidiaTeslaT4", None, False)


def test_a_training_that_fails_can_be_tried_again(kaggle: Kaggle, ready: Run, tmp_path: Path) -> None:
    kaggle.kernel_ends = {"status": "ERROR"}
    with pytest.raises(PipelineError, match="train-tiny-small, version 1, failed: see its log above"):
        remote.train(ready, "8h", "NvidiaTeslaT4", 5.0, False)
    kaggle.kernel_ends, kaggle.kernel_files = {"status": "COMPLETE"}, {OUTPUT: b"no archive"}
    with pytest.raises(PipelineError, match=r"trained.segpipe of ada/train-tiny-small is damaged"):
        remote.train(ready, "8h", "NvidiaTeslaT4", 5.0, False)
    assert len(kaggle.calls("SaveKernel")) == 2
    kaggle.kernel_files = {OUTPUT: trained_pack(ready, tmp_path)}
    assert remote.train(ready, "8h", "NvidiaTeslaT4", 5.0, False) and len(kaggle.calls("SaveKernel")) == 2


def test_what_lies_on_this_machine_is_not_taken_along(ready: Run, tmp_path: Path) -> None:
    from dataclasses import replace

    model = ready.recipe.model.model_copy(update={"weights": "/data/resnet34.safetensors"})
    other = replace(ready, recipe=ready.recipe.model_copy(update={"model": model}))
    with pytest.raises(PipelineError, match="but model.weights refers to files of this machine"):
        write_kernel(other, tmp_path, USER, "NvidiaTeslaT4", "8h")


def test_the_account_is_known(kaggle: Kaggle) -> None:
    from pipeline.kaggle.client import user_of

    assert user_of(connect()) == USER
