"""Token data sets as .pt files, in two layouts, read as data: nothing in them is executed.

    TensorDataset(input_ids, mask[, labels])                     mask True = PAD
    {"input_ids": ..., "attention_mask": ...[, "labels": ...]}   attention_mask True = a real token

    rows = Rows("train.pt", max_size=512, end=2, pad=1)
    ids, lengths = rows.rows([7, 0])      # flat int64 ids of row 7, then of row 0

Padding is dropped: the mask says what it is, and may not contradict the ids.
"""

import zlib
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import TensorDataset

from core import checkpoint, disk
from data import examples


def read(path: Path) -> tuple[dict, bool]:
    """({name: tensor}, whether True in the mask is padding)."""
    if not path.is_file():
        what = "is a folder: a .pt file by data/build_tensors.py is wanted" if path.is_dir() else "does not exist"
        raise ValueError(f"data set {path} {what}")
    if examples.ending(path) in examples.SUFFIXES:
        raise ValueError(f"data set {path} is text: data/build_tensors.py makes a .pt file of it")
    with torch.serialization.safe_globals([TensorDataset]):
        data = checkpoint.load_data(path)
    if isinstance(data, dict) and data.keys() >= {"model", "optimizer"}:
        raise ValueError(f"{path} is a checkpoint: a data set by data/build_tensors.py is wanted")
    if isinstance(data, dict):
        return data, False
    parts = vars(data).get("tensors") if isinstance(data, TensorDataset) else None
    if not isinstance(parts, tuple | list) or len(parts) not in (2, 3):
        raise ValueError(f"{path} must hold a TensorDataset of input_ids, mask and perhaps labels, or a dict of them;"
                         f" got {type(data).__name__}")  # fmt: skip
    return dict(zip(("input_ids", "attention_mask", "labels")[: len(parts)], parts, strict=True)), True


def check(path: Path, table: dict) -> None:
    """Names, types and shapes."""
    for name, dims in (("input_ids", 2), ("attention_mask", 2), ("labels", 1)):
        x = table.get(name)
        if name == "labels" and x is None:
            continue
        if not torch.is_tensor(x) or x.dim() != dims or len(x) != len(table["input_ids"]):
            what = "a row" if dims == 2 else "a number"
            got = f"{tuple(x.shape)}" if torch.is_tensor(x) else type(x).__name__
            raise ValueError(f"{path}: {name} must be a tensor, {what} an example, got {got}")
        bits = name == "attention_mask" and (x.dtype == torch.bool or bool(((x == 0) | (x == 1)).all()))
        if x.is_floating_point() or (x.dtype == torch.bool or name == "attention_mask") and not bits:
            what = "bool" if name == "attention_mask" else "long"
            raise ValueError(f"{path}: {name} must be {what}, got {x.dtype}")
    shapes = [tuple(table[name].shape) for name in ("input_ids", "attention_mask")]
    if shapes[0] != shapes[1] or not all(shapes[0]):
        raise ValueError(f"{path}: input_ids is {shapes[0]}, attention_mask {shapes[1]}: they must be equal, not empty")
    names = table.get("label_names")
    if names is not None and not (isinstance(names, list) and all(isinstance(n, str) for n in names)):
        raise ValueError(f"{path}: label_names must be a list of text, got {type(names).__name__}")


class Rows:
    """All examples of a file, in order, as data/arrow.py's Rows; also labels, their names and the tokenizer's hash,
    each None where the file does not tell."""

    def __init__(self, path: str | Path, max_size: int | None = None, end: int | None = None, pad: int | None = None):
        self.path, self.note = Path(path), ""
        table, true_is_pad = read(self.path)
        check(self.path, table)
        ids, real = table["input_ids"], table["attention_mask"].bool() ^ true_is_pad
        if pad is not None and (bad := real == (ids == pad)).any():
            row, col = bad.nonzero()[0].tolist()
            says = "a real token" if real[row, col] else "padding"
            hint = "; all of them: turn the mask around" if bad.all() else ""
            rule = "padding in a TensorDataset" if true_is_pad else "a real token in a dict"
            raise ValueError(
                f"{path}: row {row}, place {col} holds the id {ids[row, col].item()} (padding is {pad}) and its mask"
                f" says {says}; {int(bad.sum())} places contradict{hint} (True is {rule})"
            )
        length = real.sum(1).numpy()
        if not length.all():
            raise ValueError(f"{path}: row {int(np.argmin(length))} has no real token")
        self.labels = None if table.get("labels") is None else table["labels"].long().numpy()
        self.names, self.tokenizer = table.get("label_names"), table.get("tokenizer")
        if (wide := real & (ids.long() != ids.int())).any():
            row, col = wide.nonzero()[0].tolist()
            raise ValueError(f"{path} row {row}, place {col}: id {ids[row, col].item()}, ids lie from 0 to {2**31 - 1}")
        self.ids = ids[real].to(torch.int32).numpy()
        self.first = np.concatenate([[0], np.cumsum(length)])
        self.max_size, self.end, self.longest = max_size, end, int(length.max())
        cut_to = table.get("max_length")  # by data/build_tensors.py
        self.limit = min(max_size, cut_to) if max_size and type(cut_to) is int else max_size  # no text is longer
        over = length - max_size if max_size else np.zeros(1, np.int64)
        self.cut, self.lost = int((over > 0).sum()), int(over.clip(min=0).sum())
        self.length = (np.minimum(length, max_size) if self.cut else length).astype(np.int32)
        self.tokens = int(self.length.sum(dtype=np.int64))

    def __len__(self) -> int:
        return len(self.length)

    def row(self, i: int) -> np.ndarray:
        row = self.ids[self.first[i] : self.first[i + 1]]
        if len(row) > self.length[i]:
            ends = self.end is not None and row[-1] == self.end
            row = np.append(row[: self.length[i] - 1], row[-1]) if ends else row[: self.length[i]]
        return row

    def rows(self, indices) -> tuple[np.ndarray, np.ndarray]:
        """(flat int64 ids, lengths) of these rows, in this order."""
        return np.concatenate([self.row(i) for i in indices]).astype(np.int64), self.length[indices]

    def counts(self) -> list[int]:
        """What tells these data from others: their sizes, a checksum of the labels and one of 512 of the rows."""
        some = np.concatenate([self.row(i) for i in np.linspace(0, len(self) - 1, 512).astype(np.int64)])
        labels = b"" if self.labels is None else self.labels.tobytes()  # pretraining needs none
        return [len(self), len(self.ids), zlib.crc32(labels), zlib.crc32(some.tobytes())]

    def all(self) -> tuple[np.ndarray, np.ndarray]:
        """(flat ids, lengths) of all rows."""
        return self.rows(np.arange(len(self))) if self.cut else (self.ids, self.length)

    def check_ids(self, vocab_size: int, rank: int = 0, world: int = 1) -> None:
        """Every id lies in the vocabulary. Each rank has the whole file in memory and looks at all of it."""
        bad = np.flatnonzero((self.ids < 0) | (self.ids >= vocab_size))
        if bad.size:
            row = int(np.searchsorted(self.first, bad[0], side="right")) - 1
            raise ValueError(f"{self.path} row {row}, place {bad[0] - self.first[row]}: id {self.ids[bad[0]]}, but the"
                             f" vocabulary has {vocab_size}")  # fmt: skip

    def check_tokenizer(self, wanted: str, whose: str) -> None:
        """The file was made with this tokenizer, as far as it tells."""
        if self.tokenizer not in (None, wanted):
            raise ValueError(f"{self.path} was made with the tokenizer {self.tokenizer}, {whose} has {wanted}: ids"
                             " mean different things (data/build_tensors.py --tokenizer makes it anew)")  # fmt: skip

    @property
    def classes(self) -> int:
        """How many labels there are, as far as this file tells."""
        return 0 if self.labels is None else max(len(self.names or []), int(self.labels.max()) + 1)

    def check_labels(self, num_labels: int, names: list[str] | None = None, whose: Path | str = "") -> None:
        """Every example has a label, from 0 to num_labels - 1, by the numbers of another file."""
        if self.labels is None:
            raise ValueError(f"{self.path} has no labels (data/build_tensors.py writes them from a column)")
        bad = np.flatnonzero((self.labels < 0) | (self.labels >= num_labels))
        if bad.size:
            raise ValueError(f"{self.path} row {bad[0]} has the label {self.labels[bad[0]]}, but num_labels is"
                             f" {num_labels} (0 to {num_labels - 1}); so have {bad.size} rows")  # fmt: skip
        if self.names and names and self.names != names:
            raise ValueError(f"{self.path} numbers its labels {self.names}, {whose} {names}: data/build_tensors.py"
                             " --labels gives one the other's numbers")  # fmt: skip


def save(path: str | Path, ids: np.ndarray, lengths: np.ndarray, pad: int, labels: np.ndarray | None = None,
         names: list[str] | None = None, tokenizer: str | None = None, layout: str = "dict",
         cut_to: int | None = None) -> None:  # fmt: skip
    """Flat ids and their lengths, padded to the longest, as a dict or as a TensorDataset."""
    real = torch.from_numpy(np.arange(max(lengths)) < np.asarray(lengths)[:, None])
    table = {"input_ids": torch.full(real.shape, pad, dtype=torch.int64)}
    table["input_ids"][real] = torch.from_numpy(ids.astype(np.int64))
    table["attention_mask"] = real if layout == "dict" else ~real
    if labels is not None:
        table["labels"] = torch.from_numpy(np.asarray(labels, dtype=np.int64))
    about = {"label_names": names, "tokenizer": tokenizer, "max_length": cut_to}
    data = {**table, **about} if layout == "dict" else TensorDataset(*table.values())
    path, size = Path(path), disk.size_of(table)
    disk.replace(path, lambda f: disk.dump(f, data, path.parent, size))
