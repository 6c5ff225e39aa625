"""Further columns that a YAML names besides id, class and run lengths: constants, or templates filled per image."""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import pandas as pd

from pipeline.core.config.submission_settings import SubmissionSettings
from pipeline.core.errors import PipelineError

Names = dict[str, str | int | float]
"""The names that a template may use: id, height, width, group, and the named parts and table columns of an image."""
OF_A_ROW = ("class", "score", "rle")
"""The names whose values differ between the rows of one image."""
EXTRA = "extra_"
_FIELD = re.compile(r"{(\w+)(:[^{}]*)?}")


def templates_of(settings: SubmissionSettings) -> dict[str, str]:
    """Returns the templates of a submission, by their keys in the YAML."""
    templates = {f"submission.columns.{name}": str(template) for name, template in settings.columns.items()}
    return templates | ({"submission.image": settings.image} if settings.image else {})


def names_of(
    images: pd.DataFrame, templates: Mapping[str, str], complete: bool = True, of_rows: Collection[str] = OF_A_ROW
) -> dict[str, Names]:
    """Returns, for each image id, the values of the names that templates use; an empty dict if templates use none.

    Args:
        images: the images, as a submission names them.
        templates: the templates, by their keys in the YAML.
        complete: whether a name that the table does not have is an error. If not, its value is empty.
        of_rows: names whose values belong to a row instead of an image.

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
            f"{used[strange[0]]} names {{{strange[0]}}}, which the images do not have; they have "
            f"{', '.join(f'{{{name}}}' for name in known)}."
        )
    by_image: dict[str, Names] = {}
    for row in images.to_dict("records"):
        values: Names = {name: str(row.get(extra.get(name, ""), "")) for name in wanted}
        values |= {"id": str(row["image_id"]), "height": int(row["height"]), "width": int(row["width"])}
        by_image[str(row["image_id"])] = values | {"group": str(row.get("group") or "")}
    return by_image


def ids_of(settings: SubmissionSettings, names: Mapping[str, Names]) -> dict[str, str]:
    """Returns, for each image id, the id that a submission writes, if the YAML has a template for it.

    Raises:
        PipelineError: two images would get the same id.
    """
    template = settings.columns.get(settings.id)
    if template is None:
        return {}
    written: dict[str, str] = {}
    first: dict[str, str] = {}
    for image_id, values in names.items():
        written[image_id] = name = filled(str(template), values)
        if first.setdefault(name, image_id) != image_id:
            raise PipelineError(f"submission.columns gives images {first[name]} and {image_id} the same id, {name!r}.")
    return written


def filled(template: str, names: Mapping[str, Any]) -> str:
    """Returns a template with its names replaced by their values.

    Raises:
        PipelineError: a format specification does not suit its value.
    """
    try:
        return _FIELD.sub(lambda match: match[0].format(**names), template)
    except ValueError as error:
        raise PipelineError(f"submission.columns: {template!r} cannot be filled in: {error}.") from None


def fault(name: str, template: str, value: str, names: Mapping[str, Any]) -> str:
    """Returns a description of what is wrong with the value of a further column; "" if it is correct."""
    if not re.search(r"{score\b", template):
        wanted = filled(template, names)
        return "" if _same(value, wanted) else f"{name} is {value[:40]!r}; expected {wanted[:40]!r}"
    if re.fullmatch(r"{score(:[^{}]*)?}", template):
        return score_fault(name, value)
    return ""


def score_fault(name: str, value: str) -> str:
    """Returns a description of what is wrong with the confidence of a mask; "" if it is correct."""
    try:
        valid = 0 <= float(value) <= 1
    except ValueError:
        valid = False
    return "" if valid else f"{name} is {value[:40]!r}; expected a number from 0 to 1"


def score_text(scores: Iterable[float]) -> float:
    """Returns the confidence of a row with these masks, the highest of theirs, rounded to six digits."""
    return round(max(scores, default=0.0), 6)


def _same(value: str, wanted: str) -> bool:
    try:
        return value == wanted or float(value) == float(wanted)
    except ValueError:
        return False
