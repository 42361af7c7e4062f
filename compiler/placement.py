"""How a call's arguments lie on a mesh: by `in_shardings`, or as they come."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from ..ir.spec import by_partition, spec_of
from ..ir.types import Spec

UNSPECIFIED = "UnspecifiedValue"  # JAX's class of what `in_shardings` is by default; has no name


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
