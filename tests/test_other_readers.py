"""The readers of an .npz and of the Oxford-IIIT Pet layout, on tiny files, and the download of the latter."""

import hashlib
import re
import shutil
import tarfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import encoded
from PIL import Image

from pipeline import stages
from pipeline.competition import Competition, load_competition
from pipeline.competitions.listing import Item, Listing, MaskFault
from pipeline.competitions.readers import reader_of
from pipeline.download import download
from pipeline.errors import PipelineError
from pipeline.geometry import IGNORE
from pipeline.workspace import Run, open_run

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

CLASSES = {"background": 0, "soil": 1, "rock": 2}
SIZE = (6, 10)


class Raw:
    """Raw files of one competition, its YAML beside them; change `settings` and the files as a test likes."""

    def __init__(self, root: Path, name: str, settings: dict[str, Any]) -> None:
        self.root, self.folder, self.settings = root, root / "input" / name, settings
        self.yaml = root / f"{name}.yaml"
        self.folder.mkdir(parents=True)

    def competition(self) -> Competition:
        self.yaml.write_text(yaml.safe_dump(self.settings, sort_keys=False))
        return load_competition(str(self.yaml))

    def listing(self) -> Listing:
        competition = self.competition()
        return reader_of(competition).list_items(competition, self.folder)

    def item(self, image_id: str) -> Item:
        return next(item for item in self.listing().items if item.image_id == image_id)

    def planes(self, image_id: str) -> np.ndarray:
        item = self.item(image_id)
        assert item.read_masks is not None
        return item.read_masks(item.read_image().shape[:2]).planes

    def faults(self) -> list[str]:
        return [str(fault) for fault in self.listing().faults]

    def mask_fault(self, image_id: str) -> MaskFault:
        with pytest.raises(MaskFault) as caught:
            self.planes(image_id)
        return caught.value

    def error(self) -> str:
        """The one line with which the listing fails."""
        with pytest.raises(PipelineError) as caught:
            self.listing()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def opened(self, item: Item) -> np.ndarray:
        """The image as a stage finds it by its row of images.parquet."""
        competition = self.competition()
        row = {"path": item.path, "image_id": item.image_id, "subset": item.subset}
        return reader_of(competition).opener(competition, self.folder)(row)

    def decoded(self, monkeypatch: pytest.MonkeyPatch) -> Run:
        monkeypatch.setenv("PIPELINE_ROOT", str(self.root))
        monkeypatch.setenv("PIPELINE_INPUT", str(self.root / "input"))
        self.competition()
        recipe = self.root / "recipe.yaml"
        recipe.write_text(yaml.safe_dump({
            "competition": str(self.yaml), "image": {"size": [32, 32]}, "model": {"weights": "none"},
        }))  # fmt: skip
        run = open_run(str(recipe))
        stages.run_stage(run, "decode")
        return run


# --- npz_labels: sound -----------------------------------------------------------------------------------------------


class Npz(Raw):
    """Four training and three test images of 6×10 in three classes."""

    def __init__(self, root: Path) -> None:
        settings = {"title": "Plains", "reader": "npz_labels", "file": "plains.npz", "metric": "mean_iou"}
        super().__init__(root, "plains", settings | {"classes": CLASSES})
        rng = np.random.default_rng(0)
        self.training = rng.integers(0, 256, (4, 2, *SIZE), np.uint8)
        self.training[:, 1] %= 3
        self.test = rng.integers(0, 256, (3, *SIZE), np.uint8)
        self.save()

    @property
    def path(self) -> Path:
        return self.folder / "plains.npz"

    def save(self, **arrays: Any) -> None:
        np.savez_compressed(self.path, **(arrays or {"training_set": self.training, "test_set": self.test}))

    def images(self) -> dict[str, np.ndarray]:
        return {item.image_id: item.read_image() for item in self.listing().items}


@pytest.fixture
def npz(tmp_path: Path) -> Npz:
    return Npz(tmp_path)


def test_npz_listing(npz: Npz) -> None:
    listing = npz.listing()
    ids = ["train_0", "train_1", "train_2", "train_3", "0", "1", "2"]
    assert [item.image_id for item in listing.items] == ids
    assert [item.subset for item in listing.items] == ["train"] * 4 + ["test"] * 3
    assert {item.path for item in listing.items} == {"plains.npz"}
    assert [item.read_masks is None for item in listing.items] == [False] * 4 + [True] * 3
    assert listing.faults == []
    competition = npz.competition()
    assert reader_of(competition).raw_files(competition, npz.folder) == (npz.path,)


def test_npz_images_come_as_they_are(npz: Npz) -> None:
    for item in npz.listing().items:
        number = int(item.image_id.removeprefix("train_"))
        expected = npz.training[number, 0] if item.subset == "train" else npz.test[number]
        image = item.read_image()
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image, expected[..., None])
        np.testing.assert_array_equal(npz.opened(item), image)


def test_npz_masks_are_one_hot(npz: Npz) -> None:
    planes = npz.planes("train_2")
    assert planes.dtype == np.uint8
    np.testing.assert_array_equal(planes, np.stack([npz.training[2, 1] == value for value in range(3)]))


def test_npz_values_map_to_classes(npz: Npz) -> None:
    npz.settings |= {"classes": {"background": 7, "soil": 300, "rock": -1}, "ignore_value": 9}
    npz.training = npz.training.astype(np.int32)
    raw = npz.training[0, 1] = np.array([7, 300, -1, 9])[np.arange(60).reshape(SIZE) % 4]
    npz.save()
    planes = npz.planes("train_0")
    for number, value in enumerate((7, 300, -1)):
        np.testing.assert_array_equal(planes[number] == 1, raw == value)
    np.testing.assert_array_equal(planes == IGNORE, np.broadcast_to(raw == 9, planes.shape))


def test_npz_class_names_alone_count_from_zero(npz: Npz) -> None:
    expected = npz.planes("train_1")
    npz.settings["classes"] = list(CLASSES)
    np.testing.assert_array_equal(npz.planes("train_1"), expected)


@pytest.mark.parametrize("kind", ["float64", "float32", "int16", "uint16", "int64"])
def test_npz_number_types_do_not_matter(npz: Npz, kind: str) -> None:
    images, planes = npz.images(), npz.planes("train_3")
    npz.training, npz.test = npz.training.astype(kind), npz.test.astype(kind)
    npz.save()
    for image_id, image in npz.images().items():
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image, images[image_id])
    np.testing.assert_array_equal(npz.planes("train_3"), planes)


def test_npz_truth_values(npz: Npz) -> None:
    npz.settings["classes"] = ["ground", "rock"]
    npz.training, npz.test = npz.training % 2 == 1, npz.test % 2 == 1
    npz.save()
    image = npz.images()["train_0"]
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image[..., 0], npz.training[0, 0])
    np.testing.assert_array_equal(npz.planes("train_0")[1], npz.training[0, 1])


def test_npz_large_whole_numbers_are_uint16_throughout(npz: Npz) -> None:
    npz.test = npz.test.astype(np.float64)
    npz.test[1, 0, 0] = 256
    npz.save()
    images = npz.images()
    assert {image.dtype for image in images.values()} == {np.dtype(np.uint16)}
    assert images["1"][0, 0, 0] == 256
    np.testing.assert_array_equal(images["train_0"][..., 0], npz.training[0, 0])


@pytest.mark.parametrize("kind", ["float64", "float32", "float16"])
def test_npz_fractions_are_scaled(npz: Npz, kind: str) -> None:
    npz.test = (npz.test / 255).astype(kind)
    npz.training = npz.training.astype(kind)
    npz.training[:, 0] /= 255
    npz.save()
    images = npz.images()
    assert {image.dtype for image in images.values()} == {np.dtype(np.uint16)}
    np.testing.assert_array_equal(images["2"][..., 0], np.rint(npz.test[2].astype(float) * 65535))


def test_npz_is_read_again_when_it_changes(npz: Npz) -> None:
    before = npz.images()["0"]
    npz.test = npz.test[::-1]
    npz.save()
    assert (npz.images()["0"] != before).any()


def test_npz_decodes(npz: Npz, monkeypatch: pytest.MonkeyPatch) -> None:
    npz.settings["decode"] = {"on_error": "drop"}
    npz.training[1, 1, 0, :3] = 8
    npz.save()
    run = npz.decoded(monkeypatch)
    rows = pd.read_parquet(run.table).set_index("image_id")
    assert rows.loc["train_1", "fault"].startswith("plains.npz: mask of image train_1 holds 8 (3 px)")
    assert (rows.drop("train_1")["fault"] == "").all()
    assert rows.loc["train_0", "area_soil"] == (npz.training[0, 1] == 1).sum()


# --- npz_labels: bad -------------------------------------------------------------------------------------------------


def test_npz_label_of_no_class(npz: Npz) -> None:
    npz.training[1, 1] = 0
    npz.training[1, 1, 0, :5], npz.training[1, 1, 1, :2] = 7, 9
    npz.save()
    fault = npz.mask_fault("train_1")
    assert str(fault) == (
        "mask of image train_1 holds 7 (5 px), 9 (2 px), no class of the YAML (background: 0, soil: 1, rock: 2)"
    )
    assert (fault.file, fault.row) == ("plains.npz", None)
    assert npz.planes("train_0").shape == (3, *SIZE)


@pytest.mark.parametrize(
    ("value", "shown"), [(1.5, "1.5"), (np.nan, "nan"), (-np.inf, "-inf"), (-3, "-3"), (1e6, "1000000")]
)
def test_npz_label_that_is_no_class_number(npz: Npz, value: float, shown: str) -> None:
    npz.training = npz.training.astype(np.float64)
    npz.training[0, 1, 0, :4] = value
    npz.save()
    assert f"holds {shown} (4 px), no class" in str(npz.mask_fault("train_0"))


def test_npz_many_strange_labels_are_cut_short(npz: Npz) -> None:
    npz.training[0, 1, 0, :6] = np.arange(10, 16)
    npz.save()
    assert "holds 10 (1 px), 11 (1 px), 12 (1 px), 13 (1 px), …, no class" in str(npz.mask_fault("train_0"))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (-1, "from -1 to "),
        (70000, " to 70000;"),
        (0.5, "from 0 to 255;"),
        (np.nan, " and 1 that are NaN or infinite;"),
        (np.inf, " and 1 that are NaN or infinite;"),
    ],
)
def test_npz_image_values(npz: Npz, value: float, expected: str) -> None:
    npz.training[0, 0], npz.test = np.arange(60).reshape(SIZE), npz.test.astype(np.float64)
    npz.training[0, 0, 0, :2] = 0, 255
    npz.test[0, 0, 0] = value
    npz.save()
    message = npz.error()
    assert message.startswith(f"{npz.path}: images hold values from ")
    assert expected in message
    assert "expected whole numbers from 0 to 255 or to 65535, or fractions from 0 to 1" in message


def test_npz_nothing_but_nan(npz: Npz) -> None:
    npz.save(training_set=np.full((1, 2, *SIZE), np.nan), test_set=np.full((1, *SIZE), np.nan))
    assert "images hold no finite value and 120 that are NaN or infinite" in npz.error()


def test_npz_missing(npz: Npz) -> None:
    npz.path.unlink()
    message = npz.error()
    assert message.startswith(f"{npz.path} does not exist; to put the file of Plains there, link it")
    assert f"ln -s /path/to/plains.npz {npz.folder}/`" in message
    assert "kaggle" not in message
    npz.settings["kaggle"] = "plains-2024"
    assert f"`kaggle competitions download -c plains-2024 -p {npz.folder}`" in npz.error()
    shutil.rmtree(npz.folder)
    assert f"`mkdir -p {npz.folder} && ln -s" in npz.error()


@pytest.mark.parametrize("content", [b"", b"hello", b"\x93NUMPY\x01\x00", b"\x80\x04\x95"])
def test_npz_of_another_format(npz: Npz, content: bytes) -> None:
    npz.path.write_bytes(content)
    assert f"{npz.path} is not an .npz" in npz.error()


def test_npz_truncated(npz: Npz) -> None:
    npz.path.write_bytes(npz.path.read_bytes()[:-40])
    assert f"{npz.path} cannot be read, it is damaged or truncated (BadZipFile: " in npz.error()


def test_npz_damaged_inside(npz: Npz) -> None:
    data = bytearray(npz.path.read_bytes())
    data[150:200] = bytes(50)
    npz.path.write_bytes(data)
    assert f"{npz.path} cannot be read, it is damaged or truncated (" in npz.error()


def test_npz_that_is_a_folder(npz: Npz) -> None:
    npz.path.unlink()
    npz.path.mkdir()
    assert "cannot be read" in npz.error()


def test_npz_with_pickles(npz: Npz) -> None:
    pickled = np.empty(4, object)
    pickled[:] = list(npz.training)
    npz.save(training_set=pickled, test_set=npz.test)
    assert f"{npz.path} holds pickled objects; save it again as plain arrays" in npz.error()


def test_npz_with_other_keys(npz: Npz) -> None:
    npz.save(x_train=npz.training, test_set=npz.test)
    message = npz.error()
    assert f"{npz.path} holds x_train, test_set; expected training_set (N, 2, H, W)" in message
    npz.save(training_set=npz.training)
    assert "holds training_set; expected" in npz.error()


@pytest.mark.parametrize(
    ("training", "test"),
    [
        ((4, *SIZE), (3, *SIZE)),
        ((4, 3, *SIZE), (3, *SIZE)),
        ((4, 2, *SIZE), (3, 1, *SIZE)),
        ((0, 2, *SIZE), (3, *SIZE)),
        ((4, 2, *SIZE), (0, *SIZE)),
        ((4, 2, 0, 10), (3, 0, 10)),
    ],
)
def test_npz_dimensions(npz: Npz, training: tuple[int, ...], test: tuple[int, ...]) -> None:
    npz.save(training_set=np.zeros(training), test_set=np.zeros(test))
    assert f"training_set has shape {training}, test_set {test}; expected" in npz.error()


def test_npz_sizes_differ(npz: Npz) -> None:
    npz.save(training_set=npz.training, test_set=np.zeros((3, 10, 6)))
    assert "training images are 6×10, test images 10×6 (rows × columns)" in npz.error()


def test_npz_of_another_shape_than_promised(npz: Npz) -> None:
    npz.settings["shape"] = [10, 6]
    message = npz.error()
    assert f"{npz.path} holds images of 6×10; competition plains says `shape` is 10×6" in message
    assert "transposed?" in message


def test_npz_of_texts(npz: Npz) -> None:
    npz.save(training_set=npz.training.astype(str), test_set=npz.test)
    assert "training_set holds <U3; expected numbers" in npz.error()


def test_npz_classes_are_numbers(npz: Npz) -> None:
    npz.settings["classes"] = {"background": "black", "soil": 1, "rock": 2}
    message = npz.error()
    assert "competition plains: the value 'black' of a class is no whole number" in message


# --- oxford_pet: sound -----------------------------------------------------------------------------------------------


class Pets(Raw):
    """Three training and two test images of several sizes, with files in between that nothing may look at."""

    TRAIN = {"Abyssinian_1": "1 1 1", "beagle_2": "5 2 4", "beagle_10": "5 2 4"}
    TEST = {"Bengal_3": "6 1 2", "pug_4": "26 2 18"}

    def __init__(self, root: Path) -> None:
        super().__init__(
            root, "pets", {"title": "Pets", "reader": "oxford_pet", "border": "background", "metric": "dice"}
        )
        (self.folder / "images").mkdir()
        (self.folder / "annotations" / "trimaps").mkdir(parents=True)
        for file in (
            "images/._Abyssinian_1.jpg",
            "images/unlisted.jpg",
            "images/beagle.mat",
            "annotations/trimaps/._pug_4.png",
        ):
            (self.folder / file).write_bytes(b"no image")
        rng = np.random.default_rng(0)
        self.trimaps = {}
        for number, name in enumerate({**self.TRAIN, **self.TEST}):
            shape = (20 + number, 30 - number)
            self.image(name).write_bytes(encoded(rng.integers(0, 256, (*shape, 3), np.uint8), "jpg"))
            self.trimaps[name] = rng.integers(1, 4, shape, np.uint8)
            self.trimap(name).write_bytes(encoded(self.trimaps[name], "png"))
        self.write_list("trainval", "#Image CLASS-ID SPECIES BREED ID", "", *self.lines(self.TRAIN))
        self.write_list("test", *self.lines(self.TEST))

    def image(self, name: str) -> Path:
        return self.folder / "images" / f"{name}.jpg"

    def trimap(self, name: str) -> Path:
        return self.folder / "annotations" / "trimaps" / f"{name}.png"

    @staticmethod
    def lines(entries: dict[str, str]) -> list[str]:
        return [f"{name} {numbers}" for name, numbers in entries.items()]

    def write_list(self, name: str, *lines: str) -> None:
        (self.folder / "annotations" / f"{name}.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture
def pets(tmp_path: Path) -> Pets:
    return Pets(tmp_path)


def test_pets_listing(pets: Pets) -> None:
    listing = pets.listing()
    assert listing.faults == []
    assert {item.image_id: item.subset for item in listing.items} == {
        **dict.fromkeys(pets.TRAIN, "train"), **dict.fromkeys(pets.TEST, "test"),
    }  # fmt: skip
    first = listing.items[0]
    assert (first.path, first.group) == ("images/Abyssinian_1.jpg", None)
    assert listing.items[1].extra == {"class_id": "5", "species": "2", "breed": "4"}
    competition = pets.competition()
    names = ["annotations/trainval.txt", "annotations/test.txt", "images", "annotations/trimaps"]
    assert reader_of(competition).raw_files(competition, pets.folder) == tuple(pets.folder / name for name in names)


@pytest.mark.parametrize(("border", "expected"), [("foreground", 1), ("background", 0), ("ignore", IGNORE)])
def test_pets_border(pets: Pets, border: str, expected: int) -> None:
    pets.settings["border"] = border
    for name in ("beagle_2", "pug_4"):
        planes, trimap = pets.planes(name), pets.trimaps[name]
        assert planes.dtype == np.uint8
        np.testing.assert_array_equal(planes, np.array([0, 1, 0, expected], np.uint8)[trimap][None])


def test_pets_test_masks_are_for_scoring(pets: Pets) -> None:
    pets.settings["test"] = {"evaluate": False}
    pets.trimap("pug_4").unlink()
    listing = pets.listing()
    assert listing.faults == []
    assert {item.subset for item in listing.items if item.read_masks is None} == {"test"}


def test_pets_groups(pets: Pets) -> None:
    pets.settings["group"] = "class_id"
    assert [item.group for item in pets.listing().items] == ["1", "5", "5", None, None]
    pets.settings["group"] = "{group}_{number}"
    assert [item.group for item in pets.listing().items] == ["Abyssinian", "beagle", "beagle", None, None]
    pets.settings["group"] = "patient"
    assert "column `patient` (group) is missing; found `class_id`, `species`, `breed`" in pets.error()


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("L", "JPEG"), ("L", "PNG"), ("LA", "PNG"), ("RGB", "JPEG"), ("RGBA", "PNG"), ("CMYK", "JPEG"), ("P", "GIF")],
)
def test_pets_images_are_rgb_whatever_the_file(pets: Pets, mode: str, kind: str) -> None:
    shape = pets.trimaps["beagle_2"].shape
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    colours = np.stack([rows * 8, columns * 6, (rows + columns) * 3], -1).astype(np.uint8)
    stored = Image.fromarray(colours).convert(mode)
    stored.save(pets.image("beagle_2"), kind, **({"quality": 100, "subsampling": 0} if kind == "JPEG" else {}))
    item = pets.item("beagle_2")
    image = item.read_image()
    assert (image.shape, image.dtype) == ((*shape, 3), np.uint8)
    expected = np.asarray(stored.convert("RGB")).astype(int)
    assert np.abs(image - expected).max() <= (12 if kind == "JPEG" else 0)
    np.testing.assert_array_equal(pets.opened(item), image)
    assert pets.planes("beagle_2").shape == (1, *shape)


def test_pets_trimap_of_equal_channels(pets: Pets) -> None:
    expected = pets.planes("beagle_2")
    pets.trimap("beagle_2").write_bytes(encoded(np.repeat(pets.trimaps["beagle_2"][..., None], 3, 2), "png"))
    np.testing.assert_array_equal(pets.planes("beagle_2"), expected)


def test_pets_lists_from_other_editors(pets: Pets) -> None:
    text = "\ufeff#Image\r\n  beagle_2\t5  2 4 \r\n"
    (pets.folder / "annotations" / "trainval.txt").write_bytes(text.encode())
    assert [item.image_id for item in pets.listing().items if item.subset == "train"] == ["beagle_2"]


def test_pets_decode(pets: Pets, monkeypatch: pytest.MonkeyPatch) -> None:
    pets.settings |= {"border": "ignore", "decode": {"on_error": "drop"}}
    pets.trimap("beagle_10").unlink()
    run = pets.decoded(monkeypatch)
    rows = pd.read_parquet(run.table).set_index("image_id")
    assert rows.loc["beagle_10", "subset"] == "faulty"
    assert rows.loc[["Abyssinian_1", "pug_4"], "truth"].all()
    assert rows.loc["pug_4", "area_pet"] == (pets.trimaps["pug_4"] == 1).sum()
    assert rows.loc["pug_4", "extra_class_id"] == "26"


# --- oxford_pet: bad -------------------------------------------------------------------------------------------------


def test_pets_missing_image(pets: Pets) -> None:
    pets.image("beagle_2").unlink()
    pets.image("pug_4").unlink()
    listing = pets.listing()
    assert [str(fault) for fault in listing.faults] == [
        "annotations/trainval.txt row 4: image beagle_2 has no image, images/beagle_2.jpg does not exist",
        "annotations/test.txt row 2: image pug_4 has no image, images/pug_4.jpg does not exist",
    ]
    assert [fault.image_id for fault in listing.faults] == ["beagle_2", None]
    assert "beagle_2" not in [item.image_id for item in listing.items]


def test_pets_missing_trimap(pets: Pets) -> None:
    pets.trimap("beagle_2").unlink()
    assert pets.faults() == [
        "annotations/trainval.txt row 4: image beagle_2 has no trimap, annotations/trimaps/beagle_2.png does not exist"
    ]


def test_pets_name_in_both_lists(pets: Pets) -> None:
    pets.write_list("test", *pets.lines(pets.TEST), "beagle_2 5 2 4")
    assert pets.faults() == ["images/beagle_2.jpg: test image beagle_2 is a training image too"]


def test_pets_name_twice_in_a_list(pets: Pets) -> None:
    pets.write_list("trainval", *pets.lines(pets.TRAIN), "beagle_2 5 2 4")
    pets.write_list("test", *pets.lines(pets.TEST), "pug_4 26 2 18")
    listing = pets.listing()
    assert [str(fault) for fault in listing.faults] == [
        "annotations/trainval.txt row 4: image beagle_2 stands in row 2 already",
        "annotations/test.txt row 3: image pug_4 stands in row 2 already",
    ]
    assert [fault.image_id for fault in listing.faults] == ["beagle_2", None]
    assert len(listing.items) == 5


@pytest.mark.parametrize(
    "line", ["beagle_2", "beagle_2 5 2", "beagle_2 5 2 4 1", "my beagle 5 2 4", "beagle_2 5 dog 4"]
)
def test_pets_bad_line(pets: Pets, line: str) -> None:
    pets.write_list("trainval", "# names", "Abyssinian_1 1 1 1", line)
    message = pets.error()
    assert message.startswith(
        f"{pets.folder / 'annotations/trainval.txt'} row 3 is {line!r}; expected a name and three"
    )


def test_pets_list_without_a_name(pets: Pets) -> None:
    pets.write_list("test", "# nothing yet")
    assert f"{pets.folder / 'annotations/test.txt'} names no image" in pets.error()


def test_pets_list_that_is_no_text(pets: Pets) -> None:
    (pets.folder / "annotations" / "test.txt").write_bytes(b"\xff\xfe\x00")
    assert "is not a readable list" in pets.error()


@pytest.mark.parametrize("name", ["images", "annotations/trimaps", "annotations/trainval.txt", "annotations/test.txt"])
def test_pets_missing_part(pets: Pets, name: str) -> None:
    (pets.folder / name).rename(pets.folder / "elsewhere")
    message = pets.error()
    assert message.startswith(f"{pets.folder} lacks {name}; expected images/*.jpg, annotations/trimaps/*.png")
    assert "`python -m pipeline download pets`" in message


def test_pets_without_any_files(pets: Pets) -> None:
    shutil.rmtree(pets.folder)
    assert (
        f"{pets.folder} lacks images, annotations/trimaps, annotations/trainval.txt, annotations/test.txt"
        in pets.error()
    )


def test_pets_trimap_values(pets: Pets) -> None:
    trimap = np.full_like(pets.trimaps["beagle_2"], 2)
    trimap[0, :5], trimap[1, :2] = 0, 255
    pets.trimap("beagle_2").write_bytes(encoded(trimap, "png"))
    fault = pets.mask_fault("beagle_2")
    assert str(fault) == (
        "trimap of image beagle_2 holds 0 (5 px), 255 (2 px); expected 1 (pet), 2 (background) and 3 (border)"
    )
    assert (fault.file, fault.row) == ("annotations/trimaps/beagle_2.png", None)


def test_pets_trimap_of_another_size(pets: Pets) -> None:
    pets.trimap("beagle_2").write_bytes(encoded(pets.trimaps["beagle_2"].T, "png"))
    assert str(pets.mask_fault("beagle_2")) == ("trimap of image beagle_2 is 29×21, its image 21×29 (rows × columns)")


def test_pets_trimap_of_colours(pets: Pets) -> None:
    trimap = np.repeat(pets.trimaps["beagle_2"][..., None], 3, 2)
    trimap[0, 0] = 1, 2, 3
    pets.trimap("beagle_2").write_bytes(encoded(trimap, "png"))
    assert "trimap of image beagle_2 has colours" in str(pets.mask_fault("beagle_2"))


def test_pets_damaged_files(pets: Pets) -> None:
    pets.trimap("beagle_2").write_bytes(pets.trimap("beagle_2").read_bytes()[:-30])
    assert str(pets.mask_fault("beagle_2")) == "trimap cannot be read whole, it is damaged or truncated"
    pets.image("pug_4").write_bytes(b"GIF")
    with pytest.raises(ValueError, match=r"cannot be read"):
        pets.item("pug_4").read_image()


def test_pets_image_of_16_bit(pets: Pets) -> None:
    pets.image("pug_4").write_bytes(encoded(np.zeros((20, 20), np.uint16), "png"))
    with pytest.raises(ValueError, match=re.escape("holds uint16 pixels; expected uint8")):
        pets.item("pug_4").read_image()


# --- download --------------------------------------------------------------------------------------------------------


class Source:
    """A local stand-in for the server that torchvision fetches the two archives from."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.monkeypatch = folder, monkeypatch
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=str(folder)))
        self.thread = Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def announce(self) -> None:
        """Tells torchvision the archives' addresses and checksums."""
        from torchvision.datasets import OxfordIIITPet

        address = f"http://127.0.0.1:{self.server.server_port}"
        files = [self.folder / f"{name}.tar.gz" for name in ("images", "annotations")]
        known = [(f"{address}/{file.name}", hashlib.md5(file.read_bytes()).hexdigest()) for file in files]
        self.monkeypatch.setattr(OxfordIIITPet, "_RESOURCES", known)

    def close(self) -> None:
        if self.thread.is_alive():
            self.server.shutdown()
            self.server.server_close()
            self.thread.join()


class Silent(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def source(pets: Pets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Source]:
    """The archives of the tiny files, ready to be had; the competition's own folder is gone."""
    monkeypatch.setenv("no_proxy", "*")
    pets.write_list("trainval", *pets.lines(pets.TRAIN))
    folder = tmp_path / "server"
    folder.mkdir()
    for name in ("images", "annotations"):
        with tarfile.open(folder / f"{name}.tar.gz", "w:gz") as file:
            file.add(pets.folder / name, name)
    shutil.rmtree(pets.folder)
    source = Source(folder, monkeypatch)
    source.announce()
    yield source
    source.close()


def refused(pets: Pets) -> str:
    with pytest.raises(PipelineError) as caught:
        download(pets.competition(), pets.folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def left(pets: Pets) -> list[str]:
    parent = pets.folder.parent
    return sorted(path.relative_to(parent).as_posix() for path in parent.rglob("*")) if parent.exists() else []


@pytest.mark.parametrize("before", ["nothing", "an empty folder", "a link to an empty folder"])
def test_download(pets: Pets, source: Source, before: str) -> None:
    if before == "an empty folder":
        pets.folder.mkdir()
    if before == "a link to an empty folder":
        (pets.root / "elsewhere").mkdir()
        pets.folder.symlink_to(pets.root / "elsewhere")
    if before == "nothing":
        pets.folder.parent.rmdir()
    download(pets.competition(), pets.folder)
    assert sorted(path.name for path in pets.folder.iterdir()) == ["annotations", "images"]
    assert [path.name for path in pets.folder.parent.iterdir()] == ["pets"]
    assert len(pets.listing().items) == 5
    assert pets.faults() == []


def test_download_keeps_what_is_there(pets: Pets, source: Source) -> None:
    pets.folder.mkdir()
    (pets.folder / "mine.txt").write_text("mine")
    assert refused(pets).startswith(f"{pets.folder} is not empty; nothing was downloaded")
    assert left(pets) == ["pets", "pets/mine.txt"]


@pytest.mark.parametrize("damage", ["no network", "no file", "checksum", "no archive"])
def test_download_that_fails_leaves_nothing(pets: Pets, source: Source, damage: str) -> None:
    path = source.folder / "annotations.tar.gz"
    if damage == "no network":
        source.close()
    elif damage == "no file":
        path.unlink()
    else:
        path.write_bytes(b"<html>Sorry</html>")
    if damage == "no archive":
        source.announce()
    message = refused(pets)
    assert message.startswith("Pets could not be downloaded (")
    assert "try again with a network, or put the files there by hand" in message
    assert str(pets.folder) in message
    assert left(pets) == []


def test_download_of_other_competitions(npz: Npz) -> None:
    competition = npz.competition()
    with pytest.raises(PipelineError, match=r"put the files of Plains into "):
        download(competition, npz.folder)
    npz.settings["kaggle"] = "plains-2024"
    command = re.escape(f"`kaggle competitions download -c plains-2024 -p {npz.folder}`")
    with pytest.raises(PipelineError, match=command):
        download(npz.competition(), npz.folder)


# --- the YAMLs that come with the package ----------------------------------------------------------------------------


def test_mars_terrain() -> None:
    competition = load_competition("mars-terrain")
    assert (competition.mode, competition.ignored, competition.shape) == ("multiclass", 0, (64, 128))
    assert competition.classes == ["background", "soil", "bedrock", "sand", "big rock"]
    assert competition.submission.format == "labels"
    assert competition.forbids_pretrained


def test_oxford_pet() -> None:
    competition = load_competition("oxford-pet")
    assert (competition.mode, competition.classes) == ("binary", ["pet"])
    assert competition.remark == "border: background"
    assert competition.splits["90-10"].folds == 10
