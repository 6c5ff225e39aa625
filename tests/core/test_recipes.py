"""Every shipped recipe: its network builds, and what its head comment says to set can be set."""

import re
import shlex
from pathlib import Path

import pytest

from pipeline.core.config.raw_layouts import FOLDER as COMPETITIONS
from pipeline.core.config.recipe import load_recipe
from pipeline.core.config.recipe_files import FOLDER
from pipeline.core.errors import PipelineError
from pipeline.core.run import open_run
from pipeline.train.stage import preflight

NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
REPORTS = {
    "ultrasound-nerve-2025", "unet-256", "oxford-pet-unet", "oxford-pet-resnet34-unet", "oxford-pet-unet-ce",
    "oxford-pet-cbam", "mars-unet",
}  # fmt: skip
# counted by hand: convolutions without bias with BatchNorm (-ce: with bias, without it), 2×2 transposed convolutions;
# ResNet34 without its classifier has 21,284,672
PARAMETERS = {
    "oxford-pet-unet": 31_037_633, "oxford-pet-unet-ce": 31_031_810, "oxford-pet-resnet34-unet": 24_515_265,
    "mars-unet": 7_762_597, "ultrasound-nerve-2025": 24_430_097,
}  # fmt: skip


def head(name: str) -> str:
    lines = (FOLDER / f"{name}.yaml").read_text().splitlines()
    return "\n".join(line.removeprefix("#") for line in lines if line.startswith("#"))


def test_the_reports_and_our_own_are_there() -> None:
    assert {*NAMES} == REPORTS | {
        "sample",
        "baseline",
        "ultrasound-nerve",
        "tgs-salt",
        "tgs-salt-lite0",
        "mars-terrain",
        "mars-terrain-rare",
        "oxford-pet",
    }


@pytest.mark.parametrize("name", NAMES)
def test_what_training_needs_can_be_built(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_ROOT", str(tmp_path))
    preflight(open_run(name, assignments=["model.weights=none", "model.freeze=none"]))


@pytest.mark.parametrize("name", NAMES)
def test_what_the_head_comment_sets_can_be_set(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_ROOT", str(tmp_path))
    text = head(name)
    assert f"./run_all.sh {name}" in text or name == "sample"
    found = re.findall(r"--set (\S+='[^']*'|'[^']*'|\S+)", text)
    for (assignment,) in map(shlex.split, found):
        load_recipe(name, assignments=[assignment.rstrip(".;,)")])
    if name in ("unet-256", "oxford-pet-cbam", "ultrasound-nerve-2025"):
        assert len(found) >= 1
        for (assignment,) in map(shlex.split, found):
            preflight(open_run(name, assignments=["model.weights=none", assignment]))


@pytest.mark.parametrize("name", PARAMETERS)
def test_networks_have_the_size_that_the_reports_describe(name: str) -> None:
    from pipeline.networks import models

    recipe = load_recipe(name, assignments=["model.weights=none"])
    classes = 5 if name == "mars-unet" else 1
    network = models.build(recipe.model, recipe.image.channels, classes, None)
    assert models.parameter_count(network) == PARAMETERS[name]


def test_a_recipe_inherits_missing_settings_from_its_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_ROOT", str(tmp_path))
    for name, text in {
        "one/first": "competition: ../mine.yaml\ntakes: 5 min\ntrain: {epochs: 3, learning_rate: 0.5}\n"
        "quick: {train: {epochs: 1}}",
        "one/second": "base: first.yaml\nname: other",
        "two/third": "base: ../one/second.yaml\ntrain: {learning_rate: 0.1}",
        "loop": "base: loop.yaml",
        "list": "base: [sample]\ncompetition: sample",
        "missing": "base: sampl",
        "empty": "",
        "of_empty": "base: empty.yaml",
        "small": "base: sample\nquick: {base: first.yaml}",
        "shipped": "base: sample\ntrain: {epochs: 7}",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.yaml").write_text(text)
    recipe = load_recipe(str(tmp_path / "two/third.yaml"))
    assert (recipe.name, recipe.takes, recipe.train.epochs, recipe.train.learning_rate) == ("third", None, 3, 0.1)
    assert Path(recipe.competition).resolve() == tmp_path / "mine.yaml"
    assert load_recipe(str(tmp_path / "two/third.yaml"), quick=True).train.epochs == 1
    assert load_recipe(str(tmp_path / "shipped.yaml")).image.size == (96, 128)
    for name, said in {
        "loop": r"recipe loop.yaml, its `base`: loop.yaml is itself based on this recipe",
        "list": "`base` is",
        "missing": "recipe missing.yaml, its `base`: There is no recipe named `sampl`; did you mean `sample`",
        "of_empty": "recipe of_empty.yaml, its `base`: .*empty.yaml must hold `key: value` lines; it holds nothing",
        "small": "`base` belongs to the recipe as a whole: remove it from `quick`",
    }.items():
        with pytest.raises(PipelineError, match=said):
            load_recipe(str(tmp_path / f"{name}.yaml"))
    with pytest.raises(PipelineError, match="--set base: the base of a recipe can only be set in its YAML"):
        load_recipe("sample", assignments=["base=first.yaml"])


def test_a_fault_of_a_section_does_not_print_the_section() -> None:
    with pytest.raises(PipelineError, match=r"^recipe sample.yaml: train.snapshots is 2: it needs"):
        load_recipe("sample", assignments=["train.snapshots=2"])


def test_a_competition_without_a_recipe_runs_the_baseline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_ROOT", str(tmp_path))
    run = open_run("kelp-wanted", assignments=["train.epochs=2"])
    assert (run.name, run.recipe.competition, run.recipe.train.epochs) == ("kelp-wanted", "kelp-wanted", 2)
    assert (run.recipe.image.channels, run.recipe.image.size) == (7, (352, 352))
    own = tmp_path / "competitions" / "mine.yaml"
    own.parent.mkdir()
    own.write_text((COMPETITIONS / "kelp-wanted.yaml").read_text().replace("channels: 7, norm", "epochs: 7, norm"))
    with pytest.raises(PipelineError, match="unknown key `image.epochs`"):
        open_run("mine")
    with pytest.raises(PipelineError, match="There is no recipe named `kelp-wantd`. Known:"):
        open_run("kelp-wantd")
