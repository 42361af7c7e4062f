"""How the results of one node lie on a mesh, by how its operands do: a rule for each op.

A rule gives the axes that divide each dimension of the output, before they are fitted to its shape.
Where none knows, an array is taken to be whole on every device, the larger size. Some ops have a
rule for the other direction too: how their operands lie for them, by how their results do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from typing import Any

from jax.sharding import NamedSharding, PartitionSpec

from .graph import Node, Value
from .jax_compat import is_explicit
from .spec import dims_of, fitted, merged, spec_of, undivided
from .types import ArrayType, Axes, Spec

Attrs = Mapping[str, Any]
Specs = Sequence[Spec]
Rule = Callable[[Sequence[ArrayType], Attrs, ArrayType], Sequence[Axes]]


def _alike(inputs: Sequence[ArrayType], attrs: Attrs, out: ArrayType) -> Sequence[Axes]:
    """As the operands of the output's shape: element-wise ops, and what no other rule is for.

    A dimension of one element is repeated along the output's.
    """
    shape = out.shape
    like = [t for t in inputs if t.ndim == out.ndim and all(map(_repeats, t.shape, shape))]
    return merged((t.spec for t in like), shape)


def _repeats(size: int, wanted: int) -> bool:
    return size in (1, wanted)


def _broadcast(inputs: Sequence[ArrayType], attrs: Attrs, out: ArrayType) -> Sequence[Axes]:
    x, found = inputs[0], undivided(out.ndim)
    for i, to in enumerate(attrs["broadcast_dimensions"]):
        if x.shape[i] == out.shape[to]:
            found[to] = dims_of(x)[i]
    return found


def _unbroadcast(x: ArrayType, attrs: Attrs, out: ArrayType) -> Sequence[Axes]:
    dims = attrs["broadcast_dimensions"]
    return [
        dims_of(out)[to] if size == out.shape[to] else ()
        for size, to in zip(x.shape, dims, strict=True)
    ]


def _transpose(inputs: Sequence[ArrayType], attrs: Attrs, out: ArrayType) -> Sequence[Axes]:
    return [dims_of(inputs[0])[i] for i in attrs["permutation"]]


def _untransposed(x: ArrayType, attrs: Attrs, out: ArrayType) -> Sequence[Axes]:
    return [dims_of(out)[attrs["permutation"].index(i)] for i in range(x.ndim)]


def _without(*names: str) -> Rule:
    """Dimensions in the attribute go away."""

    def rule(inputs: Sequence[ArrayType], attrs: Attrs, out: ArrayType) -> Sequence[Axes]:
        gone = next(attrs[name] for name in names if name in attrs)
        x = inputs[0]
        gone = {i % x.ndim for i in gone if isinstance(i, int)} if x.ndim else set()
        return [axes for i, axes in enumerate(dims_of(x)) if i not in gone]

    return rule


def _reshape(inputs: Sequence[ArrayType], attrs: Attrs, out: ArrayType) -> Sequence[Axes]:
    return _regrouped(inputs[0], out)


def _unshaped(x: ArrayType, attrs: Attrs, out: ArrayType) -> Sequence[Axes]:
    return _regrouped(out, x)


def _regrouped(x: ArrayType, out: ArrayType) -> Sequence[Axes]:
    """Of dimensions that become others together, the first stays divided if it alone is."""
    found = undivided(out.ndim)
    for old, new in groups(x.shape, out.shape):
        wide = [i for i in old if x.shape[i] != 1]
        to = [j for j in new if out.shape[j] != 1]
        if wide and to and not any(dims_of(x)[i] for i in wide[1:]):
            found[to[0]] = dims_of(x)[wide[0]]
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
    rows: Sequence[Axes] = [left[i] for i in range(x.ndim) if i not in (*xc, *xn)]
    columns = [right[i] for i in range(y.ndim) if i not in (*yc, *yn)]
    if prod(y.shape) > prod(x.shape):
        rows = _yielding(rows, columns)
    return [*batch, *rows, *columns]


def _yielding(dims: Iterable[Axes], others: Iterable[Axes]) -> Sequence[Axes]:
    """Dimensions of the smaller operand: the larger one stays where it is, the first of equals."""
    taken = {axis for axes in others for axis in axes}
    return [axes if taken.isdisjoint(axes) else () for axes in dims]


def _conv(inputs: Sequence[ArrayType], attrs: Attrs, out: ArrayType) -> Sequence[Axes]:
    numbers, found = attrs["dimension_numbers"], undivided(out.ndim)
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
_BACK: Mapping[str, Callable[[ArrayType, Attrs, ArrayType], Sequence[Axes]]] = {
    "broadcast_in_dim": _unbroadcast,
    "transpose": _untransposed,
    "squeeze": _unshaped,
    "reshape": _unshaped,
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


def operands_of(
    name: str, inputs: Sequence[Value], attrs: Attrs, outs: Sequence[ArrayType]
) -> Specs:
    """How the operands of a node without regions lie for it, by how its outputs do."""
    if name in _EACH:
        return [t.spec for t in outs]
    out, found = outs[0], list[Sequence[Axes]]()
    for value in inputs:
        if name in _BACK:
            found.append(_BACK[name](value.type, attrs, out))
        elif name in _RULES or value.ndim != out.ndim:
            found.append(())
        else:
            alike = zip(dims_of(out), value.shape, out.shape, strict=True)
            found.append([axes if n == m else () for axes, n, m in alike])
    return [fitted(dims, value.shape) for dims, value in zip(found, inputs, strict=True)]


def is_spread(values: Iterable[Value]) -> bool:
    """True where one of the values is divided."""
    return any(value.type.spec for value in values)


_OTHERS = frozenset("scan while cond shard_map".split())  # how their regions relate is their own


def is_call(node: Node) -> bool:
    """True for a node whose region takes its operands and gives back its results."""
    if not node.regions or node.op.name in _OTHERS:
        return False
    region = node.regions[0]
    taken = shapes(region.inputs) == shapes(node.inputs)
    return taken and shapes(region.outputs) == shapes(node.outputs)


def shapes(values: Iterable[Value]) -> list[tuple[int, ...]]:
    """The shapes of some values."""
    return [value.shape for value in values]
