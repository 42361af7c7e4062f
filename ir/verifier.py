"""The rules that every graph keeps; who breaks one has a bug, and it is ours.

Each value is defined once, before it is read; a region reads its own inputs alone; types are what
the op's shape rule says (weak bits aside); regions take and give what their op hands them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, get_args

import numpy as np

from .errors import GraphError
from .graph import Graph, Literal, Node, Phase, Value
from .printer import excerpt
from .types import ArrayType


def verify(graph: Graph) -> None:
    """Check `graph` and all its regions: each value made once, before it is read, of its type.

    Raises:
        GraphError: with the lines around the node that breaks a rule as a note.
    """
    _Check(graph, set()).run()


class _Check:
    """One graph; `done` has the ids of regions that were found sound, as many nodes share one."""

    def __init__(self, graph: Graph, done: set[int]) -> None:
        self.graph, self.done = graph, done
        self.defined: set[Value] = set()
        self.position = -1

    def run(self) -> None:
        self.define(self.graph.inputs)
        for position, node in enumerate(self.graph.nodes):
            self.position = position
            self.read(node.inputs, f"{node.op.name} reads")
            self.regions(node)
            self.types(node)
            self.define(node.outputs)
        self.position = len(self.graph.nodes)
        self.read(self.graph.outputs, "the graph returns")

    def fail(self, message: str, cause: Exception | None = None) -> NoReturn:
        where = f"graph {self.graph.name}"
        if 0 <= self.position < len(self.graph.nodes):
            node = self.graph.nodes[self.position]
            where = node.place
        error = GraphError(f"{message}\n  at {where}; this is a bug in backpass, please report it")
        error.add_note(excerpt(self.graph, self.position))
        raise error from cause

    def define(self, values: Sequence[Value]) -> None:
        for value in values:
            if value in self.defined:
                self.fail(f"a value is defined twice: {value!r}")
            if isinstance(value, Literal):
                self.fail(f"a literal stands where a value is defined: {value!r}")
            self.defined.add(value)

    def read(self, values: Sequence[Value], who: str) -> None:
        for value in values:
            if isinstance(value, Literal):
                if value.shape or getattr(value.data, "dtype", None) != value.dtype:
                    self.fail(f"{who} a literal that is not a scalar of its dtype: {value!r}")
            elif value not in self.defined:
                self.fail(f"{who} a value that is not defined before: {value!r}")

    def regions(self, node: Node) -> None:
        for region in node.regions:
            if id(region) not in self.done:
                _Check(region, self.done).run()
                self.done.add(id(region))
        rule = _SIGNATURES.get(node.op.name)
        if rule is not None:
            try:
                rule(self, node)
            except GraphError:
                raise
            except Exception as error:  # of many kinds, as attributes may be anything
                self.fail(f"{node.op.name} has malformed attributes or regions: {error!r}", error)

    def types(self, node: Node) -> None:
        if node.phase not in get_args(Phase):
            self.fail(f"{node.op.name} is of an unknown phase {node.phase!r}")
        if node.op.foreign:  # its types are JAX's own
            return
        try:
            expected = node.op.shape(node.inputs, node.attrs, node.regions)
        except Exception as error:
            self.fail(f"{node.op.name} does not accept its operands: {error}", error)
        self.fit(f"{node.op.name} gives", [v.type for v in node.outputs], expected)

    def fit(self, what: str, found: Sequence[ArrayType], expected: Sequence[ArrayType]) -> None:
        """Compare types; weak bits do not count."""
        if [(t.shape, t.dtype) for t in found] != [(t.shape, t.dtype) for t in expected]:
            shown = [f"({', '.join(map(str, types))})" for types in (found, expected)]
            self.fail(f"{what} {shown[0]}, expected {shown[1]}")

    def signature(
        self,
        node: Node,
        region: Graph,
        inputs: Sequence[ArrayType],
        outputs: Sequence[ArrayType] | None,
    ) -> None:
        """Check what a region takes and, where `outputs` is given, returns."""
        name = f"region {region.name} of {node.op.name}"
        self.fit(f"{name} takes", [v.type for v in region.inputs], inputs)
        if outputs is not None:
            self.fit(f"{name} returns", [v.type for v in region.outputs], outputs)


def _types(values: Sequence[Value]) -> list[ArrayType]:
    return [value.type for value in values]


def _scan(check: _Check, node: Node) -> None:
    (body,) = node.regions
    attrs: Mapping[str, Any] = node.attrs
    n, k, length = attrs["num_consts"], attrs["num_carry"], attrs["length"]
    held, stacked = _types(node.inputs[: n + k]), _types(node.inputs[n + k :])
    if any(t.shape[:1] != (length,) for t in stacked):
        shown = ", ".join(map(str, stacked))
        check.fail(f"scan of length {length} takes slices of {shown}")
    slices = [t.with_shape(t.shape[1:]) for t in stacked]
    carry = held[n:]
    check.signature(node, body, [*held, *slices], [*carry, *_types(body.outputs[k:])])


def _while(check: _Check, node: Node) -> None:
    test, body = node.regions
    n, k = node.attrs["cond_nconsts"], node.attrs["body_nconsts"]
    types = _types(node.inputs)
    carry = types[n + k :]
    check.signature(node, test, [*types[:n], *carry], _types(test.outputs[:1]))
    check.signature(node, body, types[n:], carry)
    if [v.dtype for v in test.outputs] != [np.dtype(bool)]:
        check.fail("the condition of a while wants to return one boolean")
    dims = test.outputs[0].shape  # one loop for each element of these, under `jax.vmap`
    if any(t.shape[: len(dims)] != dims for t in carry):
        check.fail(f"the condition of a while is batched over {list(dims)}, its carry is not")


def _cond(check: _Check, node: Node) -> None:
    index, *operands = _types(node.inputs)
    if index.shape or not node.regions:
        check.fail(f"cond wants a scalar index and branches, got {index}")
    for branch in node.regions:
        check.signature(node, branch, operands, _types(node.outputs))


def _call(check: _Check, node: Node) -> None:
    check.signature(node, node.regions[0], _types(node.inputs), _types(node.outputs))


def _gradients(check: _Check, node: Node) -> None:
    (function,) = node.regions
    check.signature(node, function, _types(node.inputs), None)


def _reduce(check: _Check, node: Node) -> None:
    scalars = [t.with_shape(()) for t in _types(node.inputs)]
    (function,) = node.regions
    check.signature(node, function, scalars, scalars[: len(node.outputs)])


_CALLS = "jit closed_call remat2 custom_jvp_call custom_vjp_call fallback linear_call".split()
_SIGNATURES: Mapping[str, Callable[[_Check, Node], None]] = {
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "gradients": _gradients,
    **dict.fromkeys(("reduce", "reduce_window"), _reduce),
    **dict.fromkeys(_CALLS, _call),
}
