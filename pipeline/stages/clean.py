"""Lists what is wrong with single images, one row a finding. Raw files are never touched.

    python -m pipeline clean RECIPE

reads   work/<competition>/images.parquet
writes  work/<competition>/outliers.csv: image_id, reason, score, partner_id, action (drop | keep), note
"""

from collections.abc import Iterator

import pandas as pd

from pipeline import table
from pipeline.console import console
from pipeline.workspace import Run, Step, shown, writing

COLUMNS = ["image_id", "reason", "score", "partner_id", "action", "note"]


def steps(run: Run) -> list[Step]:
    """Returns the one step of this stage."""
    manifest = run.competition_folder / "outliers.manifest.json"
    return [Step("clean", "clean", manifest, (run.table,), (run.outliers,), run.competition.clean.model_dump())]


def execute(run: Run, waiting: list[Step]) -> Iterator[Step]:
    """Writes outliers.csv and prints the counts by reason."""
    images = table.read_table(run.table)
    found = find_faulty(images)
    if run.competition.clean.constant:
        found = pd.concat([found, find_constant(images)])
    found = found.drop_duplicates(["image_id", "reason"]).sort_values(["reason", "image_id"])
    with writing(run.outliers) as temporary:
        found.to_csv(temporary, index=False)
    for what, count in (found["reason"] + " → " + found["action"]).value_counts().items():
        console.print(f"  {what}: {count}")
    console.print(f"  {len(found)} findings → {shown(run.outliers)}")
    yield from waiting


def find_faulty(images: pd.DataFrame) -> pd.DataFrame:
    """Returns a finding for every image that decode could not use: unreadable, of the wrong size, without a mask."""
    return _findings(images[images["fault"] != ""], "broken", images["fault"])


def find_constant(images: pd.DataFrame) -> pd.DataFrame:
    """Returns a finding for every readable training image whose pixels all have one value."""
    constant = (images["subset"] == "train") & (images["fault"] == "") & (images["minimum"] == images["maximum"])
    return _findings(images[constant], "broken", "constant: every pixel is " + images["minimum"].astype(str))


def read_outliers(run: Run) -> pd.DataFrame:
    """Returns outliers.csv with every value as text."""
    return pd.read_csv(run.outliers, dtype=str, keep_default_na=False)


def _findings(rows: pd.DataFrame, reason: str, notes: pd.Series) -> pd.DataFrame:
    columns = {"image_id": rows["image_id"], "reason": reason, "score": 1.0, "partner_id": "", "action": "drop"}
    return pd.DataFrame({**columns, "note": notes.loc[rows.index]}, columns=COLUMNS)
