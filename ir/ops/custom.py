"""The user's own rules: `custom_jvp_call(x) call, jvp` and `custom_vjp_call(x) call, fwd, bwd`.

    jvp: primals ++ tangents of the inexact inputs -> outs ++ tangents of the inexact outs
    fwd: inputs -> outs ++ residuals
    bwd: residuals ++ cotangents of the inexact outs -> cotangents of the inexact inputs

A rule that asks what is perturbed (`symbolic_zeros=True`) has a form for each answer, and one that
calls the very function that it belongs to has no end. The op's record holds such a rule, as
`Op.rule`, and `call` is the node's only region: derivatives read it when they come to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.tree_util import Partial

from ..errors import MissingRuleError
from ..op import Attrs, Cts, Differentiator, ForwardDifferentiator, LaterRule, Op, Pullback
from .calls import Run, region_types

if TYPE_CHECKING:
    from ..builder import Builder
    from ..graph import Graph, Node, Value


def with_rule(name: str, rule: LaterRule) -> Op:
    """Record of a `custom_jvp_call` or `custom_vjp_call` that holds its rule."""
    lower = {"custom_jvp_call": _lower_jvp, "custom_vjp_call": _lower_vjp}[name]
    return replace(BY_NAME[name], lower=partial(lower, rule=rule), rule=rule)


def _forward(node: Node, perturbed: Sequence[bool]) -> Graph:
    return node.regions[1] if len(node.regions) > 1 else _later(node).forward(perturbed)


def _backward(node: Node, perturbed: Sequence[bool], seeded: Sequence[bool]) -> Graph:
    return node.regions[2] if len(node.regions) > 1 else _later(node).backward(perturbed, seeded)


def _later(node: Node) -> LaterRule:
    if node.op.rule is None:
        raise MissingRuleError(
            f"the rule of {node.attrs.get('name', node.op.name)!r} is not part of this graph: text "
            f"holds no rules beyond the third order\n  at {node.source or 'unknown line'}; "
            "differentiate the function that the text was made from"
        )
    return node.op.rule


def _lower_jvp(
    args: Sequence[Any],
    attrs: Attrs,
    regions: Sequence[Graph],
    run: Run,
    rule: LaterRule | None = None,
) -> list[Any]:
    """Rebind as `jax.custom_jvp`, so that a caller's own `jax.grad` still meets the rule."""
    call = regions[0]

    def function(*xs: Any) -> list[Any]:
        return run(call, *xs)

    def jvp(primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        perturbed = [not isinstance(t, SymbolicZero) for t in tangents]
        region = regions[1] if rule is None else rule.forward(perturbed)
        inexact = [
            _instantiated(t)
            for t, v in zip(tangents, call.inputs, strict=True)
            if v.type.is_inexact
        ]
        found = run(region, *primals, *inexact)
        outs, rest = found[: len(call.outputs)], iter(found[len(call.outputs) :])
        return outs, [
            next(rest) if v.type.is_inexact else np.zeros(v.shape, jax.dtypes.float0)
            for v in call.outputs
        ]

    wrapped = jax.custom_jvp(function)
    wrapped.defjvp(jvp, symbolic_zeros=rule is not None)
    return list(wrapped(*args))


def _linearise_jvp(
    b: Builder, node: Node, needs: Sequence[bool], ad: Differentiator
) -> tuple[Sequence[Value], Pullback]:
    """Transpose the user's JVP: it is linear in the tangents, whatever it is in the primals."""
    call, rule = node.regions[0], _forward(node, needs)
    inexact = [i for i, value in enumerate(node.inputs) if value.type.is_inexact]
    outputs, pull_tangents = ad.linear_tape(b, rule, [*node.inputs, *([None] * len(inexact))])
    primals = [value for value in outputs[: len(call.outputs)] if value is not None]

    def pullback(b: Builder, cts: Cts) -> Cts:
        seeds = [ct for ct, v in zip(cts, call.outputs, strict=True) if v.type.is_inexact]
        tangents = pull_tangents(b, [*([None] * len(primals)), *seeds])[len(node.inputs) :]
        found: list[Value | None] = [None] * len(node.inputs)
        for i, ct in zip(inexact, tangents, strict=True):
            found[i] = ct if needs[i] else None
        return found

    return primals, pullback


def _tangents_jvp(
    b: Builder, node: Node, tangents: Cts, ad: ForwardDifferentiator
) -> tuple[Sequence[Value], Cts]:
    """The user's own rule."""
    call, rule = node.regions[0], _forward(node, [t is not None for t in tangents])
    given = [
        b.zeros(x) if t is None else t
        for x, t in zip(node.inputs, tangents, strict=True)
        if x.type.is_inexact
    ]
    found, _ = b.inline(rule, (*node.inputs, *given), node.origin, merged=True)
    outputs, rest = found[: len(call.outputs)], iter(found[len(call.outputs) :])
    return outputs, [next(rest) if value.type.is_inexact else None for value in call.outputs]


def _lower_vjp(
    args: Sequence[Any],
    attrs: Attrs,
    regions: Sequence[Graph],
    run: Run,
    rule: LaterRule | None = None,
) -> list[Any]:
    """Rebind as `jax.custom_vjp`, so that a caller's own `jax.grad` still meets the rule."""
    call = regions[0]
    count = len(call.outputs)

    def function(*xs: Any) -> list[Any]:
        return run(call, *xs)

    def fwd(*xs: Any) -> tuple[list[Any], Any]:
        found = run(regions[1], *xs)
        return found[:count], found[count:]

    def bwd(residuals: list[Any], cts: list[Any]) -> tuple[Any, ...]:
        return pulled(regions[2], residuals, cts)

    def fwd_later(*xs: Any) -> tuple[list[Any], Any]:
        assert rule is not None
        perturbed = tuple(x.perturbed for x in xs)
        found = run(rule.forward(perturbed), *(x.value for x in xs))
        return found[:count], Partial(partial(rule.backward, perturbed), *found[count:])

    def bwd_later(residuals: Any, cts: list[Any]) -> tuple[Any, ...]:
        region = residuals.func([not isinstance(ct, SymbolicZero) for ct in cts])
        return pulled(region, residuals.args, cts)

    def pulled(region: Graph, residuals: Sequence[Any], cts: list[Any]) -> tuple[Any, ...]:
        seeds = [
            _instantiated(ct) for ct, v in zip(cts, call.outputs, strict=True) if v.type.is_inexact
        ]
        found = iter(run(region, *residuals, *seeds))
        return tuple(next(found) if v.type.is_inexact else None for v in call.inputs)

    wrapped = jax.custom_vjp(function)
    if rule is None:
        wrapped.defvjp(fwd, bwd)
    else:
        wrapped.defvjp(fwd_later, bwd_later, symbolic_zeros=True)
    return list(wrapped(*args))


def _instantiated(x: Any) -> Any:
    if not isinstance(x, SymbolicZero):
        return x
    aval: Any = x.aval
    return jax.numpy.zeros(aval.shape, aval.dtype)


def _linearise_vjp(
    b: Builder, node: Node, needs: Sequence[bool], ad: Differentiator
) -> tuple[Sequence[Value], Pullback]:
    """The user's forward in place of the function, the user's backward as its pullback."""
    call, forward = node.regions[0], _forward(node, needs)
    found, _ = b.inline(forward, node.inputs, node.origin, merged=True)
    outputs, residuals = found[: len(call.outputs)], found[len(call.outputs) :]

    def pullback(b: Builder, cts: Cts) -> Cts:
        backward = _backward(node, needs, [ct is not None for ct in cts])
        seeds = [
            ct if ct is not None else b.zeros(v)
            for ct, v in zip(cts, call.outputs, strict=True)
            if v.type.is_inexact
        ]
        given, _ = b.inline(backward, (*residuals, *seeds), node.origin, merged=True)
        each = iter(given)
        return [next(each) if value.type.is_inexact else None for value in node.inputs]

    return outputs, pullback


def _tangents_vjp(
    b: Builder, node: Node, tangents: Cts, ad: ForwardDifferentiator
) -> tuple[Sequence[Value], Cts]:
    """The transpose of the user's backward, which has to be linear in the cotangents."""
    perturbed = [t is not None for t in tangents]
    call, forward = node.regions[0], _forward(node, perturbed)
    found, _ = b.inline(forward, node.inputs, node.origin, merged=True)
    outputs, residuals = found[: len(call.outputs)], found[len(call.outputs) :]
    backward = _backward(node, perturbed, [value.type.is_inexact for value in call.outputs])
    seeds = len(backward.inputs) - len(residuals)
    _, pull = ad.linear_tape(b, backward, [*residuals, *([None] * seeds)])
    given = [t for t, x in zip(tangents, node.inputs, strict=True) if x.type.is_inexact]
    pulled = iter(pull(b, given)[len(residuals) :])
    return outputs, [next(pulled) if value.type.is_inexact else None for value in call.outputs]


OPS: tuple[Op, ...] = (
    Op("custom_jvp_call", region_types, _lower_jvp, linearise=_linearise_jvp, jvp=_tangents_jvp),
    Op("custom_vjp_call", region_types, _lower_vjp, linearise=_linearise_vjp, jvp=_tangents_vjp),
)
BY_NAME = {op.name: op for op in OPS}
