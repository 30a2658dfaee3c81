"""Trains GPT-2 models on procedural data: nine tasks, one loop.

    python -m procedural_pretraining.cli --config procedural_pretraining/configs/sort.yaml
    python -m procedural_pretraining.cli --config procedural_pretraining/configs/sort.yaml --preset small
    python -m procedural_pretraining.cli --task reverse --preset small --use_curriculum
    python -m procedural_pretraining.cli --config procedural_pretraining/configs/sort.yaml --resume
    torchrun --nproc_per_node=2 -m procedural_pretraining.cli --task sort --preset small
    python train.py --init_from=out/procedural/sort --transfer attn,mlp,norm     language modelling from there

--preset small lays procedural_pretraining/configs/small.yaml over the config: minutes on a CPU.
"""

import gc
import shlex
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

if __name__ == "__main__":  # as a file, too
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    gc.disable()  # until run.guard(): looking through all that torch imports takes a tenth of the start

import torch
from torch.nn.parallel import DistributedDataParallel

import procedural_data
from core import checkpoint, compiler, config, dist, hf, optim, preflight, rng, run, transfer
from core.config import option
from core.progress import duration, progress
from core.schedule import lr_at, outlasts
from core.tracker import Tracker, peak_flops, peak_memory
from core.values import Beta, Count, Dropout, Fraction, NonNegative, Positive, Whole
from model import GPT, GPTConfig
from procedural_pretraining.judge import averages, draw_scores, judge, show_sample
from procedural_pretraining.settings import FIXED, FREE, NEEDS, lengths, model_config, preset, settle
from variants.packed import send


@dataclass
class Options:
    # task
    task: str = option("sort", choices=procedural_data.TASKS)
    seq_length: Count = 20  # values in a question, tokens in a word of the dyck tasks (there 128)
    vocab_size: Count = 21  # values are 1 to vocab_size - 1; not for the dyck tasks
    k: Count = 16  # kinds of brackets
    p_open: Fraction = 0.5  # probability of an opening bracket
    max_depth: Count = 16  # brackets open at once (dyck_shuffle)
    seed: int = 42  # for all that is drawn at random
    check: bool = False  # look whether all is ready, and stop: task, checkpoint, disk, memory
    replay_step: Whole | None = None  # show this step's batch, its loss and gradient norm, and stop

    # model
    gpt2_size: str = "2_4_16"  # layers_heads_width
    position: str = "learned"  # kinds joined by +: learned rotary sinusoidal alibi none
    use_qk_norm: bool = False  # normalise queries and keys
    dropout: Dropout = 0.1
    init_from: str = "scratch"  # scratch, resume, or a checkpoint or run folder to take weights from
    transfer: list[str] = option(["all"])  # parts to take: embed attn mlp norm head all, with layers as in attn:0-3

    # training
    epochs: Count = 10000  # of steps_per_epoch steps; no sample comes twice, so they only bound the run (dyck: 1000)
    steps_per_epoch: Count = 100  # optimizer steps (dyck: 1000)
    max_steps: Count = 20000  # optimizer steps (dyck: 1,000,000)
    batch_size: Count = 64  # samples a device and micro-step
    gradient_accumulation_steps: Count = 1  # micro-steps a step, on each rank
    lr: NonNegative = 5e-5
    lr_schedule: Literal["cosine", "linear", "constant"] = "cosine"  # down to 0.1 of lr (dyck: constant)
    warmup_steps: Whole = 1000  # optimizer steps (dyck: 0)
    weight_decay: NonNegative = 0.01
    betas: list[Beta] = option([0.9, 0.999])
    max_grad_norm: NonNegative = 1.0  # norm of all gradients; 0: no clipping
    max_bad_steps: Count = 10  # steps in a row with loss or gradients not finite before the run stops

    # curriculum
    use_curriculum: bool = False  # short questions first
    curriculum_start: Count = 2  # the first length
    curriculum_step_size: Count = 2  # the length grows by this at an evaluation that shows mastery
    curriculum_mastery_threshold: Fraction = 0.99  # accuracy (dyck tasks: over the best that the process allows)
    curriculum_step_epochs: Whole = 0  # epochs that each length gets at least

    # evaluation and checkpoints
    save_every_steps: Count = 10  # steps between checkpoints (dyck: 100)
    eval_interval: Count | None = None  # steps between evaluations; None: save_every_steps
    eval_samples: Count = 256  # held-out samples, the same each time
    eval_lengths: list[int] = option([])  # further lengths to evaluate at; above seq_length with rotary positions
    show_samples: Whole = 1  # printed at each evaluation
    save_total_limit: Whole = 1  # checkpoints to keep, the newest in ckpt.pt, others in checkpoint-STEP; 0: all
    patience: Count | None = 50  # evaluations without a better accuracy before the run ends (dyck: none)
    save_dir: str | None = option(None, alias=("out_dir",))  # run folder; None: out/procedural/TASK
    run_name: str | None = None  # a folder in save_dir
    resume: bool = False  # go on where the run in the folder stopped

    # logging
    log_interval: Count = 10  # steps
    wandb_enable: bool = False
    wandb_project: str = "procedural_pretraining"
    wandb_name: str | None = None
    resume_run_id: str | None = None  # id of the wandb run to go on with

    # machine
    device: str = "auto"  # cpu, cuda, N or cuda:N, mps
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    compile: bool | None = None  # torch.compile; None: on CUDA, without a curriculum
    num_workers: Whole = 0  # accepted for older configs: samples are drawn faster than workers could bring them
    backend: str | None = option(None, choices=("nccl", "gloo"))  # between ranks; None: nccl on CUDA, gloo elsewhere
    deterministic: bool = False  # bit-exact on GPUs too, slower
    timeout: Positive = 120  # seconds a rank waits for another


def main(args: Options) -> None:
    args = config.made(args)
    started, replaying = time.monotonic(), args.replay_step is not None
    if args.device.isdigit() and not torch.cuda.is_available():
        print(f"device {args.device}: no CUDA here, the CPU is used", file=sys.stderr)
        args.device = "cpu"
    d = dist.init(args.device, args.backend, timeout=args.timeout)
    say = print if d.main else lambda *a: None

    # -----------------------------------------------------------------------------
    # run directory

    settle(args)
    save_dir = Path(args.save_dir or f"out/procedural/{args.task}")
    if args.run_name:
        save_dir = save_dir / config.safe_name(args.run_name, "run_name")
        if save_dir.is_symlink():
            raise ValueError(f"--run_name {args.run_name} is a link in {save_dir.parent}: a plain folder is wanted")
    folder = run.claim(save_dir, d.main, args)
    resuming, stored = args.resume or args.init_from == "resume" or checkpoint.goes_on(folder), None
    if resuming:
        stored, path = checkpoint.newest(save_dir)
        args, changes = config.resume(args, stored["options"], fixed=FIXED, free=FREE)
        say(checkpoint.going_on(path, stored, d.device))
        for name, (old, new) in changes.items():
            say(f"  {name}: {old} -> {new}")
    for line in config.idle(args, NEEDS):
        say(f"note: {line}")

    # -----------------------------------------------------------------------------
    # data

    spec = procedural_data.Spec(args.task, args.seq_length, args.vocab_size, args.k, args.p_open, args.max_depth)
    path_of_lengths = lengths(args, [n for _, n in stored["loop"]["history"]] if resuming else [])
    specs = {}
    grown = f"--curriculum_start {args.curriculum_start}, --curriculum_step_size {args.curriculum_step_size}"
    for n, cause in [*((n, grown) for n in path_of_lengths), *((n, "--eval_lengths") for n in args.eval_lengths)]:
        try:
            specs[n] = replace(spec, length=n)
        except ValueError as e:
            raise ValueError(f"{cause}: {e}") from None
    for n in (path_of_lengths[0], *args.eval_lengths):
        procedural_data.cut(specs[n])  # refuses a length at which no question could be held out
    longest = max(args.seq_length, *args.eval_lengths, 0)
    if longest > args.seq_length and "learned" in args.position.split("+"):
        raise ValueError(f"eval_lengths {longest} is beyond seq_length {args.seq_length}: that needs --position rotary")
    T_max = procedural_data.rows(specs[longest], args.seed, "val", 0, 1)[0].shape[1] - 1
    B = args.batch_size * args.gradient_accumulation_steps * d.world  # samples a step, over all ranks
    if resuming:
        asked = set(changes) & {"batch_size", "gradient_accumulation_steps"}  # other ranks alone change nothing
        before = stored["meta"]["batch"]
        if asked and before != B:
            raise ValueError(f"--{min(asked)}: the run to resume has a global batch of {before}, not {B}")
        B = before
    micro_steps, micro_batch = dist.split(B, args.batch_size, d.world)

    # -----------------------------------------------------------------------------
    # model

    meta = {"task": args.task, "vocab_size": spec.pad + 1, "batch": B, "tokenizer": None}
    cfg = model_config(args, T_max, spec.pad + 1)
    rng.seed_torch(args.seed, "init")
    if resuming:
        cfg = config.build(GPTConfig, {**stored["model_config"], "block_size": cfg.block_size}, path)
    model = GPT(cfg)
    if resuming:
        checkpoint.put(model, stored["model"], path)
    elif args.init_from != "scratch":
        args.init_from = folder.gone_to(args.init_from)
        found, whole = hf.source(args.init_from), args.transfer == ["all"]
        for line in transfer.into(model, found["model"], args.transfer, args.init_from, found["config"], whole):
            say(line)
    model.to(d.device)
    dtype, precision = dist.precision(args.dtype, d.device)
    autocast = dist.autocast(d.device, dtype)
    scaler = torch.amp.GradScaler(d.device.type, enabled=dtype == torch.float16)
    compiling, compiled = compiler.choose(d.device, args.compile, default=not args.use_curriculum)
    dist.repeatable(d.device, args.deterministic, compiling)
    net = torch.compile(model) if compiling else model
    if d.world > 1:  # without find_unused_parameters buckets are rebuilt, and a resumed run sums in another order
        ids = [d.device.index] if d.device.type == "cuda" else None
        net = DistributedDataParallel(net, device_ids=ids, find_unused_parameters=True)

    # -----------------------------------------------------------------------------
    # optimizer

    groups = optim.groups(model, args.weight_decay)
    betas = optim.pair(args.betas, "--betas")
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=betas, fused=optim.fused(d.device))
    limits = {"--epochs": args.epochs * args.steps_per_epoch, "--max_steps": args.max_steps}
    last_step, ending, unreached = run.ends(args, limits)
    for line in [*unreached, *outlasts(args.warmup_steps, last_step)]:
        say(line)
    rates = {"kind": args.lr_schedule, "lr": args.lr, "warmup": args.warmup_steps, "total": last_step,
             "min_lr": 0.1 * args.lr}  # fmt: skip

    # -----------------------------------------------------------------------------
    # resume

    first_step, best = 0, None
    loop = {"length": path_of_lengths[0], "since": 0, "history": [[0, path_of_lengths[0]]], "eval": None, "waited": 0,
            "resumes": [], "bad_steps": 0, "scaler": None, "best_loss": float("inf")}  # fmt: skip
    if resuming:
        first_step, best = stored["step"], stored["best"]
        loop.update(stored["loop"])
        loop["resumes"] = [*loop["resumes"], first_step]
        optim.load(optimizer, stored["optimizer"])
        if loop["scaler"]:
            scaler.load_state_dict(loop["scaler"])
        run.not_beyond(first_step, last_step, ending)
        if first_step >= last_step:
            say(f"this run is finished at step {first_step}: a higher {ending} goes on")
    if replaying:
        first_step = preflight.step_to_replay(args.replay_step, last_step)
        loop["length"] = [n for since, n in loop["history"] if since <= first_step][-1]
    finite = run.Finite(optimizer, d.device, args.max_bad_steps, loop)
    stored = found = None  # a copy of the model that nobody needs any more

    # -----------------------------------------------------------------------------
    # evaluation, saving

    def evaluate() -> dict | None:
        """On the same held-out samples each time, at the present length and eval_lengths; None where a signal came."""
        now = specs[loop["length"]]
        fair = not args.use_curriculum or procedural_data.teachable(now)  # else no one could go beyond this length
        out, further = {"length": now.length}, [(specs[n], "val", f" {n}") for n in args.eval_lengths]
        size = 4 * args.batch_size  # without gradients there is room, and many answers take no more calls than one
        for at, split, note in [(now, "val" if fair else "probe", ""), *further]:
            total = torch.zeros(7, dtype=torch.float64)
            turns = range(0, args.eval_samples, size * d.world)  # every rank takes every one
            for begin in progress(turns, f"evaluating {at}", show=d.main):
                start = begin + d.rank * size
                n = min(size, args.eval_samples - start)
                if n > 0:
                    row, question = procedural_data.rows(at, args.seed, split, start, n)
                    with autocast:
                        sums, answers = judge(model, at, row, question)
                    total += sums
                for j in range(min(n, args.show_samples - start) if d.main else 0):
                    say(show_sample(at, row[j].tolist(), question, answers[j]))
                if folder.stopping():
                    return None
            out.update({f"{k}{note}": v for k, v in averages(at, dist.sums(total.tolist()), args.eval_samples).items()})
        return out

    def save(step: int, *also: str, background: bool = True) -> None:
        if not folder.writes:
            return
        loop.update(finite.counts(), scaler=scaler.state_dict())
        state = checkpoint.pack(kind="gpt", model=model, model_config=vars(model.config), optimizer=optimizer,
                                loop=loop, seed=args.seed, step=step, best=best, options=config.to_dict(args),
                                meta=meta)  # fmt: skip
        also = [folder.path / name for name in also]
        if args.save_total_limit != 1 and step % args.save_every_steps == 0:
            also.append(folder.path / f"checkpoint-{step}" / "ckpt.pt")
            checkpoint.wait()  # the one before is among those to count
            if not also[-1].exists():  # where a resume began: it takes no other's place
                checkpoint.prune(folder.path, args.save_total_limit - 1)
        checkpoint.save(folder.path / "ckpt.pt", state, also=also, background=background)

    # -----------------------------------------------------------------------------
    # start

    files = 2 + (args.save_total_limit or last_step // args.save_every_steps)
    checks = preflight.look(folder.path, d.device, dtype, model, optimizer, tokens=micro_batch * T_max,
                            resuming=resuming, files=files, given=len(args.given), steps=(first_step, last_step),
                            task=str(spec), checkpoint=str(path) if resuming else args.init_from)  # fmt: skip
    if preflight.report(checks, args.check, d.main):
        return folder.finish()
    if not replaying:
        folder.begin(holds="aside", resume=resuming)
    if folder.writes:
        args.init_from = folder.gone_to(args.init_from)
        config.save(args, folder.path / "config.yaml")
    wandb = {"project": args.wandb_project, "name": args.wandb_name, "id": args.resume_run_id}
    track = Tracker(folder.path, folder.writes, last_step, first_step, unit="sample",
                    flops=model.flops_per_token(T_max) * T_max, peak=peak_flops(d.device, d.world),
                    resumes=loop["resumes"], wandb=wandb if args.wandb_enable else None,
                    options=config.to_dict(args))  # fmt: skip
    count = sum(p.numel() for p in model.parameters()) / 1e6
    track.say(f"model    {count:.2f} M parameters, {cfg.n_layer} layers x {cfg.n_embd}, {cfg.position} positions")
    track.say(f"task     {spec}, {spec.pad + 1} tokens, 1 question in {1 / procedural_data.HELD_OUT:.0f} held out")
    track.say(f"batch    {B} samples a step, {d.world} rank(s) x {micro_steps} micro-step(s)")
    track.say(f"machine  {d.device}, {precision}, {compiled}, {torch.get_num_threads()} threads")
    if args.num_workers:
        track.say(f"data     num_workers {args.num_workers} is not needed: samples are drawn in place")
    track.say(f"run      {folder.path}, steps {first_step} to {last_step}, ready after"
              f" {time.monotonic() - started:.1f} s")  # fmt: skip
    every, score = args.eval_interval or args.save_every_steps, "accuracy" if spec.asks else "mastery"

    for step in range(first_step, last_step + 1):
        # -----------------------------------------------------------------------------
        # learning rate

        lr = lr_at(step, **rates)
        optim.set_lr(optimizer, lr)

        # -----------------------------------------------------------------------------
        # evaluate, grow, save; once more after the last step

        folder.step = step
        better, last = False, step == last_step
        if not replaying and (step % every == 0 or last):
            done = loop["eval"] and loop["eval"]["step"] == step  # a resume finds it in its checkpoint
            scores = loop["eval"]["scores"] if done else evaluate()
            if scores is None:
                save(step, background=False)
                track.close()
                return folder.finish(run.STOPPED)
            if not done:
                better = scores[score] > (-1 if best is None else best)  # never so for NaN
                best = scores[score] if better else best
                loop["waited"] = 0 if better else loop["waited"] + 1
                better |= scores[score] == best and scores["val loss"] < loop["best_loss"]  # learning goes on at 100%
                loop["best_loss"] = scores["val loss"] if better else loop["best_loss"]
                loop["eval"] = {"step": step, "scores": scores}
            track.eval(step, scores, "best" if better else "", quiet=bool(done))
            last = last or (args.patience is not None and loop["waited"] >= args.patience)
            mastered = not done and scores[score] >= args.curriculum_mastery_threshold
            rested = step - loop["since"] >= args.curriculum_step_epochs * args.steps_per_epoch
            if mastered and rested and loop["length"] < args.seq_length:
                loop["length"] = min(loop["length"] + args.curriculum_step_size, args.seq_length)
                loop.update(since=step, waited=0, history=[*loop["history"], [step, loop["length"]]])
                best, last = None, step == last_step
                track.say(f"curriculum: length {loop['length']} from step {step} on")
        if better or last or step % args.save_every_steps == 0 and not finite.bad():
            save(step, *["best.pt"] * better, background=not last)
        if last:
            if step < last_step:
                track.say(f"stopped at step {step}: no better {score} in {args.patience} evaluations")
            break
        if step % every == 0 or step % args.save_every_steps == 0:
            track.clock(step)

        # -----------------------------------------------------------------------------
        # micro-steps

        X, Y = procedural_data.batch(specs[loop["length"]], args.seed, "train", step * B, B)  # of all ranks
        n_valid = int((Y >= 0).sum())
        loss_sum = torch.zeros((), device=d.device)
        for micro in range(micro_steps):
            rng.seed_torch(args.seed, "dropout", step, micro * d.world + d.rank)
            mine = slice((micro * d.world + d.rank) * micro_batch, (micro * d.world + d.rank + 1) * micro_batch)
            x, y = (send(torch.from_numpy(a[mine]), d.device) for a in (X, Y))
            if replaying:
                places = range(step * B + mine.start, step * B + mine.stop)
                print(preflight.part(d.rank, micro, places, x, " ".join(map(str, X[mine][0]))))
            if d.world > 1:
                net.require_backward_grad_sync = micro == micro_steps - 1
            with autocast:
                loss = net(x, y) * d.world / n_valid  # DDP averages over ranks; n_valid counts the whole global batch
            scaler.scale(loss).backward()
            loss_sum += loss.detach()

        # -----------------------------------------------------------------------------
        # clip, step

        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm or float("inf"))
        if replaying:
            say(preflight.result(step, dist.sums([loss_sum.item()])[0] / d.world, norm))
            return folder.finish()
        if finite.ok(norm, step, f"{specs[loop['length']]}, seed {args.seed}"):
            scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

        # -----------------------------------------------------------------------------
        # log

        if step % args.log_interval == 0 or step == last_step - 1:
            loss = dist.sums([loss_sum.item()])[0] / d.world
            finite.check(str(specs[loop["length"]]))
            optim.check(optimizer, model, step)
            values = {"loss": loss, "lr": lr, "norm": norm.item()}
            track.train(step, {**values, "length": loop["length"]} if args.use_curriculum else values, B)
        folder.step = step + 1
        if folder.stopping():
            save(step + 1, background=False)
            track.close()
            return folder.finish(run.STOPPED)

    checkpoint.wait()
    track.close()
    if folder.writes:
        draw_scores(folder.path)
    took, memory = duration(time.monotonic() - started), peak_memory(d.device) / 2**20
    what = f"{score} {scores[score]:.4f} at length {scores['length']}"
    track.say(f"done in {took}: {what}; peak memory {memory:,.0f} MiB")
    place = shlex.quote(str(folder.path))
    track.say(f"next: python train.py --init_from={place} --transfer attn,mlp,norm --dataset=NAME")
    return folder.finish()


if __name__ == "__main__":
    with run.guard():
        main(config.parse(Options, preset(sys.argv[1:]), doc=__doc__))
