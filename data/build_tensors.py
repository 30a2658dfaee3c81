"""Texts, with labels or without, to .pt data sets for experiments and finetune.py.

    python data/build_tensors.py --input reviews.csv --label_column label --tokenizer tokenizer.json --out_dir reviews
    python data/build_tensors.py --input corpus.txt --tokenizer tokenizer.json --out_dir corpus --splits train=.9 val=.1
    python data/build_tensors.py --input more.csv --label_column label --labels reviews/labels.json --splits test=1 \\
        --tokenizer tokenizer.json --out_dir more

The first writes train.pt, val.pt and test.pt; the last keeps the label numbers of the first. Reads .csv and .tsv with a
header, .jsonl, .parquet, .txt (an example a line) and Arrow files. Which example goes to which split depends on nothing
but its number and --seed, and equal texts go where the first of them goes. Labels are numbered in the order of their
names; labels.json and each file keep the mapping.
"""

import contextlib
import itertools
import json
import re
import sys
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from core import config, files
from core.progress import progress
from core.values import Count, Fraction, coerce, nearest, read_yaml
from data import arrow, encoding, examples, records, split, tensors, vocab


@dataclass
class Options:
    input: str = ""  # a .csv, .tsv, .jsonl, .parquet or .txt file, or Arrow files
    tokenizer: str = ""  # tokenizer.json or vocab.txt, or the folder that holds it
    out_dir: str = ""  # folder for the .pt files
    text_column: str = ""  # none: `text`, or the only column
    label_column: str = ""  # none: no labels
    labels: str = ""  # a labels.json: its numbers, 0, 1, 2 ... without a gap, are used again
    max_length: Count = 512  # tokens an example, <s> and </s> counted; longer ones are cut, and counted
    # a smaller share of the last one leaves the others as they are
    splits: dict = config.option({"val": 0.1, "test": 0.1, "train": 0.8})  # names and shares of the files to write
    layout: Literal["dict", "tensordataset"] = "dict"  # of the .pt files; only a dict holds the label names
    seed: int = 42  # which example goes where


def ids_of(row: dict, size: int, where: str) -> list[int]:
    """Ids that stand in the file, without their padding."""
    ids, mask = row.get("input_ids"), row.get("attention_mask")
    if not isinstance(ids, list) or not isinstance(mask, list | None) or len(mask or ids) != len(ids):
        raise ValueError(f"{where}: input_ids must be a list of ids, attention_mask one of as many numbers, or null")
    ids = [i for i, real in zip(ids, mask, strict=True) if real] if mask else ids
    if bad := [i for i in ids if type(i) is not int or not 0 <= i < size]:
        raise ValueError(f"{where} holds the id {str(bad[0])[:40]}, the tokenizer's are 0 to {size - 1}")
    return ids


def encode(args: Options, coder: encoding.Encoder) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str], int, int]:
    """Flat ids, lengths, fingerprints, labels as they are called, how many were cut, and how many <pad> left out."""
    ids, lengths, prints, labels, cut, done, pads, column = [], [], [], [], 0, 0, 0, ""
    tokens = vocab.load(encoding.describe(args.tokenizer))
    rows = iter(progress(records.read(Path(args.input)), "examples"))
    if examples.ending(Path(args.input)) not in examples.SUFFIXES and Path(args.input).exists():
        for file in arrow.files(args.input):
            if (made := arrow.made_with(arrow.open_table(file))) not in (None, tokens.hash):
                raise ValueError(f"{file} was made with the tokenizer {made}, --tokenizer {args.tokenizer} is"
                                 f" {tokens.hash}: its ids mean different things there")  # fmt: skip
    while batch := list(itertools.islice(rows, 1000)):
        column = column or records.text_column(batch[0], args.text_column, args.input, args.label_column)
        if args.label_column and args.label_column not in batch[0]:
            raise ValueError(f"{args.input} has no column {args.label_column!r}: --label_column takes one of"
                             f" {', '.join(map(repr, batch[0]))}{nearest(args.label_column, batch[0])}")  # fmt: skip
        if column == "input_ids" and isinstance(batch[0].get(column), list):
            values = [ids_of(row, tokens.vocab_size, f"{args.input}: row {i}") for i, row in enumerate(batch, done + 1)]
            flat = np.fromiter(itertools.chain.from_iterable(values), np.int32)
            coded = coder.cut(flat, np.array([len(v) for v in values]))
        else:
            coded = coder(records.texts(batch, column, args.input, done, bool(args.text_column)))
        encoding.some_tokens(coded, args.input, done)
        if args.label_column:
            names = [records.label(row, args.label_column, args.input, i) for i, row in enumerate(batch, done + 1)]
            if "" in names:
                row, others = done + names.index("") + 1, names.count("") - 1
                more = f", nor have {others} of the next {len(names)}" if others else ""
                raise ValueError(f"{args.input}: row {row} has no label in {args.label_column!r}{more}")
            labels += names
        ids, lengths, cut, done = [*ids, coded.ids], [*lengths, coded.lengths], cut + coded.cut, done + len(batch)
        prints, pads = [*prints, split.fingerprints(coded.ids, coded.lengths)], pads + coded.pads
    if not done:
        raise ValueError(f"{args.input} holds no examples")
    return *map(np.concatenate, (ids, lengths, prints)), labels, cut, pads


def number_labels(labels: list[str], file: str) -> list[str]:
    """Label names in the order of their numbers: whole numbers by size, others by the alphabet."""
    whole = re.compile(r"-?\d{1,4000}")  # what int() takes: neither "²" nor "--5", nor more than 4,300 digits
    found = sorted(set(labels), key=lambda x: (0, int(x), x) if whole.fullmatch(x) else (1, 0, x))
    if not file:
        return found
    if not Path(file).is_file():
        raise ValueError(f"--labels {file} does not exist")
    known = {str(name): number for name, number in read_yaml(file).items()}
    numbers = list(known.values())
    if any(type(i) is not int for i in numbers) or sorted(numbers) != list(range(len(numbers))):
        raise ValueError(f"--labels {file}: {len(numbers)} labels must have the numbers 0 to {len(numbers) - 1}, each"
                         f" once, got {', '.join(map(str, numbers))[:60]}")  # fmt: skip
    if unknown := [x for x in found if x not in known]:
        raise ValueError(f"{file} has no label {unknown[0]!r} (row {labels.index(unknown[0]) + 1})"
                         f"{nearest(unknown[0], known)}")  # fmt: skip
    return sorted(known, key=known.get)


def alike(names: list[str]) -> list[list[str]]:
    """Those that are one number (1, 1.0), or one word but for its case, spaces and the form of its Unicode."""
    found: dict[str, list[str]] = {}
    for name in names:
        word = " ".join(unicodedata.normalize("NFKC", name.casefold()).split())
        with contextlib.suppress(ValueError):
            word = str(float(word))
        found.setdefault(word, []).append(name)
    return [group for group in found.values() if len(group) > 1]


def main(args: Options) -> None:
    for name in ("input", "tokenizer", "out_dir"):
        if not getattr(args, name):
            raise ValueError(f"--{name} is missing")
    shares = {config.safe_name(k, "the name of a split"): coerce(v, Fraction, f"--splits {k}")
              for k, v in args.splits.items()}  # fmt: skip
    if min(shares.values(), default=0) <= 0 or sum(shares.values()) > 1 + 1e-9:
        raise ValueError(f"--splits takes shares above 0 that add up to 1 at most, got {args.splits}")
    if args.labels and not args.label_column:
        raise ValueError("--labels gives labels their numbers: --label_column names the column that holds them")
    if args.max_length < 3:
        raise ValueError(f"--max_length must be at least 3 (<s>, one token, </s>), got {args.max_length}")
    coder = encoding.encoder(args.tokenizer, args.max_length)
    pad = encoding.token_id(coder.tokenizer, "pad")
    tokenizer = vocab.load(encoding.describe(args.tokenizer)).hash
    ids, lengths, prints, labels, cut, pads = encode(args, coder)
    names = number_labels(labels, args.labels) if labels else None
    number = {name: i for i, name in enumerate(names or [])}
    numbers = np.array([number[x] for x in labels]) if labels else None

    n, out = len(lengths), Path(args.out_dir)
    parts = split.parts(prints, list(shares.values()), args.seed)
    if not min(map(len, parts)):
        parts = split.parts(prints, list(shares.values()), args.seed, apart=False)
        if not min(map(len, parts)):
            raise ValueError(f"{args.input} has {n} examples: too few for the splits {args.splits}")
        print(f"note: so few of the {n:,} examples differ that equal ones have to be in several splits")
    first = np.cumsum(lengths) - lengths
    out.mkdir(parents=True, exist_ok=True)
    draft = files.draft(out / "splits")  # a folder: no split of this call is to stand beside one of an earlier call
    try:
        for name, rows in zip(shares, parts, strict=True):
            flat = np.concatenate([ids[first[i] : first[i] + lengths[i]] for i in rows])
            y = None if numbers is None else numbers[rows]
            tensors.save(draft / f"{name}.pt", flat, lengths[rows], pad, y, names, tokenizer, args.layout,
                         args.max_length)  # fmt: skip
        if names:
            (draft / "labels.json").write_text(json.dumps(number, ensure_ascii=False, indent=1), encoding="utf-8")
        for path in sorted(draft.iterdir()):
            path.replace(out / path.name)
    finally:
        files.remove(draft)
    for name, rows in zip(shares, parts, strict=True):
        each = zip(names, np.bincount(numbers[rows], minlength=len(names)), strict=True) if names else []
        counts = "; " + ", ".join(f"{label} {count:,}" for label, count in each) if names else ""
        counts = counts if len(names or []) <= 20 else f"; {len(names)} labels"
        print(f"{out / name}.pt: {len(rows):,} examples, {lengths[rows].sum():,} tokens{counts}")
    if names and len(names) > n // 2:
        print(f"note: {len(names):,} labels for {n:,} examples: is {args.label_column!r} the column of labels?")
    if same := alike(names or []):
        shown = "; ".join(" ".join(map(ascii, group)) for group in same[:4]) + "; ..." * (len(same) > 4)
        print(f"note: labels that differ in their spelling alone are different ones here: {shown}")
    if bare := int((np.add.reduceat(~np.isin(ids, coder.ends), first) == 0).sum()):
        print(f"note: {bare:,} of the {n:,} examples are empty texts")
    print(f"{cut:,} of {n:,} examples were cut to {args.max_length} tokens")
    encoding.note_lost(coder.lost(ids), len(ids), pads)


if __name__ == "__main__":
    from core import exits

    with exits.guard():
        main(config.parse(Options, doc=__doc__))
