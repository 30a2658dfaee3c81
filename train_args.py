"""Every option of train.py: its name, default and unit. `python train.py --help` prints this page."""

from dataclasses import dataclass
from typing import Literal

from core.config import Count, Fraction, NonNegative, Positive, Whole, option
from core.schedule import SCHEDULES
from model import GPTConfig
from variants.activations import ACTIVATIONS
from variants.attentions import ATTENTIONS
from variants.mlps import MLPS
from variants.norms import NORMS
from variants.positions import POSITIONS
from variants.softmaxes import SOFTMAXES


@dataclass
class Options:
    # run
    out_dir: str = "out"  # run folder: config.yaml, CSV files, checkpoints, loss.png
    init_from: str = "scratch"  # scratch, resume, prev_run, a checkpoint or run folder, gpt2*, a folder in HF format
    prev_run_ckpt: str = "out"  # run folder that --init_from=prev_run takes its weights from
    init_from_ckpt: str = "ckpt.pt"  # checkpoint file in that folder
    transfer: list[str] = option(["all"])  # parts to take: embed attn mlp norm head all, with layers as in attn:0-3
    seed: int = 1337  # for all that is drawn at random
    eval_only: bool = False  # evaluate and stop
    max_iters: Whole = 3500  # optimizer steps

    # data
    dataset: str = "shakespeare_char"  # a folder in data/, or a path
    sampling_method: Literal["random", "sequential", "without_replacement"] = "random"  # how windows are drawn

    # batch
    batch_size: Count = 64  # sequences a micro-step
    gradient_accumulation_steps: Count = 1  # micro-steps an optimizer step, over all ranks

    # model
    block_size: Count = 256  # tokens of context
    n_layer: Count = 6
    n_head: Count = 6
    n_kv_group: Count | None = None  # key and value heads (grouped-query attention); None: n_head
    n_embd: Count = 384  # width
    dropout: Fraction = 0.0
    bias: bool = False  # in linear layers and norms
    mlp_expansion_factor: Positive = 4  # hidden width as a multiple of n_embd
    mlp_size: Count | None = None  # hidden width itself
    wte_weight_tying: bool = True  # the head shares the embedding's weights
    window_size: Count | None = None  # tokens a token sees, itself included (sliding window)
    use_qk_norm: bool = False  # normalise queries and keys
    use_rotary_embeddings: bool = False  # rotary positions
    use_abs_pos_embeddings: bool = True  # learned absolute positions
    position: str | None = None  # kinds joined by +, in place of the two switches: learned sinusoidal rotary alibi none
    norm_variant_attn: str = option("layernorm", choices=NORMS)  # inside blocks
    norm_variant_output: str = option("layernorm", choices=NORMS)  # before the head
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
    use_gradient_checkpointing: bool = False  # recompute blocks in the backward pass: less memory, more time

    # optimizer
    learning_rate: NonNegative = 1e-3
    weight_decay: NonNegative = 1e-1
    beta1: Fraction = 0.9
    beta2: Fraction = 0.99
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
    wsd_decay_frac: Fraction = 0.2  # last part of the run, in which the rate falls

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
    backend: str | None = option(None, choices=("nccl", "gloo"))  # between ranks; None: nccl on CUDA, gloo elsewhere
    deterministic: bool = False  # bit-exact on GPUs too, slower
    timeout: Positive = 120  # seconds a rank waits for another


# taken from the command at a resume, whatever the stored run says
FREE = ("out_dir", "init_from", "prev_run_ckpt", "init_from_ckpt", "transfer", "eval_only", "sample_only", "device",
        "backend", "timeout")  # fmt: skip
FIXED = ("data", "model", "seed")


def position(args: Options) -> str:
    """The model's kinds of position, from the name or the two switches."""
    if args.position is not None:
        for kind in args.position.split("+"):
            if kind not in POSITIONS:
                raise ValueError(f"--position must be among {', '.join(POSITIONS)}, joined by +, got {args.position!r}")
        return args.position
    kinds = ["learned"] * args.use_abs_pos_embeddings + ["rotary"] * args.use_rotary_embeddings
    return "+".join(kinds) or "none"


def model_config(args: Options, vocab_size: int) -> GPTConfig:
    same = {f: getattr(args, f) for f in GPTConfig.__dataclass_fields__ if hasattr(args, f) and f != "position"}
    return GPTConfig(vocab_size=vocab_size, position=position(args), **same)


def schedule(args: Options) -> dict:
    """What core.schedule.lr_at takes."""
    kind = "cosine" if args.decay_lr and args.lr_scheduler == "none" else args.lr_scheduler
    total = args.max_iters if args.lr_decay_match_max_iters else args.lr_decay_iters
    return {"kind": kind, "lr": args.learning_rate, "warmup": args.warmup_iters, "total": total,
            "min_lr": args.min_lr, "gamma": args.exponential_gamma, "step_size": args.step_lr_size,
            "step_gamma": args.step_lr_gamma, "decay_frac": args.wsd_decay_frac}  # fmt: skip
