"""One tiny competition from raw files to a valid submission, through the real command line; killed once on the way."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from json_events import read_events

from pipeline.masks import rle
from pipeline.masks.metrics import METRICS
from pipeline.masks.overlaps import counts

REPOSITORY = Path(__file__).parents[1]
RECIPE = """
competition: sample
image: {size: [64, 64], fit: stretch, channels: 1}
model: {architecture: Unet, encoder: resnet18, weights: none}
augment:
  - HorizontalFlip: {p: 0.5}
  - RandomBrightnessContrast: {p: 0.5}
train: {folds: [0, 1], epochs: 4, batch_size: 8, schedule: {name: plateau, patience: 0}, early_stopping: 2}
predict: {tta: hflip}
"""


@dataclass(frozen=True)
class Finished:
    root: Path
    recipe: Path
    output: str

    @property
    def folder(self) -> Path:
        return self.root / "work" / "sample" / "tiny"

    def pipeline(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        return pipeline(self.root, *arguments, code=code)


def start(root: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PIPELINE_ROOT": str(root), "OMP_NUM_THREADS": "1"}  # the tests run two at a time
    environment.pop("PIPELINE_INPUT", None)
    command = [sys.executable, "-m", "pipeline", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment, text=True, **pipes)


def pipeline(root: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    process = start(root, *arguments)
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, f"{arguments} ended with {process.returncode}:\n{out}\n{err}"
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    root = tmp_path_factory.mktemp("undisturbed")
    recipe = root / "tiny.yaml"
    recipe.write_text(RECIPE)
    pipeline(root, "sample", "--train", "40", "--test", "10")
    return Finished(root, recipe, pipeline(root, "run", str(recipe)).stdout)


def test_run_ends_with_a_valid_submission(undisturbed: Finished) -> None:
    assert "submissions/tiny.csv" in undisturbed.output
    assert re.search(
        r"\n  verdict         (FINE|CHECK FIRST|DO NOT SUBMIT)\n  honest          dice 0", undisturbed.output
    )
    path = undisturbed.root / "submissions" / "tiny.csv"
    assert undisturbed.pipeline("check", str(path), "--competition", "sample").stdout.endswith("valid\n")
    assert len(pd.read_csv(path)) == 10
    record = json.loads(path.with_suffix(".json").read_text())
    assert record["folds"].keys() == {"0", "1"}
    assert record["folds"]["0"]["weights"]["asked"] == "none"
    truth = undisturbed.root / "input" / "sample" / "truth.csv"
    scored = undisturbed.pipeline("score", str(path), str(truth), "--competition", "sample", "--json").stdout
    assert json.loads(scored)["rows"] == 10
    report = (undisturbed.folder / "report.html").read_text()
    assert len(re.findall("<figcaption>(?:best|median|worst): ", report)) >= 10  # one may be the worst and the median
    assert "<td>contradiction</td><td>drop</td>" in report
    assert "No group, cluster or near-duplicate pair is in two folds." in report
    assert not list(undisturbed.root.rglob("*.partial"))


def test_a_run_says_as_much_as_it_is_asked_to(undisturbed: Finished) -> None:
    quiet = undisturbed.pipeline("report", str(undisturbed.recipe), "--force", "--quiet")
    assert quiet.stdout == quiet.stderr == ""
    assert " GiB of memory" in undisturbed.pipeline("report", str(undisturbed.recipe), "--force", "-v").stderr
    again = undisturbed.pipeline("run", str(undisturbed.recipe), "--quiet")
    assert again.stderr == "" and "  verdict  " in again.stdout


def test_the_report_names_the_command_that_made_it(undisturbed: Finished) -> None:
    settings = ("--name", "other", "--set", "tune.method=fixed")
    undisturbed.pipeline("report", str(undisturbed.recipe), *settings)
    page = (undisturbed.folder.parent / "other" / "report.html").read_text()
    command = f"python -m pipeline run {undisturbed.recipe} --name other --set tune.method=fixed"
    assert f"<pre>{command}</pre>" in page
    assert f"This stage has not run yet: <code>{command} --to train</code>" in page
    assert "The data" in page and "<figcaption>best: " not in page


def test_predictions_carry_the_class_axis(undisturbed: Finished) -> None:
    folds = pd.read_csv(undisturbed.root / "folds" / "sample.csv", dtype={"image_id": str})
    for fold in (0, 1):
        array = np.load(undisturbed.folder / "predictions" / f"oof_fold_{fold}.npy")
        index = pd.read_csv(undisturbed.folder / "predictions" / f"oof_fold_{fold}.csv", dtype=str)
        assert array.dtype == np.uint8
        assert array.shape == ((folds["fold"] == fold).sum(), 1, 64, 64)
        assert set(index["image_id"]) == set(folds.loc[folds["fold"] == fold, "image_id"])


def test_encoding_the_held_out_images_reproduces_the_score(
    undisturbed: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.core.run import open_run
    from pipeline.decode import table
    from pipeline.masks.bootstrap import mean_counts, mean_score
    from pipeline.masks.decision import decide, decision_of
    from pipeline.predictions import blends

    monkeypatch.setenv("PIPELINE_ROOT", str(undisturbed.root))
    monkeypatch.delenv("PIPELINE_INPUT", raising=False)
    run = open_run(str(undisturbed.recipe))
    result = json.loads(run.postprocess.read_text())
    images = table.read_table(run.table, "train").set_index("image_id", drop=False)
    outliers = pd.read_csv(run.outliers, dtype=str)
    scores = []
    for fold in (0, 1):
        blend = blends.out_of_fold(run, fold, blends.plain_of(run))
        for row, image_id in enumerate(blend.ids):
            if image_id in set(outliers.query("reason == 'broken'")["image_id"]):
                continue
            true = table.true_mask(images.loc[image_id], run.competition.classes)
            text = rle.encode(decide(blend.native(row, true.shape[1:]), decision_of(result))[0])
            scores.append(METRICS["dice"](*counts(rle.decode(text, true.shape[1:])[None], true)))
    assert float(mean_score(mean_counts(np.stack(scores)).sum(0))) == result["score"]


def test_a_killed_run_goes_on_to_the_same_weights(
    undisturbed: Finished, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("killed")
    (root / "input").symlink_to(undisturbed.root / "input")
    process = start(root, "run", str(undisturbed.recipe))
    history = root / "work" / "sample" / "tiny" / "fold_0" / "history.csv"
    checkpoint = history.with_name("last.ckpt")
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.2)  # into the second epoch
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (history.parent / "manifest.json").exists()
    status = pipeline(root, "status", str(undisturbed.recipe)).stdout
    assert "fold 0 stopped after epoch" in " ".join(status.split())

    resumed = pipeline(root, "run", str(undisturbed.recipe), "--json")
    assert "resuming from" in resumed.stderr and "  verdict  " in resumed.stderr
    check_events(read_events(resumed.stdout), root)
    for fold in ("fold_0", "fold_1"):
        here, there = (folder / fold for folder in (history.parent.parent, undisturbed.folder))
        hashes = [json.loads((one / "fold.json").read_text())["sha256"] for one in (here, there)]
        assert hashes[0] == hashes[1], fold
        tables = [pd.read_csv(one / "history.csv").drop(columns=["seconds", "train_seconds"]) for one in (here, there)]
        pd.testing.assert_frame_equal(*tables)
        assert not (here / "last.ckpt").exists()
    both = [(folder / "submissions" / "tiny.csv").read_bytes() for folder in (root, undisturbed.root)]
    assert both[0] == both[1]


def check_events(found: list[dict[str, Any]], root: Path) -> None:
    """Checks what a run says that goes on after decode, clean and split, in the middle of a fold."""
    assert found[0]["event"] == "run_started" and found[0]["run"] == "tiny"
    assert [event["event"] for event in found[-4:]] == ["score", "verdict", "paths", "run_finished"]
    stages = {
        name: [event["stage"] for event in found if event["event"] == name]
        for name in ("stage_up_to_date", "stage_started", "stage_finished")
    }
    assert stages["stage_up_to_date"] == ["decode", "clean", "split", "evaluate"]
    assert stages["stage_started"] == stages["stage_finished"]
    assert stages["stage_started"] == ["train", "validate", "tune", "predict", "encode", "report"]
    epochs = [event for event in found if event["event"] == "epoch"]
    last = {event["fold"]: (event["epoch"], event["epochs"]) for event in epochs}
    assert last.keys() == {0, 1} and all(end[0] <= end[1] == 4 for end in last.values())
    assert all(0 <= event["score"] <= 1 and event["seconds"] > 0 for event in epochs)
    paths = found[-2]
    assert all((root / paths[name]).exists() for name in ("submission", "record", "postprocess", "report"))


def test_nothing_runs_twice_and_tuning_never_trains(undisturbed: Finished) -> None:
    again = undisturbed.pipeline("run", str(undisturbed.recipe)).stderr
    assert again.count("up to date") == 9
    status = undisturbed.pipeline("status", str(undisturbed.recipe)).stdout
    assert "everything is up to date" in status
    fixed = undisturbed.pipeline("run", str(undisturbed.recipe), "--set", "tune.method=fixed").stderr
    assert "train: up to date" in fixed
    assert "validate: up to date" in fixed  # only whether the mirrored view is kept is asked again
    assert "tune.method: search → fixed" in fixed
    rules = json.loads((undisturbed.folder / "postprocess.json").read_text())["rules"]
    assert [rule["threshold"] for rule in rules.values()] == [128]
    undisturbed.pipeline("run", str(undisturbed.recipe))


def test_finished_training_is_not_thrown_away(undisturbed: Finished) -> None:
    changed = ["--set", "train.learning_rate=0.01"]
    ended = undisturbed.pipeline("run", str(undisturbed.recipe), *changed, "--json", code=2)
    error, stopped = read_events(ended.stdout)[-1], ended.stderr
    assert (error["event"], error["exit_code"]) == ("error", 2) and stopped.endswith(f"error: {error['message']}\n")
    assert "train.learning_rate: 0.001 → 0.01" in stopped
    assert "--name NAME" in stopped and "--force" in stopped
    assert "Traceback" not in stopped
    assert (undisturbed.folder / "fold_0" / "best.safetensors").exists()
