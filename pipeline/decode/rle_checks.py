"""Masks read by a run-length convention: is their outline smooth, and does it follow the edges of the image?

A wrong order tears masks to shreds, a wrong base pushes those at an edge over it. On square images the wrong order is
the mirror of the right one and as smooth: there the image must tell, by the edges in it that follow the outline of the
mask.
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
"""How many masks are decoded to compare conventions, and how many of their pixels."""
CLEAR_SHARE, CLEAR_COUNT, CLEAR_RATIO = 0.9, 5, 1.3
"""A comparison is sure when this share of the masks, at least so many, agree; torn masks are longer by this factor."""
LEAST_AT_EDGES = 2
"""Masks at an edge that must speak for one base; a single one may be smoother by chance."""
CLEAR_Z, CLEAR_IMAGES = 5.0, 20
"""Standard errors from which the edges of the images make an order sure; it takes so many images."""


@dataclass(frozen=True)
class MaskRow:
    """One row of a table of masks."""

    text: str
    image: Path
    shape: tuple[int, int]
    mask: Path | None = None
    """The same mask as an image file."""
    orientation: Orientation = "upright"
    """How the image is read."""


def doubts(rows: list[MaskRow], used: Convention) -> list[str]:
    """Returns a sentence on the order, and one on the base, of a convention that the masks and images speak against.

    Args:
        rows: masks by the used convention.
        used: what the competition's YAML says.
    """
    found = []
    z, count = edge_score(rows, used)
    if z <= -CLEAR_Z and count >= CLEAR_IMAGES:
        other = "row" if used.order == "column" else "column"
        found.append(
            f"on {count} square images the outlines of the masks follow the edges of the image better when mirrored "
            f"(z = {-z:.1f}): if the masks look transposed, set `rle: {{order: {other}}}` in the competition's YAML"
        )
    shifted = replace(used, base=0 if used.base else 1)
    kept, verdicts = by_outline(rows, [used, shifted], "base")
    if kept == [shifted] and verdicts["base"][0] == "sure":
        found.append(
            f"{verdicts['base'][1].removesuffix(' so')} one pixel {'later' if used.base else 'earlier'}: if they look "
            f"shifted, set `rle: {{base: {shifted.base}}}` in the competition's YAML"
        )
    return found


# --- masks of a table ------------------------------------------------------------------------------------------------


def parsed(text: str, convention: Convention) -> np.ndarray | None:
    """Returns the runs (n, 2) of a text, as `rle.parse` does; None where it is no mask by this convention."""
    try:
        return rle.parse(text, convention)
    except rle.RleError:
        return None


def decoded(row: MaskRow, convention: Convention) -> np.ndarray | None:
    """Returns the mask (h, w) bool of a row; None where its text is no mask of the image by this convention."""
    try:
        return rle.decode(row.text, row.shape, convention).view(bool)
    except rle.RleError:
        return None


def affordable(rows: list[MaskRow]) -> list[MaskRow]:
    """Returns rows at even distances, no more than may be decoded to compare conventions."""
    largest = max((row.shape[0] * row.shape[1] for row in rows), default=1)
    return evenly(rows, max(3, min(MOST_ROWS, MOST_PIXELS // largest)))


# --- is it smooth? ---------------------------------------------------------------------------------------------------


def by_outline(
    rows: list[MaskRow], candidates: list[Convention], aspect: str
) -> tuple[list[Convention], dict[str, Verdict]]:
    """Returns the candidates whose value of an aspect gives the shorter outlines, and how certain that is; all of them
    where outlines do not tell."""
    values = list(dict.fromkeys(getattr(one, aspect) for one in candidates))
    if len(values) < 2:
        return candidates, {}
    telling = _telling(rows, candidates, aspect)
    lengths = np.array([[outline_length(decoded(row, one)) for row in telling] for one in candidates])
    lengths = lengths.reshape(len(candidates), len(telling))
    lengths = lengths[:, np.isfinite(lengths).all(0)]
    totals: dict[object, list[np.ndarray]] = {value: [] for value in values}
    for one, own in zip(candidates, lengths, strict=True):
        totals[getattr(one, aspect)].append(own)
    shortest = {value: min(found, key=lambda own: own.sum()) for value, found in totals.items()}
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
    return [one for one in candidates if getattr(one, aspect) == best], {aspect: verdict}


def _telling(rows: list[MaskRow], candidates: list[Convention], aspect: str) -> list[MaskRow]:
    """Rows whose outlines may tell two values of an aspect apart."""
    if aspect == "base":
        return affordable([row for row in evenly(rows, 20 * MOST_ROWS) if _touches(row, candidates[0])])
    if aspect == "offsets":
        return affordable(rows)
    oblong = [row for row in rows if row.shape[0] != row.shape[1]]
    return affordable(oblong) if len(oblong) >= CLEAR_COUNT or len(oblong) == len(rows) else []


def _touches(row: MaskRow, convention: Convention) -> bool:
    """Whether a run starts or ends at an end of a line, or would with the other base."""
    runs = parsed(row.text, replace(convention, base=0))
    line = row.shape[0] if convention.order == "column" else row.shape[1]
    ends = np.stack([runs[:, 0], runs.sum(1)]) % line if runs is not None else np.full(1, 2)
    return bool((ends < 2).any())


def outline_length(mask: np.ndarray | None) -> float:
    """Returns the number of sides between a pixel of the mask and one outside it; infinite without a mask."""
    if mask is None:
        return np.inf
    return float(np.count_nonzero(mask[1:] != mask[:-1]) + np.count_nonzero(mask[:, 1:] != mask[:, :-1]))


# --- does it follow the image? ---------------------------------------------------------------------------------------


def edge_score(rows: list[MaskRow], convention: Convention) -> tuple[float, int]:
    """Returns by how many standard errors outlines follow the edges of their image better than mirrored ones do, and
    over how many square images.

    Layers in the images, or a place where masks tend to lie, could favour one order by themselves; so what the mask of
    another image scores is taken off.
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
    """Strength of the edges of an image, and where the outline of its mask and of the mirrored mask run."""
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
