"""A model that scores answers: opened from what people name, and used, on one answer or on a file of them.

    score = Scorer("ckpt")  # a run folder or a checkpoint of reward_train.py
    score("What is 2 + 2?", "4")
"""

import re
from pathlib import Path

import numpy as np
import torch

from core import checkpoint, config, dist, files
from core.exits import NotFinite
from core.progress import progress
from core.scores import predict, write_csv
from data import encoding, pretrained, qa, vocab
from model import GPT, GPTConfig, Roberta, RobertaConfig, ScoreModel

# -----------------------------------------------------------------------------
# opened


def build(kind: str, cfg: dict, dropout: float, source: str) -> ScoreModel:
    """An untrained backbone and its score head; the backbone's own dropout gives way to ours."""
    if kind in ("gpt", "gpt2") and not cfg.get("vocab_sizes"):
        return ScoreModel(GPT(config.build(GPTConfig, {**cfg, "dropout": dropout}, source)))
    if kind in ("roberta", "classifier"):
        rates = dict.fromkeys(("hidden_dropout", "attn_dropout", "embedding_dropout", "attn_out_dropout"), dropout)
        rates |= {"attn_dropout": 0.0} if cfg.get("attention") == "favor" else {}  # it has no weights to drop
        return ScoreModel(Roberta(config.build(RobertaConfig, {**cfg, **rates}, source)))
    if cfg.get("vocab_sizes"):
        raise ValueError(f"model_name {source} has several vocabularies: a score head reads one")
    raise ValueError(f"model_name {source} is a {kind!r}: a score head goes on gpt (train.py, GPT-2) and on roberta"
                     " (pretrain.py, finetune.py, RoBERTa)")  # fmt: skip


def open_model(name: str, dropout: float) -> tuple[ScoreModel, dict]:
    """A pretrained backbone with a score head, the head's weights where they come along, and the tokenizer."""
    kind, cfg, weights, tokenizer = pretrained.open_backbone(name)
    model = build(kind, cfg, dropout, name)
    weights = {re.sub(r"^classifier\.", "score.", k): w for k, w in weights.items()}  # transformers' name for RoBERTa's
    ours = model.state_dict()
    scored = all(k in weights and weights[k].shape == w.shape for k, w in ours.items() if k.startswith("score."))
    taken = {k: weights.get(k) for k in ours if scored or not k.startswith("score.")}
    if wrong := [k for k, w in taken.items() if w is None or w.shape != ours[k].shape]:
        raise ValueError(f"model_name {name}: the weights do not fit the config, beginning with {wrong[0]}")
    model.load_state_dict({**ours, **taken})
    return model, tokenizer


def reopen(state: dict, source: Path, dropout: float = 0.0) -> ScoreModel:
    """The model of a checkpoint of this script."""
    if state["kind"] != "reward":
        raise ValueError(f"{source} is a {state['kind']!r}, no reward model; --model_name {source} trains one from it")
    cfg = dict(state["model_config"])
    model = build(cfg.pop("backbone"), cfg, dropout, str(source))
    checkpoint.put(model, state["model"], source)
    return model


def make_template(description: dict, model: ScoreModel, max_length: int, **sizes) -> qa.Template:
    """Questions and answers as tokens; a tokenizer that has no end of text gets one behind its own tokens."""
    tokenizer, start = vocab.load(description), []
    wte, n, end = model.transformer.wte, tokenizer.vocab_size, tokenizer.eot
    if not model.causal:
        start, end = [encoding.token_id(tokenizer.tokenizer, "start")], encoding.token_id(tokenizer.tokenizer, "end")
    if end is None:
        end, n = n, n + 1
        if len(wte.weight) == end:
            row = torch.empty(1, wte.embedding_dim).normal_(std=0.02)
            wte.weight = torch.nn.Parameter(torch.cat((wte.weight.detach(), row)))
            wte.num_embeddings = model.config.vocab_size = n
    if n > len(wte.weight):
        raise ValueError(f"the tokenizer has {n} tokens and the model {len(wte.weight)}: they do not belong together")
    limit = min(max_length, model.config.block_size)
    word = getattr(tokenizer, "unknown", None)
    unknown = tokenizer.tokenizer.token_to_id(word) if word else None
    before: list[int] = []  # of a tokenizer that puts a space before each text, as Llama's: none belongs before a part
    if description["kind"] == "tokenizers":
        line, one, both = (tokenizer.ids(text).tolist() for text in ("\n", "x", "\nx"))
        before = line if both != line + one else []

    def encode(text: str) -> list[int]:
        try:
            if before and text[:1].isspace():  # goes on from what stands before it
                ids = tokenizer.ids("\n" + text).tolist()
                if ids[: len(before)] == before:
                    return ids[len(before) :]
            return tokenizer.ids(text).tolist()
        except ValueError as e:  # an alphabet that lacks a character
            raise ValueError(f"the model's tokenizer cannot read {text[:40]!r}: {e} (a model of a BPE, or of"
                             " data prepared with --tokenizer byte, reads any text)") from None  # fmt: skip

    return qa.Template(encode, start, [end], limit, unknown=unknown, **sizes)


# -----------------------------------------------------------------------------
# used


class Scorer:
    """score(question, answer) in the label's scale: the same alone, in any batch, at any padding."""

    def __init__(self, path: str | Path, device: str = "auto", dtype: str = "float32", use_cache: bool = False):
        self.path, self.use_cache = checkpoint.find(path), use_cache
        state = checkpoint.load(self.path)
        self.device, self.meta, self.options = dist.pick_device(device, 0), state["meta"], state["options"]
        model = reopen(state, self.path)
        self.template = make_template(self.meta["tokenizer"], model, **self.meta["template"])
        self.model = model.to(self.device).eval()
        self.dtype, self.precision = dist.precision(dtype, self.device)

    def many(self, rows: list[tuple[str, str]], batch: int = 16) -> np.ndarray:
        texts = [self.template(question, answer) for question, answer in rows]
        with dist.autocast(self.device, self.dtype):
            scores = predict(self.model, texts, batch, self.device, self.use_cache and self.model.causal)
        if not np.isfinite(scores).all():
            raise NotFinite(f"the scores of {self.path} are not finite: it tells no answer from another")
        return scores * self.meta["std"] + self.meta["mean"]

    def __call__(self, question: str, answer: str) -> float:
        return float(self.many([(question, answer)])[0])


def score_file(score: Scorer, file: Path, out: Path, batch: int) -> None:
    """A CSV row for each answer of a file, in its order; a killed call goes on where it was."""
    pairs, counts = qa.check(file, scored=False, needed=("any",))
    total = sum(counts.values()) * (2 if pairs else 1)
    print(f"scoring {total:,} answers with {score.path} on {score.device}, {score.precision}")
    if score.meta["loss"] == "pairwise":
        print("trained on pairs: scores have no unit, their order counts, and mse says nothing")
    if score.use_cache and not score.model.causal:
        print("use_cache: an encoder reads question and answer together, there is nothing to reuse")

    def answers():
        for _, row in qa.records(file):
            if pairs:
                yield row["Question"], row["Accepted_Answer"], row.get("Accepted_Score")
            yield row["Question"], row["Answer"], row.get("Score")

    def lines(rows: list[tuple]) -> list[tuple]:
        found = score.many([row[:2] for row in rows], batch).tolist()
        gaps = ["" if row[2] is None else s - row[2] for row, s in zip(rows, found, strict=True)]
        return [(*row, s, gap and gap * gap) for row, s, gap in zip(rows, found, gaps, strict=True)]

    with open(score.path, "rb") as f:
        f.seek(-32, 2)
        digest = f.read().hex()  # every checkpoint ends with its SHA-256
    about = {"checkpoint": digest, "file": files.stamp(file), "answers": total, "precision": score.precision}
    header = ["question", "answer", "target_score", "pred_score", "mse"]
    n = write_csv(out, header, progress(answers(), "scoring", total, "answers"), lines, about, 32 * batch)
    print(f"{out}: {n:,} scores; {score.template.report()}")
