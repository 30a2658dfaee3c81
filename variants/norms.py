"""Normalisations: NORMS[name](dim, bias=False, eps=1e-5) -> module. A new one is a class and a line in the table."""

import torch.nn.functional as F
from torch import Tensor, nn


class LayerNorm(nn.LayerNorm):
    """Mean 0 and variance 1 over the last axis, then a learnt scale and, on request, a learnt shift (1607.06450)."""

    def __init__(self, dim: int, bias: bool = False, eps: float = 1e-5):
        super().__init__(dim, eps=eps, bias=bias)


class RMSNorm(nn.RMSNorm):
    """Root mean square 1 over the last axis, then a learnt scale; it has no shift, whatever bias says (1910.07467)."""

    def __init__(self, dim: int, bias: bool = False, eps: float = 1e-5):
        super().__init__(dim, eps=eps)

    def forward(self, x: Tensor) -> Tensor:  # torch's fused kernel wants one dtype: under autocast q and k are 16-bit
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class NoNorm(nn.Identity):
    """The input itself, without a parameter."""

    def __init__(self, dim: int, bias: bool = False, eps: float = 1e-5):
        super().__init__()


NORMS = {"layernorm": LayerNorm, "rmsnorm": RMSNorm, "none": NoNorm}
