"""Which examples are held out. The same tokens are never on both sides: that would be trained on, and evaluated."""

from collections.abc import Callable

import numpy as np

from core import rng


def held_out(first: int, count: int, share: float, seed: int) -> np.ndarray:
    """Which of the examples first .. first + count - 1 are held out: one, drawn by chance, of every 1 / share."""
    i = np.arange(first, first + count)
    if share == 0:
        return np.zeros(count, dtype=bool)

    def begin(bucket: np.ndarray) -> np.ndarray:
        j = np.ceil(bucket / share)  # rounding may put it one off: 7 / 0.7 is above 10, and 10 * 0.7 is 7
        return j - (np.floor((j - 1) * share) >= bucket) + (np.floor(j * share) < bucket)

    bucket = np.floor(i * share).astype(np.int64)
    start, end = begin(bucket), begin(bucket + 1)
    drawn = rng.hash64(bucket, seed, "held out") / 2.0**64
    return i == start + np.floor(drawn * (end - start))


def fingerprints(ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """64 bits for each row of tokens; equal rows have equal ones."""
    end = np.cumsum(lengths, dtype=np.int64)
    out = np.empty(len(lengths), dtype=np.uint64)
    for a in range(0, len(lengths), 4096):  # rows at once: a word of eight bytes a token
        n, to = np.asarray(lengths[a : a + 4096], dtype=np.int64), end[a : a + 4096]
        first = to[0] - n[0]
        place = np.arange(1, to[-1] - first + 1) - np.repeat(to - n - first, n)  # from 1: mix(0) is 0
        word = np.asarray(ids[first : to[-1]]).astype(np.uint64) << np.uint64(32) | place.astype(np.uint64)
        total = np.concatenate([np.zeros(1, np.uint64), np.cumsum(rng.mix(word))])
        out[a : a + 4096] = rng.mix(total[to - first] - total[to - n - first])
    return out


def in_both(train: tuple[np.ndarray, np.ndarray], others: tuple[np.ndarray, np.ndarray]) -> int:
    """How many of the other rows, (ids, lengths), are among those to train on."""
    return int(np.isin(fingerprints(*others), fingerprints(*train)).sum())


class Sides:
    """Puts each example on the side of the first one that is equal to it; remembers eight bytes for each of these."""

    def __init__(self):
        self.runs: list[np.ndarray] = []  # sorted keys, the side in the last bit; each half as long as the one before
        self.count = 0  # different ones

    def __call__(self, keys: np.ndarray, draw: Callable[[int, int], np.ndarray]) -> np.ndarray:
        """The sides of some more examples, by their fingerprints. draw(first, count) gives the sides of new ones, and
        only these are counted: so the share is exact among different examples, however often each occurs."""
        keys, first, back = np.unique(keys & ~np.uint64(1), return_index=True, return_inverse=True)
        side, new = np.zeros(len(keys), dtype=bool), np.ones(len(keys), dtype=bool)
        for run in self.runs:
            at = np.searchsorted(run, keys).clip(max=len(run) - 1)
            known = run[at] & ~np.uint64(1) == keys
            side, new = np.where(known, run[at] & np.uint64(1) == 1, side), new & ~known
        order = np.flatnonzero(new)[np.argsort(first[new])]
        side[order] = draw(self.count, len(order))
        self.count += len(order)
        if len(order):
            self.runs.append(keys[new] | side[new].astype(np.uint64))
        while len(self.runs) > 1 and len(self.runs[-2]) < 2 * len(self.runs[-1]):
            self.runs[-2:] = [np.sort(np.concatenate(self.runs[-2:]))]
        return side[back]


def parts(keys: np.ndarray, shares: list[float], seed: int, apart: bool = True) -> list[np.ndarray]:
    """The row numbers of each part, rising; rows are drawn at random. apart: equal rows are all in one part."""
    n = len(keys)
    alike = {"return_index": True, "return_inverse": True, "return_counts": True}
    _, first, like, counts = np.unique(keys if apart else np.arange(n), **alike)
    order = np.argsort(rng.permute(first, n, seed, "split"))
    room = np.diff(np.round(np.cumsum([0, *shares, 2]) * n).clip(max=n))  # rows; the last entry is what no part takes
    least = min(room[0], *room[1:-2], room[-2:].sum())  # a smaller share of the last part changes no other part
    which, few = np.empty(len(first), dtype=np.int64), (counts <= max(1, least / 10))[order]
    for many in order[~few]:  # large groups of equal rows: dealt in order, one might fill a part and the next as well
        which[many] = room.argmax()
        room[which[many]] -= counts[many]
    order, room = order[few], room.clip(min=0)
    end = np.cumsum(counts[order])
    ends = np.round(np.cumsum(room) * (end[-1:].sum() / max(1, room.sum())))
    which[order] = np.searchsorted(ends, end - counts[order], side="right")
    return [np.flatnonzero(which[like] == part) for part in range(len(shares))]
