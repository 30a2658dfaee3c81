#!/usr/bin/env bash
# bash test.sh          the everyday tests, about three minutes on two cores
# bash test.sh --full   all of them, what CI runs, fifteen to twenty-two minutes
# Further arguments go to pytest: bash test.sh tests/test_model.py -k cache
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" requirements-dev.txt
marks=(-m "not full")
args=()
for a in "$@"; do
    if [ "$a" = --full ]; then marks=(); else args+=("$a"); fi
done
"$PY" -m ruff check .
# as many workers as cores, one thread each: what the tests compare does not depend on it
workers=$("$PY" -c 'import os; print(max(1, min(8, os.cpu_count() or 1)))')
OMP_NUM_THREADS=1 "$PY" -m pytest -n "$workers" --dist worksteal --timeout 900 ${marks[@]+"${marks[@]}"} ${args[@]+"${args[@]}"}
