"""Batches from the memory-mapped pixel arrays.

Every random draw derives from (seed, fold, epoch, sample), never from the state of a generator, so a resumed run draws
what an undisturbed one would have drawn, with any number of workers.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from pipeline.augment import Augmentation
from pipeline.targets import mean_mask


def derive_seed(*parts: int) -> int:
    """Returns a 31-bit seed that depends on all the parts."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0] >> 1)


class EpochSampler(Sampler[tuple[int, int]]):
    """Gives (epoch, position) pairs, shuffled anew each epoch; Lightning calls set_epoch."""

    def __init__(self, length: int, seed: int) -> None:
        self.length, self.seed, self.epoch = length, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch that the next pass is for."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.random.default_rng(derive_seed(self.seed, self.epoch)).permutation(self.length)
        return ((self.epoch, int(position)) for position in order)

    def __len__(self) -> int:
        return self.length


class TrainDataset(Dataset):
    """Augmented images (C, H, W) with masks (classes, H, W), both uint8 or uint16, by (epoch, position).

    With a `crop`, rows × columns, each is a random part of that size, and an epoch holds `crops` parts of every image;
    a side that is not larger stays whole.

    `targets` names the rows whose mean mask an image has in place of its own. Where one is the mean of several, all
    masks are float32: a batch has one type.
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
    ) -> None:
        self.images = np.load(folder / "train_images.npy", mmap_mode="r")
        self.masks = np.load(folder / "train_masks.npy", mmap_mode="r")
        self.rows, self.augmentation, self.seed, self.crop, self.crops = rows, augmentation, seed, crop, crops
        self.targets = targets or {}
        self.soft = any(len(sources) > 1 for sources in self.targets.values())

    def __len__(self) -> int:
        return len(self.rows) * self.crops

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        epoch, position = key
        repeat, index = divmod(position, len(self.rows))
        row = int(self.rows[index])
        draw = (self.seed, epoch, row, *((2, repeat) if repeat else ()))
        rows, columns = self._part(derive_seed(*draw, 1))
        # cut before it is copied, so that of a large image only the crop is read from disk
        image, masks = np.array(self.images[row, rows, columns]), self._masks(row, rows, columns)
        image, masks = self.augmentation(image, masks, derive_seed(*draw))
        return _to_tensor(image), torch.from_numpy(np.ascontiguousarray(masks))

    def _masks(self, row: int, rows: slice, columns: slice) -> np.ndarray:
        """Returns what the network learns of this part of an image (C, h, w)."""
        parts = np.stack([self.masks[source, :, rows, columns] for source in self.targets.get(row, [row])])
        return mean_mask(parts) if self.soft else parts[0]

    def _part(self, seed: int) -> tuple[slice, slice]:
        """Returns the rows and columns of the crop that belongs to a seed."""
        if self.crop is None:
            return slice(None), slice(None)
        generator = np.random.default_rng(seed)
        spare = np.maximum(np.subtract(self.images.shape[1:3], self.crop), 0)
        top, left = generator.integers(spare + 1).tolist()
        return slice(top, top + self.crop[0]), slice(left, left + self.crop[1])


class PlainDataset(Dataset):
    """Images (C, H, W) as stored, with masks (classes, H, W) where there are any, by position."""

    def __init__(self, folder: Path, subset: str, rows: np.ndarray, with_masks: bool) -> None:
        self.images = np.load(folder / f"{subset}_images.npy", mmap_mode="r")
        self.masks = np.load(folder / f"{subset}_masks.npy", mmap_mode="r") if with_masks else None
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> tuple[torch.Tensor, ...]:
        row = int(self.rows[position])
        image = _to_tensor(np.array(self.images[row]))
        return (image,) if self.masks is None else (image, torch.from_numpy(np.array(self.masks[row])))


def train_loader(dataset: TrainDataset, batch_size: int, workers: int) -> DataLoader:
    """Returns shuffled batches; an incomplete last batch is left out unless it is the only one."""
    sampler = EpochSampler(len(dataset), dataset.seed)
    drop_last = len(dataset) >= batch_size
    return _loader(dataset, batch_size, workers, sampler=sampler, drop_last=drop_last)


def plain_loader(dataset: PlainDataset, batch_size: int, workers: int) -> DataLoader:
    """Returns batches in order."""
    return _loader(dataset, batch_size, workers)


def _loader(dataset: Dataset, batch_size: int, workers: int, **options: object) -> DataLoader:
    pin = torch.cuda.is_available()
    return DataLoader(
        dataset, batch_size, num_workers=workers, pin_memory=pin, persistent_workers=workers > 0, **options  # type: ignore[arg-type]
    )  # fmt: skip


def _to_tensor(image: np.ndarray) -> torch.Tensor:
    # uint16 tensors support few operations and cannot be pinned by older versions; int32 holds the same values
    array = image.astype(np.int32) if image.dtype == np.uint16 else image
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))
