"""Makes a competition, as Kaggle stores it, of images whose masks are known.

    python -m pipeline make-competition cells --from ~/data/cells

writes  cells/students/ and cells/cells.zip: train/, test/, train.csv or train_masks/, sample_submission.csv, metric.py,
        DATA.md, a competition's YAML and a recipe
        cells/teacher/: solution.csv with Kaggle's Usage column, key.csv (which image each id is), made.json
"""

import re
import secrets
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from pipeline.core.config.competition import Competition
from pipeline.core.config.raw_layouts import FOLDER
from pipeline.core.config.settings import find_yaml
from pipeline.core.errors import PipelineError
from pipeline.core.files import input_root, shown, write_json, write_png
from pipeline.core.tables import write_for_people
from pipeline.core.version import program
from pipeline.core.written import if_sound
from pipeline.teach import competition_files as files
from pipeline.teach.competition_metric import check_metric, metric_text
from pipeline.teach.competition_page import data_page, data_picture, picture_path
from pipeline.teach.competition_split import Plan, plan
from pipeline.teach.examples import Example, Source, read_examples, telling_properties

RECORD = "made.json"


@dataclass(frozen=True)
class Request:
    """What is to be made."""

    folder: Path
    """Where; it is made, and what was made there before is only replaced by `force`."""
    name: str | None = None
    """Of the competition; None: the folder's."""
    title: str | None = None
    test: float = 0.3
    """The share of the images that is test."""
    public: float = 0.3
    """The share of the test images that is scored publicly."""
    seed: int | None = None
    """Of the split and the ids; None: drawn, and kept in made.json."""
    metric: str | None = None
    """None: the source's."""
    masks: str | None = None
    """`csv` or `png`; None: run lengths, of class maps images."""
    keep_duplicates_together: bool = True
    force: bool = False


@dataclass(frozen=True)
class Written:
    """What was made."""

    folder: Path
    archive: Path
    name: str
    counts: dict[str, int]
    """Images: train, test, public, private; and sets of images that were kept together."""
    remarks: list[str]

    def lines(self) -> list[str]:
        """Returns what to tell the teacher, with the next commands."""
        counts, students, teacher = self.counts, self.folder / files.STUDENTS, self.folder / files.TEACHER
        competition = students / "competitions" / f"{self.name}.yaml"
        recipe = students / "recipes" / f"{self.name}.yaml"
        return [
            f"students  {self.archive}, {self.archive.stat().st_size / 1e6:.1f} MB: {counts['train']} training and "
            f"{counts['test']} test images; unpacked in {students}",
            f"teacher   {teacher / 'solution.csv'} and key.csv: {counts['public']} test images are public, "
            f"{counts['private']} private. Give none of it away.",
            f"look at   {students / 'DATA.md'} and {picture_path(students)}",
            *(f"note      {remark}" for remark in self.remarks),
            f"next      ln -s {quote(str(students.absolute()))} {quote(shown(input_root() / self.name))}",
            f"          {program()} run {quote(str(recipe))} --quick",
            f"          {program()} leaderboard SUBMISSIONS {quote(str(teacher / 'solution.csv'))} "
            f"--competition {quote(str(competition))}",
        ]


def make_competition(source: Source, request: Request) -> Written:
    """Returns what was made of a source.

    Raises:
        PipelineError: a wrong option, something else lies at the folder, the source has faults or too few images, or
            metric.py cannot hold the metric.
    """
    _check_options(request, source)
    name = _checked_name(request)
    competition = source.competition
    multiclass = competition.kind == "multiclass"
    metric = check_metric(request.metric or competition.metric, multiclass)
    if request.masks not in (None, "csv", "png") or (multiclass and request.masks == "csv"):
        expected = "png, as the source has class maps" if multiclass else "csv or png"
        raise PipelineError(f"--masks {request.masks}: expected {expected}.")
    examples = read_examples(source)
    seed = secrets.randbits(48) if request.seed is None else request.seed
    duplicates = competition.clean.duplicates if request.keep_duplicates_together else None
    planned = plan(examples, request.test, request.public, seed, duplicates)
    masks = request.masks or ("png" if multiclass else "csv")
    shapes = {example.shape[:2] for example in examples}
    training_sets = len(np.unique(planned.clusters[~planned.test]))  # two per fold, so that none stands alone
    made = files.Made(
        name, request.title or _title(name), files.plain_labels(competition), competition.kind, masks, metric,
        files.channels_of(examples), shapes.pop() if len(shapes) == 1 else None, max(2, min(5, training_sets // 2)),
        any(planned.groups), request.keep_duplicates_together,
    )  # fmt: skip
    record = _record(request, seed, source, planned)
    _write(request, examples, planned, made, record)
    archive = request.folder / f"{name}.zip"
    remarks = [*telling_properties(examples), *_share_remarks(request, record["counts"]), *_metric_remarks(competition)]
    return Written(request.folder, archive, name, record["counts"], remarks)


def _checked_name(request: Request) -> str:
    """The competition's name; raises PipelineError where it is none, or where something lies at the folder."""
    name = request.name or request.folder.absolute().name
    if not re.fullmatch(r"[a-z0-9_][a-z0-9._-]*", name):
        raise PipelineError(
            f"{name!r} is no name for a competition; expected a-z, 0-9, `.`, `_`, `-`: give one with --name."
        )
    if if_sound(find_yaml, name, FOLDER, "competition") is not None:
        raise PipelineError(
            f"{name} is the name of a competition that the pipeline knows already: give another one with --name."
        )
    folder, before = request.folder, _beside(request.folder)[1]
    if before.exists() and not folder.exists():  # killed between two renames
        before.rename(folder.resolve())
    if folder.is_dir() and not any(folder.iterdir()):
        return name
    if folder.exists() and not (folder / files.TEACHER / RECORD).is_file():
        raise PipelineError(f"{folder} holds something else than a competition made before: name another folder.")
    if folder.exists() and not request.force:
        raise PipelineError(f"{folder} is there already; name another folder, or make it anew with --force.")
    return name


def _check_options(request: Request, source: Source) -> None:
    """Raises PipelineError for a wrong option, before any image is read."""
    for key, share in (("--test", request.test), ("--public", request.public)):
        if not 0 < share < 1:
            raise PipelineError(f"{key} {share:g}: expected a share between 0 and 1.")
    if request.seed is not None and request.seed < 0:
        raise PipelineError(f"--seed {request.seed}: expected 0 or more.")
    if request.title is not None and not request.title.isprintable():
        raise PipelineError(f"--title {request.title!r}: expected one line of text without control characters.")
    folder, raw_files = request.folder.resolve(), source.folder.resolve()
    if folder.is_relative_to(raw_files) or raw_files.is_relative_to(folder):
        raise PipelineError(
            f"{request.folder} and the source {source.folder} lie in one another; nothing is written beside raw files: "
            "name a folder elsewhere."
        )


def _title(name: str) -> str:
    """A title that says nothing of the source."""
    return name.replace("-", " ").replace("_", " ").capitalize()


def _record(request: Request, seed: int, source: Source, planned: Plan) -> dict[str, Any]:
    public = int(planned.public.sum())
    tests = int(planned.test.sum())
    counts = {
        "train": len(planned.ids) - tests, "test": tests, "public": public, "private": tests - public,
        "sets": len(np.unique(planned.clusters)),
    }  # fmt: skip
    options = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(request).items()}
    return {**options, "seed": seed, "source": str(source.folder), "read_as": source.competition.name, "counts": counts}


def _share_remarks(request: Request, counts: dict[str, int]) -> list[str]:
    """Sentences on shares that could not be met."""
    images = counts["train"] + counts["test"]
    shares = {
        "test": (request.test, counts["test"], images),
        "public": (request.public, counts["public"], counts["test"]),
    }
    why = "each part needs an image"
    if counts["sets"] < images:
        why = f"images of one group, and near-duplicates, stay together ({counts['sets']} sets in all)"
    return [
        f"--{name} {wanted:g} became {count} of {of} images: {why}."
        for name, (wanted, count, of) in shares.items()
        if abs(count - wanted * of) > max(0.5, 0.05 * of)
    ]


def _metric_remarks(competition: Competition) -> list[str]:
    """Sentences on what the source scores otherwise."""
    if competition.ignore_class is None:
        return []
    return [
        f"The source leaves pixels of the class {competition.ignore_class} out of its score; this competition counts "
        "them like those of any other class."
    ]


def _beside(folder: Path) -> tuple[Path, Path]:
    """Where a competition is written, and where the one before it waits, until both have changed places."""
    target = folder.resolve()
    return target.with_name(f".{target.name}.partial"), target.with_name(f".{target.name}.before.partial")


def _write(request: Request, examples: list[Example], planned: Plan, made: files.Made, record: dict[str, Any]) -> None:
    """Writes everything beside the folder, then moves it there."""
    target = request.folder.resolve()
    unfinished, before = _beside(request.folder)
    shutil.rmtree(unfinished, ignore_errors=True)
    students, teacher = unfinished / files.STUDENTS, unfinished / files.TEACHER
    try:
        students.mkdir(parents=True)
        teacher.mkdir()
        files.write_students(students, examples, planned, made)
        labelled = made.labelled
        (students / "metric.py").write_text(
            metric_text(made.title, made.metric, list(made.row_labels), labelled), "utf-8"
        )
        (students / "DATA.md").write_text(data_page(examples, planned, made), "utf-8")
        write_png(picture_path(students), data_picture(examples, planned, made))
        files.even_times(students)
        files.write_archive(unfinished / f"{made.name}.zip", students)
        files.solution(examples, planned, made).to_csv(teacher / "solution.csv", index=False, lineterminator="\n")
        write_for_people(teacher / "key.csv", files.key(examples, planned))
        write_json(teacher / RECORD, record)
        if target.exists():
            target.rename(before)
        unfinished.rename(target)
        shutil.rmtree(before, ignore_errors=True)
    except OSError as error:
        raise PipelineError(f"{target} could not be written: {error.strerror}. Nothing was changed.") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def with_settings(source: Source, group: str | None) -> Source:
    """Returns a source whose groups are told otherwise; None leaves them as they are."""
    if group is None:
        return source
    return replace(source, competition=source.competition.model_copy(update={"group": group}))
