"""Mean and standard deviation that pixels are normalised by: ImageNet's, or those that an encoder's weights expect."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.core.config.training import ModelSettings
from pipeline.networks.weights import timm_name

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TIMM_NAMES = {"inceptionv4": "inception_v4", "inceptionresnetv2": "inception_resnet_v2", "xception": "legacy_xception"}
"""Encoders of segmentation-models-pytorch that come from other libraries, and were not trained with ImageNet's mean and
deviation, by timm's name of the same weights; DPNs have one name."""


@dataclass(frozen=True)
class Statistics:
    """Of each of three channels, of pixels in [0, 1]."""

    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    known: bool = True
    """false: what an encoder expects is not known, and these are ImageNet's."""

    def of_channels(self, channels: int) -> tuple[Tensor, Tensor]:
        """Returns mean and standard deviation (channels,): of three as they are; a fourth, which the weights do not
        know, gets the mean of the three, and so does each of any other number of channels."""
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        if channels != 3:
            kept = 3 if channels == 4 else 0
            mean, std = (
                torch.cat([values[:kept], values.mean(0, keepdim=True).expand(channels - kept)])
                for values in (mean, std)
            )
        return mean, std


def statistics_of(settings: ModelSettings) -> Statistics:
    """Returns what the pretrained weights of the encoder expect: timm's `mean` and `std` of it where timm has it.

    Those of segmentation-models-pytorch's own encoders expect ImageNet's but for a few, which timm has too; its
    function get_preprocessing_params would ask the hub. A file is taken to be of the same kind of weights.
    """
    from segmentation_models_pytorch.encoders import encoders
    from timm.models import get_pretrained_cfg

    encoder = settings.encoder
    if ":" in settings.architecture or encoder == "plain":
        return Statistics(known=False)
    if encoder in encoders and not encoder.startswith(("timm-", "dpn", *TIMM_NAMES)):
        return Statistics()
    try:
        found = get_pretrained_cfg(TIMM_NAMES.get(encoder, timm_name(encoder)))
    except RuntimeError:  # a tag that timm does not know
        found = None
    if found is None:
        return Statistics(known=encoder in encoders)
    return Statistics(_three(found.mean), _three(found.std))


def describe(settings: ModelSettings) -> str:
    """Returns what `image.normalize: encoder` takes, as a person reads it."""
    found = statistics_of(settings)
    mean, std = (" ".join(f"{value:.3g}" for value in values) for values in (found.mean, found.std))
    of = settings.encoder if found.known else f"ImageNet, as what {settings.encoder} expects is not known"
    return f"image.normalize: mean {mean}, deviation {std} ({of})"


def _three(values: tuple[float, ...]) -> tuple[float, float, float]:
    first, second, third = values
    return float(first), float(second), float(third)
