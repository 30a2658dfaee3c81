"""What hf.py and hf_llama.py share: the names of activations, and how a config without a counterpart is refused."""

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


def activation_back(ours: str) -> str:
    if ours not in ACTIVATIONS:
        raise ValueError(f"activation_variant {ours!r} has no counterpart in transformers")
    return ACTIVATIONS[ours]


def tied(said: bool, head, embedding) -> bool:
    """Whether the head is the embedding. Where config.json says so and the file has a head that differs, that one
    counts, as in transformers 5."""
    return said and (head is None or head.shape == embedding.shape and bool((head == embedding).all()))


def demand(model: str, wanted: dict, config: dict) -> None:
    """Refuses a config that their architecture cannot express, or ours, naming the key."""
    for key, value in wanted.items():
        if config.get(key, value) != value:
            raise ValueError(f"{key} {config[key]!r} has no counterpart in {model} (only {value!r} has)")
