"""Submissions at another size than the images': decided, tuned, scored and written at that size."""

from collections.abc import Callable

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import SHAPE, TEST_IDS, TRAIN_IDS, Tiny

from pipeline import stages
from pipeline.core import driver
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json
from pipeline.core.run import Run, open_run
from pipeline.encode import scoring, submission
from pipeline.masks import rle
from pipeline.masks.geometry import IGNORE, masks_at

SIZE = (20, 30)


def shares(mask: np.ndarray) -> np.ndarray:
    """How much of every pixel of the submission's size is in a mask (h, w)."""
    return cv2.resize(mask.astype(np.float32), SIZE[::-1], interpolation=cv2.INTER_AREA)


@pytest.fixture
def brought(tiny: Tiny) -> Callable[[], Run]:
    """A run of predictions that are the true masks; those of the test images are turned training masks."""

    def run() -> Run:
        truth = [tiny.masks[name][::-1] for name in list(TRAIN_IDS)[: len(TEST_IDS)]]
        tiny.settings |= {"submission": {"size": list(SIZE), "file": "csv.gz"}, "clean": {"broken": {"action": "off"}}}
        tiny.settings["test"] = {"images": "test/{id}.tif", "masks": "test.csv", "evaluate": True}
        tiny.save()
        rows = [{"id": name, "mask": rle.encode(mask)} for name, mask in zip(TEST_IDS, truth, strict=True)]
        pd.DataFrame(rows).to_csv(tiny.input / "test.csv", index=False)
        known = {"oof": [tiny.masks[name] for name in TRAIN_IDS], "test": truth}
        for name, ids in (("oof", list(TRAIN_IDS)), ("test", list(TEST_IDS))):
            np.save(tiny.root / f"{name}.npy", np.stack([shares(mask) for mask in known[name]]))
            pd.DataFrame({"image_id": ids}).to_csv(tiny.root / f"{name}.csv", index=False)
        files = [str(tiny.root / f"{name}.npy") for name in ("oof", "test")]
        opened = open_run("brought", False, None, [], str(tiny.competition_path), *files)
        for stage in stages.STAGES:
            driver.run_stage(opened, stage)
        return opened

    return run


def test_truth_in_truth_out(brought: Callable[[], Run], tiny: Tiny) -> None:
    run = brought()
    result = read_json(run.postprocess)
    assert result["score"] == result["nested"] == 1.0
    assert read_json(run.folder / "test.json")["score"] == 1.0
    texts = pd.read_csv(run.submission, dtype=str, keep_default_na=False).set_index("id")["mask"]
    truth = {name: (shares(tiny.masks[other][::-1]) >= 0.5).astype(np.uint8)
             for name, other in zip(TEST_IDS, TRAIN_IDS, strict=False)}  # fmt: skip
    for name in TEST_IDS:
        np.testing.assert_array_equal(rle.decode(texts[name], SIZE), truth[name])
    rows = [{"id": name, "mask": rle.encode(mask)} for name, mask in truth.items()]
    pd.DataFrame(rows).to_csv(tiny.root / "truth.csv", index=False)
    want = submission.expected(run.competition, run.input, run.competition_folder)
    assert scoring.score(run.submission, tiny.root / "truth.csv", run.competition, want) == (1.0, len(TEST_IDS))
    assert submission.faults_of(run.submission, want) == []


def test_native_run_lengths_are_no_such_submission(brought: Callable[[], Run], tiny: Tiny) -> None:
    run = brought()
    want = submission.expected(run.competition, run.input, run.competition_folder)
    native = rle.encode(np.ones(SHAPE, np.uint8))
    pd.DataFrame([{"id": name, "mask": native} for name in TEST_IDS]).to_csv(tiny.root / "native.csv", index=False)
    faults = submission.faults_of(tiny.root / "native.csv", want)
    assert faults and "row 2" in faults[0]


def test_masks_come_to_a_size_by_area_or_by_the_nearest_pixel() -> None:
    masks = np.zeros((2, 4, 4), np.uint8)
    masks[0, :, 1:], masks[1, :, :1] = 1, 1  # a quarter is of the second class
    masks[:, 3, 3] = IGNORE
    area = masks_at(masks, (2, 2), "area", exclusive=True)
    assert area[0].tolist() == [[1, 1], [1, 1]] and area[1].tolist() == [[0, 0], [0, 0]]
    nearest = masks_at(masks, (2, 2), "nearest", exclusive=True)
    assert nearest[1].tolist() == [[1, 0], [1, 0]] and nearest.sum(0).tolist() == [[1, 1], [1, 1]]
    assert masks_at(masks, (4, 4), "area", exclusive=True) is masks


def test_windows_are_joined_at_their_own_size(tiny: Tiny) -> None:
    tiny.settings |= {"windows": {}, "submission": {"size": [20, 30]}}
    tiny.settings.pop("shape", None)
    tiny.save()
    with pytest.raises(PipelineError, match="windows are joined to one mask per image and class"):
        open_run(str(tiny.recipe_path))
