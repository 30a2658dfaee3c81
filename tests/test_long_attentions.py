"""lsh and favor against exact attention."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from core.rng import generator
from variants.long_attentions import NOTHING, PHI, SELF, favor, features, lsh, places, rotations

B, nh, T, hs = 2, 3, 100, 16


@pytest.fixture
def qkv():
    g = torch.Generator().manual_seed(1)
    q, k, v = torch.randn(3, B, nh, T, hs, generator=g)
    mask = torch.ones(B, T, dtype=torch.bool)
    mask[1, 70:] = False
    return q, k, v, mask


def dense(q, v, mask, met):
    """Softmax over the pairs that met, at full T x T."""
    scores = q @ F.normalize(q, dim=-1).transpose(-1, -2)
    scores = scores.masked_fill(torch.eye(T, dtype=torch.bool), SELF)
    scores = scores.masked_fill(~mask[:, None, None] | ~met, NOTHING)
    return (scores.softmax(-1) @ v).masked_fill(~mask[:, None, :, None], 0.0)


@pytest.mark.parametrize(("chunk", "own_bucket"), [(16, False), (16, True), (50, True), (7, False)])
def test_lsh_is_softmax_attention_over_the_pairs_that_met(qkv, chunk, own_bucket):
    q, _, v, mask = qkv
    turns = rotations(generator(1), hs, T, chunk, num_hashes=3)
    short = -T % chunk
    bucket, place, _, _ = places(F.pad(q, (0, 0, 0, short)), F.pad(mask, (0, short)), turns, chunk)
    bucket, place = bucket[..., :T], place[..., :T]
    met = (place.unsqueeze(-1) - place.unsqueeze(-2)).abs() <= 1
    if own_bucket:
        met &= bucket.unsqueeze(-1) == bucket.unsqueeze(-2)
    assert 0.05 < met.any(2).float().mean() < 0.9  # else this would compare full attention with itself
    expected = dense(q, v, mask, met.any(2))
    torch.testing.assert_close(lsh(q, v, mask, turns, chunk, own_bucket), expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("size", [128, 10**9])  # and a chunk needs no more memory than the text
def test_lsh_with_one_chunk_is_exact_attention(qkv, size):
    q, _, v, mask = qkv
    expected = dense(q, v, mask, torch.tensor(True))
    got = lsh(q, v, mask, rotations(generator(1), hs, T, size), size)
    torch.testing.assert_close(got, expected, atol=2e-6, rtol=1e-5)


def test_lsh_finds_most_of_the_weight_and_more_with_more_hashes(qkv):
    g = torch.Generator().manual_seed(2)
    topics = 4 * torch.randn(10, hs, generator=g)  # tokens of a topic attend to each other
    q = topics[torch.randint(10, (1, nh, T), generator=g)] + 0.3 * torch.randn(1, nh, T, hs, generator=g)
    v, mask = torch.randn(1, nh, T, hs, generator=g), torch.ones(1, T, dtype=torch.bool)
    exact = dense(q, v, mask, torch.tensor(True))
    error = {}
    for hashes in (1, 4):
        runs = [lsh(q, v, mask, rotations(generator(1, i), hs, T, 8, hashes), 8) for i in range(5)]
        error[hashes] = torch.stack([(y - exact).norm() / exact.norm() for y in runs]).mean()
    assert error[4] < 0.6 * error[1]
    assert error[4] < 0.25


@pytest.mark.parametrize("phi", PHI)
def test_favor_is_the_kernel_that_phi_names(qkv, phi):
    """The linear form equals the quotient written out over all pairs of tokens."""
    q, k, v, mask = qkv
    w = features(generator(1), 32, hs)
    a, b = ((x * hs**-0.25) @ w.T for x in (q, k))
    if phi == "exp":
        a, b = ((y - x.square().sum(-1, keepdim=True) / 2 / hs**0.5).exp() for x, y in ((q, a), (k, b)))
    else:
        a, b = ((y.clamp(min=0) + y.clamp(max=0).exp() if phi == "elu" else y.relu() ** 2) for y in (a, b))
    weights = (a @ b.transpose(-1, -2)).masked_fill(~mask[:, None, None], 0.0)
    expected = weights / weights.sum(-1, keepdim=True) @ v
    for stabilize in (True, False):
        got = favor(q, k, v, mask, w, phi, stabilize, eps=1e-12)
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-3)


def test_favor_comes_closer_to_softmax_with_more_features(qkv):
    """A Monte Carlo estimate: its error falls as one over the square root of their number."""
    q, k, v, mask = qkv
    q, k = q / 2, k / 2  # its variance grows with exp(|q + k|^2): logits as a trained model has them
    exact = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])

    def error(m, ortho=True):
        runs = [favor(q, k, v, mask, features(generator(i, m), m, hs, ortho)) for i in range(4)]
        return torch.stack([(y - exact)[:, :, :70].norm() / exact[:, :, :70].norm() for y in runs]).mean().item()

    few, many = error(64), error(4096)
    assert many < few / 4  # 8 in the limit
    assert many < 0.15
    assert error(64, ortho=False) > few  # orthogonal directions are the better sample


@pytest.mark.parametrize("ortho", [True, False])
def test_features_are_gaussian_in_each_direction(ortho):
    """As LAPACK's signs left them, the first of each block pointed to one side, and the error stopped falling."""
    w = features(generator(1), 4 * 8000, 4, ortho).numpy().astype(float).reshape(8000, 4, 4)
    assert np.abs(w.mean(0)).max() < 0.05  # four standard errors
    assert np.abs(np.einsum("nij,nik->ijk", w, w) / len(w) - np.eye(4)).max() < 0.1
    products = w @ w.transpose(0, 2, 1)
    assert (np.abs(products[:, ~np.eye(4, dtype=bool)]).max() < 1e-4) == ortho


def test_stabilize_keeps_large_inputs_finite(qkv):
    q, k, v, mask = qkv
    w = features(generator(1), 64, hs)
    assert not torch.isfinite(favor(12 * q, 12 * k, v, mask, w, stabilize=False, eps=0.0)).all()
    assert torch.isfinite(favor(12 * q, 12 * k, v, mask, w, stabilize=True)).all()


def test_eps_bounds_the_denominator(qkv):
    q, k, v, mask = qkv
    w = features(generator(1), 64, hs)
    assert favor(q, k, v, mask, w, eps=1e6).abs().max() < 1e-2 < favor(q, k, v, mask, w, eps=1e-6).abs().max()


@pytest.mark.parametrize("kind", ["lsh", "favor"])
def test_padding_changes_nothing_and_gradients_are_finite(qkv, kind):
    q, k, v, mask = (x.clone().requires_grad_() if x.is_floating_point() else x for x in qkv)
    turns, w = rotations(generator(1), hs, T, 16), features(generator(1), 32, hs)

    def attend(q, k, v, mask):
        return lsh(q, v, mask, turns, 16) if kind == "lsh" else favor(q, k, v, mask, w)

    y = attend(q, k, v, mask)
    alone = attend(q[1:, :, :70], k[1:, :, :70], v[1:, :, :70], mask[1:, :70])
    torch.testing.assert_close(y[1:, :, :70], alone, atol=1e-5, rtol=1e-4)
    y[:, :, :70].square().sum().backward()
    assert torch.isfinite(q.grad).all() and q.grad.abs().sum() > 0
    assert v.grad[1, :, 70:].abs().sum() == 0  # nothing flows from padding


def test_lsh_dropout_drops_weights(qkv):
    q, _, v, mask = qkv
    turns = rotations(generator(1), hs, T, 16)
    torch.manual_seed(0)
    assert not torch.equal(lsh(q, v, mask, turns, 16, dropout=0.5), lsh(q, v, mask, turns, 16))


def test_draws_are_a_function_of_their_coordinates():
    a, b, c = (features(generator("favor", n), 40, hs) for n in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    block = F.normalize(a[:hs], dim=-1)
    torch.testing.assert_close(block @ block.T, torch.eye(hs), atol=1e-5, rtol=0)
    lengths = features(generator(3), 4096, hs).norm(dim=-1)
    assert abs(lengths.square().mean().item() - hs) < 0.5  # chi-squared with hs degrees
    assert np.isfinite(lengths.numpy()).all()


@pytest.mark.full
@pytest.mark.parametrize("kind", ["lsh", "favor"])
def test_what_the_backward_pass_keeps_grows_linearly(kind):
    def kept(T):
        g, total = torch.Generator().manual_seed(1), 0

        def count(x):
            nonlocal total
            total += x.numel() * x.element_size()
            return x

        q, k, v = torch.randn(3, 1, 2, T, hs, generator=g).requires_grad_()
        mask = torch.ones(1, T, dtype=torch.bool)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
            if kind == "lsh":
                lsh(q, v, mask, rotations(generator(1), hs, T, 64), 64)
            else:
                favor(q, k, v, mask, features(generator(1), 64, hs))
        return total

    assert 7 < kept(8192) / kept(1024) < 9
