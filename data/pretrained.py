"""Pretrained encoders: what --init_from can name, opened."""

import json
from pathlib import Path
from typing import NamedTuple

from core import checkpoint, hf, hub
from data import examples, qa, vocab


class Encoder(NamedTuple):
    config: dict  # of model.RobertaConfig
    weights: dict  # none from scratch
    tokenizer: dict  # its description, for data/vocab.py
    head: dict  # of a classifier: pooling, pooler_type, names


def open_encoder(source: str, tokenizer: str = "") -> Encoder:
    """A run folder, a checkpoint, a folder in Hugging Face's format, a name on the hub, or scratch."""
    if source == "scratch":
        if not tokenizer:
            raise ValueError("--tokenizer is missing: a model from scratch brings none")
        about = examples.describe(tokenizer)
        pad = examples.token_id(examples.load_tokenizer(about), "pad")
        return Encoder({"vocab_size": vocab.load(about).vocab_size, "pad_id": pad}, {}, about, {})
    if Path(source).exists() and not hub.is_folder(source):
        path = checkpoint.find(source)
        state = checkpoint.load(path)
        kind, meta = state["kind"], state["meta"]
        if kind not in ("roberta", "classifier"):
            raise ValueError(f"--init_from {path} is a {kind!r} checkpoint: an encoder's is needed (pretrain.py)")
        own = vocab.load(meta["tokenizer"]).hash
        if tokenizer and (given := vocab.load(examples.describe(tokenizer)).hash) != own:
            raise ValueError(f"--tokenizer {tokenizer} is {given}, {path} was trained with {own}: leave it out")
        return Encoder(state["model_config"], state["model"], meta["tokenizer"], meta.get("head", {}))
    folder = Path(source) if hub.is_folder(source) else hub.download(source)
    kind, cfg, weights = hf.load(folder)
    if kind != "roberta":
        raise ValueError(f"--init_from {source} holds a {kind}: an encoder (roberta) is needed")
    names = list(json.loads((folder / "config.json").read_text()).get("id2label", {}).values())
    scores = "classifier.dense.weight" in weights
    head = {"pooling": "cls", "pooler_type": "roberta", "names": names} if scores else {}
    return Encoder(cfg, weights, examples.describe(tokenizer) if tokenizer else qa.tokenizer(folder), head)
