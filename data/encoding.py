"""Token ids of text examples: in their order, in bounded memory, on all cores.

    for coded in encode("encoded_txt", "tokenizer.json"):  # coded.ids, flat, of many examples; coded.lengths

This file imports no torch: every worker process would pay for it.
"""

import collections
import concurrent.futures
import functools
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data import examples
from data.vocab import unknown_word

# by-digit's way to cut text: each character but white space. Encoder knows it again, and looks characters up
BY_DIGIT = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "WhitespaceSplit"},
        {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False},
    ],
}
NAMES = {"start": ("<s>", "[CLS]"), "pad": ("<pad>", "[PAD]"), "end": ("</s>", "[SEP]"), "mask": ("<mask>", "[MASK]"),
         "unk": ("<unk>", "[UNK]")}  # fmt: skip


def token_id(tokenizer, what: str) -> int:
    """The id of the start, pad, end or mask token, under RoBERTa's name for it or BERT's."""
    for name in NAMES[what]:
        if (i := tokenizer.token_to_id(name)) is not None:
            return i
    raise ValueError(f"the tokenizer has no {what} token ({' or '.join(NAMES[what])})")


def from_words(path: Path):
    """BERT's vocab.txt, a word piece a line; lower case unless the vocabulary itself has capitals."""
    from tokenizers.implementations import BertWordPieceTokenizer

    lines = examples.decode(path.read_bytes(), path, 0).removesuffix("\n").split("\n")
    words = [w.rstrip() for w in lines]  # a blank has an id
    plain = [w for w in words if not (w.startswith("[") and w.endswith("]"))]
    lower = not any(w != w.lower() for w in plain)
    table = {w: i for i, w in enumerate(words)}
    return BertWordPieceTokenizer(table, lowercase=lower, strip_accents=lower)._tokenizer


def tokenizer_file(path: str | Path) -> Path:
    """A tokenizers JSON, a vocab.txt, or the one in a folder: tokenizer.json, vocab.txt, tokenizer_vocab*.json."""
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in ("tokenizer.json", "vocab.txt") if (path / name).is_file()]
        others = sorted(path.glob("tokenizer_vocab*.json"))
        if not found and len(others) > 1:
            raise ValueError(f"{path} holds several tokenizers, name one: {', '.join(map(str, others))}")
        path = [*found, *others, path / "tokenizer.json"][0]
    if not path.is_file():
        raise ValueError(f"tokenizer {path} does not exist")
    return path


def describe(path: str | Path) -> dict:
    """The tokenizer as data/vocab.py describes it."""
    path = tokenizer_file(path)
    if path.suffix == ".txt":
        return {"kind": "tokenizers", "json": from_words(path).to_str()}
    return {"kind": "tokenizers", "json": examples.decode(path.read_bytes(), path, 0).removeprefix("\ufeff")}


def load_tokenizer(path: str | Path | dict):
    """From a file, or from its description."""
    from tokenizers import Tokenizer

    about, path = (path, "the tokenizer") if isinstance(path, dict) else (None, tokenizer_file(path))
    try:
        tokenizer = Tokenizer.from_str((about or describe(path))["json"])
    except Exception as e:  # the library raises plain Exception
        raise ValueError(f"{path} is not a tokenizer: {e}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def narrowest(vocab_size: int) -> np.dtype:
    return np.dtype(np.uint8 if vocab_size <= 1 << 8 else np.uint16 if vocab_size <= 1 << 16 else np.int32)


class Coded(NamedTuple):
    ids: np.ndarray  # flat, of all examples in order
    lengths: np.ndarray  # (n,) int32, tokens of each
    cut: int  # examples that were too long
    lost: int  # tokens that this cost
    size: int = 0  # bytes of source
    pads: int = 0  # tokens left out, as they are padding, or its name in a text
    bare: int = 0  # examples left out, as no token was left of them


class Encoder:
    """A list of texts -> Coded."""

    def __init__(self, path: str | Path, max_size: int | None):
        self.tokenizer, self.max_size = load_tokenizer(path), max_size
        self.dtype = narrowest(max(self.tokenizer.get_vocab().values(), default=-1) + 1)  # ids may have gaps
        self.special = {t.content: i for i, t in self.tokenizer.get_added_tokens_decoder().items()}
        about = json.loads(self.tokenizer.to_str())
        self.ends = self.tokenizer.encode("").ids  # <s> </s>
        self.pad = next((i for i in map(self.tokenizer.token_to_id, NAMES["pad"]) if i is not None), None)
        word = unknown_word(about["model"])
        self.unknown = self.tokenizer.token_to_id(word) if word else None
        self.table = None
        if about["model"]["type"] == "WordLevel" and about["pre_tokenizer"] == BY_DIGIT and len(self.ends) == 2:
            words = about["model"]["vocab"]
            self.table = np.full(0x110000, words[about["model"]["unk_token"]], dtype=self.dtype)
            for word, i in words.items():
                if len(word) == 1:
                    self.table[ord(word)] = i

    def __call__(self, texts: list[str]) -> Coded:
        ids, lengths = self.look_up(texts) if self.table is not None else (None, None)
        if ids is None:
            rows = self.rows(texts)
            lengths = np.fromiter(map(len, rows), np.int64, len(rows))
            ids = np.fromiter((i for row in rows for i in row), self.dtype, int(lengths.sum()))
        return self.cut(ids, lengths)

    def rows(self, texts: list[str]) -> list[list[int]]:
        try:
            return [e.ids for e in self.tokenizer.encode_batch_fast(texts)]
        except Exception as e:  # plain Exception, of a tokenizer without <unk>
            if texts[1:]:
                return [self.rows([text])[0] for text in texts]  # which of them
            raise ValueError(f"{texts[0][:40]!r} holds what the tokenizer has no token for: {e}") from None

    def lost(self, ids: np.ndarray) -> int:
        """How many tokens are <unk>."""
        return 0 if self.unknown is None else int((ids == self.unknown).sum())

    def look_up(self, texts: list[str]):
        """A table instead of the library, for tokenizers of single characters: some hundred times faster."""
        whole = "".join(texts)
        if any(word in whole for word in (*self.special, *"\x1c\x1d\x1e\x1f")):  # white space to split() alone
            return None, None
        texts = ["".join(text.split()) for text in texts]
        lengths = np.fromiter(map(len, texts), np.int64, len(texts)) + 2
        last = np.cumsum(lengths) - 1
        ids = np.empty(int(lengths.sum()), dtype=self.dtype)
        inner = np.ones(len(ids), dtype=bool)
        inner[last] = inner[last - lengths + 1] = False
        ids[last - lengths + 1], ids[last] = self.ends
        ids[inner] = self.table[np.frombuffer("".join(texts).encode("utf-32-le"), np.uint32)]
        return ids, lengths

    def cut(self, ids: np.ndarray, lengths: np.ndarray) -> Coded:
        """At most max_size tokens each, none of them padding; a closing special token (</s>) stays."""
        pads = 0 if self.pad is None else int((ids == self.pad).sum())
        if pads:  # <pad> in a text: among its tokens it would stand for none
            lengths = np.bincount(np.repeat(np.arange(len(lengths)), lengths)[ids != self.pad], minlength=len(lengths))
            ids = ids[ids != self.pad]
        if self.max_size is None or lengths.max(initial=0) <= self.max_size:
            return Coded(ids, lengths.astype(np.int32), 0, 0, pads=pads)
        first = np.cumsum(lengths) - lengths
        kept = np.minimum(lengths, self.max_size)
        place = np.arange(len(ids)) - np.repeat(first, lengths)
        out = ids[place < self.max_size]
        over = np.flatnonzero(lengths > self.max_size)
        closing = ids[(first + lengths - 1)[over]]
        closes = np.isin(closing, list(self.special.values()))
        out[(np.cumsum(kept) - 1)[over[closes]]] = closing[closes]
        return Coded(out, kept.astype(np.int32), len(over), int((lengths - kept).sum()), pads=pads)


def some_tokens(coded: Coded, path: str | Path, done: int) -> Coded:
    """Refuses a row (done + 1, done + 2, ...) without a token, of which nothing could be said: not every tokenizer adds
    <s> and </s> to an empty text."""
    if not coded.lengths.all():
        raise ValueError(f"{path}: row {done + int(coded.lengths.argmin()) + 1} has no token: it is empty, or holds"
                         " nothing that the tokenizer keeps")  # fmt: skip
    return coded


def note_lost(lost: int, tokens: int, pads: int = 0) -> None:
    if lost:
        print(f"note: {lost:,} of the {tokens:,} tokens are <unk>: the tokenizer has none for what stood there")
    if pads:
        print(f"note: texts held padding, or its name, {pads:,} times: it was left out")


@functools.cache
def encoder(path: str, max_size: int | None) -> Encoder:
    return Encoder(path, max_size)


def work(task: examples.Task, tokenizer: str, max_size: int | None) -> Coded | str:
    try:
        coded = encoder(tokenizer, max_size)(examples.texts_of(task))
        lengths = coded.lengths[coded.lengths > 0]  # of a line of zero-width spaces a tokenizer may keep nothing
        return coded._replace(lengths=lengths, size=task.size, bare=len(coded.lengths) - len(lengths))
    except ValueError as e:
        # as text: an exception would reach the parent without the place it was raised at
        return str(e) if str(task.file) in str(e) else f"{task.file}: {e}"


def follow_parent() -> None:
    """A worker leaves Ctrl-C to its parent, which says what there is to say, and ends when that is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processes_share() -> bool:
    """Whether there are the locks that worker processes need: a container may have no /dev/shm."""
    try:
        multiprocessing.Lock()
    except (OSError, ImportError) as e:
        print(f"note: one process works, as this machine has no locks for several (/dev/shm: {e})", file=sys.stderr)
        return False
    return True


def encode(path: str | Path | list[Path], tokenizer: str | Path, max_size: int | None = None, column: str = "",
           workers: int | None = None) -> Iterator[Coded]:  # fmt: skip
    """The ids of all examples in their order, whatever the number of workers."""
    encoder(str(tokenizer), max_size)  # a bad tokenizer is told here
    small = examples.source_size(path) < 8 * examples.BLOCK  # not worth the start of a process
    workers = 1 if small else workers or cores()
    one = functools.partial(work, tokenizer=str(tokenizer), max_size=max_size)

    def checked(result):
        if not isinstance(result, Coded):
            raise ValueError(result)
        return result

    if workers == 1 or not processes_share():
        yield from (checked(one(task)) for task in examples.tasks(path, column))
        return
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread a process
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, context, initializer=follow_parent) as pool:
        waiting: collections.deque = collections.deque()  # a window: what is read ahead stays small
        try:
            for task in examples.tasks(path, column):
                waiting.append(pool.submit(one, task))
                if len(waiting) > 2 * workers:
                    yield checked(waiting.popleft().result())
            while waiting:
                yield checked(waiting.popleft().result())
        finally:
            pool.shutdown(cancel_futures=True)
