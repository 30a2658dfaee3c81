"""Tiny Shakespeare, 1.1 MB, character by character: the same token files as nanoGPT's.

    python data/shakespeare_char/prepare.py                       # downloads the text once
    python data/shakespeare_char/prepare.py --input tinyshakespeare.txt
"""

import sys
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from core import config, exits
from data import corpus

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
HERE = Path(__file__).resolve().parent


@dataclass
class Options:
    input: str = ""  # the text, where it lies already; '': input.txt in the folder, downloaded if it is not there
    out: str = ""  # folder of the data set; '': this one


def main(args: Options) -> None:
    source = Path(args.input or Path(args.out or HERE) / "input.txt")
    if not args.input and not source.exists():
        corpus.download(URL, source, SHA256)
    corpus.prepare([source], args.out or HERE, "char")


if __name__ == "__main__":
    with exits.guard():
        main(config.parse(Options, doc=__doc__))
