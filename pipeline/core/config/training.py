"""What a recipe may say about the network, its losses, and how one trains."""

import math
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.core.config.places import PlainName
from pipeline.core.config.settings import Settings
from pipeline.core.errors import PipelineError


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


class Term(Settings):
    """A loss and its weight in the sum; a bare number is the weight."""

    weight: float = Field(1.0, ge=0)
    """What it counts in the sum."""

    @model_validator(mode="before")
    @classmethod
    def _number_is_weight(cls, value: Any) -> Any:
        return {"weight": value} if isinstance(value, int | float) and not isinstance(value, bool) else value


class BceTerm(Term):
    """Binary cross-entropy of every class for itself."""

    pos_weight: float = Field(1.0, gt=0)
    """Weight of foreground pixels."""
    smoothing: float = Field(0.0, ge=0, lt=1)
    """Label smoothing: 0 and 1 become smoothing / 2 and 1 - smoothing / 2."""


class CrossEntropyTerm(Term):
    """Cross-entropy over the classes; of a binary competition over background and class."""

    class_weights: list[float] | None = None
    """One a class, background included; null: all 1."""
    smoothing: float = Field(0.0, ge=0, lt=1)
    """Label smoothing: this share of a pixel is spread evenly over all classes."""


class DiceTerm(Term):
    """1 - Dice of the probabilities."""

    per_image: bool = False
    """The mean of the images' Dice, smoothed by 1, which has a gradient on empty masks; false: Dice of the whole batch,
    as in segmentation-models-pytorch, which has none on a batch without foreground."""
    positives_only: bool = False
    """With per_image: only images (and classes) with a mask count."""


class JaccardTerm(Term):
    """1 - IoU of the batch's probabilities."""


class FocalTerm(Term):
    """Cross-entropy that counts confident pixels less (Lin et al. 2017)."""

    gamma: float = Field(2.0, ge=0)
    """Exponent: how much less a pixel counts that is right already; 0 is cross-entropy."""
    alpha: float | None = Field(None, ge=0, le=1)
    """Weight of foreground pixels, 1 - alpha for the others; null: all 1."""


class TverskyTerm(Term):
    """1 - Tversky index (Salehi et al. 2017): Dice with a price for each kind of error."""

    alpha: float = Field(0.5, ge=0)
    """Price of false positives."""
    beta: float = Field(0.5, ge=0)
    """Price of false negatives."""
    gamma: float = Field(1.0, gt=0)
    """Exponent: the focal Tversky loss (Abraham & Khan 2019) has 0.75."""


class LovaszTerm(Term):
    """The convex surrogate of IoU (Berman et al. 2018)."""

    kind: Literal["hinge", "elu"] = "hinge"
    """`elu` replaces the hinge by elu + 1, which keeps a gradient on pixels that are right (as TGS Salt winners did);
    multiclass competitions have neither, but the softmax."""
    per_image: bool = True
    """The mean of the images' losses; false: of the whole batch as one image."""


class PresenceTerm(Term):
    """Binary cross-entropy of the presence head (model.presence)."""


class LossSettings(Settings):
    """The losses that are summed; without any: bce (or cross_entropy of a multiclass competition) and dice, each 1."""

    bce: BceTerm | None = None
    cross_entropy: CrossEntropyTerm | None = None
    dice: DiceTerm | None = None
    jaccard: JaccardTerm | None = None
    focal: FocalTerm | None = None
    tversky: TverskyTerm | None = None
    lovasz: LovaszTerm | None = None
    presence: PresenceTerm | None = None
    deep: float = Field(0.4, ge=0)
    """Weight of the mean loss of the further outputs that deep supervision adds."""

    def terms(self, kind: str, presence: bool = False) -> dict[str, Term]:
        """Returns the losses of a competition of this kind that weigh more than 0, by name.

        Raises:
            PipelineError: none is left, or one that does not go with the kind or the model.
        """
        names = [name for name in type(self).model_fields if name != "deep"]
        named: dict[str, Term | None] = {name: getattr(self, name) for name in names}
        masks = [name for name, term in named.items() if term and name != "presence"]
        if not masks:
            usual = "cross_entropy" if kind == "multiclass" else "bce"
            named |= {usual: CrossEntropyTerm() if usual == "cross_entropy" else BceTerm(), "dice": DiceTerm()}
        if presence and named["presence"] is None:
            named["presence"] = PresenceTerm(weight=0.1)
        found = {name: term for name, term in named.items() if term and term.weight > 0}
        if not set(found) - {"presence"}:
            raise PipelineError("loss: at least one loss of the masks must have a weight above 0.")
        wrong = {"multiclass": "bce", "multilabel": "cross_entropy"}.get(kind)
        if wrong in found:
            other = "cross_entropy" if wrong == "bce" else "bce"
            raise PipelineError(f"loss.{wrong} does not go with a {kind} competition; use loss.{other}.")
        if "presence" in found and not presence:
            raise PipelineError("loss.presence needs a presence head: set model.presence=true.")
        return found


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
    loggers: list[Literal["mlflow", "wandb"]] = []
    """Besides TensorBoard, each into local files under work/; they must be installed."""

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
