"""The items of a review: the findings of clean, each pair of images once, and the labels that tune suspects."""

import hashlib
from dataclasses import dataclass
from typing import Any

import pandas as pd

from pipeline.core.run import Run
from pipeline.decode import table
from pipeline.report import findings, look
from pipeline.review import decisions
from pipeline.review.decisions import Decision
from pipeline.split.folds import uses_of

SUSPECT = "suspected label"
ORDER = ("contradiction", SUSPECT, "identical mask", "broken", "pixel outlier", "duplicate")
"""Reasons in the order of the review: those that usually cost most score come first."""
SHARES_MASKS = ("contradiction", "duplicate")
"""Reasons whose images look the same, so that one image can be trained with the mask of the other."""


@dataclass(frozen=True)
class Item:
    """A finding about an image, or about a pair of images."""

    key: str
    """The identifier of the item in the page."""
    image_id: str
    partner_id: str
    reason: str
    text: str
    score: str
    note: str

    @property
    def images(self) -> list[str]:
        """The ids of the image and of its partner, if it has one."""
        return [image_id for image_id in (self.image_id, self.partner_id) if image_id]

    def decision(self, side: int, action: str) -> Decision:
        """Returns a decision on the image (side 0) or on its partner (side 1)."""
        ids = (self.image_id, self.partner_id)
        return Decision(ids[side], self.reason, ids[1 - side], action, self.score, self.note)


class Listing:
    """The items of a run according to the current outliers.csv and suspects.csv."""

    def __init__(self, run: Run) -> None:
        """Reads the table of images. The lists of findings are read at every call of `read`."""
        self.run = run
        self.images = table.read_table(run.table, "train").reset_index(drop=True)
        self.numbers = {str(image_id): number for number, image_id in enumerate(self.images["image_id"])}
        self.faulty = set(self.images["image_id"][self.images["fault"] != ""])
        scored = (run.folder / "oof_scores.csv").exists()
        self.predicted = set(look.scores(run)["image_id"]) if scored and run.postprocess.exists() else set[str]()
        self.empty = set(self.images["image_id"][table.total_area(self.images, run.competition.foreground) == 0])

    def read(self) -> tuple[pd.DataFrame, dict[str, Item]]:
        """Returns outliers.csv, and the items by their keys in the order of the review."""
        found = decisions.read(self.run)
        items = _of_findings(found)
        if self.run.suspects.exists() and (self.run.folder / "oof_scores.csv").exists():
            items += [_suspect(row) for row in look.suspects(self.run).to_dict("records")]
        items = [item for item in items if item.image_id in self.numbers]
        rank = {reason: position for position, reason in enumerate(ORDER)}
        items.sort(key=lambda item: rank.get(item.reason, len(ORDER)))
        return found, _first(items)

    def actions(self, item: Item) -> list[str]:
        """Returns the actions that are possible for the images of an item."""
        if any(image_id in self.faulty for image_id in item.images):
            return ["drop"]
        shares = item.reason in SHARES_MASKS and item.partner_id in self.numbers
        soft = ["soft"] if self.run.competition.kind != "multiclass" else []
        return ["keep", "drop", *(["relabel", *soft] if shares else [])]

    def shown(self, found: pd.DataFrame, items: list[Item]) -> list[dict[str, Any]]:
        """Returns the data of items for the page: their images, the possible actions, and the current state."""
        ids = pd.Series([image_id for item in items for image_id in item.images], dtype=object)
        use = dict(zip(ids, uses_of(found, ids), strict=True))
        done, alone = decisions.decided(found), decisions.without_partner(found)
        partners = found[found["action"] == "relabel"].drop_duplicates("image_id").set_index("image_id")["partner_id"]
        images = {
            image_id: {
                "id": image_id, "number": self.numbers.get(image_id), "empty": image_id in self.empty,
                "predicted": image_id in self.predicted, "use": use[image_id],
                "learns": str(partners.get(image_id, "")), "decided": image_id in done, "alone": image_id in alone,
            }
            for image_id in use
        }  # fmt: skip
        return [
            {
                "key": item.key, "reason": item.reason, "text": item.text, "actions": self.actions(item),
                "images": [images[image_id] for image_id in item.images],
            }
            for item in items
        ]  # fmt: skip


def is_open(item: Item, done: set[str]) -> bool:
    """Returns whether no image of an item has a decision."""
    return not done.intersection(item.images)


def _of_findings(found: pd.DataFrame) -> list[Item]:
    """One item per finding. If a pair is listed twice, the row that clean wrote first counts."""
    ordered = found.assign(_added=[decisions.is_added(text) for text in found[decisions.HISTORY]])
    items, seen = [], set()
    for row in ordered.sort_values("_added", kind="stable").to_dict("records"):
        pair = (row["reason"], frozenset(filter(None, (row["image_id"], row["partner_id"]))))
        if pair not in seen:
            seen.add(pair)
            text = "; ".join(findings.details(row))
            items.append(_item(row["image_id"], row["partner_id"], row["reason"], text, row))
    return items


def _suspect(row: dict[str, Any]) -> Item:
    return _item(row["image_id"], "", SUSPECT, f"{row['reason']}; {row['note']}", row)


def _item(image_id: str, partner_id: str, reason: str, text: str, row: dict[str, Any]) -> Item:
    name = hashlib.sha256("\n".join((image_id, partner_id, reason)).encode()).hexdigest()[:16]
    return Item(name, image_id, partner_id, reason, text, str(row.get("score", "")), str(row.get("note", "")))


def _first(items: list[Item]) -> dict[str, Item]:
    """The items by their keys; of items with the same key, the first."""
    kept: dict[str, Item] = {}
    for item in items:
        kept.setdefault(item.key, item)
    return kept
