"""The split: groups and near-duplicates stay together, folds are alike, and the file says what training may use."""

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.clean.outliers import COLUMNS
from pipeline.core import driver
from pipeline.core.config.preparing import SplitSettings
from pipeline.core.config.raw_layouts import load_competition
from pipeline.core.config.recipe import Recipe
from pipeline.core.errors import PipelineError
from pipeline.core.files import write_text
from pipeline.core.run import Run, open_run
from pipeline.decode import table
from pipeline.split.audit import Split, balance, deviations, whole
from pipeline.split.folds import drop_list, leak_remark, read_audit, read_folds, read_outliers
from pipeline.split.stage import assign, best_balanced, steps, strata


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
    describe(opened, rng.integers(0, 256, (121, 300), np.uint8), rng.standard_normal((121, 256)))
    return opened


def describe(run: Run, histograms: np.ndarray, thumbnails: np.ndarray) -> None:
    """Writes the descriptors of all images."""
    thumbnails = thumbnails / np.linalg.norm(thumbnails, axis=1, keepdims=True)
    np.save(run.histograms, histograms)
    np.save(run.thumbnails, thumbnails.astype(np.float16))


def joined(run: Run, *pairs: tuple[str, str]) -> None:
    """Adds findings that call these images duplicates of each other."""
    rows = "".join(f"{left},duplicate,0.001,{right},keep,\n" for left, right in pairs)
    run.outliers.write_text(run.outliers.read_text() + rows)


def under(run: Run, **changes: Any) -> Run:
    """The same run with another competition's YAML."""
    data = run.competition.model_dump(exclude_unset=True)
    return Run(run.recipe, type(run.competition).model_validate(data | changes), run.name)


def own_folds(run: Run, count: int, **columns: Any) -> None:
    """Writes a folds file by hand: the images in turn, so that groups of twelve cross unless `count` divides twelve."""
    ids = table.read_table(run.table, "train")["image_id"]
    folds = pd.DataFrame({"image_id": ids, "fold": np.arange(len(ids)) % count, **columns})
    write_text(run.folds_file, folds.to_csv(index=False))


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
        fold = assign(stratum, grouping, folds, 0)
        assert sorted(set(fold)) == list(range(folds))
        assert len(fold) == len(groups)
    owners = pd.DataFrame({"group": groups, "fold": assign(stratum, groups, folds, 0)})
    assert owners.groupby("group")["fold"].nunique().max() == 1


def test_presence_and_strata_are_balanced_without_groups() -> None:
    rng = np.random.default_rng(1)
    stratum = strata(np.where(rng.random(1000) < 0.4, 0, rng.random(1000))[:, None], 4)
    fold = assign(stratum, None, 5, 0)
    counts = pd.crosstab(fold, stratum).to_numpy()
    assert np.ptp(counts, axis=0).max() <= 1


def test_presence_is_balanced_with_groups() -> None:
    rng = np.random.default_rng(2)
    groups = np.repeat(np.arange(47), 100)
    presence = rng.random(4700) < np.repeat(rng.uniform(0.1, 0.8, 47), 100)
    fold = assign(strata((presence * rng.random(4700))[:, None], 4), groups, 5, 0)
    table_ = pd.DataFrame({"fold": fold, "presence": presence})
    assert np.ptp(table_.groupby("fold")["presence"].mean()) < 0.06
    assert table_["fold"].value_counts().between(800, 1100).all()


@pytest.mark.parametrize("grouped", [False, True])
def test_the_seed_decides_and_nothing_else(grouped: bool) -> None:
    stratum = np.random.default_rng(0).integers(0, 5, 200)
    groups = np.arange(200) // 5 if grouped else None
    first = assign(stratum, groups, 5, 3)
    np.random.default_rng().random()
    np.testing.assert_array_equal(first, assign(stratum, groups, 5, 3))
    assert (first != assign(stratum, groups, 5, 4)).any()


@pytest.mark.parametrize("stratum", [np.arange(6) % 5, np.repeat(np.arange(5), 2), np.zeros(5, np.int64)])
@pytest.mark.parametrize("grouped", [False, True])
def test_few_images_are_split_without_noise(stratum: np.ndarray, grouped: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fold = assign(stratum, np.arange(len(stratum)) if grouped else None, 5, 0)
    assert set(fold) == set(range(5))


def test_no_fold_is_left_empty() -> None:
    groups, stratum = np.array([0, 1, 2, 3, 4, 0, 3, 3, 1]), np.array([1, 0, 3, 1, 2, 1, 1, 1, 0])
    fold = assign(stratum, groups, 5, 3)  # of which scikit-learn fills four
    assert len(set(zip(groups, fold, strict=True))) == len(set(fold)) == 5


def test_few_images_keep_presence_balanced() -> None:
    stratum = np.array([0, 0, 0, 0, 0, 1, 2, 3, 4, 4])
    fold = assign(stratum, None, 5, 0)
    assert pd.Series(stratum == 0).groupby(fold).mean().tolist() == [0.5] * 5


def test_the_file_lists_every_training_image_and_what_is_dropped(run: Run) -> None:
    driver.run_stage(run, "split")
    folds = pd.read_csv(run.folds_file, dtype=str)
    assert list(folds.columns) == ["image_id", "group", "cluster", "stratum", "fold", "use"]
    assert folds["image_id"].tolist() == table.read_table(run.table, "train")["image_id"].tolist()
    assert folds["image_id"].is_unique
    assert set(folds["fold"]) == set("0123")
    assert folds.groupby("group")["fold"].nunique().max() == 1
    assert set(folds.loc[folds["use"] == "drop", "image_id"]) == {"1_1", "2_2"}
    assert set(folds["use"]) == {"drop", "train"}
    before = run.folds_file.read_bytes()
    driver.run_stage(run, "split", force=True)
    assert run.folds_file.read_bytes() == before
    assert [state.reasons for state in driver.states(run, "split")] == [[], []]


def test_read_folds_follows_the_table(run: Run) -> None:
    driver.run_stage(run, "split")
    expected = read_folds(run)
    pd.read_csv(run.folds_file, dtype=str).sample(frac=1, random_state=0).to_csv(run.folds_file, index=False)
    pd.testing.assert_frame_equal(read_folds(run), expected)
    assert expected["fold"].dtype == np.int64
    assert expected["image_id"].tolist() == table.read_table(run.table, "train")["image_id"].tolist()


def test_a_folds_file_of_your_own_is_kept_and_audited(run: Run) -> None:
    own_folds(run, 4)
    before = run.folds_file.read_bytes()
    assert [state.kept for state in driver.states(run, "split")] == [True, False]
    driver.run_stage(run, "split")
    assert run.folds_file.read_bytes() == before
    assert [bool(state.reasons) for state in driver.states(run, "split")] == [True, False]
    own = read_folds(run)
    assert own["fold"].tolist() == [index % 4 for index in range(120)]
    assert set(own.query("use == 'drop'")["image_id"]) == {"1_1", "2_2"}  # as outliers.csv says
    assert own["group"].tolist() == table.read_table(run.table, "train")["group"].tolist()
    audit = read_audit(run)
    assert (audit["seed"], audit["method"], audit["leaks"]) == (None, None, False)
    own_folds(run, 5)
    run = under(run, split={"folds": 5})
    driver.run_stage(run, "split")
    assert read_audit(run)["crossing_groups"]["count"] == 12
    assert leak_remark(run) == "folds leak: 12 groups are in two folds"


def test_an_edited_folds_file_is_kept_although_the_images_changed(run: Run) -> None:
    driver.run_stage(run, "split")
    edited = pd.read_csv(run.folds_file, dtype=str).assign(use="train")
    edited.to_csv(run.folds_file, index=False)
    run.outliers.write_text(run.outliers.read_text() + "4_4,broken,1,,drop,\n")
    driver.run_stage(run, "split")
    assert set(read_folds(run)["use"]) == {"train"}
    driver.run_stage(run, "split", force=True)
    assert set(read_folds(run).query("use == 'drop'")["image_id"]) == {"1_1", "2_2", "4_4"}


def test_another_split_must_exist() -> None:
    recipe = Recipe(name="r", competition="sample", folds="mine")
    other = Run(recipe, load_competition("sample"), "r")
    assert other.folds_file.name == "sample-mine.csv"
    with pytest.raises(PipelineError, match=r"sample-mine\.csv does not exist"):
        list(driver.importlib.import_module("pipeline.split.stage").execute(other, steps(other)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folds: folds.drop(columns="fold"), r"folds/sample\.csv lacks fold; found image_id, group"),
        (lambda folds: folds.iloc[1:], "images; training images without a row: 0_0. Correct"),
        (lambda folds: folds.replace("0_0", "9_9x"), "of no training image: 9_9x; training images without a row: 0_0"),
        (lambda folds: pd.concat([folds, folds.iloc[:1]]), "does not fit the images; ids with more than one row: 0_0"),
        (lambda folds: folds.assign(fold=["-1", *folds["fold"][1:]]), "row 2: fold is '-1'; expected 0, 1, 2"),
        (lambda folds: folds.assign(fold=[*folds["fold"][:-1], "1.5"]), "row 121: fold is '1.5'"),
        (lambda folds: folds.assign(fold="0"), r"sample\.csv has only one fold \(0\); expected at least two"),
        (
            lambda folds: folds.replace({"fold": {"1": "9"}}),
            "has folds 0, 2, 3, 9; expected 4 folds with the numbers 0 to 3",
        ),
        (
            lambda folds: folds.replace({"fold": {"3": "1"}}),
            "folds 0, 1, 2, and fold 3 is to be trained; set `split: {fol",
        ),
        (
            lambda folds: folds.assign(use=["train"] * 7 + ["no"] * 113),
            "row 9: use is 'no'; expected train, drop, relabel",
        ),
    ],
)
def test_a_wrong_folds_file_is_explained(run: Run, change: object, message: str) -> None:
    driver.run_stage(run, "split")
    change(pd.read_csv(run.folds_file, dtype=str)).to_csv(run.folds_file, index=False)  # type: ignore[operator]
    with pytest.raises(PipelineError, match=message):
        read_folds(run)
    with pytest.raises(PipelineError, match=message):
        driver.run_stage(run, "split")  # the audit of what somebody edited


# --- groups and near-duplicates --------------------------------------------------------------------------------------


def test_groups_joined_by_duplicates_share_a_fold(run: Run) -> None:
    joined(run, ("0_0", "1_13"), ("1_25", "2_14"), ("5_5", "5_17"), ("7_7", "elsewhere"))
    driver.run_stage(run, "split")
    folds = pd.read_csv(run.folds_file, dtype=str, keep_default_na=False).set_index("image_id")
    assert folds.groupby("group")["fold"].nunique().max() == 1
    assert folds["fold"][folds["group"].isin(["0", "1", "2"])].nunique() == 1
    clusters = {frozenset(rows.index) for name, rows in folds.groupby("cluster") if name}
    assert clusters == {frozenset(pair) for pair in (("0_0", "1_13"), ("1_25", "2_14"), ("5_5", "5_17"))}
    assert sum(fold["components"] for fold in read_audit(run)["folds"]) == 10
    assert not read_audit(run)["leaks"]


def chained(run: Run, **split: Any) -> Run:
    """Without groups; ten chains of four images that are neighbours by image number, and which look alike."""
    pairs = [(f"{i % 12}_{i}", f"{(i + 1) % 12}_{i + 1}") for i in range(40) if i % 4 < 3]
    joined(run, *pairs)
    histograms, thumbnails = np.load(run.histograms), np.load(run.thumbnails)
    for i in range(40):
        histograms[i], thumbnails[i] = histograms[i - i % 4], thumbnails[i - i % 4]
    describe(run, histograms, thumbnails)
    return under(run, group=None, split={"folds": 4, **split})


def test_duplicates_share_a_fold_without_groups(run: Run) -> None:
    run = chained(run)
    driver.run_stage(run, "split")
    folds = pd.read_csv(run.folds_file, dtype=str)
    assert folds["cluster"].value_counts().tolist() == [4] * 10
    assert folds.groupby("cluster")["fold"].nunique().max() == 1
    audit = read_audit(run)
    assert (audit["leaking_pairs"], audit["leak_remark"]) == ({"count": 0, "closest": []}, "")
    assert audit["seed"] in range(10)


def test_a_random_split_ignores_them_and_the_audit_says_so(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run = chained(run, method="random")
    driver.run_stage(run, "split")
    folds = pd.read_csv(run.folds_file, dtype=str)
    assert folds.groupby("cluster")["fold"].nunique().max() > 1
    audit = read_audit(run)
    crossing = audit["crossing_clusters"]["count"]
    assert crossing == (folds.groupby("cluster")["fold"].nunique() > 1).sum()
    assert audit["leaks"]
    assert audit["leaking_pairs"]["count"] >= 3 * crossing  # of four, one elsewhere makes three pairs
    remark = (
        f"{crossing} duplicate clusters and {audit['leaking_pairs']['count']} near-duplicate pairs are in two folds"
    )
    assert leak_remark(run) == f"folds leak: {remark}"
    left, right, *_ = audit["leaking_pairs"]["closest"][0]
    assert f"folds leak: {remark}; the closest pair is {left} and {right} (distance 0.0000" in capsys.readouterr().err


def test_without_a_search_the_audit_does_not_say_that_there_are_no_duplicates(run: Run) -> None:
    run = under(chained(run, method="random"), clean={"duplicates": {"search": False}})
    driver.run_stage(run, "split")
    assert read_audit(run)["leaking_pairs"]["count"] is None


@pytest.mark.parametrize("change", ["outliers", "audit", "descriptors"])
def test_the_audit_follows_the_folds(run: Run, change: str) -> None:
    run = chained(run)
    driver.run_stage(run, "split")
    before = read_audit(run)
    if change == "audit":
        run.audit.unlink()
    elif change == "outliers":
        joined(run, ("0_60", "1_61"))
    else:
        histograms, thumbnails = np.load(run.histograms), np.load(run.thumbnails)
        histograms[119], thumbnails[119] = histograms[0], thumbnails[0]
        describe(run, histograms, thumbnails)
    driver.run_stage(run, "split")
    after = read_audit(run)
    assert [state.reasons for state in driver.states(run, "split")] == [[], []]
    assert sum(fold["components"] for fold in after["folds"]) == 90 - (change == "outliers")
    assert after["seed"] is not None
    assert (after == before) == (change == "audit")


def test_the_best_of_several_seeds_is_kept() -> None:
    rng = np.random.default_rng(5)
    groups = np.repeat(np.arange(20), rng.integers(2, 15, 20))
    count = len(groups)
    areas = (rng.random((count, 2)) < rng.random((20, 2))[groups]) * rng.integers(1, 900, (count, 2))
    split = Split(np.arange(count).astype(str), groups * 0, groups.astype(str), groups * 0 - 1, groups, areas,
                  np.full(count, 1000))  # fmt: skip
    stratum = strata(areas / 1000, 4)

    def largest(fold: np.ndarray) -> float:
        figures = balance(fold, split.areas, split.sizes, ["a", "b"])
        return deviations(figures, whole(split.areas, split.sizes, ["a", "b"]))[0].value

    values = [largest(assign(stratum, groups, 4, seed)) for seed in range(3, 11)]
    fold, seed = best_balanced(stratum, groups, SplitSettings(folds=4, seed=3, seeds=8), split, ["a", "b"])
    assert largest(fold) == min(values) < values[0]
    assert seed == 3 + int(np.argmin(values))
    assert best_balanced(stratum, groups, SplitSettings(folds=4, seed=3, seeds=1), split, ["a", "b"])[1] == 3


# --- what cannot be split, or used -----------------------------------------------------------------------------------


def refused(run: Run) -> str:
    """Runs the stage, which must write nothing, and returns its message."""
    with pytest.raises(PipelineError) as caught:
        driver.run_stage(run, "split")
    assert not run.folds_file.exists()
    assert not run.audit.exists()
    return str(caught.value)


def test_images_without_a_group(run: Run) -> None:
    images = pd.read_parquet(run.table)
    images.loc[[3, 50, 51], "group"] = ["", " ", ""]
    table.write_table(run.table, images.to_dict("records"))
    assert refused(run).startswith("3 training images have no `subject` (group), for instance 3_3 and 2_50: fill it in")


def test_too_few_components_for_the_folds(run: Run) -> None:
    message = refused(under(run, split={"folds": 13}))
    assert message == "12 groups cannot fill 13 folds; set `split: {folds: 12}` in the competition's YAML."
    assert refused(under(run, group=None, split={"folds": 121})).startswith("120 images cannot fill 121 folds; ")
    joined(run, *[(f"{i}_{i}", f"{i + 1}_{i + 1}") for i in range(9)])
    message = refused(run)
    assert message.startswith(
        "3 sets of images (of one group, or near-duplicates) cannot fill 4 folds; set `split: {fold"
    )
    joined(run, ("9_9", "10_10"), ("10_10", "11_11"))
    assert refused(run).startswith("All ")


def test_a_file_with_more_folds_than_are_trained(run: Run) -> None:
    own_folds(run, 6)
    driver.run_stage(run, "split")
    expected = "folds/sample.csv has 6 folds, of which only 4 are trained unless you set `split: {folds: 6}`"
    assert read_audit(run)["warnings"][-1].startswith(expected)


def test_what_training_does_with_an_image(run: Run) -> None:
    findings = "4_4,contradiction,0,5_5,relabel,\n5_5,contradiction,0,4_4,soft,\n1_1,contradiction,0,4_4,relabel,\n"
    run.outliers.write_text(run.outliers.read_text() + findings)
    driver.run_stage(run, "split")
    use = read_folds(run).set_index("image_id")["use"]
    assert use[use != "train"].to_dict() == {"1_1": "drop", "2_2": "drop", "4_4": "relabel", "5_5": "soft"}
    assert drop_list(run) == (run.outliers,)  # which says whose mask
    own_folds(run, 4, use="train")
    assert drop_list(run) == ()
    own_folds(run, 4)
    assert drop_list(run) == (run.outliers,)
    assert read_folds(run)["use"].tolist() == use.tolist()


def test_groups_that_belong_together_stay_in_one_fold(run: Run) -> None:
    images = table.read_table(run.table)
    sites = [{**row, "extra_site": f"s{int(row['group']) // 4}"} for row in images.to_dict("records")]
    table.write_table(run.table, sites)  # type: ignore[arg-type]
    joint = under(run, split={"folds": 3, "together": "site"})
    driver.run_stage(joint, "split")
    folds = pd.read_csv(joint.folds_file, dtype=str)
    assert folds["group"].nunique() == 12
    assert folds.groupby(folds["group"].astype(int) // 4)["fold"].nunique().max() == 1
    assert read_audit(joint)["crossing_groups"]["count"] == 0
    with pytest.raises(PipelineError, match=r"column `town` \(split.together\) is missing; found `site`"):
        driver.run_stage(under(run, split={"folds": 3, "together": "town"}), "split")
    with pytest.raises(PipelineError, match="id 0_0 does not match `split.together: {group}-{rest}`"):
        driver.run_stage(under(run, split={"folds": 3, "together": "{group}-{rest}"}), "split")


@pytest.mark.parametrize(("row", "fault"), [
    ("1_1,broken,oops,,drop,", "row 2: score is 'oops'; expected a number, or nothing."),
    ("1_1,broken,inf,,drop,", "row 2: score is 'inf'; expected a number, or nothing."),
    ("9_8,broken,1,,drop,", "row 2: image_id is '9_8'; expected the id of a training image."),
    ("1_1,broken,1,,Drop,", "row 2: action is 'Drop'; expected keep, drop, relabel, soft."),
])  # fmt: skip
def test_an_edited_list_of_findings_is_checked(run: Run, row: str, fault: str) -> None:
    run.outliers.write_text(f"{','.join(COLUMNS)}\n{row}\n")
    with pytest.raises(PipelineError, match=re.escape(f"outliers.csv {fault}")):
        read_outliers(run)


def test_score_and_note_of_a_finding_may_be_left_out(run: Run) -> None:
    run.outliers.write_text("image_id,reason,partner_id,action\n1_1,broken,,drop\n")
    assert read_outliers(run)[["score", "note"]].to_numpy().tolist() == [["", ""]]
