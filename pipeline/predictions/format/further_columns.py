"""Columns that a YAML names beside id, class and run lengths: constants, or made of what is known of an image."""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import pandas as pd

from pipeline.core.config.submission_settings import SubmissionSettings
from pipeline.core.errors import PipelineError

Names = dict[str, str | int | float]
"""What a template may name: id, height, width, group, and the named parts and table columns of an image."""
OF_A_ROW = ("class", "score", "rle")
"""What differs between the rows of an image."""
EXTRA = "extra_"
_FIELD = re.compile(r"{(\w+)(:[^{}]*)?}")


def templates_of(settings: SubmissionSettings) -> dict[str, str]:
    """Returns the templates of a submission, by the keys of the YAML."""
    templates = {f"submission.columns.{name}": str(one) for name, one in settings.columns.items()}
    return templates | ({"submission.image": settings.image} if settings.image else {})


def names_of(
    images: pd.DataFrame, templates: Mapping[str, str], complete: bool = True, of_rows: Collection[str] = OF_A_ROW
) -> dict[str, Names]:
    """Returns by image id what templates may name; nothing where there are no templates.

    Args:
        images: the images, as a submission names them.
        templates: by the keys of the YAML.
        complete: whether a name that the table does not have is a fault; else it stands for nothing.
        of_rows: names that each row has of its own.

    Raises:
        PipelineError: the table has no such column.
    """
    used = {name: key for key, text in templates.items() for name, _ in _FIELD.findall(text)}
    if not used:
        return {}
    extra = {column.removeprefix(EXTRA): column for column in images.columns if column.startswith(EXTRA)}
    wanted = [name for name in used if name not in ("id", "height", "width", "group", *of_rows)]
    known = sorted({"id", "height", "width", "group", *of_rows, *extra} - {"rle"})
    if complete and len(images) and (strange := [name for name in wanted if name not in extra]):
        raise PipelineError(
            f"{used[strange[0]]} names {{{strange[0]}}}, which images do not have; they have "
            f"{', '.join(f'{{{name}}}' for name in known)}."
        )
    found: dict[str, Names] = {}
    for row in images.to_dict("records"):
        own: Names = {name: str(row.get(extra.get(name, ""), "")) for name in wanted}
        own |= {"id": str(row["image_id"]), "height": int(row["height"]), "width": int(row["width"])}
        found[str(row["image_id"])] = own | {"group": str(row.get("group") or "")}
    return found


def ids_of(settings: SubmissionSettings, names: Mapping[str, Names]) -> dict[str, str]:
    """Returns by image id what a submission calls the image, where the YAML makes that of other parts.

    Raises:
        PipelineError: two images would be called the same.
    """
    template = settings.columns.get(settings.id)
    if template is None:
        return {}
    found: dict[str, str] = {}
    first: dict[str, str] = {}
    for image_id, own in names.items():
        found[image_id] = name = filled(str(template), own)
        if first.setdefault(name, image_id) != image_id:
            raise PipelineError(f"submission.columns calls images {first[name]} and {image_id} both {name!r}.")
    return found


def filled(template: str, names: Mapping[str, Any]) -> str:
    """Returns a template with the values of its names.

    Raises:
        PipelineError: it asks for a format that a value does not have.
    """
    try:
        return _FIELD.sub(lambda match: match[0].format(**names), template)
    except ValueError as error:
        raise PipelineError(f"submission.columns: {template!r} cannot be filled in: {error}.") from None


def fault(name: str, template: str, value: str, names: Mapping[str, Any]) -> str:
    """Returns what is wrong with the value of a further column; "" where nothing is."""
    if not re.search(r"{score\b", template):
        wanted = filled(template, names)
        return "" if _same(value, wanted) else f"{name} is {value[:40]!r}; expected {wanted[:40]!r}"
    if re.fullmatch(r"{score(:[^{}]*)?}", template):
        return score_fault(name, value)
    return ""


def score_fault(name: str, value: str) -> str:
    """Returns what is wrong with a value that says how sure a mask is."""
    try:
        sound = 0 <= float(value) <= 1
    except ValueError:
        sound = False
    return "" if sound else f"{name} is {value[:40]!r}; expected a number from 0 to 1"


def score_text(scores: Iterable[float]) -> float:
    """Returns how sure a row with these masks is, with six digits: as the surest of them."""
    return round(max(scores, default=0.0), 6)


def _same(value: str, wanted: str) -> bool:
    try:
        return value == wanted or float(value) == float(wanted)
    except ValueError:
        return False
