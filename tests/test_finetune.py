"""finetune.py and the classifier: against transformers, hand arithmetic, and what a user can get wrong."""

import csv
import json
import os
import re
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import export_hf
import finetune
from core import checkpoint, config, hf, rng, tracker
from core.exits import NotFinite
from data import build_tensors, predictions, tensors, vocab
from data.pretrained import open_encoder, open_weights
from model import GPT, Classifier, GPTConfig, RobertaConfig
from tests.loops import FINETUNE, classes, with_dropout

WORDS = ["seven", "eight", "nine"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classes")
    classes(folder)
    return folder


def tune(data, out, *flags):
    splits = [f"--{s}={data / s}.pt" for s in ("train", "val", "test")]
    argv = [f"--init_from={data / 'encoder.pt'}", f"--out_dir={out}", *splits, "--device=cpu", "--dtype=float32",
            "--epochs=1", "--log_interval=1", *flags]  # fmt: skip
    finetune.main(config.parse(finetune.Options, argv, doc=""))
    return checkpoint.load(out / "ckpt.pt")


def at_the_start(data) -> dict:
    """The weights of a run before its first step: the encoder's, and a head drawn by the seed."""
    encoder = checkpoint.load(data / "encoder.pt")
    rng.seed_torch(420, "init")
    fresh = Classifier(RobertaConfig(**encoder["model_config"]), 3).state_dict()
    return {**fresh, **{k: v for k, v in encoder["model"].items() if k in fresh}}


def rebuilt(state):
    head = state["meta"]["head"]
    model = Classifier(RobertaConfig(**state["model_config"]), len(head["names"]), head["pooling"], head["pooler_type"])
    model.load_state_dict(state["model"])
    return model.eval()


def logits_of(model, path):
    rows = tensors.Rows(path)
    ids, lengths = rows.rows(np.arange(len(rows)))
    with torch.no_grad():
        return model(torch.from_numpy(ids), lengths), torch.from_numpy(rows.labels)


# -----------------------------------------------------------------------------
# the model


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A RobertaForSequenceClassification of transformers, saved, with our tokenizer beside it."""
    transformers = pytest.importorskip("transformers")
    cfg = transformers.RobertaConfig(
        vocab_size=16, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=18, type_vocab_size=1, pad_token_id=1, bos_token_id=0, eos_token_id=2,
        id2label=dict(enumerate(WORDS)), attn_implementation="eager")  # fmt: skip
    torch.manual_seed(0)
    model = transformers.RobertaForSequenceClassification(cfg).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    folder = tmp_path_factory.mktemp("theirs")
    model.save_pretrained(folder)
    return model, folder


def test_the_classifier_is_transformers_classifier(theirs):
    model, folder = theirs
    kind, cfg, weights = hf.load(folder)
    ours = Classifier(RobertaConfig(**cfg), 3, "cls", "roberta").eval()
    ours.load_state_dict(weights)
    ids = torch.randint(3, 16, (4, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(9) < torch.tensor([[9], [4], [7], [1]])
    with torch.no_grad():
        expected = model(torch.where(mask, ids, 1), attention_mask=mask).logits
        torch.testing.assert_close(ours(ids[mask], mask.sum(1)), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("pooling", ["cls", "mean", "max", "min"])
@pytest.mark.parametrize("pooler", ["bert", "roberta", None])
def test_pooling_sees_a_texts_own_tokens_and_no_others(pooling, pooler):
    torch.manual_seed(0)
    cfg = RobertaConfig(vocab_size=16, block_size=12, n_layer=1, n_head=2, n_embd=8, mlp_size=16)
    model = Classifier(cfg, 3, pooling, pooler).eval()
    tokens, lengths = torch.randint(3, 16, (16,)), [5, 1, 10]
    with torch.no_grad():
        together = model(tokens, lengths)
        for row, (a, n) in enumerate([(0, 5), (5, 1), (6, 10)]):
            x = model.encode(tokens[a : a + n], [n])
            x = {"cls": x[0], "mean": x.mean(0), "max": x.amax(0), "min": x.amin(0)}[pooling]
            if pooler:
                x = torch.tanh(model.classifier.dense(x))
            torch.testing.assert_close(together[row], model.classifier.out_proj(x), atol=1e-6, rtol=1e-5)


def test_dropout_stands_where_the_pooler_says():
    cfg = RobertaConfig(vocab_size=16, block_size=12, n_layer=1, n_head=2, n_embd=8, mlp_size=16, hidden_dropout=0.0,
                        attn_dropout=0.0)  # fmt: skip
    x = torch.ones(4000, 8)
    for pooler, share in (("bert", 0.0), ("roberta", 0.5), (None, 0.5)):
        head = Classifier(cfg, 3, "cls", pooler, 0.5).classifier
        seen = []
        (head.dense or head.out_proj).register_forward_pre_hook(lambda m, a: seen.append(a[0]))  # noqa: B023
        head(x)
        assert (seen[0] == 0).float().mean().item() == pytest.approx(share, abs=0.02)
        seen.clear()
        head.eval()(x)
        assert (seen[0] == 0).sum() == 0


def test_exported_it_is_read_by_transformers(data, tmp_path):
    transformers = pytest.importorskip("transformers")
    state = tune(data, tmp_path / "run", "--pooler_type=roberta")
    export_hf.main(export_hf.Options(init_from=str(tmp_path / "run" / "ckpt.pt"), out=str(tmp_path / "hf")))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf").eval()
    assert model.config.id2label == dict(enumerate(WORDS))
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")  # it marks texts as an encoder's does
    assert (words.cls_token, words.sep_token, words.pad_token) == ("<s>", "</s>", "<pad>")
    assert (words.bos_token_id, words.eos_token_id) == (model.config.bos_token_id, model.config.eos_token_id)
    ours, _ = logits_of(rebuilt(state), data / "test.pt")
    table = torch.load(data / "test.pt", weights_only=True)
    with torch.no_grad():
        expected = model(table["input_ids"], attention_mask=table["attention_mask"]).logits
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="pooling mean"):
        tune(data, tmp_path / "mean", "--pooling=mean")
        export_hf.main(export_hf.Options(init_from=str(tmp_path / "mean"), out=str(tmp_path / "no")))


# -----------------------------------------------------------------------------
# the loss


@pytest.mark.parametrize("weights", ["", "--class_weights=0.5 2 1", "--class_weights=balanced"])
def test_the_first_logged_loss_is_torchs(data, tmp_path, weights):
    """Class weights and smoothing as F.cross_entropy has them over the whole batch, however it is cut."""
    flags = [weights] * bool(weights) + ["--label_smoothing=0.2", "--classifier_dropout=0", "--max_steps=1"]
    tune(data, tmp_path / "a", *flags, "--batch_size=24")
    tune(data, tmp_path / "b", *flags, "--batch_size=6", "--gradient_accumulation_steps=4")
    losses = [tracker.read(tmp_path / run / "train.csv")[0]["loss"] for run in "ab"]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)

    rows = tensors.Rows(data / "train.pt")
    which = rng.permute(np.arange(24), len(rows), 420, "order", 0)
    state = checkpoint.load(tmp_path / "a" / "best.pt")  # of step 0
    assert state["step"] in (0, 1)
    model = Classifier(RobertaConfig(**state["model_config"]), 3)
    model.load_state_dict(at_the_start(data))
    ids, lengths = rows.rows(which)
    labels = torch.from_numpy(rows.labels[which])
    counts = torch.bincount(torch.from_numpy(rows.labels), minlength=3)
    w = {"": None, "--class_weights=balanced": len(rows) / (3 * counts)}.get(weights, torch.tensor([0.5, 2.0, 1.0]))
    expected = F.cross_entropy(model.eval()(torch.from_numpy(ids), lengths), labels, w, label_smoothing=0.2)
    assert losses[0] == pytest.approx(expected.item(), abs=1e-5)


# -----------------------------------------------------------------------------
# what trains


def test_from_a_reward_model_on_an_encoder(data, tmp_path):
    """It is an encoder's weights, too; on a GPT it is none."""
    want, state = at_the_start(data), checkpoint.load(data / "encoder.pt")
    for backbone in ("roberta", "gpt"):
        about = {"backbone": backbone, **state["model_config"]}
        checkpoint.save(tmp_path / f"{backbone}.pt", state | {"kind": "reward", "model_config": about})
    found = tune(data, tmp_path / "run", f"--init_from={tmp_path / 'roberta.pt'}", "--learning_rate=0")["model"]
    assert all(torch.equal(found[name], want[name]) for name in want)
    cfg, weights, _ = open_weights(str(tmp_path / "roberta.pt"), "", ["all"])  # pretrain.py's way
    assert cfg == state["model_config"] and weights.keys() == state["model"].keys()
    with pytest.raises(ValueError, match="is a 'reward' checkpoint: an encoder's is needed"):
        tune(data, tmp_path / "no", f"--init_from={tmp_path / 'gpt.pt'}")


@pytest.mark.parametrize("saved", ["ours", "theirs"])
def test_a_gpt_gives_its_blocks_to_a_classifier_with_a_tokenizer_of_its_own(saved, data, tmp_path, capsys):
    gpt, state = GPT(GPTConfig(n_layer=2, n_head=4, n_embd=24, vocab_size=9, bias=True)), checkpoint.load(data / "encoder.pt")
    for p in gpt.parameters():  # norms are ones in both else
        p.data += 0.01
    checkpoint.save(tmp_path / "gpt.pt", state | {"kind": "gpt", "model_config": vars(gpt.config), "model": gpt.state_dict()})
    if saved == "theirs":
        export_hf.main(export_hf.Options(init_from=str(tmp_path / "gpt.pt"), out=str(tmp_path / "gpt.pt") + "_hf"))
    (tmp_path / "digits.json").write_text(state["meta"]["tokenizer"]["json"])
    source = tmp_path / {"ours": "gpt.pt", "theirs": "gpt.pt_hf"}[saved]
    flags = [f"--init_from={source}", f"--tokenizer={tmp_path / 'digits.json'}"]
    with pytest.raises(ValueError, match="an encoder.* is needed.*--transfer attn mlp norm, blocks alone, with a --tok"):
        tune(data, tmp_path / "no", *flags)
    found = tune(data, tmp_path / "run", *flags, "--transfer", "attn", "mlp", "--learning_rate=0")
    assert (found["model_config"]["vocab_size"], found["model_config"]["mlp_size"], found["step"]) == (16, 96, 5)
    taken = [n for n, w in found["model"].items() if n in gpt.state_dict() and torch.equal(w, gpt.state_dict()[n])]
    assert taken == [n for n in found["model"] if ".attn." in n or ".mlp." in n]
    assert re.search(r"attn +taken +4,800 parameters\n.*head +initialised", capsys.readouterr().out, re.DOTALL)


def moved(before, after) -> set[str]:
    return {name for name in after if name not in before or not torch.equal(before[name], after[name])}


def part(name):
    return re.sub(r"^transformer\.(h\.\d+|\w+)\..*", r"\1", name).split(".dense")[0].split(".out_proj")[0]


@pytest.mark.parametrize(("flags", "still"), [
    ([], set()),
    (["--freeze"], {"wte", "wpe", "ln_emb", "h.0", "h.1"}),
    (["--freeze_n_layers=1"], {"h.0"}),
    (["--freeze_embeddings"], {"wte", "wpe", "ln_emb"}),
    (["--freeze", "--freeze_epochs=1"], {"wte", "wpe", "ln_emb", "h.0", "h.1"}),
    (["--freeze", "--freeze_epochs=1", "--epochs=2", "--max_steps=6"], set()),  # a single step after the five
    (["--freeze", "--freeze_epochs=1", "--epochs=2", "--freeze_n_layers=1"], {"h.0"}),
    (["--backbone_lr_mult=0"], {"wte", "wpe", "ln_emb", "h.0", "h.1"}),
    (["--head_lr_mult=0"], {"classifier"}),
])  # fmt: skip
def test_what_is_frozen_stands_still_and_all_else_moves(data, tmp_path, capsys, flags, still):
    before = at_the_start(data)
    after = tune(data, tmp_path / "a", *flags)["model"]
    never = "--freeze_epochs is 5 of 5 steps: the encoder never trains"
    assert (never in capsys.readouterr().out) == (flags[1:] == ["--freeze_epochs=1"])
    parts = {part(name) for name in after}
    assert parts == {"wte", "wpe", "ln_emb", "h.0", "h.1", "classifier"}
    assert parts - {part(name) for name in moved(before, after)} == still


def test_rates_are_multiples_of_the_schedule(data, tmp_path):
    state = tune(data, tmp_path / "a", "--head_lr_mult=3", "--backbone_lr_mult=0.1", "--lr_schedule=none")
    rates = sorted({round(g["lr"] / 2e-4, 6) for g in state["optimizer"]["param_groups"]})
    assert rates == [0.1, 3.0]


# -----------------------------------------------------------------------------
# results and predictions


def test_the_test_split_is_scored_with_the_best_weights(data, tmp_path):
    pytest.importorskip("sklearn")
    from sklearn.metrics import f1_score

    out = tmp_path / "run"
    tune(data, out, "--epochs=8", "--learning_rate=0.1", "--lr_schedule=none")  # so the last weights are not the best
    results = json.loads((out / "results.json").read_text())
    evals = [row["val_loss"] for row in tracker.read(out / "eval.csv")]
    assert results["val_loss"] == pytest.approx(min(evals)) and min(evals) < evals[-1]
    logits, labels = logits_of(rebuilt(checkpoint.load(out / "best.pt")), data / "test.pt")
    assert results["test_loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), abs=1e-6)
    assert results["test_accuracy"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    assert results["test_macro_f1"] == pytest.approx(f1_score(labels, logits.argmax(1), average="macro"))
    assert np.array(results["confusion"]).sum() == len(labels) and results["labels"] == WORDS
    assert (out / "confusion.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "loss.png").exists()


def test_two_labels_have_an_auc(data, tmp_path):
    for split in ("train", "val", "test"):
        rows = tensors.Rows(data / f"{split}.pt")
        ids, lengths = rows.rows(np.arange(len(rows)))
        tensors.save(tmp_path / f"{split}.pt", ids, lengths, 1, np.minimum(rows.labels, 1))
    (tmp_path / "encoder.pt").write_bytes((data / "encoder.pt").read_bytes())
    tune(tmp_path, tmp_path / "run")
    assert 0 <= json.loads((tmp_path / "run" / "results.json").read_text())["test_auc"] <= 1


def predict(**options):
    argv = ["--device=cpu", "--dtype=float32", *(f"--{name}={value}" for name, value in options.items())]
    finetune.main(config.parse(finetune.Options, argv, doc=""))


def test_texts_a_second_count_the_texts_of_all_steps_since_the_last_line(data, tmp_path, monkeypatch):
    """An epoch's last batch is smaller, and most lines stand for several steps."""
    seen, real = [], tracker.Tracker.train

    def train(self, step, values, units):
        seen.append(units * (step + 1 - self.at))
        real(self, step, values, units)

    monkeypatch.setattr(tracker.Tracker, "train", train)
    tune(data, tmp_path / "run", "--epochs=2", "--batch_size=16", "--log_interval=3", "--eval_interval=4")
    unseen = 16  # step 7's: the evaluation at 8 begins anew
    assert sum(seen) == 2 * len(tensors.Rows(data / "train.pt", pad=1)) - unseen and len(seen) == 4


@pytest.mark.full
def test_two_ranks_report_the_best_weights_also_where_the_last_evaluation_wrote_them(data, tmp_path):
    """Rank 0 writes them: the other must not read the ones before."""
    for n in range(2):
        flags = [f"--init_from={data / 'encoder.pt'}", *(f"--{s}={data / s}.pt" for s in ("train", "val", "test")),
                 f"--out_dir={tmp_path / str(n)}", "--device=cpu", "--dtype=float32", "--classifier_dropout=0",
                 "--batch_size=1", "--gradient_accumulation_steps=16", "--max_steps=60", "--epochs=99", "--pooling=mean",
                 "--learning_rate=1e-2", "--lr_schedule=none", "--eval_interval=60"]  # fmt: skip
        process = FINETUNE.spawn(flags, 2)
        assert process.wait(120) == 0, process.stdout.read()
        first, last = (row["val_loss"] for row in tracker.read(tmp_path / str(n) / "eval.csv"))
        results = json.loads((tmp_path / str(n) / "results.json").read_text())
        assert last < first - 0.1 and results["val_loss"] == pytest.approx(last, abs=1e-6), n


def test_without_a_test_split_the_validation_split_is_reported(data, tmp_path, capsys):
    tune(data, tmp_path / "run", "--test=")
    done = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("done in"))
    assert ": val loss " in done and "val accuracy" in done and "test" not in done
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert np.array(results["confusion"]).sum() == len(tensors.Rows(data / "val.pt", pad=1))


def test_predictions_are_the_models_a_row_a_text(data, tmp_path):
    state = tune(data, tmp_path / "run")
    with_dropout(tmp_path / "run" / "best.pt")
    tokenizer = vocab.load(state["meta"]["tokenizer"]).tokenizer
    texts = ["0 1 2 7", "8", "1 2 3 4 5 6 9", "", "9" * 40]  # the last is longer than the encoder reads
    (tmp_path / "new.csv").write_text(",text,label\n" + "".join(f"{i},{t},?\n" for i, t in enumerate(texts)))
    predict(init_from=str(tmp_path / "run"), predict=str(tmp_path / "new.csv"), out=str(tmp_path / "out.csv"))
    with open(tmp_path / "out.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    columns = ["text", "label", "p_seven", "p_eight", "p_nine", "", "label (input)"]  # what else the rows hold: last
    assert [r["text"] for r in rows] == texts and list(rows[0]) == columns
    assert [r[""] for r in rows] == list("01234") and {r["label (input)"] for r in rows} == {"?"}
    model = rebuilt(checkpoint.load(tmp_path / "run" / "best.pt"))
    for text, row in zip(texts, rows, strict=True):
        ids = tokenizer.encode(text).ids
        ids = ids if len(ids) <= 16 else [*ids[:15], 2]
        with torch.no_grad():
            p = model(torch.tensor(ids), [len(ids)]).softmax(1)[0]
        assert [float(row[f"p_{w}"]) for w in WORDS] == pytest.approx(p.tolist(), abs=2e-6)
        assert row["label"] == WORDS[p.argmax()]


def test_a_killed_prediction_goes_on_as_it_began_or_anew(data, tmp_path, monkeypatch, capsys):
    """With texts cut elsewhere, what is written already would be of other texts."""
    tune(data, tmp_path / "run", "--max_steps=1")
    (tmp_path / "new.txt").write_text("1 2 3 4 7\n" * 100)
    calls, real = [], predictions.records.texts

    def dies(rows, *how):
        calls.append(len(rows))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(rows, *how)

    monkeypatch.setattr(predictions.records, "texts", dies)
    flags = {"init_from": str(tmp_path / "run"), "predict": str(tmp_path / "new.txt"), "out": str(tmp_path / "out.csv")}
    for again, goes_on in ({"max_length": 3}, True), ({"max_length": 4}, False):
        calls.clear()
        with pytest.raises(KeyboardInterrupt):
            predict(**flags, max_length=3)
        assert "going on" not in capsys.readouterr().out
        predict(**flags, **again)
        assert ("going on" in capsys.readouterr().out) == goes_on
        (tmp_path / "out.csv").unlink()


def test_a_diverged_model_gives_no_label(data, tmp_path):
    """Its weights are finite, what it makes of a text is not."""
    state = tune(data, tmp_path / "run", "--max_steps=1")
    state["model"] = {k: w * 1e30 for k, w in state["model"].items()}
    checkpoint.save(tmp_path / "bad.pt", state)
    (tmp_path / "new.txt").write_text("1 2 7\n")
    with pytest.raises(NotFinite, match="bad.pt are not finite: there is no label to give"):
        predict(init_from=str(tmp_path / "bad.pt"), predict=str(tmp_path / "new.txt"), out=str(tmp_path / "out.csv"))
    assert not (tmp_path / "out.csv").exists()


def test_a_runs_config_predicts_with_the_runs_own_weights(data, tmp_path):
    """It names the classifier that the run began from, too."""
    tune(data, tmp_path / "old")
    tune(data, tmp_path / "run", f"--init_from={tmp_path / 'old'}", "--epochs=8", "--learning_rate=0.01")
    (tmp_path / "new.txt").write_text("1 2\n3 4\n")
    saved, found = {"config": tmp_path / "run" / "config.yaml"}, {}
    for name, source in {"file": saved, "old": saved | {"init_from": tmp_path / "old"},
                         "new": {"init_from": tmp_path / "run"}}.items():  # fmt: skip
        predict(predict=tmp_path / "new.txt", out=tmp_path / f"{name}.csv", **source)
        found[name] = (tmp_path / f"{name}.csv").read_text()
    assert found["file"] == found["new"] != found["old"]


def test_no_two_columns_of_predictions_have_one_name(data, tmp_path):
    """Nor does the one with the texts, and also where the input is what an earlier call wrote."""
    tune(data, tmp_path / "run")
    (tmp_path / "0.csv").write_text("label,p_seven\n1 7,x\n2 8,y\n")
    for i in range(3):
        predict(init_from=tmp_path / "run", predict=tmp_path / f"{i}.csv", out=tmp_path / f"{i + 1}.csv",
                text_column="label" if i == 0 else "label (input)")  # fmt: skip
        with open(tmp_path / f"{i + 1}.csv", newline="") as f:
            header, *rows = csv.reader(f)
        assert len(set(header)) == len(header) and header[1:5] == ["label", "p_seven", "p_eight", "p_nine"]
        assert [row[0] for row in rows] == ["1 7", "2 8"] and {"x", "y"} <= {x for row in rows for x in row}


def test_texts_to_predict_are_cut_as_those_to_train_on(data, tmp_path):
    """Whether the run is named by its folder or by its config.yaml: a longer text is none that it has seen."""
    tune(data, tmp_path / "run", "--max_length=5")
    (tmp_path / "new.txt").write_text("1 2 3 8 8 8\n1 2 3 9 9 9\n1 2 3\n")
    found = {}
    for name, source in {"file": {"config": tmp_path / "run" / "config.yaml"}, "run": {"init_from": tmp_path / "run"},
                         "more": {"init_from": tmp_path / "run", "max_length": 8}}.items():  # fmt: skip
        predict(predict=tmp_path / "new.txt", out=tmp_path / f"{name}.csv", **source)
        with open(tmp_path / f"{name}.csv", newline="") as f:
            found[name] = [row["p_seven"] for row in csv.DictReader(f)]
    assert found["file"] == found["run"] and len({*found["run"]}) == 1 < len({*found["more"]})
    transformers = pytest.importorskip("transformers")  # and by what is told to cut where the tokenizer says
    export_hf.main(export_hf.Options(init_from=str(tmp_path / "run"), out=str(tmp_path / "hf")))
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert words(["1 2 3 8 8 8"], truncation=True)["input_ids"] == [[0, 7, 8, 9, 2]]


def test_the_tokenizer_beside_weights_for_transformers_is_compared(data, tmp_path):
    """--tokenizer took another's place there without a word, which a run's own never let pass."""
    export_hf.main(export_hf.Options(init_from=str(data / "encoder.pt"), out=str(tmp_path / "hf")))
    table = json.loads((tmp_path / "hf" / "tokenizer.json").read_text())
    (tmp_path / "same.json").write_text(json.dumps(table, indent=3))
    words = table["model"]["vocab"]
    words["7"], words["8"] = words["8"], words["7"]
    (tmp_path / "other.json").write_text(json.dumps(table))
    assert open_encoder(str(tmp_path / "hf"), str(tmp_path / "same.json")).weights
    for source in (tmp_path / "hf", data / "encoder.pt"):
        with pytest.raises(ValueError, match="--tokenizer .*other.json is .* was trained with .*: leave it out, or"):
            open_encoder(str(source), str(tmp_path / "other.json"))
    (tmp_path / "hf" / "tokenizer.json").unlink()  # weights alone say nothing
    assert open_encoder(str(tmp_path / "hf"), str(tmp_path / "other.json")).weights


def test_texts_cut_before_the_run_are_cut_so_afterwards(data, tmp_path):
    """data/build_tensors.py may have cut them shorter than the encoder would: a longer one is none that the run saw."""
    (tmp_path / "rows.csv").write_text("text,label\n" + "".join(f"{i} 8 1 2 3 4,{'ab'[i % 2]}\n" for i in range(9)))
    (tmp_path / "tok.json").write_text(checkpoint.load(data / "encoder.pt")["meta"]["tokenizer"]["json"])
    build_tensors.main(build_tensors.Options(input=str(tmp_path / "rows.csv"), label_column="label", max_length=4,
                                             tokenizer=str(tmp_path / "tok.json"), out_dir=str(tmp_path)))  # fmt: skip
    files = [f"--{s}={tmp_path / 'train.pt'}" for s in ("train", "val")]
    tune(data, tmp_path / "run", *files, "--test=")
    (tmp_path / "new.txt").write_text("1 2 3 8 8 8\n1 2\n")
    predict(predict=tmp_path / "new.txt", out=tmp_path / "out.csv", init_from=tmp_path / "run")
    with open(tmp_path / "out.csv", newline="") as f:
        first, second = (row["p_a"] for row in csv.DictReader(f))
    assert first == second


def test_texts_on_both_sides_are_told(data, tmp_path, capsys):
    tune(data, tmp_path / "a", f"--val={data / 'train.pt'}")
    out = capsys.readouterr().out
    assert "train.pt: 72 texts (seven 21, eight 23, nine 28), 0 cut to 16 tokens, 72 of them are in train, too" in out
    assert "\ntrain " in out and out.split("\ntrain ")[1].splitlines()[0].endswith("0 cut to 16 tokens")
    meta, one = tensors.Rows(data / "train.pt"), [0, 6, 7, 8, 9, 2]
    for name, last in (("a", 10), ("b", 11)):  # alike once they are cut
        ids = np.array(one + one[:-2] + [last, 2])
        tensors.save(tmp_path / f"{name}.pt", ids, np.array([6, 6]), 1, np.array([0, 1]), meta.names, meta.tokenizer)
    for length, told in ((16, "0 cut to 16 tokens, 1 of them"), (5, "2 cut to 5 tokens, 2 of them")):
        flags = [f"--train={tmp_path / 'a.pt'}", f"--val={tmp_path / 'b.pt'}", f"--max_length={length}"]
        tune(data, tmp_path / f"cut{length}", *flags)
        assert f"b.pt: 2 texts (seven 1, eight 1, nine 0), {told} are in train, too" in capsys.readouterr().out


def test_a_train_split_of_one_class_is_told_and_many_classes_are_a_number(data, tmp_path, capsys):
    for count, same in ((2, True), (21, False)):
        labels = np.zeros(8, int) if same else np.arange(8)
        meta = tensors.Rows(data / "train.pt")
        tensors.save(tmp_path / "x.pt", np.tile([0, 6, 2], 8), np.full(8, 3), 1, labels,
                     [f"c{i}" for i in range(count)], meta.tokenizer)  # fmt: skip
        tune(data, tmp_path / "a", *(f"--{split}={tmp_path / 'x.pt'}" for split in ("train", "val", "test")))
        out = capsys.readouterr().out
        assert ("note: all texts of train are 'c0': there is nothing to learn from them" in out) == same
        assert ("8 texts (c0 8, c1 0), " if same else "8 texts (21 labels), ") in out


def test_predictions_are_counted_against_true_labels(data, tmp_path, capsys):
    tune(data, tmp_path / "run")
    (tmp_path / "new.csv").write_text("text,is\n" + "".join(f"{i} 1,{WORDS[i % 3]}\n" for i in range(9)))
    flags = {"init_from": str(tmp_path / "run"), "predict": str(tmp_path / "new.csv"), "out": str(tmp_path / "out.csv")}
    predict(**flags, label_column="is")
    with open(tmp_path / "out.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    assert [r["true label"] for r in rows] == [WORDS[i % 3] for i in range(9)]
    share = sum(r["label"] == r["true label"] for r in rows) / 9
    (tmp_path / "long.jsonl").write_text(json.dumps({"text": "1" * 200_000, "is": WORDS[0]}))  # beyond csv's own limit
    predict(**flags | {"predict": str(tmp_path / "long.jsonl"), "out": str(tmp_path / "long.csv")}, label_column="is")
    csv.field_size_limit(1 << 17)
    said = capsys.readouterr().out
    assert f"accuracy {share:.4f}, macro F1 " in said and "<unk>" not in said
    assert "left out: the first row" not in said
    (tmp_path / "more.jsonl").write_text('{"text": "7"}\n{"text": "8", "id": 1}\n')
    predict(**flags | {"predict": str(tmp_path / "more.jsonl"), "out": str(tmp_path / "more.csv")})
    assert "note: 'id' of later rows left out: the first row has no such column" in capsys.readouterr().out
    (tmp_path / "odd.txt").write_text("1\u00e9\n")
    predict(**flags | {"predict": str(tmp_path / "odd.txt"), "out": str(tmp_path / "odd.csv")})
    assert "note: 1 of the 4 tokens are <unk>" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--label_column must be one of 'text', 'is'; got 'iss', did you mean 'is'"):
        predict(**flags, label_column="iss")
    (tmp_path / "new.csv").write_text("text,is\n1,eleven\n")
    message = "new.csv: row 1 has the label 'eleven' in 'is', the labels here are seven, eight, nine"
    with pytest.raises(ValueError, match=message):
        predict(**flags, label_column="is")
    for none in ("null", "NaN", '" "'):
        (tmp_path / "new.jsonl").write_text(f'{{"text": "7", "is": "seven"}}\n{{"text": "8", "is": {none}}}\n')
        with pytest.raises(ValueError, match="new.jsonl: row 2 has no label in 'is'"):
            predict(**flags | {"predict": str(tmp_path / "new.jsonl")}, label_column="is")
    with pytest.raises(ValueError, match="none.csv: no such file"):
        predict(init_from=str(tmp_path / "run"), predict=str(tmp_path / "none.csv"))


@pytest.mark.parametrize("table, names", [
    ({"2": "two", "0": "zero", "1": "one"}, ["zero", "one", "two"]),  # by number, whatever the file's order
    ({"0": "zero", "1": "one", "10": "ten"}, ["zero", "one", "LABEL_2"]),
    (None, ["LABEL_0", "LABEL_1", "LABEL_2"]),  # transformers writes none for two labels
])  # fmt: skip
def test_a_published_classifiers_labels(table, names, theirs, data, tmp_path):
    _, folder = theirs
    shutil.copytree(folder, tmp_path / "x")
    config_ = json.loads((folder / "config.json").read_text())
    config_.pop("id2label")
    (tmp_path / "x" / "config.json").write_text(json.dumps(config_ | ({"id2label": table} if table else {})))
    tokenizer = checkpoint.load(data / "encoder.pt")["meta"]["tokenizer"]
    (tmp_path / "x" / "tokenizer.json").write_text(tokenizer["json"])
    assert open_encoder(str(tmp_path / "x")).head["names"] == names


def test_one_number_a_text_is_no_classifier(data, tmp_path):
    transformers = pytest.importorskip("transformers")
    cfg = transformers.RobertaConfig(vocab_size=16, hidden_size=32, num_hidden_layers=1, num_attention_heads=4,
                                     intermediate_size=48, max_position_embeddings=18, num_labels=1)  # fmt: skip
    transformers.RobertaForSequenceClassification(cfg).save_pretrained(tmp_path / "x")
    tokenizer = checkpoint.load(data / "encoder.pt")["meta"]["tokenizer"]
    (tmp_path / "x" / "tokenizer.json").write_text(tokenizer["json"])
    (tmp_path / "new.txt").write_text("0 1 7\n")
    with pytest.raises(ValueError, match="is an encoder without a classifier"):
        predict(init_from=str(tmp_path / "x"), predict=str(tmp_path / "new.txt"), out=str(tmp_path / "out.csv"))


def test_a_published_classifier_predicts_and_trains_on(theirs, data, tmp_path):
    model, folder = theirs
    tokenizer = checkpoint.load(data / "encoder.pt")["meta"]["tokenizer"]
    (folder / "tokenizer.json").write_text(tokenizer["json"])
    (tmp_path / "new.txt").write_text("0 1 7\n")
    predict(init_from=str(folder), predict=str(tmp_path / "new.txt"), out=str(tmp_path / "out.csv"))
    with open(tmp_path / "out.csv", newline="") as f:
        row = next(csv.DictReader(f))
    with torch.no_grad():
        p = model(torch.tensor([[0, 6, 7, 13, 2]])).logits.softmax(1)[0]
    assert [float(row[f"p_{w}"]) for w in WORDS] == pytest.approx(p.tolist(), abs=1e-5)
    for source, out in ((folder, tmp_path / "a"), (tmp_path / "a", tmp_path / "b")):
        state = tune(data, out, f"--init_from={source}", "--pooler_type=roberta", "--learning_rate=0")
        assert torch.equal(state["model"]["classifier.out_proj.weight"], model.classifier.out_proj.weight)


def test_a_classifier_whose_labels_have_other_numbers_keeps_their_meaning(theirs, data, tmp_path):
    model, folder = theirs
    shutil.copytree(folder, tmp_path / "hf")
    about = json.loads((folder / "config.json").read_text())
    about["id2label"] = {"0": WORDS[2], "1": WORDS[0], "2": WORDS[1]}
    (tmp_path / "hf" / "config.json").write_text(json.dumps(about))
    (tmp_path / "hf" / "tokenizer.json").write_text(checkpoint.load(data / "encoder.pt")["meta"]["tokenizer"]["json"])
    state = tune(data, tmp_path / "a", f"--init_from={tmp_path / 'hf'}", "--pooler_type=roberta", "--learning_rate=0")
    assert state["meta"]["head"]["names"] == WORDS
    for part in ("weight", "bias"):
        ours, was = state["model"][f"classifier.out_proj.{part}"], getattr(model.classifier.out_proj, part)
        assert torch.equal(ours, was[[1, 2, 0]])


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_a_head_that_gives_no_single_label_is_no_classifier(problem, theirs, data, tmp_path):
    """Shares that sum to 1 would be other numbers than the model's."""
    folder = shutil.copytree(theirs[1], tmp_path / "theirs")
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(about | {"problem_type": problem}))
    (folder / "tokenizer.json").write_text(checkpoint.load(data / "encoder.pt")["meta"]["tokenizer"]["json"])
    (tmp_path / "new.txt").write_text("0 1 7\n")
    with pytest.raises(ValueError, match="without a classifier that gives each text one label"):
        predict(init_from=str(folder), predict=str(tmp_path / "new.txt"), out=str(tmp_path / "out.csv"))
    assert tune(data, tmp_path / "run", f"--init_from={folder}", "--max_steps=1")["step"] == 1  # as an encoder it does


def test_from_scratch_the_shape_comes_from_options(data, tmp_path):
    (tmp_path / "tokenizer.json").write_text(checkpoint.load(data / "encoder.pt")["meta"]["tokenizer"]["json"])
    state = tune(data, tmp_path / "run", "--init_from=scratch", f"--tokenizer={tmp_path}", "--model", "n_embd=24",
                 "n_layer=1", "n_head=2", "mlp_size=32", "block_size=16", "position=rope")  # fmt: skip
    assert state["model_config"]["n_embd"] == 24 and state["model_config"]["position"] == "rope"
    assert state["model_config"]["vocab_size"] == 16 and state["model_config"]["pad_id"] == 1


# -----------------------------------------------------------------------------
# what a user can get wrong


class Evil:
    def __reduce__(self):
        return os.system, ("touch executed",)


def wrong(data, tmp_path, case):
    """(flags, what the message says) of one mistake."""
    rows = tensors.Rows(data / "val.pt")
    ids, lengths = rows.rows(np.arange(len(rows)))
    new, empty = tmp_path / "new.pt", tmp_path / "empty.pt"
    empty.touch()
    if case == "no labels":
        tensors.save(new, ids, lengths, 1)
        return [f"--val={new}"], "has no labels"
    if case == "label out of range":
        tensors.save(new, ids, lengths, 1, rows.labels + 1)
        return [f"--val={new}"], r"row \d+ has the label 3, but num_labels is 3"
    if case == "other names":
        tensors.save(new, ids, lengths, 1, rows.labels, ["a", "b", "c"])
        return [f"--val={new}"], r"numbers its labels \['a', 'b', 'c'\].*: data/build_tensors.py --labels"
    if case == "other tokenizer":
        tensors.save(new, ids, lengths, 1, rows.labels, WORDS, "0123")
        return [f"--val={new}"], "was made with the tokenizer 0123, the encoder has"
    if case == "id out of range":
        tensors.save(new, np.where(ids == 9, 99, ids), lengths, 1, rows.labels)
        return [f"--val={new}"], "id 99, but the vocabulary has 16"
    if case == "other pad":
        tensors.save(new, ids, lengths, 3, rows.labels)
        return [f"--val={new}"], "padding is 1"
    if case == "malicious":
        torch.save({"model": Evil()}, new)
        return [f"--init_from={new}"], "damaged|code"
    if case == "too few labels":
        return ["--num_labels=2"], "has the label 2, but num_labels is 2"
    if case == "too many labels":
        return ["--num_labels=4"], "--num_labels is 4, .* has the 3 labels seven, eight, nine"
    return {
        "no val": (["--val="], "--val is missing"),
        "no source": (["--init_from="], "--init_from is missing"),
        "weights": (["--class_weights=1 2"], "a number >= 0 for each of 3 labels"),
        "no file name": (["--files.best="], "--files.best must be the name of a file, got ''"),
        "one file name": (["--files.ckpt=best.pt"], "--files.best and --files.ckpt are both 'best.pt'"),
        "a weight": (["--class_weights=1 nan 2"], "a number >= 0 for each of 3 labels"),
        "no room for a text": (["--max_length=2"], "--max_length must be at least 3"),
        "layers": (["--freeze_n_layers=3"], "--freeze_n_layers is 3, the encoder has 2 layers"),
        "another shape": (["--model", "n_layer=1"], "n_layer is 2 in .* and cannot become 1"),
        "other positions": (["--model", "position=rope"], "position is 'absolute' in .* and cannot become 'rope'"),
        "heads cut otherwise": (["--model", "n_head=1"], "n_head is 2 in .* and cannot become 1"),
        "a file that is a folder": (["--files.best=a/best.pt", "--files.eval_csv=a"],
                                    "--files.eval_csv 'a': --files.best 'a/best.pt' needs a folder there"),
        "a file of the run's": (["--files.train_csv=results.json"], "results.json: a run writes something else there"),
        "unknown field": (["--model", "n_layers=1"], "did you mean 'n_layer'"),
        "not there": (["--init_from=nowhere/x.pt"], "nowhere"),
        "nothing to resume": (["--init_from=resume"], "nothing to resume"),
        "a folder": ([f"--train={data}"], "is a folder: a .pt file"),
        "a checkpoint": ([f"--train={data / 'encoder.pt'}"], "encoder.pt is a checkpoint: a data set by"),
        "an empty file": ([f"--train={empty}"], "empty.pt is empty"),
        "no freeze": (["--freeze_epochs=1"], "--freeze_epochs 1 is how long --freeze lasts, which is off"),
        "for predict": (["--text_column=a"], "are for --predict"),
    }[case]


CASES = ["no labels", "label out of range", "other names", "other tokenizer", "id out of range", "other pad",
         "malicious", "a folder", "a checkpoint", "an empty file", "no freeze", "for predict", "too few labels", "too many labels", "no val", "no source", "weights", "a weight",
         "no file name", "one file name", "no room for a text", "layers", "another shape",
         "other positions", "heads cut otherwise", "a file that is a folder", "a file of the run's", "unknown field", "not there", "nothing to resume"]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_mistakes_are_named_and_nothing_is_written(data, tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    flags, message = wrong(data, tmp_path, case)
    with pytest.raises(ValueError, match=message):
        tune(data, tmp_path / "run", *flags)
    from core import exits

    if exits.held:
        exits.held.leave(2)
    assert not (tmp_path / "run").exists() and not (tmp_path / "executed").exists()


def test_prediction_needs_a_classifier(data, tmp_path):
    (tmp_path / "new.txt").write_text("1\n")
    with pytest.raises(ValueError, match="without a classifier"):
        predict(init_from=str(data / "encoder.pt"), predict=str(tmp_path / "new.txt"))
    tune(data, tmp_path / "run", "--max_steps=1")
    for content, message in (("", "holds no texts"), ('{"text": 3}\n', "row 1: text is wanted in 'text', got 3")):
        (tmp_path / "new.jsonl").write_text(content)
        with pytest.raises(ValueError, match=message):
            predict(init_from=str(tmp_path / "run"), predict=str(tmp_path / "new.jsonl"))
    state = checkpoint.load(tmp_path / "run" / "best.pt")
    bare = json.loads(state["meta"]["tokenizer"]["json"]) | {"post_processor": None}  # adds no <s>
    state["meta"]["tokenizer"]["json"] = json.dumps(bare)
    checkpoint.save(tmp_path / "bare.pt", state)
    (tmp_path / "new.jsonl").write_text('{"text": "7"}\n{"text": ""}\n')
    with pytest.raises(ValueError, match="row 2 has no token"):
        predict(init_from=str(tmp_path / "bare.pt"), predict=str(tmp_path / "new.jsonl"), out=str(tmp_path / "no.csv"))
    lines = '{"text": "7", "label": "seven"}\n{"text": "8"}\n{"label": "nine"}\n'
    (tmp_path / "new.jsonl").write_text(lines)
    for label, message in (("", "row 3: text is wanted in 'text', got None"), ("label", "row 2 has no label in")):
        (tmp_path / "new.jsonl").write_text("\n".join(lines.splitlines()[: 3 - bool(label)]))
        with pytest.raises(ValueError, match=message):
            predict(init_from=str(tmp_path / "run"), predict=str(tmp_path / "new.jsonl"), label_column=label,
                    out=str(tmp_path / "out.csv"))  # fmt: skip


def test_the_stored_freeze_epochs_may_be_said_again(data, tmp_path):
    tune(data, tmp_path / "run", "--max_steps=3", "--freeze", "--freeze_epochs=1")
    assert tune(data, tmp_path / "run", "--init_from=resume", "--freeze_epochs=1")["options"]["freeze"]


def test_a_changed_rate_acts_on_resume_and_changed_data_is_refused(data, tmp_path):
    tune(data, tmp_path / "run", "--max_steps=3")
    again = ("--init_from=resume", "--max_steps=5", "--learning_rate=0.5", "--lr_schedule=none")
    state = tune(data, tmp_path / "run", *again)
    assert state["step"] == 5 and max(g["lr"] for g in state["optimizer"]["param_groups"]) == 0.5
    with pytest.raises(ValueError, match="--shuffle is True in the run to resume and cannot become False"):
        tune(data, tmp_path / "run", "--init_from=resume", "--no-shuffle")
