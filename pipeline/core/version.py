"""The version of the package, which is recorded in artefacts, and the name of the program in messages."""

import sys
from pathlib import Path

VERSION = "0.2.0"


def program() -> str:
    """Returns how the user called the program, for the commands that messages suggest."""
    return "segpipe" if Path(sys.argv[0]).stem == "segpipe" else "python -m pipeline"
