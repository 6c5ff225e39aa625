# Sourced by run_all.sh and run_tests.sh from the repository's folder: sets PYTHON to a Python that has what
# pyproject.toml asks for. `source pipeline/environment.sh --dev` asks for the test tools too; any other word does not
# (say one all the same: without it, bash hands on the caller's own arguments).
#
# An active environment is used as it is, and its torch is never replaced: whoever made it chose a torch that fits
# their driver (Kaggle and Colab are such places). Everyone else gets .venv, exactly as requirements.lock has it.

STAMP=.venv/installed-from
DEV=
[[ ${1:-} != --dev ]] || DEV=--dev
# gigabytes take long: whoever watches gets progress bars, a log file does not
QUIET=--quiet
[[ ! -t 2 ]] || QUIET=

say() { echo "environment: $*" >&2; }

stop() {
    say "$*"
    exit 1
}

is_recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# -P: no file of pipeline/ may shadow the standard library. DEV and QUIET stand without quotes, so that they vanish
# when empty.
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
            # the program behind a shim: shims change what they mean with the folder
            BASE=$("$name" -c 'import sys; print(sys.executable)')
            return
        fi
    done
    stop "no Python 3.11 or later on PATH (looked for python3, python3.13, python3.12, python3.11): please install one"
}

# uv makes 20 seconds of what takes pip minutes, so it is worth a try even where it is not installed.
find_uv() {
    UV=uv
    "$UV" --version >/dev/null 2>&1 && return
    UV=.venv-tools/bin/uv
    "$UV" --version >/dev/null 2>&1 && return
    "$1" -m pip install --quiet --upgrade --target .venv-tools uv >/dev/null 2>&1 && "$UV" --version >/dev/null 2>&1 && return
    UV=
}

# Adds what is missing to an environment that somebody else made.
complete_environment() {
    local missing old
    missing=$(check) && return
    # requirements_check.py prints nothing but requirements; without any it has failed itself, and said why
    [[ -n $missing ]] || exit 1
    old=$(grep -E '^torch(vision)?[^A-Za-z0-9-].*is installed' <<<"$missing" || true)
    old=${old//  # /, but }
    [[ -z $old ]] || stop "it takes ${old//$'\n'/, and }, and the torch of an active environment is never replaced:" \
        "upgrade it yourself, or deactivate the environment and get .venv"

    say "adding to $PYTHON (a torch that is there stays as it is): $(sed 's/ *#.*//' <<<"$missing" | tr '\n' ' ')"
    ADDED=$(mktemp -d)
    echo "$missing" >"$ADDED/missing.txt"
    check --torch-constraints >"$ADDED/constraints.txt"
    set -- install $QUIET -c "$ADDED/constraints.txt" -r "$ADDED/missing.txt"
    if "$PYTHON" -m pip --version >/dev/null 2>&1; then
        "$PYTHON" -m pip "$@" >&2 || stop "pip could not add them (see above)"
    else
        find_base_python
        find_uv "$BASE"
        [[ -n $UV ]] || stop "this environment has no pip and there is no uv: please add one of them"
        "$UV" pip "$@" --python "$PYTHON" || stop "uv could not add them (see above)"
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
        # uv does not read pip's settings (index, certificates), so pip may well succeed
        say "uv did not manage it, trying pip"
    fi
    start_venv
    "$BASE" -m venv .venv || stop "$BASE -m venv failed (see above)"
    # --no-deps: the lock is complete, there is nothing left to resolve
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
        # made by hand: not to be thrown away unasked
        is_recent "$PYTHON" || stop "there is a .venv without a working Python 3.11 or later: please remove it"
        complete_environment
        return
    fi

    find_base_python
    say "making .venv from requirements.lock (about 6 GB, 20 s with uv, a few minutes with pip, and the download)"
    # uv and pip swallow Ctrl-C and merely fail, after which this script would go on
    trap 'exit 130' INT TERM
    install_lock
    trap - INT TERM
    # last, so that an interrupted installation is noticed and made anew
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
    say "conda's base environment lacks packages and is no place to add them: using .venv instead"
    use_repository_venv
else
    complete_environment
fi
