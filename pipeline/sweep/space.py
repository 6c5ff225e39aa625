"""Parses the space of a sweep, `--over key=a,b,c` and `--over key=low..high[:log]`, and checks it against the
recipe."""

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel

from pipeline.core.config.recipe import Recipe
from pipeline.core.config.settings import flatten
from pipeline.core.errors import PipelineError
from pipeline.core.run import Run

RANGE = re.compile(r"(?P<low>[-+]?[\d.]+(?:[eE][-+]?\d+)?)\.\.(?P<high>[-+]?[\d.]+(?:[eE][-+]?\d+)?)(?P<log>:log)?")
EXAMPLE = "for instance --over train.learning_rate=1e-4,3e-4 or --over train.learning_rate=1e-4..1e-2:log"
FIXED = {
    "name": "it names the run",
    "base": "it is another recipe",
    "competition": "scores on other images cannot be compared",
    "folds": "scores on other folds cannot be compared",
    "train.folds": "a sweep trains the folds one by one: choose them with --folds",
    "train.final": "a final model has no out-of-fold score",
    "tune.rows": "scores on other images cannot be compared",
    "tune.presence_prior": "scores with other weights of the images cannot be compared",
    "takes": "it is a text",
    "quick": "--quick sweeps the quick version of the recipe",
}
"""Keys that cannot be swept, with the keys below them, and the reason."""


@dataclass(frozen=True)
class Choices:
    """A list of values of a setting, as on the command line; each is YAML."""

    values: tuple[str, ...]


@dataclass(frozen=True)
class Range:
    """All values of a setting between two limits, which are included."""

    low: float
    high: float
    whole: bool
    """Whole numbers only."""
    log: bool
    """Drawn on a logarithmic scale."""

    def written(self, value: float) -> str:
        """Returns a value as the text of a setting: rounded to four digits, or whole, and within the range."""
        if self.whole:
            return str(int(value))
        return repr(min(max(float(f"{value:.4g}"), self.low), self.high))


Space = dict[str, Choices | Range]
"""The varied settings, by dotted keys in the order of the command line."""


def parse(over: list[str], known: Mapping[str, Any]) -> Space:
    """Parses the options --over.

    Args:
        over: `key=a,b,c`, or `key=low..high`, with `:log` for a logarithmic scale.
        known: the recipe's settings by dotted keys; if a setting is not a whole number, neither are the values of its
            range.

    Raises:
        PipelineError: an option is invalid, repeats a key, or names a key that cannot be swept.
    """
    space: Space = {}
    if not over:
        raise PipelineError(f"sweep needs --over: what to vary, {EXAMPLE}.")
    for text in over:
        key, equals, values = (part.strip() for part in text.partition("="))
        if not (key and equals and values):
            raise PipelineError(f"--over {text}: expected key=values, {EXAMPLE}.")
        if key in space:
            raise PipelineError(f"--over {key} is given twice: list all its values in one option.")
        for fixed, reason in FIXED.items():
            if key == fixed or key.startswith(f"{fixed}."):
                raise PipelineError(f"--over {key} cannot be swept: {reason}.")
            if fixed.startswith(f"{key}."):
                raise PipelineError(f"--over {key} cannot be swept as a whole ({fixed}: {reason}): name its settings.")
        for other in space:
            if key.startswith(f"{other}.") or other.startswith(f"{key}."):
                raise PipelineError(f"--over {key} and --over {other} vary the same setting: sweep one of them.")
        match = RANGE.fullmatch(values)
        types = _types(key)
        fractions = isinstance(known.get(key), float) or bool(types) and (float in types or int not in types)
        space[key] = _range(text, match, fractions) if match else _choices(text, values)
    return space


def of_recipe(run: Run) -> dict[str, Any]:
    """Returns a recipe's settings by dotted keys."""
    return flatten(run.recipe.model_dump(mode="json"))


def combinations(space: Space) -> list[dict[str, str]] | None:
    """Returns all combinations of the values, in which the last key changes first; None if there is a range."""
    lists = [spec.values for spec in space.values() if isinstance(spec, Choices)]
    if len(lists) < len(space):
        return None
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*lists)]


def single_changes(space: Space) -> Iterator[tuple[str, str]]:
    """Yields each key with each of its values, or with the limits of its range and a value between them."""
    for key, spec in space.items():
        if isinstance(spec, Choices):
            yield from ((key, value) for value in spec.values)
        else:
            between = spec.low + 0.37 * (spec.high - spec.low)  # not whole, even if the limits are
            yield from ((key, spec.written(value)) for value in (spec.low, between, spec.high))


def described(space: Space) -> dict[str, str]:
    """Returns the varied settings as on the command line, for the record."""
    texts = {}
    for key, spec in space.items():
        if isinstance(spec, Choices):
            texts[key] = ",".join(spec.values)
        else:
            texts[key] = f"{spec.written(spec.low)}..{spec.written(spec.high)}{':log' if spec.log else ''}"
    return texts


def _types(key: str) -> set[Any]:
    """The types that a setting of a recipe may have, by its dotted key; empty if recipes do not declare the setting."""
    types: set[Any] = {Recipe}
    for part in key.split("."):
        models = [kind for kind in types if isinstance(kind, type) and issubclass(kind, BaseModel)]
        fields = [model.model_fields[part].annotation for model in models if part in model.model_fields]
        types = {kind for field in fields for kind in _parts(field)}
    return types


def _parts(annotation: Any) -> set[Any]:
    """The types in an annotation: the members of a union, and the types inside lists and mappings."""
    inside = get_args(annotation)
    return {part for argument in inside for part in _parts(argument)} if inside else {annotation}


def _range(text: str, match: re.Match[str], fractions: bool) -> Range:
    try:
        low, high = float(match["low"]), float(match["high"])
    except ValueError:
        raise PipelineError(f"--over {text}: expected two numbers around the dots, {EXAMPLE}.") from None
    if not math.isfinite(low) or not math.isfinite(high):
        raise PipelineError(f"--over {text}: expected two finite numbers around the dots, {EXAMPLE}.")
    whole = all(re.fullmatch(r"[-+]?\d+", match[end]) for end in ("low", "high")) and not fractions
    if low >= high:
        raise PipelineError(f"--over {text}: the range's first number must be below its second.")
    if match["log"] and low <= 0:
        raise PipelineError(f"--over {text}: a logarithmic range must begin above 0.")
    return Range(low, high, whole, bool(match["log"]))


def _choices(text: str, values: str) -> Choices:
    if ".." in values and "/" not in values:
        raise PipelineError(f"--over {text}: expected a range low..high of two numbers, or values with commas.")
    parts = _split(values)
    if not parts:
        raise PipelineError(f"--over {text}: a bracket or a quote is opened and not closed, or closed and not opened.")
    if "" in parts:
        raise PipelineError(f"--over {text}: a value is missing between two commas, or at the start or the end.")
    comparable = [_comparable(part) for part in parts]
    repeated = [part for index, part in enumerate(parts) if comparable[index] in comparable[:index]]
    if repeated:
        raise PipelineError(f"--over {text}: {repeated[0]} is listed twice.")
    if len(parts) == 1:
        raise PipelineError(f"--over {text}: there is only one value, so nothing to choose; set it with --set {text}.")
    return Choices(tuple(parts))


def _comparable(value: str) -> Any:
    """The value in a form that can be compared: the number, in any notation, or the text."""
    try:
        return float(value)
    except ValueError:
        return value


def _split(values: str) -> list[str]:
    """Splits at the commas outside brackets and quotes; returns an empty list if a bracket or quote is not closed."""
    parts, depth, quote = [""], 0, ""
    for letter in values:
        if quote or letter in "\"'":
            quote = "" if letter == quote else quote or letter
        elif letter in "[{":
            depth += 1
        elif letter in "]}":
            depth -= 1
        if letter == "," and depth <= 0 and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return [] if depth or quote else [part.strip() for part in parts]
