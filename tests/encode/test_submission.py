"""`check` finds every fault of a submission and names its row; `score` gives the competition's metric."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import typer
from conftest import SHAPE, TEST_IDS, TRAIN_IDS, Tiny

from pipeline import data_commands
from pipeline.core.config.raw_layouts import load_competition
from pipeline.core.errors import PipelineError
from pipeline.encode import sanity, scoring, submission
from pipeline.masks import rle

CLASSES = ["thing", "rim", "spot"]
PIXELS = SHAPE[0] * SHAPE[1]
VALID = {"t1": "1 4", "t2": "", "t3": "5 2 41 3", "t4": f"1 {PIXELS}"}


@pytest.fixture
def decoded(tiny: Tiny) -> Tiny:
    """The tiny competition after decode; submissions are id, mask."""
    tiny.run("decode")
    return tiny


@pytest.fixture
def check(decoded: Tiny, capsys: pytest.CaptureFixture[str]) -> Callable[[str], tuple[int, list[str]]]:
    """Runs `check` on a file of this content: the exit code, and the lines without the file's name."""

    def run(content: str) -> tuple[int, list[str]]:
        path = decoded.root / "mine.csv"
        path.write_text(content)
        capsys.readouterr()
        with pytest.raises(typer.Exit) as ended:
            data_commands.check(path, str(decoded.competition_path))
        lines = capsys.readouterr().out.splitlines()
        return ended.value.exit_code, [line.removeprefix(f"{path}: ") for line in lines]

    return run


def test_rows_cut_short_doubled_columns_and_blank_lines(check: Callable[[str], tuple[int, list[str]]]) -> None:
    assert check("id,mask\n\nt1,1 4\nt2,\n\nt3,5 x\nt4,1 2\n")[1][0].startswith("row 6: id t3: ")
    with pytest.raises(PipelineError, match=r"mine.csv: every row must have 2 values.*but row 3 has 1 \(t2 1 4\)"):
        check("id,mask\nt1,1 4\nt2 1 4\nt3,\nt4,\n")
    with pytest.raises(PipelineError, match="the column `mask` stands more than once"):
        check("id,mask,mask\nt1,1 4,\n")


@pytest.fixture
def score(decoded: Tiny, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs `score --json` on two tables of masks by id, and returns its one JSON object."""

    def run(submission: dict[str, str], truth: dict[str, str], metric: str = "dice") -> Any:
        decoded.settings["metric"] = metric
        decoded.save()
        paths = [write(decoded.root / name, rows) for name, rows in (("mine.csv", submission), ("truth.csv", truth))]
        capsys.readouterr()
        data_commands.score(*paths, str(decoded.competition_path), as_json=True)
        return json.loads(capsys.readouterr().out)

    return run


def text(rows: dict[str, str]) -> str:
    return "".join(f"{image_id},{mask}\n" for image_id, mask in {"id": "mask", **rows}.items())


def write(path: Path, rows: dict[str, str]) -> Path:
    path.write_text(text(rows))
    return path


# --- check -----------------------------------------------------------------------------------------------------------


def test_valid(check: Callable[..., Any]) -> None:
    assert check(text(VALID)) == (0, ["valid"])
    assert check(text(dict(reversed(VALID.items())))) == (0, ["valid"])  # in any order of rows


@pytest.mark.parametrize(
    ("header", "found"),
    [("id,rle", "id, rle"), ("mask,id", "mask, id"), ("id,mask,note", "id, mask, note"), ("id", "id")],
)
def test_wrong_columns(check: Callable[..., Any], header: str, found: str) -> None:
    code, lines = check(f"{header}\n")
    assert code == 1
    assert lines == [f"columns are {found}; expected id, mask, in this order", "1 fault"]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"t3": "1 2 3"}, "row 4: id t3: the number of values, 3, is odd: the last start, 3, has no length"),
        ({"t3": "0 2"}, "row 4: id t3: run 1 (start 0, length 2) starts below 1, the number of the first pixel"),
        ({"t3": "5 3 6 1"}, "row 4: id t3: run 2 (start 6, length 1) overlaps run 1 (start 5, length 3), "
                            "which ends at pixel 7"),
        ({"t1": "a 1"}, "row 2: id t1: value 1 is 'a', not a whole number"),
        ({"t4": "2400 2"}, "row 5: id t4: run 1 (start 2400, length 2) ends at pixel 2401, past the end of "
                           "a 40×60 image (2400 pixels) by 1"),
        ({"t1": "1 2 3 2"}, "row 2: id t1: is not in canonical form: '1 2 3 2' should be '1 4'"),
        ({"t1": "01 4"}, "row 2: id t1: is not in canonical form: '01 4' should be '1 4'"),
        ({"t1": "1 4 "}, "row 2: id t1: is not in canonical form: '1 4 ' should be '1 4'"),
        ({"a01": "1 4"}, "row 6: id 'a01' is not in the test set"),
        ({"t9": ""}, "row 6: id 't9' is not in the test set"),
        ({"t2": None}, "1 of 4 test ids are missing: t2"),
    ],
)  # fmt: skip
def test_one_fault(check: Callable[..., Any], change: dict[str, Any], fault: str) -> None:
    rows = {image_id: mask for image_id, mask in (VALID | change).items() if mask is not None}
    assert check(text(rows)) == (1, [fault, "1 fault"])


def test_repeated_id(check: Callable[..., Any]) -> None:
    assert check(text(VALID) + "t2,1 1\n") == (1, ["row 6: id t2 is already in row 3", "1 fault"])


def test_all_faults_at_once(check: Callable[..., Any]) -> None:
    code, lines = check("id,mask\nt1,1\nx,\nt1,1 1\nt4,2 1 3 1\n")
    assert code == 1
    assert [line.split(":")[0] for line in lines[:4]] == ["row 2", "row 3", "row 4", "row 5"]
    assert lines[4:] == ["2 of 4 test ids are missing: t2, t3", "5 faults"]


def test_many_faults_are_cut_short(check: Callable[..., Any]) -> None:
    code, lines = check(text(VALID) + "".join(f"x{number},\n" for number in range(60)))
    assert code == 1
    assert lines[49] == "row 55: id 'x49' is not in the test set"
    assert lines[50:] == ["… and 10 more", "60 faults"]


def test_another_convention(decoded: Tiny, check: Callable[..., Any]) -> None:
    decoded.settings["rle"] = {"order": "row", "base": 0, "empty": "-1"}
    decoded.save()
    assert check(text({"t1": "0 4", "t2": "-1", "t3": "-1", "t4": f"0 {PIXELS}"})) == (0, ["valid"])
    code, lines = check(text({"t1": "0 4", "t2": "", "t3": "-1", "t4": f"1 {PIXELS}"}))
    assert code == 1
    assert lines[0] == "row 3: id t2: is not in canonical form: '' should be '-1'"
    assert lines[1].startswith("row 5: id t4: run 1 (start 1, length 2400) ends at pixel 2400, past the end")


def test_check_without_the_file_or_the_table(decoded: Tiny) -> None:
    path, competition = decoded.root / "mine.csv", str(decoded.competition_path)
    with pytest.raises(PipelineError) as caught:
        data_commands.check(path, competition)
    assert str(caught.value) == f"{path} does not exist."
    write(path, VALID)
    for name in ("images.parquet", "test_images.parquet"):
        (decoded.root / "work" / "tiny" / name).unlink()
    with pytest.raises(PipelineError, match=r"^work/tiny/images\.parquet does not exist; run the decode stage"):
        data_commands.check(path, competition)


# --- score -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("predicted", "true", "expected"),
    [
        ("", "", 1.0),
        ("1 1", "", 0.0),
        ("", "1 1", 0.0),
        ("1 4", "1 4", 1.0),
        ("1 4", "5 4", 0.0),
        ("1 4", "3 4", 0.5),  # 2 pixels of 4 and 4
        ("1 1", "1 3", 0.5),  # 1 pixel of 1 and 3
        ("1 10", "1 30", 0.5),
        (f"1 {PIXELS}", "1 1200", 2 / 3),
        ("1 2 41 2", "2 1 42 3", 2 * 2 / 8),  # pixel 2 and pixel 42
    ],
)
def test_dice_by_hand(score: Callable[..., Any], predicted: str, true: str, expected: float) -> None:
    result = score(VALID | {"t2": predicted}, {"t2": true})
    assert result == {"score": pytest.approx(expected, abs=1e-12), "rows": 1, "metric": "dice"}


@pytest.mark.parametrize(
    ("predicted", "true", "expected"),
    [
        ("", "", 1.0),
        ("1 1", "", 0.0),
        ("1 4", "1 4", 1.0),
        ("1 1", "1 2", 0.0),
        ("1 3", "1 4", 0.5),
        ("1 9", "1 10", 0.8),
    ],
)
def test_iou_precision_by_hand(score: Callable[..., Any], predicted: str, true: str, expected: float) -> None:
    # IoU 0.75 exceeds 0.50 … 0.70, five thresholds of ten; an IoU of 0.5 exceeds none.
    result = score(VALID | {"t2": predicted}, {"t2": true}, metric="iou_precision")
    assert result == {"score": pytest.approx(expected, abs=1e-12), "rows": 1, "metric": "iou_precision"}


def test_score_is_the_mean_over_the_rows_of_the_truth(score: Callable[..., Any]) -> None:
    truth = {"t1": "3 4", "t2": "", "t3": "5 2 41 3", "t4": ""}
    assert score(VALID, truth) == {"score": (0.5 + 1 + 1 + 0) / 4, "rows": 4, "metric": "dice"}
    assert score(VALID, {"t4": "", "t1": "3 4"}) == {"score": 0.25, "rows": 2, "metric": "dice"}


def test_submission_of_the_truth_scores_1(decoded: Tiny, score: Callable[..., Any]) -> None:
    truth = {image_id: rle.encode(mask) for image_id, mask in zip(TEST_IDS, decoded.masks.values(), strict=False)}
    assert score(truth, truth) == {"score": 1.0, "rows": 4, "metric": "dice"}


def test_truth_may_have_further_columns(decoded: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    path, truth = write(decoded.root / "mine.csv", VALID), decoded.root / "truth.csv"
    pd.DataFrame({"fold": [0, 1], "mask": ["3 4", ""], "id": ["t1", "t2"], "note": "x"}).to_csv(truth, index=False)
    capsys.readouterr()
    data_commands.score(path, truth, str(decoded.competition_path))
    assert capsys.readouterr().out == "dice 0.7500 over 2 rows\n"


@pytest.mark.parametrize(
    ("submission", "truth", "words"),
    [
        ({"t1": ""}, {"t1": "", "t2": "1 1"}, "truth row 3: id t2 is not in the submission."),
        (VALID | {"z": ""}, {"z": ""}, "truth row 2: id z is not in the competition's images."),
        (VALID | {"t3": "1 2 3"}, {"t3": ""}, "submission row 4: id t3: the number of values, 3, is odd"),
        (VALID, {"t3": "2400 2"}, "truth row 2: id t3: run 1 (start 2400, length 2) ends at pixel 2401, past the end"),
        (VALID, {}, "the truth has no rows."),
        ({}, VALID, "the submission has no rows."),
    ],
)
def test_score_of_bad_files(score: Callable[..., Any], submission: Any, truth: Any, words: str) -> None:
    with pytest.raises(PipelineError) as caught:
        score(submission, truth)
    assert str(caught.value).startswith(words)


@pytest.mark.parametrize(
    ("submission", "truth", "words"),
    [
        ("id,rle\nt1,\n", text(VALID), "the submission lacks the column mask; found id, rle."),
        (text(VALID), "img,mask\nt1,\n", "the truth lacks the column id; found img, mask."),
        (text(VALID) + "t1,1 1\n", text(VALID), "the submission row 6 repeats the id t1."),
        (text(VALID), "id,mask\nt1,\nt1,1 1\n", "the truth row 3 repeats the id t1."),
    ],
)
def test_score_of_bad_tables(decoded: Tiny, submission: str, truth: str, words: str) -> None:
    paths = decoded.root / "mine.csv", decoded.root / "truth.csv"
    for path, content in zip(paths, (submission, truth), strict=True):
        path.write_text(content)
    with pytest.raises(PipelineError) as caught:
        data_commands.score(*paths, str(decoded.competition_path))
    assert str(caught.value) == words


# --- through the command line ----------------------------------------------------------------------------------------


def test_command_line(decoded: Tiny) -> None:
    good, bad = write(decoded.root / "good.csv", VALID), write(decoded.root / "bad.csv", VALID | {"t1": "1 2 3 2"})
    truth, other = write(decoded.root / "truth.csv", {"t1": "3 4"}), write(decoded.root / "other.csv", {"x": ""})
    options = "--competition", str(decoded.competition_path)

    done = decoded.cli("check", bad, *options)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout == f"{bad}: row 2: id t1: is not in canonical form: '1 2 3 2' should be '1 4'\n{bad}: 1 fault\n"

    done = decoded.cli("score", good, truth, *options, "--json")
    assert done.returncode == 0
    assert done.stdout.count("\n") == 1
    result = json.loads(done.stdout)
    assert list(result) == ["score", "rows", "metric"]
    assert result == {"score": 0.5, "rows": 1, "metric": "dice"}
    assert isinstance(result["rows"], int)
    assert np.isfinite(result["score"])

    done = decoded.cli("score", good, other, *options, "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: truth row 2: id x is not in the submission.\n"


# --- several rows per image -----------------------------------------------------------------------------------------


EMPTY = {"uniform_masks": "allow"}
"""Of training images that have no mask, as the tests here need none."""


def wanted(tiny: Tiny, change: dict[str, Any]) -> submission.Expected:
    """What a submission must hold after this change of the YAML."""
    tiny.settings |= {"sample_submission": None} | change
    tiny.save()
    run = tiny.run("decode")
    return submission.expected(run.competition, run.input, run.competition_folder)


def written(path: Path, want: submission.Expected, masks: dict[str, np.ndarray]) -> pd.DataFrame:
    """Writes these masks as a submission, which must be valid, and reads it as text."""
    texts = {
        key: text for name, planes in masks.items() for key, text in submission.texts_of(name, planes, want).items()
    }
    submission.write(path, texts, want)
    assert submission.faults_of(path, want) == []
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def test_submission_of_classes(tiny: Tiny) -> None:
    columns = {"id": "id", "pattern": "{id}_{label}", "rle": "mask"}
    tiny.rows = [{"id": f"{name}_thing", "mask": ""} for name in TRAIN_IDS]
    want = wanted(tiny, {"classes": CLASSES, "columns": columns, "decode": EMPTY})
    masks = {name: np.stack([np.full(SHAPE, number == index % 3, np.uint8) for number in range(3)])
             for index, name in enumerate(TEST_IDS)}  # fmt: skip
    frame = written(tiny.root / "mine.csv", want, masks)
    assert frame["id"].tolist()[:4] == ["t1_thing", "t1_rim", "t1_spot", "t2_thing"]
    assert frame["mask"].tolist()[:6] == ["1 2400", "", "", "", "1 2400", ""]
    competition = load_competition(str(tiny.competition_path))
    assert scoring.score(tiny.root / "mine.csv", tiny.root / "mine.csv", competition, want) == (1.0, 12)
    frame.drop(index=3).replace("t1_rim", "t1_dent").to_csv(tiny.root / "mine.csv", index=False)
    assert submission.faults_of(tiny.root / "mine.csv", want) == [
        "row 3: id 't1_dent' with label 'dent' is not in the test set",
        "2 of 12 test ids are missing: t1 with label rim, t2 with label thing",
    ]


def test_every_column_of_the_sample_submission_counts(tiny: Tiny) -> None:
    tiny.settings |= {"columns": {"id": "id", "rle": "mask"}, "classes": ["thing"]}
    tiny.settings["submission"] = {"id": "ImageId", "rle": "EncodedPixels"}
    rows = [{"ImageId": name, "EncodedPixels": "1 1", "ClassId": "7", "Attributes": f"{name}, 2"} for name in TEST_IDS]
    tiny.save()
    pd.DataFrame(rows).to_csv(tiny.input / "sample.csv", index=False)
    run = tiny.run("decode")
    want = submission.expected(run.competition, run.input, run.competition_folder)
    assert submission.faults_of(tiny.input / "sample.csv", want) == []  # the sample's own columns are right
    mine = tiny.root / "mine.csv"
    frame = written(mine, want, {name: np.ones((1, *SHAPE), np.uint8) for name in TEST_IDS})
    assert frame.columns.tolist() == list(rows[0])
    assert frame["Attributes"].tolist() == [f"{name}, 2" for name in TEST_IDS] and set(frame["ClassId"]) == {"7"}
    faults, reasons = sanity.examine(mine, want, run.competition)
    assert not faults
    assert "Not predicted, but equal to sample.csv: ClassId, Attributes." in [one.text for one in reasons]
    assert scoring.score(mine, mine, run.competition, want)[1] == len(TEST_IDS)
    for columns in (["ImageId", "EncodedPixels", "ClassId"], ["EncodedPixels", "ImageId", "ClassId", "Attributes"]):
        frame[columns].to_csv(mine, index=False)
        (fault,) = submission.faults_of(mine, want)
        assert fault == (
            f"columns are {', '.join(columns)}; expected ImageId, EncodedPixels, ClassId, Attributes, in this order as "
            "in sample.csv"
        )
    truth = pd.DataFrame({"ImageId": ["t1"], "EncodedPixels": ["1 1"]})
    truth.to_csv(tiny.root / "truth.csv", index=False)  # a truth needs none of what is not predicted
    assert scoring.score(tiny.input / "sample.csv", tiny.root / "truth.csv", run.competition, want) == (1.0, 1)


def test_columns_stand_as_in_the_sample_submission(tiny: Tiny) -> None:
    tiny.rows = [{"id": f"{name}_thing", "mask": ""} for name in TRAIN_IDS]
    tiny.settings |= {"columns": {"id": "id", "pattern": "{id}_{label}", "rle": "mask"}, "classes": CLASSES}
    tiny.settings |= {"submission": {"id": "image", "label": "class", "rle": "pixels"}, "decode": EMPTY}
    tiny.save()
    rows = [{"image": name, "pixels": "1 1", "class": one} for name in TEST_IDS for one in CLASSES]
    pd.DataFrame(rows).to_csv(tiny.input / "sample.csv", index=False)
    run = tiny.run("decode")
    want = submission.expected(run.competition, run.input, run.competition_folder)
    frame = written(tiny.root / "mine.csv", want, {name: np.ones((3, *SHAPE), np.uint8) for name in TEST_IDS})
    assert frame.columns.tolist() == ["image", "pixels", "class"]
    assert frame["class"].tolist() == CLASSES * len(TEST_IDS)
    assert submission.faults_of(tiny.input / "sample.csv", want) == []


def test_a_sample_submission_without_some_classes(tiny: Tiny) -> None:
    """A placeholder, as Severstal's is: what it leaves out is said; an unknown label stops before training."""
    tiny.rows = [{"id": f"{name}_thing", "mask": ""} for name in TRAIN_IDS]
    tiny.settings |= {"columns": {"id": "id", "pattern": "{id}_{label}", "rle": "mask"}, "classes": CLASSES}
    tiny.settings["decode"] = EMPTY
    tiny.save()
    rows = [{"id": f"{name}_thing", "mask": "1 1"} for name in TEST_IDS]
    pd.DataFrame(rows).to_csv(tiny.input / "sample.csv", index=False)
    run = tiny.run("decode")
    want = submission.expected(run.competition, run.input, run.competition_folder)
    written(tiny.root / "mine.csv", want, {name: np.ones((3, *SHAPE), np.uint8) for name in TEST_IDS})
    _, found = sanity.examine(tiny.root / "mine.csv", want, run.competition)
    assert found[0].level == "check" and found[0].kind == "classes without rows"
    assert found[0].text.startswith("The submission has no row of rim, spot, because sample.csv has none. ")
    pd.DataFrame(rows).replace("t1_thing", "t1_0").to_csv(tiny.input / "sample.csv", index=False)
    assert "sample.csv row 2: label '0' is no class of the YAML (thing, rim, spot); if the labels" in tiny.refused(
        "decode"
    )


def test_submission_of_instances(tiny: Tiny) -> None:
    tiny.settings["columns"] |= {"rows": "instance"}
    want = wanted(tiny, {})
    mask = np.zeros(SHAPE, np.uint8)
    mask[2:5, 2:5] = mask[10:20, 30:40] = 1
    frame = written(tiny.root / "mine.csv", want, {name: mask[None] * (name != "t2") for name in TEST_IDS})
    assert frame["id"].tolist() == ["t1", "t1", "t2", "t3", "t3", "t4", "t4"]
    parts = [rle.decode(text, SHAPE) for text in frame["mask"][:2]]
    assert [int(part.sum()) for part in parts] == [9, 100]
    frame.loc[1, "mask"] = frame["mask"][0]
    frame.loc[2:2, "id"] = "t1"
    frame.to_csv(tiny.root / "mine.csv", index=False)
    assert submission.faults_of(tiny.root / "mine.csv", want) == [
        "row 3: id t1: is the same as row 2",
        "row 4: id t1: it is an empty mask, but the image has other instances",
        "1 of 4 test ids are missing: t2",
    ]
    merged = wanted(tiny, {"submission": {"rows": "image"}})
    frame = written(tiny.root / "mine.csv", merged, {name: mask[None] for name in TEST_IDS})
    assert frame["id"].tolist() == TEST_IDS


def test_rows_of_a_sample_submission_decide(tiny: Tiny) -> None:
    columns = {"id": "image", "label": "class", "rle": "mask"}
    tiny.rows = [{"image": name, "class": "rim", "mask": ""} for name in TRAIN_IDS]
    tiny.settings |= {"classes": CLASSES, "columns": columns, "decode": EMPTY}
    tiny.save()
    rows = [{"image": name, "class": label, "mask": ""} for label in ("spot", "rim") for name in TEST_IDS]
    pd.DataFrame(rows).to_csv(tiny.input / "sample.csv", index=False)
    run = tiny.run("decode")
    want = submission.expected(run.competition, run.input, run.competition_folder)
    assert want.keys == [(name, number) for number in (2, 1) for name in TEST_IDS]
    masks = {name: np.ones((3, *SHAPE), np.uint8) for name in TEST_IDS}
    assert list(written(tiny.root / "mine.csv", want, masks).columns) == ["image", "class", "mask"]
    pd.DataFrame([*rows, {"image": "t1", "class": "dent", "mask": ""}]).to_csv(tiny.input / "sample.csv", index=False)
    with pytest.raises(Exception, match="row 10: 't1' does not name an id and a class of the YAML"):
        submission.expected(run.competition, run.input, run.competition_folder)
