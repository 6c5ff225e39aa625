"""Checks the columns of a submission that are not predicted."""

import pandas as pd

from pipeline.core.verdict import Reason
from pipeline.decode.readers.columns import keys_of
from pipeline.predictions.format import further_columns
from pipeline.predictions.format.expected import Expected

COLUMNS_SHOWN = 10
"""The largest number of further columns that a note names."""


def faults_of(frame: pd.DataFrame, want: Expected) -> list[tuple[int, str]]:
    """Returns the number and the fault of every row with a wrong value in the columns that the YAML names."""
    if not want.made:
        return []
    faults = []
    images, known = {text: image_id for image_id, text in want.written.items()}, set(want.ids)
    keys = zip(frame.index + 2, keys_of(frame, want.settings, want.labels), strict=True)
    columns = {name: frame[name].tolist() for name in want.made}
    for place, (number, (written, label)) in enumerate(keys):
        image_id = images.get(written or "", written or "")
        if image_id not in known:
            continue
        names = {**want.names.get(image_id, {}), "class": label or want.only_label}
        for name, template in want.made.items():
            if fault := further_columns.fault(name, template, columns[name][place], names):
                faults.append((int(number), f"row {number}: id {image_id}: {fault}"))
    return faults


def notes_on(frame: pd.DataFrame, want: Expected) -> list[Reason]:
    """Returns notes on the columns that are neither predicted nor named by the YAML: which of them equal those of the
    sample submission, by id, and which differ."""
    numbers = {label: number for number, label in enumerate(want.labels)}
    images = {text: image_id for image_id, text in want.written.items()}
    keys = [
        (images.get(image_id or "", image_id or ""), None if label is None else numbers.get(label, -1))
        for image_id, label in keys_of(frame, want.settings, want.labels)
    ]
    further = {want.row_key(key): values for key, values in want.further.items()}
    blank = [""] * len(want.copied)
    same, others = [], []
    for place, column in enumerate(want.copied):
        wanted = [further.get(key, blank)[place] for key in keys]
        values = frame[column].tolist()
        differ = [row for row, pair in enumerate(zip(values, wanted, strict=True)) if pair[0] != pair[1]]
        if not differ:
            same.append(column)
            continue
        row = differ[0]
        example = f"row {frame.index[row] + 2} has {values[row][:40]!r}, the sample {wanted[row][:40]!r}"
        others.append(f"{column} in {len(differ)} of {len(frame)} rows ({example})")
    notes = []
    if same:
        text = f"Not predicted, but equal to {want.sample}: {_some(same)}."
        notes.append(Reason("note", "further columns", text))
    if others:
        text = f"Values that differ from {want.sample}: {_some(others)}. Whether they are right cannot be checked."
        notes.append(Reason("note", "further columns", text))
    return notes


def _some(texts: list[str]) -> str:
    more = f" and {len(texts) - COLUMNS_SHOWN} more" if len(texts) > COLUMNS_SHOWN else ""
    return f"{', '.join(texts[:COLUMNS_SHOWN])}{more}"
