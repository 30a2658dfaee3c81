"""Makes three aligned data sets of one text, for train.py's multicontext mode: its characters, their case, their class.

    python data/streams/prepare.py --input book.txt --out data/book
    python train.py --training_mode=multicontext --multicontext_datasets book_chars book_case book_class

    book_chars   To be, or 2\\n
    book_case    Ul-ll--ll---
    book_class   aa aa. aa 0\\n

In the second a letter is l or U, by its case, and all else is -. In the third a is a letter, 0 a digit, . punctuation,
? the rest; white space stays.
"""

import sys
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from core import config, exits
from core.values import Fraction, Whole
from data import corpus

CLASSES = {"L": "a", "M": "a", "N": "0", "P": ".", "S": ".", "Z": " "}  # by Unicode's general category


@dataclass
class Options:
    input: list[Path] = config.option([])  # files, folders or patterns
    out: str = ""  # the data sets' common name, data/NAME
    field: str = config.option("", alias=("column",))  # of JSONL, CSV and Parquet; '': text, or the only one there is
    val_fraction: Fraction = 0.1  # of the input, its end
    processes: Whole = 0  # 0: one a core, for more than a few megabytes


def case_of(char: str) -> str:
    return "U" if char.isupper() else "l" if char.islower() else "-"


def class_of(char: str) -> str:
    return "\n" if char == "\n" else " " if char.isspace() else CLASSES.get(unicodedata.category(char)[0], "?")


def each(symbol: Callable[[str], str], text: str) -> str:
    """One symbol a character, found once for each different one."""
    codes, where = np.unique(np.frombuffer(text.encode("utf-32-le"), dtype="<u4"), return_inverse=True)
    symbols = np.array([ord(symbol(chr(c))) for c in codes], dtype="<u4")
    return symbols[where].tobytes().decode("utf-32-le")


def cases(text: str) -> str:
    return each(case_of, text)


def classes(text: str) -> str:
    return each(class_of, text)


def main(args: Options) -> None:
    if not args.out:
        raise ValueError("--out is missing: a common name, data/NAME")
    corpus.prepare(
        args.input, args.out, "char",
        column=args.field, val_fraction=args.val_fraction, processes=args.processes,
        views={"_chars": None, "_case": ("-Ul", cases), "_class": ("\n .0?a", classes)},
    )  # fmt: skip


if __name__ == "__main__":
    with exits.guard():
        main(config.parse(Options, doc=__doc__))
