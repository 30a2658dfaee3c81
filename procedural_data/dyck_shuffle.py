"""k kinds of brackets, each balanced in itself, in any order: ( [ ) ]   Open i is token i, its close is i + k."""

import numpy as np

from procedural_data import Spec
from procedural_data.dyck import law


def refuse(spec: Spec) -> str | None:
    return "a word needs a token to predict from and one to predict" if spec.length < 2 else None


def draw(rng: np.random.Generator, n: int, spec: Spec) -> np.ndarray:
    """An open with p_open, of any kind, else a close of one of the kinds now open; at most max_depth are open."""
    L, k, p, cap = spec.length, spec.k, law(spec), min(spec.k, spec.max_depth)
    coin = rng.bit_generator.random_raw(L * n // 4 + 1).view(np.uint16)[: L * n].reshape(L, n)
    pick = rng.random((L, n), dtype=np.float32)
    fresh = rng.integers(0, k, (L, n), dtype=np.uint16)
    out = np.empty((L, n), dtype=np.uint16)
    count = np.zeros(n * k, dtype=np.int16)  # open brackets, by row and kind
    kinds = np.zeros(n * (cap + 1), dtype=np.int64)  # by row: the kinds now open, and a place for what is no change
    counts, first = np.arange(n) * k, np.arange(n) * (cap + 1)
    m, depth = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int16)
    for t in range(L):
        opens = ((coin[t] < p) | (depth == 0)) & (depth < spec.max_depth)
        sign = 2 * opens.view(np.int8) - 1
        chosen = first + (pick[t] * m).astype(np.int64)
        kind = np.where(opens, fresh[t], kinds[chosen])
        np.subtract(kind, -k * ~opens, out=out[t], casting="unsafe")
        before = count[counts + kind]
        after = before + sign
        count[counts + kind] = after
        change = np.minimum(before, after) == 0  # a kind joins those now open, or leaves: the last takes its place
        end = first + m
        place = np.where(change, np.where(opens, end, chosen), first + cap)
        kinds[place] = np.where(opens, kind, kinds[end - 1])
        m += sign * change
        depth += sign
    return np.ascontiguousarray(out.T)


def odds(tokens: np.ndarray, spec: Spec) -> np.ndarray:
    """The probability of every token at places 1 .. T - 1, given those in front: (n, T) -> (n, T - 1, 2 * k)"""
    k, p = spec.k, law(spec) / 65536
    kinds = np.arange(k)
    seen = tokens[:, :-1, None]
    count = np.cumsum((seen == kinds).view(np.int8) - (seen == kinds + k).view(np.int8), axis=1, dtype=np.int32)
    depth, now = count.sum(axis=2, keepdims=True), count > 0  # (n, T - 1, 1), (n, T - 1, k)
    opens = np.where(depth == 0, 1.0, np.where(depth >= spec.max_depth, 0.0, p))
    closes = (1 - opens) * now / np.maximum(now.sum(axis=2, keepdims=True), 1)
    return np.concatenate([np.broadcast_to(opens / k, now.shape), closes], axis=2).astype(np.float32)


def check(question: list[int], answer: list[int], spec: Spec) -> bool:
    count = [0] * spec.k
    for token in question + answer:
        count[token % spec.k] += 1 if token < spec.k else -1
        if token >= 2 * spec.k or count[token % spec.k] < 0 or sum(count) > spec.max_depth:
            return False
    return len(question) + len(answer) == spec.length
