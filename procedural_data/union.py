"""The values of two halves, each once, in the order of first appearance: 3 1 | 1 2 | 3 1 2"""

import numpy as np

from procedural_data import Spec
from procedural_data.set import first_appearances


def refuse(spec: Spec) -> str | None:
    return "union has two halves" if spec.length < 2 else None


def draw(rng: np.random.Generator, n: int, spec: Spec) -> np.ndarray:
    """Two halves of length // 2 values, SEP between them."""
    half = spec.length // 2
    question = rng.integers(1, spec.vocab_size, (n, 2 * half + 1), dtype=np.uint16)
    question[:, half] = spec.sep
    return question


def answer(question: np.ndarray, spec: Spec) -> np.ndarray:
    """[3 1 SEP 1 2] -> 3 1 2 PAD PAD"""
    half = spec.length // 2
    both = np.delete(question, half, axis=1)
    return first_appearances(both, min(2 * half, spec.vocab_size - 1), spec.pad)


def check(question: list[int], answer: list[int], spec: Spec) -> bool:
    return answer == list(dict.fromkeys(v for v in question if v != spec.sep))
