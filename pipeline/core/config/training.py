"""What a recipe may say about the network, and how one trains."""

import math
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.core.config.places import PlainName
from pipeline.core.config.settings import Settings


class ModelSettings(Settings):
    """A network by name, and what is added to it."""

    architecture: str = "Unet"
    """An architecture of segmentation-models-pytorch; `ConfigurableUnet` (networks/unet.py); or a network of your own
    as `module:Class`."""
    encoder: str = "resnet34"
    """An encoder of segmentation-models-pytorch, timm's as `tu-<name>`; `plain` for the encoder of a plain UNet, which
    only ConfigurableUnet has."""
    weights: str = "none"
    """`imagenet`, `none` (from scratch), or a file: .safetensors or a PyTorch state dict of the encoder."""
    freeze: str | int = "none"
    """What of the encoder keeps its weights and BatchNorm statistics: `none`; its `stem`, which computes the largest
    features; a number of stages, 1 or more: the stem and the first so many, each of which halves the size; or `all`."""
    freeze_norm: bool = False
    """All BatchNorm of the encoder keeps its statistics; its scales and shifts learn."""
    options: dict[str, Any] = {}
    """Further arguments of the architecture; each is checked against its signature."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of values, or of channels, that are dropped in front of the segmentation head."""
    dropout_kind: Literal["element", "spatial"] = "element"
    """`spatial` drops whole channels."""
    presence: bool = False
    """A second head that says whether a class occurs in the image; its loss is `loss.presence`."""
    instances: Literal["none", "border", "distance"] = "none"
    """One more output per class, from which a watershed separates touching objects, where the raw files tell instances
    apart: `border`, the probability that a pixel lies where two objects meet; `distance`, how deep a pixel lies in its
    object, from 0 at its edge to 1 in its middle. Its loss is `loss.separator`. With `none` tune tries to separate
    objects by the masks alone."""
    background_output: bool = False
    """Binary: one more output channel, for the background. The logit is the difference of the two, so that
    cross-entropy and argmax over both are exactly BCE and threshold 0.5."""

    @field_validator("freeze", mode="before")
    @classmethod
    def _freeze_is_known(cls, value: Any) -> Any:
        is_number = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if not is_number and value not in ("none", "stem", "all"):
            raise ValueError("expected none, stem, a number of stages (1 or more), or all")
        return value

    @model_validator(mode="after")
    def _outputs_are_of_classes(self) -> "ModelSettings":
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
        """Returns how many planes are predicted of so many classes: of their masks, then of what separates objects."""
        return classes * (1 + self.separates)


class ScheduleSettings(Settings):
    """How the learning rate goes; each schedule reads the fields that name it."""

    name: Literal["one_cycle", "cosine", "plateau", "restarts", "cyclic", "constant"] = "one_cycle"
    """`plateau` lowers it when nothing gets better, epoch by epoch; the others follow their curve batch by batch.
    `one_cycle` and `cosine` end near zero, where one epoch is like the next."""
    factor: float = Field(0.5, gt=0, lt=1)
    """plateau: what it is multiplied by."""
    patience: int = Field(3, ge=0)
    """plateau: epochs without a better `monitor` that are waited for."""
    monitor: Literal["loss", "score"] = "loss"
    """plateau: the validation loss, or the competition's metric."""
    floor: float = Field(0.0, ge=0, le=1)
    """cosine, restarts, cyclic, one_cycle: the lowest learning rate, as a share of `train.learning_rate`."""
    cycle: float | None = Field(None, gt=0)
    """restarts, cyclic: epochs of a cycle; null: a quarter of all, or with train.snapshots their share."""
    growth: int = Field(1, ge=1)
    """restarts: how many times as long each cycle is as the one before."""
    rise: float = Field(0.3, gt=0, lt=1)
    """one_cycle: the share of training in which it rises."""
    warm_up: float = Field(0.0, ge=0)
    """Epochs in which it rises linearly from nearly 0, before any schedule."""


class SamplerSettings(Settings):
    """Which images an epoch holds, and which stand together in a batch."""

    positive_share: float | None = Field(None, gt=0, lt=1)
    """Share of images with a mask in an epoch; null: as they come."""
    rare_classes: float = Field(0.0, ge=0, le=1)
    """Images with rare classes are drawn more often: by (share of images with their rarest class) ** -this; 0: all
    alike, 1: each class as often as any other."""
    one_per_group: bool = False
    """At most one image of a group in a batch."""


class MixSettings(Settings):
    """Two training images made one; each with its probability."""

    cutmix: float = Field(0.0, ge=0, le=1)
    """A rectangle of another image (Yun et al. 2019)."""
    mixup: float = Field(0.0, ge=0, le=1)
    """The weighted mean of both images and both masks (Zhang et al. 2018); not for multiclass competitions."""
    paste: float = Field(0.0, ge=0, le=1)
    """The pixels of a class from `paste_classes` of another image."""
    paste_classes: list[int | str] = []
    """By name or number; empty: the rarest class."""
    alpha: float = Field(1.0, gt=0)
    """Of the Beta distribution that draws the shares of cutmix and mixup."""


class PseudoSettings(Settings):
    """Test images, labelled by another run; fold k learns only what that run's fold k says."""

    recipe: PlainName
    """The run that labels: a recipe's name, or what --name gave it."""
    weight: float = Field(1.0, gt=0)
    """Of a labelled test image in the loss, beside 1 of a training image."""
    min_confidence: float = Field(0.0, ge=0, lt=1)
    """Pixels whose most probable class is less probable than this are ignored."""


class TrainSettings(Settings):
    """One model a fold and seed."""

    folds: list[int] | None = None
    """Which folds to train; null trains all."""
    exclude: str | None = None
    """A CSV with a column image_id, e.g. a copy of suspects.csv: these images are left out of training besides the
    dropped ones. A relative path starts at the folder that holds input/ and work/."""
    epochs: int = Field(30, ge=1)
    """How often every training image is seen, at most, unless `steps` asks for more."""
    steps: int | None = Field(None, ge=1)
    """Steps of the optimiser, at least: where few images make few steps an epoch, there are more epochs, until so many
    steps are reached. null: `epochs` alone decides. Not with snapshots."""
    half_size: float = Field(0.0, ge=0, lt=1)
    """Share of the epochs, from the first on, that train on images of half the height and width: coarse shapes are
    learnt in less time (progressive resizing, Howard 2018). Scores are always those of whole images."""
    batch_size: int = Field(16, ge=1)
    """Images of one step, on all devices together: `devices` changes neither the steps nor the learning rate."""
    accumulate: int = Field(1, ge=1)
    """How many batches' gradients are added up before a step."""
    crops: int | None = Field(None, ge=1)
    """How many random crops of every image an epoch holds, where `image.store` is larger than `image.size`; null: as
    many as cover the image once."""
    optimizer: str = "adamw"
    """A name that timm knows: adam, adamw, sgd, radam, lookahead_radam, …"""
    optimizer_options: dict[str, Any] = {}
    """Its further settings, e.g. momentum."""
    learning_rate: float = Field(1e-3, gt=0)
    """The highest of the schedule."""
    encoder_learning_rate: float | None = Field(None, gt=0)
    """Of the encoder; null: the same, or what the factor says."""
    encoder_learning_rate_factor: float | None = Field(None, gt=0)
    """Of the encoder too, as a share of `learning_rate`, which it follows; null: 1. Give one of the two."""
    freeze_encoder: int = Field(0, ge=0)
    """Epochs in which the encoder does not learn."""
    weight_decay: float = Field(1e-4, ge=0)
    """As the optimiser understands it; adamw: the share of the learning rate by which weights shrink a step."""
    schedule: ScheduleSettings = ScheduleSettings()
    ema: float | None = Field(None, gt=0, lt=1)
    """Decay a step of a moving average of the weights, which is then what is scored and kept; it is shorter at first:
    min(ema, (1 + step) / (10 + step)). null: none."""
    keep: Literal["last", "average", "best"] = "last"
    """Which weights are kept: the `last`, which nothing chose; the `average` of those after each step of the last tenth
    of training, with BatchNorm's statistics estimated again; or those of the `best` epoch by `monitor`, which is the
    default where `early_stopping` is set. Not used with snapshots."""
    monitor: Literal["loss", "score"] = "loss"
    """What early stopping and the best weights go by: the mean validation loss of the last three epochs, or the
    competition's metric at threshold 0.5."""
    early_stopping: int | None = Field(None, ge=1)
    """Epochs without a better `monitor` after which a fold ends, those of `half_size` not counted; null: it never does.
    It goes with schedules that do not have an end, plateau and constant. Not used with snapshots."""
    gradient_clip: float = Field(0.0, ge=0)
    """Largest gradient norm; 0 clips nothing."""
    seeds: list[int] = [0]
    """One model a fold for each; their predictions are averaged."""
    snapshots: int = Field(1, ge=1)
    """Models that one training leaves, at the end of equal cycles of `schedule.name: restarts` (Huang et al. 2017);
    their predictions are averaged."""
    final: bool = False
    """After the folds, one more model on all images, for as many epochs as the folds' weights had on average, with
    their mean learning rates. It alone predicts the test images, and nothing out-of-fold measures it."""
    start_from: PlainName | None = None
    """A run on the same folds: fold k starts from its fold k."""
    pseudo: PseudoSettings | None = None
    sampler: SamplerSettings = SamplerSettings()
    mix: MixSettings = MixSettings()
    augment_on: Literal["loader", "device"] = "loader"
    """Where `augment` is applied: image by image in the loader, or on the device that trains, to whole batches, which
    some transforms and settings cannot be; `train.mix` then comes before it and not after it."""
    precision: Literal["auto", "32", "bf16", "16"] = "auto"
    """`auto` takes what the device is fast at, and says why."""
    compile: bool = False
    """torch.compile the network: minutes at the start, faster afterwards on a GPU."""
    workers: int | None = Field(None, ge=0)
    """Loader processes; null: none on a CPU, beside a GPU one per core, at most 16, shared by `parallel` trainings and
    `devices`; a number: so many for each device."""
    parallel: int = Field(1, ge=1)
    """Folds and seeds that are trained at once, each in a process with its share of the threads. Two are faster where
    one does not fill the device, and take twice the memory."""
    devices: int = Field(1, ge=1)
    """GPUs of this machine that train one fold together, one process per GPU (on a CPU, this many processes). Each
    takes an equal part of every batch; loss and BatchNorm see the whole batch. Finished training stays when it is
    changed."""
    num_nodes: int = Field(1, ge=1)
    """Machines that train one fold together, each with so many `devices`: start the command on all of them by torchrun
    or srun, in a folder that all of them see."""
    loggers: list[Literal["mlflow", "wandb", "trackio"]] = []
    """Besides TensorBoard, each into local files under work/: MLflow, Weights & Biases, Trackio. They must be
    installed; none of them needs a network."""

    def planned_epochs(self, steps: int) -> int:
        """Returns the number of epochs of a training that makes so many steps in each."""
        return max(self.epochs, math.ceil((self.steps or 0) / steps))

    @field_validator("precision", mode="before")
    @classmethod
    def _bits_may_be_a_number(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) else value

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, value: list[int]) -> list[int]:
        if not value or len(set(value)) < len(value) or min(value) < 0:
            raise ValueError("expected at least one seed, each once, none negative")
        return value

    @model_validator(mode="before")
    @classmethod
    def _what_stops_early_keeps_the_best(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("early_stopping") and "keep" not in value:
            return value | {"keep": "best"}
        return value

    @model_validator(mode="after")
    def _one_average(self) -> "TrainSettings":
        if self.ema and self.keep == "average" and self.snapshots == 1:
            raise ValueError(
                "train.keep is average and train.ema is set, and both average the weights: leave one of them out "
                "(with train.ema, train.keep=last keeps the moving average at the end)"
            )
        return self

    @model_validator(mode="after")
    def _one_encoder_rate(self) -> "TrainSettings":
        if self.encoder_learning_rate is not None and self.encoder_learning_rate_factor is not None:
            raise ValueError("give train.encoder_learning_rate or train.encoder_learning_rate_factor, not both")
        return self

    @property
    def rate_of_encoder(self) -> float | None:
        """The encoder's own learning rate; None where it has none."""
        if self.encoder_learning_rate_factor is not None:
            return self.learning_rate * self.encoder_learning_rate_factor
        return self.encoder_learning_rate

    @model_validator(mode="after")
    def _snapshots_fit(self) -> "TrainSettings":
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
