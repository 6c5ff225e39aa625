"""Predicts the test set of a code competition with a bundle, and writes the submission file.

    python -m pipeline infer BUNDLE [--time 8h] [--to submission.csv]

reads   BUNDLE, as build.py writes it; the competition's input folder, under /kaggle/input or $PIPELINE_INPUT
writes  submission.csv (or another file format), and next to it inference.json: models, notes and times

The stages decode, predict and encode do the work. This module adds: a valid file with the same answer for every image
is written first; the networks are checked with the canary; the work is planned to fit the time limit; predictions of a
process that failed or was stopped are used; and while the hidden test set is scored (KAGGLE_IS_COMPETITION_RERUN), no
error is raised once the file exists.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.markup import escape

from pipeline.core import deadline, driver, freshness
from pipeline.core.config.competition import Competition
from pipeline.core.config.submission_settings import ENDINGS, file_of_name
from pipeline.core.console import duration, say, warn
from pipeline.core.errors import PipelineError, first_line
from pipeline.core.files import read_json, read_record, root, write_json, writing
from pipeline.core.results import read_tuned
from pipeline.core.run import Run
from pipeline.decode import table
from pipeline.decode.readers.registry import reader_of
from pipeline.encode import file_kinds, submission
from pipeline.kaggle.bundle import budget, leftovers, project
from pipeline.kaggle.bundle.scratch import scratch
from pipeline.kaggle.push import NOTE
from pipeline.masks.geometry import geometry_of
from pipeline.masks.scale import scale_of
from pipeline.predictions import blends, kept_views

RERUN = "KAGGLE_IS_COMPETITION_RERUN"
"""Environment variable that Kaggle sets while it scores the hidden test set."""
KAGGLE_INPUT = Path("/kaggle/input")
LIMIT = 2 / 255
"""Largest allowed mean difference of the canary's probabilities."""
TIME_UP, NO_TIME = "the time was up", "no time is left"
GRACE = 15.0
"""Seconds that a process gets to end when its time is up."""
PROBED = 4
"""Number of images on which encoding is timed."""
FIXED, RESERVE = 10.0, 3.0
"""Time planned for encoding and checking the file: a fixed number of seconds, plus a multiple of the measured encoding
time."""


@dataclass
class Inference:
    """The state of one inference, with its notes and times."""

    bundle: Path
    target: Path
    run: Run
    deadline: float | None
    """End of the available time, as time.time(); None: no limit."""
    notes: list[str] = field(default_factory=list)
    encoding: float | None = None
    """Seconds reserved for encoding; None until measured."""
    times: dict[str, float] = field(default_factory=dict)
    """Seconds spent in each part."""
    began: float = field(default_factory=time.time)

    def left(self) -> float:
        """Returns the remaining time in seconds."""
        return float("inf") if self.deadline is None else self.deadline - time.time()

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Adds the duration of the with-block to the time of a part."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.times[part] = round(self.times.get(part, 0.0) + time.perf_counter() - began, 2)

    def note(self, text: str) -> None:
        """Prints an important note, and stores it for inference.json."""
        self.notes.append(text)
        warn(f"[yellow]{NOTE}{escape(text)}[/yellow]")


def infer(bundle: Path, target: Path, limit: str | None = None, started: float | None = None) -> None:
    """Writes the submission for the test images that are now in the competition's input folder.

    Args:
        bundle: the folder with bundle.json.
        target: the file to write; its suffix selects the format.
        limit: time limit, for example 8h; `none`: no limit; default: the bundle's.
        started: start of this time, in seconds since 1970; default: now.

    Raises:
        PipelineError: the bundle is invalid, or the competition's data are missing. Unless the hidden test set is being
            scored, also if the networks cannot predict.
    """
    if file_of_name(target.name) is None:
        raise PipelineError(f"--to {target}: expected a name that ends in .csv, .parquet, .csv.gz, .zip or .json.")
    about = read_record(bundle / "bundle.json")
    if about.get("format") != 1:
        raise PipelineError(
            f"{bundle / 'bundle.json'} is missing, damaged or of another version: attach the bundle's dataset."
        )
    needed = [bundle / name for name in about["files"] if not name.startswith("wheels/")]
    if lacking := next((path for path in needed if not path.exists()), None):
        raise PipelineError(f"{lacking} is missing: upload the bundle again with `--dir-mode zip`, or write it again.")
    limit = limit or about.get("time")
    seconds = None if limit is None else deadline.limit_of(str(limit))
    until = None if seconds is None else (started or time.time()) + seconds
    os.environ["PIPELINE_INPUT"] = str(_input_root())
    with scratch() as folder:
        run = project.lay_out(bundle, about["run"], folder)
        _check_input(run)
        state = Inference(bundle, target, run, until)
        items = _write_first(state)
        try:
            if items:
                _predict_and_encode(state)
        except Exception as error:
            if not os.environ.get(RERUN):
                raise
            state.note(
                f"the file with the usual answer for every image stays: {type(error).__name__}: {first_line(error)}"
            )
        _write_record(state, about)


def _input_root() -> Path:
    given = os.environ.get("PIPELINE_INPUT")
    return Path(given).absolute() if given else KAGGLE_INPUT if KAGGLE_INPUT.is_dir() else root() / "input"


def _check_input(run: Run) -> None:
    if not run.input.is_dir() or not any(run.input.iterdir()):
        name = run.competition.kaggle or run.competition.name
        raise PipelineError(
            f"the competition's data are not attached (no {run.input}): in the notebook's editor choose Add Input, the "
            f"competition {name}, and run it again."
        )


# --- the first file --------------------------------------------------------------------------------------------------


def _write_first(state: Inference) -> int:
    """Writes the file with the usual answer for every image, and returns how many test images there are."""
    run = state.run
    result = read_tuned(run)
    try:
        items = reader_of(run.competition).list_items(run.competition, run.input, ["test"]).items
    except PipelineError as error:
        say(f"no test image: {error}")
        items = []
    present = [item for item in items if (run.input / item.path).exists()]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"submission{ENDINGS[run.competition.submission_file]}"
        try:
            ids = list(dict.fromkeys(item.image_id for item in items))
            rows = submission.write_constant(path, run.competition, run.input, ids, submission.usual_class(result))
        except PipelineError as error:
            if not present:
                raise
            state.note(f"no file could be written before the images are read: {error}")
            return len(present)
        publish(path, state.target, run.competition)
    say(f"{rows} rows with the usual answer → {state.target}")
    if not present:
        state.note(
            "no test image is here: the hidden test set will take this one's place, and the file has no prediction."
        )
    return len(present)


def publish(path: Path, target: Path, competition: Competition) -> None:
    """Copies a submission to its final path, atomically, and converts it to the file format of that name."""
    file = file_of_name(target.name)
    with writing(target) as temporary:
        if file == file_of_name(path.name) or file is None:
            shutil.copyfile(path, temporary)
        else:
            file_kinds.convert(path, temporary, file, competition.submission.format == "labels")


# --- the work --------------------------------------------------------------------------------------------------------


def _predict_and_encode(state: Inference) -> None:
    with state.timed("decode"):
        for other in project.predicting(state.run):
            driver.run_stage(other, "decode", mention=False, subset="test")
    images = table.read_table(state.run.test_table)
    if (images["fault"] != "").all():
        state.note("no test image can be read: the file keeps the usual answer for every image.")
        return
    with state.timed("probe"):
        _check_canary(state)
    _keep_to_time(state, images)
    with state.timed("predict"):
        _predict(state, images)
    state.run = leftovers.take(state.run, images, state.note)
    with state.timed("encode"):
        driver.run_stage(state.run, "encode")
    publish(state.run.submission, state.target, state.run.competition)
    for text in read_json(state.run.record)["warnings"]:
        say(f"  {NOTE}{text}")


def _predict(state: Inference, images: pd.DataFrame) -> None:
    began = time.time()
    stopped = _run_part(state, "predict", state.left() - _encoding(state, images))
    if stopped:
        state.note(f"predicting ended after {duration(time.time() - began)}: {stopped}")
    if stopped and stopped not in (TIME_UP, NO_TIME):
        _again(state, images)


def _again(state: Inference, images: pd.DataFrame) -> None:
    """Predicts again the images that a failed process has not predicted, in fp32 and in smaller batches."""
    for other in project.predicting(state.run):
        smaller = max(1, other.recipe.predict.batch_size // 4)
        project.change(other, train={"precision": "32"}, predict={"batch_size": smaller})
    state.note("predicting again, in fp32 and in smaller batches.")
    stopped = _run_part(state, "predict", state.left() - _encoding(state, images))
    if stopped and not os.environ.get(RERUN):
        raise PipelineError(f"the networks cannot predict here: {stopped}")


def _run_part(state: Inference, part: str, seconds: float = float("inf")) -> str:
    """Runs a part in a separate process; returns the reason why it failed, "" if it succeeded."""
    folder = root()
    request = {"run": state.run.name, "bundle": str(state.bundle.resolve()), "timed": state.deadline is not None}
    request |= {"process": os.getpid()}
    write_json(folder / "asked.json", request)
    if seconds <= 0:
        return NO_TIME
    fault = folder / project.FAULT
    fault.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pipeline", "infer-part", part, str(folder)]
    process = subprocess.Popen(command)
    try:
        code = process.wait(None if seconds == float("inf") else seconds)
    except subprocess.TimeoutExpired:
        _end(process)
        return TIME_UP
    except BaseException:
        _end(process)
        raise
    if code == 0:
        return ""
    if message := read_record(fault).get("said"):
        return str(message).rstrip(".")
    return f"killed by signal {-code}, probably out of memory" if code < 0 else f"exit code {code}, see the error above"


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _check_canary(state: Inference) -> None:
    """Compares the predictions for the canary with those stored in the bundle. If they differ, fp32 is tried.

    Raises:
        PipelineError: they differ in fp32 too.
    """
    for precision in (None, "32"):
        if precision:
            for other in project.predicting(state.run):
                project.change(other, train={"precision": precision})
        if stopped := _run_part(state, "probe", state.left()):
            text, differ = f"the canary could not be predicted ({stopped})", False
            if stopped in (TIME_UP, NO_TIME):
                state.note(f"{text}.")
                return
        else:
            probe = read_json(root() / "probe.json")
            largest = max(probe["differences"].values())
            say(f"canary: {probe['precision']}, because {probe['device']}; mean difference {255 * largest:.2f}/255")
            if largest <= LIMIT:
                return
            text = f"predictions differ by {255 * largest:.1f}/255 on average from the bundle's; at most 2 are allowed"
            differ = True
        certain = precision or (root() / project.FAULT).exists()  # a reported fault does not depend on the precision
        state.note(f"{text}{'' if certain else '; trying fp32'}")
        if certain:
            break
    if os.environ.get(RERUN):
        return
    if differ:
        raise PipelineError(
            f"{text}, in fp32 too: a package of this image has another version than when the bundle was written. "
            "Compare the versions in bundle.json and pin the image, or write the bundle again."
        )
    raise PipelineError(f"{text}.")


def _keep_to_time(state: Inference, images: pd.DataFrame) -> None:
    """Leaves out views, seeds and folds if there is not enough time for all of them."""
    probe, runs = read_record(root() / "probe.json"), project.predicting(state.run)
    if not probe.get("seconds"):
        return
    works = [
        budget.Work(
            run.name, kept_views.views_of(run), len(run.members(run.test_folds()[0])), len(run.test_folds()),
            len(run.weights(run.members(run.test_folds()[0])[0])), probe["seconds"][run.name],
        )
        for run in runs
    ]  # fmt: skip
    rates = ", ".join(f"{1 / max(work.seconds, 1e-9):.3g} images/s ({work.name})" for work in works)
    say(f"speed: {rates} per network and view, {probe['devices']} at once")
    start = state.times.get("probe", 0.0)  # upper bound of the time to start a process
    available = state.left() - _encoding(state, images) - start
    chosen, text = budget.plan(works, len(images), probe["devices"], available)
    if not text:
        return
    state.note(text)
    for run, before, after in zip(runs, works, chosen, strict=True):
        train: dict[str, Any] = {"seeds": list(run.recipe.train.seeds[: after.seeds])}
        if not run.recipe.train.final:
            train["folds"] = run.trained_folds()[: after.folds]
        sections = {"train": train} | ({"predict": {"tta": after.views}} if before.views != after.views else {})
        project.change(run, **sections)
    state.run = project.opened(state.run.name, root())


def _encoding(state: Inference, images: pd.DataFrame) -> float:
    """The time in seconds reserved for encoding, measured once on masks that cover half of the image."""
    if state.deadline is None:
        return 0.0
    if state.encoding is None:
        readable = images[images["fault"] == ""]
        state.encoding = FIXED + RESERVE * _seconds_to_encode(state.run, readable.head(PROBED + 1)) * len(images)
    return state.encoding


def _seconds_to_encode(run: Run, sample: pd.DataFrame) -> float:
    """Seconds per image to encode. The first image, which loads code, is not counted if there are more."""
    parts, scale = [], scale_of(run.competition)
    for other in project.predicting(run):
        height, width = other.recipe.image.stored
        ramp = np.broadcast_to(np.linspace(0, 1, width, dtype=np.float32), (height, width))
        array = np.broadcast_to(scale.stored(ramp), (len(sample), len(run.competition.classes), height, width))
        parts.append(blends.RunPredictions((array,) * len(other.test_folds()), geometry_of(other.recipe.image), None))
    weights = tuple(1 / len(parts) for _ in parts)
    blend = blends.Blend(sample["image_id"].tolist(), tuple(parts), weights, scale=scale)
    want = submission.expected(run.competition, run.input, run.competition_folder)
    seconds = []
    for row, image in enumerate(sample.itertuples()):
        began = time.perf_counter()
        masks = blend.native(row, run.competition.scored_shape((int(image.height), int(image.width))))
        submission.texts_of(str(image.image_id), (masks >= scale.largest / 2).astype(np.uint8), want)
        seconds.append(time.perf_counter() - began)
    return float(np.mean(seconds[1:] or seconds))


# --- the record ------------------------------------------------------------------------------------------------------


def _write_record(state: Inference, about: dict[str, Any]) -> None:
    """Writes inference.json. A failure is only reported, because the submission is already written."""
    seconds = round(time.time() - state.began, 1)
    record = {
        "bundle": {key: about.get(key) for key in ("run", "made", "commit", "expect")},
        "seconds": seconds,
        "parts": state.times,
        "sha256": freshness.hash_file(state.target) if state.target.exists() else None,
        "notes": state.notes,
        "environment": freshness.environment(),
    }
    try:
        write_json(state.target.with_name("inference.json"), record)
    except (OSError, PipelineError) as error:
        say(f"inference.json could not be written: {error}")
    say(f"{state.target}: done in {duration(seconds)}")
