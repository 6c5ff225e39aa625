"""The version of the package, which artefacts say that they were made by, and what the program is called by."""

import sys
from pathlib import Path

VERSION = "0.2.0"


def program() -> str:
    """Returns how a person calls the program, for the commands that messages suggest."""
    return "segpipe" if Path(sys.argv[0]).stem == "segpipe" else "python -m pipeline"
