"""backpass: a JIT-compiled static-graph autodiff compiler on JAX.

A step is written in `jax.numpy`, and compiled by a decorator:

    import backpass as bp

    @bp.compile(donate_argnums=0)
    def step(params, batch):
        loss, grads = bp.value_and_grad(loss_fn)(params, batch)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), loss
"""

import importlib
from typing import Any

from . import ir
from .compiler.cache import Cache, cache
from .compiler.compile import compile
from .compiler.derivatives import jvp, linearize, vjp
from .compiler.explain import Explanation
from .compiler.exported import Exported
from .compiler.function import CompiledFunction
from .compiler.gradcheck import gradcheck
from .compiler.gradients import grad, value_and_grad
from .compiler.health import Health
from .compiler.jacobians import hessian, hvp, jacfwd, jacrev
from .compiler.loss_scale import LossScale
from .compiler.memory_plan import MemoryPlan
from .compiler.plan import Plans, plan
from .compiler.stages import Compiled, Lowered, Traced
from .compiler.surrogates import checkpoint, stop_gradient, straight_through, surrogate
from .ir.device import DeviceSpec
from .ir.errors import (
    ArgumentError,
    AutogradError,
    BackpassError,
    BatchError,
    BudgetError,
    CacheError,
    CacheWarning,
    ConcretizationError,
    ConstantWarning,
    DifferentiationError,
    DonationError,
    ExportError,
    FusionError,
    GradcheckError,
    GraphError,
    LeakError,
    MemoryWarning,
    MissingRuleError,
    NonFiniteError,
    OutOfMemoryError,
    ParseError,
    RestoreError,
    RetraceWarning,
    SaveError,
    ShapeError,
    ShardingError,
    TraceError,
    TrainingWarning,
    ZeroGradientWarning,
)
from .runtime.restore import restore
from .runtime.saver import Saver

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "AutogradError",
    "BackpassError",
    "BatchError",
    "BudgetError",
    "Cache",
    "CacheError",
    "CacheWarning",
    "Compiled",
    "CompiledFunction",
    "ConcretizationError",
    "ConstantWarning",
    "DeviceSpec",
    "DifferentiationError",
    "DonationError",
    "FusionError",
    "Explanation",
    "ExportError",
    "Exported",
    "GradcheckError",
    "GraphError",
    "Health",
    "LeakError",
    "LossScale",
    "Lowered",
    "MemoryPlan",
    "MemoryWarning",
    "MissingRuleError",
    "NonFiniteError",
    "OutOfMemoryError",
    "ParseError",
    "Plans",
    "RestoreError",
    "RetraceWarning",
    "SaveError",
    "Saver",
    "ShapeError",
    "ShardingError",
    "TraceError",
    "Traced",
    "TrainingWarning",
    "ZeroGradientWarning",
    "__version__",
    "cache",
    "checkpoint",
    "compile",
    "grad",
    "gradcheck",
    "hessian",
    "hvp",
    "ir",
    "jacfwd",
    "jacrev",
    "jvp",
    "linearize",
    "plan",
    "restore",
    "stop_gradient",
    "straight_through",
    "surrogate",
    "value_and_grad",
    "vjp",
]


def __getattr__(name: str) -> Any:
    """`dynamic` is imported when it is asked for."""
    if name == "dynamic":
        return importlib.import_module(f"{__name__}.dynamic")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
