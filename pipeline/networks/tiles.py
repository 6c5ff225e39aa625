"""Predictions of images larger than what the network sees: overlapping tiles, blended smoothly."""

from collections.abc import Callable

import torch

from pipeline.masks.windows import starts
from pipeline.networks.output import Output


def window(tile: tuple[int, int], overlap: float) -> torch.Tensor:
    """Returns the weights (H, W) float32 of a tile's pixels: 1 inside, falling towards the edges over the overlap.

    They are above 0 everywhere, so that a pixel seen by one tile alone gets that tile's value.
    """
    rows, columns = (_falloff(length, overlap) for length in tile)
    return rows[:, None] * columns


@torch.no_grad()
def predict_tiled(
    network: Callable[[torch.Tensor], Output], pixels: torch.Tensor, size: tuple[int, int], overlap: float
) -> Output:
    """Returns logits of the masks (N, classes, H, W) and of presence (N, classes), float32, of pixels (N, C, H, W).

    The network sees tiles of at most `size`, rows × columns, and never more than N at once; a side that is not longer
    than the tile is seen whole. Where tiles overlap, the logits are their weighted mean; a class is as present in an
    image as in the tile where it is most. Without gradients.
    """
    height, width = pixels.shape[2:]
    tile = min(height, size[0]), min(width, size[1])
    if tile == (height, width):
        output = network(pixels)
        return Output(output.mask.float(), None if output.presence is None else output.presence.float())
    weight = window(tile, overlap).to(pixels.device)
    sums, presence, weights = None, None, torch.zeros((height, width), device=pixels.device)
    for top in starts(height, tile[0], overlap):
        for left in starts(width, tile[1], overlap):
            rows, columns = slice(top, top + tile[0]), slice(left, left + tile[1])
            output = network(pixels[:, :, rows, columns])
            logits = output.mask.float()
            if output.presence is not None:
                found = output.presence.float()
                presence = found if presence is None else torch.maximum(presence, found)
            if sums is None:
                sums = logits.new_zeros((*logits.shape[:2], height, width))
            sums[:, :, rows, columns] += logits * weight
            weights[rows, columns] += weight
    assert sums is not None  # there is always a first tile
    return Output(sums.div_(weights), presence)


def _falloff(length: int, overlap: float) -> torch.Tensor:
    # beyond half of the tile the two slopes would cut each other off, and leave a kink in the middle
    slope = max(length * min(overlap, 0.5), 1)
    nearest = torch.arange(length)
    nearest = torch.minimum(nearest, nearest.flip(0)) + 0.5
    return torch.sin(torch.pi / 2 * (nearest / slope).clamp(max=1)) ** 2
