"""The options that several commands share."""

from typing import Annotated

import typer

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
Force = Annotated[bool, typer.Option("--force", help="Do it again, even if it is up to date or throws training away.")]
