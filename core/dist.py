"""One process or many: torchrun's ranks, their sums, the device and its number format."""

import contextlib
import ctypes
import datetime
import json
import os
import signal
import sys
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as td

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ALONE = "For one process: `unset RANK WORLD_SIZE LOCAL_RANK`"
PARENT = os.getppid()
_control = None  # gloo, whatever the gradients travel on: counts and wishes never wait for the GPU


@dataclass(frozen=True)
class Dist:
    rank: int
    world: int
    local_rank: int
    device: torch.device
    main: bool


def init(device: str = "auto", backend: str | None = None, *, timeout: float = 120) -> Dist:
    """Joins torchrun's process group where there is one, and picks the device."""
    global _control
    rank, world, local = setting("RANK", 0), setting("WORLD_SIZE", 1), setting("LOCAL_RANK", 0)
    unset = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if world > 1 and not os.environ.get(name)]
    if unset or not 0 <= rank < world:
        why = f"{unset[0]} is not set" if unset else "ranks count from 0"
        raise ValueError(f"RANK={rank} and WORLD_SIZE={world} in the environment, and {why}: torchrun sets them all."
                         f" {ALONE}")  # fmt: skip
    die_with_parent()
    where = pick_device(device, local)
    if where.type == "cpu":
        keep_memory()
        keep_kernels()
    if world > 1 and not td.is_initialized():
        setting("MASTER_PORT", 0)
        if where.type == "cpu":  # torchrun says one thread each, whatever the machine has
            torch.set_num_threads(max(1, cores() // setting("LOCAL_WORLD_SIZE", world)))
        backend = backend or ("nccl" if where.type == "cuda" else "gloo")
        if backend == "nccl" and where.type != "cuda":
            raise ValueError(f"--backend nccl needs CUDA devices, this run is on {where.type}: use gloo")
        limit = datetime.timedelta(seconds=min(timeout, 1e8))
        kept = restarts() and local_only() and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        own = {"store": fresh_store(limit), "rank": rank, "world_size": world} if kept else {}
        try:
            td.init_process_group(backend, timeout=limit, **own)
        except td.DistError as e:
            place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            raise ValueError(f"RANK={rank} of WORLD_SIZE={world} in the environment did not find the others at {place}:"
                             f" {str(e).splitlines()[0]} {ALONE}") from None  # fmt: skip
        _control = td.group.WORLD if backend == "gloo" else td.new_group(backend="gloo", timeout=limit)
    return Dist(rank, world, local, where, rank == 0)


def setting(name: str, default: int) -> int:
    """A number that torchrun leaves in the environment; something else may have, too."""
    try:
        return int(os.environ.get(name) or default)
    except ValueError:
        raise ValueError(f"{name} in the environment must be a number as torchrun sets it, got {os.environ[name]!r}."
                         f" {ALONE}") from None  # fmt: skip


def repeatable(device: torch.device, asked: bool, compiling: bool = False) -> None:
    """Every sum adds up in the same order each time. On a CPU only compiled code needs to be told so, whose threads add
    to an embedding's gradient as they come. To be called before the first product on a GPU."""
    yes = asked or compiling and device.type == "cpu"
    if yes:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(yes)


def keep_memory() -> None:
    """Freed memory stays in the process: glibc gives blocks above 32 MiB back at once, and every page of the next one
    is then zeroed by the kernel again, 10 to 50% of a training step."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


def keep_kernels() -> None:
    """oneDNN compiles a kernel for each new shape of a 16-bit product, 0.5 ms, and forgets all but 1,024 of them. Texts
    of all lengths make some more than that: a tenth of an encoder's step went into compiling the same ones again. Each
    holds half a megabyte."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "4096")  # read at the first product


def restarts() -> int:
    """How often torchrun --max-restarts started the ranks again."""
    return setting("TORCHELASTIC_RESTART_COUNT", 0)


def local_only() -> bool:
    return os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE")


def fresh_store(limit: datetime.timedelta) -> td.Store:
    """torchrun keeps its store over a restart, and in it the addresses of ranks that are gone, which gloo then calls.

    (pytorch issue 135712. Several nodes may count restarts differently: docs/reliability.md says what they do.)
    """
    store = td.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=limit)
    return td.PrefixStore(f"restart {restarts()}", store)


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pick_device(device: str | torch.device, local: int) -> torch.device:
    device = str(device)
    mps = torch.backends.mps.is_available()
    have = ["cpu"] + ["cuda"] * torch.cuda.is_available() + ["mps"] * mps
    several = setting("WORLD_SIZE", 1) > 1
    if device == "auto":
        device = "cpu" if several and have[-1] == "mps" else have[-1]
    asked, device = device, {"gpu": "cuda"}.get(device, device)
    device = f"cuda:{device}" if device.isdigit() else device
    kind = device.split(":")[0]
    if kind not in ("cpu", "cuda", "mps"):
        raise ValueError(f"--device must be auto, cpu, cuda, cuda:N or mps, got {asked!r}")
    if kind not in have:
        raise ValueError(f"--device {asked}: this machine (or this build of torch) has {', '.join(have)}")
    if several and kind == "mps":  # torch cannot sum over these
        raise ValueError(f"--device {asked}: several ranks run on CUDA devices or on the CPU")
    if kind == "cuda":
        index = int(device.split(":")[1]) if ":" in device else local
        if index >= torch.cuda.device_count():
            raise ValueError(f"--device cuda:{index}: there are {torch.cuda.device_count()} (one rank a GPU)")
        torch.cuda.set_device(index)  # attention's kernels are picked for the present one, whatever holds its tensors
        return torch.device("cuda", index)
    return torch.device(kind)


def die_with_parent() -> None:
    """Workers live in sessions of their own and would go on writing after a SIGKILL of torchrun."""
    if sys.platform == "linux" and "TORCHELASTIC_RUN_ID" in os.environ:
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL, 0, 0, 0)  # 1: PR_SET_PDEATHSIG
        if os.getppid() != PARENT:  # it went before we asked; as a container's first process, torchrun is number 1
            os._exit(1)


def together() -> bool:
    return td.is_available() and td.is_initialized()


def sums(values: list[float]) -> list[float]:
    """Elementwise over ranks, in float64: counts stay exact."""
    if not together():
        return [float(v) for v in values]
    t = torch.tensor([float(v) for v in values], dtype=torch.float64)
    td.all_reduce(t, group=_control)
    return t.tolist()


def any(flag: bool) -> bool:
    return sums([bool(flag)])[0] > 0


def barrier() -> None:
    if together():
        td.barrier(group=_control)


def gather(obj) -> list:
    """Every rank's object, on every rank."""
    if not together():
        return [obj]
    out = [None] * td.get_world_size()
    td.all_gather_object(out, obj, group=_control)
    return out


def first(obj):
    """Rank 0's, on every rank: what each works out for itself may end in other digits on another machine."""
    return gather(obj)[0]


def whole(table: np.ndarray, size: int) -> np.ndarray:
    """Completes a table on every rank. The ranks have filled its rows in turn, `size` at a time; each sends its own."""
    whose = np.arange(len(table)) // size % (td.get_world_size() if together() else 1)
    for rank, rows in enumerate(gather(table[whose == (td.get_rank() if together() else 0)])):
        table[whose == rank] = rows
    return table


def alone(option: str) -> None:
    """What writes one file is one process's work."""
    if setting("WORLD_SIZE", 1) > 1:
        raise ValueError(f"{option} runs in one process: start it with python, not with torchrun")


def agree(check, *args) -> None:
    """Runs it on each rank's part of the data: what one rank refuses, all do."""
    try:
        said = check(*args)
    except ValueError as e:
        said = str(e)
    if found := next(filter(None, gather(said)), None):
        raise ValueError(found)


def first_failure(code: int, message: str) -> tuple[int, int, str]:
    """(rank, code, message) of the one that failed first, by torchrun's store: the others only see it gone."""
    mine = (td.get_rank(), code, message)
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # the store is rank 0's, and may be gone with it
        return mine
    try:
        store = td.distributed_c10d._get_default_store()
        store.set_timeout(datetime.timedelta(seconds=5))
        return tuple(json.loads(store.compare_set("failed", "", json.dumps(mine))))
    except RuntimeError:  # torchrun, or its node, is gone as well
        return mine


def close() -> None:
    """All ranks leave together: gloo's own teardown fails now and then when one is gone before the other."""
    if together():
        td.barrier(group=_control)
        td.destroy_process_group()


def split(global_batch: int, micro: int, world: int) -> tuple[int, int]:
    """(micro-steps, samples a micro-step) of one rank; at most `micro` samples at once.

    split(64, 64, 1) -> (1, 64); split(64, 64, 2) -> (1, 32); split(64, 16, 2) -> (2, 16)
    """
    if global_batch % world:
        raise ValueError(f"a global batch of {global_batch} does not divide over {world} ranks")
    share = global_batch // world
    steps = -(-share // micro)
    while share % steps:
        steps += 1
    return steps, share // steps


def deal(which: np.ndarray, sizes: np.ndarray, parts: int) -> np.ndarray:
    """The same samples in another order: cut into `parts` slices, one for each rank and micro-step, all have nearly the
    same work, as ranks wait for the slowest. They are dealt by falling size, to and fro."""
    if parts == 1 or len(which) % parts:
        return which
    order = np.argsort(-sizes, kind="stable").reshape(-1, parts)
    order[1::2] = order[1::2, ::-1]
    return which[order.T.ravel()]


# -----------------------------------------------------------------------------
# number format


def fast_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    try:
        with open("/proc/cpuinfo") as f:
            flags = next(line for line in f if line.startswith("flags")).split()
        return "avx512_bf16" in flags or "amx_bf16" in flags
    except (OSError, StopIteration):
        return False


def precision(dtype: str, device: torch.device) -> tuple[torch.dtype, str]:
    """The autocast type, and why."""
    if dtype == "auto":
        if fast_bf16(device):
            return torch.bfloat16, "bfloat16 (auto: fast here)"
        return torch.float32, "float32 (auto: no fast bfloat16 here)"
    if dtype == "float16" and device.type == "cpu":
        return torch.float16, "float16 (very slow on a CPU: about 1 GFLOP/s)"
    return DTYPES[dtype], dtype


def autocast(device: torch.device, dtype: torch.dtype):
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)
