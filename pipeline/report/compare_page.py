"""Writes an HTML page that compares runs.

    python -m pipeline report RUN… --compare

reads   the files that `compare` reads, and work/<competition>/<run>/fold_<k>/history.csv
writes  work/comparison.html
"""

from pathlib import Path
from typing import Any

from pipeline.core import freshness
from pipeline.core.config.settings import flatten
from pipeline.core.files import root
from pipeline.core.trainings import history_of, read_training
from pipeline.report import charts, compare, page
from pipeline.report.compare import Scored, same_folds
from pipeline.report.svg import Drawing

AGAINST = 4
"""Maximum number of runs whose scores per image are drawn against the first run's."""


def write(names: list[str]) -> Path:
    """Writes the page and returns its path.

    Args:
        names: names of the runs; see `compare.compare`.

    Raises:
        PipelineError: a name matches no run with scores, or several.
    """
    groups = {
        competition: {
            "rows": [compare.cells(compare.row_of(runs[0], run)) for run in runs],
            "charts": _charts(runs),
            "settings": differing({run.name: settings_of(run) | run.tuning for run in runs}),
            "names": [run.name for run in runs],
            "reports": {
                run.name: f"{competition}/{run.name}/report.html"
                for run in runs
                if (run.folder / "report.html").exists()
            },
        }
        for competition, runs in compare.read_runs(names).items()
    }
    path = root() / "work" / "comparison.html"
    columns, note = list(compare.COLUMNS), compare.NOTE
    page.write(
        path, "comparison.html.jinja", title=", ".join(names), name="Comparison", groups=groups, columns=columns,
        note=note, sections=[(competition, competition) for competition in groups],
    )  # fmt: skip
    return path


def settings_of(run: Scored) -> dict[str, Any]:
    """Returns the settings that a run's first network was trained with, by dotted keys; empty if none was trained."""
    manifests = sorted(run.folder.glob("fold_*/manifest.json"))
    record = freshness.read_manifest(manifests[0]) if manifests else None
    return flatten(record["settings"]) if record else {}


def differing(settings: dict[str, dict[str, Any]]) -> dict[str, list[Any]]:
    """Returns the settings that differ between runs, each with its value in every run (None: not set).

    Args:
        settings: settings by dotted keys of each run, by its name.
    """
    keys = dict.fromkeys(key for of_run in settings.values() for key in of_run)
    by_key = {key: [of_run.get(key) for of_run in settings.values()] for key in keys}
    return {key: values for key, values in by_key.items() if any(value != values[0] for value in values)}


def _charts(runs: list[Scored]) -> list[Drawing]:
    """The charts of the page: scores with intervals, score, loss and IoU per epoch of each run's first fold, threshold
    curves, scores by mask area, and the scores per image of each run against the first run's."""
    metric = runs[0].result["metric"]
    same_metric = [run for run in runs if run.result["metric"] == metric]
    ends = {
        run.name: (run.result["score"], *run.result["interval_95"])
        for run in same_metric
        if run.result.get("score") is not None and run.result.get("interval_95")
    }
    trainings = _trainings(runs)
    curves = {run.name: run.result for run in same_metric if run.result.get("curves") and run.result.get("rules")}
    images = {run.name: run.images for run in same_metric if run.images is not None and "true_area" in run.images}
    drawn: list[Drawing] = [charts.intervals(ends, metric)] if ends else []
    drawn += [charts.score_curves(trainings, metric), charts.loss_curves(trainings)] if trainings else []
    drawn += [charts.iou_curves(trainings)] if any("train/iou" in history for _, history in trainings.values()) else []
    drawn += [charts.threshold_curves(curves)] if curves else []
    drawn += [charts.scores_by_area(images, metric)] if images else []
    return drawn + _image_by_image(same_metric, metric)


def _trainings(runs: list[Scored]) -> charts.Trainings:
    """The summary and the epochs of every run's first fold, by the run's name."""
    finished = {run.name: sorted(run.folder.glob("fold_*/fold.json")) for run in runs}
    firsts = {name: files[0] for name, files in finished.items() if files}
    return {
        name: (read_training(file), history)
        for name, file in firsts.items()
        if len(history := history_of(file.with_name("history.json")))
    }


def _image_by_image(runs: list[Scored], metric: str) -> list[Drawing]:
    """The scores per image of each run against the first run's, for runs that were trained on the same folds."""
    first, *others = runs
    return [
        charts.score_against(first.images, other.images, (first.name, other.name), metric)
        for other in others[:AGAINST]
        if first.images is not None and other.images is not None and same_folds(first, other)
    ]
