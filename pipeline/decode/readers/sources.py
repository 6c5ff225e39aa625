"""Where in the raw files an image lies: one file, several as channels, slices of a volume, or a window of a large one.

`ImageSources` knows that for the images of a subset; the columns `of_…` of the table keep it, where there is something
to keep, so that whoever opens an image later reads the same.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.config.competition import WHOLE
from pipeline.core.config.raw_files import Subset
from pipeline.core.config.raw_images import ChannelSettings
from pipeline.core.config.raw_layouts import RleCsv
from pipeline.decode.formats.base import Size
from pipeline.decode.formats.registry import measure
from pipeline.decode.readers.base import Fault
from pipeline.decode.readers.files import read_image
from pipeline.decode.readers.names import ImageFiles
from pipeline.masks.windows import Box, cut


@dataclass(frozen=True)
class Source:
    """The files of an image, relative to the competition's folder, and what of them it is."""

    files: tuple[str, ...]
    slices: tuple[int, ...] = ()
    """Of a volume; () where each file is one picture."""
    box: Box | None = None
    """The window, where it is not the whole picture."""
    core: Box | None = None
    """The pixels of the whole picture that belong to the window."""
    whole: str = ""
    """The id of the whole picture, or of the volume."""
    size: tuple[int, int] = (0, 0)
    """Rows × columns of the whole picture of a window."""
    spacing: str = ""
    """Millimetres between slices, rows and columns."""

    def columns(self) -> dict[str, str]:
        """Returns what the table keeps of it; nothing of an image that is one file."""
        found = {}
        if len(self.files) > 1:
            found["of_files"] = "|".join(self.files)
        if self.slices:
            found |= {"of_slices": " ".join(map(str, self.slices)), "of_spacing": self.spacing}
        if self.box and self.core:
            found |= {"of_box": _text(self.box), "of_core": _text(self.core), "of_size": _text(self.size)}
        return found | ({"of_image": self.whole} if self.whole else {})


def source_of(row: Mapping[str, Any] | Any) -> Source:
    """Returns the source of an image from its row of the table."""

    def text(name: str) -> str:
        return str(row[name] or "") if name in row else ""

    files = tuple(text("of_files").split("|")) if text("of_files") else (str(row["path"]),)
    box, core = (_numbers(text(name)) or None for name in ("of_box", "of_core"))
    size = _numbers(text("of_size")) or (0, 0)
    return Source(files, _numbers(text("of_slices")), box, core, text("of_image"), size)  # type: ignore[arg-type]


def read_source(source: Source, folder: Path, competition: RleCsv) -> np.ndarray:
    """Returns an image (H, W, C) uint8, uint16 or float16.

    Raises:
        ValueError: as read_image; or its files differ in size or type.
    """
    axis = competition.volumes.axis if competition.volumes else None
    parts = []
    for file in source.files:
        try:
            for number in source.slices or (None,):
                image = read_image(folder / file, **competition.reading, slice_number=number, axis=axis, box=source.box)
                parts.append(image)
        except ValueError as error:
            raise type(error)(f"{file} {error}" if len(source.files) > 1 else str(error)) from error
    for file, part in zip(source.files, parts[:: max(1, len(source.slices))], strict=True):
        if (part.shape[:2], part.dtype) != (parts[0].shape[:2], parts[0].dtype):
            one, other = (f"{image.dtype} {image.shape[0]}×{image.shape[1]}" for image in (part, parts[0]))
            raise ValueError(f"is made of several files, of which {file} is {one} and {source.files[0]} {other}")
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)


class ImageSources:
    """Where the images of a subset lie."""

    def __init__(self, competition: RleCsv, settings: Subset, folder: Path) -> None:
        self.competition, self.settings, self.folder = competition, settings, folder
        channels = competition.channels
        self.channels = channels if isinstance(channels, ChannelSettings) else ChannelSettings()
        self.files = self.found = ImageFiles({}, [])
        """The images, and the files as they were found, which are volumes where images are slices."""
        self._volumes: dict[str, tuple[str, int, Size]] = {}
        """By id of a slice: the id of its volume, its place in it, and the volume's size."""

    def expand(self, files: ImageFiles) -> list[Fault]:
        """Takes the files that were found; of volumes, every slice becomes an image of its own. Returns what is wrong
        with the volumes."""
        self.files, volumes = files, self.competition.volumes
        self.found = replace(files, paths=dict(files.paths))
        if volumes is None:
            return []
        faults: list[Fault] = []
        paths: dict[str, Path] = {}
        for volume, path in files.paths.items():
            try:
                size = measure(path, volumes.axis, volume=True)
            except ValueError as error:
                faults.append(Fault(self._name(path), None, str(error)))
                continue
            for number in range(size.slices):
                name = volumes.id.format(id=volume, slice=number + volumes.first)
                paths[name], self._volumes[name] = path, (volume, number, size)
        files.paths = paths
        return faults

    def parts(self, image_id: str, path: Path) -> Iterator[tuple[str, Source]]:
        """Yields id and source of an image, or of each of its windows.

        Raises:
            ValueError: the file of an image that is cut into windows cannot be read.
        """
        source = self._whole(image_id, path)
        windows = self.competition.windows
        if windows is None:
            yield image_id, source
            return
        size = measure(path)
        for row in cut((size.rows, size.columns), windows.size, windows.overlap):
            for one in row:
                place = {"box": one.box, "core": one.core, "whole": image_id, "size": (size.rows, size.columns)}
                yield f"{image_id}_{one.box[0]}_{one.box[1]}", Source(source.files, source.slices, **place)  # type: ignore[arg-type]

    def mask_name(self, image_id: str) -> str:
        """Returns the id that the mask files of an image go by: that of its volume, where it is a slice."""
        return self._volumes[image_id][0] if image_id in self._volumes else image_id

    def mask_slice(self, image_id: str) -> int | None:
        """Returns which slice of a mask file is an image's; None: the file is one picture."""
        return self._volumes[image_id][1] if image_id in self._volumes else None

    def volume(self, image_id: str) -> Size | None:
        """Returns the size of the volume that an image is a slice of; None of other images."""
        return self._volumes[image_id][2] if image_id in self._volumes else None

    def extra(self, image_id: str) -> dict[str, str]:
        """Returns the further column `whole` of an image that is a slice, or that is cut into windows."""
        whole = self.mask_name(image_id) if self.competition.volumes else image_id
        return {WHOLE: whole} if self.competition.volumes or self.competition.windows else {}

    def bands(self, path: Path) -> list[Path]:
        """Returns the files of all bands, of the first one's path."""
        names = self.channels.bands
        if not names:
            return [path]
        text = re.escape(self.settings.images).replace(r"\{band\}", f"(?P<band>{re.escape(names[0])})", 1)
        text = re.sub(r"\\{\w+\\}", "[^/]+", text).replace(r"\*", "[^/]*")
        match = re.fullmatch(text, name := self._name(path))
        if match is None:
            return [path]
        return [self.folder / f"{name[: match.start('band')]}{one}{name[match.end('band') :]}" for one in names]

    def _whole(self, image_id: str, path: Path) -> Source:
        files = tuple(self._name(one) for one in self.bands(path))
        if image_id in self._volumes:
            volume, number, size = self._volumes[image_id]
            numbers = tuple(min(max(number + step, 0), size.slices - 1) for step in self.channels.slices)
            return Source(files, numbers, whole=volume, spacing=size.spacing)
        if self.channels.slices != [0] or self.channels.slice_of:
            found = [self._neighbour(image_id, step) for step in self.channels.slices]
            files = tuple(self._name(band) for one in found for band in self.bands(self.files.paths[one]))
        return Source(files)

    def _neighbour(self, image_id: str, step: int) -> str:
        """The id of the slice at a distance, or of the nearest one to it."""
        series, number = self._series[image_id]
        known = self._numbers[series]
        nearest = min(known, key=lambda other: (abs(other - number - step), abs(other - number)))
        return known[nearest]

    @cached_property
    def _series(self) -> dict[str, tuple[str, int]]:
        """Of every image: the id without the slice's number, and that number."""
        pattern = self.channels.slice_of or "{series}_{slice}"
        parts = re.split(r"({\w+})", pattern)
        text = "".join(
            r"(?P<slice>\d+)" if part == "{slice}" else r".+?" if re.fullmatch(r"{\w+}", part) else re.escape(part)
            for part in parts
        )
        found = {}
        for image_id in self.files.paths:
            match = re.fullmatch(text, image_id)
            whole = (image_id, 0)
            if match is not None:
                whole = image_id[: match.start("slice")] + "|" + image_id[match.end("slice") :], int(match["slice"])
            found[image_id] = whole
        return found

    @cached_property
    def _numbers(self) -> dict[str, dict[int, str]]:
        """Of every series: its images by number."""
        found: dict[str, dict[int, str]] = {}
        for image_id, (series, number) in self._series.items():
            found.setdefault(series, {})[number] = image_id
        return found

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()


def _text(numbers: tuple[int, ...]) -> str:
    return " ".join(map(str, numbers))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split()))
