"""Images that consist of several files: bands such as band_08.npy and band_09.npy, and files that share one mask."""

import re
from collections import defaultdict
from dataclasses import replace

from pipeline.core.config.raw_images import MOST_CHANNELS
from pipeline.decode.readers.files import natural
from pipeline.decode.readers.names import split_ending
from pipeline.new.guess.base import Files

BAND = re.compile(r"(?P<head>(?:.*[_-])?(?:band|channel|chan|ch|b|c)[_-]?)(?P<band>\d{1,2}[A-Za-z]?)", re.IGNORECASE)
_COLOUR = re.compile(
    r"(?P<head>.*[_-])(?P<band>red|green|blue|yellow|nir|swir\d?|vv|vh|t1|t1ce|t1gd|t1c|t1n|t2|t2w|t2f|flair|adc|dwi)",
    re.IGNORECASE,
)
"""Names of files that hold one band of an image."""
_NUMBERED = re.compile(r"(.+)[_-](\d{1,4})")
_COLOURS = {"red": 0, "green": 1, "blue": 2}
MIDDLE = 16
"""Number of files, from the middle, that are used if an image has more files than channels are allowed."""


def with_bands(groups: list[Files]) -> list[Files]:
    """Returns files by pattern; files that differ only in the name of a band become one: `{id}/band_{band}.npy`."""
    alike: dict[str, list[tuple[str, Files]]] = defaultdict(list)
    for files in groups:
        head, ending = split_ending(files.pattern)
        place, _, name = head.rpartition("/")
        match = None if files.id else BAND.fullmatch(name) or _COLOUR.fullmatch(name)
        if match and "*" not in files.pattern:
            alike[f"{place}/" * bool(place) + f"{match['head']}{{band}}{ending}"].append((match["band"], files))
    merged = list(groups)
    for pattern, several in alike.items():
        several.sort(key=lambda pair: (_COLOURS.get(pair[0].lower(), len(_COLOURS)), natural(pair[0])))
        first = several[0][1]
        if "{id}" not in pattern or not 2 <= len(several) <= MOST_CHANNELS:
            continue
        if all(files.paths.keys() == first.paths.keys() for _, files in several):
            merged = [group for group in merged if not any(group is files for _, files in several)]
            merged.append(replace(first, pattern=pattern, bands=tuple(band for band, _ in several)))
    return sorted(merged, key=lambda group: group.pattern)


def several_to_a_mask(images: Files, masks: Files) -> Files | None:
    """Returns images that consist of several files with one common mask; None if there are none.

    Examples are `{id}_{band}.nii.gz` with a mask `{id}.nii.gz`, and `{id}/layers/{band}.tif` with `{id}/labels.png`.
    """
    if masks.id or images.bands or "*" in images.pattern or len(images.paths) <= len(masks.paths):
        return None
    named = images.pattern.rsplit("/", 1)[-1]
    if images.id is None and named.startswith("{id}"):
        pairs = {name: match for name in images.paths if (match := _NUMBERED.fullmatch(name))}
        keys = {name: (match[1], match[2]) for name, match in pairs.items()}
        separator = next((match[0][len(match[1])] for match in pairs.values()), "_")
        pattern = images.pattern.replace("{id}", f"{{id}}{separator}{{band}}")
        return _joined(images, masks, keys, pattern)
    for part in images.parts_named:
        others = [name for name in images.parts_named if name != part and f"{{{name}}}" in named]
        if (
            len(others) != 1
            or f"{{{part}}}" in named
            or {f"{{{part}}}", f"{{{others[0]}}}"} != set(re.findall(r"{\w+}", images.pattern))
        ):
            continue
        keys = {name: (values[part], values[others[0]]) for name, values in images.parts.items()}
        pattern = images.pattern.replace(f"{{{part}}}", "{id}").replace(f"{{{others[0]}}}", "{band}")
        if joined := _joined(images, masks, keys, pattern):
            return joined
    return None


def _joined(
    images: Files,
    masks: Files,
    keys: dict[str, tuple[str, str]],
    pattern: str,
) -> Files | None:
    """The images by id and band, if the images of all masks have the same bands, at least two."""
    if len(keys) < len(images.paths):
        return None
    by_id: dict[str, dict[str, str]] = defaultdict(dict)
    for name, (image_id, band) in keys.items():
        by_id[image_id][band] = name
    ids = by_id.keys() & masks.paths.keys()
    if not ids or len(ids) < 0.9 * len(masks.paths):
        return None
    bands = set.intersection(*(set(by_id[image_id]) for image_id in by_id))
    if len(bands) < 2 or any(len(by_id[image_id]) > 1.5 * len(bands) for image_id in ids):
        return None
    chosen = middle(sorted(bands, key=natural))
    paths = {image_id: images.paths[by_band[chosen[0]]] for image_id, by_band in sorted(by_id.items())}
    return replace(images, pattern=pattern, paths=paths, id=None, parts={}, bands=chosen, all_bands=len(bands))


def middle(bands: list[str]) -> tuple[str, ...]:
    """Returns the bands; if there are more than channels are allowed, those in the middle."""
    if len(bands) <= MOST_CHANNELS:
        return tuple(bands)
    start = (len(bands) - MIDDLE) // 2
    return tuple(bands[start : start + MIDDLE])
