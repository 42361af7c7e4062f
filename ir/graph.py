"""The data of the IR: frozen, shared, without back-pointers.

    graph   ::= name (inputs) { node* return outputs }
    node    ::= outputs '=' op (inputs) {attrs} regions       with origin and phase
    value   ::= defined once, by a graph's input or a node; a literal carries a scalar inline
    region  ::= a graph that sees only its own inputs

`Value` and `Node` compare by identity; a node may stand in many graphs at once, so that a
rewrite copies only what it changes. Two graphs are equal when they have the same structure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from typing import Literal as Either

import jax
import jax.numpy as jnp
import numpy as np

from .lexer import printable
from .source import user_line
from .types import ArrayType

if TYPE_CHECKING:
    import networkx as nx

    from .op import Op

Phase = Either["forward", "backward", "update"]
NO_ATTRS: Mapping[str, Any] = MappingProxyType({})


class Value:
    """One array in a graph; `name` is the argument's path for inputs, otherwise None."""

    __slots__ = ("type", "name", "__weakref__")

    def __init__(self, type: ArrayType, name: str | None = None) -> None:
        """Make a fresh value; identity is what tells it from others."""
        self.type = type
        self.name = name

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape, as of an array: rules are written for values and arrays alike."""
        return self.type.shape

    @property
    def dtype(self) -> Any:
        """Dtype, as of an array."""
        return self.type.dtype

    @property
    def ndim(self) -> int:
        """Number of dimensions, as of an array."""
        return len(self.type.shape)

    def __repr__(self) -> str:
        """Type and name, for debuggers; the printer gives numbers."""
        return f"<{type(self).__name__} {self.name or ''}: {self.type}>"


class Literal(Value):
    """A scalar written where it is used; `data` is a NumPy scalar of the type's dtype."""

    __slots__ = ("data",)

    def __init__(self, data: Any, type: ArrayType) -> None:
        """Hold `data`, a NumPy scalar, as a value of `type`."""
        super().__init__(type)
        self.data = data

    def __repr__(self) -> str:
        """Value and type."""
        return f"<Literal {self.data}: {self.type}>"


class Origin:
    """Where a node comes from in the user's program; shared by a node and its derivatives.

    Identity links: a backward node carries the very origin of the forward node that it
    differentiates. `source` is computed at first reading, as walking a traceback is slow.
    """

    __slots__ = ("_source", "traceback", "scope")

    def __init__(self, source: str | None = None, scope: str = "", traceback: Any = None) -> None:
        """`source` is `file:line`, or is read from `traceback` when first asked for."""
        self._source = source
        self.scope = scope
        self.traceback = traceback

    @property
    def source(self) -> str:
        """`file:line` in user code, or the empty string where none is known."""
        if self._source is None:
            self._source = user_line(self.traceback)
        return self._source

    @property
    def known(self) -> bool:
        """True when a line of user code is known."""
        return bool(self._source) or self.traceback is not None

    def under(self, outer: Origin) -> Origin:
        """Return this origin inside the scope of `outer`, which also lends its line if need be."""
        scope = "/".join(part for part in (outer.scope, self.scope) if part)
        line = self if self.known else outer
        return Origin(line._source, scope, line.traceback)


UNKNOWN = Origin("")


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One operation: `outputs = op(inputs) {attrs} regions`.

    `phase` is forward, backward or update. `origin` gives `source` and `scope`.
    """

    op: Op
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    attrs: Mapping[str, Any] = field(default_factory=lambda: NO_ATTRS)
    regions: tuple[Graph, ...] = ()
    origin: Origin = UNKNOWN
    phase: Phase = "forward"

    @property
    def source(self) -> str:
        """`file:line` of the user's code."""
        return self.origin.source

    @property
    def scope(self) -> str:
        """Name stack: `jax.named_scope`s and module names, joined by slashes."""
        return self.origin.scope

    @property
    def place(self) -> str:
        """Line and scope, in the words of errors."""
        scope = f" in {self.scope}" if self.scope else ""
        return printable(f"{self.source or 'unknown line'}{scope}")

    @property
    def output(self) -> Value:
        """The output of a node that has exactly one."""
        (output,) = self.outputs
        return output

    def __repr__(self) -> str:
        """Op and output types, for debuggers."""
        return f"<Node {self.op.name} -> {', '.join(str(v.type) for v in self.outputs)}>"


@dataclass(frozen=True, eq=False)
class Graph:
    """A program: `name(inputs) { nodes; return outputs }`, nodes in order of execution."""

    name: str
    inputs: tuple[Value, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[Value, ...]

    @cached_property
    def producer(self) -> dict[Value, Node]:
        """The node that defines each value; inputs and literals are absent."""
        return {value: node for node in self.nodes for value in node.outputs}

    @cached_property
    def users(self) -> dict[Value, tuple[Node, ...]]:
        """The nodes that read each value, in order, each once; unread values are absent."""
        found: dict[Value, list[Node]] = {}
        for node in self.nodes:
            for value in dict.fromkeys(node.inputs):
                found.setdefault(value, []).append(node)
        return {value: tuple(nodes) for value, nodes in found.items()}

    @cached_property
    def last_use(self) -> dict[Value, int]:
        """Position of the last node that reads each value; outputs live to `len(nodes)`."""
        last = {value: i for i, node in enumerate(self.nodes) for value in node.inputs}
        return last | dict.fromkeys(self.outputs, len(self.nodes))

    @cached_property
    def forward_of(self) -> dict[Node, Node]:
        """The forward node that each backward node differentiates, by their shared origin."""
        return forward_of(self.nodes)

    def walk(self) -> Iterator[Node]:
        """Every node of this graph and of all its regions, outer before inner."""
        for node in self.nodes:
            yield node
            for region in node.regions:
                yield from region.walk()

    def __eq__(self, other: object) -> bool:
        """Same structure: ops, wiring, attrs, types, names, sources, scopes, phases and links."""
        if self is other:
            return True
        return isinstance(other, Graph) and _same_graph(self, other)

    def __hash__(self) -> int:
        """Agrees with equality: equal graphs have equal ops in equal order."""
        return hash((self.name, len(self.inputs), tuple(node.op.name for node in self.nodes)))

    def __str__(self) -> str:
        """Return the canonical text form, which `ir.parse` reads back."""
        from .printer import print_graph

        return print_graph(self)

    def __repr__(self) -> str:
        """Name and size."""
        return f"<Graph {self.name}: {len(self.inputs)} inputs, {len(self.nodes)} nodes>"

    def to_networkx(self) -> nx.MultiDiGraph[str]:
        """Nodes and edges as a `networkx.MultiDiGraph`; see `ir.export`."""
        from .export import to_networkx

        return to_networkx(self)

    def to_json(self) -> str:
        """JSON for Model Explorer, a graph viewer; see `ir.model_explorer`."""
        from .model_explorer import to_json

        return to_json(self)

    def to_dot(self) -> str:
        """Graphviz text; no `dot` binary is needed to write it; see `ir.export`."""
        from .export import to_dot

        return to_dot(self)

    def to_html(self, path: str | Path) -> None:
        """Write one self-contained HTML page of the graph; see `ir.page`."""
        from .page import Shown, write_page

        text = write_page(self.name, [Shown(self.name, self)])
        Path(path).write_text(text, encoding="utf-8")

    def _repr_html_(self) -> str:
        """Figures and a small picture, for notebooks."""
        from .page import summary_html

        return summary_html(self)

    def __treescope_repr__(self, path: str | None, subtree_renderer: Any) -> Any:
        """Layers that unfold, for Treescope."""
        from .treescope_view import graph_view

        return graph_view(self, path)


def forward_of(nodes: Sequence[Node]) -> dict[Node, Node]:
    """The forward node that each backward node differentiates, by their shared origin."""
    first: dict[Origin, Node] = {}
    for node in nodes:
        if node.phase == "forward" and node.origin is not UNKNOWN:
            first.setdefault(node.origin, node)
    return {
        node: first[node.origin]
        for node in nodes
        if node.phase == "backward" and node.origin in first
    }


def maker(node: Node, output: int) -> Node:
    """The node that makes an output: of what a scan stacks, the one in its body."""
    while node.op.name == "scan" and output >= node.attrs["num_carry"]:
        (body,) = node.regions
        makers = {value: inner for inner in body.nodes for value in inner.outputs}
        made = body.outputs[output]
        while made in makers and makers[made].op.effect == "barrier":
            made = makers[made].inputs[makers[made].outputs.index(made)]
        if made not in makers:
            return node
        node, output = makers[made], makers[made].outputs.index(made)
    return node


_MANY = (tuple, list)


def same_attr(a: Any, b: Any) -> bool:
    """Equality of attribute values: numbers and arrays by their bits, containers by elements."""
    kind = type(a)
    if kind is type(b):
        if isinstance(a, _MANY):
            return len(a) == len(b) and all(map(same_attr, a, b))
        if kind is dict:
            return a.keys() == b.keys() and all(same_attr(a[key], b[key]) for key in a)
        if kind is float or kind is complex:
            return repr(a) == repr(b)  # nan is nan, 0 is not -0
        if not hasattr(a, "__array__"):
            return bool(a == b)
    if isinstance(a, _MANY) or isinstance(b, _MANY):
        return False
    arrays = hasattr(a, "__array__") or hasattr(b, "__array__")
    return arrays and _same_array(a, b)


def _same_array(a: Any, b: Any) -> bool:
    if isinstance(a, jax.Array) and jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        same = isinstance(b, jax.Array) and a.dtype == b.dtype
        return same and same_attr(jax.random.key_data(a), jax.random.key_data(b))
    if isinstance(a, jax.core.Tracer) or isinstance(b, jax.core.Tracer):
        return a is b  # what a rule of the user's closes over has no bits yet
    x, y = np.asarray(a), np.asarray(b)
    return x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()


def _same_graph(a: Graph, b: Graph) -> bool:
    if (a.name, len(a.inputs), len(a.nodes)) != (b.name, len(b.inputs), len(b.nodes)):
        return False
    pair: dict[Value, Value] = {}

    def define(xs: Sequence[Value], ys: Sequence[Value]) -> bool:
        pair.update(zip(xs, ys, strict=False))
        same = ((x.type, x.name) == (y.type, y.name) for x, y in zip(xs, ys, strict=False))
        return len(xs) == len(ys) and all(same)

    def read(xs: Sequence[Value], ys: Sequence[Value]) -> bool:
        return len(xs) == len(ys) and all(map(matches, xs, ys))

    def matches(x: Value, y: Value) -> bool:
        if isinstance(x, Literal) and isinstance(y, Literal):
            return x.type == y.type and same_attr(x.data, y.data)
        return pair.get(x) is y

    def links(graph: Graph) -> list[int | None]:
        place = {node: i for i, node in enumerate(graph.nodes)}
        return [place.get(graph.forward_of.get(node, node)) for node in graph.nodes]

    return (
        define(a.inputs, b.inputs)
        and all(
            _same_node(x, y) and read(x.inputs, y.inputs) and define(x.outputs, y.outputs)
            for x, y in zip(a.nodes, b.nodes, strict=True)
        )
        and read(a.outputs, b.outputs)
        and links(a) == links(b)
    )


def _same_node(x: Node, y: Node) -> bool:
    return (
        (x.op.name, x.phase, x.source, x.scope) == (y.op.name, y.phase, y.source, y.scope)
        and x.attrs.keys() == y.attrs.keys()
        and all(same_attr(x.attrs[key], y.attrs[key]) for key in x.attrs)
        and x.regions == y.regions
    )
