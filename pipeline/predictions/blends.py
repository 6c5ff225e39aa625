"""Predictions of a run, from its own models, from other runs (an ensemble) or from external arrays.

The rooms that read predictions (tune, encode, evaluate, report) get them here and need not know their source.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from pipeline.core import freshness, other_runs
from pipeline.core.errors import PipelineError
from pipeline.core.files import shown
from pipeline.core.run import Run
from pipeline.masks.decision import Decision, asks_models, decide, native_probability, objects, separates
from pipeline.masks.geometry import Geometry, geometry_of
from pipeline.masks.scale import BYTES, Scale, scale_of
from pipeline.masks.separators import Separator
from pipeline.predictions import kept_views, neighbours
from pipeline.predictions.files import read_predictions, stage_of

Subset = Literal["oof", "test"]


@dataclass(frozen=True)
class RunPredictions:
    """Probabilities that one run predicts for some images, as the mean over several models."""

    arrays: tuple[np.ndarray, ...]
    """One array (N, C, H, W) per model, in the competition's scale."""
    geometry: Geometry
    heads: tuple[np.ndarray, ...] | None
    """Output of the presence head of each model, (N, C) float32 from 0 to 1. It is averaged over near-duplicates where
    the recipe asks for that."""
    separators: tuple[np.ndarray, ...] | None = None
    """Borders between objects, or distances to their edges, as each model predicts them; shaped like `arrays`. See
    model.instances."""

    @classmethod
    def of(
        cls, planes: Sequence[np.ndarray], geometry: Geometry, heads: tuple[np.ndarray, ...] | None, classes: int
    ) -> "RunPredictions":
        """Returns predictions from one array of planes per model, (N, C or 2·C, H, W): the planes of the classes, then
        those of the separators if the network has them."""
        masks, others = (tuple(array[:, part] for array in planes) for part in (slice(classes), slice(classes, None)))
        return cls(masks, geometry, heads, others if others[0].shape[1] else None)

    def only(self, model: int) -> "RunPredictions":
        """Returns the predictions of a single model."""
        heads, separators = (arrays and (arrays[model],) for arrays in (self.heads, self.separators))
        return RunPredictions((self.arrays[model],), self.geometry, heads, separators)


@dataclass(frozen=True)
class Blend:
    """Probabilities of some images, as the weighted mean over one or several runs."""

    ids: list[str]
    by_run: tuple[RunPredictions, ...]
    weights: tuple[float, ...]
    """One weight per run; they sum to 1."""
    folds: bool = False
    """Whether the models of each run are its fold models. A single fold model is what predicts a held-out image."""
    scale: Scale = BYTES
    """The scale of the probabilities."""
    names: tuple[str | None, ...] = (None,)
    """The fold of each model where the models are known individually, else a single None."""

    @cached_property
    def presence(self) -> np.ndarray | None:
        """Mean output of the presence heads, (N, C) float32 from 0 to 1, over the runs that have one; None if no run
        has one."""
        pairs = zip(self.by_run, self.weights, strict=True)
        heads = [(np.mean(run.heads, axis=0), weight) for run, weight in pairs if run.heads is not None]
        if not heads:
            return None
        total = sum(weight for _, weight in heads)
        weights = [weight / total if total else 1 / len(heads) for _, weight in heads]
        return np.sum([array * weight for (array, _), weight in zip(heads, weights, strict=True)], axis=0)

    @cached_property
    def separator(self) -> "Blend | None":
        """The predicted separators of the runs that have them, as a blend of their own; None if no run has them."""
        each = zip(self.by_run, self.weights, strict=True)
        pairs = [(RunPredictions(run.separators, run.geometry, None), weight) for run, weight in each if run.separators]
        if not pairs:
            return None
        total = sum(weight for _, weight in pairs)
        weights = tuple(weight / total if total else 1 / len(pairs) for _, weight in pairs)
        return Blend(self.ids, tuple(run for run, _ in pairs), weights, scale=self.scale)

    @cached_property
    def models(self) -> tuple["Blend", ...]:
        """The fold models as separate blends where the probability is their mean, else only this blend."""
        models = {len(run.arrays) for run in self.by_run}
        if not self.folds or len(models) > 1:
            return (self,)
        return tuple(
            replace(self, by_run=tuple(run.only(model) for run in self.by_run), folds=False, names=(name,))
            for model, name in zip(range(models.pop()), self.names, strict=True)
        )

    def decide(self, row: int, probability: np.ndarray, decision: Decision) -> np.ndarray:
        """Returns the masks (C, h, w) of an image from its probabilities at its own shape, as returned by `native`."""
        if not asks_models(decision) or len(self.models) == 1:
            head = None if self.presence is None else self.presence[row]
            return decide(probability, decision, head, folds=self.names if len(self.names) == 1 else None)
        heads = [model.presence[row] for model in self.models if model.presence is not None]
        models = [model.native(row, probability.shape[1:]) for model in self.models]
        return decide(probability, decision, np.stack(heads) if heads else None, models, self.names)

    def objects(self, row: int, probability: np.ndarray, decision: Decision) -> np.ndarray:
        """Returns the objects (C, h, w) of an image from its probabilities at its own shape; see decision.objects.

        They are int32 label maps where the decision separates touching objects. Elsewhere they are masks, and each
        region is one object.
        """
        masks = self.decide(row, probability, decision)
        needed = separates(decision) and self.separator is not None
        separator = self.separator.native(row, probability.shape[1:]) if needed and self.separator else None
        return objects(masks, probability, separator, decision)

    def each(self, row: int, shape: tuple[int, int]) -> list[np.ndarray]:
        """Returns the probabilities of an image at its own shape, one float32 array (C, h, w) per run; from 0 to 255
        if the run stores uint8."""
        return [native_probability([array[row] for array in run.arrays], run.geometry, shape) for run in self.by_run]

    def native(self, row: int, shape: tuple[int, int]) -> np.ndarray:
        """Returns the probabilities (C, h, w) of an image at its own shape: uint8 (p·255), or float32 for multiclass
        competitions."""
        return self.weighted(self.each(row, shape), self.weights)

    def weighted(self, each: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
        """Returns the same as `native`, computed from the arrays that `each` returned and from other weights."""
        if len(each) == 1:
            mean = each[0]
        else:
            mean = np.sum([array * np.float32(weight) for array, weight in zip(each, weights, strict=True)], axis=0)
        return self.scale.native(mean)


def knows_models(run: Run) -> bool:
    """Returns whether the models that are averaged for a test image are known individually; see Blend.models.

    External predictions may already be means.
    """
    runs = other_runs.runs_of(run)
    return all(other.recipe.trains for other in runs) and len({len(other.test_folds()) for other in runs}) == 1


def separator_of(run: Run) -> Separator | None:
    """Returns the kind of separator that a run, or the runs that it averages, predict; None if they predict none.

    Raises:
        PipelineError: some runs predict borders and others distances, which cannot be averaged.
    """
    by_name = {other.name: other.recipe.model.instances for other in other_runs.runs_of(run) if other.recipe.trains}
    kinds = sorted({kind for kind in by_name.values() if kind != "none"})
    if len(kinds) > 1:
        named = ", ".join(f"{name}: {kind}" for name, kind in by_name.items())
        raise PipelineError(
            f"the runs of {run.name} differ in model.instances ({named}), and borders cannot be averaged with "
            "distances: put only runs with one of the two, or with none, into the ensemble."
        )
    return cast(Separator, kinds[0]) if kinds else None


def files(run: Run, subset: Subset) -> tuple[Path, ...]:
    """Returns the files of a run's predictions with their indices. Where the presence head is averaged over
    near-duplicates, the descriptors that find these are included."""
    paths: list[Path] = []
    descriptors = (run.histograms, run.thumbnails) if subset == "oof" else (run.test_histograms, run.test_thumbnails)
    for other in other_runs.runs_of(run):
        if subset == "oof":
            views = (False, True) if other.recipe.predict.tta != "none" else (False,)
            paths += [
                path for fold in run.trained_folds() for plain in views for path in other.oof_predictions(fold, plain)
            ]
        else:
            paths += [other.predictions("test", fold) for fold in other.test_folds()]
    predicted = tuple(file for path in paths for file in (path, path.with_suffix(".csv")))
    return (*predicted, *(descriptors if run.recipe.tune.presence_neighbours else ()))


def plain_of(run: Run) -> tuple[bool, ...]:
    """Returns, for each run of `runs_of`, whether its plain predictions are used although it has a mean over views."""
    return tuple(kept_views.views_of(other) != other.recipe.predict.tta for other in other_runs.runs_of(run))


def out_of_fold(run: Run, fold: int, plain: Sequence[bool]) -> Blend:
    """Returns the predictions of the images that a fold holds out.

    Args:
        run: any run.
        fold: one of run.trained_folds().
        plain: for each run of `runs_of`, whether to use its predictions without test-time augmentation.

    Raises:
        PipelineError: predictions are missing or belong to other images.
    """
    runs = zip(other_runs.runs_of(run), plain, strict=True)
    blend = _blend(run, [other.oof_predictions(fold, is_plain) for other, is_plain in runs], of_test=False)
    return replace(blend, names=(str(fold),))


def test(run: Run, result: dict[str, Any]) -> Blend:
    """Returns the predictions of the test images, with the weights from postprocess.json.

    Raises:
        PipelineError: predictions are missing or belong to other images.
    """
    paths = [[other.predictions("test", fold) for fold in other.test_folds()] for other in other_runs.runs_of(run)]
    for other, files_of in zip(other_runs.runs_of(run), paths, strict=True):
        _check_views(other, files_of)
    names = tuple(None if fold is None else str(fold) for fold in other_runs.runs_of(run)[0].test_folds())
    return replace(_blend(run, paths, of_test=True), weights=weights_of(run, result), folds=True, names=names)


def _check_views(other: Run, paths: list[Path]) -> None:
    """Checks that a run's test predictions use the views that tune kept; tune may have run again after predict."""
    for path in paths if other.recipe.trains else []:
        record = freshness.read_manifest(path.with_suffix(".manifest.json"))
        used, kept = (record or {"settings": {}})["settings"].get("tta"), kept_views.views_of(other)
        if used not in (None, kept):
            raise PipelineError(
                f"{shown(path)} was predicted with test-time augmentation {used}, but tune of {other.name} has since "
                f"chosen {kept}: finish that run first with `{other.command()}`."
            )


def _blend(run: Run, paths: list[list[Path]], of_test: bool) -> Blend:
    """Reads the prediction files of each run and blends them with the weights of the recipe, equal ones by default."""
    ids: list[str] | None = None
    by_run = []
    for other, files_of in zip(other_runs.runs_of(run), paths, strict=True):
        arrays, indices, heads = zip(
            *(read_predictions(path, run.competition.classes) for path in files_of), strict=True
        )
        for path, listed in zip(files_of, indices, strict=True):
            if ids is not None and listed != ids:
                raise PipelineError(
                    f"{shown(path)} holds other images than {shown(paths[0][0])}, or the same in another order; "
                    f"run the {stage_of(path)} stage of {other.name} with --force."
                )
            ids = listed
        known = [head for head in heads if head is not None]
        if known and run.recipe.tune.presence_neighbours:
            averaged = neighbours.averaged(np.concatenate(known, axis=1), run, indices[0], of_test)
            known = np.split(averaged, len(known), axis=1)
        geometry, classes = geometry_of(other.recipe.image), len(run.competition.classes)
        by_run.append(RunPredictions.of(arrays, geometry, tuple(known) or None, classes))
    return Blend(ids or [], tuple(by_run), weights_of(run), scale=scale_of(run.competition))


def weights_of(run: Run, result: dict[str, Any] | None = None) -> tuple[float, ...]:
    """Returns one weight per run of `runs_of`, with sum 1: those in postprocess.json, else those of the recipe, else
    equal ones."""
    if result and "ensemble" in result:
        return tuple(result["ensemble"][name] for name in run.recipe.ensemble)
    given = [weight or 0.0 for weight in run.recipe.ensemble.values()] or [1.0]
    total = sum(given)
    return tuple(weight / total if total else 1 / len(given) for weight in given)
