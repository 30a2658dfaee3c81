"""The label of each text, by a classifier of finetune.py; and how many are right, where the true ones are known.

    write("new.csv", Path("answers.csv"), "out_finetune", device=device, dtype="auto")
"""

import csv
import itertools
import sys
from pathlib import Path

import numpy as np
import torch

from core import checkpoint, config, dist, files, metrics
from core.exits import NotFinite
from core.progress import progress
from core.scores import write_csv
from core.values import nearest
from data import encoding, records
from data.pretrained import open_encoder
from model import Classifier, RobertaConfig


def write(texts: str, out: Path, source: str, *, device: torch.device, dtype: str, tokenizer: str = "",
          text_column: str = "", label_column: str = "", max_length: int | None = None) -> None:  # fmt: skip
    """A row for each text: the text, its label, the probability of each label, the true label if it is known, and the
    other columns of its row."""
    cfg, weights, about, head = open_encoder(source, tokenizer)
    if not head:
        raise ValueError(f"--init_from {source} is an encoder without a classifier that gives each text one label:"
                         " fine-tune it first")  # fmt: skip
    names = head["names"]
    model = Classifier(config.build(RobertaConfig, cfg, source), len(names), head["pooling"], head["pooler_type"], 0.0)
    checkpoint.put(model, {k: weights[k] for k in model.state_dict() if k in weights}, source)
    model.to(device).eval()
    dtype, precision = dist.precision(dtype, device)
    autocast = dist.autocast(device, dtype)
    limit = max_length or head.get("max_length", sys.maxsize)  # the run's: longer texts are none that it has seen
    coder = encoding.Encoder(about, min(limit, model.config.block_size))
    rows = records.read(Path(texts))
    if not (first := next(rows, {})):
        raise ValueError(f"--predict {texts} holds no texts")
    column, cut = records.text_column(first, text_column, texts, label_column), 0
    tokens, lost, pads, later = 0, 0, 0, {}
    if label_column and label_column not in first:
        raise ValueError(f"--label_column must be one of {', '.join(map(repr, first))}; got {label_column!r}"
                         f"{nearest(label_column, first)}")  # fmt: skip
    records.texts([first], column, texts, 0, bool(text_column))
    others = [c for c, value in first.items()
              if c not in (column, label_column or None) and not isinstance(value, list | dict | bytes)]  # fmt: skip

    @torch.no_grad()
    def label(numbered: list[tuple[int, dict]]) -> list[list]:
        nonlocal cut, tokens, lost, pads
        done, part = numbered[0][0], [row for _, row in numbered]
        later.update(dict.fromkeys(c for row in part for c in row if c not in first))  # JSONL's rows need not be alike
        some = records.texts(part, column, texts, done, bool(text_column))
        coded = encoding.some_tokens(coder(some), texts, done)
        cut, pads = cut + coded.cut, pads + coded.pads
        tokens, lost = tokens + len(coded.ids), lost + coder.lost(coded.ids)
        with autocast:
            logits = model(torch.from_numpy(coded.ids.astype(np.int64)).to(device), torch.from_numpy(coded.lengths))
        shares = logits.cpu().double().softmax(1).numpy()
        if np.isnan(shares).any():
            raise NotFinite(f"the logits of {source} are not finite: there is no label to give")
        rows = enumerate(part, done + 1)
        true = [[records.label(row, label_column, texts, i)] if label_column else [] for i, row in rows]
        if [""] in true:
            raise ValueError(f"{texts}: row {done + true.index(['']) + 1} has no label in {label_column!r}")
        if unknown := next((t for t in true if t and t[0] not in names), None):
            raise ValueError(f"{texts}: row {done + true.index(unknown) + 1} has the label {unknown[0]!r} in"
                             f" {label_column!r}, the labels here are {', '.join(names)}")  # fmt: skip
        rest = [["" if (value := row.get(c)) is None else value for c in others] for row in part]
        found = zip(some, shares, true, rest, strict=True)
        return [[text, names[p.argmax()], *(f"{x:.6f}" for x in p), *t, *more] for text, p, t, more in found]

    mark = float(model.classifier.out_proj.weight.detach().cpu().double().sum())  # tells this model from another
    made, given = ["label", *(f"p_{name}" for name in names), *["true label"] * bool(label_column)], []
    for c in (column, *others):
        while c in (*made, *given):  # two columns of one name are one to who reads them
            c += " (input)"
        given.append(c)
    header = [given[0], *made, *given[1:]]
    rows = enumerate(progress(itertools.chain([first], rows), "labelling", unit="texts"))
    about = {"file": files.stamp(Path(texts)), "from": source, "mark": mark, "header": header,
             "how": [tokenizer, coder.max_size, precision]}  # fmt: skip
    n = write_csv(out, header, rows, label, about, 64)
    print(f"{out}: {n:,} texts labelled on {device}, {precision}; {cut:,} of them cut to {coder.max_size} tokens")
    encoding.note_lost(lost, tokens, pads)
    if later:
        print(f"note: {', '.join(map(repr, later))} of later rows left out: the first row has no such column")
    if label_column:
        csv.field_size_limit(1 << 30)
        with open(out, newline="", encoding="utf-8") as f:  # all of them, also those before a kill
            both = [(names.index(row["label"]), names.index(row["true label"])) for row in csv.DictReader(f)]
        counts = metrics.confusion_of(*np.array(both).T, len(names))
        print(f"accuracy {metrics.accuracy(counts):.4f}, macro F1 {metrics.macro_f1(counts):.4f}")
