"""One checkpoint format for all scripts: a plain dict, written atomically, closed by a checksum, read as data only."""

import contextlib
import functools
import hashlib
import os
import shutil
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import torch

from core import disk, dist, run
from core.files import previous

FORMAT = 1
KEYS = {"format": int, "kind": str, "model_config": dict, "model": dict, "optimizer": dict | None, "loop": dict,
        "rng": dict, "step": int, "best": int | float | None, "options": dict, "meta": dict}  # fmt: skip
MAGIC = b"\nSUM256:"  # then 32 bytes of disk.Checksum
OLD = b"\nSHA256:"  # then the SHA-256 of all bytes, as checkpoints until November 2026 have it
NICE = 10  # of the thread that writes beside training: bench/NOTES.md compares
_writer: threading.Thread | None = None
_failed: list[BaseException] = []
_good: set[Path] = set()  # written or verified by this process: fit to be kept as the one before
_bad: set[Path] = set()  # found damaged by this process: does not count among those that are kept


def strip(weights: dict) -> dict:
    """Weights without what torch.compile and DDP put before their names."""
    return {k.replace("_orig_mod.", "").removeprefix("module."): v for k, v in weights.items()}


def pack(*, kind: str, model, model_config: dict, optimizer, loop: dict, seed: int, step: int, best: float | None,
         options: dict, meta: dict) -> dict:  # fmt: skip
    """What a run needs to go on. Random draws are functions of (seed, step), so the seed is all there is to keep, and
    of a CPU's sums, whose order depends on it, the number of threads."""
    return {"format": FORMAT, "kind": kind, "model_config": model_config, "model": strip(model.state_dict()),
            "optimizer": optimizer.state_dict() if optimizer is not None else None, "loop": loop,
            "rng": {"seed": seed, "threads": torch.get_num_threads()}, "step": step,
            "best": None if best is None else float(best),  # a tensor's could not be read again
            "options": options, "meta": meta}  # fmt: skip


def going_on(path: str | Path, state: dict, device: torch.device) -> str:
    """What a resume says of its checkpoint."""
    now, before = torch.get_num_threads(), state["rng"].get("threads")
    other = device.type == "cpu" and before not in (None, now)
    more = f"; {now} threads, where it had {before}: last digits may differ" if other else ""
    return f"resuming {path} at step {state['step']}{more}"


# -----------------------------------------------------------------------------
# writing


def write(path: Path, state: dict, also: tuple[Path, ...], keep: bool) -> None:
    def body(f):
        crc = torch.serialization.get_crc32_options()
        try:
            # the checksum tells damage; torch's own sums pass the file on in small pieces, at three times the CPU time
            torch.serialization.set_crc32_options(False)
            f.write(MAGIC + disk.dump(f, state, path.parent, disk.size_of(state)))
        finally:
            torch.serialization.set_crc32_options(crc)

    try:
        if keep and path in _good and path.exists():  # a damaged one must not take the place of a good one
            disk.link(path, previous(path))
        disk.replace(path, body, also)
    except OSError as e:
        if e.errno and not str(e.strerror).startswith(("disk full", "cannot write")):
            raise disk.full(path.parent, disk.size_of(state), e) from None
        raise
    for name in (path, *also):
        _bad.discard(name)
    _good.add(path)


READABLE = (bool, int, float, str, bytes, type(None), torch.dtype, torch.device)


def readable(x, name: str = "checkpoint"):
    """The state with Python's numbers in place of numpy's, which weights_only=True refuses, as it does all that is no
    plain data. That is refused here, by its name, before the run has a checkpoint that cannot be resumed."""
    if isinstance(x, dict):
        return {readable(k, f"{name}: a key"): readable(v, f"{name}: {k}") for k, v in x.items()}
    if isinstance(x, list | tuple | set):
        return type(x)([readable(v, name) for v in x])
    if isinstance(x, np.generic):
        return x.item()
    if not torch.is_tensor(x) and type(x) not in READABLE:
        raise TypeError(f"{name} is a {type(x).__name__}, which could not be read again: a number, text, list, dict or"
                        " tensor can")  # fmt: skip
    return x


def snapshot(state):
    """A copy in main memory that training cannot change under the writer; tied weights stay tied."""
    copies, gpus = {}, set()

    def walk(x):
        if torch.is_tensor(x):
            key = (x.data_ptr(), x.shape, x.stride(), x.dtype)
            if key not in copies or not x.numel():
                copies[key] = copy(x.detach())
                gpus.update({x.device} if x.is_cuda else ())
            return copies[key]
        if isinstance(x, dict):
            return {k: walk(v) for k, v in x.items()}
        return type(x)(map(walk, x)) if isinstance(x, list | tuple) else x

    state = walk(state)
    copies.clear()  # `walk` knows itself, and would keep them until Python looks for such circles
    for device in gpus:
        torch.cuda.synchronize(device)
    return state


def copy(x: torch.Tensor) -> torch.Tensor:
    """In main memory. A GPU writes to pinned memory without a detour; it is there at the next synchronisation."""
    if x.is_cuda:
        with contextlib.suppress(RuntimeError):  # no more can be pinned
            return torch.empty_like(x, device="cpu", pin_memory=True).copy_(x, non_blocking=True)
    return x.to("cpu", copy=True)


def save(path: str | Path, state: dict, *, also: tuple = (), keep: bool = True, background: bool = False) -> None:
    """Writes a checkpoint; `also` are further names for it (best.pt), `keep` leaves the one before as NAME.prev.

    In the background only the copy is waited for. The next save, or wait(), raises what went wrong there.
    """
    global _writer
    assert set(state) == set(KEYS), sorted(set(state) ^ set(KEYS))
    wait()
    state, path, also = readable(state), Path(path), tuple(map(Path, also))
    if not background:
        write(path, state, also, keep)
        return
    state = snapshot(state)

    def work():
        try:
            if sys.platform == "linux":  # where 0 is this thread alone: it takes what training leaves of the cores
                with contextlib.suppress(OSError):  # a sandbox may forbid it
                    os.setpriority(os.PRIO_PROCESS, 0, NICE)
            write(path, state, also, keep)
        except BaseException as e:
            _failed.append(e)

    _writer = threading.Thread(target=work)
    try:
        _writer.start()
    except RuntimeError:  # no more threads may be started here: training waits
        _writer = None
        write(path, state, also, keep)


def wait() -> None:
    """Until the last save is on disk."""
    global _writer
    if _writer:
        _writer.join()
        _writer = None
    if _failed:
        raise _failed.pop()


# -----------------------------------------------------------------------------
# reading


def verify(path: Path) -> bool:
    """Whether the checksum at the end is that of the bytes before it."""
    left = path.stat().st_size - len(MAGIC) - 32
    if left <= 0:
        return False
    with open(path, "rb") as f:
        f.seek(left)
        magic, digest = f.read(len(MAGIC)), f.read()
        f.seek(0)
        found, block = hashlib.sha256() if magic == OLD else disk.Checksum(), memoryview(bytearray(disk.BLOCK))
        while left:
            n = f.readinto(block[: min(left, disk.BLOCK)])
            if not n:
                return False
            found.update(block[:n])
            left -= n
        return magic in (MAGIC, OLD) and digest == found.digest()


def load_data(path: str | Path) -> dict:
    """Any torch file, as data: nothing in it is executed."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"checkpoint {path} does not exist")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a pickle's protocol: a line of its own before the error's
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:
        with open(path, "rb") as f:
            start = f.read(2)
        if not start:
            raise ValueError(f"{path} is empty") from None
        if start != b"PK" and start[:1] != b"\x80":  # no zip, no pickle: a CSV in place of a .pt, say
            raise ValueError(f"{path} is not a file that torch wrote") from None
        what = "holds code, not only data" if "Unsupported" in str(e) or "weights_only" in str(e) else "cannot be read"
        raise ValueError(f"{path} {what}: it is damaged, or not from a source to trust") from None


def load(path: str | Path) -> dict:
    """One of our checkpoints, verified. ValueError for anything else."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"checkpoint {path} does not exist")
    if not verify(path):
        _good.discard(path)
        _bad.add(path)
        with open(path, "rb") as f:
            alien = f.read(2) not in (b"PK", b"")
            f.seek(max(0, path.stat().st_size - 22))
            whole = f.read(4) == b"PK\5\6"  # a zip's end is the file's: nothing that we write
        why = "its SHA-256 does not match"
        if whole:
            why = "or of another program: no SHA-256 ends it; train.py --init_from takes nanoGPT's weights, too"
        what = "not a file that torch wrote" if alien else f"damaged or incomplete ({why})"
        raise ValueError(f"checkpoint {path} is {what}")
    state = load_data(path)
    if not isinstance(state, dict) or set(state) != set(KEYS):
        raise ValueError(f"{path} is not a checkpoint of these scripts")
    wrong = [k for k, kind in KEYS.items() if not isinstance(state[k], kind)]
    if wrong or not all(torch.is_tensor(w) and w.layout == torch.strided for w in state["model"].values()):
        name = wrong[0] if wrong else "model"
        raise ValueError(f"{path} is not a checkpoint of these scripts: its {name} is of another type")
    if state["format"] > FORMAT:
        raise ValueError(f"{path} was written by a newer version (format {state['format']}, this one reads {FORMAT})")
    check_finite(state["model"], path)
    return state


def check_finite(weights: dict, source: str | Path) -> None:
    """A model that diverged answers with NaN or, through an argmax, with what looks like an answer."""
    if bad := next((name for name, w in weights.items() if not torch.isfinite(w).all()), None):
        raise ValueError(f"{source} holds weights that are not finite, beginning with {bad}: no model can use them")


def put(model, weights: dict, source: str | Path) -> None:
    """All weights of a checkpoint into its model."""
    ours = model.state_dict()
    for name in (*ours, *weights):
        here, there = (tuple(side[name].shape) if name in side else "nothing" for side in (ours, weights))
        if here != there:
            raise ValueError(f"{source} does not fit its own config: {name} is {there} there, and {here} by the config")
    model.load_state_dict(weights)


def numbered(folder: Path) -> list[Path]:
    """Its checkpoint-STEP folders, the oldest first; checkpoint-STEP-keep and the like are somebody's own."""
    found = [p for p in folder.glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdecimal()]
    return sorted(found, key=lambda p: int(p.name.removeprefix("checkpoint-")))


def candidates(folder: Path, name: str) -> list[Path]:
    """The checkpoints a resume may use, newest first: NAME is as new as the newest of the checkpoint-STEP folders."""
    found = [folder / name, previous(folder / name), *(p / name for p in reversed(numbered(folder))),
             folder / f"best{Path(name).suffix}"]  # fmt: skip
    return [p for p in found if p.is_file()]


def is_run(folder: str | Path) -> bool:
    """Whether it is a folder with checkpoints of ours."""
    return bool(Path(folder).is_dir() and candidates(Path(folder), "ckpt.pt"))


def weights_of(args, named: str, folder: str) -> str:
    """Whose weights to take: those that the option `named` names, or those of the run in the folder of `folder`. The
    config.yaml of a run has both, as it says what the run began from; then the run's own go first, but for a flag."""
    asked, own = (functools.reduce(getattr, name.split("."), args) for name in (named, folder))
    return own if folder in args.given and named not in args.typed and is_run(own) else asked or own


def goes_on(folder: run.Run, name: str = "ckpt.pt") -> bool:
    """Whether torchrun --max-restarts has started a run again that has saved: it resumes, whatever the command says."""
    return folder.restarted and dist.any(folder.main and bool(candidates(folder.path, name)))


def newest(folder: str | Path, name: str = "ckpt.pt") -> tuple[dict, Path]:
    """The newest good checkpoint of a run folder; damaged ones are passed over, and said so."""
    folder = Path(folder)
    found = candidates(folder, name)
    if not found:
        raise ValueError(f"nothing to resume: {folder} holds no checkpoint ({name})")
    for path in found:
        try:
            state = load(path)
            _good.add(path)
            return state, path
        except ValueError as e:
            print(f"{e}; trying the one before", file=sys.stderr)
    others = ", ".join(p.name for p in sorted(folder.glob(f"{Path(name).stem}_*{Path(name).suffix}")) if verify(p))
    raise ValueError(f"nothing to resume: no checkpoint in {folder} is intact"
                     + f" but {others}, which --init_from_ckpt takes" * bool(others))  # fmt: skip


def prune(folder: str | Path, keep: int) -> None:
    """Of the checkpoint-STEP folders the newest `keep` stay; -1: all. A damaged one stays, and is not one of them, nor
    is one that a kill left empty."""
    damaged = {p.parent for p in _bad}
    found = [p for p in numbered(Path(folder)) if p not in damaged and (p / "ckpt.pt").is_file()]
    for old in found[: max(0, len(found) - keep)] if keep >= 0 else []:
        shutil.rmtree(old)


def forget(folder: Path, step: int, main: bool = True) -> None:
    """A run went back to this step: what it saved later is neither to be resumed nor its best. Numbered ones stay."""
    for path in (folder / "best.pt", previous(folder / "ckpt.pt")) if main else ():
        with contextlib.suppress(ValueError):  # not there, or damaged: nobody takes it for good
            if load(path)["step"] > step:
                path.unlink()


def best_of(path: Path, state: dict, name: str) -> Path | None:
    """The best weights of the run up to this checkpoint of it, which may lie in a folder of its own. None where they
    are not there: what the run saved later may be better, but is not this one's."""
    done = state["loop"]["eval"] or {"step": None}
    if done["step"] == state["step"] and state["best"] in (done.get("values") or done["losses"]).values():
        return path
    for there in (path.with_name(name), path.parent.parent / name):
        with contextlib.suppress(ValueError):  # not there, or damaged
            if load(there)["best"] == state["best"]:
                return there
    return None


def find(path: str | Path) -> Path:
    """A checkpoint file from what people name: the file, a run folder, its checkpoints/ or final/ folder."""
    path = Path(path)
    if path.is_dir():
        for place in (path, path / "final", path / "checkpoints"):
            for name in ("best.pt", "best-model.ckpt", "ckpt.pt", "model.ckpt"):
                if (place / name).is_file():
                    return place / name
            if inner := candidates(place, "ckpt.pt"):
                return inner[0]
        raise ValueError(f"{path} holds no checkpoint (best.pt, ckpt.pt, checkpoint-STEP/ckpt.pt, model.ckpt)")
    if not path.is_file():
        raise ValueError(f"{path} does not exist: a checkpoint file or a run folder is wanted")
    return path
