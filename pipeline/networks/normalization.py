"""Mean and standard deviation for normalising pixels: ImageNet's, or those that an encoder's weights expect."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.core.config.training import ModelSettings
from pipeline.networks.weights import timm_name

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TIMM_NAMES = {"inceptionv4": "inception_v4", "inceptionresnetv2": "inception_resnet_v2", "xception": "legacy_xception"}
"""Encoders of segmentation-models-pytorch that come from other libraries and were not trained with ImageNet's mean and
deviation, with timm's name of the same weights. DPNs have the same name in both libraries."""


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of three channels, for pixels in [0, 1]."""

    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    known: bool = True
    """Whether these are the values that the encoder expects. If false, they are ImageNet's, for lack of better ones."""

    def of_channels(self, channels: int) -> tuple[Tensor, Tensor]:
        """Returns mean and standard deviation (channels,).

        Three channels have their own values. A fourth channel gets the mean over the three. For any other number, all
        channels get the mean over the three.
        """
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        if channels != 3:
            kept = 3 if channels == 4 else 0
            mean, std = (
                torch.cat([values[:kept], values.mean(0, keepdim=True).expand(channels - kept)])
                for values in (mean, std)
            )
        return mean, std


def statistics_of(settings: ModelSettings) -> Statistics:
    """Returns the mean and deviation that the pretrained weights of the encoder expect, from timm if timm has it.

    Encoders of segmentation-models-pytorch expect ImageNet's values, except for a few that timm has too. Its function
    get_preprocessing_params is not used, because it would contact the hub. Weights from a file are assumed to expect
    the same values as the pretrained ones.
    """
    from segmentation_models_pytorch.encoders import encoders
    from timm.models import get_pretrained_cfg

    encoder = settings.encoder
    if ":" in settings.architecture or encoder == "plain":
        return Statistics(known=False)
    if encoder in encoders and not encoder.startswith(("timm-", "dpn", *TIMM_NAMES)):
        return Statistics()
    try:
        config = get_pretrained_cfg(TIMM_NAMES.get(encoder, timm_name(encoder)))
    except RuntimeError:  # timm does not know the tag
        config = None
    if config is None:
        return Statistics(known=encoder in encoders)
    return Statistics(_three(config.mean), _three(config.std))


def describe(settings: ModelSettings) -> str:
    """Returns a line for the console on the values that `image.normalize: encoder` uses."""
    statistics = statistics_of(settings)
    mean, std = (" ".join(f"{value:.3g}" for value in values) for values in (statistics.mean, statistics.std))
    unknown = f"ImageNet's, because those that {settings.encoder} expects are not known"
    return f"image.normalize: mean {mean}, deviation {std} ({settings.encoder if statistics.known else unknown})"


def _three(values: tuple[float, ...]) -> tuple[float, float, float]:
    first, second, third = values
    return float(first), float(second), float(third)
