"""Images that use a small part of what their files could hold are refused with the setting that scales them."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from raw import Raw

from pipeline.core.errors import PipelineError
from pipeline.decode import table
from pipeline.decode.value_range import used_range

SIDE = 32


def fill(raw: Raw, largest: int, dtype: type = np.uint16, suffix: str = "png") -> dict[str, np.ndarray]:
    """Writes 8 training and 2 test images of values up to `largest`."""
    images = {}
    for number in range(10):
        rng, name = np.random.default_rng(number), f"{'train' if number < 8 else 'test'}/{number}"
        pixels = rng.integers(0, largest + 1, (SIDE, SIDE)).astype(dtype)
        pixels[0], pixels[1] = 0, largest
        (raw.folder / name).parent.mkdir(parents=True, exist_ok=True)
        write = tifffile.imwrite if suffix == "tif" else cv2.imwrite
        write(str(raw.folder / f"{name}.{suffix}"), pixels)
        images[str(number)] = pixels
    (raw.folder / "train.csv").write_text("id,rle\n" + "".join(f"{number},{number + 5} 9\n" for number in range(8)))
    raw.settings["train"]["images"], raw.settings["test"]["images"] = f"train/{{id}}.{suffix}", f"test/{{id}}.{suffix}"
    return images


@pytest.fixture
def raw(tmp_path: Path) -> Raw:
    return Raw(tmp_path, "bits", {
        "title": "bits", "reader": "rle_csv", "classes": ["cell"], "metric": "dice",
        "train": {"images": "", "masks": "train.csv"}, "test": {"images": ""},
    })  # fmt: skip


@pytest.mark.parametrize(("largest", "bits"), [(1020, 10), (4000, 12)])
def test_few_bits_of_sixteen(raw: Raw, monkeypatch: pytest.MonkeyPatch, largest: int, bits: int) -> None:
    images = fill(raw, largest)
    own = [0, 2**bits - 1]
    words = (
        rf"train/\{{id\}}\.png: training images hold values from 0 to {largest}, and could hold values up to 65535, "
        rf"so that networks would see nearly constant images: set `value_range: \[0, {own[1]}\]` in the"
    )
    with pytest.raises(PipelineError, match=words):
        raw.decoded(monkeypatch)
    raw.settings["value_range"] = own
    run = raw.decoded(monkeypatch)
    for subset in ("train", "test"):
        rows = table.read_table(run.table if subset == "train" else run.test_table, subset)
        arrays = np.load(run.pixels / f"{subset}_images.npy")
        for row, array in zip(rows.itertuples(), arrays, strict=True):
            wanted = images[row.image_id] / own[1] * 65535
            assert np.abs(array[..., 0] - wanted).max() <= 1
            assert row.maximum == round(largest / own[1] * 65535)
    assert raw.opened(raw.item("3")).max() == round(largest / own[1] * 65535)


def test_fourteen_bit_images_are_reported(
    raw: Raw, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(raw, 16000)
    raw.decoded(monkeypatch)
    assert "set `value_range: [0, 16383]`" in " ".join(capsys.readouterr().err.split())
    raw.settings["value_range"] = [0, 65535]
    raw.decoded(monkeypatch)
    assert "set `value_range" not in capsys.readouterr().err


@pytest.mark.parametrize(("dtype", "low", "high"), [(np.float32, 0.0, 1.0), (np.int16, -1000, 3000)])
def test_other_numbers(raw: Raw, monkeypatch: pytest.MonkeyPatch, dtype: type, low: float, high: float) -> None:
    images = fill(raw, 1, np.float32, "tif")
    for number in range(10):
        path = raw.folder / f"{'train' if number < 8 else 'test'}/{number}.tif"
        pixels = np.random.default_rng(number).uniform(low, high, (SIDE, SIDE)).astype(dtype)
        images[str(number)] = pixels
        tifffile.imwrite(path, pixels)
    with pytest.raises(PipelineError, match=rf"holds {np.dtype(dtype)} pixels from .* scales all images"):
        raw.decoded(monkeypatch)
    raw.settings["value_range"] = [low, high]
    run = raw.decoded(monkeypatch)
    floats = np.dtype(dtype).kind == "f"
    wanted = np.stack([(images[str(number)] - low) / (high - low) * (1 if floats else 65535) for number in range(8)])
    pixels = np.load(run.pixels / "train_images.npy")[..., 0]
    assert pixels.dtype == (np.float16 if floats else np.uint16)
    assert np.abs(pixels - wanted).max() <= (2**-11 if floats else 1)


def test_values_outside_are_clipped_and_reported(
    raw: Raw, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(raw, 1020)
    raw.settings["value_range"] = [100, 900]
    run = raw.decoded(monkeypatch)
    assert "10 images have values outside `value_range`, which are clipped" in " ".join(capsys.readouterr().err.split())
    assert np.load(run.pixels / "train_images.npy")[:, :2, 5, 0].tolist() == [[0, 65535]] * 8


def test_eight_bits_stay_eight(raw: Raw, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(raw, 15, np.uint8)
    with pytest.raises(PipelineError, match=r"set `value_range: \[0, 15\]`.* or `value_range: \[0, 255\]`"):
        raw.decoded(monkeypatch)
    raw.settings["value_range"] = [0, 15]
    pixels = np.load(raw.decoded(monkeypatch).pixels / "train_images.npy")
    assert pixels.dtype == np.uint8
    assert set(np.unique(pixels)) == set(range(0, 256, 17))


def test_range_must_ascend(raw: Raw) -> None:
    raw.settings |= {"value_range": [5, 5]}
    with pytest.raises(PipelineError, match=r"value_range.*expected the lowest and the highest value"):
        raw.competition()


def test_odd_images_do_not_hide_the_range() -> None:
    highs = [1020] * 99 + [65535]
    share, own = used_range(np.dtype(np.uint16), [0] * 100, highs)
    assert (round(share, 4), own) == (0.0156, [0, 1023])
    assert used_range(np.dtype(np.uint16), [30000] * 3, [31000] * 3)[1] == [30000, 31000]


def rewrite(raw: Raw, numbers: list[int], change: Callable[[np.ndarray], np.ndarray]) -> None:
    for number in numbers:
        path = raw.folder / f"{'train' if number < 8 else 'test'}/{number}.png"
        cv2.imwrite(str(path), change(cv2.imread(str(path), cv2.IMREAD_UNCHANGED)))


def test_a_saturated_pixel_in_every_image_hides_nothing(raw: Raw, monkeypatch: pytest.MonkeyPatch) -> None:
    def saturated(pixels: np.ndarray) -> np.ndarray:
        pixels[4, 4] = 65535
        return pixels

    fill(raw, 1020)
    rewrite(raw, list(range(10)), saturated)
    with pytest.raises(PipelineError, match=r"set `value_range: \[0, 1023\]`"):
        raw.decoded(monkeypatch)


def test_test_images_of_fewer_bits(raw: Raw, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(raw, 60000)
    rewrite(raw, [8, 9], lambda pixels: pixels // 16)
    words = (
        r"test/\{id\}\.png: test images hold values from 0 to 3750, .* saved with fewer bits than the training images"
    )
    with pytest.raises(PipelineError, match=words):
        raw.decoded(monkeypatch)


def test_some_images_with_fewer_bits_are_reported(
    raw: Raw, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(raw, 60000)
    rewrite(raw, [0, 2, 4], lambda pixels: pixels // 64)
    raw.decoded(monkeypatch)
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "3 of 8 training images use less than a fifteenth of the values that the others use, for instance train/0.png"
        in said
    )


@pytest.mark.parametrize(("dtype", "largest", "given"), [(np.uint8, 255, [0, 4095]), (np.uint16, 60000, [0, 100])])
def test_a_range_that_is_not_that_of_the_files(
    raw: Raw, monkeypatch: pytest.MonkeyPatch, dtype: type, largest: int, given: list[int]
) -> None:
    fill(raw, largest, dtype)
    raw.settings["value_range"] = given
    if given == [0, 100]:  # nearly all of it is clipped
        rewrite(raw, list(range(10)), lambda pixels: np.maximum(pixels, 200).astype(dtype))
    with pytest.raises(PipelineError, match=rf"`value_range: \[0, {given[1]}\]` is not the range of their files"):
        raw.decoded(monkeypatch)
