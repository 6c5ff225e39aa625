"""Writes a first competition YAML for a folder of raw files: each setting is sure, guessed or to fill in, and a recipe
for the data is chosen."""

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from shlex import quote
from typing import Any

import cv2
import numpy as np
import yaml

from pipeline.auto.fingerprint import measure, percent
from pipeline.auto.machine import this_machine
from pipeline.auto.rules import Choice, choose
from pipeline.core.config import raw_layouts, recipe_files
from pipeline.core.config.competition import Competition
from pipeline.core.config.raw_layouts import LAYOUTS
from pipeline.core.config.recipe import load_recipe
from pipeline.core.config.recipe_files import BASELINE
from pipeline.core.config.settings import assignments_of, flatten, override, read_yaml, validate
from pipeline.core.errors import PipelineError
from pipeline.core.files import input_root, repository, root, shown, write_png, write_text
from pipeline.core.run import Run, input_folder
from pipeline.core.version import program
from pipeline.decode.readers.base import Item, Listing, Masks
from pipeline.decode.readers.files import evenly
from pipeline.decode.readers.registry import reader_of
from pipeline.masks.overlay import contact_sheet, drawn, to_rgb8, with_legend
from pipeline.new.guess.base import Draft, Guess
from pipeline.new.guess.layout import look
from pipeline.new.trial import Trial, try_some

SHOWN, ACROSS, WIDTH = 12, 4, 320
"""The contact sheet: number of images, images per row, and width of an image in pixels."""
CERTAINTIES = {"sure": "sure", "guess": "guessed", "FILL IN": "to fill in"}


@dataclass(frozen=True)
class Written:
    """The results of `new`."""

    draft: Draft
    competition: Path
    choice: Choice | None
    """The recipe that was chosen for the data, with the reasons; None if no image can be read."""
    link: str
    """A sentence about the link in input/; "" if the folder is there already."""
    sheet: str
    """The path of the contact sheet, or why there is none."""
    trial: Trial
    """Faults and remarks from decoding some images."""
    following: list[str]
    """The next commands."""

    def lines(self) -> list[str]:
        """Returns the lines to print: settings ordered by certainty, then files and the next commands."""
        lines = []
        for certainty, title in CERTAINTIES.items():
            guesses = [guess for guess in self.draft.guesses if guess.certainty == certainty]
            lines += [title, *(f"  {_told(guess)}" for guess in guesses)] if guesses else []
        recipe = [*self.choice.lines()] if self.choice else []
        lines += [f"{'' if number else 'recipe':12}{text}" for number, text in enumerate(recipe)]
        lines.append(f"written     {shown(self.competition)}")
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
    """Writes a competition, a link in input/ and a picture for the raw files in a folder.

    Args:
        name: name of the competition.
        folder: folder of the raw files, which are only read.
        target: folder in which competitions/ is written. Default: the package's own folder in a clone, the root for
            an installed package.
        force: whether to overwrite existing files.
        assignments: settings as `key=value` with dotted keys, which replace guesses.

    Raises:
        PipelineError: the name is invalid or that of a recipe, the file exists already, the folder is not understood,
            or an assignment has an unknown key or an invalid value.
    """
    if not re.fullmatch(r"[a-z0-9_][a-z0-9._-]*", name):
        raise PipelineError(
            f"{name!r} is not a valid name of a competition; expected a-z, 0-9, `.`, `_`, `-`, for example my-cells."
        )
    written = _place(name, target)
    if written.exists() and not force:
        raise PipelineError(f"{shown(written)} exists already; choose another name, or overwrite it with --force.")
    _check_recipe(name, target)
    folder = Path(os.path.abspath(folder.expanduser()))
    _check_link(name, folder)
    draft = _given(look(folder, name), assignments)
    if assignments:
        check_settings(name, draft.settings())
    link = _link(name, folder)
    found = _examined(name, draft, folder)
    draft = replace(draft, notes=(*draft.notes, *filter(None, [found.note])))
    write_text(written, _competition_text(name, draft, found.choice))
    sheet, trial = _tried(name, written, found)
    recipe_name = name if target is None else quote(shown(written))
    run = f"{program()} run {recipe_name} --quick"
    if trial.faults:  # a run would stop at them
        run = (
            f"correct this in {shown(written)} or in the raw files; `{program()} decode {recipe_name}` lists all faults"
        )
    return Written(draft, written, found.choice, link, sheet, trial, _following(draft, written, run))


def _place(name: str, target: Path | None) -> Path:
    if target is None and repository():
        return raw_layouts.FOLDER / f"{name}.yaml"
    inside = root() if target is None else Path(os.path.abspath(target.expanduser()))
    return inside / "competitions" / f"{name}.yaml"


def _check_recipe(name: str, target: Path | None) -> None:
    """Checks that `run NAME` will use the competition that is about to be written, and not a recipe of this name."""
    if name == recipe_files.AUTO and target is None:
        raise PipelineError(
            f"`{program()} run {name}` chooses a recipe for another competition, so no competition can have this name; "
            "choose another one."
        )
    recipes = [folder / f"{name}.yaml" for folder in (recipe_files.FOLDER, root() / "recipes")]
    existing = next((path for path in recipes if path.exists()), None)
    if existing and target is None:
        raise PipelineError(
            f"there is a recipe of this name, {shown(existing)}, which `{program()} run {name}` would use; choose "
            "another name, or move the recipe away."
        )


# --- input/ ----------------------------------------------------------------------------------------------------------


def _check_link(name: str, folder: Path) -> None:
    place = input_root() / name
    if os.path.lexists(place) and place.resolve() != folder.resolve():
        raise PipelineError(f"{shown(place)} exists already and is not {folder}; choose another name, or move it away.")


def _link(name: str, folder: Path) -> str:
    """Links the raw files into input/ and returns a sentence about it; "" if they are there already."""
    place = input_root() / name
    if os.path.lexists(place):
        return ""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(folder)
    except OSError as error:
        return f"could not be linked ({error.strerror}); run: ln -s {quote(str(folder))} {quote(str(place))}"
    return f"{shown(place)} is now a link to {folder}"


# --- the files -------------------------------------------------------------------------------------------------------


def _competition_text(name: str, draft: Draft, choice: Choice | None) -> str:
    """The YAML, with the certainty and the evidence of every setting as a comment."""
    lines = [
        f"# Written by `python -m pipeline new {name}`: check every guess, and fill in the settings marked FILL IN."
    ]
    lines += [f"# {' '.join(note.split())}" for note in draft.notes]
    parents = [guess.key.split(".")[0] for guess in draft.guesses]
    order = {parent: position for position, parent in reversed([*enumerate(parents)])}
    guesses = sorted(draft.guesses, key=lambda guess: order[guess.key.split(".")[0]])
    for parent, of_parent in groupby(guesses, key=lambda guess: guess.key.rpartition(".")[0]):
        lines += [f"{parent}:"] if parent else []
        for guess in of_parent:
            value = "" if guess.certainty == "FILL IN" else _flow(guess.value)
            setting = f"{'  ' if parent else ''}{guess.key.rpartition('.')[2]}: {value}"
            lines.append(_commented(setting, f"{guess.certainty}: {guess.evidence}"))
    lines += _baseline_lines(choice) if choice else []
    return "\n".join(lines) + "\n"


def _flow(value: Any) -> str:
    """A value as one line of YAML; texts get double quotes only if they need them."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_flow(key)}: {_flow(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, str):
        plain = re.fullmatch(r"[A-Za-z][\w ./-]*", value) and yaml.safe_load(value) == value
        return value if plain else json.dumps(value, ensure_ascii=False)
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)


def _told(guess: Guess) -> str:
    value = "" if guess.certainty == "FILL IN" else f" {_flow(guess.value)}"
    return f"{guess.key}{value}: {guess.evidence}"


def _baseline_lines(choice: Choice) -> Iterator[str]:
    """The choice as the section `baseline` of the YAML, with its reasons as comments."""
    yield "# How it is trained, as chosen by the data (docs/auto.md). Every setting of a recipe may stand here."
    yield "baseline:"
    yield _commented(f"  base: {choice.recipe}", "; ".join(choice.reasons))
    values: dict[str, dict[str, tuple[Any, str]]] = {}
    for decision in choice.decisions:
        for number, (key, value) in enumerate(decision.settings.items()):
            section, _, rest = key.partition(".")
            values.setdefault(section, {})[rest] = (value, "" if number else decision.reason)
    for section in sorted(values, key="quick".__eq__):  # --quick at the end
        if section == "quick":
            yield f"  quick: {_flow(choice.settings['quick'])}"
            continue
        of_section = values[section]
        yield from [f"  {section}:"] if "" not in of_section else []
        for rest, (value, reason) in of_section.items():
            first, _, deeper = rest.partition(".")
            text = _flow({deeper: value}) if deeper else _flow(value)
            yield _commented(f"    {first}: {text}" if rest else f"  {section}: {text}", reason)


def _commented(setting: str, comment: str) -> str:
    return f"{setting:<42}  # {' '.join(comment.split())}" if comment else setting


def _following(draft: Draft, written: Path, run: str) -> list[str]:
    missing = " and ".join(f"`{guess.key}`" for guess in draft.guesses if guess.certainty == "FILL IN")
    return [*([f"fill in {missing} in {shown(written)}, then"] if missing else []), run]


# --- the contact sheet -----------------------------------------------------------------------------------------------


def open_competition(path: Path) -> Competition:
    """Returns a competition that was just written, with harmless values for settings that are still to fill in.

    Raises:
        PipelineError: the competition is invalid.
    """
    return check_settings(path.stem, read_yaml(path))


def competition_of(name: str, folder: Path, assignments: Sequence[str] = ()) -> Competition:
    """Returns the competition that is guessed from the raw files in a folder, without writing anything.

    Args:
        name: name of the competition.
        folder: folder of the raw files.
        assignments: settings as `key=value` with dotted keys, which replace guesses.

    Raises:
        PipelineError: as write_new.
    """
    return check_settings(name, _given(look(folder, name), assignments).settings())


def check_settings(name: str, data: dict[str, Any]) -> Competition:
    """Returns the competition of settings, with harmless values for settings that are still to fill in.

    Raises:
        PipelineError: a setting is invalid.
    """
    metric = "mean_iou" if data.get("kind") == "multiclass" else "dice"
    stand_in = {"metric": metric, "border": "background"}
    data = data | {key: value for key, value in stand_in.items() if key in data and data[key] is None}
    return validate(LAYOUTS[data["reader"]], {"name": name, **data}, f"competition {name}.yaml")


def _given(draft: Draft, assignments: Sequence[str]) -> Draft:
    """The draft with the settings that were given on the command line."""
    given = flatten(override({}, list(assignments)))
    kept = [guess for guess in draft.guesses if not any(f"{key}.".startswith(f"{guess.key}.") for key in given)]
    if given.get("orientation") == "stored":  # the guessed shape is that of images turned upright
        kept = [guess for guess in kept if guess.key != "shape"]
    return replace(draft, guesses=[*kept, *(Guess(key, value, "sure", "as given") for key, value in given.items())])


@dataclass(frozen=True)
class _Examined:
    """The raw files as the draft describes them."""

    competition: Competition | None = None
    listing: Listing | None = None
    choice: Choice | None = None
    """The recipe for these files; None if no image can be read."""
    note: str = ""
    """When another recipe would be better."""
    fault: str = ""
    """Why the files cannot be listed."""


def _examined(name: str, draft: Draft, folder: Path) -> _Examined:
    """Lists the raw files as the draft describes them, and chooses a recipe for them."""
    try:
        competition = check_settings(name, draft.settings())
        linked = input_folder(competition)
        folder = linked if linked.is_dir() else folder
        listing = reader_of(competition).list_items(competition, folder)
    except PipelineError as error:
        return _Examined(fault=str(error))
    try:
        fingerprint = measure(competition, folder, this_machine(), listing)
    except PipelineError:  # no image can be read: the trial reports why
        return _Examined(competition, listing)
    choice, note = choose(fingerprint), ""
    of_objects = choose(replace(fingerprint, scores_objects=True)).recipe
    if of_objects != choice.recipe and draft.settings().get("metric") is None:
        share = percent(fingerprint.touching)
        note = (
            f"if the metric scores objects one by one, set `base: {of_objects}`, because {share} of them touch another"
        )
    return _Examined(competition, listing, choice, note)


def _tried(name: str, written: Path, found: _Examined) -> tuple[str, Trial]:
    """Draws training images with their masks as the YAML reads them, and tries to decode some images.

    Returns the text about the picture, and the result of the trial.
    """
    path = root() / "work" / name / "new.png"
    if found.competition is None or found.listing is None:
        return "no picture, because the files cannot be listed", Trial([found.fault], [])
    opened, listing = found.competition, found.listing
    image = found.choice.settings["image"] if found.choice else {}
    changes = assignments_of({f"image.{key}": value for key, value in image.items()})
    try:
        trial = try_some(Run(load_recipe(BASELINE, assignments=changes), opened, name), listing)
        tiles = [([_picture(item, masks, opened)], item.image_id) for item, masks in chosen(listing.items)]
    except PipelineError as error:
        return "no picture, because the files cannot be listed", Trial([str(error)], [])
    if not tiles:
        why = "no training image and mask can be read"
        unknown = [f"{why}: check whether {shown(written)} describes these files correctly."]
        return f"no picture, because {why}", replace(trial, faults=trial.faults or unknown)
    write_png(path, with_legend(contact_sheet(tiles, WIDTH, ACROSS), opened))
    return f"{shown(path)}: {len(tiles)} training images as this YAML reads them", trial


def chosen(items: list[Item]) -> list[tuple[Item, Masks]]:
    """Returns up to 12 training images with their masks; images with a partial mask come first."""
    shown_masks: list[tuple[Item, Masks]] = []
    windows = any("of_box" in item.place for item in items[:1])
    sample = evenly([item for item in items if item.subset == "train"], (3 if windows else 20) * SHOWN)
    for item in [item for start in range(20) for item in sample[start::20]]:  # spread the first ones over all images
        try:
            shape = item.read_image().shape
            masks = item.read_masks((shape[0], shape[1])) if item.read_masks else None
        except ValueError:
            continue
        if masks is not None:
            shown_masks.append((item, masks))
        if sum(_shows(masks) for _, masks in shown_masks) == SHOWN:
            break
    return sorted(shown_masks, key=lambda pair: not _shows(pair[1]))[:SHOWN]


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
    planes = np.stack([cv2.resize(plane, (WIDTH, height), interpolation=cv2.INTER_NEAREST) for plane in masks.planes])
    return drawn(sized, planes, None, opened)
