"""The procedural loop: documented defaults and configs, the curriculum, what is judged, kept and refused."""

import json
import types

import numpy as np
import pytest
import torch

import procedural_data
from core import checkpoint, config, run, tracker
from core.values import read_yaml
from procedural_data import Spec
from procedural_pretraining import cli
from procedural_pretraining.judge import averages, judge, show_sample
from procedural_pretraining.settings import lengths, preset, settle
from tests.loops import PROCEDURAL, TRAIN
from tests.test_loops import die, same

CONFIGS = config.Path(cli.__file__).parent / "configs"
TINY = ["--gpt2_size=2_2_16", "--seq_length=4", "--vocab_size=8", "--k=3", "--batch_size=4", "--dtype=float32",
        "--gradient_accumulation_steps=1", "--dropout=0", "--eval_samples=8", "--device=cpu"]  # fmt: skip


def parse(*argv):
    return config.parse(cli.Options, preset([str(a) for a in argv]), doc=cli.__doc__)


def go(folder, *argv):
    cli.main(parse(*TINY, f"--save_dir={folder}", *argv))


def settled(*argv):
    args = parse(*argv)
    settle(args)
    return args


# -----------------------------------------------------------------------------
# options


def test_documented_defaults():
    both = {"gpt2_size": "2_4_16", "vocab_size": 21, "batch_size": 64, "lr": 5e-5, "weight_decay": 0.01,
            "betas": [0.9, 0.999], "dropout": 0.1, "max_grad_norm": 1.0, "seed": 42, "gradient_accumulation_steps": 1,
            "curriculum_start": 2, "curriculum_step_size": 2, "curriculum_mastery_threshold": 0.99,
            "use_curriculum": False, "save_total_limit": 1, "wandb_enable": False}  # fmt: skip
    algorithmic = {"seq_length": 20, "steps_per_epoch": 100, "epochs": 10000, "max_steps": 20000, "warmup_steps": 1000,
                   "lr_schedule": "cosine", "save_every_steps": 10, "patience": 50}  # fmt: skip
    dyck = {"k": 16, "p_open": 0.5, "max_depth": 16, "seq_length": 128, "steps_per_epoch": 1000, "epochs": 1000,
            "max_steps": 1000000, "warmup_steps": 0, "lr_schedule": "constant", "save_every_steps": 100,
            "patience": None}  # fmt: skip
    for task, own in [("sort", algorithmic), ("stack", algorithmic), ("dyck", dyck), ("dyck_shuffle", dyck)]:
        args = settled("--task", task)
        assert {k: getattr(args, k) for k in {**both, **own}} == {**both, **own}
    assert settled("--task", "dyck", "--patience", "7", "--seq_length", "64").patience == 7


@pytest.mark.parametrize("task", sorted({f.stem for f in CONFIGS.glob("*.yaml")} & set(procedural_data.TASKS)))
def test_shipped_config(task, tmp_path):
    """What facts say of its size; and it runs small by flags."""
    text = (CONFIGS / f"{task}.yaml").read_text()
    values, args = read_yaml(CONFIGS / f"{task}.yaml"), settled("--config", CONFIGS / f"{task}.yaml")
    size = {"gpt2_size": "12_12_768", "lr": 5e-4, "lr_schedule": "constant", "warmup_steps": 0, "weight_decay": 0.1,
            "save_every_steps": 500, "save_total_limit": 20, "wandb_enable": False, "task": task}  # fmt: skip
    if task.startswith("dyck"):
        size.update(k=64, seq_length=2048, batch_size=4, gradient_accumulation_steps=8, max_steps=501, patience=50)
    else:
        size.update(vocab_size=100, seq_length=64, batch_size=64, max_steps=2501)
    assert {k: getattr(args, k) for k in size} == size
    assert min(args.max_steps, args.epochs * args.steps_per_epoch) == size["max_steps"]
    assert f"--config procedural_pretraining/configs/{task}.yaml" in text and set(values) <= set(vars(args))
    cli.main(parse("--config", CONFIGS / f"{task}.yaml", *TINY, f"--save_dir={tmp_path}", "--max_steps=2"))
    rows = tracker.read(tmp_path / "eval.csv")
    assert [r["step"] for r in rows] == [0, 2] and (tmp_path / "scores.png").stat().st_size > 5000
    assert run.read_status(tmp_path)["state"] == "finished"


def test_scores_of_a_length_that_a_resume_added_begin_there(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    from procedural_pretraining.judge import draw_scores

    table, drawn = tracker.Table(tmp_path / "eval.csv", 0), []
    table.add({"step": 0, "length": 8, "accuracy": 0.25})
    table.add({"step": 5, "length": 8, "accuracy": 0.5, "accuracy_12": 0.125})
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda fig, *a, **how: drawn.append(fig) or save(fig, *a, **how))
    draw_scores(tmp_path)
    lines = {line.get_label(): line.get_xydata().tolist() for line in drawn[0].axes[0].lines}
    assert lines == {"accuracy": [[0, 0.25], [5, 0.5]], "accuracy 12": [[5, 0.125]]}


def test_preset_lies_over_the_config_and_under_the_flags():
    small = read_yaml(CONFIGS / "small.yaml")
    args = parse("--preset", "small", "--config", CONFIGS / "sort.yaml", "--batch_size", "3")
    assert args.gpt2_size == small["gpt2_size"] and args.task == "sort" and args.batch_size == 3
    assert parse("--preset=small").gpt2_size == small["gpt2_size"]
    for bad in (["--preset", "tiny"], ["--preset"], ["--preset", "sort"]):
        with pytest.raises(ValueError, match="preset"):
            parse(*bad)


def test_older_configs_are_accepted(tmp_path, capsys):
    old = {"task": "set", "num_workers": 16, "resume_run_id": "abc", "device": 0, "curriculum_step_epochs": 10}
    (tmp_path / "old.json").write_text(json.dumps(old))
    flags = [f for f in TINY if not f.startswith("--device")]
    cli.main(parse("--config", tmp_path / "old.json", *flags, f"--save_dir={tmp_path / 'out'}", "--max_steps=1"))
    out = capsys.readouterr()
    assert "num_workers 16" in out.out
    assert torch.cuda.is_available() or "no CUDA" in out.err


@pytest.mark.parametrize("argv, message", [
    (["--task=dyck", "--seq_length=5"], "even"),
    (["--task=dyck", "--use_curriculum", "--curriculum_start=3"], "--curriculum_start 3, .*even"),
    (["--position=rotary", "--eval_lengths", "8", "0"], "--eval_lengths: "),
    (["--task=dyck", "--use_curriculum", "--curriculum_step_size=1"], "even"),
    (["--task=dyck", "--k=1", "--seq_length=2"], "single question"),
    (["--use_curriculum", "--curriculum_start=9"], "curriculum_start"),
    (["--vocab_size=1"], "vocab_size"),
    (["--gpt2_size=2_4"], "gpt2_size"), (["--gpt2_size=2_3_16"], "n_head"),
    (["--eval_lengths", "8"], "rotary"), (["--eval_lengths", "8", "--position=learned+rotary"], "rotary"),
    (["--run_name=../../x"], "run_name"),
    (["--resume"], "nothing to resume"),
    (["--init_from=nowhere"], "nowhere"),
])  # fmt: skip
def test_bad_input_is_one_line_and_leaves_nothing(argv, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        go(tmp_path / "out", *argv)
    run.exits.held and run.exits.held.leave(2)
    run.exits.held = None
    assert not list(tmp_path.rglob("*.pt")) and not list(tmp_path.rglob("*.csv"))


@pytest.mark.parametrize("batch", [1, 64])
def test_more_samples_than_there_are_shows_those_there_are(batch, tmp_path, capsys):
    go(tmp_path, "--max_steps=1", "--eval_samples=6", "--show_samples=9", f"--batch_size={batch}")
    assert sum(" -> " in line for line in capsys.readouterr().out.splitlines()) == 2 * 6  # at the start, at the end


def test_a_name_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="--run_name x is a link"):
        go(tmp_path / "out", "--run_name=x")
    assert not list((tmp_path / "elsewhere").iterdir())


# -----------------------------------------------------------------------------
# what is kept


def test_a_second_run_moves_the_first_aside(tmp_path):
    go(tmp_path / "a", "--max_steps=2")
    go(tmp_path / "a", "--max_steps=3")
    assert checkpoint.load(tmp_path / "a" / "ckpt.pt")["step"] == 3
    assert checkpoint.load(tmp_path / "a.1" / "ckpt.pt")["step"] == 2


@pytest.mark.parametrize("limit, kept", [(1, []), (2, [6, 8]), (0, [0, 2, 4, 6, 8])])
def test_save_total_limit(limit, kept, tmp_path):
    go(tmp_path, "--max_steps=9", "--save_every_steps=2", f"--save_total_limit={limit}")
    folders = {p.name: checkpoint.load(p / "ckpt.pt")["step"] for p in tmp_path.glob("checkpoint-*")}
    assert folders == {f"checkpoint-{n}": n for n in kept}
    assert checkpoint.load(tmp_path / "ckpt.pt")["step"] == 9
    assert checkpoint.load(tmp_path / "best.pt")["best"] is not None
    assert checkpoint.load(checkpoint.find(tmp_path / "checkpoint-8") if limit == 2 else tmp_path / "ckpt.pt")


def test_a_resume_keeps_as_many_checkpoints(tmp_path):
    go(tmp_path, "--max_steps=6", "--save_every_steps=2", "--save_total_limit=3", "--lr=0")
    go(tmp_path, "--resume")
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]


def test_patience_ends_the_run(tmp_path, capsys):
    go(tmp_path, "--max_steps=50", "--save_every_steps=2", "--patience=3", "--lr=0")
    rows = tracker.read(tmp_path / "eval.csv")
    assert [r["step"] for r in rows] == [0, 2, 4, 6]  # the first is the best for ever, then three that are no better
    assert checkpoint.load(tmp_path / "ckpt.pt")["loop"]["waited"] == 3
    assert "stopped at step 6: no better accuracy in 3 evaluations" in capsys.readouterr().out


def test_of_equal_accuracies_the_one_with_the_lower_loss_is_best(tmp_path, monkeypatch):
    """100% comes early, and --init_from takes best.pt: it must not stay there while the loss goes on falling."""
    found = iter([(0.5, 1.0), (0.2, 1.0), (0.3, 1.0), (0.1, 1.0), (0.05, 0.9)])
    monkeypatch.setattr(cli, "averages", lambda *_: dict(zip(("val loss", "accuracy"), next(found), strict=True)))
    for steps, best, more in ((2, 1, []), (9, 3, ["--resume"])):
        go(tmp_path, f"--max_steps={steps}", "--save_every_steps=1", "--patience=4", *more)
        assert checkpoint.load(tmp_path / "best.pt")["step"] == best
    assert checkpoint.load(tmp_path / "ckpt.pt")["step"] == 4  # patience counts accuracies


def test_evaluation_and_saving_have_intervals_of_their_own(tmp_path):
    go(tmp_path, "--max_steps=9", "--save_every_steps=2", "--eval_interval=4", "--save_total_limit=0", "--lr=0",
       "--log_interval=3")  # fmt: skip
    assert [r["step"] for r in tracker.read(tmp_path / "eval.csv")] == [0, 4, 8, 9]
    assert [r["step"] for r in tracker.read(tmp_path / "train.csv")] == [0, 3, 6, 8]
    assert len(list(tmp_path.glob("checkpoint-*"))) == 5


def test_epochs_bound_the_run(tmp_path):
    go(tmp_path, "--epochs=2", "--steps_per_epoch=3", "--save_every_steps=100")
    assert checkpoint.load(tmp_path / "ckpt.pt")["step"] == 6


# -----------------------------------------------------------------------------
# curriculum

GROW = ["--task=reverse", "--seq_length=8", "--use_curriculum", "--save_every_steps=3", "--curriculum_step_size=3",
        "--log_interval=1", "--lr=1e-2", "--warmup_steps=2"]  # fmt: skip


def test_the_curriculum_grows_at_mastery_and_only_then(tmp_path):
    assert lengths(parse(*TINY, *GROW)) == [2, 5, 8]
    go(tmp_path / "easy", *GROW, "--max_steps=12", "--curriculum_mastery_threshold=0")
    rows = tracker.read(tmp_path / "easy" / "eval.csv")
    assert [r["length"] for r in rows] == [2, 5, 8, 8, 8]
    loop = checkpoint.load(tmp_path / "easy" / "ckpt.pt")["loop"]
    assert loop["history"] == [[0, 2], [0, 5], [3, 8]] and loop["length"] == 8 and loop["since"] == 3
    assert [r["length"] for r in tracker.read(tmp_path / "easy" / "train.csv")] == [5] * 3 + [8] * 9
    go(tmp_path / "hard", *GROW, "--max_steps=12", "--curriculum_mastery_threshold=1")
    assert {r["length"] for r in tracker.read(tmp_path / "hard" / "eval.csv")} == {2}
    go(tmp_path / "slow", *GROW, "--max_steps=12", "--curriculum_mastery_threshold=0", "--curriculum_step_epochs=3",
       "--steps_per_epoch=2")  # fmt: skip
    assert [r["length"] for r in tracker.read(tmp_path / "slow" / "eval.csv")] == [2, 2, 2, 5, 5]


def test_a_curriculum_with_another_step_goes_on_from_the_length_it_was_at(tmp_path):
    go(tmp_path, *GROW, "--max_steps=2", "--curriculum_mastery_threshold=0", "--curriculum_step_size=1")
    assert checkpoint.load(tmp_path / "ckpt.pt")["loop"]["length"] == 4  # from 2 by threes comes 5
    go(tmp_path, *GROW, "--resume", "--max_steps=6", "--curriculum_mastery_threshold=0")
    assert [r["length"] for r in tracker.read(tmp_path / "eval.csv")] == [2, 4, 7]


@pytest.mark.full
def test_a_killed_curriculum_resumes_exactly(tmp_path, monkeypatch):
    """Lengths, losses, weights and patience; a checkpoint that forgot the length must end elsewhere."""
    flags = [*TINY, *GROW, "--max_steps=14", "--curriculum_mastery_threshold=0.1", "--eval_interval=2"]
    loop = PROCEDURAL
    loop.run([*flags, f"--save_dir={tmp_path / 'a'}"])
    for name, forget in (("b", False), ("c", True)):
        out = [*flags, f"--save_dir={tmp_path / name}"]
        die(loop, out, monkeypatch, 8)
        if forget:
            path = tmp_path / name / "ckpt.pt"
            state = checkpoint.load(path)
            assert state["loop"]["length"] > 2
            state["loop"]["length"] = 2
            checkpoint.save(path, state, keep=False)
        loop.run([*out, "--resume"])
        a, b = (checkpoint.load(tmp_path / n / "ckpt.pt") for n in ("a", name))
        assert same(a["model"], b["model"]) != forget
        if not forget:
            assert a["best"] == b["best"]
            assert {k: v for k, v in a["loop"].items() if k != "resumes"} == \
                {k: v for k, v in b["loop"].items() if k != "resumes"}  # fmt: skip
            for csv, key in (("train.csv", "loss"), ("train.csv", "length"), ("eval.csv", "length")):
                one, two = ([r[key] for r in tracker.read(tmp_path / n / csv)] for n in ("a", name))
                assert one == two


def test_dyck_goes_beyond_a_length_that_cannot_be_generalised(tmp_path):
    """At length 2 every word is the only one with its brackets: held-out ones cannot be known."""
    go(tmp_path, "--task=dyck", "--k=6", "--use_curriculum", "--curriculum_mastery_threshold=0.9", "--lr=2e-2",
       "--max_steps=80", "--save_every_steps=20", "--batch_size=32")  # fmt: skip
    assert max(r["length"] for r in tracker.read(tmp_path / "eval.csv")) == 4


# -----------------------------------------------------------------------------
# resuming


CHANGES = ["--task=sort", "--seed=1", "--vocab_size=9", "--batch_size=8", "--gpt2_size=1_2_16", "--curriculum_start=4"]


@pytest.mark.parametrize("change", CHANGES)
def test_what_may_not_change_on_a_resume(change, tmp_path):
    go(tmp_path, "--task=reverse", "--max_steps=2")
    with pytest.raises(ValueError, match=change[2:].split("=")[0]):
        cli.main(parse("--task=reverse", f"--save_dir={tmp_path}", "--resume", change))
    run.exits.held.leave(2)
    assert checkpoint.load(tmp_path / "ckpt.pt")["step"] == 2


def test_a_finished_run_goes_on_with_more_steps(tmp_path, capsys):
    go(tmp_path, "--task=reverse", "--max_steps=2")
    cli.main(parse("--task=reverse", f"--save_dir={tmp_path}", "--resume", "--max_steps=4"))
    assert "max_steps: 2 -> 4" in capsys.readouterr().out
    assert checkpoint.load(tmp_path / "ckpt.pt")["step"] == 4


# -----------------------------------------------------------------------------
# judging


class Oracle:
    """Knows the process: its logits are the log of the odds."""

    def __init__(self, spec):
        self.spec, self.training = spec, False
        self.config = types.SimpleNamespace(block_size=spec.length, cropped=False)
        self.lm_head = torch.nn.Linear(1, 1)

    def eval(self):
        return self

    train = new_cache = lambda self, *args: None

    def __call__(self, idx, cache=None):
        tokens = np.pad(idx.numpy(), ((0, 0), (0, 1)))
        odds = torch.from_numpy(self.spec.module.odds(tokens, self.spec))
        return torch.nn.functional.pad(odds, (0, 1)).log().clamp(min=-1e9)


@pytest.mark.parametrize("spec", [Spec("dyck", 12, k=3), Spec("dyck_shuffle", 11, k=3, max_depth=4)], ids=str)
def test_whoever_knows_the_process_has_its_best_loss(spec):
    row, question = procedural_data.rows(spec, 0, "val", 0, 40)
    sums, answers = judge(Oracle(spec), spec, row, question)
    scores = averages(spec, sums.tolist(), 40)
    assert scores["val loss"] == pytest.approx(scores["best loss"], rel=1e-5) and scores["best loss"] > 0.3
    assert scores["mastery"] == pytest.approx(1) and scores["legal"] == 1 and 0.3 < scores["accuracy"] < 1
    spoilt = Spec(spec.task, spec.length, k=3, p_open=0.9, max_depth=spec.max_depth)
    sums, _ = judge(Oracle(spoilt), spec, row, question)
    worse = averages(spec, sums.tolist(), 40)
    assert worse["val loss"] > worse["best loss"] * 1.05 and worse["mastery"] < 0.95


@pytest.mark.parametrize("task", ["dyck", "dyck_shuffle"])
def test_mastery_is_of_all_samples_however_they_are_batched_and_pad_earns_none(task):
    spec = Spec(task, 12, k=2)
    spoilt = Spec(task, 12, k=2, p_open=0.9)
    row, question = procedural_data.rows(spec, 0, "val", 0, 40)
    ways = [sum(judge(Oracle(spoilt), spec, row[i : i + n], question)[0] for i in range(0, 40, n)) for n in (40, 8, 1)]
    masteries = [averages(spec, sums.tolist(), 40)["mastery"] for sums in ways]
    assert masteries == pytest.approx([masteries[0]] * 3, rel=1e-9) and masteries[0] < 1

    class Silent(Oracle):
        def __call__(self, idx, cache=None):
            return torch.nn.functional.one_hot(torch.full_like(idx, self.spec.pad), self.spec.pad + 1).float()

    sums, _ = judge(Silent(spec), spec, row, question)
    assert averages(spec, sums.tolist(), 40)["mastery"] == 0


def test_best_loss_is_the_entropy_of_the_process():
    """Over all words of a small language, by their probabilities, against the mean over drawn ones."""
    from tests.test_procedural import words

    spec = Spec("dyck_shuffle", 6, k=2, max_depth=3)
    law = words(spec.task, spec)
    exact = -sum(p * np.log(p) for p in law.values()) - np.log(spec.k)  # the first token is given
    drawn = spec.module.draw(np.random.default_rng(0), 40_000, spec)
    odds = spec.module.odds(drawn, spec)
    taken = np.take_along_axis(odds, drawn[:, 1:, None].astype(np.int64), axis=2)
    assert -np.log(taken).sum() / 40_000 == pytest.approx(exact, rel=0.01)


def test_exact_match_is_by_greedy_answers_that_pass_the_check(tmp_path):
    """A half-trained model: some answers right, some not; greedy answers agree with teacher forcing."""
    go(tmp_path, "--task=set", "--seq_length=3", "--vocab_size=6", "--max_steps=200", "--lr=1e-2", "--batch_size=32",
       "--save_every_steps=200", "--warmup_steps=20", "--gpt2_size=2_4_32")  # fmt: skip
    state = checkpoint.load(tmp_path / "ckpt.pt")
    model = cli.GPT(cli.GPTConfig(**state["model_config"]))
    model.load_state_dict(state["model"])
    spec = Spec("set", 3, vocab_size=6)
    row, question = procedural_data.rows(spec, 1, "val", 0, 200)
    sums, answers = judge(model, spec, row, question)
    x, y = map(torch.from_numpy, procedural_data.targets(spec, row, question))
    right = ((model(x).argmax(-1) == y) | (y < 0)).all(1)
    assert 20 < right.sum() < 200 and int(sums[6]) == int(right.sum())
    brute = [list(dict.fromkeys(r[:3])) == a for r, a in zip(row.tolist(), answers, strict=True)]
    assert brute == right.tolist()
    i = brute.index(False)
    assert show_sample(spec, row[brute.index(True)].tolist(), 3, answers[brute.index(True)]).endswith("right")
    assert "WRONG, expected" in show_sample(spec, row[i].tolist(), 3, answers[i])
    word = show_sample(Spec("dyck", 4, k=2), [0, 1, 3, 2], 0, [2, 3])
    assert word == "  0( 1( -> 0) 1)   WRONG, one of many that are right: 1) 0)"  # no single word was expected


def test_rotary_positions_are_evaluated_beyond_the_training_length(tmp_path):
    go(tmp_path, "--task=identity", "--position=rotary", "--eval_lengths", "6", "9", "--max_steps=2")
    row = tracker.read(tmp_path / "eval.csv")[-1]
    assert {"accuracy", "accuracy_6", "accuracy_9", "exact_match_9"} <= set(row)
    assert checkpoint.load(tmp_path / "ckpt.pt")["model_config"]["block_size"] == 18


def test_samples_are_shown(tmp_path, capsys):
    go(tmp_path, "--task=identity", "--max_steps=1", "--show_samples=3")
    shown = [line for line in capsys.readouterr().out.splitlines() if " -> " in line]
    assert len(shown) == 6 and all("expected" in s or s.endswith("right") for s in shown)


# -----------------------------------------------------------------------------
# transfer


def test_weights_go_on_to_another_task(tmp_path, capsys):
    go(tmp_path / "a", "--task=reverse", "--max_steps=2")
    go(tmp_path / "b", "--task=sort", "--vocab_size=12", "--seq_length=6", "--max_steps=1", "--lr=0",
       f"--init_from={tmp_path / 'a'}", "--transfer", "attn,mlp:1,norm")  # fmt: skip
    table = [line.split()[:2] for line in capsys.readouterr().out.splitlines() if line.endswith(" parameters")]
    assert table == [["attn", "taken"], ["embed", "initialised"], ["mlp", "initialised"], ["mlp", "taken"],
                     ["norm", "taken"]]  # fmt: skip
    a, b = (checkpoint.load(checkpoint.find(tmp_path / n))["model"] for n in ("a", "b"))
    taken = {k for k in a if a[k].shape == b[k].shape and torch.equal(a[k], b[k]) and a[k].dim() > 1}
    assert taken == {k for k in a if ".attn.c_" in k or ".h.1.mlp" in k}
    with pytest.raises(ValueError, match="embed"):
        go(tmp_path / "c", "--task=sort", "--vocab_size=12", f"--init_from={tmp_path / 'a'}")
    run.exits.held.leave(2)


def test_attention_keeps_its_heads(tmp_path):
    go(tmp_path / "a", "--task=reverse", "--max_steps=1", "--gpt2_size=1_2_16")
    other = ("--task=reverse", "--max_steps=1", "--gpt2_size=1_4_16", f"--init_from={tmp_path / 'a'}")
    for parts in ("all", "attn:0"):
        with pytest.raises(ValueError, match="has 2 heads, the model here 4: make them equal, or leave attn out"):
            go(tmp_path / "b", *other, "--transfer", parts)
        run.exits.held.leave(2)
    go(tmp_path / "b", *other, "--transfer", "mlp,norm,embed")


def test_weights_go_on_to_language_modelling(tmp_path, capsys):
    go(tmp_path / "a", "--task=dyck_shuffle", "--max_steps=2", "--position=rotary")
    TRAIN.data(tmp_path)
    flags = [*TRAIN.flags(tmp_path, tmp_path / "lm"), *TRAIN.batch(4, 1, 1), "--max_iters=1", "--learning_rate=0"]
    capsys.readouterr()
    TRAIN.run([*flags, f"--init_from={tmp_path / 'a'}", "--transfer", "attn,ffn,ln"])
    out = capsys.readouterr().out
    a, b = (checkpoint.load(checkpoint.find(tmp_path / n))["model"] for n in ("a", "lm"))
    taken = {k for k in b if k in a and a[k].shape == b[k].shape and torch.equal(a[k], b[k])}
    assert taken == {k for k in b if ".h." in k or "ln_f" in k}
    std = [w["transformer.wte.weight"].std().item() for w in (a, b)]  # or the blocks would drown the tokens
    assert std[0] == pytest.approx(std[1], rel=1e-4) and abs(std[0] - 0.02) > 1e-4
    for part, done in (("attn", "taken"), ("mlp", "taken"), ("norm", "taken"), ("embed", "initialised")):
        assert any(line.split()[:2] == [part, done] for line in out.splitlines()), out


# -----------------------------------------------------------------------------
# looking without training


def test_check_and_replay_leave_the_run_as_it_is(tmp_path, capsys):
    flags = ["--task=reverse", "--seq_length=8", "--use_curriculum", "--curriculum_mastery_threshold=0",
             "--max_steps=6", "--save_every_steps=2"]  # fmt: skip
    go(tmp_path, *flags)
    before = {p: p.read_bytes() for p in tmp_path.iterdir() if p.suffix in (".pt", ".csv")}
    capsys.readouterr()
    go(tmp_path, *flags, "--resume", "--check")
    assert "disk" in capsys.readouterr().out
    for step, length in ((1, 4), (3, 6)):  # lengths grow at every evaluation
        go(tmp_path, *flags, "--resume", f"--replay_step={step}")
        out = capsys.readouterr().out
        assert f"samples {4 * step} {4 * step + 1}" in out and f"ids (4, {2 * length})" in out, out
    assert before == {p: p.read_bytes() for p in before}
