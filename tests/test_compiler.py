"""torch.compile where a machine lacks what it takes: a line, not a traceback at the first step."""

import importlib.util

import pytest
import torch

from core import compiler
from core.run import guard
from tests import pretended_gpu
from tests.loops import LOOPS, made_once

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
COMPILED = [loop for loop in LOOPS if loop.name in ("train", "pretrain", "procedural_pretraining")]


@pytest.fixture
def bare(monkeypatch):
    monkeypatch.setenv("PATH", "")
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("loop", COMPILED, ids=lambda loop: loop.name)
def test_asked_for_without_a_compiler_it_is_refused_at_the_start(loop, bare, tmp_path, tmp_path_factory, capsys):
    data, out = made_once(tmp_path_factory.mktemp)(loop), tmp_path / "out"
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop, guard():
        loop.run([*loop.flags(data, out), *loop.steps(2), "--compile"])
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and "--compile needs a C++ compiler: " in line and not out.exists()
    loop.run([*loop.flags(data, out), *loop.steps(2)])


def test_gpus_compile_where_they_can(bare, monkeypatch):
    with pretended_gpu.plugged_in():
        found = {"triton": None}
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: found[name])
        assert compiler.choose(GPU, None) == (False, "compile off (needs triton, a package)")
        found["triton"] = "there"
        on, said = compiler.choose(GPU, None)
        assert not on and "a C compiler" in said
        with pytest.raises(ValueError, match="--compile needs a C compiler"):
            compiler.choose(GPU, True)
        monkeypatch.setenv("CC", "cc")
        monkeypatch.setattr(torch._functorch.config, "graphsafe_rng_functionalization", True)  # torch's own
        assert compiler.choose(GPU, None) == compiler.choose(GPU, True) == (True, "compile on")
        assert not torch._functorch.config.graphsafe_rng_functionalization  # recomputed dropout heeds a step's seed
        assert compiler.choose(GPU, False)[0] is compiler.choose(GPU, None, default=False)[0] is False
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (6, 1))
        assert compiler.choose(GPU, None) == (False, "compile off (needs a GPU of compute capability 7.0)")
    assert compiler.choose(CPU, None) == (False, "compile off")
