"""What is gone through: clean's findings, a pair of images only once, and the labels that tune suspects."""

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
"""Reasons in the order in which a person goes through them: what costs a score most comes first."""
SHARES_MASKS = ("contradiction", "duplicate")
"""Reasons whose images look alike, so that one may learn the other's mask."""


@dataclass(frozen=True)
class Item:
    """A finding about an image, or about a pair of images."""

    key: str
    """What a page calls it."""
    image_id: str
    partner_id: str
    reason: str
    text: str
    score: str
    note: str

    @property
    def images(self) -> list[str]:
        """The image, and its partner where it has one."""
        return [one for one in (self.image_id, self.partner_id) if one]

    def decision(self, place: int, action: str) -> Decision:
        """Returns the decision about the image (0) or its partner (1)."""
        ids = (self.image_id, self.partner_id)
        return Decision(ids[place], self.reason, ids[1 - place], action, self.score, self.note)


class Listing:
    """The items of a run, as outliers.csv and suspects.csv say now."""

    def __init__(self, run: Run) -> None:
        """Reads the table of images once; the lists are read again at every `read`."""
        self.run = run
        self.images = table.read_table(run.table, "train").reset_index(drop=True)
        self.numbers = {str(one): number for number, one in enumerate(self.images["image_id"])}
        self.faulty = set(self.images["image_id"][self.images["fault"] != ""])
        scored = (run.folder / "oof_scores.csv").exists()
        self.predicted = set(look.scores(run)["image_id"]) if scored and run.postprocess.exists() else set[str]()
        self.empty = set(self.images["image_id"][table.total_area(self.images, run.competition.foreground) == 0])

    def read(self) -> tuple[pd.DataFrame, dict[str, Item]]:
        """Returns outliers.csv, and the items by their keys in the order in which they are gone through."""
        found = decisions.read(self.run)
        items = _of_findings(found)
        if self.run.suspects.exists() and (self.run.folder / "oof_scores.csv").exists():
            items += [_suspect(row) for row in look.suspects(self.run).to_dict("records")]
        items = [one for one in items if one.image_id in self.numbers]
        rank = {reason: place for place, reason in enumerate(ORDER)}
        items.sort(key=lambda one: rank.get(one.reason, len(ORDER)))
        return found, _first(items)

    def actions(self, item: Item) -> list[str]:
        """Returns what can be decided about the images of an item."""
        if any(one in self.faulty for one in item.images):
            return ["drop"]
        lends = item.reason in SHARES_MASKS and item.partner_id in self.numbers
        soft = ["soft"] if self.run.competition.kind != "multiclass" else []
        return ["keep", "drop", *(["relabel", *soft] if lends else [])]

    def shown(self, found: pd.DataFrame, items: list[Item]) -> list[dict[str, Any]]:
        """Returns items as a page shows them: their images, what may be decided, and what holds now."""
        ids = pd.Series([one for item in items for one in item.images], dtype=object)
        use = dict(zip(ids, uses_of(found, ids), strict=True))
        done, alone = decisions.decided(found), decisions.without_partner(found)
        lent = found[found["action"] == "relabel"].drop_duplicates("image_id").set_index("image_id")["partner_id"]
        images = {
            one: {
                "id": one, "number": self.numbers.get(one), "empty": one in self.empty,
                "predicted": one in self.predicted, "use": use[one], "learns": str(lent.get(one, "")),
                "decided": one in done, "alone": one in alone,
            }
            for one in use
        }  # fmt: skip
        return [
            {
                "key": item.key, "reason": item.reason, "text": item.text, "actions": self.actions(item),
                "images": [images[one] for one in item.images],
            }
            for item in items
        ]  # fmt: skip


def is_open(item: Item, done: set[str]) -> bool:
    """Returns whether nobody has decided about any image of an item."""
    return not done.intersection(item.images)


def _of_findings(found: pd.DataFrame) -> list[Item]:
    """One item per finding; of a pair that stands there twice, the row that clean wrote first."""
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
    """The items by their keys, the first of equal ones."""
    kept: dict[str, Item] = {}
    for one in items:
        kept.setdefault(one.key, one)
    return kept
