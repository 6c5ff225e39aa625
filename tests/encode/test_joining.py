"""Large images are encoded window by window, and come as if they had been decided as a whole."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import MANIFEST, SHAPE, TEST_IDS, Tiny
from written import FOLD, RESULT

from pipeline.core import freshness
from pipeline.core.errors import PipelineError
from pipeline.core.run import Run
from pipeline.decode import table
from pipeline.encode import submission
from pipeline.masks import rle, statistics
from pipeline.predictions import test_images

SIDE = 32


def put(path: Path, data: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))


def whole_probability(number: int) -> np.ndarray:
    """The probability (40, 60) uint8 of a test image, which no window sees whole."""
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    return (127 + 120 * np.sin(rows / 7 + number) * np.cos(columns / (5 + number))).astype(np.uint8)


def predicted(tiny: Tiny, noise: int = 0) -> Run:
    """The tiny competition in windows of 32×32, as tune and predict leave it, with the same probability in every window
    that sees a pixel, but for noise."""
    tiny.recipe |= {"image": {"size": [SIDE, SIDE]}, "train": {"folds": [0]}}
    tiny.settings |= {"windows": {"size": [SIDE, SIDE], "overlap": 0.25}, "shape": None}
    tiny.save()
    run = tiny.run("decode")
    rng, images = np.random.default_rng(0), table.read_table(run.test_table)
    arrays = []
    for whole in table.wholes_of(images):
        full = whole_probability(TEST_IDS.index(whole.image_id)).astype(int)
        for top, left, bottom, right in whole.boxes:
            part = full[top:bottom, left:right]
            arrays.append((part + rng.integers(-noise, noise + 1, part.shape)).clip(0, 255).astype(np.uint8))
    path = run.predictions("test", 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.stack(arrays)[:, None])
    images[["image_id"]].to_csv(path.with_suffix(".csv"), index=False)
    put(
        path.with_suffix(".manifest.json"),
        MANIFEST | {"inputs": freshness.fingerprint(test_images.raw_test_files(run), {})},
    )
    put(run.fold_folder(0) / "fold.json", FOLD)
    put(run.fold_folder(0) / "manifest.json", MANIFEST | {"code": {"losses.py": "1"}})
    put(run.postprocess, RESULT)
    statistics.save(run.mask_statistics, statistics.of_table(table.read_table(run.table), ["thing"], False))
    return run


def rows_of(run: Run) -> dict[str, str]:
    frame = pd.read_csv(run.submission, dtype=str, keep_default_na=False)
    return dict(zip(frame["id"], frame["mask"], strict=True))


@pytest.fixture
def decided(monkeypatch: pytest.MonkeyPatch) -> int:
    """The threshold, alone: a rule of areas is one of windows."""
    from pipeline.encode import stage
    from pipeline.masks.decision import Rule, Rules

    monkeypatch.setattr(stage, "decision_of", lambda result: Rules((Rule(threshold=150),)))
    return 150


@pytest.mark.parametrize("order", ["column", "row"])
def test_windows_that_agree_give_the_mask_of_the_whole(tiny: Tiny, decided: int, order: str) -> None:
    for row in tiny.rows:
        mask = tiny.masks[row["id"]]
        row["mask"] = rle.encode(mask, rle.Convention(order))  # type: ignore[arg-type]
    tiny.settings["rle"] = {"order": order}
    run = predicted(tiny)
    tiny.run("encode")
    texts = rows_of(run)
    assert list(texts) == TEST_IDS
    for number, name in enumerate(TEST_IDS):
        mask = (whole_probability(number) >= decided).astype(np.uint8)
        assert texts[name] == rle.encode(mask, rle.Convention(order))  # type: ignore[arg-type]


def test_windows_that_differ_are_averaged(tiny: Tiny, decided: int) -> None:
    run = predicted(tiny, noise=30)
    tiny.run("encode")
    images = table.read_table(run.test_table)
    array = np.load(run.predictions("test", 0))[:, 0]
    (whole, *_), shape = table.wholes_of(images), SHAPE
    sums, weights = np.zeros(shape), np.zeros(shape)
    for window, (top, left, bottom, right) in zip(array, whole.boxes, strict=False):
        sides = []
        for first, behind, length in ((top, bottom, shape[0]), (left, right, shape[1])):
            places = np.arange(behind - first) + 0.5
            near = np.minimum(places if first else np.inf, (behind - first) - places if behind < length else np.inf)
            sides.append(np.clip(near / 4, 1e-3, 1))
        weight = sides[0][:, None] * sides[1]
        sums[top:bottom, left:right] += window * weight
        weights[top:bottom, left:right] += weight
    mean = sums / weights
    sure = np.abs(mean - (decided - 0.5)) > 1e-3
    found = rle.decode(rows_of(run)[TEST_IDS[0]], shape)
    assert (found[sure] == (np.rint(mean) >= decided)[sure]).all()


def test_a_submission_of_windows_is_checked(tiny: Tiny, decided: int) -> None:
    run = predicted(tiny)
    tiny.run("encode")
    want = submission.expected(run.competition, run.input, run.competition_folder)
    measured: dict[str, int] = {}

    def measure(name: str, number: int, mask: np.ndarray) -> None:
        measured[name] = int(mask.sum())

    assert submission.examine(run.submission, want, measure)[0] == []
    areas = {name: rle.area(text) for name, text in rows_of(run).items()}
    assert len(measured) == len(table.read_table(run.test_table))
    for name, area in areas.items():
        assert sum(value for window, value in measured.items() if window.startswith(f"{name}_")) == area
    frame = pd.read_csv(run.submission, dtype=str, keep_default_na=False)
    frame.loc[0, "mask"], frame.loc[1, "mask"], frame.loc[2, "mask"] = "2390 20", "5 1 6 2", "nan"
    frame.to_csv(run.submission, index=False)
    assert submission.faults_of(run.submission, want) == [
        "row 2: id t1: run 1 (start 2390, length 20) ends at pixel 2409, past the end of a 40×60 image (2400 pixels) "
        "by 9",
        "row 3: id t2: is not in canonical form: '5 1 6 2' should be '5 3'",
        "row 4: id t3: 'nan' is not a mask; an empty mask is an empty field",
    ]


def test_what_windows_cannot_be(tiny: Tiny) -> None:
    tiny.settings["windows"] = {}
    tiny.save()
    with pytest.raises(PipelineError, match="leave `shape` out"):
        tiny.run("decode")
    tiny.settings |= {"shape": None, "submission": {"rows": "instance"}}
    tiny.save()
    with pytest.raises(PipelineError, match="windows are joined to one mask per image and class"):
        tiny.run("decode")
