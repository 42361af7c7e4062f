"""`backward`, `grad` and `Function`: the graph that was recorded, walked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..ir.errors import AutogradError
from ..ir.types import is_complex
from .anomaly import detect_anomaly
from .engine import run_backward
from .function import Function, once_differentiable
from .node import Edge
from .saved import saved_tensors_hooks
from .tensor import Tensor


def backward(
    tensors: Tensor | Sequence[Tensor],
    grad_tensors: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    inputs: Tensor | Sequence[Tensor] | None = None,
) -> None:
    """Sum the gradients of `tensors` into the leaves' `.grad`; see `Tensor.backward`."""
    many = _listed(tensors)
    seeds = _listed(grad_tensors) if grad_tensors is not None else [None] * len(many)
    roots = _roots(many, seeds)
    captured = None
    if inputs is not None:
        chosen = _listed(inputs)
        if not chosen:
            raise AutogradError("backward wants at least one tensor in inputs=, got none")
        captured = {_key(x): x for x in chosen}
    retain = create_graph if retain_graph is None else retain_graph
    run_backward(roots, retain=retain, record=create_graph, captured=captured)


def grad(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    grad_outputs: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    allow_unused: bool | None = None,
    is_grads_batched: bool = False,
    materialize_grads: bool = False,
) -> tuple[Tensor | None, ...]:
    """Return the gradients of the sum of `outputs` by `inputs`; no `.grad` is touched.

    Args:
        outputs: tensors that were computed from `inputs`.
        inputs: tensors that require grad.
        grad_outputs: cotangents of the outputs; 1 by default for one element.
        retain_graph: keep what was saved, for another walk; by default as `create_graph`.
        create_graph: record the walk, so that the gradients can be differentiated.
        allow_unused: give None for an input that no output depends on, instead of an error.
        is_grads_batched: the cotangents have one more axis, the first; so have the gradients.
        materialize_grads: give zeros in place of None.

    Raises:
        AutogradError: an input was not used, or does not require grad; as of `backward`.
    """
    many, wanted = _listed(outputs), _listed(inputs)
    seeds = _listed(grad_outputs) if grad_outputs is not None else [None] * len(many)
    if allow_unused is False and materialize_grads:
        raise ValueError("grad with materialize_grads=True wants allow_unused left as it is")
    for x in wanted:
        if not x._requires:
            raise AutogradError("grad wants inputs that require grad, got one that does not")
    retain = create_graph if retain_graph is None else retain_graph
    if is_grads_batched:
        return _batched(many, wanted, seeds, retain, allow_unused or materialize_grads)
    captured = {_key(x): x for x in wanted}
    found = run_backward(
        _roots(many, seeds), retain=retain, record=create_graph, captured=captured, accumulate=False
    )
    grads: list[Tensor | None] = []
    for x in wanted:
        ct = found.get(_key(x))
        if ct is None and materialize_grads:
            ct = jnp.zeros(x.shape, x.dtype)
        if ct is None and not allow_unused:
            raise AutogradError(
                f"grad: an input of {x.dtype}{list(x.shape)} was not used to compute the outputs\n"
                "  pass allow_unused=True for None in its place"
            )
        grads.append(ct if ct is None or isinstance(ct, Tensor) else Tensor(ct))
    return tuple(grads)


def _batched(
    many: Sequence[Tensor],
    wanted: Sequence[Tensor],
    seeds: Sequence[Any],
    retain: bool,
    allow_unused: bool,
) -> tuple[Tensor | None, ...]:
    """One walk under `vmap`."""
    arrays = [x.value if isinstance(x, Tensor) else jnp.asarray(x) for x in seeds]
    captured = {_key(x): x for x in wanted}

    def one(cts: Sequence[Any]) -> list[Any]:
        roots = [(_edge(x), ct) for x, ct in zip(many, cts, strict=True)]
        found = run_backward(roots, retain=True, record=False, captured=captured, accumulate=False)
        return [found.get(_key(x)) for x in wanted]

    grads = jax.vmap(one)(arrays)
    if any(g is None for g in grads) and not allow_unused:
        raise AutogradError(
            "grad: an input was not used to compute the outputs\n"
            "  pass allow_unused=True for None in its place"
        )
    return tuple(None if g is None else Tensor(g) for g in grads)


def _listed(tensors: Any) -> list[Any]:
    return list(tensors) if isinstance(tensors, list | tuple) else [tensors]


def _edge(x: Tensor) -> Edge:
    edge = x._edge() if isinstance(x, Tensor) else None
    if edge is None:
        raise AutogradError(
            "backward from a tensor that does not require grad and has no grad_fn\n"
            "  nothing was recorded: do its inputs require grad, and is it out of no_grad()?"
        )
    return edge


def _key(x: Tensor) -> tuple[int, int]:
    source, k = _edge(x)
    return id(source), k


def _roots(tensors: Sequence[Tensor], seeds: Sequence[Any]) -> list[tuple[Edge, Any]]:
    if len(tensors) != len(seeds):
        raise AutogradError(
            f"backward wants one gradient for each tensor, got {len(seeds)} for {len(tensors)}"
        )
    return [(_edge(x), _seed(x, seed)) for x, seed in zip(tensors, seeds, strict=True)]


def _seed(x: Tensor, seed: Any) -> Any:
    """The cotangent to begin with."""
    if seed is None:
        return _one(x.value)
    if not isinstance(seed, Tensor | jax.Array):
        raise TypeError(f"gradient wants a tensor or None, got {type(seed).__name__}")
    if tuple(seed.shape) != x.shape:
        raise AutogradError(
            f"gradient wants the tensor's shape {list(x.shape)}, got {list(seed.shape)}"
        )
    if is_complex(seed.dtype) != is_complex(x.dtype):
        raise AutogradError(
            f"gradient wants a dtype that is real or complex as the tensor's {x.dtype}, got "
            f"{seed.dtype}"
        )
    if isinstance(seed, Tensor) and seed._requires:
        return seed
    array = seed.value if isinstance(seed, Tensor) else seed
    return array if array.dtype == x.dtype else array.astype(x.dtype)


_ones: dict[Any, Any] = {}


def _one(x: Any) -> Any:
    """A cached array of ones for an array of one real element."""
    key = x.shape, x.dtype
    if key not in _ones:
        if x.size != 1:
            raise AutogradError(
                f"backward without gradient= wants a tensor of one element, got "
                f"{list(x.shape)}\n  reduce it with .sum() or .mean(), or give its cotangent"
            )
        if is_complex(x.dtype):
            raise AutogradError("backward without gradient= wants a real tensor, got a complex one")
        with jax.ensure_compile_time_eval():  # no tracer, whoever asks first
            _ones[key] = jnp.ones(*key)
    return _ones[key]


__all__ = [
    "Function",
    "backward",
    "detect_anomaly",
    "grad",
    "once_differentiable",
    "saved_tensors_hooks",
]
