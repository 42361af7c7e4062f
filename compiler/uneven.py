"""Dimensions that are no multiples of the mesh axes that are to divide them.

What does not fit is told by the argument's path, the dimension and the axis with its size: of
arguments before JAX meets them, of what the user's function asks for as JAX tells it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..ir.errors import ShardingError
from ..ir.graph import Graph
from ..ir.spec import spec_of
from ..ir.types import ArrayType, Spec, places, type_of
from .diagnose import caller_line, defined_at, raised_at


def check_even(
    fun: Callable[..., Any], paths: Sequence[str], leaves: Sequence[Any], specs: Sequence[Spec]
) -> None:
    """Raise `ShardingError` for an argument that its mesh axes do not divide evenly."""
    for path, leaf, spec in zip(paths, leaves, specs, strict=True):
        kind = type_of(leaf)
        if len(spec) > kind.ndim:
            raise ShardingError(
                f"{defined_at(fun)} wants {path} to have the {len(spec)} dimensions that its "
                f"sharding names, got {kind}\n  at {caller_line()}; give it a shorter PartitionSpec"
            )
        if told := _first_uneven(kind, spec):
            raise ShardingError(
                f"{defined_at(fun)} wants dimension {told[0]} of {path} to be divided by mesh axis "
                f"{told[1]}, got {kind}: {told[2]}\n  at {caller_line()}; {told[3]}"
            )


def check_constraints(graph: Graph) -> None:
    """Raise `ShardingError` for a `with_sharding_constraint` whose axes divide unevenly.

    XLA would pad such an array, on every device.
    """
    for node in graph.walk():
        if node.op.name == "sharding_constraint":
            kind = node.output.type
            told = _first_uneven(kind, spec_of(node.attrs["sharding"], kind.ndim))
            if told:
                scope = f" in {node.scope}" if node.scope else ""
                raise ShardingError(
                    f"with_sharding_constraint wants dimension {told[0]} to be divided by mesh "
                    f"axis {told[1]}, got {kind.spread(())}: {told[2]}\n"
                    f"  at {node.source}{scope}; {told[3]}"
                )


def _first_uneven(kind: ArrayType, spec: Spec) -> tuple[int, str, str, str] | None:
    """The dimension, the axes that do not divide it, why, and what to do; None where all do."""
    for dim, (size, axes) in enumerate(zip(kind.shape, spec, strict=False)):
        count = places(axes)
        if size % count:
            told = " x ".join(f"{name!r} of size {many}" for name, many in axes)
            return dim, told, f"{size} is not a multiple of {count}", _todo(size, count)
    return None


def _todo(size: int, count: int) -> str:
    near = [n for n in (size // count * count, -(-size // count) * count) if n]
    return f"make it {' or '.join(map(str, near))}, or leave the axis out of its sharding"


_UNEVEN = re.compile(
    r"array axis (\d+) is partitioned (\d+) times, but (?:the dimension size is (\d+)|"
    r"does not evenly divide the dimension size (\d+))"
)
_AXES = re.compile(r"'?([A-Za-z_]\w*)'?: (\d+)")
_SPEC = re.compile(r"spec=P(?:artitionSpec)?\((.*?)\)(?:,|\)|$| )")
_MAPPED = re.compile(
    r"the passed (\S+) of shape (\S+?),? .*?array axis (\d+) \(of size (\d+)\) "
    r"to mesh ax[ei]s '?(.+?)'? \(of (?:total )?size (\d+)\)"
)


@contextmanager
def evenly(fun: Callable[..., Any]) -> Iterator[None]:
    """Turn what JAX raises of uneven divisions while `fun` is traced into our error."""
    try:
        yield
    except ValueError as error:
        told = uneven(fun, error, "reshard")
        if told is None:
            raise
        raise told from error


def uneven(fun: Callable[..., Any], error: Exception, what: str) -> ShardingError | None:
    """What JAX says of `what`, or of a `shard_map`, that divides unevenly, in our words.

    None for any other error.
    """
    text, where = str(error), raised_at(error) or caller_line()
    if found := _MAPPED.search(text):
        path, shape, dim, size, axes, count = found.groups()
        return ShardingError(
            f"shard_map wants dimension {dim} of {path} to be divided by mesh axis {axes!r} of "
            f"size {count}, got {shape}\n  at {where} in {defined_at(fun)}; "
            f"{_todo(int(size), int(count))}"
        )
    found = _UNEVEN.search(text)
    if found is None:
        return None
    dim, count, size = found[1], int(found[2]), int(found[3] or found[4])
    axes = _named(text, int(dim), count)
    return ShardingError(
        f"{what} wants dimension {dim} to be divided by mesh axis {axes}, got "
        f"{size}, which is not a multiple of {count}\n  at {where} in {defined_at(fun)}; "
        f"{_todo(size, count)}"
    )


def _named(text: str, dim: int, count: int) -> str:
    """The axes that divide a dimension, read off the sharding in a message of JAX's."""
    sizes = {name: int(size) for name, size in _AXES.findall(text)}
    spec = _SPEC.search(text)
    parts = re.findall(r"\([^()]*\)|[^,\s]+", spec[1]) if spec else []
    names = re.findall(r"\w+", parts[dim]) if dim < len(parts) else []
    if not names:
        return f"of size {count}"
    return " x ".join(f"{name!r} of size {sizes.get(name, count)}" for name in names)
