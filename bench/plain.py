"""The plain side: a GPT, its training loop and its sampling in the usual style, float32 on a CPU, in a few lines.

    python bench/plain.py DATA --n_layer=4 --n_head=4 --n_embd=128 --block_size=64 --batch_size=12 --max_iters=20
    python bench/plain.py DATA --batch_size=1 --new_tokens=300

Fused attention, AdamW, gradient clipping, a cosine schedule; on CUDA also bf16 autocast, fused AdamW, torch.compile and
pinned batches. Prints a line of JSON: milliseconds a step, and the evaluations with the seconds trained until then.
"""

import argparse
import json
import math
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, C: int, n_head: int, bias: bool = False):
        super().__init__()
        self.n_head = n_head
        self.ln_1, self.ln_2 = nn.LayerNorm(C, bias=bias), nn.LayerNorm(C, bias=bias)
        self.c_attn, self.c_proj = nn.Linear(C, 3 * C, bias=bias), nn.Linear(C, C, bias=bias)
        self.mlp = nn.Sequential(nn.Linear(C, 4 * C, bias=bias), nn.GELU(), nn.Linear(4 * C, C, bias=bias))

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (t.view(B, T, self.n_head, -1).transpose(1, 2) for t in self.c_attn(self.ln_1(x)).split(C, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C))
        return x + self.mlp(self.ln_2(x))


class Plain(nn.Module):
    def __init__(self, vocab: int, n_layer: int, n_head: int, n_embd: int, block_size: int):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocab, n_embd), nn.Embedding(block_size, n_embd)
        self.h = nn.Sequential(*[Block(n_embd, n_head) for _ in range(n_layer)])
        self.ln_f, self.lm_head = nn.LayerNorm(n_embd, bias=False), nn.Linear(n_embd, vocab, bias=False)
        self.block_size = block_size
        for name, p in self.named_parameters():
            if p.dim() == 2:
                small = name.endswith("c_proj.weight") or name.endswith("mlp.2.weight")
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * n_layer) if small else 0.02)
        self.lm_head.weight = self.wte.weight

    def forward(self, idx, targets=None):
        x = self.ln_f(self.h(self.wte(idx) + self.wpe(torch.arange(idx.shape[1], device=idx.device))))
        if targets is None:
            return self.lm_head(x[:, [-1]])
        return F.cross_entropy(self.lm_head(x).flatten(0, 1), targets.flatten())

    @torch.no_grad()
    def generate(self, idx, n: int, temperature: float = 0.8, top_k: int = 200):
        """All tokens are computed again for each new one."""
        for _ in range(n):
            logits = self(idx[:, -self.block_size :])[:, -1] / temperature
            kth = torch.topk(logits, min(top_k, logits.shape[-1])).values[:, [-1]]
            probs = F.softmax(logits.masked_fill(logits < kth, float("-inf")), dim=-1)
            idx = torch.cat((idx, torch.multinomial(probs, 1)), dim=1)
        return idx


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    shape = {"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256, "batch_size": 64, "max_iters": 10}
    for name, value in {**shape, "eval_interval": 0, "warmup": 100, "new_tokens": 0, "after": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--target", type=float, help="stop at this validation loss")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    cuda, T, B = device == "cuda", args.block_size, args.batch_size
    about = json.loads((Path(args.data) / "meta.json").read_text())
    data = {part: np.memmap(Path(args.data) / f"{part}.bin", dtype=about["dtype"], mode="r") for part in ("train", "val")}

    def batch(part: str):
        at = torch.randint(len(data[part]) - T, (B,))
        x = torch.stack([torch.from_numpy(data[part][i : i + T].astype(np.int64)) for i in at])
        y = torch.stack([torch.from_numpy(data[part][i + 1 : i + 1 + T].astype(np.int64)) for i in at])
        if cuda:
            return (t.pin_memory().to(device, non_blocking=True) for t in (x, y))
        return x, y

    torch.manual_seed(1337)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    vocab = 50304 if about["vocab_size"] > 50000 else about["vocab_size"]
    model = Plain(vocab, args.n_layer, args.n_head, args.n_embd, T).to(device)
    if args.new_tokens:
        x = torch.zeros(B, args.after, dtype=torch.long, device=device)
        model.generate(x, 3)
        start = time.perf_counter()
        model.generate(x, args.new_tokens)
        return print(json.dumps({"seconds": time.perf_counter() - start}))
    net = torch.compile(model) if cuda else model
    cast = torch.autocast("cuda", torch.bfloat16) if cuda else nullcontext()
    groups = [{"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": 0.1},
              {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0}]  # fmt: skip
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), fused=cuda)
    times, evals, start = [], [], time.perf_counter()
    x, y = batch("train")
    for step in range(args.max_iters):
        if args.eval_interval and step % args.eval_interval == 0:
            with torch.no_grad(), cast:
                loss = sum(net(*batch("val")).item() for _ in range(100)) / 100
            evals.append([step, sum(times) / 1000, loss])
            if args.target and loss <= args.target:
                break
            start = time.perf_counter()
        share = min(1.0, max(0, step - args.warmup) / max(1, args.max_iters - args.warmup))
        lr = 1e-4 + 0.5 * (1 + math.cos(math.pi * share)) * 9e-4
        for group in optimizer.param_groups:
            group["lr"] = lr if step > args.warmup else 1e-3 * (step + 1) / (args.warmup + 1)
        with cast:
            loss = net(x, y)
        x, y = batch("train")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 10 == 0 or not cuda:
            loss.item()
        now = time.perf_counter()
        times.append((now - start) * 1000)
        start = now
    peak = torch.cuda.max_memory_allocated() / 2**20 if cuda else 0
    return print(json.dumps({"ms": times, "evals": evals, "gpu_MiB": peak}))


if __name__ == "__main__":
    main()
