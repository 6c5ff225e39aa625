"""Batches of augmented training images from the memory-mapped pixel arrays.

Every random draw is derived from (seed, fold, epoch, sample) and never from the state of a generator. A resumed run
therefore makes the same draws as an uninterrupted one, with any number of workers.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from pipeline.core.config.competition import Kind
from pipeline.core.intact import read_array
from pipeline.masks.geometry import IGNORE, with_border
from pipeline.masks.pixels import loaded
from pipeline.masks.scale import Scale
from pipeline.networks.loader import MasksAndSeparators, make_loader, open_masks, to_tensor
from pipeline.networks.transforms import Preprocess
from pipeline.train.batches.augment import Augmentation
from pipeline.train.batches.mix import Mixer, Pair
from pipeline.train.batches.sampling import EpochSampler, derive_seed
from pipeline.train.batches.sharing import Share, SharedBatches
from pipeline.train.batches.targets import mean_mask


class Batch(NamedTuple):
    """Training images with their targets."""

    pixels: torch.Tensor
    """(N, C, H, W) uint8; int32 if the pixel arrays are uint16, float32 if they are float16."""
    masks: torch.Tensor
    """(N, classes, H, W) uint8 or float32; with model.instances (N, 2 · classes, H, W), separators last."""
    rows: torch.Tensor
    """(N,) rows of the training table; for a test image with pseudo-labels, -1 - row of the test table."""
    weights: torch.Tensor
    """(N,) float32 weights of the images in the loss."""


@dataclass(frozen=True)
class PseudoLabels:
    """Test images with the predictions of another run: those of its same fold or, for a final model, of all folds."""

    predictions: list[np.ndarray]
    """Arrays (N, C, H, W) in the competition's scale, which are averaged."""
    weight: float
    min_confidence: float
    kind: Kind
    scale: Scale
    boxes: np.ndarray | None = None
    """(N, 4) int64, the positions of the images: top, left, height, width. Pixels outside are ignored. None if all
    pixels count."""

    @property
    def soft(self) -> bool:
        """Whether the labels are probabilities; in a multiclass competition a pixel has one class or is ignored."""
        return self.kind != "multiclass"

    def masks(self, row: int, part: tuple[slice, slice]) -> np.ndarray:
        """Returns labels (C, h, w) float32, or (1, h, w) uint8 for a multiclass competition; 255 where the confidence
        is below `min_confidence`."""
        values = np.asarray(
            np.mean([array[(row, slice(None), *part)] for array in self.predictions], axis=0, dtype=np.float32)
        )
        values = self.scale.probability(values)
        if self.soft:
            labels = values
            confidence = np.maximum(labels, 1 - labels)
        else:
            labels, confidence = values.argmax(0)[None].astype(np.uint8), values.max(0)[None]
        labels[np.broadcast_to(confidence < self.min_confidence, labels.shape)] = IGNORE
        if self.boxes is not None:
            top, left, height, width = self.boxes[row].tolist()
            outside = np.ones(self.predictions[0].shape[2:], bool)
            outside[top : top + height, left : left + width] = False
            labels[:, outside[part]] = IGNORE
        return labels


@dataclass(frozen=True)
class Placing:
    """The positions of images in the padded pixel arrays, so that training can move them: `image.position: random`."""

    boxes: np.ndarray
    """(N, 4) int64, one box per row of the table: top, left, height, width."""
    border: str

    def move(self, image: np.ndarray, masks: np.ndarray, row: int, seed: int) -> Pair:
        """Returns the image and its masks at a random position inside the border of `image.fit: pad`."""
        (top, left, height, width), shape = self.boxes[row].tolist(), image.shape[:2]
        generator = np.random.default_rng(seed)
        spare = np.array([shape[0] - height, shape[1] - width])
        above, before = generator.integers(spare + 1).tolist()
        margins = above, int(spare[0]) - above, before, int(spare[1]) - before
        inside = slice(top, top + height), slice(left, left + width)
        moved = with_border(image[inside], margins, self.border, 0).reshape(image.shape)
        return moved, np.stack([with_border(plane[inside], margins, self.border, IGNORE) for plane in masks])


class TrainDataset(Dataset):
    """Augmented images with their masks, by (epoch, position): the images of `rows`, then all pseudo-labelled test
    images.

    With a `crop`, rows × columns, each sample is a random part of that size, and an epoch has `crops` parts per image.
    A side that is not longer than the crop is not cut.

    `targets` gives the rows whose mean mask replaces an image's own. If a target is the mean of several masks, or if
    masks get values other than 0 and 1 in another way, all masks are float32, because a batch has one dtype.
    `separators` is the file with the separators of objects; its planes follow those of the masks and move with them.
    """

    def __init__(
        self,
        folder: Path,
        rows: np.ndarray,
        augmentation: Augmentation,
        seed: int,
        crop: tuple[int, int] | None = None,
        crops: int = 1,
        targets: dict[int, np.ndarray] | None = None,
        *,
        preprocess: Preprocess | None = None,
        placing: Placing | None = None,
        mixer: Mixer | None = None,
        pseudo: PseudoLabels | None = None,
        separators: Path | None = None,
    ) -> None:
        self.folder, self.separators = folder, separators
        self.images = read_array(folder / "train_images.npy")
        self.masks = open_masks(folder, separators)
        self.rows, self.augmentation, self.seed, self.crop, self.crops = rows, augmentation, seed, crop, crops
        self.targets, self.preprocess, self.placing, self.mixer = targets or {}, preprocess, placing, mixer
        self.pseudo = pseudo
        self.test_images = read_array(folder / "test_images.npy") if pseudo else None
        self.soft = (
            any(len(sources) > 1 for sources in self.targets.values())
            or bool(pseudo and pseudo.soft)
            or bool(mixer and mixer.soft)
            or (isinstance(self.masks, MasksAndSeparators) and self.masks.separator == "distance")
        )

    @property
    def samples(self) -> np.ndarray:
        """The row of each position of an epoch (M,) int64; -1 - row for a test image."""
        tests = np.arange(0 if self.test_images is None else len(self.test_images))
        return np.tile(np.concatenate([self.rows, -1 - tests]), self.crops)

    def __len__(self) -> int:
        tests = 0 if self.test_images is None else len(self.test_images)
        return (len(self.rows) + tests) * self.crops

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        epoch, position = key
        repeat, index = divmod(position, len(self) // self.crops)
        row = int(self.rows[index]) if index < len(self.rows) else len(self.rows) - 1 - index
        # the draw depends on the image and not on its position, so that excluding another image does not change it
        draw = (self.seed, epoch, row if row >= 0 else 2**30 - row, *((2, repeat) if repeat else ()))
        image, masks = self._augmented(row, draw)
        if self.mixer:
            chosen = self.mixer.partner(derive_seed(*draw, 3), len(self.rows))
            if chosen:
                other = self._augmented(int(self.rows[chosen[1]]), (*draw, 4))
                image, masks = self.mixer.apply(chosen[0], (image, masks), other, derive_seed(*draw, 5))
        weight = self.pseudo.weight if self.pseudo and row < 0 else 1.0
        masks = masks.astype(np.float32, copy=False) if self.soft else masks
        target = torch.from_numpy(np.ascontiguousarray(masks))
        return Batch(to_tensor(image), target, torch.tensor(row), torch.tensor(weight))

    def _augmented(self, row: int, draw: tuple[int, ...]) -> Pair:
        part = self._part(derive_seed(*draw, 1))
        source, number = (self.images, row) if row >= 0 else (self.test_images, -1 - row)
        assert source is not None
        if self.preprocess:  # the result for a pixel may depend on the whole image
            image = self.preprocess(loaded(source[number]))[part]
        else:  # cropped before copying, so that only the crop of a large image is read from disk
            image = loaded(source[(number, *part)])
        masks = self._masks(row, *part) if row >= 0 or not self.pseudo else self.pseudo.masks(number, part)
        if self.placing and row >= 0:
            image, masks = self.placing.move(image, masks, row, derive_seed(*draw, 6))
        return self.augmentation(image, masks, derive_seed(*draw))

    def _masks(self, row: int, rows: slice, columns: slice) -> np.ndarray:
        """Returns the target masks (C, h, w) of a part of an image."""
        parts = np.stack([self.masks[source, :, rows, columns] for source in self.targets.get(row, [row])])
        return mean_mask(parts) if len(parts) > 1 else parts[0]

    def _part(self, seed: int) -> tuple[slice, slice]:
        """Returns the rows and columns of the random crop that a seed determines."""
        if self.crop is None:
            return slice(None), slice(None)
        generator = np.random.default_rng(seed)
        spare = np.maximum(np.subtract(self.images.shape[1:3], self.crop), 0)
        top, left = generator.integers(spare + 1).tolist()
        return slice(top, top + self.crop[0]), slice(left, left + self.crop[1])


def train_loader(
    dataset: TrainDataset, batch_size: int, workers: int, sampler: Any = None, rank: int = 0, devices: int = 1
) -> DataLoader:
    """Returns a loader of shuffled batches; an incomplete last batch is dropped unless it is the only one.

    Args:
        dataset: the images.
        batch_size: the number of images per batch, on all devices together.
        workers: the number of loader processes.
        sampler: the order of an epoch: an EpochSampler (by default without weights and groups), or a list of the pairs
            that one yields.
        rank: the number of this device, which gets its part of each batch; see `batch_sampler.share`.
        devices: the number of devices.

    Raises:
        PipelineError: a batch has fewer images than there are devices.
    """
    sampler = sampler or EpochSampler(len(dataset), dataset.seed)
    share = Share(rank, devices, min(batch_size, len(sampler)))
    return make_loader(dataset, 1, workers, batch_sampler=SharedBatches(sampler, share))
