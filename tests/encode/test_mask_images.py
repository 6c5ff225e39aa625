"""Submissions of mask images: what is written is what other programs read, and `check` names what is wrong with one."""

import hashlib
import io
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from kinds import SHAPES, competition, drawn, images, wanted, write

from pipeline.core.errors import PipelineError
from pipeline.encode import mask_images, sanity, scoring, submission

KELP = {"format": "images", "image": "{id}_kelp.tif"}
MAPS: dict[str, Any] = {
    "kind": "multiclass", "classes": {"land": 7, "sea": 11, "ice": 26}, "metric": "mean_iou",
    "train": {"images": "train/{id}.png", "masks": "masks/{id}.png"},
}  # fmt: skip


def read(content: bytes) -> np.ndarray:
    """The pixels of an image, as OpenCV or tifffile has them."""
    if content[:4] == b"\x89PNG":
        return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    return tifffile.imread(io.BytesIO(content))


def members(path: Path) -> dict[str, np.ndarray]:
    """The images in a zip."""
    with zipfile.ZipFile(path) as archive:
        return {name: read(archive.read(name)) for name in archive.namelist()}


def folder_of(path: Path, files: dict[str, np.ndarray]) -> Path:
    """A folder of mask images, written by OpenCV and tifffile."""
    for name, pixels in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("png"):
            cv2.imwrite(str(path / name), pixels)
        else:
            tifffile.imwrite(path / name, pixels, photometric="minisblack")
    return path


@pytest.mark.parametrize("ending", ["tif", "png"])
@pytest.mark.parametrize("value", [1, 255])
def test_one_mask_per_image(ending: str, value: int, tmp_path: Path) -> None:
    made, want = wanted(tmp_path, submission={"format": "images", "image": f"{{id}}_kelp.{ending}", "values": [value]})
    assert made.submission_file == "zip" and want.header == []
    masks = drawn()
    path = write(tmp_path / "mine.zip", want, masks)
    found = members(path)
    assert list(found) == [f"{name}_kelp.{ending}" for name in SHAPES]
    for name, pixels in zip(SHAPES, found.values(), strict=True):
        assert pixels.dtype == np.uint8
        np.testing.assert_array_equal(pixels, value * masks[name][0])
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert hashlib.sha256(write(path, want, masks).read_bytes()).hexdigest() == digest
    assert submission.examine(path, want) == ([], [])
    folder = folder_of(tmp_path / "folder", found)
    assert submission.examine(folder, want) == ([], [])
    assert scoring.score(path, folder, made, want) == (1.0, 3)


def test_scores_are_those_of_the_pixels(tmp_path: Path) -> None:
    made, want = wanted(tmp_path, submission=KELP, metric="f_beta(beta=1, over=data_set)")
    mine, truth = drawn(seed=1), drawn(seed=2)
    score, rows = scoring.score(
        write(tmp_path / "a.zip", want, mine), write(tmp_path / "b.zip", want, truth), made, want
    )
    both = sum(int((mine[name] & truth[name]).sum()) for name in SHAPES)
    every = sum(int(mine[name].sum() + truth[name].sum()) for name in SHAPES)
    assert (score, rows) == (2 * both / every, 3)
    assert "mask images follow the YAML" in sanity.format_note(want, made)[0].text


def test_pixels_that_do_not_count_and_groups_of_test_images(tmp_path: Path) -> None:
    """Vesuvius' surfaces: 2 is ignored in the truth, and in no submission; a volume is scored as a whole."""
    shapes = {f"{volume}_{number}": (3, 4) for volume in "ab" for number in range(2)}
    table = images(shapes, of_image=["a", "a", "b", "b"], extra_whole=["a", "a", "b", "b"])
    settings = {"submission": {"format": "images", "image": "{id}.tif"}, "volumes": {}, "metric": "dice(over=group)"}
    settings |= {
        "train": {"images": "train/{id}.tif", "masks": "m/{id}.tif"},
        "classes": {"surface": 1},
        "ignore_value": 2,
    }
    made, want = wanted(tmp_path, table, **settings)
    mine = {name: np.ones((1, 3, 4), np.uint8) for name in shapes}
    truth = {"a.tif": np.ones((2, 3, 4), np.uint8), "b.tif": np.zeros((2, 3, 4), np.uint8)}
    truth["a.tif"][1], truth["b.tif"][0, 0] = 2, 1
    path, folder = write(tmp_path / "mine.zip", want, mine), folder_of(tmp_path / "truth", truth)
    assert scoring.score(path, folder, made, want)[0] == pytest.approx((1 + 2 * 4 / (24 + 4)) / 2)
    assert "a.tif: id a_0: holds the values 2; expected 0, 1" in submission.faults_of(folder, want)


def test_class_maps_and_an_image_per_class(tmp_path: Path) -> None:
    labels = {name: np.random.default_rng(3).integers(0, 3, shape) for name, shape in SHAPES.items()}
    masks = {name: (one == np.arange(3)[:, None, None]).astype(np.uint8) for name, one in labels.items()}
    made, want = wanted(tmp_path, submission={"format": "images", "image": "maps/{id}.png"}, **MAPS)
    path = write(tmp_path / "maps.zip", want, masks)
    for name, pixels in members(path).items():
        np.testing.assert_array_equal(pixels, np.array([7, 11, 26])[labels[Path(name).stem]])
    assert submission.faults_of(path, want) == []
    assert scoring.score(path, path, made, want) == (1.0, 3)
    train = {"images": "train/{id}.png", "masks": "masks/{class}/{id}.png"}
    settings = {"classes": ["cell", "gland"], "train": train}
    made, want = wanted(tmp_path, submission={"format": "images", "image": "{class}/{id}.png"}, **settings)
    both = drawn(2)
    path = write(tmp_path / "classes.zip", want, both)
    assert list(members(path))[:2] == ["cell/t1.png", "gland/t1.png"]
    np.testing.assert_array_equal(members(path)["gland/t1.png"], both["t1"][1])
    assert scoring.score(path, path, made, want) == (1.0, 6) and submission.faults_of(path, want) == []


@pytest.mark.parametrize("axis", [None, 0, 1, 2])
def test_slices_of_a_volume_are_pages_of_one_file(axis: int | None, tmp_path: Path) -> None:
    shapes = {f"{volume}_{number}": (4, 6) for volume, count in (("a", 3), ("b", 1)) for number in range(count)}
    table = images(shapes, of_image=["a", "a", "a", "b"])
    settings = {"submission": {"format": "images", "image": "{id}.tif"}, "volumes": {"axis": axis}}
    settings |= {"train": {"images": "train/{id}.tif", "masks": "masks/{id}.tif"}}
    _, want = wanted(tmp_path, table, **settings)
    rng = np.random.default_rng(0)
    masks = {name: rng.integers(0, 2, (1, 4, 6), dtype=np.uint8) for name in shapes}
    path = write(tmp_path / "mine.zip", want, masks)
    with zipfile.ZipFile(path) as archive:
        content = io.BytesIO(archive.read("a.tif"))
    assert len(tifffile.TiffFile(content).pages) == (3 if not axis else 4)
    found = members(path)
    assert list(found) == ["a.tif", "b.tif"]
    np.testing.assert_array_equal(
        np.moveaxis(found["a.tif"], axis or 0, 0), np.concatenate([masks[f"a_{n}"] for n in range(3)])
    )
    assert submission.faults_of(path, want) == []
    folder_of(tmp_path / "bad", {"a.tif": found["a.tif"][:2]})
    said = submission.faults_of(tmp_path / "bad", want)
    assert said[-1] == "1 of 2 mask images are missing: b.tif"
    sizes = ("×".join(map(str, one.shape)) for one in (found["a.tif"][:2], found["a.tif"]))
    assert said[0] == "a.tif: id a_0: is {}; expected {}".format(*sizes)


@pytest.mark.parametrize(
    ("pixels", "fault"),
    [
        (np.zeros((17, 12), np.uint8), "is 17×12; expected 12×17, transposed?"),
        (np.zeros((12, 16), np.uint8), "is 12×16; expected 12×17"),
        (np.zeros((12, 17), np.uint16), "holds uint16 pixels; expected uint8"),
        (np.zeros((12, 17), np.float32), "holds float32 pixels; expected uint8"),
        (255 * np.eye(12, 17, dtype=np.uint8), "holds the values 255; expected 0, 1"),
        (np.arange(204, dtype=np.uint8).reshape(12, 17), "holds the values 2, 3, 4, 5, 6, …; expected 0, 1"),
    ],
)
def test_wrong_sizes_dtypes_and_values(pixels: np.ndarray, fault: str, tmp_path: Path) -> None:
    made, want = wanted(tmp_path, submission=KELP)
    files = {f"{name}_kelp.tif": np.zeros(shape, np.uint8) for name, shape in SHAPES.items()}
    folder = folder_of(tmp_path / "mine", files | {"t1_kelp.tif": pixels})
    assert submission.faults_of(folder, want) == [f"t1_kelp.tif: id t1: {fault}"]
    with pytest.raises(PipelineError, match="the truth t1_kelp.tif: id t1: "):
        scoring.score(write(tmp_path / "x.zip", want, drawn()), folder, made, want)


def test_missing_further_and_damaged_members(tmp_path: Path) -> None:
    _, want = wanted(tmp_path, submission=KELP)
    good = members(write(tmp_path / "mine.zip", want, drawn()))
    folder = folder_of(tmp_path / "mine", {"t2_kelp.tif": good["t2_kelp.tif"], "deep/t3_kelp.tif": good["t3_kelp.tif"]})
    (folder / "t1_kelp.tif").write_bytes(b"II*\0")
    (folder / ".DS_Store").write_bytes(b"")
    faults = submission.faults_of(folder, want)
    assert faults[0] == "deep/t3_kelp.tif: no test image has this mask image; expected names like t1_kelp.tif"
    assert faults[1].startswith("t1_kelp.tif: id t1: is not a readable TIFF: ")
    assert faults[2:] == ["1 of 3 mask images are missing: t3_kelp.tif"]
    with zipfile.ZipFile(tmp_path / "deep.zip", "w") as archive:
        for name, pixels in good.items():
            archive.writestr(f"masks/{name}", mask_images.encoded(name, pixels))
    assert submission.faults_of(tmp_path / "deep.zip", want) == [
        "all mask images are in the folder masks/; expected t1_kelp.tif at the top",
        "3 of 3 mask images are missing: t1_kelp.tif, t2_kelp.tif, t3_kelp.tif",
    ]
    with zipfile.ZipFile(tmp_path / "mine.zip", "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("t2_kelp.tif", mask_images.encoded("t2_kelp.tif", 1 - good["t2_kelp.tif"]))
    assert submission.faults_of(tmp_path / "mine.zip", want) == ["t2_kelp.tif: occurs 2 times in the zip"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"format": "images"}, "needs a .png or .tif file name with {id}"),
        ({"format": "images", "image": "{id}.jpg"}, "needs a .png or .tif file name with {id}"),
        ({"image": "{id}.tif"}, "image needs format: images"),
        ({"format": "images", "image": "{id}.tif", "file": "csv"}, "mask images are submitted as a zip file"),
        ({"format": "images", "image": "{id}.tif", "values": [1, 2]}, "2 entries; expected 1, one per class"),
        ({"format": "images", "image": "{id}.tif", "columns": {"a": 1}}, "columns needs a table of run lengths"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        competition(submission=settings)


def test_names_must_tell_images_apart(tmp_path: Path) -> None:
    _, want = wanted(
        tmp_path, images(extra_case=["a", "b", "a"]), submission={"format": "images", "image": "{case}.tif"}
    )
    with pytest.raises(PipelineError, match=r"submission.image gives images t1 and t3 the same name, a.tif"):
        mask_images.members(want)
    with pytest.raises(
        PipelineError, match=r"submission.image names {cas}, which the images do not have; they have {class}"
    ):
        wanted(tmp_path, submission={"format": "images", "image": "{cas}.tif"})
    with pytest.raises(ValueError, match="classes may overlap"):
        competition(classes=["a", "b"], columns={"label": "x"}, submission=KELP)
    _, want = wanted(tmp_path, submission=KELP)
    (tmp_path / "x.csv").write_text("id,rle\n")
    with pytest.raises(PipelineError, match="is a table; the competition's submissions are zips or folders"):
        submission.examine(tmp_path / "x.csv", want)
