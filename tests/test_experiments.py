"""experiments/: generators, the translation table, and runs of their config.yaml."""

import contextlib
import csv
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import torch
import yaml

import plot
import train
from core import checkpoint, config, exits, run
from experiments import folders, generate_finetuning_experiment, generate_pretraining_experiment, translate
from experiments.sections import KINDS
from tests.loops import classes, stopped_at


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


@pytest.mark.parametrize("name", ["1e5", "1234e56", "007"])
def test_a_name_that_looks_like_a_number_stays_text(name):
    pre("-p", name)
    assert folders.load(text("pretraining", name))["experiment"]["name"] == name
    assert text("pretraining", name).count("#") == (folders.TEMPLATES / "pretraining.yaml").read_text().count("#")


@pytest.mark.parametrize("path", ["set #2/train.pt", "1e5", "100%", "[old] train.pt", "*.pt", "a: b"])
def test_set_takes_text_as_it_is(path):
    pre("-p", "one", "--set", f"data.train.dataset_path={path}", "--set", "training.learning_rate=1e-3")
    written = folders.load(text("pretraining", "one"))
    assert written["data"]["train"]["dataset_path"] == path and written["training"]["learning_rate"] == 1e-3
    pre("-p", "two", "-rp", "one", "--set", "data.train.dataset_path=null", "--set", "training.use_amp=no")
    written = folders.load(text("pretraining", "two"))
    assert written["data"]["train"]["dataset_path"] is None and written["training"]["use_amp"] is False


def test_a_key_is_set_once():
    with pytest.raises(ValueError, match="--set training.epochs twice: 5 and '6'"):
        pre("-p", "one", *sets(training__epochs=5), *sets(training__epochs=6))
    assert not Path("experiments").exists()


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


def test_a_clone_keeps_the_accepted_misspelling_of_a_key():
    pre("-p", "old")
    path = Path("experiments/pretraining/old/config.yaml")
    path.write_text(path.read_text().replace("resume_pretraining_name", "resume_pretrainig_name"))
    for name, word in (("new", "old"), ("newer", "new")):
        pre("-p", name, "-rp", word)
        assert f"    resume_pretrainig_name: {word}  # the experiment" in text("pretraining", name)
        assert "resume_pretraining_name" not in text("pretraining", name)
    pre("-p", "set", "--set", "training.resume.resume_pretrainig_name=old")
    assert folders.load(text("pretraining", "set"))["training"]["resume"]["resume_pretraining_name"] == "old"


def test_a_clone_of_a_run_that_took_weights_alone_goes_on_in_full():
    pre("-p", "old")
    pre("-p", "new", "-rp", "old", "--set", "training.resume.load_only_model_state=true")
    pre("-p", "last", "-rp", "new")
    assert "load_only_model_state: true" in text("pretraining", "new")
    assert "load_only_model_state: false" in text("pretraining", "last")


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


def test_a_generator_that_was_killed_is_called_again(tmp_path):
    """It left an empty folder, in place of which no experiment could be made."""
    Path("experiments/pretraining/one").mkdir(parents=True)
    Path(f"experiments/pretraining/one/.config.yaml.tmp-{2**30}").write_text("experiment:\n")
    pre("-p", "one")
    assert os.listdir("experiments/pretraining/one") == ["config.yaml"]
    Path("experiments/pretraining/two").mkdir()
    Path("experiments/pretraining/two/notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="two exists already: choose another name$"):
        pre("-p", "two")


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
    ("experiment.name=other", "experiment.name is 'other', but this is the pretraining experiment 'one'"),
    ("experiment.kind=finetuning", "experiment.kind is 'finetuning', but"),
    ("logging.csv_eval_metrics_path=../x.csv", "csv_eval_metrics_path must lie below output_dir"),
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


# -----------------------------------------------------------------------------
# runs


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classes")
    classes(folder)
    (folder / "tokenizer.json").write_text(checkpoint.load(folder / "encoder.pt")["meta"]["tokenizer"]["json"])
    return folder


def sets(**values) -> list[str]:
    return [word for key, value in values.items() for word in ("--set", f"{key.replace('__', '.')}={value}")]


def new_pre(data, name, *argv, **values):
    values = {"tokenizer__vocab_dir": data, "tokenizer__max_length": 16, "architecture__embedding_dim": 16,
              "architecture__attention__num_heads": 2, "training__epochs": 2, "training__learning_rate": 1e-2,
              **{f"data__{s}__dataset_path": data / f"{s}.pt" for s in ("train", "val", "test")}, **values}  # fmt: skip
    pre("-p", name, *sets(**values), *argv)
    return Path("experiments/pretraining", name)


def new_fin(data, name, parent, **values):
    paths = {f"data__{s}__dataset_path": data / f"{s}.pt" for s in ("train", "val", "test")}
    fin("-f", name, "-p", parent, *sets(classification_head__num_labels=3, **paths, **values))
    return Path("experiments/finetuning", name)


def start(name, kind="pretraining", *flags):
    try:
        translate.main(["-n", name, "-m", kind, *flags])
    finally:
        if exits.held:  # what guard() does for a script
            exits.held.leave(2)


def rows(path, without=("ms", "tok_per_s", "text_per_s")):
    with open(path, newline="") as f:
        return [{k: v for k, v in row.items() if k not in without} for row in csv.DictReader(f)]


def weights(folder, name="model.ckpt"):
    return checkpoint.load(folder / "checkpoints" / name)["model"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def killed_at(monkeypatch, step):
    """Ends a run after so many steps as SIGKILL would."""
    real = run.Run.stopping

    class Killed(BaseException):
        pass

    def stopping(self):
        if self.step == step:
            raise Killed
        return real(self)

    monkeypatch.setattr(run.Run, "stopping", stopping)
    return pytest.raises(Killed)


def test_from_pretraining_to_a_test_score_everything_lies_where_it_should(data):
    one = new_pre(data, "one")
    start("one")
    two = new_fin(data, "two", "one", training__epochs=3)
    start("two", "finetuning")
    for folder in (one, two):
        for name in ("config.yaml", "config.resolved.yaml", "checkpoints/model.ckpt", "checkpoints/best-model.ckpt",
                     "metrics/train/metrics.csv", "metrics/eval/metrics.csv", "loss.png", "results.json"):  # fmt: skip
            assert (folder / name).is_file(), name
    steps = [int(row["step"]) for row in rows(two / "metrics/eval/metrics.csv")]
    assert steps == [0, 5, 10, 15]  # 72 texts, 16 at once: five steps an epoch, evaluated at each
    results = json.loads((two / "results.json").read_text())
    assert 0 <= results["test_accuracy"] <= 1 and results["labels"] == ["seven", "eight", "nine"]
    assert "test_loss" in json.loads((one / "results.json").read_text())
    began = checkpoint.load(two / "checkpoints/model.ckpt")
    assert began["options"]["init_from"] == "experiments/pretraining/one/checkpoints/best-model.ckpt"


@pytest.mark.full
def test_two_runs_of_one_config_write_the_same_metrics(data):
    for name in ("a", "b"):
        new_pre(data, name)
        start(name)
        new_fin(data, name, name)
        start(name, "finetuning")
    new_pre(data, "c", experiment__seed=1)
    start("c")
    for kind in KINDS:
        for part in ("train", "eval"):
            a, b = (rows(Path("experiments", kind, n, "metrics", part, "metrics.csv")) for n in "ab")
            assert a == b and len(a) > 1
    a, c = (rows(Path("experiments/pretraining", n, "metrics/eval/metrics.csv")) for n in "ac")
    assert a != c


@pytest.mark.full
@pytest.mark.parametrize("values", [
    {}, {"architecture__attention__kind": "favor", "architecture__attention__favor__redraw_interval": 4},
    {"architecture__attention__kind": "lsh", "architecture__attention__lsh__chunk_size": 4},
])  # fmt: skip
def test_a_clone_goes_on_to_what_the_uninterrupted_run_becomes(data, monkeypatch, values):
    whole = new_pre(data, "whole", training__epochs=3, **values)
    start("whole")
    new_pre(data, "old", training__epochs=3, **values)
    with monkeypatch.context() as m, killed_at(m, 9):
        start("old")
    checkpoint.wait()
    pre("-p", "new", "-rp", "old")
    start("new")
    new = Path("experiments/pretraining/new")
    assert checkpoint.load(new / "checkpoints/model.ckpt")["loop"]["resumes"] == [5]
    assert all(same(weights(whole, name), weights(new, name)) for name in ("model.ckpt", "best-model.ckpt"))
    for part, first in (("train", 1), ("eval", 1)):  # from step 5 on: the evaluation there is in the checkpoint
        tail = rows(whole / f"metrics/{part}/metrics.csv")[first:]
        assert rows(new / f"metrics/{part}/metrics.csv") == tail and tail
    assert "is_resume: true" in (new / "config.yaml").read_text()  # never rewritten


def test_a_clone_killed_before_it_saved_is_not_told_to_resume(data, monkeypatch):
    new_pre(data, "old")
    with monkeypatch.context() as m, pytest.raises(SystemExit):
        stopped_at(m, 7, 1)  # after its batch
        start("old")
    pre("-p", "new", "-rp", "old")
    with monkeypatch.context() as m, killed_at(m, 9):
        start("new")
    with pytest.raises(ValueError, match="new holds a run already: it has no checkpoint to go on from, --overwrite"):
        start("new", "pretraining", "--overwrite=false")
    with pytest.raises(ValueError, match="--overwrite must be true or false, got 'maybe'"):
        start("new", "pretraining", "--overwrite=maybe")
    start("new", "pretraining", "--overwrite=True")


@pytest.mark.full
def test_an_interrupted_run_goes_on_in_its_own_folder(data, monkeypatch):
    whole = new_pre(data, "whole")
    start("whole")
    new_fin(data, "whole", "whole", training__freeze="true", training__freeze_epochs=1)
    start("whole", "finetuning")
    for kind, name in (("pretraining", "old"), ("finetuning", "old")):
        folder = new_pre(data, name) if kind == "pretraining" else new_fin(
            data, name, "whole", training__freeze="true", training__freeze_epochs=1)  # fmt: skip
        with monkeypatch.context() as m, killed_at(m, 7):
            start(name, kind)
        checkpoint.wait()
        start(name, kind, "--init_from=resume")
        twin = whole if kind == "pretraining" else Path("experiments/finetuning/whole")
        assert same(weights(folder), weights(twin))
        assert rows(folder / "metrics/train/metrics.csv") == rows(twin / "metrics/train/metrics.csv")


@pytest.mark.full
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_stopped_at_its_end_goes_on_to_its_results(data, monkeypatch, kind):
    """After the last batch; in the last evaluation; in that of the test split. And after the results it is finished."""
    new_pre(data, "base")
    if kind == "finetuning":
        start("base")
    for name in ("whole", "old"):
        new_pre(data, name) if kind == "pretraining" else new_fin(data, name, "base")
    start("whole", kind)
    for call, flags in ((1, []), (1, ["--init_from=resume"]), (3, ["--init_from=resume"])):
        with monkeypatch.context() as m, pytest.raises(SystemExit, match="75"):
            stopped_at(m, 10, call)
            start("old", kind, *flags)
        assert not Path("experiments", kind, "old", "results.json").exists()
    start("old", kind, "--init_from=resume")
    whole, old = (Path("experiments", kind, name) for name in ("whole", "old"))
    results = [json.loads((folder / "results.json").read_text()) | {"seconds": 0} for folder in (whole, old)]
    assert results[0] == results[1] and "test_loss" in results[0]
    assert all(same(weights(whole, name), weights(old, name)) for name in ("model.ckpt", "best-model.ckpt"))
    assert rows(whole / "metrics/eval/metrics.csv") == rows(old / "metrics/eval/metrics.csv")
    with pytest.raises(ValueError, match="finished at step 10: a higher training.epochs goes on"):
        start("old", kind, "--init_from=resume")


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_that_are_started_again_before_the_first_checkpoint_start_anew(data, monkeypatch, kind):
    """What the rank that died left there is no other run, which would be refused."""
    new_pre(data, "base")
    if kind == "finetuning":
        start("base")
        new_fin(data, "one", "base")
    folder = Path("experiments", kind, "one" if kind == "finetuning" else "base")
    left = {"state": "running", "step": 3, "launch": os.getppid(), "host": socket.gethostname()}
    (folder / "status.json").write_text(json.dumps(left))
    with pytest.raises(ValueError, match="holds a run already: it has no checkpoint to go on from, --overwrite"):
        start(folder.name, kind)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    start(folder.name, kind)
    assert run.finished(folder)


def test_weights_only_when_asked(data):
    old = new_pre(data, "old")
    start("old")
    pre("-p", "new", "-rp", "old", *sets(training__resume__load_only_model_state="true", training__learning_rate=0))
    start("new")
    state = checkpoint.load(Path("experiments/pretraining/new/checkpoints/model.ckpt"))
    assert same(weights(old), state["model"]) and state["step"] == 10 and state["loop"]["resumes"] == []


def test_a_resume_takes_the_checkpoint_of_the_experiment_that_it_names(data):
    """Not its own from before --overwrite, which that deletes, nor that of a name that was there earlier."""
    for name in ("one", "two"):
        new_pre(data, name, training__epochs=1)
    start("one")
    resume = {"is_resume": "true", "resume_pretraining_name": "one", "checkpoint_path": "checkpoints/model.ckpt"}
    folder = new_pre(data, "new", **{f"training__resume__{k}": v for k, v in resume.items()})
    for flags in ([], ["--overwrite"]):
        start("new", "pretraining", *flags)
        assert checkpoint.load(folder / "checkpoints/model.ckpt")["loop"]["resumes"] == [5]

    config_file, before = folder / "config.yaml", (folder / "checkpoints/model.ckpt").read_bytes()
    config_file.write_text(folders.fill(text("pretraining", "new"), {"training.resume.resume_pretraining_name": None}))
    with pytest.raises(ValueError, match="training.resume.checkpoint_path .* lies in the folder whose run is to be rep"):
        start("new", "pretraining", "--overwrite")
    assert (folder / "checkpoints/model.ckpt").read_bytes() == before
    pre("-p", "more", "-rp", "one", *sets(training__resume__resume_pretraining_name="two"))
    with pytest.raises(ValueError, match="name is 'two', but checkpoint_path '../one/.*' is of 'one'"):
        start("more")


def test_a_config_edited_to_resume_its_own_run_goes_on_in_its_folder(data):
    """As its key is_resume says, no less than --init_from=resume does; with --overwrite it would delete what it reads."""
    folder = new_pre(data, "one", training__epochs=1)
    start("one")
    for epochs, name, flags in ((2, "one", []), (3, None, []), (4, "one", ["--overwrite"])):
        resume = {"training.resume.is_resume": True, "training.resume.resume_pretraining_name": name,
                  "training.resume.checkpoint_path": "checkpoints/model.ckpt", "training.epochs": epochs}  # fmt: skip
        (folder / "config.yaml").write_text(folders.fill(text("pretraining", "one"), resume))
        with pytest.raises(ValueError, match="in the folder whose run is to be") if flags else contextlib.nullcontext():
            start("one", "pretraining", *flags)
        state = checkpoint.load(folder / "checkpoints/model.ckpt")
        assert state["step"] == 5 * min(epochs, 3) and state["loop"]["resumes"] == [5, 10][: epochs - 1]
    assert [int(r["step"]) for r in rows(folder / "metrics/eval/metrics.csv")] == [0, 5, 10, 15]


def test_finetuning_does_not_begin_with_another_experiment_than_it_names(data):
    for name in ("one", "two"):
        new_pre(data, name, training__epochs=1)
    start("one")
    folder = new_fin(data, "three", "one", pretrained_experiment__name="two")
    with pytest.raises(ValueError, match="pretrained_experiment.name is 'two', but .*one/checkpoints.* is of 'one'"):
        start("three", "finetuning")
    shutil.copytree("experiments/pretraining/one/checkpoints", "copied")
    values = {"pretrained_experiment.path": "copied", "pretrained_experiment.checkpoint": "best-model.ckpt"}
    (folder / "config.yaml").write_text(folders.fill(text("finetuning", "three"), values))
    start("three", "finetuning")
    new_fin(data, "four", "one", pretrained_experiment__path="copied/best-model.ckpt")
    with pytest.raises(ValueError, match="path is an experiment's folder, copied/best-model.ckpt is a file: name that"):
        start("four", "finetuning")


def test_strict_weights_or_what_differs_is_said(data, capsys):
    new_pre(data, "old", architecture__pos_encoding="learned")
    start("old")
    resume = {"training__resume__load_only_model_state": "true", "architecture__pos_encoding": "sinusoidal"}
    pre("-p", "new", "-rp", "old", *sets(**resume))
    with pytest.raises(ValueError, match="architecture.pos_encoding is 'learned' in the weights to start from"):
        start("new")
    pre("-p", "deep", "-rp", "old", *sets(**resume, training__resume__strict="false", architecture__num_layers=3,
                                          training__learning_rate=0))  # fmt: skip
    start("deep")
    said, new = capsys.readouterr().out, weights(Path("experiments/pretraining/deep"))
    assert "lacks transformer.h.2." in said and "has, and this model has not, transformer.wpe.weight" in said
    assert same({k: v for k, v in weights(Path("experiments/pretraining/old")).items() if "wpe" not in k},
                {k: v for k, v in new.items() if ".h.2." not in k})  # fmt: skip


def test_a_finished_run_is_not_resumed_in_full_and_a_second_run_is_refused(data):
    folder = new_pre(data, "old")
    start("old")
    pre("-p", "new", "-rp", "old")
    for name, flags in (("new", []), ("old", ["--init_from=resume"])):
        with pytest.raises(ValueError, match="finished at step 10: a higher training.epochs goes on"):
            start(name, "pretraining", *flags)
    before = (folder / "checkpoints/model.ckpt").read_bytes()
    with pytest.raises(ValueError, match="holds a run already: --init_from=resume .* --overwrite .*--files.second=overwrite"):
        start("old")
    assert (folder / "checkpoints/model.ckpt").read_bytes() == before
    config_file = folder / "config.yaml"
    config_file.write_text(config_file.read_text().replace("seed: 420", "seed: 7"))
    start("old", "pretraining", "--overwrite")
    assert (folder / "checkpoints/model.ckpt").read_bytes() != before
    assert [int(r["step"]) for r in rows(folder / "metrics/eval/metrics.csv")] == [0, 5, 10]
    pre("-p", "more", "-rp", "old", *sets(training__epochs=3))
    start("more")
    assert checkpoint.load(Path("experiments/pretraining/more/checkpoints/model.ckpt"))["step"] == 15


@pytest.mark.parametrize("place", ["results/one", pytest.param("~/one", marks=pytest.mark.full)])
def test_an_experiment_with_its_own_output_dir_is_gone_on_from(data, tmp_path, monkeypatch, place):
    """The generators write where its results are; by name they are found, too, and from a path to its folder."""
    monkeypatch.setenv("HOME", str(tmp_path / "elsewhere"))
    new_pre(data, "one", experiment__output_dir=place)
    place = place.replace("~", str(tmp_path / "elsewhere"))
    start("one")
    pre("-p", "more", "-rp", "one", *sets(training__epochs=3))
    by_name = {"is_resume": True, "resume_pretraining_name": "one", "checkpoint_path": None}
    edited = folders.fill(text("pretraining", "more"), {"experiment.name": "named", "experiment.output_dir": None,
                                                        "training.resume": by_name})  # fmt: skip
    folders.create("pretraining", "named", edited)
    for name in ("more", "named"):
        start(name)
        assert checkpoint.load(Path("experiments/pretraining", name, "checkpoints/model.ckpt"))["loop"]["resumes"] == [10]
    new_fin(data, "two", "one")
    new_fin(data, "named", "one", pretrained_experiment__path="null")
    new_fin(data, "folder", "one", pretrained_experiment__path="experiments/pretraining/one")
    for name in ("two", "named", "folder"):
        start(name, "finetuning")
        began = checkpoint.load(Path("experiments/finetuning", name, "checkpoints/model.ckpt"))["options"]["init_from"]
        assert began == f"{place}/checkpoints/best-model.ckpt"


@pytest.mark.parametrize("kind", KINDS)
def test_a_resume_needs_nothing_of_what_the_run_began_with(data, monkeypatch, kind):
    base = new_pre(data, "base", training__epochs=1)
    start("base")
    if kind == "pretraining":
        pre("-p", "one", "-rp", "base", *sets(training__epochs=2))
    else:
        new_fin(data, "one", "base")
    with monkeypatch.context() as m, pytest.raises(SystemExit, match="75"):
        stopped_at(m, 7, 1)
        start("one", kind)
    (base / "checkpoints").rename("moved")
    start("one", kind, "--init_from=resume")
    assert checkpoint.load(Path("experiments", kind, "one", "checkpoints/model.ckpt"))["step"] == 10


@pytest.mark.parametrize("kind", KINDS)
def test_of_an_overwritten_run_nothing_is_resumed_or_shown(data, monkeypatch, kind):
    """Also where the new run is killed before it saves; what the user put beside it stays."""
    new_pre(data, "old")
    start("old")
    if kind == "finetuning":
        new_fin(data, "old", "old")
        start("old", kind)
    folder = Path("experiments", kind, "old")
    (folder / "notes.csv").write_text("mine")
    assert (folder / "checkpoints/model.prev.ckpt").is_file() and plot.open_run(folder).results
    with monkeypatch.context() as m, killed_at(m, 0):  # in its first evaluation
        start("old", kind, "--overwrite")
    assert {p.name for p in folder.rglob("*") if p.is_file() and p.stat().st_size} - {".lock"} == {
        "config.yaml", "config.resolved.yaml", "status.json", "notes.csv"}  # fmt: skip
    assert plot.open_run(folder) is None
    with pytest.raises(ValueError, match="nothing to resume"):
        start("old", kind, "--init_from=resume")


FAVOR = {"architecture__attention__kind": "favor"}
WRONG = [
    ({"architecture__attention__num_heads": 3}, "attention.num_heads must divide architecture.embedding_dim"),
    ({"architecture__attention__attention_embedding_dim": 6}, "attention_embedding_dim / .*num_heads must be even"),
    ({**FAVOR, "architecture__attention__attn_dropout": 0.1}, "architecture.attention.attn_dropout must be 0"),
    ({"tokenizer__wrapper_path": "evil.py"}, "wrapper_path 'evil.py': .* tokenizer.vocab_dir"),
    ({"logging__csv_eval_metrics_path": "../x.csv"}, "csv_eval_metrics_path must lie below output_dir"),
    ({"logging__csv_train_metrics_path": "config.yaml"}, "csv_train_metrics_path config.yaml: a run writes something"),
    ({"logging__csv_eval_metrics_path": "checkpoints/model.prev.ckpt"}, "model.prev.ckpt: a run writes something else"),
    ({"tokenizer__vocab_dir": "nowhere"}, "tokenizer.vocab_dir nowhere does not exist"),
    ({"tokenizer__vocab_dir": "null"}, "tokenizer.vocab_dir is missing"),
    ({"data__val__dataset_path": "null"}, "data.val.dataset_path is missing"),
    ({"data__val__dataset_path": "nowhere.pt"}, "config.yaml: data.val.dataset_path nowhere.pt does not exist"),
    ({"experiment__name": "other"}, "experiment.name is 'other', but this is the pretraining experiment"),
    ({"training__device": "gpu"}, "config.yaml: training.device gpu: this machine"),
    ({"training__resume__is_resume": "true"}, "needs resume_pretraining_name or checkpoint_path"),
    ({"training__resume__is_resume": "true", "training__resume__checkpoint_path": "x"}, "'x': no such file"),
    ({"training__resume__resume_pretrain_name": "x"}, "no such key"),
]


@pytest.mark.parametrize(("values", "message"), WRONG, ids=lambda x: next(iter(x)) if isinstance(x, dict) else "")
def test_errors_are_in_the_spelling_of_the_config(data, values, message):
    if "gpu" in values.values() and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    if "no such key" not in message:  # edited by hand
        folder = new_pre(data, "one")
        edits = {k.replace("__", "."): None if v == "null" else v == "true" or v for k, v in values.items()}
        (folder / "config.yaml").write_text(folders.fill(text("pretraining", "one"), edits))
        with pytest.raises(ValueError, match=message):
            start("one")
        assert not [p for p in folder.iterdir() if p.name not in ("config.yaml", ".lock")]
    with pytest.raises(ValueError, match=message):
        new_pre(data, "two", **values)
        start("two")


def test_a_config_edited_by_hand_resumes_too_misspelt_key_and_all(data):
    new_pre(data, "old")
    start("old")
    folder = new_pre(data, "new", training__epochs=3)
    edited = folders.fill((folder / "config.yaml").read_text(), {
        "training.resume": {"is_resume": True, "resume_pretrainig_name": "old",
                            "checkpoint_path": "checkpoints/model.ckpt"}})  # fmt: skip
    (folder / "config.yaml").write_text(edited)
    start("new")  # the path is relative to the resumed experiment's folder
    assert checkpoint.load(folder / "checkpoints/model.ckpt")["loop"]["resumes"] == [10]


def test_a_malicious_checkpoint_or_data_set_executes_nothing(data):
    class Evil:
        def __reduce__(self):
            return os.system, ("touch executed",)

    old = new_pre(data, "old")
    (old / "checkpoints").mkdir()
    torch.save({"model": Evil()}, old / "checkpoints/best-model.ckpt")
    torch.save({"input_ids": Evil()}, "evil.pt")
    new_fin(data, "fin", "old")
    with pytest.raises(ValueError, match="damaged"):
        start("fin", "finetuning")
    with pytest.raises(ValueError, match="evil.pt holds code"):
        new_pre(data, "new", data__val__dataset_path="evil.pt")
        start("new")
    assert not Path("executed").exists()


def test_without_pretraining_the_same_architecture_starts_from_random_weights(data):
    new_pre(data, "base", architecture__num_layers=1)
    with pytest.raises(ValueError, match="no file .*best-model.ckpt; run python train.py -n base -m pretraining first"):
        new_fin(data, "early", "base")
        start("early", "finetuning")
    last = Path("experiments/pretraining/base/checkpoints/model.ckpt")
    last.parent.mkdir()
    last.touch()  # all evaluations were NaN: there is no best
    with pytest.raises(ValueError, match="no file .*; pretrained_experiment.checkpoint=checkpoints/model.ckpt is there"):
        start("early", "finetuning")
    folder = new_fin(data, "scratch", "base", pretrained_experiment__checkpoint="null")
    start("scratch", "finetuning")
    about = checkpoint.load(folder / "checkpoints/model.ckpt")
    assert about["model_config"]["n_layer"] == 1 and about["model_config"]["n_embd"] == 16


def test_a_copied_folder_leaves_the_one_it_was_copied_from_alone(data):
    old = new_pre(data, "old")
    copy = old.with_name("copy")
    shutil.copytree(old, copy)
    with pytest.raises(ValueError, match="a copied or renamed folder needs its own name and output_dir"):
        start("copy")
    (copy / "config.yaml").write_text((copy / "config.yaml").read_text().replace("name: old", "name: copy"))
    says = "copy/config.yaml: experiment.output_dir experiments/pretraining/old is another experiment's folder"
    for go in (lambda: start("copy"), lambda: start("copy", "pretraining", "--overwrite"),
               lambda: pre("-p", "new", "-rp", "copy"), lambda: fin("-f", "new", "-p", "copy")):  # fmt: skip
        with pytest.raises(ValueError, match=says):
            go()
    assert not (old / "status.json").exists() and not Path("experiments/pretraining/new").exists()


def test_of_a_renamed_folder_nothing_is_made_that_looks_for_it_under_its_old_name(data):
    old = new_pre(data, "old")
    old.rename(old.with_name("renamed"))
    for go in (lambda: start("renamed"), lambda: pre("-p", "new", "-rp", "renamed"),
               lambda: fin("-f", "new", "-p", "renamed")):  # fmt: skip
        with pytest.raises(ValueError, match="a copied or renamed folder needs its own name and output_dir"):
            go()
    assert [p.name for p in Path("experiments").rglob("*") if p.is_dir()] == ["pretraining", "renamed"]


def test_errors_offer_no_option_that_an_experiment_lacks(data):
    new_pre(data, "base", training__epochs=1)
    start("base")
    for key, value, says in (("embedding_dim", 8, "embedding_dim is 16 in .* and cannot become 8: write 16"),
                             ("pos_encoding", "learned", "is 'rope' in .* cannot become 'learned': write 'rope'"),
                             ("attention__kind", "lsh", "kind is 'mha' in .* cannot become 'lsh': write 'mha'"),
                             ("attention__num_heads", 1, "num_heads is 2 in .* and cannot become 1: write 2")):  # fmt: skip
        new_fin(data, key, "base", **{f"architecture__{key}": value})
        with pytest.raises(ValueError, match=says) as e:
            start(key, "finetuning")
        assert "--" not in str(e.value)


def test_a_resume_names_the_switch_of_kernels_as_the_config_does(data):
    new_pre(data, "old", training__epochs=1, architecture__attention__mha__use_native_sdpa="false")
    start("old")
    change = "architecture.attention.mha.use_native_sdpa"
    for name, key, value, says in (("fused", "mha__use_native_sdpa", "true", f"{change} is False .* cannot become True"),
                                   ("lsh", "kind", "lsh", "attention.kind is 'mha' .* cannot become 'lsh'")):  # fmt: skip
        pre("-p", name, "-rp", "old", *sets(**{"training__epochs": 2, f"architecture__attention__{key}": value}))
        with pytest.raises(ValueError, match=says):
            start(name)


def test_notes_and_what_changed_are_in_keys_of_the_config(data, capsys):
    folder = new_pre(data, "old", training__resume__checkpoint_path="x", training__resume__strict="false",
                     architecture__attention__lsh__num_hashes=2)  # fmt: skip
    start("old")
    said = capsys.readouterr().out
    for key, needs in (("training.resume.checkpoint_path", "training.resume.is_resume=True"),
                       ("training.resume.strict", "training.resume.load_only_model_state=True"),
                       ("architecture.attention.lsh.num_hashes", "architecture.attention.kind=lsh")):  # fmt: skip
        assert f"note: {key} does nothing here: it needs {needs}" in said
    new_fin(data, "fin", "old", training__freeze="true", training__freeze_n_layers=1, tokenizer__max_length=64)
    start("fin", "finetuning")
    said += capsys.readouterr().out
    assert "training.freeze_n_layers does nothing here: it needs no training.freeze, or training.freeze_epochs" in said
    assert "tokenizer.max_length 64 is more than the encoder's 16 positions" in said
    config_file, edit = folder / "config.yaml", {"training.epochs": 3, "training.learning_rate": 1e-3}
    config_file.write_text(folders.fill(config_file.read_text(), edit))
    start("old", "pretraining", "--init_from=resume")
    said += capsys.readouterr().out
    assert "  training.learning_rate: 0.01 -> 0.001" in said and "--" not in said.replace("--init_from=exp", "").replace(
        "--start=", "").replace("--predict FILE", "")  # fmt: skip
    for key, old, new in (("architecture.attention.kind", "'mha'", "'lsh'"),
                          ("architecture.attention.projection_bias", "True", "False")):  # fmt: skip
        config_file.write_text(folders.fill(config_file.read_text(), {key: yaml.safe_load(new)}))
        says = f"{config_file}: {key} is {old} in the run to resume and cannot become {new}"
        with pytest.raises(ValueError, match=says):
            start("old", "pretraining", "--init_from=resume")
        config_file.write_text(folders.fill(config_file.read_text(), {key: yaml.safe_load(old)}))


def test_switches_of_logging_act(data):
    folder = new_pre(data, "one", logging__log_eval_metrics="false", logging__log_gpu_memory="true")
    start("one")
    assert float(rows(folder / "metrics/train/metrics.csv")[0]["memory_mib"])
    assert not (folder / "metrics/eval/metrics.csv").exists()
    quiet = new_pre(data, "two", logging__log_metrics_csv="false")
    start("two")
    assert not (quiet / "metrics").exists() and (quiet / "results.json").exists()
    places = {"experiment__output_dir": "results/three", "logging__csv_train_metrics_path": "a/b.csv"}
    elsewhere = new_pre(data, "three", **places)
    start("three")
    assert Path("results/three/a/b.csv").is_file() and [p.name for p in elsewhere.iterdir()] == ["config.yaml"]


@pytest.mark.full
def test_train_py_opens_experiments_also_under_torchrun(data, tmp_path):
    from tests.loops import ROOT, port

    def launch(*command):
        return subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, timeout=300)

    generator = ROOT / "experiments" / "generate_pretraining_experiment.py"
    paths = {f"data__{s}__dataset_path": data / f"{s}.pt" for s in ("train", "val")}
    values = sets(tokenizer__vocab_dir=data, tokenizer__max_length=16, training__epochs=1, **paths)
    for name in ("one", "two"):
        assert launch(generator, "-p", name, *values).returncode == 0
    done = launch(ROOT / "train.py", "-n", "one", "-m", "pretraining")
    assert done.returncode == 0, done.stderr
    ranks = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port", port())
    done = launch(*ranks, ROOT / "train.py", "-n", "two", "-m", "pretraining")
    assert done.returncode == 0, done.stderr
    assert len(rows("experiments/pretraining/two/metrics/eval/metrics.csv")) == 2
    for words, code in ((["-n", "none", "-m", "pretraining"], 2), (["-n", "one", "-m", "training"], 2),
                        (["-n", "one", "-m", "pretraining"], 2)):  # fmt: skip
        done = launch(ROOT / "train.py", *words)
        assert done.returncode == code and len(done.stderr.strip().splitlines()) == 1, done.stderr
    done = launch(generator, "-p", "../x")
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1


def test_overwrite_and_resume_are_not_taken_together():
    pre("-p", "one")
    with pytest.raises(ValueError, match="--overwrite replaces the run that --init_from=resume goes on with"):
        start("one", "pretraining", "--overwrite", "--init_from=resume")


@pytest.mark.parametrize("words", [["-n", "one"], ["--name", "one"], ["--name=one"], ["-n=one"]])
def test_a_name_without_a_mode_is_asked_for_it(words):
    with pytest.raises(ValueError, match="-m/--mode"):
        train.start(words)


def test_name_and_mode_may_have_equals_signs():
    with pytest.raises(ValueError, match="no pretraining experiment is called 'one'"):
        train.start(["--name=one", "--mode=pretraining"])
