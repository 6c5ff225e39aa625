"""Prepares the data of the report's image table and viewer: all held-out images, the most important ones enlarged.

A first pass over all held-out images draws their stamps (thumbnails) and classifies their errors. A second pass keeps
picture, masks and probabilities of about three hundred images for the viewer: the worst ones, those with a suspected
label, and a random sample.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from pipeline.core.console import track
from pipeline.core.errors import PipelineError
from pipeline.core.run import Run
from pipeline.decode import table
from pipeline.masks import overlay
from pipeline.masks.geometry import IGNORE
from pipeline.masks.metric import Metric
from pipeline.masks.metrics import METRICS
from pipeline.masks.overlaps import counts, dice
from pipeline.report import encoding, look
from pipeline.split.folds import counted_rows

ERRORS = ("false alarm", "missed", "poor overlap")
"""Kinds of error, stored as the bits 1, 2 and 4."""
POOR = 0.7
"""Dice below which the overlap of two masks is poor."""
STRAY = 0.01
"""Share of a multiclass image that a class must cover to count as a false alarm or as missed: a few pixels at the
borders between classes are always wrong."""
WORST, SUSPECTS, RANDOM, LARGE = 120, 120, 60, 300
"""Numbers of enlarged images of each kind, and in total. If a kind has fewer images, more of the worst are enlarged."""
STAMPS, SIDE = 6000, 64
"""Maximum number of images with a stamp (the worst ones), and the longer side of a stamp in pixels."""
STAMP_QUALITY, QUALITY, FEWER = 50, 72, 1500
"""WebP qualities of stamps and of enlarged pictures. With more than `FEWER` stamps, their quality is reduced."""
ENLARGED, BUDGET = 480, 5_000_000
"""Longer side of an enlarged picture in pixels, and the maximum number of base64 characters of all enlarged images."""
PROBABILITY = 250
"""Square root of the number of stored probabilities per enlarged image, all classes together."""
LOSSLESS, FULL = 101, 4096
"""WebP quality (lossless) and maximum longer side of an image at full size, which a browser draws within a second."""
MISSING = (PipelineError, ValueError, KeyError, OSError)
"""Errors raised when a raw file or a prediction was moved away."""


@dataclass(frozen=True)
class Image:
    """A held-out image with its masks, at the size at which it is scored; C counts the foreground classes."""

    picture: np.ndarray
    """RGB (H, W, 3) uint8."""
    true: np.ndarray
    """(C, H, W) uint8: 0, 1, and 255 for ignored pixels."""
    predicted: np.ndarray
    """(C, H, W) uint8 of 0 and 1."""
    probability: np.ndarray
    """(C, H, W) uint8, p·255."""


def explorer(run: Run, rows: pd.DataFrame, named: Sequence[str] = ()) -> dict[str, Any] | None:
    """Returns the data for the page's script: columns of the table, sheets of stamps, and enlarged images by row.

    Args:
        run: the run.
        rows: oof_scores.csv.
        named: images that the reasons of the verdict name; they are enlarged too.
    """
    if not run.table.exists() or rows.empty:
        return None
    metric = look.metric(run)
    ordered = _worst_first(rows, run, metric)
    ids = ordered["image_id"].astype(str).tolist()
    images = table.read_table(run.table, "train").set_index("image_id", drop=False)
    read = reader(run, images)
    cell = _cell(images)
    with ThreadPoolExecutor() as pool:
        numbered = enumerate(ids)
        seen = list(track(pool.map(partial(_seen, read, run, cell), numbered), "report: images", len(ids)))
    listed = _suspects(run)
    chosen = picks(ordered, named, list(listed), run.recipe.train.seeds[0])
    large = _enlarged(read, run, [(ids.index(image_id), image_id) for image_id in chosen])
    stamps = [drawn[0] for drawn in seen[:STAMPS]]
    quality = STAMP_QUALITY if len(stamps) <= FEWER else STAMP_QUALITY - 15
    return {
        "metric": metric.name,
        "higher": metric.higher_is_better,
        "measure": measure_of(metric).name or "dice",
        "classes": _classes(run),
        "colours": [f"rgb{overlay.legend(run.competition)[name] or (128, 128, 128)}" for name in _classes(run)],
        "thresholds": _thresholds(run),
        "grouped": bool(run.competition.group),
        "errors": ERRORS,
        "columns": _columns(ordered, images, [drawn[1:] for drawn in seen], listed),
        "cell": cell[::-1],
        "across": encoding.ACROSS,
        "stamps": len(stamps),
        "sheets": encoding.sheets(stamps, quality),
        "large": large,
    }


def reader(run: Run, images: pd.DataFrame) -> Callable[[str], Image]:
    """Returns a function that reads a held-out image by its id.

    Args:
        run: the run.
        images: rows of images.parquet by image_id.
    """
    read, predict, competition = look.opener(run), look.predictor(run, "train"), run.competition
    places = [competition.classes.index(name) for name in _classes(run)]

    def image_of(image_id: str) -> Image:
        row = images.loc[image_id]
        true = table.scored_mask(row, competition)
        if competition.ignored is not None:  # pixels of the ignored class count in no score
            true[:, true[competition.ignored] == 1] = IGNORE
        shape = (true.shape[1], true.shape[2])
        predicted = predict(image_id, shape)
        probability = predicted.probability
        if probability.dtype != np.uint8:
            probability = np.rint(np.clip(probability, 0, 1) * 255).astype(np.uint8)
        picture = encoding.resized(overlay.to_rgb8(read(row)), shape)
        return Image(picture, true[places], predicted.masks[places], probability[places])

    return image_of


def picks(ordered: pd.DataFrame, named: Sequence[str], suspects: Sequence[str], seed: int) -> list[str]:
    """Returns the ids of the images to enlarge, without repeats: named images, suspects, the worst, a random sample,
    and then the next worst until LARGE is reached.

    Args:
        ordered: rows of oof_scores.csv, the worst first.
        named: images that the reasons of the verdict name.
        suspects: images whose labels the networks contradict, the most likely labelling error first.
        seed: seed of the random sample.
    """
    ids = ordered["image_id"].astype(str).tolist()
    known = set(ids)
    drawn = np.random.default_rng(seed).permutation(len(ids))[:RANDOM]
    wanted = [*named, *suspects[:SUSPECTS], *ids[:WORST], *(ids[row] for row in drawn)]
    chosen = dict.fromkeys(image_id for image_id in wanted if image_id in known)
    return [*chosen, *(image_id for image_id in ids if image_id not in chosen)][: max(LARGE, len(chosen))]


def errors_of(true: np.ndarray, predicted: np.ndarray, multiclass: bool) -> tuple[int, int]:
    """Returns the kinds of error of an image as bits (see ERRORS), and the number of predicted pixels.

    Args:
        true: masks (C, H, W) uint8 of 0, 1 and 255 (ignored).
        predicted: masks (C, H, W) uint8 of 0 and 1.
        multiclass: whether every pixel has one class; then a few wrong pixels do not count as an error.
    """
    both, predicted_area, true_area = counts(predicted, true)
    least = STRAY * true[0].size if multiclass else 0
    alarm = (true_area == 0) & (predicted_area > least)
    missed = (true_area > least) & (predicted_area == 0)
    poor = (true_area > least) & (predicted_area > 0) & (dice(both, predicted_area, true_area) < POOR)
    return int(alarm.any()) | int(missed.any()) << 1 | int(poor.any()) << 2, int(predicted_area.sum())


def in_words(bits: int | None) -> str:
    """Returns the kinds of error that the bits stand for, as text."""
    if bits is None:
        return "unknown"
    return ", ".join(name for bit, name in enumerate(ERRORS) if bits >> bit & 1)


# --- all images ------------------------------------------------------------------------------------------------------


def _worst_first(rows: pd.DataFrame, run: Run, metric: Metric) -> pd.DataFrame:
    """The rows from the worst score to the best; rows that do not count in the score come last."""
    counted = counted_rows(rows, run.recipe.tune.rows) & (rows["use"] != "drop").to_numpy()
    keyed = rows.assign(_left=~counted, _worth=metric.sign * rows["score"])
    ordered = keyed.sort_values(["_left", "_worth"], kind="stable", ignore_index=True, na_position="last")
    return ordered.drop(columns=["_left", "_worth"])


def _seen(
    read: Callable[[str], Image], run: Run, cell: tuple[int, int], numbered: tuple[int, str]
) -> tuple[np.ndarray, int | None, int | None]:
    """The stamp of an image, the bits of its errors and the number of predicted pixels; None if it cannot be read."""
    position, image_id = numbered
    multiclass = run.competition.kind == "multiclass"
    try:
        image = read(image_id)
    except MISSING:
        return np.full((*cell, 3), encoding.GROUND, np.uint8), None, None
    bits, predicted = errors_of(image.true, image.predicted, multiclass)
    if position >= STAMPS:
        return np.zeros((0, 0, 3), np.uint8), bits, predicted
    true, guess = (image.true[0] == 1), image.predicted[0] == 1
    if len(image.true) > 1:  # the masks of all classes would cover the stamp: mark only the errors
        counted = (image.true != IGNORE).all(0)
        true, guess = np.zeros_like(true), (image.true != image.predicted).any(0) & counted
    return encoding.stamp(image.picture, true, guess, cell), bits, predicted


def _cell(images: pd.DataFrame) -> tuple[int, int]:
    """Rows and columns of a stamp, in the median aspect ratio of all images."""
    shape = float((images["height"] / images["width"]).median())
    return max(24, min(SIDE, round(SIDE * shape))), max(24, min(SIDE, round(SIDE / shape)))


def _columns(
    rows: pd.DataFrame, images: pd.DataFrame, seen: Sequence[tuple[int | None, int | None]], listed: dict[str, str]
) -> dict[str, list[Any]]:
    known = images.reindex(rows["image_id"])
    pixels = (known["height"] * known["width"]).to_numpy(np.float64)
    predicted = np.array([np.nan if area is None else area for _, area in seen], np.float64)
    ids = rows["image_id"].astype(str).tolist()
    return {
        "id": ids,
        "fold": rows["fold"].tolist(),
        "group": known["group"].fillna("").astype(str).tolist(),
        "use": rows["use"].astype(str).tolist(),
        "size": _rounded(100 * rows["true_area"].to_numpy(np.float64) / pixels),
        "predicted": _rounded(100 * predicted / pixels),
        "score": _rounded(rows["score"].to_numpy(np.float64)),
        "error": [bits for bits, _ in seen],
        "suspect": [listed.get(image_id, "") for image_id in ids],
    }


def _rounded(values: np.ndarray) -> list[float | None]:
    return [round(float(value), 4) if np.isfinite(value) else None for value in values]


def _suspects(run: Run) -> dict[str, str]:
    """The reason why the label of each suspected image may be wrong, the most likely error first."""
    if not run.suspects.exists():
        return {}
    return {row["image_id"]: f"{row['reason']}; {row['note']}" for row in look.suspects(run).to_dict("records")}


# --- enlarged images -------------------------------------------------------------------------------------------------


def _enlarged(read: Callable[[str], Image], run: Run, chosen: Sequence[tuple[int, str]]) -> dict[int, dict[str, Any]]:
    """The enlarged images by their row. A few of them are encoded first to choose a scale that fits the budget."""
    measure = measure_of(look.metric(run))
    trial = [enlarged(read, measure, image_id) for _, image_id in chosen[:: max(1, len(chosen) // 8)]]
    expected = len(chosen) * float(np.mean([_letters(large) for large in trial if large] or [0]))
    scale = min(1.0, (BUDGET / max(1.0, expected)) ** 0.5)
    with ThreadPoolExecutor() as pool:
        drawn = pool.map(lambda numbered: enlarged(read, measure, numbered[1], scale), chosen)
        images = list(track(drawn, "report: enlarged", len(chosen)))
    return {row: large for (row, _), large in zip(chosen, images, strict=True) if large is not None}


def _letters(large: dict[str, Any]) -> int:
    return sum(len(large[name]) for name in ("image", "masks", "probability"))


def enlarged(
    read: Callable[[str], Image], measure: Metric, image_id: str, scale: float | None = 1.0
) -> dict[str, Any] | None:
    """Returns the data that the viewer needs of an image; None if it cannot be read.

    The data are picture, masks, probabilities, and the score of each class at 16 thresholds, without other rules.

    Args:
        read: see `reader`.
        measure: see `measure_of`.
        image_id: id of a held-out image.
        scale: factor on the size in the page, 1 or less; None: the original size of the image.
    """
    try:
        image = read(image_id)
    except MISSING:
        return None
    height, width = image.picture.shape[:2]
    shape = encoding.within((height, width), FULL if scale is None else round(scale * ENLARGED))
    room = 1.0 if scale is None else scale * PROBABILITY / (len(image.probability) * shape[0] * shape[1]) ** 0.5
    inner = encoding.within(shape, max(16, int(max(shape) * min(1.0, room))))
    masks = np.stack([
        _nearest(np.where(true == IGNORE, 4, true * 2 + predicted).astype(np.uint8), shape)
        for true, predicted in zip(image.true, image.predicted, strict=True)
    ])  # fmt: skip
    levels = np.stack([encoding.resized(plane, inner) // encoding.LEVELS for plane in image.probability])
    return {
        "image": encoding.webp(encoding.resized(image.picture, shape), LOSSLESS if scale is None else QUALITY),
        "masks": encoding.planes_png(masks),
        "probability": encoding.planes_png(levels.astype(np.uint8)),
        "shape": shape,
        "inner": inner,
        "scores": [scores_by_level(*planes, measure) for planes in zip(image.probability, image.true, strict=True)],
    }


def _nearest(plane: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A plane of labels at another size (nearest neighbour)."""
    rows = (np.arange(shape[0]) * plane.shape[0] + plane.shape[0] // 2) // shape[0]
    columns = (np.arange(shape[1]) * plane.shape[1] + plane.shape[1] // 2) // shape[1]
    return plane[np.minimum(rows, plane.shape[0] - 1)][:, np.minimum(columns, plane.shape[1] - 1)]


def scores_by_level(probability: np.ndarray, true: np.ndarray, measure: Metric) -> list[float]:
    """Returns the score of one class of an image at the thresholds 0, 16, 32, … of 255, without other rules.

    Args:
        probability: (H, W) uint8, p·255.
        true: (H, W) uint8 of 0, 1 and 255 (ignored).
        measure: a metric per image that counts pixels.
    """
    counted = true != IGNORE
    levels, inside = (probability // encoding.LEVELS)[counted], (true == 1)[counted]
    areas, both = (
        np.bincount(values, minlength=encoding.LEVELS)[::-1].cumsum()[::-1] for values in (levels, levels[inside])
    )
    return [round(float(score), 4) for score in measure.function(both, areas, np.full_like(areas, inside.sum()))]


def measure_of(metric: Metric) -> Metric:
    """Returns the metric that the viewer uses: the run's own if it measures the overlap per image, otherwise Dice."""
    return metric if metric.counted == "pixels" and metric.unit == "image" else METRICS["dice"]


def _classes(run: Run) -> list[str]:
    """The classes that are shown: all except the background."""
    return list(run.competition.foreground)


def _thresholds(run: Run) -> list[int | None]:
    """The tuned threshold (of 255) of each class; None in a multiclass competition."""
    rules = look.result(run).get("rules", {})
    return [rules[name]["threshold"] if name in rules else None for name in _classes(run)]
