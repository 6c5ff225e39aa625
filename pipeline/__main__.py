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

from pipeline import kaggle_commands
from pipeline.core import deadline, interruption, shortage
from pipeline.core.errors import PipelineError
from pipeline.core.launch import LOG_LEVEL, launched
from pipeline.core.version import VERSION, program
from pipeline.options import Assignments, HowOptions, RecipeName, RunOptions, WhereOptions, with_options
from pipeline.stages import STAGE_HELP, STAGES

if TYPE_CHECKING:
    from pipeline.core.run import Run

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
    add_completion=False,
    pretty_exceptions_enable=False,
)

CompetitionName = Annotated[str, typer.Option("--competition", help="A competition's name, or the path of its YAML.")]


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
    first: Annotated[str, typer.Option("--from", metavar="STAGE", help="The first stage to run.")] = STAGES[0],
    last: Annotated[str, typer.Option("--to", metavar="STAGE", help="The last stage to run.")] = STAGES[-1],
    where: WhereOptions = WhereOptions(),
    how: HowOptions = HowOptions(),
) -> None:
    """Run every stage that is not up to date, from raw files to the submission and its report."""
    from rich.markup import escape

    from pipeline import stages
    from pipeline.core import driver
    from pipeline.core.console import console, say
    from pipeline.core.files import shown
    from pipeline.notebook import ensure_sample
    from pipeline.status import summary

    opened = options.open(recipe)
    chosen, final = _chosen(opened, first, last)
    where.begin()
    engine = how.open_engine()
    started = time.perf_counter()
    place = escape(shown(opened.folder))
    console.print(f"[bold]{escape(opened.name)}[/bold]: {' → '.join(chosen)}; artefacts in {place}/")
    if opened.recipe.takes and "train" in chosen:
        say(f"  all of it, as the recipe stands, took {opened.recipe.takes}")
    ensure_sample(opened)
    interruption.work_began()
    stages.check_tuned(opened, *chosen)
    stages.refresh_test(opened, *chosen)
    stages.warn_of_stale(opened, first)
    elsewhere = where.place is not None and "train" in chosen
    if "train" in chosen and not elsewhere:
        _preflight(opened, how.force, "decode" in chosen)
    for stage in chosen:
        deadline.check(stage)
        if elsewhere and stage == "train":
            kaggle_commands.train_there(opened, where, how.force)
        else:
            driver.run_stage(opened, stage, how.force, engine=engine)
    if final != last:
        say("  no submission: there are no predictions of the test images (--test, or arrays.test in a recipe)")
    for line in summary(opened, time.perf_counter() - started):
        typer.echo(line)
    _exit_strict(opened, how.strict)


def _chosen(opened: "Run", first: str, last: str) -> tuple[tuple[str, ...], str]:
    """Returns the stages from the first to the last, and which one really is the last."""
    for stage in (first, last):
        if stage not in STAGES:
            raise PipelineError(f"there is no stage {stage!r}; the stages are {', '.join(STAGES)}.")
    from pipeline import stages

    arrays = opened.recipe.arrays
    with_test = opened.competition.has_test
    final = "tune" if with_test and arrays and not arrays.test and last == STAGES[-1] else last
    chosen = STAGES[STAGES.index(first) : STAGES.index(final) + 1]
    if chosen and not with_test:
        stages.require_test_set(opened, last)
        chosen = tuple(stage for stage in chosen if stage not in stages.ANSWER_FOR_TEST)
    if not chosen:
        raise PipelineError(f"--from {first} comes after --to {final}; the order is {', '.join(STAGES)}.")
    return chosen, final


def _stage_command(stage: str, without: Collection[str]) -> None:
    """Adds the command of a stage, without the options that it has no use for."""

    @app.command(stage, help=STAGE_HELP[stage])
    @with_options(without=without)
    def command(recipe: RecipeName, options: RunOptions = RunOptions(), how: HowOptions = HowOptions()) -> None:
        opened = options.open(recipe)
        _run_stage(opened, stage, how)
        if stage == "encode":
            _say_verdict(opened)
            _exit_strict(opened, how.strict)


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
        _run_stage(options.open(recipe), "predict", how)
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
            _run_stage(options.open(recipe), "report", how)
        return
    from pipeline.core.files import shown
    from pipeline.report import compare_page

    typer.echo(shown(compare_page.write([f"{name}-quick" if options.quick else name for name in recipes])))


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
    names: Annotated[list[str], typer.Argument(metavar="RUN", help="Names of runs, or competition/name.")],
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
@with_options(without=("competition", "oof", "test", "strict", "force", "verify"))
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


@app.command()
def sample(
    train: Annotated[int, typer.Option(help="Training images.")] = 240,
    test: Annotated[int, typer.Option(help="Test images.")] = 120,
    seed: Annotated[int, typer.Option(help="The same seed writes the same files.")] = 0,
) -> None:
    """Write the synthetic ultrasound competition to input/sample."""
    from pipeline.core.console import counting, say
    from pipeline.core.files import input_root, shown
    from pipeline.new.sample import write_sample

    folder = input_root() / "sample"
    with counting("sample") as show:
        write_sample(folder, train, test, seed, show)
    say(f"sample: {train} training and {test} test images → {shown(folder)}")


@app.command()
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call the competition, e.g. my-cells.")],
    folder: Annotated[Path, typer.Option("--from", metavar="FOLDER", help="The raw files, as downloaded.")],
    target: Annotated[
        Path | None, typer.Option("--to", metavar="FOLDER", help="Where to write competitions/ and recipes/.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a competition and recipe of this name.")] = False,
    assignments: Assignments = None,
) -> None:
    """Look at raw files and write a first competition YAML and recipe, with every guess marked."""
    from pipeline.new.wizard import write_new

    for line in write_new(name, folder, target, force, assignments or ()).lines():
        typer.echo(line)


@app.command()
def check(
    submission_path: Annotated[Path, typer.Argument(metavar="SUBMISSION.csv")],
    competition: CompetitionName,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 too where it is valid and the verdict is `do not submit`.")
    ] = False,
) -> None:
    """Say whether a submission is valid: exit 0, or 1 with its faults and their rows; and where it looks wrong."""
    from pipeline.core.verdict import lines, verdict_of
    from pipeline.encode import sanity, submission

    loaded, want = submission.expected_by_name(competition)
    faults, reasons = sanity.examine(submission_path, want, loaded, certainty=True)
    reasons = reasons if faults else [*sanity.format_note(want, loaded), *reasons]
    for fault in faults[:50]:
        typer.echo(f"{submission_path}: {fault}")
    if len(faults) > 50:
        typer.echo(f"… and {len(faults) - 50} more")
    verdict = verdict_of(reasons)
    for line in [*lines(reasons), *([] if verdict == "fine" else [f"  verdict: {verdict}"])]:
        typer.echo(line, err=True)
    said = "1 fault" if len(faults) == 1 else f"{len(faults)} faults" if faults else "valid"
    wrong = verdict == "do not submit"
    said += f", but it looks wrong{' (--strict)' if strict else ''}" if wrong else ""
    typer.echo(f"{submission_path}: {said}")
    raise typer.Exit(1 if faults or (strict and wrong) else 0)


@app.command()
def score(
    submission_path: Annotated[Path, typer.Argument(metavar="SUBMISSION.csv")],
    truth: Annotated[Path, typer.Argument(metavar="TRUTH", help="Known masks, in the submission's format.")],
    competition: CompetitionName,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Score a submission against known masks with the competition's metric."""
    import json

    from pipeline.encode import scoring, submission

    loaded, want = submission.expected_by_name(competition)
    value, rows = scoring.score(submission_path, truth, loaded, want)
    remark = f" ({loaded.remark})" if loaded.remark else ""
    result = {"score": value, "rows": rows, "metric": loaded.metric}
    result |= {"remark": loaded.remark} if remark else {}
    typer.echo(json.dumps(result) if as_json else f"{loaded.metric} {value:.4f} over {rows} rows{remark}")


kaggle_commands.register(app)


@app.command()
def doctor() -> None:
    """Say which versions and device there are, what is missing, and the next command."""
    from pipeline.status import examine

    for line in examine():
        typer.echo(line)


def _run_stage(opened: "Run", stage: str, how: HowOptions) -> None:
    """Runs one stage, with predictions made elsewhere what comes before it too."""

    from pipeline import stages
    from pipeline.core import driver

    stages.require_test_set(opened, stage)
    engine = how.open_engine()
    interruption.work_began()
    if opened.recipe.arrays:
        stages.run_through(opened, stage, how.force, engine)
    else:
        stages.check_tuned(opened, stage)
        stages.refresh_test(opened, stage)
        stages.warn_of_stale(opened, stage)
        if stage == "train":
            _preflight(opened, how.force, decodes=False)
        driver.run_stage(opened, stage, how.force, engine=engine)


def _say_verdict(opened: "Run") -> None:
    """Prints what a submission is worth, and why."""
    from pipeline.status import verdict_lines

    for line in verdict_lines(opened):
        typer.echo(line)


def _exit_strict(opened: "Run", strict: bool) -> None:
    """Ends with exit code 3 where that was asked for, and the submission is not worth an upload."""
    from pipeline.core.verdict import judge

    judged = judge(opened) if strict else None
    if judged and judged.verdict == "do not submit":
        raise typer.Exit(3)


def _preflight(opened: "Run", force: bool, decodes: bool) -> None:
    """Finds what would stop training before anything else is done: other settings, and weights above all. Where raw
    files are missing too, that is said first, and both at once."""
    from pipeline.core import driver
    from pipeline.decode.stage import raw_fault
    from pipeline.train.stage import guard, preflight

    waiting = [state for state in driver.states(opened, "train") if state.reasons and not state.kept]
    if waiting and not force:
        guard(opened, waiting, ("settings",))  # other inputs may yet turn out the same
    if not (waiting or force):
        return
    try:
        preflight(opened)
    except PipelineError as error:
        raw = raw_fault(opened) if decodes and driver.unfinished(opened, "decode") else ""
        if not raw:
            raise
        raise PipelineError(f"{raw}\nBesides: {error}") from error


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
                app(prog_name=program())
    except deadline.TimeIsUp as error:
        typer.echo(f"{error} What is finished is kept: {deadline.how_to_go_on()}", err=True)
        sys.exit(kaggle_commands.UNFINISHED)
    except PipelineError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
