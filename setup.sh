# Sourced by quickstart.sh and test.sh: sets $PY to a Python that has the packages of the file named in $1.
# PYTHON=... or an active environment (venv, conda) is used as it is; else .venv is made here.
set -euo pipefail
PY="${PYTHON:-}"
if [ -n "$PY" ]; then # as it is called from where the command was given
    PY=$(command -v "$PY") || { echo "error: PYTHON=$PYTHON is no program" >&2; exit 2; }
    case "$PY" in /*) ;; *) PY="$PWD/$PY" ;; esac
elif [ -n "${VIRTUAL_ENV:-}" ]; then
    PY="$VIRTUAL_ENV/bin/python"
elif [ -n "${CONDA_PREFIX:-}" ] && [ "${CONDA_DEFAULT_ENV:-base}" != base ]; then
    PY="$CONDA_PREFIX/bin/python"
fi
cd "$(dirname "${BASH_SOURCE[0]}")"
if [ -z "$PY" ]; then
    PY=.venv/bin/python
    fresh=
    .venv/bin/python -c '' 2>/dev/null || fresh=--clear # none is there, or its Python has gone since
    if [ -n "$fresh" ] || ! [ -x .venv/bin/pip ]; then # pip comes last: one that was broken off is made again
        found=
        for p in python3.13 python3.12 python3.11 python3 python; do
            if "$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$p; break; fi
        done
        [ -n "$found" ] || { echo "error: Python 3.11 or newer is needed (set PYTHON=/path/to/python)" >&2; exit 2; }
        "$found" -m venv $fresh .venv
    fi
fi
"$PY" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
    { echo "error: $PY does not run, or is older than Python 3.11" >&2; exit 2; }
# a stamp saves pip's two seconds when nothing changed
stamp=$("$PY" -c 'import sys; print(sys.prefix)')/.installed-$(cat requirements.txt "$1" | cksum | cut -d' ' -f1)
if ! [ -e "$stamp" ]; then
    echo "installing $1 (once; torch is large)"
    "$PY" -m pip install -q --disable-pip-version-check -r "$1"
    touch "$stamp" 2>/dev/null || true
fi
