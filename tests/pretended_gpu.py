"""A GPU that is none: tensors that say they are on cuda:0, or on mps, and compute on the CPU.

    with pretended_gpu.plugged_in() as gpu:
        train.main(args)
    gpu.waits  # [("aten._local_scalar_dense.default", "train.py:325", the line), ...]: where the host waited for the device

What a real one would refuse, tensors of two devices in one call, and 64-bit floats on a Mac's, is refused here, so that a
machine without a GPU can test what moves where, and that no step waits. What it cannot show: kernels, compilation,
speed, memory.
"""

import contextlib
import traceback
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

from core import dist

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA)
aten = torch.ops.aten
# what makes the host wait: a value or a shape that only the device knows
WAITS = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten._unique2, aten.unique_consecutive,
         aten.is_nonzero, aten.bincount}  # fmt: skip


class Pretended(torch.Tensor):
    """Holds a tensor of the CPU and says that it is on the GPU."""

    @staticmethod
    def __new__(cls, held: torch.Tensor, place: torch.device):
        return torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device="meta", _extra_dispatch_keys=AUTOCAST)  # fmt: skip

    def __init__(self, held: torch.Tensor, place: torch.device):
        self.held, self.place = held, place

    device = property(lambda self: self.place)
    is_cuda, is_meta = property(lambda self: self.place.type == "cuda"), property(lambda self: False)

    def data_ptr(self):
        return self.held.data_ptr()

    def tolist(self):
        return self.cpu().tolist()

    def __format__(self, spec):
        return format(self.item() if self.dim() == 0 else self.cpu(), spec)

    def __reduce_ex__(self, protocol):
        return self.held.__reduce_ex__(protocol)

    def numpy(self, **_):
        raise TypeError("a tensor of the GPU has no numpy")

    def __repr__(self, **_):
        return f"Pretended({self.held})"

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError("only while it is plugged in")


class Gpu(TorchDispatchMode):
    def __init__(self, device: torch.device):
        super().__init__()
        self.device, self.waits = device, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        with torch.inference_mode(False), torch.no_grad():  # tensors of that mode cannot be views of one another here
            return self.compute(func, args, dict(kwargs or {}))

    def compute(self, func, args, kwargs):
        name, to = func.overloadpacket, kwargs.get("device")
        tensors = [x for x in tree_leaves((args, kwargs)) if torch.is_tensor(x)]
        there = [t for t in tensors if isinstance(t, Pretended)]
        here = [t for t in tensors if not isinstance(t, Pretended)]
        gpu = bool(there) if to is None else torch.device(to) != CPU  # "meta" is what C++ takes it for
        if name in (aten._to_copy, aten.copy_):
            source = args[name is aten.copy_]
            if name is aten.copy_:
                gpu = isinstance(args[0], Pretended)
            pinned = any(hasattr(x, "pinned") for x in args[:2]) and (kwargs.get("non_blocking") or True in args[2:])
            if isinstance(source, Pretended) != gpu and not pinned:
                self.wait(func)
        elif there and any(t.dim() for t in here):
            raise RuntimeError(f"{func}: tensors of two devices, {[(tuple(t.shape), t.device) for t in tensors]}")
        elif there and (name in WAITS or asks_shape(name, args)):
            self.wait(func)
        kwargs |= {"device": CPU} if "device" in kwargs else {}
        pinning = kwargs.pop("pin_memory", False)
        args_held, kwargs_held = tree_map(lambda x: x.held if isinstance(x, Pretended) else x, (args, kwargs))
        out = func(*args_held, **kwargs_held)
        if pinning:
            out.pinned = True
        if not gpu:
            return args[0] if name is aten.copy_ else out
        if self.device.type == "mps" and any(torch.is_tensor(x) and x.dtype == torch.float64 for x in tree_leaves(out)):
            raise TypeError(f"{func}: mps has no float64")
        out = tree_map(lambda x: Pretended(x, self.device) if torch.is_tensor(x) else x, out)
        return return_and_correct_aliasing(func, args, kwargs, out)

    def wait(self, func) -> None:
        ours = [f for f in traceback.extract_stack() if ROOT in Path(f.filename).parents and f.filename != __file__]
        self.waits += [(str(func), f"{Path(f.filename).name}:{f.lineno}", f.line) for f in ours[-1:]]


def asks_shape(name, args) -> bool:
    if name in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_):
        return any(torch.is_tensor(i) and i.dtype in (torch.bool, torch.uint8) for i in args[1])
    return name is aten.repeat_interleave and len(args) == 1


def pin(x: torch.Tensor) -> torch.Tensor:
    assert not isinstance(x, Pretended), "cannot pin what is on the GPU"
    x = x.clone()
    x.pinned = True
    return x


class Generator(torch.Generator):
    def __new__(cls, device=None):
        return super().__new__(cls)


def tensor(data, *, device=None, _make=torch.tensor, **more):
    made = _make(data, **more)
    return made if device is None else made.to(device)


def attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=q.dtype).masked_fill(~attn_mask, float("-inf"))
    return aten._scaled_dot_product_attention_math.default(q, k, v, attn_mask, dropout_p, is_causal, scale=scale)[0]


@contextlib.contextmanager
def plugged_in(device: str = "cuda:0"):
    there = torch.device(device)
    facts = {"is_available": True, "device_count": 1, "get_device_capability": (9, 0), "is_initialized": True,
             "get_device_name": "pretended", "mem_get_info": (1 << 36, 1 << 36), "max_memory_allocated": 0,
             "manual_seed_all": None, "set_device": None, "current_device": 0, "is_bf16_supported": True,
             "synchronize": None, "_lazy_init": None}  # fmt: skip
    with contextlib.ExitStack() as stack:
        if there.type == "mps":
            stack.enter_context(mock.patch.object(torch.backends.mps, "is_available", lambda: True))
            # without an index torch asks the system which one is meant
            stack.enter_context(mock.patch.object(dist, "pick_device", lambda *_: torch.device("mps", 0)))
            facts = {}
        for name, value in facts.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, lambda *a, _value=value, **k: _value))
        # a build for CUDA would ask the driver, which is not there
        stack.enter_context(mock.patch.object(torch.accelerator, "current_accelerator", lambda *a, **k: None))
        stack.enter_context(mock.patch.object(torch, "tensor", tensor))
        stack.enter_context(mock.patch.object(torch, "Generator", Generator))
        stack.enter_context(mock.patch.object(torch.Tensor, "pin_memory", pin))
        stack.enter_context(mock.patch.object(F, "scaled_dot_product_attention", attention))
        before = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_swap_module_params_on_conversion, before)
        yield stack.enter_context(Gpu(there))
