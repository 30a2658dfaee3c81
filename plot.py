"""Compares runs of any script: a table of what differs, the best metric and the time, and their curves.

    python plot.py experiments/finetuning/*            table, and runs.png
    python plot.py out/* --text                        table, and the curves in the terminal
    python plot.py out/a out/b --metric val_accuracy --out accuracy.png
"""

import itertools
import math
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from core import config, exits
from core.files import read_json
from core.picture import drawn
from core.progress import duration
from core.values import nearest, read_yaml

PLACES = (("eval.csv", "train.csv"), ("metrics/eval/metrics.csv", "metrics/train/metrics.csv"))
WIDTH = 80  # of the table, or the terminal if that is narrower; a wider one is turned
PICTURES = (".png", ".pdf", ".svg", ".jpg")
HIDDEN = ("out", "out_dir", "output_dir", "run_name", "save_path", "save_dir", "name", "dirpath", "init_from",
          "init_from_ckpt", "ckpt_path", "wandb_name", "wandb_run_name")  # no settings


@dataclass
class Options:
    runs: list[Path] = config.option([])  # run folders: the words before the first option, and folders behind it
    metric: str | None = None  # a column of the evaluations' CSV file; none: val_loss, or the first loss
    text: bool = False  # the curves in the terminal, no picture
    out: str = "runs.png"  # the picture


@dataclass
class Run:
    path: Path
    settings: dict  # {dotted name: value}
    steps: int
    seconds: float  # of training, over all its resumes
    eval: list[dict]
    results: dict  # of results.json, where the script writes one

    def metrics(self) -> list[str]:
        found = (k for r in self.eval for k, v in r.items() if isinstance(v, int | float))
        return [k for k in dict.fromkeys(found) if k != "step"]

    def curve(self, metric: str) -> list[tuple[int, float]]:
        points = [(r["step"], r.get(metric)) for r in self.eval]
        return [(x, y) for x, y in points if isinstance(y, int | float) and math.isfinite(y)]


def flat(data: dict, prefix: str = "") -> dict:
    out = {}
    for key, value in data.items():
        if isinstance(value, dict):
            out.update(flat(value, f"{prefix}{key}."))
        else:
            out[prefix + str(key)] = value
    return out


def trained(path: Path) -> tuple[int, float]:
    """The last step of a run, and its seconds: line by line, as there may be millions."""
    from core.tracker import lines, number

    header, table = lines(path)
    step, at, ms = 0, -1, 0.0
    for step, row in table:
        took = number(row[header.index("ms")]) if "ms" in header else ""
        if isinstance(took, int | float) and math.isfinite(took):  # the mean of the steps since the line before
            ms, at = ms + took * (step - at if at >= 0 else 1), step
    return step, ms / 1000


def open_run(path: Path) -> Run | None:
    """None where the folder holds no run."""
    from core.tracker import read

    for evals, trains in PLACES:
        if (path / evals).is_file() or (path / trains).is_file():
            # what ran: an experiment's config.yaml may have been edited since, or lack keys
            file = next((path / n for n in ("config.resolved.yaml", "config.yaml") if (path / n).is_file()), None)
            settings = flat(read_yaml(file)) if file else {}
            results = read_json(path / "results.json") if (path / "results.json").is_file() else {}
            (steps, seconds), found = trained(path / trains), read(path / evals)
            return Run(path, settings, max([steps, *(row["step"] for row in found)]), seconds, found, results)
    return None


SMALLER = ("loss", "mse", "mae", "perplexity", "ppl", "bits", "bpb", "bpc", "nll", "error", "brier")  # is better


def smaller_is_better(metric: str) -> bool:
    return any(word in metric for word in SMALLER)


def best(run: Run, metric: str) -> tuple[int, float] | None:
    points = run.curve(metric)
    sign = 1 if smaller_is_better(metric) else -1
    return min(points, key=lambda p: sign * p[1]) if points else None


def table(runs: list[Run], metric: str) -> list[list[str]]:
    """Rows of text, the best run first."""
    shown = (k for r in runs for k in r.settings if k.split(".")[-1] not in HIDDEN and not k.startswith("files."))
    names = list(dict.fromkeys(shown))
    if common := [n for n in names if all(n in r.settings for r in runs)]:  # of several scripts: what all of them have
        names = common
    values = {n: [r.settings.get(n) for r in runs] for n in names}
    differ = [n for n in names if len({v if isinstance(v, int | float) else str(v) for v in values[n]}) > 1]  # 4 is 4.0
    last = [n.split(".")[-1] for n in differ]
    heads = [short if last.count(short) == 1 else n for n, short in zip(differ, last, strict=True)]
    found = (k for r in runs for k, v in r.results.items() if k.startswith("test_") and isinstance(v, float))
    tests = list(dict.fromkeys(found))
    rows = [["run", *heads, f"best {metric}", "at step", *tests, "steps", "time"]]
    sign = 1 if smaller_is_better(metric) else -1
    scored = [(best(r, metric), r) for r in runs]
    for found, r in sorted(scored, key=lambda s: sign * s[0][1] if s[0] else math.inf):
        shown = [show(r.settings.get(n, "")) for n in differ]
        value = [number(found[1]), str(found[0])] if found else ["", ""]
        score = [number(r.results[t]) if isinstance(r.results.get(t), float) else "" for t in tests]
        rows.append([str(r.path), *shown, *value, *score, str(r.steps), duration(r.seconds)])
    return rows


def number(x: float) -> str:
    """Four decimals where they say something: a mastered task's loss is 3e-05, a run that blew up has 40 digits."""
    return f"{x:.4f}" if x == 0 or 1e-3 <= abs(x) < 1e6 else f"{x:.3e}"


def show(value) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 28 else f"...{text[-25:]}"


def lines(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    aligned = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows]
    return ["  ".join(row) for row in aligned]


def upright(rows: list[list[str]], width: int) -> list[str]:
    """The table turned: a line for each thing that differs, and as many runs side by side as there is room for."""
    names, *runs = rows
    out: list[str] = []
    while runs:
        for n in range(max(1, min(len(runs), width // 3)), 0, -1):  # a column takes three at least
            block = lines([list(row) for row in zip(names, *runs[:n], strict=True)])
            if len(block[0]) <= width:
                break
        out, runs = [*out, *block, ""], runs[n:]
    return out[:-1]


# -----------------------------------------------------------------------------
# the curves


def terminal(curves: dict[str, list[tuple[int, float]]], metric: str, width: int = 78, height: int = 16) -> list[str]:
    """The curves in characters: a letter a run, * where several meet."""
    curves = {name: points for name, points in curves.items() if points}
    if not curves:
        return [f"no run has a finite {metric}"]
    xs = [x for points in curves.values() for x, _ in points]
    ys = [y for points in curves.values() for _, y in points]
    (x0, x1), (y0, y1) = (min(xs), max(xs)), (min(ys), max(ys))
    width = max(8, width - 12)  # without the axis
    grid = [[" "] * width for _ in range(height)]

    def column(x):
        return round((x - x0) / max(1, x1 - x0) * (width - 1))

    for i, points in enumerate(curves.values()):
        letter = chr(ord("a") + i % 26)
        points = sorted(points)
        for (xa, ya), (xb, yb) in itertools.pairwise(points if len(points) > 1 else points * 2):
            for c in range(column(xa), column(xb) + 1):  # a straight line between two evaluations
                share = (c - column(xa)) / max(1, column(xb) - column(xa))
                r = round((y1 - (ya + share * (yb - ya))) / (y1 - y0 or 1) * (height - 1))
                grid[r][c] = letter if grid[r][c] in (" ", letter) else "*"
    out = [f"{number(y1 - (y1 - y0) * r / (height - 1)):>10} |{''.join(row).rstrip()}" for r, row in enumerate(grid)]
    out += [" " * 11 + "+" + "-" * width, f"{x0:>12}{f'step {x1}':>{width}}"]
    return [metric, *out, *(f"  {chr(ord('a') + i % 26)}  {name}" for i, name in enumerate(curves))]


def picture(curves: dict[str, list[tuple[int, float]]], metric: str, path: Path) -> None:
    styles = itertools.cycle(("-", "--", "-.", ":"))  # for grey print
    try:
        with drawn(path, 8, 5) as ax:
            for name, points in curves.items():
                dashes = next(styles)
                if points:
                    ax.plot(*zip(*points, strict=True), "o" * (len(points) < 40), ls=dashes, ms=3, lw=1.5, label=name)
            ax.set_xlabel("step")
            ax.set_ylabel(metric.replace("_", " "))
            ax.grid(alpha=0.3)
            if ax.lines:  # more names than these would cover the curves
                more = f"20 of {len(ax.lines):,}" if len(ax.lines) > 20 else None
                ax.legend(handles=ax.lines[:20], title=more, fontsize=8)
    except ImportError as e:
        raise ValueError(f"the picture needs matplotlib ({e}): pip install matplotlib; --text draws without") from None


def main(args: Options) -> None:
    args = config.made(args)
    if not args.runs:
        raise ValueError("which runs? python plot.py out/a out/b")
    opened = [open_run(path) for path in args.runs]
    runs = [r for r in opened if r]
    skipped = ", ".join(str(path) for path, r in zip(args.runs, opened, strict=True) if not r)
    if not runs:
        raise ValueError(f"no run in {skipped}: eval.csv or metrics/eval/metrics.csv is wanted")
    if skipped:
        print(f"no run in {skipped}", file=sys.stderr)
    known = list(dict.fromkeys(m for r in runs for m in r.metrics()))
    metric = args.metric or next((m for m in ("val_loss", "eval_loss") if m in known), None)
    metric = metric or next((m for m in known if m.endswith("loss")), known[0] if known else "val_loss")
    if args.metric and metric not in known:
        raise ValueError(f"--metric must be one of {', '.join(known)}; got {metric!r}{nearest(metric, known)}")
    if not args.text and Path(args.out).suffix not in PICTURES:
        raise ValueError(f"--out must end in {', '.join(PICTURES)}, got {args.out}")
    if not args.text and not Path(args.out).parent.is_dir():
        raise ValueError(f"--out {args.out}: there is no folder {Path(args.out).parent}")
    if not args.text and Path(args.out).is_dir():
        raise ValueError(f"--out {args.out} is a folder, and a file is wanted there")
    for line in config.idle(args, {"out": "no --text"}):
        print(f"note: {line}", file=sys.stderr)
    curves = {str(r.path): r.curve(metric) for r in runs}
    for r in runs:
        if any(curves.values()) and not curves[str(r.path)]:
            others = ", ".join(m for m in r.metrics() if m != metric) or "nothing else"
            print(f"not in the chart: {r.path} has no finite {metric}, but {others} (--metric)", file=sys.stderr)
    rows = table(runs, metric)
    width = min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)
    print("\n".join(lines(rows) if len(lines(rows)[0]) <= width else upright(rows, width)))
    if args.text:
        print("\n" + "\n".join(terminal(curves, metric, shutil.get_terminal_size((78, 24)).columns)))
    else:
        picture(curves, metric, Path(args.out))
        print(f"\n{args.out} shows {metric}" + ("" if any(curves.values()) else ": no run has a finite value of it"))


if __name__ == "__main__":
    with exits.guard():
        argv = sys.argv[1:]
        if "--runs" not in argv:  # --text out/a is out/a --text, but --out FOLDER is no run
            values = {i + 1 for i, word in enumerate(argv) if word in ("--out", "--metric", "--config")}
            runs = [word for i, word in enumerate(argv) if i not in values and Path(word).is_dir()]
            argv = [*runs, *(word for i, word in enumerate(argv) if i in values or not Path(word).is_dir())]
        main(config.parse(Options, ["--runs", *argv] if argv and not argv[0].startswith("-") else argv, doc=__doc__))
