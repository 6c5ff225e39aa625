"""The commands for courses: `check-model` checks a network before training, `make-competition` makes a competition."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.core.errors import PipelineError
from pipeline.options import Assignments

if TYPE_CHECKING:
    from pipeline.teach.examples import Source


def register(app: typer.Typer) -> None:
    """Adds these commands to the command line."""
    app.command("check-model")(check_model)
    app.command("make-competition")(make_competition)


def check_model(
    name: Annotated[
        str,
        typer.Argument(metavar="NETWORK", help="module:Class, or an architecture of segmentation-models-pytorch."),
    ],
    size: Annotated[
        str, typer.Option("--size", metavar="ROWSxCOLUMNS", help="Size of the images: one side, or rows × columns.")
    ] = "64",
    channels: Annotated[int, typer.Option("--channels", help="Number of channels of the images.")] = 1,
    classes: Annotated[int, typer.Option("--classes", help="Number of channels of the logits.")] = 1,
    encoder: Annotated[
        str, typer.Option("--encoder", help="Encoder, if NETWORK is the name of an architecture.")
    ] = "resnet18",
    options: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="KEY=VALUE", help="Argument of the class. Repeatable."),
    ] = None,
    minutes: Annotated[
        float, typer.Option("--minutes", help="Time limit in minutes for training on eight drawn images.")
    ] = 1.0,
    seed: Annotated[
        int, typer.Option("--seed", min=0, max=2**32 - 1, help="Random seed of the weights and the drawn images.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Check a network before training: shapes, parameters, gradients, logits, and whether it can learn."""
    import json
    import sys

    from rich.console import Console

    from pipeline.core.console import loading_torch

    rows_columns = _size_of(size)
    with loading_torch():
        from pipeline.teach import check_model as checking
    settings = checking.model_settings(name, encoder, options or [])
    report = checking.check_model(checking.Request(settings, rows_columns, channels, classes, minutes, seed))
    if as_json:
        typer.echo(json.dumps(report.as_json(), ensure_ascii=False))
    else:
        Console(width=None if sys.stdout.isatty() else 120, emoji=False).print(report.table())
        typer.echo(report.last_line())
    raise typer.Exit(0 if report.passed else 1)


def _size_of(text: str) -> tuple[int, int]:
    """The rows and columns in a text such as `96` or `96x128`."""
    if not re.fullmatch(r"\d{1,5}([x×]\d{1,5})?", text):
        raise PipelineError(f"--size {text}: expected one side or ROWSxCOLUMNS, for instance 128 or 96x128.")
    sides = [int(part) for part in re.split("[x×]", text)]
    return sides[0], sides[-1]


def make_competition(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder to write; its name becomes the competition's.")
    ],
    source: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="SOURCE",
            help="Folder of images and masks; name of a competition, or path of its YAML file; or sample.",
        ),
    ],
    name: Annotated[str | None, typer.Option("--name", help="Name of the competition; default: the folder's.")] = None,
    title: Annotated[str | None, typer.Option("--title", help="Title of the competition; default: its name.")] = None,
    test: Annotated[float, typer.Option("--test", help="Share of the images in the test set.")] = 0.3,
    public: Annotated[float, typer.Option("--public", help="Share of the test images in the public part.")] = 0.3,
    group: Annotated[
        str | None, typer.Option("--group", help="Group whose images stay together: a column, or a pattern of the id.")
    ] = None,
    metric: Annotated[
        str | None, typer.Option("--metric", help="Metric, for instance dice; default: the source's.")
    ] = None,
    masks: Annotated[
        str | None,
        typer.Option("--masks", metavar="csv|png", help="Format of the training masks: run lengths or images."),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed", help="Random seed of the split and the ids; default: drawn at random and stored for the teacher."
        ),
    ] = None,
    keep_apart: Annotated[
        bool, typer.Option("--keep-apart", help="Allow near-duplicates in both the training and the test set.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an earlier competition in this folder.")] = False,
    assignments: Assignments = None,
) -> None:
    """Make a competition in Kaggle's format from images and masks: files for students, and the teacher's solution."""
    from pipeline.teach.make_competition import Request, make_competition, with_settings

    raw_files = with_settings(_source(source, assignments or []), group)
    request = Request(folder, name, title, test, public, seed, metric, masks, not keep_apart, force)
    for line in make_competition(raw_files, request).lines():
        typer.echo(line)


def _source(text: str, assignments: list[str]) -> "Source":
    """The raw files that `--from` names, and the settings with which they are read."""
    from pipeline.core.config.raw_layouts import FOLDER, load_competition
    from pipeline.core.config.settings import find_yaml
    from pipeline.core.run import input_folder
    from pipeline.core.written import if_sound
    from pipeline.new.wizard import competition_of
    from pipeline.notebook import ensure_sample, load_run
    from pipeline.teach.examples import Source

    folder = Path(text).expanduser()
    if folder.is_dir():
        place = folder.absolute()
        name = re.sub(r"[^a-z0-9._-]", "-", place.name.lower()).strip("-._") or "source"
        return Source(competition_of(name, place, assignments), place)
    if if_sound(find_yaml, text, FOLDER, "competition") is None:
        raise PipelineError(
            f"--from {text}: there is neither a folder nor a competition of this name; expected a folder of images and "
            "masks, the name of a competition or the path of its YAML, or sample."
        )
    if assignments:
        raise PipelineError(
            "--set can only be used with --from FOLDER; the YAML of a competition gives the settings of its files."
        )
    if text == "sample":
        ensure_sample(load_run("sample"))
    competition = load_competition(text)
    return Source(competition, input_folder(competition))
