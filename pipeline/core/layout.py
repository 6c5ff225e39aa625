"""The version number of the layout of work/, by which later versions recognise how files are arranged there."""

from pathlib import Path

from rich.markup import escape

from pipeline.core.console import console
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json, root, shown, write_json
from pipeline.core.freshness import read_manifest
from pipeline.core.lock import exclusive_lock

LAYOUT = 3
"""Increased whenever files of an earlier version are no longer where this version expects them."""


def check() -> None:
    """Checks that work/ has the layout of this version, or of an earlier version that it can take over.

    Raises:
        PipelineError: a later version made work/, or its layout number cannot be read.
    """
    _number()


def take_over() -> None:
    """Converts work/ to the layout of this version, and prints a message if an earlier version made it.

    Version 0.1.0 wrote no layout number. Up to layout 2, training and test images shared one table and one manifest of
    pixel arrays. Finished training is kept, because its files have not moved. All other stages run once more.
    """
    if _number() == LAYOUT:
        return
    with exclusive_lock(_layout_file().parent):
        _take_over()


def _take_over() -> None:
    number = _number()
    if number == LAYOUT:  # another process has done it
        return
    for manifest in _layout_file().parent.glob("*/pixels_*/manifest.json"):
        # replaced by train.manifest.json and test.manifest.json
        manifest.unlink()
    write_json(_layout_file(), {"layout": LAYOUT})
    if number is not None:
        by = "version 0.1.0" if number == 1 else "an earlier version"
        console.print(
            f"[yellow]{escape(shown(root() / 'work'))}/ was made by {by} and is converted: finished training is kept, "
            "and all other stages run once more[/yellow]"
        )


def _number() -> int | None:
    """Returns the layout number of work/; None if no earlier version has written there.

    Raises:
        PipelineError: a later version made work/, or its layout number cannot be read.
    """
    file = _layout_file()
    if not file.exists():
        records = [read_manifest(path) for path in file.parent.glob("*/images.manifest.json")]
        return 1 if any(record and "version" not in record for record in records) else None
    try:
        number = read_json(file)["layout"]
        if type(number) is not int or number < 1:
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError):
        raise PipelineError(
            f'{shown(file)} cannot be read; expected {{"layout": {LAYOUT}}}. Write this content if this version made '
            f"{shown(file.parent)}/; otherwise move the folder away."
        ) from None
    if number > LAYOUT:
        raise PipelineError(
            f"{shown(file.parent)}/ was made by a later version (layout {number}, this version knows {LAYOUT}): use "
            "that version, or move the folder away."
        )
    return number


def _layout_file() -> Path:
    return root() / "work" / "layout.json"
