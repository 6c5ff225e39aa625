"""The commands about Kaggle: raw files, submissions and their scores, sessions, bundles, a local leaderboard."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.core.errors import PipelineError
from pipeline.options import HowOptions, RecipeName, RunOptions, Wait, WhereOptions, waiting, with_options

if TYPE_CHECKING:
    from pipeline.core.run import Run

UNFINISHED = 4
"""The exit code of a command that stopped early, as it was told to; the same command goes on."""


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command()(download)
    app.command()(with_options()(submit))
    app.command()(submissions)
    app.command()(leaderboard)
    app.command()(save)
    app.command()(restore)
    app.command()(with_options(without=("strict", "as_json", "competition", "oof", "test"))(bundle))
    app.command()(infer)
    app.command("infer-part", hidden=True)(infer_part)


def train_there(opened: "Run", where: WhereOptions, force: bool) -> None:
    """Trains on Kaggle instead of here; ends the command where what that leaves is not here yet."""
    from pipeline.core.deadline import limit_of
    from pipeline.kaggle import remote

    limit = where.limit or remote.SESSION
    limit_of(limit)
    if not remote.train(opened, limit, where.accelerator, where.patience, force):
        raise typer.Exit(UNFINISHED)


def download(
    competition: Annotated[
        str, typer.Argument(metavar="COMPETITION", help="A competition here, or the last part of its Kaggle address.")
    ],
) -> None:
    """Fetch a competition's raw files into input/: from Kaggle, or Oxford-IIIT Pet; unpack those that are packed."""
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
    message: Annotated[str, typer.Option("--message", "-m", help="What is new; default: the run's name.")] = "",
    kernel: Annotated[
        str | None,
        typer.Option("--kernel", "-k", metavar="OWNER/KERNEL", help="Submit this kernel's output: code competitions."),
    ] = None,
    version: Annotated[int | None, typer.Option("--kernel-version", "-v", help="With -k: which version.")] = None,
    file: Annotated[str, typer.Option("--file", help="With -k: the file that the kernel writes.")] = "submission.csv",
    yes: Annotated[bool, typer.Option("--yes", help="Submit a doubtful file without being asked.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Submit although the verdict is `do not submit`.")] = False,
    wait: Wait = None,
    options: RunOptions = RunOptions(),
) -> None:
    """Check a run's submission, upload it to Kaggle, and write its score beside the estimate."""
    from pipeline.kaggle.submit import Kernel, Request, submit

    if (kernel is None) != (version is None) or (kernel or "/").count("/") != 1:
        raise PipelineError("-k OWNER/KERNEL and -v VERSION go together.")
    if version is not None and version < 1:
        raise PipelineError(f"-v {version}: expected the number of a kernel's version, 1 or more.")
    opened = options.open(recipe)
    chosen = None if kernel is None or version is None else Kernel(kernel, version, file)
    request = Request(message or opened.name, chosen, yes, force, waiting(wait))
    for line in submit(opened, request):
        typer.echo(line)


def submissions(
    competition: Annotated[
        str | None, typer.Argument(metavar="[COMPETITION]", help="Default: every competition that was submitted to.")
    ] = None,
) -> None:
    """List what was submitted, with its estimate and scores, and say which two to select."""
    import sys

    from rich.console import Console

    from pipeline.kaggle import listing, sent

    everything = sent.read()
    names = list(dict.fromkeys(everything["competition"])) if competition is None else [competition]
    if competition is not None and competition not in set(everything["competition"]) or not names:
        raise PipelineError(
            f"Nothing was submitted{f' to {competition}' if competition else ''} yet: `submit` does it."
        )
    competitions = [listing.competition_of(sent.read(name)) for name in names]
    listing.refresh(competitions)
    for loaded in competitions:
        rows = sent.read(loaded.name)
        Console(width=None if sys.stdout.isatty() else 200).print(listing.table_of(rows))
        for line in listing.lines(rows, loaded):
            typer.echo(line)


def leaderboard(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Submissions, of any kind of file.")],
    truth: Annotated[Path, typer.Argument(metavar="TRUTH", help="Known masks, in the submission's format.")],
    competition: Annotated[str, typer.Option("--competition", help="A competition's name, or the path of its YAML.")],
    public: Annotated[
        float | None,
        typer.Option("--public", help="The share of the images that is public; default: TRUTH's column Usage, or 0.3."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Another one draws another public part.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Score a folder of submissions on a public and a private part: a table and a page with the shake-up."""
    from pipeline.core.files import root, shown
    from pipeline.encode.submission import expected_by_name
    from pipeline.kaggle.leaderboard import leaderboard, lines, write

    loaded, want = expected_by_name(competition)
    board = leaderboard(folder, truth, loaded, want, public, seed)
    written = write(board, root() / "work" / loaded.name)
    if as_json:
        typer.echo(board.rows.to_json(orient="records"))
        return
    for line in [*lines(board), *map(shown, written)]:
        typer.echo(line)


def save(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the private dataset, with or without its owner.")],
    message: Annotated[str, typer.Option("--message", "-m", help="What the version is called.")] = "session",
) -> None:
    """Save work/, folds/ and submissions/ as a private Kaggle dataset, for the next session."""
    from pipeline.kaggle import session

    typer.echo(session.save(name, message))


def restore(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the dataset that `save` made; attached or not.")],
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
) -> None:
    """Put back what `save` saved."""
    from pipeline.kaggle import session

    typer.echo(session.restore(name, force))


def bundle(
    recipes: Annotated[list[str], typer.Argument(metavar="RECIPE…", help="One run, or several: an ensemble of them.")],
    python: Annotated[str, typer.Option("--python", help="The notebook's version of Python.")] = "3.12",
    wheel_folder: Annotated[
        Path | None,
        typer.Option("--wheels", metavar="FOLDER", help="Take wheels from here instead of downloading them."),
    ] = None,
    limit: Annotated[str, typer.Option("--time", metavar="8.5h", help="What the notebook keeps to; none: any.")] = "8h",
    output: Annotated[
        str | None,
        typer.Option("--output", help="The notebook's file; default: submission, of the competition's kind."),
    ] = None,
    user: Annotated[str, typer.Option("--user", help="Your name on Kaggle, for the metadata.")] = "USERNAME",
    half: Annotated[bool, typer.Option("--half", help="Store weights in fp16, and measure what that changes.")] = False,
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="Run it here afterwards as Kaggle would, on several test sets.")
    ] = False,
    push: Annotated[
        bool, typer.Option("--push", help="Upload it, wait for the notebook's commit run, check it, offer to submit.")
    ] = False,
    message: Annotated[str, typer.Option("--message", "-m", help="With --push: what the submission is called.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="With --push: submit without being asked.")] = False,
    options: RunOptions = RunOptions(),
    how: HowOptions = HowOptions(),
) -> None:
    """Pack a finished run for an offline code competition: weights, wheels and the notebook that predicts."""
    from pipeline.core.files import shown
    from pipeline.kaggle.bundle import build, rehearsal
    from pipeline.kaggle.push_bundle import push_bundle
    from pipeline.kaggle.submit import Request, slug_of

    wanted = build.Options(python, wheel_folder, limit, output, user, half, how.force)
    build.check_options(wanted)
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
    typer.echo(shown(build.write_bundle(opened, wanted, engine)))
    if rehearse:
        rehearsal.rehearse(opened)
    if push:
        for line in push_bundle(opened, build.folder_of(opened), Request(message or opened.name, yes=yes)):
            typer.echo(line)


def infer(
    folder: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The folder with bundle.json.")],
    target: Annotated[Path, typer.Option("--to", help="The file to write; its name says its kind.")] = Path(
        "submission.csv"
    ),
    limit: Annotated[
        str | None,
        typer.Option("--time", metavar="8.5h", help="How long it may take; none: any. Default: the bundle's."),
    ] = None,
    started: Annotated[float | None, typer.Option("--started", hidden=True)] = None,
) -> None:
    """Predict the test set that is here now by a bundle; the bundle's notebook calls it."""
    from pipeline.kaggle.bundle import inference

    inference.infer(folder, target, limit, started)


def infer_part(part: str, folder: Path) -> None:
    """Do a part of an inference that needs a network; `infer` calls it."""
    from pipeline.kaggle.bundle import parts

    parts.run_part(part, folder, HowOptions().open_engine())
