"""Text files to Arrow files of token ids, for pretrain.py and for `datasets`.

    python data/build_pretrain_data.py --train_dir encoded_txt --tokenizer tokenizer/tokenizer_vocab16_max7619.json \\
        --out_dir pretrain --max_size 4500 --split_prop 0.15
    python data/build_pretrain_data.py --train_dir train.jsonl --eval_dir eval.jsonl --tokenizer tokenizer.json \\
        --out_dir pretrain --max_size 512

writes the folders pretrain/pretrain_train_trunc4500 and pretrain/pretrain_eval_trunc4500 with a column input_ids (the
narrowest integers that hold the vocabulary). Examples keep their order; which of them are held out depends on nothing
but their number and --seed; equal ones count as one, so none is on both sides. Memory stays bounded, but for 8 bytes an
example.
"""

import contextlib
import functools
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from core import config, exits
from core.files import draft, remove
from core.progress import progress
from core.values import Count, Fraction
from data import encoding, examples, split, vocab

FILE_SIZE = 1 << 29  # bytes of ids a file: `datasets` cuts its own at 500 MB


@dataclass
class Options:
    train_dir: str = ""  # folder of .txt, .csv, .tsv, .jsonl or .parquet files, or one such file
    eval_dir: str = ""  # the same for evaluation; none: a part of the training examples is held out
    tokenizer: str = ""  # tokenizers JSON, e.g. by data/train_tokenizer.py
    out_dir: str = "pretrain"  # folder for the two folders
    max_size: Count | None = None  # tokens an example, <s> and </s> counted; longer ones are cut
    split_prop: Fraction = 0.2  # share of the examples that is held out where there is no --eval_dir
    column: str = ""  # where the text is in CSV, JSONL and Parquet; none: `text`, or the only column
    seed: int = 42  # which examples are held out
    workers: Count | None = None  # processes; none: one a core


NEEDS = {"split_prop seed": "no --eval_dir"}  # which says what is held out


class Writer:
    """A folder as `datasets` saves it: streaming Arrow files, state.json, dataset_info.json."""

    def __init__(self, folder: Path, dtype: np.dtype, tokenizer: str):
        self.folder, self.name = folder, draft(folder)
        self.old = folder.with_name(f".{folder.name}.tmp-old-{os.getpid()}")  # for the one that it replaces
        self.name.mkdir(parents=True)
        self.type = pa.list_(pa.from_numpy_dtype(dtype))
        item = {"dtype": str(pa.from_numpy_dtype(dtype)), "_type": "Value"}
        self.features = {"input_ids": {"feature": item, "_type": "Sequence"}}
        about = {"huggingface": json.dumps({"info": {"features": self.features}}), "tokenizer": tokenizer}
        self.schema = pa.schema([("input_ids", self.type)], metadata=about)
        self.files, self.out, self.size = [], None, 0
        self.rows = self.tokens = 0

    def write(self, ids: np.ndarray, lengths: np.ndarray) -> None:
        if not len(lengths):
            return
        if self.out is None or self.size > FILE_SIZE:
            self.end_file()
            self.files.append(f"data-{len(self.files):05d}.arrow")
            self.out, self.size = pa.ipc.new_stream(str(self.name / self.files[-1]), self.schema), 0
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        rows = pa.ListArray.from_arrays(pa.array(offsets), pa.array(ids))
        self.out.write_batch(pa.record_batch([rows], schema=self.schema))
        self.size += ids.nbytes
        self.rows, self.tokens = self.rows + len(lengths), self.tokens + len(ids)

    def end_file(self) -> None:
        if self.out is not None:
            self.out.close()  # writes the end marker
            self.out = None

    def close(self) -> None:
        self.end_file()
        state = {"_data_files": [{"filename": name} for name in self.files], "_fingerprint": os.urandom(8).hex(),
                 "_format_columns": None, "_format_kwargs": {}, "_format_type": None, "_output_all_columns": False,
                 "_split": None}  # fmt: skip
        size = self.tokens * self.type.value_type.bit_width // 8
        split = {"default": {"name": "default", "num_bytes": size, "num_examples": self.rows}}
        (self.name / "state.json").write_text(json.dumps(state))
        info = {"features": self.features, "splits": split}
        (self.name / "dataset_info.json").write_text(json.dumps(info))


def main(args: Options, apart: bool = True) -> None:
    args = config.made(args)
    for name in ("train_dir", "tokenizer", "max_size"):
        if not getattr(args, name):
            raise ValueError(f"--{name} is missing")
    if args.max_size < 3:
        raise ValueError(f"--max_size must be at least 3 (<s>, one token, </s>), got {args.max_size}")
    if not args.eval_dir and not 0 < args.split_prop < 1:
        raise ValueError(f"--split_prop must lie between 0 and 1 where there is no --eval_dir, got {args.split_prop}")
    coder = encoding.encoder(args.tokenizer, args.max_size)
    sources = [args.train_dir] + [args.eval_dir] * bool(args.eval_dir)
    parts = [examples.files(source) for source in sources]
    examples.in_columns(sum(parts, []), args.column)
    for line in config.idle(args, NEEDS):
        print(f"note: {line}")
    evaluated = {file.resolve() for part in parts[1:] for file in part}
    both = [file for file in parts[0] if file.resolve() in evaluated]
    parts[0] = [file for file in parts[0] if file not in both]
    if not parts[0]:
        raise ValueError(f"--eval_dir {args.eval_dir} holds all files of --train_dir {args.train_dir}: nothing is left"
                         " to train on (without --eval_dir a part is held out)")  # fmt: skip

    folders = [Path(args.out_dir) / f"pretrain_{part}_trunc{args.max_size}" for part in ("train", "eval")]
    for folder in folders:
        if folder.exists() and not (folder / "state.json").is_file():
            raise ValueError(f"{folder} exists and is no data set: it is not replaced")
    hash_ = vocab.load(encoding.describe(args.tokenizer)).hash
    new = [folder for folder in (folders[0].parent, *folders[0].parent.parents) if not folder.exists()]
    train, held = writers = [Writer(folder, coder.dtype, hash_) for folder in folders]
    sides, again = split.Sides(), False
    total = cut = lost = unknown = pads = bare = twice = 0
    try:
        for which, (source, files) in enumerate(zip(sources, parts, strict=True)):
            share = args.split_prop if not args.eval_dir else float(which)
            drawn = functools.partial(split.held_out, share=share, seed=args.seed)
            done, size = 0, examples.source_size(files)
            coded = encoding.encode(files, args.tokenizer, args.max_size, args.column, args.workers)
            for c in progress(coded, source, size / 1e6, "MB", size=lambda c: c.size / 1e6):
                out = drawn(done, len(c.lengths))
                if apart:
                    out = sides(split.fingerprints(c.ids, c.lengths), drawn)
                if which:
                    twice, out = twice + (~out).sum(), np.ones(len(out), dtype=bool)
                inside = np.repeat(out, c.lengths)
                train.write(c.ids[~inside], c.lengths[~out])
                held.write(c.ids[inside], c.lengths[out])
                done, cut, lost = done + len(c.lengths), cut + c.cut, lost + c.lost
                unknown, pads, bare = unknown + coder.lost(c.ids), pads + c.pads, bare + c.bare
            total += done
        empty = apart and not args.eval_dir and not (train.rows and held.rows)
        again = empty and 0 < drawn(0, total).sum() < total  # only their likeness emptied it
        for writer, folder in zip(writers, folders, strict=True):
            if not writer.rows and not again:
                raise ValueError(f"{folder.name} would be empty: {' and '.join(sources)} hold(s) {total} examples, and"
                                 f" --split_prop is {args.split_prop}")  # fmt: skip
            writer.close()
        done = [] if again else writers
        for writer in done:  # in one step each: half a folder is no data set, and would not be replaced
            if writer.folder.exists():
                writer.folder.rename(writer.old)
        for writer in done:
            writer.name.rename(writer.folder)
    finally:
        for writer in writers:
            with contextlib.suppress(OSError):  # a full disk's: all the more what is there has to go
                writer.end_file()
            for left in (writer.name, writer.old):
                with contextlib.suppress(OSError):
                    remove(left)
        for folder in new:  # what failed leaves nothing behind
            with contextlib.suppress(OSError):  # else it holds something
                folder.rmdir()
    if again:
        print(f"note: so few of the {total:,} examples differ that equal ones have to be on both sides")
        main(args, apart=False)
        return
    for writer in writers:
        print(f"{writer.folder}: {writer.rows:,} examples, {writer.tokens:,} tokens")
    if twice:
        print(f"note: {twice:,} of the {held.rows:,} examples of --eval_dir are in --train_dir, too")
    if both:
        more = f" and {len(both) - 1} more" if both[1:] else ""
        print(f"note: --eval_dir holds {both[0]}{more}, too: left out of training")
    print(f"{cut:,} of {total:,} examples were cut to {args.max_size} tokens ({lost:,} tokens left out)")
    if bare:
        print(f"note: {bare:,} more hold nothing that the tokenizer has a token for: left out")
    encoding.note_lost(unknown, sum(writer.tokens for writer in writers), pads)


if __name__ == "__main__":
    with exits.guard():
        args = config.parse(Options, doc=__doc__)
        with exits.writing(Path(args.out_dir)):
            main(args)
