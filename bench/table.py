"""What the benchmarks share: sides that take turns, medians and spreads, one table, the same table in RESULTS.md.

    args = table.arguments(__doc__)
    found = table.turns({"plain": f, "train.py": g}, args.repeats)     # each gives a number, or names and numbers
    table.report(args, "tokens a second", found, "plain", goal=2.5)

A machine that is busy before the benchmark starts gives numbers about its neighbours: such a table is not recorded.
"""

import argparse
import datetime
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(1, str(ROOT))  # behind this folder: both hold a train.py
RESULTS = Path(__file__).parent / "RESULTS.md"
BUSY = 0.35  # a core, before we begin


def arguments(doc: str, **options) -> argparse.Namespace:
    """The options of all benchmarks, and a script's own: name=default, or name=(default, help)."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter turns")
    parser.add_argument("--repeats", type=int, help="turns of each side")
    parser.add_argument("--record", choices=["auto", "yes", "no"], default="auto",
                        help="append to bench/RESULTS.md; auto: where the machine was quiet at the start")  # fmt: skip
    for name, default in options.items():
        default, note = default if isinstance(default, tuple) else (default, None)
        if isinstance(default, list):
            parser.add_argument(name, nargs="*", metavar=f"{{{','.join(default)}}}", help=note or "all, if none is named")
        elif default is False:
            parser.add_argument(f"--{name}", action="store_true", help=note)
        else:
            parser.add_argument(f"--{name}", type=type(default), default=default, help=note)
    args = parser.parse_args()
    for name, default in options.items():
        if isinstance(default, list):
            if wrong := set(getattr(args, name)) - set(default):
                parser.error(f"{name} are {', '.join(default)}; got {', '.join(sorted(wrong))}")
            setattr(args, name, getattr(args, name) or default)
    args.load = os.getloadavg()[0]
    args.repeats = args.repeats or (2 if args.quick else 5)
    return args


def turns(sides: dict[str, Callable], repeats: int) -> dict[str, list]:
    """Every side once, then every side again: what slows the machine for a while slows all of them."""
    found: dict[str, list] = {name: [] for name in sides}
    for i in range(repeats):
        for name, side in sides.items():
            start = time.time()
            found[name].append(side())
            print(f"  {i + 1}/{repeats} {name}: {time.time() - start:.0f} s", file=sys.stderr, flush=True)
    return found


def pick(found: dict[str, list], key: str) -> dict[str, list]:
    """One of the numbers that each turn gave."""
    return {name: [run[key] for run in runs] for name, runs in found.items()}


def machine() -> str:
    import torch

    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as f:
            name = next(line.split(":")[1].strip() for line in f if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    parts = [f"{len(os.sched_getaffinity(0))} x {name}", f"torch {torch.__version__}, {torch.get_num_threads()} threads",
             f"Python {platform.python_version()}"]  # fmt: skip
    if torch.cuda.is_available():
        parts.insert(0, torch.cuda.get_device_name())
    return ", ".join(parts)


def form(x: float) -> str:
    return f"{x:,.0f}" if abs(x) >= 1000 else f"{x:,.4g}"


def report(args, title: str, found: dict[str, list[float]], base: str, *, unit: str, goal: float | None = None,
           more: bool = True, note: str = "") -> dict[str, float]:  # fmt: skip
    """Median, range and how many times better than `base` each side is; `more`: more is better.

    `goal` is what the last side should reach, as such a ratio.
    """
    medians = {name: statistics.median(values) for name, values in found.items()}
    ratios = {n: (m / medians[base] if more else medians[base] / m) for n, m in medians.items()}
    rows = [["", unit, "range", "ratio"]]
    for name, values in found.items():
        rows.append([name, form(medians[name]), f"{form(min(values))} .. {form(max(values))}", f"{ratios[name]:.2f}x"])
    if goal is not None:
        last = list(found)[-1]
        rows.append(["goal", "", "", f"{goal:g}x: {'reached' if ratios[last] >= goal else 'missed'}"])
    text = table(rows)
    turns = len(next(iter(found.values())))
    write(args, title, f"{text}\n\n{f'Medians of {turns}, in turn. ' if turns > 1 else 'One turn. '}{note}".rstrip())
    return ratios


def table(rows: list[list[str]]) -> str:
    """Markdown that is also readable as it stands."""
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(f"{cell:>{w}}" if i else f"{cell:<{w}}"
                               for i, (cell, w) in enumerate(zip(row, widths, strict=True))) + " |" for row in rows]  # fmt: skip
    return "\n".join([lines[0], "| " + " | ".join("-" * (w - 1) + (":" if i else "-") for i, w in enumerate(widths))
                      + " |", *lines[1:]])  # fmt: skip


def write(args, title: str, text: str) -> None:
    """Prints a result, and keeps it where it means something."""
    print(f"\n{title}\n\n{text}\n", flush=True)
    quiet = args.load < BUSY * len(os.sched_getaffinity(0))
    if args.record == "no" or (args.record == "auto" and (args.quick or not quiet)):
        if args.record == "auto":
            print(f"not recorded: {'a quick run' if args.quick else f'load {args.load:.1f} before the start'}")
        return
    command = " ".join(["python", os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:]])
    when = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M")
    with open(RESULTS, "a") as f:
        f.write(f"\n## {title}\n\n`{command}`, {when} UTC, {machine()}, load {args.load:.1f} before.\n\n{text}\n")


# -----------------------------------------------------------------------------
# runs of scripts


def run(*command, env: dict | None = None) -> dict:
    """Runs Python with these arguments: its output, seconds, and peak resident megabytes of it and its children."""
    with tempfile.TemporaryFile("w+") as out:
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, *map(str, command)], cwd=ROOT, stdout=out, stderr=subprocess.STDOUT,
                                   env={**os.environ, "WANDB_MODE": "disabled", **(env or {})})  # fmt: skip
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        text = out.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: exit code {process.returncode}\n{text[-3000:]}")
    return {"output": text, "seconds": seconds, "MiB": usage.ru_maxrss / 1024}


def characters(path: str, folder: Path) -> Path:
    """A character data set: of the text given, else of Python's own sources."""
    if path:
        run("data/shakespeare_char/prepare.py", "--input", Path(path).resolve(), "--out", folder)
    else:
        run("data/python_stdlib/prepare.py", "--out", folder)
    return folder
