"""The command line. Heavy packages are imported only by the commands that need them, so `--help` starts at once."""

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
"""Options that only commands with work for an engine have."""
NO_TEST = "--test TEST.npy, or arrays.test in a recipe"


class Commands(TyperGroup):
    """The group of all commands. An EOFError is raised as a RuntimeError: Typer would only print "Aborted."."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command that the arguments name."""
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
        str, typer.Option("--from", metavar="STAGE", help="First stage to run.", autocompletion=completion.stages)
    ] = STAGES[0],
    last: Annotated[
        str, typer.Option("--to", metavar="STAGE", help="Last stage to run.", autocompletion=completion.stages)
    ] = STAGES[-1],
    where: WhereOptions = WhereOptions(),
    how: HowOptions = HowOptions(),
) -> None:
    """Run every stage that is not up to date, from the raw files to the submission and its report."""
    opened = None if options.time else options.open(recipe)
    whole = (first, last) == (STAGES[0], STAGES[-1]) and not (where.place or where.limit)
    if opened and opened.budget and opened.is_planned and whole:
        options = options.of_time(opened.budget)
    if options.time:
        if not whole:
            other = "--on" if where.place else "--stop-after" if where.limit else "--from and --to"
            raise PipelineError(f"--time plans a whole run on this machine: leave {other} out.")
        from pipeline import planned_run

        planned_run.run_in_time(recipe, options, how)
        return
    from pipeline import stages
    from pipeline.core import driver
    from pipeline.core.console import say
    from pipeline.notebook import ensure_sample

    assert opened is not None
    running.check_name_of_plan(opened)
    chosen, final = running.chosen_stages(opened, first, last)
    where.begin()
    engine, started = how.open_engine(), time.perf_counter()
    running.announce(opened, " → ".join(chosen), chosen)
    if opened.recipe.takes and "train" in chosen:
        say(f"  time: {opened.recipe.takes} (measured for the whole recipe)")
    ensure_sample(opened)
    interruption.work_began()
    stages.check_tuned(opened, *chosen)
    stages.refresh_test(opened, *chosen)
    stages.warn_of_stale(opened, first)
    elsewhere = where.place is not None and "train" in chosen
    if "train" in chosen and not elsewhere:
        running.check_training(opened, how.force, "decode" in chosen, "validate" in chosen)
    for stage in chosen:
        deadline.check(stage)
        if stage == "train" and "encode" in chosen:
            running.check_submission(opened)
        if elsewhere and stage == "train":
            kaggle_commands.train_there(opened, where, how.force)
        else:
            driver.run_stage(opened, stage, how.force, engine=engine)
    if final != last:
        say("  no submission: predictions for the test images are missing (give --test, or arrays.test in the recipe)")
    running.conclude(opened, how, time.perf_counter() - started, STAGES)


def _stage_command(stage: str, without: Collection[str]) -> None:
    """Adds the command of one stage, without the options named in `without`."""

    @app.command(stage, help=STAGE_HELP[stage])
    @with_options(without=without)
    def command(recipe: RecipeName, options: RunOptions = RunOptions(), how: HowOptions = HowOptions()) -> None:
        running.run_stage(options.open(recipe), stage, how)


@app.command("predict", help=STAGE_HELP["predict"])
@with_options(without=("strict",))
def predict(
    recipe: RecipeName,
    images: Annotated[
        Path | None,
        typer.Option("--images", metavar="FOLDER", help="Predict the images in this folder (any size) instead."),
    ] = None,
    target: Annotated[
        Path | None,
        typer.Option("--to", metavar="OUT", help="With --images: the CSV file or the folder of PNG masks to write."),
    ] = None,
    masks: Annotated[str, typer.Option("--masks", metavar="csv|png", help="With --images: the output format.")] = "csv",
    options: RunOptions = RunOptions(),
    how: HowOptions = HowOptions(),
) -> None:
    """Predict the test images with the models and views that tune chose."""
    if masks not in ("csv", "png"):
        raise PipelineError(f"--masks {masks}: expected csv or png.")
    if images is None:
        if target or masks != "csv":
            raise PipelineError("--to and --masks can only be used together with --images FOLDER.")
        running.run_stage(options.open(recipe), "predict", how)
        return
    from pipeline.predict_folder import predict_folder

    predict_folder(options.open(recipe), images, target, "png" if masks == "png" else "csv")


for _stage in (stage for stage in STAGES[:-1] if stage != "predict"):
    _without: tuple[str, ...] = ("oof", "test") if _stage in ("decode", "clean", "split", "train") else ()
    _without += ("folds", "time") if _stage in ("decode", "clean", "split") else ()
    _engine = () if _stage in ("train", "validate") else ENGINE
    _stage_command(_stage, (*_without, *_engine, *(() if _stage == "encode" else ("strict",))))


@app.command(help=STAGE_HELP["report"])
@with_options(without=("strict", *ENGINE))
def report(
    recipes: Annotated[
        list[str], typer.Argument(metavar="RECIPE…", help="Names of recipes, or paths of their YAML files.")
    ],
    compare_runs: Annotated[
        bool, typer.Option("--compare", help="Write one page that compares these runs (given by their names).")
    ] = False,
    options: RunOptions = RunOptions(),
    how: HowOptions = HowOptions(),
) -> None:
    """Write the HTML report of a run."""
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
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port, reachable from this machine only; 0: any free port.")
    ] = 0,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Print the address, do not open a browser.")] = False,
) -> None:
    """Decide on findings and suspected labels in a browser. Each decision is saved at once."""
    from pipeline.review.command import review as serve

    serve(options.open(recipe), port, not no_browser)


@app.command()
@with_options(without=("strict", "as_json", "oof", "test"))
def export(
    recipe: RecipeName,
    target: Annotated[
        Path | None, typer.Option("--to", metavar="FOLDER", help="The folder to write; default: <run>-onnx here.")
    ] = None,
    file_format: Annotated[str, typer.Option("--format", metavar="onnx", help="The format of the models.")] = "onnx",
    options: RunOptions = RunOptions(),
) -> None:
    """Write the models of a finished run as ONNX files, for use outside this project."""
    if file_format != "onnx":
        raise PipelineError(f"--format {file_format}: expected onnx.")
    from pipeline.export import command

    opened = options.open(recipe)
    for line in command.lines(opened, command.export(opened, target)):
        typer.echo(line)


@app.command()
@with_options()
def status(recipe: RecipeName, options: RunOptions = RunOptions()) -> None:
    """Show which stages are up to date, which stage is next, and the command that runs it."""
    from rich.console import Console

    from pipeline.core import driver
    from pipeline.status import next_command, plan_lines, status_table

    opened = options.open(recipe)
    table, next_stage = status_table(opened)
    Console(width=None if sys.stdout.isatty() else 160, emoji=False).print(table)
    for line in plan_lines(opened):
        Console(soft_wrap=True, emoji=False).print(line, highlight=False, markup=False)
    message = f"next: {next_command(opened)}" if next_stage else "everything is up to date"
    if next_stage and driver.Stage(next_stage).needs_test and opened.recipe.arrays and not opened.recipe.arrays.test:
        message = f"{next_stage} and later stages need predictions for the test images: {NO_TEST}"
    Console(soft_wrap=True, emoji=False).print(message, highlight=False, markup=False)


@app.command()
def compare(
    names: Annotated[
        list[str],
        typer.Argument(metavar="RUN", help="Names of runs, or competition/name.", autocompletion=completion.runs),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Compare runs: scores, paired differences from the first run with standard errors, model size and speed."""
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
@with_options(without=("time", "competition", "oof", "test", "strict", "force", "verify", "as_json"))
def sweep(
    recipe: RecipeName,
    over: Annotated[
        list[str] | None,
        typer.Option("--over", metavar="KEY=A,B,C", help="Values to try, or a range: KEY=LOW..HIGH[:log]. Repeatable."),
    ] = None,
    trials: Annotated[
        int | None, typer.Option("--trials", min=1, help="Sample this many trials (TPE) instead of all combinations.")
    ] = None,
    no_prune: Annotated[
        bool, typer.Option("--no-prune", help="Run every trial on all folds, even when its score is low.")
    ] = False,
    options: RunOptions = RunOptions(),
    how: HowOptions = HowOptions(),
) -> None:
    """Try many settings on the same folds: a table, the best as a recipe, and the optimism of that choice."""
    from rich.console import Console

    from pipeline.notebook import ensure_sample
    from pipeline.sweep import command
    from pipeline.train.stage import preflight

    if recipe == "auto":
        raise PipelineError(
            "sweep needs the name or the path of a recipe or a competition: write a recipe whose `base` is the one "
            "that auto chose, or use `new`, which writes the choice into the competition's YAML."
        )
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
    permutations: Annotated[int, typer.Option("--permutations", min=1, help="Number of random permutations.")] = 5,
) -> None:
    """Check tune's estimate on randomly permuted masks.

    Exit code 0 if the estimate falls to the score of a constant prediction, as it must; 1 if it does not.
    """
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
    """Yields True in the process that runs the command. Under torchrun or SLURM that is the first process; the others
    only take part in its training."""
    if launched() is None:
        yield True
        return
    os.environ.setdefault(LOG_LEVEL, "ERROR")
    from pipeline.train import devices

    with devices.joined() as leads:
        yield leads


def main() -> None:
    """Runs the command line.

    Exit codes: 2 after a PipelineError, whose message is printed; 4 when the time of `--time` is over; 128 plus the
    signal's number after a signal.
    """
    try:
        shortage.quiet_threads()
        with interruption.exit_codes(), shortage.explained(), _joined() as leads:
            if leads:
                completion.require_command(sys.argv[1:])
                app(prog_name=program())
    except deadline.TimeIsUp as error:
        _fail(f"{error} Finished work is kept: {deadline.how_to_go_on()}", kaggle_commands.UNFINISHED)
    except PipelineError as error:
        _fail(f"error: {error}", 2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except SystemExit as ended:
        if ended.code in (*interruption.EXIT_CODES, kaggle_commands.UNFINISHED):
            _emit_error("not finished: run the same command again to continue", int(ended.code))
        raise
    except Exception as error:
        _emit_error(f"{type(error).__name__}: {error}", 1)
        raise


def _fail(message: str, exit_code: int) -> None:
    """Prints a message on standard error and exits with `exit_code`."""
    _emit_error(message.removeprefix("error: "), exit_code)
    typer.echo(message, err=True)
    sys.exit(exit_code)


def _emit_error(message: str, exit_code: int) -> None:
    """Emits an error event if `--json` was given: only then has the events module been imported."""
    if "pipeline.core.events" in sys.modules:
        from pipeline.core import events

        events.emit(events.Error(message, exit_code))


if __name__ == "__main__":
    main()
