#!/usr/bin/env bash
# Style, types, import contracts and tests:  ./run_tests.sh [options of pytest]     e.g.  ./run_tests.sh -k folds -x
# A first look in two minutes, without types and without the tests that train:  ./run_tests.sh --fast
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source pipeline/environment.sh --dev

# All of them always run: whoever waits for the tests wants to see every failure, not the first kind.
failed=
"$PYTHON" -m ruff check . || failed="ruff"
[[ " $* " == *" --fast "* ]] || "$PYTHON" -m mypy pipeline benchmarks || failed="$failed mypy"
"$PYTHON" -c "from importlinter.cli import lint_imports_command as lint; lint()" --no-logo --no-cache || failed="$failed imports"
# before pytest, so that its summary stays the last line
[[ -z $failed ]] || echo "run_tests: failed so far: $failed (the exit code says so whatever pytest says)" >&2

# two processes of one thread each: many tests keep one core busy; `-n 0` runs them in this one, for a debugger
"$PYTHON" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@" || exit $?
[[ -z $failed ]]
