"""The resolved recipe of a run. It is written to recipe.yaml in the run's folder, where other runs read it."""

import hashlib
from pathlib import Path
from typing import Any

import yaml

from pipeline.core.config.settings import read_yaml
from pipeline.core.errors import PipelineError
from pipeline.core.files import write_text
from pipeline.core.intact import damaged
from pipeline.core.run import Run, describe
from pipeline.core.version import program

MARK = "# sha256 of the lines below: "


def write_recipe(run: Run) -> None:
    """Writes the resolved recipe into the run's folder, unless it is there already and unchanged."""
    body, path = yaml.safe_dump(describe(run), sort_keys=False), run.folder / "recipe.yaml"
    text = f"{MARK}{_hash(body)}\n{body}"
    try:
        same = path.read_text(encoding="utf-8") == text
    except (OSError, UnicodeDecodeError):
        same = False
    if not same:
        write_text(path, text)


def read_recipe(path: Path) -> dict[str, Any]:
    """Returns the resolved recipe and competition of a run, in the form of `describe`.

    Raises:
        PipelineError: the file is missing or damaged.
    """
    remedy = f"restore the file, or run `{program()} run {path.parent.name}` again, which writes it"
    try:
        data = read_yaml(path)
    except PipelineError as error:
        raise damaged(path, str(error).removeprefix(f"{path} ").rstrip("."), remedy) from None
    first, _, body = path.read_text(encoding="utf-8").partition("\n")
    if first.startswith("#") and first != f"{MARK}{_hash(body)}":  # earlier versions did not write the hash
        raise damaged(path, "its content has changed since it was written", remedy)
    if not all(isinstance(data.get(key), dict) for key in ("recipe", "competition")):
        raise damaged(path, "it lacks the recipe or the competition", remedy)
    return data


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
