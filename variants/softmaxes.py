"""From attention scores to weights: SOFTMAXES[name](scores, dim) -> weights of the same shape.

A masked score is -inf or the dtype's lowest number, and gets the weight 0. (Multiplied, the lowest number may become
-inf, and a query that sees no key NaN: clamp it, or use is_open.) Weights must not depend on masked keys, not even on
their number: causality and the KV cache rest on it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def is_open(scores: Tensor) -> Tensor:
    return scores > torch.finfo(scores.dtype).min / 2  # a score added to the lowest number may round to a little more


def softmax1(scores: Tensor, dim: int) -> Tensor:
    """exp(s) / (1 + sum exp(s)): a query may attend to nothing. The quiet softmax, "attention is off by one"."""
    top = scores.amax(dim, keepdim=True).clamp(min=0).detach()
    weights = torch.exp(scores - top)
    return weights / (torch.exp(-top) + weights.sum(dim, keepdim=True))


def softermax(scores: Tensor, dim: int) -> Tensor:
    """Softmax to the base 2, cheaper in hardware (2103.09301)."""
    return torch.softmax(scores * 0.6931471805599453, dim)  # ln 2


def sigsoftmax(scores: Tensor, dim: int) -> Tensor:
    """exp(s) sigmoid(s), normalised: not confined to a low rank (1805.10829)."""
    return torch.softmax(torch.where(is_open(scores), scores + F.logsigmoid(scores), scores), dim)


def sparsemax(scores: Tensor, dim: int) -> Tensor:
    """The nearest point of the probability simplex: many weights are exactly 0 (1602.02068)."""
    z = (scores if scores.dtype == torch.float64 else scores.float()).clamp(min=-1e9)
    z = z - z.amax(dim, keepdim=True).detach()
    ordered = z.sort(dim, descending=True).values
    shape = [1] * z.dim()
    shape[dim] = -1
    rank = torch.arange(1, z.shape[dim] + 1, device=z.device).view(shape)
    # in whole numbers: floats a GPU adds up in any order, which --deterministic refuses. None below -1 is inside
    one = 1 << 30
    units = (ordered.detach().clamp(min=-1) * one).long()
    inside = one + rank * units > units.cumsum(dim)  # the largest scores, as many as stay positive
    size = inside.sum(dim, keepdim=True)
    threshold = (ordered.masked_fill(~inside, 0).sum(dim, keepdim=True) - 1) / size
    return (z - threshold).clamp(min=0).to(scores.dtype)


def sigmoid(scores: Tensor, dim: int) -> Tensor:
    """Each key for itself: sigmoid(s - log n) with n open keys, so that weights start near 1 / n (2409.04431)."""
    n = is_open(scores).sum(dim, keepdim=True).clamp(min=1)
    return torch.sigmoid(scores - n.log().to(scores.dtype))


def relumax(scores: Tensor, dim: int) -> Tensor:
    """relu(s) / n with n open keys (2309.08586)."""
    n = is_open(scores).sum(dim, keepdim=True).clamp(min=1)
    return F.relu(scores) / n.to(scores.dtype)


def squared_relumax(scores: Tensor, dim: int) -> Tensor:
    """relu(s) ** 2 / n with n open keys, as in Primer's family (2309.08586)."""
    n = is_open(scores).sum(dim, keepdim=True).clamp(min=1)
    return F.relu(scores).square() / n.to(scores.dtype)


SOFTMAXES = {
    "softmax": torch.softmax,
    "softmax1": softmax1,
    "softermax": softermax,
    "sigsoftmax": sigsoftmax,
    "sparsemax": sparsemax,
    "sigmoid": sigmoid,
    "relumax": relumax,
    "squared_relumax": squared_relumax,
}
