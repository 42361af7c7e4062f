"""The one place that knows JAX's versions (0.10 to 0.12) and its private corners.

Everything else speaks to `jax`, `jax.lax`, `jax.numpy`, `jax.extend` alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import jax
import jax.extend.core as jec
import numpy as np
from jax.extend import source_info_util

from .source import JAX_FOLDER

try:
    from jax._src.config import trace_context as _trace_context
except ImportError:  # no such name: programs are then keyed by their arguments alone

    def _trace_context() -> Any:
        return None


_MODULES: list[Any] = [jec.primitives, jax.lax]
try:  # `platform_index`, which `lax.platform_dependent` leaves in jaxprs, has no public name
    from jax._src.lax import control_flow

    _MODULES.append(control_flow)
except ImportError:
    pass


JAX_VERSION: tuple[int, ...] = tuple(int(part) for part in jax.__version__.split(".")[:3])

# Parameters that JAX's primitives need and that are plain in almost every program: the importer
# leaves them out of a node's attrs when they have the value given here, binding puts them back.
_ACCURACY = ("cbrt cos exp exp2 expm1 log log1p log2 logistic rsqrt sin sqrt tan tanh").split()
_SHARDING = ("broadcast_in_dim convert_element_type iota reshape").split()
_OUT_SHARDING = (
    "dot_general conv_general_dilated reduce_sum ragged_dot_general rng_bit_generator"
).split()
_NEW_OUT_SHARDING = ("reduce_max reduce_min").split()

IMPLIED: dict[str, dict[str, Any]] = {
    **{name: {"accuracy": None} for name in _ACCURACY},
    **{name: {"sharding": None} for name in _SHARDING},
    **{name: {"out_sharding": None} for name in _OUT_SHARDING},
    "mul": {"out_dtype": None},
}
IMPLIED["reshape"]["dimensions"] = None
if JAX_VERSION >= (0, 11):
    IMPLIED |= {name: {"out_sharding": None} for name in _NEW_OUT_SHARDING}
    IMPLIED["top_k"] = {"is_stable": True}


@cache
def primitive(name: str) -> Any:
    """Return JAX's primitive called `name`. Raises `KeyError` when there is none to be found."""
    for module in _MODULES:
        for attribute in dir(module):
            found = getattr(module, attribute) if attribute.endswith("_p") else None
            if isinstance(found, jec.Primitive) and found.name == name:
                return found
    raise KeyError(f"JAX {jax.__version__} has no primitive named {name!r}")


def bind(name: str, args: Sequence[Any], attrs: Mapping[str, Any]) -> list[Any]:
    """Bind the primitive `name` to arrays or tracers, the implied parameters put back."""
    prim = primitive(name)
    implied = IMPLIED.get(name)
    out = prim.bind(*args, **(implied | dict(attrs) if implied else attrs))
    return list(out) if prim.multiple_results else [out]


def trace_context() -> Any:
    """Hashable value of the settings that change what tracing gives (x64, matmul precision, ...).

    `jax.jit` keys its own cache with it; there is no public name.
    """
    return _trace_context()


def is_jaxpr(x: Any) -> bool:
    """True for open and closed jaxprs (one class from 0.11 on)."""
    return isinstance(x, jec.Jaxpr | jec.ClosedJaxpr)


def jaxpr_parts(jaxpr: Any) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any], Any, Any]:
    """`(constvars, consts, invars, eqns, outvars)` of an open or closed jaxpr."""
    inner = getattr(jaxpr, "jaxpr", jaxpr)
    consts = getattr(jaxpr, "consts", ())
    return inner.constvars, consts, inner.invars, inner.eqns, inner.outvars


def jaxpr_name(jaxpr: Any) -> str:
    """Name of the function that a jaxpr was traced from."""
    info = getattr(getattr(jaxpr, "jaxpr", jaxpr), "debug_info", None)
    return getattr(info, "func_name", None) or "body"


def is_library(jaxpr: Any) -> bool:
    """True when a jaxpr was traced from a function of JAX's own."""
    info = getattr(getattr(jaxpr, "jaxpr", jaxpr), "debug_info", None)
    return str(getattr(info, "func_filename", None) or "").startswith(JAX_FOLDER)


def forward_rule(thunk: Any, count: int) -> Any:
    """Trace the forward part of a `custom_vjp` of `count` arguments: `(jaxpr, consts)`.

    A call inside another rule has what it closes over as leading arguments, we cannot see how
    many. JAX raises until those are said to have no tangents.
    """
    for held in range(count):
        try:
            return thunk.call_wrapped(*[i >= held for i in range(count)])
        except Exception as error:
            if type(error).__name__ != "CustomVJPException":  # has no public name
                raise
    return thunk.call_wrapped(*[False] * count)


def backward_rule(bwd: Any, args: Sequence[Any]) -> Sequence[Any]:
    """Cotangents by the backward part of a `custom_vjp`; from 0.11 on, logs lie beside them."""
    found = bwd.call_wrapped(*args)
    return found[0] if JAX_VERSION >= (0, 11) else found  # type: ignore[no-any-return]


def custom_name(params: Mapping[str, Any]) -> str:
    """Name of the function that a custom rule belongs to."""
    return jaxpr_name(params["call_jaxpr"])


def scan_layout(params: Mapping[str, Any]) -> tuple[int, int]:
    """`(number of constants, number of carries)` of a scan equation."""
    if "ft_in" in params:
        consts, carry, _ = params["ft_in"].unpack()
        return len(consts), len(carry)
    return params["num_consts"], params["num_carry"]


def expands(eqn: Any) -> bool:
    """False for a `call_hi_primitive` whose derivative is not that of its expansion."""
    return type(eqn.params["_prim"]).__name__ not in ("CustomRoot", "_RootLinearMap")


def expanded(eqn: Any) -> Any:
    """Return the jaxpr of a `call_hi_primitive` (from 0.11 on), by its own expansion."""
    prim = eqn.params["_prim"]
    structs = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars]

    def flat(*xs: Any) -> list[Any]:
        return jax.tree.leaves(prim.expand(*jax.tree.unflatten(prim.in_tree, xs)))

    return jax.make_jaxpr(flat)(*structs)


def policy_saves(policy: Any, node: Any) -> bool:
    """Ask a `jax.checkpoint_policies` predicate whether the outputs of `node` are kept."""
    try:
        prim = primitive(node.op.name)
    except KeyError:
        return False
    avals = [jax.core.ShapedArray(v.type.shape, v.type.dtype) for v in node.inputs]
    answer = policy(prim, *avals, **node.attrs)
    return (
        bool(answer)
        if isinstance(answer, bool)
        else answer is not None and "save" in str(answer).lower()
    )


@contextmanager
def source_context(traceback: Any, scope: str) -> Iterator[None]:
    """Bind under the user's traceback and name stack, so that both reach the HLO."""
    stack = source_info_util.current_name_stack()
    for part in scope.split("/") if scope else ():
        stack = stack.extend(part)
    with source_info_util.user_context(traceback, name_stack=stack):
        yield


def as_numpy_scalar(x: Any, dtype: Any) -> Any:
    """A Python or NumPy scalar as a NumPy scalar of `dtype` (bfloat16 and float8 included)."""
    return np.asarray(x).astype(dtype)[()]
