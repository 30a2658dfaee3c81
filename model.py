"""GPT-2 and RoBERTa in plain PyTorch: configs, blocks, heads, initialisation.

    model = GPT(GPTConfig(n_layer=2, n_head=4, n_embd=64, vocab_size=65, block_size=32))
    loss_sum = model(x, y)  # x, y (B, T); a sum over valid targets, for the caller to divide by the whole batch's count
    logits = model(x)  # (B, T, vocab_size)

Norm, activation, MLP, position and attention are looked up in variants/ by the names in a config; no forward pass names
one. Weight names are nanoGPT's.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from variants.activations import ACTIVATIONS
from variants.attentions import ATTENTIONS
from variants.dropout import Dropout, dropout
from variants.long_attentions import LONG, check
from variants.losses import IGNORE, head_loss, loss_sum
from variants.mlps import MLPS
from variants.norms import NORMS
from variants.packed import BIASES, Grouped, Packing, compiles_shapes, exact, fill_up, in_one, round_up, send
from variants.positions import POSITIONS, rotary_table, rotate


@dataclass
class GPTConfig:
    block_size: int = 256  # tokens of context
    vocab_size: int = 50304
    vocab_sizes: list[int] | None = None  # several vocabularies (MultiGPT)
    n_layer: int = 6
    n_head: int = 6
    n_kv_group: int | None = None  # key and value heads; None: as many as n_head
    n_embd: int = 384
    dropout: float = 0.0
    bias: bool = False
    mlp_expansion_factor: float = 4
    mlp_size: int | None = None  # hidden width; None: mlp_expansion_factor * n_embd
    wte_weight_tying: bool = True
    window_size: int | None = None  # a token sees itself and the window_size - 1 before it
    position: str = "learned"  # kinds in variants/positions.py, joined by +
    rope_base: float = 10000.0  # rotary and sinusoidal positions turn by base ** -(0 .. 1)
    use_qk_norm: bool = False
    norm_eps: float = 1e-5
    norm_variant_attn: str = "layernorm"  # inside blocks
    norm_variant_output: str = "layernorm"  # after the last
    activation_variant: str = "gelu"
    mlp_variant: str = "mlp"
    softmax_variant_attn: str = "softmax"
    attention_variant: str = "causal"
    use_parallel_mlp: bool = False
    use_pre_ln: bool = True
    use_peri_ln: bool = False
    use_post_ln: bool = False
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    use_gradient_checkpointing: bool = False

    def __post_init__(self):
        for name in ("block_size", "vocab_size", "n_layer", "n_head", "n_embd"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_head must divide n_embd, got n_head {self.n_head} and n_embd {self.n_embd}")
        if self.n_kv_group is not None and (self.n_kv_group < 1 or self.n_head % self.n_kv_group):
            raise ValueError(f"n_kv_group must divide n_head {self.n_head}, got {self.n_kv_group}")
        if self.window_size is not None and self.window_size < 1:
            raise ValueError(f"window_size must be > 0, got {self.window_size}")
        if self.mlp_size is not None and self.mlp_size < 1 or not int(self.mlp_expansion_factor * self.n_embd):
            raise ValueError(f"mlp_size must be > 0: it is {self.mlp_size}, mlp_expansion_factor x n_embd is"
                             f" {self.mlp_expansion_factor} x {self.n_embd}")  # fmt: skip
        tables = [("norm_variant_attn", NORMS), ("norm_variant_output", NORMS), ("mlp_variant", MLPS)]
        for name, table in [*tables, ("attention_variant", ATTENTIONS)]:
            if getattr(self, name) not in table:
                raise ValueError(f"{name} must be one of {sorted(table)}, got {getattr(self, name)!r}")
        for kind in self.position.split("+"):
            if kind not in POSITIONS:
                raise ValueError(f"position must be among {sorted(POSITIONS)}, joined by +, got {self.position!r}")
        if "rotary" in self.position and (self.n_embd // self.n_head) % 2:
            raise ValueError(f"rotary positions need an even n_embd / n_head, got {self.n_embd} / {self.n_head}")

    @property
    def cropped(self) -> bool:
        """Whether positions end at block_size: a learned table does, rotary and the like do not."""
        return "learned" in self.position.split("+")


# -----------------------------------------------------------------------------
# blocks


class Cache:
    """Keys and values of the tokens so far, for generation; one a layer."""

    def __init__(self, n_layer: int, B: int, n_head: int, length: int, head_size: int, like: Tensor):
        shape, small = (B, n_head, length, head_size), like.dtype in (torch.bfloat16, torch.float16)
        # a CPU attends with a single query 2 to 4 times as fast in float32
        dtype = torch.float32 if small and like.device.type == "cpu" else like.dtype
        self.layers = [tuple(like.new_empty(shape, dtype=dtype) for _ in "kv") for _ in range(n_layer)]
        self.length = 0

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Appends (B, nh, T, hs) and returns all there is; the model moves .length once a forward."""
        end = self.length + k.shape[2]
        keys, values = self.layers[layer]
        keys[:, :, self.length : end], values[:, :, self.length : end] = k, v
        return keys[:, :, :end], values[:, :, :end]


class Attention(nn.Module):
    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.n_head, self.n_kv = config.n_head, config.n_kv_group or config.n_head
        self.head_size = config.n_embd // config.n_head
        self.c_attn = nn.Linear(config.n_embd, (self.n_head + 2 * self.n_kv) * self.head_size, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        norm = NORMS["rmsnorm"] if config.use_qk_norm else NORMS["none"]  # 2302.05442
        self.q_norm, self.k_norm = (norm(self.head_size, eps=config.norm_eps) for _ in range(2))
        self.attend = ATTENTIONS[config.attention_variant]
        self.options = {"softcap": config.attn_logit_softcapping, "softmax": config.softmax_variant_attn}
        self.dropout = config.dropout

    def forward(self, x: Tensor, rotary=None, bias=None, window=None, cache: Cache | None = None,
                select: tuple | None = None) -> Tensor:  # fmt: skip
        queries, keys = self.n_head * self.head_size, self.n_kv * self.head_size
        if select is None:
            q, k, v = self.c_attn(x).split([queries, keys, keys], dim=2)
        else:
            q, kv = apart(self.c_attn, queries, pick(x, select), x)
            k, v = kv.split(keys, dim=2)
        q, k, v = (y.unflatten(2, (-1, self.head_size)) for y in (q, k, v))  # (B, T, C) -> (B, T, nh, hs)
        q, k, v = self.q_norm(q).transpose(1, 2), self.k_norm(k).transpose(1, 2), v.transpose(1, 2)
        if rotary is not None:
            own = rotary if select is None else [r[select[1], None] for r in rotary]
            q, k = rotate(q, *own), rotate(k, *rotary)
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)
        how = {"causal": True, "bias": bias, "window": window}
        if select is not None:  # one query a row, which sees what stands before it
            far = select[1][:, None] + (k.shape[2] - x.shape[1]) - torch.arange(k.shape[2], device=x.device)
            how = {"causal": False, "mask": ((far >= 0) & (far < window))[:, None, None]}  # (B, T_k) -> (B, 1, 1, T_k)
            how["bias"] = None if bias is None else bias[:, select[1]].transpose(0, 1).unsqueeze(2)
        p = self.dropout if self.training else 0.0
        y = self.attend(q, k, v, dropout=p, **how, **self.options)
        y = self.c_proj(y.transpose(1, 2).flatten(2).to(q.dtype))
        return dropout(y, self.dropout, self.training)


def apart(layer: nn.Linear, first: int, few: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The first outputs of a layer for few rows, and the others for all of x."""
    if type(layer) is not nn.Linear:  # it may do more than its weight says: an adapter, as LoRA (2106.09685)
        return layer(few)[..., :first], layer(x)[..., first:]
    sizes = [first, layer.out_features - first]
    (w, u), (b, c) = layer.weight.split(sizes), (None, None) if layer.bias is None else layer.bias.split(sizes)
    return F.linear(few, w, b), F.linear(x, u, c)


def pick(x: Tensor, select: tuple | None) -> Tensor:
    """(B, T, ...), or with select (rows, places) only these of it, (B, 1, ...)."""
    return x if select is None else x[select].unsqueeze(1)


class Block(nn.Module):
    """Attention, then the MLP, each added to the stream; norms before, on what is added (peri), or after the sum."""

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()

        def norm(wanted: bool) -> nn.Module:
            kind = NORMS[config.norm_variant_attn if wanted else "none"]
            return kind(config.n_embd, bias=config.bias, eps=config.norm_eps)

        self.ln_1, self.ln_2 = norm(config.use_pre_ln), norm(config.use_pre_ln)
        self.ln_peri_1, self.ln_peri_2 = norm(config.use_peri_ln), norm(config.use_peri_ln)
        self.ln_post_1, self.ln_post_2 = norm(config.use_post_ln), norm(config.use_post_ln)
        self.attn = Attention(config, layer)
        hidden = config.mlp_size or int(config.mlp_expansion_factor * config.n_embd)
        make = MLPS[config.mlp_variant]
        self.mlp = make(config.n_embd, hidden, config.activation_variant, config.bias, config.dropout)

    def forward(self, x: Tensor, select: tuple | None = None, **place) -> Tensor:
        y = self.attn(self.ln_1(x), select=select, **place)
        x = self.ln_post_1(pick(x, select) + self.ln_peri_1(y))
        return self.ln_post_2(x + self.ln_peri_2(self.mlp(self.ln_2(x))))


class ParallelBlock(Block):
    """Attention and MLP read the same input, as in GPT-J."""

    def forward(self, x: Tensor, select: tuple | None = None, **place) -> Tensor:
        y = self.ln_1(x)
        z = self.ln_peri_1(self.attn(y, select=select, **place))
        x = pick(x, select) + z + self.ln_peri_2(self.mlp(self.ln_2(pick(y, select))))
        return self.ln_post_2(self.ln_post_1(x))


def init_weights(model: nn.Module, n_layer: int | None = None) -> None:
    """BERT's: normal(0, 0.02), biases 0. With n_layer GPT-2's: residual projections smaller by sqrt(2 * n_layer)."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            residual = n_layer is not None and name.endswith("c_proj")
            nn.init.normal_(module.weight, std=0.02 / math.sqrt(2 * n_layer) if residual else 0.02)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)


# -----------------------------------------------------------------------------
# GPT


class GPT(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        block = ParallelBlock if config.use_parallel_mlp else Block
        self.transformer = nn.ModuleDict({
            "wte": nn.Embedding(config.vocab_size, config.n_embd),
            "drop": Dropout(config.dropout),
            "h": nn.ModuleList([block(config, i) for i in range(config.n_layer)]),
            "ln_f": NORMS[config.norm_variant_output](config.n_embd, bias=config.bias, eps=config.norm_eps),
        })  # fmt: skip
        for kind in config.position.split("+"):
            # the module that is learnt is nanoGPT's wpe; the others hold no weights
            name = "wpe" if kind == "learned" else f"pos_{kind}"
            make = POSITIONS[kind]
            self.transformer[name] = make(config.block_size, config.n_embd, config.n_head, config.rope_base)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        init_weights(self, config.n_layer)
        if config.wte_weight_tying:
            self.lm_head.weight = self.transformer.wte.weight

    @property
    def positions(self) -> list[nn.Module]:
        """Asked anew each time: a longer wpe may have been put in the place of the first."""
        return [m for name, m in self.transformer.items() if name == "wpe" or name.startswith("pos_")]

    def embed(self, idx: Tensor) -> Tensor:
        return self.transformer.wte(idx)

    def hidden(self, idx: Tensor, cache: Cache | None = None, select: tuple | None = None, **which) -> Tensor:
        """(B, T) ids -> (B, T, C), normalised; with select (rows, places) the last layer of these only, (B, 1, C)."""
        T = idx.shape[-1]
        past = cache.length if cache else 0
        c = self.config
        if c.cropped and past + T > c.block_size:
            raise ValueError(f"{past + T} tokens do not fit block_size {c.block_size} with learned positions")
        at = torch.arange(past, past + T, device=idx.device)
        x, positions = self.embed(idx, **which), self.positions
        for p in positions:
            x = p.add(x, at)
        x = self.transformer.drop(x)
        rotary = next((r for p in positions if (r := p.rotary(at)) is not None), None)
        bias = next((b for p in positions if (b := p.bias(T, past + T, idx.device)) is not None), None)
        # positions without a table have no end, so the context slides: a token sees block_size tokens at most
        window = min(c.window_size or c.block_size, c.block_size)
        place = {"rotary": rotary, "bias": bias, "window": window}
        for i, layer in enumerate(self.transformer.h):
            if i == c.n_layer - 1:
                place["select"] = select
            if c.use_gradient_checkpointing and self.training:
                x = checkpoint(layer, x, use_reentrant=False, **place)
            else:
                x = layer(x, **place, cache=cache)
        if cache:
            cache.length += T
        return self.transformer.ln_f(x)

    def forward(self, idx: Tensor, targets: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """With targets (-100 is ignored) the sum of their cross-entropy, float32; without, the logits (B, T, V)."""
        return self.output(self.hidden(idx, cache), self.lm_head, targets, cache)

    def output(self, x: Tensor, head: nn.Linear, targets: Tensor | None, cache: Cache | None) -> Tensor:
        cap = self.config.final_logit_softcapping
        if targets is not None:
            return head_loss(x, head, targets, cap)
        logits = head(x if cache is None else x[:, -1:])  # generation looks at the last only
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def new_cache(self, B: int, length: int) -> Cache:
        attn = self.transformer.h[0].attn
        return Cache(self.config.n_layer, B, attn.n_kv, length, attn.head_size, next(self.parameters()))

    def flops_per_token(self, T: int) -> float:
        """Forward and backward, as PaLM's appendix counts them: 6 a weight, 12 * layers * width * T for attention."""
        weights = sum(p.numel() for n, p in self.named_parameters() if "wpe" not in n and "wte" not in n)
        weights += sum(p.numel() for p in self.lm_head.parameters()) if self.config.wte_weight_tying else 0
        return 6 * weights + 12 * self.config.n_layer * self.config.n_embd * T


class MultiGPT(GPT):
    """Several vocabularies, each with an embedding and a head of its own, around one transformer.

    losses = model(x, y)  # aligned streams, x and y (S, B, T): embeddings are added up, -> (S,) sums, one a head
    loss_sum = model(x, y, stream=1)  # one of them alone, x and y (B, T)
    """

    def __init__(self, config: GPTConfig):
        super().__init__(config)
        sizes, C = config.vocab_sizes, config.n_embd
        self.transformer["wte"] = nn.ModuleList([nn.Embedding(V, C) for V in sizes])
        self.lm_head = nn.ModuleList([nn.Linear(C, V, bias=False) for V in sizes])
        for tables in (self.transformer.wte, self.lm_head):
            init_weights(tables)
        if config.wte_weight_tying:
            for table, head in zip(self.transformer.wte, self.lm_head, strict=True):
                head.weight = table.weight

    def embed(self, idx: Tensor, stream: int | None = None) -> Tensor:
        if stream is not None:
            return self.transformer.wte[stream](idx)
        return sum(table(x) for table, x in zip(self.transformer.wte, idx, strict=True))  # (S, B, T) -> (B, T, C)

    def forward(self, idx: Tensor, targets: Tensor | None = None, cache: Cache | None = None,
                stream: int | None = None):  # fmt: skip
        """As GPT's, one result a stream: (S,) loss sums, or a list of logits."""
        x = self.hidden(idx, cache, stream=stream)
        if stream is not None:
            return self.output(x, self.lm_head[stream], targets, cache)
        if targets is None:
            return [self.output(x, head, None, cache) for head in self.lm_head]
        return torch.stack([self.output(x, head, y, cache) for head, y in zip(self.lm_head, targets, strict=True)])


def build_gpt(config: GPTConfig) -> GPT:
    return MultiGPT(config) if config.vocab_sizes else GPT(config)


# -----------------------------------------------------------------------------
# RoBERTa


def starts(lengths) -> Tensor:
    """Where each of the packed sequences begins: the rows of <s>, on the CPU as the lengths."""
    lengths = torch.as_tensor(lengths).cpu()
    return lengths.cumsum(0) - lengths


EXACT = {"exact": exact, "plain": partial(exact, native=False)}
POSITION_KINDS = ("absolute", "relative_key", "relative_key_query", "rope", "alibi", "sinusoidal")


@dataclass
class RobertaConfig:
    vocab_size: int = 16
    block_size: int = 512  # tokens of the longest sequence, <s> and </s> counted
    n_layer: int = 8
    n_head: int = 8
    n_embd: int = 512
    mlp_size: int = 3072
    activation: str = "gelu"
    position: str = "absolute"  # one of POSITION_KINDS
    rope_base: float = 10000.0
    rope_scale: float = 1.0  # stretches the positions
    hidden_dropout: float = 0.1  # after the embedding, attention and the MLP
    embedding_dropout: float | None = None  # None: hidden_dropout
    attn_out_dropout: float | None = None  # None: hidden_dropout
    attn_dropout: float = 0.1  # on attention weights
    attn_size: int | None = None  # width of q, k and v, all heads together; None: n_embd
    attn_bias: bool = True  # of the projections around attention
    attention: str = "exact"  # plain: without fused kernels; lsh, favor: memory grows linearly with length
    attention_args: dict = field(default_factory=dict)  # num_hashes, nb_features ...: see variants/long_attentions.py
    norm_eps: float = 1e-12
    pad_id: int = 1  # no sequence here holds it; transformers counts positions from it
    tie: bool = True  # the decoder is the embedding

    def __post_init__(self):
        for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd", "mlp_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")
        for name in ("rope_base", "rope_scale", "norm_eps", *["attn_size"] * (self.attn_size is not None)):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")
        for name in ("hidden_dropout", "embedding_dropout", "attn_out_dropout", "attn_dropout"):
            if not 0 <= (getattr(self, name) or 0.0) < 1:
                raise ValueError(f"{name} must be 0 or more and below 1, got {getattr(self, name)}")
        size = self.attn_size or self.n_embd
        name = "attn_size" if self.attn_size else "n_embd"
        if size % self.n_head:
            raise ValueError(f"n_head must divide {name}, got n_head {self.n_head} and {name} {size}")
        if self.position not in POSITION_KINDS:
            raise ValueError(f"position must be one of {', '.join(POSITION_KINDS)}, got {self.position!r}")
        if self.position == "rope" and (size // self.n_head) % 2:
            raise ValueError(f"{name} / n_head must be even, as rope turns pairs, got {size} / {self.n_head}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(sorted(ACTIVATIONS))}, got {self.activation!r}")
        if self.attention not in (*EXACT, *LONG):
            raise ValueError(f"attention must be one of {', '.join((*EXACT, *LONG))}, got {self.attention!r}")
        if self.attention in LONG and self.position in BIASES:
            raise ValueError(f"attention {self.attention} has no scores to which position {self.position} could add")
        if self.attention == "favor" and self.attn_dropout:
            raise ValueError(f"attn_dropout must be 0 with attention favor, which has no weights to drop, got"
                             f" {self.attn_dropout}")  # fmt: skip
        check(self.attention, self.attention_args)


class PackedAttention(nn.Module):
    """Attention to both sides within each of the packed sequences."""

    def __init__(self, config: RobertaConfig):
        super().__init__()
        self.size, self.n_head, self.dropout = config.attn_size or config.n_embd, config.n_head, config.attn_dropout
        head_size, make = self.size // config.n_head, LONG.get(config.attention)
        self.attend = make(head_size, config.block_size, **config.attention_args) if make else EXACT[config.attention]
        self.native = None if make else config.attention == "exact"
        self.c_attn = nn.Linear(config.n_embd, (make.parts if make else 3) * self.size, bias=config.attn_bias)
        self.c_proj = nn.Linear(self.size, config.n_embd, bias=config.attn_bias)
        self.bias = BIASES.get(config.position)
        learnt = config.position.startswith("relative")  # an embedding of each distance
        self.rel = nn.Embedding(2 * config.block_size - 1, self.size // self.n_head) if learnt else None
        self.rope = (config.rope_base, config.rope_scale) if config.position == "rope" else None

    def heads(self, x: Tensor) -> tuple[Tensor, ...]:
        """(b, T, n * A) -> n of (b, nh, T, hs)."""
        return x.unflatten(2, (-1, self.n_head, self.size // self.n_head)).permute(2, 0, 3, 1, 4).unbind()

    def turn(self, x: Tensor, positions: Tensor) -> Tensor:
        """Rotary positions for queries and keys: all of x (N, n * A) but values, its last part where n > 1."""
        hs = self.size // self.n_head
        turned, rest = x.tensor_split([max(self.size, x.shape[1] - self.size)], dim=1)
        turned = rotate(turned.unflatten(1, (-1, hs)).transpose(0, 1)[None], *rotary_table(positions, hs, *self.rope))
        return torch.cat((turned[0].transpose(0, 1).flatten(1), rest), 1)

    def forward(self, x: Tensor, batch: Packing, narrow: bool = False) -> Tensor:
        """(N, C) -> (N, C); narrow: only the rows that batch.select names, (M, C)."""
        few = narrow and self.bias is None and not isinstance(self.attend, nn.Module)  # other rows need no query then
        if few:
            q, x = apart(self.c_attn, self.size, x.index_select(0, batch.select), x)
        else:
            q, x = None, self.c_attn(x)
        if self.rope:
            q = q if q is None else self.turn(q, batch.positions[batch.select])
            x = self.turn(x, batch.positions)
        p = self.dropout if self.training else 0.0
        if self.native is not None and self.bias is None and in_one(x, batch, few, self.n_head, p, self.native):
            y = Grouped.apply(x, q, batch, self.n_head, p)
        else:
            keys = [self.heads(part) for part in batch.keys.split(x)]  # of two parts the first is query and key
            places = batch.queries if few else batch.keys
            queries = [self.heads(part) for part in places.split(q)] if few else keys
            more = p, self.bias, None if self.rel is None else self.rel.weight
            each = zip(queries, keys, batch.keys.real, strict=True)
            out = [self.attend(q[0], *kv[-2:], real, *more) for q, kv, real in each]
            y = places.join([part.transpose(1, 2).flatten(2) for part in out])
        return self.c_proj(y.index_select(0, batch.select) if narrow and not few else y)


class EncoderBlock(nn.Module):
    """Attention, then the MLP, each added to the stream and normalised after it (post-norm)."""

    def __init__(self, config: RobertaConfig):
        super().__init__()
        c = config
        self.attn = PackedAttention(c)
        self.ln_1 = NORMS["layernorm"](c.n_embd, bias=True, eps=c.norm_eps)
        self.mlp = MLPS["mlp"](c.n_embd, c.mlp_size, c.activation, bias=True)
        self.ln_2 = NORMS["layernorm"](c.n_embd, bias=True, eps=c.norm_eps)
        self.p_attn = c.hidden_dropout if c.attn_out_dropout is None else c.attn_out_dropout
        self.p_mlp = c.hidden_dropout

    def forward(self, x: Tensor, batch: Packing, narrow: bool = False) -> Tensor:
        y = self.attn(x, batch, narrow)
        return self.rest(x.index_select(0, batch.select) if narrow else x, y)

    def rest(self, x: Tensor, y: Tensor) -> Tensor:
        """What each token does for itself; one kernel or two when compiled."""
        x = self.ln_1(x + dropout(y, self.p_attn, self.training))
        return self.ln_2(x + dropout(self.mlp(x), self.p_mlp, self.training))


class Roberta(nn.Module):
    """The encoder. It sees no padding: tokens (N,) are B sequences one after the other, lengths their B lengths.

    hidden = model.encode(tokens, lengths)  # (N, C)
    first = model.encode(tokens, lengths, starts(lengths))  # (B, C), the last layer computed for these only
    """

    def __init__(self, config: RobertaConfig):
        super().__init__()
        self.config = c = config
        self.transformer = nn.ModuleDict({
            "wte": nn.Embedding(c.vocab_size, c.n_embd),
            "ln_emb": NORMS["layernorm"](c.n_embd, bias=True, eps=c.norm_eps),
            "h": nn.ModuleList([EncoderBlock(c) for _ in range(c.n_layer)]),
        })  # fmt: skip
        if kind := {"absolute": "learned", "sinusoidal": "sinusoidal"}.get(c.position):
            self.transformer["wpe"] = POSITIONS[kind](c.block_size, c.n_embd, c.n_head)
        self.p_embedding = c.hidden_dropout if c.embedding_dropout is None else c.embedding_dropout
        init_weights(self)

    def encode(self, tokens: Tensor, lengths, select=None) -> Tensor:
        """(N,) ids of B sequences, B lengths -> (N, C), or its sorted rows `select`. The last two lie on the CPU."""
        return self.run(tokens, lengths, select)[: len(tokens) if select is None else len(select)]

    def run(self, tokens: Tensor, lengths, select=None) -> Tensor:
        """As encode, but with more rows at the end where round shapes are faster."""
        c, t = self.config, self.transformer
        lengths, select = (x.cpu() if torch.is_tensor(x) else x for x in (lengths, select))
        if compiles_shapes(tokens.device):
            lengths, select = fill_up(lengths, select, c.block_size)
            tokens = F.pad(tokens, (0, int(lengths.sum()) - len(tokens)), value=c.pad_id)
        batch = Packing(lengths, c.n_head, tokens.device, select)
        assert len(tokens) == len(batch.positions), (len(tokens), len(batch.positions))
        if int(batch.lengths.max()) > c.block_size:
            raise ValueError(f"a sequence of {batch.lengths.max()} tokens is too long for block_size {c.block_size}")
        x = t.wte(tokens)
        if "wpe" in t:
            x = t.wpe.add(x, batch.positions)
        x = dropout(t.ln_emb(x), self.p_embedding, self.training)
        for i, block in enumerate(t.h):
            x = block(x, batch, narrow=select is not None and i == c.n_layer - 1)
        return x

    def redraw(self, step: int, seed: int) -> None:
        """At the steps that attention_args names, new random features (favor)."""
        for i, block in enumerate(self.transformer.h):
            if hasattr(block.attn.attend, "redraw"):
                block.attn.attend.redraw(step, seed, i)

    def compile_blocks(self) -> None:
        """Compiles what each token does for itself; attention's shapes change from batch to batch."""
        for block in self.transformer.h:
            block.rest = torch.compile(block.rest, dynamic=True)


class MaskedHead(nn.Module):
    def __init__(self, config: RobertaConfig):
        super().__init__()
        self.dense = nn.Linear(config.n_embd, config.n_embd)
        self.ln = NORMS["layernorm"](config.n_embd, bias=True, eps=config.norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.decoder = None if config.tie else nn.Linear(config.n_embd, config.vocab_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.ln(F.gelu(self.dense(x)))  # gelu whatever the config's activation, as in transformers


class RobertaMLM(Roberta):
    """Guesses hidden tokens: the vocabulary is computed at the places asked for, no others.

    loss_sum = model(tokens, lengths, where, targets)  # where (M,) sorted rows, targets (M,): a sum, float32
    logits = model(tokens, lengths, where)  # (M, vocab_size)
    """

    def __init__(self, config: RobertaConfig):
        super().__init__(config)
        self.lm_head = MaskedHead(config)
        init_weights(self.lm_head)

    def forward(self, tokens: Tensor, lengths, where, targets: Tensor | None = None) -> Tensor:
        x = self.lm_head(self.run(tokens, lengths, where))
        w = self.transformer.wte.weight if self.config.tie else self.lm_head.decoder.weight
        if targets is not None:
            return loss_sum(x, w, self.lm_head.bias, F.pad(targets, (0, len(x) - len(targets)), value=IGNORE))
        return F.linear(x, w, self.lm_head.bias)[: len(where)]

    def flops_per_token(self, T: int) -> float:
        """Forward and backward; the vocabulary at 15% of the tokens."""
        c = self.config
        weights = sum(p.numel() for n, p in self.named_parameters() if ".h." in n and "rel" not in n)
        return 6 * (weights + 0.15 * c.vocab_size * c.n_embd) + 12 * c.n_layer * (c.attn_size or c.n_embd) * T


class ClassificationHead(nn.Module):
    """bert: dense, tanh, dropout, out_proj; roberta: dropout before it as well; None: dropout, out_proj."""

    def __init__(self, n_embd: int, num_labels: int, pooler: str | None, p: float):
        super().__init__()
        self.dense = nn.Linear(n_embd, n_embd) if pooler else None
        self.out_proj = nn.Linear(n_embd, num_labels)
        self.first, self.p = 0.0 if pooler == "bert" else p, p

    def forward(self, x: Tensor) -> Tensor:
        x = dropout(x, self.first, self.training)
        if self.dense is not None:
            x = dropout(torch.tanh(self.dense(x)), self.p, self.training)
        return self.out_proj(x)


class Classifier(Roberta):
    """One of some labels for each text, from its first token (cls), or the mean, max or min over its tokens.

    logits = model(tokens, lengths)  # (B, num_labels), float32
    """

    def __init__(self, config: RobertaConfig, num_labels: int, pooling: str = "cls", pooler: str | None = "bert",
                 p: float = 0.1):  # fmt: skip
        super().__init__(config)
        self.pooling = pooling
        self.classifier = ClassificationHead(config.n_embd, num_labels, pooler, p)
        init_weights(self.classifier)

    def forward(self, tokens: Tensor, lengths) -> Tensor:
        if self.pooling == "cls":
            x = self.encode(tokens, lengths, starts(lengths))
        else:
            x, lengths = self.encode(tokens, lengths), send(torch.as_tensor(lengths), tokens.device)
            x = torch.segment_reduce(x.float(), self.pooling, lengths=lengths).to(x.dtype)  # (N, C) -> (B, C)
        return self.classifier(x).float()


# -----------------------------------------------------------------------------
# scores


class ScoreModel(nn.Module):
    """One number a text, on a GPT or a Roberta: read at the last token, or at <s>, where the lengths say it is.

    scores = model(tokens, lengths)  # (N,) ids of B texts one after the other, their B lengths -> (B,) float32

    Weights keep the backbone's names. A score depends neither on a text's neighbours nor on padding.
    """

    def __init__(self, backbone: nn.Module):
        super().__init__()
        c = backbone.config
        self.config, self.causal = c, isinstance(backbone, GPT)
        self.transformer = backbone.transformer
        object.__setattr__(self, "backbone", backbone)  # not registered: its weights are in transformer
        if self.causal:
            backbone.lm_head = None  # no vocabulary here
            self.score = nn.Linear(c.n_embd, 1, bias=False)
        else:
            dense, out_proj = nn.Linear(c.n_embd, c.n_embd), nn.Linear(c.n_embd, 1)
            self.score = nn.Sequential(OrderedDict(dense=dense, tanh=nn.Tanh(), out_proj=out_proj))
        init_weights(self.score)
        nn.init.zeros_(self.score.weight if self.causal else self.score.out_proj.weight)  # the first score is the mean

    def train(self, mode: bool = True) -> "ScoreModel":
        self.backbone.training = mode
        return super().train(mode)

    def redraw(self, step: int, seed: int) -> None:
        if not self.causal:
            self.backbone.redraw(step, seed)

    def forward(self, tokens: Tensor, lengths, width: int | None = None) -> Tensor:
        """width pads each text to a fixed number of tokens, for static shapes."""
        lengths = torch.as_tensor(lengths)
        assert tokens.dim() == lengths.dim() == 1 and len(tokens) == int(lengths.sum()), (tokens.shape, lengths)
        if self.causal:
            x = self.read(tokens, lengths, width)
        else:
            x = self.backbone.encode(tokens, lengths, starts(lengths))
        return self.head(x)

    def head(self, x: Tensor) -> Tensor:
        """(B, C) -> (B,) in float32 also under autocast: 16 bits would round scores to three digits."""
        with torch.autocast(x.device.type, enabled=False):
            scores = self.score(x.to(next(self.score.parameters()).dtype)).float()
        assert scores.shape == (len(x), 1), (scores.shape, x.shape)
        return scores.squeeze(1)

    def read(self, tokens: Tensor, lengths: Tensor, width: int | None = None, cache: Cache | None = None) -> Tensor:
        """The hidden state at each text's last token, (B, C); padding stands behind it, where no token looks."""
        B, T = len(lengths), width or self.width(lengths, tokens.device)
        lengths = lengths.cpu()
        shift = torch.arange(B) * T - lengths.cumsum(0) + lengths
        at = torch.arange(len(tokens)) + torch.repeat_interleave(shift, lengths)
        idx = tokens.new_zeros(B * T)
        idx[send(at, tokens.device)] = tokens
        last = (torch.arange(B, device=tokens.device), send(lengths - 1, tokens.device))
        return self.backbone.hidden(idx.view(B, T), cache, select=last).squeeze(1)

    def width(self, lengths: Tensor, device: torch.device, before: int = 0) -> int:
        """Of a batch, with `before` tokens in a cache: its longest, or a little more where round shapes are faster."""
        T = int(lengths.max())
        return max(T, min(round_up(T, 16), self.config.block_size - before)) if compiles_shapes(device) else T

    def answers(self, shared: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
        """The scores of texts that all begin with `shared` (S,); tokens and lengths are of what follows it."""
        B, S = len(lengths), len(shared)
        T = self.width(lengths, tokens.device, S)
        one, cache = self.backbone.new_cache(1, S), self.backbone.new_cache(B, S + T)
        self.backbone.hidden(shared[None], one)
        for (k, v), (keys, values) in zip(one.layers, cache.layers, strict=True):
            keys[:, :, :S], values[:, :, :S] = k, v  # (1, nh, S, hs) to each of B
        cache.length = S
        return self.head(self.read(tokens, lengths, T, cache))
