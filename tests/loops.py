"""The loops under contract: one row each. A row says how to run a loop small, how to cut its batch, how to resume it.

A new loop joins by a row in LOOPS; tests/test_loops.py does the rest.
"""

import contextlib
import importlib
import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
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
    evaluates: bool = True  # and writes eval.csv

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


def made_once(folder: Callable[[str], Path]) -> Callable[[Loop], Path]:
    """loop -> the folder of its toy data, which is written when it is first asked for."""
    made = {}

    def get(loop: Loop) -> Path:
        if loop.name not in made:
            made[loop.name] = folder(f"data_{loop.name}")
            loop.data(made[loop.name])
        return made[loop.name]

    return get


def with_dropout(path: Path) -> None:
    """A checkpoint whose model answers otherwise each time, unless it is told that it does not train."""
    from core import checkpoint

    state = checkpoint.load(path)
    state["model_config"].update({name: 0.5 for name in state["model_config"] if name.endswith("dropout")})
    checkpoint.save(path, state, keep=False)


def stopped_at(monkeypatch, step: int, call: int) -> None:
    """A signal comes at the nth time that a run at this step asks for one: after its batch, in an evaluation ..."""
    from core import run

    calls = []

    def stopping(self):
        calls.append(self.step)
        return calls.count(step) == call and self.step == step

    monkeypatch.setattr(run.Run, "stopping", stopping)


def port() -> int:
    """A free one, below those that the system gives to connections (32768 and up): ranks open many."""
    while True:
        number = random.SystemRandom().randrange(20000, 32000)
        with contextlib.suppress(OSError), socket.socket() as s:
            s.bind(("", number))
            return number


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
    resume=lambda out: ["--init_from=resume", f"--out_dir={out}", "--device=cpu"],
    seed=lambda n: [f"--seed={n}"],
    last=lambda out: out / "ckpt.pt",
    first_loss=2.398,  # ln 11
    learns=["--max_iters=150", "--eval_interval=150", "--batch_size=32"],
    learnt=0.9,
)


# -----------------------------------------------------------------------------
# train.py's other ways


def mixed_data(folder: Path) -> None:
    """Two walks of the same length, of other vocabularies and other widths of their ids."""
    import json

    import numpy as np

    bins_data(folder)
    bins_data(folder, "wide", vocab=5)
    for split in ("train", "val"):
        path = folder / "wide" / f"{split}.bin"
        np.fromfile(path, dtype=np.uint16).astype(np.uint32).tofile(path)
    meta = json.loads((folder / "wide" / "meta.json").read_text())
    (folder / "wide" / "meta.json").write_text(json.dumps(meta | {"dtype": "uint32"}))


def mixed(data: Path, out: Path, *flags: str) -> list[str]:
    return [*train_flags(data, out)[1:], *flags]


MULTIDATASET = replace(
    TRAIN,
    name="train-multidataset",
    data=mixed_data,
    flags=lambda data, out: mixed(
        data, out, "--training_mode=multidataset", f"--dataset_list={data / 'toy'} {data / 'wide'}",
        "--dataset_sampling_probs=2 1", "--dataset_sampling_probs_final=1 2", "--multidataset_wte",
        "--dataset_sampling_learning_rate=1e-2 5e-3", "--sampling_method=without_replacement"),
    first_loss=None,  # of whichever data set is first
    learnt=1.2,
)  # fmt: skip

MULTICONTEXT = replace(
    TRAIN,
    name="train-multicontext",
    data=mixed_data,
    flags=lambda data, out: mixed(data, out, "--training_mode=multicontext",
                                  f"--multicontext_datasets={data / 'toy'} {data / 'wide'}"),
    first_loss=2.004,  # the mean of ln 11 and ln 5
    learnt=0.9,
)  # fmt: skip

MUON = replace(
    TRAIN,
    name="train-muon",
    flags=lambda data, out: [*train_flags(data, out), "--optimizer=muon", "--lr_scheduler=wsd", "--use_qk_norm"],
    equal=5e-3,  # its iteration runs in bfloat16: equal losses between ways to cut a batch, not equal bits
)

# -----------------------------------------------------------------------------
# pretrain.py


def digits_data(folder: Path) -> None:
    """Strings of one digit each, as tokens in Arrow files: a hidden one is told by its neighbours."""
    import numpy as np

    from core import config
    from data import build_pretrain_data, train_tokenizer

    g = np.random.default_rng(0)
    lines = g.permutation([str(a) * n for a in range(10) for n in range(2, 11)])  # no two alike
    (folder / "lines.txt").write_text("\n".join(lines))
    train_tokenizer.build("by-digit", 16, ()).save(str(folder / "tokenizer.json"))
    argv = [f"--train_dir={folder / 'lines.txt'}", f"--tokenizer={folder / 'tokenizer.json'}", f"--out_dir={folder}",
            "--max_size=12", "--split_prop=0.1"]  # fmt: skip
    build_pretrain_data.main(config.parse(build_pretrain_data.Options, argv))


def last_folder(out: Path) -> Path:
    """The newest of the checkpoint-STEP folders."""
    return max(out.glob("checkpoint-*/ckpt.pt"), key=lambda p: int(p.parent.name.split("-")[1]))


def pretrain_flags(data: Path, out: Path) -> list[str]:
    return [f"--train={data / 'pretrain_train_trunc12'}", f"--eval={data / 'pretrain_eval_trunc12'}",
            f"--tokenizer={data / 'tokenizer.json'}", f"--save_path={out}", "--hidden_size=32", "--hidden_depth=2",
            "--attention_heads=2", "--intermed_size=32", "--hidden_prob=0", "--att_prob=0", "--dtype=float32",
            "--lr=1e-2", "--log_steps=1", "--no_wandb", "--device=cpu"]  # fmt: skip


PRETRAIN = Loop(
    name="pretrain",
    module="pretrain",
    data=digits_data,
    flags=pretrain_flags,
    steps=lambda n: [f"--max_steps={n}", "--eval_interval=3"],
    batch=lambda micro, acc, ranks: [f"--per_device={micro}", f"--grad_acc={acc}"],
    resume=lambda out: ["--init_from=resume", f"--save_path={out}", "--no_wandb", "--device=cpu"],
    seed=lambda n: [f"--seed={n}"],
    last=last_folder,
    first_loss=2.773,  # ln 16
    learns=["--max_steps=150", "--eval_interval=150", "--per_device=32"],
    learnt=0.5,
)

# -----------------------------------------------------------------------------
# reward_train.py


def reward_data(folder: Path) -> None:
    """Answers of several lengths, worth 1 or -1, and a GPT on bytes to start from."""
    import json

    import numpy as np
    import torch

    from core import checkpoint
    from model import GPT, GPTConfig

    g = np.random.default_rng(0)
    rows = [{"Question": "Is it " + "so " * int(g.integers(1, 4)) + "good?", "Answer": ("no", "yes")[i % 2],
             "Score": (-1, 1)[i % 2]} for i in range(60)]  # fmt: skip
    (folder / "qa.json").write_text(json.dumps({"train": rows[:48], "test": rows[48:]}))
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=64, vocab_size=256))
    state = checkpoint.pack(kind="gpt", model=model, model_config=vars(model.config), optimizer=None, loop={}, seed=0,
                            step=0, best=None, options={}, meta={"tokenizer": {"kind": "byte"}})  # fmt: skip
    checkpoint.save(folder / "gpt.pt", state)


def reward_flags(data: Path, out: Path) -> list[str]:
    return [f"--data.data_dir={data / 'qa.json'}", f"--model_name={data / 'gpt.pt'}",
            f"--trainer.checkpoint.dirpath={out}", "--data.max_length=64", "--trainer.params.precision=32",
            "--trainer.params.accelerator=cpu", "--trainer.params.log_every_n_steps=1",
            "--model_params.learning_rate=1e-2", "--model_params.warmup_steps_per_cent=0.1"]  # fmt: skip


def reward_batch(micro: int, acc: int, ranks: int) -> list[str]:
    return [f"--data.batch_size={micro}", f"--trainer.params.accumulate_grad_batches={acc}"]


REWARD = Loop(
    name="reward",
    module="reward_train",
    data=reward_data,
    flags=reward_flags,
    steps=lambda n: [f"--trainer.params.max_steps={n}", "--trainer.params.val_check_interval=3",
                     "--trainer.checkpoint.every_n_train_steps=3"],
    batch=reward_batch,
    resume=lambda out: ["--init_from=resume", f"--trainer.checkpoint.dirpath={out}",
                        "--trainer.params.accelerator=cpu"],
    seed=lambda n: [f"--seed={n}"],
    last=lambda out: out / "ckpt.pt",
    first_loss=1.0,  # the variance of standardised scores
    learns=["--trainer.params.max_steps=80", "--data.batch_size=16", "--trainer.params.max_epochs=30"],
    learnt=0.1,
    config_flags=("--config", "--config_file"),
)  # fmt: skip

# -----------------------------------------------------------------------------
# procedural_pretraining/cli.py

PROCEDURAL = Loop(
    name="procedural_pretraining",
    module="procedural_pretraining.cli",
    data=lambda folder: None,
    # the curriculum grows at every evaluation, so that the contract sees its state
    flags=lambda data, out: [f"--save_dir={out}", "--task=reverse", "--seq_length=8", "--vocab_size=6", "--dropout=0",
                             "--use_curriculum", "--curriculum_mastery_threshold=0", "--gpt2_size=2_2_16",
                             "--dtype=float32", "--lr=1e-2", "--warmup_steps=2", "--log_interval=1",
                             "--eval_samples=30", "--device=cpu"],  # fmt: skip
    steps=lambda n: [f"--max_steps={n}", "--save_every_steps=3"],
    batch=lambda micro, acc, ranks: [f"--batch_size={micro}", f"--gradient_accumulation_steps={acc}"],
    resume=lambda out: ["--resume", f"--save_dir={out}", "--device=cpu"],
    seed=lambda n: [f"--seed={n}"],
    last=lambda out: out / "ckpt.pt",
    first_loss=2.079,  # ln 8: five values, the pop of stack, SEP and PAD
    learns=["--max_steps=150", "--save_every_steps=150", "--batch_size=32", "--no-use_curriculum", "--seq_length=3"],
    learnt=0.7,
)

# -----------------------------------------------------------------------------
# finetune.py


def classes(folder: Path) -> None:
    """Strings of digits in which one of 7, 8, 9 occurs: which one is the label. And an untrained encoder of digits."""
    import numpy as np
    import torch

    from core import checkpoint
    from data import tensors, vocab
    from data.train_tokenizer import build
    from model import RobertaConfig, RobertaMLM

    about = {"kind": "tokenizers", "json": build("by-digit", 16, iter([])).to_str()}
    g = np.random.default_rng(0)
    for name, n in (("train", 72), ("val", 20), ("test", 30)):
        lengths, labels, ids = g.integers(4, 9, n), g.integers(0, 3, n), []
        for length, label in zip(lengths, labels, strict=True):
            digits = g.integers(0, 7, length - 2)
            digits[g.integers(len(digits))] = 7 + label
            ids += [0, *(digits + 6), 2]
        tensors.save(folder / f"{name}.pt", np.array(ids), lengths, 1, labels, ["seven", "eight", "nine"],
                     vocab.load(about).hash)  # fmt: skip
    torch.manual_seed(0)
    model = RobertaMLM(RobertaConfig(vocab_size=16, block_size=16, n_layer=2, n_head=2, n_embd=16, mlp_size=32,
                                     hidden_dropout=0.0, attn_dropout=0.0))  # fmt: skip
    state = checkpoint.pack(kind="roberta", model=model, model_config=vars(model.config), optimizer=None, loop={},
                            seed=0, step=0, best=None, options={}, meta={"tokenizer": about})  # fmt: skip
    checkpoint.save(folder / "encoder.pt", state)


def finetune_flags(data: Path, out: Path) -> list[str]:
    return [f"--init_from={data / 'encoder.pt'}", f"--out_dir={out}", *(f"--{s}={data / s}.pt" for s in SPLITS),
            "--classifier_dropout=0", "--learning_rate=1e-2", "--dtype=float32", "--log_interval=1",
            "--device=cpu", "--epochs=100"]  # fmt: skip


SPLITS = ("train", "val", "test")
FINETUNE = Loop(
    name="finetune",
    module="finetune",
    data=classes,
    flags=finetune_flags,
    steps=lambda n: [f"--max_steps={n}", "--eval_interval=3"],
    batch=lambda micro, acc, ranks: [f"--batch_size={micro}", f"--gradient_accumulation_steps={acc}"],
    resume=lambda out: ["--init_from=resume", f"--out_dir={out}", "--device=cpu"],
    seed=lambda n: [f"--seed={n}"],
    last=lambda out: out / "ckpt.pt",
    first_loss=1.0986,  # ln 3
    learns=["--max_steps=120", "--eval_interval=60", "--batch_size=36", "--pooling=mean"],
    learnt=0.1,
)

# half of the run with a still encoder, and dropout, weights, smoothing and pooling on the way
FROZEN = replace(
    FINETUNE,
    name="finetune-frozen",
    flags=lambda data, out: [*finetune_flags(data, out), "--freeze", "--freeze_epochs=1", "--pooling=max",
                             "--pooler_type=roberta", "--class_weights=balanced", "--label_smoothing=0.1",
                             "--backbone_lr_mult=1"],
    batch=lambda micro, acc, ranks: [f"--batch_size={4 * micro}", f"--gradient_accumulation_steps={acc}"],
    learnt=0.6,
)  # fmt: skip

LOOPS = [TRAIN, MULTIDATASET, MULTICONTEXT, MUON, PRETRAIN, REWARD, PROCEDURAL, FINETUNE, FROZEN]
FIRST = {loop.module: loop for loop in reversed(LOOPS)}.values()  # of each script
