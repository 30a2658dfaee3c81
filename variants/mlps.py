"""Feed-forward parts: MLPS[name](n_embd, hidden, activation, bias, dropout) -> module on (B, T, C)."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from variants.activations import ACTIVATIONS
from variants.dropout import Dropout


class MLP(nn.Module):
    """Two matrices with an activation between them, under nanoGPT's names."""

    def __init__(self, n_embd: int, hidden: int, activation: str = "gelu", bias: bool = False, dropout: float = 0.0):
        super().__init__()
        self.c_fc = nn.Linear(n_embd, hidden, bias=bias)
        self.c_proj = nn.Linear(hidden, n_embd, bias=bias)
        self.activation = ACTIVATIONS[activation]
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.c_proj(self.activation(self.c_fc(x))))


class GatedMLP(nn.Module):
    """One half of c_fc's output, activated, gates the other half: half again as many weights as MLP (2002.05202)."""

    gate: Callable[[Tensor], Tensor]  # named by the variant, so the activation option does not apply

    def __init__(self, n_embd: int, hidden: int, activation: str = "gelu", bias: bool = False, dropout: float = 0.0):
        super().__init__()
        self.c_fc = nn.Linear(n_embd, 2 * hidden, bias=bias)
        self.c_proj = nn.Linear(hidden, n_embd, bias=bias)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.c_fc(x).chunk(2, dim=-1)  # (B, T, 2 * hidden) -> twice (B, T, hidden)
        return self.dropout(self.c_proj(self.gate(gate) * value))


class SwiGLU(GatedMLP):
    gate = staticmethod(F.silu)


class GeGLU(GatedMLP):
    gate = staticmethod(F.gelu)


MLPS = {"mlp": MLP, "swiglu": SwiGLU, "geglu": GeGLU}
