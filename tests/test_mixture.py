"""Mixtures: within sampling error of their probabilities, on their curves, and the same wherever they are asked."""

import math
import time
import tracemalloc

import numpy as np
import pytest

from data.mixture import TRANSITIONS, Mixture


def share(picked, n):
    return np.bincount(picked, minlength=n) / len(picked)


def test_the_mix_is_within_sampling_error():
    mix = Mixture(3, probs=[0.5, 0.3, 0.2], seed=1)
    p = np.array([0.5, 0.3, 0.2])
    assert np.all(np.abs(share(mix.pick(np.arange(2000)), 3) - p) < 4 * np.sqrt(p * (1 - p) / 2000))


def test_probabilities_need_not_sum_to_one_and_default_to_uniform():
    steps = np.arange(500)
    np.testing.assert_array_equal(Mixture(2, probs=[3, 1]).pick(steps), Mixture(2, probs=[0.75, 0.25]).pick(steps))
    np.testing.assert_array_equal(Mixture(2).pick(steps), Mixture(2, probs=[7, 7]).pick(steps))
    assert set(Mixture(2, probs=[0, 1]).pick(steps)) == {1}


@pytest.mark.parametrize("method", TRANSITIONS)
def test_a_moving_mix_follows_its_curve(method):
    a, b, total = np.array([0.9, 0.1]), np.array([0.2, 0.8]), 8000
    mix = Mixture(2, probs=[9, 1], final=[2, 8], method=method, total=total, seed=3)
    np.testing.assert_allclose(mix.at(0), a)
    np.testing.assert_allclose(mix.at(total), b)
    np.testing.assert_allclose(mix.at(2 * total), b)
    t = 0.25
    geometric = a ** (1 - t) * b**t
    w = (1 - math.cos(math.pi * t)) / 2
    expected = {"linear": a + t * (b - a), "cosine": a + w * (b - a), "exponential": geometric / geometric.sum()}
    np.testing.assert_allclose(mix.at(total // 4), expected[method])
    steps = np.arange(total)
    for part in np.split(steps, 8):
        p = mix.at(part)[:, 1].mean()
        assert abs(mix.pick(part).mean() - p) < 4 * math.sqrt(0.25 / len(part))


def test_interleaving():
    mix = Mixture(3, probs=[1, 3, 2], interleaving=True)
    assert mix.pick(np.arange(8)).tolist() == [0, 1, 1, 1, 2, 2, 0, 1]
    assert Mixture(3, interleaving=True).pick(np.arange(5)).tolist() == [0, 1, 2, 0, 1]
    assert mix.turns(8).tolist() == [2, 4, 2]


def test_shuffled_interleaving_keeps_the_proportions_of_each_round():
    mix = Mixture(3, probs=[1, 3, 2], interleaving=True, shuffle=True, seed=5)
    rounds = mix.pick(np.arange(600)).reshape(100, 6)
    assert all(np.bincount(r, minlength=3).tolist() == [1, 3, 2] for r in rounds)
    assert len({tuple(r) for r in rounds}) > 20


@pytest.mark.parametrize("options", [{"probs": [2, 1]}, {"probs": [2, 1], "interleaving": True, "shuffle": True},
                                     {"probs": [9, 1], "final": [1, 9], "total": 50}])  # fmt: skip
def test_a_step_alone_picks_what_it_picks_among_others(options):
    mix = Mixture(2, seed=7, **options)
    together = mix.pick(np.arange(60))
    assert [int(mix.pick(np.array(s))) for s in range(60)] == together.tolist()
    assert mix.turns(37).tolist() == np.bincount(together[:37], minlength=2).tolist()
    assert mix.turns(37, 11).tolist() == np.bincount(together[11:37], minlength=2).tolist()
    assert mix.turns(0).tolist() == [0, 0]


@pytest.mark.parametrize("options", [{}, {"interleaving": True, "shuffle": True}, {"final": [1] * 200, "total": 9000}])
def test_a_count_over_many_steps_of_many_data_sets_takes_little_memory_and_time(options):
    steps = 60_000 if "final" in options else 1_000_000
    tracemalloc.start()
    began = time.monotonic()
    assert Mixture(200, probs=list(range(1, 201)), **options).turns(steps).sum() == steps
    took, (_, peak) = time.monotonic() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100e6 and took < 3, (peak, took)


def test_the_seed_matters():
    steps = np.arange(200)
    assert (Mixture(2, seed=1).pick(steps) != Mixture(2, seed=2).pick(steps)).any()


@pytest.mark.parametrize("options, message", [
    ({"probs": [1, 2, 3]}, "3 for 2 data sets"),
    ({"probs": [1, -1]}, ">= 0"),
    ({"probs": [0, 0]}, "not all 0"),
    ({"final": [1]}, "--dataset_sampling_probs_final"),
    ({"probs": [0.5, 0.5], "interleaving": True}, "needs whole"),
    ({"probs": [1e30, 1], "interleaving": True}, "1e15 at most"),
    ({"final": [1, 2], "interleaving": True}, "--dataset_interleaving"),
    ({"probs": [0, 1], "final": [1, 1], "method": "exponential"}, "> 0"),
    ({"method": "sudden"}, "linear"),
])  # fmt: skip
def test_what_cannot_be_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        Mixture(2, **options)


def test_large_numbers_are_shares_too():
    steps = np.arange(2000)
    assert Mixture(2, probs=[1e308, 1e308], seed=3).pick(steps).mean() == pytest.approx(0.5, abs=0.05)
    assert not Mixture(2, probs=[10**12, 1], interleaving=True).pick(steps).any()  # a round takes no memory
    shuffled = Mixture(2, probs=[10**9, 10**9], interleaving=True, shuffle=True, seed=3).pick(steps)
    assert shuffled.mean() == pytest.approx(0.5, abs=0.05)
