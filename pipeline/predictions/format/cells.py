"""Cells that hold several instances, e.g. `0 0.9 <mask> 0 0.8 <mask>` (class, score, run lengths)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.predictions.format import further_columns
from pipeline.predictions.format.expected import Expected, Key, Texts


@dataclass(frozen=True)
class Instance:
    """One instance as it is written in a cell."""

    text: str
    """Its run lengths."""
    label: str | None = None
    """The label of its class, if the cell holds one."""
    score: str | None = None
    """Its confidence, if the cell holds one."""


def joined(keys: list[Key], texts: Texts, scores: Mapping[Key, list[float]], want: Expected) -> str:
    """Returns a cell with all instances of these keys, or the text of an empty mask."""
    assert want.settings.cell is not None
    instances = []
    for key in keys:
        masks = texts[key]
        for text, score in zip(masks, scores.get(key, [1.0] * len(masks)), strict=True):
            if text != want.convention.empty:
                label = "" if key[1] is None else want.labels[key[1]]
                names = {"class": label, "score": further_columns.score_text([score]), "rle": text}
                instances.append(further_columns.filled(want.settings.cell, names))
    return want.several.join(instances) or want.convention.empty


def split(cell: str, want: Expected) -> list[Instance] | None:
    """Returns the instances of a cell, an empty list for an empty cell, or None if the cell does not have the format of
    `submission.cell`."""
    if not cell.strip() or cell.strip() == want.convention.empty.strip():
        return []
    template, blank = want.settings.cell or "{rle}", want.several.isspace()
    expression = re.escape(template).replace(r"\{", "{").replace(r"\}", "}").replace(r"\ ", r"\s+")
    for name in ("class", "score"):
        expression = re.sub(f"{{{name}[^}}]*}}", rf"(?P<{name}>\\S+)", expression)
    expression = expression.replace("{rle}", r"(?P<rle>\S+)" if blank else r"(?P<rle>.+)")
    if blank:
        whole = re.sub(r"\(\?P<\w+>", "(?:", expression)
        if not re.fullmatch(rf"\s*{whole}(?:\s+{whole})*\s*", cell):
            return None
        matches = list(re.finditer(expression, cell))
    else:
        matches = [match for part in cell.split(want.several) if (match := re.fullmatch(rf"\s*{expression}\s*", part))]
        if len(matches) != len(cell.split(want.several)):
            return None
    parts = (match.groupdict() for match in matches)
    return [Instance(part["rle"].strip(), part.get("class"), part.get("score")) for part in parts]
