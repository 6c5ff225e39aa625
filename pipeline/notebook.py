"""What notebooks need beside the package; `prepare` comes before anything that must be installed is imported."""

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
    """Lets a notebook use the package wherever it runs: locally, on Kaggle or on Colab.

    Where the repository's folder cannot be written to, as an attached dataset's, results go to the working directory,
    or to Kaggle's.

    Raises:
        ImportError: something that the package needs is missing; the message is the line that installs it.
    """
    project = HOME / "pyproject.toml"  # an installed package has none: pip has seen to its requirements
    wanted = requirements_check.read_requirements(project, dev=False) if project.exists() else []
    if missing := requirements_check.unsatisfied(wanted):
        asked = " ".join(f'"{line.split("#")[0].strip()}"' for line in missing)
        raise ImportError(f"run this in a cell of its own, then restart the kernel: %pip install -q {asked}")
    if project.exists() and not os.access(HOME, os.W_OK):
        places = (place for place in (Path.cwd(), Path("/kaggle/working")) if os.access(place, os.W_OK))
        os.environ.setdefault("PIPELINE_ROOT", str(next(places, Path.cwd())))
    warnings.filterwarnings("ignore", message="IProgress not found")
    print(f"Python {sys.version.split()[0]}, the package in {HOME}")


def load_run(
    recipe: str, settings: Mapping[str, Any] | None = None, name: str | None = None, quick: bool = False
) -> "Run":
    """Returns the run of a recipe with settings changed, e.g. {"train.epochs": 3}; see open_run.

    Raises:
        PipelineError: a wrong setting.
    """
    from pipeline.core.config.settings import assignments_of
    from pipeline.core.run import open_run

    return open_run(recipe, quick, name, assignments_of(settings or {}))


def run_stage(run: "Run", stage: str, force: bool = False, engine: "Engine | None" = None) -> None:
    """Runs the steps of one stage that are not up to date; see driver.run_stage. By default every GPU here is used."""
    from pipeline.core import driver
    from pipeline.engines.local import LocalEngine

    driver.run_stage(run, stage, force, engine=engine or LocalEngine())


def run_to(run: "Run", stage: str, force: bool = False, engine: "Engine | None" = None) -> None:
    """Runs what comes before a stage, as far as it is not up to date, and the stage. By default every GPU here is
    used."""
    from pipeline.engines.local import LocalEngine
    from pipeline.stages import run_through

    run_through(run, stage, force, engine or LocalEngine())


def ensure_sample(run: "Run") -> None:
    """Writes the raw files of a run of the sample competition, if they are not there; does nothing for any other."""
    if run.competition.name != "sample" or run.input.exists():
        return
    from pipeline.core.console import counting, say
    from pipeline.core.files import shown
    from pipeline.new.sample import write_sample

    with counting("sample") as show:
        write_sample(run.input, on_progress=show)
    say(f"sample: the synthetic competition, drawn → {shown(run.input)}")


def own_files(folder: str | Path | None) -> Path:
    """Returns the folder of somebody's own raw files; None: that of the sample, which is drawn if it is not there.

    Raises:
        PipelineError: there is no such folder.
    """
    from pipeline.core.errors import PipelineError

    if folder is None:
        run = load_run("sample")
        ensure_sample(run)
        return run.input
    place = Path(folder).expanduser()
    if not place.is_dir():
        raise PipelineError(f"{place} is no folder; expected the folder of your raw files.")
    return place


def first_recipe(name: str, folder: Path, settings: Mapping[str, Any] | None = None) -> str:
    """Returns the path of the recipe that `new` writes for a folder of raw files, under the root, and prints what it
    has found; one that is there stays as it is.

    Args:
        name: of the competition and of its recipe.
        folder: the raw files.
        settings: of the competition, which files cannot tell, e.g. {"metric": "dice"}.

    Raises:
        PipelineError: see `write_new`.
    """
    from pipeline.core.config.settings import assignments_of
    from pipeline.core.files import root, shown
    from pipeline.new.wizard import write_new

    recipe = root() / "recipes" / f"{name}.yaml"
    if recipe.exists():
        print(f"{shown(recipe)} is there already, and stays as it is: delete it to look at the folder anew")
        return str(recipe)
    written = write_new(name, folder, root(), assignments=assignments_of(settings or {}))
    print(*written.lines(), sep="\n")
    return str(written.recipe)
