"""Scores of texts: how good they are, a picture of them, many at once, and a CSV file that survives a kill.

    scores = predict(model, [(ids, shared), ...], batch=16)    model(tokens, lengths) -> one number a text
    pearson(x, y), spearman(x, y)
"""

import csv
import fcntl
import io
import json
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch

from core import disk, exits
from core.picture import drawn, extra

# -----------------------------------------------------------------------------
# how good they are


def ranks(x: np.ndarray) -> np.ndarray:
    """[10, 30, 10] -> [0.5, 2, 0.5]: equal values share the mean of their places; beside a NaN none has one."""
    if np.isnan(x).any():
        return np.full(len(x), np.nan)
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts + 1) / 2)[inverse]


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """NaN where one of them is constant."""
    if not len(x) or x.min() == x.max() or y.min() == y.max():  # their mean may be another number by rounding
        return math.nan
    x, y = (z / abs(z).max() for z in (x - x.mean(), y - y.mean()))  # of 1e90 the product below overflows
    return float(x @ y) / math.sqrt(float(x @ x) * float(y @ y))


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    return pearson(ranks(x), ranks(y))


@extra
def draw(path: Path, x: np.ndarray, y: np.ndarray, xlabel: str, ylabel: str) -> None:
    """One against the other, with the line where they are equal."""
    with drawn(path, 5, 5) as ax:
        ends = [min(x.min(), y.min()), max(x.max(), y.max())]
        ax.plot(ends, ends, color="#999999", lw=1)
        ax.scatter(x, y, s=8, alpha=0.5)
        ax.set_xlabel(xlabel)
        ax.set_ylabel(ylabel)
        ax.grid(alpha=0.3)
        ax.set_title(str(path.parent), fontsize=9)


# -----------------------------------------------------------------------------
# many at once


@torch.no_grad()
def predict(model, texts: list[tuple[list[int], int]], batch: int, device, use_cache: bool = False) -> np.ndarray:
    """The model's score of each text, batched by length. A text comes with the number of its first ids that depend on
    the question alone: with use_cache, answers to one question share the keys and values of these."""
    groups: dict[tuple, list[int]] = {}
    for i, (ids, shared) in enumerate(texts):
        groups.setdefault(tuple(ids[:shared]) if use_cache else (), []).append(i)
    alone = [group[0] for prefix, group in groups.items() if prefix and len(group) == 1]
    rest = [(prefix, group) for prefix, group in groups.items() if not (prefix and len(group) == 1)]
    out = np.empty(len(texts))
    for prefix, group in [((), alone), *rest]:
        group = sorted(group, key=lambda i: len(texts[i][0]))
        for part in (group[i : i + batch] for i in range(0, len(group), batch)):
            ids = [texts[i][0][len(prefix) :] for i in part]
            tokens = torch.tensor([t for text in ids for t in text], device=device)
            lengths = torch.tensor([len(text) for text in ids])
            if prefix:
                found = model.answers(torch.tensor(prefix, device=device), tokens, lengths)
            else:
                found = model(tokens, lengths)
            out[part] = found.cpu().double().numpy()
    return out


def write_csv(out: Path, header: list[str], rows: Iterable, make: Callable, about: dict, chunk: int) -> int:
    """rows -> make(list of rows) -> CSV rows, a chunk at a time; the number written.

    A killed call goes on where it was, if it was `about` the same; a finished file gets its name at once.
    """
    csv.writer(first := io.StringIO()).writerow(header)
    if out.exists() and not out.is_file() and not out.is_dir():  # a pipe: to read what it holds would wait for ever
        raise ValueError(f"--out {out} is no file: rows are written beside it, and take its name when all are there")
    if out.exists():
        with open(out, newline="", encoding="utf-8", errors="replace") as f:
            if f.read(len(first.getvalue())) not in ("", first.getvalue()):
                raise ValueError(f"--out {out} exists and holds something else: another name, so that nothing is lost")
    part, notes = out.with_name(out.name + ".part"), out.with_name(out.name + ".part.json")
    done, size = 0, 0
    out.parent.mkdir(parents=True, exist_ok=True)
    with exits.writing(part), open(part, "a", newline="", encoding="utf-8") as f:
        alone(f, part, out)
        if notes.is_file():
            before = json.loads(notes.read_text())
            if before["about"] == about and part.stat().st_size >= before["bytes"]:
                done, size = before["done"], before["bytes"]
                print(f"going on in {part} after {done:,} rows")
        f.truncate(size)
        f.seek(size)
        table = csv.writer(f)
        if not size:
            table.writerow(header)
        waiting: list = []

        def flush() -> None:
            nonlocal done
            table.writerows(make(waiting))
            f.flush()
            os.fsync(f.fileno())
            done += len(waiting)
            state = json.dumps({"about": about, "done": done, "bytes": f.tell()})
            disk.replace(notes, lambda g: g.write(state.encode()))
            waiting.clear()

        skip = done
        for i, row in enumerate(rows):
            if i >= skip:
                waiting.append(row)
            if len(waiting) == chunk:
                flush()
        if waiting:
            flush()
        notes.unlink(missing_ok=True)  # before another one may begin here
        part.replace(out)
    return done


def alone(f, part: Path, out: Path) -> None:
    """Two at once would write their rows between each other's; flock goes with the process, also on SIGKILL."""
    try:
        fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        free = os.path.samestat(part.stat(), os.fstat(f.fileno()))
    except (BlockingIOError, FileNotFoundError):
        free = False
    except OSError:  # a cluster's file system without locks
        free = True
    if not free:  # or it was finished, and is --out by now
        raise ValueError(f"--out {out} is being written by another process: another name")
