"""What hf.py and hf_llama.py share: the names of activations, and how a config without a counterpart is refused."""

import math

# ours -> theirs
ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu", "silu": "silu", "tanh": "tanh", "mish": "mish",
               "squared_relu": "relu2", "quick_gelu": "quick_gelu", "relu6": "relu6", "identity": "linear",
               "sigmoid": "sigmoid", "leaky_relu": "leaky_relu"}  # fmt: skip
OTHER_SPELLINGS = {"gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh", "swish": "silu"}


def activation(theirs: str) -> str:
    ours = {v: k for k, v in ACTIVATIONS.items()} | OTHER_SPELLINGS
    if theirs not in ours:
        raise ValueError(f"the activation {theirs!r} has no counterpart here; known are {', '.join(sorted(ours))}")
    return ours[theirs]


def activation_back(ours: dict) -> str:
    name = "activation" if "activation" in ours else "activation_variant"  # an encoder's, a GPT's
    if ours[name] not in ACTIVATIONS:
        raise ValueError(f"{name} {ours[name]!r} has no counterpart in transformers")
    return ACTIVATIONS[ours[name]]


def tie(weights: dict, head: str, said: bool) -> bool:
    """Whether the head is the embedding, which a file may then hold under the head's name alone: safetensors'
    save_model keeps one of two. Where config.json says so and the file has a head that differs, that one counts, as in
    transformers 5."""
    embedding, found = "transformer.wte.weight", weights.get(head)
    if said and found is not None:
        weights.setdefault(embedding, found)
    there = weights[embedding]
    return said and (found is None or found.shape == there.shape and bool((found == there).all()))


def is_number(value) -> bool:
    return type(value) in (int, float)


# what their keys may hold: (keys, in words, test)
WANTED = [
    ("n_positions n_embd n_layer n_head vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size"
     " max_position_embeddings", "a whole number > 0", lambda v: type(v) is int and v > 0),
    ("n_inner num_key_value_heads head_dim sliding_window", "a whole number > 0, or null",
     lambda v: v is None or type(v) is int and v > 0),
    ("layer_norm_epsilon layer_norm_eps rms_norm_eps resid_pdrop hidden_dropout_prob attention_probs_dropout_prob",
     "a number, 0 or more and below 1", lambda v: is_number(v) and 0 <= v < 1),
    ("rope_theta", "a number > 0", lambda v: v is None or is_number(v) and 0 < v < math.inf),
    ("tie_word_embeddings attention_bias mlp_bias use_sliding_window", "true or false",
     lambda v: v in (None, True, False)),
    ("rope_scaling rope_parameters id2label", "an object", lambda v: v is None or isinstance(v, dict)),
]  # fmt: skip


def check(config: dict, file: str) -> None:
    """Refuses a value that no model can have, naming file and key."""
    inner = {f"{name}: ": config[name] for name in ("rope_scaling", "rope_parameters") if name in config}
    for table, found in {"": config, **inner}.items():
        for keys, what, fits in WANTED:
            for key in keys.split():
                if isinstance(found, dict) and key in found and not fits(found[key]):
                    raise ValueError(f"{file}: {table}{key} must be {what}, got {found[key]!r}")


def demand(model: str, wanted: dict, config: dict) -> None:
    """Refuses a config that their architecture cannot express, or ours, naming the key."""
    for key, value in wanted.items():
        if config.get(key, value) != value:
            raise ValueError(f"{key} {config[key]!r} has no counterpart in {model} (only {value!r} has)")
