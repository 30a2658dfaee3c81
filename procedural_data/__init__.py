"""Procedural data: endless samples whose answers are known, a file a task.

    spec = Spec("sort", length=4, vocab_size=10)
    x, y = batch(spec, seed=42, split="train", start=0, n=64)  # int64, next-token inputs and targets

A new task joins by adding a file. It offers draw and check, and either answer or odds:

    draw(rng, n, spec) -> (n, width) uint16         questions, drawn independently of each other
    answer(question, spec) -> (n, width) uint16     the answers; closed by PAD where their lengths differ
    odds(tokens, spec) -> (n, T - 1, 2 * k)         languages without questions: the exact law of each next token
    check(question, answer, spec) -> bool           plain Python, one sample: is this list the answer to that one?
    refuse(spec) -> str | None                      if it wants: what is wrong with a length

A row is question, SEP, answer. Sample i is a function of (spec, seed, split, i) alone. The hash of the question says
whether it is held out: whatever the seed, the training side never shows it, the "val" split shows nothing else.
"""

import importlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from core.rng import generator, mix

BLOCK = 2048  # samples drawn at once: Python's share of the time gets small, and the arrays still fit the cache
HELD_OUT = 1 / 16  # of all questions, by their hash
TASKS = tuple(sorted(f.stem for f in Path(__file__).parent.glob("*.py") if f.stem != "__init__"))


@dataclass(frozen=True)
class Spec:
    task: str
    length: int
    vocab_size: int = 21  # values 1 .. vocab_size - 1
    k: int = 16  # dyck tasks: kinds of brackets
    p_open: float = 0.5  # dyck tasks: probability of an opening bracket
    max_depth: int = 16  # dyck_shuffle: brackets open at once

    def __post_init__(self):
        if self.task not in TASKS:
            raise ValueError(f"task must be one of {', '.join(TASKS)}, got {self.task!r}")
        limits = {"seq_length": (self.length, 1, 32768), "vocab_size": (self.vocab_size, 2, 65534),
                  "k": (self.k, 1, 32767), "max_depth": (self.max_depth, 1, 32768), "p_open": (self.p_open, 0, 1)}
        for name, (value, low, high) in limits.items():
            if not low <= value <= high:  # tokens and places are 16 bits
                raise ValueError(f"{name} must be {low} to {high}, got {value}")
        refuse = getattr(self.module, "refuse", None)
        if refuse and (why := refuse(self)):
            raise ValueError(f"{why}, got seq_length {self.length}")

    @property
    def module(self):
        return importlib.import_module(f"procedural_data.{self.task}")

    @property
    def asks(self) -> bool:
        """Whether samples are a question and its answer, rather than words of a language."""
        return hasattr(self.module, "answer")

    @property
    def sep(self) -> int:
        return self.vocab_size

    @property
    def pad(self) -> int:
        return self.vocab_size + 1 if self.asks else 2 * self.k

    def __str__(self):
        return f"{self.task} at length {self.length}"


def values(rng: np.random.Generator, n: int, spec: Spec) -> np.ndarray:
    """n rows of spec.length values: the questions of most tasks."""
    return rng.integers(1, spec.vocab_size, (n, spec.length), dtype=np.uint16)


def hash_rows(rows: np.ndarray) -> np.ndarray:
    """(n, width) uint16 -> (n,) uint64; the same for the same tokens, whatever drew them."""
    if more := -rows.shape[1] % 4:
        rows = np.pad(rows, ((0, 0), (0, more)))
    words = np.ascontiguousarray(rows).view(np.uint64)  # four tokens each
    odd = generator("question hash").integers(0, 1 << 64, words.shape[1], dtype=np.uint64) | np.uint64(1)
    return mix(np.einsum("ij,j->i", words, odd))


@lru_cache(maxsize=64)
def cut(spec: Spec) -> np.uint64:
    """Questions whose hash lies below it are held out.

    Everywhere the same, except where there are so few questions that (nearly) all of them would be on one side: there
    the cut moves between two of their hashes, so that both sides have some.
    """
    usual, many = np.uint64(HELD_OUT * 2**64), max(1024, min(16384, (1 << 20) // spec.length))
    hashes = np.sort(hash_rows(spec.module.draw(generator("holdout", spec.task, spec.vocab_size, spec.k), many, spec)))
    if HELD_OUT / 4 <= np.searchsorted(hashes, usual) / many <= HELD_OUT * 4:
        return usual
    places = np.flatnonzero(hashes[1:] > hashes[:-1]) + 1
    if not len(places):
        raise ValueError(f"{spec} has a single question, so none can be held out: raise the length or the vocabulary")
    return hashes[places[np.abs(places / many - HELD_OUT).argmin()]]


def size(split: str) -> int:
    """Samples in a block: fewer on the held-out side, where sixteen are drawn to keep one."""
    return BLOCK // 16 if split == "val" else BLOCK


@lru_cache(maxsize=16)
def block(spec: Spec, seed: int, split: str, index: int) -> tuple[np.ndarray, int]:
    """Rows, and how many tokens of each are the question: drawn, and dropped if on the other side, until full."""
    rng = generator(seed, "procedural", split, spec.task, spec.length, index)
    limit, held_out, found, missing = cut(spec), split == "val", [], size(split)
    while missing > 0:
        question = spec.module.draw(rng, BLOCK * 35 // 32, spec)  # nearly always enough for a block of training samples
        found.append(question[(hash_rows(question) < limit) == held_out][:missing])
        missing -= len(found[-1])
    question = found[0] if len(found) == 1 else np.concatenate(found)
    if not spec.asks:
        return question, 0
    sep = np.full((len(question), 1), spec.sep, dtype=np.uint16)
    row = np.hstack([question, sep, spec.module.answer(question, spec)])
    assert row.max() <= spec.pad, f"{spec}: a row holds {row.max()}, and PAD, the last token, is {spec.pad}"
    return row, question.shape[1]


def rows(spec: Spec, seed: int, split: str, start: int, n: int) -> tuple[np.ndarray, int]:
    """Samples start .. start + n - 1 of a split ("val": held out; any other name: not), as block gives them."""
    first, last = start // size(split), (start + n - 1) // size(split)
    blocks = [block(spec, seed, split, i) for i in range(first, last + 1)]
    all_rows = blocks[0][0] if len(blocks) == 1 else np.concatenate([b[0] for b in blocks])
    return all_rows[start - first * size(split) :][:n], blocks[0][1]


def batch(spec: Spec, seed: int, split: str, start: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets (n, T) of samples start .. start + n - 1."""
    return targets(spec, *rows(spec, seed, split, start, n))


def targets(spec: Spec, row: np.ndarray, question: int) -> tuple[np.ndarray, np.ndarray]:
    """The loss falls on the answer, from the last SEP on, up to the first PAD."""
    x, y = row[:, :-1].astype(np.int64), row[:, 1:].astype(np.int64)
    pads = row == spec.pad
    if pads.any():
        np.copyto(y, -100, where=pads[:, :-1])  # the first PAD is a target, those behind it are not
    y[:, :question] = -100
    return x, y


def teachable(spec: Spec) -> bool:
    """Whether the training side shows every token that the held-out side asks for.

    The shortest lengths may not: of the k words that dyck has at length 2 each is the only one with its brackets.
    """
    seen, asked = (np.unique(rows(spec, 0, split, 0, n)[0]) for split, n in (("train", 8192), ("val", 512)))
    return bool(np.isin(asked, seen).all())
