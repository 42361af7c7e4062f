"""Primitives that the tables do not list: they pass through, and have no derivative."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from ..op import Attrs, Op, shape_by_jax

if TYPE_CHECKING:
    from ..graph import Graph


@cache
def foreign(primitive: Any, effectful: bool = False) -> Op:
    """Return a record that binds JAX's `primitive` with the parameters that it came with."""

    def lower(
        args: Sequence[Any], attrs: Attrs, regions: Sequence[Graph], run: Callable[..., list[Any]]
    ) -> list[Any]:
        out = primitive.bind(*args, **primitive.get_bind_params(dict(attrs)))
        return list(out) if primitive.multiple_results else [out]

    effect = "foreign" if effectful else ""
    return Op(primitive.name, shape_by_jax(lower), lower, effect=effect, foreign=True)
