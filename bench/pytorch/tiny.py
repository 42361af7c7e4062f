"""The tiny step of the suite `contrast`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from .setting import prepare

Array = np.ndarray[Any, Any]


def tiny(
    x: Array, y: Array, arrays: Sequence[Array], rate: float, compiled: bool
) -> Callable[[], Any]:
    """An MLP of two layers and its step; gives the loss. Weights are `[out, in]`."""
    (hidden, columns), classes = arrays[0].shape, len(arrays[3])
    prepare(compiled)
    model = torch.nn.Sequential(
        torch.nn.Linear(columns, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, classes)
    )
    for p, array in zip(model.parameters(), arrays, strict=True):
        p.data = torch.tensor(array)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    inputs, labels = torch.tensor(x), torch.tensor(y)

    def step() -> Any:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        return loss

    return torch.compile(step) if compiled else step
