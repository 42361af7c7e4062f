"""All of `jax.numpy` on tensors: `from backpass.dynamic import numpy as np`.

Functions are lifted when they are first asked for; dtypes and constants are JAX's own.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as _jnp

from .lift import namespace
from .tensor import Tensor, tensor

# What tells of shapes and dtypes: called as it is, on the arrays.
_TELLING = frozenset(
    "shape ndim size result_type promote_types issubdtype isdtype can_cast iscomplexobj isrealobj "
    "isscalar array_repr array_str array_equal array_equiv printoptions set_printoptions "
    "get_printoptions".split()
)


def array(data: Any, dtype: Any = None) -> Tensor:
    """Return a new tensor of `data`."""
    return tensor(data, dtype=dtype)


def asarray(data: Any, dtype: Any = None) -> Tensor:
    """Return `data` itself if it is a tensor of that dtype, else a new one."""
    if isinstance(data, Tensor):
        return data if dtype is None or data.dtype == _jnp.dtype(dtype) else data.astype(dtype)
    return tensor(data, dtype=dtype)


__getattr__, __dir__ = namespace(_jnp, __name__, _TELLING)
