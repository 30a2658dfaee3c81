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


def fused_is_faster(q: Tensor, T_k: int) -> bool:
    """On CPUs the fused kernel loses to three plain steps in 16-bit until the scores fall out of the cache."""
    return q.device.type != "cpu" or q.dtype == torch.float32 or T_k >= 1024


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
    if k.shape[1] != H:
        k, v = (x.repeat_interleave(H // x.shape[1], dim=1) for x in (k, v))

    everything = (not causal or T_q == 1) and (window is None or window >= T_k)
    triangle = causal and T_q == T_k and (window is None or window >= T_k) and mask is None and bias is None
    fused = softcap is None and softmax == "softmax" and fused_is_faster(q, T_k)
    if fused and triangle:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, scale=scale)

    seen = None if everything else visible(T_q, T_k, causal, window, q.device)
    if mask is not None:
        seen = mask if seen is None else seen & mask
    if fused:
        if bias is not None:
            bias = bias.to(q.dtype)
            seen = bias if seen is None else bias.masked_fill(~seen, float("-inf"))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=dropout, scale=scale)

    # scaling q, not the scores: T_q * D multiplications instead of T_q * T_k
    scores = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.transpose(-2, -1)  # (B, H, T_q, T_k)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    if seen is not None:  # not -inf: a query that sees no key (padding) would give NaN
        scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
    weights = SOFTMAXES[softmax](scores, -1).to(v.dtype)
    return F.dropout(weights, dropout) @ v


ATTENTIONS = {"causal": attend}
