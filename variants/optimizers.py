"""Optimizers by name: torch's own, and those of the library pytorch_optimizer that step without a closure.

build() returns a torch Optimizer whose state survives a checkpoint bit for bit. Each param group keeps its own
weight_decay, and a `lr_mult` where its learning rate differs: the schedule sets group["lr"] = lr * lr_mult.
"""

import contextlib
import copy
import enum
import inspect
import random
import re
import typing

import numpy
import torch
from torch.optim import Optimizer

from core.values import coerce

TORCH = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adamax": torch.optim.Adamax,
    "radam": torch.optim.RAdam,
    "nadam": torch.optim.NAdam,
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
    "adafactor": torch.optim.Adafactor,
    "rmsprop": torch.optim.RMSprop,
    "rprop": torch.optim.Rprop,
    "asgd": torch.optim.ASGD,
    "muon": torch.optim.Muon,
}

# names, not imports: the library takes seconds to load
LIBRARY = """
a2grad accsgd adabelief adabound adagc adago adai adalite adamc adamg adamod adamp adams adamuon adamwsn adan adanorm
adapnm adasmooth adatam ademamix adopt aggmo aida alice amos ano apollo apollodqn avagrad bcos came
dadaptadagrad dadaptadam dadaptadan dadaptlion dadaptsgd dash diffgrad dualadam exadam fadam fira flashadamw focus
fromage ftrl galore grams gravity grokfastadamw kate kron lamb laprop lars lion madgrad mars msvag muonclip
nero normuon novograd padam pid pnm prodigy qhadam qhm racs ranger ranger21 rose sara schedulefreeadamw
schedulefreeradam schedulefreesgd scion scionlight sgdp sgdsai sgdw shampoo signsgd simplifiedademamix sm3 soap spam
spectralsphere splus srmm stableadamw stablespam swats tam tiger vsgd yogi
"""

EXCLUDED = {
    "adahessian": "it differentiates the gradient again",
    "adalomo": "it steps inside the backward pass",
    "adammini": "it takes the model, not parameters",
    "adashift": "its state cannot be saved as plain data",
    "alig": "it needs a closure",
    "bsam": "it needs a closure",
    "conda": "its state cannot be saved as plain data",
    "demo": "it communicates between ranks by itself",
    "distributedmuon": "it communicates between ranks by itself",
    "emofact": "it steers by the loss of a closure",
    "emolynx": "it steers by the loss of a closure",
    "emonavi": "it steers by the loss of a closure",
    "lbfgs": "it needs a closure",
    "lomo": "it steps inside the backward pass",
    "lorarite": "it is for pairs of low-rank matrices",
    "magma": "it wraps another optimizer",
    "scalableshampoo": "its state cannot be saved as plain data",
    "sophiah": "it differentiates the gradient again",
}

OPTIMIZERS = {**dict.fromkeys(TORCH, "torch"), **dict.fromkeys(LIBRARY.split(), "pytorch_optimizer")}
MATRICES_ONLY = ("muon", "spectralsphere")  # the rest of the model goes to AdamW
FUSED = ("adam", "adamw", *MATRICES_ONLY)  # sgd's kernel fails where a weight has its first gradient after others
TWO_RATES = (*MATRICES_ONLY, "adago", "adamuon", "muonclip", "normuon")  # learning_rate is that of the AdamW part
MARKED = {"adamc": "normalized", "adamwsn": "sn"}  # the key that tells these which groups hold hidden matrices
SPLIT = (*TWO_RATES, *MARKED)  # hidden matrices are a group of their own
BARE = {  # what these come down to here
    **dict.fromkeys(("apollo", "fira", "galore"), "Adam alone: what it projects with cannot be saved as plain data"),
    "muonclip": "Muon alone: it clips by attention scores, which no fused kernel gives",
}
OURS = ("lr", "weight_decay", "adamw_lr", "adamw_wd")  # --learning_rate and --weight_decay, which groups carry
IDLE = ("differentiable", "capturable", "qk_clip_threshold", "qk_clip_alpha", "scale_type")  # act on nothing here
UNSCHEDULED = {  # what a rate that moves does not do to these, or should not
    "a2grad": "has no learning rate",
    "apollodqn": "warms up by itself for its warmup_steps, 500 if --optimizer_args gives no others",
    "ftrl": "keeps its weights in units of the rate: where the rate moves they are all rescaled",
    "rprop": "takes its step sizes from the first step's rate, and then moves them by itself",
}
KEPT_AS = {  # what groups keep of an argument under other names
    "foreach": ("fused",), "ghattg": ("pbhg2",), "lr_1d": ("lr_1d_factor",), "ps": ("pa2", "pbg2", "pbhg2")
}  # fmt: skip


def names() -> list[str]:
    return sorted(OPTIMIZERS)


def in_groups(*given: dict) -> set[str]:
    """Where groups keep these arguments: a resume that takes others must not bring the old ones back."""
    return {key for extra in given for name in extra for key in (name, *KEPT_AS.get(name, ()))}


class WithAdamW(Optimizer):
    """Hidden matrices by one optimizer, everything else by AdamW: one set of groups, one state, one step."""

    def __init__(self, groups: list[dict], matrices: type[Optimizer], options: dict, adamw: dict):
        assert all("use_muon" in g for g in groups), "each group says whether it holds hidden matrices"
        self.parts = []
        for use_muon, cls, extra in ((True, matrices, options), (False, torch.optim.AdamW, adamw)):
            mine = [dict(g) for g in groups if g["use_muon"] is use_muon and g["params"]]
            if mine:
                self.parts.append((use_muon, cls(mine, **extra)))
        super().__init__([g for _, part in self.parts for g in part.param_groups], {})
        self.share()

    def share(self) -> None:  # load_state_dict and copies put new groups and a new state in place of the old ones
        for use_muon, part in self.parts:
            part.state = self.state
            part.param_groups = [g for g in self.param_groups if g["use_muon"] is use_muon]

    @torch.no_grad()
    def step(self, closure=None) -> None:
        assert closure is None
        self.share()
        for _, part in self.parts:
            part.step()


def plain(value, name: str):
    """The state as data that a safe reader takes: enums become their numbers, other objects an error."""
    if isinstance(value, dict):
        return {plain(k, name): plain(v, name) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(v, name) for v in value)
    if isinstance(value, enum.Enum):
        return value.value
    if value is None or isinstance(value, bool | int | float | str | torch.Tensor | torch.dtype):
        return value
    raise ValueError(f"optimizer {name} keeps a {type(value).__name__}, which no checkpoint can hold: other arguments")


def tame(optimizer: Optimizer, name: str) -> None:
    """A library's optimizer draws from torch's seed alone, and says at its first step if its state cannot be saved."""

    def seed(*_):  # kron draws from numpy, sara from random: the loops seed torch at each step, on all ranks alike
        random.seed(torch.initial_seed())
        numpy.random.seed(torch.initial_seed() % 2**32)

    def check(*_):
        handle.remove()
        optimizer.state_dict()

    optimizer.register_state_dict_post_hook(lambda _, state: plain(state, name))
    optimizer.register_step_pre_hook(seed)
    handle = optimizer.register_step_post_hook(check)


@contextlib.contextmanager
def averaged(optimizer: Optimizer):
    """Within, the weights are the averaged ones, if an optimizer is to be evaluated at others than it trains at
    (schedule-free, 2405.15682; splus); afterwards, bit for bit, the trained ones, which its state holds meanwhile."""
    if hasattr(optimizer, "eval"):
        moved = {p: state for p, state in optimizer.state.items() if state}  # splus knows no others
        for p, state in moved.items():
            state["trained"] = p.detach().clone()
        lists = [group["params"] for group in optimizer.param_groups]
        for group, params in zip(optimizer.param_groups, lists, strict=True):
            group["params"] = [p for p in params if p in moved]
        optimizer.eval()
        for group, params in zip(optimizer.param_groups, lists, strict=True):
            group["params"] = params
    try:
        yield
    finally:
        back_to_trained(optimizer)


@torch.no_grad()
def back_to_trained(optimizer: Optimizer) -> None:
    """Also at a resume: a checkpoint holds the averaged weights, and these in the optimizer's state."""
    if hasattr(optimizer, "eval"):
        optimizer.train()
        for p, state in optimizer.state.items():
            if "trained" in state:
                p.copy_(state.pop("trained"))


@torch.no_grad()
def try_step(optimizer: Optimizer, name: str, resuming: bool) -> None:
    """A step and back, before anything is written: some classes find out only there what they cannot work with, and at
    a resume other arguments may need what the stored state has not (amsgrad its maximum)."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    weights, state = [p.clone() for p in params], copy.deepcopy(optimizer.state_dict())
    for p in params:
        p.grad = torch.rand_like(p)
    try:
        optimizer.step()
    except Exception as e:  # a KeyError, a TypeError: each finds out in its own way
        what = f"go on with these from what the checkpoint holds ({e!r}): leave out what is new, or start from its" \
               " weights, --init_from=PATH" if resuming else f"step with these ({e!r}): leave some out"  # fmt: skip
        raise ValueError(f"--optimizer_args: {name} cannot {what}") from None
    for p, w in zip(params, weights, strict=True):
        p.copy_(w)
        p.grad = None
    optimizer.load_state_dict(state)


def find(name: str) -> type[Optimizer]:
    if name in TORCH:
        return TORCH[name]
    if name in EXCLUDED:
        raise ValueError(f"optimizer {name!r} cannot be used here: {EXCLUDED[name]}")
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer must be one of {', '.join(names())}; got {name!r}")
    try:
        import pytorch_optimizer
    except ImportError:
        raise ValueError(
            f"optimizer {name!r} is in the library pytorch_optimizer: pip install pytorch_optimizer"
        ) from None
    return pytorch_optimizer.load_optimizer(name)


def arguments(cls: type[Optimizer]) -> dict[str, inspect.Parameter]:
    """By name, without self and the parameters."""
    signature = list(inspect.signature(cls.__init__).parameters.items())[2:]
    return {k: p for k, p in signature if p.kind is not inspect.Parameter.VAR_KEYWORD}


def two_betas(accepts: dict[str, inspect.Parameter]) -> bool:
    """Some take three, in an order of their own: those come by --optimizer_args."""
    return "betas" in accepts and len(accepts["betas"].default or ()) == 2


def ignored(name: str) -> list[str]:
    """Which of the loop's options this optimizer has no argument for."""
    if name in MATRICES_ONLY:  # AdamW beside it takes them
        return []
    accepts = arguments(find(name))
    return ["beta1", "beta2"] * (not two_betas(accepts)) + ["weight_decay"] * ("weight_decay" not in accepts)


def own_rate(name: str) -> float | None:
    """The learning rate that its authors give it; for those with two that is another than the loop's."""
    declared = None if name in TWO_RATES else arguments(find(name)).get("lr")
    return declared.default if declared and isinstance(declared.default, int | float) else None


def several(value):
    """[0.8, 0.9], and 0.8,0.9 from a command line, as a tuple; all else as it is."""
    if isinstance(value, str) and re.fullmatch(r"[-+.\de]+(,[-+.\de]+)+", value):
        value = [float(v) for v in value.split(",")]
    return tuple(value) if isinstance(value, list) else value


def checked(name: str, value, declared: inspect.Parameter):
    """The value, of the type that the class declares: the class would find out at its first step, or never."""
    label, default = f"--optimizer_args {name}", declared.default
    if isinstance(default, tuple):
        numbers = isinstance(value, tuple) and all(isinstance(v, int | float | None) for v in value)
        if not numbers or len(value) != len(default):
            raise ValueError(f"{label} must be {len(default)} numbers, got {value!r}")
        return value
    kinds = (declared.annotation, *typing.get_args(declared.annotation))
    plain = [kind for kind in (bool, int, float, type(None)) if kind in kinds]
    return coerce(value, typing.Union[tuple(plain)], label) if plain and plain != [type(None)] else value


def build(
    name: str,
    groups: list[dict],
    lr: float,
    weight_decay: float = 0.0,
    betas: tuple[float, float] | None = None,
    momentum: float | None = None,  # of sgd
    extra_args: dict | None = None,  # the optimizer's own arguments; muon_lr for those with two learning rates
    device: str | torch.device = "cpu",
) -> Optimizer:
    cls, extra = find(name), dict(extra_args or {})
    accepts = arguments(cls)
    own = sorted(set(accepts) - {*OURS, *IDLE})
    own += ["muon_lr"] * (name in TWO_RATES)
    if unknown := sorted(set(extra) - set(own)):
        raise ValueError(f"optimizer {name} has no argument {unknown[0]!r}; it takes {', '.join(own)}"
                         + ", and --learning_rate and --weight_decay" * (unknown[0] in OURS))  # fmt: skip

    muon_lr = extra.pop("muon_lr", 0.02)
    if not isinstance(muon_lr, int | float):
        raise ValueError(f"--optimizer_args muon_lr must be a number, got {muon_lr!r}")
    for group in groups:
        muon = muon_lr / lr if name in TWO_RATES and group.get("use_muon") and lr else 1.0
        group["lr_mult"] = muon * group.get("lr_mult", 1.0)
        group["lr"] = lr * group["lr_mult"]
        if name in MARKED:
            group[MARKED[name]] = lr > 0 and group.get("use_muon", False)  # adamc divides by its first rate
    wanted = {"lr": lr, "weight_decay": weight_decay, "betas": betas}
    if not two_betas(accepts):
        wanted.pop("betas")
    if name == "sgd":
        wanted["momentum"] = momentum
    if name in FUSED and torch.device(device).type in ("cpu", "cuda") and not extra.get("foreach"):
        wanted["fused"] = True  # one kernel over all parameters
    options = {k: v for k, v in wanted.items() if k in accepts and v is not None}
    options |= {k: checked(k, several(v), accepts[k]) for k, v in extra.items()}
    if missing := [k for k, p in accepts.items() if p.default is p.empty and k not in options]:
        raise ValueError(f"optimizer {name} needs --optimizer_args {' '.join(k + '=...' for k in missing)}")
    try:
        if name in MATRICES_ONLY:
            adamw = {"lr": lr, "betas": betas or (0.9, 0.95), "weight_decay": weight_decay}
            optimizer = WithAdamW(groups, cls, options, adamw | {"fused": wanted.get("fused", False)})
        else:
            optimizer = cls(groups, **options)
    except Exception as e:  # what classes say of values they refuse, the library's in exceptions of its own
        raise ValueError(f"optimizer {name}: {e}") from None
    if name not in TORCH:
        tame(optimizer, name)
    return optimizer
