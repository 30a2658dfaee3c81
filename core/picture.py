"""Pictures as files: matplotlib without a window, loaded when one is drawn."""

import functools
import os
import sys
from pathlib import Path

from core import exits


def pyplot():
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rc("text", parse_math=False)  # $ in a name begins no formula
    from matplotlib import pyplot as plt

    return plt


def save(fig, path: Path) -> None:
    """Whole or not there."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        fig.tight_layout()
        with exits.writing(path):
            fig.savefig(temporary, format=path.suffix.lstrip(".") or "png")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
        pyplot().close(fig)  # which keeps it else


def extra(draw):
    """For draw(path, ...): a picture that cannot be drawn is one line, and ends no run; only a full disk does."""

    @functools.wraps(draw)
    def attempt(path: Path, *args) -> None:
        try:
            draw(path, *args)
        except Exception as e:
            if isinstance(e, OSError) and e.errno in exits.UNWRITABLE:
                raise
            print(f"{path}: no picture, {str(e).splitlines()[0] if str(e) else type(e).__name__}", file=sys.stderr)

    return attempt
