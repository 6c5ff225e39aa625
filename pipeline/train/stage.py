"""Trains one model per fold and seed, with optional early stopping, and resumes interrupted trainings.

    python -m pipeline train RECIPE

reads   folds/<competition>.csv, work/<competition>/pixels_…/train_{images,masks}.npy, the file of train.exclude; and
        work/<competition>/outliers.csv if images are to be relabelled; for train.start_from the weights of another run;
        for train.pseudo the predictions of another run, pixels_…/test_images.npy, test_images.parquet and
        test_duplicates.csv
writes  work/<competition>/<run>/fold_<k>/last.safetensors (or average, best, snapshot_<n>), history.csv and .json,
        epochs.npz (pixel counts of every held-out image after every epoch), fold.json, model.txt (the layers),
        tensorboard/; while unfinished, last.ckpt, best.ckpt, started.json; fold_<k>_seed_<s>/ and final/ likewise

Finished training is never overwritten without `--force`: changed settings or data stop the stage with an error, changed
code alone is noted.
"""

import gc
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.markup import escape

from pipeline.core import freshness, other_runs
from pipeline.core.config.recipe import Recipe
from pipeline.core.console import Shares, console, loading_torch, progress_bar, say, warn
from pipeline.core.engine import Needs, Reporter, Unit
from pipeline.core.errors import PipelineError
from pipeline.core.files import root, shown
from pipeline.core.freshness import Reason, Step
from pipeline.core.lock import exclusive_lock
from pipeline.core.recorded import write_recipe
from pipeline.core.run import Member, Run
from pipeline.core.tables import as_written
from pipeline.core.units import StepRunner
from pipeline.decode import separators, table
from pipeline.decode.readers.files import read_table
from pipeline.predictions.files import read_probabilities
from pipeline.split.folds import drop_list, leak_remark, read_folds, read_outliers
from pipeline.train import epoch_lines
from pipeline.train.batches.targets import Chosen, assign_rows, mask_origins
from pipeline.train.leftovers import has_weights, remove_unfinished, started
from pipeline.train.leftovers import tidy as tidy  # the driver calls it

LESS_MEMORY = "set a smaller train.batch_size, train.workers, train.parallel or image.size"
ACCEPTS = ("force", "runner")
PARTS = {"image", "model", "loss", "augment", "train"}
ELSEWHERE = ("folds", "workers", "parallel", "devices", "num_nodes", "seeds", "final", "loggers")
"""Settings of train that do not change the result of a single training."""
SUMMARIES = ("fold.json", "history.json")


def steps(run: Run) -> list[Step]:
    """Returns one step per fold and seed, and one per seed for a final model.

    External predictions and ensembles have none.
    """
    if not run.recipe.trains:
        return []
    settings = run.recipe.model_dump(mode="json", include=PARTS)
    settings["train"] = {key: value for key, value in settings["train"].items() if key not in ELSEWHERE}
    settings["metric"] = {
        key: getattr(run.competition, key) for key in ("metric", "ignore_class", "ignored_prediction")
    }
    settings["never"] = list(run.never)
    members = [member for fold in run.trained_folds() for member in run.members(fold)]
    members += run.members(None) if run.recipe.train.final else []
    return [_step(run, member, settings) for member in members]


def _step(run: Run, member: Member, settings: dict[str, Any]) -> Step:
    folder = run.fold_folder(member.fold, member.seed)
    files = [*_own_files(run), *drop_list(run), *other_runs.label_files(run, member)]
    files += [run.plan] if run.budget else []
    if start := other_runs.start_weights(run, member):
        files.append(start)
    if member.fold is None:
        files += [run.fold_folder(fold, member.seed) / name for fold in run.trained_folds() for name in SUMMARIES]
    files += [run.separators] if run.separators else []
    inputs = (run.folds_file, run.pixels / "train_images.npy", run.pixels / "train_masks.npy", *files)
    settings = settings | {"seed": member.seed}
    outputs = (*run.weights(member), *(folder / name for name in SUMMARIES))
    title = f"train {member.title}"
    defaults = Recipe(name="", competition="").model_dump(mode="json", include=PARTS)
    return Step(
        "train", title, folder / "manifest.json", inputs, outputs, settings, member.fold, member.seed, defaults,
        also=(folder / "epochs.npz", folder / "model.txt"), sealed=run.weights(member),
    )  # fmt: skip


def _own_files(run: Run) -> list[Path]:
    """Returns the user's own files that training reads: encoder weights, excluded images, and a network's module."""
    weights, files = run.recipe.model.weights, []
    if weights not in ("none", "imagenet") and not run.recipe.train.start_from:
        files.append(Path(weights).expanduser())
    if excluded := exclude_file(run):
        files.append(excluded)
    module = root() / (run.recipe.model.architecture.partition(":")[0].replace(".", "/") + ".py")
    return [*files, *([module] if ":" in run.recipe.model.architecture and module.exists() else [])]


def keeps(run: Run, step: Step, reasons: list[Reason]) -> bool:
    """Returns whether a finished fold is kept, which is the case if only the code has changed."""
    return all(reason.kind == "code" for reason in reasons)


def guard(run: Run, waiting: list[Any], kinds: tuple[str, ...] = ("settings", "input")) -> None:
    """Prevents that an existing training, finished or not, is overwritten because of changes of these kinds or because
    it is damaged.

    Raises:
        PipelineError: there is such a training; the message says what changed and what to do.
    """
    for state in waiting:
        reasons, folder = state.reasons, shown(state.step.manifest.parent)
        existing = [path for path in state.step.outputs if path.exists()]
        if reasons[0].kind == "never":
            # started.json: killed while it finished. A manifest: another process has just finished it
            known = any(map(freshness.read_manifest, (started(state.step), state.step.manifest)))
            if existing and not known:
                raise PipelineError(
                    f"{folder} holds finished training, but {shown(state.step.manifest)}, which records its inputs and "
                    "settings, is missing or damaged. Restore this file, train another run with `--name NAME`, or "
                    "overwrite the training with `--force`."
                )
            # without a checkpoint there is no training that could be lost
            reasons = freshness.stale(state.step, started(state.step)) if has_weights(state.step) else []
            if any(reason.kind == "never" for reason in reasons):
                raise PipelineError(
                    f"{folder} holds an unfinished training, but {shown(started(state.step))}, which records its "
                    "inputs and settings, is missing or damaged. Restore this file, or discard the training: delete "
                    "the folder, or use `--force`, which trains all folds again."
                )
        elif any(path.exists() for path in state.step.sealed):  # weights that were deleted may be trained again
            damaged = [reason.text for reason in reasons if reason.kind in ("damaged", "output")]
            if damaged:
                raise PipelineError(
                    f"{folder} holds finished training that is damaged: {'; '.join(damaged)}. Restore the file, train "
                    "another run with `--name NAME`, or train again with `--force`."
                )
        changed = [reason.text for reason in reasons if reason.kind in kinds]
        if changed:
            raise PipelineError(
                f"{folder} holds training with other inputs or settings ({'; '.join(changed[:4])}). "
                "Keep it and train another run with `--name NAME`, or overwrite it with `--force`."
            )


def preflight(run: Run) -> None:
    """Builds everything that training needs once, so that wrong names and missing weights are found before decode.

    Raises:
        PipelineError: weights are not available or do not fit; an architecture, encoder or augmentation is unknown; the
            device does not support the precision; there are too few devices; or train.exclude is not a valid file.
    """
    if not run.recipe.trains:
        return
    run.trained_folds()
    _read_excluded(run)
    if run.competition.clean.contradictions.policy == "soft":
        _require_masks(run)
    with loading_torch():
        from pipeline.networks import device, models, weights
        from pipeline.networks.transforms import Preprocess
        from pipeline.train import devices, feature_cache, losses, optimization, trackers
        from pipeline.train.batches.augment import Augmentation
        from pipeline.train.batches.device_augment import device_augmentation
        from pipeline.train.batches.mix import Mixer
        from pipeline.train.module import split_parameters

    _warn_of_code(run)
    devices.check(run.recipe.train, device.detect(run.recipe.train.precision))
    source = None if run.recipe.train.start_from else weights.resolve(run.recipe.model)
    Augmentation(run.recipe.augment)
    device_augmentation(run.recipe)
    Preprocess(run.recipe.image.preprocess)
    network = models.build(run.recipe.model, run.recipe.image.channels, len(run.competition.classes), source)
    optimization.build_optimizer(run.recipe.train, *split_parameters(network))
    losses.check(run)
    feature_cache.check(run.recipe)
    separators.check(run)
    Mixer(run.recipe.train.mix, run.competition.kind, len(run.competition.classes), [0], np.zeros(1, int))
    trackers.trackers(run, run.folder)


def _warn_of_code(run: Run) -> None:
    """Warns, before a run's first training, which code outside of the pipeline its recipe imports."""
    module, colon, _ = run.recipe.model.architecture.partition(":")
    if not colon or (run.folder / "recipe.yaml").exists():
        return
    file = root() / f"{module.replace('.', '/')}.py"
    where = shown(file) if file.exists() else f"the installed package {module.partition('.')[0]}"
    warn(
        f"[yellow]model.architecture of this recipe runs code: {escape(where)}. It has all of your permissions: read "
        "it first if the recipe comes from another person.[/yellow]"
    )


def execute(run: Run, waiting: list[Step], runner: StepRunner, force: bool = False) -> Iterator[Step]:
    """Trains the members, as many in parallel as the engine allows; `force` starts from scratch."""
    with loading_torch():
        from pipeline.networks import device, normalization, weights
        from pipeline.train.summary import write_summary

    # checked for all members before the first training, so that a fault shows now and not after hours
    chosen = {step.title: rows_of(run, step.fold) for step in waiting}
    for title, rows in chosen.items():
        say(f"  {title.removeprefix('train ')}: {rows.note}")
    for step in waiting:
        _check_labels(run, other_runs.label_files(run, Member(step.fold, step.seed)))
    _mention_test_duplicates(run)
    if remark := leak_remark(run):
        warn(f"  [yellow]{escape(remark)}: all scores are too optimistic[/yellow]")
    compute = device.detect(run.recipe.train.precision)
    say(f"  {compute.accelerator}, {compute.precision}, channels_last: {compute.reason}")
    start = run.recipe.train.start_from
    source = None if start else weights.resolve(run.recipe.model)
    first = (
        f"weights: those of {start}, fold by fold"
        if start
        else f"encoder weights: {weights.describe(run.recipe.model, source)}"
    )
    if run.recipe.image.normalize == "encoder" and not start:
        say(f"  {normalization.describe(run.recipe.model)}")
    say(f"  {first}; results → {shown(run.folder)}/fold_*")
    say(epoch_lines.legend(run))
    with exclusive_lock(run.folder):  # other processes of this run write the same file
        write_recipe(run)
    if force:  # removed before the first training, so that an interrupted run can be resumed without --force
        with runner.alone(waiting):
            for step in waiting:
                shutil.rmtree(step.manifest.parent, ignore_errors=True)
    say(f"  {write_summary(run, [step.manifest.parent for step in waiting])}")
    units = {step.title: Training(run, step, chosen[step.title], source) for step in waiting}
    folds = [step for step in waiting if step.fold is not None]
    final = [step for step in waiting if step.fold is None]  # depends on the folds
    console.print(f"[dim]{escape(epoch_lines.header(run))}[/dim]")
    with progress_bar() as bar:
        progress = Shares(bar, "train", dict.fromkeys(units, 1))
        for group, later in ((folds, len(final)), (final, 0)):
            for step in _trained(group, units, later, runner, progress) if group else ():
                yield step
                remove_unfinished(step)


def _trained(
    steps: list[Step], trainings: dict[str, "Training"], later: int, runner: StepRunner, progress: Shares
) -> Iterator[Step]:
    """Trains some members, before `later` others, and yields the step of each when it is done."""
    run = trainings[steps[0].title].run
    needs = Needs(gpus=run.recipe.train.devices, per_gpu=run.recipe.train.parallel)
    at_once, inputs = runner.at_once(needs, len(steps)), freshness.Inputs(steps)
    progress.beside = at_once > 1
    if at_once > 1:
        say(f"  {at_once} trainings in parallel")
    yielded = 0

    def units_of(step: Step) -> list[Unit]:
        nonlocal yielded
        freshness.record(step, 0, started(step), inputs.of(step))
        after = (len(steps) - 1 - yielded // at_once * at_once + later) // at_once  # later rounds of trainings
        yielded += 1
        return [Unit(step.title, _train, replace(trainings[step.title], after=after), needs)]

    yield from runner.run(steps, units_of, progress.advance, lambda step: progress.end(step.title))


def _check_labels(run: Run, paths: list[Path]) -> None:
    """Checks that predictions belong to the current test images.

    Raises:
        PipelineError: they belong to others.
    """
    ids = table.read_table(run.test_table)["image_id"].tolist() if paths else []
    for path in paths:
        if read_probabilities(path)[1] != ids:
            raise PipelineError(
                f"{shown(path)} holds other images than {shown(run.test_table)}; run the predict stage of "
                f"{path.parent.parent.name} again."
            )


def _mention_test_duplicates(run: Run) -> None:
    """Prints how many training images look like a test image, if the recipe uses pseudo-labels."""
    if run.recipe.train.pseudo is None or not run.test_duplicates.exists():
        return
    if count := len(read_table(run.test_duplicates, ["image_id"])):
        look = "image looks" if count == 1 else "images look"
        say(f"  {count} training {look} like a test image: {shown(run.test_duplicates)}")


@dataclass(frozen=True)
class Training:
    """The arguments of one training."""

    run: Run
    step: Step
    chosen: Chosen
    source: Path | None
    """The file of the encoder's initial weights."""
    after: int = 0
    """The number of rounds of trainings that follow, for the estimate of the time left."""


def _train(training: Training, reporter: Reporter) -> None:
    from pipeline.networks import device, weights
    from pipeline.train import fit

    device.use_threads(reporter.threads)
    # detected again, because this may be another machine
    compute, source = device.detect(training.run.recipe.train.precision), training.source
    if source and not source.exists():
        source = weights.resolve(training.run.recipe.model)
    member = Member(training.step.fold, training.step.seed)
    fit.fit(training.run, member, training.chosen, source, compute, (reporter, training.step.title, training.after))
    gc.collect()  # reference cycles keep held-out images on the GPU


def rows_of(run: Run, fold: int | None) -> Chosen:
    """Returns the training and held-out images of a fold with their targets; without a fold, all are training images.

    Raises:
        PipelineError: there are no training or no held-out images, or the file of train.exclude or outliers.csv does
            not match the folds.
    """
    folds, listed = read_folds(run), _read_excluded(run)
    excluded = np.zeros(len(folds), bool) if listed is None else _find_excluded(run, listed, folds["image_id"])
    use = folds["use"].to_numpy()
    made_from: dict[int, list[int]] = {}
    if np.isin(use, ("relabel", "soft")).any():
        if (use == "soft").any():
            _require_masks(run)
        made_from = mask_origins(read_outliers(run), folds["image_id"], use)
    chosen = assign_rows(fold, folds, excluded, made_from)
    if not len(chosen.train) or not (fold is None or len(chosen.valid)):
        also = f" and {run.recipe.train.exclude} (train.exclude)" if excluded.any() else ""
        raise PipelineError(
            f"{shown(run.folds_file)}{also}: fold {fold} has {chosen.note}; expected at least one image of each: "
            "exclude fewer images, or correct the folds."
        )
    return chosen


def exclude_file(run: Run) -> Path | None:
    """Returns the path of the file that `train.exclude` names; None if it is not set.

    Raises:
        PipelineError: the file does not exist, or it is this run's own list of suspects, which depends on its training.
    """
    name = run.recipe.train.exclude
    if not name:
        return None
    path = root() / Path(name).expanduser()
    if path.resolve() == run.suspects.resolve():
        raise PipelineError(
            f"train.exclude is {shown(run.suspects)}, which is a result of this run's own training: copy it (e.g. to "
            "folds/), or train the second round as another run with `--name NAME`."
        )
    if not path.is_file():
        raise PipelineError(
            f"train.exclude is {name}, but there is no file {shown(path)}; expected a CSV with a column image_id."
        )
    return path


def _read_excluded(run: Run) -> pd.DataFrame | None:
    """Returns the table that `train.exclude` names, with every value as text."""
    path = exclude_file(run)
    if path is None:
        return None
    table = as_written(read_table(path, []))
    if "image_id" not in table:
        columns = ", ".join(f"`{column}`" for column in table)
        raise PipelineError(f"train.exclude: {run.recipe.train.exclude} has no column `image_id`; it has {columns}.")
    return table


def _find_excluded(run: Run, listed: pd.DataFrame, image_ids: pd.Series) -> np.ndarray:
    """Returns whether each training image is listed, (N,) bool."""
    unknown = listed["image_id"][~listed["image_id"].isin(image_ids)]
    if len(unknown):
        some = ", ".join(f"{value!r} (row {row + 2})" for row, value in unknown.head(3).items())
        raise PipelineError(
            f"train.exclude: {run.recipe.train.exclude} lists {len(unknown)} ids that no training image has: {some}; "
            "correct or remove these rows."
        )
    return image_ids.isin(listed["image_id"]).to_numpy()


def _require_masks(run: Run) -> None:
    if run.competition.kind == "multiclass":
        raise PipelineError(
            "`clean.contradictions.policy: soft` needs masks of 0 and 1, which can be averaged, but "
            f"{run.competition.name} is multiclass: set it to relabel, drop_empty, drop_both or keep, and replace "
            f"every `use` in {shown(run.folds_file)} that is soft."
        )
