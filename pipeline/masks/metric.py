"""What a metric counts of an image, how counts add up, and the score of a sum.

A `Metric` says what is counted, and over what counts are summed before the score is taken: an image, a group of images
(a patient, the slices of a volume) or the whole data set. Whoever scores asks it, and needs no branch by metric.
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
    """How a competition scores.

    Its counts of N images are one array with one row per image: (N, 3, C) pixel counts (`counts`), (N, C, C) confusion
    matrices, or (N, K, C) of what `measure` returns. `rows` turns them into rows (N, …) of which `score` needs only the
    sum, so that a bootstrap, a comparison or a nested estimate draws and adds rows without knowing the metric.
    """

    name: str
    function: Callable[..., np.ndarray]
    """From counts to scores of the same shape: (intersection, predicted, true) of `pixels`, K arrays of `masks`; from
    confusion matrices (…, C, C) to scores (…) of `confusion`, with ignore_class and ignored_prediction."""
    counted: Literal["pixels", "confusion", "masks"] = "pixels"
    """What is counted: pixels, which give the exact score of every threshold; a confusion matrix (multiclass); or what
    `measure` makes of whole masks, which are drawn for every decision that is tried."""
    unit: Unit = "image"
    """What counts are summed over before the score is taken. The score is the mean over units (and classes)."""
    measure: Measure | None = None
    """`masks`: from predicted masks (C, h, w) of 0 and 1 and true ones of 0, 1 and 255 (ignored) to counts (K, C)."""
    measures: int = 3
    """K: how many counts there are per class; needed only where the metric is part of a sum."""
    together: bool = False
    """`masks`: `measure` sees all images of a group at once, (C, n, h, w) in the order of the table; they are of one
    size. Then counts (N, K + 1, C) have the group's at each of its images, and last the image's share of the group."""
    higher_is_better: bool = True
    instances: bool = False
    """`masks`: `measure` is given label maps (C, h, w) int32, of which each number above 0 is an instance; -1 is
    ignored. Of masks, the connected regions are their instances."""
    weigh: Literal["units", "images"] = "units"
    """Whether the mean over groups gives each the same weight, or that of its number of images."""

    def __post_init__(self) -> None:
        """Checks that the parts go together.

        Raises:
            ValueError: they do not.
        """
        if (self.counted == "masks") != (self.measure is not None):
            raise ValueError(f"metric {self.name}: `measure` belongs to counted='masks', and only to it")
        if self.together and (self.counted, self.unit) != ("masks", "group"):
            raise ValueError(f"metric {self.name}: `together` needs counted='masks' and unit='group'")

    def __call__(self, *counts: np.ndarray) -> np.ndarray:
        """Returns the scores of counts, as `function` does."""
        return self.function(*counts)

    @property
    def by_image(self) -> bool:
        """Whether the score is a mean over images."""
        return self.unit == "image"

    @property
    def kept(self) -> int:
        """How many counts of an image stand side by side, per class."""
        return self.measures + self.together

    # --- counting ---

    def batches(self, units: np.ndarray) -> list[np.ndarray]:
        """Returns positions of the images that `measured` takes at once: each alone, or the images of each unit."""
        if not self.together:
            return [np.array([place]) for place in range(len(units))]
        return [np.flatnonzero(units == unit) for unit in dict.fromkeys(units)]

    def measured(self, predicted: Sequence[np.ndarray], true: Sequence[np.ndarray]) -> np.ndarray:
        """Returns the counts (n, …) of one of the `batches`: masks (C, h, w), predicted of 0 and 1, true of 0, 1, 255;
        or, of instances, label maps.

        Raises:
            PipelineError: the images of a group that is measured together differ in size.
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
            raise PipelineError(f"metric {self.name} measures all images of a group together; they differ in size.")
        of_group = np.asarray(self.measure(np.stack(predicted, 1), np.stack(true, 1)), np.float64)
        share = np.full((1, of_group.shape[1]), 1 / len(pairs))
        return np.repeat(np.concatenate([of_group, share])[None], len(pairs), axis=0)

    def measured_all(
        self, predicted: Sequence[np.ndarray], true: Sequence[np.ndarray], units: np.ndarray
    ) -> np.ndarray:
        """Returns the counts (N, …) of images from their masks, as `measured`, and their groups (N,)."""
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
        """Returns rows (n, …) of which `score` takes the sum, from the counts (n, …) of images.

        A group's score stands at each of its images, with an equal share of the group's weight.

        Args:
            measured: counts of the images.
            weights: what each image and class counts (n, C): see bootstrap.presence_weights. None: 1. Not used where
                matrices or whole groups are measured.
            units: the group of each image (n,); needed where the unit is a group.
        """
        weighed = (
            weights is not None and self.counted != "confusion" and not self.together and bool((weights != 1).any())
        )
        if self.unit == "image":
            return mean_counts(self.by_class(measured), weights if self.counted != "confusion" else None)
        if self.together:
            return mean_counts(self.by_class(measured), None if self.weigh == "images" else measured[:, -1])
        if weighed:
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
        """Returns the scores (…) of sums (…) of `rows`."""
        if self.unit != "data_set":
            return mean_score(total)
        values = self.by_class(total)
        return values if self.counted == "confusion" else values.mean(-1)

    def objective(self, total: np.ndarray) -> np.ndarray:
        """Returns `score`, or its negative where lower is better: what is maximised."""
        return self.sign * self.score(total)

    @property
    def sign(self) -> int:
        """1 where higher is better, else -1."""
        return 1 if self.higher_is_better else -1

    def score_of(self, measured: np.ndarray, units: np.ndarray | None = None) -> float:
        """Returns the score of images from their counts (n, …), and units (n,) where these are groups."""
        if self.unit == "image":
            return float(self.by_class(measured).mean())
        return float(self.score(self.rows(measured, units=units).sum(0)))


@dataclass(frozen=True)
class Sum(Metric):
    """A weighted sum of metrics of masks that count different things, or add them up over different units.

    Every term measures for itself, and what they measure stands side by side. It is scored as drawn masks are.
    """

    terms: tuple[tuple[float, Metric], ...] = ()

    @staticmethod
    def of(name: str, terms: Sequence[tuple[float, Metric]]) -> "Sum":
        """Returns the sum of metrics times their weights."""
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
        """As Metric: whole units where a term measures these at once."""
        first = next((metric for _, metric in self.terms if metric.together), self.terms[0][1])
        return first.batches(units)

    def measured(self, predicted: Sequence[np.ndarray], true: Sequence[np.ndarray]) -> np.ndarray:
        """As Metric."""
        masks, drawn = true, predicted
        if self.instances:
            masks, drawn = ([mask_of(one) for one in given] for given in (true, predicted))
        pairs = [(predicted, true) if metric.instances else (drawn, masks) for _, metric in self.terms]
        return np.concatenate(
            [metric.measured(*pair) for (_, metric), pair in zip(self.terms, pairs, strict=True)], axis=1
        )

    def by_class(self, measured: np.ndarray) -> np.ndarray:
        """As Metric: of a term over several images, that of the image alone, or of its group."""
        return sum(
            weight * metric.by_class(part)
            for (weight, metric), part in zip(self.terms, self._parts(measured, -2), strict=True)
        )  # type: ignore[return-value]

    def rows(
        self, measured: np.ndarray, weights: np.ndarray | None = None, units: np.ndarray | None = None
    ) -> np.ndarray:
        """As Metric: the rows of all terms, side by side (n, …)."""
        parts = zip(self.terms, self._parts(measured, -2), strict=True)
        found = [metric.rows(part, weights, units) for (_, metric), part in parts]
        return np.concatenate([one.reshape(len(measured), -1) for one in found], axis=1)

    def score(self, total: np.ndarray) -> np.ndarray:
        """As Metric."""
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
        """The number of classes, from the length of a row."""
        pooled = sum(metric.kept for _, metric in self.terms if metric.unit == "data_set")
        others = 2 * sum(metric.unit != "data_set" for _, metric in self.terms)
        return (size - others) // pooled if pooled else 0


def sums_by(values: np.ndarray, number: np.ndarray, units: int) -> np.ndarray:
    """Returns the sums (units, …) of values (n, …) with the same number (n,), whole numbers of whole numbers."""
    total = np.zeros((units, *values.shape[1:]), np.int64 if values.dtype.kind in "iu" else np.float64)
    np.add.at(total, number, values)
    return total
