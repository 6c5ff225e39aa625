"""Makes the inference script and the notebook from script.py, in which `# %%` lines separate the cells."""

import json
import re
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("script.py")
SERVER = Path(__file__).with_name("server_template.txt")


def script_text(settings: dict[str, str]) -> str:
    """Returns the script with constants set, for example {"TARGET": "submission.parquet"}."""
    text = SOURCE.read_text(encoding="utf-8")
    for name, value in settings.items():
        text, count = re.subn(rf'^{name} = "[^"\n]*"', f"{name} = {json.dumps(value)}", text, flags=re.MULTILINE)
        assert count == 1, name
    return text


def server_text(settings: dict[str, str]) -> str:
    """Returns a template of a script for an inference server, which finds, checks and installs the bundle as well."""
    head, _, _ = script_text(settings).partition("\n# %%\ndef main")
    return head.rstrip("\n") + SERVER.read_text(encoding="utf-8")


def notebook_text(settings: dict[str, str]) -> str:
    """Returns the script as a notebook."""
    cells: list[dict[str, Any]] = []
    for part in re.split(r"^# %%", script_text(settings), flags=re.MULTILINE)[1:]:
        kind, _, body = part.partition("\n")
        lines = body.strip("\n")
        if "markdown" in kind:
            lines = "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines.splitlines())
        cell: dict[str, Any] = {"cell_type": "markdown" if "markdown" in kind else "code", "metadata": {}}
        cell |= {"id": f"cell-{len(cells)}", "source": lines.splitlines(keepends=True)}
        cells.append(cell | ({} if "markdown" in kind else {"execution_count": None, "outputs": []}))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    about = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return json.dumps({"cells": cells, "metadata": about, "nbformat": 4, "nbformat_minor": 5}, indent=1) + "\n"
