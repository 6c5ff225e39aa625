"""The command line. Nothing heavy is imported before a command needs it, so `--help` and `status` start at once."""

import os
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from pipeline import completion, data_commands, kaggle_commands, running, teach_commands
from pipeline.core import deadline, interruption, shortage
from pipeline.core.errors import PipelineError
from pipeline.core.launch import LOG_LEVEL, launched
from pipeline.core.version import VERSION, program
from pipeline.options import HowOptions, RecipeName, RunOptions, WhereOptions, with_options
from pipeline.stages import STAGE_HELP, STAGES

if TYPE_CHECKING:
    pass

ENGINE = ("engine", "ray_address")
"""Options of the commands that have something to run on an engine."""
NO_TEST = "--test TEST.npy, or arrays.test in a recipe"


class Commands(TyperGroup):
    """The commands, whose EOFError stays an error: Typer would take it for an answer that nobody gave ("Aborted.")."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command that was asked for."""
        try:
            return super().invoke(ctx)
        except EOFError as error:
            raise RuntimeError(f"a file ends too early: {error}") from error


app = typer.Typer(
    cls=Commands,
    help="Raw competition files in, a submission you can trust out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"segpipe {VERSION}")
        raise typer.Exit


@app.callback()
def _every_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
@with_options()
def run(
    recipe: RecipeName,
    options: RunOptions = RunOptions(),
    first: Annotated[
        str, typer.Option("--from", metavar="STAGE", help="The first stage to run.", autocompletion=completion.stages)
    ] = STAGES[0],
    last: Annotated[
        str, typer.Option("--to", metavar="STAGE", help="The last stage to run.", autocompletion=completion.stages)
    ] = STAGES[-1],
    where: WhereOptions = WhereOptions(),
    how: HowOptions = HowOptions(),
) -> None:
    """Run every stage that is not up to date, from raw files to the submission and its report."""
    from rich.markup import escape

    from pipeline import stages
    from pipeline.core import driver, events
    from pipeline.core.console import console, say
    from pipeline.core.files import shown
    from pipeline.notebook import ensure_sample

    opened = options.open(recipe)
    chosen, final = running.chosen_stages(opened, first, last)
    where.begin()
    engine = how.open_engine()
    started = time.perf_counter()
    place = shown(opened.folder)
    console.print(f"[bold]{escape(opened.name)}[/bold]: {' → '.join(chosen)}; artefacts in {escape(place)}/")
    events.emit(events.RunStarted(opened.name, opened.competition.name, list(chosen), place))
    if opened.recipe.takes and "train" in chosen:
        say(f"  time: {opened.recipe.takes} (measured, for the whole recipe)")
    ensure_sample(opened)
    interruption.work_began()
    stages.check_tuned(opened, *chosen)
    stages.refresh_test(opened, *chosen)
    stages.warn_of_stale(opened, first)
    elsewhere = where.place is not None and "train" in chosen
    if "train" in chosen and not elsewhere:
        running.check_training(opened, how.force, "decode" in chosen)
    for stage in chosen:
        deadline.check(stage)
        if stage == "train" and "encode" in chosen:
            running.check_submission(opened)
        if elsewhere and stage == "train":
            kaggle_commands.train_there(opened, where, how.force)
        else:
            driver.run_stage(opened, stage, how.force, engine=engine)
    if final != last:
        say("  no submission: there are no predictions of the test images (--test, or arrays.test in a recipe)")
    running.conclude(opened, how, time.perf_counter() - started, STAGES)


def _stage_command(stage: str, without: Collection[str]) -> None:
    """Adds the command of a stage, without the options that it has no use for."""

    @app.command(stage, help=STAGE_HELP[stage])
    @with_options(without=without)
    def command(recipe: RecipeName, options: RunOptions = RunOptions(), how: HowOptions = HowOptions()) -> None:
        running.run_stage(options.open(recipe), stage, how)


@app.command("predict", help=STAGE_HELP["predict"])
@with_options(without=("strict",))
def predict(
    recipe: RecipeName,
    images: Annotated[
        Path | None, typer.Option("--images", metavar="FOLDER", help="Predict these images instead, of any size.")
    ] = None,
    target: Annotated[
        Path | None, typer.Option("--to", metavar="OUT", help="With --images: the CSV, or the folder of PNG masks.")
    ] = None,
    masks: Annotated[str, typer.Option("--masks", metavar="csv|png", help="With --images: what to write.")] = "csv",
    options: RunOptions = RunOptions(),
    how: HowOptions = HowOptions(),
) -> None:
    """Predict the test images, as tune chose."""
    if masks not in ("csv", "png"):
        raise PipelineError(f"--masks {masks}: expected csv or png.")
    if images is None:
        if target or masks != "csv":
            raise PipelineError("--to and --masks go with --images FOLDER.")
        running.run_stage(options.open(recipe), "predict", how)
        return
    from pipeline.predict_folder import predict_folder

    interruption.work_began()
    predict_folder(options.open(recipe), images, target, "png" if masks == "png" else "csv")


for _stage in (one for one in STAGES[:-1] if one != "predict"):
    _without: tuple[str, ...] = (
        ("competition", "oof", "test") if _stage in ("decode", "clean", "split", "train") else ()
    )
    _without += ("folds",) if _stage in ("decode", "clean", "split") else ()
    _engine = () if _stage in ("train", "validate") else ENGINE
    _stage_command(_stage, (*_without, *_engine, *(() if _stage == "encode" else ("strict",))))


@app.command(help=STAGE_HELP["report"])
@with_options(without=("strict", *ENGINE))
def report(
    recipes: Annotated[
        list[str], typer.Argument(metavar="RECIPE…", help="Recipes' names, or the paths of their YAML.")
    ],
    compare_runs: Annotated[
        bool, typer.Option("--compare", help="One page on which these runs, by their names, stand side by side.")
    ] = False,
    options: RunOptions = RunOptions(),
    how: HowOptions = HowOptions(),
) -> None:
    """Write one page to look at."""
    if not compare_runs:
        for recipe in recipes:
            running.run_stage(options.open(recipe), "report", how)
        return
    from pipeline.core.files import shown
    from pipeline.report import compare_page

    typer.echo(shown(compare_page.write([f"{name}-quick" if options.quick else name for name in recipes])))


@app.command()
@with_options()
def review(
    recipe: RecipeName,
    options: RunOptions = RunOptions(),
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Of this machine alone; 0: a free one.")] = 0,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Print the address and open no browser.")] = False,
) -> None:
    """Go through findings and suspected labels in a browser; each decision is written at once."""
    from pipeline.review.command import review as serve

    serve(options.open(recipe), port, not no_browser)


@app.command()
@with_options()
def status(recipe: RecipeName, options: RunOptions = RunOptions()) -> None:
    """Show which stages are up to date, which is next, and the command for it."""
    from rich.console import Console

    from pipeline.core import driver
    from pipeline.status import status_table

    opened = options.open(recipe)
    shown_table, following = status_table(opened)
    Console(width=None if sys.stdout.isatty() else 160, emoji=False).print(shown_table)
    said = f"next: {opened.command()}" if following else "everything is up to date"
    if following and driver.Stage(following).needs_test and opened.recipe.arrays and not opened.recipe.arrays.test:
        said = f"{following} and what follows need predictions of the test images: {NO_TEST}"
    Console(soft_wrap=True, emoji=False).print(said, highlight=False, markup=False)


@app.command()
def compare(
    names: Annotated[
        list[str],
        typer.Argument(metavar="RUN", help="Names of runs, or competition/name.", autocompletion=completion.runs),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Set runs side by side: scores, differences to the first with their standard error, size and speed."""
    import json
    from dataclasses import asdict

    from rich.console import Console

    from pipeline.report import compare

    rows = compare.compare(names)
    if as_json:
        typer.echo(json.dumps({"runs": [asdict(row) for row in rows]}, ensure_ascii=False))
        return
    Console(width=None if sys.stdout.isatty() else 200).print(compare.render(rows))
    if any(row.standard_error is not None for row in rows):
        typer.echo(compare.NOTE)


@app.command()
@with_options(without=("competition", "oof", "test", "strict", "force", "verify", "as_json"))
def sweep(
    recipe: RecipeName,
    over: Annotated[
        list[str] | None,
        typer.Option("--over", metavar="KEY=A,B,C", help="Values to try, or a range KEY=LOW..HIGH[:log]; repeatable."),
    ] = None,
    trials: Annotated[
        int | None, typer.Option("--trials", min=1, help="Try so many, sampled (TPE), and not every combination.")
    ] = None,
    no_prune: Annotated[
        bool, typer.Option("--no-prune", help="Let every trial go through all folds, however low its score.")
    ] = False,
    options: RunOptions = RunOptions(),
    how: HowOptions = HowOptions(),
) -> None:
    """Try settings on the same folds: a table, the winner as a recipe, and by how much that choice flatters itself."""
    from rich.console import Console

    from pipeline.notebook import ensure_sample
    from pipeline.sweep import command
    from pipeline.train.stage import preflight

    engine = how.open_engine()
    ensure_sample(options.open(recipe))
    interruption.work_began()
    request = command.Request(
        recipe, tuple(over or ()), trials, options.quick, options.name, tuple(options.changes), not no_prune
    )
    result = command.sweep(request, engine, preflight)
    Console(width=None if sys.stdout.isatty() else 200).print(result.table())
    for line in result.lines():
        typer.echo(line)
    if failed := result.failed():
        raise PipelineError(failed)


@app.command("liars-test")
@with_options()
def liars_test(
    recipe: RecipeName,
    options: RunOptions = RunOptions(),
    permutations: Annotated[int, typer.Option("--permutations", min=1, help="How often masks are permuted.")] = 5,
) -> None:
    """Permute the masks of the held-out images: exit 0 if tune's estimate falls to a constant answer's, else 1."""
    from pipeline.tune import liars
    from pipeline.tune.stage import estimated

    verdict = liars.liars_test(options.open(recipe), estimated, permutations)
    for line in verdict.lines():
        typer.echo(line)
    raise typer.Exit(0 if verdict.honest else 1)


data_commands.register(app)
kaggle_commands.register(app)
teach_commands.register(app)
app.command()(data_commands.doctor)


@contextmanager
def _joined() -> Iterator[bool]:
    """Gives whether this process runs the command; where torchrun or SLURM started several, the first one does, and the
    others have trained beside it."""
    if launched() is None:
        yield True
        return
    os.environ.setdefault(LOG_LEVEL, "ERROR")
    from pipeline.train import devices

    with devices.joined() as leads:
        yield leads


def main() -> None:
    """Runs the command line; a PipelineError becomes one message and exit code 2, the end of `--time`
    exit code 4, a signal 128 plus its number."""
    try:
        shortage.quiet_threads()
        with interruption.exit_codes(), shortage.explained(), _joined() as leads:
            if leads:
                completion.require_command(sys.argv[1:])
                app(prog_name=program())
    except deadline.TimeIsUp as error:
        _fail(f"{error} What is finished is kept: {deadline.how_to_go_on()}", kaggle_commands.UNFINISHED)
    except PipelineError as error:
        _fail(f"error: {error}", 2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except SystemExit as ended:
        if ended.code in (*interruption.EXIT_CODES, kaggle_commands.UNFINISHED):
            _emit_error("not finished: the same command goes on", int(ended.code))
        raise
    except Exception as error:
        _emit_error(f"{type(error).__name__}: {error}", 1)
        raise


def _fail(message: str, exit_code: int) -> None:
    """Ends the program with a message on standard error."""
    _emit_error(message.removeprefix("error: "), exit_code)
    typer.echo(message, err=True)
    sys.exit(exit_code)


def _emit_error(message: str, exit_code: int) -> None:
    """Emits the event of an error where --json asked for events, without whose option their module is not loaded."""
    if "pipeline.core.events" in sys.modules:
        from pipeline.core import events

        events.emit(events.Error(message, exit_code))


if __name__ == "__main__":
    main()
