"""COCO annotations: one JSON file with images, categories and annotations, whose regions are polygons or run
lengths."""

from collections.abc import Iterator
from typing import Any

from pipeline.decode.readers.annotations.shapes import Annotated, Region, ring_of
from pipeline.masks.rle import Convention

UNCOMPRESSED, COMPRESSED = Convention(format="counts"), Convention(format="coco")


def fits(data: Any) -> bool:
    """Returns whether a JSON value holds COCO annotations."""
    return isinstance(data, dict) and isinstance(data.get("images"), list) and "annotations" in data


def read(file: str, data: Any) -> Iterator[Annotated]:
    """Yields each image of the file with its regions.

    Raises:
        ValueError: the file does not follow COCO's format. The message names the place in the file.
    """
    names = {category["id"]: str(category["name"]) for category in _entries(data, "categories", ("id", "name"))}
    images: dict[Any, Annotated] = {}
    for number, image in enumerate(_entries(data, "images", ("id", "file_name"))):
        rows, columns = image.get("height"), image.get("width")
        size = (rows, columns) if isinstance(rows, int) and isinstance(columns, int) else None
        if image["id"] in images:
            raise ValueError(f"images[{number}] has the same id {image['id']!r} as another image")
        images[image["id"]] = Annotated(file, size=size, image=str(image["file_name"]))
    for number, annotation in enumerate(_entries(data, "annotations", ("image_id", "category_id"))):
        name = f"annotation {annotation.get('id', number)}"
        if annotation["image_id"] not in images:
            raise ValueError(f"{name} belongs to image {annotation['image_id']!r}, which is not in `images`")
        if annotation["category_id"] not in names:
            raise ValueError(f"{name} belongs to category {annotation['category_id']!r}, which is not in `categories`")
        region = _region(annotation, names[annotation["category_id"]], name)
        if region is not None:
            images[annotation["image_id"]].regions.append(region)
    yield from images.values()


def _entries(data: Any, key: str, needed: tuple[str, ...]) -> list[dict[str, Any]]:
    entries = data.get(key)
    if not isinstance(entries, list):
        raise ValueError(f"`{key}` is missing or not a list")
    for number, entry in enumerate(entries):
        lacking = [name for name in needed if not isinstance(entry, dict) or name not in entry]
        if lacking:
            raise ValueError(f"{key}[{number}] has no `{lacking[0]}`")
    return entries


def _region(annotation: dict[str, Any], label: str, name: str) -> Region | None:
    """Returns the region of an annotation; None if it has only a bounding box."""
    given, crowd = annotation.get("segmentation"), bool(annotation.get("iscrowd"))
    code = str(annotation["category_id"])
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
        polygons = tuple((ring_of(ring),) for ring in rings if len(ring) > 4)  # points and lines have no area
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise ValueError(f"{name}: {error}") from None
    area = annotation.get("area")
    known = float(area) if isinstance(area, int | float) and area > 0 else None
    return Region(label, polygons, None, crowd, name, code, area=known) if polygons else None
