"""How JSON files that stages write are read by others: checked, so that a damaged one is said in a sentence.

The stage that writes a file judges it by its manifest, and repairs it.
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
    """A JSON object that has these keys, and may have more. No number is infinite or NaN."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class Exact(Part):
    """A JSON object that has these keys and no others."""

    model_config = ConfigDict(extra="forbid")


def read_checked(path: Path, model: type[Part], remedy: str) -> dict[str, Any]:
    """Returns the JSON object in a file, as it stands there, if it has what a model asks for.

    Raises:
        PipelineError: it does not, or there is no such file; `remedy` is what to do.
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
    """Returns what a reader returns; None where it finds the file missing or damaged."""
    try:
        return read(*arguments)
    except PipelineError:
        return None


def again(stage: str) -> str:
    """Returns what to do about a file that a stage wrote."""
    return f"put the file back, or run the {stage} stage again with --force"


def _fault(error: ValidationError, content: Any) -> str:
    """The first fault in words."""
    if not isinstance(content, dict):
        return f"it holds {json.dumps(content)[:40]}, and not an object {{…}}"
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    if first["type"] == "missing":
        return f"it lacks {key}"
    if first["type"] == "extra_forbidden":
        return f"{key} is not known"
    return f"{key}: {first['msg'][0].lower()}{first['msg'][1:]}, not {str(first['input'])[:40]!r}"
