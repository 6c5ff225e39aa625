"""What clean found, as pictures with captions: the clearest and the least clear findings of every reason, each image
beside its partner under their true masks."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from pipeline.core.errors import PipelineError
from pipeline.core.run import Run
from pipeline.decode import table
from pipeline.masks import overlay
from pipeline.report import look
from pipeline.split.folds import read_outliers

EACH_END = 4
"""Findings of each end of a reason's scores."""
WIDTH = 220
"""Pixels across of one image."""
GAP = 4
ACTIONS = {
    "drop": "left out of training", "keep": "kept", "relabel": "trained with the partner's mask",
    "soft": "trained with the mean of both masks", "apart": "not taken for duplicates",
}  # fmt: skip
"""What follows from a finding, in words; `apart` is of the nearest pairs beyond the bound."""
SCORES = {
    "broken": "{:.1f} robust standard deviations from the others",
    "pixel outlier": "{:.1f} robust standard deviations from the others",
    "duplicate": "distance {:.5f}", "contradiction": "distance {:.5f}", "test duplicate": "distance {:.5f}",
}  # fmt: skip
"""What a score counts, by reason; 0 of a broken image says nothing."""


def figures(run: Run) -> dict[str, list[dict[str, Any]]]:
    """Returns figures by reason: id, address, alt and caption; of the images whose files are still there."""
    images = table.read_table(run.table).drop_duplicates("image_id").set_index("image_id", drop=False)
    lists = [(read_outliers(run), images)]
    if run.pairs_apart.exists():
        lists.append((look.read_written(run.pairs_apart, look.FINDING, "clean"), images))
    if run.test_duplicates.exists() and run.test_table.exists():
        tests = table.read_table(run.test_table).drop_duplicates("image_id").set_index("image_id", drop=False)
        lists.append((look.test_duplicates(run), tests))
    read = look.opener(run)
    found: dict[str, list[dict[str, Any]]] = {}
    for listed, partners in lists:
        for reason, rows in listed.groupby("reason", sort=False):
            for row in ends(rows).to_dict("records"):
                figure = _figure(run, read, row, images, partners)
                found.setdefault(str(reason), []).extend([figure] if figure else [])
    return {reason: shown for reason, shown in found.items() if shown}


def ends(rows: pd.DataFrame) -> pd.DataFrame:
    """Returns the first and the last findings of a reason by their scores, a pair only once."""
    ordered = rows.assign(_score=pd.to_numeric(rows["score"], errors="coerce")).sort_values("_score", kind="stable")
    pairs = ordered[["image_id", "partner_id"]].agg(frozenset, axis=1) if len(ordered) else pd.Series(dtype=object)
    alone = (ordered["partner_id"].astype(str) == "").to_numpy()
    ordered = ordered[alone | ~pairs.duplicated().to_numpy()]
    if len(ordered) <= 2 * EACH_END:
        return ordered
    return pd.concat([ordered.head(EACH_END), ordered.tail(EACH_END)])


def caption(finding: dict[str, Any]) -> str:
    """Returns a finding as a sentence: the images, what was found, and what follows."""
    partner = str(finding["partner_id"] or "")
    names = f"{finding['image_id']} and {partner}" if partner else str(finding["image_id"])
    action = ACTIONS.get(str(finding["action"]), str(finding["action"]))
    return f"{names}: {'; '.join([*details(finding), action])}."


def details(finding: dict[str, Any]) -> list[str]:
    """Returns what was found, and what its score says; what says nothing is left out."""
    score = float(finding["score"]) if str(finding["score"]) else 0.0
    counted = SCORES.get(str(finding["reason"]), "")
    text = counted.format(score) if counted and (score or finding["partner_id"]) else ""
    return [one for one in (str(finding["note"] or ""), text) if one]


def _figure(
    run: Run, read: Callable[[Any], np.ndarray], finding: dict[str, Any], images: pd.DataFrame, partners: pd.DataFrame
) -> dict[str, Any] | None:
    """One figure; None where an image cannot be read."""
    sides = [(str(finding["image_id"]), images), (str(finding["partner_id"] or ""), partners)]
    try:
        pictures = [_picture(run, read, listed.loc[name]) for name, listed in sides if name]
    except (PipelineError, ValueError, KeyError, OSError):
        return None
    parts = [one for picture in pictures for one in (np.full((len(picture), GAP, 3), 128, np.uint8), picture)][1:]
    height = max(map(len, parts))
    parts = [np.pad(one, ((0, height - len(one)), (0, 0), (0, 0)), constant_values=128) for one in parts]
    joined = np.hstack(parts)
    text = caption(finding)
    address = overlay.to_data_address(joined, joined.shape[1])
    pair = len(pictures) > 1
    return {"id": str(finding["image_id"]), "address": address, "alt": text, "caption": text, "pair": pair}


def _picture(run: Run, read: Callable[[Any], np.ndarray], row: pd.Series) -> np.ndarray:
    """An image under its true masks, of the width of a figure."""
    image = read(row)
    masks = None if row["fault"] else table.true_mask(row, run.competition.classes)
    picture = overlay.drawn(image, masks, None, run.competition)
    return overlay.scaled(picture, WIDTH)
