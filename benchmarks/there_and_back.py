"""The number of true masks that differ after decode and encode, when the submission is read back independently.

    python -m benchmarks.there_and_back tgs-salt

Known masks are used as predictions: for training images their own, for test images without known truth those of a
training image of the same size. The submission, a CSV of run lengths or of labels, is read back with NumPy alone and
compared pixel by pixel.
"""

import sys

import numpy as np
import pandas as pd

from pipeline.bring import bring, encode
from pipeline.core.config.competition import Competition
from pipeline.core.driver import run_stage
from pipeline.core.run import open_run
from pipeline.decode import table


def main(name: str) -> None:
    """Prints how many masks of the submission differ from the given masks."""
    opened = open_run(name)
    run_stage(opened, "decode")
    train, test = table.read_table(opened.table, "train"), table.read_table(opened.test_table)
    competition, both = opened.competition, pd.concat([train, test])
    size = (int(both["height"].max()), int(both["width"].max()))
    oof = [_masks(row, competition) for _, row in train.iterrows()]
    given = {row["image_id"]: _given(row, train, oof, competition) for _, row in test.iterrows()}
    several = len(both[["height", "width"]].drop_duplicates()) > 1
    kind = np.float16 if competition.kind == "multiclass" else np.uint8
    full = kind(1) if competition.kind == "multiclass" else kind(255)
    run = bring(
        f"there-and-back-{name}",
        competition=name,
        oof=np.stack([_padded(masks, size) for masks in oof]) * full,
        oof_ids=train["image_id"].tolist(),
        test=np.stack([_padded(masks, size) for masks in given.values()]) * full,
        test_ids=list(given),
        assignments=["tune.method=fixed", *(["image.fit=pad"] if several else [])],
    )
    found = _read(pd.read_csv(encode(run), dtype=str, keep_default_na=False), given, competition)
    wrong = sum(not np.array_equal(found[image_id], masks) for image_id, masks in given.items())
    drawn = sum(bool(masks.any()) for masks in given.values())
    print(f"{name}: {len(train)} training and {len(test)} test images, {drawn} with a mask; {wrong} differ")


def _masks(row: pd.Series, competition: Competition) -> np.ndarray:
    """Returns the true masks (C, h, w) uint8 of 0 and 1; ignored pixels of class maps are background."""
    masks = (table.true_mask(row, competition.classes) == 1).astype(np.uint8)
    if competition.kind == "multiclass":
        masks[0] |= ~masks.any(0)
    return masks


def _given(row: pd.Series, train: pd.DataFrame, oof: list[np.ndarray], competition: Competition) -> np.ndarray:
    """Returns the mask that is used as the prediction of a test image."""
    if any(row[f"rle_{one}"] for one in competition.classes):
        return _masks(row, competition)
    alike = np.flatnonzero((train["height"] == row["height"]) & (train["width"] == row["width"]))
    seed = sum(map(ord, row["image_id"]))
    return oof[alike[seed % len(alike)]]


def _padded(masks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns masks in the middle of a larger picture."""
    height, width = masks.shape[1:]
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return np.pad(masks, ((0, 0), (top, size[0] - height - top), (left, size[1] - width - left)))


def _read(rows: pd.DataFrame, given: dict[str, np.ndarray], competition: Competition) -> dict[str, np.ndarray]:
    """Returns the masks of a submission."""
    settings, found = competition.submission, {}
    for cells in rows.to_dict("records"):
        image_id = cells[settings.id]
        shape = given[image_id].shape
        if settings.format == "labels":
            labels = np.array([cells[str(place)] for place in range(shape[1] * shape[2])], int).reshape(shape[1:])
            found[image_id] = (np.arange(shape[0])[:, None, None] == labels).astype(np.uint8)
            continue
        flat = np.zeros(shape[1] * shape[2], np.uint8)
        numbers = list(map(int, cells[settings.rle].split()))
        for start, length in zip(numbers[::2], numbers[1::2], strict=True):
            flat[start - 1 : start - 1 + length] += 1
        found[image_id] = flat.reshape(shape[1:], order="F" if competition.rle.order == "column" else "C")[None]
    return found


if __name__ == "__main__":
    main(sys.argv[1])
