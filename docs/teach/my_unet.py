"""Your own U-Net: fill in the six holes, from `TODO 1` to `TODO 6`. The exercise's text is docs/teach/my-unet.md.

cp docs/teach/my_unet.py my_unet.py               # beside input/ and work/
python -m pipeline check-model my_unet:UNet
"""

import torch
from torch import Tensor, nn


class DoubleConv(nn.Module):
    """Two 3×3 convolutions, each followed by BatchNorm and ReLU: (N, inputs, H, W) to (N, outputs, H, W)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        # The size must stay the same. BatchNorm shifts, so the convolution before it needs no bias.
        raise NotImplementedError(
            "TODO 1: self.layers = nn.Sequential(…), twice Conv2d with padding=1, BatchNorm2d, ReLU"
        )

    def forward(self, features: Tensor) -> Tensor:
        """Returns the features after both convolutions."""
        return self.layers(features)


class Down(nn.Module):
    """One level down: half the size, other channels. (N, inputs, H, W) to (N, outputs, H/2, W/2)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2)
        self.convolutions = DoubleConv(inputs, outputs)

    def forward(self, features: Tensor) -> Tensor:
        """Returns the features of the level below."""
        raise NotImplementedError("TODO 2: halve the size with self.pool, then apply self.convolutions")


class Up(nn.Module):
    """One level up: twice the size, joined with the encoder's features of that size.

    (N, inputs, H, W) and the skip (N, skip, 2H, 2W) to (N, outputs, 2H, 2W).
    """

    def __init__(self, inputs: int, skip: int, outputs: int) -> None:
        super().__init__()
        self.upsample = nn.Upsample(scale_factor=2, mode="bilinear")
        # How many channels are there once the upsampled features and the skip stand side by side?
        raise NotImplementedError("TODO 3: self.convolutions = DoubleConv(channels after joining, outputs)")

    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        """Returns the features of the level above."""
        raise NotImplementedError("TODO 4: upsample, join with the skip by torch.cat along the channels, then convolve")


class UNet(nn.Module):
    """A U-Net with three levels below the first: images (N, channels, H, W) to logits (N, classes, H, W).

    Args:
        channels: of the images; the pipeline gives it.
        classes: one logit each; the pipeline gives it.
        width: channels of the first level; every level below has twice as many.
        dropout: share of the channels that are dropped in front of the last convolution, in training.
    """

    def __init__(self, channels: int, classes: int, width: int = 16, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = DoubleConv(channels, width)
        self.down = nn.ModuleList(Down(width * 2**level, width * 2 ** (level + 1)) for level in range(3))
        self.up = nn.ModuleList(
            Up(width * 2 ** (level + 1), width * 2**level, width * 2**level) for level in reversed(range(3))
        )
        # A Dropout2d of the share `dropout`, and a 1×1 convolution to one logit per class.
        raise NotImplementedError("TODO 5: self.dropout = … and self.head = …")

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits: no sigmoid and no softmax, as the loss and the threshold of the pipeline do that."""
        skips = [self.first(images)]
        for down in self.down:
            skips.append(down(skips[-1]))
        features = skips.pop()  # of the lowest level
        raise NotImplementedError(
            "TODO 6: go up, each level with the last skip that is left, then self.dropout and self.head"
        )
