"""Experiments in the terms of pretrain.py and finetune.py: one table, and no loop of its own."""

import importlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

from core import config
from core.values import coerce, native, nearest, read_yaml
from experiments import folders
from experiments.sections import KINDS, LSH, Favor

SCRIPTS = {"pretraining": "pretrain", "finetuning": "finetune"}

# a key of config.yaml, then the option of pretrain.py and that of finetune.py. model.x is a field of the encoder's
# config. A dash: the key is read by the functions below, or changes nothing (how an evaluation is shuffled)
TABLE = """
experiment.seed                                     seed                    seed
logging.use_wandb                                   no_wandb                wandb_log
logging.wandb.entity                                wandb_entity            wandb_entity
logging.wandb.project                               project_name            wandb_project
logging.wandb.run_name                              run_name                wandb_run_name
logging.log_eval_metrics                            files.evals             files.evals
logging.log_metrics_csv                             files.csv               files.csv
logging.log_gpu_memory                              files.memory            files.memory
logging.csv_train_metrics_path                      files.train_csv         files.train_csv
logging.csv_eval_metrics_path                       files.eval_csv          files.eval_csv
tokenizer.vocab_dir                                 tokenizer               tokenizer
tokenizer.max_length                                max_size                max_length
architecture.embedding_dim                          hidden_size             model.n_embd
architecture.num_layers                             hidden_depth            model.n_layer
architecture.mlp_size                               intermed_size           model.mlp_size
architecture.mlp_dropout                            hidden_prob             model.hidden_dropout
architecture.embedding_dropout                      model.embedding_dropout model.embedding_dropout
architecture.pos_encoding                           pos_embed               model.position
architecture.rope.rope_base                         model.rope_base         model.rope_base
architecture.rope.rope_scale                        model.rope_scale        model.rope_scale
architecture.attention.attention_embedding_dim      model.attn_size         model.attn_size
architecture.attention.num_heads                    attention_heads         model.n_head
architecture.attention.projection_bias              model.attn_bias         model.attn_bias
architecture.attention.attn_out_dropout             model.attn_out_dropout  model.attn_out_dropout
architecture.attention.attn_dropout                 att_prob                model.attn_dropout
architecture.attention.kind                         model.attention         model.attention
mlm_head.tie_mlm_weights                            model.tie               -
mlm_head.mask_p                                     mask_p                  -
mlm_head.mask_token_p                               mask_token_p            -
mlm_head.random_token_p                             random_token_p          -
classification_head.num_labels                      -                       num_labels
classification_head.classifier_dropout              -                       classifier_dropout
classification_head.pooling                         -                       pooling
classification_head.pooler_type                     -                       pooler_type
training.batch_size                                 per_device              batch_size
training.epochs                                     epochs                  epochs
training.learning_rate                              lr                      learning_rate
training.head_lr_mult                               -                       head_lr_mult
training.backbone_lr_mult                           -                       backbone_lr_mult
training.warmup_ratio                               warmup_ratio            warmup_ratio
training.min_lr_ratio                               min_lr_ratio            min_lr_ratio
training.weight_decay                               decay                   weight_decay
training.max_grad_norm                              grad_clip               grad_clip
training.grad_accum_steps                           grad_acc                gradient_accumulation_steps
training.use_amp                                    dtype                   dtype
training.device                                     device                  device
training.freeze                                     -                       freeze
training.freeze_epochs                              -                       freeze_epochs
training.freeze_n_layers                            -                       freeze_n_layers
training.freeze_embeddings                          -                       freeze_embeddings
training.resume.strict                              strict                  -
data.train.dataset_path                             train                   train
data.train.shuffle                                  shuffle                 shuffle
data.val.dataset_path                               eval                    val
data.test.dataset_path                              test                    test
"""
ROWS = {key: dict(zip(SCRIPTS, names, strict=True)) for key, *names in map(str.split, TABLE.strip().splitlines())}
VALUES = {  # of an option, what is said otherwise there
    "no_wandb": {True: False, False: True},
    "dtype": {True: "auto", False: "float32"},
    "device": {"gpu": "cuda"},
    "pos_embed": {"learned": "absolute"},
    "model.position": {"learned": "absolute"},
}

KIND, RESUME = "--architecture.attention.kind", "--training.resume."
NEEDS = {  # what acts only beside other keys. =True: a switch that is off in each template is not off by choice
    "training.resume.resume_pretraining_name training.resume.checkpoint_path"
    " training.resume.load_only_model_state": RESUME + "is_resume=True",
    "training.resume.strict": RESUME + "load_only_model_state=True",
    "architecture.rope.rope_base architecture.rope.rope_scale": "--architecture.pos_encoding=rope",
    "architecture.attention.mha.use_native_sdpa": KIND + "=mha",
    **{" ".join(f"architecture.attention.{kind}.{f.name}" for f in fields(cls)): f"{KIND}={kind}"
       for kind, cls in (("lsh", LSH), ("favor", Favor))},
}  # fmt: skip


def read(data: dict, kind: str, source: str):
    """A config as an instance of experiments/sections.py, every key and type checked."""
    return config.from_dict(KINDS[kind], data, source)


def settings(pairs: list[str], kind: str) -> dict:
    """--set training.epochs=5 ... -> {key: value}"""
    known, other, out = config.specs(KINDS[kind]), config.aliases(KINDS[kind]), {}
    for pair in pairs:
        key, eq, value = pair.partition("=")
        key = other.get(key, key)
        if not eq:
            raise ValueError(f"--set takes section.key=value, got {pair!r}")
        if key not in known:
            raise ValueError(f"--set {key}: no such key{nearest(native(key, known), known)}")
        if key in out:
            raise ValueError(f"--set {key} twice: {out[key]!r} and {value!r}")
        out[key] = coerce(value, known[key].type, f"--set {key}", known[key].meta.get("choices"))
    return out


# -----------------------------------------------------------------------------
# config.yaml -> options


def below(key: str, value: str) -> None:
    """A place for results stays in the experiment's folder."""
    if Path(value).is_absolute() or ".." in Path(value).parts:
        raise ValueError(f"{key} must lie below output_dir, got {value!r}")


def check(exp, kind: str, folder: Path) -> None:
    """Checks what needs no other file, so that a generator writes nothing that could not run."""
    e, wrapper = exp.experiment, exp.tokenizer.wrapper_path
    if wrapper not in (None, "", "data.vocab", "data/vocab.py"):
        raise ValueError(f"tokenizer.wrapper_path {wrapper!r}: code that a config names is not executed; leave it empty"
                         " and name a tokenizer.json or vocab.txt in tokenizer.vocab_dir")  # fmt: skip
    for key, value, right in (("name", e.name, folder.name), ("kind", e.kind, kind)):
        if value not in (None, right):
            raise ValueError(f"experiment.{key} is {value!r}, but this is the {kind} experiment {folder.name!r}:"
                             " a copied or renamed folder needs its own name and output_dir")  # fmt: skip
    below("logging.csv_train_metrics_path", exp.logging.csv_train_metrics_path)
    below("logging.csv_eval_metrics_path", exp.logging.csv_eval_metrics_path)
    if exp.architecture.attention.kind == "favor" and exp.architecture.attention.attn_dropout:
        raise ValueError("architecture.attention.attn_dropout must be 0 with kind favor, which has no weights to drop")


def parent(name: str) -> Path:
    """The pretraining experiment that another one begins with: one that runs as it is."""
    folder = folders.find("pretraining", name)
    source = folder / "config.yaml"
    check(read(read_yaml(source), "pretraining", str(source)), "pretraining", folder)
    return folder


def options(exp, kind: str, folder: Path, resuming: bool = False) -> dict:
    """What the script's options get, {option: value}; model.* collected in one."""
    check(exp, kind, folder)
    out: dict = {"model": {}}
    for key in config.specs(type(exp)):
        name = ROWS.get(key, {}).get(kind, "-")
        if name != "-":
            value = config.get(exp, key)
            value = VALUES[name].get(value, value) if name in VALUES else value
            (out["model"] if name.startswith("model.") else out)[name.removeprefix("model.")] = value

    attention = exp.architecture.attention
    if attention.kind == "mha":  # the only kind with another name there
        out["model"]["attention"] = "exact" if attention.mha.use_native_sdpa else "plain"
    else:
        out["model"]["attention_args"] = config.to_dict(getattr(attention, attention.kind))
    if kind == "finetuning" and exp.pretrained_experiment.checkpoint is None:
        out["model"]["block_size"] = exp.tokenizer.max_length

    for key in ("tokenizer.vocab_dir", "data.train.dataset_path", "data.val.dataset_path"):
        if config.get(exp, key) is None and not (kind == "finetuning" and key == "tokenizer.vocab_dir"):
            raise ValueError(f"{key} is missing")
    out = {k: v for k, v in out.items() if v is not None or k == "pooler_type"} | {
        "files.ckpt": "checkpoints/model.ckpt",
        "files.best": "checkpoints/best-model.ckpt",
        "files.config": "config.resolved.yaml",
    }
    if kind == "pretraining":
        out["lr_schedule"] = "cosine"
        if not exp.training.resume.load_only_model_state:  # a note of its own says so
            del out["strict"]
    out["save_path" if kind == "pretraining" else "out_dir"] = exp.experiment.output_dir or str(folder)
    if resuming:  # all that it began with is in its own checkpoint
        return out | {"init_from": "resume"}
    return out | (pretraining(exp, folder) if kind == "pretraining" else finetuning(exp))


def finetuning(exp) -> dict:
    p = exp.pretrained_experiment
    if p.checkpoint is None:
        return {"init_from": "scratch"}
    if not (p.path or p.name):
        raise ValueError("pretrained_experiment.name is missing (checkpoint null: no pretraining)")
    if p.path and Path(p.path).is_file():
        raise ValueError(f"pretrained_experiment.path is an experiment's folder, {p.path} is a file: name that in"
                         " pretrained_experiment.checkpoint, below the folder")  # fmt: skip
    parent = Path(p.path) if p.path else folders.results(folders.find("pretraining", p.name))
    parents, last = dict.fromkeys((parent, folders.results(parent))), "checkpoints/model.ckpt"
    places = [place / p.checkpoint for place in parents]
    found = next((p for p in places if p.is_file()), None)
    if not found:  # a run has a last state and no best one where no evaluation was a number
        what = f"run python train.py -n {p.name or parent.name} -m pretraining first"
        if any((place / last).is_file() for place in parents):
            what = f"pretrained_experiment.checkpoint={last} is there"
        raise ValueError(f"pretrained_experiment.checkpoint: no file {' or '.join(map(str, places))}; {what}")
    if other := folders.foreign("pretraining", p.name, found):
        raise ValueError(f"pretrained_experiment.name is {p.name!r}, but {found} is of {other!r}: change path"
                         " or checkpoint; path null takes the named one's")  # fmt: skip
    return {"init_from": str(found)}


def pretraining(exp, folder: Path) -> dict:
    r = exp.training.resume
    if not r.is_resume:
        return {}
    if not (r.resume_pretraining_name or r.checkpoint_path):
        raise ValueError("training.resume.is_resume needs resume_pretraining_name or checkpoint_path")
    wanted = r.checkpoint_path or "checkpoints/model.ckpt"
    places = [folder / wanted] if r.checkpoint_path else []
    if r.resume_pretraining_name:
        places.append(folders.results(folders.find("pretraining", r.resume_pretraining_name)) / wanted)
    there = [p for p in places if p.is_file()]
    others = [folders.foreign("pretraining", r.resume_pretraining_name, p) for p in there]
    found = next((p for p, other in zip(there, others, strict=True) if not other), None)
    if there and not found:
        raise ValueError(f"training.resume.resume_pretraining_name is {r.resume_pretraining_name!r}, but"
                         f" checkpoint_path {wanted!r} is of {others[0]!r}: change one of them")  # fmt: skip
    if not found:
        raise ValueError(f"training.resume.checkpoint_path {wanted!r}: no such file ({', '.join(map(str, places))})")
    return {"init_from" if r.load_only_model_state else "ckpt_path": str(found)}


# -----------------------------------------------------------------------------
# running


def keys(kind: str) -> dict[str, str]:
    """{option: key of config.yaml}"""
    found = {names[k]: key for k in (*SCRIPTS, kind) for key, names in ROWS.items()}
    args = {f"model attention_args {f.name}": f"architecture.attention.{of}.{f.name}"
            for of, cls in (("lsh", LSH), ("favor", Favor)) for f in fields(cls)}  # fmt: skip
    files = {"files.ckpt": "the last state", "files.best": "the best state", "files.config": "the resolved config"}
    found |= {name.replace(".", " "): key for name, key in found.items() if name.startswith("model.")}
    return found | args | files | {"ckpt_path": "training.resume.checkpoint_path"}


@contextmanager
def spelling(kind: str, source: Path) -> Iterator[None]:
    """Errors name keys of config.yaml and their values, not the options they became; and the file."""
    known = keys(kind)
    known |= {name.removeprefix("model."): key for name, key in known.items()}
    try:
        yield
    except ValueError as e:
        text = re.sub(r"--(model (?:attention_args )?[a-z_]+|[a-z_.]+)", lambda m: known.get(m[1], m[0]), str(e))
        text = re.sub(r"(?<![./\w-])[a-z]+_[a-z_]+(?![/\w-]|\.\w)", lambda m: known.get(m[0], m[0]), text)
        text = re.sub(r"leave '\w+' out of --transfer, or ", "", text)
        text = re.sub(r" is (\S+) (in .+ and cannot become .+): leave it out.*", r" is \1 \2: write \1", text)
        if "'exact'" in text and "'plain'" in text:  # one kind of attention, with and without torch's kernels
            text = text.replace(KIND[2:], "architecture.attention.mha.use_native_sdpa")
            text = text.replace("'exact'", "True").replace("'plain'", "False")
        for word, theirs in (("'absolute'", "'learned'"), ("'exact'", "'mha'"), ("'plain'", "'mha'"),
                             ("device cuda", "device gpu")):  # fmt: skip
            text = text.replace(word, theirs)
        if str(source) not in text and any(key in text for key in config.specs(KINDS[kind])):
            text = f"{source}: {text}"
        e.args = (text,)
        raise


def main(argv: list[str]) -> None:
    """python train.py -n NAME -m pretraining|finetuning [--overwrite] [--init_from=resume]"""
    p = config.Parser(prog="train.py", description=main.__doc__, allow_abbrev=False)
    p.add_argument("-n", "--name", required=True, help="of the experiment")
    p.add_argument("-m", "--mode", required=True, choices=tuple(SCRIPTS), help="its kind")
    p.add_argument("--overwrite", nargs="?", const="true", default="false", metavar="BOOL",
                   help="replace the run that is in its folder")  # fmt: skip
    p.add_argument("--init_from", choices=("resume",), help="go on where it stopped")
    args, rest = p.parse_known_args(argv)
    if rest:
        raise ValueError(f"{rest[0]}: an experiment's settings stand in its config.yaml, only --overwrite and"
                         " --init_from=resume are given here")  # fmt: skip
    overwrite = coerce(args.overwrite, bool, "--overwrite")
    if overwrite and args.init_from:
        raise ValueError("--overwrite replaces the run that --init_from=resume goes on with: leave one of them out")
    kind, folder = args.mode, folders.find(args.mode, args.name)
    source = folder / "config.yaml"
    exp, known = read(read_yaml(source), kind, str(source)), config.specs(KINDS[kind])
    with spelling(kind, source):
        values = options(exp, kind, folder, resuming=bool(args.init_from))
        last = folders.results(folder) / values["files.ckpt"]  # training.resume may name this very run's
        if not overwrite and Path(values.get("ckpt_path", "")).resolve() == last.resolve():
            values = options(exp, kind, folder, resuming=True)
        resuming = values.get("init_from") == "resume"
        paths = ["tokenizer.vocab_dir"] * (not resuming) + [k for k in known if k.endswith(".dataset_path")]
        for key, path in ((key, config.get(exp, key)) for key in paths):
            if path and not Path(path).exists():
                raise ValueError(f"{key} {path} does not exist")
        values["files.second"] = "overwrite" if overwrite else "refuse"
        script = importlib.import_module(SCRIPTS[kind])
        chosen = config.from_dict(script.Options, values, str(source))
        chosen.given, chosen.keys = {n for n in config.specs(script.Options) if n in values}, keys(kind)
        if os.environ.get("RANK", "0") == "0":
            exp.given = set(known)
            for line in config.idle(exp, {k: text for k, text in NEEDS.items() if k.split()[0] in known}):
                print(f"note: {line.replace('--', '')}")
        script.main(chosen)
