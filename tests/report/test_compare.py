"""Runs side by side: what is compared with what, and how sure the difference is."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import MANIFEST, Tiny
from rich.console import Console

from pipeline.core.errors import PipelineError
from pipeline.report.compare import NOTE, Row, compare, paired, render

IMAGES = 60
FIRST = np.random.default_rng(1).uniform(0.4, 0.9, IMAGES)
BETTER = FIRST + np.random.default_rng(2).normal(0.02, 0.03, IMAGES)
FULL = {"parameters": 24_400_000, "images_per_second": 100.0, "seconds": 1800.5, "compute": {"accelerator": "gpu"}}


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PIPELINE_ROOT", str(tmp_path))
    return tmp_path / "work"


def scores(values: np.ndarray, folds: tuple[int, ...] = (0, 1, 2)) -> pd.DataFrame:
    """Rows of oof_scores.csv: image i00, i01, …, in folds 0, 1, 2, 0, …, each its own group; only these folds."""
    rows = [
        {"image_id": f"i{i:02}", "fold": i % 3, "group": f"i{i:02}", "use": "train", "true_area": 9, "score": value}
        for i, value in enumerate(values)
        if i % 3 in folds
    ]
    return pd.DataFrame(rows)


def write(
    work: Path, name: str, table: pd.DataFrame, split: str = "aaa", member: dict[str, Any] | None = None, **result: Any
) -> Path:
    """Writes what a run leaves: `name` is competition/run, `result` is added to postprocess.json."""
    folder = work / name
    folds = sorted(set(table["fold"]))
    clean = table[table["use"] == "train"]
    sets = {
        key: {"images": len(one), "score": one["score"].mean()} for key, one in (("raw", table), ("cleaned", clean))
    }
    mean = float(table["score"].mean())
    result = {
        "metric": "dice", "rows": sets, "score": mean, "interval_95": [mean - 0.01, mean + 0.01],
        "nested": mean - 0.002, "score_by_fold": {str(fold): mean for fold in folds}, "images": len(table),
    } | result  # fmt: skip
    for fold in folds:
        put(folder / f"fold_{fold}" / "fold.json", {"fold": int(fold), **(FULL if member is None else member)})
        inputs = {
            f"work/{name}/pixels.npy": {"hash": "p"},
            f"folds/{folder.parent.name}.csv": {"hash": split},
            "folds/exclude.csv": {"hash": name},  # of train.exclude: no split
        }
        put(folder / f"fold_{fold}" / "manifest.json", MANIFEST | {"inputs": inputs})
    put(folder / "postprocess.json", result)
    table.to_csv(folder / "oof_scores.csv", index=False)
    return folder


def put(path: Path, data: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))


def elsewhere(table: pd.DataFrame) -> pd.DataFrame:
    """The same rows, each in another fold."""
    return table.assign(fold=(table["fold"] + 1) % 3)


def second(*names: str) -> Row:
    return compare(list(names))[1]


def text_of(rows: list[Row], width: int = 200) -> str:
    console = Console(width=width)
    with console.capture() as captured:
        console.print(render(rows))
    return captured.get()


def cells(row: Row) -> list[str]:
    """The cells of a table's only row."""
    (line,) = [line for line in text_of([row]).splitlines() if line.startswith("│")]
    return [cell.strip() for cell in line.strip("│").split("│")]


# --- differences -----------------------------------------------------------------------------------------------------


def test_an_ensemble_stands_on_the_folds_of_its_runs(work: Path) -> None:
    for name, split in (("first", "aaa"), ("second", "aaa"), ("third", "bbb")):
        write(work, f"cells/{name}", scores(FIRST), split)
    for other, remarks in (("second", ()), ("third", ("different folds",))):
        both = write(work, "cells/both", scores(BETTER), ensemble={"first": 0.5, other: 0.5})
        for folder in both.glob("fold_*"):
            shutil.rmtree(folder)
        assert second("first", "both").remarks == remarks


def test_the_difference_is_paired(work: Path) -> None:
    write(work, "cells/first", scores(FIRST))
    write(work, "cells/better", scores(BETTER).sample(frac=1, random_state=0))  # joined by id, not by place
    first, better = compare(["first", "better"])
    assert (first.difference, first.standard_error, first.remarks) == (None, None, ())
    difference = BETTER - FIRST
    assert better.difference == pytest.approx(difference.mean())
    assert better.standard_error == pytest.approx(difference.std() / np.sqrt(IMAGES), rel=0.06)
    assert better.difference == pytest.approx((better.score or 0) - (first.score or 0))
    assert (better.common_images, better.first, better.remarks) == (IMAGES, "first", ())


def test_runs_that_were_tuned_otherwise(work: Path) -> None:
    write(work, "cells/first", scores(FIRST))
    for name, steps in (("same", ["threshold"]), ("other", ["threshold", "area"])):
        manifest = MANIFEST | {"settings": {"tune": {"method": "search", "steps": steps}, "tta": "hflip"}}
        put(write(work, f"cells/{name}", scores(BETTER)) / "postprocess.manifest.json", manifest)
    assert second("first", "same").remarks == ()  # the first one's settings are not known
    assert second("same", "other").remarks == ("tuned with other settings: tune.steps=['threshold', 'area']",)


def test_groups_are_drawn_whole() -> None:
    difference = np.repeat(np.random.default_rng(3).normal(0, 1, 50), 4)
    _, error = paired(difference, np.repeat(np.arange(50), 4).astype(str))
    assert error == pytest.approx(difference.std() / np.sqrt(50), rel=0.06)  # as if every group was one image
    assert paired(difference, np.full(200, "p1"))[1] is None


def test_only_counted_rows_are_compared(work: Path) -> None:
    first, other = scores(FIRST), scores(BETTER)
    for one in (first, other):
        one.loc[:9, "use"] = "drop"
    cleaned: dict[str, Any] = {"images": IMAGES - 10, "score": float(FIRST[10:].mean())}
    write(work, "cells/first", first, **cleaned)
    write(work, "cells/cleaned", other, **cleaned)
    write(work, "cells/raw", other)
    rows = compare(["first", "cleaned", "raw"])
    for row in rows[1:]:
        assert row.difference == pytest.approx((BETTER - FIRST)[10:].mean())
        assert row.common_images == IMAGES - 10
    assert rows[1].remarks == ()
    assert rows[2].remarks == ("score on raw rows, difference on cleaned rows",)


def test_common_images_of_other_trained_folds(work: Path) -> None:
    write(work, "cells/first", scores(FIRST, (0, 1)))
    write(work, "cells/some", scores(BETTER, (1, 2)))
    write(work, "cells/none", scores(BETTER, (2,)))
    _, some, none = compare(["first", "some", "none"])
    assert some.difference == pytest.approx((BETTER - FIRST)[1::3].mean())
    assert (some.folds, some.common_images, some.remarks) == ((1, 2), 20, ("20 common images",))
    assert (none.difference, none.common_images, none.remarks) == (None, 0, ("no common images",))


def test_other_folds_are_never_compared(work: Path) -> None:
    write(work, "cells/first", scores(FIRST))
    write(work, "cells/other", elsewhere(scores(BETTER)), "bbb", remark="folds leak: 1 group is in two folds")
    row = second("first", "other")
    assert (row.difference, row.standard_error) == (None, None)
    assert row.remarks == ("different folds", "folds leak: 1 group is in two folds")
    for manifest in (work / "cells" / "other").glob("*/manifest.json"):
        manifest.unlink()
    assert second("first", "other").remarks[0] == "folds unknown"


def test_folds_files_that_differ_in_what_is_trained_on_are_compared(work: Path) -> None:
    """As after a review: `use` is another, the folds are the same."""
    write(work, "cells/first", scores(FIRST))
    write(work, "cells/reviewed", scores(BETTER), split="bbb")
    row = second("first", "reviewed")
    assert row.difference == pytest.approx((BETTER - FIRST).mean()) and row.remarks == ()


def test_a_fold_left_from_before_counts_for_nothing(work: Path) -> None:
    write(work, "cells/first", scores(FIRST))
    folder = write(work, "cells/other", scores(BETTER))
    put(folder / "fold_7" / "manifest.json", MANIFEST | {"inputs": {"folds/cells.csv": {"hash": "old"}}})
    assert second("first", "other").remarks == ()
    put(folder / "fold_1_seed_4" / "manifest.json", MANIFEST | {"inputs": {"folds/cells.csv": {"hash": "old"}}})
    assert second("first", "other").remarks == ("different folds",)


def test_a_pooled_score_has_no_standard_error(work: Path) -> None:
    for name, values, folds in (("first", FIRST, (0, 1)), ("same", BETTER, (0, 1)), ("fewer", BETTER, (1,))):
        images = scores(values, folds)
        pooled: dict[str, Any] = {"images": len(images), "score": 0.75 if name == "same" else 0.7}
        write(work, f"mars/{name}", images, metric="mean_iou", rows={"raw": pooled}, **pooled)
    _, same, fewer = compare(["first", "same", "fewer"])
    assert same.difference == pytest.approx(0.05)
    assert (same.standard_error, same.remarks) == (None, ("pooled: no standard error",))
    assert (fewer.difference, fewer.remarks) == (None, ("pooled over different images (20 common)",))


def test_another_metric_is_not_compared(work: Path) -> None:
    write(work, "cells/first", scores(FIRST))
    write(work, "cells/other", scores(BETTER), metric="iou")
    assert second("first", "other").remarks == ("different metric",)


# --- rows and cells --------------------------------------------------------------------------------------------------


def test_competitions_are_grouped(work: Path) -> None:
    for name in ("cells/one", "salt/two", "cells/three", "salt/four"):
        write(work, name, scores(FIRST))
    rows = compare(["one", "two", "three", "four", "one"])
    assert [(row.run, row.first) for row in rows] == [
        ("one", "one"), ("three", "one"), ("two", "two"), ("four", "two"),
    ]  # fmt: skip
    assert text_of(rows).count("├") == 1  # between the competitions


def test_cells(work: Path) -> None:
    write(work, "cells/first", scores(np.full(IMAGES, 0.5)))
    folder = write(work, "cells/more", scores(np.full(IMAGES, 0.625)))
    put(folder / "final" / "fold.json", {"fold": None, "images_per_second": 200.0, "seconds": 3600})
    row = second("first", "more")
    assert row.images_per_second == 125 and row.seconds == pytest.approx(3 * 1800.5 + 3600)
    assert cells(row) == [
        "more", "cells, dice", "0–2", "0.6250 [0.6150, 0.6350]", "+0.1250 ± 0.0000", "0.6230", "24.4 M", "125 (gpu)",
        "2 h 30 min", "",
    ]  # fmt: skip


def test_missing_fields_are_dashes(work: Path) -> None:
    write(work, "cells/first", scores(FIRST), member={})
    folder = write(work, "cells/old", scores(FIRST), member={"images_per_second": None, "compute": None})
    (folder / "oof_scores.csv").unlink()
    put(folder / "postprocess.json", {"metric": "dice", "score": 0.5, "score_by_fold": {"0": 0.5, "2": 0.5}})
    first, row = compare(["first", "old"])
    assert (first.parameters, first.seconds, first.accelerator) == (None, None, None)
    assert row.remarks == ("no scores per image",)
    assert cells(row)[2:9] == ["0 and 2", "0.5000", *"–––––"]


# --- names, and the command line -------------------------------------------------------------------------------------


def test_names(work: Path) -> None:
    with pytest.raises(
        PipelineError, match=r"`small` has scores, and there is no recipe small; no run has scores yet\.$"
    ):
        compare(["small"])
    with pytest.raises(PipelineError, match="no run `sample` has scores: `python -m pipeline run sample` makes them"):
        compare(["sample"])
    with pytest.raises(PipelineError, match="no run `sample-quick` has scores: `.* run sample --quick` makes them"):
        compare(["sample-quick"])
    write(work, "cells/small-quick", scores(FIRST))
    write(work, "salt/small", scores(FIRST))
    write(work, "cells/small", scores(BETTER))
    with pytest.raises(PipelineError, match="2 competitions have a run `small`: give cells/small or salt/small"):
        compare(["small"])
    assert [row.competition for row in compare(["salt/small", "cells/small"])] == ["salt", "cells"]
    with pytest.raises(PipelineError, match=r"did you mean small-quick\?$"):
        compare(["smal-quick"])
    with pytest.raises(PipelineError, match="did you mean cells/small"):
        compare(["cell/small"])
    (work / "salt" / "small" / "postprocess.json").unlink()
    assert compare(["recipes/small.yaml"])[0].competition == "cells"
    with pytest.raises(PipelineError, match=r"no recipe recipes/large\.yaml; runs with scores: .*cells/small"):
        compare(["recipes/large.yaml"])
    recipe = work.parent / "large.yaml"
    recipe.touch()
    with pytest.raises(PipelineError, match="run .*large.yaml` makes them"):
        compare([str(recipe)])


def test_command_line(tiny: Tiny) -> None:
    write(tiny.root / "work", "cells/first", scores(FIRST))
    write(tiny.root / "work", "cells/better", scores(BETTER))
    told = tiny.cli("compare", "first", "better")
    assert told.returncode == 0, told.stderr
    assert NOTE in told.stdout and max(map(len, told.stdout.splitlines()[:4])) >= 120
    (first, better) = json.loads(tiny.cli("compare", "first", "better", "--json").stdout)["runs"]
    assert first["run"] == "first" and first["difference"] is None and first["folds"] == [0, 1, 2]
    assert better["difference"] == pytest.approx((BETTER - FIRST).mean())
    refused = tiny.cli("compare", "first", "bettr")
    assert refused.returncode == 2 and not refused.stdout
    assert "did you mean better?" in refused.stderr and "Traceback" not in refused.stderr
