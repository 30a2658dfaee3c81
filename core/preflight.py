"""Before the first step: will a run's checkpoints fit on the disk, its numbers in memory? And what a batch is made of.

    checks = preflight.look(folder, device, dtype, model, optimizer, tokens=8192, files=3, data="...", ...)
    if preflight.report(checks, args.check):
        return folder.finish()

A check is (name, verdict, text). `bad` cannot work and ends a start at once; `short` may not last and is said; `note`
and `ok` are seen with --check alone.
"""

import hashlib
import shutil
import sys
from pathlib import Path

import torch

from core import disk, dist, optim, run
from core.progress import size

# Bytes kept for the backward pass, for each token and layer. Measured with GPT and RoBERTa, float32 and bfloat16, T 64
# to 1,024 (all in all 55 to 98 a unit of width, where MLPs are four times as wide); tests/test_faults.py measures again
WIDTH = 43  # for each unit of n_embd
HIDDEN = 4  # for each unit of hidden width, in each of the 2 tensors that an MLP keeps (gated: 4)
SCORE = 7  # for each attention score, where scores are kept
SQUARE = 20  # the same in torch's own attention with dropout: 12 are kept, the others pass by
HALF = 20, 2  # WIDTH and HIDDEN on a GPU in 16 bits, counted from what the code keeps (README's table)
# the loss takes the vocabulary in chunks (variants/losses.py): on a CPU three of 64 MiB are alive, on a GPU 1 GiB
LOGITS, LOGITS_GPU = 3 * (64 << 20), 1 << 30


# -----------------------------------------------------------------------------
# what is there


def limit_of_container() -> float:
    """Bytes that this process's group may still take: in a container /proc/meminfo shows the whole machine's."""
    for names in (("memory.max", "memory.current", "memory.stat", "inactive_file"),
                  ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat",
                   "total_inactive_file")):  # fmt: skip
        try:
            limit, used, stat = (Path("/sys/fs/cgroup", name).read_text() for name in names[:3])
            cached = next(int(line.split()[1]) for line in stat.splitlines() if line.startswith(names[3] + " "))
            return int(limit) - int(used) + cached
        except (OSError, ValueError, StopIteration):  # not Linux, or "max": no limit
            continue
    return float("inf")


def free_memory(device: torch.device) -> float:
    """Bytes: of the GPU, or of what the machine can still give to this process, its share among the local ranks."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as f:
            about = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in f}
        free = about["MemAvailable"] + about["SwapFree"]
    except (OSError, KeyError):
        free = float("inf")
    return min(free, limit_of_container()) / dist.setting("LOCAL_WORLD_SIZE", 1)


def already_there(folder: Path) -> int:
    """Bytes of the checkpoints in a run folder; several names of one file count once."""
    found = [p for pattern in ("*.pt", "*.ckpt", "checkpoint-*/*.pt", "*/*.ckpt") for p in folder.glob(pattern)]
    return sum({s.st_ino: s.st_size for s in (p.stat() for p in found if p.is_file())}.values())  # no dangling links


# -----------------------------------------------------------------------------
# checks


def look(folder: Path, device: torch.device, dtype: torch.dtype, model, optimizer, *, tokens: int, files: int,
         resuming: bool, steps: tuple[int, int], given: int,
         **said: str | tuple[str, str]) -> list[tuple[str, str, str]]:  # fmt: skip
    """`tokens` a micro-step holds, `files` that a run's folder may hold at once; `said` is what the loop found out."""
    checks = [(n, "ok", text) if isinstance(text, str) else (n, *text) for n, text in said.items() if text]
    optim.check_holds(optimizer, model)
    first, last = steps
    done = first >= last
    checks.append(("options", "note" if done else "ok", f"{given} given; steps {first:,} to {last:,}"
                   + ": nothing is left to train" * done))  # fmt: skip
    weights = disk.size_of(list(model.state_dict().values()))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad) * 4
    moments = optim.moments(optimizer)
    moments += trained * hasattr(optimizer, "eval")  # saved at an average: the weights that train are there as well
    checks.append(room(folder, weights + moments, files, already_there(folder) if resuming else 0))
    shape = model.config
    logits = min(LOGITS_GPU if device.type == "cuda" else LOGITS, 12 * tokens * shape.vocab_size)
    work = int(activations(shape, tokens, device, dtype)) + logits
    state = trained + moments - disk.size_of(list(optimizer.state.values()))
    copy = 0 if device.type == "cuda" else weights + moments
    checks.append(memory(free_memory(device), state, work, copy))
    return checks


def activations(c, tokens: int, device: torch.device, dtype: torch.dtype) -> float:
    """Bytes that the backward pass of a micro-step needs of the blocks; an estimate."""
    hidden = c.mlp_size or c.mlp_expansion_factor * c.n_embd
    width, wide = HALF if device.type == "cuda" and dtype != torch.float32 else (WIDTH, HIDDEN)
    block = width * c.n_embd + wide * hidden * (2 if getattr(c, "mlp_variant", "mlp") == "mlp" else 4)
    if hasattr(c, "softmax_variant_attn"):  # a GPT; an encoder computes long attention anew
        plain = c.attn_logit_softcapping or c.softmax_variant_attn != "softmax"
        slow = device.type == "cpu" and c.dropout and dtype == torch.float32  # torch's own has no dropout there
        seen = min(c.block_size, (c.window_size or c.block_size) + 128)
        block += (SCORE if plain else SQUARE if slow else 0) * c.n_head * seen
    if getattr(c, "use_gradient_checkpointing", False):  # each block's input, and all of one
        return tokens * (4 * c.n_embd * c.n_layer + block)
    return tokens * block * c.n_layer


def room(folder: Path, one: int, files: int, there: int) -> tuple[str, str, str]:
    """The one before stays until the new one is written: two must fit at least, `files` and one more at most."""
    left = (p.stat() for p in run.stale(folder))
    free = shutil.disk_usage(folder).free + sum(s.st_size for s in left if s.st_nlink == 1)
    least, most = max(one, 2 * one - there), max(one, (files + 1) * one - there)
    verdict = "bad" if free < least else "short" if free < most else "ok"
    return "disk", verdict, (f"{size(one)} a checkpoint, up to {size(most)} more for {files} of them and one in the"
                             f" writing; {size(free)} are free in {folder}")  # fmt: skip


def memory(free: float, state: int, work: int, copy: int) -> tuple[str, str, str]:
    """Gradients and moments must fit; what the backward pass needs is an estimate, so it only warns."""
    verdict = "bad" if free < state else "short" if free < state + work + copy else "ok"
    saving = f", {size(copy)} for a copy while saving" if copy else ""
    return "memory", verdict, (f"about {size(state + work + copy)} more: {size(state)} for gradients and moments,"
                               f" {size(work)} for a micro-step{saving}; {size(free)} are free")  # fmt: skip


def report(checks: list[tuple[str, str, str]], wanted: bool, main: bool = True) -> bool:
    """With --check prints all, and says that the run ends here. Without, only what will not last is printed.

    What is bad on one rank ends all. Ranks wait for each other here: none moves the folder while another still looks.
    """
    everyone = dist.gather(checks)
    for name, verdict, text in checks if main else []:
        if wanted or verdict == "short":
            print(f"{name:<11}{verdict:<6}{text}", file=sys.stdout if wanted else sys.stderr)
    if bad := next((found for each in everyone if (found := [c for c in each if c[1] == "bad"])), []):
        raise ValueError("; ".join(f"{name}: {text}" for name, _, text in bad))
    return wanted


# -----------------------------------------------------------------------------
# --replay_step


def step_to_replay(step: int, last: int) -> int:
    if not step < last:
        raise ValueError(f"--replay_step must be a step of this run, 0 to {last - 1}, got {step}")
    return step


def part(rank: int, micro: int, samples, ids: torch.Tensor, text: str = "") -> str:
    """One line on a rank's micro-batch: what it is made of, and the hash of its token ids."""
    shown = [int(i) for i in samples]
    more = f" ... {len(shown) - 8} more" if len(shown) > 8 else ""
    hash_ = hashlib.sha256(ids.detach().cpu().to(torch.int64).contiguous().numpy().tobytes()).hexdigest()[:16]
    first = f", the first: {text[:200]!r}" if text else ""
    return (f"rank {rank} micro-step {micro}: samples {' '.join(map(str, shown[:8]))}{more},"
            f" ids {tuple(ids.shape)} hash {hash_}{first}")  # fmt: skip


def result(step: int, loss: float, norm: float) -> str:
    return f"step {step}: loss {loss:.9g}, gradient norm {norm:.9g}; nothing was changed or written"
