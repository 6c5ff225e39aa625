"""Where the predictions of a run come from: its own models, other runs (an ensemble), or arrays made elsewhere.

Those who read predictions (tune, encode, evaluate, report) ask here, and need not know.
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
from pipeline.core.version import program
from pipeline.masks.decision import Decision, asks_models, decide, native_probability, objects, separates
from pipeline.masks.geometry import Geometry, geometry_of
from pipeline.masks.scale import BYTES, Scale, scale_of
from pipeline.masks.separators import Separator
from pipeline.predictions import kept_views, neighbours
from pipeline.predictions.files import read_predictions, stage_of

Subset = Literal["oof", "test"]


@dataclass(frozen=True)
class RunPredictions:
    """One run's probabilities of some images: the mean of several models'."""

    arrays: tuple[np.ndarray, ...]
    """Each (N, C, H, W), in the competition's scale."""
    geometry: Geometry
    heads: tuple[np.ndarray, ...] | None
    """What the presence head of each model says (N, C) float32, 0 to 1; averaged over near-duplicates where the recipe
    asks for that."""
    separators: tuple[np.ndarray, ...] | None = None
    """What each model says of borders between objects or of distances to their edges, like `arrays`; see
    model.instances."""

    @classmethod
    def of(
        cls, planes: Sequence[np.ndarray], geometry: Geometry, heads: tuple[np.ndarray, ...] | None, classes: int
    ) -> "RunPredictions":
        """Returns predictions from planes (N, C or 2·C, H, W) a model: those of the classes, then perhaps as many of
        separators."""
        masks, others = (tuple(array[:, part] for array in planes) for part in (slice(classes), slice(classes, None)))
        return cls(masks, geometry, heads, others if others[0].shape[1] else None)

    def only(self, model: int) -> "RunPredictions":
        """Returns the predictions of one of the models alone."""
        heads, separators = (one and (one[model],) for one in (self.heads, self.separators))
        return RunPredictions((self.arrays[model],), self.geometry, heads, separators)


@dataclass(frozen=True)
class Blend:
    """Probabilities of some images: the weighted mean of one or several runs'."""

    ids: list[str]
    by_run: tuple[RunPredictions, ...]
    weights: tuple[float, ...]
    """One a source; they sum to 1."""
    folds: bool = False
    """Whether each source's models are those of the folds, each of which is like what a held-out image sees."""
    scale: Scale = BYTES
    """Of the probabilities."""
    names: tuple[str | None, ...] = (None,)
    """The fold of each model, where the models are known one by one; else one None."""

    @cached_property
    def presence(self) -> np.ndarray | None:
        """What the presence heads say (N, C) float32, 0 to 1, of the runs that have one; None: none has."""
        pairs = zip(self.by_run, self.weights, strict=True)
        heads = [(np.mean(one.heads, axis=0), weight) for one, weight in pairs if one.heads is not None]
        if not heads:
            return None
        total = sum(weight for _, weight in heads)
        weights = [weight / total if total else 1 / len(heads) for _, weight in heads]
        return np.sum([array * weight for (array, _), weight in zip(heads, weights, strict=True)], axis=0)

    @cached_property
    def separator(self) -> "Blend | None":
        """What the runs say that separate objects, as a blend of its own; None where none does."""
        each = zip(self.by_run, self.weights, strict=True)
        pairs = [(RunPredictions(one.separators, one.geometry, None), weight) for one, weight in each if one.separators]
        if not pairs:
            return None
        total = sum(weight for _, weight in pairs)
        weights = tuple(weight / total if total else 1 / len(pairs) for _, weight in pairs)
        return Blend(self.ids, tuple(one for one, _ in pairs), weights, scale=self.scale)

    @cached_property
    def models(self) -> tuple["Blend", ...]:
        """The folds' models one by one, where the probability is their mean; else this alone."""
        models = {len(one.arrays) for one in self.by_run}
        if not self.folds or len(models) > 1:
            return (self,)
        return tuple(
            replace(self, by_run=tuple(one.only(model) for one in self.by_run), folds=False, names=(name,))
            for model, name in zip(range(models.pop()), self.names, strict=True)
        )

    def decide(self, row: int, probability: np.ndarray, decision: Decision) -> np.ndarray:
        """Returns the masks (C, h, w) of an image from its probability at its own shape, which `native` returned."""
        if not asks_models(decision) or len(self.models) == 1:
            head = None if self.presence is None else self.presence[row]
            return decide(probability, decision, head, folds=self.names if len(self.names) == 1 else None)
        heads = [one.presence[row] for one in self.models if one.presence is not None]
        models = [one.native(row, probability.shape[1:]) for one in self.models]
        return decide(probability, decision, np.stack(heads) if heads else None, models, self.names)

    def objects(self, row: int, probability: np.ndarray, decision: Decision) -> np.ndarray:
        """Returns the objects (C, h, w) of an image, from its probability at its own shape: label maps int32 where the
        decision separates them, else masks, whose regions they are; see decision.objects."""
        masks = self.decide(row, probability, decision)
        needed = separates(decision) and self.separator is not None
        separator = self.separator.native(row, probability.shape[1:]) if needed and self.separator else None
        return objects(masks, probability, separator, decision)

    def each(self, row: int, shape: tuple[int, int]) -> list[np.ndarray]:
        """Returns every source's probabilities (C, h, w) float32 of an image at its own shape (uint8: 0 to 255)."""
        return [native_probability([array[row] for array in one.arrays], one.geometry, shape) for one in self.by_run]

    def native(self, row: int, shape: tuple[int, int]) -> np.ndarray:
        """Returns an image's probabilities (C, h, w) at its own shape: uint8 (p·255), or float32 where multiclass."""
        return self.weighted(self.each(row, shape), self.weights)

    def weighted(self, each: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
        """Returns what `native` does, from what `each` returned and other weights."""
        if len(each) == 1:
            mean = each[0]
        else:
            mean = np.sum([one * np.float32(weight) for one, weight in zip(each, weights, strict=True)], axis=0)
        return self.scale.native(mean)


def knows_models(run: Run) -> bool:
    """Returns whether the models behind the mean of a test image are known one by one; see Blend.models. Predictions
    made elsewhere may be means already."""
    runs = other_runs.runs_of(run)
    return all(one.recipe.trains for one in runs) and len({len(one.test_folds()) for one in runs}) == 1


def separator_of(run: Run) -> Separator | None:
    """Returns what the predictions of a run, or of the runs that it averages, say to separate objects; None: nothing.

    Raises:
        PipelineError: some say borders and others distances, which have no mean.
    """
    said = {other.name: other.recipe.model.instances for other in other_runs.runs_of(run) if other.recipe.trains}
    kinds = sorted({kind for kind in said.values() if kind != "none"})
    if len(kinds) > 1:
        named = ", ".join(f"{name}: {kind}" for name, kind in said.items())
        raise PipelineError(
            f"the runs of {run.name} differ in model.instances ({named}), and borders and distances have no mean: "
            "average runs of one of them, beside runs with none."
        )
    return cast(Separator, kinds[0]) if kinds else None


def files(run: Run, subset: Subset) -> tuple[Path, ...]:
    """Returns the files of a run's predictions, with their indices; and what near-duplicates among the images are found
    by, where the presence head is averaged over them."""
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
    """Returns, for each run of `runs_of`, whether its plain predictions are taken though it has a mean over views."""
    return tuple(kept_views.views_of(other) != other.recipe.predict.tta for other in other_runs.runs_of(run))


def out_of_fold(run: Run, fold: int, plain: Sequence[bool]) -> Blend:
    """Returns the predictions of the images that a fold holds out.

    Args:
        run: any run.
        fold: one of run.trained_folds().
        plain: for each run of `runs_of`, whether without test-time augmentation.

    Raises:
        PipelineError: predictions are missing, or of other images.
    """
    runs = zip(other_runs.runs_of(run), plain, strict=True)
    blend = _blend(run, [other.oof_predictions(fold, is_plain) for other, is_plain in runs], of_test=False)
    return replace(blend, names=(str(fold),))


def test(run: Run, result: dict[str, Any]) -> Blend:
    """Returns the predictions of the test images, with the weights that postprocess.json holds.

    Raises:
        PipelineError: predictions are missing, or of other images.
    """
    paths = [[other.predictions("test", fold) for fold in other.test_folds()] for other in other_runs.runs_of(run)]
    for other, files_of in zip(other_runs.runs_of(run), paths, strict=True):
        _check_views(other, files_of)
    names = tuple(None if fold is None else str(fold) for fold in other_runs.runs_of(run)[0].test_folds())
    return replace(_blend(run, paths, of_test=True), weights=weights_of(run, result), folds=True, names=names)


def _check_views(other: Run, paths: list[Path]) -> None:
    """Checks that a run's test predictions are with the views that its tune has kept: it may have tuned again since."""
    for path in paths if other.recipe.trains else []:
        record = freshness.read_manifest(path.with_suffix(".manifest.json"))
        used, kept = (record or {"settings": {}})["settings"].get("tta"), kept_views.views_of(other)
        if used not in (None, kept):
            raise PipelineError(
                f"{shown(path)} was predicted with test-time augmentation {used}, and {other.name} has decided on "
                f"{kept} since: finish that run first, {program()} run {other.name}."
            )


def _blend(run: Run, paths: list[list[Path]], of_test: bool) -> Blend:
    """The predictions in several files of each run, with the weights of the recipe, equal where it says none."""
    ids: list[str] | None = None
    by_run = []
    for other, files_of in zip(other_runs.runs_of(run), paths, strict=True):
        arrays, indices, heads = zip(
            *(read_predictions(path, run.competition.classes) for path in files_of), strict=True
        )
        for path, listed in zip(files_of, indices, strict=True):
            if ids is not None and listed != ids:
                raise PipelineError(
                    f"{shown(path)} does not hold the images of {shown(paths[0][0])}, or holds them in another order; "
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
    """Returns the weights of `runs_of`, with sum 1: those that postprocess.json holds, or those of the recipe, equal
    ones where it says none."""
    if result and "ensemble" in result:
        return tuple(result["ensemble"][name] for name in run.recipe.ensemble)
    given = [weight or 0.0 for weight in run.recipe.ensemble.values()] or [1.0]
    total = sum(given)
    return tuple(weight / total if total else 1 / len(given) for weight in given)
