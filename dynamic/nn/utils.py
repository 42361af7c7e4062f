"""Gradients clipped in place, as `torch.nn.utils`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from ...ir.errors import AutogradError
from ..tensor import Tensor


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
) -> Tensor:
    """Scale the gradients so that their norm together is at most `max_norm`; gives it as it was.

    They are multiplied by max_norm / (norm + 1e-6), or left alone where that is above 1. Raises
    `AutogradError` for a norm that is not finite where that is asked for; nothing is changed then.
    """
    grads = _grads(parameters)
    if not grads:
        return Tensor(jnp.zeros(()))
    norm, clipped = _clipped([g.value for g in grads], max_norm, float(norm_type))
    if error_if_nonfinite and not bool(jnp.isfinite(norm)):
        raise AutogradError(
            f"the norm of order {norm_type} of the gradients is {float(norm)}, not finite, so "
            "they can't be clipped\n  pass error_if_nonfinite=False to clip nevertheless"
        )
    for g, new in zip(grads, clipped, strict=True):
        g._put(new)
    return Tensor(norm)


def clip_grad_value_(parameters: Tensor | Iterable[Tensor], clip_value: float) -> None:
    """Bound each element of the gradients by `clip_value`."""
    grads = _grads(parameters)
    for g, new in zip(grads, _bounded([g.value for g in grads], clip_value), strict=True):
        g._put(new)


def _grads(parameters: Any) -> list[Tensor]:
    many = [parameters] if isinstance(parameters, Tensor) else parameters
    return [p._grad for p in many if p._grad is not None]


@jax.jit
def _bounded(grads: list[Any], bound: Any) -> list[Any]:
    return [jnp.clip(g, -bound, bound) for g in grads]


def _clip(grads: list[Any], most: Any, order: float) -> tuple[Any, list[Any]]:
    norms = jnp.stack([jnp.linalg.norm(g.reshape(-1), order) for g in grads])
    norm = jnp.linalg.norm(norms, order)
    factor = jnp.minimum(most / (norm + 1e-6), 1.0)
    return norm, [g * factor.astype(g.dtype) for g in grads]


_clipped = jax.jit(_clip, static_argnums=2)
