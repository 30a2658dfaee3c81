"""Rows of token ids in memory-mapped Arrow files: nothing is copied but the rows asked for.

    rows = Rows("pretrain/pretrain_train_trunc4500", max_size=4500, end=2)
    ids, lengths = rows.rows([7, 0])      # flat int64 ids of row 7, then of row 0

A path is an Arrow file or a folder of them, in streaming or file format, by data/build_pretrain_data.py or `datasets`.
A column attention_mask says which ids are real; the others (padding) are dropped.
"""

import mmap
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa

from core.files import read_json
from data import examples
from data.bins import allow_open, whole

END = b"\xff\xff\xff\xff\x00\x00\x00\x00"  # a stream without it was cut, which pyarrow reads without a word


def files(path: str | Path) -> list[Path]:
    path = Path(path)
    if path.is_file():
        return [path]
    if (path / "dataset_dict.json").is_file():
        splits = sorted(p.name for p in path.iterdir() if p.is_dir())
        raise ValueError(f"{path} holds several splits, name one of them: {', '.join(str(path / s) for s in splits)}")
    if (path / "state.json").is_file():
        listed = read_json(path / "state.json").get("_data_files")
        if not isinstance(listed, list) or not all(isinstance(e, dict) and e.get("filename") for e in listed):
            raise ValueError(f"{path}/state.json names no _data_files")
        names = [str(entry["filename"]) for entry in listed]
        for name in names:
            if Path(name).name != name or not (path / name).is_file():
                raise ValueError(f"{path}/state.json lists {name!r}, which is not a file in this folder")
        return [path / name for name in names]
    found = sorted(path.glob("*.arrow")) if path.is_dir() else []
    if not found:
        raise ValueError(f"{path}: no such file, or a folder without .arrow files")
    return found


def open_table(path: Path) -> pa.Table:
    """A table over the mapped file; its magic bytes tell which of the two formats it is."""
    size = path.stat().st_size
    with open(path, "rb") as f:
        head = f.read(6)
        f.seek(max(0, size - 8))
        tail = f.read()
    if size < 16:
        raise ValueError(f"{path} is not an Arrow file: {size} bytes")
    if head != b"ARROW1" and head[:4] != END[:4]:
        raise ValueError(f"{path} is not an Arrow file; the names of texts end in {', '.join(examples.SUFFIXES)}")
    if head != b"ARROW1" and tail != END:
        raise ValueError(f"{path} has no end marker: it was cut short at {size:,} bytes")
    try:
        source = pa.memory_map(str(path))
        reader = pa.ipc.open_file(source) if head == b"ARROW1" else pa.ipc.open_stream(source)
        table = reader.read_all()
        table.validate(full=True)  # the only thing that notices broken offsets
    except (pa.ArrowException, OSError, ValueError) as e:
        raise ValueError(f"{path} is damaged: {str(e).splitlines()[0]}") from None
    examples.each_once(table.column_names, path)
    return table


def made_with(table: pa.Table) -> str | None:
    """The hash of the tokenizer, where build_pretrain_data.py wrote it."""
    about = (table.schema.metadata or {}).get(b"tokenizer")
    return about.decode() if about else None


def numbers(values: pa.Array) -> np.ndarray:
    """Without a copy, except for booleans, which Arrow packs into bits.

    Arrow's own to_numpy loads pandas where it is installed: half a second, in which it swallows a Ctrl-C.
    """
    if pa.types.is_boolean(values.type):
        return numbers(values.cast(pa.uint8())).view(bool)
    kind = np.dtype(values.type.to_pandas_dtype())
    if not len(values):
        return np.zeros(0, kind)
    return np.frombuffer(values.buffers()[1], kind, len(values), values.offset * kind.itemsize)


def spans(column: pa.Array) -> tuple[np.ndarray, pa.Array]:
    """Where each row begins and ends in the column's values: (n + 1,) offsets, values."""
    if pa.types.is_fixed_size_list(column.type):
        width = column.type.list_size
        return (np.arange(len(column) + 1, dtype=np.int64) + column.offset) * width, column.values
    return numbers(column.offsets), column.values


def check(column: pa.Array, name: str, path: Path, first: int) -> None:
    kind = column.type
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    inner = kind.value_type if listed else None
    if not listed or not (pa.types.is_integer(inner) or (name != "input_ids" and pa.types.is_boolean(inner))):
        raise ValueError(f"{path}: column {name!r} must hold lists of integers, it holds {kind}")
    if column.null_count:
        row = first + int(np.flatnonzero(numbers(column.is_null()))[0])
        raise ValueError(f"{path}: column {name!r} row {row} is null ({column.null_count} are)")
    offsets, values = spans(column)
    inside = values.slice(int(offsets[0]), int(offsets[-1] - offsets[0]))
    if inside.null_count:
        place = np.flatnonzero(numbers(inside.is_null()))[0] + offsets[0]
        row = first + int(np.searchsorted(offsets, place, side="right")) - 1
        raise ValueError(f"{path}: column {name!r} row {row} holds a null")


class Rows:
    """All rows of one or many files, in order; `length` has their lengths, cut to max_size."""

    def __init__(self, path: str | Path, max_size: int | None = None, end: int | None = None, pad: int | None = None):
        self.path, self.max_size, self.end, self.pad, self.note = Path(path), max_size, end, pad, ""
        self.tokenizer = None  # hash of the one they were made with, where build_pretrain_data.py wrote it
        self.maps: list[tuple] = []  # each file, and its path, to see whether it became shorter
        self.chunks: list[tuple] = []  # (file, its first row here, offsets, ids, mask or None), one a batch
        first, lengths = [0], [np.zeros(0, np.int64)]
        found = files(path)
        allow_open(found)
        for file in found:
            table, begin = open_table(file), first[-1]
            with open(file, "rb") as f:
                self.maps.append((mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ), file))
            if "input_ids" not in table.column_names:
                raise ValueError(f"{file} has no column 'input_ids', it has {', '.join(table.column_names) or 'none'}")
            self.tokenizer = made_with(table) or self.tokenizer
            for batch in table.to_batches():
                if not len(batch):
                    continue
                column = batch.column("input_ids")
                check(column, "input_ids", file, first[-1] - begin)
                offsets, ids = spans(column)
                real, mask = np.diff(offsets), None
                if "attention_mask" in batch.schema.names:
                    check(batch.column("attention_mask"), "attention_mask", file, first[-1] - begin)
                    real, mask = self.unpadded(offsets, batch.column("attention_mask"), file, first[-1] - begin)
                self.chunks.append((file, begin, offsets, numbers(ids), mask))
                lengths.append(real)
                first.append(first[-1] + len(batch))
        self.first = np.array(first)
        self.length = np.concatenate(lengths).astype(np.int32)
        if not len(self.length):
            raise ValueError(f"{path} holds no rows")
        if not self.length.all():
            raise ValueError(f"{path}: row {int(np.argmin(self.length))} is empty")
        self.longest = int(self.length.max())
        over = self.length - max_size if max_size else np.zeros(1, np.int32)
        self.cut, self.lost = int((over > 0).sum()), int(over.clip(min=0).sum())
        if self.cut:
            self.length = np.minimum(self.length, max_size)
        self.tokens = int(self.length.sum(dtype=np.int64))

    @staticmethod
    def unpadded(offsets: np.ndarray, column: pa.Array, file: Path, first: int):
        """Real lengths, and (where rows begin in the mask, the mask) if it hides anything."""
        begin, mask = spans(column)
        if not np.array_equal(np.diff(begin), np.diff(offsets)):
            row = first + int(np.flatnonzero(np.diff(begin) != np.diff(offsets))[0])
            raise ValueError(f"{file} row {row}: attention_mask and input_ids differ in length")
        mask = numbers(mask)
        seen = np.concatenate([[0], np.cumsum(mask[begin[0] : begin[-1]] != 0)])
        real = np.diff(seen[begin - begin[0]])
        return real, None if seen[-1] == len(seen) - 1 else (begin, mask)

    def __len__(self) -> int:
        return len(self.length)

    def row(self, i: int) -> np.ndarray:
        c = int(np.searchsorted(self.first, i, side="right")) - 1
        _, _, offsets, ids, mask = self.chunks[c]
        k = i - self.first[c]
        a, b = offsets[k], offsets[k + 1]
        row = ids[a:b]
        if mask is not None:
            begin, real = mask
            row = row[real[begin[k] : begin[k + 1]] != 0]
        if self.max_size and len(row) > self.max_size:
            ends = self.end is not None and row[-1] == self.end
            row = np.append(row[: self.max_size - 1], row[-1]) if ends else row[: self.max_size]
        return row

    def rows(self, indices) -> tuple[np.ndarray, np.ndarray]:
        """(flat int64 ids, lengths) of these rows, in this order."""
        for mapped in self.maps:
            whole(*mapped)
        return np.concatenate([self.row(i) for i in indices]).astype(np.int64), self.length[indices]

    def counts(self) -> list[int]:
        """What tells these data from others: their sizes and one of 512 of the rows."""
        some = np.concatenate([self.row(i) for i in np.linspace(0, len(self) - 1, 512).astype(np.int64)])
        return [len(self), self.tokens, zlib.crc32(some.tobytes())]

    def check_ids(self, vocab_size: int, rank: int = 0, world: int = 1) -> None:
        """Every id lies in the vocabulary (ranks share the reading); `note` tells of padding that no mask hides."""
        for c in range(rank, len(self.chunks), world):
            file, begin, offsets, ids, mask = self.chunks[c]
            ids = ids[offsets[0] : offsets[-1]]
            real = mask[1][mask[0][0] : mask[0][-1]] != 0 if mask else True
            if self.pad is not None and not self.note and (pads := (ids == self.pad) & real).any():
                row = self.first[c] - begin + np.searchsorted(offsets - offsets[0], pads.argmax(), side="right") - 1
                self.note = (f"{file} row {row} holds padding (id {self.pad}) that no attention_mask hides: it is read"
                             " as a token")  # fmt: skip
            if len(ids) and (ids.max() >= vocab_size or ids.min() < 0):
                place = int(np.flatnonzero((ids >= vocab_size) | (ids < 0))[0])
                k = int(np.searchsorted(offsets - offsets[0], place, side="right")) - 1
                row, column = self.first[c] - begin + k, place - (offsets[k] - offsets[0])
                raise ValueError(f"{file} row {row}, place {column}: id {ids[place]}, the vocabulary has {vocab_size}")

    def check_tokenizer(self, wanted: str, whose: str) -> None:
        """The files were made with this tokenizer, as far as they tell."""
        if self.tokenizer not in (None, wanted):
            raise ValueError(f"{self.path} was made with the tokenizer {self.tokenizer}, {whose} has {wanted}: ids"
                             " mean different things (data/build_pretrain_data.py makes it anew)")  # fmt: skip
