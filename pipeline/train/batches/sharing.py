"""Splits the batches of one training between its devices.

`train.batch_size` is the size of a batch on all devices together. Every device computes the order that an epoch would
have on a single device and takes its part of each batch. No image is used twice, and all devices make the same number
of steps.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler

from pipeline.core.errors import PipelineError


@dataclass(frozen=True)
class Share:
    """The part of one device; by default there is only one device."""

    rank: int = 0
    devices: int = 1
    """The number of devices on all machines together."""
    batch: int = 1
    """The number of images per batch on all devices together."""

    def __post_init__(self) -> None:
        if self.batch < self.devices:
            raise PipelineError(
                f"{self.devices} devices (train.devices × train.num_nodes) share batches of {self.batch} "
                f"image{'s' * (self.batch != 1)} (train.batch_size, at most all training images); expected at least "
                "one image per device: use fewer devices or a larger batch."
            )

    @property
    def sizes(self) -> list[int]:
        """The number of images per batch of each device; these differ by at most one."""
        return [self.batch // self.devices + (rank < self.batch % self.devices) for rank in range(self.devices)]

    @property
    def part(self) -> slice:
        """The part of a batch that belongs to this device."""
        first = sum(self.sizes[: self.rank])
        return slice(first, first + self.sizes[self.rank])

    def held_out(self, rows: np.ndarray, batch_size: int) -> np.ndarray:
        """Returns the held-out images of this device. Batches are dealt to the devices in turn; no image is
        repeated."""
        batches = [rows[first : first + batch_size] for first in range(0, len(rows), batch_size)]
        return np.concatenate([rows[:0], *batches[self.rank :: self.devices]])


class SharedBatches(Sampler[list[tuple[int, int]]]):
    """One device's part of each batch of an epoch; an incomplete last batch is dropped."""

    def __init__(self, sampler: Any, share: Share) -> None:
        """Takes the order of an epoch, as an EpochSampler or as a list of the pairs that one yields."""
        self.sampler, self.share = sampler, share  # Lightning sets the epoch of `sampler`

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order, batch = list(self.sampler), self.share.batch  # read here, because the epoch is not known earlier
        for first in range(0, len(self) * batch, batch):
            yield order[first : first + batch][self.share.part]

    def __len__(self) -> int:
        return len(self.sampler) // self.share.batch


class NoImages:
    """The held-out batches of a device that has none: one empty batch, so that the device takes part in validation."""

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        return iter([(torch.empty(0), torch.empty(0))])
