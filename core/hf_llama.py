"""Llama and its relatives in Hugging Face's terms: rotary positions, RMSNorm, a gated MLP, weights apart.

    mistral: with a sliding window    qwen3: with normalised queries and keys    arcee: with an MLP that has no gate
"""

import torch
from torch import Tensor

from core.hf_terms import activation, activation_back, demand, tie

TYPES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen3": "Qwen3ForCausalLM",
         "arcee": "ArceeForCausalLM"}  # fmt: skip
BIASED = ("llama", "arcee")  # may have biases in linear layers
# not Llama's
DEFAULTS = {"mistral": {"sliding_window": 4096, "num_key_value_heads": 8, "max_position_embeddings": 131072},
            "qwen3": {"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28,
                      "max_position_embeddings": 32768},
            "arcee": {"hidden_act": "relu2", "rms_norm_eps": 1e-5, "max_position_embeddings": 4096}}  # fmt: skip
GATES = {"swiglu": "silu", "geglu": "gelu"}
OURS = {"position": "rotary", "norm_variant_attn": "rmsnorm", "norm_variant_output": "rmsnorm", "use_pre_ln": True,
        "attention_variant": "causal", "softmax_variant_attn": "softmax", "use_parallel_mlp": False,
        "use_peri_ln": False, "use_post_ln": False, "attn_logit_softcapping": None,
        "final_logit_softcapping": None}  # fmt: skip
LAYER = {"ln_1": "input_layernorm", "ln_2": "post_attention_layernorm", "attn.c_proj": "self_attn.o_proj",
         "attn.q_norm": "self_attn.q_norm", "attn.k_norm": "self_attn.k_norm",
         "mlp.c_proj": "mlp.down_proj"}  # fmt: skip
OTHERS = {"transformer.wte.weight": "model.embed_tokens.weight", "transformer.ln_f.weight": "model.norm.weight",
          "lm_head.weight": "lm_head.weight", "score.weight": "score.weight"}  # fmt: skip


def config(theirs: dict) -> dict:
    theirs = DEFAULTS.get(theirs["model_type"], {}) | theirs
    kind, heads = theirs["model_type"], theirs.get("num_attention_heads", 32)
    rope = theirs.get("rope_scaling") or theirs.get("rope_parameters") or {}  # the old key wins, as in transformers
    width, act = theirs.get("hidden_size", 4096), theirs.get("hidden_act", "silu")
    demand("our GPT", {"rope_type": "default"}, {"rope_type": rope.get("rope_type") or rope.get("type") or "default"})
    demand("our GPT", {"head_dim": width // heads}, {k: v for k, v in theirs.items() if v is not None})
    biased = theirs.get("attention_bias", False)
    if biased and kind not in BIASED or theirs.get("mlp_bias", False) != biased:
        raise ValueError(f"attention_bias {biased} with mlp_bias {theirs.get('mlp_bias', False)} in a {kind} has no"
                         " counterpart in our GPT (all linear layers have biases, or none)")  # fmt: skip
    slides = kind == "mistral" or kind == "qwen3" and theirs.get("use_sliding_window")  # the others read no such key
    window = theirs.get("sliding_window") if slides else None
    if window and kind == "qwen3" and not theirs.get("layer_types"):
        demand("our GPT", {"max_window_layers": 0}, theirs)
    layers = "sliding_attention" if window else "full_attention"
    if kind == "qwen3" and {*(theirs.get("layer_types") or [layers])} != {layers}:
        raise ValueError(f"layer_types {theirs['layer_types']} has no counterpart in our GPT (only {layers!r} has)")
    mlp = "mlp" if kind == "arcee" else {v: k for k, v in GATES.items()}.get(act)
    if mlp is None:
        raise ValueError(f"hidden_act {act!r} has no counterpart in our GPT (only {' and '.join(GATES.values())} have)")
    return OURS | {
        "block_size": theirs.get("max_position_embeddings", 2048), "vocab_size": theirs["vocab_size"],
        "n_layer": theirs["num_hidden_layers"], "n_head": heads, "n_embd": width,
        "n_kv_group": theirs.get("num_key_value_heads") or heads, "mlp_size": theirs["intermediate_size"],
        "mlp_variant": mlp, "activation_variant": activation(act) if mlp == "mlp" else "gelu", "bias": biased,
        "use_qk_norm": kind == "qwen3", "window_size": window, "norm_eps": theirs.get("rms_norm_eps", 1e-6),
        "rope_base": rope.get("rope_theta") or theirs.get("rope_theta") or 10000.0,
        "wte_weight_tying": theirs.get("tie_word_embeddings", False), "dropout": 0.0,
    }  # fmt: skip


def config_back(ours: dict) -> dict:
    demand("Llama or its relatives", OURS, ours)
    gated, window = ours["mlp_variant"] in GATES, ours.get("window_size")
    if not gated and ours["mlp_variant"] != "mlp":
        raise ValueError(f"mlp_variant {ours['mlp_variant']!r} has no counterpart in transformers (only mlp,"
                         f" {' and '.join(GATES)} have)")  # fmt: skip
    window = window if window and window < ours["block_size"] else None
    kind = "qwen3" if ours["use_qk_norm"] else "mistral" if window else "llama" if gated else "arcee"
    if not gated and kind != "arcee":
        raise ValueError("mlp_variant 'mlp' has no counterpart in transformers beside use_qk_norm or window_size")
    if ours["bias"] and kind not in BIASED:
        raise ValueError("bias True has no counterpart in transformers beside use_qk_norm or window_size")
    act = GATES[ours["mlp_variant"]] if gated else activation_back(ours)
    base = ours.get("rope_base", 10000.0)
    windows = {"mistral": {"sliding_window": window}, "qwen3": {"use_sliding_window": window is not None,
               "sliding_window": window, "max_window_layers": 0}}  # fmt: skip
    return {
        "model_type": kind, "architectures": [TYPES[kind]], "vocab_size": ours["vocab_size"],
        "max_position_embeddings": ours["block_size"], "hidden_size": ours["n_embd"],
        "intermediate_size": ours.get("mlp_size") or int(ours["mlp_expansion_factor"] * ours["n_embd"]),
        "num_hidden_layers": ours["n_layer"], "num_attention_heads": ours["n_head"],
        "num_key_value_heads": ours.get("n_kv_group") or ours["n_head"], "head_dim": ours["n_embd"] // ours["n_head"],
        "hidden_act": act, "rms_norm_eps": ours.get("norm_eps", 1e-5), "rope_theta": base,
        "rope_parameters": {"rope_type": "default", "rope_theta": base},
        "tie_word_embeddings": ours["wte_weight_tying"], "attention_bias": ours["bias"], "mlp_bias": ours["bias"],
        "bos_token_id": None, "eos_token_id": None, **windows.get(kind, {}),
    }  # fmt: skip


def parts(ours: dict) -> tuple[dict[str, list[str]], list[int]]:
    """Our fused matrices as theirs: {ours: their parts in order}, and the rows of q, k and v."""
    size, gated = ours["n_embd"] // ours["n_head"], ours["mlp_variant"] in GATES
    heads = (ours["n_head"], *[ours.get("n_kv_group") or ours["n_head"]] * 2)
    fused = {"attn.c_attn": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
             "mlp.c_fc": ["mlp.gate_proj", "mlp.up_proj"] if gated else ["mlp.up_proj"]}  # fmt: skip
    return fused, [n * size for n in heads]


def weights(theirs: dict[str, Tensor], ours: dict) -> dict[str, Tensor]:
    if not any(n.startswith("model.") for n in theirs):  # saved without its head
        theirs = {f"model.{n}": w for n, w in theirs.items()}
    out = {mine: theirs[name].float() for mine, name in OTHERS.items() if name in theirs}
    fused, _ = parts(ours)
    for i in range(ours["n_layer"]):
        for part in ("weight", "bias"):
            for mine, name in LAYER.items():
                if (w := theirs.get(f"model.layers.{i}.{name}.{part}")) is not None:
                    out[f"transformer.h.{i}.{mine}.{part}"] = w.float()
            for mine, names in fused.items():
                if part == "weight" or ours["bias"]:
                    found = [theirs[f"model.layers.{i}.{name}.{part}"].float() for name in names]
                    out[f"transformer.h.{i}.{mine}.{part}"] = torch.cat(found)
    ours["wte_weight_tying"] = tie(out, "lm_head.weight", ours["wte_weight_tying"])
    if ours["wte_weight_tying"]:
        out["lm_head.weight"] = out["transformer.wte.weight"]
    return out


def weights_back(mine: dict[str, Tensor], ours: dict) -> dict[str, Tensor]:
    out = {name: mine[key].float() for key, name in OTHERS.items() if key in mine}
    if ours["wte_weight_tying"]:
        out.pop("lm_head.weight", None)
    fused, rows = parts(ours)
    for i in range(ours["n_layer"]):
        for part in ("weight", "bias"):
            for key, name in LAYER.items():
                if (w := mine.get(f"transformer.h.{i}.{key}.{part}")) is not None:
                    out[f"model.layers.{i}.{name}.{part}"] = w.float()
            for key, names in fused.items():
                if (w := mine.get(f"transformer.h.{i}.{key}.{part}")) is not None:
                    pieces = w.float().split(rows) if len(names) == 3 else w.float().chunk(len(names))
                    for name, piece in zip(names, pieces, strict=True):
                        out[f"model.layers.{i}.{name}.{part}"] = piece.contiguous()
    return out
