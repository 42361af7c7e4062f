"""The user's own rules as jaxprs: `jax.custom_jvp` and `jax.custom_vjp`.

JAX keeps such a rule as a function to be traced when it is wanted. We trace it when its call is
imported, so that the rule stands in the graph as a region, is printed, and is differentiated.
"""

from __future__ import annotations

from typing import Any

import jax
from jax.interpreters import ad

from ..ir import jax_compat
from ..ir.jax_compat import struct
from ..ir.types import is_inexact


def jvp_rule(eqn: Any) -> dict[str, Any]:
    """`jvp`: primals ++ tangents of the inexact inputs -> outs ++ tangents of the inexact outs."""
    params, avals = eqn.params, [var.aval for var in eqn.invars]
    consts = params["num_consts"]
    tangent_of = [i for i, aval in enumerate(avals) if is_inexact(aval.dtype)]
    zeros = [not is_inexact(aval.dtype) for aval in avals[consts:]]
    rule, rule_consts, out_zeros = params["jvp_jaxpr_fun"].call_wrapped(*zeros)

    def jvp(primals: list[Any], tangents: list[Any]) -> list[Any]:
        given = [t for i, t in zip(tangent_of, tangents, strict=True) if i >= consts]
        found = jax.core.eval_jaxpr(rule, rule_consts, *primals[consts:], *given)
        count = len(out_zeros)
        outs, rest = found[:count], iter(found[count:])
        tangents_out = [None if is_zero else next(rest) for is_zero in out_zeros]
        return [
            *outs,
            *(
                jax.numpy.zeros(out.shape, out.dtype) if t is None else t
                for out, t in zip(outs, tangents_out, strict=True)
                if is_inexact(out.dtype)
            ),
        ]

    primals = [struct(aval) for aval in avals]
    return {"jvp": jax.make_jaxpr(jvp)(primals, [primals[i] for i in tangent_of])}


def vjp_rule(eqn: Any) -> dict[str, Any]:
    """`fwd`: inputs -> outs ++ residuals; `bwd`: residuals ++ cotangents -> cotangents.

    Cotangents are those of inexact outputs and inputs alone.
    """
    params, avals = eqn.params, [var.aval for var in eqn.invars]
    consts = params["num_consts"]
    rule, rule_consts = jax_compat.forward_rule(params["fwd_jaxpr_thunk"], len(avals) - consts)
    _, residual_tree, forwarded = params["out_trees"]()

    def forward(*args: Any) -> tuple[list[Any], list[Any]]:
        found = jax.core.eval_jaxpr(rule, rule_consts, *args[consts:])
        count = residual_tree.num_leaves - sum(i is not None for i in forwarded)
        computed = iter(found[:count])
        residuals = [next(computed) if i is None else args[i] for i in forwarded]
        return found[count:], residuals

    def backward(residuals: list[Any], cts: list[Any]) -> list[Any]:
        given = iter(cts)
        every = [
            next(given) if is_inexact(var.aval.dtype) else ad.Zero(var.aval.to_tangent_aval())
            for var in eqn.outvars
        ]
        given_back = [*residuals, *map(_instantiated, every)]
        found = jax_compat.backward_rule(params["bwd"], given_back)
        return [
            jax.numpy.zeros(aval.shape, aval.dtype)
            if i < consts
            else _instantiated(found[i - consts])
            for i, aval in enumerate(avals)
            if is_inexact(aval.dtype)
        ]

    structs = [struct(aval) for aval in avals]
    fwd, (_, residuals) = jax.make_jaxpr(forward, return_shape=True)(*structs)
    cts = [struct(var.aval) for var in eqn.outvars if is_inexact(var.aval.dtype)]
    return {"fwd": fwd, "bwd": jax.make_jaxpr(backward)(residuals, cts)}


def _instantiated(x: Any) -> Any:
    return ad.instantiate_zeros(x) if isinstance(x, ad.Zero) else x
