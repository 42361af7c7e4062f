"""Layers and losses, with PyTorch's arguments, shapes and initial distributions."""

from __future__ import annotations

from math import prod, sqrt
from typing import Any

import jax
import jax.numpy as jnp

from ..modes import no_grad
from ..random import next_key
from ..tensor import Tensor
from . import functional as F
from .module import Buffer, Module, Parameter


def _uniform(shape: tuple[int, ...], bound: float) -> Parameter:
    return Parameter(jax.random.uniform(next_key(), shape, minval=-bound, maxval=bound))


class Linear(Module):
    """`x @ weight.T + bias`; weight `[out, in]`."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        """Uniform within 1/sqrt(in)."""
        self.in_features, self.out_features = in_features, out_features
        near = 1 / sqrt(in_features) if in_features else 0.0
        self.weight = _uniform((out_features, in_features), near)
        self.bias = _uniform((out_features,), near) if bias else None

    def forward(self, x: Any) -> Tensor:
        """X `[..., in]` to `[..., out]`."""
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        """Sizes."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


class Conv2d(Module):
    """Convolution of `[N, C, H, W]`; weight `[O, C/groups, h, w]`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        """Uniform within 1/sqrt(fan in)."""
        size = (kernel_size, kernel_size) if isinstance(kernel_size, int) else tuple(kernel_size)
        shape = (out_channels, in_channels // groups, *size)
        near = 1 / sqrt(prod(shape[1:]))
        self.weight = _uniform(shape, near)
        self.bias = _uniform((out_channels,), near) if bias else None
        self.stride, self.padding, self.groups = stride, padding, groups

    def forward(self, x: Any) -> Tensor:
        """Convolve."""
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.groups)


class Embedding(Module):
    """Rows of a table by number."""

    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        """Normal."""
        self.weight = Parameter(jax.random.normal(next_key(), (num_embeddings, embedding_dim)))

    def forward(self, ids: Any) -> Tensor:
        """Ids `[...]` to `[..., width]`."""
        return F.embedding(ids, self.weight)


class LayerNorm(Module):
    """Mean 0 and variance 1 over the last axes, then scaled and shifted."""

    def __init__(self, normalized_shape: Any, eps: float = 1e-5) -> None:
        """Scale 1, shift 0."""
        size = normalized_shape
        self.shape = (size,) if isinstance(size, int) else tuple(size)
        self.weight, self.bias = Parameter(jnp.ones(self.shape)), Parameter(jnp.zeros(self.shape))
        self.eps = eps

    def forward(self, x: Any) -> Tensor:
        """Normalise."""
        return F.layer_norm(x, self.shape, self.weight, self.bias, self.eps)


class BatchNorm2d(Module):
    """Mean 0 and variance 1 over a batch `[N, C, H, W]`, by channel; running ones in `eval()`."""

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        """Scale 1, shift 0."""
        self.weight = Parameter(jnp.ones(num_features))
        self.bias = Parameter(jnp.zeros(num_features))
        self.running_mean = Buffer(jnp.zeros(num_features))
        self.running_var = Buffer(jnp.ones(num_features))
        self.num_batches_tracked = Buffer(jnp.zeros((), int))
        self.eps, self.momentum = eps, momentum

    def forward(self, x: Any) -> Tensor:
        """Normalise."""
        mean: Any = self.running_mean
        variance: Any = self.running_var
        if self.training:
            mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3))
            self._follow(x, mean, variance)
        scale = (variance + self.eps) ** -0.5 * self.weight
        shift = self.bias - mean * scale
        return x * scale[:, None, None] + shift[:, None, None]  # type: ignore[no-any-return]

    def _follow(self, x: Any, mean: Any, variance: Any) -> None:
        """Move the running statistics; the variance is that of the population."""
        count = x.numel() / x.shape[1]
        with no_grad():
            for held, new, by in (
                (self.running_mean, mean, 1.0),
                (self.running_var, variance, count / max(count - 1, 1)),
            ):
                held.copy_(held * (1 - self.momentum) + new.detach() * (self.momentum * by))
            self.num_batches_tracked.add_(1)


class Dropout(Module):
    """Zeros at random, in training."""

    def __init__(self, p: float = 0.5) -> None:
        """With probability `p`."""
        self.p = p

    def forward(self, x: Any) -> Tensor:
        """Drop."""
        return F.dropout(x, self.p, self.training)


class Flatten(Module):
    """All axes but the first as one."""

    def forward(self, x: Any) -> Tensor:
        """Flatten."""
        return x.flatten(1)  # type: ignore[no-any-return]


class MaxPool2d(Module):
    """Largest of each window."""

    def __init__(self, kernel_size: Any, stride: Any = None) -> None:
        """The stride is the window's size by default."""
        self.kernel_size, self.stride = kernel_size, stride

    def forward(self, x: Any) -> Tensor:
        """Pool."""
        return F.max_pool2d(x, self.kernel_size, self.stride)


class AvgPool2d(MaxPool2d):
    """Mean of each window."""

    def forward(self, x: Any) -> Tensor:
        """Pool."""
        return F.avg_pool2d(x, self.kernel_size, self.stride)


class CrossEntropyLoss(Module):
    """See `functional.cross_entropy`."""

    def __init__(self, reduction: str = "mean") -> None:
        """`"mean"`, `"sum"` or `"none"`."""
        self.reduction = reduction

    def forward(self, logits: Any, labels: Any) -> Tensor:
        """The loss."""
        return F.cross_entropy(logits, labels, self.reduction)


class MSELoss(CrossEntropyLoss):
    """See `functional.mse_loss`."""

    def forward(self, logits: Any, labels: Any) -> Tensor:
        """The loss."""
        return F.mse_loss(logits, labels, self.reduction)


def _activation(name: str, fun: Any) -> Any:
    return type(name, (Module,), {"forward": lambda self, x: fun(x), "__doc__": f"`{name}`."})


ReLU = _activation("ReLU", F.relu)
GELU = _activation("GELU", F.gelu)
SiLU = _activation("SiLU", F.silu)
Tanh = _activation("Tanh", F.tanh)
Sigmoid = _activation("Sigmoid", F.sigmoid)
