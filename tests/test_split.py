"""Which examples are held out: shares, draws, and that the same one is never on both sides."""

import numpy as np
import pytest

from data import split


def words(seed: int, n: int, kinds: int, shortest: int = 0) -> list[bytes]:
    g = np.random.default_rng(seed)
    known = [g.integers(0, 9, g.integers(shortest, 6)).astype(np.uint16).tobytes() for _ in range(kinds)]
    return [known[i] for i in g.integers(0, kinds, n)]


def keys(rows: list[bytes]) -> np.ndarray:
    return split.fingerprints(np.frombuffer(b"".join(rows), np.uint16), np.array([len(r) // 2 for r in rows]))


def test_the_split_is_exact_random_and_stable():
    for share in (0.15, 0.2, 1 / 3, 0.35, 0.5, 0.7, 0.8, 0.999):
        held = split.held_out(0, 10000, share, 42)
        assert abs(held.sum() - share * 10000) <= 1
        pieces = [split.held_out(a, 37, share, 42) for a in range(0, 370, 37)]
        assert (np.concatenate(pieces) == held[:370]).all()
    held = split.held_out(0, 10000, 0.2, 42)
    assert np.bincount(np.flatnonzero(held) % 5).min() > 300  # not every fifth
    assert 200 < (held & split.held_out(0, 10000, 0.2, 43)).sum() < 600


def test_equal_rows_alone_have_equal_fingerprints():
    rows = words(0, 4000, 3000)
    found = keys(rows)
    assert len(set(zip(rows, found.tolist(), strict=True))) == len(set(rows)) == len(set(found.tolist()))
    assert (keys(rows[7:]) == found[7:]).all()  # whatever comes before


@pytest.mark.parametrize("at_once", [1, 100, 5000])
def test_an_example_goes_where_the_first_like_it_went(at_once):
    rows, sides, out = words(1, 5000, 2000), split.Sides(), []
    for i in range(0, 5000, at_once):
        out.append(sides(keys(rows[i : i + at_once]), lambda first, n: split.held_out(first, n, 0.2, 42)))
    kinds = list(dict.fromkeys(rows))  # in the order of their first one
    side = dict(zip(kinds, split.held_out(0, len(kinds), 0.2, 42).tolist(), strict=True))
    assert np.concatenate(out).tolist() == [side[row] for row in rows]
    assert abs(sum(side.values()) - 0.2 * len(kinds)) < 1 and sides.count == len(kinds)
    assert sum(map(len, sides.runs)) == len(kinds) and len(sides.runs) < 13


def test_parts_are_exact_and_hold_no_example_together():
    shares = [0.1, 0.1, 0.8]
    different = split.parts(np.arange(1000, dtype=np.uint64), shares, 42)
    assert [len(p) for p in different] == [100, 100, 800] and sorted(np.concatenate(different)) == list(range(1000))
    rows = words(2, 1000, 300, shortest=3)
    parts = split.parts(keys(rows), shares, 42)
    assert sorted(np.concatenate(parts)) == list(range(1000)) and all((np.diff(p) > 0).all() for p in parts)
    assert np.allclose([len(p) for p in parts], [100, 100, 800], atol=10)
    a, b, c = ({rows[i] for i in p} for p in parts)
    assert not (a & b or a & c or b & c)
    assert {rows[i] for i in split.parts(keys(rows), shares, 42, apart=False)[0]} & c
    assert [len(p) for p in split.parts(np.zeros(10, np.uint64), [0.5], 42)] == [10]


def test_many_alike_fill_no_part_but_theirs():
    for alike in (30, 150, 600, 900):
        rows = np.maximum(np.arange(1000), alike).astype(np.uint64)
        for seed in range(20):
            sizes = [len(p) for p in split.parts(rows, [0.1, 0.1, 0.8], seed)]
            assert np.allclose(sizes, [50, 50, 900] if alike == 900 else [100, 100, 800], atol=2), (alike, sizes)


def test_a_smaller_share_of_the_last_part_leaves_the_others_as_they_are():
    few, many = keys(words(3, 2000, 250, shortest=4)), np.zeros(300, np.uint64)  # some eight alike, and 300 alike
    for rows in (few, np.concatenate([few, many])):
        val, test, train = split.parts(rows, [0.1, 0.1, 0.8], 42)
        for share in (0.4, 0.1, 0.02):
            again = split.parts(rows, [0.1, 0.1, share], 42)
            assert again[0].tolist() == val.tolist() and again[1].tolist() == test.tolist(), share
            assert abs(len(again[2]) - share * len(rows)) < 20 and not np.isin(rows[again[2]], rows[[*val, *test]]).any()
