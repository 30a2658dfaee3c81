"""Every variant in a whole model: shapes, finite gradients, causality, bfloat16, the KV cache, torch.compile.

A new variant is found in its table; a new wiring is a row in WIRINGS.
"""

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from core.generate import generate
from model import GPT, GPTConfig, MultiGPT
from variants import attentions, norms, positions, softmaxes
from variants.activations import ACTIVATIONS
from variants.attentions import ATTENTIONS, attend
from variants.mlps import MLPS
from variants.norms import NORMS
from variants.positions import POSITIONS
from variants.softmaxes import SOFTMAXES

V, T, B = 17, 16, 2
AXES = {"norm_variant_attn": NORMS, "norm_variant_output": NORMS, "activation_variant": ACTIVATIONS,
        "mlp_variant": MLPS, "position": POSITIONS, "softmax_variant_attn": SOFTMAXES,
        "attention_variant": ATTENTIONS}  # fmt: skip
WIRINGS = {
    "grouped query": {"n_kv_group": 2},
    "one key and value head": {"n_kv_group": 1},
    "sliding window": {"window_size": 3},
    "window and alibi": {"window_size": 5, "position": "alibi"},
    "qk-norm": {"use_qk_norm": True, "position": "rotary"},
    "parallel": {"use_parallel_mlp": True},
    "peri": {"use_peri_ln": True},
    "post": {"use_pre_ln": False, "use_post_ln": True},
    "soft caps": {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 10.0},
    "untied": {"wte_weight_tying": False},
    "bias": {"bias": True, "norm_variant_attn": "rmsnorm"},
    "learned and rotary": {"position": "learned+rotary"},
    "mlp size": {"mlp_size": 20},
    "rope base and norm eps": {"position": "rotary", "rope_base": 50.0, "norm_eps": 0.1},
    "everything": {"n_kv_group": 2, "window_size": 7, "use_qk_norm": True, "position": "rotary", "use_peri_ln": True,
                   "mlp_variant": "swiglu", "norm_variant_attn": "rmsnorm", "norm_variant_output": "rmsnorm",
                   "attn_logit_softcapping": 20.0, "final_logit_softcapping": 20.0, "wte_weight_tying": False},
}  # fmt: skip
CASES = {f"{axis}={name}": {axis: name} for axis, table in AXES.items() for name in table} | WIRINGS
EACH = pytest.mark.parametrize("changes", CASES.values(), ids=CASES)


def build(changes, **more) -> GPT:
    torch.manual_seed(0)
    config = {"vocab_size": V, "block_size": T, "n_layer": 2, "n_head": 4, "n_embd": 32} | changes | more
    model = GPT(GPTConfig(**config))
    with torch.no_grad():
        for p in model.parameters():  # at initialisation most of it does next to nothing
            p.add_(0.1 * torch.randn_like(p))
    return model


def batch():
    g = torch.Generator().manual_seed(1)
    return torch.randint(0, V, (B, T), generator=g), torch.randint(0, V, (B, T), generator=g)


@EACH
def test_shapes_and_finite_gradients(changes):
    model, (x, y) = build(changes), batch()
    assert model(x).shape == (B, T, V)
    model(x, y).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name
    assert sum(p.grad.abs().sum() for p in model.parameters()) > 0


@EACH
def test_a_model_can_be_pickled(changes):
    """As torch.save of a whole model does, and a process that is spawned with one."""
    model, (x, _) = build(changes).eval(), batch()
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), model(x))


@EACH
def test_causality(changes):
    """A token changes no logits before it, and some from it on."""
    model, (x, _) = build(changes).eval(), batch()
    other = x.clone()
    other[:, 9] = (other[:, 9] + 1) % V
    a, b = model(x), model(other)
    assert torch.equal(a[:, :9], b[:, :9])
    assert not torch.allclose(a[:, 9], b[:, 9], atol=1e-4)


@EACH
def test_the_cache_changes_nothing(changes):
    model, (x, _) = build(changes).eval(), batch()
    whole = model(x)
    cache = model.new_cache(B, T)
    parts = [model(x[:, :5], cache=cache), *(model(x[:, i : i + 1], cache=cache) for i in range(5, T))]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole[:, 4:], rtol=1e-4, atol=1e-4)
    options = {"temperature": 0, "n": 2 * T}  # beyond block_size
    assert torch.equal(generate(model, x[:, :3], **options), generate(model, x[:, :3], use_cache=False, **options))


@EACH
def test_bfloat16_is_close(changes):
    model, (x, y) = build(changes), batch()
    exact = model(x, y).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(x, y)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact, rel=0.03)
    assert all(p.grad.isfinite().all() for p in model.parameters())


@EACH
@pytest.mark.parametrize("how", ["autocast", "cast"])
def test_a_16_bit_model_generates_from_its_cache(how, changes):
    """Under autocast the cache is wider than what is computed; sample.py casts the model itself."""
    model, (x, _) = build(changes).eval(), batch()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=how == "autocast"), torch.no_grad():
        model = model if how == "autocast" else model.to(torch.bfloat16)
        whole, cache = model(x).float(), model.new_cache(B, T)
        parts = [model(x[:, :5], cache=cache), *(model(x[:, i : i + 1], cache=cache) for i in range(5, T))]
        error = (torch.cat(parts, dim=1).float() - whole[:, 4:]).abs().max() / whole.abs().max()
        assert error < 0.05, error
        assert generate(model, x[:, :3], 4).shape == (B, 7)


def check_compiled(changes, backend):
    model, (x, y) = build(changes), batch()
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(model), backend=backend)
    a, b = model(x, y), compiled(x, y)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    a.backward()
    b.backward()
    for p, q in zip(model.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.full
def test_compile():
    check_compiled(WIRINGS["everything"], "aot_eager")


@pytest.mark.full
@EACH
def test_compile_each(changes):
    check_compiled(changes, "aot_eager")


@pytest.mark.full
def test_compile_with_inductor():
    check_compiled(WIRINGS["everything"], "inductor")


def test_16_bit_attention_compiles_without_a_warning(recwarn):
    torch._dynamo.reset()
    q, k, v = torch.randn(3, 2, 2, 24, 8).bfloat16().requires_grad_()
    how = {"causal": True, "window": 5}
    compiled = torch.compile(attend, backend="aot_eager", fullgraph=True)(q, k, v, **how)
    assert torch.equal(compiled, attend(q, k, v, **how)) and compiled.grad_fn is not None
    assert not [str(w.message) for w in recwarn]


@EACH
def test_gradient_checkpointing_changes_nothing(changes):
    x, y = batch()
    plain, saving = build(changes, dropout=0.1), build(changes, dropout=0.1, use_gradient_checkpointing=True)
    losses = []
    for model in (plain, saving):
        torch.manual_seed(3)  # the same dropout
        losses.append(model(x, y))
        losses[-1].backward()
    assert torch.equal(*losses)
    for p, q in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def kept(model, x, y) -> int:
    """Bytes that autograd keeps for the backward pass, weights not counted."""
    sizes, own = {}, {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(t):
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = model(x, y)
    assert loss.requires_grad
    return sum(sizes.values())


def test_gradient_checkpointing_saves_memory():
    """Of each block its input, and no more."""
    saving = kept(build({"n_layer": 6}, use_gradient_checkpointing=True), *batch())
    assert saving < 0.4 * kept(build({"n_layer": 6}), *batch())


@pytest.mark.parametrize("options, want", [({}, 36), ({"mlp_variant": "swiglu"}, 52), ({"use_gradient_checkpointing": True}, 4)])
def test_memory_a_token_is_what_the_readme_says(options, want, monkeypatch):
    """Bytes a token, layer and unit of width, with the fused attention that a GPU has; 16-bit copies of weights aside."""

    def fused(q, k, v, **_):
        return F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, is_causal=True)

    monkeypatch.setitem(ATTENTIONS, "causal", fused)
    C, found = 256, []
    for n_layer in (2, 6):
        model = GPT(GPTConfig(block_size=256, vocab_size=64, n_layer=n_layer, n_head=4, n_embd=C, **options))
        x = torch.randint(64, (2, 256))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found.append(kept(model, x, x))
    copies = 0 if options.get("use_gradient_checkpointing") else sum(
        2 * p.numel() for p in model.transformer.h[0].parameters() if p.dim() > 1)  # fmt: skip
    assert (found[1] - found[0]) / 4 == pytest.approx(want * 512 * C + copies, rel=0.01)


# -----------------------------------------------------------------------------
# several vocabularies


def test_streams_are_causal_and_each_reads_the_others():
    torch.manual_seed(0)
    config = {"vocab_size": V, "vocab_sizes": [V, 5], "block_size": T, "n_layer": 2, "n_head": 4, "n_embd": 32}
    model = MultiGPT(GPTConfig(**config)).eval()
    x = torch.stack([torch.randint(0, V, (B, T)), torch.randint(0, 5, (B, T))])
    other = x.clone()
    other[1, :, 9] = (other[1, :, 9] + 1) % 5
    a, b = model(x), model(other)
    assert [z.shape for z in a] == [(B, T, V), (B, T, 5)]
    assert torch.equal(a[0][:, :9], b[0][:, :9]) and not torch.equal(a[0][:, 9:], b[0][:, 9:])
    losses = model(x, x)
    expected = [F.cross_entropy(z.flatten(0, 1), y.flatten(), reduction="sum") for z, y in zip(a, x, strict=True)]
    torch.testing.assert_close(losses, torch.stack(expected))
    options = {"temperature": 0, "n": 2 * T}
    assert torch.equal(generate(model, x[..., :3], **options), generate(model, x[..., :3], use_cache=False, **options))


@pytest.mark.full
def test_streams_compile():
    config = {"vocab_size": V, "vocab_sizes": [V, 5], "block_size": T, "n_layer": 1, "n_head": 2, "n_embd": 8}
    model, (x, _) = MultiGPT(GPTConfig(**config)), batch()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    both = torch.stack([x, x % 5])
    torch.testing.assert_close(compiled(both, both), model(both, both))
    for stream in (0, 1):
        ids = both[stream]
        torch.testing.assert_close(compiled(ids, ids, stream=stream), model(ids, ids, stream=stream))


def test_one_stream_leaves_the_others_alone():
    torch.manual_seed(0)
    config = {"vocab_size": V, "vocab_sizes": [V, 5], "block_size": T, "n_layer": 1, "n_head": 2, "n_embd": 8}
    model = MultiGPT(GPTConfig(**config))
    x, y = batch()
    model(x, y, stream=0).backward()
    assert model.transformer.wte[1].weight.grad is None and model.lm_head[0].weight.grad is not None


# -----------------------------------------------------------------------------
# the parts against references


def reference(q, k, v, causal, mask, bias, window, softcap):
    """Attention by the definition, one query at a time."""
    H, T_q, T_k = q.shape[1], q.shape[2], k.shape[2]
    k, v = (x.repeat_interleave(H // x.shape[1], 1) for x in (k, v))
    out = torch.zeros_like(q)
    for a in range(T_q):
        i = a + T_k - T_q
        s = (q[:, :, a : a + 1] * k).sum(-1) / math.sqrt(q.shape[-1])  # (B, H, T_k)
        s = s if softcap is None else softcap * torch.tanh(s / softcap)
        s = s if bias is None else s + bias[:, a]
        for j in range(T_k):
            if (causal and j > i) or (window and abs(i - j) >= window):
                s[..., j] = float("-inf")
        s = s if mask is None else s.masked_fill(~mask[:, :, 0], float("-inf"))
        out[:, :, a] = (s.softmax(-1)[..., None] * v).sum(2)
    return out


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("window", [None, 1, 40])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("T_q", [1, 5, 130])
def test_attention_is_what_it_says(T_q, causal, masked, biased, window, softcap):
    """Both paths, the fused one in float32 and the plain one in float64, over more than one stripe of queries."""
    g = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, T_q, 8, generator=g, dtype=torch.float64)
    k, v = (torch.randn(2, 2, 130, 8, generator=g, dtype=torch.float64) for _ in range(2))
    mask = torch.rand(2, 1, 1, 130, generator=g) > 0.3 if masked and window is None else None
    if mask is not None:
        mask[..., 0] = True  # each query sees something
    bias = torch.randn(4, T_q, 130, generator=g, dtype=torch.float64) if biased else None
    expected = reference(q, k, v, causal, mask, bias, window, softcap)
    options = {"causal": causal, "mask": mask, "window": window, "softcap": softcap}
    torch.testing.assert_close(attend(q, k, v, bias=bias, **options), expected)
    bias = None if bias is None else bias.float()
    found = attend(q.float(), k.float(), v.float(), bias=bias, **options)
    torch.testing.assert_close(found, expected.float(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", SOFTMAXES)
def test_a_query_that_sees_no_key_stays_finite(name, dtype):
    q = torch.randn(1, 2, 6, 8, dtype=dtype, requires_grad=True)
    mask = torch.ones(1, 1, 1, 6, dtype=torch.bool)
    mask[..., :3] = False  # padding in front: the first queries see nothing
    out = attend(q, q, q, causal=True, mask=mask, softmax=name)
    out.sum().backward()
    assert out.isfinite().all() and q.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", SOFTMAXES)
def test_large_scores_in_16_bit_stay_masked(name, dtype):
    """A large score added to the lowest number may round to another number."""
    q, k, v = (4 * torch.randn(1, 2, 40, 8, generator=torch.Generator().manual_seed(i)).to(dtype) for i in range(3))
    other = k.clone()
    other[:, :, 20:] = -k[:, :, 20:]
    a, b = (attend(q, keys, v, causal=True, softmax=name)[:, :, :20] for keys in (k, other))
    assert torch.equal(a, b)
    exact = attend(q.float(), k.float(), v.float(), causal=True, softmax=name)[:, :, :20]
    assert (a.float() - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("name", SOFTMAXES)
def test_masked_scores_get_no_weight_and_change_none(name):
    scores = torch.randn(3, 7)
    hidden = torch.cat((scores, torch.full((3, 4), float("-inf"))), dim=1)
    lowest = hidden.clamp(min=torch.finfo(torch.float32).min)
    expected = SOFTMAXES[name](scores, -1)
    for padded in (hidden, lowest):
        weights = SOFTMAXES[name](padded, -1)
        assert (weights[:, 7:] == 0).all()
        torch.testing.assert_close(weights[:, :7], expected)


@pytest.mark.parametrize("name", SOFTMAXES)
def test_a_gpu_can_be_deterministic_with_it(name):
    """PyTorch refuses there to add up floats one by one (torch.use_deterministic_algorithms)."""
    added = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            added.extend(x.dtype for x in args[:1] if func.overloadpacket is torch.ops.aten.cumsum)
            return func(*args, **(kwargs or {}))

    with Watch():
        SOFTMAXES[name](torch.randn(2, 5, requires_grad=True), -1).square().sum().backward()
    assert not [dtype for dtype in added if dtype.is_floating_point]


@pytest.mark.parametrize("name", ["softmax", "softermax", "sigsoftmax", "sparsemax"])
def test_weights_sum_to_one(name):
    torch.testing.assert_close(SOFTMAXES[name](3 * torch.randn(5, 9), -1).sum(-1), torch.ones(5))


def test_softmaxes_by_hand():
    s = torch.tensor([0.0, math.log(2.0), math.log(3.0)])
    torch.testing.assert_close(softmaxes.softmax1(s, -1), torch.tensor([1.0, 2.0, 3.0]) / 7)
    powers = torch.tensor([1.0, 2.0, 4.0])
    torch.testing.assert_close(softmaxes.softermax(powers.log2(), -1), powers / 7)
    e = s.exp() * s.sigmoid()
    torch.testing.assert_close(softmaxes.sigsoftmax(s, -1), e / e.sum())
    torch.testing.assert_close(softmaxes.sparsemax(torch.tensor([0.1, 1.1, 0.4]), -1), torch.tensor([0.0, 0.85, 0.15]))
    torch.testing.assert_close(softmaxes.sigmoid(s, -1), torch.tensor([1 / 4, 2 / 5, 3 / 6]))
    torch.testing.assert_close(softmaxes.relumax(torch.tensor([-1.0, 2.0]), -1), torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(softmaxes.squared_relumax(torch.tensor([-1.0, 2.0]), -1), torch.tensor([0.0, 2.0]))


def test_rotary_depends_on_distance_alone():
    q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)

    def score(i: int, j: int) -> torch.Tensor:
        at = [positions.rotary_table(torch.tensor([n]), 8) for n in (i, j)]
        return (positions.rotate(q, *at[0]) * positions.rotate(k, *at[1])).sum()

    torch.testing.assert_close(score(3, 1), score(103, 101))
    assert not torch.isclose(score(3, 1), score(3, 2))
    x = torch.randn(2, 3, 5, 8)
    same = positions.rotate(x, *positions.rotary_table(torch.zeros(2, 5), 8))
    torch.testing.assert_close(same, x)
    far = positions.rotary_table(torch.tensor([10]), 8, scale=10.0)[0]
    torch.testing.assert_close(far, positions.rotary_table(torch.tensor([1]), 8)[0])


def test_alibi_slopes_are_the_papers():
    assert positions.alibi_slopes(8).tolist() == [2.0**-i for i in range(1, 9)]
    assert positions.alibi_slopes(12)[8:].tolist() == pytest.approx([2.0 ** -(i + 0.5) for i in range(4)], rel=1e-6)
    bias = positions.alibi_bias(8, 2, 4)
    assert bias[0].tolist() == [[-1.0, -0.5, 0.0, -0.5], [-1.5, -1.0, -0.5, 0.0]]


def test_sinusoidal_is_the_papers():
    table = positions.sinusoidal_table(torch.arange(50), 6)
    for i in (0, 7, 49):
        for j in range(3):
            angle = i / 10000 ** (2 * j / 6)
            torch.testing.assert_close(table[i, 2 * j : 2 * j + 2].tolist(), [math.sin(angle), math.cos(angle)],
                                       rtol=1e-4, atol=1e-4)  # fmt: skip


def test_norms_are_torchs():
    x = torch.randn(3, 8)
    torch.testing.assert_close(norms.LayerNorm(8, bias=True)(x), F.layer_norm(x, (8,)))
    torch.testing.assert_close(norms.RMSNorm(8)(x), x / x.square().mean(-1, keepdim=True).add(1e-5).sqrt())
    assert norms.NoNorm(8)(x) is x and not list(norms.NoNorm(8).parameters())
    assert norms.LayerNorm(8).bias is None


@pytest.mark.parametrize("name", ["swiglu", "geglu"])
def test_gated_mlps(name):
    mlp, x = MLPS[name](8, 12), torch.randn(2, 3, 8)
    gate, value = (x @ w.T for w in mlp.c_fc.weight.chunk(2))
    act = F.silu if name == "swiglu" else F.gelu
    torch.testing.assert_close(mlp(x), (act(gate) * value) @ mlp.c_proj.weight.T)


def test_activations_by_hand():
    x = torch.tensor([-1.0, 0.5, 2.0])
    torch.testing.assert_close(ACTIVATIONS["squared_relu"](x), torch.tensor([0.0, 0.25, 4.0]))
    torch.testing.assert_close(ACTIVATIONS["squareplus"](x), (x + (x * x + 4).sqrt()) / 2)
    torch.testing.assert_close(ACTIVATIONS["quick_gelu"](x), x * torch.sigmoid(1.702 * x))
    torch.testing.assert_close(ACTIVATIONS["gelu_tanh"](x), F.gelu(x, approximate="tanh"))


def test_sliding_window_limits_the_reach():
    """With one layer a token sees itself and window_size - 1 before it; alone with itself at 1."""
    for window in (1, 4):
        model, (x, _) = build({"n_layer": 1, "window_size": window, "position": "none"}).eval(), batch()
        other = x.clone()
        other[:, 2] = (other[:, 2] + 1) % V
        changed = (model(x) - model(other)).abs().amax((0, 2)) > 1e-6
        assert changed.nonzero().flatten().tolist() == list(range(2, 2 + window))


@pytest.mark.parametrize(("T", "window"), [(5, None), (128, None), (300, None), (600, None), (300, 40), (600, 300)])
def test_attention_in_16_bit_has_the_gradients_of_float32(T, window):
    """On CPUs that is another path, with a backward of its own, over stripes of 128 or 256 queries."""
    torch.manual_seed(0)
    x = [torch.randn(2, 2, T, 16) for _ in range(4)]
    grads = {}
    for dtype in (torch.float32, torch.bfloat16):
        q, k, v, g = (t.to(dtype).requires_grad_() for t in x)
        y = attend(q, k, v, causal=True, window=window)
        grads[dtype] = [y.detach(), *torch.autograd.grad(y, (q, k, v), g)]
    for exact, found in zip(*grads.values(), strict=True):
        assert found.dtype == torch.bfloat16
        assert (found.float() - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize("T", [7, 130])
def test_attention_drops_the_same_on_the_way_back(T):
    """The backward pass that is written out, over one stripe and two: as numeric differences say."""
    torch.manual_seed(0)
    x = [t.double().requires_grad_() for t in torch.randn(3, 1, 1, T, 2)]

    def f(q, k, v):
        torch.manual_seed(3)
        return attentions.Striped.apply(q, k, v, 0.5, None, 0.3)[:, :, -6:]

    assert torch.autograd.gradcheck(f, x, atol=1e-4)
    torch.manual_seed(3)
    assert not torch.allclose(f(*x), attentions.Striped.apply(*x, 0.5, None, 0.0)[:, :, -6:])


def test_dropout_acts_in_training_alone():
    for dtype in (torch.float32, torch.bfloat16):  # the fused path and the plain one
        q = torch.randn(1, 2, 64, 8, dtype=dtype)
        torch.manual_seed(0)
        out = attentions.attend(q, q, torch.ones_like(q), causal=False, dropout=0.5)
        assert out.float().std() > 0.01 and out.float().mean() == pytest.approx(1, abs=0.1)
    model, (x, _) = build({}, dropout=0.5), batch()
    assert not torch.equal(model(x), model(x))
    assert torch.equal(model.eval()(x), model(x))


def test_attention_with_a_bias_keeps_no_scores_in_float32():
    """Of a bias of three axes torch's kernel on CPUs would make the plain steps, and keep their squares."""
    q = torch.randn(8, 4, 64, 8, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        attend(q, q, q, causal=True, bias=torch.randn(4, 64, 64))
    assert max(kept) < 8 * 4 * 64 * 64
