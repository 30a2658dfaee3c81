"""Weights and configs to and from transformers: the same numbers come out."""

import functools
import http.server
import json
import os
import pickle
import re
import threading

import pytest
import torch

from core import checkpoint, hf, hub
from model import GPT, GPTConfig, RobertaConfig, RobertaMLM
from variants.mlps import MLPS

transformers = pytest.importorskip("transformers")

SMALL = {"vocab_size": 61, "n_positions": 32, "n_embd": 32, "n_layer": 3, "n_head": 4, "initializer_range": 0.2}


def theirs(**changes):
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**(SMALL | changes))).eval()
    with torch.no_grad():  # biases and norms start at 0 and 1, where a swap would not show
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model


def ours(config, weights):
    model = GPT(GPTConfig(**config)).eval()
    model.load_state_dict(weights)
    return model


def same_logits(a, b, V, T=32):
    ids = torch.randint(0, V, (2, T), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        x, y = (out if torch.is_tensor(out) else out.logits for out in (a(ids), b(ids)))
    assert x.std() > 0.1, "logits that are all alike show nothing"
    torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n_inner": 48, "activation_function": "relu"},
        {"tie_word_embeddings": False, "layer_norm_epsilon": 0.1},
        {"n_layer": 24, "n_head": 16, "n_embd": 64},  # GPT-2-medium's proportions
        pytest.param({"n_layer": 24, "n_head": 16, "n_embd": 1024, "initializer_range": 0.02}, marks=pytest.mark.full),
    ],
)
def test_gpt2_folder_gives_the_same_logits(changes, tmp_path):
    reference = theirs(**changes)
    reference.save_pretrained(tmp_path)
    kind, config, weights = hf.load(tmp_path)
    assert kind == "gpt2"
    same_logits(ours(config, weights), reference, 61)


def test_a_gpt2_config_with_other_models_names_is_read(tmp_path):
    """12 heads, the default, would divide this width, too."""
    reference = theirs(n_embd=48, n_head=3)
    reference.save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    for name, gpt2s in hf.GPT2_NAMES.items():
        text = text.replace(f'"{gpt2s}"', f'"{name}"')
    (tmp_path / "config.json").write_text(text)
    _, config, weights = hf.load(tmp_path)
    same_logits(ours(config, weights), reference, 61)


def test_every_layout_of_a_folder_is_read(tmp_path):
    """One safetensors file, safetensors in parts, a pickle, pickles in parts, a model saved without its head, or
    within its wrappers."""
    reference = theirs()
    whole = hf.gpt2_weights(reference.state_dict(), {"wte_weight_tying": True})

    def same(folder):
        _, _, weights = hf.load(folder)
        assert set(weights) == set(whole)
        assert all(torch.equal(weights[n], w) for n, w in whole.items())

    reference.save_pretrained(tmp_path / "one")
    reference.save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    reference.transformer.save_pretrained(tmp_path / "bare")
    for name in ("one", "parts", "bare"):
        same(tmp_path / name)

    state, config = reference.state_dict(), (tmp_path / "one" / "config.json").read_text()
    for before in ("module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."):  # of DDP and torch.compile
        for n, w in (("one", reference), ("bare", reference.transformer)):
            (tmp_path / n / "model.safetensors").unlink(missing_ok=True)
            torch.save({before + name: p for name, p in w.state_dict().items()}, tmp_path / n / "pytorch_model.bin")
            same(tmp_path / n)
    old = {"transformer.h.0.attn.bias": torch.ones(1, 1, 9, 9), "transformer.h.0.attn.masked_bias": torch.tensor(-1e4)}
    (tmp_path / "pickle").mkdir()
    (tmp_path / "pickle" / "config.json").write_text(config)
    torch.save(state | old, tmp_path / "pickle" / "pytorch_model.bin")
    same(tmp_path / "pickle")

    (tmp_path / "pickles").mkdir()
    (tmp_path / "pickles" / "config.json").write_text(config)
    names = sorted(state)
    for part, chosen in (("a.bin", names[:7]), ("b.bin", names[7:])):
        torch.save({n: state[n] for n in chosen}, tmp_path / "pickles" / part)
    index = {n: "a.bin" if n in names[:7] else "b.bin" for n in names}
    (tmp_path / "pickles" / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    same(tmp_path / "pickles")


@pytest.mark.parametrize("changes", [{}, {"bias": True, "mlp_size": 40}, {"wte_weight_tying": False},
                                     {"activation_variant": "squared_relu", "window_size": 16}])  # fmt: skip
def test_our_gpt_goes_to_transformers(changes, tmp_path):
    torch.manual_seed(0)
    config = GPTConfig(vocab_size=61, block_size=16, n_layer=2, n_head=4, n_embd=32, **changes)
    model = GPT(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    hf.save(tmp_path, "gpt2", vars(config), model.state_dict())
    assert b'"format":"pt"' in (tmp_path / "model.safetensors").read_bytes()[:99]  # else transformers 4 reads none of it
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    same_logits(model, again, 61, T=16)
    _, back, weights = hf.load(tmp_path)
    same_logits(model, ours(back, weights), 61, T=16)


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"position": "rotary"}, "position 'rotary'"),
        ({"norm_variant_attn": "rmsnorm"}, "norm_variant_attn 'rmsnorm'"),
        ({"mlp_variant": "swiglu"}, "mlp_variant 'swiglu'"),
        ({"n_kv_group": 2}, "n_kv_group 2"),
        ({"window_size": 4}, "window_size 4"),
        ({"use_qk_norm": True}, "use_qk_norm True"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping 30.0"),
        ({"activation_variant": "softsign"}, "activation_variant 'softsign'"),
    ],
)
def test_what_gpt2_cannot_express_is_refused(changes, named):
    config = vars(GPTConfig(block_size=16, n_layer=1, n_head=4, n_embd=32, **changes))
    with pytest.raises(ValueError, match=f"^{named} has no counterpart"):
        hf.gpt2_config_back(config)


@pytest.mark.parametrize("key, value", [("scale_attn_weights", False), ("activation_function", "xielu"),
                                        ("model_type", "gemma"), ("model_type", ["gpt2"])])  # fmt: skip
def test_what_we_cannot_express_is_refused(key, value, tmp_path):
    theirs().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(ValueError, match=f"{value}"):
        hf.load(tmp_path)


LLAMAS = {
    "llama": {"n_kv_group": 2, "mlp_variant": "swiglu"},
    "llama, geglu, untied, biased": {"mlp_variant": "geglu", "wte_weight_tying": False, "bias": True, "mlp_size": 40},
    "mistral": {"mlp_variant": "swiglu", "window_size": 3},
    "qwen3": {"mlp_variant": "swiglu", "use_qk_norm": True, "n_kv_group": 1, "rope_base": 100.0, "norm_eps": 0.1},
    "qwen3, window": {"mlp_variant": "swiglu", "use_qk_norm": True, "window_size": 5},
    "arcee": {"activation_variant": "squared_relu", "bias": True},
}


@pytest.mark.parametrize("name", LLAMAS)
def test_llama_and_its_relatives_go_and_come_back(name, tmp_path):
    torch.manual_seed(0)
    same = {"position": "rotary", "norm_variant_attn": "rmsnorm", "norm_variant_output": "rmsnorm"}
    config = GPTConfig(vocab_size=61, block_size=16, n_layer=2, n_head=4, n_embd=32, **same, **LLAMAS[name])
    model = GPT(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    hf.save(tmp_path, "llama", vars(config), model.state_dict())
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert again.config.model_type == name.split(",")[0]
    same_logits(model, again, 61, T=16)
    kind, back, weights = hf.load(tmp_path)
    assert hf.source(tmp_path)["kind"] == "gpt"
    same_logits(model, ours(back, weights), 61, T=16)
    again.save_pretrained(tmp_path / "theirs")
    _, back, weights = hf.load(tmp_path / "theirs")
    same_logits(model, ours(back, weights), 61, T=16)


@pytest.mark.parametrize("changes, message", [
    ({"norm_variant_attn": "layernorm"}, "norm_variant_attn 'layernorm' has no counterpart in Llama"),
    ({"use_qk_norm": True}, "mlp_variant 'mlp' has no counterpart"),
    ({"mlp_variant": "mine"}, "mlp_variant 'mine' has no counterpart in transformers .only mlp, swiglu and geglu"),
    ({"use_qk_norm": True, "mlp_variant": "swiglu", "bias": True}, "bias True has no counterpart"),
    ({"attn_logit_softcapping": 5.0}, "attn_logit_softcapping 5.0 has no counterpart"),
])  # fmt: skip
def test_what_llama_cannot_express_is_refused(changes, message, monkeypatch):
    monkeypatch.setitem(MLPS, "mine", MLPS["swiglu"])
    same = {"position": "rotary", "norm_variant_attn": "rmsnorm", "norm_variant_output": "rmsnorm"}
    with pytest.raises(ValueError, match=message):
        hf.BACK["llama"][0](vars(GPTConfig(**(same | changes))))


@pytest.mark.parametrize("key, value", [("rope_parameters", {"rope_type": "linear", "factor": 2.0}), ("head_dim", 4),
                                        ("hidden_act", "relu"), ("mlp_bias", True), ("attention_bias", True),
                                        ("rope_scaling", {"type": "linear", "factor": 4.0})])  # fmt: skip
@pytest.mark.parametrize("old", [True, False])
def test_what_of_llama_we_cannot_express_is_refused(key, value, old):
    """`old`: rope_scaling as transformers 4 wrote it, with no rope_parameters beside it; it wins where both are."""
    small = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 1}
    theirs = transformers.LlamaConfig(**small, num_attention_heads=4).to_dict()
    theirs = {k: v for k, v in theirs.items() if not (old and key == "rope_scaling" and k == "rope_parameters")}
    with pytest.raises(ValueError, match="has no counterpart in our GPT"):
        hf.FROM["llama"][0](theirs | {key: value})


@pytest.mark.parametrize("kind", ["gpt2", "roberta", "qwen3"])
def test_quantised_weights_are_refused(kind, tmp_path):
    """Their 8-bit numbers would load as if they were the weights, without the scales that stand beside them."""
    little = {"vocab_size": 16, "block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 16}
    llama = {"position": "rotary", "use_qk_norm": True, "mlp_variant": "swiglu", "norm_variant_attn": "rmsnorm",
             "norm_variant_output": "rmsnorm"}  # fmt: skip
    if kind == "roberta":
        model = RobertaMLM(RobertaConfig(**little, mlp_size=32))
    else:
        model = GPT(GPTConfig(**little, **(llama if kind == "qwen3" else {})))
    hf.save(tmp_path, {"qwen3": "llama"}.get(kind, kind), vars(model.config), model.state_dict())
    assert hf.load(tmp_path)[0] == kind
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "fp8"}}))
    with pytest.raises(ValueError, match="quantised weights"):
        hf.load(tmp_path)


def test_a_window_counts_only_where_transformers_reads_it():
    small = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 4}
    for kind, window in (("llama", None), ("arcee", None), ("mistral", 4), ("qwen3", 4)):
        theirs = small | {"model_type": kind, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}
        assert hf.FROM[kind][0](theirs)["window_size"] == window


@pytest.mark.parametrize("kind", hf.FROM)
def test_what_a_config_leaves_out_is_what_transformers_takes_for_it(kind):
    small = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 4}
    said = {} if kind in ("gpt2", "roberta") else small | {"head_dim": 8}
    whole = transformers.AutoConfig.for_model(kind, **said).to_dict()
    assert hf.FROM[kind][0](said | {"model_type": kind}) == hf.FROM[kind][0](whole)


@pytest.mark.parametrize("kind", ["qwen3", "mistral"])
def test_biases_that_only_llama_has_are_refused(kind):
    small = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 1, "model_type": kind}
    with pytest.raises(ValueError, match=f"attention_bias True with mlp_bias .* in a {kind} has no counterpart"):
        hf.FROM[kind][0](small | {"num_attention_heads": 4, "attention_bias": True})


@pytest.mark.parametrize("layers, window, fits", [
    (["full_attention"] * 2, None, True), (["sliding_attention"] * 2, 4, True), (None, None, True),
    (["full_attention", "sliding_attention"], 4, False), (["full_attention"] * 2, 4, False),
])  # fmt: skip
def test_layers_of_qwen3_that_differ_are_refused(layers, window, fits):
    small = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "model_type": "qwen3",
             "num_attention_heads": 4, "layer_types": layers, "sliding_window": window,
             "use_sliding_window": window is not None, "max_window_layers": 1}  # fmt: skip
    if fits:
        assert hf.FROM["qwen3"][0](small)["window_size"] == window
    else:
        with pytest.raises(ValueError, match="layer_types .* has no counterpart in our GPT"):
            hf.FROM["qwen3"][0](small)


def test_a_qwen3_that_says_not_which_layers_slide_has_none_in_its_first_28():
    small = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "model_type": "qwen3",
             "num_attention_heads": 4, "use_sliding_window": True, "sliding_window": 4}  # fmt: skip
    assert transformers.Qwen3Config(**small).layer_types == ["full_attention"] * 2
    with pytest.raises(ValueError, match="max_window_layers 28 has no counterpart"):
        hf.FROM["qwen3"][0](small)


@pytest.mark.parametrize("kind", ["gpt2", "roberta", "llama"])
def test_layers_beyond_the_configs_are_not_left_out(kind, tmp_path):
    """A model of fewer layers is another model: its hidden states would be wrong without a word."""
    small = {"vocab_size": 16, "block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 16}
    llama = {"position": "rotary", "mlp_variant": "swiglu", "norm_variant_attn": "rmsnorm",
             "norm_variant_output": "rmsnorm"}  # fmt: skip
    if kind == "roberta":
        model = RobertaMLM(RobertaConfig(**small, mlp_size=32))
    else:
        model = GPT(GPTConfig(**small, **(llama if kind == "llama" else {})))
    hf.save(tmp_path, kind, vars(model.config), model.state_dict())
    config = json.loads((tmp_path / "config.json").read_text())
    key = "n_layer" if kind == "gpt2" else "num_hidden_layers"
    assert config[key] == 2
    (tmp_path / "config.json").write_text(json.dumps(config | {key: 1}))
    with pytest.raises(ValueError, match="config.json: 1 layers by it, and 2 in the weights beside it"):
        hf.load(tmp_path)


@pytest.mark.parametrize("change, message", [
    ({"n_layer": 4}, "4 layers by it, and 3 in the weights beside it"),
    ({"n_head": 5}, "5 attention heads do not divide the width 32"),
    ({"vocab_size": 64}, r"transformer.wte.weight is \(64, 32\) by it, and \(61, 32\) in the weights"),
    ({"n_positions": 64}, r"transformer.wpe.weight is \(64, 32\) by it, and \(32, 32\) in the weights"),
    ({"n_inner": 99}, r"mlp.c_proj.weight is \(32, 99\) by it, and \(32, 128\) in the weights"),
    ({"scale_attn_weights": False}, "scale_attn_weights False has no counterpart"),
])  # fmt: skip
def test_a_config_that_contradicts_its_weights_is_named(change, message, tmp_path):
    """The message was of --transfer, or of options of ours, none of which a user had given."""
    theirs().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=f"^{tmp_path}/config.json: .*{message}"):
        hf.load(tmp_path)


@pytest.mark.parametrize("kind", ["gpt2", "roberta"])
def test_parts_of_two_models_are_named(kind, tmp_path):
    """One part of a folder lost, and another model's copied there."""
    from safetensors.torch import load_file, save_file

    small = {"vocab_size": 16, "block_size": 8, "n_layer": 2, "n_head": 2, "mlp_size": 32}
    for width in (16, 32):
        model = RobertaMLM(RobertaConfig(**small, n_embd=width)) if kind == "roberta" else \
            GPT(GPTConfig(**small, n_embd=width))  # fmt: skip
        hf.save(tmp_path / str(width), kind, vars(model.config), model.state_dict())
    file, other = (tmp_path / width / "model.safetensors" for width in ("16", "32"))
    wrong = {n: w for n, w in load_file(other).items() if "mlp.c_proj" in n or ".query." in n}
    save_file(load_file(file) | wrong, file)
    with pytest.raises(ValueError, match=f"^{tmp_path}/16.*(do not fit together|in the weights beside it)"):
        hf.load(tmp_path / "16")


LLAMA = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 4}


@pytest.mark.parametrize("key, value", [("num_hidden_layers", "1"), ("hidden_size", "32"), ("vocab_size", None),
                                        ("num_attention_heads", 0), ("rope_parameters", ["default"]),
                                        ("max_position_embeddings", -8), ("num_key_value_heads", 1.5),
                                        ("tie_word_embeddings", "yes"), ("rms_norm_eps", None), ("rope_theta", -1.0),
                                        ("rope_parameters: rope_theta", 0), ("attention_bias", "no")])  # fmt: skip
def test_a_value_in_a_config_that_no_model_has_is_named(key, value, tmp_path):
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (config["rope_parameters"] if ":" in key else config)[key.split()[-1]] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"/config.json: {key} must be .*, got {re.escape(repr(value))}$"):
        hf.load(tmp_path)


@pytest.mark.parametrize("key, value", [("resid_pdrop", 1.5), ("layer_norm_epsilon", -1e-5),
                                        ("layer_norm_epsilon", "1e-5"), ("layer_norm_epsilon", True)])  # fmt: skip
def test_a_number_in_a_config_that_no_model_has_is_named(key, value, tmp_path):
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=8, vocab_size=7, block_size=4, activation_variant="gelu_tanh"))
    hf.save(tmp_path, "gpt2", vars(model.config), model.state_dict())
    config = json.loads((tmp_path / "config.json").read_text())
    assert key in config
    (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(ValueError, match=f"/config.json: {key} must be a number, 0 or more and below 1, got {value!r}"):
        hf.load(tmp_path)


def test_what_a_config_lacks_is_not_said_of_the_weights(tmp_path):
    theirs = transformers.LlamaConfig(vocab_size=61, hidden_size=32, intermediate_size=40, num_hidden_layers=1,
                                      num_attention_heads=4)  # fmt: skip
    transformers.LlamaForCausalLM(theirs).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "vocab_size"}))
    with pytest.raises(ValueError, match=r"its config.json lacks vocab_size"):
        hf.load(tmp_path)


def test_roberta_goes_and_comes_back(tmp_path):
    torch.manual_seed(0)
    config = transformers.RobertaConfig(
        vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=34, initializer_range=0.2, type_vocab_size=1)  # fmt: skip
    reference = transformers.RobertaForMaskedLM(config).eval()
    with torch.no_grad():
        for p in reference.parameters():
            p.add_(0.05 * torch.randn_like(p))
    reference.save_pretrained(tmp_path / "theirs")
    kind, mine, weights = hf.load(tmp_path / "theirs")
    assert (kind, mine["block_size"], mine["norm_eps"]) == ("roberta", 32, 1e-12)
    assert weights["transformer.h.1.attn.c_attn.weight"].shape == (96, 32)
    hf.save(tmp_path / "ours", kind, mine, weights, classifier_dropout=0.3)
    again = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "ours").eval()
    assert again.config.classifier_dropout == 0.3
    ids = torch.randint(2, 61, (2, 32))
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, reference(ids).logits, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="position 'rope'"):
        hf.roberta_config_back(mine | {"position": "rope"})
    with pytest.raises(ValueError, match="^activation 'softsign' has no counterpart"):
        hf.roberta_config_back(mine | {"activation": "softsign"})


@pytest.mark.parametrize("kind", ["gpt2", "llama", "roberta"])
def test_a_head_in_the_file_counts_where_the_config_calls_it_tied(kind, tmp_path):
    """As in transformers 5, and as it was trained."""
    torch.manual_seed(0)
    shape = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
             "intermediate_size": 48, "max_position_embeddings": 34, "initializer_range": 0.2}  # fmt: skip
    shape |= {"tie_word_embeddings": False}
    reference = {"gpt2": lambda: theirs(tie_word_embeddings=False),
                 "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape)),
                 "roberta": lambda: transformers.RobertaForMaskedLM(transformers.RobertaConfig(**shape))}[kind]().eval()  # fmt: skip
    reference.save_pretrained(tmp_path)
    about = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(about | {"tie_word_embeddings": True}))
    again = type(reference).from_pretrained(tmp_path).eval()
    _, config, weights = hf.load(tmp_path)
    ids = torch.randint(3, 61, (1, 32))
    with torch.no_grad():
        if kind == "roberta":
            model = RobertaMLM(RobertaConfig(**config)).eval()
            model.load_state_dict(weights)
            mine = model(ids[0], [32], torch.arange(32))[None]
        else:
            mine = ours(config, weights)(ids)
        torch.testing.assert_close(mine, again(ids).logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(mine, reference(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "roberta"])
def test_what_is_tied_may_stand_in_a_file_under_either_name(kind, tmp_path):
    """safetensors' save_model, as accelerate's, keeps the first of two names by the alphabet: the head's."""
    from safetensors.torch import save_model

    torch.manual_seed(0)
    shape = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
             "intermediate_size": 48, "max_position_embeddings": 34, "tie_word_embeddings": True}  # fmt: skip
    model = {"gpt2": theirs, "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape)),
             "roberta": lambda: transformers.RobertaForMaskedLM(transformers.RobertaConfig(**shape))}[kind]()  # fmt: skip
    model.save_pretrained(tmp_path)
    wanted = hf.load(tmp_path)
    save_model(model, tmp_path / "model.safetensors")
    found, names = hf.load(tmp_path), hub.read_folder(tmp_path)[1]
    assert not any(re.search("wte|embed_tokens|word_embeddings", name) for name in names)
    assert found[:2] == wanted[:2] and set(found[2]) == set(wanted[2])
    assert all(torch.equal(found[2][name], w) for name, w in wanted[2].items())


def words_agree(folder, reference) -> None:
    """A folder's logits by us, and by transformers' own model of it."""
    _, mine, weights = hf.load(folder)
    model = RobertaMLM(RobertaConfig(**mine)).eval()
    model.load_state_dict(weights)
    ids = torch.randint(2, 61, (1, 32))
    with torch.no_grad():
        torch.testing.assert_close(model(ids[0], [32], torch.arange(32)), reference(ids).logits[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_a_robertas_decoder_bias_is_the_one_that_counts(tied, tmp_path):
    """Also alone, under the name that transformers adds."""
    from safetensors.torch import load_file, save_file

    torch.manual_seed(0)
    config = transformers.RobertaConfig(
        vocab_size=61, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=34, tie_word_embeddings=tied)  # fmt: skip
    transformers.RobertaForMaskedLM(config).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors") | {"lm_head.decoder.bias": torch.arange(61.0)}
    for left_out in ("", "lm_head.bias"):
        some = {name: w for name, w in state.items() if name != left_out}
        save_file(some, tmp_path / "model.safetensors", metadata={"format": "pt"})
        again = transformers.RobertaForMaskedLM.from_pretrained(tmp_path).eval()
        words_agree(tmp_path, again)


def test_an_untied_roberta_has_a_bias_of_its_own(tmp_path):
    torch.manual_seed(0)
    config = transformers.RobertaConfig(
        vocab_size=61, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=34, type_vocab_size=1, tie_word_embeddings=False)  # fmt: skip
    reference = transformers.RobertaForMaskedLM(config).eval()
    with torch.no_grad():
        for p in reference.parameters():
            p.add_(0.3 * torch.randn_like(p))
    reference.save_pretrained(tmp_path)
    words_agree(tmp_path, reference)
    theirs = json.loads((tmp_path / "config.json").read_text())
    with pytest.raises(ValueError, match="pad_token_id must be a number"):
        hf.roberta_config(theirs | {"pad_token_id": None})
    assert hf.roberta_config(theirs | {"pad_token_id": 0})["block_size"] == 33  # a tokenizer may begin with it


def test_nanogpt_checkpoint_loads_as_weights():
    torch.manual_seed(0)
    args = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 8, "bias": False, "vocab_size": 11}
    model = GPT(GPTConfig(**args)).eval()
    state = {f"_orig_mod.{n}": w for n, w in model.state_dict().items()}
    state["_orig_mod.transformer.h.0.attn.bias"] = torch.ones(1, 1, 8, 8)
    config, weights = hf.nanogpt({"model": state, "model_args": args}, "ckpt.pt")
    same_logits(ours(config, weights), model, 11, T=8)
    del args["n_head"]  # which no weight tells, and a default would cut otherwise
    with pytest.raises(ValueError, match="ckpt.pt: its model_args lack some of n_layer, n_head"):
        hf.nanogpt({"model": state, "model_args": args}, "ckpt.pt")


# -----------------------------------------------------------------------------
# bad folders


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('executed')",))


def test_a_malicious_pickle_is_refused(tmp_path):
    theirs().config.save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"transformer.wte.weight": Bomb()}))
    with pytest.raises(ValueError, match="pytorch_model.bin"):
        hf.load(tmp_path)


def test_damage_is_named(tmp_path):
    theirs().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    good = file.read_bytes()
    for bad in (good[:-100], good[:4], b"", b"\xff" * 64):
        file.write_bytes(bad)
        with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
            hf.load(tmp_path)
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 548105171\n")
    with pytest.raises(ValueError, match=r"model\.safetensors is a pointer of git-lfs"):
        hf.load(tmp_path)
    (tmp_path / "config.json").rename(tmp_path / "kept.json")
    with pytest.raises(ValueError, match=r"holds weights, and no config\.json"):
        hf.source(tmp_path)
    (tmp_path / "kept.json").rename(tmp_path / "config.json")
    file.unlink()
    with pytest.raises(ValueError, match="holds no weights"):
        hf.load(tmp_path)
    weights = {"transformer.wte.weight": torch.zeros(61, 32)}
    torch.save(weights, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        hf.load(tmp_path)


def test_an_index_cannot_point_outside_its_folder(tmp_path):
    theirs().config.save_pretrained(tmp_path)
    torch.save({"a": torch.zeros(1)}, tmp_path.parent / "outside.bin")
    index = {"weight_map": {"a": "../outside.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="outside.bin"):
        hf.load(tmp_path)


# -----------------------------------------------------------------------------
# the hub


def test_without_network_a_name_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(ValueError, match="'gpt2' does not exist here, and cannot be downloaded .*refused"):
        hf.load("gpt2")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE"):
        hf.load("gpt2")
    for name in ("../secrets", "/etc/nothing", "a/b/c"):
        with pytest.raises(ValueError, match="no folder with a config.json and no name on the hub"):
            hf.load(name)


def test_what_a_prepare_py_makes_is_not_looked_for_on_the_hub():
    with pytest.raises(ValueError, match="does not exist: `python data/text/prepare.py` makes what belongs there"):
        hub.download("data/text/gpt2")


def test_download_and_cache(monkeypatch, tmp_path):
    """A server that stands for the hub; the second time it is not asked."""
    site = tmp_path / "site" / "someone" / "tiny" / "resolve" / "main"
    reference = theirs()
    reference.save_pretrained(site)
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            asked.append(self.path)

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(tmp_path / "site"))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    try:
        _, config, weights = hf.load("someone/tiny")
        same_logits(ours(config, weights), reference, 61)
        assert asked
        asked.clear()
        assert (hub.download("someone/tiny") / "model.safetensors").is_file()
        assert not asked
        with pytest.raises(ValueError, match="nor a model on the hub"):
            hf.load("someone/else")
        old = tmp_path / "site" / "someone" / "old" / "resolve" / "main"
        reference.save_pretrained(old)  # models of before tokenizer.json
        names = ("vocab.json", "merges.txt", "added_tokens.json")
        for name in names:
            (old / name).write_text("{}")
        assert all((hub.download("someone/old") / name).is_file() for name in names)
        (site.parents[2] / "parts" / "resolve" / "main").mkdir(parents=True)
        parts = site.parents[2] / "parts" / "resolve" / "main"
        (parts / "config.json").write_text("{}")
        (parts / "model.safetensors.index.json").write_text('{"metadata": {}}')
        with pytest.raises(ValueError, match="has no weight_map in model.safetensors.index.json"):
            hf.load("someone/parts")
    finally:
        server.shutdown()


@pytest.mark.parametrize("variable, hub_folder", [("HF_HOME", "hub"), ("HF_HUB_CACHE", "")])
def test_what_transformers_has_cached_is_used(monkeypatch, tmp_path, variable, hub_folder):
    folder = tmp_path / hub_folder / "models--gpt2"
    theirs().save_pretrained(folder / "snapshots" / "abc")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    monkeypatch.setenv(variable, str(tmp_path))
    (tmp_path / "prepare.py").touch()  # one's own, which has nothing to do with a name on the hub
    monkeypatch.chdir(tmp_path)
    assert hub.download("gpt2") == folder / "snapshots" / "abc"


def test_compiled_and_ddp_prefixes_do_not_reach_the_file(tmp_path):
    model = GPT(GPTConfig(vocab_size=11, block_size=8, n_layer=1, n_head=2, n_embd=8))
    weights = {f"module._orig_mod.{n}": w for n, w in model.state_dict().items()}
    assert set(checkpoint.strip(weights)) == set(model.state_dict())
    hf.save(tmp_path, "gpt2", vars(model.config), weights)
    _, _, again = hf.load(tmp_path)
    assert torch.equal(again["transformer.wte.weight"], model.transformer.wte.weight)


def test_a_hub_name_without_a_home_is_one_line(monkeypatch):
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(ValueError, match="'gpt2' is no local folder; without HOME or HF_HOME nothing is downloaded"):
        hub.download("gpt2")
