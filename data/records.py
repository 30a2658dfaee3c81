"""Rows of text files with their columns, for what needs more than the text: labels, answers to write back.

    for row in read(Path("reviews.csv")):     # {"text": "a good film", "label": "positive"}
"""

import json
from collections.abc import Iterator
from pathlib import Path

from data import arrow, examples


def read(path: Path) -> Iterator[dict]:
    """Its rows as {column: value}."""
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    if path.suffix in (".csv", ".tsv"):
        yield from read_csv(path)
    elif path.suffix in (".txt", ".jsonl"):
        for block, offset in examples.blocks(path):
            for line in examples.decode(block, path, offset).split("\n"):
                if line.strip():
                    yield {"text": line.strip()} if path.suffix == ".txt" else json_row(line, path)
    else:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            batches = pq.ParquetFile(path).iter_batches(1000)
        else:
            batches = (b for file in arrow.files(path) for b in arrow.open_table(file).to_batches(1000))
        for batch in batches:
            yield from batch.to_pylist()


def read_csv(path: Path) -> Iterator[dict]:
    table = examples.csv_table(path)
    header = next(table, [])
    for row in table:
        if row and len(row) != len(header):
            raise ValueError(f"{path} line {table.line_num} has {len(row)} fields, the header {len(header)}")
        if row:
            yield dict(zip(header, row, strict=True))


def json_row(line: str, path: Path) -> dict:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as e:
        raise ValueError(f"{path}: {e.msg} in {line[:60]!r}") from None
    if not isinstance(row, dict):
        raise ValueError(f"{path}: an object a line is wanted, got {line[:60]!r}")
    return row


def text_column(row: dict, name: str, path: str | Path) -> str:
    """The column that holds the text: the one named, `text`, `input_ids`, or the only one."""
    likely = [c for c in ("text", "input_ids") if c in row] or list(row)[: len(row) == 1]
    column = name or (likely[0] if likely else "")
    if column not in row:
        what = f"no column {name!r}" if name else "several columns and none is called text"
        raise ValueError(f"{path} has {what}: --text_column takes one of {', '.join(row)}")
    return column
