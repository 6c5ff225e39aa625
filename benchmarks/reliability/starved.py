"""Starves commands: of room on the disk, of memory, of writable folders, of the network.

What is mounted and limited lives in namespaces of Linux and ends with them; no right beyond a user's is needed. A
command must end well, or in one sentence; leave what was there as it was; and end in the undisturbed run's files once
it has what it needs.
"""

import ctypes
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from benchmarks.reliability.warm import NO_TRACEBACK, Ended, Place, Tally, command, differing, leftovers, results
from pipeline.stages import STAGES

USER, MOUNT, NETWORK = 0x10000000, 0x00020000, 0x40000000
"""Flags of unshare."""
BIND, REMOUNT, READ_ONLY, PRIVATE, RECURSIVE = 4096, 32, 1, 1 << 18, 1 << 14
"""Flags of mount."""
WRITTEN = ("work", "folds", "submissions", "work/sample", "work/sample/r", "work/sample/r/predictions",
           "work/sample/r/fold_0", "work/sample/outliers", "work/sample/pixels_32x64_stretch_grey")  # fmt: skip
"""Folders that a run writes into."""
CRASHES = (-signal.SIGABRT, -signal.SIGSEGV)
"""How native code ends that cannot allocate memory: Rust's aborts, others write to nowhere."""
LEAST = 2
"""Trials of a part whose time is up before it begins."""
LIBC = ctypes.CDLL(None, use_errno=True)


def run(place: Place, seed: int, until: float) -> Tally:
    """Starves commands until the time (of time.monotonic) is up."""
    rng, tally = random.Random(seed), Tally("Starved", logs=place.folder / "faults")
    parts = [_folders, _memory, _full_disk, _full_late, _file_size, _network, _two_at_once]
    began, whole = time.monotonic(), max(0.0, until - time.monotonic())
    parts = parts if whole else [_folders, _small_disk]
    for number, part in enumerate(parts, start=1):
        end = began + whole * number / len(parts)
        _add(tally, apart(lambda part=part, end=end: part(place, rng, end)))  # type: ignore[misc]
    return tally


def _add(tally: Tally, other: Tally) -> None:
    tally.counts += other.counts
    tally.faults += other.faults
    tally.notes += other.notes


def apart(work: Callable[[], Tally]) -> Tally:
    """Returns what a function returns that runs in a fork with mounts and a user namespace of its own."""
    ours, theirs = os.pipe()
    sys.stdout.flush()
    number = os.fork()
    if number == 0:
        try:
            os.close(ours)
            _unshare(MOUNT)
            os.write(theirs, b"")
            with os.fdopen(theirs, "wb") as pipe:
                pickle.dump(work(), pipe)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as pipe:
        data = pipe.read()
    os.waitpid(number, 0)
    if not data:
        raise RuntimeError("a part of the harness failed; its traceback stands above")
    return pickle.loads(data)


def _unshare(flags: int) -> None:
    user, group = os.getuid(), os.getgid()
    if LIBC.unshare(flags | (USER if user else 0)) != 0:
        raise OSError(ctypes.get_errno(), "no namespaces here: run as a user who may make them")
    if user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    if flags & MOUNT:
        _mount(b"none", b"/", None, RECURSIVE | PRIVATE)


def _mount(source: bytes, target: bytes, kind: bytes | None, flags: int, data: bytes | None = None) -> None:
    if LIBC.mount(source, target, kind, flags, data) != 0:
        raise OSError(ctypes.get_errno(), f"mount {target.decode()}")


def _tally(place: Place) -> Tally:
    return Tally("Starved", logs=place.folder / "faults")


def _note(tally: Tally, kind: str, label: str, ended: Ended, *more: str) -> None:
    """Counts one command; `more`: what else is wrong, empty texts count for nothing."""
    faults = [ended.fault, *more]
    said = "; ".join(filter(None, faults))
    tally.add(kind, "faulty" if said else ended.outcome, f"{label}: {said}" if said else "", ended.text)


# --- folders ---------------------------------------------------------------------------------------------------------


def _commands(place: Place, root: Path) -> list[list[str | Path]]:
    """Commands that write, each of them whole."""
    images = root / "input" / "sample" / "test"
    elsewhere: list[str | Path] = ["--to", root / "work" / "out.csv"]
    found: list[list[str | Path]] = [["run", place.recipe], ["run", place.recipe, "--force"]]
    found += [[stage, place.recipe, "--force"] for stage in STAGES]
    found += [
        ["report", "r", "r", "--compare"], ["status", place.recipe], ["compare", "r"],
        ["predict", place.recipe, "--images", images, *elsewhere],
        ["new", "other", "--from", images.parent, "--to", root / "work" / "new"],
        ["sweep", place.recipe, "--over", "train.epochs=1,2"], ["liars-test", place.recipe],
        ["check", place.base / "submissions" / "r.csv", "--competition", "sample"],
    ]  # fmt: skip
    return found


def _read_only(path: Path) -> Callable[[], None]:
    target = str(path).encode()

    def setup() -> None:
        _unshare(MOUNT)
        _mount(target, target, None, BIND)
        _mount(target, target, None, BIND | REMOUNT | READ_ONLY)

    return setup


def with_few_rights() -> None:
    """Takes from this process what lets root write everywhere: all capabilities."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    if LIBC.capset(header, (ctypes.c_uint32 * 6)()) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def _folders(place: Place, rng: random.Random, until: float) -> Tally:
    """Folders that are read-only, forbidden, files, or links to nowhere."""
    tally = _tally(place)
    kinds = ["read-only", "forbidden", "a file", "a link to nowhere", "a link to itself"]
    root = place.folder / "starved"
    jobs = [(kind, name, words) for kind in kinds for name in WRITTEN for words in _commands(place, root)]
    rng.shuffle(jobs)
    for number, (kind, name, words) in enumerate(jobs):
        if number >= LEAST and time.monotonic() > until:
            break
        place.fresh("starved", finished=rng.random() < 0.7)
        folder, setup = root / name, None
        if kind in ("read-only", "forbidden"):
            folder.mkdir(parents=True, exist_ok=True)
        else:
            folder.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
            if kind == "a file":
                folder.write_text("a file")
            else:
                folder.symlink_to("nowhere" if kind == "a link to nowhere" else folder.name)
        if kind == "read-only":
            setup = _read_only(folder)
        if kind == "forbidden":
            folder.chmod(rng.choice([0o555, 0o000]))
            setup = with_few_rights
        ended = command(words, root, setup=setup, seconds=60)
        if kind == "forbidden":
            folder.chmod(0o755)
        _note(tally, f"folder is {kind}", f"{name} is {kind}, {' '.join(map(str, words[:2]))}", ended)
    return tally


# --- memory ----------------------------------------------------------------------------------------------------------


def _memory(place: Place, rng: random.Random, until: float) -> Tally:
    """Less and less address space than a run needs."""
    tally, number = _tally(place), 0
    while number < LEAST or time.monotonic() < until:
        number += 1
        more = int(2 ** rng.uniform(2, 9.5))
        fresh = rng.random() < 0.5
        root = place.fresh("starved", finished=not fresh)
        words: list[str | Path] = ["run", place.recipe] if fresh else [rng.choice(STAGES), place.recipe, "--force"]

        def limit(more: int = more) -> None:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            most = pages * resource.getpagesize() + (more << 20)
            resource.setrlimit(resource.RLIMIT_AS, (most, most))

        ended = command(words, root, setup=limit, seconds=90)
        if ended.code in CRASHES and NO_TRACEBACK not in ended.text:  # no code of this project runs any more
            tally.add("memory", "a library crashed")
            _with_room(tally, place, root, "memory")
            continue
        end, refused = ended.text[-300:], ended.outcome == "refused"
        advised = any(
            word in ended.text for word in ("--set", "lower", "smaller", "close other programs", "raise the limit")
        )
        advice = f"no advice: {end}" if refused and not advised else ""
        blamed = f"blames the network: {end}" if "does not fit this recipe's network" in ended.text else ""
        wrong = [f"left {left[:4]}" for left in [_left(root)] if left]
        _note(tally, "memory", f"{more} MiB, {words[0]}", ended, advice, blamed, *wrong)
        if rng.random() < 0.2:
            _with_room(tally, place, root, "memory")
    return tally


def _left(root: Path) -> list[str]:
    """What a refused command left that the next does not go on from."""
    allowed = ("last.ckpt", "best.ckpt", "started.json", "error.txt")
    return [name for name in leftovers(root) if not name.endswith(allowed) and ".partial" not in name.split("/")[-1]
            and ".partial/" not in name]  # fmt: skip


def _with_room(tally: Tally, place: Place, root: Path, kind: str) -> None:
    """The same run with all that it needs: it must end as if nothing had been."""
    ended = command(["run", place.recipe], root)
    other = differing(results(root), results(place.base))
    left = leftovers(root)
    _note(tally, f"{kind}, then with enough", "run", ended, f"differs: {other[:4]}" if other else "",
          f"left {left[:4]}" if left else "")  # fmt: skip


# --- the disk --------------------------------------------------------------------------------------------------------


def _tmpfs(target: Path, size: int) -> Path:
    """Mounts a small disk and returns a root on it."""
    target.mkdir(exist_ok=True)
    LIBC.umount2(str(target).encode(), 2)
    _mount(b"tmpfs", str(target).encode(), b"tmpfs", 0, f"size={size}k".encode())
    (target / "root").mkdir()
    return target / "root"


def _small_disk(place: Place, rng: random.Random, until: float) -> Tally:
    """A disk on which the arrays of decode have no room: it must say so, and not be killed while it fills them."""
    tally, disk = _tally(place), place.folder / "disk"
    for size in (rng.randint(120, 200), 4000):
        root = _tmpfs(disk, size)
        (root / "input").symlink_to(place.base / "input")
        ended = command(["decode", place.recipe], root, seconds=90)
        _note(tally, "small disk", f"{size} KiB", ended, *[f"left {name}" for name in _left(root)[:1]])
    LIBC.umount2(str(disk).encode(), 2)
    return tally


def _full_disk(place: Place, rng: random.Random, until: float) -> Tally:
    """A disk that is too small, and grows a little with every attempt."""
    tally, disk = _tally(place), place.folder / "disk"
    first = True
    while first or time.monotonic() < until:
        first, size = False, rng.randint(20, 200)
        root = _tmpfs(disk, size)
        (root / "input").symlink_to(place.base / "input")
        while True:
            ended = command(["run", place.recipe], root, seconds=90)
            left = _left(root) if ended.outcome == "refused" else []
            _note(tally, "full disk", f"{size} KiB", ended, f"left {left[:4]}" if left else "")
            if ended.code in (0, 3) or size > 100_000:
                break
            if time.monotonic() > until:
                size = 60_000  # enough
            size = int(size * rng.uniform(1.1, 2.2)) + 16
            _mount(b"tmpfs", str(disk).encode(), b"tmpfs", REMOUNT, f"size={size}k".encode())
        _with_room(tally, place, root, "full disk")
    LIBC.umount2(str(disk).encode(), 2)
    return tally


def _full_late(place: Place, rng: random.Random, until: float) -> Tally:
    """A disk that is full when one stage of a finished run is done again."""
    tally, disk = _tally(place), place.folder / "disk"
    stages = [stage for stage in STAGES if stage != "evaluate"]
    rng.shuffle(stages)
    for number, stage in enumerate(stages):
        if number and time.monotonic() > until:
            break
        root = _tmpfs(disk, 60_000)
        shutil.copytree(place.base, root, symlinks=True, dirs_exist_ok=True, ignore=shutil.ignore_patterns("input"))
        (root / "input").symlink_to(place.base / "input")
        keep, before = rng.choice([0, 4, 8, 40, 400]), results(root)
        with (disk / "fill").open("wb") as file:
            while shutil.disk_usage(disk).free > keep << 10:
                file.write(bytes(4096))
                file.flush()
        ended = command([stage, place.recipe, "--force"], root, seconds=90)
        # training that --force throws away is thrown away first, as it says
        lost = [name for name in differing(results(root), before) if name in before and "/fold_" not in name]
        changed = f"changed {lost[:4]}" if lost and ended.outcome == "refused" and stage != "train" else ""
        _note(tally, f"full disk at {stage}", f"{keep} KiB free, {stage}", ended, changed)
        (disk / "fill").unlink()
        _with_room(tally, place, root, "full disk late")
    LIBC.umount2(str(disk).encode(), 2)
    return tally


def _file_size(place: Place, rng: random.Random, until: float) -> Tally:
    """A limit on the size of every file, which the disk meets in the middle of a write."""
    tally, number = _tally(place), 0
    while number < 1 or time.monotonic() < until:
        number += 1
        size = int(2 ** rng.uniform(9, 22))
        root = place.fresh("starved")

        def limit(size: int = size) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

        ended = command(["run", place.recipe], root, setup=limit, seconds=90)
        left = _left(root)
        _note(tally, "file size limit", f"{size} bytes", ended, f"left {left[:4]}" if left else "")
        if rng.random() < 0.3:
            _with_room(tally, place, root, "file size limit")
    return tally


# --- the network, and two at once ------------------------------------------------------------------------------------


def _network(place: Place, rng: random.Random, until: float) -> Tally:
    """Nothing in a run needs the network, and what does says so at once."""
    tally, root = _tally(place), place.fresh("starved")

    def without() -> None:
        _unshare(NETWORK)

    ended = command(["run", place.recipe], root, setup=without)
    other = differing(results(root), results(place.base))
    _note(tally, "no network", "run", ended, f"differs: {other[:4]}" if other else "")
    weights = ["--set", "model.encoder=resnet18", "--set", "model.architecture=Unet", "--set", "model.options={}",
               "--set", "model.weights=imagenet", "--name", "other"]  # fmt: skip
    offline = {"HF_HUB_OFFLINE": "0"}
    asking: list[list[str | Path]] = [["run", place.recipe, *weights], ["download", "oxford-pet"]]
    for words in asking:
        ended = command(words, root, setup=without, environment=offline)
        slow = f"took {ended.seconds:.0f} s" if ended.seconds > 20 else ""
        _note(tally, "no network", " ".join(map(str, words[:2])), ended, slow)
    return tally


def _two_at_once(place: Place, rng: random.Random, until: float) -> Tally:
    """Two processes that do the same run."""
    from benchmarks.reliability.warm import said, spawn, wait

    tally, first = _tally(place), True
    while first or time.monotonic() < until:
        first, root = False, place.fresh("starved")
        logs = [place.folder / f"two-{number}.log" for number in (0, 1)]
        numbers = []
        for log in logs:
            numbers.append(spawn(["run", place.recipe], root, log))
            time.sleep(rng.uniform(0, 2))
        for number, log in zip(numbers, logs, strict=True):
            ended = Ended(wait(number, 120), said(log), 0)
            _note(tally, "two at once", "run", ended)
        _with_room(tally, place, root, "two at once")
    return tally
