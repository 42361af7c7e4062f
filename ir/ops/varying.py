"""Which manual mesh axes each value varies over, and the casts that make operands agree.

Inside `jax.shard_map` JAX's types tell the axes that a value may differ along, and an operation
wants operands of one kind. Our values have no such types: a program comes with its casts
(`pvary`), and rules add constants, zeros and sums, which vary over nothing. `aligned` follows the
axes through a graph, by the table below, and puts a `pvary` wherever operands disagree.

That is all that is needed, since a cast that a derivative must see (the cotangent of a `pvary` is
a sum over its axes) stands in the graph already. Those added here are of values that nothing is
differentiated by; where a rule lets a value of the program meet an axis index, it casts itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ..graph import Graph, Node, Value
from .collectives import PVARY, names_of

Axes = frozenset[Any]
NONE: Axes = frozenset()


def aligned(
    graph: Graph, inputs: Sequence[Axes], manual: Axes, wanted: Sequence[Axes] | None = None
) -> Graph:
    """Return the graph with casts; its outputs vary at least over `wanted`.

    `inputs` has the axes of each input, `manual` all axes that types tell of.
    """
    return _walk(graph, inputs, manual, wanted).graph


def varying(graph: Graph, inputs: Sequence[Axes], manual: Axes) -> tuple[Axes, ...]:
    """Return the axes that each output varies over."""
    return _walk(graph, inputs, manual, None).outputs


class Walked(NamedTuple):
    """A graph with its casts, and the axes of its outputs."""

    graph: Graph
    outputs: tuple[Axes, ...]


def _walk(
    graph: Graph, inputs: Sequence[Axes], manual: Axes, wanted: Sequence[Axes] | None
) -> Walked:
    walk = _Walk(manual, dict(zip(graph.inputs, inputs, strict=True)))
    for node in graph.nodes:
        _RULES.get(node.op.name, _alike)(walk, walk.read(node))
    outputs = tuple(walk.env.get(value, value) for value in graph.outputs)
    if wanted is not None:
        outputs = tuple(map(walk.cast, outputs, wanted))
    found = tuple(map(walk.axes, outputs))
    same = outputs == graph.outputs and walk.nodes == list(graph.nodes)
    cast = graph if same else replace(graph, nodes=tuple(walk.nodes), outputs=outputs)
    return Walked(cast, found)


class _Walk:
    """One graph: nodes so far, the axes of each value, and values that stand for others."""

    def __init__(self, manual: Axes, known: dict[Value, Axes]) -> None:
        self.manual, self.known = manual, known
        self.nodes: list[Node] = []
        self.env: dict[Value, Value] = {}

    def axes(self, value: Value) -> Axes:
        return self.known.get(value, NONE)

    def read(self, node: Node) -> Node:
        if self.env.keys().isdisjoint(node.inputs):
            return node
        return replace(node, inputs=tuple(self.env.get(value, value) for value in node.inputs))

    def cast(self, value: Value, axes: Axes) -> Value:
        """Return a value that varies over `axes` besides its own."""
        missing = (axes & self.manual) - self.axes(value)
        if not missing:
            return value
        out = Value(value.type)
        names = tuple(sorted(missing, key=str))
        self.nodes.append(Node(PVARY, (value,), (out,), {"axes": names}))
        self.known[out] = self.axes(value) | missing
        return out

    def add(self, node: Node, wanted: Sequence[Axes], outputs: Sequence[Axes]) -> None:
        """Append a node, its operands cast to `wanted`; tell what its outputs vary over."""
        inputs = tuple(map(self.cast, node.inputs, wanted))
        if any(new is not old for new, old in zip(inputs, node.inputs, strict=True)):
            node = replace(node, inputs=inputs)
        self.nodes.append(node)
        self.known.update(zip(node.outputs, outputs, strict=True))

    def inside(
        self, region: Graph, inputs: Sequence[Axes], wanted: Sequence[Axes] | None = None
    ) -> Walked:
        return _walk(region, inputs, self.manual, wanted)


def _inputs(walk: _Walk, node: Node) -> list[Axes]:
    return list(map(walk.axes, node.inputs))


def _union(many: Sequence[Axes]) -> Axes:
    return NONE.union(*many)


def _alike(walk: _Walk, node: Node) -> None:
    """Return operands and results alike: the rule of almost every op."""
    every = _union(_inputs(walk, node))
    walk.add(node, [every] * len(node.inputs), [every] * len(node.outputs))


def _each(walk: _Walk, node: Node) -> None:
    """Each result varies as the operand in its place."""
    own = _inputs(walk, node)
    walk.add(node, own, own)


def _pvary(walk: _Walk, node: Node) -> None:
    """A value that varies already is left as it is."""
    (x,) = node.inputs
    names = frozenset(node.attrs["axes"]) & walk.manual
    missing = tuple(name for name in node.attrs["axes"] if name in names - walk.axes(x))
    if not missing:
        walk.env[node.output] = x
        return
    if missing != tuple(node.attrs["axes"]):
        node = replace(node, attrs={"axes": missing})
    walk.add(node, [NONE], [walk.axes(x) | names])


def _collective(walk: _Walk, node: Node) -> None:
    """Operand and result vary over the collective's axes."""
    names = frozenset(names_of(node.attrs)) & walk.manual
    every = _union(_inputs(walk, node)) | names
    walk.add(node, [every] * len(node.inputs), [every])


def _reducing(walk: _Walk, node: Node) -> None:
    """The operand varies over the collective's axes, the result does not."""
    names = frozenset(names_of(node.attrs)) & walk.manual
    every = _union(_inputs(walk, node)) | names
    walk.add(node, [every], [every - names])


# Ops with regions


def _call(walk: _Walk, node: Node) -> None:
    own = _inputs(walk, node)
    body = walk.inside(node.regions[0], own)
    walk.add(replace(node, regions=(body.graph,)), own, body.outputs)


def _custom_jvp(walk: _Walk, node: Node) -> None:
    if node.op.rule is not None:
        return _call(walk, node)
    call, rule = node.regions
    own = _inputs(walk, node)
    tangents = [axes for axes, v in zip(own, call.inputs, strict=True) if v.type.is_inexact]
    body = walk.inside(call, own)
    inexact = [a for a, v in zip(body.outputs, call.outputs, strict=True) if v.type.is_inexact]
    second = walk.inside(rule, [*own, *tangents], [*body.outputs, *inexact])
    walk.add(replace(node, regions=(body.graph, second.graph)), own, body.outputs)


def _custom_vjp(walk: _Walk, node: Node) -> None:
    if node.op.rule is not None:
        return _call(walk, node)
    call, forward, backward = node.regions
    own = _inputs(walk, node)
    body = walk.inside(call, own)
    count = len(call.outputs)
    residuals = walk.inside(forward, own).outputs[count:]
    first = walk.inside(forward, own, [*body.outputs, *residuals])
    cts = [a for a, v in zip(body.outputs, call.outputs, strict=True) if v.type.is_inexact]
    active = [a for a, v in zip(own, call.inputs, strict=True) if v.type.is_inexact]
    second = walk.inside(backward, [*residuals, *cts], active)
    regions = (body.graph, first.graph, second.graph)
    walk.add(replace(node, regions=regions), own, body.outputs)


def _cond(walk: _Walk, node: Node) -> None:
    """All branches give what the most varying one gives."""
    own = _inputs(walk, node)
    branches = [walk.inside(region, own[1:]).outputs for region in node.regions]
    joint = [_union(outs) for outs in zip(*branches, strict=True)]
    regions = tuple(walk.inside(region, own[1:], joint).graph for region in node.regions)
    walk.add(replace(node, regions=regions), own, joint)


def _settled(
    walk: _Walk, body: Graph, given: Callable[[Sequence[Axes]], list[Axes]], carry: Sequence[Axes]
) -> list[Axes]:
    """Least fixed point of: a carry varies as it starts, and as the body gives it back."""
    carry = list(carry)
    while True:
        outs = walk.inside(body, given(carry)).outputs
        grown = [a | b for a, b in zip(carry, outs, strict=False)]
        if grown == carry:
            return carry
        carry = grown


def _scan(walk: _Walk, node: Node) -> None:
    n, k = node.attrs["num_consts"], node.attrs["num_carry"]
    own, (body,) = _inputs(walk, node), node.regions

    def given(carry: Sequence[Axes]) -> list[Axes]:
        return [*own[:n], *carry, *own[n + k :]]

    carry = _settled(walk, body, given, own[n : n + k])
    stacked = walk.inside(body, given(carry)).outputs[k:]
    outs = [*carry, *stacked]
    region = walk.inside(body, given(carry), outs).graph
    walk.add(replace(node, regions=(region,)), given(carry), outs)


def _while(walk: _Walk, node: Node) -> None:
    test, body = node.regions
    n, k = node.attrs["cond_nconsts"], node.attrs["body_nconsts"]
    own = _inputs(walk, node)

    def given(carry: Sequence[Axes]) -> list[Axes]:
        return [*own[n : n + k], *carry]

    carry = _settled(walk, body, given, own[n + k :])
    regions = (
        walk.inside(test, [*own[:n], *carry]).graph,
        walk.inside(body, given(carry), carry).graph,
    )
    walk.add(replace(node, regions=regions), [*own[: n + k], *carry], carry)


def _gradients(walk: _Walk, node: Node) -> None:
    """A gradient varies as what it belongs to."""
    own = _inputs(walk, node)
    outs = walk.inside(node.regions[0], own).outputs
    walk.add(node, own, [*outs, *(own[i] for i in node.attrs["wrt"])])


def spec_axes(spec: Any) -> Axes:
    """Return the mesh axes that a `PartitionSpec` names."""
    listed = (part if isinstance(part, tuple) else (part,) for part in spec if part is not None)
    return frozenset(name for part in listed for name in part)


def _shard_map(walk: _Walk, node: Node) -> None:
    """Inside another: along the outer's axes, results vary as the body gives them."""
    own = _inputs(walk, node)
    inside = [a | spec_axes(s) for a, s in zip(own, node.attrs["in_specs"], strict=True)]
    manual = walk.manual | node.attrs["manual_axes"]
    outs = varying(node.regions[0], inside, manual)
    walk.add(node, own, [axes & walk.manual for axes in outs])


_RULES: Mapping[str, Callable[[_Walk, Node], None]] = {
    "pvary": _pvary,
    **dict.fromkeys("device_put offload fetch".split(), _each),
    "custom_jvp_call": _custom_jvp,
    "custom_vjp_call": _custom_vjp,
    "cond": _cond,
    "scan": _scan,
    "while": _while,
    "gradients": _gradients,
    "shard_map": _shard_map,
    **dict.fromkeys("jit closed_call eval_jaxpr remat2".split(), _call),
    **dict.fromkeys("psum_invariant pmax pmin all_gather_invariant".split(), _reducing),
    **dict.fromkeys(
        "psum all_gather reduce_scatter all_to_all ppermute pbroadcast axis_index".split(),
        _collective,
    ),
}
