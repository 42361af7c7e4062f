"""How PyTorch is set, so that it has what XLA has."""

from __future__ import annotations

import os
import shutil

import jax
import torch

from ...ir.errors import ArgumentError
from ..measure import cores

COMPILERS = ("g++", "clang++", "c++")


def prepare(compiled: bool) -> torch.device:
    """Give PyTorch as many cores and as short a float32 as XLA has; return the device.

    Raises `ArgumentError` where it can't run on JAX's device, or `torch.compile` not at all.
    """
    if jax.default_backend() == "cpu":
        torch.set_num_threads(cores())
        wanted = [os.environ.get("CXX") or "", *COMPILERS]
        if compiled and not any(map(shutil.which, filter(None, wanted))):
            raise ArgumentError(
                "torch.compile wants a C++ compiler and found none; install g++, or name one in CXX"
            )
        return torch.device("cpu")
    if jax.default_backend() != "gpu" or not torch.cuda.is_available():
        raise ArgumentError(
            f"PyTorch wants the device of JAX, which is {jax.default_backend()}, and found only "
            "the CPU; install a PyTorch for that device, or set JAX_PLATFORMS=cpu"
        )
    torch.set_float32_matmul_precision("high")  # TF32, which is what XLA takes for float32
    return torch.device("cuda")
