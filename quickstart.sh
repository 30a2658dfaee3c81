#!/usr/bin/env bash
# From a fresh clone to a trained GPT: packages, a data set from Python's own sources, two minutes of training on a
# laptop's CPU, a picture of the loss, and a sample. A second run starts again and moves the first one's folder aside.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" requirements.txt
clock() { printf '\n== %s (%s s so far)\n' "$1" "$SECONDS"; }
SECONDS=0
clock "a data set: Python's standard library, characters"
[ -e data/python_stdlib/meta.json ] || "$PY" data/python_stdlib/prepare.py
clock "training"
"$PY" train.py configs/train/quickstart.yaml "$@"
clock "a sample"
"$PY" sample.py --init_from=out/quickstart --start="def " --max_new_tokens=300
clock "done"
echo "loss curve: out/quickstart/loss.png"
