"""How the devices of one training share its batches.

`train.batch_size` is the size of a batch on all devices together. Every device knows the order of an epoch on one
device, and takes its part of each batch, so that no image is used twice and all make the same number of steps.
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
    """The part of one device; by default the only one there is."""

    rank: int = 0
    devices: int = 1
    """On all machines together."""
    batch: int = 1
    """Images of a batch, on all devices together."""

    def __post_init__(self) -> None:
        if self.batch < self.devices:
            raise PipelineError(
                f"{self.devices} devices (train.devices × train.num_nodes) share batches of {self.batch} "
                f"image{'s' * (self.batch != 1)} (train.batch_size, at most all that are trained on); expected one "
                "image or more for each: use fewer devices or a larger batch."
            )

    @property
    def sizes(self) -> list[int]:
        """How many images of a batch each device has; they differ by one at most."""
        return [self.batch // self.devices + (rank < self.batch % self.devices) for rank in range(self.devices)]

    @property
    def part(self) -> slice:
        """Which images of a batch are this device's."""
        first = sum(self.sizes[: self.rank])
        return slice(first, first + self.sizes[self.rank])

    def held_out(self, rows: np.ndarray, batch_size: int) -> np.ndarray:
        """Returns this device's held-out images: of all whole batches in order, every so many-th, each once."""
        batches = [rows[first : first + batch_size] for first in range(0, len(rows), batch_size)]
        return np.concatenate([rows[:0], *batches[self.rank :: self.devices]])


class SharedBatches(Sampler[list[tuple[int, int]]]):
    """One device's part of each batch of an epoch; an incomplete last batch is left out."""

    def __init__(self, sampler: Any, share: Share) -> None:
        """Takes the order of an epoch: EpochSampler, or a list of what it gives."""
        self.sampler, self.share = sampler, share  # Lightning tells `sampler` the epoch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order, batch = list(self.sampler), self.share.batch  # at the first batch: only then is the epoch known
        for first in range(0, len(self) * batch, batch):
            yield order[first : first + batch][self.share.part]

    def __len__(self) -> int:
        return len(self.sampler) // self.share.batch


class NoImages:
    """The held-out batches of a device for which there are none: one without an image, so that it takes part."""

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        return iter([(torch.empty(0), torch.empty(0))])
