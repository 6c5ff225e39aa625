"""The reader of the Oxford-IIIT Pet layout, on tiny files, and the download of the real ones."""

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
import pytest
from conftest import encoded
from PIL import Image
from raw import Raw

from pipeline.core.config.raw_layouts import load_competition
from pipeline.core.errors import PipelineError
from pipeline.decode import table
from pipeline.decode.readers.registry import reader_of
from pipeline.kaggle.download import download
from pipeline.masks.geometry import IGNORE

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

# --- sound -----------------------------------------------------------------------------------------------------------


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
    for subset, listed in (("train", "annotations/trainval.txt"), ("test", "annotations/test.txt")):
        expected = tuple(pets.folder / name for name in ("images", "annotations/trimaps", listed))
        assert reader_of(competition).raw_files(competition, pets.folder, subset) == expected


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
    rows = table.read_tables(run.competition_folder).set_index("image_id")
    assert rows.loc["beagle_10", "subset"] == "faulty"
    assert rows.loc["Abyssinian_1", "area_pet"] == (pets.trimaps["Abyssinian_1"] == 1).sum()
    assert rows.loc["pug_4", "area_pet"] == (pets.trimaps["pug_4"] == 1).sum()
    assert rows.loc["pug_4", "extra_class_id"] == "26"


# --- bad -------------------------------------------------------------------------------------------------------------


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
    assert pets.faults() == ["images/beagle_2.jpg: test image beagle_2 is also a training image"]


def test_pets_name_twice_in_a_list(pets: Pets) -> None:
    pets.write_list("trainval", *pets.lines(pets.TRAIN), "beagle_2 5 2 4")
    pets.write_list("test", *pets.lines(pets.TEST), "pug_4 26 2 18")
    listing = pets.listing()
    assert [str(fault) for fault in listing.faults] == [
        "annotations/trainval.txt row 4: image beagle_2 is already in row 2",
        "annotations/test.txt row 3: image pug_4 is already in row 2",
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
    assert f"{pets.folder / 'annotations/test.txt'} lists no image" in pets.error()


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
    fault = pets.mask_fault("beagle_2")
    assert fault.file == "annotations/trimaps/beagle_2.png"
    assert str(fault) == "mask is 29×21, its image 21×29 (rows × columns)"


def test_pets_trimap_of_colours(pets: Pets) -> None:
    trimap = np.repeat(pets.trimaps["beagle_2"][..., None], 3, 2)
    trimap[0, 0] = 1, 2, 3
    pets.trimap("beagle_2").write_bytes(encoded(trimap, "png"))
    assert "trimap of image beagle_2 has colours" in str(pets.mask_fault("beagle_2"))


def test_pets_damaged_files(pets: Pets) -> None:
    pets.trimap("beagle_2").write_bytes(pets.trimap("beagle_2").read_bytes()[:-30])
    assert str(pets.mask_fault("beagle_2")) == "mask cannot be read whole, it is damaged or truncated"
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
    assert refused(pets).startswith(f"{pets.folder} is not empty, so nothing was downloaded")
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
    assert "check the network and try again, or get the two archives" in message
    assert str(pets.folder) in message
    assert left(pets) == []


def test_oxford_pet() -> None:
    competition = load_competition("oxford-pet")
    assert (competition.kind, competition.classes) == ("binary", ["pet"])
    assert competition.remark == "border: background"
    assert competition.splits["90-10"].folds == 10
