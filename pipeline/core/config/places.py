"""Names and paths in untrusted YAML files. None of them can lead out of the folder that it is relative to."""

import re
from pathlib import PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, Field

LONGEST_NAME = 120
LONGEST_PATH = 1000


def name_fault(name: str) -> str:
    """Returns why a text cannot be the name of a file or folder, as the end of a sentence; "" if it can."""
    if not name or len(name) > LONGEST_NAME:
        return f"expected a plain file name of 1 to {LONGEST_NAME} characters"
    if set(name) & set("/\\") or name.startswith((".", "-", "~")):
        return "expected a plain file name without slashes that does not start with a dot, a hyphen or ~"
    return "" if name.isprintable() else "expected a plain file name of printable characters"


def _plain(name: str) -> str:
    if fault := name_fault(name):
        raise ValueError(fault)
    return name


def inside(path: str) -> str:
    """Returns a path or path pattern unchanged if it cannot lead out of the folder that it is relative to. Links in
    that folder may lead elsewhere, because the user made them on purpose.

    Raises:
        ValueError: the path is absolute, contains `..`, or is too long.
    """
    normalised = path.replace("\\", "/")
    if len(path) > LONGEST_PATH or "\0" in path:
        raise ValueError(f"expected a path of up to {LONGEST_PATH} characters")
    if PurePosixPath(normalised).is_absolute() or normalised.startswith("~") or re.match(r"[A-Za-z]:/", normalised):
        raise ValueError(
            "expected a path relative to the competition's folder; to use files elsewhere, make a link to them in it"
        )
    if ".." in normalised.split("/"):
        raise ValueError(
            "expected a path inside the competition's folder, without `..`; to use files elsewhere, make a link to "
            "them in it"
        )
    return path


PlainName = Annotated[str, AfterValidator(_plain)]
"""The name of a file or folder."""
InsidePath = Annotated[str, AfterValidator(inside)]
"""A path or path pattern relative to the competition's input folder."""
Side = Annotated[int, Field(ge=1, le=2**20)]
"""A number of rows or columns of an image."""
