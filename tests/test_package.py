"""The installed package: a wheel holds everything that a run needs, and works in the folder it is called in."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import REPOSITORY

from pipeline.core.version import VERSION

NOT_INSTALLED = {"pipeline/environment.sh"}
SEGPIPE = "import sys; sys.argv[0] = 'segpipe'; from pipeline.__main__ import main; main()"
"""What the script `segpipe` does."""
MINIATURE = """
competition: sample
image: {size: [32, 64], fit: stretch, channels: 1}
model: {architecture: ConfigurableUnet, encoder: plain, options: {channels: [4, 8]}}
train: {folds: [0, 1], epochs: 1, batch_size: 8, workers: 0}
predict: {tta: hflip}
"""


def tracked() -> list[str]:
    """The files of the package that git knows or would add."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "pipeline"]
    names = subprocess.check_output(command, cwd=REPOSITORY, text=True).split()
    return [name for name in names if (REPOSITORY / name).exists()]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that a wheel of the repository's tracked files was installed into."""
    source, site = (tmp_path_factory.mktemp(name) for name in ("source", "site"))
    for name in (*tracked(), "pyproject.toml", "README.md"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((REPOSITORY / name).read_bytes())
    build = f"from setuptools.build_meta import build_wheel; build_wheel({str(source)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True, timeout=100)
    (wheel,) = source.glob("segmentation_pipeline-*.whl")
    assert wheel.name.startswith(f"segmentation_pipeline-{VERSION}-")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def test_the_wheel_holds_every_file_of_the_package(site: Path) -> None:
    expected = set(tracked()) - NOT_INSTALLED
    installed = {str(path.relative_to(site)) for path in (site / "pipeline").rglob("*") if path.is_file()}
    assert installed == expected
    (entry_points,) = site.glob("*.dist-info/entry_points.txt")
    assert "segpipe = pipeline.__main__:main" in entry_points.read_text()


def test_it_runs_from_an_empty_folder(site: Path, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    (folder / "recipes").mkdir(parents=True)
    (folder / "recipes" / "mine.yaml").write_text(MINIATURE)

    def segpipe(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {"PYTHONPATH": str(site), "PATH": "", "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)}
        command = [sys.executable, "-c", SEGPIPE, *arguments]
        return subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True, timeout=300)

    assert segpipe("--version").stdout == f"segpipe {VERSION}\n"
    assert "→ input/sample" in segpipe("sample", "--train", "24", "--test", "12").stderr
    done = segpipe("run", "mine")
    assert done.returncode == 0, done.stderr
    assert "  verdict         DO NOT SUBMIT\n" in done.stdout and "segpipe score" not in done.stdout
    assert "  submission      submissions/mine.csv\n" in done.stdout and "\n  next            " in done.stdout
    assert {path.name for path in folder.iterdir()} == {"recipes", "input", "folds", "work", "submissions"}
    assert (folder / "submissions" / "mine.csv").exists()
    assert not any(path.suffix == ".csv" for path in site.rglob("*"))
    made = segpipe("new", "cells", "--from", "input/sample", "--set", "metric=dice")
    assert made.returncode == 0, made.stderr
    assert "segpipe run cells --quick" in made.stdout
    assert {path.name for path in (folder / "competitions").iterdir()} == {"cells.yaml"}
    assert segpipe("status", "cells").returncode == 0
