"""How a model knows where a token stands: POSITIONS[name](block_size, n_embd, n_head, base) -> module.

Each kind overrides one of three methods; the model calls all three and names none:
    forward(positions) -> (T, C), added to the token embedding
    rotary(positions)  -> (cos, sin), applied to q and k by rotate()
    bias(T_q, T_k, device) -> (n_head, T_q, T_k), added to the attention scores
positions are token positions, (T) or (B, T), counted from 0. While text is generated they and T_k go beyond block_size
(but for `learned`): a table of one's own must clamp them. No token looks back further than block_size - 1.
"""

import math

import torch
from torch import Tensor, nn

# -----------------------------------------------------------------------------
# the arithmetic


def sinusoidal_table(positions: Tensor, dim: int, base: float = 10000.0) -> Tensor:
    """Sines at even places, cosines at odd ones, wavelengths from 2 pi to base * 2 pi (1706.03762)."""
    half = torch.arange(0, dim, 2, device=positions.device, dtype=torch.float32)
    angle = positions.float().unsqueeze(-1) * torch.exp(half * (-math.log(base) / dim))
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-2)[..., :dim]  # an odd dim drops the last cosine


def rotary_table(positions: Tensor, dim: int, base: float = 10000.0, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """cos and sin of each position's angles, (..., dim / 2), float32; scale stretches the positions (2104.09864)."""
    assert dim % 2 == 0, f"rotary positions turn pairs of dimensions, a head has {dim}"
    half = torch.arange(0, dim, 2, device=positions.device, dtype=torch.float32)
    angle = (positions.float() / scale).unsqueeze(-1) * torch.exp(half * (-math.log(base) / dim))
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns the pairs (i, i + D/2) of x (B, H, T, D) by its position's angles (T, D/2) or (B, T, D/2)."""
    if cos.dim() == 3:
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def alibi_slopes(n_head: int, device: torch.device | None = None) -> Tensor:
    """Geometric from 2 ** (-8 / n) down; between powers of two the next power's odd ones join (2108.12409)."""
    power = 2 ** math.floor(math.log2(n_head))
    i = torch.arange(n_head, device=device)  # computed where it is used: a list would be copied there each time
    return torch.exp2(torch.where(i < power, -8 * (i + 1), -4 * (2 * (i - power) + 1)) / power)


def alibi_bias(n_head: int, T_q: int, T_k: int, device: torch.device | None = None) -> Tensor:
    """-slope * distance, (n_head, T_q, T_k); the queries are the last T_q of the T_k positions."""
    slopes = alibi_slopes(n_head, device)
    j = torch.arange(T_k, device=device)
    i = torch.arange(T_k - T_q, T_k, device=device)
    return -slopes[:, None, None] * (i[:, None] - j).abs()


# -----------------------------------------------------------------------------
# the kinds


class Position(nn.Module):
    """No position at all; a causal model can still count its keys (2203.16634)."""

    def __init__(self, block_size: int, n_embd: int, n_head: int, base: float = 10000.0):
        super().__init__()
        self.n_embd, self.n_head, self.base = n_embd, n_head, base

    def forward(self, positions: Tensor) -> Tensor | float:
        return 0.0

    def add(self, x: Tensor, positions: Tensor) -> Tensor:
        """To embeddings, which keep their type: tables are computed in float32."""
        added = self(positions)
        return x + (added.to(x.dtype) if torch.is_tensor(added) else added)

    def rotary(self, positions: Tensor) -> tuple[Tensor, Tensor] | None:
        return None

    def bias(self, T_q: int, T_k: int, device: torch.device | None = None) -> Tensor | None:
        return None


class Learned(Position):
    """A learnt vector a position; its weight has nanoGPT's name when the module is called wpe."""

    def __init__(self, block_size: int, n_embd: int, n_head: int, base: float = 10000.0):
        super().__init__(block_size, n_embd, n_head, base)
        self.weight = nn.Parameter(torch.empty(block_size, n_embd).normal_(std=0.02))

    def forward(self, positions: Tensor) -> Tensor:
        return nn.functional.embedding(positions, self.weight)


class Sinusoidal(Position):
    def forward(self, positions: Tensor) -> Tensor:
        return sinusoidal_table(positions, self.n_embd, self.base)


class Rotary(Position):
    def rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return rotary_table(positions, self.n_embd // self.n_head, self.base)


class Alibi(Position):
    def bias(self, T_q: int, T_k: int, device: torch.device | None = None) -> Tensor:
        return alibi_bias(self.n_head, T_q, T_k, device)


POSITIONS = {"learned": Learned, "sinusoidal": Sinusoidal, "rotary": Rotary, "alibi": Alibi, "none": Position}
