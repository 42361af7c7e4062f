"""The operators and methods of `Tensor`: NumPy's and PyTorch's."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .lift import apply, bound, lifted
from .tensor import Tensor
from .views import view_of

_OPERANDS = (Tensor, jax.Array, np.ndarray, np.generic, bool, int, float, complex)


def _named(name: str, fun: Callable[..., Any]) -> Callable[..., Any]:
    fun.__name__ = name
    return fun


def _binary(fun: Callable[..., Any]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def forward(self: Tensor, other: Any) -> Any:
        return apply(fun, (self, other)) if isinstance(other, _OPERANDS) else NotImplemented

    def reflected(self: Tensor, other: Any) -> Any:
        return apply(fun, (other, self)) if isinstance(other, _OPERANDS) else NotImplemented

    return forward, reflected


def power(x: Any, y: Any) -> Any:
    """`x ** y`; a number as exponent is a part of the program."""
    if isinstance(x, Tensor) and isinstance(y, int | float) and not isinstance(y, bool):
        return apply(_powers(y), (x,))
    return apply(jnp.power, (x, y))


@lru_cache(maxsize=256)
def _powers(y: float) -> Callable[..., Any]:
    return _named("pow", lambda x: x**y)


_BINARY: dict[str, Callable[..., Any]] = {
    "add": jnp.add,
    "sub": jnp.subtract,
    "mul": jnp.multiply,
    "truediv": jnp.true_divide,
    "floordiv": jnp.floor_divide,
    "mod": jnp.remainder,
    "matmul": jnp.matmul,
    "and": jnp.bitwise_and,
    "or": jnp.bitwise_or,
    "xor": jnp.bitwise_xor,
    "lshift": jnp.left_shift,
    "rshift": jnp.right_shift,
}
_COMPARED: dict[str, Callable[..., Any]] = {
    "eq": jnp.equal,
    "ne": jnp.not_equal,
    "lt": jnp.less,
    "le": jnp.less_equal,
    "gt": jnp.greater,
    "ge": jnp.greater_equal,
}
_UNARY: dict[str, Callable[..., Any]] = {
    "neg": jnp.negative,
    "pos": jnp.positive,
    "abs": jnp.abs,
    "invert": jnp.invert,
}

# Methods `x.name(...)` that are `jnp.name(x, ...)`.
_METHODS = """
abs exp log log1p expm1 sqrt sin cos tan tanh sinh cosh arcsin arccos arctan floor ceil sign square
sum mean prod max min argmax argmin any all var std cumsum cumprod sort argsort clip round
dot trace diagonal repeat take nonzero isnan isfinite isinf conj matmul
""".split()
_ACTIVATIONS = "sigmoid relu softmax log_softmax".split()
_CHANGES = {  # of values in place, by the operator
    "add_": operator.add,
    "sub_": operator.sub,
    "mul_": operator.mul,
    "div_": operator.truediv,
    "pow_": operator.pow,
}
_CHANGED = "exp log sqrt sin cos tanh abs floor ceil sign".split()  # `exp_()` and so on


def _install() -> None:
    for name, fun in _BINARY.items():
        forward, reflected = _binary(fun)
        setattr(Tensor, f"__{name}__", forward)
        setattr(Tensor, f"__r{name}__", reflected)
        if name not in ("matmul",):
            setattr(Tensor, f"__i{name}__", _in_place(forward))
    for name, fun in _COMPARED.items():
        setattr(Tensor, f"__{name}__", _binary(fun)[0])
    for name, fun in _UNARY.items():
        setattr(Tensor, f"__{name}__", _unary(fun))
    for name in _METHODS:
        setattr(Tensor, name, _method(getattr(jnp, name)))
    for name in _ACTIVATIONS:
        setattr(Tensor, name, _method(getattr(jax.nn, name)))
    for name, change in _CHANGES.items():
        setattr(Tensor, name, _changing(change))
    for name in _CHANGED:
        setattr(Tensor, f"{name}_", _changing(_unary(getattr(jnp, name))))


def _unary(fun: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self: apply(fun, (self,))


def _method(fun: Callable[..., Any]) -> Callable[..., Any]:
    """A method with PyTorch's spellings `dim` and `keepdim` as well."""
    call = lifted(fun)

    def method(self: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not args and not kwargs:
            return apply(fun, (self,))
        for ours, theirs in (("axis", "dim"), ("keepdims", "keepdim"), ("ddof", "correction")):
            if theirs in kwargs:
                kwargs[ours] = kwargs.pop(theirs)
        return call(self, *args, **kwargs)

    method.__name__ = getattr(fun, "__name__", "method")
    method.__doc__ = f"As `jax.numpy.{method.__name__}`."
    return method


def _in_place(forward: Callable[..., Any]) -> Callable[..., Any]:
    def change(self: Tensor, other: Any) -> Any:
        new = forward(self, other)
        return new if new is NotImplemented else self._become(new)

    return change


def _changing(fun: Callable[..., Any]) -> Callable[..., Any]:
    def change(self: Tensor, *args: Any) -> Tensor:
        return self._become(fun(self, *args))

    return change


# Views.


def reshape(self: Tensor, *shape: Any) -> Tensor:
    """The same elements in another shape; a view."""
    sizes = shape[0] if len(shape) == 1 and isinstance(shape[0], list | tuple) else shape
    return view_of(self, bound(jnp.reshape, tuple(map(operator.index, sizes))))


def transpose(self: Tensor, *axes: Any) -> Tensor:
    """Two axes exchanged, as in PyTorch, or all of them in an order, as in NumPy; a view."""
    order = axes[0] if len(axes) == 1 and isinstance(axes[0], list | tuple) else axes
    if len(order) == 2 and self.ndim != 2:
        return view_of(self, bound(jnp.swapaxes, *order))
    if len(order) == 2 and sorted(a % 2 for a in order) == [0, 1] and tuple(order) == (0, 1):
        return view_of(self, bound(jnp.swapaxes, 0, 1))
    return view_of(self, bound(jnp.transpose, tuple(order) or None))


def permute(self: Tensor, *axes: Any) -> Tensor:
    """The axes in another order; a view."""
    order = axes[0] if len(axes) == 1 and isinstance(axes[0], list | tuple) else axes
    return view_of(self, bound(jnp.transpose, tuple(order)))


def swapaxes(self: Tensor, first: int, second: int) -> Tensor:
    """Two axes exchanged; a view."""
    return view_of(self, bound(jnp.swapaxes, first, second))


def squeeze(self: Tensor, axis: Any = None, dim: Any = None) -> Tensor:
    """Without axes of size 1; a view."""
    return view_of(self, bound(jnp.squeeze, dim if axis is None else axis))


def unsqueeze(self: Tensor, dim: int) -> Tensor:
    """With a new axis of size 1; a view."""
    return view_of(self, bound(jnp.expand_dims, dim))


def flatten(self: Tensor, start: int = 0, end: int = -1) -> Tensor:
    """Some axes as one; a view."""
    shape, last = self.shape, end % max(self.ndim, 1)
    return reshape(self, (*shape[:start], -1, *shape[last + 1 :]))


def ravel(self: Tensor) -> Tensor:
    """One axis; a view."""
    return reshape(self, (-1,))


def expand(self: Tensor, *shape: Any) -> Tensor:
    """Broadcast to a shape; -1 keeps a size."""
    sizes = shape[0] if len(shape) == 1 and isinstance(shape[0], list | tuple) else shape
    own = (1,) * (len(sizes) - self.ndim) + self.shape
    full = tuple(a if b == -1 else b for a, b in zip(own, sizes, strict=True))
    return apply(bound(jnp.broadcast_to, full), (self,))  # type: ignore[no-any-return]


# Elements.


def _index(key: Any) -> tuple[Any, list[Any]]:
    """An index as settings, and the arrays in it."""
    arrays: list[Any] = []

    def part(x: Any) -> Any:
        if isinstance(x, slice):
            return ("slice", *(None if v is None else operator.index(v) for v in _ends(x)))
        if x is None or x is Ellipsis:
            return x
        if isinstance(x, bool | np.bool_):
            arrays.append(np.asarray(x))
            return "array"
        if isinstance(x, int):
            return ("at", x)
        if isinstance(x, Tensor | jax.Array | np.ndarray | list | np.generic):
            arrays.extend(_places(x))
            return ("arrays", len(_places(x)))
        raise TypeError(f"a tensor can't be indexed by {type(x).__name__}")

    parts = key if isinstance(key, tuple) else (key,)
    return tuple(map(part, parts)), arrays


def _ends(x: slice) -> tuple[Any, Any, Any]:
    return x.start, x.stop, x.step


def _places(x: Any) -> list[Any]:
    """An index of integers; those where a mask is true."""
    array = x.value if isinstance(x, Tensor) else x if isinstance(x, jax.Array) else np.asarray(x)
    if array.dtype == bool:
        return list(np.nonzero(np.asarray(array)))
    return [array.astype(np.int32) if isinstance(array, np.ndarray) else array]


@lru_cache(maxsize=4096)
def _getting(parts: tuple[Any, ...]) -> Callable[..., Any]:
    def getitem(x: Any, *arrays: Any) -> Any:
        return x[_key(parts, arrays)]

    return getitem


@lru_cache(maxsize=4096)
def _setting(parts: tuple[Any, ...]) -> Callable[..., Any]:
    def setitem(x: Any, value: Any, *arrays: Any) -> Any:
        return x.at[_key(parts, arrays)].set(value)

    return setitem


def _key(parts: tuple[Any, ...], arrays: Any) -> Any:
    left = iter(arrays)
    found: list[Any] = []
    for part in parts:
        if part == "array":
            found.append(next(left))
        elif isinstance(part, tuple) and part[0] == "slice":
            found.append(slice(*part[1:]))
        elif isinstance(part, tuple) and part[0] == "arrays":
            found += [next(left) for _ in range(part[1])]
        else:
            found.append(part[1] if isinstance(part, tuple) else part)
    return tuple(found)


def getitem(self: Tensor, key: Any) -> Tensor:
    """Elements; by integers and slices alone a view."""
    parts, arrays = _index(key)
    if arrays:
        return apply(_getting(parts), (self, *arrays))  # type: ignore[no-any-return]
    return view_of(self, _getting(parts))


def setitem(self: Tensor, key: Any, value: Any) -> None:
    """Put elements in place."""
    parts, arrays = _index(key)
    self._become(apply(_setting(parts), (self, value, *arrays)))


# PyTorch's own.


def _as(x: Any, like: Tensor) -> Any:
    return jnp.broadcast_to(x, like.shape).astype(like.dtype)


def copy_(self: Tensor, other: Any) -> Tensor:
    """Take over the values of another."""
    if isinstance(other, Tensor):
        return self._become(apply(_filled(self.shape, self.dtype), (other,)))
    return self._become(Tensor(_as(jnp.asarray(other), self)))


def fill_(self: Tensor, value: Any) -> Tensor:
    """All elements the same."""
    return copy_(self, value)


def zero_(self: Tensor) -> Tensor:
    """All elements zero."""
    return copy_(self, 0)


@lru_cache(maxsize=1024)
def _filled(shape: tuple[int, ...], dtype: Any) -> Callable[..., Any]:
    return _named("copy", lambda x: jnp.broadcast_to(x, shape).astype(dtype))


@lru_cache(maxsize=64)
def _cast(dtype: Any) -> Callable[..., Any]:
    return _named("astype", lambda x: x.astype(dtype))


def astype(self: Tensor, dtype: Any) -> Tensor:
    """Another dtype."""
    return apply(_cast(np.dtype(dtype)), (self,))  # type: ignore[no-any-return]


def clone(self: Tensor) -> Tensor:
    """A copy with its own storage, differentiable."""
    return apply(_copied, (self,))  # type: ignore[no-any-return]


_copied = _named("clone", lambda x: jnp.copy(x))


def size(self: Tensor, dim: int | None = None) -> Any:
    """The shape, or one size of it, as in PyTorch."""
    return self.shape if dim is None else self.shape[dim]


def numel(self: Tensor) -> int:
    """Number of elements."""
    return int(np.prod(self.shape, dtype=int))


def masked_fill(self: Tensor, mask: Any, value: Any) -> Tensor:
    """`value` where the mask is true."""
    return apply(_masked, (self, mask, value))  # type: ignore[no-any-return]


_masked = _named("masked_fill", lambda x, m, v: jnp.where(m, jnp.asarray(v, x.dtype), x))


def norm(self: Tensor) -> Tensor:
    """Root of the sum of squares."""
    return apply(_norm, (self,))  # type: ignore[no-any-return]


_norm = _named("norm", lambda x: jnp.linalg.norm(x.reshape(-1)))


_OWN = {
    "view": reshape,
    "reshape": reshape,
    "transpose": transpose,
    "permute": permute,
    "swapaxes": swapaxes,
    "squeeze": squeeze,
    "unsqueeze": unsqueeze,
    "flatten": flatten,
    "ravel": ravel,
    "expand": expand,
    "__getitem__": getitem,
    "__setitem__": setitem,
    "copy_": copy_,
    "fill_": fill_,
    "zero_": zero_,
    "astype": astype,
    "to": astype,
    "clone": clone,
    "size": size,
    "numel": numel,
    "masked_fill": masked_fill,
    "norm": norm,
    "__pow__": power,
    "__rpow__": lambda self, other: power(other, self),
    "t": lambda self: view_of(self, bound(jnp.swapaxes, 0, 1)),
    "T": property(lambda self: view_of(self, bound(jnp.transpose, None))),
    "mT": property(lambda self: view_of(self, bound(jnp.swapaxes, -1, -2))),
    "real": property(lambda self: apply(jnp.real, (self,))),
    "imag": property(lambda self: apply(jnp.imag, (self,))),
    "float": lambda self: astype(self, np.float32),
    "double": lambda self: astype(self, np.float64),
    "int": lambda self: astype(self, np.int32),
    "long": lambda self: astype(self, np.int32),
    "bool": lambda self: astype(self, np.bool_),
}
_install()
for _name, _fun in _OWN.items():
    setattr(Tensor, _name, _fun)
