"""The kernel that trains a run on Kaggle: one script that contains the package, the recipe and the folds."""

import base64
import io
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.core.config.recipe import Recipe
from pipeline.core.errors import PipelineError
from pipeline.core.files import PACKAGE, repository, write_json, write_text
from pipeline.core.run import Run
from pipeline.core.version import VERSION

_TIME = 10**9
"""Modification time of all files in a kernel, in seconds since 1970."""
OUTPUT = "trained.segpipe"
"""The kernel's output file: a .zip file with another suffix."""
LARGEST = 1_000_000
"""Maximum number of characters of a kernel's source."""
SCRIPT = '''\
"""Trains {run} of segmentation-pipeline {version}; written by `python -m pipeline run … --on kaggle`."""
import base64, io, os, subprocess, sys, tarfile, zipfile
from pathlib import Path

home = Path(os.environ.get("SEGPIPE_HOME", "/tmp/segpipe"))
output = Path(os.environ.get("SEGPIPE_OUTPUT", "/kaggle/working"))
tarfile.open(fileobj=io.BytesIO(base64.b64decode(PAYLOAD))).extractall(home, filter="data")
root = home / "root"
os.environ |= {{"PIPELINE_ROOT": str(root), "PYTHONPATH": str(home)}}
given = Path(os.environ.setdefault("PIPELINE_INPUT", "/kaggle/input"))
for place in ("{state}", "datasets/*/{state}"):  # results of an earlier session
    for pack in given.glob(place + "/{output}"):
        zipfile.ZipFile(pack).extractall(root)

check = [sys.executable, "-P", str(home / "pipeline" / "requirements_check.py"), str(home / "pyproject.toml")]
for name, more in (("missing", []), ("constraints", ["--torch-constraints"])):
    (home / name).write_text(subprocess.run([*check, *more], text=True, stdout=subprocess.PIPE).stdout)
if (home / "missing").read_text().strip():
    files = ["-r", str(home / "missing"), "-c", str(home / "constraints")]
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *files], check=True)

code = subprocess.call([sys.executable, "-m", "pipeline", "run", str(home / "{run}.yaml"), {options}], cwd=home)
folder = root / "work" / "{competition}" / "{run}"
with zipfile.ZipFile(output / "{output}", "w", zipfile.ZIP_STORED, strict_timestamps=False) as pack:
    for path in sorted([*folder.rglob("*"), *(root / "folds").glob("*")]):
        if path.is_file() and "tensorboard" not in path.parts and not path.name.endswith((".lock", ".partial")):
            pack.write(path, path.relative_to(root).as_posix())
if code == 4:
    print("the time is up: finished work is kept, and training can continue from there", flush=True)
elif code:
    sys.exit(f"training ended with exit code {{code}}: see above")
'''


def write_kernel(run: Run, folder: Path, user: str, accelerator: str, time: str, datasets: Sequence[str] = ()) -> None:
    """Writes a kernel that trains a run and predicts its held-out images: train.py and kernel-metadata.json.

    Args:
        run: the run. Its folds are included, its images are not.
        folder: folder to write to.
        user: account on Kaggle.
        accelerator: Kaggle's name of the GPU, for example NvidiaTeslaT4 (two T4s).
        time: value of `--stop-after` in the kernel.
        datasets: datasets to attach (owner/name), with the results of an earlier session.

    Raises:
        PipelineError: the run needs files of this machine, or the package is installed without its repository.
    """
    _check_portable(run)
    options = ", ".join(f'"{word}"' for word in ("--to", "validate", "--stop-after", time))
    values = {"run": run.name, "competition": run.competition.name, "version": VERSION, "output": OUTPUT}
    values["state"] = state_name(run)
    body = SCRIPT.format(options=options, **values)
    first, _, rest = body.partition("\n")
    text = f'{first}\nPAYLOAD = "{base64.b64encode(_payload(run)).decode()}"\n{rest}'
    if len(text) > LARGEST:
        raise PipelineError(f"The kernel would have {len(text)} characters, but Kaggle accepts at most {LARGEST}.")
    write_text(folder / "train.py", text)
    name = kernel_name(run)
    write_json(folder / "kernel-metadata.json", {
        "id": f"{user}/{name}", "title": name, "code_file": "train.py", "language": "python", "kernel_type": "script",
        "is_private": True, "enable_gpu": True, "enable_tpu": False, "enable_internet": True,
        "machine_shape": accelerator, "dataset_sources": list(datasets),
        "competition_sources": [run.competition.kaggle], "kernel_sources": [], "model_sources": [],
    })  # fmt: skip


def kernel_name(run: Run) -> str:
    """Returns the last part of the kernel's address: at most 50 lower-case letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", f"train {run.competition.name} {run.name}".lower()).strip("-")[:50].strip("-")


def state_name(run: Run) -> str:
    """Returns the last part of the address of the dataset from which a training continues."""
    return f"{kernel_name(run)[:40].strip('-')}-state"


def _check_portable(run: Run) -> None:
    recipe = run.recipe
    if repository() is None:
        raise PipelineError(
            "--on kaggle uploads the repository's code: run it from a clone, not from an installed package."
        )
    settings: dict[str, Any] = {"train.start_from": recipe.train.start_from, "train.exclude": recipe.train.exclude}
    settings |= {"train.pseudo": recipe.train.pseudo, "arrays": recipe.arrays, "ensemble": recipe.ensemble or None}
    if recipe.model.weights not in ("none", "imagenet"):
        settings["model.weights"] = recipe.model.weights
    if ":" in recipe.model.architecture:
        settings["model.architecture"] = recipe.model.architecture
    if named := [key for key, value in settings.items() if value is not None]:
        raise PipelineError(
            f"--on kaggle can only use the recipe and the competition's files, but {named[0]} refers to files of this "
            "machine: train here, or remove that setting."
        )


def _payload(run: Run) -> bytes:
    """A .tar.bz2 archive of the package, the resolved recipe and competition, and the folds."""
    home = repository()
    assert home is not None
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:bz2") as pack:
        suffixes = (".py", ".yaml", ".jinja", ".css", ".js")
        paths = [path for path in sorted(PACKAGE.rglob("*")) if path.suffix in suffixes]
        paths = [path for path in paths if "__pycache__" not in path.parts]
        for path in (*paths, home / "pyproject.toml"):
            _add(pack, path.relative_to(home).as_posix(), path.read_bytes())
        _add(pack, f"{run.name}.yaml", yaml.safe_dump(_recipe(run), sort_keys=False).encode())
        # training uses a built-in metric, so the file of a published metric is not included
        competition = run.competition.model_dump(mode="json", exclude={"name", "metric_file"}, exclude_defaults=True)
        competition["reader"] = run.competition.reader
        _add(pack, f"{run.competition.name}.yaml", yaml.safe_dump(competition, sort_keys=False).encode())
        if run.folds_file.exists():
            _add(pack, f"root/folds/{run.folds_file.name}", run.folds_file.read_bytes())
    return buffer.getvalue()


def _add(pack: tarfile.TarFile, name: str, content: bytes) -> None:
    """Adds a file with a fixed time, so that the same files give the same kernel, which is then recognised."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.mtime = len(content), _TIME
    pack.addfile(entry, io.BytesIO(content))


def _recipe(run: Run) -> dict[str, Any]:
    """The resolved recipe, which needs no other file than the competition's."""
    skipped = {"name", "base", "quick", "takes"} & Recipe.model_fields.keys()
    data = run.recipe.model_dump(mode="json", exclude=skipped, exclude_defaults=True)
    return data | {"competition": f"{run.competition.name}.yaml"}
