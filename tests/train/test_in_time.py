"""A training that `--stop-after` stops between two epochs, and goes on."""

import pytest
from conftest import Tiny
from trainings import hashes, named, prepare, train

from pipeline.core import deadline
from pipeline.train import callbacks


def test_it_stops_after_an_epoch_and_ends_in_the_same_weights(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = prepare(tiny, {"train": {"folds": [0, 1], "epochs": 2}})
    alone = {"train": {"folds": [0]}}
    whole = train(named(run, "whole", alone))
    started = callbacks.StopInTime.on_train_epoch_start

    def almost_over(self: callbacks.StopInTime, *arguments: object) -> None:
        started(self, *arguments)  # type: ignore[arg-type]
        deadline.set_limit(0.02)  # no epoch is that short

    monkeypatch.setenv(deadline.VARIABLE, "9e9")
    with monkeypatch.context() as patch:
        patch.setattr(callbacks.StopInTime, "on_train_epoch_start", almost_over)
        with pytest.raises(deadline.TimeIsUp, match=r"The time of --stop-after is up"):
            train(run)
    said = capsys.readouterr().err
    assert (
        "  fold 0 stopped after epoch 1 of 2: 0 s of --stop-after are left" in said and "fold 1 was not started" in said
    )
    assert "failed" not in said
    assert (run.fold_folder(0) / "last.ckpt").exists() and not (run.fold_folder(0) / "fold.json").exists()
    assert not list(run.folder.rglob("error.txt"))
    deadline.lift_limit()
    train(named(run, run.name, alone))
    assert hashes(run) == hashes(whole)
