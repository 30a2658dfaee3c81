"""Exit codes: what ended a script, as a code and one line. Imports no torch, so that the data tools start at once."""

import contextlib
import errno
import gc
import linecache
import os
import re
import stat
import sys
import traceback
from pathlib import Path

OK, BUG, BAD_INPUT, NOT_FINITE, CANNOT_WRITE, STOPPED = 0, 1, 2, 3, 74, 75
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM,
              errno.ESTALE, errno.ENOTCONN)  # fmt: skip - the last two: a network's disk that went away
ROOT = Path(__file__).resolve().parent.parent
held = None  # the run folder this process holds (core/run.py), for the last word in status.json


class NotFinite(RuntimeError):
    """Too many steps in a row whose loss or gradients are not finite."""


def ours(e: BaseException) -> bool:
    """Whether our own code raised this with a `raise`: then it is a message to the user, else it is a bug."""
    frames = traceback.extract_tb(e.__traceback__)
    if not frames:
        return False
    file, line = frames[-1].filename, frames[-1].lineno
    inside = Path(file).resolve().is_relative_to(ROOT) and "site-packages" not in file
    return inside and linecache.getline(file, line).strip().startswith("raise ")


def ranks():
    """torch.distributed where this process is one of several, else None: who has not imported it has not joined."""
    td = sys.modules.get("torch.distributed")
    return td if td and td.is_available() and td.is_initialized() else None


def starved(e: BaseException) -> bool:
    """Whether memory ran out: torch has a class for it on GPUs only, and not for all that runs out there."""
    words = isinstance(e, RuntimeError) and re.search("out of memory|can't allocate memory|_ALLOC_FAILED", str(e))
    return isinstance(e, MemoryError) or isinstance(e, OSError) and e.errno == errno.ENOMEM or bool(words)


def verdict(e: BaseException) -> tuple[int, str]:
    """The exit code of an exception and its one line."""
    if isinstance(e, KeyboardInterrupt):
        return STOPPED, "interrupted"
    if isinstance(e, NotFinite):
        return NOT_FINITE, str(e)
    if isinstance(e, BrokenPipeError):
        return CANNOT_WRITE, "standard output was closed"
    if isinstance(e, FileNotFoundError) and held and not (held.path / ".lock").exists():
        return CANNOT_WRITE, f"{held.path} was moved or removed while the run was writing there"
    if isinstance(e, OSError) and e.errno == errno.EIO:
        return CANNOT_WRITE, f"{e.strerror}: {e.filename or 'the terminal is gone, or a disk fails'}"
    if isinstance(e, PermissionError) and os.path.exists(e.filename or "") and not os.access(e.filename, os.R_OK):
        return BAD_INPUT, f"{e.filename} cannot be read: {e.strerror}"
    if isinstance(e, OSError) and e.errno in UNWRITABLE:
        where = e.filename or full_log(e.errno) or held and e.strerror == os.strerror(e.errno) and held.path
        return CANNOT_WRITE, f"{e.strerror}: {where}" if where else str(e.strerror)
    if isinstance(e, FileNotFoundError) and "temporary directory" in str(e.strerror):
        return CANNOT_WRITE, f"{e.strerror}: TMPDIR=FOLDER in the environment names one"
    if isinstance(e, FileNotFoundError) and os.path.realpath(e.filename or "").startswith("/proc/"):
        return BAD_INPUT, f"{e.filename}: nothing can be made there"
    if isinstance(e, FileNotFoundError) and not held and e.filename and not e.filename2:
        return BAD_INPUT, f"{e.filename} was moved or removed while it was wanted"  # what never was has its own message
    if isinstance(e, OSError) and e.errno == errno.ENAMETOOLONG and e.filename:
        return BAD_INPUT, f"{e.strerror}: {e.filename}"
    if isinstance(e, FileExistsError | NotADirectoryError) and e.filename:
        return BAD_INPUT, f"{e.filename}: a folder is wanted there, and a file is in the way"
    if isinstance(e, IsADirectoryError) and e.filename:
        return BAD_INPUT, f"{e.filename} is a folder, and a file is wanted there"
    if isinstance(e, ValueError) and ours(e):
        return BAD_INPUT, str(e)
    if starved(e):
        what = str(e).strip().split("\n")[0].rpartition("DefaultCPUAllocator: ")[2].removesuffix(".")
        return BAD_INPUT, (f"out of memory{': ' * bool(what)}{what}; a smaller batch takes less, and is the same"
                           " training with as much more accumulation")  # fmt: skip
    if ranks() and isinstance(e, RuntimeError) and ("imed out" in str(e) or "timeout caused" in str(e)):
        why = str(e).splitlines()[0]
        return BUG, f"rank {ranks().get_rank()} waited in vain for another rank, as long as --timeout says: {why}"
    if ranks() and isinstance(e, RuntimeError) and ("reset by peer" in str(e) or "closed by peer" in str(e)):
        return BUG, f"rank {ranks().get_rank()} lost another rank, which ended or was killed"
    if type(e).__name__ == "BrokenProcessPool":
        return BUG, "a worker process was killed (for want of memory? fewer of them take less): nothing was written"
    return BUG, f"{type(e).__name__}: {e}"


def full_log(number: int) -> str:
    """Says "standard output" if this error, which names no file, came from there: the log's disk may be full while the
    run's own has room."""
    try:
        log = sys.stdout.fileno()
        if not (os.isatty(log) or stat.S_ISFIFO(os.fstat(log).st_mode)):
            os.write(log, b"\n")  # to flush again raises nothing
    except OSError as e:
        return "standard output" if e.errno == number else ""
    return ""


@contextlib.contextmanager
def writing(path: Path):
    """An error of writing to an open file names no file: it gets this path."""
    try:
        yield
    except OSError as e:
        what = os.strerror(e.errno) if e.errno else ""
        if e.filename is None and what and (e.strerror == what or "[errno" in str(e.strerror)):  # the latter is Arrow's
            e.strerror, e.filename = what, full_log(e.errno) or str(path)
        raise


def open_streams() -> None:
    """A closed stream (`2>&-`) is opened on /dev/null, and a letter that an encoding lacks is written as its number:
    neither may end a run."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - as long as the process
        with contextlib.suppress(AttributeError):  # a test's
            getattr(sys, name).reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def dropping(stream):
    """Where a stream cannot be written to any more (`| head` closed it, its disk is full, its terminal is gone), what
    goes there is dropped from now on."""
    try:
        yield
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def say(word: str = "") -> None:
    """A word on stderr, after all on stdout."""
    for stream, last in ((sys.stdout, ""), (sys.stderr, word)):
        with dropping(stream):
            print(last, end="", file=stream, flush=True)


class Lenient:
    """A stream that may have lost its reader: Ctrl-C ends `| tee log` as well, and must not cost the run its save."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, text: str) -> None:
        with dropping(self.stream):
            self.stream.write(text)

    def flush(self) -> None:
        with dropping(self.stream):
            self.stream.flush()

    def __getattr__(self, name: str):
        return getattr(self.stream, name)


def lenient() -> None:
    sys.stdout, sys.stderr = (s and (s if isinstance(s, Lenient) else Lenient(s)) for s in (sys.stdout, sys.stderr))


def finish_saving() -> None:
    """A checkpoint that is being written in the background is not lost to what ends the run: ranks leave at once."""
    saving = sys.modules.get("core.checkpoint")
    if saving:
        saving.wait()


def told(e: BaseException) -> tuple[int, str]:
    """verdict(e), said once by whichever rank it ended first."""
    code, message = verdict(e)
    if code == BUG and "another rank" not in message and "worker process" not in message:
        say(traceback.format_exc())
    if isinstance(e, KeyboardInterrupt):
        say("\n")  # text may be standing in this line
    who, heard = "", False
    if ranks():
        from core import dist

        who, lost = f"[rank {ranks().get_rank()}] ", "another rank" in message
        rank, first, cause = dist.first_failure(code, message)
        if lost and cause != message:  # it is told already, by the one that failed
            code, message, heard = first, f"rank {rank}: {cause}", dist.local_only()
    if not heard:
        say(f"{who}error: {message}\n")
    return code, message


@contextlib.contextmanager
def guard():
    """What a script runs in: exceptions become exit codes and one line; ranks leave together."""
    global held
    if not gc.isenabled():  # a script turned it off for its imports, which stay: to look there again takes 0.1 s
        gc.freeze()
        gc.enable()
    code, message = OK, ""
    open_streams()
    try:
        yield
        with contextlib.suppress(BrokenPipeError):
            print(end="", flush=True)  # what a full disk does not take is an error
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else OK if e.code is None else BUG
    except BaseException as e:
        code, message = told(e)
    try:
        finish_saving()
    except BaseException as e:
        if code in (OK, STOPPED):
            code, message = verdict(e)
        say(f"error: {verdict(e)[1]}\n")
    if held:
        held.leave(code, message)
        held = None
    many = ranks() is not None
    if many and code in (OK, STOPPED) and not message:  # interrupted, it is the only one that leaves here
        from core import dist

        try:
            dist.close()
        except RuntimeError as e:  # another one fails at its last words, or takes too long for them
            code, message = told(e)
    say()
    if many:  # gloo's threads may abort an interpreter that tears down
        os._exit(code)
    if code:
        raise SystemExit(code)
