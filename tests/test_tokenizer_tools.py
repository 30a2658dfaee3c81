"""The tools of tokenizers and examples (data/examples.py, data/encoding.py), by their documented command lines."""

import errno
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers

from core import config, exits
from data import build_pretrain_data, corpus, encoding, examples, records, train_tokenizer, vocab
from data.arrow import Rows

ROOT = Path(__file__).resolve().parent.parent
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<|endoftext|>"]


def train(*argv) -> Path:
    args = config.parse(train_tokenizer.Options, [str(a) for a in argv])
    before = set(Path(args.out_dir).glob("*"))
    train_tokenizer.main(args)
    (path,) = set(Path(args.out_dir).glob("*")) - before
    return path


def build(*argv) -> None:
    build_pretrain_data.main(config.parse(build_pretrain_data.Options, [str(a) for a in argv]))


def digits(path: Path, lengths, seed=0) -> list[str]:
    r = random.Random(seed)
    lines = ["".join(r.choice("0123456789") for _ in range(n)) for n in lengths]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return lines


@pytest.fixture(scope="module")
def by_digit(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    digits(folder / "text" / "a.txt", [20, 7617, 33], 1)
    digits(folder / "text" / "b.txt", [500] * 17, 2)
    return train("--data_dir", folder / "text", "--out_dir", folder / "tokenizer", "--vocab_size", 16)


def run(*argv, cwd):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *map(str, argv)], cwd=cwd, env=env, capture_output=True, text=True)


def test_the_seeds_command_lines(tmp_path):
    lines = digits(tmp_path / "encoded_txt" / "a.txt", [20, 7617, 4499, 4498, *[50] * 16])
    (tmp_path / "data").symlink_to(ROOT / "data")
    p = run("data/train_tokenizer.py", "--data_dir", "encoded_txt", "--out_dir", "tokenizer", "--vocab_size", 16,
            "--max_size", 1, "--tokenizer", "by-digit", cwd=tmp_path)  # fmt: skip
    assert p.returncode == 0, p.stderr
    p = run("data/build_pretrain_data.py", "--train_dir", "encoded_txt", "--tokenizer",
            "tokenizer/tokenizer_vocab16_max7619.json", "--out_dir", "pretrain", "--max_size", 4500, "--split_prop",
            0.15, cwd=tmp_path)  # fmt: skip
    assert p.returncode == 0, p.stderr
    assert "2 of 20 examples were cut to 4500 tokens (3,120 tokens left out)" in p.stdout
    train, held = (Rows(tmp_path / "pretrain" / f"pretrain_{part}_trunc4500") for part in ("train", "eval"))
    assert (len(train), len(held)) == (17, 3)
    want = sorted([0, *(int(c) + 6 for c in line[:4498]), 2] for line in lines)
    got = [r.rows([i])[0].tolist() for r in (train, held) for i in range(len(r))]
    assert sorted(got) == want


def test_by_digit_has_the_documented_vocabulary(by_digit):
    assert by_digit.name == "tokenizer_vocab16_max7619.json"
    tokenizer = encoding.load_tokenizer(by_digit)
    assert tokenizer.get_vocab() == {w: i for i, w in enumerate([*SPECIAL, *"0123456789"])}
    assert tokenizer.encode("12<mask>4 5x").ids == [0, 7, 8, 4, 10, 11, 3, 2]
    assert tokenizer.decode([0, 7, 8, 10, 2]) == "124"


def test_max_size_is_the_rank_of_the_length_in_the_name(tmp_path):
    digits(tmp_path / "t.txt", [5, 9, 7, 9, 1])
    for rank, longest in enumerate([11, 11, 9, 7, 3], start=1):
        out = tmp_path / str(rank)
        path = train("--data_dir", tmp_path / "t.txt", "--out_dir", out, "--max_size", rank)
        assert path.name == f"tokenizer_vocab16_max{longest}.json"
        assert [p.name for p in out.iterdir()] == [path.name]
    with pytest.raises(ValueError, match="5 examples"):
        train("--data_dir", tmp_path / "t.txt", "--out_dir", tmp_path / "6", "--max_size", 6)
    assert not (tmp_path / "6").exists()  # what failed leaves nothing behind


@pytest.mark.parametrize(("kind", "size"), [("bpe", 300), ("bpe", 1200), ("wordpiece", 300)])
def test_learnt_tokenizers(tmp_path, kind, size):
    r = random.Random(0)
    words = ["".join(r.choice("abcdefghij") for _ in range(r.randint(2, 9))) for _ in range(400)]
    text = [" ".join(r.choices(words, k=20)) for _ in range(300)] + ["ab" * 5000]
    (tmp_path / "t.txt").write_text("\n".join(text))
    path = train("--data_dir", tmp_path / "t.txt", "--out_dir", tmp_path, "--vocab_size", size, "--tokenizer", kind)
    tokenizer = encoding.load_tokenizer(path)
    assert [tokenizer.token_to_id(w) for w in SPECIAL] == list(range(6))
    assert tokenizer.get_vocab_size() == size and path.name.startswith(f"tokenizer_vocab{size}_max")
    ids = tokenizer.encode(text[0]).ids
    assert (ids[0], ids[-1]) == (0, 2) and 3 not in ids and len(ids) < len(text[0]) / 2
    if kind == "bpe":
        assert tokenizer.decode(ids) == text[0]
        assert 3 not in tokenizer.encode("a\n\nb").ids  # no example holds a line end, a whole text does
        assert (3 in tokenizer.encode("Ä€").ids) == (size < 1000)
    assert 4 in tokenizer.encode("ab <mask> cd").ids
    again = train("--data_dir", tmp_path / "t.txt", "--out_dir", tmp_path / "2", "--vocab_size", size, "--tokenizer", kind)
    assert again.read_bytes() == path.read_bytes()  # else what was made with the first one fits no more


def test_transformers_takes_the_tokenizer(by_digit):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(by_digit), mask_token="<mask>")
    assert tokenizer("314")["input_ids"] == [0, 9, 7, 10, 2]


def test_datasets_reads_ours(tmp_path, by_digit):
    datasets = pytest.importorskip("datasets")
    digits(tmp_path / "t.txt", range(1, 101))
    build("--train_dir", tmp_path / "t.txt", "--tokenizer", by_digit, "--out_dir", tmp_path, "--max_size", 60)
    for part, count in (("train", 80), ("eval", 20)):
        folder = tmp_path / f"pretrain_{part}_trunc60"
        rows, theirs = Rows(folder), datasets.load_from_disk(str(folder))
        assert theirs.column_names == ["input_ids"] and len(theirs) == len(rows) == count
        assert all(theirs[i]["input_ids"] == rows.rows([i])[0].tolist() for i in range(count))
        files = str(folder / "*.arrow")
        other = datasets.load_dataset("arrow", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
        assert other[3] == theirs[3] and other.features == theirs.features


def test_a_row_keeps_its_spaces_and_unknown_tokens_are_counted(tmp_path, capsys):
    """The same text has the same tokens in pretraining as where it is classified; a line of .txt is stripped in both."""
    (tmp_path / "a.csv").write_text('text,n\n" two words ",1\n"   ",2\n')
    (tmp_path / "a.txt").write_text("  two words  \n\n")
    for name, want in (("a.csv", " two words "), ("a.txt", "two words")):
        found = [t for texts in examples.read(tmp_path / name, "text") for t in texts]
        assert found == [want] == [row["text"] for row in records.read(tmp_path / name) if row["text"].strip()]
    (tmp_path / "b.txt").write_text("12 a\nbb<pad>\n")
    path = train("--data_dir", tmp_path / "b.txt", "--out_dir", tmp_path / "t")
    note, left = "note: 3 of the 9 tokens are <unk>", "padding, or its name, 1 times"
    out = capsys.readouterr().out
    assert note in out and left in out and "--tokenizer bpe is for text that is not digits" in out
    build("--train_dir", tmp_path / "b.txt", "--tokenizer", path, "--out_dir", tmp_path / "out", "--max_size", 9,
          "--split_prop", 0.5)  # fmt: skip
    out = capsys.readouterr().out
    assert note in out and left in out


@pytest.mark.full
def test_workers_and_file_kinds_change_nothing(tmp_path, by_digit):
    """The same examples from text by one process, from text by two, and from CSV, whatever parts its columns, JSONL
    and Parquet."""
    lines = digits(tmp_path / "txt" / "a.txt", [1000] * 2500)  # more than encode() leaves to one process
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"n": 1, "text": line}) for line in lines))
    with open(tmp_path / "a.csv", "w", newline="") as f:
        f.write("\ufeffname,text\r\n" + "".join(f'"a,\nb","{line}"\r\n' for line in lines))
    for name, mark in (("semicolons.csv", ";"), ("tabs.csv", "\t"), ("a.tsv", "\t")):
        rows = [f"name{mark}text", *(f'"a{mark}b, c"{mark}{line}' for line in lines)]
        (tmp_path / name).write_text("\n".join(rows))
    pq.write_table(pa.table({"text": lines, "n": range(2500)}), tmp_path / "a.parquet")
    hashes = set()
    for n, (source, workers) in enumerate([("txt", 1), ("txt", 2), ("a.jsonl", 2), ("a.csv", 1), ("a.parquet", 1),
                                         ("semicolons.csv", 1), ("tabs.csv", 1), ("a.tsv", 1)]):
        out = tmp_path / str(n)
        build("--train_dir", tmp_path / source, "--tokenizer", by_digit, "--out_dir", out, "--max_size", 900,
              "--workers", workers)  # fmt: skip
        both = [Rows(out / f"pretrain_{part}_trunc900") for part in ("train", "eval")]
        assert [len(r) for r in both] == [2000, 500] and both[0].tokens == 2000 * 900
        hashes.add(b"".join(r.rows(np.arange(len(r)))[0].tobytes() for r in both))
    assert len(hashes) == 1


@pytest.mark.parametrize(("header", "row"), [
    ('"from, to";text', 'x;"one, two"'), ('text;"from, to";"tab\tin"', "one, two;x;x"),
    ('"a ""b, c""";text', "x;one, two"), ('"a;b",text', 'x,"one, two"'), ('text;"over, two\nlines"', "one, two;x"),
])  # fmt: skip
def test_a_mark_within_the_quotes_of_a_header_parts_nothing(tmp_path, header, row):
    (tmp_path / "a.csv").write_text(f"{header}\n{row}\n")
    assert [*examples.read(tmp_path / "a.csv")] == [["one, two"]]


def test_a_column_without_a_name_is_not_taken_for_the_text(tmp_path):
    """pandas writes its index as the first column of a CSV, under no name."""
    (tmp_path / "a.csv").write_text(",text,label\n0,one two,a\n1,three,b\n")
    (tmp_path / "a.jsonl").write_text('{"": 5, "text": "one two"}\n{"text": "three"}\n')
    pq.write_table(pa.table({"": [0, 1], "text": ["one two", "three"]}), tmp_path / "a.parquet")
    for name in ("a.csv", "a.jsonl", "a.parquet"):
        assert [*examples.read(tmp_path / name)] == [["one two", "three"]]


def test_equal_examples_are_on_one_side(tmp_path, by_digit, capsys):
    lines = digits(tmp_path / "a.txt", [8] * 300)
    (tmp_path / "a.txt").write_text("\n".join(random.Random(0).choices(lines, k=2000)))
    flags = ["--tokenizer", by_digit, "--out_dir", tmp_path / "out", "--max_size", 9]

    def both() -> list[list]:
        parts = [Rows(tmp_path / "out" / f"pretrain_{part}_trunc9") for part in ("train", "eval")]
        return [[tuple(r.rows(np.array([i]))[0]) for i in range(len(r))] for r in parts]

    build("--train_dir", tmp_path / "a.txt", *flags)
    train, held = both()
    assert len(train) + len(held) == 2000 and 300 < len(held) < 500 and not set(train) & set(held)
    assert "note" not in capsys.readouterr().out
    (tmp_path / "b.txt").write_text("\n".join(["12345678", *lines[:1] * 3]))
    build("--train_dir", tmp_path / "a.txt", "--eval_dir", tmp_path / "b.txt", *flags)
    assert "note: 3 of the 4 examples of --eval_dir are in --train_dir, too" in capsys.readouterr().out
    assert list(map(len, both())) == [2000, 4]
    (tmp_path / "b.txt").write_text("12\n" * 20)  # as in a first try: better than nothing
    build("--train_dir", tmp_path / "b.txt", *flags)
    assert "note: so few of the 20 examples differ that equal ones have to be on both" in capsys.readouterr().out
    assert list(map(len, both())) == [16, 4]
    with pytest.raises(ValueError, match="eval_trunc9 would be empty: .* hold.s. 2000 examples, and --split_prop is 1e-09"):
        build("--train_dir", tmp_path / "a.txt", *flags, "--split_prop", 1e-9)
    assert not capsys.readouterr().out  # they do differ


def test_an_eval_dir_is_not_mixed_in(tmp_path, by_digit):
    digits(tmp_path / "a.txt", [10] * 7)
    (tmp_path / "b.txt").write_text("\n12\n\n   \n34\n")
    build("--train_dir", tmp_path / "a.txt", "--eval_dir", tmp_path / "b.txt", "--tokenizer", by_digit,
          "--out_dir", tmp_path, "--max_size", 12)  # fmt: skip
    assert len(Rows(tmp_path / "pretrain_train_trunc12")) == 7
    assert Rows(tmp_path / "pretrain_eval_trunc12").rows([0, 1])[0].tolist() == [0, 7, 8, 2, 0, 9, 10, 2]


def test_what_is_evaluated_is_not_trained_on(tmp_path, by_digit, capsys):
    (tmp_path / "te").mkdir()
    for name, digit in (("a.txt", "1"), ("eval.txt", "2")):
        (tmp_path / "te" / name).write_text(f"{digit}\n" * 3)
    (tmp_path / "linked.txt").symlink_to(tmp_path / "te" / "eval.txt")
    flags = ["--train_dir", tmp_path / "te", "--tokenizer", by_digit, "--out_dir", tmp_path, "--max_size", 12]
    build(*flags, "--eval_dir", tmp_path / "linked.txt")
    assert f"note: --eval_dir holds {tmp_path}/te/eval.txt, too: left out of training\n" in capsys.readouterr().out
    for part, digit in (("train", 7), ("eval", 8)):
        rows = Rows(tmp_path / f"pretrain_{part}_trunc12")
        assert rows.rows(range(len(rows)))[0].tolist() == [0, digit, 2] * 3
    with pytest.raises(ValueError, match="--eval_dir .*te holds all files of --train_dir .*te: nothing is left"):
        build(*flags, "--eval_dir", tmp_path / "te")


def test_the_table_and_the_library_agree(by_digit):
    space = [chr(c) for c in range(0x3001) if chr(c).isspace()]  # to str.split(); the library calls less white space
    texts = [*(f"1{c}2" for c in space), "0123456789", "1 2\t3", "1x2é3€4😀5", "12<mask>45", "7", "</s>", "9" * 3000, "1< 2"]
    fast, slow = encoding.Encoder(by_digit, 50), encoding.Encoder(by_digit, 50)
    assert fast.table is not None
    slow.table = None
    for batch in ([t] for t in texts):
        for a, b in zip(fast(batch), slow(batch), strict=True):
            assert np.array_equal(a, b), batch


@pytest.mark.parametrize(("name", "raw", "told"), [
    ("a.csv", b"a,text\n1,2\n3\n", "line 3 has 1 fields, the header 2 .a field that holds ',' needs quotes"),
    ("a.csv", b"text\nhello, world\n", "line 2 has 2 fields, the header 1"),
    ("a.csv", b"text,n\nhello,1\ntext,n\nworld,2\n", "line 3 is the header again, as where files are joined"),
    ("a.csv", b"text,n\r\nhello,1\r\n\xef\xbb\xbftext,n\r\nworld,2\r\n", "line 3 is the header again"),
    ("a.tsv", b'text\tn\n"a\nb"\t1\nx\ty\tz\n', r"line 4 has 3 fields, the header 2 .a field that holds '\\t'"),
    ("a.csv", b'text\n"a ""b"""\n"hello\nworld\n', "line 3: a field opens with a quote that is not closed at its end"),
    ("a.csv", b'text\n"hello\nbig\n"world"\n', "line 2: a field opens with a quote"),
    ("a.csv", b"text,n\rhello,1\rworld,2\r", r"line 1: a line ends in \\r alone"),
    ("a.parquet", b"PAR1 nothing", "a.parquet: "),
    ("a.parquet", None, "a.parquet is damaged: "),
    ("a.jsonl", b'{"text": "a"}\n{"text": %s}' % (b"1" * 5000), "byte 14 is not JSON: Exceeds the limit .* 5000 digits$"),
    ("a.jsonl", b'{"text": %s' % (b"[" * 100_000), "byte 0 is nested too deeply"),
    ("a.jsonl", b'{"text": [%s1]}' % (b"1, " * 9999), r"text is wanted in 'text', got \[1, 1[1, ]{30,40}$"),
])  # fmt: skip
def test_all_tools_name_what_is_wrong_with_a_file(tmp_path, name, raw, told):
    path = tmp_path / name
    if raw is None:
        pq.write_table(pa.table({"text": ["some text"] * 99}), path)
        raw = path.read_bytes().replace(b"some text", b"some\xfftext")
    path.write_bytes(raw)
    for tool in (lambda: [*examples.read(path, "text")], lambda: corpus.prepare([path], tmp_path / "out", "byte"),
                 lambda: records.texts([*records.read(path)], "text", path, 0, True)):  # fmt: skip
        with pytest.raises(ValueError, match=told) as e:
            tool()
        assert exits.ours(e.value) and str(path) in str(e.value) and "\n" not in str(e.value)
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize(("name", "raw"), [
    ("A.CSV", b"n,text\n1,one\n2,two\n"),
    ("A.JSONL", b'{"text": "one"}\n{"text": "two"}\n'),
    ("A.Tsv", b"n\ttext\n1\tone\n2\ttwo\n"),
    ("A.TXT", b"one\r\ntwo\r\n"),
])  # fmt: skip
def test_a_name_in_capitals_is_the_same_kind_of_file(tmp_path, name, raw):
    """Windows and spreadsheets write them: their headers and braces were trained on as text."""
    path = tmp_path / name
    path.write_bytes(raw)
    assert [*examples.read(path)] == [*examples.read(tmp_path)] == [["one", "two"]]
    assert [row["text"] for row in records.read(path)] == ["one", "two"]
    assert corpus.joined(next(corpus.pieces([path], 0.1, "")), "").startswith("one\n")


@pytest.mark.parametrize("end", [[], ["</s>"]])  # joined texts, and each by itself
def test_a_tokenizer_without_unk_names_the_text_it_cannot_read(tmp_path, end):
    """As the characters that export_hf.py writes for transformers: a plain Exception of the library, with a traceback."""
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ("1 2", "2 1", "1 x") * 5))
    words = {word: i for i, word in enumerate([*end, "1", "2", " ", "\n"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("."), "isolated")
    tokenizer.save(path := str(tmp_path / "t.json"))
    for tool in (lambda: corpus.prepare([tmp_path / "a.jsonl"], tmp_path / "data", path),
                 lambda: [*encoding.encode(tmp_path / "a.jsonl", path)],
                 lambda: vocab.load(encoding.describe(path)).encode("1 x")):  # fmt: skip
        with pytest.raises(ValueError, match="1 x.* holds what th.* tokenizer has no token for: .*Missing .UNK.") as e:
            tool()
        assert exits.ours(e.value) and (str(tmp_path / "a.jsonl") in str(e.value)) != str(e.value).startswith("'1 x' ")
    assert sorted(os.listdir(tmp_path)) == ["a.jsonl", "t.json"]


def test_a_blank_line_of_a_csv_is_no_row(tmp_path):
    """--embed gave it a vector: those behind it belonged to other rows than pandas, csv and --predict count."""
    path = tmp_path / "a.csv"
    path.write_text('n,text\n1,one\n\n2,""\n3,three\n\n')
    assert [*examples.read(path, "text", rows=True)] == [["one", "", "three"]]
    assert [row["text"] for row in records.read(path)] == ["one", "", "three"]


def test_a_folder_gives_its_files_and_nothing_else(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "._a.txt").write_bytes(b"\0\5\x16\7Mac OS X")
    (tmp_path / "b.txt").mkdir()
    assert examples.files(tmp_path) == [tmp_path / "a.txt"]
    for name, raw, told in (("a.log", b"text", "rename it"), ("a.jsonl.gz", b"\x1f\x8b\x08", "gzip -d unpacks it$")):
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(ValueError, match=f"{name} ends in none of .*: {told}"):
            examples.files(tmp_path / name)
    (tmp_path / "c.txt").symlink_to("gone.txt")
    with pytest.raises(ValueError, match="c.txt is a link to gone.txt, which is not there"):
        examples.files(tmp_path)


def test_half_a_surrogate_pair_is_the_same_to_all_tools(tmp_path):
    raw = '{"text": "12 \\ud83d 34", "label": "\\uDE00"}\n{"text": "\\ud83d\\ude00", "label": "b"}\n'
    (tmp_path / "a.jsonl").write_text(raw)
    want = ["12 \ufffd 34", "\U0001f600"]
    assert [*examples.read(tmp_path / "a.jsonl")] == [want]
    assert [*records.read(tmp_path / "a.jsonl")] == [{"text": want[0], "label": "\ufffd"}, {"text": want[1], "label": "b"}]
    train("--data_dir", tmp_path / "a.jsonl", "--column", "text", "--out_dir", tmp_path, "--vocab_size", 300,
          "--tokenizer", "bpe")  # fmt: skip


def test_a_full_disk_leaves_no_half_made_folders(tmp_path, by_digit, monkeypatch):
    def full(self):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(build_pretrain_data.Writer, "end_file", full)
    (tmp_path / "t.txt").write_text("123\n" * 100)
    with pytest.raises(OSError, match="No space"):
        build("--train_dir", tmp_path / "t.txt", "--tokenizer", by_digit, "--out_dir", tmp_path / "out", "--max_size", 9)
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_for_which_there_is_no_room(tmp_path):
    (tmp_path / "t.txt").write_text("one two three\n" * 9)
    limited = f'ulimit -f 4; exec "{sys.executable}" data/train_tokenizer.py --data_dir "$0" --out_dir "$0/o" "$@"'
    argv = ["bash", "-c", limited, str(tmp_path), "--tokenizer", "bpe", "--vocab_size", "1000"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (74, f"error: File too large: {tmp_path}/o\n")
    assert not (tmp_path / "o").exists()


def test_a_killed_run_leaves_no_workers_and_the_next_one_sweeps(tmp_path, by_digit):
    (tmp_path / "t.txt").write_text(("1" * 999 + "\n") * 40_000)
    more = ["--train_dir", tmp_path / "t.txt", "--tokenizer", by_digit, "--out_dir", tmp_path / "out"]
    more += ["--max_size", 1000, "--workers", 2]
    argv = [sys.executable, "data/build_pretrain_data.py", *map(str, more)]
    with subprocess.Popen(argv, cwd=ROOT, stderr=subprocess.PIPE) as process:  # the workers hold its end of the pipe
        for _ in range(600):
            if any(p.stat().st_size for p in (tmp_path / "out").glob(".*/*.arrow")):
                break
            time.sleep(0.05)
        process.kill()
        process.communicate(timeout=30)  # until the last of them is gone
    assert len(list((tmp_path / "out").glob(".*.tmp-*"))) == 2
    (tmp_path / "t.txt").write_text("123\n" * 100)
    build(*more)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "pretrain_eval_trunc1000", "pretrain_train_trunc1000"]  # fmt: skip


def test_what_a_killed_process_of_the_same_number_left_goes(tmp_path, by_digit):
    """In a container each call may be process 7."""
    (tmp_path / "t.txt").write_text("".join(f"{i}\n" for i in range(100)))
    left = tmp_path / "out" / f".pretrain_train_trunc9.tmp-{os.getpid()}"
    left.mkdir(parents=True)
    (left / "data-00000.arrow").write_bytes(b"half")
    build("--train_dir", tmp_path / "t.txt", "--tokenizer", by_digit, "--out_dir", tmp_path / "out", "--max_size", 9)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["pretrain_eval_trunc9", "pretrain_train_trunc9"]


def test_a_data_set_is_replaced_in_one_step(tmp_path, by_digit):
    """Killed as the old one went, it left a folder that was no data set, and that the next call refused to replace."""
    (tmp_path / "t.txt").write_text("".join(f"{i}\n" for i in range(100)))
    more = ["--train_dir", str(tmp_path / "t.txt"), "--tokenizer", str(by_digit), "--out_dir", str(tmp_path / "out")]
    more += ["--max_size", "9", "--workers", "1"]
    build(*more)
    dies = "import os, runpy, sys\nsys.path[0] = os.getcwd()\n"
    dies += "sys.addaudithook(lambda event, _: event == 'os.rmdir' and os.kill(os.getpid(), 9))\n"
    dies += "runpy.run_path('data/build_pretrain_data.py', run_name='__main__')"
    assert subprocess.run([sys.executable, "-c", dies, *more, "--seed", "1"], cwd=ROOT).returncode == -9
    folders = ["pretrain_eval_trunc9", "pretrain_train_trunc9"]
    assert all((tmp_path / "out" / name / "state.json").is_file() for name in folders)
    build(*more)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == folders


def test_a_reader_that_leaves_costs_no_data(tmp_path, by_digit, monkeypatch):
    """`| head -1`: the first line broke off the call between its two data sets."""
    (tmp_path / "t.txt").write_text("".join(f"{i}\n" for i in range(100)))
    more = ["--train_dir", tmp_path / "t.txt", "--tokenizer", by_digit, "--out_dir", tmp_path / "out", "--max_size", 9]

    def closed(*_):
        raise BrokenPipeError

    build(*more)
    folders = sorted((tmp_path / "out").iterdir())
    old = [(folder / "state.json").read_text() for folder in folders]  # holds a number drawn anew by each call
    monkeypatch.setattr(build_pretrain_data, "print", closed, raising=False)
    with pytest.raises(BrokenPipeError):
        build(*more)
    assert sorted((tmp_path / "out").iterdir()) == folders
    assert all((folder / "state.json").read_text() != before for folder, before in zip(folders, old, strict=True))


def test_ids_may_have_gaps(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "b": 70_000}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "t.json"))
    coded = encoding.encoder(str(tmp_path / "t.json"), 9)(["a b", "b"])
    assert coded.ids.tolist() == [1, 70_000, 70_000] and coded.lengths.tolist() == [2, 1]


def test_nothing_is_no_example_where_the_tokenizer_adds_no_ends(tmp_path, capsys):
    """A line of zero-width spaces is not blank, and a normalizer leaves nothing of it: pretrain.py refused the row."""
    from tokenizers import Tokenizer, models, normalizers

    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "b": 2}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace("\u200b", "")
    tokenizer.save(str(tmp_path / "t.json"))
    (tmp_path / "t.txt").write_text("a\n\u200b\nb\n" * 2, encoding="utf-8")
    (coded,) = encoding.encode(tmp_path / "t.txt", tmp_path / "t.json")
    assert coded.ids.tolist() == [1, 2, 1, 2] and coded.lengths.tolist() == [1] * 4 and coded.bare == 2
    build("--train_dir", tmp_path / "t.txt", "--tokenizer", tmp_path / "t.json", "--out_dir", tmp_path, "--max_size", 9)
    assert "note: 2 more hold nothing that the tokenizer has a token for: left out" in capsys.readouterr().out


def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, by_digit):
    def refused(*words, source="t.txt", tokenizer=by_digit, **options):
        argv = ["--train_dir", tmp_path / source, "--tokenizer", tokenizer, "--out_dir", tmp_path / "out",
                "--max_size", 9, *[a for k, v in options.items() for a in (f"--{k}", v)]]  # fmt: skip
        with pytest.raises(ValueError) as e:
            build(*argv)
        for word in words:
            assert str(word) in str(e.value), e.value
        assert "\n" not in str(e.value)
        assert not (tmp_path / "out").exists()

    refused("t.txt", "no such file")
    (tmp_path / "t.txt").write_bytes(b"\xef\xbb\xbf123\n45\xff6\n")
    refused("t.txt", "not UTF-8 at byte 9")
    (tmp_path / "t.txt").write_text("123\n")
    refused("tokenizer", "does not exist", tokenizer=tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{}")
    refused("bad.json", tokenizer=tmp_path / "bad.json")
    refused("--split_prop", split_prop=0)
    refused("--max_size", max_size=2)
    (tmp_path / "t.jsonl").write_text('{"text": "1"}\n{"text": 1}\n')
    refused("t.jsonl", "byte 14", source="t.jsonl")
    (tmp_path / "t.jsonl").write_text('{"text": "1"}\n{"text": \n')
    refused("t.jsonl", "byte 14", source="t.jsonl")
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    refused("t.csv", "--column", "'a', 'b'", source="t.csv")
    refused("t.csv", "no column 'c'", source="t.csv", column="c")
    (tmp_path / "t.csv").write_text("")
    refused("t.csv is empty", "names of the columns", source="t.csv")
    pq.write_table(pa.table({"text": ["1", None]}), tmp_path / "t.parquet")
    refused("t.parquet", "row 2", source="t.parquet")
    (tmp_path / "t.txt").write_text("\n \n")
    refused("empty", source="t.txt")
    with pytest.raises(ValueError, match="t.txt has no examples that are not blank"):
        train("--data_dir", tmp_path / "t.txt", "--out_dir", tmp_path / "none")
    (tmp_path / "mine" / "pretrain_eval_trunc9").mkdir(parents=True)
    with pytest.raises(ValueError, match="is not replaced"):
        build("--train_dir", tmp_path, "--tokenizer", by_digit, "--out_dir", tmp_path / "mine", "--max_size", 9)
    (tmp_path / "t.md").write_text("text\n")
    for name, told in (("t.md", "ends in none of .txt"), ("mine", "a folder without .txt"), ("no", "no such file")):
        with pytest.raises(ValueError, match=f"{name}:? {told}"):
            train("--data_dir", tmp_path / name, "--vocab_size", 16)
    with pytest.raises(ValueError, match="must be 16"):
        train("--data_dir", tmp_path, "--vocab_size", 20, "--out_dir", tmp_path / "out")
    (tmp_path / "t.txt").write_text("abcdef\n")
    with pytest.raises(ValueError, match="too small"):
        train("--data_dir", tmp_path / "t.txt", "--vocab_size", 7, "--tokenizer", "bpe", "--out_dir", tmp_path / "o")
    with pytest.raises(ValueError, match="between 1 and 10000000, got 1000000000"):  # the library takes 70 bytes for each
        train("--data_dir", tmp_path / "t.txt", "--vocab_size", "1e9", "--tokenizer", "bpe", "--out_dir", tmp_path / "o")


def test_a_column_of_files_without_columns_is_refused(tmp_path, by_digit):
    """A CSV that is called .txt was read with its header, a line a text, whatever --column said."""
    file = tmp_path / "proteins.txt"
    file.write_text("name,digits\na,123\nb,456\nc,78\n")
    calls = [lambda: train("--data_dir", file, "--out_dir", tmp_path / "tok", "--column=digits"),
             lambda: build("--train_dir", file, "--tokenizer", by_digit, "--out_dir", tmp_path / "p", "--max_size=5",
                           "--split_prop=0.5", "--column=digits"),
             lambda: corpus.prepare([file], tmp_path / "d", "byte", column="digits")]  # fmt: skip
    for call in calls:
        with pytest.raises(ValueError, match=r"--column digits: .*proteins.txt is read as plain text"):
            call()
    assert [p.name for p in tmp_path.iterdir()] == ["proteins.txt"]
    file = file.rename(tmp_path / "proteins.csv")
    for call in calls:
        call()


def test_a_share_to_hold_out_beside_eval_dir_is_said_to_do_nothing(tmp_path, by_digit, capsys):
    digits(tmp_path / "a.txt", [5] * 9)
    digits(tmp_path / "b.txt", [6] * 3)
    argv = ["--train_dir", tmp_path / "a.txt", "--tokenizer", by_digit, "--out_dir", tmp_path, "--max_size=9", "--seed=7"]
    for more, said in ((["--eval_dir", tmp_path / "b.txt"], ["split_prop", "seed"]), ([], [])):
        build(*argv, "--split_prop=0.5", *more)
        notes = [line for line in capsys.readouterr().out.splitlines() if "nothing here" in line]
        assert notes == [f"note: --{name} does nothing here: it needs no --eval_dir" for name in said]
