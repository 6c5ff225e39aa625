"""What a recipe may say about losses."""

from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline.core.config.settings import Settings
from pipeline.core.errors import PipelineError


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


class SeparatorTerm(Term):
    """Loss of what separates touching objects (model.instances): of `border` binary cross-entropy and the batch's Dice,
    of `distance` cross-entropy, which is least where the prediction is the distance itself."""

    pos_weight: float = Field(3.0, gt=0)
    """border: weight of border pixels, which are few, in the cross-entropy."""


OF_NO_LOSS = {"deep", "learn_ignored_class"}
"""Settings of LossSettings that are no losses."""
OF_OTHER_OUTPUTS = {"presence", "separator"}
"""Losses that are of no mask."""


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
    separator: SeparatorTerm | None = None
    deep: float = Field(0.4, ge=0)
    """Weight of the mean loss of the further outputs that deep supervision adds."""
    learn_ignored_class: bool = False
    """Whether pixels of the competition's `ignore_class` count in the loss. They count in no score either way; for
    comparison, as a network that has learned the class also predicts it (unless `predict.never` names it)."""

    def terms(self, kind: str, presence: bool = False, separates: bool = False) -> dict[str, Term]:
        """Returns the losses of a competition of this kind that weigh more than 0, by name.

        Raises:
            PipelineError: none is left, or one that does not go with the kind or the model.
        """
        names = [name for name in type(self).model_fields if name not in OF_NO_LOSS]
        named: dict[str, Term | None] = {name: getattr(self, name) for name in names}
        masks = [name for name, term in named.items() if term and name not in OF_OTHER_OUTPUTS]
        if not masks:
            usual = "cross_entropy" if kind == "multiclass" else "bce"
            named |= {usual: CrossEntropyTerm() if usual == "cross_entropy" else BceTerm(), "dice": DiceTerm()}
        if presence and named["presence"] is None:
            named["presence"] = PresenceTerm(weight=0.1)
        if separates and named["separator"] is None:
            named["separator"] = SeparatorTerm()
        found = {name: term for name, term in named.items() if term and term.weight > 0}
        if not set(found) - OF_OTHER_OUTPUTS:
            raise PipelineError("loss: at least one loss of the masks must have a weight above 0.")
        wrong = {"multiclass": "bce", "multilabel": "cross_entropy"}.get(kind)
        if wrong in found:
            other = "cross_entropy" if wrong == "bce" else "bce"
            raise PipelineError(f"loss.{wrong} does not go with a {kind} competition; use loss.{other}.")
        if "presence" in found and not presence:
            raise PipelineError("loss.presence needs a presence head: set model.presence=true.")
        if "separator" in found and not separates:
            raise PipelineError("loss.separator needs outputs that separate: set model.instances=border or distance.")
        return found
