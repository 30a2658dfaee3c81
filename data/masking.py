"""Masked language modelling's draws: which tokens are hidden is a pure function of (seed, epoch, sample).

    <s> 3 1 4 1 5 </s>  ->  <s> 3 <mask> 4 1 5 </s>, to guess: [2] was 1

RoBERTa's rule (1907.11692): 15% of the ordinary tokens, each for itself; of these 80% become <mask>, 10% a random
ordinary token, 10% stay. The draw does not see the batch: how samples are grouped, padded or spread over ranks is free.
"""

import numpy as np

from core import rng

STEP = np.uint64(0x9E3779B97F4A7C15)  # splitmix64's: every sample's tokens are a stream of its own


class Masking:
    def __init__(self, mask_id: int, special, vocab_size: int, mask_p=0.15, mask_token_p=0.8, random_token_p=0.1):
        """`special` are the ids that are never hidden, nor drawn."""
        if mask_token_p + random_token_p > 1:
            raise ValueError(f"mask_token_p + random_token_p must be at most 1, got {mask_token_p} + {random_token_p}")
        self.mask_id, self.mask_token_p, self.random_token_p = mask_id, mask_token_p, random_token_p
        self.below = np.uint64(min(int(mask_p * 2.0**64), rng.MASK64))  # a token whose 64 bits are less is hidden
        self.ordinary = np.ones(vocab_size, dtype=bool)
        self.ordinary[special] = False
        self.drawn = np.flatnonzero(self.ordinary)
        if not len(self.drawn):
            raise ValueError(f"the tokenizer has no ordinary token: all {vocab_size} are special")

    def __call__(self, ids: np.ndarray, lengths: np.ndarray, samples: np.ndarray, *coords: int | str):
        """Flat ids, lengths, the samples' numbers, then seed and epoch -> (ids to show, places to guess, answers)."""
        stream = rng.hash64(samples, *coords, "mask")
        first = np.cumsum(lengths) - lengths
        place = (np.arange(len(ids)) - np.repeat(first, lengths) + 1).astype(np.uint64)
        with np.errstate(over="ignore"):
            drawn = rng.mix(np.repeat(stream, lengths) + place * STEP)
        where = np.flatnonzero((drawn < self.below) & self.ordinary[ids])
        fate = rng.mix(drawn[where] ^ STEP)  # anew: `drawn` is small here by selection
        kind = (fate >> np.uint64(32)) / 2.0**32
        other = self.drawn[((fate & np.uint64(0xFFFFFFFF)) * np.uint64(len(self.drawn))) >> np.uint64(32)]
        targets = ids[where]
        shown = np.where(kind < self.mask_token_p, self.mask_id, targets)
        as_other = (kind >= self.mask_token_p) & (kind < self.mask_token_p + self.random_token_p)
        out = ids.copy()
        out[where] = np.where(as_other, other, shown)
        return out, where, targets
