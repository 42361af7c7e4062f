"""Emission of nodes, and the vocabulary that rules are written in.

`Builder` has a method for each op that rules use, named and shaped as in `jax.lax`; it records
nodes and infers output types by each op's
shape rule. A Python number as an operand becomes a literal of the other operand's dtype.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np

from .graph import NO_ATTRS, UNKNOWN, Graph, Literal, Node, Origin, Phase, Value
from .jax_compat import as_numpy_scalar
from .op import Op
from .spread_rules import is_spread, spread_of
from .types import ArrayType, is_complex


def _lying(
    name: str, inputs: Sequence[Value], attrs: Mapping[str, Any], types: Sequence[ArrayType]
) -> tuple[ArrayType, ...]:
    """Types of outputs, with how they lie on the mesh of their operands."""
    specs = spread_of(name, inputs, attrs, types)
    return tuple(kind.spread(spec) for kind, spec in zip(types, specs, strict=True))


class Builder:
    """Collects nodes; `origin` and `phase` are stamped on each node as it is emitted.

    Raises `ShapeError` (or what JAX's own shape check raises) on operands that do not fit.
    """

    def __init__(self, ops: Mapping[str, Op], origin: Origin = UNKNOWN) -> None:
        """`ops` is the table that names are looked up in."""
        self.ops = ops
        self.nodes: list[Node] = []
        self.origin = origin
        self.phase: Phase = "forward"

    def emit(
        self,
        op: str | Op,
        inputs: Sequence[Value],
        attrs: Mapping[str, Any] = NO_ATTRS,
        regions: Sequence[Graph] = (),
    ) -> tuple[Value, ...]:
        """Append a node and return its outputs."""
        record = self.ops[op] if isinstance(op, str) else op
        types = record.shape(inputs, attrs, regions)
        if not regions and is_spread(inputs):
            types = _lying(record.name, inputs, attrs, types)
        outputs = tuple(map(Value, types))
        node = Node(record, tuple(inputs), outputs, attrs, tuple(regions), self.origin, self.phase)
        self.nodes.append(node)
        return outputs

    def clone(self, node: Node, inputs: Sequence[Value], origin: Origin | None = None) -> Node:
        """Append a copy of `node` that reads `inputs` and defines fresh values.

        They lie by these on a mesh, or else as the node's.
        """
        types: Sequence[ArrayType] = [value.type for value in node.outputs]
        if not node.regions and is_spread(inputs):
            lying = _lying(node.op.name, inputs, node.attrs, types)
            types = [new if new.spec else old for new, old in zip(lying, types, strict=True)]
        outputs = tuple(map(Value, types))
        where = origin or node.origin
        phase = node.phase if self.phase == "forward" else self.phase
        copy = Node(node.op, tuple(inputs), outputs, node.attrs, node.regions, where, phase)
        self.nodes.append(copy)
        return copy

    def inline(
        self,
        region: Graph,
        inputs: Sequence[Value],
        within: Origin = UNKNOWN,
        *,
        merged: bool = False,
    ) -> tuple[tuple[Value, ...], dict[Value, Value]]:
        """Append copies of a region's nodes; gives its outputs, and new values by old ones.

        `within` is the origin of the node that owned the region: its scope goes in front. With
        `merged` it is the origin of all the copies, as of a custom rule's.
        """
        env = dict(zip(region.inputs, inputs, strict=True))
        moved: dict[Origin, Origin] = {}
        for node in region.nodes:
            origin = node.origin
            if merged:
                origin = within
            elif within.scope or not origin.known:
                if origin not in moved:
                    moved[origin] = origin.under(within)
                origin = moved[origin]
            copy = self.clone(node, [env.get(v, v) for v in node.inputs], origin)
            env.update(zip(node.outputs, copy.outputs, strict=True))
        return tuple(env.get(v, v) for v in region.outputs), env

    def nested(self) -> Builder:
        """Return an empty builder for a region, with the same origin and phase."""
        other = Builder(self.ops, self.origin)
        other.phase = self.phase
        return other

    def value(self, type: ArrayType) -> Value:
        """Return a fresh value, for a region's input."""
        return Value(type)

    def fresh(self, values: Sequence[Value]) -> list[Value]:
        """Fresh values of the same (strong) types."""
        return [Value(value.type.strong()) for value in values]

    def graph(self, name: str, inputs: Sequence[Value], outputs: Sequence[Value]) -> Graph:
        """Freeze what was collected into a graph."""
        return Graph(name, tuple(inputs), tuple(self.nodes), tuple(outputs))

    def one(self, op: str, *inputs: Value, **attrs: Any) -> Value:
        """Emit an op that has one output."""
        return self.emit(op, inputs, attrs or NO_ATTRS)[0]

    # Constants

    def literal(self, x: Any, dtype: Any) -> Literal:
        """Return a scalar literal of `dtype`."""
        dtype = np.dtype(dtype)
        return Literal(as_numpy_scalar(x, dtype), ArrayType((), dtype))

    def full(self, shape: Sequence[int], x: Any, dtype: Any) -> Value:
        """Return an array filled with the number `x`."""
        return self.broadcast(self.literal(x, dtype), shape)

    def zeros(self, like: Value) -> Value:
        """Zeros of the shape and dtype of `like`."""
        return self.full(like.shape, 0, like.dtype)

    def empty(self, type: ArrayType) -> Value:
        """Return an array of zeros of `type`, where the value does not matter."""
        return self.full(type.shape, 0, type.dtype)

    def ones(self, like: Value) -> Value:
        """Ones of the shape and dtype of `like`."""
        return self.full(like.shape, 1, like.dtype)

    def constant(self, x: Any) -> Value:
        """Return a NumPy or JAX array that is part of the program."""
        return self.one("constant", value=x)

    # Element-wise arithmetic

    def _binary(self, op: str, x: Any, y: Any) -> Value:
        x = x if isinstance(x, Value) else self.literal(x, y.dtype)
        y = y if isinstance(y, Value) else self.literal(y, x.dtype)
        return self.emit(op, (x, y))[0]

    def add(self, x: Any, y: Any) -> Value:
        """x + y."""
        return self._binary("add", x, y)

    def sub(self, x: Any, y: Any) -> Value:
        """x - y."""
        return self._binary("sub", x, y)

    def mul(self, x: Any, y: Any) -> Value:
        """x y."""
        return self._binary("mul", x, y)

    def div(self, x: Any, y: Any) -> Value:
        """x / y."""
        return self._binary("div", x, y)

    def pow(self, x: Any, y: Any) -> Value:
        """x to the power of y."""
        return self._binary("pow", x, y)

    def max(self, x: Any, y: Any) -> Value:
        """Greater of x and y."""
        return self._binary("max", x, y)

    def eq(self, x: Any, y: Any) -> Value:
        """x == y."""
        return self._binary("eq", x, y)

    def ne(self, x: Any, y: Any) -> Value:
        """x != y."""
        return self._binary("ne", x, y)

    def lt(self, x: Any, y: Any) -> Value:
        """x < y."""
        return self._binary("lt", x, y)

    def le(self, x: Any, y: Any) -> Value:
        """x <= y."""
        return self._binary("le", x, y)

    def gt(self, x: Any, y: Any) -> Value:
        """x > y."""
        return self._binary("gt", x, y)

    def ge(self, x: Any, y: Any) -> Value:
        """x >= y."""
        return self._binary("ge", x, y)

    def neg(self, x: Value) -> Value:
        """-x."""
        return self.one("neg", x)

    def exp(self, x: Value) -> Value:
        """e to the power of x."""
        return self.one("exp", x)

    def log(self, x: Value) -> Value:
        """Natural logarithm."""
        return self.one("log", x)

    def sin(self, x: Value) -> Value:
        """Sine, x in radians."""
        return self.one("sin", x)

    def cos(self, x: Value) -> Value:
        """Cosine, x in radians."""
        return self.one("cos", x)

    def sqrt(self, x: Value) -> Value:
        """Square root."""
        return self.one("sqrt", x)

    def rsqrt(self, x: Value) -> Value:
        """1 / sqrt(x)."""
        return self.one("rsqrt", x)

    def sign(self, x: Value) -> Value:
        """-1, 0 or 1."""
        return self.one("sign", x)

    def square(self, x: Value) -> Value:
        """x x."""
        return self.one("square", x)

    def integer_pow(self, x: Value, y: int) -> Value:
        """x to the power of the Python integer y."""
        return self.one("integer_pow", x, y=y)

    def logical_and(self, x: Value, y: Value) -> Value:
        """Bitwise or logical and."""
        return self.one("and", x, y)

    def real(self, x: Value) -> Value:
        """Real part."""
        return self.one("real", x)

    def imag(self, x: Value) -> Value:
        """Imaginary part."""
        return self.one("imag", x)

    def complex(self, x: Value, y: Value) -> Value:
        """x + i y."""
        return self.one("complex", x, y)

    def conj(self, x: Value) -> Value:
        """Complex conjugate; a real array passes through."""
        if not is_complex(x.dtype):
            return x
        return self.one("conj", x, input_dtype=x.dtype)

    def select(self, which: Value, on_true: Value, on_false: Value) -> Value:
        """`where(which, on_true, on_false)`; operands of one shape (a scalar `which` too)."""
        return self.one("select_n", which, on_false, on_true)

    def add_any(self, x: Value, y: Value) -> Value:
        """Sum of two cotangents."""
        return self.one("add_any", x, y)

    def sum(self, xs: Sequence[Value]) -> Value:
        """x0 + x1 + ...; a single array passes through."""
        return reduce(self.add, xs)

    def convert(self, x: Value, dtype: Any) -> Value:
        """Cast; a value of that dtype passes through."""
        if x.dtype == dtype:
            return x
        return self.one("convert_element_type", x, new_dtype=dtype, weak_type=False)

    # Shape

    def reshape(self, x: Value, shape: Sequence[int]) -> Value:
        """Row-major reshape; the same shape passes through."""
        shape = tuple(map(int, shape))
        return x if x.shape == shape else self.one("reshape", x, new_sizes=shape)

    def transpose(self, x: Value, permutation: Sequence[int]) -> Value:
        """Permute dimensions; the identity passes through."""
        permutation = tuple(map(int, permutation))
        if permutation == tuple(range(x.ndim)):
            return x
        return self.one("transpose", x, permutation=permutation)

    def broadcast_in_dim(self, x: Value, shape: Sequence[int], dims: Sequence[int]) -> Value:
        """Broadcast, dimension i of x going to dimension dims[i]."""
        shape, dims = tuple(shape), tuple(dims)
        if x.shape == shape and dims == tuple(range(x.ndim)):
            return x
        return self.one("broadcast_in_dim", x, shape=shape, broadcast_dimensions=dims)

    def broadcast(self, x: Value, shape: Sequence[int]) -> Value:
        """Broadcast a scalar, or an array of the same rank, to `shape`."""
        return self.broadcast_in_dim(x, shape, range(x.ndim))

    def expand(self, x: Value, shape: Sequence[int], axes: Sequence[int]) -> Value:
        """Undo a reduction: broadcast x, reduced over `axes`, back to `shape`."""
        kept = [i for i in range(len(shape)) if i not in axes]
        return self.broadcast_in_dim(x, shape, kept)

    def reduce_sum(self, x: Value, axes: Sequence[int]) -> Value:
        """Sum over `axes`; no axes pass through."""
        axes = tuple(sorted(int(axis) for axis in axes))
        return self.one("reduce_sum", x, axes=axes) if axes else x

    def unbroadcast(self, ct: Value, x: Value) -> Value:
        """Sum a cotangent down to the shape of the operand `x` that was broadcast implicitly."""
        if ct.shape == x.shape:
            return ct
        if x.ndim == 0:
            return self.reduce_sum(ct, range(ct.ndim))
        axes = [i for i, (a, b) in enumerate(zip(ct.shape, x.shape, strict=True)) if a != b]
        return self.reshape(self.reduce_sum(ct, axes), x.shape)

    def concatenate(self, xs: Sequence[Value], axis: int) -> Value:
        """Concatenate along `axis`; a single array passes through."""
        return xs[0] if len(xs) == 1 else self.emit("concatenate", xs, {"dimension": axis})[0]

    def slice(
        self, x: Value, start: Sequence[int], limit: Sequence[int], strides: Any = None
    ) -> Value:
        """`x[start:limit:strides]` in every dimension; the whole passes through."""
        start, limit = tuple(map(int, start)), tuple(map(int, limit))
        if not any(start) and limit == x.shape and not strides:
            return x
        return self.one("slice", x, start_indices=start, limit_indices=limit, strides=strides)

    def slice_in_dim(self, x: Value, start: int, limit: int, axis: int) -> Value:
        """`x[start:limit]` along one axis."""
        lo, hi = [0] * x.ndim, list(x.shape)
        lo[axis], hi[axis] = start, limit
        return self.slice(x, lo, hi)

    def pad(self, x: Value, fill: Any, config: Sequence[tuple[int, int, int]]) -> Value:
        """Pad by (low, high, interior) in each dimension; negative low and high cut off."""
        config = tuple((int(lo), int(hi), int(mid)) for lo, hi, mid in config)
        if not any(map(any, config)):
            return x
        return self.emit("pad", (x, self.literal(fill, x.dtype)), {"padding_config": config})[0]

    def rev(self, x: Value, dims: Sequence[int]) -> Value:
        """Reverse along `dims`."""
        return self.one("rev", x, dimensions=tuple(dims)) if tuple(dims) else x

    def iota(self, dtype: Any, shape: Sequence[int], dimension: int) -> Value:
        """0, 1, 2, ... along one dimension."""
        return self.one("iota", dtype=np.dtype(dtype), shape=tuple(shape), dimension=dimension)

    # Contractions and barriers

    def dot_general(
        self,
        x: Value,
        y: Value,
        contract: tuple[Sequence[int], Sequence[int]],
        batch: tuple[Sequence[int], Sequence[int]] = ((), ()),
        precision: Any = None,
        dtype: Any = None,
    ) -> Value:
        """Contract and batch over the given dimensions, as in `jax.lax.dot_general`."""
        numbers = (tuple(map(tuple, contract)), tuple(map(tuple, batch)))
        attrs = {"precision": precision, "preferred_element_type": dtype}
        return self.emit("dot_general", (x, y), {"dimension_numbers": numbers, **attrs})[0]

    def scan(
        self,
        consts: Sequence[Value],
        carry: Sequence[Value],
        xs: Sequence[Value],
        body: Graph,
        length: int,
    ) -> tuple[Value, ...]:
        """Run `body` over the slices of `xs`: its last carry, then its stacked results."""
        counts = {"num_consts": len(consts), "num_carry": len(carry), "length": length}
        attrs = {**counts, "reverse": False, "unroll": 1}
        return self.emit("scan", (*consts, *carry, *xs), attrs, (body,))

    def optimization_barrier(self, *xs: Value) -> tuple[Value, ...]:
        """Keep XLA from moving or merging work across this point."""
        return self.emit("optimization_barrier", xs)
