"""Trains GPT-2 language models on token bins.

    python data/python_stdlib/prepare.py                                a data set from Python's own sources
    python train.py --dataset=python_stdlib --out_dir=out/py            train on it
    python train.py --init_from=resume --out_dir=out/py                 go on where it stopped
    torchrun --nproc_per_node=2 train.py --dataset=python_stdlib        on two processes
    python train.py configs/train/small_cpu.yaml --max_iters 500        options from a file, then flags
"""

import sys
import time

import torch
from torch.nn.parallel import DistributedDataParallel

from core import checkpoint, config, dist, optim, rng, run
from core.generate import generate
from core.schedule import Plateau, lr_at
from core.tracker import Tracker, duration, peak_flops, peak_memory
from data import bins, vocab
from model import GPT, GPTConfig
from train_args import FIXED, FREE, Options, model_config, schedule


def main(args: Options) -> None:
    started = time.time()
    d = dist.init(args.device, args.backend, timeout=args.timeout, deterministic=args.deterministic)
    say = print if d.main else lambda *a: None

    # -----------------------------------------------------------------------------
    # run directory

    folder = run.claim(args.out_dir, d.main)
    resuming, stored, weights, changes = args.init_from == "resume", None, None, {}
    if resuming:
        stored, path = checkpoint.newest(args.out_dir)
        before = stored["options"]["batch_size"] * stored["options"]["gradient_accumulation_steps"]
        args, changes = config.resume(args, stored["options"], fixed=FIXED, free=FREE)
        if args.batch_size * args.gradient_accumulation_steps != before:
            raise ValueError(f"--batch_size x --gradient_accumulation_steps is {before} in the run to resume and cannot"
                             f" become {args.batch_size * args.gradient_accumulation_steps}")  # fmt: skip
        say(f"resuming {path} at step {stored['step']}")
        for name, (old, new) in changes.items():
            say(f"  {name}: {old} -> {new}")

    # -----------------------------------------------------------------------------
    # data

    data = bins.open_dataset(args.dataset)
    splits = {s: data.split(s, args.block_size) for s in ("train", "val")}
    for split in splits.values():
        split.check_ids()
    T, B = args.block_size, args.batch_size * args.gradient_accumulation_steps  # B: the batch of all ranks together
    micro_steps, micro_batch = dist.split(B, args.batch_size, d.world)

    def to_device(x):
        x = torch.from_numpy(x)
        return x.pin_memory().to(d.device, non_blocking=True) if d.device.type == "cuda" else x.to(d.device)

    def batch(step: int, micro: int):
        """This rank's slice of the step's global batch: x, y (micro_batch, T)."""
        starts = bins.starts(args.sampling_method, splits["train"].n, T, B, args.seed, "train", step)
        i = (micro * d.world + d.rank) * micro_batch
        x, y = splits["train"].windows(starts[i : i + micro_batch])
        return to_device(x), to_device(y)

    # -----------------------------------------------------------------------------
    # model

    meta = {"dataset": args.dataset, "vocab_size": data.vocab_size, "tokenizer": data.tokenizer}
    cfg = model_config(args, data.vocab_size)
    rng.seed_torch(args.seed, "init")
    if resuming:
        model = GPT(GPTConfig(**stored["model_config"]))
        model.load_state_dict(stored["model"])
    else:
        model = GPT(cfg)
        if args.init_from != "scratch":
            source = f"{args.prev_run_ckpt}/{args.init_from_ckpt}" if args.init_from == "prev_run" else args.init_from
            weights = checkpoint.load(checkpoint.find(source))
            table = checkpoint.transfer(model, weights["model"], args.transfer, source)
            for part, done, count in table:
                say(f"  {part:<6}{done:<12}{count:>13,} parameters")
    model.to(d.device)
    dtype, precision = dist.precision(args.dtype, d.device)
    autocast = dist.autocast(d.device, dtype)
    scaler = torch.amp.GradScaler(d.device.type, enabled=dtype == torch.float16)
    compiling = d.device.type == "cuda" if args.compile is None else args.compile
    net = torch.compile(model) if compiling else model
    if d.world > 1:  # without find_unused_parameters buckets are rebuilt, and a resumed run sums in another order
        ids = [d.device.index] if d.device.type == "cuda" else None
        net = DistributedDataParallel(net, device_ids=ids, find_unused_parameters=True)

    # -----------------------------------------------------------------------------
    # optimizer

    groups = optim.groups(model, args.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=args.learning_rate, betas=(args.beta1, args.beta2),
                                  fused=optim.fused(d.device))  # fmt: skip
    rates = schedule(args)

    # -----------------------------------------------------------------------------
    # resume

    first_step, last_step, best = 0, args.max_iters, None
    loop = {"eval": None, "waited": 0, "resumes": [], "bad_steps": 0, "plateau": None, "scaler": None}
    if resuming:
        first_step, best = stored["step"], stored["best"]
        loop.update(stored["loop"])
        loop["resumes"] = [*loop["resumes"], first_step]
        optim.load(optimizer, stored["optimizer"])
        if loop["scaler"]:
            scaler.load_state_dict(loop["scaler"])
        if first_step >= last_step:
            say(f"this run is finished at step {first_step}; --max_iters above that goes on")
    plateau = Plateau(args.plateau_factor, args.plateau_patience, loop["plateau"])
    finite = run.Finite(optimizer, d.device, args.max_bad_steps, loop["bad_steps"])
    stored = weights = None  # a copy of the model that nobody needs any more

    # -----------------------------------------------------------------------------
    # evaluation, saving, sampling

    @torch.no_grad()
    def evaluate() -> dict | None:
        """Mean loss over the same windows each time; None where a signal came in between."""
        model.eval()
        out = {}
        for name, split in splits.items():
            count, windows = args.eval_iters * args.batch_size, (split.n - 1) // T  # all of a small split, once each
            method, count = ("sequential", windows) if windows <= count else ("random", count)
            starts = bins.starts(method, split.n, T, count, args.seed, f"eval {name}", 0)
            total = torch.zeros((), dtype=torch.float64)
            for i in range(0, len(starts), args.batch_size * d.world):
                mine = starts[i + d.rank * args.batch_size :][: args.batch_size]
                if len(mine):
                    x, y = split.windows(mine)
                    with autocast:
                        total += model(to_device(x), to_device(y)).double().cpu()
                if folder.stopping():
                    return None
            out[f"{name} loss"] = dist.sums([total.item()])[0] / (len(starts) * T)
        model.train()
        return out

    def save(step: int, *also: str, background: bool = True) -> None:
        if not d.main or args.never_save_checkpoint:
            return
        loop.update(bad_steps=finite.total, plateau=plateau.state, scaler=scaler.state_dict())
        state = checkpoint.pack(kind="gpt", model=model, model_config=vars(model.config), optimizer=optimizer,
                                loop=loop, seed=args.seed, step=step, best=best, options=config.to_dict(args),
                                meta=meta)  # fmt: skip
        names = [folder.path / name for name in also]
        checkpoint.save(folder.path / "ckpt.pt", state, also=names, background=background)

    def sample() -> None:
        tokens = vocab.load(data.tokenizer)
        start = tokens.encode(args.sample_start_tokens.encode().decode("unicode_escape"))
        x = torch.tensor([start], device=d.device)
        with autocast:
            y = generate(model, x, args.max_sample_tokens or 200, temperature=args.temperature, top_k=args.top_k,
                         seed=args.seed)  # fmt: skip
        say(tokens.decode(y[0].tolist()), "\n---")

    if args.sample_only or args.eval_only:
        if args.sample_only:
            sample()
        for name, value in (evaluate() if args.eval_only else {}).items():
            say(f"{name} {value:.4f}")
        return folder.finish()

    # -----------------------------------------------------------------------------
    # start

    folder.begin(holds="aside", resume=resuming)
    if d.main:
        config.save(args, folder.path / "config.yaml")
    track = Tracker(folder.path, d.main, last_step, first_step, csv_log=args.csv_log, tensorboard=args.tensorboard_log,
                    flops=model.flops_per_token(T), peak=peak_flops(d.device), resumes=loop["resumes"],
                    wandb={"project": args.wandb_project, "name": args.wandb_run_name} if args.wandb_log else None,
                    options=config.to_dict(args))  # fmt: skip
    count, kernel = sum(p.numel() for p in model.parameters()) / 1e6, "on" if compiling else "off"
    n_train, n_val = splits["train"].n, splits["val"].n
    track.say(f"model    {count:.2f} M parameters, {cfg.n_layer} layers x {cfg.n_embd}, {cfg.position} positions")
    track.say(f"data     {args.dataset}: {n_train:,} + {n_val:,} tokens, vocabulary {data.vocab_size:,}")
    track.say(f"batch    {B} x {T} = {B * T:,} tokens a step, {d.world} rank(s) x {micro_steps} micro-step(s)")
    track.say(f"machine  {d.device}, {precision}, compile {kernel}, {torch.get_num_threads()} threads")
    track.say(f"run      {folder.path}, steps {first_step} to {last_step}, ready after {time.time() - started:.1f} s")

    for step in range(first_step, last_step + 1):
        # -----------------------------------------------------------------------------
        # learning rate

        lr = lr_at(step, **rates, plateau=plateau.state["scale"])
        optim.set_lr(optimizer, lr)

        # -----------------------------------------------------------------------------
        # evaluate, save; once more after the last step

        folder.step = step
        if step % args.eval_interval == 0 or step == last_step:
            done = loop["eval"] and loop["eval"]["step"] == step  # a resume finds it in its checkpoint
            losses = loop["eval"]["losses"] if done else evaluate()
            if losses is None:
                save(step)
                checkpoint.wait()
                return folder.finish(run.STOPPED)
            val = losses["val loss"]
            better = not done and val < (float("inf") if best is None else best)  # never so for NaN
            if not done:
                best = val if better else best
                loop["waited"] = 0 if better else loop["waited"] + 1
                plateau.update(val)
                loop["eval"] = {"step": step, "losses": losses}
            track.eval(step, losses, "best" if better else "", quiet=bool(done))
            last = step == last_step or (args.patience is not None and loop["waited"] >= args.patience)
            if last or not args.only_save_checkpoint_at_end and (better or args.always_save_checkpoint):
                save(step, *["best.pt"] * better, background=not last)
            if better and args.max_sample_tokens or args.sample_each_eval:
                sample()
            if last:
                break
        if args.save_major_ckpt_interval and step and step % args.save_major_ckpt_interval == 0:
            save(step, f"ckpt_{step}.pt")
        if step % args.eval_interval == 0:
            track.clock(step)

        # -----------------------------------------------------------------------------
        # micro-steps

        loss_sum = torch.zeros((), device=d.device)
        for micro in range(micro_steps):
            x, y = batch(step, micro)
            rng.seed_torch(args.seed, "dropout", step, micro * d.world + d.rank)
            if d.world > 1:
                net.require_backward_grad_sync = micro == micro_steps - 1
            with autocast:
                loss = net(x, y) * d.world / (B * T)  # DDP averages over ranks; B * T counts the whole global batch
            scaler.scale(loss).backward()
            loss_sum += loss.detach()

        # -----------------------------------------------------------------------------
        # clip, step

        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), args.grad_clip or float("inf"))
        if finite.ok(norm, step, f"data set {args.dataset}, seed {args.seed}"):
            scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

        # -----------------------------------------------------------------------------
        # log

        if step % args.log_interval == 0 or step == last_step - 1:
            loss = dist.sums([loss_sum.item()])[0] / d.world
            finite.check(f"data set {args.dataset}")
            track.train(step, {"loss": loss, "lr": lr, "norm": norm.item()}, B * T)
        folder.step = step + 1
        if folder.stopping():
            save(step + 1)
            checkpoint.wait()
            track.close()
            return folder.finish(run.STOPPED)

    checkpoint.wait()
    track.close()
    took, memory = duration(time.time() - started), peak_memory(d.device) / 2**20
    track.say(f"done in {took}: val loss {val:.4f}, best {best:.4f}; peak memory {memory:,.0f} MiB")
    track.say(f"next: python sample.py --init_from={folder.path}")
    folder.finish()
    return None


if __name__ == "__main__":
    with run.guard():
        main(config.parse(Options, sys.argv[1:], doc=__doc__))
