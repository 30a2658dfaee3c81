"""pretrain.py beyond the contract of all loops (tests/test_loops.py)."""

import errno
import json
import os
import tracemalloc
from unittest.mock import Mock

import numpy as np
import pytest
import torch

import export_hf
import pretrain
import sample
from core import checkpoint, config, tracker
from core.run import NotFinite, read_status
from core.values import read_yaml
from data import arrow, build_pretrain_data, encoding, masking, train_tokenizer, vocab
from model import RobertaConfig, RobertaMLM
from tests import loops

SHAPE = ["--hidden_size=16", "--hidden_depth=1", "--attention_heads=2", "--intermed_size=16"]
FLAGS = ["--hidden_prob=0", "--att_prob=0", "--dtype=float32", "--log_steps=1", "--no_wandb", "--device=cpu"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    loops.digits_data(folder)  # 81 and 9 sequences of up to 12 tokens
    return folder


@pytest.fixture
def run(data, tmp_path, capsys):
    def go(*argv, out="run", shape=True) -> str:
        flags = [f"--train={data / 'pretrain_train_trunc12'}", f"--eval={data / 'pretrain_eval_trunc12'}",
                 f"--tokenizer={data / 'tokenizer.json'}", f"--save_path={tmp_path / out}"]  # fmt: skip
        capsys.readouterr()
        argv = [*flags, *(SHAPE if shape else []), *FLAGS, *map(str, argv)]
        pretrain.main(config.parse(pretrain.Options, argv, doc=""))
        return capsys.readouterr().out

    return go


def steps_of(folder) -> list[int]:
    return sorted(int(p.name.split("-")[1]) for p in folder.glob("checkpoint-*"))


def rows(folder, name="train") -> list[dict]:
    return tracker.read(folder / f"{name}.csv")


# -----------------------------------------------------------------------------
# the interface


def test_the_docstring_lists_every_option():
    words = pretrain.__doc__.replace(",", " ").replace("(", " ").replace(";", " ").split()
    assert not [name for name in config.specs(pretrain.Options) if name.split(".")[0] not in words]


def test_documented_defaults():
    o = pretrain.Options()
    assert (o.vocab_size, o.hidden_size, o.hidden_depth, o.attention_heads, o.intermed_size) == (16, 512, 8, 8, 3072)
    assert (o.act_func, o.hidden_prob, o.att_prob, o.class_prob, o.pos_embed) == ("gelu", 0.1, 0.1, 0.1, "absolute")
    assert (o.epochs, o.lr, o.lr_schedule, o.warmup_steps, o.decay) == (5, 1e-4, "linear", 0, 0.1)
    assert (o.beta1, o.beta2, o.grad_clip, o.per_device, o.grad_acc) == (0.9, 0.999, 1.0, 16, 1)
    assert (o.log_steps, o.save_total_limit, o.seed, o.fp16, o.reset, o.no_wandb) == (10, 2, 42, False, False, False)


def test_padding_without_a_mask_is_said(run, data, tmp_path):
    import pyarrow as pa

    pad = encoding.token_id(encoding.load_tokenizer(str(data / "tokenizer.json")), "pad")
    table = pa.table({"input_ids": [[5, 6, 7], [5, 6, pad], [5, 7, 6]]})
    with pa.ipc.new_stream(str(tmp_path / "padded.arrow"), table.schema) as f:
        f.write_table(table)
    note = f"note: {tmp_path / 'padded.arrow'} row 1 holds padding (id {pad}) that no attention_mask hides"
    assert note in run("--max_steps=1", "--train", tmp_path / "padded.arrow") and "note: " not in run("--max_steps=1", out="b")


def test_an_evaluation_on_what_is_trained_on_is_said(run, data):
    says = "note: these are trained on, too"
    assert says not in run("--max_steps=1")
    assert says in run("--max_steps=1", f"--eval={data / '.' / 'pretrain_train_trunc12'}", out="b")


def test_an_evaluation_whose_masks_hide_nothing_is_said(run, tmp_path):
    """All its losses are NaN, and no weights are kept as the best: an eval file of a line or two has that chance."""
    import pyarrow as pa

    said = "note: at mask_p 0.15 no token of --eval is hidden: there is no loss"
    assert said not in run("--max_steps=1")
    table = pa.table({"input_ids": [[0, 6, 2]]})
    with pa.ipc.new_stream(str(tmp_path / "one.arrow"), table.schema) as f:
        f.write_table(table)
    out = run("--max_steps=1", "--eval", tmp_path / "one.arrow", out="b")
    assert out.count(said) == out.count("eval loss nan") - 1 == 2  # the last line of a run has it, too


def test_what_a_run_leaves(run, tmp_path):
    out = run("--epochs=3", "--per_device=8", "--class_prob=0.25")
    folder = tmp_path / "run"
    assert steps_of(folder) == [22, 33]  # 81 sequences are 11 steps an epoch, two folders are kept
    assert {r["step"] for r in rows(folder, "eval")} == {0, 11, 22, 33}
    assert len(rows(folder)) == 33 and (folder / "loss.png").is_file() and (folder / "best.pt").is_file()
    assert rows(folder)[-1]["lr"] == pytest.approx(1e-4 / 33)  # linear, to 0 at the end
    assert "peak memory" in out and "0 cut to 12 tokens" in out
    final = sorted(p.name for p in (folder / "final").iterdir())
    assert final == ["ckpt.pt", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert json.loads((folder / "final" / "config.json").read_text())["classifier_dropout"] == 0.25
    state, last = (checkpoint.load(folder / name / "ckpt.pt") for name in ("final", "checkpoint-33"))
    assert all(torch.equal(state["model"][k], last["model"][k]) for k in last["model"])


@pytest.mark.parametrize(("limit", "kept"), [(0, [2, 4, 6, 8]), (1, [8]), (3, [4, 6, 8])])
def test_save_total_limit(run, tmp_path, limit, kept):
    run("--max_steps=8", "--eval_interval=2", f"--save_total_limit={limit}")
    assert steps_of(tmp_path / "run") == kept


def test_a_stopped_run_keeps_no_more_than_the_limit(run, tmp_path, monkeypatch):
    with monkeypatch.context() as m, pytest.raises(SystemExit):
        loops.stopped_at(m, 7, 1)
        run("--max_steps=12", "--eval_interval=2", "--save_total_limit=2")
    assert steps_of(tmp_path / "run") == [6, 7]


def test_the_best_weights_are_there_where_no_step_beat_the_start(run, tmp_path):
    run("--max_steps=2", "--lr=10", "--grad_clip=0", "--log_steps=1")
    best, first = checkpoint.load(tmp_path / "run/best.pt"), rows(tmp_path / "run", "eval")[0]
    assert (best["step"], best["best"]) == (0, first["eval_loss"]) and steps_of(tmp_path / "run") == [2]


def test_a_run_from_another_ones_checkpoint_has_the_best_weights_up_to_there(run, tmp_path):
    """They are the checkpoint's own, the run's folder's, or, where only later ones are left, the first to come."""
    steps = ["--eval_interval=2", "--save_total_limit=0"]
    run(*steps, "--max_steps=6", "--lr=0.001", out="old")
    old = tmp_path / "old"
    one, two, three = (old / f"checkpoint-{step}" / "ckpt.pt" for step in (2, 4, 6))
    assert checkpoint.load(old / "best.pt")["step"] == 6  # the loss fell at each
    for path, step in ((two, 5), (three, 7)):  # as a stop between two evaluations saves it
        checkpoint.save(old / f"stopped-{step}" / "ckpt.pt", checkpoint.load(path) | {"step": step})
    for path, first in ((one, 2), (old / "stopped-7" / "ckpt.pt", 6), (old / "stopped-5" / "ckpt.pt", 6)):
        out = f"from {path.parent.name}"
        said = run(*steps, f"--ckpt_path={path}", "--max_steps=8", "--lr=50", out=out)
        best = checkpoint.load(tmp_path / out / "best.pt")
        assert best["step"] == first and f"best {best['best']:.4f}" in said
    assert "checkpoint-6" in run(f"--ckpt_path={old}", "--max_steps=7", out="folder")  # its newest
    assert "so --ckpt_path is not used" in run(f"--ckpt_path={one.parent}", "--max_steps=7", out="folder")


def test_wandb_is_on_and_its_absence_stops_nothing(run, monkeypatch, capsys, tmp_path):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    argv = [f for f in FLAGS if f != "--no_wandb"]
    monkeypatch.setattr("tests.test_pretrain.FLAGS", argv)
    run("--max_steps=1")
    assert steps_of(tmp_path / "run") == [1]


def test_fp16_on_a_cpu_becomes_auto(data, tmp_path, capsys):
    flags = [f for f in FLAGS if "dtype" not in f]
    argv = [f"--train={data / 'pretrain_train_trunc12'}", f"--eval={data / 'pretrain_eval_trunc12'}", "--fp16",
            f"--tokenizer={data / 'tokenizer.json'}", f"--save_path={tmp_path / 'r'}", "--max_steps=1"]  # fmt: skip
    pretrain.main(config.parse(pretrain.Options, [*argv, *SHAPE, *flags], doc=""))
    assert "float16 crawls" in capsys.readouterr().out


def test_fp16_leaves_the_dtype_that_was_named(run, tmp_path, capsys):
    """Also at a resume, whose command names none."""
    assert "cpu, float32" in run("--max_steps=1", "--fp16", "--dtype=float32")
    argv = [f"--save_path={tmp_path / 'run'}", "--init_from=resume", "--max_steps=2", "--no_wandb", "--device=cpu"]
    pretrain.main(config.parse(pretrain.Options, argv))
    out = capsys.readouterr().out
    assert "cpu, float32" in out and "float16 crawls" not in out


def test_an_encoder_that_computes_something_else_is_not_left_for_transformers(run, tmp_path, monkeypatch):
    """An axis of one's own, which no table here knows: final/ was written as a RoBERTa that was not trained."""
    real = RobertaMLM.run
    monkeypatch.setattr(RobertaMLM, "run", lambda self, *a: real(self, *a) * (self.config.rope_base / 1e4))
    assert "no Hugging Face format: transformers' RoBERTa computes" in run("--max_steps=1", "--model", "rope_base=2e4")
    assert sorted(p.name for p in (tmp_path / "run" / "final").iterdir()) == [
        "ckpt.pt", "tokenizer.json", "tokenizer_config.json"]  # fmt: skip


@pytest.mark.parametrize("kind", ["relative_key", "relative_key_query", "rope", "alibi"])
def test_other_positions_train_and_are_not_exported(run, tmp_path, kind):
    out = run("--max_steps=2", f"--pos_embed={kind}")
    assert kind in out and "no Hugging Face format" in out
    assert not (tmp_path / "run" / "final" / "config.json").exists()
    assert (tmp_path / "run" / "final" / "tokenizer.json").exists()
    with pytest.raises(ValueError, match="position"):
        export_hf.main(export_hf.Options(init_from=str(tmp_path / "run"), out=str(tmp_path / "hf")))
    assert not (tmp_path / "hf").exists()


def test_favor_names_the_dropout_that_it_cannot_do(run):
    with pytest.raises(ValueError, match="--att_prob must be 0 with attention favor"):
        run("--model", "attention=favor", "--att_prob=0.2")


def test_any_checkpoint_is_exported_as_the_final_one_is(run, tmp_path, capsys):
    run("--max_steps=2")
    export_hf.main(export_hf.Options(init_from=str(tmp_path / "run" / "final"), out=str(tmp_path / "hf")))
    assert "the largest difference between logits is 0.0" in capsys.readouterr().out
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "hf" / name).read_bytes() == (tmp_path / "run" / "final" / name).read_bytes()


@pytest.mark.parametrize("option", [
    "--act_func=relu", "--model", "--shuffle=false", "--mask_p=0.4", "--mask_token_p=0.1", "--random_token_p=0.2",
    "--decay=0.9", "--beta1=0.5", "--beta2=0.5", "--grad_clip=0.01", "--warmup_steps=3", "--warmup_ratio=0.9",
    "--min_lr_ratio=0.9", "--lr_schedule=cosine", "--max_size=6", "--att_prob=0.5", "--hidden_prob=0.5", "--lr=1e-2",
])  # fmt: skip
def test_options_act(run, tmp_path, option, plain={}):  # noqa: B006 - kept between the cases
    if not plain:
        run("--max_steps=4", out="plain")
        plain["loss"] = [r["loss"] for r in rows(tmp_path / "plain")]
    run("--max_steps=4", *([option, "tie=false"] if option == "--model" else [option]))
    assert [r["loss"] for r in rows(tmp_path / "run")] != plain["loss"]


# -----------------------------------------------------------------------------
# epochs, masks


def test_epochs_see_each_sequence_once_in_new_orders_under_new_masks(run, monkeypatch):
    seen, hidden = [], []
    real_rows, real_mask = arrow.Rows.rows, masking.Masking.__call__

    def rows(self, which):
        if len(self) == 81:
            seen.append(np.array(which))
        return real_rows(self, which)

    def mask(self, ids, lengths, which, seed, epoch):
        out = real_mask(self, ids, lengths, which, seed, epoch)
        hidden.append((epoch, tuple(which), out[0].tolist()))
        return out

    monkeypatch.setattr(arrow.Rows, "rows", rows)
    monkeypatch.setattr(masking.Masking, "__call__", mask)
    run("--epochs=2", "--per_device=8")
    orders = np.concatenate(seen).reshape(2, 81)
    assert [len(s) for s in seen] == ([8] * 10 + [1]) * 2
    assert (np.sort(orders) == np.arange(81)).all() and (orders[0] != orders[1]).any()
    evals = [h for h in hidden if h[0] == "eval"]
    n = len(evals) // 3
    assert evals[:n] == evals[n : 2 * n] == evals[2 * n :]  # fixed
    texts = [{}, {}]
    for (epoch, which, ids), lengths in zip([h for h in hidden if h[0] != "eval"], seen, strict=True):
        assert tuple(lengths) == which
        texts[epoch][which] = ids
    first = {w[0]: ids for w, ids in texts[0].items() if len(w) == 1}
    assert first and hidden  # one sequence alone: its masks in both epochs
    run("--epochs=2", "--per_device=81", out="whole")
    a, b = [h[2] for h in hidden if len(h[1]) == 81]
    assert sorted(a) != sorted(b)


def test_a_batch_without_a_hidden_token_trains_nothing(run, tmp_path):
    out = run("--max_steps=3", "--mask_p=0", "--log_steps=1")
    assert "3 batches had no hidden token" in out
    state = checkpoint.load(tmp_path / "run" / "final" / "ckpt.pt")
    torch.manual_seed(0)
    assert state["best"] is None and not (tmp_path / "run" / "best.pt").exists()  # NaN is never the best
    assert not state["optimizer"]["state"]


def test_longer_sequences_are_cut_and_counted(run, data):
    out = run("--max_steps=1", "--max_size=7")
    n = int((arrow.Rows(data / "pretrain_train_trunc12").length > 7).sum())
    assert n and f"{n} cut to 7 tokens" in out


# -----------------------------------------------------------------------------
# a second start


def test_the_same_command_continues(run, tmp_path):
    run("--max_steps=4", "--eval_interval=2")
    out = run("--max_steps=8", "--eval_interval=2")
    assert "resuming" in out and "max_steps: 4 -> 8" in out
    assert [r["step"] for r in rows(tmp_path / "run")] == list(range(8))
    assert "finished at step 8" in run("--max_steps=8", "--eval_interval=2")


def test_a_resume_that_says_nothing_keeps_test_split_and_tokenizer(run, data, tmp_path):
    run("--max_steps=4", "--eval_interval=2", f"--test={data / 'pretrain_eval_trunc12'}")
    saved = read_yaml(tmp_path / "run" / "config.yaml")
    argv = ["--init_from=resume", f"--save_path={tmp_path / 'run'}", "--no_wandb", "--device=cpu"]
    pretrain.main(config.parse(pretrain.Options, argv, doc=""))
    assert read_yaml(tmp_path / "run" / "config.yaml") == saved
    assert "test_loss" in json.loads((tmp_path / "run" / "results.json").read_text())


def test_a_run_stopped_in_the_test_evaluation_goes_on_to_it(run, data, tmp_path, monkeypatch):
    argv = ("--max_steps=4", "--per_device=4", f"--test={data / 'pretrain_eval_trunc12'}")  # 9 sequences: 3 batches
    with monkeypatch.context() as m, pytest.raises(SystemExit, match="75"):
        loops.stopped_at(m, 4, 1 + 3 + 1)
        run(*argv)
    assert read_status(tmp_path / "run")["state"] == "stopped" and not (tmp_path / "run" / "results.json").exists()
    assert "is finished" not in run(*argv)
    assert "test_loss" in json.loads((tmp_path / "run" / "results.json").read_text())


def test_a_damaged_checkpoint_is_passed_over(run, tmp_path, capsys):
    run("--max_steps=4", "--eval_interval=2")
    path = tmp_path / "run" / "checkpoint-4" / "ckpt.pt"
    path.write_bytes(path.read_bytes()[:-100])
    assert "at step 2" in run("--max_steps=4", "--eval_interval=2")


@pytest.mark.parametrize(("change", "word"), [
    ("--hidden_size=32", "hidden_size"), ("--seed=1", "seed"), ("--per_device=4", "per_device"),
    ("--mask_p=0.3", "mask_p"), ("--max_size=9", "max_size"),
])  # fmt: skip
def test_a_changed_run_is_not_continued(run, change, word):
    run("--max_steps=2", "--per_device=8", "--max_size=12")
    with pytest.raises(ValueError, match=word):
        run("--max_steps=4", "--per_device=8", "--max_size=12", change)


def test_changed_data_is_not_continued(run, data, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(data / "pretrain_train_trunc12", copy)
    run("--max_steps=2", f"--train={copy}")
    shutil.rmtree(copy)
    shutil.copytree(data / "pretrain_eval_trunc12", copy)
    with pytest.raises(ValueError, match="changed"):
        run("--max_steps=4", f"--train={copy}")


def test_resume_needs_a_run(run):
    with pytest.raises(ValueError, match="nothing to resume"):
        run("--init_from=resume")


def test_reset_takes_the_weights_and_new_arguments(run, tmp_path):
    run("--max_steps=30", "--lr=1e-2", "--per_device=27")
    before = checkpoint.load(tmp_path / "run" / "final" / "ckpt.pt")["model"]
    run("--reset", "--max_steps=1", "--lr=0", "--decay=0", "--per_device=4")
    after = checkpoint.load(tmp_path / "run" / "final" / "ckpt.pt")
    assert after["step"] == 1 and all(torch.equal(before[k], w) for k, w in after["model"].items())
    assert steps_of(tmp_path / "run.1") == [3, 6, 9, 12, 15, 18, 21, 24, 27, 30][-2:]  # moved aside
    with pytest.raises(ValueError, match="hidden_size"):
        run("--reset", "--hidden_size=32")


# -----------------------------------------------------------------------------
# other people's weights, and ours with them


@pytest.fixture
def published(tmp_path, data):
    """A RoBERTa as transformers saves it, with the digits' tokenizer, of more positions than the data needs."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(3)
    cfg = transformers.RobertaConfig(vocab_size=16, hidden_size=24, num_hidden_layers=2, num_attention_heads=4,
                                     intermediate_size=40, max_position_embeddings=32, type_vocab_size=1,
                                     layer_norm_eps=1e-5, pad_token_id=1)  # fmt: skip
    model = transformers.RobertaForMaskedLM(cfg).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    model.save_pretrained(tmp_path / "hf")
    (tmp_path / "hf" / "tokenizer.json").write_text((data / "tokenizer.json").read_text())
    return tmp_path / "hf", model


def test_published_weights_go_on_from_their_own_loss(run, published, data, tmp_path):
    folder, theirs = published
    run(f"--init_from={folder}", "--max_steps=1", shape=False)
    rows_ = arrow.Rows(data / "pretrain_eval_trunc12")
    ids, lengths = rows_.rows(np.arange(len(rows_)))
    shown, where, targets = masking.Masking(4, np.arange(6), 16)(ids, lengths, np.arange(len(rows_)), 42, "eval")
    labels = np.full(len(ids), -100)
    labels[where] = targets
    total = 0.0
    for a, n in zip(np.cumsum(lengths) - lengths, lengths, strict=True):
        part = torch.tensor(labels[a : a + n])[None]
        if (part != -100).any():
            out = theirs(input_ids=torch.tensor(shown[a : a + n])[None], labels=part)
            total += out.loss.item() * int((part != -100).sum())
    assert rows(tmp_path / "run", "eval")[0]["eval_loss"] == pytest.approx(total / len(where), abs=1e-4)
    cfg = checkpoint.load(tmp_path / "run" / "final" / "ckpt.pt")["model_config"]
    assert (cfg["block_size"], cfg["n_embd"], cfg["norm_eps"]) == (30, 24, 1e-5)
    with pytest.raises(ValueError, match="hidden_size"):
        run(f"--init_from={folder}", "--hidden_size=32", out="other", shape=False)


def test_the_export_equals_ours_in_transformers(run, tmp_path):
    transformers = pytest.importorskip("transformers")
    run("--max_steps=20", "--lr=1e-2", "--act_func=gelu_new")
    final = tmp_path / "run" / "final"
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(final).eval()
    state = checkpoint.load(final / "ckpt.pt")
    ours = RobertaMLM(RobertaConfig(**state["model_config"])).eval()
    ours.load_state_dict(state["model"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(final)
    assert sorted(tokenizer.all_special_ids) == [0, 1, 2, 3, 4] and tokenizer.convert_tokens_to_ids("x") == 3  # <unk>
    texts = ["3141592653", "27", "<mask>718"]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    logits = theirs(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    coded = encoding.Encoder(state["meta"]["tokenizer"], None)(texts)
    got = ours(torch.from_numpy(coded.ids.astype(np.int64)), coded.lengths, np.arange(len(coded.ids)))
    torch.testing.assert_close(got, logits[batch["attention_mask"].bool()], atol=1e-4, rtol=1e-4)


def test_our_checkpoints_start_other_runs(run, tmp_path):
    run("--max_steps=3", "--lr=1e-2")
    run(f"--init_from={tmp_path / 'run'}", "--max_steps=1", "--lr=0", "--decay=0", out="all", shape=False)
    old, new = (checkpoint.load(tmp_path / p)["model"] for p in ("run/best.pt", "all/final/ckpt.pt"))
    assert all(torch.equal(old[k], new[k]) for k in old)
    said = run(f"--init_from={tmp_path / 'run'}", "--transfer", "attn", "mlp", "--max_steps=1", "--lr=0", "--decay=0",
               "--pos_embed=rope", out="part")  # fmt: skip
    assert "note: position is 'absolute' in" in said
    part = checkpoint.load(tmp_path / "part" / "final" / "ckpt.pt")["model"]
    assert torch.equal(part["transformer.h.0.attn.c_attn.weight"], old["transformer.h.0.attn.c_attn.weight"])
    assert not torch.equal(part["transformer.wte.weight"], old["transformer.wte.weight"])
    with pytest.raises(ValueError, match="heads, the model here 1: make them equal, or leave attn out"):
        run(f"--init_from={tmp_path / 'run'}", "--transfer", "attn", "--attention_heads=1", out="cut")


def test_another_tokenizer_is_refused_with_both_hashes(run, data, tmp_path):
    about = json.loads((data / "tokenizer.json").read_text())
    words = about["model"]["vocab"]
    words["0"], words["1"] = words["1"], words["0"]
    (tmp_path / "other.json").write_text(json.dumps(about))
    both = (data / "tokenizer.json", tmp_path / "other.json")
    hashes = {vocab.load(encoding.describe(p)).hash for p in both}
    run("--max_steps=1")
    for argv in (["--max_steps=2"], [f"--init_from={tmp_path / 'run'}"], ["--init_from=scratch"]):
        where = {"out": "new"} if "run" in argv[0] else {}
        with pytest.raises(ValueError) as e:
            run(*argv, f"--tokenizer={tmp_path / 'other.json'}", shape=not where, **where)
        assert all(h in str(e.value) for h in hashes), e.value


# -----------------------------------------------------------------------------
# what is refused


@pytest.mark.parametrize(("argv", "words"), [
    (["--train="], ["--train", "missing"]), (["--tokenizer="], ["--tokenizer", "missing"]),
    (["--vocab_size=12"], ["--vocab_size 12", "16"]), (["--attention_heads=3"], ["n_head", "3"]),
    (["--mask_token_p=0.9", "--random_token_p=0.2"], ["mask_token_p"]), (["--train=/nowhere"], ["/nowhere"]),
    (["--init_from=/nowhere"], ["/nowhere"]), (["--model", "tied=1"], ["tied", "'tie'"]),
    (["--device=x"], ["--device"]),
])  # fmt: skip
def test_bad_options_are_one_line_and_leave_nothing(run, tmp_path, argv, words):
    with pytest.raises(ValueError) as e:
        run(*argv)
    assert all(w in str(e.value) for w in words), e.value


def test_ids_outside_the_vocabulary_are_found_before_the_first_step(run, data, tmp_path):
    import pyarrow as pa

    table = pa.table({"input_ids": [[0, 7, 2], [0, 16, 2]]})
    with pa.ipc.new_stream(str(tmp_path / "a.arrow"), table.schema) as out:
        out.write_table(table)
    for size in (16, 32):  # the tokenizer knows none beyond 15
        with pytest.raises(ValueError, match="row 1, place 1: id 16"):
            run(f"--eval={tmp_path / 'a.arrow'}", f"--vocab_size={size}", out=str(size))


@pytest.mark.parametrize("flag, told", [
    ("--max_size=2", "no sequence has a token between <s> and </s> .--max_size must be at least 3"),
    ("--train=a.csv", "a.csv is text: data/build_pretrain_data.py makes Arrow files"),
])  # fmt: skip
def test_data_without_a_token_to_guess_and_text_are_refused(run, flag, told):
    with pytest.raises(ValueError, match=told):
        run(flag)


# -----------------------------------------------------------------------------
# vectors and masks filled in


def test_vectors_do_not_depend_on_their_batch(run, tmp_path, monkeypatch):
    run("--max_steps=5", "--lr=1e-2", "--hidden_prob=0.5")  # which vectors have not
    texts = ["123", "7", *[str(n) * (n % 9 + 1) for n in range(100)]]
    (tmp_path / "t.txt").write_text("\n".join(texts))
    for pooling in ("mean", "cls"):
        out = tmp_path / f"{pooling}.npy"
        run(f"--init_from={tmp_path / 'run'}", f"--embed={tmp_path / 't.txt'}", f"--out={out}", f"--pooling={pooling}")
        vectors = np.load(out)
        assert vectors.shape == (len(texts), 16) and vectors.dtype == np.float32
        state = checkpoint.load(tmp_path / "run" / "best.pt")
        model = RobertaMLM(RobertaConfig(**state["model_config"])).eval()
        model.load_state_dict(state["model"])
        coder = encoding.Encoder(state["meta"]["tokenizer"], 12)
        for i in (0, 1, 50, 101):
            coded = coder([texts[i]])
            x = model.encode(torch.from_numpy(coded.ids.astype(np.int64)), coded.lengths)
            want = x[0] if pooling == "cls" else x.mean(0)
            assert np.abs(vectors[i] - want.detach().numpy()).max() < 1e-5
    for where, name in ((os, "posix_fallocate"), (np.lib.format, "open_memmap")):  # not SIGBUS, on the way
        with monkeypatch.context() as m, pytest.raises(OSError, match="No space left on device: '.*full.npy'"):
            m.setattr(where, name, Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
            run(f"--init_from={tmp_path / 'run'}", f"--embed={tmp_path / 't.txt'}", f"--out={tmp_path / 'full.npy'}")
    assert not list(tmp_path.glob("*full*"))
    with pytest.raises(ValueError, match="t.txt exists and is no .npy file"):
        run(f"--init_from={tmp_path / 'run'}", f"--embed={tmp_path / 't.txt'}", f"--out={tmp_path / 't.txt'}")


def test_vectors_take_the_place_of_large_ones_in_little_memory(run, tmp_path):
    """Six bytes tell whether it is such a file; all of it was read for them."""
    run("--max_steps=1")
    (tmp_path / "t.txt").write_text("123\n7\n")
    (tmp_path / "v.npy").write_bytes(np.lib.format.MAGIC_PREFIX)
    os.truncate(tmp_path / "v.npy", 1 << 28)
    tracemalloc.start()
    run(f"--init_from={tmp_path / 'run'}", f"--embed={tmp_path / 't.txt'}", f"--out={tmp_path / 'v.npy'}")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert np.load(tmp_path / "v.npy").shape == (2, 16) and peak < 1 << 27


def test_a_runs_config_says_what_the_model_is_and_runs_again(run, tmp_path):
    """Its shape came from the weights that it began with, or from the tokenizer."""
    run("--max_steps=1", out="old")
    run("--max_steps=2", f"--init_from={tmp_path / 'old'}", shape=False)
    argv = [f"--config={tmp_path / 'run' / 'config.yaml'}", f"--save_path={tmp_path / 'again'}"]
    pretrain.main(config.parse(pretrain.Options, argv, doc=""))
    (a, _), (b, _) = (checkpoint.newest(tmp_path / name, "ckpt.pt") for name in ("run", "again"))
    assert a["options"]["hidden_size"] == a["model_config"]["n_embd"]
    assert a["model_config"] == b["model_config"] and all(torch.equal(v, b["model"][k]) for k, v in a["model"].items())


def test_a_diverged_encoder_gives_no_vectors(run, tmp_path):
    """Its weights are finite, what it makes of a text is not."""
    run("--max_steps=1")
    state = checkpoint.load(checkpoint.find(tmp_path / "run"))
    state["model"] = {k: w * 1e30 for k, w in state["model"].items()}
    checkpoint.save(tmp_path / "bad.pt", state)
    (tmp_path / "t.txt").write_text("12 3\n")
    argv = [f"--init_from={tmp_path / 'bad.pt'}", f"--embed={tmp_path / 't.txt'}", f"--out={tmp_path / 'v.npy'}"]
    with pytest.raises(NotFinite, match="bad.pt are not finite"):
        pretrain.main(config.parse(pretrain.Options, argv, doc=""))
    assert not list(tmp_path.glob("*.npy"))


def test_a_runs_config_embeds_with_the_runs_own_weights(run, tmp_path):
    """It names what the run began from, too."""
    run("--max_steps=1", out="old")
    run("--max_steps=2", "--lr=0.01", f"--init_from={tmp_path / 'old'}", shape=False)
    (tmp_path / "t.txt").write_text("12 3\n")
    saved = f"--config={tmp_path / 'run' / 'config.yaml'}"
    vectors = {}
    for name, flags in {"file": [saved], "old": [saved, f"--init_from={tmp_path / 'old'}"],
                        "new": [f"--init_from={tmp_path / 'run'}"]}.items():  # fmt: skip
        argv = [*flags, "--dtype=float32", f"--embed={tmp_path / 't.txt'}", f"--out={tmp_path / f'{name}.npy'}"]
        pretrain.main(config.parse(pretrain.Options, argv, doc=""))
        vectors[name] = np.load(tmp_path / f"{name}.npy")
    assert (vectors["file"] == vectors["new"]).all() and (vectors["file"] != vectors["old"]).any()


def test_another_ones_half_written_vectors_stay(run, tmp_path):
    """Two calls into one file of vectors: both wrote in the same place, and one died of a bus error."""
    run("--max_steps=1")
    (tmp_path / "t.txt").write_text("12 3\n")
    for process in (1, 2**30):  # the first is alive, the second is none
        (tmp_path / f".v.npy.tmp-{process}").write_bytes(b"half")
    argv = [f"--init_from={tmp_path / 'run'}", f"--embed={tmp_path / 't.txt'}", f"--out={tmp_path / 'v.npy'}"]
    pretrain.main(config.parse(pretrain.Options, argv, doc=""))
    assert [p.name for p in tmp_path.glob(".v.npy*")] == [".v.npy.tmp-1"] and len(np.load(tmp_path / "v.npy")) == 1


def test_each_row_of_a_table_has_its_vector(run, tmp_path, monkeypatch):
    """Blank ones, too; and a folder for the vectors is made. Vectors that are not all there leave nothing behind."""
    run("--max_steps=2")
    (tmp_path / "t.csv").write_text("id,text\n0,12\n1,\n2,34\n3,  \n4,5\n")
    (tmp_path / "t.txt").write_text("12<pad>\n\n34\n")
    source = f"--init_from={tmp_path / 'run'}"
    run(source, f"--embed={tmp_path / 't.csv'}", f"--out={tmp_path / 'new' / 't.npy'}")
    said = run(source, f"--embed={tmp_path / 't.txt'}", f"--out={tmp_path / 'lines.npy'}")
    assert "padding, or its name, 1 times" in said
    rows, lines = np.load(tmp_path / "new" / "t.npy"), np.load(tmp_path / "lines.npy")
    assert len(rows) == 5 and np.abs(rows[1] - rows[3]).max() < 1e-5
    assert np.abs(rows[[0, 2]] - lines).max() < 1e-5
    (tmp_path / "half.jsonl").write_text('{"text": "12 \\ud83d"}\n{"text": "12 \ufffd"}\n')
    run(source, f"--embed={tmp_path / 'half.jsonl'}", f"--out={tmp_path / 'half.npy'}")
    assert np.abs(np.diff(np.load(tmp_path / "half.npy"), axis=0)).max() < 1e-5
    state = checkpoint.load(checkpoint.find(tmp_path / "run"))
    bare = json.loads(state["meta"]["tokenizer"]["json"]) | {"post_processor": None}  # adds no <s>
    state["meta"]["tokenizer"]["json"] = json.dumps(bare)
    checkpoint.save(tmp_path / "bare.pt", state)
    with pytest.raises(ValueError, match="t.csv: row 2 has no token"):
        argv = [f"--init_from={tmp_path / 'bare.pt'}", f"--embed={tmp_path / 't.csv'}", f"--out={tmp_path / 'no.npy'}"]
        pretrain.main(config.parse(pretrain.Options, argv, doc=""))
    monkeypatch.setattr(encoding.Encoder, "cut", lambda *_: {}["no"])
    with pytest.raises(KeyError):
        run(source, f"--embed={tmp_path / 't.csv'}", f"--out={tmp_path / 'new' / 't.npy'}")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["t.npy"]


def test_vectors_of_half_an_encoder_are_refused(run, tmp_path):
    run("--max_steps=1")
    path = tmp_path / "run" / "best.pt"
    state = checkpoint.load(path)
    state["model"] = {k: v for k, v in state["model"].items() if ".h.0.mlp." not in k}
    checkpoint.save(tmp_path / "half.pt", state)
    (tmp_path / "t.txt").write_text("12")
    with pytest.raises(ValueError, match=r"half.pt lacks transformer.h.0.mlp"):
        run(f"--init_from={tmp_path / 'half.pt'}", f"--embed={tmp_path / 't.txt'}", f"--out={tmp_path / 'x.npy'}")


def test_an_encoder_is_not_asked_for_what_a_language_model_does(run, tmp_path, capsys):
    run("--max_steps=1")
    for flag, says in (("--perplexity=x.txt", "are for language models"), (f"--start=<mask>{'1' * 20}", "has 23 tokens")):
        with pytest.raises(ValueError, match=says):
            argv = [f"--init_from={tmp_path / 'run'}", "--start=<mask>", flag]
            sample.main(config.parse(sample.Options, argv, doc=""))
    argv = [f"--init_from={tmp_path / 'run'}", "--start=<mask>1", "--temperature=0.1", "--num_samples=2"]
    sample.main(config.parse(sample.Options, argv, doc=""))
    assert "note: an encoder guesses without --num_samples, --temperature" in capsys.readouterr().out


def test_a_shape_said_twice_is_a_contradiction(run):
    with pytest.raises(ValueError, match="--hidden_depth is 1, --model n_layer 3: leave one out"):
        run("--hidden_depth=1", "--model=n_layer=3")


def test_masks_are_filled_in(run, tmp_path, capsys):
    run("--max_steps=150", "--lr=1e-2", "--per_device=32")
    loops.with_dropout(tmp_path / "run" / "best.pt")
    sample.main(config.parse(sample.Options, [f"--init_from={tmp_path / 'run'}", "--start=77<mask>777<mask>"], doc=""))
    out = capsys.readouterr().out
    assert "mask 1: '7' " in out and "mask 2: '7' " in out and out.splitlines()[-1] == "7777777"
    with pytest.raises(ValueError, match="<mask>"):
        sample.main(config.parse(sample.Options, [f"--init_from={tmp_path / 'run'}", "--start=77"], doc=""))
    state = checkpoint.load(tmp_path / "run" / "best.pt")
    state["model"] = {k: w * 1e30 for k, w in state["model"].items()}  # finite, and its logits are not
    checkpoint.save(tmp_path / "bad.pt", state)
    with pytest.raises(NotFinite, match="nothing to guess from"):
        sample.main(config.parse(sample.Options, [f"--init_from={tmp_path / 'bad.pt'}", "--start=7<mask>"], doc=""))


# -----------------------------------------------------------------------------
# a language with a known bound


def bayes_loss(chain: np.ndarray, rows, coords, mask) -> float:
    """The least possible loss on these masks: the exact posterior of a Markov chain seen through the masking noise."""
    V, total, count = len(chain), 0.0, 0
    values, vectors = np.linalg.eig(chain.T)
    start = np.real(vectors[:, np.argmax(np.real(values))])
    start = start / start.sum()
    clean = 0.85 * np.eye(V) + 0.15 * (0.1 * np.eye(V) + 0.1 / V)  # what a shown token says of the true one
    for i in range(len(rows)):
        ids, lengths = rows.rows([i])
        shown, where, targets = mask(ids, lengths, np.array([i]), *coords)
        seen = shown[1:-1] - 6
        says = np.stack([np.ones(V) if s < 0 else clean[:, s] for s in seen])
        n = len(seen)
        left, right = np.zeros((n, V)), np.ones((n, V))
        left[0] = start
        for t in range(1, n):
            a = (left[t - 1] * says[t - 1]) @ chain
            left[t] = a / a.sum()
        for t in range(n - 2, -1, -1):
            a = chain @ (right[t + 1] * says[t + 1])
            right[t] = a / a.sum()
        for w, target in zip(where, targets, strict=True):
            t, s = w - 1, seen[w - 1]
            own = np.ones(V) if s < 0 else 0.5 * np.eye(V)[s] + 0.5 / V  # chosen, but shown: kept or random
            p = left[t] * own * right[t]
            total -= np.log(p[target - 6] / p.sum())
            count += 1
    return total / count


@pytest.mark.full
def test_a_markov_chain_is_learnt_to_its_bound(tmp_path, capsys):

    g = np.random.default_rng(0)
    chain = g.dirichlet(np.full(10, 0.25), 10)
    lines = []
    for _ in range(3000):
        x = [int(g.integers(10))]
        for _ in range(int(g.integers(15, 60))):
            x.append(int(g.choice(10, p=chain[x[-1]])))
        lines.append("".join(map(str, x[1:])))
    (tmp_path / "t.txt").write_text("\n".join(lines))
    train_tokenizer.build("by-digit", 16, ()).save(str(tmp_path / "tokenizer.json"))
    build_pretrain_data.main(config.parse(build_pretrain_data.Options, [
        f"--train_dir={tmp_path / 't.txt'}", f"--tokenizer={tmp_path / 'tokenizer.json'}", f"--out_dir={tmp_path}",
        "--max_size=64", "--split_prop=0.1"]))  # fmt: skip
    pretrain.main(config.parse(pretrain.Options, [
        f"--train={tmp_path / 'pretrain_train_trunc64'}", f"--eval={tmp_path / 'pretrain_eval_trunc64'}",
        f"--tokenizer={tmp_path / 'tokenizer.json'}", f"--save_path={tmp_path / 'run'}", "--hidden_size=64",
        "--hidden_depth=2", "--attention_heads=4", "--intermed_size=128", "--hidden_prob=0", "--att_prob=0",
        "--pos_embed=rope", "--lr=3e-3", "--warmup_ratio=0.1", "--per_device=32", "--epochs=14", "--no_wandb",
        "--device=cpu"], doc=""))  # fmt: skip
    held = arrow.Rows(tmp_path / "pretrain_eval_trunc64")
    bound = bayes_loss(chain, held, (42, "eval"), masking.Masking(4, np.arange(6), 16))
    loss = checkpoint.load(tmp_path / "run" / "best.pt")["best"]
    print(f"loss {loss:.4f}, bound {bound:.4f}")
    assert bound < 1.7 and 0.98 * bound < loss < 1.05 * bound
    assert (tmp_path / "run" / "loss.png").stat().st_size > 10_000
