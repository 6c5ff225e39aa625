# %% [markdown]
# # Inference
#
# Predicts the test set with a bundle of trained networks, offline. Attach the competition and the bundle's dataset,
# turn the internet off, and submit this notebook. It was written by `python -m pipeline bundle`: to change settings,
# write it again.

# %%
"""Predicts the competition's test set with an attached bundle: checks it, installs its wheels, and runs it.

    python inference.py [BUNDLE]

This script uses only the standard library. While the hidden test set is scored, an error leaves the file that the
bundle wrote first; otherwise the first error ends the notebook.
"""

import hashlib
import json
import os
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

SHA256 = ""  # of bundle.json; the notebook stops if another version of the dataset is attached
INPUT = Path("/kaggle/input")
DEEPEST = 4  # maximum depth of a dataset's folder below INPUT
TARGET = "submission.csv"
LIMIT = ""  # time limit, for example 8h; empty: the bundle's
STARTED = time.time()
RERUN = bool(os.environ.get("KAGGLE_IS_COMPETITION_RERUN"))


# %%
def find_bundle() -> Path:
    """Returns the folder of the attached bundle that this notebook was written with."""
    given = [Path(argument) for argument in sys.argv[1:] if (Path(argument) / "bundle.json").is_file()]
    levels = ("*/" * depth + "bundle.json" for depth in range(1, DEEPEST + 1))  # not deeper: there may be many images
    places = given or [path.parent for level in levels for path in sorted(INPUT.glob(level))]
    hashes = {place: sha256(place / "bundle.json") for place in places}
    for place, digest in hashes.items():
        if digest == SHA256:
            return place
    if places:
        raise SystemExit(
            f"The bundle in {places[0]} does not belong to this notebook: bundle.json has SHA-256 "
            f"{hashes[places[0]][:12]}…, expected {SHA256[:12]}…. Attach the newest version of the dataset (available "
            "a few minutes after an upload), or push the notebook that was written with it."
        )
    raise SystemExit("No bundle is attached: choose Add Input, add the dataset of the bundle, and run this again.")


def check_files(bundle: Path, about: dict[str, Any]) -> None:
    """Checks the hash of every file of the bundle."""
    for name, digest in about["files"].items():
        path = bundle / name
        if not path.is_file():
            raise SystemExit(
                f"{path} is missing: upload the bundle again with `--dir-mode zip`, which includes its folders."
            )
        if sha256(path) != digest:
            raise SystemExit(f"{path} is damaged: its SHA-256 is not the one in bundle.json. Upload the bundle again.")


def install(bundle: Path, about: dict[str, Any]) -> None:
    """Installs the bundle's wheels of missing packages, without a network and without dependencies."""
    wanted = []
    for package in about["packages"]:
        try:
            installed = metadata.version(package["name"])
        except metadata.PackageNotFoundError:
            installed = ""
        if installed and package["name"] != about["package"]:
            print(f"{package['name']} {installed} is already installed")
            continue
        if not fits(package["python"]):
            running = f"{sys.version_info.major}.{sys.version_info.minor}"
            raise SystemExit(
                f"{package['wheel']} is for Python {package['python']}, but this notebook runs Python {running}: write "
                f"the bundle again with `--python {running}`, or pin the notebook's image."
            )
        wanted.append(str(bundle / "wheels" / package["wheel"]))
    if wanted:
        options = ["--quiet", "--no-index", "--no-deps", "--disable-pip-version-check", "--root-user-action=ignore"]
        if subprocess.run([sys.executable, "-m", "pip", "install", *options, *wanted]).returncode:
            raise SystemExit("pip could not install the bundle's wheels; see the error above.")


def fits(python: str) -> bool:
    """Returns whether a wheel suits the running Python; `python` is `any`, a version (3.12) or a minimum (>=3.11)."""
    running = sys.version_info[:2]
    if python.startswith(">="):
        return running >= tuple(map(int, python[2:].split(".")))
    return python == "any" or running == tuple(map(int, python.split(".")))


def infer(bundle: Path) -> None:
    """Runs the inference in a separate process. An error ends the notebook, unless the hidden test set is scored."""
    command = [sys.executable, "-m", "pipeline", "infer", str(bundle), "--to", TARGET, "--started", str(STARTED)]
    code = subprocess.run([*command, *(["--time", LIMIT] if LIMIT else [])]).returncode
    if code and RERUN and Path(TARGET).exists():
        print(f"the inference ended with exit code {code}; {TARGET} has the usual answer for every image")
    elif code:
        raise SystemExit(f"The inference ended with exit code {code}; see the error above.")


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# %%
def main() -> None:
    """Checks the bundle, installs it and predicts."""
    bundle = find_bundle()
    about = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    print(
        f"bundle {about['run']}, made {about['made']}, SHA-256 {SHA256[:12]}…, "
        f"expected {about['expect']['metric']} {about['expect']['nested']}"
    )
    check_files(bundle, about)
    began = time.time()
    install(bundle, about)
    print(f"installed in {time.time() - began:.1f} s")
    infer(bundle)


if __name__ == "__main__":
    main()
