"""The canary: a few images with the probabilities that the networks predicted when the bundle was written.

Another version of timm, OpenCV or torch, or another number format, can change predictions without an error. The
notebook therefore predicts these images first and compares the probabilities.
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
    """A run whose test images are those of the canary."""

    place: Path = Path()

    @property
    def pixels(self) -> Path:
        """The folder of test_images.npy."""
        return self.place


def write(run: Run, path: Path, pixel_type: str, used: Run | None = None) -> None:
    """Writes images and a run's predictions for them. The images are test images if decode has read some, else noise.

    Args:
        run: the run whose networks predict.
        path: the .npz file to write.
        pixel_type: uint8 or uint16, the type of the training images.
        used: the run as stored in the bundle, if its weights differ (fp16).
    """
    images = _images(run, pixel_type)
    with writing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, images=images, probabilities=predict(used or run, images))


def difference(run: Run, path: Path) -> float:
    """Returns the mean absolute difference (0 to 1) between a run's predictions and the stored ones.

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
    """Returns the probabilities (N, C, H, W), in their storage format, of images (N, H, W, channels).

    They are the mean over all folds and seeds, without test-time augmentation.
    """
    sums = None
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "test_images.npy", images)
        canary_run = CanaryRun(**{field.name: getattr(run, field.name) for field in fields(Run)}, place=Path(folder))
        rows, ids = np.arange(len(images)), [f"canary {number}" for number in range(len(images))]
        folds = run.test_folds()
        for fold in folds:
            predicted = batches(canary_run, run.members(fold), views("none"), False, "test", rows, ids)
            probabilities = np.concatenate([mask for ((mask, _),) in predicted]).astype(np.float32)
            sums = probabilities if sums is None else sums + probabilities
    assert sums is not None
    scale = scale_of(run.competition)
    return scale.stored(sums / len(folds) / scale.largest)


def _images(run: Run, pixel_type: str) -> np.ndarray:
    """Evenly chosen test images at network size, or noise of several scales."""
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
