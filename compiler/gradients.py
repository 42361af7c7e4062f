"""`bp.grad` and `bp.value_and_grad`: functions that ask for gradients by our own chain rules.

A call traces the function, imports it and asks for a graph of one `gradients` node, which
`passes/autodiff` expands into the joint graph.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from ..ir.errors import ArgumentError, DifferentiationError
from ..ir.graph import Graph, Node, Value
from ..ir.ops import OPS
from ..ir.types import ArrayType, is_complex, is_inexact, type_of
from .derivatives import pair_of
from .diagnose import caller_line, check_results, defined_at, is_array, tracing
from .program_call import call_program
from .record import imported
from .zeros import warn_of_zeros


def gradients_graph(graph: Graph, wrt: tuple[int, ...]) -> Graph:
    """Return a graph of one `gradients` node that differentiates `graph`."""
    inputs = tuple(Value(value.type, value.name) for value in graph.inputs)
    outputs = tuple(map(Value, OPS["gradients"].shape(graph.inputs, {"wrt": wrt}, (graph,))))
    node = Node(OPS["gradients"], inputs, outputs, {"wrt": wrt}, (graph,))
    return Graph(f"grad_{graph.name}", inputs, (node,), node.outputs)


def value_and_grad(
    fun: Callable[..., Any],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
) -> Callable[..., Any]:
    """Return a function that evaluates `fun` and the gradient of its first output.

    Args:
        fun: returns a scalar of floating dtype, or with `has_aux` a pair of it and any pytree.
        argnums: positions of the arguments to differentiate by; pytrees of floating arrays.
        has_aux: `fun` returns `(loss, aux)`.
        holomorphic: `fun` is holomorphic; inputs and output are complex.
        allow_int: integer and boolean inputs are accepted; their gradient is float0.

    Returns:
        A function with the signature of `fun` that returns `(loss, gradients)`, or
        `((loss, aux), gradients)`; gradients have the tree of the argument, or are a tuple of
        such trees when `argnums` is a sequence.

    Raises:
        DifferentiationError: the loss is no scalar, or an input cannot be differentiated by.
        MissingRuleError: an op on the way has no rule; names the op and its line.
    """
    if not callable(fun):
        raise ArgumentError(
            f"grad wants a function, got {type(fun).__name__}\n  at {caller_line()}; write "
            "bp.grad(f)(x), not bp.grad(f(x))"
        )
    positions = positions_of(argnums)

    @functools.wraps(fun)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        where = caller_line()
        chosen = chosen_arguments(fun, args, positions, where)
        leaves, tree = jax.tree.flatten(chosen)
        paths = _paths(chosen, [i % len(args) for i in positions])
        _check_inputs(fun, leaves, paths, holomorphic, allow_int, where)

        call = of_chosen(fun, args, kwargs, positions)

        def flat(*xs: Any) -> tuple[Any, Any]:
            out = call(*jax.tree.unflatten(tree, xs))
            return pair_of(fun, check_results(fun, out), has_aux, where)

        with tracing(fun):
            graph, consts, shapes = imported(fun, flat, leaves, paths)
        _check_loss(fun, shapes[0], holomorphic, where)
        wrt = [i for i, x in enumerate(leaves) if is_inexact(type_of(x).dtype)]
        at = tuple(len(consts) + i for i in wrt)
        warn_of_zeros(fun, graph, at)
        with tracing(fun):
            found = call_program(gradients_graph(graph, at), *consts, *leaves)
        count = len(found) - len(wrt)
        given = dict(zip(wrt, found[count:], strict=True))
        grads = [given[i] if i in given else _float0(x) for i, x in enumerate(leaves)]
        loss, aux = jax.tree.unflatten(jax.tree.structure(shapes), found[:count])
        trees = jax.tree.unflatten(tree, grads)
        value = (loss, aux) if has_aux else loss
        return value, trees if np.iterable(argnums) else trees[0]

    return wrapped


def grad(
    fun: Callable[..., Any],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
) -> Callable[..., Any]:
    """Return a function that evaluates the gradient of `fun`'s first output.

    Args:
        fun: returns a scalar of floating dtype, or with `has_aux` a pair of it and any pytree.
        argnums: positions of the arguments to differentiate by; pytrees of floating arrays.
        has_aux: `fun` returns `(loss, aux)`.
        holomorphic: `fun` is holomorphic; inputs and output are complex.
        allow_int: integer and boolean inputs are accepted; their gradient is float0.

    Returns:
        A function with the signature of `fun` that returns gradients, or `(gradients, aux)` with
        `has_aux`; leaves have the shapes and dtypes of the arguments'.

    Raises:
        DifferentiationError: the loss is no scalar, or an input cannot be differentiated by.
        MissingRuleError: an op on the way has no rule; names the op and its line.
    """
    both = value_and_grad(fun, argnums, has_aux, holomorphic, allow_int)

    @functools.wraps(fun)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        value, grads = both(*args, **kwargs)
        return (grads, value[1]) if has_aux else grads

    return wrapped


def _float0(x: Any) -> Any:
    return np.zeros(np.shape(x), jax.dtypes.float0)


def positions_of(argnums: Any) -> tuple[int, ...]:
    """Return `argnums` as a tuple. Raises `ArgumentError` for what is no integer."""
    try:
        return tuple(map(operator.index, argnums if np.iterable(argnums) else (argnums,)))
    except TypeError:
        raise ArgumentError(
            f"argnums wants an integer or a sequence of integers, got {argnums!r}\n"
            f"  at {caller_line()}; give the positions of the arguments to differentiate by"
        ) from None


def _paths(chosen: Sequence[Any], positions: Sequence[int]) -> list[str]:
    """Paths of the leaves of the chosen arguments: `args[1]['w']`."""
    return [
        f"args[{i}]{jax.tree_util.keystr(path)}"
        for i, tree in zip(positions, chosen, strict=True)
        for path, _ in jax.tree.leaves_with_path(tree)
    ]


def chosen_arguments(
    fun: Callable[..., Any], args: Sequence[Any], positions: Sequence[int], where: str
) -> tuple[Any, ...]:
    """Return the arguments at `positions`. Raises `ArgumentError`."""
    for i in positions:
        if not -len(args) <= i < len(args):
            raise ArgumentError(
                f"argnums={i} needs a positional argument at that place, got {len(args)} "
                f"positional arguments\n  at {where}; differentiate by arguments that are passed "
                "by position"
            )
    if len({i % len(args) for i in positions}) < len(positions):
        raise ArgumentError(
            f"argnums={tuple(positions)} names an argument twice\n  at {where}; name each once"
        )
    return tuple(args[i] for i in positions)


def of_chosen(
    fun: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], positions: Sequence[int]
) -> Callable[..., Any]:
    """Return `fun` as a function of the arguments at `positions` alone, the others as in `args`."""

    @functools.wraps(fun)
    def call(*chosen: Any) -> Any:
        full = list(args)
        for i, x in zip(positions, chosen, strict=True):
            full[i] = x
        return fun(*full, **kwargs)

    return call


def _check_inputs(
    fun: Callable[..., Any],
    leaves: Sequence[Any],
    paths: Sequence[str],
    holomorphic: bool,
    allow_int: bool,
    where: str,
) -> None:
    for leaf, path in zip(leaves, paths, strict=True):
        if not is_array(leaf):
            raise ArgumentError(
                f"grad of {defined_at(fun)} wants arrays, got {type(leaf).__name__} at "
                f"{path}\n  at {where}; pass it as another argument, or close over it"
            )
        _check_dtype(fun, type_of(leaf), path, holomorphic, allow_int, where)


def _check_dtype(
    fun: Callable[..., Any],
    kind: ArrayType,
    path: str,
    holomorphic: bool,
    allow_int: bool,
    where: str,
) -> None:
    if holomorphic and not is_complex(kind.dtype):
        wanted, todo = "complex inputs with holomorphic=True", "cast the input"
    elif not is_inexact(kind.dtype) and not allow_int:
        wanted = "floating inputs"
        todo = "cast it to a floating dtype, leave it out of argnums, or pass allow_int=True"
    else:
        return
    raise DifferentiationError(
        f"grad of {defined_at(fun)} wants {wanted}, got {kind} at {path}\n  at {where}; {todo}"
    )


def _check_loss(fun: Callable[..., Any], loss: Any, holomorphic: bool, where: str) -> None:
    wanted = f"grad wants {defined_at(fun)} to return a scalar loss"
    leaves = jax.tree.leaves(loss)
    if len(leaves) != 1 or leaves[0] is not loss:
        found = f"a {type(loss).__name__} of {len(leaves)} arrays" if leaves else "no array"
        todo = "return the loss alone, or (loss, aux) with has_aux=True"
        raise DifferentiationError(f"{wanted}, got {found}\n  at {where}; {todo}")
    kind = type_of(loss)
    if kind.shape:
        todo = "reduce it with .mean() or .sum(), or differentiate one element of it"
        raise DifferentiationError(f"{wanted}, got {kind}\n  at {where}; {todo}")
    if not is_inexact(kind.dtype) or (is_complex(kind.dtype) and not holomorphic):
        todo = "return a real floating number, or pass holomorphic=True for a complex one"
        raise DifferentiationError(f"{wanted} of floating dtype, got {kind}\n  at {where}; {todo}")
