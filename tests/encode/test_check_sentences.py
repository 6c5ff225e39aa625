"""What `check` says of a submission's separators, encoding, ids, empty masks and columns that are not predicted."""

from collections.abc import Callable

import pandas as pd
import pytest
from conftest import TEST_IDS, Tiny

from pipeline.core.errors import PipelineError
from pipeline.encode import submission

VALID = "id,mask\nt1,1 4\nt2,\nt3,5 2 41 3\nt4,1 2\n"
Check = Callable[[str], list[str]]


def wanted(tiny: Tiny) -> submission.Expected:
    run = tiny.run("decode")
    return submission.expected(run.competition, run.input, run.competition_folder)


@pytest.fixture
def check(tiny: Tiny) -> Check:
    """The faults of a submission of this content."""
    want, path = wanted(tiny), tiny.root / "mine.csv"

    def run(content: str) -> list[str]:
        path.write_text(content, encoding="utf-8")
        return submission.faults_of(path, want)

    return run


def test_ids_that_are_names_of_files_or_hold_what_does_not_show(check: Check) -> None:
    assert check(VALID) == []
    assert check(VALID.replace("t3", "t3.png"))[0] == (
        "row 4: id 't3.png' is not in the test set: write t3, without .png"
    )
    assert check(VALID.replace("t3", "test/t3.tif"))[0].endswith("is not in the test set: write t3")
    assert check(VALID.replace("t3", "t3 "))[0] == (
        "row 4: id 't3 ' is not in the test set: it is written with a space at its end"
    )
    assert check(VALID.replace("t3", "t3\0"))[0].endswith("it is written with a NUL character (U+0000)")
    assert check(VALID.replace("t3", "t9.png"))[0] == "row 4: id 't9.png' is not in the test set"


def test_ids_of_class_maps(tiny: Tiny) -> None:
    want = wanted(tiny)
    labels = submission.Expected(
        want.images, None, want.settings.model_copy(update={"format": "labels"}), ["id", "0", "1"], want.keys,
        dict.fromkeys(TEST_IDS, (1, 2)), want.convention, ["0", "1"], [1],
    )  # fmt: skip
    path = tiny.root / "mine.csv"
    path.write_text("id,0,1\nt1.png,0,1\nt2,0,1\nt3 ,0,0\nt4,1,1\n")
    assert submission.faults_of(path, labels)[:2] == [
        "row 2: id 't1.png' is not in the test set: write t1, without .png",
        "row 4: id 't3 ' is not in the test set: it is written with a space at its end",
    ]
    for content, words in (("id;0;1\n", "separated by semicolons"), ("id,0,1\nt\xe9,1,1\n", "is not UTF-8")):
        path.write_bytes(content.encode("latin-1"))
        with pytest.raises(PipelineError, match=words):
            submission.faults_of(path, labels)


def test_separators_and_columns(check: Check) -> None:
    with pytest.raises(PipelineError, match=r"separated by semicolons, because its header is 'id;mask'; save it with"):
        check(VALID.replace(",", ";"))
    assert check(VALID.replace("id,mask", "id, mask")) == [
        "columns are id, ' mask' (with a space at its start); expected id, mask, in this order"
    ]


@pytest.mark.parametrize(("empty", "said"), [("", "an empty field"), ("1 1", "the text '1 1'")])
def test_what_pandas_writes_for_an_empty_mask(tiny: Tiny, empty: str, said: str) -> None:
    tiny.settings["rle"] = {"empty": empty}
    tiny.save()
    path = tiny.root / "mine.csv"
    path.write_text(VALID.replace("t2,", "t2,nan"))
    assert submission.faults_of(path, wanted(tiny)) == [f"row 3: id t2: 'nan' is not a mask; an empty mask is {said}"]


def test_columns_that_are_not_predicted_are_compared_by_id(tiny: Tiny) -> None:
    sample = pd.DataFrame({"id": TEST_IDS, "mask": "", "ClassId": list("0123"), "Attributes": "a b"})
    tiny.save()
    sample.to_csv(tiny.input / "sample.csv", index=False)
    want, path = wanted(tiny), tiny.root / "mine.csv"

    def notes(frame: pd.DataFrame) -> list[str]:
        frame.to_csv(path, index=False)
        faults, found = submission.examine(path, want)
        assert faults == [] and {one.level for one in found} == {"note"}
        return [one.text for one in found]

    same = "Not predicted, but equal to sample.csv: ClassId, Attributes."
    assert notes(sample) == [same]
    assert notes(sample[::-1])[1:] == [same]  # by id, in any order of rows
    assert notes(sample.assign(ClassId=list("0923"))) == [
        "Not predicted, but equal to sample.csv: Attributes.",
        "Values that differ from sample.csv: ClassId in 1 of 4 rows (row 3 has '9', the sample '1'). Whether they "
        "are right cannot be checked.",
    ]
    (other,) = notes(sample.assign(ClassId="9", Attributes="z"))
    assert other.startswith(
        "Values that differ from sample.csv: ClassId in 4 of 4 rows (row 2 has '9', the sample '0'), "
    )
    assert "Attributes in 4 of 4 rows" in other
