"""The small project that a bundle carries: what predict and encode need of a run, laid out anew in any folder.

<bundle>/competition.yaml                         the competition
<bundle>/runs/<run>/recipe.yaml                   the resolved recipe, of an ensemble each run's
                    postprocess.json, mask_statistics.npz
                    fold_<k>/<weights>.safetensors, fold.json
                    canary.npz                    images and what the run predicts of them
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
"""Settings of a recipe that say how it was written and trained."""
FAULT = "fault.json"
"""Where a part of an inference says, in the root, why it failed."""
TOLERANT = {"decode": {"on_test_error": "blank"}}
"""A broken image of the hidden test set costs that image alone."""


def write_project(run: Run, folder: Path, convert: Callable[[Path, Path], None] | None = None) -> None:
    """Writes what predicting with a run needs into a folder.

    Args:
        run: a run whose tune is done; of an ensemble, what its runs need is written too.
        folder: where.
        convert: writes weights, from and to a file, instead of copying them.

    Raises:
        PipelineError: weights, or what training says of them, are missing.
    """
    path = find_yaml(run.recipe.competition, COMPETITIONS, "competition")
    data = {"name": run.competition.name, **read_yaml(path)}
    if run.competition.metric_file:  # nothing is scored there, and the file of a published metric does not travel
        data["metric"] = searched_by(read_tuned(run))
    if takes_any_size(run):
        data.pop("shape", None)
    write_text(folder / "competition.yaml", yaml.safe_dump(merge(data, TOLERANT), sort_keys=False))
    for one in {other.name: other for other in (run, *runs_of(run))}.values():
        target = folder / "runs" / one.name
        recipe = (
            one.recipe.model_dump(mode="json") | UNNEEDED | {"name": one.name, "competition": "../../competition.yaml"}
        )
        if one.recipe.trains:
            recipe["train"]["folds"] = one.trained_folds()
        write_text(target / "recipe.yaml", yaml.safe_dump(recipe, sort_keys=False))
        for file in (one.postprocess, one.mask_statistics):
            _copy(file, target / file.name)
        folds = dict.fromkeys([*one.trained_folds(), *one.test_folds()]) if one.recipe.trains else {}
        for member in (member for fold in folds for member in one.members(fold)):
            needed = one.weights(member) if member.fold in one.test_folds() else ()
            _write_member(one.fold_folder(member.fold, member.seed), target, needed, convert)


def takes_any_size(run: Run) -> bool:
    """Returns whether test images of another size than `shape` are predicted as they are, and not left out: unless rows
    are class maps, which have so many columns, or near-duplicates are compared, which depends on it."""
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
        raise PipelineError(f"{shown(source)} does not exist: finish the run before it is bundled.")
    require_intact(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)


# --- laid out ---------------------------------------------------------------------------------------------------------


def lay_out(bundle: Path, name: str, root: Path) -> Run:
    """Returns a run of a bundle, in a root that is made of it: weights are linked, all else is copied.

    PIPELINE_ROOT of this process and of those it starts is that root from here on.

    Args:
        bundle: the folder with bundle.json.
        name: the run that makes the submission.
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
    """Returns a run that was laid out."""
    return open_run(str(root / "recipes" / f"{name}.yaml"))


def change(run: Run, **sections: dict[str, Any]) -> None:
    """Changes settings of a run that was laid out, e.g. train={"folds": [0]}; other test-time augmentation counts as
    what tune decided on."""
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
