"""What README tells a stranger to type is valid, and what it names exists."""

import re
import shlex
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import typer
import yaml

from pipeline.__main__ import app
from pipeline.clean.outliers import findings
from pipeline.core import events
from pipeline.core.config.cleaning import CleanSettings
from pipeline.core.config.raw_layouts import RleCsv, load_competition
from pipeline.core.config.recipe import load_recipe
from pipeline.core.config.settings import validate
from pipeline.core.console import console

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
CLEAN = (REPOSITORY / "docs" / "clean-and-split.md").read_text(encoding="utf-8")
TUNE = (REPOSITORY / "docs" / "validate-tune-predict-encode.md").read_text(encoding="utf-8")
TRAIN = (REPOSITORY / "docs" / "train.md").read_text(encoding="utf-8")
DOCS = REPOSITORY / "docs"
PAGES = {
    str(path.relative_to(DOCS).with_suffix("")): path.read_text(encoding="utf-8")
    for path in sorted([*DOCS.glob("*.md"), *DOCS.glob("tutorials/*.md")])
}
EXECUTED = ("your-own-competition", "bring-your-own")  # their commands, by tests of their own
MADE_BY_NEW = {"my-scans", "my-cells"}  # the competitions that tutorials make; no repository has them


def commands() -> list[list[str]]:
    texts = [README, *(text for name, text in PAGES.items() if name not in EXECUTED)]
    blocks = [block for text in texts for block in re.findall(r"```bash\n(.*?)```", text, re.S)]
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    calls = [line[3:] for line in words if line[:3] == ["python", "-m", "pipeline"]]
    scripts = [["run", *(line[1:] or ["sample"])] for line in words if line[:1] == ["./run_all.sh"]]
    return calls + scripts


def test_readme_has_commands() -> None:
    assert len(commands()) >= 9


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_command_is_valid(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "quiet", False)  # -q and --json take effect as they are read
    monkeypatch.setattr(events, "_enabled", False)
    group = typer.main.get_command(app)
    command = group.commands[words[0]]  # type: ignore[attr-defined]
    context = command.make_context(words[0], words[1:])
    recipe, competition = context.params.get("recipe"), context.params.get("competition")
    if MADE_BY_NEW & {recipe, competition} or words[0] not in ("run", "status"):
        return
    if recipe == "auto":
        load_competition(competition)
    else:
        load_recipe(recipe, context.params["quick"], context.params["assignments"], competition)


def test_own_competition_is_valid() -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", README, re.S)
    assert validate(RleCsv, {"name": "my-cells", **yaml.safe_load(example)}, "README").group == "patient"


def test_readme_is_short() -> None:
    assert len(README.splitlines()) < 200


def test_settings_of_clean_are_valid() -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", CLEAN, re.S)
    assert validate(CleanSettings, yaml.safe_load(example)["clean"], "docs").pixel_outliers.action == "off"


def test_the_detector_of_the_docs_detects() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", CLEAN, re.S)
    names: dict[str, Any] = {"pd": pd, "findings": findings, "TinySettings": SimpleNamespace}
    exec(example, names)
    images = pd.DataFrame({"image_id": ["a", "b", "c"], "area_nerve": [0, 7, 700]})
    found = names["find_tiny"](images, SimpleNamespace(pixels=50, action="drop"))
    assert found[["image_id", "score", "action"]].to_numpy().tolist() == [["b", 7, "drop"]]


def test_the_loss_and_the_metric_of_the_docs_compute() -> None:
    import numpy as np
    import torch

    from pipeline.masks.metric import Metric

    loss, metric = re.findall(r"```python\n(.*?)```", PAGES["change-the-code"], re.S)
    names: dict[str, Any] = {"torch": torch, "np": np}
    exec(loss, names)
    exec(metric, names)
    masks = torch.tensor([[[[1, 0], [0, 255]]]])
    assert names["area_loss"](torch.where(masks == 0, -100.0, 100.0), masks) == 0
    assert names["area_loss"](torch.full(masks.shape, -100.0), masks) == pytest.approx(1 / 3)
    counts = np.array([[5, 6, 6], [1, 6, 6], [0, 0, 0]]).T
    assert names["hit"](*counts).tolist() == [1, 0, 1]
    assert Metric("hit", names["hit"]).score_of(counts.T[:, :, None]) == pytest.approx(2 / 3)
    assert Metric("pooled_hit", names["hit"], unit="data_set").score_of(counts.T[:, :, None]) == 0


def tree() -> list[str]:
    """The paths that README's tree names, relative to the repository."""
    (block,) = re.findall(r"## Where things are\n.*?```\n(.*?)```", README, re.S)
    paths, folder = [], ""
    for line in block.splitlines():
        inside = folder if line.startswith(" ") else ""
        # one entry per line; of small files, two: name, two spaces or more, description
        parts = re.split(r"\s{2,}", line.strip())
        names = parts[::2] if inside and len(parts) == 4 else parts[:1]
        paths += [inside + name for name in names]
        folder = inside or (parts[0] if parts[0].endswith("/") else "")
    return paths


def test_the_tree_of_the_readme_is_complete() -> None:
    """Every folder and file of the first level, every room of the package and every module directly in it."""
    listed = subprocess.check_output(["git", "ls-files"], cwd=REPOSITORY, text=True).splitlines()
    tracked = [Path(name) for name in listed if not name.startswith(".") and (REPOSITORY / name).exists()]
    expected = {path.parts[0] + ("/" if len(path.parts) > 1 else "") for path in tracked} | {"work/"}
    expected -= {"README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff"}
    package = [path for path in tracked if path.parts[0] == "pipeline" and path != Path("pipeline/__init__.py")]
    expected |= {str(path) if path.parent.name == "pipeline" else f"{path.parent}/" for path in package}
    assert len(tree()) == len(set(tree()))
    assert set(tree()) == expected


def test_the_network_of_ones_own_works_as_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.core.config.training import ModelSettings
    from pipeline.networks.models import build

    (code,) = re.findall(r"```python\n(.*?)```", TRAIN, re.S)
    (tmp_path / "my_models.py").write_text(code)
    monkeypatch.setenv("PIPELINE_ROOT", str(tmp_path))
    build(ModelSettings(architecture="my_models:Net", options={"width": 32}), 3, 2, None)


def test_every_named_setting_of_training_exists() -> None:
    from pipeline.core.config.losses import LossSettings
    from pipeline.core.config.training import ModelSettings, TrainSettings

    known = {*LossSettings.model_fields, *ModelSettings.model_fields, *TrainSettings.model_fields}
    for line in TRAIN.splitlines():
        for name in re.findall(r"^\| `(\w+)(?::[^`]*)?`", line):
            if name not in ("architecture", "model") and not name.startswith(("oxford", "ultrasound", "unet", "mars")):
                assert name in known, line
