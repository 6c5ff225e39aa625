"""Finds annotations among JSON files: their format, the images they describe, and their labels."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.core.config.raw_files import ANNOTATIONS
from pipeline.core.errors import PipelineError
from pipeline.decode.readers.annotations.read import format_of, read_file
from pipeline.decode.readers.annotations.shapes import Annotated, mask_of
from pipeline.decode.readers.columns import file_finder
from pipeline.decode.readers.files import evenly
from pipeline.decode.readers.names import ImageFiles
from pipeline.new.guess.base import Files, Guess

LARGEST = 2**30
"""Maximum size in bytes of a JSON file that is read."""
SAMPLED = 100
"""Maximum number of files that are read if there is one file per image."""


@dataclass(frozen=True)
class Annotations:
    """Annotations in one file, or in one file per image, with the images that they describe."""

    pattern: str
    images: Files
    labels: dict[str, int]
    """Number of regions per label."""
    format: str
    count: int
    """Number of images with annotations."""
    among: int
    """Number of images that were compared with the annotations."""
    outlined: int = 0
    """Number of sampled COCO polygons whose stated area is reached only if their outline belongs to them."""
    others: tuple[str, ...] = ()
    """Further annotations of the same images."""


@dataclass(frozen=True)
class Json:
    """The JSON files among the raw files, by kind."""

    single: dict[str, list[Annotated]]
    """Annotations in files that describe several images, by path."""
    groups: dict[str, dict[str, Path]]
    """Files that describe one image each: their paths by file name, for each pattern."""
    formats: dict[str, str]
    """Format of each file or pattern."""
    unread: dict[str, str]
    """Other JSON files, or patterns of them, with the reason why they are not used."""


def look_into(folder: Path, paths: Iterable[Path]) -> Json:
    """Returns the JSON files by kind. In folders with many files, only a sample is read."""
    by_place: dict[Path, list[Path]] = defaultdict(list)
    for path in paths:
        if path.suffix.lower() in ANNOTATIONS:
            by_place[path.parent].append(path)
    found = Json({}, {}, {}, {})
    alike: dict[str, list[Path]] = defaultdict(list)
    for place, files in by_place.items():
        many = len(files) > 3
        for path in files if not many else []:
            _look_into_one(found, folder, path)
        if many:
            alike[place.relative_to(folder).as_posix()] += files
    for place_name, files in alike.items():
        _look_into_many(found, place_name, files)
    return found


def _look_into_one(found: Json, folder: Path, path: Path) -> None:
    name = path.relative_to(folder).as_posix()
    if path.stat().st_size > LARGEST:
        found.unread[name] = f"larger than {LARGEST >> 30} GiB"
        return
    try:
        rows = path.suffix.lower() in (".jsonl", ".ndjson")
        text = path.read_text(encoding="utf-8-sig")
        first = json.loads(next((line for line in text.splitlines() if line.strip()), "null") if rows else text)
        form = format_of(first)
        if form is None:
            found.unread[name] = f"no known format of annotations: {_shape(first)}"
            return
        if form == "COCO" and _boxes_alone(first):
            found.unread[name] = "it has boxes without outlines, which do not tell the pixels of an object"
            return
        annotated = read_file(path, name)
    except (PipelineError, ValueError, OSError, RecursionError) as error:
        found.unread[name] = f"it cannot be read: {' '.join(str(error).split())}"
        return
    found.formats[name] = form
    if form in ("COCO", "JSON lines", "VGG Image Annotator") or any(entry.image for entry in annotated):
        found.single[name] = annotated
    else:
        head = name.rpartition("/")[0]
        pattern = f"{head}/{{id}}{path.suffix}" if head else f"{{id}}{path.suffix}"
        found.groups.setdefault(pattern, {})[path.stem] = path
        found.formats[pattern] = form


def _boxes_alone(coco: Any) -> bool:
    """Whether COCO annotations have boxes, and none of them has an outline or a mask."""
    entries = coco.get("annotations") if isinstance(coco, dict) else coco
    known = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    return any(entry.get("bbox") for entry in known) and not any(entry.get("segmentation") for entry in known)


def _look_into_many(found: Json, place: str, files: list[Path]) -> None:
    suffix = Counter(path.suffix for path in files).most_common(1)[0][0]
    pattern = f"{place}/{{id}}{suffix}" if place != "." else f"{{id}}{suffix}"
    formats = Counter[str]()
    example = ""
    for path in evenly(files, SAMPLED):
        try:
            data = json.loads(path.read_text(encoding="utf-8-sig"))
        except (ValueError, OSError, RecursionError):
            continue
        form = format_of(data)
        example = example or _shape(data)
        formats.update([form] if form else [])
    if not formats:
        found.unread[pattern] = f"no known format of annotations: {example or 'no JSON'}"
        return
    found.groups[pattern] = {path.stem: path for path in files if path.suffix == suffix}
    found.formats[pattern] = formats.most_common(1)[0][0]


def _shape(data: object) -> str:
    if isinstance(data, dict):
        keys = ", ".join(list(map(str, data))[:3])
        return f"a mapping with {len(data)} keys{f', {keys}' if keys else ''}"
    return f"a list of {len(data)} values" if isinstance(data, list) else f"a {type(data).__name__}"


# --- which images ----------------------------------------------------------------------------------------------------


def of_images(found: Json, images: list[Files], folder: Path) -> list[Annotations]:
    """Returns, for each group of images, the annotations that describe most of them."""
    chosen = []
    for files in images:
        candidates = [_single(name, found, files, folder) for name in found.single]
        candidates += [candidate for pattern in found.groups for candidate in _group(pattern, found, files)]
        fitting = [candidate for candidate in candidates if candidate is not None and candidate.count]
        if fitting:
            best = max(
                fitting,
                key=lambda candidate: (candidate.count, -len(candidate.pattern), sum(candidate.labels.values())),
            )
            chosen.append(
                replace(best, others=tuple(candidate.pattern for candidate in fitting if candidate is not best))
            )
    return chosen


def _single(name: str, found: Json, files: Files, folder: Path) -> Annotations | None:
    find = file_finder(ImageFiles(files.paths, []), folder)
    annotated = found.single[name]
    ids = {image_id for entry in annotated if entry.image and (image_id := find(entry.image)) is not None}
    if len(ids) < 0.5 * min(len(annotated), len(files.paths)):
        return None
    labels = Counter(str(region.label) for entry in annotated for region in entry.regions if region.label is not None)
    return Annotations(name, files, dict(labels), found.formats[name], len(ids), len(files.paths), _outlined(annotated))


def _outlined(annotated: list[Annotated]) -> int:
    """The number of sampled polygons whose stated area is reached only if their outline belongs to them; 0 if some have
    that area when drawn as COCO draws."""
    pairs = [(region, entry.size) for entry in annotated if entry.size for region in entry.regions if region.area]
    areas = [
        (region.area, *(int(mask_of(region, size, outlines).sum()) for outlines in (True, False)))
        for region, size in evenly(pairs, SAMPLED)
    ]
    if any(given == without for given, _, without in areas):
        return 0
    fitting = sum(given == outlined for given, outlined, _ in areas)
    return fitting if fitting > 0.9 * len(areas) else 0


def _group(pattern: str, found: Json, files: Files) -> Iterator[Annotations]:
    """Annotations in files that describe one image each, and whose names contain the name of the image."""
    if files.id or "*" in files.pattern:
        return
    paths, sample = found.groups[pattern], evenly(files.paths, 20)
    around = Counter(tuple(stem.split(name, 1)) for stem in paths for name in sample if name in stem)
    head, suffix = pattern.rsplit("{id}", 1)
    for before, after in (pair for pair, count in around.items() if count >= 0.5 * min(len(sample), len(paths))):
        of_images = {
            image_id: paths[name] for image_id in files.paths if (name := f"{before}{image_id}{after}") in paths
        }
        labels: Counter[str] = Counter()
        for path in evenly(of_images.values(), SAMPLED):
            try:
                regions = [region for entry in read_file(path, path.name) for region in entry.regions]
            except PipelineError:
                continue
            labels.update(str(region.label) for region in regions if region.label is not None)
        whole, form = f"{head}{before}{{id}}{after}{suffix}", found.formats[pattern]
        yield Annotations(whole, files, dict(labels), form, len(of_images), len(files.paths))


def guesses(train: Annotations, test: Annotations | None, labelled: bool) -> list[Guess]:
    """Returns the settings for annotations: classes, and the meaning of images without annotations.

    Args:
        train: annotations of the training images.
        test: annotations of the test images, if any.
        labelled: whether a submission names the class of a mask.
    """
    guessed = []
    absent = train.among - train.count
    if absent:
        guessed.append(Guess("columns.absent", "empty", "guess", f"{absent} images have no annotations"))
    if train.outlined:
        text = f"{train.outlined} of the sampled polygons have the stated `area` only if their outline belongs to them"
        guessed += [
            Guess(f"{subset}.outlines", True, "sure", text) for subset in ("train", *(["test"] if test else []))
        ]
    labels = sorted(
        {*train.labels, *(test.labels if test else {})}, key=lambda label: (-train.labels.get(label, 0), label)
    )
    if not labels:
        guessed.append(Guess("classes", ["object"], "guess", "the annotations name no class; choose the name"))
        return guessed
    shown = ", ".join(f"{label} ({train.labels.get(label, 0)})" for label in labels[:6])
    text = f"all labels of the annotations, with their regions: {shown}{', …' if len(labels) > 6 else ''}"
    if len(labels) > 1 and not labelled:
        labels = labels[:1]
        why = "the sample submission names no class, so only the most frequent label is used: is it the right one?"
        text = f"{text}; {why}"
        guessed.append(Guess("other_labels", "leave_out", "guess", "regions of other labels are left out"))
        guessed.append(Guess("classes", labels, "guess", text))
        return guessed
    names: list[str] | dict[str, str] = labels
    if not all(re.fullmatch(r"[A-Za-z][\w -]*", label) for label in labels):
        names = {f"class_{re.sub(r'[^A-Za-z0-9_]+', '_', label)}": label for label in labels}
    guessed.append(Guess("classes", names, "sure" if isinstance(names, list) else "guess", text))
    if len(labels) > 1:
        text = "regions may overlap; multiclass, with a background first, takes the later one"
        guessed.append(Guess("kind", "multilabel", "guess", text))
    return guessed
