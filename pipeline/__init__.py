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
    from pipeline.core.run import Run
    from pipeline.masks import overlay as plots
    from pipeline.notebook import ensure_sample, load_run, run_stage, run_to
    from pipeline.report import charts, look

_PUBLIC = {
    "ensure_sample": "pipeline.notebook:ensure_sample",
    "load_run": "pipeline.notebook:load_run",
    "Run": "pipeline.core.run:Run",
    "run_stage": "pipeline.notebook:run_stage",
    "run_to": "pipeline.notebook:run_to",
    "look": "pipeline.report.look",
    "charts": "pipeline.report.charts",
    "plots": "pipeline.masks.overlay",
}
__all__ = ["Run", "charts", "ensure_sample", "load_run", "look", "plots", "run_stage", "run_to"]


def __getattr__(name: str) -> Any:
    """Imports what is asked for when it is asked for: the command line starts at once."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'pipeline' has no attribute {name!r}; it has {', '.join(__all__)}")
    module, _, member = _PUBLIC[name].partition(":")
    found = importlib.import_module(module)
    return getattr(found, member) if member else found
