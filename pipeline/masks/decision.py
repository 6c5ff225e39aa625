"""The decision map: from network probabilities to the mask that is scored or submitted.

`tune` and `encode` call the same functions, so encoding the out-of-fold predictions reproduces tune's score to the last
digit.
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
    """A weighted sum of what is known about an image's mask of one class."""

    head: float = 0.0
    """Weight of the logit of the network's presence head."""
    area: float = 0.0
    """Weight of log(1 + pixels that reach the threshold)."""
    highest: float = 0.0
    """Weight of the highest probability of a pixel, from 0 to 1."""
    confidence: float = 0.0
    """Weight of the mean probability of the pixels that reach the threshold, from 0 to 1; 0 without any."""
    intercept: float = 0.0

    def of(self, features: np.ndarray) -> np.ndarray:
        """Returns sums (…) float64 of features (…, 4); see mask_features."""
        # not a product of matrices, whose last bit depends on their number
        weighted = features * np.array([self.head, self.area, self.highest, self.confidence])
        return weighted.sum(-1) + self.intercept


@dataclass(frozen=True)
class Presence:
    """Whether a class is probable enough in an image for its mask to stay."""

    probability: Linear = Linear(head=1.0)
    """Its logit; by default the presence head's own."""
    cut: float | None = None
    """A mask stays where the probability p is larger;"""
    worth: Linear | None = None
    """or, without `cut`, where that pays: where p·d > 1 - p, d being the score to expect of an image with the class."""

    def keeps(self, features: np.ndarray) -> np.ndarray:
        """Returns which masks (…) bool stay, from features (…, 4); see mask_features."""
        return self._pays(*self._chances(features))

    def keeps_on_average(self, features: np.ndarray) -> bool:
        """Returns whether a mask stays, from the features (M, 4) that each of several models would give it.

        The mean of several models is less sure of itself than any of them, and this rule was fitted to single ones: so
        each says how probable the class is, and what the mask is worth, and these are averaged.
        """
        p, worth = self._chances(features)
        return bool(self._pays(p.mean(0), worth.mean(0)))

    def _chances(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        p = 1 / (1 + np.exp(-self.probability.of(features)))
        return p, np.ones_like(p) if self.worth is None else np.clip(self.worth.of(features), 0, 1)

    def _pays(self, p: np.ndarray, worth: np.ndarray) -> np.ndarray:
        return p > self.cut if self.worth is None else p * worth > 1 - p


def mask_features(head: np.ndarray, area: np.ndarray, highest: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Returns features (…, 4) float64 for Linear.

    Args:
        head: what the presence head says (…), 0 to 1.
        area: pixels that reach the threshold (…).
        highest: the highest probability of a pixel (…), of 255.
        total: the sum of the probabilities of the pixels that reach the threshold (…), of 255.
    """
    p = np.clip(np.asarray(head, np.float64), 1e-5, 1 - 1e-5)
    largest = LEVELS - 1
    confidence = np.asarray(total) / (largest * np.maximum(area, 1))
    return np.stack([np.log(p / (1 - p)), np.log1p(area), np.asarray(highest) / largest, confidence], axis=-1)


@dataclass(frozen=True)
class Rule:
    """How the probabilities of one class become its mask, in this order."""

    threshold: int = 128
    """The lowest probability (of 255) of the mask's pixels."""
    min_area: int = 0
    """A mask with fewer native pixels at `top` becomes empty."""
    top: int | None = None
    """The probability that the area is counted at, above `threshold` (a “triplet”); None: `threshold` itself."""
    presence: Presence | None = None
    """A mask also becomes empty where the class is not probable enough."""
    rank: Rank | None = None
    """What is not empty by then, is drawn at the image's own best threshold, from calibrated probabilities, and not at
    `threshold`."""
    components: RegionRule = RegionRule()
    """What of the mask stays, by its connected regions."""
    separation: Separation | None = None
    """How touching objects of what stays are told apart; None: the connected regions are the objects."""

    @property
    def level(self) -> int:
        """The probability (of 255) that the area is counted at."""
        return self.threshold if self.top is None else self.top


@dataclass(frozen=True)
class Rules:
    """Binary and multilabel: one rule a class."""

    rules: tuple[Rule, ...]


@dataclass(frozen=True)
class Biases:
    """Multiclass: what is added to each class's log-probability before the largest wins, and who may not win."""

    bias: tuple[float, ...]
    never: tuple[int, ...] = ()


Decision = Rules | Biases


def native_probability(models: Sequence[np.ndarray], geometry: Geometry, shape: tuple[int, int]) -> np.ndarray:
    """Returns probabilities (C, h, w) float32 at the image's own size, in the models' unit (uint8: 0 to 255).

    Args:
        models: one array (C, H, W) uint8 or float16 a model, at the size of the pixel arrays, where they are averaged.
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
    """Returns masks (C, h, w) uint8 of 0 and 1; a multiclass pixel is 1 in one plane.

    Args:
        probability: (C, h, w) uint8, or float32 of a multiclass image.
        decision: what tune chose.
        presence: what the presence head says, 0 to 1, (C,), or (M, C) with models; None: there is none.
        models: where the probability is the mean of several models, each of which is like the one that was tuned on,
            theirs (M), as `probability`; whether a class is there, they say one by one. None: it is one model's.
        folds: the fold of each model (M), whose calibration is asked for; None: they are of no fold.
    """
    if isinstance(decision, Biases):
        chosen = labels(probability, decision.bias, decision.never)
        return (chosen == np.arange(len(probability), dtype=np.uint8)[:, None, None]).astype(np.uint8)
    models = [probability] if models is None else models
    folds = [None] * len(models) if folds is None else folds
    heads = np.full((len(models), len(probability)), 0.5) if presence is None else np.atleast_2d(presence)
    planes = [[one[index] for one in models] for index in range(len(probability))]
    each = zip(probability, decision.rules, planes, heads.T, strict=True)
    return np.stack([_mask(*one, folds) for one in each])


def disjoint(masks: np.ndarray, probability: np.ndarray, overlap: Literal["none", "classes", "any"]) -> np.ndarray:
    """Returns masks or label maps (C, h, w) of which no two share a pixel, where the competition allows no overlap: a
    pixel stays in the mask of the most probable of its classes.

    Args:
        masks: of the classes of an image.
        probability: the same shape, what they were decided on.
        overlap: what the competition's `submission.overlap` says.
    """
    if overlap != "none" or len(masks) == 1:
        return masks
    best = np.where(masks > 0, probability.astype(np.float32), -1).argmax(0)
    return np.where(best == np.arange(len(masks))[:, None, None], masks, 0).astype(masks.dtype)


def separates(decision: Decision) -> bool:
    """Returns whether a decision tells touching objects apart."""
    return isinstance(decision, Rules) and any(rule.separation for rule in decision.rules)


def objects(masks: np.ndarray, probability: np.ndarray, separator: np.ndarray | None, decision: Decision) -> np.ndarray:
    """Returns the objects of masks that `decide` returned, as label maps (C, h, w) int32; where the decision separates
    nothing the masks themselves, whose connected regions are the objects.

    Args:
        masks: (C, h, w) uint8 of 0 and 1.
        probability: what they were decided from (C, h, w) uint8.
        separator: what the network says of borders or distances (C, h, w) uint8; None where it says nothing.
        decision: what tune chose.
    """
    if not separates(decision):
        return masks
    assert isinstance(decision, Rules)
    separators = [None] * len(masks) if separator is None else list(separator)
    each = zip(masks, probability, separators, decision.rules, strict=True)
    return np.stack([separated(mask, plane, apart, rule.separation) for mask, plane, apart, rule in each])


def asks_models(decision: Decision) -> bool:
    """Returns whether a decision needs the probabilities of each model."""
    return isinstance(decision, Rules) and any(rule.presence or rule.rank for rule in decision.rules)


def decision_of(result: dict[str, Any]) -> Decision:
    """Returns the decision that postprocess.json holds."""
    if "bias" in result:
        return Biases(tuple(result["bias"].values()), tuple(result["never"]))
    return Rules(tuple(_rule(found) for found in result["rules"].values()))


def described(decision: Rules, classes: Sequence[str]) -> dict[str, Any]:
    """Returns a decision as postprocess.json holds it, by class."""
    return {name: asdict(rule) for name, rule in zip(classes, decision.rules, strict=True)}


def in_words(rule: dict[str, Any]) -> str:
    """Returns a rule of postprocess.json as a person reads it."""
    parts = [f"threshold {rule['threshold']} of 255"]
    if rule.get("rank"):
        slopes = ", ".join(f"{one['slope']:.2f}" for one in rule["rank"]["folds"].values())
        parts = [f"each image at its own best threshold, probabilities calibrated by fold (slopes {slopes})"]
    if rule["min_area"]:
        parts.append(f"at least {rule['min_area']} px" + (f" at {rule['top']}" if rule["top"] else ""))
    if rule["presence"]:
        cut = rule["presence"]["cut"]
        parts.append("presence where it pays (p·d > 1 - p)" if cut is None else f"presence over {cut:.3f}")
    said = {"fill": "holes filled", "largest": "the largest region only"}
    said |= {"min_size": f"regions of at least {rule['components']['min_size']} px"}
    parts += [said[name] for name, value in rule["components"].items() if value]
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
        if not rule.presence.keeps_on_average(np.stack([_features(one, rule.threshold, head) for one, head in pairs])):
            return np.zeros_like(mask)
    return regions.clean(rule.rank.mask(models, folds) if rule.rank else mask, rule.components)


def _features(probability: np.ndarray, threshold: int, head: float) -> np.ndarray:
    mask = probability >= threshold
    total = probability.sum(dtype=np.int64, where=mask)
    return mask_features(np.array(head), mask.sum(), probability.max(), total)


def _rule(found: dict[str, Any]) -> Rule:
    presence = found["presence"]
    if presence:
        parts = {key: Linear(**presence[key]) for key in ("probability", "worth") if presence[key]}
        presence = Presence(**presence | parts)
    rank = found.get("rank")
    if rank:
        folds = {fold: Calibration(**one) for fold, one in rank["folds"].items()}
        rank = Rank(rank["metric"], Calibration(**rank["pooled"]), folds)
    components, apart = RegionRule(**found["components"]), found.get("separation")
    apart = Separation(**apart) if apart else None
    return Rule(**found | {"presence": presence, "rank": rank, "components": components, "separation": apart})
