"""What a run tells: one line a log step, CSV files, loss.png, and wandb or TensorBoard where they are wanted.

Nothing here may end a run but a full disk: a logger that fails is switched off with one line.
"""

import csv
import errno
import itertools
import json
import math
import os
import re
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from core.picture import drawn, extra
from core.progress import duration

csv.field_size_limit(1 << 30)  # a table of someone else's may be in the way
MOST = 20_000  # points of a curve in loss.png: of more each pixel would hold dozens
# dense bf16 FLOP/s, from the vendors' data sheets
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12, "3090": 71e12, "V100": 125e12}


def peak_flops(device: torch.device, ranks: int = 1) -> float | None:
    """Of all ranks' GPUs together, as rates are."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((v * ranks for k, v in PEAKS.items() if k in name), None)


def peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU, or of the process's resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


# -----------------------------------------------------------------------------
# CSV


class Table:
    """A CSV file of one row a step. A resume drops the rows that will be written again."""

    def __init__(self, path: Path, first_step: int):
        self.path, self.columns = path, []
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            header, table = lines(path)
            if "step" not in header:
                raise ValueError(f"{path} is a table of something else, without steps, and would be replaced: name"
                                 " another run folder")  # fmt: skip
            self.rewrite(header, (row for step, row in table if step < first_step))

    def rewrite(self, columns: list[str], table: Iterator[list]) -> None:
        """Row by row: of a long run there are millions."""
        temporary = self.path.with_name(self.path.name + ".tmp")
        with open(temporary, "w", newline="", encoding="utf-8") as f:
            first = list(itertools.islice(table, 1))
            self.columns = columns if first else []
            csv.writer(f).writerows(itertools.chain([columns] * len(first), first, table))
        temporary.replace(self.path)

    def add(self, row: dict) -> None:
        if set(row) - set(self.columns):
            header, table = lines(self.path) if self.columns else ([], ())
            columns = [*header, *(k for k in row if k not in header)]
            wider = (old + [""] * (len(columns) - len(old)) for _, old in table)
            self.rewrite(columns, itertools.chain(wider, [[row.get(k, "") for k in columns]]))
            return
        with open(self.path, "a", newline="", encoding="utf-8") as f:
            csv.DictWriter(f, self.columns).writerow(row)


def lines(path: Path) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The header, and the rows as text, with their steps; a last line cut short by a crash, be it within a letter, is
    left out."""

    def table() -> Iterator:
        with open(path, newline="", encoding="utf-8", errors="replace") as f:
            found = csv.reader(f)
            yield (header := next(found, ["step"]))
            at = header.index("step") if "step" in header else len(header)  # or a table of someone else's
            for row in found:
                try:
                    step = int(row[at])
                except (ValueError, IndexError):
                    continue
                if len(row) == len(header):
                    yield step, row

    both = table() if path.exists() else iter([["step"]])
    return next(both), both


def read(path: Path, most: int = 0) -> list[dict]:
    """Rows with numbers as numbers: all or, of more than twice as many as `most`, each second, each fourth ..."""
    (header, table), out, every = lines(path), [], 1
    for i, (step, row) in enumerate(table):
        if i % every == 0:
            out.append(dict(zip(header, map(number, row), strict=True)) | {"step": step})
            if most and len(out) > 2 * most:
                out, every = out[::2], 2 * every
    return out


def number(text):
    try:
        return int(text) if not isinstance(text, str) or text.lstrip("-").isdigit() else float(text)
    except ValueError:
        return text


# -----------------------------------------------------------------------------
# the tracker


class Tracker:
    def __init__(self, folder: Path, main: bool, total: int, first_step: int = 0, *, names=("train.csv", "eval.csv"),
                 csv_log: bool = True, unit: str = "tok", flops: float | None = None, peak: float | None = None,
                 tensorboard: bool = False, wandb: dict | None = None, options: dict | None = None,
                 resumes: list[int] | None = None):  # fmt: skip
        self.folder, self.main, self.total, self.unit = Path(folder), main, total, unit
        self.flops, self.peak, self.resumes = flops, peak, resumes or []
        self.drawn = time.monotonic()
        self.tables = [Table(self.folder / n, first_step) for n in names] if main and csv_log else []
        self.board = self.wandb = None
        if main and tensorboard:
            self.board = open_board(self.folder, first_step)
        if main and wandb is not None:
            self.wandb = open_wandb(self.folder, wandb, options or {}, first_step)
        self.clock(first_step)

    def say(self, line: str) -> None:
        if self.main:
            tell(line)

    def clock(self, step: int) -> None:
        """Starts the stopwatch of the next log line: the time before this was not spent on training."""
        self.t, self.at = time.monotonic(), step

    def train(self, step: int, values: dict, units: int) -> None:
        """One log line; `units` (tokens, samples) were trained on a step, by all ranks."""
        values = plain(values)
        seconds = max(1e-9, time.monotonic() - self.t) / max(1, step + 1 - self.at)
        self.clock(step + 1)
        if not self.main:
            return
        rate = units / seconds
        width = len(str(self.total))
        parts = [f"step {step:>{width}}/{self.total}"]
        parts += [f"{k} {show(k, v)}" for k, v in values.items()]
        parts += [f"{seconds * 1000:.0f} ms", f"{rate:,.0f} {self.unit}/s"]
        if self.flops and self.peak:
            parts.append(f"mfu {rate * self.flops / self.peak:.0%}")
        parts.append(f"eta {duration((self.total - step - 1) * seconds)}")
        tell(" | ".join(parts))
        row = {"step": step, **values, "ms": round(seconds * 1000, 2), f"{self.unit}_per_s": round(rate)}
        self.record(0, row, "train/")

    def eval(self, step: int, values: dict, note: str = "", quiet: bool = False) -> None:
        if not self.main:
            return
        values = plain(values)
        if not quiet:
            width = len(str(self.total))
            shown = [f"{k} {show(k, v)}" for k, v in values.items()]
            tell(fold([f"eval {step:>{width}}/{self.total}", *shown, *([note] if note else [])]))
        self.record(1, {"step": step, **values}, "eval/")
        if time.monotonic() - self.drawn > 300:
            self.plot()

    def record(self, which: int, row: dict, prefix: str) -> None:
        if self.tables:
            self.tables[which].add({k.replace(" ", "_"): v for k, v in row.items()})
        numbers = {k: v for k, v in row.items() if k != "step" and isinstance(v, int | float)}
        try:
            if self.board:
                for k, v in numbers.items():
                    self.board.add_scalar(prefix + k, v, row["step"])
            if self.wandb:
                self.wandb.log({prefix + k: v for k, v in numbers.items()}, step=row["step"])
        except Exception as e:  # a logger's own failure is not the run's
            self.give_up(e)

    def give_up(self, error: Exception) -> None:
        print(f"logging to wandb or TensorBoard stopped: {error}", file=sys.stderr)
        self.board = self.wandb = None

    def plot(self) -> None:
        """loss.png beside the CSV files."""
        if not self.tables:
            return
        self.drawn = time.monotonic()
        train, evals = (read(t.path, MOST) for t in self.tables)
        draw(self.folder / "loss.png", train, evals, self.resumes)

    def results(self, values: dict) -> None:
        """results.json: what the run came to."""
        if self.main:
            path = self.folder / "results.json"
            temporary = path.with_name(path.name + ".tmp")
            values = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in plain(values).items()}
            temporary.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            temporary.replace(path)

    def close(self) -> None:
        if self.main:
            self.plot()
        try:
            if self.board:
                self.board.close()
            if self.wandb:
                self.wandb.finish()
        except Exception as e:
            self.give_up(e)


def tell(line: str) -> None:
    """Prints a line of the log. A closed terminal's error may come before its signal, on which a run saves: so wait."""
    try:
        print(line, flush=True)
    except OSError as e:
        if e.errno != errno.EIO:
            raise
        time.sleep(0.5)
        print(flush=True)


def plain(values: dict) -> dict:
    """A metric may be a number of numpy or of torch: in a table it would be the text tensor(3.48)."""
    values = {k: numbers(v) for k, v in values.items()}
    return {k: v[0] if isinstance(v, list) and len(v) == 1 else v for k, v in values.items()}


def numbers(x):
    """Python's own, also in a list or a dict: results.json takes no others."""
    if isinstance(x, dict):
        return {k: numbers(v) for k, v in x.items()}
    if isinstance(x, list | tuple):
        return [numbers(v) for v in x]
    return x.tolist() if hasattr(x, "tolist") else x


def fold(parts: list[str], width: int = 88) -> str:
    """a | b | c, in as many lines as it takes: an evaluation may have many values, and a word more is none."""
    lines = [parts[0]]
    for part in parts[1:]:
        if len(lines[-1]) + 3 + len(part) > width:
            lines.append(" " * (len(parts[0]) + 1) + f"| {part}")
        else:
            lines[-1] += f" | {part}"
    return "\n".join(lines)


def show(name: str, value) -> str:
    if not isinstance(value, int | float):  # a word, several numbers, or None where there is nothing to measure
        return str(value)
    if name == "lr" or name.endswith(" lr"):
        return f"{value:.2e}"
    if isinstance(value, float) and abs(value) >= 1e9:  # a run that diverges
        return f"{value:.4g}"
    if name in ("norm", "epoch"):
        return f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


@extra
def draw(path: Path, train: list[dict], evals: list[dict], resumes: list[int]) -> None:
    """Train and evaluation losses, the learning rate, and a mark where the run was resumed."""
    if not train and not evals:
        return

    def curve(ax, rows: list[dict], key: str, form: str, **style) -> None:
        points = [(r["step"], r[key]) for r in rows if isinstance(r.get(key), int | float) and math.isfinite(r[key])]
        if points:
            ax.plot(*zip(*points, strict=True), form, **style)

    with drawn(path, 8, 4.5) as ax:
        curve(ax, train, "loss", "-", label="train (batch)", color="#9db7d5", lw=1)
        for i, key in enumerate(dict.fromkeys(k for r in evals for k in r if k.endswith("loss"))):
            form = "o-" if len(evals) < 40 else "-"
            curve(ax, evals, key, form, ms=3, lw=1.5, color=f"C{i + 1}", label=key.replace("_", " "))
        for i, step in enumerate(resumes):
            ax.axvline(step, color="#999999", ls=":", lw=1, label="resumed" if i == 0 else None)
        ax.set_xlabel("step")
        ax.set_ylabel("loss")
        ax.grid(alpha=0.3)
        rates = [(r["step"], r["lr"]) for r in train if isinstance(r.get("lr"), int | float)]
        if rates:
            twin = ax.twinx()
            ax.set_zorder(twin.get_zorder() + 1)  # the rate lies behind the losses and their legend
            ax.patch.set_visible(False)
            twin.plot(*zip(*rates, strict=True), color="#bbbbbb", lw=1, ls="--")
            twin.set_ylabel("learning rate (dashed)")
            twin.set_ylim(bottom=0)
        if ax.get_legend_handles_labels()[0]:
            ax.legend(fontsize=8, framealpha=1)
        ax.set_title(str(path.parent), fontsize=9)


# -----------------------------------------------------------------------------
# optional loggers


def open_board(folder: Path, first_step: int):
    try:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(folder / "tensorboard"), purge_step=first_step)  # what is written again
    except Exception as e:
        print(f"TensorBoard is off: {e} (pip install tensorboard)", file=sys.stderr)


def has_key(key: str | None) -> bool:
    if key or os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun"):
        return True
    netrc = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    return netrc.is_file() and "api.wandb.ai" in netrc.read_text(errors="ignore")


def open_wandb(folder: Path, about: dict, options: dict, first_step: int):
    """A wandb run, or None with one line: no key, no network and no package are all no reason to stop."""
    key = about.pop("key", None)
    try:
        if not has_key(key):
            print("wandb is off: no key (`wandb login`, or WANDB_API_KEY); metrics go to CSV", file=sys.stderr)
            return None
        import wandb

        if key:
            os.environ["WANDB_API_KEY"] = key
        settings = wandb.Settings(init_timeout=20, silent=True)
        about = {k: v for k, v in about.items() if v}
        if first_step:  # the run in the folder goes on; its own is called run-DATE-ID
            last = re.search(r"run-\w+-(.+)$", (folder / "wandb" / "latest-run").resolve().name)
            about = ({"id": last[1]} if last else {}) | about | {"resume": "allow"}
        return wandb.init(dir=str(folder), config=options, settings=settings, **about)
    except Exception as e:
        print(f"wandb is off: {str(e).splitlines()[0] if str(e) else type(e).__name__}", file=sys.stderr)
        return None
