"""What each op makes of a part of the batch.

`RULES` goes from the kinds of the operands to those of the outputs. `PULLED` goes the other way,
for operands of a value that is whole: it can be made for a part alone, and need not be sliced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...ir.graph import Node
from ...ir.ops.contraction import free_dims
from ...ir.spec import dims_of
from ...ir.types import places
from ..fuse.rows import ELEMENTWISE
from .indexing import gather, scatter
from .products import convolution, dot
from .split import Coupled, Kind, Partial, Split, Step

Rule = Callable[[Node, Sequence[Kind], int], Step]
PullRule = Callable[[Node, Split, int], Step | None]


def first(kinds: Sequence[Kind]) -> Split:
    """Return the first that is split."""
    return next(kind for kind in kinds if isinstance(kind, Split))


def same_elements(node: Node, split: Split) -> Step:
    """Operands have the shape of the output, or no dimensions, or one element along this one."""
    size = node.outputs[0].shape[split.dim]
    wanted = [split if x.ndim and x.shape[split.dim] == size else None for x in node.inputs]
    return Step(wanted, [split] * len(node.outputs))


def _elementwise(node: Node, kinds: Sequence[Kind], k: int) -> Step:
    return same_elements(node, first(kinds))


def _each_alone(node: Node, kinds: Sequence[Kind], k: int) -> Step:
    """A barrier: what it holds passes through."""
    return Step(kinds, kinds)


def _broadcast(node: Node, kinds: Sequence[Kind], k: int) -> Step:
    split, dims = first(kinds), node.attrs["broadcast_dimensions"]
    out = split.at(dims[split.dim])
    return Step([split], [out], {"shape": out.cut(node.output.shape, k)})


def _reshape(node: Node, kinds: Sequence[Kind], k: int) -> Step:
    split, shape = first(kinds), node.output.shape
    out = split.reshaped(node.inputs[0].shape, shape, k)
    if out is None:
        raise Coupled(node, f"{node.inputs[0].type} as {node.output.type} has no parts of its own")
    sized = {"new_sizes": out.cut(shape, k)} if "new_sizes" in node.attrs else {}
    return Step([split], [out], sized)


def _transpose(node: Node, kinds: Sequence[Kind], k: int) -> Step:
    split = first(kinds)
    return Step([split], [split.at(list(node.attrs["permutation"]).index(split.dim))])


def _reduction(op: str | None) -> Rule:
    """Reduce other dimensions, or the samples to what the parts' `op` puts together."""

    def rule(node: Node, kinds: Sequence[Kind], k: int) -> Step:
        split, axes = first(kinds), node.attrs["axes"]
        if split.dim in axes:
            if op is None:
                raise Coupled(node, f"{node.op.name} runs over the samples")
            return Step([split], [Partial(op)])
        out = split.at(split.dim - sum(axis < split.dim for axis in axes))
        return Step([split] * len(node.inputs), [out] * len(node.outputs))

    return rule


def _along(attr: str) -> Rule:
    """Ops that work along one dimension, or several, and leave the others as they are."""

    def rule(node: Node, kinds: Sequence[Kind], k: int) -> Step:
        split, dims = first(kinds), node.attrs[attr]
        if split.dim in ((dims,) if isinstance(dims, int) else dims):
            raise Coupled(node, f"{node.op.name} runs along the samples")
        return Step([split] * len(node.inputs), [split] * len(node.outputs))

    return rule


def _concatenate(node: Node, kinds: Sequence[Kind], k: int) -> Step:
    split, sizes = first(kinds), [x.shape[node.attrs["dimension"]] for x in node.inputs]
    if node.attrs["dimension"] == split.dim and len(set(sizes)) > 1:
        raise Coupled(node, f"it joins parts of {sizes} along the samples")
    return Step([split] * len(node.inputs), [split])


def _stack(node: Node, kinds: Sequence[Kind], k: int) -> Step:
    split = first(kinds)
    out = split.at(split.dim + (node.attrs["axis"] <= split.dim))
    return Step([split] * len(node.inputs), [out])


def _unstack(node: Node, kinds: Sequence[Kind], k: int) -> Step:
    split, axis = first(kinds), node.attrs["axis"]
    if axis == split.dim:
        raise Coupled(node, "it takes the samples apart")
    return Step([split], [split.at(split.dim - (axis < split.dim))] * len(node.outputs))


def _tile(node: Node, kinds: Sequence[Kind], k: int) -> Step:
    """Every copy has all parts, in their order."""
    return Step([first(kinds)], [first(kinds)])


def _constraint(node: Node, kinds: Sequence[Kind], k: int) -> Step:
    """Each part lies as the whole does."""
    split = first(kinds)
    over = places(dims_of(node.output.type)[split.dim])
    if node.output.shape[split.dim] % (k * over):
        raise Coupled(node, f"a part of the samples can't be divided among {over} devices")
    return Step([split], [split])


def _slice(node: Node, kinds: Sequence[Kind], k: int) -> Step:
    split, shape, d = first(kinds), node.inputs[0].shape, first(kinds).dim
    low, high = list(node.attrs["start_indices"]), list(node.attrs["limit_indices"])
    block = k * split.stride
    if low[d] % block or high[d] % block or (node.attrs["strides"] or (1,) * len(shape))[d] != 1:
        raise Coupled(node, f"it takes samples {low[d]} to {high[d]} of {shape[d]}")
    low[d], high[d] = low[d] // k, high[d] // k
    return Step([split], [split], {"start_indices": tuple(low), "limit_indices": tuple(high)})


def _split(node: Node, kinds: Sequence[Kind], k: int) -> Step:
    split, sizes = first(kinds), node.attrs["sizes"]
    if node.attrs["axis"] != split.dim:
        return Step([split], [split] * len(sizes))
    if any(size % (k * split.stride) for size in sizes):
        raise Coupled(node, f"it splits the samples into {list(sizes)}")
    return Step([split], [split] * len(sizes), {"sizes": tuple(size // k for size in sizes)})


def _pad(node: Node, kinds: Sequence[Kind], k: int) -> Step:
    split = first(kinds)
    if any(node.attrs["padding_config"][split.dim]):
        raise Coupled(node, "it pads the samples")
    return Step([split, None], [split])


def _window(node: Node, kinds: Sequence[Kind], k: int) -> Step:
    """A window of one sample, no padding, no stride."""
    split, attrs = first(kinds), node.attrs
    still = {"window_dimensions": 1, "window_strides": 1, "padding": (0, 0)}
    still |= {"base_dilation": 1, "window_dilation": 1}
    if any(attrs.get(name) and attrs[name][split.dim] != at for name, at in still.items()):
        raise Coupled(node, "its window spans several samples")
    return Step([split] * len(node.inputs), [split] * len(node.outputs))


def _leading(trailing: int) -> Rule:
    """Each array by itself, of the last `trailing` dimensions; those in front stay as they are."""

    def rule(node: Node, kinds: Sequence[Kind], k: int) -> Step:
        split = first(kinds)
        if any(split.dim >= x.ndim - trailing for x in node.inputs):
            raise Coupled(node, f"{node.op.name} mixes the samples")
        return Step([split] * len(node.inputs), [split] * len(node.outputs))

    return rule


def _fft(node: Node, kinds: Sequence[Kind], k: int) -> Step:
    return _leading(len(node.attrs["fft_lengths"]))(node, kinds, k)


def _keys(node: Node, kinds: Sequence[Kind], k: int) -> Step:
    """A key for each sample: its own numbers."""
    if not isinstance(kinds[0], Split):
        raise Coupled(node, "one key makes the numbers of several samples")
    wanted = [kinds[0], *(kinds[0] if x.ndim else None for x in node.inputs[1:])]
    return Step(wanted, [kinds[0]] * len(node.outputs))


def _dynamic_slice(node: Node, kinds: Sequence[Kind], k: int) -> Step:
    split = first(kinds)
    shape, sizes = node.inputs[0].shape, node.attrs["slice_sizes"]
    if sizes[split.dim] != shape[split.dim]:
        raise Coupled(node, "it reads some of the samples")
    return Step(kinds, [split], {"slice_sizes": split.cut(sizes, k)})


def _dynamic_update_slice(node: Node, kinds: Sequence[Kind], k: int) -> Step:
    split = first(kinds)
    x, update = node.inputs[:2]
    if x.shape[split.dim] != update.shape[split.dim]:
        raise Coupled(node, "it writes some of the samples")
    return Step([split, split, *kinds[2:]], [split])


def _pull_broadcast(node: Node, out: Split, k: int) -> Step | None:
    (x,), dims = node.inputs, node.attrs["broadcast_dimensions"]
    attrs = {"shape": out.cut(node.output.shape, k)}
    if out.dim not in dims or x.shape[dims.index(out.dim)] == 1:
        return Step([None], [out], attrs)
    return Step([out.at(dims.index(out.dim))], [out], attrs)


def _pull_reshape(node: Node, out: Split, k: int) -> Step | None:
    split = out.reshaped(node.output.shape, node.inputs[0].shape, k)
    sized = {"new_sizes": out.cut(node.output.shape, k)} if "new_sizes" in node.attrs else {}
    return None if split is None else Step([split], [out], sized)


def _pull_transpose(node: Node, out: Split, k: int) -> Step | None:
    return Step([out.at(node.attrs["permutation"][out.dim])], [out])


def _pull_iota(node: Node, out: Split, k: int) -> Step | None:
    if node.attrs["dimension"] == out.dim:
        return None
    return Step([], [out], {"shape": out.cut(node.output.shape, k)})


def _pull_elementwise(node: Node, out: Split, k: int) -> Step | None:
    return same_elements(node, out)


def _pull_dot(node: Node, out: Split, k: int) -> Step | None:
    """The samples of an operand's free dimension, or of both operands' batch dimension."""
    (xc, yc), (xn, yn) = node.attrs["dimension_numbers"]
    x, y = node.inputs
    if out.dim < len(xn):
        return Step([out.at(xn[out.dim]), out.at(yn[out.dim])], [out])
    place, free = out.dim - len(xn), free_dims(x, xc, xn)
    if place < len(free):
        return Step([out.at(free[place]), None], [out])
    return Step([None, out.at(free_dims(y, yc, yn)[place - len(free)])], [out])


def _pull_reduction(node: Node, out: Split, k: int) -> Step | None:
    (x,), axes = node.inputs, node.attrs["axes"]
    return Step([out.at([i for i in range(x.ndim) if i not in axes][out.dim])], [out])


def _pull_concatenate(node: Node, out: Split, k: int) -> Step | None:
    if node.attrs["dimension"] == out.dim:
        return None
    return Step([out] * len(node.inputs), [out])


def _named(names: str, rule: Any) -> dict[str, Any]:
    return dict.fromkeys(names.split(), rule)


_ELEMENTWISE = ELEMENTWISE.union(
    "name threefry2x32 offload fetch layout_constraint reshard".split()
)

RULES: Mapping[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **_named("reshape squeeze", _reshape),
    **{
        f"reduce_{name}": _reduction(op)
        for name, op in (
            *(("sum", "add"), ("prod", "mul"), ("max", "max"), ("min", "min")),
            *(("or", "or"), ("and", "and"), ("xor", "xor")),
        )
    },
    **_named("argmax argmin", _reduction(None)),
    **_named("cumsum cumprod cummax cummin cumlogsumexp", _along("axis")),
    **_named("sort", _along("dimension")),
    **_named("rev", _along("dimensions")),
    **_named("top_k", _leading(1)),
    **_named("reduce_window_sum reduce_window_max reduce_window_min", _window),
    **_named("select_and_scatter_add select_and_gather_add", _window),
    **_named("cholesky triangular_solve lu qr svd eigh eig householder_product", _leading(2)),
    **_named("random_bits random_split random_fold_in random_wrap random_unwrap", _keys),
    **_named("scatter scatter-add scatter-sub scatter-mul scatter-min scatter-max", scatter),
    "optimization_barrier": _each_alone,
    "broadcast_in_dim": _broadcast,
    "transpose": _transpose,
    "concatenate": _concatenate,
    "stack": _stack,
    "unstack": _unstack,
    "sharding_constraint": _constraint,
    "tile": _tile,
    "slice": _slice,
    "split": _split,
    "pad": _pad,
    "fft": _fft,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "dot_general": dot,
    "conv_general_dilated": convolution,
    "gather": gather,
}
PULLED: Mapping[str, PullRule] = {
    **dict.fromkeys(_ELEMENTWISE, _pull_elementwise),
    **_named("reshape squeeze", _pull_reshape),
    "broadcast_in_dim": _pull_broadcast,
    **_named("reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or", _pull_reduction),
    "transpose": _pull_transpose,
    "concatenate": _pull_concatenate,
    "dot_general": _pull_dot,
    "iota": _pull_iota,
}
