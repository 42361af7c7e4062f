"""Tensors that share the storage of another: reshaped, transposed, sliced."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from .storage import View
from .tensor import Tensor


def view_of(base: Tensor, step: Callable[..., Any]) -> Tensor:
    """Return the view of a tensor that `step`, which moves elements alone, tells."""
    from .lift import apply

    new: Tensor = apply(step, (base,))
    inner = base._view
    root = base if inner is None else inner.base
    steps = (step,) if inner is None else (*inner.steps, step)
    array = new._storage.array
    new._storage = root._storage
    new._view = View(root, steps, array)
    return new


@functools.lru_cache(maxsize=4096)
def written(steps: tuple[Callable[..., Any], ...]) -> Callable[..., Any]:
    """A function `(base, view) -> base` that puts a view's elements where they come from."""

    def write(base: Any, view: Any) -> Any:
        places = jnp.arange(base.size).reshape(base.shape)
        for step in steps:
            places = step(places)
        flat = base.reshape(-1).at[places.reshape(-1)].set(view.reshape(-1))
        return flat.reshape(base.shape)

    write.__name__ = "write"
    return write
