"""DATA.md of a made competition, which tells students of the training images, and the picture in it."""

from collections.abc import Sequence
from pathlib import Path

import jinja2
import numpy as np

from pipeline.masks.overlay import contact_sheet, drawn, with_legend
from pipeline.teach.competition_files import Made, row_ids, settings_of
from pipeline.teach.competition_metric import PAGES, sentence
from pipeline.teach.competition_split import Plan
from pipeline.teach.examples import Example

SHOWN, WIDTH, ACROSS = 12, 260, 4
"""Images in the picture, their width in pixels, and how many stand in a row."""


def data_page(examples: Sequence[Example], plan: Plan, made: Made) -> str:
    """Returns the text of DATA.md. What it counts, it counts of training images alone."""
    training = [place for place in range(len(examples)) if not plan.test[place]]
    shapes = sorted({example.shape[:2] for example in examples})
    areas = np.stack([examples[place].planes().mean((1, 2)) for place in training])  # shares (images, classes)
    classes = [_class_row(number, made, areas[:, number]) for number in range(len(made.labels))]
    test_ids = sorted(plan.ids[place] for place in np.flatnonzero(plan.test))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGES), trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    return environment.get_template("DATA.md.jinja").render(
        made=made, training=len(training), tests=len(test_ids), shapes=shapes,
        classes=classes[1:] if made.kind == "multiclass" else classes, metric=sentence(made.metric),
        empty=sum(not _shown(examples[place], made).any() for place in training),
        groups=len({plan.groups[place] for place in training} - {""}), example=row_ids(test_ids[0], made)[0],
        dtype=examples[0].image().dtype.name,
    )  # fmt: skip


def _shown(example: Example, made: Made) -> np.ndarray:
    """Whether each class that is no background occurs."""
    return example.present[1:] if made.kind == "multiclass" else example.present


def _class_row(number: int, made: Made, areas: np.ndarray) -> tuple[str, str, str]:
    """A class with its share of training images and of their pixels."""
    label = made.labels[number]
    name = f"{number}: {label}" if made.kind == "multiclass" else label
    return name, f"{(areas > 0).mean():.0%}", f"{areas.mean():.1%}"


def data_picture(examples: Sequence[Example], plan: Plan, made: Made) -> np.ndarray:
    """Returns an RGB picture (h, w, 3) uint8 of training images with their masks, those that show something first."""
    training = sorted(
        (place for place in range(len(examples)) if not plan.test[place]), key=lambda place: plan.ids[place]
    )
    chosen = sorted(training, key=lambda place: not _shown(examples[place], made).any())[:SHOWN]
    settings = settings_of(made)
    tiles = []
    for place in chosen:
        image, planes = examples[place].image(), examples[place].planes()
        tiles.append(([drawn(image, planes, None, settings)], plan.ids[place]))
    return with_legend(contact_sheet(tiles, WIDTH, ACROSS), settings)


def picture_path(folder: Path) -> Path:
    """Returns where the picture of DATA.md lies."""
    return folder / "data.png"
