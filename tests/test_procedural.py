"""The nine tasks: definitions against brute force, distributions, the holdout; samples as a function of their place."""

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest

import procedural_data as P
from procedural_data import Spec, batch, block, cut, hash_rows, rows, teachable

ASKING = [t for t in P.TASKS if Spec(t, 2).asks]
LANGUAGES = ["dyck", "dyck_shuffle"]


def rng(*seed):
    return np.random.default_rng(list(seed))


def surprise(counts, expected) -> float:
    """Pearson's chi-square in standard deviations above its mean: above 5 is no chance."""
    counts, expected = np.asarray(counts, float).ravel(), np.asarray(expected, float).ravel()
    assert abs(counts.sum() - expected.sum()) < 1e-6 * counts.sum()
    freedom = len(counts) - 1
    return (((counts - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom)


def test_the_nine_tasks():
    assert set(P.TASKS) >= {*EXAMPLES, *LANGUAGES} and len(EXAMPLES) == 7
    assert set(ASKING) == set(P.TASKS) - set(LANGUAGES)


def test_an_answer_beyond_the_vocabulary_is_named(monkeypatch):
    """Of a task of one's own: it was an index out of range in self, on a GPU an assertion in a kernel."""
    monkeypatch.setattr(Spec("reverse", 7).module, "answer", lambda question, spec: 2 * question)
    with pytest.raises(AssertionError, match="reverse at length 7: a row holds 18, and PAD, the last token, is 11"):
        batch(Spec("reverse", 7, 10), 91, "train", 0, 4)


# -----------------------------------------------------------------------------
# definitions

S, _ = 10, 11  # SEP and PAD at vocab_size 10
EXAMPLES = {
    "identity": ([3, 1, 2], [3, 1, 2]),
    "reverse": ([3, 1, 2], [2, 1, 3]),
    "sort": ([3, 1, 2, 2], [1, 2, 2, 3]),
    "set": ([3, 1, 3, 2], [3, 1, 2, _, _]),
    "union": ([3, 1, S, 1, 2], [3, 1, 2, _, _]),
    "delete": ([3, 1, 2, 1, S, 1], [3, 2, 1, _, _]),
    "stack": ([5, 7, 0, 9], [9, 5, _]),
}


@pytest.mark.parametrize("task", EXAMPLES)
def test_documented_example(task):
    question, answer = EXAMPLES[task]
    spec = Spec(task, {"union": 4, "delete": 4}.get(task, len(question)), vocab_size=10)
    assert spec.module.answer(np.array([question], dtype=np.uint16), spec)[0].tolist() == answer
    assert spec.module.check(question, [v for v in answer if v != _], spec)


def test_delete_of_an_absent_value_changes_nothing():
    spec = Spec("delete", 3, vocab_size=10)
    answer = spec.module.answer(np.array([[3, 1, 2, S, 7]], dtype=np.uint16), spec)
    assert answer[0].tolist() == [3, 1, 2, _]


def brute_force(task: str, question: list[int], length: int) -> list[int]:
    """The definitions once more, a token at a time, sharing nothing with the tasks' own files."""
    out: list[int] = []
    if task == "identity":
        return question
    if task == "reverse":
        for v in question:
            out = [v] + out
    if task == "sort":
        for value in range(100):
            out += [value] * question.count(value)
    if task in ("set", "union"):
        for i, v in enumerate(question):
            if not (task == "union" and i == length // 2) and v not in out:
                out.append(v)
    if task == "delete":
        values, gone = question[:length], False
        for v in values:
            if v == question[length + 1] and not gone:
                gone = True
            else:
                out.append(v)
    if task == "stack":
        for v in question:
            out = [v] + out if v else out[1:]
    return out


@pytest.mark.parametrize("task", EXAMPLES)
def test_answers_equal_brute_force_on_10000_samples(task):
    wrong = 0
    for length, vocab, n in ((9, 8, 4000), (2, 5, 2000), (5, 4, 2000), (24, 60, 2000)):
        spec = Spec(task, length, vocab_size=vocab)
        question = spec.module.draw(rng(length), n, spec)
        answer = spec.module.answer(question, spec)
        assert question.dtype == answer.dtype == np.uint16 and len(answer) == n
        closed = {"set", "union", "delete", "stack"}
        for q, a in zip(question.tolist(), answer.tolist(), strict=True):
            expected = brute_force(task, q, length)
            stop = [spec.pad] * (answer.shape[1] - len(expected)) if task in closed else []
            assert a == expected + stop and (stop or task not in closed), (q, a)
            assert spec.module.check(q, expected, spec)
            other = expected[:-1] + [expected[-1] % (vocab - 1) + 1]
            wrong += other != expected and not spec.module.check(q, other, spec)
            assert not spec.module.check(q, expected + [1], spec)
    assert wrong > 9000


@pytest.mark.parametrize("task", ASKING)  # a task of your own, too
def test_an_answer_passes_its_tasks_check(task):
    for length, vocab in ((9, 8), (2, 5), (24, 60)):
        spec = Spec(task, length, vocab_size=vocab)
        question = spec.module.draw(rng(length), 200, spec)
        answer = spec.module.answer(question, spec)
        assert question.dtype == answer.dtype == np.uint16 and len(answer) == len(question) == 200
        for q, a in zip(question.tolist(), answer.tolist(), strict=True):
            a = a[: a.index(spec.pad)] if spec.pad in a else a
            assert spec.module.check(q, a, spec) and not spec.module.check(q, [*a, 1], spec)


def test_stack_follows_its_rules():
    for length, vocab in ((12, 20), (9, 4), (1, 5), (2, 5), (3, 5)):
        spec, kinds = Spec("stack", length, vocab_size=vocab), vocab - 1
        pushes = {True: [0, 0], False: [0, 0]}  # in the first two thirds or after: pushes, free choices
        for ops in spec.module.draw(rng(1), 4000, spec).tolist():
            stack = []
            for t, op in enumerate(ops):
                free = 1 < len(stack) < kinds and t < length - 1
                if not free:  # what the rules force
                    pop = len(stack) == kinds or (t == length - 1 and len(stack) > 1)
                    assert (op == 0) == pop, (ops, t)
                else:
                    early = t < 2 * length // 3
                    pushes[early][0] += op > 0
                    pushes[early][1] += 1
                assert op not in stack if op else stack, (ops, t)
                stack.append(op) if op else stack.pop()
        for early, p in ((True, 0.75), (False, 0.25)):
            n, total = pushes[early]
            assert not total or surprise([n, total - n], [p * total, (1 - p) * total]) < 5
    pushed = spec.module.draw(rng(2), 20000, Spec("stack", 3, vocab_size=6))[:, :2].astype(int)
    pairs = np.bincount(pushed[:, 0] * 6 + pushed[:, 1], minlength=36).reshape(6, 6)[1:, 1:]
    assert (np.diag(pairs) == 0).all()
    off = pairs[~np.eye(5, dtype=bool)]
    assert surprise(off, np.full(20, 1000)) < 5


@pytest.mark.parametrize("task", ["identity", "reverse", "sort", "set", "union", "delete"])
def test_values_are_uniform_at_every_place(task):
    spec = Spec(task, 6, vocab_size=12)
    question = spec.module.draw(rng(3), 44000, spec)
    for column in question.T:
        if (column == spec.sep).all():
            continue
        counts = np.bincount(column, minlength=12)
        assert counts[0] == 0 and surprise(counts[1:], np.full(11, 4000)) < 5
    pairs = question[:, 0].astype(int) * 12 + question[:, -1]
    counts = np.bincount(pairs, minlength=144).reshape(12, 12)[1:, 1:]
    assert surprise(counts, np.full(121, 44000 / 121)) < 5  # and independent


def words(task: str, spec: Spec) -> dict[tuple, float]:
    """Every word of a small language and its probability, by following the process token by token."""
    done, k = {}, spec.k

    def go(word, p):
        if len(word) == spec.length:
            done[word] = done.get(word, 0.0) + p
            return
        inside = []  # the open brackets, oldest first
        for token in word:
            inside.append(token) if token < k else inside.remove(token - k) if task == "dyck_shuffle" else inside.pop()
        left = spec.length - len(word)
        must_open = not inside
        must_close = len(inside) >= (left if task == "dyck" else spec.max_depth)
        p_open = 1.0 if must_open else 0.0 if must_close else spec.p_open
        closes = sorted(set(inside)) if task == "dyck_shuffle" else inside[-1:]
        for kind in range(k):
            if p_open:
                go((*word, kind), p * p_open / k)
        for kind in closes:
            if p_open < 1:
                go((*word, kind + k), p * (1 - p_open) / len(closes))

    go((), 1.0)
    return done


@pytest.mark.parametrize("spec", [
    Spec("dyck", 8, k=2), Spec("dyck", 6, k=3, p_open=0.25), Spec("dyck", 6, k=1, p_open=0.75),
    Spec("dyck_shuffle", 7, k=2, max_depth=3), Spec("dyck_shuffle", 5, k=3, p_open=0.75, max_depth=16),
    Spec("dyck_shuffle", 6, k=2, max_depth=1),
], ids=str)  # fmt: skip
def test_languages_follow_their_process(spec):
    law = words(spec.task, spec)
    assert abs(sum(law.values()) - 1) < 1e-12
    n = 200_000
    drawn = spec.module.draw(rng(4), n, spec).astype(np.int64)
    code = drawn @ ((2 * spec.k) ** np.arange(spec.length))
    known = {sum(t * (2 * spec.k) ** i for i, t in enumerate(w)): w for w in law}
    found, counts = np.unique(code, return_counts=True)
    assert set(found.tolist()) <= set(known)
    counts = dict(zip(found.tolist(), counts.tolist(), strict=True))
    common = [c for c in known if law[known[c]] * n > 5]
    rest = n - sum(counts.get(c, 0) for c in common)
    observed = [counts.get(c, 0) for c in common] + [rest] * (rest > 0)
    expected = [law[known[c]] * n for c in common] + [n * (1 - sum(law[known[c]] for c in common))] * (rest > 0)
    assert surprise(observed, np.array(expected) * sum(observed) / sum(expected)) < 5
    # odds: the same law, token by token
    every = np.array(list(law), dtype=np.uint16)
    odds = spec.module.odds(every, spec)
    assert odds.shape == (len(every), spec.length - 1, 2 * spec.k) and np.allclose(odds.sum(-1), 1, atol=1e-6)
    taken = np.take_along_axis(odds, every[:, 1:, None].astype(np.int64), axis=2)[..., 0]
    assert np.allclose(taken.prod(axis=1) / spec.k, list(law.values()), rtol=1e-5)


@pytest.mark.parametrize("task", LANGUAGES)
def test_languages_at_full_size(task):
    """10,000 words through the checker, and kinds uniform."""
    spec = Spec(task, 64, k=10)
    drawn = spec.module.draw(rng(5), 10_000, spec)
    for word in drawn.tolist():
        assert spec.module.check(word[:20], word[20:], spec)
    opens = np.bincount(drawn[drawn < 10], minlength=10)
    assert surprise(opens, np.full(10, opens.sum() / 10)) < 5
    spoilt = drawn[:200].copy()
    spoilt[:, 40] = (spoilt[:, 40] + 1) % 20
    verdicts = [spec.module.check([], w, spec) for w in spoilt.tolist()]
    assert sum(verdicts) < (1 if task == "dyck" else 120)
    assert not spec.module.check([], drawn[0, :-2].tolist(), spec)
    deep = spec.module.draw(rng(6), 500, Spec(task, 64, k=10, p_open=0.9, max_depth=5))
    depth = np.where(deep < 10, 1, -1).cumsum(axis=1)
    assert depth.min() >= 0 and depth.max() == (5 if task == "dyck_shuffle" else 32)
    assert task == "dyck_shuffle" or (depth[:, -1] == 0).all()


def test_best_loss_of_dyck_by_hand():
    """k = 1, length 4: after ( both come with 1/2, then nothing is open to chance: ln 2 over three predictions."""
    spec = Spec("dyck", 4, k=1)
    odds = spec.module.odds(np.array([[0, 0, 1, 1], [0, 1, 0, 1]], dtype=np.uint16), spec)
    assert odds[0].tolist() == [[0.5, 0.5], [0, 1], [0, 1]] and odds[1].tolist() == [[0.5, 0.5], [1, 0], [0, 1]]


# -----------------------------------------------------------------------------
# samples


@pytest.mark.parametrize("task", P.TASKS)
def test_a_sample_is_a_function_of_its_place(task):
    spec = Spec(task, 8)
    for split in ("train", "val"):
        whole, question = rows(spec, 7, split, P.size(split) - 30, 60)  # over the edge of a block
        part, _ = rows(spec, 7, split, P.size(split) - 5, 13)
        assert np.array_equal(whole[25:38], part)
        block.cache_clear()
        assert np.array_equal(whole, rows(spec, 7, split, P.size(split) - 30, 60)[0])
        others = [rows(spec, 8, split, P.size(split) - 30, 60)[0], rows(spec, 7, split, 0, 60)[0]]
        assert not any(np.array_equal(whole, o) for o in others)
    assert not np.array_equal(rows(spec, 7, "train", 0, 60)[0], rows(spec, 7, "probe", 0, 60)[0])


def test_samples_are_the_same_in_another_process():
    sums = "[int(hash_rows(rows(Spec(t, 6), 3, 'val', 5, 9)[0]).sum()) for t in TASKS]"
    code = f"from procedural_data import *; print({sums})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == str(eval(sums, {**vars(P)}))


def test_targets_are_the_answer_and_the_first_pad():
    spec = Spec("set", 4, vocab_size=4)
    x, y = batch(spec, 0, "train", 0, 200)
    row, question = rows(spec, 0, "train", 0, 200)
    assert x.dtype == y.dtype == np.int64 and question == 4 and row.shape[1] == 4 + 1 + 3 + 1
    for i in range(200):
        values = list(dict.fromkeys(row[i, :4].tolist()))
        target = [-100] * 4 + values + [spec.pad] + [-100] * (3 - len(values))
        assert y[i].tolist() == target and x[i, 4] == spec.sep and x[i].tolist() == row[i, :-1].tolist()
    x, y = batch(Spec("dyck", 6), 0, "train", 0, 5)
    assert (y >= 0).all() and (y[:, :-1] == x[:, 1:]).all()  # every next token
    x, y = batch(Spec("reverse", 3), 0, "train", 0, 5)
    assert (y[:, :3] == -100).all() and (y[:, 3:] == x[:, 2::-1]).all() and x.shape == (5, 6)  # no PAD to learn
    x, y = batch(Spec("reverse", 3, vocab_size=65534), 0, "train", 0, 100)  # ids that do not fit 15 bits
    assert (y[:, 3:] == x[:, 2::-1]).all() and x.max() > 60000


@pytest.mark.parametrize("task", P.TASKS)
def test_rows_stay_inside_the_vocabulary(task):
    spec = Spec(task, 6, vocab_size=9, k=5)
    row, _ = rows(spec, 0, "train", 0, 500)
    assert row.max() <= spec.pad and (spec.asks or row.max() < spec.pad)
    assert spec.pad == (10 if spec.asks else 10) and spec.sep == 9


# -----------------------------------------------------------------------------
# the holdout


def questions(spec: Spec, seed: int, split: str, n: int) -> np.ndarray:
    row, width = rows(spec, seed, split, 0, n)
    return np.ascontiguousarray(row[:, : width or None]).view(f"V{2 * (width or row.shape[1])}").ravel()


def disjoint(task: str, length: int, n_train: int, n_val: int) -> None:
    """By the questions themselves, not their hashes; the two sides even come from different seeds."""
    spec = Spec(task, length)
    train = {q.tobytes() for q in np.unique(questions(spec, 1, "train", n_train))}
    probe = {q.tobytes() for q in np.unique(questions(spec, 1, "probe", n_val))}
    for seed in (1, 2):
        val = {q.tobytes() for q in np.unique(questions(spec, seed, "val", n_val // 2))}
        assert val and train and not val & train and not val & probe


@pytest.mark.parametrize("length", [2, 16, 64])
@pytest.mark.parametrize("task", P.TASKS)
def test_no_question_is_on_both_sides(task, length):
    disjoint(task, length, 6000, 600)


@pytest.mark.full
@pytest.mark.parametrize("length", [2, 16, 64])
@pytest.mark.parametrize("task", P.TASKS)
def test_no_question_is_on_both_sides_in_a_million(task, length):
    disjoint(task, length, 900_000, 50_000)
    block.cache_clear()


@pytest.mark.parametrize("task", P.TASKS)
def test_tiny_spaces_have_both_sides(task):
    """Wherever there are two questions; where there is one, it says so."""
    for length, vocab, k in itertools.product((1, 2, 3, 4), (2, 3, 4), (1, 2, 3)):
        try:
            spec = Spec(task, length, vocab_size=vocab, k=k)
            space = {q.tobytes() for q in spec.module.draw(rng(8), 4000, spec)}
        except ValueError as e:
            assert length % 2 and "got seq_length" in str(e)
            continue
        if len(space) == 1:
            with pytest.raises(ValueError, match="single question"):
                cut(spec)
            continue
        sides = [{q.tobytes() for q in questions(spec, 3, split, n)} for split, n in (("train", 1000), ("val", 200))]
        assert all(sides) and not sides[0] & sides[1] and sides[0] | sides[1] <= space
    cut.cache_clear()


def test_the_side_of_a_question_is_the_same_at_every_length_that_has_it():
    for vocab in (3, 4, 20):  # union: lengths 4 and 5 both have halves of 2
        assert cut(Spec("union", 4, vocab_size=vocab)) == cut(Spec("union", 5, vocab_size=vocab))


def test_nearly_all_spaces_share_one_cut():
    usual = {int(cut(Spec(t, n, vocab_size=v, k=64))) for t in P.TASKS for n, v in ((16, 21), (64, 100), (4, 30))}
    assert usual == {int(P.HELD_OUT * 2**64)}


def test_rejection_takes_the_held_out_questions_and_no_others():
    spec = Spec("identity", 2, vocab_size=11)  # 100 questions
    draws = spec.module.draw(rng(9), 20_000, spec)
    held_out = {q.tobytes() for q, h in zip(draws, hash_rows(draws), strict=True) if h < cut(spec)}
    assert 1 <= len(held_out) <= 16
    for split, kept, n in (("train", 100 - len(held_out), 60_000), ("val", len(held_out), 3000)):
        row, _ = rows(spec, 5, split, 0, n)
        code = row[:, 0].astype(int) * 11 + row[:, 1]
        counts = np.bincount(code, minlength=121)
        counts = counts[counts > 0]
        assert len(counts) == kept and (kept == 1 or surprise(counts, np.full(kept, n / kept)) < 5)
    # the sides do not lean on any token
    long = Spec("identity", 16, vocab_size=21)
    draws = long.module.draw(rng(10), 200_000, long)
    side = hash_rows(draws) < cut(long)
    assert abs(side.mean() - P.HELD_OUT) < 0.003
    for column in (0, 3, 7, 15):
        counts = np.bincount(draws[side, column], minlength=21)[1:]
        assert surprise(counts, np.full(20, counts.sum() / 20)) < 5


def test_hash_sees_every_token_and_its_place():
    base = np.arange(1, 18, dtype=np.uint16)[None]
    changed = [base]
    for i in range(17):
        other = base.copy()
        other[0, i] += 100
        changed.append(other)
    changed.append(base[:, ::-1])
    assert len({int(hash_rows(c)[0]) for c in changed}) == len(changed)


def test_teachable():
    assert not teachable(Spec("dyck", 2)) and not teachable(Spec("dyck_shuffle", 2, k=64))
    assert teachable(Spec("dyck", 4)) and all(teachable(Spec(t, 2, vocab_size=100)) for t in ASKING)


@pytest.mark.parametrize("change, name", [
    ({"task": "sorting"}, "task"), ({"length": 0}, "seq_length"), ({"vocab_size": 1}, "vocab_size"), ({"k": 0}, "k"),
    ({"vocab_size": 65535}, "vocab_size"), ({"p_open": 1.5}, "p_open"), ({"max_depth": 0}, "max_depth"),
])  # fmt: skip
def test_bad_specs_say_what_is_wrong(change, name):
    with pytest.raises(ValueError, match=name):
        Spec(**{"task": "sort", "length": 4, **change})


@pytest.mark.parametrize("task, length", [("dyck", 7), ("union", 1), ("dyck_shuffle", 1)])
def test_lengths_that_a_task_cannot_have_are_refused(task, length):
    with pytest.raises(ValueError, match=f"got seq_length {length}"):
        Spec(task, length)
