"""Options: dataclasses in, one parsed and checked instance out.

    @dataclass
    class Options:
        # data
        dataset: str = "shakespeare_char"  # a folder in data/
        batch_size: Count = 64  # sequences a micro-step

A field is an option, the comment behind it is its help, a comment line of its own opens a group. Values come from
defaults < YAML or JSON files < flags. What the user got wrong is a ValueError with one line that names it.
"""

import argparse
import ast
import copy
import dataclasses
import functools
import inspect
import io
import re
import shutil
import sys
import textwrap
import tokenize
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

from core.values import coerce, dump, native, nearest, read_yaml

SUFFIXES = (".yaml", ".yml", ".json")  # of config files


def option(default: Any, *, choices=None, alias: tuple[str, ...] = (), secret: bool = False) -> Any:
    """A field that needs more than a default: choices (a container, or a function that returns one), other accepted
    spellings, or a value that is never saved nor printed."""
    meta = {"choices": choices, "alias": alias, "secret": secret}
    if isinstance(default, list | dict) or dataclasses.is_dataclass(default):
        return dataclasses.field(default_factory=functools.partial(copy.deepcopy, default), metadata=meta)
    return dataclasses.field(default=default, metadata=meta)


# -----------------------------------------------------------------------------
# what a dataclass says about its options


@dataclasses.dataclass
class Spec:
    name: str  # dotted
    type: Any
    help: str
    group: str
    meta: dict
    default: Any


@functools.cache
def comments(cls: type) -> dict[str, tuple[str, str]]:
    """{field: (help, group)} from the comments in the source of the class."""
    source = textwrap.dedent(inspect.getsource(cls))
    lines, notes = source.splitlines(), {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            notes[token.start[0]] = token.string.lstrip("# ").strip()
    found, group = {}, ""
    body = [n for n in ast.parse(source).body[0].body if isinstance(n, ast.AnnAssign)]
    end = 1
    for node in body:
        heads = [i for i in range(end + 1, node.lineno) if i in notes and lines[i - 1].lstrip().startswith("#")]
        # a line of its own below the class line, its docstring or a blank line opens a group; others go on with one
        opening = [i for i in heads if not lines[i - 2].strip() or lines[i - 2].strip().endswith(('"""', ":"))]
        if opening:
            group = notes[opening[-1]]
        found[node.target.id] = (notes.get(node.end_lineno, ""), group)
        end = node.end_lineno
    return found


def unfit(hint: Any) -> bool:
    """Whether coerce() knows no such type: what comes from a flag or a checkpoint would stay the text that it is."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Annotated, typing.Union, types.UnionType, list, tuple):
        return any(map(unfit, inner[:1] if origin is Annotated else [t for t in inner if t is not ...]))
    return (origin or hint) not in (bool, int, float, str, list, tuple, dict, Literal, type(None), Path, Any)


@functools.cache
def specs(cls: type, prefix: str = "") -> dict[str, Spec]:
    """Every leaf option of a dataclass by its dotted name, base classes first."""
    hints = typing.get_type_hints(cls, include_extras=True)
    notes: dict[str, tuple[str, str]] = {}
    for base in reversed(cls.__mro__[:-1]):
        if dataclasses.is_dataclass(base):
            notes.update(comments(base))
    out = {}
    for f in dataclasses.fields(cls):
        name, hint = prefix + f.name, hints[f.name]
        if dataclasses.is_dataclass(hint):
            out.update(specs(hint, name + "."))
            continue
        if unfit(hint):
            raise TypeError(f"option {name} is {hint}, which no flag can be: bool, int, float, str, Path, list, tuple,"
                            " dict and Literal are known, and each of them | None")  # fmt: skip
        default = f.default if f.default is not dataclasses.MISSING else f.default_factory()
        text, group = notes.get(f.name, ("", ""))
        out[name] = Spec(name, hint, text, group or prefix.rstrip("."), dict(f.metadata), default)
    return out


def aliases(cls: type) -> dict[str, str]:
    return {
        ".".join([*spec.name.split(".")[:-1], other]): spec.name
        for spec in specs(cls).values()
        for other in spec.meta.get("alias", ())
    }


def get(options: Any, name: str) -> Any:
    return functools.reduce(getattr, name.split("."), options)


def put(options: Any, name: str, value: Any) -> None:
    *path, last = name.split(".")
    setattr(functools.reduce(getattr, path, options), last, value)


# -----------------------------------------------------------------------------
# options that act only beside others


CONDITION = re.compile(r"(no )?--([\w.]+)(?:(=| other than )(.+))?")


def holds(options: Any, condition: str) -> bool:
    """--name, no --name, --name=a|b (of a list joined by +: one of them) or --name other than a|b."""
    no, name, how, values = CONDITION.fullmatch(condition).groups()
    value = get(options, name)
    if not how:
        return bool(value) != bool(no)
    among = not {*str(value).split("+")}.isdisjoint(values.split("|"))
    return among if how == "=" else bool(value) and not among


def said(options: Any, name: str) -> str:
    """An option as its user wrote it: an experiment's is a key of its config.yaml."""
    return getattr(options, "keys", {}).get(name, f"--{name}")


def idle(options: Any, needs: dict[str, str]) -> list[str]:
    """A line for each option that the user set and that acts on nothing here.

    `needs` is {names, with blanks between: conditions, joined by ", or "}. Nothing is said to a user who turned the
    switch off as well (--switch=false).
    """
    known, out = specs(type(options)), []
    for names, text in needs.items():
        conditions = text.split(", or ")
        off = {c[2:] for c in conditions if c[2:] in known and get(options, c[2:]) is known[c[2:]].default is False}
        if off & options.given or any(holds(options, c) for c in conditions):
            continue
        text = re.sub(r"--([\w.]+)", lambda m: said(options, m[1]), text).replace("|", " or ")
        out += [f"{said(options, name)} does nothing here: it needs {text}" for name in names.split()
                if name in options.given and get(options, name) != known[name].default]  # fmt: skip
    return out


def unread(options: Any, mode: str, reads: str) -> list[str]:
    """A line for each flag that --`mode` does not read; `reads` has the names that it does, with blanks between. What a
    file says is not reported: it is how the run was trained."""
    known = specs(type(options))
    return [f"{said(options, name)} does nothing here: --{mode} does not read it" for name in known
            if name in options.typed - {*reads.split()} and get(options, name) not in (known[name].default, False)]


# -----------------------------------------------------------------------------
# files


def flatten(cls: type, data: dict, source: str) -> dict[str, Any]:
    """A nested mapping as {dotted name: value}, with names checked and aliases resolved."""
    known, other, out = specs(cls), aliases(cls), {}
    sections = {n.rsplit(".", i)[0] for n in known for i in range(1, n.count(".") + 1)}

    def walk(mapping: dict, prefix: str) -> None:
        for key, value in mapping.items():
            name = f"{prefix}{key}"
            if name in sections:
                if value is not None and not isinstance(value, dict):
                    raise ValueError(f"{source}: {name} is a section, got {value!r}")
                walk(value or {}, name + ".")
                continue
            target = other.get(name, name)
            if target not in known:
                near = nearest(native(name, known), [*sections, *known, *other])
                raise ValueError(f"{source}: unknown key {name!r}{near}")
            if target in out and out[target] != value:
                raise ValueError(f"{source}: {name} is given twice, as {out[target]!r} and as {value!r}")
            out[target] = value

    walk(data, "")
    return out


def assign(options: Any, values: dict[str, Any], source: str = "") -> None:
    known = specs(type(options))
    for name, value in values.items():
        spec = known[name]
        label = f"--{name}" if not source else f"{source}: {name}"
        put(options, name, coerce(value, spec.type, label, spec.meta.get("choices")))


# -----------------------------------------------------------------------------
# the command line


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise ValueError(re.sub(r"^argument (\S+): expected one argument$", r"\1 wants a value", message))


def kind_of(hint: Any) -> Any:
    """bool, list, dict or the plain type below Annotated and Optional."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return kind_of(inner[0])
    if origin in (typing.Union, types.UnionType):
        kinds = [kind_of(t) for t in inner if t is not type(None)]
        return list if list in kinds else kinds[-1]
    if origin is tuple or hint is tuple:
        return list
    if origin is Literal:
        return type(inner[0])
    return origin or hint


def describe(spec: Spec) -> str:
    choices = spec.meta.get("choices")
    if typing.get_origin(spec.type) is Literal:
        choices = typing.get_args(spec.type)
    text = spec.help
    if choices is not None:
        names = [str(c) for c in (choices() if callable(choices) else choices)]
        text += f" [{' | '.join(names)}]" if len(names) <= 24 else f" [{len(names)} names]"
    shown = repr(spec.default) if isinstance(spec.default, str) and not spec.default.strip() else spec.default
    if isinstance(spec.default, list):
        shown = " ".join(map(str, spec.default)) or "none"
    return f"{text} (default: {shown}{bounds(spec.type)})".strip().replace("%", "%%")


def bounds(hint: Any) -> str:
    """", 0..1" where a number has a lowest and a highest value, also in a list or where it may be none."""
    inner = typing.get_args(hint)
    if typing.get_origin(hint) is Annotated:
        return f", {inner[1]}" if ".." in inner[1] else ""
    return next((found for t in inner if (found := bounds(t))), "")


def parser(cls: type, doc: str, config_flags: tuple[str, ...] = ("--config",)) -> Parser:
    name, spec = sys.argv[0], getattr(sys.modules["__main__"], "__spec__", None)
    if spec and spec.name.endswith(f".{Path(name).stem}"):
        name = f"-m {spec.name}"
    width = min(88, shutil.get_terminal_size((90, 24)).columns - 2)
    formatter = functools.partial(argparse.RawDescriptionHelpFormatter, max_help_position=30, width=width)
    p = Parser(prog=name, description=(doc or "").strip(),  # python -OO has none
               formatter_class=formatter, allow_abbrev=False, add_help=False,
               usage=f"python {name} [FILE.yaml ...] [--option value ...]")  # fmt: skip
    plain = p.add_argument_group("options")
    plain.add_argument("--help", "-h", action="help", help="this text")
    plain.add_argument(*config_flags, dest="config files", action="append", metavar="FILE",
                       help="options from a YAML file")  # fmt: skip
    groups: dict[str, Any] = {"options": plain}
    for spec in specs(cls).values():
        title = spec.group or "options"
        group = groups[title] = groups.get(title) or p.add_argument_group(title)
        kind = kind_of(spec.type)
        nargs = "*" if kind in (list, dict) else "?" if kind is bool else None
        extra = {"const": "true"} if kind is bool else {}
        metavar = "BOOL" if kind is bool else "K=V" if kind is dict else getattr(kind, "__name__", "value").upper()
        flags = [f"--{spec.name}", *(f"--{a}" for a, target in aliases(cls).items() if target == spec.name)]
        group.add_argument(*flags, dest=spec.name, nargs=nargs, default=argparse.SUPPRESS, metavar=metavar,
                           help=describe(spec), **extra)  # fmt: skip
    return p


def normalise(cls: type, argv: list[str]) -> list[str]:
    """What argparse alone does not take: --no-flag, --flag=False, --x -1e-3, --with-dashes."""
    known, other = specs(cls), aliases(cls)
    out: list[str] = []
    i = 0
    while i < len(argv):
        word = argv[i]
        i += 1
        if not word.startswith("--") or word == "--":
            out.append(word)
            continue
        name, eq, value = word[2:].partition("=")
        plain = name.replace("-", "_")
        name = plain if plain in known or plain in other else name
        if name not in known and name not in other and re.match(r"no[-_]", name):
            positive = plain[3:]
            positive = other.get(positive, positive)
            if positive in known and kind_of(known[positive].type) is bool and not eq:
                name, eq, value = positive, "=", "false"
        spec = known.get(other.get(name, name))
        kind = kind_of(spec.type) if spec else None
        if spec and not eq and kind is bool:  # --flag false, but not --flag FILE.yaml
            own = i < len(argv) and not argv[i].startswith("-") and not argv[i].endswith(SUFFIXES)
            value, eq = argv[i] if own else "true", "="
            i += own
        if spec and not eq and kind not in (list, dict) and i < len(argv) and re.match(r"-[\d.]", argv[i]):
            eq, value = "=", argv[i]
            i += 1
        if spec and kind in (list, dict):  # --list=a b
            out.append(f"--{name}")
            out.extend([value] if eq else [])
            while i < len(argv) and not re.match(r"--?[a-zA-Z]", argv[i]):
                out.append(" " + argv[i] if argv[i].startswith("-") else argv[i])
                i += 1
            continue
        out.append(f"--{name}{eq}{value}")
    return out


def parse(cls: type, argv: list[str] | None = None, *, doc: str = "", config_flags: tuple[str, ...] = ("--config",)):
    """defaults < files < flags, as an instance of cls. `given` holds the names that the user set, `typed` the flags."""
    argv = sys.argv[1:] if argv is None else list(argv)
    p = parser(cls, doc, config_flags)
    found, rest = p.parse_known_args(normalise(cls, argv))
    found = vars(found)
    files = found.pop("config files") or []
    for word in rest:
        if word.startswith("-"):
            name = word.lstrip("-").split("=")[0]
            if not word.startswith("--") and name.replace("-", "_") in specs(cls):
                raise ValueError(f"unknown option {word.split('=')[0]}: options have two dashes, --{name}")
            near = nearest(native(name, specs(cls)), [*specs(cls), *aliases(cls)], "--")
            raise ValueError(f"unknown option --{name}{near}")
        if not word.endswith(SUFFIXES):
            raise ValueError(f"unexpected argument {word!r} (options start with --; a config file ends in .yaml)")
        files.append(word)
    options, given = cls(), set()
    for path in files:
        values = flatten(cls, read_yaml(path), str(path))
        assign(options, values, str(path))
        given |= set(values)
    assign(options, found)
    options.given, options.typed = given | set(found), set(found)
    return options


def made(options: Any):
    """Options(lr=1e-3) of a notebook as parse() would make them: checked; `given` is what differs from the defaults.

    A copy, as scripts settle what is open in theirs: the caller's may be changed and run again.
    """
    if hasattr(options, "given"):
        return options
    options = copy.deepcopy(options)
    given = {n: value for n, spec in specs(type(options)).items() if (value := get(options, n)) != spec.default}
    assign(options, given)
    options.given, options.typed = set(given), set(given)
    return options


# -----------------------------------------------------------------------------
# saved options


# how a run began: a resume saves these as they were then, so that config.yaml repeats the run from its start
BEGAN = ("init_from", "gpt2_type", "prev_run_ckpt", "init_from_ckpt", "transfer", "strict", "resume", "ckpt_path",
         "trainer.ckpt_path", "tokenizer")  # fmt: skip


def as_data(value: Any) -> Any:
    """A copy for YAML and checkpoints, which hold no Path."""
    if isinstance(value, list | tuple):
        return type(value)(map(as_data, value))
    return str(value) if isinstance(value, Path) else copy.deepcopy(value)


def to_dict(options: Any) -> dict:
    """Plain nested dicts, lists and numbers; secrets left out. Of a resumed run, how it began."""
    out = {}
    for f in dataclasses.fields(options):
        value = getattr(options, f.name)
        if dataclasses.is_dataclass(value):
            value = to_dict(value)
        elif f.metadata.get("secret"):
            value = type(value)() if isinstance(value, str) else None
        out[f.name] = as_data(value)
    for name, value in getattr(options, "began", {}).items():
        *path, last = name.split(".")
        functools.reduce(dict.__getitem__, path, out)[last] = value
    return out


def from_dict(cls: type, data: dict, source: str):
    options = cls()
    assign(options, flatten(cls, data, source), source)
    options.given, options.typed = set(), set()
    return options


def build(cls: type, data: dict, source: str | Path):
    """A model's config from a checkpoint or a config.json: names and types are checked here, values by the class."""
    data = to_dict(from_dict(cls, data, str(source)))
    try:
        return cls(**data)
    except ValueError as e:
        raise ValueError(f"{source}: {e}") from None


def save(options: Any, path: str | Path) -> None:
    """The resolved options as YAML that runs again as it is."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(dump(to_dict(options)), encoding="utf-8")
    temporary.replace(path)


def resume(options: Any, stored: dict, *, fixed: tuple[str, ...] = (), free: tuple[str, ...] = (), own: bool = True):
    """The stored options with those that the user gave now; what changed is listed.

    `fixed` names options or groups that may not change in a run's life; `free` those that belong to the command, not
    to the run (paths, devices), and are always taken as they are now. `own`: it goes on in its own folder, not with
    another run's checkpoint in a new one. Returns (options, {name: (old, new)}).
    """
    cls = type(options)
    known = specs(cls)
    if len(set(stored) & {n.split(".")[0] for n in known}) < 3 / 4 * len(stored):  # a version adds or drops a few
        raise ValueError("the run to resume is another script's: resume it with that one, or name another folder, and"
                         " start from its weights with --init_from=PATH")  # fmt: skip
    then = {n: known[n].default for n in options.given} | flatten_known(cls, stored)  # new since then: its default
    keep = {n: v for n, v in then.items() if n not in free and not known[n].meta.get("secret")}
    merged, changes = copy.deepcopy(options), {}
    for name, old in keep.items():
        new = get(options, name)
        if old is None and type(None) not in typing.get_args(known[name].type):  # it could be none in older versions
            old = known[name].default
        old = coerce(old, known[name].type, f"stored {name}", None)
        if name not in options.given or new == old:
            put(merged, name, old)
            continue
        if name in fixed or known[name].group in fixed or name.split(".")[0] in fixed:
            while isinstance(old, dict) and isinstance(new, dict):  # --model: what of it differs
                key = next(k for k in [*new, *old] if new.get(k, ...) != old.get(k, ...))
                name, old, new = f"{name} {key}", old.get(key), new.get(key)
            raise ValueError(f"--{name} is {old!r} in the run to resume and cannot become {new!r}: start a new run")
        changes[name] = (old, new)
    merged.given = options.given
    merged.began = {n: v for n, v in flatten_known(cls, stored).items() if own and n in free and n in BEGAN}
    return merged, changes


def flatten_known(cls: type, data: dict) -> dict[str, Any]:
    """As flatten, for stored options: names that this version no longer has are dropped."""
    known, out = specs(cls), {}

    def walk(mapping: dict, prefix: str) -> None:
        for key, value in mapping.items():
            if prefix + str(key) in known:
                out[prefix + str(key)] = value
            elif isinstance(value, dict):
                walk(value, f"{prefix}{key}.")

    walk(data, "")
    return out


def safe_name(name: str, what: str) -> str:
    """A name that stays inside its folder: no separators, no dots in front, nothing hidden."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}", name):
        raise ValueError(f"{what} must be a plain name (letters, digits, _ . + -), got {name!r}")
    return name
