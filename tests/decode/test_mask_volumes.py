"""Volumes of masks belong to their images slice by slice, or are faults that say why they do not."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import tifffile
from raw import Raw

from pipeline.decode.readers.base import MaskFault

VOLUME = np.random.default_rng(0).integers(0, 256, (5, 16, 20), dtype=np.uint8)
MASK = (VOLUME > 200).astype(np.uint8)


def write(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> None:
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".tif":
        tifffile.imwrite(path, array, photometric="minisblack")
    else:
        nibabel = pytest.importorskip("nibabel")
        stored = np.moveaxis(array, 0, -1)
        nibabel.save(nibabel.Nifti1Image(stored, np.diag([0.5, 0.75, 3, 1]) if affine is None else affine), path)


def raw_of(tmp_path: Path, ending: str) -> Raw:
    return Raw(tmp_path, "raw", {
        "title": "Raw", "classes": ["thing"], "metric": "dice", "split": {"folds": 2}, "volumes": {}, "test": None,
        "sample_submission": None,
        "train": {"images": f"images/{{id}}.{ending}", "masks": f"labels/{{id}}.{ending}"},
    })  # fmt: skip


def said(raw: Raw) -> list[str]:
    """What is wrong with the masks of each slice."""
    found = []
    for item in raw.listing().items:
        assert item.read_masks
        try:
            item.read_masks((16, 20))
        except MaskFault as fault:
            found.append(str(fault))
    return found


@pytest.mark.parametrize("ending", ["tif", "nii", "nii.gz"])
@pytest.mark.parametrize("count", [4, 5, 6])
def test_as_many_slices_as_the_image(ending: str, count: int, tmp_path: Path) -> None:
    raw = raw_of(tmp_path, ending)
    write(raw.folder / f"images/p1.{ending}", VOLUME)
    write(raw.folder / f"labels/p1.{ending}", np.concatenate([MASK, MASK])[:count])
    faults = said(raw)
    assert len(faults) == (0 if count == 5 else 5)
    assert all("slices" in fault for fault in faults)


@pytest.mark.parametrize("signs", [(1, 1, 1), (1, -1, 1), (1, 1, -1)])
def test_orientations_of_image_and_mask(signs: tuple[int, int, int], tmp_path: Path) -> None:
    raw = raw_of(tmp_path, "nii")
    write(raw.folder / "images/p1.nii", VOLUME)
    write(raw.folder / "labels/p1.nii", MASK, np.diag([*np.multiply(signs, (0.5, 0.75, 3)), 1]))
    faults = said(raw)
    assert len(faults) == (0 if signs == (1, 1, 1) else 5)
    assert all("its image with RAS" in fault and "mirrored or turned" in fault for fault in faults)


def test_all_slices_of_a_truncated_file_are_faulty(tmp_path: Path) -> None:
    raw = raw_of(tmp_path, "nii.gz")
    path = raw.folder / "images/p1.nii.gz"
    write(path, VOLUME)
    write(raw.folder / "labels/p1.nii.gz", MASK)
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), 0)[:-200])
    for item in raw.listing().items:
        with pytest.raises(ValueError, match="damaged or truncated"):
            item.read_image()
