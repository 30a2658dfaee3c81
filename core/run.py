"""A run and its folder: the lock, signals, status.json, how it ends, and steps that are not finite."""

import contextlib
import errno
import fcntl
import json
import os
import re
import signal
import socket
import sys
import time
import typing
from pathlib import Path

import torch

from core import config, dist, exits
from core.exits import OK, STOPPED, NotFinite, guard  # noqa: F401 - run.guard() is what scripts say
from core.files import read_json

# -----------------------------------------------------------------------------
# the folder

TEMPORARY = re.compile(r"\..+\.tmp-\d+|.+\.(json|yaml|csv)\.tmp")  # what we write before renaming, no one else's files
OUTPUT = re.compile(r".+\.(pt|ckpt)|(train|eval)\.csv|config\.yaml|(status|results)\.json|(loss|scores|confusion)\.png"
                    r"|checkpoint-\d+|final|metrics|wandb|tensorboard")  # fmt: skip - of a run
DATA = ("*.bin", "*.arrow", "labels.json", "tokenizer*.json", "prepare.py")  # what data tools make has one of them


def read_status(path: Path) -> dict:
    try:
        return read_json(path / "status.json")
    except ValueError:  # none, or a list of someone else's
        return {}


def beyond(path: Path, step: int) -> str:
    """A note for a run that goes back to an earlier step; empty where it does not."""
    reached = read_status(path).get("step") or 0
    return f"note: this run was at step {reached}; what it saved after step {step} is replaced" * (reached > step)


def finished(path: Path) -> bool:
    """Whether the run there came to its end: at its last step something may still be left to evaluate and write."""
    return read_status(path).get("state") == "finished"


def saved(path: Path, checkpoints: tuple[str, ...]) -> bool:
    return any(p for pattern in checkpoints for p in path.glob(pattern))


def holds_run(path: Path, checkpoints: tuple[str, ...]) -> bool:
    """A checkpoint, or a status.json of a run that began."""
    if saved(path, checkpoints):
        return True
    status = read_status(path)
    return bool(status) and not (status.get("state") == "failed" and status.get("step") is None)


def foreign(p: Path) -> bool:
    """Whether what lies in a run's folder is not the run's: the folder of another run (out/py in out), or data."""
    if not p.is_dir():
        return any(map(p.match, DATA))
    names = (".lock",) if OUTPUT.fullmatch(p.name) else (".lock", *DATA)
    return any(any(p.rglob(name)) for name in names)


def own(path: Path) -> list[Path]:
    """What lies in the folder and is the run's own: not other runs, not data."""
    return [p for p in path.iterdir() if not foreign(p)]


def stale(path: Path) -> list[Path]:
    """Temporary files that killed writers have left; they go when a run begins."""
    found = (p for mine in own(path) for p in (mine, *mine.rglob("*.tmp*")))
    return [p for p in found if TEMPORARY.fullmatch(p.name) and p.is_file()]


class Run:
    def __init__(self, path: Path, main: bool):
        self.path, self.main = path, main
        self.step: int | None = None
        self.aside: Path | None = None  # where the run that was here has gone
        self.restarted = False  # torchrun --max-restarts started the ranks again: what is here is the same launch's
        self.lock = None  # the open .lock file
        self.created, self.fresh = [], False  # folders made for it, and whether it is new: a refused start undoes
        self.begun = False  # all was checked: what is in the folder may change
        self.signal = 0  # the one that asks to stop
        self.old = {}  # what signals did before
        self.finished = False

    def take_lock(self) -> None:
        """flock goes with the process, also on SIGKILL."""
        if not self.main:
            return
        if (self.path / ".lock").is_symlink():  # it may lead to nothing, or to what must not be emptied
            raise ValueError(f"{self.path / '.lock'} is a link: remove it")
        self.created = [p for p in (self.path, *self.path.parents) if not p.exists()]  # the folder, and those around it
        self.fresh = not (self.path / ".lock").exists()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError:  # a file system of the kernel's own
            raise ValueError(f"the folder {self.path} cannot be made") from None
        self.lock = open(self.path / ".lock", "a+")  # noqa: SIM115 - held as long as the run
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            self.lock.seek(0)
            holder = self.lock.read().strip() or "another process"
            self.lock.close()
            self.lock = None
            raise ValueError(f"{self.path} is in use by {holder}") from None
        except OSError as e:  # a cluster's file system without locks
            print(f"note: {self.path} cannot be locked ({e.strerror}): a second run there would not be noticed",
                  file=sys.stderr)  # fmt: skip
        self.lock.truncate(0)
        self.lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        self.lock.flush()
        os.fsync(self.lock.fileno())  # other nodes look for it

    def begin(self, *, holds: str, resume: bool, checkpoints: tuple[str, ...] = ("*.pt",),
              written: list[str] | tuple = ()) -> None:  # fmt: skip
        """Everything was checked: makes room for this run, and listens for signals.

        `holds` says what becomes of a run that is there: "aside", "overwrite", or it stays as it is. `written` are the
        files that it leaves beside its checkpoints: of an overwritten run none may be taken for the new one's.
        """
        if self.main:
            for old in stale(self.path):
                old.unlink()
            if holds == "aside" and not resume and holds_run(self.path, checkpoints):
                if any(p.is_relative_to(self.path.resolve()) for p in (Path.cwd(), exits.ROOT)):
                    raise ValueError(f"{self.path} holds a run, and the folder that you are in or this code, which stay"
                                     " where they are: name another one")  # fmt: skip
                # a link stays: the new run is wanted on the disk that it leads to
                there = self.path.resolve() if self.path.is_symlink() else self.path
                n = 1
                while (aside := there.with_name(f"{there.name}.{n}")).exists():
                    n += 1
                self.move(aside, {Path(name).parts[0] for name in written})
                self.aside = self.aside or aside  # a restart moves what the dead ranks began, too
                print(f"{self.path} held a run: moved to {aside}")
            if holds == "overwrite" and not resume:
                there = [p for pattern in checkpoints for p in self.path.glob(pattern)]
                for old in (*there, *(self.path / name for name in written)):
                    old.unlink(missing_ok=True)
        self.begun = True
        exits.held = self
        with contextlib.suppress(ValueError):  # not in the main thread: no signals there
            self.old = {s: signal.signal(s, self.heard) for s in signals()}
        self.status("running")
        dist.barrier()

    def gone_to(self, source: str) -> str:
        """The path to start from, as config.yaml and a restart have to name it: where it lay in the run that was moved
        aside, it is there now."""
        inside = self.aside and Path(source).resolve().is_relative_to(self.path.resolve())
        now = self.aside / Path(source).resolve().relative_to(self.path.resolve()) if inside else Path(source)
        return str(now) if inside and now.exists() else source

    def move(self, aside: Path, written: set[str]) -> None:
        """Moves the old run away: in one step, or file by file around other runs and data. Then its checkpoints and
        status.json go last, so that a kill in between leaves nothing that a new run would take for its own."""
        mine = own(self.path)
        try:
            if not self.path.is_symlink() and len(mine) == len(list(self.path.iterdir())):
                self.path.rename(aside)
                self.lock.close()
                self.take_lock()
                return
            aside.mkdir()
            for p in sorted(mine, key=lambda p: p.suffix in (".pt", ".ckpt") or p.name == "status.json"):
                if OUTPUT.fullmatch(p.name) or p.name in written:  # notes and texts beside data are no run's, either
                    p.rename(aside / p.name)
        except OSError as e:
            if e.errno not in (errno.EBUSY, errno.EXDEV):
                raise
            with contextlib.suppress(OSError):
                aside.rmdir()
            raise ValueError(f"{self.path} holds a run, and a disk is mounted there, so that it cannot be moved to"
                             f" {aside}: name a folder in it") from None  # fmt: skip

    @property
    def writes(self) -> bool:
        """The one process that writes files, once the run began: --check and --replay_step never begin."""
        return self.main and self.begun

    def heard(self, number: int, frame) -> None:
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
        exits.lenient()
        with contextlib.suppress(OSError):  # nobody reads, and print may stand in the middle of a line
            os.write(sys.stderr.fileno(), f"{signal.Signals(number).name}: finishing this step, then saving\n".encode())

    def stopping(self) -> bool:
        """A signal came to any rank; all ranks agree on it at the same step."""
        return dist.any(self.signal != 0)

    def status(self, state: str, code: int | None = None, message: str = "") -> None:
        if not self.main:
            return
        about = {"state": state, "code": code, "message": message, "step": self.step, "pid": os.getpid(),
                 "host": socket.gethostname(), "time": round(time.time(), 1)}  # fmt: skip
        if "TORCHELASTIC_RUN_ID" in os.environ:
            about |= {"launch": os.getppid(), "aside": str(self.aside) if self.aside else None}
        path, temporary = self.path / "status.json", self.path / "status.json.tmp"
        try:
            temporary.write_text(json.dumps(about))
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            if not path.exists():
                raise
            with open(path, "r+") as f:  # a disk without a free block: the old one has its own
                f.write(json.dumps(about))
                f.truncate()

    def seen_by_all(self) -> None:
        """Refuses ranks that see another folder than rank 0, which alone writes it: all read from it, to resume and to
        take the best weights."""
        mine = self.path / ".lock"
        holder = dist.first(mine.read_text() if self.main else "")

        def refused() -> str:
            for wait in (0, 0.2, 1, 5, 0):  # a network's file system may be late
                if mine.is_file() and mine.read_text() == holder:
                    return ""
                time.sleep(wait)
            return (f"{self.path} on {socket.gethostname()} is not the folder that rank 0 writes ({holder}): all nodes"
                    " need it on a disk that they share")  # fmt: skip

        dist.agree(refused)

    def look_back(self) -> None:
        """Whether torchrun has started the run that is here again, and where it moved the run before it, if any."""
        if not dist.any(dist.restarts() > 0):  # a node whose ranks were alive does not count one
            return
        before = read_status(self.path)
        ours = (before.get("launch"), before.get("host")) == (os.getppid(), socket.gethostname())
        self.restarted = dist.any(self.main and ours)
        if self.restarted and before.get("aside"):
            self.aside = Path(before["aside"])

    def finish(self, code: int = OK) -> None:
        """The run's own last word; SystemExit(75) where a signal ended it."""
        self.finished = True
        if code == STOPPED and self.main:
            print(f"stopped before step {self.step} and saved: --init_from=resume goes on there", flush=True)
        self.leave(code)
        if code:
            raise SystemExit(code)

    def leave(self, code: int, message: str = "") -> None:
        """Frees the folder; says how it ended."""
        state = {OK: "finished", STOPPED: "stopped"}.get(code, "failed")
        with contextlib.suppress(OSError):  # a full disk must not hide the reason
            if self.begun and not (self.finished and self.lock is None):
                self.status(state, code, message)
            elif self.lock and not self.begun:  # a refused start leaves nothing behind
                if code and dist.together() and not holds_run(self.path, ("*.pt", "*.ckpt", "checkpoint-*")):
                    self.status(state, code, message)  # but this: torchrun's exit code hides ours
                elif self.fresh:
                    (self.path / ".lock").unlink()
                    for made in self.created:
                        made.rmdir()
        for s, handler in self.old.items():
            signal.signal(s, handler)
        self.old = {}
        if self.lock:
            self.lock.close()
            self.lock = None
        exits.held = None


def signals() -> list[int]:
    """What asks a run to stop: a closed terminal, too, but not under nohup."""
    kept = signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
    return [signal.SIGTERM, signal.SIGINT, *[signal.SIGHUP] * kept]


def claim(path: str | Path, main: bool = True, options=None) -> Run:
    """Locks a run folder; nothing in it changes until .begin()."""
    if not str(path).strip():
        raise ValueError("the run's folder has no name: . is the folder where you are")
    if exits.held:  # in a notebook: of a main() that an error ended, without guard() around it
        with contextlib.suppress(Exception):
            exits.finish_saving()
        exits.held.leave(exits.BUG, "an error ended it")
    folder = Run(Path(path), main)
    folder.take_lock()
    exits.held = folder
    if dist.together() and not dist.local_only():
        folder.seen_by_all()
        if options is not None:
            same_options(options)
    folder.look_back()
    return folder


def same_options(options) -> None:
    """Each node has a command of its own: texts may differ, as paths do, but no number, no switch and no choice."""
    mine = {}
    for name, spec in config.specs(type(options)).items():
        value, text = config.get(options, name), str in (spec.type, *typing.get_args(spec.type))
        if not text or spec.meta.get("choices") or re.fullmatch(r"-?[\d.]+", str(value)):
            mine[name] = repr(value)
    first, *others = dist.gather(mine)
    for rank, theirs in enumerate(others, 1):
        for name in (n for n in first if first[n] != theirs.get(n)):
            raise ValueError(f"{config.said(options, name)} is {first[name]} on rank 0, {theirs.get(name)} on rank"
                             f" {rank}: all nodes need the same options")  # fmt: skip


def refuse(path: Path, checkpoints: tuple[str, ...] = ("*.pt",)) -> None:
    """Refuses a folder that holds a run, where a second one is the user's mistake. checkpoints[0] is its last state."""
    if holds_run(path, checkpoints):
        resumable = saved(path, checkpoints[:1])  # the best may be that of the run it went on from
        goes_on = "--init_from=resume goes on with it" if resumable else "it has no checkpoint to go on from"
        raise ValueError(f"{path} holds a run already: {goes_on}, --overwrite (of an experiment; elsewhere"
                         " --files.second=overwrite) replaces it, another name keeps both")  # fmt: skip


def ends(options, limits: dict[str, int | None]) -> tuple[int, str, list[str]]:
    """(last step, the options that set it, notes). `limits` are steps by option; the lowest ends the run, None is none.

    A note tells what the user asked for and does not get: a max_steps that is not reached; and epochs that are not,
    where they were said with more weight than what ends the run (a flag weighs more than a line of a file, and that
    more than a default).
    """
    last = min(n for n in limits.values() if n)
    ending = [option for option, n in limits.items() if n == last]

    def weight(option: str) -> int:
        return (option[2:] in options.given) + (option[2:] in options.typed)

    least = max(map(weight, ending))
    beyond = [option for option, n in limits.items()
              if (n or 0) > last and weight(option) > (0 if option.endswith("max_steps") else least)]  # fmt: skip
    names = " and ".join(ending)
    end = f"is not reached: {names} ends the run at step {last}"
    return last, names, [f"note: {option} {config.get(options, option[2:])} {end}" for option in beyond]


def not_beyond(first_step: int, last_step: int, option: str) -> None:
    """A run cannot end before the step that it is at: there are no weights of an earlier one to end with."""
    if first_step > last_step:
        raise ValueError(f"{option} ends the run at step {last_step}, and it is at step {first_step} already")


def same_data(loop: dict, now: list | dict, option: str, what: str) -> None:
    """Refuses ranks that read different data, and a resume on other data than the run began with, as far as the numbers
    `now` tell; loop["counts"] keeps them in the checkpoint."""
    first, *others = dist.gather(now)
    for rank, theirs in enumerate(others, 1):
        if theirs != first:
            raise ValueError(f"{option} is not the same on each node: {what} {first} on rank 0, {theirs} on {rank}")
    if not alike(then := loop.setdefault("counts", now), now):
        raise ValueError(f"{option} changed since this run began: {what} {then} then, {now} now")


def alike(then, now) -> bool:
    """Equal, as far as both go: an older checkpoint keeps fewer numbers."""
    if isinstance(now, dict):
        return all(alike(then[name], now[name]) for name in now)
    return all(map(alike, then, now)) if isinstance(now, list) else then == now


# -----------------------------------------------------------------------------
# steps that are not finite


class Finite:
    """Keeps updates that are not finite out of the weights, and counts them.

    On CUDA with a fused optimizer the decision stays on the device (its found_inf input skips the update), so no
    step waits for the GPU; the count is read at log steps. Elsewhere it is read at once.
    """

    def __init__(self, optimizer, device: torch.device, limit: int, stored: dict | None = None):
        self.lazy = device.type == "cuda" and getattr(optimizer, "_step_supports_amp_scaling", False)
        self.optimizer, self.limit, stored = optimizer, limit, stored or {}
        self.total, self.row = stored.get("bad_steps", 0), stored.get("bad_row", 0)
        # in a row, since the last check, last bad step
        self.state = torch.tensor([self.row, 0, 0], device=device, dtype=torch.int64)

    def counts(self) -> dict:
        """For a checkpoint: a run that a signal stops time and again would else never come to the limit."""
        row, new, _ = self.state.tolist() if self.lazy else (self.row, 0, 0)
        return {"bad_steps": self.total + new, "bad_row": row}

    def ok(self, norm: torch.Tensor, step: int, where: str) -> bool:
        """Whether to step. The norm is over all ranks' gradients, so all decide alike."""
        if self.lazy:
            bad = ~torch.isfinite(norm)
            self.optimizer.found_inf = bad.float()
            self.state = torch.stack([(self.state[0] + 1) * bad, self.state[1] + bad,
                                      torch.where(bad, step, self.state[2])])  # fmt: skip
            return True
        if torch.isfinite(norm):
            self.row = 0
            return True
        self.row, self.total = self.row + 1, self.total + 1
        self.report(step, where)
        return False

    def check(self, where: str) -> None:
        """At log steps: reads what the device counted."""
        if self.lazy:
            row, new, step = self.state.tolist()
            self.row, self.total = row, self.total + new
            self.state[1] = 0
            if new:
                self.report(step, where)

    def bad(self) -> bool:
        """Whether the last step was not finite: its weights may be why, and none take a good checkpoint's place."""
        return bool(self.state[0]) if self.lazy else self.row > 0

    def report(self, step: int, where: str) -> None:
        print(f"step {step}: loss or gradient not finite, update skipped ({self.total} so far; {where};"
              f" --replay_step {step} runs this batch again)", file=sys.stderr)  # fmt: skip
        if self.row >= self.limit:
            raise NotFinite(f"{self.row} steps in a row up to step {step} were not finite: the last checkpoint is kept")
