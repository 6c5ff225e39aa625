"""Every file of benchmarks/experiments says experiments that can be run, and their tables say what was measured."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REPOSITORY, Tiny
from trainings import prepare, train

from benchmarks import variant_tables, variants
from benchmarks.variant_tables import Counts, Difference, Line
from pipeline.core.config.competition import Competition
from pipeline.core.config.raw_layouts import load_competition
from pipeline.core.config.recipe import load_recipe
from pipeline.core.errors import PipelineError
from pipeline.core.run import check_name
from pipeline.masks.bootstrap import mean_counts, mean_score

FILES = sorted((REPOSITORY / "benchmarks" / "experiments").glob("*.yaml"))


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_variant_is_a_recipe(path: Path, full: bool) -> None:
    experiment = variants.load(path, full)
    names = []
    for name in experiment.variants:
        trial = experiment.trial(name, experiment.seeds[0])
        recipe = load_recipe(trial.recipe, assignments=trial.assignments)
        competition: Competition = load_competition(recipe.competition)
        recipe.loss.terms(competition.kind, recipe.model.presence, recipe.model.separates)
        assert recipe.folds is None or recipe.folds in competition.splits
        assert recipe.train.folds == list(experiment.folds)
        names.append(check_name(trial.name))
    assert len(set(names)) == len(names)
    if path.stem.startswith(("report", "sample")):
        assert len(experiment.seeds) >= 3 and experiment.name == path.stem and experiment.title
        assert f"benchmarks.variants benchmarks/experiments/{path.name}" in path.read_text(encoding="utf-8")
