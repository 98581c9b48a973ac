"""torch.compile of a network, in its place: its parameters keep their names."""

import os
import shutil
import sys
from importlib.util import find_spec

import torch
from torch import nn

from ... import random
from ...distributed.fsdp import blocks

KINDS = 64  # of calls that code is compiled for: in training and not, and for every size of a batch


def compile_network(network: nn.Module, device: torch.device, sharded: bool = False, graphs: bool = True) -> None:
    """Compile a network at its first call; if it is to be sharded, each of its blocks separately.

    Every size of a batch has code of its own, and code is chosen by rule and not by timing, so that what is
    computed does not depend on what was computed before: a run that is resumed goes on bit for bit. On a GPU `graphs`
    records the kernels of a call and starts all at once from then on; an output then lives until the next call.

    Raises:
        ValueError: if the compiler that torch.compile needs for the device is missing.
    """
    _check_compiler(device)
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, KINDS)
    options = {"deterministic": True}
    if device.type == "cuda":
        options |= {"force_layout_optimization": True, "triton.cudagraphs": graphs and not sharded}
    for module in (blocks(network) if sharded else []) or [network]:
        module.compile(dynamic=False, options=options)
    if device.type == "cuda":
        random.fuse()


def _check_compiler(device: torch.device) -> None:
    if device.type == "cuda" and find_spec("triton") is None:
        raise ValueError(
            "compile is true, but the package triton, which makes code for GPUs, is not installed: install it, or set "
            "the model's compile to false"
        )
    names = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++"]
    if device.type == "cpu" and sys.platform == "linux" and not any(map(shutil.which, names)):
        raise ValueError(
            f"compile is true, but there is no C++ compiler {' or '.join(names)}, which makes code for CPUs: install "
            "one, or set the model's compile to false"
        )
