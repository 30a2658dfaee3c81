"""Each value once, in the order of first appearance: 3 1 3 2 | 3 1 2"""

import numpy as np

from procedural_data import Spec, values

GONE = np.uint32(0xFFFFFFFF)

draw = values


def first_appearances(x: np.ndarray, longest: int, pad: int) -> np.ndarray:
    """(n, L) -> (n, longest + 1), PAD behind the last. Sorting twice (by value, back by place) beats remembering."""
    key = np.sort(x.astype(np.uint32) << 16 | np.arange(x.shape[1], dtype=np.uint32), axis=1)  # value, place
    back = key << 16 | key >> 16  # place, value
    back[:, 1:][key[:, 1:] >> 16 == key[:, :-1] >> 16] = GONE
    back.sort(axis=1)
    out = np.full((len(x), longest + 1), pad, dtype=np.uint16)
    kept = back[:, :longest]
    np.copyto(out[:, :longest], kept.astype(np.uint16), where=kept != GONE)
    return out


def answer(question: np.ndarray, spec: Spec) -> np.ndarray:
    """[3 1 3 2] -> 3 1 2 PAD PAD"""
    return first_appearances(question, min(spec.length, spec.vocab_size - 1), spec.pad)


def check(question: list[int], answer: list[int], spec: Spec) -> bool:
    return answer == list(dict.fromkeys(question))
