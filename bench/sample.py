"""sample.py beside plain sampling, which computes all tokens again for each new one: new tokens a second.

    python bench/sample.py                  # 6 x 384, block 256, 300 tokens, batches of 1 and 8
    python bench/sample.py --quick

Each turn is a process of its own that times its tokens alone, without start-up. The weights are untrained.
"""

import json
import re
import tempfile
from pathlib import Path

import table

from train import SHAPES, shape_flags

SHAPE = SHAPES["base"][0]
GOALS = {1: 12, 8: 20}


def ours(out: Path, n: int, batch: int) -> float:
    done = table.run("sample.py", f"--init_from={out}", f"--max_new_tokens={n}", f"--num_samples={batch}",
                     "--no-stream")["output"]  # fmt: skip
    return float(re.search(r"([\d,.]+) tokens/s", done)[1].replace(",", ""))


def plain(data: Path, n: int, batch: int, after: int) -> float:
    flags = shape_flags((*SHAPE[:4], batch))
    done = table.run("bench/plain.py", data, *flags, f"--new_tokens={n}", f"--after={after}")["output"]
    return batch * n / json.loads(done.splitlines()[-1])["seconds"]


def main() -> None:
    args = table.arguments(__doc__, tokens=(300, "new tokens"), batches=["1", "8"])
    with tempfile.TemporaryDirectory() as scratch:
        data, out = table.characters("", Path(scratch) / "data"), Path(scratch) / "out"
        table.run("train.py", f"--dataset={data}", f"--out_dir={out}", *shape_flags((*SHAPE[:4], 1)), "--max_iters=0",
                  "--eval_iters=1")  # fmt: skip
        for batch in map(int, args.batches):
            n, after, note = args.tokens, 1, ""
            if args.quick and batch > 1:  # a token takes it longer the more there are: a few, as long as all are on average
                mean = sum(min(t, SHAPE[3]) for t in range(1, n + 1)) / n
                n, after = 40, round(mean) - 20
                note = f"The plain side draws 40 tokens, the first of them after {after}."
            found = table.turns({"plain float32": lambda b=batch, n=n, a=after: plain(data, n, b, a),
                                 "sample.py": lambda b=batch: ours(out, args.tokens, b)}, args.repeats)  # fmt: skip
            title = f"sample.py, 6 layers x 384, block 256, {args.tokens} tokens, batch {batch}"
            table.report(args, title, found, "plain float32", unit="new tok/s", goal=GOALS.get(batch),
                         note=note)  # fmt: skip


if __name__ == "__main__":
    main()
