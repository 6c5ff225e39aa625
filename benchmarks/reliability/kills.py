"""Kills a run at random moments and at its file operations, interrupts it, and compares how it ends.

A chain is one run that is killed again and again until it ends. It must end in the same files, byte for byte, as the
run that nobody disturbed, leave no temporary file, and have nothing to do when it is called once more.
"""

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.reliability.warm import (
    NO_TRACEBACK,
    Ended,
    Place,
    Tally,
    command,
    differing,
    kill,
    leftovers,
    results,
    said,
    spawn,
    wait,
)

OPERATIONS = ("os.rename", "os.remove", "os.rmdir", "os.link", "os.mkdir", "os.truncate", "shutil.rmtree")
MOST = 12
"""Kills of one chain."""


def run(place: Place, seed: int, until: float) -> Tally:
    """Disturbs runs until the time (of time.monotonic) is up; one chain of each kind at least."""
    tally, rng = Tally("Kills", logs=place.folder / "faults"), random.Random(seed)
    expected = results(place.base)
    kinds, chains = (_at_file_operations, _at_random_moments, _by_signals), 0
    usual = 4.0 if until <= time.monotonic() else command(place.run, place.fresh("killed")).seconds
    while chains < (1 if until <= time.monotonic() else len(kinds)) or time.monotonic() < until:
        kinds[chains % len(kinds)](place, rng, tally, expected, until, usual)
        chains += 1
    tally.notes.append(f"{tally.total() - chains} kills and signals in {chains} chains")
    return tally


def _at_random_moments(
    place: Place, rng: random.Random, tally: Tally, expected: dict[str, str], until: float, usual: float
) -> None:
    root = place.fresh("killed")
    log = place.folder / "killed.log"
    for _ in range(MOST if time.monotonic() < until else 2):
        began = time.monotonic()
        number = spawn(place.run, root, log)
        limit = began + rng.uniform(0.02, 0.8 * usual)
        while time.monotonic() < limit:
            ended, status = os.waitpid(number, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
                _check_end(root, place, tally, expected, Ended(code, said(log), 0), "random moment")
                return
            time.sleep(0.003)
        text = said(log)
        kill(number)
        tally.add("killed at a random moment", f"in {_stage(text)}", f"traceback before a kill: {text[-400:]}"
                  if NO_TRACEBACK in text else "")  # fmt: skip
    _check_end(root, place, tally, expected, command(place.run, root), "random moment")


def _at_file_operations(
    place: Place, rng: random.Random, tally: Tally, expected: dict[str, str], until: float, usual: float
) -> None:
    root = place.fresh("killed")
    noted = place.folder / "killed.operation"
    for _ in range(MOST if time.monotonic() < until else 2):
        noted.unlink(missing_ok=True)
        ended = command(place.run, root, setup=bomb(rng.randint(2, rng.choice([6, 20, 80])), root, noted))
        if ended.code != -signal.SIGKILL:
            _check_end(root, place, tally, expected, ended, "file operation")
            return
        operation = noted.read_text().partition(" ")[0]
        tally.add("killed at a file operation", operation)
    _check_end(root, place, tally, expected, command(place.run, root), "file operation")


def bomb(which: int, root: Path, noted: Path) -> Callable[[], None]:
    """Returns what lets a command kill itself just before its n-th file operation that changes something under a root,
    of an unlucky number when a process runs long: every operation counts."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal which
        writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if (event in OPERATIONS or writes) and str(arguments[0]).startswith(str(root)):
            which -= 1
            if which == 0:
                descriptor = os.open(noted, os.O_WRONLY | os.O_CREAT)
                os.write(descriptor, f"{event} {arguments[0]}".encode())
                os.kill(os.getpid(), signal.SIGKILL)

    return lambda: sys.addaudithook(hook)


def _by_signals(
    place: Place, rng: random.Random, tally: Tally, expected: dict[str, str], until: float, usual: float
) -> None:
    root = place.fresh("killed")
    log = place.folder / "killed.log"
    for _ in range(6 if time.monotonic() < until else 1):
        sent = rng.choice([signal.SIGINT, signal.SIGTERM])
        number = spawn(place.run, root, log)
        end = time.monotonic() + rng.uniform(0.3, 0.8 * usual)
        code: int | None = None
        while time.monotonic() < end and code is None:
            ended, status = os.waitpid(number, os.WNOHANG)
            code = os.waitstatus_to_exitcode(status) if ended else None
            time.sleep(0.003)
        if code is not None:
            break
        os.killpg(number, sent)
        code = wait(number, 60)
        text = said(log)
        wrong = code not in (128 + sent, 0, 3) or NO_TRACEBACK in text
        began = "decode" not in text  # before the command has set its handlers, Python's own answer
        early = began and code in (-sent, 1, 130)
        fault = f"{sent.name}: exit {code}: {text[-400:]}" if wrong and not early else ""
        tally.add(f"interrupted by {sent.name}", f"in {_stage(text)}", fault, text)
    _check_end(root, place, tally, expected, command(place.run, root), "signal")


def _check_end(root: Path, place: Place, tally: Tally, expected: dict[str, str], ended: Ended, kind: str) -> None:
    """Compares a chain that ended with the undisturbed run."""
    faults = [ended.fault] if ended.fault else []
    if other := differing(results(root), expected):
        faults.append(f"differs from an undisturbed run: {', '.join(other[:5])}")
    again = command(place.run, root)  # removes what a kill left behind at the very end, and does no more
    if again.code or "up to date" not in again.text or "\ntrain\n" in again.text:
        faults.append(f"ran again: {again.text[-300:]}")
    if left := leftovers(root):
        faults.append(f"left behind: {', '.join(left[:5])}")
    tally.add(f"chain of kills ({kind})", "faulty" if faults else "byte-identical", "; ".join(faults), ended.text)


def _stage(text: str) -> str:
    from pipeline.stages import STAGES

    lines = [line.split(":")[0] for line in text.splitlines() if "up to date" not in line]
    return next((line for line in reversed(lines) if line in STAGES), "the beginning")
