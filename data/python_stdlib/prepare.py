"""A real corpus that is on every machine: the sources of Python's standard library, character by character.

    python data/python_stdlib/prepare.py
    python data/python_stdlib/prepare.py --megabytes 8

The modules come in a fixed random order, without tests, tables and what is not ASCII. Another version of Python gives
another text.
"""

import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from core import config, exits
from core.values import Positive
from data import corpus

LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "encodings", "pydoc_data", "lib2to3"}
HERE = Path(__file__).resolve().parent


@dataclass
class Options:
    megabytes: Positive = 2.0  # of text
    out: str = ""  # folder of the data set; '': this one


def modules(megabytes: float) -> list[Path]:
    """As many sources as it takes to reach the size."""
    library = Path(sysconfig.get_path("stdlib"))
    chosen, size = [], 0
    for path in corpus.shuffled(library, ".py"):
        if size < megabytes * 1e6 and not LEFT_OUT & set(path.relative_to(library).parts):
            source = path.read_bytes()
            if source.isascii():
                chosen.append(path)
                size += len(source)
    if not chosen:
        raise ValueError(f"{library} has no sources of the standard library: give data/text/prepare.py some text")
    if size < megabytes * 1e6:
        print(f"the standard library has {size / 1e6:.1f} MB of sources, not {megabytes:g}: this is all of them")
    return chosen


def main(args: Options) -> None:
    corpus.prepare(modules(args.megabytes), args.out or HERE, "char")


if __name__ == "__main__":
    with exits.guard():
        main(config.parse(Options, doc=__doc__))
