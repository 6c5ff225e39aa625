"""A local leaderboard of hand-made submissions."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import TEST_IDS, Tiny
from typer.testing import CliRunner

from pipeline.__main__ import app
from pipeline.core.errors import PipelineError
from pipeline.core.files import write_json
from pipeline.kaggle.leaderboard import Board, split

MASKS = {"t1": "1 10", "t2": "", "t3": "100 20", "t4": "300 40"}


def write(path: Path, masks: dict[str, str]) -> None:
    path.parent.mkdir(exist_ok=True)
    pd.DataFrame({"id": TEST_IDS, "mask": [masks[name] for name in TEST_IDS]}).to_csv(path, index=False)


def test_the_split_is_the_same_for_the_same_ids() -> None:
    ids = [f"image{number}" for number in range(100)]
    public, private = split(ids, 0.3)
    assert len(public) == 30 and sorted(public + private) == sorted(ids)
    assert split(ids[::-1], 0.3) == (public, private)
    assert set(split(ids, 0.3, seed=1)[0]) != set(public)
    for share in (0.0, 1.0, 0.001, -1):
        with pytest.raises(
            PipelineError, match="expected a share between 0 and 1 that leaves at least one image in each part"
        ):
            split(ids, share)


def test_the_public_leader_is_not_the_best(tiny: Tiny) -> None:
    tiny.run("decode")
    public, private = split(TEST_IDS, 0.5)
    folder = tiny.root / "subs"
    write(tiny.root / "truth.csv", MASKS)
    write(folder / "tuned-on-public.csv", {name: MASKS[name] if name in public else "50 3" for name in MASKS})
    write(folder / "honest.csv", {name: MASKS[name] if name in private else "50 3" for name in MASKS})
    write_json(folder / "honest.json", {"expect": {"scores": {"fold_model": {"score": 0.9}}}})
    write(folder / "perfect.csv", MASKS)
    (folder / "broken.csv").write_text("id\n1\n")
    write(folder / "=formula.csv", {name: "50 3" for name in MASKS})
    arguments = ["leaderboard", str(folder), str(tiny.root / "truth.csv"), "--competition", str(tiny.competition_path)]
    done = CliRunner().invoke(app, [*arguments, "--public", "0.5"])
    assert done.exit_code == 0, done.exception
    board = pd.read_csv(tiny.root / "work" / "tiny" / "leaderboard.csv").set_index("name")
    assert board.loc["'=formula", "private_rank"] > 2
    board = board.drop("'=formula")
    assert board.loc["tuned-on-public", ["public", "private"]].tolist() == [1, 0]
    assert board.loc["honest", ["public", "private"]].tolist() == [0, 1]
    assert board["private_rank"].to_dict() == {"perfect": 1, "tuned-on-public": 3, "honest": 1}
    assert np.isnan(board.loc["perfect", "estimate"]) and board.loc["honest", "estimate"] == 0.9
    assert "broken: not scored: the submission lacks the column mask; found id." in done.output
    assert "By the estimates alone, which use no test image, honest would have been chosen: 1.0000" in done.output
    page = (tiny.root / "work" / "tiny" / "leaderboard.html").read_text()
    assert "<svg" in page and "Shake-up" in page and "<script src" not in page and 'src="http' not in page
    as_json = CliRunner().invoke(app, [*arguments, "--public", "0.5", "--json"])
    assert as_json.output.startswith('[{"name":"perfect","public":1.0')
    fault = {"name": "broken", "unscored": "the submission lacks the column mask; found id."}
    assert json.loads(as_json.output)[-1] == fault


def board_of(scores: dict[str, tuple[float, float]]) -> Board:
    rows = pd.DataFrame([{"name": name, "public": a, "private": b} for name, (a, b) in scores.items()])
    for part in ("public", "private"):
        rows[f"{part}_rank"] = rows[part].rank(method="min", ascending=False).astype(int)
    return Board("tiny", "dice", 1, 2, 2, rows.assign(estimate=np.nan), {})


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ({"a": (0.5, 0.6)}, "a has 0.5000 in public and 0.6000 in private: 0.1000 better than its public score."),
        (
            {"a": (0.5, 0.4), "b": (0.4, 0.6)},
            "a leads in public with 0.5000 and is number 2 of 2 in private, with 0.4000: 0.1000 worse than its public "
            "score, and 0.2000 worse than b, the best in private.",
        ),
        (
            {"a": (0.5, 0.5), "b": (0.5, 0.5)},
            "a and 1 other lead in public with 0.5000; it is number 1 of 2 in private, with 0.5000: as good as its "
            "public score, and the best in private.",
        ),
    ],
)
def test_what_the_parts_say_together(scores: dict[str, tuple[float, float]], said: str) -> None:
    assert board_of(scores).sentences()[0] == said


def test_an_empty_folder(tiny: Tiny) -> None:
    tiny.run("decode")
    write(tiny.root / "truth.csv", MASKS)
    arguments = ["leaderboard", str(tiny.input / "test"), str(tiny.root / "truth.csv"), "--competition"]
    done = CliRunner().invoke(app, [*arguments, str(tiny.competition_path)])
    assert "contains no submission; expected files such as .csv" in str(done.exception)
    arguments[1] = str(tiny.root / "nowhere")
    done = CliRunner().invoke(app, [*arguments, str(tiny.competition_path)])
    assert "nowhere is not a folder; expected a folder of submissions" in str(done.exception)
