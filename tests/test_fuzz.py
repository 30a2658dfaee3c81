"""Mutated files in every reader: read, or refused in one line; never a traceback, a crash, a hang or an execution.

A child process reads them all, so that a crash or a hang is seen, and too much memory is an error.
"""

import csv
import json
import os
import pickle
import resource
import signal
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import train
from core import checkpoint, config, exits, hf
from data import arrow, bins, encoding, examples, qa, records, tensors, vocab
from data.train_tokenizer import build

SECONDS = 10  # a file
MEMORY = 4 << 30  # more than the process has


def mutate(raw: bytes, g: np.random.Generator) -> bytes:
    """One to four changes: bits, bytes, a piece left out, doubled, emptied or moved, numbers and brackets exchanged."""
    data = bytearray(raw)
    for _ in range(int(g.integers(1, 5))):
        n = len(data)
        a, b = sorted(int(x) for x in g.integers(0, n + 1, 2))
        b = min(b, a + int(g.integers(1, 65)))
        kind = int(g.integers(0, 8))
        if not n:
            break
        if kind == 0:
            data[a % n] ^= 1 << int(g.integers(8))
        elif kind == 1:
            data[a % n] = int(g.integers(256))
        elif kind == 2:
            del data[a:b]
        elif kind == 3:
            data[a:a] = data[a:b]
        elif kind == 4:
            data[a:b] = bytes(b - a)
        elif kind == 5:
            data = data[: max(a, 1)]
        elif kind == 6:
            data[a:b] = bytes(g.choice(list(b'0123456789-+.eE"{}[]:,!&*#\\\n\xff\xef'), b - a).tolist())
        else:
            data[a:b] = bytes(g.integers(0, 256, b - a, dtype=np.uint8))
    return bytes(data)


# -----------------------------------------------------------------------------
# the readers: a whole file, and how a script reads it


def bins_folder(folder: Path) -> None:
    bins.write(folder / "set", 11, np.arange(500) % 11, np.arange(100) % 11, {"kind": "char", "chars": list("abcdefghijk")})


def read_bins(path: Path) -> None:
    data = bins.open_dataset(str(path.parent))
    split = data.split("train", 8)
    split.check_ids()
    split.windows(np.array([0, split.n - 9]))
    if data.tokenizer:
        vocab.load(data.tokenizer).decode([1, 2, 3])


def meta_json(folder: Path) -> Path:
    bins_folder(folder)
    return folder / "set" / "meta.json"


def train_bin(folder: Path) -> Path:
    bins_folder(folder)
    return folder / "set" / "train.bin"


def meta_pkl(folder: Path) -> Path:
    bins_folder(folder)
    (folder / "set" / "meta.json").unlink()
    words = {c: i for i, c in enumerate("abcdefghijk")}
    with open(folder / "set" / "meta.pkl", "wb") as f:
        pickle.dump({"vocab_size": 11, "stoi": words, "itos": {i: c for c, i in words.items()}}, f)
    return folder / "set" / "meta.pkl"


def arrow_file(kind):
    def write(folder: Path) -> Path:
        table = pa.table({"input_ids": pa.array([[0, 7, 8, 2], [0, 9, 2], [0, 6, 6, 6, 6, 2]] * 5)})
        with kind(str(folder / "a.arrow"), table.schema) as out:
            out.write_table(table, max_chunksize=4)
        return folder / "a.arrow"

    return write


def read_rows(rows) -> None:
    rows.check_ids(16)
    rows.rows(np.arange(len(rows)))


def tensor_file(folder: Path) -> Path:
    tensors.save(folder / "a.pt", np.array([0, 7, 2, 0, 8, 9, 2]), np.array([3, 4]), 1, np.array([0, 1]), ["no", "yes"])
    return folder / "a.pt"


def read_tensors(path: Path) -> None:
    rows = tensors.Rows(path, None, 2, 1)
    rows.check_labels(2)
    read_rows(rows)


def checkpoint_file(folder: Path) -> Path:
    empty = {key: kind() if isinstance(kind, type) else None for key, kind in checkpoint.KEYS.items()}
    state = empty | {"format": checkpoint.FORMAT, "kind": "gpt", "model": {"w": torch.ones(5)}}
    checkpoint.save(folder / "ckpt.pt", state, keep=False)
    return folder / "ckpt.pt"


def weights_bin(folder: Path) -> Path:
    shape = {"n_layer": 1, "n_head": 1, "n_embd": 4, "n_positions": 8, "vocab_size": 9, "model_type": "gpt2"}
    (folder / "config.json").write_text(json.dumps(shape))
    weights = {"transformer.wte.weight": torch.ones(9, 4), "transformer.h.0.ln_1.weight": torch.ones(4)}
    torch.save(weights, folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"


def config_json(folder: Path) -> Path:
    return weights_bin(folder).with_name("config.json")


def state_json(folder: Path) -> Path:
    arrow_file(pa.ipc.new_stream)(folder)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "a.arrow"}], "_split": "train"}))
    return folder / "state.json"


def tokenizer_json(folder: Path) -> Path:
    build("bpe", 300, lambda: ["some words, and some more words", "words 12 34"]).save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def read_tokenizer(path: Path) -> None:
    tokenizer = vocab.load(encoding.describe(path))
    tokenizer.decode(tokenizer.encode("some words"))


def yaml_file(folder: Path) -> Path:
    text = "dataset: toy\nmax_iters: 20\nlearning_rate: 1e-3\nbias: false\noptimizer_args: {muon_lr: 0.02}\ntransfer: [attn, mlp]\n"
    (folder / "a.yaml").write_text(text)
    return folder / "a.yaml"


def read_yaml(path: Path) -> None:
    config.parse(train.Options, [str(path)], doc="")


def qa_file(folder: Path) -> Path:
    rows = [{"Question": f"Why {i}?", "Answer": "So.", "Score": i / 2} for i in range(8)]
    (folder / "qa.json").write_text(json.dumps({"train": rows[:5], "test": rows[5:]}))
    return folder / "qa.json"


def read_qa(path: Path) -> None:
    qa.check(path)
    template = qa.Template(lambda text: list(text.encode()), [], [0], max_length=64, max_prompt_length=32)
    qa.load(qa.records(path), template, False)


def table_file(ending: str):
    def make(folder: Path) -> Path:
        rows = [{"text": f'a "text", {i}', "n": i / 2} for i in range(9)]
        path = folder / f"table{ending}"
        if ending == ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        elif ending == ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            with open(path, "w", newline="") as f:
                csv.writer(f).writerows([rows[0], *(row.values() for row in rows)])
        return path

    return make


def read_table(path: Path) -> None:
    list(records.read(path))
    for texts in examples.read(path, "text"):
        "".join(texts).encode()


READERS = {
    "meta.json": (meta_json, read_bins),
    "meta.pkl": (meta_pkl, read_bins),
    "train.bin": (train_bin, read_bins),
    "Arrow stream": (arrow_file(pa.ipc.new_stream), lambda path: read_rows(arrow.Rows(path))),
    "Arrow file": (arrow_file(pa.ipc.new_file), lambda path: read_rows(arrow.Rows(path))),
    "tensors": (tensor_file, read_tensors),
    "checkpoint": (checkpoint_file, checkpoint.load),
    "pytorch_model.bin": (weights_bin, lambda path: hf.source(str(path.parent))),
    "config.json": (config_json, lambda path: hf.source(str(path.parent))),
    "state.json": (state_json, lambda path: read_rows(arrow.Rows(path.parent))),
    "tokenizer.json": (tokenizer_json, read_tokenizer),
    "YAML": (yaml_file, read_yaml),
    "questions": (qa_file, read_qa),
    "CSV": (table_file(".csv"), read_table),
    "JSON lines": (table_file(".jsonl"), read_table),
    "Parquet": (table_file(".parquet"), read_table),
}


# -----------------------------------------------------------------------------
# the child


def unclean(read, path: Path) -> str:
    """What a user would be shown that is not a message; empty if all is well."""
    signal.alarm(SECONDS)
    try:
        read(path)
    except SystemExit as e:
        return "" if e.code == exits.BAD_INPUT else f"exit code {e.code}"
    except BaseException as e:
        code, message = exits.verdict(e)
        if code != exits.BAD_INPUT:
            return message
        return "" if "\n" not in message.strip() else f"more than a line: {message}"
    finally:
        signal.alarm(0)
    return ""


def late(*_):
    raise TimeoutError(f"it took more than {SECONDS} s")


def child(name: str, whole: Path, count: int, report: Path) -> None:
    def watch(event: str, args) -> None:
        if event in ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "socket.connect"):
            report.write_text(f"{event} {args}")
            os._exit(3)

    sys.addaudithook(watch)
    signal.signal(signal.SIGALRM, late)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    raw, found, g = whole.read_bytes(), [], np.random.default_rng(len(name))
    for i in range(count):
        data = mutate(raw, g)
        report.write_text(f"mutation {i} of {name} ended the process")
        whole.write_bytes(data)
        if problem := unclean(READERS[name][1], whole):
            found.append(f"mutation {i}: {problem[:300]}")
            whole.with_name(f"bad{i}").write_bytes(data)
    report.write_text("\n".join(found))
    os._exit(0)


@pytest.mark.parametrize("count", [30, pytest.param(1000, marks=pytest.mark.full)])
@pytest.mark.parametrize("name", READERS)
def test_mutated_files_are_refused_in_a_line(name, count, tmp_path):
    whole, report = READERS[name][0](tmp_path), tmp_path / "report"
    READERS[name][1](whole)  # it is whole
    pid = os.fork()
    if not pid:
        try:
            child(name, whole, count, report)
        finally:
            os._exit(4)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code == 0, f"{code}: {report.read_text()}"
    assert not report.read_text(), report.read_text()
