"""Learning rates as pure functions of the step.

    lr_at(step, "cosine", lr=1e-3, warmup=100, total=5000, min_lr=1e-4)

Warmup is linear for every kind: step s trains with lr * (s + 1) / (warmup + 1), so that no step is wasted at 0 and
step `warmup` is the first at the full rate.
"""

import math


def outlasts(warmup: int, last_step: int) -> list[str]:
    """A note of a warmup that is as long as the run."""
    return [f"note: the run's {last_step} steps are all within the warmup of {warmup}: the rate does not get to"
            " --lr"] * (0 < last_step <= warmup)  # fmt: skip


def cosine(t: float, **_) -> float:
    return 0.5 * (1 + math.cos(math.pi * t))


def linear(t: float, **_) -> float:
    return 1 - t


def wsd(t: float, decay_frac: float = 0.2, **_) -> float:
    """Warmup, stable, decay: constant, then linear down over the last part (2405.18392)."""
    return min(1.0, (1 - t) / decay_frac) if decay_frac else 1.0


# kinds that run from lr to min_lr over the steps between warmup and total: 1 at t = 0, 0 at t = 1
SHAPES = {"cosine": cosine, "linear": linear, "wsd": wsd}
SCHEDULES = ("none", *SHAPES, "exponential", "step", "plateau")


def lr_at(step: int, kind: str, *, lr: float, warmup: int = 0, total: int = 1, min_lr: float = 0.0,
          gamma: float = 0.9, step_size: int = 1000, step_gamma: float = 0.1, decay_frac: float = 0.2,
          plateau: float = 1.0) -> float:  # fmt: skip
    """The learning rate that step trains with. `plateau` is the factor reached so far (see Plateau)."""
    if step < warmup:
        return lr * (step + 1) / (warmup + 1)
    after, min_lr = step - warmup, min(min_lr, lr)
    if kind in SHAPES:
        t = min(1.0, after / max(1, total - warmup))
        return min_lr + (lr - min_lr) * SHAPES[kind](t, decay_frac=decay_frac)
    if kind == "exponential":
        return max(min_lr, lr * gamma**after)
    if kind == "step":
        return max(min_lr, lr * step_gamma ** (after // step_size))
    if kind == "plateau":
        return max(min_lr, lr * plateau)
    if kind in ("none", "constant"):
        return lr
    raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {kind!r}")


class Plateau:
    """Lowers the rate when the validation loss stops falling; its state is three numbers in the checkpoint."""

    def __init__(self, factor: float, patience: int, state: dict | None = None):
        self.factor, self.patience = factor, patience
        self.state = state or {"scale": 1.0, "best": None, "waited": 0}

    def update(self, loss: float) -> None:
        s = self.state
        if not math.isfinite(loss):
            return
        if s["best"] is None or loss < s["best"]:
            s["best"], s["waited"] = loss, 0
            return
        s["waited"] += 1
        if s["waited"] > self.patience:
            s["scale"], s["waited"] = s["scale"] * self.factor, 0
