import json
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from data.arrow import Rows, open_table
from tests.loops import ROOT

LISTS = [[0, 7, 8, 2], [0, 9, 2], [0, 6, 6, 6, 6, 2], [0, 15, 2]]


def write(path, columns: dict, kind="stream", batch=2):
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    new = {"stream": pa.ipc.new_stream, "file": pa.ipc.new_file}[kind]
    with new(str(path), table.schema) as out:
        out.write_table(table, max_chunksize=batch)
    return path


def ids_of(rows: Rows, order) -> list[list[int]]:
    ids, lengths = rows.rows(np.array(order))
    assert ids.dtype == np.int64
    return [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])]


@pytest.mark.parametrize("kind", ["stream", "file"])
@pytest.mark.parametrize("item", [pa.uint8(), pa.uint16(), pa.int32(), pa.int64()])
@pytest.mark.parametrize("outer", [pa.list_, pa.large_list])
def test_both_formats_and_any_width_are_read(tmp_path, kind, item, outer):
    rows = Rows(write(tmp_path / "a.arrow", {"input_ids": pa.array(LISTS, outer(item))}, kind))
    assert rows.length.tolist() == [4, 3, 6, 3] and len(rows) == 4 and rows.tokens == 16
    assert ids_of(rows, [2, 0, 3, 3]) == [LISTS[2], LISTS[0], LISTS[3], LISTS[3]]


def test_many_files_are_one_table(tmp_path):
    for i in range(3):
        write(tmp_path / f"data-{i}.arrow", {"input_ids": LISTS[i:]}, batch=1 + i)
    rows = Rows(tmp_path)
    assert ids_of(rows, range(len(rows))) == LISTS + LISTS[1:] + LISTS[2:]


def test_nothing_is_copied_at_the_start(tmp_path):
    rows = Rows(write(tmp_path / "a.arrow", {"input_ids": pa.array(LISTS, pa.list_(pa.uint16()))}))
    assert not any(chunk[3].flags.owndata or chunk[3].flags.writeable for chunk in rows.chunks)


def test_reading_loads_no_pandas(tmp_path):
    """Arrow imports it in the middle of a start, where a Ctrl-C is then lost."""
    mask = [[True] * len(row) for row in LISTS]
    write(tmp_path / "a.arrow", {"input_ids": LISTS, "attention_mask": mask})
    code = f"import sys; from data.arrow import Rows; Rows({str(tmp_path)!r}); print('pandas' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


def test_padding_is_dropped_by_its_mask(tmp_path):
    padded = [[0, 7, 8, 2, 1, 1], [1, 1, 1, 0, 9, 2], [0, 6, 6, 6, 6, 2]]
    masks = [[1, 1, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1], [1] * 6]
    for i, (outer, inner) in enumerate([(pa.int64(), pa.int64()), (pa.int32(), pa.int8()), (pa.uint16(), pa.bool_())]):
        for width in (-1, 6):
            columns = {
                "token_type_ids": pa.array([[0] * 6] * 3),
                "input_ids": pa.array(padded, pa.list_(outer, width)),
                "attention_mask": pa.array(masks).cast(pa.list_(inner, width)),
            }
            rows = Rows(write(tmp_path / f"{i}{width}.arrow", columns))
            assert rows.length.tolist() == [4, 3, 6]
            assert ids_of(rows, [1, 2, 0]) == [[0, 9, 2], [0, 6, 6, 6, 6, 2], [0, 7, 8, 2]]


def test_slices_keep_their_offsets(tmp_path):
    table = pa.table({"input_ids": LISTS, "attention_mask": [[1] * (len(r) - 1) + [0] for r in LISTS]})[1:]
    with pa.ipc.new_stream(str(tmp_path / "a.arrow"), table.schema) as out:
        out.write_table(table)
    assert ids_of(Rows(tmp_path), [0, 1, 2]) == [r[:-1] for r in LISTS[1:]]


def test_long_rows_are_cut_counted_and_keep_their_end(tmp_path):
    path = write(tmp_path / "a.arrow", {"input_ids": [[0, 7, 8, 9, 9, 2], [0, 7, 8, 9, 9, 9], [0, 2]]})
    rows = Rows(path, max_size=4, end=2)
    assert ids_of(rows, [0, 1, 2]) == [[0, 7, 8, 2], [0, 7, 8, 9], [0, 2]]
    assert (rows.cut, rows.lost, rows.tokens, rows.longest) == (2, 4, 10, 6)


def test_a_file_that_becomes_shorter_is_told(tmp_path):
    """As `cp` over it does; to read what is no longer there ends a process at once (SIGBUS)."""
    path = write(tmp_path / "a.arrow", {"input_ids": [list(range(5000)) for _ in range(50)]})
    rows = Rows(path)
    os.truncate(path, 100)
    with pytest.raises(ValueError, match=r"a.arrow became shorter while it was read: [0-9,]+ bytes then, 100 now"):
        rows.rows([49])


def test_a_text_of_another_name_is_no_arrow_file_cut_short(tmp_path):
    (tmp_path / "notes.md").write_text("text that is longer than sixteen bytes")
    with pytest.raises(ValueError, match="notes.md is not an Arrow file; the names of texts end in .txt, .csv"):
        open_table(tmp_path / "notes.md")


def refused(path, *words, **options):
    with pytest.raises(ValueError) as e:
        Rows(path, **options).check_ids(16)
    for word in words:
        assert str(word) in str(e.value), e.value


def test_a_file_cut_at_a_batch_boundary_is_refused(tmp_path):
    path = tmp_path / "a.arrow"
    schema = pa.schema([("input_ids", pa.list_(pa.int32()))])
    with open(path, "wb") as f, pa.ipc.new_stream(f, schema) as out:
        for _ in range(5):
            out.write_batch(pa.record_batch([pa.array(LISTS, pa.list_(pa.int32()))], schema=schema))
            boundary = f.tell()
            if _ == 1:
                two = boundary
    whole = path.read_bytes()
    path.write_bytes(whole[:two])
    assert pa.ipc.open_stream(path).read_all().num_rows == 8  # pyarrow sees nothing wrong
    refused(path, path, "cut short")
    for n in (0, 10, 100, two - 7, len(whole) - 1):
        path.write_bytes(whole[:n])
        refused(path, path)
    write(path, {"input_ids": LISTS}, "file")
    path.write_bytes(path.read_bytes()[:-30])
    refused(path, path)


def test_broken_offsets_are_refused(tmp_path):
    path = write(tmp_path / "a.arrow", {"input_ids": pa.array(LISTS, pa.list_(pa.int32()))}, batch=4)
    offsets = np.array([0, 4, 7, 13, 16], np.int32).tobytes()
    assert path.read_bytes().count(offsets) == 1
    path.write_bytes(path.read_bytes().replace(offsets, np.array([0, 4, 9999, 13, 16], np.int32).tobytes()))
    refused(path, path, "damaged")


def test_bad_columns_are_named_with_their_row(tmp_path):
    refused(write(tmp_path / "1.arrow", {"ids": LISTS}), "input_ids", "ids")
    refused(write(tmp_path / "2.arrow", {"input_ids": [[1.5], [2.0]]}), "input_ids", "double")
    refused(write(tmp_path / "3.arrow", {"input_ids": [1, 2]}), "input_ids", "int64")
    refused(write(tmp_path / "4.arrow", {"input_ids": [[1], [2], [3], None]}), "input_ids", "row 3 is null")
    refused(write(tmp_path / "5.arrow", {"input_ids": [[1], [2], [3, 4, None]]}), "row 2")
    refused(write(tmp_path / "6.arrow", {"input_ids": [[1], [2], []]}), "row 2 is empty")
    refused(write(tmp_path / "7.arrow", {"input_ids": [[1], [2, 2]], "attention_mask": [[1], [1]]}), "row 1")
    refused(write(tmp_path / "8.arrow", {"input_ids": pa.array([], pa.list_(pa.int32()))}), "no rows")
    twice = pa.Table.from_arrays([pa.array(LISTS)] * 2, names=["input_ids"] * 2)
    refused(write(tmp_path / "9.arrow", twice), "the column 'input_ids' 2 times")
    refused(tmp_path / "none", "no such file")
    (tmp_path / "text.arrow").write_text("not arrow at all, but long enough")
    refused(tmp_path / "text.arrow", "not an Arrow file")


def test_ids_outside_the_vocabulary_are_found(tmp_path):
    write(tmp_path / "a.arrow", {"input_ids": LISTS})
    path = write(tmp_path / "b.arrow", {"input_ids": [*LISTS[:3], [0, 3, 16, 2]]}, batch=3)
    refused(tmp_path, path, "row 3", "place 2", "id 16", "vocabulary has 16")
    rows = Rows(tmp_path)
    rows.check_ids(17)
    found = 0
    for rank in range(2):  # one of the ranks finds it
        try:
            rows.check_ids(16, rank, 2)
        except ValueError:
            found += 1
    assert found == 1
    write(tmp_path / "b.arrow", {"input_ids": [[0, -1]]})
    refused(tmp_path, "id -1")


def test_padding_that_no_mask_hides_is_found(tmp_path):
    """It would be read as a token, and counted where transformers does not count it."""
    for name, mask, row in (("none", {}, 1), ("all", {"attention_mask": [[1, 1]] * 4}, 1),
                            ("late", {"attention_mask": [[1, 1], [1, 0], [1, 1], [1, 1]]}, 3)):  # fmt: skip
        rows = Rows(write(tmp_path / name, {"input_ids": [[5, 6], [5, 1], [7, 6], [1, 5]]} | mask), pad=1)
        rows.check_ids(16)
        assert f"row {row} holds padding (id 1) that no attention_mask hides" in rows.note
    rows = Rows(write(tmp_path / "fit", {"input_ids": [[5, 1], [1, 6]], "attention_mask": [[1, 0], [0, 1]]}), pad=1)
    rows.check_ids(16)
    assert not rows.note


def test_a_state_json_cannot_name_files_elsewhere(tmp_path):
    write(tmp_path / "a.arrow", {"input_ids": LISTS})
    (tmp_path / "set").mkdir()
    for name in ("../a.arrow", str(tmp_path / "a.arrow"), "missing.arrow"):
        (tmp_path / "set" / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
        refused(tmp_path / "set", name)


def test_what_datasets_writes_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict({"input_ids": LISTS, "attention_mask": [[1] * len(r) for r in LISTS]})
    table.save_to_disk(str(tmp_path / "plain"), num_shards=2)
    assert ids_of(Rows(tmp_path / "plain"), range(4)) == LISTS
    padded = datasets.Dataset.from_dict({
        "input_ids": [r + [1] * (6 - len(r)) for r in LISTS],
        "attention_mask": [[1] * len(r) + [0] * (6 - len(r)) for r in LISTS],
    })  # fmt: skip
    padded.select([3, 1, 0]).save_to_disk(str(tmp_path / "padded"))
    assert ids_of(Rows(tmp_path / "padded"), range(3)) == [LISTS[3], LISTS[1], LISTS[0]]
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(str(tmp_path / "both"))
    refused(tmp_path / "both", tmp_path / "both" / "train")
    assert ids_of(Rows(tmp_path / "both" / "test"), [1]) == [LISTS[1]]
