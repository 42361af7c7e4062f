"""What the tests of rules share: one-node graphs, their derivatives, and JAX's beside them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from backpass.ir.builder import Builder
from backpass.ir.graph import Graph, Node, Value
from backpass.ir.ops import OPS
from backpass.ir.types import is_inexact, type_of

Arrays = tuple[Any, ...]
Project = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class Case:
    """One use of an op.

    `wrt` are the differentiable operands, all that are inexact when None. At `kinks` there is no
    derivative to approximate, but JAX's choice to agree with; without a `peer` JAX has no
    derivative to compare. `within` projects a random direction into the op's domain, say onto
    symmetric matrices, and `seen` a random cotangent onto what of the output is defined.
    `orders` is how many times the op, or JAX's rule for it, can be differentiated.
    """

    op: str
    args: Arrays
    attrs: dict[str, Any] = field(default_factory=dict)
    label: str = ""
    wrt: tuple[int, ...] | None = None
    kinks: bool = False
    peer: bool = True
    within: Project = lambda d: d
    seen: Project = lambda ct: ct
    orders: int = 2

    @property
    def active(self) -> tuple[int, ...]:
        """Positions of the operands to differentiate by."""
        inexact = (i for i, x in enumerate(self.args) if is_inexact(type_of(x).dtype))
        return tuple(inexact) if self.wrt is None else self.wrt

    def __str__(self) -> str:
        shapes = " ".join(str(type_of(x)) for x in self.args)
        return f"{self.op}-{self.label or shapes}"


def primal(case: Case) -> Callable[..., tuple[Any, ...]]:
    """The op as a function of its active operands, by its lowering; inexact outputs only."""

    def f(*xs: Any) -> tuple[Any, ...]:
        args = list(case.args)
        for i, x in zip(case.active, xs, strict=True):
            args[i] = x
        outs = OPS[case.op].lower(args, case.attrs, (), no_regions)
        return tuple(out for out in outs if is_inexact(out.dtype))

    return f


def no_regions(*args: Any) -> list[Any]:
    raise AssertionError("an op of the tables asked for a region")


def operands(case: Case) -> list[Any]:
    return [case.args[i] for i in case.active]


def backward_graph(case: Case) -> Graph:
    """args ++ cotangents of the inexact outputs -> cotangents of the active operands."""
    b = Builder(OPS)
    inputs = [Value(type_of(x)) for x in case.args]
    b.emit(case.op, inputs, case.attrs)
    (node,) = b.nodes
    cts = [Value(o.type) if o.type.is_inexact else None for o in node.outputs]
    active = case.active
    found = pull(b, node, cts, [i in active for i in range(len(inputs))])
    given = [ct for ct in cts if ct is not None]
    outputs = [found[i] if found[i] is not None else b.zeros(inputs[i]) for i in active]
    return b.graph(f"{case.op}_vjp", [*inputs, *given], outputs)


def pull(b: Builder, node: Node, cts: Sequence[Value | None], needs: Sequence[bool]) -> Any:
    """Run a rule, and hold it to its contract."""
    assert node.op.vjp is not None, f"{node.op.name} has no VJP"
    found = node.op.vjp(b, node, cts, needs)
    assert len(found) == len(node.inputs)
    for value, ct, needed in zip(node.inputs, found, needs, strict=True):
        assert ct is None or needed, f"{node.op.name} made a cotangent that nobody needs"
        if ct is not None:
            want, got = value.type, ct.type
            assert (got.shape, got.dtype) == (want.shape, want.dtype), f"{node.op.name}: {ct}"
    return found


def gradient_graph(graph: Graph, wrt: Sequence[int]) -> Graph:
    """inputs ++ cotangents of the outputs -> cotangents of the inputs `wrt`: reverse mode."""
    b = Builder(OPS)
    b.nodes.extend(graph.nodes)
    cts = [Value(value.type.strong()) for value in graph.outputs]
    live = {graph.inputs[i] for i in wrt}
    for node in graph.nodes:
        if not live.isdisjoint(node.inputs):
            live.update(value for value in node.outputs if value.type.is_inexact)
    total: dict[Value, Value] = {}

    def accumulate(value: Value, ct: Value | None) -> None:
        if ct is not None and value in live:
            total[value] = b.add_any(total[value], ct) if value in total else ct

    for value, ct in zip(graph.outputs, cts, strict=True):
        accumulate(value, ct)
    for node in reversed(graph.nodes):
        needs = [value in live for value in node.inputs]
        given = [total.get(value) for value in node.outputs]
        if any(needs) and any(ct is not None for ct in given):
            for value, ct in zip(node.inputs, pull(b, node, given, needs), strict=True):
                accumulate(value, ct)
    found = [total.get(graph.inputs[i]) for i in wrt]
    outputs = [
        b.zeros(graph.inputs[i]) if ct is None else ct for i, ct in zip(wrt, found, strict=True)
    ]
    return b.graph(f"{graph.name}_vjp", [*graph.inputs, *cts], outputs)
