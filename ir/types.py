"""Types of the IR: dtype, shape and JAX's weak-type bit.

    type  ::= dtype '<host>'? '[' dim (',' dim)* ']' '*'?     f32[8,16]   i32[]   f32[]*
    dim   ::= size ('/' axis ':' places)*                     f32[16/data:8,64]
    dtype ::= 'f32' | 'bf16' | 'i32' | 'bool' | 'c64' | 'key<fry>' | ...

The trailing star marks a weak type (a Python scalar's), which does not promote others. An array of
a `<host>` type is in the host's memory, and takes none of the device's. A dimension may be divided
over axes of a mesh of devices, each with its number of places: bytes are those of one device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_SHORT = {"float": "f", "bfloat": "bf", "int": "i", "uint": "u", "complex": "c"}
_KEY_IMPLEMENTATIONS = {"fry": "threefry2x32", "rbg": "rbg", "urbg": "unsafe_rbg"}


def _names() -> dict[str, Any]:
    kinds = {"float": (16, 32, 64), "bfloat": (16,), "complex": (64, 128)}
    kinds |= {"int": (2, 4, 8, 16, 32, 64), "uint": (2, 4, 8, 16, 32, 64)}
    table = {
        f"{_SHORT[kind]}{bits}": jnp.dtype(f"{kind}{bits}")
        for kind, sizes in kinds.items()
        for bits in sizes
    }
    eights = [name for name in dir(jnp) if name.startswith(("float8_", "float4_"))]
    table |= {name.replace("float", "f"): jnp.dtype(getattr(jnp, name)) for name in eights}
    return table | {"bool": np.dtype(bool)}


_BY_NAME: dict[str, Any] = _names()
_BY_DTYPE: dict[Any, str] = {dtype: name for name, dtype in _BY_NAME.items()}


def dtype_name(dtype: Any) -> str:
    """Short name of a dtype: `f32`, `bf16`, `i32`, `bool`, `key<fry>`."""
    return _BY_DTYPE.get(dtype) or str(dtype)


def dtype_from_name(name: str) -> Any:
    """Inverse of `dtype_name`. Raises `KeyError` for an unknown name."""
    if name.startswith("key<") and name.endswith(">"):
        implementation = _KEY_IMPLEMENTATIONS[name[4:-1]]
        return jax.eval_shape(lambda: jax.random.key(0, impl=implementation)).dtype
    return _BY_NAME[name]


def key_implementation(dtype: Any) -> str:
    """Name of the generator of a key's dtype, as `jax.random.key(impl=...)` takes it."""
    return _KEY_IMPLEMENTATIONS[str(dtype)[4:-1]]


# For each dimension the axes of the mesh that divide it, with their numbers of places; or nothing.
Axes = tuple[tuple[str, int], ...]
Spec = tuple[Axes, ...]


def places(axes: Axes) -> int:
    """Number of places along axes of a mesh."""
    return math.prod(size for _, size in axes)


@dataclass(frozen=True, slots=True)
class ArrayType:
    """The type of a value: `dtype[shape]`, a star when weak, and the memory that it is in.

    `spec` tells how it lies on a mesh of devices, or is empty. It is no part of what is computed:
    types that differ in it alone are equal. `nbytes` are those of one device's memory, as XLA lays
    the array out, none for one on the host; sub-byte types are packed by XLA, not here.
    """

    shape: tuple[int, ...]
    dtype: Any
    weak: bool = False
    host: bool = False
    spec: Spec = field(default=(), compare=False)
    nbytes: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Count the bytes once: a planner asks for them millions of times."""
        size = 0 if self.host else math.prod(self.local) * int(self.dtype.itemsize)
        object.__setattr__(self, "nbytes", size)

    def __str__(self) -> str:
        """Text form, for instance `f32[8,16]`."""
        dims = ",".join(map(str, self.shape))
        if self.spec:
            parts = zip(self.shape, self.spec, strict=True)
            dims = ",".join("/".join([str(n), *(f"{a}:{k}" for a, k in axes)]) for n, axes in parts)
        memory = "<host>" if self.host else ""
        return f"{dtype_name(self.dtype)}{memory}[{dims}]{'*' if self.weak else ''}"

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def local(self) -> tuple[int, ...]:
        """Shape of the part that one device has."""
        if not self.spec:
            return self.shape
        return tuple(-(-n // places(axes)) for n, axes in zip(self.shape, self.spec, strict=True))

    @property
    def parts(self) -> int:
        """Number of different parts that the array is divided into."""
        return math.prod(map(places, self.spec))

    @property
    def is_inexact(self) -> bool:
        """True for floating and complex dtypes: those that have gradients."""
        return is_inexact(self.dtype)

    def with_shape(self, shape: Sequence[int]) -> ArrayType:
        """Return the same dtype with another shape."""
        return ArrayType(tuple(shape), self.dtype, self.weak, self.host)

    def with_dtype(self, dtype: Any) -> ArrayType:
        """Return the same shape with another (strong) dtype."""
        return ArrayType(self.shape, dtype)

    def strong(self) -> ArrayType:
        """Return the type without the weak bit."""
        return replace(self, weak=False) if self.weak else self

    def stacked(self, count: int) -> ArrayType:
        """Return the type of so many arrays along a new first dimension, each lying as this one."""
        found = self.with_shape((count, *self.shape))
        return found.spread(((), *self.spec)) if self.spec else found

    def on_host(self, host: bool = True) -> ArrayType:
        """Return the type of a copy in the host's memory, or else in the device's."""
        return replace(self, host=host)

    def spread(self, spec: Spec) -> ArrayType:
        """Return the type of an array that lies on a mesh in another way."""
        return self if spec == self.spec else replace(self, spec=spec)


_INEXACT: dict[Any, bool] = {}


def is_inexact(dtype: Any) -> bool:
    """True for floating and complex dtypes (bfloat16 and the float8 family included)."""
    known = _INEXACT.get(dtype)
    if known is None:
        known = _INEXACT[dtype] = bool(jnp.issubdtype(dtype, np.inexact))
    return known


def is_complex(dtype: Any) -> bool:
    """True for complex64 and complex128."""
    return bool(jnp.issubdtype(dtype, np.complexfloating))


def type_of(x: Any) -> ArrayType:
    """Type of an array, a tracer, a `jax.ShapeDtypeStruct`, an aval or a Python scalar."""
    aval = getattr(x, "aval", x)
    if isinstance(aval, bool | int | float | complex):
        aval = jax.typeof(aval)
    return ArrayType(tuple(aval.shape), aval.dtype, bool(getattr(aval, "weak_type", False)))
