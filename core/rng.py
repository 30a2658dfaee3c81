"""Counter-based random numbers: a draw is a pure function of its coordinates, so nothing needs to be saved or replayed.

    generator(1337, "batch", step).integers(0, n, size=64)

Coordinates are ints and strings, hashed together. They are never added up: seed + index collides, a hash does not.
"""

import hashlib

import numpy as np

MASK64 = (1 << 64) - 1


def key(*coords: int | str) -> int:
    """128 bits from the coordinates; 1 and "1" differ, and so do ("ab", "c") and ("a", "bc")."""
    text = "\x1f".join(f"i{int(c)}" if not isinstance(c, str) else f"s{c}" for c in coords)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def generator(*coords: int | str) -> np.random.Generator:
    """A NumPy generator of its own for these coordinates."""
    return np.random.Generator(np.random.Philox(key=key(*coords)))


def seed_torch(*coords: int | str) -> None:
    """Seeds torch's global generators (dropout, initialisation) on every device in use."""
    import torch  # here, as the data tools and their workers draw without it

    seed = key(*coords) & (MASK64 >> 1)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # torch.manual_seed keeps a stack trace for devices that are not, 80 us a call
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)


def mix(x: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64 (Steele et al. 2014): one 64-bit word to another, a bijection."""
    x = np.asarray(x, dtype=np.uint64)
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def hash64(x: np.ndarray, *coords: int | str) -> np.ndarray:
    """Hashes integers, elementwise, under a key: the same x with other coordinates is unrelated."""
    k = key(*coords)
    with np.errstate(over="ignore"):
        return mix(mix(np.asarray(x).astype(np.uint64) + np.uint64(k & MASK64)) ^ np.uint64(k >> 64))


def permute(i: np.ndarray | int, n: int, *coords: int | str) -> np.ndarray:
    """Where places i land in a random permutation of range(n), without building the permutation.

    A four-round Feistel network over the next power of four, walked until it falls inside range(n) (Black and
    Rogaway 2002): O(1) memory, and a run that resumes at sample 10**9 pays nothing for those before.
    """
    i = np.atleast_1d(np.asarray(i, dtype=np.int64))
    assert n > 0 and (i.size == 0 or (i.min() >= 0 and i.max() < n)), (n, i.min(), i.max())
    if n <= 64:  # so few that four rounds favour some orders
        return generator("permute", *coords).permutation(n)[i]
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    low = np.uint64((1 << half) - 1)
    rounds = [np.uint64(key(*coords, r) & MASK64) for r in range(4)]

    def walk(x: np.ndarray) -> np.ndarray:
        left, right = x >> np.uint64(half), x & low
        for k in rounds:
            with np.errstate(over="ignore"):
                left, right = right, left ^ (mix(right + k) & low)
        return (left << np.uint64(half)) | right

    out = walk(i.astype(np.uint64))
    outside = out >= np.uint64(n)
    while outside.any():  # at most 4 times as many places as n: a few rounds
        out[outside] = walk(out[outside])
        outside = out >= np.uint64(n)
    return out.astype(np.int64)
