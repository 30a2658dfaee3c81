"""A GPT, an encoder, a classifier or a reward model as a folder that transformers loads.

    python export_hf.py --init_from=out --out=exported

    >>> from transformers import AutoModelForCausalLM, AutoTokenizer
    >>> model, tokenizer = AutoModelForCausalLM.from_pretrained("exported"), AutoTokenizer.from_pretrained("exported")

An encoder loads with AutoModelForMaskedLM, or AutoModel.from_pretrained("exported", add_pooling_layer=False) for its
vectors. A classifier and a reward model load with AutoModelForSequenceClassification. A reward model's config.json has
a mean and a std: score_mean + score_std * logit is the score of "Question: Q\\nAnswer: A" and the end of text. (A
special token's name in a question or an answer is plain text here, and that token to transformers.)
"""

import gc
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    gc.disable()  # until run.guard(): looking through all that torch imports takes a tenth of the start

import torch

from core import checkpoint, config, files, hf, run
from data import encoding, pretrained, scorer, vocab
from model import GPT, Classifier, GPTConfig, Roberta, RobertaConfig, ScoreModel


@dataclass
class Options:
    init_from: str = "out"  # run folder or checkpoint
    out: str = ""  # folder to write
    overwrite: bool = False  # replace a model that is in it


PAD, SOURCE = "<|pad|>", "the checkpoint"
OTHERS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
          "vocab.txt", "merges.txt", "tokenizer.model", "chat_template.jinja", "generation_config.json")  # fmt: skip
SPECIAL = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


def tokenizer_json(about: dict) -> dict | None:
    """The tokenizer in the format of Hugging Face's tokenizers, or None where there is no such thing."""
    if about["kind"] == "tokenizers":
        return json.loads(about["json"])
    bytelevel = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    added: list[dict] = []
    if about["kind"] == "char":
        model = {"type": "WordLevel", "vocab": {c: i for i, c in enumerate(about["chars"])}, "unk_token": "<unk>"}
        split = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
        decoder = {"type": "Fuse"}
    elif about["kind"] == "byte" or "merges" in about:
        letters = vocab.alphabet()
        words, merges = dict(letters), []
        if "merges" in about:
            merges = [list(pair) for pair in vocab.pairs_of(about["merges"])]
            words = {word: i for i, word in enumerate([*letters, *("".join(pair) for pair in merges)])}
            added = [{"id": len(words), "content": vocab.EOT, **SPECIAL}]
            words[vocab.EOT] = len(words)
        model = {"type": "BPE", "vocab": words, "merges": merges, "unk_token": None}
        split, decoder = bytelevel | {"use_regex": bool(merges)}, bytelevel | {"use_regex": True}
    else:
        return None
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
            "pre_tokenizer": split, "post_processor": None, "decoder": decoder, "model": model}  # fmt: skip


def write_tokenizer(folder: Path, about: dict | None, block_size: int, more: dict[str, int] | None = None, *,
                    causal: bool = False) -> str:  # fmt: skip
    """Writes the files, with `more` special tokens; says in a few words what was written."""
    found = tokenizer_json(about) if about else None
    if found is None:
        return "none: the data set describes none" if not about else f"none: {about['name']} has no file here"
    found["added_tokens"] = [*(found.get("added_tokens") or []),
                             *({"id": i, "content": word, **SPECIAL} for word, i in (more or {}).items())]  # fmt: skip
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": block_size,
                "clean_up_tokenization_spaces": False, "model_input_names": pretrained.INPUTS}  # fmt: skip
    if causal:  # our GPTs never see the <s> and </s> that a file puts around a text
        found["post_processor"] = None
    else:
        settings |= pretrained.special_tokens(about)[0]
    words = {t["content"] for t in found.get("added_tokens", [])}
    if end := next((word for word in vocab.ENDS if word in words), None):
        settings.setdefault("eos_token", end)
    if pad := next((word for word in (PAD, "<pad>", "[PAD]") if word in words), None):
        settings.setdefault("pad_token", pad)
    for name, data in (("tokenizer.json", found), ("tokenizer_config.json", settings)):
        (folder / name).write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    return about["kind"]


def between_ends(about: dict) -> dict:
    """An encoder's score is read at <s>: its tokenizer has to put one there, also where its own file does not."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = encoding.load_tokenizer(about)
    ends = [encoding.token_id(tokenizer, what) for what in ("start", "end")]
    if tokenizer.encode("").ids == ends:
        return about
    a, b = map(tokenizer.id_to_token, ends)
    words = [*zip((a, b), ends, strict=True)]
    tokenizer.post_processor = TemplateProcessing(single=f"{a} $A {b}", special_tokens=words)
    return {**about, "json": tokenizer.to_str()}


# -----------------------------------------------------------------------------
# one function a kind of checkpoint: writes, reads again, returns (tokenizer in words, largest difference)


def load(model, weights: dict):
    """The model in evaluation mode with those of the weights that it has."""
    checkpoint.put(model, {name: weights[name] for name in model.state_dict() if name in weights}, SOURCE)
    return model.eval()


def family(cfg: dict) -> str:
    """In whose terms hf.py writes a GPT."""
    return "llama" if cfg["position"] == "rotary" else "gpt2"


def export_gpt(state: dict, out: Path) -> tuple[str, float]:
    cfg, about = vars(config.build(GPTConfig, state["model_config"], SOURCE)), state["meta"].get("tokenizer")
    if cfg["vocab_sizes"]:
        raise ValueError(f"this model has several vocabularies, {cfg['vocab_sizes']}: transformers' GPT-2 has one")
    a = load(GPT(GPTConfig(**cfg)), state["model"])
    hf.save(out, family(cfg), cfg, state["model"])
    words = write_tokenizer(out, about, cfg["block_size"], causal=True)
    streams = state["meta"].get("streams") or []
    if any(s["tokenizer"] != about for s in streams):
        words += f" (that of {streams[0]['name']}; the model was trained on ids of other tokenizers, too)"
    _, again, weights = hf.load(out)
    ids = torch.randint(0, cfg["vocab_size"], (2, cfg["block_size"]), generator=torch.Generator().manual_seed(0))
    return words, (a(ids) - load(GPT(GPTConfig(**again)), weights)(ids)).abs().max().item()


def export_scores(state: dict, out: Path) -> tuple[str, float]:
    """A GPT gets a pad token of its own: where pad is EOS, transformers would read the score at another token."""
    about, cfg, ours = state["meta"]["tokenizer"], dict(state["model_config"]), dict(state["model"])
    kind, tokenizer, added, theirs = cfg.pop("backbone"), vocab.load(about), {}, dict(ours)
    more = {"id2label": {"0": "score"}, "label2id": {"score": 0}, "problem_type": "regression",
            "score_mean": state["meta"]["mean"], "score_std": state["meta"]["std"]}  # fmt: skip
    if kind == "gpt":
        end = tokenizer.vocab_size if tokenizer.eot is None else tokenizer.eot
        pad = max(tokenizer.vocab_size, end + 1)
        added = ({vocab.EOT: end} if tokenizer.eot is None else {}) | {PAD: pad}
        wte = ours["transformer.wte.weight"]
        if len(wte) == pad:
            theirs["transformer.wte.weight"] = torch.cat((wte, wte.new_zeros(1, wte.shape[1])))
        cfg |= {"vocab_size": len(theirs["transformer.wte.weight"]), "wte_weight_tying": True}
        more |= {"pad_token_id": pad, "eos_token_id": end}
    else:
        theirs = {re.sub(r"^score\.", "classifier.", name): w for name, w in theirs.items()}
        more |= pretrained.special_tokens(about)[1]
    build, Config = (GPT, GPTConfig) if kind == "gpt" else (Roberta, RobertaConfig)
    theirs_kind = family(cfg) if kind == "gpt" else kind
    name = hf.BACK[theirs_kind][0](cfg)["architectures"][0]
    more["architectures"] = [re.sub("LMHeadModel|For(CausalLM|MaskedLM)", "ForSequenceClassification", name)]
    ours["transformer.wte.weight"] = theirs["transformer.wte.weight"]
    a = load(ScoreModel(build(config.build(Config, cfg, SOURCE))), ours)
    hf.save(out, theirs_kind, cfg, theirs, **more)
    written = about if kind == "gpt" else between_ends(about)
    words = write_tokenizer(out, written, cfg["block_size"], added, causal=kind == "gpt")
    if about["kind"] == "tokenizers":
        parts = scorer.make_template(about, a, cfg["block_size"])
        ids = [*parts.head, *parts.question("What?"), *parts.middle, *parts.encode(" Yes.")][len(parts.start) :]
        if ids != tokenizer.ids("Question: What?\nAnswer: Yes.").tolist():  # as Qwen3's, to which "?\n" is one word
            words += " (it reads the whole text as other tokens than its parts: scored are their ids, joined, those of"
            words += r" 'Question:', ' Q', '\nAnswer:' and ' A')"
    _, again, weights = hf.load(out)
    weights = {re.sub(r"^classifier\.", "score.", name): w for name, w in weights.items()}
    lengths = torch.tensor([1, cfg["block_size"], cfg["block_size"] // 2 + 1])
    ids = torch.randint(0, tokenizer.vocab_size, (int(lengths.sum()),), generator=torch.Generator().manual_seed(0))
    b = load(ScoreModel(build(Config(**again))), weights)
    return words, (a(ids, lengths) - b(ids, lengths)).abs().max().item()


def export_encoder(state: dict, out: Path) -> tuple[str, float]:
    pretrained.export(out, state, state["options"].get("class_prob", 0.1), strict=True)
    return "tokenizers", pretrained.gap(state["model_config"], state["model"], out)


def export_classifier(state: dict, out: Path) -> tuple[str, float]:
    cfg, about, head = state["model_config"], state["meta"]["tokenizer"], state["meta"]["head"]
    if head["pooling"] != "cls" or not head["pooler_type"]:
        raise ValueError(f"pooling {head['pooling']} with pooler {head['pooler_type']} has no counterpart in"
                         " transformers (only cls with a pooler has)")  # fmt: skip
    names = dict(enumerate(head["names"]))
    a = load(Classifier(config.build(RobertaConfig, cfg, SOURCE), len(names)), state["model"])
    hf.save(out, "roberta", cfg, state["model"], architectures=["RobertaForSequenceClassification"], id2label=names,
            label2id={name: i for i, name in names.items()}, **pretrained.special_tokens(about)[1],
            classifier_dropout=state["options"]["classifier_dropout"])  # fmt: skip
    words = write_tokenizer(out, about, head.get("max_length", cfg["block_size"]))  # texts are cut as in training
    _, again, weights = hf.load(out)
    lengths = torch.tensor([1, cfg["block_size"], cfg["block_size"] // 2 + 1])
    ids = torch.randint(0, cfg["vocab_size"], (int(lengths.sum()),), generator=torch.Generator().manual_seed(0))
    b = load(Classifier(RobertaConfig(**again), len(names)), weights)
    return words, (a(ids, lengths) - b(ids, lengths)).abs().max().item()


EXPORTS = {"gpt": export_gpt, "reward": export_scores, "classifier": export_classifier, "roberta": export_encoder}


@torch.no_grad()
def main(args: Options) -> None:
    args = config.made(args)
    if not args.out:
        raise ValueError("--out must name the folder to write")
    path, out = checkpoint.find(args.init_from), Path(args.out)
    state = checkpoint.load(path)
    if state["kind"] not in EXPORTS:
        raise ValueError(f"{path} holds a {state['kind']} model: this exports {', '.join(EXPORTS)} models")
    draft = files.draft(out / "model")  # a folder, whole before any of it can be taken for a model
    if out.exists() and any(out.iterdir()) and not args.overwrite:
        raise ValueError(f"--out {out} is not empty: --overwrite replaces what is in it")
    try:
        words, gap = EXPORTS[state["kind"]](state, draft)
        if not gap <= 1e-4:
            raise RuntimeError(f"the exported model differs by {gap:.1e}, not kept: has transformers all of model.py?")
        for name in ("config.json", *OTHERS):  # of the model that was in the folder: read with this one, they mislead
            (out / name).unlink(missing_ok=True)
        for part in sorted(draft.iterdir(), key=lambda p: p.name == "config.json"):  # without which nothing loads
            part.replace(out / part.name)
    finally:
        files.remove(draft)
    print(f"{path}, step {state['step']} -> {out}: config.json, model.safetensors; tokenizer: {words}")
    print(f"read again: the largest difference between logits is {gap:.1e}")


if __name__ == "__main__":
    with run.guard():
        main(config.parse(Options, sys.argv[1:], doc=__doc__))
