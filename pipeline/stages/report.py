"""One page to look at: the scores, the folds, and twelve predictions over their images.

    python -m pipeline report RECIPE

reads   work/<competition>/<run>/postprocess.json, oof_scores.csv, predictions/oof_fold_<k>.npy, submissions/<run>.json,
        work/<competition>/images.parquet, outliers.csv, folds/<competition>.audit.json, input/<competition>/
writes  work/<competition>/<run>/report.html
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import yaml

from pipeline import plots, sources, table, workspace
from pipeline.competitions.readers import reader_of
from pipeline.console import console
from pipeline.folds import read_audit, read_outliers
from pipeline.freshness import Step
from pipeline.outliers import count_findings
from pipeline.postprocess import decision_of
from pipeline.stages import evaluate
from pipeline.stages.tune import in_words, verdict
from pipeline.workspace import Run, shown

TEMPLATE = Path(__file__).with_name("report.html.jinja")
OF_EACH_KIND = 4


def steps(run: Run) -> list[Step]:
    """Returns the one step of this stage."""
    test = (run.folder / "test.json",) if evaluate.wanted(run.competition) else ()
    inputs = (
        run.record,
        run.postprocess,
        run.folder / "oof_scores.csv",
        run.table,
        run.outliers,
        run.audit,
        TEMPLATE,
        *sources.files(run, "oof"),
        *test,
    )
    return [Step("report", "report", run.folder / "report.manifest.json", inputs, (run.report,), {})]


def execute(run: Run, waiting: list[Step]) -> Iterator[Step]:
    """Writes the page."""
    scores = pd.read_csv(run.folder / "oof_scores.csv", dtype={"image_id": str, "group": str}, keep_default_na=False)
    chosen = choose(scores)
    page = jinja2.Template(TEMPLATE.read_text(encoding="utf-8"), autoescape=True).render(
        run=run,
        record=workspace.read_json(run.record),
        audit=read_audit(run),
        in_words=in_words,
        verdict=verdict,
        findings=count_findings(read_outliers(run)),
        settings=yaml.safe_dump(workspace.describe(run), sort_keys=False, allow_unicode=True),
        pictures=_pictures(run, chosen),
        legend={name: f"rgb{colour}" for name, colour in plots.legend(run.competition).items() if colour},
        test=workspace.read_json(run.folder / "test.json") if evaluate.wanted(run.competition) else None,
    )
    workspace.write_text(run.report, page)
    console.print(f"  → {shown(run.report)}")
    yield from waiting


def choose(scores: pd.DataFrame) -> pd.DataFrame:
    """Returns twelve rows of oof_scores.csv with a `kind`: the best and the median with a mask, and the worst."""
    present = scores[scores["true_area"] > 0]
    pool = (present if len(present) >= 3 * OF_EACH_KIND else scores).sort_values("score", ascending=False)
    middle = max(0, len(pool) // 2 - OF_EACH_KIND // 2)
    kinds = {
        "best": pool.head(OF_EACH_KIND),
        "median": pool.iloc[middle : middle + OF_EACH_KIND],
        "worst": scores.sort_values("score").head(OF_EACH_KIND),
    }
    return pd.concat([rows.assign(kind=kind) for kind, rows in kinds.items()])


def _pictures(run: Run, chosen: pd.DataFrame) -> list[dict[str, Any]]:
    images = table.read_table(run.table, "train").set_index("image_id", drop=False)
    result, plain = workspace.read_json(run.postprocess), sources.plain_of(run)
    weights, decision = sources.weights_of(run, result), decision_of(result)
    folds = chosen["fold"].unique().tolist()
    blends = {fold: replace(sources.out_of_fold(run, fold, plain), weights=weights) for fold in folds}
    read, pictures = reader_of(run.competition).opener(run.competition, run.input), []
    for row in chosen.to_dict("records"):
        image_row, blend = images.loc[row["image_id"]], blends[row["fold"]]
        true, place = table.true_mask(image_row, run.competition.classes), blend.ids.index(row["image_id"])
        predicted = blend.decide(place, blend.native(place, true.shape[1:]), decision)
        picture = plots.comparison(read(image_row), true, predicted, run.competition)
        pictures.append({**row, "address": plots.to_data_address(picture)})
    return pictures
