"""Optimizers: each moves the weights, learns, and goes on from a saved state as if it had never stopped."""

import copy
import io
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import train_args
from core import config, dist, optim
from model import GPT, GPTConfig
from variants import optimizers

# far enough from each optimizer's own default that the toy is learnt in 60 steps
RATES = {"sgd": 0.1, "adam": 1e-2, "adamw": 1e-2, "adamax": 1e-2, "radam": 3e-2, "nadam": 1e-2, "adagrad": 0.1,
         "adadelta": 1.0, "adafactor": 0.1, "rmsprop": 1e-2, "rprop": 1e-2, "asgd": 0.5, "muon": 1e-2}  # fmt: skip
EXTRA = {"ranger21": {"num_iterations": 200}}


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.wte, self.head = nn.Embedding(11, 8), nn.Linear(8, 11, bias=False)
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 24, bias=False), nn.Linear(24, 8)

    def forward(self, step):
        """Cross-entropy of the next number modulo 11."""
        x = torch.randint(0, 11, (32,), generator=torch.Generator().manual_seed(step))
        h = self.wte(x)
        return F.cross_entropy(self.head(h + self.down(torch.relu(self.up(self.norm(h))))), (x + 1) % 11)


def build(name, model, lr=None, weight_decay=0.1, betas=(0.9, 0.99), **options):
    matrices = [model.up.weight, model.down.weight]
    groups = [
        {"params": matrices, "weight_decay": weight_decay, "use_muon": True},
        {"params": [model.wte.weight, model.head.weight], "weight_decay": weight_decay, "use_muon": False},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0, "use_muon": False},
    ]
    options.setdefault("extra_args", EXTRA.get(name))
    return optimizers.build(name, groups, lr or RATES.get(name, 1e-3), weight_decay, betas, momentum=0.9, **options)


def train(model, optimizer, first, last):
    for step in range(first, last):
        torch.manual_seed(step)  # some optimizers draw; the loops seed torch at each step
        optimizer.zero_grad(set_to_none=True)
        loss = model(step)
        loss.backward()
        optimizer.step()
    return loss.item()


def check_resume(name, tmp_path):
    model = Toy()
    optimizer = build(name, model)
    train(model, optimizer, 0, 12)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    halfway = [p.detach().clone() for p in model.parameters()]
    train(model, optimizer, 12, 24)
    assert not all(map(torch.equal, halfway, model.parameters())), "nothing moves"
    assert all(p.isfinite().all() for p in model.parameters())

    state = torch.load(tmp_path / "state.pt", weights_only=True)
    again = Toy()
    again.load_state_dict(state["model"])
    optimizer = build(name, again)
    optimizer.load_state_dict(state["optimizer"])
    train(again, optimizer, 12, 24)
    for (key, a), b in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b), (name, key, (a - b).abs().max())

    optimizer = build(name, Toy())  # as the loops do it: what the options say is this run's, the rest is the state's
    optim.load(optimizer, state["optimizer"])
    restored = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    stored = [{k: v for k, v in g.items() if k != "params"} for g in state["optimizer"]["param_groups"]]
    assert repr(restored) == repr(stored)


@pytest.mark.parametrize("name", optimizers.TORCH)
def test_torch_optimizer_resumes_exactly(name, tmp_path):
    check_resume(name, tmp_path)


@pytest.mark.parametrize("name", optimizers.TORCH)
def test_the_state_of_an_optimizer_is_counted_before_its_first_step(name):
    """--check and the start refuse what will not fit: sgd, chosen to save memory, was counted as AdamW."""
    model = Toy()
    optimizer = build(name, model)
    counted = optim.moments(optimizer)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    assert counted == optim.moments(optimizer) and (counted or not optimizer.state)  # some keep none


@pytest.mark.parametrize(
    "name", ["lion", "lamb", "adan", "soap", "shampoo", "normuon", "scion", "spectralsphere", "prodigy"]
)
def test_library_optimizer_resumes_exactly(name, tmp_path):
    pytest.importorskip("pytorch_optimizer")
    check_resume(name, tmp_path)


@pytest.mark.parametrize("name", optimizers.TORCH)
def test_a_weight_may_have_its_first_gradient_after_others(name):
    """The embedding of a data set that had no turn yet: sgd's fused kernel failed at the turn that it had."""
    model = Toy()
    optimizer = build(name, model)
    late = model.wte.weight
    late.requires_grad = False
    train(model, optimizer, 0, 2)
    late.requires_grad, before = True, late.detach().clone()
    train(model, optimizer, 2, 4)
    assert late.isfinite().all() and not torch.equal(late, before)


@pytest.mark.parametrize("name", ["schedulefreeadamw", "schedulefreesgd", "schedulefreeradam", "splus"])
def test_an_average_is_evaluated_and_saved_and_training_goes_on_exactly(name, tmp_path):
    pytest.importorskip("pytorch_optimizer")
    models = plain, watched = Toy(), Toy()
    for model in models:
        model.unused = nn.Parameter(torch.ones(2, 2))  # as the embedding of a data set that had no turn yet
    first, second = build(name, plain, 0.1), build(name, watched, 0.1)
    second.param_groups[1]["params"].append(watched.unused)
    for begin, end in ((0, 0), (0, 1), (1, 9)):
        if end:
            train(plain, first, begin, end)
            train(watched, second, begin, end)
        before = [p.detach().clone() for p in watched.parameters()]
        with optimizers.averaged(second):
            assert end < 9 or not all(map(torch.equal, before, watched.parameters()))
            saved = copy.deepcopy((watched.state_dict(), second.state_dict()))
        assert all(map(torch.equal, before, watched.parameters()))
    again = Toy()
    again.unused = nn.Parameter(torch.zeros(2, 2))
    again.load_state_dict(saved[0])
    third = build(name, again, 0.1)
    third.param_groups[1]["params"].append(again.unused)
    optim.load(third, saved[1])
    optimizers.back_to_trained(third)
    for model, optimizer in ((plain, first), (watched, second), (again, third)):
        train(model, optimizer, 9, 20)
    assert all(map(torch.equal, plain.parameters(), watched.parameters()))
    assert all(map(torch.equal, plain.parameters(), again.parameters()))


@pytest.mark.full
@pytest.mark.parametrize("name", optimizers.LIBRARY.split())
def test_every_library_optimizer_resumes_exactly(name, tmp_path):
    pytest.importorskip("pytorch_optimizer")
    check_resume(name, tmp_path)


@pytest.mark.parametrize("name", optimizers.TORCH)
def test_torch_optimizer_learns(name):
    model = Toy()
    first = model(0).item()
    last = train(model, build(name, model), 0, 60)
    assert last < first - 1.0, (first, last)


def test_the_state_matters():
    """A negative control: with a fresh state in place of the saved one the weights differ."""
    model = Toy()
    train(model, build("adamw", model), 0, 12)
    again = Toy()
    again.load_state_dict(model.state_dict())
    train(model, build("adamw", model), 12, 13)
    optimizer = build("adamw", again)
    train(again, optimizer, 0, 1)
    assert not torch.equal(model.up.weight, again.up.weight)


def test_every_name_of_the_library_is_listed_or_excluded_with_a_reason():
    library = pytest.importorskip("pytorch_optimizer")
    listed = set(optimizers.names()) | set(optimizers.EXCLUDED)
    assert set(library.get_supported_optimizers()) <= listed
    assert set(optimizers.LIBRARY.split()) <= set(library.get_supported_optimizers())
    assert not set(optimizers.names()) & set(optimizers.EXCLUDED)


def test_sgd_and_adamw_are_torchs():
    for name, reference in [
        ("sgd", lambda g: torch.optim.SGD(g, lr=0.1, momentum=0.9)),
        ("adamw", lambda g: torch.optim.AdamW(g, lr=0.1, betas=(0.9, 0.99))),
    ]:
        ours, theirs = Toy(), Toy()
        train(ours, build(name, ours, lr=0.1), 0, 5)
        decay = [p for p in theirs.parameters() if p.dim() >= 2]
        rest = [p for p in theirs.parameters() if p.dim() < 2]
        groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
        train(theirs, reference(groups), 0, 5)
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_muon_is_torchs_on_hidden_matrices_and_adamw_on_the_rest():
    ours, theirs = Toy(), Toy()
    optimizer = build("muon", ours, lr=0.01, extra_args={"muon_lr": 0.03})
    assert [g["lr"] for g in optimizer.param_groups] == [0.03, 0.01, 0.01]
    matrices = [theirs.up.weight, theirs.down.weight]
    muon = torch.optim.Muon(matrices, lr=0.03, weight_decay=0.1)
    tables = [theirs.wte.weight, theirs.head.weight]
    rest = [{"params": tables}, {"params": [p for p in theirs.parameters() if p.dim() < 2], "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(rest, lr=0.01, betas=(0.9, 0.99), weight_decay=0.1)
    for step in range(3):
        for model, parts in ((ours, [optimizer]), (theirs, [muon, adamw])):
            model.zero_grad()
            model(step).backward()
            for part in parts:
                part.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["muon", "normuon"])
def test_a_group_learning_rate_acts(name):
    """What the schedule sets in param_groups is what the step uses, in both parts."""
    if name != "muon":
        pytest.importorskip("pytorch_optimizer")
    model = Toy()
    optimizer = build(name, model)
    train(model, optimizer, 0, 1)
    before = [p.detach().clone() for p in model.parameters()]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    train(model, optimizer, 1, 2)
    assert all(map(torch.equal, before, model.parameters()))


@pytest.mark.parametrize("name, mults", [("adamw", [0.5, 0.5]), ("muon", [1.0, 0.5, 0.5])])
def test_the_multiple_of_a_group_stays(name, mults):
    """A learning rate for each layer: the groups' own were put back to 1 without a word."""
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=8, vocab_size=11, block_size=4))
    groups = optim.groups(model, 0.1, matrices=name == "muon", lr_mult=0.5)
    optimizer = optimizers.build(name, groups, 0.01, extra_args={"muon_lr": 0.02} if name == "muon" else None)
    assert [g["lr_mult"] for g in optimizer.param_groups] == mults
    assert [g["lr"] for g in optimizer.param_groups] == [0.01 * m for m in mults]


def test_own_arguments_act_and_unknown_ones_are_named():
    a, b = Toy(), Toy()
    train(a, build("rmsprop", a), 0, 3)
    train(b, build("rmsprop", b, extra_args={"momentum": 0.9, "centered": True}), 0, 3)
    assert not torch.equal(a.up.weight, b.up.weight)
    with pytest.raises(ValueError, match=r"rmsprop has no argument 'nesterov'; it takes alpha, .*momentum"):
        build("rmsprop", a, extra_args={"nesterov": True})
    with pytest.raises(ValueError, match="'lr'"):
        build("adam", a, extra_args={"lr": 1.0})
    with pytest.raises(ValueError, match="optimizer sgd: .*[Nn]esterov"):
        build("sgd", a, extra_args={"nesterov": True, "dampening": 0.5})


def test_an_argument_that_fails_at_a_step_is_named_before_the_first():
    """soap merges two axes, and keeps the gradient's own; shampoo refuses by an exception that only its library has."""
    pytest.importorskip("pytorch_optimizer")
    with pytest.raises(ValueError, match=r"--optimizer_args: soap cannot step with these \(RuntimeError"):
        optimizers.try_step(build("soap", Toy(), extra_args={"merge_dims": True}), "soap", resuming=False)
    with pytest.raises(ValueError, match="optimizer shampoo: preconditioning_compute_steps must be positive"):
        build("shampoo", Toy(), extra_args={"preconditioning_compute_steps": 0})


@pytest.mark.parametrize("name", ["adamw", "muon", "kron", "spam"])
def test_a_step_on_trial_leaves_nothing_behind(name):
    if name not in optimizers.TORCH:
        pytest.importorskip("pytorch_optimizer")
    ends = []
    for tried in (False, True):
        model = Toy()
        optimizer = build(name, model)
        if tried:
            optimizers.try_step(optimizer, name, resuming=False)
        train(model, optimizer, 0, 4)
        ends.append(model)
    assert all(map(torch.equal, *(m.parameters() for m in ends)))


def test_an_argument_that_would_do_nothing_is_refused():
    """The groups carry rates and decay; no loop gives muonclip scores to clip by."""
    pytest.importorskip("pytorch_optimizer")
    for name, argument in (("adamuon", "adamw_lr"), ("normuon", "adamw_wd"), ("muonclip", "qk_clip_threshold")):
        with pytest.raises(ValueError, match=f"{name} has no argument '{argument}'"):
            build(name, Toy(), extra_args={argument: 0.5})


@pytest.mark.parametrize("name", optimizers.MARKED)
def test_hidden_matrices_are_marked_for_those_that_want_it(name):
    """Without, both are AdamW."""
    pytest.importorskip("pytorch_optimizer")
    ends = []
    for marked in (True, False):
        model = Toy()
        optimizer = build(name, model)
        for group in optimizer.param_groups:
            assert group[optimizers.MARKED[name]] == group["use_muon"]
            group[optimizers.MARKED[name]] &= marked
        optim.set_lr(optimizer, 5e-4)  # half of what it began with: adamc's decay is another there
        train(model, optimizer, 0, 5)
        ends.append(model.up.weight)
    assert not torch.equal(*ends)


def test_what_is_left_of_an_optimizer_here_is_said():
    for name in optimizers.BARE:
        assert any(note.startswith(f"--optimizer={name} is ") for note in notes_on_rates(f"--optimizer={name}"))


@pytest.mark.parametrize("name, argument, value, says", [
    ("adamw", "betas", 1, "must be 2 numbers, got 1"), ("adamw", "betas", "0.9,x", "must be 2 numbers, got '0.9,x'"),
    ("adamw", "betas", "1,2,3", "must be 2 numbers"), ("adamw", "eps", "x", "must be a number, got 'x'"),
    ("adamw", "amsgrad", "maybe", "must be true or false"), ("sgd", "dampening", [1], "must be a number, got"),
    ("adamw", "foreach", 3, "must be true or false"), ("muon", "ns_steps", 2.5, "must be a whole number, got 2.5"),
])  # fmt: skip
def test_an_argument_of_another_kind_is_named_before_the_first_step(name, argument, value, says):
    with pytest.raises(ValueError, match=f"--optimizer_args {argument} {says}"):
        build(name, Toy(), extra_args={argument: value})


def check_ignored(name):
    """Those named as ignored change no weight."""
    ends, ignored = [], optimizers.ignored(name)
    for other in (False, True):
        decay = 0.9 if other and "weight_decay" in ignored else 0.1
        betas = (0.5, 0.6) if other and "beta1" in ignored else (0.9, 0.99)
        model = Toy()
        train(model, build(name, model, weight_decay=decay, betas=betas), 0, 3)
        ends.append([p.detach().clone() for p in model.parameters()])
    assert all(map(torch.equal, *ends))
    return ignored


@pytest.mark.parametrize("name, ignored", [
    ("ademamix", ["beta1", "beta2"]), ("fromage", ["beta1", "beta2", "weight_decay"]), ("lion", []),
    ("normuon", ["beta1", "beta2"]), ("spectralsphere", []),
])  # fmt: skip
def test_options_that_an_optimizer_of_the_library_does_not_take_are_known_and_said(name, ignored):
    pytest.importorskip("pytorch_optimizer")
    assert check_ignored(name) == ignored
    given = [f"--optimizer={name}", "--beta1=0.5", "--beta2=0.6", "--weight_decay=0.3"]
    notes = train_args.notes(config.parse(train_args.Options, given), [])
    assert [note.split()[0] for note in notes] == [f"--{option}" for option in ignored]
    assert not train_args.notes(config.parse(train_args.Options, given[:1]), [])


def check_scheduled(name):
    """What the loop sets in the groups after a step is what later steps go by; else a note says that it is not."""
    ends = []
    for later in (1.0, 0.5):
        model = Toy()
        optimizer = build(name, model)
        train(model, optimizer, 0, 1)
        for group in optimizer.param_groups:
            group["lr"] *= later
        train(model, optimizer, 1, 12)
        ends.append([p.detach().clone() for p in model.parameters()])
    assert all(map(torch.equal, *ends)) == (name in optimizers.UNSCHEDULED and name != "ftrl"), name


@pytest.mark.parametrize("name", optimizers.TORCH)
def test_a_schedule_moves_torchs_optimizers_but_for_those_that_are_known(name):
    check_scheduled(name)


@pytest.mark.full
@pytest.mark.parametrize("name", optimizers.LIBRARY.split())
def test_a_schedule_moves_any_optimizer_of_the_library_but_for_those_that_are_known(name):
    pytest.importorskip("pytorch_optimizer")
    check_scheduled(name)


def notes_on_rates(*argv):
    return [note for note in train_args.notes(config.parse(train_args.Options, list(argv)), []) if "does" not in note]


def test_a_schedule_that_does_not_move_an_optimizer_is_said():
    for moving in ("--lr_scheduler=cosine", "--decay_lr", "--warmup_iters=5"):
        (note,) = notes_on_rates("--optimizer=rprop", "--warmup_iters=0", moving)
        assert note.startswith("--optimizer=rprop takes its step sizes from the first step's rate")
    assert not notes_on_rates("--optimizer=rprop", "--warmup_iters=0") and not notes_on_rates("--lr_scheduler=cosine")


def test_a_default_rate_far_below_an_optimizers_own_is_said():
    """prodigy and adadelta multiply by theirs, 1: at 1e-3 they learnt nothing, without a word."""
    (note,) = notes_on_rates("--optimizer=adadelta")
    assert note == "--learning_rate is 0.001 where none is given; adadelta's own is 1"
    assert not notes_on_rates("--optimizer=adadelta", "--learning_rate=0.001")
    assert not any(notes_on_rates(f"--optimizer={name}") for name in ("sgd", "adamw", "adagrad", "muon"))


@pytest.mark.full
@pytest.mark.parametrize("name", optimizers.LIBRARY.split())
def test_what_any_optimizer_of_the_library_is_said_to_ignore_does_nothing(name):
    pytest.importorskip("pytorch_optimizer")
    check_ignored(name)


def test_several_numbers_of_an_argument():
    model = torch.nn.Linear(2, 2)
    for written in ("0.8,0.9", [0.8, 0.9], "8e-1,.9"):
        built = optimizers.build("adam", optim.groups(model, 0.0), 1e-3, extra_args={"betas": written})
        assert built.param_groups[0]["betas"] == (0.8, 0.9)


def test_what_cannot_be_used_is_refused_in_one_line(monkeypatch):
    with pytest.raises(ValueError, match="must be one of .*adamw"):
        build("adamv", Toy())
    with pytest.raises(ValueError, match="'lbfgs' cannot be used here: it needs a closure"):
        build("lbfgs", Toy())
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(ValueError, match="pip install pytorch_optimizer"):
        build("lion", Toy())


def test_a_missing_argument_is_named():
    pytest.importorskip("pytorch_optimizer")
    with pytest.raises(ValueError, match="ranger21 needs --optimizer_args num_iterations="):
        build("ranger21", Toy(), extra_args={})


def test_a_state_that_no_checkpoint_can_hold_is_refused_at_the_first_step():
    library = pytest.importorskip("pytorch_optimizer")
    model = Toy()
    optimizer = library.load_optimizer("conda")(model.parameters(), lr=1e-3)
    optimizers.tame(optimizer, "conda")
    with pytest.raises(ValueError, match="optimizer conda keeps a GaLoreProjector"):
        train(model, optimizer, 0, 1)


def test_state_is_plain_data():
    model = Toy()
    optimizer = build("muon", model)
    train(model, optimizer, 0, 2)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert {"params", "lr", "lr_mult", "weight_decay", "use_muon"} <= set(state["param_groups"][0])


def test_a_new_learning_rate_and_argument_act_after_a_resume():
    model = Toy()
    optimizer = build("sgd", model, lr=0.1)
    train(model, optimizer, 0, 2)
    again = build("sgd", model, lr=0.3, extra_args={"nesterov": True})
    optim.load(again, optimizer.state_dict(), own=("nesterov",))
    assert [(g["lr"], g["nesterov"]) for g in again.param_groups] == [(0.3, True)] * 3


@pytest.mark.full
def test_any_argument_of_any_optimizer_acts_after_a_resume():
    """Some keep it in their groups under another name, which the checkpoint's groups brought back: mars' lr_1d."""
    pytest.importorskip("pytorch_optimizer")
    adapted = {"d", "d_max"}  # what training made of d0
    for name in optimizers.names():
        stored = build(name, Toy()).state_dict()
        for argument, p in optimizers.arguments(optimizers.find(name)).items():
            old = EXTRA.get(name, {}).get(argument, p.default)
            if argument in ("lr", "weight_decay") or not isinstance(old, int | float | None):
                continue
            new = True if old is None else not old if isinstance(old, bool) else old + 1 if type(old) is int else old / 2
            try:
                extra = {**EXTRA.get(name, {}), argument: new}
                fresh, resumed = build(name, Toy(), extra_args=extra), build(name, Toy(), extra_args=extra)
            except ValueError:  # not with the other arguments
                continue
            optim.load(resumed, copy.deepcopy(stored), optimizers.in_groups({argument: new}))
            for a, b in zip(fresh.param_groups, resumed.param_groups, strict=True):
                left = {k for k in a if k not in {"params", *adapted} and str(a[k]) != str(b[k])}
                assert not left, f"{name} {argument}: {left}"


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize("moment", [torch.zeros(3), torch.zeros(()), torch.zeros(2, 3), "x"])
def test_moments_of_another_shape_are_refused(kind, moment):
    """The fused kernel takes their word for their size: it wrote beyond them, and the process died."""
    p = torch.nn.Parameter(torch.zeros(2, 2))
    optimizer = kind([p], fused=True)
    p.sum().backward()
    optimizer.step()
    for name in ("exp_avg", "exp_avg_sq"):
        state = optimizer.state_dict()
        state["state"] = {0: {**state["state"][0], name: moment}}
        with pytest.raises(ValueError, match=f"optimizer state {name} is .* for a parameter of \\(2, 2\\)"):
            optim.load(optimizer, state)
    with pytest.raises(ValueError, match="weights alone"):
        optim.load(optimizer, None)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(2))]})
    with pytest.raises(ValueError, match="the checkpoint's optimizer holds other parameters than this run trains"):
        optim.load(optimizer, state)


def test_a_group_without_parameters_does_not_stop_a_resume():
    """A model without norms and biases has nothing that does not decay."""
    model = torch.nn.Linear(2, 2, bias=False)
    first, second = (torch.optim.AdamW(optim.groups(model, 0.1), lr=lr) for lr in (0.1, 0.3))
    assert [len(g["params"]) for g in first.param_groups] == [1, 0]
    model(torch.ones(1, 2)).sum().backward()
    first.step()
    optim.load(second, first.state_dict())
    assert [g["lr"] for g in second.param_groups] == [0.3] * 2
    assert torch.equal(second.state[model.weight]["exp_avg"], first.state[model.weight]["exp_avg"])


def test_a_part_that_no_group_holds_is_named():
    """finetune.py's groups are those of encoder and head: a second head would stand still, silently."""
    model = torch.nn.ModuleDict({"one": torch.nn.Linear(2, 2), "two": torch.nn.Linear(2, 2)})
    optimizer = torch.optim.AdamW(optim.groups(model.one, 0.1))
    with pytest.raises(AssertionError, match=r"holds two.weight, two.bias \(2 such\)"):
        optim.check_holds(optimizer, model)
    model.two.requires_grad_(False)
    optim.check_holds(optimizer, model)


def test_ranks_whose_weights_differ_say_so_once(monkeypatch, capsys):
    """Noise that each draws for itself, or a loss that is not DDP's: rank 0's numbers look as ever."""
    model = torch.nn.Linear(2, 2)
    optimizer, other = torch.optim.AdamW(optim.groups(model, 0.1)), [0, 0]
    monkeypatch.setattr(dist, "together", lambda: True)
    monkeypatch.setattr(dist, "gather", lambda mine: [mine, [a + b for a, b in zip(mine, other, strict=True)]])
    monkeypatch.setattr(optim, "_told", set())
    optim.check(optimizer, model, 3)
    assert not capsys.readouterr().err
    other[1] = 1
    for step in (4, 5):
        optim.check(optimizer, model, step)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("note: after step 4 the ranks' weights differ, beginning with bias (1 such)")


def test_groups_hold_each_parameter_once_and_muon_the_hidden_matrices():
    model = GPT(GPTConfig(n_layer=2, n_head=2, n_embd=8, vocab_size=11, block_size=4, bias=True))
    groups = optim.groups(model, 0.1, matrices=True)
    names = {id(p): n for n, p in model.named_parameters()}
    hidden = {names[id(p)] for p in groups[0]["params"]}
    parts = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert hidden == {f"transformer.h.{i}.{part}.weight" for i in range(2) for part in parts}
    assert {names[id(p)] for p in groups[1]["params"]} == {"transformer.wte.weight", "transformer.wpe.weight"}
    assert sum(len(g["params"]) for g in groups) == len(names)
    assert groups[2]["weight_decay"] == 0.0
