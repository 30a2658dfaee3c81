"""Makes a data set from text files of your own.

    python data/text/prepare.py --input book.txt --out data/book --tokenizer char
    python data/text/prepare.py --input notes/ more.txt --out data/notes --tokenizer gpt2
    python data/text/prepare.py --input web.jsonl --field text --out data/web --tokenizer tokenizer/tokenizer.json

Plain files, .jsonl, .csv and .parquet, files or folders or patterns ('src/**/*.py'), of any size. The tokenizer is
char, byte, gpt2 (or another of tiktoken's names), or a file: tokenizer.json (data/train_tokenizer.py trains one), or
GPT-2's vocab.bpe (merges.txt) where there is no network; or the folder of a data set, for its tokenizer: so weights
that were trained on it go on with other text. The last part of the input is validation. Folders and patterns
give their files in a fixed random order.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from core import config, exits
from core.values import Fraction, Whole
from data import corpus


@dataclass
class Options:
    input: list[Path] = config.option([])  # files, folders or patterns
    out: str = ""  # folder of the data set, data/NAME
    tokenizer: str = "char"  # char, byte, gpt2, a tokenizer.json or vocab.bpe, or the folder of one or of a data set
    field: str = config.option("", alias=("column",))  # of JSONL, CSV and Parquet; '': text, or the only one there is
    val_fraction: Fraction = 0.1  # of the input, its end
    processes: Whole = 0  # 0: one a core, for more than a few megabytes


def main(args: Options) -> None:
    if not args.out:
        raise ValueError("--out is missing: a folder, data/NAME")
    corpus.prepare(
        args.input, args.out, args.tokenizer,
        column=args.field, val_fraction=args.val_fraction, processes=args.processes,
    )  # fmt: skip


if __name__ == "__main__":
    with exits.guard():
        main(config.parse(Options, doc=__doc__))
