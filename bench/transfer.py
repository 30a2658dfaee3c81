"""Does procedural pretraining help language modelling? Validation loss after a fixed budget, with and without it.

    python data/python_stdlib/prepare.py && python bench/transfer.py
    python bench/transfer.py --dataset shakespeare_char --tasks set dyck_shuffle --seeds 3 --parts attn mlp norm

Each task pretrains a model (once a seed), each seed trains a language model from scratch and from each of them: the
same batches, the same steps. "control" is scratch with embeddings of the scale that a transfer gives them, so that only
what the blocks learnt is left to make a difference. Writes transfer.png and a CSV.
"""

import argparse
import csv
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from core import checkpoint, rng, tracker
from core.picture import drawn
from model import GPT, GPTConfig

ROOT = Path(__file__).resolve().parent.parent


def run(*argv) -> None:
    done = subprocess.run([sys.executable, *map(str, argv)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True)  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, argv))}\n{done.stdout[-3000:]}")


def untrained(path: Path) -> Path:
    """The checkpoint with fresh weights everywhere but in the embedding, whose scale a transfer takes over."""
    state = checkpoint.load(path)
    rng.seed_torch(state["rng"]["seed"], "control")
    fresh = GPT(GPTConfig(**state["model_config"])).state_dict()
    state["model"] = {k: v if "wte" in k or "lm_head" in k else fresh[k] for k, v in state["model"].items()}
    checkpoint.save(path.with_name("control.pt"), state)
    return path.with_name("control.pt")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--dataset", default="python_stdlib")
    p.add_argument("--tasks", nargs="*", default=["set", "dyck_shuffle"])
    p.add_argument("--parts", nargs="*", default=["attn", "mlp", "norm"], help="what is transferred")
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--size", default="4_4_64", help="layers_heads_width of both models")
    p.add_argument("--procedural_steps", type=int, default=1000)
    p.add_argument("--procedural", nargs="*", default=[], help="further options of procedural_pretraining.cli")
    p.add_argument("--steps", type=int, default=400, help="of language modelling")
    p.add_argument("--batch_size", type=int, default=16)
    p.add_argument("--block_size", type=int, default=128)
    p.add_argument("--learning_rate", type=float, default=1e-3)
    p.add_argument("--out", default="out/bench_transfer")
    args = p.parse_args()
    out, (layers, heads, width) = Path(args.out).resolve(), args.size.split("_")
    curves: dict[str, list[list[dict]]] = {arm: [] for arm in ("scratch", *args.tasks, "control")}
    for seed in range(args.seeds):
        for arm in curves:
            start = []
            if arm == "control":
                before = untrained(out / f"{args.tasks[0]}_{seed}" / "ckpt.pt")
                start = ["--init_from", before, "--transfer", *args.parts]
            elif arm != "scratch":
                before = out / f"{arm}_{seed}"
                run("-m", "procedural_pretraining.cli", "--preset", "small", "--task", arm, "--gpt2_size", args.size,
                    "--seed", seed, "--save_dir", before, "--max_steps", args.procedural_steps, "--epochs", 1,
                    "--steps_per_epoch", args.procedural_steps, "--save_every_steps", 500,
                    *args.procedural)  # fmt: skip
                start = ["--init_from", before / "ckpt.pt", "--transfer", *args.parts]
            after = out / f"lm_{arm}_{seed}"
            run("train.py", "--dataset", args.dataset, "--out_dir", after, "--n_layer", layers, "--n_head", heads,
                "--n_embd", width, "--position", "rotary", "--block_size", args.block_size, "--seed", seed,
                "--batch_size", args.batch_size, "--max_iters", args.steps, "--eval_interval", args.steps // 8,
                "--eval_iters", 40, "--learning_rate", args.learning_rate, "--warmup_iters", args.steps // 20,
                "--lr_scheduler", "cosine", "--only_save_checkpoint_at_end", *start)  # fmt: skip
            curves[arm].append(tracker.read(after / "eval.csv"))
            print(f"seed {seed} {arm:<14} val loss {curves[arm][-1][-1]['val_loss']:.4f}", flush=True)
    report(args, out, curves)


def report(args, out: Path, curves: dict[str, list[list[dict]]]) -> None:
    base = [c[-1]["val_loss"] for c in curves["scratch"]]
    print(f"\n{'start':<14}{'val loss':>10}{'min':>9}{'max':>9}{'gain':>9}   the scratch run's loss is reached at step")
    with drawn(out / "transfer.png", 8, 4.5) as ax, open(out / "transfer.csv", "w", newline="") as f:
        table = csv.writer(f)
        table.writerow(["start", "seed", "step", "val_loss"])
        for arm, runs in curves.items():
            steps = [r["step"] for r in runs[0]]
            losses = [[r["val_loss"] for r in c] for c in runs]
            table.writerows((arm, s, t, v) for s, c in enumerate(losses) for t, v in zip(steps, c, strict=True))
            mean = [statistics.mean(at) for at in zip(*losses, strict=True)]
            ax.plot(steps[1:], mean[1:], label=arm, lw=1.5)
            ax.fill_between(steps[1:], [min(a) for a in zip(*losses, strict=True)][1:],
                            [max(a) for a in zip(*losses, strict=True)][1:], alpha=0.2)  # fmt: skip
            final = [c[-1] for c in losses]
            gain = statistics.mean(b - v for b, v in zip(base, final, strict=True))
            reached = next((t for t, v in zip(steps, mean, strict=True) if v <= statistics.mean(base)), "-")
            print(f"{arm:<14}{mean[-1]:>10.4f}{min(final):>9.4f}{max(final):>9.4f}{gain:>9.4f}   {reached}")
        ax.set(xlabel="step of language modelling", ylabel=f"validation loss on {args.dataset}",
               title=f"{args.size}, {' '.join(args.parts)} from procedural pretraining, {args.seeds} seeds")  # fmt: skip
        ax.grid(alpha=0.3)
        ax.legend()
    print(f"\n{out / 'transfer.png'}, {out / 'transfer.csv'}")


if __name__ == "__main__":
    main()
