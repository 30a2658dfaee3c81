"""Which data set a step trains on: pure functions of the step, the same on every rank and after every resume.

Mixture(3, probs=[5, 3, 2], seed=1337).pick(np.arange(6))            one of 0, 1, 2 a step, by the probabilities
Mixture(3, probs=[1, 3, 2], interleaving=True).pick(np.arange(6))    0 1 1 1 2 2, and again from the start
Mixture(2, probs=[1, 0], final=[0, 1], total=1000).at(500)           0.5 0.5: the mix moves over the run
"""

import math
from dataclasses import dataclass

import numpy as np

from core import rng

TRANSITIONS = ("linear", "cosine", "exponential")


def shares(numbers) -> np.ndarray:
    """In any unit, as parts of 1."""
    p = np.array(numbers, dtype=float)
    p /= p.max()  # the sum of large ones would be infinite
    return p / p.sum()


@dataclass(frozen=True)
class Mixture:
    n: int  # data sets
    probs: list[float] | None = None  # need not sum to 1; None: all alike
    final: list[float] | None = None  # where the probabilities are at step `total`
    method: str = "linear"  # how they get there
    interleaving: bool = False  # probs are whole numbers: so many batches of each, one after the other
    shuffle: bool = False  # in a new order each round
    total: int = 1
    seed: int = 0

    def __post_init__(self):
        for option, values in (("", self.probs), ("_final", self.final)):
            name = f"--dataset_sampling_probs{option}"
            if values is None:
                continue
            if len(values) != self.n:
                raise ValueError(f"{name} must name one number a data set: {len(values)} for {self.n} data sets")
            if min(values) < 0 or not sum(values) > 0:
                raise ValueError(f"{name} must be >= 0 and not all 0, got {values}")
        if self.method not in TRANSITIONS:
            raise ValueError(f"the transition must be one of {', '.join(TRANSITIONS)}, got {self.method!r}")
        if self.final and self.method == "exponential" and min(*self.final, *self.start) <= 0:
            raise ValueError("--dataset_sampling_probs_transition_method exponential needs probabilities > 0")
        if self.interleaving and self.final:
            raise ValueError("--dataset_interleaving keeps its proportions: --dataset_sampling_probs_final moves none")
        if self.interleaving and any(p != int(p) or p > 1e15 for p in self.probs or []):
            raise ValueError("--dataset_interleaving needs whole --dataset_sampling_probs, batches a round, 1e15 at"
                             f" most, got {self.probs}")  # fmt: skip

    @property
    def start(self) -> np.ndarray:
        return shares(np.ones(self.n) if self.probs is None else self.probs)

    @property
    def round(self) -> np.ndarray:
        """Where they are interleaved, the batches of each in a round."""
        return np.array([int(p) for p in self.probs or [1] * self.n])

    def at(self, step) -> np.ndarray:
        """The probabilities at a step, (n,), or at many, (steps, n)."""
        first = self.start
        if self.final is None:
            return np.broadcast_to(first, (*np.shape(step), self.n))
        last = shares(self.final)
        t = np.clip(np.asarray(step, dtype=float) / max(1, self.total), 0, 1)[..., None]
        if self.method == "exponential":
            p = first ** (1 - t) * last**t
            return p / p.sum(-1, keepdims=True)
        t = (1 - np.cos(math.pi * t)) / 2 if self.method == "cosine" else t
        return (1 - t) * first + t * last

    def pick(self, steps: np.ndarray) -> np.ndarray:
        """The data set of each step."""
        steps = np.asarray(steps, dtype=np.int64)
        if self.n == 1:
            return np.zeros_like(steps)
        if self.interleaving:
            ends = np.cumsum(self.round)
            rounds, place = np.divmod(np.atleast_1d(steps), ends[-1])
            if self.shuffle:
                for r in np.unique(rounds):
                    now = rounds == r
                    place[now] = rng.permute(place[now], int(ends[-1]), self.seed, "mixture", int(r))
            return np.searchsorted(ends, place, side="right").reshape(steps.shape)
        u = rng.hash64(steps, self.seed, "mixture").astype(np.float64) / 2**64
        if self.final is None:
            return np.searchsorted(np.cumsum(self.start)[:-1], u, side="right")
        cuts = np.cumsum(self.at(steps), axis=-1)[..., :-1]  # the last one's end is 1, whatever rounding says
        return (u[..., None] >= cuts).sum(-1)

    def turns(self, step: int, first: int = 0) -> np.ndarray:
        """How many batches each data set gives from step `first` up to this one, (n,): its own count of steps."""
        counts, many = np.zeros(self.n, dtype=np.int64), (1 << 20) // self.n + 1  # where the mix moves, `at` is of all
        if self.interleaving and not first:  # whole rounds need no drawing
            first = step - step % int(self.round.sum())
            counts = self.round * (first // int(self.round.sum()))
        for begin in range(first, step, many):
            counts += np.bincount(self.pick(np.arange(begin, min(step, begin + many))), minlength=self.n)
        return counts
