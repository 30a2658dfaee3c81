"""Trains a model that scores answers: regression on scores, or pairwise on which of two answers was preferred.

    python data/qa_toy/prepare.py                                       a toy set, and a tiny model to start from
    python reward_train.py --config configs/reward/small_cpu.yaml       train on it
    python reward_train.py --config configs/reward/small_cpu.yaml --init_from=resume
    python reward_train.py --config configs/reward/trainer_config.yaml --data.batch_size 8
    torchrun --nproc_per_node=2 reward_train.py --config configs/reward/small_cpu.yaml
    python reward_train.py --config configs/reward/small_cpu.yaml --score answers.json --out scores.csv

    score = reward_train.load("ckpt"); score("What is 2 + 2?", "4")     in Python
"""

import functools
import gc
import math
import shlex
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

if __name__ == "__main__":
    gc.disable()  # until run.guard(): looking through all that torch imports takes a tenth of the start

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from core import checkpoint, config, disk, dist, hf, optim, preflight, rng, run, transfer
from core.config import option
from core.progress import duration, progress
from core.schedule import lr_at
from core.scores import draw, pearson, spearman
from core.tracker import Tracker, peak_memory
from core.values import Beta, Count, Dropout, Fraction, NonNegative, Positive, Whole
from data import qa, vocab
from data.pretrained import tokenizer_of
from data.scorer import Scorer, make_template, open_model, reopen, score_file
from data.split import in_both
from variants.packed import send

load = Scorer  # score = reward_train.load(RUN); score(question, answer)
METRICS = ("val_loss", "val_accuracy", "val_mse", "val_mae", "val_spearman", "val_pearson", "train_loss")
LARGER = ("val_accuracy", "val_spearman", "val_pearson")  # is better


@dataclass
class Data:
    batch_size: Count = 16  # samples a micro-step and device
    data_dir: str = "data/qa.json"  # a JSON or JSONL file, or a folder with train, val and test files
    max_length: Count = 1024  # tokens of question and answer
    max_prompt_length: Count = 512  # tokens of the question, with truncate_promt
    on_tpu: bool = False  # pad each text to max_length: static shapes
    truncate_promt: bool = option(True, alias=("truncate_prompt",))  # cut the question, not the answer; false: the end


@dataclass
class ModelParams:
    adam_betas: list[Beta] = option([0.9, 0.99])  # of AdamW
    do_compute_metrics: bool = True  # false: val_loss only
    learning_rate: Positive = 2e-5  # the highest; linear warmup, linear decay to 0
    use_cache: bool = False  # scoring reuses a question's keys and values over its answers
    warmup_steps_per_cent: Fraction = 0.01  # share of all steps, 0..1
    weight_decay: NonNegative = 0.001  # of matrices; norms and biases do not decay
    do_freeze: bool | None = None  # freeze what freeze_* names; None: if one is on
    freeze_emb: bool = False  # embeddings
    freeze_ln: bool = False  # norms
    freeze_attn: bool = False  # attention
    freeze_ff: bool = False  # feed-forward layers
    freeze_other: bool = False  # what is none of these; the score head always trains
    layers_not_to_freeze: list[int] = field(default_factory=list)  # layers that train all the same; -1 is the last
    mae_loss: bool = False  # absolute error instead of squared
    loss: Literal["auto", "mse", "mae", "pairwise"] = "auto"  # auto: as the rows are; pairwise ranks scores, too
    margin: NonNegative = 0.0  # pairwise: share of the difference in score (in standard deviations) to win by
    center: NonNegative = 0.0  # pairwise: weight of (r_j + r_k)^2, which keeps scores around 0 (2312.09244)
    dropout: Dropout = 0.0  # in the backbone


@dataclass
class Checkpoint:
    dirpath: str = "ckpt"  # run folder
    every_n_train_steps: Count = 1000  # optimizer steps
    log_obg: str = option("val_loss", choices=METRICS, alias=("monitor", "log_obj"))  # what best.pt is chosen by
    mode: Literal["min", "max"] | None = None  # None: max for accuracy, spearman and pearson, else min


@dataclass
class Params:
    accelerator: Literal["auto", "cpu", "gpu", "tpu"] = "auto"
    accumulate_grad_batches: Count = 1  # micro-steps a step
    gradient_clip_val: NonNegative | None = 1.0  # norm; 0: no clipping
    log_every_n_steps: Count = 20  # optimizer steps
    max_epochs: Count = 20
    max_steps: Count | None = None  # optimizer steps, if that is sooner
    max_bad_steps: Count = 10  # steps in a row with loss or gradients not finite before the run stops
    num_sanity_val_steps: str = "2"  # batches evaluated before training; -1: all; 0.5: half of them
    overfit_batches: str = "0"  # train and evaluate on the first so many batches; 0.1: a tenth of the rows
    precision: str = option("auto", choices=("auto", "16", "bf16", "32", "16-mixed", "bf16-mixed"))
    strategy: Literal["ddp", "auto"] = "ddp"  # one process unless torchrun starts more
    val_check_interval: str = "1.0"  # batches between evaluations; 0.25: a quarter of an epoch


@dataclass
class Trainer:
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    ckpt_path: str | None = None  # a checkpoint to go on from
    params: Params = field(default_factory=Params)


@dataclass
class WandbArgs:
    group: str | None = None
    job_type: str | None = None
    name: str | None = None
    project_name: str | None = None


@dataclass
class Wandb:
    api: str = option("", secret=True)  # key; "text" or empty: from the environment
    args: WandbArgs = field(default_factory=WandbArgs)
    project_name: str | None = None


@dataclass
class Options:
    # run
    model_name: str = "gpt2"  # a folder in HF format (gpt2, llama, roberta ...), one of our checkpoints, or a hub name
    seed: int = 42  # for all that is drawn at random
    check: bool = False  # look whether all is ready, and stop: data, tokenizer, checkpoint, disk, memory
    replay_step: Whole | None = None  # show this step's batch, its loss and gradient norm, and stop
    init_from: str = ""  # resume: go on in trainer.checkpoint.dirpath; weights to take --transfer from
    transfer: list[str] = option(["all"])  # parts to take: embed attn mlp norm head all, with layers as in attn:0-3
    score: str = ""  # score this file with the best checkpoint instead of training
    out: str = "scores.csv"  # where the scores go
    timeout: Positive = 120  # seconds a rank waits for another
    data: Data = field(default_factory=Data)
    model_params: ModelParams = field(default_factory=ModelParams)
    trainer: Trainer = field(default_factory=Trainer)
    wandb: Wandb = field(default_factory=Wandb)


FIXED = ("model_name", "seed", "data.data_dir", "data.max_length", "data.max_prompt_length", "data.truncate_promt",
         *(f"model_params.{n}" for n in ModelParams.__dataclass_fields__ if "freeze" in n or "loss" in n),
         "trainer.params.overfit_batches")  # fmt: skip
FREE = ("init_from", "transfer", "score", "out", "check", "replay_step", "timeout", "trainer.checkpoint.dirpath",
        "trainer.ckpt_path", "trainer.params.accelerator", "trainer.params.strategy")  # fmt: skip
NEEDS = {  # what acts only beside other options
    "transfer": "--init_from other than resume",
    "out": "--score",
    "data.max_prompt_length": "--data.truncate_promt",
    "wandb.args.name wandb.args.group wandb.args.job_type":
        "--wandb.project_name, or --wandb.args.project_name, or --wandb.api",
}
SCORING = ("score out trainer.ckpt_path trainer.checkpoint.dirpath trainer.params.accelerator trainer.params.precision"
           " model_params.use_cache data.batch_size")  # fmt: skip


def some(text: str, name: str, whole: int) -> int:
    """A number of batches: "435"; "0.25", which is a share of `whole`, at least one; or "-1", all of it."""
    try:
        value = float(text) if "." in text or "e" in text else int(text)
        fits = 0 <= value <= 1 if isinstance(value, float) else value >= -1
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"{name} must be a number of batches, or a share between 0. and 1., got {text!r}")
    if isinstance(value, float):
        return max(int(value * whole), int(value > 0))  # a tenth of nine batches is no wish for none
    return whole if value == -1 else value


# -----------------------------------------------------------------------------
# loss and metrics


def losses(p: ModelParams, kind: str, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """One a sample; pairs come as all better texts, then all others. Labels are in standard deviations."""
    assert scores.shape == labels.shape and scores.dim() == 1, (scores.shape, labels.shape)
    if kind == "pairwise":
        (j, k), (y_j, y_k) = scores.chunk(2), labels.chunk(2)
        gap = p.margin * (y_j - y_k) if p.margin else 0.0
        return -F.logsigmoid(j - k - gap) + p.center * (j + k).square()
    return (scores - labels).abs() if kind == "mae" else (scores - labels).square()


def measure(p: ModelParams, kind: str, scores: np.ndarray, data: qa.QA, mean: float, std: float) -> dict[str, float]:
    """What is logged of an evaluation; scores are the model's own, of all of data's texts."""
    texts = data.order()
    labels = torch.from_numpy((data.labels[texts] - mean) / std)
    out = {"val_loss": losses(p, kind, torch.from_numpy(scores[texts]), labels).mean().item()}
    if not p.do_compute_metrics:
        return out
    texts = np.unique(texts)
    label, score = data.labels[texts], scores[texts]
    if kind == "pairwise":
        j, k = scores[data.samples].T
        out["val_accuracy"] = float((j > k).mean())
    else:
        score = score * std + mean
        out["val_accuracy"] = float(((score >= 0) == (label >= 0)).mean())
        out["val_mse"] = float(np.square(score - label).mean())
        out["val_mae"] = float(np.abs(score - label).mean())
    if np.isnan(score).any():  # it has no sign and no order
        out["val_accuracy"] = math.nan
    if np.isfinite(label).all():
        out["val_spearman"], out["val_pearson"] = spearman(score, label), pearson(score, label)
    return out


# -----------------------------------------------------------------------------
# training


def machine(t: Params) -> tuple[str, str, str]:
    """(device, dtype, note) of accelerator and precision."""
    gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    if t.accelerator == "tpu" or t.accelerator == "gpu" and not gpu:
        raise ValueError(f"trainer.params.accelerator {t.accelerator} is not there: use {'gpu, ' * gpu}cpu or auto")
    device = "cpu" if t.accelerator == "cpu" or not gpu else "cuda" if torch.cuda.is_available() else "mps"
    number = t.precision.removesuffix("-mixed")
    if device == "cpu" and number == "16":
        return device, "auto", f"precision {t.precision} is auto on a CPU, where float16 is very slow: "
    return device, {"16": "float16", "bf16": "bfloat16", "32": "float32"}.get(number, number), ""


def main(args: Options) -> None:
    args = config.made(args)
    started, replaying = time.monotonic(), args.replay_step is not None
    device, dtype, note = machine(args.trainer.params)
    d = dist.init(device, timeout=args.timeout)
    say = print if d.main else lambda *a: None
    if args.score:
        dist.alone("--score")
        source = checkpoint.weights_of(args, "trainer.ckpt_path", "trainer.checkpoint.dirpath")
        if not Path(source).exists():
            raise ValueError(f"--score asks the model of a run, --config RUN/config.yaml or"
                             f" --trainer.checkpoint.dirpath RUN; {source} does not exist")  # fmt: skip
        for line in config.unread(args, "score", SCORING):
            print(f"note: {line}")
        score = Scorer(source, device, dtype, args.model_params.use_cache)
        if "trainer.params.precision" not in args.given:  # the run's, also where its config.yaml is not named
            args.trainer.params.precision = score.options["trainer"]["params"]["precision"]
            score.dtype, score.precision = dist.precision(machine(args.trainer.params)[1], score.device)
        return score_file(score, Path(args.score), Path(args.out), args.data.batch_size)

    # -----------------------------------------------------------------------------
    # run directory

    folder = run.claim(args.trainer.checkpoint.dirpath, d.main, args)
    if checkpoint.goes_on(folder):
        args.init_from = "resume"
    if args.init_from == "resume":  # of this folder's run, wherever that began
        args.trainer.ckpt_path = None
    resuming, stored, inside, back = args.init_from == "resume" or args.trainer.ckpt_path is not None, None, True, ""
    if resuming:
        source = Path(args.trainer.ckpt_path or folder.path)
        stored, path = checkpoint.newest(source) if source.is_dir() else (checkpoint.load(source), source)
        inside = path.resolve().is_relative_to(folder.path.resolve())  # else it goes on in a folder of its own
        if inside and args.trainer.ckpt_path and (back := run.beyond(folder.path, stored["step"])) and not replaying:
            say(back)
        args, changes = config.resume(args, stored["options"], fixed=FIXED, free=FREE, own=inside)
        before, asked = stored["loop"]["batch"], {"data.batch_size", "trainer.params.accumulate_grad_batches"}
        now = args.data.batch_size * args.trainer.params.accumulate_grad_batches * d.world
        if asked & set(changes) and now != before:
            raise ValueError(f"data.batch_size x trainer.params.accumulate_grad_batches x ranks is {before} in the run"
                             f" to resume and cannot become {now}")  # fmt: skip
        say(checkpoint.going_on(path, stored, d.device))
        for name, (old, new) in changes.items():
            say(f"  {name}: {old} -> {new}")
    for line in config.idle(args, NEEDS):
        say(f"note: {line}")
    p, t, ckpt = args.model_params, args.trainer.params, args.trainer.checkpoint
    _, dtype, note = machine(t)  # a resume takes the stored precision
    mode = "max" if ckpt.log_obg in LARGER else "min"
    if ckpt.mode not in (None, mode):  # a file's, where the command line names another log_obg
        say(f"note: trainer.checkpoint.mode {ckpt.mode} takes the worst {ckpt.log_obg} for the best, {mode} the best")

    # -----------------------------------------------------------------------------
    # model: before the data, as it brings the tokenizer

    rng.seed_torch(args.seed, "init")
    if resuming:
        model, description = reopen(stored, path, p.dropout), stored["meta"]["tokenizer"]
    else:
        args.model_name, args.init_from = folder.gone_to(args.model_name), folder.gone_to(args.init_from)
        model, description = open_model(args.model_name, p.dropout)
    sizes = {name: getattr(args.data, name) for name in ("max_length", "max_prompt_length", "truncate_promt")}
    template = make_template(description, model, **sizes)
    if args.init_from and not resuming:
        source = hf.source(args.init_from)
        weights, embeds = source["model"], "embed" in transfer.wanted(args.transfer)
        if embeds and (theirs := tokenizer_of(args.init_from, source)):
            ours, theirs = vocab.load(description).hash, vocab.load(theirs).hash
            if ours != theirs:
                raise ValueError(f"the tokenizer of model_name {args.model_name} is {ours}, {args.init_from} was"
                                 f" trained with {theirs}: --transfer attn mlp norm takes the rest")  # fmt: skip
        there = source["config"]
        for line in transfer.into(model, weights, args.transfer, args.init_from, there, fresh=False):
            say(line)
    frozen = {"emb": p.freeze_emb, "ln": p.freeze_ln, "attn": p.freeze_attn, "ff": p.freeze_ff, "other": p.freeze_other}
    frozen = [part for part, yes in frozen.items() if yes and p.do_freeze is not False]
    if not frozen and (p.do_freeze or p.layers_not_to_freeze):
        say("note: nothing is frozen, as no freeze_emb, freeze_ln, freeze_attn, freeze_ff or freeze_other is on")
    table = optim.freeze(model, frozen, p.layers_not_to_freeze, "score.")
    model.to(d.device)
    dtype, precision = dist.precision(dtype, d.device)
    autocast = dist.autocast(d.device, dtype)
    scaler = torch.amp.GradScaler(d.device.type, enabled=dtype == torch.float16)
    net = model
    if d.world > 1:  # without find_unused_parameters buckets are rebuilt, and a resumed run sums in another order
        ids = [d.device.index] if d.device.type == "cuda" else None
        net = DistributedDataParallel(net, device_ids=ids, find_unused_parameters=True)

    # -----------------------------------------------------------------------------
    # data

    file = Path(args.data.data_dir)
    two = qa.check(file, needed=("train", "val|test"))[0]
    kind = p.loss if p.loss != "auto" else "pairwise" if two else "mae" if p.mae_loss else "mse"
    if two and kind != "pairwise":
        raise ValueError(f"model_params.loss {kind} needs an answer and a score a row, {file} holds pairs of answers")
    if p.mae_loss and kind != "mae" or p.center and kind != "pairwise":
        name, what = ("mae_loss", "a score for each answer, loss mae") if p.mae_loss else ("center", "pairs of answers")
        raise ValueError(f"model_params.{name} is for {what}; here the loss is {kind}")
    found = qa.records(file)
    splits = qa.load(progress(found, "tokenizing", unit="rows", show=d.main), template, kind == "pairwise")
    train, val = splits["train"], splits["val" if "val" in splits else "test"]
    B = stored["loop"]["batch"] if resuming else args.data.batch_size * t.accumulate_grad_batches * d.world
    micro_steps, micro_batch = dist.split(B, args.data.batch_size, d.world)
    overfit = some(t.overfit_batches, "trainer.params.overfit_batches", -(-len(train) // (micro_batch * d.world)))
    rows = overfit * micro_batch * d.world
    if resuming:  # under other ranks, too
        rows = stored["loop"].get("rows", rows)
    if rows:
        train = val = qa.head(train, rows)
    for name, split in (("training", train), ("evaluation", val)):
        if not len(split):
            raise ValueError(f"{file} has no two answers to one {name} question that differ in score: nothing to rank")
        split.check_ids(model.config.vocab_size, file)
    counts = [split.counts() for split in (train, val)]
    run.same_data(stored["loop"] if resuming else {}, counts, f"data.data_dir {file}", "samples and checksums")
    epoch_steps = -(-len(train) // B)
    known = train.labels[np.isfinite(train.labels)]
    flat = len(known) and known.min() == known.max()
    with np.errstate(over="ignore"):  # told below
        mean, std = (float(known.mean()), float(known.std())) if len(known) else (0.0, 1.0)
    mean, std = (float(known[0]), 1.0) if flat else (mean, std)  # deviations of 1e-16 by rounding are no unit
    if not 0 < std < math.inf:  # 0: their squares are too small for float64, as 1e-200 is
        raise ValueError(f"{file}: scores from {known.min():g} to {known.max():g} have no finite deviation above 0")
    if p.margin and (kind != "pairwise" or not all(np.isfinite(s.labels[s.samples]).all() for s in (train, val))):
        raise ValueError("model_params.margin needs pairs with scores, each one: Accepted_Score and Score, or scored"
                         " answers")  # fmt: skip
    lengths = train.lengths()
    width = template.max_length if args.data.on_tpu and model.causal else None  # an encoder sees no padding

    @functools.lru_cache(1)
    def epoch(number: int) -> list[np.ndarray]:
        return qa.epoch(lengths, B, args.seed, "train", number)

    def forward(texts: np.ndarray, split: qa.QA, through) -> torch.Tensor:
        """Scores (n,) of texts, each padded as little as its neighbours allow."""
        found = split.texts(texts)
        tokens = send(torch.from_numpy(np.concatenate(found).astype(np.int64)), d.device)
        with autocast:
            return through(tokens, [len(f) for f in found], width)  # no tensor: DDP would take it to the GPU

    # -----------------------------------------------------------------------------
    # optimizer

    groups = optim.groups(model, p.weight_decay)
    betas = optim.pair(p.adam_betas, "model_params.adam_betas")
    optimizer = torch.optim.AdamW(groups, lr=p.learning_rate, betas=betas, fused=optim.fused(d.device))
    limits = {"--trainer.params.max_epochs": t.max_epochs * epoch_steps, "--trainer.params.max_steps": t.max_steps}
    last_step, ending, unreached = run.ends(args, limits)
    for line in unreached:
        say(line)
    warmup = round(p.warmup_steps_per_cent * last_step)
    every = some(t.val_check_interval, "trainer.params.val_check_interval", epoch_steps * micro_steps)
    if every < 1:
        raise ValueError(f"trainer.params.val_check_interval must be above 0, got {t.val_check_interval}")
    eval_steps = -(-every // micro_steps)
    whole = -(-len(np.unique(val.samples)) // args.data.batch_size)  # an evaluation reads each text once
    sanity = min(some(t.num_sanity_val_steps, "trainer.params.num_sanity_val_steps", whole), whole)
    if resuming and "trainer.params.val_check_interval" not in changes:  # micro-steps are others under other ranks
        eval_steps = stored["loop"].get("eval_steps", eval_steps)

    # -----------------------------------------------------------------------------
    # resume

    first_step, best = 0, None
    loop = {"eval": None, "resumes": [], "bad_steps": 0, "scaler": None, "batch": B, "train": [0.0, 0], "rows": rows,
            "eval_steps": eval_steps, "counts": counts, "best_loss": math.inf}  # fmt: skip
    if resuming:
        first_step = stored["step"]
        other = {"trainer.checkpoint.log_obg", "trainer.checkpoint.mode"} & set(changes)  # then best means nothing
        theirs = None if inside and not back else checkpoint.best_of(path, stored, "best.pt")
        best = None if other or not (theirs or inside and not back) else stored["best"]
        loop.update(stored["loop"] | {"eval_steps": eval_steps})
        loop["resumes"] = [*loop["resumes"], first_step]
        optim.load(optimizer, stored["optimizer"])
        if loop["scaler"]:
            scaler.load_state_dict(loop["scaler"])
        run.not_beyond(first_step, last_step, ending)
        if first_step >= last_step:
            say(f"this run is finished at step {first_step}: a higher {ending} goes on")
    if replaying:
        first_step = preflight.step_to_replay(args.replay_step, last_step)
    finite = run.Finite(optimizer, d.device, t.max_bad_steps, loop)
    double = torch.float32 if d.device.type == "mps" else torch.float64  # which mps has not
    since = torch.tensor([loop["train"][0] * d.main, loop["train"][1]], device=d.device, dtype=double)  # losses, steps
    stored = source = weights = None  # a copy of the model that nobody needs any more

    # -----------------------------------------------------------------------------
    # evaluation, saving

    @torch.no_grad()
    def evaluate(split: qa.QA, limit: int | None = None) -> np.ndarray | None:
        """The model's scores of a split's texts, the longest first; None where a signal came in between."""
        model.eval()
        texts = np.unique(split.samples)
        texts = texts[np.argsort(-np.diff(split.offsets)[texts], kind="stable")]
        batches = [texts[i : i + args.data.batch_size] for i in range(0, len(texts), args.data.batch_size)][:limit]
        mine = []
        for i in progress(range(0, len(batches), d.world), "evaluating", show=d.main):
            for batch in batches[i + d.rank : i + d.rank + 1]:
                mine.append((batch, forward(batch, split, model).cpu().double().numpy()))
            if folder.stopping():
                model.train()  # after the sanity evaluation a run still trains its step
                return None
        scores = np.full(len(split.labels), np.nan)
        for batch, found in (pair for part in dist.gather(mine) for pair in part):
            scores[batch] = found
        model.train()
        return scores

    def save(step: int, *also: str, background: bool = True) -> None:
        loop["train"] = [dist.sums([since[0].item()])[0], int(since[1])]
        if not folder.writes:
            return
        loop.update(finite.counts(), scaler=scaler.state_dict())
        cfg = {"backbone": "gpt" if model.causal else "roberta", **vars(model.config)}
        state = checkpoint.pack(kind="reward", model=model, model_config=cfg, optimizer=optimizer, loop=loop, meta=meta,
                                seed=args.seed, step=step, best=best, options=config.to_dict(args))  # fmt: skip
        also = [folder.path / name for name in also]
        checkpoint.save(folder.path / "ckpt.pt", state, also=also, background=background)

    # -----------------------------------------------------------------------------
    # start

    scale = (0.0, 1.0) if kind == "pairwise" else (mean, std)  # what a pair ranks has no unit
    meta = {"tokenizer": description, "mean": scale[0], "std": scale[1], "loss": kind, "template": sizes}
    metrics = [*measure(p, kind, np.zeros(len(val.labels)), val, mean, std), "train_loss"]
    if ckpt.log_obg not in metrics:
        raise ValueError(f"trainer.checkpoint.log_obg {ckpt.log_obg} is not measured here, only {', '.join(metrics)}")
    widest = train.samples.shape[1] * (width or int(lengths.max()))
    checks = preflight.look(folder.path, d.device, dtype, model, optimizer, tokens=micro_batch * widest, files=3,
                            resuming=resuming and inside, given=len(args.given), steps=(first_step, last_step),
                            data=f"{file}: {len(train):,} + {len(val):,} samples; {template.report()}",
                            tokenizer=vocab.summary(description) if args.check else "",
                            checkpoint=str(path) if resuming else args.model_name)  # fmt: skip
    if preflight.report(checks, args.check, d.main):
        return folder.finish()
    if not replaying:
        folder.begin(holds="aside", resume=resuming and inside)
    if folder.writes:
        args.model_name, args.init_from = folder.gone_to(args.model_name), folder.gone_to(args.init_from)
        config.save(args, folder.path / "config.yaml")
        if resuming and theirs:
            disk.link(theirs, folder.path / "best.pt")  # until there is a better one
    if back and not replaying:  # what comes later is left behind, a kill or not
        save(first_step, background=False)
        checkpoint.forget(folder.path, first_step, d.main)
    w = args.wandb
    project, key = w.project_name or w.args.project_name, "" if w.api == "text" else w.api
    wandb = {"key": key, "project": project, "name": w.args.name, "group": w.args.group, "job_type": w.args.job_type}
    track = Tracker(folder.path, folder.writes, last_step, first_step, resumes=loop["resumes"],
                    options=config.to_dict(args), wandb=wandb if project or key else None)  # fmt: skip
    c, count = model.config, sum(x.numel() for x in model.parameters())
    track.say(f"model      {args.model_name}: {count / 1e6:.2f} M parameters, {c.n_layer} layers x {c.n_embd},"
              f" score at {'the last token' if model.causal else '<s>'}, loss {kind}")  # fmt: skip
    for line in table:
        track.say(f"           {line}")
    spread = f", scores {mean:.3g} +- {known.std():.3g}" if len(known) else ""
    track.say(f"data       {file}: {len(train):,} + {len(val):,} {'pairs' if kind == 'pairwise' else 'rows'}{spread}")
    track.say(f"           {template.report()} at {template.max_length} tokens")
    if both := in_both(*((s.tokens, np.diff(s.offsets)) for s in (train, val))):
        track.say(f"           note: {both:,} of the texts to evaluate on are trained on, too")
    if against := int((np.diff(train.labels[train.samples]) > 0).sum()):
        track.say(f"           note: in {against:,} of the pairs the accepted answer has the lower score")
    for name, n in (("train", train.alike()), ("evaluate", val.alike())):
        if n:
            track.say(f"           note: {n:,} of the pairs to {name} on are the same tokens twice: none is better")
    if kind != "pairwise" and flat:
        track.say(f"           note: all scores are {mean:.3g}: there is nothing to learn from them")
    if template.max_length < args.data.max_length:
        track.say(f"           max_length {args.data.max_length} is more than the model's {c.block_size} positions")
    if args.data.on_tpu and not width:
        track.say("           on_tpu: an encoder reads texts without padding, shapes stay as long as the texts are")
    track.say(f"batch      {B} samples a step, {d.world} rank(s) x {micro_steps} micro-step(s), strategy {t.strategy};"
              f" {epoch_steps} steps an epoch")  # fmt: skip
    track.say(f"machine    {d.device}, {note}{precision}, {torch.get_num_threads()} threads")
    track.say(f"run        {folder.path}, steps {first_step} to {last_step}, ready after"
              f" {time.monotonic() - started:.1f} s")  # fmt: skip
    if first_step == 0 and sanity and not replaying and evaluate(val, sanity) is not None:
        track.say(f"sanity     {sanity} evaluation batch(es) passed")
    track.clock(first_step)

    scores, tokens = None, 0
    for step in range(first_step, last_step + 1):
        # -----------------------------------------------------------------------------
        # learning rate

        lr = lr_at(step, "linear", lr=p.learning_rate, warmup=warmup, total=last_step)
        optim.set_lr(optimizer, lr)
        model.redraw(step, args.seed)

        # -----------------------------------------------------------------------------
        # evaluate, save; once more after the last step

        folder.step = step
        last = step == last_step
        evaluating, better = not replaying and (step and step % eval_steps == 0 or last), False
        if evaluating:
            done = loop["eval"] and loop["eval"]["step"] == step  # a resume finds it in its checkpoint
            undrawn = last and done and dist.any(d.main and not (folder.path / "scores.png").exists())
            scores = evaluate(val) if undrawn or not done else None
            if scores is None and not done:
                save(step, background=False)
                track.close()
                return folder.finish(run.STOPPED)
            found = loop["eval"]["losses"] if done else dist.first(measure(p, kind, scores, val, mean, std))
            if not done:
                if since[1]:
                    found = {"train_loss": dist.sums([since[0].item()])[0] / since[1].item(), **found}
                value = found.get(ckpt.log_obg, math.nan)
                sign = -1 if (ckpt.mode or mode) == "max" else 1
                better = math.isfinite(value) and (best is None or sign * value < sign * best)
                better |= value == best and found["val_loss"] < loop["best_loss"]  # accuracies come in steps
                best, loop["best_loss"] = (value, found["val_loss"]) if better else (best, loop["best_loss"])
                since = torch.zeros_like(since)
                loop["eval"] = {"step": step, "losses": found}
            track.eval(step, found, "best" if better else "", quiet=bool(done))
        if last or better or step > first_step and step % ckpt.every_n_train_steps == 0 and not finite.bad():
            save(step, *["best.pt"] * better, background=not last)
        if last:
            break
        if evaluating:
            track.clock(step)
            tokens = 0

        # -----------------------------------------------------------------------------
        # micro-steps

        batch = epoch(step // epoch_steps)[step % epoch_steps]  # of all ranks; the last of an epoch may be smaller
        loss_sum = torch.zeros((), device=d.device)
        for micro in range(micro_steps):
            rng.seed_torch(args.seed, "dropout", step, micro * d.world + d.rank)
            i = (micro * d.world + d.rank) * micro_batch
            mine = batch[i : i + micro_batch]
            n = len(mine)
            fill = micro_batch - n if width else n == 0  # samples that count for nothing
            mine = np.concatenate([mine, np.repeat(batch[:1], fill)])
            texts = train.order(mine)
            if replaying and n:
                ids = torch.from_numpy(np.concatenate(train.texts(texts)))
                text = vocab.readable(description, train.texts(texts[:1])[0])
                print(preflight.part(d.rank, micro, mine[:n], ids, text))
            if d.world > 1:
                net.require_backward_grad_sync = micro == micro_steps - 1
            y = send(torch.from_numpy((train.labels[texts] - mean) / std).float(), d.device)
            each = losses(p, kind, forward(texts, train, net), y)
            loss = each[:n].sum() * d.world / len(batch)  # DDP averages over ranks; len(batch) counts all of theirs
            scaler.scale(loss).backward()
            loss_sum += loss.detach()
        tokens += int(train.sizes(batch).sum())

        # -----------------------------------------------------------------------------
        # clip, step

        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), t.gradient_clip_val or float("inf"))
        if replaying:
            say(preflight.result(step, dist.sums([loss_sum.item()])[0] / d.world, norm))
            return folder.finish()
        if finite.ok(norm, step, f"samples {batch[:4].tolist()} ..., seed {args.seed}"):
            scaler.step(optimizer)
            now = torch.stack([loss_sum / d.world, torch.ones_like(loss_sum)])
            since = since + now.where(norm.isfinite(), 0.0)  # a GPU skips by itself what is not finite
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

        # -----------------------------------------------------------------------------
        # log

        if step % t.log_every_n_steps == 0 or step == last_step - 1:
            loss = dist.sums([loss_sum.item()])[0] / d.world
            finite.check(f"data {file}")
            optim.check(optimizer, model, step)
            track.train(step, {"loss": loss, "lr": lr, "norm": norm.item()}, tokens / (step + 1 - track.at))
            tokens = 0
        folder.step = step + 1
        if folder.stopping():
            save(step + 1, background=False)
            track.close()
            return folder.finish(run.STOPPED)

    checkpoint.wait()
    track.close()
    if d.main and scores is not None:
        if kind == "pairwise":
            j, k = scores[val.samples].T
            draw(folder.path / "scores.png", k, j, "score of the other answer", "score of the accepted answer")
        else:
            i = val.order()
            draw(folder.path / "scores.png", val.labels[i], scores[i] * std + mean, "target score", "predicted score")
    track.say(f"done in {duration(time.monotonic() - started)}: "
              + ", ".join(f"{k} {v:.4f}" for k, v in loop["eval"]["losses"].items())
              + f"; best {ckpt.log_obg} {math.nan if best is None else best:.4f};"
              f" peak memory {peak_memory(d.device) / 2**20:,.0f} MiB")  # fmt: skip
    config_file = shlex.quote(str(folder.path / "config.yaml"))
    track.say(f"next: python reward_train.py --config {config_file} --score FILE.json --out scores.csv")
    return folder.finish()


if __name__ == "__main__":
    with run.guard():
        main(config.parse(Options, sys.argv[1:], doc=__doc__, config_flags=("--config", "--config_file")))
