"""Dropout that does not cost more than what it drops from."""

import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from variants import once

BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}
PIECE = 1 << 19  # numbers of a mask that come from one place of the tables


@lru_cache(maxsize=1)
def tables() -> tuple[Tensor, Tensor]:
    """Random 16-bit numbers, the same ones in each process; two pieces long."""
    numbers = np.random.SFC64(0).random_raw(PIECE).view(np.int16)
    with torch.inference_mode(False):
        return torch.from_numpy(numbers).split(2 * PIECE)


def mask(shape: torch.Size, p: float) -> Tensor:
    """int16, all bits set where an element is kept, none where it is dropped.

    Each piece is a stretch of one table xor a stretch of the other, from places that torch's generator draws: some
    2 ** 38 different pieces, for a tenth of the time that drawing their numbers takes.
    """
    last, (a, b) = 32767 - round(p * 65536), tables()  # numbers up to `last` keep
    out = torch.empty(math.prod(shape), dtype=torch.int16)
    for part in out.split(PIECE):
        i, j = torch.randint(PIECE, (2,)).tolist()
        torch.bitwise_xor(a[i : i + len(part)], b[j : j + len(part)], out=part)
        part.clamp_(last, last + 1).sub_(last + 1)
    return out.view(shape)


def factor(p: float) -> float:
    """What makes up for the elements that a mask drops."""
    return 65536 / (65536 - round(p * 65536))


def keep(x: Tensor, kept: Tensor) -> Tensor:
    """x where the mask keeps, 0 elsewhere; not yet made up for."""
    bits = BITS[x.dtype]
    return (x.view(bits) & kept.to(bits)).view(x.dtype)


def cheap(x: Tensor, p: float) -> bool:
    """Whether a mask can stand in for F.dropout here."""
    cpu = x.device.type == "cpu" and x.dtype in BITS and not torch.compiler.is_compiling()
    return cpu and 0 < round(p * 65536) < 65536


class Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, p: float) -> Tensor:
        ctx.p, kept = p, mask(x.shape, p)
        ctx.save_for_backward(kept)
        return keep(x, kept).mul_(factor(p))

    @staticmethod
    @once
    def backward(ctx, g: Tensor):
        return keep(g, *ctx.saved_tensors).mul_(factor(ctx.p)), None


def dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """F.dropout; on CPUs by a mask of 16 random bits an element (p in steps of 1 / 65536), as torch draws a double for
    each: 0.15 ns an element in place of 5, when all the rest of attention takes 2."""
    if p == 0 or not training:
        return x
    return Drop.apply(x, p) if cheap(x, p) else F.dropout(x, p)


class Dropout(nn.Dropout):
    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p, self.training)
