"""Files of polygons: GeoJSON, JSON lines (one image per line), labelme, Cityscapes and the VGG Image Annotator.

Each format has a pair of functions: one that returns whether a JSON value has this format, and one that reads its
images.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from pipeline.decode.readers.annotations.shapes import Annotated, Region, ring_of

_LABELS = ("label", "name", "class", "category", "type", "classification")
"""The keys for the class in properties of GeoJSON and attributes of VIA."""
_CIRCLE = 64
"""Number of corners of the polygon that approximates a circle or an ellipse."""


# --- GeoJSON ---------------------------------------------------------------------------------------------------------


def is_geojson(data: Any) -> bool:
    """Returns whether a JSON value is a FeatureCollection, a feature, or a list of features."""
    features = data if isinstance(data, list) else [data]
    return bool(features) and all(
        isinstance(feature, dict) and feature.get("type") in ("FeatureCollection", "Feature") for feature in features
    )


def read_geojson(file: str, data: Any) -> Iterator[Annotated]:
    """Yields the single image of the file. Its coordinates are in pixels."""
    collections = data if isinstance(data, list) else [data]
    features = [feature for collection in collections for feature in collection.get("features", [collection])]
    annotated = Annotated(file)
    for number, feature in enumerate(features):
        name = f"feature {number + 1}"
        geometry = feature.get("geometry") if isinstance(feature, dict) else None
        if not isinstance(geometry, dict) or geometry.get("type") not in ("Polygon", "MultiPolygon"):
            kind = geometry.get("type") if isinstance(geometry, dict) else None
            if kind in ("Point", "MultiPoint", "LineString", "MultiLineString"):
                continue  # these have no area
            raise ValueError(f"{name} has the geometry {kind!r}; expected Polygon or MultiPolygon")
        given = geometry.get("coordinates")
        parts = [given] if geometry["type"] == "Polygon" else given
        annotated.regions.append(Region(_label(feature.get("properties")), _polygons(parts, name), name=name))
    yield annotated


def _label(properties: Any) -> str | None:
    """Returns the class in the properties: QuPath's classification.name, or the value of the first known key; None if
    there is none."""
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
    """Returns polygons, each of which is a list of rings: the outline and the holes."""
    try:
        return tuple(tuple(ring_of(ring) for ring in part) for part in parts if part)
    except TypeError:
        raise ValueError(f"{name}: its coordinates are not lists of points") from None
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


# --- JSON lines ------------------------------------------------------------------------------------------------------


def is_line(data: Any) -> bool:
    """Returns whether a JSON value has the form {"id": …, "annotations": [{"type": …, "coordinates": [[[x, y],
    …]]}]}."""
    return isinstance(data, dict) and isinstance(data.get("annotations"), list) and "images" not in data


def read_line(file: str, data: Any) -> Iterator[Annotated]:
    """Yields the image of a line (format of Hacking the Human Vasculature, 2023)."""
    keys = [key for key in ("id", "image_id", "image", "file_name", "filename") if key in data]
    if not keys:
        raise ValueError("it has no name of an image: expected `id` beside `annotations`")
    annotated = Annotated(file, image=str(data[keys[0]]))
    for number, annotation in enumerate(data["annotations"]):
        name = f"annotation {number + 1}"
        if not isinstance(annotation, dict):
            raise ValueError(f"{name} is not a mapping with `coordinates`")
        given = annotation.get("coordinates", annotation.get("polygon", annotation.get("points")))
        if given is None:
            raise ValueError(f"{name} has no `coordinates`")
        flat = bool(given) and np.ndim(given[0]) < 2  # the points of one outline instead of a list of outlines
        annotated.regions.append(Region(_label(annotation), _polygons([[given] if flat else given], name), name=name))
    yield annotated


# --- labelme ---------------------------------------------------------------------------------------------------------


def is_labelme(data: Any) -> bool:
    """Returns whether a JSON value is a file of labelme."""
    return isinstance(data, dict) and isinstance(data.get("shapes"), list)


def read_labelme(file: str, data: Any) -> Iterator[Annotated]:
    """Yields the image of a file of labelme, with its polygons, rectangles and circles."""
    annotated = Annotated(file, size=_size(data, "imageHeight", "imageWidth"), image=str(data.get("imagePath") or ""))
    for number, shape in enumerate(data["shapes"]):
        name = f"shape {number + 1}"
        kind = shape.get("shape_type") or "polygon" if isinstance(shape, dict) else None
        if kind in ("point", "points", "line", "linestrip"):
            continue  # these have no area
        if kind not in ("polygon", "rectangle", "circle"):
            raise ValueError(f"{name} is a {kind}; expected a polygon, a rectangle or a circle")
        annotated.regions.append(
            Region(_text(shape.get("label"), name), ((_corners(kind, shape.get("points"), name),),), name=name)
        )
    yield annotated


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
    if all(isinstance(side, int) and side > 0 for side in sides):
        return int(sides[0]), int(sides[1])  # type: ignore[arg-type]
    return None


# --- Cityscapes ------------------------------------------------------------------------------------------------------


def is_cityscapes(data: Any) -> bool:
    """Returns whether a JSON value is a file of Cityscapes polygons."""
    return isinstance(data, dict) and isinstance(data.get("objects"), list) and "imgHeight" in data


def read_cityscapes(file: str, data: Any) -> Iterator[Annotated]:
    """Yields the image of a file of Cityscapes, in which later polygons cover earlier ones."""
    annotated = Annotated(file, size=_size(data, "imgHeight", "imgWidth"))
    for number, item in enumerate(data["objects"]):
        name = f"object {number + 1}"
        if not isinstance(item, dict) or "polygon" not in item:
            raise ValueError(f"{name} has no `polygon`")
        if not item.get("deleted"):
            annotated.regions.append(
                Region(_text(item.get("label"), name), _polygons([[item["polygon"]]], name), name=name)
            )
    yield annotated


# --- VGG Image Annotator ---------------------------------------------------------------------------------------------


def is_via(data: Any) -> bool:
    """Returns whether a JSON value is a project or an export of the VGG Image Annotator."""
    images = data.get("_via_img_metadata", data) if isinstance(data, dict) else None
    return (
        isinstance(images, dict)
        and bool(images)
        and all(isinstance(image, dict) and {"filename", "regions"} <= image.keys() for image in images.values())
    )


def read_via(file: str, data: Any) -> Iterator[Annotated]:
    """Yields each image with its polygons, rectangles, circles and ellipses."""
    for image in data.get("_via_img_metadata", data).values():
        annotated = Annotated(file, image=str(image["filename"]))
        regions = image["regions"].values() if isinstance(image["regions"], dict) else image["regions"]
        for number, region in enumerate(regions):
            name = f"{image['filename']} region {number + 1}"
            shape = region.get("shape_attributes") if isinstance(region, dict) else None
            ring = _via_ring(shape or {}, name)
            if ring is not None:
                attributes = region.get("region_attributes") or {}
                texts = [str(value) for value in attributes.values() if isinstance(value, str | int)]
                label = _label(attributes) or (texts[0] if texts else None)
                annotated.regions.append(Region(label, ((ring,),), name=name))
        yield annotated


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
