"""Pretrains RoBERTa on sequences of your own: masked language modelling on Arrow files of token ids.

    python pretrain.py --train pretrain/pretrain_train_trunc4500 --eval pretrain/pretrain_eval_trunc4500 \\
        --tokenizer tokenizer/tokenizer_vocab16_max7619.json --run_name digits --save_path pretrain/checkpoints \\
        --max_size 4500 --epochs 40 --per_device 4
    torchrun --nproc_per_node=2 pretrain.py configs/pretrain/small_cpu.yaml
    python pretrain.py --init_from=roberta-base --train ... --eval ...    go on from published weights
    python pretrain.py --init_from=out_pretrain --embed texts.txt --out vectors.npy

The same command again continues the run in save_path, at the very step where it was. A checkpoint-STEP folder is
written with each evaluation; save_path/final gets our checkpoint, the tokenizer and, for absolute positions, the files
that transformers loads. --train and --eval name Arrow files or folders (data/build_pretrain_data.py, `datasets`), or
.pt data sets (data/build_tensors.py).

run        run_name, save_path out_pretrain, init_from (continue what save_path holds, else start), transfer all,
           strict, reset (the last checkpoint's weights, all else anew), ckpt_path (a checkpoint to go on from), files
           (names of what a run leaves), save_total_limit 2, seed 42, epochs 5, max_steps, eval_interval (steps;
           none: an epoch), check (look whether all is ready), replay_step (show one batch)
data       train, eval, test, tokenizer, max_size (tokens), shuffle, mask_p 0.15, mask_token_p 0.8, random_token_p 0.1
model      vocab_size 16, hidden_size 512, hidden_depth 8, attention_heads 8, intermed_size 3072, act_func gelu,
           hidden_prob 0.1, att_prob 0.1, class_prob 0.1, pos_embed absolute, model (further fields of RobertaConfig)
optimizer  lr 1e-4, lr_schedule linear, warmup_steps 0, warmup_ratio 0, min_lr_ratio 0, decay 0.1, beta1 0.9,
           beta2 0.999, grad_clip 1.0, max_bad_steps 10
batch      per_device 16, grad_acc 1
vectors    embed, out vectors.npy, pooling mean, column
logging    log_steps 10, project_name, wandb_entity, no_wandb, tensorboard_log
machine    device auto, dtype auto, fp16, compile, deterministic, timeout 120
"""

import gc
import math
import re
import shlex
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

if __name__ == "__main__":
    gc.disable()  # until run.guard(): looking through all that torch imports takes a tenth of the start

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from core import checkpoint, compiler, config, disk, dist, files, hf_terms, optim, preflight, rng, run, transfer
from core.config import option
from core.files import Files
from core.progress import duration, progress
from core.schedule import lr_at, outlasts
from core.tracker import Tracker, peak_flops, peak_memory
from core.values import Beta, Count, Dropout, Fraction, NonNegative, Positive, Whole
from data import encoding, examples, tensors, vocab
from data.masking import Masking
from data.pretrained import check_fit, export, idle, open_weights
from model import POSITION_KINDS, RobertaConfig, RobertaMLM
from variants.activations import ACTIVATIONS
from variants.packed import send


@dataclass
class Options:
    # run
    run_name: str = ""  # shown in wandb
    save_path: str = option("out_pretrain", alias=("out_dir",))  # run folder
    init_from: str = ""  # empty: continue what save_path holds, else start; resume; scratch; or weights to start from
    transfer: list[str] = option(["all"])  # parts to take: embed attn mlp norm head all, with layers as in attn:0-3
    reset: bool = False  # start again from the last checkpoint's weights, with new arguments
    epochs: Count = 5
    max_steps: Count | None = None  # optimizer steps, in place of epochs
    eval_interval: Count | None = None  # steps between evaluations, each with a checkpoint; None: an epoch
    save_total_limit: Whole = 2  # checkpoint-STEP folders to keep; 0: all
    ckpt_path: str = ""  # a checkpoint elsewhere, or a run's folder, to go on from in full
    strict: bool = True  # the weights to start from must fit the model one by one; false: what differs is listed
    files: Files = field(default_factory=Files)
    seed: int = 42  # for all that is drawn at random
    check: bool = False  # look whether all is ready, and stop: data, tokenizer, checkpoint, disk, memory
    replay_step: Whole | None = None  # show this step's batch, its loss and gradient norm, and stop

    # data
    train: str = ""  # Arrow file, folder of them, or .pt file
    eval: str = ""  # the same, for evaluation
    test: str = ""  # the same, evaluated once, at the end, with the best weights
    tokenizer: str = ""  # tokenizers JSON; none: that of --init_from
    max_size: Count | None = None  # tokens a sequence, longer ones are cut; None: the longest of all
    shuffle: bool = True  # a new order each epoch
    mask_p: Fraction = 0.15  # share of the ordinary tokens to guess
    mask_token_p: Fraction = 0.8  # share of these that become <mask>
    random_token_p: Fraction = 0.1  # share that becomes another token; the rest stays

    # model
    vocab_size: Count = 16  # not given: the tokenizer's
    hidden_size: Count = 512
    hidden_depth: Count = 8  # layers
    attention_heads: Count = 8
    intermed_size: Count = 3072  # hidden width of the MLPs
    act_func: str = option("gelu", choices=[*ACTIVATIONS, *sorted({*hf_terms.ACTIVATIONS.values()} - {*ACTIVATIONS})])
    hidden_prob: Dropout = 0.1  # dropout after embedding, attention and MLP
    att_prob: Dropout = 0.1  # dropout on attention weights
    class_prob: Dropout = 0.1  # a classifier's dropout, for the exported config.json
    pos_embed: str = option("absolute", choices=POSITION_KINDS)  # how tokens know their places
    model: dict = option({})  # further fields of RobertaConfig, as tie=false

    # optimizer
    lr: NonNegative = 1e-4
    lr_schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: Whole = 0
    warmup_ratio: Fraction = 0.0  # share of all steps, where warmup_steps is 0
    min_lr_ratio: Fraction = 0.0  # the last learning rate as a share of lr
    decay: NonNegative = 0.1  # weight decay
    beta1: Beta = 0.9
    beta2: Beta = 0.999
    grad_clip: NonNegative = 1.0  # norm of all gradients; 0: no clipping
    max_bad_steps: Count = 10  # steps in a row with loss or gradients not finite before the run stops

    # batch
    per_device: Count = 16  # sequences a micro-step and rank
    grad_acc: Count = 1  # micro-steps an optimizer step

    # vectors
    embed: str = ""  # write a vector for each text of this file or folder, and stop
    out: str = "vectors.npy"
    pooling: Literal["mean", "cls"] = "mean"  # over a text's tokens, or its <s>
    column: str = ""  # where texts are in CSV, JSONL and Parquet; none: `text`, or the only column

    # logging
    log_steps: Count = 10
    project_name: str = "pretrain"  # in wandb
    wandb_entity: str | None = None
    no_wandb: bool = False  # wandb is on otherwise; without a key or a network it is off with one line
    tensorboard_log: bool = False

    # machine
    device: str = "auto"  # cpu, cuda, cuda:N, mps
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    fp16: bool = False  # dtype float16; on a CPU, where that crawls, auto
    compile: bool | None = None  # None: on GPUs
    deterministic: bool = False  # bit-exact on GPUs too, slower
    timeout: Positive = 120  # seconds a rank waits for another


# taken from the command at a resume, whatever the stored run says
FREE = ("save_path", "init_from", "transfer", "reset", "check", "replay_step", "embed", "out", "pooling", "column",
        "device", "timeout", "no_wandb", "ckpt_path", "strict", "test", "tokenizer", *files.FREE)  # fmt: skip
FIXED = ("data", "model", "seed")
NEEDS = {  # what acts only beside other options
    "transfer strict": "--init_from other than scratch|resume, or --reset",
    "epochs": "no --max_steps",
    "warmup_ratio": "no --warmup_steps",
    "min_lr_ratio": "--lr_schedule=linear|cosine",
    "fp16": "--dtype=auto|float16",
    "out pooling column": "--embed",
}
EMBEDDING = "init_from save_path embed out pooling column tokenizer max_size device dtype"
SHAPE = {"vocab_size": "vocab_size", "hidden_size": "n_embd", "hidden_depth": "n_layer", "attention_heads": "n_head",
         "intermed_size": "mlp_size", "act_func": "activation", "pos_embed": "position"}  # fmt: skip


# -----------------------------------------------------------------------------
# model and tokenizer


def model_config(args: Options, source: dict, n_tokens: int, longest: int) -> RobertaConfig:
    """The source's shape, if there is one, with what the user gave; else the options."""
    given = {ours: getattr(args, name) for name, ours in SHAPE.items() if not source or name in args.given}
    given |= {"hidden_dropout": args.hidden_prob, "attn_dropout": args.att_prob}
    named = {**SHAPE, "hidden_prob": "hidden_dropout", "att_prob": "attn_dropout"}
    for name, ours in named.items():
        if ours in args.model and name in args.given and args.model[ours] != getattr(args, name):
            raise ValueError(f"--{name} is {getattr(args, name)!r}, --model {ours} {args.model[ours]!r}: leave one out")
    if given.get("activation", "gelu") not in ACTIVATIONS:
        given["activation"] = hf_terms.activation(given["activation"])
    loose = () if args.strict else ("n_layer", "position")  # what the two have in common has the same shapes
    for name, ours in SHAPE.items():
        if ours in source and ours not in loose and given.get(ours, source[ours]) != source[ours]:
            raise ValueError(f"--{name} is {source[ours]!r} in the weights to start from and cannot become"
                             f" {given[ours]!r}: leave it out, or name the parts to take with --transfer")  # fmt: skip
    if "vocab_size" not in args.given:
        given["vocab_size"] = source.get("vocab_size", n_tokens)
    cfg = config.from_dict(RobertaConfig, {"block_size": longest, **source, **given, **args.model}, "--model")
    if n_tokens > cfg.vocab_size:
        raise ValueError(f"--vocab_size {cfg.vocab_size} is less than the tokenizer's {n_tokens}")
    if longest > cfg.block_size:
        raise ValueError(f"sequences have up to {longest} tokens, the model reads {cfg.block_size}: --max_size"
                         f" {cfg.block_size} cuts them")  # fmt: skip
    try:
        return RobertaConfig(**config.to_dict(cfg))
    except ValueError as e:  # in the names that the options have here
        names = {ours: f"--{name}" for name, ours in named.items()}
        raise ValueError(re.sub(r"\w+", lambda m: names.get(m[0], m[0]), str(e))) from None


def open_rows(path: str, option: str, max_size: int | None, end: int, pad: int):
    if not path:
        raise ValueError(f"--{option} is missing: a folder of Arrow files, by data/build_pretrain_data.py")
    if examples.ending(Path(path)) in examples.SUFFIXES:
        raise ValueError(f"--{option} {path} is text: data/build_pretrain_data.py makes Arrow files of it")
    from data import arrow  # pyarrow takes a tenth of a second to load, which --help need not wait for

    rows = (tensors if path.endswith(".pt") else arrow).Rows(path, max_size, end, pad)
    if min(rows.longest, max_size or rows.longest) < 3:
        raise ValueError(f"--{option} {path}: no sequence has a token between <s> and </s> (--max_size must be at"
                         " least 3)")  # fmt: skip
    if rows.longest > 1 << 20:
        raise ValueError(f"{path} has a sequence of {rows.longest:,} tokens: --max_size cuts it")
    return rows


# -----------------------------------------------------------------------------
# training


def main(args: Options) -> None:
    args = config.made(args)
    if args.embed:
        dist.alone("--embed")
        from data import vectors

        for line in config.unread(args, "embed", EMBEDDING):
            print(f"note: {line}")
        source = checkpoint.weights_of(args, "init_from", "save_path")
        return vectors.write(args.embed, Path(args.out), source, tokenizer=args.tokenizer,
                             device=dist.pick_device(args.device, 0), dtype=args.dtype, column=args.column,
                             pooling=args.pooling, max_size=args.max_size)  # fmt: skip
    started, replaying = time.monotonic(), args.replay_step is not None
    args.files.check()
    d = dist.init(args.device, timeout=args.timeout)
    say = print if d.main else lambda *a: None

    # -----------------------------------------------------------------------------
    # run directory

    folder = run.claim(args.save_path, d.main, args)
    place, stored = args.files, None
    if checkpoint.goes_on(folder, place.ckpt):
        args.init_from, args.reset = "resume", False
    has_run = bool(checkpoint.candidates(folder.path, place.ckpt)) and not place.second
    own = args.init_from == "resume" or (has_run and args.init_from != "scratch" and not args.reset)  # goes on here
    elsewhere = Path(args.ckpt_path) if args.ckpt_path and not own else None  # goes on from there, in this folder
    resuming = own or bool(elsewhere)
    if elsewhere and place.second == "overwrite" and elsewhere.resolve().is_relative_to(folder.path.resolve()):
        raise ValueError(f"--ckpt_path {elsewhere} lies in the folder whose run is to be replaced: --init_from=resume"
                         " goes on with that run, a copy elsewhere can be begun with")  # fmt: skip
    if place.second == "refuse" and not own and not folder.restarted:
        run.refuse(folder.path, (place.ckpt, place.best))
    if resuming:
        if elsewhere and not elsewhere.is_dir():
            stored, path = checkpoint.load(elsewhere), elsewhere
        else:
            stored, path = checkpoint.newest(elsewhere or folder.path, place.ckpt)
        elsewhere = elsewhere and path
        args, changes = config.resume(args, stored["options"], fixed=FIXED, free=FREE, own=own)
        if own and "test" not in args.given:  # a resume may add it, and keeps it if it says nothing
            args.test = stored["options"]["test"]
        B = stored["loop"]["batch"]  # of all ranks together, whatever their number is now
        if {"per_device", "grad_acc"} & set(changes) and args.per_device * args.grad_acc * d.world != B:
            raise ValueError(f"--per_device x --grad_acc x ranks is {B} in the run to resume and cannot become"
                             f" {args.per_device * args.grad_acc * d.world}: another run folder starts anew")
        unused = f": {folder.path} holds a run, so --ckpt_path is not used" if own and args.ckpt_path else ""
        say(checkpoint.going_on(path, stored, d.device) + unused)
        for name, (old, new) in changes.items():
            say(f"  {config.said(args, name).removeprefix('--')}: {old} -> {new}")
    else:
        B = args.per_device * args.grad_acc * d.world
    for line in config.idle(args, NEEDS):
        say(f"note: {line}")
    if args.fp16 and args.dtype in ("auto", "float16"):
        args.dtype = "auto" if d.device.type == "cpu" else "float16"
        if args.dtype == "auto":
            say("--fp16: on this CPU float16 crawls, dtype is auto")

    # -----------------------------------------------------------------------------
    # data

    source, weights, description = {}, {}, None
    if resuming:
        source, weights, description = stored["model_config"], stored["model"], stored["meta"]["tokenizer"]
        before = vocab.load(description).hash
        if args.tokenizer and (now := vocab.load(encoding.describe(args.tokenizer)).hash) != before:
            raise ValueError(f"--tokenizer {args.tokenizer} is {now}, {path} was trained with {before}")
    elif args.reset or args.init_from not in ("", "scratch"):
        last = folder.gone_to(args.save_path) if args.reset else ""
        source, weights, description = open_weights(args.init_from, args.tokenizer, args.transfer, last)
    if not args.tokenizer and not description:
        raise ValueError("--tokenizer is missing: a tokenizers JSON, by data/train_tokenizer.py")
    description = encoding.describe(args.tokenizer) if args.tokenizer else description
    tokenizer = encoding.load_tokenizer(args.tokenizer or description)
    tokens = vocab.load(description)
    pad, end, mask_id = (encoding.token_id(tokenizer, name) for name in ("pad", "end", "mask"))
    names = ("train", "eval", *["test"] * bool(args.test))
    splits = {name: open_rows(getattr(args, name), name, args.max_size, end, pad) for name in names}
    longest = args.max_size or max(split.longest for split in splits.values())
    if resuming:
        cfg = config.build(RobertaConfig, source, path)
    else:
        theirs = source if "all" in args.transfer else {}  # parts may go into a model of another shape
        cfg = model_config(args, {"pad_id": pad, **theirs}, tokens.vocab_size, longest)
        for name, ours in SHAPE.items():  # config.yaml says what the model is, and runs again
            if name not in args.given:
                setattr(args, name, getattr(cfg, ours))
    for split in splits.values():
        split.check_tokenizer(tokens.hash, "--tokenizer" if args.tokenizer else "the model")
        dist.agree(split.check_ids, min(cfg.vocab_size, tokens.vocab_size), d.rank, d.world)
    special = [i for i in tokenizer.get_added_tokens_decoder() if i < cfg.vocab_size]
    hide = Masking(mask_id, special, tokens.vocab_size, args.mask_p, args.mask_token_p, args.random_token_p)
    micro_steps, micro_batch = dist.split(B, args.per_device, d.world)
    train, counts = splits["train"], {name: splits[name].counts() for name in ("train", "eval")}
    run.same_data(stored["loop"] if resuming else {}, counts, "--train or --eval", "sequences, tokens, checksum")
    epoch_steps = -(-len(train) // B)

    def batch(step: int) -> np.ndarray:
        """The step's global batch, all ranks': an epoch's last may be smaller."""
        epoch, place = divmod(step, epoch_steps)
        i = np.arange(place * B, min(len(train), (place + 1) * B))
        which = rng.permute(i, len(train), args.seed, "order", epoch) if args.shuffle else i
        return dist.deal(which, train.length[which], micro_steps * d.world)

    def masked(split, which: np.ndarray, epoch: int | str):
        """ids (N,), lengths, where (M,) there is something to guess, targets (M,)."""
        ids, lengths = split.rows(which)
        ids, where, targets = hide(ids, lengths, which, args.seed, epoch)
        return torch.from_numpy(ids), lengths, where, torch.from_numpy(targets)

    # -----------------------------------------------------------------------------
    # model

    rng.seed_torch(args.seed, "init")
    model = RobertaMLM(cfg)
    if resuming:
        checkpoint.put(model, weights, path)
    elif weights:
        where = "the last checkpoint" if args.reset else args.init_from
        check_fit(model, weights, source, where, args.transfer, args.strict)
        for line in transfer.into(model, weights, args.transfer, where, source):
            say(line)
    model.to(d.device)
    dtype, precision = dist.precision(args.dtype, d.device)
    autocast = dist.autocast(d.device, dtype)
    scaler = torch.amp.GradScaler(d.device.type, enabled=dtype == torch.float16)
    compiling, compiled = compiler.choose(d.device, args.compile)
    dist.repeatable(d.device, args.deterministic, compiling)
    if compiling:
        model.compile_blocks()
    net = model
    if d.world > 1:  # without find_unused_parameters buckets are rebuilt, and a resumed run sums in another order
        ids = [d.device.index] if d.device.type == "cuda" else None
        net = DistributedDataParallel(net, device_ids=ids, find_unused_parameters=True)

    # -----------------------------------------------------------------------------
    # optimizer

    groups = optim.groups(model, args.decay)
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(args.beta1, args.beta2), fused=optim.fused(d.device))

    # -----------------------------------------------------------------------------
    # resume

    first_step, last_step, best = 0, args.max_steps or args.epochs * epoch_steps, None
    ending = "--max_steps" if args.max_steps else "--epochs"
    warmup, every = args.warmup_steps or round(args.warmup_ratio * last_step), args.eval_interval or epoch_steps
    for line in [*idle(args, cfg), *outlasts(warmup, last_step)]:
        say(line)
    loop = {"eval": None, "resumes": [], "bad_steps": 0, "empty": 0, "scaler": None, "batch": B,
            "seconds": 0.0, "counts": counts}  # fmt: skip
    if resuming:
        first_step, best = stored["step"], stored["best"]
        if elsewhere and not (theirs := checkpoint.best_of(elsewhere, stored, Path(place.best).name)):
            best = None  # a best without weights would keep all worse ones from being saved
        loop.update(stored["loop"])
        loop["resumes"] = [*loop["resumes"], first_step]
        optim.load(optimizer, stored["optimizer"])
        if loop["scaler"]:
            scaler.load_state_dict(loop["scaler"])
        run.not_beyond(first_step, last_step, ending)
        if first_step >= last_step and (elsewhere or run.finished(folder.path)):
            message = f"this run is finished at step {first_step}: a higher {ending} goes on"
            if place.second:
                raise ValueError(message)
            say(f"{message}, --reset starts again")
    if replaying:
        first_step = preflight.step_to_replay(args.replay_step, last_step)
    finite = run.Finite(optimizer, d.device, args.max_bad_steps, loop)
    stored = weights = None  # a copy of the model that nobody needs any more

    # -----------------------------------------------------------------------------
    # evaluation, saving

    @torch.no_grad()
    def evaluate(name: str = "eval") -> dict | None:
        """Loss and accuracy over all of a split under the same masks each time; None where a signal came in between."""
        model.eval()
        rows, n = splits[name], 0
        found = [torch.zeros(2, device=d.device)]  # loss, right guesses: read at the end, so that no batch waits
        for i in progress(range(0, len(rows), args.per_device * d.world), "evaluating", show=d.main):
            first = i + d.rank * args.per_device
            mine = np.arange(first, min(first + args.per_device, len(rows)))
            if len(mine):
                ids, lengths, where, targets = masked(rows, mine, "eval")
                with autocast:
                    logits = model(send(ids, d.device), lengths, where).float()
                targets = send(targets, d.device)
                right = (logits.argmax(1) == targets).sum()
                found.append(torch.stack([F.cross_entropy(logits, targets, reduction="sum"), right]))
                n += len(targets)
            if folder.stopping():
                return None
        model.train()
        loss, right, n = dist.sums([*torch.stack(found).cpu().double().sum(0).tolist(), n])
        if not n:
            say(f"note: at mask_p {args.mask_p:g} no token of --{name} is hidden: there is no loss (more text has one)")
        loss = loss / n if n else math.nan
        right = math.nan if math.isnan(loss) else right  # an argmax over NaN is no guess
        values = {"loss": loss, "accuracy": right / max(1, n), "perplexity": math.exp(min(loss, 700))}
        return {f"{name} {k}": v for k, v in values.items()}

    def save(step: int, *also: Path, background: bool = True) -> dict | None:
        if not folder.writes:
            return None
        loop.update(finite.counts(), scaler=scaler.state_dict(), seconds=time.monotonic() - clock)
        state = checkpoint.pack(kind="roberta", model=model, model_config=asdict(cfg), optimizer=optimizer,
                                loop=loop, seed=args.seed, step=step, best=best, options=config.to_dict(args),
                                meta=meta)  # fmt: skip
        checkpoint.wait()
        checkpoint.prune(folder.path, args.save_total_limit or -1)  # those before this one: all are on disk
        path = folder.path / f"checkpoint-{step}" / place.ckpt if numbered else folder.path / place.ckpt
        if numbered and also and not step:  # before any step only best.pt is wanted, no folder
            path, also = best_path, ()
        checkpoint.save(path, state, also=also, keep=not numbered, background=background)
        if not background:
            checkpoint.prune(folder.path, args.save_total_limit or -1)
        return state

    # -----------------------------------------------------------------------------
    # start

    meta = {"tokenizer": description, "tokenizer_hash": tokens.hash}
    aside = "aside" if args.reset or args.init_from == "scratch" else "continue"
    kept = 1 + (args.save_total_limit or last_step // every)  # with best.pt
    checks = preflight.look(folder.path, d.device, dtype, model, optimizer, tokens=micro_batch * longest, files=kept,
                            resuming=own, given=len(args.given), steps=(first_step, last_step),
                            data=", ".join(f"{name} {len(split):,} sequences" for name, split in splits.items()),
                            tokenizer=vocab.summary(description) if args.check else "",
                            checkpoint=str(path) if resuming else args.init_from or "scratch")  # fmt: skip
    if preflight.report(checks, args.check, d.main):
        return folder.finish()
    if not replaying:
        folder.begin(holds=place.second or aside, resume=own,
                     checkpoints=("checkpoint-*/ckpt.pt", place.ckpt, place.best), written=place.written())  # fmt: skip
    numbered, best_path = Path(place.ckpt).name == place.ckpt, folder.path / place.best
    if folder.writes:
        config.save(args, folder.path / place.config)
        if elsewhere and theirs:
            disk.link(theirs, best_path)  # until there is a better one
    wandb = {"entity": args.wandb_entity, "project": args.project_name, "name": args.run_name}
    track = Tracker(folder.path, folder.writes, last_step, first_step, tensorboard=args.tensorboard_log,
                    wandb=None if args.no_wandb else wandb, names=(place.train_csv, place.eval_csv), csv_log=place.csv,
                    flops=model.flops_per_token(round(train.tokens / len(train))), peak=peak_flops(d.device, d.world),
                    resumes=loop["resumes"], options=config.to_dict(args))  # fmt: skip
    count = sum(p.numel() for p in model.parameters()) / 1e6
    track.say(f"model    {count:.2f} M parameters, {cfg.n_layer} layers x {cfg.n_embd}, {cfg.position} positions")
    for name, split in splits.items():
        track.say(f"{name:<8} {split.path}: {len(split):,} sequences, {split.tokens:,} tokens; {split.cut:,} cut to"
                  f" {longest:,} tokens ({split.lost:,} left out)")  # fmt: skip
        same = name != "train" and split.path.resolve() == train.path.resolve()
        for note in filter(None, (split.note, "these are trained on, too" * same)):
            track.say(f"         note: {note}")
    track.say(f"batch    {B} sequences a step, {d.world} rank(s) x {micro_steps} micro-step(s)")
    track.say(f"machine  {d.device}, {precision}, {compiled}, {torch.get_num_threads()} threads")
    track.say(f"run      {folder.path}, steps {first_step} to {last_step}, {epoch_steps} an epoch, evaluated every"
              f" {every}, ready after {time.monotonic() - started:.1f} s")  # fmt: skip
    clock = time.monotonic() - loop["seconds"]
    seen = 0.0  # tokens since the last log line

    for step in range(first_step, last_step + 1):
        # -----------------------------------------------------------------------------
        # learning rate

        lr = lr_at(step, args.lr_schedule, lr=args.lr, warmup=warmup, total=last_step,
                   min_lr=args.min_lr_ratio * args.lr)  # fmt: skip
        optim.set_lr(optimizer, lr)
        model.redraw(step, args.seed)

        # -----------------------------------------------------------------------------
        # evaluate, save; once more after the last step

        folder.step = step
        if not replaying and (step % every == 0 or step == last_step):
            done = loop["eval"] and loop["eval"]["step"] == step  # a resume finds it in its checkpoint
            values = loop["eval"]["values"] if done else evaluate()
            if values is None:
                save(step, background=False)
                track.close()
                return folder.finish(run.STOPPED)
            better = not done and values["eval loss"] < (math.inf if best is None else best)  # never so for NaN
            best = values["eval loss"] if better else best
            loop["eval"] = {"step": step, "values": values}
            if place.evals:
                track.eval(step, values, "best" if better else "", quiet=bool(done))
            if step < last_step and (better or step and not finite.bad()):
                save(step, *[best_path] * better)
            if step == last_step:
                break
            track.clock(step)
            seen = 0.0

        # -----------------------------------------------------------------------------
        # micro-steps

        which, epoch = batch(step), step // epoch_steps
        micros = []
        for micro in range(micro_steps):
            rng.seed_torch(args.seed, "batch", step, micro * d.world + d.rank)  # for what a masked() of yours draws
            i = (micro * d.world + d.rank) * micro_batch
            micros.append(masked(train, which[i : i + micro_batch], epoch) if i < len(which) else None)
        guesses, real = dist.sums([sum(len(m[n]) for m in micros if m) for n in (3, 0)])  # of the whole global batch
        loss_sum = torch.zeros((), device=d.device)
        for micro, data in enumerate(micros):
            if data is None:  # every rank takes every micro-step
                ids, lengths, _, targets = masked(train, which[:1], epoch)
                data = ids, lengths, np.zeros(0, np.int64), targets[:0]
            ids, lengths, where, targets = data
            if replaying:
                i = (micro * d.world + d.rank) * micro_batch
                text = vocab.readable(description, ids[: lengths[0]].tolist())
                print(preflight.part(d.rank, micro, which[i : i + micro_batch], ids, text))
            rng.seed_torch(args.seed, "dropout", step, micro * d.world + d.rank)
            if d.world > 1:
                net.require_backward_grad_sync = micro == micro_steps - 1
            with autocast:  # DDP averages over ranks; guesses counts the whole global batch
                loss = net(send(ids, d.device), lengths, where, send(targets, d.device)) * d.world / max(1, guesses)
            scaler.scale(loss).backward()
            loss_sum += loss.detach()
        seen += real

        # -----------------------------------------------------------------------------
        # clip, step

        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), args.grad_clip or float("inf"))
        if replaying:
            say(preflight.result(step, dist.sums([loss_sum.item()])[0] / d.world, norm))
            return folder.finish()
        loop["empty"] += not guesses  # a batch without a hidden token trains nothing
        if finite.ok(norm, step, f"sequences {which[:4].tolist()} ..., seed {args.seed}") and guesses:
            scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

        # -----------------------------------------------------------------------------
        # log

        if step % args.log_steps == 0 or step == last_step - 1:
            loss = dist.sums([loss_sum.item()])[0] / d.world
            finite.check(f"data set {args.train}")
            optim.check(optimizer, model, step)
            values = {"loss": loss, "lr": lr, "norm": norm.item(), "epoch": round((step + 1) / epoch_steps, 3)}
            values |= {"memory_mib": round(peak_memory(d.device) / 2**20)} if place.memory else {}
            track.train(step, values, seen / (step + 1 - track.at))
            seen = 0.0
        folder.step = step + 1
        if folder.stopping():
            save(step + 1, background=False)
            track.close()
            return folder.finish(run.STOPPED)

    # -----------------------------------------------------------------------------
    # the final model

    if d.main:
        final = folder.path / "final"
        state = save(last_step, *[final / "ckpt.pt"] * numbered, *[best_path] * better, background=False)
        if numbered:
            say(f"{final}: {export(final, state, args.class_prob)}")
    took = time.monotonic() - clock  # of all legs of the run
    results = {"steps": last_step, "epochs": round(last_step / epoch_steps, 3), "seconds": round(took, 1), **values}
    dist.barrier()
    if args.test:
        if best_path.is_file():
            model.load_state_dict(checkpoint.load(best_path)["model"])
        if (tested := evaluate("test")) is None:
            track.close()
            return folder.finish(run.STOPPED)  # a resume comes here again
        results |= tested
    track.results({k.replace(" ", "_"): v for k, v in results.items()} | {"best_eval_loss": best})
    track.close()
    took, memory = duration(time.monotonic() - started), peak_memory(d.device) / 2**20
    if loop["empty"]:
        track.say(f"{loop['empty']:,} batches had no hidden token and trained nothing")
    lowest = math.nan if best is None else best
    track.say(f"done in {took}: eval loss {values['eval loss']:.4f}, best {lowest:.4f}; peak memory {memory:,.0f} MiB")
    track.say(f"next: python sample.py --init_from={shlex.quote(str(folder.path))} --start='...<mask>...'")
    return folder.finish()


if __name__ == "__main__":
    with run.guard():
        main(config.parse(Options, sys.argv[1:], doc=__doc__))
