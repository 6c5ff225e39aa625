"""The usual answer: for images without a prediction, and for a file that is there before any image is read."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.core.config.raw_layouts import NpzLabels, RleCsv
from pipeline.core.errors import PipelineError
from pipeline.encode import submission
from pipeline.encode.stage import constant_masks, unanswered

SUBSET = {"images": "{id}.png", "masks": "train.csv"}
MASKS = {"name": "masks", "title": "Masks", "train": SUBSET, "test": {"images": "test/{id}.png"}, "metric": "dice"}
LABELS = {"name": "maps", "title": "Maps", "file": "maps.npz", "classes": ["sky", "sand", "rock"], "metric": "mean_iou"}


def test_the_commonest_class_that_is_predicted_is_usual() -> None:
    shares = {"sky": 0.7, "sand": 0.2, "rock": None}
    assert submission.usual_class({"class_share_true": shares}) == 0
    assert submission.usual_class({"class_share_true": shares, "never": [0]}) == 1
    assert submission.usual_class({"rules": {}}) is None
    assert constant_masks((3, 1, 2), 1).tolist() == [[[0, 0]], [[1, 1]], [[0, 0]]]
    assert not constant_masks((1, 4, 4), None).any()


def test_images_with_a_fault_have_no_answer_of_their_own() -> None:
    table = pd.DataFrame({"image_id": ["a", "b"], "fault": ["", "b.png: image cannot be read"]})
    assert unanswered(table) == {"b": "b.png: image cannot be read"}


def test_a_file_of_empty_masks_has_the_rows_of_the_sample(tmp_path: Path) -> None:
    competition = RleCsv.model_validate(
        MASKS
        | {"classes": ["x", "y"], "sample_submission": "sample.csv", "rle": {"empty": "-1"}}
        | {"columns": {"id": "id", "label": "class", "rle": "rle"}}
    )
    (tmp_path / "sample.csv").write_text("id,class,rle,note\n7,y,1 1,kept\n7,x,1 1,\n")
    rows = submission.write_constant(tmp_path / "out.csv", competition, tmp_path, [], None)
    assert rows == 2 and (tmp_path / "out.csv").read_text() == "id,class,rle,note\n7,y,-1,kept\n7,x,-1,\n"


def test_without_a_sample_it_has_the_images(tmp_path: Path) -> None:
    competition = RleCsv.model_validate(MASKS | {"classes": ["x"]})
    submission.write_constant(tmp_path / "out.csv", competition, tmp_path, ["b", "a"], None)
    assert (tmp_path / "out.csv").read_text() == "id,rle\nb,\na,\n"


def test_a_file_of_class_maps_has_the_usual_class_everywhere(tmp_path: Path) -> None:
    competition = NpzLabels.model_validate(LABELS | {"sample_submission": "sample.csv"})
    (tmp_path / "sample.csv").write_text("id,0,1,2\n0,0,0,0\n1,0,0,0\n")
    submission.write_constant(tmp_path / "out.csv", competition, tmp_path, [], 1)
    assert (tmp_path / "out.csv").read_text() == "id,0,1,2\n0,1,1,1\n1,1,1,1\n"
    with pytest.raises(PipelineError, match="which is needed for the number of pixels per row"):
        submission.write_constant(tmp_path / "out.csv", NpzLabels.model_validate(LABELS), tmp_path, ["0"], 1)


def test_the_format_is_known_without_images() -> None:
    want = submission.format_of(RleCsv.model_validate(MASKS | {"classes": ["x"], "sample_submission": "sample.csv"}))
    assert submission.texts_of("a", np.ones((1, 2, 2), np.uint8), want) == {("a", None): ["1 4"]}
