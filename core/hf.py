"""Between our models and Hugging Face's: names, shapes and configs of GPT-2, Llama and RoBERTa, and their folders.

    kind, config, weights = hf.load("gpt2")          a folder, or a name on the hub: ours, ready for GPTConfig(**config)
    hf.save(folder, kind, config, weights)           and back: what transformers.AutoModel... loads

It builds no model and imports none.
"""

import json
import re
from pathlib import Path

import torch
from torch import Tensor

from core import checkpoint, disk, hf_llama, hub
from core.files import draft
from core.hf_terms import activation, activation_back, check, demand, tie

Weights = dict[str, Tensor]

# -----------------------------------------------------------------------------
# GPT-2: the names are the same; their Conv1D holds (in, out) where a Linear holds (out, in)

CONV1D = re.compile(r"\.(c_attn|c_proj|c_fc)\.weight$")
GPT2_THEIRS = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}
GPT2_OURS = {"position": "learned", "norm_variant_attn": "layernorm", "norm_variant_output": "layernorm",
             "mlp_variant": "mlp", "attention_variant": "causal", "softmax_variant_attn": "softmax",
             "use_qk_norm": False, "use_parallel_mlp": False, "use_pre_ln": True, "use_peri_ln": False,
             "use_post_ln": False, "attn_logit_softcapping": None, "final_logit_softcapping": None}  # fmt: skip


GPT2_NAMES = {"hidden_size": "n_embd", "max_position_embeddings": "n_positions", "num_attention_heads": "n_head",
              "num_hidden_layers": "n_layer"}  # other models' names, which transformers reads here, too


def gpt2_config(theirs: dict) -> dict:
    demand("our GPT", GPT2_THEIRS, theirs)
    theirs = {GPT2_NAMES.get(key, key): value for key, value in theirs.items()}
    width = theirs.get("n_embd", 768)
    return {
        "block_size": theirs.get("n_positions", 1024), "vocab_size": theirs.get("vocab_size", 50257),
        "n_layer": theirs.get("n_layer", 12), "n_head": theirs.get("n_head", 12), "n_embd": width,
        "mlp_size": theirs.get("n_inner") or 4 * width, "bias": True, "dropout": theirs.get("resid_pdrop", 0.1),
        "activation_variant": activation(theirs.get("activation_function", "gelu_new")),
        "wte_weight_tying": theirs.get("tie_word_embeddings", True),
        "norm_eps": theirs.get("layer_norm_epsilon", 1e-5), **GPT2_OURS,
    }  # fmt: skip


def gpt2_config_back(ours: dict) -> dict:
    demand("GPT-2", GPT2_OURS, ours)
    if ours.get("n_kv_group") not in (None, ours["n_head"]):
        raise ValueError(f"n_kv_group {ours['n_kv_group']} has no counterpart in GPT-2 (only n_head has)")
    if (ours.get("window_size") or ours["block_size"]) < ours["block_size"]:
        raise ValueError(f"window_size {ours['window_size']} has no counterpart in GPT-2 (only None has)")
    hidden = ours.get("mlp_size") or int(ours["mlp_expansion_factor"] * ours["n_embd"])
    return {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": ours["vocab_size"],
        "n_positions": ours["block_size"], "n_embd": ours["n_embd"], "n_layer": ours["n_layer"],
        "n_head": ours["n_head"], "n_inner": hidden, "activation_function": activation_back(ours),
        "resid_pdrop": ours["dropout"], "embd_pdrop": ours["dropout"], "attn_pdrop": ours["dropout"],
        "layer_norm_epsilon": ours.get("norm_eps", 1e-5), "tie_word_embeddings": ours["wte_weight_tying"],
        "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip


def gpt2_weights(theirs: Weights, config: dict) -> Weights:
    out = {}
    for name, w in theirs.items():
        if re.search(r"\.attn\.(masked_)?bias$", name):  # the causal mask, which old versions saved
            continue
        if not name.startswith(("transformer.", "lm_head.", "score.")):
            name = "transformer." + name  # GPT2Model's, without a head
        out[name] = (w.t() if CONV1D.search(name) else w).float().contiguous()
    config["wte_weight_tying"] = tie(out, "lm_head.weight", config["wte_weight_tying"])
    if config["wte_weight_tying"]:
        out["lm_head.weight"] = out["transformer.wte.weight"]
    return out


def gpt2_weights_back(ours: Weights, config: dict) -> Weights:
    out = {n: (w.t() if CONV1D.search(n) else w).float().contiguous() for n, w in ours.items()}
    if config["wte_weight_tying"]:
        out.pop("lm_head.weight", None)
    for name in [n for n in out if n.endswith(".weight")]:  # they have a bias everywhere, we not always
        if CONV1D.search(name) or ".ln_" in name:
            size = out[name].shape[-1]
            out.setdefault(name.removesuffix("weight") + "bias", torch.zeros(size))
    return out


# -----------------------------------------------------------------------------
# RoBERTa: other names, q, k and v apart, positions from pad + 1

ROBERTA = {
    "transformer.wte": "roberta.embeddings.word_embeddings",
    "transformer.ln_emb": "roberta.embeddings.LayerNorm",
    "transformer.h.{}.attn.c_proj": "roberta.encoder.layer.{}.attention.output.dense",
    "transformer.h.{}.ln_1": "roberta.encoder.layer.{}.attention.output.LayerNorm",
    "transformer.h.{}.mlp.c_fc": "roberta.encoder.layer.{}.intermediate.dense",
    "transformer.h.{}.mlp.c_proj": "roberta.encoder.layer.{}.output.dense",
    "transformer.h.{}.ln_2": "roberta.encoder.layer.{}.output.LayerNorm",
    "lm_head.dense": "lm_head.dense",
    "lm_head.ln": "lm_head.layer_norm",
    "lm_head": "lm_head",
    "lm_head.decoder": "lm_head.decoder",
    "classifier.dense": "classifier.dense",
    "classifier.out_proj": "classifier.out_proj",
}
QKV = "roberta.encoder.layer.{}.attention.self.{}.{}"


def roberta_config(theirs: dict) -> dict:
    demand("our RoBERTa", {"position_embedding_type": "absolute", "is_decoder": False}, theirs)
    pad = theirs.get("pad_token_id", 1)
    if type(pad) is not int or pad < 0:
        raise ValueError(f"pad_token_id must be a number in config.json, as positions are counted from it; got {pad!r}")
    return {
        "vocab_size": theirs.get("vocab_size", 50265), "n_layer": theirs.get("num_hidden_layers", 12),
        "block_size": theirs.get("max_position_embeddings", 512) - pad - 1, "pad_id": pad,
        "n_head": theirs.get("num_attention_heads", 12), "n_embd": theirs.get("hidden_size", 768),
        "mlp_size": theirs.get("intermediate_size", 3072), "activation": activation(theirs.get("hidden_act", "gelu")),
        "position": "absolute", "hidden_dropout": theirs.get("hidden_dropout_prob", 0.1),
        "attn_dropout": theirs.get("attention_probs_dropout_prob", 0.1),
        "norm_eps": theirs.get("layer_norm_eps", 1e-12), "tie": theirs.get("tie_word_embeddings", True),
    }  # fmt: skip


def roberta_config_back(ours: dict) -> dict:
    ours = {**ours, "attention": {"plain": "exact"}.get(ours.get("attention"), ours.get("attention", "exact"))}
    demand("RoBERTa", {"position": "absolute", "attention": "exact", "attn_bias": True}, ours)
    if ours.get("attn_size") not in (None, ours["n_embd"]):
        raise ValueError(f"attn_size {ours['attn_size']} has no counterpart in RoBERTa (only n_embd has)")
    return {
        "model_type": "roberta", "architectures": ["RobertaForMaskedLM"], "vocab_size": ours["vocab_size"],
        "max_position_embeddings": ours["block_size"] + ours["pad_id"] + 1, "pad_token_id": ours["pad_id"],
        "num_hidden_layers": ours["n_layer"], "num_attention_heads": ours["n_head"], "hidden_size": ours["n_embd"],
        "intermediate_size": ours["mlp_size"], "hidden_act": activation_back(ours),
        "hidden_dropout_prob": ours["hidden_dropout"], "attention_probs_dropout_prob": ours["attn_dropout"],
        "layer_norm_eps": ours["norm_eps"], "tie_word_embeddings": ours["tie"], "type_vocab_size": 1,
        "bos_token_id": 0, "eos_token_id": 2,
    }  # fmt: skip


def renamed(names: dict[str, str], weights: Weights, n_layer: int) -> Weights:
    """The weights and biases that the table knows, under their new names."""
    out = {}
    for old, new in names.items():
        for i in range(n_layer) if "{}" in old else [0]:
            for part in ("weight", "bias"):
                if (name := f"{old.format(i)}.{part}") in weights:
                    out[f"{new.format(i)}.{part}"] = weights[name].float()
    return out


def roberta_weights(theirs: Weights, config: dict) -> Weights:
    if not any(n.startswith("roberta.") for n in theirs):  # RobertaModel's, without a head
        theirs = {f"roberta.{n}": w for n, w in theirs.items()}
    out = renamed({new: old for old, new in ROBERTA.items()}, theirs, config["n_layer"])
    for i in range(config["n_layer"]):
        for part in ("weight", "bias"):
            qkv = [theirs[QKV.format(i, name, part)].float() for name in ("query", "key", "value")]
            out[f"transformer.h.{i}.attn.c_attn.{part}"] = torch.cat(qkv)
    # every token is of type 0, so that row is part of the position
    place = theirs["roberta.embeddings.position_embeddings.weight"].float()[config["pad_id"] + 1 :]
    out["transformer.wpe.weight"] = place + theirs["roberta.embeddings.token_type_embeddings.weight"].float()[0]
    config["tie"] = tie(out, "lm_head.decoder.weight", config["tie"])
    if (bias := out.pop("lm_head.decoder.bias", None)) is not None:  # lm_head.bias is its copy, if it is there
        out["lm_head.bias"] = bias
    if config["tie"]:  # a copy
        out.pop("lm_head.decoder.weight", None)
    return out


def roberta_weights_back(ours: Weights, config: dict) -> Weights:
    out = renamed(ROBERTA, ours, config["n_layer"])
    for i in range(config["n_layer"]):
        for part in ("weight", "bias"):
            qkv = ours[f"transformer.h.{i}.attn.c_attn.{part}"].float().chunk(3)
            for name, w in zip(("query", "key", "value"), qkv, strict=True):
                out[QKV.format(i, name, part)] = w.contiguous()
    place = ours["transformer.wpe.weight"].float()
    unused = torch.zeros(config["pad_id"] + 1, place.shape[1])
    out["roberta.embeddings.position_embeddings.weight"] = torch.cat((unused, place))
    out["roberta.embeddings.token_type_embeddings.weight"] = torch.zeros(1, place.shape[1])
    if "lm_head.bias" in out:
        out["lm_head.decoder.bias"] = out["lm_head.bias"].clone()
        if config["tie"]:
            out["lm_head.decoder.weight"] = out["roberta.embeddings.word_embeddings.weight"].clone()
    return out


FROM = {"gpt2": (gpt2_config, gpt2_weights), "roberta": (roberta_config, roberta_weights)}
FROM |= dict.fromkeys(hf_llama.TYPES, (hf_llama.config, hf_llama.weights))
BACK = {"gpt2": (gpt2_config_back, gpt2_weights_back), "roberta": (roberta_config_back, roberta_weights_back),
        "llama": (hf_llama.config_back, hf_llama.weights_back)}  # fmt: skip


def nanogpt(state: dict, source: str) -> tuple[dict, Weights]:
    """nanoGPT's ckpt.pt as (config, weights) of ours."""
    args = state["model_args"]
    config = {k: args[k] for k in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size", "bias") if k in args}
    if len(config) < 6:
        raise ValueError(f"{source}: its model_args lack some of n_layer, n_head, n_embd, block_size, vocab_size, bias")
    config |= {"dropout": args.get("dropout", 0.0), "activation_variant": "gelu", "wte_weight_tying": True}
    weights = {n: w for n, w in checkpoint.strip(state["model"]).items() if not n.endswith(".attn.bias")}
    checkpoint.check_finite(weights, source)
    return config, weights


# -----------------------------------------------------------------------------
# both


def load(where: str | Path) -> tuple[str, dict, Weights]:
    """(model_type, config, weights) in our terms, from a folder or the hub."""
    folder = Path(where) if hub.is_folder(where) else hub.download(str(where))
    config, weights = hub.read_folder(folder)
    kind = config.get("model_type")
    if kind not in [*FROM]:  # it may be a list
        raise ValueError(f"{where} holds a model of type {kind!r}; {' and '.join(FROM)} can be read")
    if config.get("quantization_config"):  # their weights are numbers of 8 bits or fewer, with scales beside them
        raise ValueError(f"{where} holds quantised weights, as quantization_config in its config.json says: wanted is"
                         " the model in float32, float16 or bfloat16")  # fmt: skip
    to_config, to_weights = FROM[kind]
    weights = checkpoint.strip(weights)
    layers = max((int(m[1]) + 1 for n in weights if (m := re.search(r"\b(?:h|layers?)\.(\d+)\.", n))), default=0)
    check(config, f"{where}/config.json")
    try:
        what = "config.json lacks"
        ours = to_config(config)
        if ours["n_embd"] % ours["n_head"]:
            raise ValueError(f"{ours['n_head']} attention heads do not divide the width {ours['n_embd']}")
        if layers != ours["n_layer"]:  # of more, the last would be left out
            raise ValueError(f"{ours['n_layer']} layers by it, and {layers} in the weights beside it")
        what = "weights lack"
        weights = to_weights(weights, ours)
        C, shapes = ours["n_embd"], {n: tuple(w.shape) for n, w in weights.items()}
        for name, shape in (("wte", (ours["vocab_size"], C)), ("wpe", (ours["block_size"], C)),
                            ("h.0.mlp.c_proj", (C, ours["mlp_size"]))):  # fmt: skip
            if (there := shapes.get(f"transformer.{name}.weight", shape)) != shape:
                raise ValueError(f"transformer.{name}.weight is {shape} by it, and {there} in the weights beside it")
    except KeyError as e:
        raise ValueError(f"{where}: its {what} {e.args[0]}") from None
    except (TypeError, AttributeError, ZeroDivisionError) as e:
        raise ValueError(f"{where}: a value in its config.json is of the wrong type: {e}") from None
    except (RuntimeError, IndexError) as e:  # of torch: parts of two models, say
        raise ValueError(f"{where}: its weights do not fit together: {e}") from None
    except ValueError as e:
        raise ValueError(f"{where}/config.json: {e}") from None
    checkpoint.check_finite(weights, where)
    return kind, ours, weights


def save(folder: str | Path, kind: str, config: dict, weights: Weights, **more) -> None:
    """config.json and model.safetensors; `more` goes into config.json (architectures, id2label, ...)."""
    import safetensors.torch

    folder = Path(folder)
    to_config, to_weights = BACK[kind]
    theirs = to_config(config) | more
    folder.mkdir(parents=True, exist_ok=True)
    weights = to_weights({n: w.cpu() for n, w in checkpoint.strip(weights).items()}, config)
    temporary = draft(folder / "model.safetensors")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # as the user's files are: the library makes them for their owner alone
        safetensors.torch.save_file(weights, temporary, metadata={"format": "pt"})
        temporary.chmod(mode)
    except safetensors.SafetensorError as e:
        temporary.unlink(missing_ok=True)
        number = re.search(r"os error (\d+)", str(e))  # all that it keeps of what the disk said
        raise disk.full(folder, disk.size_of(weights), OSError(int(number[1]), "")) if number else e from None
    temporary.replace(folder / "model.safetensors")
    text = json.dumps(theirs, indent=2) + "\n"
    disk.replace(folder / "config.json", lambda f: f.write(text.encode()))


def source(where: str | Path) -> dict:
    """Weights to start from, whoever made them: {kind, config, model, meta}, in our terms.

    One of our checkpoints or run folders, nanoGPT's ckpt.pt, a folder in the Hugging Face format, a name on the hub.
    """
    path = Path(where)
    if path.is_dir():
        try:
            path = checkpoint.find(path)
        except ValueError:
            if any((path / name).is_file() for name in hub.FILES) and not hub.is_folder(path):
                raise ValueError(f"{path} holds weights, and no config.json that says of which model") from None
            if not hub.is_folder(path):
                raise
    if path.is_file():
        try:
            state = checkpoint.load(path)
        except ValueError:
            state = checkpoint.load_data(path)
            if not isinstance(state, dict) or "model_args" not in state:
                raise
            config, weights = nanogpt(state, str(where))
            return {"kind": "gpt", "config": config, "model": weights, "meta": {}}
        return {"kind": state["kind"], "config": state["model_config"], "model": state["model"], "meta": state["meta"]}
    if not path.is_dir() and (path.suffix in (".pt", ".ckpt") or path.is_absolute()):
        raise ValueError(f"{where} does not exist: a checkpoint, a run folder or a model's name is wanted")
    kind, config, weights = load(where)
    return {"kind": kind if kind == "roberta" else "gpt", "config": config, "model": weights, "meta": {}}
