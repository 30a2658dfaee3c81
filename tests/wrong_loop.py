"""A sixth loop, for tests/test_wrong_loop.py: it guesses hidden digits. --wrong breaks one promise of the contract."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from core import checkpoint, config, dist, rng, run
from core.tracker import Tracker
from core.values import Count


@dataclass
class Options:
    # run
    out_dir: str = "out"
    resume: bool = False
    max_steps: Count = 10
    batch_size: Count = 4
    accumulate: Count = 1
    seed: int = 1
    wrong: Literal["", "rng", "loss", "mask", "step", "log"] = ""


def main(args: Options) -> None:
    d = dist.init("cpu", timeout=30)
    folder = run.claim(args.out_dir, d.main)
    stored = checkpoint.newest(folder.path)[0] if args.resume else None
    B = args.batch_size * args.accumulate * d.world
    micro_steps, micro_batch = dist.split(B, args.batch_size, d.world)
    rng.seed_torch(args.seed, "init")
    model = torch.nn.Sequential(torch.nn.Embedding(11, 8), torch.nn.Flatten(), torch.nn.Linear(48, 60))
    torch.nn.init.zeros_(model[2].weight)
    torch.nn.init.zeros_(model[2].bias)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    first_step = 0
    if stored:
        first_step = stored["step"]
        model.load_state_dict(stored["model"])
        optimizer.load_state_dict(stored["optimizer"])
    net = DistributedDataParallel(model, find_unused_parameters=True) if d.world > 1 else model
    forgotten = np.random.default_rng(args.seed)  # a generator whose state no checkpoint holds

    def save(step: int) -> None:
        if folder.writes:
            state = checkpoint.pack(kind="wrong", model=model, model_config={}, optimizer=optimizer, loop={},
                                    seed=args.seed, step=max(0, step - (args.wrong == "step")), best=None,
                                    options=config.to_dict(args), meta={})  # fmt: skip
            checkpoint.save(Path(args.out_dir) / "ckpt.pt", state)

    folder.begin(holds="aside", resume=args.resume)
    track = Tracker(folder.path, folder.writes, args.max_steps, first_step)
    for step in range(first_step, args.max_steps + 1):
        folder.step = step
        if step % 3 == 0 or step == args.max_steps:
            save(step)
        if step == args.max_steps:
            break
        g = forgotten if args.wrong == "rng" else rng.generator(args.seed, "batch", step)
        digits = np.tile(g.integers(0, 10, (B, 3)), 2)  # what is hidden can be read elsewhere
        hidden = rng.generator(args.seed, "mask", step).random(digits.shape) < 0.3
        n_valid, loss_sum = int(hidden.sum()), 0.0
        for micro in range(micro_steps):
            i = (micro * d.world + d.rank) * micro_batch
            x, hide = digits[i : i + micro_batch], hidden[i : i + micro_batch]
            if args.wrong == "mask":
                hide = rng.generator(args.seed, "mask", step, d.rank).random(x.shape) < 0.3
            if d.world > 1:
                net.require_backward_grad_sync = micro == micro_steps - 1
            logits = net(torch.from_numpy(np.where(hide, 10, x))).view(-1, 10)
            loss = F.cross_entropy(logits, torch.from_numpy(np.where(hide, x, -100)).flatten(), reduction="sum")
            if args.wrong == "loss":  # the mean of the ranks' means
                loss = loss / max(1, hide.sum()) / micro_steps
            else:
                loss = loss * d.world / n_valid
            loss.backward()
            loss_sum += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        loss = dist.sums([loss_sum])[0] / d.world
        track.train(step, {"loss": loss / 2 if args.wrong == "log" else loss}, B)
        folder.step = step + 1
        if folder.stopping():
            save(step + 1)
            return folder.finish(run.STOPPED)
    folder.finish()
    return None
