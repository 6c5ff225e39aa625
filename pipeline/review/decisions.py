"""Decisions of a review, stored in outliers.csv, whose actions training follows.

The column `review` keeps the earlier actions of a row. `keep@3 drop@7` means that the action was `keep` before the
third decision and `drop` before the seventh. Decisions can therefore be undone, the last one first, also by another
process.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
from filelock import FileLock, Timeout

from pipeline.core.errors import PipelineError
from pipeline.core.files import shown
from pipeline.core.run import Run
from pipeline.core.tables import write_for_people
from pipeline.split.folds import read_outliers, uses_of

HISTORY = "review"
"""The column of outliers.csv with the earlier actions of a row; empty without a decision."""
ADDED = "new"
"""Stands for the earlier action of a row that a decision added."""
PATIENCE = 5.0
"""Seconds to wait for another process that writes to the competition's folder."""


@dataclass(frozen=True)
class Decision:
    """The action for an image, decided on one finding about it."""

    image_id: str
    reason: str
    partner_id: str
    action: str
    """drop, keep, relabel or soft."""
    score: str = ""
    note: str = ""
    """Score and note of the finding, for a new row if outliers.csv does not list the finding yet."""


def read(run: Run) -> pd.DataFrame:
    """Returns outliers.csv with every value as text, including the column of decisions.

    Raises:
        PipelineError: see `read_outliers`.
    """
    outliers = read_outliers(run)
    return outliers if HISTORY in outliers else outliers.assign(**{HISTORY: ""})


def change(run: Run, edit: Callable[[pd.DataFrame], pd.DataFrame]) -> pd.DataFrame:
    """Changes outliers.csv with the function `edit` and returns it. A lock keeps other processes from writing.

    Raises:
        PipelineError: another process holds the lock of the competition's folder, or `edit` raises.
    """
    lock = FileLock(run.competition_folder / ".lock")
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        raise PipelineError(
            f"Nothing was saved: another process is working in {shown(run.competition_folder)}; decide again when it "
            "has finished."
        ) from None
    except (OSError, NotImplementedError):  # a network drive without locks
        pass
    try:
        changed = edit(read(run))
        write_for_people(run.outliers, changed)
        return changed
    finally:
        lock.release()


def decide(found: pd.DataFrame, decision: Decision) -> pd.DataFrame:
    """Returns outliers.csv with a decision: its finding gets the action, all other findings about the image get `keep`.

    Raises:
        PipelineError: the image shall be trained with its partner's mask, but the partner is left out of training or is
            itself trained with another image's mask.
    """
    _check_partner(found, decision)
    number = _last(found) + 1
    changed = found.copy()
    of_image = (changed["image_id"] == decision.image_id).to_numpy()
    before = changed.loc[of_image, "action"] + f"@{number}"
    changed.loc[of_image, HISTORY] = (changed.loc[of_image, HISTORY] + " " + before).str.strip()
    changed.loc[of_image, "action"] = "keep"
    same = (changed["reason"] == decision.reason) & (changed["partner_id"] == decision.partner_id)
    places = changed.index[of_image & same.to_numpy()]
    if len(places):
        changed.loc[places[0], "action"] = decision.action
        return changed
    row = dict.fromkeys(changed.columns, "") | vars(decision) | {HISTORY: f"{ADDED}@{number}"}
    return pd.concat([changed, pd.DataFrame([row])[list(changed.columns)]], ignore_index=True)


def undo(found: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Returns outliers.csv without the last decision, and the id of its image; "" if there is no decision."""
    number = _last(found)
    entries = [_entries(text) for text in found[HISTORY]]
    rows = [row for row, history in enumerate(entries) if history and history[-1][1] == number]
    if not rows:
        return found, ""
    changed, image_id = found.copy(), str(found["image_id"].iloc[rows[0]])
    for row in rows:
        *rest, (action, _) = entries[row]
        changed.iloc[row, changed.columns.get_loc("action")] = action
        changed.iloc[row, changed.columns.get_loc(HISTORY)] = " ".join(f"{before}@{when}" for before, when in rest)
    return changed[changed["action"] != ADDED].reset_index(drop=True), image_id


def decided(found: pd.DataFrame) -> set[str]:
    """Returns the ids of the images with a decision."""
    return set(found["image_id"][[bool(_entries(text)) for text in found[HISTORY]]])


def is_added(history: str) -> bool:
    """Returns whether a row of outliers.csv with this history was added by a decision."""
    return history.startswith(f"{ADDED}@")


def without_partner(found: pd.DataFrame) -> set[str]:
    """Returns the ids of the images that training leaves out although they shall get their partner's mask: the partner
    is left out too, or is itself trained with another image's mask."""
    rows = found[found["action"] == "relabel"]
    available = ~_uses(found, rows["partner_id"]).isin(["drop", "relabel"]).to_numpy()
    return set(rows["image_id"]) - set(rows["image_id"][available])


def _check_partner(found: pd.DataFrame, decision: Decision) -> None:
    if decision.action not in ("relabel", "soft"):
        return
    use = _uses(found, pd.Series([decision.partner_id])).iloc[0]
    if use in ("drop", "relabel"):
        state = "is left out of training" if use == "drop" else "is itself trained with another image's mask"
        raise PipelineError(
            f"{decision.partner_id} {state}, so {decision.image_id} cannot be trained with its mask: decide to keep "
            f"{decision.partner_id} first."
        )


def _uses(found: pd.DataFrame, image_ids: pd.Series) -> pd.Series:
    return pd.Series(uses_of(found, image_ids), index=image_ids.index, dtype=object)


def _last(found: pd.DataFrame) -> int:
    """The number of the last decision; 0 without decisions."""
    return max((number for text in found[HISTORY] for _, number in _entries(text)), default=0)


def _entries(history: str) -> list[tuple[str, int]]:
    """The action before each decision, with the number of the decision."""
    return [(action, int(number)) for action, number in re.findall(r"(\w+)@(\d{1,9})", history)]
