"""`custom_linear_solve`: x with A x = b, where A is a function and the solver is given too.

Differentiated by the equation that x solves, whatever the solver does: A^T z = g, then b gets z
and what A closes over gets -z pulled back through A at x.

Source: Christianson, "Reverse accumulation and implicit functions", 1998.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from jax import lax

from ..errors import MissingRuleError
from ..op import Attrs, Cts, Differentiator, ForwardDifferentiator, Op, Pullback
from ..types import ArrayType

if TYPE_CHECKING:
    from ..builder import Builder
    from ..graph import Graph, Node, Value

Run = Callable[..., list[Any]]
# Regions: A, A^T, solve, solve for A^T; or A and solve, where no transpose was given.
BOTH_WAYS = 4


def _parts(inputs: Sequence[Any], attrs: Attrs) -> tuple[list[Any], ...]:
    """What each of the four functions closes over, and b."""
    rest: Iterator[Any] = iter(inputs)
    closed = [list(islice(rest, n)) for n in attrs["const_lengths"]]
    return (*closed, list(rest))


def _shape(
    inputs: Sequence[Value], attrs: Attrs, regions: Sequence[Graph]
) -> tuple[ArrayType, ...]:
    return tuple(value.type for value in _solver(regions).outputs)


def _solver(regions: Sequence[Graph]) -> Graph:
    return regions[2] if len(regions) == BOTH_WAYS else regions[1]


def _lower(args: Sequence[Any], attrs: Attrs, regions: Sequence[Graph], run: Run) -> list[Any]:
    """Rebind, so that a caller's own `jax.grad` still meets the rule."""
    of_a, _, of_solve, of_transposed, y = _parts(args, attrs)
    if len(regions) != BOTH_WAYS or len(_solver(regions).outputs) != len(y):
        return run(_solver(regions), *of_solve, *y)
    matvec, _, solve, transposed = regions
    found = lax.custom_linear_solve(
        lambda x: run(matvec, *of_a, *x),
        y,
        lambda _, y: run(solve, *of_solve, *y),
        transpose_solve=lambda _, y: run(transposed, *of_transposed, *y),
    )
    return list(found)


def _transposed(b: Builder, node: Node, cts: Cts) -> Sequence[Value]:
    """Solve for A^T, by a node that can itself be differentiated, without what else it tells."""
    if len(node.regions) != BOTH_WAYS:
        raise MissingRuleError(
            "custom_linear_solve has no gradient without transpose_solve; give it one, or "
            "symmetric=True where A is"
        )
    of_a, of_at, of_solve, of_transposed, y = _parts(node.inputs, node.attrs)
    a, at, solve, transposed = node.regions
    lengths = tuple(map(len, (of_at, of_a, of_transposed, of_solve)))
    given = [b.zeros(x) if g is None else g for x, g in zip(y, cts, strict=False)]
    closed = (*of_at, *of_a, *of_transposed, *of_solve)
    attrs = {"const_lengths": lengths}
    return b.emit(node.op, (*closed, *given), attrs, (at, a, transposed, solve))[: len(y)]


def _vjp(b: Builder, node: Node, cts: Cts, needs: Sequence[bool]) -> Cts:
    """By b alone, as where a user's JVP rule solves for a tangent."""
    z = _transposed(b, node, cts)
    return [*[None] * (len(node.inputs) - len(z)), *z]


def _linearise(
    b: Builder, node: Node, needs: Sequence[bool], ad: Differentiator
) -> tuple[Sequence[Value], Pullback]:
    outputs = b.emit(node.op, node.inputs, node.attrs, node.regions)
    of_a, *_, y = _parts(node.inputs, node.attrs)

    def pullback(b: Builder, cts: Cts) -> Cts:
        z = _transposed(b, node, cts)
        active = [*needs[: len(of_a)], *(False for _ in y)]
        _, pull = ad.inline(b, node.regions[0], [*of_a, *outputs[: len(y)]], active)
        found = pull(b, [b.neg(v) for v in z])[: len(of_a)]
        return [*found, *[None] * (len(node.inputs) - len(of_a) - len(y)), *z]

    return outputs, pullback


def _jvp(
    b: Builder, node: Node, tangents: Cts, ad: ForwardDifferentiator
) -> tuple[Sequence[Value], Cts]:
    """A dx = db - dA x, by the same solver."""
    outputs = b.emit(node.op, node.inputs, node.attrs, node.regions)
    of_a, *_, y = _parts(node.inputs, node.attrs)
    x = outputs[: len(y)]
    t_of_a, *_, t_y = _parts(tangents, node.attrs)
    _, moved = ad.inline(b, node.regions[0], [*of_a, *x], [*t_of_a, *[None] * len(x)])
    if all(t is None for t in (*t_y, *moved)):
        return outputs, [None] * len(outputs)
    rest = [_difference(b, v, t, m) for v, t, m in zip(y, t_y, moved, strict=True)]
    closed = node.inputs[: len(node.inputs) - len(y)]
    found = b.emit(node.op, (*closed, *rest), node.attrs, node.regions)
    return outputs, [*found[: len(y)], *[None] * (len(outputs) - len(y))]


def _difference(b: Builder, like: Value, t: Value | None, m: Value | None) -> Value:
    if m is None:
        return b.zeros(like) if t is None else t
    return b.neg(m) if t is None else b.sub(t, m)


OPS: tuple[Op, ...] = (
    Op("custom_linear_solve", _shape, _lower, vjp=_vjp, linearise=_linearise, jvp=_jvp),
)
