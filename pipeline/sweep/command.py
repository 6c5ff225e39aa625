"""Compares settings of a recipe on the same folds, finds the best, and estimates how optimistic the best score is.

    python -m pipeline sweep RECIPE --over key=a,b,c [--over key=low..high[:log] --trials N]

reads   the recipe and its competition
writes  work/<competition>/<sweep>/: sweep.db (Optuna's), sweep.csv, sweep.html, <sweep>-winner.yaml and a recipe like
        it of every trial
        work/<competition>/<sweep>-<n>/: the run of each trial, decode to tune

The same command resumes a killed sweep, and on another machine with the same folder it joins the sweep.
"""

import importlib.util
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from pipeline.core import freshness
from pipeline.core.config.settings import flatten
from pipeline.core.console import progress_bar, say, warn
from pipeline.core.driver import run_stage
from pipeline.core.engine import Engine, Needs, Unit
from pipeline.core.errors import PipelineError, first_line
from pipeline.core.files import shown, write_text
from pipeline.core.run import Run, open_run
from pipeline.core.run_checks import check_name
from pipeline.masks.metrics import final_metric
from pipeline.sweep.space import Space, combinations, described, of_recipe, parse, single_changes
from pipeline.sweep.trial import Trial, run_trial

if TYPE_CHECKING:
    from pipeline.sweep.results import Found, Origin
    from pipeline.sweep.study import Trials

SHARED = ("clean", "split")
UNIMPORTANT = (
    "name",
    "base",
    "competition",
    "takes",
    "quick",
    "train.workers",
    "train.parallel",
    "train.loggers",
    "train.folds",
    "train.final",
)
"""Settings of a recipe that no score depends on, with the settings below them."""


@dataclass(frozen=True)
class Request:
    """The arguments of the command line."""

    recipe: str
    over: tuple[str, ...]
    trials: int | None = None
    """The number of trials; None: every combination of the values."""
    quick: bool = False
    name: str | None = None
    assignments: tuple[str, ...] = ()
    prune: bool = True

    def open(self, changes: tuple[str, ...] = ()) -> Run:
        """Returns a run of the recipe with additional changes."""
        return open_run(self.recipe, self.quick, None, [*self.assignments, *changes])


@dataclass(frozen=True)
class Result:
    """The result of a sweep, and its folder."""

    found: "Found"
    space: Space
    folder: Path
    commands: tuple[str, ...]
    """The next commands: continue the winner; after a quick sweep, also the full recipe. Empty without a winner."""

    def table(self) -> Any:
        """Returns the trials as a table for the screen."""
        from pipeline.sweep import results

        return results.render(self.found, self.space)

    def lines(self) -> Iterator[str]:
        """Yields the lines under the table."""
        from pipeline.sweep import results

        yield results.NOTE
        yield from results.sentences(self.found)
        if self.found.winner:
            yield f"  recipe          {shown(self.folder / f'{self.folder.name}-winner.yaml')}"
        yield f"  table           {shown(self.folder / 'sweep.csv')}"
        yield f"  page            {shown(self.folder / 'sweep.html')}"
        for title, command in zip(("next", "the whole"), self.commands, strict=False):
            yield f"  {title:<15} {command}"

    def failed(self) -> str:
        """Returns a sentence about the failed trials; "" if none failed."""
        count, trials = sum(row.state == "failed" for row in self.found.rows), len(self.found.rows)
        return (
            f"{count} of {trials} trials failed, for the reasons in the table; after they are fixed, the same command "
            "runs these trials again."
            if count
            else ""
        )


def sweep(request: Request, engine: Engine, check: Callable[[Run], None]) -> Result:
    """Runs the missing trials, and returns the result.

    Args:
        request: what to vary, and how.
        engine: runs the trials.
        check: raises PipelineError, before anything is trained, if a run's training could not succeed.

    Raises:
        PipelineError: Optuna is not installed, a value is invalid, the sweep was started with other settings, or a
            shared step failed.
    """
    require_optuna()
    from pipeline.sweep import study

    base = request.open()
    if not base.recipe.trains:
        raise PipelineError(
            f"{base.name} does not train (it has `ensemble` or `arrays`), but a sweep trains its trials."
        )
    name = check_name(request.name or f"{base.name}-sweep")
    space = parse(list(request.over), of_recipe(base))
    tried = _checked(request, space, check)
    folder = base.competition_folder / name
    if (folder / "recipe.yaml").exists():
        raise PipelineError(f"{shown(folder)} is the folder of a run: use another --name for the sweep.")
    database = folder / "sweep.db"
    with study.explained(database):
        return _swept(request, engine, base, tried, space, database)


def _swept(request: Request, engine: Engine, base: Run, tried: list[Run], space: Space, database: Path) -> Result:
    """Runs the missing trials and writes the results; raises the errors of `sweep`."""
    from pipeline.sweep import study

    metric, name, folds = final_metric(base.competition), database.parent.name, tuple(base.trained_folds())
    direction = study.StudyDirection.MAXIMIZE if metric.sign > 0 else study.StudyDirection.MINIMIZE
    started = study.begin(database, name, _definition(base, space, request), direction)
    prepared: set[Path] = set()
    for run in [base, *tried]:
        _decode(run, prepared)
    for stage in SHARED:
        run_stage(base, stage, mention=False)
    study.pin(started, shown(base.folds_file), freshness.hash_file(base.folds_file))
    trials = study.Trials(started, database, space, request.trials)
    job = _Sweep(request, name, space, folds, database, trials, prepared)
    _print_start(job)
    _train(job, engine, base)
    return _write(job, base)


def require_optuna() -> None:
    """Checks that Optuna is installed.

    Raises:
        PipelineError: it is not installed.
    """
    if importlib.util.find_spec("optuna") is None:
        raise PipelineError("sweep needs Optuna, which is not installed: pip install optuna.")


@dataclass(frozen=True)
class _Sweep:
    request: Request
    name: str
    space: Space
    folds: tuple[int, ...]
    database: Path
    trials: "Trials"
    prepared: set[Path]

    @property
    def origin(self) -> "Origin":
        """The recipe of the sweep."""
        from pipeline.sweep.results import Origin

        return Origin(self.request.recipe, self.request.quick, self.request.assignments)

    @property
    def wanted(self) -> int:
        """The number of trials of the whole sweep."""
        every, asked = combinations(self.space), self.request.trials
        return min([*([len(every)] if every is not None else []), *([asked] if asked else [])])


# --- before anything is trained --------------------------------------------------------------------------------------


def _checked(request: Request, space: Space, check: Callable[[Run], None]) -> list[Run]:
    """Opens and checks the runs of a grid, or, if the sweep is sampled, runs with one changed value each.

    Raises:
        PipelineError: some are invalid; the message has one sentence per problem.
    """
    every = combinations(space)
    if every is None and request.trials is None:
        raise PipelineError("--over with a range has no limited number of combinations: add --trials N.")
    if request.trials is None:
        asked = [tuple(f"{key}={value}" for key, value in values.items()) for values in every or []]
        first = dict(zip(space, (text.partition("=")[2] for text in asked[0]), strict=True))
        alone = {tuple(f"{k}={v}" for k, v in (first | {key: value}).items()) for key, value in single_changes(space)}
    else:
        asked = [(f"{key}={value}",) for key, value in single_changes(space)]
        alone = set(asked)
    faults: dict[str, None] = {}
    runs = []
    for changes in asked:
        try:
            runs.append(request.open(changes))
            if changes in alone:  # every value once: building networks takes time
                check(runs[-1])
        except PipelineError as error:
            faults[f"--over {' '.join(changes)}: {error}" if len(asked) < 2 else str(error)] = None
    if faults:
        raise PipelineError("\n".join(faults))
    return runs


def _definition(base: Run, space: Space, request: Request) -> dict[str, Any]:
    """Everything that the scores of a sweep depend on, by dotted keys."""
    recipe = {
        key: value
        for key, value in of_recipe(base).items()
        if not any(key == ignored or key.startswith(f"{ignored}.") for ignored in (*UNIMPORTANT, *space))
    }
    competition = {
        f"competition: {key}": value for key, value in flatten(base.competition.model_dump(mode="json")).items()
    }
    over = {f"--over {key}": text for key, text in described(space).items()}
    how = "every combination" if request.trials is None else "sampled"
    return {**over, "--trials": how, **recipe, "--folds": base.trained_folds(), **competition}


def _decode(run: Run, prepared: set[Path]) -> None:
    """Decodes the images for a run's geometry, once for all runs with the same geometry."""
    if run.pixels not in prepared:
        run_stage(run, "decode", mention=False)
        prepared.add(run.pixels)


def _print_start(job: _Sweep) -> None:
    done = len(job.trials.all())
    resumed = f"; {done} of them were started before" if done else ""
    plan = f"{job.wanted} trials of {', '.join(job.space)} on {len(job.folds)} fold{'s' if len(job.folds) > 1 else ''}"
    say(f"{job.name}: {plan}{resumed}; → {shown(job.database.parent)}/")


# --- training --------------------------------------------------------------------------------------------------------


def _train(job: _Sweep, engine: Engine, base: Run) -> None:
    """Runs the missing trials, and writes the table after each trial."""
    from pipeline.sweep import results

    with job.trials.working(), progress_bar() as bar:
        task = bar.add_task("trials", total=job.wanted)
        ended = engine.run(_units(job, base), lambda _, share: bar.advance(task, share))
        for outcome in ended:
            trial: Trial = outcome.unit.argument
            if outcome.error is not None:
                fault = _fault(job, trial, outcome.error)
                warn(f"[yellow]trial {trial.number} failed: {escape(fault)}[/yellow]")
                job.trials.end(trial.number, None, fault)
            else:
                job.trials.end(trial.number, outcome.result)
            results.write_table(job.database.with_suffix(".csv"), _collect(job, base).rows)


def _units(job: _Sweep, base: Run) -> Iterator[Unit]:
    """Yields the trials as units of work. The settings of each trial are chosen when it can start, from the scores
    until then."""
    from pipeline.sweep import results, study

    needs = Needs(gpus=base.recipe.train.devices, per_gpu=base.recipe.train.parallel)
    while taken := job.trials.take():
        settings = study.written(job.space, taken.params)
        trial = _trial(job, taken.number, settings)
        resumed = f", from fold {len(taken.intermediate_values) + 1}" if taken.intermediate_values else ""
        say(f"trial {trial.number}: {', '.join(f'{key}={value}' for key, value in settings.items())}{resumed}")
        path = job.database.with_name(f"{trial.name}.yaml")
        head = [f"Trial {trial.number} of the sweep {job.name}.", ""]
        head += [f"  {results.command_of(path, trial.name, job.request.quick, job.folds)}"]
        results.write_recipe(path, head, job.origin, settings)
        try:
            _decode(trial.open(), job.prepared)
        except PipelineError as error:  # these values cannot be combined
            warn(f"[yellow]trial {trial.number} failed: {escape(str(error))}[/yellow]")
            job.trials.end(trial.number, None, str(error))
            continue
        yield Unit(f"trial {trial.number}", run_trial, trial, needs)


def _trial(job: _Sweep, number: int, settings: dict[str, str]) -> Trial:
    request, changes = job.request, (f"{key}={value}" for key, value in settings.items())
    recipe = str(Path(request.recipe).absolute()) if request.recipe.endswith((".yaml", ".yml")) else request.recipe
    return Trial(
        number=number,
        recipe=recipe,
        quick=request.quick,
        assignments=(*request.assignments, *changes),
        name=f"{job.name}-{number}",
        folds=job.folds,
        database=job.database,
        study=job.name,
        prune=request.prune,
    )


def _fault(job: _Sweep, trial: Trial, error: Exception) -> str:
    """Why a trial failed, in a sentence; the traceback of an unexpected error is written to a file."""
    if isinstance(error, PipelineError):
        return str(error)
    path = job.database.with_name(f"{trial.name}.error.txt")
    write_text(path, "".join(traceback.format_exception(error)))
    return f"{type(error).__name__}: {first_line(error)} (see {shown(path)})"


# --- the result ------------------------------------------------------------------------------------------------------


def _collect(job: _Sweep, base: Run) -> "Found":
    from pipeline.sweep import results

    competition, metric = base.competition, final_metric(base.competition)
    return results.collect(job.trials.all(), job.space, competition.name, job.name, metric, job.folds)


def _write(job: _Sweep, base: Run) -> Result:
    """Writes the table, the winner's recipe and the page."""
    from pipeline.report import page
    from pipeline.sweep import plots, results

    found, folder, request = _collect(job, base), job.database.parent, job.request
    results.write_table(folder / "sweep.csv", found.rows)
    winner, commands = folder / f"{job.name}-winner.yaml", tuple[str, ...]()
    if found.winner:
        commands, head = results.winner_head(winner, found, job.origin, job.space)
        results.write_recipe(winner, head, job.origin, found.winner.settings)
    page.write(
        folder / "sweep.html",
        "sweep.html.jinja",
        title=job.name,
        over=f"{len(found.rows)} trials of {request.recipe}: "
        + "; ".join(f"{key}={values}" for key, values in described(job.space).items()),
        sentences=results.sentences(found),
        columns=results.columns(job.space),
        rows=[results.cells(row, found.winner, len(job.folds)) for row in found.rows],
        note=results.NOTE,
        how=results.how(request.prune, request.trials),
        winner=winner.read_text(encoding="utf-8") if found.winner else "",
        plots=list(plots.drawn(job.trials.study, found.metric.name)),
    )
    return Result(found, job.space, folder, commands)
