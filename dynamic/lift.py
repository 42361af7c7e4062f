"""Functions of arrays made functions of tensors: run now, recorded for the backward pass.

Arrays and tensors are arguments of a compiled program, one for each function, its other arguments
and which tensors are differentiated by; XLA's shapes are `jax.jit`'s own affair. Python's numbers
are settings of the program in a lifted function and arguments of it in an operator.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Collection, Hashable, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..compiler.derivatives import vjp
from ..compiler.diagnose import CONCRETE
from ..compiler.state import watching
from ..ir.errors import AutogradError
from ..ir.types import is_inexact
from .amp import casting
from .anomaly import trace_of
from .modes import mode
from .node import Edge, Node, OpNode, SavedInput
from .rule import Operation, Saved
from .tensor import Tensor

MOST = 8192  # operations that are remembered; the oldest is forgotten first
_known: dict[Hashable, Operation] = {}
_OPERANDS = (Tensor, jax.Array, np.ndarray, np.generic)
_NUMBERS = (bool, int, float, complex)


def _abs(x: Any) -> Any:
    """The derivative at 0 is 0, as in PyTorch; JAX's is 1."""
    return jnp.abs(x) if jnp.iscomplexobj(x) else x * jnp.sign(x)


_AS_PYTORCH: dict[Any, Callable[..., Any]] = {jnp.abs: _abs, jnp.absolute: _abs}


def lifted(fun: Callable[..., Any]) -> Callable[..., Any]:
    """Return `fun`, a function of arrays, as one of tensors, in any of its arguments' leaves."""

    @functools.wraps(fun)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not kwargs and all([isinstance(x, _OPERANDS) for x in args]):
            return apply(fun, args)
        leaves, tree = jax.tree.flatten((args, kwargs), is_leaf=_is_tensor)
        given = [x for x in leaves if isinstance(x, _OPERANDS)]
        settings = tuple(_setting(x) for x in leaves)
        return apply(_partly(fun, tree, settings), given)

    return call


def apply(fun: Callable[..., Any], args: Sequence[Any]) -> Any:
    """Run `fun` on tensors, arrays and numbers, and record it where a tensor requires grad.

    The result's leaves are tensors. `fun` is known by its identity.
    """
    if mode.cast is not None:
        fun = casting(fun, _name(fun), mode.cast)
    arrays: list[Any] = []
    active: tuple[int, ...] = ()
    recording = mode.grad
    for i, x in enumerate(args):
        if isinstance(x, Tensor):
            arrays.append(x.value)
            if recording and x._requires:
                active += (i,)
        else:
            arrays.append(x)
    key = (fun, active)
    known = _known.get(key)
    if known is None:
        if len(_known) >= MOST:
            del _known[next(iter(_known))]
        known = _known[key] = Operation(_name(fun), _AS_PYTORCH.get(fun, fun), active)
    try:
        found = known.run(*arrays)
    except CONCRETE:
        return _at_once(fun, args, arrays, active)
    if not active:
        if isinstance(found, jax.Array):
            return Tensor(found)
        return jax.tree.map(Tensor, found)
    out, saved = found
    return _recorded(out, saved, args, arrays)


def _recorded(out: Any, saved: Saved, args: Sequence[Any], arrays: Sequence[Any]) -> Any:
    """Wrap the results of a recorded operation, with a node behind them."""
    rule = saved.rule
    edges = [args[i]._edge() for i in rule.active]
    node = OpNode(rule, edges)
    node.trace = trace_of()
    leaves, tree = ((out,), None) if isinstance(out, jax.Array) else jax.tree.flatten(out)
    place = rule.place
    results = [
        Tensor._of(leaf, node, place[i]) if i in place else Tensor(leaf)
        for i, leaf in enumerate(leaves)
    ]
    history = dict(zip(rule.active, edges, strict=True))
    kept = [_input(args[i], arrays[i], rule.name, history.get(i)) for i in rule.inputs]
    for i in rule.outputs:
        kept.append(SavedInput(leaves[i], results[i]._storage, None, place.get(i)))
    node.saved = (*kept, *map(SavedInput, saved.hidden))
    if watching.owner is not None:
        node.replay, node.results = arrays, tuple(map(weakref.ref, results))
    if rule.hidden:
        every = enumerate(zip(args, arrays, strict=True))
        node.whole = tuple([_input(x, array, rule.name, history.get(i)) for i, (x, array) in every])
    return results[0] if tree is None else jax.tree.unflatten(tree, results)


def _input(x: Any, array: Any, name: str, edge: Edge | None) -> SavedInput:
    """An operand to be saved; with its history where it is differentiated by."""
    if not isinstance(x, Tensor):
        return SavedInput(array)
    if x._inference:
        raise AutogradError(
            f"{name} would save a tensor that was made in inference_mode\n"
            "  clone it outside of inference_mode first, or make it under no_grad"
        )
    return SavedInput(array, x._storage, edge)


class _PullbackNode(Node):
    """An operation whose program depends on values: differentiated where it stands."""

    __slots__ = ("fun", "pullback", "types")

    def __init__(self, fun: Any, edges: Sequence[Edge | None], pullback: Any, types: Any) -> None:
        super().__init__(edges)
        self.fun, self.pullback, self.types = fun, pullback, types

    @property
    def count(self) -> int:  # type: ignore[override]
        """Outputs that take cotangents."""
        return len(self.types)

    def name(self) -> str:
        """As of other operations."""
        return f"{_name(self.fun)}_backward"

    def pull(self, cts: Sequence[Any]) -> Sequence[Any]:
        """Call the pullback."""
        given = [
            np.zeros(t.shape, t.dtype) if ct is None else ct
            for ct, t in zip(cts, self.types, strict=True)
        ]
        return self.pullback(given)  # type: ignore[no-any-return]

    def pull_recorded(self, cts: Sequence[Any]) -> Sequence[Any]:
        """Not a program of tensors."""
        raise AutogradError(
            f"{self.name()} depends on its operands' values and can't be differentiated again"
        )


def _at_once(fun: Any, args: Sequence[Any], arrays: Sequence[Any], active: Sequence[int]) -> Any:
    """Run what asks for values, as `nonzero` does, and cannot be compiled."""
    if not active:
        return jax.tree.map(lambda x: Tensor(x) if isinstance(x, jax.Array) else x, fun(*arrays))
    shapes: list[Any] = []

    def chosen(*xs: Any) -> tuple[list[Any], list[Any]]:
        full = list(arrays)
        for i, x in zip(active, xs, strict=True):
            full[i] = x
        leaves, tree = jax.tree.flatten(fun(*full))
        shapes[:] = [tree]
        slopes = [is_inexact(x.dtype) for x in leaves]
        return (
            [x for x, on in zip(leaves, slopes, strict=True) if on],
            [None if on else x for x, on in zip(leaves, slopes, strict=True)],
        )

    ys, pullback, rest = vjp(chosen, *(arrays[i] for i in active), has_aux=True)
    node = _PullbackNode(fun, [args[i]._edge() for i in active], pullback, ys)
    made = iter([Tensor._of(y, node, k) for k, y in enumerate(ys)])
    return jax.tree.unflatten(shapes[0], [next(made) if x is None else Tensor(x) for x in rest])


def namespace(
    module: Any, name: str, telling: Collection[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a module whose functions are those of `module`, lifted.

    Its submodules are such modules too. `telling` names functions that give no arrays.
    """
    known: dict[str, Any] = {}

    def get(attribute: str) -> Any:
        if attribute in known:
            return known[attribute]
        if attribute.startswith("__"):
            raise AttributeError(f"module {name!r} has no attribute {attribute!r}")
        try:
            own = getattr(module, attribute)
        except AttributeError:
            raise AttributeError(f"module {name!r} has no attribute {attribute!r}") from None
        known[attribute] = _lifted(own, f"{name}.{attribute}", attribute in telling)
        return known[attribute]

    return get, lambda: dir(module)


def _lifted(own: Any, name: str, tells: bool) -> Any:
    if isinstance(own, ModuleType):
        found = ModuleType(name)
        found.__getattr__, found.__dir__ = namespace(own, name)  # type: ignore[method-assign]
        return found
    if isinstance(own, type) or not callable(own) or hasattr(own, "dtype"):
        return own
    return _telling(own) if tells else lifted(own)


def _telling(fun: Callable[..., Any]) -> Callable[..., Any]:
    """`fun` on the arrays of tensors, its result as it is."""

    @functools.wraps(fun)
    def call(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = jax.tree.map(
            lambda x: x.value if isinstance(x, Tensor) else x, (args, kwargs), is_leaf=_is_tensor
        )
        return fun(*args, **kwargs)

    return call


def _is_tensor(x: Any) -> bool:
    return isinstance(x, Tensor)


_HOLE = object()


def _setting(leaf: Any) -> Any:
    """A leaf as a part of a key: 1, 1.0 and True differ."""
    if isinstance(leaf, _OPERANDS):
        return _HOLE
    return (type(leaf), leaf) if isinstance(leaf, _NUMBERS) else leaf


@functools.lru_cache(maxsize=4096)
def _partly(fun: Callable[..., Any], tree: Any, settings: tuple[Any, ...]) -> Callable[..., Any]:
    """`fun` as a function of the arrays among its arguments' leaves."""

    def call(*arrays: Any) -> Any:
        left = iter(arrays)
        leaves = [
            next(left)
            if x is _HOLE
            else x[1]
            if isinstance(x, tuple) and len(x) == 2 and x[0] in _NUMBERS
            else x
            for x in settings
        ]
        args, kwargs = jax.tree.unflatten(tree, leaves)
        return fun(*args, **kwargs)

    call.__name__ = _name(fun)
    return call


@functools.lru_cache(maxsize=4096)
def bound(fun: Callable[..., Any], *settings: Any) -> Callable[..., Any]:
    """`fun` with further arguments settled: `x -> fun(x, *settings)`."""

    def call(x: Any) -> Any:
        return fun(x, *settings)

    call.__name__ = _name(fun)
    return call


def _name(fun: Any) -> str:
    return getattr(fun, "__name__", type(fun).__name__)
