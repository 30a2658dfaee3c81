"""Draws that are functions of their coordinates."""

import itertools

import numpy as np
import pytest

from core import rng


@pytest.mark.parametrize("n", [1, 2, 5, 64, 65, 100, 4096, 5000])
def test_a_permutation_is_one(n):
    order = rng.permute(np.arange(n), n, 7, "order", 0)
    assert sorted(order) == list(range(n))
    some = np.arange(n)[:: max(1, n // 7)]
    assert np.array_equal(rng.permute(some, n, 7, "order", 0), order[some])  # each place for itself
    assert n < 5 or not np.array_equal(order, rng.permute(np.arange(n), n, 7, "order", 1))


def test_all_orders_of_few_are_equally_likely():
    counts = dict.fromkeys(itertools.permutations(range(4)), 0)
    for key in range(4800):
        counts[tuple(rng.permute(np.arange(4), 4, key).tolist())] += 1
    assert sum((n - 200) ** 2 / 200 for n in counts.values()) < 50  # 23 degrees of freedom: above that once in 1,000


@pytest.mark.parametrize("n", [70, 1000])
def test_every_place_lands_everywhere(n):
    places = np.stack([rng.permute(np.arange(n), n, key) for key in range(2000)])
    for column in (0, 1, n - 1):
        halves = (places[:, column] < n / 2).mean()
        assert abs(halves - 0.5) < 0.05 and abs(places[:, column].mean() / n - 0.5) < 0.03


def test_words_are_mixed_as_splitmix64_does():
    """Its first numbers from the seed 0, as published; a weaker mix would bias masks and splits without a word."""
    steps = np.arange(1, 4, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert rng.mix(steps).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
