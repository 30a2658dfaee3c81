"""OpenWebText (8 million web pages, 40 GB of text) as GPT-2's tokens: 9 billion for training, 4 million for validation.

    pip install datasets && python data/openwebtext/prepare.py      # from the hub: 25 GB, then some 18 GB of tokens
    python data/openwebtext/prepare.py --input parquet_files/       # JSONL, Parquet or text that is here already
    python data/openwebtext/prepare.py --input a.jsonl --tokenizer vocab.bpe
"""

import importlib.util
import os
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from core import config, exits
from core.values import Fraction, Whole
from data import corpus, vocab

HUB = "Skylion007/openwebtext"
HERE = Path(__file__).resolve().parent


@dataclass
class Options:
    input: list[Path] = config.option([])  # files or folders that are here; none: the hub
    out: str = ""  # folder of the data set; '': this one
    tokenizer: str = "gpt2"  # gpt2, or a tokenizer.json or vocab.bpe
    field: str = config.option("", alias=("column",))  # of JSONL, CSV and Parquet; '': text, or the only one there is
    val_fraction: Fraction = 0.0005  # of the input, its end
    processes: Whole = 0  # 0: one a core


def from_hub() -> list[Path]:
    """The hub's Parquet files, downloaded or out of its cache."""
    instead = "or give --input FILES (JSONL, Parquet or text)"
    if not importlib.util.find_spec("datasets"):
        raise ValueError(f"OpenWebText comes by the package datasets: pip install datasets, {instead}")
    try:
        urllib.request.urlopen(os.environ.get("HF_ENDPOINT", "https://huggingface.co"), timeout=10).close()
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"  # the cache, without minutes of retries
    import datasets

    why = None
    for revision in (None, "refs/convert/parquet"):  # the hub's own conversion, where the main branch is a script still
        try:
            builder = datasets.load_dataset_builder(HUB, revision=revision)
            return [Path(f) for f in datasets.DownloadManager().download(list(builder.config.data_files["train"]))]
        except Exception as e:  # without a network alone there are half a dozen kinds
            why = why or type(e).__name__
    raise ValueError(f"cannot get {HUB} from the hub ({why}): check the network, {instead}")


def main(args: Options) -> None:
    if args.tokenizer != "char":
        vocab.load(vocab.find(args.tokenizer))  # what is wrong with it is said before gigabytes are downloaded
    corpus.prepare(
        args.input or from_hub(), args.out or HERE, args.tokenizer,
        column=args.field, val_fraction=args.val_fraction, processes=args.processes,
    )  # fmt: skip


if __name__ == "__main__":
    with exits.guard():
        main(config.parse(Options, doc=__doc__))
