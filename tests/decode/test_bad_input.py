"""Every kind of bad input ends in a sentence that names the file, the row, the id and the values; good ones decode."""

import shutil
import unicodedata
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile
import yaml
from conftest import SHAPE, TEST_IDS, TRAIN_IDS, Tiny, encoded
from PIL import Image

from pipeline.core.config.raw_layouts import load_competition
from pipeline.core.config.recipe import load_recipe
from pipeline.core.errors import PipelineError
from pipeline.core.run import open_run
from pipeline.decode import table
from pipeline.decode.readers.files import read_image
from pipeline.encode import submission
from pipeline.masks import rle
from pipeline.split.folds import read_folds

PACKAGE = Path(load_recipe.__code__.co_filename).parent
SCALES = "`value_range: [lowest, highest]` in the competition's YAML scales all images"
DAMAGED = "cannot be read, it is damaged or truncated"
MEND = "Correct them, or leave out faulty training images with `decode: {on_error: drop}`"


def faults(message: str) -> list[str]:
    """The faults that decode listed, one a line."""
    return [line.strip() for line in message.splitlines() if line.startswith("  ")]


# --- images and rows -------------------------------------------------------------------------------------------------


def test_missing_image(tiny: Tiny) -> None:
    tiny.path("a03").unlink()
    message = tiny.fails()
    assert message.startswith("1 fault in the raw files:\n")
    assert faults(message) == ["train.csv row 4: id a03 has no image: train/a03.tif does not exist"]
    assert MEND in message


def test_image_without_a_row(tiny: Tiny) -> None:
    del tiny.rows[4]
    tiny.save()
    assert faults(tiny.fails()) == ["train/a05.tif: image without a row in train.csv"]


def test_duplicated_id(tiny: Tiny) -> None:
    tiny.rows.append(tiny.row("a02"))
    tiny.save()
    assert faults(tiny.fails()) == ["train.csv row 14: id a02 is already in row 3"]


def test_no_row_fits_an_image(tiny: Tiny) -> None:
    for row in tiny.rows:
        row["id"] += "x"
    tiny.save()
    message = tiny.fails()
    assert message.startswith("No file in ")
    assert "train.csv row 2: id a01x has no image: train/a01x.tif does not exist" in message


def test_no_image_at_all(tiny: Tiny) -> None:
    tiny.settings["train"]["images"] = "elsewhere/{id}.tif"
    tiny.save()
    assert "No file in" in tiny.fails()
    tiny.settings["test"]["images"] = "elsewhere/{id}.tif"
    tiny.save()
    message = tiny.fails()
    assert "No test image matches" in message
    assert "tiny/elsewhere/{id}.tif" in message


def test_test_image_missing_or_unlisted(tiny: Tiny) -> None:
    tiny.path("t2").rename(tiny.path("t2").with_name("t9.tif"))
    message = tiny.fails()
    assert faults(message) == [
        "sample.csv row 3: id t2 has no image: test/t2.tif does not exist",
        "test/t9.tif: image without a row in sample.csv",
    ]
    assert MEND not in message


def test_an_id_in_both_subsets_may_belong_to_two_images(tiny: Tiny) -> None:
    """Folder-numbered data sets have the same names in train/ and test/."""
    (tiny.input / "train" / "t3.tif").write_bytes(encoded(tiny.images["t3"][:30]))
    tiny.rows.append({**tiny.rows[1], "id": "t3", "mask": "31 5"})
    tiny.settings |= {"shape": None}
    tiny.save()
    run = tiny.run("decode", "clean", "split")
    train, test = table.read_table(run.table), table.read_table(run.test_table)
    assert train.set_index("image_id").loc["t3", ["height", "rle_thing"]].tolist() == [30, "31 5"]
    assert test.set_index("image_id").loc["t3", ["height", "rle_thing"]].tolist() == [SHAPE[0], ""]
    assert read_folds(run)["image_id"].tolist() == [*TRAIN_IDS, "t3"]
    want = submission.expected(run.competition, run.input, run.competition_folder)
    assert want.shapes["t3"] == SHAPE
    tiny.path("a05").unlink()
    tiny.row("a05")["id"] = "t1"  # a faulty training image takes no test image's place
    tiny.settings["decode"] = {"on_error": "drop"}
    tiny.save()
    run = tiny.run("decode")
    assert table.read_table(run.table).set_index("image_id").loc["t1", "subset"] == "faulty"
    assert table.read_table(run.test_table)["fault"].tolist() == [""] * 4


@pytest.mark.parametrize(("files", "ids"), [("NFC", "NFD"), ("NFD", "NFC")])
@pytest.mark.parametrize("masks", ["csv", "file", "instances"])
def test_composed_and_decomposed_names_are_one_id(tiny: Tiny, files: Any, ids: Any, masks: str) -> None:
    on_disk, listed = (unicodedata.normalize(form, "caf\u00e9 1") for form in (files, ids))
    tiny.path("a03").rename(tiny.path("a03").with_name(f"{on_disk}.tif"))
    tiny.path("t2").rename(tiny.path("t2").with_name(f"{on_disk}.tif"))
    tiny.row("a03")["id"] = listed
    if masks != "csv":
        tiny.settings["train"]["masks"] = "masks/{id}.png" if masks == "file" else "masks/{id}_*.png"
        tiny.settings["columns"]["absent"] = "empty"
        (tiny.input / "masks").mkdir()
        end = "" if masks == "file" else "_1"
        for name, mask in tiny.masks.items():
            name = listed if name == "a03" else name
            (tiny.input / "masks" / f"{name}{end}.png").write_bytes(encoded(255 * mask, "png"))
    tiny.save()
    rows = "".join(f"{listed if name == 't2' else name},1 1\n" for name in TEST_IDS)
    (tiny.input / "sample.csv").write_text(f"id,mask\n{rows}")
    run = tiny.run("decode", "clean", "split")
    normal = unicodedata.normalize("NFC", listed)
    images = table.read_table(run.table).set_index("image_id")
    assert images.loc[normal, "rle_thing"] == rle.encode(tiny.masks["a03"])
    folds = read_folds(run)
    assert normal in folds["image_id"].tolist()
    want = submission.expected(run.competition, run.input, run.competition_folder)
    path = tiny.root / "mine.csv"
    submission.write(path, {key: ["1 4"] for key in want.keys}, want)
    assert path.read_text(encoding="utf-8").splitlines()[2] == f"{listed},1 4"
    for form in ("NFC", "NFD"):
        path.write_text(unicodedata.normalize(form, path.read_text(encoding="utf-8")), encoding="utf-8")  # type: ignore
        assert submission.examine(path, want) == ([], [])


@pytest.mark.parametrize("beside", [False, True])
def test_one_file_in_both_subsets_is_a_fault(tiny: Tiny, beside: bool) -> None:
    for name in TEST_IDS:
        shutil.copy(tiny.path(name), tiny.input / "train")
    tiny.settings["test"]["images"] = "*/{id}.tif" if beside else "train/{id}.tif"
    tiny.settings["test"]["exclude"] = ["t?.tif"] if beside else []
    tiny.settings["decode"] = {"on_error": "drop"}
    tiny.rows.append({**tiny.rows[0], "id": "t3"})
    tiny.save()
    if beside:
        (tiny.input / "sample.csv").write_text("id,mask\na03,1 1\n")
    message = tiny.fails()
    name, path = ("a03", "train/a03.tif") if beside else ("t3", "train/t3.tif")
    assert f"{path}: test image {name} is also a training image" in message


GARBAGE = b"this is no image" * 20


@pytest.mark.parametrize("content", [GARBAGE, b"", encoded(np.zeros(SHAPE, np.uint8))[:8]])
def test_unreadable_tiff(tiny: Tiny, content: bytes) -> None:
    tiny.path("a07").write_bytes(content)
    (fault,) = faults(tiny.fails())
    assert fault.startswith(f"train/a07.tif: {DAMAGED}")


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_truncated_tiff(tiny: Tiny, share: float) -> None:
    content = tiny.path("a07").read_bytes()
    tiny.path("a07").write_bytes(content[: int(len(content) * share)])
    (fault,) = faults(tiny.fails())
    assert fault.startswith(f"train/a07.tif: {DAMAGED}")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_truncated_png_and_jpeg(tiny: Tiny, suffix: str, share: float) -> None:
    tiny.convert(suffix, tiny.images)
    path = tiny.path("a07").with_suffix(f".{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert faults(tiny.fails()) == [f"train/a07.{suffix}: cannot be read whole, it is damaged or truncated"]


def test_a_tiff_with_axes_of_length_1_stored_plane_by_plane(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    planes = image.transpose(2, 0, 1)
    tifffile.imwrite(tmp_path / "planes.tif", planes, photometric="rgb", planarconfig="separate")
    tifffile.imwrite(tmp_path / "imagej.tif", planes[None, None], metadata={"axes": "TZCYX"}, imagej=True)
    for name in ("planes.tif", "imagej.tif"):
        np.testing.assert_array_equal(read_image(tmp_path / name), image)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_what_follows_the_end_of_an_image_does_not_matter(tiny: Tiny, suffix: str) -> None:
    tiny.convert(suffix, tiny.images)
    path = tiny.path("a07").with_suffix(f".{suffix}")
    path.write_bytes(path.read_bytes() + bytes(100))
    tiny.run("decode")


def test_a_jpeg_is_cut_short_although_its_thumbnail_is_whole(tiny: Tiny) -> None:
    tiny.convert("jpg", tiny.images)
    path = tiny.path("a07").with_suffix(".jpg")
    content = path.read_bytes()
    thumbnail = b"\xff\xe1" + (len(content) + 2).to_bytes(2, "big") + content
    path.write_bytes(content[:2] + thumbnail + content[2:-20])
    assert faults(tiny.fails()) == ["train/a07.jpg: cannot be read whole, it is damaged or truncated"]


def test_an_image_that_may_not_be_read(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.convert("png", tiny.images)
    read = Path.read_bytes

    def refused(path: Path) -> bytes:
        if path.name == "a07.png":
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refused)
    assert faults(tiny.fails()) == ["train/a07.png: cannot be read (Permission denied)"]


def test_two_images_of_one_id(tiny: Tiny) -> None:
    for name in TRAIN_IDS:
        (tiny.input / "train" / "here").mkdir(exist_ok=True)
        tiny.path(name).rename(tiny.input / "train" / "here" / f"{name}.tif")
    (tiny.input / "train" / "there").mkdir()
    shutil.copy(tiny.input / "train" / "here" / "a02.tif", tiny.input / "train" / "there" / "a01.tif")
    tiny.settings["train"]["images"] = "train/*/{id}.tif"
    tiny.save()
    first = "train/here/a01.tif"
    assert faults(tiny.fails()) == [
        f"train/there/a01.tif: image a01 is already {first}: each id must have one image file"
    ]


def test_garbage_and_corrupt_png(tiny: Tiny) -> None:
    tiny.convert("png", tiny.images)
    corrupt = bytearray(encoded(tiny.images["a02"], "png"))
    corrupt[len(corrupt) // 2] ^= 0xFF
    (tiny.input / "train" / "a01.png").write_bytes(GARBAGE + b"IEND\0\0\0\0")
    (tiny.input / "train" / "a02.png").write_bytes(corrupt)
    found = faults(tiny.fails())
    assert found == [f"train/{name}.png: is not an image that can be read" for name in ("a01", "a02")]


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (
            np.zeros((*SHAPE, 2), np.uint8),
            "has shape (40, 60, 2); expected rows × columns, grey, RGB or four channels; `channels: 2` in the "
            "competition's YAML reads them all",
        ),
        (np.zeros(SHAPE, np.float32), f"holds float32 pixels from 0 to 0; expected uint8 or uint16: {SCALES}"),
    ],
)
def test_not_grey_or_rgb_of_8_or_16_bit(tiny: Tiny, image: np.ndarray, words: str) -> None:
    tifffile.imwrite(tiny.path("a04"), image, photometric="minisblack", metadata={"axes": "YXC"[: image.ndim]})
    assert faults(tiny.fails()) == [f"train/a04.tif: {words}"]


@pytest.mark.parametrize(("shape", "hint"), [((40, 61), ""), ((60, 40), ": transposed?")])
@pytest.mark.parametrize("name", ["a01", "t1"])
def test_image_of_another_shape(tiny: Tiny, name: str, shape: tuple[int, int], hint: str) -> None:
    tiny.path(name).write_bytes(encoded(np.zeros(shape, np.uint8)))
    (fault,) = faults(tiny.fails())
    where = tiny.path(name).relative_to(tiny.input)
    assert fault == f"{where}: image is {shape[0]}×{shape[1]}; expected 40×60 (rows × columns){hint}"


def test_mixed_bit_depth(tiny: Tiny) -> None:
    tiny.path("a05").write_bytes(encoded(tiny.images["a05"].astype(np.uint16)))
    (fault,) = faults(tiny.fails())
    assert fault.startswith("train/a05.tif: image is uint16, and the first image of the competition is uint8")


# --- masks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1 2 9", "the number of values, 3, is odd: the last start, 9, has no length"),
        ("-4 2", "run 1 (start -4, length 2) starts below 1"),
        ("0 2", "run 1 (start 0, length 2) starts below 1"),
        ("7 0", "run 1 (start 7, length 0) has a length below 1"),
        ("2399 3", "run 1 (start 2399, length 3) ends at pixel 2401, past the end of a 40×60 image (2400 pixels) by 1"),
        ("3 5 7 2", "run 2 (start 7, length 2) overlaps run 1 (start 3, length 5), which ends at pixel 7"),
        ("9 2 3 1", "run 2 (start 3, length 1) comes before run 1 (start 9, length 2): runs must be sorted"),
        ("3 1 x 2", "value 3 is 'x', not a whole number"),
        ("3.5 1", "value 1 is '3.5', not a whole number"),
        ("1e3 1", "value 1 is '1e3', not a whole number"),
        ("3 99999999999999999999", "value 2 is '99999999999999999999', beyond the pixels of any image"),
    ],
)
def test_malformed_mask(tiny: Tiny, text: str, words: str) -> None:
    tiny.row("a06")["mask"] = text
    tiny.save()
    (fault,) = faults(tiny.fails())
    assert fault.startswith(f"train.csv row 7: mask of image a06: {words}")


@pytest.mark.parametrize(("told", "right"), [("column", "row"), ("row", "column")])
def test_masks_in_the_other_order(tiny: Tiny, told: str, right: Any) -> None:
    for name, mask in tiny.masks.items():
        tiny.row(name)["mask"] = rle.encode(mask, rle.Convention(right))
    tiny.settings["rle"] = {"order": told}
    tiny.save()
    (fault,) = faults(tiny.fails())
    assert fault.startswith(f"train.csv: 9 of 9 masks are smoother when read in {right} order than in {told} order")
    assert f"transposed: set `rle: {{order: {right}}}`" in fault
    tiny.settings["rle"] = {"order": right}
    tiny.save()
    assert tiny.run("decode").table.exists()


def test_square_masks_in_the_other_order(tiny: Tiny, capfd: pytest.CaptureFixture[str]) -> None:
    """The mirror of a mask is as smooth; only the images tell, and decode goes on."""
    rng = np.random.default_rng(0)
    tiny.rows, images = [], {name: image[:, :40] for name, image in tiny.images.items()}
    for number in range(24):
        mask = cv2.ellipse(np.zeros((40, 40), np.uint8), (15 + number % 5, 12), (11, 4), 3 * number, 0, 360, 1, -1)
        images[f"a{number:02}"] = (rng.integers(0, 100, mask.shape) + 90 * mask).astype(np.uint8)
        tiny.rows.append({"id": f"a{number:02}", "mask": rle.encode(mask, rle.Convention("row"))})
    tiny.convert("png", images)
    tiny.run("decode")
    (said,) = [line for line in capfd.readouterr().err.splitlines() if "mirrored" in line]
    assert said.startswith("  on 24 square images")
    assert said.endswith("set `rle: {order: row}` in the competition's YAML")
    tiny.settings["rle"] = {"order": "row"}
    tiny.save()
    tiny.run("decode")
    assert "mirrored" not in capfd.readouterr().err


# --- tables ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "file", "missing", "found"),
    [
        ({"columns": {"id": "img", "rle": "mask"}}, "train.csv", "`img`", "`id`, `mask`, `patient`, `age`"),
        ({"columns": {"id": "{id}_{img}", "rle": "m"}}, "train.csv", "`img`, `m`", "`id`, `mask`, `patient`, `age`"),
        ({"submission": {"id": "id", "rle": "rle"}}, "sample.csv", "`rle`", "`id`, `mask`"),
    ],
)
def test_missing_column(tiny: Tiny, change: dict[str, Any], file: str, missing: str, found: str) -> None:
    tiny.settings |= change
    tiny.save()
    assert tiny.fails().startswith(
        f"{file}: column {missing} is missing; found {found}. Correct `{next(iter(change))}` in the YAML"
    )


def test_missing_group(tiny: Tiny) -> None:
    tiny.settings["group"] = "person"
    tiny.save()
    assert tiny.fails() == "competition tiny: column `person` (group) is missing; found `patient`, `age`."
    tiny.settings["group"] = "{group}_{number}"
    tiny.save()
    assert tiny.fails() == "competition tiny: id a01 does not match `group: {group}_{number}`."


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (encoded(np.zeros(SHAPE, np.uint8)), "is not a readable CSV: "),
        (b"", "is not a readable CSV: No columns to parse from file."),
        (b"id,mask\na01,1 2\na02,1 2,surplus\n", "every row must have 2 values, as many as the header has columns"),
        (b"id,mask\na01,1 2,surplus\n", "but row 2 has 3 (a01,1 2,surplus): look there for a missing"),
        (b"<!doctype html>\n<title>Log in</title>\n", "column `id`, `mask` is missing; found `<!doctype html>`"),
    ],
)
def test_not_a_csv(tiny: Tiny, content: bytes, words: str) -> None:
    (tiny.input / "train.csv").write_bytes(content)
    message = tiny.fails()
    assert "train.csv" in message
    assert words in message
    assert "\n" not in message


def test_a_row_that_lost_its_comma_is_no_empty_mask(tiny: Tiny) -> None:
    lines = (tiny.input / "train.csv").read_text().splitlines()
    lines[3] = lines[3].replace("a03,", "a03 ")
    (tiny.input / "train.csv").write_text("\n".join([lines[0], "", *lines[1:]]))
    message = tiny.fails()
    assert "train.csv: every row must have 4 values" in message
    assert "but row 5 has 3 (a03 " in message


@pytest.mark.parametrize("name", ["train.csv", "sample.csv", "patients.csv"])
def test_a_repeated_column_is_refused_in_every_table(tiny: Tiny, name: str) -> None:
    tiny.settings["train"]["table"] = "patients.csv"
    (tiny.input / "patients.csv").write_text("id,site\na01,x\n")
    tiny.save()
    lines = (tiny.input / name).read_text().splitlines()
    last = lines[0].split(",")[-1]
    changed = [f"{lines[0]},{last}", *(f"{line}," for line in lines[1:])]
    (tiny.input / name).write_text("\n".join(changed))
    assert f"{name}: the column `{last}` stands more than once in its header" in tiny.fails()


def test_blank_lines_do_not_shift_the_rows_of_faults(tiny: Tiny) -> None:
    tiny.path("a03").unlink()
    tiny.row("a05")["mask"] = "5 x"
    tiny.save()
    header, first, *rows = (tiny.input / "train.csv").read_text().splitlines()
    (tiny.input / "train.csv").write_text("\n".join([header, "", first, "  ", *rows]))
    (tiny.input / "sample.csv").write_text("id,mask\n\nt1,1 1\nt2,1 1\n\nt3,1 1\nt3,1 1\n")
    found = faults(tiny.fails())
    assert found[0] == "train.csv row 6: id a03 has no image: train/a03.tif does not exist"
    assert found[1] == "sample.csv row 7: id t3 is already in row 6"
    assert any(fault.startswith("train.csv row 8: mask of image a05: ") for fault in found)


def test_a_table_with_two_rows_of_an_image(tiny: Tiny) -> None:
    tiny.settings["train"]["table"] = "patients.csv"
    tiny.save()
    (tiny.input / "patients.csv").write_text("id,site\na01,x\na02,y\n\na01,y\na02,y\n")
    message = tiny.fails()
    assert message.startswith("patients.csv row 5: id a01 is already in row 2, with other values (1 such row)")


def test_no_table(tiny: Tiny) -> None:
    (tiny.input / "train.csv").unlink()
    assert tiny.fails() == f"{tiny.input / 'train.csv'} does not exist; the competition's YAML names it."
    (tiny.input / "train.csv").mkdir()
    assert "train.csv is not a readable CSV" in tiny.fails()


# --- all at once, drop -----------------------------------------------------------------------------------------------


def damage(tiny: Tiny) -> dict[str, str]:
    """One training image of each kind of fault, and the words for it."""
    tiny.path("a01").unlink()
    tiny.path("a02").write_bytes(GARBAGE)
    tiny.path("a03").write_bytes(tiny.path("a03").read_bytes()[:900])
    tiny.path("a04").write_bytes(encoded(np.zeros(SHAPE[::-1], np.uint8)))
    tiny.path("a05").write_bytes(encoded(tiny.images["a05"].astype(np.uint16)))
    tiny.row("a06")["mask"] = "9 2 3 1"
    tiny.rows.append(tiny.row("a07"))
    tiny.rows.remove(tiny.row("a08"))
    tiny.save()
    return {
        "a01": "train.csv row 2: id a01 has no image",
        "a02": f"train/a02.tif: {DAMAGED}",
        "a03": f"train/a03.tif: {DAMAGED}",
        "a04": "train/a04.tif: image is 60×40; expected 40×60 (rows × columns): transposed?",
        "a05": "train/a05.tif: image is uint16",
        "a06": "train.csv row 7: mask of image a06: run 2 (start 3, length 1) comes before run 1",
        "a07": "train.csv row 13: id a07 is already in row 8",
        "a08": "train/a08.tif: image without a row in train.csv",
    }


def test_all_faults_at_once(tiny: Tiny) -> None:
    expected = damage(tiny)
    tiny.path("t1").write_bytes(GARBAGE)
    message = tiny.fails()
    assert message.startswith("9 faults in the raw files:")
    for words in (*expected.values(), f"test/t1.tif: {DAMAGED}"):
        assert sum(fault.startswith(words) for fault in faults(message)) == 1, words


def test_many_faults_are_cut_short(tiny: Tiny) -> None:
    tiny.rows += [{**tiny.rows[0], "id": f"b{number}"} for number in range(35)]
    tiny.save()
    message = tiny.fails()
    assert message.startswith("35 faults in the raw files:")
    assert faults(message)[-1] == "… and 5 more"


def test_drop_goes_on_without_the_faulty(tiny: Tiny) -> None:
    expected = damage(tiny)
    tiny.settings |= {"decode": {"on_error": "drop"}, "split": {"folds": 2}}
    tiny.save()
    run = tiny.run("decode", "clean", "split")
    outliers = pd.read_csv(run.outliers, dtype=str).set_index("image_id")
    assert sorted(outliers.index) == sorted(expected)
    assert set(outliers["reason"]) == {"broken"}
    assert set(outliers["action"]) == {"drop"}
    for name, words in expected.items():
        assert outliers.loc[name, "note"].startswith(words)
    in_arrays = [name for name in TRAIN_IDS if name not in ("a01", "a08")]
    images = table.read_table(run.table)
    assert images["image_id"][images["subset"] == "train"].tolist() == in_arrays
    assert set(images["image_id"][images["subset"] == "faulty"]) == {"a01", "a08"}
    assert np.load(run.pixels / "train_images.npy").shape == (10, 32, 32, 1)
    folds = read_folds(run)
    assert folds["image_id"].tolist() == in_arrays
    assert folds["image_id"][folds["use"] == "train"].tolist() == ["a09", "a10", "a11", "a12"]


@pytest.mark.parametrize("kind", ["garbage", "missing", "shape"])
def test_faulty_test_image_always_stops(tiny: Tiny, kind: str) -> None:
    tiny.settings["decode"] = {"on_error": "drop"}
    tiny.path("a01").write_bytes(GARBAGE)  # alone, this one would be left out
    tiny.save()
    tiny.path("t4").write_bytes(GARBAGE if kind == "garbage" else encoded(np.zeros((40, 61), np.uint8)))
    if kind == "missing":
        tiny.path("t4").unlink()
    message = tiny.fails()
    (fault,) = faults(message)
    assert "t4" in fault
    assert MEND not in message


def test_constant_image_is_dropped(tiny: Tiny) -> None:
    tiny.path("a05").write_bytes(encoded(np.full(SHAPE, 7, np.uint8)))
    outliers = pd.read_csv(tiny.run("decode", "clean").outliers, dtype=str)
    assert outliers[["image_id", "reason", "action", "note"]].to_numpy().tolist() == [
        ["a05", "broken", "drop", "constant: every pixel is 7"]
    ]


# --- folds -----------------------------------------------------------------------------------------------------------


def own_folds(tiny: Tiny, fold: dict[str, Any]) -> Path:
    path = tiny.root / "folds" / "tiny.csv"
    path.parent.mkdir(exist_ok=True)
    pd.DataFrame({"image_id": fold.keys(), "fold": fold.values()}).to_csv(path, index=False)
    return path


def test_own_folds_are_kept_and_used(tiny: Tiny) -> None:
    fold = {name: index % 3 for index, name in enumerate(reversed(TRAIN_IDS))}
    path = own_folds(tiny, fold)
    content = path.read_text()
    tiny.path("a05").write_bytes(encoded(np.full(SHAPE, 7, np.uint8)))
    run = tiny.run("decode", "clean", "split")
    assert path.read_text() == content
    folds = read_folds(run)
    assert folds["image_id"].tolist() == TRAIN_IDS
    assert dict(zip(folds["image_id"], folds["fold"], strict=True)) == fold
    assert folds["image_id"][folds["use"] == "drop"].tolist() == ["a05"]  # outliers.csv still counts


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"b1": 0}, "does not fit the images; ids of no training image: b1. Correct the file"),
        ({"a02": None}, "does not fit the images; training images without a row: a02. Correct the file"),
        ({"a03": "two"}, "row 4: fold is 'two'; expected 0, 1, 2, …"),
        ({"a03": "-1"}, "row 4: fold is '-1'; expected 0, 1, 2, …"),
        ({"a03": "1.5"}, "row 4: fold is '1.5'; expected 0, 1, 2, …"),
    ],
)
def test_own_folds_that_do_not_fit(tiny: Tiny, change: dict[str, Any], words: str) -> None:
    fold: dict[str, Any] = {name: index % 3 for index, name in enumerate(TRAIN_IDS)} | change
    own_folds(tiny, {name: value for name, value in fold.items() if value is not None})
    with pytest.raises(PipelineError) as caught:
        read_folds(tiny.run("decode", "clean", "split"))
    assert str(caught.value).startswith(f"folds/tiny.csv {words}")


def test_own_folds_without_the_columns(tiny: Tiny) -> None:
    path = own_folds(tiny, {})
    path.write_text("image,fold\na01,0\n")
    run = tiny.run("decode", "clean")
    assert "folds/tiny.csv lacks image_id" in tiny.refused("split")
    with pytest.raises(PipelineError, match=r"folds/tiny\.csv lacks image_id; found image, fold\."):
        read_folds(run)
    path.write_bytes(encoded(tiny.images["a01"]))
    with pytest.raises(PipelineError, match=r"tiny\.csv is not a readable CSV"):
        read_folds(run)


def test_fewer_groups_or_images_than_folds(tiny: Tiny) -> None:
    tiny.run("decode", "clean")
    for group, count, what in (("patient", 6, "groups"), (None, 12, "images")):
        tiny.settings |= {"group": group, "split": {"folds": count + 1}}
        tiny.save()
        with pytest.raises(PipelineError) as caught:
            tiny.run("decode", "clean", "split")
        expected = f"{count} {what} cannot fill {count + 1} folds; set `split: {{folds: {count}}}`"
        assert str(caught.value).startswith(expected)
        assert not (tiny.root / "folds" / "tiny.csv").exists()


def test_missing_groups_are_one_fault_or_groups_of_their_own(tiny: Tiny) -> None:
    tiny.settings["group"] = "patient"
    for name, value in zip(TRAIN_IDS, ["NaN", "na", "", " null", "None", "NONE ", "nan"], strict=False):
        tiny.row(name)["patient"] = value
    tiny.save()
    (fault,) = faults(tiny.fails())
    assert fault.startswith("train.csv: rows 2, 3, 4, 5, 6, 7, 8 have no `patient` (group; blank, NA, NaN, null and ")
    assert "set `group_missing: own` in the competition's YAML" in fault
    tiny.settings["group_missing"] = "own"
    tiny.save()
    groups = table.read_table(tiny.run("decode").table, "train")["group"]
    assert groups.tolist()[6:] == ["image a07 alone", "p3", "p4", "p4", "p5", "p5"]
    assert groups.iloc[:7].nunique() == 7
    tiny.run("clean", "split")


def test_missing_groups_of_a_further_table(tiny: Tiny) -> None:
    tiny.settings |= {"group": "site", "train": {**tiny.settings["train"], "table": "sites.csv"}}
    tiny.save()
    sites = {name: f"s{name[-1]}" for name in TRAIN_IDS if name != "a05"} | {"a02": "NULL"}
    rows = [f"{name},{site}" for name, site in sites.items()]
    (tiny.input / "sites.csv").write_text("\n".join(["id,site", "", *rows]))
    (fault,) = faults(tiny.fails())
    assert fault.startswith("sites.csv: row 4 and image a05 without a row have no `site` (group")
    tiny.settings["group_missing"] = "own"
    tiny.save()
    groups = table.read_table(tiny.run("decode").table, "train")["group"]
    assert groups.tolist()[:5] == ["s1", "image a02 alone", "s3", "s4", "image a05 alone"]


@pytest.mark.parametrize(
    ("names", "said"), [(("7", "7.0"), "7 and 7.0"), (("P1", "p1"), "P1 and p1"), (("7", "70"), "")]
)
def test_groups_that_differ_in_spelling_alone_are_doubted(
    tiny: Tiny, capsys: pytest.CaptureFixture[str], names: tuple[str, str], said: str
) -> None:
    tiny.settings["group"] = "patient"
    tiny.row("a01")["patient"], tiny.row("a04")["patient"] = names
    tiny.save()
    tiny.run("decode")
    printed = capsys.readouterr()
    text = " ".join((printed.out + printed.err).split())
    assert (f"`patient` (group) is spelled in more than one way: {said}. These count as different" in text) == bool(
        said
    )


def test_group_column(tiny: Tiny) -> None:
    tiny.settings["group"] = "patient"
    tiny.save()
    folds = read_folds(tiny.run("decode", "clean", "split"))
    assert folds["group"].tolist() == [f"p{index // 2}" for index in range(12)]
    assert (folds.groupby("group")["fold"].nunique() == 1).all()
    assert set(folds["fold"]) == {0, 1, 2}


# --- recipes and competitions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"trian": {}}, ["unknown key `trian`; did you mean `train`?", "Known here: name, competition"]),
        ({"train": {"epoch": 3}}, ["unknown key `train.epoch`; did you mean `epochs`?", "batch_size"]),
        ({"tta": "hflip"}, ["unknown key `tta`; did you mean `predict.tta`?"]),
        ({"train": {"size": [64, 64]}}, ["unknown key `train.size`; did you mean `image.size`?"]),
        ({"train": {"schedule": {"factr": 1}}}, ["unknown key `train.schedule.factr`; did you mean `factor`?"]),
        ({"loss": {"zzzzzz": 1}}, ["unknown key `loss.zzzzzz`. Known here: bce, cross_entropy, dice"]),
        ({"quick": {"train": {"epoch": 1}}}, ["with --quick: unknown key `train.epoch`; did you mean `epochs`?"]),
        ({"quick": 3}, ["`quick` is 3: expected a mapping, for instance {key: value}."]),
        ({"train": {"epochs": "many"}}, ["`train.epochs` is 'many': input should be a valid integer"]),
        ({"train": {"epochs": 0}}, ["`train.epochs` is 0: input should be greater than or equal to 1."]),
        ({"loss": {"lovasz": "x"}}, ["`loss.lovasz` is 'x': expected a mapping of settings, or a number: its weight."]),
        ({"image": {"size": "1e9"}}, ["`image.size` is '1e9': expected a list, for instance [1, 2]."]),
        ({"train": 3}, ["`train` is 3: expected a mapping of settings"]),
        ({"image": {"size": [32]}}, ["`image.size.1` is missing."]),
        ({"train": {"schedule": {"name": "cosin"}}}, ["'cyclic' or 'constant'; did you mean `cosine`?"]),
        ({"image": {"fit": "crop"}}, ["`image.fit` is 'crop': input should be 'stretch' or 'pad'."]),
        ({"predict": {"tta": "spin"}}, ["`predict.tta` is 'spin': input should be 'none', 'hflip', 'flips' or 'd4'."]),
        ({"tune": {"steps": ["spin"]}}, ["`tune.steps.0` is 'spin': input should be 'threshold', 'area', 'triplet', "]),
        ({"train": {"epochs": 0}, "lss": 1}, ["`train.epochs` is 0", "unknown key `lss`; did you mean `loss`?"]),
    ],
)
def test_recipe_with_a_fault(tiny: Tiny, change: dict[str, Any], words: list[str]) -> None:
    tiny.recipe |= change
    tiny.save()
    message = tiny.fails()
    assert message.startswith("recipe small.yaml")
    for one in words:
        assert one in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sampel_submission": "x"}, "unknown key `sampel_submission`; did you mean `sample_submission`?"),
        ({"rle": {"ordre": "row"}}, "unknown key `rle.ordre`; did you mean `order`?"),
        ({"rle": {"base": 2}}, "`rle.base` is 2: input should be 0 or 1."),
        ({"split": {"folds": 1}}, "`split.folds` is 1: input should be greater than or equal to 2."),
        ({"train": {"images": "train/*.tif"}}, "`train.images` is 'train/*.tif': expected a path with {id}"),
        ({"classes": ["a", "b"]}, "several classes need columns.label (a column) or columns.pattern"),
        (
            {"train": {"images": "train/{id}.tif", "masks": "{id}.png"}, "classes": {"a": "#ff0000"}},
            "'#ff0000' cannot be a value of a mask image; expected a number or [red, green, blue].",
        ),
        (
            {"classes": {"a": [1, 2]}},
            ": class a is [1, 2]; expected a number, a text, [red, green, blue], or {any: [7, 8]}",
        ),
        ({"classes": {"a": 1, "b": 1}}, "values must all be different; they are [1, 1]."),
        ({"kind": "multiclass", "metric": "mean_iou"}, "kind multiclass needs at least two classes"),
        ({"ignore_class": "b"}, "ignore_class is 'b'; expected a class of a multiclass competition"),
        (
            {"test": {"images": "t/{id}.tif", "evaluate": True}},
            "evaluate can only be set for the test set, and needs test.masks.",
        ),
        ({"train": {"images": "train/{id}.tif"}}, ": train.masks is missing; set it to the CSV file of masks or"),
    ],
)
def test_competition_with_a_fault(tiny: Tiny, change: dict[str, Any], words: str) -> None:
    tiny.settings |= change
    tiny.save()
    message = tiny.fails()
    assert message.startswith("competition tiny")
    assert words in message


def test_missing_keys(tiny: Tiny) -> None:
    del tiny.settings["metric"], tiny.recipe["competition"]
    tiny.save()
    assert tiny.fails() == (
        "recipe small.yaml: `competition` is missing; write it into the recipe, or add --competition NAME."
    )
    with pytest.raises(PipelineError, match=r"^competition tiny\.yaml: `metric` is missing\.$"):
        load_competition(str(tiny.competition_path))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"train: [1,", "small.yaml is not valid YAML: "),
        (b"\xff\xfe\x00", "small.yaml is not valid YAML: "),
        (b"- 1\n- 2\n", "small.yaml must hold `key: value` lines; it holds a list."),
        (b"", "small.yaml must hold `key: value` lines; it holds nothing."),
    ],
)
def test_recipe_that_is_not_yaml(tiny: Tiny, content: bytes, words: str) -> None:
    tiny.recipe_path.write_bytes(content)
    message = tiny.fails()
    assert words in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("train.epochs", "--set train.epochs: expected key=value, for instance train.epochs=3."),
        ("=3", "--set =3: expected key=value"),
        ("train.epochs=[", "--set train.epochs=[: `[` is not a YAML value."),
        ("train.epoch=3", "unknown key `train.epoch`; did you mean `epochs`?"),
        ("train.epochs=x", "`train.epochs` is 'x': input should be a valid integer"),
        ("name.first=x", "`name` is {'first': 'x'}: input should be a valid string."),
    ],
)
def test_assignment_with_a_fault(tiny: Tiny, assignment: str, words: str) -> None:
    with pytest.raises(PipelineError) as caught:
        load_recipe(str(tiny.recipe_path), assignments=[assignment])
    assert words in str(caught.value)


def test_an_assignment_overrides_quick(tiny: Tiny) -> None:
    tiny.recipe |= {"train": {"epochs": 9, "batch_size": 4}, "quick": {"train": {"epochs": 2}}}
    tiny.save()
    path = str(tiny.recipe_path)
    assert load_recipe(path).train.epochs == 9
    quick = load_recipe(path, quick=True)
    assert (quick.train.epochs, quick.train.batch_size) == (2, 4)
    assert load_recipe(path, quick=True, assignments=["train.epochs=5"]).train.epochs == 5
    assert load_recipe(path, assignments=["train.precision=32"]).train.precision == "32"  # a number in YAML


def test_unknown_names() -> None:
    with pytest.raises(PipelineError) as caught:
        load_recipe("tgs-sal")
    assert str(caught.value).startswith("There is no recipe named `tgs-sal`; did you mean `tgs-salt`? Known: ")
    with pytest.raises(PipelineError) as caught:
        load_competition("ultrasound-nerves")
    assert "There is no competition named `ultrasound-nerves`; did you mean `ultrasound-nerve`?" in str(caught.value)
    with pytest.raises(PipelineError, match=r"^nowhere/own\.yaml does not exist\.$"):
        load_recipe("nowhere/own.yaml")


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("path", sorted((PACKAGE / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_load(path: Path, quick: bool) -> None:
    run = open_run(path.stem, quick)
    assert run.name == path.stem + ("-quick" if quick else "")
    assert run.competition.name == run.recipe.competition
    assert run.trained_folds()
    if quick:
        assert run.recipe != load_recipe(path.stem)


@pytest.mark.parametrize("path", sorted((PACKAGE / "competitions").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_competitions_load(path: Path) -> None:
    loaded = load_competition(path.stem)
    assert loaded.name == path.stem
    assert loaded.title == yaml.safe_load(path.read_text())["title"]
    assert loaded.kind == ("multiclass" if path.stem == "mars-terrain" else "binary")


# --- the input folder ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exists", [False, True])
def test_empty_input_folder_says_what_to_put_where(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, exists: bool) -> None:
    monkeypatch.setenv("PIPELINE_INPUT", str(tiny.root / "other"))
    folder = tiny.root / "other" / "tiny"
    if exists:
        folder.mkdir(parents=True)
    state, ways = ("is empty", f"/* {folder}/") if exists else ("does not exist", f" {folder}")
    expected = f"{folder} {state}. Put the raw files of Tiny there (train/{{id}}.tif, train.csv, test/{{id}}.tif): "
    assert tiny.fails() == f"{expected}`ln -s /path/to/the/files{ways}`."
    tiny.settings["kaggle"] = "tiny-challenge"
    tiny.save()
    assert "`python -m pipeline download tiny` fetches them from Kaggle" in tiny.fails()


@pytest.mark.parametrize("place", ["tiny-challenge", "competitions/tiny-challenge"])
def test_raw_files_are_found_where_kaggle_mounts_them(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    tiny.settings["kaggle"] = "tiny-challenge"
    tiny.save()
    monkeypatch.setenv("PIPELINE_INPUT", str(tiny.root / "mounted"))
    mounted = tiny.root / "mounted" / place
    shutil.copytree(tiny.root / "input" / "tiny", mounted)
    run = tiny.run("decode")
    assert run.input == mounted
    (tiny.root / "mounted" / "tiny").mkdir()
    assert run.input == tiny.root / "mounted" / "tiny"


def test_missing_sample_says_how_to_write_it(tiny: Tiny) -> None:
    tiny.recipe["competition"] = "sample"
    tiny.save()
    assert "`python -m pipeline sample` writes it" in tiny.fails()


# --- through the command line ----------------------------------------------------------------------------------------


def test_command_line_says_it_without_a_traceback(tiny: Tiny) -> None:
    expected = damage(tiny)
    done = tiny.cli("decode", tiny.recipe_path)
    assert done.returncode == 2
    assert "error: 8 faults in the raw files:" in done.stderr
    assert all(words in done.stderr for words in expected.values())
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    tiny.assert_nothing_half_written()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "train.epochs"], "error: --set train.epochs: expected key=value"),
        (["--set", "train.epoch=3"], "error: recipe small.yaml: unknown key `train.epoch`; did you mean `epochs`?"),
    ],
)
def test_command_line_ends_with_2(tiny: Tiny, arguments: list[str], words: str) -> None:
    done = tiny.cli("decode", tiny.recipe_path, *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    tiny.assert_nothing_half_written()


def test_faults_leave_the_earlier_table_alone(tiny: Tiny) -> None:
    run = tiny.run("decode")
    before = run.table.read_bytes()
    tiny.path("a01").write_bytes(GARBAGE)
    with pytest.raises(PipelineError, match="1 fault"):
        tiny.run("decode")
    assert run.table.read_bytes() == before
    assert not list(tiny.root.rglob("*.partial"))


# --- good formats ----------------------------------------------------------------------------------------------------


def assert_row(row: Any, image: np.ndarray) -> None:
    statistics = [image.mean(), image.std(), image.min(), image.max()]
    assert row[["mean", "standard_deviation", "minimum", "maximum"]].tolist() == pytest.approx(statistics)
    channels = 1 if image.ndim == 2 else 3
    assert row[["height", "width", "channels", "dtype"]].tolist() == [*image.shape[:2], channels, str(image.dtype)]


def test_16_bit_grey_png(tiny: Tiny) -> None:
    rng = np.random.default_rng(1)
    images = {name: rng.integers(0, 65536, SHAPE, np.uint16) for name in tiny.images}
    tiny.recipe["image"] = {"size": list(SHAPE)}
    tiny.convert("png", images)
    run = tiny.run("decode")
    arrays = {name: np.load(run.pixels / f"{name}_images.npy") for name in ("train", "test")}
    assert arrays["train"].dtype == np.uint16
    np.testing.assert_array_equal(arrays["train"][..., 0], np.stack([images[name] for name in TRAIN_IDS]))
    np.testing.assert_array_equal(arrays["test"][..., 0], np.stack([images[name] for name in TEST_IDS]))
    for _, row in table.read_tables(run.competition_folder).iterrows():
        assert_row(row, images[row["image_id"]])


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_rgb(tiny: Tiny, suffix: str) -> None:
    colours = {name: (10 * index, 255 - 10 * index, 40) for index, name in enumerate(tiny.images)}
    images = {name: np.full((*SHAPE, 3), colour, np.uint8) for name, colour in colours.items()}
    tiny.recipe["image"] = {"size": list(SHAPE), "channels": 3}
    tiny.convert(suffix, images)
    run = tiny.run("decode")
    train = np.load(run.pixels / "train_images.npy")
    expected = np.stack([images[name] for name in TRAIN_IDS])
    assert train.dtype == np.uint8
    assert np.abs(train.astype(int) - expected).max() <= (0 if suffix == "png" else 4)
    for _, row in table.read_tables(run.competition_folder).iterrows():
        path = tiny.path(row["image_id"]).with_suffix(f".{suffix}")
        assert_row(row, read_image(path))


def test_grey_tiff_pixels_and_masks(tiny: Tiny) -> None:
    tiny.recipe["image"] = {"size": list(SHAPE)}
    tiny.save()
    run = tiny.run("decode")
    images, masks = (np.load(run.pixels / f"train_{name}.npy") for name in ("images", "masks"))
    np.testing.assert_array_equal(images[..., 0], np.stack([tiny.images[name] for name in TRAIN_IDS]))
    np.testing.assert_array_equal(masks[:, 0], np.stack([tiny.masks[name] for name in TRAIN_IDS]))
    rows = table.read_table(run.table, "train")
    assert rows["rle_thing"].tolist() == [row["mask"] for row in tiny.rows]
    assert rows["area_thing"].tolist() == [mask.sum() for mask in tiny.masks.values()]


def test_extra_columns_are_carried_along(tiny: Tiny) -> None:
    images = table.read_tables(tiny.run("decode").competition_folder)
    train = images["subset"] == "train"
    assert images["extra_age"][train].tolist() == [str(30 + index) for index in range(12)]
    assert images["extra_patient"][train].tolist() == [f"p{index // 2}" for index in range(12)]
    assert images["extra_age"][~train].tolist() == [""] * 4
    assert not {"extra_id", "extra_mask"} & set(images.columns)


def test_another_convention_gives_the_same_masks(tiny: Tiny) -> None:
    expected = table.read_table(tiny.run("decode").table, "train")["rle_thing"].tolist()
    convention = rle.Convention("row", 0, "-1")
    for name, mask in tiny.masks.items():
        tiny.row(name)["mask"] = rle.encode(mask, convention)
    assert tiny.row("a01")["mask"] == "-1"
    tiny.settings["rle"] = {"order": "row", "base": 0, "empty": "-1"}
    tiny.save()
    rows = table.read_table(tiny.run("decode").table, "train")
    assert rows["rle_thing"].tolist() == expected
    assert rows["rle_thing"].iat[0] == ""
    assert rows["area_thing"].iat[0] == 0


def test_without_a_sample_submission_test_images_are_in_natural_order(tiny: Tiny) -> None:
    tiny.path("t1").rename(tiny.path("t1").with_name("t10.tif"))
    tiny.settings["sample_submission"] = None
    tiny.save()
    assert table.read_table(tiny.run("decode").test_table)["image_id"].tolist() == ["t2", "t3", "t4", "t10"]


# --- masks that become empty or full ---------------------------------------------------------------------------------


def with_mask_files(tiny: Tiny, masks: dict[str, np.ndarray], **settings: Any) -> None:
    (tiny.input / "masks").mkdir(exist_ok=True)
    for name, mask in masks.items():
        (tiny.input / "masks" / f"{name}.png").write_bytes(cv2.imencode(".png", mask)[1].tobytes())
    tiny.settings["train"] = {"images": "train/{id}.tif", "masks": "masks/{id}.png"} | settings
    tiny.save()


@pytest.mark.parametrize("full", [False, True])
def test_all_masks_empty_or_full_stop_decode_unless_allowed(tiny: Tiny, full: bool) -> None:
    for row in tiny.rows:
        row["mask"] = f"1 {SHAPE[0] * SHAPE[1]}" if full and row["mask"] else ""
    tiny.save()
    what = "every mask covers its whole image (9 of 12 images)" if full else "no training image has a mask (all 12 are"
    (fault,) = faults(tiny.fails())
    assert fault.startswith(f"train.csv: {what}")
    assert "if this is correct, set `decode: {uniform_masks: allow}`" in fault
    tiny.settings["decode"] = {"uniform_masks": "allow"}
    tiny.save()
    tiny.run("decode")


def test_masks_in_the_alpha_channel(tiny: Tiny) -> None:
    masks = {name: np.dstack([np.zeros((*SHAPE, 3), np.uint8), 255 * mask]) for name, mask in tiny.masks.items()}
    with_mask_files(tiny, masks)
    found = faults(tiny.fails())
    text = "its colour is [0, 0, 0] everywhere, and its alpha holds 0 (2153 px), 255 (247 px)"
    assert found[0].startswith(f"masks/a02.png: mask lies in the alpha channel: {text}; ")
    assert all("mask lies in the alpha channel" in one for one in found)  # and not that the others are all empty


@pytest.mark.parametrize("file", ["a02.png", "a02.tif"])
@pytest.mark.parametrize("mode", ["LA", "RGBA", "hidden"])
def test_one_mask_in_the_alpha_channel(mode: str, file: str, tiny: Tiny) -> None:
    """The others are grey, or painted on a transparent ground, which is read as it looks."""
    masks = {name: 255 * mask for name, mask in tiny.masks.items()}
    painted = np.dstack([masks["a01"]] * 4)
    with_mask_files(tiny, masks | {"a01": painted})
    tiny.settings["train"]["masks"] = f"masks/{{id}}{Path(file).suffix}"
    ground = 255 - masks["a02"] if mode == "hidden" else np.full(SHAPE, 255, np.uint8)
    picture = Image.fromarray(np.dstack([ground, ground, ground, masks["a02"]]))
    (tiny.input / "masks" / "a02.png").unlink()
    for name in masks.keys() - {"a02"}:
        Image.fromarray(painted if name == "a01" else masks[name]).save(tiny.input / "masks" / f"{name}{file[3:]}")
    picture.convert("LA" if mode == "LA" else "RGBA").save(tiny.input / "masks" / file)
    tiny.save()
    (fault,) = faults(tiny.fails())
    words = (
        "mask is transparent wherever it is not black" if mode == "hidden" else "mask lies in the alpha channel: its"
    )
    assert fault.startswith(f"masks/{file}: {words}")
    Image.fromarray(masks["a02"]).save(tiny.input / "masks" / file)
    images = table.read_table(tiny.run("decode").table)
    assert images["rle_thing"].tolist() == [rle.encode(mask) for mask in tiny.masks.values()]


def test_full_masks_but_for_what_is_ignored(tiny: Tiny) -> None:
    masks = {name: np.where(mask, np.uint8(255), np.uint8(1)) for name, mask in tiny.masks.items()}
    with_mask_files(tiny, masks)
    tiny.settings |= {"classes": {"thing": 1}, "ignore_value": 255}
    tiny.save()
    (fault,) = faults(tiny.fails())
    assert "every mask covers its whole image (12 of 12 images)" in fault
    assert "`ignore_value` is the value of the class" in fault


def test_a_threshold_that_no_pixel_reaches(tiny: Tiny) -> None:
    masks = {name: 255 * mask for name, mask in tiny.masks.items()}
    with_mask_files(tiny, masks | {"a02": tiny.masks["a02"], "a01": masks["a01"] + np.arange(60, dtype=np.uint8) // 20})
    tiny.settings["train"]["threshold"] = 128
    tiny.save()
    (fault,) = faults(tiny.fails())
    words = "masks/a02.png: holds values up to 1, none of which reaches `threshold: 128`: set `threshold: 1`"
    assert fault.startswith(words)  # and a01, where an encoder left 1 and 2 in a black picture, is empty
    tiny.settings["train"]["threshold"] = 1
    with_mask_files(tiny, {name: 3 * mask for name, mask in tiny.masks.items()}, threshold=1)
    images = table.read_table(tiny.run("decode").table)
    assert images["rle_thing"].tolist() == [rle.encode(mask) for mask in tiny.masks.values()]


def test_instance_numbers_are_no_wavering_values(tiny: Tiny) -> None:
    masks = {name: mask + mask * (np.arange(60, dtype=np.uint8) > 30) for name, mask in tiny.masks.items()}
    with_mask_files(tiny, masks)
    assert "if they are numbers of instances, set `instances: true` beside `masks`" in tiny.fails()
    assert "128" not in tiny.refused("decode")


def test_an_ignore_value_that_does_nothing(tiny: Tiny) -> None:
    tiny.settings["ignore_value"] = 255
    tiny.save()
    assert "ignore_value has no effect here. It needs mask images" in tiny.fails()
    masks = {name: mask.copy() for name, mask in tiny.masks.items()}
    for mask in masks.values():
        mask[0] = 255
    with_mask_files(tiny, masks)
    assert "`classes: {thing: 1}` with the numbers in the files" in tiny.fails()
    tiny.settings["classes"] = {"thing": 1}
    tiny.save()
    images = table.read_table(tiny.run("decode").table)
    assert (images["ignore"] != "").all()
    assert images["area_thing"].tolist() == [int(mask[1:].sum()) for mask in tiny.masks.values()]
