"""The interface of metrics: what is counted per image, how counts are summed, and how a score is computed from the sum.

A `Metric` defines what is counted, and the unit over which counts are summed before the score is computed: an image, a
group of images (a patient, the slices of a volume) or the whole data set. Code that computes scores uses this interface
and does not depend on the metric.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.core.errors import PipelineError
from pipeline.masks.bootstrap import mean_counts, mean_score
from pipeline.masks.geometry import label_map
from pipeline.masks.instances import labelled, mask_of
from pipeline.masks.overlaps import confusion, counts

Unit = Literal["image", "group", "data_set"]
Measure = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Metric:
    """A metric of a competition.

    The counts of N images are one array with one row per image: pixel counts (N, 3, C), confusion matrices (N, C, C),
    or the results (N, K, C) of `measure`. `rows` converts them to rows (N, …), and `score` computes the score from a
    sum of rows. Bootstraps, comparisons and nested estimates therefore only select and add rows.
    """

    name: str
    function: Callable[..., np.ndarray]
    """Computes scores from counts. `pixels`: from the arrays intersection, predicted and true to scores of the same
    shape. `masks`: from K arrays to scores of the same shape. `confusion`: from confusion matrices (…, C, C) to scores
    (…), with the arguments ignore_class and ignored_prediction."""
    counted: Literal["pixels", "confusion", "masks"] = "pixels"
    """What is counted. `pixels`: pixel counts, from which the score at every threshold follows exactly. `confusion`: a
    confusion matrix (multiclass). `masks`: the results of `measure` for whole masks, which must be drawn for each
    decision that is tried."""
    unit: Unit = "image"
    """The unit over which counts are summed before the score is computed. The final score is the mean over units (and
    classes)."""
    measure: Measure | None = None
    """Only for `masks`: computes counts (K, C) from predicted masks (C, h, w) of 0 and 1 and true masks of 0, 1 and 255
    (ignored)."""
    measures: int = 3
    """K, the number of counts per class. Only needed if the metric is part of a sum."""
    together: bool = False
    """Only for `masks`: `measure` gets all images of a group together, (C, n, h, w) in the order of the table; they
    must have the same size. Counts are then (N, K + 1, C): each image has the counts of its group and, as the last
    entry, its share of the group."""
    higher_is_better: bool = True
    instances: bool = False
    """Only for `masks`: `measure` gets label maps (C, h, w) int32, in which each number above 0 is an instance and -1
    is ignored. The instances of masks are their connected regions."""
    weigh: Literal["units", "images"] = "units"
    """Whether the mean over groups gives each group the same weight (`units`) or the weight of its number of images
    (`images`)."""

    def __post_init__(self) -> None:
        """Checks that the fields fit together.

        Raises:
            ValueError: they do not.
        """
        if (self.counted == "masks") != (self.measure is not None):
            raise ValueError(f"metric {self.name}: `measure` must be given exactly if counted='masks'")
        if self.together and (self.counted, self.unit) != ("masks", "group"):
            raise ValueError(f"metric {self.name}: `together` needs counted='masks' and unit='group'")

    def __call__(self, *counts: np.ndarray) -> np.ndarray:
        """Returns the scores of counts; see `function`."""
        return self.function(*counts)

    @property
    def by_image(self) -> bool:
        """Whether the score is a mean over images."""
        return self.unit == "image"

    @property
    def kept(self) -> int:
        """The number of counts per image and class."""
        return self.measures + self.together

    # --- counting ---

    def batches(self, units: np.ndarray) -> list[np.ndarray]:
        """Returns the positions of the images for each call of `measured`: one image, or all images of a unit."""
        if not self.together:
            return [np.array([position]) for position in range(len(units))]
        return [np.flatnonzero(units == unit) for unit in dict.fromkeys(units)]

    def measured(self, predicted: Sequence[np.ndarray], true: Sequence[np.ndarray]) -> np.ndarray:
        """Returns the counts (n, …) of the images of one of the `batches`.

        Predicted masks (C, h, w) hold 0 and 1, true masks 0, 1 and 255. For metrics of instances, both may be label
        maps.

        Raises:
            PipelineError: images of a group that are measured together differ in size.
        """
        pairs = list(zip(predicted, true, strict=True))
        if self.counted == "pixels":
            return np.stack([np.stack(counts(*pair)) for pair in pairs])
        if self.counted == "confusion":
            return np.stack([confusion(masks.argmax(0).astype(np.uint8), label_map(truth), len(masks))
                             for masks, truth in pairs])  # fmt: skip
        assert self.measure is not None  # __post_init__ checks it
        if self.instances:
            pairs = [(labelled(masks), labelled(truth)) for masks, truth in pairs]
        if not self.together:
            return np.stack([np.asarray(self.measure(*pair), np.float64) for pair in pairs])
        if len({masks.shape for masks in predicted}) > 1:
            raise PipelineError(
                f"metric {self.name} measures all images of a group together, and images of one group differ in size."
            )
        of_group = np.asarray(self.measure(np.stack(predicted, 1), np.stack(true, 1)), np.float64)
        share = np.full((1, of_group.shape[1]), 1 / len(pairs))
        return np.repeat(np.concatenate([of_group, share])[None], len(pairs), axis=0)

    def measured_all(
        self, predicted: Sequence[np.ndarray], true: Sequence[np.ndarray], units: np.ndarray
    ) -> np.ndarray:
        """Returns the counts (N, …) of images from their masks (see `measured`) and their groups (N,)."""
        batches = self.batches(units)
        parts = [self.measured([predicted[row] for row in rows], [true[row] for row in rows]) for rows in batches]
        return np.concatenate(parts)[np.argsort(np.concatenate(batches))]

    # --- scores ---

    def by_class(self, measured: np.ndarray) -> np.ndarray:
        """Returns the score (…, C) of counts (…, K, C), or (…) of confusion matrices (…, C, C)."""
        if self.counted == "confusion":
            return self.function(measured)
        return self.function(*np.moveaxis(measured[..., :-1, :] if self.together else measured, -2, 0))

    def rows(
        self, measured: np.ndarray, weights: np.ndarray | None = None, units: np.ndarray | None = None
    ) -> np.ndarray:
        """Returns rows (n, …), whose sum is the argument of `score`, from the counts (n, …) of images.

        Each image of a group has the group's score, with an equal share of the group's weight.

        Args:
            measured: the counts of the images.
            weights: the weight of each image and class (n, C); see bootstrap.presence_weights. None: 1. Not used for
                confusion matrices and for groups that are measured together.
            units: the group of each image (n,), which is needed if the unit is a group.
        """
        use_weights = (
            weights is not None and self.counted != "confusion" and not self.together and bool((weights != 1).any())
        )
        if self.unit == "image":
            return mean_counts(self.by_class(measured), weights if self.counted != "confusion" else None)
        if self.together:
            return mean_counts(self.by_class(measured), None if self.weigh == "images" else measured[:, -1])
        if use_weights:
            measured = measured * weights[:, None]  # type: ignore[index]
        if self.unit == "data_set":
            return measured
        assert units is not None, f"metric {self.name} needs the group of each image"
        _, number, sizes = np.unique(units.astype(str), return_inverse=True, return_counts=True)
        values = self.by_class(sums_by(measured, number, len(sizes)))[number]
        if self.weigh == "images":
            return mean_counts(values)
        return mean_counts(
            values, np.broadcast_to(1 / sizes[number].reshape(-1, *[1] * (values.ndim - 1)), values.shape)
        )

    def score(self, total: np.ndarray) -> np.ndarray:
        """Returns the scores (…) for sums of `rows`."""
        if self.unit != "data_set":
            return mean_score(total)
        values = self.by_class(total)
        return values if self.counted == "confusion" else values.mean(-1)

    def objective(self, total: np.ndarray) -> np.ndarray:
        """Returns the value to maximise: `score`, or its negative if lower scores are better."""
        return self.sign * self.score(total)

    @property
    def sign(self) -> int:
        """1 if higher scores are better, otherwise -1."""
        return 1 if self.higher_is_better else -1

    def score_of(self, measured: np.ndarray, units: np.ndarray | None = None) -> float:
        """Returns the score of images from their counts (n, …), and their groups (n,) if the unit is a group."""
        if self.unit == "image":
            return float(self.by_class(measured).mean())
        return float(self.score(self.rows(measured, units=units).sum(0)))


@dataclass(frozen=True)
class Sum(Metric):
    """A weighted sum of metrics of masks that count different things, or sum their counts over different units.

    Each term computes its own counts, which are concatenated. The sum is of the kind counted='masks'.
    """

    terms: tuple[tuple[float, Metric], ...] = ()

    @staticmethod
    def of(name: str, terms: Sequence[tuple[float, Metric]]) -> "Sum":
        """Returns the weighted sum of metrics."""
        units = {metric.unit for _, metric in terms}
        return Sum(
            name,
            function=lambda *counts: np.asarray(counts),
            counted="masks",
            unit=units.pop() if len(units) == 1 else "group",
            measure=lambda predicted, true: predicted,
            instances=any(metric.instances for _, metric in terms),
            terms=tuple(terms),
        )

    def batches(self, units: np.ndarray) -> list[np.ndarray]:
        """Returns the batches as in Metric: whole units if a term measures their images together."""
        first = next((metric for _, metric in self.terms if metric.together), self.terms[0][1])
        return first.batches(units)

    def measured(self, predicted: Sequence[np.ndarray], true: Sequence[np.ndarray]) -> np.ndarray:
        """Returns the counts of all terms, concatenated; see Metric."""
        masks, drawn = true, predicted
        if self.instances:
            masks, drawn = ([mask_of(labels) for labels in given] for given in (true, predicted))
        pairs = [(predicted, true) if metric.instances else (drawn, masks) for _, metric in self.terms]
        return np.concatenate(
            [metric.measured(*pair) for (_, metric), pair in zip(self.terms, pairs, strict=True)], axis=1
        )

    def by_class(self, measured: np.ndarray) -> np.ndarray:
        """Returns the weighted sum of the terms' scores. For terms over several images, this is the score of the single
        image, or of its group."""
        return sum(
            weight * metric.by_class(part)
            for (weight, metric), part in zip(self.terms, self._parts(measured, -2), strict=True)
        )  # type: ignore[return-value]

    def rows(
        self, measured: np.ndarray, weights: np.ndarray | None = None, units: np.ndarray | None = None
    ) -> np.ndarray:
        """Returns the rows of all terms, concatenated (n, …)."""
        parts = zip(self.terms, self._parts(measured, -2), strict=True)
        rows_of_terms = [metric.rows(part, weights, units) for (_, metric), part in parts]
        return np.concatenate([rows.reshape(len(measured), -1) for rows in rows_of_terms], axis=1)

    def score(self, total: np.ndarray) -> np.ndarray:
        """Returns the weighted sum of the terms' scores for sums of `rows`; see Metric."""
        place, score = 0, np.zeros(total.shape[:-1])
        width = self._width(total.shape[-1])
        for weight, metric in self.terms:
            shape = (metric.kept, width) if metric.unit == "data_set" else (2,)
            size = int(np.prod(shape))
            score = score + weight * metric.score(total[..., place : place + size].reshape(*total.shape[:-1], *shape))
            place += size
        return score

    def _parts(self, measured: np.ndarray, axis: int) -> list[np.ndarray]:
        ends = np.cumsum([metric.kept for _, metric in self.terms])[:-1]
        return np.split(measured, ends, axis=axis)

    def _width(self, size: int) -> int:
        """Returns the number of classes, from the length of a row."""
        pooled = sum(metric.kept for _, metric in self.terms if metric.unit == "data_set")
        others = 2 * sum(metric.unit != "data_set" for _, metric in self.terms)
        return (size - others) // pooled if pooled else 0


def sums_by(values: np.ndarray, number: np.ndarray, units: int) -> np.ndarray:
    """Returns the sums (units, …) of values (n, …) with the same unit number (n,). Sums of integers are integers."""
    total = np.zeros((units, *values.shape[1:]), np.int64 if values.dtype.kind in "iu" else np.float64)
    np.add.at(total, number, values)
    return total
