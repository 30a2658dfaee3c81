import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import model as model_file
import variants.packed as packed
from model import POSITION_KINDS, Classifier, Roberta, RobertaConfig, RobertaMLM, ScoreModel, starts
from variants.dropout import PIECE, dropout, mask
from variants.packed import Packing, relative_key, relative_key_query

ROOT = Path(__file__).resolve().parent.parent
LENGTHS = [9, 30, 3, 30, 17, 1, 22]


def small(**options) -> RobertaConfig:
    options = {"hidden_dropout": 0.0, "attn_dropout": 0.0, **options}
    sizes = {"vocab_size": 20, "block_size": 40, "n_layer": 2, "n_head": 4, "n_embd": 32, "mlp_size": 48}
    return RobertaConfig(**sizes | options)


def make(cls=RobertaMLM, seed=0, **options):
    torch.manual_seed(seed)
    model = cls(small(**options))
    with torch.no_grad():  # biases and norms away from 0 and 1, so that a mix-up shows
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model


def batch(lengths=LENGTHS, seed=0):
    g = np.random.default_rng(seed)
    tokens = torch.from_numpy(g.integers(6, 20, sum(lengths)))
    where = np.sort(g.choice(sum(lengths), max(1, sum(lengths) // 6), replace=False))
    return tokens, lengths, where, torch.from_numpy(g.integers(0, 20, len(where)))


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters()}


def close(a, b, tol=1e-5):
    torch.testing.assert_close(a, b, atol=tol, rtol=tol)


# -----------------------------------------------------------------------------
# against transformers


@pytest.fixture
def theirs():
    transformers = pytest.importorskip("transformers")
    config = transformers.RobertaConfig(
        vocab_size=20, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=42, type_vocab_size=1, layer_norm_eps=1e-12, pad_token_id=1, bos_token_id=0,
        eos_token_id=2, attn_implementation="eager")  # fmt: skip
    torch.manual_seed(1)
    model = transformers.RobertaForMaskedLM(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    return model


def test_logits_and_loss_equal_transformers(theirs):
    from core import hf

    cfg = hf.roberta_config(theirs.config.to_dict())
    ours = RobertaMLM(RobertaConfig(**cfg)).eval()
    ours.load_state_dict(hf.roberta_weights(theirs.state_dict(), cfg))
    tokens, lengths, where, targets = batch()
    T = max(lengths) + 3
    ids, mask = torch.full((len(lengths), T), 1), torch.zeros(len(lengths), T, dtype=torch.long)
    labels = torch.full((len(lengths), T), -100)
    flat = torch.full((len(tokens),), -100).index_copy(0, torch.from_numpy(where), targets)
    for i, (part, label) in enumerate(zip(tokens.split(lengths), flat.split(lengths), strict=True)):
        ids[i, : len(part)], mask[i, : len(part)], labels[i, : len(part)] = part, 1, label
    out = theirs(input_ids=ids, attention_mask=mask, labels=labels)
    everywhere = ours(tokens, lengths, np.arange(len(tokens)))
    close(everywhere, out.logits[mask.bool()], 1e-4)
    close(ours(tokens, lengths, where), everywhere[where], 1e-5)
    close(ours(tokens, lengths, where, targets) / len(where), out.loss, 1e-4)


# -----------------------------------------------------------------------------
# positions against their definitions


def by_definition(q, k, v, table, kind):
    """Shaw et al. 2018 (1803.02155) and Huang et al. 2020 (2009.13658), a pair of tokens at a time."""
    T, D = q.shape
    middle = len(table) // 2
    scores = torch.empty(T, T)
    for i in range(T):
        for j in range(T):
            a = table[i - j + middle]
            scores[i, j] = q[i] @ k[j] + q[i] @ a + (k[j] @ a if kind == "relative_key_query" else 0)
    return torch.softmax(scores / math.sqrt(D), -1) @ v


@pytest.mark.parametrize("kind", ["relative_key", "relative_key_query"])
@pytest.mark.parametrize("square", [1 << 23, 1])
def test_relative_positions_equal_their_definition(kind, square, monkeypatch):
    monkeypatch.setattr(packed, "SQUARE", square)  # 1: in stripes of 16 queries, the last one shorter
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, 37, 8)
    table = torch.randn(2 * 45 - 1, 8)
    bias = {"relative_key": relative_key, "relative_key_query": relative_key_query}[kind]
    real = torch.arange(37) < torch.tensor([[37], [21]])
    y = packed.exact(q, k, v, real, 0.0, bias, table)
    for b, n in enumerate([37, 21]):
        for h in range(3):
            close(y[b, h, :n], by_definition(q[b, h, :n], k[b, h, :n], v[b, h, :n], table, kind))


def test_alibi_and_rope_equal_their_definition():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 4, 19, 8)
    slopes = torch.tensor([2 ** (-2.0 * (h + 1)) for h in range(4)])
    i = torch.arange(19)
    scores = q @ k.transpose(-1, -2) / math.sqrt(8) - slopes[:, None, None] * (i[:, None] - i).abs()
    close(packed.exact(q, k, v, None, 0.0, packed.alibi), torch.softmax(scores, -1) @ v)

    model = make(Roberta, position="rope")
    attn, x = model.transformer.h[0].attn, torch.randn(19, 32)
    q, k, v = (p.view(19, 4, 8).transpose(0, 1) for p in attn.c_attn(x).split(32, dim=1))
    angle = i[:, None] * 10000.0 ** (-torch.arange(0, 8, 2) / 8)
    turn = torch.polar(torch.ones_like(angle), angle)
    q, k = (torch.view_as_real(torch.complex(z[..., :4], z[..., 4:]) * turn) for z in (q, k))
    scores = torch.einsum("hidc,hjdc->hij", q, k) / math.sqrt(8)
    y = (torch.softmax(scores, -1) @ v).transpose(0, 1).reshape(19, 32)
    close(attn(x, Packing([19], 4, x.device)), attn.c_proj(y))


# -----------------------------------------------------------------------------
# what may not matter


@pytest.mark.parametrize("kind", POSITION_KINDS)
@pytest.mark.parametrize("square", [1 << 23, 1])
def test_neighbours_order_and_grouping_change_nothing(kind, square, monkeypatch):
    """Loss and gradients of a batch: all at once in one padded group, each sequence alone, shuffled, and in stripes."""
    model = make(position=kind)
    tokens, lengths, where, targets = batch()
    flat = torch.full((len(tokens),), -100).index_copy(0, torch.from_numpy(where), targets)
    monkeypatch.setattr(packed, "WASTE", {"cpu": 1 << 40})
    whole = model(tokens, lengths, where, targets)
    want = gradients(model, whole)

    monkeypatch.setattr(packed, "SQUARE", square)
    parts = list(zip(tokens.split(lengths), flat.split(lengths), strict=True))
    for waste, order in [(1 << 40, [3, 6, 0, 2, 5, 1, 4]), (0, range(7)), (2000, [6, 5, 4, 3, 2, 1, 0])]:
        monkeypatch.setattr(packed, "WASTE", {"cpu": waste})
        ids, labels = (torch.cat([parts[i][n] for i in order]) for n in (0, 1))
        at = np.flatnonzero(labels.numpy() != -100)
        loss = model(ids, [lengths[i] for i in order], at, labels[at])
        close(loss, whole)
        for name, g in gradients(model, loss).items():
            close(g, want[name])
    alone = 0
    for ids, labels in parts:
        at = np.flatnonzero(labels.numpy() != -100)
        alone = alone + model(ids, [len(ids)], at, labels[at])
    close(alone, whole)


@pytest.mark.parametrize("kind", POSITION_KINDS)
def test_selected_rows_are_those_of_the_whole(kind):
    model = make(Roberta, position=kind)
    tokens, lengths, where, _ = batch()
    x = model.encode(tokens, lengths)
    assert x.shape == (sum(lengths), 32)
    first = starts(lengths)
    assert first.tolist() == [0, 9, 39, 42, 72, 89, 90]
    for rows in (where, first, torch.tensor([50]), np.arange(sum(lengths)), np.array([], dtype=int)):
        got = model.encode(tokens, torch.tensor(lengths), rows)
        close(got, x[torch.as_tensor(rows)])


def test_numbers_are_rounded_up_to_few():
    for steps, most in ((8, 1 << 30), (4, 64)):
        rounded = [packed.round_up(n, steps, most) for n in range(5000)]
        assert all(n <= r <= n + max(1, n // steps) and r - n < most for n, r in enumerate(rounded))
        assert len(set(rounded[256:512])) <= steps + 1
    assert [packed.round_up(n, 8) for n in (0, 1, 15, 17, 33, 1000, 2049)] == [0, 1, 15, 18, 36, 1024, 2304]


@pytest.mark.parametrize("kind", POSITION_KINDS)
def test_round_shapes_change_nothing(kind, monkeypatch):
    """What 16-bit training adds to a batch on CPUs is read by nobody."""
    model = make(position=kind)
    tokens, lengths, where, targets = batch([*LENGTHS, 5])
    loss, logits = model(tokens, lengths, where, targets), model(tokens, lengths, where)
    hidden, want = model.encode(tokens, lengths), gradients(model, loss)
    for module in (packed, sys.modules["model"]):
        monkeypatch.setattr(module, "compiles_shapes", lambda device: True)
    rows = model.run(tokens, lengths)
    assert len(rows) > len(tokens)
    close(rows[: len(tokens)], hidden)
    close(model(tokens, torch.tensor(lengths), torch.from_numpy(where)), logits)
    for name, g in gradients(model, model(tokens, lengths, where, targets)).items():
        close(g, want[name])


def test_queries_make_few_shapes(monkeypatch):
    """Each shape costs a kernel of half a MB: the queries of the last layer hardly add to those of the keys."""
    monkeypatch.setattr(packed, "compiles_shapes", lambda device: True)
    g, keys, both = np.random.default_rng(0), set(), set()
    for _ in range(60):
        lengths = np.clip(np.exp(g.normal(4.8, 0.7, 16)), 16, 512).astype(int)
        where = np.flatnonzero(g.random(lengths.sum()) < 0.15)
        batch = packed.Packing(lengths, 4, torch.device("cpu"), where)
        keys.update(batch.keys.shapes)
        both.update((*k, R) for k, (_, R) in zip(batch.keys.shapes, batch.queries.shapes, strict=True))
        counts = np.diff(np.searchsorted(where, np.append(0, lengths.cumsum())))
        for group, (b, R) in zip(batch.groups, batch.queries.shapes, strict=True):
            assert b == len(group) and counts[group].max() <= R <= max(4, lengths[group].max())
    assert len(both) <= 1.2 * len(keys), (len(both), len(keys))
    first = packed.Packing(lengths, 4, torch.device("cpu"), lengths.cumsum() - lengths)
    assert {R for _, R in first.queries.shapes} == {1}


def test_options_act():
    tokens, lengths, where, targets = batch()
    base = make()(tokens, lengths, where, targets).item()
    for option in [{"norm_eps": 0.1}, {"activation": "relu"}, {"position": "sinusoidal"}]:
        assert abs(make(**option)(tokens, lengths, where, targets).item() - base) > 1e-4, option
    untied = make(tie=False)
    assert untied.lm_head.decoder.weight.shape == (20, 32)
    assert len(list(untied.parameters())) == len(list(make().parameters())) + 1
    narrow = make(attn_size=16, attn_bias=False)
    c_attn = narrow.transformer.h[0].attn.c_attn
    assert c_attn.weight.shape == (48, 32) and c_attn.bias is None
    assert narrow(tokens, lengths, where).shape == (len(where), 20)
    ropes = [{}, {"rope_base": 100.0}, {"rope_scale": 4.0}]
    assert len({make(position="rope", **o)(tokens, lengths, where, targets).item() for o in ropes}) == 3
    for name in ("hidden_dropout", "attn_dropout", "embedding_dropout", "attn_out_dropout"):
        model = make(**{name: 0.5})
        noisy = [model(tokens, lengths, where, targets).item() for _ in range(2)]
        assert noisy[0] != noisy[1], name
        assert abs(model.eval()(tokens, lengths, where, targets).item() - base) < 1e-4, name


@pytest.mark.parametrize(
    ("options", "word"),
    [({"n_head": 5}, "n_head"), ({"n_layer": 0}, "n_layer"), ({"position": "rel"}, "position"),
     ({"block_size": -1}, "block_size"), ({"position": "rope", "n_embd": 36}, "even"),
     ({"activation": "x"}, "activation"), ({"attn_size": 30}, "attn_size"), ({"attn_size": 0}, "attn_size must be > 0"),
     ({"position": "rope", "rope_base": -1.0}, "rope_base must be > 0"), ({"rope_scale": 0.0}, "rope_scale must be > 0"),
     ({"norm_eps": -1.0}, "norm_eps"), ({"hidden_dropout": 2.0}, "hidden_dropout must be 0 or more and below 1"),
     ({"embedding_dropout": 1.0}, "embedding_dropout"), ({"attn_out_dropout": -0.1}, "attn_out_dropout"),
     *[({"attention": "lsh", "attention_args": args}, f"attention_args {name} must be") for name, args in (
         ("chunk_size", {"chunk_size": 0}), ("chunk_size", {"chunk_size": 2.5}), ("num_hashes", {"num_hashes": 0}),
         ("mask_within_chunks", {"mask_within_chunks": "x"}))],
     *[({"attention": "favor", "attention_args": args}, f"attention_args {name} must be") for name, args in (
         ("phi", {"phi": "foo"}), ("nb_features", {"nb_features": "x"}), ("nb_features", {"nb_features": True}),
         ("redraw_interval", {"redraw_interval": -1}), ("eps", {"eps": -1.0}))],
     ({"attention": "favor", "attention_args": {"head_size": 3}}, "takes no argument 'head_size'")],
)  # fmt: skip
def test_bad_configs_are_refused(options, word):
    with pytest.raises(ValueError, match=word):
        RobertaConfig(**{**vars(small(attn_dropout=0.0)), **options})


def test_a_config_may_be_as_small_as_can_be():
    RobertaConfig(vocab_size=1, block_size=1, n_layer=1, n_head=1, n_embd=1, mlp_size=1)


def test_a_sequence_beyond_block_size_is_refused():
    with pytest.raises(ValueError, match="41 tokens .* block_size 40"):
        make().encode(torch.zeros(41, dtype=torch.long), [41])


def test_no_place_to_guess_is_a_loss_of_zero():
    model = make()
    tokens, lengths, _, _ = batch()
    loss = model(tokens, lengths, np.array([], dtype=int), torch.tensor([], dtype=torch.long))
    assert loss.item() == 0
    assert all(torch.isfinite(g).all() for g in gradients(model, loss).values())


def test_bfloat16_is_near_float32():
    tokens, lengths, where, targets = batch()
    for kind in POSITION_KINDS:
        model = make(position=kind)
        want = model(tokens, lengths, where, targets)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = model(tokens, lengths, where, targets)
        assert got.dtype == torch.float32 and abs(got / want - 1) < 0.03, kind


@pytest.mark.parametrize("attention", ["exact", "lsh", "favor"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_that_was_cast_is_near_float32(attention, dtype):
    """As a GPT is: what counts in float32 met weights of the other type."""
    tokens, lengths, _, _ = batch()
    heads = {"mean": lambda c: Classifier(c, 3, "mean"), "cls": lambda c: Classifier(c, 3),
             "score": lambda c: ScoreModel(Roberta(c))}  # fmt: skip
    for name, head in heads.items():
        model = make(head, attention=attention).eval()
        want = model(tokens, lengths)
        got = model.to(dtype)(tokens, lengths)
        assert got.dtype == torch.float32 and got.shape == want.shape, name
        assert (got - want).abs().max() < (0.1 if dtype == torch.bfloat16 else 1e-4) * want.abs().max(), name


# -----------------------------------------------------------------------------
# dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_drops_its_share_and_keeps_the_mean(dtype):
    torch.manual_seed(0)
    x = torch.ones(1001, 999, dtype=dtype, requires_grad=True)
    for p in (0.1, 0.5, 0.9):
        y = dropout(x, p)
        assert abs((y == 0).float().mean() - p) < 0.002
        kept = y[y != 0]
        assert (kept == kept[0]).all() and abs(kept[0].float() * (1 - p) - 1) < 0.005
        (g,) = torch.autograd.grad(y.float().sum(), x)
        assert torch.equal(g, y)
        rows = (y == 0).float()
        assert abs(torch.corrcoef(torch.stack([rows[:, :-1].flatten(), rows[:, 1:].flatten()]))[0, 1]) < 0.005
    torch.manual_seed(5)
    a = dropout(x, 0.1)
    torch.manual_seed(5)
    assert torch.equal(a, dropout(x, 0.1)) and not torch.equal(a, dropout(x, 0.1))
    assert dropout(x, 0.1, training=False) is x and dropout(x, 0.0) is x
    assert not dropout(x, 1.0).any()


def test_masks_have_nothing_to_do_with_one_another():
    """Pieces of one mask, and masks one after the other, drop different elements."""
    torch.manual_seed(0)
    n = 2 * PIECE + 1000
    masks = [mask((n,), 0.3) for _ in range(3)]
    assert all(set(m.unique().tolist()) == {0, -1} for m in masks)
    rows = [m[i : i + PIECE].float() for m in masks for i in (0, PIECE)]
    found = torch.corrcoef(torch.stack(rows)) - torch.eye(len(rows))
    assert found.abs().max() < 0.008  # 5 standard deviations of what chance gives


@pytest.mark.parametrize("position", ["absolute", "rope"])
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("narrow", [False, True])
def test_groups_in_one_node(monkeypatch, position, p, narrow):
    """Grouped's written-out backward is that of single groups, also where a group has no row that is asked for."""
    monkeypatch.setitem(packed.WASTE, "cpu", 0)
    tokens, lengths, *_ = batch()
    rows = [1, 4, 8, 10, 11, 60] if narrow else None
    found = []
    for alone in (True, False):
        model = make(cls=Roberta, position=position, attention="plain", attn_dropout=p)
        if alone:
            monkeypatch.setattr(model_file, "in_one", lambda *args: False)
        else:
            monkeypatch.undo()
            monkeypatch.setitem(packed.WASTE, "cpu", 0)
            monkeypatch.setattr(packed.Plain, "apply", None)
        torch.manual_seed(3)
        y = model.encode(tokens, lengths, rows)
        found.append((y, gradients(model, y.square().sum())))
    close(*(y for y, _ in found))
    for name, g in found[0][1].items():
        close(g, found[1][1][name], 1e-4)


def test_stripes_drop_the_same_on_the_way_back(monkeypatch):
    """Attention computed again in backward must see the same dropout: numeric and analytic gradients agree."""
    monkeypatch.setattr(packed, "SQUARE", 1)
    torch.manual_seed(0)
    q, k, v = (t.double().requires_grad_() for t in torch.randn(3, 1, 2, 20, 4))

    def f(q, k, v):
        torch.manual_seed(3)
        return packed.exact(q, k, v, None, 0.3)

    assert torch.autograd.gradcheck(f, (q, k, v), atol=1e-4)


# -----------------------------------------------------------------------------
# memory


CODE = """
import resource, torch
from model import RobertaConfig, RobertaMLM
c = RobertaConfig(block_size=4500, n_layer=1, n_head=4, n_embd=128, mlp_size=64, position="{kind}")
model, n = RobertaMLM(c), 2
tokens = torch.randint(6, 16, (n * 4500,))
where = torch.arange(0, n * 4500, 7)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with torch.autocast("cpu", dtype=torch.{dtype}, enabled={cast}):
    model(tokens, [4500] * n, where, tokens[where]).backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("kind", ["relative_key", "relative_key_query"])
def test_the_longest_length_may_be_rounded_past_the_table(kind):
    """bf16 on a CPU rounds a group's length up: pads stand at distances that the table of embeddings does not have."""
    model = make(block_size=37, position=kind)
    args = batch([37, 21])
    plain = model(*args)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model(*args)
    rounded.backward()
    assert abs(plain - rounded) < 0.05 * plain


@pytest.mark.full
@pytest.mark.parametrize("kind", ["absolute", "relative_key", "relative_key_query", "alibi"])
def test_long_sequences_fit(kind):
    """A layer on two sequences of 4,500 tokens, dropout on: the plain way takes 1.6 GB for the scores alone."""
    code = CODE.format(kind=kind, dtype="bfloat16", cast=True)
    p = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert p.returncode == 0, p.stderr
    assert int(p.stdout) < 600, f"{p.stdout} MiB"


def test_a_batch_in_which_nothing_is_hidden_trains_nothing():
    model = make()
    loss = model(*batch([5, 9])[:2], np.zeros(0, np.int64), torch.zeros(0, dtype=torch.long))
    assert all(g.abs().sum() == 0 for g in gradients(model, loss).values()) and loss == 0
