"""Weights from one model to another: what was asked for is taken, the rest is not touched, and both are told."""

import pytest
import torch

from core import transfer
from model import GPT, GPTConfig, RobertaConfig, RobertaMLM


def two_models():
    torch.manual_seed(0)
    small = {"n_layer": 3, "n_head": 2, "n_embd": 8, "vocab_size": 11, "block_size": 8}
    return GPT(GPTConfig(**small)), GPT(GPTConfig(**{**small, "vocab_size": 13}))


def test_transfer_takes_what_is_asked_and_says_so():
    a, b = two_models()
    before = {k: v.clone() for k, v in b.state_dict().items()}
    with torch.no_grad():
        for p in a.parameters():  # norms start at 1 in both
            p.add_(0.5).mul_(3)
    said = transfer.into(b, a.state_dict(), ["attn", "ffn:1-2", "ln"], "a", vars(a.config))
    got, want = b.state_dict(), a.state_dict()
    scale = want["transformer.wte.weight"].std() / before["transformer.wte.weight"].std()
    for name in ("transformer.wte.weight", "lm_head.weight"):  # tied; fresh, at the scale that a's blocks know
        before[name] = before[name] * scale
    for name in got:
        group, layer = transfer.group_of(name), int(name.split(".")[2]) if ".h." in name else 0
        taken = group in ("attn", "norm") or (group == "mlp" and layer >= 1)
        assert torch.equal(got[name], (want if taken else before)[name]), name
    rows = [line.split() for line in said]
    assert {(g, d) for g, d, *_ in rows} == {("attn", "taken"), ("norm", "taken"), ("mlp", "taken"),
                                             ("mlp", "initialised"), ("embed", "initialised")}  # fmt: skip
    assert sum(int(n.replace(",", "")) for _, _, n, _ in rows) == sum(p.numel() for p in b.parameters())


def test_what_a_model_keeps_of_its_own_is_not_called_initialised():
    a, b = two_models()  # reward_train.py: model_name's weights, under some of another's
    before = b.transformer.wte.weight.clone()
    said = transfer.into(b, a.state_dict(), ["attn"], "a", vars(a.config), fresh=False)
    assert torch.equal(b.transformer.wte.weight, before)
    assert [line.split()[:2] for line in said] == [["attn", "taken"], ["embed", "kept"], ["mlp", "kept"], ["norm", "kept"]]


@pytest.mark.parametrize("parts, notes", [(["attn"], 1), (["embed", "ffn:0"], 0), (["all"], 1), (["embed", "ln"], 0)])
def test_what_no_weight_tells_of_is_said_where_it_differs(parts, notes):
    a, b = two_models()
    weights = {name: w for name, w in a.state_dict().items() if "wte" not in name and "lm_head" not in name}
    theirs = {**vars(b.config), "position": "rotary", "vocab_size": 5, "dropout": 0.5, "activation": "of an encoder"}
    said = [line for line in transfer.into(b, weights, parts, "a", theirs) if "parameters" not in line]
    assert said == ["note: position is 'rotary' in a and 'learned' here: the parts compute something else"][:notes]
    assert not any("note" in line for line in transfer.into(b, weights, parts, "a", vars(b.config)))


@pytest.mark.parametrize("theirs, ours, noted", [
    ({}, {}, []),
    ({"position": "rotary"}, {"position": "rope"}, []),
    ({"position": "rotary"}, {"position": "rope", "rope_scale": 2.0, "rope_base": 5e4}, ["rope_base"]),
    ({"rope_base": 5e5, "window_size": 8}, {}, []),
    ({"position": "learned"}, {"position": "alibi"}, ["position"]),
    ({"activation_variant": "relu"}, {}, ["activation"]),
    ({"activation_variant": "relu"}, {"activation": "relu"}, []),
])  # fmt: skip
def test_a_gpt_and_an_encoder_call_one_thing_by_two_names(theirs, ours, noted):
    """Positions were said to differ wherever parts went from one to the other, and activations never."""
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 8, "vocab_size": 11, "block_size": 8, "mlp_size": 16}
    a, b = GPT(GPTConfig(**sizes, **theirs)), RobertaMLM(RobertaConfig(**sizes, **ours))
    for one, other in ((a, b), (b, a)):
        said = transfer.into(other, one.state_dict(), ["attn", "mlp"], "a", vars(one.config))
        assert [line.split()[1] for line in said if "note: " in line and " is " in line] == noted


@pytest.mark.parametrize("name, value", [("mlp_variant", "geglu"), ("attention_variant", "own"),
                                         ("softmax_variant_attn", "softmax1"), ("attn_logit_softcapping", 5.0)])  # fmt: skip
def test_variants_without_weights_of_their_own_are_said_where_they_differ(name, value):
    a, b = two_models()
    weights = {name: w for name, w in a.state_dict().items() if "wte" not in name and "lm_head" not in name}
    said = transfer.into(b, weights, ["attn", "mlp"], "a", {**vars(b.config), name: value})
    assert said[-1].startswith(f"note: {name} is {value!r} in a and {getattr(b.config, name)!r} here")


@pytest.mark.parametrize("name", ["norm_variant_attn", "norm_variant_output"])
def test_a_norm_that_reads_another_s_gains_is_said(name):
    """--transfer norm: a layernorm's gains in an rmsnorm, of one shape, came without a word."""
    a, b = two_models()
    before = b.transformer.wte.weight.clone()
    said = transfer.into(b, a.state_dict(), ["norm"], "a", {**vars(b.config), name: "rmsnorm"})
    assert torch.equal(b.transformer.wte.weight, before)  # no block came that knows another scale
    assert said[-1] == f"note: {name} is 'rmsnorm' in a and 'layernorm' here: the parts compute something else"


def test_gates_positions_and_attentions_of_one_shape_are_told_apart():
    """A swiglu's matrices fit a geglu, favor's projections fit exact attention."""
    a, b = (GPT(GPTConfig(n_layer=1, n_head=2, n_embd=8, vocab_size=11, block_size=8, mlp_variant=name, window_size=size))
            for name, size in (("swiglu", None), ("geglu", 4)))  # fmt: skip
    theirs = {**vars(a.config), "activation_variant": "relu"}  # of no use to a gate
    said = transfer.into(b, a.state_dict(), ["attn", "mlp"], "a", theirs)
    assert [line.split()[1] for line in said if "note" in line] == ["window_size", "mlp_variant"]
    small = {"n_layer": 1, "n_head": 2, "n_embd": 8, "mlp_size": 8}
    b = RobertaMLM(RobertaConfig(**small))
    for name, notes in (("favor", 1), ("plain", 0), ("exact", 0)):
        a = RobertaMLM(RobertaConfig(**small, attention=name, attn_dropout=0.0))
        assert sum("note: attention is" in x for x in transfer.into(b, a.state_dict(), ["attn"], "a", vars(a.config))) == notes


def test_what_of_a_part_has_no_place_is_said():
    """Biases, or layers that this model lacks; of a part that nobody asked for, nothing."""
    small = {"n_head": 2, "n_embd": 8, "vocab_size": 11, "block_size": 8}
    a, b = GPT(GPTConfig(n_layer=2, bias=True, **small)), GPT(GPTConfig(n_layer=1, **small))
    for parts, said in ((["attn:0"], ["transformer.h.0.attn.c_attn.bias of a has no place here (2 such names)"]),
                        (["attn"], ["transformer.h.0.attn.c_attn.bias of a has no place here (6 such names)"]),
                        (["embed"], [])):  # fmt: skip
        lines = transfer.into(b, a.state_dict(), parts, "a", vars(a.config))
        assert [line for line in lines if "note" in line] == [f"note: {line}" for line in said]
    with pytest.raises(ValueError, match="none of --transfer attn:5 is in it under our names; both have embed attn mlp norm"):
        transfer.into(b, a.state_dict(), ["attn:5"], "a", vars(a.config))


@pytest.mark.parametrize("part", ["attn", "attention:0", "all"])
def test_attention_is_not_cut_into_another_number_of_heads(part):
    """Its matrices have the same shape for any."""
    a, b = two_models()
    with pytest.raises(ValueError, match="a has 4 heads, the model here 2: make them equal, or leave attn out"):
        transfer.into(b, a.state_dict(), [part], "a", {"n_head": 4})
    transfer.into(b, a.state_dict(), ["mlp"], "a", {"n_head": 4})


def test_a_learnt_position_of_ones_own_goes_with_the_embeddings():
    """As variants/positions.py says, a kind is a class and a table line: its weights are pos_NAME's."""
    assert transfer.group_of("transformer.pos_mine.weight") == transfer.group_of("transformer.wpe.weight") == "embed"
    assert {transfer.group_of(f"{name}.weight") for name in ("lm_head", "lm_head.dense", "classifier.dense", "score")} == {"head"}


@pytest.mark.parametrize("parts, taken", [(["attn:0", "attn:2"], [0, 2]), (["attn:1-2", "attn:0"], [0, 1, 2])])
def test_transfer_takes_each_of_the_layers_that_are_named_one_by_one(parts, taken):
    a, b = two_models()
    transfer.into(b, a.state_dict(), parts, "a", vars(a.config))
    names = [f"transformer.h.{i}.attn.c_attn.weight" for i in range(3)]
    assert [i for i in range(3) if torch.equal(a.state_dict()[names[i]], b.state_dict()[names[i]])] == taken


@pytest.mark.parametrize(("parts", "taken"), [(["norm:0"], ["norm"]), (["all:0-9"], ["attn", "mlp", "norm"])])
def test_what_stands_outside_of_the_blocks_is_in_no_layer(parts, taken):
    a, b = two_models()
    with torch.no_grad():
        for p in a.parameters():  # norms start at 1 in both
            p.add_(0.5)
    before = {name: w.clone() for name, w in b.state_dict().items()}
    transfer.into(b, a.state_dict(), parts, "a", vars(a.config), fresh=False)
    for name, w in b.state_dict().items():
        inside = transfer.group_of(name) in taken and (".h.0." in name or ".h." in name and "all" in parts[0])
        assert torch.equal(w, a.state_dict()[name] if inside else before[name]), name


@pytest.mark.parametrize(("parts", "says"), [
    (["embed:0"], "--transfer embed:0: embed has no layers"), (["all"], "wte.weight is \\(11, 8\\) there and \\(13, 8\\) here"), (["atn"], "--transfer takes embed, attn"),
    (["mlp:x"], "layers are written 0-3 or 2"), (["mlp:²"], "layers are written 0-3 or 2"),
    (["attn:1-0"], "layers are written 0-3 or 2"), (["mlp:-1"], "layers are written 0-3 or 2"), (["mlp:1-x"], "layers are written 0-3 or 2"),
])  # fmt: skip
def test_transfer_names_what_does_not_fit(parts, says):
    a, b = two_models()
    with pytest.raises(ValueError, match=says):
        transfer.into(b, a.state_dict(), parts, "a", vars(a.config))


def test_kinds_of_positions_have_no_order():
    _, model = two_models()
    weights = {name: w for name, w in model.state_dict().items() if ".h." in name}
    model.config.position = "learned+rotary"
    theirs = {**vars(model.config), "window_size": 8}  # as wide as the context is none
    for kinds, notes in (("rotary+learned", []), ("rotary", ["note: position is 'rotary' in a and 'learned+rotary' here"])):
        said = transfer.into(model, weights, ["attn"], "a", theirs | {"position": kinds})
        assert [line.partition(": the parts")[0] for line in said if "note" in line] == notes
