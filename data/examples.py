"""Text examples out of files, in bounded memory: data/encoding.py makes tokens of them.

    for texts in read("encoded_txt"):  # lists of examples, some 256 kB each

.txt holds an example a line, .jsonl an object a line, .csv or .tsv (with a header) and .parquet a row; `column` names
the text there. Blank examples are skipped. This file imports no torch: every worker process would pay for it.
"""

import collections
import csv
import itertools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

BLOCK = 1 << 18  # bytes of text a task; the tokenizers library takes some 130 bytes for each token of it
SUFFIXES = (".txt", ".csv", ".tsv", ".jsonl", ".parquet")
PACKED = {b"\x1f\x8b": "gzip -d", b"\x28\xb5\x2f\xfd": "zstd -d", b"BZh": "bzip2 -d", b"\xfd7zXZ": "xz -d",
          b"PK\3\4": "unzip"}  # fmt: skip


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
            with open(path, "rb") as f:
                unpack = packer(f.read(8))
            what = f"{unpack} unpacks it" if unpack else "rename it, if it is text"
            raise ValueError(f"{path} ends in none of {', '.join(SUFFIXES)}: {what}")
        return [path]
    found = [p for p in path.iterdir() if ending(p) in SUFFIXES and not p.is_dir()] if path.is_dir() else []
    found = sorted(p for p in found if not p.name.startswith("."))  # macOS puts a ._name.txt beside each name.txt
    if not found:
        what = f"a folder without {', '.join(SUFFIXES)} files" if path.is_dir() else "no such file or folder"
        raise ValueError(f"{path}: {what}")
    if lost := [p for p in found if not p.exists()]:
        raise ValueError(f"{lost[0]} is a link to {os.readlink(lost[0])}, which is not there")
    return found


def in_columns(paths: list[Path], column: str, suffixes: tuple[str, ...] = SUFFIXES[1:]) -> None:
    """Refuses --column where no file has columns: the lines of a CSV that is called .txt would be read as texts."""
    if column and all(ending(path) not in suffixes for path in paths):
        raise ValueError(f"--column {column}: {paths[0]} is read as plain text, without columns; files that end in"
                         f" {', '.join(suffixes)} have some")  # fmt: skip


def source_size(path: str | Path | list[Path]) -> int:
    return sum(f.stat().st_size for f in files(path))


def packer(head: bytes) -> str:
    """What unpacks a file that begins so; nothing for others."""
    return next((how for start, how in PACKED.items() if head.startswith(start)), "")


def decode(block: bytes, path: Path, offset: int) -> str:
    zeros = block.count(b"\0") > 8 + len(block) // 100  # UTF-16 without its mark, token ids: they pass for UTF-8
    tar = offset == 0 and block[257:262] == b"ustar"
    why = "iconv -f latin1 -t utf-8 turns Latin-1 into it"
    try:
        text = block.decode("utf-8")
        if not zeros and not tar:
            return text
        what, at = "is no text: zero at byte", block.find(b"\0")
    except UnicodeDecodeError as e:
        what, at = "is not UTF-8 at byte", e.start
        if not block[:at].isascii():  # as Latin-1 all that is well would be garbled
            why = "what stands before it is: iconv -c -f utf-8 -t utf-8 leaves out what is not"
    if offset == 0 and (unpack := packer(block) or "tar -xf" * tar):
        why = f"it is packed: {unpack} unpacks it"
    elif b"\0" in block:
        why = "UTF-16, which iconv turns into UTF-8, or no text: name those wanted, as in 'notes/**/*.md'"
    raise ValueError(f"{path} {what} {offset + at} ({why})")


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
                hint = " (jq -c '.[]' writes a list's items so)" * isinstance(row, list)
                raise ValueError(f"{path} at byte {offset}: an object a line is wanted, got {line[:40]!r}{hint}")
            yield row, offset
        offset += len(line.encode()) + 1


def json_column(path: Path, column: str) -> str:
    """The column that holds the text, as the first object has it: one for all."""
    first = next((row for block, offset in blocks(path) for row, _ in json_rows(block, path, offset)), None)
    return pick(list(first), column, path) if first is not None and not column else column


def text_of(row: dict, column: str, where: str, given: bool) -> str:
    """A row's text. Rows of JSON need not be alike, so each is checked."""
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
    semicolon and tab that the header has outside quotes: spreadsheets write semicolons where the comma is a decimal
    point."""
    lines = csv_lines(path)
    first = next(lines, "")
    bare = re.sub('"[^"]*("|$)', "", first)
    mark = "\t" if ending(path) == ".tsv" else next((m for m in ",;\t" if m in bare), ",")
    rows = csv.reader(itertools.chain([first] * bool(first), lines), delimiter=mark, strict=True)
    header, line = None, 1
    try:
        for row in rows:
            if header is None:
                header = row
                if twice := [name for name in row if name and row.count(name) > 1]:
                    raise ValueError(f"{path}: the header has {twice[0]!r} {row.count(twice[0])} times: which one is"
                                     " meant?")  # fmt: skip
            elif len(row) > 1 and [row[0].removeprefix("\ufeff"), *row[1:]] == header:  # of one column it may be a text
                raise ValueError(f"{path} line {line} is the header again, as where files are joined: take it out")
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
    """A task's texts, blank ones left out; with `rows` a table keeps them, so that texts stay in step with rows."""
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
