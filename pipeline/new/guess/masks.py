"""Which image files are masks, which images they belong to, and the classes that values or labels tell."""

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.core.config.raw_files import Value
from pipeline.decode.readers.files import evenly, read_image
from pipeline.new.guess.base import Files, Guess

MOST_VALUES = 64
"""A mask image holds at most this many grey values or colours; a photograph holds more."""


@dataclass(frozen=True)
class MaskFiles:
    """Training images, and the mask images of the same names."""

    images: Files
    masks: Files
    classes: tuple[str, ...] = ()
    """What stands for `{class}` in the pattern of the masks, where every class has files of its own."""


def find_mask_files(groups: list[Files], beside: list[Files]) -> MaskFiles | None:
    """Returns the images that have mask images, most of them by number; None where none have.

    Args:
        groups: images and masks, whichever they are.
        beside: masks that lie beside their images.
    """
    few = {files.pattern for files in [*beside, *groups] if _may_be_masks(files)}
    best: list[MaskFiles] = []
    for images in sorted(groups, key=lambda files: "test" in files.pattern.lower()):  # of equal ones, no test images
        fitted = [masks_of(masks, images) for masks in [*beside, *groups] if masks.pattern in few]
        found = [MaskFiles(images, masks) for masks in fitted if masks and images.pattern not in few]
        best = max(best, found, key=lambda one: sum(len(pair.masks.paths) for pair in one))
    return (_by_class(best) or max(best, key=lambda pair: len(pair.masks.paths))) if best else None


def masks_of(masks: Files, images: Files) -> Files | None:
    """Returns mask files by the ids of their images, whose names theirs hold, e.g. `train_masks/{id}_mask.png`.

    None where most names do not fit.
    """
    if "*" in masks.pattern:
        found = {name: path for name, path in masks.paths.items() if name in images.paths}
        return Files(masks.pattern, found) if len(found) >= 0.9 * len(masks.paths) else None
    example = max(masks.paths, key=len)
    inside = max((name for name in images.paths if name in example), key=len, default=None)
    if inside is None:
        return None
    before, after = example.split(inside, 1)
    found = {one: masks.paths[name] for one in images.paths if (name := f"{before}{one}{after}") in masks.paths}
    head, suffix = masks.pattern.rsplit("{id}", 1)
    return Files(f"{head}{before}{{id}}{after}{suffix}", found) if len(found) >= 0.9 * len(masks.paths) else None


def _by_class(found: list[MaskFiles]) -> MaskFiles | None:
    """Mask files that differ in one part of their path, as those of several classes."""
    patterns = [pair.masks.pattern for pair in found]
    head = re.sub(r"[^/_-]*$", "", os.path.commonprefix(patterns))
    tail = re.sub(r"^[^/_.-]*", "", os.path.commonprefix([pattern[::-1] for pattern in patterns])[::-1])
    names = tuple(pattern[len(head) : len(pattern) - len(tail)] for pattern in patterns)
    if len(found) < 2 or "{id}" not in head + tail or not all(re.fullmatch(r"[\w-]+", name) for name in names):
        return None
    paths = {name: path for pair in found for name, path in pair.masks.paths.items()}
    return MaskFiles(found[0].images, Files(f"{head}{{class}}{tail}", paths), names)


def _may_be_masks(files: Files) -> bool:
    paths = files.paths.values()
    return mask_values(paths, 20) is not None or black_and_white(paths, 20)


# --- classes ---------------------------------------------------------------------------------------------------------


def mask_values(paths: Iterable[Path], count: int = 200) -> Counter[Value] | None:
    """Returns how many pixels hold each grey value or (red, green, blue) in up to `count` files; None of no masks."""
    found: Counter[Value] = Counter()
    for path in evenly(paths, count):
        try:
            mask = read_image(path, as_mask=True)[..., :3]
        except ValueError:
            continue
        pixels = mask.reshape(-1, mask.shape[2]).astype(np.int64)
        codes, counts = np.unique(pixels @ (65536 ** np.arange(mask.shape[2])), return_counts=True)
        if len(codes) > MOST_VALUES:
            return None
        for code, number in zip(codes.tolist(), counts.tolist(), strict=True):
            colour = [code >> 16 * place & 0xFFFF for place in range(mask.shape[2])]
            found[colour[0] if len(set(colour)) == 1 else (colour[0], colour[1], colour[2])] += number
    return found if 0 < len(found) <= MOST_VALUES else None


def never_both(paths: Iterable[Path], count: int = 200) -> bool:
    """Returns whether each of up to `count` files holds at most one value beside 0, although several write different
    ones."""
    return all(len((mask_values([path]) or Counter()).keys() - {0}) <= 1 for path in evenly(paths, count))


def black_and_white(paths: Iterable[Path], count: int = 200) -> bool:
    """Returns whether up to `count` files are JPEGs of black and white: nearly all of their values near 0 or 255."""
    chosen, near, white, values = evenly(paths, count), 0, 0, 0
    for path in chosen:
        if path.suffix.lower() not in (".jpg", ".jpeg"):
            return False
        try:
            image = read_image(path)
        except ValueError:
            continue
        near += int(((image < 32) | (image > 223)).sum())
        white += int((image > 223).sum())
        values += image.size
    return near >= 0.95 * values and 0 < white < near


def one_class(evidence: str) -> Guess:
    """Returns the guess at a lone class."""
    return Guess("classes", ["object"], "guess", f"{evidence}; the name is yours")


def classes_of_labels(labels: list[str]) -> Guess:
    """Returns the classes that labels of a table name: as they are, or `class_1: 1` where they are no words."""
    if all(re.fullmatch(r"[A-Za-z][\w -]*", label) for label in labels):
        return Guess("classes", labels, "sure", "all labels of the rows")
    named = {f"class_{label}": int(label) if re.fullmatch(r"0|[1-9]\d*", label) else label for label in labels}
    return Guess("classes", named, "guess", "all labels of the rows; the names are yours")


def classes_of_values(values: Counter[Value]) -> list[Guess]:
    """Returns `classes` by the values of mask images; with `kind` and perhaps `ignore_value` for several."""
    if len(values) < 2 or (len(values) == 2 and 0 in values):
        return [one_class("mask files hold " + " and ".join(map(str, sorted(values, key=_order))))]
    background = 0 if 0 in values else values.most_common(1)[0][0]
    others = sorted((value for value in values if value != background), key=_order)
    ignored = [255] if [background, *others] == [*range(len(others)), 255] else []
    names = {"background": background}
    for number, value in enumerate(others[: len(others) - len(ignored)], start=1):
        names[f"class_{value if isinstance(value, int) else number}"] = value
    shares = ", ".join(f"{values[value] / sum(values.values()):.1%}" for value in names.values())
    text = f"the values of the mask files, {shares} of the pixels; the names are yours"
    if any(isinstance(value, tuple) for value in values):
        names = {name: _colour(value) for name, value in names.items()}
    return [
        Guess("kind", "multiclass", "guess", "one value a pixel; multilabel, without background, scores each alone"),
        Guess("classes", names, "guess", text),
        *(Guess("ignore_value", value, "guess", "255 after small numbers is often no class") for value in ignored),
    ]


def _colour(value: Value) -> Value:
    return value if isinstance(value, tuple) else (int(value), int(value), int(value))


def _order(value: Value) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (int(value),)
