"""Rehearses a bundle as Kaggle would run it: with the packages of Kaggle's image and without a network, on the public
test set, on an empty one, on a single image, and on a hidden test set.

    python -m pipeline bundle RECIPE --rehearse

reads   work/<competition>/<run>/bundle/, submissions/<run>.csv, the raw test images
writes  work/<competition>/<run>/bundle/rehearsal.json
"""

import os
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.core import driver, freshness
from pipeline.core.console import say
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json, shown, write_json
from pipeline.core.run import Run
from pipeline.decode.readers.columns import class_numbers, keys_of
from pipeline.decode.readers.files import read_table
from pipeline.encode import file_kinds
from pipeline.kaggle.bundle import borrowed, build, hidden_set, script
from pipeline.kaggle.bundle.inference import RERUN
from pipeline.masks import rle

KEPT = (
    "PATH",
    "HOME",
    "LANG",
    "OMP_NUM_THREADS",
    "PIPELINE_CORES",
    "CUDA_VISIBLE_DEVICES",
    "TMPDIR",
    "LD_LIBRARY_PATH",
)
"""Environment variables that are passed to a rehearsal."""


@dataclass(frozen=True)
class Rehearsed:
    """The result on one test set."""

    name: str
    images: int | None
    """Number of images; None: all public ones."""
    seconds: float
    installed: float
    """Seconds spent on installing packages."""
    said: str


TEST_SETS = ("same", "none", "one", "hidden")


def rehearse(run: Run, names: tuple[str, ...] = TEST_SETS, without: tuple[str, ...] = ()) -> list[Rehearsed]:
    """Runs the bundle of a run on every test set, and returns the results.

    Args:
        run: the bundled run.
        names: the test sets: `same` (the public one), `none` (no image), `one` (one image) and `hidden`.
        without: packages of the image that the bundle must not need.

    Raises:
        PipelineError: there is no bundle, or the notebook failed, wrote an invalid file, or wrote another file than
            encode.
    """
    about, bundle = build.read_about(run), build.folder_of(run)
    if "same" in names:
        _check_encoded(run)
    if reason := hidden_set.why_not(run):
        say(f"  only the public test set is rehearsed: {reason}")
        names = tuple(name for name in names if name == "same")
    misfits = [package["name"] for package in about["packages"] if not script.fits(package["python"])]
    results = []
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as scratch:
        folder = Path(scratch).resolve()
        python, packages, needed = borrowed.make_environment(folder / "environment", misfits, without)
        prefix, variables, how = borrowed.without_network(folder / "blocked")
        if misfits:
            say(f"  linked, because the bundle's wheels are not for Python {borrowed.running()}: {', '.join(misfits)}")
        if needed:
            say(f"  linked, because the versions installed here need them: {', '.join(needed)}")
        say(f"  {len(packages)} packages of Kaggle's image are linked, all others are missing; {how}")
        for name in names:
            result = _rehearse_one(run, bundle, folder / name, [*prefix, str(python)], variables, name)
            times = f"{result.seconds:.1f} s, of which {result.installed:.1f} s to install packages"
            say(f"  {name}: {result.said}, {times}")
            results.append(result)
    write_json(bundle / "rehearsal.json", {
        "made": time.strftime("%Y-%m-%d %H:%M:%S"),
        "bundle": freshness.hash_file(bundle / "dataset" / "bundle.json"),
        "python": borrowed.running(),
        "borrowed": {"not_for_this_python": misfits, "needed_by_versions_here": needed},
        "network": how,
        "image": about["image"],
        "test_sets": [asdict(result) for result in results],
    })  # fmt: skip
    return results


def _check_encoded(run: Run) -> None:
    if not run.submission.exists() or driver.unfinished(run, "encode"):
        raise PipelineError(
            f"{shown(run.submission)}, with which the notebook's file is compared, is missing or not up to date: "
            f"`{run.command('--from', 'predict')}` makes it."
        )


def _rehearse_one(
    run: Run, bundle: Path, folder: Path, python: list[str], variables: dict[str, str], name: str
) -> Rehearsed:
    inputs, working = folder / "input", folder / "working"
    working.mkdir(parents=True)
    place = inputs / run.competition.folder
    hidden = None
    if name == "same":
        inputs.mkdir()
        place.symlink_to(run.input.resolve())
    else:
        place.mkdir(parents=True)
        hidden = hidden_set.write_hidden(run, place, {"none": 0, "one": 1, "hidden": None}[name])
    before = _hashes(place) if hidden else {}
    environment = {key: os.environ[key] for key in KEPT if key in os.environ} | variables
    environment |= {"PIPELINE_INPUT": str(inputs), "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {RERUN: "1"} if name == "hidden" else {}
    began = time.perf_counter()
    command = [*python, str(bundle / "kernel" / "inference.py"), str(bundle / "dataset")]
    done = subprocess.run(command, cwd=working, env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    output = f"{done.stdout}\n{done.stderr}"
    if done.returncode:
        raise PipelineError(
            f"the rehearsal on the test set `{name}` failed with exit code {done.returncode}:\n{output.strip()[-3000:]}"
        )
    if hidden and _hashes(place) != before:
        raise PipelineError(f"the rehearsal on the test set `{name}` changed the input folder.")
    about = build.read_about(run)
    text = _examined(run, working / about["output"], hidden)
    notes = read_json(working / "inference.json")["notes"]
    if name == "hidden" and any("usual answer for every image stays" in note for note in notes):
        raise PipelineError(f"the rehearsal on the test set `{name}` predicted nothing: {'; '.join(notes)}")
    installed = next((line.split()[2] for line in done.stdout.splitlines() if line.startswith("installed in")), "nan")
    return Rehearsed(name, len(hidden.ids) if hidden else None, seconds, float(installed), text)


def _examined(run: Run, path: Path, hidden: hidden_set.HiddenSet | None) -> str:
    """A text about a file that passed the checks.

    Raises:
        PipelineError: the file is wrong.
    """
    if hidden is None:
        return _beside_encode(path, run, build.read_about(run)["weights"] == "fp16")
    settings, empty = run.competition.submission, rle.convention_of(run.competition.rle).empty
    rows = read_table(path, [], hint="")
    ids = [image_id for image_id, _ in keys_of(rows, settings, class_numbers(run.competition))]
    lacking = [image_id for image_id in hidden.ids if image_id not in ids]
    if lacking:
        raise PipelineError(f"the notebook's file has no rows for {', '.join(lacking[:5])}.")
    if settings.format == "rle":
        pairs = zip(ids, rows[settings.rle], strict=True)
        wrong = [image_id for image_id, text in pairs if image_id in hidden.broken and text != empty]
        if wrong:
            raise PipelineError(f"the broken image {wrong[0]} has a mask in the notebook's file.")
    broken = f", {len(hidden.broken)} of them broken" if hidden.broken else ""
    return f"{len(rows)} rows of {len(hidden.ids)} images{broken}"


def _beside_encode(path: Path, run: Run, half: bool) -> str:
    """A text that compares a file with the one that encode wrote.

    Raises:
        PipelineError: the files differ although the weights are not in fp16.
    """
    if path.read_bytes() == run.submission.read_bytes():
        return "the same bytes as encode"
    images = run.competition.submission.format == "images"
    written, expected = ([] if images else list(file_kinds.lines_of(file)) for file in (path, run.submission))
    if not images and written == expected:
        return "another file format than encode's, with the same rows"
    if not half:
        raise PipelineError(f"the notebook's submission differs from that of encode, {shown(run.submission)}.")
    if images:
        return "with fp16 weights, other bytes than encode"
    same = sum(line == other for line, other in zip(written, expected, strict=False))
    return f"with fp16 weights, {same} of {len(expected)} lines are the same as encode's"


def _hashes(folder: Path) -> dict[str, str]:
    return {str(path): freshness.hash_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}
