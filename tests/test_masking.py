import numpy as np

from data.masking import Masking

SPECIAL = np.arange(6)


def sequences(n=2000, seed=0, vocab=16):
    r = np.random.default_rng(seed)
    lengths = r.integers(3, 1000, n)
    ids = r.integers(0, vocab, lengths.sum())  # special ones in between, too
    return ids, lengths, np.arange(n)


def test_shares_over_a_million_tokens():
    ids, lengths, samples = sequences()
    assert len(ids) > 900_000
    ordinary = ids >= 6
    shown, where, targets = Masking(4, SPECIAL, 16)(ids, lengths, samples, 42, 0)
    assert ordinary[where].all(), "a special token was hidden"
    assert (targets == ids[where]).all()
    rest = np.ones(len(ids), dtype=bool)
    rest[where] = False
    assert (shown[rest] == ids[rest]).all()
    assert abs(len(where) / ordinary.sum() - 0.15) < 0.001
    new = shown[where]
    assert abs((new == 4).mean() - 0.8) < 0.005
    other = (new != 4) & (new != targets)
    assert abs(other.mean() / 0.9 - 0.1) < 0.005  # one of ten draws the token itself
    assert (new[other] >= 6).all(), "a special token was put in"
    counts = np.bincount(new[other], minlength=16)[6:]
    assert counts.min() > 0.9 * counts.mean(), "random tokens are not uniform"


def test_a_draw_depends_on_seed_epoch_and_sample_alone():
    ids, lengths, samples = sequences(50)
    mask = Masking(4, SPECIAL, 16)
    shown, where, _ = mask(ids, lengths, samples, 42, 3)
    rows = np.split(shown, np.cumsum(lengths)[:-1])
    order = np.random.default_rng(1).permutation(50)
    shuffled = np.concatenate([np.split(ids, np.cumsum(lengths)[:-1])[i] for i in order])
    again, _, _ = mask(shuffled, lengths[order], samples[order], 42, 3)
    assert (again == np.concatenate([rows[i] for i in order])).all()
    alone, _, _ = mask(ids[: lengths[0]], lengths[:1], samples[:1], 42, 3)
    assert (alone == rows[0]).all()
    for other in [(42, 4), (43, 3), (42, "eval")]:
        _, elsewhere, _ = mask(ids, lengths, samples, *other)
        both = np.intersect1d(where, elsewhere).size / where.size
        assert abs(both - 0.15) < 0.03, "draws of two epochs or seeds are not independent"
    _, moved, _ = mask(ids, lengths, samples + 1, 42, 3)
    assert np.intersect1d(where, moved).size < 0.2 * where.size


def test_shares_can_be_set():
    ids, lengths, samples = sequences(300)
    everything = Masking(4, SPECIAL, 16, mask_p=1.0, mask_token_p=1.0, random_token_p=0.0)
    shown, where, _ = everything(ids, lengths, samples, 0, 0)
    assert (shown[where] == 4).all() and len(where) == (ids >= 6).sum()
    nothing = Masking(4, SPECIAL, 16, mask_p=0.0)(ids, lengths, samples, 0, 0)
    assert (nothing[0] == ids).all() and not len(nothing[1])
    kept = Masking(4, SPECIAL, 16, mask_p=0.5, mask_token_p=0.0, random_token_p=0.0)(ids, lengths, samples, 0, 0)
    assert (kept[0] == ids).all() and abs(len(kept[1]) / (ids >= 6).sum() - 0.5) < 0.01
