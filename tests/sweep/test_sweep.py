"""A sweep of tiny runs: the grid, killed and resumed, pruned, joined, the winner's recipe, and bad input."""

import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
import yaml
from conftest import MANIFEST, TRAIN_IDS, Tiny

from pipeline.core import driver, freshness
from pipeline.core.engine import OneByOne
from pipeline.core.errors import PipelineError
from pipeline.core.files import shown, write_json
from pipeline.core.results import read_scored
from pipeline.core.run import Run, open_run
from pipeline.masks.metrics import METRICS
from pipeline.report.compare import Scored
from pipeline.sweep import command, plots, results, study, trial
from pipeline.sweep.command import Request, Result
from pipeline.sweep.pruner import MedianOfSameFolds
from pipeline.sweep.space import Choices, Range, parse

RECIPE: dict[str, Any] = {
    "image": {"size": [32, 32]},
    "model": {"architecture": "ConfigurableUnet", "encoder": "plain", "options": {"channels": [8, 16, 16]}},
    "train": {"folds": [0], "epochs": 1, "batch_size": 4, "precision": "32"},
    "predict": {"batch_size": 4},
    "tune": {"method": "fixed"},
}
Sweeper = Callable[..., Result]


class Killed(BaseException):
    """Stands for a signal."""


@pytest.fixture
def sweeper(tiny: Tiny) -> Sweeper:
    tiny.recipe |= RECIPE
    tiny.save()

    def sweep(*over: str, check: Callable[[Run], None] = lambda run: None, **options: Any) -> Result:
        return command.sweep(Request(str(tiny.recipe_path), over, **options), OneByOne(), check)

    return sweep


class Stages:
    """Stands in for train, validate and tune: a score by the learning rate, 0.9 at 1e-3, with noise on every image."""

    def __init__(self) -> None:
        self.trained: list[tuple[str, int]] = []
        """Run and number of folds of every call of train."""
        self.kill_at = 0
        self.refuse: str = ""
        """A run whose training fails."""

    def run_stage(self, run: Run, stage: str, mention: bool = True) -> None:
        folds = run.trained_folds()
        if stage == "train":
            if run.name == self.refuse:
                raise PipelineError("the loss is not a number [at step 3].")
            self.trained.append((run.name, len(folds)))
            if len(self.trained) == self.kill_at:
                raise Killed
        if stage == "tune":
            self._tune(run, folds)

    def _tune(self, run: Run, folds: list[int]) -> None:
        rate = run.recipe.train.learning_rate
        rng = np.random.default_rng(int(rate * 1e6))
        scores = 0.9 - 0.1 * abs(np.log10(rate) + 3) + rng.normal(0, 0.02, len(TRAIN_IDS))
        images = pd.DataFrame({"image_id": TRAIN_IDS, "fold": np.arange(12) % 3, "group": TRAIN_IDS, "use": "train"})
        images = images.assign(true_area=1, score=scores, untuned=scores)
        images = images[images["fold"].isin(folds)]
        run.folder.mkdir(exist_ok=True)
        images.to_csv(run.folder / "oof_scores.csv", index=False)
        mean = float(images["score"].mean())
        honest = {"fold_model": {"score": mean, "interval_95": [mean - 0.1, mean + 0.1]}}
        kept = {"metric": "dice", "score": mean, "nested": mean, "images": len(images), "scores": honest}
        by_fold = {str(fold): float(part["score"].mean()) for fold, part in images.groupby("fold")}
        write_json(run.postprocess, kept | {"score_by_fold": by_fold})
        entry = {"size": 1, "modified": 1, "hash": freshness.hash_file(run.folds_file)}
        for fold in folds:
            manifest = MANIFEST | {"inputs": {shown(run.folds_file): entry}}
            write_json(run.fold_folder(fold) / "manifest.json", manifest)
            write_json(run.fold_folder(fold) / "fold.json", {"seconds": 60.0, "images_per_second": 9.0})


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> Stages:
    found = Stages()
    monkeypatch.setattr(trial, "run_stage", found.run_stage)
    return found


@pytest.fixture(autouse=True)
def without_plots(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """They take a second each."""
    if "winner" not in request.node.name or "trains" in request.node.name:
        monkeypatch.setattr(plots, "drawn", lambda *_: [])


def table(result: Result) -> pd.DataFrame:
    return pd.read_csv(result.folder / "sweep.csv", dtype={"error": str}).drop(columns="run")


def refused(sweeper: Sweeper, *over: str, **options: Any) -> str:
    with pytest.raises(PipelineError) as caught:
        sweeper(*over, **options)
    return str(caught.value)


def test_a_grid_trains_and_its_winner_runs_to_the_same_score(
    sweeper: Sweeper, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.train import fit

    calls, real = [], fit._train

    def killed(trainer: Any, *arguments: Any) -> None:
        calls.append(trainer)
        if len(calls) == 2:
            raise Killed
        real(trainer, *arguments)

    monkeypatch.setattr(fit, "_train", killed)
    grid = ("train.learning_rate=1e-4,1e-2", "model.options={channels: [8, 16]},{channels: [8, 8]}")
    with pytest.raises(Killed):
        sweeper(*grid)
    result = sweeper(*grid)
    assert len(calls) == 5  # each of the four trainings, and the killed one again
    assert [row.state for row in result.found.rows] == ["complete"] * 4
    winner, folder = result.found.winner, tiny.root / "work" / "tiny"
    assert winner and all(row.interval_95 and row.minutes is not None for row in result.found.rows)
    assert sum(row.standard_error is not None for row in result.found.rows) == 3
    assert {path.name for path in folder.glob("small-sweep-*")} == {f"small-sweep-{number}" for number in range(4)}

    path = folder / "small-sweep" / "small-sweep-winner.yaml"
    assert set(yaml.safe_load(path.read_text())) == {"base", "train", "model"}
    own = open_run(str(path), name=winner.run)
    assert not driver.unfinished(own, "train") and not driver.unfinished(own, "validate")
    fresh = open_run(str(path))
    for stage in trial.STAGES:
        driver.run_stage(fresh, stage)
    assert trial.honest_score(read_scored(fresh.folder)) == winner.score


def test_killed_and_resumed_is_the_same_sweep(sweeper: Sweeper, stages: Stages) -> None:
    over, folds = ("train.learning_rate=1e-4..1e-1:log", "train.batch_size=4,8"), ("train.folds=[0, 1]",)
    sweeper(*over, trials=5, assignments=folds, name="whole")
    whole = sweeper(*over, trials=6, assignments=folds, name="whole")  # one more
    runs = len(stages.trained)
    stages.kill_at = runs + 4
    with pytest.raises(Killed):
        sweeper(*over, trials=6, assignments=folds)
    stages.kill_at = 0
    resumed = sweeper(*over, trials=6, assignments=folds)
    assert len(stages.trained) == 2 * runs + 1
    pd.testing.assert_frame_equal(table(whole), table(resumed))
    assert sorted(table(whole)["trial"]) == [0, 1, 2, 3, 4, 5]
    assert not table(whole).duplicated(["train.learning_rate", "train.batch_size"]).any()


def test_what_is_said_of_the_winner(sweeper: Sweeper, stages: Stages, tiny: Tiny) -> None:
    assignments = ("train.epochs=3", "train.folds=[0, 2]")
    result = sweeper("train.learning_rate=1e-4,9e-4,1e-3,1.1e-3", assignments=assignments)
    found = result.found
    assert found.winner and found.optimism and found.optimism.how == "folds" and found.worth is not None
    text = " ".join(result.lines())
    assert f"winner {found.winner.score:.4f}, trial {found.winner.trial} (train.learning_rate=" in text
    assert f"on other folds, it scores {found.worth:.4f}: the choice among 4 trials is too optimistic by" in text
    assert found.rows[-1].settings == {"train.learning_rate": "1e-4"}
    assert found.rows[-1].difference and found.rows[-1].difference < -0.05
    page = (result.folder / "sweep.html").read_text()
    assert page.count("data:image/png;base64,") >= 3 and "://" not in re.sub(r"base64,[^\"]*", "", page)
    recipe = (result.folder / "small-sweep-winner.yaml").read_text()
    rate = float(found.winner.settings["train.learning_rate"])
    assert yaml.safe_load(recipe) == {
        "base": "../../../small.yaml", "train": {"epochs": 3, "learning_rate": pytest.approx(rate)},
    }  # fmt: skip
    assert "measured on folds 0 and 2" in recipe
    path = result.folder / "miniature.yaml"
    tiny.recipe["quick"] = {"train": {"epochs": 1}}
    tiny.save()
    origin = results.Origin(str(tiny.recipe_path), True, ("train.epochs=3",))
    results.write_recipe(path, ["In miniature."], origin, {"image.size": "[16, 16]", "train.batch_size": "2"})
    text = path.read_text()
    assert text.startswith("# In miniature.\nbase: ../../../small.yaml\n") and "&" not in text
    whole, small = (open_run(str(path), quick=quick).recipe for quick in (False, True))
    assert [(one.image.size, one.train.batch_size) for one in (whole, small)] == [((16, 16), 2)] * 2
    before = open_run(str(tiny.recipe_path)).recipe
    assert (whole.train.epochs, small.train.epochs) == (before.train.epochs, 3)  # which `quick` sets otherwise


def test_the_pruner_stops_a_bad_trial(sweeper: Sweeper, stages: Stages) -> None:
    over, folds = "train.learning_rate=1e-3,1.1e-3,9e-4,8e-4,1e-6", ("train.folds=[0, 1, 2]",)
    rows = {row.trial: row for row in sweeper(over, assignments=folds).found.rows}
    assert (rows[4].state, rows[4].folds) == ("pruned", 1)
    assert [rows[number].state for number in range(4)] == ["complete"] * 4


def test_a_failed_trial_lets_the_others_go_on_and_is_tried_again(sweeper: Sweeper, stages: Stages) -> None:
    over = "train.learning_rate=8e-4,9e-4,1e-3"
    stages.refuse = "small-sweep-1"
    result = sweeper(over)
    assert "1 of 3 trials failed, for the reasons in the table" in result.failed()
    assert [row.state for row in result.found.rows] == ["complete", "complete", "failed"]
    stages.refuse, before = "", len(stages.trained)
    again = sweeper(over)
    assert not again.failed() and {name for name, _ in stages.trained[before:]} == {"small-sweep-1"}
    assert again.found.optimism and again.found.optimism.how == "groups"  # of one fold
    assert "on other images of the same fold" in " ".join(results.sentences(again.found))


def test_several_machines_share_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database, space = tmp_path / "sweep.db", {"train.epochs": Choices(("1", "2", "3"))}

    def joined(host: str) -> study.Trials:
        monkeypatch.setattr("platform.node", lambda: host)
        begun = study.begin(database, "s", {"a": 1}, study.StudyDirection.MAXIMIZE)
        return study.Trials(begun, database, space, None)

    first, second = joined("one"), joined("one")
    assert [trials.take().params["train.epochs"] for trials in (first, second)] == ["1", "2"]  # type: ignore[union-attr]
    first.end(0, trial.Ended("complete", 0.5))
    second._release(1)  # its process is dead
    taken = first.take()
    assert taken and taken.number == 1
    first._release(1)
    third = joined("two")  # it cannot see processes of "one", but that a heartbeat came a moment ago
    taken = third.take()
    assert taken and taken.number == 2
    assert third.take() is None
    monkeypatch.setattr(third.storage, "grace_period", -1)
    taken = third.take()
    assert taken and taken.number == 1
    with third.working():
        third.end(1, None, "no memory")
    assert [one.user_attrs.get("error") for one in third.all()] == ["", "no memory", ""]


def test_bad_input_is_said_before_anything_is_trained(sweeper: Sweeper, stages: Stages, tiny: Tiny) -> None:
    rate = "train.learning_rate"
    for over, said in {
        (): "sweep needs --over",
        (rate,): "expected key=values",
        (f"{rate}=1e-3",): f"set it with --set {rate}=1e-3",
        (f"{rate}=1e-3,",): "a value is missing",
        (f"{rate}=1,1",): "1 is listed twice",
        (f"{rate}=1,2", f"{rate}=3,4"): "is given twice",
        (f"{rate}=1e-2..1e-4",): "first number must be below",
        (f"{rate}=0..1:log",): "must begin above 0",
        (f"{rate}=a..b",): "expected a range",
        (f"{rate}=1e-4..1e-2",): "number of combinations: add --trials N",
        ("train.folds=[0],[1]",): "cannot be swept: a sweep trains the folds",
        ("tune.rows=raw,cleaned",): "cannot be swept",
        ("tune={rows: raw},{rows: cleaned}",): "cannot be swept as a whole",
        ("loss.dice=0,1", "loss={bce: 1},{dice: 1}"): "vary the same setting",
        (f"{rate}=1e-3,0.001",): "0.001 is listed twice",
        ("image.size=[64,64],[96,96",): "a bracket or a quote is opened and not closed",
        (f"{rate}=1e300..1e400",): "expected two finite numbers",
        ("train.epoch=1,2",): "unknown key `train.epoch`; did you mean `epochs`?",
        (f"{rate}=1,inf",): f"`{rate}` is inf: input should be a finite number",
        (f"{rate}=1,-1,-2",): f"`{rate}` is -1: input should be greater than 0. recipe small.yaml: `{rate}` is -2",
    }.items():
        assert said in refused(sweeper, *over).replace("\n", " ").replace("'", ""), over
    assert "valid integer" in refused(sweeper, "train.epochs=1.0..4.0", trials=3)

    def weights(run: Run) -> None:
        if run.recipe.model.encoder == "resnet99":
            raise PipelineError("there is no encoder resnet99.")

    assert refused(sweeper, "model.encoder=plain,resnet99", check=weights) == "there is no encoder resnet99."
    assert not (tiny.root / "work" / "tiny").exists() and not stages.trained


def test_a_sweep_whose_recipe_changed_is_refused(sweeper: Sweeper, stages: Stages, tiny: Tiny) -> None:
    over, damage = "train.learning_rate=1e-3,1e-2", tiny.input / "sample.csv"
    text = damage.read_text()
    damage.unlink()
    assert "sample.csv" in refused(sweeper, over, assignments=("train.epochs=7",))  # and nothing has begun
    damage.write_text(text)
    result = sweeper(over)
    changed = refused(sweeper, over, assignments=("train.epochs=7",))
    assert "the sweep small-sweep was started with other settings (train.epochs was 1 and is 7)" in changed
    assert "--name NAME" in changed
    assert "--over train.learning_rate was 1e-3,1e-2 and is 1e-3,1" in refused(sweeper, "train.learning_rate=1e-3,1")
    folds = pd.read_csv(tiny.root / "folds" / "tiny.csv")
    folds.assign(fold=folds["fold"].to_numpy()[::-1]).to_csv(tiny.root / "folds" / "tiny.csv", index=False)
    assert "folds/tiny.csv was" in refused(sweeper, over)
    (result.folder / "sweep.db").write_text("no database")
    assert "sweep.db is not a database" in refused(sweeper, over)


def test_a_damaged_database_is_named(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    database = tiny.root / "work" / "tiny" / "sweep" / "sweep.db"

    def begin() -> None:
        with study.explained(database):
            begun = study.begin(database, "sweep", {"train.epochs": 7}, study.StudyDirection.MAXIMIZE)
            begun.enqueue_trial({"train.epochs": len(begun.get_trials())})

    begin()
    sound = database.read_bytes()
    for damaged in (sound[: len(sound) // 2], sound[:4096] + bytes(len(sound) - 4096), sound[:8192] + b"x" * 40_000):
        database.write_bytes(damaged)
        with pytest.raises(PipelineError, match=r"sweep\.db is not a database that this version of Optuna reads \("):
            begin()
    database.write_bytes(sound)
    monkeypatch.setattr(study, "PATIENCE", 0.1)
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        with pytest.raises(PipelineError, match=r"cannot be written \(database is locked\): close the program"):
            begin()
    begin()


def test_lower_is_better_and_scores_of_all_pixels() -> None:
    asked = optuna.create_study(direction="minimize", pruner=MedianOfSameFolds())
    for score in (0.5, 0.6, 0.7, 0.8):
        asked.ask().report(score, 1)
    good, bad = asked.ask(), asked.ask()
    good.report(0.6, 1)
    bad.report(0.9, 1)
    assert bad.should_prune() and not good.should_prune()
    assert study.propose(asked.trials, {"a": Range(0, 1, False, False)}, 6, asked.direction) is None

    metric, images = METRICS["mean_iou"], pd.DataFrame({"fold": [0, 0, 0, 1]})
    by_fold = ({"0": 0.5, "1": 0.9}, {"0": 0.7, "1": 0.2})
    scored = [Scored(Path(), {"score_by_fold": one}, images, (), frozenset(), {}) for one in by_fold]
    found = results._optimism(scored, metric)
    assert metric.unit == "data_set" and found
    assert (found.winner, found.elsewhere) == (pytest.approx(0.6), pytest.approx((3 * 0.5 + 0.2) / 4))


def test_ranges_and_lists() -> None:
    known = {"a": 0.5, "b": 3}
    space = parse(["a=0..1", "b=2..9:log", "c=[1, 2],{x: 1, y: 2},'p,q'"], known)
    assert space["a"] == Range(0, 1, whole=False, log=False)
    assert space["b"] == Range(2, 9, whole=True, log=True)
    assert parse(["loss.dice=0..1"], {})["loss.dice"] == Range(0, 1, whole=False, log=False)  # a number or a mapping
    assert parse(["train.steps=100..600"], {"train.steps": None})["train.steps"] == Range(100, 600, True, False)
    assert space["c"] == Choices(("[1, 2]", "{x: 1, y: 2}", "'p,q'"))
    assert Range(1e-4, 1e-2, False, True).written(0.00123456) == "0.001235"


def test_without_optuna(sweeper: Sweeper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install optuna" in refused(sweeper, "train.epochs=1,2")
