"""Checked reading of JSON files that other stages wrote. A damaged file raises a clear error.

The stage that writes a file checks it by its manifest, and writes it again if necessary.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json, shown
from pipeline.core.intact import damaged, require_intact

Found = TypeVar("Found")


class Part(BaseModel):
    """Base class of checked JSON objects. An object must have the declared keys and may have more. Numbers are
    finite."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class Exact(Part):
    """Base class of checked JSON objects that have the declared keys and no others."""

    model_config = ConfigDict(extra="forbid")


def read_checked(path: Path, model: type[Part], remedy: str) -> dict[str, Any]:
    """Returns the JSON object in a file unchanged, after validating it with `model`.

    Raises:
        PipelineError: the file is missing or damaged, or does not fit the model. The message ends in `remedy`.
    """
    try:
        content = read_json(path)
        model.model_validate(content)
    except FileNotFoundError:
        raise PipelineError(f"{shown(path)} does not exist: {remedy}.") from None
    except ValidationError as error:
        raise damaged(path, _fault(error, content), remedy) from None
    except OSError as error:
        raise PipelineError(f"{shown(path)} cannot be read ({error.strerror}): {remedy}.") from None
    except (ValueError, RecursionError):
        raise damaged(path, "it is not JSON", remedy) from None
    require_intact(path)
    return content


def if_sound(read: Callable[..., Found], *arguments: Any) -> Found | None:
    """Returns the result of `read(*arguments)`; None if it raises PipelineError because the file is missing or
    damaged."""
    try:
        return read(*arguments)
    except PipelineError:
        return None


def again(stage: str) -> str:
    """Returns the advice for a damaged file that a stage wrote."""
    return f"restore the file, or run the {stage} stage again with --force"


def _fault(error: ValidationError, content: Any) -> str:
    """Returns the first fault as a text."""
    if not isinstance(content, dict):
        return f"it holds {json.dumps(content)[:40]}, and not an object {{…}}"
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    if first["type"] == "missing":
        return f"it lacks {key}"
    if first["type"] == "extra_forbidden":
        return f"{key} is not known"
    return f"{key}: {first['msg'][0].lower()}{first['msg'][1:]}, not {str(first['input'])[:40]!r}"
