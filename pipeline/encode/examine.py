"""Finds the faults of a submission: in its columns, ids and masks, and instances that share pixels."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from pipeline.core.config.submission_settings import ENDINGS, file_of_name
from pipeline.core.tables import column_names
from pipeline.core.verdict import Reason
from pipeline.decode.readers.columns import image_finder
from pipeline.encode import class_maps, column_checks, mask_images
from pipeline.encode.rows import Row, read_frame, rows_of, rows_of_images
from pipeline.encode.sentences import Measure, meant_id, no_mask, not_canonical
from pipeline.masks import rle, rle_text
from pipeline.predictions.format.expected import Expected, Key

Fault = tuple[int, str]
"""The number of a row, and a sentence that names it."""


def examine(path: Path, want: Expected, measure: Measure | None = None) -> tuple[list[str], list[Reason]]:
    """Returns every fault of a submission, each naming its row or mask image, and notes; without faults it is valid.

    A different order of rows than in the sample submission is a note, because Kaggle matches rows by their ids. Values
    in columns that are not predicted are described in a note too.

    Args:
        path: the submission, a file of any kind or a folder of mask images.
        want: the expected content of a submission.
        measure: called with every valid mask, with all instances of an image as one mask, so that nothing is decoded
            twice.

    Raises:
        PipelineError: the file does not exist, or is of another kind.
    """
    notes: list[Reason] = []
    if want.settings.format == "labels":
        faults, rows = class_maps.faults_of(path, want, measure)
    elif want.settings.format == "images":
        faults = []
        more, rows = _Check(want, measure).run(list(rows_of_images(path, want, faults)))
        faults += more
    else:
        frame = read_frame(path, want)
        faults, rows = _faults_of_table(frame, want, measure)
        if not faults and want.copied:
            notes = column_checks.notes_on(frame, want)
    if rows is None:  # wrong columns
        return faults, []
    faults += _missing(rows, want)
    if faults:
        return faults, []
    return [], [*_order(rows, want), *notes, *_without_rows(rows, want)]


def faults_of(path: Path, want: Expected) -> list[str]:
    """Returns every fault of a submission, as examine does."""
    return examine(path, want)[0]


def file_note(path: Path, want: Expected) -> list[Reason]:
    """Returns a note if a file is of another kind than the competition's submissions."""
    if file_of_name(path.name) == want.file or path.is_dir():
        return []
    text = f"The competition takes {ENDINGS[want.file]}, but this is {path.name}. It was read nevertheless."
    return [Reason("note", "kind of file", text, "submission.file in the competition's YAML")]


# --- rows ------------------------------------------------------------------------------------------------------------


def _missing(rows: dict[Key, str], want: Expected) -> list[str]:
    """Returns a fault that lists missing rows or mask images."""
    if want.needed == "nothing":
        return []
    if want.settings.format == "images":
        members = mask_images.members(want)
        names = {member.name: {key for page in member.keys for key in page} for member in members}
        missing = [name for name, keys in names.items() if not keys & rows.keys()]
        return _listed(missing, len(names), "mask images")
    if want.needed == "images":
        present = {image_id for image_id, _ in rows}
        return _listed([image_id for image_id in want.ids if image_id not in present], len(want.ids), "test ids")
    present_keys = {want.row_key(key) for key in rows}
    needed = dict.fromkeys(map(want.row_key, want.keys))
    return _listed([want.name(key) for key in needed if key not in present_keys], len(needed), "test ids")


def _listed(missing: list[str], count: int, kind: str) -> list[str]:
    return [f"{len(missing)} of {count} {kind} are missing: {', '.join(missing[:5])}"] if missing else []


def _order(rows: dict[Key, str], want: Expected) -> list[Reason]:
    pairs = zip(rows.items(), want.keys, strict=False)
    moved = next(((key, where, wanted) for (key, where), wanted in pairs if key != wanted), None)
    if moved is None or want.sample is None or want.needed != "keys":
        return []
    key, where, wanted = moved
    difference = f"{where} is {want.name(key)}, in the sample it is {want.name(wanted)}"
    return [Reason("note", "row order", f"Rows are in another order than in {want.sample}: {difference}.")]


def _without_rows(rows: dict[Key, str], want: Expected) -> list[Reason]:
    """Returns a note on classes of images without a row, if this counts as an empty mask."""
    missing = [key for key in want.keys if key not in rows]
    if want.needed != "images" or not missing:
        return []
    text = (
        f"{len(missing)} of {len(want.keys)} pairs of an image and a class have no row, which counts as an empty mask: "
        f"{', '.join(map(want.name, missing[:3]))}{', …' if len(missing) > 3 else ''}."
    )
    return [Reason("note", "classes without rows", text)]


def _faults_of_table(
    frame: pd.DataFrame, want: Expected, measure: Measure | None
) -> tuple[list[str], dict[Key, str] | None]:
    """Returns the faults in the order of their rows, and the first row of every key; None if the columns are wrong."""
    wrong = set(frame.columns) != set(want.header) if want.file == "json" else list(frame.columns) != want.header
    if wrong:
        as_sample = f" as in {want.sample}" if want.copied else ""
        wanted = f"{column_names(want.header)}, in this order{as_sample}"
        return [f"columns are {column_names(frame.columns)}; expected {wanted}"], None
    return _Check(want, measure).run(rows_of(frame, want), column_checks.faults_of(frame, want))


@dataclass
class _Check:
    """Checks every mask of a submission."""

    want: Expected
    measure: Measure | None
    faults: list[Fault] = field(default_factory=list)
    first: dict[Key, str] = field(default_factory=dict)
    """The first row of every key, as messages name it."""

    def run(self, rows: Iterable[Row], faults: Iterable[Fault] = ()) -> tuple[list[str], dict[Key, str]]:
        """Returns the faults in the order of rows, and the first row of every key."""
        lines = self._by_key(rows)
        together: dict[str, list[Key]] = {}
        for key in lines:
            together.setdefault(key[0], []).append(key)
        for image_id, keys in together.items():
            self._look_at(image_id, {key: lines[key] for key in keys})
        every = sorted([*self.faults, *faults], key=lambda fault: fault[0])
        return [text for _, text in every], self.first

    def _by_key(self, rows: Iterable[Row]) -> dict[Key, list[Row]]:
        want = self.want
        known, numbers = set(want.keys), {label: number for number, label in enumerate(want.labels)}
        lines: dict[Key, list[Row]] = {}
        find = image_finder({image_id for image_id, _ in known})
        for row in rows:
            key = row.image_id or "", None if row.label is None else numbers.get(row.label, -1)
            if key not in known:
                suffix, meant = f" with label {row.label!r}" if row.label else "", find(key[0])
                hint = meant_id(row.value, key[0], meant if (meant, key[1]) in known else key[0])
                self._fault(row, f"id {row.value!r}{suffix} is not in the test set{hint}")
                continue
            first = self.first.setdefault(key, row.where)
            if first != row.where and want.settings.row != "instance":
                self._fault(row, f"id {want.name(want.row_key(key))} is already in {first}")
            elif row.fault:
                self._fault(row, f"id {want.name(want.row_key(key))}: {row.fault}")
            else:
                lines.setdefault(key, []).append(row)
        return lines

    def _fault(self, row: Row, text: str) -> None:
        fault = (row.number, f"{row.where}: {text}")
        if fault not in self.faults[-1:]:  # a cell or a class map is checked once for each class
            self.faults.append(fault)

    def _look_at(self, image_id: str, lines: dict[Key, list[Row]]) -> None:
        """Checks the masks of an image."""
        want = self.want
        shape = want.shapes.get(image_id)
        order: Literal["F", "C"] = "F" if want.convention.order == "column" else "C"  # as masks are decoded
        owner, seen = np.zeros(shape or 0, np.int32, order), list[Row]()
        for key, rows in lines.items():
            if shape is None:
                for row in rows:
                    self._fault(row, f"id {want.name(key)}: no such image was decoded")
                continue
            if image_id in want.windows:
                self._look_at_windows(key, rows[0])
                continue
            if want.by_instance and want.settings.overlap == "classes":
                owner[:] = 0
            covered = self._covered(key, rows, owner, seen)
            if self.measure and covered is not None:
                self.measure(image_id, want.classes[0] if key[1] is None else key[1], covered)

    def _covered(self, key: Key, rows: list[Row], owner: np.ndarray, seen: list[Row]) -> np.ndarray | None:
        """Returns the valid masks of a key as one mask. `owner` (h, w) holds for each pixel the number, from 1, of its
        row in `seen`."""
        want, covered = self.want, None
        texts: dict[str, Row] = {}
        apart = want.settings.overlap == "none" or (want.by_instance and want.settings.overlap == "classes")
        some_empty = any(_is_empty(row.text, want) for row in rows) and len(rows) > 1
        for row in rows:
            fault, mask = self._decoded(row, owner.shape)
            text = rle_text.spelled(row.text, want.convention)
            if not fault and (first := texts.setdefault(text, row)) is not row:
                fault = f"is the same as {first.where}"
            elif not fault and some_empty and not mask.any():
                fault = "it is an empty mask, but the image has other instances"
            elif not fault and apart and (other := int((owner * mask).max(initial=0))):
                pixels = np.count_nonzero((owner == other) & (mask == 1))
                fault = f"shares {pixels} pixel{'' if pixels == 1 else 's'} with {_other(row, seen[other - 1])}"
            if fault:
                self._fault(row, f"id {want.name(key)}: {fault}")
                continue
            covered = mask if covered is None else covered | mask
            if apart:
                seen.append(row)
                owner[mask == 1] = len(seen)
        return covered

    def _decoded(self, row: Row, shape: tuple[int, ...]) -> tuple[str, np.ndarray]:
        """Returns the fault of a mask, "" if it has none, and the mask."""
        want, size = self.want, (shape[0], shape[1])
        try:
            # the text that encoding the decoded mask again would give
            again = rle.convert(row.text, size, want.convention, want.convention)
            mask = rle.decode(row.text, size, want.convention)
        except rle.RleError as error:
            return no_mask(row.text, error, want), np.zeros(0, np.uint8)
        return not_canonical(row.text, again) if again != rle_text.spelled(row.text, want.convention) else "", mask

    def _look_at_windows(self, key: Key, row: Row) -> None:
        """Checks the mask of an image that was cut into windows; each window is measured, and the whole mask is never
        in memory."""
        want, whole = self.want, self.want.windows[key[0]]
        try:
            again = rle.convert(row.text, whole.shape, want.convention, want.convention)
        except rle.RleError as error:
            self._fault(row, f"id {want.name(key)}: {no_mask(row.text, error, want)}")
            return
        if again != rle_text.spelled(row.text, want.convention):
            self._fault(row, f"id {want.name(key)}: {not_canonical(row.text, again)}")
        elif self.measure:
            runs, number = rle.parse(row.text, want.convention), want.classes[0] if key[1] is None else key[1]
            for window_id, box, core in zip(whole.ids, whole.boxes, whole.cores, strict=True):
                mask = np.zeros((box[2] - box[0], box[3] - box[1]), np.uint8)
                inside = slice(core[0] - box[0], core[2] - box[0]), slice(core[1] - box[1], core[3] - box[1])
                mask[inside] = rle.box_of_runs(runs, core, whole.shape, want.convention.order)
                self.measure(window_id, number, mask)


def _is_empty(text: str, want: Expected) -> bool:
    return not text.strip() or text.strip() == want.convention.empty.strip()


def _other(row: Row, other: Row) -> str:
    return "another mask of the image" if other.where == row.where else f"{other.where}, another mask of the image"
