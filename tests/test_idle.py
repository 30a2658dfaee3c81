"""Options that act only beside others: named in a note where they cannot act, and then they do change nothing."""

import importlib.util
import sys
from types import SimpleNamespace

import pytest
import torch

from core import checkpoint, config
from core.schedule import SHAPES
from procedural_pretraining.settings import preset
from tests.loops import FINETUNE, PRETRAIN, PROCEDURAL, REWARD, ROOT, TRAIN, made_once
from variants.mlps import MLPS
from variants.optimizers import TORCH
from variants.positions import POSITIONS

TABLES = {"train": "train_args", "procedural_pretraining": "procedural_pretraining.settings"}
LOOPS = {loop.name: loop for loop in (TRAIN, PRETRAIN, FINETUNE, REWARD, PROCEDURAL)}


def table(loop) -> dict[str, str]:
    return importlib.import_module(TABLES.get(loop.name, loop.module)).NEEDS


def options_of(loop):
    return importlib.import_module(loop.module).Options


ROWS = [(name, option) for name, loop in LOOPS.items() for names in table(loop) for option in names.split()]
# what a tiny run must say, so that the option cannot act; nothing where it says so already
SETTING = {
    ("train", "mlp_expansion_factor"): ["--mlp_size=24"],
    ("train", "use_rotary_embeddings"): ["--position=learned"],
    ("train", "use_abs_pos_embeddings"): ["--position=learned"],
    ("train", "activation_variant"): ["--mlp_variant=swiglu"],
    ("train", "norm_variant_attn"): ["--no-use_pre_ln"],
    **{("train", f"use_{name}_ln"): ["--norm_variant_attn=none"] for name in ("pre", "peri", "post")},
    ("train", "norm_eps"): ["--norm_variant_attn=none", "--norm_variant_output=none"],
    ("train", "beta1"): ["--optimizer=sgd"],
    ("train", "beta2"): ["--optimizer=rmsprop"],
    ("train", "weight_decay"): ["--optimizer=rprop"],
    ("train", "decay_lr"): ["--lr_scheduler=wsd"],
    ("pretrain", "warmup_ratio"): ["--warmup_steps=1"],
    ("pretrain", "min_lr_ratio"): ["--lr_schedule=constant"],
    ("finetune", "freeze_n_layers"): ["--freeze"],
    ("finetune", "freeze_embeddings"): ["--freeze"],
    ("finetune", "backbone_lr_mult"): ["--freeze"],
    ("finetune", "min_lr_ratio"): ["--lr_schedule=none"],
    ("reward", "data.max_prompt_length"): ["--no-data.truncate_promt"],
    ("procedural_pretraining", "vocab_size"): ["--task=dyck"],
    **{("procedural_pretraining", f"curriculum_{name}"): ["--no-use_curriculum"]
       for name in ("start", "step_size", "mastery_threshold", "step_epochs")},
}  # fmt: skip
VALUES = {"activation_variant": "relu", "norm_variant_attn": "rmsnorm", "transfer": "attn", "pooling": "cls", "init_from_ckpt": "other.pt", "curriculum_mastery_threshold": "0.5"}
# from scratch, finetune.py needs another data set; and a mixture some more
OTHER_DATA = [("finetune", "transfer"), ("train", "dataset_sampling_probs_transition_method"), ("train", "dataset"),
              ("train", "learning_rate")]
FIRST = {loop: option for loop, option in reversed(ROWS) if (loop, option) not in OTHER_DATA}
RUNS = [pytest.param(*row, marks=[] if row in FIRST.items() else pytest.mark.full)
        for row in ROWS if row not in OTHER_DATA]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return made_once(tmp_path_factory.mktemp)


def another(loop, name: str) -> str:
    """A value that is not the default."""
    default = config.specs(options_of(loop))[name].default
    if name in VALUES:
        return VALUES[name]
    if isinstance(default, bool):
        return str(not default)
    if isinstance(default, float):
        return str(default / 2 if default else 0.5)
    return str(default + 1) if isinstance(default, int) else "other"


@pytest.mark.parametrize("name, option", RUNS)
def test_what_is_said_to_do_nothing_does_nothing(name, option, data, tmp_path, capsys):
    loop, ends = LOOPS[name], []
    flag = f"--{option}={another(loop, option)}"
    note = f"note: --{option} does nothing here: it needs "
    for extra in ([], [flag]):
        out = tmp_path / str(len(ends))
        begin = [*loop.flags(data(loop), out), *loop.steps(3), *loop.batch(4, 1, 1), *SETTING.get((name, option), [])]
        loop.run([*begin, *extra])
        said = any(flag.startswith(f"--{option}=") for flag in [*begin, *extra])
        knows = "--no-use_curriculum" in begin
        assert (note in capsys.readouterr().out) == (said and not knows)
        ends.append(checkpoint.load(loop.last(out))["model"])
    assert all(torch.equal(v, ends[1][k]) for k, v in ends[0].items())


@pytest.mark.parametrize("name, option", ROWS)
def test_conditions_name_options_and_their_values(name, option):
    cls = options_of(LOOPS[name])
    known = config.specs(cls)
    assert option in known
    conditions = next(text for names, text in table(LOOPS[name]).items() if option in names.split())
    for condition in conditions.split(", or "):
        _, other, _, values = config.CONDITION.fullmatch(condition).groups()
        assert other in known
        config.holds(cls(), condition)
        for value in values.split("|") if values and other != "init_from" else []:
            config.parse(cls, [f"--{other}={value}"])


def lines(loop, argv: list[str]) -> list[str]:
    return config.idle(config.parse(options_of(loop), argv), table(loop))


def test_what_other_modes_of_train_py_do_not_read_is_named():
    two = ["--training_mode=multicontext", "--multicontext_datasets", "a", "b", "--max_sample_tokens=2"]
    for flag in ("--dataset=c", "--sample_start_tokens=c"):
        said = [importlib.import_module("train_args").notes(config.parse(options_of(TRAIN), argv), [])
                for argv in ([*two, flag], two, [flag, "--max_sample_tokens=2"])]  # fmt: skip
        assert [any(n.startswith(f"{flag[:-2]} does nothing") for n in notes) for notes in said] == [True, False, False]


def test_a_rate_beside_those_of_the_data_sets_is_named_unless_it_scales_muons():
    two = ["--training_mode=multidataset", "--dataset_list", "a", "b", "--learning_rate=1"]
    rates, muon = ["--dataset_sampling_learning_rate", "1", "2"], "--optimizer=muon"
    said = [any(n.startswith("--learning_rate does nothing") for n in lines(TRAIN, argv))
            for argv in ([*two, *rates], two, [*two, *rates, muon])]  # fmt: skip
    assert said == [True, False, False]


@pytest.mark.parametrize("flag, own, optimizer", [("sgd_momentum=0.3", "momentum=0.5", "sgd"),
                                                  ("beta1=0.5", "betas=0.8,0.9", "adamw"),
                                                  ("beta2=0.5", "betas=0.8,0.9", "adam")])  # fmt: skip
def test_a_number_that_the_optimizers_own_arguments_replace_is_named(flag, own, optimizer):
    """--optimizer_args momentum=0.5 beside --sgd_momentum 0.3: one of the two was dropped without a word."""
    notes = importlib.import_module("train_args").notes
    both = [f"--{flag}", f"--optimizer={optimizer}", "--optimizer_args", own]
    said = [any("goes before it" in n for n in notes(config.parse(options_of(TRAIN), argv), []))
            for argv in (both, both[:2], both[1:])]  # fmt: skip
    assert said == [True, False, False]


def test_a_switch_that_is_set_off_says_the_user_knows():
    assert lines(TRAIN, ["--wandb_project=x"]) == ["--wandb_project does nothing here: it needs --wandb_log"]
    assert lines(TRAIN, ["--wandb_project=x", "--no-wandb_log"]) == []
    assert lines(TRAIN, ["--wandb_project=x", "--wandb_log"]) == []


def test_the_shape_of_weights_to_start_from_makes_no_option_idle():
    """Rotary positions beside those of the weights: the switch acts."""
    import train_args

    source = {"kind": "gpt", "config": {"n_layer": 1, "block_size": 8, "position": "learned"}}
    args = config.parse(train_args.Options, ["--init_from=x", "--transfer=attn", "--use_rotary_embeddings"])
    train_args.adopt(args, source, "x")
    assert train_args.position(args) == "learned+rotary" and train_args.notes(args, []) == []


@pytest.mark.parametrize("loop", [PRETRAIN, FINETUNE], ids=lambda loop: loop.name)
def test_a_field_of_model_that_acts_beside_another_is_named_without_it(loop, data, tmp_path, capsys):
    """--model rope_base=500 under absolute positions, which train.py says of its own --rope_base."""
    begin = [*loop.flags(data(loop), tmp_path), *loop.steps(3), "--check", "--model", "rope_base=500"]
    scratch = ["n_layer=1", "n_head=2", "n_embd=8", "mlp_size=8", "--init_from=scratch",
               f"--tokenizer={data(PRETRAIN) / 'tokenizer.json'}"]  # fmt: skip
    for more, said in ((["rope_scale=2"], ["rope_base", "rope_scale"]), (["position=rope"], [])):
        loop.run([*begin, *more, *scratch * (loop is FINETUNE)])
        notes = [line for line in capsys.readouterr().out.splitlines() if "nothing here" in line]
        assert notes == [f"note: --model {x} does nothing here: it needs --model position=rope" for x in said]


MODES = [(FINETUNE, "predict", "PREDICTING", "pooling=mean", "max_length=9", "data.predictions.write"),
         (PRETRAIN, "embed", "EMBEDDING", "hidden_size=8", "max_size=9", "data.vectors.write"),
         (REWARD, "score", "SCORING", "data.max_length=9", "data.batch_size=2", "reward_train.score_file")]  # fmt: skip


@pytest.mark.parametrize("loop, mode, reads, idle, acts, work", MODES, ids=lambda x: getattr(x, "name", None))
def test_what_a_mode_does_not_read_is_named(loop, mode, reads, idle, acts, work, tmp_path, monkeypatch, capsys):
    """--score --data.max_length=12, --predict --pooling=mean: the run's own are taken, as a file's lines say them."""
    script, file = importlib.import_module(loop.module), tmp_path / "options.yaml"
    assert {*getattr(script, reads).split()} <= {*config.specs(script.Options)}
    monkeypatch.setattr(work, lambda *_, **__: None)
    monkeypatch.setattr("reward_train.Scorer", lambda *_: SimpleNamespace(
        device="cpu", options={"trainer": {"params": {"precision": "32"}}}))  # fmt: skip
    section, _, rest = idle.partition("=")[0].rpartition(".")
    line = f"{rest or section}: {idle.partition('=')[2]}"
    file.write_text(f"{section}: {{{line}}}" if section else line)
    for argv, said in (([f"--{idle}"], True), ([f"--{acts}"], False), ([str(file)], False)):
        folder = {"reward": "trainer.checkpoint.dirpath"}.get(loop.name, "init_from")
        script.main(config.parse(script.Options, [f"--{mode}=x", f"--{folder}={tmp_path}", *argv]))
        name = idle.partition("=")[0]
        note = f"note: --{name} does nothing here: --{mode} does not read it\n"
        assert capsys.readouterr().out == note * said


def test_conditions_of_each_kind():
    base = "--rope_base=500"
    assert lines(TRAIN, [base]) and lines(TRAIN, [base, "--position=learned+alibi"])
    assert not lines(TRAIN, [base, "--position=learned+rotary"])
    assert not lines(TRAIN, [base, "--use_rotary_embeddings"])
    assert not lines(TRAIN, [base, "--position=sinusoidal"])  # its waves are as long
    assert lines(TRAIN, ["--transfer=attn"]) and not lines(TRAIN, ["--transfer=attn", "--init_from=gpt2"])
    assert lines(PRETRAIN, ["--transfer=attn"]) and not lines(PRETRAIN, ["--transfer=attn", "--reset"])
    assert not lines(TRAIN, ["--min_lr=1e-4"])  # the default
    assert lines(TRAIN, ["--min_lr=1e-5"]) == [
        "--min_lr does nothing here: it needs --lr_scheduler=cosine or linear or wsd or exponential or step or plateau,"
        " or --decay_lr"]  # fmt: skip
    for kind in (*SHAPES, "plateau"):  # a new one, too
        assert not lines(TRAIN, ["--min_lr=1e-5", f"--lr_scheduler={kind}"])
    gated = [kind for kind in MLPS if lines(TRAIN, ["--activation_variant=relu", f"--mlp_variant={kind}"])]
    assert gated == [kind for kind, make in MLPS.items() if hasattr(make, "gate")]  # what brings its own


def test_a_new_line_in_a_table_is_known_to_the_notes(monkeypatch):
    """A gated mlp, a turning position, an optimizer without betas and decay: what does nothing beside it is said, and
    --rope_base, which acts, is not."""

    class Mine(torch.optim.Optimizer):
        def __init__(self, params, lr: float = 1e-3):
            super().__init__(params, {"lr": lr})

    for table, like in ((MLPS, MLPS["swiglu"]), (POSITIONS, POSITIONS["rotary"]), (TORCH, Mine)):
        monkeypatch.setitem(table, "mine", like)
    spec = importlib.util.spec_from_file_location("again", ROOT / "train_args.py")
    again = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "again", again)
    spec.loader.exec_module(again)
    args = importlib.import_module("train_args").Options()
    args.mlp_variant = args.position = args.optimizer = "mine"
    args.activation_variant, args.rope_base, args.beta1, args.weight_decay = "relu", 50.0, 0.5, 0.5
    args.given = {"mlp_variant", "position", "optimizer", "activation_variant", "rope_base", "beta1", "weight_decay"}
    assert [line.split()[0] for line in config.idle(args, again.NEEDS)] == [
        "--activation_variant", "--beta1", "--weight_decay"]  # fmt: skip


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/*/*.yaml")), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_our_configs_say_nothing_that_does_nothing(path):
    assert lines(LOOPS[path.parent.name], ["--config", str(path)]) == []


@pytest.mark.parametrize("path", sorted(ROOT.glob("procedural_pretraining/configs/*.yaml")), ids=lambda p: p.stem)
@pytest.mark.parametrize("more", [[], ["--preset=small"]])
def test_nor_do_those_of_the_tasks(path, more):
    assert lines(PROCEDURAL, preset(["--config", str(path), *more])) == []
