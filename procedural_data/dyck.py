"""Well-nested brackets of k kinds: ( [ ] )   Open i is token i, its close is i + k."""

import numpy as np

from procedural_data import Spec


def law(spec: Spec) -> int:
    """p_open in units of 2 ** -16, which is how finely it is drawn."""
    return round(spec.p_open * 65536)


def refuse(spec: Spec) -> str | None:
    return "words of dyck are balanced: their length must be even" if spec.length % 2 else None


def draw(rng: np.random.Generator, n: int, spec: Spec) -> np.ndarray:
    """An open with p_open, else the close; at depth 0 an open; closes when only they fit. [0 1 k+1 k] is ( [ ] )."""
    L = spec.length
    coin = rng.bit_generator.random_raw(L * n // 4 + 1).view(np.uint16)[: L * n].reshape(L, n)
    step = (coin < law(spec)).astype(np.int16)
    step *= 2
    step -= 1
    depth = np.empty((L + 1, n), dtype=np.int16)
    depth[0] = 0
    for t in range(L):
        now = depth[t + 1]
        np.add(depth[t], step[t], out=now)
        np.absolute(now, out=now)  # -1 becomes 1: at depth 0 an open
        if 2 * t >= L - 2:
            np.minimum(now, L - t - 1, out=now)  # what is left has room for the closes
    # Sorted by level, stably, every open is followed by its own close: no stack is needed to match them.
    key = np.empty((n, L), dtype=np.uint32)
    key[:] = np.maximum(depth[1:], depth[:-1]).T
    key <<= 16
    key |= np.arange(L, dtype=np.uint32)
    key.sort(axis=1)
    key <<= 16  # place, token
    kind = rng.integers(0, spec.k, (n, L // 2), dtype=np.uint16)
    key[:, 0::2] |= kind
    key[:, 1::2] |= kind + np.uint16(spec.k)
    key.sort(axis=1)
    return key.astype(np.uint16)


def odds(tokens: np.ndarray, spec: Spec) -> np.ndarray:
    """The probability of every token at places 1 .. T - 1, given those in front: (n, T) -> (n, T - 1, 2 * k)"""
    n, T = tokens.shape
    k, p = spec.k, law(spec) / 65536
    out, every = np.zeros((T - 1, n, 2 * k), dtype=np.float32), np.arange(n)
    stack, depth = np.zeros((n, T + 1), dtype=np.int64), np.zeros(n, dtype=np.int64)
    for t in range(1, T):
        token = tokens[:, t - 1].astype(np.int64)
        depth += np.where(token < k, 1, -1)
        stack[every, np.where(token < k, depth, T)] = token  # a close writes where nobody reads
        opens = np.where(depth == 0, 1.0, np.where(depth >= spec.length - t, 0.0, p))
        out[t - 1, :, :k] = opens[:, None] / k
        out[t - 1, every, stack[every, depth] + k] = 1 - opens
    return out.transpose(1, 0, 2)


def check(question: list[int], answer: list[int], spec: Spec) -> bool:
    stack = []
    for token in question + answer:
        if token < spec.k:
            stack.append(token)
        elif not stack or token != stack.pop() + spec.k:
            return False
    return not stack and len(question) + len(answer) == spec.length
