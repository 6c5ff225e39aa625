"""The competitions' scores: what is counted of an image, how counts add up, and the score of a sum.

Most metrics need three counts of an image and class: pixels in both masks, pixels predicted, pixels true. Ignored
pixels are in none of them. Counts of any leading shape go in, scores of that shape come out, so one call scores an
image, a data set, or a data set under every threshold. The mean IoU over classes needs a confusion matrix, and scores
of boundaries or instances need the masks themselves.

A `Metric` says which, and over what they are summed before the score is taken: an image, a group of images (a patient,
the slices of a volume) or the whole data set. Whoever scores asks it, and needs no branch by metric.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np

from pipeline.core.config.competition import Competition
from pipeline.core.config.metric_text import Term, parse, written
from pipeline.core.errors import PipelineError
from pipeline.masks.bootstrap import mean_counts, mean_score
from pipeline.masks.geometry import IGNORE, label_map
from pipeline.masks.instances import instance_f_beta, instance_precision, labelled, matches

IgnoredPrediction = Literal["leave_out", "zero"]
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


def sums_by(values: np.ndarray, number: np.ndarray, units: int) -> np.ndarray:
    """Returns the sums (units, …) of values (n, …) with the same number (n,), whole numbers of whole numbers."""
    total = np.zeros((units, *values.shape[1:]), np.int64 if values.dtype.kind in "iu" else np.float64)
    np.add.at(total, number, values)
    return total


def named(text: str) -> Metric:
    """Returns the metric that a competition's YAML says; see core/config/metric_text.py.

    Raises:
        PipelineError: there is no such metric, or a sum of metrics that do not add up.
    """
    if text in METRICS:
        return METRICS[text]
    try:
        terms = parse(text)
    except ValueError as error:
        raise PipelineError(f"metric: {error}.") from None
    metrics = [_of_term(term) for term in terms]
    first = metrics[0]
    if len(metrics) == 1 and terms[0].weight == 1:
        return first
    if any((one.counted, one.unit, one.sign) != ("pixels", first.unit, first.sign) for one in metrics):
        raise PipelineError(
            f"metric {text}: expected metrics of pixels over the same images, groups or data set, as a sum is taken of "
            "the scores of each."
        )
    function = partial(_weighted, [(term.weight, one.function) for term, one in zip(terms, metrics, strict=True)])
    return replace(first, name=written(terms), function=function)


def _of_term(term: Term) -> Metric:
    metric, settings = METRICS[term.name], dict(term.settings)
    if not settings:
        return metric
    unit = settings.pop("over", metric.unit)
    return replace(metric, name=str(term), unit=unit, function=partial(metric.function, **settings))


def _weighted(functions: list[tuple[float, Callable[..., np.ndarray]]], *counts: np.ndarray) -> np.ndarray:
    return np.asarray(sum(weight * function(*counts) for weight, function in functions))


def metric_of(competition: Competition) -> Metric:
    """Returns the competition's metric, with what its YAML says of an ignored class.

    Raises:
        PipelineError: its unit is a group, and the competition has no `group`.
    """
    metric = named(competition.metric)
    if metric.unit == "group" and competition.group is None:
        raise PipelineError(
            f"metric {metric.name} is a mean over groups: say in the competition's YAML which column is the `group`."
        )
    if metric.counted != "confusion":
        return metric
    reading = {"ignore_class": competition.ignored, "ignored_prediction": competition.ignored_prediction}
    return replace(metric, function=partial(metric.function, **reading))


def dice(intersection: np.ndarray, predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Returns 2·|A∩B| / (|A| + |B|), and 1 where both masks are empty (Ultrasound Nerve Segmentation's rule)."""
    total = np.add(predicted, true, dtype=np.float64)
    return np.where(total == 0, 1.0, 2.0 * intersection / np.maximum(total, 1))


def iou_precision(intersection: np.ndarray, predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Returns the share of the thresholds 0.50, 0.55, …, 0.95 that the IoU exceeds; 1 where both masks are empty.

    The metric of TGS Salt Identification, one mask an image. Whole numbers are compared, so no rounding decides.
    """
    union = np.add(predicted, true, dtype=np.int64) - intersection
    hits = sum((20 * np.asarray(intersection, np.int64) > union * step).astype(np.int64) for step in range(10, 20))
    return np.where(union == 0, 1.0, np.asarray(hits) / 10.0)


def iou(intersection: np.ndarray, predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Returns |A∩B| / |A∪B|, and 1 where both masks are empty."""
    union = np.add(predicted, true, dtype=np.float64) - intersection
    return np.where(union == 0, 1.0, intersection / np.maximum(union, 1))


def f_beta(intersection: np.ndarray, predicted: np.ndarray, true: np.ndarray, beta: float = 1.0) -> np.ndarray:
    """Returns (1 + β²)·|A∩B| / (|A| + β²·|B|), A being the predicted and B the true mask, and 1 where both are empty.

    With β below 1 precision counts more than recall: Vesuvius Challenge's F0.5.
    """
    total = np.asarray(predicted, np.float64) + beta**2 * np.asarray(true, np.float64)
    return np.where(total == 0, 1.0, (1 + beta**2) * intersection / np.where(total == 0, 1.0, total))


def counts(predicted: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns intersection, predicted and true pixel counts, each (C,) int64, of masks (C, h, w).

    `predicted` is 0/1; `true` is 0/1, or 255 where a pixel is ignored.
    """
    valid, positive = true != IGNORE, predicted.astype(bool)
    axes = (1, 2)
    return (positive & (true == 1)).sum(axes), (positive & valid).sum(axes), (true == 1).sum(axes)


def confusion(predicted: np.ndarray, true: np.ndarray, classes: int) -> np.ndarray:
    """Returns pixel counts (classes, classes) int64: rows are true classes, columns predicted ones.

    Both class maps are uint8 of the same shape, any shape; pixels whose truth is 255 are left out.

    Raises:
        ValueError: a map holds a class that is not below `classes`.
    """
    ignored = true == IGNORE
    largest = max(predicted.max(initial=0), true.max(initial=0, where=~ignored))
    if largest >= classes:
        raise ValueError(f"a class map holds class {largest}; expected 0 to {classes - 1}")
    # ignored pixels fill a row of their own, dropped below: cheaper than selecting the others
    rows = np.where(ignored, np.uint8(classes), true)
    pairs = np.multiply(rows, classes, dtype=np.uint16) + predicted
    found = np.bincount(pairs.ravel(), minlength=(classes + 1) * classes)
    return found.reshape(classes + 1, classes)[:classes].astype(np.int64)


def class_iou(confusion: np.ndarray, ignore_class: int | None = None) -> np.ndarray:
    """Returns the IoU of every class (…, C) float64 over all pixels of confusion matrices (…, C, C).

    Pixels whose truth is `ignore_class` are left out; elsewhere, a prediction of it is a miss of the true class. NaN
    where a class is neither true nor predicted, and for `ignore_class` itself.
    """
    counted = without_ignored(confusion, ignore_class)
    intersection = np.diagonal(counted, axis1=-2, axis2=-1)
    union = counted.sum(-1) + counted.sum(-2) - intersection
    scores = np.divide(intersection, union, out=np.full(union.shape, np.nan), where=union > 0)
    if ignore_class is not None:
        scores[..., ignore_class] = np.nan
    return scores


def mean_iou(
    confusion: np.ndarray, ignore_class: int | None = None, ignored_prediction: IgnoredPrediction = "leave_out"
) -> np.ndarray:
    """Returns the mean IoU (…) float64 over the classes that are true or predicted, and 0 where there are none.

    Args:
        confusion: pixel counts (…, C, C), rows are true classes.
        ignore_class: the class whose true pixels are left out.
        ignored_prediction: what a prediction of `ignore_class` on the remaining pixels costs. `leave_out`: a miss of
            the true class, as in torchmetrics' MulticlassJaccardIndex(ignore_index). `zero`: also, `ignore_class` joins
            the mean with an IoU of 0 as soon as one pixel is predicted as it, as in Keras' MeanIoU(ignore_class=0),
            the metric of the Mars terrain homework (Politecnico di Milano, 2024).
    """
    scores = class_iou(confusion, ignore_class)
    if ignore_class is not None and ignored_prediction == "zero":
        found = without_ignored(confusion, ignore_class)[..., ignore_class].sum(-1) > 0
        scores[..., ignore_class] = np.where(found, 0.0, np.nan)
    occurs = ~np.isnan(scores)
    return np.where(occurs, scores, 0.0).sum(-1) / np.maximum(occurs.sum(-1), 1)


def without_ignored(confusion: np.ndarray, ignore_class: int | None) -> np.ndarray:
    """Returns confusion matrices (…, C, C) float64 without the pixels whose truth is `ignore_class`."""
    counted = confusion.astype(np.float64)
    if ignore_class is not None:
        counted[..., ignore_class, :] = 0
    return counted


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("dice", dice),
        Metric("iou", iou),
        Metric("f_beta", f_beta),
        Metric("iou_precision", iou_precision),
        Metric("instance_precision", instance_precision, counted="masks", measure=matches, instances=True),
        Metric("instance_f_beta", instance_f_beta, counted="masks", measure=matches, instances=True),
        Metric("mean_iou", mean_iou, counted="confusion", unit="data_set"),
    )
}
"""By the name that a competition's YAML says; core/config/metric_text.py lists the names and their settings."""
