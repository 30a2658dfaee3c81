"""Text examples out of files, and their token ids: in bounded memory, in order, on all cores.

    for texts in read("encoded_txt"):                       # lists of examples, some 256 kB each
    for coded in encode("encoded_txt", "tokenizer.json"):   # coded.ids, flat, of many examples; coded.lengths

.txt holds an example a line, .jsonl an object a line, .csv or .tsv (with a header) and .parquet a row; `column` names
the text there. Blank examples are skipped. This file imports no torch: every worker process would pay for it.
"""

import collections
import concurrent.futures
import csv
import functools
import itertools
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

from data.vocab import unknown_word

BLOCK = 1 << 18  # bytes of text a task; the tokenizers library takes some 130 bytes for each token of it
SUFFIXES = (".txt", ".csv", ".tsv", ".jsonl", ".parquet")
PACKED = {b"\x1f\x8b": "gzip -d", b"\x28\xb5\x2f\xfd": "zstd -d", b"BZh": "bzip2 -d", b"\xfd7zXZ": "xz -d",
          b"PK\3\4": "unzip"}  # fmt: skip
# by-digit: characters but no white space, each looked up. encode() recognises it, so it is built here
BY_DIGIT = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "WhitespaceSplit"},
        {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False},
    ],
}

# -----------------------------------------------------------------------------
# text


def ending(path: Path) -> str:
    """What kind of file it is: DATA.CSV is a CSV as well."""
    return path.suffix.lower()


def files(path: str | Path | list[Path]) -> list[Path]:
    """Those of a folder, or the one; a list of files is taken as it is."""
    if isinstance(path, list):
        return path
    path = Path(path)
    if path.is_file():
        if ending(path) not in SUFFIXES:
            raise ValueError(f"{path} ends in none of {', '.join(SUFFIXES)}: rename it, if it is text")
        return [path]
    found = [p for p in path.iterdir() if ending(p) in SUFFIXES and not p.is_dir()] if path.is_dir() else []
    found = sorted(p for p in found if not p.name.startswith("."))  # macOS puts a ._name.txt beside each name.txt
    if not found:
        what = f"a folder without {', '.join(SUFFIXES)} files" if path.is_dir() else "no such file or folder"
        raise ValueError(f"{path}: {what}")
    if lost := [p for p in found if not p.exists()]:
        raise ValueError(f"{lost[0]} is a link to {os.readlink(lost[0])}, which is not there")
    return found


def source_size(path: str | Path | list[Path]) -> int:
    return sum(f.stat().st_size for f in files(path))


def decode(block: bytes, path: Path, offset: int) -> str:
    try:
        return block.decode("utf-8")
    except UnicodeDecodeError as e:
        why = "iconv -f latin1 -t utf-8 turns Latin-1 into it"
        if packer := next((p for start, p in PACKED.items() if offset == 0 and block.startswith(start)), ""):
            why = f"it is packed: {packer} unpacks it"
        elif b"\0" in block:
            why = "UTF-16, which iconv turns into it, or no text: name those wanted, as in 'notes/**/*.md'"
        raise ValueError(f"{path} is not UTF-8 at byte {offset + e.start} ({why})") from None


def pick(names: list[str], column: str, path: Path) -> str:
    """The column that holds the text."""
    if not names:
        raise ValueError(f"{path} is empty: a first line with the names of the columns is wanted")
    if column and column in names:  # pandas writes its index under no name
        return column
    if not column and "text" in names:
        return "text"
    if not column and len(names) == 1:
        return names[0]
    what = f"no column {column!r}" if column else "several columns and none is called text"
    raise ValueError(f"{path} has {what}: --column takes one of {', '.join(map(repr, names))}")


def blocks(path: Path) -> Iterator[tuple[bytes, int]]:
    """Whole lines, about BLOCK bytes at a time, with the place of their first byte."""
    with open(path, "rb") as f:
        offset = len(b"\xef\xbb\xbf") if f.read(3) == b"\xef\xbb\xbf" else 0
        f.seek(offset)
        while block := f.read(BLOCK):
            block += f.readline()
            yield block, offset
            offset += len(block)


def distinct(pairs: list[tuple]) -> dict:
    """An object; of a key that stands in it twice Python would take the last without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise KeyError(next(name for name in names if names.count(name) > 1))
    return found


def parse_json(text: str, where: str):
    """A value. Half a surrogate pair, which JSON can spell ("\\ud83d" alone) and no text can hold, becomes U+FFFD."""
    try:
        value = json.loads(text, object_pairs_hook=distinct)
        if "\\ud" in text or "\\uD" in text:
            spelt = json.dumps(value, ensure_ascii=False)
            whole = spelt.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            value = value if whole == spelt else json.loads(whole)
        return value
    except KeyError as e:
        raise ValueError(f"{where} has the key {e} twice in one object") from None
    except RecursionError:
        raise ValueError(f"{where} is nested too deeply to be read") from None
    except ValueError as e:  # JSONDecodeError, or a number of more than 4,300 digits
        hint = " (several objects: one a line, in a .jsonl)" if "Extra data" in str(e) else ""
        if getattr(e, "pos", 0) >= len(text.rstrip()):
            hint = " (it ends in the middle: cut short, or, in a .jsonl, written over several lines)"
        what = str(e).split(";")[0].replace("line 1 ", "")  # of a JSONL it is not the file's line
        raise ValueError(f"{where} is not JSON: {what}{hint}") from None


def json_rows(block: bytes, path: Path, offset: int) -> Iterator[tuple[dict, int]]:
    """Objects, and the byte where each begins."""
    for line in decode(block, path, offset).split("\n"):
        if line.strip():
            row = parse_json(line, f"{path} at byte {offset}")
            if not isinstance(row, dict):
                raise ValueError(f"{path} at byte {offset}: an object a line is wanted, got {line[:40]!r}")
            yield row, offset
        offset += len(line.encode()) + 1


def json_column(path: Path, column: str) -> str:
    """The column that holds the text, as the first object has it: one for all."""
    first = next((row for block, offset in blocks(path) for row, _ in json_rows(block, path, offset)), None)
    return pick(list(first), column, path) if first is not None and not column else column


def text_of(row: dict, column: str, where: str, given: bool) -> str:
    """Rows of JSON need not be alike: none is taken for what it is not."""
    if not given and column != "text" and "text" in row:
        raise ValueError(f"{where}: it has a column 'text', rows before it have {column!r} alone: name the one to take")
    if not isinstance(text := row.get(column), str):
        raise ValueError(f"{where}: text is wanted in {column!r}, got {repr(text)[:40]}")
    return text


def json_lines(block: bytes, path: Path, offset: int, column: str, given: bool) -> list[str]:
    return [text_of(row, column, f"{path} at byte {at}", given) for row, at in json_rows(block, path, offset)]


def csv_lines(path: Path) -> Iterator[str]:
    csv.field_size_limit(1 << 30)
    offset = 0
    with open(path, "rb") as f:
        for line in f:
            yield decode(line, path, offset).removeprefix("" if offset else "\ufeff")
            offset += len(line)


def csv_table(path: Path) -> Iterator[list[str]]:
    """The header, then rows of as many fields, or of none. A tab separates a .tsv; else it is the first of comma,
    semicolon and tab that the header has: spreadsheets write semicolons where the comma is a decimal point."""
    lines = csv_lines(path)
    first = next(lines, "")
    mark = "\t" if ending(path) == ".tsv" else next((m for m in ",;\t" if m in first), ",")
    rows = csv.reader(itertools.chain([first] * bool(first), lines), delimiter=mark, strict=True)
    header, line = None, 1
    try:
        for row in rows:
            if header is None:
                header = row
                if twice := [name for name in row if name and row.count(name) > 1]:
                    raise ValueError(f"{path}: the header has {twice[0]!r} {row.count(twice[0])} times: which one is"
                                     " meant?")  # fmt: skip
            if row and len(row) != len(header):
                raise ValueError(f"{path} line {line} has {len(row)} fields, the header {len(header)} (a field that"
                                 f" holds {mark!r} needs quotes around it)")  # fmt: skip
            yield row
            line = rows.line_num + 1
    except csv.Error as e:
        what = 'a field opens with a quote that is not closed at its end (inside quotes a quote is written "")'
        if "new-line" in str(e):
            what = "a line ends in \\r alone (tr '\\r' '\\n' <FILE writes such ends anew)"
        raise ValueError(f"{path} line {line}: {what}") from None


def csv_texts(path: Path, column: str) -> Iterator[str]:
    rows = csv_table(path)
    header = next(rows, [])
    place = header.index(pick(header, column, path))
    yield from (row[place] for row in rows if row)  # a blank line is no row: of one column it would be ""


def each_once(columns: list[str], path: Path) -> None:
    name, n = collections.Counter(columns).most_common(1)[0] if columns else ("", 1)
    if n > 1:
        raise ValueError(f"{path} has the column {name!r} {n} times: which one is meant?")


def open_parquet(path: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)  # else a row group comes at once
        names = file.schema_arrow.names
    except (pa.ArrowException, OSError) as e:
        raise ValueError(f"{path}: {' '.join(str(e).split())}") from None
    each_once(names, path)
    return file


def parquet_rows(path: Path, columns: list[str] | None = None) -> Iterator[dict]:
    import pyarrow as pa

    try:
        for batch in open_parquet(path).iter_batches(256, columns=columns):
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as e:
        raise ValueError(f"{path} is damaged: {' '.join(str(e).split())}") from None


def parquet_texts(path: Path, column: str) -> Iterator[str]:
    name = pick(open_parquet(path).schema_arrow.names, column, path)
    for i, row in enumerate(parquet_rows(path, [name]), 1):
        if not isinstance(row[name], str):
            raise ValueError(f"{path} row {i}: column {name!r} must hold text, got {row[name]!r}")
        yield row[name]


class Task(NamedTuple):
    """A piece of work, small enough to send about: raw lines where a worker can cut them up, else texts."""

    file: Path
    column: str
    block: bytes | list[str]
    offset: int  # of the block's first byte
    size: int  # bytes of source, for the progress bar
    given: bool = True  # the column's name, by the user


def tasks(path: str | Path | list[Path], column: str = "") -> Iterator[Task]:
    for file in files(path):
        if ending(file) in (".txt", ".jsonl"):
            name = json_column(file, column) if ending(file) == ".jsonl" else ""
            for block, offset in blocks(file):
                yield Task(file, name, block, offset, len(block), bool(column))
            continue
        texts, size = [], 0
        for text in (parquet_texts if ending(file) == ".parquet" else csv_texts)(file, column):
            texts.append(text)
            size += len(text)
            if size >= BLOCK:
                yield Task(file, column, texts, 0, size)
                texts, size = [], 0
        if texts:
            yield Task(file, column, texts, 0, size)


def texts_of(task: Task, rows: bool = False) -> list[str]:
    """Without blank ones; rows: those of a table stay, so that each row has its place."""
    block = task.block
    if isinstance(block, bytes):
        if ending(task.file) == ".jsonl":
            block = json_lines(block, task.file, task.offset, task.column, task.given)
        else:  # not splitlines(): it also cuts at characters that are no line ends to anyone else
            block = decode(block, task.file, task.offset).split("\n")
    if ending(task.file) == ".txt":
        block = [line.strip() for line in block]
    if rows and ending(task.file) != ".txt":
        return list(block)
    return [text for text in block if text and not text.isspace()]  # a row's own spaces are its text's


def read(path: str | Path, column: str = "", rows: bool = False) -> Iterator[list[str]]:
    for task in tasks(path, column):
        yield texts_of(task, rows)


# -----------------------------------------------------------------------------
# ids


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

    words = [w.rstrip() for w in decode(path.read_bytes(), path, 0).removesuffix("\n").split("\n")]  # a blank has an id
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
    return {"kind": "tokenizers", "json": decode(path.read_bytes(), path, 0).removeprefix("\ufeff")}


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
    pads: int = 0  # tokens left out, as a text held the name of the padding


class Encoder:
    """A list of texts -> Coded."""

    def __init__(self, path: str | Path, max_size: int | None):
        self.tokenizer, self.max_size = load_tokenizer(path), max_size
        self.dtype = narrowest(max(self.tokenizer.get_vocab().values(), default=-1) + 1)  # ids may have gaps
        self.special = {t.content: i for i, t in self.tokenizer.get_added_tokens_decoder().items()}
        about = json.loads(self.tokenizer.to_str())
        self.ends = self.tokenizer.encode("").ids  # <s> </s>
        self.pad = next((self.special[name] for name in NAMES["pad"] if name in self.special), None)
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
            rows = [e.ids for e in self.tokenizer.encode_batch_fast(texts)]
            lengths = np.fromiter(map(len, rows), np.int64, len(rows))
            ids = np.fromiter((i for row in rows for i in row), self.dtype, int(lengths.sum()))
        pads = 0 if self.pad is None else int((ids == self.pad).sum())
        if pads:  # <pad> in a text: among its tokens it would stand for none
            lengths = np.bincount(np.repeat(np.arange(len(lengths)), lengths)[ids != self.pad], minlength=len(lengths))
            ids = ids[ids != self.pad]
        return self.cut(ids, lengths)._replace(pads=pads)

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
        """At most max_size tokens each; a closing special token (</s>) stays."""
        if self.max_size is None or lengths.max(initial=0) <= self.max_size:
            return Coded(ids, lengths.astype(np.int32), 0, 0)
        first = np.cumsum(lengths) - lengths
        kept = np.minimum(lengths, self.max_size)
        place = np.arange(len(ids)) - np.repeat(first, lengths)
        out = ids[place < self.max_size]
        over = np.flatnonzero(lengths > self.max_size)
        closing = ids[(first + lengths - 1)[over]]
        closes = np.isin(closing, list(self.special.values()))
        out[(np.cumsum(kept) - 1)[over[closes]]] = closing[closes]
        return Coded(out, kept.astype(np.int32), len(over), int((lengths - kept).sum()))


def some_tokens(coded: Coded, path: str | Path, done: int) -> Coded:
    """Of rows done + 1, done + 2, ...: a label or a vector is of tokens, and a tokenizer may add no <s> to nothing."""
    if not coded.lengths.all():
        raise ValueError(f"{path}: row {done + int(coded.lengths.argmin()) + 1} has no token: it is empty, or holds"
                         " nothing that the tokenizer keeps")  # fmt: skip
    return coded


def note_lost(lost: int, tokens: int, pads: int = 0) -> None:
    if lost:
        print(f"note: {lost:,} of the {tokens:,} tokens are <unk>: the tokenizer has none for what stood there")
    if pads:
        print(f"note: texts held the name of the padding token {pads:,} times: it was left out")


@functools.cache
def encoder(path: str, max_size: int | None) -> Encoder:
    return Encoder(path, max_size)


def work(task: Task, tokenizer: str, max_size: int | None) -> Coded | str:
    try:
        coded = encoder(tokenizer, max_size)(texts_of(task))
        lengths = coded.lengths[coded.lengths > 0]  # of a line of zero-width spaces a tokenizer may keep nothing
        return coded._replace(lengths=lengths, size=task.size)
    except ValueError as e:
        return str(e)  # an exception would reach the parent without the place it was raised at


def follow_parent() -> None:
    """A worker leaves Ctrl-C to its parent, which says what there is to say, and ends when that is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


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
    have = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    small = source_size(path) < 8 * BLOCK  # not worth the start of a process
    workers = 1 if small else workers or have
    one = functools.partial(work, tokenizer=str(tokenizer), max_size=max_size)

    def checked(result):
        if not isinstance(result, Coded):
            raise ValueError(result)
        return result

    if workers == 1 or not processes_share():
        yield from (checked(one(task)) for task in tasks(path, column))
        return
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread a process
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, context, initializer=follow_parent) as pool:
        waiting: collections.deque = collections.deque()  # a window: what is read ahead stays small
        try:
            for task in tasks(path, column):
                waiting.append(pool.submit(one, task))
                if len(waiting) > 2 * workers:
                    yield checked(waiting.popleft().result())
            while waiting:
                yield checked(waiting.popleft().result())
        finally:
            pool.shutdown(cancel_futures=True)
