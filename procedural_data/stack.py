"""What a stack holds after pushes (values) and pops (0), from the top: 5 7 0 9 | 9 5"""

import numpy as np

from procedural_data import Spec


def draw(rng: np.random.Generator, n: int, spec: Spec) -> np.ndarray:
    """With more than one value on the stack, a push has probability 3/4 in the first two thirds, then 1/4.

    With at most one, the operation is a push; with every value on it, or at the end (more than one), a pop.
    """
    L, kinds = spec.length, spec.vocab_size - 1
    # the first `depth` cards of a row's deck are its stack: a push swaps a random card from behind to the top
    deck = np.tile(np.arange(1, kinds + 1, dtype=np.uint16), n)
    top = np.arange(n) * kinds  # where in the deck the next push goes
    depth = np.zeros(n, dtype=np.int64)
    coin, pick = rng.random((2, L, n), dtype=np.float32)
    out = np.empty((L, n), dtype=np.uint16)
    for t in range(L):
        p_push = 0 if t == L - 1 else 0.75 if t < 2 * L // 3 else 0.25
        push = ((coin[t] < p_push) | (depth <= 1)) & (depth < kinds)
        here = top - (depth == kinds)  # a full stack has no place behind it; its pop needs none
        there = here + (pick[t] * (kinds - depth)).astype(np.int64)
        value = deck[there]  # where this is a pop, two cards swap that are not on the stack: no matter
        deck[there] = deck[here]
        deck[here] = value
        np.multiply(value, push, out=out[t])
        move = 2 * push.view(np.int8) - 1
        depth += move
        top += move
    return np.ascontiguousarray(out.T)


def answer(question: np.ndarray, spec: Spec) -> np.ndarray:
    """[5 7 0 9] -> 9 5 PAD"""
    L = spec.length
    push = question > 0
    depth = np.cumsum(2 * push.view(np.int8) - 1, axis=1, dtype=np.int16)
    lowest = np.minimum.accumulate(depth[:, ::-1], axis=1)[:, ::-1]  # from here to the end
    row, t = np.nonzero(push & (lowest == depth))  # never popped
    longest = min(spec.vocab_size - 1, L if L <= 2 else L - 2)  # from length 3 on the last operation is a pop
    out = np.full((len(question), longest + 1), spec.pad, dtype=np.uint16)
    out[row, depth[row, -1] - depth[row, t]] = question[row, t]
    return out


def check(question: list[int], answer: list[int], spec: Spec) -> bool:
    stack = []
    for value in question:
        stack.append(value) if value else stack.pop()
    return answer == stack[::-1]
