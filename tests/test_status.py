"""What the last lines of a run say: the verdict first, the honest score before the optimistic one, and what is next."""

import json
from pathlib import Path
from typing import Any

import pytest
import written
from conftest import Tiny

from pipeline.core.console import plain
from pipeline.core.run import Run, open_run
from pipeline.core.verdict import Reason, to_json
from pipeline.status import summary

RESULT: dict[str, Any] = written.RESULT | {
    "metric": "dice", "remark": "", "score": 0.91, "nested": 0.84, "nested_interval_95": [0.8, 0.9], "images": 12,
    "rows": {"raw": {"images": 12, "score": 0.91}, "cleaned": {"images": 10, "score": 0.95}},
    "scores": written.RESULT["scores"] | {
        "fold_model": {"score": 0.83, "interval_95": [0.79, 0.89], "epoch_optimism": 0.01},
        "optimistic": {"score": 0.91}},
}  # fmt: skip
STOP = Reason("stop", "no better than a constant", "It is no better than empty masks.", "python -m pipeline run longer")
CHECK = Reason("check", "weak group", "Patient p3 scores 0.2.", "notebooks/04_train_one_fold_and_watch.ipynb")


@pytest.fixture
def run(tiny: Tiny) -> Run:
    tiny.settings["kaggle"] = "tiny-cup"
    tiny.save()
    return open_run(str(tiny.recipe_path))


def put(path: Path, data: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))


def told(run: Run, reasons: list[Reason], submitted: bool = True, **more: Any) -> list[str]:
    """The lines after a run with these reasons."""
    result = RESULT | more
    put(run.postprocess, result)
    if submitted:
        put(run.submission, "")
        put(run.record, written.record_of(result, to_json(reasons)))
    else:
        put(run.postprocess, result | {"reasons": to_json(reasons)})
    return [plain(line).strip() for line in summary(run, 61)]


def test_a_fine_run_ends_with_an_upload(run: Run) -> None:
    found = told(run, [], constants={"all_empty": 0.5, "mean_mask": 0.2}, nested_spread=[0.81, 0.86])
    assert found[0].startswith("small: done in 1 min 1 s, ")
    assert found[1:] == [
        "verdict         FINE",
        "honest          dice 0.8300  (on images that no choice was made on)",
        "95 % interval 0.7900 to 0.8900; 0.8100 to 0.8600 over the partitions tried; 0.0100 subtracted for",
        "choosing the epoch on the scored fold",
        "compare         optimistic 0.9100, on the images used for tuning; an all-empty file 0.5000; "
        "the mean mask 0.2000",
        "cleaned rows    dice 0.9500  (10 images, optimistic)",
        "submission      submissions/small.csv",
        f"next            python -m pipeline submit {run.options[0]} -m small",
    ]


def test_one_group_alone_without_constants_and_spread(run: Run) -> None:
    alone = {"score": 0.84, "interval_95": None}
    scores = RESULT["scores"] | {"fold_model": alone}
    found = told(run, [], nested_interval_95=None, scores=scores, remark="the folds leak")
    assert "honest          dice 0.8400  (on images that no choice was made on, except perhaps the epoch)" in found
    assert "interval unknown: only one group; the folds leak" in found
    assert "compare         optimistic 0.9100, on the images used for tuning" in found


def test_an_upload_comes_after_the_look_or_not_at_all(run: Run) -> None:
    put(run.report, "")
    found = told(run, [CHECK])
    assert found[-2:] == [
        "next            look at notebooks/04_train_one_fold_and_watch.ipynb",
        f"or as it is     python -m pipeline submit {run.options[0]} -m small",
    ]
    assert found[6:] == [
        "check Patient p3 scores 0.2.", "→ look at notebooks/04_train_one_fold_and_watch.ipynb",
        "submission      submissions/small.csv", "report          work/tiny/small/report.html", *found[-2:],
    ]  # fmt: skip
    found = told(run, [CHECK, STOP])
    assert "DO NOT SUBMIT" in found[1] and found[-1] == "next            python -m pipeline run longer"
    assert not any("kaggle" in line for line in found)


def test_after_tune_alone_the_held_out_images_speak(run: Run) -> None:
    found = told(run, [CHECK], submitted=False)
    assert found[1].endswith("  (of the held-out images: there is no submission yet)")
    assert "CHECK FIRST" in found[1] and not any("submissions/" in line for line in found)
    assert found[-1] == f"then            {run.command()}"
    run.postprocess.unlink()
    assert len(list(summary(run, 1))) == 1
