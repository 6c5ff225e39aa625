"""Writes the HTML report of a run, with one section per stage. A section says so if its stage has not run.

    python -m pipeline report RECIPE

reads   the files that stages have written so far: work/<competition>/images.parquet, test_images.parquet, outliers.csv,
        test_duplicates.csv, outliers/apart.csv, folds/<competition>*.json,
        work/<competition>/<run>/fold_<k>/history.csv and model.txt, postprocess.json, oof_scores.csv, suspects.csv,
        predictions/,
        submissions/<run>.csv and .json, input/<competition>/
writes  work/<competition>/<run>/report.html
"""

from collections.abc import Iterator

from pipeline.core.console import say
from pipeline.core.files import shown
from pipeline.core.freshness import Step
from pipeline.core.run import Run
from pipeline.predictions import blends
from pipeline.report import page, sections

NEEDS_TEST = True


def steps(run: Run) -> list[Step]:
    """Returns the single step of this stage. Its inputs are the files that exist."""
    histories = [
        run.fold_folder(member.fold, member.seed) / "history.json"
        for fold in run.trained_folds()
        for member in run.members(fold)
    ]
    inputs = (
        run.table, run.test_table, run.outliers, run.pairs_apart, run.test_duplicates, run.audit, *histories,
        run.postprocess, run.folder / "oof_scores.csv", run.suspects, *blends.files(run, "oof"), run.record,
        run.folder / "test.json",
    )  # fmt: skip
    present = tuple(path for path in inputs if path.exists())
    return [
        Step("report", "report", run.folder / "report.manifest.json", (*present, page.TEMPLATES), (run.report,), {})
    ]


def execute(run: Run, waiting: list[Step]) -> Iterator[Step]:
    """Writes the report."""
    page.write(run.report, "report.html.jinja", **sections.everything(run))
    say(f"  → {shown(run.report)}")
    yield from waiting
