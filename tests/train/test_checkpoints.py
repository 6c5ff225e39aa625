"""Checkpoints run no code, and a damaged one is named."""

from pathlib import Path

import numpy as np
import pytest
import torch
import trainings
from conftest import Tiny

from benchmarks.reliability import malicious
from pipeline.core.errors import PipelineError
from pipeline.train.checkpoints import AtomicCheckpointIO, read_checkpoint

CONTENT = {"state_dict": {"a": torch.ones(300)}, "counts": [np.ones((2, 3), np.int64)], "epoch": 2}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    AtomicCheckpointIO().save_checkpoint(CONTENT, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def test_arrays_and_tensors_are_read(path: Path) -> None:
    read = AtomicCheckpointIO().load_checkpoint(path)
    assert read["epoch"] == 2 and torch.equal(read["state_dict"]["a"], torch.ones(300))
    assert np.array_equal(read["counts"][0], np.ones((2, 3)))


def test_a_planted_checkpoint_runs_no_code(tmp_path: Path) -> None:
    path, mark = tmp_path / "last.ckpt", tmp_path / "ran"
    malicious.planted_checkpoint(path, mark)
    with pytest.raises(PipelineError, match="last.ckpt is damaged .it holds objects other than numbers"):
        read_checkpoint(path)
    path.write_bytes(malicious.planted_pickle(mark))
    with pytest.raises(PipelineError, match="last.ckpt is damaged"):
        read_checkpoint(path)
    assert not mark.exists()


@pytest.mark.parametrize("how", ["emptied", "cut", "flipped", "garbage", "another"])
def test_a_damaged_checkpoint_is_named(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(torch.ones(8).numpy().tobytes()) + 5] ^= 1
    changed = {"emptied": b"", "cut": data[:900], "flipped": data, "garbage": b"x" * 500}
    if how == "another":
        torch.save([1, 2], path)
    else:
        path.write_bytes(changed[how])
    with pytest.raises(PipelineError, match=r"last.ckpt is damaged .*: restore the file, or delete the folder"):
        read_checkpoint(path)


def test_training_goes_on_from_no_planted_checkpoint(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.train import callbacks

    run = trainings.prepare(tiny, {"train": {"folds": [0]}})

    def breaks(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.ShowProgress, "on_train_epoch_end", breaks)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            trainings.train(run)
    mark, last = tiny.root / "ran", run.fold_folder(0) / "last.ckpt"
    malicious.planted_checkpoint(last, mark)
    with pytest.raises(PipelineError, match="last.ckpt is damaged"):
        trainings.train(run)
    assert not mark.exists()
