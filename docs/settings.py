"""Writes docs/settings.md, every setting of recipes and competitions with its default and meaning, from the models.

python docs/settings.py
"""

import json
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

sys.path.insert(0, str(Path(__file__).parents[1]))

from pipeline.core.config.competition import Competition
from pipeline.core.config.raw_layouts import Arrays, NpzLabels, OxfordPet, RleCsv
from pipeline.core.config.recipe import Recipe
from pipeline.core.config.settings import Settings

PAGE = Path(__file__).with_suffix(".md")
HEAD = """# Settings

Written by `python docs/settings.py` from the models that check them; an unknown key is an error that suggests the right
one. A recipe's key goes on the command line as `--set train.epochs=3`, or into its YAML as `train: {epochs: 3}`. The
keys from "The competition" on stand in the competition's YAML, and no command changes them (`new … --set` writes them).
"""
PARTS = {
    "The recipe": (Recipe, ("competition", "base", "folds", "ensemble", "arrays", "takes", "quick"), ""),
    "Images on their way in (decode, train)": (Recipe, ("image", "augment"), ""),
    "The network (train)": (Recipe, ("model",), ""),
    "Losses (train)": (Recipe, ("loss",), ""),
    "Training (train)": (Recipe, ("train",), ""),
    "Prediction (validate, predict)": (Recipe, ("predict",), ""),
    "Post-processing (tune)": (Recipe, ("tune",), ""),
    "The competition (decode, encode)": (Competition, (), "clean split splits"),
    "What is wrong with the data (clean)": (Competition, ("clean",), ""),
    "Folds (split)": (Competition, ("split", "splits"), ""),
    "Reader `rle_csv`": (RleCsv, (), "competition"),
    "Reader `npz_labels`": (NpzLabels, (), "competition"),
    "Reader `arrays`": (Arrays, (), "competition"),
    "Reader `oxford_pet`": (OxfordPet, (), "competition"),
}
"""Of each part: its model, the fields it has (all where none is named), and those it leaves out, `competition` for the
fields that every competition has."""


def main() -> None:
    """Writes the page."""
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    """Returns the page."""
    return HEAD + "".join(f"\n## {title}\n\n{_table(*part)}" for title, part in PARTS.items())


def _table(model: type[Settings], chosen: tuple[str, ...], without: str) -> str:
    left_out = set(without.split())
    if "competition" in left_out:
        left_out = set(Competition.model_fields)
    names = [name for name in chosen or model.model_fields if name not in left_out and name != "name"]
    lines = [line for name in names for line in _rows(name, model.model_fields[name])]
    return "| setting | default | what it is |\n|---|---|---|\n" + "".join(f"{line}\n" for line in lines)


def _rows(key: str, field: FieldInfo) -> Iterator[str]:
    """The row of a field, and those of the settings in it."""
    inner = _inner(field.annotation)
    told = " ".join((field.description or (inner and inner.__doc__) or "").split())
    default = "" if inner and field.default is not None else f"`{_default(field)}`"
    choices = _choices(field)
    meaning = " ".join(filter(None, [told, f"One of {choices}." if choices else ""]))
    if key == "metric_file":  # what `metric` says where it is a mapping
        key = "metric"
    else:
        yield f"| `{key}` | {default} | {meaning.replace('|', '&#124;')} |"
    for name, one in inner.model_fields.items() if inner else ():
        yield from _rows(f"{key}.{name}", one)


def _inner(annotation: Any) -> type[Settings] | None:
    """The settings that a field holds, if it holds some."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return annotation
    found = [one for one in _members(annotation) if isinstance(one, type) and issubclass(one, Settings)]
    return found[0] if found else None


def _choices(field: FieldInfo) -> str:
    annotation, extra = field.annotation, field.json_schema_extra
    texts = [one for one in (annotation, *_members(annotation)) if typing.get_origin(one) is typing.Literal]
    values = extra["one_of"] if isinstance(extra, dict) else [value for one in texts for value in typing.get_args(one)]
    return ", ".join(f"`{value}`" for value in values)


def _members(annotation: Any) -> tuple[Any, ...]:
    unions = (typing.Union, types.UnionType)
    return typing.get_args(annotation) if typing.get_origin(annotation) in unions else ()


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return value or '""' if isinstance(value, str) else json.dumps(value, default=str)


if __name__ == "__main__":
    main()
