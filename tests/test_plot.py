"""plot.py: runs in a table, a picture and a terminal chart."""

import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

import plot
from core import config


def make_run(folder, lr, losses, ms=100.0, places=("eval.csv", "train.csv"), config="config.yaml", **results):
    for name, rows in (
        (places[0], [{"step": 10 * i, "val_loss": v, "val_accuracy": 1 - v / 10} for i, v in enumerate(losses)]),
        (places[1], [{"step": i, "loss": 1.0, "ms": ms} for i in (0, 4, 9)]),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with open(folder / name, "w", newline="") as f:
            out = csv.DictWriter(f, list(rows[0]))
            out.writeheader()
            out.writerows(rows)
    (folder / config).write_text(f"seed: 1\nout_dir: {folder}\ntraining:\n  learning_rate: {lr}\n")
    if results:
        (folder / "results.json").write_text(json.dumps(results))
    return folder


def show(*runs, **options):
    plot.main(plot.Options(runs=list(map(Path, runs)), **options))


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setattr(plot, "WIDTH", 500)  # the folders' names are long here
    monkeypatch.setenv("COLUMNS", "500")
    a = make_run(tmp_path / "a", 0.001, [2.0, 1.5, 1.7], test_accuracy=0.5)
    b = make_run(tmp_path / "b", 0.01, [2.0, 1.0], places=plot.PLACES[1], test_accuracy=0.75)
    return a, b


def test_the_table_shows_what_differs_the_best_and_the_time(runs, tmp_path, capsys):
    show(*runs, out=str(tmp_path / "x.png"))
    head, first, second, *_ = capsys.readouterr().out.splitlines()
    assert head.split() == ["run", "learning_rate", "best", "val_loss", "at", "step", "test_accuracy", "steps", "time"]
    assert first.split() == [str(runs[1]), "0.01", "1.0000", "10", "0.7500", "10", "1s"]  # 10 steps of 100 ms
    assert second.split() == [str(runs[0]), "0.001", "1.5000", "10", "0.5000", "20", "1s"]
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_that_is_not_drawn_beside_text_is_said(runs, tmp_path, capsys):
    for name, options in (("x", {"text": True}), ("y", {})):
        show(*runs, out=str(tmp_path / f"{name}.png"), **options)
        said = "note: --out does nothing here: it needs no --text" in capsys.readouterr().err
        assert said != (tmp_path / f"{name}.png").exists() and said == bool(options)


def test_what_ran_is_shown_not_what_config_yaml_holds_since(runs, capsys):
    for run, lr in zip(runs, (0.001, 0.01), strict=True):
        (run / "config.yaml").write_text("training:\n  learning_rate: 7.0\n")  # edited for the next run
        (run / "config.resolved.yaml").write_text(f"lr: {lr}\nfiles:\n  ckpt: {run}\nout: {run}\nwandb_run_name: {run}\n")
    show(*runs, text=True)
    head, first, second, *_ = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["run", "lr", "best"]
    assert (first.split()[1], second.split()[1]) == ("0.01", "0.001")


def test_a_metric_that_should_grow_is_ranked_by_its_highest(runs, tmp_path, capsys):
    show(*runs, metric="val_accuracy", text=True)
    first = capsys.readouterr().out.splitlines()[1]
    assert first.split()[:3] == [str(runs[1]), "0.01", "0.9000"]
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize("metric", ["val_bpb", "val_ppl", "val_error", "val_perplexity"])
def test_of_a_metric_of_ones_own_the_lowest_is_the_best_where_its_name_says_so(metric, tmp_path):
    """The row that is named as the README names one, or as papers do, showed the worst value as the best."""
    make_run(tmp_path / "a", 1, [2.0, 1.5, 1.7])
    csv_file = tmp_path / "a" / "eval.csv"
    csv_file.write_text(csv_file.read_text().replace("val_loss", metric))
    assert plot.best(plot.open_run(tmp_path / "a"), metric) == (10, 1.5)


def test_a_wide_table_is_turned_and_runs_of_several_scripts_show_what_they_share(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    folders = [make_run(Path(name), lr, [2.0, lr]) for name, lr in (("a", 0.5), ("b" * 40, 0.25), ("c" * 40, 0.125))]
    for i, folder in enumerate(folders):
        with open(folder / "config.yaml", "a") as f:
            f.write(f"only_{i}: {i}\n")  # as another script's option
    show(*folders, text=True)
    out = capsys.readouterr().out
    assert "only_" not in out and max(map(len, out.split("\n\nval_loss")[0].splitlines())) <= 80
    turned = [line.split() for line in out.splitlines()]
    assert [r for r in turned if r[:1] == ["learning_rate"]] == [["learning_rate", "0.125"], ["learning_rate", "0.25", "0.5"]]
    monkeypatch.setenv("COLUMNS", "30")
    show(folders[0], make_run(Path("d"), 1.0, [2.0]), text=True)
    assert max(map(len, capsys.readouterr().out.split("\n\nval_loss")[0].splitlines())) <= 30
    with pytest.raises(ValueError, match="--out must end in .png"):
        show(*folders, out="x.txt")


@pytest.mark.filterwarnings("error")
def test_a_thousand_runs_are_shown_soon_and_not_hidden_by_their_names(tmp_path):
    """The turned table took the cube of their number, half a minute; the legend covered the curves."""
    rows = [["run", "lr", "best", "steps"], *([f"out/{i}", "0.1", f"{i}", "100"] for i in range(1000))]
    began = time.monotonic()
    told = plot.upright(rows, 80)
    assert time.monotonic() - began < 3
    assert [word for line in told if line.startswith("best") for word in line.split()[1:]] == [*map(str, range(1000))]
    plot.picture({f"out/{i}": [(0, i), (1, i)] for i in range(1000)}, "loss", tmp_path / "many.png")
    assert (tmp_path / "many.png").stat().st_size > 5000


def test_small_and_huge_values_are_told_apart(tmp_path, capsys):
    a, b = make_run(tmp_path / "a", 1e-3, [0.5, 3.25e-5]), make_run(tmp_path / "b", 1e-2, [1.5e40, 2.5e-5])
    show(a, b, text=True)
    out = capsys.readouterr().out
    assert "3.250e-05" in out and "2.500e-05" in out and " 1.500e+40 |" in out and "0" * 9 not in out


def test_the_terminal_chart_falls_from_left_to_right():
    chart = plot.terminal({"one": [(0, 2.0), (50, 1.0), (100, 0.0)], "two": [(0, 0.0), (100, 0.0)]}, "val_loss", 60, 5)
    top, bottom = chart[1], chart[5]
    assert chart[0] == "val_loss" and top.split("|")[1].startswith("a") and "a" not in bottom.split("|")[1][:20]
    assert bottom.rstrip()[-1] == "*"  # both end at 0
    assert top.startswith("    2.0000") and bottom.startswith("    0.0000")
    assert chart[-2:] == ["  a  one", "  b  two"]


def test_a_run_that_diverged_a_narrow_terminal_and_a_foreign_table(runs, tmp_path, capsys, monkeypatch):
    c = make_run(tmp_path / "c", 0.1, [2.0, float("nan")], test_accuracy=None)  # as NaN is written
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "eval.csv").write_text("a,b\n1,2\n")
    monkeypatch.setenv("COLUMNS", "10")
    show(*runs, c, tmp_path / "d", text=True)
    assert "0.7500" in capsys.readouterr().out
    show(make_run(tmp_path / "e", 0.1, [float("nan")] * 2), out=str(tmp_path / "e.png"))
    assert (tmp_path / "e.png").is_file()
    assert "e.png shows val_loss: no run has a finite value of it" in capsys.readouterr().out


def test_a_table_is_as_wide_as_the_terminal_and_a_step_without_a_time_takes_none(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [make_run(Path(name), 0.1 * i, [2.0, 1.0], ms) for i, (name, ms) in enumerate({"a": 100.0, "b": float("nan")}.items())]
    monkeypatch.setenv("COLUMNS", "40")
    show(*runs, text=True)
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 40
    assert next(line for line in said.splitlines() if line.startswith("time")).split() == ["time", "1s", "0s"]


def test_folders_without_a_run_are_passed_over(runs, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    show(runs[0], tmp_path / "empty", text=True)
    assert "no run in" in capsys.readouterr().err
    with pytest.raises(ValueError, match="^no run in .*: eval.csv"):
        show(tmp_path / "empty")
    assert not capsys.readouterr().err  # the error is the only line
    with pytest.raises(ValueError, match="did you mean 'val_accuracy'"):
        show(runs[0], metric="val_acuracy")


def test_a_run_without_the_metric_of_the_chart_is_named(runs, tmp_path, capsys):
    other = make_run(tmp_path / "other", 0.1, [3.0, 2.0])
    (other / "eval.csv").write_text("step,eval_loss\n0,3.0\n10,2.0\n")  # pretrain.py's
    show(*runs, other, text=True)
    out, err = capsys.readouterr()
    assert err == f"not in the chart: {other} has no finite val_loss, but eval_loss (--metric)\n"
    assert f"  c  {other}" not in out


def test_names_of_folders_hold_spaces_and_commas(tmp_path, capsys):
    folders = [make_run(tmp_path / name, 0.1, [2.0, 1.0]) for name in ("my runs/a, b", "c")]
    plot.main(config.parse(plot.Options, ["--runs", *map(str, folders), "--text"]))
    said = capsys.readouterr()
    assert not said.err and all(str(folder) in said.out for folder in folders)


def test_options_of_a_notebook_may_name_folders_as_text(tmp_path, capsys):
    plot.main(plot.Options(runs=[str(make_run(tmp_path / "a", 0.1, [2.0, 1.0]))], text=True))
    assert f"  a  {tmp_path / 'a'}" in capsys.readouterr().out


@pytest.mark.full
def test_folders_with_spaces_before_and_behind_the_options(tmp_path):
    """They were cut at the space, and words behind an option were refused."""
    make_run(tmp_path / "my run", 0.1, [2.0, 1.0])
    make_run(tmp_path / "b", 0.1, [2.0, 1.5])
    for words in (["my run", "b", "--text"], ["--text", "my run", "b"], ["--runs", "my run", "b", "--text"]):
        command = [sys.executable, plot.__file__, *words]
        shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert {"  a  my run", "  b  b"} <= set(shown.stdout.splitlines()) and not shown.stderr, words


@pytest.mark.full
def test_a_folder_behind_out_is_no_run(tmp_path):
    make_run(tmp_path / "b", 0.1, [2.0, 1.5])
    (tmp_path / "a.png").mkdir()
    for out in ("a.png", ""):
        command = [sys.executable, plot.__file__, "--out", out, "b"]
        shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert shown.returncode == 2 and shown.stderr.startswith("error: --out "), shown.stderr
