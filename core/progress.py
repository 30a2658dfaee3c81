"""Progress of what is not a training loop: nothing for two seconds, then a line with the end in sight."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator


def duration(seconds: float) -> str:
    """3m20s, 2h05m, 41s."""
    seconds = int(round(seconds))
    h, m, s = seconds // 3600, seconds // 60 % 60, seconds % 60
    return f"{h}h{m:02d}m" if h else f"{m}m{s:02d}s" if m else f"{s}s"


def size(n: float) -> str:
    """1.5 GiB, 20.0 MiB, 3.1 KiB, 12 bytes."""
    found = next(((unit, name) for unit, name in ((30, "GiB"), (20, "MiB"), (10, "KiB")) if n >= 1 << unit), None)
    return f"{n / (1 << found[0]):,.1f} {found[1]}" if found else f"{n:.0f} bytes"


def progress(
    items: Iterable, what: str, total: float | None = None, unit: str = "", size: Callable | None = None, *, show=True
) -> Iterator:
    """Passes items through and says (one of several ranks does: `show`) how far it is and when it ends; `size` is what
    an item counts for, else one."""
    if not show:
        yield from items
        return
    total = len(items) if total is None and hasattr(items, "__len__") else total
    tty, start = sys.stderr.isatty(), time.monotonic()
    shown, wrote, done = start + 2 - (0.2 if tty else 10), False, 0
    try:
        for item in items:
            yield item
            done += size(item) if size else 1
            now = time.monotonic()
            if now - shown >= (0.2 if tty else 10):
                shown, wrote = now, True
                rate = max(done, 1e-9) / (now - start)
                of, eta = (f"/{total:,.0f}", f" | eta {duration(max(0, total - done) / rate)}") if total else ("", "")
                line = f"{what}: {done:,.0f}{of} {unit} | {rate:,.1f} {unit}/s{eta}"
                line = line.replace("  ", " ").replace(" /s", "/s")
                print(f"\r{line:<78}" if tty else line, end="" if tty else "\n", file=sys.stderr, flush=True)
    finally:  # a signal may end an evaluation before its items do
        if wrote and tty:
            print(file=sys.stderr)
