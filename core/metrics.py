"""What weighs how much in a classifier's loss, how good it is, and its confusion matrix as a picture."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from core.picture import drawn, extra
from core.scores import ranks


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """The chance that a positive scores above a negative, ties half; NaN where there is only one kind."""
    p = int(positive.sum())
    n = len(positive) - p
    return float((ranks(scores)[positive].sum() - p * (p - 1) / 2) / (p * n)) if p and n else float("nan")


def confusion_of(predicted: np.ndarray, labels: np.ndarray, n: int) -> np.ndarray:
    """(n, n) counts, a row a label, a column a prediction."""
    return np.bincount(labels * n + predicted, minlength=n * n).reshape(n, n)


def accuracy(confusion: np.ndarray) -> float:
    return float(confusion.diagonal().sum() / confusion.sum())


def macro_f1(confusion: np.ndarray) -> float:
    """The mean F1 of the labels that occur or are predicted."""
    hits, seen = confusion.diagonal(), confusion.sum(0) + confusion.sum(1)
    return float((2 * hits[seen > 0] / seen[seen > 0]).mean())


def class_weights(words: list[str], labels: np.ndarray, n: int) -> torch.Tensor:
    if words == ["balanced"]:
        counts = np.bincount(labels, minlength=n)
        return torch.tensor(len(labels) / (n * np.maximum(counts, 1)) * (counts > 0), dtype=torch.float32)
    try:
        weights = [float(w) for w in words] or [1.0] * n
    except ValueError:
        weights = []
    if len(weights) != n or not all(0 <= w < 1e30 for w in weights):
        raise ValueError(f"--class_weights takes `balanced` or a number >= 0 for each of {n} labels, got {words}")
    return torch.tensor(weights)


def measure(logits: np.ndarray, labels: np.ndarray) -> tuple[dict[str, float], np.ndarray]:
    """What is logged of an evaluation, and the confusion matrix."""
    n = logits.shape[1]
    confusion = confusion_of(logits.argmax(1), labels, n)
    x, y, parts = torch.from_numpy(logits), torch.from_numpy(labels), range(0, len(labels), 1024)  # float64 takes room
    loss = sum(F.cross_entropy(x[i : i + 1024].double(), y[i : i + 1024], reduction="sum") for i in parts) / len(y)
    out = {"loss": float(loss), "accuracy": accuracy(confusion), "macro_f1": macro_f1(confusion)}
    if np.isnan(logits).any():  # an argmax over NaN is no guess
        out |= {"accuracy": float("nan"), "macro_f1": float("nan")}
    if n == 2:
        out["auc"] = auc(logits[:, 1] - logits[:, 0], labels == 1)
    return out, confusion


@extra
def draw_confusion(path: Path, confusion: np.ndarray, names: list[str], title: str) -> None:
    n = len(names)
    size = min(12.0, 3 + 0.5 * n)
    with drawn(path, size + 0.8, size) as ax:
        share = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
        ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for i, j in np.ndindex(n, n) if n <= 25 else []:
            color = "white" if share[i, j] > 0.5 else "black"
            ax.text(j, i, str(confusion[i, j]), ha="center", va="center", color=color)
        if n <= 100:  # of thousands each name takes its time, and none can be read: they have numbers
            ax.set_xticks(range(n), names, rotation=45, ha="right")
            ax.set_yticks(range(n), names)
        ax.set(xlabel="predicted", ylabel="is", title=title)
