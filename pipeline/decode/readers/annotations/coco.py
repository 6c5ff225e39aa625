"""COCO's annotations: one JSON of images, categories and annotations, whose regions are polygons or run lengths."""

from collections.abc import Iterator
from typing import Any

from pipeline.decode.readers.annotations.shapes import Annotated, Region, ring_of
from pipeline.masks.rle import Convention

UNCOMPRESSED, COMPRESSED = Convention(format="counts"), Convention(format="coco")


def fits(data: Any) -> bool:
    """Returns whether a JSON file holds COCO's annotations."""
    return isinstance(data, dict) and isinstance(data.get("images"), list) and "annotations" in data


def read(file: str, data: Any) -> Iterator[Annotated]:
    """Yields every image of the file with its regions.

    Raises:
        ValueError: something in it is not what COCO's format says, named by its place in the file.
    """
    names = {one["id"]: str(one["name"]) for one in _entries(data, "categories", ("id", "name"))}
    found: dict[Any, Annotated] = {}
    for number, image in enumerate(_entries(data, "images", ("id", "file_name"))):
        rows, columns = image.get("height"), image.get("width")
        own = (rows, columns) if isinstance(rows, int) and isinstance(columns, int) else None
        if image["id"] in found:
            raise ValueError(f"images[{number}] has the id {image['id']!r} of another image")
        found[image["id"]] = Annotated(file, size=own, image=str(image["file_name"]))
    for number, one in enumerate(_entries(data, "annotations", ("image_id", "category_id"))):
        name = f"annotation {one.get('id', number)}"
        if one["image_id"] not in found:
            raise ValueError(f"{name} is of image {one['image_id']!r}, which `images` does not hold")
        if one["category_id"] not in names:
            raise ValueError(f"{name} is of category {one['category_id']!r}, which `categories` does not hold")
        region = _region(one, names[one["category_id"]], name)
        if region is not None:
            found[one["image_id"]].regions.append(region)
    yield from found.values()


def _entries(data: Any, key: str, needed: tuple[str, ...]) -> list[dict[str, Any]]:
    entries = data.get(key)
    if not isinstance(entries, list):
        raise ValueError(f"`{key}` is missing or no list")
    for number, entry in enumerate(entries):
        lacking = [one for one in needed if not isinstance(entry, dict) or one not in entry]
        if lacking:
            raise ValueError(f"{key}[{number}] has no `{lacking[0]}`")
    return entries


def _region(one: dict[str, Any], label: str, name: str) -> Region | None:
    """The region of an annotation; None of one that has a box and nothing more."""
    given, crowd = one.get("segmentation"), bool(one.get("iscrowd"))
    code = str(one["category_id"])
    if not given:
        return None
    if isinstance(given, dict):
        counts, size = given.get("counts"), given.get("size")
        if not isinstance(counts, str | list) or not isinstance(size, list) or len(size) != 2:
            raise ValueError(f"{name}: run lengths need `size` (rows, columns) and `counts`")
        text = (counts, COMPRESSED) if isinstance(counts, str) else (" ".join(map(str, counts)), UNCOMPRESSED)
        return Region(label, (), text, crowd, name, code, (int(size[0]), int(size[1])))
    try:
        rings = [given] if not isinstance(given[0], list) else given
        polygons = tuple((ring_of(ring),) for ring in rings if len(ring) > 4)  # a point or a line encloses nothing
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise ValueError(f"{name}: {error}") from None
    area = one.get("area")
    known = float(area) if isinstance(area, int | float) and area > 0 else None
    return Region(label, polygons, None, crowd, name, code, area=known) if polygons else None
