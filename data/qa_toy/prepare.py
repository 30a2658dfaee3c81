"""A toy set of scored answers whose best possible error is known, and a tiny untrained GPT-2 to start from; no network.

    python data/qa_toy/prepare.py          # data/qa_toy: scores.json, pairs.json, gpt2/

A question asks how good or how bad something is; each judging word in an answer is worth something, and the score is
their mean (times -1 where the question asks how bad) plus noise. Nothing can predict the noise, so its variance is the
least possible squared error.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from core import config, exits, rng
from core.scores import spearman
from core.values import Count

HERE = Path(__file__).resolve().parent
WORTH = {"superb": 4, "lovely": 3, "fine": 2, "decent": 1, "dull": -1, "slow": -2, "broken": -3, "awful": -4}
THINGS = ["soup", "bread", "tea", "room", "bed", "view", "staff", "music", "park", "train"]
PLACES = ["Rome", "Oslo", "Lima", "Cairo", "Kyoto", "Quito", "Delhi", "Perth", "Porto", "Tunis"]
FILLERS = ["", "I must say that", "As far as I can tell after two weeks,", "My whole family agrees:", "Well,"]
END = "<|endoftext|>"
MIDDLE, NOISE = 5.0, 0.6  # the score of a neutral answer; the noise's standard deviation


@dataclass
class Options:
    train: Count = 8000  # training rows
    test: Count = 500  # validation rows, and as many test rows
    seed: int = 1
    out: str = ""  # folder to write to; '': this one


def answer(g: np.random.Generator, thing: str) -> tuple[str, float]:
    """An answer and the mean worth of its judging words."""
    words = g.choice(list(WORTH), size=g.integers(1, 7)).tolist()
    listed = ", ".join(words[:-1]) + (" and " if len(words) > 1 else "") + words[-1]
    return f"{g.choice(FILLERS)} the {thing} is {listed}.".strip(), float(np.mean([WORTH[w] for w in words]))


def question(g: np.random.Generator) -> tuple[str, str, int]:
    thing, sign = str(g.choice(THINGS)), int(g.choice([1, 1, 1, -1]))
    return f"How {'good' if sign > 0 else 'bad'} is the {thing} in {g.choice(PLACES)}?", thing, sign


def scores(g: np.random.Generator, n: int, known: set) -> tuple[list[dict], np.ndarray]:
    """n rows with noisy scores, and the scores without noise; none of the known (question, answer)."""
    rows, truth = [], []
    while len(rows) < n:
        q, thing, sign = question(g)
        a, worth = answer(g, thing)
        if (q, a) in known:
            continue
        truth.append(MIDDLE + sign * worth)
        rows.append({"Question": q, "Answer": a, "Score": round(truth[-1] + NOISE * g.standard_normal(), 3)})
    return rows, np.array(truth)


def pairs(g: np.random.Generator, n: int, known: set) -> tuple[list[dict], float]:
    """n rows with the answer that was preferred, and the share that a perfect judge gets right.

    Preference follows Bradley and Terry: the better answer wins with probability sigmoid(difference).
    """
    rows, best = [], []
    while len(rows) < n:
        q, thing, sign = question(g)
        (a, x), (b, y) = answer(g, thing), answer(g, thing)
        if {(q, a), (q, b)} & known:
            continue
        p = 1 / (1 + np.exp(-2 * sign * (x - y)))
        first = g.random() < p
        best.append(max(p, 1 - p))
        rows.append({"Question": q, "Accepted_Answer": a if first else b, "Answer": b if first else a})
    return rows, float(np.mean(best))


def splits(draw, name: str, sizes: dict[str, int], seed: int) -> dict[str, tuple]:
    """Those to evaluate on are drawn first, and none of their texts is trained on."""
    known, out = set(), {}
    for split in sorted(sizes, key="train".__eq__):
        out[split] = draw(rng.generator(seed, name, split), sizes[split], known if split == "train" else set())
        known |= {(r["Question"], r[k]) for r in out[split][0] for k in ("Answer", "Accepted_Answer") if k in r}
    return {split: out[split] for split in sizes}


def bounds(rows: list[dict], truth: np.ndarray) -> dict[str, float]:
    """What a judge that knows everything but the noise reaches on these rows."""
    score = np.array([r["Score"] for r in rows])
    return {"mse": float(((score - truth) ** 2).mean()), "spearman": spearman(score, truth)}


def write_model(folder: Path, texts: list[str], seed: int) -> None:
    """An untrained GPT-2 of 2 layers in Hugging Face's format, with a byte-level BPE trained on the texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from core import disk, hf
    from model import GPT, GPTConfig

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=512, special_tokens=[END], initial_alphabet=alphabet,
                                                       show_progress=False))  # fmt: skip
    config = GPTConfig(block_size=256, vocab_size=512, n_layer=2, n_head=4, n_embd=64, bias=True, mlp_size=256,
                       activation_variant="gelu_tanh")  # fmt: skip
    rng.seed_torch(seed, "model")
    end = bpe.token_to_id(END)
    hf.save(folder, "gpt2", vars(config), GPT(config).state_dict(), bos_token_id=end, eos_token_id=end)
    disk.replace(folder / "tokenizer.json", lambda f: f.write(bpe.to_str(pretty=True).encode()))


def main(args: Options) -> dict[str, float]:
    from core import disk

    out = Path(args.out) if args.out else HERE
    out.mkdir(parents=True, exist_ok=True)
    sizes = {"train": args.train, "val": args.test, "test": args.test}
    scored, ranked = (splits(draw, draw.__name__, sizes, args.seed) for draw in (scores, pairs))
    for name, sets in (("scores", scored), ("pairs", ranked)):
        text = json.dumps({s: rows for s, (rows, _) in sets.items()}, indent=0)
        disk.replace(out / f"{name}.json", lambda f, text=text: f.write(text.encode()))
    rows = scored["train"][0]
    write_model(out / "gpt2", [f"Question: {r['Question']}\nAnswer: {r['Answer']}" for r in rows], args.seed)
    best = {**bounds(*scored["val"]), "accuracy": ranked["val"][1]}
    print(f"{out}: {sum(sizes.values()):,} rows in scores.json and in pairs.json, an untrained model in gpt2/")
    print(f"the best possible on val: val_mse {best['mse']:.4f}, val_spearman {best['spearman']:.4f};"
          f" pairs: val_accuracy {best['accuracy']:.4f}")  # fmt: skip
    return best


if __name__ == "__main__":
    with exits.guard():
        main(config.parse(Options, doc=__doc__))
