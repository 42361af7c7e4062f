"""The models of images in PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .layers import batch_norm, convolve, cross_entropy, layer_norm, linear, transform

Params = Any
Batch = Any


def mlp(params: Params, batch: Batch) -> Tensor:
    """Dense layers with relu between them."""
    x, labels = batch
    for p in params[:-1]:
        x = F.relu(linear(p, x))
    return cross_entropy(linear(params[-1], x), labels)


def resnet(params: Params, batch: Batch) -> Tensor:
    """A stem, and a block of two convolutions in each stage."""
    x, labels = batch
    x = F.relu(batch_norm(params["norm"], convolve(params["stem"], x)))
    for i, p in enumerate(params["blocks"]):
        stride = 2 if i else 1
        y = F.relu(batch_norm(p["norm1"], convolve(p["conv1"], x, stride)))
        y = batch_norm(p["norm2"], convolve(p["conv2"], y))
        x = F.relu(y + (convolve(p["shortcut"], x, stride) if "shortcut" in p else x))
    return cross_entropy(linear(params["head"], x.mean((2, 3))), labels)


def vit(params: Params, batch: Batch, heads: int, patch: int) -> Tensor:
    """A vision transformer."""
    images, labels = batch
    x = convolve(params["patch"], images, patch).flatten(2).transpose(1, 2) + params["position"]
    for p in params["blocks"]:
        x = transform(p, x, heads, causal=False)
    return cross_entropy(linear(params["head"], layer_norm(params["norm"], x).mean(1)), labels)


def unet(params: Params, batch: Batch) -> Tensor:
    """Two convolutions a level, and skips."""
    x, target = batch
    skips = []
    for p in params["down"][:-1]:
        x = _level(p, x)
        skips.append(x)
        x = F.max_pool2d(x, 2)
    x = _level(params["down"][-1], x)
    for widen, p in zip(params["widen"], params["up"], strict=True):
        # JAX's transposed convolution does not turn its filters, PyTorch's does.
        wide = F.conv_transpose2d(x, widen.transpose(0, 1).flip(2, 3), stride=2)
        x = _level(p, torch.cat([wide, skips.pop()], 1))
    return F.binary_cross_entropy_with_logits(convolve(params["head"], x), target)


def _level(p: Params, x: Tensor) -> Tensor:
    x = F.relu(convolve(p["conv1"], x) + p["bias1"][:, None, None])
    return F.relu(convolve(p["conv2"], x) + p["bias2"][:, None, None])


def vae(params: Params, batch: Batch) -> Tensor:
    """Negative evidence bound; the noise is given."""
    x, noise = batch
    h = F.silu(linear(params["encode"], x))
    mean, logvar = linear(params["posterior"], h).chunk(2, -1)
    z = mean + torch.exp(0.5 * logvar) * noise
    logits = linear(params["pixels"], F.silu(linear(params["decode"], z)))
    nll = F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)
    kl = 0.5 * (logvar.exp() + mean**2 - 1 - logvar).sum(-1)
    return (nll + kl).mean()
