"""Outputs that a user may edit: outliers.csv and the folds file. Finds edits, also after a process was killed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.core.files import shown, write_text, writing
from pipeline.core.freshness import Step, hash_file, read_manifest


def is_user_edited(step: Step, path: Path) -> bool:
    """Returns whether an output of a step exists and differs from what the step wrote."""
    if path not in step.outputs or not path.exists():
        return False
    written = (read_manifest(step.manifest) or {}).get("outputs", {}).get(shown(path), {}).get("hash")
    note = announced(path)
    return hash_file(path) not in (written, note.read_text(encoding="utf-8") if note.is_file() else None)


def announced(path: Path) -> Path:
    """Returns the note that `writing_editable` leaves beside an editable output until the step is recorded."""
    return path.with_name(f".{path.name}.announced")


@contextmanager
def writing_editable(path: Path) -> Iterator[Path]:
    """Yields a temporary path as `files.writing` does, and notes the content's hash before the file gets its name.

    A process that is killed between the rename and the manifest would otherwise leave a file that looks edited.
    """
    with writing(path) as temporary:
        yield temporary
        write_text(announced(path), hash_file(temporary))


def remove_notes(step: Step) -> None:
    """Removes the notes about editable outputs of a step whose manifest is written."""
    for path in step.editable:
        announced(path).unlink(missing_ok=True)
