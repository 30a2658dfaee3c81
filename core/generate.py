"""Sampling from a causal model, token by token, with a cache of keys and values."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from core.exits import NotFinite


class LaidOut(nn.Module):
    """A linear layer whose weight lies as a CPU's 16-bit kernel reads it. F.linear lays it out anew at each call, which
    is half the time of a single token. Nothing else can read that weight."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.bias, self.weight = layer.bias, torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


def lay_out(model: nn.Module) -> None:
    """All linear layers so, where it pays and torch has the kernel: for a model that only generates from here on."""
    if not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Linear and layer.weight.dtype == torch.bfloat16 and layer.weight.device.type == "cpu":
                setattr(parent, name, LaidOut(layer))


def context_start(length: int, block_size: int) -> int:
    """Where the context of a model with learned positions begins when `length` tokens are there.

    It moves in hops of a quarter block: each hop reads the context anew, the tokens between come from the cache.
    """
    if length <= block_size:
        return 0
    hop = max(1, block_size // 4)
    return -(-(length - block_size) // hop) * hop


def pick(logits: Tensor, temperature: float, top_k: int | None, top_p: float | None, generator) -> Tensor:
    """(B, V) logits -> (B, 1) tokens; temperature 0 takes the most likely."""
    if not torch.isfinite(logits).all():
        raise NotFinite("the model's logits are not finite: there is nothing to draw from")
    if temperature < 1e-6:  # logits divided by less would overflow
        return logits.argmax(-1, keepdim=True)
    logits = logits.float() / temperature
    if top_k and top_k < logits.shape[-1]:
        kth = torch.topk(logits, top_k).values[:, [-1]]
        logits = logits.masked_fill(logits < kth, float("-inf"))
    probs = torch.softmax(logits, -1)
    if top_p is not None and top_p < 1:
        ordered, order = probs.sort(-1, descending=True)
        ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered > top_p, 0.0)
        probs = torch.zeros_like(probs).scatter(1, order, ordered)
    return torch.multinomial(probs, 1, generator=generator)


@torch.inference_mode()
def stream(model, idx: Tensor, n: int, *, temperature: float = 0.8, top_k: int | None = None,
           top_p: float | None = None, seed: int = 0, use_cache: bool = True, **which) -> Iterator[Tensor]:  # fmt: skip
    """Yields n times the next token (B, 1) of each row of idx (B, T); of aligned streams, (S, B, T), one each."""
    was_training = model.training
    model.eval()
    generator = torch.Generator(device=idx.device).manual_seed(seed % (1 << 63))
    block, cropped = model.config.block_size, model.config.cropped
    start, cache = 0, None
    try:
        for _ in range(n):
            length = idx.shape[-1]
            if cropped and (now := context_start(length, block)) != start:
                start, cache = now, None
            if not use_cache:
                logits = model(idx[..., start:], **which)
            elif cache is None:
                cache = model.new_cache(idx.shape[-2], block if cropped else length + n)
                logits = model(idx[..., start:], cache=cache, **which)
            else:
                logits = model(idx[..., -1:], cache=cache, **which)
            many = isinstance(logits, list)  # one a stream
            token = [pick(z[:, -1], temperature, top_k, top_p, generator) for z in (logits if many else [logits])]
            token = torch.stack(token) if many else token[0]
            idx = torch.cat((idx, token), dim=-1)
            yield token
    finally:
        model.train(was_training)


def generate(model, idx: Tensor, n: int, **options) -> Tensor:
    """idx (B, T) -> (B, T + n)."""
    return torch.cat([idx, *stream(model, idx, n, **options)], dim=-1)
