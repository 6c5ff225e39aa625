"""The lines of epochs are rows of one table, narrow enough for a small terminal."""

from typing import Any

import pytest
from conftest import Tiny

from pipeline.core.run import Run
from pipeline.train import epoch_lines

ROW = {"epoch": 0, "train/loss": 1.5810, "valid/loss": 1.5648, "valid/score": 0.0385, "seconds": 3.61}


def run_of(tiny: Tiny, **train: Any) -> Run:
    tiny.recipe["train"] = train
    tiny.save()
    return tiny.run()


@pytest.mark.parametrize(("seeds", "title"), [([0], "fold 0"), ([0, 1], "fold 0 seed 1")])
def test_columns_stand_below_their_names(tiny: Tiny, seeds: list[int], title: str) -> None:
    run = run_of(tiny, folds=[0], seeds=seeds)
    header, line = epoch_lines.header(run), epoch_lines.line(run, title, 16, ROW, True, 130)
    assert line.split() == [*title.split(), "1/16", "1.5810", "1.5648", "0.0385", "*", "3.6", "s", "2", "min"]
    assert len(header) == len(line) <= (60 if seeds == [0] else 67)
    for name, value in (("epoch", "1/16"), ("loss", "1.5810"), ("held out", "1.5648"), ("dice", "0.0385")):
        assert header.index(name) + len(name) == line.index(value) + len(value), name


def test_the_last_epoch_and_a_model_of_all_images_say_no_more_than_they_know(tiny: Tiny) -> None:
    run = run_of(tiny, folds=[0], final=True)
    assert epoch_lines.line(run, "fold 0", 1, ROW, False, 0).endswith("0.0385    3.6 s")
    row = {name: value for name, value in ROW.items() if "valid" not in name}
    assert epoch_lines.line(run, "final", 1, row, False, 0).split() == ["final", "1/1", "1.5810", "3.6", "s"]


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, "the last epoch"),
        ({"keep": "average"}, "the average of the last tenth of the steps"),
        ({"keep": "best"}, "the epoch with the lowest held-out loss"),
        ({"keep": "best", "monitor": "score"}, "the epoch with the best score"),
        ({"snapshots": 2, "epochs": 4, "schedule": {"name": "restarts"}}, "the last epoch of each of 2 cycles"),
    ],
)
def test_the_legend_says_what_is_kept(tiny: Tiny, settings: dict[str, Any], kept: str) -> None:
    assert epoch_lines.legend(run_of(tiny, folds=[0], **settings)).endswith(f"* best so far; kept: {kept}")
