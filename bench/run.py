"""All benchmarks, one after the other.

    python bench/run.py --quick                            # five minutes; nothing is recorded
    python bench/run.py --input tinyshakespeare.txt        # in full, for an hour without other work on the machine
    python bench/run.py train sample                       # some of them
"""

import subprocess
import sys
import time

import table

# the script and its arguments; in a quick run further ones
ALL = {
    "train": (["train.py"], ["small"]),
    "speedrun": (["speedrun.py"], []),
    "sample": (["sample.py"], []),
    "startup": (["startup.py"], []),
    "checkpoint": (["checkpoint.py"], []),
    "ranks": (["ranks.py"], ["--repeats", "1"]),
    "pretrain": (["pretrain.py"], ["--repeats", "1"]),
    "reward": (["reward.py"], ["--repeats", "1"]),
    "procedural_data": (["procedural.py", "data"], []),
    "procedural_loop": (["procedural.py", "loop"], []),
    "prepare": (["prepare.py", "prepare"], []),
    "gpu": (["gpu.py"], []),
}
TEXT = ("train", "speedrun")  # those that take --input


def main() -> None:
    args = table.arguments(__doc__, benchmarks=list(ALL),
                           input=("", "a text; '': the standard library's sources"))  # fmt: skip
    failed, began = [], time.time()
    for name, (command, quick) in ALL.items():
        if name not in args.benchmarks:
            continue
        more = ["--quick", *quick] if args.quick else ["--record", args.record]
        more += ["--input", args.input] if args.input and name in TEXT else []
        print(f"\n{'=' * 30} {name}, after {time.time() - began:.0f} s", flush=True)
        script = [sys.executable, str(table.ROOT / "bench" / command[0]), *command[1:], *more]
        if subprocess.run(script, cwd=table.ROOT).returncode:
            failed.append(name)
    print(f"\n{time.time() - began:.0f} s in all{', failed: ' + ', '.join(failed) if failed else ''}")
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
