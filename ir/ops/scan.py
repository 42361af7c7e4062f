"""`scan(consts, carry, xs) {num_consts, num_carry, length, reverse, unroll, late} body`.

    body: consts ++ carry ++ x   ->  carry ++ y ++ ...

XLA makes the zeros into which a scan stacks its ys when the program starts, all of them. With
`late`, which the planner sets, they wait for the scan's operands.

Reverse mode runs a second scan the other way round. What it reads of a step is passed as cheaply
as can be: a constant as a constant, a slice of an input as that input, what the body makes of
constants alone is made once before the loop, and only what it made in this step (or its carry)
is stacked by the forward scan. A carry that the body hands on as it is counts as a constant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..jax_compat import manual_axes
from ..op import Attrs, Cts, Differentiator, Op, Pullback, Split
from ..types import ArrayType
from . import tangents

if TYPE_CHECKING:
    from ..builder import Builder
    from ..graph import Graph, Node, Value


def _types(
    inputs: Sequence[Value], attrs: Attrs, regions: Sequence[Graph]
) -> tuple[ArrayType, ...]:
    carry = attrs["num_carry"]
    outs = [value.type for value in regions[0].outputs]
    stacked = [t.stacked(attrs["length"]).strong() for t in outs[carry:]]
    return (*outs[:carry], *stacked)


def _lower(
    args: Sequence[Any], attrs: Attrs, regions: Sequence[Graph], run: Callable[..., list[Any]]
) -> list[Any]:
    n, k = attrs["num_consts"], attrs["num_carry"]
    consts, init, xs = args[:n], args[n : n + k], args[n + k :]

    def body(carry: list[Any], x: list[Any]) -> tuple[list[Any], list[Any]]:
        outs = run(regions[0], *consts, *carry, *x)
        return outs[:k], outs[k:]

    options = {"length": attrs["length"], "reverse": attrs["reverse"], "unroll": attrs["unroll"]}
    types = [value.type for value in regions[0].outputs[k:]]
    late = attrs.get("late") and attrs["length"]
    if late and all(map(_numeric, types)) and not manual_axes():
        return _lower_late(body, init, xs, types, options)
    carry, ys = lax.scan(body, list(init), list(xs), **options)
    return [*carry, *ys]


def _numeric(type: ArrayType) -> bool:
    """False for keys, which have no zero."""
    return not jnp.issubdtype(type.dtype, jax.dtypes.extended)


def _lower_late(
    body: Callable[[list[Any], list[Any]], tuple[list[Any], list[Any]]],
    init: Sequence[Any],
    xs: Sequence[Any],
    types: Sequence[ArrayType],
    options: Mapping[str, Any],
) -> list[Any]:
    """The ys in the carry: they begin as a zero each that passes a barrier with the operands.

    XLA:CPU expands barriers before it decides when the zeros are made; see `_tied`.
    """
    length, reverse = options["length"], options["reverse"]
    zeros = [np.zeros((), t.dtype) for t in types]
    zeros, init, xs = lax.optimization_barrier((zeros, list(init), list(xs)))
    if jax.default_backend() == "cpu":
        zeros = _tied(zeros, (*init, *xs))
    stacks = [lax.broadcast(z, (length, *t.shape)) for z, t in zip(zeros, types, strict=True)]

    def step(state: Any, x: Any) -> tuple[Any, None]:
        i, carry, stacks = state
        carry, ys = body(carry, x)
        stacks = [
            lax.dynamic_update_index_in_dim(stack, y, i, 0, allow_negative_indices=False)
            for stack, y in zip(stacks, ys, strict=True)
        ]
        return (i - 1 if reverse else i + 1, carry, stacks), None

    start = np.int32(length - 1 if reverse else 0)
    (_, carry, stacks), _ = lax.scan(step, (start, init, stacks), xs, **options)
    return [*carry, *stacks]


def _tied(zeros: Sequence[Any], operands: Sequence[Any]) -> list[Any]:
    """Zeros that depend on an element of each operand, by arithmetic that XLA does not fold.

    `(bits >> 31) >> 1` of 32 bits is 0.
    """
    seen = [bits for x in operands if (bits := _bits(x)) is not None]
    if not seen:
        return list(zeros)
    zero = lax.shift_right_logical(reduce(lax.bitwise_or, seen), np.uint32(31))
    zero = lax.shift_right_logical(zero, np.uint32(1))
    return [lax.convert_element_type(zero, z.dtype) for z in zeros]


def _bits(x: Any) -> Any:
    """The first element of an array as `uint32`; None where there is none, or no such bits."""
    kinds = (jnp.floating, jnp.integer)
    size = 0 if jnp.issubdtype(x.dtype, jax.dtypes.extended) else x.dtype.itemsize
    if size not in (2, 4, 8) or not x.size or not any(jnp.issubdtype(x.dtype, k) for k in kinds):
        return None
    first = lax.reshape(lax.slice(x, (0,) * x.ndim, (1,) * x.ndim), ())
    bits = lax.bitcast_convert_type(first, np.dtype(f"uint{8 * size}"))
    return lax.convert_element_type(bits, np.uint32)


def _linearise(
    b: Builder, node: Node, needs: Sequence[bool], ad: Differentiator
) -> tuple[Sequence[Value], Pullback]:
    n, k = node.attrs["num_consts"], node.attrs["num_carry"]
    (body,) = node.regions
    read = _read(body)
    active = [
        need and (value in read or n <= i < n + k)
        for i, (need, value) in enumerate(zip(needs, body.inputs, strict=True))
    ]
    active_outs = tangents.grown(body, active, slice(n, n + k), ad)
    fixed = _fixed(node)
    carried = [i for i in range(n, n + k) if i not in fixed]
    split = ad.split(body, active, store=carried, seeds=active_outs, fixed=fixed)
    once, _ = b.inline(split.once, [node.inputs[i] for i in fixed], node.origin)
    forward, shared = _with_consts(split.forward, n, len(node.inputs))
    inputs = (*node.inputs[:n], *once[:shared], *node.inputs[n:])
    found = b.emit("scan", inputs, {**node.attrs, "num_consts": n + shared}, (forward,))
    outputs, stored = found[: len(body.outputs)], found[len(body.outputs) :]

    def pullback(b: Builder, cts: Cts) -> Cts:
        return _backward(b, node, split, active, once, stored, cts)

    return outputs, pullback


def _fixed(node: Node) -> list[int]:
    """Places of the inputs that are the same in each step; of none if there is but one step."""
    n, k = node.attrs["num_consts"], node.attrs["num_carry"]
    (body,) = node.regions
    if node.attrs["length"] < 2:
        return []
    return [*range(n), *(n + i for i in range(k) if body.outputs[i] is body.inputs[n + i])]


def _with_consts(body: Graph, n: int, given: int) -> tuple[Graph, int]:
    """Move a body's inputs behind the first `given` ones to the end of its `n` constants."""
    ins = body.inputs
    inputs = (*ins[:n], *ins[given:], *ins[n:given])
    return replace(body, inputs=inputs), len(ins) - given


def _read(body: Graph) -> set[Value]:
    """Values that an output depends on: a constant or slice that is none has no cotangent."""
    found = set(body.outputs)
    for node in reversed(body.nodes):
        if not found.isdisjoint(node.outputs):
            found.update(node.inputs)
    return found


def _backward(
    b: Builder,
    node: Node,
    split: Split,
    active: Sequence[bool],
    once: Sequence[Value],
    stored: Sequence[Value],
    cts: Cts,
) -> Cts:
    """The reversed scan: constants' cotangents and the carry's are its carry."""
    n, k = node.attrs["num_consts"], node.attrs["num_carry"]
    (body,) = node.regions
    consts = node.inputs[:n]
    wrt = [i for i, is_active in enumerate(active) if is_active]
    sums = [i for i in wrt if i < n]
    carried = [i for i in wrt if n <= i < n + k]
    seeds = {i: cts[i] for i in split.seeds}

    sub = b.nested()
    new: dict[str, list[tuple[Value, Value]]] = {"consts": [], "carry": [], "xs": []}

    def take(kind: str, outer: Value, type: ArrayType) -> Value:
        inner = sub.value(type)
        new[kind].append((inner, outer))
        return inner

    def residual(kind: str, i: int) -> Value:
        if kind == "stored":
            return take("xs", stored[i], split.forward.outputs[len(body.outputs) + i].type)
        if kind == "once" or i < n + k:
            value = once[i] if kind == "once" else node.inputs[i]
            return take("consts", value, value.type)
        return take("xs", node.inputs[i], body.inputs[i].type)

    totals = [take("carry", b.zeros(consts[i]), consts[i].type.strong()) for i in sums]
    carry_cts = {
        i: take("carry", _or_zeros(b, cts[i - n], node.inputs[i]), body.inputs[i].type.strong())
        for i in carried
    }
    chosen = [residual(kind, i) for kind, i in split.residuals]
    given = [
        carry_cts[n + i] if i < k else _seed(sub, take, seeds[i], body.outputs[i])
        for i in split.seeds
    ]
    found, _ = sub.inline(split.backward, (*chosen, *given))
    ct_of = dict(zip(wrt, found, strict=True))
    outs = [sub.add_any(total, ct_of[i]) for total, i in zip(totals, sums, strict=True)]
    outs += [ct_of[i] for i in wrt if i >= n]

    sides = [new["consts"], new["carry"], new["xs"]]
    graph = sub.graph(f"{body.name}_backward", [v for side in sides for v, _ in side], outs)
    attrs = {
        **node.attrs,
        "num_consts": len(new["consts"]),
        "num_carry": len(new["carry"]),
        "reverse": not node.attrs["reverse"],
    }
    grads = b.emit("scan", [v for side in sides for _, v in side], attrs, (graph,))
    result: list[Value | None] = [None] * len(node.inputs)
    for i, ct in zip([*sums, *carried, *(i for i in wrt if i >= n + k)], grads, strict=True):
        result[i] = ct
    return result


def _or_zeros(b: Builder, ct: Value | None, like: Value) -> Value:
    return b.zeros(like) if ct is None else ct


def _seed(sub: Builder, take: Callable[..., Value], ct: Value | None, output: Value) -> Value:
    """Return a slice of an output's cotangent, or zeros made inside where there is none."""
    return sub.zeros(output) if ct is None else take("xs", ct, output.type.strong())


def _flops(node: Node) -> int:
    """Length times the body's."""
    return int(node.attrs["length"]) * sum(n.op.flops(n) for n in node.regions[0].nodes)


SCAN = Op("scan", _types, _lower, linearise=_linearise, jvp=tangents.scan, flops=_flops)
