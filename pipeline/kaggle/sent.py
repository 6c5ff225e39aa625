"""The log of submissions to Kaggle, submissions/log.csv: one row per submission, with its estimate and its scores.

The scores are also written to submissions/<run>.json, under `kaggle`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.core import freshness
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_record, root, shown, write_json
from pipeline.core.lock import exclusive_lock
from pipeline.core.tables import as_written, write_for_people

COLUMNS = (
    "sent", "competition", "run", "what", "message", "ref", "status", "public", "private", "metric", "estimate", "low",
    "high", "optimistic", "verdict", "sha256", "error",
)  # fmt: skip
"""Columns of the log. `what` is a file, or owner/kernel/version. `estimate` is the honest score at the time of sending,
`low` to `high` is its 95 % interval. `status` is one of `sending`, `pending`, `complete`, `error`."""
KERNEL = "kernel "
"""Prefix of a kernel's name in the column `sha256`, which otherwise holds the hash of a file."""
KEPT = ("sent", "what", "message", "ref", "status", "public", "private", "error")
"""Columns that are copied to the record of a run."""


def log_file() -> Path:
    """Returns the path of the log."""
    return root() / "submissions" / "log.csv"


def read(competition: str | None = None) -> pd.DataFrame:
    """Returns the rows of the log, all or those of one competition, with every value as text.

    Raises:
        PipelineError: the file is not a valid log.
    """
    path = log_file()
    if not path.exists():
        return pd.DataFrame(columns=list(COLUMNS), dtype=str)
    try:
        rows = as_written(pd.read_csv(path, dtype=str, keep_default_na=False))
    except (ValueError, OSError) as error:
        raise PipelineError(
            f"{shown(path)} cannot be read ({' '.join(str(error).split())}): repair it, or move it away."
        ) from None
    lacking = [name for name in COLUMNS if name not in rows]
    if lacking:
        raise PipelineError(f"{shown(path)} lacks the columns {', '.join(lacking)}: restore the file, or move it away.")
    return rows if competition is None else rows[rows["competition"] == competition].reset_index(drop=True)


def add(row: dict[str, Any]) -> None:
    """Adds a row to the log."""
    with exclusive_lock(log_file().parent):
        _write(pd.concat([read(), pd.DataFrame([_texts(row)])], ignore_index=True))


def update(sent: str, run: str, values: dict[str, Any]) -> None:
    """Changes values in the row of a submission, which is identified by its time and its run."""
    with exclusive_lock(log_file().parent):
        rows = read()
        chosen = (rows["sent"] == sent) & (rows["run"] == run)
        for name, value in values.items():
            rows.loc[chosen, name] = _text(value)
        _write(rows)


def remove(digest: str) -> None:
    """Removes the rows of attempts to send a file (or kernel) that did not reach Kaggle."""
    with exclusive_lock(log_file().parent):
        rows = read()
        _write(rows[(rows["sha256"] != digest) | (rows["status"] != "sending")])


def record(competition: str, run: str) -> None:
    """Copies the log's rows of a run's current submission, and of its kernels, to submissions/<run>.json.

    The step that wrote this file stays up to date.
    """
    path = log_file().with_name(f"{run}.json")
    content = read_record(path)
    if not content:
        return
    rows = read(competition)
    of_run = (rows["sha256"] == content.get("sha256")) | rows["sha256"].str.startswith(KERNEL)
    uploads = [_of_record(row) for row in rows[(rows["run"] == run) & of_run].to_dict("records")]
    if content.get("kaggle", []) != uploads:
        write_json(path, content | {"kaggle": uploads})
        freshness.rewrote(root() / "work" / competition / run / "submission.manifest.json", path)


def _of_record(row: dict[str, str]) -> dict[str, Any]:
    scores = {name: float(row[name]) if row[name] else None for name in ("public", "private")}
    return {name: row[name] for name in KEPT} | scores


def number(text: str) -> float | None:
    """Returns the number in a text of the log; None if the text is not a number."""
    try:
        return float(text)
    except ValueError:
        return None


def _write(rows: pd.DataFrame) -> None:
    write_for_people(log_file(), rows)


def _texts(row: dict[str, Any]) -> dict[str, str]:
    return {name: _text(row.get(name)) for name in COLUMNS}


def _text(value: Any) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def of_file(rows: pd.DataFrame, digests: Sequence[str]) -> pd.DataFrame:
    """Returns the rows whose file has one of these hashes."""
    return rows[rows["sha256"].isin(list(digests))]
