"""A warm process that forks one command at a time, so that no command pays for its imports.

prepare()                                  # imports everything, once, before the first fork
ended = command(["run", recipe], root)     # `python -m pipeline run …` in a fork; its exit code and what it said
"""

import contextlib
import hashlib
import importlib
import os
import pkgutil
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

NO_TRACEBACK = "Traceback (most recent call last)"
RECIPE = {
    "competition": "sample",
    "image": {"size": [32, 64], "fit": "stretch", "channels": 1},
    "model": {"architecture": "ConfigurableUnet", "encoder": "plain", "options": {"channels": [8, 16, 16]}},
    "augment": [{"HorizontalFlip": {"p": 0.5}}],
    "train": {"epochs": 3, "batch_size": 8, "learning_rate": 1e-3, "folds": [0, 1], "workers": 0,
              "early_stopping": None, "precision": "32"},
    "predict": {"tta": "hflip", "batch_size": 4},
    "tune": {"method": "fixed", "threshold": 0.45, "min_area": 0},
}  # fmt: skip
"""A run of a few seconds that goes through every stage."""
TIMED = ("manifest.json", "fold.json", "history.csv", "history.json", "report.html", "r.json", "hparams.yaml")
"""Ends of the names of files that hold times: no two runs write the same."""
TEMPORARY = (".partial", ".ckpt", ".tmp", "started.json", ".shards", ".lease", "error.txt")
"""Ends of the names of files that a finished run leaves none of."""


@dataclass(frozen=True)
class Place:
    """Where a harness works: a folder with `recipe.yaml`, and `base/`, the root of a finished, undisturbed run."""

    folder: Path
    brief: bool = False
    """Whether the undisturbed run ends before its report, which nothing is compared with."""

    @property
    def run(self) -> list[str | Path]:
        """The command of the undisturbed run."""
        return ["run", self.recipe, *(["--to", "encode"] if self.brief else [])]

    @property
    def recipe(self) -> Path:
        """The recipe of the run."""
        return self.folder / "recipe" / "r.yaml"

    @property
    def base(self) -> Path:
        """The root of the undisturbed run; never changed."""
        return self.folder / "base"

    def fresh(self, name: str, finished: bool = False) -> Path:
        """Returns a new root: with the raw files alone, or a copy of the finished run."""
        root = self.folder / name
        shutil.rmtree(root, ignore_errors=True)
        if finished:
            shutil.copytree(self.base, root, symlinks=True, ignore=lambda folder, _: self._input(folder))
        root.mkdir(exist_ok=True)
        (root / "input").symlink_to(self.base / "input")
        return root

    def _input(self, folder: str) -> list[str]:
        return ["input"] if Path(folder) == self.base else []


@dataclass
class Tally:
    """What one part of the harness tried, and how it ended."""

    title: str
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How often each (kind, outcome)."""
    faults: list[str] = field(default_factory=list)
    logs: Path | None = None
    """A folder for what faulty commands said, whole."""
    notes: list[str] = field(default_factory=list)
    """Measured figures, as sentences."""

    def add(self, kind: str, outcome: str, fault: str = "", text: str = "") -> None:
        """Counts one trial; `fault` says what was wrong with how it ended, `text` is all that it said."""
        self.counts[kind, outcome] += 1
        if fault:
            self.faults.append(f"{kind}: {fault}")
            print(f"  FAULT {kind}: {fault}", flush=True)
            if self.logs and text:
                self.logs.mkdir(parents=True, exist_ok=True)
                (self.logs / f"{self.title.lower()}-{len(self.faults)}.txt").write_text(text)

    def total(self) -> int:
        """Returns how many trials there were."""
        return sum(self.counts.values())


@dataclass(frozen=True)
class Ended:
    """A command that ended."""

    code: int | None
    """Its exit code, minus the number of the signal that killed it, or None where it hung."""
    text: str
    seconds: float

    @property
    def outcome(self) -> str:
        """How it ended, in a word."""
        if self.code is None:
            return "hang"
        if NO_TRACEBACK in self.text:
            return "traceback"
        words = {0: "done", 1: "exit 1", 2: "refused", 3: "done", 130: "interrupted", 143: "interrupted"}
        return words.get(self.code, f"exit {self.code}")

    @property
    def fault(self) -> str:
        """What is wrong with it; "" where it is done, or refused in a sentence."""
        if self.outcome in ("done", "exit 1"):
            return ""
        if self.outcome == "refused" and ("error: " in self.text or "Usage:" in self.text or "Error" in self.text):
            return ""
        return f"{self.outcome}: {' | '.join(self.text.strip().splitlines()[-4:])[-500:]}"


def prepare(place: Place, train: int = 24, test: int = 12) -> None:
    """Imports everything, and makes the undisturbed run where it is missing."""
    _import_all()
    place.recipe.parent.mkdir(parents=True, exist_ok=True)
    place.recipe.write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    if not (place.base / "submissions" / "r.csv").exists():
        shutil.rmtree(place.base, ignore_errors=True)
        place.base.mkdir(parents=True)
        drawn: list[str | Path] = ["sample", "--train", str(train), "--test", str(test)]
        for words in (drawn, place.run):
            ended = command(words, place.base)
            if ended.code:
                raise RuntimeError(f"the undisturbed run failed:\n{ended.text}")


def _import_all() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    warnings.filterwarnings("ignore")
    import cv2
    import lightning.pytorch.loggers.tensorboard  # noqa: F401
    import scipy  # noqa: F401
    import torch
    import torch.utils.tensorboard

    import pipeline

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    for module in pkgutil.walk_packages(pipeline.__path__, "pipeline."):
        if not module.name.startswith(("pipeline.engines.ray", "pipeline.kaggle.")):
            with contextlib.suppress(ImportError):  # an extra that is not installed
                importlib.import_module(module.name)


def spawn(
    words: Sequence[str | Path],
    root: Path,
    log: Path,
    setup: Callable[[], None] | None = None,
    environment: dict[str, str] | None = None,
) -> int:
    """Starts one command in a fork and returns its process number; what it says goes to `log`. `setup` runs in the
    fork before the command: limits, mounts, hooks."""
    sys.stdout.flush()
    sys.stderr.flush()
    number = os.fork()
    if number == 0:
        _as_command(list(map(str, words)), root, log, setup, environment or {})
    return number


def _as_command(
    words: list[str], root: Path, log: Path, setup: Callable[[], None] | None, environment: dict[str, str]
) -> None:
    """Becomes the command; never returns."""
    code = 70
    try:
        os.setsid()
        target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
        os.dup2(target, 1)
        os.dup2(target, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.update({"PIPELINE_ROOT": str(root), **environment})
        os.environ.pop("PIPELINE_INPUT", None)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.nice(5)
        if setup:
            setup()
        sys.argv = ["python -m pipeline", *words]
        from pipeline.__main__ import main

        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        with contextlib.suppress(BaseException):
            traceback.print_exc()
        code = 1
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(code)


def wait(number: int, seconds: float = 240) -> int | None:
    """Returns the exit code of a process, minus the signal that ended it; None where it had to be killed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(number, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    kill(number)
    return None


def kill(number: int) -> None:
    """Kills a command and its worker processes."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(number, signal.SIGKILL)
    os.waitpid(number, 0)


def command(
    words: Sequence[str | Path],
    root: Path,
    seconds: float = 240,
    setup: Callable[[], None] | None = None,
    environment: dict[str, str] | None = None,
) -> Ended:
    """Runs one command to its end."""
    log = root.parent / f"{root.name}.log"
    began = time.monotonic()
    code = wait(spawn(words, root, log, setup, environment), seconds)
    return Ended(code, said(log), time.monotonic() - began)


def said(log: Path) -> str:
    """Returns what a command has said so far."""
    return log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""


# --- what a run leaves -----------------------------------------------------------------------------------------------


def results(root: Path) -> dict[str, str]:
    """Returns the hash of every file that a run writes and that holds no times, by its path under the root."""
    found = {}
    for folder in ("folds", "submissions", "work"):
        for path in sorted((root / folder).rglob("*")):
            if (
                path.is_file()
                and not path.name.endswith((*TIMED, *TEMPORARY, ".lock"))
                and "tensorboard" not in str(path)
            ):
                found[str(path.relative_to(root))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def differing(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """Returns the files that are not the same."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def leftovers(root: Path) -> list[str]:
    """Returns temporary files that were left behind."""
    found = []
    for folder in ("folds", "submissions", "work"):
        for path in (root / folder).rglob("*"):
            hidden = path.name.startswith(".") and path.name not in (".lock", ".locks")
            if path.name.endswith(TEMPORARY) or (hidden and path.suffix != ".lock"):
                found.append(str(path.relative_to(root)))
    return sorted(found)
