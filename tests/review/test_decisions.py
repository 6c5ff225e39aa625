"""Decisions change outliers.csv, can be undone, and are used by the next training."""

import numpy as np
import pandas as pd
import pytest
from conftest import TRAIN_IDS, Tiny
from filelock import FileLock
from reviewed import ROWS, reviewed

from pipeline.clean.outliers import findings
from pipeline.core.errors import PipelineError
from pipeline.core.run import Run
from pipeline.core.tables import write_for_people
from pipeline.review import decisions, following
from pipeline.review.decisions import Decision
from pipeline.train.stage import rows_of


@pytest.fixture
def run(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> Run:
    return reviewed(tiny, monkeypatch)


def decide(run: Run, *given: str) -> pd.DataFrame:
    return decisions.change(run, lambda found: decisions.decide(found, Decision(*given)))


def rows(found: pd.DataFrame, image_id: str) -> list[tuple[str, str, str]]:
    listed = found[found["image_id"] == image_id]
    return list(zip(listed["reason"], listed["action"], listed["review"], strict=True))


def test_a_decision_holds_for_all_findings_about_an_image(run: Run) -> None:
    decide(run, "a01", "contradiction", "a02", "drop")
    found = decide(run, "a01", "contradiction", "a02", "relabel")
    assert rows(found, "a01") == [("duplicate", "keep", "keep@1 keep@2"), ("contradiction", "relabel", "keep@1 drop@2")]
    assert rows(decisions.read(run), "a01") == rows(found, "a01")
    found = decide(run, "a06", "pixel outlier", "", "keep")
    assert rows(found, "a06") == [("pixel outlier", "keep", "drop@3")]
    assert decisions.decided(found) == {"a01", "a06"}
    assert found["score"].tolist() == ["0.002", "0.001", "0.001", "7.0"]  # the rest is as it was


def test_decisions_are_undone_from_the_last_to_the_first(run: Run) -> None:
    before = decisions.read(run)
    decide(run, "a02", "contradiction", "a01", "drop")  # a row of its own: clean listed the other image of the pair
    decide(run, "a12", "suspected label", "", "drop", "0.9", "Dice 0.10")
    found = decide(run, "a02", "contradiction", "a01", "keep")
    assert rows(found, "a02") == [("contradiction", "keep", "new@1 drop@3")]
    undone = []
    for _ in range(4):
        found, image_id = decisions.undo(found)
        undone.append(image_id)
    assert undone == ["a02", "a12", "a02", ""]
    pd.testing.assert_frame_equal(found, before)


def test_a_mask_that_is_not_trained_on_cannot_be_learned(run: Run) -> None:
    decide(run, "a02", "contradiction", "a01", "drop")
    for action in ("relabel", "soft"):
        with pytest.raises(PipelineError, match="a02 is left out of training, so a01 cannot be trained with its mask"):
            decide(run, "a01", "contradiction", "a02", action)
    found = decide(run, "a03", "duplicate", "a04", "relabel")
    with pytest.raises(PipelineError, match="a03 is itself trained with another image's mask"):
        decide(run, "a04", "duplicate", "a03", "relabel")
    assert decisions.without_partner(found) == set()
    assert decisions.without_partner(decide(run, "a04", "duplicate", "a03", "drop")) == {"a03"}


def test_ids_that_a_spreadsheet_would_run_and_blank_lines_survive(run: Run) -> None:
    write_for_people(run.outliers, findings([("a12", "duplicate", 0.0, "=1+1", "drop", "-x"), *ROWS]))
    found = decide(run, "a12", "duplicate", "=1+1", "keep")
    assert found["partner_id"][0] == "=1+1" and "'=1+1" in run.outliers.read_text().splitlines()[1]
    assert rows(decisions.read(run), "a12")[0] == ("duplicate", "keep", "drop@1")


def test_another_process_that_works_there_is_waited_for_and_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decisions, "PATIENCE", 0.05)
    before = run.outliers.read_bytes()
    with (
        FileLock(run.competition_folder / ".lock"),
        pytest.raises(PipelineError, match="Nothing was saved: another process is working in work/tiny"),
    ):
        decide(run, "a01", "contradiction", "a02", "drop")
    assert run.outliers.read_bytes() == before


def test_the_next_run_trains_on_what_was_decided(tiny: Tiny, run: Run) -> None:
    tiny.run("clean", "split")  # clean keeps a list that it did not write
    assert following.command(run, decisions.read(run)) == ""
    decide(run, "a02", "contradiction", "a01", "relabel")  # learns that there is nothing
    decide(run, "a12", "suspected label", "", "drop")
    found = decide(run, "a06", "pixel outlier", "", "keep")
    assert following.command(run, found).endswith(f"run {tiny.recipe_path}")
    tiny.run("clean", "split")
    folds = pd.read_csv(run.folds_file).set_index("image_id")
    assert folds["use"][["a02", "a06", "a12", "a01"]].tolist() == ["relabel", "train", "drop", "train"]
    other = next(fold for fold in range(3) if fold != folds["fold"]["a02"])
    chosen = rows_of(run, other)
    place = {name: number for number, name in enumerate(TRAIN_IDS)}
    assert place["a12"] not in chosen.train and {place["a02"], place["a06"]} & {*chosen.train, *chosen.valid}
    assert np.array_equal(chosen.targets[place["a02"]], [place["a01"]])
    assert following.command(run, decisions.read(run)) == ""  # the next training sees it


def test_finished_training_stays_beside_the_next_one(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following.look, "trainings", lambda run: {"fold 0": ()})
    found = decide(run, "a12", "suspected label", "", "drop")
    assert following.command(run, found).endswith(" --name small-reviewed")
    (run.competition_folder / "small-reviewed").mkdir()
    assert following.command(run, found).endswith(" --name small-reviewed-2")
