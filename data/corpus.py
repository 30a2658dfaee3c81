"""Text to token files: one stream of documents, cut once into train and val, in bounded memory, on all cores.

    prepare(["book.txt", "web/"], "data/mine", "gpt2")

Plain files, JSONL (.jsonl, .ndjson, .json), CSV (.csv, .tsv) and Parquet. The last part of the input, by size, is
validation: a plain file is cut at a character, the others at a row, so nothing is in both. Workers get pieces that end
where a tokenizer would have ended a word anyway, and their ids are written in order: any number of processes gives the
same files.
"""

import collections
import concurrent.futures
import contextlib
import functools
import glob
import hashlib
import json
import multiprocessing
import os
import shlex
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core import exits
from core.progress import progress
from data import bins, encoding, examples, vocab

PIECE = 1 << 18  # bytes of text a task
SMALL = 1 << 23  # bytes: below, starting processes costs more than it saves
BOM = b"\xef\xbb\xbf"
LINES = (".jsonl", ".ndjson", ".json")
TABLES = (".csv", ".tsv")


@dataclass(frozen=True)
class Piece:
    split: str
    path: Path
    at: int  # byte of the file where it starts
    content: bytes | list[str]  # of a file, or rows of a Parquet or CSV file
    ends: bool  # a document ends with it and another follows
    size: float  # bytes of input that it stands for


# -----------------------------------------------------------------------------
# reading


def files(inputs: Iterable[str | Path], outs: list[Path]) -> list[Path]:
    """Files in the order given; those of a folder or a pattern in the order of a hash of their names, so that their end
    is like their beginning. What an earlier run wrote to `outs` is not input."""
    found: dict[Path, Path] = {}
    names = ("train.bin", "val.bin", "meta.json", "meta.pkl", "prepare.py")
    folders = {out.resolve() for out in outs}

    def own(path: Path) -> bool:  # whole, or as a killed run left it
        return path.parent.resolve() in folders and path.name.split(".tmp-")[0] in names

    for item in inputs:
        path = Path(item)
        if path.is_file() and own(path):
            raise ValueError(f"--input {item} belongs to the data set that is written: leave it out")
        if path.is_dir():
            new = shuffled(path)
        else:
            new = [path] if path.is_file() else hashed([Path(p) for p in glob.glob(str(item), recursive=True)])
        new = [p for p in new if p.is_file() and not own(p)]
        if not new:
            raise ValueError(f"--input {item}: no such file, or a folder without files")
        for p in new:
            found.setdefault(p.resolve(), p)  # the same file twice would be train and validation
    return [p for p in found.values() if p.stat().st_size]


def shuffled(folder: Path, suffix: str = "") -> list[Path]:
    """Its files that are not hidden, nor in a hidden folder, in the order of a hash of their names. What links lead
    to is read as well, each folder once."""
    found, seen = [], {folder.resolve()}
    for at, folders, names in os.walk(folder, followlinks=True):
        found += [p for name in names if name.endswith(suffix) and not hidden(name) and (p := Path(at, name)).is_file()]
        inner = sorted((p.is_symlink(), p) for p in (Path(at, name) for name in folders if not hidden(name)))
        folders.clear()
        for _, path in inner:  # links last
            if path.resolve() not in seen:
                folders.append(path.name)
                seen.add(path.resolve())
    return hashed(found, folder)


def hidden(name: str) -> bool:
    return name.startswith((".", "__pycache__"))


def hashed(paths: list[Path], folder: str | Path = "") -> list[Path]:
    """In the order of a hash of their names in the folder, or below what they have in common: the same everywhere."""
    folder = folder or (os.path.commonpath([p.parent for p in paths]) if paths else "")

    def key(path: Path) -> bytes:
        name = path.relative_to(folder).as_posix().encode("utf-8", "surrogateescape")  # it may be Latin-1
        return hashlib.sha256(name).digest()

    return sorted(paths, key=key)


def pieces(paths: list[Path], val_fraction: float, column: str) -> Iterator[Piece]:
    sizes = [p.stat().st_size for p in paths]
    left = int(sum(sizes) * (1 - val_fraction))  # bytes of train that are still to come
    for path, size in zip(paths, sizes, strict=True):
        kind = examples.ending(path)
        read = rows if is_parquet(path) or kind in TABLES else lines if kind in LINES else text
        yield from read(path, size, min(left, size), path != paths[-1], column)
        left = max(0, left - size)


def is_parquet(path: Path) -> bool:
    with open(path, "rb") as f:  # the hub's cache has files without a suffix
        return examples.ending(path) == ".parquet" or f.read(4) == b"PAR1"


def text(path: Path, size: int, cut: int, more: bool, column: str) -> Iterator[Piece]:
    """A plain file is one document."""
    with open(path, "rb") as f:
        at = len(BOM) if f.read(3) == BOM else 0
        if at < cut < size:
            f.seek(cut - 1)
            before, *around = f.read(5)
            while around and (around[0] & 0xC0 == 0x80 or (before, around[0]) == (13, 10)):  # in a character or \r\n
                before, *around = around
                cut += 1
        f.seek(at)
        for split, stop in (("train", cut), ("val", size)):
            rest = b""
            while at + len(rest) < stop:
                block = rest + f.read(min(PIECE, stop - at - len(rest)))
                if len(block) == len(rest):
                    raise ValueError(f"{path} became shorter while it was read")
                n = len(block) if at + len(block) == stop else word_end(block)
                yield Piece(split, path, at, block[:n], more and at + n == size, n)
                at, rest = at + n, block[n:]


def word_end(block: bytes) -> int:
    """The last place to cut that no byte-level BPE would notice: before a single space (nor a tokenizer that begins
    a text with one), else behind a line that another follows at once, else anywhere between two characters."""
    for mark, behind in ((b" ", 0), (b"\n", 1)):
        p = len(block)
        for _ in range(1000):
            p = block.rfind(mark, 0, p)
            if p <= 0:
                break
            before = block[max(0, p - 5) : p].decode("utf-8", "ignore").removesuffix("\r" * behind)
            after = block[p + 1 : p + 5].decode("utf-8", "ignore")
            if before and after and not before[-1].isspace() and not after[0].isspace():
                return p + behind
    n = len(block) - 1  # the last character may be incomplete
    while n > 0 and (block[n] & 0xC0 == 0x80 or block[n - 1 : n] == b"\r"):
        n -= 1
    return n or len(block)


def lines(path: Path, size: int, cut: int, more: bool, column: str) -> Iterator[Piece]:
    """JSONL: a row is a document; the row in which the cut falls is validation."""
    with open(path, "rb") as f:
        at = len(BOM) if f.read(3) == BOM else 0
        cut = line_start(f, cut) if cut < size else size
        f.seek(at)
        for split, stop in (("train", cut), ("val", size)):
            while at < stop:
                block = f.read(min(PIECE, stop - at))
                block += f.readline() if at + len(block) < stop else b""
                yield Piece(split, path, at, block, True, len(block))
                at += len(block)


def line_start(f, at: int) -> int:
    while at > 0:
        low = max(0, at - PIECE)
        f.seek(low)
        found = f.read(at - low).rfind(b"\n")
        if found >= 0:
            return low + found + 1
        at = low
    return 0


def rows(path: Path, size: int, cut: int, more: bool, column: str) -> Iterator[Piece]:
    """Parquet and CSV: as JSONL, with a share of the rows in place of bytes."""
    if examples.ending(path) in TABLES:
        read, total = examples.csv_texts, sum(1 for _ in examples.csv_texts(path, column))
    else:
        read, total = examples.parquet_texts, examples.open_parquet(path).metadata.num_rows
    first_val = total * cut // size
    held, chars, done = [], 0, 0
    for row, text in enumerate(read(path, column)):
        if held and (chars >= PIECE or row == first_val):
            yield Piece("train" if done < first_val else "val", path, done, held, True, len(held) / total * size)
            held, chars, done = [], 0, row
        held.append(text)
        chars += len(text)
    if held:
        yield Piece("train" if done < first_val else "val", path, done, held, True, len(held) / total * size)


def download(url: str, path: Path, sha256: str) -> None:
    """A file that is small enough to hold, checked, or one line on what to do without a network."""
    instead = f"put the file at {path} yourself, or give --input FILE"
    try:
        with urllib.request.urlopen(url, timeout=20) as response:
            content = response.read()
    except OSError as e:
        raise ValueError(f"cannot download {url} ({getattr(e, 'reason', e)}): {instead}") from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{url} is not the file it was ({len(content):,} bytes): {instead}")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    temporary.write_bytes(content)
    temporary.replace(path)


# -----------------------------------------------------------------------------
# pieces to ids


def documents(piece: Piece, column: str) -> list[str]:
    if isinstance(piece.content, list):
        return [t for t in piece.content if t]
    if examples.ending(piece.path) in LINES:
        name = examples.json_column(piece.path, column)
        found = examples.json_lines(piece.content, piece.path, piece.at, name, bool(column))
        return [t for t in found if t]
    return [examples.decode(piece.content, piece.path, piece.at).replace("\r\n", "\n")]


def joined(piece: Piece, column: str) -> str:
    """Documents for tokenizers without an end-of-text token: each begins on a line of its own."""
    texts = documents(piece, column)
    return "".join(t if t.endswith("\n") or not piece.ends else t + "\n" for t in texts)


@functools.lru_cache
def load(description: str):
    """Once a process; a forked worker has it from its parent, with what it makes at its first use."""
    tokenizer = vocab.load(json.loads(description))
    tokenizer.ids("")
    return tokenizer


class Encode:
    """A piece's ids, by each of several tokenizers: {name: (description, function of the text or None)}."""

    def __init__(self, outputs: dict[str, tuple[dict, Callable | None]], column: str):
        self.outputs, self.column = outputs, column

    def start(self) -> None:
        self.tokenizers = {name: (load(json.dumps(about)), view) for name, (about, view) in self.outputs.items()}

    def __call__(self, piece: Piece) -> dict[str, np.ndarray]:
        return {name: self.ids(piece, *how) for name, how in self.tokenizers.items()}

    def ids(self, piece: Piece, tokenizer, view) -> np.ndarray:
        if tokenizer.eot is None:
            text = joined(piece, self.column)
            texts, end = [view(text) if view else text], []
        else:
            texts, end = documents(piece, self.column), [np.array([tokenizer.eot], dtype=np.uint32)] * piece.ends
        try:
            parts = [part for text in texts for part in (tokenizer.ids(text), *end)]
        except ValueError as e:  # a character that another data set's alphabet lacks
            raise ValueError(f"{piece.path}, from {piece.at:,} on: {e}") from None
        out = np.concatenate(parts) if parts else np.empty(0, dtype=np.uint32)
        return out.astype(bins.DTYPES[bins.dtype_for(tokenizer.vocab_size)])  # ids are below vocab_size: half the way


class Alphabet:
    """The characters of a piece, by code point."""

    def __init__(self, column: str):
        self.column = column

    def start(self) -> None:
        pass

    def __call__(self, piece: Piece) -> np.ndarray:
        codes = np.frombuffer(joined(piece, self.column).encode("utf-32-le", "surrogatepass"), dtype="<u4")
        return np.flatnonzero(np.bincount(codes)) if codes.size else codes


# -----------------------------------------------------------------------------
# on all cores

job: Callable  # what this process does to a piece


def begin(new_job: Callable) -> None:
    global job
    job = new_job
    if multiprocessing.parent_process():
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread a process
        encoding.follow_parent()
    job.start()


def work(piece: Piece):
    try:
        return job(piece)
    except ValueError as e:
        if exits.ours(e):
            return str(e)  # as text: what a future raises again looks like a bug
        raise


def spread(new_job: Callable, tasks: Iterator[Piece], processes: int) -> Iterator[tuple[Piece, object]]:
    """(piece, result) in the order of the pieces; at most a few pieces a process are in memory."""
    if processes == 1 or not encoding.processes_share():
        begin(new_job)
        yield from ((piece, good(work(piece))) for piece in tasks)
        return
    waiting: collections.deque = collections.deque()
    with concurrent.futures.ProcessPoolExecutor(processes, initializer=begin, initargs=(new_job,)) as pool:
        try:
            for piece in tasks:
                waiting.append((piece, pool.submit(work, piece)))
                if len(waiting) > 3 * processes:
                    piece, result = waiting.popleft()
                    yield piece, good(result.result())
            while waiting:
                piece, result = waiting.popleft()
                yield piece, good(result.result())
        finally:
            pool.shutdown(cancel_futures=True)


def good(result):
    if isinstance(result, str):
        raise ValueError(result)
    return result


# -----------------------------------------------------------------------------
# the whole way


def prepare(inputs, out, tokenizer: str, *, column="", val_fraction=0.1, processes=0, views=None) -> None:
    """Writes the data set `out`. With views, {suffix: None, or (alphabet, function of the text)}, one aligned data set
    each: a function gives a character of its alphabet for each of the text's."""
    if not inputs:
        raise ValueError("--input is missing: text files, .jsonl, .csv, .parquet, or folders of them")
    if not 0 < val_fraction < 1:
        raise ValueError(f"--val_fraction must lie between 0 and 1, got {val_fraction}")
    paths = files(inputs, [Path(f"{out}{suffix}") for suffix in views or {"": None}])
    if not any(map(is_parquet, paths)):
        examples.in_columns(paths, column, (*TABLES, *LINES, ".parquet"))
    total = sum(p.stat().st_size for p in paths)
    if not total:
        raise ValueError(f"--input {' '.join(map(str, inputs))}: nothing but empty files")
    processes = processes or (1 if total < SMALL else encoding.cores())

    def run(new_job: Callable, what: str):
        results = spread(new_job, pieces(paths, val_fraction, column), processes)
        return progress(results, what, total / 1e6, "MB", lambda result: result[0].size / 1e6)

    if tokenizer == "char":
        seen = np.zeros(0x110000, dtype=bool)
        for _, codes in run(Alphabet(column), "reading the alphabet"):
            seen[codes] = True
        if not seen.any():
            raise ValueError(f"--input {' '.join(map(str, inputs))}: no text in it")
        about = {"kind": "char", "chars": [chr(c) for c in np.flatnonzero(seen)]}
    else:
        about = vocab.find(tokenizer)

    with contextlib.ExitStack() as stack:
        outputs, writers, old = {}, {}, []
        for suffix, view in (views or {"": None}).items():
            outputs[suffix] = (about, None) if view is None else ({"kind": "char", "chars": list(view[0])}, view[1])
            size = load(json.dumps(outputs[suffix][0])).vocab_size
            there = Path(f"{out}{suffix}", "meta.json").is_file()
            old.append(bins.Dataset(f"{out}{suffix}").tokenizer if there else None)
            writers[suffix] = stack.enter_context(bins.Writer(f"{out}{suffix}", size, outputs[suffix][0]))
        word, lost = getattr(load(json.dumps(about)), "unknown", None), 0
        unknown = load(json.dumps(about)).tokenizer.token_to_id(word) if word else None
        for piece, ids in run(Encode(outputs, column), "tokenizing"):
            for suffix, writer in writers.items():
                writer.add(piece.split, ids[suffix])
            lost += int((ids[""] == unknown).sum()) if unknown is not None and "" in ids else 0
    for writer, before in zip(writers.values(), old, strict=True):
        count, name = writer.meta["count"], writer.folder
        if before is not None and before != writer.meta["tokenizer"]:
            print(f"note: {name} held tokens of another tokenizer, now replaced: runs on those cannot be resumed")
        print(f"{name}: {count['train']:,} train and {count['val']:,} val tokens, vocabulary {writer.vocab_size:,}")
    if lost:
        print(f"note: {lost:,} tokens are {word}: the tokenizer has no token for what stood there")
    if about["kind"] == "tokenizers" and vocab.drops(json.loads(about["json"])["model"]):
        print("note: the tokenizer has no <unk>: letters that it has no token for are left out, uncounted")
    if not views:
        inside = writer.folder.resolve().parent == Path("data").resolve()
        name = writer.folder.name if inside else writer.folder.resolve()
        print(f"next: python train.py --dataset={shlex.quote(str(name))}")
