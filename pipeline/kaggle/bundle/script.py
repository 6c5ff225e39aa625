# %% [markdown]
# # Inference
#
# Predicts the test set by a bundle of trained networks, offline. Attach the competition and the bundle's dataset, turn
# the internet off, and submit this notebook. It was written by `python -m pipeline bundle`; change settings there and
# write it again.

# %%
"""Predicts the competition's test set by an attached bundle: checks it, installs its wheels, and runs it.

    python inference.py [BUNDLE]

Only the standard library is used here. Where the hidden test set is scored, whatever fails leaves the file that the
bundle wrote first; everywhere else the first fault ends the notebook.
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

SHA256 = ""  # of bundle.json; a notebook that runs with another version of the dataset says so
INPUT = Path("/kaggle/input")
DEEPEST = 4  # levels of folders that datasets are mounted under
TARGET = "submission.csv"
LIMIT = ""  # how long it may take, e.g. 8h; empty: the bundle's
STARTED = time.time()
RERUN = bool(os.environ.get("KAGGLE_IS_COMPETITION_RERUN"))


# %%
def find_bundle() -> Path:
    """Returns the folder of the attached bundle that this notebook was written with."""
    given = [Path(argument) for argument in sys.argv[1:] if (Path(argument) / "bundle.json").is_file()]
    levels = ("*/" * depth + "bundle.json" for depth in range(1, DEEPEST + 1))  # deeper there may be a million images
    places = given or [path.parent for level in levels for path in sorted(INPUT.glob(level))]
    hashes = {place: sha256(place / "bundle.json") for place in places}
    for place, digest in hashes.items():
        if digest == SHA256:
            return place
    if places:
        raise SystemExit(
            f"The bundle in {places[0]} is not the one of this notebook: bundle.json has SHA-256 "
            f"{hashes[places[0]][:12]}…, expected {SHA256[:12]}…. Attach the dataset's newest version (Kaggle needs "
            "some minutes after an upload), or push the notebook that was written with it."
        )
    raise SystemExit("No bundle is attached: choose Add Input, the dataset of the bundle, and run this again.")


def check_files(bundle: Path, about: dict[str, Any]) -> None:
    """Checks every file of the bundle by its hash."""
    for name, digest in about["files"].items():
        path = bundle / name
        if not path.is_file():
            raise SystemExit(
                f"{path} is missing: upload the bundle again, with `--dir-mode zip`, so that folders go along."
            )
        if sha256(path) != digest:
            raise SystemExit(f"{path} is damaged: its SHA-256 is not the one in bundle.json. Upload the bundle again.")


def install(bundle: Path, about: dict[str, Any]) -> None:
    """Installs the bundle's wheels of packages that are not there, without a network and without dependencies."""
    wanted = []
    for package in about["packages"]:
        try:
            there = metadata.version(package["name"])
        except metadata.PackageNotFoundError:
            there = ""
        if there and package["name"] != about["package"]:
            print(f"{package['name']} {there} is there already")
            continue
        if not fits(package["python"]):
            running = f"{sys.version_info.major}.{sys.version_info.minor}"
            raise SystemExit(
                f"{package['wheel']} is for Python {package['python']}, and this notebook runs Python {running}: write "
                f"the bundle again with `--python {running}`, or pin the notebook's image."
            )
        wanted.append(str(bundle / "wheels" / package["wheel"]))
    if wanted:
        options = ["--quiet", "--no-index", "--no-deps", "--disable-pip-version-check", "--root-user-action=ignore"]
        if subprocess.run([sys.executable, "-m", "pip", "install", *options, *wanted]).returncode:
            raise SystemExit("pip could not install the bundle's wheels; the reason stands above.")


def fits(python: str) -> bool:
    """Returns whether a wheel is for the running Python: `any`, a version such as 3.12, or all from one on (>=3.11)."""
    running = sys.version_info[:2]
    if python.startswith(">="):
        return running >= tuple(map(int, python[2:].split(".")))
    return python == "any" or running == tuple(map(int, python.split(".")))


def infer(bundle: Path) -> None:
    """Runs the inference in a process of its own; a fault ends the notebook, unless the hidden test set is scored."""
    command = [sys.executable, "-m", "pipeline", "infer", str(bundle), "--to", TARGET, "--started", str(STARTED)]
    code = subprocess.run([*command, *(["--time", LIMIT] if LIMIT else [])]).returncode
    if code and RERUN and Path(TARGET).exists():
        print(f"the inference ended with exit code {code}; {TARGET} has the usual answer for every image")
    elif code:
        raise SystemExit(f"The inference ended with exit code {code}; the reason stands above.")


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
