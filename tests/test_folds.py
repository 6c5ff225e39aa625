"""The split: groups stay together, folds are alike, and the file says what training may use."""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import stages, table, workspace
from pipeline.competition import SplitSettings, load_competition
from pipeline.errors import PipelineError
from pipeline.recipe import Recipe
from pipeline.stages.clean import COLUMNS
from pipeline.stages.split import assign, read_folds, strata
from pipeline.workspace import Run, open_run


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """120 decoded images of twelve subjects (competition `sample`, four folds); two of them are dropped."""
    monkeypatch.setenv("PIPELINE_ROOT", str(tmp_path))
    monkeypatch.delenv("PIPELINE_INPUT", raising=False)
    opened = open_run("sample")
    rng = np.random.default_rng(0)
    area = np.where(rng.random(120) < 0.5, 0, rng.integers(1, 5000, 120))
    rows = [
        {"image_id": f"{index % 12}_{index}", "subset": "train", "group": str(index % 12), "height": 100, "width": 100,
         "area_nerve": int(area[index])}
        for index in range(120)
    ]  # fmt: skip
    table.write_table(opened.table, [*rows, {**rows[0], "image_id": "test", "subset": "test"}])
    dropped = pd.DataFrame([["1_1", "broken", 1, "", "drop", ""], ["2_2", "broken", 1, "", "drop", ""],
                            ["3_3", "looked at", 1, "", "keep", ""]], columns=COLUMNS)  # fmt: skip
    dropped.to_csv(opened.outliers, index=False)
    return opened


def test_strata_are_quantiles_of_the_area_and_0_is_empty() -> None:
    share = np.array([0.0, 0.9, 0.1, 0.0, 0.3, 0.2, 0.5, 0.7, 0.4, 0.6])
    assert strata(share[:, None], 4).tolist() == [0, 4, 1, 0, 2, 1, 3, 4, 2, 3]
    assert strata(share[:, None], 1).tolist() == [0, 1, 1, 0, 1, 1, 1, 1, 1, 1]
    assert strata(np.zeros((3, 1)), 4).tolist() == [0, 0, 0]
    assert sorted(strata(np.full((8, 1), 0.5), 4)) == [1, 1, 2, 2, 3, 3, 4, 4]  # equal areas are spread too
    assert strata(np.array([[0.5]]), 4).tolist() == [1]


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_every_image_has_one_fold_and_no_group_two(data: st.DataObject) -> None:
    folds = data.draw(st.integers(2, 6))
    count = data.draw(st.integers(folds, 12))
    extra = data.draw(st.lists(st.integers(0, count - 1), max_size=40))
    groups = np.array([*range(count), *extra]).astype(str)
    stratum = np.array(data.draw(st.lists(st.integers(0, 4), min_size=len(groups), max_size=len(groups))))
    for grouping in (groups, None):
        fold = assign(stratum, grouping, SplitSettings(folds=folds))
        assert sorted(set(fold)) == list(range(folds))
        assert len(fold) == len(groups)
    owners = pd.DataFrame({"group": groups, "fold": assign(stratum, groups, SplitSettings(folds=folds))})
    assert owners.groupby("group")["fold"].nunique().max() == 1


def test_presence_and_strata_are_balanced_without_groups() -> None:
    rng = np.random.default_rng(1)
    stratum = strata(np.where(rng.random(1000) < 0.4, 0, rng.random(1000))[:, None], 4)
    fold = assign(stratum, None, SplitSettings(folds=5))
    counts = pd.crosstab(fold, stratum).to_numpy()
    assert np.ptp(counts, axis=0).max() <= 1


def test_presence_is_balanced_with_groups() -> None:
    rng = np.random.default_rng(2)
    groups = np.repeat(np.arange(47), 100)
    presence = rng.random(4700) < np.repeat(rng.uniform(0.1, 0.8, 47), 100)
    fold = assign(strata((presence * rng.random(4700))[:, None], 4), groups, SplitSettings(folds=5))
    table_ = pd.DataFrame({"fold": fold, "presence": presence})
    assert np.ptp(table_.groupby("fold")["presence"].mean()) < 0.06
    assert table_["fold"].value_counts().between(800, 1100).all()


@pytest.mark.parametrize("grouped", [False, True])
def test_the_seed_decides_and_nothing_else(grouped: bool) -> None:
    stratum = np.random.default_rng(0).integers(0, 5, 200)
    groups = np.arange(200) // 5 if grouped else None
    first = assign(stratum, groups, SplitSettings(seed=3))
    np.random.default_rng().random()
    np.testing.assert_array_equal(first, assign(stratum, groups, SplitSettings(seed=3)))
    assert (first != assign(stratum, groups, SplitSettings(seed=4))).any()


@pytest.mark.parametrize(("groups", "what"), [(None, "3 images"), (["a", "b", "a"], "2 groups")])
def test_too_few_for_the_folds(groups: list[str] | None, what: str) -> None:
    array = None if groups is None else np.array(groups)
    with pytest.raises(PipelineError, match=rf"{what} cannot fill 5 folds; set `split: \{{folds: {what[0]}}}`"):
        assign(np.zeros(3, np.int64), array, SplitSettings(folds=5))


@pytest.mark.parametrize("stratum", [np.arange(6) % 5, np.repeat(np.arange(5), 2), np.zeros(5, np.int64)])
@pytest.mark.parametrize("grouped", [False, True])
def test_few_images_are_split_without_noise(stratum: np.ndarray, grouped: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fold = assign(stratum, np.arange(len(stratum)) if grouped else None, SplitSettings(folds=5))
    assert set(fold) == set(range(5))


def test_few_images_keep_presence_balanced() -> None:
    stratum = np.array([0, 0, 0, 0, 0, 1, 2, 3, 4, 4])
    fold = assign(stratum, None, SplitSettings(folds=5))
    assert pd.Series(stratum == 0).groupby(fold).mean().tolist() == [0.5] * 5


def test_the_file_lists_every_training_image_and_what_is_dropped(run: Run) -> None:
    stages.run_stage(run, "split")
    folds = pd.read_csv(run.folds, dtype=str)
    assert list(folds.columns) == ["image_id", "group", "stratum", "fold", "use"]
    assert folds["image_id"].tolist() == table.read_table(run.table, "train")["image_id"].tolist()
    assert folds["image_id"].is_unique
    assert set(folds["fold"]) == set("0123")
    assert folds.groupby("group")["fold"].nunique().max() == 1
    assert set(folds.loc[folds["use"] == "drop", "image_id"]) == {"1_1", "2_2"}
    assert set(folds["use"]) == {"drop", "train"}
    before = run.folds.read_bytes()
    stages.run_stage(run, "split", force=True)
    assert run.folds.read_bytes() == before
    assert [state.reasons for state in stages.states(run, "split")] == [[]]


def test_read_folds_follows_the_table(run: Run) -> None:
    stages.run_stage(run, "split")
    expected = read_folds(run)
    pd.read_csv(run.folds, dtype=str).sample(frac=1, random_state=0).to_csv(run.folds, index=False)
    pd.testing.assert_frame_equal(read_folds(run), expected)
    assert expected["fold"].dtype == np.int64
    assert expected["image_id"].tolist() == table.read_table(run.table, "train")["image_id"].tolist()


def test_a_folds_file_of_your_own_is_kept(run: Run) -> None:
    ids = table.read_table(run.table, "train")["image_id"]
    lines = [f"{index % 2},{one}\n" for index, one in enumerate(ids)]
    workspace.write_text(run.folds, "fold,image_id\n" + "".join(lines))
    before = run.folds.read_bytes()
    (state,) = stages.states(run, "split")
    assert state.kept
    stages.run_stage(run, "split")
    assert run.folds.read_bytes() == before
    own = read_folds(run)
    assert own["fold"].tolist() == [index % 2 for index in range(120)]
    assert set(own.query("use == 'drop'")["image_id"]) == {"1_1", "2_2"}  # as outliers.csv says
    assert own["group"].tolist() == table.read_table(run.table, "train")["group"].tolist()


def test_an_edited_folds_file_is_kept_although_the_images_changed(run: Run) -> None:
    stages.run_stage(run, "split")
    edited = pd.read_csv(run.folds, dtype=str).assign(use="train")
    edited.to_csv(run.folds, index=False)
    run.outliers.write_text(run.outliers.read_text() + "4_4,broken,1,,drop,\n")
    stages.run_stage(run, "split")
    assert set(read_folds(run)["use"]) == {"train"}
    stages.run_stage(run, "split", force=True)
    assert set(read_folds(run).query("use == 'drop'")["image_id"]) == {"1_1", "2_2", "4_4"}


def test_another_split_must_exist() -> None:
    recipe = Recipe(name="r", competition="sample", folds="mine")
    other = Run(recipe, load_competition("sample"), "r")
    assert other.folds.name == "sample-mine.csv"
    with pytest.raises(PipelineError, match=r"sample-mine\.csv does not exist"):
        list(stages.importlib.import_module("pipeline.stages.split").execute(other, []))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folds: folds.drop(columns="fold"), r"folds/sample\.csv lacks fold; found image_id, group"),
        (lambda folds: folds.iloc[1:], r"0 unknown ids \[\], 1 images missing \['0_0'\]"),
        (lambda folds: folds.replace("0_0", "9_9x"), r"1 unknown ids \['9_9x'\], 1 images missing \['0_0'\]"),
        (lambda folds: pd.concat([folds, folds.iloc[:1]]), "does not fit the images"),
        (lambda folds: folds.assign(fold=["-1", *folds["fold"][1:]]), "row 2: fold is '-1'; expected 0, 1, 2"),
        (lambda folds: folds.assign(fold=[*folds["fold"][:-1], "1.5"]), "row 121: fold is '1.5'"),
    ],
)
def test_a_wrong_folds_file_is_explained(run: Run, change: object, message: str) -> None:
    stages.run_stage(run, "split")
    change(pd.read_csv(run.folds, dtype=str)).to_csv(run.folds, index=False)  # type: ignore[operator]
    with pytest.raises(PipelineError, match=message):
        read_folds(run)
