"""External predictions, from Python: `bring` makes a run of them, `tune` and `encode` continue from there.

    run = bring("mine", competition="my.yaml", oof=oof, oof_ids=ids, test=test, test_ids=test_ids)
    tune(run)
    encode(run)

The same as `python -m pipeline encode mine --competition my.yaml --oof oof.npy --test test.npy`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline import stages
from pipeline.core.config.raw_layouts import load_competition
from pipeline.core.errors import PipelineError
from pipeline.core.files import root, shown, writing
from pipeline.core.results import read_tuned
from pipeline.core.run import Run, open_run
from pipeline.core.run_checks import check_name
from pipeline.core.verdict import judge
from pipeline.predictions.importing import refuse_trained


def bring(
    name: str,
    *,
    competition: str,
    oof: np.ndarray,
    oof_ids: Sequence[str],
    folds: Sequence[int] | None = None,
    test: np.ndarray | None = None,
    test_ids: Sequence[str] = (),
    assignments: list[str] | None = None,
) -> Run:
    """Returns the run of external predictions, which it writes to work/<competition>/<name>/arrays/.

    Args:
        name: name of the run.
        competition: name of the competition, or path of its YAML file.
        oof: out-of-fold probabilities of the training images, predicted by models that were not trained on them,
            (N, H, W) or (N, C, H, W) of any size, float from 0 to 1 or uint8 from 0 to 255.
        oof_ids: image id of each row of `oof`.
        folds: fold of each row of `oof`; None: the folds in folds/<competition>.csv.
        test: probabilities of all test images, in the same format; None: no submission can be written.
        test_ids: image id of each row of `test`.
        assignments: settings, as with --set, for instance "tune.method=fixed".

    Raises:
        PipelineError: an invalid name or setting. The predictions are checked when they are used.
    """
    folder = root() / "work" / load_competition(competition).name / check_name(name) / "arrays"
    refuse_trained(folder.parent)
    index = pd.DataFrame({"image_id": list(oof_ids)})
    written = _save(folder / "oof.npy", oof, index if folds is None else index.assign(fold=list(folds)))
    more = None if test is None else _save(folder / "test.npy", test, pd.DataFrame({"image_id": list(test_ids)}))
    return open_run(name, assignments=assignments, competition=competition, oof=written, test=more)


def tune(run: Run) -> dict[str, Any]:
    """Returns the content of postprocess.json: the chosen decision rule and its scores. Runs earlier stages first.

    Raises:
        PipelineError: the predictions do not fit the competition.
    """
    stages.run_through(run, "tune")
    return read_tuned(run)


def encode(run: Run, strict: bool = False) -> Path:
    """Returns the path of the submission, which has been checked. Runs earlier stages first.

    Args:
        run: the run that `bring` or `open_run` returned.
        strict: whether to raise if the verdict is *do not submit*. The submission is written in any case.

    Raises:
        PipelineError: the predictions do not fit the competition, or there are none for the test images.
    """
    stages.run_through(run, "encode")
    judged = judge(run)
    if strict and judged and judged.verdict == "do not submit":
        raise PipelineError(f"do not submit {shown(run.submission)}: {judged.reasons[0].text}")
    return run.submission


def _save(path: Path, array: np.ndarray, index: pd.DataFrame) -> str:
    with writing(path) as temporary, temporary.open("wb") as file:
        np.save(file, array)
    with writing(path.with_suffix(".csv")) as temporary:
        index.to_csv(temporary, index=False)
    return str(path)
