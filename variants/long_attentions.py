"""Attention whose memory grows linearly with length, for encoders: both directions, a mask that is True on real tokens.

    y = favor(q, k, v, mask, features(g, 256, head_size), phi="exp")      # (B, nh, T, hs)
    y = lsh(q, v, mask, rotations(g, head_size, max_length, 64), chunk_size=64)
    y = Favor(head_size, max_length, nb_features=256)(q, k, v, mask)         # the same, with its draws in a buffer

The draws are functions of a seed and the step, and are kept with the weights. Neither kind depends on the padding of
its batch.
"""

import inspect
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core import rng

SELF, NOTHING = -1e5, -1e9  # scores: a token sees itself only when it sees nothing else; never a padding key

PHI = {"exp": None, "elu": lambda x: F.elu(x) + 1, "relu2": lambda x: F.relu(x).square()}


def features(g: np.random.Generator, nb_features: int, head_size: int, ortho: bool = True) -> torch.Tensor:
    """Directions for favor, (nb_features, hs): Gaussian, and in orthogonal blocks of hs rows where ortho says so."""
    w = g.standard_normal((nb_features, head_size))
    if ortho:  # an orthogonal basis has the directions, fresh Gaussian rows the lengths: each row is still Gaussian
        lengths = np.linalg.norm(w, axis=1, keepdims=True)
        squares = g.standard_normal((-(-nb_features // head_size), head_size, head_size))
        q, r = np.linalg.qr(squares)
        q = q * np.sign(r.diagonal(axis1=1, axis2=2))[:, None]  # the signs that LAPACK picks favour some directions
        w = q.reshape(-1, head_size)[:nb_features] * lengths
    return torch.from_numpy(w.astype(np.float32))


def favor(q, k, v, mask, w, phi: str = "exp", stabilize: bool = True, eps: float = 1e-6):
    """softmax(q k^T / sqrt(hs)) v by positive random features, arXiv:2009.14794; elu and relu2 are other kernels.

    The sums over keys are made once and read by every query: (B, nh, m, hs) in place of (B, nh, T, T).
    """
    dtype = v.dtype
    with torch.autocast(q.device.type, enabled=False):  # exponentials and long sums: float32 throughout
        scale = q.size(-1) ** -0.25
        q, k, v, w = q.float() * scale, k.float() * scale, v.float(), w.float()
        real = mask[:, None, :, None]  # (B, 1, T, 1)
        q2, k2 = q.square().sum(-1, keepdim=True) / 2, k.square().sum(-1, keepdim=True) / 2
        q, k = q @ w.T, k @ w.T  # (B, nh, T, m)
        if phi == "exp":
            q, k = q - q2, k - k2
            if stabilize:  # a factor a query and one over all keys: both cancel in the quotient
                q = q - q.detach().amax(-1, keepdim=True)
                k = k - k.detach().masked_fill(~real, -math.inf).amax((-1, -2), keepdim=True)
            q, k = q.exp(), k.masked_fill(~real, -math.inf).exp()
        else:
            q, k = PHI[phi](q), PHI[phi](k).masked_fill(~real, 0.0)
        y = q @ (k.transpose(-1, -2) @ v)  # (B, nh, T, m) @ (B, nh, m, hs)
        return (y / (q @ k.sum(-2).unsqueeze(-1) + eps)).to(dtype)


def rotations(g: np.random.Generator, head_size: int, max_length: int, chunk_size: int, num_hashes: int = 4):
    """Random rotations for lsh, (2, num_hashes, hs, n/2): two hashes of n values each give n * n buckets.

    There are at least as many buckets as chunks in the longest sequence; one hash with that many values would need
    memory that grows with T * T.
    """
    half = math.ceil(math.sqrt(max_length / chunk_size) / 2)
    return torch.from_numpy(g.standard_normal((2, num_hashes, head_size, half)).astype(np.float32))


def places(q, mask, rotations, chunk_size: int):
    """Bucket and chunk of each token in each round, and the tokens in sorted order: three of (B, nh, rounds, T).

    Cross-polytope hashing (arXiv:1509.02897); padding sorts behind all buckets. T is a multiple of chunk_size here.
    """
    n = 2 * rotations.size(-1)
    with torch.autocast(q.device.type, enabled=False):
        turned = torch.einsum("bhtd,frdn->fbhrtn", q.float(), rotations.float())  # f: the two hashes, r: the rounds
    high, low = torch.cat([turned, -turned], -1).argmax(-1)
    bucket = (high * n + low).masked_fill(~mask[:, None, None], n * n)
    order = bucket.argsort(dim=-1, stable=True)
    place = torch.empty_like(order).scatter_(-1, order, torch.arange(q.size(2), device=q.device).expand_as(order))
    return bucket, place // chunk_size, order, place


def around(x, fill):
    """Each chunk with the ones before and after it: (B, nh, r, N, c, ...) -> (B, nh, r, N, 3c, ...)."""
    edge = torch.full_like(x[:, :, :, :1], fill)
    return torch.cat([torch.cat([edge, x[:, :, :, :-1]], 3), x, torch.cat([x[:, :, :, 1:], edge], 3)], 4)


def lsh(q, v, mask, rotations, chunk_size: int = 64, mask_within_chunks: bool = False, dropout: float = 0.0):
    """Reformer's attention, arXiv:2001.04451: keys are the queries at unit length; similar ones are sorted together.

    In each of num_hashes rounds a token attends to its chunk of the sorted sequence and to the chunks before and after
    (mask_within_chunks: only to its own bucket there). A pair met in several rounds counts once, so the result is
    softmax attention over all pairs met in any round.
    """
    T, chunk_size = q.size(2), min(chunk_size, q.size(2))
    short = -T % chunk_size
    q, v, mask = F.pad(q, (0, 0, 0, short)), F.pad(v, (0, 0, 0, short)), F.pad(mask, (0, short))

    def sort(x, at):  # (B, nh, r or 1, T, ...) -> (B, nh, r, N, c, ...)
        return x.take_along_dim(at, 3).unflatten(3, (-1, chunk_size))

    with torch.no_grad():
        bucket, chunk, order, place = places(q, mask, rotations, chunk_size)
        me = order.unflatten(3, (-1, chunk_size))  # token numbers
        itself = me.unsqueeze(-1) == around(me, -1).unsqueeze(-2)  # (B, nh, r, N, c, 3c)
        nothing = ~around(sort(mask[:, None, None], order), False).unsqueeze(-2)
        times = torch.zeros_like(itself, dtype=torch.int16)  # the rounds in which each pair meets
        for r in range(order.size(2)):
            c, b = sort(chunk[:, :, r : r + 1], order), sort(bucket[:, :, r : r + 1], order)
            meet = (c.unsqueeze(-1) - around(c, -9).unsqueeze(-2)).abs() <= 1
            times += meet & (b.unsqueeze(-1) == around(b, -1).unsqueeze(-2)) if mask_within_chunks else meet
        if mask_within_chunks:
            b = sort(bucket, order)
            nothing = nothing | (b.unsqueeze(-1) != around(b, -1).unsqueeze(-2))

    q, v = sort(q.unsqueeze(2), order.unsqueeze(-1)), sort(v.unsqueeze(2), order.unsqueeze(-1))
    scores = q @ around(F.normalize(q, dim=-1), 0.0).transpose(-1, -2)  # (B, nh, r, N, c, 3c)
    scores = (scores.float() - times.clamp(min=1).log()).masked_fill(itself, SELF).masked_fill(nothing, NOTHING)
    total = scores.logsumexp(-1, keepdim=True)
    weights = F.dropout((scores - total).exp(), dropout, training=dropout > 0).to(v.dtype)
    y = weights @ around(v, 0.0)  # (B, nh, r, N, c, hs)
    y, total = (x.flatten(3, 4).take_along_dim(place.unsqueeze(-1), 3) for x in (y, total))
    y = (y * total.softmax(2).to(y.dtype)).sum(2)  # each round by the share of the weight that it found
    return y[:, :, :T].masked_fill(~mask[:, None, :T, None], 0.0)


# -----------------------------------------------------------------------------
# with their draws, for a model: attention(q, k, v, mask or None, dropout)


def drawn(*coords) -> np.random.Generator:
    """A generator for this place in the model; torch's own, which the script has seeded, tells the places apart."""
    return rng.generator("attention", int(torch.randint(1 << 62, ())), *coords)


class LSH(nn.Module):
    parts = 2  # of the projection: queries, which are the keys as well, and values

    def __init__(self, head_size: int, max_length: int, num_hashes: int = 4, chunk_size: int = 64,
                 mask_within_chunks: bool = False):  # fmt: skip
        super().__init__()
        self.options = {"chunk_size": chunk_size, "mask_within_chunks": mask_within_chunks}
        self.register_buffer("rotations", rotations(drawn(), head_size, max_length, chunk_size, num_hashes))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, *_) -> Tensor:
        mask = q.new_ones(q.shape[0], q.shape[2], dtype=torch.bool) if mask is None else mask
        return lsh(q, v, mask, self.rotations, dropout=dropout, **self.options)


class Favor(nn.Module):
    parts = 3  # queries, keys, values

    def __init__(self, head_size: int, max_length: int, nb_features: int = 256, ortho_features: bool = True,
                 redraw_interval: int = 0, phi: str = "exp", stabilize: bool = True, eps: float = 1e-6):  # fmt: skip
        super().__init__()
        self.every, self.ortho = redraw_interval, ortho_features
        self.options = {"phi": phi, "stabilize": stabilize, "eps": eps}
        self.register_buffer("w", features(drawn(), nb_features, head_size, ortho_features))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, *_) -> Tensor:
        assert dropout == 0, "there are no weights to drop"
        mask = q.new_ones(q.shape[0], q.shape[2], dtype=torch.bool) if mask is None else mask
        return favor(q, k, v, mask, self.w, **self.options)

    def redraw(self, step: int, *coords: int | str) -> None:
        """New features every redraw_interval steps, a function of the step."""
        if self.every and step and step % self.every == 0:
            self.w.copy_(features(rng.generator("favor", step, *coords), *self.w.shape, self.ortho))


LONG = {"lsh": LSH, "favor": Favor}


def check(attention: str, arguments: dict) -> None:
    """Refuses arguments that the attention does not take, and values that it cannot work with."""
    known = inspect.signature(LONG[attention]).parameters if attention in LONG else {}
    for name, value in arguments.items():
        if name not in known or name in ("head_size", "max_length"):  # those follow from the model
            raise ValueError(f"attention {attention} takes no argument {name!r}")
        kind, least = known[name].annotation, 0 if name == "redraw_interval" else 1
        if name == "phi" and value not in PHI:
            raise ValueError(f"attention_args phi must be one of {', '.join(PHI)}, got {value!r}")
        if kind is bool and not isinstance(value, bool):
            raise ValueError(f"attention_args {name} must be true or false, got {value!r}")
        if kind is int and (type(value) is not int or value < least):
            raise ValueError(f"attention_args {name} must be a whole number >= {least}, got {value!r}")
        if kind is float and not (type(value) in (int, float) and 0 <= value < math.inf):
            raise ValueError(f"attention_args {name} must be a number >= 0, got {value!r}")
