"""Pretrained encoders: what --init_from can name, opened; and written for transformers."""

import copy
import json
from pathlib import Path
from typing import NamedTuple

import torch

from core import checkpoint, config, disk, files, hf, hub, transfer
from data import encoding, qa, vocab
from model import RobertaConfig, RobertaMLM

BLOCKS = " --transfer attn mlp norm, blocks alone, with a --tokenizer"
WORDS = ("tokenizer.json", "vocab.json")  # a folder with one of them says what its ids mean
INPUTS = ["input_ids", "attention_mask"]  # transformers 4 adds types of tokens, which its GPT-2 takes for more tokens

class Encoder(NamedTuple):
    config: dict  # of model.RobertaConfig
    weights: dict  # none from scratch
    tokenizer: dict  # its description, for data/vocab.py
    head: dict  # of a classifier: pooling, pooler_type, names


def open_encoder(source: str, tokenizer: str = "", parts: list[str] | tuple = ("all",)) -> Encoder:
    """A run folder, a checkpoint, a folder in Hugging Face's format, a name on the hub, or scratch. It may be any model
    where `parts` name nothing but parts of blocks and a tokenizer is given."""
    blocks = not {"embed", "head"} & set(transfer.wanted(parts))
    if source == "scratch" or blocks and tokenizer:
        if not tokenizer:
            raise ValueError("--tokenizer is missing: a model from scratch brings none")
        about = encoding.describe(tokenizer)
        pad = encoding.token_id(encoding.load_tokenizer(about), "pad")
        ours = {"vocab_size": vocab.load(about).vocab_size, "pad_id": pad}
        if source == "scratch":
            return Encoder(ours, {}, about, {})
        found = hf.source(source)
        return Encoder({**encoder_shape(found), **ours}, found["model"], about, {})
    if Path(source).exists() and not hub.is_folder(source):
        path = checkpoint.find(source)
        state = checkpoint.load(path)
        cfg, meta = dict(state["model_config"]), state["meta"]
        if cfg.pop("backbone", state["kind"]) not in ("roberta", "classifier"):  # a reward model is what it stands on
            raise ValueError(f"--init_from {path} is a {state['kind']!r} checkpoint: an encoder's is needed"
                             f" (pretrain.py), or{BLOCKS}")  # fmt: skip
        compare(tokenizer, meta["tokenizer"], path)
        return Encoder(cfg, state["model"], meta["tokenizer"], meta.get("head", {}))
    folder = Path(source) if hub.is_folder(source) else hub.download(source)
    kind, cfg, weights = hf.load(folder)
    if kind != "roberta":
        raise ValueError(f"--init_from {source} holds a {kind}: an encoder (roberta) is needed, or{BLOCKS}")
    out = weights.get("classifier.out_proj.weight")
    names = [] if out is None else label_names(files.read_json(folder / "config.json"), len(out))
    head = {"pooling": "cls", "pooler_type": "roberta", "names": names} if names else {}
    own = None if tokenizer and not any((folder / name).is_file() for name in WORDS) else qa.tokenizer(folder)
    compare(tokenizer, own, source)
    return Encoder(cfg, weights, encoding.describe(tokenizer) if tokenizer else own, head)


def compare(tokenizer: str, own: dict | None, source: str | Path) -> None:
    """Refuses a --tokenizer that reads texts otherwise than the weights' own, if they bring one."""
    if tokenizer and own:
        given, before = encoding.describe(tokenizer), vocab.load(own).hash
        if (found := vocab.load(given).hash) != before and not vocab.alike(given, own):
            raise ValueError(f"--tokenizer {tokenizer} is {found}, {source} was trained with {before}: leave it out,"
                             f" or{BLOCKS}")  # fmt: skip


def label_names(about: dict, n: int) -> list[str]:
    """A classifier's labels, by number; without names in its config.json they are LABEL_0 ... Empty if it does not give
    each text one label: a single number is a score, and several may be scores, or labels of which any number hold."""
    if n < 2 or about.get("problem_type") not in (None, "single_label_classification"):
        return []
    table = {str(i): name for i, name in (about.get("id2label") or {}).items()}
    return [str(table.get(str(i), f"LABEL_{i}")) for i in range(n)]


def tokenizer_of(path: str, found: dict, given: str = "") -> dict | None:
    """The tokenizer of what hf.source found. For a folder in Hugging Face's format or a name on the hub: the one given,
    else the one that lies there."""
    if found["meta"] or Path(path).exists() and not hub.is_folder(path):
        return found["meta"].get("tokenizer")
    if given:
        return encoding.describe(given)
    return qa.tokenizer(Path(path) if hub.is_folder(path) else hub.download(path))


def open_weights(source: str, tokenizer: str, parts: list[str], run: str = "") -> tuple[dict, dict, dict | None]:
    """(config, weights, tokenizer's description) to pretrain from: of what --init_from names, or of `run`, the folder
    whose last checkpoint --reset takes."""
    if run:
        state, path = checkpoint.newest(run)
        found = {"config": state["model_config"], "model": state["model"], "meta": state["meta"], "kind": "roberta"}
    else:
        path, found = source, hf.source(source)
    about = tokenizer_of(path, found, tokenizer)
    if tokenizer and about and {"embed", "head"} & set(transfer.wanted(parts)):
        given, own = (vocab.load(t).hash for t in (encoding.describe(tokenizer), about))
        if given != own:
            raise ValueError(f"--tokenizer {tokenizer} is {given}, {path} was trained with {own}: leave it out,"
                             " or --transfer attn mlp norm")  # fmt: skip
    if found["config"].get("backbone", found["kind"]) not in ("roberta", "classifier") and "all" in parts:
        raise ValueError(f"--init_from {path} is a {found['kind']!r} model: name parts, --transfer attn mlp")
    return encoder_shape(found), found["model"], about


def encoder_shape(found: dict) -> dict:
    """A found model's config, in an encoder's names; of a GPT only the sizes mean the same."""
    c = found["config"]
    if c.get("backbone", found["kind"]) in ("roberta", "classifier"):
        return {k: v for k, v in c.items() if k in RobertaConfig.__dataclass_fields__}
    width = int(c.get("mlp_expansion_factor", 4) * c["n_embd"])
    return {"mlp_size": c.get("mlp_size") or width, **{k: c[k] for k in ("n_layer", "n_head", "n_embd")}}


def shape(cfg: RobertaConfig) -> dict:
    """What makes an encoder another one; of n_head, position and activation no weight may tell."""
    same = {"attn_size": cfg.attn_size or cfg.n_embd, "attention": cfg.attention.replace("plain", "exact")}
    names = "n_layer", "n_embd", "mlp_size", "n_head", "attn_size", "attn_bias", "attention", "position", "activation"
    return {name: same.get(name, getattr(cfg, name)) for name in names}


def idle(args, cfg: RobertaConfig) -> list[str]:
    """A note of each field of --model that acts on nothing beside the others; an experiment said so of its keys."""
    cfg = copy.copy(cfg)
    cfg.given, cfg.keys = set(args.model), {name: f"--model {name}" for name in vars(cfg)}
    if hasattr(args, "keys"):
        return []
    return [f"note: {line}" for line in config.idle(cfg, {"rope_base rope_scale": "--position=rope"})]


def check_fit(model, weights: dict, there: dict, source: str, parts: list[str], strict: bool = True) -> None:
    """Where all is to be taken, the encoder is the same there and here; not strict: what differs is said."""
    if strict and "all" in parts:
        before = shape(config.build(RobertaConfig, there, source))
        for name, now in shape(model.config).items():
            if now != before[name]:
                raise ValueError(f"--model {name} is {before[name]!r} in {source} and cannot become {now!r}: leave it"
                                 " out, or name the parts to take with --transfer")  # fmt: skip
    ours = {n for n in model.state_dict() if n.startswith("transformer.")}
    theirs = {n for n in weights if n.startswith("transformer.")}
    for names, what in ((sorted(ours - theirs), "lacks"), (sorted(theirs - ours), "has, and this model has not,")):
        if names and "all" in parts:
            more = f" and {len(names) - 1} more" if names[1:] else ""
            if strict:
                raise ValueError(f"{source} {what} {names[0]}{more}: the encoder is built otherwise there")
            print(f"{source} {what} {names[0]}{more}")


def special_tokens(about: dict) -> tuple[dict[str, str], dict[str, int]]:
    """An encoder's special tokens in transformers' terms: words for tokenizer_config.json, ids for config.json."""
    tokenizer = encoding.load_tokenizer(about)
    names = {"bos_token": "start", "eos_token": "end", "cls_token": "start", "sep_token": "end", "pad_token": "pad",
             "mask_token": "mask", "unk_token": "unk"}  # fmt: skip
    found = {k: next(filter(tokenizer.get_vocab().__contains__, encoding.NAMES[v]), None) for k, v in names.items()}
    words = {k: word for k, word in found.items() if word}
    return words, {f"{k}_id": tokenizer.token_to_id(words[k]) for k in ("bos_token", "eos_token") if k in words}


@torch.no_grad()
def gap(cfg: dict, weights: dict, folder: Path) -> float:
    """The largest difference between logits of the model and of what was written of it for transformers."""
    _, again, theirs = hf.load(folder)
    T = cfg["block_size"]
    ids = torch.randint(0, cfg["vocab_size"], (T,), generator=torch.Generator().manual_seed(0))

    def logits(cfg: dict, weights: dict) -> torch.Tensor:
        model = RobertaMLM(config.build(RobertaConfig, cfg, folder)).eval()
        checkpoint.put(model, {name: weights[name] for name in model.state_dict() if name in weights}, folder)
        return model(ids, [T], torch.arange(T)[-64:])

    return (logits(cfg, weights) - logits(again, theirs)).abs().max().item()


def export(folder: Path, state: dict, class_prob: float, strict: bool = False) -> str:
    """The tokenizer and, where transformers has such a model (strict: else an error), the model; says what it wrote."""
    cfg, about = state["model_config"], state["meta"]["tokenizer"]
    words, ids = special_tokens(about)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": cfg["block_size"],
                "model_input_names": INPUTS, **words}  # fmt: skip
    said = "ckpt.pt, tokenizer, and the Hugging Face format"
    try:
        hf.save(folder, "roberta", cfg, state["model"], classifier_dropout=class_prob, **ids)
        if not strict and not (off := gap(cfg, state["model"], folder)) <= 1e-4:  # model.py was edited
            raise ValueError(f"transformers' RoBERTa computes something else, logits differ by {off:.1e}")
    except ValueError as e:
        if strict:
            raise
        for name in ("model.safetensors", "config.json"):
            (folder / name).unlink(missing_ok=True)
        said = f"ckpt.pt, tokenizer; no Hugging Face format: {e}"
    for name, text in (("tokenizer.json", about["json"]), ("tokenizer_config.json", json.dumps(settings, indent=2))):
        disk.replace(folder / name, lambda f, text=text: f.write(text.encode()))
    return said


def open_backbone(source: str) -> tuple[str, dict, dict, dict]:
    """(kind, config, weights, tokenizer) of one of our checkpoints, a folder in Hugging Face's format, or the hub."""
    if Path(source).suffix in (".pt", ".ckpt") or Path(source).exists() and not hub.is_folder(source):
        state = checkpoint.load(checkpoint.find(source))
        cfg, tokenizer = dict(state["model_config"]), state["meta"].get("tokenizer")
        if not tokenizer:
            raise ValueError(f"{source}: this checkpoint holds no tokenizer to encode texts with")
        return cfg.pop("backbone", state["kind"]), cfg, state["model"], tokenizer
    folder = Path(source) if hub.is_folder(source) else hub.download(source)
    kind, cfg, weights = hf.load(folder)
    return kind if kind == "roberta" else "gpt", cfg, weights, qa.tokenizer(folder)
