"""Where the time of a training epoch goes: convolutions, other operations, loading, optimiser, Lightning, checkpoints.

    python -m benchmarks.step_profile [RECIPE…] [--set key=value]… [--steps 12] [--threads 1]

The data must be decoded and split (`python -m pipeline run RECIPE --to split`); only their files are read, and nothing
is written to the run. `train` itself is measured: fit.fit trains fold 0 on a part of its images, in the number format
that it chooses on this machine. In each phase (half size, full size) one epoch is a warm-up, one is timed, and one is
timed under torch.profiler, whose events are divided into the rows of the table. With one thread, milliseconds per step
are processor time, which excludes other processes; the profiler's are not. `Python` is what is left: Python code
of torch and Lightning between the operations, and logging. The end of an epoch (validation, checkpoint, history,
pictures) is given in seconds, because its share depends on the number of images.
"""

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loops import _EvaluationLoop
from lightning.pytorch.loops.fetchers import _PrefetchDataFetcher
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.step_speed import processor
from pipeline.core.console import progress_bar
from pipeline.core.errors import PipelineError
from pipeline.core.run import Member, Run, open_run
from pipeline.networks import device
from pipeline.train import callbacks, fit
from pipeline.train.checkpoints import AtomicCheckpointIO
from pipeline.train.losses import WeightedLoss
from pipeline.train.module import SegmentationModule
from pipeline.train.stage import rows_of

REGIONS: list[tuple[Any, str, str]] = [
    (_PrefetchDataFetcher, "__next__", "loading and augmentation"),
    (SegmentationModule, "_downscaled", "halving the size"),
    (WeightedLoss, "forward", "loss"),
    (SegmentationModule, "_overlaps", "metric counts"),
]
"""Methods whose operations and Python code are a row of their own."""
ENDS: list[tuple[Any, str, str]] = [
    (_EvaluationLoop, "run", "validation"),
    (AtomicCheckpointIO, "save_checkpoint", "checkpoint"),
    (callbacks.History, "on_train_epoch_end", "history"),
    (callbacks.Pictures, "on_validation_batch_end", "pictures, part of validation"),
]
"""Methods at the end of an epoch, which are timed as a whole."""
OPTIMIZER = ("Optimizer.zero_grad", "aten::_fused_", "aten::_foreach_")
OPERATIONS = {
    "convolutions, forward": ("aten::mkldnn_convolution", "aten::_slow_conv", "aten::_conv_depthwise", "aten::cudnn_"),
    "convolutions, backward": ("aten::convolution_backward",),
    "BatchNorm": ("aten::native_batch_norm", "aten::_native_batch_norm"),
    "conversions of dtype and layout": ("aten::copy_", "aten::_to_copy", "aten::contiguous", "aten::clone"),
}
"""Rows of operations outside those regions, with the first part of the operations' names."""
OTHERS, PYTHON = "other operations (activations, upsampling, …)", "Python"
ROWS = [*OPERATIONS, OTHERS, *(name for _, _, name in REGIONS), "optimiser", PYTHON]


@dataclass(frozen=True)
class ProfiledRun(Run):
    """A run that trains into a temporary folder."""

    scratch: Path = Path()

    @property
    def folder(self) -> Path:
        return self.scratch


@dataclass
class Measured:
    """The seconds of one phase."""

    steps: int = 0
    timed: float = 0.0
    """Seconds of the steps of the epoch without the profiler."""
    profiled: float = 0.0
    rows: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Seconds of each row in the epoch under the profiler."""
    ends: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Seconds of each part of the end of the epoch without the profiler."""
    whole: float = 0.0
    """Seconds of the epoch without the profiler, with its end."""

    @property
    def convolutions(self) -> float:
        """The share of the convolutions in the steps."""
        return sum(value for name, value in self.rows.items() if name.startswith("convolutions")) / self.profiled


class Watch(Callback):
    """Times the second epoch of each phase, and profiles the third."""

    def __init__(self, phases: list[str]) -> None:
        self.phases = {name: Measured() for name in phases}
        self.began, self.processor_time, self.profiler = 0.0, 0.0, profile(activities=[ProfilerActivity.CPU])
        self.epoch = 0

    @property
    def phase(self) -> Measured:
        return list(self.phases.values())[self.epoch // 3]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.epoch = trainer.current_epoch
        if self.epoch % 3 == 2:
            self.profiler = profile(activities=[ProfilerActivity.CPU])
            self.profiler.start()
        self.began, self.processor_time = time.perf_counter(), time.process_time()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx + 1 < trainer.num_training_batches:
            return
        seconds = time.perf_counter() - self.began
        if self.epoch % 3 == 1:
            alone = torch.get_num_threads() == 1
            self.phase.timed = time.process_time() - self.processor_time if alone else seconds
            self.phase.steps = int(trainer.num_training_batches)
        if self.epoch % 3 == 2:
            self.profiler.stop()
            self.phase.profiled, self.phase.rows = seconds, rows_of_events(self.profiler.events(), seconds)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        if self.epoch % 3 == 1:
            self.phase.whole = time.perf_counter() - self.began

    def end(self, name: str, seconds: float) -> None:
        """Adds the time of a part of the end of an epoch."""
        if self.epoch % 3 == 1:
            self.phase.ends[name] += seconds


def rows_of_events(events: Any, seconds: float) -> dict[str, float]:
    """Returns the seconds of each row, from the profiler's events and the time of all steps."""
    rows: dict[str, float] = defaultdict(float)
    for event in events:
        rows[row_of(event)] += event.self_cpu_time_total / 1e6
    rows[PYTHON] += seconds - sum(rows.values())
    return rows


def row_of(event: Any) -> str:
    """Returns the row of an event: that of the region around it or, outside the regions, that of its operation."""
    inside: Any = event
    while inside is not None:
        if inside.name in ROWS:
            return inside.name
        inside = inside.cpu_parent
    if event.name.startswith(OPTIMIZER):
        return "optimiser"  # Lightning takes the forward and backward pass inside Optimizer.step
    for name, starts in OPERATIONS.items():
        if event.name.startswith(starts):
            return name
    return OTHERS if event.name.startswith("aten::") else PYTHON


@contextmanager
def marked(watch: Watch) -> Iterator[None]:
    """Marks the regions for the profiler and times the parts of the end of an epoch."""

    def region(method: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            with record_function(name):
                return method(*arguments, **options)

        return call

    def timed(method: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return method(*arguments, **options)
            finally:
                watch.end(name, time.perf_counter() - began)

        return call

    with ExitStack() as stack:
        for wrap, places in ((region, REGIONS), (timed, ENDS)):
            for owner, method, name in places:
                stack.enter_context(patch.object(owner, method, wrap(getattr(owner, method), name)))
        built = fit._trainer

        def with_watch(*arguments: Any) -> Trainer:
            trainer = built(*arguments)
            trainer.callbacks.append(watch)  # type: ignore[attr-defined]
            return trainer

        stack.enter_context(patch.object(fit, "_trainer", with_watch))
        yield


def measure(run: Run, steps: int) -> Watch:
    """Returns the times of the phases of a recipe's training."""
    halves, compute = run.recipe.train.half_size > 0, device.detect(run.recipe.train.precision)
    phases = ["half size", "full size"] if halves else ["full size"]
    train: dict[str, Any] = {"epochs": 3 * len(phases), "steps": None, "half_size": 0.5 * halves}
    train["sampler"] = run.recipe.train.sampler.model_copy(update={"one_per_group": False})  # a part has few groups
    watch = Watch(phases)
    recipe = run.recipe.model_copy(update={"train": run.recipe.train.model_copy(update=train)})
    chosen = rows_of(run, 0)
    count = steps * recipe.train.batch_size
    part = replace(chosen, train=chosen.train[:count], valid=chosen.valid[: 2 * recipe.predict.batch_size])
    with tempfile.TemporaryDirectory() as folder, marked(watch), progress_bar() as bar:
        given = {one.name: getattr(run, one.name) for one in fields(run)} | {"recipe": recipe}
        profiled, task = ProfiledRun(**given, scratch=Path(folder)), bar.add_task("profile", total=1)
        profiled.fold_folder(0).mkdir(parents=True)
        fit.fit(profiled, Member(0, 0), part, None, compute, (bar, task, 0))
    return watch


def lines(measured: dict[str, Measured]) -> list[str]:
    """Returns the table: one column per network and phase, one row per part of a step."""
    names = list(measured)
    table = [f"| part of a step | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]

    def row(name: str, cell: Callable[[Measured], str]) -> str:
        return f"| {name} | {' | '.join(cell(measured[column]) for column in names)} |"

    def share(part: Measured, name: str) -> str:
        return f"{part.rows.get(name, 0.0) / part.profiled:.1%}"

    table += [row(name, partial(share, name=name)) for name in ROWS]
    table.append(row("above the convolutions", lambda part: f"{1 / part.convolutions - 1:.0%} of their time"))
    table.append(row("milliseconds per step", lambda part: f"{1000 * part.timed / part.steps:.0f}"))
    table.append(row("the same under the profiler", lambda part: f"{1000 * part.profiled / part.steps:.0f}"))
    for _, _, name in ENDS:
        table.append(row(f"{name}, seconds per epoch", partial(lambda part, name: f"{part.ends[name]:.2f}", name=name)))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=["sample"])
    parser.add_argument("--set", action="append", default=[], help="key=value, for all recipes")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    measured: dict[str, Measured] = {}
    for name in options.recipes:
        run = open_run(name, assignments=options.set)
        if not run.folds_file.exists() or not (run.pixels / "train_images.npy").exists():
            raise PipelineError(f"{name} is not decoded and split: python -m pipeline run {name} --to split.")
        rows, columns = run.recipe.image.size
        watch = measure(run, options.steps)
        for phase, result in watch.phases.items():
            size = f"{rows // 2}×{columns // 2}" if phase == "half size" else f"{rows}×{columns}"
            measured[f"{name}, {size}, batch {run.recipe.train.batch_size}"] = result
    compute = device.detect()
    print(f"{date.today()}, {processor()}, {options.threads} thread(s), {compute.precision}, torch {torch.__version__}")
    print("\n".join(lines(measured)))


if __name__ == "__main__":
    main()
