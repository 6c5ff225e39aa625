"""Views of an image for test-time augmentation, and their inverses."""

from dataclasses import dataclass

import torch

FLIPS: dict[str, tuple[tuple[int, ...], ...]] = {
    "none": ((),),
    "hflip": ((), (3,)),
    "flips": ((), (3,), (2,), (2, 3)),
    "d4": ((), (3,), (2,), (2, 3)),
}
"""The axes of (N, C, H, W) that each view mirrors. Mirroring both is a rotation by 180°."""


@dataclass(frozen=True)
class View:
    """A symmetry of the rectangle or, with `transposed`, of the square. Pixels move but their values do not change."""

    axes: tuple[int, ...] = ()
    """The axes that are mirrored, before transposing."""
    transposed: bool = False
    """Whether rows and columns are then exchanged. Together with one mirrored axis, this is a rotation by 90°."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Returns the pixels (N, C, H, W) of the view; (N, C, W, H) if transposed."""
        flipped = pixels.flip(self.axes)
        return flipped.mT if self.transposed else flipped

    def inverse(self, seen: torch.Tensor) -> torch.Tensor:
        """Returns a view, or a network's output for it, moved back to the positions of the original pixels."""
        return (seen.mT if self.transposed else seen).flip(self.axes)

    def size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Returns the size of the view, rows × columns, from that of the image."""
        return size[::-1] if self.transposed else size


def views(name: str) -> tuple[View, ...]:
    """Returns the views of `predict.tta`, the unchanged image first: 1 for none, 2 for hflip, 4 for flips, 8 for d4."""
    mirrored = tuple(View(axes) for axes in FLIPS[name])
    return (*mirrored, *(View(view.axes, transposed=True) for view in mirrored)) if name == "d4" else mirrored
