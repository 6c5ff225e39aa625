"""The trials of a sweep in Optuna's SQLite database, so that a killed sweep can be resumed and several machines can
join it.

A started trial is `running` until it has a score. The process that works on it holds a lock file, which is released
when the process ends, and records a heartbeat for other machines. A running trial whose process is dead is resumed
under the same number; so is a failed trial, when the command is run again.
"""

import platform
import sqlite3
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import optuna
import sqlalchemy.exc
from filelock import FileLock, Timeout
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import RandomSampler, TPESampler
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from pipeline.core.errors import PipelineError
from pipeline.core.files import shown
from pipeline.core.lock import exclusive_lock
from pipeline.sweep.pruner import MedianOfSameFolds
from pipeline.sweep.space import Choices, Range, Space, combinations
from pipeline.sweep.trial import Ended, Trial

HEARTBEAT = 15
"""Seconds between two heartbeats."""
GRACE = 120
"""Seconds without a heartbeat after which a process on another machine counts as dead."""
PATIENCE = 100
"""Seconds to wait while another process writes."""
DRAWS = 50
"""How often a combination is drawn again if it was already tried."""

optuna.logging.set_verbosity(optuna.logging.ERROR)


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """Returns the space as Optuna's distributions."""
    result: dict[str, BaseDistribution] = {}
    for key, spec in space.items():
        if isinstance(spec, Choices):
            result[key] = CategoricalDistribution(spec.values)
        elif spec.whole:
            result[key] = IntDistribution(int(spec.low), int(spec.high), log=spec.log)
        else:
            result[key] = FloatDistribution(spec.low, spec.high, log=spec.log)
    return result


def written(space: Space, params: Mapping[str, Any]) -> dict[str, str]:
    """Returns a trial's values as texts of settings, in the order of the space."""
    return {
        key: spec.written(params[key]) if isinstance(spec, Range) else str(params[key])
        for key, spec in space.items()
        if key in params
    }


def propose(
    trials: list[FrozenTrial], space: Space, wanted: int | None, direction: StudyDirection
) -> dict[str, Any] | None:
    """Returns the settings of the next trial; None if no trial is left.

    If the wanted number of trials covers all combinations (None: a grid), it is the first combination that no trial
    has. Otherwise Optuna's TPE proposes it from the trials so far; the first third of the trials, at least 4 and at
    most 10, is random. The same trials lead to the same proposal.
    """
    taken = [trial.params for trial in trials]
    every = combinations(space)
    if every is not None and (wanted is None or wanted >= len(every)):
        return next((params for params in every if params not in taken), None)
    if wanted is None or len(trials) >= wanted:
        return None
    first, keys = min(10, max(4, wanted // 3)), crc32(repr(sorted(space)).encode())
    for draw in range(DRAWS):
        # SeedSequence, because the first draws of neighbouring seeds may be similar; other keys have other seeds
        seed = int(np.random.SeedSequence([keys, len(trials), draw]).generate_state(1)[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # these options are experimental
            sampler = TPESampler(seed=seed, multivariate=True, constant_liar=True, n_startup_trials=first)
        study = optuna.create_study(sampler=sampler, direction=direction)
        study.add_trials([trial for trial in trials if trial.params])
        drawn = study.ask(distributions(space)).params
        params = {key: _rounded(spec, drawn[key]) for key, spec in space.items()}
        if params not in taken:
            return params
    return next((untried for untried in every or [] if untried not in taken), params)


def _rounded(spec: Choices | Range, value: Any) -> Any:
    if isinstance(spec, Choices):
        return value
    return int(value) if spec.whole else float(spec.written(value))


def open_storage(path: Path) -> RDBStorage:
    """Returns the database in a file, which is created if it does not exist.

    Raises:
        PipelineError: the file is not a database of Optuna, or is one of another version.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _check_whole(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # heartbeats are experimental
            return RDBStorage(
                f"sqlite:///{path}",
                engine_kwargs={"connect_args": {"timeout": PATIENCE}},
                heartbeat_interval=HEARTBEAT,
                grace_period=GRACE,
            )
    except (sqlalchemy.exc.SQLAlchemyError, RuntimeError) as error:
        raise _unread(path, error) from None


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns errors that Optuna and SQLite raise for a damaged or locked database into a PipelineError.

    Raises:
        PipelineError: the database is damaged or locked.
    """
    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError) as error:
        raise _unread(path, error) from error


def _check_whole(path: Path) -> None:
    """Raises PipelineError if pages of the database are damaged: SQLite itself would use those that it can read."""
    if not path.exists():
        return
    try:
        with closing(sqlite3.connect(path, timeout=PATIENCE)) as connection:
            reason = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.Error as error:
        raise _unread(path, error) from None
    if reason != "ok":
        raise _unread(path, ValueError(reason))


def _unread(path: Path, error: Exception) -> PipelineError:
    cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
    reason = " ".join(str(getattr(cause, "orig", cause)).split())
    if "locked" in reason or "readonly" in reason:
        return PipelineError(
            f"{shown(path)} cannot be written ({reason}): close the program that holds it, or change its permissions; "
            "the same command then continues."
        )
    return PipelineError(
        f"{shown(path)} is not a database that this version of Optuna reads ({reason}): move it away, and the sweep "
        "starts again; with the same settings, trained trials are not trained again."
    )


def begin(path: Path, name: str, definition: dict[str, Any], direction: StudyDirection) -> optuna.Study:
    """Returns the study of a sweep, new or resumed.

    Args:
        path: the database of the study.
        name: the name of the sweep.
        definition: what all trials have in common, by dotted keys, so that their scores can be compared.
        direction: whether a higher or a lower score is better.

    Raises:
        PipelineError: the sweep was started with another definition; the message names the difference.
    """
    with exclusive_lock(path.parent):
        storage = open_storage(path)
        study = optuna.create_study(study_name=name, storage=storage, direction=direction, load_if_exists=True)
        known = study.user_attrs.get("definition") if study.get_trials(deepcopy=False) else None
        if known is None:  # without a trial, no score depends on it
            study.set_user_attr("definition", definition)
    _check_same(name, known or definition, definition)
    return load(path, name)


def pin(study: optuna.Study, key: str, value: str) -> None:
    """Adds a value that is known only after the shared steps to the sweep's definition, or checks that it is unchanged.

    Raises:
        PipelineError: it changed.
    """
    known = study.user_attrs.get(key) if study.get_trials(deepcopy=False) else None
    if known is None:
        study.set_user_attr(key, value)
    _check_same(study.study_name, {key: known or value}, {key: value})


def load(path: Path, name: str) -> optuna.Study:
    """Returns the existing study of a sweep."""
    return optuna.load_study(
        study_name=name, storage=open_storage(path), sampler=RandomSampler(), pruner=MedianOfSameFolds()
    )


def _check_same(name: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    missing = object()
    keys = [key for key in {**before, **now} if before.get(key, missing) != now.get(key, missing)]
    if keys:
        some = [f"{key} was {_short(before.get(key))} and is {_short(now.get(key))}" for key in keys[:4]]
        raise PipelineError(
            f"the sweep {name} was started with other settings ({'; '.join(some)}), so its scores cannot be compared "
            "with new scores: start another sweep with --name NAME, or restore the settings."
        )


def _short(value: Any) -> str:
    text = "not set" if value is None else str(value)
    return text if len(text) < 60 else f"{text[:57]}…"


class Trials:
    """The trials of a sweep, for one process that works on them."""

    def __init__(self, study: optuna.Study, path: Path, space: Space, wanted: int | None) -> None:
        """
        Args:
            study: the result of `begin`.
            path: its database; the lock files are in the same folder.
            space: what is varied.
            wanted: the number of trials; None: all combinations.
        """
        self.study, self.path, self.space, self.wanted = study, path, space, wanted
        self.storage = open_storage(path)
        self.started: set[int] = set()
        """Numbers of the trials that this process has started or resumed; it takes each trial only once."""
        self.held: dict[int, FileLock | None] = {}
        """The locks of the trials that it works on, by number."""

    @contextmanager
    def working(self) -> Iterator[None]:
        """Records heartbeats for the trials that this process works on; releases unfinished trials at the end."""
        stop = threading.Event()
        thread = threading.Thread(target=self._beat, args=(stop,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            for number in list(self.held):
                self._release(number)

    def take(self) -> FrozenTrial | None:
        """Returns the next trial to work on: one whose process is dead, or a new one; None if no trial is left."""
        with exclusive_lock(self.path.parent):
            trials = self.study.get_trials(deepcopy=False)
            for trial in trials:
                if trial.state == TrialState.RUNNING and trial.number not in self.started and self._claim(trial):
                    return self._suggested(trial)
            if not any(trial.state == TrialState.WAITING for trial in trials):
                params = propose(trials, self.space, self.wanted, self.study.direction)
                if params is None:
                    return None
                self.study.enqueue_trial(params)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Optuna warns that heartbeats are meant for Study.optimize
                asked = self.study.ask()
            trial = self.study.get_trials(deepcopy=False)[asked.number]
            self._claim(trial)
            return self._suggested(trial)

    def end(self, number: int, ended: Ended | None, fault: str = "") -> None:
        """Records how a trial ended; a failed trial stays open, and is resumed when the command is run again."""
        if ended is None:
            optuna.Trial(self.study, _identity(self.study, number)).set_user_attr("error", fault)
        elif ended.state == "pruned":
            self.study.tell(number, state=TrialState.PRUNED)
        else:
            self.study.tell(number, ended.score)
        self._release(number)

    def all(self) -> list[FrozenTrial]:
        """Returns all started trials, in the order of their numbers."""
        return [trial for trial in self.study.get_trials(deepcopy=False) if trial.state != TrialState.WAITING]

    def _suggested(self, trial: FrozenTrial) -> FrozenTrial:
        """The trial with a value for every key: a process may have died before all were recorded."""
        live = optuna.Trial(self.study, _identity(self.study, trial.number))
        for key, spec in self.space.items():
            if isinstance(spec, Choices):
                live.suggest_categorical(key, spec.values)
            elif spec.whole:
                live.suggest_int(key, int(spec.low), int(spec.high), log=spec.log)
            else:
                live.suggest_float(key, spec.low, spec.high, log=spec.log)
        return self.study.get_trials(deepcopy=False)[trial.number]

    def _claim(self, trial: FrozenTrial) -> bool:
        """Takes a trial for this process, unless another process works on it: one on this machine that holds its lock,
        or one on another machine with a recent heartbeat."""
        lock: FileLock | None = FileLock(self.path.parent / f".trial_{trial.number}.lock")
        try:
            lock.acquire(blocking=False)  # type: ignore[union-attr]
        except Timeout:
            return False
        except (OSError, NotImplementedError):  # a network drive without locks
            lock = None
        identity, here, host = _identity(self.study, trial.number), platform.node(), trial.user_attrs.get("host")
        elsewhere = host not in (None, here) or (lock is None and host is not None)
        failed = bool(trial.user_attrs.get("error"))
        if elsewhere and not failed and identity not in self.storage._get_stale_trial_ids(self.study._study_id):
            if lock:
                lock.release()
            return False
        self.storage.record_heartbeat(identity)
        live = optuna.Trial(self.study, identity)
        live.set_user_attr("host", here)
        live.set_user_attr("error", "")
        self.held[trial.number] = lock
        self.started.add(trial.number)
        return True

    def _release(self, number: int) -> None:
        lock = self.held.pop(number, None)
        if lock:
            lock.release()

    def _beat(self, stop: threading.Event) -> None:
        while not stop.wait(HEARTBEAT):
            for number in list(self.held):
                with suppress(sqlalchemy.exc.SQLAlchemyError):  # the next one may succeed
                    self.storage.record_heartbeat(_identity(self.study, number))


def _identity(study: optuna.Study, number: int) -> int:
    """The id of a trial in the database, which may contain other sweeps too."""
    return study.get_trials(deepcopy=False)[number]._trial_id


# --- in a trial ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    """A trial's record in the database of the sweep."""

    study: optuna.Study
    number: int

    def scores(self) -> list[float]:
        """Returns the honest score after each fold so far."""
        values = self.study.get_trials(deepcopy=False)[self.number].intermediate_values
        return [values[step] for step in sorted(values)]

    def report(self, folds: int, score: float) -> None:
        """Reports the honest score after a number of folds."""
        optuna.Trial(self.study, _identity(self.study, self.number)).report(score, folds)

    def too_low(self) -> bool:
        """Returns whether the trial should be stopped."""
        return optuna.Trial(self.study, _identity(self.study, self.number)).should_prune()


def open_trial(trial: Trial) -> Record:
    """Returns a trial's record in its sweep."""
    return Record(load(trial.database, trial.study), trial.number)
