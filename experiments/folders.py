"""Experiment folders: names, and config.yaml files changed line by line, so that their comments stay."""

import re
from pathlib import Path

import yaml

from core import config, exits, files
from core.values import Loader, at_home, dump, nearest, read_yaml
from experiments.sections import KINDS

TEMPLATES = Path(__file__).parent / "config_templates"


def existing(kind: str) -> list[str]:
    return sorted(p.parent.name for p in Path("experiments", kind).glob("*/config.yaml"))


def place(kind: str, name: str) -> Path:
    """experiments/KIND/NAME below the current directory, and nowhere else."""
    path = Path("experiments", kind, config.safe_name(name, f"the name of a {kind} experiment"))
    if path.is_symlink():
        raise ValueError(f"{path} is a link: an experiment is a folder of its own in {path.parent}")
    return path


def find(kind: str, name: str) -> Path:
    """The folder of an experiment that exists."""
    path = place(kind, name)
    if not (path / "config.yaml").is_file():
        there = existing(kind)
        known = f"there are {', '.join(there)}" if there else f"{path.parent} holds none"
        raise ValueError(f"no {kind} experiment is called {name!r}: {known}{nearest(name, there)}")
    return path


def results(path: Path) -> Path:
    """Where an experiment's results lie: its output_dir, else its own folder."""
    about = read_yaml(path / "config.yaml").get("experiment") if (path / "config.yaml").is_file() else None
    found = Path(at_home(str(isinstance(about, dict) and about.get("output_dir") or path)))
    if found.resolve() != path.resolve() and (found / "config.yaml").is_file():  # as a copied folder's says
        raise ValueError(f"{path / 'config.yaml'}: experiment.output_dir {found} is another experiment's folder")
    return found


def foreign(kind: str, name: str | None, path: Path) -> str:
    """Whose folder a path lies in, where that is another experiment's than the one that is named."""
    root, path = Path("experiments", kind).resolve(), path.resolve()
    found = path.relative_to(root).parts[0] if path.is_relative_to(root) and path != root else ""
    return found if name and found != name and (root / found / "config.yaml").is_file() else ""


def create(kind: str, name: str, text: str) -> Path:
    """A new experiment folder with its config.yaml; one that is there is left alone."""
    path = place(kind, name)
    draft = files.draft(path / "config.yaml")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        edit = ", or edit its config.yaml" if (path / "config.yaml").is_file() else ""
        raise ValueError(f"{path} exists already: choose another name{edit}")
    path.mkdir(parents=True, exist_ok=True)
    try:
        with exits.writing(path):
            draft.write_text(text, encoding="utf-8")
        draft.replace(path / "config.yaml")
    finally:
        files.remove(draft)
    return path


# -----------------------------------------------------------------------------
# YAML as text


def load(text: str) -> dict:
    return yaml.load(text, Loader=Loader) or {}


def lines_of(text: str) -> dict[str, int]:
    """{dotted key: its line} of a config in block style."""
    found, path = {}, []
    for i, line in enumerate(text.splitlines()):
        if m := re.match(r"( *)(\w+):(\s|$)", line):
            path = [(depth, key) for depth, key in path if depth < len(m[1])] + [(len(m[1]), m[2])]
            found[".".join(key for _, key in path)] = i
    return found


def fill(text: str, values: dict) -> str:
    """The same text with other values, by dotted key, each in the spelling that the text has of it."""
    data, lines, at = load(text), text.splitlines(), lines_of(text)
    spellings = {name: other for cls in KINDS.values() for other, name in config.aliases(cls).items()}
    for key, value in values.items():
        *sections, last = key.split(".")
        inner = data
        for section in sections:
            if not isinstance(inner.get(section), dict):
                inner[section] = {}
            inner = inner[section]
        if (other := spellings.get(key, key).split(".")[-1]) in inner:
            key, last = ".".join([*sections, other]), other
        inner[last] = value
        if key in at:
            before, comment = re.match(r"(\s*\w+:).*?(\s+#.*)?$", lines[at[key]]).groups()
            written = dump(value, width=10**6).removesuffix("...\n").strip()
            lines[at[key]] = f"{before} {written}{comment or ''}"
    return checked("\n".join(lines) + "\n", data)


def section(text: str, name: str) -> tuple[int, int]:
    """First line and end of a top-level section."""
    lines, start = text.splitlines(), lines_of(text)[name]
    inside = (i for i in range(start + 1, len(lines)) if lines[i].strip() and not lines[i].startswith(" "))
    end = next(inside, len(lines))
    while not lines[end - 1].strip():
        end -= 1
    return start, end


def graft(text: str, other: str, names: tuple[str, ...]) -> str:
    """The same text with these sections as they stand in another one."""
    data, donor = load(text), load(other)
    for name in names:
        data[name] = donor.get(name, {})
        if name in donor and name in lines_of(other):
            (a, b), (c, d) = section(text, name), section(other, name)
            lines = text.splitlines()
            text = "\n".join(lines[:a] + other.splitlines()[c:d] + lines[b:]) + "\n"
    return checked(text, data)


def checked(text: str, data: dict) -> str:
    """The edited text where it says what it should; else (flow style, a key left out) the data written anew."""
    try:
        if load(text) == data:
            return text
    except yaml.YAMLError:
        pass
    return dump(data)
