"""Names and paths that a YAML of somebody else's may say: none of them leads out of the folder that it is meant in."""

import re
from pathlib import PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, Field

LONGEST_NAME = 120
LONGEST_PATH = 1000


def name_fault(name: str) -> str:
    """Returns why a text cannot name a file or a folder, as the end of a sentence; "" where it can."""
    if not name or len(name) > LONGEST_NAME:
        return f"expected a plain file name of 1 to {LONGEST_NAME} characters"
    if set(name) & set("/\\") or name.startswith((".", "-", "~")):
        return "expected a plain file name, without slashes and without a dot, a hyphen or ~ at its start"
    return "" if name.isprintable() else "expected a plain file name, of characters that show"


def _plain(name: str) -> str:
    if fault := name_fault(name):
        raise ValueError(fault)
    return name


def inside(path: str) -> str:
    """Returns a path, or a pattern of paths, if it cannot leave the folder that it is relative to. Links in that folder
    may lead elsewhere: who made them wanted it.

    Raises:
        ValueError: it is absolute, or goes up.
    """
    whole = path.replace("\\", "/")
    if len(path) > LONGEST_PATH or "\0" in path:
        raise ValueError(f"expected a path of up to {LONGEST_PATH} characters")
    if PurePosixPath(whole).is_absolute() or whole.startswith("~") or re.match(r"[A-Za-z]:/", whole):
        raise ValueError("expected a path relative to the competition's folder; link other folders into it")
    if ".." in whole.split("/"):
        raise ValueError("expected a path inside the competition's folder, without ..; link other folders into it")
    return path


PlainName = Annotated[str, AfterValidator(_plain)]
"""The name of a file or a folder."""
InsidePath = Annotated[str, AfterValidator(inside)]
"""A path, or a pattern of paths, relative to the competition's input folder."""
Side = Annotated[int, Field(ge=1, le=2**20)]
"""Rows or columns of an image."""
