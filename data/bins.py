"""Token files: data/NAME/train.bin and val.bin, raw ids, described by meta.json.

    dataset = bins.open_dataset("shakespeare_char")
    train = dataset.split("train", block_size=256)
    starts = bins.starts("random", train.n, 256, batch=64, seed=1337, purpose="train", step=0)
    x, y = train.windows(starts)  # (64, 256) int64 each, y one token further

A split is one stream of ids. It may lie in shards (train_000.bin, train_001.bin, ... in the order of their names): they
are read as if they were one file, so a window may begin in one and end in the next. Folders prepared for nanoGPT, with
a meta.pkl or with nothing but GPT-2's ids, are read as they are.
"""

import io
import json
import mmap
import os
import pickle
import re
import resource
import shlex
import shutil
import zlib
from pathlib import Path

import numpy as np

from core import rng
from core.files import read_json, sweep
from core.progress import progress, size

DTYPES = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
NANOGPT_VOCAB = 50304  # GPT-2's 50257 rounded up, nanoGPT's choice where a folder says nothing
METHODS = ("random", "sequential", "without_replacement")
BLOCK = 1 << 22  # ids a scan looks at once
HEADS = (20240520, 20240801)  # the first word of llm.c's files, of which modded-nanogpt's shards are
REMEMBER = 1 << 28  # bytes: what is larger is scanned once, not at every start


def dtype_for(vocab_size: int) -> str:
    return "uint32" if vocab_size > 65535 else "uint16"


# -----------------------------------------------------------------------------
# what a folder says


class PlainUnpickler(pickle.Unpickler):
    """dicts, lists, text and numbers; a pickle that names any class or function is refused before it runs."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"it refers to {module}.{name}")


def read_pickle(path: Path) -> dict:
    """nanoGPT's meta.pkl as meta.json would say it."""
    try:
        meta = PlainUnpickler(io.BytesIO(path.read_bytes())).load()
    except Exception as e:  # a damaged pickle fails in a dozen ways
        why = " ".join(str(e).split())
        raise ValueError(f"{path} is refused: {why} (only plain dicts, lists, text and numbers are read)") from None
    if not isinstance(meta, dict):
        raise ValueError(f"{path} must hold a dict, got {type(meta).__name__}")
    about = {"vocab_size": meta.get("vocab_size")}
    chars = meta.get("itos")
    chars = dict(enumerate(chars)) if isinstance(chars, list) else chars  # as some forks keep it
    if isinstance(chars, dict) and sorted(chars, key=str) == sorted(range(len(chars)), key=str):
        chars = [chars[i] for i in range(len(chars))]
        if all(isinstance(c, str) and len(c) == 1 for c in chars):
            about["tokenizer"] = {"kind": "char", "chars": chars}
    elif isinstance(meta.get("tiktoken_encoding"), str):
        about["tokenizer"] = {"kind": "tiktoken", "name": meta["tiktoken_encoding"]}
    return about


class Dataset:
    """A folder of token files: .vocab_size, .tokenizer (a description for data/vocab.py, or None), .meta."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if (self.folder / "meta.json").is_file():
            self.source = self.folder / "meta.json"
            self.meta = read_json(self.source)
        elif (self.folder / "meta.pkl").is_file():
            self.source = self.folder / "meta.pkl"
            self.meta = read_pickle(self.source)
        elif any(self.folder.glob("meta.json.tmp-*")):
            raise ValueError(f"{self.folder} was not written to its end: prepare it again")
        else:
            self.source = self.folder
            self.meta = {"vocab_size": NANOGPT_VOCAB, "tokenizer": {"kind": "tiktoken", "name": "gpt2"}}
        self.vocab_size = self.meta.get("vocab_size")
        if not isinstance(self.vocab_size, int) or isinstance(self.vocab_size, bool) or self.vocab_size < 1:
            raise ValueError(f"{self.source}: vocab_size must be a whole number > 0, got {self.vocab_size!r}")
        self.limited = ""  # by whom, where vocab_size is not the data's own
        self.dtype = self.meta.get("dtype", dtype_for(self.vocab_size))
        if str(self.dtype) not in DTYPES:
            raise ValueError(f"{self.source}: dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        self.tokenizer = self.meta.get("tokenizer")
        self.count = self.meta.get("count", {})
        if not isinstance(self.count, dict) or not isinstance(self.tokenizer, dict | None):
            raise ValueError(f"{self.source}: count and tokenizer must be objects")

    def files(self, split: str) -> list[Path]:
        """The one file, or the shards in the order of their names (2 before 10)."""
        one, shards = self.folder / f"{split}.bin", sorted(self.folder.glob(f"{split}_*.bin"), key=natural)
        if one.is_file() and shards:
            raise ValueError(f"{self.folder} holds both {one.name} and {shards[0].name}: which of them is the data?")
        if not one.is_file() and not shards:
            raise ValueError(f"{self.folder} has no {split}.bin (or {split}_*.bin)")
        return [one] if one.is_file() else shards

    def split(self, name: str, block_size: int) -> "Split":
        return Split(self, name, block_size)


def natural(path: Path) -> list:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def open_dataset(name: str, root: str | Path = "data") -> Dataset:
    """data/NAME by its name (also written data/NAME), or any folder by its absolute path."""
    root, path = Path(root), Path(name)
    if not path.is_absolute():
        parts = path.parts[1:] if path.parts[:1] == (root.name,) else path.parts
        if not parts or ".." in parts:
            raise ValueError(f"a data set is a name in {root}/ or an absolute path, got {name!r}")
        path = root.joinpath(*parts)
    if path.is_file():
        source, out = (shlex.quote(str(p)) for p in (path, root / path.stem))
        command = f"python data/text/prepare.py --input {source} --out {out}"
        raise ValueError(f"{path} is a file: `{command}` makes the data set {path.stem} of it")
    if not path.is_dir() or not (any(path.glob("train*.bin")) or any(path.glob("val*.bin"))):
        script, name = path / "prepare.py", shlex.quote(str(path))
        command = "python data/text/prepare.py --input FILES --out " + name
        if script.is_file():
            command = "python " + shlex.quote(str(script))
        ready = sorted(p.parent.name for p in root.glob("*/train*.bin"))
        have = f" (prepared: {', '.join(dict.fromkeys(ready))})" if ready else ""
        here = "" if path.is_absolute() or root.is_dir() else f" (there is no {root}/ in {Path.cwd()})"
        raise ValueError(f"no data set in {path}{here}: prepare it with `{command}`{have}")
    return Dataset(path)


# -----------------------------------------------------------------------------
# reading


def allow_open(paths: list[Path]) -> None:
    """Raises the limit of open files, often 1,024, to what it takes: each of these stays open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    there = len(os.listdir("/dev/fd")) if os.path.isdir("/dev/fd") else 16
    want = there + len(paths) + 64  # what else a run opens
    if hard != resource.RLIM_INFINITY and want > hard:
        more = f" and {len(paths) - 1:,} more" * (len(paths) > 1)
        raise ValueError(f"{paths[0]}{more}: {there:,} files are open already, and {hard:,} may be here (ulimit -Hn):"
                         " join shards, as cat does, or have the limit raised")  # fmt: skip
    if soft != resource.RLIM_INFINITY and want > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (want, hard))


def whole(mapped: mmap.mmap, path: Path) -> None:
    """Refuses a mapped file that became shorter, as when `cp` writes over it: to read past its end kills a process."""
    if mapped.size() < len(mapped):
        raise ValueError(f"{path} became shorter while it was read: {len(mapped):,} bytes then, {mapped.size():,} now")


class Split:
    """A stream of .n ids in one or more files, and the windows of block_size + 1 ids that lie in it."""

    def __init__(self, dataset: Dataset, name: str, block_size: int):
        self.dataset, self.name, self.block_size = dataset, name, block_size
        dtype = DTYPES[dataset.dtype]
        self.paths, self.shards, self.maps = dataset.files(name), [], []
        allow_open(self.paths)
        for path in self.paths:
            size = path.stat().st_size
            if size == 0:
                raise ValueError(f"{path} is empty: 0 bytes, 0 ids, and block_size {block_size} needs {block_size + 1}")
            if size % dtype.itemsize:
                raise ValueError(f"{path} has {size:,} bytes, no whole number of {dataset.dtype} ids: it is cut short")
            with open(path, "rb") as f:
                self.maps.append(mmap.mmap(f.fileno(), size, access=mmap.ACCESS_READ))
            self.shards.append(np.frombuffer(self.maps[-1], dtype))
        self.ends = np.cumsum([len(ids) for ids in self.shards])
        self.n = int(self.ends[-1])
        want = dataset.count.get(name, self.n)
        if want != self.n:
            raise ValueError(
                f"{self.paths[0]} holds {self.n:,} {dataset.dtype} ids, {dataset.source} says {want}: prepare it again"
            )
        if self.n <= block_size:
            raise ValueError(f"{self.paths[0]} holds {self.n:,} ids, block_size {block_size} needs {block_size + 1:,}")
        if "count" not in dataset.meta:
            self.check_width()

    def windows(self, starts: np.ndarray, T: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The ids from each start, (B, T), and those one further: [5 6 7 8] at T 3 -> [5 6 7], [6 7 8].

        None: block_size. Where the length grows in a run, T is the step's.
        """
        starts, width = np.asarray(starts, dtype=np.int64), (T or self.block_size) + 1
        assert starts.size == 0 or (starts.min() >= 0 and starts.max() + width <= self.n), (starts.min(), starts.max())
        out = np.empty((len(starts), width), dtype=DTYPES[self.dataset.dtype])
        first = np.searchsorted(self.ends, starts, side="right")
        last = np.searchsorted(self.ends, starts + width - 1, side="right")
        for s in np.unique(first[first == last]):
            whole(self.maps[s], self.paths[s])
            rows = (first == s) & (last == s)
            ids, begin = self.shards[s], self.ends[s] - len(self.shards[s])
            out[rows] = np.lib.stride_tricks.sliding_window_view(ids, width)[starts[rows] - begin]
        across = first != last
        if across.any():  # few rows: id by id, from whichever shard holds it
            at = starts[across, None] + np.arange(width)
            shard, part = np.searchsorted(self.ends, at, side="right"), np.empty(at.shape, dtype=out.dtype)
            for s in np.unique(shard):
                whole(self.maps[s], self.paths[s])
                here = shard == s
                part[here] = self.shards[s][at[here] - (self.ends[s] - len(self.shards[s]))]
            out[across] = part
        return out[:, :-1].astype(np.int64), out[:, 1:].astype(np.int64)

    def mark(self) -> int:
        """A checksum over 512 of the ids: other data that has as many has another one."""
        return zlib.crc32(self.windows(np.linspace(0, self.n - 2, 512).astype(np.int64), 1)[0].tobytes())

    def lies_in(self, other: "Split") -> bool:
        """Whether it is the beginning, the end or all of another one, as where no part was held out of that."""
        places = np.linspace(0, self.n - self.block_size - 1, 256).astype(np.int64)  # enough to tell
        begins = {0, other.n - self.n} if self.n <= other.n else set()
        return any(np.array_equal(self.windows(places), other.windows(places + at)) for at in begins)

    def check_width(self) -> None:
        """Nothing says what the files hold: uint32 read as uint16 has its every second id next to zero."""
        for path, ids in zip(self.paths, self.shards, strict=True):
            if int.from_bytes(ids[:2].tobytes()[:4], "little") in HEADS:
                name = shlex.quote(str(path))
                raise ValueError(f"{path} begins with llm.c's header, 1,024 bytes that are no ids:"
                                 f" `tail -c +1025 {name} >NEW` leaves it out")  # fmt: skip
        ids = self.shards[0][: 1 << 20]
        if self.dataset.dtype == "uint16" and len(ids) >= 64:
            low, high = (ids[::2] < 4).mean(), (ids[1::2] < 4).mean()
            if high > 0.95 and low < 0.5:
                raise ValueError(
                    f"{self.paths[0]} looks like uint32 ids read as uint16 (every second one is next to 0):"
                    f' say so in {self.dataset.folder}/meta.json, {{"vocab_size": ..., "dtype": "uint32"}}'
                )

    def check_ids(self, part: int = 0, parts: int = 1) -> None:
        """Finds an id that the vocabulary does not have, in one of so many parts of the data.

        Read, not mapped: each page of a map that was touched would count as memory of the run.
        """
        limit, dtype = self.dataset.vocab_size, DTYPES[self.dataset.dtype]
        if limit > np.iinfo(dtype).max:
            return
        seen = Verdicts(self.dataset.folder / ".checked.json", limit)
        todo = [(path, ids, begin) for path, ids in zip(self.paths, self.shards, strict=True) if not seen.good(path)
                for begin in range(0, len(ids), BLOCK)][part::parts]  # fmt: skip
        name = f"{self.dataset.folder}: looking once for ids that the vocabulary lacks"
        for path, ids, begin in todo if part else progress(todo, name):
            block = np.fromfile(path, dtype, BLOCK, offset=begin * dtype.itemsize)
            if block.max() >= limit:
                at = begin + int(np.argmax(block >= limit))
                raise ValueError(f"{path}: id {ids[at]} at offset {at:,} (byte {at * dtype.itemsize:,}), vocab_size"
                                 f" is {limit:,}{self.dataset.limited}")  # fmt: skip

    def remember(self) -> None:
        """All parts were found good: large data is not read again."""
        if sum(ids.nbytes for ids in self.shards) >= REMEMBER:
            Verdicts(self.dataset.folder / ".checked.json", self.dataset.vocab_size).add(self.paths)


class Verdicts:
    """Which large files were found good, by name, size, time of change and vocabulary."""

    def __init__(self, path: Path, limit: int):
        self.path, self.limit = path, limit
        try:
            self.known = dict(json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):  # a cache: what cannot be read is not known
            self.known = {}

    def mark(self, path: Path) -> list[int]:
        about = path.stat()
        return [about.st_size, about.st_mtime_ns, self.limit]

    def good(self, path: Path) -> bool:
        return self.known.get(path.name) == self.mark(path)

    def add(self, paths: list[Path]) -> None:
        if all(map(self.good, paths)):
            return
        self.known |= {path.name: self.mark(path) for path in paths}
        temporary = self.path.with_name(f"{self.path.name}.tmp-{os.getpid()}")
        try:
            temporary.write_text(json.dumps(self.known))
            temporary.replace(self.path)
        except OSError:  # a read-only data set is scanned at every start
            pass


# -----------------------------------------------------------------------------
# what a step reads


def starts(method: str, n: int, block_size: int, batch: int, seed: int, purpose: str, step: int) -> np.ndarray:
    """Where the windows of one step's global batch begin, as int64; a pure function of its arguments.

    random draws from all places. The other two walk over the windows that do not overlap, sequential in their order,
    without_replacement in a new order each epoch; a batch may take the end of one epoch and the beginning of the next.
    """
    if method == "random":
        return rng.generator(seed, purpose, step).integers(0, n - block_size, size=batch)
    if method not in METHODS:
        raise ValueError(f"sampling_method must be one of {', '.join(METHODS)}, got {method!r}")
    windows = (n - 1) // block_size
    epoch, place = np.divmod(step * batch + np.arange(batch, dtype=np.int64), windows)
    if method == "without_replacement":
        for e in np.unique(epoch):
            now = epoch == e
            place[now] = rng.permute(place[now], windows, seed, purpose, int(e))
    return place * block_size


# -----------------------------------------------------------------------------
# writing


class Writer:
    """Streams ids into a folder; nothing in it changes before .close(), and meta.json is the last to appear.

    with bins.Writer(folder, 50257, {"kind": "tiktoken", "name": "gpt2"}) as out:
        out.add("train", ids)
        out.add("val", ids)
    """

    def __init__(self, folder: str | Path, vocab_size: int, tokenizer: dict | None = None, **more):
        self.folder, self.vocab_size, self.dtype = Path(folder), vocab_size, dtype_for(vocab_size)
        self.meta = {"vocab_size": vocab_size, "dtype": self.dtype, "count": {}, "tokenizer": tokenizer} | more
        self.open: dict = {}

    def __enter__(self):
        self.new = not self.folder.exists()
        self.folder.mkdir(parents=True, exist_ok=True)
        sweep(self.folder)
        if shards := sorted(p.name for p in self.folder.glob("*_*.bin") if p.name.startswith(("train_", "val_"))):
            raise ValueError(f"{self.folder} holds shards ({shards[0]} ...): write to another folder, or delete them")
        for split in ("train", "val"):
            self.open[split] = open(self.folder / f"{split}.bin.tmp-{os.getpid()}", "wb", buffering=0)
            self.meta["count"][split] = 0
        return self

    def add(self, split: str, ids) -> None:
        ids = np.asarray(ids)
        if ids.size and (ids.max() >= self.vocab_size or ids.min() < 0):
            wrong = int(ids.max() if ids.max() >= self.vocab_size else ids.min())
            raise ValueError(f"id {wrong} does not fit a vocabulary of {self.vocab_size:,} ({self.dtype})")
        rest = memoryview(ids.astype(DTYPES[self.dtype])).cast("B")
        try:
            while rest:
                rest = rest[self.open[split].write(rest) :]
        except OSError as e:
            free = size(shutil.disk_usage(self.folder).free)
            raise OSError(e.errno, f"{e.strerror}, {free} are free", self.open[split].name) from None
        self.meta["count"][split] += ids.size

    def __exit__(self, kind, *_):
        try:
            if kind is None:
                self.close()
        finally:
            for file in self.open.values():
                file.close()
                Path(file.name).unlink(missing_ok=True)
            if self.new and not any(self.folder.iterdir()):
                self.folder.rmdir()

    def close(self) -> None:
        for split, file in self.open.items():
            if self.meta["count"][split] < 2:  # one to read, one to guess
                n = self.meta["count"][split] or "no"
                raise ValueError(f"{self.folder}: {n} token{'s' * (n != 1)} for {split}.bin, there is too little text")
            os.fsync(file.fileno())
        temporary = self.folder / f"meta.json.tmp-{os.getpid()}"
        with open(temporary, "w", encoding="utf-8") as f:
            json.dump(self.meta, f)
            f.flush()
            os.fsync(f.fileno())
        for split, file in self.open.items():
            file.close()
            os.replace(file.name, self.folder / f"{split}.bin")
        os.replace(temporary, self.folder / "meta.json")


def write(folder: str | Path, vocab_size: int, train, val, tokenizer: dict | None = None, **more) -> Dataset:
    """A whole data set out of arrays."""
    with Writer(folder, vocab_size, tokenizer, **more) as out:
        out.add("train", train)
        out.add("val", val)
    return Dataset(folder)
