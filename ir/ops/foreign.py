"""Primitives that the tables do not list: they pass through as they came.

Their derivative is JAX's own for the one primitive, imported as two regions, when the importer
gives the means (see `compiler/fallback.py`):

    y = foreign(x)  ->  y ++ residuals = fallback(x) forward
                        ct_x           = fallback(residuals, ct_y) pullback

The regions are ordinary graphs, so that a second derivative is by our own rules again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from ..errors import MissingRuleError
from ..op import Attrs, Cts, Differentiator, LineariseRule, Op, Pullback, shape_by_jax
from .calls import call_region, inline_region, region_types

if TYPE_CHECKING:
    from ..builder import Builder
    from ..graph import Graph, Node, Value

# A node and which inputs need cotangents -> (inputs -> outputs ++ residuals,
# residuals ++ cotangents of the inexact outputs -> cotangents of the needed inputs).
Derive = Callable[["Node", Sequence[bool]], tuple["Graph", "Graph"]]


@cache
def foreign(primitive: Any, effectful: bool, linearise: LineariseRule | None = None) -> Op:
    """Return a record that binds JAX's `primitive` with the parameters that it came with."""

    def lower(
        args: Sequence[Any], attrs: Attrs, regions: Sequence[Graph], run: Callable[..., list[Any]]
    ) -> list[Any]:
        out = primitive.bind(*args, **primitive.get_bind_params(dict(attrs)))
        return list(out) if primitive.multiple_results else [out]

    return Op(
        primitive.name,
        shape_by_jax(lower),
        lower,
        linearise=linearise,
        effect="foreign" if effectful else "",
        foreign=True,
    )


def by_derivation(derive: Derive) -> LineariseRule:
    """Reverse mode of a foreign op by the two graphs that `derive` gives."""

    def linearise(
        b: Builder, node: Node, needs: Sequence[bool], ad: Differentiator
    ) -> tuple[Sequence[Value], Pullback]:
        """Where there is no derivative, only who asks for one is told."""
        try:
            forward, backward = derive(node, needs)
        except MissingRuleError as error:
            return b.clone(node, node.inputs).outputs, _refusal(error)
        attrs = {"primitive": node.op.name}
        found = b.emit("fallback", node.inputs, attrs | {"part": "forward"}, (forward,))
        count = len(node.outputs)

        def pullback(b: Builder, cts: Cts) -> Cts:
            seeds = [
                b.zeros(out) if ct is None else ct
                for ct, out in zip(cts, node.outputs, strict=True)
                if out.type.is_inexact
            ]
            operands = (*found[count:], *seeds)
            given = b.emit("fallback", operands, attrs | {"part": "pullback"}, (backward,))
            each = iter(given)
            return [next(each) if needed else None for needed in needs]

        return found[:count], pullback

    return linearise


def _refusal(error: MissingRuleError) -> Pullback:
    def pullback(b: Builder, cts: Cts) -> Cts:
        raise error

    return pullback


OPS: tuple[Op, ...] = (Op("fallback", region_types, call_region, linearise=inline_region),)
