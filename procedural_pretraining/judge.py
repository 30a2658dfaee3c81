"""How well a model does at a procedural task: token by token, given the right ones, and in what it writes itself."""

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from core.exits import NotFinite
from core.generate import generate
from core.picture import drawn, extra
from core.tracker import read
from procedural_data import Spec, targets


@torch.no_grad()
def judge(model, spec: Spec, row: np.ndarray, question: int) -> tuple[torch.Tensor, list[list[int]]]:
    """Sums over the rows: loss, right tokens, tokens, the process's own loss, the odds of the guesses and of the best
    ones, right answers; and the answers.

    Answers are greedy: to the question, or for a language (which is judged by its grammar) on from half a word.
    """
    was_training, device = model.training, model.lm_head.weight.device
    model.eval()
    x, y = (torch.from_numpy(a).to(device) for a in targets(spec, row, question))
    logits = model(x).float()
    guess, valid = logits.argmax(-1), y >= 0
    loss = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="sum")
    sums = [loss, ((guess == y) & valid).sum(), valid.sum(), 0.0, 0.0, 0.0]
    if not spec.asks:
        # The law is known, so no luck comes in: how probable are the guesses, of how probable the best ones are.
        odds = F.pad(torch.from_numpy(spec.module.odds(row, spec)).to(device), (0, 1))  # PAD is never right
        sums[3] = -odds.gather(2, y[..., None]).log().sum()
        sums[4], sums[5] = odds.gather(2, guess[..., None]).sum(), odds.amax(-1).sum()
    given = prompt(spec, question)
    start = torch.from_numpy(row[:, :given].astype(np.int64)).to(device)
    try:
        written = generate(model, start, row.shape[1] - given, temperature=0)[:, given:].tolist()
    except NotFinite:  # a diverged model writes nothing
        written = [[] for _ in row]
    answers = [a[: (a + [spec.pad]).index(spec.pad)] for a in written]
    right = sum(check(spec, r.tolist(), question, a) for r, a in zip(row, answers, strict=True))
    model.train(was_training)
    return torch.tensor([float(s) for s in (*sums, right)], dtype=torch.float64), answers


def prompt(spec: Spec, question: int) -> int:
    """How many tokens of a row the model is given: the question and SEP, or half a word."""
    return question + 1 if spec.asks else spec.length // 2


def check(spec: Spec, row: list[int], question: int, answer: list[int]) -> bool:
    return spec.module.check(row[: question if spec.asks else prompt(spec, question)], answer, spec)


def averages(spec: Spec, sums: list[float], samples: int) -> dict[str, float]:
    loss, right_tokens, tokens, floor, guessed, best, right = sums
    if math.isnan(loss):  # an argmax over NaN is no guess
        right_tokens = guessed = right = math.nan
    out = {"val loss": loss / tokens, "accuracy": right_tokens / tokens}
    if spec.asks:
        return {**out, "exact match": right / samples}
    return {**out, "best loss": floor / tokens, "mastery": guessed / best, "legal": right / samples}


def show_sample(spec: Spec, row: list[int], question: int, answer: list[int]) -> str:
    """3 1 2 | -> 3 1 2 right"""
    given = prompt(spec, question)
    expected = [t for t in row[given:] if t != spec.pad]

    def words(tokens: list[int]) -> str:
        if spec.asks:
            return " ".join("|" if t == spec.sep else str(t) for t in tokens)
        return " ".join(f"{t}(" if t < spec.k else f"{t - spec.k})" for t in tokens)

    wanted = "expected" if spec.asks else "one of many that are right:"
    verdict = "right" if check(spec, row, question, answer) else f"WRONG, {wanted} {words(expected)}"
    return f"  {words(row[:given])} -> {words(answer)}   {verdict}"


@extra
def draw_scores(folder: Path) -> None:
    """scores.png: accuracies over the steps, and the curriculum's length."""
    rows = read(folder / "eval.csv")
    with drawn(folder / "scores.png", 8, 4.5) as ax:
        steps = [r["step"] for r in rows]
        names = [k for k in rows[0] if k.startswith(("accuracy", "exact_match", "mastery", "legal"))]
        for name in names:  # a length that a resume added has no scores before
            points = [(r["step"], r[name]) for r in rows if isinstance(r[name], int | float)]
            ax.plot(*zip(*points, strict=True), label=name.replace("_", " "), lw=1.5)
        ax.set(xlabel="step", ylabel="share of held-out samples or tokens", ylim=(0, 1.02), title=str(folder))
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8, loc="lower right")
        twin = ax.twinx()
        twin.step(steps, [r["length"] for r in rows], where="post", color="#999999", ls="--", lw=1)
        twin.set_ylabel("length (dashed)")
        twin.set_ylim(bottom=0)
