"""The status of a run (stages, summary, next command), and the check of this machine (`doctor`)."""

import shlex
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from pipeline import stages
from pipeline.core import driver, events, files, freshness
from pipeline.core.config import raw_layouts, recipe, recipe_files
from pipeline.core.console import exact_duration, link, loading_torch, memory_text
from pipeline.core.driver import State
from pipeline.core.errors import PipelineError
from pipeline.core.files import input_root
from pipeline.core.plan import FIRST, find_clock
from pipeline.core.results import read_test_scores
from pipeline.core.run import Run, input_folder
from pipeline.core.trainings import epochs_of
from pipeline.core.verdict import Judged, constants, judge, lines, next_steps, of_what, step_lines, tuned, wrapped
from pipeline.core.version import program
from pipeline.core.written import if_sound

PACKAGES = [
    "torch", "torchvision", "lightning", "segmentation-models-pytorch", "albumentations", "opencv-python-headless",
]  # fmt: skip

NOTHING = {"evaluate": "nothing to do: the YAML names no true masks of the test images"}
NO_TEST_SET = "nothing to do: the competition has no test set (`test: null`)"
"""Texts for stages without work in a run. Stages that external predictions replace are not listed at all."""

COLOURS = {"fine": "green", "check first": "yellow", "do not submit": "red"}


def status_table(run: Run) -> tuple[Table, str | None]:
    """Returns a table with one row per stage, and the first stage that must run (None: all are up to date)."""
    table = Table(title=Text(f"{run.name} ({files.shown(run.folder)})"), title_justify="left")
    for column in ("stage", "state", "finished", "seconds"):
        table.add_column(column, justify="right" if column == "seconds" else "left")
    next_stage: str | None = None
    for stage in stages.STAGES:
        states = driver.states(run, stage)
        if not states:
            if stage in stages.ANSWER_FOR_TEST and not run.competition.has_test:
                table.add_row(stage, NO_TEST_SET, "", "")
            elif stage in NOTHING:
                table.add_row(stage, NOTHING[stage], "", "")
            continue
        todo = [state for state in states if state.reasons and not state.kept]
        text = _describe(run, states, todo)
        if next_stage and not todo:
            text += f" so far; {next_stage} runs before it"
        table.add_row(stage, escape(text), *_times(states))
        next_stage = next_stage or (stage if todo else None)
    return table, next_stage


def plan_lines(run: Run) -> Iterator[str]:
    """Yields, for a planned run, how much of its time is used, and where its first submission is if it is the only
    one."""
    clock = if_sound(find_clock, run.folder)
    if run.budget is None or clock is None:
        return
    yield f"planned: {exact_duration(clock.used)} of {exact_duration(run.budget)} used"
    first = replace(run, name=run.name + FIRST)
    if first.submission.exists() and not run.submission.exists():
        yield f"submission so far: {files.shown(first.submission)}, of the run {first.name}"
    if clock.only_first:
        yield f"the rest of the time was too short for a better training; the result is {first.name}"


def next_command(run: Run) -> str:
    """Returns the command that continues a run; for a planned run whose time is over, the one that plans more time."""
    clock = if_sound(find_clock, run.folder)
    if run.budget is None or clock is None or not clock.only_first:
        return run.command()
    from pipeline.tune.findings import with_more_time

    return with_more_time(run, 2)


def examine() -> Iterator[str]:
    """Yields lines of text about versions, device, data and the next command."""
    for name in PACKAGES:
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            yield f"{name} MISSING: ./run_all.sh installs it"
    try:
        yield f"kaggle {version('kaggle')}"
    except PackageNotFoundError:
        yield "kaggle not installed (needed by download and submit): pip install 'kaggle>=2.2' six"
    with loading_torch():
        from pipeline.networks import device

    try:
        compute = device.detect()
        yield f"device {compute.accelerator}, precision {compute.precision}: {compute.reason}"
    except PipelineError as error:
        yield f"device: {error}"
    yield f"root {files.root()}, input {input_root()}"
    known = sorted(file.stem for file in raw_layouts.FOLDER.glob("*.yaml"))
    here = [name for name in known if input_folder(raw_layouts.load_competition(name)).is_dir()]
    yield f"raw files found: {', '.join(here) or 'none'}"
    yield f"raw files missing: {', '.join(name for name in known if name not in here) or 'none'}"
    recipes = sorted(file.stem for file in recipe_files.FOLDER.glob("*.yaml"))
    possible = [*(name for name in recipes if recipe.load_recipe(name).competition in here), *here]
    ready = next((name for name in possible if name != "sample"), "sample")
    yield f"next: {program()} {'sample' if not here else f'run {ready} --quick'}"


def _describe(run: Run, states: list[State], todo: list[State]) -> str:
    if not todo:
        kept = [reason.text for state in states if state.kept for reason in state.reasons]
        return "up to date" + (f" (kept although {'; '.join(dict.fromkeys(kept))})" if kept else "")
    reasons = dict.fromkeys(reason.text for state in todo for reason in state.reasons)
    count = f"{len(states) - len(todo)} of {len(states)} done; " if len(states) > 1 else ""
    return count + "; ".join([*list(reasons)[:3], *_unfinished(run, todo)])


def _unfinished(run: Run, todo: list[State]) -> list[str]:
    texts = []
    for state in todo:
        if state.step.stage == "train":
            history = state.step.manifest.with_name("history.json")
            if history.with_name("last.ckpt").exists() and history.exists():
                epochs = if_sound(epochs_of, history)
                after = "an unknown epoch (history.json is damaged)" if epochs is None else f"epoch {len(epochs)}"
                texts.append(f"{state.step.title.removeprefix('train ')} stopped after {after}")
    return texts


def _times(states: list[State]) -> tuple[str, str]:
    records = list(filter(None, (freshness.read_manifest(state.step.manifest) for state in states)))
    if not records:
        return "", ""
    return max(record["finished"] for record in records), f"{sum(record['seconds'] for record in records):.1f}"


def summary(run: Run, seconds: float) -> Iterator[str]:
    """Yields the lines, in rich's markup, that are printed when a run is done: the verdict with its reasons, where the
    results are, and the next command.

    Args:
        run: the run.
        seconds: how long the run took.
    """
    yield f"[bold]{escape(run.name)}[/bold]: done in {exact_duration(seconds)}, {memory_text()}"
    try:
        judged = judge(run)
    except PipelineError as error:  # the results of an earlier run are damaged, and this run ended before tune
        yield from map(escape, wrapped(f"verdict         not known: {error}", 2))
        return
    if judged is None:
        return
    yield from verdict_lines(run)
    if judged.submitted:
        yield f"  submission      {link(run.submission, files.shown(run.submission))}"
    if not run.competition.has_test:
        yield "  submission      none: there is no test set (`test: null`); expect the honest score on new images"
    if run.report.exists():
        yield f"  report          {link(run.report, files.shown(run.report))}"
    if judged.submitted and (test := if_sound(read_test_scores, run)):
        images = f"{test['images']} images with known masks{_remark(judged.result)}"
        yield from labelled("test set", f"{test['metric']} {test['score']:.4f}  ({images})")
    commands = next_steps(run, judged, _upload(run))
    for position, command in enumerate(commands):
        after = "or as it is" if judged.submitted else "then"
        yield from step_lines(f"  {after if position else 'next':16}", command)


def labelled(label: str, text: str) -> Iterator[str]:
    """Yields a label and its text as lines in rich's markup."""
    first, *more = wrapped(text, 18)
    yield f"  {label:16}{escape(first.lstrip())}"
    yield from map(escape, more)


def tell(run: Run) -> None:
    """Emits the events of a run's scores, verdict and paths; none before tune has run."""
    judged = if_sound(judge, run)
    if judged is None:
        return
    events.emit(_score(run, judged))
    reasons = [asdict(reason) for reason in judged.reasons]
    events.emit(events.Verdict(run.name, judged.verdict, judged.submitted, reasons))
    paths = (run.submission, run.record, run.postprocess, run.report)
    events.emit(events.Paths(run.name, *(files.shown(path) if path.exists() else None for path in paths)))


def _score(run: Run, judged: Judged) -> events.Score:
    result = judged.result
    scores = result.get("scores", {})
    honest, optimistic = scores.get("fold_model", {}), scores.get("optimistic", {})
    return events.Score(
        run.name, result["metric"], honest.get("score", result["nested"]),
        honest.get("interval_95", result.get("nested_interval_95")), optimistic.get("score", result["score"]),
        result["images"],
    )  # fmt: skip


def verdict_lines(run: Run) -> Iterator[str]:
    """Yields the verdict on a run as lines in rich's markup; nothing before tune has run.

    The lines are the verdict, the honest score, the optimistic score, the scores of constant predictions,
    and the reasons with the commands that help.
    """
    judged = judge(run)
    if judged is None:
        return
    result, metric, score = judged.result, judged.result["metric"], _score(run, judged)
    why = "there is no submission yet" if run.competition.has_test else "there is no test set"
    basis = "" if judged.submitted else f"  (of the held-out images: {why})"
    colour = COLOURS[judged.verdict]
    yield f"  verdict         [bold {colour}]{judged.verdict.upper()}[/bold {colour}]{basis}"
    yield f"  honest          [bold]{metric} {score.honest:.4f}[/bold]  ({of_what(result)})"
    yield from map(escape, wrapped(f"{_interval(score, result)}{_remark(result)}", 18))
    parts = [f"optimistic {score.optimistic:.4f}, on the images used for tuning"]
    if not tuned(result):
        parts = ["nothing was tuned"]
    parts += [f"{prediction} {value:.4f}" for prediction, value in constants(result).items()]
    yield from labelled("compare", "; ".join(parts))
    for name, rows in result.get("rows", {}).items():
        if rows["images"] not in (0, result["images"]):
            yield from labelled(f"{name} rows", f"{metric} {rows['score']:.4f}  ({rows['images']} images, optimistic)")
    yield from lines(judged.reasons, files.shown(run.report))


def _interval(score: events.Score, result: dict[str, Any]) -> str:
    """The text about the uncertainty of the honest score."""
    interval = score.interval_95
    why = (result.get("published") or {}).get("draws_remark") or "only one group"
    text = "95 % interval {:.4f} to {:.4f}".format(*interval) if interval else f"interval unknown: {why}"
    ends = [f"{end:.4f}" for end in result.get("nested_spread") or [0, 0]]
    if ends[0] != ends[1]:
        text += f"; {ends[0]} to {ends[1]} over the partitions tried"
    if optimism := result.get("scores", {}).get("fold_model", {}).get("epoch_optimism"):
        text += f"; {optimism:.4f} subtracted for choosing the epoch on the scored fold"
    return text


def _remark(result: dict[str, Any]) -> str:
    return f"; {result['remark']}" if result.get("remark") else ""


def _upload(run: Run) -> str:
    """The command that uploads the submission; for the sample competition, the command that scores it."""
    slug, path = run.competition.kaggle, files.shown(run.submission)
    if run.competition.name == "sample":
        return f"{program()} score {path} {files.shown(run.input)}/truth.csv --competition sample"
    if slug is None:
        return f"upload {path}"
    return shlex.join([*program().split(), "submit", *(run.options or (run.recipe.name,)), "-m", run.name])
