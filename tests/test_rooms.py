"""The rooms of the package: what the import contracts of pyproject.toml (run_tests.sh checks them) cannot see."""

import ast
from itertools import chain
from pathlib import Path
from typing import get_args

import pytest
from conftest import REPOSITORY

from pipeline.stages import STAGES

PACKAGE = REPOSITORY / "pipeline"
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
LOADS_BY_NAME = {
    "__init__.py": "hands on its public names when they are asked for",
    "core/driver.py": "loads the stage.py of a stage's room",
    "networks/user_class.py": "loads a network of the user's own, module:Class",
    "requirements_check.py": "looks for the parser of requirements, which pip brings along",
}


def test_every_stage_is_a_room_and_every_room_with_a_stage_is_in_the_table() -> None:
    assert {path.parent.name for path in PACKAGE.glob("*/stage.py")} == set(STAGES)


def test_tests_lie_in_the_same_rooms() -> None:
    rooms = {path.parts[0] for path in MODULES if len(path.parts) > 1}
    folders = {path.parent.name for path in (REPOSITORY / "tests").glob("*/test_*.py")}
    assert folders <= rooms
    assert rooms - folders <= {"evaluate"}  # tested with whole competitions


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_are_absolute_and_by_name(path: Path) -> None:
    """So that no import escapes the contracts, or the code that a stage is up to date with."""
    text = (PACKAGE / path).read_text(encoding="utf-8")
    if path.name == "__init__.py" and path.parent != Path():
        assert text == ""
    nodes = list(ast.walk(ast.parse(text)))
    assert not [node.lineno for node in nodes if isinstance(node, ast.ImportFrom) and node.level]
    names = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    names |= {node.id for node in nodes if isinstance(node, ast.Name)}
    assert bool(names & {"import_module", "__import__"}) == (str(path) in LOADS_BY_NAME)


def test_every_name_that_a_yaml_may_say_is_known_where_it_is_used() -> None:
    from pipeline.core.config import metric_text
    from pipeline.core.config.recipe import TuneStep
    from pipeline.masks.metrics import METRICS
    from pipeline.tune import class_biases, mask_rules

    kinds = {name: "class maps" if metric.counted == "confusion" else "masks" for name, metric in METRICS.items()}
    assert kinds == metric_text.METRICS
    assert all(metric.name == name for name, metric in METRICS.items())
    assert set(get_args(TuneStep)) == {*chain(*mask_rules.STEPS), *class_biases.STEPS}
