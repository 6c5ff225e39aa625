"""Several instances in one cell: what competitions' own code reads of it, and what `check` says."""

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from independent import mask_of
from kinds import SHAPES, competition, drawn, images, wanted, write
from pycocotools import _mask as coco

from pipeline.core.errors import PipelineError
from pipeline.encode import scoring, submission
from pipeline.masks import rle
from pipeline.predictions.format import cells

FORGERY = {"rle": {"as_json": "list", "several": ";", "empty": "authentic"}, "submission": {"cell": "{rle}"}}
HPA: dict[str, Any] = {
    "classes": {"nucleoplasm": 0, "golgi": 6}, "rle": {"format": "coco_zlib"}, "metric": "instance_precision",
    "columns": {"label": "class"},
    "submission": {
        "id": "ID", "rle": "PredictionString", "cell": "{class} {score} {rle}",
        "columns": {"ID": "{id}", "ImageWidth": "{width}", "ImageHeight": "{height}", "PredictionString": "{rle}"},
    },
}  # fmt: skip


def blobs() -> dict[str, np.ndarray]:
    """Two classes: two squares and a line in t1, one square in t2, nothing in t3."""
    masks = {name: np.zeros((2, *shape), np.uint8) for name, shape in SHAPES.items()}
    masks["t1"][0, 1:4, 1:4] = masks["t1"][0, 6:9, 10:14] = masks["t1"][1, 11] = masks["t2"][1, 2:9, 3:7] = 1
    return masks


def test_forgeries_are_lists_of_run_lengths_or_authentic(tmp_path: Path) -> None:
    made, want = wanted(tmp_path, **FORGERY)
    masks = {name: planes[:1] for name, planes in blobs().items()}
    path = write(tmp_path / "mine.csv", want, masks)
    texts = pd.read_csv(path)["rle"].tolist()
    assert texts[1:] == ["authentic", "authentic"]
    parts = [mask_of(" ".join(map(str, json.loads(part))), SHAPES["t1"]) for part in texts[0].split(";")]
    assert [int(part.sum()) for part in parts] == [9, 12]
    np.testing.assert_array_equal(np.any(parts, axis=0), masks["t1"][0])
    assert submission.examine(path, want) == ([], []) and scoring.score(path, path, made, want) == (1.0, 3)
    instances, _ = wanted(tmp_path, **FORGERY, metric="instance_precision")
    one = tmp_path / "one.csv"
    one.write_text(path.read_text().replace(f";{texts[0].split(';')[1]}", ""))
    assert scoring.score(one, path, instances, want)[0] == pytest.approx((0.5 + 1 + 1) / 3)
    assert submission.cells_of("t1", masks["t1"], want) == texts[:1]


@pytest.mark.parametrize(
    ("cell", "fault"),
    [
        ("", "row 2: id t1: is not in canonical form: '' should be 'authentic'"),
        ("[1, 2];[1, 2]", "row 2: id t1: is the same as row 2"),
        ("[1, 3];[3, 2]", "row 2: id t1: shares 1 pixel with another mask of the image"),
        ("[1, 3];", "row 2: id t1: '[1, 3];' does not have the form '{rle}', with ';' between instances"),
        ("[1, 3] [5, 1]", "row 2: id t1: '[1, 3] [5, 1]' is not JSON, and `rle: as_json` requires JSON"),
        ("Authentic", "row 2: id t1: 'Authentic' is not a mask; an empty mask is the text 'authentic'"),
        ("[1, 3];[]", "row 2: id t1: is not in canonical form: '[]' should be 'authentic'"),
    ],
)
def test_faults_in_cells(cell: str, fault: str, tmp_path: Path) -> None:
    _, want = wanted(tmp_path, **FORGERY)
    pd.DataFrame({"id": ["t1", "t2", "t3"], "rle": [cell, "authentic", "[5, 1]"]}).to_csv(
        tmp_path / "x.csv", index=False
    )
    assert submission.faults_of(tmp_path / "x.csv", want) == [fault]


def test_cells_of_class_score_and_mask(tmp_path: Path) -> None:
    made, want = wanted(tmp_path, **HPA)
    assert want.header == ["ID", "ImageWidth", "ImageHeight", "PredictionString"] and len(want.keys) == 6
    masks, scores = blobs(), submission.Scores()
    for name, planes in masks.items():
        scores |= submission.scores_of(name, planes, (planes * 230).astype(np.uint8), want)
    path = write(tmp_path / "mine.csv", want, masks, scores)
    frame = pd.read_csv(path, keep_default_na=False)
    assert frame[["ID", "ImageWidth", "ImageHeight"]].to_numpy().tolist() == [
        ["t1", 17, 12],
        ["t2", 9, 20],
        ["t3", 5, 5],
    ]
    words = frame["PredictionString"].iloc[0].split(" ")
    assert (
        words[::3] == ["0", "0", "6"] and set(words[1::3]) == {"0.901961"} and frame["PredictionString"].iloc[2] == ""
    )
    import base64
    import zlib

    unpacked = [
        coco.decode([{"size": [12, 17], "counts": zlib.decompress(base64.b64decode(one))}]) for one in words[2::3]
    ]
    np.testing.assert_array_equal(unpacked[0][..., 0] + unpacked[1][..., 0], masks["t1"][0])
    np.testing.assert_array_equal(unpacked[2][..., 0], masks["t1"][1])
    assert submission.examine(path, want) == ([], [])
    assert scoring.score(path, path, made, want) == (1.0, 6)
    for old, new, fault in (
        ("0 0.901961", "3 0.901961", "row 2: id t1: label '3' is not a class (0, 6)"),
        ("0 0.901961", "0 91", "row 2: id t1: the score is '91'; expected a number from 0 to 1"),
        ("0 0.901961", "0", "does not have the form '{class} {score} {rle}'"),
        ("t1,17,12", "t1,12,17", "row 2: id t1: ImageWidth is '12'; expected '17'"),
        ("t2,9,20", "t1,9,20", "row 3: id t1 is already in row 2"),
    ):
        (tmp_path / "bad.csv").write_text(path.read_text().replace(old, new, 1))
        assert fault in submission.faults_of(tmp_path / "bad.csv", want)[0], new
    with pytest.raises(PipelineError, match="the submission row 3 repeats the id t1"):
        scoring.score(tmp_path / "bad.csv", path, made, want)


def test_a_sample_submission_names_no_classes(tmp_path: Path) -> None:
    columns = ["ID", "ImageWidth", "ImageHeight", "PredictionString"]
    rows = [[name, shape[1], shape[0], "0 1 eNoLCAjJNgIABNkBkg=="] for name, shape in SHAPES.items()]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "sample.csv", index=False)
    _, want = wanted(tmp_path, sample_submission="sample.csv", **HPA)
    assert want.header == columns and want.keys[:3] == [("t1", 0), ("t1", 1), ("t2", 0)] and want.copied == []
    assert submission.faults_of(write(tmp_path / "mine.csv", want, blobs()), want) == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"cell": "{score}"}, "expected {rle}, or e.g."),
        ({"cell": "{rle} {rle}"}, "expected {rle}, or e.g."),
        ({"cell": "{rle}"}, "set rle.several to the separator between"),
        ({"cell": "{class} {rle}", "label": "class"}, "the class is both in cell and in `label`"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        competition(submission=settings)


def test_cells_are_taken_apart_as_they_were_joined(tmp_path: Path) -> None:
    for cell, several in (("{rle}", "|"), ("{score}:{rle}", "; "), ("<{class}> {rle}", "|")):
        made = {"rle": {"several": several}, "submission": {"cell": cell}}
        _, want = wanted(tmp_path, **made)
        key = want.keys[0]
        joined = cells.joined([key], {key: ["1 2 9 4", "20 1"]}, {key: [0.25, 1.0]}, want)
        found = cells.split(joined, want)
        assert found and [one.text for one in found] == ["1 2 9 4", "20 1"]
        assert "score" not in cell or [one.score for one in found] == ["0.25", "1.0"]


# --- rows ------------------------------------------------------------------------------------------------------------


FASHION: dict[str, Any] = {
    "classes": {"shirt": 0, "shoe": 23}, "columns": {"label": "ClassId", "rows": "instance"},
    "sample_submission": "sample.csv", "submission": {"id": "ImageId", "rle": "EncodedPixels", "overlap": "none"},
}  # fmt: skip


def test_instance_rows_of_an_image_need_no_row_of_every_class(tmp_path: Path) -> None:
    sample = {"ImageId": list(SHAPES), "EncodedPixels": "1 1", "ClassId": "0", "AttributesIds": "0"}
    pd.DataFrame(sample).to_csv(tmp_path / "sample.csv", index=False)
    made, want = wanted(tmp_path, **FASHION)
    path = write(tmp_path / "mine.csv", want, blobs())
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    assert frame.columns.tolist() == list(sample)
    assert frame[["ImageId", "ClassId"]].to_numpy().tolist() == [
        ["t1", "0"], ["t1", "0"], ["t1", "23"], ["t2", "23"], ["t3", "0"],
    ]  # fmt: skip
    faults, notes = submission.examine(path, want)
    assert faults == [] and notes[-1].text.startswith("2 of 6 pairs of an image and a class have no row, which counts")
    assert scoring.score(path, path, made, want) == (1.0, 6)
    frame[frame["ImageId"] != "t2"].to_csv(path, index=False)
    assert submission.faults_of(path, want) == ["1 of 3 test ids are missing: t2"]
    rows = [("t1", "1 5", "0"), ("t1", "4 3", "23"), ("t1", "4 3", "23"), ("t1", "9 1", "0"), ("t1", "", "0"),
            ("t2", "1 5", "0"), ("t2", "5 1", "0"), ("t3", "", "0")]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["ImageId", "EncodedPixels", "ClassId"]).assign(AttributesIds="0")
    frame.to_csv(path, index=False)
    assert submission.faults_of(path, want) == [
        "row 3: id t1 with label 23: shares 2 pixels with row 2, another mask of the image",
        "row 4: id t1 with label 23: is the same as row 3",
        "row 6: id t1 with label 0: it is an empty mask, but the image has other instances",
        "row 8: id t2 with label 0: shares 1 pixel with row 7, another mask of the image",
    ]
    for overlap, count in (("classes", 3), ("any", 2)):
        _, other = wanted(tmp_path, **FASHION | {"submission": FASHION["submission"] | {"overlap": overlap}})
        assert len(submission.faults_of(path, other)) == count


# --- further columns -------------------------------------------------------------------------------------------------


FURTHER = {
    "height": "{height}", "width": "{width}", "Usage": "Public", "fold": 3, "sure": "{score:.3f}",
    "where": "{site}/{id}",
}  # fmt: skip


def test_further_columns(tmp_path: Path) -> None:
    table = images(extra_site=["rome", "oslo", "bern"])
    _, want = wanted(tmp_path, table, submission={"columns": FURTHER})
    masks = drawn()
    scores = {("t1", None): [0.75], ("t2", None): [0.5], ("t3", None): [0.0]}
    path = write(tmp_path / "mine.csv", want, masks, scores)  # type: ignore[arg-type]
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    assert frame.columns.tolist() == ["id", "rle", *FURTHER]
    assert frame.drop(columns="rle").iloc[1].tolist() == ["t2", "20", "9", "Public", "3", "0.500", "oslo/t2"]
    assert submission.examine(path, want) == ([], [])
    for column, value, fault in (
        ("height", "21", "height is '21'; expected '20'"),
        ("height", "20.0", ""),
        ("Usage", "Private", "Usage is 'Private'; expected 'Public'"),
        ("sure", "-1", "sure is '-1'; expected a number from 0 to 1"),
        ("sure", "nan", "sure is 'nan'; expected a number from 0 to 1"),
        ("where", "", "where is ''; expected 'oslo/t2'"),
    ):
        changed = frame.copy()
        changed.loc[1, column] = value
        changed.to_csv(path, index=False)
        assert submission.faults_of(path, want) == ([f"row 3: id t2: {fault}"] if fault else [])


def test_columns_of_the_sample_stay_but_for_those_that_are_named(tmp_path: Path) -> None:
    rows = pd.DataFrame({"id": list(SHAPES), "Usage": ["a", "b", "c"], "rle": "1 1", "score": "9"})
    rows.to_csv(tmp_path / "sample.csv", index=False)
    _, want = wanted(tmp_path, sample_submission="sample.csv", submission={"columns": {"score": "{score}"}})
    assert want.copied == ["Usage"] and want.header == ["id", "Usage", "rle", "score"]
    frame = pd.read_csv(write(tmp_path / "mine.csv", want, drawn()), dtype=str, keep_default_na=False)
    assert frame["Usage"].tolist() == ["a", "b", "c"] and frame["score"].tolist() == ["1.0", "1.0", "0.0"]
    with pytest.raises(PipelineError, match="submission.columns names sure, but sample.csv has id, Usage, rle, score"):
        wanted(tmp_path, sample_submission="sample.csv", submission={"columns": {"sure": "{score}"}})
    with pytest.raises(PipelineError, match="submission.columns.x names {site}, which the images do not have"):
        wanted(tmp_path, submission={"columns": {"x": "{site}"}})
    with pytest.raises(PipelineError, match="gives images t1 and t3 the same id, 'a'"):
        wanted(tmp_path, images(extra_name=["a", "b", "a"]), submission={"columns": {"id": "{name}"}})


def test_an_id_made_of_another_column(tmp_path: Path) -> None:
    made, want = wanted(tmp_path, images(extra_name=["seven", "8", "9"]), submission={"columns": {"id": "{name}"}})
    path = write(tmp_path / "mine.csv", want, drawn())
    assert pd.read_csv(path, dtype=str)["id"].tolist() == ["seven", "8", "9"]
    assert submission.faults_of(path, want) == [] and scoring.score(path, path, made, want) == (1.0, 3)


def test_how_sure_a_mask_is() -> None:
    _, want = wanted(Path(), columns={"rows": "instance"}, submission={"columns": {"sure": "{score}"}})
    masks = {name: planes[:1] for name, planes in blobs().items()}
    probability = np.full((1, *SHAPES["t1"]), 0.2, np.float32)
    probability[0, :5] = 0.6
    found = submission.scores_of("t1", masks["t1"], probability, want)
    assert found["t1", None] == pytest.approx([0.6, 0.2])
    assert submission.scores_of("t3", masks["t3"], np.zeros((1, 5, 5), np.uint8), want) == {("t3", None): [0.0]}
    labels = masks["t1"].astype(np.int32) * 2
    assert [rle.area(one) for one in submission.texts_of("t1", labels, want)["t1", None]] == [21]


def test_instances_that_share_pixels_are_scored_whole(tmp_path: Path) -> None:
    """The truth is 1 to 3 and 100 to 103; of 1 to 3 and 2 to 4 the first one is true, and each has all its pixels."""
    made, want = wanted(tmp_path, **FORGERY, metric="instance_f1")
    found, paths = {}, [tmp_path / "true.csv", tmp_path / "mine.csv"]
    for cell in ("[1, 3];[2, 3]", "[2, 3];[1, 3]", "[1, 3];[1, 3]"):
        for path, text in zip(paths, ("[1, 3];[100, 4]", cell), strict=True):
            pd.DataFrame({"id": ["t1", "t2", "t3"], "rle": [text, *["authentic"] * 2]}).to_csv(path, index=False)
        found[cell] = [scoring.score(*one, made, want)[0] * 3 - 2 for one in (paths, paths[::-1])]
    assert found == {cell: pytest.approx([0.5, 0.5]) for cell in found}
    made, want = wanted(tmp_path, **FORGERY, metric="instance_f_beta")
    assert scoring.score(*paths, made, want)[0] * 3 - 2 == pytest.approx(0.5)  # one hit, not two


@pytest.mark.parametrize(
    ("convention", "text"),
    [
        ({"as_json": "list"}, "[[1,3]]"),
        ({"as_json": "list"}, "[1,3]"),
        ({"as_json": "pairs"}, "[[1,3], [10,2]]"),
        ({"format": "coco_zlib"}, base64.b64encode(zlib.compress(b"03Y6", 1)).decode()),
    ],
)
def test_other_spellings_of_the_same_text_are_no_fault(convention: dict[str, Any], text: str, tmp_path: Path) -> None:
    _, want = wanted(tmp_path, rle=convention)
    pd.DataFrame({"id": ["t1", "t2", "t3"], "rle": [text, "", ""]}).to_csv(tmp_path / "x.csv", index=False)
    assert len(submission.faults_of(tmp_path / "x.csv", want)) == ("[[" in text and convention["as_json"] == "list")
