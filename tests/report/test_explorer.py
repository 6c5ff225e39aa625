"""The table of all held-out images and the viewer: kinds of error, what is enlarged, what the page's script gets."""

import base64
import html
import io
import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import written
from conftest import TRAIN_IDS, Tiny
from PIL import Image

from pipeline.core.run import Run
from pipeline.decode import table
from pipeline.masks.metric import Metric
from pipeline.masks.metrics import METRICS, named
from pipeline.masks.overlaps import counts
from pipeline.report import encoding, explorer, findings, look, page, sections

ONE, NONE = np.pad(np.ones((1, 6, 6), np.uint8), ((0, 0), (2, 2), (2, 2))), np.zeros((1, 10, 10), np.uint8)
HOSTILE = "</script><script>document.title='x'</script>\"'&é漢" + "x" * 200


def pixels(text: str) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB"))


@pytest.fixture
def run(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A tuned run whose predictions are the true masks, moved by a few pixels; the third image's cannot be read."""
    opened = tiny.run("decode", "clean")
    opened.postprocess.parent.mkdir(parents=True, exist_ok=True)
    opened.postprocess.write_text(json.dumps(written.RESULT))
    scores = pd.DataFrame({
        "image_id": TRAIN_IDS, "fold": [0, 1] * 6, "group": "p", "use": ["drop", *["train"] * 11],
        "true_area": 9, "score": np.linspace(0, 1, 12), "untuned": 0.5,
    })  # fmt: skip
    scores.to_csv(opened.folder / "oof_scores.csv", index=False)
    images = table.read_table(opened.table, "train").set_index("image_id", drop=False)

    def predict(image_id: str, shape: tuple[int, int]) -> look.Predicted:
        if image_id == TRAIN_IDS[2]:
            raise KeyError(image_id)
        mask = np.roll(table.true_mask(images.loc[image_id], ["thing"]), 3, axis=2)
        return look.Predicted(mask * 200, mask)

    monkeypatch.setattr(look, "predictor", lambda run, subset: predict)
    return opened


@pytest.mark.parametrize(
    ("true", "predicted", "bits"),
    [(NONE, ONE, 1), (ONE, NONE, 2), (ONE, np.roll(ONE, 3, axis=1), 4), (ONE, ONE, 0), (NONE, NONE, 0),
     (np.concatenate([ONE, NONE]), np.concatenate([NONE, ONE]), 3)],
)  # fmt: skip
def test_kinds_of_error(true: np.ndarray, predicted: np.ndarray, bits: int) -> None:
    assert explorer.errors_of(true, predicted, multiclass=False) == (bits, int(predicted.sum()))


def test_a_stray_pixel_of_a_class_is_an_error_only_where_masks_are_apart() -> None:
    stray = NONE.copy()
    stray[0, 0, 0] = 1
    assert explorer.errors_of(NONE, stray, multiclass=False)[0] == 1
    assert explorer.errors_of(NONE, stray, multiclass=True)[0] == 0
    assert explorer.errors_of(np.where(stray == 1, 255, 0).astype(np.uint8), stray, multiclass=False) == (0, 0)


def test_what_is_enlarged() -> None:
    rows = pd.DataFrame({"image_id": [f"i{number}" for number in range(1000)]})
    chosen = explorer.picks(rows, ["i900", "gone"], ["i700"], seed=0)
    assert chosen[:3] == ["i900", "i700", "i0"] and len(chosen) == len(set(chosen))
    assert len(chosen) == explorer.LARGE and sum(int(one[1:]) > explorer.LARGE for one in chosen) > 20
    assert set(chosen) >= {f"i{number}" for number in range(explorer.WORST)}


@pytest.mark.parametrize("metric", ["dice", "iou", "iou_precision", "f_beta(beta=0.5)"])
def test_the_score_at_a_threshold_is_the_metrics(metric: str) -> None:
    rng = np.random.default_rng(0)
    probability, true = (
        rng.integers(0, 256, (1, 20, 30), np.uint8),
        rng.choice([0, 1, 255], (1, 20, 30), p=[0.5, 0.4, 0.1]),
    )
    found = explorer.scores_by_level(probability[0], true[0].astype(np.uint8), named(metric))
    for level, score in enumerate(found):
        mask = (probability >= 16 * level).astype(np.uint8)
        assert score == pytest.approx(float(named(metric)(*counts(mask, true))[0]), abs=1e-4)


def test_the_viewer_scores_by_the_competitions_metric_where_it_can() -> None:
    measures = {name: explorer.measure_of(metric).name for name, metric in METRICS.items()}
    assert measures["iou_precision"] == "iou_precision" and measures["mean_iou"] == measures["hausdorff"] == "dice"
    assert explorer.measure_of(Metric("pooled", METRICS["dice"].function, unit="data_set")).name == "dice"


def test_planes_come_back_as_they_went() -> None:
    planes = np.random.default_rng(0).integers(0, 16, (3, 7, 11), np.uint8)
    assert (pixels(encoding.planes_png(planes))[..., 0].reshape(3, 7, 11) == 17 * planes).all()


def test_stamps_lie_on_sheets_row_by_row() -> None:
    stamps = [np.full((24, 32, 3), number % 200, np.uint8) for number in range(encoding.ACROSS**2 + 3)]
    first, second = encoding.sheets(stamps, 90)
    assert pixels(first).shape == (24 * 16, 32 * 16, 3) and pixels(second).shape == (24, 32 * 16, 3)
    assert abs(int(pixels(first)[24 * 2 + 12, 32 * 5 + 16, 0]) - 37) <= 3  # 2 rows of 16, and the sixth


def test_a_stamp_tells_what_is_missed_from_what_is_false() -> None:
    picture = np.zeros((100, 200, 3), np.uint8)
    true, predicted = np.zeros((2, 100, 200), bool)
    true[20:80, 20:80], predicted[20:80, 120:180] = True, True
    small = encoding.stamp(picture, true, predicted, (48, 64)).astype(int)
    assert small.shape == (48, 64, 3) and (small[2] == encoding.GROUND).all()  # a border, as the shapes differ
    assert small[24, 16, 2] > small[24, 16, 0] and small[24, 48, 0] > small[24, 48, 2]
    dot = np.zeros((100, 200), bool)
    dot[50, 100] = True
    assert (
        encoding.stamp(picture, dot, ~dot & False, (48, 64))
        != encoding.stamp(picture, dot & False, dot & False, (48, 64))
    ).any()


def test_the_page_holds_all_images_the_worst_first(run: Run) -> None:
    shown = explorer.explorer(run, look.scores(run), [TRAIN_IDS[5]])
    assert shown is not None
    columns = shown["columns"]
    assert columns["id"] == [*TRAIN_IDS[1:], TRAIN_IDS[0]]  # what clean has dropped counts for nothing
    assert columns["error"][1] is None and columns["predicted"][1] is None  # cannot be read
    assert set(shown["large"]) == set(range(12)) - {1}
    assert shown["measure"] == shown["metric"] == "dice" and shown["thresholds"] == [128]
    large = shown["large"][0]
    masks = pixels(large["masks"])[..., 0].reshape(1, 40, 60) // 17
    images = table.read_table(run.table, "train").set_index("image_id", drop=False)
    true = table.true_mask(images.loc[TRAIN_IDS[1]], ["thing"])
    assert (masks // 2 == true).all() and (masks % 2 == np.roll(true, 3, axis=2)).all()
    assert large["scores"][0][8] == large["scores"][0][12] > large["scores"][0][13]  # the probability is 200 of 255


def test_a_hostile_id_stays_text(run: Run, tmp_path: Path) -> None:
    shown: dict[str, Any] = {"columns": {"id": [HOSTILE]}}
    text = page.script_data(shown)
    assert "<" not in text and json.loads(text) == shown
    rows = look.scores(run).replace({"image_id": {TRAIN_IDS[1]: HOSTILE}})
    rows.to_csv(run.folder / "oof_scores.csv", index=False)
    page.write(tmp_path / "page.html", "report.html.jinja", **sections.everything(run))
    written_page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert len(re.findall(r"<script\b", written_page)) == 3  # the data and the page's two
    assert HOSTILE not in written_page and html.escape(HOSTILE, quote=False)[:60] in written_page.replace(
        "&#34;", '"'
    ).replace("&#39;", "'")


def test_captions_of_findings_are_sentences() -> None:
    row = {"image_id": "6_3", "reason": "contradiction", "score": 0.00053, "partner_id": "6_2", "action": "drop",
           "note": "mask of 0 px, that of 6_2 has 7811"}  # fmt: skip
    assert findings.caption(row) == (
        "6_3 and 6_2: mask of 0 px, that of 6_2 has 7811; distance 0.00053; left out of training."
    )
    broken = {
        "image_id": "1_1",
        "reason": "broken",
        "score": 0.0,
        "partner_id": "",
        "action": "drop",
        "note": "constant",
    }
    assert findings.caption(broken) == "1_1: constant; left out of training."


def test_the_ends_of_a_list_of_findings_hold_each_pair_once() -> None:
    pairs = [(f"a{number}", f"b{number}", number) for number in range(20)]
    rows = pd.DataFrame([*pairs, ("b0", "a0", 0)], columns=["image_id", "partner_id", "score"])
    shown = findings.ends(rows)
    assert shown["image_id"].tolist() == [f"a{number}" for number in (0, 1, 2, 3, 16, 17, 18, 19)]
    assert findings.ends(rows.head(0)).empty


def test_findings_are_drawn_beside_their_partners(run: Run) -> None:
    cv2.setNumThreads(1)
    row = {"image_id": TRAIN_IDS[0], "reason": "duplicate", "score": 0.01, "partner_id": TRAIN_IDS[1], "action": "keep",
           "note": "near"}  # fmt: skip
    pd.DataFrame([row, row | {"partner_id": "gone"}]).to_csv(run.outliers, index=False)
    shown = findings.figures(run)
    assert [len(found) for found in shown.values()] == [1] and shown["duplicate"][0]["pair"]
