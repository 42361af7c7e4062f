"""The models of tokens in PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .layers import cross_entropy, layer_norm, linear, one_hot, transform

Params = Any
Batch = Any


def gpt(params: Params, tokens: Tensor, heads: int, scanned: bool) -> Tensor:
    """A pre-norm GPT; layers that are stacked are taken apart once."""
    x = F.embedding(tokens[:, :-1], params["embedding"]) + params["position"]
    for p in _layers(params["blocks"]) if scanned else params["blocks"]:
        x = transform(p, x, heads, causal=True)
    x = layer_norm(params["norm"], x)
    return cross_entropy(linear(params["head"], x), tokens[:, 1:])


def _layers(stacked: Params) -> Sequence[Params]:
    """Without JAX's trees, which `torch.compile` can't look into."""
    if isinstance(stacked, Tensor):
        parts: Sequence[Params] = stacked.unbind()
        return parts
    apart = {name: _layers(each) for name, each in stacked.items()}
    return [dict(zip(apart, each, strict=True)) for each in zip(*apart.values(), strict=True)]


def lstm(params: Params, tokens: Tensor) -> Tensor:
    """An LSTM between an embedding and a head, in PyTorch's fused form."""
    xs = F.embedding(tokens[:, :-1], params["embedding"]).transpose(0, 1)
    hidden = params["hidden"]
    zeros = xs.new_zeros((1, xs.shape[1], hidden.shape[0]))
    bias = params["input"]["b"]
    weights = [params["input"]["w"].t(), hidden.t(), bias, torch.zeros_like(bias)]
    weights = [weight.contiguous() for weight in weights]
    hs = torch.lstm(xs, (zeros, zeros), weights, True, 1, 0.0, True, False, False)[0]
    return cross_entropy(linear(params["head"], hs), tokens[:, 1:].t())


def moe(params: Params, batch: Batch, experts: int, chosen: int, capacity: int) -> Tensor:
    """Token-choice routing: each token goes to its best experts, up to their capacity."""
    x, labels = batch
    gates = F.softmax(x @ params["router"], -1)
    weights, index = gates.topk(chosen)
    weights = weights / weights.sum(-1, keepdim=True)
    onto = one_hot(index, experts)
    flat = onto.transpose(0, 1).reshape(-1, experts)
    place = flat.cumsum(0) * flat - 1
    slots = one_hot(place.long(), capacity).view(chosen, len(x), experts, capacity)
    combine = torch.einsum("tk,ktec->tec", weights, slots)
    inputs = torch.einsum("tec,td->ecd", (combine > 0).to(x.dtype), x)
    hidden = F.gelu(torch.bmm(inputs, params["up"]), approximate="tanh")
    outputs = torch.bmm(hidden, params["down"])
    x = layer_norm(params["norm"], x + torch.einsum("tec,ecd->td", combine, outputs))
    balance = experts * (gates.mean(0) * onto[:, 0].mean(0)).sum()
    return cross_entropy(linear(params["head"], x), labels) + 0.01 * balance
