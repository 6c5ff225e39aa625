"""Parsing of a metric as a competition's YAML writes it: a name, settings in parentheses, or a weighted sum of several.

    dice
    f_beta(beta=0.5, over=data_set)
    0.4 * dice(over=group) + 0.6 * iou(over=group)

masks/metrics.py computes the metrics. This module only defines how they may be written.
"""

import ast
from dataclasses import dataclass
from math import inf
from typing import Any, Literal

from pipeline.core.errors import did_you_mean

METRICS: dict[str, Literal["masks", "class maps"]] = {
    "dice": "masks",
    "iou": "masks",
    "f_beta": "masks",
    "iou_precision": "masks",
    "instance_precision": "masks",
    "instance_f_beta": "masks",
    "instance_f1": "masks",
    "surface_dice": "masks",
    "hausdorff": "masks",
    "mean_iou": "class maps",
}
"""The metrics that masks/metrics.py computes, and whether they compare masks or the class maps of kind multiclass."""
OVER = ("image", "group", "data_set")
"""The units over which pixels are summed before the score is computed."""
SETTINGS: dict[str, tuple[str, ...]] = {
    "dice": ("over",),
    "iou": ("over",),
    "f_beta": ("beta", "over"),
    "iou_precision": ("over",),
    "instance_precision": ("over",),
    "instance_f_beta": ("beta", "over"),
    "instance_f1": ("over",),
    "surface_dice": ("tolerance", "over"),
    "hausdorff": ("percentile", "over"),
}
"""The settings of each metric."""
EXAMPLE = "for instance dice, f_beta(beta=0.5, over=data_set) or 0.5 * dice + 0.5 * iou"


@dataclass(frozen=True)
class Term:
    """One metric of a weighted sum."""

    name: str
    settings: tuple[tuple[str, Any], ...] = ()
    weight: float = 1.0

    def __str__(self) -> str:
        inside = ", ".join(f"{key}={value}" for key, value in self.settings)
        return self.name + (f"({inside})" if inside else "")


def parse(text: str) -> tuple[Term, ...]:
    """Returns the terms of a metric's text. The settings of each term are in the order of SETTINGS.

    Raises:
        ValueError: the text is not a metric, has an unknown metric or setting, or a value or sum that is not allowed.
    """
    try:
        terms = _terms(ast.parse(text.strip(), mode="eval").body)
    except SyntaxError:
        raise ValueError(f"{text!r} is not a metric; expected {EXAMPLE}") from None
    if len({METRICS[term.name] for term in terms}) > 1:
        raise ValueError(f"{text!r} adds metrics of masks and metrics of class maps; expected metrics of one kind")
    return tuple(terms)


def written(terms: tuple[Term, ...]) -> str:
    """Returns the canonical text of a metric's terms."""
    if len(terms) == 1 and terms[0].weight == 1:
        return str(terms[0])
    return " + ".join(f"{term.weight:g} * {term}" for term in terms)


def _terms(node: ast.expr) -> list[Term]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [*_terms(node.left), *_terms(node.right)]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        number, other = (node.left, node.right) if isinstance(node.left, ast.Constant) else (node.right, node.left)
        weight = number.value if isinstance(number, ast.Constant) else None
        if not isinstance(weight, int | float) or isinstance(weight, bool) or not 0 < weight < inf:
            raise ValueError(f"`{ast.unparse(node)}`: expected a number above 0 times a metric")
        return [Term(term.name, term.settings, weight * term.weight) for term in _terms(other)]
    if isinstance(node, ast.Name):
        return [Term(_known(node.id))]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args:
        name = _known(node.func.id)
        if len({keyword.arg for keyword in node.keywords}) < len(node.keywords):
            raise ValueError(f"`{ast.unparse(node)}` gives a setting twice")
        given = {str(keyword.arg): _value(name, str(keyword.arg), keyword.value) for keyword in node.keywords}
        return [Term(name, tuple((key, given[key]) for key in SETTINGS.get(name, ()) if key in given))]
    raise ValueError(f"`{ast.unparse(node)}` is not a metric; expected {EXAMPLE}")


def _known(name: str) -> str:
    if name not in METRICS:
        raise ValueError(f"there is no metric `{name}`{did_you_mean(name, METRICS)} Known: {', '.join(METRICS)}")
    return name


def _value(name: str, key: str, node: ast.expr) -> Any:
    known = SETTINGS.get(name, ())
    if key not in known:
        has = f"it has {', '.join(known)}" if known else "it has none"
        raise ValueError(f"metric {name} has no setting {key!r}; {has}")
    value = node.id if isinstance(node, ast.Name) else node.value if isinstance(node, ast.Constant) else None
    if key == "over":
        if value not in OVER:
            raise ValueError(f"metric {name}: over is {ast.unparse(node)}; expected {', '.join(OVER)}")
        return value
    least = 1e-6 if key == "beta" else 0
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value < inf:
        raise ValueError(f"metric {name}: {key} is {ast.unparse(node)}; expected a number above 0")
    if key == "percentile" and not 0 < value <= 100:
        raise ValueError(f"metric {name}: percentile is {value}; expected a number from 1 to 100")
    return value
