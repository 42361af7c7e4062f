"""The user's word on derivatives: stop them, give them by another function, recompute for them.

    y = stop_gradient(x)          value x      derivative 0
    y = straight_through(f)(x)    value f(x)   derivative of y = x
    y = surrogate(f, g)(x)        value f(x)   derivative of y = g(x)
    y = checkpoint(f)(x)          value f(x)   derivative of y = f(x), from x alone

They are ordinary JAX functions: they hold in and outside `bp.compile`, under `jax.jit`, `jax.vmap`,
`jax.lax.scan`, and for gradients by `bp.grad` and by `jax.grad` alike.

Source: straight-through estimators, Bengio, Léonard and Courville 2013; surrogate gradients of
spiking networks, Neftci, Mostafa and Zenke 2019; checkpoints, Griewank and Walther 2000.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ..ir.errors import ArgumentError
from ..ir.types import is_inexact, type_of
from .diagnose import caller_line, check_results, defined_at, is_array

Function = Callable[..., Any]


def stop_gradient(x: Any) -> Any:
    """Return the pytree `x`, which derivatives do not pass.

    Leaves that are no arrays (functions, strings) stay as they are.
    """
    return jax.tree.map(lambda leaf: jax.lax.stop_gradient(leaf) if is_array(leaf) else leaf, x)


def straight_through(f: Function) -> Function:
    """Return a function with the value of `f` and the gradient of the identity.

        quantise = bp.straight_through(jnp.round)

    Args:
        f: from one pytree of arrays to another of the same tree, shapes and dtypes. It need not
            be differentiable.

    Raises:
        ArgumentError: the value of `f` differs from its argument in tree, shape or dtype; raised
            by a call.
    """
    _check_function("straight_through", f)

    @functools.wraps(f)
    def wrapped(x: Any) -> Any:
        what = f"straight_through wants {defined_at(f)} to return the type of its argument"
        return _valued_as(f(stop_gradient(x)), x, f, what)

    return wrapped


def surrogate(f: Function, g: Function) -> Function:
    """Return a function with the value of `f` and the gradient of `g`.

        spike = bp.surrogate(lambda v: (v > 0).astype(v.dtype), jax.nn.sigmoid)

    Args:
        f: any function of pytrees of arrays; it need not be differentiable.
        g: a differentiable function of the same arguments, whose result has the same tree,
            shapes and dtypes. Higher derivatives are those of `g` too.

    Raises:
        ArgumentError: the results differ in tree, shape or dtype; raised by a call.
    """
    _check_function("surrogate", f)
    _check_function("surrogate", g)

    @functools.wraps(f)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        still, named = stop_gradient((args, kwargs))
        what = f"surrogate wants {defined_at(f)} and {defined_at(g)} to return the same types"
        return _valued_as(f(*still, **named), g(*args, **kwargs), f, what)

    return wrapped


def checkpoint(f: Function, policy: Callable[..., Any] | None = None) -> Function:
    """Return `f` with the mark that its backward pass computes it again from its arguments.

    Our own rule of the mark, `remat2`, does so; what is forward only is not touched.

    Args:
        f: any function of pytrees. Python numbers, strings and functions among its arguments are
            settings: they reach `f` as they are.
        policy: one of `jax.checkpoint_policies`: what is saved nevertheless. None saves nothing
            but the arguments.

    Raises:
        ArgumentError: `f` or `policy` is no function.
    """
    _check_function("checkpoint", f)
    if policy is not None:
        _check_function("checkpoint's policy", policy)

    @functools.wraps(f)
    def whole(*args: Any, **kwargs: Any) -> Any:
        return f(*args, **kwargs)

    marked = jax.checkpoint(whole, policy=policy)

    @functools.wraps(f)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        leaves, tree = jax.tree.flatten((args, kwargs))
        arrays = {i: x for i, x in enumerate(leaves) if isinstance(x, _ARRAYS)}
        if len(arrays) == len(leaves):
            return marked(*args, **kwargs)  # traced once for all calls of the same types

        def of_arrays(given: dict[int, Any]) -> Any:
            full = [given.get(i, x) for i, x in enumerate(leaves)]
            args, kwargs = jax.tree.unflatten(tree, full)
            return f(*args, **kwargs)

        return jax.checkpoint(of_arrays, policy=policy)(arrays)

    return wrapped


_ARRAYS = (jax.Array, np.ndarray, np.generic)


@jax.custom_jvp
def _valued(slope: Any, value: Any) -> Any:
    """`value`, with the derivative of `slope`."""
    return value


@_valued.defjvp
def _valued_jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
    return _valued(*primals), tangents[0]


def _valued_as(value: Any, slope: Any, f: Function, what: str) -> Any:
    """Give each leaf of `value` the derivative of the leaf of `slope` that stands in its place."""
    check_results(f, value)
    values = jax.tree.leaves(value)
    tree: Any = jax.tree.structure(value)
    other: Any = jax.tree.structure(slope)
    if tree != other:
        raise ArgumentError(f"{what}, got {tree} in place of {other}\n  at {caller_line()}")
    found = []
    for x, (path, y) in zip(values, jax.tree.leaves_with_path(slope), strict=True):
        new, old = type_of(jax.typeof(x)).strong(), type_of(jax.typeof(y)).strong()
        if new != old:
            place = f" at {jax.tree_util.keystr(path)}" if path else ""
            raise ArgumentError(
                f"{what}, got {new} in place of {old}{place}\n  at {caller_line()}; cast with "
                "astype, or reshape the one to the other"
            )
        still = jax.lax.stop_gradient(x)
        found.append(_valued(y, still) if is_inexact(new.dtype) else still)
    return jax.tree.unflatten(tree, found)


def _check_function(name: str, f: Any) -> None:
    if not callable(f):
        raise ArgumentError(
            f"{name} wants a function, got {type(f).__name__}\n  at {caller_line()}"
        )
