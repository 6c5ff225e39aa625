"""Which run-length convention a table of masks follows, judged by the masks themselves, their files and the images.

A wrong offset leaves the image, a wrong order tears masks to shreds, a wrong base pushes those at an edge over it. On
square images the wrong order is the mirror of the right one and as smooth: there the image must tell, by the edges in
it that follow the outline of the mask.
"""

import re
from collections import Counter
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from pipeline import rle
from pipeline.competitions.files import evenly, read_image
from pipeline.guess import Certainty, Guess
from pipeline.rle import Convention

PAIRS = re.compile(r"\s*\d+\s+\d+(\s+\d+\s+\d+)*\s*")
MOST_ROWS, MOST_PIXELS = 300, 2**28
"""How many masks are decoded to compare conventions, and how many of their pixels."""
CLEAR_SHARE, CLEAR_COUNT, CLEAR_RATIO = 0.9, 5, 1.3
"""A comparison is sure when this share of the masks, at least so many, agree; torn masks are longer by this factor."""
CLEAR_Z, WEAK_Z, CLEAR_IMAGES = 5.0, 2.0, 20
"""Standard errors from which the edges of the images make an order sure, or a guess; it takes so many to be sure."""


@dataclass(frozen=True)
class MaskRow:
    """One row of a table of masks."""

    text: str
    image: Path
    shape: tuple[int, int]
    mask: Path | None = None
    """The same mask as an image file."""


_OFFSETS: tuple[Literal["absolute", "relative"], ...] = ("absolute", "relative")
_BASES: tuple[Literal[0, 1], ...] = (1, 0)
_NAMES = {"absolute": "absolute starts", "relative": "relative starts", 1: "base 1", 0: "base 0"}
Fit = tuple[Literal["absolute", "relative"], Literal[0, 1]]
Verdict = tuple[Certainty, str]
"""How certain a choice is, and why."""


def guess_rle(rows: list[MaskRow], placeholder: str = "") -> list[Guess]:
    """Returns `rle.order`, `rle.base`, `rle.empty` and, where it must be said, `rle.offsets`.

    Args:
        rows: every row of the table whose image is known.
        placeholder: what the sample submission writes in every row.
    """
    empty = guess_empty([row.text for row in rows], placeholder)
    full = [row for row in rows if row.text.strip() not in ("", empty.value)]
    candidates, verdicts = _by_fit(full, empty.value)
    candidates, more = _by_mask_files(full, candidates)
    verdicts |= more
    for aspect in ("offsets", "order", "base"):
        candidates, more = _by_outline(full, candidates, aspect)
        verdicts |= more
        if aspect == "order":
            candidates, more = _by_image(full, candidates)
            verdicts |= more
    best = candidates[0]
    unknown: Verdict = ("guess", "both fit, and no mask tells them apart" if full else "no row has a mask to judge by")
    found = [
        Guess(f"rle.{aspect}", getattr(best, aspect), *verdicts.get(aspect, unknown)) for aspect in ("order", "base")
    ]
    said = [Guess("rle.offsets", best.offsets, *verdicts.get("offsets", unknown))]
    return [*found, empty, *(said if best.offsets == "relative" else [])]


def guess_empty(texts: list[str], placeholder: str = "") -> Guess:
    """Returns the text of an empty mask: one that is no mask, a lone first pixel that comes again and again, or ""."""
    counts = Counter(text.strip() for text in texts)
    odd = {text: count for text, count in counts.items() if text and not _is_mask(text)}
    rows = f"of {len(texts)} rows"
    if odd:
        text = max(odd, key=lambda one: odd[one])
        return Guess(
            "rle.empty", text, "sure" if odd[text] > 1 else "guess", f"{odd[text]} {rows} hold it, and it is no mask"
        )
    if counts["1 1"] >= max(3, 0.02 * len(texts)) and not counts[""]:
        return Guess("rle.empty", "1 1", "guess", f"{counts['1 1']} {rows} are this one pixel")
    if counts[""]:
        return Guess("rle.empty", "", "sure", f"{counts['']} {rows} are blank")
    if placeholder and not PAIRS.fullmatch(placeholder):
        return Guess("rle.empty", placeholder, "guess", "no row is empty; the sample submission writes it")
    return Guess("rle.empty", "", "guess", "no row is empty")


def _is_mask(text: str) -> bool:
    return bool(PAIRS.fullmatch(text)) and any(
        _runs(text, Convention(base=0, offsets=offsets)) is not None for offsets in ("absolute", "relative")
    )


def _runs(text: str, convention: Convention) -> np.ndarray | None:
    try:
        return rle.parse(text, convention)
    except rle.RleError:
        return None


# --- does every mask fit its image? ----------------------------------------------------------------------------------


def _by_fit(rows: list[MaskRow], empty: str) -> tuple[list[Convention], dict[str, Verdict]]:
    """The conventions in which most masks lie inside their image, and what that alone decides."""
    fits: dict[Fit, int] = {key: 0 for key in product(_OFFSETS, _BASES)}
    for offsets in _OFFSETS:
        for row in rows:
            runs = _runs(row.text, Convention("column", 0, empty, offsets))
            if runs is not None and len(runs):
                first, end = int(runs[0, 0]), int(runs[-1].sum())
                for base in _BASES:
                    fits[offsets, base] += first >= base and end - base <= row.shape[0] * row.shape[1]
    most = max(fits.values())
    kept = [key for key, count in fits.items() if count == most]
    verdicts: dict[str, Verdict] = {}
    for place, aspect in enumerate(("offsets", "base")):
        if rows and len({key[place] for key in kept}) == 1:
            own = kept[0][place]
            others, other = max((count, _NAMES[key[place]]) for key, count in fits.items() if key[place] != own)
            whole = most == len(rows)
            count = f"all {most}" if whole else f"{most} of {len(rows)}"
            text = f"{count} masks fit their image with {_NAMES[own]}, {others} with {other}"
            verdicts[aspect] = "sure" if whole else "guess", text
    orders: tuple[Literal["column", "row"], ...] = ("column", "row")
    return [Convention(order, base, empty, offsets) for offsets, base in kept for order in orders], verdicts


# --- is it the mask of the file? -------------------------------------------------------------------------------------


def _by_mask_files(rows: list[MaskRow], candidates: list[Convention]) -> tuple[list[Convention], dict[str, Verdict]]:
    """The one convention in which the masks equal their files, if there is one."""
    equal = Counter[Convention]()
    chosen = [row for row in _affordable(rows) if row.mask]
    for row in chosen:
        try:
            mask = read_image(row.mask) > 0  # type: ignore[arg-type]
        except ValueError:
            continue
        equal.update(one for one in candidates if _equals(_decoded(row, one), mask[..., 0]))
    (best, count), (_, second) = (*equal.most_common(2), (candidates[0], 0), (candidates[0], 0))[:2]
    if count < CLEAR_SHARE * len(chosen) or count < CLEAR_COUNT or second > 0.5 * count:
        return candidates, {}
    verdict: Verdict = ("sure", f"{count} of {len(chosen)} masks equal their image files only so")
    return [best], dict.fromkeys(("offsets", "order", "base"), verdict)


def _equals(one: np.ndarray | None, other: np.ndarray) -> bool:
    return one is not None and one.shape == other.shape and bool((one == other).all())


# --- is the convention of a YAML the wrong one? ---------------------------------------------------------------------


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
    kept, verdicts = _by_outline(rows, [used, shifted], "base")
    if kept == [shifted] and verdicts["base"][0] == "sure":
        found.append(
            f"{verdicts['base'][1].removesuffix(' so')} one pixel {'later' if used.base else 'earlier'}: if they look "
            f"shifted, set `rle: {{base: {shifted.base}}}` in the competition's YAML"
        )
    return found


# --- is it smooth? ---------------------------------------------------------------------------------------------------


def _by_outline(
    rows: list[MaskRow], candidates: list[Convention], aspect: str
) -> tuple[list[Convention], dict[str, Verdict]]:
    """The candidates whose value of an aspect gives the shorter outlines, where they differ at all."""
    values = list(dict.fromkeys(getattr(one, aspect) for one in candidates))
    if len(values) < 2:
        return candidates, {}
    telling = _telling(rows, candidates, aspect)
    lengths = np.array([[_outline(_decoded(row, one)) for row in telling] for one in candidates])
    lengths = lengths.reshape(len(candidates), len(telling))
    lengths = lengths[:, np.isfinite(lengths).all(0)]
    totals: dict[object, list[np.ndarray]] = {value: [] for value in values}
    for one, own in zip(candidates, lengths, strict=True):
        totals[getattr(one, aspect)].append(own)
    shortest = {value: min(found, key=lambda own: own.sum()) for value, found in totals.items()}
    best, other = sorted(values, key=lambda value: shortest[value].sum())
    better, worse = int((shortest[best] < shortest[other]).sum()), int((shortest[best] > shortest[other]).sum())
    if better <= worse:
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
        return _affordable([row for row in evenly(rows, 20 * MOST_ROWS) if _touches(row, candidates[0])])
    if aspect == "offsets":
        return _affordable(rows)
    oblong = [row for row in rows if row.shape[0] != row.shape[1]]
    return _affordable(oblong) if len(oblong) >= CLEAR_COUNT or len(oblong) == len(rows) else []


def _touches(row: MaskRow, convention: Convention) -> bool:
    """Whether a run starts or ends at an end of a line, or would with the other base."""
    runs = _runs(row.text, Convention(convention.order, 0, convention.empty, convention.offsets))
    line = row.shape[0] if convention.order == "column" else row.shape[1]
    ends = np.stack([runs[:, 0], runs.sum(1)]) % line if runs is not None else np.full(1, 2)
    return bool((ends < 2).any())


def _affordable(rows: list[MaskRow]) -> list[MaskRow]:
    largest = max((row.shape[0] * row.shape[1] for row in rows), default=1)
    return evenly(rows, max(3, min(MOST_ROWS, MOST_PIXELS // largest)))


def _decoded(row: MaskRow, convention: Convention) -> np.ndarray | None:
    try:
        return rle.decode(row.text, row.shape, convention).view(bool)
    except rle.RleError:
        return None


def _outline(mask: np.ndarray | None) -> float:
    """Number of sides between a pixel of the mask and one outside it; infinite without a mask."""
    if mask is None:
        return np.inf
    return float(np.count_nonzero(mask[1:] != mask[:-1]) + np.count_nonzero(mask[:, 1:] != mask[:, :-1]))


# --- does it follow the image? ---------------------------------------------------------------------------------------


def _by_image(rows: list[MaskRow], candidates: list[Convention]) -> tuple[list[Convention], dict[str, Verdict]]:
    """The order in which outlines run along edges of the image, told apart on square images."""
    if len({one.order for one in candidates}) == 1:
        return candidates, {}
    by_column = next(one for one in candidates if one.order == "column")
    z, count = edge_score(rows, by_column)
    order = "row" if z <= -WEAK_Z else "column"
    seen = f"on square images: edges along {count} outlines against those along their mirrors, z = {abs(z):.1f}"
    if abs(z) < WEAK_Z:
        seen = f"square images look alike in both orders ({seen.removeprefix('on square images: ')})"
    verdict: Verdict = ("sure" if abs(z) >= CLEAR_Z and count >= CLEAR_IMAGES else "guess", seen)
    return [one for one in candidates if one.order == order], {"order": verdict}


def edge_score(rows: list[MaskRow], convention: Convention) -> tuple[float, int]:
    """Returns by how many standard errors outlines follow the edges of their image better than mirrored ones do, and
    over how many square images.

    Layers in the images, or a place where masks tend to lie, could favour one order by themselves; so what the mask of
    another image scores is taken off.
    """
    shapes = Counter(row.shape for row in rows if row.shape[0] == row.shape[1])
    square = [row for row in rows if shapes and row.shape == shapes.most_common(1)[0][0]]
    pairs = [pair for row in _affordable(square) if (pair := _edges_and_outlines(row, convention)) is not None]
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
    mask = _decoded(row, convention)
    try:
        image = read_image(row.image).mean(2, dtype=np.float32)
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
