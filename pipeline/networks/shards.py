"""Splits predictions into units of work: one per step, or several parts per step if there are fewer steps than GPUs."""

import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.console import Shares, progress_bar
from pipeline.core.engine import Needs, Reporter, Unit
from pipeline.core.files import require_space
from pipeline.core.freshness import Step
from pipeline.core.run import Run
from pipeline.core.units import StepRunner
from pipeline.masks.scale import scale_of
from pipeline.networks import device
from pipeline.networks.predictor import Wanted, mention, predict_into, written_into
from pipeline.predictions.files import (
    Predicted,
    begin,
    partial_folder,
    read_predictions,
    shards_folder,
    write_resumable,
)
from pipeline.predictions.steps import fingerprint

NEEDS = Needs()
MANY = 10**6
"""A number of units that is larger than any engine runs at once."""


@dataclass(frozen=True)
class Part:
    """The images that one unit predicts: some of the images of a step, or all of them."""

    run: Run
    wanted: Wanted
    title: str
    start: int
    stop: int
    paths: tuple[Path, ...]
    """The files of probabilities, each with a .csv of image ids next to it."""
    fingerprint: str
    whole: bool


def predict_steps(run: Run, jobs: Sequence[Wanted], runner: StepRunner, description: str) -> Iterator[Step]:
    """Predicts the images of steps on an engine, and yields each step when its files are in place.

    Args:
        run: the run.
        jobs: the images to predict, one job per step.
        runner: runs the steps.
        description: the text of the progress bar.

    Raises:
        PipelineError: as predictor.predict_into, after the other steps are done.
    """
    cuts = {job.step.title: _cuts(run, job, runner, len(jobs)) for job in jobs}
    titles = {title: [_title(title, number, cut) for number in range(len(cut))] for title, cut in cuts.items()}
    of = {job.step.title: job for job in jobs}
    sizes = {
        name: stop - start
        for title, cut in cuts.items()
        for name, (start, stop) in zip(titles[title], cut, strict=True)
    }
    _require_space(run, jobs, cuts)
    with progress_bar() as bar:
        progress = Shares(bar, description, sizes, beside=runner.at_once(NEEDS, len(sizes)) > 1)

        def units_of(step: Step) -> list[Unit]:
            parts = _parts(run, of[step.title], titles[step.title], cuts[step.title])
            return [Unit(part.title, _predict, part, NEEDS) for part in parts]

        def done(step: Step) -> None:
            for title in titles[step.title]:
                progress.end(title)

        def merged(step: Step) -> None:
            if len(cuts[step.title]) > 1:
                _merge(run, of[step.title], cuts[step.title])

        steps, most = [job.step for job in jobs], max(map(len, cuts.values()), default=1)
        with closing(runner.run(steps, units_of, progress.advance, done, merged, most)) as finished:  # type: ignore[type-var]
            yield from finished


def _require_space(run: Run, jobs: Sequence[Wanted], cuts: dict[str, list[tuple[int, int]]]) -> None:
    """Checks that the disk has space for the files of all steps, and for the parts of one step while they are merged.

    Raises:
        PipelineError: it does not.
    """
    itemsize = scale_of(run.competition).dtype.itemsize
    sizes = {job.step.title: math.prod(written_into(run, job)) * itemsize * len(job.paths) for job in jobs}
    needed = sum(sizes.values()) + max((size for title, size in sizes.items() if len(cuts[title]) > 1), default=0)
    for job in jobs:  # minus the files of an interrupted attempt
        for folder in (partial_folder(job.paths[0]), shards_folder(job.paths[0])):
            needed -= sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if jobs:
        require_space(jobs[0].paths[0].parent, needed, f"probabilities of {sum(len(job.ids) for job in jobs)} images")


def _cuts(run: Run, job: Wanted, runner: StepRunner, steps: int) -> list[tuple[int, int]]:
    """Returns the parts of a step as (start, stop), cut between batches, so that the batches equal those of an uncut
    step."""
    size = run.recipe.predict.batch_size
    batches = math.ceil(len(job.ids) / size)
    parts = max(1, min(batches, math.ceil(runner.at_once(NEEDS, MANY) / steps)))
    edges = [min(len(job.ids), round(number * batches / parts) * size) for number in range(parts + 1)]
    return list(zip(edges[:-1], edges[1:], strict=True))


def _title(title: str, number: int, cuts: Sequence[tuple[int, int]]) -> str:
    return title if len(cuts) == 1 else f"{title}, part {number + 1} of {len(cuts)}"


def _parts(run: Run, job: Wanted, titles: Sequence[str], cuts: Sequence[tuple[int, int]]) -> list[Part]:
    """Returns the parts of a step. The files of an interrupted attempt are kept if it had the same fingerprint."""
    text, folder = fingerprint(run, job.step), shards_folder(job.paths[0])
    if len(cuts) == 1:
        return [Part(run, job, job.step.title, *cuts[0], job.paths, text, True)]
    begin(folder, f"{text}\n{cuts}")
    return [
        Part(run, job, title, start, stop, _shards(job, start), f"{text}\n{start} {stop}", False)
        for title, (start, stop) in zip(titles, cuts, strict=True)
    ]


def _shards(job: Wanted, start: int) -> tuple[Path, ...]:
    return tuple(shards_folder(job.paths[0]) / f"{path.stem}_from_{start}.npy" for path in job.paths)


def _predict(part: Part, reporter: Reporter) -> None:
    """Predicts the images of one part."""
    device.use_threads(reporter.threads)
    count = part.stop - part.start

    def advance(images: int) -> None:
        reporter.advance(part.title, images / max(1, count))

    if not part.whole and all(path.with_suffix(".csv").exists() for path in part.paths):
        advance(count)
        return
    job = part.wanted.cut(part.start, part.stop)
    predict_into(part.run, job, part.paths, part.title, advance, part.fingerprint)
    if part.whole:
        mention(part.run, part.wanted)


def _merge(run: Run, job: Wanted, cuts: Sequence[tuple[int, int]]) -> None:
    """Merges the parts of a step; the files are byte-identical to those of an uncut step."""
    size, classes = run.recipe.predict.batch_size, run.competition.classes

    def batches(_: int) -> Iterator[list[Predicted]]:
        for start, stop in cuts:
            parts = [read_predictions(path, classes) for path in _shards(job, start)]
            for first in range(0, stop - start, size):
                yield [
                    (array[first : first + size], None if presence is None else presence[first : first + size])
                    for array, _, presence in parts
                ]

    shape, dtype = written_into(run, job), scale_of(run.competition).dtype
    write_resumable(job.paths, shape, dtype, batches, job.ids, classes, lambda count: None)
    shutil.rmtree(shards_folder(job.paths[0]))
    mention(run, job)
