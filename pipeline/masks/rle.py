"""Run-length text of binary masks: encoding, strict decoding, and conversion between conventions of competitions.

A run-length text lists the foreground as "start length" pairs separated by spaces. Competitions differ in the order in
which pixels are numbered, in the number of the first pixel, in the text for an empty mask, in whether a start is a
pixel number or the gap after the previous run, and in the notation of the numbers (rle_text.py).
"""

import json
import re
from reprlib import repr as shortened
from typing import Literal, Protocol

import numpy as np

from pipeline.masks import rle_text
from pipeline.masks.rle_text import Convention as Convention
from pipeline.masks.rle_text import RleError as RleError

_DIGITS_AND_SPACES = re.compile(r"[0-9 ]*")
_WHOLE_NUMBER = re.compile(r"-?[0-9]+")
_PLACEHOLDER = re.compile(
    r"\W{1,9}|(-1|0)(\.0)?([ ,]+(-1|0)(\.0)?)*|1 0"
    r"|[<#]?(na|n/a|nan|none|null|nil|empty|blank|missing|nothing|false|no([ _-]?[a-z]+)?)>?",
    re.IGNORECASE,
)
# within these limits for the last pixel and the digits per value, int64 arithmetic on runs cannot overflow
_LARGEST_END, _MOST_DIGITS = 2**62, 18


INTERNAL = Convention()


class ConventionSettings(Protocol):
    """The settings of a competition's `rle`, which describe a convention; see Convention."""

    @property
    def order(self) -> Literal["column", "row"]:
        """See Convention."""

    @property
    def base(self) -> Literal[0, 1]:
        """See Convention."""

    @property
    def empty(self) -> str:
        """See Convention."""

    @property
    def offsets(self) -> Literal["absolute", "relative"]:
        """See Convention."""

    @property
    def format(self) -> rle_text.Format:
        """See Convention."""

    @property
    def separator(self) -> str:
        """See Convention."""

    @property
    def run_separator(self) -> str | None:
        """See Convention."""

    @property
    def as_json(self) -> rle_text.Json | None:
        """See Convention."""


def convention_of(settings: ConventionSettings) -> Convention:
    """Returns the convention that a competition's settings describe."""
    writing = settings.format, settings.separator, settings.run_separator, settings.as_json
    return Convention(settings.order, settings.base, settings.empty, settings.offsets, *writing)


def encode(mask: np.ndarray, convention: Convention = INTERNAL) -> str:
    """Returns the run-length text of a (height, width) mask of bool or integer dtype; non-zero is foreground.

    Raises:
        ValueError: the mask is not 2-D, or holds neither bool nor integers.
    """
    if mask.ndim != 2:
        raise ValueError(f"a mask has 2 dimensions, height and width, but this one has the shape {mask.shape}")
    if mask.dtype.kind not in "biu":
        raise ValueError(f"a mask holds bool or integers, but this one holds {mask.dtype}: threshold it first")
    runs = _find_runs(mask.T if convention.order == "column" else mask)
    return _write(runs, convention, (mask.shape[0], mask.shape[1]))


def decode(text: str, shape: tuple[int, int], convention: Convention = INTERNAL) -> np.ndarray:
    """Returns the (height, width) uint8 mask, 0 or 1, of a run-length text. Blank text and convention.empty give an
    empty mask.

    The memory order of the array is that of the runs, which is fastest: Fortran-contiguous for "column", C-contiguous
    for "row". Use np.ascontiguousarray for code that needs a C-contiguous array.

    Raises:
        RleError: the text is malformed (see parse), or a run ends past the last pixel.
    """
    runs = _fitting(text, shape, convention)
    pixels = np.zeros(shape[0] * shape[1], dtype=np.uint8)
    if len(runs):
        # one repeat over alternating foreground and gaps is faster than filling the runs one by one
        edges = _edges(runs)
        values = np.zeros(len(edges) - 1, dtype=np.uint8)
        values[::2] = 1
        pixels[edges[0] : edges[-1]] = np.repeat(values, edges[1:] - edges[:-1])
    return pixels.reshape(shape, order="F" if convention.order == "column" else "C")


def decode_box(
    text: str, box: tuple[int, int, int, int], shape: tuple[int, int], convention: Convention = INTERNAL
) -> np.ndarray:
    """Returns a part (h, w) uint8, 0 or 1, of the mask of a text, without creating the whole mask of a large image.

    Args:
        text: the run-length text.
        box: first row, first column, and the row and column after the last ones.
        shape: height and width of the whole mask.
        convention: how the text is written.

    Raises:
        RleError: see decode.
    """
    return box_of_runs(_fitting(text, shape, convention), box, shape, convention.order)


def box_of_runs(
    runs: np.ndarray, box: tuple[int, int, int, int], shape: tuple[int, int], order: Literal["column", "row"]
) -> np.ndarray:
    """Returns a part (h, w) uint8 of the mask described by runs (n, 2); see decode_box."""
    top, left, bottom, right = box
    line, first, last = (shape[0], left, right) if order == "column" else (shape[1], top, bottom)
    begin, end = first * line, last * line
    ends = runs.sum(axis=1)
    inside = runs[np.searchsorted(ends, begin, "right") : np.searchsorted(runs[:, 0], end, "left")]
    lines = np.zeros(end - begin, np.uint8)
    for start, stop in np.clip(np.stack([inside[:, 0], inside.sum(axis=1)], 1) - begin, 0, end - begin).tolist():
        lines[start:stop] = 1
    block = lines.reshape(last - first, line)
    return block.T[top:bottom] if order == "column" else block[:, left:right]


def runs_of(mask: np.ndarray, order: Literal["column", "row"]) -> np.ndarray:
    """Returns the runs (n, 2) int64 of a mask (h, w): 0-based starts in this pixel order, and lengths."""
    return _find_runs(mask.T if order == "column" else mask)


def write(runs: np.ndarray, shape: tuple[int, int], convention: Convention = INTERNAL) -> str:
    """Returns the text of sorted runs (n, 2) of a mask of this shape. Touching runs are merged."""
    return _write(_merge_touching(runs) if len(runs) else runs, convention, shape)


def _fitting(text: str, shape: tuple[int, int], convention: Convention) -> np.ndarray:
    """Returns the runs of a text like parse; raises RleError if they do not fit an image of this shape."""
    runs = parse(text, convention)
    check(runs, shape, convention)
    if not convention.is_pairs and not _is_empty(text, convention):
        rle_text.check_shape(text, shape, convention)
    return runs


def parse(text: str, convention: Convention = INTERNAL) -> np.ndarray:
    """Returns the runs of a text as an (n, 2) int64 array: absolute 0-based starts, and lengths.

    Touching runs are allowed.

    Raises:
        RleError: a value is not an integer, the number of values is odd, a start is below the convention's base, a gap
            is below 0, a length is below 1, or runs are unsorted or overlap. If the text may stand for an empty mask,
            the message suggests `rle.empty`.
    """
    try:
        return _parse(text, convention)
    except RleError as error:
        if not is_placeholder(text):
            raise
        empty = json.dumps(text.strip(), ensure_ascii=False)
        raise RleError(f"{error}; if this text stands for an empty mask, set `rle: {{empty: {empty}}}`") from None


def is_placeholder(text: str) -> bool:
    """Returns whether a text looks like a placeholder for an empty mask, such as NaN, None, [] or -1."""
    return isinstance(text, str) and _PLACEHOLDER.fullmatch(text.strip()) is not None


def _is_empty(text: str, convention: Convention) -> bool:
    return not text or text.isspace() or text.strip() == convention.empty.strip()


def _parse(text: str, convention: Convention) -> np.ndarray:
    if not isinstance(text, str):
        raise RleError(f"run-length text must be a string, but this is {shortened(text)} ({type(text).__name__})")
    if _is_empty(text, convention):
        return np.empty((0, 2), dtype=np.int64)
    if not convention.is_pairs:
        return rle_text.runs_of_counts(rle_text.counts_of(text, convention))
    text = rle_text.plain(text, convention)
    if not text:
        return np.empty((0, 2), dtype=np.int64)
    if not _DIGITS_AND_SPACES.fullmatch(text):
        text = _whole_numbers(text)
    values = np.fromstring(text, dtype=np.int64, sep=" ")
    if len(values) % 2:
        last = f"the last {_start_or_gap(len(values) // 2, convention)}, {values[-1]}"
        raise RleError(f"the number of values, {len(values)}, is odd: {last}, has no length")
    runs = values.reshape(-1, 2)
    if convention.offsets == "relative":
        # with a negative gap or an overflow, the runs are not sorted, which is detected below
        runs[:, 0] = np.cumsum(values)[::2]
    runs[:, 0] -= convention.base
    if not _in_order(runs):
        raise RleError(_first_fault(text.split(), convention))
    return runs


def check(runs: np.ndarray, shape: tuple[int, int], convention: Convention = INTERNAL) -> None:
    """Raises RleError if one of the runs from parse ends past the last pixel of a (height, width) image.

    The convention is only used for the pixel numbers in the message, where starts are absolute.
    """
    size = shape[0] * shape[1]
    if not len(runs) or runs[-1, 0] + runs[-1, 1] <= size:
        return
    index = int(np.argmax(runs.sum(axis=1) > size))
    start, length = runs[index].tolist()
    run, last = _name(index, start + convention.base, length), start + length - 1 + convention.base
    image = f"a {shape[0]}×{shape[1]} image ({size} pixels)"
    raise RleError(f"{run} ends at pixel {last}, past the end of {image} by {start + length - size}")


def area(text: str, convention: Convention = INTERNAL) -> int:
    """Returns the number of foreground pixels of a run-length text.

    Raises:
        RleError: see parse.
    """
    return int(parse(text, convention)[:, 1].sum())


def convert(text: str, shape: tuple[int, int], source: Convention, target: Convention) -> str:
    """Returns the text of a (height, width) mask in another convention, with touching runs merged.

    Raises:
        RleError: see decode.
    """
    if source.order != target.order:
        return encode(decode(text, shape, source), target)
    return _write(_merge_touching(_fitting(text, shape, source)), target, shape)


def _find_runs(lines: np.ndarray) -> np.ndarray:
    """Returns the runs (n, 2) of a 2-D array whose rows are in pixel order."""
    # the foreground usually covers few lines, and only these are transposed
    used = np.flatnonzero(np.bitwise_or.reduce(lines, axis=1))
    if not len(used):
        return np.empty((0, 2), dtype=np.int64)
    block = lines[used[0] : used[-1] + 1]
    padded = np.zeros(block.size + 2, dtype=bool)
    np.not_equal(block, 0, out=padded[1:-1].reshape(block.shape))
    runs = np.flatnonzero(padded[1:] != padded[:-1]).reshape(-1, 2)
    runs[:, 1] -= runs[:, 0]
    runs[:, 0] += used[0] * lines.shape[1]
    return runs


def _write(runs: np.ndarray, convention: Convention, shape: tuple[int, int]) -> str:
    if not len(runs):
        return convention.empty
    if not convention.is_pairs:
        return rle_text.write_counts(rle_text.counts_of_runs(runs, shape[0] * shape[1]), shape, convention)
    values = runs + [convention.base, 0]
    if convention.offsets == "relative":
        values[1:, 0] -= values[:-1].sum(axis=1)
    return rle_text.write_pairs(values, convention)


def _edges(runs: np.ndarray) -> np.ndarray:
    edges = runs.copy()
    edges[:, 1] += edges[:, 0]
    return edges.ravel()


def _merge_touching(runs: np.ndarray) -> np.ndarray:
    edges = _edges(runs)
    gaps = edges[1:-1].reshape(-1, 2)
    merged = np.concatenate([edges[:1], gaps[gaps[:, 0] < gaps[:, 1]].ravel(), edges[-1:]]).reshape(-1, 2)
    merged[:, 1] -= merged[:, 0]
    return merged


def _in_order(runs: np.ndarray) -> bool:
    starts, ends = runs[:, 0], runs[:, 0] + runs[:, 1]
    # a sum that overflows is negative, which the first comparison detects
    ordered = (ends > starts).all() and (starts[1:] >= ends[:-1]).all()
    return bool(ordered and starts[0] >= 0 and ends[-1] <= _LARGEST_END)


def _whole_numbers(text: str) -> str:
    for position, word in enumerate(text.split(), start=1):
        if not _WHOLE_NUMBER.fullmatch(word):
            raise RleError(f"value {position} is {shortened(word)}, not a whole number")
    return " ".join(text.split())


def _first_fault(words: list[str], convention: Convention) -> str:
    for position, word in enumerate(words, start=1):
        if len(word) > _MOST_DIGITS:
            return f"value {position} is {shortened(word)}, beyond the pixels of any image"
    values = list(map(int, words))
    base: int = convention.base
    previous, before, end = "", base, base
    for index, (value, length) in enumerate(zip(values[::2], values[1::2], strict=True)):
        kind = _start_or_gap(index, convention)
        start = end + value if kind == "gap" else value
        run = _name(index, value, length, kind)
        if kind == "gap" and value < 0:
            return f"{run} has a gap below 0"
        if start < base:
            return f"{run} starts below {base}, the number of the first pixel"
        if length < 1:
            return f"{run} has a length below 1"
        if start < before:
            return f"{run} comes before {previous}: runs must be sorted by their starts"
        if start < end:
            return f"{run} overlaps {previous}, which ends at pixel {end - 1}"
        previous, before, end = run, start, start + length
        if end - base > _LARGEST_END:
            return f"{run} ends at pixel {end - 1}, beyond the pixels of any image"
    raise AssertionError("these runs are in order")


def _start_or_gap(index: int, convention: Convention) -> str:
    return "gap" if index and convention.offsets == "relative" else "start"


def _name(index: int, value: int, length: int, kind: str = "start") -> str:
    return f"run {index + 1} ({kind} {value}, length {length})"
