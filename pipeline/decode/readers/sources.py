"""The source of an image in the raw files: one file, several files as channels, slices of a volume, or a window of a
large image.

`ImageSources` determines the sources of the images of a subset. If an image is not one whole file, the columns `of_…`
of the table store its source, so that later stages read the same pixels.
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
    """The files of an image, relative to the competition's folder, and the part of them that makes up the image."""

    files: tuple[str, ...]
    slices: tuple[int, ...] = ()
    """The slices of a volume; () if each file is one picture."""
    box: Box | None = None
    """The window; None if the image is the whole picture."""
    core: Box | None = None
    """The pixels of the whole picture that belong to the window."""
    whole: str = ""
    """The id of the whole picture, or of the volume."""
    size: tuple[int, int] = (0, 0)
    """Rows × columns of the whole picture of a window."""
    spacing: str = ""
    """Millimetres between slices, rows and columns."""

    def columns(self) -> dict[str, str]:
        """Returns the columns of the table that store the source; none for an image that is one whole file."""
        values = {}
        if len(self.files) > 1:
            values["of_files"] = "|".join(self.files)
        if self.slices:
            values |= {"of_slices": " ".join(map(str, self.slices)), "of_spacing": self.spacing}
        if self.box and self.core:
            values |= {"of_box": _text(self.box), "of_core": _text(self.core), "of_size": _text(self.size)}
        return values | ({"of_image": self.whole} if self.whole else {})


def source_of(row: Mapping[str, Any] | Any) -> Source:
    """Returns the source of an image from its row in the table."""

    def text(name: str) -> str:
        return str(row[name] or "") if name in row else ""

    files = tuple(text("of_files").split("|")) if text("of_files") else (str(row["path"]),)
    box, core = (_numbers(text(name)) or None for name in ("of_box", "of_core"))
    size = _numbers(text("of_size")) or (0, 0)
    return Source(files, _numbers(text("of_slices")), box, core, text("of_image"), size)  # type: ignore[arg-type]


def read_source(source: Source, folder: Path, competition: RleCsv) -> np.ndarray:
    """Returns an image (H, W, C) uint8, uint16 or float16.

    Raises:
        ValueError: see read_image; or the files of the image differ in size or dtype.
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
            differing, first = (f"{image.dtype} {image.shape[0]}×{image.shape[1]}" for image in (part, parts[0]))
            raise ValueError(
                f"consists of several files that must be alike, but {file} is {differing} and {source.files[0]} is "
                f"{first}"
            )
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)


class ImageSources:
    """The sources of the images of a subset."""

    def __init__(self, competition: RleCsv, settings: Subset, folder: Path) -> None:
        self.competition, self.settings, self.folder = competition, settings, folder
        channels = competition.channels
        self.channels = channels if isinstance(channels, ChannelSettings) else ChannelSettings()
        self.files = self.found = ImageFiles({}, [])
        """`files` are the images, `found` the files on the disk, which are volumes if the images are slices."""
        self._volumes: dict[str, tuple[str, int, Size]] = {}
        """For each slice id: the id of its volume, the number of the slice and the size of the volume."""

    def expand(self, files: ImageFiles) -> list[Fault]:
        """Sets the files that were found, and replaces volumes by their slices as images. Returns the faults of
        volumes."""
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
        """Yields the id and source of an image, or of each of its windows.

        Raises:
            ValueError: the file of an image that is to be cut into windows cannot be read.
        """
        source = self._whole(image_id, path)
        windows = self.competition.windows
        if windows is None:
            yield image_id, source
            return
        size = measure(path)
        for row in cut((size.rows, size.columns), windows.size, windows.overlap):
            for window in row:
                part = Source(
                    source.files,
                    source.slices,
                    box=window.box,
                    core=window.core,
                    whole=image_id,
                    size=(size.rows, size.columns),
                )
                yield f"{image_id}_{window.box[0]}_{window.box[1]}", part

    def mask_name(self, image_id: str) -> str:
        """Returns the id in the names of an image's mask files: the id of its volume if it is a slice, otherwise its
        own."""
        return self._volumes[image_id][0] if image_id in self._volumes else image_id

    def mask_slice(self, image_id: str) -> int | None:
        """Returns the number of the slice in the mask file of an image; None if the file is one picture."""
        return self._volumes[image_id][1] if image_id in self._volumes else None

    def volume(self, image_id: str) -> Size | None:
        """Returns the size of the volume of which an image is a slice; None for other images."""
        return self._volumes[image_id][2] if image_id in self._volumes else None

    def extra(self, image_id: str) -> dict[str, str]:
        """Returns the further column `whole` for images that are slices or that are cut into windows; otherwise an
        empty mapping."""
        whole = self.mask_name(image_id) if self.competition.volumes else image_id
        return {WHOLE: whole} if self.competition.volumes or self.competition.windows else {}

    def bands(self, path: Path) -> list[Path]:
        """Returns the files of all bands of an image, given the file of the first band."""
        names = self.channels.bands
        if not names:
            return [path]
        text = re.escape(self.settings.images).replace(r"\{band\}", f"(?P<band>{re.escape(names[0])})", 1)
        text = re.sub(r"\\{\w+\\}", "[^/]+", text).replace(r"\*", "[^/]*")
        match = re.fullmatch(text, name := self._name(path))
        if match is None:
            return [path]
        return [self.folder / f"{name[: match.start('band')]}{band}{name[match.end('band') :]}" for band in names]

    def _whole(self, image_id: str, path: Path) -> Source:
        files = tuple(self._name(band) for band in self.bands(path))
        if image_id in self._volumes:
            volume, number, size = self._volumes[image_id]
            numbers = tuple(min(max(number + step, 0), size.slices - 1) for step in self.channels.slices)
            return Source(files, numbers, whole=volume, spacing=size.spacing)
        if self.channels.slices != [0] or self.channels.slice_of:
            neighbours = [self._neighbour(image_id, step) for step in self.channels.slices]
            files = tuple(
                self._name(band) for neighbour in neighbours for band in self.bands(self.files.paths[neighbour])
            )
        return Source(files)

    def _neighbour(self, image_id: str, step: int) -> str:
        """Returns the id of the slice at a distance of `step`, or of the existing slice nearest to that."""
        series, number = self._series[image_id]
        known = self._numbers[series]
        nearest = min(known, key=lambda other: (abs(other - number - step), abs(other - number)))
        return known[nearest]

    @cached_property
    def _series(self) -> dict[str, tuple[str, int]]:
        """For each image: its id without the number of the slice, and this number."""
        pattern = self.channels.slice_of or "{series}_{slice}"
        parts = re.split(r"({\w+})", pattern)
        text = "".join(
            r"(?P<slice>\d+)" if part == "{slice}" else r".+?" if re.fullmatch(r"{\w+}", part) else re.escape(part)
            for part in parts
        )
        series = {}
        for image_id in self.files.paths:
            match = re.fullmatch(text, image_id)
            whole = (image_id, 0)
            if match is not None:
                whole = image_id[: match.start("slice")] + "|" + image_id[match.end("slice") :], int(match["slice"])
            series[image_id] = whole
        return series

    @cached_property
    def _numbers(self) -> dict[str, dict[int, str]]:
        """For each series: its images by number."""
        by_series: dict[str, dict[int, str]] = {}
        for image_id, (series, number) in self._series.items():
            by_series.setdefault(series, {})[number] = image_id
        return by_series

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()


def _text(numbers: tuple[int, ...]) -> str:
    return " ".join(map(str, numbers))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split()))
