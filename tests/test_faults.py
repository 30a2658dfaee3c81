"""Faults that need a whole script, each under its number in docs/reliability.md, for every script that it concerns:
the exit code, the one line, and what is left on disk. The rows that a part alone can hold are in that part's tests.
"""

import errno
import fcntl
import json
import math
import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import termios
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from core import checkpoint, disk, exits, metrics, preflight, run, tracker
from tests.loops import LOOPS, ROOT, TRAIN, stopped_at
from tests.test_loops import Killed, finish, losses, same, weights

# a loop of one's own joins by a line here, in CHANGES and in SIZES
RATE = {"train": "--learning_rate", "procedural_pretraining.cli": "--lr", "finetune": "--learning_rate",
        "reward_train": "--model_params.learning_rate", "pretrain": "--lr"}  # fmt: skip
SCRIPTS = list({loop.module: loop for loop in reversed(LOOPS) if loop.module in RATE}.values())[::-1]  # first rows
BY_NAME = {loop.module: loop for loop in SCRIPTS}
EACH = pytest.mark.parametrize("loop", SCRIPTS, ids=lambda loop: loop.module)
STEPS = 6  # with a checkpoint at 3 and at 6


def only(*modules: str):
    """For the scripts that a row concerns."""
    found = [BY_NAME[m] for m in modules if m in BY_NAME]
    return pytest.mark.parametrize("loop", found, ids=lambda loop: loop.module)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """They take longer than the runs."""
    import reward_train
    from procedural_pretraining import cli

    for module, name in ((tracker, "draw"), (metrics, "draw_confusion"), (reward_train, "draw"), (cli, "draw_scores")):
        monkeypatch.setattr(module, name, lambda *a: None)


@pytest.fixture(autouse=True)
def free():
    """No test leaves a lock or a signal handler to the next."""
    yield
    with_lock = exits.held
    if with_lock:
        with_lock.leave(1)
    checkpoint._failed.clear()


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    made = {}

    def get(loop) -> Path:
        if loop.module not in made:
            made[loop.module] = tmp_path_factory.mktemp("data")
            loop.data(made[loop.module])
        return made[loop.module]

    return get


@pytest.fixture(scope="session")
def finished(data, tmp_path_factory):
    """A run of STEPS steps, made once; each test gets a copy."""
    made = {}

    def copy(loop, to: Path) -> Path:
        if loop.module not in made:
            made[loop.module] = tmp_path_factory.mktemp("run") / "r"
            loop.run(begin(loop, data(loop), made[loop.module]))
        shutil.copytree(made[loop.module], to, dirs_exist_ok=True)
        return to

    return copy


def begin(loop, data: Path, out: Path, *more: str) -> list[str]:
    return [*loop.flags(data, out), *loop.steps(STEPS), *loop.batch(4, 1, 1), *more]


def again(loop, data: Path, out: Path, *more: str) -> list[str]:
    return [*begin(loop, data, out), *loop.resume(out), *more]


def end(loop, argv: list[str], capsys) -> tuple[int, str]:
    """(exit code, stderr) as the command line would end."""
    capsys.readouterr()
    code = 0
    try:
        with run.guard():
            loop.run(argv)
    except SystemExit as e:
        code = e.code
    return code, capsys.readouterr().err


def refused(loop, argv: list[str], capsys, *says: str) -> None:
    """Exit 2 and one line that says why."""
    code, err = end(loop, argv, capsys)
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(lines) == 1 and "Traceback" not in err, (code, err)
    assert all(word in lines[0] for word in says), lines[0]


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def states(out: Path) -> list[Path]:
    """The checkpoints that a resume may take, the newest first."""
    return [p for p in checkpoint.candidates(out, "ckpt.pt") if p.name != "best.pt"]


def rewind(out: Path) -> None:
    """As the folder was before its last save."""
    newest, before = states(out)[:2]
    if newest.parent == out:
        newest.unlink()
        before.replace(newest)
    else:  # pretrain.py's checkpoint-STEP folders
        shutil.rmtree(newest.parent)
        shutil.rmtree(out / "final")


# -----------------------------------------------------------------------------
# 1 to 5: what ends a run, and what becomes of its checkpoints


def test_row_1_a_killed_writer_leaves_the_one_before(tmp_path):
    """SIGKILL at any moment of a save: what is there loads, and the next start sweeps the rest away."""
    path, rng, half = tmp_path / "ckpt.pt", np.random.default_rng(0), 0
    state = checkpoint.pack(kind="toy", model=torch.nn.Linear(300, 300), model_config={}, optimizer=None, loop={},
                            seed=0, step=0, best=None, options={}, meta={})  # fmt: skip
    checkpoint.save(path, state)
    for _ in range(15):
        child = os.fork()
        if not child:
            for step in range(10**6):
                state["step"] = step
                checkpoint.write(path, state, (), True)
        time.sleep(0.02 + 0.02 * rng.random())
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert checkpoint.load(path)["model"]["weight"].shape == (300, 300)
        half += bool(list(tmp_path.glob(".ckpt*tmp*")))
        folder = run.claim(tmp_path)
        folder.begin(holds="continue", resume=True)
        folder.finish()
        assert not list(tmp_path.glob(".ckpt*tmp*"))
    assert half, "no kill fell into a save: this test shows nothing"


@EACH
def test_row_1_killed_while_saving(loop, data, finished, tmp_path, monkeypatch):
    out, real, calls = tmp_path / "r", disk.replace, []
    argv = begin(loop, data(loop), out)

    def replace(path, write, *also):
        calls.extend([path] * (path.suffix == ".pt"))
        if len(calls) == 2:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name(f".{path.name}.tmp-1").write_bytes(b"half")
            raise Killed
        real(path, write, *also)

    with monkeypatch.context() as m:
        m.setattr(disk, "replace", replace)
        with pytest.raises(Killed):
            loop.run(argv)
    exits.held.leave(1)
    assert list(out.rglob(".*.tmp-1"))
    loop.run(again(loop, data(loop), out))
    assert not list(out.rglob(".*.tmp-1"))
    assert same(weights(loop, out), weights(loop, finished(loop, tmp_path / "whole")))


@EACH
def test_row_3_disk_full(loop, data, finished, tmp_path, capsys):
    """By a file size limit: 74, one line, the old checkpoint intact; with room again the run goes on."""
    out = finished(loop, tmp_path / "r")
    rewind(out)
    before = states(out)[0].read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        code, err = end(loop, again(loop, data(loop), out), capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 74 and err.count("error: ") == 1 and "cannot write" in err and "Traceback" not in err
    status = run.read_status(out)
    assert (status["state"], status["code"]) == ("failed", 74) and "cannot write" in status["message"]
    assert states(out)[0].read_bytes() == before
    loop.run(again(loop, data(loop), out))
    assert same(weights(loop, out), weights(loop, finished(loop, tmp_path / "whole")))


@EACH
def test_row_11_the_run_of_another_script_is_not_resumed(loop, data, finished, tmp_path, capsys):
    for other in SCRIPTS:
        if other.module != loop.module:
            out = finished(other, tmp_path / other.name)
            code, err = end(loop, [*loop.flags(data(loop), out), *loop.resume(out)], capsys)
            assert code == 2 and ("another script's" in err or "nothing to resume" in err), (other.name, err)


@EACH
@pytest.mark.parametrize("damage", ["cut", "empty", "flip"])
def test_rows_4_and_5_damage(loop, damage, data, finished, tmp_path, capsys):
    """The newest is damaged: the one before is used, said so, and the end is the same."""
    out = finished(loop, tmp_path / "r")
    newest = states(out)[0]
    raw = newest.read_bytes()
    newest.unlink()  # other names of the same bytes stay whole
    flipped = raw[:2000] + bytes([raw[2000] ^ 1]) + raw[2001:]
    newest.write_bytes({"cut": raw[: len(raw) // 2], "empty": b"", "flip": flipped}[damage])
    capsys.readouterr()
    loop.run(again(loop, data(loop), out))
    assert "is damaged or incomplete (its SHA-256 does not match); trying the one before" in capsys.readouterr().err
    assert same(weights(loop, out), weights(loop, finished(loop, tmp_path / "whole")))


def test_rows_4_and_5_a_damaged_folder_does_not_push_out_a_good_one(tmp_path):
    """checkpoint-3 is all there is: it stays until the next one is written."""
    state = checkpoint.pack(kind="toy", model=torch.nn.Linear(2, 2), model_config={}, optimizer=None, loop={}, seed=0,
                            step=3, best=None, options={}, meta={})  # fmt: skip
    for step in (3, 6):
        checkpoint.save(tmp_path / f"checkpoint-{step}" / "ckpt.pt", state)
    (tmp_path / "checkpoint-6" / "ckpt.pt").write_bytes(b"x")
    assert checkpoint.newest(tmp_path)[1].parent.name == "checkpoint-3"
    (tmp_path / "checkpoint-9").mkdir()  # a kill before the first byte
    checkpoint.prune(tmp_path, 1)
    assert checkpoint.newest(tmp_path)[1].parent.name == "checkpoint-3"
    (tmp_path / "checkpoint-9").rmdir()
    checkpoint.save(tmp_path / "checkpoint-6" / "ckpt.pt", state)  # written anew, it counts again
    checkpoint.prune(tmp_path, 1)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-6"]


@EACH
def test_weights_that_fit_no_model_or_are_not_finite_are_refused(loop, data, finished, tmp_path, capsys):
    """The file is whole, and nothing that it says can be used; one that diverged is passed over for the one before."""
    out = finished(loop, tmp_path / "r")
    state = checkpoint.load(loop.last(out))
    name, w = next((name, w) for name, w in state["model"].items() if "attn" in name and w.dim() == 2)

    def save(path: Path, weights: dict, **shape) -> None:
        weights = {k: v for k, v in weights.items() if v is not None}
        whole = state | {"model": weights, "model_config": state["model_config"] | shape}
        checkpoint.save(path, whole, keep=False)

    says = {"heads": (3, "unknown key 'heads'"), "n_layer": ("two", "n_layer must be a whole number, got 'two'"),
            "n_head": (0, "n_head must be")}  # fmt: skip
    for key, (value, problem) in says.items():
        save(states(out)[0], state["model"], **{key: value})
        refused(loop, again(loop, data(loop), out), capsys, problem)
    for bad in (None, w[:, 1:].contiguous()):
        save(states(out)[0], state["model"] | {name: bad})
        before = files(out)
        refused(loop, again(loop, data(loop), out), capsys, f"does not fit its own config: {name} is", str(out))
        assert files(out) == before
    for path in [*states(out), *out.rglob("best.pt")]:
        save(path, state["model"] | {name: w * float("nan")})
    code, err = end(loop, again(loop, data(loop), out), capsys)
    assert code == 2 and f"weights that are not finite, beginning with {name}" in err and "Traceback" not in err
    option = "--model_name" if loop.module == "reward_train" else "--init_from"
    argv = begin(loop, data(loop), tmp_path / "n", f"{option}={loop.last(out)}")
    refused(loop, argv, capsys, f"weights that are not finite, beginning with {name}")
    assert not (tmp_path / "n").exists()


def test_a_checkpoint_under_a_name_of_the_users_own_is_neither_pruned_nor_resumed(tmp_path):
    for name in ("checkpoint-3", "checkpoint-3-keep", "checkpoint-6", "checkpoint-9-old", "checkpoint-best"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ckpt.pt").touch()
    assert [p.parent.name for p in checkpoint.candidates(tmp_path, "ckpt.pt")] == ["checkpoint-6", "checkpoint-3"]
    checkpoint.prune(tmp_path, 1)
    assert {p.name for p in tmp_path.iterdir()} == {
        "checkpoint-3-keep", "checkpoint-6", "checkpoint-9-old", "checkpoint-best"}  # fmt: skip


# -----------------------------------------------------------------------------
# 6 to 10: foreign files, and folders that hold something


class Evil:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@EACH
def test_row_6_a_malicious_checkpoint(loop, data, finished, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    mark, evil, out = tmp_path / "executed", tmp_path / "evil.pt", tmp_path / "new"
    torch.save({"model": Evil(mark)}, evil)
    option = "--model_name" if loop.module == "reward_train" else "--init_from"
    refused(loop, begin(loop, data(loop), out, f"{option}={evil}"), capsys, str(evil))
    assert not out.exists()
    out = finished(loop, tmp_path / "r")
    for path in [*states(out), *out.rglob("best.pt"), *out.rglob("final/*.pt")]:
        path.write_bytes(pickle.dumps(Evil(mark)))
    refused(loop, again(loop, data(loop), out), capsys, "no checkpoint in", "is intact")
    assert not mark.exists()


@only("train")
def test_row_7_a_malicious_meta_pkl(loop, data, tmp_path, capsys):
    shutil.copytree(data(loop) / "toy", tmp_path / "toy")
    (tmp_path / "toy" / "meta.json").unlink()
    (tmp_path / "toy" / "meta.pkl").write_bytes(pickle.dumps(Evil(tmp_path / "executed")))
    refused(loop, begin(loop, tmp_path, tmp_path / "r"), capsys, "meta.pkl is refused")
    assert not (tmp_path / "executed").exists() and not (tmp_path / "r").exists()


@EACH
def test_row_8_resume_without_a_checkpoint(loop, data, tmp_path, capsys):
    refused(loop, again(loop, data(loop), tmp_path / "r"), capsys, "nothing to resume", "holds no checkpoint")
    assert not (tmp_path / "r").exists()


@EACH
def test_row_9_a_second_run_loses_nothing(loop, data, finished, tmp_path, capsys):
    out = finished(loop, tmp_path / "r")
    before = files(out)
    capsys.readouterr()
    if loop.module == "pretrain":  # the same command goes on with the run: it is finished
        loop.run(begin(loop, data(loop), out))
        assert "this run is finished at step 6" in capsys.readouterr().out
        assert checkpoint.load(loop.last(out))["step"] == STEPS and not (tmp_path / "r.1").exists()
        return
    loop.run(begin(loop, data(loop), out, *loop.seed(5)))
    assert f"{out} held a run: moved to {out}.1" in capsys.readouterr().out
    assert files(tmp_path / "r.1") == before
    assert not same(weights(loop, out), weights(loop, tmp_path / "r.1"))


@EACH
def test_row_10_a_folder_in_use(loop, data, finished, tmp_path, capsys):
    out = finished(loop, tmp_path / "r")
    holder, exits.held = run.claim(out), None  # another process's, as far as the guard knows
    before = files(out)
    for argv in (begin(loop, data(loop), out), again(loop, data(loop), out)):
        refused(loop, argv, capsys, f"is in use by process {os.getpid()} on")
    assert files(out) == before and not (tmp_path / "r.1").exists()
    holder.leave(0)


# -----------------------------------------------------------------------------
# 11 to 16: options

# (what may not change, a word of the message), ... then what may
CHANGES = {
    "train": ([("--n_layer=1", "--n_layer is 2"), ("--seed=4", "--seed is 1337"), ("--dataset={data}/x", "--dataset"),
               ("--batch_size=8", "is 4 in the run to resume and cannot become 8"), ("--block_size=4", "--block_size")],
              ["--max_iters=9", "--eval_interval=2", "--log_interval=2"]),
    "procedural_pretraining.cli": ([("--gpt2_size=1_2_16", "--gpt2_size is '2_2_16'"), ("--seed=4", "--seed is 42"),
                                    ("--task=sort", "--task is 'reverse'"), ("--batch_size=8", "batch of 4, not 8")],
                                   ["--max_steps=9", "--save_every_steps=2"]),
    "reward_train": ([("--seed=4", "--seed is 42"), ("--data.max_length=32", "max_length is 64"),
                      ("--data.data_dir={data}/other.json", "data_dir"), ("--model_params.freeze_emb", "freeze_emb"),
                      ("--data.batch_size=8", "is 4 in the run to resume and cannot become 8")],
                     ["--trainer.params.max_steps=9", "--trainer.params.val_check_interval=2"]),
    "finetune": ([("--seed=4", "--seed is 420"), ("--train={data}/val.pt", "--train is"), ("--pooling=max", "--poo"),
                  ("--batch_size=8", "is 4")],
                 ["--max_steps=9", "--eval_interval=2"]),
    "pretrain": ([("--seed=4", "--seed is 42"), ("--hidden_depth=1", "--hidden_depth is"), ("--per_device=8", "is 4")],
                 ["--epochs=200", "--eval_interval=2"]),
}  # fmt: skip


@EACH
def test_row_11_what_may_change_on_a_resume(loop, data, finished, tmp_path, capsys):
    out = finished(loop, tmp_path / "r")
    fixed, free_ = CHANGES[loop.module]
    before = files(out)
    for flag, says in fixed:
        refused(loop, again(loop, data(loop), out, flag.format(data=data(loop))), capsys, says)
    assert {k: v for k, v in files(out).items() if k != ".lock"} == {k: v for k, v in before.items() if k != ".lock"}
    capsys.readouterr()
    loop.run(again(loop, data(loop), out, *free_, "--check"))
    shown = capsys.readouterr().out
    for flag in free_:
        name, value = flag[2:].split("=")
        assert f"  {name}: " in shown and f"-> {value}" in shown


@EACH
def test_row_12_a_new_learning_rate_takes_effect(loop, data, finished, tmp_path):
    out = finished(loop, tmp_path / "r")
    rewind(out)
    loop.run(again(loop, data(loop), out, f"{RATE[loop.module]}=5e-4"))
    new, old = (tracker.read(p / loop.csv) for p in (out, finished(loop, tmp_path / "whole")))
    rates = [[row["lr"] for row in rows] for rows in (old, new)]
    assert rates[0][:3] == rates[1][:3]
    assert rates[1][3:] == pytest.approx([lr * 5e-4 / 1e-2 for lr in rates[0][3:]], rel=0.2)
    groups = checkpoint.load(loop.last(out))["optimizer"]["param_groups"]
    assert max(g["lr"] for g in groups) <= 5e-4
    assert not same(weights(loop, out), weights(loop, tmp_path / "whole"))


@EACH
def test_row_14_an_unknown_name(loop, data, tmp_path, capsys):
    refused(loop, begin(loop, data(loop), tmp_path / "r", "--sead=3"), capsys, "--sead, did you mean '--seed'?")
    (tmp_path / "c.yaml").write_text("sead: 3\n")
    refused(loop, [*begin(loop, data(loop), tmp_path / "r"), str(tmp_path / "c.yaml")], capsys, "c.yaml", "'seed'?")
    assert not (tmp_path / "r").exists()


@EACH
def test_rows_15_and_16_a_wrong_value(loop, data, tmp_path, capsys):
    refused(loop, begin(loop, data(loop), tmp_path / "r", "--seed=1.5"), capsys, "--seed must be a whole number")
    for text, says in (("seed: [1]", "seed"), ("seed: !!python/object/apply:os.getpid []", "python/object")):
        (tmp_path / "c.yaml").write_text(text)
        refused(loop, [*begin(loop, data(loop), tmp_path / "r"), str(tmp_path / "c.yaml")], capsys, "c.yaml", says)
    assert not (tmp_path / "r").exists()


# -----------------------------------------------------------------------------
# 17 to 30: data and tokenizers


@only("train")
@pytest.mark.parametrize(("break_it", "says"), [
    (lambda f: f.write_bytes(f.read_bytes()[:-1]), "no whole number of uint16 ids"),
    (lambda f: f.write_bytes(b""), "is empty: 0 bytes"),
    (lambda f: f.write_bytes(f.read_bytes()[:-2]), "prepare it again"),
    (lambda f: np.array([3] * 5000 + [11] + [3] * 399, np.uint16).tofile(f), "id 11 at offset 5,000"),
    (lambda f: (f.write_bytes(bytes(16)), (f.parent / "meta.json").write_text('{"vocab_size": 11}')),
     "holds 8 ids, block_size 8 needs 9"),
    (lambda f: (np.arange(100, 5100, dtype=np.uint32).tofile(f), (f.parent / "meta.json").unlink()), "like uint32"),
], ids=["odd", "empty", "short", "id", "block", "wide"])  # fmt: skip
def test_rows_17_to_21_bins(loop, break_it, says, data, tmp_path, capsys):
    shutil.copytree(data(loop) / "toy", tmp_path / "toy")
    break_it(tmp_path / "toy" / "train.bin")
    refused(loop, begin(loop, tmp_path, tmp_path / "r"), capsys, "train.bin", says)
    assert not (tmp_path / "r").exists()


@only("pretrain")
@pytest.mark.parametrize(("break_it", "says"), [
    (lambda raw: raw[:-8], "no end marker"), (lambda raw: b"", "is not an Arrow file: 0 bytes"),
    (lambda raw: raw[:300] + bytes(200) + raw[500:], ""),
])  # fmt: skip
def test_rows_22_to_25_arrow(loop, break_it, says, data, tmp_path, capsys):
    shutil.copytree(data(loop), tmp_path / "data")
    for path in (tmp_path / "data").rglob("*.arrow"):
        path.write_bytes(break_it(path.read_bytes()))
    refused(loop, begin(loop, tmp_path / "data", tmp_path / "r"), capsys, ".arrow", says)
    assert not (tmp_path / "r").exists()


@only("reward_train")
@pytest.mark.parametrize(("break_it", "says"), [
    (lambda s: s.replace('"Score": 1', '"Score": NaN', 3), "not finite"),
    (lambda s: s.replace('"Score": 1', '"x": 1'), "Score is missing"),
    (lambda s: s.replace('"Score": 1', '"Score": 1e400', 1), "not finite"),
    (lambda s: s.replace("yes", "\udcff", 1), "UTF-8"),
], ids=["nan", "missing", "1e400", "utf8"])  # fmt: skip
def test_rows_26_and_27_questions(loop, break_it, says, data, tmp_path, capsys):
    text = break_it((data(loop) / "qa.json").read_text())
    (tmp_path / "bad.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    refused(loop, begin(loop, data(loop), tmp_path / "r", f"--data.data_dir={tmp_path / 'bad.json'}"), capsys,
            "bad.json", says)  # fmt: skip
    assert not (tmp_path / "r").exists()


@only("finetune")
def test_row_28_a_label_out_of_range(loop, data, tmp_path, capsys):
    refused(loop, begin(loop, data(loop), tmp_path / "r", "--num_labels=2"), capsys, "train.pt row", "has the label 2")
    assert not (tmp_path / "r").exists()


@only("train", "finetune", "pretrain")
def test_row_30_another_tokenizer(loop, data, finished, tmp_path, capsys):
    """The weights' and the data's, both hashes told."""
    import re

    if loop.module == "train":  # the data set was prepared again, with other characters
        shutil.copytree(data(loop) / "toy", tmp_path / "toy")
        meta = json.loads((tmp_path / "toy" / "meta.json").read_text())
        meta["tokenizer"]["chars"].reverse()
        (tmp_path / "toy" / "meta.json").write_text(json.dumps(meta))
        more = [f"--init_from={finished(loop, tmp_path / 'r')}", f"--dataset={tmp_path / 'toy'}"]
    else:
        from data.train_tokenizer import build

        other = build("by-digit", 16, iter([])).to_str().replace('"7"', '"x"').replace('"8"', '"7"')
        (tmp_path / "t.json").write_text(other.replace('"x"', '"8"'))
        more = [f"--tokenizer={tmp_path / 't.json'}"]
    if loop.module == "pretrain":
        more += [f"--init_from={finished(loop, tmp_path / 'r')}"]
    code, err = end(loop, begin(loop, data(loop), tmp_path / "new", *more), capsys)
    assert code == 2 and len(re.findall(r"\b[0-9a-f]{12,16}\b", err)) == 2, err
    assert not (tmp_path / "new").exists()


# -----------------------------------------------------------------------------
# 31 to 34: numbers


def poison(monkeypatch, calls) -> None:
    """Gradients of these optimizer steps, counted from 0, become NaN."""
    real, n = torch.nn.utils.clip_grad_norm_, [0]

    def clip(parameters, *args, **kw):
        parameters = list(parameters)
        if n[0] in calls:
            parameters[0].grad.view(-1)[0] = float("nan")
        n[0] += 1
        return real(parameters, *args, **kw)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip)


@EACH
def test_row_31_one_bad_step_is_skipped_and_counted(loop, data, tmp_path, monkeypatch, capsys):
    poison(monkeypatch, {1})
    code, err = end(loop, begin(loop, data(loop), tmp_path / "r"), capsys)
    assert code == 0 and err.count("step 1: loss or gradient not finite, update skipped (1 so far;") == 1
    assert "--replay_step 1 runs this batch again" in err
    state = checkpoint.load(loop.last(tmp_path / "r"))
    assert state["loop"]["bad_steps"] == 1 and all(torch.isfinite(w).all() for w in state["model"].values())
    assert {float(s["step"]) for s in state["optimizer"]["state"].values()} == {STEPS - 1}


def test_a_save_in_the_background_survives_what_ends_the_run(tmp_path, monkeypatch, capsys):
    real = torch.save
    monkeypatch.setattr(torch, "save", lambda *a, **kw: (time.sleep(0.5), real(*a, **kw)))
    state = checkpoint.pack(kind="toy", model=torch.nn.Linear(2, 2), model_config={}, optimizer=None, loop={}, seed=0,
                            step=3, best=None, options={}, meta={})  # fmt: skip
    with pytest.raises(SystemExit) as e, run.guard():
        checkpoint.save(tmp_path / "ckpt.pt", state, background=True)
        raise run.NotFinite("10 steps in a row")
    assert e.value.code == 3 and checkpoint.load(tmp_path / "ckpt.pt")["step"] == 3


@EACH
def test_row_31_many_in_a_row_end_the_run(loop, data, tmp_path, monkeypatch, capsys):
    section = "trainer.params." if loop.module == "reward_train" else ""
    argv = begin(loop, data(loop), tmp_path / "r", f"--{section}max_bad_steps=2")
    with monkeypatch.context() as m:
        poison(m, range(4, 99))
        code, err = end(loop, argv, capsys)
    assert code == 3 and err.count("error: ") == 1 and "2 steps in a row up to step 5 were not finite" in err
    status = run.read_status(tmp_path / "r")
    assert (status["state"], status["code"], status["step"]) == ("failed", 3, 5)
    state = checkpoint.load(states(tmp_path / "r")[0])
    assert state["step"] == 3 and all(torch.isfinite(w).all() for w in state["model"].values())
    loop.run([*argv, *loop.resume(tmp_path / "r")])  # the fault was not in the state
    assert checkpoint.load(loop.last(tmp_path / "r"))["step"] == STEPS


@EACH
def test_row_31_no_checkpoint_of_bad_steps_takes_a_good_one_s_place(loop, data, tmp_path, monkeypatch, capsys):
    """Where the weights are why, two saves in a row of bad steps left neither ckpt.pt nor the one before to go on from."""
    section = "trainer.params." if loop.module == "reward_train" else ""
    more = ["--no-use_curriculum"] * (loop.module == "procedural_pretraining.cli")  # at a new length all is the best yet
    poison(monkeypatch, range(3, 99))
    argv = begin(loop, data(loop), tmp_path / "r", f"--{section}max_bad_steps=5", *loop.steps(12), *more)
    assert end(loop, argv, capsys)[0] == 3
    assert run.read_status(tmp_path / "r")["step"] == 7
    assert max(checkpoint.load(path)["step"] for path in states(tmp_path / "r")) == 3


@EACH
def test_row_31_a_signal_does_not_start_the_count_anew(loop, data, tmp_path, monkeypatch, capsys):
    """Preempted every few steps, a run that had diverged went on for ever, and saved at the next evaluation."""
    section = "trainer.params." if loop.module == "reward_train" else ""
    argv = begin(loop, data(loop), tmp_path / "r", f"--{section}max_bad_steps=3")
    with monkeypatch.context() as m:
        poison(m, range(3, 99))
        stopped_at(m, 5, 1)
        assert end(loop, argv, capsys)[0] == 75
    poison(monkeypatch, range(99))
    code, err = end(loop, [*argv, *loop.resume(tmp_path / "r")], capsys)
    assert code == 3 and "3 steps in a row up to step 5 were not finite" in err


@EACH
def test_row_32_a_nan_evaluation_is_never_best(loop, data, tmp_path, monkeypatch, capsys):
    """Weights that are NaN as long as the model evaluates."""
    kept = {}

    def mode(module, on=True):
        if not on and hasattr(module, "config") and not kept:
            kept.update({k: w.clone() for k, w in module.state_dict().items()})
            for w in module.parameters():
                w.data.fill_(float("nan"))
        elif on and kept:
            module.load_state_dict(kept)
            kept.clear()
        module.training = on
        for child in module.children():
            child.training = on
        return module

    for cls in (torch.nn.Module, type("Nothing", (), {})):
        monkeypatch.setattr(cls, "train", mode, raising=False)
    by_answers = {"reward_train": ["--trainer.checkpoint.log_obg=val_accuracy"],
                  "procedural_pretraining.cli": ["--task=dyck"]}  # where the token of an argmax over NaN may be right
    code, err = end(loop, begin(loop, data(loop), tmp_path / "r", *by_answers.get(loop.module, [])), capsys)
    state = checkpoint.load(loop.last(tmp_path / "r"))
    assert code == 0, err
    assert state["best"] is None and not (tmp_path / "r" / "best.pt").exists()
    found = tracker.read(tmp_path / "r" / "eval.csv")[-1]
    right = {k: v for k, v in found.items() if k.split("_")[-1] in ("accuracy", "match", "mastery", "legal", "f1")}
    assert all(math.isnan(v) for v in right.values()) and bool(right) == (loop.module != "train"), found


@only("pretrain")
def test_row_33_a_batch_without_targets(loop, data, tmp_path, capsys):
    """Nothing is hidden: no NaN, nothing trained, all counted."""
    code, err = end(loop, begin(loop, data(loop), tmp_path / "r", "--mask_p=0"), capsys)
    state = checkpoint.load(loop.last(tmp_path / "r"))
    assert code == 0 and state["loop"]["empty"] == STEPS and state["loop"]["bad_steps"] == 0, err
    assert losses(loop, tmp_path / "r") == [0.0] * STEPS and not state["optimizer"]["state"]


@only("finetune")
@pytest.mark.parametrize("smoothing", [0, 0.1])
def test_row_33_a_batch_of_labels_without_weight(loop, smoothing, data, tmp_path, capsys):
    """Also where the other labels that smoothing adds have one."""
    weights = ["--class_weights=0 0 0"] if not smoothing else ["--class_weights=1 0 0", "--label_smoothing=0.1"]
    code, err = end(loop, begin(loop, data(loop), tmp_path / "r", "--batch_size=1", *weights), capsys)
    state, found = checkpoint.load(loop.last(tmp_path / "r")), losses(loop, tmp_path / "r")
    heavy = [loss for loss in found if loss > 0.5]  # a batch of the first label
    assert code == 0 and state["loop"]["empty"] == STEPS - len(heavy) and state["loop"]["bad_steps"] == 0, err
    assert max(found) < 2 and bool(heavy) == bool(smoothing) == bool(state["optimizer"]["state"])


# -----------------------------------------------------------------------------
# 40 and 41: names and sizes


@only("procedural_pretraining.cli")
@pytest.mark.parametrize("name", ["../../x", "/etc/x", "a/b"])
def test_row_40_a_name_that_leaves_its_folder(loop, name, data, tmp_path, capsys):
    refused(loop, begin(loop, data(loop), tmp_path / "r", f"--run_name={name}"), capsys, "run_name", "plain name")
    assert not (tmp_path / "r").exists()


@only("train", "pretrain", "finetune", "reward_train")  # procedural_pretraining names a folder after its run
def test_row_40_a_run_folder_without_a_name(loop, data, tmp_path, capsys, monkeypatch):
    """--out_dir=$UNSET is not the folder where one is."""
    argv = begin(loop, data(loop), Path("r"))
    flag = next(f.partition("=")[0] for f in argv if f.endswith("=r"))
    monkeypatch.chdir(tmp_path)
    refused(loop, [*argv, f"{flag}="], capsys, "folder has no name")
    assert not files(tmp_path)


SIZES = {
    "train": [("--n_head=3", "n_head must divide n_embd"), ("--block_size=0", "--block_size must be > 0"),
              ("--n_layer=-1", "--n_layer must be > 0, got -1"), ("--dropout=1", "--dropout must be 0 or more and below 1, got 1.0")],
    "procedural_pretraining.cli": [("--gpt2_size=2_3_16", "n_head must divide"), ("--seq_length=0", "--seq_length"),
                                   ("--gpt2_size=0_2_16", "n_layer must be > 0"), ("--batch_size=-4", "--batch_size"),
                                   ("--dropout=1", "below 1")],
    "reward_train": [("--data.batch_size=0", "batch_size must be > 0"), ("--data.max_length=-1", "must be > 0"),
                     ("--model_params.dropout=1", "below 1")],
    "finetune": [("--model=n_head=3", "n_head must divide n_embd"), ("--batch_size=0", "--batch_size must be > 0"),
                 ("--classifier_dropout=1", "below 1")],
    "pretrain": [("--attention_heads=3", "--attention_heads must divide --hidden_size, got --attention_heads 3"), ("--hidden_size=0", "--hidden_size must be > 0"),
                 ("--per_device=-1", "--per_device must be > 0"), ("--hidden_prob=1", "--hidden_prob must be 0 or more and below 1")],
}  # fmt: skip


@EACH
def test_row_41_sizes(loop, data, tmp_path, capsys):
    for flag, says in SIZES[loop.module]:
        refused(loop, begin(loop, data(loop), tmp_path / "r", flag), capsys, says)
    assert not (tmp_path / "r").exists()


# -----------------------------------------------------------------------------
# --check and --replay_step


@EACH
def test_check_trains_and_writes_nothing(loop, data, finished, tmp_path, capsys, monkeypatch):
    out = tmp_path / "r"
    loop.run(begin(loop, data(loop), out, "--check"))
    shown = capsys.readouterr().out
    about = ["task"] if "procedural" in loop.module else ["data", "tokenizer"]
    for name in (*about, "checkpoint", "options", "disk", "memory"):
        assert f"\n{name:<11}ok " in "\n" + shown, shown
    assert not out.exists()
    before = files(finished(loop, out))
    loop.run(again(loop, data(loop), out, "--check"))
    assert str(loop.last(out).name) in capsys.readouterr().out and files(out) == before

    # what cannot work is exit 2, with --check and without
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    for more in (["--check"], []):
        refused(loop, begin(loop, data(loop), tmp_path / "new", *more), capsys, "disk: ", "1000 bytes are free in")
        assert not (tmp_path / "new").exists()


def test_what_fits_and_what_does_not(tmp_path, capsys):
    mib = 1 << 20
    usage = shutil.disk_usage(tmp_path).free
    (tmp_path / "best.pt").symlink_to(tmp_path / "gone.pt")
    assert preflight.already_there(tmp_path) == 0
    assert preflight.room(tmp_path, mib, 3, 0)[1] == "ok"
    assert preflight.room(tmp_path, usage, 3, 0)[1] == "bad"
    assert preflight.room(tmp_path, usage // 3, 5, 0)[1] == "short"
    assert preflight.room(tmp_path, usage // 3, 3, usage)[1] == "ok"  # most of them are there already
    verdicts = [preflight.memory(100, *need)[1] for need in ((10, 20, 30), (10, 80, 30), (101, 0, 0))]
    assert verdicts == ["ok", "short", "bad"]
    assert not preflight.report([("disk", "short", "x"), ("data", "ok", "y")], False)
    shown = capsys.readouterr()
    assert "x" in shown.err and "y" not in shown.err + shown.out
    with pytest.raises(ValueError, match="memory: z"):
        preflight.report([("memory", "bad", "z")], True)


def test_what_a_killed_save_left_is_counted_as_free(tmp_path, monkeypatch):
    """It goes when the run begins, and a resume was refused for want of what it takes."""
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    assert preflight.room(tmp_path, 3000, 1, 3000)[1] == "bad"
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3" / ".ckpt.pt.tmp-123").write_bytes(bytes(2000))
    assert preflight.room(tmp_path, 3000, 1, 3000)[1] == "ok"
    (tmp_path / "best.pt").hardlink_to(tmp_path / "checkpoint-3" / ".ckpt.pt.tmp-123")
    assert preflight.room(tmp_path, 3000, 1, 3000)[1] == "bad"  # its bytes stay under the other name


def test_a_checkpoint_at_an_average_is_counted_with_the_weights_that_train(tmp_path, capsys):
    pytest.importorskip("pytorch_optimizer")
    TRAIN.data(tmp_path)
    flags = [*TRAIN.flags(tmp_path, tmp_path / "out"), "--n_embd=128", "--optimizer=schedulefreeadamw"]
    TRAIN.run([*flags, "--max_iters=1"])
    size = (tmp_path / "out" / "ckpt.pt").stat().st_size / 2**20
    capsys.readouterr()
    for argv in (flags, TRAIN.resume(tmp_path / "out")):
        TRAIN.run([*argv, "--max_iters=2", "--check"])
        said = re.search(r"disk +ok +([\d.]+) MiB a checkpoint", capsys.readouterr().out)[1]
        assert abs(float(said) - size) < 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"mlp_variant": "swiglu", "mlp_expansion_factor": 8}, {"mlp_size": 256},
                                     {"attn_logit_softcapping": 30.0, "block_size": 512},
                                     {"dropout": 0.1, "block_size": 512}, {"use_gradient_checkpointing": True}])  # fmt: skip
def test_the_estimate_of_a_micro_step_is_right_within_a_factor_of_two(options, dtype):
    from model import GPT, GPTConfig

    B, T = 4, options.get("block_size", 128)
    model = GPT(GPTConfig(**{"block_size": T, "vocab_size": 500, "n_layer": 4, "n_head": 4, "n_embd": 256} | options))
    seen, weights_ = {}, {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(t):
        if t.untyped_storage().data_ptr() not in weights_:
            seen[t.untyped_storage().data_ptr()] = t
        return t

    low = torch.autocast("cpu", dtype, enabled=dtype != torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), low:
        model(torch.zeros(B, T, dtype=torch.long), torch.zeros(B, T, dtype=torch.long))
    needed = sum(t.untyped_storage().nbytes() for t in seen.values())
    estimate = preflight.activations(model.config, B * T, torch.device("cpu"), dtype)
    if model.config.use_gradient_checkpointing:  # what one block needs comes on top, on the way back
        estimate = 4 * 4 * B * T * 256
    assert 0.5 < needed / estimate < (1 if "dropout" in options else 2)  # what passes by comes on top of the scores
    plain = GPTConfig(block_size=T, n_layer=4, n_embd=256, n_head=4)
    base = preflight.activations(plain, B * T, torch.device("cpu"), dtype)
    assert options in ({}, {"mlp_size": 256}) or (estimate < base) == model.config.use_gradient_checkpointing


def test_the_estimate_for_a_gpu_is_readmes():
    from model import GPTConfig

    for more, known in (({}, 36), ({"mlp_variant": "swiglu"}, 52), ({"use_gradient_checkpointing": True}, 4 + 36 / 12)):
        shape = GPTConfig(n_layer=12, n_embd=768, n_head=12, **more)
        assert preflight.activations(shape, 1, torch.device("cuda"), torch.bfloat16) == known * 12 * 768
        assert preflight.activations(shape, 1, torch.device("cuda"), torch.float32) > known * 12 * 768


@EACH
def test_replay_shows_the_step_that_was(loop, data, finished, tmp_path, capsys):
    """From the same weights the replayed loss and norm are the logged ones, and the same step shows the same batch."""
    out = finished(loop, tmp_path / "r")
    rewind(out)  # at step 3
    before, rows = files(out), tracker.read(out / loop.csv)
    shown = []
    for step in (3, 3, 4):
        loop.run(again(loop, data(loop), out, f"--replay_step={step}"))
        shown.append([line for line in capsys.readouterr().out.splitlines() if line.startswith(("rank 0", "step "))])
    assert shown[0] == shown[1] and shown[0][0] != shown[2][0] and "hash" in shown[0][0]
    words = shown[0][-1].replace(",", "").replace(";", "").split()
    assert float(words[3]) == pytest.approx(rows[3]["loss"], rel=1e-6)
    assert float(words[6]) == pytest.approx(rows[3]["norm"], rel=1e-6)
    assert files(out) == before
    refused(loop, again(loop, data(loop), out, "--replay_step=6"), capsys, "--replay_step must be a step of this run")


# -----------------------------------------------------------------------------
# 2, 13, 31, 36, 39 with processes: launches take seconds, so most are in the full tier


def wait_for(condition, seconds: float = 60) -> bool:
    deadline = time.time() + seconds
    while time.time() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def saved_at(out: Path) -> int:
    try:
        return max(p.stat().st_mtime_ns for p in states(out))
    except (OSError, ValueError):  # just replaced
        return 0


def launch(loop, argv, ranks: int, *more: str, **popen):
    """torchrun with options of its own."""
    import subprocess

    command = loop.command(argv, ranks)
    at = command.index("torch.distributed.run") + 1
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*command[:at], *more, *command[at:]], cwd=Path(__file__).parent.parent, text=True, env=env,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **popen)  # fmt: skip


def long_run(loop, data, out, ranks: int) -> list[str]:
    return [*loop.flags(data(loop), out), *loop.steps(3000), *loop.batch(4 // ranks, 1, ranks)]


@pytest.mark.full
@EACH
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_row_2_a_signal_stops_a_process_at_75(loop, number, data, tmp_path):
    out = tmp_path / "r"
    process = loop.spawn(long_run(loop, data, out, 1))
    assert wait_for(lambda: states(out) or process.poll() is not None)
    process.send_signal(number)
    text, _ = process.communicate(timeout=60)
    status = run.read_status(out)
    assert process.returncode == 75 and "finishing this step, then saving" in text, text
    assert (status["state"], status["code"]) == ("stopped", 75)
    assert checkpoint.load(states(out)[0])["step"] == status["step"] > 0


@pytest.mark.full
@pytest.mark.parametrize("nohup", [False, True])
def test_row_2_a_terminal_that_is_closed(nohup, data, tmp_path):
    """It asks the run to stop and saves; one that goes on without a terminal ends with a status, not in its last words."""
    loop, out = LOOPS[0], tmp_path / "r"
    ours, theirs = os.openpty()

    def on_a_terminal():
        signal.signal(signal.SIGHUP, signal.SIG_IGN if nohup else signal.SIG_DFL)
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(loop.command(long_run(loop, data, out, 1)), cwd=ROOT, env=env, stdout=theirs,
                               stderr=theirs, preexec_fn=on_a_terminal, start_new_session=True)  # fmt: skip
    os.close(theirs)
    text = b""
    while b"step    5/" not in text and len(text) < 1 << 16:
        text += os.read(ours, 4096)
    os.close(ours)
    code, status = process.wait(60), run.read_status(out)
    assert (code, status["state"]) == ((74, "failed") if nohup else (75, "stopped")), text.decode()
    assert status["code"] == code and checkpoint.load(states(out)[0])["step"] <= status["step"]
    assert nohup or checkpoint.load(states(out)[0])["step"] == status["step"]


@pytest.mark.full
@EACH
def test_row_2_a_signal_to_torchrun_stops_all_ranks(loop, data, tmp_path):
    out = tmp_path / "r"
    process = launch(loop, long_run(loop, data, out, 2), 2)
    assert wait_for(lambda: states(out) or process.poll() is not None)
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=60)
    status = run.read_status(out)
    assert (status["state"], status["code"]) == ("stopped", 75), text
    assert checkpoint.load(states(out)[0])["step"] == status["step"] > 0


@pytest.mark.full
@EACH
def test_rows_3_and_31_codes_under_torchrun_are_in_status(loop, data, finished, tmp_path):
    """torchrun turns every code into 1."""
    out = finished(loop, tmp_path / "r")
    rewind(out)
    limit = states(out)[0].stat().st_size // 2
    argv = [*loop.flags(data(loop), out), *loop.steps(STEPS), *loop.batch(2, 1, 2), *loop.resume(out)]
    process = launch(loop, argv, 2, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    text, _ = process.communicate(timeout=100)
    status = run.read_status(out)
    assert process.returncode == 1 and (status["state"], status["code"]) == ("failed", 74), text
    section = "trainer.params." if loop.module == "reward_train" else ""
    argv = [*loop.flags(data(loop), tmp_path / "n"), *loop.steps(30), *loop.batch(2, 1, 2), f"{RATE[loop.module]}=1e38",
            f"--{section}max_bad_steps=2"]  # fmt: skip
    process = launch(loop, argv, 2)
    text, _ = process.communicate(timeout=100)
    status = run.read_status(tmp_path / "n")
    assert process.returncode == 1 and (status["state"], status["code"]) == ("failed", 3), text


def other_ranks(loop, data, finished, tmp_path) -> None:
    """4 a step on one process, then 2 on each of two."""
    out = finished(loop, tmp_path / "r")
    rewind(out)
    finish(launch(loop, again(loop, data(loop), out), 2))
    whole = finished(loop, tmp_path / "whole")
    assert losses(loop, out) == pytest.approx(losses(loop, whole), abs=loop.equal)


@pytest.mark.full
@EACH
def test_row_13_ranks_that_cannot_share_a_batch(loop, data, finished, tmp_path):
    out = finished(loop, tmp_path / "r")
    before = files(out)
    process = launch(loop, again(loop, data(loop), out), 3)
    text, _ = process.communicate(timeout=100)
    assert process.returncode == 1 and "a global batch of 4 does not divide over 3 ranks" in text, text
    assert {k: v for k, v in files(out).items() if k != ".lock"} == {k: v for k, v in before.items() if k != ".lock"}


@pytest.mark.full
def test_row_13_another_number_of_ranks(data, finished, tmp_path):
    other_ranks(SCRIPTS[0], data, finished, tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("loop", SCRIPTS[1:], ids=lambda loop: loop.module)
def test_row_13_another_number_of_ranks_in_every_script(loop, data, finished, tmp_path):
    other_ranks(loop, data, finished, tmp_path)


def workers_of(process) -> list[int]:
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in found.read_text().split()]


@pytest.mark.full
@EACH
def test_row_36_a_dead_rank_ends_all_and_a_restart_resumes(loop, data, tmp_path):
    """--max-restarts: the same command goes on from the checkpoint, and ends as if nothing had been."""

    def flags(out):
        return [*loop.flags(data(loop), out), *loop.steps(200), *loop.batch(2, 1, 2)]

    finish(launch(loop, flags(tmp_path / "whole"), 2))
    out = tmp_path / "r"
    process = launch(loop, flags(out), 2, "--max-restarts=2")
    for rank in (0, 1):
        began = time.time_ns()
        assert wait_for(lambda began=began: len(states(out)) > 1 and saved_at(out) > began)
        ranks = workers_of(process)
        os.kill(ranks[rank], signal.SIGKILL)
        assert wait_for(lambda ranks=ranks: len(set(workers_of(process)) - set(ranks)) == 2, 40)
    text = finish(process)
    assert text.count("resuming ") >= 2 and not (tmp_path / "r.1").exists(), text
    assert same(weights(loop, out), weights(loop, tmp_path / "whole"))


@pytest.mark.full
def test_row_39_a_clean_finish_every_time(data, tmp_path):
    loop = SCRIPTS[0]
    for i in range(3):
        finish(loop.spawn([*loop.flags(data(loop), tmp_path / str(i)), *loop.steps(2), *loop.batch(2, 1, 2)], ranks=2))


def test_the_table_names_tests_that_exist():
    """docs/reliability.md has all 41 rows, each with tests that are there."""
    import re

    here = Path(__file__).parent
    page = (here.parent / "docs" / "reliability.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    numbers = set()
    for row in rows[2:]:
        first, _, _, tests = (cell.strip() for cell in row.strip("| ").split(" | "))
        ends = [int(n) for n in re.findall(r"\d+", first)]
        numbers |= set(range(ends[0], ends[-1] + 1))
        for file, name in (t.split("::") for t in tests.split(", ")):
            assert re.search(rf"^def {name}\(", (here / file).read_text(), re.M), f"{file} has no {name}"
    assert numbers == set(range(1, 42))


@pytest.mark.parametrize("cause", ["torch", "gpu", "python", "system"])
def test_memory_that_runs_out_is_one_line_that_says_what_takes_less(cause, capfd):
    with pytest.raises(SystemExit) as e, run.guard():
        if cause == "torch":
            torch.empty(2**50)
        if cause == "gpu":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nSee documentation")
        if cause == "python":
            bytearray(2**62)
        raise OSError(errno.ENOMEM, "Cannot allocate memory")
    err = capfd.readouterr().err
    assert e.value.code == 2 and err.startswith("error: out of memory") and "a smaller batch" in err
    assert err.count("\n") == 1
