"""Do memory and open files stay flat over many steps, with evaluation, saving and logging on?

    python tests/long_run.py --steps 20000
    python tests/long_run.py --steps 2000 --loops train pretrain --record    adds its table to bench/RESULTS.md

Each loop is a process of its own; its resident memory and open files are read at every evaluation that its log shows.
The second quarter of the steps is compared with the last one.
"""

import datetime
import importlib
import os
import platform
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from core import config, run  # noqa: E402
from core.config import option  # noqa: E402
from core.values import Count  # noqa: E402
from tests.loops import LOOPS, ROOT, Loop  # noqa: E402
from tests.soak import command, fork, reached, wait  # noqa: E402

EVERY = 200  # steps between evaluations, which save
MOST = 24  # MiB of growth, of the C library's own making
OFTEN = {
    "train": [f"--eval_interval={EVERY}", "--log_interval=10"],
    "pretrain": [f"--eval_interval={EVERY}", "--log_steps=10"],
    "reward_train": [f"--trainer.params.val_check_interval={EVERY}", "--trainer.params.log_every_n_steps=10",
                     f"--trainer.checkpoint.every_n_train_steps={EVERY}", "--trainer.params.max_epochs=100000"],
    "procedural_pretraining.cli": [f"--save_every_steps={EVERY}", "--log_interval=10"],
    "finetune": [f"--eval_interval={EVERY}", "--log_interval=10", "--epochs=100000"],
}  # fmt: skip


@dataclass
class Options:
    # long run
    steps: Count = 20000  # of each loop
    loops: list[str] = option(["train", "pretrain", "finetune", "reward", "procedural_pretraining"])  # in tests/loops.py
    record: bool = False  # add the table to bench/RESULTS.md


def look(pid: int) -> tuple[float, int]:
    """MiB that are resident, and open files."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(os.listdir(f"/proc/{pid}/fd"))


def measure(loop: Loop, args: Options, folder: Path) -> list[tuple[int, float, int]]:
    """(step, MiB, open files) while the loop runs."""
    (folder / "data").mkdir(parents=True)
    loop.data(folder / "data")
    out, found = folder / "run", []
    pid = fork(loop, [*command(loop, args, folder, out, 1), *OFTEN[loop.module]], folder / "log")
    code = None
    while code is None:
        step = reached(loop, out)
        if step:
            found.append((step, *look(pid)))
        code = wait(pid, 1.0)
    if code or reached(loop, out) != args.steps:
        raise SystemExit(f"{loop.name} ended with {code} at step {reached(loop, out)}: {folder / 'log'}")
    return found


def verdict(found: list[tuple[int, float, int]], steps: int) -> tuple[float, int, float, int]:
    """The most of the second quarter, and of the last one: MiB, files; MiB, files. The end, which draws, is left out."""
    parts = [[f for f in found if steps * a < f[0] < steps * b] for a, b in ((0.25, 0.5), (0.75, 1))]
    assert all(parts), "too few steps to see anything"
    return tuple(most for part in parts for most in (max(f[1] for f in part), max(f[2] for f in part)))


def main(args: Options) -> None:
    names = {loop.name: loop for loop in LOOPS}
    if unknown := [name for name in args.loops if name not in names]:
        raise ValueError(f"--loops must be among {', '.join(names)}, got {unknown[0]!r}")
    os.environ |= {"WANDB_MODE": "disabled"}
    importlib.import_module("matplotlib.figure")  # once, not at whichever step draws first: 40 MiB
    rows = ["| loop | steps | minutes | MiB at 25 to 50% | MiB at 75 to 100% | open files | open files at the end |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"]  # fmt: skip
    grown = []
    with tempfile.TemporaryDirectory(prefix="long_run") as folder:
        for name in args.loops:
            began = time.time()
            mib, files, mib_end, files_end = verdict(measure(names[name], args, Path(folder) / name), args.steps)
            rows.append(f"| {name} | {args.steps:,} | {(time.time() - began) / 60:.1f} | {mib:.0f} | {mib_end:.0f}"
                        f" | {files} | {files_end} |")  # fmt: skip
            print(rows[-1], flush=True)
            grown += [name] * (mib_end > mib + MOST or files_end > files + 3)  # a checkpoint may be on its way
    text = "\n".join(rows)
    print(text, f"\ngrown: {', '.join(grown) or 'none'}")
    if args.record:
        with open(ROOT / "bench" / "RESULTS.md", "a") as f:
            where = f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
            f.write(f"\n## Memory and open files of long runs\n\n`python tests/long_run.py --steps {args.steps}`,"
                    f" {datetime.date.today()}, {where}; evaluated and saved every {EVERY} steps.\n\n{text}\n")  # fmt: skip
    raise SystemExit(1 if grown else 0)


if __name__ == "__main__":
    with run.guard():
        main(config.parse(Options, sys.argv[1:], doc=__doc__))
