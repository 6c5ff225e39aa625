"""Submissions read without the pipeline: what masks does the file of each competition hold, by its published format?"""

import base64
import json
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import tifffile
from imitations import Raw
from pycocotools import mask as coco

Found = dict[str, np.ndarray]
"""Masks by id, as Raw.test has them."""
Decode = Callable[[str, tuple[int, int]], Iterable[np.ndarray]]
"""The masks (h, w) that a cell holds."""


def pairs(text: str, shape: tuple[int, int], order: str, first: int = 1) -> np.ndarray:
    flat = np.zeros(shape[0] * shape[1], np.uint8)
    numbers = [int(number) for number in text.split()]
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        assert start >= first and start - first + length <= flat.size
        flat[start - first : start - first + length] += 1
    assert flat.max() <= 1
    return flat.reshape(shape, order=order)  # type: ignore[call-overload,no-any-return]


def down(text: str, shape: tuple[int, int]) -> Iterator[np.ndarray]:
    """Starts and lengths, column by column from 1."""
    yield pairs(text, shape, "F")


def along(text: str, shape: tuple[int, int]) -> Iterator[np.ndarray]:
    """Starts and lengths, row by row from 1; "1 0" is empty."""
    yield pairs(text.replace("1 0", "") if text == "1 0" else text, shape, "C")


def dashed(text: str, shape: tuple[int, int]) -> Iterator[np.ndarray]:
    """As `down`, and "-" is empty."""
    assert text
    yield pairs(text.replace("-", ""), shape, "F")


def relative(text: str, shape: tuple[int, int]) -> Iterator[np.ndarray]:
    """As SIIM-ACR counts: from the end of the run before, "-1" is empty."""
    flat, place = np.zeros(shape[0] * shape[1], np.uint8), 0
    numbers = [] if text.strip() == "-1" else [int(number) for number in text.split()]
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        flat[place + start : place + start + length] = 1
        place += start + length
    yield flat.reshape(shape, order="F")


def forged(text: str, shape: tuple[int, int]) -> Iterator[np.ndarray]:
    """As Recod.ai's metric reads it."""
    for one in [] if text == "authentic" else text.split(";"):
        yield pairs(" ".join(map(str, json.loads(one))), shape, "F")


def open_images(text: str, shape: tuple[int, int]) -> Iterator[np.ndarray]:
    """Class, confidence and mask in turn."""
    parts = text.split()
    for label, score, mask in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        assert label == "0" and 0 <= float(score) <= 1
        yield coco.decode({"size": list(shape), "counts": zlib.decompress(base64.b64decode(mask))})


def table(image: Any, rle: str, decode: Decode, label: Any = None, columns: str = "") -> Callable[[Path, Raw], Found]:
    """What reads a CSV: the column of ids, or a function of a row; of masks; and a function from a row to the number of
    its class. Masks of one class may not overlap."""

    def read(path: Path, raw: Raw) -> Found:
        rows = pd.read_csv(path, dtype=str, keep_default_na=False)
        assert not columns or ",".join(rows.columns) == columns
        found = {name: np.zeros_like(masks) for name, masks in raw.test.items()}
        seen = set()
        for row in rows.to_dict("records"):
            name, number = image(row) if callable(image) else row[image], label(row) if label else 0
            seen.add(name)
            for mask in decode(row[rle], found[name].shape[1:]):  # type: ignore[arg-type]
                assert not (found[name][number] & mask).any()
                found[name][number] |= mask
                raw.submitted[name] += int(mask.any())
        assert seen <= raw.test.keys()
        return found

    return read


def zipped(template: str) -> Callable[[Path, Raw], Found]:
    """What reads a zip of mask images (h, w), or volumes (n, h, w), of 0 and one other value."""

    def read(path: Path, raw: Raw) -> Found:
        with zipfile.ZipFile(path) as archive:
            assert sorted(archive.namelist()) == sorted(template.format(id=name) for name in raw.test)
            found = {name: archive.read(template.format(id=name)) for name in raw.test}
        picture = template.endswith(".png")
        arrays = {
            name: cv2.imdecode(np.frombuffer(one, np.uint8), cv2.IMREAD_UNCHANGED) // 255
            if picture
            else tifffile.imread(BytesIO(one))
            for name, one in found.items()
        }
        assert {array.dtype for array in arrays.values()} == {np.dtype(np.uint8)}
        return {name: array[None] for name, array in arrays.items()}

    return read


def arctic(path: Path, raw: Raw) -> Found:
    """A list of COCO's results; image ids are those of the manifest."""
    found = {name: np.zeros_like(masks) for name, masks in raw.test.items()}
    numbers = {800 + place: name for place, name in enumerate(raw.test)}
    for one in json.loads(path.read_text()):
        assert one["category_id"] == 1 and 0 <= one["score"] <= 1 and type(one["image_id"]) is int
        mask = coco.decode(one["segmentation"])
        assert not (found[numbers[one["image_id"]]][0] & mask).any()
        found[numbers[one["image_id"]]][0] |= mask
        raw.submitted[numbers[one["image_id"]]] += 1
    return found


def _cloud(row: dict[str, str]) -> str:
    return row["Image_Label"].rsplit("_", 1)[0]


def _smaller(read: Callable[[Path, Raw], Found]) -> Callable[[Path, Raw], Found]:
    """Masks at a quarter of the sides, enlarged."""

    def enlarged(path: Path, raw: Raw) -> Found:
        small = Raw(raw.folder, test={name: masks[:, ::4, ::4] for name, masks in raw.test.items()})
        return {name: masks.repeat(4, 1).repeat(4, 2) for name, masks in read(path, small).items()}

    return enlarged


READERS: dict[str, Callable[[Path, Raw], Found]] = {
    "recodai-forgery": table("case_id", "annotation", forged, columns="case_id,annotation"),
    "sennet": table("id", "rle", along, columns="id,rle"),
    "kelp-wanted": zipped("{id}_kelp.tif"),
    "contrails": table("record_id", "encoded_pixels", dashed, columns="record_id,encoded_pixels"),
    "vesuvius-ink": table("Id", "Predicted", along, columns="Id,Predicted"),
    "vesuvius-surface": zipped("{id}.tif"),
    "hubmap-vasculature": table("id", "prediction_string", open_images, columns="id,height,width,prediction_string"),
    "hubmap-hpa": table("id", "rle", down, columns="id,rle"),
    "uw-madison": table("id", "predicted", along, columns="id,class,predicted",
                        label=lambda row: ("large_bowel", "small_bowel", "stomach").index(row["class"])),
    "sartorius": table("id", "predicted", along, columns="id,predicted"),
    "geoai-arctic": arctic,
    "airbus": table("ImageId", "EncodedPixels", down, columns="ImageId,EncodedPixels"),
    "severstal": table("ImageId", "EncodedPixels", down, columns="ImageId,EncodedPixels,ClassId",
                       label=lambda row: int(row["ClassId"]) - 1),
    "carvana": table("img", "rle_mask", along, columns="img,rle_mask"),
    "dsb2018": table("ImageId", "EncodedPixels", down, columns="ImageId,EncodedPixels"),
    "siim-pneumothorax": table("ImageId", "EncodedPixels", relative, columns="ImageId,EncodedPixels"),
    "clouds": _smaller(table(_cloud, "EncodedPixels", down, columns="Image_Label,EncodedPixels", label=lambda row: (
        "Fish", "Flower", "Gravel", "Sugar").index(row["Image_Label"].rsplit("_", 1)[1]))),
    "imaterialist-2020": table("ImageId", "EncodedPixels", down, label=lambda row: int(row["ClassId"]),
                               columns="ImageId,EncodedPixels,ClassId,AttributesIds"),
    "isic-2018": zipped("{id}_segmentation.png"),
}  # fmt: skip
"""What reads the submission of each competition that has one."""
OF_INSTANCES = {
    "recodai-forgery", "hubmap-vasculature", "sartorius", "geoai-arctic", "airbus", "dsb2018", "imaterialist-2020",
}  # fmt: skip
"""Competitions whose submissions hold each instance by itself."""
