"""data/qa.py: what is read, what is refused and how it is named, the template, the cuts, and the batches."""

import errno
import gc
import io
import json
import os
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest

from data import qa


def encode(text: str) -> list[int]:
    return list(text.encode())


def template(**kw) -> qa.Template:
    return qa.Template(encode, [], [0], **{"max_length": 1024, "max_prompt_length": 512, **kw})


def row(q="Why?", a="So.", s=1.0, **kw) -> dict:
    return {"Question": q, "Answer": a, "Score": s, **kw}


def write(path: Path, data) -> Path:
    text = "".join(json.dumps(r) + "\n" for r in data) if path.suffix == ".jsonl" else json.dumps(data)
    path.write_text(text)
    return path


# -----------------------------------------------------------------------------
# reading


def test_json_jsonl_and_folder_hold_the_same(tmp_path):
    parts = {"train": [row("a"), row("b", s=2)], "val": [row("c")], "test": [row("d", s=-1)]}
    one = write(tmp_path / "qa.json", parts)
    lines = write(tmp_path / "qa.jsonl", [{**r, "split": s} for s, rows in parts.items() for r in rows])
    folder = tmp_path / "qa"
    folder.mkdir()
    write(folder / "train.json", parts["train"])
    write(folder / "val.json", {"val": parts["val"]})
    write(folder / "test.jsonl", parts["test"])
    loaded = [qa.load(qa.records(p), template(), False) for p in (one, lines, folder)]
    for other in loaded[1:]:
        assert set(other) == {"train", "val", "test"}
        for split in other:
            assert np.array_equal(other[split].tokens, loaded[0][split].tokens)
            assert np.array_equal(other[split].labels, loaded[0][split].labels)
    assert loaded[0]["test"].labels.tolist() == [-1.0] and loaded[0]["train"].labels.tolist() == [1.0, 2.0]


def test_a_line_whose_split_is_null_belongs_to_train_as_one_without(tmp_path):
    lines = [row("a") | {"split": "train"}, row("b") | {"split": None}, row("c"), row("d") | {"split": "test"}]
    path = write(tmp_path / "qa.jsonl", lines)
    assert qa.check(path)[1] == {"train": 3, "test": 1}
    assert [split for split, _ in qa.records(path)] == ["train", "train", "train", "test"]
    (tmp_path / "qa").mkdir()
    write(tmp_path / "qa" / "train.jsonl", lines[:1])
    write(tmp_path / "qa" / "test.jsonl", lines[1:])
    assert qa.check(tmp_path / "qa")[1] == {"train": 1, "test": 3}  # the file's, where a line has none


def test_bom_is_accepted_and_other_encodings_are_named_by_byte(tmp_path):
    good = json.dumps({"train": [row("é", "ü")]}, ensure_ascii=False)
    (tmp_path / "bom.json").write_bytes(b"\xef\xbb\xbf" + good.encode())
    assert qa.check(tmp_path / "bom.json")[1] == {"train": 1}
    (tmp_path / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(row()).encode() + b"\n\n")
    assert qa.check(tmp_path / "bom.jsonl")[1] == {"train": 1}
    for name, raw, at in [
        ("latin.json", good.encode("latin-1"), good.index("é")),
        ("utf16.json", good.encode("utf-16"), 0),
        ("latin.jsonl", json.dumps(row()).encode() + b"\n" + b'{"Question": "\xe9"}', len(json.dumps(row())) + 15),
    ]:
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(ValueError, match=rf"{name}.* is not UTF-8: byte .. at offset {at}$"):
            qa.check(tmp_path / name)


@pytest.mark.parametrize(
    "score, said",
    [
        ("NaN", "is nan, not finite"),
        ("Infinity", "is inf, not finite"),
        ("1e400", "is inf, not finite"),
        ("1" + "0" * 400, "is not finite"),
        ("null", "is null, not a number"),
        ('"5"', 'is "5", not a number'),
        ("true", "is true, not a number"),
        ("[1]", r"is \[1\], not a number"),
    ],
)
def test_a_bad_score_is_named_by_split_index_and_field(tmp_path, score, said):
    one, bad = ('{"Question": "q", "Answer": "a", "Score": ' + s + "}" for s in ("1", score))
    (tmp_path / "qa.json").write_text(f'{{"train": [{one}, {bad}], "test": [{one}]}}')
    with pytest.raises(ValueError, match=rf"1 of 3 rows cannot be used \(1 in train\): train\[1\].Score {said}$"):
        qa.check(tmp_path / "qa.json")


def test_no_file_is_left_open(tmp_path):
    file = write(tmp_path / "qa.json", {"train": [row()] * 3, "test": [row()]})
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        data = qa.load(qa.records(file), template(), False)
        gc.collect()
    assert not [w for w in found if w.category is ResourceWarning]
    assert len(data["train"].texts(np.arange(3))) == 3


def test_pairs_and_scores_do_not_mix_and_csv_is_named(tmp_path):
    mixed = [row(), {**row(), "Accepted_Answer": "b"}, {**row(), "Accepted_Answer": None}]
    file = write(tmp_path / "qa.json", {"train": mixed, "test": [row()]})
    with pytest.raises(ValueError, match=r"1 of 4 rows .* train\[1\].Accepted_Answer makes a pair, and the first row is"):
        qa.check(file)
    (tmp_path / "qa.csv").write_text("Question,Answer,Score\n")
    with pytest.raises(ValueError, match="qa.csv: questions and answers are read from JSON or JSONL"):
        qa.check(tmp_path / "qa.csv")
    with pytest.raises(ValueError, match="3 without a split.*write {"):
        qa.check(write(tmp_path / "list.json", [row()] * 3), needed=("train",))


def test_each_bad_row_is_counted_and_the_first_ones_shown(tmp_path):
    bad = [{"Question": "q", "Answer": "a"}, {"question": "q", "Answer": 3, "Score": 1}, 7, row(None)]
    file = write(tmp_path / "qa.json", {"train": [row()] * 3 + bad, "test": [{"Answer": "a", "Score": 1}] * 20})
    with pytest.raises(ValueError) as e:
        qa.check(file)
    text = str(e.value)
    assert "24 of 27 rows cannot be used (4 in train, 20 in test)" in text and "\n" not in text
    assert "train[3].Score is missing" in text
    assert "train[4].Question is missing: rename 'question'" in text and "train[4].Answer is 3, not text" in text
    assert "train[5] is 7, not an object" in text and "train[6].Question is null, not text" in text
    assert "test[0].Question is missing" in text and text.endswith("; ...")
    chosen = [{"prompt": "q", "chosen": "a", "rejected": "b"}]
    with pytest.raises(ValueError, match=r"train\[0\] has 'prompt', 'chosen', 'rejected'; wanted are .*Accepted_Answer.*docs/reward.md"):
        qa.check(write(tmp_path / "other.json", {"train": chosen, "test": chosen}))


def test_half_a_surrogate_pair_is_replaced(tmp_path):
    for name, data in (("a.json", {"train": [row("\ud800?")]}), ("a.jsonl", [row("\ud800?")])):
        ((_, found),) = qa.records(write(tmp_path / name, data))
        assert found == row("\ufffd?")


def test_pairs_are_checked_as_pairs(tmp_path):
    pair = {"Question": "q", "Accepted_Answer": "good", "Answer": "bad"}
    assert qa.check(write(tmp_path / "a.json", {"train": [pair]}))[0]
    with pytest.raises(ValueError, match=r"train\[1\].Accepted_Answer is missing"):
        qa.check(write(tmp_path / "b.json", {"train": [pair, row()]}))
    with pytest.raises(ValueError, match=r"train\[0\].Score is missing"):
        qa.check(write(tmp_path / "c.json", {"train": [{**pair, "Accepted_Score": 3}]}))
    empty = {**row(), "Accepted_Answer": None}  # as tables write it
    for rows in ([empty, row()], [row(), empty]):
        assert not qa.check(write(tmp_path / "d.json", {"train": rows}))[0]


def test_a_score_may_be_missing_only_where_rows_are_to_be_scored(tmp_path):
    file = write(tmp_path / "qa.json", [{"Question": "q", "Answer": "a"}, row(s=None), row()])
    assert qa.check(file, scored=False) == (False, {None: 3})
    with pytest.raises(ValueError, match="2 of 3 rows"):
        qa.check(file)
    with pytest.raises(ValueError, match="not a number"):
        qa.check(write(tmp_path / "b.json", [row(s="5")]), scored=False)


@pytest.mark.parametrize(
    "name, text, said",
    [
        ("a.json", '{"train": [', "is not JSON: "),
        ("b.json", '{"Question": "q"}\n{"Question": "r"}', r"Extra data.*one a line, in a .jsonl"),
        ("c.jsonl", '{"Question": "q"', "c.jsonl line 1 is not JSON"),
        ("d.json", '"text"', "must hold .*got str"),
        ("e.json", '{"train": 3}', "train must be a list of rows, got int"),
        ("f.json", '{"trian": [], "test": []}', "unknown split 'trian', did you mean 'train'"),
        ("g.json", '{"train": [%s]}' % ("9" * 5000), "is not JSON: Exceeds the limit"),
        ("h.json", '{"train": []}', "has no train rows"),
        ("i.json", "[" * 100000, "nested too deeply"),
        ("j.jsonl", '{"split": "dev", "Question": "q"}', "split must be one of train, val, test, got 'dev'"),
        ("m.json", '{"train": [{"Question": "q", "Answer": "a", "Score": 1, "Score": 5}]}', "the key 'Score' twice"),
        ("n.json", '{"train": [1], "test": [], "train": []}', r"n.json has the key 'train' twice in one object"),
        ("o.jsonl", '{\n  "Question": "q"\n}\n', r"line 1 is not JSON: .*: column 2 .*, in a .jsonl, written over several"),
        ("k.jsonl", '{"Question": "q", "Answer": "a", "Score": 1}', r"has no val or test rows \(rows: 1 train\)"),
    ],
)  # fmt: skip
def test_a_malformed_file_is_one_line(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=said) as e:
        qa.check(tmp_path / name, needed=("train", "val|test"))
    assert "\n" not in str(e.value)


def test_a_folder_without_splits_or_with_two_files_for_one_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds none of train.json"):
        qa.check(tmp_path)
    write(tmp_path / "train.json", [row()])
    write(tmp_path / "train.jsonl", [row()])
    with pytest.raises(ValueError, match="both train.json and train.jsonl"):
        qa.check(tmp_path)
    (tmp_path / "train.jsonl").unlink()
    write(tmp_path / "dataset_info.json", [])
    qa.check(tmp_path)
    for name in ("validation.json", "dev.jsonl", "Test.JSON"):  # the test split would be evaluated on in its place
        write(tmp_path / name, [row()])
        with pytest.raises(ValueError, match=f"{name} would not be read: the splits are called train, val, test"):
            qa.check(tmp_path)
        (tmp_path / name).unlink()
    with pytest.raises(ValueError, match="does not exist"):
        qa.check(tmp_path / "no.json")


def test_jsonl_is_read_in_bounded_memory(tmp_path):
    file, text = tmp_path / "big.jsonl", "x" * 2000
    with open(file, "w") as f:
        for i in range(8000):
            f.write(json.dumps(row("q", text, i)) + "\n")
    tracemalloc.start()
    qa.check(file)
    loaded = qa.load(qa.records(file), template(max_length=4096), False)["train"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(loaded) == 8000 and loaded.tokens.nbytes > 60e6
    assert peak < 24e6, peak  # one chunk of rows as Python lists; the whole would be 128 MB
    assert list(tmp_path.iterdir()) == [file]


# -----------------------------------------------------------------------------
# the template


def test_the_template_is_the_documented_one():
    ids, shared = template()("Why?", "So.")
    assert bytes(ids) == b"Question: Why?\nAnswer: So.\0"
    assert bytes(ids[:shared]) == b"Question: Why?\nAnswer:"


def test_an_encoders_sequence_opens_with_its_start():
    ids, _ = qa.Template(encode, [1], [2])("q", "a")
    assert ids[0] == 1 and ids[-1] == 2 and bytes(ids[1:-1]) == b"Question: q\nAnswer: a"


def test_parts_tokenize_as_the_whole_does():
    tokenizers = pytest.importorskip("tokenizers")
    bpe = tokenizers.ByteLevelBPETokenizer()
    texts = ["Question: What is it?\nAnswer: It is what it is, says the answer."] * 3
    bpe.train_from_iterator(texts, vocab_size=300, min_frequency=1)
    made = qa.Template(lambda text: bpe.encode(text).ids, [], [])("What is it?", "It is, says 12.")[0]
    assert made == bpe.encode("Question: What is it?\nAnswer: It is, says 12.").ids


def cut(question: int, answer: int, **kw) -> tuple[str, qa.Template]:
    t = template(**kw)
    ids, shared = t("q" * question, "a" * answer)
    assert bytes(ids[shared:]).lstrip(b" ").strip(b"a\0") == b"" and b"q" not in bytes(ids[shared:])
    return bytes(ids).decode(), t


def test_truncate_promt_cuts_the_question_first_and_the_answer_only_where_it_alone_is_too_long():
    fixed = len("Question:\nAnswer:") + 1  # and EOS
    text, t = cut(50, 20, max_length=100, max_prompt_length=11)  # to max_prompt_length
    assert text == "Question: " + "q" * 10 + "\nAnswer: " + "a" * 20 + "\0" and t.cut["questions cut"] == 1
    text, t = cut(50, 20, max_length=fixed + 21 + 6, max_prompt_length=40)  # further, until the whole fits
    assert text == "Question: " + "q" * 5 + "\nAnswer: " + "a" * 20 + "\0" and t.cut["answers cut"] == 0
    text, t = cut(50, 90, max_length=60, max_prompt_length=40)  # the answer alone is too long
    assert text == "Question:\nAnswer: " + "a" * (60 - fixed - 1) + "\0"
    assert (t.cut["questions cut"], t.cut["answers cut"]) == (1, 1)
    text, t = cut(5, 5, max_length=60, max_prompt_length=40)
    assert len(text) == fixed + 12 and t.report() == "1 texts, 0 questions cut, 0 answers cut"
    text, t = cut(5, 5, max_length=60, max_prompt_length=40, unknown=ord("q"))
    assert t.report() == "1 texts, 0 questions cut, 0 answers cut, 5 <unk>"


def test_without_truncate_promt_the_question_stays_whole_and_the_sequence_is_cut():
    text, t = cut(50, 20, max_length=75, max_prompt_length=11, truncate_promt=False)
    assert text == ("Question: " + "q" * 50 + "\nAnswer: " + "a" * 20)[:75]
    assert t.report() == "1 texts, 1 sequences cut"


def test_a_max_length_below_the_template_is_refused():
    with pytest.raises(ValueError, match="data.max_length is 17, but the template alone takes 18"):
        template(max_length=17)


def test_prepare_train_gives_the_documented_columns():
    rows = [row("q", "a", 3), row("q", "bb", 4)]
    out = qa.prepare_train(rows, template())
    assert out["labels"] == [3.0, 4.0] and bytes(out["input_ids"][1]) == b"Question: q\nAnswer: bb\0"
    assert out["attention_mask"] == [[1] * len(ids) for ids in out["input_ids"]]
    pair = {"Question": "q", "Accepted_Answer": "good", "Answer": "bad"}
    out = qa.prepare_train([pair], template())
    assert bytes(out["input_ids_j"][0]).endswith(b"good\0") and bytes(out["input_ids_k"][0]).endswith(b"bad\0")
    assert len(out["attention_mask_j"][0]) == len(out["input_ids_j"][0])
    assert len(out["attention_mask_k"][0]) == len(out["input_ids_k"][0])
    none = {**row("q", "a", 3), "Accepted_Answer": None}  # as tables put together have it: no pair
    assert qa.prepare_train([none], template()) == qa.prepare_train([row("q", "a", 3)], template())


# -----------------------------------------------------------------------------
# samples and batches


def test_scored_answers_to_one_question_become_ranked_pairs(tmp_path):
    rows = [row("p", "a", 1), row("q", "b", 5), row("p", "c", 3), row("p", "d", 3), row("q", "e", 2), row("r", "f", 9)]
    made = qa.load(qa.records(write(tmp_path / "qa.json", {"train": rows})), template(), True)["train"]
    assert made.pairs and sorted(map(tuple, made.samples)) == [(1, 4), (2, 0), (3, 0)]  # equal scores are no pair
    pair = {"Question": "q", "Accepted_Answer": "good", "Answer": "bad", "Accepted_Score": 2, "Score": 1}
    made = qa.load(qa.records(write(tmp_path / "p.json", {"train": [pair, pair]})), template(), True)["train"]
    assert made.samples.tolist() == [[0, 1], [2, 3]] and made.labels.tolist() == [2, 1, 2, 1]
    assert [bytes(t.tolist())[-6:] for t in made.texts([0, 1])] == [b" good\0", b": bad\0"]


def test_more_pairs_than_memory_holds_are_refused(tmp_path, monkeypatch):
    """A set with one question for all of its answers makes n * (n - 1) / 2 of them."""
    path = write(tmp_path / "qa.json", {"train": [row("Rate this.", "a", i) for i in range(5)] + [row("q", "b", 5)]})
    monkeypatch.setattr(qa, "PAIRS", 10)
    assert len(qa.load(qa.records(path), template(), True)["train"]) == 10
    monkeypatch.setattr(qa, "PAIRS", 9)
    with pytest.raises(ValueError, match="5 to one, make 10 pairs, and 9 is the most: loss mse"):
        qa.load(qa.records(path), template(), True)


def test_an_epoch_holds_each_sample_once_in_batches_of_similar_length():
    lengths = np.random.default_rng(0).integers(10, 500, 1003)
    batches = qa.epoch(lengths, 16, 7, "order", 0)
    assert sorted(np.concatenate(batches)) == list(range(1003)) and sum(len(b) != 16 for b in batches) == 1
    padded = sum(lengths[b].max() * len(b) for b in batches)
    assert padded < 1.05 * lengths.sum()
    assert lengths.max() * 1003 > 1.9 * lengths.sum()  # what one width for all would take
    again, other = qa.epoch(lengths, 16, 7, "order", 0), qa.epoch(lengths, 16, 7, "order", 1)
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(batches, other, strict=True))
    means = [lengths[b].mean() for b in batches]
    assert abs(np.corrcoef(means, range(len(means)))[0, 1]) < 0.3  # short and long ones in no order


def test_a_full_temporary_folder_is_named(monkeypatch):
    """The run's folder was, which has room."""

    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(qa.tempfile, "TemporaryFile", Full)
    monkeypatch.setattr(qa.tempfile, "tempdir", "/small")
    row = {"Question": "a", "Answer": "b", "Score": 1.0}
    with pytest.raises(OSError) as e:
        qa.load([("train", row)], template(), False)
    assert e.value.filename == "/small"


def test_the_sizes_of_a_batch_are_those_of_a_batch():
    """Of all texts, 5 million, they took 15 ms of each step."""
    n = 1_000_000
    data = qa.QA(np.zeros(1, np.int32), np.arange(n + 1) ** 2, np.zeros(n), np.arange(n).reshape(-1, 2))
    tracemalloc.start()
    assert data.sizes([3, 0]).tolist() == [[13, 15], [1, 3]]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1e5 and data.lengths()[:3].tolist() == [3, 7, 11]
