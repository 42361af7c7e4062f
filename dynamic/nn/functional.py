"""All of `jax.nn` on tensors, and what PyTorch has besides: layers, losses, dropout."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import jax as _jax
import jax.numpy as _jnp

from ..lift import apply as _apply
from ..lift import namespace as _namespace
from ..random import next_key as _next_key
from ..tensor import Tensor


def _linear(x: Any, weight: Any, bias: Any = None) -> Any:
    y = x @ weight.T
    return y if bias is None else y + bias


_linear.__name__ = "linear"


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias`: x `[..., in]`, weight `[out, in]`, bias `[out]`."""
    return _apply(_linear, (x, weight) if bias is None else (x, weight, bias))  # type: ignore[no-any-return]


def _mean_nll(logits: Any, labels: Any) -> Any:
    return _nll(logits, labels).mean()


def _sum_nll(logits: Any, labels: Any) -> Any:
    return _nll(logits, labels).sum()


def _nll(logits: Any, labels: Any) -> Any:
    """Classes on axis 1, as in PyTorch, or the only one; labels are classes or probabilities."""
    axis = min(1, logits.ndim - 1)
    logs = _jax.nn.log_softmax(logits, axis)
    if labels.ndim == logits.ndim:
        return -(labels * logs).sum(axis)
    picked = _jnp.take_along_axis(logs, _jnp.expand_dims(labels, axis), axis)
    return -_jnp.squeeze(picked, axis)


_REDUCED = {"mean": _mean_nll, "sum": _sum_nll, "none": _nll}
for _fun in _REDUCED.values():
    _fun.__name__ = "cross_entropy"


def cross_entropy(logits: Tensor, labels: Any, reduction: str = "mean") -> Tensor:
    """Cross-entropy of logits `[N, C, ...]` against classes `[N, ...]` or probabilities."""
    return _apply(_reduced(_REDUCED, reduction), (logits, labels))  # type: ignore[no-any-return]


def _reduced(table: dict[str, Any], reduction: str) -> Any:
    if reduction not in table:
        raise ValueError(f"reduction wants one of {', '.join(table)}, got {reduction!r}")
    return table[reduction]


def _table(name: str, each: Any) -> dict[str, Any]:
    found = {
        "mean": lambda x, y: each(x, y).mean(),
        "sum": lambda x, y: each(x, y).sum(),
        "none": lambda x, y: each(x, y),
    }
    for fun in found.values():
        fun.__name__ = name
    return found


_MSE = _table("mse_loss", lambda x, y: (x - y) ** 2)
_L1 = _table("l1_loss", lambda x, y: (x - y) * _jnp.sign(x - y))
_BCE = _table(
    "binary_cross_entropy_with_logits",
    lambda x, y: _jnp.maximum(x, 0) - x * y + _jnp.log1p(_jnp.exp(-_jnp.abs(x))),
)


def mse_loss(x: Tensor, target: Any, reduction: str = "mean") -> Tensor:
    """Squares of the differences."""
    return _apply(_reduced(_MSE, reduction), (x, target))  # type: ignore[no-any-return]


def l1_loss(x: Tensor, target: Any, reduction: str = "mean") -> Tensor:
    """Absolute differences."""
    return _apply(_reduced(_L1, reduction), (x, target))  # type: ignore[no-any-return]


def binary_cross_entropy_with_logits(x: Tensor, target: Any, reduction: str = "mean") -> Tensor:
    """Cross-entropy of two classes; `target` are probabilities."""
    return _apply(_reduced(_BCE, reduction), (x, target))  # type: ignore[no-any-return]


@lru_cache(maxsize=64)
def _dropping(p: float) -> Any:
    def dropout(x: Any, key: Any) -> Any:
        keep = _jax.random.bernoulli(key, 1 - p, x.shape)
        return _jnp.where(keep, x / (1 - p), 0).astype(x.dtype)

    return dropout


def dropout(x: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
    """Elements zero with probability `p`, the others grown by as much as is lost."""
    if not 0 <= p <= 1:
        raise ValueError(f"dropout wants a probability between 0 and 1, got {p}")
    if not training or p == 0:
        return x
    if p == 1:
        return x * 0.0
    return _apply(_dropping(p), (x, _next_key()))  # type: ignore[no-any-return]


def embedding(ids: Any, weight: Tensor) -> Tensor:
    """Rows of `weight` `[count, width]`."""
    return _apply(_rows, (ids, weight))  # type: ignore[no-any-return]


def _rows(ids: Any, weight: Any) -> Any:
    return _jnp.take(weight, ids, axis=0)


_rows.__name__ = "embedding"


@lru_cache(maxsize=256)
def _normalising(axes: int, eps: float) -> Any:
    def layer_norm(x: Any, weight: Any = None, bias: Any = None) -> Any:
        over = tuple(range(-axes, 0))
        centred = x - x.mean(over, keepdims=True)
        y = centred * _jax.lax.rsqrt((centred * centred).mean(over, keepdims=True) + eps)
        y = y if weight is None else y * weight
        return y if bias is None else y + bias

    return layer_norm


def layer_norm(
    x: Tensor,
    shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Mean 0 and variance 1 over the last axes, of `shape`; then `* weight + bias`."""
    axes = 1 if isinstance(shape, int) else len(shape)
    rest = [w for w in (weight, bias) if w is not None]
    return _apply(_normalising(axes, eps), (x, *rest))  # type: ignore[no-any-return]


@lru_cache(maxsize=256)
def _convolving(stride: tuple[int, ...], padding: Any, groups: int) -> Any:
    def conv2d(x: Any, weight: Any, bias: Any = None) -> Any:
        y = _jax.lax.conv_general_dilated(
            x,
            weight,
            stride,
            padding,
            dimension_numbers=("NCHW", "OIHW", "NCHW"),
            feature_group_count=groups,
        )
        return y if bias is None else y + bias[:, None, None]

    return conv2d


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    groups: int = 1,
) -> Tensor:
    """Convolve x `[N, C, H, W]` with weight `[O, C/groups, h, w]`."""
    pads = padding.upper() if isinstance(padding, str) else tuple((p, p) for p in _pair(padding))
    rest = () if bias is None else (bias,)
    return _apply(_convolving(_pair(stride), pads, groups), (x, weight, *rest))  # type: ignore[no-any-return]


def _pair(x: Any) -> tuple[int, int]:
    return (x, x) if isinstance(x, int) else tuple(x)


@lru_cache(maxsize=256)
def _pooling(kind: str, window: tuple[int, int], stride: tuple[int, int]) -> Any:
    def pool(x: Any) -> Any:
        sizes, steps = (1, 1, *window), (1, 1, *stride)
        if kind == "max":
            return _jax.lax.reduce_window(x, -_jnp.inf, _jax.lax.max, sizes, steps, "VALID")
        total = _jax.lax.reduce_window(x, 0.0, _jax.lax.add, sizes, steps, "VALID")
        return total / (window[0] * window[1])

    pool.__name__ = f"{kind}_pool2d"
    return pool


def max_pool2d(x: Tensor, kernel_size: Any, stride: Any = None) -> Tensor:
    """Largest of each window of x `[N, C, H, W]`."""
    window = _pair(kernel_size)
    return _apply(_pooling("max", window, _pair(stride or window)), (x,))  # type: ignore[no-any-return]


def avg_pool2d(x: Tensor, kernel_size: Any, stride: Any = None) -> Tensor:
    """Mean of each window of x `[N, C, H, W]`."""
    window = _pair(kernel_size)
    return _apply(_pooling("avg", window, _pair(stride or window)), (x,))  # type: ignore[no-any-return]


def gelu(x: Tensor, approximate: Any = "none") -> Tensor:
    """By the error function, as in PyTorch; `"tanh"` approximates it."""
    return _apply(_GELU[approximate in ("tanh", True)], (x,))  # type: ignore[no-any-return]


_GELU: dict[bool, Any] = {
    False: lambda x: _jax.nn.gelu(x, approximate=False),
    True: lambda x: _jax.nn.gelu(x, approximate=True),
}
for _fun in _GELU.values():
    _fun.__name__ = "gelu"

__getattr__, __dir__ = _namespace(_jax.nn, __name__)
