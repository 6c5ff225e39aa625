"""Tables that name images by their files: masks and further columns are found, a submission's ids are explained."""

import pandas as pd
import pytest
from conftest import TEST_IDS, Tiny

from pipeline.decode import table
from pipeline.decode.readers.columns import file_stem, image_finder
from pipeline.masks import rle

FORMS = ["{}.tiff", "{}.TIF", "train/{}.png", "train\\{}.jpg", "{}"]


@pytest.mark.parametrize("form", FORMS)
def test_further_table(form: str, tiny: Tiny) -> None:
    rows = [{"file": form.format(name), "site": f"s{number // 4}"} for number, name in enumerate(tiny.masks)]
    pd.DataFrame(rows).to_csv(tiny.input / "sites.csv", index=False)
    tiny.settings["train"]["table"], tiny.settings["group"] = "sites.csv", "site"
    tiny.save()
    images = table.read_table(tiny.run("decode").table)
    assert images["group"].tolist() == ["s0"] * 4 + ["s1"] * 4 + ["s2"] * 4


@pytest.mark.parametrize("form", FORMS)
def test_mask_table(form: str, tiny: Tiny) -> None:
    for row in tiny.rows:
        row["id"] = form.format(row["id"])
    tiny.save()
    images = table.read_table(tiny.run("decode").table)
    assert images["image_id"].tolist() == list(tiny.masks)
    assert images["rle_thing"].tolist() == [rle.encode(mask) for mask in tiny.masks.values()]


def test_files_of_one_name_in_two_folders_are_not_one_image(tiny: Tiny) -> None:
    tiny.rows[1]["id"], tiny.rows[2]["id"] = "left/a02.tif", "right/a02.tif"
    tiny.settings["columns"]["rows"] = "instance"
    tiny.save()
    message = tiny.fails()
    assert "train.csv row 4: id right/a02.tif has no image" in message
    assert "train/a03.tif: image without a row in train.csv" in message


def test_a_further_table_of_other_images(tiny: Tiny) -> None:
    frame = pd.DataFrame({"number": range(1, 13), "site": "s", "image": [f"{name}.tif" for name in tiny.masks]})
    frame.to_csv(tiny.input / "sites.csv", index=False)
    tiny.settings["train"]["table"] = "sites.csv"
    tiny.save()
    assert tiny.fails() == (
        "sites.csv: none of the 12 values of its first column `number`, for instance '1', is the id of an image or the "
        "name of its file; ids of images look like 'a01': make `image`, which holds ids, the first column."
    )
    frame.drop(columns="image").to_csv(tiny.input / "sites.csv", index=False)
    assert tiny.fails().endswith(": correct the values, or `table`.")


def test_images_without_a_row_are_reported(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    pd.DataFrame({"id": list(tiny.masks)[2:], "site": "s"}).to_csv(tiny.input / "sites.csv", index=False)
    tiny.settings["train"]["table"] = "sites.csv"
    tiny.save()
    tiny.run("decode")
    told = " ".join(capsys.readouterr().err.split())
    assert "2 of 12 training images have no row in sites.csv, a01, a02: their site is blank" in told


def test_ids_of_a_sample_submission_that_are_file_names(tiny: Tiny) -> None:
    """They are what a submission must hold, so the images' ids must be the same."""
    sample = pd.DataFrame({"id": [f"{name}.tif" for name in TEST_IDS], "mask": ""})
    sample.to_csv(tiny.input / "files.csv", index=False)
    tiny.settings["sample_submission"] = "files.csv"
    tiny.save()
    assert 'the ids there are file names: set `images: "test/{id}"`' in tiny.fails()
    sample.assign(id=[f"test/{name}.jpg" for name in TEST_IDS]).to_csv(tiny.input / "files.csv", index=False)
    assert "this is probably image t1, but the ids of a submission must be those of the images: rename" in tiny.fails()
    sample.to_csv(tiny.input / "files.csv", index=False)
    tiny.settings["test"]["images"] = "test/{id}"
    tiny.save()
    assert table.read_table(tiny.run("decode").test_table)["image_id"].tolist() == sample["id"].tolist()


def test_finder() -> None:
    find = image_finder(["a.1", "7", "b.png", "b.jpg", "8.png"])
    written = ["a.1", "x/7.nii.gz", "7", "b", "8", "8", "other/8.png", "a.2"]
    assert [find(text) for text in written] == ["a.1", "7", "7", "b", "8.png", "8.png", "other/8.png", "a.2"]
    assert [file_stem(text) for text in ("a/b.c.PNG", ".png", "7.5")] == ["b.c", ".png", "7.5"]
