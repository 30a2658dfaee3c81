"""experiments/: generators, the translation table, and runs of their config.yaml."""

import contextlib
import io
import typing
from pathlib import Path

import pytest
import yaml

from core import config
from experiments import folders, generate_finetuning_experiment, generate_pretraining_experiment, translate
from experiments.sections import KINDS


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def pre(*argv):
    with contextlib.redirect_stdout(io.StringIO()):
        generate_pretraining_experiment.main(list(argv))


def fin(*argv):
    with contextlib.redirect_stdout(io.StringIO()):
        generate_finetuning_experiment.main(list(argv))


def text(kind, name):
    return Path("experiments", kind, name, "config.yaml").read_text()


# -----------------------------------------------------------------------------
# templates and generators


@pytest.mark.parametrize("kind", KINDS)
def test_templates_hold_every_key_with_its_default_and_a_comment(kind):
    template = (folders.TEMPLATES / f"{kind}.yaml").read_text()
    data, specs = yaml.safe_load(template), config.specs(KINDS[kind])
    copied = ("tokenizer.", "architecture.") if kind == "finetuning" else ()
    for name, spec in specs.items():
        if name.startswith(copied):
            continue
        value = data
        for part in name.split("."):
            value = value[part]
        assert value == spec.default or name == "experiment.kind", name
    lines, at = template.splitlines(), folders.lines_of(template)
    for name in specs:
        assert name.startswith(copied) or "#" in lines[at[name]], f"{name} has no comment"


def test_a_new_pretraining_experiment_is_the_template_with_its_names():
    wanted = ("training.epochs=7", "training.learning_rate=1e-3", "tokenizer.vocab_dir=tok")
    pre("-p", "one", *(word for pair in wanted for word in ("--set", pair)))
    new, template = text("pretraining", "one"), (folders.TEMPLATES / "pretraining.yaml").read_text()
    differing = [line for line, old in zip(new.splitlines(), template.splitlines(), strict=True) if line != old]
    assert [line.split("#")[0].strip() for line in differing] == [
        "name: one", "output_dir: experiments/pretraining/one", "run_name: one", "vocab_dir: tok", "epochs: 7",
        "learning_rate: 0.001"]  # fmt: skip
    assert new.count("#") == template.count("#")


def test_a_clone_to_resume_copies_and_points_to_the_old_run():
    pre("-p", "old", "--set", "training.epochs=7")
    path = Path("experiments/pretraining/old/config.yaml")
    path.write_text(path.read_text().replace("mask_p: 0.15 ", "mask_p: 0.3 ") + "# a note of mine\n")
    pre("-p", "new", "-rp", "old")
    data = yaml.safe_load(text("pretraining", "new"))
    assert data["training"]["resume"] == {
        "is_resume": True, "resume_pretraining_name": "old", "checkpoint_path": "../old/checkpoints/model.ckpt",
        "strict": True, "load_only_model_state": False}  # fmt: skip
    assert (data["training"]["epochs"], data["mlm_head"]["mask_p"]) == (7, 0.3)
    assert data["experiment"]["output_dir"] == "experiments/pretraining/new"
    assert "# a note of mine" in text("pretraining", "new") and "is_resume" in path.read_text()


def test_a_finetuning_experiment_takes_architecture_and_tokenizer_with_their_comments():
    pre("-p", "base", "--set", "architecture.embedding_dim=64", "--set", "tokenizer.vocab_dir=tok")
    fin("-f", "one", "-p", "base", "--set", "classification_head.num_labels=4", "--set", "architecture.mlp_dropout=0.3")
    data, base = (yaml.safe_load(text(k, n)) for k, n in (("finetuning", "one"), ("pretraining", "base")))
    assert data["architecture"] == {**base["architecture"], "mlp_dropout": 0.3}
    assert data["tokenizer"] == base["tokenizer"]
    path = "experiments/pretraining/base"
    assert data["pretrained_experiment"] == {"name": "base", "path": path, "checkpoint": "checkpoints/best-model.ckpt"}
    assert data["classification_head"]["num_labels"] == 4
    assert "# rope, learned, sinusoidal" in text("finetuning", "one")


def test_a_config_in_another_style_is_copied_too():
    pre("-p", "base")
    written = "architecture: {num_layers: 3}\ntraining: {epochs: 2}\n"
    Path("experiments/pretraining/base/config.yaml").write_text(written)
    fin("-f", "one", "-p", "base")
    assert yaml.safe_load(text("finetuning", "one"))["architecture"] == {"num_layers": 3}
    pre("-p", "two", "-rp", "base")
    data = yaml.safe_load(text("pretraining", "two"))
    assert data["training"]["epochs"] == 2 and data["training"]["resume"]["is_resume"] is True


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/b", "..", ".hidden", "", "a b"])
def test_names_that_leave_the_folder_are_refused(name):
    with pytest.raises(ValueError, match="must be a plain name"):
        pre("-p", name)
    pre("-p", "good")
    with pytest.raises(ValueError, match="must be a plain name"):
        fin("-f", name, "-p", "good")
    with pytest.raises(ValueError, match="must be a plain name"):
        fin("-f", "good", "-p", name)


def test_nothing_is_overwritten_and_links_are_refused(tmp_path):
    pre("-p", "one")
    before = text("pretraining", "one")
    with pytest.raises(ValueError, match="exists already"):
        pre("-p", "one", "--set", "training.epochs=9")
    assert text("pretraining", "one") == before
    (tmp_path / "elsewhere").mkdir()
    Path("experiments/pretraining/link").symlink_to(tmp_path / "elsewhere")
    for call in (lambda: pre("-p", "link"), lambda: fin("-f", "x", "-p", "link")):
        with pytest.raises(ValueError, match="is a link"):
            call()


def test_a_missing_parent_is_named_with_those_that_exist():
    with pytest.raises(ValueError, match="is called 'base': experiments/pretraining holds none"):
        fin("-f", "one", "-p", "base")
    pre("-p", "base_1")
    pre("-p", "other")
    with pytest.raises(ValueError, match="'base': there are base_1, other, did you mean 'base_1'?"):
        fin("-f", "one", "-p", "base")
    with pytest.raises(ValueError, match="'othr': there are base_1, other, did you mean 'other'?"):
        pre("-p", "new", "-rp", "othr")
    assert not Path("experiments/finetuning").exists()


@pytest.mark.parametrize(("pair", "message"), [
    ("training.epoch=3", "--set training.epoch: no such key, did you mean 'training.epochs'"),
    ("training.epochs", "--set takes section.key=value"),
    ("training.epochs=many", "training.epochs must be a whole number, got 'many'"),
    ("training.epochs=0", "training.epochs must be > 0"),
    ("architecture.attention.kind=linear", "architecture.attention.kind must be one of mha, lsh, favor"),
])  # fmt: skip
def test_wrong_settings_are_named_and_nothing_is_written(pair, message):
    with pytest.raises(ValueError, match=message):
        pre("-p", "one", "--set", pair)
    assert not Path("experiments").exists()


# -----------------------------------------------------------------------------
# the table


def other(spec):
    """Another value that the key takes."""
    kind, default = config.kind_of(spec.type), spec.default
    if choices := [c for c in typing.get_args(spec.type) if isinstance(c, str)]:
        return next(c for c in choices if c != default)
    if kind is bool:
        return not default
    return (default or 0) + 1 if kind is int else (default or 1) / 2 if kind is float else "other"


@pytest.fixture
def minimal():
    """Per kind: a config with all that has no default."""
    Path("experiments/pretraining/old/checkpoints").mkdir(parents=True)
    Path("experiments/pretraining/old/config.yaml").write_text("{}")
    Path("experiments/pretraining/old/checkpoints/best-model.ckpt").write_text("x")
    base = {"tokenizer": {"vocab_dir": "tok"}, "data": {"train": {"dataset_path": "a"}, "val": {"dataset_path": "b"}}}
    return {"pretraining": base, "finetuning": {**base, "pretrained_experiment": {"name": "old"}}}


# read as what they are (tests of their own below), or of one value, or the order of an evaluation
NO_OPTION = ("experiment.name", "experiment.kind", "tokenizer.wrapper_path", "training.loss", "data.val.shuffle",
             "data.test.shuffle", "training.resume.", "pretrained_experiment.")  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_reaches_an_option(kind, minimal):
    def translated(values):
        exp = translate.read(minimal[kind], kind, "config.yaml")
        for key, value in values.items():
            config.put(exp, key, value)
        return translate.options(exp, kind, Path("experiments", kind, "new"))

    for name, spec in config.specs(KINDS[kind]).items():
        if name.startswith(NO_OPTION):
            continue
        of = name.split(".")[2] if name.startswith("architecture.attention.") and name.count(".") == 3 else "mha"
        base = {"architecture.attention.kind": of}
        assert translated(base) != translated({**base, name: other(spec)}), f"{name} reaches no option"
