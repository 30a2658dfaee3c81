"""Every loop while something goes wrong at random moments: does it end as an undisturbed run, bit for bit?

    python tests/soak.py --minutes 20
    python tests/soak.py --minutes 5 --loops train finetune --record    adds its table to bench/RESULTS.md

A run is killed (SIGKILL, SIGTERM), or its disk is full (by a file size limit), and resumed until it is finished; under
torchrun --max-restarts a rank is killed and the rest is torchrun's. Single processes are forks of this one, which has
loaded torch: a kill costs a second, not six.
"""

import datetime
import importlib
import os
import platform
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from core import checkpoint, config, run, tracker  # noqa: E402
from core.config import option  # noqa: E402
from core.values import Count, Positive  # noqa: E402
from tests.loops import LOOPS, ROOT, Loop  # noqa: E402

DROPOUT = {"train": "--dropout=0.1", "procedural_pretraining.cli": "--dropout=0.1", "pretrain": "--hidden_prob=0.1",
           "reward_train": "--model_params.dropout=0.1", "finetune": "--classifier_dropout=0.1"}  # fmt: skip
KINDS = ("SIGKILL", "SIGTERM", "full disk")


@dataclass
class Options:
    # soak
    minutes: Positive = 20  # all loops together
    loops: list[str] = option([])  # names in tests/loops.py; none: all
    steps: Count = 100  # optimizer steps a run
    faults: Count = 6  # a run at most, then it is left alone
    seed: int = 0  # of the moments
    record: bool = False  # add the table to bench/RESULTS.md


@dataclass
class Tally:
    runs: int = 0
    faults: Counter = field(default_factory=Counter)
    resumes: int = 0
    lost: int = 0  # steps that had been done and were done again
    differences: list[str] = field(default_factory=list)


# -----------------------------------------------------------------------------
# one process


def fork(loop: Loop, argv: list[str], log: Path, limit: int | None = None) -> int:
    """The run as a child of its own; `limit`: no file may grow beyond so many bytes."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        with open(log, "a") as f:
            os.dup2(f.fileno(), 1)
            os.dup2(f.fileno(), 2)
        torch.set_num_threads(1)  # a fork has none of its parent's
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with run.guard():
            loop.run(argv)
        code = 0
    except SystemExit as e:
        code = e.code
    except BaseException:
        traceback.print_exc()
    os._exit(code)


def wait(pid: int, seconds: float | None = None) -> int | None:
    """Its exit code, negative for a signal; None while it runs."""
    deadline = time.time() + seconds if seconds is not None else None
    while deadline is None or time.time() < deadline:
        done, status = os.waitpid(pid, 0 if deadline is None else os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


def states(out: Path) -> list[Path]:
    return [p for p in checkpoint.candidates(out, "ckpt.pt") if p.name != "best.pt"]


def reached(loop: Loop, out: Path) -> int:
    """Steps done, by the log; a resumed run drops the rows it does again."""
    rows = tracker.read(out / loop.csv)
    return rows[-1]["step"] + 1 if rows else 0


def outcome(loop: Loop, out: Path) -> tuple[dict, list[tuple]]:
    rows = [(r["step"], r["loss"], r["lr"], r["norm"]) for r in tracker.read(out / loop.csv)]
    return checkpoint.load(loop.last(out))["model"], rows


def differs(loop: Loop, a: tuple, b: tuple) -> str:
    if a[0].keys() != b[0].keys() or not all(torch.equal(a[0][k], b[0][k]) for k in a[0]):
        return f"{loop.name}: other weights at the end"
    return f"{loop.name}: other rows in {loop.csv}" if a[1] != b[1] else ""


# -----------------------------------------------------------------------------
# runs


def until_struck(loop: Loop, pid: int, out: Path, args: Options, g: np.random.Generator) -> int | None:
    """Lets it run to a random moment: mostly between two steps that are still to come, now and then while it starts."""
    if g.random() < 0.2:
        return wait(pid, float(g.random()))
    at = min(reached(loop, out), args.steps - 1)
    target, deadline = int(g.integers(at, args.steps)), time.time() + 120
    while reached(loop, out) <= target and time.time() < deadline:
        code = wait(pid, 0.005)
        if code is not None:
            return code
    return wait(pid, 0.05 * float(g.random()))


def disturb(loop: Loop, argv: list[str], whole: tuple, size: int, args: Options, g: np.random.Generator, folder: Path,
            tally: Tally) -> None:  # fmt: skip
    """One run to its end through up to args.faults faults."""
    out, log, code, more = folder / "r", folder / "log", None, []
    left = int(g.integers(1, args.faults + 1))
    while True:
        kind = str(g.choice(KINDS if states(out) else KINDS[:2])) if left else ""  # no disk, no first checkpoint
        pid = fork(loop, [*argv, *more], log, size // 2 if kind == "full disk" else None)
        if kind.startswith("SIG"):
            code = until_struck(loop, pid, out, args, g)
            if code is None:
                os.kill(pid, getattr(signal, kind))
                code = wait(pid)
        else:
            code = wait(pid)
        if code == 0:
            break
        left -= 1
        tally.faults[kind] += 1
        # SIGTERM before the run listens ends it at once
        if code not in {"SIGKILL": (-9,), "SIGTERM": (75, -15), "full disk": (74,)}.get(kind, ()):
            tally.differences.append(f"{loop.name}: exit {code} after {kind or 'nothing'}, {log}")
            return
        if states(out):
            here, at = reached(loop, out), checkpoint.load(states(out)[0])["step"]
            tally.lost += max(0, here - at)
            tally.resumes += 1
            more = loop.resume(out)
        else:
            more = []
    tally.runs += 1
    if "damaged" in log.read_text():
        tally.differences.append(f"{loop.name}: a damaged checkpoint, {log}")
    if wrong := differs(loop, outcome(loop, out), whole):
        tally.differences.append(f"{wrong}, {log}")


def torchrun(loop: Loop, argv: list[str], log: Path, *more: str) -> subprocess.Popen:
    command = loop.command(argv, 2)
    at = command.index("torch.distributed.run") + 1
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(log, "a") as f:
        return subprocess.Popen([*command[:at], *more, *command[at:]], cwd=ROOT, env=env, stdout=f, stderr=f)


def kill_a_rank(loop: Loop, argv: list[str], whole: tuple, g: np.random.Generator, folder: Path, tally: Tally) -> None:
    """torchrun starts all ranks again, and they resume."""
    out, log = folder / "r", folder / "log"
    process = torchrun(loop, argv, log, "--max-restarts=3")
    for _ in range(int(g.integers(1, 3))):
        before = set(states(out))
        while process.poll() is None and set(states(out)) <= before and reached(loop, out) < 2:
            time.sleep(0.01)
        time.sleep(float(g.random()))
        if process.poll() is not None:
            break
        try:
            workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        except OSError:
            workers = []
        if len(workers) < 2:  # they have just finished
            break
        here = reached(loop, out)
        os.kill(int(g.choice(workers)), signal.SIGKILL)
        tally.faults["a rank"] += 1
        if states(out):
            tally.lost += max(0, here - checkpoint.load(states(out)[0])["step"])
            tally.resumes += 1
        time.sleep(4)  # until the ranks are there again
    code = process.wait()
    tally.runs += 1
    if code:
        tally.differences.append(f"{loop.name}: torchrun ended with {code}, {log}")
    elif wrong := differs(loop, outcome(loop, out), whole):
        tally.differences.append(f"{wrong} on two ranks, {log}")


def soak(args: Options, loops: list[Loop], folder: Path) -> dict[str, Tally]:
    g, ends = np.random.default_rng(args.seed), time.time() + 60 * args.minutes
    for module in ("pyarrow", "tokenizers", *(loop.module for loop in loops)):
        importlib.import_module(module)  # once, not in every child
    tallies, known = {loop.name: Tally() for loop in loops}, {}
    trial = 0
    while time.time() < ends:
        for loop in loops:
            ranks = 2 if trial % 3 == 1 else 1
            where = folder / loop.name
            if (loop.name, ranks) not in known:
                (where / "data").mkdir(parents=True, exist_ok=True)
                if ranks == 1:
                    loop.data(where / "data")
                out = where / f"whole{ranks}"
                argv = command(loop, args, where, out, ranks)
                if ranks == 1:
                    code = wait(fork(loop, argv, where / "whole.log"))
                else:
                    code = torchrun(loop, argv, where / "whole.log").wait()
                assert code == 0, f"the undisturbed run of {loop.name} failed: {where / 'whole.log'}"
                known[loop.name, ranks] = (outcome(loop, out), states(out)[0].stat().st_size)
            whole, size = known[loop.name, ranks]
            place = where / f"trial{trial}"
            place.mkdir()
            argv = command(loop, args, where, place / "r", ranks)
            if ranks == 1:
                disturb(loop, argv, whole, size, args, g, place, tallies[loop.name])
            else:
                kill_a_rank(loop, argv, whole, g, place, tallies[loop.name])
            print(line(loop.name, tallies[loop.name]), flush=True)
            if time.time() > ends:
                break
        trial += 1
    return tallies


def command(loop: Loop, args: Options, where: Path, out: Path, ranks: int) -> list[str]:
    batch = loop.batch(4 // ranks, 1, ranks)
    return [*loop.flags(where / "data", out), *loop.steps(args.steps), *batch, DROPOUT[loop.module]]


# -----------------------------------------------------------------------------
# the report


def line(name: str, t: Tally) -> str:
    faults = " | ".join(f"{t.faults[k]}" for k in (*KINDS, "a rank"))
    return f"| {name} | {t.runs} | {faults} | {t.resumes} | {t.lost} | {len(t.differences)} |"


def table(tallies: dict[str, Tally]) -> str:
    head = f"| loop | runs | {' | '.join((*KINDS, 'a rank'))} | resumes | steps done twice | differences |"
    total = Tally(sum(t.runs for t in tallies.values()), sum((t.faults for t in tallies.values()), Counter()),
                  sum(t.resumes for t in tallies.values()), sum(t.lost for t in tallies.values()),
                  [d for t in tallies.values() for d in t.differences])  # fmt: skip
    rows = [line(name, t) for name, t in tallies.items()]
    return "\n".join([head, "| --- " * head.count(" |") + "|", *rows, line("all", total)])


def main(args: Options) -> None:
    names = [loop.name for loop in LOOPS]
    if unknown := [name for name in args.loops if name not in names]:
        raise ValueError(f"--loops must be among {', '.join(names)}, got {unknown[0]!r}")
    os.environ |= {"WANDB_MODE": "disabled"}
    folder = Path(tempfile.mkdtemp(prefix="soak"))
    print(f"logs and runs in {folder}")
    tallies = soak(args, [loop for loop in LOOPS if not args.loops or loop.name in args.loops], folder)
    text = table(tallies)
    print(text)
    wrong = [d for t in tallies.values() for d in t.differences]
    if idle := [name for name, t in tallies.items() if not t.resumes]:
        wrong.append(f"nothing was shown of {', '.join(idle)}: no resume in {args.minutes:g} minutes")
    print("\n".join(wrong) or "every run ended as the undisturbed one, bit for bit")
    if args.record:
        with open(ROOT / "bench" / "RESULTS.md", "a") as f:
            where = f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
            f.write(f"\n## Runs killed at random moments (tests/soak.py)\n\n{datetime.date.today()}, {args.minutes:g}"
                    f" minutes, {where}; {args.steps} steps a run, a checkpoint every 3.\n\n{text}\n")  # fmt: skip
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    with run.guard():
        main(config.parse(Options, sys.argv[1:], doc=__doc__))
