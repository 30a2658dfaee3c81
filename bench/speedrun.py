"""Seconds of training to a validation loss on characters; evaluation is not counted.

    python bench/speedrun.py --input tinyshakespeare.txt              # to 1.88 with at most 1 M parameters
    python bench/speedrun.py --input tinyshakespeare.txt --recipe gpu # to 1.50, any size; on a CPU too
    python bench/speedrun.py                                          # Python's own sources, to a loss of their own
    python bench/speedrun.py --quick

The plain side is bench/plain.py with nanoGPT's recipe for CPUs: 4 layers x 128, T 64, B 12, 2,000 steps.
"""

import csv
import json
import tempfile
from pathlib import Path

import table

from train import SHAPES, shape_flags

# configs/train/speedrun_*.yaml: loss wanted on tiny Shakespeare, on other text; most seconds, and times the plain side
RECIPES = {"cpu": (1.88, 1.60, 10), "gpu": (1.50, 1.30, None)}


def plain(data: Path, target: float, seed: int) -> dict:
    flags = [*shape_flags(SHAPES["small"][0]), "--max_iters=2001", "--eval_interval=100", f"--target={target}"]
    done = json.loads(table.run("bench/plain.py", data, *flags)["output"].splitlines()[-1])
    step, seconds, loss = done["evals"][-1]
    return {"s": seconds, "steps": step, "loss": loss}


def ours(data: Path, recipe: str, target: float, out: Path, seed: int) -> dict:
    """Until the first evaluation at or below the target, or the end; every step is a row of the log."""
    table.run("train.py", f"configs/train/speedrun_{recipe}.yaml", f"--dataset={data}", f"--out_dir={out}",
              "--log_interval=1", f"--seed={seed}", "--never_save_checkpoint")  # fmt: skip
    with open(out / "train.csv") as f:
        ms = [float(row["ms"]) for row in csv.DictReader(f)]
    with open(out / "eval.csv") as f:
        evals = [(int(row["step"]), float(row["val_loss"])) for row in csv.DictReader(f)]
    step, loss = next((e for e in evals if e[1] <= target), evals[-1])
    return {"s": sum(ms[:step]) / 1000, "steps": step, "loss": loss}


def main() -> None:
    args = table.arguments(__doc__, input=("", "a text; '': the standard library's sources"),
                           recipe=("cpu", " or ".join(RECIPES)), target=(0.0, "validation loss"))  # fmt: skip
    wanted, other, goal = RECIPES[args.recipe]
    target = args.target or (wanted if args.input else other) + 0.5 * args.quick
    seeds = iter(range(1337, 9999))
    with tempfile.TemporaryDirectory() as scratch:
        data, out = table.characters(args.input, Path(scratch) / "data"), Path(scratch) / "out"
        sides = {"plain float32": lambda: plain(data, target, next(seeds))} if args.recipe == "cpu" else {}
        sides[f"speedrun_{args.recipe}.yaml"] = lambda: ours(data, args.recipe, target, out, next(seeds))
        found = table.turns(sides, args.repeats)
    steps = {name: sorted({f"{r['steps']:,} ({r['loss']:.3f})" for r in runs}) for name, runs in found.items()}
    table.report(args, f"Training to a validation loss of {target} ({Path(args.input).name or 'python_stdlib'})",
                 table.pick(found, "s"), next(iter(sides)), unit="s of steps", more=False, goal=goal if target == wanted else None,
                 note=f"Steps (loss then): {steps}. Another seed each turn. A loss above the target: it was not reached,"
                      " and the seconds are those of the whole run.")  # fmt: skip


if __name__ == "__main__":
    main()
