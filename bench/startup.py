"""Start-up: seconds of `--help`, and to the first step of a small run that is resumed, beside `import torch` alone.

    python bench/startup.py

The goal is in seconds, not a ratio: import torch + 0.3 s for --help, + 1.5 s for the first step.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import table

SCRIPTS = {"train.py": ["train.py"], "pretrain.py": ["pretrain.py"], "finetune.py": ["finetune.py"],
           "reward_train.py": ["reward_train.py"], "sample.py": ["sample.py"],
           "procedural_pretraining.cli": ["-m", "procedural_pretraining.cli"]}  # fmt: skip
TINY = ["--n_layer=2", "--n_head=2", "--n_embd=32", "--block_size=32", "--batch_size=4", "--eval_iters=1"]


def first_step(*flags) -> float:
    """Seconds until the first log line, which follows the first step."""
    start = time.perf_counter()
    with subprocess.Popen([sys.executable, "-u", "train.py", *map(str, flags)], cwd=table.ROOT, text=True,
                          stdout=subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": "1"}) as process:  # fmt: skip
        for line in process.stdout:
            if line.startswith("step "):
                seconds = time.perf_counter() - start
                process.stdout.read()  # to its end: a killed run leaves its folder as it is
                return seconds
    raise SystemExit(f"train.py {flags}: no step was logged")


def main() -> None:
    args = table.arguments(__doc__)
    with tempfile.TemporaryDirectory() as scratch:
        data, out = table.characters("", Path(scratch) / "data"), Path(scratch) / "out"
        table.run("train.py", f"--dataset={data}", f"--out_dir={out}", *TINY, "--max_iters=2")
        last = iter(range(3, 1000))
        sides = {"import torch": lambda: table.run("-c", "import torch")["seconds"]}
        for name, command in SCRIPTS.items():
            sides[f"{name} --help"] = lambda c=command: table.run(*c, "--help")["seconds"]
        sides["resumed train.py, first step"] = lambda: first_step("--init_from=resume", f"--out_dir={out}",
                                                                   f"--max_iters={next(last)}")  # fmt: skip
        found = table.turns(sides, args.repeats)
    base = statistics.median(found["import torch"])
    rows = [["", "s", "range", "more than import torch", "goal"]]
    for name, values in found.items():
        more, goal = statistics.median(values) - base, 1.5 if "first step" in name else 0.3
        rows.append([name, f"{base + more:.2f}", f"{min(values):.2f} .. {max(values):.2f}",
                     *(["", ""] if name == "import torch" else
                       [f"{more:+.2f} s", f"{goal} s: {'reached' if more <= goal else 'missed'}"])])  # fmt: skip
    table.write(args, "Start-up", f"{table.table(rows)}\n\nMedians of {args.repeats}, in turn.")


if __name__ == "__main__":
    main()
