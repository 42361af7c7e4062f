"""How one array lies on a mesh: JAX's shardings, and what divides each dimension.

An axis of the mesh divides one dimension of an array at most, and evenly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from jax.sharding import AxisType, NamedSharding, PartitionSpec

from .types import ArrayType, Axes, Spec, places


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


def stacked(spec: Spec) -> Spec:
    """How arrays lie that are stacked along a new first dimension."""
    return ((), *spec) if spec else ()


def sliced(spec: Spec) -> Spec:
    """How a slice along the first dimension lies."""
    return spec[1:] if any(spec[1:]) else ()


def undivided(ndim: int) -> list[Axes]:
    """Dimensions that nothing divides."""
    return [()] * ndim


def dims_of(type: ArrayType) -> Sequence[Axes]:
    """The axes that divide each dimension."""
    return type.spec or ((),) * type.ndim
