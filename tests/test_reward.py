"""reward_train.py: one text, one score; each key acts; what is frozen stays; runs, scores and faults."""

import csv
import json
import math
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import export_hf
import reward_train
from core import checkpoint, config, exits, run, scores, tracker
from data import encoding, pretrained, qa, scorer, vocab
from data.qa_toy import prepare
from model import GPT, GPTConfig, Roberta, RobertaConfig, RobertaMLM, ScoreModel

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    prepare.main(prepare.Options(out=str(folder), train=40, test=12))
    rows = json.loads((folder / "scores.json").read_text())
    several = {
        s: [{**r, "Question": f"How good is number {i % 6}?"} for i, r in enumerate(part)] for s, part in rows.items()
    }
    (folder / "several.json").write_text(json.dumps(several))  # answers to each question
    return folder


@pytest.fixture
def pictures():
    """For a test that looks at them."""


@pytest.fixture(autouse=True)
def no_pictures(request, monkeypatch):
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(tracker, "draw", lambda *a: None)
        monkeypatch.setattr(reward_train, "draw", lambda *a: None)


def options(argv: list) -> reward_train.Options:
    argv = [str(a) for a in argv]
    return config.parse(reward_train.Options, argv, doc="", config_flags=("--config", "--config_file"))


def train(toy: Path, out: Path, *flags, data: str = "scores.json") -> dict:
    """Two steps of 8 samples in float32 unless told otherwise; the last checkpoint."""
    base = [f"--data.data_dir={toy / data}", f"--model_name={toy / 'gpt2'}", f"--trainer.checkpoint.dirpath={out}",
            "--trainer.params.accelerator=cpu", "--trainer.params.precision=32", "--trainer.params.max_steps=2",
            "--data.batch_size=8", "--trainer.params.log_every_n_steps=1",
            "--model_params.learning_rate=1e-2"]  # fmt: skip
    reward_train.main(options([*base, *flags]))
    return checkpoint.load(out / "ckpt.pt")


def refuse(said: str, toy: Path, out: Path, *flags, **kw) -> None:
    """The run ends with one line of our own, and frees its folder."""
    with pytest.raises(ValueError, match=said) as e:
        train(toy, out, *flags, **kw)
    assert exits.ours(e.value) and "\n" not in str(e.value)
    if exits.held:
        exits.held.leave(exits.BAD_INPUT)


def changed(a: dict, b: dict) -> set[str]:
    return {k for k in a if not torch.equal(a[k], b[k])}


def gpt_scores(seed: int = 0, **kw) -> ScoreModel:
    torch.manual_seed(seed)
    model = ScoreModel(GPT(GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=96, vocab_size=50, bias=True, **kw)))
    for w in model.parameters():
        if w.dim() > 1:
            torch.nn.init.normal_(w, std=0.2)
    return model.eval()


def texts_of(seed: int, n: int, eos: int = 0) -> list[list[int]]:
    """n texts of 1 to 60 ids that end with EOS, some of them with EOS inside, which is 0 as the padding is."""
    g = np.random.default_rng(seed)
    texts = [[*g.integers(0, 50, g.integers(0, 60)).tolist(), eos] for _ in range(n)]
    for text in texts[::3]:
        text[len(text) // 2] = eos
    return texts


def score(model, texts: list[list[int]], width: int | None = None) -> list[float]:
    with torch.no_grad():
        tokens, lengths = torch.tensor([t for text in texts for t in text]), torch.tensor([len(t) for t in texts])
        return model(tokens, lengths, width).tolist()


# -----------------------------------------------------------------------------
# one text, one score


def encoder_scores(**kw) -> ScoreModel:
    torch.manual_seed(0)
    c = RobertaConfig(n_layer=2, n_head=2, n_embd=32, mlp_size=64, block_size=96, vocab_size=50, pad_id=0, **kw)
    model = ScoreModel(Roberta(c))
    for w in model.parameters():
        if w.dim() > 1:
            torch.nn.init.normal_(w, std=0.2)
    return model.eval()


@pytest.mark.parametrize("kw", [{}, {"position": "alibi"}, {"position": "rope"}])
def test_same_text_same_score_on_an_encoder(kw):
    model, texts = encoder_scores(**kw), [[1, *t] for t in texts_of(1, 64, eos=2)]
    alone = [score(model, [t])[0] for t in texts]
    assert np.std(alone) > 0.1
    for n in (2, 3, 16, 64):
        for start in range(0, 64, n):
            assert score(model, texts[start : start + n]) == pytest.approx(alone[start : start + n], abs=1e-5)
    hidden = model.backbone.encode(torch.tensor(texts[3]), torch.tensor([len(texts[3])]))
    assert alone[3] == pytest.approx(model.head(hidden[:1]).item(), abs=1e-5)  # read at <s>


WIRINGS = [
    {},
    {"position": "rotary"},
    {"n_kv_group": 1, "window_size": 5},
    {"position": "alibi", "use_parallel_mlp": True, "use_peri_ln": True},
    {"use_post_ln": True, "use_pre_ln": False, "use_gradient_checkpointing": True},
]


@pytest.mark.parametrize("kw", WIRINGS)
def test_same_text_same_score(kw):
    model, texts = gpt_scores(**kw), texts_of(1, 64)
    alone = [score(model, [t])[0] for t in texts]
    assert np.std(alone) > 0.1
    for n in (2, 3, 16, 64):
        for start in range(0, 64, n):
            assert score(model, texts[start : start + n]) == pytest.approx(alone[start : start + n], abs=1e-5)
    for width in (61, 64, 96):
        assert score(model, texts, width) == pytest.approx(alone, abs=1e-5)
    order = np.random.default_rng(2).permutation(64)
    assert score(model, [texts[i] for i in order]) == pytest.approx([alone[i] for i in order], abs=1e-5)


@pytest.mark.parametrize("kw", WIRINGS)
def test_the_score_is_read_at_the_last_real_token_also_where_it_equals_the_padding(kw):
    """The last layer is computed there only; the whole hidden state says the same."""
    model, text = gpt_scores(**kw), [7, 0, 9, 0, 0]
    hidden = model.backbone.hidden(torch.tensor([text]))
    assert hidden.shape == (1, 5, 32)
    assert score(model, [text], 96)[0] == pytest.approx(model.score(hidden[0, 4]).item(), abs=1e-5)
    assert abs(score(model, [text])[0] - score(model, [text[:4]])[0]) > 1e-3


def test_scores_and_labels_of_another_shape_are_refused():
    with pytest.raises(AssertionError):
        reward_train.losses(reward_train.ModelParams(), "mse", torch.zeros(4, 1), torch.zeros(4))
    with pytest.raises(AssertionError):
        gpt_scores()(torch.zeros(5, dtype=torch.long), torch.tensor([2, 2]))


@pytest.mark.parametrize("use_cache", [False, True])
def test_a_questions_keys_and_values_are_reused_without_changing_a_score(use_cache, monkeypatch):
    model, g = gpt_scores(), np.random.default_rng(3)
    questions = [g.integers(0, 50, n).tolist() for n in (40, 7, 13)]
    starts = [questions[i % 3] for i in range(20)]
    texts = [([*start, *g.integers(0, 50, g.integers(1, 30)).tolist()], len(start)) for start in starts]
    texts.append((questions[0] + [3, 4], 30))  # a question cut elsewhere is another one
    seen, hidden = [], model.backbone.hidden
    monkeypatch.setattr(model.backbone, "hidden", lambda x, *a, **k: seen.append(x.numel()) or hidden(x, *a, **k))
    found = scores.predict(model, texts, 4, torch.device("cpu"), use_cache)
    work = sum(seen)
    assert found == pytest.approx([score(model, [ids])[0] for ids, _ in texts], abs=1e-5)
    real = sum(len(ids) for ids, _ in texts)
    assert work < 0.8 * real if use_cache else work >= real


@pytest.mark.parametrize("longest", [16, 33, 47, 65])
@pytest.mark.parametrize("kw", [{}, {"position": "rotary"}, {"attn_logit_softcapping": 5.0}, {"position": "alibi"},
                                {"softmax_variant_attn": "sigmoid"}, {"window_size": 5}])  # fmt: skip
def test_a_shared_question_in_16_bit(kw, longest):
    """Where shapes are rounded up, the cache has to have room for that; also at the end of the context."""
    model, g = gpt_scores(**kw), np.random.default_rng(0)
    question = g.integers(0, 50, 31).tolist()
    texts = [([*question, *g.integers(0, 50, n).tolist()], 31) for n in (longest, 3, 20)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cached, alone = (scores.predict(model, texts, 4, torch.device("cpu"), use_cache) for use_cache in (True, False))
    assert np.abs(cached - alone).max() < 0.05 * max(1.0, np.abs(alone).max())


# -----------------------------------------------------------------------------
# losses and metrics


def test_losses_by_hand():
    p, x, y = reward_train.ModelParams(), torch.tensor([1.0, -2.0]), torch.tensor([0.5, 1.0])
    assert reward_train.losses(p, "mse", x, y).tolist() == [0.25, 9.0]
    assert reward_train.losses(p, "mae", x, y).tolist() == [0.5, 3.0]
    sigmoid = 1 / (1 + math.exp(-3))
    assert reward_train.losses(p, "pairwise", x, y).item() == pytest.approx(-math.log(sigmoid))
    p.margin, p.center = 2.0, 0.1  # margin 2 * (0.5 - 1), center 0.1 * (1 - 2) ** 2
    assert reward_train.losses(p, "pairwise", x, y).item() == pytest.approx(math.log1p(math.exp(-4)) + 0.1)


def test_metrics_equal_their_references():
    stats = pytest.importorskip("scipy.stats")
    g = np.random.default_rng(0)
    label, own = g.normal(2, 3, 50).round(), g.normal(size=50).round(1)  # with ties
    data = qa.QA(np.zeros(50, np.int32), np.arange(51), label, np.arange(50).reshape(-1, 1))
    out = reward_train.measure(reward_train.ModelParams(), "mse", own, data, 2.0, 3.0)
    pred = own * 3 + 2
    assert out["val_loss"] == pytest.approx(((own - (label - 2) / 3) ** 2).mean())
    assert out["val_mse"] == pytest.approx(((pred - label) ** 2).mean())
    assert out["val_mae"] == pytest.approx(abs(pred - label).mean())
    assert out["val_accuracy"] == ((pred >= 0) == (label >= 0)).mean()
    assert out["val_spearman"] == pytest.approx(stats.spearmanr(pred, label).statistic)
    assert out["val_pearson"] == pytest.approx(stats.pearsonr(pred, label).statistic)
    assert math.isnan(scores.spearman(np.ones(5), np.arange(5)))


def test_pairs_are_measured_by_their_order():
    own = np.array([1.0, 0.0, 2.0, 3.0, -1.0, -2.0])
    data = qa.QA(np.zeros(6, np.int32), np.arange(7), np.full(6, np.nan), np.arange(6).reshape(-1, 2))
    out = reward_train.measure(reward_train.ModelParams(), "pairwise", own, data, 0.0, 1.0)
    assert out["val_accuracy"] == pytest.approx(2 / 3) and set(out) == {"val_loss", "val_accuracy"}
    assert out["val_loss"] == pytest.approx(np.log1p(np.exp(-np.array([1.0, -1.0, 1.0]))).mean())


# -----------------------------------------------------------------------------
# freezing


GROUPS = {"emb": ("wte", "wpe"), "ln": ("ln_",), "attn": (".attn.",), "ff": (".mlp.",)}


@pytest.mark.parametrize("part", [*GROUPS, "none", "all"])
def test_what_is_frozen_stays_bit_identical_and_the_rest_trains(part, toy, tmp_path, capsys):
    parts = {"none": [], "all": [*GROUPS, "other"]}.get(part, [part])
    before = scorer.open_model(str(toy / "gpt2"), 0.0)[0].state_dict()
    after = train(toy, tmp_path / "r", *(f"--model_params.freeze_{name}" for name in parts))["model"]
    frozen = {k for k in before if any(mark in k for name in parts for mark in GROUPS.get(name, ()))}
    assert changed(before, after) == set(before) - frozen
    said = capsys.readouterr().out
    count = sum(before[k].numel() for k in frozen)
    rows = [line.split() for line in said.splitlines() if line.split()[:1] and line.split()[0] in [*GROUPS, "head"]]
    assert sum(int(row[-1].replace(",", "")) for row in rows) == count
    assert sum(int(row[-2].replace(",", "")) for row in rows) == sum(w.numel() for w in before.values()) - count


def test_layers_not_to_freeze_wins(toy, tmp_path, capsys):
    before = scorer.open_model(str(toy / "gpt2"), 0.0)[0].state_dict()
    flags = [f"--model_params.freeze_{name}" for name in (*GROUPS, "other")]
    after = train(toy, tmp_path / "r", *flags, "--model_params.layers_not_to_freeze", "-1", "11")["model"]
    assert changed(before, after) == {k for k in before if ".h.1." in k or k == "score.weight"}
    assert "there are no layers [11]: the model's are 0 to 1" in capsys.readouterr().out


def test_do_freeze_absent_means_true_as_soon_as_a_freeze_is(toy, tmp_path):
    before = scorer.open_model(str(toy / "gpt2"), 0.0)[0].state_dict()
    for flags, still in [([], True), (["--model_params.do_freeze"], True), (["--model_params.do_freeze=false"], False)]:
        after = train(toy, tmp_path / str(flags), "--model_params.freeze_emb", *flags)["model"]
        assert ("transformer.wte.weight" not in changed(before, after)) == still
    after = train(toy, tmp_path / "all", "--model_params.do_freeze")["model"]
    assert changed(before, after) == set(before)


# -----------------------------------------------------------------------------
# each key acts


PAIRS = "--data.data_dir={toy}/several.json --model_params.loss=pairwise "


@pytest.mark.parametrize(
    "base, more",
    [
        ("", "--data.batch_size=4"), ("", "--seed=3"), ("", "--data.max_length=12"), ("", "--data.max_prompt_length=2"),
        ("--data.max_length=30", "--data.truncate_promt=false"), ("", "--model_params.adam_betas 0.5 0.6"),
        ("", "--model_params.learning_rate=1e-3"), ("", "--model_params.warmup_steps_per_cent=1"),
        ("", "--model_params.weight_decay=9"), ("", "--model_params.mae_loss"), ("", "--model_params.loss=mae"),
        ("--data.data_dir={toy}/several.json", "--model_params.loss=pairwise"), ("", "--model_params.dropout=0.5"),
        ("", "--trainer.params.accumulate_grad_batches=2"), ("", "--trainer.params.gradient_clip_val=0.01"),
        ("", "--trainer.params.max_steps=1"), ("", "--trainer.params.precision=bf16"),
        ("", "--trainer.params.overfit_batches=1"), (PAIRS, "--model_params.margin=1"),
        (PAIRS, "--model_params.center=1"),
    ],
)  # fmt: skip
def test_the_key_changes_the_weights(base, more, toy, tmp_path):
    base, more = (text.format(toy=toy).split() for text in (base, more))
    a, b = train(toy, tmp_path / "a", *base), train(toy, tmp_path / "b", *base, *more)
    assert changed(a["model"], b["model"])


def test_dropout_is_off_unless_asked_for(toy, tmp_path):
    cfg = json.loads((toy / "gpt2" / "config.json").read_text())
    shutil.copytree(toy / "gpt2", tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text(
        json.dumps(cfg | dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.1))
    )
    assert scorer.open_model(str(tmp_path / "m"), 0.0)[0].config.dropout == 0
    assert scorer.open_model(str(tmp_path / "m"), 0.3)[0].transformer.drop.p == 0.3


def test_the_learning_rate_warms_up_and_decays_linearly(toy, tmp_path):
    flags = ["--trainer.params.max_epochs=2", "--trainer.params.max_steps=none", "--data.batch_size=4"]
    train(toy, tmp_path, *flags, "--model_params.warmup_steps_per_cent=0.25")
    rates = [r["lr"] for r in tracker.read(tmp_path / "train.csv")]
    assert len(rates) == 20  # 2 epochs of 40 samples, 4 at a time
    assert rates[:6] == pytest.approx([1e-2 * (i + 1) / 6 for i in range(6)])
    assert rates[5:] == pytest.approx([1e-2 * (1 - i / 15) for i in range(15)])


def test_every_n_train_steps_saves_and_val_check_interval_counts_batches(toy, tmp_path, monkeypatch):
    saved, real = [], checkpoint.save

    def save(path, state, **kw):
        saved.append(state["step"])
        real(path, state, **kw)

    monkeypatch.setattr(checkpoint, "save", save)
    flags = ["--data.batch_size=2", "--trainer.params.max_steps=12", "--trainer.params.num_sanity_val_steps=0"]
    keep = ["--trainer.checkpoint.every_n_train_steps=5", "--trainer.checkpoint.log_obg=val_pearson"]
    train(toy, tmp_path / "a", *flags, *keep, "--trainer.params.val_check_interval=100")
    assert saved == [5, 10, 12]
    for name, interval, steps in [
        ("b", "4", [4, 8, 12]),
        ("c", "0.2", [4, 8, 12]),
        ("d", "1.0", [12]),
        ("e", "7", [7, 12]),
    ]:
        train(toy, tmp_path / name, *flags, f"--trainer.params.val_check_interval={interval}")
        assert [r["step"] for r in tracker.read(tmp_path / name / "eval.csv")] == steps, interval
    flags[0] = "--data.batch_size=1"  # 4 batches are 2 steps of 2
    train(
        toy,
        tmp_path / "f",
        *flags,
        "--trainer.params.accumulate_grad_batches=2",
        "--trainer.params.val_check_interval=4",
    )
    assert [r["step"] for r in tracker.read(tmp_path / "f" / "eval.csv")] == [2, 4, 6, 8, 10, 12]


def test_of_equal_accuracies_the_one_with_the_lower_loss_is_best(toy, tmp_path, monkeypatch):
    found = iter([(9.0, 1.0), (8.0, 1.0), (7.0, 1.0), (7.5, 1.0), (6.0, 0.9)])  # the first asks which metrics there are
    monkeypatch.setattr(reward_train, "measure", lambda *_: dict(zip(("val_loss", "val_accuracy"), next(found), strict=True)))
    train(toy, tmp_path / "r", "--trainer.params.max_steps=4", "--trainer.params.val_check_interval=1",
          "--trainer.checkpoint.log_obg=val_accuracy")  # fmt: skip
    assert checkpoint.load(tmp_path / "r" / "best.pt")["step"] == 2


def test_best_is_chosen_by_log_obg_and_mode(toy, tmp_path, capsys):
    flags = [
        "--trainer.params.max_steps=10",
        "--trainer.params.val_check_interval=1",
        "--model_params.learning_rate=0.1",
    ]
    for name, mode, pick in [("val_mse", "min", min), ("val_mse", "max", max), ("val_pearson", "null", max)]:
        train(
            toy,
            tmp_path / (name + mode),
            *flags,
            f"--trainer.checkpoint.monitor={name}",
            f"--trainer.checkpoint.mode={mode}",
        )
        assert ("mode max takes the worst val_mse for the best" in capsys.readouterr().out) == (mode == "max")
        rows = tracker.read(tmp_path / (name + mode) / "eval.csv")
        best = checkpoint.load(tmp_path / (name + mode) / "best.pt")
        assert best["best"] == pick(r[name] for r in rows)
        assert best["step"] == next(r["step"] for r in rows if r[name] == best["best"])


def test_a_resume_that_chooses_by_another_metric_begins_its_choice_anew(toy, tmp_path):
    """A loss of 0.9 is no accuracy to beat."""
    flags = ["--trainer.params.val_check_interval=1"]
    assert train(toy, tmp_path / "r", *flags)["best"] is not None
    more = [*flags, "--init_from=resume", "--trainer.params.max_steps=5"]
    end = train(toy, tmp_path / "r", *more, "--trainer.checkpoint.monitor=val_accuracy")
    rows = [r for r in tracker.read(tmp_path / "r" / "eval.csv") if r["step"] > 2]
    assert end["best"] == max(r["val_accuracy"] for r in rows)
    assert checkpoint.load(tmp_path / "r" / "best.pt")["step"] in [r["step"] for r in rows]


def test_do_compute_metrics_false_leaves_val_loss(toy, tmp_path):
    train(toy, tmp_path / "a", "--model_params.do_compute_metrics=false")
    assert set(tracker.read(tmp_path / "a" / "eval.csv")[0]) == {"step", "train_loss", "val_loss"}
    flags = ["--model_params.do_compute_metrics=false", "--trainer.checkpoint.log_obg=val_mse"]
    refuse("log_obg val_mse is not measured here, only val_loss, train_loss", toy, tmp_path / "b", *flags)
    refuse(
        "log_obg val_mse is not measured here, only val_loss, val_acc", toy, tmp_path / "b", flags[1], data="pairs.json"
    )


def test_num_sanity_val_steps_counts_batches(toy, tmp_path, capsys, monkeypatch):
    seen, read = [], ScoreModel.forward
    monkeypatch.setattr(
        ScoreModel, "forward", lambda m, *a: (seen.append(len(a[1])) if not m.training else 0) or read(m, *a)
    )
    for n, batches in [("0", 0), ("1", 1), ("-1", 3), ("0.7", 2), ("99", 3)]:
        seen.clear()
        train(toy, tmp_path / n, f"--trainer.params.num_sanity_val_steps={n}", "--data.batch_size=4")
        assert len(seen) - 3 == batches, n  # 3: the evaluation after the last step
        assert (f"sanity     {batches} evaluation" in capsys.readouterr().out) == bool(batches)
    seen.clear()
    train(toy, tmp_path / "p", "--trainer.params.num_sanity_val_steps=-1", "--data.batch_size=4", data="pairs.json")
    assert len(seen) == 12 and sum(seen) == 48  # all texts, twice


def test_overfit_batches_trains_and_evaluates_on_the_first_ones(toy, tmp_path):
    flags = [
        "--trainer.params.max_steps=150",
        "--model_params.learning_rate=3e-3",
        "--trainer.params.val_check_interval=150",
    ]
    train(toy, tmp_path / "a", *flags, "--trainer.params.overfit_batches=1")
    assert tracker.read(tmp_path / "a" / "eval.csv")[-1]["val_loss"] < 0.05
    state = train(toy, tmp_path / "b", "--trainer.params.overfit_batches=0.4", "--trainer.params.max_steps=none",
                  "--trainer.params.max_epochs=3")  # fmt: skip
    assert state["step"] == 6  # 2 of the 5 batches
    state = train(toy, tmp_path / "c", "--trainer.params.overfit_batches=0.01", "--trainer.params.max_steps=none",
                  "--trainer.params.max_epochs=3")  # fmt: skip
    assert state["step"] == 3  # a share that is less than a batch is one, not all


def test_on_tpu_pads_to_max_length_and_changes_no_loss(toy, tmp_path, monkeypatch):
    shapes, hidden = set(), GPT.hidden
    monkeypatch.setattr(GPT, "hidden", lambda m, idx, *a, **k: shapes.add(tuple(idx.shape)) or hidden(m, idx, *a, **k))
    flags = [
        "--data.batch_size=16",
        "--trainer.params.max_steps=3",
        "--data.max_length=80",
        "--trainer.params.num_sanity_val_steps=0",
    ]
    train(toy, tmp_path / "a", *flags)
    assert len(shapes) > 2
    shapes.clear()
    train(toy, tmp_path / "b", *flags, "--data.on_tpu")
    assert {w for _, w in shapes} == {80} and {n for n, _ in shapes} <= {16, 12}  # 12 evaluation rows
    a, b = ([r["loss"] for r in tracker.read(tmp_path / x / "train.csv")] for x in "ab")
    assert len(a) == 3 and a == pytest.approx(b, abs=1e-5)


def test_texts_of_all_lengths_make_few_shapes(monkeypatch):
    """16-bit products compile a kernel a shape on a CPU: there texts are padded to round lengths, within the model's."""
    model, seen, hidden = gpt_scores(), set(), GPT.hidden
    texts = [np.random.default_rng(n).integers(0, 50, n).tolist() for n in range(1, 97)]
    with torch.no_grad():
        alone = [score(model, [text])[0] for text in texts]
        monkeypatch.setattr(sys.modules["model"], "compiles_shapes", lambda device: True)
        monkeypatch.setattr(GPT, "hidden", lambda m, idx, *a, **k: seen.add(idx.shape[1]) or hidden(m, idx, *a, **k))
        for text, want in zip(texts, alone, strict=True):
            assert score(model, [text]) == pytest.approx([want], abs=1e-5)
        assert len(seen) < 64 and max(seen) == 96, sorted(seen)
        both = model.answers(torch.tensor(texts[90]), torch.tensor([*texts[0], *texts[4]]), torch.tensor([1, 5]))
        want = score(model, [texts[90] + texts[0], texts[90] + texts[4]])
    assert both.tolist() == pytest.approx(want, abs=1e-5)


def test_misspelt_keys_stand_beside_right_ones():
    for a, b in [("truncate_promt", "truncate_prompt")]:
        assert options([f"--data.{a}=false"]) == options([f"--data.{b}=false"])
    for name in ("log_obg", "monitor", "log_obj"):
        assert options([f"--trainer.checkpoint.{name}=val_mse"]).trainer.checkpoint.log_obg == "val_mse"
    with pytest.raises(ValueError, match="did you mean"):
        options(["--data.truncate_promtt=false"])


def test_precision_and_accelerator(monkeypatch):
    def of(**kw):
        return reward_train.machine(reward_train.Params(**kw))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert of(precision="16")[:2] == ("cpu", "auto") and "is auto on a CPU" in of(precision="16-mixed")[2]
    assert of(precision="bf16")[1] == of(precision="bf16-mixed")[1] == "bfloat16" and of(precision="32")[1] == "float32"
    for name in ("gpu", "tpu"):
        with pytest.raises(ValueError, match=f"accelerator {name} is not there: use cpu or auto"):
            of(accelerator=name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert of(precision="16")[:2] == of(precision="16-mixed", accelerator="gpu")[:2] == ("cuda", "float16")
    assert of(accelerator="cpu", precision="16")[:2] == ("cpu", "auto")
    with pytest.raises(ValueError, match="warmup_steps_per_cent must be between 0 and 1, got"):
        options(["--model_params.warmup_steps_per_cent=1.5"])
    assert options(["--trainer.params.precision=16"]).trainer.params.precision == "16"


@pytest.mark.parametrize(
    "text, whole, is_", [("435", 10, 435), ("0.25", 8, 2), ("1.0", 8, 8), ("1", 8, 1), ("-1", 8, 8)]
)
def test_a_number_of_batches_or_a_share(text, whole, is_):
    assert reward_train.some(text, "x", whole) == is_


@pytest.mark.parametrize("text", ["2.5", "-2", "many", "-0.5", "nan", "1e400"])
def test_what_is_neither_is_refused(text):
    with pytest.raises(ValueError, match=r"x must be a number of batches, or a share between 0\. and 1\., got"):
        reward_train.some(text, "x", 8)


def test_wandb_args_arrive_and_the_key_is_never_saved(toy, tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(tracker, "open_wandb", lambda folder, about, *a: seen.update(about))
    flags = ["--wandb.args.group=g", "--wandb.args.job_type=j", "--wandb.args.name=n", "--wandb.project_name=p"]
    train(toy, tmp_path / "a", "--wandb.api=sesame", *flags)
    assert seen == {"key": "sesame", "project": "p", "name": "n", "group": "g", "job_type": "j"}
    for file in (tmp_path / "a").rglob("*"):
        assert not file.is_file() or b"sesame" not in file.read_bytes(), file
    seen.clear()
    train(toy, tmp_path / "b", "--wandb.api=text", "--wandb.args.project_name=q")
    assert seen["key"] == "" and seen["project"] == "q"
    seen.clear()
    train(toy, tmp_path / "c", "--wandb.api=text")
    assert not seen


# -----------------------------------------------------------------------------
# what the data decides


def test_two_answers_are_learnt_pairwise_and_scores_by_regression(toy, tmp_path, capsys):
    assert train(toy, tmp_path / "a")["meta"]["loss"] == "mse"
    assert train(toy, tmp_path / "b", "--model_params.mae_loss")["meta"]["loss"] == "mae"
    state = train(toy, tmp_path / "c", data="pairs.json")
    assert state["meta"]["loss"] == "pairwise" and (state["meta"]["mean"], state["meta"]["std"]) == (0.0, 1.0)
    assert tracker.read(tmp_path / "c" / "train.csv")[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    refuse(
        "loss mse needs an answer and a score a row", toy, tmp_path / "d", "--model_params.loss=mse", data="pairs.json"
    )
    refuse("margin needs pairs with scores", toy, tmp_path / "d", "--model_params.margin=1")
    refuse("center is for pairs of answers; here the loss is mse", toy, tmp_path / "d", "--model_params.center=1")
    refuse("mae_loss is for .* the loss is pairwise", toy, tmp_path / "d", "--model_params.mae_loss", data="pairs.json")
    refuse("mae_loss is for .* mse", toy, tmp_path / "d", "--model_params.mae_loss", "--model_params.loss=mse")


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_margin_needs_the_scores_of_each_pair(split, toy, tmp_path):
    """One pair without them would make its batch's loss NaN, and the whole evaluation's."""
    row = {"Question": "q", "Accepted_Answer": "fine", "Answer": "dull"}
    rows = {s: [{**row, "Accepted_Score": 4, "Score": i} for i in range(8)] for s in ("train", "test")}
    rows[split][-1] = row
    (tmp_path / "pairs.json").write_text(json.dumps(rows))
    flags = ["--model_params.margin=0.5", f"--data.data_dir={tmp_path / 'pairs.json'}"]
    refuse("margin needs pairs with scores, each one", toy, tmp_path / "r", *flags)


def test_what_scores_cannot_mean_is_said(toy, tmp_path, capsys):
    """A pair whose accepted answer has the lower score is one that nobody meant; a score by pairs is in no unit."""
    row = {"Question": "q", "Accepted_Answer": "fine", "Answer": "dull", "Accepted_Score": 4}
    rows = {s: [{**row, "Score": i} for i in range(8)] for s in ("train", "test")}
    (file := tmp_path / "pairs.json").write_text(json.dumps(rows))
    train(toy, tmp_path / "r", f"--data.data_dir={file}", "--trainer.params.max_steps=1")
    assert "note: in 3 of the pairs the accepted answer has the lower score" in capsys.readouterr().out
    train(toy, tmp_path / "s", "--trainer.params.max_steps=1")
    assert "the lower score" not in capsys.readouterr().out
    for name, said in (("r", True), ("s", False)):
        reward_train.score_file(reward_train.load(tmp_path / name), file, tmp_path / f"{name}.csv", 8)
        assert ("mse says nothing" in capsys.readouterr().out) == said


def test_pairs_of_one_text_are_said(toy, tmp_path, capsys):
    """By themselves, or as the cut took what told them apart: no loss below log 2 then, and they count as wrong."""
    answers = [("fine", "dull"), ("fine", "fine"), ("fine indeed", "fine enough")]
    rows = [{"Question": "how " * 20, "Accepted_Answer": a, "Answer": b} for a, b in answers]
    (tmp_path / "pairs.json").write_text(json.dumps({"train": rows, "test": rows[:1]}))
    flags = [f"--data.data_dir={tmp_path / 'pairs.json'}", "--trainer.params.max_steps=1"]
    train(toy, tmp_path / "a", *flags)
    said = capsys.readouterr().out
    assert "note: 1 of the pairs to train on are the same tokens twice" in said and said.count("same tokens") == 1
    train(toy, tmp_path / "b", *flags, "--data.truncate_promt=false", "--data.max_length=20")  # nothing of an answer
    said = capsys.readouterr().out
    assert "3 of the pairs to train on are the same" in said and "1 of the pairs to evaluate on are the same" in said
    train(toy, tmp_path / "c", "--trainer.params.max_steps=1", data="pairs.json")
    assert "same tokens" not in capsys.readouterr().out


def test_scores_are_standardised_and_reported_in_the_labels_scale(toy, tmp_path):
    """Labels times 1000: the same training, and predictions times 1000."""
    rows = json.loads((toy / "scores.json").read_text())
    big = {s: [{**r, "Score": r["Score"] * 1000} for r in part] for s, part in rows.items()}
    (tmp_path / "big.json").write_text(json.dumps(big))
    a = train(toy, tmp_path / "a")
    b = train(toy, tmp_path / "b", f"--data.data_dir={tmp_path / 'big.json'}")
    labels = [r["Score"] for r in rows["train"]]
    assert (a["meta"]["mean"], a["meta"]["std"]) == pytest.approx((np.mean(labels), np.std(labels)))
    assert all(torch.allclose(a["model"][k], b["model"][k], atol=1e-5) for k in a["model"])
    one, two = (tracker.read(tmp_path / x / "eval.csv")[-1] for x in "ab")
    assert two["val_mse"] == pytest.approx(one["val_mse"] * 1e6, rel=1e-3)
    assert two["val_loss"] == pytest.approx(one["val_loss"], rel=1e-3)
    row = rows["val"][0]
    x, y = (reward_train.load(tmp_path / n, "cpu")(row["Question"], row["Answer"]) for n in "ab")
    assert y == pytest.approx(1000 * x, rel=1e-3)


@pytest.mark.parametrize("score", [4, 4.7])  # the deviation of ten 4.7 is 9e-16
def test_labels_that_are_all_the_same_are_no_division_by_zero(score, toy, tmp_path, capsys):
    rows = [{"Question": "q", "Answer": str(i), "Score": score} for i in range(10)]
    assert score == 4 or np.std([score] * 10) > 0
    (tmp_path / "qa.json").write_text(json.dumps({"train": rows, "test": rows}))
    state = train(toy, tmp_path / "r", f"--data.data_dir={tmp_path / 'qa.json'}", "--trainer.checkpoint.log_obg=val_pearson")
    assert all(torch.isfinite(w).all() for w in state["model"].values())
    evaluated = tracker.read(tmp_path / "r" / "eval.csv")[0]
    assert math.isnan(evaluated["val_pearson"]) and evaluated["val_loss"] < 10
    assert not (tmp_path / "r" / "best.pt").exists() and f"note: all scores are {score:.3g}" in capsys.readouterr().out


def test_a_constant_has_no_correlation():
    for x, y in ((np.full(3, 0.1), np.array([1.0, 2, 5])), (np.array([1.0, 2, 5]), np.full(3, 0.1)), (np.zeros(0),) * 2):
        assert math.isnan(scores.pearson(x, y)) and math.isnan(scores.spearman(x, y))


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("unit", [1e90, 1e-90, 1e-170])
def test_a_correlation_has_no_unit(unit):
    x, y = np.array([1.0, 2, 3, 4]), np.array([2.0, 1, 4, 3])
    assert scores.pearson(x * unit, y * unit) == pytest.approx(0.6) == scores.pearson(x * unit, y)


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("score", [1e300, 1e-200])
def test_scores_too_far_apart_or_too_close_are_refused(toy, tmp_path, score):
    rows = [{"Question": "q", "Answer": str(i), "Score": score * (i == 3)} for i in range(10)]
    (tmp_path / "qa.json").write_text(json.dumps({"train": rows, "test": rows}))
    refuse("have no finite deviation", tmp_path, tmp_path / "r", f"--model_name={toy / 'gpt2'}", data="qa.json")


def test_scores_that_cannot_be_are_named_before_scoring(toy, tmp_path):
    train(toy, tmp_path / "r")
    flags = [f"--trainer.checkpoint.dirpath={tmp_path / 'r'}", f"--score={tmp_path / 'a.json'}",
             "--trainer.params.accelerator=cpu", f"--out={tmp_path / 'a.csv'}"]  # fmt: skip
    pair = {"Question": "a", "Accepted_Answer": "b", "Answer": "c"}
    for bad in ("n/a", 10**400, math.nan):
        (tmp_path / "a.json").write_text(json.dumps([pair | {"Score": bad}]))
        with pytest.raises(ValueError, match=r"\.Score"):
            reward_train.main(options(flags))
    assert not list(tmp_path.glob("a.csv*"))
    (tmp_path / "a.json").write_text(json.dumps([{"Question": "a", "Answer": "c", "Score": 10**300}]))
    reward_train.main(options(flags))
    assert rows_of(tmp_path / "a.csv")[0]["mse"] == "inf"


def test_a_model_of_our_own_without_an_end_of_text_gets_one(toy, tmp_path):
    """From a GPT on characters; and on from a reward model, head and all."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=256, vocab_size=256, wte_weight_tying=False))
    state = checkpoint.pack(kind="gpt", model=model, model_config=vars(model.config), optimizer=None, loop={}, seed=0,
                            step=0, best=None, options={}, meta={"tokenizer": {"kind": "byte"}})  # fmt: skip
    checkpoint.save(tmp_path / "gpt.pt", state)
    out = train(toy, tmp_path / "r", f"--model_name={tmp_path / 'gpt.pt'}")
    assert out["model"]["transformer.wte.weight"].shape == (257, 16) and out["model_config"]["vocab_size"] == 257
    judge = reward_train.load(tmp_path / "r", "cpu")
    ids, _ = judge.template("q", "a")
    assert ids[-1] == 256 and bytes(ids[:-1]) == b"Question: q\nAnswer: a"
    again, _ = scorer.open_model(str(tmp_path / "r"), 0.0)
    assert not changed(again.state_dict(), checkpoint.load(tmp_path / "r" / "best.pt")["model"])
    with pytest.raises(ValueError, match="tokenizer cannot read 'Question:': character 'Q' at place 0 .* any text"):
        scorer.make_template({"kind": "char", "chars": ["a", "b"]}, again, 64)


def spaced_tokenizer(kind: str) -> dict:
    """One that puts a space before a text's first word: Llama's, as written before and since 2024, or a byte-level."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    made, space = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True)), "\u2581"
    first = ["<unk>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    if kind == "prepend":
        made.normalizer = normalizers.Sequence([normalizers.Prepend(space), normalizers.Replace(" ", space)])
    elif kind == "metaspace":
        made.pre_tokenizer = pre_tokenizers.Metaspace(replacement=space, prepend_scheme="first")
    else:
        made, first = Tokenizer(models.BPE()), ["</s>"]
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    letters = pre_tokenizers.ByteLevel.alphabet() if kind == "bytes" else [space]
    words = ["Question:", "Answer:", "What is it?", "It is, says x"] * 3
    made.train_from_iterator(words, trainers.BpeTrainer(vocab_size=400, special_tokens=first, initial_alphabet=letters))
    return {"kind": "tokenizers", "json": made.to_str()}


@pytest.mark.parametrize("kind", ["prepend", "metaspace", "bytes"])
def test_no_space_comes_before_a_part_by_a_tokenizer_that_puts_one_before_a_text(kind):
    """Its whole text is what transformers' tokenizer makes of an exported model's."""
    about = spaced_tokenizer(kind)
    tokens = vocab.load(about)
    model = ScoreModel(GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, vocab_size=tokens.vocab_size, block_size=64)))
    template = scorer.make_template(about, model, 64)
    for question, answer in (("What is it?", "It is, says x"), ("What  is\n\nit", " x"), ("", "x\n")):
        whole = tokens.encode(f"Question: {question}\nAnswer: {answer}")
        assert template(question, answer)[0] == [*whole, tokens.eot]


def test_an_export_says_that_its_tokenizer_joins_what_is_scored_apart(tmp_path, capsys):
    """As Qwen3's does, to which a question mark and the end of its line are one word."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    for name, pattern in (("joins", r" ?[^\s\w]+[\r\n]*|\s+|\w+"), ("parts", r" ?[^\s\w]+|\s+|\w+")):
        made, level = Tokenizer(models.BPE()), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), level])
        letters = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=letters)
        made.train_from_iterator(["What?\nAnswer: Yes."] * 3, trainer)
        about = {"kind": "tokenizers", "json": made.to_str()}
        shape = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 64, "vocab_size": made.get_vocab_size()}
        model = ScoreModel(GPT(GPTConfig(**shape)))
        state = checkpoint.pack(kind="reward", model=model, model_config={"backbone": "gpt", **vars(model.config)},
                                optimizer=None, loop={}, seed=0, step=0, best=None, options={},
                                meta={"tokenizer": about, "mean": 0.0, "std": 1.0})  # fmt: skip
        checkpoint.save(tmp_path / f"{name}.pt", state)
        export_hf.main(export_hf.Options(init_from=str(tmp_path / f"{name}.pt"), out=str(tmp_path / name)))
        assert ("other tokens than its parts" in capsys.readouterr().out) == (name == "joins")


def words_tokenizer(folder: Path) -> dict:
    """By words, <s> ... </s> around a text; where the vocabulary begins as RoBERTa's does."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    made = Tokenizer(models.WordLevel(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    rows = json.loads((folder / "scores.json").read_text())["train"]
    texts = [f"Question: {r['Question']} Answer: {r['Answer']}" for r in rows]
    made.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=tokens, vocab_size=80))
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return {"kind": "tokenizers", "json": made.to_str()}


def favor_encoder(toy, tmp_path) -> tuple[str, dict]:
    about = words_tokenizer(toy)
    c = RobertaConfig(n_layer=1, n_head=2, n_embd=16, mlp_size=16, block_size=64, attention="favor", attn_dropout=0.0,
                      vocab_size=vocab.load(about).vocab_size, attention_args={"nb_features": 8, "redraw_interval": 2})  # fmt: skip
    model = RobertaMLM(c)
    state = checkpoint.pack(kind="roberta", model=model, model_config=vars(c), optimizer=None, loop={}, seed=0, step=0,
                            best=None, options={}, meta={"tokenizer": about})  # fmt: skip
    checkpoint.save(tmp_path / "favor.pt", state)
    return f"--model_name={tmp_path / 'favor.pt'}", model.state_dict()


def test_random_features_are_drawn_anew_as_the_encoder_says(toy, tmp_path):
    """As in pretrain.py and finetune.py: they stood still here."""
    name, before = favor_encoder(toy, tmp_path)
    for steps in (1, 2):
        after = train(toy, tmp_path / str(steps), name, f"--trainer.params.max_steps={steps}")["model"]
        drawn = "transformer.h.0.attn.attend.w"
        assert torch.equal(after[drawn], before[drawn]) == (steps < 2)


def test_dropout_leaves_out_weights_that_an_attention_has_not(toy, tmp_path):
    """The one option for all of a backbone was refused, in the name of a field that only others set."""
    name, _ = favor_encoder(toy, tmp_path)
    rates = train(toy, tmp_path / "r", name, "--model_params.dropout=0.1")["model_config"]
    assert (rates["hidden_dropout"], rates["attn_dropout"]) == (0.1, 0.0)


def test_an_encoder_learns_to_score_and_its_export_scores_alike(toy, tmp_path, capsys):
    """From a checkpoint of pretrain.py's kind to transformers, and back from its folder."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    about = words_tokenizer(toy)
    size = vocab.load(about).vocab_size
    c = RobertaConfig(n_layer=2, n_head=2, n_embd=32, mlp_size=64, block_size=64, vocab_size=size)
    state = checkpoint.pack(kind="roberta", model=RobertaMLM(c), model_config=vars(c), optimizer=None, loop={}, seed=0,
                            step=0, best=None, options={}, meta={"tokenizer": about})  # fmt: skip
    checkpoint.save(tmp_path / "mlm.pt", state)
    flags = [f"--model_name={tmp_path / 'mlm.pt'}", "--trainer.params.max_steps=100", "--trainer.params.max_epochs=100",
             "--model_params.learning_rate=3e-3"]  # fmt: skip
    trained = train(toy, tmp_path / "r", *flags)
    (tmp_path / "odd.json").write_text(json.dumps([{"Question": "q", "Answer": "\u65e5 \u672c"}]))
    reward_train.main(options([f"--trainer.checkpoint.dirpath={tmp_path / 'r'}", f"--score={tmp_path / 'odd.json'}",
                               f"--out={tmp_path / 'odd.csv'}"]))  # fmt: skip
    assert "1 texts, 0 questions cut, 0 answers cut, 3 <unk>" in capsys.readouterr().out
    assert trained["model_config"]["backbone"] == "roberta" and trained["model_config"]["hidden_dropout"] == 0
    losses = [r["loss"] for r in tracker.read(tmp_path / "r" / "train.csv")]
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:10])
    train(toy, tmp_path / "tpu", f"--model_name={tmp_path / 'mlm.pt'}", "--data.on_tpu")
    assert "on_tpu: an encoder reads texts without padding" in capsys.readouterr().out

    export_hf.main(export_hf.Options(init_from=str(tmp_path / "r" / "ckpt.pt"), out=str(tmp_path / "hf")))
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    rows = [("How good is the soup?", "It is superb."), ("How bad?", "the soup is dull, " * 3)]
    ours = reward_train.load(tmp_path / "r" / "ckpt.pt", "cpu").many(rows)
    texts = [f"Question: {q}\nAnswer: {a}" for q, a in rows]
    with torch.no_grad():
        batch = theirs(**tokenizer(texts, return_tensors="pt", padding=True)).logits[:, 0]
        alone = torch.cat([theirs(**tokenizer(t, return_tensors="pt")).logits[:, 0] for t in texts])
    assert theirs.config.num_labels == 1 and np.ptp(ours) > 1e-3
    mean, std = theirs.config.score_mean, theirs.config.score_std
    for found in (batch, alone):
        assert (mean + std * found).tolist() == pytest.approx(ours.tolist(), abs=1e-4)
    again, _ = scorer.open_model(str(tmp_path / "hf"), 0.0)
    assert all(torch.allclose(w, trained["model"][k], atol=1e-6) for k, w in again.state_dict().items())
    trained["meta"]["tokenizer"]["json"] = json.dumps(json.loads(about["json"]) | {"post_processor": None})
    checkpoint.save(tmp_path / "bare.pt", trained)  # a tokenizer.json that says nothing of <s> and </s>
    export_hf.main(export_hf.Options(init_from=str(tmp_path / "bare.pt"), out=str(tmp_path / "bare")))
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "bare")(texts).input_ids == tokenizer(texts).input_ids


def test_init_from_takes_parts_of_another_checkpoint(toy, tmp_path, capsys):
    a = train(toy, tmp_path / "a")["model"]
    capsys.readouterr()
    flags = [f"--init_from={tmp_path / 'a' / 'ckpt.pt'}", "--transfer", "mlp", "--trainer.params.max_steps=1"]
    b = train(toy, tmp_path / "b", *flags, "--model_params.learning_rate=1e-12")["model"]
    source = scorer.open_model(str(toy / "gpt2"), 0.0)[0].state_dict()
    for name in a:
        expected = a if ".mlp." in name else source
        assert torch.allclose(b[name], expected[name], atol=1e-6), name
    assert "taken" in capsys.readouterr().out
    state = checkpoint.load(tmp_path / "a" / "ckpt.pt")
    state["model_config"]["n_head"] *= 2  # the same shapes, cut in another way
    checkpoint.save(tmp_path / "cut.pt", state)
    refuse("make them equal, or leave attn out", toy, tmp_path / "c", f"--init_from={tmp_path / 'cut.pt'}",
           "--transfer", "attn", "mlp")  # fmt: skip


# -----------------------------------------------------------------------------
# runs


@pytest.mark.parametrize("part", ["all", "embed", "embeddings"])
def test_embeddings_of_another_tokenizer_are_refused(part, toy, tmp_path):
    """As many ids, other words: they would be taken without a word, and read nonsense."""
    train(toy, tmp_path / "a")
    state = checkpoint.load(tmp_path / "a" / "ckpt.pt")
    words = json.loads(state["meta"]["tokenizer"]["json"])
    ids = list(words["model"]["vocab"].values())
    words["model"]["vocab"] = dict(zip(words["model"]["vocab"], ids[:1] + ids[:0:-1], strict=True))
    state["meta"]["tokenizer"]["json"] = json.dumps(words)
    checkpoint.save(tmp_path / "b.pt", state)
    start = f"--init_from={tmp_path / 'b.pt'}"
    refuse("the tokenizer of model_name .* trained with", toy, tmp_path / "r", start, "--transfer", part)
    train(toy, tmp_path / "r", start, "--transfer", "attn", "mlp", "norm", "head")


def test_ckpt_path_resumes_and_a_second_run_is_moved_aside(toy, tmp_path, capsys):
    flags = ["--trainer.params.max_steps=6", "--trainer.params.val_check_interval=2"]
    whole = train(toy, tmp_path / "whole", *flags)
    out = tmp_path / "r"
    train(toy, out, *flags[1:], "--trainer.params.max_steps=6", "--trainer.checkpoint.every_n_train_steps=3",
          "--trainer.checkpoint.log_obg=val_loss")  # fmt: skip
    middle, best = checkpoint.load(out / "ckpt.prev.pt"), checkpoint.load(out / "best.pt")
    assert middle["step"] < 6 == best["step"]
    checkpoint.save(tmp_path / "middle.pt", middle)
    train(toy, out, *flags, f"--trainer.ckpt_path={out / 'ckpt.prev.pt'}", "--replay_step=1")
    assert "is replaced" not in capsys.readouterr().out  # a look replaces nothing
    resumed = train(toy, out, *flags, f"--trainer.ckpt_path={out / 'ckpt.prev.pt'}")
    assert not changed(whole["model"], resumed["model"]) and not (tmp_path / "r.1").exists()
    assert f"this run was at step 6; what it saved after step {middle['step']} is replaced" in capsys.readouterr().out
    assert tracker.read(out / "train.csv")[-1]["step"] == 5
    other = train(toy, tmp_path / "elsewhere", *flags, f"--trainer.ckpt_path={tmp_path / 'middle.pt'}")
    assert not changed(whole["model"], other["model"])
    checkpoint.save(out / "old.pt", middle)
    train(toy, out, *flags[1:], f"--trainer.params.max_steps={middle['step']}", f"--trainer.ckpt_path={out / 'old.pt'}")
    for name in ("ckpt.pt", "best.pt"):  # step 6 is neither to be resumed nor the best
        assert checkpoint.load(out / name)["step"] <= middle["step"]
    train(toy, out, *flags)
    assert "held a run: moved to" in capsys.readouterr().out and (tmp_path / "r.1" / "ckpt.pt").exists()


def test_a_run_that_began_elsewhere_is_resumed_where_it_is(toy, tmp_path, capsys):
    """Its config.yaml names the other run's checkpoint for good; and the best weights so far came along."""
    flags = ["--trainer.params.val_check_interval=2"]
    train(toy, tmp_path / "old", *flags, "--trainer.params.max_steps=4")
    there, out = f"--trainer.ckpt_path={tmp_path / 'old' / 'ckpt.pt'}", tmp_path / "new"
    train(toy, out, *flags, there, "--trainer.params.max_steps=5", "--model_params.learning_rate=1e-12")
    assert (out / "best.pt").read_bytes() == (tmp_path / "old" / "best.pt").read_bytes()
    state = checkpoint.load(tmp_path / "old" / "ckpt.pt")
    checkpoint.save(tmp_path / "alone.pt", state | {"step": 3, "loop": state["loop"] | {"eval": None}})
    alone = f"--trainer.ckpt_path={tmp_path / 'alone.pt'}"  # without its best: the first to come is that
    train(toy, tmp_path / "by itself", *flags, alone, "--trainer.params.max_steps=4", "--model_params.learning_rate=9")
    assert checkpoint.load(tmp_path / "by itself" / "best.pt")["step"] == 4
    capsys.readouterr()
    train(toy, out, *flags, there, "--init_from=resume", "--trainer.params.max_steps=7")
    assert f"resuming {out / 'ckpt.pt'} at step 5" in capsys.readouterr().out
    assert not (tmp_path / "new.1").exists()


def test_a_run_that_went_on_from_another_scores_with_its_own_weights(toy, tmp_path, capsys):
    old, new = tmp_path / "old", tmp_path / "new"
    train(toy, old)
    train(toy, new, f"--trainer.ckpt_path={old}", "--trainer.params.max_steps=3")
    (toy / "one.json").write_text(json.dumps([{"Question": "q", "Answer": "a"}]))
    scoring = [f"--config={new / 'config.yaml'}", f"--score={toy / 'one.json'}", f"--out={tmp_path / 'scores.csv'}"]
    for named, used in (([], new), ([f"--trainer.ckpt_path={old / 'ckpt.pt'}"], old)):
        reward_train.main(options([*scoring, *named]))
        assert f"answers with {used}/" in capsys.readouterr().out


def test_another_cut_of_the_batch_changes_neither_rows_nor_evaluations(toy, tmp_path, capsys):
    """As another number of ranks would: what is counted in batches was counted once."""
    flags = ["--trainer.params.overfit_batches=1", "--trainer.params.val_check_interval=4"]
    begin = ["--data.batch_size=4", "--trainer.params.accumulate_grad_batches=2", "--trainer.params.max_steps=4"]
    train(toy, tmp_path, *flags, *begin, "--trainer.params.max_epochs=9")
    said = capsys.readouterr().out
    train(toy, tmp_path, "--init_from=resume", "--data.batch_size=8", "--trainer.params.accumulate_grad_batches=1",
          "--trainer.params.max_steps=8")  # fmt: skip
    rows_of = [re.search(r"json: (.*?) rows", text)[1] for text in (said, capsys.readouterr().out)]
    assert rows_of == ["4 + 4", "4 + 4"]
    assert [row["step"] for row in tracker.read(tmp_path / "eval.csv")] == [2, 4, 6, 8]


def test_a_validation_split_without_a_pair_to_rank_is_not_replaced_by_another(toy, tmp_path):
    rows = json.loads((toy / "scores.json").read_text())
    rows["val"] = [{"Question": "q", "Answer": a, "Score": 1.0} for a in "ab"]
    (tmp_path / "ties.json").write_text(json.dumps(rows))
    refuse("no two answers to one evaluation question", tmp_path, tmp_path / "out", "--model_params.loss=pairwise",
           f"--model_name={toy / 'gpt2'}", data="ties.json")  # fmt: skip


def test_a_resume_keeps_what_defines_the_run(toy, tmp_path):
    train(toy, tmp_path, "--trainer.params.max_steps=2")
    for flag, said in [("--seed=7", "--seed is 42"), ("--data.max_length=100", "max_length is 1024"),
                       ("--data.batch_size=4", "is 8 in the run to resume and cannot become 4"),
                       ("--model_params.freeze_emb", "freeze_emb is False")]:  # fmt: skip
        refuse(said, toy, tmp_path, "--init_from=resume", flag)
    flags = ["--data.batch_size=4", "--trainer.params.accumulate_grad_batches=2", "--trainer.params.max_steps=4"]
    assert train(toy, tmp_path, "--init_from=resume", *flags)["step"] == 4
    refuse("nothing to resume", toy, tmp_path / "none", "--init_from=resume")
    assert not (tmp_path / "none").exists()


def test_the_resolved_config_runs_again_as_it_is(toy, tmp_path):
    a = train(
        toy, tmp_path / "a", "--model_params.layers_not_to_freeze", "0", "--trainer.params.val_check_interval=0.5"
    )
    saved = tmp_path / "a" / "config.yaml"
    reward_train.main(options(["--config_file", saved, f"--trainer.checkpoint.dirpath={tmp_path / 'b'}"]))
    assert not changed(a["model"], checkpoint.load(tmp_path / "b" / "ckpt.pt")["model"])


@pytest.mark.usefixtures("pictures")
def test_a_run_folder_holds_what_a_user_looks_for(toy, tmp_path):
    train(toy, tmp_path / "r")
    names = {p.name for p in (tmp_path / "r").iterdir()}
    assert {
        "config.yaml",
        "train.csv",
        "eval.csv",
        "ckpt.pt",
        "best.pt",
        "status.json",
        "loss.png",
        "scores.png",
    } <= names
    assert (tmp_path / "r" / "scores.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "r" / "scores.png").unlink()  # a kill after the last save came before it
    train(toy, tmp_path / "r", "--init_from=resume")
    assert (tmp_path / "r" / "scores.png").exists()
    assert run.read_status(tmp_path / "r")["state"] == "finished"


def test_the_seeds_config_runs_with_a_local_model_and_data(toy, tmp_path, capsys):
    """Nothing else changed but the epochs, to end in time."""
    theirs = yaml.safe_load((ROOT / "configs/reward/trainer_config.yaml").read_text())
    params = theirs["trainer"]["params"]
    assert (params["accelerator"], params["precision"], params["strategy"]) == ("gpu", "16", "ddp")
    flags = [f"--model_name={toy / 'gpt2'}", f"--data.data_dir={toy / 'scores.json'}",
             "--trainer.params.accelerator", "cpu", f"--trainer.checkpoint.dirpath={tmp_path / 'r'}",
             "--trainer.params.max_epochs=1"]  # fmt: skip
    reward_train.main(options(["--config", ROOT / "configs/reward/trainer_config.yaml", *flags]))
    said = capsys.readouterr()
    assert (
        "precision 16 is auto on a CPU" in said.out
        and "max_length 1024 is more than the model's 256 positions" in said.out
    )
    assert checkpoint.load(tmp_path / "r" / "ckpt.pt")["step"] == 3


# -----------------------------------------------------------------------------
# scoring


def rows_of(path: Path) -> list[dict]:
    with open(path, newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def test_score_writes_the_documented_columns_in_the_files_order(toy, tmp_path):
    train(toy, tmp_path / "r")
    rows = [{"Question": 'Why,\n"so"?', "Answer": "é", "Score": 3}, {"Question": "q", "Answer": "a" * 99}]
    (tmp_path / "in.json").write_text(json.dumps(rows * 40))
    out = tmp_path / "sub" / "scores.csv"
    flags = [f"--trainer.checkpoint.dirpath={tmp_path / 'r'}", f"--score={tmp_path / 'in.json'}", f"--out={out}",
             "--trainer.params.accelerator=cpu", "--trainer.params.precision=32"]  # fmt: skip
    reward_train.main(options(flags))
    found = rows_of(out)
    assert list(found[0]) == ["question", "answer", "target_score", "pred_score", "mse"] and len(found) == 80
    judge = reward_train.load(tmp_path / "r" / "best.pt", "cpu")
    for row, read in zip(rows * 40, found, strict=True):
        assert (read["question"], read["answer"]) == (row["Question"], row["Answer"])
        assert float(read["pred_score"]) == pytest.approx(judge(row["Question"], row["Answer"]), abs=1e-5)
        if "Score" in row:
            assert float(read["mse"]) == pytest.approx((float(read["pred_score"]) - 3) ** 2)
        else:
            assert read["target_score"] == read["mse"] == ""
    assert sorted(p.name for p in out.parent.iterdir()) == ["scores.csv"]
    reward_train.main(options([*flags[:2], f"--out={out}", "--model_params.use_cache", *flags[3:]]))
    assert [float(r["pred_score"]) for r in rows_of(out)] == pytest.approx(
        [float(r["pred_score"]) for r in found], abs=1e-5
    )


@pytest.mark.parametrize("number", ["bf16", "32"])
def test_score_uses_the_runs_precision_also_without_its_config(number, toy, tmp_path, capsys):
    train(toy, tmp_path / "r", f"--trainer.params.precision={number}")
    flags = [f"--trainer.checkpoint.dirpath={tmp_path / 'r'}", f"--score={toy / 'scores.json'}",
             "--trainer.params.accelerator=cpu"]  # fmt: skip
    reward_train.main(options([*flags, f"--out={tmp_path / 'a.csv'}"]))
    said = {"bf16": "bfloat16", "32": "float32"}
    assert f"on cpu, {said[number]}\n" in capsys.readouterr().out
    reward_train.main(options([*flags, f"--out={tmp_path / 'b.csv'}", "--trainer.params.precision=32"]))  # if asked for
    assert "on cpu, float32\n" in capsys.readouterr().out


def test_a_killed_scoring_goes_on_where_it_was(toy, tmp_path, capsys, monkeypatch):
    train(toy, tmp_path / "r")
    flags = [f"--trainer.checkpoint.dirpath={tmp_path / 'r'}", f"--score={toy / 'scores.json'}", "--data.batch_size=1",
             "--trainer.params.accelerator=cpu", "--trainer.params.precision=32"]  # fmt: skip
    reward_train.main(options([*flags, f"--out={tmp_path / 'a.csv'}"]))
    calls, many = [], scorer.Scorer.many

    def dies(self, rows, batch):
        calls.append(len(rows))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return many(self, rows, batch)

    monkeypatch.setattr(scorer.Scorer, "many", dies)
    with pytest.raises(KeyboardInterrupt):
        reward_train.main(options([*flags, f"--out={tmp_path / 'b.csv'}"]))
    assert not (tmp_path / "b.csv").exists()
    with open(tmp_path / "b.csv.part", "a") as f:
        f.write("a torn li")
    reward_train.main(options([*flags, f"--out={tmp_path / 'b.csv'}"]))
    assert "after 32 rows" in capsys.readouterr().out and calls == [32, 32, 32]
    assert (tmp_path / "b.csv").read_bytes() == (tmp_path / "a.csv").read_bytes()
    calls.clear()
    other = [f if not f.startswith("--score") else f"--score={tmp_path / 'other.json'}" for f in flags]
    shutil.copy(toy / "scores.json", tmp_path / "other.json")
    with pytest.raises(KeyboardInterrupt):
        reward_train.main(options([*other, f"--out={tmp_path / 'd.csv'}"]))
    rows = json.loads((toy / "scores.json").read_text())
    for part in rows.values():
        for row in part:
            row["Answer"] = "another"
    (tmp_path / "other.json").write_text(json.dumps(rows))  # as many answers as before, and none of them
    reward_train.main(options([*other, f"--out={tmp_path / 'd.csv'}"]))
    assert {row["answer"] for row in rows_of(tmp_path / "d.csv")} == {"another"}
    (tmp_path / "mine.csv").write_text("id,text\n1,a\n")
    for name in (tmp_path / "mine.csv", toy / "scores.json"):  # the second would be its own input
        before = name.read_bytes()
        with pytest.raises(ValueError, match=f"{name.name} exists and holds something else"):
            reward_train.main(options([*flags, f"--out={name}"]))
        assert name.read_bytes() == before
    os.mkfifo(tmp_path / "pipe")  # as /dev/stdout is before a `| head`: to look what it holds would wait for ever
    with pytest.raises(ValueError, match="pipe is no file"):
        reward_train.main(options([*flags, f"--out={tmp_path / 'pipe'}"]))
    (tmp_path / "e.csv").touch()  # mktemp's: it holds nothing that could be lost
    reward_train.main(options([*flags, f"--out={tmp_path / 'e.csv'}"]))
    assert (tmp_path / "e.csv").read_bytes() == (tmp_path / "a.csv").read_bytes()
    with open(tmp_path / "c.csv.part", "w") as f:  # another model's beginnings are not gone on with
        f.write("x")
    (tmp_path / "c.csv.part.json").write_text(json.dumps({"about": {"checkpoint": "other"}, "done": 1, "bytes": 1}))
    reward_train.main(options([*flags, f"--out={tmp_path / 'c.csv'}"]))
    assert (tmp_path / "c.csv").read_bytes() == (tmp_path / "a.csv").read_bytes()


def test_two_at_one_output_do_not_mix_their_rows(tmp_path):
    """Two calls with the default --out in one folder, each with its own texts; the second one is refused."""
    out = tmp_path / "out.csv"

    def lines(rows):
        with pytest.raises(ValueError, match="out.csv is being written by another process"):
            scores.write_csv(out, ["x"], [["b"]], list, {"of": "b"}, 1)
        return rows

    for _ in range(2):  # what is finished may be replaced
        assert scores.write_csv(out, ["x"], [["1"], ["2"]], lines, {"of": "a"}, 1) == 2
        assert out.read_bytes() == b"x\r\n1\r\n2\r\n" and os.listdir(tmp_path) == ["out.csv"]


def test_pairs_are_scored_as_two_rows(toy, tmp_path):
    train(toy, tmp_path / "r", data="pairs.json")
    reward_train.main(options([f"--trainer.checkpoint.dirpath={tmp_path / 'r'}", f"--score={toy / 'pairs.json'}",
                               f"--out={tmp_path / 's.csv'}", "--trainer.params.accelerator=cpu"]))  # fmt: skip
    first = json.loads((toy / "pairs.json").read_text())["train"][0]
    found = rows_of(tmp_path / "s.csv")
    assert len(found) == 2 * 64 and [r["answer"] for r in found[:2]] == [first["Accepted_Answer"], first["Answer"]]


LLAMA = {"position": "rotary", "norm_variant_attn": "rmsnorm", "norm_variant_output": "rmsnorm"}


def bytes_model(path: Path, **changes) -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(**{"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 256, "vocab_size": 256, **changes}))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    state = checkpoint.pack(kind="gpt", model=model, model_config=vars(model.config), optimizer=None, loop={}, seed=0,
                            step=0, best=None, options={}, meta={"tokenizer": {"kind": "byte"}})  # fmt: skip
    checkpoint.save(path, state)


def test_the_export_scores_alike_in_transformers_alone_and_in_a_batch(toy, tmp_path):
    """From a tokenizer with an end of text and from one without; through the exported tokenizer, too."""
    transformers = pytest.importorskip("transformers")
    kinds = {"bytes": {}, "arcee": LLAMA, "qwen": LLAMA | {"mlp_variant": "swiglu", "use_qk_norm": True},
             "mistral": LLAMA | {"mlp_variant": "swiglu", "n_kv_group": 1, "window_size": 9}}  # fmt: skip
    for name, changes in kinds.items():
        bytes_model(tmp_path / f"{name}.pt", **changes)
    rows = [("How good is it?", "It is good."), ("q", ""), ("How bad?", "the soup is superb, " * 5)]
    for name, source in [("bpe", toy / "gpt2"), *((name, tmp_path / f"{name}.pt") for name in kinds)]:
        train(toy, tmp_path / name, f"--model_name={source}")
        export_hf.main(export_hf.Options(init_from=str(tmp_path / name), out=str(tmp_path / f"{name}_hf")))
        theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / f"{name}_hf").eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / f"{name}_hf")
        c = theirs.config
        assert c.num_labels == 1 and c.pad_token_id not in (None, c.eos_token_id)
        assert tokenizer.pad_token_id == c.pad_token_id and tokenizer.eos_token_id == c.eos_token_id
        ours = reward_train.load(tmp_path / name, "cpu").many(rows)
        texts = [f"Question: {q}\nAnswer: {a}{tokenizer.eos_token}" for q, a in rows]
        with torch.no_grad():
            batch = theirs(**tokenizer(texts, return_tensors="pt", padding=True)).logits[:, 0]
            alone = torch.cat([theirs(**tokenizer(t, return_tensors="pt")).logits[:, 0] for t in texts])
        assert np.ptp(ours) > 1e-3
        for found in (batch, alone):
            assert (c.score_mean + c.score_std * found).tolist() == pytest.approx(ours.tolist(), abs=1e-4)


def test_any_gpt_in_hugging_faces_format_takes_a_score_head(toy, tmp_path):
    """As its checkpoint does: of a Llama and its relatives, too."""
    bytes_model(tmp_path / "llama.pt", **LLAMA, mlp_variant="swiglu")
    export_hf.main(export_hf.Options(init_from=str(tmp_path / "llama.pt"), out=str(tmp_path / "llama")))
    ours, theirs = (scorer.open_model(str(tmp_path / name), 0.0)[0].state_dict() for name in ("llama.pt", "llama"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    for name in ("llama.pt", "llama"):  # --init_from takes either, too
        (tmp_path / "run").mkdir(exist_ok=True)
        train(toy, tmp_path / "run" / name, f"--model_name={tmp_path / 'llama.pt'}", f"--init_from={tmp_path / name}",
              "--transfer=attn,mlp")  # fmt: skip
    first, second = (checkpoint.load(tmp_path / "run" / n / "ckpt.pt")["model"] for n in ("llama.pt", "llama"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    shape, weights, about = pretrained.open_weights(str(tmp_path / "llama"), "", ["attn"])  # as pretrain.py takes parts
    assert shape["n_embd"] == 16 and "transformer.h.0.attn.c_attn.weight" in weights and about["kind"] == "tokenizers"
    refuse("is .*, .*llama was trained with", toy, tmp_path / "no", f"--init_from={tmp_path / 'llama'}")


# -----------------------------------------------------------------------------
# what cannot be


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--model_name={toy}/none"], "none. is no run, no checkpoint, no folder with a config.json"),
        (["--model_name={toy}/none.pt"], "none.pt does not exist"),
        (["--model_name={toy}/bare"], r"holds no tokenizer: tokenizer.json, or vocab.json and merges.txt, is missing"),
        (["--model_name={toy}/bert"], "a model of type 'bert'; gpt2 and roberta"),
        (["--model_name={toy}/odd.pt"], "is a 'cnn': a score head goes on gpt .* and on roberta"),
        (["--model_name={toy}/several.pt"], "several.pt has several vocabularies: a score head reads one"),
        (["--model_name={toy}/mute.pt"], "holds no tokenizer"),
        (["--data.data_dir={toy}/none.json"], "none.json does not exist"),
        (["--data.max_length=3"], "the template alone takes"),
        (["--trainer.params.val_check_interval=x"], "val_check_interval must be a number of batches"),
        (["--trainer.params.num_sanity_val_steps=two"], "num_sanity_val_steps must be a number of batches"),
        (["--trainer.params.val_check_interval=0"], "val_check_interval must be above 0, got 0"),
        (["--model_params.loss=pairwise", "--data.data_dir={toy}/apart.json"], "no two answers to one training quest"),
        (["--init_from={toy}/none.pt"], "does not exist"),
        (["--trainer.params.accelerator=tpu"], "accelerator tpu is not there"),
        (["--model_params.adam_betas", "0.9"], "model_params.adam_betas must be two numbers, got 0.9"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_leaves_nothing(flags, said, toy, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    bare = toy / "bare"
    if not bare.exists():
        shutil.copytree(toy / "gpt2", bare)
        (bare / "tokenizer.json").unlink()
        shutil.copytree(toy / "gpt2", toy / "bert")
        cfg = json.loads((toy / "gpt2" / "config.json").read_text())
        (toy / "bert" / "config.json").write_text(json.dumps(cfg | {"model_type": "bert"}))
        rows = [{"Question": str(i), "Answer": "a", "Score": i} for i in range(5)]
        (toy / "apart.json").write_text(json.dumps({"train": rows, "test": rows}))
        byte = {"tokenizer": {"kind": "byte"}}
        for name, kind, meta in (("odd", "cnn", byte), ("several", "gpt", byte), ("mute", "gpt", {})):
            sizes = {"vocab_sizes": [256, 2]} if name == "several" else {}
            state = checkpoint.pack(kind=kind, model=torch.nn.Linear(1, 1), model_config=sizes, optimizer=None, loop={},
                                    seed=0, step=0, best=None, options={}, meta=meta)  # fmt: skip
            checkpoint.save(toy / f"{name}.pt", state)
    refuse(said, toy, tmp_path / "r", *(f.format(toy=toy) for f in flags))
    assert not (tmp_path / "r").exists()


def test_a_diverged_model_gives_no_score(toy, tmp_path):
    """Its weights are finite, what it makes of a text is not."""
    train(toy, tmp_path / "r")
    state = checkpoint.load(tmp_path / "r" / "ckpt.pt")
    state["model"] = {k: w * 1e30 for k, w in state["model"].items()}
    checkpoint.save(tmp_path / "bad.pt", state)
    with pytest.raises(run.NotFinite, match="bad.pt are not finite"):
        reward_train.load(tmp_path / "bad.pt", "cpu")("Why?", "So.")


def test_scoring_with_what_is_no_reward_model_is_refused(toy, tmp_path):
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=64, vocab_size=256))
    state = checkpoint.pack(kind="gpt", model=model, model_config=vars(model.config), optimizer=None, loop={}, seed=0,
                            step=0, best=None, options={}, meta={"tokenizer": {"kind": "byte"}})  # fmt: skip
    checkpoint.save(tmp_path / "gpt.pt", state)
    with pytest.raises(ValueError, match="is a 'gpt', no reward model"):
        reward_train.load(tmp_path / "gpt.pt", "cpu")


def test_tokenizers_of_gpt2_and_roberta_folders(toy, tmp_path):
    """vocab.json and merges.txt give the ids that tokenizer.json gives."""
    whole = qa.tokenizer(toy / "gpt2")
    about = json.loads(whole["json"])["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(about["vocab"]))
    merges = [m if isinstance(m, str) else " ".join(m) for m in about["merges"]]
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    a, b = vocab.load(whole), vocab.load(qa.tokenizer(tmp_path))
    text = "How good is the soup in Rome? ünd 12 <|endoftext|>"
    assert a.ids(text).tolist() == b.ids(text).tolist() and a.eot == b.eot == 0
    assert a.eot not in a.ids(text)  # what stands in a text is text
    n, added = len(about["vocab"]), tmp_path / "added_tokens.json"
    added.write_text(json.dumps({"<|user|>": n + 1, "[PAD]": n}))  # a fine-tuned model's own
    ids = vocab.load(qa.tokenizer(tmp_path)).ids("soup<|user|>soup")
    assert ids.tolist() == [*a.ids("soup"), n + 1, *a.ids("soup")]
    added.write_text(json.dumps({"[PAD]": n + 5}))
    with pytest.raises(ValueError, match=rf"added_tokens.json gives '\[PAD\]' the id {n + 5}"):
        qa.tokenizer(tmp_path)
    added.unlink()
    words = {w: len(about["vocab"]) + i for i, w in enumerate(("<s>", "<pad>", "</s>", "<unk>", "<mask>"))}
    (tmp_path / "vocab.json").write_text(json.dumps(about["vocab"] | words))
    about, text = qa.tokenizer(tmp_path), "How good is the soup?"
    assert encoding.Encoder(about, 64)([text]).ids.tolist() == [words["<s>"], *a.ids(text).tolist(), words["</s>"]]


# -----------------------------------------------------------------------------
# the toy set


def test_no_text_is_on_both_sides_of_the_toy_set(tmp_path):
    prepare.main(prepare.Options(out=str(tmp_path), train=2000, test=400))
    for name in ("scores", "pairs"):
        parts = json.loads((tmp_path / f"{name}.json").read_text())
        train, *others = ({(r["Question"], r[k]) for r in rows for k in ("Answer", "Accepted_Answer") if k in r}
                          for rows in parts.values())  # fmt: skip
        assert list(map(len, parts.values())) == [2000, 400, 400] and len(train) > 1500
        assert not train & others[0] and not train & others[1]


def test_texts_on_both_sides_are_told(toy, tmp_path, capsys):
    parts = json.loads((toy / "scores.json").read_text())
    train(toy, tmp_path / "a")
    assert "trained on, too" not in capsys.readouterr().out
    (tmp_path / "leak.json").write_text(json.dumps(parts | {"val": parts["val"] + parts["train"][:5]}))
    train(toy, tmp_path / "b", f"--data.data_dir={tmp_path / 'leak.json'}")
    assert "note: 5 of the texts to evaluate on are trained on, too" in capsys.readouterr().out


@pytest.mark.full
def test_the_toy_set_is_learnt_to_its_bound(tmp_path):
    best = prepare.main(prepare.Options(out=str(tmp_path)))
    flags = [f"--data.data_dir={tmp_path / 'scores.json'}", f"--model_name={tmp_path / 'gpt2'}",
             f"--trainer.checkpoint.dirpath={tmp_path / 'r'}"]  # fmt: skip
    reward_train.main(options(["--config", ROOT / "configs/reward/small_cpu.yaml", *flags]))
    rows = tracker.read(tmp_path / "r" / "eval.csv")
    found = min(rows, key=lambda r: r["val_mse"])
    assert found["val_mse"] < 1.1 * best["mse"] and found["val_spearman"] > 0.95 * best["spearman"]
