"""Graph -> a function of arrays, to be staged by `jax.jit`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..ir.evaluate import run
from ..ir.graph import Graph
from ..ir.jax_compat import bind, explicit_mesh, manual_axes, on_auto_axes, varying_axes
from ..ir.ops.varying import aligned
from ..ir.spec import partition
from ..ir.types import ArrayType, type_of


def lowered(graph: Graph, types: Sequence[ArrayType]) -> Callable[..., list[Any]]:
    """Return a function that binds JAX's primitives for `graph`, one call for each node.

    The user's lines and scopes go with them into the HLO. `types` are the outputs' types as they
    were traced: passes may lose a weak bit, which is put back here. Inside `jax.shard_map` the
    operands are cast to vary over the same mesh axes, which JAX's types want. What JAX's
    types tell of explicit mesh axes was checked as the program was traced: it runs with these left
    to XLA, as `reshard`s and results say.
    """

    def call(*args: Any) -> list[Any]:
        mesh = explicit_mesh(args)
        if mesh is not None:
            specs = [partition(kind.spec, mesh) for kind in types]
            return on_auto_axes(on_shards, mesh, specs, args)
        return on_shards(*args)

    def on_shards(*args: Any) -> list[Any]:
        manual = manual_axes()
        body = aligned(graph, list(map(varying_axes, args)), manual) if manual else graph
        outs = run(body, args, annotate=True)
        return [_as_traced(out, kind) for out, kind in zip(outs, types, strict=True)]

    return call


def _as_traced(out: Any, kind: ArrayType) -> Any:
    if isinstance(out, np.void):  # a float0 scalar, which JAX takes as an array alone
        return np.asarray(out)
    if type_of(out) == kind:
        return out
    (restored,) = bind(
        "convert_element_type", [out], {"new_dtype": kind.dtype, "weak_type": kind.weak}
    )
    return restored
