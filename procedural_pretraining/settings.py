"""What follows from the options of cli.py: defaults by task, presets, the curriculum's lengths, the model's shape."""

from pathlib import Path

import procedural_data
from model import GPTConfig

DYCK = {"seq_length": 128, "epochs": 1000, "steps_per_epoch": 1000, "max_steps": 1_000_000, "lr_schedule": "constant",
        "warmup_steps": 0, "save_every_steps": 100, "patience": None}  # fmt: skip
FIXED = ("task", "seed", "gpt2_size", "position", "use_qk_norm", "dropout", "use_curriculum", "curriculum_start")
FREE = ("save_dir", "run_name", "init_from", "transfer", "resume", "resume_run_id", "check", "replay_step",
        "device", "backend", "timeout")  # fmt: skip
DYCK_TASKS = "dyck|dyck_shuffle"
NEEDS = {  # what acts only beside other options
    "vocab_size": f"--task other than {DYCK_TASKS}",
    "p_open": f"--task={DYCK_TASKS}",  # k: a preset for all tasks names it
    "max_depth": "--task=dyck_shuffle",
    "transfer": "--init_from other than scratch|resume",
    "curriculum_start curriculum_step_size curriculum_mastery_threshold curriculum_step_epochs": "--use_curriculum",
    "wandb_project wandb_name resume_run_id": "--wandb_enable",
}


def preset(argv: list[str]) -> list[str]:
    """--preset small is a config file that comes after the others."""
    out, last = [], []
    words = iter(argv)
    for word in words:
        name, _, value = word.partition("=")
        if name == "--preset":
            value = value or next(words, "")
            path = Path(__file__).parent / "configs" / f"{value}.yaml"
            if not value or not path.is_file() or value in procedural_data.TASKS:
                raise ValueError(f"--preset must be small, got {value!r}")
            last += ["--config", str(path)]
        else:
            out.append(word)
    return out + last


def settle(args) -> None:
    """The dyck tasks' own defaults, where the user said nothing."""
    if args.task.startswith("dyck"):
        for name, value in DYCK.items():
            if name not in args.given:
                setattr(args, name, value)


def lengths(args, been: tuple[int, ...] | list[int] = ()) -> list[int]:
    """The lengths that the run trains at, in order: the curriculum's, or one. A resume goes on from those `been` at."""
    if not args.use_curriculum:
        return [args.seq_length]
    if args.curriculum_start > args.seq_length:
        raise ValueError(f"curriculum_start {args.curriculum_start} is above seq_length {args.seq_length}")
    now = been[-1] if been else args.curriculum_start
    return [*been[:-1], *range(now, args.seq_length, args.curriculum_step_size), args.seq_length]


def model_config(args, block_size: int, vocab_size: int) -> GPTConfig:
    size = args.gpt2_size.split("_")
    if len(size) != 3 or not all(s.isdigit() for s in size):
        raise ValueError(f"gpt2_size must be layers_heads_width, as in 2_4_16, got {args.gpt2_size!r}")
    n_layer, n_head, n_embd = map(int, size)
    return GPTConfig(block_size=block_size, vocab_size=vocab_size, n_layer=n_layer, n_head=n_head, n_embd=n_embd,
                     dropout=args.dropout, position=args.position, use_qk_norm=args.use_qk_norm)  # fmt: skip
