"""Every option of every script: the list is frozen, each is read by code, each is explained, none is spelled twice."""

import ast
import importlib
import re
import sys
from pathlib import Path

import pytest

from core import config
from tests.loops import LOOPS

ROOT = Path(__file__).resolve().parent.parent
FROZEN = Path(__file__).parent / "options.txt"
SCRIPTS = ["train", "pretrain", "finetune", "reward_train", "procedural_pretraining.cli", "sample", "plot", "export_hf",
           "data.text.prepare", "data.python_stdlib.prepare", "data.train_tokenizer", "data.build_pretrain_data",
           "data.build_tensors"]  # fmt: skip
SCRIPTS += [loop.module for loop in LOOPS if loop.module not in SCRIPTS]  # a new one


def exists(name: str) -> bool:
    return (ROOT / (name.replace(".", "/") + ".py")).exists()


PRESENT = [name for name in SCRIPTS if exists(name)]


def options(name: str) -> dict[str, config.Spec]:
    return config.specs(importlib.import_module(name).Options)


def listing() -> str:
    """script --option type = default, one a line."""
    lines = []
    for name in PRESENT:
        for spec in options(name).values():
            kind = re.sub(r"typing\.|<class '|'>|_local\.", "", str(spec.type))  # pathlib._local in Python 3.13
            lines.append(f"{name} --{spec.name} {kind} = {spec.default!r}")
    return "\n".join(lines) + "\n"


def test_the_option_list_is_frozen():
    """Names and defaults are the interface: where a change is meant, `python -m tests.test_options` writes it down."""
    assert listing() == FROZEN.read_text()


@pytest.mark.parametrize("name", PRESENT)
def test_every_option_is_read_by_code(name):
    """Somewhere in the script, or in what it hands its options to, the field is an attribute or a key."""
    words: set[str] = set()
    places = ("*.py", "core/*.py", "data/**/*.py", "procedural_*/*.py", "experiments/*.py", "variants/*.py")
    for path in [p for place in places for p in ROOT.glob(place)]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                words.add(node.attr)
            elif isinstance(node, ast.Dict):  # a table from option names to what reads them
                words |= {k.value for k in node.keys if isinstance(k, ast.Constant) and isinstance(k.value, str)}
            elif isinstance(node, ast.ClassDef) and node.name.endswith("Config"):
                # model options go over by name: a config's field of the same name reads them
                words |= {n.target.id for n in node.body if isinstance(n, ast.AnnAssign)}
    unread = [n for n in options(name) if n.split(".")[-1] not in words]
    assert not unread, f"{name} has options that no code reads: {unread}"


@pytest.mark.parametrize("name", PRESENT)
def test_every_option_is_in_help_and_in_a_group(name, capsys):
    module = importlib.import_module(name)
    with pytest.raises(SystemExit):
        config.parse(module.Options, ["--help"], doc=module.__doc__)
    text = capsys.readouterr().out
    for spec in options(name).values():
        assert f"--{spec.name}" in text
        assert spec.group or len(options(name)) < 16, f"{spec.name} is in no group"
    assert "python" in module.__doc__, "examples first"
    assert max(map(len, text.splitlines())) <= 120


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    FROZEN.write_text(listing())
