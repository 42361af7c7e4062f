"""Layers in PyTorch's functions; images have their channels in front."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Params = Any


def linear(p: Params, x: Tensor) -> Tensor:
    """`x @ w + b`."""
    return x @ p["w"] + p["b"]


def convolve(w: Tensor, x: Tensor, stride: int = 1) -> Tensor:
    """Convolve with the padding that JAX calls `SAME`: more of it behind than in front."""
    behind = []
    for size, kernel in zip(x.shape[:1:-1], w.shape[:1:-1], strict=True):
        padding = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        behind += [padding // 2, padding - padding // 2]
    if behind[0] == behind[1] == behind[2] == behind[3]:
        return F.conv2d(x, w, stride=stride, padding=behind[0])
    return F.conv2d(F.pad(x, behind), w, stride=stride)


def batch_norm(p: Params, x: Tensor) -> Tensor:
    """Normalise by the statistics of this batch."""
    return F.batch_norm(x, None, None, p["scale"], p["bias"], training=True, eps=1e-5)


def layer_norm(p: Params, x: Tensor) -> Tensor:
    """Normalise the last dimension."""
    return F.layer_norm(x, x.shape[-1:], p["scale"], p["bias"], 1e-5)


def transform(p: Params, x: Tensor, heads: int, causal: bool) -> Tensor:
    """A pre-norm block, with PyTorch's fused attention."""
    x = x + attention(p, layer_norm(p["norm1"], x), heads, causal)
    hidden = F.gelu(linear(p["up"], layer_norm(p["norm2"], x)), approximate="tanh")
    return x + linear(p["down"], hidden)


def attention(p: Params, x: Tensor, heads: int, causal: bool) -> Tensor:
    """Attention of `x[batch, length, width]` to itself."""
    batch, length, width = x.shape
    parts = linear(p["qkv"], x).view(batch, length, 3, heads, width // heads)
    q, k, v = parts.permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return linear(p["out"], mixed.transpose(1, 2).reshape(batch, length, width))


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over all labels, in nats."""
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))


def one_hot(index: Tensor, classes: int) -> Tensor:
    """Rows of zeros where `index` is none of the classes, as JAX has it."""
    return (index[..., None] == torch.arange(classes, device=index.device)).to(torch.float32)
