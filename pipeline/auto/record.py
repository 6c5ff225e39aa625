"""Keeps the recipe that was chosen for a competition, so that `auto` opens the same recipe at every call.

reads   input/<competition>/
writes  work/<competition>/auto.json: the fingerprint, the recipe, its settings and the reasons

All runs of `auto` on a competition (also with --quick, --name or --set) share this choice.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

from pipeline.auto import rules
from pipeline.auto.fingerprint import SAMPLE, Fingerprint, measure
from pipeline.auto.machine import this_machine
from pipeline.core.config.competition import Competition
from pipeline.core.config.raw_layouts import load_competition
from pipeline.core.config.recipe import ImageSettings
from pipeline.core.config.recipe_files import choice_file, given_base, image_settings
from pipeline.core.config.settings import flatten, validate
from pipeline.core.console import say, warn
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_record, shown, write_json
from pipeline.core.run import input_folder
from pipeline.decode.readers.registry import reader_of

LEFT_OUT = {"baseline", "clean", "split", "splits", "title", "kaggle"}
"""Settings of a competition on which no choice depends."""


def ensure_choice(name: str) -> None:
    """Chooses a recipe for a competition and prints the choice, unless one was chosen before.

    If the data, the competition's settings or this machine have changed since then so that another choice would be made
    now, the earlier one is kept, and a warning says what the other one is.

    Args:
        name: name of the competition, or path of its YAML file.

    Raises:
        PipelineError: the competition is invalid, or its raw files cannot be read.
    """
    competition = load_competition(name)
    path = choice_file(competition)
    record, state = read_record(path), _state(competition)
    if isinstance(record.get("recipe"), str) and isinstance(record.get("settings"), dict):
        _compare(competition, record, state)
        return
    if path.exists():
        warn(f"auto: {shown(path)} is damaged. A recipe for {competition.name} is chosen again.")
    fingerprint, choice = chosen(competition)
    write_json(path, _record(competition, fingerprint, choice, state))
    for line in lines(competition, fingerprint, choice):
        say(line)
    say(f"  recorded in {shown(path)}, which you can delete to choose again")


def chosen(competition: Competition) -> tuple[Fingerprint, rules.Choice]:
    """Returns the fingerprint of a competition and the choice for it. A recipe of the portfolio and a size of the
    network's input that the competition's `baseline` names are taken.

    Raises:
        PipelineError: the raw files cannot be read, or the size is invalid.
    """
    base, input_size = given_base(competition), _input_size(competition)
    fingerprint = measure(competition, input_folder(competition), this_machine())
    return fingerprint, rules.choose(fingerprint, base, input_size)


def _input_size(competition: Competition) -> rules.InputSize | None:
    """Returns the size of the network's input that the competition's `baseline` gives; None if it gives none."""
    given = image_settings(competition.baseline)
    if given.get("size") is None:
        return None
    sizes = {key: value for key, value in given.items() if key in ("size", "store")}
    image = validate(ImageSettings, sizes, f"competition {competition.name}.yaml, baseline.image")
    return rules.InputSize(image.size, image.store if image.store != image.size else None)


def lines(competition: Competition, fingerprint: Fingerprint, choice: rules.Choice) -> Iterator[str]:
    """Yields the lines that describe a choice: the fingerprint, the recipe and the reasons."""
    part = "" if fingerprint.sampled == fingerprint.images else f", by {fingerprint.sampled} of its images"
    yield f"auto: the recipe for {competition.name}{part}"
    yield from (f"  {line}" for line in fingerprint.lines())
    yield from (f"  {line}" for line in choice.lines())
    chosen_settings = flatten(choice.settings) | {"base": choice.recipe}
    given = {key: value for key, value in flatten(competition.baseline).items() if chosen_settings.get(key) != value}
    if given:
        values = ", ".join(f"{key} {rules.shown(value)}" for key, value in given.items())
        yield f"  {values}: {rules.AS_GIVEN}"


def _record(
    competition: Competition, fingerprint: Fingerprint, choice: rules.Choice, state: dict[str, str]
) -> dict[str, Any]:
    reasons = [{"settings": decision.settings, "reason": decision.reason} for decision in choice.decisions]
    return {
        "competition": competition.name,
        "recipe": choice.recipe,
        "settings": choice.settings,
        "chosen": date.today().isoformat(),
        "because": [*choice.reasons],
        "reasons": reasons,
        "fingerprint": fingerprint.to_json(),
        "state": state,
    }


def _compare(competition: Competition, record: dict[str, Any], state: dict[str, str]) -> None:
    """Warns if another recipe would be chosen now."""
    path, before = choice_file(competition), record.get("state")
    before = before if isinstance(before, dict) else {}
    changed = [word for word, value in state.items() if value and before.get(word) not in (value, None)]
    if not changed:
        return
    try:
        _, choice = chosen(competition)
    except PipelineError:  # the stage that reads the raw files reports it
        return
    if (choice.recipe, choice.settings) == (record["recipe"], record["settings"]):
        write_json(path, record | {"state": state})
        return
    now = choice.recipe if choice.recipe != record["recipe"] else _difference(record["settings"], choice.settings)
    warn(
        f"auto: {' and '.join(changed)} changed since the recipe for {competition.name} was chosen. It is kept; now "
        f"the choice would be {now}. To choose again, delete {shown(path)}."
    )


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    old, new = flatten(before), flatten(now)
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return ", ".join(f"{key} {rules.shown(new.get(key))} instead of {rules.shown(old.get(key))}" for key in keys)


def _state(competition: Competition) -> dict[str, str]:
    """Returns what a choice depends on: hashes of the data (names and sizes of files; "" if they are not there) and of
    the settings, and the properties of this machine."""
    machine = this_machine()
    settings = competition.model_dump(mode="json", exclude=LEFT_OUT)
    given = [competition.baseline.get("base"), image_settings(competition.baseline)]
    return {
        "the data": _hash_of_files(competition),
        "the competition's settings": _hash(json.dumps([settings, given, SAMPLE], sort_keys=True, default=str)),
        "the GPU or the installed weights": f"{machine.gpu or 'no GPU'}, {'' if machine.has_weights else 'no '}weights",
    }


def _hash_of_files(competition: Competition) -> str:
    folder = input_folder(competition)
    if not folder.is_dir():
        return ""
    try:
        places = reader_of(competition).raw_files(competition, folder, "train")
        return _hash("\n".join(sorted(f"{path} {size}" for place in places for path, size in _sizes(place, folder))))
    except (PipelineError, OSError):
        return ""


def _sizes(place: Path, folder: Path) -> Iterator[tuple[str, int]]:
    """Yields the path relative to `folder`, and the size in bytes, of a file or of all files in a folder."""
    if not place.is_dir():
        yield os.path.relpath(place, folder), place.stat().st_size
        return
    for parent, _, names in os.walk(place, followlinks=True):
        for name in names:
            path = Path(parent, name)
            yield os.path.relpath(path, folder), path.stat().st_size


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
