"""A run whose findings and suspects are to be reviewed; its predictions are the true masks, moved by a few pixels."""

import json

import numpy as np
import pandas as pd
import pytest
import written
from conftest import TRAIN_IDS, Tiny

from pipeline.clean.outliers import findings
from pipeline.core.run import Run
from pipeline.core.tables import write_for_people
from pipeline.decode import table
from pipeline.report import look

CONTRADICTION = ("a01", "contradiction", 0.001, "a02", "keep", "mask of 0 px, that of a02 has 377")
ROWS = [
    ("a03", "duplicate", 0.002, "a04", "keep", "cluster of 2 images"),
    ("a01", "duplicate", 0.001, "a02", "keep", "cluster of 2 images"),
    CONTRADICTION,
    ("a06", "pixel outlier", 7.0, "", "drop", "mean 3.00"),
]


def reviewed(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Returns a tuned run with four findings and one suspect, a12."""
    opened = tiny.run("decode")
    write_for_people(opened.outliers, findings(ROWS))
    opened.folder.mkdir(parents=True, exist_ok=True)
    opened.postprocess.write_text(json.dumps(written.RESULT))
    scores = {"image_id": TRAIN_IDS, "fold": [0, 1] * 6, "group": "p", "use": "train", "true_area": 9, "score": 0.5}
    pd.DataFrame(scores).to_csv(opened.folder / "oof_scores.csv", index=False)
    suspect = {"image_id": ["a12"], "reason": "poor overlap", "score": 0.9, "fold": 1, "note": "Dice 0.10"}
    pd.DataFrame(suspect).to_csv(opened.suspects, index=False)
    images = table.read_table(opened.table, "train").set_index("image_id", drop=False)

    def predict(image_id: str, shape: tuple[int, int]) -> look.Predicted:
        mask = np.roll(table.true_mask(images.loc[image_id], ["thing"]), 3, axis=2)
        return look.Predicted(mask * 200, mask)

    monkeypatch.setattr(look, "predictor", lambda run, subset: predict)
    return opened
