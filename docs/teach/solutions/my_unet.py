"""A solution of docs/teach/my_unet.py."""

import torch
from torch import Tensor, nn


class DoubleConv(nn.Module):
    """Two 3×3 convolutions, each followed by BatchNorm and ReLU: (N, inputs, H, W) to (N, outputs, H, W)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
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
        return self.convolutions(self.pool(features))


class Up(nn.Module):
    """One level up: twice the size, joined with the encoder's features of that size.

    (N, inputs, H, W) and the skip (N, skip, 2H, 2W) to (N, outputs, 2H, 2W).
    """

    def __init__(self, inputs: int, skip: int, outputs: int) -> None:
        super().__init__()
        self.upsample = nn.Upsample(scale_factor=2, mode="bilinear")
        self.convolutions = DoubleConv(inputs + skip, outputs)

    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        """Returns the features of the level above."""
        return self.convolutions(torch.cat([self.upsample(features), skip], dim=1))


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
        self.dropout = nn.Dropout2d(dropout)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits: no sigmoid and no softmax, as the loss and the threshold of the pipeline do that."""
        skips = [self.first(images)]
        for down in self.down:
            skips.append(down(skips[-1]))
        features = skips.pop()  # of the lowest level
        for up in self.up:
            features = up(features, skips.pop())
        return self.head(self.dropout(features))
