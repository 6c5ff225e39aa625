"""The commands for courses: a network checked before it is trained, and a competition made of images and masks."""

import re
from typing import Annotated

import typer

from pipeline.core.errors import PipelineError


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command("check-model")(check_model)


def check_model(
    name: Annotated[
        str,
        typer.Argument(metavar="NETWORK", help="module:Class, or an architecture of segmentation-models-pytorch."),
    ],
    size: Annotated[str, typer.Option("--size", metavar="ROWSxCOLUMNS", help="Of the images, or one side.")] = "64",
    channels: Annotated[int, typer.Option("--channels", help="Of the images.")] = 1,
    classes: Annotated[int, typer.Option("--classes", help="Channels of the logits.")] = 1,
    encoder: Annotated[str, typer.Option("--encoder", help="Of an architecture by its name.")] = "resnet18",
    options: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="KEY=VALUE", help="An argument of the class; repeatable."),
    ] = None,
    minutes: Annotated[float, typer.Option("--minutes", help="For training on eight drawn images.")] = 1.0,
    seed: Annotated[int, typer.Option("--seed", help="Of the weights and the drawn images.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Check a network before it is trained: shapes, parameters, gradients, logits, and whether it can learn."""
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
    """Rows and columns of `96` or `96x128`."""
    if not re.fullmatch(r"\d{1,5}([x×]\d{1,5})?", text):
        raise PipelineError(f"--size {text}: expected one side or ROWSxCOLUMNS, for instance 128 or 96x128.")
    sides = [int(part) for part in re.split("[x×]", text)]
    return sides[0], sides[-1]
