# Sourced by run_all.sh and run_tests.sh from the repository's folder. Sets PYTHON to a Python that satisfies the
# requirements in pyproject.toml. `source pipeline/environment.sh --dev` includes the test tools; any other argument does
# not. Always pass an argument: without one, bash passes the arguments of the calling script.
#
# An active environment is used: missing packages are added, but its torch is never replaced, because that torch was
# chosen to fit the GPU driver (for example on Kaggle and Colab). Without one, .venv is made from requirements.lock.

STAMP=.venv/installed-from
DEV=
[[ ${1:-} != --dev ]] || DEV=--dev
# The download takes long: show progress bars in a terminal, but not in a log file.
QUIET=--quiet
[[ ! -t 2 ]] || QUIET=

say() { echo "environment: $*" >&2; }

stop() {
    say "$*"
    exit 1
}

is_recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# -P: files of pipeline/ must not shadow modules of the standard library. DEV and QUIET are not quoted, so that they
# disappear when they are empty.
check() { "$PYTHON" -P pipeline/requirements_check.py pyproject.toml $DEV "$@"; }

is_notebook_service() { [[ -n ${KAGGLE_KERNEL_RUN_TYPE:-}${COLAB_RELEASE_TAG:-} ]]; }

active_python() {
    if [[ -n ${VIRTUAL_ENV:-} ]]; then
        echo "$VIRTUAL_ENV/bin/python"
    elif [[ -n ${CONDA_PREFIX:-} ]]; then
        echo "$CONDA_PREFIX/bin/python"
    elif is_notebook_service; then
        command -v python || command -v python3
    fi
}

is_conda_base() { [[ -z ${VIRTUAL_ENV:-} && -n ${CONDA_PREFIX:-} && ${CONDA_DEFAULT_ENV:-} == base ]]; }

find_base_python() {
    local name
    for name in python3 python3.13 python3.12 python3.11; do
        if is_recent "$name"; then
            # the real program behind a shim (pyenv, asdf): a shim may start another Python in another folder
            BASE=$("$name" -c 'import sys; print(sys.executable)')
            return
        fi
    done
    stop "no Python 3.11 or later on PATH (looked for python3, python3.13, python3.12, python3.11): please install one"
}

# uv installs in 20 seconds what takes pip minutes, so try to install uv if it is missing.
find_uv() {
    UV=uv
    "$UV" --version >/dev/null 2>&1 && return
    UV=.venv-tools/bin/uv
    "$UV" --version >/dev/null 2>&1 && return
    "$1" -m pip install --quiet --upgrade --target .venv-tools uv >/dev/null 2>&1 && "$UV" --version >/dev/null 2>&1 && return
    UV=
}

# Adds missing packages to an existing environment.
complete_environment() {
    local missing old
    missing=$(check) && return
    # requirements_check.py prints only requirements. If it printed none, it failed and has printed the error.
    [[ -n $missing ]] || exit 1
    old=$(grep -E '^torch(vision)?[^A-Za-z0-9-].*is installed' <<<"$missing" || true)
    old=${old//  # /, but }
    [[ -z $old ]] || stop "the pipeline needs ${old//$'\n'/, and }. The torch of an active environment is never replaced:" \
        "upgrade it yourself, or deactivate the environment to use .venv"

    say "adding to $PYTHON (an installed torch is not replaced): $(sed 's/ *#.*//' <<<"$missing" | tr '\n' ' ')"
    ADDED=$(mktemp -d)
    echo "$missing" >"$ADDED/missing.txt"
    check --torch-constraints >"$ADDED/constraints.txt"
    set -- install $QUIET -c "$ADDED/constraints.txt" -r "$ADDED/missing.txt"
    if "$PYTHON" -m pip --version >/dev/null 2>&1; then
        "$PYTHON" -m pip "$@" >&2 || stop "pip could not install them (see above)"
    else
        find_base_python
        find_uv "$BASE"
        [[ -n $UV ]] || stop "this environment has no pip, and uv is not installed: please install one of them"
        "$UV" pip "$@" --python "$PYTHON" || stop "uv could not install them (see above)"
    fi
    rm -rf "$ADDED"
}

start_venv() {
    rm -rf .venv
    mkdir .venv
    echo unfinished >"$STAMP"
}

install_lock() {
    find_uv "$BASE"
    if [[ -n $UV ]]; then
        start_venv
        "$UV" venv --quiet --allow-existing --python "$BASE" .venv &&
            "$UV" pip sync $QUIET --require-hashes --python "$PYTHON" requirements.lock && return
        # uv does not read pip's settings (index, certificates), so pip may succeed where uv fails
        say "uv failed (see above), trying pip"
    fi
    start_venv
    "$BASE" -m venv .venv || stop "$BASE -m venv failed (see above)"
    # --no-deps: the lock file is complete, so there are no dependencies to resolve
    "$PYTHON" -m pip install $QUIET --no-deps --require-hashes -r requirements.lock >&2 || stop "pip failed (see above)"
}

use_repository_venv() {
    PYTHON=$PWD/.venv/bin/python
    local lock installed
    lock=$(cksum <requirements.lock)
    installed=$(cat "$STAMP" 2>/dev/null || true)
    if [[ -x $PYTHON && $installed == "$lock" ]]; then
        return
    elif [[ -e .venv && -z $installed ]]; then
        # made by the user: never delete it without asking
        is_recent "$PYTHON" || stop ".venv has no working Python 3.11 or later: please remove the folder .venv"
        complete_environment
        return
    fi

    find_base_python
    say "making .venv from requirements.lock (about 6 GB; 20 s with uv or a few minutes with pip, plus the download)"
    # uv and pip only fail on Ctrl-C, and this script would continue
    trap 'exit 130' INT TERM
    install_lock
    trap - INT TERM
    # written last, so that an interrupted installation is detected and repeated
    echo "$lock" >"$STAMP"
    say "ready"
}

PYTHON=$(active_python || true)
if [[ -z $PYTHON || ${VIRTUAL_ENV:-} -ef .venv ]]; then
    use_repository_venv
elif ! is_recent "$PYTHON"; then
    say "$PYTHON is missing or older than Python 3.11: using .venv instead"
    use_repository_venv
elif is_conda_base && ! is_notebook_service && ! check >/dev/null; then
    say "conda's base environment lacks packages, and none are added to it: using .venv instead"
    use_repository_venv
else
    complete_environment
fi
