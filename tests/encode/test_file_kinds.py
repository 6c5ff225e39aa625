"""A submission is the same in every kind of file: written, checked, scored, and found in a folder."""

import gzip
import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
from conftest import Tiny
from kinds import SHAPES, competition, drawn, images, wanted, write
from pycocotools import mask as coco

from pipeline.core import freshness
from pipeline.core.config.submission_settings import ENDINGS
from pipeline.core.errors import PipelineError
from pipeline.core.files import writing
from pipeline.core.run import open_run
from pipeline.encode import file_kinds, older, scoring, submission

KINDS = ["csv", "csv.gz", "parquet", "zip"]


@pytest.mark.parametrize("kind", KINDS)
def test_one_table_in_every_kind_of_file(kind: str, tmp_path: Path) -> None:
    made, want = wanted(tmp_path, submission={"file": kind})
    path = write(tmp_path / f"mine.{kind}", want, drawn())
    plain = write(tmp_path / "plain.csv", wanted(tmp_path)[1], drawn())
    assert submission.examine(path, want) == ([], []) and submission.file_note(path, want) == []
    assert scoring.score(path, plain, made, want) == (1.0, 3)
    file_kinds.convert(path, tmp_path / "again.csv", "csv")
    assert (tmp_path / "again.csv").read_bytes() == plain.read_bytes()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert hashlib.sha256(write(path, want, drawn()).read_bytes()).hexdigest() == digest
    (note,) = submission.file_note(plain, want) if kind != "csv" else [None]
    assert note is None or note.text.startswith(f"The competition takes .{kind}, but this is plain.csv")


def test_what_other_programs_read(tmp_path: Path) -> None:
    masks = drawn()
    paths = [write(tmp_path / f"x.{kind}", wanted(tmp_path, submission={"file": kind})[1], masks) for kind in KINDS]
    tables = [*(pd.read_csv(path, dtype=str, keep_default_na=False) for path in paths if path.suffix != ".parquet")]
    parquet = pd.read_parquet(paths[2])
    assert all(tables[0].equals(other) for other in [*tables[1:], parquet.astype(tables[0].dtypes)])
    assert set(map(str, pyarrow.parquet.read_schema(paths[2]).types)) == {"string"} and parquet["rle"].iloc[2] == ""
    assert zipfile.ZipFile(paths[3]).namelist() == ["submission.csv"]
    assert gzip.decompress(paths[1].read_bytes()) == paths[0].read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_faults_name_rows_of_every_kind(kind: str, tmp_path: Path) -> None:
    _, want = wanted(tmp_path)
    (tmp_path / "bad.csv").write_text("id,rle\nt1,5 0\nt2,\nt3,\n")
    path = tmp_path / f"mine.{kind}"
    file_kinds.convert(tmp_path / "bad.csv", path, kind)  # type: ignore[arg-type]
    (fault,) = submission.faults_of(path, want)
    row = 1 if kind == "parquet" else 2
    assert fault == f"row {row}: id t1: run 1 (start 5, length 0) has a length below 1"


@pytest.mark.parametrize("kind", KINDS)
def test_class_maps_in_every_kind_of_file(kind: str, tmp_path: Path) -> None:
    shapes = {"t1": (3, 4), "t2": (3, 4)}
    table = images(shapes)
    settings = {"kind": "multiclass", "classes": {"sky": 0, "sea": 1, "ice": 2}, "metric": "mean_iou"}
    settings["train"] = {"images": "train/{id}.png", "masks": "masks/{id}.png"}
    made, want = wanted(tmp_path, table, submission={"format": "labels", "file": kind}, **settings)
    labels = np.random.default_rng(0).integers(0, 3, (2, 3, 4))
    masks = {
        name: (labels[number] == np.arange(3)[:, None, None]).astype(np.uint8) for number, name in enumerate(shapes)
    }
    path = write(tmp_path / f"mine.{kind}", want, masks)
    assert submission.faults_of(path, want) == []
    assert scoring.score(path, path, made, want) == (1.0, 2)
    if kind == "parquet":
        found = pd.read_parquet(path)
        assert found["id"].tolist() == ["t1", "t2"]
        np.testing.assert_array_equal(found.drop(columns="id").to_numpy(), labels.reshape(2, -1))


def test_the_name_of_the_sample_submission_says_the_kind(tmp_path: Path) -> None:
    rows = pd.DataFrame({"id": list(SHAPES), "rle": "1 1"})
    rows.to_csv(tmp_path / "sample.csv.gz", index=False)
    rows.to_parquet(tmp_path / "sample.parquet")
    for name, kind in (("sample.csv.gz", "csv.gz"), ("sample.parquet", "parquet")):
        _, want = wanted(tmp_path, sample_submission=name)
        assert want.file == kind and want.ids == list(SHAPES)
        assert submission.faults_of(tmp_path / name, want) == []
    assert competition(submission={"file": "zip"}, sample_submission="sample.parquet").submission_file == "zip"
    for name, kind in (("a.csv.zip", "csv"), ("a.zip", "zip"), ("a.csv", "csv"), ("a.txt", "csv")):
        assert competition(sample_submission=name).submission_file == kind


@pytest.mark.parametrize("kind", [*KINDS, "json"])
def test_a_write_that_fails_leaves_the_old_file(kind: str, tmp_path: Path) -> None:
    _, want = wanted(tmp_path, classes={"thing": 1}, submission={"file": kind})
    path = tmp_path / f"mine{ENDINGS[want.file]}"
    path.write_bytes(b"old")
    texts = {key: ["1 2"] for key in want.keys if key[0] != "t3"}
    with pytest.raises(PipelineError, match="test id t3.* was not decoded"), writing(path) as temporary:
        submission.write(temporary, texts, want)
    with pytest.raises(KeyboardInterrupt), writing(path) as temporary:
        if kind == "json":
            raise KeyboardInterrupt
        with file_kinds.writing_table(temporary, want.file) as file:
            file.write("id,rle\n")
            raise KeyboardInterrupt
    assert path.read_bytes() == b"old" and [one.name for one in tmp_path.iterdir()] == [path.name]


def test_an_older_submission_of_another_kind_is_kept(tiny: Tiny) -> None:
    tiny.settings["submission"] = {"file": "csv.gz"}
    tiny.save()
    run = open_run(str(tiny.recipe_path))
    folder = run.submission.parent
    assert run.submission == folder / "small.csv.gz" and run.record == folder / "small.json"
    folder.mkdir()
    older_file = folder / "small.csv"
    older_file.write_text("id,mask\n")
    digest = hashlib.sha256(older_file.read_bytes()).hexdigest()
    run.record.write_text(json.dumps({"sha256": freshness.hash_file(older_file), "made": "2026-01-02 03:04:05"}))
    run.submission.write_bytes(gzip.compress(b"id,mask\nt1,\n"))
    older.keep(run, freshness.hash_file(run.submission))
    older.rename_other_kinds(run)
    dated = "small.2026-01-02-030405"
    assert sorted(path.name for path in folder.iterdir()) == [
        f"{dated}.csv",
        f"{dated}.json",
        "small.csv.gz",
        "small.json",
    ]
    assert hashlib.sha256((folder / f"{dated}.csv").read_bytes()).hexdigest() == digest
    assert [file_kinds.stem(path) for path in file_kinds.files_in(folder)] == [dated, "small"]
    assert file_kinds.record_of(folder / f"{dated}.csv") == folder / f"{dated}.json"


# --- COCO's results --------------------------------------------------------------------------------------------------


ARCTIC = {"classes": {"rts": 1}, "submission": {"file": "json", "columns": {"image_id": "{image_id}"}}}


def test_coco_results_are_what_pycocotools_reads(tmp_path: Path) -> None:
    made, want = wanted(tmp_path, images(extra_image_id=["7", "8", "9"]), **ARCTIC)
    assert ENDINGS[want.file] == ".results.json" and want.header == ["image_id", "category_id", "segmentation", "score"]
    masks = {name: np.zeros((1, *shape), np.uint8) for name, shape in SHAPES.items()}
    masks["t1"][0, 1:3, 2:5] = masks["t1"][0, 7:9, :3] = masks["t2"][0, 4:, 1] = 1
    probability = {name: np.where(planes == 1, 204, 0).astype(np.uint8) for name, planes in masks.items()}
    scores: submission.Scores = {}
    for name, planes in masks.items():
        scores |= submission.scores_of(name, planes, probability[name], want)
    path = write(tmp_path / "x.results.json", want, masks, scores)
    entries = json.loads(path.read_text())
    assert [(one["image_id"], one["category_id"], one["score"]) for one in entries] == [(7, 1, 0.8)] * 2 + [(8, 1, 0.8)]
    for numbers, name in (((0, 1), "t1"), ((2,), "t2")):
        total = sum(coco.decode(entries[number]["segmentation"]) for number in numbers)
        np.testing.assert_array_equal(total, masks[name][0])
    assert submission.examine(path, want) == ([], [])
    truth = tmp_path / "truth.json"
    truth.write_text(path.read_text())
    assert scoring.score(path, truth, made, want) == (1.0, 3)  # an image without a result is empty
    truth.write_text("[]")
    assert scoring.score(path, truth, made, want)[0] == pytest.approx(1 / 3)
    assert scoring.score(truth, truth, made, want) == (1.0, 3) and submission.examine(truth, want) == ([], [])


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"image_id": 5}, "row 1: id '5' with label '1' is not in the test set"),
        ({"category_id": 2}, "row 1: id '7' with label '2' is not in the test set"),
        ({"score": 1.5}, "row 1: id t1: score is '1.5'; expected a number from 0 to 1"),
        ({"segmentation": {"size": [9, 9], "counts": "01"}},
         "row 1: id t1 with label 1: its size is [9, 9], and that of the image [12, 17] (rows, columns)"),
        ({"segmentation": [[1, 1, 5, 1]]},
         'row 1: id t1 with label 1: the JSON is [[1, 1, 5, 1]]; expected {"size": [rows, columns], "counts": …}'),
    ],
)  # fmt: skip
def test_faults_of_coco_results(change: dict[str, object], fault: str, tmp_path: Path) -> None:
    _, want = wanted(tmp_path, images(extra_image_id=["7", "8", "9"]), **ARCTIC)
    sound = {"image_id": 7, "category_id": 1, "segmentation": {"counts": "Z1d4", "size": [12, 17]}, "score": 0.5}
    sound["segmentation"] = dict(coco.encode(np.asfortranarray(np.eye(12, 17, dtype=np.uint8))))
    sound["segmentation"]["counts"] = sound["segmentation"]["counts"].decode()  # type: ignore[index]
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([sound | change]))
    assert submission.faults_of(path, want) == [fault]
    path.write_text(json.dumps([sound]))
    assert submission.faults_of(path, want) == []


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.json", "{}", "is not a list of results"),
        ("x.json", "[{}]", "entry 1 lacks image_id, category_id, segmentation, score"),
        ("x.json", "[", "is not readable JSON"),
        ("x.csv", "id,rle\n", "is a table; the competition's submissions are COCO's results"),
        ("x.zip", "no", "is not a zip archive"),
    ],
)
def test_files_that_are_no_results(name: str, content: str, said: str, tmp_path: Path) -> None:
    _, want = wanted(tmp_path, classes={"rts": 1}, submission={"file": "json"})
    (tmp_path / name).write_text(content)
    with pytest.raises(PipelineError, match=said):
        submission.examine(tmp_path / name, want)
    with pytest.raises(PipelineError, match=said):
        scoring.score(tmp_path / name, tmp_path / name, competition(submission={"file": "json"}), want)
