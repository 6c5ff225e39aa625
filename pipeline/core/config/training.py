"""The settings of a recipe for the network and its training."""

import math
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.core.config.places import PlainName
from pipeline.core.config.settings import Settings


class ModelSettings(Settings):
    """The network: its architecture, its encoder, and what is added to them."""

    architecture: str = "Unet"
    """The name of an architecture of segmentation-models-pytorch, `ConfigurableUnet` (networks/unet.py), or your own
    network as `module:Class`."""
    encoder: str = "resnet34"
    """The name of an encoder of segmentation-models-pytorch, or of timm as `tu-<name>`. `plain` is the encoder of the
    original U-Net, which only ConfigurableUnet has."""
    weights: str = "none"
    """Pretrained weights of the encoder: `imagenet`, `none` (training from scratch), or the path of a .safetensors file
    or a PyTorch state dict."""
    freeze: str | int = "none"
    """Which part of the encoder is frozen, so that it keeps its weights and BatchNorm statistics: `none`; the `stem`,
    which computes the features of the largest size; a number n of at least 1 for the stem and the first n stages, each
    of which halves the size; or `all`."""
    cache_features: bool = False
    """Whether the features of a frozen encoder (`freeze: all`) are computed once per distinct image and stored, in the
    folder of the training until it is done. This needs images that are at most flipped and turned by quarters."""
    freeze_norm: bool = False
    """Whether all BatchNorm layers of the encoder keep their statistics. Their scales and shifts are still trained."""
    options: dict[str, Any] = {}
    """Further arguments of the architecture's class. Each is checked against its signature."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout probability before the segmentation head."""
    dropout_kind: Literal["element", "spatial"] = "element"
    """`element` drops single values; `spatial` drops whole channels."""
    presence: bool = False
    """Whether the network has a second head that predicts for each class whether it occurs in the image. Its loss is
    `loss.presence`."""
    instances: Literal["none", "border", "distance"] = "none"
    """One more output per class, by which a watershed separates touching objects. It needs raw files that distinguish
    instances. `border`: the probability that a pixel lies where two objects meet. `distance`: how deep a pixel lies in
    its object, from 0 at the edge to 1 in the middle. Its loss is `loss.separator`. `none`: tune can only separate
    objects by the masks themselves."""
    background_output: bool = False
    """Only for binary competitions: whether the network has one more output channel, for the background. The logit is
    then the difference of the two channels, which makes cross-entropy and argmax over both identical to BCE and
    threshold 0.5."""

    @field_validator("freeze", mode="before")
    @classmethod
    def _freeze_is_known(cls, value: Any) -> Any:
        is_number = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if not is_number and value not in ("none", "stem", "all"):
            raise ValueError("expected none, stem, a number of stages (1 or more), or all")
        return value

    @model_validator(mode="after")
    def _outputs_fit_together(self) -> "ModelSettings":
        if self.background_output and self.separates:
            raise ValueError(
                f"model.background_output is true and model.instances is {self.instances}: leave one of them out"
            )
        return self

    @property
    def separates(self) -> bool:
        """Whether the network has an output per class that separates touching objects."""
        return self.instances != "none"

    def planes(self, classes: int) -> int:
        """Returns the number of predicted planes for `classes` classes: one per mask, then one per separator if there
        are any."""
        return classes * (1 + self.separates)


class ScheduleSettings(Settings):
    """The learning rate schedule. The description of a setting names the schedules that use it."""

    name: Literal["one_cycle", "cosine", "plateau", "restarts", "cyclic", "constant"] = "one_cycle"
    """`plateau` lowers the learning rate after epochs without improvement. The other schedules change it after every
    batch, as their curve says. `one_cycle` and `cosine` end near zero, where the weights hardly change any more."""
    factor: float = Field(0.5, gt=0, lt=1)
    """plateau: the factor by which the learning rate is multiplied."""
    patience: int = Field(3, ge=0)
    """plateau: number of epochs without improvement of `monitor` before the learning rate is lowered."""
    monitor: Literal["loss", "score"] = "loss"
    """plateau: the value that must improve: the validation loss (`loss`) or the competition's metric (`score`)."""
    floor: float = Field(0.0, ge=0, le=1)
    """cosine, restarts, cyclic, one_cycle: the lowest learning rate, as a share of `train.learning_rate`."""
    cycle: float | None = Field(None, gt=0)
    """restarts, cyclic: number of epochs per cycle. null: a quarter of all epochs, or with `train.snapshots` all epochs
    divided by the number of snapshots."""
    growth: int = Field(1, ge=1)
    """restarts: the factor by which each cycle is longer than the one before."""
    rise: float = Field(0.3, gt=0, lt=1)
    """one_cycle: the share of training during which the learning rate rises."""
    warm_up: float = Field(0.0, ge=0)
    """All schedules: number of epochs at the start in which the learning rate rises linearly from nearly 0."""


class SamplerSettings(Settings):
    """How the images of an epoch are drawn and arranged in batches."""

    positive_share: float | None = Field(None, gt=0, lt=1)
    """Share of images with a non-empty mask in an epoch. null: as in the training set."""
    rare_classes: float = Field(0.0, ge=0, le=1)
    """Exponent r that makes images with rare classes more frequent. The weight of an image is (share of images with its
    rarest class) ** -r. 0: all images have the same weight; 1: classes become about equally frequent."""
    one_per_group: bool = False
    """Whether a batch holds at most one image per group."""


class MixSettings(Settings):
    """Augmentations that mix two training images. Each has its own probability."""

    cutmix: float = Field(0.0, ge=0, le=1)
    """Probability of CutMix: a rectangle is replaced by that of another image (Yun et al. 2019)."""
    mixup: float = Field(0.0, ge=0, le=1)
    """Probability of mixup: the weighted mean of two images and of their masks (Zhang et al. 2018). Not for multiclass
    competitions."""
    paste: float = Field(0.0, ge=0, le=1)
    """Probability of copy-paste: the pixels of one of `paste_classes` are copied from another image."""
    paste_classes: list[int | str] = []
    """The classes that `paste` copies, by name or number. Empty: the rarest class."""
    alpha: float = Field(1.0, gt=0)
    """Parameter of the Beta distribution from which `cutmix` and `mixup` draw the share of each image."""


class PseudoSettings(Settings):
    """Pseudo-labels: test images with the predictions of another run as masks. Fold k only uses the predictions of that
    run's fold k."""

    recipe: PlainName
    """Name of the run that predicts the labels: its recipe's name, or its `--name`."""
    weight: float = Field(1.0, gt=0)
    """Weight of a pseudo-labelled image in the loss. A training image has weight 1."""
    min_confidence: float = Field(0.0, ge=0, lt=1)
    """Pixels are ignored if the probability of their most probable class is lower than this."""


class TrainSettings(Settings):
    """Training: one model per fold and seed."""

    folds: list[int] | None = None
    """The folds to train. null: all."""
    exclude: str | None = None
    """Path of a CSV file with the column image_id, e.g. a copy of suspects.csv. These images are left out of training,
    in addition to those that clean dropped. A relative path starts at the folder that holds input/ and work/."""
    epochs: int = Field(30, ge=1)
    """Maximum number of epochs, unless `steps` requires more."""
    steps: int | None = Field(None, ge=1)
    """Minimum number of optimiser steps. With few images, and so few steps per epoch, epochs are added until this
    number is reached. null: only `epochs` decides. Cannot be combined with `snapshots`."""
    half_size: float = Field(0.0, ge=0, lt=1)
    """Share of the epochs, from the first one on, that train on images of half the height and width, which learns
    coarse shapes in less time (progressive resizing, Howard 2018). Scores are always computed at full size."""
    batch_size: int = Field(16, ge=1)
    """Number of images per batch, on all devices together. `devices` therefore changes neither the number of steps nor
    the learning rate."""
    accumulate: int = Field(1, ge=1)
    """Number of batches whose gradients are accumulated before an optimiser step."""
    crops: int | None = Field(None, ge=1)
    """Number of random crops per image and epoch, if `image.store` is larger than `image.size`. null: as many as cover
    the image's area once."""
    optimizer: str = "adamw"
    """The name of an optimiser of timm: adam, adamw, sgd, radam, lookahead_radam, …"""
    optimizer_options: dict[str, Any] = {}
    """Further arguments of the optimiser, e.g. momentum."""
    learning_rate: float = Field(1e-3, gt=0)
    """The highest learning rate of the schedule."""
    encoder_learning_rate: float | None = Field(None, gt=0)
    """The encoder's learning rate. null: `learning_rate`, or what `encoder_learning_rate_factor` says."""
    encoder_learning_rate_factor: float | None = Field(None, gt=0)
    """The encoder's learning rate as a multiple of `learning_rate`. null: 1. Cannot be combined with
    `encoder_learning_rate`."""
    freeze_encoder: int = Field(0, ge=0)
    """Number of epochs at the start in which the encoder is not trained."""
    weight_decay: float = Field(1e-4, ge=0)
    """Weight decay as the optimiser defines it. adamw: in each step, weights are multiplied by 1 - learning rate ×
    weight_decay."""
    schedule: ScheduleSettings = ScheduleSettings()
    ema: float | None = Field(None, gt=0, lt=1)
    """Decay per step of an exponential moving average of the weights. The averaged weights are the ones that are scored
    and kept. The first steps use a smaller decay, min(ema, (1 + step) / (10 + step)). null: no average."""
    keep: Literal["last", "average", "best"] = "last"
    """Which weights are kept. `last`: those after the last epoch, which involves no choice by score. `average`: the
    mean of the weights after each step of the last tenth of training, with the BatchNorm statistics estimated again.
    `best`: those of the best epoch by `monitor`; this is the default if `early_stopping` is set. Not used with
    `snapshots`."""
    monitor: Literal["loss", "score"] = "loss"
    """The value by which early stopping and `keep: best` compare epochs: the mean validation loss of the last three
    epochs (`loss`), or the competition's metric at threshold 0.5 (`score`)."""
    early_stopping: int | None = Field(None, ge=1)
    """Number of epochs without improvement of `monitor` after which training stops; epochs of `half_size` are not
    counted. null: training never stops early. Early stopping suits schedules without a fixed end, `plateau` and
    `constant`. Not used with `snapshots`."""
    gradient_clip: float = Field(0.0, ge=0)
    """Maximum norm of the gradient; larger gradients are scaled down to it. 0: no clipping."""
    seeds: list[int] = [0]
    """Random seeds. One model is trained per fold and seed, and predictions are averaged over the seeds."""
    snapshots: int = Field(1, ge=1)
    """Number of models that one training saves, at the ends of cycles of equal length with `schedule.name: restarts`
    (Huang et al. 2017). Their predictions are averaged."""
    final: bool = False
    """Whether one more model is trained on all images after the folds, for as many epochs as the folds' kept weights
    had on average, with their mean learning rates. Only this model then predicts the test images. No out-of-fold score
    measures it."""
    start_from: PlainName | None = None
    """Name of a run on the same folds. The model of fold k starts from the weights of that run's fold k."""
    pseudo: PseudoSettings | None = None
    sampler: SamplerSettings = SamplerSettings()
    mix: MixSettings = MixSettings()
    augment_on: Literal["loader", "device"] = "loader"
    """Where `augment` is applied. `loader`: to each image in the data loader. `device`: to whole batches on the
    training device, which not all transforms and settings support; `train.mix` is then applied before `augment` instead
    of after it."""
    precision: Literal["auto", "32", "bf16", "16"] = "auto"
    """Numerical precision of training. `auto` takes the fastest precision that suits the device, and prints the
    reason."""
    compile: bool = False
    """Whether the network is compiled with torch.compile. This takes minutes at the start and makes later steps faster
    on a GPU."""
    workers: int | None = Field(None, ge=0)
    """Number of data loader processes per device. null: none on a CPU; with a GPU one per core, at most 16, divided
    among `parallel` trainings and `devices`."""
    parallel: int = Field(1, ge=1)
    """Number of models (folds and seeds) that are trained in parallel, each in its own process with its share of the
    threads. Two are faster if one does not use the whole device; they take twice the memory."""
    devices: int = Field(1, ge=1)
    """Number of GPUs of this machine that train one model together, with one process per GPU (without a GPU, this many
    processes on the CPU). Each takes an equal part of every batch; loss and BatchNorm are computed over the whole
    batch. Changing this setting does not invalidate finished training."""
    num_nodes: int = Field(1, ge=1)
    """Number of machines that train one model together, each with `devices` GPUs. Start the command on all of them with
    torchrun or srun, in a folder that all of them share."""
    loggers: list[Literal["mlflow", "wandb", "trackio"]] = []
    """Experiment trackers in addition to TensorBoard. Each must be installed, writes to local files under work/, and
    needs no network."""

    def planned_epochs(self, steps: int) -> int:
        """Returns the number of epochs of a training with `steps` optimiser steps per epoch."""
        return max(self.epochs, math.ceil((self.steps or 0) / steps))

    @field_validator("precision", mode="before")
    @classmethod
    def _bits_may_be_a_number(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) else value

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, value: list[int]) -> list[int]:
        if not value or len(set(value)) < len(value) or min(value) < 0:
            raise ValueError("expected at least one seed, all different and none negative")
        return value

    @model_validator(mode="before")
    @classmethod
    def _early_stopping_keeps_the_best(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("early_stopping") and "keep" not in value:
            return value | {"keep": "best"}
        return value

    @model_validator(mode="after")
    def _weights_are_averaged_once(self) -> "TrainSettings":
        if self.ema and self.keep == "average" and self.snapshots == 1:
            raise ValueError(
                "train.keep is average and train.ema is set, and both average the weights: leave one of the two out "
                "(with train.ema, train.keep=last keeps the moving average of the last step)"
            )
        return self

    @model_validator(mode="after")
    def _encoder_rate_is_given_once(self) -> "TrainSettings":
        if self.encoder_learning_rate is not None and self.encoder_learning_rate_factor is not None:
            raise ValueError("give train.encoder_learning_rate or train.encoder_learning_rate_factor, not both")
        return self

    @property
    def rate_of_encoder(self) -> float | None:
        """The encoder's own learning rate; None if it is that of the whole network."""
        if self.encoder_learning_rate_factor is not None:
            return self.learning_rate * self.encoder_learning_rate_factor
        return self.encoder_learning_rate

    @model_validator(mode="after")
    def _snapshots_fit_the_schedule(self) -> "TrainSettings":
        if self.snapshots > 1 and self.steps:
            raise ValueError("train.snapshots divides train.epochs into cycles: leave train.steps out")
        if self.snapshots > 1 and (self.schedule.name != "restarts" or self.epochs % self.snapshots):
            raise ValueError(
                f"train.snapshots is {self.snapshots}: it needs train.schedule.name=restarts and train.epochs "
                f"divisible by it (they are {self.schedule.name} and {self.epochs})"
            )
        if self.snapshots > 1 and (self.schedule.cycle is not None or self.schedule.growth > 1):
            raise ValueError("train.snapshots sets the cycles itself: leave train.schedule.cycle and growth out")
        return self
