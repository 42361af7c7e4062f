"""A rewrite compared with what it takes the place of, on random numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...ir.errors import FusionError
from ...ir.evaluate import evaluate
from ...ir.graph import Graph, Node, Value
from ...ir.types import ArrayType, key_implementation
from .report import told

# Of the largest element; sums are taken in another order.
TOLERANCE = {2: 2e-2, 4: 1e-4, 8: 1e-9}


def compare(before: Graph, after: Graph, node: Node, known: Mapping[Value, Any]) -> None:
    """Run both on the same random inputs. Raises `FusionError` where their outputs differ.

    `known` are values of inputs that the rewrite relied upon.
    """
    random = np.random.default_rng(0)
    with jax.ensure_compile_time_eval():
        args = [
            jnp.broadcast_to(known[v], v.shape) if v in known else _drawn(v.type, random)
            for v in before.inputs
        ]
        pairs = zip(evaluate(before, *args), evaluate(after, *args), strict=True)
        for was, now in pairs:
            if not jnp.issubdtype(was.dtype, jnp.inexact):
                continue
            a, b = (np.asarray(x, np.result_type(np.float32, was.dtype)) for x in (was, now))
            scale = np.abs(a, where=np.isfinite(a), out=np.zeros(a.shape)).max(initial=1e-30)
            limit = TOLERANCE.get(was.dtype.itemsize // (1 + np.iscomplexobj(a)), 2e-2)
            if not np.allclose(a, b, rtol=0, atol=limit * scale, equal_nan=True):
                raise FusionError(
                    f"the rewrite of {told(node)} gives "
                    f"other values: apart by {np.nanmax(abs(a - b)) / scale:.1e} of the largest, "
                    f"{limit:.0e} is rounding\n  leave the pass `fuse` out of passes=, and tell us"
                )


def _drawn(type: ArrayType, random: np.random.Generator) -> Any:
    """Numbers of any size about 1, small integers, booleans, a key."""
    if jnp.issubdtype(type.dtype, jax.dtypes.prng_key):
        key = jax.random.key(0, impl=key_implementation(type.dtype))
        return jax.random.split(key, type.shape)
    if jnp.issubdtype(type.dtype, jnp.inexact):
        return jnp.asarray(random.standard_normal(type.shape), type.dtype)
    return jnp.asarray(random.integers(0, 2, type.shape), type.dtype)
