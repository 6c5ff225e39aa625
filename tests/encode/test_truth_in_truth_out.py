"""Layouts of real competitions: an independent scorer reads a submission as what went in, and scores it alike."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from independent import dice, mask_of, masks_in
from kinds import images, wanted, write

from pipeline.encode import scoring, submission

SIZES = {"a1": (40, 60), "b2": (32, 48), "c3": (40, 40)}
LAYOUTS: dict[str, dict[str, Any]] = {
    "clouds": {
        "yaml": {
            "classes": ["Fish", "Sugar"], "submission": {"size": [10, 15]},
            "columns": {"id": "Image_Label", "pattern": "{id}_{label}", "rle": "Pixels"},
        },
        "sample": [
            ("Image_Label", "Pixels"), *((f"{one}_{name}", "1 1") for one in SIZES for name in ("Fish", "Sugar")),
        ],
        "key": ("Image_Label",), "column": "Pixels", "convention": {},
    },
    "contrails": {
        "yaml": {"columns": {"id": "record_id", "rle": "encoded_pixels"}, "rle": {"empty": "-"}},
        "sample": [("record_id", "encoded_pixels"), *((one, "1 1") for one in SIZES)],
        "key": ("record_id",), "column": "encoded_pixels", "convention": {},
    },
    "siim": {
        "yaml": {
            "columns": {"id": "ImageId", "rle": "EncodedPixels"},
            "rle": {"base": 0, "offsets": "relative", "empty": "-1"},
        },
        "sample": [("ImageId", "EncodedPixels"), *((one, "-1") for one in SIZES)],
        "key": ("ImageId",), "column": "EncodedPixels", "convention": {"base": 0, "relative": True},
    },
    "scans": {
        "yaml": {
            "classes": ["bowel", "stomach"], "columns": {"label": "class", "rle": "segmentation"},
            "rle": {"order": "row"}, "submission": {"rle": "predicted"},
        },
        "sample": None, "key": ("id", "class"), "column": "predicted", "convention": {"order": "row"},
    },
    "fashion": {
        "yaml": {
            "classes": {"shirt": 0, "shoe": 23}, "columns": {"id": "ImageId", "label": "ClassId", "rows": "instance"},
            "submission": {"rle": "EncodedPixels", "overlap": "none"},
        },
        "sample": [
            ("ImageId", "EncodedPixels", "ClassId", "AttributesIds"), *((one, "1 1", "0", "0") for one in SIZES),
        ],
        "key": ("ImageId", "ClassId"), "column": "EncodedPixels", "convention": {},
    },
}  # fmt: skip


def drawn(shape: tuple[int, int], classes: int, seed: int) -> np.ndarray:
    """Label maps (C, h, w) int32 of up to three bars each, some of which touch; none of two classes overlap."""
    rng = np.random.default_rng(seed)
    labels, free = np.zeros((classes, *shape), np.int32), np.ones(shape, bool)
    for plane in labels[: 1 + seed % classes]:
        for number in range(1, 1 + seed % 4):
            top, left = (int(rng.integers(0, side - 4)) for side in shape)
            bar = np.zeros(shape, bool)
            bar[top : top + 4, left : left + 9] = True
            plane[bar & free] = number
            free &= ~bar
    return labels


@pytest.mark.parametrize("name", LAYOUTS)
def test_an_independent_scorer_reads_the_truth(name: str, tmp_path: Path) -> None:
    layout = LAYOUTS[name]
    settings = dict(layout["yaml"])
    if layout["sample"]:
        pd.DataFrame(layout["sample"][1:], columns=layout["sample"][0]).to_csv(tmp_path / "sample.csv", index=False)
        settings["sample_submission"] = "sample.csv"
    made, want = wanted(tmp_path, images(SIZES), **settings)
    by_instance, classes = want.settings.row == "instance", len(made.classes)
    drawings = []
    for seed in (0, 5):
        labels = {one: drawn(want.shapes[one], classes, seed + place) for place, one in enumerate(SIZES)}
        drawings.append({one: labels[one] if by_instance else (labels[one] > 0).astype(np.uint8) for one in SIZES})
    paths = [write(tmp_path / f"{number}.csv", want, masks) for number, masks in enumerate(drawings)]
    read = [masks_in(path, layout["key"], layout["column"], want.shapes, **layout["convention"]) for path in paths]
    keys = [
        (f"{one}_{made.classes[number]}",) if name == "clouds" else (one, want.labels[number])[: len(layout["key"])]
        for one in SIZES
        for number in range(classes)
    ]
    for masks, found in zip(drawings, read, strict=True):
        for key, (one, number) in zip(keys, [(one, number) for one in SIZES for number in range(classes)], strict=True):
            plane = masks[one][number]
            parts = [plane == label for label in range(1, plane.max() + 1)] if by_instance else [plane == 1]
            there = [part.tobytes() for part in parts if part.any()]
            assert [part.tobytes() for part in found.get(key, []) if part.any()] == there, key
    faults, _ = submission.examine(paths[0], want)
    assert faults == []
    assert scoring.score(paths[0], paths[0], made, want)[0] == 1
    score, rows = scoring.score(paths[1], paths[0], made, want)
    assert score == dice(read[1], read[0], keys) and rows == len(keys) and 0 < score < 1


def test_pairs_by_hand() -> None:
    """The scorer itself: 2×3 pixels, by every convention that it reads."""
    assert mask_of("1 2 5 1", (2, 3)).astype(int).tolist() == [[1, 0, 1], [1, 0, 0]]
    assert mask_of("1 2 5 1", (2, 3), "row").astype(int).tolist() == [[1, 1, 0], [0, 1, 0]]
    assert mask_of("0 2 2 1", (2, 3), base=0, relative=True).astype(int).tolist() == [[1, 0, 1], [1, 0, 0]]
    assert not mask_of("-1", (2, 3)).any() and not mask_of("", (2, 3)).any()
