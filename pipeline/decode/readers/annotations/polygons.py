"""Files of polygons: GeoJSON, JSON lines (one image per line), labelme, Cityscapes and the VGG Image Annotator.

Each format has a pair of functions: whether a JSON value is of it, and the images that it describes.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from pipeline.decode.readers.annotations.shapes import Annotated, Region, ring_of

_LABELS = ("label", "name", "class", "category", "type", "classification")
"""Keys under which GeoJSON's properties and VIA's attributes name a class."""
_CIRCLE = 64
"""Corners of the polygon that stands for a circle or an ellipse."""


# --- GeoJSON ---------------------------------------------------------------------------------------------------------


def is_geojson(data: Any) -> bool:
    """Returns whether this is a FeatureCollection, a feature, or a list of features."""
    features = data if isinstance(data, list) else [data]
    return bool(features) and all(
        isinstance(one, dict) and one.get("type") in ("FeatureCollection", "Feature") for one in features
    )


def read_geojson(file: str, data: Any) -> Iterator[Annotated]:
    """Yields the one image whose pixels the coordinates are."""
    collections = data if isinstance(data, list) else [data]
    features = [feature for one in collections for feature in one.get("features", [one])]
    found = Annotated(file)
    for number, feature in enumerate(features):
        name = f"feature {number + 1}"
        geometry = feature.get("geometry") if isinstance(feature, dict) else None
        if not isinstance(geometry, dict) or geometry.get("type") not in ("Polygon", "MultiPolygon"):
            kind = geometry.get("type") if isinstance(geometry, dict) else None
            if kind in ("Point", "MultiPoint", "LineString", "MultiLineString"):
                continue  # they enclose nothing
            raise ValueError(f"{name} has the geometry {kind!r}; expected Polygon or MultiPolygon")
        given = geometry.get("coordinates")
        parts = [given] if geometry["type"] == "Polygon" else given
        found.regions.append(Region(_label(feature.get("properties")), _polygons(parts, name), name=name))
    yield found


def _label(properties: Any) -> str | None:
    """What properties say of the class: QuPath's classification.name, or the first key that says it."""
    for key in _LABELS if isinstance(properties, dict) else ():
        value = properties.get(key)
        value = value.get("name") if isinstance(value, dict) else value
        if isinstance(value, str | int):
            return str(value)
    return None


def _text(label: Any, name: str) -> str | None:
    if label is None or isinstance(label, str | int):
        return None if label is None else str(label)
    raise ValueError(f"{name} has the label {label!r}; expected a text")


def _polygons(parts: Any, name: str) -> tuple[tuple[np.ndarray, ...], ...]:
    """Polygons, each a list of rings: the outline and the holes."""
    try:
        return tuple(tuple(ring_of(ring) for ring in part) for part in parts if part)
    except TypeError:
        raise ValueError(f"{name}: its coordinates are no lists of points") from None
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


# --- JSON lines ------------------------------------------------------------------------------------------------------


def is_line(data: Any) -> bool:
    """Returns whether this is a line such as {"id": …, "annotations": [{"type": …, "coordinates": [[[x, y], …]]}]}."""
    return isinstance(data, dict) and isinstance(data.get("annotations"), list) and "images" not in data


def read_line(file: str, data: Any) -> Iterator[Annotated]:
    """Yields the image of a line (Hacking the Human Vasculature, 2023)."""
    keys = [key for key in ("id", "image_id", "image", "file_name", "filename") if key in data]
    if not keys:
        raise ValueError("it names no image: expected `id` beside `annotations`")
    found = Annotated(file, image=str(data[keys[0]]))
    for number, one in enumerate(data["annotations"]):
        name = f"annotation {number + 1}"
        if not isinstance(one, dict):
            raise ValueError(f"{name} is no mapping with `coordinates`")
        given = one.get("coordinates", one.get("polygon", one.get("points")))
        if given is None:
            raise ValueError(f"{name} has no `coordinates`")
        flat = bool(given) and np.ndim(given[0]) < 2  # the points of one outline, and no list of outlines
        found.regions.append(Region(_label(one), _polygons([[given] if flat else given], name), name=name))
    yield found


# --- labelme ---------------------------------------------------------------------------------------------------------


def is_labelme(data: Any) -> bool:
    """Returns whether this is a file of labelme."""
    return isinstance(data, dict) and isinstance(data.get("shapes"), list)


def read_labelme(file: str, data: Any) -> Iterator[Annotated]:
    """Yields the image of a file of labelme: polygons, rectangles and circles."""
    found = Annotated(file, size=_size(data, "imageHeight", "imageWidth"), image=str(data.get("imagePath") or ""))
    for number, shape in enumerate(data["shapes"]):
        name = f"shape {number + 1}"
        kind = shape.get("shape_type") or "polygon" if isinstance(shape, dict) else None
        if kind in ("point", "points", "line", "linestrip"):
            continue  # they enclose nothing
        if kind not in ("polygon", "rectangle", "circle"):
            raise ValueError(f"{name} is a {kind}; expected a polygon, a rectangle or a circle")
        found.regions.append(
            Region(_text(shape.get("label"), name), ((_corners(kind, shape.get("points"), name),),), name=name)
        )
    yield found


def _corners(kind: str, points: Any, name: str) -> np.ndarray:
    try:
        if kind == "polygon":
            return ring_of(points)
        (x, y), (x2, y2) = np.asarray(points, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error if kind == 'polygon' else 'expected two points'}") from None
    if kind == "rectangle":
        return ring_of([[x, y], [x2, y], [x2, y2], [x, y2]])
    return _ellipse(x, y, radius := float(np.hypot(x2 - x, y2 - y)), radius)


def _ellipse(x: float, y: float, across: float, down: float) -> np.ndarray:
    angles = 2 * np.pi * np.arange(_CIRCLE) / _CIRCLE
    return np.stack([x + across * np.cos(angles), y + down * np.sin(angles)], axis=1)


def _size(data: dict[str, Any], rows: str, columns: str) -> tuple[int, int] | None:
    sides = data.get(rows), data.get(columns)
    return (int(sides[0]), int(sides[1])) if all(isinstance(side, int) and side > 0 for side in sides) else None  # type: ignore[arg-type]


# --- Cityscapes ------------------------------------------------------------------------------------------------------


def is_cityscapes(data: Any) -> bool:
    """Returns whether this is a file of polygons of Cityscapes."""
    return isinstance(data, dict) and isinstance(data.get("objects"), list) and "imgHeight" in data


def read_cityscapes(file: str, data: Any) -> Iterator[Annotated]:
    """Yields the image of a file of Cityscapes, whose later polygons lie over the earlier ones."""
    found = Annotated(file, size=_size(data, "imgHeight", "imgWidth"))
    for number, one in enumerate(data["objects"]):
        name = f"object {number + 1}"
        if not isinstance(one, dict) or "polygon" not in one:
            raise ValueError(f"{name} has no `polygon`")
        if not one.get("deleted"):
            found.regions.append(Region(_text(one.get("label"), name), _polygons([[one["polygon"]]], name), name=name))
    yield found


# --- VGG Image Annotator ---------------------------------------------------------------------------------------------


def is_via(data: Any) -> bool:
    """Returns whether this is a project or an export of the VGG Image Annotator."""
    images = data.get("_via_img_metadata", data) if isinstance(data, dict) else None
    return (
        isinstance(images, dict)
        and bool(images)
        and all(isinstance(one, dict) and {"filename", "regions"} <= one.keys() for one in images.values())
    )


def read_via(file: str, data: Any) -> Iterator[Annotated]:
    """Yields every image with its polygons, rectangles, circles and ellipses."""
    for image in data.get("_via_img_metadata", data).values():
        found = Annotated(file, image=str(image["filename"]))
        regions = image["regions"].values() if isinstance(image["regions"], dict) else image["regions"]
        for number, one in enumerate(regions):
            name = f"{image['filename']} region {number + 1}"
            shape = one.get("shape_attributes") if isinstance(one, dict) else None
            ring = _via_ring(shape or {}, name)
            if ring is not None:
                attributes = one.get("region_attributes") or {}
                texts = [str(value) for value in attributes.values() if isinstance(value, str | int)]
                label = _label(attributes) or (texts[0] if texts else None)
                found.regions.append(Region(label, ((ring,),), name=name))
        yield found


def _via_ring(shape: dict[str, Any], name: str) -> np.ndarray | None:
    kind = shape.get("name")
    try:
        if kind in ("polygon", "polyline"):
            return ring_of(list(zip(shape["all_points_x"], shape["all_points_y"], strict=True)))
        if kind == "rect":
            x, y, width, height = (float(shape[key]) for key in ("x", "y", "width", "height"))
            return ring_of([[x, y], [x + width, y], [x + width, y + height], [x, y + height]])
        if kind in ("circle", "ellipse"):
            across, down = (float(shape[key]) for key in (("r", "r") if kind == "circle" else ("rx", "ry")))
            return _ellipse(float(shape["cx"]), float(shape["cy"]), across, down)
    except (KeyError, TypeError, ValueError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{name}: {what}") from None
    if kind == "point":
        return None
    raise ValueError(f"{name} is a {kind}; expected a polygon, a rectangle, a circle or an ellipse")


FORMATS: dict[str, tuple[Callable[[Any], bool], Callable[[str, Any], Iterator[Annotated]]]] = {
    "Cityscapes polygons": (is_cityscapes, read_cityscapes),
    "labelme": (is_labelme, read_labelme),
    "GeoJSON": (is_geojson, read_geojson),
    "JSON lines": (is_line, read_line),
    "VGG Image Annotator": (is_via, read_via),
}
