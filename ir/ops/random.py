"""Random bits and keys: data without derivatives.

`impl` attributes are the records of JAX's generators, `jax.extend.random.threefry_prng_impl`
and its like. The one op with a gradient is the gamma sampler, by its concentration.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import lax

from ..op import Op, call, no_gradient, per_operand, primitive_op, shape_by_jax
from .elementwise import broadcasting

if TYPE_CHECKING:
    from ..builder import Builder
    from ..graph import Value


def _gamma(b: Builder, g: Value, o: Value, key: Value, a: Value, *, log_space: bool) -> Value:
    """ds/da at the sample s, found by implicit differentiation; divided by s for log(s)."""
    if not log_space:
        return b.mul(g, b.one("random_gamma_grad", a, o))
    tiny = jnp.finfo(o.dtype).tiny  # type: ignore[no-untyped-call]
    sample = b.max(b.exp(o), float(tiny))
    return b.mul(g, b.div(b.one("random_gamma_grad", a, sample), sample))


def _flat(name: str, function: Any = None) -> Op:
    if function is None:
        return primitive_op(name, vjp=no_gradient)
    lower = call(function)
    return Op(name, shape_by_jax(lower), lower, vjp=no_gradient)


OPS: tuple[Op, ...] = (
    _flat("random_seed"),
    _flat("random_bits"),
    _flat("random_fold_in"),
    _flat("random_split"),
    _flat("random_wrap", jax.random.wrap_key_data),
    _flat("random_unwrap", jax.random.key_data),
    _flat("random_clone", jax.random.clone),
    _flat("threefry2x32"),
    _flat("rng_bit_generator"),
    primitive_op("rng_uniform", vjp=no_gradient, effect="random"),
    primitive_op("random_gamma", vjp=per_operand(None, _gamma)),
    Op("random_gamma_grad", broadcasting("random_gamma_grad"), call(lax.random_gamma_grad)),
)
