"""What --use_gradient_checkpointing saves, and what it costs: memory that a step keeps, peak memory, time a step.

    python bench/gradient_checkpointing.py
    python bench/gradient_checkpointing.py --n_layer=12 --n_embd=768 --n_head=12 --block_size=1024 --batch_size=8

Each setting runs in a process of its own, in turn, so that one's peak is not the other's.
"""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from core import config, dist, exits, tracker
from core.values import Count
from model import GPT, GPTConfig


@dataclass
class Options:
    n_layer: Count = 12
    n_head: Count = 6
    n_embd: Count = 384
    block_size: Count = 256  # tokens
    vocab_size: Count = 4096
    batch_size: Count = 32  # sequences
    steps: Count = 3
    device: str = "auto"
    saving: bool | None = None  # measure this one alone, and print JSON


def measure(args: Options) -> dict:
    d = dist.init(args.device)
    dtype, _ = dist.precision("auto", d.device)
    torch.manual_seed(0)
    shape = {k: getattr(args, k) for k in ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")}
    model = GPT(GPTConfig(**shape, use_gradient_checkpointing=args.saving)).to(d.device)
    x = torch.randint(0, args.vocab_size, (args.batch_size, args.block_size), device=d.device)
    sizes, own = {}, {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(t):
        if t.untyped_storage().data_ptr() not in own:
            sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    seconds = []
    for step in range(args.steps + 1):
        began = time.perf_counter()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), dist.autocast(d.device, dtype):
            loss = model(x, x)
        kept = sum(sizes.values())
        sizes.clear()
        loss.backward()
        loss.item()  # a GPU is waited for before the clock is read
        seconds += [time.perf_counter() - began] * (step > 0)
        model.zero_grad(set_to_none=True)
    return {"kept": kept, "peak": tracker.peak_memory(d.device), "seconds": sorted(seconds)[len(seconds) // 2]}


def main(args: Options) -> None:
    if args.saving is not None:
        print(json.dumps(measure(args)))
        return
    found = {}
    for saving in (False, True):
        flags = [f"--{k}={v}" for k, v in config.to_dict(args).items() if k != "saving"]
        out = subprocess.run([sys.executable, __file__, *flags, f"--saving={saving}"], check=True, capture_output=True)
        found[saving] = json.loads(out.stdout)
    print(f"{args.n_layer} layers x {args.n_embd}, T {args.block_size}, batch {args.batch_size}")
    print(f"{'':24}{'plain':>12}{'checkpointed':>14}{'ratio':>8}")
    for key, name, unit in (("kept", "kept for backward, MiB", 2**20), ("peak", "peak memory, MiB", 2**20),
                            ("seconds", "a step, ms", 1e-3)):  # fmt: skip
        a, b = found[False][key] / unit, found[True][key] / unit
        print(f"{name:24}{a:12,.0f}{b:14,.0f}{b / a:8.2f}")


if __name__ == "__main__":
    with exits.guard():
        main(config.parse(Options, doc=__doc__))
