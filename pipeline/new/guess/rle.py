"""Guesses the run-length convention of a table of masks from the masks themselves, mask files and images.

With wrong offsets, masks leave the image. With a wrong order, they break into pieces. With a wrong base, masks at an
edge extend beyond it. On square images, the wrong order gives the mirrored mask, which is equally smooth: there the
image decides, by its edges along the outline of the mask.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Literal

import numpy as np
import pandas as pd

from pipeline.decode.readers import remarks
from pipeline.decode.readers.files import evenly, read_image
from pipeline.decode.rle_checks import (
    CLEAR_COUNT,
    CLEAR_IMAGES,
    CLEAR_SHARE,
    CLEAR_Z,
    MaskRow,
    Verdict,
    affordable,
    by_outline,
    decoded,
    edge_score,
    outline_length,
    parsed,
)
from pipeline.masks.rle import Convention, RleError, is_placeholder, parse
from pipeline.new.guess import forms
from pipeline.new.guess.base import Guess

PAIRS = re.compile(r"\s*\d+\s+\d+(\s+\d+\s+\d+)*\s*")
MOST_FITTED = 2000
"""If all masks fit with absolute starts, number of masks that are tried with relative starts first."""
LEAST_SIZED, TORN = 5, 0.6
"""Minimum number of masks to detect that they belong to smaller images, and the ratio of outline lengths for that."""
STEP = 0.01
"""Tolerance of the distance between neighbouring runs, as a share of the side."""
LEAST_STEPS, SURE_STEPS = 10, 200
"""Number of neighbouring runs needed to guess the order, and to be sure of it."""
WEAK_Z = 2.0
"""z value from which on the edges in the images decide the order as a guess."""
_OFFSETS: tuple[Literal["absolute", "relative"], ...] = ("absolute", "relative")
_ORDERS: tuple[Literal["column", "row"], ...] = ("column", "row")
_BASES: tuple[Literal[0, 1], ...] = (1, 0)
_NAMES = {"absolute": "absolute starts", "relative": "relative starts", 1: "base 1", 0: "base 0"}
Fit = tuple[Literal["absolute", "relative"], Literal[0, 1]]


def guess_rle(rows: list[MaskRow], placeholder: str = "", writing: Convention = Convention()) -> list[Guess]:
    """Returns the guesses for `rle.order`, `rle.base` and `rle.empty`, and for `rle.offsets` if it is not the default.

    Args:
        rows: all rows of the table whose image is known.
        placeholder: the text that the sample submission has in every row.
        writing: format of the numbers.
    """
    empty = guess_empty([row.text for row in rows], placeholder, writing)
    full = [row for row in rows if row.text.strip() not in ("", empty.value)]
    candidates, verdicts = _by_fit(full, replace(writing, empty=empty.value))
    candidates, more = _by_mask_files(full, candidates)
    verdicts |= more
    small = [row for row in full if row.shape[0] * row.shape[1] <= forms.HUGE]
    if full and not small:
        candidates, more = _by_steps(full, candidates)
        verdicts |= more
    # for an image that is stored rotated, a smooth mirrored mask may belong to the stored pixels
    straight = [row for row in small if not remarks.has("turned", row.image)]
    for aspect in ("offsets", "order", "base"):
        candidates, more = by_outline(straight if aspect == "order" else small, candidates, aspect)
        verdicts |= more
        if aspect == "order" and straight:
            candidates, more = _by_image(straight, candidates)
            verdicts |= more
    best = candidates[0]
    if best.offsets == "relative" and len({candidate.base for candidate in candidates}) > 1:
        best = replace(best, base=0)
        verdicts["base"] = ("guess", "no mask shows it; relative starts mostly count from 0 (SIIM-ACR Pneumothorax)")
    why = "both fit, and no mask distinguishes them" if full else "no row has a mask to judge by"
    unknown: Verdict = ("guess", f"{why}; images are too large to compare outlines" if full and not small else why)
    aspects = ("order", "base") if writing.is_pairs else ("order",)
    guesses = [Guess(f"rle.{aspect}", getattr(best, aspect), *verdicts.get(aspect, unknown)) for aspect in aspects]
    for key in ("format", "separator", "run_separator", "as_json"):
        if getattr(writing, key) != getattr(Convention(), key):
            guesses.append(
                Guess(f"rle.{key}", getattr(writing, key), "sure", "all rows that are not empty are written so")
            )
    offsets = [Guess("rle.offsets", best.offsets, *verdicts.get("offsets", unknown))]
    return [*guesses, empty, *(offsets if best.offsets == "relative" else [])]


def guess_empty(texts: list[str], placeholder: str = "", writing: Convention = Convention()) -> Guess:
    """Returns the guess for the text of an empty mask: a text that is not a mask, a frequent single pixel, or ""."""
    counts = Counter(text.strip() for text in texts)
    odd = {
        text: count
        for text, count in counts.items()
        if text and not is_damaged(text, count, writing) and not _is_mask(text, writing)
    }
    rows = f"of {len(texts)} rows"
    if odd:
        text = max(odd, key=lambda text: odd[text])
        return Guess(
            "rle.empty", text, "sure" if odd[text] > 1 else "guess", f"{odd[text]} {rows} hold it, and it is no mask"
        )
    if counts["1 1"] >= max(3, 0.02 * len(texts)) and not counts[""]:
        return Guess("rle.empty", "1 1", "guess", f"{counts['1 1']} {rows} are this one pixel")
    if counts[""]:
        return Guess("rle.empty", "", "sure", f"{counts['']} {rows} are blank")
    if placeholder and not PAIRS.fullmatch(placeholder) and not _is_mask(placeholder, writing):
        return Guess("rle.empty", placeholder, "guess", "no row is empty; the sample submission writes it")
    return Guess("rle.empty", "", "guess", "no row is empty")


def is_damaged(text: str, count: int, writing: Convention = Convention()) -> bool:
    """Returns whether a text that is not a valid mask is damaged run lengths, and not the text of an empty mask.

    Args:
        text: the text, without surrounding spaces.
        count: number of rows with this text.
        writing: format of the numbers.
    """
    if count > 1 or is_placeholder(text) or _is_mask(text, writing):
        return False
    if writing.format.startswith("coco"):
        return not re.fullmatch(r"[A-Za-z_ -]*", text)
    numbers = [int(number) for number in re.findall(r"\d+", text)[:1000]]
    return max(numbers, default=0) > 1 or len(numbers) > 2


def damaged_rows(frame: pd.DataFrame, column: str, convention: Convention) -> Iterator[str]:
    """Yields the fault of each row whose text is not a mask in this convention: `row 7: …`."""
    for row, text in zip(frame.index + 2, frame[column], strict=True):
        try:
            parse(text, convention)
        except RleError as error:
            yield f"row {row}: {error}"


def _is_mask(text: str, writing: Convention) -> bool:
    if not writing.is_pairs:
        return parsed(text, writing) is not None
    return (writing != Convention() or bool(PAIRS.fullmatch(text))) and any(
        parsed(text, replace(writing, base=0, offsets=offsets)) is not None for offsets in _OFFSETS
    )


# --- does every mask fit its image? ----------------------------------------------------------------------------------


def _by_fit(rows: list[MaskRow], written: Convention) -> tuple[list[Convention], dict[str, Verdict]]:
    """The conventions in which most masks fit into their image, and the verdicts that follow from this alone.

    Args:
        rows: masks that are not empty.
        written: format of the numbers, and the text of an empty mask.
    """
    if not written.is_pairs:
        return [replace(written, order=order) for order in _ORDERS], {}
    fits: dict[Fit, int] = {key: 0 for key in product(_OFFSETS, _BASES)}
    for offsets in _OFFSETS:
        if offsets == "relative" and max(fits.values()) == len(rows) > MOST_FITTED:
            sample = evenly(rows, MOST_FITTED)  # all others need not be tried where some do not fit
            if not all(_inside(row, replace(written, base=0, offsets=offsets)) for row in sample):
                break
        for row in rows:
            runs = parsed(row.text, replace(written, base=0, offsets=offsets))
            if runs is not None and len(runs):
                first, end = int(runs[0, 0]), int(runs[-1].sum())
                for base in _BASES:
                    fits[offsets, base] += first >= base and end - base <= row.shape[0] * row.shape[1]
    most = max(fits.values())
    kept = [key for key, count in fits.items() if count == most]
    verdicts: dict[str, Verdict] = {}
    for place, aspect in enumerate(("offsets", "base")):
        if rows and len({key[place] for key in kept}) == 1:
            value = kept[0][place]
            others, other = max((count, _NAMES[key[place]]) for key, count in fits.items() if key[place] != value)
            whole = most == len(rows)
            count = f"all {most}" if whole else f"{most} of {len(rows)}"
            text = f"{count} masks fit their image with {_NAMES[value]}, {others} with {other}"
            verdicts[aspect] = "sure" if whole else "guess", text
    candidates = [replace(written, base=base, offsets=offsets) for offsets, base in kept]
    return [replace(candidate, order=order) for candidate in candidates for order in _ORDERS], verdicts


def _by_steps(rows: list[MaskRow], candidates: list[Convention]) -> tuple[list[Convention], dict[str, Verdict]]:
    """The order in which successive runs are neighbours: their starts are then one column, or one row, apart. It needs
    no decoded image."""
    counts = dict.fromkeys(_ORDERS, 0)
    for row in rows:
        runs = parsed(row.text, replace(candidates[0], base=0))
        if runs is None or row.shape[0] == row.shape[1]:
            continue
        steps = np.diff(runs[:, 0])
        reach = min(STEP * min(row.shape), abs(row.shape[0] - row.shape[1]) / 3)
        for order, length in zip(_ORDERS, row.shape, strict=True):
            counts[order] += int((abs(steps - length) <= reach).sum())
    best, other = sorted(_ORDERS, key=lambda order: -counts[order])
    if counts[best] < LEAST_STEPS or counts[best] < 3 * counts[other]:
        return candidates, {}
    line = "column" if best == "column" else "row"
    text = f"{counts[best]} runs start about the length of a {line} after the one before, {counts[other]} of a "
    text += "row" if best == "column" else "column"
    verdict: Verdict = ("sure" if counts[best] >= SURE_STEPS else "guess", text)
    return [candidate for candidate in candidates if candidate.order == best] or candidates, {"order": verdict}


def _inside(row: MaskRow, convention: Convention) -> bool:
    """Whether a mask fits into its image."""
    runs = parsed(row.text, convention)
    return runs is not None and (not len(runs) or int(runs[-1].sum()) <= row.shape[0] * row.shape[1])


def other_size(rows: list[MaskRow], guesses: list[Guess]) -> str | None:
    """Returns a sentence if the masks seem to belong to smaller images: they end early, and are broken at full size.

    Args:
        rows: masks of images of one size.
        guesses: the guessed convention.
    """
    values = {guess.key.removeprefix("rle."): guess.value for guess in guesses if guess.key.startswith("rle.")}
    convention = Convention(**values)
    rows = [row for row in rows if row.shape[0] * row.shape[1] <= forms.HUGE]
    sample = affordable([row for row in rows if row.text.strip() not in ("", convention.empty)])
    full = [row for row in sample if decoded(row, convention) is not None]
    shapes = {row.shape for row in full}
    if len(full) < LEAST_SIZED or len(shapes) != 1 or not convention.is_pairs:
        return None
    (height, width) = shapes.pop()
    run_lists = [runs for row in full if (runs := parsed(row.text, convention)) is not None and len(runs)]
    end = max((int(runs[-1].sum()) for runs in run_lists), default=0)
    full_length = sum(
        min(outline_length(decoded(row, replace(convention, order=order))) for order in _ORDERS) for row in full
    )
    for factor in range(2, 11):
        smaller = round(height / factor), round(width / factor)
        if smaller[0] * smaller[1] < end:
            break
        resized = [replace(row, shape=smaller) for row in full]
        length = sum(
            min(outline_length(decoded(row, replace(convention, order=order))) for order in _ORDERS) for row in resized
        )
        if length < TORN * full_length:
            return (
                f"the masks look like those of images of {smaller[0]}×{smaller[1]}, {factor} times smaller than theirs "
                f"({height}×{width}): their outlines are then {full_length / max(length, 1):.1f} times shorter; save "
                "the images at that size, because decode reads masks at the size of the images"
            )
    return None


# --- is it the mask of the file? -------------------------------------------------------------------------------------


def _by_mask_files(rows: list[MaskRow], candidates: list[Convention]) -> tuple[list[Convention], dict[str, Verdict]]:
    """The only convention in which the masks equal their mask files, if there is one."""
    equal = Counter[Convention]()
    chosen = [row for row in affordable(rows) if row.mask]
    for row in chosen:
        try:
            mask = read_image(row.mask, as_mask=True) > 0  # type: ignore[arg-type]
        except ValueError:
            continue
        equal.update(candidate for candidate in candidates if _equals(decoded(row, candidate), mask[..., 0]))
    (best, count), (_, second) = (*equal.most_common(2), (candidates[0], 0), (candidates[0], 0))[:2]
    if count < CLEAR_SHARE * len(chosen) or count < CLEAR_COUNT or second > 0.5 * count:
        return candidates, {}
    verdict: Verdict = ("sure", f"{count} of {len(chosen)} masks equal their image files only so")
    return [best], dict.fromkeys(("offsets", "order", "base"), verdict)


def _equals(mask: np.ndarray | None, other: np.ndarray) -> bool:
    return mask is not None and mask.shape == other.shape and bool((mask == other).all())


# --- does it follow the image? ---------------------------------------------------------------------------------------


def _by_image(rows: list[MaskRow], candidates: list[Convention]) -> tuple[list[Convention], dict[str, Verdict]]:
    """The order in which the outlines of masks follow edges in the image, which decides on square images."""
    if len({candidate.order for candidate in candidates}) == 1:
        return candidates, {}
    by_column = next(candidate for candidate in candidates if candidate.order == "column")
    z, count = edge_score(rows, by_column)
    order = "row" if z <= -WEAK_Z else "column"
    seen = f"on square images: edges along {count} outlines against those along their mirrors, z = {abs(z):.1f}"
    if abs(z) < WEAK_Z:
        seen = f"square images look alike in both orders ({seen.removeprefix('on square images: ')})"
    verdict: Verdict = ("sure" if abs(z) >= CLEAR_Z and count >= CLEAR_IMAGES else "guess", seen)
    return [candidate for candidate in candidates if candidate.order == order], {"order": verdict}
