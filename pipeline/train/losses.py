"""Weighted sums of losses by name. Ignored pixels (255) and completely ignored classes or images do not affect them.

All logits are set to 0 where the mask is 255 before any loss is computed, so that they get no gradient. Every loss then
leaves these pixels out of its sums and counts. A batch in which all pixels are ignored has loss 0.
"""

from collections.abc import Callable
from functools import partial

import segmentation_models_pytorch as smp
import torch
from torch.nn import functional

from pipeline.core.config.competition import Kind
from pipeline.core.config.losses import (
    OF_OTHER_OUTPUTS,
    BceTerm,
    CrossEntropyTerm,
    DiceTerm,
    FocalTerm,
    JaccardTerm,
    LossSettings,
    LovaszTerm,
    SeparatorTerm,
    Term,
    TverskyTerm,
)
from pipeline.core.errors import PipelineError
from pipeline.core.run import Run
from pipeline.masks.geometry import IGNORE
from pipeline.networks.output import Output

MaskLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""A function of logits (N, C, H, W) float32, which are 0 where the mask is 255, and masks. It returns a scalar."""


def check(run: Run) -> None:
    """Checks the losses of a recipe against its competition and its network.

    Raises:
        PipelineError: they do not go together.
    """
    recipe, competition = run.recipe, run.competition
    WeightedLoss(recipe.loss, competition.kind, recipe.model.presence, recipe.model.instances)
    if recipe.loss.learn_ignored_class and competition.ignored is None:
        raise PipelineError(
            f"loss.learn_ignored_class is true, but competition {competition.name} has no `ignore_class`: remove the "
            "setting."
        )


class WeightedLoss(torch.nn.Module):
    """The weighted sum of the losses that a recipe names.

    It covers every mask output, the presence output, and the separators of objects (model.instances), whose planes
    follow those of the masks.

    Masks are (N, C, H, W) uint8 with 0, 1 and 255. With soft labels they are float32 with values from 0 to 1, and 255.
    In a multiclass competition they are class maps (N, 1, H, W) with 255. With soft labels, bce, cross_entropy, dice,
    jaccard, tversky and focal are minimal if the prediction equals the label; lovasz, presence and dice.positives_only
    treat 0.5 and more as foreground.

    Raises:
        PipelineError: a setting does not suit the competition's kind, the model, or another setting.
    """

    def __init__(
        self, settings: LossSettings, kind: Kind = "binary", presence: bool = False, instances: str = "none"
    ) -> None:
        super().__init__()
        self.separates = instances != "none"
        terms = settings.terms(kind, presence, self.separates)
        self.weights = {name: term.weight for name, term in terms.items()}
        self.deep = settings.deep
        self.multiclass = kind == "multiclass"
        self.losses = {
            name: _mask_loss(term, self.multiclass) for name, term in terms.items() if name not in OF_OTHER_OUTPUTS
        }
        term = terms.get("separator")
        self.separator = _separator_loss(term, instances) if isinstance(term, SeparatorTerm) else None

    def forward(self, output: Output, masks: torch.Tensor) -> torch.Tensor:
        """Returns the loss of a batch, a float32 scalar.

        Raises:
            PipelineError: loss.presence is set but the network has no presence output; or
                loss.cross_entropy.class_weights has not one value per class.
        """
        total = self._of_mask(output.mask, masks)
        if output.deep and self.deep:
            total = total + self.deep * torch.stack([self._of_mask(logits, masks) for logits in output.deep]).mean()
        if "presence" in self.weights:
            if output.presence is None:
                raise PipelineError("loss.presence needs logits of presence, but the network returns none.")
            truth = self._planes(masks)[0]
            total = total + self.weights["presence"] * _presence(self.multiclass, output.presence.float(), truth)
        return total

    def _planes(self, planes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the planes of the masks and those of the separators."""
        classes = planes.shape[1] // (1 + self.separates)
        return planes[:, :classes], planes[:, classes:]

    def _of_mask(self, logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        logits, total = logits.float().masked_fill(masks == IGNORE, 0), logits.new_zeros((), dtype=torch.float32)
        if self.separates:
            (logits, separators), (masks, targets) = self._planes(logits), self._planes(masks)
            if self.separator:
                total = total + self.weights["separator"] * self.separator(separators, targets)
        for name, loss in self.losses.items():
            total = total + self.weights[name] * loss(logits, masks)
        return total


def _mask_loss(term: Term, multiclass: bool) -> MaskLoss:
    """Returns the loss that a term describes.

    Raises:
        PipelineError: settings cannot be combined.
    """
    mode = "multiclass" if multiclass else "multilabel"
    match term:
        case BceTerm():
            return partial(_binary_cross_entropy, term)
        case CrossEntropyTerm():
            if not multiclass:
                _require_weights(term, 2)
            return partial(_softmax_cross_entropy if multiclass else _two_class_cross_entropy, term)
        case DiceTerm(per_image=True):
            return partial(_image_dice, term, multiclass)
        case DiceTerm(positives_only=True):
            raise PipelineError("loss.dice.positives_only selects images: set loss.dice.per_image=true too.")
        case DiceTerm():
            return partial(_of_batch, multiclass, smp.losses.DiceLoss(mode, ignore_index=IGNORE))
        case JaccardTerm():
            return partial(_of_batch, multiclass, smp.losses.JaccardLoss(mode, ignore_index=IGNORE))
        case TverskyTerm(alpha=alpha, beta=beta, gamma=gamma):
            tversky = _Tversky(mode, ignore_index=IGNORE, alpha=alpha, beta=beta, gamma=gamma)
            return partial(_of_batch, multiclass, tversky)
        case FocalTerm():
            return partial(_softmax_focal if multiclass else _binary_focal, term)
        case LovaszTerm():
            if multiclass and term.kind == "elu":
                raise PipelineError("loss.lovasz.kind=elu cannot be used in a multiclass competition: remove it.")
            return partial(_lovasz, term, multiclass)
    raise TypeError(f"{type(term).__name__} is not a loss of masks")


def _separator_loss(term: SeparatorTerm, instances: str) -> MaskLoss:
    """Returns the loss of borders or distances, float32 from 0 to 1."""
    cross_entropy = partial(
        _binary_cross_entropy, BceTerm(pos_weight=term.pos_weight if instances == "border" else 1.0)
    )
    if instances == "distance":
        return cross_entropy
    dice = _mask_loss(DiceTerm(), multiclass=False)
    return lambda logits, targets: cross_entropy(logits, targets) + dice(logits, targets)


# --- losses per pixel ------------------------------------------------------------------------------------------------
# smp's SoftBCEWithLogitsLoss and SoftCrossEntropyLoss count ignored pixels in their mean. Its FocalLoss fails on
# multilabel masks with 255, is NaN without a valid pixel, and treats mutually exclusive classes as independent.


def _binary_cross_entropy(term: BceTerm, logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    target, valid = _labels(masks)
    if term.smoothing:
        target = target * (1 - term.smoothing) + term.smoothing / 2
    weight = None if term.pos_weight == 1 else logits.new_tensor(term.pos_weight)
    losses = functional.binary_cross_entropy_with_logits(logits, target, pos_weight=weight, reduction="none")
    return _mean(losses, valid)


def _two_class_cross_entropy(term: CrossEntropyTerm, logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Cross-entropy over background, with logit 0, and class, with the given logit; normalised as in torch."""
    background, foreground = term.class_weights or (1.0, 1.0)
    target, valid = _labels(masks)
    smooth = target * (1 - term.smoothing) + term.smoothing / 2
    as_class, as_background = functional.softplus(-logits), functional.softplus(logits)
    losses = foreground * smooth * as_class + background * (1 - smooth) * as_background
    return _divide((losses * valid).sum(), ((foreground * target + background * (1 - target)) * valid).sum())


def _softmax_cross_entropy(term: CrossEntropyTerm, logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    _require_weights(term, logits.shape[1])
    labels, weights = masks[:, 0].long(), logits.new_tensor(term.class_weights) if term.class_weights else None
    # reduction="mean" would be NaN for a batch without a valid pixel
    losses = functional.cross_entropy(
        logits, labels, weights, ignore_index=IGNORE, reduction="sum", label_smoothing=term.smoothing
    )
    valid = labels != IGNORE
    return _divide(losses, valid.sum() if weights is None else (weights[labels * valid] * valid).sum())


def _require_weights(term: CrossEntropyTerm, classes: int) -> None:
    weights = term.class_weights
    if weights is not None and (len(weights) != classes or min(weights) < 0):
        raise PipelineError(
            f"loss.cross_entropy.class_weights is {weights}; expected {classes} numbers of at least 0, one per class, "
            "the background first."
        )


def _binary_focal(term: FocalTerm, logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Focal loss (Lin et al. 2017), extended to soft labels as quality focal loss (Li et al. 2020)."""
    target, valid = _labels(masks)
    losses = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    losses = losses * _focus(torch.sigmoid(logits) - target, term.gamma)
    if term.alpha is not None:
        losses = losses * (term.alpha * target + (1 - term.alpha) * (1 - target))
    return _mean(losses, valid)


def _softmax_focal(term: FocalTerm, logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    labels, valid = masks.long(), masks != IGNORE
    log_share = functional.log_softmax(logits, 1).gather(1, labels * valid)
    losses = -log_share * _focus(1 - log_share.exp(), term.gamma)
    if term.alpha is not None:
        losses = losses * torch.where(labels > 0, term.alpha, 1 - term.alpha)
    return _mean(losses, valid)


def _focus(distance: torch.Tensor, gamma: float) -> torch.Tensor:
    # with gamma below 1 the gradient at 0 is infinite, and NaN if multiplied by that of a saturated sigmoid
    return distance.abs().clamp(min=1e-8) ** gamma


# --- losses of overlap -----------------------------------------------------------------------------------------------


class _Tversky(smp.losses.TverskyLoss):
    """smp's Tversky loss with the exponent applied per class (Abraham & Khan 2019), without NaN if a class has loss
    0."""

    def aggregate_loss(self, loss: torch.Tensor) -> torch.Tensor:
        """Returns the mean over the classes of their losses (C,) to the power of gamma."""
        # smp applies gamma to the mean; below 1 its gradient at 0 is NaN, and rounding may make small losses negative
        wrong = loss > 1e-7
        return (torch.where(wrong, loss, 1.0) ** self.gamma * wrong).mean()


def _of_batch(multiclass: bool, loss: torch.nn.Module, logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Returns a loss of smp: the mean over the classes, in which classes without foreground count as 0."""
    if multiclass:
        return loss(logits, masks[:, 0].long())
    # smp's mean includes classes without a valid pixel
    labelled = (masks != IGNORE).any(3).any(2).any(0).sum().clamp(min=1)
    return loss(logits, masks.float()) * (masks.shape[1] / labelled)


def _image_dice(term: DiceTerm, multiclass: bool, logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Returns the mean of 1 - Dice over images and classes with a valid pixel, or with foreground for positives_only.

    In a multiclass competition, a class that is absent from an image counts as an empty mask.
    """
    truth, valid = _foreground(multiclass, logits, masks), (masks != IGNORE).expand_as(logits).flatten(2)
    target = (truth.float() if multiclass else _labels(masks)[0]).flatten(2)
    share = (logits.softmax(1) if multiclass else logits.sigmoid()).flatten(2) * valid
    # for soft labels, a sum of products would not be maximal if both are equal; for 0 and 1 the two sums are the same
    overlap = torch.minimum(share, target).sum(2)
    losses = 1 - (2 * overlap + 1) / (share.sum(2) + target.sum(2) + 1)
    return _mean(losses, truth.flatten(2).any(2) if term.positives_only else valid.any(2))


def _lovasz(term: LovaszTerm, multiclass: bool, logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Returns the Lovász hinge or softmax loss (Berman et al. 2018): the mean over classes, then over images.

    A class counts in images (per_image) or batches in which its mask has a valid pixel; in multiclass competitions, as
    in the paper, in those where it occurs.

    smp's loss is not used: its mean includes ignored images, it returns no scalar for ignored multiclass images, and it
    treats the classes of a multilabel competition as one.
    """
    truth, valid = _foreground(multiclass, logits, masks), (masks != IGNORE).expand_as(logits)
    if multiclass:
        errors = (truth.float() - logits.softmax(1)).abs()
    else:
        margins = 1 - logits * (2 * truth.float() - 1)
        errors = functional.elu(margins) + 1 if term.kind == "elu" else functional.relu(margins)
    if not term.per_image:
        errors, truth, valid = (each.transpose(0, 1).flatten(1)[None, :, :, None] for each in (errors, truth, valid))
    errors, truth, valid = errors.flatten(2), truth.flatten(2), valid.flatten(2)
    losses = (errors * _lovasz_weights(errors.detach(), truth, valid)).sum(2)
    counted = (truth if multiclass else valid).any(2)
    images = (losses * counted).sum(1) / counted.sum(1).clamp(min=1)
    return _mean(images, counted.any(1))


def _lovasz_weights(errors: torch.Tensor, truth: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Returns the weight of each error: the increase of 1 - IoU if its pixel is wrong in addition to all pixels with
    larger errors.

    All tensors are (N, C, P). The weights of ignored pixels are 0.
    """
    order = errors.argsort(2, descending=True)
    missed, false = (each.gather(2, order).cumsum(2) for each in (truth, ~truth & valid))
    loss = (missed + false) / (missed[..., -1:] + false).clamp(min=1)
    steps = torch.diff(loss, dim=2, prepend=torch.zeros_like(loss[..., :1]))
    return torch.zeros_like(errors).scatter(2, order, steps)


# --- losses per image ------------------------------------------------------------------------------------------------


def _presence(multiclass: bool, logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Returns the binary cross-entropy of logits (N, C) that a class occurs among the valid pixels of an image. Images
    without a valid pixel do not count."""
    truth = _foreground(multiclass, logits, masks).flatten(2).any(2).float()
    losses = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    return _mean(losses, (masks != IGNORE).flatten(2).any(2).expand_as(logits))


# --- common parts ----------------------------------------------------------------------------------------------------


def _labels(masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the masks with 0 instead of 255, and a map with 1 for valid pixels; both float32."""
    valid = (masks != IGNORE).float()
    return masks.float() * valid, valid


def _foreground(multiclass: bool, logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Returns which pixels are valid and belong to each class, (N, C, H, W) bool."""
    if multiclass:
        return masks == torch.arange(logits.shape[1], device=masks.device)[:, None, None]
    return (masks >= 0.5) & (masks != IGNORE)


def _mean(values: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Returns the mean of the values that count; 0 if none does."""
    counted = counted.float()
    return (values * counted).sum() / counted.sum().clamp(min=1)


def _divide(total: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return total / torch.where(weight > 0, weight, 1)
