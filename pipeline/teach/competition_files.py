"""Writes the files of a made competition: images, tables, the YAMLs, and the teacher's solution."""

import os
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import yaml

from pipeline.core.config.competition import Competition
from pipeline.core.config.metric_text import Term
from pipeline.core.config.raw_layouts import RleCsv
from pipeline.core.config.settings import validate
from pipeline.core.console import track
from pipeline.encode.file_kinds import member
from pipeline.masks.geometry import label_map
from pipeline.teach.competition_split import Plan
from pipeline.teach.examples import Example

STUDENTS, TEACHER = "students", "teacher"
WRITTEN_AT = 946684800
"""When every file of the students says that it was written (2000-01-01): times of files tell nothing."""
PLACEHOLDER = "1 1"
"""What every row of the sample submission holds."""
PNG_CHANNELS = (1, 3)
ROWS, LONGEST, STRIDE = 128, 256, 32
"""Of the first recipe: rows where the images have as many, the longest side, and what sides are multiples of."""


@dataclass(frozen=True)
class Made:
    """What is written of a competition, beside the images."""

    name: str
    title: str
    labels: list[str]
    """The classes as tables and folders name them, all of them; of class maps the first is the background."""
    kind: str
    """As a competition's YAML says it."""
    masks: str
    """`csv` or `png`: how students get the masks of training images."""
    metric: Term
    channels: int
    shape: tuple[int, int] | None
    """Rows × columns, where all images have the same."""
    folds: int
    grouped: bool
    """Whether training images have groups."""
    duplicates_together: bool = True
    """Whether near-duplicates are all training or all test images."""

    @property
    def labelled(self) -> bool:
        """Whether row ids end with the name of a class."""
        return len(self.labels) > 1

    @property
    def row_labels(self) -> dict[str, int]:
        """What row ids call the classes that have rows, and their numbers; those of class maps go by number."""
        if self.kind == "multiclass":
            return {str(number): number for number in range(1, len(self.labels))}
        return {label: number for number, label in enumerate(self.labels)}

    @property
    def suffix(self) -> str:
        """The ending of image files."""
        return "png" if self.channels in PNG_CHANNELS else "npy"


def plain_labels(competition: Competition) -> list[str]:
    """Returns the names of classes, made of letters, digits and hyphens, so that they may stand in ids and paths."""
    names = [re.sub(r"[^A-Za-z0-9-]+", "-", name).strip("-") for name in competition.classes]
    unique = len({name.lower() for name in names}) == len(names) and all(names)
    return names if unique else [f"class{number}" for number in range(len(names))]


def write_students(folder: Path, examples: Sequence[Example], plan: Plan, made: Made) -> None:
    """Writes what students get, but for DATA.md, its picture and metric.py.

    Of the test images it takes the pixels and the drawn ids, nothing else: no mask, group or name of a file.

    Args:
        folder: where; it is there.
        examples: the images.
        plan: what becomes of each.
        made: what the competition is like.
    """
    order = sorted(range(len(examples)), key=lambda place: plan.ids[place])
    for place in track(order, "write", len(order)):
        subset = "test" if plan.test[place] else "train"
        _write_array(folder / subset / f"{plan.ids[place]}.{made.suffix}", _uniform(examples[place], made))
        if subset == "train" and made.masks == "png":
            _write_masks(folder, plan.ids[place], examples[place], made)
    training = [place for place in order if not plan.test[place]]
    if (table := _train_table(examples, plan, made, training)) is not None:
        table.to_csv(folder / "train.csv", index=False, lineterminator="\n")
    names = [row for place in order if plan.test[place] for row in row_ids(plan.ids[place], made)]
    sample = pd.DataFrame({"id": names, "rle": PLACEHOLDER})
    sample.to_csv(folder / "sample_submission.csv", index=False, lineterminator="\n")
    for kind, data in (("competitions", competition_yaml(made)), ("recipes", recipe_yaml(made))):
        (folder / kind).mkdir(exist_ok=True)
        (folder / kind / f"{made.name}.yaml").write_text(data, encoding="utf-8")


def solution(examples: Sequence[Example], plan: Plan, made: Made) -> pd.DataFrame:
    """Returns the true masks of the test images as Kaggle takes them: id, rle, height, width and Usage."""
    rows: list[dict[str, Any]] = []
    for place in sorted(np.flatnonzero(plan.test).tolist(), key=lambda place: plan.ids[place]):
        example, usage = examples[place], plan.usage[place]
        for name, number in zip(row_ids(plan.ids[place], made), made.row_labels.values(), strict=True):
            size = {"height": example.shape[0], "width": example.shape[1]}
            rows.append({"id": name, "rle": example.texts[number], **size, "Usage": usage})
    return pd.DataFrame(rows)


def key(examples: Sequence[Example], plan: Plan) -> pd.DataFrame:
    """Returns which image of the source each id is, for the teacher alone."""
    rows = [
        {
            "id": plan.ids[place], "subset": "test" if plan.test[place] else "train", "Usage": plan.usage[place],
            "source_id": example.item.image_id, "path": example.item.path, "source_group": example.item.group or "",
            "group": plan.groups[place], "kept_together": int(plan.clusters[place]),
        }
        for place, example in enumerate(examples)
    ]  # fmt: skip
    return pd.DataFrame(rows).sort_values("id")


def row_ids(image_id: str, made: Made) -> list[str]:
    """Returns the ids of the rows of an image: its own, or one per class."""
    return [f"{image_id}_{label}" for label in made.row_labels] if made.labelled else [image_id]


# --- images and masks ------------------------------------------------------------------------------------------------


def _uniform(example: Example, made: Made) -> np.ndarray:
    """Pixels (H, W, C) with as many channels as every image has: how a file is stored must tell nothing."""
    image = example.image()
    return np.repeat(image, made.channels, 2) if image.shape[2] == 1 < made.channels else image[..., : made.channels]


def channels_of(examples: Sequence[Example]) -> int:
    """Returns how many channels every image is given: 1 where grey images are stored as RGB throughout."""
    most = max(example.shape[2] for example in examples)
    if most != 3:
        return most
    images = (example.image() for example in examples)
    grey = all((image == image[..., :1]).all() for image in images)
    return 1 if grey else 3


def _write_masks(folder: Path, image_id: str, example: Example, made: Made) -> None:
    planes = example.planes()
    if made.kind == "multiclass":
        _write_array(folder / "train_masks" / f"{image_id}.png", label_map(planes)[..., None])
        return
    for label, plane in zip(made.labels, planes, strict=True):
        parent = folder / "train_masks" / label if made.labelled else folder / "train_masks"
        _write_array(parent / f"{image_id}.png", 255 * np.ascontiguousarray(plane)[..., None])


def _write_array(path: Path, image: np.ndarray) -> None:
    """Writes pixels (H, W, C) as PNG or .npy, without any further data."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, np.ascontiguousarray(image), allow_pickle=False)
        return
    pixels = image[..., ::-1] if image.shape[2] == 3 else image[..., 0]
    path.write_bytes(cv2.imencode(".png", np.ascontiguousarray(pixels))[1].tobytes())


# --- tables and YAMLs ------------------------------------------------------------------------------------------------


def _train_table(examples: Sequence[Example], plan: Plan, made: Made, training: list[int]) -> pd.DataFrame | None:
    """train.csv: run lengths and groups, or groups alone where masks are images; None where there would be none."""
    if made.masks == "png" and not made.grouped:
        return None
    rows = []
    for place in training:
        group = {"group": plan.groups[place]} if made.grouped else {}
        if made.masks == "png":
            rows.append({"id": plan.ids[place], **group})
            continue
        for name, text in zip(row_ids(plan.ids[place], made), examples[place].texts, strict=True):
            rows.append({"id": name, "rle": text, **group})
    return pd.DataFrame(rows)


def settings_of(made: Made) -> RleCsv:
    """Returns the competition that students get."""
    data = yaml.safe_load(competition_yaml(made))
    return validate(RleCsv, {"name": made.name, **data}, f"competition {made.name}")


def competition_yaml(made: Made) -> str:
    """Returns the competition's YAML for this pipeline."""
    masks = "train.csv"
    if made.masks == "png":
        masks = (
            "train_masks/{class}/{id}.png" if made.labelled and made.kind != "multiclass" else "train_masks/{id}.png"
        )
    train = {"images": f"train/{{id}}.{made.suffix}", "masks": masks}
    train |= {"table": "train.csv"} if made.masks == "png" and made.grouped else {}
    columns = {"id": "id", "rle": "rle"} | ({"pattern": "{id}_{label}"} if made.labelled else {})
    data: dict[str, Any] = {"title": made.title, "reader": "rle_csv", "train": train}
    data |= {"test": {"images": f"test/{{id}}.{made.suffix}"}, "sample_submission": "sample_submission.csv"}
    if made.masks == "csv":
        data |= {"columns": columns}
    else:
        data |= {"submission": columns}
    data |= {"rle": {"order": "column", "base": 1, "empty": ""}}
    data |= {"classes": _classes(made)} | ({"kind": made.kind} if made.kind == "multiclass" else {})
    data |= {"shape": list(made.shape)} if made.shape else {}
    data |= {"channels": made.channels} if made.suffix == "npy" else {}
    data |= {"group": "group"} if made.grouped else {}
    data |= {"metric": str(made.metric), "split": {"folds": made.folds}}
    text = yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=110, allow_unicode=True)
    return (
        f"# Made by `python -m pipeline make-competition`. Raw files: input/{made.name}/.\n{text}{_other_metric(made)}"
    )


def _other_metric(made: Made) -> str:
    """The lines that let metric.py give every final score."""
    columns = '{height: "{height}", width: "{width}"}'
    return (
        "# metric.py computes the same. To let it give every final score, replace `metric` by:\n"
        f'# metric: {{file: metric.py, tune: "{made.metric}", solution: {columns}}}\n'
    )


def _classes(made: Made) -> list[str] | dict[str, int]:
    if made.kind == "multiclass":
        return {label: number for number, label in enumerate(made.labels)}
    return made.labels


def recipe_yaml(made: Made) -> str:
    """Returns a first recipe: a small network from scratch."""
    rows, columns = made.shape or (ROWS, ROWS)
    height = min(ROWS, -(-rows // STRIDE) * STRIDE)
    width = min(LONGEST, max(STRIDE, round(height * columns / rows / STRIDE) * STRIDE))
    quick = [max(STRIDE, round(side / 2 / STRIDE) * STRIDE) for side in (height, width)]
    return f"""# A first recipe for {made.name}: from scratch, small enough for a CPU, not measured.
competition: ../competitions/{made.name}.yaml
image: {{size: [{height}, {width}], fit: stretch, channels: {made.channels}}}
model:
  architecture: Unet
  encoder: resnet18
  weights: none
  options: {{encoder_depth: 4, decoder_channels: [64, 32, 16, 8]}}
augment:
  - HorizontalFlip: {{p: 0.5}}
train:
  epochs: 20
  steps: 600
  batch_size: 8
quick:
  image: {{size: {quick}}}
  train: {{epochs: 3, steps: 300, folds: [0, 1]}}
"""


# --- the archive -----------------------------------------------------------------------------------------------------


def files_in(folder: Path) -> list[Path]:
    """Returns the files of a folder in the order of their paths."""
    return sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.as_posix())


def even_times(folder: Path) -> None:
    """Gives every file and folder the same time, as times could tell in which order they were made."""
    for path in [*folder.rglob("*"), folder]:
        os.utime(path, (WRITTEN_AT, WRITTEN_AT))


def write_archive(path: Path, folder: Path) -> None:
    """Writes a zip of a folder's files, in the order of their names, with one time and one mode for all."""
    with zipfile.ZipFile(path, "w") as archive:
        for file, entry in _entries(folder):
            archive.writestr(entry, file.read_bytes())


def _entries(folder: Path) -> Iterator[tuple[Path, zipfile.ZipInfo]]:
    for file in files_in(folder):
        packed = zipfile.ZIP_STORED if file.suffix == ".png" else zipfile.ZIP_DEFLATED
        yield file, member(file.relative_to(folder).as_posix(), packed)
