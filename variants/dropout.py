"""Dropout that does not cost more than what it drops from."""

import torch
import torch.nn.functional as F
from torch import Tensor


def dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """F.dropout; on CPUs from 16 random bits an element (p in steps of 1 / 65536), as torch draws a double for each:
    1.2 ns an element in place of 5, when all the rest of attention takes 2."""
    if p == 0 or not training:
        return x
    below = round(p * 65536)
    if x.device.type != "cpu" or torch.compiler.is_compiling() or not 0 < below < 65536:
        return F.dropout(x, p)
    n = x.numel()
    bits = torch.empty(-(-n // 4), dtype=torch.int64).random_(-(1 << 63), None).view(torch.int16)[:n].view(x.shape)
    keep = torch.ge(bits, below - 32768, out=torch.empty(x.shape, dtype=x.dtype))  # 0 or 1, in x's own type
    return x * keep.mul_(65536 / (65536 - below))
