"""How a call's arguments lie on a mesh: by `in_shardings`, or as they come."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from ..ir.jax_compat import trace_context
from ..ir.spec import by_partition, spec_of
from ..ir.types import Spec
from .arguments import Arguments
from .uneven import check_even

UNSPECIFIED = "UnspecifiedValue"  # JAX's class of what `in_shardings` is by default; has no name


def placement(
    arguments: Arguments, args: Sequence[Any], kwargs: Mapping[str, Any], in_shardings: Any
) -> tuple[Spec, ...]:
    """How the array leaves of a call lie on a mesh; nothing where each is whole on every device.

    Raises `ShardingError` for a leaf that is divided unevenly.
    """
    (positional, _), _ = arguments.divide(args, kwargs)
    told = asked(in_shardings, tuple(positional.values()))
    arrays, _ = arguments.listed(args, kwargs)
    told += [None] * (len(arrays) - len(told))
    leaves = [leaf for _, leaf in arrays]
    specs = tuple(map(lying, told, leaves))
    check_even(arguments.fun, [path for path, _ in arrays], leaves, specs)
    return specs if any(specs) else ()


def key_of_call(
    arguments: Arguments, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Hashable | None:
    """What `placement` and a call's signature hang on, cheaply; None where that is not enough.

    A few microseconds for each hundred leaves: a call with a budget on several devices asks.
    """
    leaves, tree = jax.tree.flatten((args, kwargs))
    if arguments.static_positions or arguments.static_names:
        return None
    for leaf in {type(leaf): leaf for leaf in leaves}.values():
        if isinstance(leaf, jax.core.Tracer) or not isinstance(leaf, jax.Array):
            return None
    avals = [leaf.aval for leaf in leaves]
    kinds = [
        (x.sharding, a.shape, a.dtype, a.weak_type) for x, a in zip(leaves, avals, strict=True)
    ]
    return tree, tuple(kinds), trace_context()


def check_results_even(fun: Callable[..., Any], out_shapes: Any, out_shardings: Any) -> None:
    """Raise `ShardingError` for a result that `out_shardings` divides unevenly."""
    told = asked(out_shardings, out_shapes, whole=True)
    leaves = jax.tree_util.tree_leaves_with_path(out_shapes)
    paths = [f"result{jax.tree_util.keystr(path)}" for path, _ in leaves]
    shapes = [leaf for _, leaf in leaves]
    specs = [() if each is None else lying(each, x) for each, x in zip(told, shapes, strict=True)]
    check_even(fun, paths, shapes, specs)


def asked(option: Any, tree: Any, *, whole: bool = False) -> list[Any]:
    """What `in_shardings`, or `out_shardings` with `whole`, says of each leaf of a tree; or None.

    The former is told for each of the arguments. What does not fit is left for JAX to refuse.
    """
    count = len(jax.tree.leaves(tree))
    if is_open(option):
        return [None] * count
    prefix = option if whole or _is_leaf(option) else tuple(option)
    found: list[Any] = []
    try:
        jax.tree.map(
            lambda told, part: found.extend([told] * len(jax.tree.leaves(part))),
            prefix,
            tree,
            is_leaf=_is_leaf,
        )
    except (ValueError, TypeError):
        return [None] * count
    return [None if is_open(told) else told for told in found]


def is_open(option: Any) -> bool:
    """True where a sharding is left to what the arguments have."""
    return option is None or type(option).__name__ == UNSPECIFIED


def _is_leaf(x: Any) -> bool:
    return is_open(x) or isinstance(x, Sharding | PartitionSpec)


def lying(told: Any, leaf: Any) -> Spec:
    """How a leaf lies on its mesh; `told` is what `in_shardings` says of it."""
    ndim = jax.typeof(leaf).ndim if not hasattr(leaf, "ndim") else leaf.ndim
    if isinstance(told, PartitionSpec):
        return by_partition(told, dict(jax.sharding.get_abstract_mesh().shape), ndim)
    if isinstance(told, NamedSharding):
        return spec_of(told, ndim)
    if isinstance(leaf, jax.core.Tracer):
        return spec_of(getattr(jax.typeof(leaf), "sharding", None), ndim)
    return spec_of(getattr(leaf, "sharding", None), ndim)
