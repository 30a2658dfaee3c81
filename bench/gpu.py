"""On a GPU: train.py beside a plain compiled loop, pretrain.py, memory, against the card's measured matmul rate.

    python bench/gpu.py                        # GPT-2 124M, T 1024, bf16, compiled
    python bench/gpu.py --micro_batch 32       # sequences at once

Skips itself where there is no CUDA device. Data are random ids: speed does not depend on them.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import table
import torch

from data import bins
from model import GPT, GPTConfig
from train import ours, shape_flags


def matmul_rate(n: int = 8192, seconds: float = 2.0) -> float:
    """bf16 FLOP/s of a large matrix product."""
    a, b = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in "ab")
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in "ab")
    for _ in range(10):
        a @ b
    count = max(10, int(seconds * 5e14 / (2 * n**3)))
    begin.record()
    for _ in range(count):
        a @ b
    end.record()
    torch.cuda.synchronize()
    return 2 * n**3 * count / (begin.elapsed_time(end) / 1000)


def main() -> None:
    args = table.arguments(__doc__, micro_batch=(32, "sequences at once"), steps=60)
    if not torch.cuda.is_available():
        return print("no CUDA device: nothing to measure")
    shape, steps = (12, 12, 768, 1024, args.micro_batch), 30 if args.quick else args.steps
    with torch.device("meta"):
        flops = GPT(GPTConfig(block_size=1024, n_layer=12, n_head=12, n_embd=768)).flops_per_token(1024)
    with tempfile.TemporaryDirectory() as scratch:
        data, out = Path(scratch) / "data", Path(scratch) / "out"
        ids = np.random.default_rng(0).integers(0, 50257, 2_000_000)
        bins.write(data, 50304, ids, ids[:100_000], {"kind": "tiktoken", "name": "gpt2"})

        def plain() -> dict:
            done = table.run("bench/plain.py", data, *shape_flags(shape), f"--max_iters={steps}")
            said = json.loads(done["output"].splitlines()[-1])
            ms = said["ms"][-10 * ((steps - 11) // 10) :]  # the plain loop waits for the GPU at every tenth step
            return {"tok/s": shape[3] * shape[4] * len(ms) / sum(ms) * 1000, "MiB": said["gpu_MiB"]}

        found = table.turns({"plain, compiled": plain, "train.py": lambda: ours(data, shape, steps, out)}, args.repeats)
    rate = matmul_rate()
    title = f"GPT-2 124M, T 1024, B {args.micro_batch}"
    mfu = {name: f"{max(runs) * flops / rate:.0%}" for name, runs in table.pick(found, "tok/s").items()}
    table.report(args, title, table.pick(found, "tok/s"), "plain, compiled", unit="tok/s", goal=1.15,
                 note=f"Measured matmul rate {rate / 1e12:,.0f} TFLOP/s; share of it: {mfu}.")  # fmt: skip
    table.report(args, f"{title}: memory", table.pick(found, "MiB"), "plain, compiled", unit="peak MiB", more=False,
                 goal=1.25)  # fmt: skip


if __name__ == "__main__":
    main()
