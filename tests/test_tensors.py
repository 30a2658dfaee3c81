"""data/tensors.py and data/build_tensors.py."""

import json
import os
import pickle
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import TensorDataset

from core import exits
from data import build_tensors, encoding, examples, tensors, train_tokenizer, vocab

IDS = torch.tensor([[0, 7, 8, 9, 2], [0, 5, 2, 1, 1], [0, 6, 7, 2, 1]])
REAL = IDS != 1


def store(path, table):
    torch.save(table, path)
    return path


def as_dict(**other):
    return {"input_ids": IDS, "attention_mask": REAL, **other}


@pytest.mark.parametrize("layout", ["dict", "tensordataset"])
def test_both_layouts_read_alike(tmp_path, layout):
    labels = torch.tensor([1, 0, 1])
    data = as_dict(labels=labels) if layout == "dict" else TensorDataset(IDS, ~REAL, labels)
    rows = tensors.Rows(store(tmp_path / "a.pt", data), pad=1)
    ids, lengths = rows.rows([2, 0])
    assert ids.tolist() == [0, 6, 7, 2, 0, 7, 8, 9, 2] and lengths.tolist() == [4, 5]
    assert (len(rows), rows.tokens, rows.longest, rows.cut) == (3, 12, 5, 0)
    assert rows.labels.tolist() == [1, 0, 1]
    data = as_dict() if layout == "dict" else TensorDataset(IDS, ~REAL)
    bare = tensors.Rows(store(tmp_path / "bare.pt", data), pad=1)  # what pretraining reads
    assert bare.labels is None and bare.counts()[:2] == rows.counts()[:2] and bare.counts() != rows.counts()


@pytest.mark.parametrize("layout", ["dict", "tensordataset"])
def test_what_is_saved_reads_back(tmp_path, layout):
    ids, lengths = np.array([0, 5, 2, 0, 2, 0, 9, 8, 2], np.uint16), np.array([3, 2, 4])
    tensors.save(tmp_path / "a.pt", ids, lengths, 1, np.array([0, 2, 1]), ["a", "b", "c"], layout=layout)
    rows = tensors.Rows(tmp_path / "a.pt", pad=1)
    assert rows.rows([0, 1, 2])[0].tolist() == ids.tolist() and rows.length.tolist() == [3, 2, 4]
    assert rows.labels.tolist() == [0, 2, 1]
    assert rows.names == (["a", "b", "c"] if layout == "dict" else None)


def test_long_examples_are_cut_counted_and_keep_their_end(tmp_path):
    rows = tensors.Rows(store(tmp_path / "a.pt", as_dict()), max_size=4, end=2)
    assert rows.rows([0])[0].tolist() == [0, 7, 8, 2] and rows.rows([2])[0].tolist() == [0, 6, 7, 2]
    assert (rows.cut, rows.lost, rows.longest, rows.length.tolist()) == (1, 1, 5, [4, 3, 4])
    assert tensors.Rows(tmp_path / "a.pt", max_size=4).rows([0])[0].tolist() == [0, 7, 8, 9]


BAD = [
    (as_dict(attention_mask=~REAL), r"row 0, place 0 .* says padding; 15 places contradict; all of them"),
    (TensorDataset(IDS, REAL), r"row 0, place 0 .*True is padding in a TensorDataset"),
    (as_dict(attention_mask=torch.ones_like(REAL)), r"row 1, place 3 holds the id 1 .* says a real token; 3 places"),
    (as_dict(attention_mask=REAL[:, :4]), "they must be equal"),
    (as_dict(attention_mask=REAL.long() * 2), "attention_mask must be bool"),
    (as_dict(input_ids=IDS.float()), "input_ids must be long, got torch.float32"),
    (as_dict(input_ids=IDS[0]), "input_ids must be a tensor, a row an example"),
    ({"input_ids": IDS}, "attention_mask must be a tensor"),
    (as_dict(labels=torch.tensor([1, 0])), "labels must be a tensor, a number an example"),
    (as_dict(labels=torch.tensor([1.0, 0.0, 0.0])), "labels must be long"),
    (as_dict(label_names=[1]), "label_names must be a list of text"),
    (TensorDataset(IDS), "TensorDataset of input_ids, mask"),
    (torch.zeros(3), "got Tensor"),
    (as_dict(input_ids=IDS.where(IDS != 9, 9 + 2**32)), "a.pt row 0, place 3: id 4294967305, ids lie from 0 to 2147483647"),
    (as_dict(input_ids=IDS[:0], attention_mask=REAL[:0]), "not empty"),
]


@pytest.mark.parametrize(("data", "message"), BAD)
def test_what_is_wrong_is_named(tmp_path, data, message):
    with pytest.raises(ValueError, match=message):
        tensors.Rows(store(tmp_path / "a.pt", data), pad=1)


def test_a_row_without_tokens_is_refused(tmp_path):
    ids = torch.tensor([[0, 2], [1, 1]])
    with pytest.raises(ValueError, match="row 1 has no real token"):
        tensors.Rows(store(tmp_path / "a.pt", {"input_ids": ids, "attention_mask": ids != 1}), pad=1)


def test_a_mask_of_zeros_and_ones_is_a_mask(tmp_path):
    rows = tensors.Rows(store(tmp_path / "a.pt", as_dict(attention_mask=REAL.long())), pad=1)
    assert rows.length.tolist() == [5, 3, 4]


def test_ids_and_labels_out_of_range_name_their_row(tmp_path):
    rows = tensors.Rows(store(tmp_path / "a.pt", as_dict(labels=torch.tensor([0, 3, 1]))))
    rows.check_ids(10)
    rows.check_labels(4)
    with pytest.raises(ValueError, match="row 0, place 3: id 9, but the vocabulary has 9"):
        rows.check_ids(9)
    with pytest.raises(ValueError, match="row 1 has the label 3, but num_labels is 2 .*so have 1 rows"):
        rows.check_labels(2)
    with pytest.raises(ValueError, match="no labels"):
        tensors.Rows(store(tmp_path / "b.pt", as_dict())).check_labels(2)


def test_another_tokenizer_is_refused(tmp_path):
    tensors.save(tmp_path / "a.pt", np.array([0, 2]), np.array([2]), 1, tokenizer="aaaa")
    rows = tensors.Rows(tmp_path / "a.pt")
    rows.check_tokenizer("aaaa", "the encoder")
    with pytest.raises(ValueError, match="the tokenizer aaaa, the encoder has bbbb"):
        rows.check_tokenizer("bbbb", "the encoder")


class Evil:
    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.mark.parametrize("where", ["whole file", "in a dict", "in a TensorDataset", "plain pickle"])
def test_a_malicious_file_is_refused_and_executes_nothing(tmp_path, monkeypatch, where):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # may not defeat it
    path = tmp_path / "a.pt"
    if where == "plain pickle":
        path.write_bytes(pickle.dumps(Evil()))
    else:
        data = TensorDataset(IDS, ~REAL)
        data.extra = Evil()
        torch.save({"whole file": Evil(), "in a dict": as_dict(x=Evil())}.get(where, data), path)
    with pytest.raises(ValueError, match="code|damaged"):
        tensors.Rows(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut"])
def test_a_damaged_file_is_refused(tmp_path, content):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        tensors.Rows(tmp_path / "a.pt")
    with pytest.raises(ValueError, match="does not exist"):
        tensors.Rows(tmp_path / "b.pt")
    for name, told in (("a", "a is not a file that torch wrote$"), ("a.csv", "is text: data/build_tensors.py makes")):
        (tmp_path / name).write_text("text,label\na,1\n")  # it holds no code either
        with pytest.raises(ValueError, match=told):
            tensors.Rows(tmp_path / name)


# -----------------------------------------------------------------------------
# build_tensors


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tok") / "tokenizer.json"
    texts = [["good bad film plot one two three four five six seven", *map(str, range(40))] * 9]
    train_tokenizer.build("wordpiece", 200, lambda: texts).save(str(path))
    return str(path)


def build(tmp_path, tokenizer, **options):
    out = tmp_path / "out"
    build_tensors.main(build_tensors.Options(tokenizer=tokenizer, out_dir=str(out), **options))
    return {p.stem: tensors.Rows(p, pad=1) for p in out.glob("*.pt")}


def text_of(rows, i, tokenizer):
    return encoding.load_tokenizer(tokenizer).decode(rows.row(i).tolist())


def write_csv(path, n=40):
    lines = [f'"a {"good" if i % 4 else "bad"} film, {i}",{"positive" if i % 4 else "negative"}' for i in range(n)]
    path.write_text("\n".join(["\ufefftext,label", *lines, ""]), encoding="utf-8")
    return str(path)


def test_csv_to_splits_with_labels_by_name(tmp_path, tokenizer):
    source = write_csv(tmp_path / "a.csv")
    found = build(tmp_path, tokenizer, input=source, label_column="label")
    assert {k: len(v) for k, v in found.items()} == {"train": 32, "val": 4, "test": 4}
    for rows in found.values():
        assert rows.names == ["negative", "positive"]
        for i in range(len(rows)):
            assert ("good" in text_of(rows, i, tokenizer)) == bool(rows.labels[i])
    assert json.loads((tmp_path / "out/labels.json").read_text()) == {"negative": 0, "positive": 1}
    (tmp_path / "b.csv").write_text((tmp_path / "a.csv").read_text().replace(",label", ";label").replace('",', '";'))
    with pytest.raises(ValueError, match="--max_length must be at least 3"):
        build(tmp_path, tokenizer, input=source, max_length=2)
    again = build(tmp_path, tokenizer, input=str(tmp_path / "b.csv"), label_column="label")  # semicolons
    assert all((again[k].labels == found[k].labels).all() and (again[k].ids == found[k].ids).all() for k in found)


def test_the_index_of_pandas_is_no_text(tmp_path, tokenizer):
    """It is a column without a name, and was taken for the text."""
    (tmp_path / "a.csv").write_text(",words,label\n" + "".join(f"{i},film plot,a\n" for i in range(40)))
    found = build(tmp_path, tokenizer, input=str(tmp_path / "a.csv"), label_column="label", splits={"train": 1.0})
    assert text_of(found["train"], 7, tokenizer) == "film plot"


def test_a_label_for_each_row_is_told_soon(tmp_path, tokenizer, capsys):
    """The wrong column: each row's label was looked for among all of them, at a million rows for hours."""
    lines = [f"film {i},id{i}" for i in range(50_000)]
    (tmp_path / "a.csv").write_text("\n".join(["text,label", *lines]))
    began = time.monotonic()
    found = build(tmp_path, tokenizer, input=str(tmp_path / "a.csv"), label_column="label")
    assert time.monotonic() - began < 8
    assert "50,000 labels for 50,000 examples" in capsys.readouterr().out
    assert sorted(np.concatenate([rows.labels for rows in found.values()])) == list(range(50_000))


def test_splits_of_two_calls_never_stand_side_by_side(tmp_path, tokenizer, monkeypatch):
    """A new val.pt beside an old train.pt holds what that one trains on."""
    write_csv(tmp_path / "a.csv")
    flags = {"input": str(tmp_path / "a.csv"), "label_column": "label"}
    build(tmp_path, tokenizer, **flags)
    files = lambda: {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}  # noqa: E731
    old, save = files(), tensors.save

    def full(path, *args):
        if path.name == "train.pt":
            raise OSError(28, "disk full")
        save(path, *args)

    monkeypatch.setattr(tensors, "save", full)
    with pytest.raises(OSError, match="disk full"):
        build(tmp_path, tokenizer, **flags, seed=1)
    assert files() == old


def test_splits_hold_each_example_once_whatever_their_shares(tmp_path, tokenizer):
    source = write_csv(tmp_path / "a.csv")
    few = build(tmp_path / "1", tokenizer, input=source, splits={"test": 0.5, "train": 0.1})
    many = build(tmp_path / "2", tokenizer, input=source, splits={"test": 0.5, "train": 0.5})
    other = build(tmp_path / "3", tokenizer, input=source, splits={"test": 0.5, "train": 0.5}, seed=1)
    texts = {name: [tuple(rows.row(i)) for i in range(len(rows))] for name, rows in many.items()}
    assert len({*texts["test"], *texts["train"]}) == 40 and few["train"].labels is None
    assert [tuple(few["test"].row(i)) for i in range(20)] == texts["test"]
    assert {tuple(few["train"].row(i)) for i in range(4)} < {*texts["train"]}
    assert [tuple(other["test"].row(i)) for i in range(20)] != texts["test"]


def test_all_formats_give_the_same_file(tmp_path, tokenizer):
    texts, labels = ["one two", "three", "four five six"], ["b", "a", "b"]
    rows = [{"text": t, "label": y} for t, y in zip(texts, labels, strict=True)]
    (tmp_path / "a.tsv").write_text("text\tlabel\n" + "".join(f"{r['text']}\t{r['label']}\n" for r in rows))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "a.parquet")
    encoded = [{"input_ids": encoding.load_tokenizer(tokenizer).encode(t).ids + [1], "label": y, "attention_mask": None}
               for t, y in zip(texts, labels, strict=True)]  # fmt: skip
    for row in encoded:
        row["attention_mask"] = [1] * (len(row["input_ids"]) - 1) + [0]
    for name, content in (("a.arrow", table), ("b.arrow", pa.Table.from_pylist(encoded))):
        with pa.ipc.new_stream(str(tmp_path / name), content.schema) as f:
            f.write_table(content)
    results = {}
    for name in ("a.tsv", "a.jsonl", "a.parquet", "a.arrow", "b.arrow"):
        found = build(tmp_path / name.replace(".", "_"), tokenizer, input=str(tmp_path / name), label_column="label",
                      splits={"all": 1.0})["all"]  # fmt: skip
        results[name] = (found.rows([0, 1, 2])[0].tolist(), found.labels.tolist())
    assert len({str(r) for r in results.values()}) == 1
    assert results["a.tsv"][1] == [1, 0, 1]
    (tmp_path / "a.txt").write_text("\n".join(texts) + "\n\n")
    plain = build(tmp_path / "txt", tokenizer, input=str(tmp_path / "a.txt"), splits={"all": 1.0})["all"]
    assert plain.rows([0, 1, 2])[0].tolist() == results["a.tsv"][0] and plain.labels is None


def test_ids_of_another_tokenizer_are_refused(tmp_path, tokenizer):
    """Arrow files of build_pretrain_data.py tell which tokenizer made them: the .pt files would name another one."""
    for made, place in ((vocab.load(encoding.describe(tokenizer)).hash, "own"), ("0123456789abcdef", "other")):
        table = pa.table({"input_ids": [[0, 5, 2], [0, 6, 2]]}).replace_schema_metadata({"tokenizer": made})
        (tmp_path / place).mkdir()
        with pa.ipc.new_stream(str(tmp_path / place / "a.arrow"), table.schema) as f:
            f.write_table(table)
    assert len(build(tmp_path, tokenizer, input=str(tmp_path / "own"), splits={"all": 1.0})["all"]) == 2
    for source in (tmp_path / "other", tmp_path / "other/a.arrow"):
        with pytest.raises(ValueError, match="a.arrow was made with the tokenizer 0123456789abcdef, --tokenizer .* is"):
            build(tmp_path / "2", tokenizer, input=str(source), splits={"all": 1.0})


def test_a_second_file_takes_the_first_ones_numbers(tmp_path, tokenizer):
    (tmp_path / "a.csv").write_text("text,label\none,b\ntwo,c\nthree,a\n")
    (tmp_path / "b.csv").write_text("text,label\none,c\n")
    build(tmp_path, tokenizer, input=str(tmp_path / "a.csv"), label_column="label", splits={"train": 1.0})
    labels = str(tmp_path / "out/labels.json")
    b = {"input": str(tmp_path / "b.csv"), "label_column": "label", "splits": {"train": 1.0}}
    assert build(tmp_path / "b", tokenizer, labels=labels, **b)["train"].labels.tolist() == [2]
    (tmp_path / "b.csv").write_text("text,label\none,d\n")
    with pytest.raises(ValueError, match="no label 'd' .row 1"):
        build(tmp_path / "b", tokenizer, labels=labels, **b)


@pytest.mark.parametrize(("table", "message"), [
    ('{"even": 0, "odd": 3}', "2 labels must have the numbers 0 to 1, each once, got 0, 3$"),
    ('{"even": 0, "odd": 0}', "got 0, 0$"),
    ('{"even": "a", "odd": null}', "got a, None$"),
    ('{"even": %s}' % ("1" * 5000), "labels.json: Exceeds the limit"),
    ('{"even": %s' % ("[" * 100_000), "labels.json: maximum recursion depth"),
])  # fmt: skip
def test_numbers_of_labels_are_kept_or_refused(tmp_path, table, message):
    (tmp_path / "labels.json").write_text(table)
    with pytest.raises(ValueError, match=message) as e:
        build_tensors.number_labels(["odd", "even"], str(tmp_path / "labels.json"))
    assert exits.ours(e.value)


def test_whole_numbers_stay_in_their_order():
    assert build_tensors.number_labels(["10", "9", "0", "9"], "") == ["0", "9", "10"]
    long = "1" * 5000
    assert build_tensors.number_labels(["²", "-5", "b", "--5", "3", long], "") == ["-5", "3", "--5", long, "b", "²"]


@pytest.mark.parametrize("content", [
    {"input_ids": [0, 5, 2**32 + 5, 2]}, {"input_ids": [0, -1, 2]}, {"input_ids": [0, 1.5, 2]}, {"input_ids": [0, None, 2]},
    {"input_ids": None}, {"input_ids": [0, 5, 2], "attention_mask": [1]}, {"input_ids": [0, 5, 2], "attention_mask": 1},
])  # fmt: skip
def test_ids_in_a_file_are_checked_before_they_are_narrowed(tmp_path, tokenizer, content):
    lines = [{"input_ids": [0, 5, 1, 2], "attention_mask": [1, 1, 0, 1]}, {"input_ids": [0, 6, 2]}, content]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(ValueError, match="a.jsonl: row 3(: input_ids must be|.*4294967301, the tokenizer's|.* the id)") as e:
        build(tmp_path, tokenizer, input=str(tmp_path / "a.jsonl"), splits={"all": 1.0})
    assert exits.ours(e.value) and not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize(("content", "options", "message"), [
    (b"text,label,text\none,a,two\n", {}, "a.csv: the header has 'text' 2 times: which one is meant?"),
    (b"words,label\none,a\nx,b\n", {}, "several columns .*: --text_column takes one of 'words', 'label'"),
    (b"text,tag\none,a\n", {"label_column": "label"}, "no column 'label': --label_column takes one of 'text', 'tag'"),
    (b" text , label \none,a\n", {}, "several columns .*: --text_column takes one of ' text ', ' label '"),
    (b"text,label\none,a\ntwo,\n", {"label_column": "label"}, "row 2 has no label"),
    (b"label\na\nb\n", {"label_column": "label"}, "no column but the label's: --text_column takes one of"),
    (b",words,label\n0,one,a\n1,x,b\n", {}, "several columns .*: --text_column takes one of 'words', 'label'"),  # pandas
    (b",label\n0,a\n1,b\n", {"label_column": "label"}, "no column but the label's: --text_column takes one of"),
    (b"text,label\none,a\n", {"text_column": "label", "label_column": "label"}, "are both 'label'"),
    (b"text,label\none,a,b\n", {}, "line 2 has 3 fields, the header 2"),
    (b"text\none\xff\n", {}, "not UTF-8 at byte 8"),
    (b"text\n", {}, "holds no examples"),
    (b"text\none\n", {}, "1 examples: too few for the splits"),
    (b"text\none\n", {"splits": {"a": 0.7, "b": 0.7}}, "add up to 1 at most"),
    *[(b"text\none\n", {"splits": {"train": v}}, f"--splits train must be .*got {v!r}") for v in ("80%", "abc", "", 80)],
    (b"text\none\n", {"labels": "labels.json"}, "--labels gives labels their numbers: --label_column names"),
    (b"text\none\n", {"splits": {"train": None}}, "--splits train must be given, not null"),
    (b"text\none\n", {"splits": {"../a": 1.0}}, "name of a split must be a plain name"),
])  # fmt: skip
def test_bad_input_is_named_and_nothing_written(tmp_path, tokenizer, content, options, message):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message) as e:
        build(tmp_path, tokenizer, input=str(tmp_path / "a.csv"), **options)
    assert exits.ours(e.value) and not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize(("rows", "message"), [
    (['{"text": "one"}', '{"other": "two"}'], "row 2: text is wanted in 'text', got None"),
    (['{"id": "a"}', '{"id": "b", "text": "two"}'], "row 2: it has a column 'text', rows before it have 'id' alone"),
    (['{"text": "one"}', '{"text": ["two"]}'], r"row 2: text is wanted in 'text', got \['two'\]"),
    (['{"text": "one"}', "{two}"], "a.jsonl at byte 16 is not JSON: Expecting property name .*: column 2"),
])  # fmt: skip
def test_no_row_is_taken_for_what_it_is_not(tmp_path, tokenizer, rows, message):
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    with pytest.raises(ValueError, match=message):
        build(tmp_path, tokenizer, input=str(tmp_path / "a.jsonl"), splits={"train": 1.0})
    with pytest.raises(ValueError, match=message.replace("row 2", f"at byte {len(rows[0]) + 1}")):
        list(examples.read(tmp_path / "a.jsonl"))


def test_a_row_without_a_token_is_named(tmp_path, tokenizer):
    """A tokenizer that adds no [CLS] leaves nothing of an empty text, and its label would have nothing to go by."""
    bare = json.loads(encoding.describe(tokenizer)["json"]) | {"post_processor": None}
    (tmp_path / "bare.json").write_text(json.dumps(bare))
    (tmp_path / "a.csv").write_text('text,label\none,a\n"",b\n')
    with pytest.raises(ValueError, match="a.csv: row 2 has no token"):
        build(tmp_path, str(tmp_path / "bare.json"), input=str(tmp_path / "a.csv"), label_column="label")


@pytest.mark.parametrize("none", ["null", "NaN", '" "'])
def test_a_label_that_is_missing_is_no_class(tmp_path, tokenizer, none):
    (tmp_path / "a.jsonl").write_text(f'{{"text": "one", "label": 1.0}}\n{{"text": "two", "label": {none}}}\n')
    with pytest.raises(ValueError, match="row 2 has no label in 'label'"):
        build(tmp_path, tokenizer, input=str(tmp_path / "a.jsonl"), label_column="label", splits={"train": 1.0})


def test_empty_texts_are_counted(tmp_path, tokenizer, capsys):
    (tmp_path / "a.csv").write_text('text,label\none,a\n"",b\n" ",a\ntwo,b\n')
    rows = build(tmp_path, tokenizer, input=str(tmp_path / "a.csv"), label_column="label", splits={"all": 1.0})["all"]
    assert rows.length.tolist() == [3, 2, 2, 3]
    assert "note: 2 of the 4 examples are empty texts" in capsys.readouterr().out
    build(tmp_path, tokenizer, input=write_csv(tmp_path / "a.csv"), label_column="label")
    assert "empty texts\n" not in capsys.readouterr().out


def test_labels_that_differ_in_spelling_alone_are_told(tmp_path, tokenizer, capsys):
    labels = ["Yes", " yes ", "no", 1, 1.0, "1", "caf\u00e9", "cafe\u0301", True, "true", "2"]
    lines = [{"text": f"one {i}", "label": labels[i % 11]} for i in range(44)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    rows = build(tmp_path, tokenizer, input=str(tmp_path / "a.jsonl"), label_column="label", splits={"all": 1.0})["all"]
    assert np.bincount(rows.labels).tolist() == [8, 4, 4, 4, 4, 4, 4, 4, 4, 4]  # told, not changed
    note = r"'1' '1.0'; 'True' 'true'; 'Yes' 'yes'; 'cafe\u0301' 'caf\xe9'" + "\n"
    assert f"note: labels that differ in their spelling alone are different ones here: {note}" in capsys.readouterr().out
    assert build_tensors.alike(["a", "b", "nan", "0", "10", "1"]) == []


def test_equal_texts_are_in_one_split(tmp_path, tokenizer, capsys):
    texts = [" ".join(("one", "two")[i >> k & 1] for k in range(7)) for i in range(100)]
    (tmp_path / "a.txt").write_text("\n".join(texts * 3))
    built = build(tmp_path, tokenizer, input=str(tmp_path / "a.txt"))
    train, val, test = ({tuple(built[k].row(i)) for i in range(len(built[k]))} for k in ("train", "val", "test"))
    assert train and val and test and not train & val and not train & test and not val & test
    assert "note: so few" not in capsys.readouterr().out
    (tmp_path / "a.txt").write_text("one\n" * 40)
    built = build(tmp_path, tokenizer, input=str(tmp_path / "a.txt"))
    assert {k: len(rows) for k, rows in built.items()} == {"train": 32, "val": 4, "test": 4}
    assert "note: so few of the 40 examples differ" in capsys.readouterr().out


def test_a_label_is_one_name(tmp_path, tokenizer):
    (tmp_path / "a.jsonl").write_text('{"text": "one", "label": "x"}\n{"text": "two", "label": ["x", "y"]}\n')
    with pytest.raises(ValueError, match=r"a.jsonl: row 2 has \['x', 'y'\] in 'label': a label is one name or number"):
        build(tmp_path, tokenizer, input=str(tmp_path / "a.jsonl"), label_column="label", splits={"train": 1.0})
    pq.write_table(pa.table({"text": ["one"], "label": [b"x"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a.parquet: row 1 has b'x' in 'label': a label is one name or number"):
        build(tmp_path, tokenizer, input=str(tmp_path / "a.parquet"), label_column="label", splits={"train": 1.0})


def test_padding_in_a_text_is_left_out(tmp_path, tokenizer, capsys):
    (tmp_path / "a.txt").write_text("one <pad> two\n<pad>\none two\n")
    rows = build(tmp_path, tokenizer, input=str(tmp_path / "a.txt"), splits={"train": 1.0})["train"]
    assert rows.row(0).tolist() == rows.row(2).tolist() and len(rows.row(1)) == 2
    assert "padding, or its name, 2 times" in capsys.readouterr().out


def test_padding_among_ids_that_no_mask_hides_is_left_out(tmp_path, tokenizer, capsys):
    """The file was one that finetune.py refused: its mask said real where its ids said padding."""
    lines = [{"input_ids": [0, 6, 2, 1, 1]}, {"input_ids": [0, 6, 7, 8, 2]}, {"input_ids": [1, 0, 6, 7, 2]}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    rows = build(tmp_path, tokenizer, input=str(tmp_path / "a.jsonl"), splits={"all": 1.0}, max_length=4)["all"]
    assert [rows.row(i).tolist() for i in range(3)] == [[0, 6, 2], [0, 6, 7, 2], [0, 6, 7, 2]]
    assert "padding, or its name, 3 times" in capsys.readouterr().out
    with pytest.raises(ValueError, match="a.jsonl: row 2 has no token"):
        (tmp_path / "a.jsonl").write_text('{"input_ids": [0, 6, 2]}\n{"input_ids": [1, 1]}')
        build(tmp_path, tokenizer, input=str(tmp_path / "a.jsonl"), splits={"all": 1.0})


def test_cut_examples_are_counted(tmp_path, tokenizer, capsys):
    (tmp_path / "a.txt").write_text("one two three four\none\n")
    rows = build(tmp_path, tokenizer, input=str(tmp_path / "a.txt"), splits={"all": 1.0}, max_length=4)["all"]
    assert rows.length.tolist() == [4, 3] and rows.row(0)[-1] == rows.row(1)[-1] == 2
    assert "1 of 2 examples were cut to 4 tokens" in capsys.readouterr().out


def test_a_bert_vocabulary_is_a_tokenizer(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "film", "##s"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    tokenizer = encoding.load_tokenizer(tmp_path)
    assert tokenizer.encode("Good films!").ids == [2, 5, 6, 7, 1, 3]
    assert [encoding.token_id(tokenizer, what) for what in ("pad", "start", "end", "mask")] == [0, 2, 3, 4]
    (tmp_path / "blank.txt").write_text("\n".join([*words, "", "\u3000", "soup"]) + "\r\n")  # both have an id
    assert encoding.load_tokenizer(tmp_path / "blank.txt").encode("soup").ids[1] == len(words) + 2
    (tmp_path / "vocab.txt").write_text("\n".join([*words, "Good"]) + "\n")
    assert encoding.load_tokenizer(tmp_path).encode("Good good").ids == [2, 8, 5, 3]
