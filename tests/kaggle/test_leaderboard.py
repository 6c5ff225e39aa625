"""A local leaderboard of hand-made submissions."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import TEST_IDS, Tiny
from typer.testing import CliRunner

from pipeline.__main__ import app
from pipeline.core.errors import PipelineError
from pipeline.core.files import write_json
from pipeline.kaggle.leaderboard import split

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
        with pytest.raises(PipelineError, match="expected a share between 0 and 1 that leaves an image in each part"):
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
    arguments = ["leaderboard", str(folder), str(tiny.root / "truth.csv"), "--competition", str(tiny.competition_path)]
    done = CliRunner().invoke(app, [*arguments, "--public", "0.5"])
    assert done.exit_code == 0, done.exception
    board = pd.read_csv(tiny.root / "work" / "tiny" / "leaderboard.csv").set_index("name")
    assert board.loc["tuned-on-public", ["public", "private"]].tolist() == [1, 0]
    assert board.loc["honest", ["public", "private"]].tolist() == [0, 1]
    assert board["private_rank"].to_dict() == {"perfect": 1, "tuned-on-public": 3, "honest": 1}
    assert np.isnan(board.loc["perfect", "estimate"]) and board.loc["honest", "estimate"] == 0.9
    assert "broken: not scored: the submission lacks the column mask; found id." in done.output
    assert "By the estimates alone, which saw no test image, honest would have been chosen: 1.0000" in done.output
    page = (tiny.root / "work" / "tiny" / "leaderboard.html").read_text()
    assert "<svg" in page and "Shake-up" in page and "<script" not in page and 'src="http' not in page
    as_json = CliRunner().invoke(app, [*arguments, "--public", "0.5", "--json"])
    assert as_json.output.startswith('[{"name":"perfect","public":1.0')


def test_an_empty_folder(tiny: Tiny) -> None:
    tiny.run("decode")
    write(tiny.root / "truth.csv", MASKS)
    arguments = ["leaderboard", str(tiny.root / "folds"), str(tiny.root / "truth.csv"), "--competition"]
    done = CliRunner().invoke(app, [*arguments, str(tiny.competition_path)])
    assert "holds no .csv; expected a folder of submissions" in str(done.exception)
