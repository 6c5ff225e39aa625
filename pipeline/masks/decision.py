"""The decision map: from the network's probabilities to the mask that is scored or submitted.

`tune` and `encode` call the same functions, so that encoding the out-of-fold predictions reproduces tune's score to the
last digit.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from pipeline.masks import regions, separation
from pipeline.masks.class_bias import labels
from pipeline.masks.geometry import Geometry, to_native
from pipeline.masks.ranking import Calibration, Rank
from pipeline.masks.regions import RegionRule
from pipeline.masks.separation import Separation, separated

LEVELS = 256


@dataclass(frozen=True)
class Linear:
    """A weighted sum of features of an image's mask of one class; see mask_features."""

    head: float = 0.0
    """Weight of the logit of the network's presence head."""
    area: float = 0.0
    """Weight of log(1 + number of pixels that reach the threshold)."""
    highest: float = 0.0
    """Weight of the highest probability of any pixel, from 0 to 1."""
    confidence: float = 0.0
    """Weight of the mean probability of the pixels that reach the threshold, from 0 to 1; 0 if there are none."""
    intercept: float = 0.0

    def of(self, features: np.ndarray) -> np.ndarray:
        """Returns sums (…) float64 of features (…, 4); see mask_features."""
        # not a matrix product, whose last bit depends on the number of rows
        weighted = features * np.array([self.head, self.area, self.highest, self.confidence])
        return weighted.sum(-1) + self.intercept


@dataclass(frozen=True)
class Presence:
    """The rule that keeps or empties a mask by the probability that the class is present in the image."""

    probability: Linear = Linear(head=1.0)
    """The logit of the probability that the class is present; by default that of the presence head."""
    cut: float | None = None
    """A mask is kept if the probability p of presence is larger than this. None: `worth` decides."""
    worth: Linear | None = None
    """The expected score d of an image with the class. Without `cut`, a mask is kept if p·d > 1 - p, which means that
    keeping it raises the expected score."""

    def keeps(self, features: np.ndarray) -> np.ndarray:
        """Returns which masks (…) bool are kept, from features (…, 4); see mask_features."""
        return self._pays(*self._chances(features))

    def keeps_on_average(self, features: np.ndarray) -> bool:
        """Returns whether a mask is kept, from the features (M, 4) of the mask of each of several models.

        This rule was fitted to single models, and the mean of several models has less extreme probabilities than each
        of them. Therefore the probability of presence and the expected score are computed per model, and then averaged.
        """
        p, worth = self._chances(features)
        return bool(self._pays(p.mean(0), worth.mean(0)))

    def _chances(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        p = 1 / (1 + np.exp(-self.probability.of(features)))
        return p, np.ones_like(p) if self.worth is None else np.clip(self.worth.of(features), 0, 1)

    def _pays(self, p: np.ndarray, expected: np.ndarray) -> np.ndarray:
        return p > self.cut if self.worth is None else p * expected > 1 - p


def mask_features(head: np.ndarray, area: np.ndarray, highest: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Returns the features (…, 4) float64 that Linear weights.

    Args:
        head: the probability of the presence head (…), 0 to 1.
        area: number of pixels that reach the threshold (…).
        highest: the highest probability of any pixel (…), in 255ths.
        total: the sum of the probabilities of the pixels that reach the threshold (…), in 255ths.
    """
    p = np.clip(np.asarray(head, np.float64), 1e-5, 1 - 1e-5)
    largest = LEVELS - 1
    confidence = np.asarray(total) / (largest * np.maximum(area, 1))
    return np.stack([np.log(p / (1 - p)), np.log1p(area), np.asarray(highest) / largest, confidence], axis=-1)


@dataclass(frozen=True)
class Rule:
    """How the probabilities of one class are turned into its mask. The steps are applied in this order."""

    threshold: int = 128
    """Pixels of at least this probability, in 255ths, belong to the mask."""
    min_area: int = 0
    """A mask with fewer pixels at threshold `top`, counted at the image's own size, becomes empty."""
    top: int | None = None
    """The threshold, higher than `threshold`, at which the area is counted (a “triplet”). None: `threshold`."""
    presence: Presence | None = None
    """A mask also becomes empty if the class is not probable enough in the image. None: no such rule."""
    rank: Rank | None = None
    """If set, a mask that is not empty is drawn from calibrated probabilities at the best threshold for this image,
    instead of `threshold`."""
    components: RegionRule = RegionRule()
    """Which connected regions of the mask are kept."""
    separation: Separation | None = None
    """How touching objects in the mask are separated. None: the connected regions are the objects."""

    @property
    def level(self) -> int:
        """The threshold, in 255ths, at which the area is counted."""
        return self.threshold if self.top is None else self.top


@dataclass(frozen=True)
class Rules:
    """The decision for binary and multilabel competitions: one rule per class."""

    rules: tuple[Rule, ...]


@dataclass(frozen=True)
class Biases:
    """The decision for multiclass competitions: a bias that is added to the log probability of each class before the
    largest is chosen, and the classes that are never chosen."""

    bias: tuple[float, ...]
    never: tuple[int, ...] = ()


Decision = Rules | Biases


def native_probability(models: Sequence[np.ndarray], geometry: Geometry, shape: tuple[int, int]) -> np.ndarray:
    """Returns probabilities (C, h, w) float32 at the image's own size, in the unit of the models (for uint8, 0 to 255).

    Args:
        models: one array (C, H, W) uint8 or float16 per model, at the size of the pixel arrays. They are averaged at
            this size.
        geometry: how the image was fitted to that size.
        shape: the image's own rows × columns.
    """
    return to_native(np.asarray(np.mean(models, axis=0, dtype=np.float32)), geometry, shape)


def decide(
    probability: np.ndarray,
    decision: Decision,
    presence: np.ndarray | None = None,
    models: Sequence[np.ndarray] | None = None,
    folds: Sequence[str | None] | None = None,
) -> np.ndarray:
    """Returns masks (C, h, w) uint8 of 0 and 1. In multiclass competitions, each pixel is 1 in exactly one plane.

    Args:
        probability: (C, h, w) uint8, or float32 in multiclass competitions.
        decision: what tune chose.
        presence: probabilities of the presence head from 0 to 1, (C,), or (M, C) with `models`. None: there is no head.
        models: if `probability` is the mean of several models, the probabilities of each of the M models, each like the
            one that was tuned on. The presence of a class is decided from them. None: there is one model.
        folds: the fold of each model (M), by which its calibration is chosen. None: the models belong to no fold.
    """
    if isinstance(decision, Biases):
        chosen = labels(probability, decision.bias, decision.never)
        return (chosen == np.arange(len(probability), dtype=np.uint8)[:, None, None]).astype(np.uint8)
    models = [probability] if models is None else models
    folds = [None] * len(models) if folds is None else folds
    heads = np.full((len(models), len(probability)), 0.5) if presence is None else np.atleast_2d(presence)
    planes = [[model[index] for model in models] for index in range(len(probability))]
    each = zip(probability, decision.rules, planes, heads.T, strict=True)
    return np.stack([_mask(*arguments, folds) for arguments in each])


def disjoint(masks: np.ndarray, probability: np.ndarray, overlap: Literal["none", "classes", "any"]) -> np.ndarray:
    """Returns masks or label maps (C, h, w) without overlaps between classes, if the competition does not allow them.
    Each pixel is kept in the mask of its most probable class.

    Args:
        masks: the masks or label maps of an image.
        probability: the probabilities from which they were made, of the same shape.
        overlap: the competition's `submission.overlap`.
    """
    if overlap != "none" or len(masks) == 1:
        return masks
    best = np.where(masks > 0, probability.astype(np.float32), -1).argmax(0)
    return np.where(best == np.arange(len(masks))[:, None, None], masks, 0).astype(masks.dtype)


def separates(decision: Decision) -> bool:
    """Returns whether a decision separates touching objects."""
    return isinstance(decision, Rules) and any(rule.separation for rule in decision.rules)


def objects(masks: np.ndarray, probability: np.ndarray, separator: np.ndarray | None, decision: Decision) -> np.ndarray:
    """Returns the objects in masks from `decide`, as label maps (C, h, w) int32. If the decision separates no objects,
    the masks are returned; their connected regions are the objects.

    Args:
        masks: (C, h, w) uint8 of 0 and 1.
        probability: the probabilities from which they were made (C, h, w) uint8.
        separator: the network's borders or distances (C, h, w) uint8; None if it predicts none.
        decision: what tune chose.
    """
    if not separates(decision):
        return masks
    assert isinstance(decision, Rules)
    separators = [None] * len(masks) if separator is None else list(separator)
    each = zip(masks, probability, separators, decision.rules, strict=True)
    return np.stack([separated(mask, plane, apart, rule.separation) for mask, plane, apart, rule in each])


def asks_models(decision: Decision) -> bool:
    """Returns whether a decision needs the probabilities of each single model."""
    return isinstance(decision, Rules) and any(rule.presence or rule.rank for rule in decision.rules)


def decision_of(result: dict[str, Any]) -> Decision:
    """Returns the decision in the content of postprocess.json."""
    if "bias" in result:
        return Biases(tuple(result["bias"].values()), tuple(result["never"]))
    return Rules(tuple(_rule(fields) for fields in result["rules"].values()))


def described(decision: Rules, classes: Sequence[str]) -> dict[str, Any]:
    """Returns a decision in the form of postprocess.json: the fields of each rule, by class."""
    return {name: asdict(rule) for name, rule in zip(classes, decision.rules, strict=True)}


def in_words(rule: dict[str, Any]) -> str:
    """Returns a text that describes a rule of postprocess.json."""
    parts = [f"threshold {rule['threshold']} of 255"]
    if rule.get("rank"):
        slopes = ", ".join(f"{calibration['slope']:.2f}" for calibration in rule["rank"]["folds"].values())
        parts = [f"the best threshold for each image, from probabilities calibrated per fold (slopes {slopes})"]
    if rule["min_area"]:
        parts.append(f"at least {rule['min_area']} px" + (f" at {rule['top']}" if rule["top"] else ""))
    if rule["presence"]:
        cut = rule["presence"]["cut"]
        parts.append(
            "presence if the expected score is higher (p·d > 1 - p)" if cut is None else f"presence above {cut:.3f}"
        )
    descriptions = {"fill": "holes filled", "largest": "only the largest region"}
    descriptions |= {"min_size": f"regions of at least {rule['components']['min_size']} px"}
    parts += [descriptions[name] for name, value in rule["components"].items() if value]
    parts += [separation.in_words(rule["separation"])] if rule.get("separation") else []
    return ", ".join(parts)


def _mask(
    probability: np.ndarray,
    rule: Rule,
    models: Sequence[np.ndarray],
    heads: np.ndarray,
    folds: Sequence[str | None],
) -> np.ndarray:
    mask = (probability >= rule.threshold).view(np.uint8)
    if (probability >= rule.level).sum() < rule.min_area:
        return np.zeros_like(mask)
    if rule.presence:
        pairs = zip(models, heads, strict=True)
        if not rule.presence.keeps_on_average(
            np.stack([_features(model, rule.threshold, head) for model, head in pairs])
        ):
            return np.zeros_like(mask)
    return regions.clean(rule.rank.mask(models, folds) if rule.rank else mask, rule.components)


def _features(probability: np.ndarray, threshold: int, head: float) -> np.ndarray:
    mask = probability >= threshold
    total = probability.sum(dtype=np.int64, where=mask)
    return mask_features(np.array(head), mask.sum(), probability.max(), total)


def _rule(fields: dict[str, Any]) -> Rule:
    presence = fields["presence"]
    if presence:
        parts = {key: Linear(**presence[key]) for key in ("probability", "worth") if presence[key]}
        presence = Presence(**presence | parts)
    rank = fields.get("rank")
    if rank:
        folds = {fold: Calibration(**calibration) for fold, calibration in rank["folds"].items()}
        rank = Rank(rank["metric"], Calibration(**rank["pooled"]), folds)
    components, separation = RegionRule(**fields["components"]), fields.get("separation")
    separation = Separation(**separation) if separation else None
    return Rule(**fields | {"presence": presence, "rank": rank, "components": components, "separation": separation})
