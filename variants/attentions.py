"""Attentions: ATTENTIONS[name](q, k, v, *, causal, ...) -> (B, H, T_q, D). A new one: a function and a table line."""

import torch
import torch.nn.functional as F
from torch import Tensor

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


def plain(q, k, v, scale, *, seen=None, bias=None, dropout=0.0, softcap=None, softmax="softmax") -> Tensor:
    """Matmul, softmax, matmul. Scale and a bool mask `seen` of two axes cost no pass of their own."""
    B, H, T_q, D = q.shape
    lowest = torch.finfo(q.dtype).min  # not -inf: a query that sees no key (padding) would give NaN
    if seen is not None and seen.dim() == 2 and softcap is None and bias is None:
        low = torch.zeros(seen.shape, dtype=q.dtype, device=q.device).masked_fill(~seen, lowest)
        scores = torch.baddbmm(low, q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2), alpha=scale)
        scores = scores.view(B, H, T_q, -1)
    else:
        scores = (q * scale) @ k.transpose(-2, -1)  # (B, H, T_q, T_k)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        if bias is not None:
            scores = scores + bias.to(scores.dtype)
        if seen is not None:
            scores = scores.masked_fill(~seen, lowest)
    weights = SOFTMAXES[softmax](scores, -1).to(v.dtype)
    return F.dropout(weights, dropout) @ v if dropout else weights @ v


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
    scale: float | None = None,  # 1 / sqrt(D) if None
) -> Tensor:
    """Exact attention over all visible keys, by the fastest kernel that the arguments allow."""
    H, T_q, T_k = q.shape[1], q.shape[2], k.shape[2]
    q, k = q.to(v.dtype), k.to(v.dtype)  # under autocast a norm may have made them float32
    if k.shape[1] != H:
        k, v = (x.repeat_interleave(H // x.shape[1], dim=1) for x in (k, v))
    if window is not None and window >= T_k:
        window = None
    scale = q.shape[-1] ** -0.5 if scale is None else scale

    # measured on a CPU with AVX512-BF16: in 16-bit the fused kernel takes 1.5 to 4 times as long as the plain steps,
    # from T 64 to T 2048; in float32 it is the faster one
    slow_kernel = q.device.type == "cpu" and q.dtype != torch.float32
    fused = softcap is None and softmax == "softmax" and not slow_kernel
    if fused and causal and T_q == T_k and window is None and mask is None and bias is None:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, scale=scale)

    seen = mask
    if window is not None or (causal and T_q > 1):
        seen = visible(T_q, T_k, causal, window, q.device)
        seen = seen if mask is None else seen & mask
    if fused:
        if bias is not None:
            bias = bias.to(q.dtype)
            seen = bias if seen is None else bias.masked_fill(~seen, float("-inf"))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=dropout, scale=scale)

    options = {"dropout": dropout, "softcap": softcap, "softmax": softmax}
    if not (causal and 1 < T_q == T_k and mask is None):
        return plain(q, k, v, scale, seen=seen, bias=bias, **options)
    stripes = []  # of queries, each with the keys it may see: half of the square is never computed
    width = 128 if T_q <= 256 else 256
    for start in range(0, T_q, width):
        rows = slice(start, min(start + width, T_q))
        cols = slice(0 if window is None else max(0, start - window + 1), rows.stop)
        near = {"seen": seen[rows, cols], "bias": None if bias is None else bias[..., rows, cols]}
        stripes.append(plain(q[:, :, rows], k[:, :, cols], v[:, :, cols], scale, **near, **options))
    return torch.cat(stripes, dim=2) if len(stripes) > 1 else stripes[0]


ATTENTIONS = {"causal": attend}
