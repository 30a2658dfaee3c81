"""CSV files that survive crashes and resumes, log lines, the picture, and loggers that cannot stop a run."""

import itertools
import json
import os
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest
import torch

from core import exits, metrics, progress, scores, tracker
from core.progress import duration
from core.tracker import Table, Tracker, read
from procedural_pretraining.judge import draw_scores
from tests.loops import ROOT


def test_rows_at_or_beyond_the_resumed_step_are_dropped(tmp_path):
    table = Table(tmp_path / "train.csv", 0)
    for step in range(6):
        table.add({"step": step, "loss": step / 2})
    with open(tmp_path / "train.csv", "ab") as f:
        f.write("6,é".encode()[:-1])  # cut short by a crash
    table = Table(tmp_path / "train.csv", 4)
    table.add({"step": 4, "loss": 9.0})
    rows = [(r["step"], r["loss"]) for r in read(tmp_path / "train.csv")]
    assert rows == [(0, 0.0), (1, 0.5), (2, 1.0), (3, 1.5), (4, 9.0)]


def test_a_new_column_joins(tmp_path):
    table = Table(tmp_path / "e.csv", 0)
    table.add({"step": 0, "loss": 1.5})
    table.add({"step": 1, "loss": 1.25, "other": 2})
    assert read(tmp_path / "e.csv")[1] == {"step": 1, "loss": 1.25, "other": 2}


def test_a_metric_may_be_a_number_of_numpy_or_of_torch(tmp_path, capsys):
    """In a table it was the text tensor(3.48), and of no chart."""
    track = make(tmp_path)
    track.eval(1, {"val bits": torch.tensor(3.5), "val perplexity": np.exp(2.0), "val share": np.float32(0.5)})
    track.train(1, {"loss": torch.tensor(2.5)}, 1)
    track.results({"test_share": np.float32(0.5), "test_bits": torch.tensor(float("nan")),
                   "by_class": {"a": np.float32(0.5), "b": [torch.tensor(2)]}})  # fmt: skip
    row = {"step": 1, "val_bits": 3.5, "val_perplexity": np.exp(2.0).item(), "val_share": 0.5}
    assert read(tmp_path / "eval.csv") == [row] and read(tmp_path / "train.csv")[0]["loss"] == 2.5
    assert "val bits 3.5000 | val perplexity 7.3891 | val share 0.5000" in capsys.readouterr().out
    assert json.loads((tmp_path / "results.json").read_text()) == {
        "test_share": 0.5, "test_bits": None, "by_class": {"a": 0.5, "b": [2]}}  # fmt: skip


def test_a_metric_may_be_several_numbers_or_none(tmp_path, capsys):
    """The line of the log ended the run."""
    track = make(tmp_path)
    track.eval(1, {"each": torch.ones(2), "rank": np.arange(2), "one": torch.ones(1), "none": None, "last": 2.0})
    assert "each [1.0, 1.0] | rank [0, 1] | one 1.0000 | none None | last 2.0000" in capsys.readouterr().out
    assert read(tmp_path / "eval.csv")[0]["last"] == 2.0


def test_a_table_of_the_users_own_is_not_replaced(tmp_path):
    for theirs in (b"text,label\ngood,1\n", b"\xff\xfe\x00", b"x" * 200_000):
        (tmp_path / "train.csv").write_bytes(theirs)
        with pytest.raises(ValueError, match="train.csv is a table of something else, without steps"):
            Table(tmp_path / "train.csv", 0)
        assert (tmp_path / "train.csv").read_bytes() == theirs
    (tmp_path / "train.csv").write_bytes(b"")
    Table(tmp_path / "train.csv", 0).add({"step": 0, "loss": 1.5})
    assert read(tmp_path / "train.csv") == [{"step": 0, "loss": 1.5}]


def test_a_table_of_many_rows_is_gone_through_in_little_memory(tmp_path):
    """At a million rows a resume took 6 s and 700 MB, each picture 8 s and 900 MB, anew every five minutes."""
    path = tmp_path / "train.csv"
    text = [f"{i},{3 + i / 7},0.001\n" for i in range(60_000)]
    path.write_text("".join(["step,loss,lr\n", *text]))
    tracemalloc.start()
    table = Table(path, 50_000)
    table.add({"step": 50_000, "loss": 1.5, "norm": 2.0})
    few = read(path, 100)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3e6, peak
    first, *rest = path.read_text().splitlines()
    assert first == "step,loss,lr,norm" and rest == [*(line[:-1] + "," for line in text[:50_000]), "50000,1.5,,2.0"]
    assert 100 < len(few) <= 200 and few[0] == {"step": 0, "loss": 3.0, "lr": 0.001, "norm": ""}
    assert len({b["step"] - a["step"] for a, b in itertools.pairwise(few)}) == 1


def make(tmp_path, **options) -> Tracker:
    return Tracker(tmp_path, True, 5000, **options)


def test_the_log_line(tmp_path, capsys):
    track = make(tmp_path, flops=1e6, peak=1e12)
    track.t = time.monotonic() - 0.41
    track.at = 111
    track.train(120, {"loss": 3.41271, "lr": 5.91e-4, "norm": 0.871}, 4000)
    line = capsys.readouterr().out.strip()
    for part in ("step  120/5000 | loss 3.4127 | lr 5.91e-04 | norm 0.87 | 41 ms | 97,", " tok/s | mfu 10% | eta 3m2"):
        assert part in line
    assert len(line) < 110


def test_a_number_of_a_run_that_diverged_is_short(tmp_path):
    values = {"loss": 1e9, "eval perplexity": 1.0142e304, "norm": float("inf"), "eval loss": float("nan"), "lr": 1e-4}
    assert [tracker.show(*v) for v in values.items()] == ["1e+09", "1.014e+304", "inf", "nan", "1.00e-04"]
    assert [tracker.show("norm", 12.345), tracker.show("loss", 1e6)] == ["12.35", "1000000.0000"]


def test_a_long_evaluation_is_folded_and_nothing_of_it_is_lost(tmp_path, capsys):
    values = {f"val loss {name}": 1.5 for name in ("manual", "library", "novels", "letters")}
    make(tmp_path).eval(20, values, "best")
    out = capsys.readouterr().out.rstrip("\n")
    assert max(map(len, out.splitlines())) <= 88 and len(out.splitlines()) == 2
    parts = [part.strip() for line in out.splitlines() for part in line.split("|") if part.strip()]
    assert parts == ["eval   20/5000", *(f"{name} 1.5000" for name in values), "best"]


def test_durations():
    assert [duration(s) for s in (0.4, 41, 200, 7500)] == ["0s", "41s", "3m20s", "2h05m"]


def test_the_picture_is_drawn_from_the_files(tmp_path):
    track = make(tmp_path, resumes=[3])
    for step in range(5):
        track.train(step, {"loss": 5.0 - step, "lr": 1e-3, "norm": 1.0}, 10)
        track.eval(step, {"val loss": 6.0 - step}, quiet=True)
    track.close()
    data = (tmp_path / "loss.png").read_bytes()
    assert data.startswith(b"\x89PNG") and len(data) > 5000


def test_dollars_in_names_are_no_formulas(tmp_path):
    from core import metrics, scores
    from plot import picture
    from procedural_pretraining.judge import draw_scores

    folder = tmp_path / "cost_$^$"
    folder.mkdir()
    track = make(folder)
    track.eval(0, {"val loss": 2.0, "val loss $$": 1.0, "accuracy": 0.5, "length": 3})
    track.close()
    metrics.draw_confusion(folder / "confusion.png", np.eye(3, dtype=int), ["$", "$$", "$$$"], str(folder))
    scores.draw(folder / "scores.png", np.arange(3), np.arange(3), "x", "y")
    picture({str(folder): [(0, 1.0)]}, "val_loss", folder / "runs.png")
    for name in ("loss.png", "confusion.png", "scores.png", "runs.png"):
        (folder / name).unlink()
    draw_scores(folder)
    assert (folder / "scores.png").exists()


def test_a_notebook_s_own_figures_stay_as_they_are(tmp_path):
    """A run made Agg their backend and took the formulas from their labels."""
    import matplotlib

    matplotlib.use("svg")
    before = dict(matplotlib.rcParams)
    track = make(tmp_path)
    track.eval(0, {"val loss": 2.0})
    track.close()
    assert (tmp_path / "loss.png").exists() and dict(matplotlib.rcParams) == before


def test_a_nan_in_the_files_does_not_stop_the_picture(tmp_path):
    track = make(tmp_path)
    track.train(0, {"loss": float("nan"), "lr": 1e-3, "norm": float("inf")}, 10)
    track.eval(0, {"val loss": float("nan")})
    track.close()
    assert (tmp_path / "loss.png").exists()


def test_a_picture_is_whole_or_the_one_before(tmp_path, monkeypatch):
    """Each of them: a resume takes scores.png that is there for one that needs no scores any more."""
    from matplotlib import figure, pyplot

    def dies(self, file, **_):
        with open(file, "wb") as f:
            f.write(b"\x89PNG")
        raise KeyboardInterrupt

    row = {"step": 0, "loss": 1.0, "accuracy": 0.5, "length": 2}
    Table(tmp_path / "eval.csv", 0).add(row)
    draws = {"loss.png": lambda path: tracker.draw(path, [row], [row], []),
             "confusion.png": lambda path: metrics.draw_confusion(path, np.eye(2), ["a", "b"], "title"),
             "scores.png": lambda path: scores.draw(path, np.arange(3), np.arange(3), "x", "y")}  # fmt: skip
    for name, draw in [*draws.items(), ("scores.png", lambda path: draw_scores(path.parent))]:
        draw(tmp_path / name)
        before = (tmp_path / name).read_bytes()
        with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
            m.setattr(figure.Figure, "savefig", dies)
            draw(tmp_path / name)
        assert (tmp_path / name).read_bytes() == before and not pyplot.get_fignums()
    assert {p.name for p in tmp_path.iterdir()} == {"eval.csv", *draws}


@pytest.mark.parametrize("broken", [None, "raise OSError('no folder for its cache')"])
def test_without_a_matplotlib_that_works_a_run_ends_well_and_plot_says_so(broken, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # import says ImportError
    if broken:
        monkeypatch.delitem(sys.modules, "matplotlib")
        (tmp_path / "matplotlib.py").write_text(broken)
        monkeypatch.syspath_prepend(tmp_path)
    track = make(tmp_path)
    track.eval(0, {"val loss": 2.0})
    track.close()
    said = capsys.readouterr().err
    assert said.startswith(f"{tmp_path / 'loss.png'}: no picture, ") and said.count("\n") == 1
    command = [sys.executable, "-c", "import sys; sys.modules['matplotlib'] = None; import runpy;"
               f" sys.argv[1:] = ['{tmp_path}']; runpy.run_path('plot.py', run_name='__main__')"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "matplotlib" in done.stderr and "Traceback" not in done.stderr, done


def test_wandb_without_a_home_is_one_line(tmp_path, capsys, monkeypatch):
    """A container's user who is in no /etc/passwd."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert make(tmp_path, wandb={"project": "x"}).wandb is None
    assert capsys.readouterr().err == "wandb is off: Could not determine home directory.\n"


def test_wandb_without_a_key_is_one_line(tmp_path, capsys, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    started = time.time()
    track = make(tmp_path, wandb={"project": "x"})
    track.train(0, {"loss": 1.0}, 10)
    track.close()
    assert track.wandb is None and time.time() - started < 5
    assert capsys.readouterr().err.count("wandb is off: no key") == 1


@pytest.mark.full
def test_wandb_that_cannot_be_reached_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    started = time.time()
    track = make(tmp_path, wandb={"project": "x", "key": "0" * 40})
    track.train(0, {"loss": 1.0}, 10)
    track.close()
    assert track.wandb is None and time.time() - started < 60 and "wandb is off" in capsys.readouterr().err


def test_tensorboard_is_written_where_it_is_installed(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first_step in (0, 0, 2):  # resumes after a kill, also one at the checkpoint of step 0: steps come again
        track = make(tmp_path, tensorboard=True, first_step=first_step)
        for step in range(first_step, 6):
            track.train(step, {"loss": 1.0}, 10)
        track.close()
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("train/loss")
    assert [event.step for event in found] == list(range(6))


def test_a_logger_that_fails_is_switched_off(tmp_path, capsys):
    class Broken:
        def log(self, *a, **k):
            raise RuntimeError("gone")

        finish = log

    track = make(tmp_path)
    track.wandb = Broken()
    track.train(0, {"loss": 1.0}, 10)
    track.train(1, {"loss": 1.0}, 10)
    assert track.wandb is None and capsys.readouterr().err.count("gone") == 1
    track.wandb = Broken()
    track.close()
    assert track.wandb is None and capsys.readouterr().err.count("gone") == 1


@pytest.mark.full
def test_wandb_itself_opens_logs_and_closes(tmp_path):
    """Without a network it writes into the run's folder; in a process of its own, as it remembers how it was set up."""
    pytest.importorskip("wandb")
    code = (
        "import sys, time; from pathlib import Path; from core.tracker import Tracker\n"
        "for first in (0, 5):\n"
        "    track = Tracker(Path(sys.argv[1]), True, 5000, first, wandb={'project': 'x', 'name': 'y'})\n"
        "    assert track.wandb; track.train(first, {'loss': 1.0}, 10); track.eval(first, {'val loss': 1.0})\n"
        "    track.close(); assert track.wandb; time.sleep(1)"  # which its folders are named by
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")} | {"WANDB_MODE": "offline"}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "stopped" not in done.stderr, done.stderr
    logs = list(tmp_path.rglob("*.wandb"))  # run-ID.wandb: the second is a resume, and goes on with the first
    assert len(logs) == 2 and all(p.stat().st_size for p in logs) and len({p.name for p in logs}) == 1


def test_progress_speaks_after_two_seconds_and_passes_all_on(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    out = []
    for item in progress.progress(range(40), "reading"):
        now[0] += 0.5
        out.append(item)
    err = capsys.readouterr().err
    assert out == list(range(40)) and "reading: " in err and "eta" in err
    for _ in progress.progress(range(40), "reading", show=False):  # another rank says it
        now[0] += 0.5
    assert not capsys.readouterr().err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    for item in progress.progress(range(40), "reading"):
        now[0] += 0.5
        if item == 20:
            break
    assert capsys.readouterr().err.endswith("\n")  # what comes next has a line of its own


@pytest.mark.parametrize("comes", [True, False])
def test_the_signal_of_a_closed_terminal_may_come_after_its_error(comes, monkeypatch):
    ours, theirs = os.openpty()
    os.close(ours)
    with open(theirs, "w") as gone:
        for name in ("stdout", "stderr"):
            monkeypatch.setattr(sys, name, gone)
        monkeypatch.setattr(time, "sleep", lambda seconds: comes and exits.lenient())  # as its handler does
        if comes:
            tracker.tell("step 3")
        else:
            with pytest.raises(OSError, match="Input/output error"):
                tracker.tell("step 3")
        os.dup2(os.open(os.devnull, os.O_WRONLY), theirs)  # or it could not be closed
