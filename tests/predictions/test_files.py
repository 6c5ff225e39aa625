"""Files of probabilities that grow by batches survive a kill and a full disk."""

import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from predicted import array

from pipeline.core.errors import PipelineError
from pipeline.core.run import open_run
from pipeline.encode import stage as encode
from pipeline.predictions import blends
from pipeline.predictions.files import Predicted, read_predictions, write_resumable
from pipeline.tune import stage as tune

KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from pipeline.predictions.files import write_resumable

folder, dies = Path(sys.argv[1]), int(sys.argv[2])
values = np.random.default_rng(0).integers(0, 256, (2, 11, 2, 5, 7), np.uint8)

def predict(first):
    for start in range(first, 11, 2):
        if start == dies:
            os.kill(os.getpid(), signal.SIGKILL)
        print(start)
        presence = values[0, start:start + 2, :, 0, 0] / 255
        yield [(one[start:start + 2], presence) for one in values]

paths = [folder / "oof_fold_0.npy", folder / "oof_fold_0_plain.npy"]
ids = [str(number) for number in range(11)]
write_resumable(paths, (11, 2, 5, 7), np.dtype(np.uint8), predict, ids, ["a", "b"], lambda count: None, "same", 2)
"""


def test_killed_and_run_again_gives_the_same_bytes(tmp_path: Path) -> None:
    def written(folder: Path, dies: int) -> tuple[int, list[int]]:
        folder.mkdir(exist_ok=True)
        command = [sys.executable, "-c", KILLED, str(folder), str(dies)]
        done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60)
        return done.returncode, [int(line) for line in done.stdout.split()]

    assert written(tmp_path / "undisturbed", -1) == (0, [0, 2, 4, 6, 8, 10])
    killed = tmp_path / "killed"
    code, _ = written(killed, 6)
    assert (code, [path.name for path in killed.iterdir()]) == (-signal.SIGKILL, [".oof_fold_0.partial"])
    with (killed / ".oof_fold_0.partial" / "oof_fold_0.npy").open("ab") as torn:
        torn.write(b"half a row")
    assert written(killed, -1) == (0, [6, 8, 10])
    files = sorted(path.name for path in killed.iterdir())
    assert files == ["oof_fold_0.csv", "oof_fold_0.npy", "oof_fold_0_plain.csv", "oof_fold_0_plain.npy"]
    for name in files:
        assert (killed / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()
    presence = read_predictions(killed / files[1], ["a", "b"])[2]
    assert presence is not None
    np.testing.assert_allclose(presence, array(killed / files[1])[:, :, 0, 0] / 255, atol=1e-5)


def test_a_full_disk_leaves_earlier_files_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_ROOT", str(tmp_path))
    path, ids, begun = tmp_path / "test_fold_0.npy", [str(number) for number in range(8)], []

    def write(value: int, fingerprint: str) -> None:
        def predict(first: int) -> Iterator[list[Predicted]]:
            begun.append(first)
            return ([(np.full((2, 1, 64, 64), value, np.uint8), None)] for _ in range(first, 8, 2))

        shape, dtype = (8, 1, 64, 64), np.dtype(np.uint8)
        write_resumable([path], shape, dtype, predict, ids, ["thing"], lambda count: None, fingerprint, 2)

    write(7, "first")
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(
            PipelineError, match="test_fold_0.npy could not be written: File too large. Earlier files are"
        ):
            write(8, "second")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {file: file.read_bytes() for file in before} == before
    write(8, "second")
    assert begun == [0, 0, 4]  # it goes on where the disk was full
    assert (array(path) == 8).all()
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=10))
    with pytest.raises(PipelineError, match="probabilities of 8 images take .* free some space"):
        write(9, "third")
    assert (array(path) == 8).all()


def test_what_near_duplicates_are_found_by_is_an_input_where_presence_is_averaged_over_them() -> None:
    run = open_run("sample", assignments=["tune.presence_neighbours=true"])
    for subset, descriptors in (
        ("oof", (run.histograms, run.thumbnails)),
        ("test", (run.test_histograms, run.test_thumbnails)),
    ):
        plain = blends.files(open_run("sample"), subset)
        assert blends.files(run, subset) == (*plain, *descriptors)
    for stage in (tune, encode):
        (step,), (before,) = stage.steps(run), stage.steps(open_run("sample"))
        assert "duplicates" in step.settings and "duplicates" not in before.settings
