"""Attentions: ATTENTIONS[name](q, k, v, *, causal, ...) -> (B, H, T_q, D). A new one: a function and a table line."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from variants import dropout as drop
from variants import once
from variants.softmaxes import SOFTMAXES


def visible(T_q: int, T_k: int, causal: bool, window: int | None, device: torch.device) -> Tensor:
    """(T_q, T_k), True where a query may look; the queries are the last T_q of the T_k positions.

    window=3 shows a query itself and the two positions before it (without causal: and the two after it).
    """
    i = torch.arange(T_k - T_q, T_k, device=device)[:, None]
    j = torch.arange(T_k, device=device)
    seen = j <= i if causal else torch.ones(T_q, T_k, dtype=torch.bool, device=device)
    if window is not None:
        seen = seen & ((i - j).abs() < window)
    return seen


def fused(q: Tensor, k: Tensor, v: Tensor, **how) -> Tensor:
    """torch's own kernel, but for cuDNN's where code is not compiled, and each call may bring another shape: on an H100
    that is torch's first choice, and plans for some 30 ms before it meets a new one."""
    cudnn = q.device.type == "cuda" and not torch.compiler.is_compiling() and torch.backends.cuda.cudnn_sdp_enabled()
    if not cudnn:
        return F.scaled_dot_product_attention(q, k, v, **how)
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        return F.scaled_dot_product_attention(q, k, v, **how)
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)


def lowest(x: Tensor) -> float:
    """Not -inf: a query that sees no key (padding) would give NaN."""
    return torch.finfo(x.dtype).min


def plain(q, k, v, scale, *, seen=None, bias=None, dropout=0.0, softcap=None, softmax="softmax") -> Tensor:
    """Matmul, softmax, matmul. Scale and a bool mask `seen` of two axes cost no pass of their own."""
    B, H, T_q, D = q.shape
    if seen is not None and seen.dim() == 2 and softcap is None and bias is None:
        low = torch.zeros(seen.shape, dtype=q.dtype, device=q.device).masked_fill(~seen, lowest(q))
        scores = torch.baddbmm(low, q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2), alpha=scale)
        scores = scores.view(B, H, T_q, -1)
    else:
        scores = (q * scale) @ k.transpose(-2, -1)  # (B, H, T_q, T_k)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        if bias is not None:
            scores = scores + bias.to(scores.dtype)
        if seen is not None:
            scores = scores.masked_fill(~seen, lowest(scores))  # under autocast in fewer bits than a cache's q and k
    weights = SOFTMAXES[softmax](scores, -1).to(v.dtype)
    return drop.dropout(weights, dropout) @ v


def stripes(T: int, window: int | None) -> list[tuple[slice, slice]]:
    """Queries, and the keys that they may see: half of the square is never computed."""
    width = 128 if T <= 1024 or window is not None else 256
    rows = [slice(start, min(start + width, T)) for start in range(0, T, width)]
    return [(r, slice(0 if window is None else max(0, r.start - window + 1), r.stop)) for r in rows]


def low(T_q: int, T_k: int, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What is added to the scores: 0, or the lowest number where a query may not look."""
    mask = torch.zeros(T_q, T_k, dtype=dtype, device=device)
    return mask.masked_fill_(~visible(T_q, T_k, True, window, device), torch.finfo(dtype).min)


@lru_cache(maxsize=64)
def low_once(*shape) -> Tensor:
    """low(*shape), for as long as the process lives."""
    with torch.inference_mode(False):  # a tensor of that mode would be no use in training
        return low(*shape)


class Striped(torch.autograd.Function):
    """Plain causal attention, a stripe of queries at a time; one node with its backward written out, in place of forty.

    q, k, v (B, H, T, D) of one 16-bit type. The slices of keys that autograd would pad with zeros are added in place.
    """

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, p: float) -> Tensor:
        ctx.shape, ctx.scale, ctx.p, ctx.stripes = q.shape, scale, p, stripes(q.shape[2], window)
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))  # (B * H, T, D)
        weights, kept, y = [], [], []
        for rows, cols in ctx.stripes:
            shape = (rows.stop - rows.start, cols.stop - cols.start, window, q.dtype, q.device)
            mask = low(*shape) if torch.compiler.is_compiling() else low_once(*shape)  # a compiler warns of caches
            scores = torch.baddbmm(mask, q[:, rows], k[:, cols].transpose(1, 2), alpha=scale)
            weights.append(torch.softmax(scores, -1))
            kept += [drop.mask(weights[-1].shape, p)] if p else []
            y.append(torch.bmm(drop.keep(weights[-1], kept[-1]) if p else weights[-1], v[:, cols]))
        ctx.save_for_backward(q, k, v, *weights, *kept)
        y = torch.cat(y, 1) if len(y) > 1 else y[0]
        return (y.mul_(drop.factor(p)) if p else y).view(ctx.shape)

    @staticmethod
    @once
    def backward(ctx, g: Tensor):
        q, k, v, *saved = ctx.saved_tensors
        n, dq, dk, dv = len(ctx.stripes), [], None, None
        g, weights, masks = g.flatten(0, 1), saved[:n], saved[n:] or [None] * n
        g = g * drop.factor(ctx.p) if ctx.p else g
        for (rows, cols), w, kept in zip(ctx.stripes, weights, masks, strict=True):
            part = g[:, rows]
            dw = torch.bmm(part, v[:, cols].transpose(1, 2))
            ds = torch._softmax_backward_data(dw if kept is None else drop.keep(dw, kept), w, -1, w.dtype)
            w = w if kept is None else drop.keep(w, kept)
            dq.append(torch.bmm(ds, k[:, cols]))
            if n == 1:
                dk, dv = torch.bmm(ds.transpose(1, 2), q), torch.bmm(w.transpose(1, 2), part)
            else:
                dk, dv = (torch.zeros_like(k), torch.zeros_like(v)) if dk is None else (dk, dv)
                dk[:, cols].baddbmm_(ds.transpose(1, 2), q[:, rows])
                dv[:, cols].baddbmm_(w.transpose(1, 2), part)
        dq = torch.cat(dq, 1) if len(dq) > 1 else dq[0]
        return *(x.view(ctx.shape) for x in (dq.mul_(ctx.scale), dk.mul_(ctx.scale), dv)), None, None, None


def attend(
    q: Tensor,  # (B, H, T_q, D)
    k: Tensor,  # (B, H_kv, T_k, D), H_kv divides H: grouped-query attention (2305.13245)
    v: Tensor,
    *,
    causal: bool,
    mask: Tensor | None = None,  # bool, True = attend, broadcast to (B, H, T_q, T_k)
    bias: Tensor | None = None,  # added to the scaled scores, broadcast likewise
    window: int | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,  # scores become softcap * tanh(scores / softcap) (2408.00118)
    softmax: str = "softmax",
) -> Tensor:
    """Exact attention over all visible keys, by the fastest kernel that the arguments allow."""
    H, T_q, T_k = q.shape[1], q.shape[2], k.shape[2]
    q, k = q.to(v.dtype), k.to(v.dtype)  # under autocast a norm may have made them float32
    if k.shape[1] != H:
        k, v = (x.repeat_interleave(H // x.shape[1], dim=1) for x in (k, v))
    if window is not None and window >= T_k:
        window = None
    scale = q.shape[-1] ** -0.5

    # measured on a CPU with AVX512-BF16: in 16-bit the fused kernel takes 1.5 to 4 times as long as the plain steps,
    # from T 64 to T 2048; in float32 it is the faster one
    slow_kernel = q.device.type == "cpu" and q.dtype != torch.float32
    own = softcap is None and softmax == "softmax" and not slow_kernel
    if own and causal and T_q == T_k and window is None and mask is None and bias is None:
        return fused(q, k, v, dropout_p=dropout, is_causal=True, scale=scale)

    square = causal and 1 < T_q == T_k and mask is None and bias is None
    if slow_kernel and square and softcap is None and softmax == "softmax" and (not dropout or drop.cheap(q, dropout)):
        return Striped.apply(q, k, v, scale, window, dropout)

    seen = mask
    if window is not None or (causal and T_q > 1):
        seen = visible(T_q, T_k, causal, window, q.device)
        seen = seen if mask is None else seen & mask
    if own:
        if bias is not None:
            bias = bias.to(q.dtype).view((1,) * (4 - bias.dim()) + bias.shape)  # of three axes a CPU keeps all scores
            seen = bias if seen is None else bias.masked_fill(~seen, float("-inf"))
        return fused(q, k, v, attn_mask=seen, dropout_p=dropout, scale=scale)

    options = {"dropout": dropout, "softcap": softcap, "softmax": softmax}
    if not square:
        return plain(q, k, v, scale, seen=seen, bias=bias, **options)
    parts = []
    for rows, cols in stripes(T_q, window):
        near = {"seen": seen[rows, cols], "bias": None if bias is None else bias[..., rows, cols]}
        parts.append(plain(q[:, :, rows], k[:, :, cols], v[:, :, cols], scale, **near, **options))
    return torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]


ATTENTIONS = {"causal": attend}
