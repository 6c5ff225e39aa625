"""The number of the layout of work/, by which a later version knows what lies there."""

from pathlib import Path

from rich.markup import escape

from pipeline.core.console import console
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json, root, shown, write_json
from pipeline.core.freshness import read_manifest
from pipeline.core.lock import exclusive_lock

LAYOUT = 3
"""Raised when files of an earlier version no longer lie where they are expected."""


def check() -> None:
    """Checks that work/ is laid out as this version, or an earlier one that it knows, lays it out.

    Raises:
        PipelineError: a later version made it, or its number cannot be read.
    """
    _number()


def take_over() -> None:
    """Gives work/ the number of this version's layout, and says so where an earlier version made it.

    Version 0.1.0 wrote no number. Up to layout 2 one table held training and test images, and one manifest stood for
    the pixel arrays of both. Training finds its files where they were and is kept; every other stage runs once more.
    """
    if _number() == LAYOUT:
        return
    with exclusive_lock(_layout_file().parent):
        _take_over()


def _take_over() -> None:
    number = _number()
    if number == LAYOUT:  # another process was faster
        return
    for manifest in _layout_file().parent.glob("*/pixels_*/manifest.json"):  # now train.manifest.json and test.…
        manifest.unlink()
    write_json(_layout_file(), {"layout": LAYOUT})
    if number is not None:
        by = "version 0.1.0" if number == 1 else "an earlier version"
        console.print(
            f"[yellow]{escape(shown(root() / 'work'))}/ was made by {by} and is taken over: finished training is kept, "
            "the other stages run once more[/yellow]"
        )


def _number() -> int | None:
    """The number of the layout of work/; None where nothing of an earlier version lies there.

    Raises:
        PipelineError: a later version made it, or its number cannot be read.
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
            f'{shown(file)} cannot be read; expected {{"layout": {LAYOUT}}}. Write that if this version made '
            f"{shown(file.parent)}/, or move the folder away."
        ) from None
    if number > LAYOUT:
        raise PipelineError(
            f"{shown(file.parent)}/ was made by a later version (layout {number}, this version knows {LAYOUT}): use "
            "that version, or move the folder away."
        )
    return number


def _layout_file() -> Path:
    return root() / "work" / "layout.json"
