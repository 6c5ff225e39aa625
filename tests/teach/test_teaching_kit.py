"""The pages of the teaching kit, its template and its solution."""

import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from conftest import REPOSITORY
from typer.testing import CliRunner

from pipeline.__main__ import app
from pipeline.core.config.recipe import load_recipe
from pipeline.core.config.training import ModelSettings
from pipeline.core.errors import PipelineError
from pipeline.networks.models import construct
from pipeline.teach import model_training
from pipeline.teach.check_model import Request, check_model

FOLDER = REPOSITORY / "docs" / "teach"
PAGES = [FOLDER / "README.md", FOLDER / "my-unet.md"]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that networks are imported from; it forgets them."""
    monkeypatch.setenv("PIPELINE_ROOT", str(tmp_path))
    sys.modules.pop("my_unet", None)
    yield tmp_path
    sys.modules.pop("my_unet", None)


def test_the_template_is_refused_with_its_first_hole(root: Path) -> None:
    shutil.copy(FOLDER / "my_unet.py", root)
    done = CliRunner().invoke(app, ["check-model", "my_unet:UNet"])
    assert isinstance(done.exception, PipelineError)
    assert "NotImplementedError: TODO 1: self.layers = nn.Sequential(" in str(done.exception)
    assert "\n" not in str(done.exception)


def test_template_and_solution_have_the_same_parts() -> None:
    template, solution = ((FOLDER / name).read_text() for name in ("my_unet.py", "solutions/my_unet.py"))
    holes = re.findall(r"raise NotImplementedError\(\s*\"(TODO \d)", template)
    assert holes == [f"TODO {number}" for number in range(1, 7)]
    signatures = re.findall(r"class \w+|def \w+\(.*", template)
    assert signatures == re.findall(r"class \w+|def \w+\(.*", solution)
    assert "raise" not in solution


def test_the_solution_passes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_training, "GOAL", model_training.ENOUGH)  # sooner
    shutil.copy(FOLDER / "solutions" / "my_unet.py", root)
    model = ModelSettings(architecture="my_unet:UNet", options={"width": 8, "dropout": 0.1})
    report = check_model(Request(model, (32, 32), minutes=2))
    assert {result.check: result.status for result in report.results if result.status != "pass"} == {}


def test_the_recipe_takes_the_network(root: Path) -> None:
    shutil.copy(FOLDER / "solutions" / "my_unet.py", root)
    recipe = load_recipe(str(FOLDER / "my-unet.yaml"))
    network = construct(recipe.model, recipe.image.channels, 1)
    assert network.head.out_channels == 1  # type: ignore[union-attr]
    assert recipe.competition == "sample" and load_recipe(str(FOLDER / "my-unet.yaml"), True).train.epochs == 4


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_and_commands_of_the_pages(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\((?!http)([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        if not path.startswith("labs/") or (FOLDER / "labs").is_dir():
            assert file.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", file.read_text(), re.M)
            assert anchor in [re.sub(r"[^a-z0-9 -]", "", one.lower()).replace(" ", "-") for one in titles], target
    blocks = re.findall(r"```bash\n(.*?)```", text, re.S)
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    calls = [line[3:] for line in lines if line[:3] == ["python", "-m", "pipeline"]]
    calls += [shlex.split(one)[3:] for one in re.findall(r"`(python -m pipeline [^`]*)`", text) if " N" not in one]
    group = typer.main.get_command(app)
    assert calls
    for words in (one for one in calls if len(one) > 1):
        group.commands[words[0]].make_context(words[0], words[1:])  # type: ignore[attr-defined]
