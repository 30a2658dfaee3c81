"""Memory and time of one attention, forward and backward, over the sequence length.

    python bench/attention_memory.py                      # lsh, favor and exact attention at 512 .. 8192 tokens
    python bench/attention_memory.py --lengths 512 1024 --kinds favor

Each case runs in a process of its own; memory is the growth of its peak resident size (CPU) or of the allocator's
peak (CUDA) while attention runs. Batch 1, 4 heads of 32, the template's 4 hashes, chunks of 64, 256 features.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
HEADS, SIZE = 4, 32


def measure(kind: str, T: int, repeats: int = 5) -> dict:
    import torch

    from core.rng import generator
    from variants.long_attentions import favor, features, lsh, rotations

    device = "cuda" if torch.cuda.is_available() else "cpu"
    turns = rotations(generator("bench"), SIZE, T, 64).to(device)
    w = features(generator("bench"), 256, SIZE).to(device)
    forward = {
        "exact, T x T": lambda q, k, v, mask: (q @ k.transpose(-1, -2) * SIZE**-0.5).softmax(-1) @ v,
        "exact, fused": lambda q, k, v, mask: torch.nn.functional.scaled_dot_product_attention(q, k, v),
        "lsh": lambda q, k, v, mask: lsh(q, v, mask, turns),
        "favor": lambda q, k, v, mask: favor(q, k, v, mask, w),
    }[kind]

    def once(T: int) -> None:
        q, k, v = (torch.randn(1, HEADS, T, SIZE, device=device, requires_grad=True) for _ in range(3))
        forward(q, k, v, torch.ones(1, T, dtype=torch.bool, device=device)).sum().backward()

    def peak() -> float:
        return (
            torch.cuda.max_memory_allocated()
            if device == "cuda"
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        )

    once(128)  # threads and libraries are there before the measurement
    before, times = peak(), []
    for _ in range(repeats):
        start = time.perf_counter()
        once(T)
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return {"mib": (peak() - before) / 2**20, "ms": sorted(times)[repeats // 2] * 1000}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192])
    parser.add_argument("--kinds", nargs="+", default=["exact, T x T", "exact, fused", "lsh", "favor"])
    parser.add_argument("--one", action="store_true", help="measure here, print JSON")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.kinds[0], args.lengths[0])))
        return
    print("| attention | " + " | ".join(f"T {T:,}" for T in args.lengths) + " |")
    print("| --- |" + " --- |" * len(args.lengths))
    for kind in args.kinds:
        cells = []
        for T in args.lengths:
            command = [sys.executable, __file__, "--one", "--kinds", kind, "--lengths", str(T)]
            found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
            cells.append(f"{found['mib']:,.0f} MiB, {found['ms']:,.0f} ms")
        print(f"| {kind} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
