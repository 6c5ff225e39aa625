"""Pictures of the findings of clean: for every reason the clearest and the least clear ones, each image next to its
partner, with their true masks and a caption."""

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
"""Number of findings with the highest scores, and with the lowest scores, per reason."""
WIDTH = 220
"""Width of one image in pixels."""
GAP = 4
ACTIONS = {
    "drop": "left out of training", "keep": "kept", "relabel": "trained with the partner's mask",
    "soft": "trained with the mean of both masks", "apart": "not treated as duplicates",
}  # fmt: skip
"""The consequence of a finding, in words; `apart` marks the closest pairs beyond the distance limit."""
SCORES = {
    "broken": "{:.1f} robust standard deviations from the others",
    "pixel outlier": "{:.1f} robust standard deviations from the others",
    "duplicate": "distance {:.5f}", "contradiction": "distance {:.5f}", "test duplicate": "distance {:.5f}",
}  # fmt: skip
"""The meaning of the score, by reason. The score 0 of a broken image has no meaning."""


def figures(run: Run) -> dict[str, list[dict[str, Any]]]:
    """Returns figures (id, address, alt and caption) by reason, for images whose files still exist."""
    images = table.read_table(run.table).drop_duplicates("image_id").set_index("image_id", drop=False)
    lists = [(read_outliers(run), images)]
    if run.pairs_apart.exists():
        lists.append((look.read_written(run.pairs_apart, look.FINDING, "clean"), images))
    if run.test_duplicates.exists() and run.test_table.exists():
        tests = table.read_table(run.test_table).drop_duplicates("image_id").set_index("image_id", drop=False)
        lists.append((look.test_duplicates(run), tests))
    read = look.opener(run)
    by_reason: dict[str, list[dict[str, Any]]] = {}
    for listed, partners in lists:
        for reason, rows in listed.groupby("reason", sort=False):
            for row in ends(rows).to_dict("records"):
                figure = _figure(run, read, row, images, partners)
                by_reason.setdefault(str(reason), []).extend([figure] if figure else [])
    return {reason: drawn for reason, drawn in by_reason.items() if drawn}


def ends(rows: pd.DataFrame) -> pd.DataFrame:
    """Returns the findings of a reason with the lowest and the highest scores; each pair appears once."""
    ordered = rows.assign(_score=pd.to_numeric(rows["score"], errors="coerce")).sort_values("_score", kind="stable")
    pairs = ordered[["image_id", "partner_id"]].agg(frozenset, axis=1) if len(ordered) else pd.Series(dtype=object)
    alone = (ordered["partner_id"].astype(str) == "").to_numpy()
    ordered = ordered[alone | ~pairs.duplicated().to_numpy()]
    if len(ordered) <= 2 * EACH_END:
        return ordered
    return pd.concat([ordered.head(EACH_END), ordered.tail(EACH_END)])


def caption(finding: dict[str, Any]) -> str:
    """Returns a finding as a sentence: the images, the details, and the consequence."""
    partner = str(finding["partner_id"] or "")
    names = f"{finding['image_id']} and {partner}" if partner else str(finding["image_id"])
    action = ACTIONS.get(str(finding["action"]), str(finding["action"]))
    return f"{names}: {'; '.join([*details(finding), action])}."


def details(finding: dict[str, Any]) -> list[str]:
    """Returns the note of a finding and the meaning of its score; empty texts are left out."""
    score = float(finding["score"]) if str(finding["score"]) else 0.0
    counted = SCORES.get(str(finding["reason"]), "")
    text = counted.format(score) if counted and (score or finding["partner_id"]) else ""
    return [detail for detail in (str(finding["note"] or ""), text) if detail]


def _figure(
    run: Run, read: Callable[[Any], np.ndarray], finding: dict[str, Any], images: pd.DataFrame, partners: pd.DataFrame
) -> dict[str, Any] | None:
    """One figure; None if an image cannot be read."""
    sides = [(str(finding["image_id"]), images), (str(finding["partner_id"] or ""), partners)]
    try:
        pictures = [_picture(run, read, listed.loc[name]) for name, listed in sides if name]
    except (PipelineError, ValueError, KeyError, OSError):
        return None
    parts = [part for picture in pictures for part in (np.full((len(picture), GAP, 3), 128, np.uint8), picture)][1:]
    height = max(map(len, parts))
    parts = [np.pad(part, ((0, height - len(part)), (0, 0), (0, 0)), constant_values=128) for part in parts]
    joined = np.hstack(parts)
    text = caption(finding)
    address = overlay.to_data_address(joined, joined.shape[1])
    pair = len(pictures) > 1
    return {"id": str(finding["image_id"]), "address": address, "alt": text, "caption": text, "pair": pair}


def _picture(run: Run, read: Callable[[Any], np.ndarray], row: pd.Series) -> np.ndarray:
    """An image with its true masks, scaled to the width of a figure."""
    image = read(row)
    masks = None if row["fault"] else table.true_mask(row, run.competition.classes)
    picture = overlay.drawn(image, masks, None, run.competition)
    return overlay.scaled(picture, WIDTH)
