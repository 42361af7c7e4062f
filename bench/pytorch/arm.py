"""A training step in PyTorch: the same parameters, data and update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import Any

import jax
import numpy as np
import torch

from ..task import CHECK_RATE, RATE, Arm, Task
from .images import mlp, resnet, unet, vae, vit
from .sequences import gpt, lstm, moe
from .setting import prepare

Loss = Callable[..., torch.Tensor]

LOSSES: dict[str, Loss] = {
    "mlp": mlp,
    "resnet": resnet,
    "gpt": gpt,
    "gpt_scan": gpt,
    "lstm": lstm,
    "vit": vit,
    "unet": unet,
    "moe": moe,
    "vae": vae,
}


def arm(task: Task, compiled: bool) -> Arm:
    """Make the step of a model, by `torch.compile` where asked.

    Raises `ArgumentError` where PyTorch can't run as JAX does here.
    """
    device = prepare(compiled)
    loss: Loss = partial(LOSSES[task.model.name], **task.model.settings)
    if task.precision is not None:
        loss = torch.autocast(device.type, getattr(torch, task.precision))(loss)
    update = _update
    if compiled:
        torch.compiler.reset()
        loss, update = torch.compile(loss), torch.compile(update)
    batch = jax.tree.map(partial(_batch, device=device), task.model.portable(task.batch))
    state = _parameters(task, device)

    def step(params: Any, rate: float) -> torch.Tensor:
        leaves = jax.tree.leaves(params)
        value = loss(params, batch)
        update(leaves, torch.autograd.grad(value, leaves), rate)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return value

    def first(rate: float) -> tuple[float, list[np.ndarray[Any, Any]]]:
        params = _parameters(task, device)
        value = step(params, rate)
        return value.item(), [_back(leaf) for leaf in jax.tree.leaves(params)]

    seconds, temp = None, None
    if compiled:
        start = perf_counter()
        first(CHECK_RATE)
        seconds = perf_counter() - start
    if device.type == "cuda":
        step(state, RATE)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(state, RATE)
        temp = torch.cuda.max_memory_allocated() - before
    name = "torch-compile" if compiled else "torch"
    return Arm(name, lambda: step(state, RATE) and None, first, seconds, temp)


def _update(params: Sequence[torch.Tensor], grads: Sequence[torch.Tensor], rate: float) -> None:
    with torch.no_grad():
        for p, g in zip(params, grads, strict=True):
            p.sub_(g, alpha=rate)


def _parameters(task: Task, device: torch.device) -> Any:
    """Our parameters; filters of convolutions with channels in front, as PyTorch has them."""

    def leaf(x: jax.Array) -> torch.Tensor:
        array = np.array(x)
        if array.ndim == 4:
            array = np.ascontiguousarray(array.transpose(3, 2, 0, 1))
        return torch.from_numpy(array).to(device).requires_grad_()

    return jax.tree.map(leaf, task.params)


def _back(leaf: torch.Tensor) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = leaf.detach().cpu().numpy()
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array


def _batch(x: jax.Array, device: torch.device) -> torch.Tensor:
    """Images with channels in front, whole numbers as PyTorch wants labels."""
    array = np.array(x)
    if array.ndim == 4:
        array = np.ascontiguousarray(array.transpose(0, 3, 1, 2))
    if array.dtype.kind == "i":
        array = array.astype(np.int64)
    return torch.from_numpy(array).to(device)
