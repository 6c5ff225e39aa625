"""The classes that timm's classifiers recognise in photographs with the installed weights packages.

    python -m benchmarks.imagenet_weights PHOTO…

Shows whether the packages hold ImageNet weights. `model.weights: imagenet` finds each package's file, and its tensors
are matched as for an encoder, including the classifier. Each photograph is cropped to the square in its middle. It is
normalised as `image.normalize: encoder` does and by ImageNet's mean and deviation, and also classified by a network
with the same tensors that pads on all sides (timm's efficientnet_lite0).
"""

import argparse
from datetime import date
from pathlib import Path

import cv2
import timm
import torch
from timm.data import ImageNetInfo

from pipeline.core.config.recipe import ModelSettings
from pipeline.decode.readers.files import read_image
from pipeline.networks import encoders, weights
from pipeline.networks.normalization import Statistics, statistics_of

SIDES = (224, 240, 260)
"""Side in pixels of the images that each network was trained on."""


def photograph(path: Path, side: int) -> torch.Tensor:
    """Returns the square in the middle of a picture (1, 3, side, side), in [0, 1]."""
    image = read_image(path, 3)
    height, width = image.shape[:2]
    length = min(height, width)
    top, left = (height - length) // 2, (width - length) // 2
    square = image[top : top + length, left : left + length]
    resized = cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA)
    return torch.from_numpy(resized).permute(2, 0, 1)[None].float() / 255


def seen(network: str, path: Path, image: torch.Tensor, statistics: Statistics) -> str:
    """Returns the two most probable classes and their probabilities."""
    classifier = timm.create_model(network).eval()
    encoders.load_encoder(classifier, path, network)
    mean, std = (values.view(1, 3, 1, 1) for values in statistics.of_channels(3))
    with torch.inference_mode():
        found = classifier((image - mean) / std).softmax(1)[0].topk(2)
    names = [ImageNetInfo().index_to_description(int(index)).partition(",")[0] for index in found.indices]
    return ", ".join(f"{name} {float(value):.2f}" for name, value in zip(names, found.values, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="+", type=Path, metavar="PHOTO")
    photos = parser.parse_args().photos
    print(f"{date.today()}, timm {timm.__version__}")
    print(f"| network, normalised by | {' | '.join(photo.name for photo in photos)} |\n|---{'|---' * len(photos)}|")
    for name, side in zip(weights.PACKAGES, SIDES, strict=True):
        settings = ModelSettings(encoder=f"tu-{name}", weights="imagenet")
        path = weights.resolve(settings)
        assert path is not None
        own = statistics_of(settings)
        rows = {(name, "the weights' 0.5, 0.5"): own, (name, "ImageNet's"): Statistics()}
        if name == "tf_efficientnet_lite0":
            rows[(name.removeprefix("tf_"), "the weights' 0.5, 0.5")] = own
        for (network, by), statistics in rows.items():
            texts = [seen(network, path, photograph(photo, side), statistics) for photo in photos]
            print(f"| {network}, {by} | {' | '.join(texts)} |")


if __name__ == "__main__":
    main()
