"""train.py's loop beside a plain float32 loop: tokens a second, and peak memory, at the same model and batch.

    python bench/train.py                                  # both shapes
    python bench/train.py small --input text.txt           # 4 x 128, T 64, B 12, on a text of your own
    python bench/train.py --quick

Each turn is a process of its own: train.py as users start it (its log's milliseconds), and bench/plain.py. Evaluation
and the first steps do not count. The plain loop does not gain from torch.compile on a CPU.
"""

import csv
import json
import re
import statistics
import tempfile
from pathlib import Path

import table

# layers, heads, width, T, B; steps (train.py, plain, in a quick run); the goals of speed and memory
SHAPES = {"small": ((4, 4, 128, 64, 12), (300, 120, 60), 2.5, None),
          "base": ((6, 6, 384, 256, 64), (12, 6, 3), 3.5, 1.25)}  # fmt: skip
NAMES = ("n_layer", "n_head", "n_embd", "block_size", "batch_size")


def shape_flags(shape: tuple) -> list[str]:
    return [f"--{name}={value}" for name, value in zip(NAMES, shape, strict=True)]


def ours(data: Path, shape: tuple, steps: int, out: Path, *more: str, launch: tuple = ()) -> dict:
    """tok/s and MiB of train.py. The log says what a step took: an interval for each line, the first left out."""
    every = max(1, steps // 6)
    done = table.run(*launch, "train.py", f"--dataset={data}", f"--out_dir={out}", *shape_flags(shape), "--eval_iters=1",
                     f"--max_iters={steps}", f"--eval_interval={steps}", f"--log_interval={every}",
                     "--never_save_checkpoint", *more)  # fmt: skip
    with open(out / "train.csv") as f:
        ms = [float(row["ms"]) for row in csv.DictReader(f)][1:]
    peak = float(re.search(r"peak memory ([\d,]+) MiB", done["output"])[1].replace(",", ""))  # of the GPU, where used
    return {"tok/s": shape[3] * shape[4] / statistics.median(ms) * 1000, "MiB": peak}


def plain(data: Path, shape: tuple, steps: int) -> dict:
    done = table.run("bench/plain.py", data, *shape_flags(shape), f"--max_iters={steps}")
    ms = json.loads(done["output"].splitlines()[-1])["ms"][max(1, steps // 6) :]
    return {"tok/s": shape[3] * shape[4] / statistics.median(ms) * 1000, "MiB": done["MiB"]}


def main() -> None:
    args = table.arguments(__doc__, shapes=list(SHAPES), input=("", "a text; '': the standard library's sources"))
    with tempfile.TemporaryDirectory() as scratch:
        data = table.characters(args.input, Path(scratch) / "data")
        for name in args.shapes:
            shape, (steps, plain_steps, few), goal, memory = SHAPES[name]
            few, out = few if args.quick else None, Path(scratch) / "out"
            sides = {"plain float32": lambda s=shape, n=few or plain_steps: plain(data, s, n),
                     "train.py": lambda s=shape, n=few or steps: ours(data, s, n, out)}  # fmt: skip
            if name == "small":  # many small calls: of the large shape a compiler saves nothing
                sides["train.py --compile"] = lambda s=shape, n=few or steps: ours(data, s, n, out, "--compile")
            found = table.turns(sides, args.repeats)
            title = "train.py, {0} layers x {2}, T {3}, B {4}".format(*shape)
            table.report(args, title, table.pick(found, "tok/s"), "plain float32", unit="tok/s", goal=goal)
            table.report(args, f"{title}: memory", table.pick(found, "MiB"), "plain float32", unit="peak MiB",
                         more=False, goal=memory)  # fmt: skip


if __name__ == "__main__":
    main()
