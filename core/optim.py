"""Which parameters train, which decay, and which kernels step them."""

import copy
import re
import sys
from collections.abc import Collection

import torch
from torch import nn

from core import disk, dist, transfer

_told: set[str] = set()  # once a process


def groups(model: nn.Module, weight_decay: float, *, matrices: bool = False, **options) -> list[dict]:
    """Two groups: matrices decay; biases, norms and other vectors do not. Every trained parameter is in one.

    matrices=True takes those of the hidden layers out of the first, for Muon and its kind; use_muon tells the groups.
    """
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    decay = [p for _, p in named if p.dim() >= 2]
    plain = [p for _, p in named if p.dim() < 2]
    assert len({id(p) for p in decay + plain}) == len(named), "a parameter is in no group, or in two"
    if matrices:
        linear = {id(m.weight) for n, m in model.named_modules() if isinstance(m, nn.Linear) and ".h." in f".{n}"}
        hidden = [p for p in decay if id(p) in linear]
        rest = [p for p in decay if id(p) not in linear]
        return [
            {"params": hidden, "weight_decay": weight_decay, "name": "matrices", "use_muon": True, **options},
            {"params": rest, "weight_decay": weight_decay, "name": "decay", "use_muon": False, **options},
            {"params": plain, "weight_decay": 0.0, "name": "no decay", "use_muon": False, **options},
        ]
    return [
        {"params": decay, "weight_decay": weight_decay, "name": "decay", **options},
        {"params": plain, "weight_decay": 0.0, "name": "no decay", **options},
    ]


PARTS = {"embed": "emb", "norm": "ln", "attn": "attn", "mlp": "ff", "head": "other"}


def freeze(model: nn.Module, parts: list[str], spared: list[int], head: str) -> list[str]:
    """Freezes kinds of weights (PARTS), but not the layers `spared` nor what begins with `head`; says what trains."""
    last, table = len(model.transformer.h) - 1, {part: [0, 0] for part in (*PARTS.values(), "head")}
    spared = {i + last + 1 if i < 0 else i for i in spared}
    for name, w in model.named_parameters():
        part = "head" if name.startswith(head) else PARTS[transfer.group_of(name)]
        layer = re.match(r"transformer\.h\.(\d+)\.", name)
        if part in parts and not (layer and int(layer[1]) in spared):
            w.requires_grad = False
        table[part][not w.requires_grad] += w.numel()
    rows = [f"{part:<8}{trains:>14,}{frozen:>14,}" for part, (trains, frozen) in table.items() if trains + frozen]
    if beyond := sorted(i for i in spared if not 0 <= i <= last):
        rows.append(f"there are no layers {beyond}: the model's are 0 to {last}")
    return [f"{'part':<8}{'trains':>14}{'frozen':>14}", *rows]


def pair(betas: list[float], name: str) -> tuple[float, float]:
    if len(betas) != 2:
        raise ValueError(f"{name} must be two numbers, got {' '.join(map(str, betas)) or 'none'}")
    return betas[0], betas[1]


def check_holds(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Every parameter that is to train is in a group: a head beside those that the groups were made of would not."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    left = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in held]
    assert not left, (f"no group of the optimizer holds {', '.join(left[:4])} ({len(left)} such): they would not train"
                      " (what is to be frozen for a time is frozen after the groups are made)")  # fmt: skip


@torch.no_grad()
def check(optimizer: torch.optim.Optimizer, model: nn.Module, step: int) -> None:
    """At log steps: looks for what an edit of a loop may break and no number shows: weights that the optimizer does not
    hold, and ranks whose weights differ."""
    check_holds(optimizer, model)
    if not dist.together():
        return
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = [p.contiguous().view(kinds[p.element_size()]).sum() for p in model.parameters()]  # exact in any order
    first, *others = dist.gather(torch.stack(bits).tolist())
    names = [n for i, (n, _) in enumerate(model.named_parameters()) if any(each[i] != first[i] for each in others)]
    if names and "differ" not in _told and not dist.setting("RANK", 0):
        _told.add("differ")
        print(f"note: after step {step} the ranks' weights differ, beginning with {names[0]} ({len(names)} such): ranks"
              " draw alike for an update, and take the loss of DDP's model", file=sys.stderr)  # fmt: skip


def moments(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the state that its steps keep: what is there, else what a step without numbers (on meta) leaves."""
    if optimizer.state:
        return disk.size_of(list(optimizer.state.values()))
    total = 0
    for _, part in getattr(optimizer, "parts", [("", optimizer)]):  # WithAdamW has two
        params = [p for group in part.param_groups for p in group["params"]]
        shapes = {id(p): torch.empty_like(p, device="meta") for p in params}
        trial = copy.deepcopy(part, dict(shapes))
        for group in trial.param_groups:
            group.update({kernel: False for kernel in ("fused", "foreach") if kernel in group})
        for p in shapes.values():  # one by one: the first that asks for a number ends a step, after it made its state
            p.grad = torch.empty_like(p)
            try:
                trial.step()
                failed = False
            except Exception:  # each in its own way
                failed = True
            made = trial.state.get(p, {})
            total += disk.size_of(made) if made or not failed else 2 * disk.size_of(p)  # as Adam's
            p.grad = None
    return total


def fused(device: torch.device) -> bool:
    """One kernel over all parameters: faster on GPUs and on CPUs."""
    return device.type in ("cuda", "cpu")


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Group by group; `lr_mult` is a group's own multiple of the schedule."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_mult", 1.0)


def load(optimizer: torch.optim.Optimizer, state: dict, own: Collection[str] = ()) -> None:
    """The stored moments under this run's options: load_state_dict alone would bring the old ones back.

    Only options, and `own`, those of --optimizer_args: some optimizers keep counters among them in their groups.
    """
    options = {"lr", "lr_mult", "initial_lr", "weight_decay", "betas", "eps", "momentum", *own}
    now = [{k: v for k, v in g.items() if k in options} for g in optimizer.param_groups]
    sizes = [len(g["params"]) for g in optimizer.param_groups]
    if not state:
        raise ValueError("the checkpoint holds weights alone, no state of an optimizer: it cannot be resumed")
    if sizes != [len(g["params"]) for g in state["param_groups"]]:
        raise ValueError("the checkpoint's optimizer holds other parameters than this run trains: it cannot be resumed")
    params = [p for g in optimizer.param_groups for p in g["params"]]
    for i, p in enumerate(params if isinstance(optimizer, torch.optim.Adam) else []):  # AdamW is one
        for name, value in state["state"].get(i, {}).items():
            there = tuple(value.shape) if torch.is_tensor(value) else type(value).__name__
            if "exp_avg" in name and there != p.shape:  # the fused kernel would read and write beyond the shorter one
                raise ValueError(f"the checkpoint's optimizer state {name} is {there} for a parameter"
                                 f" of {tuple(p.shape)}")  # fmt: skip
    optimizer.load_state_dict(state)
    for group, options in zip(optimizer.param_groups, now, strict=True):
        device = params[0].device  # where load_state_dict has brought the moments, but not what groups hold
        group.update({k: v.to(device) for k, v in group.items() if torch.is_tensor(v)} | options)
