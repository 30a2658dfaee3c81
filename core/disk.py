"""Files that are whole or not there: written beside the old one, flushed, renamed; large ones past the page cache."""

import contextlib
import errno
import fcntl
import hashlib
import mmap
import os
import shutil
from pathlib import Path

import numpy as np
import torch

from core import exits
from core.files import draft
from core.progress import size

BLOCK = 1 << 22  # bytes written at once, and summed at once; another number would not know the files that are there
ROW = 1 << 13  # of the table of sums, likewise


def replace(path: Path, write, also: tuple[Path, ...] = ()) -> None:
    """Atomic: a temporary file beside it, flushed, renamed, the folder flushed. `write` gets the open file.

    `also` are further names of the same file, and get it first: `path` says that its evaluation is done, so best.pt has
    to be there by then, a kill or not.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = draft(path)
    try:
        with exits.writing(path), open(temporary, "wb") as f:
            write(f)
            f.flush()
            os.fsync(f.fileno())
        for name in also:
            link(temporary, name)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    for folder in {f for name in (path, *also) for f in (name.parent, name.parent.parent)}:  # a folder may be new, too
        sync_folder(folder)


def sync_folder(path: Path) -> None:
    with contextlib.suppress(OSError):  # not on every file system
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def link(source: Path, target: Path) -> None:
    """A second name for the same bytes, in one step; a copy where the file system has no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = draft(target)
    temporary.unlink(missing_ok=True)
    try:
        try:
            os.link(source, temporary)
        except OSError:
            with open(source, "rb") as f, open(temporary, "wb") as copy:
                shutil.copyfileobj(f, copy, BLOCK)
                copy.flush()
                os.fsync(copy.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)  # where both names are of one file already, renaming does nothing


def full(path: Path, need: int, cause: OSError) -> OSError:
    there = next(p for p in (path, *path.parents) if p.exists())  # the folder may be what could not be made
    have = shutil.disk_usage(there).free
    if cause.errno not in (errno.ENOSPC, errno.EDQUOT):
        why = "over the file size limit" if cause.errno == errno.EFBIG else os.strerror(cause.errno)
        return OSError(cause.errno, f"cannot write {size(need)} to {path}: {why}")
    return OSError(cause.errno, f"disk full: need {size(need)}, have {size(have)} in {path}")


class Checksum:
    """The SHA-256 of a file's sums, in a fraction of the time that its bytes would take: a block is a table of 64-bit
    numbers, whose rows and columns are summed. A changed number changes two sums, and so do rows that change places. It
    is there for accidents: who changes a file on purpose can write a SHA-256 of its bytes, too."""

    def __init__(self):
        self.sha, self.ended = hashlib.sha256(), False

    def update(self, block) -> None:
        """The next BLOCK of the file; its last may be shorter."""
        assert not self.ended, "a short block is the last"
        self.ended = len(block) < BLOCK
        whole = len(block) // ROW * ROW
        table = np.frombuffer(block[:whole], "<u8").reshape(-1, ROW // 8)
        for part in (table.sum(0), table.sum(1), block[whole:]):
            self.sha.update(part)

    def digest(self) -> bytes:
        return self.sha.digest()


class Output:
    """The bytes of a checkpoint, summed on their way to a file; whole blocks of it go past the page cache.

    There they would cost more CPU time than all else, taken from training, and drive out the data set. Remembers the
    error that torch's writer would rename.
    """

    def __init__(self, file):
        self.fd, self.sum, self.error = file.fileno(), Checksum(), None
        self.block, self.used = memoryview(mmap.mmap(-1, BLOCK)), 0  # on whole pages, as direct writing wants it
        self.flag, self.direct = getattr(os, "O_DIRECT", 0), False  # Linux has it

    def write(self, data) -> int:
        left = memoryview(data).cast("B")
        while left:
            n = min(len(left), BLOCK - self.used)
            self.block[self.used : self.used + n], left = left[:n], left[n:]
            self.used += n
            if self.used == BLOCK:
                self.flush()
        return len(data)

    def flush(self) -> None:
        part, self.used = self.block[: self.used], 0
        if part:
            self.sum.update(part)
        self.past_cache(len(part) == BLOCK)
        try:
            while part:
                part = part[self.put(part) :]
        except OSError as e:
            self.error = e
            raise

    def put(self, part) -> int:
        try:
            return os.write(self.fd, part)
        except OSError as e:
            if not self.direct or e.errno != errno.EINVAL:
                raise
            self.past_cache(False)  # the file system wants other blocks, or an earlier one was written in part
            self.flag = 0
            return os.write(self.fd, part)

    def past_cache(self, on: bool) -> None:
        if self.flag and on != self.direct:
            flags = fcntl.fcntl(self.fd, fcntl.F_GETFL) & ~self.flag
            try:
                fcntl.fcntl(self.fd, fcntl.F_SETFL, flags | self.flag * on)
                self.direct = on
            except OSError:  # not on every file system
                self.flag = 0


def size_of(state) -> int:
    if torch.is_tensor(state):
        return state.numel() * state.element_size()
    values = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return sum(map(size_of, values))


def dump(f, state, folder: Path, size: int) -> bytes:
    """torch.save, with the disk's own word where it fails; the checksum of what was written."""
    out = Output(f)
    try:
        torch.save(state, out)
        out.flush()
    except (OSError, RuntimeError) as e:
        cause = out.error or e
        if isinstance(cause, OSError) and cause.errno:
            raise full(folder, size, cause) from None
        raise
    return out.sum.digest()
