"""nnU-Net v2 on our folds for a given time, and our `tune` on its out-of-fold predictions.

nnU-Net is installed in its own environment (`pip install nnunetv2`, here 2.8.1), which has the commands nnUNetv2_…:

    export nnUNet_raw=nnunet/raw nnUNet_preprocessed=nnunet/preprocessed nnUNet_results=nnunet/results
    export nnUNet_extTrainer=benchmarks/nnunet_trainers
    python -m pipeline run tgs-salt --to split
    python -m benchmarks.nnunet export tgs-salt $nnUNet_raw --dataset 501
    nnUNetv2_plan_and_preprocess -d 501 -c 2d --verify_dataset_integrity
    nnUNetv2_train 501 2d 0 -tr nnUNetTrainer_20minutes --npz
    trained=$nnUNet_results/Dataset501_TgsSalt/nnUNetTrainer_20minutes__nnUNetPlans__2d
    python -m benchmarks.nnunet collect tgs-salt $trained nnunet/oof.npy --folds 0
    python -m pipeline tune nnunet --competition tgs-salt --oof nnunet/oof.npy
    python -m pipeline run tgs-salt --set model.weights=none --set 'train.folds=[0]' --time 20m
    python -m pipeline compare nnunet tgs-salt-20m

work/tgs-salt/nnunet/postprocess.json then has the untuned, tuned and nested scores of its predictions. The line with
`tune` can be a recipe too: `{competition: tgs-salt, arrays: {oof: nnunet/oof.npy}}` (docs/bring-your-own.md).

nnUNetTrainer_<number>minutes (benchmarks/nnunet_trainers/minutes.py) ends after that time on any device. On a CPU, add
`-device cpu` to nnUNetv2_train, and set OMP_NUM_THREADS to the number of threads, nnUNet_def_n_proc=1 and, for training
alone, nnUNet_n_proc_DA=0, which augments in the same process. nnU-Net plans for 8 GB of GPU memory, here 130 images per
batch; `-gpu_memory_target 0.5 -overwrite_plans_name nnUNetPlans_halfGB` plans 17, and `-p nnUNetPlans_halfGB` trains
so. For a quick test, `--limit 8` exports and collects eight images of each fold.

export   reads   work/<competition>/images.parquet, folds/<competition>.csv, the raw images
         writes  NNUNET_RAW/Dataset<number>_<Competition>/ {imagesTr, labelsTr, imagesTs, dataset.json}: images with the
                 recipe's channels and at their own size, labels from the table's masks
                 nnUNet_preprocessed/Dataset<number>_<Competition>/splits_final.json
collect  reads   RESULTS/fold_<k>/validation/<id>.npz, which --npz leaves
         writes  OUT.npy (N, H, W), or (N, classes, H, W) of a multiclass competition, float32; OUT.csv: image_id, fold

A fold trains on the images that our recipe trains on, with their own masks. It is validated on all images that it holds
out, including the dropped ones, which are in no training list. Pixels that are not scored have nnU-Net's label
`ignore`.
"""

import argparse
import os
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from pipeline.core.config.competition import Competition
from pipeline.core.console import console, track
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json, shown, write_json, writing
from pipeline.core.run import Run, open_run
from pipeline.decode.readers.registry import reader_of
from pipeline.decode.table import read_table, true_labels, true_mask
from pipeline.masks.geometry import IGNORE, Geometry, image_to_network, to_native
from pipeline.split.folds import read_folds
from pipeline.train.stage import rows_of

AUTHOR = "benchmarks/nnunet.py"
PREPROCESSED = "nnUNet_preprocessed"
"""The environment variable of nnU-Net."""


def main() -> None:
    """Runs `export` or `collect`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    export_parser = commands.add_parser("export", help="write nnU-Net's raw dataset and our folds")
    export_parser.add_argument("recipe")
    export_parser.add_argument("raw", type=Path, help="the folder nnUNet_raw")
    export_parser.add_argument("--dataset", type=int, default=501, help="nnU-Net's number of it")
    export_parser.add_argument(
        "--preprocessed", type=Path, default=os.environ.get(PREPROCESSED), help=f"default: ${PREPROCESSED}"
    )
    collect_parser = commands.add_parser("collect", help="write its predictions as tune reads them")
    collect_parser.add_argument("recipe")
    collect_parser.add_argument("results", type=Path, help="nnU-Net's folder that holds fold_0, fold_1, …")
    collect_parser.add_argument("out", type=Path, help="a .npy")
    collect_parser.add_argument("--folds", type=int, nargs="+", help="default: all")
    for one in (export_parser, collect_parser):
        one.add_argument("--limit", type=int, help="only so many images of each fold")
    options = parser.parse_args()
    try:
        run = open_run(options.recipe)
        if options.command == "collect":
            collect(run, options.results, options.out, options.folds, options.limit)
        elif options.preprocessed is None:
            raise PipelineError(f"{PREPROCESSED} is not set: set it as nnU-Net's commands need it, or --preprocessed.")
        else:
            export(run, options.raw, options.preprocessed, options.dataset, options.limit)
    except PipelineError as error:
        parser.exit(2, f"{error}\n")


# --- export ----------------------------------------------------------------------------------------------------------


def export(run: Run, raw: Path, preprocessed: Path, dataset: int, limit: int | None = None) -> Path:
    """Writes nnU-Net's raw dataset atomically, then our folds, and returns the folder of the dataset.

    Args:
        run: its competition has been decoded and split.
        raw: the folder nnUNet_raw.
        preprocessed: the folder nnUNet_preprocessed.
        dataset: nnU-Net's number of the dataset, 1 to 999.
        limit: how many images of each fold, and of the test set; None: all.

    Raises:
        PipelineError: a multilabel competition, no table or no folds yet, an id that is not a valid file name,
            a number out of range, or an existing folder that this export did not write.
    """
    competition, images = run.competition, held_out(run, limit)
    if not 1 <= dataset <= 999:
        raise PipelineError(f"--dataset is {dataset}; expected a number from 1 to 999.")
    name = f"Dataset{dataset:03}_{''.join(part.capitalize() for part in re.split('[^A-Za-z0-9]+', competition.name))}"
    test = read_table(run.test_table)[:limit]
    _check_names([*images["image_id"], *test["image_id"]])
    _check_own(raw / name)
    splits = our_splits(run, images)
    with writing(raw / name) as temporary:
        shutil.rmtree(temporary, ignore_errors=True)  # leftovers of a killed export
        _write_images(run, images, temporary / "imagesTr")
        _write_images(run, test, temporary / "imagesTs")
        ignores = _write_labels(competition, images, temporary / "labelsTr")
        write_json(temporary / "dataset.json", describe(run, len(images), ignores))
        shutil.rmtree(raw / name, ignore_errors=True)
    write_json(preprocessed / name / "splits_final.json", splits)
    sizes = ", ".join(f"{len(split['train'])} + {len(split['val'])}" for split in splits)
    console.print(f"{len(images)} training and {len(test)} test images → {raw / name}; training + held out: {sizes}")
    return raw / name


def held_out(run: Run, limit: int | None = None) -> pd.DataFrame:
    """Returns the training images with their fold, in the table's order, or the first `limit` of each fold.

    Raises:
        PipelineError: a multilabel competition, or one that has not been decoded or split, or an invalid limit.
    """
    if run.competition.kind == "multilabel":
        raise PipelineError(
            f"{run.competition.name} is multilabel, and nnU-Net's labels exclude each other; expected a binary or "
            "multiclass competition."
        )
    for path in (run.table, run.folds_file):
        if not path.exists():
            raise PipelineError(f"{shown(path)} does not exist; run `python -m pipeline run RECIPE --to split` first.")
    if limit is not None and limit < 1:
        raise PipelineError(f"--limit is {limit}; expected a number from 1.")
    images = read_table(run.table, "train").assign(fold=read_folds(run)["fold"])
    return images if limit is None else images.groupby("fold").head(limit).reset_index(drop=True)


def our_splits(run: Run, images: pd.DataFrame) -> list[dict[str, list[str]]]:
    """Returns nnU-Net's splits of these images, one per fold: the ids that it trains on and those that it holds out."""
    ids, splits = read_table(run.table, "train")["image_id"], []
    for fold in range(read_folds(run)["fold"].max() + 1):
        chosen = rows_of(run, fold)
        own_mask = ids.iloc[np.setdiff1d(chosen.train, list(chosen.targets))]
        train, valid = images["image_id"].isin(own_mask), images["fold"] == fold
        splits.append({"train": images["image_id"][train].tolist(), "val": images["image_id"][valid].tolist()})
    return splits


def labels_of(row: Any, competition: Competition) -> np.ndarray:
    """Returns an image's labels (height, width) uint8 as nnU-Net has them: 0 is background, 1, 2, … are the classes,
    and one more than the last are the pixels that count nowhere."""
    masks = true_mask(row, competition.classes)
    labels = true_labels(masks) if competition.kind == "multiclass" else masks[0]
    if competition.ignored is not None:  # our losses ignore this class
        labels = np.where(labels == competition.ignored, IGNORE, labels)
    return np.where(labels == IGNORE, len(_class_labels(competition)), labels).astype(np.uint8)


def describe(run: Run, count: int, ignores: bool) -> dict[str, Any]:
    """Returns nnU-Net's dataset.json; `ignores` says whether some pixels have the label `ignore`."""
    labels = _class_labels(run.competition)
    channels = {1: ("grey",), 3: ("red", "green", "blue"), 4: ("red", "green", "blue", "alpha")}
    return {
        "channel_names": {str(number): name for number, name in enumerate(channels[run.recipe.image.channels])},
        "labels": labels | ({"ignore": len(labels)} if ignores else {}),
        "numTraining": count,
        "file_ending": ".png",
        "overwrite_image_reader_writer": "NaturalImage2DIO",
        "converted_by": AUTHOR,
    }


def _class_labels(competition: Competition) -> dict[str, int]:
    """Returns nnU-Net's labels by name: the first must be called `background`, and no class `ignore`."""
    others = competition.classes[1:] if competition.kind == "multiclass" else competition.classes
    names = [f"class {name}" if name in ("background", "ignore") else name for name in others]
    return {"background": 0} | {name: number for number, name in enumerate(names, start=1)}


def _write_images(run: Run, images: pd.DataFrame, folder: Path) -> None:
    folder.mkdir(parents=True)
    listing = reader_of(run.competition).list_items(run.competition, run.input)
    items = {item.image_id: item for item in listing.items}
    for image_id in track(images["image_id"], folder.name, len(images)):
        image = items[image_id].read_image()
        own = Geometry(image.shape[:2], "stretch", run.recipe.image.channels)
        _write_png(folder / f"{image_id}_0000.png", image_to_network(image, own))


def _write_labels(competition: Competition, images: pd.DataFrame, folder: Path) -> bool:
    """Writes the labels and returns whether pixels are ignored."""
    folder.mkdir()
    highest = 0
    for row in track(images.to_dict("records"), folder.name, len(images)):
        labels = labels_of(row, competition)
        highest = max(highest, int(labels.max()))
        _write_png(folder / f"{row['image_id']}.png", labels)
    return highest == len(_class_labels(competition))


def _write_png(path: Path, image: np.ndarray) -> None:
    """Writes an image (h, w), or (h, w, C) whose first three channels are red, green and blue."""
    if image.ndim == 3 and image.shape[2] > 1:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR if image.shape[2] == 3 else cv2.COLOR_RGBA2BGRA)
    path.write_bytes(cv2.imencode(".png", image)[1].tobytes())


def _check_names(image_ids: list[str]) -> None:
    bad = [image_id for image_id in image_ids if Path(image_id).name != image_id]
    if bad:
        raise PipelineError(f"image id {bad[0]!r} is no plain file name, and nnU-Net names its files by it; rename it.")


def _check_own(folder: Path) -> None:
    described = folder / "dataset.json"
    own = described.exists() and read_json(described).get("converted_by") == AUTHOR
    if folder.exists() and not own:
        raise PipelineError(f"{folder} was not made by this script; remove it, or take another --dataset.")


# --- collect ---------------------------------------------------------------------------------------------------------


def collect(run: Run, results: Path, out: Path, folds: list[int] | None = None, limit: int | None = None) -> Path:
    """Returns the .npy of nnU-Net's out-of-fold probabilities, in the table's order; ids and folds are beside it.

    They have the images' own size if all images have one size, else they are stretched to the recipe's image.size.

    Args:
        run: the run that was exported.
        results: nnU-Net's folder that holds fold_0, fold_1, …
        out: where to write it.
        folds: those that nnU-Net trained; None: all.
        limit: as it was exported.

    Raises:
        PipelineError: a prediction is missing, unreadable or of another shape, or a fold does not exist.
    """
    if out.suffix != ".npy":
        raise PipelineError(f"{out}: expected the path of a .npy.")
    images = held_out(run, limit)
    known = sorted(set(images["fold"]))
    if not set(folds or known) <= set(known):
        raise PipelineError(f"--folds is {folds}; expected some of {', '.join(map(str, known))}.")
    images = images[images["fold"].isin(folds or known)].reset_index(drop=True)
    files = [results / f"fold_{row.fold}" / "validation" / f"{row.image_id}.npz" for row in images.itertuples()]
    _check_there(files)
    sizes = set(zip(images["height"], images["width"], strict=True))
    size = sizes.pop() if len(sizes) == 1 else run.recipe.image.size
    planes = (len(run.competition.classes),) if run.competition.kind == "multiclass" else ()
    with writing(out) as temporary:
        array = np.lib.format.open_memmap(temporary, "w+", np.float32, (len(files), *planes, *size))
        for number, (file, row) in enumerate(
            zip(track(files, "collect", len(files)), images.itertuples(), strict=True)
        ):
            values = read_probabilities(file, run.competition, (row.height, row.width))
            array[number] = _resized(values, size).reshape(*planes, *size)
        array.flush()
    with writing(out.with_suffix(".csv")) as temporary:
        images[["image_id", "fold"]].to_csv(temporary, index=False)
    console.print(f"{len(files)} images of folds {', '.join(map(str, folds or known))}, {size[0]}×{size[1]} → {out}")
    return out


def read_probabilities(file: Path, competition: Competition, shape: tuple[int, int]) -> np.ndarray:
    """Returns nnU-Net's probabilities for an image of this shape: (classes, height, width) float32 for a multiclass
    competition, else (1, height, width), those of the foreground.

    Raises:
        PipelineError: it cannot be read, or has another shape.
    """
    try:
        with np.load(file) as stored:
            values = stored["probabilities"].astype(np.float32)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise PipelineError(
            f"{file} cannot be read ({type(error).__name__}); run `nnUNetv2_train … --npz --val` again."
        ) from None
    expected = (len(_class_labels(competition)), 1, *shape)  # nnU-Net's 2D images have one slice
    if values.shape != expected:
        raise PipelineError(
            f"{file} holds {'×'.join(map(str, values.shape))}; expected {'×'.join(map(str, expected))} (labels × 1 × "
            "rows × columns): collect with the recipe that was exported."
        )
    return values[:, 0] if competition.kind == "multiclass" else values[1:, 0]


def _resized(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    own = (values.shape[1], values.shape[2])
    return values if own == size else to_native(values, Geometry(own, "stretch", len(values)), size)


def _check_there(files: list[Path]) -> None:
    missing = [file for file in files if not file.exists()]
    if missing:
        fold = missing[0].parents[1].name.removeprefix("fold_")
        raise PipelineError(
            f"{len(missing)} of {len(files)} predictions are missing, the first {missing[0]}; run `nnUNetv2_train … 2d "
            f"{fold} … --npz` (with --val where the training is finished), or choose others with --folds and --limit."
        )


if __name__ == "__main__":
    main()
