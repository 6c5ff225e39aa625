"""What the report's first screen says, and that images which clean has dropped are nowhere to be looked at again."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import written
from conftest import MANIFEST, TRAIN_IDS, Tiny

from pipeline.core.run import Run
from pipeline.core.verdict import Reason, to_json
from pipeline.report import look, page, sections

RESULT: dict[str, Any] = written.RESULT | {
    "score": 0.91, "nested": 0.84, "untuned": 0.8, "score_by_fold": {"0": 0.91},
    "scores": written.RESULT["scores"] | {
        "fold_model": {"score": 0.84, "interval_95": [0.8, 0.9]}, "optimistic": {"score": 0.91}},
}  # fmt: skip
MISSED = Reason("check", "missed masks", "2 of 9 masks are <b>missed</b>.", "look", [TRAIN_IDS[1], "gone"])


@pytest.fixture
def run(tiny: Tiny) -> Run:
    """A run whose worst image, and likeliest suspect, clean has dropped."""
    opened = tiny.run("decode")
    put(opened.postprocess, RESULT | {"reasons": to_json([Reason("note", "few groups", "Few."), MISSED])})
    scores = pd.DataFrame({
        "image_id": TRAIN_IDS, "fold": 0, "group": "p", "use": ["drop", *["train"] * 11], "true_area": 9,
        "score": np.linspace(0, 1, 12), "untuned": 0.5,
    })  # fmt: skip
    scores.to_csv(opened.folder / "oof_scores.csv", index=False)
    suspects = pd.DataFrame({"image_id": TRAIN_IDS[:3], "reason": "poor overlap", "note": "", "score": 0.9})
    suspects.to_csv(opened.suspects, index=False)
    return opened


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the images that are drawn, of which `gone` cannot be."""
    names: list[str] = []

    def paint(image_id: str) -> np.ndarray:
        if image_id == "gone":
            raise KeyError(image_id)
        names.append(image_id)
        return np.zeros((40, 60, 3), np.uint8)

    monkeypatch.setattr(look, "painter", lambda run, predicted=False, subset="train": paint)
    return names


def put(path: Path, data: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))


def test_dropped_images_are_no_suspects_and_not_among_the_worst(run: Run, drawn: list[str]) -> None:
    assert look.suspects(run)["image_id"].tolist() == TRAIN_IDS[1:3]
    shown = sections.predictions(run, sections.held_out(run))
    assert shown and len(shown["suspects"]) == 2
    assert TRAIN_IDS[1] in drawn and TRAIN_IDS[0] not in drawn


def test_the_verdict_has_pictures_and_says_nothing_twice(run: Run, drawn: list[str]) -> None:
    found = sections.verdict(run)
    assert found and (found["word"], found["submitted"]) == ("check first", False)
    assert (found["honest"]["score"], found["honest"]["interval_95"]) == (0.84, [0.8, 0.9])
    assert found["beside"] == {"optimistic, tuned on the same images": 0.91, "untuned": 0.8}
    assert [one["text"][:4] for one in found["reasons"]] == ["2 of", "Few."]
    assert [len(one["pictures"]) for one in found["reasons"]] == [1, 0] and drawn == [TRAIN_IDS[1]]
    own = Reason("check", "suspect labels", "Look at them.", "work/tiny/small/report.html")
    put(run.postprocess, RESULT | {"reasons": to_json([own])})
    found = sections.verdict(run)
    assert found and [(one["text"], one["command"]) for one in found["reasons"]] == [("Look at them.", "")]


def test_a_wrong_order_of_magnitude_is_the_first_thing_on_the_page(run: Run, drawn: list[str]) -> None:
    stop = Reason("stop", "size of masks", "Masks are too large.", "a command")
    put(run.postprocess, RESULT | {
        "reasons": to_json([MISSED, stop]), "constants": {"all_empty": 0.53, "mean_mask": 0.2},
        "nested_spread": [0.82, 0.86],
    })  # fmt: skip
    text = shown(run)
    order = ['<nav aria-label="sections">', "✗ Do not submit", "<b>0.8400</b>", "0.8000 to 0.9000",
             "0.8200 to 0.8600", "0.9100", "0.5300", "0.2000",
             "<b>Stop.</b> Masks are too large.", "<code>a command</code>", "2 of 9 masks are &lt;b&gt;missed",
             "<img", '<h2 id="data">']  # fmt: skip
    places = [text.index(one) for one in order]
    assert places == sorted(places)


def test_the_verdict_is_told_without_colour(run: Run, drawn: list[str]) -> None:
    put(run.postprocess, RESULT | {"reasons": []})
    run.suspects.unlink()
    assert "✓ Fine" in shown(run) and "No problems were found." in shown(run)
    run.postprocess.unlink()
    assert 'class="word' not in shown(run)


def test_an_interrupted_training_counts_all_its_seconds(run: Run, drawn: list[str]) -> None:
    folder = run.fold_folder(0)
    put(folder / "manifest.json", MANIFEST | {"stage": "train", "finished": "2026-11-30", "seconds": 60})
    put(folder / "fold.json", {"seconds": 150.0})
    assert sections.exact(run)["trained"] == "2 min"
    put(folder / "fold.json", {"seconds": 20.0})
    assert sections.exact(run)["trained"] == "60 s"


def shown(run: Run) -> str:
    """A page of which nothing but the verdict is known."""
    path, nothing = (
        run.folder / "page.html",
        dict.fromkeys(("data", "cleaning", "audit", "learning", "tuning", "scores")),
    )
    values = nothing | dict.fromkeys(("predictions", "record", "test", "explorer"))
    values |= {"exact": sections.exact(run), "legend": {}}
    page.write(path, "report.html.jinja", title="x", run=run, verdict=sections.verdict(run), **values)
    return path.read_text(encoding="utf-8")


def test_an_image_is_of_one_kind_only() -> None:
    scores = pd.DataFrame({"image_id": list("abcdef"), "true_area": [9] * 6, "score": [0.0] * 6})
    found = sections.pick_examples(scores)
    assert found["image_id"].tolist() == list("abcd")  # all score the same: none is the worst, or in the middle
    found = sections.pick_examples(scores.assign(score=[1.0, 0.9, 0.8, 0.7, 0.6, 0.5]))
    assert found["image_id"].tolist() == list("abcdef")
    assert found["kind"].tolist() == ["best"] * 4 + ["median", "worst"]


def test_figures_of_the_kept_epoch_are_those_that_were_measured() -> None:
    history = pd.DataFrame(
        {"epoch": [0, 1], "train/loss": [2.0, 1.0], "valid/iou": [None, 0.5], "valid/loss": [1.0, None]}
    )
    assert sections.kept_figures({"best_epoch": 1}, history) == {"epoch": 1, "train/loss": 1, "valid/iou": 0.5}
    assert sections.kept_figures({"best_epoch": 0}, history) == {"epoch": 0, "train/loss": 2, "valid/loss": 1}
    assert (
        sections.kept_figures({"best_epoch": 7}, history)
        == sections.kept_figures({"best_epoch": 0}, pd.DataFrame())
        == {}
    )
