"""Writes the kept models of a run as ONNX graphs, for use outside this project.

    python -m pipeline export RECIPE [--to FOLDER] [--format onnx]

reads   work/<competition>/<run>/fold_<k>/last.safetensors, fold.json, postprocess.json; the dtype of the pixel arrays
writes  FOLDER/fold_<k>.onnx, one per model; model.json (what goes in and comes out, and what is not in the graph);
        check.npz (two images of noise with their probabilities); predict.py (an example with onnxruntime and numpy)
"""

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core import freshness
from pipeline.core.console import loading_torch, track
from pipeline.core.errors import PipelineError
from pipeline.core.files import remove, require_space, shown, write_json, writing
from pipeline.core.results import read_tuned
from pipeline.core.run import Member, Run
from pipeline.core.run_checks import to_finish
from pipeline.core.trainings import Weights, read_training
from pipeline.core.version import VERSION
from pipeline.predictions import kept_views

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
INSTALL = "pip install 'onnx>=1.19' 'onnxscript>=0.5' 'onnxruntime>=1.22', or, in a clone, pip install '.[onnx]'"
VIEWS = {
    "hflip": "the image mirrored left to right",
    "flips": "the image mirrored left to right, top to bottom, and both",
    "d4": "the image mirrored left to right, top to bottom, and both, and all four with rows and columns exchanged",
}
"""The views of each setting of test-time augmentation, besides the image itself."""
LARGEST = {"uint8": "0 to 255", "int32": "0 to 65535", "float32": "0 to 1"}
"""The range of the values of each dtype of pixels."""
EXAMPLE = Path(__file__).with_name("example.py")


def export(run: Run, target: Path | None = None) -> Path:
    """Writes the models of a finished run into a new folder, and returns the folder.

    Args:
        run: the run.
        target: the folder; by default <run>-onnx in the working directory.

    Raises:
        PipelineError: the run has no models of its own or is not finished, a package is missing, the folder exists, or
            a graph does not give the probabilities of torch.
    """
    target = target or Path.cwd() / f"{run.name}-onnx"
    _check(run, target)
    members = [member for fold in run.test_folds() for member in run.members(fold)]
    weights = [(member, path) for member in members for path in run.weights(member)]
    result = read_tuned(run)
    if missing := next((path for _, path in weights if not path.exists()), None):
        raise PipelineError(f"{shown(missing)} does not exist; {to_finish(run)}.")
    require_space(target.parent, sum(path.stat().st_size for _, path in weights), "the ONNX files", "network")
    with writing(target) as folder:
        remove(folder)  # of an interrupted attempt
        folder.mkdir()
        models = _write_models(run, weights, folder)
        write_json(folder / "model.json", described(run, result, models))
        shutil.copyfile(EXAMPLE, folder / "predict.py")
    return target


def lines(run: Run, folder: Path) -> list[str]:
    """Returns what is printed after an export."""
    count = len(list(folder.glob("*.onnx")))
    models = f"{count} model{'s' * (count != 1)} of {run.name}, compared with torch"
    return [f"{models} → {shown(folder)}", "not in the graph:", *(f"  {part}" for part in left_out(run))]


def _check(run: Run, target: Path) -> None:
    if not run.recipe.trains:
        runs = f": export its runs, {', '.join(run.recipe.ensemble)}" if run.recipe.ensemble else ""
        raise PipelineError(f"{run.name} has no models of its own{runs}.")
    if target.exists():
        raise PipelineError(f"{target} exists already; give another folder with --to.")
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise PipelineError(f"export needs {', '.join(missing)}: {INSTALL}.")
    if not run.postprocess.exists():
        raise PipelineError(f"{shown(run.postprocess)} does not exist; {to_finish(run)}.")


def _write_models(run: Run, weights: list[tuple[Member, Path]], folder: Path) -> list[dict[str, Any]]:
    """Writes one graph per file of weights, and check.npz; returns a description of each graph."""
    with loading_torch():
        from pipeline.export.graph import Probabilities, noise, write
        from pipeline.networks.predictor import trained

    models, outputs, dtype = [], [], dtype_of(run, weights[0][1])
    pixels = noise(dtype, _shape(run))
    multiclass, never = run.competition.kind == "multiclass", run.never
    for member, path in track(weights, "export", len(weights)):
        module = Probabilities(trained(run, path, dtype), multiclass, never, run.planes)
        file = f"{path.parent.name}{'' if path.stem in ('last', 'best', 'average') else '_' + path.stem}.onnx"
        outputs.append(write(module, pixels, folder / file))
        digest = freshness.hash_file(folder / file)
        of_member = {"file": file, "fold": member.fold, "seed": member.seed}
        models.append(of_member | {"dtype": str(pixels.numpy().dtype), "sha256": digest})
    means = [np.mean(values, axis=0) for values in zip(*outputs, strict=True)]
    np.savez(folder / "check.npz", pixels=pixels.numpy(), **dict(zip(("probability", "presence"), means, strict=False)))
    return models


def dtype_of(run: Run, weights: Path) -> np.dtype:
    """Returns the dtype of the images on which weights were trained."""
    recorded = read_training(weights.with_name("fold.json"), Weights).get("pixels", {})
    return np.dtype(recorded.get("type", "uint8"))


def _shape(run: Run) -> tuple[int, int, int]:
    """Returns channels, rows and columns of the graph's input."""
    image = run.recipe.image
    rows, columns = (min(pair) for pair in zip(image.size, image.stored, strict=True))
    return image.channels, rows, columns


# --- model.json ------------------------------------------------------------------------------------------------------


def described(run: Run, result: dict[str, Any], models: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the content of model.json.

    Args:
        run: the run.
        result: the content of postprocess.json.
        models: the graphs.
    """
    image, competition = run.recipe.image, run.competition
    decision = {key: result[key] for key in ("rules", "bias", "never") if key in result}
    of_decision = "probabilities in 255ths" if "rules" in result else "probability · exp(bias)"
    channels, rows, columns = _shape(run)
    outputs: dict[str, Any] = {"probability": ["images", run.planes, rows, columns]}
    if run.recipe.model.presence:
        outputs["presence"] = ["images", len(competition.classes)]
    return {
        "format": 1,
        "version": VERSION,
        "run": run.name,
        "competition": competition.name,
        "models": models,
        "combine": "the mean of the probabilities of all models",
        "input": {"pixels": ["images", channels, rows, columns], "dtype": models[0]["dtype"]},
        "outputs": outputs,
        "classes": list(competition.classes),
        "kind": competition.kind,
        "preprocess": preprocessing(run, models[0]["dtype"]),
        "image": image.model_dump(mode="json"),
        "decision": {"unit": f"{of_decision}, at the image's own size"} | decision,
        "expected": {key: result.get(key) for key in ("metric", "nested", "nested_interval_95")},
        "not_in_the_graph": left_out(run),
    }


def preprocessing(run: Run, dtype: str = "uint8") -> list[str]:
    """Returns what must be done to an image before it is given to the graph, in sentences.

    Args:
        run: the run.
        dtype: the dtype of the graph's input.
    """
    image = run.recipe.image
    rows, columns = image.stored
    steps = _reading(run, dtype)
    if image.fit == "stretch":
        how = "by area averaging if it becomes smaller, linearly otherwise (OpenCV's INTER_AREA and INTER_LINEAR)"
        steps.append(f"Resize it to {rows} × {columns} pixels (rows × columns), {how}.")
    else:
        border = "mirrored (OpenCV's BORDER_REFLECT_101)" if image.border == "reflect" else "0"
        steps.append(f"Centre it in {rows} × {columns} pixels (rows × columns), in a border that is {border}.")
    if image.preprocess:
        steps.append("Apply the transforms of `image.preprocess`, as albumentations defines them.")
    if image.stored != image.size:
        steps.append(f"Cut it into tiles of {image.size[0]} × {image.size[1]} pixels.")
    return [*steps, "Arrange the axes as images, channels, rows, columns."]


def _reading(run: Run, dtype: str) -> list[str]:
    """Returns how the files of an image are read, in sentences."""
    count, competition, reading = run.recipe.image.channels, run.competition, run.competition.reading
    kind = {1: "grey", 3: "RGB"}.get(count, f"{count} channels")
    limits = reading.get("value_range")
    scaling = "" if limits else ", without scaling its values: normalisation is part of the graph"
    steps = [f"Read the image as {kind}{scaling}."]
    if not competition.images_are_files:
        steps[0] += " It consists of several files, slices or windows, as the competition's YAML says."
    if reading.get("pick"):
        steps.append(f"Keep its channels {', '.join(map(str, reading['pick']))}, counted from 0.")
    if competition.reads_upright:
        steps.append("Turn it upright if its EXIF orientation says so.")
    if limits:
        of_channels = "of each channel " if isinstance(limits, list) else ""
        steps.append(
            f"Clip its values to the range {of_channels}{_listed(limits)}, and scale this range to {LARGEST[dtype]}. "
            "All further normalisation is part of the graph."
        )
    return steps


def _listed(limits: Any) -> str:
    """Returns the lowest and the highest value, or one such pair per channel, as a text."""
    pairs = limits if isinstance(limits, list) else [limits]
    return ", ".join(f"[{low:g}, {high:g}]" for low, high in pairs)


def left_out(run: Run) -> list[str]:
    """Returns the parts of the run's prediction that are not in the graph, in sentences."""
    parts = [
        "Reading and fitting the image to the network's size, and the way back to its own size: see `preprocess`.",
        "The mean over the models: see `combine`.",
        "From probabilities to masks: thresholds and rules of `decision` (pipeline/masks/decision.py applies them).",
    ]
    if (views := kept_views.views_of(run)) != "none":
        parts.append(
            f"Test-time augmentation ({views}): also predict {VIEWS[views]}, undo this in the predictions, and average."
        )
        rows, columns = run.recipe.image.size
        if views == "d4" and rows != columns:
            parts.append(
                f"A graph for images of {columns} × {rows} pixels, which views with exchanged axes would need."
            )
    if run.recipe.image.stored != run.recipe.image.size:
        parts.append(
            f"Tiles: neighbouring tiles overlap by {100 * run.recipe.predict.overlap:.0f} % of a side and are blended."
        )
    if run.recipe.model.separates:
        parts.append("Separating touching objects: the last planes of `probability` are the separators.")
    return parts
