"""Helpers for notebooks. `prepare` can be called before the package's requirements are installed."""

import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import requirements_check

if TYPE_CHECKING:
    from pipeline.core.engine import Engine
    from pipeline.core.run import Run

HOME = Path(__file__).parents[1]


def prepare() -> None:
    """Prepares a notebook to use the package, on this machine, on Kaggle or on Colab.

    If the repository's folder is read-only (for example an attached Kaggle dataset), results go to the working
    directory, or to /kaggle/working.

    Raises:
        ImportError: a requirement of the package is missing; the message gives the line that installs it.
    """
    project = HOME / "pyproject.toml"  # an installed package has none: pip has installed its requirements
    requirements = requirements_check.read_requirements(project, dev=False) if project.exists() else []
    if missing := requirements_check.unsatisfied(requirements):
        packages = " ".join(f'"{line.split("#")[0].strip()}"' for line in missing)
        raise ImportError(f"run this in a separate cell, then restart the kernel: %pip install -q {packages}")
    if project.exists() and not os.access(HOME, os.W_OK):
        places = (place for place in (Path.cwd(), Path("/kaggle/working")) if os.access(place, os.W_OK))
        os.environ.setdefault("PIPELINE_ROOT", str(next(places, Path.cwd())))
    warnings.filterwarnings("ignore", message="IProgress not found")
    print(f"Python {sys.version.split()[0]}, the package in {HOME}")


def load_run(
    recipe: str,
    settings: Mapping[str, Any] | None = None,
    name: str | None = None,
    quick: bool = False,
    competition: str | None = None,
) -> "Run":
    """Returns the run of a recipe.

    Args:
        recipe: name of a recipe, or path of its YAML file.
        settings: settings to change, for example {"train.epochs": 3}.
        name: name of the run; None: the recipe's.
        quick: whether to open the small version of the run.
        competition: a competition to use instead of the recipe's own, by its name or path. The recipe `auto` is the one
            that was chosen for it.

    Raises:
        PipelineError: the recipe, the competition or a setting is invalid.
    """
    from pipeline.core.config.settings import assignments_of
    from pipeline.core.run import open_run

    return open_run(recipe, quick, name, assignments_of(settings or {}), competition)


def run_stage(run: "Run", stage: str, force: bool = False, engine: "Engine | None" = None) -> None:
    """Runs the steps of one stage that are not up to date; see `driver.run_stage`.

    The default engine uses every GPU of this machine.
    """
    from pipeline.core import driver
    from pipeline.engines.local import LocalEngine

    driver.run_stage(run, stage, force, engine=engine or LocalEngine())


def run_to(run: "Run", stage: str, force: bool = False, engine: "Engine | None" = None) -> None:
    """Runs a stage, and before it every earlier stage that is not up to date.

    The default engine uses every GPU of this machine.
    """
    from pipeline.engines.local import LocalEngine
    from pipeline.stages import run_through

    run_through(run, stage, force, engine or LocalEngine())


def ensure_sample(run: "Run") -> None:
    """Writes the raw files of the sample competition if they are missing. Does nothing for other competitions."""
    if run.competition.name != "sample" or run.input.exists():
        return
    from pipeline.core.console import counting, say
    from pipeline.core.files import shown
    from pipeline.new.sample import write_sample

    with counting("sample") as show:
        write_sample(run.input, on_progress=show)
    say(f"sample: the synthetic competition, drawn → {shown(run.input)}")


def own_files(folder: str | Path | None) -> Path:
    """Returns the path of a folder of raw files; for None, the sample's, which is drawn if it is missing.

    Raises:
        PipelineError: the folder does not exist.
    """
    from pipeline.core.errors import PipelineError

    if folder is None:
        run = load_run("sample")
        ensure_sample(run)
        return run.input
    place = Path(folder).expanduser()
    if not place.is_dir():
        raise PipelineError(f"{place} is not a folder; expected the folder of your raw files.")
    return place


def first_recipe(name: str, folder: Path, settings: Mapping[str, Any] | None = None) -> str:
    """Returns the path of the competition YAML that `new` writes for a folder of raw files, and prints what `new`
    found. The YAML also holds the recipe that was chosen for the data.

    An existing YAML of this name is left as it is.

    Args:
        name: name of the competition.
        folder: folder of the raw files.
        settings: settings of the competition that the files cannot tell, for example {"metric": "dice"}.

    Raises:
        PipelineError: see `write_new`.
    """
    from pipeline.core.config.settings import assignments_of
    from pipeline.core.files import root, shown
    from pipeline.new.wizard import write_new

    existing = root() / "competitions" / f"{name}.yaml"
    if existing.exists():
        print(f"{shown(existing)} exists and is used as it is; delete it to have the folder examined again")
        return str(existing)
    written = write_new(name, folder, root(), assignments=assignments_of(settings or {}))
    print(*written.lines(), sep="\n")
    return str(written.competition)
