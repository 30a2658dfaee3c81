"""Whether torch.compile has here what it takes: asked before the first step, where it would end in a traceback."""

import importlib.util
import os
import shutil
import sys

import torch
import torch._functorch.config as functorch


def lacking(device: torch.device) -> str:
    """What is missing, or nothing: torch writes C++ for CPUs, Triton for GPUs and C to launch it."""
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) < (7, 0):
            return "a GPU of compute capability 7.0"
        if not importlib.util.find_spec("triton"):
            return "triton, a package"
        found = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
        return "" if found else "a C compiler: gcc, clang, or CC in the environment"
    usual = "clang++" if sys.platform == "darwin" else "g++"
    found = shutil.which(os.environ.get("CXX", usual))
    return "" if found else f"a C++ compiler: {usual}, or CXX in the environment"


def choose(device: torch.device, asked: bool | None, default: bool = True) -> tuple[bool, str]:
    """(whether to compile, what the start-up line says of it). Not asked, GPUs compile where they can."""
    if asked is False or asked is None and not (default and device.type == "cuda"):
        return False, "compile off"
    missing = lacking(device)
    if missing and asked:
        raise ValueError(f"--compile needs {missing}; none was found")
    # else what gradient checkpointing draws twice comes, on a GPU, from generators that are seeded at the first step
    # alone: a resumed run would draw another dropout than one that was never killed
    functorch.graphsafe_rng_functionalization = False
    return not missing, f"compile off (needs {missing})" if missing else "compile on"
