"""One contract for all loops: exact resume, batches cut in any way, ranks, the logged loss, and that they learn."""

import gc
import importlib
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from core import checkpoint, config, dist, exits, optim, run, tracker
from core.values import read_yaml
from data import build_pretrain_data
from data.masking import Masking
from model import Roberta
from tests.loops import FIRST, LOOPS, PRETRAIN, PROCEDURAL, ROOT, TRAIN, made_once

ROWS = pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.name)
MORE = pytest.mark.parametrize("loop", [x if x in FIRST else pytest.param(x, marks=pytest.mark.full) for x in LOOPS],
                               ids=lambda loop: loop.name)  # the everyday tier has one row a script
STEPS = 10


class Killed(BaseException):
    """Stands for SIGKILL in process: nothing of the script runs after it."""


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return made_once(tmp_path_factory.mktemp)


def weights(loop, out):
    return checkpoint.load(loop.last(out))["model"]


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def losses(loop, out) -> list[float]:
    return [row["loss"] for row in tracker.read(out / loop.csv)]


def alike(loop, out) -> None:
    """Runs a and b of this folder tell the same numbers, also of the evaluations that both of them made."""
    a, b = losses(loop, out / "a"), losses(loop, out / "b")
    assert len(a) >= STEPS - 1 and a == pytest.approx(b, abs=loop.equal)
    if not loop.evaluates:
        return
    a, b = ({row["step"]: row for row in tracker.read(out / run / "eval.csv")} for run in "ab")
    assert len(both := sorted(a.keys() & b.keys())) > 1
    left_out = {"train_loss", "val_spearman"}  # of the steps since the last one; equal texts' ties go by rounding
    for name in {k for k, v in a[both[0]].items() if isinstance(v, int | float)} - left_out:
        assert [a[i][name] for i in both] == pytest.approx([b[i][name] for i in both], abs=10 * loop.equal, rel=1e-4), name


def begin(loop, data, out, *extra: str) -> list[str]:
    return [*loop.flags(data, out), *loop.steps(STEPS), *loop.batch(4, 1, 1), *extra]


def kill_at(monkeypatch, step: int) -> None:
    """Ends the process's work after so many steps, as SIGKILL would: what is not on disk is lost. -1: in the first
    evaluation."""
    real, seen = run.Run.stopping, set()

    def stopping(self):
        if self.step is not None:
            seen.add(self.step)
        if step < 0 or self.step == step and len(seen) > 1:
            raise Killed
        return real(self)

    monkeypatch.setattr(run.Run, "stopping", stopping)


def die(loop, argv, monkeypatch, step: int) -> None:
    with monkeypatch.context() as m:
        kill_at(m, step)
        with pytest.raises(Killed):
            loop.run(argv)
    checkpoint.wait()
    if exits.held:
        exits.held.lock.close()
        for number, handler in exits.held.old.items():
            signal.signal(number, handler)
        exits.held = None


@pytest.mark.parametrize("loop", [x for x in LOOPS if x.module in ("pretrain", "finetune")], ids=lambda x: x.name)
def test_micro_steps_share_the_tokens_of_a_batch(loop, data, tmp_path, monkeypatch):
    """Sequences without padding differ in what they cost: ranks would wait for the one that has the long ones."""
    seen, run = [], Roberta.run
    monkeypatch.setattr(Roberta, "run", lambda m, ids, *a: m.training and seen.append(len(ids)) or run(m, ids, *a))
    uneven = []
    for deal in (dist.deal, lambda which, *a: which):
        monkeypatch.setattr(dist, "deal", deal)
        seen.clear()
        loop.run([*begin(loop, data(loop), tmp_path / str(len(uneven))), *loop.batch(4, 2, 1)])
        shares = np.array(seen).reshape(STEPS, 2)
        uneven.append(np.median(np.abs(np.diff(shares)[:, 0]) / shares.sum(1)))
    assert uneven[0] < 0.5 * uneven[1], uneven


def resume_equals(loop, data, tmp_path, monkeypatch, again: bool = True) -> None:
    """`again`: the resume names all options once more."""
    loop.run(begin(loop, data(loop), tmp_path / "a"))
    die(loop, begin(loop, data(loop), tmp_path / "b"), monkeypatch, 5)
    loop.run([*(begin(loop, data(loop), tmp_path / "b") if again else []), *loop.resume(tmp_path / "b")])
    assert same(weights(loop, tmp_path / "a"), weights(loop, tmp_path / "b"))
    assert losses(loop, tmp_path / "a") == losses(loop, tmp_path / "b")


@ROWS
def test_resume_equals_uninterrupted(loop, data, tmp_path, monkeypatch):
    resume_equals(loop, data, tmp_path, monkeypatch, again=False)
    saved = [read_yaml(tmp_path / run / "config.yaml") for run in "ab"]
    assert saved[0]["init_from"] == saved[1]["init_from"] != "resume"  # it runs again as it is
    assert not saved[1].get("resume")


@pytest.mark.parametrize("loop", FIRST, ids=lambda x: x.name)
def test_what_one_draws_for_a_batch_is_the_step_s(loop, data, tmp_path, monkeypatch):
    """Noise that somebody adds to it is the same after a resume."""
    place, seen = (Masking, "__call__") if loop is PRETRAIN else (importlib.import_module(loop.module), "send"), {}
    real = getattr(*place)

    def read(*args):
        seen[exits.held.step] = torch.rand(()).item()  # the step's last
        return real(*args)

    monkeypatch.setattr(*place, read)
    loop.run(begin(loop, data(loop), tmp_path / "a"))
    first = dict(seen)
    die(loop, begin(loop, data(loop), tmp_path / "b"), monkeypatch, 5)
    seen.clear()
    loop.run(loop.resume(tmp_path / "b"))
    seen.pop(None, None)
    assert len(seen) > 3 and seen == {step: first[step] for step in seen}


@pytest.mark.parametrize("loop", FIRST, ids=lambda x: x.name)
def test_what_wakes_after_the_groups_were_made_is_named(loop, data, tmp_path, monkeypatch):
    """Frozen before them it is in none: it stood still, and its gradient grew in the norm that the others are cut by."""
    groups, set_lr, asleep = optim.groups, optim.set_lr, []

    def without_one(model, *args, **options):
        asleep.append(next(model.parameters()).requires_grad_(False))
        return groups(model, *args, **options)

    monkeypatch.setattr(optim, "groups", without_one)
    monkeypatch.setattr(optim, "set_lr", lambda *args: (asleep[0].requires_grad_(True), set_lr(*args)))
    with pytest.raises(AssertionError, match="no group of the optimizer holds transformer.wte"):
        loop.run(begin(loop, data(loop), tmp_path / "a"))


@pytest.mark.parametrize("loop", FIRST, ids=lambda x: x.name)
def test_main_takes_options_that_were_made_in_python(loop, data, tmp_path):
    """Without parse() they were an AttributeError; what is not the default counts as given, also on a resume."""
    script, out = importlib.import_module(loop.module), tmp_path / "r"

    def made(argv):
        (_, parsed), options = loop.options(argv), script.Options()
        for name in parsed.given:
            value = config.get(parsed, name)
            config.put(options, name, str(value) if isinstance(value, Path) else value)
        return options

    options = made(begin(loop, data(loop), out))
    before = config.to_dict(options)
    script.main(options)
    assert config.to_dict(options) == before
    script.main(made([*loop.resume(out), *loop.steps(STEPS + 1)]))
    assert checkpoint.load(loop.last(out))["step"] == STEPS + 1


@pytest.mark.parametrize("loop", FIRST, ids=lambda x: x.name)
def test_nodes_with_other_options(loop, data, tmp_path, monkeypatch):
    """Two machines take two commands: they trained on overlapping slices, or one ended first and torch aborted."""
    told = []
    monkeypatch.setattr(dist, "local_only", lambda: False)
    monkeypatch.setattr(dist, "gather", lambda mine: told.append(mine) or told[-2:])
    for other, refused in (([], False), (loop.steps(4)[:1], True), ([*loop.seed(7)], True)):
        told.clear()
        for n, more in enumerate(([], other)):
            _, options = loop.options([*begin(loop, data(loop), tmp_path / str(n)), *more])
            if n and refused:
                with pytest.raises(ValueError, match=f"{other[0].split('=')[0]} is .* on rank 0, .* on rank 1: all nodes"):
                    run.same_options(options)
            else:
                run.same_options(options)
    claimed = []
    monkeypatch.setattr(run, "claim", lambda *args: claimed.append(args) or exit())
    with pytest.raises(SystemExit):
        loop.run(begin(loop, data(loop), tmp_path / "a"))
    assert len(claimed[0]) == 3, "each script lets claim() see its options"


def fewer(folder) -> None:
    """The same data, prepared anew from less of it."""
    for path in folder.glob("toy/train.bin"):
        path.write_bytes(path.read_bytes()[:-200])
    for path in folder.glob("toy/meta.json"):
        meta = json.loads(path.read_text())
        path.write_text(json.dumps(meta | {"count": {}}))
    for path in folder.glob("lines.txt"):
        path.write_text("\n".join(path.read_text().split("\n")[:-9]))
        shutil.rmtree(folder / "pretrain_train_trunc12")
        shutil.rmtree(folder / "pretrain_eval_trunc12")
        argv = [f"--train_dir={path}", f"--tokenizer={folder / 'tokenizer.json'}", f"--out_dir={folder}",
                "--max_size=12", "--split_prop=0.1"]  # fmt: skip
        build_pretrain_data.main(config.parse(build_pretrain_data.Options, argv))
    for path in folder.glob("qa.json"):
        parts = json.loads(path.read_text())
        path.write_text(json.dumps(parts | {"train": [row | {"Score": 9 * row["Score"]} for row in parts["train"]]}))
    for path in folder.glob("train.pt"):
        path.write_bytes((folder / "test.pt").read_bytes())


def others(folder) -> None:
    """Other data of the same size."""
    for path in folder.glob("toy/train.bin"):
        np.fromfile(path, np.uint16)[::-1].tofile(path)
    for path in folder.glob("pretrain_train_trunc12/*.arrow"):
        table = pa.ipc.open_stream(path.read_bytes()).read_all()
        with pa.ipc.new_stream(path, table.schema) as out:
            out.write_table(table.take(list(range(len(table)))[::-1]))
    for path in folder.glob("qa.json"):
        parts = json.loads(path.read_text())
        path.write_text(json.dumps(parts | {"train": [row | {"Answer": row["Answer"][::-1]} for row in parts["train"]]}))
    for path in folder.glob("train.pt"):
        table = torch.load(path, weights_only=True)
        real = table["attention_mask"].bool()
        table["input_ids"][real] = table["input_ids"][real].flip(0)
        torch.save(table, path)


@pytest.mark.parametrize("loop", [x for x in LOOPS if x.name in ("pretrain", "finetune")], ids=lambda x: x.name)
def test_results_tell_the_seconds_of_all_legs(loop, data, tmp_path, monkeypatch):
    die(loop, begin(loop, data(loop), tmp_path / "r"), monkeypatch, 5)
    path = loop.last(tmp_path / "r")
    stored = checkpoint.load(path)
    stored["loop"]["seconds"] += 1000
    checkpoint.save(path, stored, keep=False)
    loop.run(loop.resume(tmp_path / "r"))
    assert json.loads((tmp_path / "r" / "results.json").read_text())["seconds"] >= 1000


@pytest.mark.parametrize("loop", [x for x in LOOPS if x.name in ("pretrain", "finetune")], ids=lambda x: x.name)
def test_an_evaluation_numbers_no_text_twice(loop, data, tmp_path, monkeypatch):
    """All of them for each batch is the square of their number: at 10 million, half an hour."""
    made, arange = [], np.arange

    def counted(*args, **more):
        out = arange(*args, **more)
        made.extend([len(out)] * (sys._getframe(1).f_code.co_name == "evaluate"))
        return out

    monkeypatch.setattr(np, "arange", counted)
    loop.run([*begin(loop, data(loop), tmp_path / "a"), *loop.steps(1), *loop.batch(1, 1, 1)])
    assert len(made) > 4 and max(made) <= 4, made


@pytest.mark.parametrize("loop", [x for x in LOOPS if x.name in ("reward", "finetune")], ids=lambda x: x.name)
def test_what_each_rank_measures_for_itself_is_rank_0_s(loop, data, tmp_path, monkeypatch):
    """A loss that ends in another digit there is better for one rank, and waits for others who save nothing."""
    real = dist.first
    monkeypatch.setattr(dist, "first", lambda x: {k: v + 100 for k, v in x.items()} if isinstance(x, dict) else real(x))
    loop.run(begin(loop, data(loop), tmp_path / "a"))
    losses = [v for row in tracker.read(tmp_path / "a" / "eval.csv") for k, v in row.items() if k in ("val_loss", "val loss")]
    assert losses and min(losses) > 100 and checkpoint.load(loop.last(tmp_path / "a"))["best"] > 100


EVERY = {"pretrain": "--log_steps", "reward": "--trainer.params.log_every_n_steps"}


@pytest.mark.parametrize("loop", [x for x in LOOPS if x.name in EVERY], ids=lambda x: x.name)
def test_a_log_line_s_tokens_are_of_the_steps_since_the_last(loop, data, tmp_path, monkeypatch):
    """Where steps differ in what they hold, and evaluations come in between."""
    told, real = {1: {}, 4: {}}, tracker.Tracker.train

    def train(self, step, values, units):
        told[every][step] = self.at, units
        real(self, step, values, units)

    monkeypatch.setattr(tracker.Tracker, "train", train)
    for every in told:
        loop.run([*begin(loop, data(loop), tmp_path / str(every)), f"{EVERY[loop.name]}={every}"])
    assert [*told[1]] == [*range(STEPS)] and [*told[4]] == [0, 4, 8, 9]
    for step, (at, units) in told[4].items():
        assert units == pytest.approx(np.mean([told[1][s][1] for s in range(at, step + 1)])), step


@pytest.mark.parametrize("loop", FIRST, ids=lambda x: x.name)
def test_a_clock_that_is_set_back_is_not_what_a_run_measures(loop, data, tmp_path, monkeypatch, capsys):
    """At the switch a line told of 12,800,000,000,000 tok/s, and a run was done in -1h00m."""
    hours = itertools.count()
    monkeypatch.setattr(time, "time", lambda: 1.9e9 - 3600 * next(hours))
    loop.run(begin(loop, data(loop), tmp_path / "a", *loop.steps(4)))
    rows = tracker.read(tmp_path / "a" / loop.csv)
    assert rows and all(row["ms"] > 0 for row in rows), rows
    assert not re.search(r"(done in|eta|after|,) -\d", capsys.readouterr().out)
    state = checkpoint.load(loop.last(tmp_path / "a"))
    assert state["loop"].get("seconds", 0) >= 0


@pytest.mark.parametrize("loop", [x for x in LOOPS if x.name in ("train", "train-multidataset", "pretrain", "reward", "finetune")],
                         ids=lambda loop: loop.name)  # fmt: skip
@pytest.mark.parametrize("change", [fewer, others])
def test_a_resume_on_other_data_is_refused(loop, change, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "data"
    folder.mkdir()
    loop.data(folder)
    die(loop, begin(loop, folder, tmp_path / "a"), monkeypatch, 5)
    before = loop.last(tmp_path / "a").read_bytes()
    change(folder)
    with pytest.raises(SystemExit) as stop, run.guard():
        loop.run(loop.resume(tmp_path / "a"))
    assert stop.value.code == 2 and "changed since this run began: " in capsys.readouterr().err
    assert before == loop.last(tmp_path / "a").read_bytes()


@pytest.mark.parametrize("loop", [x for x in FIRST if x.name != "pretrain"], ids=lambda x: x.name)  # that goes on
def test_weights_of_the_run_that_made_room_are_named_where_they_went(loop, data, tmp_path):
    """config.yaml runs again as it is: from the old run's weights, not from those of the run that it describes."""
    out = tmp_path / "r"
    loop.run(begin(loop, data(loop), out))
    loop.run(begin(loop, data(loop), out, f"--init_from={out}"))
    assert read_yaml(out / "config.yaml")["init_from"] == f"{out}.1"


@pytest.mark.parametrize("loop", FIRST, ids=lambda x: x.name)
def test_a_restart_before_the_first_checkpoint_finds_the_weights_that_made_room(loop, data, tmp_path, monkeypatch):
    """torchrun --max-restarts gives the same command again, and what it names is a folder of a run without weights."""
    out = tmp_path / "r"
    loop.run(begin(loop, data(loop), out))
    argv = begin(loop, data(loop), out, "--reset" if loop.name == "pretrain" else f"--init_from={out}")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    for restart in range(2):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(restart))
        die(loop, argv, monkeypatch, -1)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    loop.run(argv)
    assert loop.name == "pretrain" or read_yaml(out / "config.yaml")["init_from"] == f"{out}.1"
    assert run.finished(out)


@ROWS
def test_a_resume_with_other_threads_says_so(loop, data, tmp_path, monkeypatch, capsys):
    """They are the order of a CPU's sums, and so of the last digits."""
    loop.run(begin(loop, data(loop), tmp_path))
    for now, told in ((torch.get_num_threads(), ""), (77, f"; 77 threads, where it had {torch.get_num_threads()}")):
        monkeypatch.setattr(torch, "get_num_threads", lambda now=now: now)
        capsys.readouterr()
        loop.run([*begin(loop, data(loop), tmp_path), *loop.resume(tmp_path)])
        (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("resuming"))
        assert line.partition(f"at step {STEPS}")[2].removesuffix(": last digits may differ") == told


@ROWS
def test_a_run_cannot_end_before_the_step_it_is_at(loop, data, tmp_path, capsys):
    """It had no evaluation to end with: refused, and what the folder holds stays as it was."""
    loop.run(begin(loop, data(loop), tmp_path / "a"))
    before = {p: p.read_bytes() for p in (tmp_path / "a").iterdir() if p.is_file() and p.suffix not in (".lock", "")}
    with pytest.raises(SystemExit) as stop, run.guard():
        loop.run([*begin(loop, data(loop), tmp_path / "a"), *loop.steps(4), *loop.resume(tmp_path / "a")])
    assert stop.value.code == 2 and "ends the run at step 4, and it is at step 10 already" in capsys.readouterr().err
    assert before == {p: p.read_bytes() for p in before}


LONG = [(TRAIN, ["--warmup_iters=9"], "--lr_scheduler=linear", "--lr_scheduler does nothing here: the 3 steps"),
        (TRAIN, ["--warmup_iters=9"], "--decay_lr", "--decay_lr does nothing here: the 3 steps"),
        (TRAIN, ["--warmup_iters=9"], "--learning_rate=0.002", "the rate does not get to --learning_rate 0.002: the 3"),
        (PRETRAIN, [], "--warmup_steps=9", "the run's 3 steps are all within the warmup of 9"),
        (PROCEDURAL, [], "--warmup_steps=9", "the run's 3 steps are all within the warmup of 9")]  # fmt: skip


@pytest.mark.parametrize("loop, rest, option, says", LONG, ids=lambda x: getattr(x, "name", None))
def test_a_warmup_that_outlasts_the_run_is_said(loop, rest, option, says, data, tmp_path, capsys):
    """No schedule falls then, and the rate that was asked for is never reached."""
    for i, more in enumerate(([*rest, option], rest)):
        loop.run([*loop.flags(data(loop), tmp_path / str(i)), *loop.steps(3), *more])
        assert (f"note: {says}" in capsys.readouterr().out) == (option in more)


EPOCHS = {"pretrain": [["--epochs=1", "--max_steps=None", "--per_device=64"], "--epochs", "--epochs=2"],
          "reward_train": [["--trainer.params.max_epochs=1", "--data.batch_size=24"], "--trainer.params.max_epochs",
                           "--trainer.params.max_epochs=2"],
          "procedural_pretraining.cli": [["--epochs=1", "--steps_per_epoch=2"], "--epochs", "--epochs=2"],
          "finetune": [["--epochs=1", "--batch_size=36"], "--epochs", "--epochs=2"]}  # fmt: skip


@pytest.mark.parametrize("loop", [x for x in FIRST if x.module in EPOCHS], ids=lambda x: x.name)
def test_a_finished_run_names_the_option_that_ended_it(loop, data, tmp_path, capsys):
    """Both bound a run: the one that was named went on with nothing where the other was the lower."""
    few, ending, more = EPOCHS[loop.module]
    loop.run([*loop.flags(data(loop), tmp_path), *loop.steps(9), *few])
    steps = checkpoint.load(loop.last(tmp_path))["step"]
    assert steps < 9
    said = f"--max_steps 9 is not reached: {ending} ends the run at step {steps}".removeprefix("--")
    assert said in capsys.readouterr().out or loop.module == "pretrain"  # there max_steps comes in place of epochs
    loop.run(loop.resume(tmp_path))
    assert f"finished at step {steps}: a higher {ending} goes on" in capsys.readouterr().out
    loop.run([*loop.resume(tmp_path), more])
    assert checkpoint.load(loop.last(tmp_path))["step"] == 2 * steps
    loop.run([*loop.flags(data(loop), tmp_path / "other"), *loop.steps(2)])
    loop.run(loop.resume(tmp_path / "other"))
    assert "finished at step 2: a higher --" in (out := capsys.readouterr().out) and "max_steps goes on" in out


@pytest.mark.parametrize("loop", [x for x in FIRST if x.module in {*EPOCHS} - {"pretrain"}], ids=lambda x: x.name)
def test_epochs_that_a_max_steps_of_less_weight_cuts_short_are_named(loop, tmp_path):
    """--epochs=300 ended at the default of max_steps, or at a file's, as --epochs=400 did, without a word."""
    epochs = EPOCHS[loop.module][1]
    options, file = importlib.import_module(loop.module).Options, tmp_path / "options.yaml"
    steps = next(name for name in config.specs(options) if name.endswith("max_steps"))
    file.write_text("{trainer: {params: {max_steps: 5}}}" if "." in steps else f"{steps}: 5")
    note = f"note: {epochs} 2 is not reached: --{steps} ends the run at step 5"
    for argv, said in (([str(file), f"{epochs}=2"], [note]),
                       ([f"--{steps}=5", f"{epochs}=2"], []), ([str(file)], [])):
        args = config.parse(options, argv)
        assert run.ends(args, {epochs: 2 * 9, f"--{steps}": 5}) == (5, f"--{steps}", said)
    args = config.parse(options, [f"{epochs}=2"])  # of procedural data the default ends it
    assert len(run.ends(args, {epochs: 2 * 9, f"--{steps}": 5})[2]) == 1


@pytest.mark.parametrize("loop", FIRST, ids=lambda loop: loop.name)
def test_an_evaluation_tells_how_far_it_is_and_is_without_dropout_and_training_with_it(loop, data, tmp_path, monkeypatch):
    told, modes = [], set()
    script = importlib.import_module(loop.module)
    monkeypatch.setattr(script, "progress", lambda items, what, **_: told.append(what) or items)
    forward = torch.nn.modules.module.register_module_forward_pre_hook
    with forward(lambda module, x: modes.add((torch.is_grad_enabled(), module.training))):
        loop.run([*loop.flags(data(loop), tmp_path), *loop.steps(1)])
    assert [what for what in told if what.startswith("evaluating")]
    assert modes == {(True, True), (False, False)}


@pytest.mark.parametrize("loop", FIRST, ids=lambda loop: loop.name)
def test_a_run_stopped_in_an_evaluation_leaves_its_picture(loop, data, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(run.Run, "stopping", lambda self: self.step == 3 and asked.append(1) is None and len(asked) > 1)
    with pytest.raises(SystemExit) as stop:
        loop.run(begin(loop, data(loop), tmp_path / "a"))
    assert stop.value.code == 75 and checkpoint.load(loop.last(tmp_path / "a"))["step"] == 3
    assert (tmp_path / "a" / "loss.png").is_file()


@pytest.mark.parametrize("both", [False, pytest.param(True, marks=pytest.mark.full)])
def test_output_that_nobody_reads_any_more(both, data, tmp_path):
    """`| head`: a line and 74, and a status that says so."""
    loop = LOOPS[0]
    command = " ".join(map(shlex.quote, loop.command(begin(loop, data(loop), tmp_path / "a"))))
    script = f"{command} {'2>&1' if both else ''} | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "74" and "Traceback" not in done.stderr, done
    assert run.read_status(tmp_path / "a")["message"] == "standard output was closed"


@pytest.mark.full
@ROWS
def test_another_seed_ends_elsewhere(loop, data, tmp_path):
    loop.run(begin(loop, data(loop), tmp_path / "a"))
    loop.run(begin(loop, data(loop), tmp_path / "b", *loop.seed(4)))
    assert not same(weights(loop, tmp_path / "a"), weights(loop, tmp_path / "b"))


@MORE
@pytest.mark.parametrize("field", ["model", "optimizer", "step"])
def test_each_saved_field_is_needed(loop, field, data, tmp_path, monkeypatch):
    """A control: with a field of the checkpoint forgotten, the comparison above must fail."""
    loop.run(begin(loop, data(loop), tmp_path / "a"))
    die(loop, begin(loop, data(loop), tmp_path / "b"), monkeypatch, 8)
    path = loop.last(tmp_path / "b")
    state = checkpoint.load(path)
    if field == "model":
        state["model"] = {k: v * 1.01 for k, v in state["model"].items()}
    elif field == "optimizer":
        state["optimizer"]["state"] = {i: {k: torch.zeros_like(v) if v.dim() else v for k, v in s.items()}
                                       for i, s in state["optimizer"]["state"].items()}  # fmt: skip
    else:
        state["step"] -= 1
    checkpoint.save(path, state, keep=False)
    loop.run([*begin(loop, data(loop), tmp_path / "b"), *loop.resume(tmp_path / "b")])
    assert not same(weights(loop, tmp_path / "a"), weights(loop, tmp_path / "b"))


@ROWS
def test_a_batch_may_be_cut(loop, data, tmp_path):
    """5 micro-steps of b equal 1 of 5b; also at the end of an epoch, whose last batch leaves some of them empty."""
    flags = [*loop.flags(data(loop), tmp_path / "a"), *loop.steps(STEPS)]
    loop.run([*flags, *loop.batch(15, 1, 1)])
    flags = [*loop.flags(data(loop), tmp_path / "b"), *loop.steps(STEPS)]
    loop.run([*flags, *loop.batch(3, 5, 1), *["--eval_iters=10"] * (loop.module == "train")])  # of so many batches
    alike(loop, tmp_path)


@ROWS
def test_first_logged_loss_is_the_loss(loop, data, tmp_path):
    loop.run(begin(loop, data(loop), tmp_path / "a"))
    rows = tracker.read(tmp_path / "a" / loop.csv)
    assert rows[0]["step"] == 0
    if loop.first_loss is not None:
        assert rows[0]["loss"] == pytest.approx(loop.first_loss, rel=0.1)


@ROWS
def test_a_toy_problem_is_learnt(loop, data, tmp_path):
    loop.run([*loop.flags(data(loop), tmp_path / "a"), *loop.learns])
    assert losses(loop, tmp_path / "a")[-1] < loop.learnt


@ROWS
def test_sigterm_saves_and_resumes(loop, data, tmp_path, monkeypatch):
    """Exit 75, and the run goes on from the very step."""
    loop.run(begin(loop, data(loop), tmp_path / "a"))
    with monkeypatch.context() as m:
        real = run.Run.stopping

        def stopping(self):
            if self.step == 4:
                signal.raise_signal(signal.SIGTERM)
            return real(self)

        m.setattr(run.Run, "stopping", stopping)
        with pytest.raises(SystemExit) as stop:
            loop.run(begin(loop, data(loop), tmp_path / "b"))
    assert stop.value.code == 75
    assert run.read_status(tmp_path / "b")["state"] == "stopped"
    loop.run([*begin(loop, data(loop), tmp_path / "b"), *loop.resume(tmp_path / "b")])
    assert same(weights(loop, tmp_path / "a"), weights(loop, tmp_path / "b"))


# -----------------------------------------------------------------------------
# processes: the full tier, but for one


def finish(process) -> str:
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    return out


def ranks_equal(loop, data, tmp_path):
    flags = [*loop.flags(data(loop), tmp_path / "a"), *loop.steps(STEPS)]
    loop.run([*flags, *loop.batch(10, 1, 1)])  # in which finite data end with a batch of fewer
    flags = [*loop.flags(data(loop), tmp_path / "b"), *loop.steps(STEPS)]
    finish(loop.spawn([*flags, *loop.batch(5, 1, 2), *["--eval_iters=4"] * (loop.module == "train")], ranks=2))
    alike(loop, tmp_path)


def test_two_ranks_equal_one(data, tmp_path):
    ranks_equal(LOOPS[0], data, tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("loop", LOOPS[1:], ids=lambda loop: loop.name)
def test_two_ranks_equal_one_in_every_loop(loop, data, tmp_path):
    ranks_equal(loop, data, tmp_path)


@pytest.mark.full
@pytest.mark.parametrize(("loop", "ranks"), [*((x, 1) for x in LOOPS), *((x, 2) for x in FIRST)],
                         ids=lambda x: getattr(x, "name", x))  # fmt: skip
def test_sigkill_and_resume_equals_uninterrupted(loop, ranks, data, tmp_path):
    """Real processes, killed from outside wherever they happen to be."""

    def flags(out):
        return [*loop.flags(data(loop), out), *loop.steps(60), *loop.batch(4, 1, ranks)]

    finish(loop.spawn(flags(tmp_path / "a"), ranks))
    out, rng = tmp_path / "b", np.random.default_rng(ranks)
    process = loop.spawn(flags(out), ranks)
    kills = 0
    for _ in range(2):
        deadline = time.time() + 60
        start = loop.last(out).stat().st_mtime_ns if out.exists() and last_exists(loop, out) else 0
        while process.poll() is None and time.time() < deadline:
            if last_exists(loop, out) and loop.last(out).stat().st_mtime_ns != start:
                break
            time.sleep(0.005)
        time.sleep(float(rng.random()) * 0.05)
        if process.poll() is not None:
            break
        status = run.read_status(out)
        os.kill(status["pid"], signal.SIGKILL)  # the worker itself, not torchrun
        process.kill()
        process.communicate()
        kills += 1
        time.sleep(0.2)  # until the other rank is gone as well
        process = loop.spawn([*flags(out), *loop.resume(out)], ranks)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 0, text
    assert kills == 2
    assert same(weights(loop, tmp_path / "a"), weights(loop, out))


@pytest.mark.parametrize("name", ["train", "pretrain", "finetune", "procedural_pretraining"])
def test_a_deterministic_run_is_resumed_as_one(name, data, tmp_path):
    """The resume does not repeat the option; what this process did before is no matter."""
    loop = next(loop for loop in LOOPS if loop.name == name)
    try:
        loop.run(begin(loop, data(loop), tmp_path, "--deterministic"))
        torch.use_deterministic_algorithms(False)
        loop.run([*begin(loop, data(loop), tmp_path), *loop.resume(tmp_path)])
        assert torch.are_deterministic_algorithms_enabled()
        loop.run(begin(loop, data(loop), tmp_path / "other"))
        assert not torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


WIDE = {"train": ["--n_embd=64", "--block_size=32"], "procedural_pretraining": ["--gpt2_size=2_2_64", "--seq_length=16", "--no-use_curriculum"]}


@pytest.mark.full
@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
@pytest.mark.parametrize("loop", [loop for loop in LOOPS if loop.name in WIDE], ids=lambda loop: loop.name)
def test_compiled_for_two_threads_a_run_goes_on_exactly(loop, data, tmp_path):
    """Two threads that add to one gradient in either order would end in other bits; a resume names no option again."""
    two, (whole, out) = {"OMP_NUM_THREADS": "2"}, (tmp_path / name for name in "ab")

    def flags(out):
        return [*loop.flags(data(loop), out), *loop.steps(60), *loop.batch(16, 1, 1), *WIDE[loop.name]]

    finish(loop.spawn([*flags(whole), "--compile"], env=two))
    process = loop.spawn([*flags(out), "--compile"], env=two)
    while process.poll() is None and not last_exists(loop, out):
        time.sleep(0.005)
    process.kill()
    process.communicate()
    text = finish(loop.spawn([*flags(out), *loop.resume(out)], env=two))
    assert "resuming " in text and "compile on" in text and "finished" not in text, text
    assert same(weights(loop, whole), weights(loop, out))


def last_exists(loop, out) -> bool:
    try:
        return loop.last(out).exists()
    except (OSError, IndexError, ValueError):
        return False


@MORE
def test_no_tensor_is_left_to_the_garbage_collector(loop, data, tmp_path):
    """It may not look for a long time, and what knows itself waits for it: each checkpoint's copy did, 1.5 GB of GPT-2."""
    loop.run(begin(loop, data(loop), tmp_path / "warm", *loop.steps(1)))
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        loop.run(begin(loop, data(loop), tmp_path / "a"))
        gc.collect()
        found = [tuple(x.shape) for x in gc.garbage if isinstance(x, torch.Tensor)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not found


@pytest.mark.full
def test_memory_and_open_files_stay_flat():
    """tests/long_run.py at a tenth of its length."""
    argv = [sys.executable, "tests/long_run.py", "--steps=2000", "--loops", "train", "finetune"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
