"""Competitions that `make-competition` makes of the tiny one, and other sources."""

from pathlib import Path

import numpy as np
from conftest import Tiny, encoded
from typer.testing import CliRunner

from pipeline.__main__ import app
from pipeline.core import driver
from pipeline.core.errors import PipelineError
from pipeline.core.run import open_run


def made(tiny: Tiny, *options: str, source: str | Path | None = None, name: str = "course") -> Path:
    """The folder of a competition that the command made of the tiny one, or of another source."""
    arguments = ["make-competition", str(tiny.root / name), "--from", str(source or tiny.competition_path), *options]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.exception
    return tiny.root / name


def refused(tiny: Tiny, *options: str, source: str | Path | None = None, name: str = "course") -> str:
    """The message of a command that fails and leaves nothing."""
    arguments = ["make-competition", str(tiny.root / name), "--from", str(source or tiny.competition_path), *options]
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, PipelineError), done.output
    assert not list(tiny.root.glob(".*.partial"))
    return str(done.exception)


def grouped(tiny: Tiny) -> None:
    """Gives the tiny competition its patients as groups, and each the looks of its own."""
    tiny.settings["group"] = "patient"
    tiny.save()


def decoded(folder: Path, tiny: Tiny, name: str = "course") -> str:
    """The path of the YAML of a made competition whose images were decoded."""
    (tiny.root / "input" / name).symlink_to(folder / "students")
    run = open_run(str(folder / "students" / "recipes" / f"{name}.yaml"))
    driver.run_stage(run, "decode")
    return str(folder / "students" / "competitions" / f"{name}.yaml")


def random_masks(rng: np.random.Generator, classes: int) -> np.ndarray:
    """Masks (classes, 20, 30) of which no two overlap, and some are empty."""
    numbers = rng.integers(0, classes + 1, (4, 5)).repeat(5, 0).repeat(6, 1)
    numbers[rng.random(numbers.shape) < 0.2] = 0
    return np.stack([numbers == number + 1 for number in range(classes)]).astype(np.uint8)


def folder_of_masks(tiny: Tiny, classes: int, several: bool) -> Path:
    """A folder of sixteen images with mask images: class maps, or of one class."""
    folder, rng = tiny.root / "raw", np.random.default_rng(0)
    for number in range(16):
        masks = random_masks(rng, classes)
        image = rng.integers(0, 256, (20, 30, 3), np.uint8)
        mask = sum((plane * (place + 1) for place, plane in enumerate(masks)), np.zeros((20, 30), np.uint8))
        mask = mask if several else 255 * masks[0]
        for kind, pixels in (("images", image), ("masks", mask.astype(np.uint8))):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            (folder / kind / f"scan{number}.png").write_bytes(encoded(pixels, "png"))
    return folder
