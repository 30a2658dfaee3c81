"""The loops under contract: one row each. A row says how to run a loop small, how to cut its batch, how to resume it.

A new loop joins by a row in LOOPS; tests/test_loops.py does the rest.
"""

import importlib
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Loop:
    name: str
    module: str  # "train", "procedural_pretraining.cli"
    data: Callable[[Path], None]  # writes a toy data set into a folder, once a session
    flags: Callable[[Path, Path], list[str]]  # (data, out) -> a tiny run in float32 without dropout
    steps: Callable[[int], list[str]]  # how many optimizer steps, evaluating and saving every few
    batch: Callable[[int, int, int], list[str]]  # (sequences at once, micro-steps a rank, ranks) -> flags
    resume: Callable[[Path], list[str]]  # the documented spelling
    seed: Callable[[int], list[str]]
    last: Callable[[Path], Path]  # the newest checkpoint of a run folder
    first_loss: float | None = None  # what an untrained model must lose, within 10%
    learns: list[str] = field(default_factory=list)  # flags of a run that learns its toy problem
    learnt: float = 0.0  # ... to a last logged loss below this
    config_flags: tuple[str, ...] = ("--config",)
    csv: str = "train.csv"
    equal: float = 1e-5  # between ways to cut a batch, in the logged losses

    def options(self, argv: list[str]):
        from core import config

        script = importlib.import_module(self.module)
        return script.main, config.parse(script.Options, argv, doc="", config_flags=self.config_flags)

    def run(self, argv: list[str]) -> None:
        """In this process; what the script raises comes through."""
        main, args = self.options(argv)
        main(args)

    def command(self, argv: list[str], ranks: int = 1) -> list[str]:
        launch = [sys.executable]
        if ranks > 1:
            launch += ["-m", "torch.distributed.run", f"--nproc_per_node={ranks}", "--master_port", str(port())]
        is_file = (ROOT / f"{self.module}.py").is_file()
        return [*launch, *([f"{self.module}.py"] if is_file else ["-m", self.module]), *map(str, argv)]

    def spawn(self, argv: list[str], ranks: int = 1, **popen) -> subprocess.Popen:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled", **popen.pop("env", {})}
        return subprocess.Popen(self.command(argv, ranks), cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, **popen)  # fmt: skip


def port() -> int:
    return random.SystemRandom().randrange(20000, 60000)


# -----------------------------------------------------------------------------
# train.py


def bins_data(folder: Path, name: str = "toy", vocab: int = 11, n: int = 6000) -> None:
    """A walk that mostly counts upwards: learnable, and not at once."""
    import numpy as np

    from data import bins

    rng = np.random.default_rng(0)
    ids = (np.arange(n) + (rng.random(n) < 0.1).cumsum()) % vocab
    chars = {"kind": "char", "chars": list("abcdefghijk")}
    bins.write(folder / name, vocab, ids[: n * 9 // 10], ids[n * 9 // 10 :], chars)


def train_flags(data: Path, out: Path) -> list[str]:
    return [f"--dataset={data / 'toy'}", f"--out_dir={out}", "--n_layer=2", "--n_head=2", "--n_embd=16",
            "--block_size=8", "--dtype=float32", "--warmup_iters=2", "--eval_iters=2", "--log_interval=1",
            "--learning_rate=1e-2", "--device=cpu"]  # fmt: skip


TRAIN = Loop(
    name="train",
    module="train",
    data=bins_data,
    flags=train_flags,
    steps=lambda n: [f"--max_iters={n}", "--eval_interval=3", "--always_save_checkpoint"],
    batch=lambda micro, acc, ranks: [f"--batch_size={micro}", f"--gradient_accumulation_steps={acc * ranks}"],
    resume=lambda out: ["--init_from=resume", f"--out_dir={out}"],
    seed=lambda n: [f"--seed={n}"],
    last=lambda out: out / "ckpt.pt",
    first_loss=2.398,  # ln 11
    learns=["--max_iters=150", "--eval_interval=150", "--batch_size=32"],
    learnt=0.9,
)

LOOPS = [TRAIN]
