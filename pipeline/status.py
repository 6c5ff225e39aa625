"""What is up to date, what is next, and whether this machine is ready."""

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import pandas as pd
from rich.table import Table

from pipeline import stages
from pipeline.core import driver, files, freshness
from pipeline.core.config import competition, recipe
from pipeline.core.console import memory_text
from pipeline.core.driver import State
from pipeline.core.errors import PipelineError
from pipeline.core.files import input_root
from pipeline.core.run import Run, input_folder
from pipeline.core.version import program

PACKAGES = [
    "torch", "torchvision", "lightning", "segmentation-models-pytorch", "albumentations", "opencv-python-headless",
]  # fmt: skip


def status_table(run: Run) -> tuple[Table, str | None]:
    """Returns a table with a row a stage, and the first stage that must run (None: all are up to date)."""
    shown = Table(title=f"{run.name} ({files.shown(run.folder)})", title_justify="left")
    for column in ("stage", "state", "finished", "seconds"):
        shown.add_column(column, justify="right" if column == "seconds" else "left")
    following: str | None = None
    for stage in stages.STAGES:
        found = driver.states(run, stage)
        if not found:
            continue
        todo = [state for state in found if state.reasons and not state.kept]
        text = _describe(run, found, todo)
        if following and not todo:
            text += f", until {following} has run"
        shown.add_row(stage, text, *_times(found))
        following = following or (stage if todo else None)
    return shown, following


def examine() -> Iterator[str]:
    """Yields lines about versions, device, data and the next command."""
    for name in PACKAGES:
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            yield f"{name} MISSING: ./run_all.sh installs it"
    from pipeline.networks import device

    try:
        compute = device.detect()
        yield f"device {compute.accelerator}, precision {compute.precision}: {compute.reason}"
    except PipelineError as error:
        yield f"device: {error}"
    yield f"root {files.root()}, input {input_root()}"
    known = sorted(file.stem for file in competition.FOLDER.glob("*.yaml"))
    here = [name for name in known if input_folder(competition.load_competition(name)).is_dir()]
    for name in known:
        yield f"competition {name}: raw files {'found' if name in here else 'not there'}"
    recipes = sorted(file.stem for file in recipe.FOLDER.glob("*.yaml"))
    possible = [name for name in recipes if recipe.load_recipe(name).competition in here]
    ready = next((name for name in possible if name != "sample"), "sample")
    yield f"next: {program()} {'sample' if not here else f'run {ready} --quick'}"


def _describe(run: Run, found: list[State], todo: list[State]) -> str:
    if not todo:
        kept = [reason.text for state in found if state.kept for reason in state.reasons]
        return "up to date" + (f" (kept although {'; '.join(dict.fromkeys(kept))})" if kept else "")
    reasons = dict.fromkeys(reason.text for state in todo for reason in state.reasons)
    count = f"{len(found) - len(todo)} of {len(found)} done; " if len(found) > 1 else ""
    return count + "; ".join([*list(reasons)[:3], *_unfinished(run, todo)])


def _unfinished(run: Run, todo: list[State]) -> list[str]:
    texts = []
    for state in todo:
        if state.step.stage == "train":
            history = state.step.manifest.with_name("history.csv")
            if history.with_name("last.ckpt").exists() and history.exists():
                texts.append(
                    f"{state.step.title.removeprefix('train ')} stopped after epoch {len(pd.read_csv(history))}"
                )
    return texts


def _times(found: list[State]) -> tuple[str, str]:
    records = list(filter(None, (freshness.read_manifest(state.step.manifest) for state in found)))
    if not records:
        return "", ""
    return max(record["finished"] for record in records), f"{sum(record['seconds'] for record in records):.1f}"


def summary(run: Run, seconds: float) -> Iterator[str]:
    """Yields what a person wants to know when a run is done, line by line: scores, where the results lie, what is next.

    Args:
        run: the run.
        seconds: how long it took.
    """
    read_json, shown = files.read_json, files.shown
    yield f"{run.name}: done in {seconds // 60:.0f} min {seconds % 60:.0f} s, {memory_text()}"
    if not (run.record.exists() and run.submission.exists()):
        return
    expect = read_json(run.record)["expect"]
    remark = f"; {expect['remark']}" if expect.get("remark") else ""
    yield f"  submission      {shown(run.submission)}"
    yield f"  report          {shown(run.report)}"
    ends = "{:.4f} to {:.4f}".format(*expect["interval_95"]) if expect["interval_95"] else "not known: one group alone"
    yield f"  out-of-fold     {expect['metric']} {expect['score']:.4f}  (95 % interval {ends}{remark})"
    yield f"  nested estimate {expect['metric']} {expect['nested']:.4f}  (chosen without the fold it scores)"
    result = read_json(run.postprocess)
    honest = result["scores"]["fold_model"]
    if honest["epoch_optimism"]:
        less = f"less {honest['epoch_optimism']:.4f}, which choosing the epoch flatters"
        yield f"  honest          {expect['metric']} {honest['score']:.4f}  ({less})"
    for name, rows in result["rows"].items():
        if rows["images"] not in (0, result["images"]):
            yield f"  {name + ' rows':15} {expect['metric']} {rows['score']:.4f}  ({rows['images']} images)"
    if (run.folder / "test.json").exists():
        test = read_json(run.folder / "test.json")
        known = f"{test['images']} images with known truth{remark}"
        yield f"  test set        {test['metric']} {test['score']:.4f}  ({known})"
    slug = run.competition.kaggle
    path = shown(run.submission)
    following = f'kaggle competitions submit -c {slug} -f {path} -m "{run.name}"' if slug else ""
    if run.competition.name == "sample":
        following = f"{program()} score {path} {shown(run.input)}/truth.csv --competition sample"
    yield f"  next            {following or f'upload {path}'}"
