"""Pictures as files: matplotlib without a window, loaded when one is drawn."""

import contextlib
import functools
import sys
import warnings
from pathlib import Path

from core import exits
from core.files import draft


@contextlib.contextmanager
def drawn(path: Path, width: float, height: float):
    """The axes of a picture, which is a file in the end. Without pyplot: a notebook's own figures stay as they are."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"text.parse_math": False}), warnings.catch_warnings():  # $ in a name begins no formula
        warnings.simplefilter("ignore", UserWarning)  # of letters that no font here has: boxes stand for them
        fig = Figure(figsize=(width, height), dpi=110)
        yield fig.subplots()
        fig.tight_layout()
        temporary = draft(path)
        try:
            with exits.writing(path):
                fig.savefig(temporary, format=path.suffix.lstrip(".") or "png")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


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
