"""core/metrics.py against scikit-learn."""

import time
import warnings

import numpy as np
import pytest
import torch

from core import metrics


@pytest.mark.parametrize("n", [2, 5])
def test_accuracy_f1_and_confusion_are_sklearns(n):
    sk = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(n)
    labels, predicted = rng.integers(0, n, 200), rng.integers(0, n, 200)
    confusion = metrics.confusion_of(predicted, labels, n)
    assert (confusion == sk.confusion_matrix(labels, predicted)).all()
    assert metrics.accuracy(confusion) == pytest.approx(sk.accuracy_score(labels, predicted))
    assert metrics.macro_f1(confusion) == pytest.approx(sk.f1_score(labels, predicted, average="macro"))


def test_auc_is_sklearns_ties_and_all():
    sk = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(1)
    labels, scores = rng.integers(0, 2, 300), rng.integers(0, 20, 300) / 10
    assert metrics.auc(scores, labels == 1) == pytest.approx(sk.roc_auc_score(labels, scores))
    assert metrics.auc(labels.astype(float), labels == 1) == 1.0
    assert np.isnan(metrics.auc(scores, np.ones(300, bool)))
    for share in (0.01, 1):  # a model that diverged is not as good as one that guesses
        assert np.isnan(metrics.auc(np.where(np.arange(300) < share * 300, np.nan, scores), labels == 1))


def test_a_label_that_never_occurs_is_left_out_of_f1():
    confusion = metrics.confusion_of(np.array([0, 1, 1]), np.array([0, 1, 1]), 3)
    assert metrics.macro_f1(confusion) == 1.0


def test_the_confusion_matrix_is_a_picture(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # as of letters that the font lacks
        metrics.draw_confusion(tmp_path / "c.png", np.array([[3, 1], [0, 2]]), ["\u5929\u6c14", "\u0646\u0639"], "test")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_thousands_of_labels_take_neither_minutes_nor_a_copy_of_all_logits_in_float64(tmp_path, monkeypatch):
    began = time.process_time()
    metrics.draw_confusion(tmp_path / "c.png", np.eye(2000, dtype=int), [f"label {i}" for i in range(2000)], "test")
    assert time.process_time() - began < 20  # 2 s; with a name at each row and column 40

    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(3000, 4)).astype(np.float32), rng.integers(0, 4, 3000)
    x, y, most = torch.from_numpy(logits).double(), torch.from_numpy(labels), []
    whole, real = float(torch.nn.functional.cross_entropy(x, y)), metrics.F.cross_entropy
    monkeypatch.setattr(metrics.F, "cross_entropy", lambda x, y, **how: most.append(len(x)) or real(x, y, **how))
    assert metrics.measure(logits, labels)[0]["loss"] == pytest.approx(whole, rel=1e-12) and max(most) <= 1024
