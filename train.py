"""Trains GPT-2 language models on token bins.

    python data/python_stdlib/prepare.py                                a data set from Python's own sources
    python train.py --dataset=python_stdlib --out_dir=out/py            train on it
    python train.py --init_from=resume --out_dir=out/py                 go on where it stopped
    torchrun --nproc_per_node=2 train.py --dataset=python_stdlib        on two processes
    python train.py configs/train/small_cpu.yaml --max_iters 500        options from a file, then flags
    python train.py -n NAME -m pretraining                              an experiment: see experiments/README.md
"""

import gc
import shlex
import sys
import time

if __name__ == "__main__":
    gc.disable()  # until run.guard(): looking through all that torch imports takes a tenth of the start

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

import train_args
from core import checkpoint, compiler, config, disk, dist, hf, optim, preflight, rng, run, transfer
from core.generate import generate
from core.progress import duration, progress
from core.schedule import Plateau, lr_at
from core.tracker import Tracker, peak_flops, peak_memory
from data import bins, vocab
from model import GPTConfig, build_gpt
from train_args import FIXED, FREE, Options
from variants import optimizers
from variants.packed import send


def main(args: Options) -> None:
    args = config.made(args)
    if args.list:
        return print(train_args.catalogue(args.list))
    started, replaying = time.monotonic(), args.replay_step is not None
    d = dist.init(args.device, args.backend, timeout=args.timeout)
    say = print if d.main else lambda *a: None

    # -----------------------------------------------------------------------------
    # run directory

    folder = run.claim(args.out_dir, d.main, args)
    if checkpoint.goes_on(folder):
        args.init_from, args.init_from_ckpt = "resume", "ckpt.pt"
    resuming, stored, source, back = args.init_from == "resume", None, None, ""
    if resuming and "init_from" in args.typed and "init_from_ckpt" not in args.typed:
        args.init_from_ckpt = "ckpt.pt"  # of a config.yaml it is where the run began, not what to resume
    if resuming and args.init_from_ckpt != "ckpt.pt":
        stored, path = checkpoint.load(folder.path / args.init_from_ckpt), args.init_from_ckpt
        looking = replaying or args.eval_only or args.sample_only  # it replaces nothing
        if (back := run.beyond(folder.path, stored["step"])) and not looking:  # back to an earlier step
            say(back)
    elif resuming:
        stored, path = checkpoint.newest(args.out_dir)
    train_args.plain_names(vars(args))
    if resuming:
        train_args.plain_names(stored["options"])
        args, changes = config.resume(args, stored["options"], fixed=FIXED, free=FREE)
        before = stored["options"]["batch_size"] * stored["options"]["gradient_accumulation_steps"]
        if args.batch_size * args.gradient_accumulation_steps != before:
            raise ValueError(f"--batch_size x --gradient_accumulation_steps is {before} in the run to resume and cannot"
                             f" become {args.batch_size * args.gradient_accumulation_steps}")  # fmt: skip
        say(checkpoint.going_on(path, stored, d.device))
        for name, (old, new) in changes.items():
            say(f"  {name}: {old} -> {new}")
    train_args.settle(args)
    if args.init_from not in ("scratch", "resume"):
        where = folder.gone_to(args.prev_run_ckpt if args.init_from == "prev_run" else args.init_from)
        if args.init_from == "prev_run" or checkpoint.is_run(where) and "init_from_ckpt" in args.given:
            where = f"{where}/{args.init_from_ckpt}"
        elif checkpoint.is_run(where):
            args.init_from_ckpt = str(checkpoint.find(where).relative_to(where))  # config.yaml means the same one
        source, whole = hf.source(where), args.transfer == ["all"]
        train_args.adopt(args, source, where)

    # -----------------------------------------------------------------------------
    # data

    names, aligned = train_args.datasets(args), args.training_mode == "multicontext"
    sets, names = [bins.open_dataset(name) for name in names], train_args.labels(names)
    known = stored["model_config"] if resuming else source["config"] if source and whole else None
    vocabulary = train_args.vocabularies(args, sets, known)
    streams = [{"name": name, "vocab_size": data.vocab_size, "tokenizer": data.tokenizer}
               for name, data in zip(names, sets, strict=True)]  # fmt: skip
    if resuming:  # before their ids, which may lie beyond the vocabulary as the tokenizer is another
        train_args.check_tokenizers(streams, stored["meta"], path)
    elif source and {"embed", "head"} & set(transfer.wanted(args.transfer)):
        meta = train_args.known_words(source, where)
        train_args.check_tokenizers(streams, meta, where, ", or --transfer attn mlp norm")
    splits = {part: [s.split(part, args.block_size) for s in sets] for part in ("train", "val")}
    here = dist.setting("LOCAL_WORLD_SIZE", 1)  # the ranks of a node share the reading of its files
    for part in splits.values():
        for split in part:
            dist.agree(split.check_ids, d.local_rank, here)
            if d.local_rank == 0:
                split.remember()
        if aligned:
            train_args.check_streams(part, names)
    mix = train_args.mixture(args)  # of one, unless multidataset
    T, B = args.block_size, args.batch_size * args.gradient_accumulation_steps  # B: the batch of all ranks together
    micro_steps, micro_batch = dist.split(B, args.batch_size, d.world)

    counts = [*([split.n for split in splits[part]] for part in ("train", "val")),
              [split.mark() for split in (*splits["train"], *splits["val"])]]  # fmt: skip
    run.same_data(stored["loop"] if resuming else {}, counts, f"the data of {' '.join(names)}",
                  "tokens of train, of val, checksums")  # fmt: skip

    def windows(part: str, k: int, starts):
        """x, y of data set k, (b, T) each; of all aligned streams, (S, b, T)."""
        cut = [split.windows(starts, T) for split in (splits[part] if aligned else [splits[part][k]])]
        x, y = (torch.from_numpy(np.stack(a) if aligned else a[0]) for a in zip(*cut, strict=True))
        return send(x, d.device), send(y, d.device)

    def batch(k: int, turn: int, micro: int):
        """This rank's slice of the turn-th global batch of data set k."""
        purpose = f"train {names[k]}" if mix.n > 1 else "train"
        starts = bins.starts(args.sampling_method, splits["train"][k].n, T, B, args.seed, purpose, turn)
        i = (micro * d.world + d.rank) * micro_batch
        x, y = windows("train", k, starts[i : i + micro_batch])
        if replaying:
            text = vocab.readable(sets[k].tokenizer, x.view(-1, T)[0].tolist())
            print(preflight.part(d.rank, micro, starts[i : i + micro_batch], x, text))
        return x, y

    def stream(k: int) -> dict:
        """Tells the model whose embedding and head to use, where each data set has its own."""
        return {"stream": k} if args.multidataset_wte else {}

    # -----------------------------------------------------------------------------
    # model

    for note in train_args.notes(args, streams):
        say(f"note: {note}")
    meta = {"dataset": " ".join(names), "mode": args.training_mode, "streams": streams, **streams[0]}
    rng.seed_torch(args.seed, "init")
    cfg = train_args.model_config(args, vocabulary) if not resuming else config.build(GPTConfig, known, path)
    cfg.use_gradient_checkpointing = args.use_gradient_checkpointing
    model = build_gpt(cfg)
    if resuming:
        checkpoint.put(model, stored["model"], path)
    elif source:
        for line in transfer.into(model, source["model"], args.transfer, where, source["config"], whole):
            say(line)
    model.to(d.device)
    dtype, precision = dist.precision(args.dtype, d.device)
    autocast = dist.autocast(d.device, dtype)
    scaler = torch.amp.GradScaler(d.device.type, enabled=dtype == torch.float16)
    compiling, compiled = compiler.choose(d.device, args.compile)
    dist.repeatable(d.device, args.deterministic, compiling)
    net = torch.compile(model) if compiling else model
    if d.world > 1:  # without find_unused_parameters buckets are rebuilt, and a resumed run sums in another order
        ids = [d.device.index] if d.device.type == "cuda" else None
        net = DistributedDataParallel(net, device_ids=ids, find_unused_parameters=True)

    # -----------------------------------------------------------------------------
    # optimizer

    groups = optim.groups(model, args.weight_decay, matrices=args.optimizer in optimizers.SPLIT)
    betas = (args.beta1, args.beta2)
    optimizer = optimizers.build(args.optimizer, groups, args.learning_rate, args.weight_decay, betas, device=d.device,
                                 momentum=args.sgd_momentum, extra_args=args.optimizer_args)  # fmt: skip
    rates = train_args.schedule(args)

    # -----------------------------------------------------------------------------
    # resume

    first_step, last_step, best = 0, args.max_iters, None
    loop = {"eval": None, "waited": 0, "resumes": [], "bad_steps": 0, "plateau": None, "scaler": None, "counts": counts,
            "windows": args.eval_iters * args.batch_size}  # fmt: skip
    if resuming:
        first_step = stored["step"]
        theirs = checkpoint.best_of(folder.path / path, stored, "best.pt") if back else None
        best = None if back and not theirs else stored["best"]  # a best without weights would keep worse ones out
        now = {"windows": loop["windows"]} if "eval_iters" in changes else {}  # else as before
        loop.update(stored["loop"] | now)
        loop["resumes"] = [*loop["resumes"], first_step]
        own = optimizers.in_groups(args.optimizer_args, stored["options"]["optimizer_args"])
        optim.load(optimizer, stored["optimizer"], own)
        optimizers.back_to_trained(optimizer)
        if loop["scaler"]:
            scaler.load_state_dict(loop["scaler"])
        run.not_beyond(first_step, last_step, "--max_iters")
        if first_step >= last_step:
            say(f"this run is finished at step {first_step}: a higher --max_iters goes on")
    if args.optimizer_args and (not resuming or "optimizer_args" in changes):
        optimizers.try_step(optimizer, args.optimizer, resuming)
    saved_at = first_step
    if replaying:
        first_step = preflight.step_to_replay(args.replay_step, last_step)
    plateau = Plateau(args.plateau_factor, args.plateau_patience, loop["plateau"])
    if resuming and "turns" in loop and first_step >= saved_at:  # as counted then: a higher --max_iters moves the mix
        turns = np.array(loop["turns"]) + mix.turns(first_step, saved_at)
    else:
        turns = mix.turns(first_step)  # batches that each data set has given
    finite = run.Finite(optimizer, d.device, args.max_bad_steps, loop)
    stored = source = None  # a copy of the model that nobody needs any more

    # -----------------------------------------------------------------------------
    # evaluation, saving, sampling

    @torch.no_grad()
    @optimizers.averaged(optimizer)
    def evaluate() -> dict | None:
        """Mean loss over the same windows each time; None where a signal came in between."""
        model.eval()
        out, share = {}, [1 / len(names)] * len(names) if aligned else mix.at(last_step).tolist()
        for part in splits:
            each = []  # of the data sets, or of the streams
            for k in range(mix.n):
                n = splits[part][k].n
                count, places = loop["windows"], (n - 1) // T  # all of a small split, once each
                method, count = ("sequential", places) if places <= count else ("random", count)
                purpose = f"eval {part} {names[k]}" if mix.n > 1 else f"eval {part}"
                starts = bins.starts(method, n, T, count, args.seed, purpose, 0)
                found = [torch.zeros(len(names) if aligned else (), device=d.device)]  # read at the end: no batch waits
                for i in progress(range(0, len(starts), args.batch_size * d.world), "evaluating", show=d.main):
                    mine = starts[i + d.rank * args.batch_size :][: args.batch_size]
                    if len(mine):
                        x, y = windows(part, k, mine)
                        with autocast:
                            found.append(model(x, y, **stream(k)))
                    if folder.stopping():
                        return None
                total = torch.stack(found).cpu().double().sum(0).flatten().tolist()
                each += [s / (len(starts) * T) for s in dist.sums(total)]
            out[f"{part} loss"] = sum(s * loss for s, loss in zip(share, each, strict=True))
            if len(names) > 1:
                out |= {f"{part} loss {name}": loss for name, loss in zip(names, each, strict=True)}
        model.train()
        return out

    @optimizers.averaged(optimizer)
    def save(step: int, *also: str, background: bool = True, stopped: bool = False) -> None:
        if not folder.writes or args.never_save_checkpoint and not stopped:
            return
        loop.update(finite.counts(), plateau=plateau.state, scaler=scaler.state_dict(), turns=turns.tolist())
        state = checkpoint.pack(kind="gpt", model=model, model_config=vars(model.config), optimizer=optimizer,
                                loop=loop, seed=args.seed, step=step, best=best, options=config.to_dict(args),
                                meta=meta)  # fmt: skip
        also = [folder.path / name for name in also]
        checkpoint.save(folder.path / "ckpt.pt", state, also=also, background=background)

    @optimizers.averaged(optimizer)
    def sample() -> None:
        for k, (x, tokens) in enumerate(prompts):
            with autocast:
                y = generate(model, x, args.max_sample_tokens or 200, temperature=args.temperature, top_k=args.top_k,
                             seed=args.seed, **stream(k))  # fmt: skip
            for name, ids, words in zip(names[k:][: len(tokens)], y.flatten(0, -2).tolist(), tokens, strict=True):
                say(*[f"[{name}]"] * (len(names) > 1), words.decode(ids), "\n---")

    wanted = args.max_sample_tokens or args.sample_each_eval or args.sample_only
    prompts = train_args.prompts(args, streams, splits["val"], d.device) if wanted else []
    if args.sample_only or args.eval_only:
        if args.sample_only or args.sample_each_eval:
            sample()
        for name, value in (evaluate() if args.eval_only else {}).items():
            say(f"{name} {value:.4f}")
        return folder.finish()

    # -----------------------------------------------------------------------------
    # start

    majors = last_step // args.save_major_ckpt_interval if args.save_major_ckpt_interval else 0
    checks = preflight.look(folder.path, d.device, dtype, model, optimizer, tokens=micro_batch * T, resuming=resuming,
                            files=1 if args.never_save_checkpoint else 3 + majors, given=len(args.given),
                            steps=(first_step, last_step),
                            data=", ".join(f"{n} {s.n:,} tokens" for n, s in zip(names, splits["train"], strict=True)),
                            tokenizer=vocab.summary(sets[0].tokenizer) if args.check else "",
                            checkpoint=str(path) if resuming else args.init_from)  # fmt: skip
    if preflight.report(checks, args.check, d.main):
        return folder.finish()
    if not replaying:
        folder.begin(holds="aside", resume=resuming)
    if folder.writes:
        option = "prev_run_ckpt" if args.init_from == "prev_run" else "init_from"
        setattr(args, option, folder.gone_to(getattr(args, option)))
        config.save(args, folder.path / "config.yaml")
    if back and folder.writes and not args.never_save_checkpoint:  # what comes later is left behind, a kill or not
        if theirs:
            disk.link(theirs, folder.path / "best.pt")
        save(first_step, background=False)
        checkpoint.forget(folder.path, first_step)
    wandb = {"project": args.wandb_project, "name": args.wandb_run_name}
    track = Tracker(folder.path, folder.writes, last_step, first_step, tensorboard=args.tensorboard_log,
                    wandb=wandb if args.wandb_log else None, csv_log=args.csv_log,
                    flops=model.flops_per_token(T), peak=peak_flops(d.device, d.world),
                    resumes=loop["resumes"], options=config.to_dict(args))  # fmt: skip
    count = sum(p.numel() for p in model.parameters()) / 1e6
    track.say(f"model    {count:.2f} M parameters, {cfg.n_layer} layers x {cfg.n_embd}, {cfg.position} positions")
    for name, s, train, val in zip(names, sets, splits["train"], splits["val"], strict=True):
        track.say(f"data     {name}: {train.n:,} + {val.n:,} tokens, vocabulary {s.vocab_size:,}")
        if val.lies_in(train):
            track.say(f"         note: {val.paths[0]} lies in {train.paths[0].name}: it is trained on, too")
    track.say(f"batch    {B} x {T} = {B * T:,} tokens a step, {d.world} rank(s) x {micro_steps} micro-step(s)")
    track.say(f"machine  {d.device}, {precision}, {compiled}, {torch.get_num_threads()} threads")
    track.say(f"run      {folder.path}, steps {first_step} to {last_step}, ready after"
              f" {time.monotonic() - started:.1f} s")  # fmt: skip

    for step in range(first_step, last_step + 1):
        # -----------------------------------------------------------------------------
        # learning rate

        k = int(mix.pick(step))  # the data set of this step
        lr = lr_at(step, **rates[k], plateau=plateau.state["scale"])
        optim.set_lr(optimizer, lr)

        # -----------------------------------------------------------------------------
        # evaluate, save; once more after the last step

        folder.step = step
        major = args.save_major_ckpt_interval and step and step % args.save_major_ckpt_interval == 0
        keep = [f"ckpt_{step}.pt"] if major and not finite.bad() else []
        if not replaying and (step % args.eval_interval == 0 or step == last_step):
            done = loop["eval"] and loop["eval"]["step"] == step  # a resume finds it in its checkpoint
            losses = loop["eval"]["losses"] if done else evaluate()
            if losses is None:
                save(step, background=False, stopped=True)
                track.close()
                return folder.finish(run.STOPPED)
            val = losses["val loss"]
            better = not done and val < (float("inf") if best is None else best)  # never so for NaN
            if not done:
                best = val if better else best
                loop["waited"] = 0 if better else loop["waited"] + 1
                plateau.update(val)
                lr = lr_at(step, **rates[k], plateau=plateau.state["scale"])  # as a resume from here would set it
                optim.set_lr(optimizer, lr)
                loop["eval"] = {"step": step, "losses": losses}
            track.eval(step, losses, "best" if better else "", quiet=bool(done))
            last = step == last_step or (args.patience is not None and loop["waited"] >= args.patience)
            wanted = better or args.always_save_checkpoint and not finite.bad()
            if last or wanted and not args.only_save_checkpoint_at_end:
                save(step, *["best.pt"] * better, *keep, background=not last)
                keep = []
            if better and args.max_sample_tokens or args.sample_each_eval and not done and val == val:  # NaN draws none
                sample()
            if last:
                if step < last_step:
                    track.say(f"stopped at step {step}: no better val loss in {args.patience} evaluations")
                break
        if keep:
            save(step, *keep)
        if step % args.eval_interval == 0:
            track.clock(step)

        # -----------------------------------------------------------------------------
        # micro-steps

        loss_sum = 0.0
        for micro in range(micro_steps):
            rng.seed_torch(args.seed, "dropout", step, micro * d.world + d.rank)  # and for a batch() of yours
            x, y = batch(k, int(turns[k]), micro)
            if d.world > 1:
                net.require_backward_grad_sync = micro == micro_steps - 1
            with autocast:
                loss = net(x, y, **stream(k)) * d.world / (B * T)  # DDP averages over ranks; B * T: the global batch
            scaler.scale(loss.mean()).backward()  # over streams, if there are some
            loss_sum = loss_sum + loss.detach()
        turns[k] += 1

        # -----------------------------------------------------------------------------
        # clip, step

        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), args.grad_clip or float("inf"))
        if replaying:
            say(preflight.result(step, sum(dist.sums(loss_sum.flatten().tolist())) / d.world / loss_sum.numel(), norm))
            return folder.finish()
        if finite.ok(norm, step, f"data set {names[k]}, seed {args.seed}"):
            rng.seed_torch(args.seed, "optimizer", step)  # some draw, and all ranks must draw alike
            scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

        # -----------------------------------------------------------------------------
        # log

        if step % args.log_interval == 0 or step == last_step - 1:
            each = [s / d.world for s in dist.sums(loss_sum.flatten().tolist())]
            finite.check(f"data set {names[k]}")
            optim.check(optimizer, model, step)
            values = {"loss": sum(each) / len(each), "lr": lr, "norm": norm.item()}
            values |= {f"loss {n}": loss for n, loss in zip(names, each, strict=True)} if aligned else {}
            values |= {"data": names[k]} if mix.n > 1 else {}
            track.train(step, values, B * T)
        folder.step = step + 1
        if folder.stopping():
            save(step + 1, background=False, stopped=True)
            track.close()
            return folder.finish(run.STOPPED)

    checkpoint.wait()
    track.close()
    took, memory = duration(time.monotonic() - started), peak_memory(d.device) / 2**20
    track.say(f"done in {took}: val loss {val:.4f}, best {best or val:.4f}; peak memory {memory:,.0f} MiB")
    if not args.never_save_checkpoint:
        track.say(f"next: python sample.py --init_from={shlex.quote(str(folder.path))}")
    return folder.finish()


def start(argv: list[str]) -> None:
    """-n NAME -m MODE opens an experiment, which pretrain.py or finetune.py runs; all else is this script's."""
    if {"-n", "-m", "--name", "--mode"} & {word.split("=")[0] for word in argv}:
        from experiments import translate

        return translate.main(argv)
    return main(config.parse(Options, argv, doc=__doc__))


if __name__ == "__main__":
    with run.guard():
        start(sys.argv[1:])
