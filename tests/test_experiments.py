"""Every file of benchmarks/experiments says experiments that can be run, and their tables say what was measured."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, Tiny
from trainings import prepare, train

from benchmarks import variant_tables, variants
from benchmarks.variant_tables import Counts, Difference, Line
from pipeline.core.config.competition import Competition
from pipeline.core.config.raw_layouts import load_competition
from pipeline.core.config.recipe import load_recipe
from pipeline.core.errors import PipelineError
from pipeline.core.run_checks import check_name
from pipeline.masks.bootstrap import mean_counts, mean_score
from pipeline.networks import models

FILES = sorted((REPOSITORY / "benchmarks" / "experiments").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_variant_is_a_recipe(path: Path) -> None:
    experiment, whole = variants.load(path), variants.load(path, full=True)
    reduced = [name for name, settings in whole.variants.items() if "reduced" in settings]
    unreduced = [next(iter(whole.variants)), *reduced] if whole.reduced else []
    trials = [(experiment, name) for name in experiment.variants] + [(whole, name) for name in unreduced]
    names = []
    for one, name in trials:
        trial = one.trial(name, experiment.seeds[0])
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


def test_the_networks_of_the_reports_experiments_can_be_built() -> None:
    built = set()
    for path in FILES:
        experiment = variants.load(path)
        for name in experiment.variants if path.stem.startswith(("report", "sample")) else ():
            trial = experiment.trial(name, experiment.seeds[0])
            recipe = load_recipe(trial.recipe, assignments=trial.assignments)
            classes = len(load_competition(recipe.competition).classes)
            key = recipe.model.model_dump_json(), recipe.image.channels, classes
            if key not in built:
                with torch.device("meta"):  # shapes, and nothing computed
                    models.build(recipe.model, recipe.image.channels, classes, None)
            built.add(key)
    assert len(built) > 10


def test_a_key_that_an_experiment_does_not_have(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("recipe: sample\nseeds: [0]\nset: {}\nvariant: {}\n")
    with pytest.raises(PipelineError, match="x.yaml: `variant` is unknown or missing; an experiment has recipe, "):
        variants.load(path)


# --- tables ----------------------------------------------------------------------------------------------------------


def counts(scores: list[float], images: str = "abcdef") -> Counts:
    ids = np.array(list(images))
    return Counts(mean_counts(np.array(scores)), ids, mean_score, ids)


def test_a_difference_that_is_the_same_everywhere_has_no_error() -> None:
    first = [counts([0.1, 0.5, 0.3, 0.9, 0.2, 0.4]), counts([0.2, 0.4, 0.3, 0.8, 0.3, 0.4])]
    other = [Counts(one.values + [0.1, 0], one.groups, one.score, one.images) for one in first]
    found = variant_tables.over_seeds(first, other)
    assert (found.value, found.standard_error, found.paired) == (pytest.approx(0.1), pytest.approx(0, abs=1e-12), True)
    assert variant_tables.difference(first[0], other[0]).startswith("+0.1000 ± 0.0000 [+0.1000, ")


def test_the_error_of_a_difference_holds_that_of_the_seeds_and_that_of_the_images() -> None:
    same = [counts([0.5] * 6)] * 3
    shifted = [counts([0.5 + step] * 6) for step in (0.1, 0.2, 0.3)]
    assert variant_tables.over_seeds(same, shifted).standard_error == pytest.approx(0.1 / np.sqrt(3))
    changed = [counts([0.5, 0.5, 0.5, 0.6, 0.6, 0.6])] * 3
    assert variant_tables.over_seeds(same, changed).standard_error == pytest.approx(0.05 / np.sqrt(6), rel=0.1)


def test_other_images_are_not_paired() -> None:
    first, other = counts([0.1, 0.9] * 3), counts([0.1, 0.9] * 3, "ghijkl")
    found = variant_tables.over_seeds([first], [other])
    assert not found.paired and found.value == 0
    assert found.standard_error == pytest.approx(np.sqrt(2) * 0.4 / np.sqrt(6), rel=0.1)
    assert variant_tables.difference(first, other) == "+0.0000 (other images)"


LINES = [
    Line("base", 3, {"tuned": (0.8, 0.01)}, {}, {"train/loss": 0.5}, 1.25),
    Line(
        "10×10_px & more", 3, {"tuned": (0.7, 0.02)}, {"tuned": Difference(-0.1, 0.03, True)}, {"train/loss": 0.6}, 1.0
    ),
]


def test_a_table_as_markdown() -> None:
    assert variant_tables.markdown(variant_tables.frame(LINES)).splitlines() == [
        "| variant | seeds | tuned | tuned: difference | training loss | minutes |",
        "| --- | --- | --- | --- | --- | --- |",
        "| base | 3 | 0.8000 ± 0.0100 | first | 0.5000 | 1.2 |",
        "| 10×10_px & more | 3 | 0.7000 ± 0.0200 | -0.1000 ± 0.0300 | 0.6000 | 1.0 |",
    ]


def test_a_table_says_nothing_twice() -> None:
    lines = [Line(name, 1, dict.fromkeys(("untuned", "tuned"), (0.5, 0.1))) for name in "ab"]
    assert list(variant_tables.frame(lines)) == ["variant", "seeds", "untuned", "untuned: difference"]


def test_a_table_as_latex() -> None:
    text = variant_tables.latex(variant_tables.frame(LINES), "50 % of it", "tab:x")
    rules = [line for line in text.splitlines() if line.startswith((r"\toprule", r"\midrule", r"\bottomrule"))]
    assert rules == [r"\toprule", r"\midrule", r"\bottomrule"]
    assert r"10$\times$10\_px \& more & 3 & 0.7000 $\pm$ 0.0200 & $-$0.1000 $\pm$ 0.0300 & 0.6000 & 1.0 \\" in text
    assert r"\caption{50 \% of it}" in text and r"\label{tab:x}" in text


def test_a_table_of_finished_runs(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    change = {"train": {"folds": [0], "epochs": 1}, "tune": {"method": "fixed"}}
    run = train(prepare(tiny, change), "validate", "tune")
    line = variant_tables.line_of("base", {0: run}, {0: run}, [0], False)
    assert line.seeds == 1 and set(line.scores) == {"untuned", "tuned"} and not line.differences
    assert set(line.figures) == set(variant_tables.FIGURES)
    experiment: Any = variants.Experiment(str(tiny.recipe_path), [0], {}, {"base": {}}, title="Tiny")
    monkeypatch.setattr(variants.Trial, "open", lambda self: run)
    texts = variants.tables(experiment, ["base"])
    assert texts[0].startswith("Tiny: dice, mean ± standard deviation over seeds; ")
    assert "| base | 1 | " in texts[0] and "base & 1 & " in texts[1]
    fewer = replace(experiment, images=3)
    assert len((tiny.root / variants.exclude(fewer)).read_text().split()) == 1 + 8 - 3
    run.folds_file.unlink()
    launched: list[str] = []
    monkeypatch.setattr(variants, "launch", lambda trial, last: launched.append(last) or 2)
    with pytest.raises(PipelineError, match=f"{run.folds_file.name} could not be made: see .*base--3-0.log"):
        variants.exclude(fewer)
    assert launched == ["split"]
