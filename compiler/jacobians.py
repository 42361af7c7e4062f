"""`bp.jacrev`, `bp.jacfwd`, `bp.hessian` and `bp.hvp`: whole Jacobians, and products with Hessians.

A Jacobian is a pullback or a derivative mapped over a basis by `jax.vmap`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..ir.errors import ArgumentError, DifferentiationError
from ..ir.types import is_complex, is_inexact, type_of
from .derivatives import jvp, linearize, vjp
from .diagnose import caller_line, defined_at
from .gradients import chosen_arguments, grad, of_chosen, positions_of

Argnums = int | Sequence[int]


def jacrev(
    fun: Callable[..., Any],
    argnums: Argnums = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
) -> Callable[..., Any]:
    """Return a function that evaluates the Jacobian of `fun` row by row, by reverse mode.

    Cheaper than `jacfwd` where `fun` has more inputs than outputs.

    Args:
        fun: a function of arrays; takes and returns pytrees.
        argnums: positions of the arguments to differentiate by.
        has_aux: `fun` returns a pair of what is differentiated and any pytree.
        holomorphic: `fun` is holomorphic; its inputs and outputs are complex.
        allow_int: integer inputs are accepted; their Jacobian is float0.

    Returns:
        A function that returns, for each leaf `y` of the output's tree, the argument's tree with
        leaves of shape `y.shape + x.shape`; with `has_aux` a pair of that and aux.

    Raises:
        DifferentiationError: an input or output is not of the dtype that the options ask for.
    """
    positions = positions_of(argnums)

    @functools.wraps(fun)
    def jacobian(*args: Any, **kwargs: Any) -> Any:
        where = caller_line()
        chosen = chosen_arguments(fun, args, positions, where)
        _check(fun, chosen, "jacrev", "input", holomorphic, where, allow_int=allow_int)
        found = vjp(of_chosen(fun, args, kwargs, positions), *chosen, has_aux=has_aux)
        y, pullback, *aux = found
        _check(fun, y, "jacrev", "output", holomorphic, where)
        rows = jax.vmap(pullback)(_basis(y))
        picked = rows if np.iterable(argnums) else rows[0]
        outer, shapes = jax.tree.structure(y), list(map(np.shape, jax.tree.leaves(y)))
        split = jax.tree.map(lambda x: _cut(x, shapes), picked)
        found = jax.tree.transpose(jax.tree.structure(picked), outer, _as_trees(split, outer))
        return (found, aux[0]) if has_aux else found

    return jacobian


def jacfwd(
    fun: Callable[..., Any],
    argnums: Argnums = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
) -> Callable[..., Any]:
    """Return a function that evaluates the Jacobian of `fun` column by column, by forward mode.

    Cheaper than `jacrev` where `fun` has more outputs than inputs.

    Args:
        fun: a function of arrays; takes and returns pytrees.
        argnums: positions of the arguments to differentiate by.
        has_aux: `fun` returns a pair of what is differentiated and any pytree.
        holomorphic: `fun` is holomorphic; its inputs and outputs are complex.

    Returns:
        A function that returns, for each leaf `y` of the output's tree, the argument's tree with
        leaves of shape `y.shape + x.shape`; with `has_aux` a pair of that and aux.

    Raises:
        DifferentiationError: an input or output is not of the dtype that the options ask for.
    """
    positions = positions_of(argnums)

    @functools.wraps(fun)
    def jacobian(*args: Any, **kwargs: Any) -> Any:
        where = caller_line()
        chosen = chosen_arguments(fun, args, positions, where)
        _check(fun, chosen, "jacfwd", "input", holomorphic, where, real=not holomorphic)
        y, linear, *aux = linearize(
            of_chosen(fun, args, kwargs, positions), *chosen, has_aux=has_aux
        )
        _check(fun, y, "jacfwd", "output", holomorphic, where, allow_int=True)
        columns = jax.vmap(linear, out_axes=-1)(*_basis(chosen))
        picked = chosen if np.iterable(argnums) else chosen[0]
        inner = jax.tree.structure(picked)
        shapes = list(map(np.shape, jax.tree.leaves(picked)))
        found = jax.tree.map(
            lambda x: jax.tree.unflatten(inner, _cut(x, shapes, last=True)), columns
        )
        return (found, aux[0]) if has_aux else found

    return jacobian


def hessian(
    fun: Callable[..., Any],
    argnums: Argnums = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
) -> Callable[..., Any]:
    """Return a function that evaluates the Hessian of `fun`, forward over reverse.

    Args:
        fun: a function of arrays; takes and returns pytrees.
        argnums: positions of the arguments to differentiate by.
        has_aux: `fun` returns a pair of what is differentiated and any pytree.
        holomorphic: `fun` is holomorphic; its inputs and outputs are complex.

    Returns:
        A function that returns, for each leaf `y` of the output's tree, the argument's tree of
        such trees, with leaves of shape `y.shape + x.shape + x.shape`; with `has_aux` a pair of
        that and aux.

    Raises:
        DifferentiationError: an input or output is not of the dtype that the options ask for.
    """
    return jacfwd(
        jacrev(fun, argnums, has_aux, holomorphic),
        argnums,
        has_aux=has_aux,
        holomorphic=holomorphic,
    )


def hvp(fun: Callable[..., Any], primals: Sequence[Any], tangents: Sequence[Any]) -> Any:
    """Evaluate the product of the Hessian of a scalar function with a vector.

        H t = d/dε grad f(x + ε t), forward over reverse; costs a few evaluations of `fun`

    Args:
        fun: returns a scalar of floating dtype.
        primals: tuple of arguments, pytrees of floating arrays.
        tangents: tuple of the same trees, shapes and dtypes.

    Returns:
        The tree of the argument; with several arguments a tuple of their trees.

    Raises:
        ArgumentError: tangents do not fit the primals.
        DifferentiationError: `fun` returns no scalar.

    Source: Pearlmutter, "Fast exact multiplication by the Hessian", 1994.
    """
    if not isinstance(primals, tuple | list):
        raise ArgumentError(
            f"hvp wants primals as a tuple of arguments, got {type(primals).__name__}\n"
            f"  at {caller_line()}; write bp.hvp(f, (x,), (t,))"
        )
    argnums = 0 if len(primals) == 1 else tuple(range(len(primals)))
    return jvp(grad(fun, argnums), primals, tangents)[1]


def _basis(tree: Any) -> Any:
    """Return the unit vectors of a tree's space, along a new first axis of every leaf."""
    leaves, structure = jax.tree.flatten(tree)
    total = sum(np.size(x) for x in leaves)
    found: list[Any] = []
    start = 0
    for x in leaves:
        kind = type_of(jax.typeof(x))
        if is_inexact(kind.dtype):
            block = jnp.eye(total, np.size(x), k=-start, dtype=kind.dtype)
            found.append(block.reshape(total, *kind.shape))
        else:
            found.append(np.zeros((total, *kind.shape), jax.dtypes.float0))
        start += np.size(x)
    return jax.tree.unflatten(structure, found)


def _cut(x: Any, shapes: Sequence[tuple[int, ...]], *, last: bool = False) -> list[Any]:
    """Cut the first axis of x, or its last, into pieces of the given shapes, laid end to end."""
    found, start = [], 0
    for shape in shapes:
        end = start + math.prod(shape)
        if last:
            found.append(x[..., start:end].reshape(*x.shape[:-1], *shape))
        else:
            found.append(x[start:end].reshape(*shape, *x.shape[1:]))
        start = end
    return found


def _as_trees(split: Any, outer: Any) -> Any:
    """Turn the lists that stand in place of leaves into trees of the output."""
    return jax.tree.map(
        lambda parts: jax.tree.unflatten(outer, parts), split, is_leaf=lambda x: type(x) is list
    )


def _check(
    fun: Callable[..., Any],
    tree: Any,
    what: str,
    side: str,
    holomorphic: bool,
    where: str,
    *,
    allow_int: bool = False,
    real: bool = False,
) -> None:
    """Raise `DifferentiationError` for a leaf whose dtype the options do not allow."""
    for leaf in jax.tree.leaves(tree):
        kind = type_of(jax.typeof(leaf))
        if holomorphic and not is_complex(kind.dtype):
            wanted = f"complex {side}s with holomorphic=True"
        elif real and is_complex(kind.dtype):
            wanted = f"real {side}s, or holomorphic=True"
        elif side == "output" and is_complex(kind.dtype) and not holomorphic and not allow_int:
            wanted = f"real {side}s, or holomorphic=True"
        elif not is_inexact(kind.dtype) and not allow_int:
            wanted = f"floating {side}s"
        else:
            continue
        raise DifferentiationError(
            f"{what} of {defined_at(fun)} wants {wanted}, got {kind}\n  at {where}; cast it"
        )
