"""Saving a checkpoint: how much training time it costs, beside a torch.save that training waits for.

    python bench/checkpoint.py                 # GPT-2 124M with AdamW: 1.5 GB
    python bench/checkpoint.py --quick         # 6 x 384

Steps are trained while the file is written; what they take longer than as many undisturbed ones right after them, and
the copy before them, is what the save costs.
"""

import tempfile
import time
from pathlib import Path

import table
import torch

from core import checkpoint, dist, optim
from model import GPT, GPTConfig


def main() -> None:
    args = table.arguments(__doc__)
    device = dist.init().device
    sizes = {"n_layer": 6, "n_head": 6, "n_embd": 384} if args.quick else {"n_layer": 12, "n_head": 12, "n_embd": 768}
    model = GPT(GPTConfig(block_size=256, vocab_size=50304, **sizes)).to(device)
    optimizer = torch.optim.AdamW(optim.groups(model, 0.1), lr=1e-5, fused=optim.fused(device))
    cast = dist.autocast(device, dist.precision("auto", device)[0])
    x = torch.randint(50304, (2, 64 if device.type == "cpu" else 256), device=device)

    def step() -> float:
        start = time.perf_counter()
        with cast:
            loss = model(x, x) / x.numel()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def state() -> dict:
        return checkpoint.pack(kind="gpt", model=model, model_config=vars(model.config), optimizer=optimizer, loop={},
                               seed=0, step=0, best=None, options={}, meta={})  # fmt: skip

    for _ in range(3):
        step()
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch)

        def blocking() -> float:
            step()
            start = time.perf_counter()
            with open(path / "plain.pt", "wb") as f:
                torch.save(state(), f)
            return time.perf_counter() - start

        def background() -> float:
            step()
            start = time.perf_counter()
            checkpoint.save(path / "ckpt.pt", state(), background=True)
            lost, disturbed = time.perf_counter() - start, []
            while checkpoint._writer.is_alive():
                disturbed.append(step())
            return lost + sum(disturbed) - sum(step() for _ in disturbed)

        background()  # the first copy takes its memory from the system
        found = table.turns({"blocking torch.save": blocking, "checkpoint.save": background}, args.repeats)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    table.report(args, f"Training time lost to a checkpoint, {millions:.0f} M parameters with AdamW", found,
                 "blocking torch.save", unit="s", more=False, goal=None if args.quick else 10)  # fmt: skip


if __name__ == "__main__":
    main()
