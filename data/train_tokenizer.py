"""Trains a tokenizer on text files, one example a line.

    python data/train_tokenizer.py --data_dir encoded_txt --out_dir tokenizer --vocab_size 16 --max_size 1 \\
        --tokenizer by-digit
    python data/train_tokenizer.py --data_dir proteins.csv --column sequence --vocab_size 1000 --tokenizer bpe

writes tokenizer/tokenizer_vocab{V}_max{N}.json, a Hugging Face tokenizers file. V is its vocabulary; N the length in
tokens, <s> and </s> counted, of the max_size-th longest example: what to give the next scripts as --max_size if no more
than max_size - 1 examples are to be cut.

by-digit    <s> <pad> </s> <unk> <mask> <|endoftext|> and 0 to 9; white space is dropped, all else is <unk>
bpe         byte-level BPE as RoBERTa's; from 1,000 on it holds all bytes, below only the line end and those that occur
wordpiece   BERT's, cased; words longer than 64 characters are pieces of 64
"""

import collections
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from core import config, exits, files
from core.progress import progress
from core.values import Count
from data import encoding, examples

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<|endoftext|>"]


@dataclass
class Options:
    data_dir: str = ""  # folder of .txt, .csv, .tsv, .jsonl or .parquet files, or one such file
    out_dir: str = "tokenizer"  # folder for the tokenizer
    tokenizer: Literal["bpe", "by-digit", "wordpiece"] = "by-digit"  # how text is cut up
    vocab_size: Annotated[int, "1..10000000"] | None = None  # special tokens counted; none: 16 by digit, else 30000
    max_size: Count = 1  # the file name tells the length of the max_size-th longest example
    column: str = ""  # where the text is in CSV, JSONL and Parquet; none: `text`, or the only column


def build(kind: str, vocab_size: int, texts):
    """The trained tokenizer; `texts` is a function that gives an iterator over lists of examples."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tty = sys.stderr.isatty()
    if kind == "by-digit":
        words = [*SPECIAL, *"0123456789"]
        tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("."), "isolated")]
        )
        assert json.loads(tokenizer.to_str())["pre_tokenizer"] == encoding.BY_DIGIT
        tokenizer.decoder = decoders.Fuse()
    elif kind == "bpe":
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet() if vocab_size >= 1000 else ["\u010a"]  # \n, for whole texts
        trainer = trainers.BpeTrainer(  # takes room for all that may come: at 1e9 it aborted
            vocab_size=vocab_size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=tty
        )
        tokenizer.train_from_iterator(texts(), trainer)
    else:
        tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
        short = pre_tokenizers.Split(Regex(".{1,64}"), "isolated")  # the model's time is quadratic in a word's length
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), short])
        tokenizer.decoder = decoders.WordPiece()
        first = list(SPECIAL)
        for size in (0, vocab_size):  # the library numbers ##letters by chance, so all letters are found, then named
            trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=first, show_progress=tty)
            tokenizer.train_from_iterator(texts(), trainer)
            words = tokenizer.get_vocab(with_added_tokens=False)
            first = [*SPECIAL, *sorted(words.keys() - {*SPECIAL}, key=lambda w: (len(w), w))]
        before, tokenizer = tokenizer, Tokenizer(models.WordPiece(words, unk_token="<unk>"))  # letters are not special
        tokenizer.pre_tokenizer, tokenizer.decoder = before.pre_tokenizer, before.decoder
    mask = AddedToken("<mask>", lstrip=kind == "bpe", special=True)  # "a <mask>": the space belongs to the word
    tokenizer.add_special_tokens([mask if word == "<mask>" else word for word in SPECIAL])
    ends = [(word, tokenizer.token_to_id(word)) for word in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=ends
    )
    return tokenizer


def main(args: Options) -> None:
    if not args.data_dir:
        raise ValueError("--data_dir is missing: a folder of text files, or one file")
    vocab_size = args.vocab_size or (16 if args.tokenizer == "by-digit" else 30000)
    if args.tokenizer == "by-digit" and vocab_size != 16:
        raise ValueError(f"--vocab_size must be 16 with --tokenizer by-digit (6 special, 10 digits), got {vocab_size}")
    examples.in_columns(examples.files(args.data_dir), args.column)
    tokenizer = build(args.tokenizer, vocab_size, lambda: examples.read(args.data_dir, args.column))
    count = tokenizer.get_vocab_size()
    if count > vocab_size:
        raise ValueError(f"--vocab_size {vocab_size} is too small: the characters of the data alone need {count}")

    out = Path(args.out_dir)
    new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    draft = files.draft(out / "tokenizer")  # its name is known when all examples are encoded
    try:
        with exits.writing(out):  # .save() hides why it could not write
            draft.write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
        counts: collections.Counter[int] = collections.Counter()
        lost, pads, coder = 0, 0, encoding.Encoder(draft, None)
        coded = encoding.encode(args.data_dir, draft, column=args.column)
        size = examples.source_size(args.data_dir) / 1e6
        for c in progress(coded, "measuring lengths", size, "MB", size=lambda c: c.size / 1e6):
            counts.update(c.lengths.tolist())
            lost, pads = lost + coder.lost(c.ids), pads + c.pads
        total = sum(counts.values())
        if not total:
            raise ValueError(f"{args.data_dir} has no examples that are not blank")
        if args.max_size > total:
            raise ValueError(f"--max_size {args.max_size}: {args.data_dir} has {total:,} examples that are not blank")
        seen = 0
        for longest in sorted(counts, reverse=True):
            seen += counts[longest]
            if seen >= args.max_size:
                break
        path = out / f"tokenizer_vocab{count}_max{longest}.json"
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
        if new and not any(out.iterdir()):  # what failed leaves nothing behind
            out.rmdir()
    tokens = sum(length * times for length, times in counts.items())
    print(f"{path}: {count:,} tokens; {total:,} examples, {tokens:,} tokens with <s> and </s>, longest {max(counts):,}")
    if count < (args.vocab_size or 0):
        print(f"note: {count:,} tokens in place of {vocab_size:,}: the text has no more that come together twice")
    encoding.note_lost(lost, tokens, pads)
    if lost and args.tokenizer == "by-digit":
        print("note: --tokenizer bpe is for text that is not digits")


if __name__ == "__main__":
    with exits.guard():
        main(config.parse(Options, doc=__doc__))
