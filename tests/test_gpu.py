"""What the loops and tools do on a GPU, tried on one that is pretended: the same numbers, and no step that waits."""

import contextlib
import csv
import importlib
import re
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch

from core import checkpoint, config, dist, tracker
from tests import pretended_gpu
from tests.loops import FINETUNE, MULTICONTEXT, PRETRAIN, PROCEDURAL, REWARD, TRAIN, made_once
from tests.test_loops import MORE, ROWS, die
from variants.attentions import attend
from variants.packed import exact

full = pytest.mark.full
# of those that are not fused: whether to step is asked on the host. Some of the library's own ask more, or for a real GPU
WAITS = {"train-muon": 1}
# kinds of state: none, moments, counters in groups, factors, a second set of weights, matrices. All but three of the table
# pass: asgd makes tensors in C++, kate is all rounding, spectralsphere takes half a minute
OPTIMIZED = ["sgd", "rmsprop", "lion", "dadaptadam", "dadaptlion", "prodigy", "adafactor", "schedulefreeadamw", "soap", "kron"]
SELDOM = {
    "train": ["--log_interval=100", "--eval_interval=100"],
    "pretrain": ["--log_steps=100", "--eval_interval=100"],
    "reward_train": ["--trainer.params.log_every_n_steps=100", "--trainer.params.val_check_interval=100",
                     "--trainer.checkpoint.every_n_train_steps=100"],
    "procedural_pretraining.cli": ["--log_interval=100", "--save_every_steps=100"],
    "finetune": ["--log_interval=100", "--eval_interval=100"],
}  # fmt: skip
VARIANTS = [(TRAIN, [f"--position={kind}"], 1e-5) for kind in ("rotary", "sinusoidal", "alibi", "none")]
VARIANTS += [(TRAIN, flags.split(), within) for flags, within in [
    ("--dtype=bfloat16", 5e-3), ("--dtype=float16", 1e-3), ("--dropout=0.1", 0.05), ("--window_size=4", 1e-5),
    ("--use_gradient_checkpointing", 1e-5), ("--attn_logit_softcapping=20 --final_logit_softcapping=20", 1e-5),
    ("--n_kv_group=1 --no-wte_weight_tying", 1e-5), ("--softmax_variant_attn=sparsemax --mlp_variant=swiglu", 1e-5),
    ("--grad_clip=0 --max_sample_tokens=4 --sample_each_eval --sample_start_tokens=ab", 1e-5)]]  # fmt: skip
VARIANTS += [(PRETRAIN, flags.split(), within) for flags, within in [
    ("--pos_embed=relative_key_query", 1e-5), ("--pos_embed=alibi", 1e-5), ("--pos_embed=rope", 1e-5),
    ("--model attention=lsh", 1e-5), ("--model attention=favor", 1e-5), ("--model attention=plain", 1e-5),
    ("--dtype=bfloat16", 0.02), ("--dtype=float16", 2e-3), ("--att_prob=0.1 --hidden_prob=0.1", 0.3)]]  # fmt: skip
VARIANTS += [(REWARD, flags.split(), within) for flags, within in [
    ("--model_params.loss=pairwise", 1e-5), ("--data.on_tpu", 1e-5), ("--trainer.params.precision=16-mixed", 5e-3),
    ("--trainer.params.precision=bf16", 5e-3), ("--model_params.freeze_attn", 1e-5)]]  # fmt: skip
VARIANTS += [(FINETUNE, flags.split(), within) for flags, within in [
    ("--pooling=mean", 1e-5), ("--class_weights=balanced --label_smoothing=0.1", 1e-5), ("--dtype=float16", 1e-3)]]  # fmt: skip
VARIANTS += [(PROCEDURAL, flags.split(), within) for flags, within in [
    ("--task=dyck", 1e-5), ("--position=rotary --use_qk_norm", 1e-5), ("--dtype=float16", 1e-3)]]  # fmt: skip
VARIANTS += [(MULTICONTEXT, ["--sample_each_eval", "--max_sample_tokens=4"], 1e-5)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return made_once(tmp_path_factory.mktemp)


def on(device: str, module: str) -> list[str]:
    """The flags of a machine; compiled code cannot be pretended."""
    if module == "reward_train":
        return ["--trainer.params.accelerator=" + ("cpu" if device == "cpu" else "gpu")]
    compiles = device != "cpu" and hasattr(importlib.import_module(module).Options, "compile")
    return [f"--device={device}", *["--no-compile"] * compiles]


def flags(loop, data, out, steps: int = 6) -> list[str]:
    given = [*loop.flags(data, out), *loop.steps(steps), *loop.batch(4, 2, 1)]
    return [f for f in given if not f.startswith("--device=") and "accelerator" not in f]


def losses(loop, out) -> list[float]:
    return [row["loss"] for row in tracker.read(out / loop.csv)]


def same_on_both(loop, data, tmp_path, monkeypatch, extra=(), within=1e-5, there="cuda:0") -> None:
    """Also where a run on the GPU was killed, and went on from its own checkpoint."""
    for device in ("cpu", there):
        argv = [*flags(loop, data, tmp_path / device), *extra, *on(device, loop.module)]
        if device == "cpu":
            loop.run(argv)
        else:
            with pretended_gpu.plugged_in(there):
                die(loop, argv, monkeypatch, 5)
                loop.run([*argv, *loop.resume(tmp_path / device)])
    found = losses(loop, tmp_path / there)
    assert len(found) == 6 and found == pytest.approx(losses(loop, tmp_path / "cpu"), abs=within)


@MORE
def test_a_gpu_trains_as_a_cpu_does(loop, data, tmp_path, monkeypatch):
    same_on_both(loop, data(loop), tmp_path, monkeypatch, within=max(1e-5, loop.equal))


@pytest.mark.full
@ROWS
def test_a_mac_trains_as_a_cpu_does(loop, data, tmp_path, monkeypatch):
    same_on_both(loop, data(loop), tmp_path, monkeypatch, within=max(1e-5, loop.equal), there="mps:0")


def test_a_step_that_a_gpu_skips_is_not_in_the_mean_loss(data, tmp_path, monkeypatch):
    import reward_train

    losses, steps = reward_train.losses, []

    def third_is_bad(*args):
        steps.append(1)
        return losses(*args) * (float("nan") if len(steps) == 3 else 1.0)

    monkeypatch.setattr(reward_train, "losses", third_is_bad)
    for device in ("cpu", "cuda"):
        steps.clear()
        argv = [*flags(REWARD, data(REWARD), tmp_path / device), *on(device, REWARD.module)]
        with pretended_gpu.plugged_in() if device == "cuda" else contextlib.nullcontext():
            REWARD.run([*argv, "--data.batch_size=8", "--trainer.params.accumulate_grad_batches=1"])
    found = [[row["train_loss"] for row in tracker.read(tmp_path / d / "eval.csv")] for d in ("cpu", "cuda")]
    assert len(found[0]) == 2 and found[1] == pytest.approx(found[0], abs=1e-5)


class Several(torch.nn.Module):
    """Takes all tensors to its GPU, as DDP does."""

    def __init__(self, module, **_):
        super().__init__()
        self.module = module

    def forward(self, *args, **which):
        return self.module(*(x.to("cuda:0") if torch.is_tensor(x) else x for x in args), **which)


@pytest.mark.full
@MORE
@pytest.mark.parametrize("ranks", [1, 2])
def test_no_step_waits_for_the_gpu(loop, ranks, data, tmp_path, monkeypatch):
    """Ten steps without an evaluation or a line in the log wait no more often than four of them."""
    waits, init = [], dist.init
    monkeypatch.setattr(dist, "init", lambda *a, **k: replace(init(*a, **k), world=ranks))
    monkeypatch.setattr(importlib.import_module(loop.module), "DistributedDataParallel", Several)
    for steps in (4, 10):
        argv = [*flags(loop, data(loop), tmp_path / str(steps), steps), *SELDOM[loop.module], *on("cuda", loop.module)]
        with pretended_gpu.plugged_in() as gpu:
            loop.run(argv)
        waits.append(gpu.waits)
    more = len(waits[1]) - len(waits[0])
    assert more == 6 * WAITS.get(loop.name, 0), [w for w in waits[1] if waits[1].count(w) > waits[0].count(w)]


@MORE
def test_a_look_at_a_step_tells_the_same(loop, data, tmp_path, capsys):
    said = []
    for device in ("cpu", "cuda"):
        argv = [*flags(loop, data(loop), tmp_path), "--replay_step=2", *on(device, loop.module)]
        capsys.readouterr()
        if device == "cpu":
            loop.run(argv)
        else:
            with pretended_gpu.plugged_in():
                loop.run([*argv, "--check"])
                loop.run(argv)
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step 2: loss ")]
        said.append([float(x) for x in re.findall(r"(?:loss|norm) ([\d.e-]+)", line)])
    assert len(said[0]) == 2 and said[0] == pytest.approx(said[1], rel=1e-4)


@full
@pytest.mark.parametrize(("loop", "extra", "within"), VARIANTS, ids=lambda x: x.name if hasattr(x, "name") else str(x))
def test_variants_run_on_a_gpu(loop, extra, within, data, tmp_path, monkeypatch):
    same_on_both(loop, data(loop), tmp_path, monkeypatch, extra, within)


@full
@pytest.mark.parametrize("name", OPTIMIZED)
def test_optimizers_run_on_a_gpu(name, data, tmp_path, monkeypatch):
    same_on_both(TRAIN, data(TRAIN), tmp_path, monkeypatch, [f"--optimizer={name}"], within=0.05)


@pytest.mark.parametrize("pins", [True, False])
def test_a_checkpoint_s_copy_waits_once(pins, monkeypatch):
    """Not for each tensor, as long as memory can be pinned; and training cannot change it."""
    with pretended_gpu.plugged_in() as gpu:
        w = torch.ones(3, device="cuda:0")
        synchronised = []
        monkeypatch.setattr(torch.cuda, "synchronize", synchronised.append)
        if not pins:
            monkeypatch.setattr(torch, "empty_like", mock.Mock(side_effect=RuntimeError("out of memory")))
        copied = checkpoint.snapshot({"w": w, "more": [w, 2 * w], "step": 3})
        assert synchronised == [w.device] and len(gpu.waits) == 2 * (not pins)
        w.add_(1)
    assert copied["w"] is copied["more"][0] and copied["w"].tolist() == [1, 1, 1] and copied["step"] == 3
    assert copied["more"][1].tolist() == [2, 2, 2] and copied["w"].device.type == "cpu"


def test_cudnn_plans_no_attention_whose_shape_may_change(monkeypatch):
    """It takes 30 ms for each new one; in compiled code, whose shapes stay, the choice is torch's."""
    chosen, attention = [], pretended_gpu.attention

    def choose(*args, **how):
        chosen.append(torch.backends.cuda.cudnn_sdp_enabled())
        return attention(*args, **how)

    monkeypatch.setattr(pretended_gpu, "attention", choose)
    for compiling in (False, True):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda yes=compiling: yes)
        with pretended_gpu.plugged_in():
            q = torch.randn(1, 2, 5, 8).to("cuda:0")
            attend(q, q, q, causal=True)
            attend(q, q, q, causal=True, window=2)
            exact(q, q, q, None, 0.0)
    assert chosen == [False] * 3 + [True] * 3 and torch.backends.cuda.cudnn_sdp_enabled()


def test_the_gpu_that_was_asked_for_is_the_present_one(monkeypatch):
    present = []
    with pretended_gpu.plugged_in():
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "set_device", present.append)
        assert [dist.pick_device(name, 1).index for name in ("cuda:0", "1", "gpu")] == present == [0, 1, 1]


# -----------------------------------------------------------------------------
# tools


def call(module: str, *argv: str, device: str) -> None:
    script = importlib.import_module(module)
    script.main(config.parse(script.Options, [*map(str, argv), *on(device, module)], doc=""))


def both(capsys, module: str, *argv: str, out=None) -> None:
    """Prints the same on both, and writes the same numbers."""
    said, found = [], []
    for device in ("cpu", "cuda"):
        if device == "cpu":
            call(module, *argv, device=device)
        else:
            with pretended_gpu.plugged_in():
                call(module, *argv, device=device)
        said.append(capsys.readouterr().out.replace("cuda:0", "cpu"))
        if out:
            with open(out, newline="") as f:
                found.append([row[-2] for row in csv.reader(f)][1:])
            out.unlink()
    assert said[0] == said[1] and said[0]
    if out:
        assert len(found[0]) > 2
        assert [float(x) for x in found[0]] == pytest.approx([float(x) for x in found[1]], abs=1e-5)


@pytest.mark.full
def test_tools_run_on_a_gpu(data, tmp_path, capsys):
    for loop in (TRAIN, PRETRAIN, FINETUNE, REWARD):
        loop.run([*flags(loop, data(loop), tmp_path / loop.name), *on("cpu", loop.module)])
    capsys.readouterr()
    both(capsys, "sample", f"--init_from={tmp_path / 'train'}", "--start=abc", "--num_samples=2", "--dtype=float32")
    both(capsys, "sample", f"--init_from={tmp_path / 'pretrain'}", "--start=12<mask>45", "--dtype=float32")
    (tmp_path / "text.txt").write_text("1234\n55555\n9\n")
    both(capsys, "pretrain", f"--init_from={tmp_path / 'pretrain'}", f"--embed={tmp_path / 'text.txt'}",
         f"--out={tmp_path / 'v.npy'}", "--dtype=float32")  # fmt: skip
    assert np.load(tmp_path / "v.npy").shape == (3, 32)
    (tmp_path / "text.csv").write_text("text\n1273\n558\n9\n")
    both(capsys, "finetune", f"--init_from={tmp_path / 'finetune'}", f"--predict={tmp_path / 'text.csv'}",
         f"--out={tmp_path / 'labels.csv'}", "--dtype=float32", out=tmp_path / "labels.csv")  # fmt: skip
    scores = f"--score={data(REWARD) / 'qa.json'}", f"--trainer.checkpoint.dirpath={tmp_path / 'reward'}", "--trainer.params.precision=32"
    for cache in ("--no-model_params.use_cache", "--model_params.use_cache"):
        both(capsys, "reward_train", *scores, f"--out={tmp_path / 'scores.csv'}", cache, out=tmp_path / "scores.csv")
