"""Raw competition files in, a submission you can trust out. `python -m pipeline --help` lists the commands.

The same from Python, as the notebooks do it:

    from pipeline import load_run, look, run_to

    run = load_run("sample", {"train.epochs": 3}, name="short")     # a recipe with settings changed, under a name
    run_to(run, "tune")                                             # every stage up to tune that is not up to date
    look.scores(run)                                                # a table; look.sheet(run, ids) is a picture
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.core.run import Run
    from pipeline.masks import overlay as plots
    from pipeline.notebook import ensure_sample, first_recipe, load_run, own_files, run_stage, run_to
    from pipeline.report import aloud, charts, look

# otherwise albumentations looks for its newest version on the network, and waits for the answer
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

_PUBLIC = {
    "ensure_sample": "pipeline.notebook:ensure_sample",
    "first_recipe": "pipeline.notebook:first_recipe",
    "load_run": "pipeline.notebook:load_run",
    "own_files": "pipeline.notebook:own_files",
    "Run": "pipeline.core.run:Run",
    "run_stage": "pipeline.notebook:run_stage",
    "run_to": "pipeline.notebook:run_to",
    "look": "pipeline.report.look",
    "aloud": "pipeline.report.aloud",
    "charts": "pipeline.report.charts",
    "plots": "pipeline.masks.overlay",
}
__all__ = [
    "Run", "aloud", "charts", "ensure_sample", "first_recipe", "load_run", "look", "own_files", "plots", "run_stage",
    "run_to",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Imports the module of a public name on first use, so that the command line starts at once."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'pipeline' has no attribute {name!r}; it has {', '.join(__all__)}")
    module, _, member = _PUBLIC[name].partition(":")
    found = importlib.import_module(module)
    return getattr(found, member) if member else found
