"""`bp.LossScale`: the factor that keeps gradients in float16's range, as a part of the state."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LossScale:
    """A dynamic loss scale: a pytree that a step takes and returns.

        def step(params, scale, batch):
            loss, grads = bp.value_and_grad(lambda p: scale.scale(loss_fn(p, batch)))(params)
            grads, finite = scale.unscale(grads)
            new = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
            return scale.keep(finite, new, params), scale.adjust(finite), loss / scale.value

    A step whose gradients overflow is skipped, and the scale is divided by `factor`; after
    `period` steps without one it is multiplied by `factor`. Clip gradients after `unscale`.

    `value`: float32[]. `steps`: int32[], those since the last change.
    """

    value: Any = field(default_factory=lambda: jnp.float32(2.0**15))
    steps: Any = field(default_factory=lambda: jnp.int32(0))
    period: int = field(default=2000, metadata={"static": True})
    factor: float = field(default=2.0, metadata={"static": True})

    def scale(self, loss: Any) -> Any:
        """The loss times the scale, of the loss's dtype."""
        return loss * jnp.asarray(self.value, loss.dtype)

    def unscale(self, grads: Any) -> tuple[Any, Any]:
        """The gradients divided by the scale, and bool[]: whether all of them are finite."""
        leaves = [g for g in jax.tree.leaves(grads) if jnp.issubdtype(g.dtype, jnp.inexact)]
        finite = jnp.array([jnp.isfinite(g).all() for g in leaves]).all()
        return jax.tree.map(self._divided, grads), finite

    def _divided(self, grad: Any) -> Any:
        if not jnp.issubdtype(grad.dtype, jnp.inexact):
            return grad
        return grad / jnp.asarray(self.value, grad.dtype)

    def keep(self, finite: Any, new: Any, old: Any) -> Any:
        """`new` where the gradients were finite, and `old` otherwise; pytrees of one structure."""
        return jax.tree.map(lambda x, y: jnp.where(finite, x, y), new, old)

    def adjust(self, finite: Any) -> LossScale:
        """The scale for the next step: smaller after an overflow, larger after many steps."""
        due = self.steps + 1 >= self.period
        grown = jnp.where(due, self.value * self.factor, self.value)
        grown = jnp.where(jnp.isfinite(grown), grown, self.value)
        shrunk = jnp.maximum(self.value / self.factor, 1.0)
        return replace(
            self,
            value=jnp.where(finite, grown, shrunk),
            steps=jnp.where(finite & ~due, self.steps + 1, 0),
        )
