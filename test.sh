#!/usr/bin/env bash
# bash test.sh          the everyday tests, about three minutes on two cores
# bash test.sh --full   all of them, what CI runs, about fifteen minutes
# Further arguments go to pytest: bash test.sh tests/test_model.py -k cache
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" requirements-dev.txt
marks=(-m "not full")
args=()
for a in "$@"; do
    if [ "$a" = --full ]; then marks=(); else args+=("$a"); fi
done
"$PY" -m ruff check .
# two threads a process would fight for two cores; what the tests compare does not depend on it
OMP_NUM_THREADS=${OMP_NUM_THREADS:-2} "$PY" -m pytest ${marks[@]+"${marks[@]}"} ${args[@]+"${args[@]}"}
