"""Dropout that does not cost more than what it drops from."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def kept(x: Tensor, p: float) -> Tensor:
    """What dropout multiplies x with: 0, or 1 / (1 - p), in x's own type. One number of torch's seeds the others."""
    below = round(p * 65536)
    seed = torch.empty((), dtype=torch.int64).random_().item()
    bits = torch.from_numpy(np.random.SFC64(seed).random_raw(-(-x.numel() // 4)).view(np.int16))
    bits = bits[: x.numel()].view(x.shape)
    return torch.ge(bits, below - 32768, out=torch.empty(x.shape, dtype=x.dtype)).mul_(65536 / (65536 - below))


def cheap(x: Tensor, p: float) -> bool:
    """Whether kept() can stand in for F.dropout here."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and 0 < round(p * 65536) < 65536


def dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """F.dropout; on CPUs from 16 random bits an element (p in steps of 1 / 65536), as torch draws a double for each:
    0.6 ns an element in place of 5, when all the rest of attention takes 2."""
    if p == 0 or not training:
        return x
    return x * kept(x, p) if cheap(x, p) else F.dropout(x, p)


class Dropout(nn.Dropout):
    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p, self.training)
