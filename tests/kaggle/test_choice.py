"""Which two submissions to select, and how well the estimate foretells the leaderboard."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.core.config.raw_layouts import load_competition
from pipeline.kaggle import sent
from pipeline.kaggle.choice import choose, correlation, correlations
from pipeline.kaggle.listing import lines

SALT = load_competition("tgs-salt")


def rows(estimates: list[float], error: float = 0.01) -> pd.DataFrame:
    found = pd.DataFrame("", index=range(len(estimates)), columns=list(sent.COLUMNS))
    for place, value in enumerate(estimates):
        found.loc[place, ["run", "estimate", "low", "high", "status"]] = [
            f"run{place}", str(value), str(value - 1.96 * error), str(value + 1.96 * error), "complete"
        ]  # fmt: skip
    return found


def test_the_interval_of_a_correlation() -> None:
    estimates, scores = np.arange(8.0), np.array([0, 2, 1, 3, 5, 4, 6, 7.0])
    found = correlation(estimates, scores)
    assert found is not None and found.count == 8
    # by hand: r = 1 - 6·4 / (8·63) for ranks; atanh(r) ± 1.96 / √5
    r = 1 - 24 / 504
    assert found.r == pytest.approx(r)
    assert (found.low, found.high) == pytest.approx(np.tanh(np.arctanh(r) + np.array([-1, 1]) * 1.959964 / 5**0.5))


def test_fewer_than_six_say_nothing() -> None:
    assert correlation(np.arange(5.0), np.arange(5.0)) is None
    assert correlation(np.ones(8), np.arange(8.0)) is None
    table = rows([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    table["public"] = ["0.2", "0.1", "0.3", "0.4", "0.6", "0.5", ""]
    assert set(correlations(table)) == {"public"} and correlations(table)["public"].count == 6


def test_the_best_estimate_and_the_most_different_one_near_it() -> None:
    differences = {1: 0.1, 2: 0.3, 3: 0.9}
    table = rows([0.80, 0.795, 0.791, 0.70])
    chosen = choose(table, SALT, lambda first, second: differences[second])
    assert chosen is not None and (chosen.first, chosen.second) == (0, 2)
    assert "run2 (0.7910) differs most: in 30.0% of the mask pixels" in chosen.why
    table.loc[2, "status"] = "error"  # Kaggle cannot score it
    assert choose(table, SALT, lambda first, second: differences[second]).second == 1  # type: ignore[union-attr]


def test_other_choices() -> None:
    far = choose(rows([0.8, 0.7]), SALT, lambda *_: 0.5)
    assert far is not None and far.second == 1 and "none is within one standard error (0.0100)" in far.why
    gone = choose(rows([0.8, 0.799]), SALT, lambda *_: None)
    assert gone is not None and gone.second == 1 and "files are missing" in gone.why
    alone = choose(rows([0.8]), SALT, lambda *_: None)
    assert alone is not None and alone.second is None
    assert choose(rows([]), SALT, lambda *_: None) is None


def test_the_lines_that_a_person_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_ROOT", str(tmp_path))
    table = rows([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    table["public"], table["sha256"] = ["0.2", "0.1", "0.3", "0.4", "0.6", "0.5"], list("abcdef")
    table["sent"], table["competition"] = "2026-11-29 10:00:00.000", "tgs-salt"
    first, second, last = lines(table, SALT)
    assert first == "estimate and public score: correlation 0.89 (95 % 0.26 to 0.99) over 6 submissions"
    assert second.startswith("select run5 of 2026-11-29 10:00 and run4 of 2026-11-29 10:00: run5 has the best honest")
    assert last == "This choice does not use public scores, which cover only a part of the test images."
