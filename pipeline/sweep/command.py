"""Tries settings of a recipe on the same folds, and says which are best and by how much that choice flatters itself.

    python -m pipeline sweep RECIPE --over key=a,b,c [--over key=low..high[:log] --trials N]

reads   the recipe and its competition
writes  work/<competition>/<sweep>/: sweep.db (Optuna's), sweep.csv, sweep.html, <sweep>-winner.yaml and a recipe like
        it of every trial
        work/<competition>/<sweep>-<n>/: the run of each trial, decode to tune

A killed sweep goes on by the same command, and the same command on another machine with the same folder joins it.
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
from pipeline.core.run import Run, check_name, open_run
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
"""Settings of a recipe on which no score depends; those below them neither."""


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    recipe: str
    over: tuple[str, ...]
    trials: int | None = None
    """How many; None: every combination of the values."""
    quick: bool = False
    name: str | None = None
    assignments: tuple[str, ...] = ()
    prune: bool = True

    def open(self, changes: tuple[str, ...] = ()) -> Run:
        """Returns a run of the recipe with further changes."""
        return open_run(self.recipe, self.quick, None, [*self.assignments, *changes])


@dataclass(frozen=True)
class Result:
    """What a sweep found, and where that lies."""

    found: "Found"
    space: Space
    folder: Path
    commands: tuple[str, ...]
    """What to do next: go on with the winner; after a sweep in miniature, also the whole recipe. Empty without one."""

    def table(self) -> Any:
        """Returns the trials as a table for the screen."""
        from pipeline.sweep import results

        return results.render(self.found, self.space)

    def lines(self) -> Iterator[str]:
        """Yields what stands under the table."""
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
        """Returns what failed, in a sentence; "" where nothing did."""
        count, trials = sum(row.state == "failed" for row in self.found.rows), len(self.found.rows)
        return (
            f"{count} of {trials} trials failed, for the reasons in the table; once these are mended, the same command "
            "tries them again."
            if count
            else ""
        )


def sweep(request: Request, engine: Engine, check: Callable[[Run], None]) -> Result:
    """Runs the trials that are missing, and returns what was found.

    Args:
        request: what to vary, and how.
        engine: where the trials run.
        check: finds what would stop a run's training before anything is trained, or raises PipelineError.

    Raises:
        PipelineError: Optuna is not installed, a value does not validate, the sweep was begun with other settings, a
            shared step failed, or trials did: then all is written all the same.
    """
    require_optuna()
    from pipeline.sweep import study

    base = request.open()
    if not base.recipe.trains:
        raise PipelineError(
            f"{base.name} trains nothing (it has `ensemble` or `arrays`), and a sweep trains its trials."
        )
    name = check_name(request.name or f"{base.name}-sweep")
    space = parse(list(request.over), of_recipe(base))
    tried = _checked(request, space, check)
    folder = base.competition_folder / name
    if (folder / "recipe.yaml").exists():
        raise PipelineError(f"{shown(folder)} is the folder of a run: give the sweep another --name.")
    database = folder / "sweep.db"
    with study.explained(database):
        return _swept(request, engine, base, tried, space, database)


def _swept(request: Request, engine: Engine, base: Run, tried: list[Run], space: Space, database: Path) -> Result:
    """Runs the trials that are missing, and writes what was found; raises as `sweep` does."""
    from pipeline.sweep import study

    metric, name, folds = final_metric(base.competition), database.parent.name, tuple(base.trained_folds())
    direction = study.StudyDirection.MAXIMIZE if metric.sign > 0 else study.StudyDirection.MINIMIZE
    begun = study.begin(database, name, _definition(base, space, request), direction)
    prepared: set[Path] = set()
    for run in [base, *tried]:
        _decode(run, prepared)
    for stage in SHARED:
        run_stage(base, stage, mention=False)
    study.pin(begun, shown(base.folds_file), freshness.hash_file(base.folds_file))
    trials = study.Trials(begun, database, space, request.trials)
    job = _Sweep(request, name, space, folds, database, trials, prepared)
    _say_begin(job)
    _train(job, engine, base)
    return _write(job, base)


def require_optuna() -> None:
    """Checks that Optuna is there.

    Raises:
        PipelineError: it is not.
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
        """What is swept."""
        from pipeline.sweep.results import Origin

        return Origin(self.request.recipe, self.request.quick, self.request.assignments)

    @property
    def wanted(self) -> int:
        """How many trials there are to be."""
        every, asked = combinations(self.space), self.request.trials
        return min([*([len(every)] if every is not None else []), *([asked] if asked else [])])


# --- before anything is trained --------------------------------------------------------------------------------------


def _checked(request: Request, space: Space, check: Callable[[Run], None]) -> list[Run]:
    """Opens and checks the runs of a grid, or of a sampled sweep those with each value alone.

    Raises:
        PipelineError: what is wrong with them, a sentence each.
    """
    every = combinations(space)
    if every is None and request.trials is None:
        raise PipelineError("--over with a range has no last combination: say how many to try with --trials N.")
    if request.trials is None:
        asked = [tuple(f"{key}={value}" for key, value in one.items()) for one in every or []]
        first = dict(zip(space, (one.partition("=")[2] for one in asked[0]), strict=True))
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
    """What the scores of a sweep rest on, by dotted keys."""
    recipe = {
        key: value
        for key, value in of_recipe(base).items()
        if not any(key == one or key.startswith(f"{one}.") for one in (*UNIMPORTANT, *space))
    }
    competition = {
        f"competition: {key}": value for key, value in flatten(base.competition.model_dump(mode="json")).items()
    }
    over = {f"--over {key}": text for key, text in described(space).items()}
    how = "every combination" if request.trials is None else "sampled"
    return {**over, "--trials": how, **recipe, "--folds": base.trained_folds(), **competition}


def _decode(run: Run, prepared: set[Path]) -> None:
    """Decodes the images for a run's geometry, once for all runs of the same."""
    if run.pixels not in prepared:
        run_stage(run, "decode", mention=False)
        prepared.add(run.pixels)


def _say_begin(job: _Sweep) -> None:
    done = len(job.trials.all())
    going_on = f"; {done} of them begun before" if done else ""
    what = f"{job.wanted} trials of {', '.join(job.space)} on {len(job.folds)} fold{'s' if len(job.folds) > 1 else ''}"
    say(f"{job.name}: {what}{going_on}; → {shown(job.database.parent)}/")


# --- training --------------------------------------------------------------------------------------------------------


def _train(job: _Sweep, engine: Engine, base: Run) -> None:
    """Runs the trials that are missing, and writes the table after each."""
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
    """Yields the trials as units of work, each when it can begin: what was found until then decides what it is."""
    from pipeline.sweep import results, study

    needs = Needs(gpus=base.recipe.train.devices, per_gpu=base.recipe.train.parallel)
    while taken := job.trials.take():
        settings = study.written(job.space, taken.params)
        trial = _trial(job, taken.number, settings)
        going_on = f", from fold {len(taken.intermediate_values) + 1}" if taken.intermediate_values else ""
        say(f"trial {trial.number}: {', '.join(f'{key}={value}' for key, value in settings.items())}{going_on}")
        path = job.database.with_name(f"{trial.name}.yaml")
        head = [f"Trial {trial.number} of the sweep {job.name}.", ""]
        head += [f"  {results.command_of(path, trial.name, job.request.quick, job.folds)}"]
        results.write_recipe(path, head, job.origin, settings)
        try:
            _decode(trial.open(), job.prepared)
        except PipelineError as error:  # values that do not go together
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
    """Why a trial failed, in a sentence; what is nobody's bad input stands in a file."""
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
