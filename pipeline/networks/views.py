"""Views of an image for test-time augmentation, and the way back from each."""

from dataclasses import dataclass

import torch

FLIPS: dict[str, tuple[tuple[int, ...], ...]] = {
    "none": ((),),
    "hflip": ((), (3,)),
    "flips": ((), (3,), (2,), (2, 3)),
    "d4": ((), (3,), (2,), (2, 3)),
}
"""The axes of (N, C, H, W) that each view mirrors; both are a turn by 180°."""


@dataclass(frozen=True)
class View:
    """One symmetry of the rectangle or, with `transposed`, of the square: pixels move, and no value changes."""

    axes: tuple[int, ...] = ()
    """Those that are mirrored, first."""
    transposed: bool = False
    """Whether rows and columns then change places; with one axis mirrored, that is a turn by 90°."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Returns pixels (N, C, H, W) as the network shall see them, (N, C, W, H) where transposed."""
        flipped = pixels.flip(self.axes)
        return flipped.mT if self.transposed else flipped

    def inverse(self, seen: torch.Tensor) -> torch.Tensor:
        """Returns what forward made, or a network of that, in the place of the image's own pixels."""
        return (seen.mT if self.transposed else seen).flip(self.axes)

    def size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Returns rows × columns of the image as rows × columns of the view."""
        return size[::-1] if self.transposed else size


def views(name: str) -> tuple[View, ...]:
    """Returns the views of `predict.tta`, the image as it is first: 1 for none, 2 for hflip, 4 for flips, 8 for d4."""
    found = tuple(View(axes) for axes in FLIPS[name])
    return (*found, *(View(view.axes, transposed=True) for view in found)) if name == "d4" else found
