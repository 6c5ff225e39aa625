"""Strict settings read from YAML. An unknown key raises an error that suggests the nearest known key."""

import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.core.config.yaml_text import UnreasonableYaml, parse_yaml
from pipeline.core.errors import PipelineError, did_you_mean
from pipeline.core.files import require_regular, root

SettingsType = TypeVar("SettingsType", bound="Settings")


class Settings(BaseModel):
    """Base class of all settings that are read from YAML. Instances are immutable, and unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


def read_yaml(path: Path) -> dict[str, Any]:
    """Returns the mapping in a YAML file.

    Raises:
        PipelineError: the file does not exist, is not YAML, or does not hold a mapping.
    """
    try:
        require_regular(path)
        data = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PipelineError(f"{path} does not exist.") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise PipelineError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(data, dict):
        holds = "nothing" if data is None else f"a {type(data).__name__}"
        raise PipelineError(f"{path} must hold `key: value` lines; it holds {holds}.")
    return data


def find_yaml(name: str, folder: Path, what: str) -> Path:
    """Returns the path of the YAML file that `name` refers to.

    A `name` that ends in `.yaml` or `.yml` is itself the path. Any other name is the stem of a file in `folder`, or in
    the folder of the same name under the root.

    Raises:
        PipelineError: there is no such file; the message suggests the nearest known name.
    """
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    folders = (folder, root() / folder.name)
    for candidate in (place / f"{name}.yaml" for place in folders):
        if candidate.exists():
            return candidate
    known = sorted({file.stem for place in folders for file in place.glob("*.yaml")})
    raise PipelineError(
        f"There is no {what} named `{name}`{did_you_mean(name, known)} Known: {', '.join(known)}; "
        f"the path of your own .yaml file works too."
    )


def validate(model: type[SettingsType], data: dict[str, Any], source: str) -> SettingsType:
    """Returns `data` validated as settings of type `model`.

    Raises:
        PipelineError: `data` is not valid. The message names `source`, and has one sentence per fault with its dotted
            key.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        faults = [_explain(model, fault) for fault in error.errors()]
    raise PipelineError(f"{source}: " + " ".join(faults))


def override(data: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """Returns a copy of `data` with `key=value` assignments applied. Keys are dotted; values are written in YAML.

    Raises:
        PipelineError: an assignment has no key or no `=`, or its value is not YAML.
    """
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise PipelineError(f"--set {assignment}: expected key=value, for instance train.epochs=3.")
        try:
            value = parse_yaml(text)
        except UnreasonableYaml as error:
            raise PipelineError(f"--set {assignment[:80]}: {error}.") from None
        except yaml.YAMLError:
            raise PipelineError(f"--set {assignment}: `{text}` is not a YAML value.") from None
        for part in reversed(key.split(".")):
            value = {part: value}
        data = merge(data, value)
    return data


def assignments_of(settings: Mapping[str, Any]) -> list[str]:
    """Returns a mapping from dotted keys to values as the list of assignments that `override` takes."""
    dumped = {key: yaml.safe_dump(value, default_flow_style=True, width=9999) for key, value in settings.items()}
    return [f"{key}={text.splitlines()[0]}" for key, text in dumped.items()]


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Returns `base` updated with `changes`. Mappings in both are merged recursively; other values are replaced."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def flatten(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested mappings flattened into one mapping with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


_EXPECTED = {
    "model_type": "expected a mapping of settings",
    "dict_type": "expected a mapping, for instance {key: value}",
    "list_type": "expected a list, for instance [1, 2]",
    "tuple_type": "expected a list, for instance [1, 2]",
}
"""What a value should be, for the errors whose text names types of Python."""


def _explain(model: type[Settings], fault: Any) -> str:
    key = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        known = list(_model_at(model, fault["loc"][:-1]).model_fields)
        if places := _places(model, str(fault["loc"][-1])):
            return f"unknown key `{key}`; did you mean {' or '.join(f'`{place}`' for place in places)}?"
        return f"unknown key `{key}`{did_you_mean(str(fault['loc'][-1]), known)} Known here: {', '.join(known)}."
    if fault["type"] == "missing":
        return f"`{key}` is missing."
    message = _EXPECTED.get(fault["type"], fault["msg"].removeprefix("Value error, "))
    if fault["type"] == "model_type" and fault["ctx"]["class_name"].endswith("Term"):  # a loss
        message += ", or a number: its weight"
    if not key:  # a fault of the whole file: keys that contradict each other
        return f"{message}."
    if fault["type"] == "value_error" and isinstance(fault["input"], dict):  # the same for one section
        return f"{message}." if message.startswith(f"{key}.") else f"`{key}`: {message}."
    if fault["input"] is None and (choices := _choices(model, fault["loc"])):
        return f"`{key}` is empty: write one of {', '.join(choices)}."
    value = "empty" if fault["input"] is None else repr(fault["input"])
    sentence = f"`{key}` is {value}: {message[:1].lower()}{message[1:]}"
    if fault["type"] == "literal_error" and isinstance(fault["input"], str):
        return sentence + did_you_mean(fault["input"], re.findall("'([^']+)'", fault["ctx"]["expected"]))
    return f"{sentence}."


def _choices(model: type[Settings], location: tuple[Any, ...]) -> list[str]:
    """Returns the values that a key may have, from its field's `one_of` or its Literal type; an empty list if any value
    is allowed."""
    field = _model_at(model, location[:-1]).model_fields.get(str(location[-1]))
    if field is None:
        return []
    extra = field.json_schema_extra
    listed = extra.get("one_of") if isinstance(extra, dict) else None
    literals = typing.get_args(field.annotation) if typing.get_origin(field.annotation) is typing.Literal else ()
    return [str(choice) for choice in (listed if isinstance(listed, list) else literals)]


def _places(model: type[Settings], name: str) -> list[str]:
    """Returns the dotted keys of this name at the top of a YAML and in its sections."""
    sections = {section: _model_at(model, (section,)) for section in model.model_fields}
    below = [
        f"{section}.{name}" for section, inner in sections.items() if inner is not model and name in inner.model_fields
    ]
    return ([name] if name in model.model_fields else []) + below


def _model_at(model: type[Settings], location: tuple[Any, ...]) -> type[Settings]:
    for part in location:
        field = model.model_fields.get(str(part))
        if field is None:
            break
        options = (field.annotation, *typing.get_args(field.annotation))
        inner = [option for option in options if isinstance(option, type) and issubclass(option, Settings)]
        model = inner[0] if inner else model
    return model
