"""Mixed precision: `autocast` for products, `GradScaler` for float16's narrow range."""

from __future__ import annotations

from contextlib import ContextDecorator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..compiler.state import watching
from ..ir.errors import AutogradError
from .modes import mode
from .storage import Storage
from .tensor import Tensor

# What runs in the narrow type, and what in float32, by name; the rest takes what comes.
NARROW = frozenset(
    "matmul dot vdot inner outer tensordot einsum linear conv2d dot_product_attention".split()
)
WIDE = frozenset(
    "exp expm1 log log1p log2 log10 softmax log_softmax logsumexp cross_entropy mse_loss l1_loss "
    "binary_cross_entropy_with_logits layer_norm norm sum prod cumsum cumprod mean var std pow "
    "power softplus".split()
)

_WIDE: list[Any] = [np.dtype(np.float32)]
_NARROW: list[Any] = [np.dtype(np.float16), jnp.dtype(jnp.bfloat16)]


class autocast(ContextDecorator):  # noqa: N801  PyTorch's name
    """Within, products take `dtype`; sums, exponentials and losses take float32."""

    def __init__(self, dtype: Any = jnp.bfloat16, enabled: bool = True) -> None:
        """`enabled` False switches an outer one off."""
        self._wanted = jnp.dtype(dtype) if enabled else None
        self._before: list[Any] = []

    def __enter__(self) -> None:
        """Begin."""
        self._before.append(mode.cast)
        mode.cast = self._wanted

    def __exit__(self, *_: object) -> None:
        """End."""
        mode.cast = self._before.pop()


@lru_cache(maxsize=4096)
def casting(fun: Any, name: str, dtype: Any) -> Any:
    """Return `fun` on operands of the type that it takes under autocast; `fun` for the rest."""
    if name in NARROW:
        wanted, given = dtype, _WIDE
    elif name in WIDE:
        wanted, given = _WIDE[0], _NARROW
    else:
        return fun

    def cast(*arrays: Any) -> Any:
        return fun(
            *(x.astype(wanted) if hasattr(x, "dtype") and x.dtype in given else x for x in arrays)
        )

    cast.__name__ = name
    return cast


@dataclass
class _Seen:
    """What happened since the last update: whether gradients overflowed, and who stepped.

    By the identities of optimisers; `owner` is who traced, or None.
    """

    owner: Any
    overflow: dict[int, Any] = field(default_factory=dict)
    stepped: set[int] = field(default_factory=set)


class GradScaler:
    """Scale the loss so that small gradients survive in float16; skip steps that overflow.

        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)      # only to look at the gradients, or to clip them
        scaler.step(optimizer)
        scaler.update()

    `step` leaves the parameters alone when a gradient is inf or NaN; `update` then multiplies the
    scale by `backoff_factor`, and by `growth_factor` after `growth_interval` good steps.
    """

    def __init__(
        self,
        init_scale: float = 65536.0,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
    ) -> None:
        """Raises `ValueError` for factors that do not grow or do not back off."""
        if growth_factor <= 1 or not 0 < backoff_factor < 1:
            raise ValueError("GradScaler wants growth_factor > 1 and 0 < backoff_factor < 1")
        self._scale = Tensor(jnp.float32(init_scale))
        self._good = Storage(jnp.int32(0))
        self.growth_factor, self.backoff_factor = growth_factor, backoff_factor
        self.growth_interval, self._enabled = growth_interval, enabled
        self._seen = _Seen(None)

    def is_enabled(self) -> bool:
        """False: everything passes unchanged."""
        return self._enabled

    def get_scale(self) -> float:
        """The present scale."""
        return float(self._scale) if self._enabled else 1.0

    def scale(self, outputs: Any) -> Any:
        """Multiply a loss, or each of several."""
        if not self._enabled:
            return outputs
        if isinstance(outputs, list | tuple):
            return type(outputs)(map(self.scale, outputs))
        return outputs * self._scale

    def unscale_(self, optimizer: Any) -> None:
        """Divide the gradients by the scale, once between updates."""
        if not self._enabled:
            return
        seen = self._since_update()
        if id(optimizer) in seen.stepped:
            raise AutogradError("unscale_ was called after step; call update() first")
        if id(optimizer) in seen.overflow:
            raise AutogradError("unscale_ was called a second time since the last update()")
        grads = [
            p._grad for g in optimizer.param_groups for p in g["params"] if p._grad is not None
        ]
        new, bad = _unscaled([g.value for g in grads], self._scale.value)
        for g, x in zip(grads, new, strict=True):
            g._put(x)
        seen.overflow[id(optimizer)] = bad

    def step(self, optimizer: Any, *args: Any) -> Any:
        """`optimizer.step()`, unless a gradient is not finite.

        In a compiled step, which knows no values yet, what is changed is chosen afterwards.
        """
        if not self._enabled:
            return optimizer.step(*args)
        seen = self._since_update()
        if id(optimizer) in seen.stepped:
            raise AutogradError("step was called a second time since the last update()")
        if id(optimizer) not in seen.overflow:
            self.unscale_(optimizer)
        seen.stepped.add(id(optimizer))
        bad = seen.overflow[id(optimizer)]
        if watching.owner is None:
            return None if bool(bad) else optimizer.step(*args)
        before = [(storage, storage.read()) for storage in optimizer.storages()]
        out = optimizer.step(*args)
        for storage, old in before:
            new = storage.read()
            if new is not old:
                storage.write(jax.tree.map(lambda x, y: jnp.where(bad, x, y), old, new))
        return out

    def update(self, new_scale: float | None = None) -> None:
        """Adapt the scale to how the steps went, or set it."""
        if not self._enabled:
            return
        seen = self._since_update()
        if new_scale is not None:
            self._scale._put(jnp.float32(new_scale))
        elif not seen.overflow:
            raise AutogradError(
                "update wants a step, or an unscale_, since the last one\n"
                "  under bp.compile: in the same compiled step"
            )
        else:
            factors = self.growth_factor, self.backoff_factor
            found = list(seen.overflow.values())
            scale, good = _adapted(
                self._scale.value, self._good.read(), found, *factors, self.growth_interval
            )
            self._scale._put(scale)
            self._good.write(good)
        self._seen = _Seen(watching.owner)

    def _since_update(self) -> _Seen:
        """What happened since the last update, by who runs or traces now."""
        seen = self._seen
        if seen.owner is not watching.owner:
            if seen.owner is None and seen.overflow:
                raise AutogradError(
                    "the gradients were unscaled outside of the compiled step\n"
                    "  unscale_, step and update belong into one step"
                )
            seen = self._seen = _Seen(watching.owner)
        return seen

    def state_dict(self) -> dict[str, Any]:
        """Scale and count of good steps."""
        return {"scale": self.get_scale(), "good": int(self._good.read())} if self._enabled else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a state."""
        if self._enabled:
            self._scale._put(jnp.float32(state["scale"]))
            self._good.write(jnp.int32(state["good"]))


@jax.jit
def _unscaled(grads: list[Any], scale: Any) -> tuple[list[Any], Any]:
    new = [(g.astype(np.float32) / scale).astype(g.dtype) for g in grads]
    finite = [jnp.isfinite(g).all() for g in new]
    return new, ~jnp.stack(finite).all() if finite else jnp.bool_(False)


@jax.jit
def _adapted(
    scale: Any, good: Any, overflow: list[Any], growth: Any, backoff: Any, interval: Any
) -> tuple[Any, Any]:
    """The next scale, and the number of good steps since it last changed."""
    bad, good = jnp.stack(overflow).any(), good + 1
    grows = ~bad & (good == interval)
    scale = jnp.where(bad, scale * backoff, jnp.where(grows, scale * growth, scale))
    return scale, jnp.where(bad | grows, 0, good)
