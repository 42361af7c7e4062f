"""backpass: a JIT-compiled static-graph autodiff compiler on JAX.

import backpass as bp

@bp.compile(donate_argnums=0)
def step(params, batch):
loss, grads = bp.value_and_grad(loss_fn)(params, batch)
return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), loss
"""

from . import ir
from .compiler.compile import CompiledFunction, compile
from .compiler.explain import Explanation
from .compiler.gradients import grad, value_and_grad
from .compiler.stages import Compiled, Lowered, Traced
from .compiler.surrogates import checkpoint, stop_gradient, straight_through, surrogate
from .ir.errors import (
    ArgumentError,
    BackpassError,
    ConcretizationError,
    DifferentiationError,
    DonationError,
    GraphError,
    LeakError,
    MissingRuleError,
    ParseError,
    ShapeError,
    TraceError,
    ZeroGradientWarning,
)

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "BackpassError",
    "Compiled",
    "CompiledFunction",
    "ConcretizationError",
    "DifferentiationError",
    "DonationError",
    "Explanation",
    "GraphError",
    "LeakError",
    "Lowered",
    "MissingRuleError",
    "ParseError",
    "ShapeError",
    "TraceError",
    "Traced",
    "ZeroGradientWarning",
    "__version__",
    "checkpoint",
    "compile",
    "grad",
    "ir",
    "stop_gradient",
    "straight_through",
    "surrogate",
    "value_and_grad",
]
