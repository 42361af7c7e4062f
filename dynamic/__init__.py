"""The dynamic mode: programs that run as they are written, and `loss.backward()`.

Gradients are added up in the leaves:

    from backpass import dynamic as dyn

    w = dyn.tensor([1.0, 2.0], requires_grad=True)
    loss = (w**2).sum()
    loss.backward()
    w.grad                      # tensor([2., 4.])
"""

import importlib
from typing import Any

from . import amp, autograd, diagnostics, nn, numpy, ops
from .modes import (
    enable_grad,
    inference_mode,
    is_grad_enabled,
    is_inference_mode_enabled,
    no_grad,
    set_grad_enabled,
)
from .random import get_rng_state, manual_seed, rand, randn, set_rng_state
from .saved import checkpoint
from .tensor import Tensor, tensor

__all__ = [
    "Tensor",
    "amp",
    "autograd",
    "checkpoint",
    "diagnostics",
    "enable_grad",
    "get_rng_state",
    "inference_mode",
    "is_grad_enabled",
    "is_inference_mode_enabled",
    "manual_seed",
    "nn",
    "no_grad",
    "numpy",
    "ops",
    "optim",
    "rand",
    "randn",
    "set_grad_enabled",
    "set_rng_state",
    "tensor",
]


def __getattr__(name: str) -> Any:
    """`optim`, which wants Optax, is imported when it is asked for."""
    if name == "optim":
        return importlib.import_module(f"{__name__}.optim")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
