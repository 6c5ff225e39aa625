"""Raw competition files in, a submission you can trust out. `python -m pipeline --help` lists the commands.

The same from Python, as the notebooks do it:

    from pipeline import load_run, look, run_to

    run = load_run("sample", {"train.epochs": 3}, name="short")     # a recipe with settings changed, under a name
    run_to(run, "tune")                                             # every stage up to tune that is not up to date
    look.scores(run)                                                # a table; look.sheet(run, ids) is a picture
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline import charts, look, plots
    from pipeline.notebook import ensure_sample, load_run
    from pipeline.stages import run_stage
    from pipeline.stages import run_through as run_to
    from pipeline.workspace import Run

_PUBLIC = {
    "ensure_sample": "pipeline.notebook:ensure_sample",
    "load_run": "pipeline.notebook:load_run",
    "Run": "pipeline.workspace:Run",
    "run_stage": "pipeline.stages:run_stage",
    "run_to": "pipeline.stages:run_through",
    "look": "pipeline.look",
    "charts": "pipeline.charts",
    "plots": "pipeline.plots",
}
__all__ = ["Run", "charts", "ensure_sample", "load_run", "look", "plots", "run_stage", "run_to"]


def __getattr__(name: str) -> Any:
    """Imports what is asked for when it is asked for: the command line starts at once."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'pipeline' has no attribute {name!r}; it has {', '.join(__all__)}")
    module, _, member = _PUBLIC[name].partition(":")
    found = importlib.import_module(module)
    return getattr(found, member) if member else found
