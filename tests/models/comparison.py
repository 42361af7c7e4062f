"""Our gradients beside `jax.value_and_grad`: the same numbers, to 1e-9 of the largest, in float64."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import backpass as bp

RELATIVE = 1e-9


def draw(seed: int, *shape: int, low: float | None = None, high: float = 1.0) -> Any:
    """Normal numbers, or uniform ones in `[low, high)`."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape) if low is None else rng.uniform(low, high, shape)


def batches(table: dict[str, Any], size: int = 12) -> dict[str, list[str]]:
    """Names that share a program, by a name for the batch."""
    names = list(table)
    parts = [names[i : i + size] for i in range(0, len(names), size)]
    return {f"{part[0]} to {part[-1]}": part for part in parts}


def weighted(outputs: Any) -> Any:
    """A scalar that every inexact element of a pytree enters with a weight of its own."""
    total = 0.0
    for leaf in jax.tree.leaves(outputs):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            weights = jnp.cos(1.0 + jnp.arange(leaf.size)).reshape(leaf.shape)
            total += jnp.sum(weights * leaf.real) + jnp.sum(weights**2 * leaf.imag)
    return total


def assert_close(found: Any, expected: Any, relative: float = RELATIVE) -> None:
    """Equal trees, dtypes and shapes, and each leaf close to `relative` times its largest number."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    pairs = zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True)
    for (path, ours), theirs in pairs:
        where = jax.tree_util.keystr(path)
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype), where
        if ours.dtype == jax.dtypes.float0:
            continue
        if jnp.issubdtype(ours.dtype, jax.dtypes.prng_key):
            ours, theirs = jax.random.key_data(ours), jax.random.key_data(theirs)
        ours, theirs = np.asarray(ours), np.asarray(theirs)
        assert np.isfinite(theirs).all(), f"{where}: the reference is not finite"
        scale = np.abs(theirs).max(initial=0.1)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=relative * scale, err_msg=where)


def assert_same_gradients(
    loss: Callable[..., Any],
    *args: Any,
    argnums: int | tuple[int, ...] = 0,
    has_aux: bool = False,
    relative: float = RELATIVE,
) -> None:
    """Compare value, gradients and auxiliary outputs; some gradient must not be zero."""
    expected = jax.jit(jax.value_and_grad(loss, argnums, has_aux=has_aux))(*args)
    step = bp.compile(bp.value_and_grad(loss, argnums, has_aux=has_aux), debug=True)
    assert_close(step(*args), expected, relative)
    assert any(np.any(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(expected[1]))
