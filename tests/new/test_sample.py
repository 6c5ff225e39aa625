import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile

from pipeline.core.errors import PipelineError
from pipeline.masks import rle
from pipeline.new.sample import plan_frames, write_sample

SHAPE = (420, 580)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("input") / "sample"
    write_sample(folder, train=40, test=10)
    return folder


def read_table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, keep_default_na=False)


def read_image(sample: Path, name: str) -> np.ndarray:
    return tifffile.imread(sample / "train" / f"{name}.tif")


def read_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_layout_is_the_competitions(sample: Path) -> None:
    masks = read_table(sample / "train_masks.csv")
    names = [f"{row.subject}_{row.img}" for row in masks.itertuples()]
    assert list(masks.columns) == ["subject", "img", "pixels"]
    assert {path.name for path in (sample / "train").iterdir()} == {
        f"{name}{end}.tif" for name in names for end in ("", "_mask")
    }
    assert len(names) == 40
    assert {path.name for path in (sample / "test").iterdir()} == {f"{number}.tif" for number in range(1, 11)}
    submission = read_table(sample / "sample_submission.csv")
    assert list(submission.columns) == ["img", "pixels"]
    assert submission["img"].tolist() == list(range(1, 11))
    assert set(submission["pixels"]) == {"1 1"}
    assert not list(sample.parent.glob(".*.partial"))


def test_images_are_grey_lzw_tiffs_without_dates(sample: Path) -> None:
    for path in sample.rglob("*.tif"):
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages.first
            assert (page.shape, page.dtype, page.compression) == (SHAPE, np.uint8, tifffile.COMPRESSION.LZW)
            assert not {"DateTime", "Software", "ImageDescription"} & {tag.name for tag in page.tags}


def test_masks_in_the_table_are_the_mask_images(sample: Path) -> None:
    masks = read_table(sample / "train_masks.csv")
    for subject, number, pixels in zip(masks["subject"], masks["img"], masks["pixels"], strict=True):
        image = read_image(sample, f"{subject}_{number}_mask")
        np.testing.assert_array_equal(rle.decode(pixels, SHAPE) * 255, image)
        assert not pixels or 2700 <= (image > 0).sum() <= 12000


def test_subjects_and_share_of_empty_masks(sample: Path) -> None:
    masks, truth = read_table(sample / "train_masks.csv"), read_table(sample / "truth.csv")
    assert list(truth.columns) == ["img", "pixels", "subject"]
    assert truth["img"].tolist() == list(range(1, 11))
    assert masks["subject"].nunique() >= 8
    assert not set(masks["subject"]) & set(truth["subject"])
    assert 0.4 <= (masks["pixels"] == "").mean() <= 0.7
    assert 0.4 <= (truth["pixels"] == "").mean() <= 0.7


def test_contradictions_repeat_a_frame_without_its_mask(sample: Path) -> None:
    planted = read_table(sample / "planted.csv")
    contradictions = planted[planted["kind"] == "contradiction"]
    assert len(contradictions) == 3
    for name, other in zip(contradictions["image_id"], contradictions["partner_id"], strict=True):
        image, partner = read_image(sample, name), read_image(sample, other)
        assert name.split("_")[0] == other.split("_")[0]
        assert 0 < np.abs(image.astype(float) - partner).mean() < 6
        assert np.corrcoef(image.ravel(), partner.ravel())[0, 1] > 0.97
        assert not read_image(sample, f"{name}_mask").any()
        assert read_image(sample, f"{other}_mask").any()


def test_broken_frames_have_empty_masks(sample: Path) -> None:
    planted = read_table(sample / "planted.csv")
    broken = planted[planted["kind"] == "broken"]
    assert len(broken) == 2
    assert set(broken["partner_id"]) == {""}
    for name in broken["image_id"]:
        assert not read_image(sample, f"{name}_mask").any()


def test_default_plan() -> None:
    train, test = plan_frames(240, 120, seed=0)
    kinds = [frame.kind for frame in train]
    assert kinds.count("contradiction") >= 20
    assert [kinds.count(kind) for kind in ("constant", "dark", "bright", "noise")] == [3, 3, 2, 2]
    assert len({frame.subject for frame in train}) == 12
    assert len({frame.subject for frame in test}) == 6
    for frames in (train, test):
        shown = [frame for frame in frames if frame.strength > 0 and not frame.kind]
        assert len(shown) / len(frames) == pytest.approx(0.45, abs=0.01)


@pytest.mark.parametrize(("train", "test"), [(20, 5), (39, 7), (41, 33), (1000, 400)])
def test_plan_fits_every_size(train: int, test: int) -> None:
    for frames, count in zip(plan_frames(train, test, seed=3), (train, test), strict=True):
        assert len(frames) == count
        assert len({frame.key for frame in frames}) == count
        assert max(frame.time for frame in frames) <= 1.5


def test_seed_decides_every_byte_and_sample_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "sample"
    calls: list[tuple[int, int]] = []
    write_sample(folder, train=20, test=5, seed=5, on_progress=lambda done, total: calls.append((done, total)))
    assert calls == [(done, 25) for done in range(1, 26)]
    first = read_files(folder)
    (folder / "stale.txt").touch()
    write_sample(folder, train=20, test=5, seed=5)
    assert read_files(folder) == first
    write_sample(folder, train=20, test=5, seed=6)
    assert read_files(folder)["test/1.tif"] != first["test/1.tif"]


def test_the_sample_as_shipped_keeps_its_bytes(tmp_path: Path) -> None:
    """Measured figures hold for these 240 + 120 images; another sum means that they must be measured anew."""
    write_sample(tmp_path / "sample")
    everything = hashlib.sha256()
    for name, content in sorted(read_files(tmp_path / "sample").items()):
        everything.update(name.encode() + content)
    assert everything.hexdigest() == "c25f962dd10633a7b76df0afddf18bda1754fe3473f6deb7a60b9083ffae333e"


def test_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "keep.txt").touch()
    with pytest.raises(PipelineError, match="planted.csv"):
        write_sample(tmp_path / "mine", train=20, test=5)
    assert (tmp_path / "mine" / "keep.txt").exists()


@pytest.mark.parametrize(("train", "test"), [(19, 5), (20, 4)])
def test_too_few_frames(tmp_path: Path, train: int, test: int) -> None:
    with pytest.raises(PipelineError, match="at least 20"):
        write_sample(tmp_path / "sample", train=train, test=test)
    assert not (tmp_path / "sample").exists()
