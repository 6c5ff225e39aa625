"""Finds mask files, the images they belong to, and the classes given by their values or by labels."""

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from pipeline.core.config.raw_files import Value, names_in
from pipeline.decode.readers.files import evenly
from pipeline.decode.readers.names import split_ending
from pipeline.decode.readers.true_masks import MOST_INSTANCES
from pipeline.new.guess.bands import several_to_a_mask
from pipeline.new.guess.base import Files, Guess
from pipeline.new.guess.class_names import Named
from pipeline.new.guess.forms import form_of, is_plain, some_of, values_of
from pipeline.new.guess.paths import without_ending

SOME_INSTANCES = 30
"""Maximum number of instances per file whose regions are counted."""
SOME_ALIKE, MOSTLY_ALIKE = 10, 0.9
"""Number of mask files that are compared with each other, and the share of common pixels from which on they are taken
for a field of view."""
MOST_FLAT = 8
"""Maximum number of different values in files that are not pictures."""
MOST_VALUES = 64
"""Maximum number of grey values or colours in a mask file; a photograph has more."""


_NUMBERED = re.compile(r"(.+[A-Za-z])[_-]?\d+")
"""Names of further masks of an image: the name of its first mask with a number."""
Kind = Literal["binary", "jpeg", "classes", "colours", "instances"]
_RANK: dict[Kind, int] = {"classes": 0, "binary": 1, "jpeg": 2, "colours": 3, "instances": 4}
"""Order of preference if a mask exists in several forms."""


@dataclass(frozen=True)
class MaskFiles:
    """Training images, and the mask files with the same names."""

    images: Files
    masks: Files
    classes: tuple[str, ...] = ()
    """Values of `{class}` in the pattern of the masks, if every class has separate files."""
    kind: Kind = "binary"
    """Kind of the mask files."""
    others: tuple[str, ...] = ()
    """Patterns of further files with the same masks in another form."""
    alike: tuple[str, ...] = ()
    """Patterns of further files that are empty or nearly the same for every image: fields of view, not classes."""


def find_mask_files(groups: list[Files], beside: list[Files]) -> MaskFiles | None:
    """Returns the images with mask files; of several candidates, those with most masks. None if there are no masks.

    Args:
        groups: groups of images and masks, not yet told apart.
        beside: masks in the same folder as their images.
    """
    few = {id(files): kind for files in [*beside, *groups] if (kind := kind_of(files))}
    best: list[MaskFiles] = []
    rank = (0, False)
    places = set().union(*(_places(files) for files in groups if files.is_test))
    for images in sorted(groups, key=lambda files: (files.is_test, files.is_validation)):  # of equal ones, training
        if images.is_test and best:
            break
        if id(images) in few or not _readable(images):
            continue
        candidates = [
            files for files in [*beside, *groups] if id(files) in few and (images.is_test or not files.is_test)
        ]
        fitted = [(masks_of(masks, images), masks) for masks in candidates]
        candidate_pairs = [(MaskFiles(*pair, kind=few[id(masks)]), masks) for pair, masks in fitted if pair]
        given = [pair for pair, masks in candidate_pairs if not _in_test(masks, places)]  # without files of test images
        found_here = given or [pair for pair, _ in candidate_pairs]
        ranked = sum(len(pair.masks.paths) for pair in found_here), _in_test(images, places) and pictures(images)
        if found_here and ranked > rank:
            best, rank = found_here, ranked
    if not best:
        return None
    alike = [pair for pair in best if _alike_everywhere(pair)] if len(best) > 1 else []
    best = [pair for pair in best if pair not in alike] or best
    chosen = _by_class(best) or min(best, key=lambda pair: (_RANK[pair.kind], -len(pair.masks.paths)))
    others = tuple(pair.masks.pattern for pair in best if pair.masks.pattern != chosen.masks.pattern)
    fields = tuple(pair.masks.pattern for pair in alike if pair not in best)
    return replace(chosen, others=() if chosen.classes else others, alike=fields)


def _alike_everywhere(pair: MaskFiles) -> bool:
    """Whether black-and-white files are empty for all images, or nearly the same for all images of one size."""
    if pair.kind not in ("binary", "jpeg"):
        return False
    by_size: dict[tuple[int, ...], list[np.ndarray]] = {}
    for path in some_of(pair.masks.paths.values(), SOME_ALIKE):
        try:
            mask = values_of(path, as_mask=True)[..., 0]
        except ValueError:
            continue
        by_size.setdefault(mask.shape, []).append(mask > (127 if pair.kind == "jpeg" else 0))
    if all(not mask.any() for masks in by_size.values() for mask in masks):
        return set(mask_values(pair.masks.paths.values()) or ()) == {0}
    masks = max(by_size.values(), key=len)
    union = np.logical_or.reduce(masks).sum()
    return len(masks) >= 3 and np.logical_and.reduce(masks).sum() >= MOSTLY_ALIKE * union


def place_of(name: str) -> str:
    """Returns a path, or a part of it, without words such as `train` or `test`."""
    return re.sub(r"train(ing)?|test(ing)?|(?<=images|labels)t[rs]", "", name, flags=re.IGNORECASE)


def _places(files: Files) -> set[str]:
    """The names of folders and files of test images."""
    names = {path.name for path in list(files.paths.values())[:MOST_VALUES]}
    return {place_of(part) for part in [*files.pattern.split("/"), *names]}


def _in_test(files: Files, places: set[str]) -> bool:
    """Whether test images have such files too, with the same name or in a folder of the same name."""
    fixed = [part for part in files.pattern.split("/") if "{" not in part and "*" not in part]
    return bool(fixed) and place_of(fixed[-1]) in places


def _readable(files: Files) -> bool:
    """Whether some of the files can be read."""
    return any(is_plain(path) or form_of(path) for path in evenly(files.paths.values(), 3))


def masks_of(masks: Files, images: Files) -> tuple[Files, Files] | None:
    """Returns the images, perhaps with shorter ids, and the mask files by these ids, for example
    `train_masks/{id}_mask.png`; None if the names of the masks do not contain the names of images."""
    if "*" in masks.pattern:
        paths = {name: path for name, path in masks.paths.items() if name in images.paths}
        fits = len(paths) >= 0.9 * len(masks.paths)
        return (images, replace(masks, paths=paths)) if fits else None
    for known in (images, *without_ending(images)):
        if masks.id or known.id:
            paths = {name: path for name, path in masks.paths.items() if name in known.paths}
            if masks.id == known.id and len(paths) >= 0.9 * len(masks.paths):
                return known, replace(masks, paths=paths)
            continue
        if found_masks := _around(masks, known):
            return known, found_masks
    for known in () if masks.id or images.id else (images, *without_ending(images)):
        numbered = {name for name in masks.paths if (match := _NUMBERED.fullmatch(name)) and match[1] in masks.paths}
        plain = replace(masks, paths={name: path for name, path in masks.paths.items() if name not in numbered})
        if numbered and (found_masks := _around(plain, known)):
            head, suffix = split_ending(found_masks.pattern)
            return known, replace(found_masks, pattern=f"{head}*{suffix}")
    joined = several_to_a_mask(images, masks)
    return (joined, masks) if joined else None


def _around(masks: Files, known: Files) -> Files | None:
    """Mask files by image id, if their names have the same text before and after the id; None otherwise."""
    example = max(masks.paths, key=len)
    inside = max((name for name in known.paths if name in example), key=len, default=None)
    if inside is None:
        return None
    before, after = example.split(inside, 1)
    paths = {
        image_id: masks.paths[name] for image_id in known.paths if (name := f"{before}{image_id}{after}") in masks.paths
    }
    if len(paths) < 0.9 * len(masks.paths):
        return None
    head, suffix = masks.pattern.rsplit("{id}", 1)
    return replace(masks, pattern=_with_parts_of(f"{head}{before}{{id}}{after}{suffix}", known), paths=paths)


def _with_parts_of(pattern: str, images: Files) -> str:
    """The pattern of masks, with `*` for parts that the path of images does not have."""
    known = {*names_in(images.pattern), "id", "class"}
    return re.sub(r"{(\w+)}", lambda match: match[0] if match[1] in known else "*", pattern)


def _by_class(pairs: list[MaskFiles]) -> MaskFiles | None:
    """Black-and-white mask files of several classes, whose patterns differ in one part (the class). Folders may differ
    too, if the names of the files do."""
    if len(pairs) < 2 or any(pair.kind not in ("binary", "jpeg") for pair in pairs):
        return None
    patterns = [pair.masks.pattern for pair in pairs]
    pieces = [pattern.split("/") for pattern in patterns]
    names = {parts[-1] for parts in pieces}
    if len({len(parts) for parts in pieces}) == 1 and len(names) == len(pieces) and len(pieces[0]) > 1:
        folders = zip(*(parts[:-1] for parts in pieces), strict=True)
        place = "/".join(names_of_level[0] if len(set(names_of_level)) == 1 else "*" for names_of_level in folders)
        patterns = [f"{place}/{parts[-1]}" for parts in pieces]
    head = re.sub(r"[^/_-]*$", "", os.path.commonprefix(patterns))
    tail = re.sub(r"^[^/_.-]*", "", os.path.commonprefix([pattern[::-1] for pattern in patterns])[::-1])
    classes = tuple(pattern[len(head) : len(pattern) - len(tail)] for pattern in patterns)
    if "{id}" not in head + tail or not all(re.fullmatch(r"[\w-]+", name) for name in classes):
        return None
    paths = {name: path for pair in pairs for name, path in pair.masks.paths.items()}
    return MaskFiles(pairs[0].images, Files(f"{head}{{class}}{tail}", paths), classes, pairs[0].kind)


def kind_of(files: Files) -> Kind | None:
    """Returns the kind of mask files, judged by some of them; None for pictures."""
    paths = list(files.paths.values())
    if black_and_white(paths, 20):
        return "jpeg"
    if numbers_instances(paths):
        return "instances"
    values = mask_values(paths, 20)
    if values is None:
        return None
    if len(values) == 1 and 0 not in values:  # all of it, everywhere
        return None
    if len(values) < 2 or (len(values) == 2 and 0 in values) or (set(values) == {0, 1, 255}):
        return "binary"
    if any(isinstance(value, tuple) for value in values):
        return "colours"
    return "classes" if max(value for value in values if isinstance(value, int)) < 256 else "instances"


def pictures(files: Files) -> bool:
    """Returns whether files are pictures, judged by the number of different values in some of them."""
    values = mask_values(files.paths.values(), 5)
    return values is None or len(values) > MOST_FLAT


def numbers_instances(paths: Iterable[Path], count: int = 20) -> bool:
    """Returns whether files number instances: each of up to `count` files has the values 0, 1, 2, … up to a number that
    varies, and nearly every value marks a single region."""
    highest: list[int] = []
    regions = values = 0
    for path in some_of(paths, count):
        try:
            mask = values_of(path, as_mask=True)
        except ValueError:
            continue
        numbers = np.unique(mask) if mask.shape[2] == 1 else np.arange(1)
        if mask.shape[2] != 1 or len(numbers) > MOST_INSTANCES:
            return False
        if numbers[-1] >= 2 and (numbers[0] > 1 or len(numbers) != int(numbers[-1]) - int(numbers[0]) + 1):
            return False
        highest.append(int(numbers[-1]))
        for number in numbers[numbers > 0][:SOME_INSTANCES]:
            regions += cv2.connectedComponents((mask[..., 0] == number).astype(np.uint8))[0] - 1
            values += 1
    return (
        len(set(highest)) > 2 and max(highest) > 3 and sorted(highest)[len(highest) // 2] > 2 and regions < 1.1 * values
    )


def single_regions(paths: Iterable[Path], count: int = 10) -> bool:
    """Returns whether nearly every value in up to `count` files marks a single region, as the number of an instance."""
    regions = values = 0
    for path in some_of(paths, count):
        try:
            mask = values_of(path, as_mask=True)[..., 0]
        except ValueError:
            continue
        for number in np.unique(mask[mask > 0])[:SOME_INSTANCES]:
            regions += cv2.connectedComponents((mask == number).astype(np.uint8))[0] - 1
            values += 1
    return regions < 1.1 * values


# --- classes ---------------------------------------------------------------------------------------------------------


def mask_values(paths: Iterable[Path], count: int = 200) -> Counter[Value] | None:
    """Returns the number of pixels per grey value or (red, green, blue) in up to `count` files; None if not masks."""
    pixels_of: Counter[Value] = Counter()
    for path in some_of(paths, count):
        try:
            mask = values_of(path, as_mask=True)[..., :3]
        except ValueError:
            continue
        pixels = mask.reshape(-1, mask.shape[2]).astype(np.int64)
        codes, counts = np.unique(pixels @ (65536 ** np.arange(mask.shape[2])), return_counts=True)
        if len(codes) > MOST_VALUES:
            return None
        for code, number in zip(codes.tolist(), counts.tolist(), strict=True):
            colour = [code >> 16 * place & 0xFFFF for place in range(mask.shape[2])]
            pixels_of[colour[0] if len(set(colour)) == 1 else (colour[0], colour[1], colour[2])] += number
    return pixels_of if 0 < len(pixels_of) <= MOST_VALUES else None


def never_both(paths: Iterable[Path], count: int = 200) -> bool:
    """Returns whether each of up to `count` files has at most one value besides 0."""
    return all(len((mask_values([path]) or Counter()).keys() - {0}) <= 1 for path in evenly(paths, count))


def black_and_white(paths: Iterable[Path], count: int = 200) -> bool:
    """Returns whether up to `count` files are black-and-white JPEGs: nearly all of their values are near 0 or 255."""
    chosen, near, white, values = some_of(paths, count), 0, 0, 0
    for path in chosen:
        if path.suffix.lower() not in (".jpg", ".jpeg"):
            return False
        try:
            image = values_of(path)
        except ValueError:
            continue
        near += int(((image < 32) | (image > 223)).sum())
        white += int((image > 223).sum())
        values += image.size
    return near >= 0.95 * values and 0 < white < near


def one_class(evidence: str) -> Guess:
    """Returns the guess for a single class."""
    return Guess("classes", ["object"], "guess", f"{evidence}; choose the name")


def classes_of_labels(labels: list[str]) -> Guess:
    """Returns the classes for the labels in a table: the labels themselves, or `class_1: 1` if they are not words."""
    if all(re.fullmatch(r"[A-Za-z][\w -]*", label) for label in labels):
        return Guess("classes", labels, "sure", "all labels of the rows")
    named = {f"class_{label}": int(label) if re.fullmatch(r"0|[1-9]\d*", label) else label for label in labels}
    return Guess("classes", named, "guess", "all labels of the rows; choose the names")


def classes_of_values(values: Counter[Value], named: Named | None = None) -> list[Guess]:
    """Returns the guess for `classes` from the values of mask files; with several also `kind` and `ignore_value`.

    Args:
        values: the values with their numbers of pixels.
        named: names of the values, if known.
    """
    if len(values) < 2 or (len(values) == 2 and 0 in values):
        name = next((named.names[value] for value in values if value and value in named.names), "") if named else ""
        if named and name:
            held = " and ".join(map(str, sorted(values, key=_order)))
            text = f"mask files hold {held}; the name is that of {named.source}"
            return [Guess("classes", [name], "guess", text)]
        return [one_class("mask files hold " + " and ".join(map(str, sorted(values, key=_order))))]
    background = 0 if 0 in values else values.most_common(1)[0][0]
    others = sorted((value for value in values if value != background), key=_order)
    ignored: list[Value] = [255] if [background, *others] == [*range(len(others)), 255] else []
    names = {"background": background}
    for number, value in enumerate(others[: len(others) - len(ignored)], start=1):
        names[f"class_{value if isinstance(value, int) else number}"] = value
    source = "choose the names"
    if named and all(value in named.names for value in values if value not in (background, *ignored, *named.ignored)):
        seen = [*named.names] if named.complete else sorted([background, *others], key=_order)
        known = {value: named.names[value] for value in seen if value in named.names}
        ignored = [value for value in named.ignored if not named.complete or value in values]
        names = {} if background in (*known, *ignored) else {"background": background}
        names |= {name: value for value, name in known.items()}
        source = f"the names are those of {named.source}"
    shares = ", ".join(f"{values[value] / sum(values.values()):.1%}" for value in names.values())
    text = f"the values of the mask files, {shares} of the pixels; {source}"
    if any(isinstance(value, tuple) for value in values):
        names = {name: _colour(value) for name, value in names.items()}
        ignored = [_colour(value) for value in ignored]
    odd = "255 after small numbers is often no class"
    why = f"these count nowhere by {named.source}" if named and named.ignored else odd
    return [
        Guess("kind", "multiclass", "guess", "one value per pixel; multilabel, without background, scores each class"),
        Guess("classes", names, "guess", text),
        *_ignore(ignored, why),
    ]


def _ignore(values: list[Value], why: str) -> list[Guess]:
    if not values:
        return []
    value = values[0] if len(values) == 1 else {"any": values}
    return [Guess("ignore_value", value, "guess", why)]


def _colour(value: Value) -> Value:
    return value if isinstance(value, tuple) else (int(value), int(value), int(value))


def _order(value: Value) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (int(value),)
