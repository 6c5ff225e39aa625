"""What a sweep varies: `--over key=a,b,c` and `--over key=low..high[:log]`, checked against the recipe's settings."""

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
    "competition": "scores of other images do not compare",
    "folds": "scores on other folds do not compare",
    "train.folds": "a sweep goes through the folds one by one: choose them with --folds",
    "train.final": "a final model has no out-of-fold score",
    "tune.rows": "scores of other images do not compare",
    "tune.presence_prior": "scores with other weights of the images do not compare",
    "takes": "it is a text",
    "quick": "--quick sweeps the recipe in miniature",
}
"""Keys that cannot be swept, and why; those below them neither."""


@dataclass(frozen=True)
class Choices:
    """Some values of a setting, as they stand on the command line: each is YAML."""

    values: tuple[str, ...]


@dataclass(frozen=True)
class Range:
    """All values of a setting between two ends, both included."""

    low: float
    high: float
    whole: bool
    """Whole numbers only."""
    log: bool
    """Drawn on a logarithmic scale."""

    def written(self, value: float) -> str:
        """Returns a value as a setting says it: a number of four digits, or a whole one, that lies in the range."""
        if self.whole:
            return str(int(value))
        return repr(min(max(float(f"{value:.4g}"), self.low), self.high))


Space = dict[str, Choices | Range]
"""What is varied, by dotted keys in the order of the command line."""


def parse(over: list[str], known: Mapping[str, Any]) -> Space:
    """Returns what the options --over say.

    Args:
        over: `key=a,b,c`, or `key=low..high`, with `:log` on a logarithmic scale.
        known: the recipe's settings by dotted keys: a range of a setting that is no whole number is none.

    Raises:
        PipelineError: one of them is none, names a key twice, or one that cannot be swept.
    """
    space: Space = {}
    if not over:
        raise PipelineError(f"sweep needs --over: what to vary, {EXAMPLE}.")
    for text in over:
        key, equals, values = (part.strip() for part in text.partition("="))
        if not (key and equals and values):
            raise PipelineError(f"--over {text}: expected key=values, {EXAMPLE}.")
        if key in space:
            raise PipelineError(f"--over {key} is given twice: list all its values in one.")
        for fixed, why in FIXED.items():
            if key == fixed or key.startswith(f"{fixed}."):
                raise PipelineError(f"--over {key} cannot be swept: {why}.")
            if fixed.startswith(f"{key}."):
                raise PipelineError(f"--over {key} cannot be swept as a whole ({fixed}: {why}): name its settings.")
        for other in space:
            if key.startswith(f"{other}.") or other.startswith(f"{key}."):
                raise PipelineError(f"--over {key} and --over {other} set the same: sweep one of them.")
        found = RANGE.fullmatch(values)
        types = _types(key)
        fractions = isinstance(known.get(key), float) or bool(types) and (float in types or int not in types)
        space[key] = _range(text, found, fractions) if found else _choices(text, values)
    return space


def of_recipe(run: Run) -> dict[str, Any]:
    """Returns a recipe's settings by dotted keys."""
    return flatten(run.recipe.model_dump(mode="json"))


def combinations(space: Space) -> list[dict[str, str]] | None:
    """Returns every combination of the values, the last key's changing first; None where a range has no end of them."""
    lists = [spec.values for spec in space.values() if isinstance(spec, Choices)]
    if len(lists) < len(space):
        return None
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*lists)]


def single_changes(space: Space) -> Iterator[tuple[str, str]]:
    """Yields each key with each of its values, or the ends of its range and a value between them."""
    for key, spec in space.items():
        if isinstance(spec, Choices):
            yield from ((key, value) for value in spec.values)
        else:
            between = spec.low + 0.37 * (spec.high - spec.low)  # not whole, where the ends are
            yield from ((key, spec.written(value)) for value in (spec.low, between, spec.high))


def described(space: Space) -> dict[str, str]:
    """Returns what is varied as the command line says it, for the record."""
    texts = {}
    for key, spec in space.items():
        if isinstance(spec, Choices):
            texts[key] = ",".join(spec.values)
        else:
            texts[key] = f"{spec.written(spec.low)}..{spec.written(spec.high)}{':log' if spec.log else ''}"
    return texts


def _types(key: str) -> set[Any]:
    """The types that a recipe's setting may have, by its dotted key; none of one that no recipe declares."""
    found: set[Any] = {Recipe}
    for part in key.split("."):
        models = [one for one in found if isinstance(one, type) and issubclass(one, BaseModel)]
        fields = [one.model_fields[part].annotation for one in models if part in one.model_fields]
        found = {one for field in fields for one in _parts(field)}
    return found


def _parts(annotation: Any) -> set[Any]:
    """The types in an annotation: those of a union, and of what is inside lists and mappings."""
    inside = get_args(annotation)
    return {part for one in inside for part in _parts(one)} if inside else {annotation}


def _range(text: str, found: re.Match[str], fractions: bool) -> Range:
    try:
        low, high = float(found["low"]), float(found["high"])
    except ValueError:
        raise PipelineError(f"--over {text}: expected two numbers around the dots, {EXAMPLE}.") from None
    if not math.isfinite(low) or not math.isfinite(high):
        raise PipelineError(f"--over {text}: expected two finite numbers around the dots, {EXAMPLE}.")
    whole = all(re.fullmatch(r"[-+]?\d+", found[end]) for end in ("low", "high")) and not fractions
    if low >= high:
        raise PipelineError(f"--over {text}: the range's first number must be below its second.")
    if found["log"] and low <= 0:
        raise PipelineError(f"--over {text}: a logarithmic range must begin above 0.")
    return Range(low, high, whole, bool(found["log"]))


def _choices(text: str, values: str) -> Choices:
    if ".." in values and "/" not in values:
        raise PipelineError(f"--over {text}: expected a range low..high of two numbers, or values with commas.")
    found = _split(values)
    if not found:
        raise PipelineError(f"--over {text}: a bracket or a quote is opened and not closed, or closed and not opened.")
    if "" in found:
        raise PipelineError(f"--over {text}: a value is missing between two commas, or at an end.")
    meant = [_meant(value) for value in found]
    repeated = [value for place, value in enumerate(found) if meant[place] in meant[:place]]
    if repeated:
        raise PipelineError(f"--over {text}: {repeated[0]} is listed twice.")
    if len(found) == 1:
        raise PipelineError(f"--over {text}: one value leaves nothing to choose; set it with --set {text}.")
    return Choices(tuple(found))


def _meant(value: str) -> Any:
    """What can be compared with other values: a number, however it is written, or the text."""
    try:
        return float(value)
    except ValueError:
        return value


def _split(values: str) -> list[str]:
    """Splits at the commas that stand in no brackets and no quotes; nothing where these are not closed."""
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
