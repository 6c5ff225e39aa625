"""A few images with the probabilities that the bundled networks gave when the bundle was written.

Another version of timm, of OpenCV or of torch, or another number format, can change predictions without an error. The
notebook predicts these images first and compares.
"""

import tempfile
import zipfile
import zlib
from dataclasses import dataclass, fields
from pathlib import Path

import cv2
import numpy as np

from pipeline.core.errors import PipelineError
from pipeline.core.files import writing
from pipeline.core.intact import read_array
from pipeline.core.run import Run
from pipeline.masks.scale import scale_of
from pipeline.networks.predictor import batches
from pipeline.networks.views import views

IMAGES = 20


@dataclass(frozen=True)
class CanaryRun(Run):
    """A run whose test images are these."""

    place: Path = Path()

    @property
    def pixels(self) -> Path:
        """Where test_images.npy lies."""
        return self.place


def write(run: Run, path: Path, pixel_type: str, used: Run | None = None) -> None:
    """Writes images and what a run predicts of them: test images where decode has read some, or else noise.

    Args:
        run: whose networks predict.
        path: the .npz.
        pixel_type: uint8 or uint16, what the networks were trained on.
        used: the run as the bundle holds it, where its weights are not the same ones.
    """
    images = _images(run, pixel_type)
    with writing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, images=images, probabilities=predict(used or run, images))


def difference(run: Run, path: Path) -> float:
    """Returns by how much a run's predictions differ on average, from 0 to 1, from those that were written.

    Raises:
        PipelineError: the file is damaged, or the networks cannot predict.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            images, before = stored["images"], stored["probabilities"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        raise PipelineError(f"{path} is missing or damaged: write the bundle again.") from None
    now, scale = predict(run, images), scale_of(run.competition)
    return float(np.abs(now.astype(np.float32) - before.astype(np.float32)).mean() / scale.largest)


def predict(run: Run, images: np.ndarray) -> np.ndarray:
    """Returns the mean probabilities (N, C, H, W) of images (N, H, W, channels) as stored ones, without test-time
    augmentation, over all folds and seeds."""
    sums = None
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "test_images.npy", images)
        there = CanaryRun(**{field.name: getattr(run, field.name) for field in fields(Run)}, place=Path(folder))
        rows, ids = np.arange(len(images)), [f"canary {number}" for number in range(len(images))]
        folds = run.test_folds()
        for fold in folds:
            found = batches(there, run.members(fold), views("none"), False, "test", rows, ids)
            one = np.concatenate([mask for ((mask, _),) in found]).astype(np.float32)
            sums = one if sums is None else sums + one
    assert sums is not None
    scale = scale_of(run.competition)
    return scale.stored(sums / len(folds) / scale.largest)


def _images(run: Run, pixel_type: str) -> np.ndarray:
    """Test images at the size of the pixel arrays, evenly chosen, or noise of several scales."""
    path = run.pixels / "test_images.npy"
    if path.exists() and len(array := read_array(path)) and str(array.dtype) == pixel_type:
        rows = np.unique(np.linspace(0, len(array) - 1, IMAGES).astype(int))
        return np.array(array[rows])
    random, (height, width) = np.random.default_rng(0), run.recipe.image.stored
    images = np.zeros((IMAGES, height, width, run.recipe.image.channels), np.float32)
    for image in images:
        for cells in (2, 8, 32):
            coarse = random.random((cells, cells, run.recipe.image.channels), np.float32)
            image += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR).reshape(image.shape)
    largest = np.iinfo(pixel_type).max
    return (images / images.max() * largest).astype(pixel_type)
