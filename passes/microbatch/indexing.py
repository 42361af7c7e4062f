"""Gathers and scatters of a part of the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...ir.graph import Node
from .split import SUM, Coupled, Kind, Split, Step


def _kept(ndim: int, dropped: Sequence[int]) -> list[int]:
    return [i for i in range(ndim) if i not in dropped]


def gather(node: Node, kinds: Sequence[Kind], k: int) -> Step:
    """Samples are batch dimensions of both, whole in each slice, or dimensions of the indices."""
    x, indices = node.inputs
    n, sizes = node.attrs["dimension_numbers"], node.attrs["slice_sizes"]
    batch = _kept(node.output.ndim, n.offset_dims)  # of the indices, in order
    into, by = kinds
    pairs = dict(zip(n.operand_batching_dims, n.start_indices_batching_dims, strict=True))
    if isinstance(by, Split) and by.dim in pairs.values() and into is None:
        back = {there: here for here, there in pairs.items()}
        into = by.at(back[by.dim])
    if isinstance(into, Split) and into.dim in pairs:
        there = into.at(pairs[into.dim])
        return Step([into, there], [into.at(batch[there.dim])])
    if isinstance(into, Split):
        kept = _kept(x.ndim, (*n.collapsed_slice_dims, *n.operand_batching_dims))
        if by is not None or into.dim not in kept or sizes[into.dim] != x.shape[into.dim]:
            raise Coupled(node, "it reads any of the samples")
        out = into.at(n.offset_dims[kept.index(into.dim)])
        return Step([into, None], [out], {"slice_sizes": into.cut(sizes, k)})
    assert isinstance(by, Split)
    if by.dim == indices.ndim - 1:
        raise Coupled(node, "a sample is a coordinate")
    return Step([None, by], [by.at(batch[by.dim])])


def scatter(node: Node, kinds: Sequence[Kind], k: int) -> Step:
    """Samples are batch dimensions of all three, whole in each window, or they add up."""
    x, indices, updates = node.inputs
    n = node.attrs["dimension_numbers"]
    batch = _kept(updates.ndim, n.update_window_dims)  # of the indices, in order
    window = _kept(x.ndim, (*n.inserted_window_dims, *n.operand_batching_dims))
    pairs = dict(zip(n.operand_batching_dims, n.scatter_indices_batching_dims, strict=True))
    into, by, given = kinds
    at = _samples_of(into, by, given, n, batch, window, pairs)
    if at is None:
        return _added(node, by, given, batch)
    if at.dim in pairs:
        there = at.at(pairs[at.dim])
        return Step([at, there, at.at(batch[there.dim])], [at])
    dim = n.update_window_dims[window.index(at.dim)] if at.dim in window else None
    if dim is None or by is not None or updates.shape[dim] != x.shape[at.dim]:
        raise Coupled(node, "it writes any of the samples")
    return Step([at, None, at.at(dim)], [at])


def _samples_of(
    into: Kind,
    by: Kind,
    given: Kind,
    n: Any,
    batch: Sequence[int],
    window: Sequence[int],
    pairs: dict[int, int],
) -> Split | None:
    """Where the samples are in what is written to; None where they are not."""
    if isinstance(into, Split):
        return into
    back = {there: here for here, there in pairs.items()}
    if isinstance(by, Split):
        return by.at(back[by.dim]) if by.dim in back else None
    assert isinstance(given, Split)
    if given.dim in n.update_window_dims:
        return given.at(window[list(n.update_window_dims).index(given.dim)])
    place = batch.index(given.dim)
    return given.at(back[place]) if place in back else None


def _added(node: Node, by: Kind, given: Kind, batch: Sequence[int]) -> Step:
    """Each sample's updates are added to what all share."""
    if node.op.name != "scatter-add":
        raise Coupled(node, "the samples write to the same place")
    there = by if isinstance(by, Split) else None
    if there is None:
        assert isinstance(given, Split)
        there = given.at(batch.index(given.dim))
    if there.dim >= node.inputs[1].ndim - 1:
        raise Coupled(node, "a sample is a coordinate")
    return Step([SUM, there, there.at(batch[there.dim])], [SUM])
