"""The one place where JAX differentiates for us: a single primitive that has no rule of ours.

`jax.vjp` of the primitive alone is staged into two jaxprs, which are imported as regions. Nothing
is hidden: `Lowered.fallbacks` lists each use, and `bp.compile(..., debug="strict")` forbids them.
It serves the user's own primitives, and a few of JAX's that `tests/ops/test_registry.py` names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax import vjp as jax_vjp  # held on to: a test may put ours in the place of `jax.vjp`

from ..ir.errors import MissingRuleError
from ..ir.graph import Graph, Node

ImportJaxpr = Callable[[Any, str], Graph]


@dataclass(frozen=True, slots=True)
class Fallback:
    """One use of JAX's own rule: for which primitive, and where it was called."""

    primitive: str
    source: str
    scope: str

    def __str__(self) -> str:
        """For instance `my_primitive at model.py:12 in block`."""
        return f"{self.primitive}{_place(self.source, self.scope)}"


def fallbacks(graph: Graph) -> tuple[Fallback, ...]:
    """Return the uses whose pullback is part of `graph`, those in regions included."""
    return tuple(
        Fallback(node.attrs["primitive"], node.source, node.scope)
        for node in graph.walk()
        if node.op.name == "fallback" and node.attrs["part"] == "pullback"
    )


def forbid(graph: Graph) -> None:
    """Raise `MissingRuleError` when a derivative in `graph` is JAX's."""
    used = fallbacks(graph)
    if used:
        listed = "".join(f"\n  {each}" for each in used)
        raise MissingRuleError(
            "debug='strict' wants rules of backpass alone, and JAX's own derivative stands in "
            f"for{listed}\n  use another formulation, give the function a rule with "
            "jax.custom_vjp, or leave debug='strict' out"
        )


def derive(node: Node, needs: Sequence[bool], read: ImportJaxpr) -> tuple[Graph, Graph]:
    """Split JAX's VJP of one node into a forward and a backward graph.

    Returns:
        `(inputs -> outputs ++ residuals, residuals ++ cotangents -> cotangents)`: cotangents of
        the inexact outputs, and of the inputs that `needs` names.

    Raises:
        MissingRuleError: JAX has no derivative of the primitive either.
    """
    wrt = [i for i, needed in enumerate(needs) if needed]
    seeded = [i for i, out in enumerate(node.outputs) if out.type.is_inexact]
    trees: list[Any] = []

    def forward(*args: Any) -> tuple[list[Any], list[Any]]:
        def by_active(*active: Any) -> tuple[list[Any], list[Any]]:
            full = list(args)
            for i, x in zip(wrt, active, strict=True):
                full[i] = x
            outs = node.op.lower(full, node.attrs, (), _no_region)
            return [outs[i] for i in seeded], outs

        _, pull, outs = jax_vjp(by_active, *(args[i] for i in wrt), has_aux=True)
        residuals, tree = jax.tree.flatten(pull)
        trees.append(tree)
        return outs, residuals

    def backward(residuals: list[Any], cts: list[Any]) -> list[Any]:
        return list(jax.tree.unflatten(trees[-1], residuals)(cts))

    types = [value.type for value in node.inputs]
    structs = [jax.ShapeDtypeStruct(t.shape, t.dtype, weak_type=t.weak) for t in types]
    seeds = [node.outputs[i].type for i in seeded]
    cts = [jax.ShapeDtypeStruct(t.shape, t.dtype) for t in seeds]
    try:
        ahead, (_, residuals) = jax.make_jaxpr(forward, return_shape=True)(*structs)
        back = jax.make_jaxpr(backward)(residuals, cts)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise MissingRuleError(
            f"no VJP rule for {node.op.name!r}, which stands between an input and the loss"
            f"{_place(node.source, node.scope, newline=True)}; JAX has none either ({reason}): "
            "use another formulation, wrap it in jax.lax.stop_gradient, or give it a rule of its "
            "own with jax.custom_vjp"
        ) from error
    return read(ahead, node.op.name), read(back, f"{node.op.name}_pullback")


def _no_region(*args: Any) -> list[Any]:
    raise TypeError("a foreign op has no regions")


def _place(source: str, scope: str, *, newline: bool = False) -> str:
    where = f" at {source or 'unknown line'}{f' in {scope}' if scope else ''}"
    return f"\n {where}" if newline else where
