"""Predicts images that are larger than the network's input, with overlapping tiles that are blended smoothly."""

from collections.abc import Callable

import torch

from pipeline.masks.windows import starts
from pipeline.networks.output import Output


def window(tile: tuple[int, int], overlap: float) -> torch.Tensor:
    """Returns the weights (H, W) float32 of a tile's pixels: 1 inside, falling towards the edges over the overlap.

    They are above 0 everywhere, so that a pixel in only one tile gets the value of that tile.
    """
    rows, columns = (_falloff(length, overlap) for length in tile)
    return rows[:, None] * columns


@torch.no_grad()
def predict_tiled(
    network: Callable[[torch.Tensor], Output], pixels: torch.Tensor, size: tuple[int, int], overlap: float
) -> Output:
    """Returns logits of the masks (N, classes, H, W) and of presence (N, classes), float32, of pixels (N, C, H, W).

    The network sees tiles of at most `size`, rows × columns, and at most N tiles at once. A side that is not longer
    than the tile is not cut. Where tiles overlap, their logits are averaged with weights. The presence of a class in an
    image is the maximum over its tiles. No gradients are computed.
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
                in_tile = output.presence.float()
                presence = in_tile if presence is None else torch.maximum(presence, in_tile)
            if sums is None:
                sums = logits.new_zeros((*logits.shape[:2], height, width))
            sums[:, :, rows, columns] += logits * weight
            weights[rows, columns] += weight
    assert sums is not None  # there is at least one tile
    return Output(sums.div_(weights), presence)


def _falloff(length: int, overlap: float) -> torch.Tensor:
    # slopes longer than half of the tile would meet in the middle and leave a kink
    slope = max(length * min(overlap, 0.5), 1)
    nearest = torch.arange(length)
    nearest = torch.minimum(nearest, nearest.flip(0)) + 0.5
    return torch.sin(torch.pi / 2 * (nearest / slope).clamp(max=1)) ** 2
