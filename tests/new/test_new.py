"""`new` reads the convention, the columns and the classes off raw files, and says how sure it is of each."""

import re
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile
from layouts import LAYOUTS, SHAPE, Layout, jpeg_rows
from PIL import Image

from pipeline.__main__ import main
from pipeline.core.config.raw_layouts import load_competition
from pipeline.core.config.recipe import load_recipe
from pipeline.core.config.settings import validate
from pipeline.core.driver import run_stage
from pipeline.core.errors import PipelineError
from pipeline.core.run import open_run
from pipeline.decode import table
from pipeline.decode.readers.files import SUFFIXES
from pipeline.decode.readers.registry import reader_of
from pipeline.decode.rle_checks import MaskRow, doubts
from pipeline.masks import rle
from pipeline.masks.rle import Convention
from pipeline.new.guess.rle import guess_empty, guess_rle
from pipeline.new.wizard import write_new


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PIPELINE_ROOT", str(tmp_path))
    monkeypatch.delenv("PIPELINE_INPUT", raising=False)
    return tmp_path


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    """The exit code of `python -m pipeline` with these arguments, run in this process."""
    monkeypatch.setattr(sys, "argv", ["pipeline", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


def fill_in(path: Path, metric: str) -> None:
    text = re.sub(r"(?m)^metric: +#.*", f"metric: {metric}", path.read_text())
    path.write_text(text)


# --- whole folders ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout(name: str, root: Path) -> None:
    layout: Layout = LAYOUTS[name](root / "downloads")
    written = write_new(name, layout.folder, root / "own")
    fill_in(written.competition, layout.settings["metric"])
    opened = open_run(str(written.competition))
    found = opened.competition
    wanted = validate(type(found), {"name": name, **layout.settings}, "wanted")
    left_out = {"title", "classes", "baseline"}
    assert found.model_dump(exclude=left_out) == wanted.model_dump(exclude=left_out)
    assert len(found.classes) == len(wanted.classes)
    items = reader_of(found).list_items(found, opened.input)
    assert not items.faults
    read = {item.image_id: item.read_masks(SHAPE).planes for item in items.items if item.read_masks}
    assert read.keys() == layout.masks.keys()
    assert all((read[image_id] == masks).all() for image_id, masks in layout.masks.items())
    assert (root / "work" / name / "new.png").stat().st_size > 10_000
    run_stage(opened, "decode")
    for row in table.read_table(opened.table).to_dict("records"):
        if row["subset"] == "train":
            planes = [rle.decode(row[f"rle_{one}"], SHAPE) for one in found.classes]
            assert (np.stack(planes) == layout.masks[row["image_id"]]).all()


def test_masks_saved_as_jpeg(root: Path) -> None:
    layout = jpeg_rows(root / "raw")
    (root / "raw" / "train.csv").unlink()
    for image_id, (mask,) in layout.masks.items():
        path = root / "raw" / "masks" / f"{image_id}.jpg"
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), 255 * mask)
    settings = write_new("cells", root / "raw", root / "own", assignments=("metric=dice",)).draft.settings()
    assert settings["train"] == {"images": "train/{id}.jpg", "masks": "masks/{id}.jpg", "threshold": 128}
    assert settings["classes"] == ["object"]
    competition = load_competition(str(root / "own/competitions/cells.yaml"))
    items = reader_of(competition).list_items(competition, root / "raw").items
    read = {item.image_id: item.read_masks(SHAPE).planes for item in items if item.read_masks}
    assert all((read[image_id] == masks).all() for image_id, masks in layout.masks.items())


def test_printed(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    jpeg_rows(root / "downloads")
    arguments = ("new", "cells", "--from", root / "downloads", "--to", root / "own")
    assert command(monkeypatch, *arguments) == 0
    told = capsys.readouterr().out
    groups = re.search(r"(?s)^sure\n(.*)^guessed\n(.*)^to fill in\n(.*)^written", told, re.M)
    assert groups
    sure, guessed, left = groups.groups()
    assert "  rle.order row: 10 of 10 masks are smoother so" in sure
    assert "  rle.base 0: 3 of 3 masks at an edge are smoother so" in guessed
    assert "  group patient: by its name; 4 for 24 images" in guessed
    assert left.startswith("  metric: dice, iou, f_beta, ") and "the files cannot tell" in left
    assert "input/cells is now a link to " in told
    assert "fill in `metric` in own/competitions/cells.yaml" in told
    assert told.endswith("python -m pipeline run own/competitions/cells.yaml --quick\n")
    text = (root / "own/competitions/cells.yaml").read_text()
    assert re.search(r"(?m)^  order: row +# sure: 10 of 10", text)
    assert re.search(r"(?m)^metric: +# FILL IN: dice", text)
    with pytest.raises(PipelineError, match="metric"):
        load_competition(str(root / "own/competitions/cells.yaml"))

    assert command(monkeypatch, *arguments) == 2
    assert "own/competitions/cells.yaml exists already" in capsys.readouterr().err
    (root / "own/competitions/cells.yaml").write_text("mine")
    assert command(monkeypatch, *arguments, "--force") == 0
    assert (root / "own/competitions/cells.yaml").read_text() == text
    assert "now a link" not in capsys.readouterr().out


# --- smaller ones ----------------------------------------------------------------------------------------------------


def things(place: Path, numbers: range) -> dict[str, np.ndarray]:
    """Writes images by this pattern of paths and returns the mask of a brighter thing in each."""
    masks = {}
    for number in numbers:
        name, mask = f"x{number}", np.zeros((20, 30), np.uint8)
        cv2.ellipse(mask, (2 * number, number), (8, 5), 0, 0, 360, 1, -1)
        noise = np.random.default_rng(number).integers(0, 100, mask.shape)
        write(place, name, noise + 100 * mask)
        masks[name] = mask
    return masks


def write(place: Path, name: str, image: np.ndarray) -> None:
    path = Path(str(place).replace("{id}", name))
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gif":  # OpenCV's have other colours than they were given
        Image.fromarray(image.astype(np.uint8)).save(path)
    else:
        cv2.imwrite(str(path), image.astype(np.uint8))


def looked_at(root: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The settings found for the files in raw/, and the training masks that they give."""
    written = write_new("small", root / "raw", root / "own")
    fill_in(written.competition, "dice")
    opened = load_competition(str(written.competition))
    listing = reader_of(opened).list_items(opened, root / "raw")
    assert not listing.faults
    read = {one.image_id: one.read_masks((20, 30)).planes for one in listing.items if one.read_masks}
    return written.draft.settings(), read


@pytest.mark.parametrize(
    ("images", "masks", "found"),
    [
        ("train/{id}.png", "train/{id}_mask.png", "train/{id}_mask.png"),
        ("train/{id}.jpg", "train_masks/{id}_seg.png", "train_masks/{id}_seg.png"),
        ("train/{id}/images/{id}.png", "train/{id}/masks/thing.png", "train/{id}/masks/*.png"),
        ("train/{id}.png", "masks/thing/{id}.png", "masks/{class}/{id}.png"),
        ("train/{id}.png", "masks/{id}_mask.gif", "masks/{id}_mask.gif"),
    ],
)
def test_mask_files(images: str, masks: str, found: str, root: Path) -> None:
    wanted = things(root / "raw" / images, range(1, 9))
    things(root / "raw" / "test/{id}.png", range(10, 13))
    for name, mask in wanted.items():
        write(root / "raw" / masks, name, 255 * mask)
        if "{class}" in found:
            write(root / "raw" / "masks/gap/{id}.png", name, 255 * (1 - mask))
    settings, read = looked_at(root)
    beside = {"exclude": ["*_mask.png"]} if masks.endswith("_mask.png") else {}
    assert settings["train"] == {"images": images, "masks": found} | beside
    assert settings["test"] == {"images": "test/{id}.png"}
    assert settings["classes"] == (["gap", "thing"] if "{class}" in found else ["object"])
    assert all((read[name][-1] == mask).all() for name, mask in wanted.items())
    assert settings.get("submission", {}).get("rows") == ("instance" if "*" in found else None)


def test_ids_with_endings_and_a_placeholder_of_other_columns(root: Path) -> None:
    """Severstal's: a constant class in the last column of the sample submission is no text of a mask."""
    masks = things(root / "raw" / "train/{id}.png", range(1, 9))
    things(root / "raw" / "test/{id}.png", range(10, 13))
    rows = [{"ImageId": f"{name}.png", "EncodedPixels": rle.encode(mask)} for name, mask in masks.items()]
    pd.DataFrame(rows).assign(ClassId=1).to_csv(root / "raw" / "train.csv", index=False)
    settings, _ = looked_at(root)
    assert (settings["train"]["images"], settings["test"]["images"]) == ("train/{id}", "test/{id}")
    sample = [{"ImageId": f"x{number}.png", "EncodedPixels": "-1", "ClassId": 1} for number in range(10, 13)]
    pd.DataFrame(sample).to_csv(root / "raw" / "sample_submission.csv", index=False)
    settings = write_new("again", root / "raw", root / "own").draft.settings()
    assert settings["sample_submission"] == "sample_submission.csv"
    assert settings["rle"]["empty"] == "-1"


def test_a_class_in_a_column_of_its_own(root: Path) -> None:
    masks = things(root / "raw" / "train/{id}.png", range(1, 9))
    things(root / "raw" / "test/{id}.png", range(10, 13))
    rows = [{"img": name, "class": label, "runs": rle.encode(mask)} for name, mask in masks.items() for label in "ab"]
    pd.DataFrame(rows).to_csv(root / "raw" / "train.csv", index=False)
    sample = [{"img_class": f"x{number}_{label}", "runs": ""} for number in range(10, 13) for label in "ab"]
    pd.DataFrame(sample).to_csv(root / "raw" / "sample_submission.csv", index=False)
    settings, read = looked_at(root)
    assert settings["columns"] == {"id": "img", "label": "class", "rle": "runs"}
    assert settings["submission"] == {"id": "img_class", "pattern": "{id}_{label}"}
    assert settings["classes"] == ["a", "b"]
    assert all((read[name] == mask).all() for name, mask in masks.items())


def test_a_further_table_knows_the_group(root: Path) -> None:
    masks = things(root / "raw" / "train/{id}.png", range(1, 9))
    things(root / "raw" / "test/{id}.png", range(10, 13))
    rows = [{"img": name, "runs": rle.encode(mask)} for name, mask in masks.items()]
    pd.DataFrame(rows).to_csv(root / "raw" / "train.csv", index=False)
    pd.DataFrame({"img": list(masks), "patient_id": list("ppqqrrss")}).to_csv(root / "raw" / "people.csv", index=False)
    settings, read = looked_at(root)
    assert settings["train"] == {"images": "train/{id}.png", "masks": "train.csv", "table": "people.csv"}
    assert (settings["group"], settings["split"]) == ("patient_id", {"folds": 4})
    assert settings["sample_submission"] is None and read.keys() == masks.keys()


@pytest.mark.parametrize("form", ["{}.tiff", "train/{}.png"])
@pytest.mark.parametrize("mask_files", [True, False])
def test_tables_that_name_files(mask_files: bool, form: str, root: Path) -> None:
    masks = things(root / "raw" / "train/{id}.png", range(1, 9))
    things(root / "raw" / "test/{id}.png", range(10, 13))
    names = [form.format(name) for name in masks]
    pd.DataFrame({"file": names, "patient": list("ppqqrrss")}).to_csv(root / "raw" / "people.csv", index=False)
    if mask_files:
        for name, mask in masks.items():
            write(root / "raw/masks/{id}.png", name, 255 * mask)
    else:
        runs = [rle.encode(mask) for mask in masks.values()]
        pd.DataFrame({"file": names, "runs": runs}).to_csv(root / "raw" / "train.csv", index=False)
    settings, read = looked_at(root)
    wanted = {"images": "train/{id}.png", "masks": "masks/{id}.png" if mask_files else "train.csv"}
    assert settings["train"] == wanted | {"table": "people.csv"}
    assert settings["group"] == "patient"
    assert all((read[name] == mask).all() for name, mask in masks.items())


@pytest.mark.parametrize("together", [True, False])
def test_masks_of_1_and_of_255(together: bool, root: Path) -> None:
    """Where no file has both, some were saved as 0 and 1 and some as 0 and 255; else 255 is mostly no class."""
    masks = things(root / "raw" / "train/{id}.png", range(1, 9))
    things(root / "raw" / "test/{id}.png", range(10, 13))
    for number, (name, mask) in enumerate(masks.items()):
        picture = mask * (1 if number % 2 else 255)
        picture[0, :2] = (1, 255) if together else picture[0, :2]
        write(root / "raw/masks/{id}.png", name, picture)
    if together:
        settings = write_new("small", root / "raw", root / "own").draft.settings()
        assert (settings["classes"], settings["ignore_value"]) == ({"background": 0, "class_1": 1}, 255)
        return
    settings, read = looked_at(root)
    assert settings["classes"] == ["object"] and "ignore_value" not in settings
    assert all((read[name] == mask).all() for name, mask in masks.items())


def test_a_further_table_that_lacks_an_image(root: Path) -> None:
    masks = things(root / "raw" / "train/{id}.png", range(1, 12))
    things(root / "raw" / "test/{id}.png", range(13, 15))
    for name, mask in masks.items():
        write(root / "raw/masks/{id}.png", name, 255 * mask)
    pd.DataFrame({"id": list(masks)[:10], "subject": list("ppqqrrsstt")}).to_csv(root / "raw/people.csv", index=False)
    pd.DataFrame({"id": ["a", "b"], "rle": ""}).to_csv(root / "raw/sample_submission.csv", index=False)
    written = write_new("small", root / "raw", root / "own", assignments=["metric=dice"])
    text = "\n".join(written.lines())
    assert (
        "group subject: by its name; images without a row: 1, add them, or set `group_missing: own`; 5 for 11" in text
    )
    assert re.search(r"wrong +people.csv: image x11 without a row has no `subject`", text)
    assert "sample_submission null: sample_submission.csv names no test image; for instance, 'a' is not one" in text


def stack(path: Path) -> None:
    tifffile.imwrite(path, np.zeros((3, 20, 30), np.uint8), imagej=True, metadata={"axes": "ZYX"})


def five_channels(path: Path) -> None:
    tifffile.imwrite(path, np.zeros((20, 30, 5), np.uint8), photometric="rgb", planarconfig="contig")


def floats(path: Path) -> None:
    tifffile.imwrite(path, np.full((20, 30), 0.5, np.float32))


def sixteen_bits(path: Path) -> None:
    tifffile.imwrite(path, np.full((20, 30), 60000, np.uint16))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def alpha(path: Path) -> None:
    Image.fromarray(np.dstack([np.zeros((20, 30, 3), np.uint8), np.eye(20, 30, dtype=np.uint8)])).save(path)


def three_values(path: Path) -> None:
    tifffile.imwrite(path, np.eye(20, 30, dtype=np.uint8) + np.eye(20, 30, 3, dtype=np.uint8) * 9)


REFUSED = {
    "train/x3.tif": [(stack, "holds 3 slices along Z"), (five_channels, "has shape"), (floats, "holds float32 pixels"),
                     (sixteen_bits, "image is uint16, and the first image"), (cut, "cannot be read")],
    "test/x11.tif": [(stack, "holds 3 slices along Z"), (cut, "cannot be read")],
    "masks/x3.tif": [(stack, "mask holds 3 slices"), (floats, "mask holds float32"), (cut, "mask cannot be read"),
                     (alpha, "mask lies in the alpha channel"), (three_values, "holds 3 values (0, 1, 9)")],
}  # fmt: skip


@pytest.mark.parametrize(("file", "spoil", "words"), [(file, *kind) for file in REFUSED for kind in REFUSED[file]])
def test_what_decode_refuses_is_told_first(file: str, spoil: Any, words: str, root: Path) -> None:
    masks = things(root / "raw" / "train/{id}.tif", range(1, 9))
    things(root / "raw" / "test/{id}.tif", range(10, 13))
    for name, mask in masks.items():
        write(root / "raw/masks/{id}.tif", name, 255 * mask)
    spoil(root / "raw" / file)
    given = ["metric=dice", "shape=null", "classes=[thing]", "kind=binary", "columns.absent=fault"]
    written = write_new("small", root / "raw", root / "own", assignments=given)
    (fault,) = written.trial.faults
    assert fault.startswith(f"{file}: {words}")
    assert "".join(written.following).startswith("correct this in ")
    with pytest.raises(PipelineError, match=re.escape(fault[:100])):
        run_stage(open_run(str(written.competition)), "decode")


def test_only_some_images_are_looked_at(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.new.trial.LOOKED_AT", {"train": 4, "test": 1})
    exif = Image.Exif()
    exif[0x0112] = 3
    for name in things(root / "raw" / "train/{id}.png", range(1, 9)):
        place = root / "raw" / "masks" / f"{name}.png"
        place.parent.mkdir(exist_ok=True)
        alpha(place)
    for number in range(3):
        (root / "raw/test").mkdir(exist_ok=True)
        Image.new("L", (30, 20)).save(root / f"raw/test/t{number}.png", exif=exif)
    lines = write_new("small", root / "raw", root / "own", assignments=["metric=dice"]).lines()
    (noted,) = [line for line in lines if line.startswith("noted")]
    assert noted.startswith("noted       of 5 images looked at, 1 image is stored turned or mirrored")
    (wrong,) = [line for line in lines if line.startswith("wrong")]
    assert wrong.startswith("wrong       masks/x1.png: mask lies in the alpha channel")
    assert wrong.endswith("save the mask as a grey image (and 3 like it among those looked at)")


def test_beside_the_pipelines_own(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    things(root / "raw" / "train/{id}.png", range(1, 3))
    things(root / "raw" / "test/{id}.png", range(10, 13))
    for name in ("x1", "x2"):
        write(root / "raw/train/{id}_mask.png", name, np.eye(20, 30))
    monkeypatch.setattr("pipeline.core.config.raw_layouts.FOLDER", root / "competitions")
    monkeypatch.setenv("PIPELINE_INPUT", "/dev/null/input")
    written = write_new("small", root / "raw", assignments=["metric=dice"])
    assert written.competition == root / "competitions/small.yaml"
    assert load_recipe("small").competition == "small"
    assert written.following[-1] == "python -m pipeline run small --quick"
    assert written.link.endswith(f"run: ln -s {root}/raw /dev/null/input/small")


# --- bad input -------------------------------------------------------------------------------------------------------


def images_only(folder: Path) -> None:
    for place in ("train/a.png", "train/b.png", "test/c.png"):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(len(place)).integers(0, 256, (20, 30), np.uint8)
        cv2.imwrite(str(folder / place), noise)


def no_runs(folder: Path) -> None:
    images_only(folder)
    (folder / "train.csv").write_text("id,depth\na,3\nb,4\n")


def no_images(folder: Path) -> None:
    folder.mkdir()
    (folder / "train.csv").write_text("id,rle\na,1 3\nb,7 4\n")


def packed(folder: Path) -> None:
    no_images(folder)
    (folder / "train.zip").touch()


BAD = {
    "packed": (packed, f"contains no images ({', '.join(SUFFIXES)}); train.zip there: unzip the archives."),
    "no folder": (lambda folder: None, "is not a folder; give the folder of the raw files with --from."),
    "empty": (lambda folder: folder.mkdir(), "contains no images"),
    "no images": (no_images, f"contains no images ({', '.join(SUFFIXES)})"),
    "no masks": (images_only, "test/{id}.png (1), train/{id}.png (2), but no masks"),
    "no runs": (no_runs, "(no column of train.csv contains any)"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_folder(what: str, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    make, sentence = BAD[what]
    make(root / "raw")
    assert command(monkeypatch, "new", "cells", "--from", root / "raw", "--to", root / "own") == 2
    told = capsys.readouterr()
    assert sentence in told.err
    assert told.err.count("\n") == 1 and not told.out
    assert not (root / "own").exists() and not (root / "input").exists()


def test_a_run_is_not_advised_where_there_are_faults(root: Path) -> None:
    layout = LAYOUTS["jpeg_rows"](root / "downloads")
    lines = write_new("fine", layout.folder, root / "own", assignments=["metric=dice"]).lines()
    assert any(f"run {root.name}" in line or " run " in line for line in lines)
    lines = write_new("faulty", layout.folder, root / "own", assignments=["metric=dice", "train.masks=no.csv"]).lines()
    assert any(re.match("wrong +.*no.csv does not exist", line) for line in lines)
    assert not any(" run " in line for line in lines)
    assert re.fullmatch(
        r"next +correct this in .*faulty.yaml or in the raw files; `.* decode .*` lists all faults", lines[-1]
    )


@pytest.mark.parametrize("name", ["Cells", "-cells", ".cells", "a/b", ""])
def test_bad_name(name: str, root: Path) -> None:
    with pytest.raises(PipelineError, match="is not a valid name of a competition"):
        write_new(name, root, root / "own")


def test_given_settings(root: Path) -> None:
    layout = LAYOUTS["jpeg_rows"](root / "downloads")
    given = ["metric=dice", "classes={cell: 1}", "rle.base=1"]
    written = write_new("given", layout.folder, root / "own", assignments=given)
    opened = load_competition(str(written.competition))
    assert (opened.metric, opened.classes, opened.values, opened.rle.base) == ("dice", ["cell"], [1], 1)
    assert opened.rle.order == "row"  # what was not given is still found
    assert "metric: dice                                # sure: as given" in written.competition.read_text()
    assert not any("fill in" in line for line in written.lines())
    for bad, words in (("metrics=dice", "unknown key `metrics`; did you mean `metric`"), ("metric=best", "is 'best'")):
        with pytest.raises(PipelineError, match=words):
            write_new("other", layout.folder, root / "own", assignments=[bad])
    assert not (root / "own/competitions/other.yaml").exists()


def test_other_folder_in_input(root: Path) -> None:
    (root / "input" / "cells").mkdir(parents=True)
    with pytest.raises(PipelineError, match="exists already and is not"):
        write_new("cells", root / "raw", root / "own")


# --- conventions -----------------------------------------------------------------------------------------------------


def bright_ellipses(folder: Path, shape: tuple[int, int], convention: Convention) -> list[MaskRow]:
    """Rows of noisy images on which what the mask covers is brighter, some of it at an edge."""
    rng, rows = np.random.default_rng(0), []
    for number in range(40):
        mask = np.zeros(shape, np.uint8)
        centre = (int(rng.integers(0, shape[1])), int(rng.integers(0, shape[0])))
        cv2.ellipse(mask, centre, (14, 6), int(rng.integers(0, 90)), 0, 360, 1, -1)
        path = folder / f"{number}.png"
        cv2.imwrite(str(path), (rng.integers(0, 100, shape) + 60 * mask).astype(np.uint8))
        rows.append(MaskRow(rle.encode(mask, convention), path, shape))
    return rows


@pytest.mark.parametrize("shape", [(48, 48), (40, 60)])
@pytest.mark.parametrize(("order", "base", "offsets"), [*product(("column", "row"), (0, 1), ("absolute", "relative"))])
def test_convention(order: str, base: int, offsets: str, shape: tuple[int, int], root: Path) -> None:
    convention = Convention(order, base, "-", offsets)  # type: ignore[arg-type]
    rows = [*bright_ellipses(root, shape, convention), *[MaskRow("-", root / "0.png", shape)] * 3]
    found = {guess.key.removeprefix("rle."): guess for guess in guess_rle(rows)}
    values = {key: guess.value for key, guess in found.items()}
    assert Convention(**values) == convention
    assert {guess.certainty for guess in found.values()} == {"sure"}
    if shape == (48, 48):
        assert "z = " in found["order"].evidence


@pytest.mark.parametrize(("order", "base"), [*product(("column", "row"), (0, 1))])
def test_doubts(order: str, base: int, root: Path) -> None:
    """Of a YAML that says "column" and 1; masks that leave the image so are faults, not doubts."""
    told, rows = Convention(), []
    for row in bright_ellipses(root, (48, 48), Convention(order, base)):  # type: ignore[arg-type]
        try:
            rows.append(replace(row, text=rle.encode(rle.decode(row.text, row.shape, told), told)))
        except rle.RleError:
            continue
    expected = ["`rle: {order: row}`"] * (order == "row") + ["one pixel later: .* `rle: {base: 0}`"] * (base == 0)
    found = doubts(rows, told)
    assert len(found) == len(expected)
    assert all(re.search(pattern, text) for pattern, text in zip(expected, found, strict=True))


def test_nothing_tells_the_base_or_the_order(root: Path) -> None:
    rows = bright_ellipses(root, (48, 48), Convention())
    inside = np.zeros((48, 48), np.uint8)
    inside[20:30, 20:30] = 1  # it is its own mirror, far from every edge
    same = [MaskRow(rle.encode(inside), row.image, row.shape) for row in rows]
    found = [(guess.value, guess.certainty) for guess in guess_rle(same)]
    assert found == [("column", "guess"), (1, "guess"), ("", "guess")]


@pytest.mark.parametrize(
    ("texts", "placeholder", "empty"),
    [
        (["", "3 4"], "1 1", ("", "sure")),
        (["-1", "-1", "3 4"], "", ("-1", "sure")),
        (["0 0", "0 0", "3 4"], "", ("0 0", "sure")),
        (["1 1"] * 5 + ["3 4", "8 2"], "", ("1 1", "guess")),
        (["1 1", "3 4", "8 2"], "-1", ("-1", "guess")),
        (["3 4", "8 2"], "1 1", ("", "guess")),
        (["3 4", "8 2", "1715 5 1764 …"], "", ("", "guess")),
        (["", "3 4", "8 2", "1715 5 1764", "15 5 12 1"], "", ("", "sure")),
        (["3 4", "8 2", "5 0", "-1"], "", ("-1", "guess")),
    ],
)
def test_text_of_an_empty_mask(texts: list[str], placeholder: str, empty: tuple[str, str]) -> None:
    found = guess_empty(texts, placeholder)
    assert (found.value, found.certainty) == empty


def test_mixed_endings_and_few_bits(root: Path) -> None:
    downloads = root / "downloads"
    for number in range(12):
        mask = np.zeros((32, 32), np.uint8)
        mask[4:20, number : number + 9] = 255
        pixels = np.random.default_rng(number).integers(0, 1000, (32, 32)).astype(np.uint16)
        for path, image in (
            (f"train/{number}.{('PNG', 'png', 'tif')[number % 3]}", pixels),
            (f"test/t{number}.{('png', 'PNG')[number % 2]}", pixels),
            (f"masks/{number}.{('png', 'PNG')[number % 2]}", mask),
        ):
            (downloads / path).parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(downloads / path), image)
    draft = write_new("mixed", downloads, root / "own").draft.settings()
    assert draft["train"] == {"images": "train/{id}.png", "masks": "masks/{id}.png"}
    assert draft["test"] == {"images": "test/{id}.png"}
    assert draft["value_range"] == [0, 1023]


def test_train_test_and_masks_of_equal_names(root: Path) -> None:
    masks = things(root / "raw" / "train/{id}.png", range(8))
    things(root / "raw" / "test/{id}.png", range(8))
    for name, mask in masks.items():
        (root / "raw/masks").mkdir(exist_ok=True)
        cv2.imwrite(str(root / "raw/masks" / f"{name}.png"), mask * 255)
    settings, _ = looked_at(root)
    assert settings["train"] == {"images": "train/{id}.png", "masks": "masks/{id}.png"}
    assert settings["test"] == {"images": "test/{id}.png"}
