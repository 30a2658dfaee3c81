"""Trains a classifier of texts on a pretrained encoder.

    python data/build_tensors.py --input reviews.csv --label_column label --tokenizer pretrain/tok --out_dir reviews
    python finetune.py --init_from=out_pretrain --train reviews/train.pt --val reviews/val.pt --test reviews/test.pt
    python finetune.py --init_from=resume --out_dir=out_finetune                    go on where it stopped
    python finetune.py --init_from=out_finetune --predict new.csv --out answers.csv
    python finetune.py --init_from=out_finetune --predict labelled.csv --label_column label     and how many are right
    torchrun --nproc_per_node=2 finetune.py configs/finetune/small_cpu.yaml --init_from=out_pretrain

An encoder comes from pretrain.py, from an experiment, or from a folder in Hugging Face's RoBERTa format; its blocks
alone (--transfer attn mlp norm, under a --tokenizer) from any other model.
`python train.py -n NAME -m finetuning` runs an experiment's config.yaml through this loop.
"""

import gc
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

from core import checkpoint, config, dist, files, metrics, optim, preflight, rng, run, transfer
from core.config import option
from core.files import Files
from core.progress import duration, progress
from core.schedule import lr_at
from core.tracker import Tracker, peak_memory
from core.values import Beta, Count, Dropout, Fraction, NonNegative, Positive, Whole
from data import encoding, tensors, vocab
from data.pretrained import check_fit, idle, open_encoder
from data.split import in_both
from model import Classifier, RobertaConfig
from variants.losses import IGNORE
from variants.packed import send


@dataclass
class Options:
    # run
    init_from: str = ""  # run folder, checkpoint, folder in HF format or hub name of an encoder; scratch; resume
    transfer: list[str] = option(["all"])  # parts to take: embed attn mlp norm head all, with layers as in attn:0-3
    out_dir: str = "out_finetune"  # run folder
    seed: int = 420  # for all that is drawn at random
    check: bool = False  # look whether all is ready, and stop: data, tokenizer, checkpoint, disk, memory
    replay_step: Whole | None = None  # show this step's batch, its loss and gradient norm, and stop
    epochs: Count = 2
    max_steps: Count | None = None  # optimizer steps, fewer than the epochs have; None: all

    # data
    train: str = ""  # .pt file with labels, by data/build_tensors.py
    val: str = ""  # the same, to choose the best weights by
    test: str = ""  # the same, evaluated once, at the end, with the best weights
    tokenizer: str = ""  # tokenizer.json or vocab.txt; none: the encoder's own
    max_length: Count | None = None  # tokens a text, longer ones are cut; None: the encoder's; to predict: the run's
    num_labels: Count | None = None  # None: as many as train has
    shuffle: bool = True  # a new order each epoch

    # batch
    batch_size: Count = 16  # texts a micro-step and rank
    gradient_accumulation_steps: Count = 1  # micro-steps an optimizer step

    # model
    pooling: Literal["cls", "mean", "max", "min"] = "cls"  # one vector a text: its first token's, or over its tokens
    pooler_type: Literal["bert", "roberta"] | None = "bert"  # dense, tanh; roberta: dropout first; None: neither
    classifier_dropout: Dropout = 0.1
    model: dict = option({})  # fields of the encoder's config to change, as hidden_dropout=0; from scratch, to set
    freeze: bool = False  # the encoder stands still
    freeze_epochs: Whole = 0  # how long --freeze lasts; 0: the whole run
    freeze_n_layers: Whole = 0  # the first n layers stand still for the whole run
    freeze_embeddings: bool = False  # embeddings stand still for the whole run

    # optimizer
    learning_rate: NonNegative = 2e-4
    head_lr_mult: NonNegative = 1.0  # times learning_rate: pooler and classifier
    backbone_lr_mult: NonNegative = 0.5  # times learning_rate: the encoder
    lr_schedule: Literal["cosine", "linear", "none"] = "cosine"
    warmup_ratio: Fraction = 0.1  # share of the steps
    min_lr_ratio: Fraction = 0.2  # the last learning rate as a share of the highest
    weight_decay: NonNegative = 0.01
    beta1: Beta = 0.9
    beta2: Beta = 0.999
    grad_clip: NonNegative = 1.0  # norm of all gradients; 0: no clipping
    class_weights: list[str] = option([])  # one a label, or `balanced`: by how rare they are in train
    label_smoothing: Fraction = 0.0  # share of the target that is spread over all labels
    max_bad_steps: Count = 10  # steps in a row with loss or gradients not finite before the run stops

    # evaluation and files
    eval_interval: Count | None = None  # steps between evaluations; None: an epoch
    files: Files = field(default_factory=Files)

    # prediction
    predict: str = ""  # label the texts of this file (.csv, .tsv, .jsonl, .parquet, .txt) and stop
    text_column: str = ""  # column of these texts; none: `text`, or the only one
    label_column: str = ""  # column of their true labels, to count how many predictions are right
    out: str = "predictions.csv"  # the file to write

    # logging
    log_interval: Count = 10  # steps
    tensorboard_log: bool = False
    wandb_log: bool = False
    wandb_entity: str | None = None
    wandb_project: str = "finetune"
    wandb_run_name: str | None = None

    # machine
    device: str = "auto"  # cpu, cuda, cuda:N, mps
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    deterministic: bool = False  # bit-exact on GPUs too, slower
    timeout: Positive = 120  # seconds a rank waits for another


# taken from the command at a resume, whatever the stored run says
FREE = ("init_from", "transfer", "out_dir", "check", "replay_step", "predict", "text_column", "label_column", "out",
        "device", "timeout", *files.FREE)  # fmt: skip
FIXED = ("data", "model", "seed")
NEEDS = {  # what acts only beside other options
    "transfer": "--init_from other than scratch|resume",
    "freeze_n_layers freeze_embeddings backbone_lr_mult": "no --freeze, or --freeze_epochs",
    "min_lr_ratio": "--lr_schedule=cosine|linear",
    "out": "--predict",
    "wandb_entity wandb_project wandb_run_name": "--wandb_log",
}
PREDICTING = "init_from out_dir predict out text_column label_column tokenizer max_length device dtype"


# -----------------------------------------------------------------------------
# the model


def stand_still(model: Classifier, args: Options) -> list[torch.nn.Parameter]:
    """Freezes what never trains; returns what --freeze_epochs holds still at first."""
    t, n = model.transformer, len(model.transformer.h)
    if args.freeze_n_layers > n:
        raise ValueError(f"--freeze_n_layers is {args.freeze_n_layers}, the encoder has {n} layers")
    fixed = [*t.h[: args.freeze_n_layers], *([m for k, m in t.items() if k != "h"] if args.freeze_embeddings else [])]
    for module in [t] if args.freeze and not args.freeze_epochs else fixed:
        module.requires_grad_(False)
    return [p for p in t.parameters() if p.requires_grad] if args.freeze and args.freeze_epochs else []


# -----------------------------------------------------------------------------
# training


def main(args: Options) -> None:
    args = config.made(args)
    started, replaying = time.monotonic(), args.replay_step is not None
    args.files.check()
    if not args.init_from:
        raise ValueError("--init_from is missing: an encoder's folder or checkpoint, scratch, or resume")
    if args.predict:
        dist.alone("--predict")
        from data import predictions

        for line in config.unread(args, "predict", PREDICTING):
            print(f"note: {line}")
        source = checkpoint.weights_of(args, "init_from", "out_dir")
        return predictions.write(args.predict, Path(args.out), source, tokenizer=args.tokenizer,
                                 text_column=args.text_column, label_column=args.label_column,
                                 max_length=args.max_length, device=dist.pick_device(args.device, 0),
                                 dtype=args.dtype)  # fmt: skip
    if args.text_column or args.label_column:
        raise ValueError("--text_column and --label_column are for --predict; data/build_tensors.py takes them, too")
    d = dist.init(args.device, timeout=args.timeout)
    say = print if d.main else lambda *a: None

    # -----------------------------------------------------------------------------
    # run directory

    folder = run.claim(args.out_dir, d.main, args)
    if checkpoint.goes_on(folder, args.files.ckpt):
        args.init_from = "resume"
    resuming, stored, place = args.init_from == "resume", None, args.files
    if resuming:
        stored, path = checkpoint.newest(folder.path, place.ckpt)
        args, changes = config.resume(args, stored["options"], fixed=FIXED, free=FREE)
        before, now = stored["loop"]["batch"], args.batch_size * args.gradient_accumulation_steps * d.world
        if {"batch_size", "gradient_accumulation_steps"} & set(changes) and now != before:
            raise ValueError(f"--batch_size x --gradient_accumulation_steps x ranks is {before} in the run to resume"
                             f" and cannot become {now}")  # fmt: skip
        say(checkpoint.going_on(path, stored, d.device))
        for name, (old, new) in changes.items():
            say(f"  {config.said(args, name).removeprefix('--')}: {old} -> {new}")
    elif place.second == "refuse" and not folder.restarted:
        run.refuse(folder.path, (place.ckpt, place.best))
    if args.freeze_epochs and not args.freeze:
        raise ValueError(f"--freeze_epochs {args.freeze_epochs} is how long --freeze lasts, which is off")
    for line in config.idle(args, NEEDS):
        say(f"note: {line}")

    # -----------------------------------------------------------------------------
    # data: after the encoder, whose tokenizer it must be made with

    if resuming:
        cfg, weights, head = stored["model_config"], stored["model"], stored["meta"]["head"]
        description = stored["meta"]["tokenizer"]
    else:
        args.init_from = folder.gone_to(args.init_from)
        cfg, weights, description, head = open_encoder(args.init_from, args.tokenizer, args.transfer)
    where = "--model" if args.model else path if resuming else args.init_from
    there, cfg = cfg, config.build(RobertaConfig, {**cfg, **args.model}, where)
    longest = min(args.max_length or cfg.block_size, cfg.block_size)
    if longest < 3:
        raise ValueError(f"--max_length must be at least 3, for a token between <s> and </s>, got {longest}")
    if longest < (args.max_length or 0):
        say(f"{config.said(args, 'max_length')} {args.max_length} is more than the encoder's {longest} positions: texts"
            " are cut at these")  # fmt: skip
    splits, hash_ = {}, vocab.load(description).hash
    end = encoding.token_id(encoding.load_tokenizer(description), "end")
    for name, file in (("train", args.train), ("val", args.val), ("test", args.test)):
        if file:
            splits[name] = split = tensors.Rows(file, longest, end, cfg.pad_id)
            split.check_tokenizer(hash_, "the encoder")
            split.check_ids(cfg.vocab_size)
        elif name != "test":
            raise ValueError(f"--{name} is missing: a .pt file by data/build_tensors.py")
    train = splits["train"]
    C = args.num_labels or train.classes
    names = train.names or [str(i) for i in range(C)]
    for split in splits.values():
        split.check_labels(C, names, train.path)
    if len(names) != C:
        raise ValueError(f"--num_labels is {C}, {train.path} has the {len(names)} labels {', '.join(names)}")
    share = metrics.class_weights(args.class_weights, train.labels, C)
    B = stored["loop"]["batch"] if resuming else args.batch_size * args.gradient_accumulation_steps * d.world
    micro_steps, micro_batch = dist.split(B, args.batch_size, d.world)
    epoch_steps = -(-len(train) // B)
    counts = {name: splits[name].counts() for name in ("train", "val")}
    run.same_data(stored["loop"] if resuming else {}, counts, "--train or --val", "texts, tokens, checksums")

    def batch(step: int) -> np.ndarray:
        """The step's global batch, all ranks': an epoch's last may be smaller."""
        epoch, place = divmod(step, epoch_steps)
        i = np.arange(place * B, min(len(train), (place + 1) * B))
        which = rng.permute(i, len(train), args.seed, "order", epoch) if args.shuffle else i
        return dist.deal(which, train.length[which], micro_steps * d.world)

    def forward(through, split: tensors.Rows, which: np.ndarray) -> torch.Tensor:
        """Logits (texts, C), float32."""
        ids, lengths = split.rows(which)
        with autocast:
            return through(send(torch.from_numpy(ids), d.device), lengths)  # no tensor: DDP would take it to the GPU

    # -----------------------------------------------------------------------------
    # model

    rng.seed_torch(args.seed, "init")
    model = Classifier(cfg, C, args.pooling, args.pooler_type, args.classifier_dropout)
    if resuming:
        checkpoint.put(model, weights, path)
    elif weights:
        check_fit(model, weights, there, args.init_from, args.transfer)
        if weights.get("classifier.out_proj.weight", torch.empty(C)).shape[0] != C:
            weights = {k: w for k, w in weights.items() if not k.startswith("classifier.")}  # a head for other labels
        elif names != (were := head.get("names", [])) and sorted(names) == sorted(were):  # the same, numbered otherwise
            order = [were.index(name) for name in names]
            weights |= {k: w[order] for k, w in weights.items() if k.startswith("classifier.out_proj.")}
        for line in transfer.into(model, weights, args.transfer, args.init_from, there):
            say(line)
    waking = stand_still(model, args)
    model.to(d.device)
    dtype, precision = dist.precision(args.dtype, d.device)
    autocast = dist.autocast(d.device, dtype)
    scaler = torch.amp.GradScaler(d.device.type, enabled=dtype == torch.float16)
    dist.repeatable(d.device, args.deterministic)
    net = model
    if d.world > 1:  # without find_unused_parameters buckets are rebuilt, and a resumed run sums in another order
        ids = [d.device.index] if d.device.type == "cuda" else None
        net = DistributedDataParallel(net, device_ids=ids, find_unused_parameters=True)
    shares = share.to(d.device)

    # -----------------------------------------------------------------------------
    # optimizer

    groups = optim.groups(model.transformer, args.weight_decay, lr_mult=args.backbone_lr_mult)
    groups += optim.groups(model.classifier, args.weight_decay, lr_mult=args.head_lr_mult)
    groups = [g for g in groups if g["params"]]
    optimizer = torch.optim.AdamW(groups, lr=args.learning_rate, betas=(args.beta1, args.beta2),
                                  fused=optim.fused(d.device))  # fmt: skip

    # -----------------------------------------------------------------------------
    # resume

    first_step, best = 0, None
    limits = {"--epochs": args.epochs * epoch_steps, "--max_steps": args.max_steps}
    last_step, ending, unreached = run.ends(args, limits)
    for line in [*idle(args, cfg), *unreached]:
        say(line)
    if (frozen := args.freeze_epochs * epoch_steps) >= last_step:
        say(f"note: {config.said(args, 'freeze_epochs')} is {frozen} of {last_step} steps: the encoder never trains")
    warmup, every = round(args.warmup_ratio * last_step), args.eval_interval or epoch_steps
    loop = {"eval": None, "resumes": [], "bad_steps": 0, "empty": 0, "scaler": None, "batch": B, "seconds": 0.0,
            "counts": counts}  # fmt: skip
    if resuming:
        first_step, best = stored["step"], stored["best"]
        loop.update(stored["loop"])
        loop["resumes"] = [*loop["resumes"], first_step]
        optim.load(optimizer, stored["optimizer"])
        if loop["scaler"]:
            scaler.load_state_dict(loop["scaler"])
        run.not_beyond(first_step, last_step, ending)
        if first_step >= last_step and run.finished(folder.path):
            message = f"this run is finished at step {first_step}: a higher {ending} goes on"
            if place.second:
                raise ValueError(message)
            say(message)
    if replaying:
        first_step = preflight.step_to_replay(args.replay_step, last_step)
    finite = run.Finite(optimizer, d.device, args.max_bad_steps, loop)
    stored = weights = None  # a copy of the model that nobody needs any more

    # -----------------------------------------------------------------------------
    # evaluation, saving

    @torch.no_grad()
    def evaluate(split: tensors.Rows) -> np.ndarray | None:
        """The logits of all texts; None where a signal came in between."""
        model.eval()
        logits, size = np.empty((len(split), C), np.float32), 4 * args.batch_size
        for i in progress(range(0, len(split), size * d.world), "evaluating", show=d.main):
            mine = np.arange(i + d.rank * size, min(i + (d.rank + 1) * size, len(split)))
            if len(mine):
                logits[mine] = forward(model, split, mine).cpu().numpy()
            if folder.stopping():
                return None
        model.train()
        return dist.whole(logits, size)

    def save(step: int, *also: str, background: bool = True) -> None:
        if not folder.writes:
            return
        loop.update(finite.counts(), scaler=scaler.state_dict(), seconds=time.monotonic() - clock)
        state = checkpoint.pack(kind="classifier", model=model, model_config=vars(cfg), optimizer=optimizer,
                                loop=loop, seed=args.seed, step=step, best=best, options=config.to_dict(args),
                                meta=meta)  # fmt: skip
        also = [folder.path / name for name in also]
        checkpoint.save(folder.path / place.ckpt, state, also=also, background=background)

    # -----------------------------------------------------------------------------
    # start

    head = {"pooling": args.pooling, "pooler_type": args.pooler_type, "names": names, "max_length": train.limit}
    meta = {"tokenizer": description, "tokenizer_hash": hash_, "head": head}
    checks = preflight.look(folder.path, d.device, dtype, model, optimizer, tokens=micro_batch * train.longest, files=3,
                            resuming=resuming, given=len(args.given), steps=(first_step, last_step),
                            data=", ".join(f"{name} {len(split):,} texts" for name, split in splits.items()),
                            tokenizer=vocab.summary(description) if args.check else "",
                            checkpoint=str(path) if resuming else args.init_from)  # fmt: skip
    if preflight.report(checks, args.check, d.main):
        return folder.finish()
    if not replaying:
        folder.begin(holds=place.second or "aside", resume=resuming, checkpoints=(place.ckpt, place.best),
                     written=place.written())  # fmt: skip
    if folder.writes:
        args.init_from = folder.gone_to(args.init_from)
        config.save(args, folder.path / place.config)
    wandb = {"entity": args.wandb_entity, "project": args.wandb_project, "name": args.wandb_run_name}
    track = Tracker(folder.path, folder.writes, last_step, first_step, names=(place.train_csv, place.eval_csv),
                    csv_log=place.csv, unit="text", tensorboard=args.tensorboard_log, resumes=loop["resumes"],
                    wandb=wandb if args.wandb_log else None, options=config.to_dict(args))  # fmt: skip
    count = sum(p.numel() for p in model.parameters()) / 1e6
    moving = sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6
    track.say(f"model    {count:.2f} M parameters, {moving:.2f} M of them train; {cfg.n_layer} layers x"
              f" {cfg.n_embd}, {args.pooling} pooling, pooler {args.pooler_type}, {C} labels")  # fmt: skip
    for name, split in splits.items():
        many = np.bincount(split.labels, minlength=C)
        each = ", ".join(f"{n} {k:,}" for n, k in zip(names, many, strict=True)) if C <= 20 else f"{C} labels"
        n = 0 if split is train else in_both(train.all(), split.all())
        track.say(f"{name:<8} {split.path}: {len(split):,} texts ({each}), {split.cut:,} cut to {longest} tokens"
                  + f", {n:,} of them are in train, too" * bool(n))  # fmt: skip
        if split is train and np.count_nonzero(many) == 1:
            track.say(f"note: all texts of train are {names[many.argmax()]!r}: there is nothing to learn from them")
    track.say(f"batch    {B} texts a step, {d.world} rank(s) x {micro_steps} micro-step(s)")
    track.say(f"steps    {first_step} to {last_step}, {epoch_steps} an epoch, evaluated every {every}")
    track.say(f"machine  {d.device}, {precision}, {torch.get_num_threads()} threads")
    track.say(f"run      {folder.path}, ready after {time.monotonic() - started:.1f} s")
    clock, texts = time.monotonic() - loop["seconds"], 0  # texts since the last log line

    for step in range(first_step, last_step + 1):
        # -----------------------------------------------------------------------------
        # learning rate

        lr = lr_at(step, args.lr_schedule, lr=args.learning_rate, warmup=warmup, total=last_step,
                   min_lr=args.min_lr_ratio * args.learning_rate)  # fmt: skip
        optim.set_lr(optimizer, lr)
        model.redraw(step, args.seed)
        for p in waking:
            p.requires_grad_(step >= frozen)

        # -----------------------------------------------------------------------------
        # evaluate, save; once more after the last step

        folder.step = step
        if not replaying and (step % every == 0 or step == last_step):
            done = loop["eval"] and loop["eval"]["step"] == step  # a resume finds it in its checkpoint
            logits = None if done else evaluate(splits["val"])
            if not done and logits is None:
                save(step, background=False)
                track.close()
                return folder.finish(run.STOPPED)
            values = loop["eval"]["values"] if done else dist.first(metrics.measure(logits, splits["val"].labels)[0])
            better = not done and values["loss"] < (float("inf") if best is None else best)  # never so for NaN
            best = values["loss"] if better else best
            loop["eval"] = {"step": step, "values": values}
            if place.evals:
                track.eval(step, {f"val {k}": v for k, v in values.items()}, "best" if better else "", quiet=bool(done))
            if better or step == last_step or not finite.bad():
                save(step, *[place.best] * better, background=step < last_step)
            if step == last_step:
                break
            track.clock(step)
            texts = 0

        # -----------------------------------------------------------------------------
        # micro-steps

        texts += len(which := batch(step))
        weight = float(share[train.labels[which]].sum())  # of the global batch's texts, by their labels
        loss_sum = torch.zeros((), device=d.device)
        for micro in range(micro_steps):
            rng.seed_torch(args.seed, "dropout", step, micro * d.world + d.rank)
            i = (micro * d.world + d.rank) * micro_batch
            mine = which[i : i + micro_batch]
            if replaying and len(mine):
                text = vocab.readable(description, train.row(mine[0]).tolist())
                print(preflight.part(d.rank, micro, mine, torch.from_numpy(train.rows(mine)[0]), text))
            y = send(torch.from_numpy(train.labels[mine] if len(mine) else np.array([IGNORE])), d.device)
            if d.world > 1:
                net.require_backward_grad_sync = micro == micro_steps - 1
            logits = forward(net, train, mine if len(mine) else which[:1])  # every rank takes every micro-step
            loss = F.cross_entropy(logits, y, shares, reduction="sum", label_smoothing=args.label_smoothing)
            loss = loss * d.world / (weight or 1.0)  # DDP averages over ranks; weight counts the whole global batch
            scaler.scale(loss).backward()
            loss_sum += loss.detach()

        # -----------------------------------------------------------------------------
        # clip, step

        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), args.grad_clip or float("inf"))
        if replaying:
            say(preflight.result(step, dist.sums([loss_sum.item()])[0] / d.world, norm))
            return folder.finish()
        loop["empty"] += not weight  # a batch of labels without weight trains nothing
        if finite.ok(norm, step, f"texts {which[:4].tolist()} ..., seed {args.seed}") and weight:
            scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

        # -----------------------------------------------------------------------------
        # log

        if step % args.log_interval == 0 or step == last_step - 1:
            loss = dist.sums([loss_sum.item()])[0] / d.world
            finite.check(f"data set {args.train}")
            optim.check(optimizer, model, step)
            memory = {"memory_mib": round(peak_memory(d.device) / 2**20)} if place.memory else {}
            track.train(step, {"loss": loss, "lr": lr, "norm": norm.item(), **memory}, texts / (step + 1 - track.at))
            texts = 0
        folder.step = step + 1
        if folder.stopping():
            save(step + 1, background=False)
            track.close()
            return folder.finish(run.STOPPED)

    # -----------------------------------------------------------------------------
    # the test split, once, with the best weights

    checkpoint.wait()
    track.close()
    dist.barrier()  # rank 0 writes the best weights, all read them
    if (folder.path / place.best).is_file():
        model.load_state_dict(checkpoint.load(folder.path / place.best)["model"])
    took = round(time.monotonic() - clock, 1)  # of all legs of the run
    results = {"steps": last_step, "epochs": round(last_step / epoch_steps, 3), "seconds": took, "labels": names}
    for name in [n for n in ("val", "test") if n in splits]:
        if (logits := evaluate(splits[name])) is None:
            return folder.finish(run.STOPPED)  # a resume comes here again
        values, confusion = metrics.measure(logits, splits[name].labels)
        results |= {f"{name}_{k}": v for k, v in values.items()} | {"confusion": confusion.tolist()}
    track.results(results)
    if d.main:
        metrics.draw_confusion(folder.path / "confusion.png", confusion, names, f"{folder.path}, {name}")
    shown = ", ".join(f"{k.replace('_', ' ')} {v:.4f}" for k, v in results.items() if k.startswith(name + "_"))
    took, lowest = duration(time.monotonic() - started), float("nan") if best is None else best
    if loop["empty"]:
        track.say(f"{loop['empty']:,} batches had no label that weighs anything and trained nothing")
    track.say(f"done in {took}: {shown}; best weights by val loss {lowest:.4f}")
    track.say(f"next: python finetune.py --init_from={shlex.quote(str(folder.path))} --predict FILE")
    return folder.finish()


if __name__ == "__main__":
    with run.guard():
        main(config.parse(Options, sys.argv[1:], doc=__doc__))
