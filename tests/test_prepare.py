"""data/vocab.py, data/corpus.py and the prepare scripts: what goes in comes out again, by any number of processes."""

import concurrent.futures
import csv
import gzip
import hashlib
import io
import json
import lzma
import multiprocessing
import os
import random
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core import config, exits
from data import bins, corpus, encoding, vocab
from data.openwebtext import prepare as openwebtext
from data.python_stdlib import prepare as python_stdlib
from data.shakespeare_char import prepare as shakespeare_char
from data.streams import prepare as streams
from data.text import prepare as text

ROOT = Path(__file__).resolve().parents[1]


def prose(size: int, seed: int = 0) -> str:
    """Words of several scripts, lines, blank lines, runs of spaces, Windows' line ends, contractions, numbers."""
    draw = random.Random(seed)
    words = ["the", "it's", "Naïve", "日本語", "🙂", "x1", "2024", "we'll", "—", "über", "\u3000", "e\u0301", "..."]
    gaps = [" "] * 12 + ["\n"] * 3 + ["  ", "\n\n", "\r\n", "\t", " \n", "\n\u3000", "\u00a0"]
    return "".join(draw.choice(words) + draw.choice(gaps) for _ in range(size))


def bpe(lines: list[str], vocab_size=400) -> dict:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>", "<|endoftext|>"]
    tokenizer.train_from_iterator(
        lines, trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    tokenizer.enable_truncation(max_length=8)
    return {"kind": "tokenizers", "json": tokenizer.to_str()}


BPE = bpe([prose(3000, seed=9)])


def read(folder: Path) -> dict[str, list[int]]:
    dataset = bins.Dataset(folder)
    return {s: np.fromfile(folder / f"{s}.bin", bins.DTYPES[dataset.dtype]).tolist() for s in ("train", "val")}


def texts(folder: Path) -> dict[str, str]:
    tokenizer = vocab.load(bins.Dataset(folder).tokenizer)
    return {split: tokenizer.decode(ids) for split, ids in read(folder).items()}


def run(*command, cwd=ROOT, **env) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=cwd, env=os.environ | env, capture_output=True, text=True, timeout=120
    )


@pytest.fixture
def small_pieces(monkeypatch):
    """So that a few kilobytes are many tasks (workers are forked, or get whole pieces)."""
    monkeypatch.setattr(corpus, "PIECE", 500)


# -----------------------------------------------------------------------------
# tokenizers


@pytest.mark.parametrize("about", [{"kind": "char", "chars": sorted(set(prose(500)))}, {"kind": "byte"}, BPE])
def test_text_comes_back(about):
    tokenizer = vocab.load(about)
    ids = tokenizer.encode(prose(500))
    assert tokenizer.decode(ids) == prose(500) and max(ids) < tokenizer.vocab_size
    assert tokenizer.ids(prose(500)).tolist() == ids
    again = vocab.load(json.loads(json.dumps(tokenizer.describe())))
    assert again.hash == tokenizer.hash and again.encode("it's") == tokenizer.encode("it's")
    tokenizer.decode([tokenizer.vocab_size + 40])  # models may have more rows than the vocabulary


def test_hashes_tell_tokenizers_apart():
    abouts = [{"kind": "char", "chars": list("ab")}, {"kind": "char", "chars": list("ba")}, {"kind": "byte"}, BPE]
    assert len({vocab.load(a).hash for a in abouts}) == 4
    spaced = {"kind": "tokenizers", "json": json.dumps(json.loads(BPE["json"]) | {"truncation": None}, indent=2)}
    assert vocab.load(spaced).hash == vocab.load(BPE).hash  # laid out otherwise, the same tokenizer


def test_a_character_that_is_not_in_the_table():
    with pytest.raises(ValueError, match="character 'é' at place 2 is not among this tokenizer's 2"):
        vocab.load({"kind": "char", "chars": ["a", "b"]}).encode("abé")


@pytest.mark.parametrize(
    "about, told",
    [
        ({"kind": "sentencepiece"}, "must be one of char, byte, tiktoken, tokenizers, got 'sentencepiece'"),
        ([], "must be one of"),
        ({"kind": []}, "must be one of"),
        ({"kind": "char", "chars": ["ab"]}, "single characters"),
        ({"kind": "char", "chars": ["a", "a"]}, "different"),
        ({"kind": "char"}, "needs 'chars'"),
        ({"kind": "tokenizers", "json": "{}"}, "not a tokenizers JSON"),
        ({"kind": "tiktoken", "name": "gpt9"}, "tiktoken knows gpt2, .*; got 'gpt9'"),
        ({"kind": "tiktoken", "name": "gpt2", "merges": "a b"}, "not those of 'gpt2'"),
    ],
)
def test_bad_descriptions(about, told):
    with pytest.raises(ValueError, match=told):
        vocab.load(about)


def test_special_tokens_are_text_in_a_corpus_and_tokens_in_a_prompt():
    tokenizer = vocab.load(BPE)
    assert tokenizer.eot == 2 and tokenizer.encode("it<|endoftext|>")[-1] == 2
    ids = tokenizer.ids("it<|endoftext|>")
    assert 2 not in ids and tokenizer.decode(ids) == "it<|endoftext|>"


def test_byte_level_bpe_is_the_same_in_tiktoken():
    fast, slow = vocab.load(BPE), vocab.load(BPE)
    slow.fast = None
    assert fast.fast
    for seed in range(5):
        assert fast.ids(prose(2000, seed)).tolist() == slow.ids(prose(2000, seed)).tolist()


def merged(pairs: list[list[str]], **model) -> dict:
    """A tokenizer.json of GPT-2's kind with these merges."""
    about = json.loads(bpe(["x"], vocab_size=259)["json"])
    words = [*vocab.alphabet(), *dict.fromkeys(a + b for a, b in pairs)]
    about["added_tokens"], about["post_processor"] = [], None
    about["model"] |= {"vocab": {w: i for i, w in enumerate(words)}, "merges": pairs} | model
    return {"kind": "tokenizers", "json": json.dumps(about)}


def test_a_vocabulary_that_tiktoken_would_read_otherwise_is_left_to_tokenizers():
    """With b+c before a+b, "abc" is a bc; a merge ab+c never applies, but tiktoken would join a and bc to abc."""
    plain = merged([["a", "b"], ["ab", "c"]])
    assert vocab.load(plain).fast and vocab.load(plain).decode(vocab.load(plain).ids("abc abd")) == "abc abd"
    odd = vocab.load(merged([["b", "c"], ["a", "b"], ["ab", "c"]]))
    assert odd.fast is None and len(odd.ids("abc")) == 2
    assert vocab.load(merged([["a", "b"]], dropout=0.1)).fast is None


def test_gpt2_merges_from_a_file(tmp_path):
    """Their bytes come in GPT-2's order, then the merges, then the end of text; encoder.json must agree."""
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\nt h\nth e\nĠ the\n", encoding="utf-8")
    about = vocab.find(str(tmp_path))
    tokenizer = vocab.load(json.loads(json.dumps(about)))
    assert tokenizer.vocab_size == 260 and tokenizer.eot == 259
    assert tokenizer.encode("the the!<|endoftext|>") == [257, 258, 0, 259]
    assert tokenizer.decode([257, 258, 0, 259, 300]) == "the the!<|endoftext|>\ufffd"
    words = {**{c: i for i, c in enumerate(vocab.alphabet())}, "th": 256, "the": 257, "Ġthe": 258, vocab.EOT: 259}
    (tmp_path / "encoder.json").write_text(json.dumps(words))
    assert vocab.find(str(tmp_path / "encoder.json")) == about
    (tmp_path / "encoder.json").write_text(json.dumps(words | {"th": 257, "the": 256}))
    with pytest.raises(ValueError, match="numbers its tokens otherwise"):
        vocab.find(str(tmp_path))


def test_merges_that_are_none(tmp_path):
    (tmp_path / "merges.txt").write_text("a b c\n")
    with pytest.raises(ValueError, match="'a b c'"):
        vocab.load(vocab.find(str(tmp_path)))


def test_gpt2_without_a_network(monkeypatch):
    """Neither a refusal nor a silence of the network hangs; the line says what to do."""
    import tiktoken

    def refuse(name):
        raise ConnectionError

    monkeypatch.setattr(tiktoken, "get_encoding", refuse)
    with pytest.raises(ValueError, match=r"needs the network once \(ConnectionError\): .*vocab.bpe or a tok"):
        vocab.load({"kind": "tiktoken", "name": "gpt2"})
    never = threading.Event()
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: never.wait())
    monkeypatch.setattr(vocab, "PATIENCE", 0.1)
    begin = time.time()
    with pytest.raises(ValueError, match="no answer in 0.1 s"):
        vocab.load({"kind": "tiktoken", "name": "gpt2"})
    assert time.time() - begin < 5
    never.set()


# -----------------------------------------------------------------------------
# cutting


def test_pieces_end_where_bpe_does_not_notice(tmp_path, small_pieces):
    """The pieces' ids, one after the other, are those of the whole text."""
    (tmp_path / "a.txt").write_text(prose(5000), encoding="utf-8", newline="")
    pieces = list(corpus.pieces([tmp_path / "a.txt"], 0.1, ""))
    assert len(pieces) > 50
    tokenizer = vocab.load(BPE)
    for split in ("train", "val"):
        whole = b"".join(p.content for p in pieces if p.split == split).decode()
        parts = [tokenizer.ids(p.content.decode()).tolist() for p in pieces if p.split == split]
        assert sum(parts, []) == tokenizer.ids(whole).tolist()


def test_pieces_do_not_begin_with_a_space_of_their_own(tmp_path, small_pieces):
    from tokenizers import Tokenizer, pre_tokenizers

    tokenizer = Tokenizer.from_str(BPE["json"])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.save(str(tmp_path / "t.json"))
    lines = "one two\nthree four five\n" * 200
    (tmp_path / "t.txt").write_text(lines)
    corpus.prepare([tmp_path / "t.txt"], tmp_path / "out", str(tmp_path / "t.json"), val_fraction=0.5)
    want = vocab.load(bins.Dataset(tmp_path / "out").tokenizer).encode(lines[: len(lines) // 2])
    assert read(tmp_path / "out")["train"] == want


@pytest.mark.parametrize("raw", ["é" * 3000, "\r\n" * 2000, "a" * 3000, " " * 3000, "a\n" * 1500, "🙂 " * 900])
def test_texts_without_a_good_place_are_cut_between_characters(tmp_path, small_pieces, raw):
    (tmp_path / "a.txt").write_bytes(raw.encode())
    pieces = list(corpus.pieces([tmp_path / "a.txt"], 0.1, ""))
    assert b"".join(p.content for p in pieces).decode() == raw
    assert all(p.content and len(p.content) <= 500 for p in pieces)
    assert "".join(corpus.joined(p, "") for p in pieces) == raw.replace("\r\n", "\n")


@pytest.mark.parametrize("val_fraction", [0.001, 0.1, 0.37, 0.9])
def test_train_and_val_are_the_text(tmp_path, small_pieces, val_fraction):
    raw = prose(2000)
    (tmp_path / "a.txt").write_text(raw, encoding="utf-8", newline="")
    corpus.prepare([tmp_path / "a.txt"], tmp_path / "out", "char", val_fraction=val_fraction)
    found = texts(tmp_path / "out")
    assert found["train"] + found["val"] == raw.replace("\r\n", "\n")
    assert abs(len(found["val"].encode()) / len(raw.encode()) - val_fraction) < 0.02


def test_no_cut_falls_inside_a_line_end(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a\r\n" * 10)
    for cut in range(2, 29):
        train, val = (p.content for p in corpus.pieces([tmp_path / "a.txt"], 1 - cut / 30, ""))
        assert (train + val) == b"a\r\n" * 10 and not train.endswith(b"\r") and abs(len(train) - cut) < 2


def test_reading_is_ahead_by_a_few_pieces(tmp_path):
    read = []

    def tasks():
        for i in range(100):
            read.append(i)
            yield corpus.Piece("train", tmp_path / "a.txt", 0, b"abc", False, 3)

    results = corpus.spread(corpus.Alphabet(""), tasks(), 2)
    next(results)
    assert len(read) < 10 and len(list(results)) == 99


def rows_of(n: int) -> list[str]:
    return [f"row {i}: " + prose(i % 50 + 1, seed=i).replace("\r\n", "\n") + "." for i in range(n)]


def store(path: Path, rows: list[str]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"id": list(range(len(rows))), "text": rows}), path, row_group_size=7)
    elif path.suffix in (".csv", ".tsv"):
        mark = "\t" if path.suffix == ".tsv" else ";"
        with open(path, "w", newline="") as f:
            csv.writer(f, delimiter=mark).writerows([["id", "text"], *enumerate(rows)])
    else:
        path.write_bytes("\n".join(json.dumps({"text": r}) for r in rows).encode())
    return path


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv", "tsv"])
@pytest.mark.parametrize("n", [2, 5, 200])
def test_a_row_is_in_train_or_in_val(tmp_path, small_pieces, kind, n):
    path = store(tmp_path / f"a.{kind}", rows_of(n))
    (tmp_path / "t.json").write_text(BPE["json"])
    corpus.prepare([path], tmp_path / "out", str(tmp_path / "t.json"))
    found = [t.split("<|endoftext|>")[:-1] for t in texts(tmp_path / "out").values()]
    assert found[0] + found[1] == rows_of(n) and all(found)
    assert n < 200 or 10 < len(found[1]) < 30


def test_files_follow_each_other(tmp_path, small_pieces):
    """Documents end with the end-of-text token, or with a line where the tokenizer has none; folders are shuffled."""
    names = [f"{i}.txt" for i in range(12)]
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name in names:
        (tmp_path / "in" / ("deep" if name < "3" else "") / name).write_text(f"text of {name}")
    for hidden in (".git", "__pycache__"):
        (tmp_path / "in" / hidden).mkdir()
        (tmp_path / "in" / hidden / "x").write_bytes(b"\xff")
    (tmp_path / "in" / "empty.txt").write_text("")
    corpus.prepare([tmp_path / "in"], tmp_path / "byte", "byte", val_fraction=0.5)
    (tmp_path / "t.json").write_text(BPE["json"])
    corpus.prepare([tmp_path / "in"], tmp_path / "bpe", str(tmp_path / "t.json"), val_fraction=0.5)
    for folder, mark in (("byte", "\n"), ("bpe", "<|endoftext|>")):
        found = "".join(texts(tmp_path / folder).values()).split(mark)
        assert sorted(found) == sorted(f"text of {name}" for name in names) and found != sorted(found)
    latin = tmp_path / "in" / os.fsdecode(b"caf\xe9.txt")  # out of an old archive
    latin.write_text("text")
    assert latin in corpus.files([tmp_path / "in"], [])
    latin.unlink()
    twice = [tmp_path / "in", tmp_path / "in" / "deep" / ".." / "3.txt", str(tmp_path / "in" / "*.txt")]
    assert len(corpus.files(twice, [tmp_path / "out"])) == 12  # else one could be train and val
    assert corpus.files([tmp_path / "in" / "**" / "*.txt"], []) == corpus.files([tmp_path / "in"], [])  # a pattern
    corpus.prepare([tmp_path / "byte" / ".." / "in"], tmp_path / "in", "byte")
    (tmp_path / "in" / "val.bin.tmp-999999999").write_bytes(b"half")
    corpus.prepare([tmp_path / "in"], tmp_path / "in", "byte")  # what it wrote itself is not input
    assert {p.suffix for p in corpus.files([tmp_path / "in" / "*"], [tmp_path / "in"])} == {".txt"}
    with pytest.raises(ValueError, match="train.bin belongs to the data set"):  # as the shell writes in/* out
        corpus.prepare([tmp_path / "in" / "train.bin"], tmp_path / "in", "byte")
    assert "".join(texts(tmp_path / "in").values()).count("text of") == 12


def test_what_links_in_a_folder_lead_to_is_input(tmp_path):
    """Each file once, and a circle ends."""
    here, there = tmp_path / "in", tmp_path / "disk" / "web"
    for folder in (here / "sub", there / "deep"):
        folder.mkdir(parents=True)
        (folder / f"{folder.name}.txt").write_text("text")
    for link, goal in (("web", there), ("again", there), ("sub/up", here), ("to_sub", here / "sub"), ("gone", tmp_path / "no")):
        (here / link).symlink_to(goal, target_is_directory=True)
    assert sorted(corpus.files([here], [])) == [here / "again" / "deep" / "deep.txt", here / "sub" / "sub.txt"]
    assert sorted(corpus.shuffled(here, ".txt")) == sorted(corpus.files([here], []))


def test_a_folder_of_train_tokenizer_and_what_its_vocabulary_lacks(tmp_path, capsys):
    from data import train_tokenizer

    (tmp_path / "few.txt").write_text("ab ba\n" * 20)
    argv = ["--data_dir", str(tmp_path / "few.txt"), "--out_dir", str(tmp_path / "tok"), "--tokenizer", "bpe"]
    train_tokenizer.main(config.parse(train_tokenizer.Options, [*argv, "--vocab_size", "12"]))
    (tmp_path / "in.txt").write_text("ab ba\nab xyz\n" * 20)
    corpus.prepare([tmp_path / "few.txt"], tmp_path / "all", str(tmp_path / "tok"))
    assert "<unk>" not in capsys.readouterr().out
    corpus.prepare([tmp_path / "in.txt"], tmp_path / "lacks", str(tmp_path / "tok"))
    assert "note: 60 tokens are <unk>" in capsys.readouterr().out
    corpus.prepare([tmp_path / "in.txt"], tmp_path / "lacks", str(tmp_path / "tok"))
    assert "another tokenizer" not in capsys.readouterr().out
    corpus.prepare([tmp_path / "in.txt"], tmp_path / "lacks", "char")
    assert "lacks held tokens of another tokenizer, now replaced" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--tokenizer must be char, byte, gpt2, .*; got 'bpe'"):
        vocab.find("bpe")
    (tmp_path / "tok" / "tokenizer_vocab9_max9.json").write_text("{}")
    with pytest.raises(ValueError, match="holds several, name one"):
        vocab.find(str(tmp_path / "tok"))


def test_what_a_unigram_lacks_is_counted_too(tmp_path, capsys):
    """T5's and XLM-R's kind tells the number of its <unk>, not its name."""
    from tokenizers import Tokenizer, models

    model = models.Unigram([("<pad>", 0.0), ("a", -1.0), ("<unk>", 0.0)], unk_id=2)
    Tokenizer(model).save(str(tmp_path / "t.json"))
    (tmp_path / "in.txt").write_text("ab" * 50)
    corpus.prepare([tmp_path / "in.txt"], tmp_path / "out", str(tmp_path / "t.json"))
    assert "note: 50 tokens are <unk>" in capsys.readouterr().out
    coder = encoding.Encoder(tmp_path / "t.json", None)
    assert coder.lost(coder(["abab"]).ids) == 2


def test_a_bpe_that_drops_what_it_lacks_is_told(tmp_path, capsys):
    """Without unk_token the library leaves such letters out: of a text in another script nothing was left, silently."""
    from tokenizers import Tokenizer, models, trainers

    (tmp_path / "a.txt").write_text("ab \u4e2d\u6587 ab " * 50, encoding="utf-8")
    for unk, byte_fallback in ((None, False), ("<unk>", False), (None, True)):
        tokenizer = Tokenizer(models.BPE(unk_token=unk, byte_fallback=byte_fallback))
        special = [f"<0x{b:02X}>" for b in range(256)] if byte_fallback else ["<unk>"]
        tokenizer.train_from_iterator(["ab ab"], trainers.BpeTrainer(vocab_size=300, special_tokens=special))
        tokenizer.save(str(tmp_path / "t.json"))
        corpus.prepare([tmp_path / "a.txt"], tmp_path / "out", str(tmp_path / "t.json"))
        said = capsys.readouterr().out
        assert ("has no <unk>: letters that it has no token for are left out" in said) == (not unk and not byte_fallback)
        assert ("tokens are <unk>" in said) == bool(unk)


def test_a_data_set_lends_its_tokenizer_to_another_text(tmp_path, capsys):
    """Weights of characters go on with other text, which has a table of its own."""
    for name, words in (("one", "abc de\n"), ("two", "bad\n"), ("odd", "xyz\n")):
        (tmp_path / f"{name}.txt").write_text(words * 20)
    corpus.prepare([tmp_path / "one.txt"], tmp_path / "one", "char")
    corpus.prepare([tmp_path / "two.txt"], tmp_path / "two", str(tmp_path / "one"))
    one, two = (bins.Dataset(tmp_path / name) for name in ("one", "two"))
    assert one.tokenizer == two.tokenizer and one.vocab_size == two.vocab_size
    with pytest.raises(ValueError, match="odd.txt, from 0 on: character 'x' at place 0 is not among"):
        corpus.prepare([tmp_path / "odd.txt"], tmp_path / "odd", str(tmp_path / "one"))
    (tmp_path / "list.json").write_text('[{"text": "no tokenizer"}]')
    with pytest.raises(ValueError, match="tokenizer .*list.json: not a tokenizers JSON"):
        vocab.find(str(tmp_path / "list.json"))


@pytest.mark.parametrize("tokenizer", ["char", "byte", "bpe"])
def test_any_number_of_processes_gives_the_same_files(tmp_path, small_pieces, tokenizer):
    inputs = [tmp_path / "a.txt", store(tmp_path / "b.jsonl", rows_of(100)), store(tmp_path / "c.parquet", rows_of(99))]
    inputs[0].write_text(prose(2000), encoding="utf-8")
    (tmp_path / "bpe.json").write_text(BPE["json"])
    name = str(tmp_path / "bpe.json") if tokenizer == "bpe" else tokenizer
    for processes in (1, 3):
        corpus.prepare(inputs, tmp_path / str(processes), name, processes=processes)
    for file in ("train.bin", "val.bin", "meta.json"):
        assert (tmp_path / "1" / file).read_bytes() == (tmp_path / "3" / file).read_bytes()


def test_the_characters_are_those_of_nanogpt(tmp_path):
    """Its prepare.py: sorted(set(text)), and the text cut at 90% of its characters."""
    raw = (ROOT / "core" / "config.py").read_text()
    (tmp_path / "a.txt").write_text(raw)
    corpus.prepare([tmp_path / "a.txt"], tmp_path / "out", "char")
    chars = sorted(set(raw))
    assert bins.Dataset(tmp_path / "out").tokenizer == {"kind": "char", "chars": chars}
    assert read(tmp_path / "out")["train"] == [chars.index(c) for c in raw[: int(len(raw) * 0.9)]]


# -----------------------------------------------------------------------------
# what can be wrong


def line(value) -> bytes:
    return json.dumps(value).encode() + b"\n"


def tarred(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            about = tarfile.TarInfo(name)
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))
    return out.getvalue()


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(
    "name, raw, told",
    [
        ("a.txt", b"abc\xff", "a.txt is not UTF-8 at byte 3 .iconv -f latin1"),
        ("a.txt", "\u4e2d".encode() * 20 + b"\xff", "at byte 60 .what stands before it is: iconv -c -f utf-8 -t utf-8 leaves"),
        ("a.txt", b"\xef\xbb\xbfab\xff", "a.txt is not UTF-8 at byte 5"),
        ("a.txt", b"\xff\xfea\x00b\x00", r"a.txt is not UTF-8 at byte 0 \(UTF-16"),
        ("a.txt", "so it goes".encode("utf-16-le"), r"a.txt is no text: zero at byte 1 \(UTF-16"),
        ("train.bin", np.arange(99, dtype="<u2").tobytes(), "train.bin is no text: zero at byte 0"),
        ("a.tar", tarred({"a.txt": b"text " * 9000}), r"a.tar is no text: .*\(it is packed: tar -xf unpacks it\)"),
        ("a.tar", tarred({"a.txt": b"\xff" * 9000}), r"a.tar is not UTF-8 .*\(it is packed: tar -xf unpacks it\)"),
        ("a.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", r"a.png is not UTF-8 at byte 0 \(.*no text: name those wanted"),
        ("a.jsonl", gzip.compress(line({"text": "a"}), mtime=0), r"a.jsonl is not UTF-8 at byte 1 \(it is packed: gzip -d"),
        ("a.txt.xz", lzma.compress(b"text"), r"a.txt.xz is not UTF-8 at byte 0 \(it is packed: xz -d unpacks it\)"),
        ("a.jsonl", line({"text": "é"}) * 3 + b'{"text": "\xff"}', "a.jsonl is not UTF-8 at byte 67"),
        ("a.jsonl", line({"text": "a"}) * 2 + b"{", "a.jsonl at byte 28"),
        ("a.jsonl", line({"text": "a"}) * 2 + line(3), "a.jsonl at byte 28: an object"),
        ("a.json", line([{"text": "a"}]), r"a.json at byte 0: an object a line is wanted, .*\(jq -c '.\[\]'"),
        ("a.jsonl", line({"text": "a"}) * 2 + line({"text": None}), "a.jsonl at byte 28: text is wanted"),
        ("a.jsonl", line({"text": "a"}) * 2 + line({"body": 1, "n": 2}), "text is wanted in 'text', got None"),
        ("a.parquet", b"PAR1 nothing", "a.parquet"),
    ],
)
def test_bad_files(tmp_path, name, raw, told, processes):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(ValueError, match=told):
        corpus.prepare([tmp_path / name], tmp_path / "out", "byte", processes=processes)
    assert os.listdir(tmp_path) == [name]


def test_bad_rows_of_parquet(tmp_path):
    for values, told in (([1, 2], "row 1"), (["a", None], "row 2")):
        pq.write_table(pa.table({"text": values}), tmp_path / "a.parquet")
        with pytest.raises(ValueError, match=told):
            corpus.prepare([tmp_path / "a.parquet"], tmp_path / "out", "byte")
    pq.write_table(pa.table({"a": ["x"], "b": ["y"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="no column 'text'.*'a', 'b'"):
        corpus.prepare([tmp_path / "a.parquet"], tmp_path / "out", "byte", column="text")
    for names, told in ((["text", "text"], "the column 'text' 2 times"), (["text", "b"], "a.parquet: no text in it")):
        pq.write_table(pa.Table.from_arrays([pa.array([], pa.string())] * 2, names=names), tmp_path / "a.parquet")
        with pytest.raises(ValueError, match=told):
            corpus.prepare([tmp_path / "a.parquet"], tmp_path / "out", "char", column="text")


def test_without_dev_shm_one_process_works(tmp_path, monkeypatch, capsys):
    (tmp_path / "a.txt").write_text("1 2 3\n" * 300)

    def lock():
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(multiprocessing, "Lock", lock)
    monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", lock)
    corpus.prepare([tmp_path / "a.txt"], tmp_path / "out", "byte", processes=2)
    assert bins.Dataset(tmp_path / "out").count["train"] == 1620
    assert capsys.readouterr().err.startswith("note: one process works")


def test_a_bom_and_half_a_surrogate_pair_are_taken(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfabcdefghijkl")
    (tmp_path / "b.jsonl").write_bytes(b"\xef\xbb\xbf" + line({"text": "a\ud83d"}) * 9)
    for name in ("a.txt", "b.jsonl"):
        corpus.prepare([tmp_path / name], tmp_path / "out", "char")
        assert texts(tmp_path / "out")["train"][0] == "a"


@pytest.mark.parametrize(
    "inputs, more, told",
    [
        ([], {}, "--input is missing"),
        (["nix.txt"], {}, "--input nix.txt: no such file"),
        (["empty.txt"], {}, "nothing but empty files"),
        (["one.txt"], {}, "no tokens for train.bin, there is too little text"),
        (["some.txt"], {"val_fraction": 0.0}, "--val_fraction must lie between 0 and 1, got 0.0"),
        (["some.txt"], {"val_fraction": 1.0}, "--val_fraction"),
        (["some.txt"], {"tokenizer": "no/such.json"}, "tokenizer no/such.json: no such file"),
        (["some.txt"], {"tokenizer": "some.txt"}, "merge"),
        (["some.txt"], {"out": ""}, "--out is missing"),
    ],
)
def test_bad_options(tmp_path, monkeypatch, inputs, more, told):
    monkeypatch.chdir(tmp_path)
    for name, content in {"empty.txt": "", "one.txt": "a", "some.txt": "some text\n" * 20}.items():
        Path(name).write_text(content)
    options = text.Options(input=inputs, out="out")
    for key, value in more.items():
        setattr(options, key, value)
    with pytest.raises(ValueError, match=told):
        text.main(options)


# -----------------------------------------------------------------------------
# the scripts


def test_text_by_its_command_line(tmp_path):
    """From any folder, with a space in a name; the data set is then there for train.py."""
    (tmp_path / "my book.txt").write_text(prose(500), encoding="utf-8")
    done = run(ROOT / "data/text/prepare.py", "--input", "my book.txt", "--out", "data/book", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "next: python train.py --dataset=book\n" in done.stdout
    assert bins.open_dataset("book", tmp_path / "data").split("val", 8).n > 8
    done = run("data/text/prepare.py", "--input", tmp_path / "nix", "--out", tmp_path / "x", "--tokenizer", "byte")
    assert done.returncode == 2
    assert done.stderr == f"error: --input {tmp_path}/nix: no such file, or a folder without files\n"
    assert not (tmp_path / "x").exists()


def test_the_standard_library_is_a_corpus(tmp_path):
    done = run(ROOT / "data/python_stdlib/prepare.py", "--megabytes", 0.3, "--out", tmp_path / "a", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    python_stdlib.main(python_stdlib.Options(megabytes=0.3, out=str(tmp_path / "b")))
    found = texts(tmp_path / "a")
    assert found == texts(tmp_path / "b")
    assert "import " in found["train"] and 0.3e6 <= len(found["train"] + found["val"]) < 0.8e6
    assert bins.Dataset(tmp_path / "a").vocab_size <= 100


def test_shakespeare_from_a_file_and_without_a_network(tmp_path):
    (tmp_path / "t.txt").write_text("First Citizen:\n" * 30)
    shakespeare_char.main(shakespeare_char.Options(input=str(tmp_path / "t.txt"), out=str(tmp_path / "a")))
    assert texts(tmp_path / "a")["train"].startswith("First Citizen")
    done = run("data/shakespeare_char/prepare.py", "--out", tmp_path / "b", https_proxy="http://127.0.0.1:9")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"put the file at {tmp_path}/b/input.txt yourself, or give --input FILE" in done.stderr


def test_a_download_is_checked(tmp_path):
    (tmp_path / "a.txt").write_text("a text")
    url = (tmp_path / "a.txt").as_uri()
    with pytest.raises(ValueError, match=r"is not the file it was \(6 bytes\)"):
        corpus.download(url, tmp_path / "b" / "input.txt", "0" * 64)
    assert not (tmp_path / "b").exists()
    corpus.download(url, tmp_path / "b" / "input.txt", hashlib.sha256(b"a text").hexdigest())
    assert (tmp_path / "b" / "input.txt").read_text() == "a text"


def test_openwebtext_from_the_hub_or_from_files(tmp_path, monkeypatch):
    """A folder of Parquet files stands in for the hub."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    (tmp_path / "hub").mkdir()
    (tmp_path / "t.json").write_text(BPE["json"])
    for part in range(2):
        store(tmp_path / "hub" / f"train-0000{part}.parquet", rows_of(50)[part::2])
    monkeypatch.setattr(openwebtext, "HUB", str(tmp_path / "hub"))
    options = openwebtext.Options(out=str(tmp_path / "a"), tokenizer=str(tmp_path / "t.json"))
    openwebtext.main(options)
    options.input = [tmp_path / "hub" / f"train-0000{part}.parquet" for part in range(2)]
    options.out = str(tmp_path / "b")
    openwebtext.main(options)
    assert read(tmp_path / "a") == read(tmp_path / "b")
    assert texts(tmp_path / "a")["val"].count("<|endoftext|>") == 1  # 0.0005 of it, and a whole row
    options.input = []
    monkeypatch.setattr(openwebtext, "HUB", "nobody/nothing")
    with pytest.raises(ValueError, match="cannot get nobody/nothing from the hub .*or give --input FILES"):
        openwebtext.main(options)
    monkeypatch.setattr(openwebtext.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install datasets, or give --input FILES"):
        openwebtext.main(options)


def test_streams_align(tmp_path, small_pieces):
    raw = prose(1000).replace("\r\n", "\n") + "To be, or 2\n"
    (tmp_path / "a.txt").write_text(raw, encoding="utf-8")
    streams.main(streams.Options(input=[tmp_path / "a.txt"], out=str(tmp_path / "s"), val_fraction=0.2))
    found = {name: texts(tmp_path / f"s_{name}") for name in ("chars", "case", "class")}
    whole = {name: "".join(splits.values()) for name, splits in found.items()}
    assert whole["chars"] == raw
    assert whole["case"].endswith("Ul-ll--ll---") and whole["class"].endswith("aa aa. aa 0\n")
    for char, case, kind in zip(*whole.values(), strict=True):
        assert case == ("U" if char.isupper() else "l" if char.islower() else "-")
        assert (kind in " \n") == char.isspace() and (kind == "0") == char.isnumeric()
    for name in ("case", "class"):
        assert [len(t) for t in found[name].values()] == [len(t) for t in found["chars"].values()]
    assert [bins.Dataset(tmp_path / f"s_{n}").vocab_size for n in found] == [len(set(raw)), 3, 6]
    again = streams.Options(input=[tmp_path], out=str(tmp_path / "s"), val_fraction=0.2)
    streams.main(again)  # beside what was written before: that is no input
    assert {name: texts(tmp_path / f"s_{name}") for name in found} == found


def test_lists_of_paths_are_not_taken_apart():
    assert config.parse(text.Options, ["--input", "a b.txt", "c,d.txt"]).input == [Path("a b.txt"), Path("c,d.txt")]


def test_the_tools_start_without_torch():
    script = "import sys, data.text.prepare; assert not {'torch', 'pyarrow', 'tiktoken', 'tokenizers'} & {*sys.modules}"
    assert run("-c", script).returncode == 0


@pytest.mark.full
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
def test_memory_is_bounded(tmp_path, tokenizer):
    """60 MB of text by two workers, all three processes together."""
    (tmp_path / "a.txt").write_text(prose(20_000) * 300, encoding="utf-8")
    (tmp_path / "bpe.json").write_text(BPE["json"])
    name = tmp_path / "bpe.json" if tokenizer == "bpe" else tokenizer
    script = (
        "import re, resource; from data import corpus;"
        f"corpus.prepare([{str(tmp_path / 'a.txt')!r}], {str(tmp_path / 'out')!r}, {str(name)!r}, processes=2);"
        # not ru_maxrss: it outlives exec
        "own = int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read()).group(1));"
        "print(own + 2 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    done = run("-c", script)
    assert done.returncode == 0, done.stderr
    assert 30e3 < int(done.stdout.split()[-1]) < 300e3  # kB


def killed(piece):
    os._exit(9)


killed.start = lambda: None


def test_a_killed_worker_is_one_line(tmp_path, capsys):
    (tmp_path / "t.txt").write_text("a b\n" * 9)
    with pytest.raises(SystemExit) as e, exits.guard():
        list(corpus.spread(killed, corpus.pieces([tmp_path / "t.txt"], 0.5, ""), 2))
    err = capsys.readouterr().err
    assert e.value.code == exits.BUG and err.startswith("error: a worker process was killed") and err.count("\n") == 1


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.parquet"])
def test_an_input_that_goes_before_its_turn_comes_is_named(tmp_path, name):
    """A folder that another program tidies meanwhile: that was a traceback."""
    (tmp_path / name).write_text("text\nab\n")
    paths = corpus.files([tmp_path], [tmp_path / "out"])
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError) as e:
        list(corpus.pieces(paths, 0.1, ""))
    assert exits.verdict(e.value)[0] == 2 and f"{name} was moved or removed" in exits.verdict(e.value)[1]


def test_a_folder_in_place_of_the_file_of_topics(tmp_path, monkeypatch):
    from data.python_topics import prepare as topics

    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"^\. is a folder, and a file is wanted there"):
        topics.main(topics.Options(out=".", each=2))


@pytest.mark.parametrize("name, file", [("python_topics --each=99", "snippets.csv"), ("qa_toy --train=99", "scores.json")])
def test_a_full_disk_leaves_what_was_there(tmp_path, name, file):
    (tmp_path / file).write_text("old")
    out = tmp_path / file if file.endswith(".csv") else tmp_path
    limited = f'ulimit -f 4; exec "{sys.executable}" data/{name.replace(" ", "/prepare.py ")} --out "{out}"'
    done = subprocess.run(["bash", "-c", limited], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 74 and done.stderr == f"error: File too large: {tmp_path / file}\n"
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [(file, "old")]
