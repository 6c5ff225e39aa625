"""The settings of a recipe for its losses."""

from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline.core.config.settings import Settings
from pipeline.core.errors import PipelineError


class Term(Settings):
    """One loss with its weight in the sum. A number alone, as in `dice: 0.5`, is the weight."""

    weight: float = Field(1.0, ge=0)
    """Weight of this loss in the sum. 0 leaves it out."""

    @model_validator(mode="before")
    @classmethod
    def _number_is_weight(cls, value: Any) -> Any:
        return {"weight": value} if isinstance(value, int | float) and not isinstance(value, bool) else value


class BceTerm(Term):
    """Binary cross-entropy of each class separately."""

    pos_weight: float = Field(1.0, gt=0)
    """Weight of foreground pixels."""
    smoothing: float = Field(0.0, ge=0, lt=1)
    """Label smoothing: 0 and 1 become smoothing / 2 and 1 - smoothing / 2."""


class CrossEntropyTerm(Term):
    """Cross-entropy over all classes; in a binary competition over background and class."""

    class_weights: list[float] | None = None
    """One weight per class, background included. null: all 1."""
    smoothing: float = Field(0.0, ge=0, lt=1)
    """Label smoothing: this share of the target probability is spread evenly over all classes."""


class DiceTerm(Term):
    """1 - Dice, computed from the probabilities."""

    per_image: bool = False
    """true: the mean of the Dice of each image, with smoothing 1, which has a gradient for empty masks too. false: Dice
    over the whole batch, as in segmentation-models-pytorch, which has no gradient for a batch without foreground."""
    positives_only: bool = False
    """With `per_image`: whether only images (and classes) with a non-empty mask count."""


class JaccardTerm(Term):
    """1 - IoU, computed from the probabilities over the whole batch."""


class FocalTerm(Term):
    """Focal loss: cross-entropy with lower weights for pixels that are already predicted well (Lin et al. 2017)."""

    gamma: float = Field(2.0, ge=0)
    """Exponent. The higher it is, the less do well predicted pixels count; 0 gives cross-entropy."""
    alpha: float | None = Field(None, ge=0, le=1)
    """Weight of foreground pixels; background pixels have weight 1 - alpha. null: all pixels have weight 1."""


class TverskyTerm(Term):
    """1 - Tversky index (Salehi et al. 2017): Dice with a weight for each kind of error."""

    alpha: float = Field(0.5, ge=0)
    """Weight of false positives."""
    beta: float = Field(0.5, ge=0)
    """Weight of false negatives."""
    gamma: float = Field(1.0, gt=0)
    """Exponent of the loss; the focal Tversky loss (Abraham & Khan 2019) uses 0.75."""


class LovaszTerm(Term):
    """Lovász loss, a convex surrogate of IoU (Berman et al. 2018)."""

    kind: Literal["hinge", "elu"] = "hinge"
    """`elu` replaces the hinge function by elu + 1, which keeps a gradient for correctly classified pixels, as winners
    of TGS Salt did. Not used in multiclass competitions, where the loss is computed on the softmax."""
    per_image: bool = True
    """true: the mean of the losses of each image. false: the loss of the whole batch as one image."""


class PresenceTerm(Term):
    """Binary cross-entropy of the presence head (`model.presence`)."""


class SeparatorTerm(Term):
    """Loss of the output that separates touching objects (`model.instances`). `border`: binary cross-entropy plus Dice
    over the batch. `distance`: cross-entropy, whose minimum is at the true distance."""

    pos_weight: float = Field(3.0, gt=0)
    """border: weight of border pixels in the cross-entropy, because they are few."""


OF_NO_LOSS = {"deep", "learn_ignored_class"}
"""Settings of LossSettings that are no losses."""
OF_OTHER_OUTPUTS = {"presence", "separator"}
"""Losses of outputs other than the masks."""


class LossSettings(Settings):
    """The losses that are summed. Default: `bce` (in multiclass competitions `cross_entropy`) and `dice`, each with
    weight 1."""

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
    """Deep supervision: weight of the mean loss of the additional outputs."""
    learn_ignored_class: bool = False
    """Whether pixels of the competition's `ignore_class` count in the loss; they never count in a score. Meant for
    comparisons, because a network that learns the class also predicts it (unless `predict.never` names it)."""

    def terms(self, kind: str, presence: bool = False, separates: bool = False) -> dict[str, Term]:
        """Returns the losses with a weight above 0 by name, defaults included.

        Args:
            kind: `binary`, `multilabel` or `multiclass`.
            presence: whether the network has a presence head.
            separates: whether the network has an output that separates touching objects.

        Raises:
            PipelineError: no loss of the masks is left, or a loss does not fit the kind or the network.
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
        active = {name: term for name, term in named.items() if term and term.weight > 0}
        if not set(active) - OF_OTHER_OUTPUTS:
            raise PipelineError(
                "loss: all losses of the masks have weight 0; give at least one of them a weight above 0."
            )
        unsuitable = {"multiclass": "bce", "multilabel": "cross_entropy"}.get(kind)
        if unsuitable in active:
            other = "cross_entropy" if unsuitable == "bce" else "bce"
            raise PipelineError(f"loss.{unsuitable} does not fit a {kind} competition; use loss.{other} instead.")
        if "presence" in active and not presence:
            raise PipelineError("loss.presence needs a presence head: set model.presence=true.")
        if "separator" in active and not separates:
            raise PipelineError(
                "loss.separator needs a network that separates objects: set model.instances=border or "
                "model.instances=distance."
            )
        return active
