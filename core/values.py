"""One value: the text of a flag or of a YAML file as the type that an option declares.

    coerce("1e-3", Positive, "--lr")    # 0.001
    coerce("0", Count, "--epochs")      # ValueError: --epochs must be > 0, got '0'
"""

import difflib
import json
import math
import os
import re
import types
import typing
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

Count = Annotated[int, "> 0"]
Whole = Annotated[int, ">= 0"]
Positive = Annotated[float, "> 0"]
NonNegative = Annotated[float, ">= 0"]
Fraction = Annotated[float, "0..1"]
Dropout = Annotated[float, "0..<1"]  # at 1 nothing is left to train
Beta = Annotated[float, "0..<1"]  # of Adam: at 1 its averages would never move

WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}

# names of one thing here and in nanoGPT, transformers, TRL and Lightning; of those that a script has the first is meant
SAME = [names.split() for names in """
    learning_rate lr
    batch_size per_device per_device_train_batch_size train_batch_size device_batch_size
    max_iters max_steps num_iterations num_train_steps
    epochs max_epochs num_train_epochs num_epochs max_iters
    gradient_accumulation_steps grad_acc grad_accum_steps accumulate_grad_batches
    weight_decay decay
    grad_clip max_grad_norm gradient_clip_val
    warmup_iters warmup_steps
    lr_scheduler lr_schedule lr_scheduler_type
    max_length max_size block_size max_seq_length model_max_length context_length
    dtype precision bf16 fp16
    eval_interval val_check_interval eval_steps
    log_interval log_steps log_every_n_steps logging_steps
    model_name init_from model_name_or_path
    out_dir save_path save_dir dirpath output_dir output_path init_from
    dataset data_dir train dataset_name train_file
    val eval validation_file eval_file
    start prompt
    text_column column field
""".strip().splitlines()]


def native(name: str, known) -> str:
    """What the field calls otherwise by its name among the known ones: "num_train_epochs" -> "epochs"."""
    word = name.split(".")[-1].replace("-", "_").lower()
    same = next((names for names in SAME if word in names), [])
    return next((k for n in same for k in known if k.split(".")[-1] == n), name)


def nearest(word: str, words, prefix: str = "") -> str:
    """", did you mean 'x'?" or nothing."""
    words = [str(w) for w in words]
    close = [w for w in words if w.lower() == word.lower()] or difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    if not close:  # `wandb.nam` is near `wandb.args.name` by its last part
        close = [w for w in words if w.split(".")[-1] == word.split(".")[-1]][:1]
    return f", did you mean {prefix + close[0]!r}?" if close else ""


def in_range(value: float, rule: str) -> bool:
    if ".." in rule:
        low, high = rule.split("..")
        return float(low) <= value < float(high[1:]) if "<" in high else float(low) <= value <= float(high)
    op, bound = rule.split()
    return value > float(bound) if op == ">" else value >= float(bound)


def coerce(value: Any, hint: Any, name: str, choices=None) -> Any:
    """The value as the type its field declares, from a flag's text or a YAML value."""

    def wrong(what: str) -> ValueError:
        return ValueError(f"{name} must be {what}, got {value!r}")

    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        value = coerce(value, inner[0], name, choices)
        if not in_range(value, inner[1]):
            rule = inner[1].replace("..<", " or more and below ")
            raise wrong(rule if ".." not in rule else "between " + rule.replace("..", " and "))
        return value
    if origin in (typing.Union, types.UnionType):
        word = value[0] if isinstance(value, list) and len(value) == 1 else value  # --list none
        if type(None) in inner and (word is None or str(word).lower() in ("none", "null", "")):
            return None
        kinds = [t for t in inner if t is not type(None)]
        for kind in kinds[:-1]:
            try:
                return coerce(value, kind, name, choices)
            except ValueError:
                continue
        return coerce(value, kinds[-1], name, choices)
    if origin is Literal:
        choices, hint = inner, type(inner[0])
    if value is None:
        raise wrong("given, not null")
    if origin is list and inner == (Path,):  # names of files may hold spaces and commas
        return [Path(at_home(str(v))) for v in (value if isinstance(value, list | tuple) else [value])]
    if hint is list or origin is list:
        if not isinstance(value, list | tuple):
            value = str(value).strip("[]() ").replace(",", " ").split()
        else:  # --list 'a b' c
            value = [p for v in value for p in (v.strip("[]").replace(",", " ").split() if isinstance(v, str) else [v])]
        return [coerce(v, inner[0] if inner else str, name, choices) for v in value]
    if hint is tuple or origin is tuple:  # YAML has lists alone, and a resume gives what was saved
        each = inner if inner[-1:] != (...,) else inner[:1]
        if len(set(each)) < 2:
            found = coerce(value, list[each[0]] if each else list, name, choices)
        else:  # ("adam", 2)
            found = coerce(value, list[str | None], name)
        if len(each) > 1 and len(found) != len(each):
            raise wrong(f"{len(each)} values")
        return tuple(found if len(set(each)) < 2 else map(coerce, found, each, [name] * len(each)))
    if hint is dict or origin is dict:
        if isinstance(value, dict):
            return plain(value)
        pairs = [p for v in (value if isinstance(value, list | tuple) else [value]) for p in str(v).split()]
        if bad := [p for p in pairs if "=" not in p]:
            raise ValueError(f"{name} takes key=value pairs, got {bad[0]!r}")
        return {k: scalar(v, f"{name} {k}") for k, v in (p.split("=", 1) for p in pairs)}
    if isinstance(value, list | tuple | dict):
        raise wrong(NAMES.get(hint, str(hint)))
    if hint is bool:
        if not isinstance(value, bool):
            if str(value).lower() not in WORDS:
                raise wrong(NAMES[bool])
            value = WORDS[str(value).lower()]
    elif hint in (int, float):
        if isinstance(value, bool):
            raise wrong(NAMES[hint])
        try:
            number = float(value)
        except (ValueError, OverflowError):
            raise wrong(NAMES[hint]) from None
        if not math.isfinite(number):
            raise wrong(NAMES[hint])
        number = number if hint is float else Decimal(value)  # exact: a float rounds from 2^53 on
        if hint is int and number != int(number):
            raise wrong(NAMES[hint])
        value = hint(number)
    elif hint is str:
        if isinstance(value, bool):
            value = str(value).lower()
        value = at_home(str(value))
    elif hint is Path:
        value = Path(at_home(str(value)))
    if choices is not None:
        allowed = list(choices() if callable(choices) else choices)
        if value not in allowed:
            shown = ", ".join(map(str, allowed)) if len(allowed) <= 40 else f"{len(allowed)} names (--list shows them)"
            raise ValueError(f"{name} must be one of {shown}; got {value!r}{nearest(str(value), allowed)}")
    return value


class Written(float):
    """A number of a file; as text what stands there: a run called 1.10 or 1e5 is not 1.1 or 100000.0."""

    def __new__(cls, text: str):
        self = super().__new__(cls, text)
        self.text = text
        return self

    def __str__(self) -> str:
        return str(self.text)


yaml.SafeDumper.add_representer(Written, yaml.SafeDumper.represent_float)  # what was read can be dumped


def plain(value: Any) -> Any:
    """A copy for checkpoints and optimizers, with numbers that are no more than that."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [plain(v) for v in value]
    return float(value) if isinstance(value, float) else value


def at_home(text: str) -> str:
    """~/runs by its whole name: a shell leaves --out_dir=~/runs as it is, YAML any, and a folder ~ would be made."""
    found = os.path.expanduser(text) if text.startswith("~/") else text
    if found.startswith("~/"):
        raise ValueError(f"{text}: this user has no home folder here (HOME is not set); write the whole path")
    return found


def scalar(text: str, name: str = "the value") -> Any:
    """A free value as YAML reads it: true, 3, 1e-4, null, text, [1, 2]."""
    try:
        return plain(yaml.load(text, Loader=Loader)) if text else ""
    except (yaml.YAMLError, ValueError, KeyError, RecursionError) as e:
        raise ValueError(f"{name} cannot be read, got {text[:40]!r}: {told(e)}") from None


def told(e: Exception) -> str:
    """In one line; YAML calls any text "<unicode string>"."""
    return " ".join(str(e).split()).replace(' in "<unicode string>",', " at")


# -----------------------------------------------------------------------------
# YAML


class Loader(yaml.SafeLoader):
    """SafeLoader without YAML 1.1's traps: 1e-4 is a number, 12:30, 010, 4_4_256 and no are text, a key stands once;
    and without dates and bytes."""

    yaml_implicit_resolvers = {}
    yaml_constructors = {tag: make for tag, make in yaml.SafeLoader.yaml_constructors.items()
                         if not str(tag).endswith((":binary", ":timestamp", ":omap", ":pairs", ":set"))}  # fmt: skip

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else []:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key.start_mark)
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class Dumper(yaml.SafeDumper):
    """Quotes texts that Loader, or any other reader, would take for something else: a run called 1e5."""


for kind, pattern, first in [
    ("null", r"(?:~|null|Null|NULL|)", ["~", "n", "N", ""]),
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("merge", r"<<", ["<"]),
]:
    # a number with leading zeros (0010) is an identifier somebody chose, so the float pattern must not take it
    pattern = rf"^(?!0[0-9]){pattern}$" if kind == "float" else rf"^{pattern}$"
    for reads in (Loader, Dumper):
        reads.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(pattern), first)


Loader.add_constructor("tag:yaml.org,2002:float", lambda loader, node: Written(loader.construct_scalar(node)))


def dump(data: Any, **layout) -> str:
    """YAML that Loader reads back as it was."""
    return yaml.dump(data, Dumper=Dumper, sort_keys=False, allow_unicode=True, **layout)


def once(pairs: list[tuple[str, Any]]) -> dict:
    if twice := [key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i])]:
        raise ValueError(f"key {twice[0]!r} twice")
    return dict(pairs)


def read_yaml(path: str | Path) -> dict:
    """A config file as a dict; YAML, or JSON by its ending."""
    path = Path(path)
    if not path.is_file():
        inside = path / "config.yaml"
        hint = "does not exist" if not path.exists() else "is a folder: a file is wanted"
        hint = f"is a folder: its file is {inside}" if inside.is_file() else hint
        raise ValueError(f"config file {path} {hint}")
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".json":
            data = json.loads(text, object_pairs_hook=once, parse_float=Written)
        else:
            data = yaml.load(text, Loader=Loader)
    except (yaml.YAMLError, ValueError, KeyError, RecursionError) as e:
        raise ValueError(f"{path}: {told(e)}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ValueError(f"{path} must hold key: value lines, got {type(data).__name__}")
    return data
