"""Two processes beside one with all threads: tokens a second of train.py at the same global batch.

    python bench/ranks.py                      # 6 x 384, T 256, B 64
    python bench/ranks.py --ranks 4

On GPUs each rank has its own; on a CPU the ranks share the cores.
"""

import tempfile
from pathlib import Path

import table

from train import SHAPES, ours


def main() -> None:
    args = table.arguments(__doc__, ranks=2)
    shape, (steps, _, few), _, _ = SHAPES["base"]
    steps = few if args.quick else steps
    launch = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={args.ranks}")
    with tempfile.TemporaryDirectory() as scratch:
        data, out = table.characters("", Path(scratch) / "data"), Path(scratch) / "out"
        found = table.turns({"one process": lambda: ours(data, shape, steps, out)["tok/s"],
                             f"{args.ranks} processes": lambda: ours(data, shape, steps, out, launch=launch)["tok/s"]},
                            args.repeats)  # fmt: skip
    table.report(args, f"train.py, {args.ranks} ranks, 6 layers x 384, T 256, global batch 64", found, "one process",
                 unit="tok/s", goal=0.95)  # fmt: skip


if __name__ == "__main__":
    main()
