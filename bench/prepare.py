"""Text to tokens, and tokens to batches: seconds and peak memory, beside one process that reads it all.

    python bench/prepare.py                          # 100 MB, a BPE of 8,000 tokens trained on it, and characters
    python bench/prepare.py --merges vocab.bpe       # GPT-2's merges too (tiktoken on both sides)
    python bench/prepare.py read                     # a batch of 64 x 1024 out of 1 GB, and the scan for bad ids

The text is Python source found on this machine. "plain" is the usual script: read the file, encode it with the same
tokenizer in one process (tokenizers' batches use all cores there too), write the ids. All sides take turns; medians.
Memory is the sum of the resident sizes of all processes, which counts shared pages twice.
"""

import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import numpy as np
import table

from data import bins, vocab

ROOT = table.ROOT
PLAIN = """
import sys; sys.path.insert(0, {root!r})
import numpy as np
from data import vocab
text, kind = open({text!r}, encoding="utf-8").read(), {kind!r}
if kind == "char":
    chars = sorted(set(text))
    number = {{c: i for i, c in enumerate(chars)}}
    ids = [number[c] for c in text]
elif kind.endswith(".json"):
    from tokenizers import Tokenizer
    lines = text.splitlines(keepends=True)
    ids = [i for e in Tokenizer.from_file(kind).encode_batch(lines, add_special_tokens=False) for i in e.ids]
else:
    ids = vocab.load(vocab.find(kind)).encoding.encode_ordinary(text)
ids = np.array(ids, dtype=np.uint16)
n = int(len(ids) * 0.9)
ids[:n].tofile({out!r} + "/train.bin")
ids[n:].tofile({out!r} + "/val.bin")
"""


def collect(path: Path, megabytes: float) -> None:
    """Sources out of site-packages and the standard library; from the start again where they do not suffice."""
    folders = [sysconfig.get_path("purelib"), sysconfig.get_path("stdlib")]
    files = sorted(f for folder in folders for f in Path(folder).rglob("*.py"))
    with open(path, "wb") as out:
        while out.tell() < megabytes * 1e6:
            for file in files:
                source = file.read_bytes()
                if source.isascii() and out.tell() < megabytes * 1e6:
                    out.write(source)


def train_bpe(text: Path, path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=8000, special_tokens=[vocab.EOT], initial_alphabet=alphabet)
    with open(text, encoding="utf-8") as f:
        tokenizer.train_from_iterator((line for n, line in enumerate(f) if n % 20 == 0), trainer)
    tokenizer.save(str(path))


def resident(pid: int) -> int:
    """Bytes, of a process and its children."""
    total = 0
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                total = int(line.split()[1]) * 1024
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it ended meanwhile
        return total
    return total + sum(resident(int(child)) for child in children)


def timed(command: list[str]) -> tuple[float, float]:
    """Seconds and peak megabytes."""
    begin, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while process.poll() is None:
        peak = max(peak, resident(process.pid))
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(process.stderr.read().decode())
    return time.perf_counter() - begin, peak / 1e6


def prepare(args, folder: Path) -> None:
    text, own = folder / "text.txt", folder / "bpe.json"
    collect(text, args.megabytes)
    train_bpe(text, own)
    script = str(ROOT / "data" / "text" / "prepare.py")
    for kind in [str(own), *([args.merges] if args.merges else []), "char"]:
        plain = PLAIN.format(root=str(ROOT), text=str(text), kind=kind, out=str(folder))
        sides = {"plain": [sys.executable, "-c", plain]}
        ours = [sys.executable, script, "--input", str(text), "--tokenizer", kind, "--out", str(folder / "out")]
        for n in (1, args.processes):
            sides[f"ours, {n} process{'es' * (n > 1)}"] = [*ours, "--processes", str(n)]
        found = table.turns({name: lambda c=command: timed(c) for name, command in sides.items()}, args.repeats)
        peaks = {name: f"{statistics.median(peak for _, peak in runs):,.0f} MB" for name, runs in found.items()}
        table.report(args, f"Tokens of {args.megabytes:g} MB of text, {Path(kind).name}", table.pick(found, 0), "plain",
                     unit="s", more=False, goal=None if kind == "char" else 1.8,
                     note=f"Peak memory of all processes: {peaks}.")  # fmt: skip


def read(folder: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 50257, 5_000_000)
    with bins.Writer(folder / "big", 50257) as out:
        for _ in range(100):
            out.add("train", ids)
        out.add("val", ids)
    train = bins.Dataset(folder / "big").split("train", 1024)
    begin = time.perf_counter()
    train.check_ids()
    print(f"1 GB scanned for bad ids: {time.perf_counter() - begin:.2f} s")
    for first in (0, 1_000_000):
        for method in bins.METHODS:
            times = []
            for step in range(first, first + 50):
                begin = time.perf_counter()
                train.windows(bins.starts(method, train.n, 1024, 64, 1337, "train", step))
                times.append(time.perf_counter() - begin)
            print(f"64 x 1024, step {first:>9,}, {method:<20} {statistics.median(times) * 1e3:6.2f} ms")


if __name__ == "__main__":
    args = table.arguments(__doc__, what=["prepare", "read"], megabytes=(100.0, "of text"), processes=2,
                           merges=("", "GPT-2's vocab.bpe"))  # fmt: skip
    if args.quick:
        args.megabytes = min(args.megabytes, 5)
    with tempfile.TemporaryDirectory() as scratch:
        if "prepare" in args.what:
            prepare(args, Path(scratch))
        if "read" in args.what and not args.quick:
            read(Path(scratch))
