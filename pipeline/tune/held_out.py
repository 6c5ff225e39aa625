"""Reads the out-of-fold images that tune works on, one by one, with their true masks at native size."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import pandas as pd

from pipeline.core.console import track
from pipeline.core.errors import PipelineError
from pipeline.core.files import shown
from pipeline.core.other_runs import runs_of
from pipeline.core.run import Run
from pipeline.decode import table
from pipeline.masks.metric import Metric
from pipeline.masks.metrics import metric_of
from pipeline.predictions.blends import Blend, out_of_fold
from pipeline.split.folds import groups_of, read_folds, read_outliers

Result = TypeVar("Result")


@dataclass(frozen=True)
class Weighting:
    """How the predictions of one or several runs are combined."""

    plain: tuple[bool, ...]
    """For each run, whether its predictions without test-time augmentation are used."""
    weights: tuple[float, ...]
    model: int | None = None
    """The position of the seed whose models are used; None uses the mean over seeds."""


@dataclass(frozen=True)
class HeldOut:
    """All out-of-fold images of a run except broken ones."""

    run: Run
    images: pd.DataFrame
    """Columns image_id, fold, group, use, and row, the position of the image in the files of its fold."""
    rows: list[pd.Series]
    """The row of each image in images.parquet."""
    opened: dict[tuple[bool, ...], dict[int, Blend]] = field(default_factory=dict)

    def blends(self, weighting: Weighting) -> dict[int, Blend]:
        """Returns the predictions of every fold under a weighting."""
        if weighting.plain not in self.opened:
            folds = self.images["fold"].unique().tolist()
            self.opened[weighting.plain] = {fold: out_of_fold(self.run, fold, weighting.plain) for fold in folds}
        by_fold = {
            fold: replace(blend, weights=weighting.weights) for fold, blend in self.opened[weighting.plain].items()
        }
        if weighting.model is None:
            return by_fold
        return {
            fold: replace(blend, by_run=tuple(predictions.only(weighting.model) for predictions in blend.by_run))
            for fold, blend in by_fold.items()
        }

    def presence(self, weighting: Weighting) -> np.ndarray | None:
        """Returns the output of the presence head (N, C); None if there is none."""
        heads = {fold: blend.presence for fold, blend in self.blends(weighting).items()}
        if any(head is None for head in heads.values()):
            return None
        pairs = zip(self.images["fold"], self.images["row"], strict=True)
        return np.stack([heads[fold][row] for fold, row in pairs])  # type: ignore[index]

    def each(
        self,
        weightings: Sequence[Weighting],
        work: Callable[[int, list[np.ndarray], np.ndarray], Result],
        description: str,
        numbers: Sequence[int] | None = None,
    ) -> list[Result]:
        """Returns the results of `work` for all images, or for those at the positions `numbers`, in order.

        `work` takes the number of an image, its probabilities (C, h, w) under each of the weightings, and its true
        masks (C, h, w) uint8 of 0, 1 and 255 (ignored). Images are read one by one in threads, so memory does not grow
        with their number.
        """
        read, wanted = self._reader(weightings), range(len(self.rows)) if numbers is None else numbers
        with ThreadPoolExecutor() as pool:
            return list(track(pool.map(lambda number: work(number, *read(number)), wanted), description, len(wanted)))

    def each_batch(
        self,
        weightings: Sequence[Weighting],
        batches: Sequence[np.ndarray],
        work: Callable[[Sequence[Sequence[np.ndarray]], Sequence[np.ndarray]], np.ndarray],
        description: str,
        separators: bool = False,
    ) -> np.ndarray:
        """Returns the results of `work` on batches of images (positions), in the order of the images (N, …).

        `work` takes, for each weighting, the probabilities of the batch's images, and their true masks (or instances,
        if the metric scores these). It returns an array with one row per image. With `separators`, the planes of
        probabilities are followed by those of the separators, if the runs have any.
        """
        read = self._reader(weightings, metric_of(self.run.competition), separators)

        def one_batch(rows: np.ndarray) -> np.ndarray:
            probabilities, true = zip(*map(read, rows.tolist()), strict=True)
            return work(list(zip(*probabilities, strict=True)), true)

        with ThreadPoolExecutor() as pool:
            results = list(track(pool.map(one_batch, batches), description, len(batches)))
        return np.concatenate(results)[np.argsort(np.concatenate(batches))]

    def _reader(
        self, weightings: Sequence[Weighting], metric: Metric | None = None, separators: bool = False
    ) -> Callable[[int], tuple[list[np.ndarray], np.ndarray]]:
        """Returns a function that reads the probabilities of an image under each weighting and its true masks, or the
        instances that the metric needs; see each_batch."""
        blends = {weighting: self.blends(weighting) for weighting in weightings}
        folds, places = self.images["fold"].to_numpy(), self.images["row"].to_numpy()

        def read(number: int) -> tuple[list[np.ndarray], np.ndarray]:
            row, competition = self.rows[number], self.run.competition
            true = table.scored_truth(row, competition, metric) if metric else table.scored_mask(row, competition)
            each: dict[tuple[tuple[bool, ...], int | None], list[np.ndarray]] = {}
            probabilities = []
            for weighting in weightings:
                blend = blends[weighting][folds[number]]
                if (weighting.plain, weighting.model) not in each:
                    each[weighting.plain, weighting.model] = blend.each(int(places[number]), true.shape[1:])
                planes = blend.weighted(each[weighting.plain, weighting.model], weighting.weights)
                if separators and blend.separator:
                    apart = blend.separator.native(int(places[number]), true.shape[1:])
                    planes = np.concatenate([planes, apart])
                probabilities.append(planes)
            return probabilities, true

        return read


def held_out(run: Run) -> HeldOut:
    """Returns the out-of-fold images of a run.

    Raises:
        PipelineError: predictions are missing, or belong to images that the folds file does not list.
    """
    images = table.read_table(run.table, "train")
    split = read_folds(run)
    groups = pd.Series(groups_of(images, split), index=split["image_id"])
    use, by_id = split.set_index("image_id")["use"], images.set_index("image_id", drop=False)
    broken = set(read_outliers(run).query("reason == 'broken' and action == 'drop'")["image_id"])
    entries = []
    for fold in run.trained_folds():
        ids = out_of_fold(run, fold, [False] * len(runs_of(run))).ids
        unknown = [image_id for image_id in ids if image_id not in use.index]
        if unknown:
            raise PipelineError(
                f"fold {fold} has predictions of {len(unknown)} images that are not in {shown(run.folds_file)}, e.g. "
                f"{unknown[0]}; run the validate stage again."
            )
        for row, image_id in enumerate(ids):
            if image_id not in broken:
                entry = {"image_id": image_id, "fold": fold, "group": groups[image_id]}
                entries.append(entry | {"use": use[image_id], "row": row})
    if not entries:
        raise PipelineError(
            f"there are no predictions of the images in {shown(run.folds_file)}; run the validate stage again."
        )
    listed = pd.DataFrame(entries)
    return HeldOut(run, listed, [by_id.loc[image_id] for image_id in listed["image_id"]])
