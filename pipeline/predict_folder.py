"""Predicts a folder of images outside the competition, with the models and the decision rule of a finished run.

    python -m pipeline predict RECIPE --images FOLDER [--to OUT] [--masks png]

reads   FOLDER; work/<competition>/<run>/fold_<k>/last.safetensors, fold.json, postprocess.json
writes  OUT: a CSV in the format of the competition's submissions, or PNG masks: one per image with 0 and 255
        (multilabel: one per image and class; multiclass: one per image with the class numbers)

It calls the same functions as for the test images, in a temporary folder: the run's own files do not change.
"""

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from pipeline.core.config.competition import Competition
from pipeline.core.config.raw_files import names_in
from pipeline.core.config.raw_layouts import RleCsv
from pipeline.core.config.submission_settings import SubmissionSettings
from pipeline.core.console import loading_torch, progress_bar, say, track
from pipeline.core.errors import PipelineError
from pipeline.core.files import new_array, require_space, shown, writing
from pipeline.core.other_runs import runs_of
from pipeline.core.results import read_tuned
from pipeline.core.run import Member, Run
from pipeline.core.run_checks import to_finish
from pipeline.decode import table
from pipeline.decode.readers.files import SUFFIXES, natural, read_image
from pipeline.decode.readers.names import find_images
from pipeline.encode import submission
from pipeline.masks.decision import decision_of
from pipeline.masks.geometry import geometry_of, image_to_network, masks_at
from pipeline.predictions import blends, kept_views
from pipeline.predictions.steps import prediction_step

Masks = Literal["csv", "png"]


@dataclass(frozen=True)
class FolderRun(Run):
    """A run with other test images: it reads the weights and decisions of the run, and writes to a temporary folder."""

    scratch: Path = Path()

    @property
    def pixels(self) -> Path:
        """The array of the images at network size."""
        return self.scratch / super().pixels.name

    @property
    def test_table(self) -> Path:
        """One row per image: image_id, subset, height, width."""
        return self.scratch / "test_images.parquet"

    def predictions(
        self, subset: Literal["oof", "test"], fold: int | None, seed: int | None = None, plain: bool = False
    ) -> Path:
        """Probabilities of the images."""
        return self.scratch / self.name / super().predictions(subset, fold, seed, plain).name


def predict_folder(run: Run, folder: Path, target: Path | None = None, masks: Masks = "csv") -> Path:
    """Writes the predictions of every image under a folder, and returns the path of the CSV or of the folder of masks.

    Args:
        run: a finished run.
        folder: folder of image files of any size. An image's id is built from its path by the setting `train.id`, if
            that is set and the files are laid out like the training images; otherwise it is the path within the folder
            without the file's suffix.
        target: path to write; by default <folder>-<run>.csv or <folder>-<run>/ in the working directory.
        masks: output format.

    Raises:
        PipelineError: there is no image, an image cannot be read or has another type than the training images, the run
            is not finished or has no models, or `target` exists.
    """
    target = target or Path.cwd() / f"{folder.resolve().name}-{run.name}{'.csv' if masks == 'csv' else ''}"
    if target.exists():
        raise PipelineError(f"{target} exists already; give another path with --to.")
    if not run.postprocess.exists():
        raise PipelineError(f"{shown(run.postprocess)} does not exist; {to_finish(run)}.")
    if not run.competition.images_are_files:
        raise PipelineError(
            f"{folder}: only images that are one file each can be predicted from a folder. The images of competition "
            f"{run.competition.name} consist of several files, slices or windows: put them into its test set, and run "
            f"`{run.command('--from', 'decode')}`."
        )
    read_tuned(run)  # a damaged postprocess.json is reported before the long prediction
    with tempfile.TemporaryDirectory() as scratch:
        sample = {"sample_submission": None, "submission": _table_of(run.competition)}
        elsewhere = FolderRun(**{field.name: getattr(run, field.name) for field in fields(run)}, scratch=Path(scratch))
        tune = run.recipe.tune.model_copy(update={"presence_neighbours": False})  # the images are not frames of a video
        elsewhere = replace(
            elsewhere,
            recipe=run.recipe.model_copy(update={"tune": tune}),
            competition=run.competition.model_copy(update=sample),
        )
        ids = _decode(elsewhere, _images_in(folder, run.competition))
        _predict(elsewhere, ids)
        _write(elsewhere, target, masks)
    say(f"  {len(ids)} images → {target}")
    return target


def _table_of(competition: Competition) -> SubmissionSettings:
    """The submission format to use: the competition's, without columns that are not known for other images. Where the
    competition asks for images or JSON, a CSV with the columns id, class (if there are several) and rle."""
    settings = competition.submission
    if settings.format == "images" or settings.file == "json":
        label = "class" if len(competition.foreground) > 1 else None
        return SubmissionSettings(label=label, size=settings.size, resize=settings.resize)
    return settings.model_copy(update={"columns": {}})


def _images_in(folder: Path, competition: Competition) -> dict[str, Path]:
    """The image files under a folder by id, in natural order.

    If all files are laid out like the training images (outer folders may be missing), `train.id` builds the ids;
    otherwise an id is the file's path.
    """
    found: dict[str, Path] = {}
    paths = [path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]
    if isinstance(competition, RleCsv) and competition.train.id:
        train, pieces = competition.train, competition.train.images.split("/")
        for start in range(len(pieces)):
            tail = "/".join(pieces[start:])
            if not set(names_in(str(train.id))) <= set(names_in(tail)):
                break
            named = find_images(tail, folder, train.exclude, train.id)
            if named.paths and {*named.paths.values()} == {*paths} and not named.further:
                return {image_id: named.paths[image_id] for image_id in sorted(named.paths, key=natural)}
    for path in sorted(paths, key=lambda path: natural(path.as_posix())):
        image_id = path.relative_to(folder).with_suffix("").as_posix()
        if found.setdefault(image_id, path) != path:
            raise PipelineError(f"{path} and {found[image_id].name} have the same id, {image_id}: rename one of them.")
    if not found:
        raise PipelineError(f"{folder} holds no image; expected files that end in {', '.join(SUFFIXES)}.")
    return found


def _decode(run: FolderRun, paths: dict[str, Path]) -> list[str]:
    """Writes the table of images and one pixel array per network size, and returns the ids."""
    rows, arrays = [], {}
    for number, (image_id, path) in enumerate(track(paths.items(), "decode", len(paths))):
        try:
            image = read_image(path, **run.competition.reading)
        except ValueError as error:
            raise PipelineError(f"{path}: {error}.") from None
        rows.append({"image_id": image_id, "subset": "test", "height": image.shape[0], "width": image.shape[1]})
        for other in runs_of(run):
            geometry = geometry_of(other.recipe.image)
            fitted = image_to_network(image, geometry)
            if other.pixels not in arrays:
                other.pixels.mkdir(parents=True, exist_ok=True)
                file, shape = other.pixels / "test_images.npy", (len(paths), *fitted.shape)
                require_space(other.pixels, math.prod(shape) * fitted.itemsize, f"the arrays of {len(paths)} images")
                arrays[other.pixels] = new_array(file, shape, fitted.dtype)
            array = arrays[other.pixels]
            if array.dtype != fitted.dtype:
                raise PipelineError(
                    f"{path} has dtype {fitted.dtype}, but the first image has {array.dtype}: convert one of them."
                )
            array[number] = fitted
    for array in arrays.values():
        array.flush()
    table.write_table(run.test_table, rows)
    return list(paths)


def _predict(run: FolderRun, ids: list[str]) -> None:
    with loading_torch():
        from pipeline.networks.predictor import Wanted, predict_step

    for other in runs_of(run):
        views = other.recipe.predict.tta
        if not other.recipe.trains or (views != "none" and kept_views.decided_views(other) is None):
            raise PipelineError(
                f"{other.name} has no models, or tune has not yet decided on predict.tta={views}: finish the run first."
            )
        with progress_bar() as bar:
            task = bar.add_task("predict", total=len(ids) * len(other.test_folds()))
            advance = partial(bar.advance, task)
            for fold in other.test_folds():
                members, path = other.members(fold), other.predictions("test", fold)
                title = f"predict {Member(fold, 0).title}"
                step = prediction_step(other, "predict", title, "test", members, [path], kept_views.views_of(other))
                predict_step(other, Wanted(step, members, "test", np.arange(len(ids)), ids), advance)


def _write(run: FolderRun, target: Path, masks: Masks) -> None:
    """Applies the run's decision rule to every image, as encode does, and writes the masks."""
    result, images = read_tuned(run), table.read_table(run.test_table)
    blend, decision = blends.test(run, result), decision_of(result)
    want = submission.expected(run.competition, run.input, run.scratch)
    if masks == "csv" and want.settings.format == "labels" and len(images[["height", "width"]].drop_duplicates()) > 1:
        raise PipelineError("A CSV with one column per pixel needs images of one size; write PNG masks: --masks png.")
    texts: submission.Texts = {}
    with writing(target) as temporary:
        write = _png_writer(run, temporary)
        for row, image in enumerate(images.itertuples()):
            shape = (int(image.height), int(image.width))
            scored = run.competition.scored_shape(shape)
            planes = blend.objects(row, blend.native(row, scored), decision)
            if masks == "png":
                planes = masks_at((planes > 0).view(np.uint8), shape, "nearest", run.competition.kind == "multiclass")
                write(str(image.image_id), planes)
            else:
                texts |= submission.texts_of(str(image.image_id), planes, want)
        if masks == "csv":
            submission.write(temporary, texts, replace(want, file="csv"))


def _png_writer(run: Run, folder: Path) -> Callable[[str, np.ndarray], None]:
    """A function that writes the masks (C, H, W) of an image into a folder."""
    classes, multiclass = run.competition.classes, run.competition.kind == "multiclass"

    def write(image_id: str, planes: np.ndarray) -> None:
        pictures = {"": planes[0] * np.uint8(255)}
        if multiclass:
            pictures = {"": planes.argmax(0).astype(np.uint8)}
        elif len(classes) > 1:
            pictures = {
                f".{name.replace('/', '_')}": plane * np.uint8(255) for name, plane in zip(classes, planes, strict=True)
            }
        for suffix, picture in pictures.items():
            path = folder / f"{image_id}{suffix}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(cv2.imencode(".png", picture)[1].tobytes())

    return write
