"""The reader of an .npz of class maps, on tiny files."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from raw import Raw

from pipeline.core.config.raw_layouts import load_competition
from pipeline.core.errors import PipelineError
from pipeline.decode import table
from pipeline.decode.readers.registry import reader_of
from pipeline.kaggle.download import download
from pipeline.masks.geometry import IGNORE

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

CLASSES = {"background": 0, "soil": 1, "rock": 2}
SIZE = (6, 10)


# --- sound -----------------------------------------------------------------------------------------------------------


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
    assert reader_of(competition).raw_files(competition, npz.folder, "test") == (npz.path,)


def test_npz_of_test_images_alone(npz: Npz) -> None:
    np.savez(npz.path, test_set=npz.test)
    competition = npz.competition()
    items = reader_of(competition).list_items(competition, npz.folder, ["test"]).items
    assert [item.image_id for item in items] == ["0", "1", "2"]
    np.testing.assert_array_equal(items[2].read_image(), npz.test[2][..., None])
    np.testing.assert_array_equal(npz.opened(items[1]), npz.test[1][..., None])
    assert "expected training_set" in npz.error()


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
    rows = table.read_tables(run.competition_folder).set_index("image_id")
    assert rows.loc["train_1", "fault"].startswith("plains.npz: mask of image train_1 holds 8 (3 px)")
    assert (rows.drop("train_1")["fault"] == "").all()
    assert rows.loc["train_0", "area_soil"] == (npz.training[0, 1] == 1).sum()


# --- bad -------------------------------------------------------------------------------------------------------------


def test_npz_label_of_no_class(npz: Npz) -> None:
    npz.training[1, 1] = 0
    npz.training[1, 1, 0, :5], npz.training[1, 1, 1, :2] = 7, 9
    npz.save()
    fault = npz.mask_fault("train_1")
    assert str(fault) == (
        "mask of image train_1 holds 7 (5 px), 9 (2 px), which is no class of the YAML (background: 0, soil: 1, rock: "
        "2)"
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
    assert f"holds {shown} (4 px), which is no class" in str(npz.mask_fault("train_0"))


def test_npz_many_strange_labels_are_cut_short(npz: Npz) -> None:
    npz.training[0, 1, 0, :6] = np.arange(10, 16)
    npz.save()
    assert "holds 10 (1 px), 11 (1 px), 12 (1 px), 13 (1 px), …, which is no class" in str(npz.mask_fault("train_0"))


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
    assert message.startswith(f"{npz.path} does not exist; to get the file of Plains, link it")
    assert f"ln -s /path/to/plains.npz {npz.folder}/`" in message
    assert "kaggle" not in message
    npz.settings["kaggle"] = "plains-2024"
    assert "`python -m pipeline download plains`, which fetches it from Kaggle" in npz.error()
    shutil.rmtree(npz.folder)
    assert f"`mkdir -p {npz.folder} && ln -s" in npz.error()


@pytest.mark.parametrize("content", [b"", b"hello", b"\x93NUMPY\x01\x00", b"\x80\x04\x95"])
def test_npz_of_another_format(npz: Npz, content: bytes) -> None:
    npz.path.write_bytes(content)
    assert f"{npz.path} is not a .npz" in npz.error()


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
    assert "competition plains: the value 'black' of a class is not a whole number" in message


def test_download_of_other_competitions(npz: Npz) -> None:
    competition = npz.competition()
    with pytest.raises(PipelineError, match=r"put the files of Plains into "):
        download(competition, npz.folder)
    npz.settings["kaggle"] = "plains-2024"
    with pytest.raises(PipelineError, match="is not empty, so nothing was downloaded"):
        download(npz.competition(), npz.folder)


def test_mars_terrain() -> None:
    competition = load_competition("mars-terrain")
    assert (competition.kind, competition.ignored, competition.shape) == ("multiclass", 0, (64, 128))
    assert competition.classes == ["background", "soil", "bedrock", "sand", "big rock"]
    assert competition.submission.format == "labels"
    assert competition.forbids_pretrained
