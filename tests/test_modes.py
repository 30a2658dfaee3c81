"""train.py's modes, its mixtures and streams, its schedules, optimizers and starting points, by their options."""

import json
import math
import os
import shutil
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import export_hf
import sample
import train
import train_args
from core import checkpoint, config, hf, tracker
from core.run import guard
from core.schedule import SCHEDULES, Plateau, lr_at
from core.values import read_yaml
from data import bins, vocab
from data.mixture import Mixture
from model import GPT, GPTConfig, build_gpt
from tests.loops import bins_data, mixed_data, with_dropout
from train_args import Options
from variants import optimizers

STEPS = 12


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    mixed_data(folder)  # toy (11 ids, uint16) and wide (5 ids, uint32), equally long
    bins_data(folder, "short", vocab=7, n=900)
    return folder


def run(*argv, **options):
    """train.py, tiny; options beyond those given are keyword arguments."""
    small = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 8, "batch_size": 4, "eval_iters": 2,
             "eval_interval": 4, "max_iters": STEPS, "warmup_iters": 0, "log_interval": 1, "device": "cpu",
             "dtype": "float32", "learning_rate": 1e-2}  # fmt: skip
    flags = [f"--{k}={v}" for k, v in ((small if options.pop("small", True) else {}) | options).items()]
    train.main(config.parse(Options, [*flags, *map(str, argv)], doc=""))


def refused(capsys, out, *argv, **options) -> str:
    """The one line on stderr of a run that ends with exit code 2 and leaves nothing behind."""
    before = sorted(p.name for p in out.iterdir()) if out.exists() else None
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop, guard():
        run(*argv, out_dir=out, **options)
    assert stop.value.code == 2
    assert (sorted(p.name for p in out.iterdir()) if out.exists() else None) == before
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def rows(out):
    return tracker.read(out / "train.csv"), tracker.read(out / "eval.csv")


def weights(path):
    return checkpoint.load(path)["model"]


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def resumes_exactly(out, *argv, middle=6, **options):
    """From the checkpoint in the middle, as if the rest had never been."""
    run(*argv, out_dir=out, save_major_ckpt_interval=middle, **options)
    end = weights(out / "ckpt.pt")
    (out / "ckpt.pt").unlink()
    run("--init_from=resume", f"--init_from_ckpt=ckpt_{middle}.pt", out_dir=out, small=False)
    assert equal(weights(out / "ckpt.pt"), end)


def test_a_kill_after_going_back_is_resumed_from_there(data, tmp_path, monkeypatch):
    """Not from the checkpoint of the steps that were given up."""
    from tests.loops import TRAIN
    from tests.test_loops import die

    run(dataset=data / "toy", out_dir=tmp_path, save_major_ckpt_interval=6)
    argv = ["--init_from=resume", "--init_from_ckpt=ckpt_6.pt", f"--out_dir={tmp_path}", "--learning_rate=0.1",
            "--eval_interval=100"]  # fmt: skip
    die(TRAIN, argv, monkeypatch, 9)
    assert checkpoint.newest(tmp_path)[0]["step"] == 6
    later = [p.name for p in tmp_path.glob("*.pt") if checkpoint.load(p)["step"] > 6]
    assert later == ["ckpt_12.pt"], "best.pt, which sample.py takes, is not of those steps; what was kept for good stays"
    run("--init_from=resume", out_dir=tmp_path, small=False)
    assert [row["step"] for row in rows(tmp_path)[0]] == list(range(STEPS))


# -----------------------------------------------------------------------------
# multidataset


def two(data, *flags):
    return ["--training_mode=multidataset", "--dataset_list", data / "toy", data / "wide", *flags]


def test_each_step_trains_on_the_data_set_that_the_mixture_picks(data, tmp_path):
    run(*two(data, "--dataset_sampling_probs", "0.3", "0.7"), out_dir=tmp_path)
    picked = Mixture(2, probs=[0.3, 0.7], seed=1337).pick(np.arange(STEPS))
    assert [r["data"] for r in rows(tmp_path)[0]] == [("toy", "wide")[k] for k in picked]
    assert checkpoint.load(tmp_path / "ckpt.pt")["model_config"]["vocab_size"] == 11, "one vocabulary, the largest"


def test_interleaving_and_a_learning_rate_for_each(data, tmp_path):
    run(*two(data, "--dataset_interleaving", "--dataset_sampling_probs", "1 3",
             "--dataset_sampling_learning_rate", "1e-2 1e-4"), out_dir=tmp_path)  # fmt: skip
    train_rows, _ = rows(tmp_path)
    assert [r["data"] for r in train_rows[:8]] == ["toy", "wide", "wide", "wide"] * 2
    assert [r["lr"] for r in train_rows[:4]] == [1e-2, 1e-4, 1e-4, 1e-4]


def test_shuffled_interleaving_and_a_moving_mix(data, tmp_path):
    run(*two(data, "--dataset_interleaving", "--dataset_interleaving_shuffle"), out_dir=tmp_path / "a")
    order = [r["data"] for r in rows(tmp_path / "a")[0]]
    assert all(set(order[i : i + 2]) == {"toy", "wide"} for i in range(0, STEPS, 2))
    assert order != ["toy", "wide"] * (STEPS // 2)
    run(*two(data, "--dataset_sampling_probs=1 0", "--dataset_sampling_probs_final=0 1",
             "--dataset_sampling_probs_transition_method=cosine"), out_dir=tmp_path / "b")  # fmt: skip
    mix = Mixture(2, [1, 0], [0, 1], "cosine", total=STEPS, seed=1337)
    assert [r["data"] for r in rows(tmp_path / "b")[0]] == [("toy", "wide")[k] for k in mix.pick(np.arange(STEPS))]


def test_losses_of_each_and_of_the_mix(data, tmp_path):
    """The mix is weighted as the run ends, so that it means the same at each evaluation."""
    run(*two(data, "--dataset_sampling_probs=1 0", "--dataset_sampling_probs_final=1 3"), out_dir=tmp_path)
    for row in rows(tmp_path)[1]:
        for part in ("train", "val"):
            each = [row[f"{part}_loss_toy"], row[f"{part}_loss_wide"]]
            assert row[f"{part}_loss"] == pytest.approx(0.25 * each[0] + 0.75 * each[1])


def test_the_reported_losses_are_the_losses(data, tmp_path):
    """Against cross_entropy over the same windows, by the final weights."""
    run(*two(data, "--multidataset_wte"), out_dir=tmp_path, eval_iters=1000)
    state = checkpoint.load(tmp_path / "ckpt.pt")
    model = build_gpt(GPTConfig(**state["model_config"]))
    model.load_state_dict(state["model"])
    last = rows(tmp_path)[1][-1]
    for k, name in enumerate(("toy", "wide")):
        val = bins.open_dataset(str(data / name)).split("val", 8)
        x, y = map(torch.from_numpy, val.windows(np.arange((val.n - 1) // 8) * 8))
        with torch.no_grad():
            loss = F.cross_entropy(model.eval()(x, stream=k).flatten(0, 1), y.flatten()).item()
        assert last[f"val_loss_{name}"] == pytest.approx(loss, abs=1e-5)


@pytest.mark.parametrize("method", ["sequential", "without_replacement"])
def test_a_mixture_leaves_no_window_of_a_data_set_out(data, method, tmp_path, monkeypatch):
    """Each data set counts its own batches, also after a resume."""
    asked, real = [], bins.starts

    def starts(method, n, block, batch, seed, purpose, step):
        if purpose.startswith("train"):
            asked.append((purpose, step))
        return real(method, n, block, batch, seed, purpose, step)

    monkeypatch.setattr(bins, "starts", starts)
    run(*two(data), out_dir=tmp_path, sampling_method=method, save_major_ckpt_interval=6)
    for name in ("toy", "wide"):
        turns = [turn for purpose, turn in asked if purpose == f"train {name}"]
        assert turns == list(range(len(turns))) and len(turns) > 2
    again, asked[:] = asked[6:], []
    run("--init_from=resume", "--init_from_ckpt=ckpt_6.pt", out_dir=tmp_path, small=False)
    assert asked == again


def test_own_embeddings_take_no_part_in_the_others_steps(data, tmp_path):
    """Only toy is drawn: wide's tables stay where they were."""
    flags = two(data, "--multidataset_wte", "--dataset_sampling_probs=1 0")
    run(*flags, out_dir=tmp_path / "a", max_iters=0)
    run(*flags, out_dir=tmp_path / "b")
    before, after = weights(tmp_path / "a" / "ckpt.pt"), weights(tmp_path / "b" / "ckpt.pt")
    assert before["transformer.wte.0.weight"].shape == (11, 16) and before["lm_head.1.weight"].shape == (5, 16)
    assert torch.equal(before["transformer.wte.1.weight"], after["transformer.wte.1.weight"])
    assert not torch.equal(before["transformer.wte.0.weight"], after["transformer.wte.0.weight"])


def test_lists_come_in_every_spelling(data, tmp_path, monkeypatch):
    """`a b`, 'a b', and with a leading data/."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(data, tmp_path / "data")
    mode = "--training_mode=multidataset"
    run(mode, "--dataset_list", "toy", "wide", out_dir="a", max_iters=0)
    run(mode, "--dataset_list", "data/toy wide", out_dir="b", max_iters=0)
    run(mode, "--dataset_list='data/toy' 'data/wide'".replace("'", ""), out_dir="c", max_iters=0)
    assert equal(weights(tmp_path / "a" / "ckpt.pt"), weights(tmp_path / "b" / "ckpt.pt"))
    assert equal(weights(tmp_path / "a" / "ckpt.pt"), weights(tmp_path / "c" / "ckpt.pt"))


# -----------------------------------------------------------------------------
# multicontext


def streams(data, *flags):
    return ["--training_mode=multicontext", "--multicontext_datasets", data / "toy", data / "wide", *flags]


def test_streams_have_their_own_losses_and_tables(data, tmp_path):
    run(*streams(data), out_dir=tmp_path)
    train_rows, eval_rows = rows(tmp_path)
    for row in train_rows:
        assert row["loss"] == pytest.approx((row["loss_toy"] + row["loss_wide"]) / 2)
    assert train_rows[0]["loss_toy"] == pytest.approx(math.log(11), rel=0.05)
    assert train_rows[0]["loss_wide"] == pytest.approx(math.log(5), rel=0.05)
    last = eval_rows[-1]
    assert last["val_loss"] == pytest.approx((last["val_loss_toy"] + last["val_loss_wide"]) / 2)
    assert checkpoint.load(tmp_path / "ckpt.pt")["model_config"]["vocab_sizes"] == [11, 5]


def test_the_same_windows_are_cut_from_all_streams(data, tmp_path, monkeypatch):
    seen, real = [], bins.Split.windows

    def windows(self, starts, T=None):
        if T:  # a step's, not the comparison of the splits
            seen.append(np.asarray(starts).tolist())
        return real(self, starts, T)

    monkeypatch.setattr(bins.Split, "windows", windows)
    run(*streams(data), out_dir=tmp_path, max_iters=2)
    assert seen and all(a == b for a, b in zip(seen[::2], seen[1::2], strict=True))


def test_the_other_spelling_and_the_check_of_the_sizes(data, tmp_path, capsys):
    flags = ["--multicontext", "--multicontext_datasets", data / "toy", data / "wide", "--vocab_sizes", "11", "5"]
    run(*flags, out_dir=tmp_path, max_iters=1)
    assert checkpoint.load(tmp_path / "ckpt.pt")["meta"]["mode"] == "multicontext"
    line = refused(capsys, tmp_path / "no", *flags[:-1], "6")
    assert "--vocab_sizes are [11, 6], the data sets' are [11, 5]" in line


def test_streams_of_unequal_length_are_named(data, tmp_path, capsys):
    flags = ["--multicontext", "--multicontext_datasets", data / "toy", data / "short"]
    assert "equally long, train has: toy 5,400, short 810" in refused(capsys, tmp_path / "no", *flags)


@pytest.mark.parametrize("flags, message", [
    (["--dataset_list", "a", "b"], "--dataset_list needs --training_mode=multidataset"),
    (["--dataset_interleaving"], "--dataset_interleaving needs --training_mode=multidataset"),
    (["--multicontext_datasets", "a", "b"], "--multicontext_datasets needs --training_mode=multicontext"),
    (["--training_mode=multidataset", "--dataset_list", "a"], "two or more data sets in --dataset_list"),
    (["--training_mode=multicontext"], "two or more data sets in --multicontext_datasets"),
    (["--multicontext", "--training_mode=single"], "contradict each other"),
    (["--training_mode=multidataset", "--dataset_list=a b", "--dataset_sampling_learning_rate=1"], "1 for 2"),
    (["--training_mode=multidataset", "--dataset_list=a b", "--dataset_interleaving_shuffle"],
     "--dataset_interleaving_shuffle needs --dataset_interleaving"),
    (["--training_mode=multidataset", "--dataset_list=../a b"], "a data set is a name"),
    (["--gpt2_type=gpt2-xl"], "--gpt2_type=gpt2-xl needs --init_from=gpt2"),
])  # fmt: skip
def test_an_option_that_would_act_nowhere_is_an_error(flags, message, tmp_path, capsys):
    assert message in refused(capsys, tmp_path / "no", *flags)


@pytest.mark.parametrize("flags", [
    ["--multidataset_wte", "--dataset_sampling_probs=1 2", "--sampling_method=without_replacement"],
    ["--dataset_interleaving", "--dataset_interleaving_shuffle"],
])  # fmt: skip
def test_mixtures_resume_exactly(data, flags, tmp_path):
    resumes_exactly(tmp_path, *two(data, *flags), dropout=0.1)


def test_streams_resume_exactly(data, tmp_path):
    resumes_exactly(tmp_path, *streams(data), dropout=0.1)


def test_samples_of_each_stream(data, tmp_path, capsys):
    run(*streams(data), out_dir=tmp_path, max_iters=1, max_sample_tokens=5)
    said = capsys.readouterr().out
    assert "[toy]" in said and "[wide]" in said
    run(*two(data, "--multidataset_wte"), out_dir=tmp_path, max_iters=1, max_sample_tokens=5, sample_start_tokens="a")
    assert "[wide] a" in capsys.readouterr().out


def text(capsys, *argv) -> str:
    capsys.readouterr()
    sample.main(config.parse(sample.Options, ["--device=cpu", "--max_new_tokens=6", *map(str, argv)], doc=""))
    return capsys.readouterr().out


def test_sample_takes_one_start_a_stream(data, tmp_path, capsys):
    run(*streams(data), out_dir=tmp_path, max_iters=4)
    said = text(capsys, "--init_from", tmp_path, "--start=abc||cde", "--num_samples=2").splitlines()
    labelled = [line for line in said if line[0] == "["]
    assert [line[: -len("6 new.")] for line in labelled] == ["[toy] abc", "[wide] cde"] * 2
    assert "[toy] a" in text(capsys, "--init_from", tmp_path), "without a start each begins with its first token"
    for start in ("abc", "abc||cd", "abc||cde||a"):
        with pytest.raises(ValueError, match="--start needs 2 texts of equally many tokens"):
            text(capsys, "--init_from", tmp_path, f"--start={start}")


def test_sample_takes_published_weights(data, tmp_path, capsys, monkeypatch):
    """Those of an export write and measure as the run that they come from; nothing but GPT-2 is looked for elsewhere."""
    run(dataset=data / "toy", out_dir=tmp_path / "run", max_iters=4)
    export_hf.main(export_hf.Options(init_from=str(tmp_path / "run"), out=str(tmp_path / "hf")))
    (tmp_path / "new.txt").write_text("abcabc")
    for flags in (["--start=abc", "--temperature=0"], ["--perplexity", tmp_path / "new.txt"]):
        ours, theirs = (text(capsys, "--init_from", tmp_path / source, *flags) for source in ("run", "hf"))
        assert ours == theirs
    (tmp_path / "hf" / "tokenizer.json").unlink()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for source, message in (("hf", "holds no tokenizer"), ("gpt2", "HF_HUB_OFFLINE forbids"),
                            ("openai-community/gpt2", "does not exist: a checkpoint file or a run folder")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            text(capsys, f"--init_from={source}")


def test_sample_writes_like_the_data_set_that_is_named(data, tmp_path, capsys):
    run(*two(data, "--multidataset_wte"), out_dir=tmp_path, max_iters=4)
    flags = ["--init_from", tmp_path, "--start=a", "--temperature=9", "--max_new_tokens=99"]
    assert set(text(capsys, *flags, "--dataset=wide").strip()) <= set("abcde")
    toy = text(capsys, *flags)
    assert set(toy.strip()) - set("abcde")
    with pytest.raises(ValueError, match="this model knows toy, wide"):
        text(capsys, "--init_from", tmp_path, "--dataset=other", "--start=a")


@pytest.mark.parametrize("position", ["sinusoidal", "none"])
def test_sample_in_16_bit_writes_with_any_position(position, data, tmp_path, capsys, monkeypatch):
    run(f"--position={position}", dataset=data / "toy", out_dir=tmp_path, max_iters=2)
    assert f"x 16, {position} positions" in capsys.readouterr().out  # `none` is a kind here, not no answer
    assert checkpoint.load(tmp_path / "ckpt.pt")["model_config"]["position"] == position
    assert len(text(capsys, "--init_from", tmp_path, "--start=ab", "--dtype=bfloat16").strip()) == 8
    assert len(text(capsys, "--init_from", tmp_path, "--start=ab", "--temperature=1e-40").strip()) == 8
    with pytest.raises(ValueError, match="--start: character 'z' at place 1"):
        text(capsys, "--init_from", tmp_path, "--start=az")
    (tmp_path / "bom.txt").write_bytes(b"\xef\xbb\xbfab")  # as prepare.py reads it
    assert len(text(capsys, "--init_from", tmp_path, f"--start=FILE:{tmp_path / 'bom.txt'}").strip()) == 8
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(text(capsys, "--init_from", tmp_path, "--start=FILE:~/bom.txt").strip()) == 8
    measured = text(capsys, "--init_from", tmp_path, f"--perplexity={tmp_path / 'bom.txt'}")
    with_dropout(checkpoint.find(tmp_path))
    assert "1 tokens" in measured == text(capsys, "--init_from", tmp_path, f"--perplexity={tmp_path / 'bom.txt'}")
    out, into = os.pipe()
    os.write(into, b"ab")
    os.close(into)
    assert len(text(capsys, "--init_from", tmp_path, f"--start=FILE:/dev/fd/{out}").strip()) == 8  # <(command)
    os.close(out)
    stored, seen = checkpoint.load(checkpoint.find(tmp_path))["model"], []
    with monkeypatch.context() as m:  # measured as train.py evaluates: by the weights themselves, not rounded ones
        m.setattr("sample.perplexity", lambda model, *a: seen.append(model.state_dict()) or (1.0, 1))
        text(capsys, "--init_from", tmp_path, "--perplexity", tmp_path / "bom.txt", "--dtype=bfloat16")
    assert all(torch.equal(w, stored[name]) for name, w in seen[0].items())
    with monkeypatch.context() as m:  # of a model that diverged
        m.setattr("sample.perplexity", lambda *a: (1e4, 1))
        assert "loss 10000.0000, perplexity 1014" in text(capsys, "--init_from", tmp_path, "--perplexity", tmp_path / "bom.txt")
    measure = f"--perplexity={tmp_path / 'bom.txt'}"
    for flags, said in ((["--start=a", "--temperature=0", "--top_k=3"], ["top_k does nothing here: it needs --temperature"]),
                        (["--start=a", "--top_k=3"], []), ([measure], []),
                        (["--start=a", measure], ["start does nothing here: --perplexity does not read it"])):  # fmt: skip
        sample.main(config.parse(sample.Options, [f"--init_from={tmp_path}", *flags]))
        assert [line for line in capsys.readouterr().err.splitlines() if "nothing" in line] == [f"note: --{x}" for x in said]
    (tmp_path / "z.txt").write_text("zz")
    with pytest.raises(ValueError, match="--perplexity .*z.txt: character 'z'"):
        text(capsys, "--init_from", tmp_path, f"--perplexity={tmp_path / 'z.txt'}")


def test_what_is_printed_live_is_what_is_printed_at_the_end(data, tmp_path, capsys):
    """Word pieces are written otherwise where a text begins."""
    from data.train_tokenizer import build

    about = {"kind": "tokenizers", "json": build("wordpiece", 40, lambda: ["abcab abba cabba"] * 9).to_str()}
    shutil.copytree(data / "toy", tmp_path / "pieces")
    meta = json.loads((tmp_path / "pieces" / "meta.json").read_text())
    vocab_size = vocab.load(about).vocab_size
    (tmp_path / "pieces" / "meta.json").write_text(json.dumps(meta | {"tokenizer": about, "vocab_size": vocab_size}))
    run(dataset=tmp_path / "pieces", out_dir=tmp_path / "run", max_iters=2)
    flags = ["--init_from", tmp_path / "run", "--start=ab", "--temperature=9", "--top_k=none"]
    live, whole = text(capsys, *flags), text(capsys, *flags, "--no-stream")
    assert live.strip() == whole.strip().removesuffix("-" * 40).strip()


def test_a_last_token_that_ends_within_a_character_is_printed_live_too(data, tmp_path, capsys, monkeypatch):
    import sample

    about = {"kind": "tiktoken", "name": "mine", "merges": "\u0120 \u00e2\n"}  # a space and the first byte of a quote
    shutil.copytree(data / "toy", tmp_path / "merges")
    meta = json.loads((tmp_path / "merges" / "meta.json").read_text())
    (tmp_path / "merges" / "meta.json").write_text(json.dumps(meta | {"tokenizer": about, "vocab_size": 258}))
    run(dataset=tmp_path / "merges", out_dir=tmp_path / "run", max_iters=1)
    monkeypatch.setattr(sample, "stream", lambda *a, **k: iter([torch.tensor([[256]])]))
    flags = ["--init_from", tmp_path / "run", "--start=ab", "--max_new_tokens=1"]
    assert text(capsys, *flags) == "ab \ufffd\n" == text(capsys, *flags, "--no-stream").replace("-" * 40 + "\n", "")


# -----------------------------------------------------------------------------
# optimizers and schedules


@pytest.mark.parametrize("name", ["adafactor", "muon", "rprop"])
def test_an_optimizer_resumes_exactly(data, name, tmp_path):
    resumes_exactly(tmp_path, dataset=data / "toy", optimizer=name)


@pytest.mark.full
@pytest.mark.parametrize("name", [*optimizers.TORCH, "lion", "soap", "prodigy", "normuon", "kron", "schedulefreeadamw"])
def test_every_optimizer_learns_and_resumes_exactly(data, name, tmp_path):
    pytest.importorskip("pytorch_optimizer")
    rates = {"sgd": 0.5, "adagrad": 0.1, "adadelta": 3.0, "adafactor": 0.1, "asgd": 0.5, "prodigy": 1.0, "rprop": 1e-3,
             "lion": 1e-3, "radam": 3e-2}  # fmt: skip
    resumes_exactly(tmp_path / "a", dataset=data / "toy", optimizer=name, learning_rate=rates.get(name, 1e-2))
    run(dataset=data / "toy", out_dir=tmp_path / "b", optimizer=name, learning_rate=rates.get(name, 1e-2),
        max_iters=150, batch_size=32)  # fmt: skip
    train_rows, _ = rows(tmp_path / "b")
    assert train_rows[-1]["loss"] < train_rows[0]["loss"] - 0.5


def test_optimizer_arguments_act(data, tmp_path, capsys):
    ends = []
    for i, flags in enumerate([["--sgd_momentum=0"], ["--sgd_momentum=0.9"], ["--optimizer_args", "nesterov=true"]]):
        run("--optimizer=sgd", *flags, dataset=data / "toy", out_dir=tmp_path / str(i), max_iters=4)
        ends.append(weights(tmp_path / str(i) / "ckpt.pt")["transformer.wte.weight"])
    assert not torch.equal(ends[0], ends[1]) and not torch.equal(ends[1], ends[2])
    line = refused(capsys, tmp_path / "no", "--optimizer_args", "nesterov=true", dataset=data / "toy")
    assert "adamw has no argument 'nesterov'; it takes amsgrad" in line
    assert "did you mean" in refused(capsys, tmp_path / "no", "--optimizer=adamv", dataset=data / "toy")
    pytest.importorskip("pytorch_optimizer")
    flags = ["--optimizer=rose", "--optimizer_args", "wd_schedule=true"]
    assert "rose cannot step with these" in refused(capsys, tmp_path / "no", *flags, dataset=data / "toy")


def test_other_optimizer_arguments_on_a_resume(data, tmp_path, capsys):
    """One that is left out is as if it had never been given; one that needs another state is refused."""
    run("--optimizer=sgd", "--optimizer_args", "nesterov=true", dataset=data / "toy", out_dir=tmp_path, max_iters=2)
    run("--init_from=resume", "--max_iters=3", "--optimizer_args", "dampening=0.1", out_dir=tmp_path, small=False)
    group = checkpoint.load(tmp_path / "ckpt.pt")["optimizer"]["param_groups"][0]
    assert (group["nesterov"], group["dampening"]) == (False, 0.1)
    run(dataset=data / "toy", out_dir=tmp_path / "adamw", max_iters=2)
    before = (tmp_path / "adamw" / "config.yaml").read_bytes()
    resumed = ["--init_from=resume", "--max_iters=3", "--optimizer_args", "amsgrad=true"]
    line = refused(capsys, tmp_path / "adamw", *resumed, small=False)
    assert "adamw cannot go on with these" in line and "max_exp_avg_sq" in line
    assert (tmp_path / "adamw" / "config.yaml").read_bytes() == before


def expected(kind: str, step: int) -> float:
    """By hand: lr 1e-2, warmup 4, 20 steps, min_lr 1e-3."""
    if step < 4:
        return 1e-2 * (step + 1) / 5
    t = (step - 4) / 16
    return {
        "none": 1e-2,
        "cosine": 1e-3 + 9e-3 * 0.5 * (1 + math.cos(math.pi * t)),
        "linear": 1e-3 + 9e-3 * (1 - t),
        "exponential": max(1e-3, 1e-2 * 0.8 ** (step - 4)),
        "step": max(1e-3, 1e-2 * 0.5 ** ((step - 4) // 3)),
        "wsd": 1e-3 + 9e-3 * min(1, (1 - t) / 0.5),
    }[kind]


FLAT = {"warmup_iters": 4, "min_lr": 1e-3, "exponential_gamma": 0.8, "step_lr_size": 3, "step_lr_gamma": 0.5,
        "wsd_decay_frac": 0.5, "max_iters": 20, "eval_interval": 20}  # fmt: skip


@pytest.mark.parametrize("kind", [k for k in SCHEDULES if k != "plateau"])
def test_schedules_by_hand(data, kind, tmp_path):
    run(dataset=data / "toy", out_dir=tmp_path, lr_scheduler=kind, **FLAT)
    assert [r["lr"] for r in rows(tmp_path)[0]] == pytest.approx([expected(kind, s) for s in range(20)])


def test_decay_lr_and_the_length_of_the_decay(data, tmp_path):
    run(dataset=data / "toy", out_dir=tmp_path / "a", decay_lr=True, **FLAT)
    assert [r["lr"] for r in rows(tmp_path / "a")[0]] == pytest.approx([expected("cosine", s) for s in range(20)])
    longer = FLAT | {"max_iters": 30, "lr_decay_match_max_iters": False, "lr_decay_iters": 20}
    run(dataset=data / "toy", out_dir=tmp_path / "b", lr_scheduler="linear", decay_lr=True, **longer)
    found = [r["lr"] for r in rows(tmp_path / "b")[0]]
    assert found == pytest.approx([expected("linear", s) for s in range(20)] + [1e-3] * 10)


def test_plateau_lowers_the_rate_and_remembers_it(data, tmp_path):
    """With next to no rate nothing gets better: of each third evaluation on, half is left of it."""
    options = {"lr_scheduler": "plateau", "plateau_factor": 0.5, "plateau_patience": 1, "learning_rate": 1e-30,
               "min_lr": 0, "eval_interval": 2, "max_iters": 16}  # fmt: skip
    resumes_exactly(tmp_path, dataset=data / "toy", middle=8, **options)
    rates = [r["lr"] for r in rows(tmp_path)[0]]
    assert rates == pytest.approx([1e-30 * 0.5 ** (step // 4) for step in range(16)], rel=1e-6, abs=0)


def test_what_is_no_decay_and_no_loss_lowers_no_rate():
    assert lr_at(19, "wsd", lr=0.1, total=20, decay_frac=0.0) == 0.1
    plateau = Plateau(factor=0.5, patience=1)
    for loss in (math.nan, 2.0, math.inf, 2.0, math.nan, 2.0):  # two real ones after the best
        plateau.update(loss)
    assert plateau.state == {"scale": 0.5, "best": 2.0, "waited": 0}


@pytest.mark.full
@pytest.mark.parametrize("kind", SCHEDULES)
def test_every_schedule_learns_and_resumes_exactly(data, kind, tmp_path):
    resumes_exactly(tmp_path / "a", dataset=data / "toy", lr_scheduler=kind, warmup_iters=2)
    run(dataset=data / "toy", out_dir=tmp_path / "b", lr_scheduler=kind, max_iters=150, batch_size=32, min_lr=3e-3,
        eval_interval=50)  # fmt: skip
    train_rows, _ = rows(tmp_path / "b")
    assert train_rows[-1]["loss"] < train_rows[0]["loss"] - 0.5


def test_lists(capsys):
    for what, names in [("optimizers", ["adamw", "lion"]), ("schedules", ["wsd"]), ("variants", ["swiglu", "alibi"])]:
        train.main(config.parse(Options, ["--list", what], doc=""))
        said = capsys.readouterr().out.split()
        assert all(name in said for name in names)


# -----------------------------------------------------------------------------
# starting points


def gpt2_folder(folder, **changes):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    shape = {"vocab_size": 11, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 4, "initializer_range": 0.2}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**(shape | changes))).eval()
    model.save_pretrained(folder)
    return model


def load(path):
    state = checkpoint.load(path)
    model = GPT(GPTConfig(**state["model_config"])).eval()
    model.load_state_dict(state["model"])
    return model


START = {"small": False, "batch_size": 4, "eval_iters": 2, "device": "cpu", "dtype": "float32", "warmup_iters": 0,
         "log_interval": 1, "eval_interval": 4, "max_iters": 0}  # fmt: skip


def test_from_a_gpt2_folder(data, tmp_path):
    """Its shape, its gelu, its bias; block_size crops; the logits are those of transformers."""
    reference = gpt2_folder(tmp_path / "gpt2")
    run(dataset=data / "toy", init_from=tmp_path / "gpt2", out_dir=tmp_path / "a", **START)
    assert load(tmp_path / "a" / "ckpt.pt").config.block_size == 16, "no more positions than it has"
    run(dataset=data / "toy", init_from=tmp_path / "gpt2", out_dir=tmp_path / "b", block_size=8, **START)
    model, ids = load(tmp_path / "b" / "ckpt.pt"), torch.randint(0, 11, (3, 8))
    assert (model.config.block_size, model.config.activation_variant, model.config.bias) == (8, "gelu_tanh", True)
    with torch.no_grad():
        torch.testing.assert_close(model(ids), reference(ids).logits, rtol=1e-4, atol=1e-4)
    resolved = read_yaml(tmp_path / "b" / "config.yaml")
    assert (resolved["n_layer"], resolved["n_head"], resolved["activation_variant"]) == (2, 4, "gelu_tanh")


def test_a_reward_models_blocks_compute_here_what_they_did_there(data, tmp_path):
    """Not its sizes alone: its positions, activation and MLP, too."""
    own = {"position": "rotary", "activation_variant": "squared_relu", "mlp_variant": "swiglu", "use_qk_norm": True}
    run(dataset=data / "toy", out_dir=tmp_path / "a", n_layer=1, n_head=2, n_embd=8, block_size=8, **own, **START)
    state = checkpoint.load(tmp_path / "a" / "ckpt.pt")
    state |= {"kind": "reward", "model_config": {"backbone": "gpt", **state["model_config"]}}
    checkpoint.save(tmp_path / "reward.pt", state)
    run(dataset=data / "toy", init_from=tmp_path / "reward.pt", transfer="attn,mlp,norm", out_dir=tmp_path / "b", **START)
    config = load(tmp_path / "b" / "ckpt.pt").config
    assert {name: getattr(config, name) for name in own} == own


def test_from_gpt2_learns_and_resumes_exactly(data, tmp_path):
    gpt2_folder(tmp_path / "gpt2")
    options = START | {"dataset": data / "toy", "init_from": tmp_path / "gpt2", "block_size": 8, "learning_rate": 1e-2}
    resumes_exactly(tmp_path / "a", **(options | {"max_iters": STEPS}))
    run(**(options | {"max_iters": 100, "out_dir": tmp_path / "b", "batch_size": 32}))
    train_rows, _ = rows(tmp_path / "b")
    assert train_rows[-1]["loss"] < train_rows[0]["loss"] - 0.5


def test_the_name_gpt2_and_its_sizes(data, tmp_path, monkeypatch):
    """As on a machine where transformers has downloaded them."""
    for name, width in (("gpt2", 16), ("gpt2-medium", 32)):
        home = tmp_path / "hub" / f"models--{name}"
        gpt2_folder(home / "snapshots" / "abc", n_embd=width)
        (home / "refs").mkdir()
        (home / "refs" / "main").write_text("abc")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for flags, width in ((["--init_from=gpt2"], 16), (["--init_from=gpt2-medium"], 32),
                         (["--init_from=gpt2", "--gpt2_type=gpt2-medium"], 32)):  # fmt: skip
        run(*flags, dataset=data / "toy", out_dir=tmp_path / "a", **START)
        assert load(tmp_path / "a" / "ckpt.pt").config.n_embd == width


def test_ids_beyond_the_vocabulary_of_the_weights_are_named(data, tmp_path, capsys):
    gpt2_folder(tmp_path / "gpt2", vocab_size=10)
    line = refused(capsys, tmp_path / "no", dataset=data / "toy", init_from=tmp_path / "gpt2", **START)
    assert "train.bin: id 10 at offset" in line and "vocab_size is 10 in the weights to start from (--transfer attn mlp norm" in line


def test_another_tokenizer_is_named_before_the_ids_that_it_made(data, tmp_path, capsys):
    for name, chars in (("few", "ab\n"), ("many", "abcdefgh\n")):
        bins.write(tmp_path / name, len(chars), [0, 1] * 50, [len(chars) - 1] * 40, {"kind": "char", "chars": list(chars)})
    run(dataset=tmp_path / "few", out_dir=tmp_path / "run")
    line = refused(capsys, tmp_path / "no", dataset=tmp_path / "many", init_from=tmp_path / "run", **START)
    assert "the tokenizer of many" in line and line.endswith("or --transfer attn mlp norm")


@pytest.mark.parametrize("option, message", [
    ("--n_layer=3", "--n_layer is 2 in"),
    ("--bias=False", "--bias is True in"),
    ("--block_size=32", "more than the 16 positions"),
])  # fmt: skip
def test_weights_decide_their_shape(data, option, message, tmp_path, capsys):
    gpt2_folder(tmp_path / "gpt2")
    options = START | {"dataset": data / "toy", "init_from": tmp_path / "gpt2"}
    assert message in refused(capsys, tmp_path / "no", option, **options)


def test_from_a_nanogpt_checkpoint(data, tmp_path):
    torch.manual_seed(0)
    args = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 8, "bias": False, "vocab_size": 11, "dropout": 0.0}
    model = GPT(GPTConfig(**args))
    state = {f"_orig_mod.{n}": w for n, w in model.state_dict().items()}
    torch.save({"model": state, "model_args": args, "optimizer": {}, "iter_num": 9}, tmp_path / "nano.pt")
    run(dataset=data / "toy", init_from=tmp_path / "nano.pt", out_dir=tmp_path / "a", **START)
    assert equal(weights(tmp_path / "a" / "ckpt.pt"), model.state_dict())


def test_from_a_previous_run(data, tmp_path):
    """prev_run, with its folder and file, and the same by its path: the weights, and nothing else of it."""
    run(dataset=data / "toy", out_dir=tmp_path / "old", n_layer=2, save_major_ckpt_interval=8)
    flags = ["--init_from=prev_run", f"--prev_run_ckpt={tmp_path / 'old'}"]
    run(*flags, dataset=data / "toy", out_dir=tmp_path / "a", **START)
    assert equal(weights(tmp_path / "a" / "ckpt.pt"), weights(tmp_path / "old" / "ckpt.pt"))
    assert checkpoint.load(tmp_path / "a" / "ckpt.pt")["step"] == 0
    run(*flags, "--init_from_ckpt=ckpt_8.pt", dataset=data / "toy", out_dir=tmp_path / "b", **START)
    assert equal(weights(tmp_path / "b" / "ckpt.pt"), weights(tmp_path / "old" / "ckpt_8.pt"))
    run(f"--init_from={tmp_path / 'old' / 'ckpt_8.pt'}", dataset=data / "toy", out_dir=tmp_path / "c", **START)
    assert equal(weights(tmp_path / "c" / "ckpt.pt"), weights(tmp_path / "old" / "ckpt_8.pt"))


def test_parts_of_a_previous_run(data, tmp_path, capsys):
    """The named parts are taken, in their shape; the others are new and fit the data."""
    run(dataset=data / "wide", out_dir=tmp_path / "old", n_layer=2, position="rotary")
    old = weights(tmp_path / "old" / "ckpt.pt")
    run("--transfer", "attn,ffn", dataset=data / "toy", init_from=tmp_path / "old", out_dir=tmp_path / "a", **START)
    new, cfg = weights(tmp_path / "a" / "ckpt.pt"), checkpoint.load(tmp_path / "a" / "ckpt.pt")["model_config"]
    assert (cfg["n_layer"], cfg["position"], cfg["vocab_size"]) == (2, "rotary", 11)
    for name, w in new.items():
        taken = ".attn." in name or ".mlp." in name
        assert (name in old and old[name].shape == w.shape and torch.equal(old[name], w)) == taken, name
    parts = {"dataset": data / "toy", "init_from": tmp_path / "old", "n_head": 1, **START}
    assert "--n_head is 2 in " in refused(capsys, tmp_path / "no", transfer="attn", **parts)  # other heads, of one shape
    run("--transfer", "mlp", out_dir=tmp_path / "b", **parts)


def test_more_context_than_a_table_of_positions_that_is_left_behind(data, tmp_path):
    run(dataset=data / "toy", out_dir=tmp_path / "old")
    run("--transfer", "attn", "mlp", "norm", "embed", dataset=data / "toy", init_from=tmp_path / "old",
        position="rotary", block_size=16, out_dir=tmp_path / "a", **START)  # fmt: skip
    new, old = weights(tmp_path / "a" / "ckpt.pt"), weights(tmp_path / "old" / "ckpt.pt")
    assert equal(new, {name: w for name, w in old.items() if name != "transformer.wpe.weight"})


def test_another_tokenizer_is_refused(data, tmp_path, capsys):
    run(dataset=data / "toy", out_dir=tmp_path / "old")
    other = tmp_path / "other"
    shutil.copytree(data / "toy", other)
    meta = json.loads((other / "meta.json").read_text())
    (other / "meta.json").write_text(json.dumps(meta | {"tokenizer": {"kind": "char", "chars": list("lmnopqrstuv")}}))
    for parts in (["all"], ["all", "norm"], ["attn", "embeddings"]):
        line = refused(capsys, tmp_path / "no", "--transfer", *parts, dataset=other, init_from=tmp_path / "old", **START)
        assert "the tokenizer of other (char, " in line and "--transfer attn mlp norm" in line
    run("--transfer", "attn", "mlp", "norm", dataset=other, init_from=tmp_path / "old", out_dir=tmp_path / "a", **START)
    (other / "meta.json").write_text(json.dumps(meta))
    line = refused(capsys, tmp_path / "a", "--init_from=resume", small=False)  # where there is nothing to transfer
    assert "the tokenizer of other (char, " in line and "transfer" not in line


def test_a_longer_run_repeats_and_skips_no_batch_of_a_moving_mixture(data, tmp_path, monkeypatch):
    """With more steps the mixture would have moved more slowly, and have given other batches so far."""
    taken, starts = [], bins.starts
    monkeypatch.setattr(bins, "starts", lambda *a: taken.append((a[5], a[6])) or starts(*a))
    moving = ["--dataset_sampling_probs", "1", "9", "--dataset_sampling_probs_final", "9", "1"]
    run(*two(data, *moving), out_dir=tmp_path, max_iters=40, eval_interval=1000)
    run("--init_from=resume", "--max_iters=80", "--save_major_ckpt_interval=60", out_dir=tmp_path, small=False)
    for name in ("train toy", "train wide"):
        turns = [turn for purpose, turn in taken if purpose == name]
        assert turns == list(range(len(turns))) and len(turns) > 20
    drawn = [(purpose, turn) for purpose, turn in taken if purpose.startswith("train ")]
    run("--init_from=resume", "--init_from_ckpt=ckpt_60.pt", "--replay_step=70", out_dir=tmp_path, small=False)
    assert taken[-1] == drawn[70], "what is replayed is the batch that the step had"


def test_a_data_set_named_twice_gives_each_its_own_batches(data, tmp_path, monkeypatch):
    purposes, starts = set(), bins.starts
    monkeypatch.setattr(bins, "starts", lambda *a: purposes.add(a[5]) or starts(*a))
    run("--training_mode=multidataset", "--dataset_list", data / "toy", data / "toy", out_dir=tmp_path)
    assert {"train toy", "train toy-2"} <= purposes
    assert "val_loss_toy-2" in rows(tmp_path)[1][0]


def test_each_data_set_s_tokenizer_is_compared():
    """Also where a mixture starts from weights of one data set, or one data set from weights of a mixture."""
    a, b = ({"kind": "char", "chars": list(chars)} for chars in ("abc", "xyz"))

    def streams(*tokenizers):
        return [{"name": f"set{i}", "tokenizer": t} for i, t in enumerate(tokenizers)]

    for now, before in (([a, a], [a]), ([a], [a, a]), ([b], [a, b]), ([a, b], [a, b]), ([a, None], [a]), ([b], [None])):
        train_args.check_tokenizers(streams(*now), {"streams": streams(*before)}, "old.pt")
        train_args.check_tokenizers(streams(*now[:1]), streams(now[0])[0], "old.pt")  # weights from elsewhere
    for now, before, which in (([a, b], [a], 1), ([b], [a, a], 0), ([a, b], [b, a], 0)):
        with pytest.raises(ValueError, match=f"the tokenizer of set{which} "):
            train_args.check_tokenizers(streams(*now), {"streams": streams(*before)}, "old.pt")


def test_a_folder_for_transformers_says_what_its_ids_mean(data, tmp_path):
    """Data of another tokenizer than that beside the weights trained nonsense without a word."""
    letters, others = ({"kind": "char", "chars": list(chars)} for chars in ("\n abc", "\n abd"))
    merged = {"kind": "tiktoken", "name": "merges", "merges": "t h\nth e\n\u0120 the\n"}
    model, found = GPTConfig(vocab_size=300, block_size=8, n_layer=1, n_head=2, n_embd=16), {}
    for about in (letters, others, merged, {"kind": "byte"}):
        name = about.get("name", "".join(about.get("chars", "byte"))).strip()
        hf.save(tmp_path / name, "gpt2", vars(model), GPT(model).state_dict())
        export_hf.write_tokenizer(tmp_path / name, about, 8, causal=True)
        found[name] = about, train_args.known_words(hf.source(tmp_path / name), str(tmp_path / name))
    for mine, (ours, _) in found.items():
        for name, (_, meta) in found.items():
            again = meta["tokenizer"] | {"json": json.dumps(json.loads(meta["tokenizer"]["json"]), indent=1)}
            for now, fits in ((ours, name == mine), (again, True)):
                with nullcontext() if fits else pytest.raises(ValueError, match="of set .* is not that of folder"):
                    train_args.check_tokenizers([{"name": "set", "tokenizer": now}], meta, "folder")
    (tmp_path / "byte" / "tokenizer.json").unlink()  # weights alone say nothing
    run(f"--init_from={tmp_path / 'byte'}", dataset=data / "toy", out_dir=tmp_path / "run", max_iters=1)


def test_what_may_change_on_a_resume(data, tmp_path, capsys):
    run(dataset=data / "toy", out_dir=tmp_path)
    run("--init_from=resume", "--max_iters=14", "--learning_rate=5e-3", out_dir=tmp_path, small=False)
    said = capsys.readouterr().out
    assert "max_iters: 12 -> 14" in said and "learning_rate: 0.01 -> 0.005" in said
    assert [r["lr"] for r in rows(tmp_path)[0]][-3:] == [1e-2, 5e-3, 5e-3]
    for flag in ("--n_layer=2", f"--dataset={data / 'wide'}", "--seed=1", "--block_size=4", "--dropout=0.5",
                 "--optimizer=lion"):  # fmt: skip
        line = refused(capsys, tmp_path, "--init_from=resume", flag, small=False)
        assert "in the run to resume and cannot become" in line
