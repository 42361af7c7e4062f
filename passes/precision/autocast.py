"""The pass: products in a narrow dtype, with casts that stand in the graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jax import lax

from ...ir.builder import Builder
from ...ir.errors import ArgumentError
from ...ir.fusion import MOVES
from ...ir.graph import Graph, Literal, Node, Value
from ...ir.ops import OPS
from ..rewriter import ENTERED, rewrite
from ..scan import Scan
from .policy import PRODUCTS, arrays, follows, is_relu, is_wide, of_product

DTYPES = ("bfloat16", "float16")


@dataclass(frozen=True)
class Autocast:
    """x32 . y32  ->  cast(x32) . cast(y32), in `dtype`, and what follows as `policy` says.

    Runs before autodiff, so that the backward pass has the dtypes of the forward pass: parameters
    are float32 and cast where a product reads them, and so are their gradients. What a function
    takes and returns keeps its dtype, and so does what a loop carries.

    In a step that asks for gradients, only the functions that it differentiates are cast: updates
    stay as they are. Gradients that `jax.grad` has taken are cast by the phases of their nodes.
    """

    dtype: str = "bfloat16"

    name: ClassVar[str] = "autocast"

    def __post_init__(self) -> None:
        """Check the dtype."""
        if self.dtype not in DTYPES:
            raise ArgumentError(f"precision wants one of {', '.join(DTYPES)}, got {self.dtype!r}")

    def __call__(self, graph: Graph) -> Graph:
        """Return the graph with casts, or `graph` itself where there is no product to cast."""
        if not any(node.op.name in PRODUCTS for node in graph.walk()):
            return graph
        dtype = np.dtype(jnp.dtype(self.dtype))
        if any(node.op.name == "gradients" for node in graph.walk()):
            return _differentiated(graph, dtype)
        return _Cast(dtype, set(graph.inputs)).graph(graph)


def _differentiated(graph: Graph, dtype: np.dtype) -> Graph:
    """Cast the functions that the graph asks the gradients of."""

    def regions(node: Node) -> Sequence[Graph]:
        if node.op.name == "gradients":
            return [_Cast(dtype, set(region.inputs)).graph(region) for region in node.regions]
        return [_differentiated(region, dtype) for region in node.regions]

    return rewrite(graph, lambda b, node: None, regions)


@dataclass
class _Cast:
    """A graph being cast: its values as they were, in the narrow dtype, or in both.

    `given` are inputs of the function and what moves alone make of them: parameters and data, of
    which a narrow copy is as good as the narrow result that they are added to. `natural` are the
    values that were computed in the narrow dtype.
    """

    dtype: np.dtype
    given: set[Value]
    b: Builder = field(default_factory=lambda: Builder(OPS))
    wide: dict[Value, Value] = field(default_factory=dict)
    narrow: dict[Value, Value] = field(default_factory=dict)
    natural: set[Value] = field(default_factory=set)
    numbers: dict[Value, Literal] = field(default_factory=dict)

    def graph(self, graph: Graph) -> Graph:
        """Return the graph cast; its inputs and outputs keep their types."""
        self.wide.update(zip(graph.inputs, graph.inputs, strict=True))
        for node in graph.nodes:
            self.b.origin, self.b.phase = node.origin, node.phase
            self.node(node)
        return self.b.graph(graph.name, graph.inputs, list(map(self.widened, graph.outputs)))

    def node(self, node: Node) -> None:
        """Emit a node in the dtype that the policy has for it."""
        if node.phase != "update" and (self.is_product(node) or self.joins(node)):
            operands = [self.narrowed(v) if is_wide(v) else self.widened(v) for v in node.inputs]
            attrs = dict(node.attrs)
            if "preferred_element_type" in attrs:
                attrs["preferred_element_type"] = self.dtype
            outputs = (
                self.relu(*operands) if is_relu(node) else self.b.emit(node.op, operands, attrs)
            )
            for old, new in zip(node.outputs, outputs, strict=True):
                (self.narrow if is_wide(old) else self.wide)[old] = new
            self.natural.update(filter(is_wide, node.outputs))
            return
        if node.op.name in MOVES | {"convert_element_type"} and self.given.issuperset(arrays(node)):
            self.given.update(node.outputs)
            self.remember_number(node)
        operands = list(map(self.widened, node.inputs))
        copy = replace(node, inputs=tuple(operands), regions=self.regions(node))
        self.b.nodes.append(copy)
        self.wide.update(zip(node.outputs, node.outputs, strict=True))

    def relu(self, x: Value) -> Sequence[Value]:
        """`max(x, 0)` whose slope at 0 is 0."""
        zero = self.b.zeros(x)
        return [self.b.select(self.b.gt(x, zero), x, zero)]

    def is_product(self, node: Node) -> bool:
        """True for a product of float32 that asks for no more precision than it must."""
        exact = node.attrs.get("precision")
        plain = exact in (None, lax.Precision.DEFAULT, (lax.Precision.DEFAULT,) * 2)
        return node.op.name in PRODUCTS and plain and all(map(is_wide, of_product(node)))

    def joins(self, node: Node) -> bool:
        """True for an op that runs in the narrow dtype as its operands do."""
        found = arrays(node)
        return (
            follows(node)
            and not self.natural.isdisjoint(found)
            and all(v in self.natural or v in self.given for v in found)
            and all(is_wide(v) or v.dtype == bool for v in node.outputs)
        )

    def regions(self, node: Node) -> tuple[Graph, ...]:
        """The regions of a node, cast; what a loop carries is not `given`."""
        if node.op.name not in ENTERED or node.phase == "update":
            return node.regions
        found = []
        for region, operands in zip(node.regions, _operands(node), strict=True):
            given = {
                v for v, outer in zip(region.inputs, operands, strict=True) if outer in self.given
            }
            found.append(_Cast(self.dtype, given).graph(region))
        return tuple(found)

    def remember_number(self, node: Node) -> None:
        """Note the one number that an array is filled with."""
        (value,) = node.inputs if len(node.inputs) == 1 else (None,)
        number = value if isinstance(value, Literal) else self.numbers.get(value)  # type: ignore[arg-type]
        if number is not None and is_wide(number) and is_wide(node.outputs[0]):
            self.numbers[node.outputs[0]] = number

    def narrowed(self, value: Value) -> Value:
        """The value in the narrow dtype; numbers beyond its range become its largest."""
        if value in self.numbers:
            return self.b.broadcast(self.narrowed(self.numbers[value]), value.shape)
        if isinstance(value, Literal):
            most = jnp.finfo(self.dtype).max  # type: ignore[no-untyped-call]
            data = value.data if np.isinf(value.data) else np.clip(value.data, -most, most)
            return self.b.literal(data, self.dtype)
        if value not in self.narrow:
            self.narrow[value] = self.b.convert(self.wide[value], self.dtype)
        return self.narrow[value]

    def widened(self, value: Value) -> Value:
        """The value in its own dtype."""
        if isinstance(value, Literal):
            return value
        if value not in self.wide:
            self.wide[value] = self.b.convert(self.narrow[value], value.dtype)
        return self.wide[value]


def _operands(node: Node) -> list[Sequence[Value | None]]:
    """The outer values of each region's inputs; None for what a loop carries."""
    if node.op.name == "scan":
        _, carry, xs = Scan(node).parts
        moving = [None] * (carry.stop - carry.start)
        return [(*node.inputs[: carry.start], *moving, *node.inputs[xs])]
    if node.op.name == "while":
        tests, consts = node.attrs["cond_nconsts"], node.attrs["body_nconsts"]
        moving = [None] * len(node.outputs)
        both = slice(0, tests), slice(tests, tests + consts)
        return [(*node.inputs[fixed], *moving) for fixed in both]
    if node.op.name == "cond":
        return [node.inputs[1:]] * len(node.regions)
    return [node.inputs] * len(node.regions)
