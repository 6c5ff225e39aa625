"""The project inside a bundle: the files of a run that predict and encode need, which can be laid out in any folder.

<bundle>/competition.yaml                         the competition
<bundle>/runs/<run>/recipe.yaml                   the resolved recipe (for an ensemble, also those of its runs)
                    postprocess.json, mask_statistics.npz
                    fold_<k>/<weights>.safetensors, fold.json
                    canary.npz                    images and the run's predictions for them
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from pipeline.core.config.raw_layouts import FOLDER as COMPETITIONS
from pipeline.core.config.raw_layouts import load_competition
from pipeline.core.config.settings import find_yaml, merge, read_yaml
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json, shown, write_json, write_text
from pipeline.core.intact import require_intact
from pipeline.core.other_runs import find_run, runs_of
from pipeline.core.recorded import write_recipe
from pipeline.core.results import read_tuned, searched_by
from pipeline.core.run import Run, open_run

UNNEEDED: dict[str, Any] = {"base": None, "quick": {}, "takes": None}
"""Settings of a recipe that prediction does not need, with the values that replace them."""
FAULT = "fault.json"
"""File in the root with the error message of a part of an inference."""
TOLERANT = {"decode": {"on_test_error": "blank"}}
"""Settings with which a broken image of the hidden test set affects only that image."""


def write_project(run: Run, folder: Path, convert: Callable[[Path, Path], None] | None = None) -> None:
    """Writes the files that are needed to predict with a run into a folder.

    Args:
        run: a tuned run; for an ensemble, the files of its runs are written too.
        folder: folder to write to.
        convert: function that converts weights from one file to another; None: weights are copied.

    Raises:
        PipelineError: weights or their fold.json are missing.
    """
    path = find_yaml(run.recipe.competition, COMPETITIONS, "competition")
    data = {"name": run.competition.name, **read_yaml(path)}
    if run.competition.metric_file:  # a bundle scores nothing, so the file of a published metric is not included
        data["metric"] = searched_by(read_tuned(run))
    if takes_any_size(run):
        data.pop("shape", None)
    write_text(folder / "competition.yaml", yaml.safe_dump(merge(data, TOLERANT), sort_keys=False))
    for bundled in {other.name: other for other in (run, *runs_of(run))}.values():
        target = folder / "runs" / bundled.name
        recipe = (
            bundled.recipe.model_dump(mode="json")
            | UNNEEDED
            | {"name": bundled.name, "competition": "../../competition.yaml"}
        )
        if bundled.recipe.trains:
            recipe["train"]["folds"] = bundled.trained_folds()
        write_text(target / "recipe.yaml", yaml.safe_dump(recipe, sort_keys=False))
        for file in (bundled.postprocess, bundled.mask_statistics):
            _copy(file, target / file.name)
        folds = dict.fromkeys([*bundled.trained_folds(), *bundled.test_folds()]) if bundled.recipe.trains else {}
        for member in (member for fold in folds for member in bundled.members(fold)):
            needed = bundled.weights(member) if member.fold in bundled.test_folds() else ()
            _write_member(bundled.fold_folder(member.fold, member.seed), target, needed, convert)


def takes_any_size(run: Run) -> bool:
    """Returns whether test images of other sizes than `shape` can be predicted.

    They cannot if the rows of a submission are class maps, whose number of columns is fixed, or if tune uses
    neighbouring images, which requires images of one size.
    """
    return run.competition.submission.format != "labels" and not run.recipe.tune.presence_neighbours


def _write_member(source: Path, target: Path, weights: tuple[Path, ...], convert: Any) -> None:
    folder = target / source.name
    _copy(source / "fold.json", folder / "fold.json")
    for path in weights:
        if convert is None:
            _copy(path, folder / path.name)
            continue
        convert(path, folder / path.name)
    if convert:
        from pipeline.core.freshness import hash_file

        summary = read_json(folder / "fold.json")
        write_json(folder / "fold.json", summary | {"sha256": [hash_file(folder / path.name) for path in weights]})


def _copy(source: Path, target: Path) -> None:
    if not source.exists():
        raise PipelineError(f"{shown(source)} does not exist: finish the run before you bundle it.")
    require_intact(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)


# --- laying it out ----------------------------------------------------------------------------------------------------


def lay_out(bundle: Path, name: str, root: Path) -> Run:
    """Lays a bundle out in a folder, and returns the run that makes the submission. Weights are linked, not copied.

    It sets PIPELINE_ROOT to that folder, for this process and the processes that it starts.

    Args:
        bundle: the folder with bundle.json.
        name: name of the run.
        root: an empty folder.
    """
    os.environ["PIPELINE_ROOT"] = str(root)
    shutil.copy2(bundle / "competition.yaml", root / "competition.yaml")
    competition = load_competition(str(root / "competition.yaml")).name
    for source in sorted((bundle / "runs").iterdir()):
        data = read_yaml(source / "recipe.yaml") | {"competition": "../competition.yaml"}
        write_text(root / "recipes" / f"{source.name}.yaml", yaml.safe_dump(data, sort_keys=False))
        for path in sorted(source.rglob("*")):
            target = root / "work" / competition / source.name / path.relative_to(source)
            if path.is_dir() or path.name in ("recipe.yaml", "canary.npz"):
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".safetensors":
                target.symlink_to(path.resolve())
            else:
                shutil.copyfile(path, target)
        write_recipe(opened(source.name, root))
    return opened(name, root)


def opened(name: str, root: Path) -> Run:
    """Returns a run from a folder in which a bundle was laid out."""
    return open_run(str(root / "recipes" / f"{name}.yaml"))


def change(run: Run, **sections: dict[str, Any]) -> None:
    """Changes settings of a run that was laid out, for example train={"folds": [0]}.

    A new test-time augmentation is also written to postprocess.json, as if tune had chosen it.
    """
    path = run.competition_folder.parents[1] / "recipes" / f"{run.name}.yaml"
    write_text(path, yaml.safe_dump(merge(read_yaml(path), sections), sort_keys=False))
    views = sections.get("predict", {}).get("tta")
    if views and run.postprocess.exists():
        tuned = json.loads(run.postprocess.read_text(encoding="utf-8"))
        if isinstance(tuned.get("tta"), dict):
            write_json(run.postprocess, tuned | {"tta": tuned["tta"] | {"views": views}})
    write_recipe(opened(run.name, path.parents[1]))


def predicting(run: Run) -> list[Run]:
    """Returns the runs whose models predict: the run itself, or those of its ensemble."""
    return [replace(find_run(run, name, "ensemble")) for name in run.recipe.ensemble] if run.recipe.ensemble else [run]
