"""Nothing that `make-competition` gives to students tells of the test masks."""

import json
import re
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import Tiny, encoded
from made_competitions import grouped, made

from pipeline.core.config.raw_layouts import load_competition
from pipeline.masks import rle
from pipeline.teach import competition_files
from pipeline.teach.competition_files import Made, write_students
from pipeline.teach.competition_metric import check_metric
from pipeline.teach.competition_page import data_page, data_picture
from pipeline.teach.competition_split import Plan, plan
from pipeline.teach.examples import Example, Source, read_examples, telling_properties


def parts(tiny: Tiny, masks: str = "csv") -> tuple[list[Example], Plan, Made]:
    """The tiny competition, read and planned."""
    source = Source(load_competition(str(tiny.competition_path)), tiny.input)
    examples = read_examples(source)
    planned = plan(examples, 0.4, 0.5, 7, source.competition.clean.duplicates)
    dice = check_metric("dice", False)
    return examples, planned, Made("course", "Course", ["thing"], "binary", masks, dice, 1, (40, 60), 3, True)


def students_zip(folder: Path, examples: Sequence[Example], planned: Plan, like: Made) -> bytes:
    """The archive that students get."""
    students = folder / "students"
    students.mkdir(parents=True)
    write_students(students, examples, planned, like)
    (students / "DATA.md").write_text(data_page(examples, planned, like))
    cv2.imwrite(str(students / "data.png"), data_picture(examples, planned, like))
    competition_files.even_times(students)
    competition_files.write_archive(folder / "s.zip", students)
    return (folder / "s.zip").read_bytes()


@pytest.mark.parametrize("masks", ["csv", "png"])
def test_nothing_that_students_get_depends_on_the_test_masks(masks: str, tiny: Tiny) -> None:
    """Byte for byte: neither on masks, nor on names, groups, paths and order of the test images in the source."""
    grouped(tiny)
    examples, planned, like = parts(tiny, masks)
    rng = np.random.default_rng(0)
    other = []
    for place, (example, test) in enumerate(zip(examples, planned.test, strict=True)):
        if test:
            item = replace(example.item, image_id=f"x{place}", path=f"elsewhere/{place}.tif", group=f"q{place}")
            text = rle.encode(rng.integers(0, 2, (40, 60))) if not example.texts[0] else ""
            example = replace(example, item=item, texts=(text,))
        other.append(example)
    first = students_zip(tiny.root / "one", examples, planned, like)
    order = rng.permutation(len(examples))
    shuffled = Plan(
        [planned.ids[place] for place in order], planned.test[order], planned.public[order], planned.clusters[order],
        [planned.groups[place] for place in order],
    )  # fmt: skip
    assert first == students_zip(tiny.root / "two", other, planned, like)
    assert first == students_zip(tiny.root / "three", [other[place] for place in order], shuffled, like)
    public = replace(planned, public=planned.test & ~planned.public)
    assert first == students_zip(tiny.root / "four", examples, public, like)


def test_files_carry_no_further_data(tiny: Tiny) -> None:
    grouped(tiny)
    folder = made(tiny)
    students = folder / "students"
    assert len({path.stat().st_mtime for path in [students, *students.rglob("*")]}) == 1
    with zipfile.ZipFile(folder / "course.zip") as archive:
        entries = archive.infolist()
        assert [entry.filename for entry in entries] == sorted(entry.filename for entry in entries)
        assert len({(entry.date_time, entry.external_attr, entry.comment, entry.extra) for entry in entries}) == 1
        content = {entry.filename: archive.read(entry) for entry in entries}
    assert set(content) == {path.relative_to(students).as_posix() for path in students.rglob("*") if path.is_file()}
    assert not any("solution" in name or "teacher" in name or "key" in name for name in content)
    for name, data in content.items():
        if name.endswith(".png"):  # pixels alone: no time, text, EXIF or profile
            assert png_chunks(data) == {b"IHDR", b"IDAT", b"IEND"}
        else:
            text = data.decode()
            seed = json.loads((folder / "teacher" / "made.json").read_text())["seed"]
            assert str(seed) not in text and str(tiny.root) not in text and "Usage" not in text
            assert not re.search(r"\b(a\d\d|p\d)\b", text), name  # ids and patients of the source
    key = pd.read_csv(folder / "teacher" / "key.csv", dtype=str)
    tests = set(key["id"][key["subset"] == "test"])
    table = content["train.csv"].decode()
    assert not any(name in table for name in tests)
    sample = pd.read_csv(students / "sample_submission.csv")
    assert set(sample["id"]) == tests


def png_chunks(data: bytes) -> set[bytes]:
    """The names of the chunks of a PNG."""
    found, place = set(), 8
    while place < len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        found.add(data[place + 4 : place + 8])
        place += 12 + length
    return found


def test_ids_say_nothing(tiny: Tiny) -> None:
    """Neither subset, order nor mask: they are drawn before anything is known of the images but their number."""
    examples, planned, _ = parts(tiny)
    swapped = [replace(example, texts=("1 5",)) for example in examples]
    assert plan(swapped, 0.4, 0.5, 7, None).ids != sorted(planned.ids)
    many = [examples[number % 12] for number in range(600)]
    drawn = plan(many, 0.5, 0.5, 11, None)
    ranks = np.argsort(np.argsort(drawn.ids))
    for values in (np.arange(600), drawn.test, drawn.public, [bool(one.texts[0]) for one in many]):
        assert abs(np.corrcoef(ranks, np.asarray(values, float))[0, 1]) < 0.15
    assert len(set(drawn.ids)) == 600


def test_files_are_stored_alike(tiny: Tiny) -> None:
    """An RGB image among grey ones: both subsets have three channels, of one type."""
    colour = np.random.default_rng(5).integers(0, 256, (40, 60, 3), np.uint8)
    tiny.path("a02").write_bytes(encoded(colour))
    folder = made(tiny)
    shapes = {cv2.imread(str(path), cv2.IMREAD_UNCHANGED).shape for path in (folder / "students").glob("t*/*.png")}
    assert shapes == {(40, 60, 3)}
    assert load_competition(str(folder / "students" / "competitions" / "course.yaml")).metric == "dice"


def test_what_the_source_gives_away(tiny: Tiny) -> None:
    examples, _, _ = parts(tiny)
    assert telling_properties(examples) == []
    small = [replace(one, shape=(20, 20, 1)) if not one.texts[0] else one for one in examples]
    (told,) = telling_properties(small)
    assert told.startswith("The size of an image says in 100% of cases whether its mask is empty (chance: 75%)")
