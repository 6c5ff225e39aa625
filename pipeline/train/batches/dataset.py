"""Batches of augmented training images from the memory-mapped pixel arrays.

Every random draw derives from (seed, fold, epoch, sample), never from the state of a generator, so a resumed run draws
what an undisturbed one would have drawn, with any number of workers.
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
    """Training images with what they learn."""

    pixels: torch.Tensor
    """(N, C, H, W) uint8, int32 where the pixel arrays are uint16, or float32 where they are float16."""
    masks: torch.Tensor
    """(N, classes, H, W) uint8 or float32; with model.instances (N, 2 · classes, H, W), separators last."""
    rows: torch.Tensor
    """(N,) rows of the training table; -1 - row of a test image that another run has labelled."""
    weights: torch.Tensor
    """(N,) float32, what each counts in the loss."""


@dataclass(frozen=True)
class PseudoLabels:
    """Test images and what another run says about them: the same fold of it, or, for a final model, all of them."""

    predictions: list[np.ndarray]
    """Each (N, C, H, W), in the competition's scale; their mean counts."""
    weight: float
    min_confidence: float
    kind: Kind
    scale: Scale
    boxes: np.ndarray | None = None
    """(N, 4) int64, where the images lie: top, left, height, width; what lies around is ignored. None: all counts."""

    @property
    def soft(self) -> bool:
        """Whether the labels are probabilities: a multiclass pixel has one class or none."""
        return self.kind != "multiclass"

    def masks(self, row: int, part: tuple[slice, slice]) -> np.ndarray:
        """Returns labels (C, h, w) float32, or (1, h, w) uint8 of a multiclass competition; 255 where unsure."""
        values = np.asarray(
            np.mean([one[(row, slice(None), *part)] for one in self.predictions], axis=0, dtype=np.float32)
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
    """Where images lie in the pixel arrays, so that training can move them: `image.position: random`."""

    boxes: np.ndarray
    """(N, 4) int64 of every row: top, left, height, width."""
    border: str

    def move(self, image: np.ndarray, masks: np.ndarray, row: int, seed: int) -> Pair:
        """Returns the image and its masks with the border of `image.fit: pad` at another place."""
        (top, left, height, width), shape = self.boxes[row].tolist(), image.shape[:2]
        generator = np.random.default_rng(seed)
        spare = np.array([shape[0] - height, shape[1] - width])
        above, before = generator.integers(spare + 1).tolist()
        margins = above, int(spare[0]) - above, before, int(spare[1]) - before
        inside = slice(top, top + height), slice(left, left + width)
        moved = with_border(image[inside], margins, self.border, 0).reshape(image.shape)
        return moved, np.stack([with_border(plane[inside], margins, self.border, IGNORE) for plane in masks])


class TrainDataset(Dataset):
    """Augmented images with their masks, by (epoch, position): those of `rows`, then all test images with a label.

    With a `crop`, rows × columns, each is a random part of that size, and an epoch holds `crops` parts of every image;
    a side that is not larger stays whole.

    `targets` names the rows whose mean mask an image has in place of its own. Where one is the mean of several, or
    anything else makes masks of more than 0 and 1, all masks are float32: a batch has one type. `separators` is a file
    of what separates objects; its planes follow those of the masks, and move with them.
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
        """Of every position of an epoch (M,) int64: its row, or -1 - row of a test image."""
        tests = np.arange(0 if self.test_images is None else len(self.test_images))
        return np.tile(np.concatenate([self.rows, -1 - tests]), self.crops)

    def __len__(self) -> int:
        tests = 0 if self.test_images is None else len(self.test_images)
        return (len(self.rows) + tests) * self.crops

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        epoch, position = key
        repeat, index = divmod(position, len(self) // self.crops)
        row = int(self.rows[index]) if index < len(self.rows) else len(self.rows) - 1 - index
        # the draw belongs to the image and not to its place, so that leaving another out does not change it
        draw = (self.seed, epoch, row if row >= 0 else 2**30 - row, *((2, repeat) if repeat else ()))
        image, masks = self._augmented(row, draw)
        if self.mixer:
            chosen = self.mixer.partner(derive_seed(*draw, 3), len(self.rows))
            if chosen:
                other = self._augmented(int(self.rows[chosen[1]]), (*draw, 4))
                image, masks = self.mixer.apply(chosen[0], (image, masks), other, derive_seed(*draw, 5))
        weight = self.pseudo.weight if self.pseudo and row < 0 else 1.0
        masks = masks.astype(np.float32, copy=False) if self.soft else masks
        learned = torch.from_numpy(np.ascontiguousarray(masks))
        return Batch(to_tensor(image), learned, torch.tensor(row), torch.tensor(weight))

    def _augmented(self, row: int, draw: tuple[int, ...]) -> Pair:
        part = self._part(derive_seed(*draw, 1))
        source, number = (self.images, row) if row >= 0 else (self.test_images, -1 - row)
        assert source is not None
        if self.preprocess:  # what it makes of a pixel may depend on the whole image
            image = self.preprocess(loaded(source[number]))[part]
        else:  # cut before it is copied, so that of a large image only the crop is read from disk
            image = loaded(source[(number, *part)])
        masks = self._masks(row, *part) if row >= 0 or not self.pseudo else self.pseudo.masks(number, part)
        if self.placing and row >= 0:
            image, masks = self.placing.move(image, masks, row, derive_seed(*draw, 6))
        return self.augmentation(image, masks, derive_seed(*draw))

    def _masks(self, row: int, rows: slice, columns: slice) -> np.ndarray:
        """Returns what the network learns of this part of an image (C, h, w)."""
        parts = np.stack([self.masks[source, :, rows, columns] for source in self.targets.get(row, [row])])
        return mean_mask(parts) if len(parts) > 1 else parts[0]

    def _part(self, seed: int) -> tuple[slice, slice]:
        """Returns the rows and columns of the crop that belongs to a seed."""
        if self.crop is None:
            return slice(None), slice(None)
        generator = np.random.default_rng(seed)
        spare = np.maximum(np.subtract(self.images.shape[1:3], self.crop), 0)
        top, left = generator.integers(spare + 1).tolist()
        return slice(top, top + self.crop[0]), slice(left, left + self.crop[1])


def train_loader(
    dataset: TrainDataset, batch_size: int, workers: int, sampler: Any = None, rank: int = 0, devices: int = 1
) -> DataLoader:
    """Returns shuffled batches; an incomplete last batch is left out unless it is the only one.

    Args:
        dataset: the images.
        batch_size: images of a batch, on all devices together.
        workers: processes that load.
        sampler: the order of an epoch, EpochSampler (by default without weights and groups) or a list of what it gives.
        rank: which of the devices this is; it gets its part of each batch, which `batch_sampler.share` describes.
        devices: how many there are.

    Raises:
        PipelineError: a batch has fewer images than there are devices.
    """
    sampler = sampler or EpochSampler(len(dataset), dataset.seed)
    share = Share(rank, devices, min(batch_size, len(sampler)))
    return make_loader(dataset, 1, workers, batch_sampler=SharedBatches(sampler, share))
