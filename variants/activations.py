"""Activations: ACTIVATIONS[name](x) -> tensor of x's shape. A new one is a function and a line in the table."""

import torch
import torch.nn.functional as F
from torch import Tensor


def gelu_tanh(x: Tensor) -> Tensor:
    """GPT-2's approximation of gelu; Hugging Face calls it gelu_new (1606.08415)."""
    return F.gelu(x, approximate="tanh")


def squared_relu(x: Tensor) -> Tensor:
    """relu(x) ** 2, from Primer (2109.08668)."""
    return F.relu(x).square()


def identity(x: Tensor) -> Tensor:
    """With a name, as every row: a model that holds a lambda cannot be pickled."""
    return x


def squareplus(x: Tensor) -> Tensor:
    """A softplus without exponentials (2112.11687)."""
    return (x + torch.sqrt(x * x + 4)) / 2


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), as in CLIP (1606.08415)."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {
    "celu": F.celu,
    "elu": F.elu,
    "gelu": F.gelu,
    "gelu_tanh": gelu_tanh,
    "hardswish": F.hardswish,
    "identity": identity,
    "leaky_relu": F.leaky_relu,
    "mish": F.mish,
    "quick_gelu": quick_gelu,
    "relu": F.relu,
    "relu6": F.relu6,
    "selu": F.selu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "squared_relu": squared_relu,
    "squareplus": squareplus,
    "tanh": torch.tanh,
}
