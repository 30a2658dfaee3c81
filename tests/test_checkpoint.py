"""Checkpoints: atomic, verified, data only; the newest good one is found, whatever happened to the files."""

import errno
import hashlib
import os
import pickle
import threading
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from core import checkpoint, disk, exits
from core.checkpoint import load, newest, previous, save
from model import GPTConfig


def state(value: float = 1.0, step: int = 0) -> dict:
    model = torch.nn.Linear(3, 3)
    torch.nn.init.constant_(model.weight, value)
    optimizer = torch.optim.AdamW(model.parameters())
    return checkpoint.pack(kind="toy", model=model, model_config={"n": 3}, optimizer=optimizer, loop={"eval": None},
                           seed=1, step=step, best=None, options={"lr": 0.1}, meta={})  # fmt: skip


def test_what_is_saved_is_loaded(tmp_path):
    save(tmp_path / "ckpt.pt", state(2.0, 7), also=[tmp_path / "best.pt"])
    for name in ("ckpt.pt", "best.pt"):
        got = load(tmp_path / name)
        assert tuple(got) == tuple(checkpoint.KEYS) and got["step"] == 7 and got["model"]["weight"].eq(2).all()
    assert not list(tmp_path.glob(".*tmp*"))


@pytest.mark.parametrize("background", [False, True])
def test_numbers_of_numpy_are_saved_as_numbers(background, tmp_path):
    """`out["val perplexity"] = np.exp(...)` in an evaluation: no checkpoint of the run could be resumed."""
    losses = {"val loss": 2.0, "val perplexity": np.exp(2.0), "each": [np.float32(0.5), np.int64(3)]}
    kept = state() | {"loop": {"eval": {"step": 1, "losses": losses}}, "best": np.float64(2.0)}
    save(tmp_path / "ckpt.pt", kept, background=background)
    checkpoint.wait()
    got = load(tmp_path / "ckpt.pt")
    assert got["loop"]["eval"]["losses"] == losses and got["best"] == 2.0


def test_a_best_loss_that_is_a_tensor_is_saved_as_a_number(tmp_path):
    """An evaluation of one's own returned one: no checkpoint of the run could be resumed."""
    kept = checkpoint.pack(kind="gpt", model=torch.nn.Linear(1, 1), model_config={}, optimizer=None, loop={}, seed=0,
                           step=1, best=torch.tensor(2.5), options={}, meta={})  # fmt: skip
    save(tmp_path / "ckpt.pt", kept)
    assert load(tmp_path / "ckpt.pt")["best"] == 2.5


@pytest.mark.parametrize("value", [np.zeros(2), Path("x"), object()])
def test_what_could_not_be_read_again_is_named_before_it_is_written(value, tmp_path):
    save(tmp_path / "ckpt.pt", state(2.0))
    with pytest.raises(TypeError, match=f"checkpoint: loop: mine is a {type(value).__name__}"):
        save(tmp_path / "ckpt.pt", state() | {"loop": {"eval": None, "mine": [value]}})
    assert load(tmp_path / "ckpt.pt")["model"]["weight"].eq(2).all()


def test_a_full_disk_names_the_file(tmp_path):
    def broken(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="x.png"):
        disk.replace(tmp_path / "x.png", broken)
    assert not list(tmp_path.iterdir())


def test_prefixes_of_compile_and_ddp_are_not_saved():
    assert set(checkpoint.strip({"_orig_mod.a.b": 1, "module.c": 2, "module._orig_mod.d": 3})) == {"a.b", "c", "d"}


def test_the_one_before_is_kept_until_the_new_one_is_there(tmp_path, monkeypatch):
    save(tmp_path / "ckpt.pt", state(1.0, 1))
    save(tmp_path / "ckpt.pt", state(2.0, 2))
    assert load(previous(tmp_path / "ckpt.pt"))["step"] == 1

    def broken(*args, **kw):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(OSError, match=r"disk full: need [1-9].* bytes, have .* [KMG]iB"):
        save(tmp_path / "ckpt.pt", state(3.0, 3))
    assert load(tmp_path / "ckpt.pt")["step"] == 2
    assert not list(tmp_path.glob(".*tmp*"))


def test_a_full_disk_found_while_writing_is_named(tmp_path):
    """By a file size limit: torch's writer would only speak of an unexpected position."""
    import resource

    save(tmp_path / "ckpt.pt", state(1.0, 1))
    big = state()
    big["model"]["weight"] = torch.zeros(1 << 19)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, hard))
    try:
        with pytest.raises(OSError, match="cannot write 2.0 MiB"):
            save(tmp_path / "ckpt.pt", big)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert load(tmp_path / "ckpt.pt")["step"] == 1


@pytest.mark.parametrize("kind", ["tensors", "Hugging Face"])
def test_a_full_disk_is_named_by_all_that_write_tensors(tmp_path, kind):
    """torch speaks of an unexpected position, safetensors of an error of its own."""
    import resource

    import numpy as np

    from core import hf
    from data import tensors

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, hard))
    try:
        with pytest.raises(OSError, match="cannot write .* over the file size limit") as e:
            if kind == "tensors":
                tensors.save(tmp_path / "train.pt", np.zeros(1 << 14), np.full(1 << 6, 1 << 8), 1)
            else:
                hf.save(tmp_path, "gpt2", vars(GPTConfig()), {"transformer.wpe.weight": torch.zeros(1 << 14)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert exits.verdict(e.value)[0] == 74 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [errno.EROFS, errno.ESTALE, errno.ENOTCONN])
def test_a_disk_that_turned_read_only_or_went_away_is_not_called_full(number, tmp_path, monkeypatch):
    def broken(fd):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match=f"cannot write .* {os.strerror(number)}") as e:
        save(tmp_path / "ckpt.pt", state())
    assert exits.verdict(e.value)[0] == 74


def test_a_folder_of_its_own_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    """pretrain.py's checkpoint-STEP, where the run folder turned read-only: there is no such folder to ask for room."""

    def refused(self, *args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(OSError, match="cannot write .*checkpoint-3: Permission denied") as e:
        save(tmp_path / "checkpoint-3" / "ckpt.pt", state())
    assert exits.verdict(e.value)[0] == 74


def test_a_kill_between_two_names_leaves_no_third(tmp_path):
    """NAME.prev is then the same file as NAME, and renaming one name of a file to another of its names does nothing."""
    save(tmp_path / "ckpt.pt", state(1.0, 1))
    os.link(tmp_path / "ckpt.pt", tmp_path / "ckpt.prev.pt")
    save(tmp_path / "ckpt.pt", state(2.0, 2))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ckpt.prev.pt", "ckpt.pt"]


def test_where_there_are_no_links_a_second_name_is_a_copy_on_disk(tmp_path, monkeypatch):
    """A block at a time: a checkpoint may be larger than what memory is left. A copy that fails leaves nothing."""
    synced, folders, fsync = {}, [], os.fsync
    states = [state(step=3), state(step=4)]  # the first optimizer of a process imports much of torch, by read_bytes
    monkeypatch.setattr(os, "link", mock.Mock(side_effect=PermissionError))
    monkeypatch.setattr(Path, "read_bytes", mock.Mock(side_effect=MemoryError))
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.update({os.fstat(fd).st_ino: os.fstat(fd).st_size}), fsync(fd)))
    monkeypatch.setattr(disk, "sync_folder", folders.append)
    names = [tmp_path / "steps" / "checkpoint-3" / "ckpt.pt", tmp_path / "best.pt"]
    save(names[0], states[0], also=(names[1],))
    assert [load(name)["step"] for name in names] == [3, 3]
    assert [synced[name.stat().st_ino] for name in names] == [name.stat().st_size for name in names]  # each, to its end
    assert {*folders} >= {names[0].parent, names[0].parent.parent, tmp_path}  # each that has a new name in it
    monkeypatch.setattr(disk.shutil, "copyfileobj", mock.Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OSError, match="disk full"):
        save(names[0], states[1], also=(names[1],))
    assert {p for p in tmp_path.rglob("*") if p.is_file()} == {*names}


def test_a_kill_while_saving_the_best_leaves_no_state_that_takes_its_best_for_saved(tmp_path, monkeypatch):
    """ckpt.pt holds the evaluation that made it the best: alone, a resume would keep an older best.pt, or none."""
    save(tmp_path / "ckpt.pt", state(1.0, 1), also=[tmp_path / "best.pt"])
    replace, places = os.replace, []

    def killed(source, target):
        places.append(checkpoint.load(tmp_path / "ckpt.pt")["step"] - checkpoint.load(tmp_path / "best.pt")["step"])
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    save(tmp_path / "ckpt.pt", state(2.0, 2), also=[tmp_path / "best.pt"])
    assert places == [0, 0, -1] and load(tmp_path / "ckpt.pt")["step"] == load(tmp_path / "best.pt")["step"] == 2


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="the system has no direct writing")
@pytest.mark.parametrize("system, direct", [("willing", 3), ("refuses the flag", 0), ("refuses the blocks", 0),
                                          ("writes a part", 1)])  # fmt: skip
def test_large_files_go_past_the_page_cache_where_the_disk_lets_them(tmp_path, monkeypatch, system, direct):
    try:
        os.close(os.open(tmp_path / "try", os.O_CREAT | os.O_WRONLY | os.O_DIRECT))
    except OSError:
        pytest.skip("this file system has no direct writing")
    fcntl, write, done = disk.fcntl, os.write, []
    control = fcntl.fcntl

    def flags(fd, command, value=0):
        if system == "refuses the flag" and value & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return control(fd, command, value)

    def put(fd, data):
        now = control(fd, fcntl.F_GETFL)
        if not now & os.O_DIRECT:
            return write(fd, data)
        if system == "refuses the blocks" or len(data) % 4096:
            raise OSError(errno.EINVAL, "Invalid argument")
        done.append(len(data))
        if system == "willing":
            return write(fd, data)
        control(fd, fcntl.F_SETFL, now & ~os.O_DIRECT)
        count = write(fd, data[:1000])
        control(fd, fcntl.F_SETFL, now)
        return count

    monkeypatch.setattr(fcntl, "fcntl", flags)
    monkeypatch.setattr(os, "write", put)
    big = state()
    big["model"]["weight"] = torch.arange(3 * disk.BLOCK // 4 + 1000).float()  # three blocks and a rest
    save(tmp_path / "ckpt.pt", big)
    assert done == [disk.BLOCK] * direct
    assert torch.equal(load(tmp_path / "ckpt.pt")["model"]["weight"], big["model"]["weight"])


@pytest.mark.parametrize("damage", ["cut", "empty", "flip", "tail", "grown"])
def test_a_damaged_checkpoint_is_never_used(tmp_path, damage, capsys):
    path = tmp_path / "ckpt.pt"
    save(path, state(1.0, 1))
    save(path, state(2.0, 2))
    data = path.read_bytes()
    path.unlink()  # the one before shares no bytes with it, but best.pt might
    broken = {"cut": data[: len(data) // 2], "empty": b"", "tail": data[:-40], "grown": data + b"x",
              "flip": data[:700] + bytes([data[700] ^ 1]) + data[701:]}[damage]  # fmt: skip
    path.write_bytes(broken)
    with pytest.raises(ValueError, match="damaged or incomplete"):
        load(path)
    got, used = newest(tmp_path)
    assert got["step"] == 1 and used == previous(path)
    assert "trying the one before" in capsys.readouterr().err
    save(path, state(3.0, 3))  # and the good one before is not replaced by the damaged one
    assert load(previous(path))["step"] in (1, 2)


def test_a_checksum_knows_every_bit_and_its_place():
    """In whole blocks, whose sums are taken, in the last and in what fills no row."""
    good = np.random.default_rng(0).integers(256, size=2 * disk.BLOCK + 3 * disk.ROW + 5, dtype=np.uint8)

    def digest(data) -> bytes:
        sums = disk.Checksum()
        for at in range(0, len(data), disk.BLOCK):
            sums.update(data[at : at + disk.BLOCK])
        return sums.digest()

    found = [digest(good), digest(good[:-1]), digest(good[: disk.BLOCK]), digest(np.append(good, np.uint8(0)))]
    for bit, at in enumerate((0, 7, disk.ROW, disk.BLOCK - 1, disk.BLOCK + 8, 2 * disk.BLOCK, len(good) - 5, len(good) - 1)):
        flipped = good.copy()
        flipped[at] ^= 1 << bit
        found.append(digest(flipped))
    for size in (8, 512, disk.ROW, disk.BLOCK):  # what was written to each other's place
        swapped = good.copy()
        swapped[:size], swapped[size : 2 * size] = good[size : 2 * size], good[:size]
        found.append(digest(swapped))
    assert len(set(found)) == len(found) and digest(good.copy()) == found[0]
    assert digest(np.arange(disk.BLOCK + 20_000).astype(np.uint8)).hex() == "90c0d3080bd67a1d40211a60e6a57099e0a18ab553cd265d4a81f5956aa299ee"  # as in the files that are there


@pytest.mark.parametrize("size", [4, disk.BLOCK // 4, disk.BLOCK])
def test_damage_anywhere_in_a_file_is_found(size, tmp_path):
    """Reading takes the blocks that writing took."""
    big = state()
    big["model"]["weight"] = torch.arange(size).float()
    save(tmp_path / "ckpt.pt", big)
    data = (tmp_path / "ckpt.pt").read_bytes()
    assert checkpoint.verify(tmp_path / "ckpt.pt")
    for at in (*np.linspace(0, len(data) - 1, 23).astype(int), len(data) - 34, len(data) - 40):
        (tmp_path / "bad.pt").write_bytes(data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :])
        assert not checkpoint.verify(tmp_path / "bad.pt"), at


def test_checkpoints_that_end_with_the_hash_of_their_bytes_are_read(tmp_path):
    """As they were written at first."""
    save(tmp_path / "ckpt.pt", state(2.0, 7))
    data = (tmp_path / "ckpt.pt").read_bytes()[: -len(checkpoint.OLD) - 32]
    (tmp_path / "old.pt").write_bytes(data + checkpoint.OLD + hashlib.sha256(data).digest())
    assert load(tmp_path / "old.pt")["step"] == 7
    (tmp_path / "old.pt").write_bytes(data + checkpoint.OLD + hashlib.sha256(data + b"x").digest())
    with pytest.raises(ValueError, match="its SHA-256 does not match"):
        load(tmp_path / "old.pt")


def test_a_checkpoint_of_another_program_is_told_from_a_damaged_one(tmp_path):
    """nanoGPT's ckpt.pt, given to sample.py or resumed: nothing of it is broken."""
    torch.save({"model": {"weight": torch.zeros(3)}, "model_args": {"n_layer": 1}, "iter_num": 9}, tmp_path / "ckpt.pt")
    with pytest.raises(ValueError, match="or of another program: no SHA-256 ends it; train.py --init_from takes"):
        load(tmp_path / "ckpt.pt")


def test_nothing_to_resume_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="holds no checkpoint"):
        newest(tmp_path)
    (tmp_path / "ckpt.pt").write_bytes(b"x")
    with pytest.raises(ValueError, match="no checkpoint in .* is intact$"):
        newest(tmp_path)
    save(tmp_path / "ckpt_5.pt", state(1.0, 5))
    (tmp_path / "ckpt_6.pt").write_bytes(b"x")
    with pytest.raises(ValueError, match="is intact but ckpt_5.pt, which --init_from_ckpt takes"):
        newest(tmp_path)


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize("how", ["torch", "pickle", "inside"])
def test_a_malicious_file_executes_nothing(tmp_path, how, capsys, monkeypatch, recwarn):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = tmp_path / "ckpt.pt"
    if how == "inside":
        bad = state()
        bad["meta"] = {"x": Evil()}
        monkeypatch.setattr(checkpoint, "readable", lambda state: state)
        save(path, bad)  # with a hash that is right
    elif how == "torch":
        torch.save({"model": Evil()}, path)
    else:
        path.write_bytes(pickle.dumps(Evil()))
    for read in (load, checkpoint.load_data):
        with pytest.raises(ValueError) as e:
            read(path)
        assert str(path) in str(e.value)
    assert "executed" not in capsys.readouterr().out and not recwarn.list  # the error is the only line


def test_other_files_and_newer_formats_are_refused(tmp_path):
    newer = state()
    newer["format"] = checkpoint.FORMAT + 1
    save(tmp_path / "ckpt.pt", newer)
    with pytest.raises(ValueError, match="newer version"):
        load(tmp_path / "ckpt.pt")
    with pytest.raises(ValueError, match="does not exist"):
        load(tmp_path / "none.pt")


@pytest.mark.parametrize("bad", [{"format": "1"}, {"model": None}, {"model": {"weight": 3}}, {"optimizer": []},
                                 {"loop": None}, {"step": "3"}, {"meta": [1]}])  # fmt: skip
def test_a_whole_file_of_other_types_is_passed_over_as_a_damaged_one_is(tmp_path, bad, capsys):
    good = state()
    save(tmp_path / "ckpt.pt", good)
    save(tmp_path / "ckpt.pt", good | bad)
    with pytest.raises(ValueError, match=f"its {next(iter(bad))} is of another type"):
        load(tmp_path / "ckpt.pt")
    assert checkpoint.newest(tmp_path)[1].name == "ckpt.prev.pt"
    assert "trying the one before" in capsys.readouterr().err


def test_in_the_background_the_state_is_that_of_the_call(tmp_path, monkeypatch):
    gate, real = threading.Event(), torch.save
    monkeypatch.setattr(torch, "save", lambda *a, **k: (gate.wait(5), real(*a, **k)))
    s = state(1.0)
    s["loop"]["each"] = [torch.ones(3)]
    save(tmp_path / "ckpt.pt", s, background=True)
    for part in (s["model"]["weight"], *s["loop"]["each"]):
        part.fill_(9.0)  # training goes on
    gate.set()
    checkpoint.wait()
    kept = load(tmp_path / "ckpt.pt")
    assert kept["model"]["weight"].eq(1).all() and kept["loop"]["each"][0].eq(1).all()


def test_a_failure_in_the_background_is_raised(tmp_path, monkeypatch):
    def broken(*args, **kw):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", broken)
    save(tmp_path / "ckpt.pt", state(), background=True)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.wait()


def test_where_no_thread_can_be_started_training_waits_for_the_save(tmp_path, monkeypatch):
    """A limit of processes (ulimit -u, a container's) ended the run at its first checkpoint, without one."""

    def refused(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    save(tmp_path / "ckpt.pt", state(), background=True)
    assert load(tmp_path / "ckpt.pt")["step"] == state()["step"]
    checkpoint.wait()


def test_tied_weights_are_stored_once(tmp_path):
    s = state()
    s["model"] = {"a": torch.zeros(1 << 16), "b": None}
    s["model"]["b"] = s["model"]["a"]
    for background in (False, True):
        save(tmp_path / "ckpt.pt", s, background=background)
        checkpoint.wait()
        assert (tmp_path / "ckpt.pt").stat().st_size < 400_000


def test_numbered_folders_come_first_newest_first(tmp_path):
    for step in (5, 40, 100):
        save(tmp_path / f"checkpoint-{step}" / "ckpt.pt", state(1.0, step))
    assert newest(tmp_path)[0]["step"] == 100
    (tmp_path / "checkpoint-100" / "ckpt.pt").write_bytes(b"")
    assert newest(tmp_path)[0]["step"] == 40
    assert checkpoint.find(tmp_path) == tmp_path / "checkpoint-100" / "ckpt.pt"
