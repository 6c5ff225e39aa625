"""Pushes datasets and kernels to Kaggle and waits for their runs (`bundle --push`, `save` and `run --on kaggle`)."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.console import console, say
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_json, shown, write_json
from pipeline.kaggle.client import connect, explained, status_of, user_of, wait_for

DATASET, KERNEL = "dataset-metadata.json", "kernel-metadata.json"
OWNERS = ("", "USER", "USERNAME", "INSERT_USERNAME", "INSERT_OWNER")
"""Placeholders for the account in metadata that was written without a login."""
READY = 1800.0
"""Maximum time in seconds until a dataset version is ready."""
COMMIT = 3600.0
"""Maximum time in seconds of a commit run; on the few public test images it takes minutes."""
NOTE = "note: "
"""Prefix of important lines in the log of a bundle's inference."""
LOG_LINES = 40
"""Number of lines shown from the log of a failed kernel."""


@dataclass(frozen=True)
class Pushed:
    """A version of a kernel that has run."""

    kernel: str
    """owner/kernel."""
    version: int
    url: str
    output: Path
    """The downloaded output file."""
    dataset: str
    dataset_version: int


def push(
    folder: Path, notes: str, output: Path, *, file: str = "submission.csv",
    faults: Callable[[Path], list[str]] | None = None, wait: float = COMMIT,
) -> Pushed:  # fmt: skip
    """Pushes a dataset version and then a kernel version, waits for the kernel's commit run, and checks its output.

    It waits for the dataset even without a terminal: a kernel that is pushed before the dataset version is ready would
    run with the old weights. Nothing is submitted; see `submit.offer`.

    Args:
        folder: the bundle, with dataset-metadata.json and kernel-metadata.json, either in the folder itself or in its
            folders dataset/ and kernel/. A placeholder for the owner (OWNERS) is replaced by the user's account.
        notes: description of the versions.
        output: folder into which the output file and the log are downloaded.
        file: name of the file that the kernel writes.
        faults: function that returns the faults of this file; default: the file only has to exist.
        wait: maximum time in seconds for the commit run.

    Raises:
        PipelineError: the folder is not a bundle, Kaggle rejects it, the kernel fails (its log is shown), or its output
            file is missing or has faults.
    """
    of_dataset, of_kernel = (inner if (inner := folder / part).is_dir() else folder for part in ("dataset", "kernel"))
    api = connect()
    _fill_in_owner((of_dataset / DATASET, of_kernel / KERNEL), user_of(api))
    dataset, version = push_dataset(api, of_dataset, notes)
    kernel, number, url = push_kernel(api, of_kernel)
    await_kernel(api, kernel, number, wait)
    (path,) = fetch_output(api, kernel, number, output, [file])
    if faults and (listed := faults(path)):
        raise PipelineError(f"The commit run of {kernel} wrote a {file} that is not valid: {'; '.join(listed[:5])}.")
    for line in _telling(log_of(api, kernel, number)):
        say(f"  {line}")
    return Pushed(kernel, number, url, path, dataset, version)


# --- datasets --------------------------------------------------------------------------------------------------------


def push_dataset(api: Any, folder: Path, notes: str) -> tuple[str, int]:
    """Uploads a folder as a new dataset or a new version of it, waits until it is ready; returns its name and version.

    Args:
        api: the client.
        folder: the files, with dataset-metadata.json. Inner folders are uploaded as archives, which Kaggle unpacks.
        notes: description of the version.

    Raises:
        PipelineError: Kaggle rejects the dataset, or is not ready in time.
    """
    name = str(_metadata(folder, DATASET)["id"])
    before = _dataset_state(api, name)
    quiet = not console.is_terminal or console.quiet
    with explained(f"upload the dataset {name}", after="Run the same command again to continue the upload."):
        if before is None:
            answer = api.dataset_create_new(str(folder), quiet=quiet, dir_mode="zip")
        else:
            answer = api.dataset_create_version(str(folder), notes, quiet=quiet, dir_mode="zip")
        if answer.status == "error" or answer.error:
            raise PipelineError(f"Kaggle rejects the dataset {name}: {answer.error or answer.status}.")
    last = before["current_version_number"] if before else 0

    def ask() -> dict[str, Any] | None:
        state = _dataset_state(api, name)
        if state and state["status"] == "failed":
            raise PipelineError(f"Kaggle could not process the dataset {name}: https://www.kaggle.com/datasets/{name}")
        return state if state and state["status"] == "ready" and state["current_version_number"] > last else None

    state = wait_for(ask, f"the dataset {name}", READY)
    if state is None:
        raise PipelineError(
            f"The dataset {name} is not ready yet: look at https://www.kaggle.com/datasets/{name}, and run the same "
            "command again when it is."
        )
    say(f"  dataset {name}, version {state['current_version_number']}: ready")
    return name, int(state["current_version_number"])


def _dataset_state(api: Any, name: str) -> dict[str, Any] | None:
    """The status and number of a dataset's current version; None if the dataset does not exist."""
    import requests

    with explained(f"ask about the dataset {name}"):
        try:
            state: dict[str, Any] = json.loads(api.dataset_status(name, format="json"))
        except requests.HTTPError as error:
            if status_of(error) in (403, 404):  # the dataset does not exist, or belongs to another user
                return None
            raise
    return state


# --- kernels ---------------------------------------------------------------------------------------------------------


def push_kernel(api: Any, folder: Path, seconds: float | None = None) -> tuple[str, int, str]:
    """Pushes a new version of a kernel, which starts at once; returns its name (owner/kernel), version and address.

    Args:
        api: the client.
        folder: folder of the kernel's file, with kernel-metadata.json.
        seconds: maximum run time; None: Kaggle's limit.

    Raises:
        PipelineError: Kaggle rejects the kernel, or does not know a dataset or competition that it names.
    """
    metadata = _metadata(folder, KERNEL)
    with explained(f"push the kernel {metadata['id']}"):
        answer = api.kernels_push(str(folder), timeout=None if seconds is None else str(int(seconds)))
    if answer.error:
        raise PipelineError(f"Kaggle rejects the kernel {metadata['id']}: {answer.error.rstrip('.')}.")
    kinds = ("dataset", "competition", "kernel", "model")
    unknown = [source for kind in kinds for source in getattr(answer, f"invalid_{kind}_sources") or []]
    if unknown:
        raise PipelineError(
            f"The kernel {metadata['id']} was pushed without {', '.join(unknown)}, which does not exist on Kaggle or "
            "which your account cannot access: accept the competition's rules or push the dataset, and run the command "
            "again."
        )
    # Kaggle derives the name from the title, not from the id in the metadata
    parts = [part for part in (answer.ref or "").split("/") if part]
    kernel = "/".join(parts[-2:]) if len(parts) >= 2 else str(metadata["id"])
    say(f"  kernel {kernel}, version {answer.version_number}: pushed; {answer.url}")
    return kernel, int(answer.version_number), str(answer.url)


def await_kernel(api: Any, kernel: str, version: int, seconds: float, follow: bool = False) -> None:
    """Waits until a version of a kernel has run.

    Args:
        api: the client.
        kernel: owner/kernel.
        version: version number.
        seconds: maximum time to wait.
        follow: whether to show the log while the kernel is running.

    Raises:
        PipelineError: the kernel failed (its log is shown), was cancelled, or did not finish in time.
    """
    shown_lines = 0

    def ask() -> Any:
        nonlocal shown_lines
        with explained(f"ask about the kernel {kernel}", after="The kernel keeps running on Kaggle."):
            answer = api.kernels_status(f"{kernel}/{version}")
        if follow and answer.status.name != "QUEUED":
            shown_lines += _show_new(api, kernel, version, shown_lines)
        return answer if answer.status.name in ("COMPLETE", "ERROR", "CANCEL_ACKNOWLEDGED") else None

    answer = wait_for(ask, f"the kernel {kernel}", seconds)
    if answer is None:
        raise PipelineError(
            f"The kernel {kernel} has not finished yet and keeps running: look at https://www.kaggle.com/code/{kernel}."
        )
    if answer.status.name != "COMPLETE":
        if not follow:
            for line in log_of(api, kernel, version)[-LOG_LINES:]:
                say(f"    {line}")
        why = answer.failure_message or ("it was cancelled" if "CANCEL" in answer.status.name else "see its log above")
        raise PipelineError(f"The kernel {kernel}, version {version}, failed: {why.rstrip('.')}.")


def _show_new(api: Any, kernel: str, version: int, seen: int) -> int:
    """Shows the new lines of a log, and returns their number."""
    try:
        lines = log_of(api, kernel, version)[seen:]
    except PipelineError:  # there is no log yet
        return 0
    for line in lines:
        say(f"    {line}")
    return len(lines)


def log_of(api: Any, kernel: str, version: int) -> list[str]:
    """Returns the lines of a kernel's log so far, from standard output and standard error.

    Raises:
        PipelineError: the log cannot be downloaded.
    """
    with explained(f"read the log of {kernel}"):
        text = api.kernels_logs(f"{kernel}/{version}")
    try:
        events = json.loads(text)
        text = "".join(str(event.get("data", "")) for event in events)
    except (ValueError, AttributeError, TypeError):  # the log is plain text
        pass
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def fetch_output(api: Any, kernel: str, version: int, target: Path, names: list[str]) -> list[Path]:
    """Downloads the named files from a kernel's output into a folder, and returns their paths in this order.

    Raises:
        PipelineError: a file is missing.
    """
    pattern = "^(" + "|".join(map(re.escape, names)) + ")$"
    with explained(f"download the output of {kernel}"):
        api.kernels_output(f"{kernel}/{version}", str(target), file_pattern=pattern, force=True)
    missing = [name for name in names if not (target / name).is_file()]
    if missing:
        for line in log_of(api, kernel, version)[-LOG_LINES:]:
            say(f"    {line}")
        raise PipelineError(
            f"The kernel {kernel}, version {version}, did not write {', '.join(missing)}: see its log above."
        )
    return [target / name for name in names]


def _telling(lines: list[str]) -> Iterator[str]:
    """The lines of a bundle's log about its notes and checks."""
    return (line for line in lines if re.search(rf"^\s*{NOTE}|canary|sha256|bundle", line, re.IGNORECASE))


# --- metadata --------------------------------------------------------------------------------------------------------


def _metadata(folder: Path, name: str) -> dict[str, Any]:
    try:
        metadata = read_json(folder / name)
        if not isinstance(metadata, dict) or not re.fullmatch(r"[^/]+/[^/]+", str(metadata["id"])):
            raise ValueError("it has no id of the form owner/name")
    except FileNotFoundError:
        raise PipelineError(f"{shown(folder)} has no {name}: `bundle` writes it.") from None
    except (ValueError, KeyError, OSError) as error:
        raise PipelineError(f"{shown(folder / name)} cannot be used: {' '.join(str(error).split())}.") from None
    return metadata


def _fill_in_owner(files: Iterable[Path], user: str) -> None:
    """Replaces placeholders for the owner in a bundle's metadata by the user's account."""

    def named(name: str) -> str:
        owner, _, rest = name.partition("/")
        return f"{user}/{rest}" if owner in OWNERS else name

    for file in files:
        try:
            metadata = read_json(file)
            changed = metadata | {"id": named(metadata["id"])}
            if "dataset_sources" in metadata:
                changed["dataset_sources"] = [named(source) for source in metadata["dataset_sources"]]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # _metadata raises the error
        if changed != metadata:
            write_json(file, changed)
