"""Trains a run on Kaggle's GPUs and downloads the results, so that the run can continue on this machine.

    python -m pipeline run RECIPE --on kaggle

reads   folds/<competition>.csv
writes  work/<competition>/<run>/kaggle/: the kernel, and state.json, with which the same command finds it again; then
        the results of training and validation in work/<competition>/<run>/
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import BadZipFile, ZipFile

from pipeline.core.console import console, say
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_record, root, shown, write_json
from pipeline.core.run import Run
from pipeline.kaggle import archives, session
from pipeline.kaggle.client import connect, user_of
from pipeline.kaggle.push import DATASET, await_kernel, fetch_output, push_dataset, push_kernel
from pipeline.kaggle.submit import slug_of
from pipeline.kaggle.training_kernel import OUTPUT, state_name, write_kernel

SESSION = "8.5h"
"""Default time limit of a kernel: Kaggle ends a GPU session after 9 hours."""
PATIENCE = 13 * 3600.0
"""Seconds to wait for a training in a terminal: longer than any session."""


def train(run: Run, time: str, accelerator: str, wait: float | None, force: bool) -> bool:
    """Trains a run on Kaggle and downloads the result. An existing kernel of the same run is used again.

    Args:
        run: the run, which has been decoded and split on this machine.
        time: time limit of the kernel, as for `--stop-after`.
        accelerator: Kaggle's name of the GPU.
        wait: seconds to wait; None: PATIENCE in a terminal, otherwise not at all.
        force: whether to replace training on this machine, and to push a kernel that has run again.

    Returns:
        Whether the finished training has been downloaded.

    Raises:
        PipelineError: this machine has training of the run, Kaggle rejects the kernel, or the kernel fails.
    """
    slug_of(run)
    folder = run.folder / "kaggle"
    state_file = folder / "state.json"
    state = {} if force else read_record(state_file)
    fetched = bool(state.get("fetched")) and any(_trained(run))
    if fetched and _is_finished(run):
        say(f"  already trained on Kaggle: {state['kernel']}, version {state['version']} (--force trains again)")
        return True
    if any(_trained(run)) and not fetched and not force:
        raise PipelineError(
            f"{shown(run.folder)} contains training done on this machine: train another run on Kaggle with "
            "`--name NAME`, or replace this one with --force."
        )
    api = connect()
    state = _push(api, run, state, fetched, accelerator, time)
    write_json(state_file, state)
    patience = wait if wait is not None else PATIENCE if console.is_terminal else 0.0
    if not patience:
        say(f"  training runs at {state['url']}; the same command with --wait 12h downloads the result")
        return False
    try:
        await_kernel(api, state["kernel"], state["version"], patience, follow=True)
    except PipelineError as error:
        if "failed" in str(error):
            state_file.unlink(missing_ok=True)  # so that the same command pushes the kernel again
        raise
    for line in _fetch(api, run, state):
        say(line)
    write_json(state_file, state | {"fetched": True})
    if _is_finished(run):
        return True
    say(
        "  the time on Kaggle was over before training ended: the same command continues there from the last epoch; "
        "without --on kaggle, it continues here"
    )
    return False


def _push(api: Any, run: Run, state: dict[str, Any], goes_on: bool, accelerator: str, time: str) -> dict[str, Any]:
    """Pushes the kernel unless it was pushed before, and returns the state with which it is found again."""
    folder, user = run.folder / "kaggle", user_of(api)
    datasets = [f"{user}/{state_name(run)}"] if goes_on else []
    write_kernel(run, folder, user, accelerator, time, datasets)
    digest = hashlib.sha256((folder / "train.py").read_bytes()).hexdigest()
    if state.get("digest") == digest and not goes_on:
        say(f"  the kernel {state['kernel']}, version {state['version']}, was already pushed")
        return state
    for name in datasets:
        _push_state(api, run, name)
    kernel, version, url = push_kernel(api, folder)
    return {"kernel": kernel, "version": version, "url": url, "digest": digest}


def _is_finished(run: Run) -> bool:
    """Whether the weights of all trainings exist."""
    members = [member for fold in run.test_folds() for member in run.members(fold)]
    members += [member for fold in run.trained_folds() for member in run.members(fold)]
    return all(path.exists() for member in members for path in run.weights(member))


def _push_state(api: Any, run: Run, name: str) -> None:
    """Uploads the results of an earlier session as a private dataset, from which the next session continues."""
    files = [path for path in sorted(run.folder.rglob("*")) if path.is_file() and "kaggle" not in path.parts[-2:]]
    with TemporaryDirectory(prefix="segpipe-state-") as temporary:
        session.pack(files, Path(temporary) / OUTPUT)
        title = name.partition("/")[2]
        write_json(Path(temporary) / DATASET, {"title": title, "id": name, "licenses": [{"name": "other"}]})
        push_dataset(api, Path(temporary), run.name)


def _trained(run: Run) -> Iterator[Path]:
    for pattern in ("fold_*/*.safetensors", "fold_*/*.ckpt", "final*/*.safetensors"):
        yield from run.folder.glob(pattern)


def _fetch(api: Any, run: Run, state: dict[str, Any]) -> Iterator[str]:
    """Downloads the kernel's output and moves its files to their places in the run."""
    run.folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=run.folder, prefix=".fetched-") as temporary:
        (pack,) = fetch_output(api, state["kernel"], state["version"], Path(temporary), [OUTPUT])
        place = f"work/{run.competition.name}/{run.name}"
        try:
            names = ZipFile(pack).namelist()
            if strange := [name for name in names if not (name.startswith(f"{place}/") or _is_folds(name))]:
                raise PipelineError(
                    f"{OUTPUT} of {state['kernel']} contains {strange[0]!r}, which does not belong to {run.name}."
                )
            archives.unpack(pack, Path(temporary) / "files", inner=False)
        except (BadZipFile, archives.DamagedArchive) as error:
            raise PipelineError(
                f"{OUTPUT} of {state['kernel']} is damaged ({error}): run the same command again."
            ) from None
        if not any(name.endswith((".safetensors", ".ckpt")) for name in names):
            raise PipelineError(f"The kernel {state['kernel']} trained nothing: look at its log, {state['url']}.")
        for name in names:
            target = root() / name
            if _is_folds(name) and target.exists():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            (Path(temporary) / "files" / name).replace(target)
    yield f"  {len(names)} files → {shown(run.folder)}"


def _is_folds(name: str) -> bool:
    return PurePosixPath(name).parts[0] == "folds" and len(PurePosixPath(name).parts) == 2
