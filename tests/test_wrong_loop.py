"""The contract of tests/test_loops.py catches what it should: a right loop passes, and five wrong ones fail."""

import os
import traceback
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from core import run
from tests import test_loops
from tests.loops import Loop, port


class Forked:
    """Ranks as forks of this process: a launch in half a second."""

    def __init__(self, loop, argv: list[str], ranks: int, log: Path):
        self.log, self.children, self.returncode = log, [], None
        at = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port())}
        for rank in range(ranks):
            child = os.fork()
            if child:
                self.children.append(child)
                continue
            try:
                os.environ.update(at, RANK=str(rank), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(ranks))
                torch.set_num_threads(1)  # a fork has none of its parent's
                with open(log, "a") as f:
                    os.dup2(f.fileno(), 1)
                    os.dup2(f.fileno(), 2)
                with run.guard():
                    loop.run(argv)
            except BaseException:
                traceback.print_exc()
            os._exit(1)  # not reached by a rank that joined its group: guard ends it

    def communicate(self, timeout: float) -> tuple[str, None]:
        self.returncode = max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in self.children)
        return self.log.read_text(), None


class Row(Loop):
    def spawn(self, argv: list[str], ranks: int = 1, **popen) -> Forked:
        return Forked(self, [str(a) for a in argv], ranks, Path(argv[0].split("=")[1]).with_suffix(".log"))


RIGHT = Row(
    name="sixth",
    module="tests.wrong_loop",
    data=lambda folder: None,
    flags=lambda data, out: [f"--out_dir={out}"],
    steps=lambda n: [f"--max_steps={n}"],
    batch=lambda micro, acc, ranks: [f"--batch_size={micro}", f"--accumulate={acc}"],
    resume=lambda out: ["--resume"],
    seed=lambda n: [f"--seed={n}"],
    last=lambda out: out / "ckpt.pt",
    first_loss=2.303,  # ln 10
    evaluates=False,
)


def resumed(loop, tmp_path, monkeypatch):
    test_loops.resume_equals(loop, lambda loop: tmp_path, tmp_path, monkeypatch)


def stopped(loop, tmp_path, monkeypatch):
    test_loops.test_sigterm_saves_and_resumes(loop, lambda loop: tmp_path, tmp_path, monkeypatch)


def cut(loop, tmp_path, monkeypatch):
    test_loops.test_a_batch_may_be_cut(loop, lambda loop: tmp_path, tmp_path)


def ranks(loop, tmp_path, monkeypatch):
    test_loops.ranks_equal(loop, lambda loop: tmp_path, tmp_path)


def first(loop, tmp_path, monkeypatch):
    test_loops.test_first_logged_loss_is_the_loss(loop, lambda loop: tmp_path, tmp_path)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(test_loops.tracker, "draw", lambda *a: None)


@pytest.mark.parametrize("claim", [resumed, stopped, cut, ranks, first], ids=lambda f: f.__name__)
def test_a_right_loop_passes(claim, tmp_path, monkeypatch):
    claim(RIGHT, tmp_path, monkeypatch)


@pytest.mark.parametrize(("wrong", "claim"), [
    ("rng", resumed), ("rng", stopped),  # a generator that no checkpoint holds
    ("loss", cut), ("loss", ranks),  # divided by what one rank and micro-step counted
    ("mask", cut), ("mask", ranks),  # drawn by rank
    ("step", resumed), ("step", stopped),  # the checkpoint says one step too few
    ("log", first),  # half the loss
], ids=lambda x: x if isinstance(x, str) else x.__name__)  # fmt: skip
def test_a_wrong_loop_is_caught(wrong, claim, tmp_path, monkeypatch):
    flags = RIGHT.flags
    loop = replace(RIGHT, flags=lambda data, out: [*flags(data, out), f"--wrong={wrong}"])
    with pytest.raises(AssertionError):
        claim(loop, tmp_path, monkeypatch)
