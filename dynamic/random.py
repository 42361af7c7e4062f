"""Random numbers of one stream, which `manual_seed` begins.

The state is a tensor that holds a key: a compiled step reads and writes it as any other state.
"""

from __future__ import annotations

from typing import Any

import jax

from .modes import no_grad
from .tensor import Tensor

_state: list[Tensor] = []


def state() -> Tensor:
    """The tensor that holds the key of the stream."""
    if not _state:
        with jax.ensure_compile_time_eval():
            _state.append(Tensor(jax.random.key(0)))
        _state[0]._storage.owner = None  # nobody's, though a step that is traced asks first
    return _state[0]


def manual_seed(seed: int) -> None:
    """Begin the stream anew."""
    state()._put(jax.random.key(seed))


def next_key() -> Any:
    """A fresh key, which moves the stream on."""
    new, key = _split(state().value)
    state()._put(new)
    return key


_split = jax.jit(lambda key: tuple(jax.random.split(key)))


def get_rng_state() -> Tensor:
    """The stream's state, to go back to."""
    return Tensor(state().value)


def set_rng_state(saved: Tensor) -> None:
    """Go back to a state of the stream."""
    state()._put(saved.value)


def _drawn(draw: Any, shape: tuple[Any, ...], requires_grad: bool) -> Tensor:
    sizes = shape[0] if len(shape) == 1 and isinstance(shape[0], list | tuple) else shape
    with no_grad():
        new = Tensor(draw(next_key(), tuple(sizes)))
    return new.requires_grad_(requires_grad)


def randn(*shape: Any, requires_grad: bool = False) -> Tensor:
    """Return normal numbers of mean 0 and variance 1; `shape` as numbers or a tuple."""
    return _drawn(jax.random.normal, shape, requires_grad)


def rand(*shape: Any, requires_grad: bool = False) -> Tensor:
    """Return uniform numbers in [0, 1); `shape` as numbers or a tuple."""
    return _drawn(jax.random.uniform, shape, requires_grad)
