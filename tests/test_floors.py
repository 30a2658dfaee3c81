"""Imports go downward only, and what design.md forbids is not there: read from the source with ast."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.loops import LOOPS, ROOT

SCRIPTS = (*(loop.module for loop in LOOPS), "sample", "plot", "export_hf", "procedural_pretraining")
FLOOR_0 = ("core.rng", "core.schedule", "core.values", "variants")
FLOOR_1 = ("core.config", "core.dist", "procedural_data")
LAZY = ("wandb", "tensorboard", "torch.utils.tensorboard", "tiktoken", "matplotlib", "tokenizers", "transformers",
        "datasets", "sklearn", "pytorch_optimizer")  # fmt: skip
REFERENCES = ("transformers", "sklearn", "accelerate")


def modules() -> dict[str, Path]:
    """Without the environments that lie in the checkout, whatever they are called: venv, env, .venv."""
    skip = {ROOT / "tests", ROOT / "bench", *(p.parent for p in ROOT.glob("*/pyvenv.cfg"))}
    files = [p for p in ROOT.rglob("*.py") if skip.isdisjoint(p.parents)]
    return {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in files}


MODULES = modules()


def test_an_environment_in_the_checkout_is_none_of_ours(tmp_path, monkeypatch):
    for name in ("venv/lib/site.py", "venv/pyvenv.cfg", "model.py", "data/venv.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert set(modules()) == {"model", "data.venv"}


def under(name: str, roots) -> bool:
    return any(name == r or name.startswith(r + ".") for r in roots)


def floor(name: str) -> int | None:
    if under(name, FLOOR_0):
        return 0
    if under(name, FLOOR_1):
        return 1
    if name == "train_args":
        return 3
    if under(name, SCRIPTS) or name.startswith("experiments"):
        return 4
    if under(name, ("model", "core", "data")):
        return 2
    return None


def imports(path: Path, top_only: bool = False) -> list[tuple[str, int, bool]]:
    """(module, line, at the top of the file?) of every import."""
    tree = ast.parse(path.read_text())
    lazy = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    out = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            out += [(a.name, node.lineno, id(node) not in lazy) for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            out += [(f"{node.module}.{a.name}" if f"{node.module}.{a.name}" in MODULES else node.module, node.lineno,
                     id(node) not in lazy) for a in node.names]  # fmt: skip
    return [i for i in out if i[2] or not top_only]


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_downward(name):
    mine = floor(name)
    assert mine is not None, f"{name} is on no floor: a loop gets a row in tests/loops.py, another script a name in SCRIPTS"
    for other, line, top in imports(MODULES[name]):
        theirs = floor(other) if other in MODULES or other.split(".")[0] in ("core", "data", "variants") else None
        if theirs is None:
            continue
        where = f"{name}:{line} imports {other}"
        assert theirs <= mine, where
        mates = name.startswith(("experiments", "procedural_pretraining")) and other.startswith(name.split(".")[0])
        if mine == 4 and theirs == 4 and not mates:
            assert name == "train" and not top, f"{where}: scripts do not import each other"
        if name.startswith("core"):
            assert not under(other, ("model", "data")), where


@pytest.mark.parametrize("name", [n for n in MODULES if under(n, ("model", "variants"))])
def test_models_know_nothing_of_the_world(name):
    """No rank, environment, argv, file or print in model.py and variants/."""
    tree = ast.parse(MODULES[name].read_text())
    called = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    assert not called & {"print", "open"}
    assert not {m.split(".")[0] for m, _, _ in imports(MODULES[name])} & {"os", "sys", "argparse", "pathlib"}
    assert not any(m.startswith("torch.distributed") for m, _, _ in imports(MODULES[name]))


@pytest.mark.parametrize("name", MODULES)
def test_heavy_packages_load_late(name):
    for other, line, top in imports(MODULES[name]):
        assert not (top and under(other, LAZY)), f"{name}:{line} imports {other} at the top"
        assert not under(other, REFERENCES), f"{name}:{line}: {other} is for tests and benchmarks"
        if name.startswith("data"):
            assert not other.startswith("torch.distributed"), f"{name}:{line}"


def test_no_circles_within_a_floor():
    edges = {n: {o for o, _, top in imports(p) if top and o in MODULES and o != n} for n, p in MODULES.items()}
    done, path = set(), []

    def visit(n):
        assert n not in path, " -> ".join([*path[path.index(n) :], n])
        if n in done:
            return
        path.append(n)
        for other in edges[n]:
            visit(other)
        path.pop()
        done.add(n)

    for n in edges:
        visit(n)


def test_every_torch_load_reads_data_only():
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                words = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert words.get("weights_only") == "True", f"{name}:{node.lineno}"


@pytest.mark.parametrize("script", ["train", "sample"])
def test_help_loads_nothing_heavy(script):
    code = (f"import sys; import {script}; late = {LAZY!r}; "
            "assert not [m for m in late if m in sys.modules], [m for m in late if m in sys.modules]")  # fmt: skip
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
