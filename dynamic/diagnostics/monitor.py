"""Gradient norms, and the size and direction of updates, step by step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...compiler.state import watching
from ...ir.errors import ArgumentError
from ..nn.module import Module
from ..tensor import Tensor
from .findings import Finding, exploding, medians, rough, vanishing


@dataclass(frozen=True)
class _Seen:
    """One step: root mean squares by parameter; norms of the whole; None where there is none."""

    gradients: Any
    updates: Any
    norm: Any
    update: Any
    cosine: Any


class Monitor:
    """Gradient norms and updates of some parameters, noted after each step.

    It keeps two copies of the parameters. Nothing is read off the device until it is asked for.
    """

    def __init__(self, parameters: Module | Iterable[Any]) -> None:
        """Of a module, of tensors, or of pairs of a name and a tensor."""
        many = parameters.named_parameters() if isinstance(parameters, Module) else parameters
        listed = [p if isinstance(p, tuple) else (f"parameter {i}", p) for i, p in enumerate(many)]
        self.names: tuple[str, ...] = tuple(name for name, _ in listed)
        self._parameters: list[Tensor] = [p for _, p in listed]
        if not self._parameters:
            raise ArgumentError("Monitor wants parameters, got none")
        self._before = _copied([p.value for p in self._parameters])
        self._move: Any = None
        self._seen: list[_Seen] = []

    def observe(self) -> None:
        """Note the gradients that are there, and how far the parameters went since last time.

        Raises `ArgumentError` in a step that is traced, which has no values: call it after.
        """
        if watching.owner is not None:
            raise ArgumentError("Monitor.observe looks at values: call it after the compiled step")
        grads = [None if p._grad is None else p._grad.value for p in self._parameters]
        values = [p.value for p in self._parameters]
        seen, self._before, self._move = _looked(values, self._before, self._move, grads)
        self._seen.append(_Seen(*seen))

    def _column(self, name: str) -> np.ndarray[Any, Any]:
        """One quantity of all steps, as float64[steps] or float64[steps, parameters]."""
        return np.array([jax.device_get(getattr(each, name)) for each in self._seen], np.float64)

    @property
    def gradients(self) -> np.ndarray[Any, Any]:
        """Root mean squares of gradients, float64[steps, parameters]; NaN where there was none."""
        return self._column("gradients").reshape(-1, len(self.names))

    @property
    def updates(self) -> np.ndarray[Any, Any]:
        """Root mean squares of updates beside those of the parameters, float64[steps, ...]."""
        return self._column("updates").reshape(-1, len(self.names))

    @property
    def norms(self) -> np.ndarray[Any, Any]:
        """Norms of the whole gradient, float64[steps]."""
        return self._column("norm")

    @property
    def update_norms(self) -> np.ndarray[Any, Any]:
        """Norms of the whole update, float64[steps]."""
        return self._column("update")

    @property
    def cosines(self) -> np.ndarray[Any, Any]:
        """Of each update with the one before, float64[steps]; 0 at the first."""
        return self._column("cosine")

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What is out of the ordinary: vanishing and exploding gradients, rough updates."""
        if not self._seen:
            return ()
        found = (*vanishing(self.gradients, self.names), *exploding(self.norms))
        return (*found, *rough(self.update_norms, self.cosines))

    def __str__(self) -> str:
        """Medians over the steps by parameter, and the findings."""
        width = max(9, *map(len, self.names))
        rows = [f"{'parameter':{width}}  gradient (rms)  update / parameter"]
        columns = zip(self.names, medians(self.gradients), medians(self.updates), strict=True)
        rows += [f"{name:{width}}  {g:14.2e}  {u:18.2e}" for name, g, u in columns]
        return "\n".join([*rows, *map(str, self.findings)])


def _copy(values: Sequence[Any]) -> list[Any]:
    return [jnp.copy(x) for x in values]


_copied = jax.jit(_copy)


@jax.jit
def _looked(values: Any, before: Any, move: Any, grads: Any) -> tuple[Any, Any, Any]:
    """Numbers of a step; copies of the parameters; their move since before."""
    step = [jnp.asarray(x - y, jnp.float32) for x, y in zip(values, before, strict=True)]
    size = _norm(step)
    turned = jnp.float32(0)
    if move is not None:
        both = size * _norm(move)
        dots = sum(jnp.vdot(a, b) for a, b in zip(step, move, strict=True))
        turned = jnp.where(both > 0, dots / jnp.where(both > 0, both, 1), 0)
    gradients = jnp.stack([jnp.float32(jnp.nan) if g is None else _rms(g) for g in grads])
    sizes = jnp.stack([_rms(x) for x in before])
    updates = jnp.stack([_rms(x) for x in step]) / jnp.where(sizes > 0, sizes, 1)
    norm = _norm([g for g in grads if g is not None])
    return (gradients, updates, norm, size, turned), _copy(values), step


def _rms(x: Any) -> Any:
    return jnp.sqrt(jnp.mean(jnp.square(jnp.abs(x).astype(jnp.float32))))


def _norm(arrays: Sequence[Any]) -> Any:
    squares = [jnp.square(jnp.abs(x).astype(jnp.float32)).sum() for x in arrays]
    return jnp.sqrt(sum(squares, jnp.float32(0)))
