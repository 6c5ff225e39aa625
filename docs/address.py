"""Writes the repository's public address into every place that needs it: after a fork, or once it is published.

    python docs/address.py https://github.com/OWNER/NAME

Each notebook gets links that open it on Colab and on Kaggle, and a first cell that fetches the code there, where a
notebook comes alone. README gets the links to the first notebook, CITATION.cff `repository-code`. Calling it again with
another address replaces the first.
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
START = "%run start.py"
"""The last line of every notebook's first code cell."""


def links(address: str, notebook: str) -> str:
    """Returns Markdown links that open a notebook of the repository on Colab and on Kaggle."""
    path = f"{address.removeprefix('https://github.com/')}/blob/main/notebooks/{notebook}"
    return (
        f"[Open in Colab](https://colab.research.google.com/github/{path}) · "
        f"[Open in Kaggle](https://kaggle.com/kernels/welcome?src=https://github.com/{path})"
    )


def first_cell(address: str) -> str:
    """Returns the first code cell of a notebook that finds its code wherever it was opened."""
    return (
        "# On Colab and Kaggle the notebook comes alone: this fetches the code (on Kaggle switch the internet on).\n"
        "import os\n\n"
        'if not os.path.exists("start.py"):\n'
        f"    !git clone -q --depth 1 {address} repository\n"
        f"    %cd repository/notebooks\n"
        f"{START}"
    )


def write_notebook(path: Path, address: str) -> None:
    """Puts the links under a notebook's title and the code that fetches the repository into its first code cell."""
    content = json.loads(path.read_text(encoding="utf-8"))
    title, code = content["cells"][0], next(cell for cell in content["cells"] if cell["cell_type"] == "code")
    text = re.sub(r"\n\n\[Open in Colab\].*", "", "".join(title["source"]))
    title["source"] = f"{text}\n\n{links(address, path.name)}".splitlines(keepends=True)
    if START not in "".join(code["source"]):
        raise SystemExit(f"{path}: the first code cell does not end with `{START}`")
    code["source"] = first_cell(address).splitlines(keepends=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main(address: str, root: Path = ROOT) -> None:
    """Writes the address into the notebooks, README and CITATION.cff under a root."""
    if not re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+", address):
        raise SystemExit(f"{address}: expected https://github.com/OWNER/NAME")
    notebooks = sorted((root / "notebooks").glob("*.ipynb"))
    for path in notebooks:
        write_notebook(path, address)
    readme = root / "README.md"
    marked = f"<!-- address -->{links(address, notebooks[0].name)}<!-- /address -->"
    readme.write_text(re.sub(r"<!-- address -->.*?<!-- /address -->", marked, readme.read_text(encoding="utf-8")))
    citation = root / "CITATION.cff"
    text = re.sub(r"^repository-code: .*\n", "", citation.read_text(encoding="utf-8"), flags=re.M)
    citation.write_text(f"{text.rstrip()}\nrepository-code: {address}\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:2] or [""])
