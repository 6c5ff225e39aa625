"""Finds names for the values of class maps: in a table or JSON file among the raw files, or of well-known data sets."""

import json
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipeline.core.config.raw_files import Value

_VOC = [
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
]
_CITYSCAPES = {
    "unlabeled": 0, "ego vehicle": 1, "rectification border": 2, "out of roi": 3, "static": 4, "dynamic": 5,
    "ground": 6, "road": 7, "sidewalk": 8, "parking": 9, "rail track": 10, "building": 11, "wall": 12, "fence": 13,
    "guard rail": 14, "bridge": 15, "tunnel": 16, "pole": 17, "polegroup": 18, "traffic light": 19, "traffic sign": 20,
    "vegetation": 21, "terrain": 22, "sky": 23, "person": 24, "rider": 25, "car": 26, "truck": 27, "bus": 28,
    "caravan": 29, "trailer": 30, "train": 31, "motorcycle": 32, "bicycle": 33,
}  # fmt: skip
_NOT_SCORED = (0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30)
"""Classes of Cityscapes that its evaluation ignores."""
LARGEST = 2**20
"""Maximum size in bytes of a JSON file that is searched for names."""
_NAME = re.compile(r"name|class|label|category|object", re.IGNORECASE)
_VALUE = re.compile(
    r"(class_?|label_?|category_?|pixel_?)?(value|id|index|number|code|label|idx|key|train_?id)", re.IGNORECASE
)
_CHANNELS = tuple(re.compile(rf"{name[0]}|{name}", re.IGNORECASE) for name in ("red", "green", "blue"))


@dataclass(frozen=True)
class Named:
    """Names of the values of class maps."""

    names: dict[Value, str]
    source: str
    """The file or data set that gives the names."""
    ignored: tuple[Value, ...] = ()
    """Values of ignored pixels."""
    complete: bool = False
    """Whether all names are classes, even those whose value occurs in no sampled file."""


def _plain(colour: tuple[int, int, int]) -> Value:
    """A colour as a value of a class map: a grey colour becomes one number."""
    return colour[0] if len(set(colour)) == 1 else colour


def voc_colour(number: int) -> tuple[int, int, int]:
    """Returns the colour of a class in the masks of PASCAL VOC."""
    colour = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            colour[channel] |= (number >> channel & 1) << (7 - bit)
        number >>= 3
    return colour[0], colour[1], colour[2]


def from_table(name: str, frame: pd.DataFrame) -> Named | None:
    """Returns the names that a table such as class_dict.csv gives to values or colours; None for other tables."""
    columns = {str(column).strip(): str(column) for column in frame.columns}
    names = [column for column in columns if _NAME.search(column)]
    texts = [column for column in names if not frame[columns[column]].str.fullmatch(r"[\d.\s,]*").any()]
    if not texts or not 1 < len(frame) <= 256:
        return None
    label = frame[columns[texts[0]]].str.strip().tolist()
    channels = [next((column for column in columns if expression.fullmatch(column)), None) for expression in _CHANNELS]
    values: list[Value]
    if all(channels):
        parts = [frame[columns[str(channel)]].str.strip().tolist() for channel in channels]
        if not all(text.isdecimal() for part in parts for text in part):
            return None
        values = [_plain((int(r), int(g), int(b))) for r, g, b in zip(*parts, strict=True)]
    else:
        numbers = [column for column in columns if _VALUE.fullmatch(column) and column != texts[0]]
        texts_of = frame[columns[numbers[0]]].str.strip().tolist() if numbers else []
        if not texts_of or not all(text.isdecimal() for text in texts_of):
            return None
        values = [int(text) for text in texts_of]
    if len(set(values)) != len(values) or len(set(label)) != len(label):
        return None
    ignored = [
        value
        for value, text in zip(values, label, strict=True)
        if re.fullmatch("void|ignored?|unknown|unlabell?ed", text, re.I)
    ]
    names_of = {value: text for value, text in zip(values, label, strict=True) if value not in ignored}
    return Named(names_of, name, tuple(ignored), complete=True)


def from_json(folder: Path, names: Iterable[str]) -> Named | None:
    """Returns the names that `labels` in a JSON file gives to values, as in nnU-Net's dataset.json; None without any.

    Both directions are read: names by value, and values by name.

    Args:
        folder: folder of the raw files.
        names: JSON files in it that are not annotations.
    """
    for name in names:
        path = folder / name
        if "{" in name or path.stat().st_size > LARGEST:
            continue
        try:
            data = json.loads(path.read_text(encoding="utf-8-sig"))
        except (ValueError, OSError, RecursionError):
            continue
        labels = data.get("labels") if isinstance(data, dict) else None
        if not isinstance(labels, dict) or len(labels) < 2:
            continue
        if all(str(key).isdecimal() and isinstance(value, str) for key, value in labels.items()):
            labels = {value: int(key) for key, value in labels.items()}
        by_value: dict[Value, str] = {value: str(key) for key, value in labels.items() if type(value) is int}
        if len(by_value) == len(labels):
            ignored = tuple(value for value, text in by_value.items() if text.lower() == "ignore")
            names_of = {value: text for value, text in by_value.items() if value not in ignored}
            return Named(names_of, name, ignored, complete=True)
    return None


def known_names(pattern: str, values: Collection[Value]) -> Named | None:
    """Returns the names of Cityscapes or PASCAL VOC, if the path pattern and the values of mask files match theirs."""
    if pattern.rsplit(".", 1)[0].endswith(("_labelIds", "_instanceIds")) and set(values) <= set(_CITYSCAPES.values()):
        names: dict[Value, str] = {number: name for name, number in _CITYSCAPES.items() if number not in _NOT_SCORED}
        return Named(names, "Cityscapes (its trainable classes)", _NOT_SCORED)
    colours = {_plain(voc_colour(number)): name for number, name in enumerate(_VOC)}
    void: Value = (224, 224, 192)
    if len(set(values)) > 2 and set(values) <= {*colours, void} and any(isinstance(value, tuple) for value in values):
        return Named(colours, "PASCAL VOC", (void,))
    if "SegmentationClass" in pattern and set(values) <= {*range(len(_VOC)), 255}:
        return Named(dict(enumerate(_VOC)), "PASCAL VOC", (255,))
    return None
