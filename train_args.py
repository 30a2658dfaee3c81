"""Every option of train.py: its name, default and unit. `python train.py --help` prints this page."""

import hashlib
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from core import transfer
from core.config import idle, option
from core.schedule import SCHEDULES, SHAPES
from core.values import Beta, Count, Dropout, Fraction, NonNegative, Positive, Whole
from data import vocab
from data.mixture import TRANSITIONS, Mixture
from model import GPTConfig
from variants.activations import ACTIVATIONS
from variants.attentions import ATTENTIONS
from variants.mlps import MLPS
from variants.norms import NORMS
from variants.optimizers import BARE, OPTIMIZERS, TORCH, TWO_RATES, UNSCHEDULED, ignored, own_rate
from variants.positions import POSITIONS
from variants.softmaxes import SOFTMAXES


@dataclass
class Options:
    # run
    out_dir: str = "out"  # run folder: config.yaml, CSV files, checkpoints, loss.png
    init_from: str = "scratch"  # scratch, resume, prev_run, a checkpoint or run folder, gpt2*, a folder in HF format
    gpt2_type: Literal["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"] = "gpt2"  # which one --init_from=gpt2 is
    prev_run_ckpt: str = "out"  # run folder that --init_from=prev_run takes its weights from
    init_from_ckpt: str = "ckpt.pt"  # checkpoint file in that folder; given with resume, the one to go on from
    transfer: list[str] = option(["all"])  # parts to take: embed attn mlp norm head all, with layers as in attn:0-3
    seed: int = 1337  # for all that is drawn at random
    eval_only: bool = False  # evaluate and stop
    check: bool = False  # look whether all is ready, and stop: data, tokenizer, checkpoint, disk, memory
    replay_step: Whole | None = None  # show this step's batch, its loss and gradient norm, and stop
    max_iters: Whole = 3500  # optimizer steps

    # data
    dataset: str = "shakespeare_char"  # a folder in data/, or an absolute path
    sampling_method: Literal["random", "sequential", "without_replacement"] = "random"  # how windows are drawn
    training_mode: Literal["single", "multidataset", "multicontext"] = "single"  # one data set; one a step; all at once
    dataset_list: list[str] = option([])  # multidataset: each step trains on one of these
    dataset_sampling_probs: list[NonNegative] | None = None  # of each, in any unit; None: all alike
    dataset_sampling_probs_final: list[NonNegative] | None = None  # at the end of the run; None: they stay
    dataset_sampling_probs_transition_method: Literal[TRANSITIONS] = "linear"  # on the way there
    dataset_interleaving: bool = False  # in turn: the probs say how many batches of each, 1 3 2 gives a b b b c c
    dataset_interleaving_shuffle: bool = False  # in a new order each round
    multidataset_wte: bool = False  # an embedding and a head for each data set; else one vocabulary, the largest
    multicontext_datasets: list[str] = option([])  # multicontext: aligned streams, an embedding and a head each
    multicontext: bool = False  # the same as --training_mode=multicontext
    vocab_sizes: list[Count] | None = None  # of the streams, if you want them checked

    # batch
    batch_size: Count = 64  # sequences a micro-step
    gradient_accumulation_steps: Count = 1  # micro-steps an optimizer step, over all ranks

    # model
    block_size: Count = 256  # tokens of context
    n_layer: Count = 6
    n_head: Count = 6
    n_kv_group: Count | None = None  # key and value heads (grouped-query attention); None: n_head
    n_embd: Count = 384  # width
    dropout: Dropout = 0.0
    bias: bool = False  # in linear layers and norms
    mlp_expansion_factor: Positive = 4  # hidden width as a multiple of n_embd
    mlp_size: Count | None = None  # hidden width itself
    wte_weight_tying: bool = True  # the head shares the embedding's weights
    window_size: Count | None = None  # tokens a token sees, itself included (sliding window)
    use_qk_norm: bool = False  # normalise queries and keys
    use_rotary_embeddings: bool = False  # rotary positions
    use_abs_pos_embeddings: bool = True  # learned absolute positions
    position: str = ""  # kinds joined by +, in place of the two switches: learned sinusoidal rotary alibi none
    rope_base: Positive = 10000.0  # rotary, sinusoidal positions: the slowest pair turns by 1 / base a token
    norm_variant_attn: str = option("layernorm", choices=NORMS)  # inside blocks
    norm_variant_output: str = option("layernorm", choices=NORMS)  # before the head
    norm_eps: Positive = 1e-5  # added to variances
    activation_variant: str = option("gelu", choices=ACTIVATIONS)
    mlp_variant: str = option("mlp", choices=MLPS)
    softmax_variant_attn: str = option("softmax", choices=SOFTMAXES)
    attention_variant: str = option("causal", choices=ATTENTIONS)
    use_parallel_mlp: bool = False  # attention and MLP side by side
    use_pre_ln: bool = True  # a norm before each part
    use_peri_ln: bool = False  # a norm on what each part adds
    use_post_ln: bool = False  # a norm after each sum
    attn_logit_softcapping: Positive | None = None  # attention scores stay within +- this
    final_logit_softcapping: Positive | None = None  # logits stay within +- this

    # optimization
    optimizer: str = option("adamw", choices=OPTIMIZERS)  # --list optimizers names them
    optimizer_args: dict = option({})  # its own arguments: momentum=0.9 nesterov=true; muon_lr=0.02 for hidden matrices
    sgd_momentum: Fraction = 0.9  # of sgd
    learning_rate: NonNegative = 1e-3
    dataset_sampling_learning_rate: list[NonNegative] | None = None  # multidataset: that of each data set
    weight_decay: NonNegative = 1e-1
    beta1: Beta = 0.9
    beta2: Beta = 0.99
    grad_clip: NonNegative = 1.0  # norm of all gradients; 0: no clipping
    max_bad_steps: Count = 10  # steps in a row with loss or gradients not finite before the run stops

    # schedule
    lr_scheduler: str = option("none", choices=SCHEDULES)
    decay_lr: bool = False  # with lr_scheduler none: cosine
    warmup_iters: Whole = 100  # steps
    lr_decay_iters: Whole = 3500  # step at which min_lr is reached
    lr_decay_match_max_iters: bool = True  # lr_decay_iters = max_iters
    min_lr: NonNegative = 1e-4
    exponential_gamma: Fraction = 0.9  # factor a step
    step_lr_size: Count = 1000  # steps
    step_lr_gamma: Fraction = 0.1  # factor each step_lr_size
    plateau_factor: Fraction = 0.1
    plateau_patience: Whole = 10  # evaluations without a better loss
    wsd_decay_frac: Fraction = 0.2  # share of the steps after warmup, the last ones, in which the rate falls

    # evaluation and checkpoints
    eval_interval: Count = 250  # steps
    eval_iters: Count = 200  # batches of batch_size an evaluation, the same each time
    patience: Count | None = None  # evaluations without a better loss before the run ends
    always_save_checkpoint: bool = False  # at each evaluation, not only at a new best
    only_save_checkpoint_at_end: bool = False
    never_save_checkpoint: bool = False
    save_major_ckpt_interval: Count | None = None  # steps; keeps ckpt_STEP.pt as well

    # sampling
    max_sample_tokens: Count | None = None  # tokens to sample at each new best
    sample_each_eval: bool = False  # at every evaluation
    sample_start_tokens: str = "\n"  # text to go on from; \n and the like are decoded
    temperature: NonNegative = 0.8  # 0: the most likely
    top_k: Count | None = 200
    sample_only: bool = False  # sample from --init_from and stop

    # logging
    log_interval: Count = 10  # steps
    csv_log: bool = True  # train.csv, eval.csv and loss.png
    tensorboard_log: bool = False
    wandb_log: bool = False
    wandb_project: str = "train"
    wandb_run_name: str | None = None

    # machine
    device: str = "auto"  # cpu, cuda, cuda:N, mps
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    compile: bool | None = None  # torch.compile; None: on CUDA only
    use_gradient_checkpointing: bool = False  # recompute blocks in the backward pass: less memory, more time
    backend: str | None = option(None, choices=("nccl", "gloo"))  # between ranks; None: nccl on CUDA, gloo elsewhere
    deterministic: bool = False  # bit-exact on GPUs too, slower
    timeout: Positive = 120  # seconds a rank waits for another

    # names
    list: str | None = option(None, choices=("optimizers", "schedules", "variants"))  # print what there is, and stop


# taken from the command at a resume, whatever the stored run says
FREE = ("out_dir", "init_from", "gpt2_type", "prev_run_ckpt", "init_from_ckpt", "transfer", "eval_only", "sample_only",
        "check", "replay_step", "device", "backend", "timeout", "list")  # fmt: skip
FIXED = ("data", "model", "seed", "optimizer")
# what acts only beside other options
SAMPLING = "--max_sample_tokens, or --sample_each_eval, or --sample_only"
FALLING = f"--lr_scheduler={'|'.join(SHAPES)}"
NORMED = "--norm_variant_attn other than none"
# from the tables, so that a line added to one is known here
GATED = "|".join(name for name, make in MLPS.items() if hasattr(make, "gate"))  # these bring an activation
TURNING = "|".join(name for name in POSITIONS if name not in ("learned", "alibi", "none"))
BETALESS, DECAYLESS = ("|".join(n for n in TORCH if what in ignored(n)) for what in ("beta1", "weight_decay"))
NEEDS = {
    "activation_variant": f"--mlp_variant other than {GATED}",
    "use_pre_ln use_peri_ln use_post_ln": NORMED,
    "norm_variant_attn": "--use_pre_ln, or --use_peri_ln, or --use_post_ln",
    "norm_eps": f"{NORMED}, or --norm_variant_output other than none, or --use_qk_norm",
    "transfer": "--init_from other than scratch|resume",
    "init_from_ckpt": "--init_from other than scratch",
    "dataset": "--training_mode=single",
    "dataset_sampling_probs_transition_method": "--dataset_sampling_probs_final",
    "prev_run_ckpt": "--init_from=prev_run",
    "mlp_expansion_factor": "no --mlp_size",
    "use_rotary_embeddings use_abs_pos_embeddings": "no --position",
    "rope_base": f"--use_rotary_embeddings, or --position={TURNING}",
    "learning_rate": f"no --dataset_sampling_learning_rate, or --optimizer={'|'.join(TWO_RATES)}",
    "sgd_momentum": "--optimizer=sgd",
    "beta1 beta2": f"--optimizer other than {BETALESS}",
    "weight_decay": f"--optimizer other than {DECAYLESS}",
    "decay_lr": "--lr_scheduler=none",
    "lr_decay_iters lr_decay_match_max_iters": f"{FALLING}, or --decay_lr",
    "min_lr": f"{FALLING}|exponential|step|plateau, or --decay_lr",
    "exponential_gamma": "--lr_scheduler=exponential",
    "step_lr_size step_lr_gamma": "--lr_scheduler=step",
    "plateau_factor plateau_patience": "--lr_scheduler=plateau",
    "wsd_decay_frac": "--lr_scheduler=wsd",
    "sample_start_tokens temperature top_k": SAMPLING,
    "wandb_project wandb_run_name": "--wandb_log",
}


def catalogue(what: str) -> str:
    """What --list prints."""
    axes = {"norm_variant_attn, norm_variant_output": NORMS, "activation_variant": ACTIVATIONS, "mlp_variant": MLPS,
            "position": POSITIONS, "attention_variant": ATTENTIONS, "softmax_variant_attn": SOFTMAXES}  # fmt: skip
    sources = {"torch": "torch", "pytorch_optimizer": "pip install pytorch_optimizer"}
    pages = {
        "optimizers": {note: [n for n, s in OPTIMIZERS.items() if s == key] for key, note in sources.items()},
        "schedules": {"lr_scheduler": SCHEDULES},
        "variants": axes,
    }
    return "\n".join(f"{title}:\n  {' '.join(names)}" for title, names in pages[what].items())


# -----------------------------------------------------------------------------
# data


def settle(args: Options) -> None:
    """Settles the mode and which gpt2 is meant; refuses an option of another mode, which would act nowhere."""
    if args.multicontext:
        if "training_mode" in args.given and args.training_mode != "multicontext":
            raise ValueError(f"--multicontext and --training_mode={args.training_mode} contradict each other")
        args.training_mode = "multicontext"
    needs = {"multidataset": ("dataset_list",), "multicontext": ("multicontext_datasets",)}
    own = {"multidataset": [f.name for f in fields(args) if f.name.startswith(("dataset_", "multidataset_"))],
           "multicontext": ["multicontext_datasets", "vocab_sizes"]}  # fmt: skip
    for mode, names in own.items():
        for name in names:
            value = getattr(args, name)
            if args.training_mode != mode and value and value != Options.__dataclass_fields__[name].default:
                raise ValueError(f"--{name} needs --training_mode={mode}")
            if args.training_mode == mode and name in needs[mode] and len(value) < 2:
                raise ValueError(f"--training_mode={mode} needs two or more data sets in --{name}, got {value}")
    rates = args.dataset_sampling_learning_rate
    if rates and len(rates) != len(args.dataset_list):
        raise ValueError(f"--dataset_sampling_learning_rate must name one rate a data set: {len(rates)} for"
                         f" {len(args.dataset_list)}")  # fmt: skip
    if args.dataset_interleaving_shuffle and not args.dataset_interleaving:
        raise ValueError("--dataset_interleaving_shuffle needs --dataset_interleaving")
    if args.init_from == "gpt2":
        args.init_from = args.gpt2_type
    elif args.gpt2_type != "gpt2" and args.init_from not in (args.gpt2_type, "resume"):
        raise ValueError(f"--gpt2_type={args.gpt2_type} needs --init_from=gpt2, got --init_from={args.init_from}")


def notes(args: Options, streams: list[dict]) -> list[str]:
    """What is allowed and probably not meant."""
    out, default = idle(args, NEEDS), Options.__dataclass_fields__["lr_decay_iters"].default
    if OPTIMIZERS[args.optimizer] != "torch":  # what torch's own take is in NEEDS
        out += [f"--{name} does nothing here: {args.optimizer} has no such argument; --optimizer_args gives it its own"
                for name in ignored(args.optimizer)
                if name in args.given and getattr(args, name) != getattr(Options, name)]  # fmt: skip
    for name, own in (("sgd_momentum", "momentum"), ("beta1", "betas"), ("beta2", "betas")):
        acts = own in args.optimizer_args and (own != "momentum" or args.optimizer == "sgd")  # else NEEDS says it
        if acts and name in args.given and getattr(args, name) != getattr(Options, name):
            out.append(f"--{name} does nothing here: --optimizer_args {own} goes before it")
    moves = args.warmup_iters or any(s["kind"] != "none" for s in schedule(args))
    if args.optimizer in UNSCHEDULED and moves:
        out.append(f"--optimizer={args.optimizer} {UNSCHEDULED[args.optimizer]}: use --warmup_iters=0 and"
                   " --lr_scheduler=none")  # fmt: skip
    if args.optimizer in BARE:
        out.append(f"--optimizer={args.optimizer} is {BARE[args.optimizer]}")
    rate = own_rate(args.optimizer)
    if rate and rate > 10 * args.learning_rate and not {"learning_rate", "dataset_sampling_learning_rate"} & args.given:
        out.append(f"--learning_rate is {args.learning_rate:g} where none is given; {args.optimizer}'s own is {rate:g}")
    if args.lr_decay_match_max_iters and args.lr_decay_iters not in (default, args.max_iters):
        out.append(f"--lr_decay_iters {args.lr_decay_iters} is not used, as --lr_decay_match_max_iters makes it"
                   f" --max_iters, {args.max_iters}")  # fmt: skip
    if 0 < args.max_iters <= args.warmup_iters:
        within = f"the {args.max_iters} steps of --max_iters are all within --warmup_iters {args.warmup_iters}"
        if schedule(args)[0]["kind"] != "none":
            name = "decay_lr" if args.lr_scheduler == "none" else "lr_scheduler"
            out.append(f"--{name} does nothing here: {within}")
        elif "learning_rate" in args.given:
            out.append(f"the rate does not get to --learning_rate {args.learning_rate:g}: {within}")
    if low := [s["lr"] for s in schedule(args) if s["kind"] != "none" and s["lr"] <= args.min_lr]:
        out.append(f"the rate stays at {low[0]:g} after warmup: --min_lr {args.min_lr:g} is no less")
    if args.window_size and args.window_size >= args.block_size and "window_size" in args.given:
        out.append(f"--window_size {args.window_size} does nothing here: the context is --block_size {args.block_size}")
    others = args.save_major_ckpt_interval or args.always_save_checkpoint or args.only_save_checkpoint_at_end
    if args.never_save_checkpoint and others:
        out.append("--never_save_checkpoint: the other options to save act on nothing")
    if args.only_save_checkpoint_at_end and args.always_save_checkpoint:
        out.append("--always_save_checkpoint does nothing here: --only_save_checkpoint_at_end saves once")
    if args.eval_only or args.sample_only:
        mode, samples = "eval_only" if args.eval_only else "sample_only", args.sample_only or args.sample_each_eval
        names = ["wandb_log", "tensorboard_log", *["max_sample_tokens"] * (not samples)]
        out += [f"--{name} does nothing here: --{mode} prints, and has no new best"
                for name in names if name in args.given and getattr(args, name)]  # fmt: skip
    if args.training_mode == "multicontext" and args.sample_start_tokens != Options.sample_start_tokens:
        out.append("--sample_start_tokens does nothing here: streams begin with the first token of their val data")
    tokenizers = {json.dumps(s["tokenizer"], sort_keys=True) for s in streams}
    if args.training_mode == "multidataset" and not args.multidataset_wte and len(tokenizers) > 1:
        out.append("data sets of different tokenizers share one embedding; --multidataset_wte gives each its own")
    return out


def plain_names(options: dict) -> None:
    """data/NAME and NAME/ are NAME, so that a resume may write it another way."""

    def plain(name: str) -> str:
        parts = Path(name).parts
        return str(Path(*parts[parts[0] == "data" and len(parts) > 1 :])) if parts else name

    for key in {"dataset", "dataset_list", "multicontext_datasets"} & options.keys():  # another script's has none
        names = options[key]
        options[key] = plain(names) if isinstance(names, str) else [plain(n) for n in names]


def datasets(args: Options) -> list[str]:
    return {"single": [args.dataset], "multidataset": args.dataset_list,
            "multicontext": args.multicontext_datasets}[args.training_mode]  # fmt: skip


def labels(names: list[str]) -> list[str]:
    """The data sets' names in logs and draws: the last part of each path, if these differ; x, x-2 if x comes twice."""
    short = [Path(n).name for n in names]
    names = short if len(set(short)) == len(set(names)) else names
    return [f"{n}-{before + 1}" if (before := names[:i].count(n)) else n for i, n in enumerate(names)]


def mixture(args: Options) -> Mixture:
    n = len(args.dataset_list) if args.training_mode == "multidataset" else 1
    return Mixture(n, args.dataset_sampling_probs, args.dataset_sampling_probs_final,
                   args.dataset_sampling_probs_transition_method, args.dataset_interleaving,
                   args.dataset_interleaving_shuffle, args.max_iters, args.seed)  # fmt: skip


def vocabularies(args: Options, sets: list, known: dict | None) -> dict:
    """vocab_size and vocab_sizes of the model: those of the data, or those of the weights that it starts from."""
    own = args.training_mode == "multicontext" or args.multidataset_wte
    sizes = [s.vocab_size for s in sets]
    if args.vocab_sizes and args.vocab_sizes != sizes:
        raise ValueError(f"--vocab_sizes are {args.vocab_sizes}, the data sets' are {sizes}")
    limits = sizes if own else [max(sizes)] * len(sets)
    if known:
        theirs = known.get("vocab_sizes")
        if bool(theirs) != own or (own and len(theirs) != len(sets)):
            raise ValueError(f"the weights have vocabularies of {theirs or known['vocab_size']}, the data {sizes}")
        limits = theirs if own else [known["vocab_size"]] * len(sets)
    rest = "" if args.init_from == "resume" else " (--transfer attn mlp norm takes the rest)"
    for data, limit in zip(sets, limits, strict=True):
        if limit < data.vocab_size:  # an id beyond is found when the ids are checked
            data.vocab_size, data.limited = limit, f" in the weights to start from{rest}"
    return {"vocab_size": max(limits), "vocab_sizes": list(limits) if own else None}


def check_streams(splits: list, names: list[str]) -> None:
    """Aligned streams have a token for each token of the others."""
    if len({s.n for s in splits}) > 1:
        found = ", ".join(f"{name} {s.n:,}" for name, s in zip(names, splits, strict=True))
        raise ValueError(f"the streams of --multicontext_datasets must be equally long, {splits[0].name} has: {found}")


def known_words(source: dict, where: str) -> dict:
    """What tells the tokenizer of weights: a checkpoint's meta, or the tokenizer in a folder for transformers."""
    from data import pretrained

    if source["meta"]:
        return source["meta"]
    try:
        about = pretrained.tokenizer_of(where, source)
        return {"tokenizer": about and vocab.load(about).describe()}
    except ValueError:  # none is there, or one of another library
        return {}


def check_tokenizers(streams: list[dict], meta: dict, where: str, or_else: str = "") -> None:
    """Weights know ids, not words: with another tokenizer they would read nonsense."""

    def digest(about: dict) -> str:
        about = {k: v for k, v in about.items() if k != "merges" or about.get("name") != "gpt2"}
        return f"{about['kind']}, {hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]}"

    before = meta.get("streams") or [meta]
    # as many: each its own, in this order; else all share one vocabulary, with one or some tokenizers
    allowed = [[then] for then in before] if len(before) == len(streams) else [before] * len(streams)
    for now, those in zip(streams, allowed, strict=True):
        ours, theirs = now["tokenizer"], [then["tokenizer"] for then in those if then.get("tokenizer")]
        if ours and theirs and not any(digest(ours) == digest(t) or vocab.alike(ours, t) for t in theirs):
            raise ValueError(f"the tokenizer of {now['name']} ({digest(ours)}) is not that of {where}"
                             f" ({'; '.join(map(digest, theirs))}): use it for the data (prepare.py --tokenizer takes a"
                             f" data set's folder, too){or_else}")  # fmt: skip


def prompts(args: Options, streams: list[dict], val: list, device: torch.device) -> list[tuple[torch.Tensor, list]]:
    """What samples go on from: (ids, tokenizers), one for each data set, or one of all aligned streams.

    A start text means nothing to most streams, so aligned ones start with the first token of their validation data.
    """
    if missing := [s["name"] for s in streams if not s["tokenizer"]]:
        raise ValueError(f"--max_sample_tokens and the like need a tokenizer, {missing[0]} describes none")
    tokens = [vocab.load(s["tokenizer"]) for s in streams]
    if args.training_mode == "multicontext":
        return [(torch.from_numpy(np.stack([v.windows(np.zeros(1))[0][:, :1] for v in val])).to(device), tokens)]
    try:  # escapes are decoded, other alphabets pass through
        text = args.sample_start_tokens.encode("latin-1", "backslashreplace").decode("unicode_escape")
        return [(torch.tensor([t.encode(text) or [t.eot or 0]], device=device), [t]) for t in tokens]
    except ValueError as e:
        raise ValueError(f"--sample_start_tokens {args.sample_start_tokens!r}: {e}") from None


# -----------------------------------------------------------------------------
# model


def position(args: Options) -> str:
    """The model's kinds of position, from the name or the two switches."""
    if args.position:
        for kind in args.position.split("+"):
            if kind not in POSITIONS:
                raise ValueError(f"--position must be among {', '.join(POSITIONS)}, joined by +, got {args.position!r}")
        return args.position
    kinds = ["learned"] * args.use_abs_pos_embeddings + ["rotary"] * args.use_rotary_embeddings
    return "+".join(kinds) or "none"


def adopt(args: Options, source: dict, where: str) -> None:
    """The shape of the weights to start from becomes this run's, but for what the user gave."""
    config, given, parts = dict(source["config"]), set(args.given), transfer.wanted(args.transfer)
    gpt = config.pop("backbone", source["kind"]) == "gpt"  # a reward model is read as what it stands on
    if given & {"use_rotary_embeddings", "use_abs_pos_embeddings"}:
        given.add("position")
    ours = position(args) if "position" in given else "learned"
    if not gpt:  # an encoder: only the sizes mean the same
        config = {k: config[k] for k in ("n_layer", "n_head", "n_embd", "mlp_size") if k in config}
    elif config["block_size"] < args.block_size and "learned" in ours and "learned" in config.get("position", ours):
        if "block_size" in given and "embed" in parts:
            raise ValueError(f"--block_size {args.block_size} is more than the {config['block_size']} positions that"
                             f" {where} knows")  # fmt: skip
        args.block_size = args.block_size if "block_size" in given else config["block_size"]
    for f in fields(GPTConfig):
        if f.name in ("block_size", "dropout", "use_gradient_checkpointing", "vocab_size", "vocab_sizes"):
            continue
        theirs = config.get(f.name, f.default if gpt else None)
        if f.name in given:
            ours = position(args) if f.name == "position" else getattr(args, f.name)
            heads = f.name == "n_head" and "attn" in parts  # its cut
            if (args.transfer == ["all"] or heads) and f.name in config and ours != theirs:
                how = "name the parts to take with" if args.transfer == ["all"] else "leave attn out of"
                raise ValueError(f"--{f.name} is {theirs!r} in {where}, not {ours!r}: leave it out, or"
                                 f" {how} --transfer")  # fmt: skip
        elif f.name in config or gpt:
            setattr(args, f.name, theirs)


def model_config(args: Options, vocabulary: dict) -> GPTConfig:
    same = {f.name: getattr(args, f.name) for f in fields(GPTConfig) if hasattr(args, f.name)}
    return GPTConfig(**(same | {"position": position(args)} | vocabulary))


def schedule(args: Options) -> list[dict]:
    """What core.schedule.lr_at takes, one for each data set of a mixture."""
    kind = "cosine" if args.decay_lr and args.lr_scheduler == "none" else args.lr_scheduler
    total = args.max_iters if args.lr_decay_match_max_iters else args.lr_decay_iters
    rates = args.dataset_sampling_learning_rate or [args.learning_rate] * max(1, len(args.dataset_list))
    return [{"kind": kind, "lr": lr, "warmup": args.warmup_iters, "total": total, "min_lr": args.min_lr,
             "gamma": args.exponential_gamma, "step_size": args.step_lr_size, "step_gamma": args.step_lr_gamma,
             "decay_frac": args.wsd_decay_frac} for lr in rates]  # fmt: skip
