"""Where a step's time goes, loop by loop, against the floor: its matrix products at the measured rate of large ones.

    python bench/step_profile.py                    # all five loops, at the shapes of the other benchmarks
    python bench/step_profile.py train pretrain
    python bench/step_profile.py train --ops 30     # and the single operations

Each loop runs as it is, in a process of its own, under torch.profiler from its tenth step on. The profiler itself takes
about a microsecond a call; "between calls" is Python, the autograd engine and the profiler.
"""

import argparse
import importlib
import re
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import table
import torch

from core import config, dist, tracker

WARM, STEPS = 10, 10
PARTS = {  # the first that matches an operation's name
    "matrix products": r"::(mm|addmm|bmm|baddbmm|addmv|mv|dot|mkldnn_linear\w*|_scaled_mm)_?$",
    "fused attention": r"attention|flash|flex",
    "softmax and loss": r"softmax|nll|logsumexp|exp_?$|cross_entropy|scatter|gather",
    "norms": r"layer_norm|rms_norm|rsqrt",
    "activations": r"gelu|relu|silu|tanh|sigmoid|erf",
    "dropout and draws": r"dropout|bernoulli|random|uniform|normal_",
    "optimizer, clipping": r"Optimizer|_fused_|_foreach|vector_norm|clip",
    "copies and casts": r"copy_|clone|contiguous|::cat|index|gather|embedding|fill|zero|pin_memory|stack|repeat",
    "arithmetic": r"::(add|sub|mul|div|neg|pow|sum|mean|where|le|lt|ge|gt|eq|ne|bitwise\w*|masked_fill)_?$",
}


class Enough(Exception):
    """As many steps as were wanted."""


# -----------------------------------------------------------------------------
# the loops, at the shapes of their benchmarks


def train(folder: Path) -> list[str]:
    from train import SHAPES, shape_flags

    data = table.characters("", folder / "data")
    return [f"--dataset={data}", f"--out_dir={folder / 'out'}", *shape_flags(SHAPES["small"][0]), "--eval_iters=1",
            "--log_interval=1", "--never_save_checkpoint"]  # fmt: skip


def pretrain(folder: Path) -> list[str]:
    from pretrain import write_data

    write_data(folder, "small", 40)
    return [f"--train={folder / 'train'}", f"--eval={folder / 'eval'}", f"--save_path={folder / 'out'}", "--no_wandb",
            f"--tokenizer={folder / 'tokenizer.json'}", "--hidden_depth=4", "--attention_heads=4", "--hidden_size=128",
            "--intermed_size=512", "--vocab_size=1000", "--max_size=512", "--per_device=16", "--log_steps=1"]  # fmt: skip


def finetune(folder: Path) -> list[str]:
    import numpy as np

    from core import checkpoint
    from data import tensors, vocab
    from data.train_tokenizer import build
    from model import RobertaConfig, RobertaMLM

    about = {"kind": "tokenizers", "json": build("by-digit", 16, iter([])).to_str()}
    g = np.random.default_rng(0)
    for name, n in (("train", 16 * 40), ("val", 16)):
        lengths = np.clip(np.exp(g.normal(4.8, 0.7, n)), 16, 512).astype(np.int64)
        ids = g.integers(6, 16, lengths.sum())
        tensors.save(folder / f"{name}.pt", ids, lengths, 1, g.integers(0, 2, n), ["no", "yes"], vocab.load(about).hash)
    model = RobertaMLM(RobertaConfig(vocab_size=16, block_size=512, n_layer=4, n_head=4, n_embd=128, mlp_size=512))
    checkpoint.save(folder / "encoder.pt", checkpoint.pack(
        kind="roberta", model=model, model_config=vars(model.config), optimizer=None, loop={}, seed=0, step=0,
        best=None, options={}, meta={"tokenizer": about}))  # fmt: skip
    return [f"--init_from={folder / 'encoder.pt'}", f"--out_dir={folder / 'out'}", "--log_interval=1",
            f"--train={folder / 'train.pt'}", f"--val={folder / 'val.pt'}"]  # fmt: skip


def reward(folder: Path) -> list[str]:
    from reward import BATCH, write_data

    write_data(folder, 40)
    return [f"--model_name={folder / 'model'}", f"--data.data_dir={folder / 'qa.json'}", f"--data.batch_size={BATCH}",
            f"--trainer.checkpoint.dirpath={folder / 'out'}", "--trainer.params.log_every_n_steps=1",
            "--trainer.params.num_sanity_val_steps=0"]  # fmt: skip


def procedural(folder: Path) -> list[str]:
    return ["--task=sort", "--gpt2_size=4_4_256", "--seq_length=32", "--batch_size=64", "--vocab_size=100",
            "--log_interval=1", "--eval_samples=8", f"--save_dir={folder / 'out'}"]  # fmt: skip


LOOPS = {"train": ("train", train), "pretrain": ("pretrain", pretrain), "finetune": ("finetune", finetune),
         "reward": ("reward_train", reward), "procedural": ("procedural_pretraining.cli", procedural)}  # fmt: skip


# -----------------------------------------------------------------------------
# measuring


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large product, the best of some."""
    n = 8192 if device.type == "cuda" else 1536
    a, b, best = torch.randn(n, n, device=device).to(dtype), torch.randn(n, n, device=device).to(dtype), 0.0
    for _ in range(12):
        start = time.perf_counter()
        (a @ b)[0, 0].item()
        best = max(best, 2 * n**3 / (time.perf_counter() - start))
    return best


def steps(name: str, folder: Path):
    """The profile of STEPS steps of a loop, and the seconds that they took without and with the profiler."""
    module, make = LOOPS[name]
    argv, here = make(folder), sys.path[0]
    sys.path[0] = str(table.ROOT)  # bench/ has files of the same names
    sys.modules.pop(module, None)
    script = importlib.import_module(module)
    sys.path[0] = here
    profiler, seen, times = torch.profiler.profile(with_flops=True), 0, []
    logged = tracker.Tracker.train

    def train(self, *args, **kwargs):
        nonlocal seen
        logged(self, *args, **kwargs)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seen += 1
        if seen in (WARM, WARM + STEPS):
            times.append(time.perf_counter())
        if seen == WARM + STEPS:
            profiler.start()
            times.append(time.perf_counter())
        if seen == WARM + 2 * STEPS:
            times.append(time.perf_counter())
            profiler.stop()
            raise Enough

    tracker.Tracker.train = train
    try:
        script.main(config.parse(script.Options, argv, doc="", config_flags=("--config", "--config_file")))
    except Enough:
        pass
    return profiler, times[1] - times[0], times[3] - times[2]


def part_of(name: str) -> str:
    return next((part for part, pattern in PARTS.items() if re.search(pattern, name)), "views and small calls")


def show(args, name: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        profiler, plain, seconds = steps(name, Path(scratch))
    device = dist.pick_device("auto", 0)
    dtype, note = dist.precision("auto", device)
    events = profiler.key_averages()
    kind = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    spent, calls, flops = defaultdict(float), defaultdict(int), 0.0
    for e in events:
        spent[part_of(e.key)] += getattr(e, kind) / 1e6
        calls[part_of(e.key)] += e.count
        flops += e.flops if part_of(e.key) == "matrix products" else 0
    spent["between calls"] = max(0.0, seconds - sum(spent.values()))
    rate = matmul_rate(device, dtype)
    rows = [["", "ms a step", "share", "calls a step"]]
    for part, s in sorted(spent.items(), key=lambda item: -item[1]):
        rows.append([part, f"{s / STEPS * 1000:.2f}", f"{s / seconds:.1%}", f"{calls[part] / STEPS:.0f}"])
    floor = flops / STEPS / rate
    text = (f"{table.table(rows)}\n\nUnder the profiler {seconds / STEPS * 1000:.1f} ms a step, without it"
            f" {plain / STEPS * 1000:.1f} ms. Floor: {flops / STEPS / 1e9:,.2f} GFLOP of matrix products a step at the"
            f" measured {rate / 1e9:,.0f} GFLOP/s ({note}) are {floor * 1000:.1f} ms, {floor * STEPS / plain:.0%} of"
            f" the step.")  # fmt: skip
    table.write(args, f"Where a step of {name} goes", text)
    if args.ops:
        order = sorted(events, key=lambda e: -getattr(e, kind))[: args.ops]
        print(table.table([["", "ms a step", "calls a step"]] + [
            [e.key[:60], f"{getattr(e, kind) / STEPS / 1000:.3f}", f"{e.count / STEPS:.0f}"] for e in order]))  # fmt: skip


def main() -> None:
    args = table.arguments(__doc__, loops=list(LOOPS), ops=(0, "the costliest operations, one by one"))
    if len(args.loops) == 1:
        return show(args, args.loops[0])
    for name in args.loops:
        load = argparse.Namespace(**vars(args))
        done = table.run("bench/step_profile.py", name, f"--ops={args.ops}", f"--record={load.record}")
        print(done["output"].rsplit("\nWhere a step", 1)[-1].join(["\nWhere a step", ""]), flush=True)
    return None


if __name__ == "__main__":
    main()
