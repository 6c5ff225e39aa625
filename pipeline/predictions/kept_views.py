"""Which test-time augmentation a run's predictions use: what tune decided, read from postprocess.json.

This module is separate from blends.py, so that predict does not depend on the code that turns probabilities into masks.
"""

from typing import Any

from pipeline.core.files import read_record
from pipeline.core.run import Run


def decided_views(run: Run) -> dict[str, Any] | None:
    """Returns tune's decision on the recipe's test-time augmentation from postprocess.json (see views.decide in tune);
    None if tune has not decided on these views."""
    decided = read_record(run.postprocess).get("tta")
    if not isinstance(decided, dict) or not decided.keys() >= {"views", "kept"}:  # damaged; read_tuned reports it
        return None
    return decided if decided["views"] == run.recipe.predict.tta else None


def views_of(run: Run) -> str:
    """Returns the test-time augmentation that a run's predictions use, as in `predict.tta`.

    It is the recipe's, or `none` if tune found that it improves the out-of-fold score too little.
    """
    decided = decided_views(run)
    return run.recipe.predict.tta if decided is None or decided["kept"] else "none"
