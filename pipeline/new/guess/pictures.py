"""Guesses how image files are read: channels, slices of volumes, windows of huge images, and the range of values."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.config.competition import WHOLE
from pipeline.core.config.preparing import SplitSettings
from pipeline.core.config.raw_images import MOST_CHANNELS
from pipeline.decode.readers.files import evenly
from pipeline.decode.value_range import SMALL, extremes, used_range
from pipeline.new.guess import forms
from pipeline.new.guess.base import Files, Guess
from pipeline.new.guess.forms import Form, form_of, some_of, values_of

WINDOW = (2048, 2048)
"""Rows and columns of a window of a huge image."""
FEW_OUTSIDE = 2.0
"""The range of all values is used if it exceeds the range of nearly all values by at most this factor."""


@dataclass(frozen=True)
class Reading:
    """The settings for reading the files of a competition."""

    guesses: list[Guess]
    size: tuple[int, int] | None = None
    """Rows and columns of windows, which replace the size of the images."""
    group: list[Guess] | None = None
    """Guesses that replace those about groups."""


def reading_of(images: Files, masks: Files | None, sizes: Iterable[tuple[int, int]]) -> Reading:
    """Returns the settings for reading images.

    Args:
        images: the training images.
        masks: their mask files, if there are any.
        sizes: rows and columns of all images.
    """
    form = _common(images)
    if form is None:
        return Reading([])
    mask = _common(masks) if masks else None
    volume = form.slices > 1 and (not form.first or _same_slices(form, mask))
    made = _channels(images, form, volume)
    guesses = [*made, *_value_range(images, form)]
    if volume:
        return Reading([*guesses, _volumes(form, mask)], group=_whole(images, "the volume"))
    largest = max((rows * columns for rows, columns in sizes), default=0)
    if largest > forms.HUGE:
        evidence = f"up to {largest / 1e6:.0f} million pixels per image; each window becomes a separate image"
        windows = Guess("windows", {"size": list(WINDOW)}, "guess", evidence)
        return Reading([*guesses, windows], WINDOW, _whole(images, "the image"))
    return Reading(guesses)


def _common(files: Files) -> Form | None:
    """The content of files, judged by the first that can be read."""
    sample = some_of(files.paths.values(), 5)
    return next((form for path in sample if (form := form_of(path))), None)


def _same_slices(form: Form, mask: Form | None) -> bool:
    """Whether images and masks have the same few slices."""
    return mask is not None and mask.first and mask.slices == form.slices


def _volumes(form: Form, mask: Form | None) -> Guess:
    settings = {} if form.axis is None else {"axis": form.axis}
    text = f"{form.slices} slices of {form.rows}×{form.columns} per file, each an image"
    if mask is not None and mask.slices == form.slices:
        return Guess("volumes", settings, "sure", f"{text}; masks have as many")
    other = f"masks have {mask.slices}" if mask else "nothing shows whether masks have as many"
    other += "; were slices channels, each file would have to be saved as rows × columns × channels"
    return Guess("volumes", settings, "guess", f"{text}; {other}")


def _whole(images: Files, what: str) -> list[Guess]:
    """The guess for groups of slices or windows: the volume or image that they are part of."""
    count = len(images.paths)
    if count == 1:
        text = f"there is one training image: its parts are in all folds, so scores only hold for {what}"
        return [Guess("group", None, "guess", text), Guess("split.method", "random", "guess", "there is no group")]
    guesses = [Guess("group", WHOLE, "sure", f"{what}: its parts stay in one fold")]
    if count < SplitSettings().folds:
        guesses.append(Guess("split.folds", count, "guess", "as many as there are groups"))
    return guesses


# --- channels --------------------------------------------------------------------------------------------------------


def _channels(images: Files, form: Form, volume: bool) -> list[Guess]:
    """The guess for `channels`, if they are not those of a usual picture."""
    channels = form.channels if not volume or not form.first else 1
    settings: dict[str, Any] = {}
    texts = []
    if images.bands:
        settings["bands"] = list(images.bands)
        more = f", the middle of {images.all_bands}" * (images.all_bands > len(images.bands))
        texts.append(f"{len(images.bands)} files per image{more}")
    if form.first and not volume:
        settings["first"] = True
        texts.append(f"arrays are {form.channels}×{form.rows}×{form.columns}")
    colours = channels in (1, 3) or (channels == 4 and not _is_array(images))
    files = max(1, len(images.bands))
    if channels * files > MOST_CHANNELS:
        picked = _picked(channels, 1 if files > 1 else MOST_CHANNELS)
        settings["pick"] = picked
        texts.append(
            f"each holds {channels} channels, {channels * files} in all, but at most {MOST_CHANNELS} are allowed: the "
            "middle ones are used, on which the mask need not have been drawn"
        )
    elif settings and not colours:
        settings["pick"] = list(range(channels))
        texts.append(f"all {channels} channels of each")
    if settings:
        return [Guess("channels", settings, "guess", "; ".join(texts))]
    if not colours:
        text = f"the files hold {channels} channels of {form.rows}×{form.columns}"
        return [Guess("channels", channels, "guess" if channels == 4 else "sure", text)]
    return []


def _is_array(images: Files) -> bool:
    return next(iter(images.paths.values())).suffix.lower() in (".npy", ".npz")


def _picked(count: int, most: int) -> list[int]:
    """The indices of the channels in the middle."""
    start = (count - most + 1) // 2
    return list(range(start, start + most))


# --- values ----------------------------------------------------------------------------------------------------------


def _value_range(images: Files, form: Form) -> list[Guess]:
    """The range of values, if images use only a small part of their number format, or are not 8 or 16 bits."""
    if form.window is not None:
        return []
    lows: list[float] = []
    highs: list[float] = []
    ends: list[float] = []
    types: set[np.dtype] = set()
    for path in _files_of_bands(images):
        try:
            values = values_of(path)
        except ValueError:
            continue
        types.add(values.dtype)
        finite = values if values.dtype.kind in "iu" else values[np.isfinite(values)]
        if finite.size:
            low, high = extremes(finite.astype(np.float64) if finite.dtype.kind == "f" else finite)
            lows.append(low)
            highs.append(high)
            ends += [float(finite.min()), float(finite.max())]
    if not lows or len({np.dtype(dtype).kind for dtype in types}) != 1:
        return []
    return range_of(types, lows, highs, (min(ends), max(ends)))


def _files_of_bands(images: Files) -> list[Path]:
    """A sample of the files, with some of every band."""
    if not images.bands:
        return some_of(images.paths.values(), 50)
    sample = some_of(images.paths.values(), 20)
    head, tail = (text.rpartition("}")[2] if place == 0 else text.partition("{")[0] for place, text in
                  enumerate(images.pattern.split("{band}", 1)))  # fmt: skip
    head, tail = head.rpartition("/")[2], tail.partition("/")[0]
    known = []
    for band in evenly(images.bands, 8):
        for path in sample:
            old, new = f"{head}{images.bands[0]}{tail}", f"{head}{band}{tail}"
            place, separator, rest = str(path).rpartition(old)
            other = Path(f"{place}{new}{rest}") if separator else path
            known.append(other if other.exists() else path)
    return known


def range_of(types: set[np.dtype], lows: list[float], highs: list[float], ends: tuple[float, float]) -> list[Guess]:
    """Returns the guess for `value_range`; nothing if none is needed.

    Args:
        types: number formats of the images.
        lows: the 0.1 % quantile of each image's values.
        highs: the 99.9 % quantile of each image's values.
        ends: the lowest and the highest value of all images.
    """
    dtype = np.dtype(max(types, key=lambda dtype: np.dtype(dtype).itemsize))
    low, high = min(lows), max(highs)
    usual = ends[1] - ends[0] <= FEW_OUTSIDE * (high - low)
    if usual and dtype.kind != "u":
        low, high = ends
    seen = f"{dtype} images with values from {low:.6g} to {high:.6g} in {len(lows)} of them"
    if dtype in (np.uint8, np.uint16):
        if len(types) != 1:
            return []
        share, used = used_range(dtype, lows, highs)
        return (
            []
            if share > SMALL or used[0] == used[1]
            else [Guess("value_range", used, "guess", f"{seen}; scaled from this range")]
        )
    if dtype.kind == "f" and low >= 0 and high <= 1 and high > 0.5:
        return [Guess("value_range", [0, 1], "guess", seen)]
    rounded = [_rounded(low, high, np.floor), _rounded(low, high, np.ceil, upper=True)]
    if rounded[0] >= rounded[1]:
        return [Guess("value_range", [rounded[0], rounded[0] + 1], "guess", f"{seen}: they show nothing")]
    left_out = f"; few are outside, from {ends[0]:.6g} to {ends[1]:.6g}, and clipped"
    text = f"{seen}{'' if usual else left_out}; scaled from this range"
    return [Guess("value_range", rounded, "guess", text)]


def _rounded(low: float, high: float, toward: Any, upper: bool = False) -> float | int:
    """An end of a range, rounded outwards to a hundredth of it."""
    step = 10.0 ** np.floor(np.log10(max(high - low, 1e-9) / 100))
    value = float(toward((high if upper else low) / step - (1e-6 if upper else -1e-6)) * step)
    return int(round(value)) if abs(value - round(value)) < 1e-9 else float(f"{value:.9g}")
