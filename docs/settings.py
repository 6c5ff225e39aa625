"""Writes docs/settings.md, every setting of recipes and competitions with its default, an example and its meaning.

python docs/settings.py

All but the examples comes from the models that check the settings; the examples stand in docs/settings_examples.yaml.
"""

import json
import re
import shlex
import sys
import types
import typing
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic.fields import FieldInfo

sys.path.insert(0, str(Path(__file__).parents[1]))

from pipeline.core.config.competition import Competition
from pipeline.core.config.raw_layouts import Arrays, NpzLabels, OxfordPet, RleCsv
from pipeline.core.config.recipe import Recipe
from pipeline.core.config.settings import Settings, merge

PAGE = Path(__file__).with_suffix(".md")
EXAMPLES = Path(__file__).with_name("settings_examples.yaml")
HEAD = """# Settings

Every setting, its default, an example and its meaning. `python docs/settings.py` writes this page from the models that
check the settings; an unknown key is an error that suggests the nearest known one.

- A setting of the **recipe** goes on the command line, `--set train.epochs=20`, or into the recipe's YAML,
  `train: {epochs: 20}`. Quote a value that holds spaces, brackets or braces: `--set 'train.folds=[0]'`.
- A setting of the **competition** (from [The competition](#the-competition-decode-encode) on) stands in the
  competition's YAML. No command changes it; `python -m pipeline new NAME --from FOLDER --set KEY=VALUE` writes it into
  the first YAML.

`null` means: none, or decided by the pipeline as the text says. What depends on a changed setting runs again, and
nothing else does.
"""
PARTS = {
    "The recipe": (Recipe, ("competition", "base", "folds", "ensemble", "arrays", "takes", "quick"), "recipe"),
    "Images (decode, train)": (Recipe, ("image", "augment"), "recipe"),
    "The network (train)": (Recipe, ("model",), "recipe"),
    "Losses (train)": (Recipe, ("loss",), "recipe"),
    "Training (train)": (Recipe, ("train",), "recipe"),
    "Prediction (validate, predict)": (Recipe, ("predict",), "recipe"),
    "Post-processing (tune)": (Recipe, ("tune",), "recipe"),
    "The competition (decode, encode)": (
        Competition,
        tuple(name for name in Competition.model_fields if name not in ("name", "clean", "split", "splits")),
        "rle_csv",
    ),
    "Cleaning (clean)": (Competition, ("clean",), "rle_csv"),
    "Folds (split)": (Competition, ("split", "splits"), "rle_csv"),
    "Reader rle_csv": (RleCsv, (), "rle_csv"),
    "Reader npz_labels": (NpzLabels, (), "npz_labels"),
    "Reader arrays": (Arrays, (), "arrays"),
    "Reader oxford_pet": (OxfordPet, (), "oxford_pet"),
}
"""Of each part: its model, its fields (of a reader, those that not every competition has), and what its examples are
examples of: a recipe, or a competition with this reader."""

OF_THE_FILE = {"competition", "base", "takes", "quick"}
"""Settings of a recipe that only its YAML can say."""
NOTHING = object()
HIDDEN = "train.evaluate"
"""A key of test sets, which a training set may not have."""


def main() -> None:
    """Writes the page."""
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    """Returns the page."""
    return HEAD + "".join(f"\n## {title}\n\n{_part(title, *part)}" for title, part in PARTS.items())


def keys(title: str) -> list[tuple[str, FieldInfo]]:
    """Returns the dotted keys of a part and their fields, those included that hold others."""
    model, chosen, _ = PARTS[title]
    names = chosen or tuple(name for name in model.model_fields if name not in Competition.model_fields)
    found = [pair for name in names for pair in _keys(name, model.model_fields[name])]
    return [(key, field) for key, field in found if key != HIDDEN]


def example(key: str, field: FieldInfo, of: str) -> dict[str, Any] | None:
    """Returns the example of a setting, with what it needs beside it, by dotted keys; None for a setting that holds
    others, and where no value is known.

    Args:
        key: the setting, e.g. `train.epochs`.
        field: its field. Without an example in the file, the example is the opposite of a switch, another one of a few
            values, or else the default.
        of: what it belongs to: `recipe`, or a reader.
    """
    known = examples()
    values, needs = known.get(of, {}), known["needs"].get(of, {})
    named = key if key in values else key.replace("test.", "train.", 1) if key.startswith("test.") else key
    value = values[named] if named in values else _derived(field)
    if value is NOTHING or inner(field.annotation):
        return None
    needed = needs.get(key, {})
    return {shown_key(one): value for one, value in {**needed, key: value}.items()}


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """Returns settings by dotted keys as the mappings that a YAML holds."""
    data: dict[str, Any] = {}
    for key, value in flat.items():
        for part in reversed(key.split(".")):
            value = {part: value}
        data = merge(data, value)
    return data


def shown_key(key: str) -> str:
    """Returns a key as it stands in a YAML: `metric` may be a mapping, which the models hold as `metric_file`."""
    return key.replace("metric_file.", "metric.")


@cache
def examples() -> dict[str, Any]:
    """Returns what docs/settings_examples.yaml holds."""
    return yaml.safe_load(EXAMPLES.read_text(encoding="utf-8"))


def _keys(key: str, field: FieldInfo) -> Iterator[tuple[str, FieldInfo]]:
    if key != "metric_file":
        yield key, field
    held = inner(field.annotation)
    for name, own in held.model_fields.items() if held else ():
        yield from _keys(f"{key}.{name}", own)


def _part(title: str, model: type[Settings], chosen: tuple[str, ...], of: str) -> str:
    prefix = f"{of}: " if title.startswith("Reader") else ""  # two readers may have a key of the same name
    return "\n".join(_entry(key, field, of, prefix) for key, field in keys(title))


def _entry(key: str, field: FieldInfo, of: str, prefix: str) -> str:
    """The text of one setting."""
    held = inner(field.annotation)
    text = " ".join((field.description or (held and held.__doc__) or "").split())
    values = choices(field)
    lines = [_escaped(" ".join(filter(None, [text, f"One of {values}." if values else ""])))]
    default = "" if held and field.default is not None and not field.is_required() else _default(field)
    given = example(key, field, of)
    facts = [f"Default: {default}" if default else "", f"Example: {_written(given, of)}" if given else ""]
    if any(facts):
        lines.append(" · ".join(filter(None, facts)))
    return f"### {prefix}{shown_key(key)}\n\n" + "\n\n".join(lines) + "\n"


def _written(given: dict[str, Any], of: str) -> str:
    """An example as it is typed: on the command line, or in a competition's YAML."""
    if of == "recipe" and not OF_THE_FILE & given.keys():
        pairs = [f"{key}={_flow(value)}" for key, value in given.items()]
        return f"`{' '.join(f'--set {shlex.quote(pair)}' for pair in pairs)}`"
    return ", ".join(f"`{_flow({key: value})[1:-1]}`" for key, value in nested(given).items())


def _escaped(text: str) -> str:
    """A text in which no <name> outside of code is taken for HTML."""
    return "".join(part if part.startswith("`") else part.replace("<", "&lt;") for part in re.split(r"(`[^`]*`)", text))


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=9999, sort_keys=False, allow_unicode=True)
    return text.removesuffix("...\n").strip()


def _derived(field: FieldInfo) -> Any:
    """A value that a setting may have; NOTHING where the type and the default do not show one."""
    default = field.default
    if isinstance(default, bool):
        return not default
    others = [value for value in _values(field) if value != default]
    return others[0] if others else NOTHING if field.is_required() or default in (None, "", [], {}) else default


def inner(annotation: Any) -> type[Settings] | None:
    """Returns the settings that a field holds, if it holds some."""
    options = (annotation, *_members(annotation))
    return next((one for one in options if isinstance(one, type) and issubclass(one, Settings)), None)


def choices(field: FieldInfo) -> str:
    """Returns the values that a field may have, where they are few; "" otherwise."""
    return ", ".join(f"`{value}`" for value in _values(field))


def _values(field: FieldInfo) -> list[Any]:
    annotation, extra = field.annotation, field.json_schema_extra
    literals = [one for one in (annotation, *_members(annotation)) if typing.get_origin(one) is typing.Literal]
    if isinstance(extra, dict):
        return list(typing.cast(list[Any], extra["one_of"]))
    return [value for one in literals for value in typing.get_args(one)]


def _members(annotation: Any) -> tuple[Any, ...]:
    unions = (typing.Union, types.UnionType)
    return typing.get_args(annotation) if typing.get_origin(annotation) in unions else ()


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "none, it is required"
    value = field.get_default(call_default_factory=True)
    text = value or '""' if isinstance(value, str) else json.dumps(value, default=str)
    return f"`{text}`" if text.strip() else "a space"


if __name__ == "__main__":
    main()
