"""Run folders, exit codes, signals, ranks: what a run leaves behind, however it ends."""

import contextlib
import errno
import gc
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from core import dist, exits, preflight, run
from tests.loops import ROOT


def code_of(raising, capsys):
    with pytest.raises(SystemExit) as e, run.guard():
        raising()
    return e.value.code, capsys.readouterr().err


def user_error():
    from model import GPTConfig

    GPTConfig(n_head=5, n_embd=16)


def bug():
    int("seven")


def no_space():
    raise OSError(errno.ENOSPC, "No space left on device", "x.csv")


def diverged():
    raise run.NotFinite("10 steps in a row")


def interrupted():
    raise KeyboardInterrupt


@pytest.mark.parametrize(("raising", "code", "says", "lines"), [
    (user_error, 2, "n_head must divide n_embd", 1), (bug, 1, "Traceback", None), (no_space, 74, "x.csv", 1),
    (diverged, 3, "10 steps in a row", 1), (interrupted, 75, "interrupted", 1),
])  # fmt: skip
def test_exit_codes(raising, code, says, lines, capsys):
    got, err = code_of(raising, capsys)
    assert got == code and says in err
    assert lines is None or len(err.strip().splitlines()) == lines


@pytest.mark.parametrize("says", ["Timed out waiting 4000ms for send operation to complete",
                                  "Application timeout caused pair closure"])  # fmt: skip
def test_a_rank_that_waited_in_vain_says_so_whatever_gloo_calls_it(says, monkeypatch, capsys):
    monkeypatch.setattr(exits, "ranks", lambda: dist.td)
    monkeypatch.setattr(dist.td, "get_rank", lambda: 1)
    assert exits.verdict(RuntimeError(says)) == (1, f"rank 1 waited in vain for another rank, as long as --timeout says: {says}")


def test_a_machine_without_a_temporary_folder_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", list)
    code, err = code_of(tempfile.TemporaryFile, capsys)
    assert code == 74 and err.count("\n") == 1 and "TMPDIR=FOLDER" in err


@pytest.mark.parametrize(("readable", "code", "says"), [(False, 2, "cannot be read"), (True, 74, "Permission denied")])
def test_a_file_that_must_not_be_read_is_bad_input_and_one_not_to_be_written_is_not(
        readable, code, says, tmp_path, capsys, monkeypatch):  # fmt: skip
    (tmp_path / "data.bin").write_bytes(b"12")

    def refused():
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "data.bin"))

    monkeypatch.setattr(os, "access", lambda path, mode: readable)
    got, err = code_of(refused, capsys)
    assert got == code and says in err and "data.bin" in err and len(err.splitlines()) == 1


def test_a_library_s_value_error_is_a_bug_and_ours_is_not():
    for function, expected in ((lambda: torch.empty(2).view(3), False), (user_error, True), (bug, False)):
        try:
            function()
        except (ValueError, RuntimeError) as e:
            assert exits.ours(e) is expected


def test_a_file_where_a_folder_should_be_is_one_line(tmp_path, capsys):
    (tmp_path / "out.txt").write_text("")
    for path in (tmp_path / "out.txt", tmp_path / "out.txt" / "run"):
        code, err = code_of(lambda path=path: run.claim(path), capsys)
        assert code == 2 and "out.txt" in err and "a file is in the way" in err and len(err.splitlines()) == 1


def test_a_folder_where_a_file_should_be_is_one_line(tmp_path, capsys):
    code, err = code_of(lambda: open(tmp_path).close(), capsys)
    assert code == 2 and err == f"error: {tmp_path} is a folder, and a file is wanted there\n"


@pytest.mark.parametrize("path", ["/proc/x.png", "/proc/x/y", "a" * 300])
def test_what_no_file_can_be_called_is_one_line(path, capsys):
    code, err = code_of(lambda: open(path, "w").close(), capsys)
    assert code == 2 and path in err and len(err.splitlines()) == 1


def test_a_run_that_a_signal_stops_says_how_it_goes_on(tmp_path, capsys):
    folder = run.claim(tmp_path / "r")
    folder.begin(holds="aside", resume=False)
    folder.step = 7
    with pytest.raises(SystemExit):
        folder.finish(run.STOPPED)
    assert capsys.readouterr().out == "stopped before step 7 and saved: --init_from=resume goes on there\n"


def test_arrows_word_for_a_full_disk_names_the_file(tmp_path, capsys):
    def main():
        with exits.writing(tmp_path):
            raise OSError(errno.ENOSPC, "Error writing bytes to file. Detail: [errno 28] No space left on device")

    assert code_of(main, capsys) == (74, f"error: No space left on device: {tmp_path}\n")


def test_a_full_disk_leaves_room_for_how_the_run_ended(tmp_path, capsys, monkeypatch):
    """Without a free block no new file is written, only over what is there: it said that the run was running."""
    path = tmp_path / "r"

    def disk_full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def main():
        run.claim(path).begin(holds="aside", resume=False)
        monkeypatch.setattr(type(path), "write_text", disk_full)
        disk_full()

    assert code_of(main, capsys) == (74, f"error: No space left on device: {path}\n"), "an open file's names nothing"
    status = run.read_status(path)
    assert (status["state"], status["code"]) == ("failed", 74) and not list(path.glob("*.tmp"))


@pytest.mark.parametrize("begun", [True, False])
def test_a_folder_that_goes_while_the_run_writes_there_is_one_line(begun, tmp_path, capsys):
    def main():
        folder = run.claim(tmp_path / "r")
        if begun:
            folder.begin(holds="aside", resume=False)
        (tmp_path / "r").rename(tmp_path / "elsewhere")
        if not begun:  # data and model took their time
            folder.begin(holds="aside", resume=False)
        open(tmp_path / "r" / "train.csv", "a").close()

    said = f"error: {tmp_path / 'r'} was moved or removed while the run was writing there\n"
    assert code_of(main, capsys) == (74, said)


def test_a_stopped_run_whose_output_nobody_reads_any_more_saves_and_says_75(tmp_path, monkeypatch):
    """Ctrl-C in `python train.py | tee log`: tee ends first."""
    ends = [os.pipe(), os.pipe()]
    for name, (reader, writer) in zip(("stdout", "stderr"), ends, strict=True):
        os.close(reader)
        monkeypatch.setattr(sys, name, os.fdopen(writer, "w"))
    folder = run.claim(tmp_path / "a")
    folder.begin(holds="aside", resume=False)
    os.kill(os.getpid(), signal.SIGINT)
    print("step 3", flush=True)
    folder.step = 4
    with pytest.raises(SystemExit) as e, run.guard():
        assert folder.stopping()
        folder.finish(run.STOPPED)
    assert e.value.code == 75 and run.read_status(tmp_path / "a")["state"] == "stopped"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux's full disk")
@pytest.mark.parametrize("args, full, code", [("", "1", 74), ("--nonsense 1", "2", 2)])
def test_output_to_a_full_disk_keeps_the_exit_code(args, full, code, tmp_path):
    (tmp_path / "a.txt").write_text("1 2 3\n")
    command = f"{sys.executable} data/train_tokenizer.py --data_dir {tmp_path} --out_dir {tmp_path} {args}"
    command += f" {full}> /dev/full"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code and "Traceback" not in done.stderr, done


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux's full disk")
@pytest.mark.parametrize("flush", [True, False])
def test_a_log_on_a_full_disk_is_not_taken_for_the_run_s_disk(flush, tmp_path):
    """`> /home/log` with a run on another disk: the run's folder was called full."""
    code = (f"from core import run\nwith run.guard():\n    r = run.claim({str(tmp_path / 'r')!r})\n"
            f"    r.begin(holds='aside', resume=False)\n    print('step 3', flush={flush})")  # fmt: skip
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (74, "error: No space left on device: standard output\n")
    code = "from core import exits\nwith exits.guard(), exits.writing('out'):\n"  # a tool's
    with open("/dev/full", "w") as full:
        argv = [sys.executable, "-c", f"{code}    print('step 3', flush={flush})\n    print('step 4', flush={flush})"]
        done = subprocess.run(argv, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (74, "error: No space left on device: standard output\n")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", None])
def test_a_terminal_that_lacks_a_letter_or_is_closed_ends_nothing(encoding, monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, encoding and io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    with run.guard():
        assert not sys.stderr.isatty()
        print("\u65e5 \udcff", flush=True)
    assert not encoding or sys.stdout.buffer.getvalue() == b"\\u65e5 \\udcff\n"


def test_two_runs_in_one_folder(tmp_path):
    first, exits.held = run.claim(tmp_path / "r"), None  # as another process's
    with pytest.raises(ValueError, match=f"is in use by process {os.getpid()} on"):
        run.claim(tmp_path / "r")
    first.finish()
    run.claim(tmp_path / "r").finish()


def test_a_run_that_an_error_ended_in_a_notebook_is_out_of_the_way(tmp_path):
    """Without guard() its folder was in use by the notebook itself, and Ctrl-C was never heard again."""
    heard = signal.getsignal(signal.SIGINT)
    run.claim(tmp_path / "r").begin(holds="aside", resume=False)
    run.claim(tmp_path / "other").finish()
    assert run.read_status(tmp_path / "r")["state"] == "failed" and signal.getsignal(signal.SIGINT) == heard
    run.claim(tmp_path / "r").finish()


def test_a_file_system_without_locks_is_not_a_folder_in_use(tmp_path, monkeypatch, capsys):
    """Lustre without -o flock: each start was refused for a process that nobody could find."""

    def none(file, how):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(run.fcntl, "flock", none)
    folder = run.claim(tmp_path / "r")
    folder.begin(holds="aside", resume=False)
    folder.finish()
    assert "cannot be locked (Function not implemented)" in capsys.readouterr().err
    assert run.read_status(tmp_path / "r")["state"] == "finished"


@pytest.mark.parametrize("there", [True, False])
def test_a_lock_that_is_a_link_is_refused(tmp_path, there):
    """One into nothing was a traceback, and another's file lost what it held."""
    other = tmp_path / "other"
    other.write_text("mine") if there else None
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / ".lock").symlink_to(other)
    with pytest.raises(ValueError, match=r"r/\.lock is a link: remove it"):
        run.claim(tmp_path / "r")
    assert other.exists() == there and (not there or other.read_text() == "mine")


def test_a_lock_goes_with_its_process(tmp_path):
    code = f"from core import run; r = run.claim({str(tmp_path / 'r')!r}); print('held', flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               text=True)  # fmt: skip
    assert process.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match=f"process {process.pid}"):
        run.claim(tmp_path / "r")
    process.send_signal(signal.SIGKILL)
    process.wait()
    run.claim(tmp_path / "r").finish()


def test_a_second_run_moves_the_first_aside(tmp_path, capsys):
    for n in range(3):
        folder = run.claim(tmp_path / "r")
        folder.begin(holds="aside", resume=False)
        (folder.path / "mark").write_text(str(n))
        folder.finish()
    assert [(tmp_path / name / "mark").read_text() for name in ("r", "r.1", "r.2")] == ["2", "0", "1"]
    assert "moved to" in capsys.readouterr().out


def test_runs_in_folders_below_stay_where_they_are(tmp_path):
    """Out of the box train.py writes to out, the procedural tasks to out/procedural/TASK."""
    outer, inner = tmp_path / "out", tmp_path / "out" / "procedural" / "sort"
    going_on = run.claim(inner)
    going_on.begin(holds="aside", resume=False)
    exits.held = None  # as another process's
    (inner / ".ckpt.pt.tmp-7").write_bytes(b"half of it")
    for n in range(2):
        folder = run.claim(outer)
        folder.begin(holds="aside", resume=False)
        (outer / "ckpt.pt").write_text(str(n))
        (outer / "metrics").mkdir()
        folder.finish()
    assert (inner / ".ckpt.pt.tmp-7").exists() and (inner / "status.json").exists()
    assert {p.name for p in (tmp_path / "out.1").iterdir()} == {"ckpt.pt", "metrics", "status.json"}
    assert (tmp_path / "out.1" / "ckpt.pt").read_text() == "0" and (outer / "ckpt.pt").read_text() == "1"
    going_on.finish()


def test_a_link_to_a_run_s_folder_goes_on_leading_to_another_disk(tmp_path, capsys):
    """The link itself was moved: the new run lay on the disk that it led away from, and one below it lost its folder."""
    (tmp_path / "scratch" / "out").mkdir(parents=True)
    (tmp_path / "out").symlink_to(tmp_path / "scratch" / "out")
    run.claim(tmp_path / "out" / "below").begin(holds="aside", resume=False)
    exits.held = None  # as another process's
    for n in range(2):
        folder = run.claim(tmp_path / "out")
        folder.begin(holds="aside", resume=False)
        (folder.path / "ckpt.pt").write_text(str(n))
        folder.finish()
    assert [(tmp_path / "scratch" / name / "ckpt.pt").read_text() for name in ("out", "out.1")] == ["1", "0"]
    assert (tmp_path / "out").is_symlink() and (tmp_path / "out" / "below" / "status.json").exists()
    assert f"moved to {tmp_path.resolve() / 'scratch' / 'out.1'}" in capsys.readouterr().out


@pytest.mark.parametrize("below", [True, False])
def test_a_run_where_a_disk_is_mounted_cannot_be_moved_aside(tmp_path, monkeypatch, below):
    """As a container's volume is: a traceback, and an empty folder beside it."""
    if below:
        run.claim(tmp_path / "r" / "below").begin(holds="aside", resume=False)
        exits.held = None  # as another process's

    def refused(path, goal):
        raise OSError(errno.EXDEV if below else errno.EBUSY, "refused")

    for n in range(2):
        folder = run.claim(tmp_path / "r")
        with monkeypatch.context() as m:
            if n:
                m.setattr(Path, "rename", refused)
            with pytest.raises(ValueError, match="a disk is mounted there") if n else contextlib.nullcontext():
                folder.begin(holds="aside", resume=False)
        if not n:
            folder.finish()
    assert run.finished(tmp_path / "r") and not (tmp_path / "r.1").exists()


def test_data_beside_a_run_stays_where_it_is(tmp_path):
    """Tokenizers and texts in out, where train.py writes, or a run in its data set's folder: its third had no data."""
    data = ("bpe/tokenizer_vocab1000_max97.json", "topics/train.pt", "topics/labels.json", "own/train.bin")
    for name, others in (("out", (*data, "topics.csv")), ("set", ("train.bin", "meta.json")), ("run", ())):
        for other in others:
            (tmp_path / name / other).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / other).write_text(other)
        for n in range(2):
            folder = run.claim(tmp_path / name)
            folder.begin(holds="aside", resume=False, written=["mine.csv"])
            for made in ("ckpt_5.pt", "mine.csv", "checkpoint-5/ckpt.pt", "final/tokenizer.json"):
                (tmp_path / name / made).parent.mkdir(exist_ok=True)
                (tmp_path / name / made).write_text(str(n))
            folder.finish()
        assert all((tmp_path / name / other).read_text() == other for other in others)
        there = {str(p.relative_to(tmp_path / f"{name}.1")) for p in (tmp_path / f"{name}.1").rglob("*.*")} - {".lock"}
        assert there == {"ckpt_5.pt", "mine.csv", "checkpoint-5/ckpt.pt", "final/tokenizer.json", "status.json"}


def test_a_refused_start_changes_nothing(tmp_path):
    folder = run.claim(tmp_path / "r")
    folder.begin(holds="aside", resume=False)
    folder.finish()
    before = sorted(p.name for p in (tmp_path / "r").iterdir())
    with pytest.raises(SystemExit), run.guard():
        run.claim(tmp_path / "r")
        user_error()
    assert sorted(p.name for p in (tmp_path / "r").iterdir()) == before and not (tmp_path / "r.1").exists()
    with pytest.raises(SystemExit), run.guard():
        run.claim(tmp_path / "new")
        user_error()
    assert not (tmp_path / "new").exists()
    with pytest.raises(SystemExit), run.guard():
        run.claim(tmp_path / "new" / "folder" / "in folders")
        user_error()
    assert not (tmp_path / "new").exists()


def test_the_folder_that_one_is_in_cannot_be_moved_aside(tmp_path, monkeypatch):
    (tmp_path / "below").mkdir()
    for cwd, name in ((tmp_path, "."), (tmp_path / "below", ".."), (tmp_path / "below", str(tmp_path))):
        monkeypatch.chdir(cwd)
        folder = run.claim(name)
        if run.holds_run(tmp_path, ()):
            with pytest.raises(ValueError, match="holds a run, and the folder that you are in"):
                folder.begin(holds="aside", resume=False)
        else:
            folder.begin(holds="aside", resume=False)
        folder.finish()


@pytest.mark.parametrize("theirs", ["[1]", "3", "null", "{", ""])
def test_a_status_of_someone_else_s_is_no_run(theirs, tmp_path):
    (tmp_path / "status.json").write_text(theirs)
    assert not run.holds_run(tmp_path, ("*.pt",)) and not run.finished(tmp_path)


def test_a_failure_after_the_start_is_in_status(tmp_path):
    with pytest.raises(SystemExit), run.guard():
        folder = run.claim(tmp_path / "r")
        folder.begin(holds="aside", resume=False)
        folder.step = 7
        raise run.NotFinite("no")
    status = json.loads((tmp_path / "r" / "status.json").read_text())
    assert (status["state"], status["code"], status["message"], status["step"]) == ("failed", 3, "no", 7)


def test_stale_temporary_files_go_at_the_start(tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / ".ckpt.pt.tmp-123").write_text("half")
    folder = run.claim(tmp_path / "r")
    folder.begin(holds="continue", resume=True)
    folder.finish()
    assert not (tmp_path / "r" / ".ckpt.pt.tmp-123").exists()


def test_a_run_that_is_moved_aside_takes_no_temporary_file_along(tmp_path):
    """Of the size of a checkpoint, and hidden, it stayed there for ever."""
    (tmp_path / "r").mkdir()
    for name in (".ckpt.pt.tmp-123", "ckpt.pt"):
        (tmp_path / "r" / name).write_text("half")
    folder = run.claim(tmp_path / "r")
    folder.begin(holds="aside", resume=False)
    folder.finish()
    assert [p.name for p in tmp_path.rglob("*ckpt*")] == ["ckpt.pt"]


@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_are_not_finite_change_nothing(fused, capsys):
    """Also where the decision stays on the device: fused kernels skip by found_inf, on a CPU as on a GPU."""
    p = torch.nn.Parameter(torch.ones(4))
    optimizer = torch.optim.AdamW([p], lr=0.1, fused=fused)
    finite = run.Finite(optimizer, torch.device("cpu"), limit=2)
    finite.lazy = fused
    for step, value in enumerate([1.0, float("nan"), 1.0, float("inf"), float("nan")]):
        before = p.detach().clone()
        p.grad = torch.full_like(p, value)
        norm = torch.nn.utils.clip_grad_norm_([p], 1.0)
        stop = step == 4
        if finite.ok(norm, step, "here") if not (stop and not fused) else False:
            optimizer.step()
        assert torch.equal(before, p) == (not np.isfinite(value))
        assert stop or finite.bad() == (not np.isfinite(value))
        if fused and not stop:
            finite.check("here")
    with pytest.raises(run.NotFinite, match="2 steps in a row"):
        finite.check("here") if fused else finite.ok(norm, 4, "here")
    assert finite.total == 3 and "update skipped" in capsys.readouterr().err
    assert finite.counts() == {"bad_steps": 3, "bad_row": 2}
    assert run.Finite(optimizer, torch.device("cpu"), 3, finite.counts()).bad()  # as a resume takes it up
    state = optimizer.state[p]
    assert float(state["step"]) == 2


def test_a_late_step_that_is_not_finite_is_named_as_it_is(capsys):
    """Kept on the device as float32, step 16,777,217 was 16,777,216, whose batch --replay_step showed."""
    finite = run.Finite(torch.optim.AdamW([torch.nn.Parameter(torch.ones(4))]), torch.device("cpu"), limit=2)
    finite.lazy = True
    for step in (2**24 + 1, 2**33 + 1):
        finite.ok(torch.tensor(float("nan")), step, "here")
        finite.ok(torch.tensor(1.0), step + 1, "here")
        finite.check("here")
        assert f"--replay_step {step} " in capsys.readouterr().err


@pytest.mark.parametrize(("args", "want"), [((64, 64, 1), (1, 64)), ((64, 64, 2), (1, 32)), ((64, 16, 2), (2, 16)),
                                            ((12, 8, 1), (2, 6)), ((6, 4, 2), (1, 3)), ((10, 4, 1), (5, 2))])  # fmt: skip
def test_a_rank_s_share_of_a_batch(args, want):
    assert dist.split(*args) == want


def test_parts_of_a_batch_have_nearly_as_much_to_do():
    g = np.random.default_rng(0)
    which, sizes = g.permutation(1000)[:64], np.clip(np.exp(g.normal(4.8, 0.7, 64)), 16, 512).astype(np.int32)
    for parts in (2, 4, 8):
        dealt = dist.deal(which, sizes, parts)
        assert sorted(dealt) == sorted(which)
        shares = dict(zip(which, sizes, strict=True))
        as_cut, fair = (np.array([sum(shares[i] for i in part) for part in w.reshape(parts, -1)])
                        for w in (which, dealt))  # fmt: skip
        assert np.ptp(fair) < 0.35 * np.ptp(as_cut) and fair.max() < 1.1 * fair.mean(), (as_cut, fair)
    assert dist.deal(which, sizes, 1) is which and dist.deal(which, sizes, 3) is which


def test_a_batch_that_does_not_divide_over_ranks():
    with pytest.raises(ValueError, match="9 does not divide over 2 ranks"):
        dist.split(9, 4, 2)


@pytest.mark.parametrize("left, says", [
    ({"RANK": "1"}, "RANK=1 and WORLD_SIZE=1 in the environment, and ranks"), ({"RANK": "-1"}, "ranks count from 0"),
    ({"WORLD_SIZE": "2"}, "RANK is not set"), ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_ADDR is not set"),
    ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0"), ({"LOCAL_RANK": "x"}, "LOCAL_RANK in the environment must be a number"),
    ({"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "9"}, "did not find the others"),
    ({"RANK": "", "WORLD_SIZE": ""}, "")])  # fmt: skip
def test_what_a_launcher_left_in_the_environment_is_named(left, says, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    if not says:
        assert dist.init("cpu").main
        return
    with pytest.raises(ValueError, match=says):
        dist.init("cpu", timeout=1)


@pytest.mark.parametrize("device", ["cuda:99", "tpu", "gpu7"])
def test_a_device_that_is_not_there(device):
    with pytest.raises(ValueError, match="--device"):
        dist.pick_device(device, 0)


def test_a_device_of_torch_s_own_will_do():
    assert dist.pick_device(torch.device("cpu"), 0) == torch.device("cpu")


def test_a_macs_gpu_is_one_processs(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert dist.pick_device("auto", 0).type == dist.pick_device("mps", 0).type == "mps"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert dist.pick_device("auto", 1).type == "cpu"
    with pytest.raises(ValueError, match="--device mps: several ranks run on CUDA devices or on the CPU"):
        dist.pick_device("mps", 0)


def test_what_writes_one_file_is_refused_on_several_ranks(monkeypatch):
    dist.alone("--predict")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="--predict runs in one process: start it with python"):
        dist.alone("--predict")


@pytest.mark.parametrize("mine, other", [("ok", "bad"), ("bad", "ok")])
def test_what_cannot_work_on_one_rank_starts_on_none(mine, other, monkeypatch):
    monkeypatch.setattr(dist, "gather", lambda checks: [checks, [("memory", other, "theirs")]])
    with pytest.raises(ValueError, match="memory: (mine|theirs)"):
        preflight.report([("memory", mine, "mine")], True)


def test_what_one_rank_refuses_all_do(monkeypatch):
    def check(bad):
        if bad:
            raise ValueError("row 3")

    dist.agree(check, False)
    monkeypatch.setattr(dist, "gather", lambda said: [None, "row 7"] if said is None else [said])
    for bad, says in ((False, "row 7"), (True, "row 3")):
        with pytest.raises(ValueError, match=says):
            dist.agree(check, bad)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
@pytest.mark.parametrize("device", ["gpu", "0", "cuda"])
def test_a_device_is_named_as_the_user_named_it(device):
    with pytest.raises(ValueError, match=f"--device {device}: this machine"):
        dist.pick_device(device, 0)


# -----------------------------------------------------------------------------
# ranks

WORKER = """
import os, sys, time
sys.path.insert(0, {root!r})
from core import dist, run
with run.guard():
    d = dist.init("cpu", timeout=20)
    folder = run.claim({out!r}, d.main)
    folder.begin(holds="continue", resume=True)
    odd = 2**24 + 1  # which float32 has not
    assert dist.sums([odd]) == [d.world * odd] and dist.gather(d.rank) == [*range(d.world)]
    open({out!r} + f"/pid{{d.rank}}", "w").write(str(os.getpid()))
    {body}
    folder.finish()
"""


def launch(tmp_path, body: str, ranks: int = 2, before: tuple[str, ...] = ()):
    (tmp_path / "w.py").write_text(WORKER.format(root=str(ROOT), out=str(tmp_path / "r"), body=body))
    from tests.loops import port

    torchrun = [*before, sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={ranks}", "--master_port",
                str(port())]  # fmt: skip
    return subprocess.Popen([*torchrun, tmp_path / "w.py"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip


def wait_for(condition, seconds: float = 30) -> bool:
    end = time.time() + seconds
    while time.time() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


def gone(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().split()[2] == "Z"
    except FileNotFoundError:
        return True


# a rank that hangs and can be told to end: torchrun waits half a minute for one that cannot
ASLEEP = "import signal; signal.signal(signal.SIGTERM, signal.SIG_DFL); time.sleep(60)"


@pytest.mark.full
def test_one_rank_s_error_ends_all_and_is_in_status(tmp_path):
    started = time.time()
    process = launch(tmp_path, f"if d.rank == 0: raise ValueError('wrong')\n    {ASLEEP}")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and "error: ValueError: wrong" in out and time.time() - started < 20
    # the worker's file is not ours, so its ValueError counts as a bug there: what matters is that all ended
    assert json.loads((tmp_path / "r" / "status.json").read_text())["state"] == "failed"


@pytest.mark.full
@pytest.mark.parametrize(("body", "code", "says"), [("dist.split(3, 1, 2)", 2, "a global batch of 3 does not divide"),
                                                    ("raise KeyboardInterrupt", 75, "interrupted")])  # fmt: skip
def test_what_ends_one_rank_ends_all_and_is_told_once(body, code, says, tmp_path):
    """Rank 0 saw no more than that another was gone, or waited for one that waited for it."""
    process = launch(tmp_path, f"if d.rank == 1: {body}\n    dist.sums([1, 2, 3])")
    assert wait_for(lambda: (tmp_path / "r" / "pid1").exists())
    started = time.time()
    out, _ = process.communicate(timeout=100)
    status = json.loads((tmp_path / "r" / "status.json").read_text())
    assert out.count("error: ") == 1 and f"[rank 1] error: {says}" in out and time.time() - started < 18, out
    assert status["code"] == code and status["message"].startswith(f"rank 1: {says}")


@pytest.mark.full
@pytest.mark.parametrize("ranks", [1, 2])
def test_sigkill_of_torchrun_ends_its_workers(tmp_path, ranks):
    process = launch(tmp_path, "time.sleep(60)", ranks)
    files = [tmp_path / "r" / f"pid{rank}" for rank in range(ranks)]
    assert wait_for(lambda: all(f.exists() and f.read_text() for f in files))
    process.kill()
    assert wait_for(lambda: all(gone(int(f.read_text())) for f in files), 10)


@pytest.mark.full
def test_torchrun_may_be_the_first_process_of_a_container(tmp_path):
    """Its workers have a parent of number 1 then, as those have whose parent is gone."""
    inside = ("unshare", "--pid", "--fork")
    if not shutil.which("unshare") or subprocess.run([*inside, "true"], capture_output=True).returncode:
        pytest.skip("no container can be made here")
    process = launch(tmp_path, "assert os.getppid() == 1", before=inside)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and json.loads((tmp_path / "r" / "status.json").read_text())["code"] == 0, out


@pytest.mark.full
def test_a_signal_to_one_rank_is_agreed_by_all(tmp_path):
    body = "import signal\n    folder.signal = signal.SIGTERM if d.rank == 1 else 0\n    assert folder.stopping()"
    out, _ = launch(tmp_path, body).communicate(timeout=60)
    assert json.loads((tmp_path / "r" / "status.json").read_text())["state"] == "finished", out


@pytest.mark.full
def test_a_rank_that_hangs_is_named_after_the_time_limit(tmp_path):
    process = launch(tmp_path, f"if d.rank == 0: dist.barrier()\n    {ASLEEP}")
    out, _ = process.communicate(timeout=100)
    assert process.returncode == 1 and "waited in vain for another rank, as long as --timeout says" in out


@pytest.mark.full
def test_a_rank_that_fails_while_the_others_leave_is_told_once(tmp_path):
    """As rank 0 does whose disk has no room for loss.png."""
    process = launch(tmp_path, "if d.rank == 0: raise OSError(28, 'No space left on device', 'loss.png')")
    out, _ = process.communicate(timeout=60)
    status = json.loads((tmp_path / "r" / "status.json").read_text())
    assert status["code"] == 74 and out.count("error: ") == 1 and out.count("Traceback (most") == 1, out  # torchrun's


def test_a_terminal_that_knows_ascii_only_does_not_end_a_run():
    code = "from core import exits\nwith exits.guard():\n    print('Tür')"
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.stdout == "T\\xfcr\n" and done.returncode == 0, done.stderr


SCRIPTS = [p for p in (*ROOT.glob("*.py"), *ROOT.glob("procedural_pretraining/*.py")) if "run.guard()" in p.read_text()]


def test_scripts_import_without_the_garbage_collector_and_run_with_it(monkeypatch):
    """Looking again and again through all that torch imports takes a tenth of the start."""
    assert len(SCRIPTS) == 7
    for path in SCRIPTS:
        head, _, rest = path.read_text().partition("    gc.disable()")
        assert 'if __name__ == "__main__":' in head and "\nimport torch" not in head and "\nimport torch" in rest, path
        assert rest.rstrip().rpartition('if __name__ == "__main__":\n')[2].startswith("    with run.guard():\n"), path
    gc.disable()
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(1))  # not what the other tests have made
    frozen = []
    try:
        for _ in range(2):
            with run.guard():
                assert gc.isenabled() and frozen == [1]
    finally:
        gc.enable()
