"""The options that several commands share."""

from typing import Annotated

import typer


def _be_verbose(asked: bool) -> None:
    if asked:
        from pipeline.console import be_verbose

        be_verbose()


def _be_quiet(asked: bool) -> None:
    if asked:
        from pipeline.console import be_quiet

        be_quiet()


RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's name, or the path of its YAML.")]
Quick = Annotated[bool, typer.Option("--quick", help="The same pipeline in miniature, as the run <recipe>-quick.")]
Name = Annotated[str | None, typer.Option("--name", help="Another name for the run and its artefacts.")]
Assignments = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; repeatable.")
]
Folds = Annotated[
    str | None, typer.Option("--folds", metavar="0,2", help="Only these folds: short for --set train.folds=[0,2].")
]
Oof = Annotated[
    str | None,
    typer.Option(
        "--oof", metavar="OOF.npy", help="Out-of-fold predictions made elsewhere; RECIPE is then only a name."
    ),
]
Test = Annotated[str | None, typer.Option("--test", metavar="TEST.npy", help="With --oof: those of the test images.")]
Where = Annotated[
    str | None, typer.Option("--competition", help="With --oof: a competition's name, or the path of its YAML.")
]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse a submission that is valid and looks wrong.")]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose", "-v", callback=_be_verbose, expose_value=False, help="Say why, how long and with how much memory."
    ),
]
Silent = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", callback=_be_quiet, expose_value=False, help="Say nothing but results, warnings and errors."
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Do it again, even if it is up to date or throws training away.")]
