"""train.py: each option acts, alone, and as its help says. (Modes, mixtures and starting points: test_modes.)"""

import inspect
import json
import math
import re
import shlex
import sys

import numpy as np
import pytest
import torch

import train
from core import checkpoint, tracker
from core.exits import NotFinite
from data import bins
from tests.loops import mixed_data
from tests.test_modes import equal, refused, rows, run, weights

BASE = {"n_layer": 2, "max_iters": 3, "eval_interval": 3, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    mixed_data(folder)
    return folder


@pytest.fixture(scope="module")
def plain(data, tmp_path_factory):
    """The weights of the run that every other one is compared with."""
    out = tmp_path_factory.mktemp("plain") / "out"
    run(dataset=data / "toy", out_dir=out, **BASE)
    return weights(out / "ckpt.pt")


def test_the_same_command_gives_the_same_weights(data, plain, tmp_path):
    run(dataset=data / "toy", out_dir=tmp_path, **BASE)
    assert equal(weights(tmp_path / "ckpt.pt"), plain)


ACTS = {
    "seed": 2, "sampling_method": "sequential", "batch_size": 3, "gradient_accumulation_steps": 2, "block_size": 4,
    "n_layer": 1, "n_head": 4, "n_kv_group": 1, "n_embd": 8, "dropout": 0.2, "bias": True, "mlp_expansion_factor": 2,
    "mlp_size": 20, "wte_weight_tying": False, "window_size": 2, "use_qk_norm": True, "use_rotary_embeddings": True,
    "use_abs_pos_embeddings": False, "position": "sinusoidal", "norm_variant_attn": "rmsnorm",
    "norm_variant_output": "none", "norm_eps": 0.1, "activation_variant": "tanh", "mlp_variant": "geglu",
    "softmax_variant_attn": "relumax", "use_parallel_mlp": True, "use_pre_ln": False, "use_peri_ln": True,
    "use_post_ln": True, "attn_logit_softcapping": 0.1, "final_logit_softcapping": 0.1, "optimizer": "adam",
    "learning_rate": 2e-2, "weight_decay": 0.5, "beta1": 0.5, "beta2": 0.5, "grad_clip": 0.01, "warmup_iters": 5,
    "lr_scheduler": "linear", "decay_lr": True, "dtype": "bfloat16", "max_iters": 2,
}  # fmt: skip


@pytest.mark.parametrize("name", ACTS)
def test_an_option_changes_what_is_learnt(name, data, plain, tmp_path):
    run(dataset=data / "toy", out_dir=tmp_path, **(BASE | {name: ACTS[name]}))
    assert not equal(weights(tmp_path / "ckpt.pt"), plain)


def test_the_length_may_grow_in_a_run(data, tmp_path, monkeypatch):
    """T is all that an edit sets: the windows kept their length, and the loss was divided by another."""
    line, edited = "k = int(mix.pick(step))", dict(vars(train))
    source = inspect.getsource(train.main)
    assert line in source
    exec(source.replace(line, f"T = min(2 + step, args.block_size); {line}"), edited)
    monkeypatch.setattr(train, "main", edited["main"])
    run(dataset=data / "toy", out_dir=tmp_path, **BASE)
    train_rows, eval_rows = rows(tmp_path)
    for loss in (train_rows[0]["loss"], eval_rows[0]["val_loss"]):
        assert loss == pytest.approx(math.log(11), rel=0.05)


def test_rope_base_changes_rotary_positions_alone(data, plain, tmp_path):
    ends = []
    for position, base in (("rotary", 1e4), ("rotary", 50), ("learned", 50)):
        out = tmp_path / f"{position}{base}"
        run(dataset=data / "toy", out_dir=out, position=position, rope_base=base, **BASE)
        ends.append(weights(out / "ckpt.pt"))
    assert not equal(ends[0], ends[1]) and equal(ends[2], plain)


@pytest.mark.parametrize("options", [{"use_gradient_checkpointing": True}, {"deterministic": True}, {"log_interval": 2},
                                     {"eval_iters": 1}, {"csv_log": False}, {"sample_each_eval": True}])  # fmt: skip
def test_an_option_that_must_not_change_what_is_learnt(options, data, plain, tmp_path):
    run(dataset=data / "toy", out_dir=tmp_path, sample_start_tokens="a", **(BASE | options))
    assert equal(weights(tmp_path / "ckpt.pt"), plain)
    torch.use_deterministic_algorithms(False)


def test_grad_clip_bounds_the_norm_and_0_clips_nothing(data, tmp_path):
    """With SGD the step is the gradient: at most lr * grad_clip long."""
    lengths = {}
    for clip in (0.1, 0, 1e9):
        run(dataset=data / "toy", out_dir=tmp_path / str(clip), optimizer="sgd", sgd_momentum=0, weight_decay=0,
            grad_clip=clip, learning_rate=1.0, max_iters=1)  # fmt: skip
        run(dataset=data / "toy", out_dir=tmp_path / "start", max_iters=0)
        a, b = weights(tmp_path / "start" / "ckpt.pt"), weights(tmp_path / str(clip) / "ckpt.pt")
        names = [n for n in a if n != "lm_head.weight"]  # tied
        lengths[clip] = torch.sqrt(sum((a[n] - b[n]).square().sum() for n in names)).item()
    assert lengths[0.1] == pytest.approx(0.1, rel=1e-3)
    assert lengths[0] == lengths[1e9] > 0.2


def test_decay_acts_on_matrices_alone(data, tmp_path):
    """At a learning rate that only decay can use: gradients are clipped to nothing."""
    options = {"optimizer": "sgd", "sgd_momentum": 0, "grad_clip": 1e-12, "learning_rate": 0.1, "weight_decay": 0.5}
    run(dataset=data / "toy", out_dir=tmp_path / "a", max_iters=0, bias=True)
    run(dataset=data / "toy", out_dir=tmp_path / "b", max_iters=1, bias=True, **options)
    a, b = weights(tmp_path / "a" / "ckpt.pt"), weights(tmp_path / "b" / "ckpt.pt")
    for name in a:
        torch.testing.assert_close(b[name], a[name] * (0.95 if a[name].dim() > 1 else 1), rtol=1e-4, atol=1e-7)


# -----------------------------------------------------------------------------
# evaluating, saving, stopping


def test_eval_only_prints_and_writes_nothing(data, tmp_path, capsys):
    run(dataset=data / "toy", out_dir=tmp_path / "a", **BASE)
    last = rows(tmp_path / "a")[1][-1]["val_loss"]
    capsys.readouterr()
    before = sorted((p.name, p.stat().st_mtime_ns) for p in (tmp_path / "a").iterdir())
    run("--init_from=resume", "--eval_only", out_dir=tmp_path / "a", small=False)
    said = capsys.readouterr().out
    assert f"val loss {last:.4f}" in said and "step " not in said.replace("at step", "")
    after = sorted((p.name, p.stat().st_mtime_ns) for p in (tmp_path / "a").iterdir())
    assert [a for a in after if a[0] != ".lock"] == [b for b in before if b[0] != ".lock"]


def test_an_evaluation_alone_samples_where_each_is_to_and_says_what_it_does_not(data, tmp_path, capsys):
    for more, sampled, idle in ((["--sample_each_eval", "--max_sample_tokens=3"], 1, []), (["--tensorboard_log"], 0, ["tensorboard_log"]),
                                (["--max_sample_tokens=3"], 0, ["max_sample_tokens"]), ([], 0, [])):  # fmt: skip
        run("--eval_only", "--sample_start_tokens=a", *more, dataset=data / "toy", out_dir=tmp_path / "none", eval_iters=1)
        said = capsys.readouterr().out
        assert said.count("---") == sampled and "val loss" in said
        lines = [line for line in said.splitlines() if "prints, and has no new best" in line]
        assert [line.split()[1] for line in lines] == [f"--{name}" for name in idle]


def test_what_is_saved_and_when(data, tmp_path):
    """Only a new best by default; each evaluation; at the end; never; and numbered ones."""

    def saved(**options) -> list[str]:
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        run(dataset=data / "toy", out_dir=out, eval_interval=2, max_iters=6, **options)
        return sorted(p.name for p in out.glob("*.pt"))

    assert saved() == ["best.pt", "ckpt.prev.pt", "ckpt.pt"]
    assert saved(only_save_checkpoint_at_end=True) == ["best.pt", "ckpt.pt"]
    assert saved(never_save_checkpoint=True) == []
    assert saved(save_major_ckpt_interval=4) == ["best.pt", "ckpt.prev.pt", "ckpt.pt", "ckpt_4.pt"]
    numbered = [f"ckpt_{n}.pt" for n in (2, 4, 6)]  # also where an evaluation saves, and at the last step
    assert saved(save_major_ckpt_interval=2) == ["best.pt", "ckpt.prev.pt", "ckpt.pt", *numbered]


def test_always_save_and_patience(data, tmp_path):
    """At a learning rate of 0 nothing is ever better than the first evaluation."""
    still = {"learning_rate": 0, "min_lr": 0, "eval_interval": 2, "max_iters": 40, "dataset": data / "toy"}
    run(out_dir=tmp_path / "a", patience=3, **still)
    assert [r["step"] for r in rows(tmp_path / "a")[1]] == [0, 2, 4, 6]
    assert checkpoint.load(tmp_path / "a" / "ckpt.pt")["step"] == 6
    assert checkpoint.load(tmp_path / "a" / "best.pt")["step"] == 0
    run(out_dir=tmp_path / "b", always_save_checkpoint=True, patience=2, **still)
    assert checkpoint.load(tmp_path / "b" / "ckpt.prev.pt")["step"] == 2
    assert checkpoint.load(tmp_path / "b" / "best.pt")["step"] == 0


def test_eval_iters_is_how_much_is_evaluated(data, tmp_path):
    losses = set()
    for n in (1, 2, 3):
        run(dataset=data / "toy", out_dir=tmp_path / str(n), max_iters=0, eval_iters=n)
        losses.add(rows(tmp_path / str(n))[1][0]["val_loss"])
    assert len(losses) == 3


def test_steps_that_are_not_finite_end_the_run(data, tmp_path, monkeypatch, capsys):
    """Exit 3 after so many in a row; the weights are those before."""
    import model as models
    from core.run import guard

    real = models.head_loss
    monkeypatch.setattr(models, "head_loss", lambda *a, **k: real(*a, **k) * float("nan"))
    with pytest.raises(SystemExit) as stop, guard():
        run(dataset=data / "toy", out_dir=tmp_path, max_bad_steps=4, max_iters=30, eval_interval=30)
    assert stop.value.code == 3
    assert len(re.findall("update skipped", capsys.readouterr().err)) == 4


# -----------------------------------------------------------------------------
# sampling


def test_sampling_while_training(data, tmp_path, capsys):
    def samples(**options) -> list[str]:
        capsys.readouterr()
        run(dataset=data / "toy", out_dir=tmp_path / "a", sample_start_tokens="ab", **(BASE | options))
        return re.findall(r"^(ab[a-k]*) ?\n---", capsys.readouterr().out, re.M)

    assert samples() == []
    assert {len(s) for s in samples(max_sample_tokens=7)} == {9}, "at each new best"
    still = {"learning_rate": 0, "min_lr": 0, "eval_interval": 1, "max_sample_tokens": 5}
    assert len(samples(**still)) == 1
    each = samples(sample_each_eval=True, **still)
    assert len(each) == 4 and len(set(each)) == 1
    greedy, narrow, wide = (samples(sample_each_eval=True, **still, **o)[0] for o in
                            ({"temperature": 0}, {"top_k": 1}, {"temperature": 50}))  # fmt: skip
    assert greedy == narrow != wide
    capsys.readouterr()
    run("--init_from=resume", out_dir=tmp_path / "a", small=False)  # of a finished run: sampled already
    assert "---" not in capsys.readouterr().out


def test_sample_only(data, tmp_path, capsys):
    run(dataset=data / "toy", out_dir=tmp_path, **BASE)
    capsys.readouterr()
    run("--init_from=resume", "--sample_only", r"--sample_start_tokens=\x61\x62", "--max_sample_tokens=4",
        out_dir=tmp_path, small=False)  # fmt: skip
    assert re.search(r"^ab[a-k]{4} ?\n---$", capsys.readouterr().out.strip(), re.M)


@pytest.mark.parametrize("how", [0, 0.8])
def test_a_run_that_diverged_draws_no_sample_and_goes_on(how, data, tmp_path, capsys):
    run("--sample_each_eval", "--optimizer=sgd", "--sample_start_tokens=a", dataset=data / "toy", out_dir=tmp_path,
        **BASE | {"learning_rate": 1e30, "grad_clip": 0, "max_sample_tokens": 4, "max_iters": 4, "eval_interval": 2})  # fmt: skip
    assert capsys.readouterr().out.count("---") == 1  # at step 0
    with pytest.raises(NotFinite, match="logits are not finite"):
        run("--init_from=resume", "--sample_only", f"--temperature={how}", out_dir=tmp_path, small=False)


def test_what_is_probably_not_meant_is_said(data, tmp_path, capsys):
    shape = dict(BASE, max_iters=4, eval_interval=1, learning_rate=0, min_lr=0, patience=2)
    run(dataset=data / "toy", out_dir=tmp_path, lr_decay_iters=3, never_save_checkpoint=True,
        only_save_checkpoint_at_end=True, **shape)  # fmt: skip
    said = capsys.readouterr().out
    for line in ("note: --lr_decay_iters 3 is not used", "note: --never_save_checkpoint: the other options to save",
                 "stopped at step 2: no better val loss in 2 evaluations"):  # fmt: skip
        assert line in said


def test_a_run_folder_s_other_checkpoint_is_started_from(data, tmp_path, capsys):
    from core import checkpoint

    run(dataset=data / "toy", out_dir=tmp_path / "a", save_major_ckpt_interval=2, **dict(BASE, max_iters=4))
    state = checkpoint.load(tmp_path / "a" / "ckpt.pt")
    state["model"] = {k: 0 * v for k, v in state["model"].items()}
    checkpoint.save(tmp_path / "a" / "ckpt.pt", state)  # other weights than best.pt's
    for name in ("ckpt_2.pt", "ckpt.pt"):
        run(f"--init_from={tmp_path / 'a'}", f"--init_from_ckpt={name}", dataset=data / "toy", out_dir=tmp_path / name,
            **dict(BASE, max_iters=0, always_save_checkpoint=True))  # fmt: skip
        old = checkpoint.load(tmp_path / "a" / name)["model"]
        new = checkpoint.load(tmp_path / name / "ckpt.pt")["model"]
        assert all(torch.equal(old[k], new[k]) for k in old)
    run(f"--init_from={tmp_path / 'a'}", dataset=data / "toy", out_dir=tmp_path / "c", **BASE)  # best.pt
    run(tmp_path / "c" / "config.yaml", out_dir=tmp_path / "d", small=False)  # which names ckpt.pt to nobody
    first, again = (checkpoint.load(tmp_path / name / "ckpt.pt")["model"] for name in "cd")
    assert all(torch.equal(first[k], again[k]) for k in first)


def test_a_resume_by_a_run_s_own_config_takes_its_last_checkpoint(data, tmp_path):
    """Which may name one of another run, by whose name there is one here: all after it would be lost."""
    for name, more in (("a", ()), ("b", (f"--init_from={tmp_path / 'a'}", "--init_from_ckpt=ckpt_2.pt"))):
        run(*more, dataset=data / "toy", out_dir=tmp_path / name, save_major_ckpt_interval=2, **dict(BASE, max_iters=4))
    run(tmp_path / "b" / "config.yaml", "--init_from=resume", small=False, max_iters=5)
    assert checkpoint.load(tmp_path / "b" / "ckpt.pt")["loop"]["resumes"] == [4]


def test_a_resume_may_write_the_data_set_s_name_another_way(data, tmp_path, monkeypatch):
    (tmp_path / "data").symlink_to(data)
    monkeypatch.chdir(tmp_path)
    run(dataset="data/toy/", out_dir=tmp_path / "a", **BASE)
    run("--init_from=resume", dataset="toy", out_dir=tmp_path / "a", small=False, max_iters=4)
    assert checkpoint.load(tmp_path / "a" / "ckpt.pt")["step"] == 4


def test_a_resume_that_cuts_batches_anew_is_evaluated_on_the_same_windows(data, tmp_path):
    """Else the best loss, patience and plateau would compare losses of other windows. --eval_iters still means more."""
    flags = {"learning_rate": 0, "batch_size": 4, "gradient_accumulation_steps": 2, "eval_iters": 3}
    run(dataset=data / "toy", out_dir=tmp_path, **dict(BASE, **flags))
    losses = []
    for steps, more in ((6, {}), (9, {"batch_size": 2, "gradient_accumulation_steps": 4}), (12, {"eval_iters": 4})):
        run("--init_from=resume", out_dir=tmp_path, small=False, max_iters=steps, **more)
        losses.append(rows(tmp_path)[1][-1]["val_loss"])
    assert losses[1] == pytest.approx(losses[0], abs=1e-6) and abs(losses[2] - losses[1]) > 1e-5


def test_a_resume_from_an_older_checkpoint_says_what_it_replaces(data, tmp_path, capsys):
    run(dataset=data / "toy", out_dir=tmp_path, save_major_ckpt_interval=2, **dict(BASE, max_iters=4))
    for step, *look in ((2, "--eval_only"), (2, "--replay_step=2"), (2,), (4,)):  # at its end nothing is replaced
        run("--init_from=resume", f"--init_from_ckpt=ckpt_{step}.pt", *look, out_dir=tmp_path, small=False)
        expected = step == 2 and not look  # a look replaces nothing, and said that it did
        note = f"note: this run was at step 4; what it saved after step {step} is replaced"
        assert (note in capsys.readouterr().out) == expected


def test_a_run_that_goes_back_keeps_no_best_of_its_other_future(data, tmp_path):
    """And one that it has no weights of is not what the next must beat."""
    run(dataset=data / "toy", out_dir=tmp_path, save_major_ckpt_interval=2, **dict(BASE, max_iters=6, eval_interval=2))
    best, old = checkpoint.load(tmp_path / "best.pt"), checkpoint.load(tmp_path / "ckpt_4.pt")
    assert best["step"] == 6 and old["best"] == old["loop"]["eval"]["losses"]["val loss"]
    run("--init_from=resume", "--init_from_ckpt=ckpt_4.pt", out_dir=tmp_path, small=False, max_iters=4)
    assert [checkpoint.load(tmp_path / name)["step"] for name in ("ckpt.pt", "best.pt")] == [4, 4]
    checkpoint.save(tmp_path / "ckpt_4.pt", old | {"best": old["best"] / 2})  # of weights that are nowhere
    for _ in range(2):  # to step 6, and back from there
        run("--init_from=resume", "--init_from_ckpt=ckpt_4.pt", out_dir=tmp_path, small=False, max_iters=6)
    assert checkpoint.load(tmp_path / "best.pt")["step"] == 6


def test_a_resume_may_turn_gradient_checkpointing_on(data, plain, tmp_path, monkeypatch):
    from model import Block

    run(dataset=data / "toy", out_dir=tmp_path, save_major_ckpt_interval=1, **BASE)
    calls, real = [], Block.forward
    monkeypatch.setattr(Block, "forward", lambda *a, **k: calls.append(1) or real(*a, **k))
    counts = []
    for flag in ("--no-use_gradient_checkpointing", "--use_gradient_checkpointing"):
        calls.clear()
        run("--init_from=resume", "--init_from_ckpt=ckpt_1.pt", flag, out_dir=tmp_path, small=False)
        counts.append(len(calls))
        assert equal(weights(tmp_path / "ckpt.pt"), plain)
    assert counts[1] == counts[0] + 2 * 2, "each of two blocks again in each of two backward passes"


def test_sampling_in_16_bit_with_attention_that_is_not_fused(data, tmp_path, capsys):
    flags = {"attn_logit_softcapping": 5, "window_size": 3, "dtype": "bfloat16", "max_sample_tokens": 6}
    run(dataset=data / "toy", out_dir=tmp_path, sample_start_tokens="ab", **BASE, **flags)
    assert re.search(r"^ab[a-k]{6} ?\n---$", capsys.readouterr().out, re.M)


def test_a_val_split_that_is_trained_on_is_said(data, tmp_path, capsys):
    note = "val.bin lies in train.bin: it is trained on, too"
    run(dataset=data / "toy", out_dir=tmp_path / "a", **BASE | {"max_iters": 1})
    assert note not in capsys.readouterr().out
    ids = np.fromfile(data / "toy" / "train.bin", np.uint16)
    bins.write(tmp_path / "all", 11, ids, ids[-500:])  # nothing was held out
    run(dataset=tmp_path / "all", out_dir=tmp_path / "b", **BASE | {"max_iters": 1})
    assert note in capsys.readouterr().out


def test_a_lowest_rate_above_the_rate_is_said(data, tmp_path, capsys):
    run(dataset=data / "toy", out_dir=tmp_path, **BASE | {"learning_rate": 1e-5, "lr_scheduler": "cosine", "max_iters": 1})
    assert "note: the rate stays at 1e-05 after warmup: --min_lr 0.0001 is no less" in capsys.readouterr().out


def test_a_window_as_long_as_the_context_does_nothing_and_an_mlp_has_units(data, plain, tmp_path, capsys):
    run(dataset=data / "toy", out_dir=tmp_path, window_size=8, **BASE)
    assert "note: --window_size 8 does nothing here: the context is --block_size 8" in capsys.readouterr().out
    assert equal(weights(tmp_path / "ckpt.pt"), plain)
    assert "mlp_size must be > 0" in refused(capsys, tmp_path / "no", dataset=data / "toy", mlp_expansion_factor=0.01)


def test_what_could_be_none_once_is_the_default_in_a_resume(data, tmp_path):
    run(dataset=data / "toy", out_dir=tmp_path, **BASE)
    state = checkpoint.load(tmp_path / "ckpt.pt")
    state["options"]["position"] = None
    checkpoint.save(tmp_path / "ckpt.pt", state)
    run("--init_from=resume", "--max_iters=5", out_dir=tmp_path, small=False)
    assert checkpoint.load(tmp_path / "ckpt.pt")["step"] == 5


@pytest.mark.parametrize("flags, says", [
    (["--transfer=head"], "as the head here is the embedding (weight tying): --transfer embed"),
    (["--transfer=attn", "--n_head=4"], "leave it out, or leave attn out of --transfer"),
    (["--n_head=4"], "leave it out, or name the parts to take with --transfer"),
])  # fmt: skip
def test_what_weights_cannot_give_is_said_with_what_would_do(flags, says, data, tmp_path):
    run(dataset=data / "toy", out_dir=tmp_path / "a", **dict(BASE, max_iters=1))
    short = {k: v for k, v in BASE.items() if k != "n_head"}
    with pytest.raises(ValueError, match=re.escape(says)):
        run(f"--init_from={tmp_path / 'a'}", *flags, dataset=data / "toy", out_dir=tmp_path / "b", **short)


def test_start_tokens_and_seeds_that_cannot_be(data, tmp_path, capsys):
    line = refused(capsys, tmp_path / "no", dataset=data / "toy", max_sample_tokens=3, sample_start_tokens="a\\")
    assert line.startswith("error: --sample_start_tokens 'a\\\\': ")
    run(dataset=data / "toy", out_dir=tmp_path / "a", max_sample_tokens=3, sample_start_tokens="a", seed=1 << 70)


def test_an_empty_start_begins_as_sample_py_does_and_next_lines_can_be_pasted(data, tmp_path, capsys):
    out = tmp_path / "a 'b'"
    run(dataset=data / "toy", out_dir=out, max_sample_tokens=3, sample_start_tokens="", **BASE)
    said = capsys.readouterr().out
    assert re.search(r"^[a-k]{4} ?\n---", said, re.M)
    assert shlex.split(said.splitlines()[-1])[-1] == f"--init_from={out}"
    run(dataset=data / "toy", out_dir=tmp_path / "b", never_save_checkpoint=True, **BASE)
    assert "next: " not in capsys.readouterr().out  # there is nothing to sample from


def test_saving_always_and_only_at_the_end_says_which_holds(data, tmp_path, capsys):
    run(dataset=data / "toy", out_dir=tmp_path, only_save_checkpoint_at_end=True, always_save_checkpoint=True, **BASE)
    assert "note: --always_save_checkpoint does nothing here" in capsys.readouterr().out


def test_sampling_without_a_tokenizer_is_refused_at_the_start(data, tmp_path, capsys):
    import shutil

    shutil.copytree(data / "toy", tmp_path / "bare")
    meta = json.loads((tmp_path / "bare" / "meta.json").read_text())
    (tmp_path / "bare" / "meta.json").write_text(json.dumps(meta | {"tokenizer": None}))
    line = refused(capsys, tmp_path / "no", dataset=tmp_path / "bare", max_sample_tokens=3)
    assert "need a tokenizer, bare describes none" in line
    line = refused(capsys, tmp_path / "no", dataset=data / "toy", max_sample_tokens=3)
    assert "--sample_start_tokens '\\n': character '\\n' at place 0 is not among" in line


# -----------------------------------------------------------------------------
# logging


def test_log_interval_and_csv_log(data, tmp_path, capsys):
    run(dataset=data / "toy", out_dir=tmp_path / "a", log_interval=5, max_iters=12)
    assert [r["step"] for r in tracker.read(tmp_path / "a" / "train.csv")] == [0, 5, 10, 11]
    assert (tmp_path / "a" / "loss.png").stat().st_size > 1000
    run(dataset=data / "toy", out_dir=tmp_path / "b", csv_log=False)
    assert not list((tmp_path / "b").glob("*.csv")) and not (tmp_path / "b" / "loss.png").exists()


def test_tensorboard_log(data, tmp_path):
    pytest.importorskip("tensorboard")
    run(dataset=data / "toy", out_dir=tmp_path, tensorboard_log=True, **BASE)
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_wandb_log(data, tmp_path, monkeypatch):
    """The project and the name go over, and each step's numbers."""
    calls = []

    class Fake:
        Settings = staticmethod(lambda **k: None)

        @staticmethod
        def init(**about):
            calls.append(about)
            return Fake

        @staticmethod
        def log(values, step):
            calls.append((step, values))

        @staticmethod
        def finish(**_):
            calls.append("finish")

    monkeypatch.setitem(sys.modules, "wandb", Fake)
    monkeypatch.setenv("WANDB_MODE", "offline")
    run(dataset=data / "toy", out_dir=tmp_path, wandb_log=True, wandb_project="p", wandb_run_name="r", **BASE)
    assert (calls[0]["project"], calls[0]["name"]) == ("p", "r") and calls[-1] == "finish"
    assert any("train/loss" in values for _, values in calls[1:-1])
    assert any("eval/val loss" in values or "eval/val_loss" in values for _, values in calls[1:-1])


@pytest.mark.full
def test_compile(data, tmp_path, capsys):
    torch._dynamo.reset()
    try:
        run(dataset=data / "toy", out_dir=tmp_path / "a", compile=True, max_iters=2)
    except Exception as e:  # a machine without a C++ compiler
        pytest.skip(str(e).splitlines()[0])
    assert "compile on" in capsys.readouterr().out
    run(dataset=data / "toy", out_dir=tmp_path / "b", max_iters=2)
    a, b = (rows(tmp_path / name)[0][-1]["loss"] for name in "ab")
    assert a == pytest.approx(b, abs=1e-4)
