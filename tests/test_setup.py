"""The set-up scripts, with a stub in place of Python, pip and uv: nothing is installed and nothing downloaded."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from conftest import LONG
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).parent.parent
CHECK = REPOSITORY / "pipeline" / "requirements_check.py"
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
DEPENDENCIES: list[str] = PROJECT["dependencies"]
DEV: list[str] = PROJECT["optional-dependencies"]["dev"]
LOCK = (REPOSITORY / "requirements.lock").read_text()
LOCKED: dict[str, str] = dict(re.findall(r"(?m)^([\w.-]+)==([^\s;\\]+)", LOCK))  # uv writes normalised names

# Answers for itself, with the distributions in its own folder only; notes what pip and the pipeline are asked for.
PYTHON_STUB = f"""#!/usr/bin/env bash
here=$(dirname "$(dirname "$0")")
case "$1 $2 ${{3:-}}" in
    "-m pipeline "*) printf '%s|' "${{@:3}}" >>"$here/pipeline"; echo >>"$here/pipeline"; exit "${{STUB_EXIT:-0}}" ;;
    "-m pip install") [[ "$5 $7" == "-c -r" ]] || exit 9; cp "$6" "$here/constraints"; cp "$8" "$here/added"; exit 0 ;;
    "-m pip --version") exit 0 ;;
esac
PYTHONPATH=$here/site exec '{sys.executable}' -S "$@"
"""

UV_STUB = """#!/usr/bin/env bash
here=$(dirname "$0")
case "$1 $2" in
    "venv "*) mkdir -p .venv/bin && cp "$here/python3" .venv/bin/python ;;
    "pip sync") echo sync >>"$here/calls"; if [[ -e $here/interrupt ]]; then kill -KILL $PPID; fi ;;
esac
"""


def add_distribution(site: Path, name: str, version: str) -> None:
    """Makes importlib.metadata believe that a distribution is installed."""
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def remove_distribution(site: Path, name: str) -> None:
    """Undoes add_distribution."""
    [folder] = site.glob(f"{name.replace('-', '_')}-*.dist-info")
    shutil.rmtree(folder)


def write_program(path: Path, text: str) -> None:
    """Writes an executable file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the set-up needs, in a folder with a space in its name."""
    folder = tmp_path / "a checkout"
    (folder / "pipeline").mkdir(parents=True)
    for path in (REPOSITORY / "pyproject.toml", REPOSITORY / "requirements.lock", REPOSITORY / "run_all.sh"):
        shutil.copy(path, folder)
    for path in (REPOSITORY / "pipeline" / "environment.sh", CHECK):
        shutil.copy(path, folder / "pipeline")
    return folder


@pytest.fixture
def active(tmp_path: Path) -> Path:
    """An environment with a stub for its python and everything that pyproject.toml asks for."""
    folder = tmp_path / "somebody's environment"
    write_program(folder / "bin" / "python", PYTHON_STUB)
    for name in [Requirement(line).name for line in DEPENDENCIES] + ["packaging", "triton", "nvidia-cudnn-cu13"]:
        add_distribution(folder / "site", name, LOCKED.get(canonicalize_name(name), "1.0"))
    spec = find_spec("packaging")
    assert spec and spec.origin
    (folder / "site" / "packaging").symlink_to(Path(spec.origin).parent)
    return folder


def run(command: list[str], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a command with no environment active but the one that `variables` name."""
    inherited = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    return subprocess.run(command, cwd=folder, env=inherited | variables, capture_output=True, text=True, timeout=60)


def set_up(checkout: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Sources environment.sh; prints the Python it chose."""
    script = 'set -euo pipefail; source pipeline/environment.sh --without-dev; echo "$PYTHON"'
    return run(["bash", "-c", script], checkout, **variables)


def same(path: str, other: Path) -> bool:
    return Path(path.strip()) == other


@pytest.mark.parametrize("script", ["run_all.sh", "run_tests.sh", "pipeline/environment.sh", ".ci/run"])
def test_scripts_parse(script: str) -> None:
    assert run(["bash", "-n", script], REPOSITORY).returncode == 0
    assert script.endswith("environment.sh") or os.access(REPOSITORY / script, os.X_OK)


def test_environment_yml_has_the_packages_of_pyproject() -> None:
    environment = yaml.safe_load((REPOSITORY / "environment.yml").read_text())
    [pip] = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert pip == DEPENDENCIES + DEV


def test_the_version_stands_once() -> None:
    assert PROJECT["dynamic"] == ["version"] and "version" not in PROJECT
    tables = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert tables["dynamic"]["version"]["attr"] == "pipeline.core.version.VERSION"


def test_lock_satisfies_pyproject() -> None:
    for line in DEPENDENCIES + DEV:
        requirement = Requirement(line)
        assert requirement.specifier.contains(LOCKED[canonicalize_name(requirement.name)]), line


def test_lock_has_hashes_and_no_addresses() -> None:
    entries = re.split(r"(?m)^(?=\w)", LOCK)[1:]
    assert len(entries) == len(re.findall(r"(?m)^\w", LOCK)) > len(DEPENDENCIES)
    assert all("--hash=sha256:" in entry for entry in entries)
    assert "http" not in re.sub(r"(?m)^(http\w+|[\w-]*http[\w-]*)==", "", LOCK)
    assert set(re.findall(r"(?<!\S)-[\w-]+", LOCK)) == {"--hash"}


def test_check_passes_here_and_imports_nothing_heavy() -> None:
    result = run([sys.executable, "-X", "importtime", str(CHECK), "pyproject.toml", "--dev"], REPOSITORY)
    assert (result.returncode, result.stdout) == (0, "")
    imported = {line.split("|")[-1].strip().split(".")[0] for line in result.stderr.splitlines()}
    assert "packaging" in imported
    assert not imported & {"torch", "lightning", "numpy", "pandas", "pyarrow", "cv2", "matplotlib", "pydantic"}


def test_check_names_what_is_missing_or_too_old_and_heeds_markers(tmp_path: Path) -> None:
    pyproject = tmp_path / "pyproject.toml"
    lines = ["no-such-package>=1", "torch>=99", "absent; sys_platform == 'none'", "numpy>=1"]
    pyproject.write_text(f"[project]\ndependencies = {lines}\n")
    result = run([sys.executable, str(CHECK), str(pyproject)], tmp_path)
    assert result.returncode == 1
    missing, old = result.stdout.splitlines()
    assert missing == "no-such-package>=1"
    assert re.fullmatch(r"torch>=99  # \d\S+ is installed", old)


def test_active_environment_is_used_as_it_is(checkout: Path, active: Path) -> None:
    result = set_up(checkout, VIRTUAL_ENV=str(active))
    assert (result.returncode, result.stderr) == (0, "")
    assert same(result.stdout, active / "bin" / "python")
    assert not (active / "added").exists()
    assert not (checkout / ".venv").exists()


def test_the_other_opencv_will_do(checkout: Path, active: Path) -> None:
    remove_distribution(active / "site", "opencv-python-headless")
    add_distribution(active / "site", "opencv-python", "4.10.0.84")
    assert set_up(checkout, VIRTUAL_ENV=str(active)).stderr == ""


def test_only_what_is_missing_is_added_and_torch_is_pinned(checkout: Path, active: Path) -> None:
    remove_distribution(active / "site", "rich")
    remove_distribution(active / "site", "scikit-learn")
    add_distribution(active / "site", "scikit-learn", "1.2.2")
    result = set_up(checkout, CONDA_PREFIX=str(active), CONDA_DEFAULT_ENV="mine")
    assert result.returncode == 0, result.stderr
    added = [Requirement(line.split("#")[0]).name for line in (active / "added").read_text().splitlines()]
    assert sorted(added) == ["rich", "scikit-learn"]
    constraints = (active / "constraints").read_text().splitlines()
    pins = {f"{name}=={LOCKED[name]}" for name in ("torch", "torchvision", "triton", "nvidia-cudnn-cu13")}
    assert pins <= set(constraints)


def test_torch_is_added_where_there_is_none(checkout: Path, active: Path) -> None:
    remove_distribution(active / "site", "torch")
    assert set_up(checkout, VIRTUAL_ENV=str(active)).returncode == 0
    assert (active / "added").read_text().startswith("torch>=")
    assert "torch" not in (active / "constraints").read_text()


def test_an_old_torch_is_refused_not_replaced(checkout: Path, active: Path) -> None:
    remove_distribution(active / "site", "torch")
    add_distribution(active / "site", "torch", "2.1.0")
    result = set_up(checkout, VIRTUAL_ENV=str(active))
    assert result.returncode == 1
    assert "2.1.0 is installed" in result.stderr
    assert not (active / "added").exists()


def test_without_packaging_an_installed_torch_is_not_asked_for(checkout: Path, active: Path) -> None:
    (active / "site" / "packaging").unlink()
    assert set_up(checkout, VIRTUAL_ENV=str(active)).returncode == 0
    assert not re.search(r"(?m)^torch", (active / "added").read_text())
    assert f"torch=={LOCKED['torch']}" in (active / "constraints").read_text()


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder for PATH with stubs for python3 and uv."""
    folder = tmp_path / "bin"
    write_program(folder / "python3", PYTHON_STUB)
    write_program(folder / "uv", UV_STUB)
    return folder


def path_with(tools: Path) -> str:
    return f"{tools}:{os.environ['PATH']}"


def test_second_call_installs_nothing(checkout: Path, tools: Path) -> None:
    first = set_up(checkout, PATH=path_with(tools))
    assert same(first.stdout, checkout / ".venv" / "bin" / "python"), first.stderr
    second = set_up(checkout, PATH=path_with(tools))
    assert (second.stdout, second.stderr) == (first.stdout, "")
    assert (tools / "calls").read_text() == "sync\n"


def test_interrupted_installation_and_changed_lock_are_noticed(checkout: Path, tools: Path) -> None:
    (tools / "interrupt").touch()
    assert set_up(checkout, PATH=path_with(tools)).returncode != 0
    left_behind = checkout / ".venv" / "half a package"
    left_behind.touch()
    (tools / "interrupt").unlink()
    assert set_up(checkout, PATH=path_with(tools)).returncode == 0
    assert not left_behind.exists()
    (checkout / "requirements.lock").write_text(LOCK + "# another\n")
    assert set_up(checkout, PATH=path_with(tools)).returncode == 0
    assert (tools / "calls").read_text() == "sync\n" * 3


def test_conda_base_is_left_alone_unless_it_has_everything(checkout: Path, active: Path, tools: Path) -> None:
    variables = {"CONDA_PREFIX": str(active), "CONDA_DEFAULT_ENV": "base", "PATH": path_with(tools)}
    assert same(set_up(checkout, **variables).stdout, active / "bin" / "python")
    remove_distribution(active / "site", "rich")
    assert same(set_up(checkout, **variables).stdout, checkout / ".venv" / "bin" / "python")
    assert same(set_up(checkout, **variables, KAGGLE_KERNEL_RUN_TYPE="Batch").stdout, active / "bin" / "python")


def test_a_venv_made_by_hand_is_kept(checkout: Path, active: Path) -> None:
    shutil.copytree(active, checkout / ".venv", symlinks=True)
    remove_distribution(checkout / ".venv" / "site", "rich")
    assert set_up(checkout).returncode == 0
    assert (checkout / ".venv" / "added").read_text().startswith("rich")


def test_no_python_is_said_in_one_sentence(checkout: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for name in ("bash", "cat", "cksum"):
        (few / name).symlink_to(str(shutil.which(name)))
    result = set_up(checkout, PATH=str(few))
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert "no Python 3.11 or later" in result.stderr


def run_all(checkout: Path, active: Path, *arguments: str, **variables: str) -> tuple[int, list[str]]:
    """The exit code of run_all.sh, called from another folder, and what it asked of the pipeline."""
    result = run([str(checkout / "run_all.sh"), *arguments], checkout.parent, VIRTUAL_ENV=str(active), **variables)
    calls = active / "pipeline"
    return result.returncode, calls.read_text().splitlines() if calls.exists() else []


def test_run_all_runs_the_sample_unless_told_otherwise(checkout: Path, active: Path) -> None:
    assert run_all(checkout, active, "--set", "title=a * b") == (0, ["run|sample|--set|title=a * b|"])


def test_run_all_hands_on_recipe_and_exit_code(checkout: Path, active: Path) -> None:
    mine = checkout.parent / "my recipe.yaml"
    assert run_all(checkout, active, mine.name, "--quick", STUB_EXIT="7") == (7, [f"run|{mine}|--quick|"])


def test_run_all_explains_itself(checkout: Path) -> None:
    result = run([str(checkout / "run_all.sh"), "--help"], checkout.parent)
    assert result.returncode == 0
    assert "./run_all.sh [RECIPE] [options]" in result.stdout
    assert "PIPELINE_ROOT" in result.stdout
    assert not (checkout / ".venv").exists()


def test_the_files_that_fast_leaves_out_exist() -> None:
    names = [path.stem.removeprefix("test_") for path in (REPOSITORY / "tests").rglob("test_*.py")]
    assert set(LONG.split()) <= set(names)
