"""The loss of a vocabulary's head: loss_sum(x, weight, bias, targets) without all logits at once in memory."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from variants import once

IGNORE = -100
# logits at once: 64 MiB in float32. A GPU adds up the weight's whole gradient once a chunk, and wants large products to
# fill it; compiled code keeps 4 bytes of each logit, other 12
CHUNK, CHUNK_GPU, CHUNK_COMPILED = 1 << 24, 1 << 26, 1 << 28
ROWS = 1 << 11  # at once in float16: a gradient over many more may exceed 65504, and no loss scale would help


def chunk(n: int, vocab: int, kind: str) -> int:
    """Rows at once, of n; on a GPU as many in each chunk, in whole tiles of a matrix product."""
    if kind != "cuda" or not n:
        return max(1, CHUNK // vocab)
    rows = max(1, (CHUNK_COMPILED if torch.compiler.is_compiling() else CHUNK_GPU) // vocab)
    return -(-n // -(-n // rows) // 64) * 64


class LinearCrossEntropy(torch.autograd.Function):
    """Sum of cross-entropy of x @ w.T + b, a chunk of rows at a time: all logits are never in memory together.

    The gradients are computed on the way forward, while a chunk's logits are at hand.
    """

    @staticmethod
    def forward(ctx, x: Tensor, w: Tensor, b: Tensor | None, targets: Tensor, softcap: float | None, dtype,
                training: bool):  # fmt: skip
        x16, w16 = x.to(dtype), w.to(dtype)
        grads = training and any(ctx.needs_input_grad)  # which under no_grad still says what could need one
        compiling = torch.compiler.is_compiling()
        # compiled, chunks are joined behind the loop: else a compiler joins them all where the first is, logits and all
        dx = [x16[:0]] if compiling else torch.empty_like(x16) if grads else None
        dw = torch.zeros_like(w, dtype=torch.float32) if grads else None
        db = torch.zeros_like(b, dtype=torch.float32) if grads and b is not None else None
        found = [x.new_zeros((), dtype=torch.float32)]
        rows = chunk(len(x), w.shape[0], x.device.type)
        rows = min(rows, ROWS) if dtype == torch.float16 else rows
        for i in range(0, x.shape[0], rows):
            part, y = x16[i : i + rows], targets[i : i + rows]
            z = F.linear(part, w16, None if b is None else b.to(dtype))  # (rows, V)
            if softcap is not None:
                z = softcap * torch.tanh(z.float() / softcap)
            p = torch.log_softmax(z, 1, dtype=torch.float32)
            if compiling:  # one pass over the logits, none of which is wanted later
                hit = y[:, None] == torch.arange(w.shape[0], device=y.device)
                found.append(-torch.where(hit, p, 0.0).sum(1).sum())
            else:
                found.append(F.nll_loss(p, y, ignore_index=IGNORE, reduction="sum"))
            if grads:
                valid = (y != IGNORE)[:, None]
                if compiling:
                    dz = p.exp() - hit.to(p.dtype)
                else:
                    dz = p.exp_()
                    dz.scatter_add_(1, y.clamp(min=0)[:, None], dz.new_full((len(y), 1), -1.0))
                if softcap is not None:
                    dz = dz * (1 - (z / softcap).square())
                d16 = dz.to(dtype)
                if compiling:
                    dx.append(d16 @ w16 * valid)  # here and not on dz: C columns are fewer than V
                else:
                    torch.mm(d16, w16, out=dx[i : i + rows]).mul_(valid)
                dw += d16.t() @ (part * valid)
                if db is not None:
                    db += (dz * valid).sum(0)
        ctx.save_for_backward(torch.cat(dx) if compiling else dx, dw, db)
        ctx.types = x.dtype, w.dtype
        return sum(found)

    @staticmethod
    @once
    def backward(ctx, g: Tensor):
        dx, dw, db = ctx.saved_tensors
        return (dx * g).to(ctx.types[0]), (dw * g).to(ctx.types[1]), None if db is None else db * g, *[None] * 4


def loss_sum(x: Tensor, w: Tensor, b: Tensor | None, targets: Tensor, softcap: float | None = None) -> Tensor:
    """x (..., C), targets (...): cross-entropy summed over targets that are not -100, float32."""
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else w.dtype
    training = torch.is_grad_enabled()  # within a Function it never is
    with torch.autocast(kind, enabled=False):
        return LinearCrossEntropy.apply(x.flatten(0, -2), w, b, targets.flatten(), softcap, dtype, training)


def head_loss(x: Tensor, head: nn.Linear, targets: Tensor, softcap: float | None) -> Tensor:
    """loss_sum of a layer's outputs; of one that does more than its weight says (an adapter) all logits at once."""
    if type(head) is nn.Linear:
        return loss_sum(x, head.weight, head.bias, targets, softcap)
    z = head(x).float()
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    return F.cross_entropy(z.flatten(0, -2), targets.flatten(), ignore_index=IGNORE, reduction="sum")
