"""data/bins.py: windows against plain slicing, batches as pure functions, and every way a token file can be wrong."""

import json
import os
import pickle
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data import bins

ROOT = Path(__file__).resolve().parents[1]


def folder_of(path, vocab_size=100, n=1000, **more):
    rng = np.random.default_rng(0)
    return bins.write(path, vocab_size, rng.integers(0, vocab_size, n), rng.integers(0, vocab_size, 100), **more)


def shard(path, ids, cuts, dtype="<u2"):
    path.mkdir(exist_ok=True)
    for i, part in enumerate(np.split(ids, cuts)):
        part.astype(dtype).tofile(path / f"train_{i}.bin")
    np.zeros(50, dtype).tofile(path / "val.bin")


# -----------------------------------------------------------------------------
# reading


def test_a_file_that_becomes_shorter_is_told(tmp_path):
    """As `cp` over it does; to read what is no longer there ends a process at once (SIGBUS)."""
    shard(tmp_path, np.arange(40000), [20000])
    (tmp_path / "meta.json").write_text('{"vocab_size": 65535}')
    train = bins.Dataset(tmp_path).split("train", 16)
    os.truncate(tmp_path / "train_1.bin", 100)
    train.windows(np.array([0, 7]))
    for start in (39000, 19990):  # in it, and from the one before into it
        with pytest.raises(ValueError, match="train_1.bin became shorter while it was read: 40,000 bytes then, 100"):
            train.windows(np.array([start]))


def test_windows_are_slices(tmp_path):
    train = folder_of(tmp_path).split("train", 16)
    ids = np.fromfile(tmp_path / "train.bin", "<u2")
    starts = np.array([0, 5, 5, 1000 - 17])
    x, y = train.windows(starts)
    assert x.dtype == y.dtype == np.int64 and x.shape == (4, 16) and train.n == 1000
    for i, s in enumerate(starts):
        assert x[i].tolist() == ids[s : s + 16].tolist() and y[i].tolist() == ids[s + 1 : s + 17].tolist()
    for short, long in zip(train.windows(starts, 7), (x, y), strict=True):
        assert (short == long[:, :7]).all()


def test_shards_read_as_one_file(tmp_path):
    """Windows within a shard, over a border, over a shard shorter than themselves; 2 comes before 10."""
    ids = np.random.default_rng(1).integers(0, 60000, 500)
    cuts = [40, 43, 44, 100, 101, 180, 200, 300, 350, 400, 410]  # 12 shards: train_10 sorts behind train_9
    shard(tmp_path / "many", ids, cuts)
    bins.write(tmp_path / "one", 60000, ids, np.zeros(50, int))
    (tmp_path / "many" / "meta.json").write_text('{"vocab_size": 60000}')
    many, one = (bins.Dataset(tmp_path / k).split("train", 30) for k in ("many", "one"))
    starts = np.arange(500 - 30)
    assert many.n == one.n == 500
    for a, b in zip(many.windows(starts), one.windows(starts), strict=True):
        assert (a == b).all()


@pytest.mark.parametrize(("begin", "end", "lies"), [
    (900, 1000, True), (0, 100, True), (0, 1000, True), (899, 999, False), (1000, 1100, False), (900, 1100, False),
])  # fmt: skip
def test_a_val_split_that_was_not_held_out_is_noticed(tmp_path, begin, end, lies):
    ids = np.random.default_rng(2).integers(0, 100, 1100)
    bins.write(tmp_path, 100, ids[:1000], ids[begin:end])
    train, val = (bins.Dataset(tmp_path).split(name, 16) for name in ("train", "val"))
    assert val.lies_in(train) == lies


def test_uint32(tmp_path):
    bins.write(tmp_path, 100_000, np.arange(70_000, 70_100), np.arange(50))
    x, _ = bins.Dataset(tmp_path).split("train", 8).windows([3])
    assert x[0, 0] == 70_003


def test_a_batch_of_a_gigabyte_takes_under_5_ms(tmp_path):
    with open(tmp_path / "train.bin", "wb") as f:
        f.truncate(1 << 30)
    (tmp_path / "meta.json").write_text('{"vocab_size": 50304, "count": {}}')
    train = bins.Dataset(tmp_path).split("train", 1024)
    times = []
    for step in [*range(10), *range(1_000_000, 1_000_010)]:
        for _ in range(2):  # the first may wait for the disk
            begin = time.perf_counter()
            x, _ = train.windows(bins.starts("random", train.n, 1024, 64, 1, "train", step))
        times.append(time.perf_counter() - begin)
    assert x.shape == (64, 1024) and min(times[:10]) < 5e-3 and min(times[10:]) < 5e-3


# -----------------------------------------------------------------------------
# which windows


@pytest.mark.parametrize("method", bins.METHODS)
def test_starts_depend_on_nothing_but_their_arguments(method):
    def draw(seed=1, purpose="train", step=10**9):
        return bins.starts(method, 1000, 16, 8, seed, purpose, step)

    assert (draw() == draw()).all() and draw().dtype == np.int64
    assert draw().min() >= 0 and draw().max() + 17 <= 1000
    assert (draw(step=3) != draw(step=4)).any()
    if method != "sequential":
        assert (draw(seed=2) != draw()).any() and (draw(purpose="val") != draw()).any()


def test_random_reaches_every_place_alike():
    found = np.concatenate([bins.starts("random", 20, 4, 64, 7, "train", step) for step in range(250)])
    counts = np.bincount(found, minlength=16)
    assert len(counts) == 16 and counts.min() > 800 and counts.max() < 1200  # 1000 expected, sigma 31


@pytest.mark.parametrize("method", ["sequential", "without_replacement"])
@pytest.mark.parametrize("n", [1000, 62 * 16 + 1, 63 * 16])  # each window needs an id behind its last
def test_epochs_take_every_window_once(method, n):
    T, batch = 16, 5  # 62 windows: batches straddle the epochs
    walk = np.concatenate([bins.starts(method, n, T, batch, 3, "train", step) for step in range(62)])
    epochs = walk[: 62 * 5].reshape(5, 62)
    for epoch in epochs:
        assert sorted(epoch) == [T * i for i in range(62)]
    if method == "without_replacement":
        assert len({tuple(e) for e in epochs}) == 5
    else:
        assert (epochs == epochs[0]).all() and (np.diff(epochs[0]) == T).all()


def test_a_method_that_does_not_exist():
    with pytest.raises(ValueError, match="random, sequential, without_replacement"):
        bins.starts("rnd", 100, 4, 2, 1, "train", 0)


# -----------------------------------------------------------------------------
# folders prepared by others


@pytest.mark.parametrize("kept", [list, lambda chars: dict(enumerate(chars))])
def test_nanogpt_characters(kept, tmp_path):
    chars = list("\n abc")
    meta = {"vocab_size": 5, "itos": kept(chars), "stoi": {c: i for i, c in enumerate(chars)}}
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta))
    np.arange(100, dtype=np.uint16).tofile(tmp_path / "train.bin")
    dataset = bins.Dataset(tmp_path)
    assert dataset.vocab_size == 5 and dataset.tokenizer == {"kind": "char", "chars": chars}
    assert dataset.split("train", 4).n == 100


def test_nanogpt_characters_that_are_not_numbered_from_0_describe_no_tokenizer(tmp_path):
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": 3, "itos": {1: "a", 2: "b"}}))
    assert bins.Dataset(tmp_path).tokenizer is None


def test_meta_pkl_with_a_tiktoken_name(tmp_path):
    meta = {"vocab_size": 100277, "tokenizer": "tiktoken", "tiktoken_encoding": "cl100k_base"}
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta))
    dataset = bins.Dataset(tmp_path)
    assert dataset.tokenizer == {"kind": "tiktoken", "name": "cl100k_base"} and dataset.dtype == "uint32"


def test_nothing_but_gpt2_ids(tmp_path):
    np.random.default_rng(0).integers(0, 50257, 500).astype("<u2").tofile(tmp_path / "train.bin")
    dataset = bins.Dataset(tmp_path)
    assert dataset.vocab_size == 50304 and dataset.tokenizer["name"] == "gpt2"
    dataset.split("train", 16).check_ids()


def test_a_first_writing_that_was_killed_before_its_last_step_is_no_gpt2_s(tmp_path):
    """Both bins are there, and what they hold is not told yet."""
    bins.write(tmp_path / "a", 11, np.zeros(9), np.zeros(9))
    (tmp_path / "a" / "meta.json").rename(tmp_path / "a" / "meta.json.tmp-999999999")
    with pytest.raises(ValueError, match="a was not written to its end: prepare it again"):
        bins.open_dataset(str(tmp_path / "a"))
    bins.write(tmp_path / "a", 11, np.zeros(9), np.zeros(9))
    assert bins.open_dataset(str(tmp_path / "a")).vocab_size == 11


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("what", ["evil", "nested", "numpy", "cut", "noise", "list"])
def test_a_pickle_runs_nothing(tmp_path, what):
    good = pickle.dumps({"vocab_size": 5})
    raw = {
        "evil": pickle.dumps(Evil(tmp_path / "ran")),
        "nested": pickle.dumps({"vocab_size": 5, "itos": [Evil(tmp_path / "ran")]}),
        "numpy": pickle.dumps({"vocab_size": np.int64(5)}),
        "cut": good[:-3],
        "noise": b"\x80\x05abc",
        "list": pickle.dumps([1]),
    }[what]
    (tmp_path / "meta.pkl").write_bytes(raw)
    with pytest.raises(ValueError, match="meta.pkl"):
        bins.Dataset(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_names(tmp_path):
    folder_of(tmp_path / "data" / "tiny")
    root = tmp_path / "data"
    for name in ("tiny", "data/tiny", "data/tiny/", str(root / "tiny")):
        assert bins.open_dataset(name, root).folder == root / "tiny"
    for name in ("../data/tiny", "tiny/../tiny", "data/../tiny", "", "data", "."):
        with pytest.raises(ValueError, match="absolute path"):
            bins.open_dataset(name, root)
    (root / "made").mkdir()
    (root / "made" / "prepare.py").write_text("")
    with pytest.raises(ValueError, match=r"made: prepare it with `python .*made/prepare.py` \(prepared: tiny\)"):
        bins.open_dataset("made", root)
    with pytest.raises(ValueError, match=r"python data/text/prepare.py --input FILES --out .*nix`"):
        bins.open_dataset("nix", root)
    with pytest.raises(ValueError, match=r"--out '.*my books'`"):  # as a shell reads it
        bins.open_dataset("my books", root)
    (root / "a book.txt").write_text("text")
    with pytest.raises(ValueError, match=r"--input '.*a book.txt' --out '.*a book'`"):
        bins.open_dataset("a book.txt", root)
    with pytest.raises(ValueError, match="no data set in /etc/x"):
        bins.open_dataset("/etc/x", root)


# -----------------------------------------------------------------------------
# what can be wrong


def spoil(path, what):
    if what == "odd":
        with open(path / "train.bin", "ab") as f:
            f.write(b"x")
    if what == "empty":
        (path / "train.bin").write_bytes(b"")
    if what == "short":
        bins.write(path, 100, np.zeros(16, int), np.zeros(50, int))
    if what == "appended":
        with open(path / "train.bin", "ab") as f:
            f.write(b"xy")
    if what == "both":
        (path / "train_1.bin").write_bytes(b"1234")
    if what == "gone":
        (path / "train.bin").unlink()


@pytest.mark.parametrize(
    "what, told",
    [
        ("odd", r"train.bin has 2,001 bytes"),
        ("empty", r"train.bin is empty: 0 bytes, 0 ids, and block_size 16 needs 17"),
        ("short", r"train.bin holds 16 ids, block_size 16 needs 17"),
        ("appended", r"train.bin holds 1,001 uint16 ids, .*meta.json says 1000"),
        ("both", r"both train.bin and train_1.bin"),
        ("gone", r"has no train.bin"),
    ],
)
def test_broken_files(tmp_path, what, told):
    folder_of(tmp_path)
    spoil(tmp_path, what)
    with pytest.raises(ValueError, match=told):
        bins.Dataset(tmp_path).split("train", 16)


@pytest.mark.parametrize(
    "raw, told",
    [
        (b'{"vocab_size": 0}', "vocab_size must be a whole number > 0, got 0"),
        (b'{"vocab_size": true}', "vocab_size"),
        (b"{}", "vocab_size"),
        (b'{"vocab_size": 5, "dtype": "int64"}', "uint16, uint32, got 'int64'"),
        (b'{"vocab_size": 5, "dtype": ["x"]}', "uint16, uint32"),
        (b'{"vocab_size": 5, "count": 7}', "count"),
        (b"[1]", "object"),
        (b"{", "not JSON"),
        (b'{"vocab_size": "\xff"}', "not UTF-8 at byte 16"),
    ],
)
def test_broken_meta(tmp_path, raw, told):
    (tmp_path / "meta.json").write_bytes(raw)
    with pytest.raises(ValueError, match=told) as e:
        bins.Dataset(tmp_path)
    assert "meta.json" in str(e.value)


def test_meta_with_a_bom(tmp_path):
    (tmp_path / "meta.json").write_bytes(b'\xef\xbb\xbf{"vocab_size": 5}')
    assert bins.Dataset(tmp_path).vocab_size == 5


@pytest.mark.parametrize("meta", [None, "pkl", {"vocab_size": 50257}])
def test_uint32_read_as_uint16_is_noticed(tmp_path, meta):
    np.random.default_rng(0).integers(0, 100_000, 5000).astype("<u4").tofile(tmp_path / "train.bin")
    if meta == "pkl":
        (tmp_path / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": 50257}))
    elif meta:
        (tmp_path / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(ValueError, match="uint32 ids read as uint16"):
        bins.Dataset(tmp_path).split("train", 16)
    (tmp_path / "meta.json").write_text('{"vocab_size": 100000, "dtype": "uint32"}')
    assert bins.Dataset(tmp_path).split("train", 16).n == 5000


@pytest.mark.parametrize("magic, dtype, vocab_size", [(20240520, "<u2", 65536), (20240801, "<u4", 128256)])
def test_the_header_of_llm_c_is_not_read_as_ids(tmp_path, magic, dtype, vocab_size):
    ids = np.random.default_rng(0).integers(0, vocab_size, 5000).astype(dtype)
    head = np.array([magic, 1, len(ids), *[0] * 253], "<i4").tobytes()
    kind = {"<u2": "uint16", "<u4": "uint32"}[dtype]
    (tmp_path / "meta.json").write_text(json.dumps({"vocab_size": vocab_size, "dtype": kind}))
    (tmp_path / "train_000.bin").write_bytes(ids.tobytes())
    (tmp_path / "train_001.bin").write_bytes(head + ids.tobytes())
    with pytest.raises(ValueError, match=r"train_001.bin begins with llm.c's header.*tail -c \+1025"):
        bins.Dataset(tmp_path).split("train", 16)
    (tmp_path / "train_001.bin").write_bytes((head + ids.tobytes())[1024:])  # what tail writes
    assert bins.Dataset(tmp_path).split("train", 16).n == 10_000


def test_small_vocabularies_are_plausible(tmp_path):
    np.random.default_rng(0).integers(0, 4, 5000).astype("<u2").tofile(tmp_path / "train.bin")
    assert bins.Dataset(tmp_path).split("train", 16).n == 5000


def test_an_id_beyond_the_vocabulary(tmp_path, monkeypatch):
    monkeypatch.setattr(bins, "BLOCK", 64)
    ids = np.arange(1000) % 90
    shard(tmp_path, ids, [400])
    (tmp_path / "meta.json").write_text('{"vocab_size": 90}')
    bins.Dataset(tmp_path).split("train", 16).check_ids()
    ids[400 + 333] = 90
    shard(tmp_path, ids, [400])
    train = bins.Dataset(tmp_path).split("train", 16)
    with pytest.raises(ValueError, match=r"train_1.bin: id 90 at offset 333 \(byte 666\), vocab_size is 90"):
        train.check_ids()
    train.check_ids(1, 2)  # of two ranks the first reads this block
    with pytest.raises(ValueError, match="id 90 at offset 333"):
        train.check_ids(0, 2)


def test_large_files_are_scanned_once(tmp_path, monkeypatch):
    monkeypatch.setattr(bins, "REMEMBER", 0)
    train = folder_of(tmp_path).split("train", 16)
    train.check_ids()
    train.remember()
    about = (tmp_path / "train.bin").stat()
    with open(tmp_path / "train.bin", "r+b") as f:
        f.write(b"\xff\xff")
    os.utime(tmp_path / "train.bin", ns=(about.st_atime_ns, about.st_mtime_ns))
    train.check_ids()  # the same size and time: the verdict stands
    os.utime(tmp_path / "train.bin")
    with pytest.raises(ValueError, match="id 65535 at offset 0"):
        train.check_ids()
    (tmp_path / ".checked.json").write_text("nonsense")
    with pytest.raises(ValueError, match="id 65535"):
        train.check_ids()


# -----------------------------------------------------------------------------
# writing


def test_meta_says_what_is_there(tmp_path):
    about = {"kind": "byte"}
    dataset = folder_of(tmp_path, tokenizer=about)
    assert json.loads((tmp_path / "meta.json").read_text()) == {
        "vocab_size": 100, "dtype": "uint16", "count": {"train": 1000, "val": 100}, "tokenizer": about,
    }  # fmt: skip
    assert dataset.tokenizer == about and sorted(os.listdir(tmp_path)) == ["meta.json", "train.bin", "val.bin"]


@pytest.mark.parametrize("vocab_size, dtype", [(65535, "uint16"), (65536, "uint32"), (100_000, "uint32")])
def test_width_by_vocabulary(tmp_path, vocab_size, dtype):
    assert folder_of(tmp_path, vocab_size).dtype == dtype


@pytest.mark.parametrize("wrong", [70000, 100, -1])
def test_an_id_that_does_not_fit_is_not_written(tmp_path, wrong):
    folder_of(tmp_path)
    before = (tmp_path / "train.bin").read_bytes()
    with pytest.raises(ValueError, match=f"id {wrong} does not fit a vocabulary of 100"):
        bins.write(tmp_path, 100, np.array([1, wrong]), np.array([1]))
    assert (tmp_path / "train.bin").read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["meta.json", "train.bin", "val.bin"]


def test_nothing_changes_before_the_end(tmp_path):
    folder_of(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(KeyboardInterrupt), bins.Writer(tmp_path, 7) as out:
        out.add("train", [1, 2, 3])
        assert {p: (tmp_path / p).read_bytes() for p in before} == before
        raise KeyboardInterrupt
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_an_empty_split_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="no tokens for val.bin"), bins.Writer(tmp_path, 7) as out:
        out.add("train", [1, 2])
    with pytest.raises(ValueError, match="1 token for train.bin, there is too little"), bins.Writer(tmp_path, 7) as out:
        out.add("train", [1])
    assert not any(tmp_path.iterdir())


def test_no_room(tmp_path):
    """Exit 74 and one line; nothing of it stays (a limit on the size of files stands in for a full disk)."""
    script = (
        "import numpy as np; from core import exits; from data import bins\n"
        "with exits.guard():\n"
        f"    bins.write({str(tmp_path)!r}, 100, np.zeros(200_000, int), np.zeros(5, int))"
    )
    limited = ["bash", "-c", f'ulimit -f 100; exec "{sys.executable}" -c "$0"', script]
    done = subprocess.run(limited, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 74 and not any(tmp_path.iterdir())
    assert re.fullmatch(r"error: File too large, [\d,.]+ [KMG]iB are free: .*/train.bin.tmp-\d+\n", done.stderr)


def test_leftovers_of_the_dead_are_swept(tmp_path):
    dead = tmp_path / "train.bin.tmp-999999999"
    kept = [tmp_path / f"train.bin.tmp-{owner}" for owner in ("1", "mine", "9" * 12)]  # alive, or not ours
    for path in (dead, *kept):
        path.write_bytes(b"x")
    folder_of(tmp_path)
    assert not dead.exists() and all(path.exists() for path in kept)


def test_shards_are_not_mixed_with_a_new_set(tmp_path):
    shard(tmp_path, np.zeros(100), [50])
    with pytest.raises(ValueError, match="holds shards"):
        folder_of(tmp_path)


def test_looking_for_ids_takes_no_memory(tmp_path):
    """Mapped pages counted as the run's: 20 GiB of peak memory for a file of 40."""
    folder_of(tmp_path / "d")
    with open(tmp_path / "d" / "train.bin", "r+b") as f:
        f.truncate(1 << 29)
    meta = json.loads((tmp_path / "d" / "meta.json").read_text())
    meta["count"]["train"] = 1 << 28
    (tmp_path / "d" / "meta.json").write_text(json.dumps(meta))
    code = ("import resource, sys; from data import bins; split = bins.Dataset(sys.argv[1]).split('train', 8)\n"
            "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "before = peak(); split.check_ids(); print(peak() - before)")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "d"], cwd=ROOT, capture_output=True, text=True)
    assert int(done.stdout) < 100 * 1024, done


@pytest.mark.parametrize("limits, says", [((80, 400), "120 1"), ((80, 100), " and 119 more: ")])
def test_more_shards_than_files_may_be_open(tmp_path, limits, says):
    """1,024 in most shells, and a tenth of a trillion tokens are 1,030 shards: it was a traceback."""
    shard(tmp_path, np.arange(1200), range(10, 1200, 10))
    code = ("import resource, sys; from data import bins; l = resource.RLIMIT_NOFILE; resource.setrlimit(l, {})\n"
            "print(len(bins.Dataset(sys.argv[1]).split('train', 4).shards), resource.getrlimit(l)[0])")  # fmt: skip
    argv = [sys.executable, "-c", code.format(limits), tmp_path]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert says in done.stdout + done.stderr, done


@pytest.mark.parametrize("hard, code, says", [(400, 0, "120\n"), (100, 1, "files are open already, and 100 may be here")])
def test_more_data_sets_than_files_may_be_open(tmp_path, hard, code, says):
    """Each has few files, and a mixture of them many: it was a traceback."""
    bins.write(tmp_path / "d", 60, np.arange(50), np.arange(50))
    script = ("import resource, sys; from data import bins; resource.setrlimit(resource.RLIMIT_NOFILE, (80, {}))\n"
              "print(len([bins.Dataset(sys.argv[1]).split('train', 4) for _ in range(120)]))")  # fmt: skip
    argv = [sys.executable, "-c", script.format(hard), tmp_path / "d"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code and says in done.stdout + done.stderr, done
    assert "Too many open files" not in done.stderr, done
