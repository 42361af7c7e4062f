"""How arrays lie on a mesh of devices: from arguments and constraints through a whole graph.

    x: f32[16/data:2,64]  .  w: f32[64,256/model:4]   ->   f32[16/data:2,256/model:4]

XLA's partitioner decides where each array lies when it compiles; it starts, as this does, from what
the user said of arguments and of `with_sharding_constraint`, and carries it along. So sizes can be
told for one device without compiling. An axis divides one dimension of an array at most, and one
that does not divide a dimension evenly is left out; where a rule does not know, an array is taken
to be whole on every device, the larger size.

`spread_of` is the rule of one node without regions, which `Builder` applies to what it emits;
`spread` completes a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from math import prod
from typing import Any

from jax.sharding import AxisType, NamedSharding, PartitionSpec

from .graph import Graph, Node, Value
from .jax_compat import is_explicit
from .types import ArrayType, Axes, Spec, places

Attrs = Mapping[str, Any]
Specs = Sequence[Spec]
Rule = Callable[[Sequence[ArrayType], Attrs, ArrayType], Sequence[Axes]]


def spec_of(sharding: Any, ndim: int) -> Spec:
    """How an array of `ndim` dimensions lies by a sharding of JAX's; empty where it is whole."""
    if not isinstance(sharding, NamedSharding):
        return ()
    return by_partition(sharding.spec, dict(sharding.mesh.shape), ndim)


def by_partition(spec: Any, sizes: Mapping[Any, int], ndim: int) -> Spec:
    """How an array lies by a `PartitionSpec` on a mesh with axes of `sizes`."""
    dims: list[Axes] = []
    for part in (*spec, *[None] * (ndim - len(spec))):
        names = part if isinstance(part, tuple) else (part,)
        known = [(_word(name), sizes[name]) for name in names if name in sizes]
        dims.append(tuple((name, size) for name, size in known if size > 1))
    return tuple(dims) if any(dims) else ()


def partition(spec: Spec, mesh: Any) -> PartitionSpec:
    """Return the `PartitionSpec` of an array on the explicit axes of a mesh: see `by_partition`."""
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    names = {_word(name): name for name, kind in kinds if kind == AxisType.Explicit}
    dims = (tuple(names[name] for name, _ in axes if name in names) for axes in spec)
    return PartitionSpec(*(axes or None for axes in dims))


def _word(name: Any) -> str:
    """Name of a mesh axis, as the text form writes it."""
    text = "".join(c if c.isascii() and c.isalnum() else "_" for c in str(name))
    return text if text[:1].isalpha() or text[:1] == "_" else f"_{text}"


def fitted(dims: Iterable[Axes], shape: Sequence[int]) -> Spec:
    """Leave out what divides a dimension unevenly, and each axis but where it comes first."""
    seen: set[str] = set()
    found: list[Axes] = []
    for axes, size in zip_longest(dims, shape, fillvalue=()):
        fits = bool(axes) and isinstance(size, int) and size > 0 and size % places(axes) == 0
        fits = fits and seen.isdisjoint(name for name, _ in axes)
        found.append(axes if fits else ())
        seen.update(name for name, _ in found[-1])
    return tuple(found) if any(found) else ()


def merged(specs: Iterable[Spec], shape: Sequence[int]) -> Spec:
    """How operands of one shape lie together: each dimension as the first one that is divided."""
    given = [spec for spec in specs if spec]
    if len(given) <= 1:
        return given[0] if given else ()
    dims = [next((axes for axes in column if axes), ()) for column in zip(*given, strict=True)]
    return fitted(dims, shape)


def dims_of(type: ArrayType) -> Sequence[Axes]:
    """The axes that divide each dimension."""
    return type.spec or ((),) * type.ndim


# Rules: the axes that divide each dimension of the output, before they are fitted


def _alike(inputs: Sequence[ArrayType], attrs: Attrs, out: ArrayType) -> Sequence[Axes]:
    """As the operands of the output's shape: element-wise ops, and what no other rule is for."""
    return merged((t.spec for t in inputs if t.shape == out.shape), out.shape)


def _broadcast(inputs: Sequence[ArrayType], attrs: Attrs, out: ArrayType) -> Sequence[Axes]:
    x, found = inputs[0], [()] * out.ndim  # type: list[Axes]
    for i, to in enumerate(attrs["broadcast_dimensions"]):
        if x.shape[i] == out.shape[to]:
            found[to] = dims_of(x)[i]
    return found


def _transpose(inputs: Sequence[ArrayType], attrs: Attrs, out: ArrayType) -> Sequence[Axes]:
    return [dims_of(inputs[0])[i] for i in attrs["permutation"]]


def _without(*names: str) -> Rule:
    """Dimensions in the attribute go away."""

    def rule(inputs: Sequence[ArrayType], attrs: Attrs, out: ArrayType) -> Sequence[Axes]:
        gone = next(attrs[name] for name in names if name in attrs)
        x = inputs[0]
        gone = {i % x.ndim for i in gone if isinstance(i, int)} if x.ndim else set()
        return [axes for i, axes in enumerate(dims_of(x)) if i not in gone]

    return rule


def _expand_dims(inputs: Sequence[ArrayType], attrs: Attrs, out: ArrayType) -> Sequence[Axes]:
    old = iter(dims_of(inputs[0]))
    return [() if i in attrs["dimensions"] else next(old) for i in range(out.ndim)]


def _reshape(inputs: Sequence[ArrayType], attrs: Attrs, out: ArrayType) -> Sequence[Axes]:
    """Of dimensions that become others together, the first one stays divided."""
    (x, *_), found = inputs, [()] * out.ndim  # type: list[Axes]
    for old, new in groups(x.shape, out.shape):
        wide = [i for i in old if x.shape[i] != 1]
        to = [j for j in new if out.shape[j] != 1]
        if wide and to and not any(dims_of(x)[i] for i in wide[1:]):
            found[to[0]] = dims_of(x)[wide[0]]
        elif len(wide) == len(to):
            for i, j in zip(wide, to, strict=True):
                found[j] = dims_of(x)[i] if x.shape[i] == out.shape[j] else ()
    return found


def groups(old: Sequence[int], new: Sequence[int]) -> Iterable[tuple[list[int], list[int]]]:
    """Smallest runs of dimensions that become one another in a reshape."""
    if not prod(old):
        return
    i = j = 0
    while i < len(old) or j < len(new):
        left, right = [i] if i < len(old) else [], [j] if j < len(new) else []
        i, j = i + len(left), j + len(right)
        while (a := prod(old[k] for k in left)) != (b := prod(new[k] for k in right)):
            if a < b:
                left.append(i)
                i += 1
            else:
                right.append(j)
                j += 1
        yield left, right


def _dot(inputs: Sequence[ArrayType], attrs: Attrs, out: ArrayType) -> Sequence[Axes]:
    (xc, yc), (xn, yn) = attrs["dimension_numbers"]
    x, y = inputs
    left, right = dims_of(x), dims_of(y)
    batch = [left[i] or right[j] for i, j in zip(xn, yn, strict=True)]
    rows = [left[i] for i in range(x.ndim) if i not in (*xc, *xn)]
    return [*batch, *rows, *(right[i] for i in range(y.ndim) if i not in (*yc, *yn))]


def _conv(inputs: Sequence[ArrayType], attrs: Attrs, out: ArrayType) -> Sequence[Axes]:
    numbers, found = attrs["dimension_numbers"], [()] * out.ndim  # type: list[Axes]
    found[numbers.out_spec[0]] = dims_of(inputs[0])[numbers.lhs_spec[0]]
    found[numbers.out_spec[1]] = dims_of(inputs[1])[numbers.rhs_spec[0]]
    return found


def _gather(inputs: Sequence[ArrayType], attrs: Attrs, out: ArrayType) -> Sequence[Axes]:
    x, indices = inputs
    numbers, sizes = attrs["dimension_numbers"], attrs["slice_sizes"]
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    kept = iter([i for i in range(x.ndim) if i not in gone])
    rows = iter(dims_of(indices))
    found: list[Axes] = []
    for i in range(out.ndim):
        if i not in numbers.offset_dims:
            found.append(next(rows))
            continue
        at = next(kept)
        found.append(dims_of(x)[at] if sizes[at] == x.shape[at] else ())
    return found


def _first(inputs: Sequence[ArrayType], attrs: Attrs, out: ArrayType) -> Sequence[Axes]:
    """As the first operand, along dimensions of equal size."""
    x = inputs[0]
    if x.ndim != out.ndim:
        return ()
    return [a if n == m else () for a, n, m in zip(dims_of(x), x.shape, out.shape, strict=True)]


def _divided(inputs: Sequence[ArrayType], attrs: Attrs, out: ArrayType) -> Sequence[Axes]:
    """A part of the first operand: dimensions stay divided where that is even."""
    return dims_of(inputs[0]) if inputs[0].ndim == out.ndim else ()


def _concatenate(inputs: Sequence[ArrayType], attrs: Attrs, out: ArrayType) -> Sequence[Axes]:
    return [next((t.spec[i] for t in inputs if t.spec and t.spec[i]), ()) for i in range(out.ndim)]


def _along(name: str) -> Rule:
    """As the first operand but for the dimension along which the op works."""

    def rule(inputs: Sequence[ArrayType], attrs: Attrs, out: ArrayType) -> Sequence[Axes]:
        at = attrs[name]
        gone = at if isinstance(at, tuple | list) else (at,)
        found = _first(inputs, attrs, out)
        return [() if i in gone else axes for i, axes in enumerate(found)]

    return rule


def _top_k(inputs: Sequence[ArrayType], attrs: Attrs, out: ArrayType) -> Sequence[Axes]:
    return [*dims_of(inputs[0])[:-1], ()]


def _whole(inputs: Sequence[ArrayType], attrs: Attrs, out: ArrayType) -> Sequence[Axes]:
    return ()


def _told(sharding: Any, inputs: Sequence[ArrayType], out: ArrayType) -> Sequence[Axes]:
    """By a constraint of the user's; a dimension that it leaves open stays as it is."""
    if not isinstance(sharding, NamedSharding) or _casts(sharding):
        return _alike(inputs, {}, out)
    wanted = spec_of(sharding, out.ndim) or ((),) * out.ndim
    parts = (*sharding.spec, *[None] * (out.ndim - len(sharding.spec)))
    free = [part is PartitionSpec.UNCONSTRAINED for part in parts]
    own = dims_of(inputs[0]) if inputs and inputs[0].ndim == out.ndim else ((),) * out.ndim
    return [old if open else new for old, new, open in zip(own, wanted, free, strict=True)]


def _casts(sharding: NamedSharding) -> bool:
    """True for a `reshard` that only leaves explicit axes to XLA: it names none."""
    return not any(sharding.spec) and not is_explicit(sharding.mesh)


_RULES: Mapping[str, Rule] = {
    "broadcast_in_dim": _broadcast,
    "transpose": _transpose,
    "squeeze": _without("dimensions"),
    "expand_dims": _expand_dims,
    "reshape": _reshape,
    "dot_general": _dot,
    "conv_general_dilated": _conv,
    "gather": _gather,
    "concatenate": _concatenate,
    "slice": _divided,
    "pad": _divided,
    "split": _along("axis"),
    "sort": _along("dimension"),
    "top_k": _top_k,
    "fft": _whole,
    "iota": _whole,
    "constant": _whole,
    **dict.fromkeys("dynamic_slice dynamic_update_slice".split(), _first),
    **dict.fromkeys(
        "scatter scatter-add scatter-sub scatter-mul scatter-min scatter-max".split(), _first
    ),
    **dict.fromkeys("cumsum cumprod cummax cummin cumlogsumexp".split(), _along("axis")),
    **dict.fromkeys("rev".split(), _along("dimensions")),
    **dict.fromkeys(
        "reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor"
        " argmax argmin reduce".split(),
        _without("axes", "dimensions"),
    ),
    **dict.fromkeys(
        "reduce_window reduce_window_sum reduce_window_max reduce_window_min"
        " select_and_scatter_add select_and_gather_add".split(),
        _first,
    ),
}
_EACH = frozenset("optimization_barrier".split())  # the i-th output lies as the i-th operand
_BY_USER = ("sharding", "dst_sharding", "out_sharding")


def spread_of(
    name: str, inputs: Sequence[Value], attrs: Attrs, types: Sequence[ArrayType]
) -> Specs:
    """How the outputs of a node without regions lie on the mesh."""
    given = [value.type for value in inputs]
    if name in _EACH:
        return [t.spec for t in given]
    by_user = next((attrs[key] for key in _BY_USER if attrs.get(key) is not None), None)
    if by_user is not None:
        return [fitted(_told(by_user, given, out), out.shape) for out in types]
    rule = _RULES.get(name, _alike)
    return [fitted(rule(given, attrs, out), out.shape) for out in types]


def is_spread(values: Iterable[Value]) -> bool:
    """True where one of the values is divided."""
    return any(value.type.spec for value in values)


# Whole graphs


def spread(graph: Graph) -> Graph:
    """Complete what is told of how values lie; the same graph where nothing is added."""
    says = ("sharding_constraint", "reshard", "shard_map")
    if not is_spread(graph.inputs) and not any(n.op.name in says for n in graph.walk()):
        return graph
    return _Walk().graph(graph, [value.type.spec for value in graph.inputs])


class _Walk:
    """Graphs that were completed, by their inputs' specs, as many nodes share a region."""

    def __init__(self) -> None:
        self.known: dict[tuple[int, tuple[Spec, ...]], Graph] = {}
        self.held: list[Graph] = []
        self.types: dict[tuple[ArrayType, Spec], ArrayType] = {}

    def graph(self, graph: Graph, specs: Specs) -> Graph:
        key = (id(graph), tuple(specs))
        if key not in self.known:
            self.held.append(graph)  # so that its identity stays its own
            self.known[key] = self._graph(graph, specs)
        return self.known[key]

    def _graph(self, graph: Graph, specs: Specs) -> Graph:
        env: dict[Value, Value] = {}
        inputs = self._renewed(graph.inputs, specs, env)
        nodes = [self._node(node, env) for node in graph.nodes]
        if not env and all(new is old for new, old in zip(nodes, graph.nodes, strict=True)):
            return graph
        outputs = tuple(env.get(value, value) for value in graph.outputs)
        return Graph(graph.name, inputs, tuple(nodes), outputs)

    def _renewed(
        self, values: Sequence[Value], specs: Specs, env: dict[Value, Value]
    ) -> tuple[Value, ...]:
        """Values of other types where these differ."""
        found = []
        for value, spec in zip(values, specs, strict=True):
            if value.type.spec != spec:
                kind = self.types.setdefault((value.type, spec), value.type.spread(spec))
                env[value] = Value(kind, value.name)
            found.append(env.get(value, value))
        return tuple(found)

    def _node(self, node: Node, env: dict[Value, Value]) -> Node:
        inputs = tuple(env.get(value, value) for value in node.inputs)
        regions, specs = self._outputs(node, inputs)
        outputs = self._renewed(node.outputs, specs, env)
        same = all(a is b for a, b in zip(inputs, node.inputs, strict=True))
        same = same and all(a is b for a, b in zip(outputs, node.outputs, strict=True))
        same = same and all(a is b for a, b in zip(regions, node.regions, strict=True))
        return node if same else replace(node, inputs=inputs, outputs=outputs, regions=regions)

    def _outputs(self, node: Node, inputs: Sequence[Value]) -> tuple[tuple[Graph, ...], Specs]:
        """The regions completed, and how the outputs lie."""
        name, given = node.op.name, [value.type.spec for value in inputs]
        if not node.regions:
            return (), spread_of(name, inputs, node.attrs, [v.type for v in node.outputs])
        if name == "shard_map":  # inside, sizes are those of one device already
            sizes, outs = (
                dict(node.attrs["mesh"].shape),
                zip(node.attrs["out_specs"], node.outputs, strict=True),
            )
            return node.regions, [by_partition(spec, sizes, v.ndim) for spec, v in outs]
        if name in ("scan", "while"):
            return self._loop(node, given)
        if name == "cond":
            bodies = tuple(self.graph(region, given[1:]) for region in node.regions)
            columns = zip(*(body.outputs for body in bodies), strict=True)
            shapes = [v.shape for v in node.outputs]
            merge = [
                merged((v.type.spec for v in c), s) for c, s in zip(columns, shapes, strict=True)
            ]
            return bodies, merge
        first = node.regions[0]
        if len(first.inputs) != len(inputs) or _shapes(first.inputs) != _shapes(inputs):
            types = [v.type for v in node.outputs]
            return node.regions, spread_of(name, inputs, {}, types)
        body = self.graph(first, given)
        specs = [v.type.spec for v in body.outputs]
        specs += [given[i] for i in node.attrs.get("wrt", ())]
        if _shapes([*body.outputs, *(inputs[i] for i in node.attrs.get("wrt", ()))]) != _shapes(
            node.outputs
        ):
            specs = list(spread_of(name, inputs, {}, [v.type for v in node.outputs]))
        return (body, *node.regions[1:]), specs

    def _loop(self, node: Node, given: Specs) -> tuple[tuple[Graph, ...], Specs]:
        """A carry lies as it starts and as the body gives it back, one of which may not be told."""
        scan = node.op.name == "scan"
        if scan:
            n, k = node.attrs["num_consts"], node.attrs["num_carry"]
            tests, consts, slices = (), given[:n], [s[1:] for s in given[n + k :]]
        else:
            n, skip = node.attrs["body_nconsts"], node.attrs["cond_nconsts"]
            tests, consts, slices = given[:skip], given[skip : skip + n], []
            n, k = n + skip, len(given) - n - skip
        carry = [spec if any(spec) else () for spec in given[n : n + k]]
        slices = [spec if any(spec) else () for spec in slices]
        region = node.regions[-1]
        for _ in range(3):
            body = self.graph(region, [*consts, *carry, *slices])
            back = [v.type.spec for v in body.outputs[:k]]
            shapes = [v.shape for v in body.outputs[:k]]
            both = [merged(pair, s) for *pair, s in zip(carry, back, shapes, strict=True)]
            if both == carry:
                break
            carry = both
        if not scan:
            return (self.graph(node.regions[0], [*tests, *carry]), body), carry
        ys = [((), *v.type.spec) if v.type.spec else () for v in body.outputs[k:]]
        return (body,), [*carry, *ys]


def _shapes(values: Sequence[Value]) -> list[tuple[int, ...]]:
    return [value.shape for value in values]
