"""Guesses the format of the numbers in a column of run lengths: separators, JSON, COCO's counts."""

import json
import re
from collections import Counter
from dataclasses import replace
from typing import Any

import pandas as pd

from pipeline.decode.readers.files import evenly
from pipeline.masks.rle import Convention, RleError, parse
from pipeline.new.guess.rle import PAIRS

SAMPLED = 50
"""Number of texts from which the format is guessed."""
_NUMBERS = re.compile(r"\d+(?: *[ ,;:|] *\d+)+")
_SPACED = r"\d+(\s+\d+)+"
LEAST = 6
"""Minimum count of numbers in the longest mask: a box has four numbers, a time of day three."""
_PACKED = re.compile(r"e[AFJN][A-Za-z0-9+/]{6,}={0,2}")
_COCO, _ODD = re.compile(r"[0-o]{3,}"), re.compile(r"[:-@\[-`]")
"""COCO's compressed counts, and characters that most of them contain but ids do not."""


def writing_of(texts: pd.Series) -> tuple[Convention, pd.Series] | None:
    """Returns the format of a column of run lengths, and which of its texts have it; None for other columns.

    Args:
        texts: values that are not blank, without surrounding spaces.
    """
    pairs = texts.str.fullmatch(PAIRS.pattern).astype(bool)
    if pairs.any():
        numbers = texts.str.fullmatch(_SPACED).astype(bool)
        if (numbers & ~pairs).sum() > 0.2 * numbers.sum():  # masks with an odd number of numbers
            return Convention(format="counts"), numbers
        return Convention(), pairs
    sample = evenly(texts.drop_duplicates().tolist(), SAMPLED)
    votes = Counter(written for text in sample if (written := _writing(text)) is not None)
    counts = {len(re.findall(r"\d+", text)) for text in sample}
    if not votes or (
        "coco" not in {convention.format.split("_")[0] for convention in votes}
        and (max(counts) < LEAST or len(counts) < 2)
    ):
        return None
    best = votes.most_common(1)[0][0]
    if best.format == "coco" and not best.as_json and votes[best] < 0.5 * len(sample):
        return None
    if best.separator != " " and best.run_separator is None and best.as_json is None:
        several = [
            convention
            for convention in votes
            if convention.run_separator == best.separator or convention.separator == best.separator
        ]
        best = next((convention for convention in several if convention.run_separator), best)
    fitting = texts.map(lambda text: _fits(text, best)).astype(bool)
    return (best, fitting) if fitting.any() else None


def _fits(text: str, convention: Convention) -> bool:
    """Whether a text is a mask with any base and offsets."""
    if not convention.is_pairs:
        return _parses(text, convention)
    starts = replace(convention, base=0)
    return _parses(text, starts) or (not convention.as_json and _parses(text, replace(starts, offsets="relative")))


def _parses(text: str, convention: Convention) -> bool:
    try:
        parse(text, convention)
    except (RleError, ValueError):
        return False
    return True


def _writing(text: str) -> Convention | None:
    """The format of one text; None if it is not a mask."""
    if text[:1] in "[{":
        return _of_json(text)
    if _PACKED.fullmatch(text) and _parses(text, Convention(format="coco_zlib")):
        return Convention(format="coco_zlib")
    if _NUMBERS.fullmatch(text):
        return _of_numbers(text)
    if _COCO.fullmatch(text) and _ODD.search(text) and _parses(text, Convention(format="coco")):
        return Convention(format="coco")
    return None


def _of_json(text: str) -> Convention | None:
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict):
        counts = value.get("counts")
        form = "coco" if isinstance(counts, str) else "counts" if isinstance(counts, list) else None
        return Convention(format=form, as_json="coco") if form else None  # type: ignore[arg-type]
    if not isinstance(value, list) or not value:
        return None
    if all(isinstance(run, list) and len(run) == 2 for run in value):
        return Convention(as_json="pairs")
    if all(isinstance(number, int) for number in value):
        return Convention(as_json="list") if len(value) % 2 == 0 else Convention(format="counts", as_json="list")
    return None


def _of_numbers(text: str) -> Convention | None:
    between = re.findall(r"\D+", text)
    inner, outer = set(between[::2]), set(between[1::2])
    if len(inner) != 1 or len(outer) > 1:
        return None
    separator = inner.pop()
    run_separator = outer.pop() if outer else separator
    if len(between) % 2 == 0:  # an odd number of numbers: pixels outside and inside in turn
        return Convention(format="counts", separator=separator) if run_separator == separator else None
    return Convention(separator=separator, run_separator=None if run_separator == separator else run_separator)
