"""Batches of unaugmented images from the memory-mapped pixel arrays, and the number of loader processes."""

import sys
from collections.abc import Callable, Iterator
from mmap import mmap
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from pipeline.core.engine import cores
from pipeline.core.intact import read_array
from pipeline.core.run import Run
from pipeline.masks.pixels import loaded
from pipeline.masks.separators import Separator, learned
from pipeline.networks.device import Compute


class MasksAndSeparators:
    """Masks and separators of their objects, read like one array (N, 2 · classes, H, W): uint8, or float32 if the
    separators are distances."""

    def __init__(self, masks: np.ndarray, targets: np.ndarray, separator: Separator) -> None:
        """Takes masks and separators as arrays (N, classes, H, W), as decode writes them."""
        self.masks, self.targets, self.separator = masks, targets, separator

    def __getitem__(self, key: Any) -> np.ndarray:
        """Returns a part (…, 2 · classes, h, w); the key must not select classes."""
        return np.concatenate([self.masks[key], learned(self.targets[key], self.separator)], axis=-3)


Masks = np.ndarray | MasksAndSeparators


def open_masks(folder: Path, separators: Path | None) -> Masks:
    """Returns the training targets, memory-mapped from the files in a folder of pixel arrays: the masks, with the
    separators of their objects if a file of these is given."""
    masks = read_array(folder / "train_masks.npy")
    if separators is None:
        return masks
    separator: Separator = "border" if separators.stem == "train_border" else "distance"
    return MasksAndSeparators(masks, read_array(separators), separator)


class PlainDataset(Dataset):
    """Images (C, H, W) as stored, optionally with masks (classes, H, W), by position.

    If `separators`, the file with the separators of the objects, is given, its planes follow those of the masks.
    """

    def __init__(
        self,
        folder: Path,
        subset: str,
        rows: np.ndarray,
        with_masks: bool,
        preprocess: Callable[[np.ndarray], np.ndarray] | None = None,
        separators: Path | None = None,
    ) -> None:
        self.images = read_array(folder / f"{subset}_images.npy")
        self.masks = open_masks(folder, separators) if with_masks else None
        self.rows, self.preprocess = rows, preprocess

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> tuple[torch.Tensor, ...]:
        row = int(self.rows[position])
        image = loaded(self.images[row])
        pixels = to_tensor(self.preprocess(image) if self.preprocess else image)
        return (pixels,) if self.masks is None else (pixels, torch.from_numpy(np.array(self.masks[row])))


class ResidentBatches:
    """Batches in order, from images that stay on the device, so that no epoch but the first reads or transfers them."""

    def __init__(self, dataset: PlainDataset, batch_size: int, device: torch.device) -> None:
        shape = (len(dataset),)
        self.tensors = [torch.empty(shape + item.shape, dtype=item.dtype, device=device) for item in dataset[0]]
        for position in range(len(dataset)):
            for tensor, item in zip(self.tensors, dataset[position], strict=True):
                tensor[position] = item
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.tensors[0]) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        return zip(*(tensor.split(self.batch_size) for tensor in self.tensors), strict=True)


def fits(dataset: PlainDataset, device: torch.device) -> bool:
    """Returns whether all images and masks fit into a quarter of the GPU's free memory."""
    if device.type != "cuda" or not len(dataset):
        return False
    needed = len(dataset) * sum(tensor.nbytes for tensor in dataset[0])
    return needed <= torch.cuda.mem_get_info(device)[0] // 4


def plain_loader(dataset: PlainDataset, batch_size: int, workers: int) -> DataLoader:
    """Returns a loader of batches in order."""
    return make_loader(dataset, batch_size, workers)


def loader_workers(run: Run, compute: Compute) -> int:
    """Returns the recipe's number of loader processes; by default 0 on a CPU, because the network uses its cores."""
    if run.recipe.train.workers is not None:
        return run.recipe.train.workers
    if compute.accelerator == "cpu":
        return 0
    return max(1, min(16, cores()))


def make_loader(dataset: Dataset, batch_size: int, workers: int, **options: object) -> DataLoader:
    """Returns a loader of a dataset with `workers` processes; further options are those of DataLoader."""
    pin = torch.cuda.is_available()
    # Python's default on Linux before 3.14; other start methods are slow
    context = "fork" if workers and sys.platform == "linux" else None
    return DataLoader(
        dataset, batch_size, num_workers=workers, pin_memory=pin, persistent_workers=workers > 0,
        multiprocessing_context=context, **options,  # type: ignore[arg-type]
    )  # fmt: skip


def _reopened(array: np.memmap) -> tuple[Any, ...]:
    """Returns how to pickle a pixel array for a process that is not forked: the process opens the file itself."""
    whole = isinstance(array.base, mmap)
    return (np.load, (array.filename, "r")) if whole else np.asarray(array).__reduce__()  # type: ignore[return-value]


ForkingPickler.register(np.memmap, _reopened)


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """Returns an image (H, W, C) as a tensor (C, H, W) of the same dtype, except that uint16 becomes int32."""
    # uint16 tensors support few operations and cannot be pinned by older versions; int32 holds the same values
    array = image.astype(np.int32) if image.dtype == np.uint16 else image
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))
