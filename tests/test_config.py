"""Options: every spelling of a command line, YAML's traps, and one line for what is wrong."""

import importlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from core import config
from core.config import option
from core.values import Beta, Count, coerce, read_yaml


@dataclass
class Inner:
    # logging
    name: str | None = None  # of the run
    api: str = option("", secret=True)  # the key
    old_name: int = option(3, alias=("odl_name",))


@dataclass
class Options:
    """For the tests."""

    # data
    batch: Count = 4  # sequences
    names: list[str] = option([])  # many
    layers: list[int] | None = None

    # rates
    lr: float = 1e-3  # peak
    flag: bool = False  # yes or no
    on: bool = True
    kind: Literal["one", "two"] = "one"
    cap: float | None = None
    extra: dict = option({})
    text: str = "x"
    inner: Inner = field(default_factory=Inner)


def parse(line: str, tmp=None):
    return config.parse(Options, line.split())


@pytest.mark.parametrize(("line", "name", "value"), [
    ("--batch 3", "batch", 3), ("--batch=3", "batch", 3), ("--batch=1e3", "batch", 1000),
    ("--batch=9007199254740993", "batch", 9007199254740993), ("--batch=5.0", "batch", 5),
    ("--flag", "flag", True), ("--flag=False", "flag", False), ("--flag false", "flag", False), ("--no-on", "on", False),
    ("--no_on", "on", False), ("--lr -1e-3", "lr", -1e-3), ("--lr=-.5", "lr", -0.5), ("--names a b", "names", ["a", "b"]),
    ("--names=a b", "names", ["a", "b"]), ("--names", "names", []), ("--layers [0,11]", "layers", [0, 11]),
    ("--layers -1 2", "layers", [-1, 2]), ("--layers none", "layers", None), ("--cap none", "cap", None), ("--cap 30", "cap", 30.0),
    ("--inner.name run7", "inner.name", "run7"), ("--inner.odl_name 5", "inner.old_name", 5),
    ("--extra a=1 b=true c=1e-3", "extra", {"a": 1, "b": True, "c": 1e-3}), ("--text=a=b", "text", "a=b"),
])  # fmt: skip
def test_a_command_line_in_all_its_spellings(line, name, value):
    options = parse(line)
    assert config.get(options, name) == value and type(config.get(options, name)) is type(value)
    assert options.given == {name}


def test_one_argument_may_hold_a_list():
    assert config.parse(Options, ["--names", "a b", "c"]).names == ["a", "b", "c"]


@pytest.mark.parametrize(("line", "says"), [
    ("--bach 3", "unknown option --bach, did you mean '--batch'?"), ("-batch 3", "two dashes, --batch"), ("--batch 0", "--batch must be > 0, got 0"), ("--batch", "--batch wants a value"),
    ("--batch 1.5", "--batch must be a whole number, got '1.5'"), ("--batch three", "--batch must be a whole number"),
    ("--lr nan", "--lr must be a number, got 'nan'"), ("--flag=perhaps", "--flag must be true or false"),
    ("--kind three", "--kind must be one of one, two; got 'three'"), ("--layers 1 x", "--layers must be a whole number"),
    ("--inner.nam 3", "did you mean '--inner.name'?"), ("stray", "unexpected argument 'stray'"), ("--batch", "--batch"),
    ("--batch 1e400", "--batch must be a whole number, got '1e400'"), ("--extra a=[1", "--extra a cannot be read, got '[1'"),
    ("--flag perhaps", "--flag must be true or false, got 'perhaps'"), ("--extra a=[1", "<stream end>' at line 1, column 3"),
    ("--extra x", "--extra takes key=value pairs"), ("--config nowhere.yaml", "nowhere.yaml does not exist"),
])  # fmt: skip
def test_what_is_wrong_is_named_in_one_line(line, says):
    with pytest.raises(ValueError) as e:
        parse(line)
    assert says in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize(("script", "line", "says"), [
    ("train_args", "--lr=3e-4", "learning_rate"), ("train_args", "--max-steps=3", "max_iters"), ("train_args", "--bf16", "dtype"), ("train_args", "--epochs=2", "max_iters"),
    ("train_args", "--per_device_train_batch_size 8", "batch_size"), ("train_args", "--model_name_or_path gpt2", "init_from"),
    ("pretrain", "--num_train_epochs=3", "epochs"), ("pretrain", "--learning_rate 1e-4", "lr"), ("pretrain", "--output_dir x", "save_path"),
    ("pretrain", "--gradient_accumulation_steps 2", "grad_acc"), ("finetune", "--lr 3", "learning_rate"), ("sample", "--out_dir=x", "init_from"), ("sample", "--prompt x", "start"),
    ("reward_train", "--per_device_train_batch_size 2", "data.batch_size"), ("reward_train", "--output_dir x", "trainer.checkpoint.dirpath"),
    ("procedural_pretraining.cli", "--learning_rate 1", "lr"),
])  # fmt: skip
def test_a_name_from_elsewhere_is_answered_with_ours(script, line, says):
    """nanoGPT's, transformers', TRL's."""
    with pytest.raises(ValueError, match=f"unknown option --[^ ]*, did you mean '--{says}'"):
        config.parse(importlib.import_module(script).Options, line.split())


def read(tmp_path, text: str, more: tuple = (), name="c.yaml"):
    (tmp_path / name).write_text(text)
    return config.parse(Options, [str(tmp_path / name), *more])


def test_defaults_then_files_then_flags(tmp_path):
    (tmp_path / "second.yaml").write_text("batch: 6\n")
    options = read(tmp_path, "batch: 5\nlr: 1e-4\ninner: {name: n}\n", ("--config", str(tmp_path / "second.yaml")))
    assert (options.batch, options.lr, options.inner.name, options.text) == (5, 1e-4, "n", "x")
    assert read(tmp_path, "batch: 5", ("--batch=4",)).batch == 4  # a flag wins, also with the default's value
    assert read(tmp_path, '{"batch": 7, "inner": {"name": "j"}}', name="c.json").inner.name == "j"


@pytest.mark.parametrize(("text", "name", "value"), [
    ("lr: 1e-4", "lr", 1e-4), ("text: 12:30", "text", "12:30"), ("text: 0010", "text", "0010"), ("text: no", "text", "no"),
    ("flag: yes", "flag", True), ("cap: null", "cap", None), ("cap: ~", "cap", None), ("layers: [1, 2]", "layers", [1, 2]),
    ("text: 2024", "text", "2024"), ("text: 1.10", "text", "1.10"), ("text: 1e5", "text", "1e5"), ("inner:", "inner.name", None), ("lr: .5", "lr", 0.5), ("names: a b", "names", ["a", "b"]),
])  # fmt: skip
def test_yaml_means_what_it_says(tmp_path, text, name, value):
    assert config.get(read(tmp_path, text), name) == value


def test_a_number_of_a_file_is_the_text_that_stands_there_only_where_text_is_wanted(tmp_path):
    options = read(tmp_path, '{"text": 1.10, "lr": 1e-3, "extra": {"a": 1e-3, "b": [0.5]}, "names": [1.50]}', name="c.json")
    assert (options.text, options.names) == ("1.10", ["1.50"])
    assert [type(x) for x in (options.lr, options.extra["a"], *options.extra["b"])] == [float] * 3  # a checkpoint takes it
    config.save(options, tmp_path / "saved.yaml")
    assert config.to_dict(config.parse(Options, [str(tmp_path / "saved.yaml")])) == config.to_dict(options)


@pytest.mark.parametrize(("text", "says"), [
    ("batch: 1\nbatch: 2", "key 'batch' twice"), ("bach: 1", "unknown key 'bach', did you mean 'batch'?"), ("inner: {learning_rate: 1}", "unknown key 'inner.learning_rate', did you mean 'lr'?"),
    ("batch: many", "batch must be a whole number, got 'many'"), ("batch: 12:30", "batch must be a whole number"),
    ("text: !!python/object/apply:os.system [ls]", "python/object"), ("inner: 3", "inner is a section, got 3"),
    ("- a\n- b", "must hold key: value lines"), ("batch: [1", "c.yaml: while parsing a flow sequence at line 1"), ("flag: 3", "flag must be true or false"),
    ("inner: {old_name: 1, odl_name: 2}", "given twice"), ("batch: null", "batch must be given, not null"),
    ("? [a]\n: 1", "a key must be a word at line 1, column 3"), ("lr: !!timestamp 2020-01-01", "tag:yaml.org,2002:timestamp"),
    ("batch: !!binary aGVq", "tag:yaml.org,2002:binary"), ("flag: !!bool perhaps", "'perhaps'"), ("lr: true", "lr must be a number"), ("lr: .nan", "lr must be a number"),
    ("lr: !!map [1]", "expected a mapping node, but found sequence at line 1"),
])  # fmt: skip
def test_a_wrong_file_is_named_in_one_line(tmp_path, text, says):
    with pytest.raises(ValueError) as e:
        read(tmp_path, text)
    assert says in str(e.value) and "c.yaml" in str(e.value) and "\n" not in str(e.value)


def test_a_key_of_a_json_file_stands_once(tmp_path):
    with pytest.raises(ValueError, match="c.json: key 'name' twice"):
        read(tmp_path, '{"inner": {"name": "a", "name": "b"}}', name="c.json")


@pytest.mark.parametrize("text", ["007", "1e5", "1234e56", ".5e3", "1.10", "12:30", "2020-01-01", "no", "null", "é #"])
def test_saved_options_run_again_as_they_are(tmp_path, text):
    options = parse("--batch 9 --names a 1e-1 --cap 2 --inner.name n --inner.api secret --extra a=1 b=1e-5 --layers 3")
    options.text = text
    config.save(options, tmp_path / "config.yaml")
    assert "secret" not in (tmp_path / "config.yaml").read_text()
    again = config.parse(Options, [str(tmp_path / "config.yaml")])
    options.inner.api = ""
    assert config.to_dict(again) == config.to_dict(options)


def test_help_names_groups_units_choices_and_defaults(capsys):
    with pytest.raises(SystemExit) as e:
        config.parse(Options, ["--help"], doc="Trains things.")
    text = capsys.readouterr().out
    assert e.value.code == 0
    assert "(default: secret)" not in text  # the default of --inner.api is '', not a word to type
    for part in ("Trains things.", "data:", "rates:", "sequences (default: 4)", "[one | two]", "--inner.name"):
        assert part in text


def test_a_resume_takes_the_stored_options_and_lists_what_changed():
    stored = config.to_dict(parse("--batch 9 --lr 0.5"))
    options, changes = config.resume(parse("--lr 0.25"), stored)
    assert (options.batch, options.lr, changes) == (9, 0.25, {"lr": (0.5, 0.25)})
    options, changes = config.resume(parse("--text new"), stored, free=("text",))
    assert (options.text, changes) == ("new", {})
    with pytest.raises(ValueError, match="--batch is 9 in the run to resume and cannot become 4"):
        config.resume(parse("--batch 4"), stored, fixed=("data",))


def test_an_option_that_is_newer_than_the_run_had_its_default_there():
    """Given at the resume it was in no list, and one of the model was no error, and did nothing."""
    stored = config.to_dict(parse(""))
    old, now = stored.pop("batch"), parse("").batch
    assert old == now and config.resume(parse("--batch 9"), stored)[1] == {"batch": (old, 9)}
    assert config.resume(parse(f"--batch {old}"), stored, fixed=("data",))[1] == {}
    with pytest.raises(ValueError, match=f"--batch is {old} in the run to resume and cannot become 9"):
        config.resume(parse("--batch 9"), stored, fixed=("data",))


@dataclass
class Start:
    init_from: str = "scratch"
    steps: int = 1


def test_a_resumed_run_saves_how_it_began():
    """init_from=resume in its config.yaml would keep that from running again as it is."""
    stored = config.to_dict(config.parse(Start, ["--init_from=gpt2"]))
    for own, saved in ((True, "gpt2"), (False, "resume")):
        resumed = config.parse(Start, ["--init_from=resume", "--steps=5"])
        resumed, _ = config.resume(resumed, stored, free=("init_from",), own=own)
        assert resumed.init_from == "resume" and config.to_dict(resumed) == {"init_from": saved, "steps": 5}


def test_home_is_found_in_flags_lists_and_files(tmp_path, monkeypatch):
    """A folder called ~ was made."""
    import train_args

    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.yaml").write_text("out_dir: ~/runs\n")
    argv = [str(tmp_path / "c.yaml"), "--dataset_list", "~/a", "b~/c", "--dataset=~b"]
    found = config.parse(train_args.Options, argv)
    assert found.out_dir == str(tmp_path / "runs")
    assert found.dataset_list == [str(tmp_path / "a"), "b~/c"] and found.dataset == "~b"
    assert coerce(["~/x"], list[Path], "--input") == [tmp_path / "x"]
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a container's user that has none
    with pytest.raises(ValueError, match="~/runs: this user has no home folder"):
        config.parse(train_args.Options, argv)


def test_a_beta_of_one_is_refused_before_torch_sees_it():
    assert coerce("0", Beta, "--beta1") == 0
    with pytest.raises(ValueError, match="--beta1 must be 0 or more and below 1, got 1.0"):
        coerce("1", Beta, "--beta1")


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "a/b", "", ".hidden", "a\nb", "~x"])
def test_a_name_stays_in_its_folder(name):
    with pytest.raises(ValueError, match="plain name"):
        config.safe_name(name, "--run_name")


def test_a_folder_is_no_config_file(tmp_path):
    for path, says in ((tmp_path, "is a folder: a file is wanted"), (tmp_path / "x.yaml", "does not exist")):
        with pytest.raises(ValueError, match=says):
            read_yaml(path)
    (tmp_path / "config.yaml").write_text("a: 1")
    with pytest.raises(ValueError, match="is a folder: its file is .*config.yaml"):
        read_yaml(tmp_path)


def test_python_without_docstrings_parses_all_the_same():
    """python -OO"""
    assert config.parse(Options, [], doc=None) is not None


@dataclass
class Own:
    """What a researcher adds."""

    betas: tuple[Beta, Beta] = (0.9, 0.95)
    sizes: tuple[int, ...] = (1, 2)
    table: Path | None = None  # a file
    tables: list[Path] = config.option([])
    named: tuple[str, int, float | None] = ("a", 1, None)


def test_pairs_and_paths_are_options_that_a_file_and_a_resume_bring_back(tmp_path):
    """They stayed the text of their flags, and the run could be neither resumed nor run again from its config.yaml."""
    options = config.parse(Own, ["--betas", "0.8", "0.9", "--sizes=3", "--table=~/a", "--tables", "b",
                                "--named", "b", "2", "0.5"])  # fmt: skip
    assert (options.betas, options.sizes, options.named) == ((0.8, 0.9), (3,), ("b", 2, 0.5))
    assert options.table == Path.home() / "a" and options.tables == [Path("b")]
    config.save(options, tmp_path / "config.yaml")
    assert config.parse(Own, [str(tmp_path / "config.yaml")]) == options
    assert config.resume(config.parse(Own, []), config.to_dict(options))[0] == options
    assert config.parse(Own, []).betas == (0.9, 0.95)
    config.save(config.parse(Own, []), tmp_path / "default.yaml")
    assert config.parse(Own, [str(tmp_path / "default.yaml")]) == config.parse(Own, [])
    with pytest.raises(ValueError, match="--named must be a whole number, got 'x'"):
        config.parse(Own, ["--named=b,x,1"])
    for word, message in (("0.1", "--betas must be 2 values, got"), ("0.1 2", "--betas must be 0 or more and below 1")):
        with pytest.raises(ValueError, match=message):
            config.parse(Own, ["--betas", *word.split()])


def test_a_type_that_no_flag_can_be_is_named_at_once():
    @dataclass
    class Wrong:
        names: set[str] = field(default_factory=set)

    with pytest.raises(TypeError, match="option names is set.str., which no flag can be"):
        config.parse(Wrong, [])
