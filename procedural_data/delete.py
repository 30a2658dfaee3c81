"""Without the first occurrence of one value, which need not be there: 3 1 2 1 | 1 | 3 2 1"""

import numpy as np

from procedural_data import Spec


def draw(rng: np.random.Generator, n: int, spec: Spec) -> np.ndarray:
    """length values, SEP, the value to delete: drawn like the others."""
    question = rng.integers(1, spec.vocab_size, (n, spec.length + 2), dtype=np.uint16)
    question[:, -2] = spec.sep
    return question


def answer(question: np.ndarray, spec: Spec) -> np.ndarray:
    """[3 1 2 1 SEP 1] -> 3 2 1 PAD PAD"""
    L = spec.length
    hit = question[:, :-1] == question[:, -1:]
    hit[:, L] = True  # absent: nothing in front of the end is left out
    out = np.full((len(question), L + 2), spec.pad, dtype=np.uint16)
    out[:, :L] = question[:, :L]
    first = hit.argmax(axis=1).astype(np.uint16)
    rest = out[:, 1:].copy()
    np.copyto(rest, out[:, :-1], where=np.arange(L + 1, dtype=np.uint16) < first[:, None])  # half of where()'s time
    return rest


def check(question: list[int], answer: list[int], spec: Spec) -> bool:
    rest = question[: spec.length]
    if question[-1] in rest:
        rest.remove(question[-1])
    return answer == rest
