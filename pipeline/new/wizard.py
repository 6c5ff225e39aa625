"""A first competition YAML and recipe for a folder of raw files, with what is sure, guessed and left to fill in."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from shlex import quote
from typing import Any

import cv2
import numpy as np
import yaml

from pipeline.core.config import raw_layouts, recipe
from pipeline.core.config.competition import Competition
from pipeline.core.config.raw_layouts import LAYOUTS
from pipeline.core.config.recipe import load_recipe
from pipeline.core.config.settings import flatten, override, read_yaml, validate
from pipeline.core.errors import PipelineError
from pipeline.core.files import input_root, repository, root, shown, write_png, write_text
from pipeline.core.run import Run
from pipeline.core.version import program
from pipeline.decode.readers.base import Item, Masks
from pipeline.decode.readers.files import evenly
from pipeline.decode.readers.registry import reader_of
from pipeline.masks.overlay import contact_sheet, drawn, to_rgb8, with_legend
from pipeline.new.guess.base import Draft, Guess
from pipeline.new.guess.layout import look
from pipeline.new.trial import Trial, try_some

STRIDE, ROWS, LONGEST = 32, 128, 256
"""Of a first recipe: what sides must be multiples of, rows where the image has as many, and the longest side."""
CROP = (256, 256)
"""Rows × columns that the network sees of a window of a huge image."""
SHOWN, ACROSS, WIDTH = 12, 4, 320
"""Of the contact sheet: images, images in a row, and the width of an image in pixels."""
CERTAINTIES = {"sure": "sure", "guess": "guessed", "FILL IN": "left to fill in"}


@dataclass(frozen=True)
class Written:
    """What a first look has left behind."""

    draft: Draft
    competition: Path
    recipe: Path
    link: str
    """What became of the folder in input/, a sentence; blank when it lay there already."""
    sheet: str
    """Where the contact sheet is, or why there is none."""
    trial: Trial
    """What decode would refuse, and what else it would say."""
    following: list[str]
    """The next commands."""

    def lines(self) -> list[str]:
        """Returns what to tell: settings by how certain they are, then files and the next commands."""
        lines = []
        for certainty, title in CERTAINTIES.items():
            own = [guess for guess in self.draft.guesses if guess.certainty == certainty]
            lines += [title, *(f"  {_told(guess)}" for guess in own)] if own else []
        lines.append(f"written     {shown(self.competition)}, {shown(self.recipe)}")
        lines += [f"raw files   {self.link}"] if self.link else []
        lines.append(f"look at     {self.sheet}")
        for title, texts in (
            ("noted", [*self.draft.notes, *self.trial.remarks]),
            ("wrong", self.trial.faults),
            ("next", self.following),
        ):
            lines += [f"{'' if number else title:12}{text}" for number, text in enumerate(texts)]
        return lines


def write_new(
    name: str, folder: Path, target: Path | None = None, force: bool = False, assignments: Sequence[str] = ()
) -> Written:
    """Returns what was written for the raw files in a folder: a competition, a recipe, a link in input/ and a picture.

    Args:
        name: of the competition and of its recipe.
        folder: the raw files; they are only read.
        target: the folder of competitions/ and recipes/; by default the package's own, or, where it is installed, the
            root.
        force: overwrite what is there.
        assignments: `key=value` with dotted keys, instead of what would be guessed or left to fill in.

    Raises:
        PipelineError: a name that is none, a file that is there already, nothing to go by in the folder, or an unknown
            key or wrong value among the assignments.
    """
    if not re.fullmatch(r"[a-z0-9_][a-z0-9._-]*", name):
        raise PipelineError(f"{name!r} is no name for a competition; expected a-z, 0-9, `.`, `_`, `-`, e.g. my-cells.")
    written, recipe_path = _places(name, target)
    for path in (written, recipe_path):
        if path.exists() and not force:
            raise PipelineError(f"{shown(path)} exists already; take another name, or overwrite it with --force.")
    folder = Path(os.path.abspath(folder.expanduser()))
    _check_link(name, folder)
    draft = _given(look(folder, name), assignments)
    if assignments:
        check_settings(name, draft.settings())
    link = _link(name, folder)
    write_text(written, _competition_text(name, draft))
    write_text(recipe_path, _recipe_text(name, draft, inside=target is None))
    sheet, trial = _tried(name, written, recipe_path, folder)
    own = name if target is None else quote(shown(recipe_path))
    run = f"{program()} run {own} --quick"
    if trial.faults:  # a run would end with them
        run = f"correct that in {shown(written)} or in the raw files; `{program()} decode {own}` lists all faults"
    return Written(draft, written, recipe_path, link, sheet, trial, _following(draft, written, run))


def _places(name: str, target: Path | None) -> tuple[Path, Path]:
    if target is None and repository():
        return raw_layouts.FOLDER / f"{name}.yaml", recipe.FOLDER / f"{name}.yaml"
    inside = root() if target is None else Path(os.path.abspath(target.expanduser()))
    return inside / "competitions" / f"{name}.yaml", inside / "recipes" / f"{name}.yaml"


# --- input/ ----------------------------------------------------------------------------------------------------------


def _check_link(name: str, folder: Path) -> None:
    place = input_root() / name
    if os.path.lexists(place) and place.resolve() != folder.resolve():
        raise PipelineError(f"{shown(place)} is there already and is not {folder}; take another name, or move it away.")


def _link(name: str, folder: Path) -> str:
    """Makes the raw files known in input/ and returns what was done; blank when they are there."""
    place = input_root() / name
    if os.path.lexists(place):
        return ""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(folder)
    except OSError as error:
        return f"could not be linked ({error.strerror}); make it so: ln -s {quote(str(folder))} {quote(str(place))}"
    return f"{shown(place)} is now a link to {folder}"


# --- the files -------------------------------------------------------------------------------------------------------


def _competition_text(name: str, draft: Draft) -> str:
    """The YAML, every key with its certainty and evidence behind it."""
    lines = [f"# A first look by `python -m pipeline new {name}`: check the guesses, fill in what is marked FILL IN."]
    lines += [f"# {' '.join(note.split())}" for note in draft.notes]
    order = {parent: place for place, parent in reversed([*enumerate(one.key.split(".")[0] for one in draft.guesses)])}
    guesses = sorted(draft.guesses, key=lambda guess: order[guess.key.split(".")[0]])
    for parent, own in groupby(guesses, key=lambda guess: guess.key.rpartition(".")[0]):
        lines += [f"{parent}:"] if parent else []
        for guess in own:
            value = "" if guess.certainty == "FILL IN" else _flow(guess.value)
            setting = f"{'  ' if parent else ''}{guess.key.rpartition('.')[2]}: {value}"
            lines.append(f"{setting:<42}  # {guess.certainty}: {' '.join(guess.evidence.split())}")
    return "\n".join(lines) + "\n"


def _flow(value: Any) -> str:
    """A value in one line of YAML, texts in double quotes where they need any."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_flow(key)}: {_flow(own)}" for key, own in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, str):
        plain = re.fullmatch(r"[A-Za-z][\w ./-]*", value) and yaml.safe_load(value) == value
        return value if plain else json.dumps(value, ensure_ascii=False)
    return "null" if value is None else str(value)


def _told(guess: Guess) -> str:
    value = "" if guess.certainty == "FILL IN" else f" {_flow(guess.value)}"
    return f"{guess.key}{value}: {guess.evidence}"


def _recipe_text(name: str, draft: Draft, inside: bool) -> str:
    size = CROP if draft.store else network_size(draft.size)
    quick = tuple(max(STRIDE, round(side / 2 / STRIDE) * STRIDE) for side in size)
    store, quick_store = (
        (f" store: [{side[0]}, {side[1]}]," if draft.store else "")
        for side in (draft.store or size, tuple(side // 2 for side in draft.store or size))
    )
    return f"""# A first recipe by `python -m pipeline new {name}`: from scratch, small enough for a CPU, not measured.
# Where the rules allow them, ImageNet weights (`weights: imagenet`, or a file) help more than any other setting.
competition: {name if inside else f"../competitions/{name}.yaml"}
image: {{size: [{size[0]}, {size[1]}],{store} fit: stretch, channels: {draft.channels}}}
model: {{architecture: Unet, encoder: resnet34, weights: none}}
augment:
  - HorizontalFlip: {{p: 0.5}}
train:
  epochs: 20
  steps: 600             # more epochs where there are few images
  batch_size: 8
quick:
  image: {{size: [{quick[0]}, {quick[1]}]{quick_store.rstrip(",").replace(" store", ", store")}}}
  train: {{epochs: 3, steps: 300, folds: [0]}}
"""


def network_size(size: tuple[int, int]) -> tuple[int, int]:
    """Returns rows × columns for a network, multiples of 32 near the proportions of images of this size."""
    rows = min(ROWS, -(-size[0] // STRIDE) * STRIDE)
    columns = max(STRIDE, round(rows * size[1] / size[0] / STRIDE) * STRIDE)
    if columns <= LONGEST:
        return rows, columns
    return max(STRIDE, round(LONGEST * size[0] / size[1] / STRIDE) * STRIDE), LONGEST


def _following(draft: Draft, written: Path, run: str) -> list[str]:
    missing = " and ".join(f"`{guess.key}`" for guess in draft.guesses if guess.certainty == "FILL IN")
    return [*([f"fill in {missing} in {shown(written)}, then"] if missing else []), run]


# --- the contact sheet -----------------------------------------------------------------------------------------------


def open_competition(path: Path) -> Competition:
    """Returns a competition just written, with something harmless where it is left to fill in.

    Raises:
        PipelineError: it is not valid.
    """
    return check_settings(path.stem, read_yaml(path))


def competition_of(name: str, folder: Path, assignments: Sequence[str] = ()) -> Competition:
    """Returns how the raw files in a folder are read, as far as it can be guessed; nothing is written.

    Args:
        name: of the competition.
        folder: the raw files.
        assignments: `key=value` with dotted keys, instead of what would be guessed.

    Raises:
        PipelineError: as write_new.
    """
    return check_settings(name, _given(look(folder, name), assignments).settings())


def check_settings(name: str, data: dict[str, Any]) -> Competition:
    """Returns settings as a competition, with something harmless where they are left to fill in; raises likewise."""
    stand_in = {"metric": "dice", "border": "background"}
    data = data | {key: value for key, value in stand_in.items() if key in data and data[key] is None}
    return validate(LAYOUTS[data["reader"]], {"name": name, **data}, f"competition {name}.yaml")


def _given(draft: Draft, assignments: Sequence[str]) -> Draft:
    """The draft with settings given on the command line in place of its own."""
    given = flatten(override({}, list(assignments)))
    own = [guess for guess in draft.guesses if not any(f"{key}.".startswith(f"{guess.key}.") for key in given)]
    if given.get("orientation") == "stored":  # the shape that was seen is that of upright images
        own = [guess for guess in own if guess.key != "shape"]
    return replace(draft, guesses=[*own, *(Guess(key, value, "sure", "as given") for key, value in given.items())])


def _tried(name: str, written: Path, recipe_path: Path, folder: Path) -> tuple[str, Trial]:
    """Draws training images with their masks, as the YAML says to read them, and returns where they are, and what
    decode would say of some images."""
    path = root() / "work" / name / "new.png"
    try:
        opened = open_competition(written)
        run = Run(load_recipe(str(recipe_path)), opened, name)
        listing = reader_of(opened).list_items(opened, run.input if run.input.is_dir() else folder)
        trial = try_some(run, listing)
        tiles = [([_picture(item, masks, opened)], item.image_id) for item, masks in chosen(listing.items)]
    except PipelineError as error:
        return "no picture, as the files cannot be listed", Trial([str(error)], [])
    if not tiles:
        why = "no training image and mask can be read"
        unknown = [f"{why}: does {shown(written)} say what these files are?"]
        return f"no picture, because {why}", replace(trial, faults=trial.faults or unknown)
    write_png(path, with_legend(contact_sheet(tiles, WIDTH, ACROSS), opened))
    return f"{shown(path)}: {len(tiles)} training images as this YAML reads them", trial


def chosen(items: list[Item]) -> list[tuple[Item, Masks]]:
    """Returns up to 12 training images with their masks, those that show something first."""
    found: list[tuple[Item, Masks]] = []
    windows = any("of_box" in item.place for item in items[:1])
    some = evenly([item for item in items if item.subset == "train"], (3 if windows else 20) * SHOWN)
    for item in [item for start in range(20) for item in some[start::20]]:  # the first few come from everywhere
        try:
            shape = item.read_image().shape
            masks = item.read_masks((shape[0], shape[1])) if item.read_masks else None
        except ValueError:
            continue
        if masks is not None:
            found.append((item, masks))
        if sum(_shows(masks) for _, masks in found) == SHOWN:
            break
    return sorted(found, key=lambda pair: not _shows(pair[1]))[:SHOWN]


def _shows(masks: Masks) -> bool:
    planes = masks.planes == 1
    return bool(planes.any() and not planes.all(axis=(1, 2)).any())


def _picture(item: Item, masks: Masks, opened: Competition) -> np.ndarray:
    """An image with its masks, 320 pixels wide."""
    image = item.read_image()
    image = image if image.dtype.kind == "u" and image.shape[2] in (1, 3) else to_rgb8(image)
    height = max(1, round(image.shape[0] * WIDTH / image.shape[1]))
    method = cv2.INTER_AREA if image.shape[1] > WIDTH else cv2.INTER_NEAREST
    sized = cv2.resize(image, (WIDTH, height), interpolation=method).reshape(height, WIDTH, -1)
    planes = np.stack([cv2.resize(one, (WIDTH, height), interpolation=cv2.INTER_NEAREST) for one in masks.planes])
    return drawn(sized, planes, None, opened)
