"""Annotated regions, given by polygons or run lengths, and their conversion to masks."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from pipeline.masks import rle

Ring = np.ndarray
"""The points (n, 2) float64 of a closed line, with x (the column) first."""
FAR = 8
"""An outline may reach up to this multiple of the longer side of the image, because each step of it takes memory."""
Box = tuple[int, int, int, int]
"""First row, first column, and the row and column after the last ones of a part of an image."""
_SCALE = 5
"""COCO traces outlines on a grid that is finer than the pixels by this factor."""


@dataclass(frozen=True)
class Region:
    """One annotated region of an image."""

    label: str | None
    """The class in the file; None if the file gives none."""
    polygons: tuple[tuple[Ring, ...], ...] = ()
    """Polygons, each given by its outline and the outlines of its holes."""
    runs: tuple[str, rle.Convention] | None = None
    """Run lengths instead of polygons."""
    ignored: bool = False
    """Whether its pixels are ignored (crowds in COCO)."""
    name: str = ""
    """The name of the region in messages, e.g. `annotation 12`."""
    code: str | None = None
    """The number of the class in the file, in addition to its name."""
    size: tuple[int, int] | None = None
    """Rows × columns of the run lengths, if the file gives them."""
    area: float | None = None
    """The number of pixels of the region, if the file gives it."""


@dataclass
class Annotated:
    """The annotations of one image in a file."""

    file: str
    """The file of annotations, relative to the competition's folder."""
    regions: list[Region] = field(default_factory=list)
    size: tuple[int, int] | None = None
    """Rows × columns of the image, if the file gives them."""
    image: str = ""
    """The name of the image in the file: a path, a file name or an id."""


def ring_of(numbers: Sequence[float] | Sequence[Sequence[float]]) -> Ring:
    """Returns the points of an outline given as x, y, x, y, … or as pairs.

    Raises:
        ValueError: the points are not pairs of finite numbers, or are fewer than three.
    """
    try:
        points = np.asarray(numbers, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError("an outline holds values that are not numbers") from None
    if points.ndim == 1 and points.size % 2 == 0:
        points = points.reshape(-1, 2)
    if points.ndim != 2 or points.shape[1] not in (2, 3):
        raise ValueError("an outline is not a list of x and y")
    if len(points) < 3:
        raise ValueError(f"an outline has {len(points)} point{'s' * (len(points) != 1)}; expected three or more")
    if not np.isfinite(points).all() or np.abs(points).max() > 2**30:
        raise ValueError("an outline holds NaN, an infinite number or a number that is too large")
    return points[:, :2]


def mask_of(region: Region, shape: tuple[int, int], outlines: bool, box: Box | None = None) -> np.ndarray:
    """Returns the mask (h, w) uint8 of 0 and 1 of a region, or a part of it. Parts of the region outside the image are
    cut off.

    Args:
        region: the region.
        shape: rows × columns of the image.
        outlines: True: pixels under an outline belong to the region (points are pixel centres). False: the region is
            drawn like COCO (points are pixel corners).
        box: first row, first column, and the row and column after the last ones of the part; None: the whole image.

    Raises:
        RleError: the run lengths are not a mask of this shape, or an outline reaches far outside the image.
    """
    top, left, bottom, right = box or (0, 0, *shape)
    if region.runs is not None:
        text, convention = region.runs
        if region.size not in (None, shape):
            raise rle.RleError(
                f"its size is {list(region.size or ())}, and that of the image {list(shape)} (rows, columns)"
            )
        return rle.decode(text, shape, convention)[top:bottom, left:right]
    mask = np.zeros((bottom - top, right - left), np.uint8)
    for ring in (ring for polygon in region.polygons for ring in polygon):
        if (farthest := float(np.abs(ring).max())) > FAR * max(shape):
            raise rle.RleError(
                f"an outline has the coordinate {farthest:.6g}, far outside the image ({shape[0]}×{shape[1]})"
            )
    for outer, *holes in region.polygons:
        if outlines:
            _fill(mask, (outer, *holes), shape, (top, left))
            continue
        part, hole = np.zeros_like(mask), np.zeros_like(mask)
        _fill_like_coco(part, outer, (top, left))
        for ring in holes:
            _fill_like_coco(hole, ring, (top, left))
        mask |= part & (1 - hole)
    return mask


def _fill(mask: np.ndarray, rings: Sequence[Ring], shape: tuple[int, int], corner: tuple[int, int]) -> None:
    """Fills a polygon, including the pixels under its outline and under the outlines of its holes.

    The polygon is drawn for the whole image, and then a part is taken. Cutting its lines elsewhere than at the image's
    edges could change the pixels that they cover.
    """
    points = [np.rint(ring).astype(np.int32) for ring in rings]
    low, high = np.concatenate(points).min(0), np.concatenate(points).max(0) + 1
    (left, top), (right, bottom) = np.maximum(low, 0), np.minimum(high, shape[::-1])
    if left >= right or top >= bottom:
        return
    drawn = np.zeros((int(bottom - top), int(right - left)), np.uint8)
    cv2.fillPoly(drawn, points, 1, offset=(-int(left), -int(top)))
    rows, columns = (int(top) - corner[0], int(left) - corner[1])
    into = mask[max(rows, 0) : max(rows + len(drawn), 0), max(columns, 0) : max(columns + drawn.shape[1], 0)]
    into |= drawn[max(-rows, 0) :, max(-columns, 0) :][: into.shape[0], : into.shape[1]]


def _fill_like_coco(mask: np.ndarray, ring: Ring, corner: tuple[int, int]) -> None:
    """Fills an outline with exactly the same pixels as the COCO API (rleFrPoly of its maskApi.c).

    Args:
        mask: the array to fill, which may be a part of the image.
        ring: the outline, in coordinates of the image.
        corner: row and column of the image at which the mask starts.
    """
    height, width = mask.shape
    points = np.trunc(_SCALE * ring + 0.5).astype(np.int64) - _SCALE * np.array(corner[::-1])
    across, down = _outline(points)
    step = np.flatnonzero(across[1:] != across[:-1])  # where the outline passes from one column to the next
    left = np.minimum(across[step], across[step + 1])
    column = (left + 0.5) / _SCALE - 0.5
    row = (np.minimum(down[step], down[step + 1]) + 0.5) / _SCALE - 0.5
    kept = (column == np.floor(column)) & (column >= 0) & (column <= width - 1)
    if not kept.any():
        return
    columns = column[kept].astype(np.int64)
    rows = np.ceil(row[kept].clip(0, height)).astype(np.int64)
    first, count = columns.min(), columns.max() - columns.min() + 1
    # in each column, pixels between the first and the second crossing are inside, between the third and fourth, …
    crossings = np.bincount(rows * count + columns - first, minlength=(height + 1) * count).reshape(height + 1, count)
    begin, end = int(rows.min()), min(int(rows.max()) + 1, height)
    inside = np.cumsum(crossings[begin:end], axis=0) % 2
    mask[begin:end, first : first + count] |= inside.astype(np.uint8)


def _outline(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the coordinates along a closed line through integer points (n, 2), one per step along the longer
    direction."""
    start, end = points, np.roll(points, -1, axis=0)
    (dx, dy), level = np.abs(end - start).T, np.abs(end - start)[:, 0] >= np.abs(end - start)[:, 1]
    flip = np.where(level, start[:, 0] > end[:, 0], start[:, 1] > end[:, 1])
    low, high = np.where(flip[:, None], end, start), np.where(flip[:, None], start, end)
    length = np.maximum(dx, dy)
    rise = np.where(level, high[:, 1] - low[:, 1], high[:, 0] - low[:, 0]) / np.maximum(length, 1)
    edge = np.repeat(np.arange(len(points)), length + 1)
    place = np.arange(len(edge)) - np.repeat(np.cumsum(length + 1) - (length + 1), length + 1)
    place = np.where(flip[edge], length[edge] - place, place)
    along = place + np.where(level, low[:, 0], low[:, 1])[edge]
    other = np.where(level, low[:, 1], low[:, 0])[edge] + rise[edge] * place
    aside = np.trunc(other + 0.5).astype(np.int64)
    return np.where(level[edge], along, aside), np.where(level[edge], aside, along)
