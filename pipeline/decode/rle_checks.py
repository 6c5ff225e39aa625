"""Checks of a run-length convention: are the outlines of the masks smooth, and do they follow the edges of the images?

With the wrong order, masks are torn into pieces. With the wrong base, masks at the image's edge wrap around it. For
square images, the wrong order gives a mirrored mask, which is equally smooth. In this case the check uses the edges in
the image, which follow the outline of the correct mask.
"""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from pipeline.core.config.competition import Orientation
from pipeline.decode.readers.files import evenly, read_image
from pipeline.masks import rle
from pipeline.masks.rle import Convention

Certainty = Literal["sure", "guess", "FILL IN"]
Verdict = tuple[Certainty, str]
"""How certain a choice is, and why."""
MOST_ROWS, MOST_PIXELS = 300, 2**28
"""Maximum number of masks, and of their pixels, that are decoded to compare conventions."""
CLEAR_SHARE, CLEAR_COUNT, CLEAR_RATIO = 0.9, 5, 1.3
"""A comparison is certain if this share of the masks, and at least this many, agree. The outlines of torn masks are
longer by this factor."""
LEAST_AT_EDGES = 2
"""Minimum number of masks at an edge that must support one base, because a single mask may be smoother by chance."""
CLEAR_Z, CLEAR_IMAGES = 5.0, 20
"""Minimum number of standard errors, and of images, for which the edges of the images make an order certain."""


@dataclass(frozen=True)
class MaskRow:
    """One row of a table of masks."""

    text: str
    image: Path
    shape: tuple[int, int]
    mask: Path | None = None
    """The path of the same mask as an image file, if there is one."""
    orientation: Orientation = "upright"
    """The setting by which the image is read."""


def doubts(rows: list[MaskRow], used: Convention) -> list[str]:
    """Returns warnings that the order or the base of a convention is probably wrong, according to masks and images.

    Args:
        rows: masks in the used convention.
        used: the convention of the competition's YAML.
    """
    warnings = []
    z, count = edge_score(rows, used)
    if z <= -CLEAR_Z and count >= CLEAR_IMAGES:
        other = "row" if used.order == "column" else "column"
        warnings.append(
            f"on {count} square images the outlines of the masks follow the edges of the image better when mirrored "
            f"(z = {-z:.1f}): if the masks look transposed, set `rle: {{order: {other}}}` in the competition's YAML"
        )
    shifted = replace(used, base=0 if used.base else 1)
    kept, verdicts = by_outline(rows, [used, shifted], "base")
    if kept == [shifted] and verdicts["base"][0] == "sure":
        warnings.append(
            f"{verdicts['base'][1].removesuffix(' so')} one pixel {'later' if used.base else 'earlier'}: if they look "
            f"shifted, set `rle: {{base: {shifted.base}}}` in the competition's YAML"
        )
    return warnings


# --- masks of a table ------------------------------------------------------------------------------------------------


def parsed(text: str, convention: Convention) -> np.ndarray | None:
    """Returns the runs (n, 2) of a text (see `rle.parse`); None if it is not a mask in this convention."""
    try:
        return rle.parse(text, convention)
    except rle.RleError:
        return None


def decoded(row: MaskRow, convention: Convention) -> np.ndarray | None:
    """Returns the mask (h, w) bool of a row; None if its text is not a mask of the image in this convention."""
    try:
        return rle.decode(row.text, row.shape, convention).view(bool)
    except rle.RleError:
        return None


def affordable(rows: list[MaskRow]) -> list[MaskRow]:
    """Returns evenly spaced rows, as many as may be decoded to compare conventions."""
    largest = max((row.shape[0] * row.shape[1] for row in rows), default=1)
    return evenly(rows, max(3, min(MOST_ROWS, MOST_PIXELS // largest)))


# --- smooth outlines -------------------------------------------------------------------------------------------------


def by_outline(
    rows: list[MaskRow], candidates: list[Convention], aspect: str
) -> tuple[list[Convention], dict[str, Verdict]]:
    """Returns the candidates whose value of an aspect gives shorter outlines, and how certain this is. If outlines do
    not decide, all candidates are returned."""
    values = list(dict.fromkeys(getattr(candidate, aspect) for candidate in candidates))
    if len(values) < 2:
        return candidates, {}
    telling = _telling(rows, candidates, aspect)
    lengths = np.array([[outline_length(decoded(row, candidate)) for row in telling] for candidate in candidates])
    lengths = lengths.reshape(len(candidates), len(telling))
    lengths = lengths[:, np.isfinite(lengths).all(0)]
    totals: dict[object, list[np.ndarray]] = {value: [] for value in values}
    for candidate, outlines in zip(candidates, lengths, strict=True):
        totals[getattr(candidate, aspect)].append(outlines)
    shortest = {value: min(arrays, key=lambda outlines: outlines.sum()) for value, arrays in totals.items()}
    best, other = sorted(values, key=lambda value: shortest[value].sum())
    better, worse = int((shortest[best] < shortest[other]).sum()), int((shortest[best] > shortest[other]).sum())
    if better - worse < (LEAST_AT_EDGES if aspect == "base" else 1):
        return candidates, {}
    ratio = shortest[other].sum() / max(shortest[best].sum(), 1)
    clear = better >= CLEAR_SHARE * (better + worse) and better >= CLEAR_COUNT
    if aspect == "base":
        text = f"{better} of {better + worse} masks at an edge are smoother so"
    else:
        clear = clear and ratio >= CLEAR_RATIO
        text = f"{better} of {better + worse} masks are smoother so, their outlines {ratio:.1f} times shorter in all"
    verdict: Verdict = ("sure" if clear else "guess", text)
    return [candidate for candidate in candidates if getattr(candidate, aspect) == best], {aspect: verdict}


def _telling(rows: list[MaskRow], candidates: list[Convention], aspect: str) -> list[MaskRow]:
    """Returns the rows whose outlines may differ between two values of an aspect."""
    if aspect == "base":
        return affordable([row for row in evenly(rows, 20 * MOST_ROWS) if _touches(row, candidates[0])])
    if aspect == "offsets":
        return affordable(rows)
    oblong = [row for row in rows if row.shape[0] != row.shape[1]]
    return affordable(oblong) if len(oblong) >= CLEAR_COUNT or len(oblong) == len(rows) else []


def _touches(row: MaskRow, convention: Convention) -> bool:
    """Returns whether a run starts or ends at the end of a line, in this or the other base."""
    runs = parsed(row.text, replace(convention, base=0))
    line = row.shape[0] if convention.order == "column" else row.shape[1]
    ends = np.stack([runs[:, 0], runs.sum(1)]) % line if runs is not None else np.full(1, 2)
    return bool((ends < 2).any())


def outline_length(mask: np.ndarray | None) -> float:
    """Returns the length of a mask's outline: the number of pixel sides between the mask and its outside; infinite if
    there is no mask."""
    if mask is None:
        return np.inf
    return float(np.count_nonzero(mask[1:] != mask[:-1]) + np.count_nonzero(mask[:, 1:] != mask[:, :-1]))


# --- outlines and edges of the image ---------------------------------------------------------------------------------


def edge_score(rows: list[MaskRow], convention: Convention) -> tuple[float, int]:
    """Returns by how many standard errors outlines follow the edges of their images better than mirrored outlines do,
    and the number of square images.

    Layers in the images, or a typical position of masks, could favour one order by themselves. Therefore the value for
    the mask of another image is subtracted.
    """
    shapes = Counter(row.shape for row in rows if row.shape[0] == row.shape[1])
    square = [row for row in rows if shapes and row.shape == shapes.most_common(1)[0][0]]
    pairs = [pair for row in affordable(square) if (pair := _edges_and_outlines(row, convention)) is not None]
    gains = np.array([_gain(edges, *outlines) for edges, outlines in pairs])
    strangers = [outlines for _, outlines in pairs[len(pairs) // 2 :] + pairs[: len(pairs) // 2]]
    by_chance = np.array([_gain(edges, *other) for (edges, _), other in zip(pairs, strangers, strict=True)])
    differences = gains - by_chance
    if len(differences) < CLEAR_COUNT or not differences.std():
        return 0.0, len(differences)
    return float(differences.mean() / (differences.std(ddof=1) / np.sqrt(len(differences)))), len(differences)


def _edges_and_outlines(
    row: MaskRow, convention: Convention
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]] | None:
    """Returns the strength of the edges of an image, and the outlines of its mask and of the mirrored mask; None if
    they cannot be compared."""
    mask = decoded(row, convention)
    try:
        image = read_image(row.image, orientation=row.orientation).mean(2, dtype=np.float32)
    except ValueError:
        return None
    if mask is None or image.shape != mask.shape or (mask == mask.T).all():
        return None
    smooth = cv2.GaussianBlur(image, (0, 0), 1)
    edges = np.hypot(cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1))
    outline = _outline_places(mask)
    return (edges / edges.mean(), (outline, outline.T)) if edges.any() and outline.any() else None


def _outline_places(mask: np.ndarray) -> np.ndarray:
    places = np.zeros(mask.shape, bool)
    for steps, both in ((mask[1:] != mask[:-1], (places[1:], places[:-1])),
                        (mask[:, 1:] != mask[:, :-1], (places[:, 1:], places[:, :-1]))):  # fmt: skip
        for side in both:
            side |= steps
    return places


def _gain(edges: np.ndarray, outline: np.ndarray, mirrored: np.ndarray) -> float:
    return float(edges[outline].mean() - edges[mirrored].mean())
