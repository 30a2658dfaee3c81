"""Attention over packed sequences: tokens one after the other, (N, C), without padding but inside attention itself.

    batch = Packing([5, 3, 120], n_head=4, device=x.device)
    groups = batch.keys.split(qkv)      # (N, 3 * A) -> some (b, T, 3 * A)
    y = batch.keys.join(outputs)        # (b, T, A) each -> (N, A)

Sequences of similar length form groups, each padded to its longest. What stands beside a sequence, and how it
is grouped, changes nothing but float rounding.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from variants import once
from variants.attentions import fused
from variants.dropout import cheap, dropout, factor, keep, mask
from variants.positions import alibi_slopes

# scores (batch * heads * T * T) above which attention is computed in stripes, and again in the backward pass
SQUARE = 1 << 23
# scores that one more group must save: a group costs some 0.2 ms of small calls on a CPU, a score 2.5 ns
WASTE = {"cpu": 1 << 17}
WASTE_GPU = 1 << 23


def send(x: Tensor, device: torch.device) -> Tensor:
    """To the device; to a GPU from pinned memory, so that no step waits for the copy."""
    pinned = device.type == "cuda" and x.device.type == "cpu"  # what is on a GPU already cannot be pinned
    return x.pin_memory().to(device, non_blocking=True) if pinned else x.to(device)


# -----------------------------------------------------------------------------
# round shapes: on CPUs oneDNN compiles a kernel for each new shape of a 16-bit product, 0.3 to 1 ms and 1 MB each. With
# lengths as they come, every batch would compile some 40, a third of its time


def compiles_shapes(device: torch.device) -> bool:
    return device.type == "cpu" and torch.is_autocast_enabled("cpu")


def round_up(n: int, steps: int, most: int = 1 << 30) -> int:
    """n or a little more: `steps` numbers from each power of two to the next, at most `most` apart."""
    apart = min(most, max(1, (1 << int(n).bit_length() - 1) // steps)) if n else 1
    return -(-n // apart) * apart


def fill_up(lengths, select, block_size: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Adds sequences that nobody reads, so that the sum of lengths is round, and rows of them to `select`."""
    lengths, more = np.asarray(lengths, dtype=np.int64), 0
    N = int(lengths.sum())
    if select is not None:
        select = np.asarray(select, dtype=np.int64)
        more = round_up(len(select), 8) - len(select)
    extra = round_up(N + more, 8) - N
    width = min(block_size, max(16, int(np.median(lengths))))  # like the others, to join their groups
    added = [width] * (extra // width) + [extra % width] * (extra % width > 0)
    select = None if select is None else np.append(select, N + np.arange(more))
    return np.append(lengths, added).astype(np.int64), select


# -----------------------------------------------------------------------------
# packed to padded and back: every real row has one place, so the way back is a gather as well (index_add is slow)


class ToPadded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, rows: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        return x.index_select(0, rows)

    @staticmethod
    def backward(ctx, g: Tensor):
        (places,) = ctx.saved_tensors
        return g.index_select(0, places), None, None  # padding is masked: its gradient is 0


class ToPacked(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.rows = x.shape[0]
        return x.index_select(0, places)

    @staticmethod
    def backward(ctx, g: Tensor):
        (places,) = ctx.saved_tensors
        return g.new_zeros(ctx.rows, g.shape[1]).index_copy_(0, places, g), None


class Padded:
    """Which packed row stands at each place of the padded groups, and at which place each row stands."""

    def __init__(self, first: np.ndarray, lengths: np.ndarray, groups: list[np.ndarray], device: torch.device,
                 keys: "Padded | None" = None):  # fmt: skip
        even = compiles_shapes(device)
        rows, self.shapes, self.real, self.known = [], [], [], {}
        places = np.empty(int(lengths.sum()), dtype=np.int64)
        at = 0
        for i, group in enumerate(groups):
            n, T = lengths[group][:, None], int(lengths[group].max())
            if even:  # queries go up to quarters of the keys' length: few shapes, as there are few of keys
                quarter = -(-keys.shapes[i][1] // 4) if keys else 0
                T = -(-T // quarter) * quarter if 4 * T > quarter > 0 else round_up(T, 8, 64)
            column = np.arange(T)
            real = column < n
            row = first[group][:, None] + np.minimum(column, np.maximum(n - 1, 0))  # padding repeats the last token
            place = at + np.arange(row.size).reshape(row.shape)
            places[row[real]] = place[real]
            at += row.size
            rows.append(row.ravel())
            self.shapes.append(row.shape)
            self.real.append(None if real.all() else send(torch.from_numpy(real), device))  # (b, T), None: no padding
        self.rows = send(torch.from_numpy(np.concatenate(rows)), device)
        self.places = send(torch.from_numpy(places), device)

    def split(self, x: Tensor) -> list[Tensor]:
        """(N, D) -> (b, T, D) a group."""
        parts = ToPadded.apply(x, self.rows, self.places).split([b * T for b, T in self.shapes])
        return [part.view(b, T, x.shape[1]) for part, (b, T) in zip(parts, self.shapes, strict=True)]

    def views(self, x: Tensor, n: int, n_head: int) -> list[Tensor]:
        """(padded rows, n * A) -> views (n, b, nh, T, hs) of the groups, to read and to write."""
        both = zip(x.split([b * T for b, T in self.shapes]), self.shapes, strict=True)
        return [part.unflatten(1, (n, n_head, -1)).unflatten(0, shape).permute(2, 0, 3, 1, 4) for part, shape in both]

    def heads(self, x: Tensor, n: int, n_head: int) -> list[Tensor]:
        """(N, n * A) -> (n, b * nh, T, hs) a group."""
        return [view.flatten(1, 2) for view in self.views(x.index_select(0, self.rows), n, n_head)]

    def lows(self, n_head: int, dtype: torch.dtype) -> list[Tensor | None]:
        """What hides each group's padding when it is added to scores, (b * nh, 1, T)."""
        if (n_head, dtype) not in self.known:  # all layers ask for the same
            least = torch.finfo(dtype).min
            self.known[n_head, dtype] = [
                None if real is None else (~real).to(dtype).mul_(least).repeat_interleave(n_head, 0).unsqueeze(1)
                for real in self.real
            ]
        return self.known[n_head, dtype]

    def join(self, parts: list[Tensor]) -> Tensor:
        return ToPacked.apply(torch.cat([part.flatten(0, 1) for part in parts]), self.places)


class Packing:
    """A batch's lengths, and all index tensors that follow from them.

    `select` are rows of the packed tokens (sorted) that alone are wanted of the last layer.
    """

    def __init__(self, lengths, n_head: int, device: torch.device, select=None):
        lengths, select = (x.cpu() if torch.is_tensor(x) else x for x in (lengths, select))
        self.lengths = np.asarray(lengths, dtype=np.int64)
        first = np.cumsum(self.lengths) - self.lengths
        N = int(self.lengths.sum())
        self.positions = send(torch.from_numpy(np.arange(N) - np.repeat(first, self.lengths)), device)
        self.groups = similar(self.lengths, n_head, WASTE.get(device.type, WASTE_GPU))
        self.keys = Padded(first, self.lengths, self.groups, device)
        self.select = self.queries = None
        if select is not None:
            select = np.asarray(select, dtype=np.int64)
            assert (np.diff(select) > 0).all(), "select must be sorted"
            self.select = send(torch.from_numpy(select), device)
            bounds = np.searchsorted(select, np.append(first, N))
            counts = np.diff(bounds)
            first_selected = np.minimum(bounds[:-1], max(0, len(select) - 1))  # of a sequence without any: never read
            self.queries = Padded(first_selected, counts, self.groups, device, self.keys)


def similar(lengths: np.ndarray, n_head: int, waste: int) -> list[np.ndarray]:
    """Sequences by falling length, a new group where padding would cost more scores than a group does."""
    order = np.argsort(-lengths, kind="stable")
    groups, begin, spent = [], 0, 0
    for i, n in enumerate(lengths[order].tolist()):
        longest = int(lengths[order[begin]])
        spent += (longest * longest - n * n) * n_head
        if spent > waste:
            groups.append(order[begin:i])
            begin, spent = i, 0
    return [*groups, order[begin:]]


# -----------------------------------------------------------------------------
# biases: functions of (q, k, rows, columns) -> what is added to the unscaled scores of these queries and keys


def relative(x: Tensor, table: Tensor, row: int, column: int, width: int) -> Tensor:
    """x (..., R, D) stands at positions row ..: its products with table[i - j + middle] for `width` columns j from
    `column` on, (..., R, width). One product with all distances, then a skew (1809.04281)."""
    R, middle = x.shape[-2], table.shape[0] // 2
    low = row - column - width + 1 + middle
    far = torch.arange(low + R + width - 2, low - 1, -1, device=x.device)  # what pads may lie beyond the table's ends
    distances = table[far.clamp(0, table.shape[0] - 1)]
    products = x @ distances.t().to(x.dtype)  # (..., R, W), entry w of row i is at distance R - 1 - w + row - column
    if R == 1:
        return products
    W = R + width - 1
    return products.flatten(-2)[..., R - 1 : R - 1 + R * (W - 1)].unflatten(-1, (R, W - 1))[..., :width]


def relative_key(q: Tensor, k: Tensor, rows: slice, table: Tensor) -> Tensor:
    """q_i . a_ij (1803.02155)."""
    return relative(q, table, rows.start, 0, k.shape[-2])


def relative_key_query(q: Tensor, k: Tensor, rows: slice, table: Tensor) -> Tensor:
    """q_i . a_ij + k_j . a_ij (2009.13658, method 4)."""
    width = rows.stop - rows.start
    by_key = [
        relative(part, table.flip(0), begin, rows.start, width)
        for begin, part in zip(range(0, k.shape[-2], width), k.split(width, dim=-2), strict=True)
    ]  # of (.., keys, queries) blocks: all at once would be a square of their own
    return relative_key(q, k, rows, table) + torch.cat(by_key, dim=-2).transpose(-1, -2)


def alibi(q: Tensor, k: Tensor, rows: slice, table: None) -> Tensor:
    """-slope * |i - j|, a slope a head, to both sides (2108.12409)."""
    slopes = alibi_slopes(q.shape[1], q.device) * q.shape[-1] ** 0.5  # scores are scaled later
    i = torch.arange(rows.start, rows.stop, device=q.device)[:, None]
    return -slopes[:, None, None] * (i - torch.arange(k.shape[-2], device=q.device)).abs()


BIASES: dict[str, Callable] = {"relative_key": relative_key, "relative_key_query": relative_key_query, "alibi": alibi}

# -----------------------------------------------------------------------------
# exact attention


def forth(q: Tensor, k: Tensor, v: Tensor, low: Tensor | None, scale: float, p: float) -> tuple[Tensor, ...]:
    """Scores, softmax, dropout, values: the result, the weights, and what dropout kept of them.

    q (N, R, D), k, v (N, T, D); `low` (N, 1 or R, T) is added to the scores, which are scaled.
    """
    if low is None:
        scores = torch.bmm(q * scale, k.transpose(1, 2))
    else:  # mask and scale cost no pass of their own
        scores = torch.baddbmm(low, q, k.transpose(1, 2), alpha=scale)
    w = torch.softmax(scores, -1)
    if not p:
        return torch.bmm(w, v), w, None
    kept = mask(w.shape, p)
    return torch.bmm(keep(w, kept), v).mul_(factor(p)), w, kept


def back(g: Tensor, q: Tensor, k: Tensor, v: Tensor, w: Tensor, kept: Tensor | None, p: float) -> tuple[Tensor, ...]:
    """The gradients of q, k and v; those of q and k are still to be scaled."""
    g = g if kept is None else g * factor(p)
    dw = torch.bmm(g, v.transpose(1, 2))
    ds = torch._softmax_backward_data(dw if kept is None else keep(dw, kept), w, -1, w.dtype)
    w = w if kept is None else keep(w, kept)
    return torch.bmm(ds, k), torch.bmm(ds.transpose(1, 2), q), torch.bmm(w.transpose(1, 2), g)


class Plain(torch.autograd.Function):
    """One group's: one node with its backward written out, in place of a dozen."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, low: Tensor | None, scale: float, p: float) -> Tensor:
        y, w, kept = forth(q, k, v, low, scale, p)
        ctx.scale, ctx.p = scale, p
        ctx.save_for_backward(q, k, v, w, kept)
        return y

    @staticmethod
    @once
    def backward(ctx, g: Tensor):
        dq, dk, dv = back(g, *ctx.saved_tensors, ctx.p)
        return dq.mul_(ctx.scale), dk.mul_(ctx.scale), dv, None, None, None


class Grouped(torch.autograd.Function):
    """All groups', from packed projections to the packed result: one node in place of twenty a group.

    x (N, 3 * A) are queries, keys and values; or q (M, A) the queries of batch.select, and x (N, 2 * A) the rest.
    """

    @staticmethod
    def forward(ctx, x: Tensor, q: Tensor | None, batch: Packing, n_head: int, p: float) -> Tensor:
        places, n = (batch.keys, 3) if q is None else (batch.queries, 2)
        A = x.shape[1] // n
        ctx.batch, ctx.n_head, ctx.n, ctx.scale, ctx.p = batch, n_head, n, (A // n_head) ** -0.5, p
        keys = batch.keys.heads(x, n, n_head)
        queries = keys if q is None else places.heads(q, 1, n_head)
        padded, weights, masks = x.new_empty(len(places.rows), A), [], []
        each = zip(places.views(padded, 1, n_head), queries, keys, batch.keys.lows(n_head, x.dtype), strict=True)
        for out, queried, kv, low in each:
            y, w, kept = forth(queried[0], *kv[-2:], low, ctx.scale, p)
            out[0].copy_(y.view(out[0].shape))
            weights.append(w)
            masks.append(kept)
        ctx.save_for_backward(*keys, *queries, *weights, *masks)
        return padded.index_select(0, places.places)

    @staticmethod
    @once
    def backward(ctx, g: Tensor):
        batch, n_head, n, A = ctx.batch, ctx.n_head, ctx.n, g.shape[1]
        places, count = batch.keys if n == 3 else batch.queries, len(batch.groups)
        saved = zip(*(ctx.saved_tensors[i * count : (i + 1) * count] for i in range(4)), strict=True)
        given = g.new_zeros(len(places.rows), A).index_copy_(0, places.places, g)  # none to what stands for padding
        dx = g.new_empty(len(batch.keys.rows), n * A)
        dq = dx[:, :A] if n == 3 else torch.empty_like(given)
        to = zip(places.views(dq, 1, n_head), batch.keys.views(dx[:, -2 * A :], 2, n_head), strict=True)
        each = zip(places.views(given, 1, n_head), to, saved, strict=True)
        for part, (to_q, to_kv), (kv, queried, w, kept) in each:
            got = back(part[0].flatten(0, 1), queried[0], *kv[-2:], w, kept, ctx.p)
            for new, to, scale in zip(got, (*to_q, *to_kv), (ctx.scale, ctx.scale, 1.0), strict=True):
                torch.mul(new.view(to.shape), scale, out=to)
        dq = dq.index_select(0, places.places) if n == 2 else None
        return dx.index_select(0, batch.keys.places), dq, None, None, None


def in_one(x: Tensor, batch: Packing, few: bool, n_head: int, p: float, native: bool) -> bool:
    """Whether Grouped can and should do it: not where there is a fused kernel, or squares are too large to be kept."""
    if x.device.type != "cpu" or (native and x.dtype == torch.float32 and not p) or (p and not cheap(x, p)):
        return False
    both = zip(batch.keys.shapes, (batch.queries if few else batch.keys).shapes, strict=True)
    return all(b * n_head * T * R <= SQUARE for (b, T), (_, R) in both)


def stripe(q, k, v, low, rows: slice, bias, table, p: float) -> Tensor:
    """The queries of `rows` (all of q here), all keys: (b, H, R, D)."""
    b, H, R, D = q.shape
    scale = D**-0.5
    flat = [x.flatten(0, 1) for x in (q, k, v)]
    low = None if low is None else low.repeat_interleave(H, 0)
    if bias is None and (p == 0 or cheap(q, p)) and q.dtype == v.dtype:
        y = Plain.apply(*flat, low, scale, p)
    else:
        if bias is None:
            scores = torch.bmm(flat[0] * scale, flat[1].transpose(1, 2))
        else:
            added = bias(q, k, rows, table).to(q.dtype).expand(b, H, R, -1).flatten(0, 1)
            scores = torch.baddbmm(added, flat[0], flat[1].transpose(1, 2)) * scale
        scores = scores if low is None else scores + low
        y = torch.bmm(dropout(torch.softmax(scores, -1).to(v.dtype), p), flat[2])
    return y.view(b, H, R, v.shape[-1])  # R may be 0


def exact(q, k, v, real: Tensor | None, p: float, bias: Callable | None = None, table: Tensor | None = None,
          native: bool = True) -> Tensor:  # fmt: skip
    """q (b, H, R, D), k, v (b, H, T, D), real (b, T) True on real keys -> (b, H, R, D); R = T where there is a bias.

    native: torch's fused kernel where it is the faster one.
    """
    b, H, R, _ = q.shape
    T = k.shape[-2]
    # on a CPU the fused kernel is the faster one in float32 only, and knows no dropout
    if native and bias is None and (q.device.type != "cpu" or (q.dtype == torch.float32 and p == 0)):
        return fused(q, k, v, attn_mask=None if real is None else real[:, None, None, :], dropout_p=p)
    low = None
    if real is not None:
        low = torch.zeros(real.shape, dtype=q.dtype, device=q.device)
        low = low.masked_fill_(~real, torch.finfo(q.dtype).min)[:, None, :]  # (b, 1, T)
    if b * H * R * T <= SQUARE:
        return stripe(q, k, v, low, slice(0, R), bias, table, p)
    height = max(16, SQUARE // 8 // (b * H * T))
    parts = []
    for begin in range(0, R, height):
        rows = slice(begin, min(begin + height, R))
        args = (q[:, :, rows], k, v, low, rows, bias, table, p)
        parts.append(checkpoint(stripe, *args, use_reentrant=False) if torch.is_grad_enabled() else stripe(*args))
    return torch.cat(parts, dim=2)
