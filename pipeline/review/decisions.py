"""What a person decides about an image, written into outliers.csv: training goes by the actions that stand there.

A column `review` beside each action keeps what it was before: `keep@3 drop@7` says that the third decision found it at
`keep` and the seventh at `drop`, so that decisions can be undone, the last one first, by another process too.
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
"""The column of outliers.csv with what actions were before; empty where nobody decided."""
ADDED = "new"
"""What a row was before a decision added it: nothing."""
PATIENCE = 5.0
"""Seconds to wait for another process that writes in the competition's folder."""


@dataclass(frozen=True)
class Decision:
    """What becomes of an image, because of one finding about it."""

    image_id: str
    reason: str
    partner_id: str
    action: str
    """drop, keep, relabel or soft."""
    score: str = ""
    note: str = ""
    """The score and the note of the row, where outliers.csv has none of this finding yet."""


def read(run: Run) -> pd.DataFrame:
    """Returns outliers.csv with every value as text and the column of decisions; raises as read_outliers does."""
    found = read_outliers(run)
    return found if HISTORY in found else found.assign(**{HISTORY: ""})


def change(run: Run, edit: Callable[[pd.DataFrame], pd.DataFrame]) -> pd.DataFrame:
    """Reads outliers.csv, lets `edit` change it, writes it atomically and returns it; nobody else writes meanwhile.

    Raises:
        PipelineError: another process works in the competition's folder, or `edit` refuses.
    """
    lock = FileLock(run.competition_folder / ".lock")
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        raise PipelineError(
            f"Nothing was written: another process works in {shown(run.competition_folder)}; decide again when it is "
            "done."
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
    """Returns outliers.csv with a decision: all findings about the image are kept but this one, which gets the action.

    Raises:
        PipelineError: the image is to learn another's mask, and that one is left out or learns another's itself.
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
    """Returns outliers.csv without the last decision, and which image that was about; "" where nobody has decided."""
    number = _last(found)
    entries = [_entries(text) for text in found[HISTORY]]
    places = [place for place, one in enumerate(entries) if one and one[-1][1] == number]
    if not places:
        return found, ""
    changed, image_id = found.copy(), str(found["image_id"].iloc[places[0]])
    for place in places:
        *rest, (action, _) = entries[place]
        changed.iloc[place, changed.columns.get_loc("action")] = action
        changed.iloc[place, changed.columns.get_loc(HISTORY)] = " ".join(f"{one}@{when}" for one, when in rest)
    return changed[changed["action"] != ADDED].reset_index(drop=True), image_id


def decided(found: pd.DataFrame) -> set[str]:
    """Returns the images that were decided in a review."""
    return set(found["image_id"][[bool(_entries(text)) for text in found[HISTORY]]])


def is_added(history: str) -> bool:
    """Returns whether a row of outliers.csv with this history was added by a decision."""
    return history.startswith(f"{ADDED}@")


def without_partner(found: pd.DataFrame) -> set[str]:
    """Returns the images that training leaves out because the image whose mask they are to learn is left out, or learns
    another's mask itself."""
    rows = found[found["action"] == "relabel"]
    lent = ~_uses(found, rows["partner_id"]).isin(["drop", "relabel"]).to_numpy()
    return set(rows["image_id"]) - set(rows["image_id"][lent])


def _check_partner(found: pd.DataFrame, decision: Decision) -> None:
    if decision.action not in ("relabel", "soft"):
        return
    use = _uses(found, pd.Series([decision.partner_id])).iloc[0]
    if use in ("drop", "relabel"):
        what = "is left out of training" if use == "drop" else "learns another image's mask itself"
        raise PipelineError(
            f"{decision.partner_id} {what}, so {decision.image_id} cannot learn its mask; keep {decision.partner_id} "
            "first."
        )


def _uses(found: pd.DataFrame, image_ids: pd.Series) -> pd.Series:
    return pd.Series(uses_of(found, image_ids), index=image_ids.index, dtype=object)


def _last(found: pd.DataFrame) -> int:
    """The number of the last decision; 0 where there is none."""
    return max((number for text in found[HISTORY] for _, number in _entries(text)), default=0)


def _entries(history: str) -> list[tuple[str, int]]:
    """What an action was before each decision, and the decision's number."""
    return [(action, int(number)) for action, number in re.findall(r"(\w+)@(\d{1,9})", history)]
