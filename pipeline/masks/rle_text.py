"""Reading and writing the numbers of run lengths: separators, JSON, COCO's counts and COCO's compressed counts."""

import base64
import binascii
import json
import zlib
from dataclasses import dataclass
from reprlib import repr as shortened
from typing import Any, Literal

import numpy as np

Format = Literal["pairs", "counts", "coco", "coco_zlib"]
Json = Literal["list", "pairs", "coco"]
_LARGEST_NUMBER = 2**62
_LARGEST_TEXT = 2**28
"""Maximum number of characters of an unpacked text."""
_FIRST, _BITS = 48, 5
"""COCO's compressed counts: the code of the character for 0, and the number of bits per character."""


class RleError(ValueError):
    """Raised for a run-length text that does not describe a mask. The message is one sentence that quotes the
    values."""


@dataclass(frozen=True)
class Convention:
    """A competition's convention for run-length text.

    order: whether pixels are numbered column by column ("column") or row by row ("row"). base: the number of the first
    pixel. empty: the text of an empty mask. A mask whose runs give the same text (with base 1 and "1 1", the first
    pixel alone)
        cannot be distinguished from an empty mask and is read as empty. offsets: with "absolute", starts are pixel
            numbers. With "relative", only the first start is a pixel number, and each further start is the gap from the
            end of the run before, 0 if the runs touch. format: "pairs" of start and length; "counts" of pixels
            alternately outside and inside the mask; "coco", COCO's compressed text of these counts; "coco_zlib", this
            text compressed with zlib and encoded in base64. separator: the separator between two numbers.
            run_separator: the separator between two runs; None: `separator`.
    as_json: "list" is [1, 3, 10, 5], "pairs" is [[1, 3], [10, 5]], "coco" is {"size": [rows, columns], "counts": …}.
    """

    order: Literal["column", "row"] = "column"
    base: Literal[0, 1] = 1
    empty: str = ""
    offsets: Literal["absolute", "relative"] = "absolute"
    format: Format = "pairs"
    separator: str = " "
    run_separator: str | None = None
    as_json: Json | None = None

    @property
    def is_pairs(self) -> bool:
        """Whether numbers are starts and lengths."""
        return self.format == "pairs"


# --- pairs -----------------------------------------------------------------------------------------------------------


def plain(text: str, convention: Convention) -> str:
    """Returns a text of pairs as numbers separated by spaces.

    Raises:
        RleError: the text is JSON, but not a list of numbers or of pairs.
    """
    if convention.as_json:
        return " ".join(map(str, _numbers(_json(text))))
    for separator in (convention.run_separator, convention.separator):
        if separator and separator != " ":
            text = text.replace(separator, " ")
    return text


def write_pairs(values: np.ndarray, convention: Convention) -> str:
    """Returns starts and lengths (n, 2) as text."""
    if convention.as_json:
        numbers = values.tolist() if convention.as_json == "pairs" else values.ravel().tolist()
        return json.dumps(numbers)
    numbers = tuple(values.ravel().tolist())
    if convention.run_separator is None:
        # formatting all values at once takes half the time of joining them one by one
        return (f"%d{_escaped(convention.separator)}" * len(numbers) % numbers).removesuffix(convention.separator)
    pair = f"%d{_escaped(convention.separator)}%d{_escaped(convention.run_separator)}"
    return (pair * len(values) % numbers).removesuffix(convention.run_separator)


def spelled(text: str, convention: Convention) -> str:
    """Returns a text in canonical form, so that texts can be compared: JSON with standard spacing, or counts compressed
    at the standard level. Other texts are returned unchanged."""
    try:
        if convention.format == "coco_zlib":
            return _packed(_unpacked(text.strip()))
        return json.dumps(json.loads(text)) if convention.as_json else text
    except (ValueError, RecursionError):
        return text


def _escaped(text: str) -> str:
    return text.replace("%", "%%")


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise RleError(f"{shortened(text)} is not JSON, and `rle: as_json` requires JSON") from None


def _numbers(value: Any) -> list[int]:
    """Returns the integers in a list of numbers or of pairs."""
    if not isinstance(value, list):
        raise RleError(f"the JSON is {shortened(value)}; expected a list of numbers or of pairs")
    numbers: list[int] = []
    for entry in value:
        for number in entry if isinstance(entry, list) else [entry]:
            if isinstance(number, bool) or not isinstance(number, int | float) or not abs(number) < _LARGEST_NUMBER:
                raise RleError(f"the JSON list holds {shortened(number)}, which is not a number of pixels")
            if number != int(number):
                raise RleError(f"the JSON list holds {shortened(number)}, which is not a whole number")
            numbers.append(int(number))
    return numbers


# --- counts ----------------------------------------------------------------------------------------------------------


def counts_of(text: str, convention: Convention) -> np.ndarray:
    """Returns the numbers of pixels alternately outside and inside a mask (n,) int64.

    Raises:
        RleError: the text holds something other than counts, or a negative count.
    """
    counts = _counts(text, convention)
    if len(counts) and (counts.min() < 0 or counts.max() > 2**48):
        wrong = int(counts.min()) if counts.min() < 0 else int(counts.max())
        raise RleError(f"count {int(np.argmax(counts == wrong)) + 1} is {wrong}, which is not a number of pixels")
    return counts


def _counts(text: str, convention: Convention) -> np.ndarray:
    given: Any = text.strip()
    if convention.as_json:
        given = _json(text)
        if convention.as_json == "coco" and not isinstance(given, dict):
            raise RleError(f'the JSON is {shortened(given)}; expected {{"size": [rows, columns], "counts": …}}')
        if isinstance(given, dict):
            given = given.get("counts")
    if isinstance(given, list):
        return np.array(_numbers(given), dtype=np.int64)
    if not isinstance(given, str):
        raise RleError(f"the JSON has {shortened(given)} for `counts`; expected a list or a text")
    if convention.format == "coco_zlib":
        given = _unpacked(given)
    if convention.format != "counts":
        return decompress(given)
    words = given.replace(convention.separator, " ").split()
    wrong = next((word for word in words if not word.isdecimal() or len(word) > 18), None)
    if wrong is not None:
        raise RleError(f"{shortened(wrong)} is not a number of pixels")
    return np.array(words, dtype=np.int64)


def check_shape(text: str, shape: tuple[int, int], convention: Convention) -> None:
    """Raises RleError if the counts do not add up to an image of this shape (rows, columns), or name another size."""
    if convention.as_json == "coco":
        size = _json(text).get("size")
        if size is not None and size != list(shape):
            raise RleError(f"its size is {size}, and that of the image {list(shape)} (rows, columns)")
    total = int(counts_of(text, convention).sum())
    if total != shape[0] * shape[1]:
        image = f"a {shape[0]}×{shape[1]} image has {shape[0] * shape[1]} pixels"
        raise RleError(f"the counts add up to {total}, {image}")


def runs_of_counts(counts: np.ndarray) -> np.ndarray:
    """Returns the runs (n, 2) int64 of counts: 0-based starts, and lengths."""
    ends = np.cumsum(counts)[1::2]
    lengths = counts[1::2]
    return np.stack([ends - lengths, lengths], axis=1)[lengths > 0]


def counts_of_runs(runs: np.ndarray, pixels: int) -> np.ndarray:
    """Returns the counts for runs (n, 2), 0-based starts and lengths, that do not touch, in an image with `pixels`
    pixels."""
    edges = np.concatenate([[0], runs.ravel(), [0]])
    edges[2:-1:2] += edges[1:-1:2]
    edges[-1] = pixels
    counts = np.diff(edges)
    return counts if counts[-1] else counts[:-1]


def write_counts(counts: np.ndarray, shape: tuple[int, int], convention: Convention) -> str:
    """Returns the text of counts in a convention."""
    numbers: Any = counts.tolist()
    if convention.format != "counts":
        numbers = compress(counts)
    if convention.format == "coco_zlib":
        return _packed(numbers)
    if convention.as_json == "coco":
        return json.dumps({"size": list(shape), "counts": numbers})
    if convention.as_json == "list":
        return json.dumps(numbers)
    return numbers if isinstance(numbers, str) else convention.separator.join(map(str, numbers))


def _packed(text: str) -> str:
    return base64.b64encode(zlib.compress(text.encode(), zlib.Z_BEST_COMPRESSION)).decode()


def _unpacked(text: str) -> str:
    try:
        unpacker = zlib.decompressobj()
        unpacked = unpacker.decompress(base64.b64decode(text, validate=True), _LARGEST_TEXT)
        if unpacker.unconsumed_tail or not unpacker.eof:
            raise RleError(f"{shortened(text)} is incomplete, or unpacks to more characters than any mask needs")
        return unpacked.decode("ascii")
    except (binascii.Error, zlib.error, UnicodeDecodeError, ValueError) as error:
        if isinstance(error, RleError):
            raise
        raise RleError(f"{shortened(text)} is not base64 of zlib-compressed counts ({error})") from None


def decompress(text: str) -> np.ndarray:
    """Returns the counts (n,) int64 of COCO's compressed text (rleFrString of its maskApi.c).

    Each character holds five bits, the lowest first. From the fourth on, each count is stored as the difference from
    the count two places before.

    Raises:
        RleError: the text has an invalid character, or is cut short.
    """
    codes = np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int64) - _FIRST
    if len(codes) and (codes.min() < 0 or codes.max() > 63):
        wrong = text[int(np.argmax((codes < 0) | (codes > 63)))] if text.isascii() else text
        raise RleError(f"{shortened(wrong)} is not a character of COCO's compressed counts")
    if not len(codes):
        return np.zeros(0, np.int64)
    last = (codes & 32) == 0
    if not last[-1]:
        raise RleError("COCO's compressed counts are cut short")
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 10:
        raise RleError("COCO's compressed counts hold a number that is too large for any image")
    position = np.arange(len(codes)) - np.repeat(starts, lengths)
    values = np.add.reduceat((codes & 31) << (_BITS * position), starts)
    negative = (codes[ends] & 16) != 0
    values[negative] -= np.int64(1) << (_BITS * lengths[negative])
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def compress(counts: np.ndarray) -> str:
    """Returns COCO's compressed text of counts (rleToString of its maskApi.c)."""
    values = counts.astype(np.int64)
    values[3:] -= counts[1:-2]
    characters = bytearray()
    for number in values.tolist():
        more = True
        while more:
            code = number & 31
            number >>= _BITS
            more = number != (-1 if code & 16 else 0)
            characters.append((code | (32 if more else 0)) + _FIRST)
    return characters.decode()
