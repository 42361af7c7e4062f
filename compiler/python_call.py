"""A function of Python's that runs on values: one node, which nothing can look into.

A backward rule may branch on its cotangent. Outside of `jax.jit` the cotangent has a value when
the pullback runs, and not before: the rule is called then, as it is. A program that holds such a
call runs node by node. What would look inside (`jax.jit`, `jax.vmap`, a derivative) gets the error
that staging the function gave.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.extend.core as jec
from jax.interpreters import ad, batching, mlir

from ..ir.builder import Builder
from ..ir.graph import Graph, Node, Value
from ..ir.op import Differentiator, Pullback

python_call_p = jec.Primitive("python_call")
python_call_p.multiple_results = True


@dataclass(frozen=True, eq=False)
class Called:
    """`fun`, which gives arrays of the types `avals`, and why it cannot be staged."""

    fun: Callable[..., Sequence[Any]]
    avals: Sequence[Any]
    error: Exception

    def __repr__(self) -> str:
        """Name of the function."""
        return getattr(self.fun, "__name__", "function")


def python_call(called: Called, args: Sequence[Any]) -> list[Any]:
    """Call it now if the arguments have values, else when they have."""
    return python_call_p.bind(*args, called=called)  # type: ignore[no-any-return]


def calls_python(graph: Graph) -> bool:
    """True where a node has to be run by Python."""
    return any(node.op.name == python_call_p.name for node in graph.walk())


def refuse_to_differentiate(
    b: Builder, node: Node, needs: Sequence[bool], ad: Differentiator
) -> tuple[Sequence[Value], Pullback]:
    """Reverse mode: there is none. Raises what staging the function raised."""
    raise node.attrs["called"].error


def _run(*args: Any, called: Called) -> list[Any]:
    outs = zip(called.fun(*args), called.avals, strict=True)
    return [jax.numpy.asarray(out, aval.dtype) for out, aval in outs]


def _types(*avals: Any, called: Called) -> Sequence[Any]:
    return called.avals


def _refuse_to_lower(context: Any, *args: Any, called: Called) -> Any:
    raise called.error


def _refuse_to_transform(args: Any, parts: Any, *, called: Called) -> Any:
    raise called.error


python_call_p.def_impl(_run)
python_call_p.def_abstract_eval(_types)
batching.primitive_batchers[python_call_p] = _refuse_to_transform
ad.primitive_jvps[python_call_p] = _refuse_to_transform
mlir.register_lowering(python_call_p, _refuse_to_lower)
