"""Feeds every reader, every YAML, the command line and tables bad input by the thousand.

Right is a sentence (PipelineError, or what the reader documents), or an end without a traceback within 5 s of CPU and
1 GiB of memory. The inputs are drawn by hypothesis from a seed: the groups stand in `readers`, what they draw in
`inputs`.
"""

import json
import os
import resource
import select
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.reliability import readers
from benchmarks.reliability.inputs import Group
from benchmarks.reliability.warm import NO_TRACEBACK, Place, Tally

CPU_SECONDS, MEMORY, SILENT = 5.0, 2**30, 60.0
"""What one input may take; seconds without a word after which it hangs."""
BATCH = 50
"""Inputs of one fork of one group."""


def run(place: Place, seed: int, until: float) -> Tally:
    """Feeds inputs, a batch of each group in turn, until the time (of time.monotonic) is up."""
    tally = Tally("Fuzzed", logs=place.folder / "faults")
    groups = readers.groups(place)
    _warm_up()
    if until <= time.monotonic():
        groups = groups[seed % 3 :: 3]
    known: set[tuple[str, ...]] = set()
    batch, most = 0, 3 if until <= time.monotonic() else BATCH
    while batch == 0 or time.monotonic() < until:
        for group in groups:
            if batch and time.monotonic() > until:
                break
            _batch(place, group, (seed + 1000 * batch, most), tally, known)
        batch += 1
    tally.notes.append(f"{tally.total()} inputs to {len(groups)} kinds of readers, {len(tally.faults)} distinct faults")
    return tally


def _warm_up() -> None:
    """Lets hypothesis load here, once, what it would load in every fork."""
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st

    @settings(max_examples=2, database=None, deadline=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(st.text(max_size=6), st.binary(max_size=8), st.floats())
    def one(text: str, data: bytes, number: float) -> None:
        pass

    one()


def _batch(place: Place, group: Group, drawn: tuple[int, int], tally: Tally, known: set[tuple[str, ...]]) -> None:
    """Feeds inputs to one group of readers in a forked process, and tallies what it reports of each.

    `drawn` is the seed, and how many inputs there are at most."""
    ours, theirs = os.pipe()
    sys.stdout.flush()
    number = os.fork()
    if number == 0:
        os.close(ours)
        _feed(place, group, *drawn, theirs)
    os.close(theirs)
    begun, buffer, last = "", b"", time.monotonic()
    with os.fdopen(ours, "rb", buffering=0) as pipe:
        while True:
            ready, _, _ = select.select([pipe], [], [], 1)
            if ready:
                if not (data := pipe.read(65536)):
                    break
                buffer, last = buffer + data, time.monotonic()
                *lines, buffer = buffer.split(b"\n")
                for line in map(json.loads, lines):
                    begun = line.get("begin", "")
                    if "outcome" in line:
                        _count(group, line, tally, known)
            elif time.monotonic() - last > SILENT:
                os.killpg(number, signal.SIGKILL)
                break
    _, status = os.waitpid(number, 0)
    if begun:
        code = os.waitstatus_to_exitcode(status)
        _count(group, {"outcome": f"ended by signal {-code}", "input": begun, "at": ""}, tally, known)


def _count(group: Group, said: dict[str, Any], tally: Tally, known: set[tuple[str, ...]]) -> None:
    """Counts one input; the first of a kind of fault is told."""
    outcome, fault, text = said["outcome"], "", ""
    if outcome not in ("read", "refused"):
        kind = (group.name, outcome, said["at"])
        if kind not in known:
            known.add(kind)
            fault = f"{outcome} at {said['at']}: {said.get('text', '')[:200]}; input {said['input'][:200]}"
            text = json.dumps(said, indent=1)
        outcome = "faulty"
    tally.add(group.name, outcome, fault, text)


def _feed(place: Place, group: Group, seed: int, most: int, pipe: int) -> None:
    """Feeds a batch and never returns; every input is announced before it is read."""
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded

    try:
        os.setsid()
        os.nice(5)
        folder = place.folder / "fuzz"
        folder.mkdir(exist_ok=True)
        log = os.open(folder / "log", os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.pop("PIPELINE_INPUT", None)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 4 * MEMORY,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        warnings.filterwarnings("ignore")
        group.prepare()

        def send(what: dict[str, Any]) -> None:
            os.write(pipe, (json.dumps(what) + "\n").encode())

        @seeded(seed)
        @settings(
            max_examples=most if most < BATCH else group.batch or BATCH,
            database=None, deadline=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(group.strategy)
        def one(value: Any) -> None:
            send({"begin": _shown(value)})
            os.ftruncate(log, 0)
            send(_outcome(lambda: group.read(value), group.documented, folder / "log") | {"input": _shown(value)})

        one()
    except BaseException:
        said = {"outcome": "harness", "at": "", "input": "", "text": traceback.format_exc()}
        os.write(pipe, (json.dumps(said) + "\n").encode())
    finally:
        os._exit(0)


def _shown(value: Any) -> str:
    return repr(value)[:1500]


def _outcome(read: Callable[[], Any], documented: tuple[type[Exception], ...], log: Path) -> dict[str, Any]:
    """How one input ended."""
    from pipeline.core.errors import PipelineError

    _peak(forget=True)
    before, held = os.times(), _peak()
    found: dict[str, Any] = {"at": ""}
    right: tuple[type[Exception], ...] = (PipelineError, *documented)
    try:
        read()
        found["outcome"] = "read"
    except right as error:
        found |= {"outcome": "refused", "text": str(error)[:300]}
    except SystemExit as end:
        sys.stdout.flush()
        sys.stderr.flush()
        text = log.read_text(encoding="utf-8", errors="replace")
        outcome = "read" if end.code in (0, None, 1, 3) else "refused"
        wrong = NO_TRACEBACK in text or (isinstance(end.code, int) and end.code not in (0, 1, 2, 3, 4))
        found |= {"outcome": f"exit {end.code}" if wrong else outcome, "text": text[-300:]}
    except BaseException as error:
        found |= {"outcome": type(error).__name__, "text": str(error)[:300], "at": _place_of(error)}
    now = os.times()
    seconds, grown = now.user + now.system - before.user - before.system, _peak() - held
    if found["outcome"] in ("read", "refused") and seconds > CPU_SECONDS:
        found |= {"outcome": "slow", "text": f"{seconds:.0f} s of CPU"}
    elif found["outcome"] in ("read", "refused") and grown > MEMORY:
        found |= {"outcome": "large", "text": f"{grown / 2**30:.1f} GiB"}
    return found


def _peak(forget: bool = False) -> int:
    """The most memory that this process has held, in bytes, since it was told to forget."""
    try:
        if forget:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except OSError:
        return 0


def _place_of(error: BaseException) -> str:
    """The innermost line of the package that an error went through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/pipeline/" in frame.filename and "site-packages" not in frame.filename]
    return f"{own[-1].filename.rpartition('/pipeline/')[2]}:{own[-1].lineno}" if own else ""
