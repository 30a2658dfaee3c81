"""GPT against transformers, against arithmetic by hand, and against itself: cache, chunks, precision, causality."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from core.generate import LaidOut, context_start, generate, lay_out
from model import GPT, Classifier, GPTConfig, MultiGPT, Roberta, RobertaConfig, ScoreModel
from variants import losses
from variants.losses import loss_sum

SMALL = {"n_layer": 2, "n_head": 2, "n_embd": 16, "vocab_size": 19, "block_size": 16}


def gpt(**options) -> GPT:
    torch.manual_seed(0)
    model = GPT(GPTConfig(**{**SMALL, **options}))
    with torch.no_grad():  # away from the start, where many mistakes cancel
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model.eval()


def ids(B: int = 3, T: int = 16, V: int = 19) -> torch.Tensor:
    return torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(1))


def test_logits_equal_those_of_transformers():
    from transformers import GPT2Config, GPT2LMHeadModel

    from core import hf

    torch.manual_seed(0)
    theirs = GPT2LMHeadModel(GPT2Config(n_layer=3, n_head=4, n_embd=32, vocab_size=50, n_positions=24)).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(0.05 * torch.randn_like(p))
    config = hf.gpt2_config(theirs.config.to_dict())
    ours = GPT(GPTConfig(**config)).eval()
    ours.load_state_dict(hf.gpt2_weights(theirs.state_dict(), config))
    x = ids(2, 24, 50)
    with torch.no_grad():
        assert torch.allclose(ours(x), theirs(x).logits, atol=1e-4)
        loss = theirs(x, labels=x).loss
        mean = ours(x[:, :-1], x[:, 1:]) / x[:, 1:].numel()
    assert mean.item() == pytest.approx(loss.item(), abs=1e-4)


def test_a_model_small_enough_to_compute_by_hand():
    """One layer, one head, width 2, its attention and MLP silent: the logits are a norm of embedding + position."""
    model = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=2, vocab_size=2, block_size=2)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        t = model.transformer
        t.wte.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 3.0]]))
        t.wpe.weight.copy_(torch.tensor([[0.0, 0.0], [2.0, 0.0]]))
        t.ln_f.weight.fill_(1.0)
        logits = model(torch.tensor([[0, 1]]))[0]
        # position 0: (1, 0), mean .5, standard deviation .5 -> (1, -1); position 1: (2, 3), likewise -> (-1, 1)
        assert torch.allclose(logits, torch.tensor([[1.0, -3.0], [-1.0, 3.0]]), atol=1e-3)
        loss = model(torch.tensor([[0, 1]]), torch.tensor([[1, -100]]))
        assert loss.item() == pytest.approx(math.log(1 + math.exp(4.0)), abs=1e-3)


def test_initialisation_is_gpt2_s():
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=8, n_head=2, n_embd=64, vocab_size=500, block_size=64, bias=True))
    w = dict(model.named_parameters())
    assert w["transformer.wte.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    assert w["transformer.h.0.attn.c_proj.weight"].std().item() == pytest.approx(0.02 / 4, rel=0.1)
    assert w["transformer.h.3.mlp.c_fc.weight"].std().item() == pytest.approx(0.02, rel=0.1)
    assert not w["transformer.h.0.mlp.c_fc.bias"].any()


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("with_bias", [False, True])
def test_the_loss_in_chunks_is_cross_entropy(softcap, with_bias, monkeypatch):
    """Value and gradients, with ignored targets, over several chunks with a ragged last one; as compiled code has it, too."""
    monkeypatch.setattr(losses, "CHUNK", 4 * 7)
    torch.manual_seed(0)
    x, w = torch.randn(2, 9, 5, requires_grad=True), torch.randn(7, 5, requires_grad=True)
    b = torch.randn(7, requires_grad=True) if with_bias else None
    y = torch.randint(0, 7, (2, 9))
    y[0, :4] = -100
    z = F.linear(x, w, b)
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    want = F.cross_entropy(z.flatten(0, 1), y.flatten(), reduction="sum")
    inputs = [t for t in (x, w, b) if t is not None]
    wanted = torch.autograd.grad(want * 0.3, inputs)
    for way in (loss_sum, *[torch.compile(loss_sum, backend="eager", fullgraph=True)] * (with_bias and softcap is not None)):
        got = way(x, w, b, y, softcap)
        assert got.item() == pytest.approx(want.item(), rel=1e-5)
        for a, e in zip(torch.autograd.grad(got * 0.3, inputs), wanted, strict=True):
            assert torch.allclose(a, e, atol=1e-5)


@pytest.mark.parametrize("n", [1, 12 * 1024, 32 * 1024])
def test_a_gpu_takes_few_large_and_equal_chunks(n, monkeypatch):
    """Each costs it a pass over the gradient of the weight: 37 of them would take longer than the logits."""
    assert losses.chunk(n, 50304, "cpu") == 333
    for compiling in (False, True):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda yes=compiling: yes)
        rows = losses.chunk(n, 50304, "cuda")
        count = -(-n // rows)
        assert rows % 64 == 0 and count == -(-n // (5336 if compiling else 1334)) and n > (count - 1) * rows


class Adapter(torch.nn.Linear):
    """LoRA (2106.09685): the weight stands still, a product of two thin matrices is added to it."""

    def __init__(self, layer):
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None)
        self.load_state_dict(layer.state_dict())
        self.requires_grad_(False)
        self.a = torch.nn.Parameter(torch.randn(2, layer.in_features))
        self.b = torch.nn.Parameter(torch.randn(layer.out_features, 2))

    def forward(self, x):
        return super().forward(x) + x @ self.a.T @ self.b.T


@pytest.mark.parametrize("kind", ["gpt", "streams", "scores", "encoder scores", "classifier"])
def test_what_stands_in_place_of_a_linear_layer_acts(kind):
    """In every layer, be it one of which a part is computed for few tokens alone, or the loss has a kernel for."""
    torch.manual_seed(0)
    encoder = {"n_layer": 2, "n_head": 2, "n_embd": 8, "mlp_size": 8, "vocab_size": 11, "block_size": 16}
    model = {"gpt": gpt, "streams": lambda: MultiGPT(GPTConfig(**SMALL, vocab_sizes=[19, 19])),
             "scores": lambda: ScoreModel(gpt()), "encoder scores": lambda: ScoreModel(Roberta(RobertaConfig(**encoder))),
             "classifier": lambda: Classifier(RobertaConfig(**encoder), 3)}[kind]()  # fmt: skip
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    for block in model.transformer.h:
        block.attn.c_attn = Adapter(block.attn.c_attn)
    if kind == "streams":
        model.lm_head = torch.nn.ModuleList(map(Adapter, model.lm_head))
        loss = model(torch.stack([ids(), ids()]), torch.stack([ids(), ids()])).sum()
    elif kind == "gpt":
        model.lm_head, x, y = Adapter(model.lm_head), ids(), ids()
        y[0, :4] = -100
        loss = model(x, y)
        want = F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum")
        torch.testing.assert_close(loss, want)
    else:
        loss = model(torch.arange(10), [6, 4]).sum()
    loss.backward()
    for name, p in model.named_parameters():
        assert not p.requires_grad or p.grad is not None, name


def test_another_table_of_positions_takes_the_place_of_the_first():
    """As one who lengthens the context does it."""
    model = gpt()
    model.config.block_size, first = 24, model.transformer.wpe
    model.transformer.wpe = type(first)(24, SMALL["n_embd"], SMALL["n_head"])
    x = ids(T=24)
    model(x, x).backward()
    assert first.weight.grad is None and model.transformer.wpe.weight.grad[20:].abs().sum() > 0


def test_a_bias_of_the_head_trains():
    model = gpt()
    model.lm_head = torch.nn.Linear(SMALL["n_embd"], SMALL["vocab_size"])
    torch.nn.init.normal_(model.lm_head.bias)
    x = ids()
    loss = model(x, x)
    torch.testing.assert_close(loss, F.cross_entropy(model(x).flatten(0, 1), x.flatten(), reduction="sum"))
    loss.backward()
    assert model.lm_head.bias.grad.abs().sum() > 0


def test_float16_sums_the_gradient_of_many_tokens():
    """Before any loss scale: a sum over all of them would be more than the largest float16, 65504."""
    x, y = torch.full((1 << 17, 2), 2.0, requires_grad=True), torch.zeros(1 << 17, dtype=torch.long)
    w = torch.zeros(4, 2, requires_grad=True)
    with torch.autocast("cpu", torch.float16):
        loss_sum(x, w, None, y).backward()
    assert w.grad[0].tolist() == pytest.approx([-0.75 * 2 * (1 << 17)] * 2, rel=1e-3)


def test_a_batch_without_targets_loses_nothing():
    model = gpt()
    loss = model(ids(), torch.full((3, 16), -100))
    loss.backward()
    assert loss.item() == 0 and not any(p.grad.isnan().any() or p.grad.any() for p in model.parameters())


def test_the_loss_is_a_sum_over_targets_however_they_lie():
    model, x = gpt(), ids(4)
    y = x.roll(-1, 1)
    y[1, 3:9] = -100
    with torch.no_grad():
        parts = sum(model(x[i : i + 1], y[i : i + 1]).item() for i in range(4))
        assert model(x, y).item() == pytest.approx(parts, rel=1e-6)


VARIETY = [{}, {"position": "rotary", "use_qk_norm": True, "n_kv_group": 1}, {"position": "alibi"},
           {"window_size": 5, "position": "learned+rotary"},
           {"position": "sinusoidal", "use_post_ln": True}]  # fmt: skip


@pytest.mark.parametrize("options", VARIETY, ids=str)
def test_the_cache_changes_nothing(options):
    """Token for token; with rotary positions also past block_size, where the context slides."""
    model = gpt(**options)
    n = 40 if not model.config.cropped or "learned" in model.config.position else 12
    for temperature in (0.0, 0.9):
        a, b = (generate(model, ids(2, 5), n, temperature=temperature, seed=3, use_cache=use) for use in (True, False))
        assert torch.equal(a, b) and a.shape == (2, 5 + n)


@pytest.mark.parametrize("options", VARIETY, ids=str)
def test_each_token_is_what_the_model_says_after_those_before_it(options):
    """Without dropout, though training goes on with it; and another seed draws others."""
    model = gpt(**options, dropout=0.5).train()
    x = generate(model, ids(2, 5), 11 if model.config.cropped else 40, temperature=0)
    assert model.training
    with torch.no_grad():
        assert torch.equal(x[:, 5:], model.eval()(x)[:, 4:-1].argmax(-1))
    assert not torch.equal(*(generate(model, ids(2, 5), 8, temperature=1.0, seed=seed) for seed in (3, 4)))


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="no 16-bit kernels")
@pytest.mark.parametrize("options", [*VARIETY, {"bias": False, "mlp_variant": "swiglu", "use_parallel_mlp": True}], ids=str)
def test_weights_laid_out_once_change_nothing(options):
    """A prompt and single tokens, several rows; in float32 nothing is laid out."""
    a, b = (gpt(n_embd=64, **options).bfloat16() for _ in range(2))
    lay_out(b)
    assert all(type(m) is not torch.nn.Linear for m in b.modules()) and isinstance(b.lm_head, LaidOut)
    caches = [model.new_cache(3, 16) for model in (a, b)]
    with torch.inference_mode():
        for x in (ids()[:, :12], ids()[:, 12:13], ids()[:, 13:14]):
            found, laid_out = (model(x, cache=cache).float() for model, cache in zip((a, b), caches, strict=True))
            torch.testing.assert_close(found, laid_out, rtol=0.02, atol=0.02)
    lay_out(whole := gpt())
    assert not any(isinstance(m, LaidOut) for m in whole.modules())


@pytest.mark.parametrize("options", VARIETY, ids=str)
def test_a_token_sees_nothing_behind_it(options):
    model, x = gpt(**options), ids()
    y = x.clone()
    y[:, 9:] = (y[:, 9:] + 1) % 19
    with torch.no_grad():
        assert torch.allclose(model(x)[:, :9], model(y)[:, :9], atol=1e-6)
        assert not torch.allclose(model(x)[:, 9:], model(y)[:, 9:], atol=1e-3)


def test_context_moves_in_quarters():
    starts = [context_start(n, 16) for n in range(1, 40)]
    assert starts[:16] == [0] * 16 and starts[16:24] == [4] * 4 + [8] * 4
    assert all(n - s <= 16 and n - s >= 12 for n, s in zip(range(17, 40), starts[16:], strict=True))
    assert [context_start(n, 3) for n in range(1, 6)] == [0, 0, 0, 1, 2]  # a quarter of it is no token


def test_sampling_options():
    from core.generate import pick

    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(4000, 1)
    g = torch.Generator().manual_seed(0)
    share = torch.bincount(pick(logits, 1.0, None, None, g)[:, 0], minlength=4) / 4000
    assert torch.allclose(share, torch.tensor([0.5, 0.3, 0.15, 0.05]), atol=0.03)
    cold = torch.bincount(pick(logits, 0.5, None, None, g)[:, 0], minlength=4) / 4000  # the squares, to the sum 1
    assert torch.allclose(cold, torch.tensor([0.685, 0.247, 0.062, 0.007]), atol=0.03)
    assert set(pick(logits, 1.0, 2, None, g).flatten().tolist()) == {0, 1}
    assert set(pick(logits, 1.0, None, 0.75, g).flatten().tolist()) == {0, 1}
    assert set(pick(logits, 0, None, None, g).flatten().tolist()) == {0}


def test_too_long_a_context_is_named():
    with pytest.raises(ValueError, match="17 tokens do not fit block_size 16"):
        gpt()(ids(1, 17))


@pytest.mark.parametrize(("options", "says"), [
    ({"n_head": 3}, "n_head must divide n_embd"), ({"block_size": 0}, "block_size must be > 0"),
    ({"n_layer": -1}, "n_layer must be > 0"), ({"n_kv_group": 3}, "n_kv_group must divide"),
    ({"norm_variant_attn": "layrnorm"}, "norm_variant_attn must be"), ({"position": "rotar"}, "position must be"),
    ({"n_head": 16, "position": "rotary"}, "even n_embd / n_head"), ({"window_size": 0}, "window_size must be > 0"),
])  # fmt: skip
def test_a_config_that_cannot_be_is_named(options, says):
    with pytest.raises(ValueError, match=says):
        GPTConfig(**{**SMALL, **options})


def test_an_evaluation_pays_for_no_gradients():
    from torch.utils.flop_counter import FlopCounterMode

    x, w, y = torch.randn(6, 4), torch.randn(9, 4, requires_grad=True), torch.arange(6)
    for training, products in ((False, 1), (True, 3)):
        with FlopCounterMode(display=False) as flops, torch.set_grad_enabled(training):
            loss_sum(x.requires_grad_(), w, None, y)
        assert flops.get_total_flops() == products * 2 * x.numel() * len(w)


@pytest.mark.parametrize("tied", [True, False])
def test_flops_per_token_are_those_of_the_products(tied):
    """What a log line's mfu is a share of: forward, and twice that backward; looking up embeddings costs none."""
    from torch.utils.flop_counter import FlopCounterMode

    model = gpt(n_embd=64, vocab_size=300, block_size=128, wte_weight_tying=tied, attn_logit_softcapping=5.0)
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        model(ids(2, 64, 300))
    assert model.flops_per_token(64) * 2 * 64 == pytest.approx(3 * flops.get_total_flops(), rel=0.02)


def test_gradient_checkpointing_changes_nothing():
    grads = []
    for use in (False, True):
        model = gpt(use_gradient_checkpointing=use, dropout=0.2).train()
        torch.manual_seed(5)
        model(ids(), ids()).backward()
        grads.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_a_second_derivative_is_right_or_refused():
    """A gradient penalty's was half of what it should be: the head's backward saves numbers, not a graph."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=8, vocab_size=11, dropout=0.0))
    ids = torch.randint(0, 11, (3, 8))

    def gradient(loss):
        return torch.autograd.grad(loss, model.parameters(), create_graph=True)

    with sdpa_kernel(SDPBackend.MATH):
        own = F.cross_entropy(model(ids).flatten(0, 1), ids.flatten())
        gradient(torch.stack([g.square().sum() for g in gradient(own)]).sum())
        with pytest.raises(RuntimeError, match="create_graph=True: this backward has no derivative of its own"):
            gradient(model(ids, ids))
        model.double()  # attention in stripes
        with pytest.raises(RuntimeError, match="no derivative of its own"):
            gradient(model(ids).sum())
