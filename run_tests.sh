#!/usr/bin/env bash
# Style, types, import contracts and tests:  ./run_tests.sh [pytest options]     for example  ./run_tests.sh -k folds -x
# A quick first check in two minutes, without types and without the tests that train:  ./run_tests.sh --fast
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source pipeline/environment.sh --dev

# All checks always run, so that one call shows every failure.
failed=
"$PYTHON" -m ruff check . || failed="ruff"
[[ " $* " == *" --fast "* ]] || "$PYTHON" -m mypy pipeline benchmarks || failed="$failed mypy"
"$PYTHON" -c "from importlinter.cli import lint_imports_command as lint; lint()" --no-logo --no-cache || failed="$failed imports"
# printed before pytest runs, so that pytest's summary stays the last line
[[ -z $failed ]] || echo "run_tests: failed so far: $failed (the exit code will be nonzero even if pytest passes)" >&2

# two processes with one thread each; `-n 0` runs the tests in a single process, for a debugger
# a process that crashes is not replaced: pytest-xdist may then wait forever at the end
"$PYTHON" -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 "$@" || exit $?
[[ -z $failed ]]
