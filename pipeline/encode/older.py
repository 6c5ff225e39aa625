"""Keeps older submissions of a run under a name with the time at which they were made."""

import os
import shutil
import time
from itertools import count
from pathlib import Path

from pipeline.core import freshness
from pipeline.core.config.submission_settings import ENDINGS
from pipeline.core.files import read_record, writing
from pipeline.core.run import Run
from pipeline.encode.file_kinds import record_of


def keep(run: Run, digest: str) -> None:
    """Gives an older submission of a run and its record a second, dated name, unless it has this hash or is empty.

    Both also keep the first name until the new files are renamed over them, so that a kill in between loses nothing.
    """
    for path in _kinds(run):
        if not path.exists() or not path.stat().st_size or (before := freshness.hash_file(path)) == digest:
            continue
        record = read_record(run.record)
        # otherwise the record belongs to another file or is damaged
        own = record.get("sha256") == before and isinstance(record.get("made"), str)
        modified = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(path.stat().st_mtime))
        stamp = (record["made"] if own else modified).replace(" ", "-").replace(":", "")
        ending = path.name.removeprefix(run.name)
        dated = path.with_name(f"{run.name}.{stamp}{ending}")
        for number in count(2):
            if not dated.exists() or freshness.hash_file(dated) == before:  # made by an attempt that was killed
                break
            dated = path.with_name(f"{run.name}.{stamp}-{number}{ending}")
        _second_name(path, dated)
        if own:
            _second_name(run.record, record_of(dated))


def rename_other_kinds(run: Run) -> None:
    """Removes the first name of older submissions of other kinds; `keep` has given them a dated name."""
    for path in _kinds(run):
        if path != run.submission:
            path.unlink(missing_ok=True)


def _kinds(run: Run) -> list[Path]:
    """Returns the paths that a submission of the run may have, one per kind of file."""
    return [run.record.with_name(f"{run.name}{ending}") for ending in ENDINGS.values()]


def _second_name(path: Path, name: Path) -> None:
    """Links or copies a file to another name, unless a file with this name exists."""
    if name.exists():
        return
    try:
        os.link(path, name)
    except OSError:  # a file system without links
        with writing(name) as temporary:
            shutil.copy2(path, temporary)
