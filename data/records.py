"""Rows of text files with their columns, for what needs more than the text: labels, answers to write back.

    for row in read(Path("reviews.csv")):     # {"text": "a good film", "label": "positive"}
"""

from collections.abc import Iterator
from pathlib import Path

from data import arrow, examples


def read(path: Path) -> Iterator[dict]:
    """Its rows as {column: value}."""
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    kind = examples.ending(path)
    if kind in (".csv", ".tsv"):
        table = examples.csv_table(path)
        header = next(table, [])
        yield from (dict(zip(header, row, strict=True)) for row in table if row)
    elif kind == ".parquet":
        yield from examples.parquet_rows(path)
    elif kind in (".txt", ".jsonl"):
        for block, offset in examples.blocks(path):
            if kind == ".jsonl":
                yield from (row for row, _ in examples.json_rows(block, path, offset))
            else:
                lines = examples.decode(block, path, offset).split("\n")
                yield from ({"text": line.strip()} for line in lines if line.strip())
    else:
        for file in arrow.files(path):
            for batch in arrow.open_table(file).to_batches(1000):
                yield from batch.to_pylist()


def text_column(row: dict, name: str, path: str | Path, label: str = "") -> str:
    """The column that holds the text: the one named, `text`, `input_ids`, or the only one that is not the label's."""
    others = [c for c in row if c and c != label]  # pandas writes its index under no name
    likely = [c for c in ("text", "input_ids") if c in others] or others[: len(others) == 1]
    column = name or (likely[0] if likely else None)
    if column == label and label:
        raise ValueError(f"--text_column and --label_column are both {label!r}")
    if column not in row:
        several = "several columns and none is called text" if others else "no column but the label's"
        what = f"no column {name!r}" if name else several
        choices = ", ".join(map(repr, others)) or "its columns"
        raise ValueError(f"{path} has {what}: --text_column takes one of {choices}")
    return column


def texts(rows: list[dict], column: str, path: str | Path, done: int, given: bool) -> list[str]:
    """That column of rows done + 1, done + 2, ..."""
    return [examples.text_of(row, column, f"{path}: row {i}", given) for i, row in enumerate(rows, done + 1)]


def label(row: dict, column: str, path: str | Path, number: int) -> str:
    """A row's label by its name; none where the column is empty, null or NaN, as a missing number is written."""
    value = row.get(column)
    if isinstance(value, list | dict | bytes):
        raise ValueError(f"{path}: row {number} has {str(value)[:60]} in {column!r}: a label is one name or number")
    return "" if value is None or value != value else str(value).strip()
