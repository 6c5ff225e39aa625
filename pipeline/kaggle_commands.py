"""The commands for Kaggle: raw files, submissions and their scores, sessions, bundles, a local leaderboard."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.core.errors import PipelineError
from pipeline.options import HowOptions, RecipeName, RunOptions, Wait, WhereOptions, waiting, with_options

if TYPE_CHECKING:
    from pipeline.core.run import Run

UNFINISHED = 4
"""Exit code of a command that stopped early as requested; running the same command again continues."""


def register(app: typer.Typer) -> None:
    """Adds these commands to the command line."""
    app.command()(download)
    app.command()(with_options()(submit))
    app.command()(submissions)
    app.command()(leaderboard)
    app.command()(save)
    app.command()(restore)
    app.command()(with_options(without=("strict", "as_json", "oof", "test", "time"))(bundle))
    app.command()(infer)
    app.command("infer-part", hidden=True)(infer_part)


def train_there(opened: "Run", where: WhereOptions, force: bool) -> None:
    """Trains on Kaggle instead of this machine.

    Raises:
        Exit: with code UNFINISHED, if the trained weights have not been downloaded yet.
    """
    from pipeline.core.deadline import limit_of
    from pipeline.kaggle import remote

    limit = where.limit or remote.SESSION
    limit_of(limit, "--stop-after")
    if not remote.train(opened, limit, where.accelerator, where.patience, force):
        raise typer.Exit(UNFINISHED)


def download(
    competition: Annotated[
        str,
        typer.Argument(metavar="COMPETITION", help="Name of a competition, or the last part of its address on Kaggle."),
    ],
) -> None:
    """Download a competition's raw files to input/ and unpack archives. Sources: Kaggle, and Oxford-IIIT Pet's site."""
    from pipeline.core.config.raw_layouts import FOLDER, load_competition
    from pipeline.core.config.settings import find_yaml
    from pipeline.core.files import input_root, shown
    from pipeline.core.run import input_folder
    from pipeline.core.version import program
    from pipeline.core.written import if_sound
    from pipeline.kaggle.download import download, download_new

    if if_sound(find_yaml, competition, FOLDER, "competition") is None:
        folder = download_new(competition, input_root() / competition)
        typer.echo(f"{competition} → {shown(folder)}")
        typer.echo(f"next: {program()} new {competition} --from {shown(folder)}")
        return
    loaded = load_competition(competition)
    typer.echo(f"{loaded.title} → {shown(download(loaded, input_folder(loaded)))}")


def submit(
    recipe: RecipeName,
    message: Annotated[
        str, typer.Option("--message", "-m", help="Description of the submission; default: the run's name.")
    ] = "",
    kernel: Annotated[
        str | None,
        typer.Option(
            "--kernel", "-k", metavar="OWNER/KERNEL", help="Submit the output of this notebook (code competitions)."
        ),
    ] = None,
    version: Annotated[
        int | None, typer.Option("--kernel-version", "-v", help="With -k: version of the notebook.")
    ] = None,
    file: Annotated[str, typer.Option("--file", help="With -k: the file that the notebook writes.")] = "submission.csv",
    yes: Annotated[bool, typer.Option("--yes", help="Submit a doubtful file without asking.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Submit even if the verdict is `do not submit`.")] = False,
    wait: Wait = None,
    options: RunOptions = RunOptions(),
) -> None:
    """Check a run's submission, upload it to Kaggle, and record its score next to the estimate."""
    from pipeline.kaggle.submit import Kernel, Request, submit

    if (kernel is None) != (version is None) or (kernel or "/").count("/") != 1:
        raise PipelineError("-k OWNER/KERNEL and -v VERSION must be given together.")
    if version is not None and version < 1:
        raise PipelineError(f"-v {version}: expected the version number of the notebook, 1 or more.")
    opened = options.open(recipe)
    chosen = None if kernel is None or version is None else Kernel(kernel, version, file)
    request = Request(message or opened.name, chosen, yes, force, waiting(wait))
    for line in submit(opened, request):
        typer.echo(line)


def submissions(
    competition: Annotated[
        str | None,
        typer.Argument(metavar="[COMPETITION]", help="Name of a competition; default: all with submissions."),
    ] = None,
) -> None:
    """List the submissions to Kaggle with estimates and scores, and recommend which two to select."""
    import sys

    from rich.console import Console

    from pipeline.kaggle import listing, sent

    everything = sent.read()
    names = list(dict.fromkeys(everything["competition"])) if competition is None else [competition]
    if competition is not None and competition not in set(everything["competition"]) or not names:
        raise PipelineError(
            f"Nothing has been submitted{f' to {competition}' if competition else ''} yet; `submit` uploads a file."
        )
    competitions = [listing.competition_of(sent.read(name)) for name in names]
    listing.refresh(competitions)
    for loaded in competitions:
        rows = sent.read(loaded.name)
        Console(width=None if sys.stdout.isatty() else 200).print(listing.table_of(rows))
        for line in listing.lines(rows, loaded):
            typer.echo(line)


def leaderboard(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of submission files of any format.")],
    truth: Annotated[Path, typer.Argument(metavar="TRUTH", help="True masks, in the format of a submission.")],
    competition: Annotated[str, typer.Option("--competition", help="Name of a competition, or path of its YAML file.")],
    public: Annotated[
        float | None,
        typer.Option("--public", help="Share of the images in the public part; default: TRUTH's column Usage, or 0.3."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Random seed that draws the public part.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Score a folder of submissions on a public and a private part, and write a table and a page with both ranks."""
    from pipeline.core.files import root, shown
    from pipeline.encode.submission import expected_by_name
    from pipeline.kaggle import leaderboard as leaderboards

    loaded, want = expected_by_name(competition)
    board = leaderboards.leaderboard(folder, truth, loaded, want, public, seed)
    written = leaderboards.write(board, root() / "work" / loaded.name)
    if as_json:
        typer.echo(leaderboards.as_json(board))
        return
    for line in [*leaderboards.lines(board), *map(shown, written)]:
        typer.echo(line)


def save(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of the private dataset, with or without its owner.")
    ],
    message: Annotated[str, typer.Option("--message", "-m", help="Description of this version.")] = "session",
) -> None:
    """Save work/, folds/ and submissions/ as a private Kaggle dataset for the next session."""
    from pipeline.kaggle import session

    typer.echo(session.save(name, message))


def restore(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of the dataset that `save` made; it need not be attached.")
    ],
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing files.")] = False,
) -> None:
    """Restore the files that `save` saved."""
    from pipeline.kaggle import session

    typer.echo(session.restore(name, force))


def bundle(
    recipes: Annotated[list[str], typer.Argument(metavar="RECIPE…", help="One run, or several runs as an ensemble.")],
    python: Annotated[str, typer.Option("--python", help="Python version of the notebook.")] = "3.12",
    wheel_folder: Annotated[
        Path | None,
        typer.Option("--wheels", metavar="FOLDER", help="Use the wheels in this folder instead of downloading them."),
    ] = None,
    limit: Annotated[
        str, typer.Option("--time", metavar="8.5h", help="Time limit that the notebook keeps to; none: no limit.")
    ] = "8h",
    output: Annotated[
        str | None,
        typer.Option(
            "--output", help="File that the notebook writes; default: submission.<format of the competition>."
        ),
    ] = None,
    user: Annotated[str, typer.Option("--user", help="Your user name on Kaggle, for the metadata.")] = "USERNAME",
    half: Annotated[
        bool, typer.Option("--half", help="Store weights in fp16, and measure how the predictions change.")
    ] = False,
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="Afterwards, run the bundle here as Kaggle would, on several test sets.")
    ] = False,
    push: Annotated[
        bool, typer.Option("--push", help="Upload the bundle, wait for its run on Kaggle, check it, offer to submit.")
    ] = False,
    message: Annotated[str, typer.Option("--message", "-m", help="With --push: description of the submission.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="With --push: submit without asking.")] = False,
    options: RunOptions = RunOptions(),
    how: HowOptions = HowOptions(),
) -> None:
    """Pack a finished run for an offline code competition: weights, wheels and a notebook that predicts."""
    from pipeline.core.files import shown
    from pipeline.kaggle.bundle import build, rehearsal
    from pipeline.kaggle.push_bundle import push_bundle
    from pipeline.kaggle.submit import Request, slug_of

    build_options = build.Options(python, wheel_folder, limit, output, user, half, how.force)
    build.check_options(build_options)
    alone = len(recipes) == 1
    if not alone and options.name:
        options, name = replace(options, name=None), options.name
    else:
        name = None
    runs = [options.open(recipe) for recipe in recipes]
    if push:
        slug_of(runs[0])
    engine = how.open_engine()
    opened = runs[0] if alone else build.combined(runs, name, engine)
    typer.echo(shown(build.write_bundle(opened, build_options, engine)))
    if rehearse:
        rehearsal.rehearse(opened)
    if push:
        for line in push_bundle(opened, build.folder_of(opened), Request(message or opened.name, yes=yes)):
            typer.echo(line)


def infer(
    folder: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder that contains bundle.json.")],
    target: Annotated[Path, typer.Option("--to", help="File to write; its suffix selects the format.")] = Path(
        "submission.csv"
    ),
    limit: Annotated[
        str | None,
        typer.Option("--time", metavar="8.5h", help="Time limit; none: no limit. Default: the bundle's."),
    ] = None,
    started: Annotated[float | None, typer.Option("--started", hidden=True)] = None,
) -> None:
    """Predict the current test set with a bundle. The bundle's notebook calls this command."""
    from pipeline.kaggle.bundle import inference

    inference.infer(folder, target, limit, started)


def infer_part(part: str, folder: Path) -> None:
    """Run one part of an inference that needs a neural network. `infer` calls this command."""
    from pipeline.kaggle.bundle import parts

    parts.run_part(part, folder, HowOptions().open_engine())
