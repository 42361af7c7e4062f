"""The user's own rules as jaxprs: `jax.custom_jvp` and `jax.custom_vjp`.

JAX keeps such a rule as a function to be traced when it is wanted. We trace it when its call is
imported, so that the rule stands in the graph as a region, is printed, and is differentiated; one
that depends on what is perturbed, and one deep inside others, when a derivative asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.custom_derivatives import SymbolicZero
from jax.interpreters import ad

from ..ir import jax_compat
from ..ir.graph import Graph
from ..ir.jax_compat import struct
from ..ir.types import is_inexact

Flags = tuple[bool, ...] | None


def jvp_rule(eqn: Any, perturbed: Flags = None) -> dict[str, Any]:
    """`jvp`: primals ++ tangents of the inexact inputs -> outs ++ tangents of the inexact outs.

    The rule is given symbolic zeros for tangents of inputs that are not `perturbed`.
    """
    params, avals = eqn.params, [var.aval for var in eqn.invars]
    consts = params["num_consts"]
    tangent_of = [i for i, aval in enumerate(avals) if is_inexact(aval.dtype)]
    moved = perturbed or [True] * len(avals)
    zeros = [
        not (on and is_inexact(aval.dtype))
        for on, aval in zip(moved[consts:], avals[consts:], strict=True)
    ]
    rule, rule_consts, out_zeros = params["jvp_jaxpr_fun"].call_wrapped(*zeros)

    def jvp(primals: list[Any], tangents: list[Any]) -> list[Any]:
        every = zip(tangent_of, tangents, strict=True)
        given = [t for i, t in every if i >= consts and not zeros[i - consts]]
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
    forward, residuals = forward_rule(eqn)
    return {"fwd": forward, "bwd": backward_rule(eqn, residuals)}


def forward_rule(eqn: Any, perturbed: Flags = None) -> tuple[Any, Any]:
    """`fwd`, which is told which inputs are `perturbed`; and the types of the residuals."""
    params, avals = eqn.params, [var.aval for var in eqn.invars]
    consts, thunk = params["num_consts"], params["fwd_jaxpr_thunk"]
    rule, rule_consts = (
        jax_compat.forward_rule(thunk, len(avals) - consts)
        if perturbed is None
        else thunk.call_wrapped(*perturbed[consts:])
    )
    _, residual_tree, forwarded = params["out_trees"]()

    def forward(*args: Any) -> tuple[list[Any], list[Any]]:
        found = jax.core.eval_jaxpr(rule, rule_consts, *args[consts:])
        count = residual_tree.num_leaves - sum(i is not None for i in forwarded)
        computed = iter(found[:count])
        residuals = [next(computed) if i is None else args[i] for i in forwarded]
        return found[count:], residuals

    fwd, (_, residuals) = jax.make_jaxpr(forward, return_shape=True)(*map(struct, avals))
    return fwd, residuals


def backward_rule(eqn: Any, residuals: Any, seeded: Flags = None) -> Any:
    """`bwd`, which is given symbolic zeros for outputs that are not `seeded`."""
    params, avals = eqn.params, [var.aval for var in eqn.invars]
    outs = [var.aval for var in eqn.outvars]
    zeros = [not on for on in seeded or [True] * len(outs)]

    def backward(residuals: list[Any], cts: list[Any]) -> list[Any]:
        given = iter(cts)
        every = [next(given) if is_inexact(aval.dtype) else None for aval in outs]
        cotangents = [
            SymbolicZero(aval.to_tangent_aval()) if is_zero else _given(ct, aval)
            for ct, aval, is_zero in zip(every, outs, zeros, strict=True)
        ]
        found = jax_compat.backward_rule(params["bwd"], [*residuals, *cotangents])
        consts = params["num_consts"]
        return [
            jax.numpy.zeros(aval.shape, aval.dtype)
            if i < consts
            else instantiated(found[i - consts])
            for i, aval in enumerate(avals)
            if is_inexact(aval.dtype)
        ]

    cts = [struct(aval) for aval in outs if is_inexact(aval.dtype)]
    return jax.make_jaxpr(backward)(residuals, cts)


def _given(ct: Any, aval: Any) -> Any:
    """Return a cotangent as a backward rule wants it; zeros of an integer's type if it is None."""
    return instantiated(ad.Zero(aval.to_tangent_aval())) if ct is None else ct


def instantiated(x: Any) -> Any:
    """Return an array of zeros for a symbolic zero of JAX's, anything else as it is."""
    return ad.instantiate_zeros(x) if isinstance(x, ad.Zero) else x


@dataclass(frozen=True, eq=False)
class Later:
    """The rule of an equation, to be read when a derivative of this `order` asks for it.

    `read` makes a graph of a part of the rule by its name. Each form is read once.
    """

    eqn: Any
    order: int
    read: Callable[[str, Any], Graph]
    _forwards: dict[Flags, tuple[Graph, Any]] = field(default_factory=dict)
    _backwards: dict[tuple[Flags, Flags], Graph] = field(default_factory=dict)

    def forward(self, perturbed: Sequence[bool]) -> Graph:
        """See `ir.op.LaterRule`."""
        return self._forward(self._asked(perturbed))[0]

    def backward(self, perturbed: Sequence[bool], seeded: Sequence[bool]) -> Graph:
        """See `ir.op.LaterRule`."""
        key = (self._asked(perturbed), self._asked(seeded))
        if key not in self._backwards:
            jaxpr = backward_rule(self.eqn, self._forward(key[0])[1], key[1])
            self._backwards[key] = self.read("bwd", jaxpr)
        return self._backwards[key]

    def _asked(self, flags: Sequence[bool]) -> Flags:
        """None for a rule that wants to know nothing."""
        return tuple(map(bool, flags)) if self.eqn.params["symbolic_zeros"] else None

    def _forward(self, perturbed: Flags) -> tuple[Graph, Any]:
        if perturbed not in self._forwards:
            if "jvp_jaxpr_fun" in self.eqn.params:
                part = self.read("jvp", jvp_rule(self.eqn, perturbed)["jvp"]), None
            else:
                jaxpr, residuals = forward_rule(self.eqn, perturbed)
                part = self.read("fwd", jaxpr), residuals
            self._forwards[perturbed] = part
        return self._forwards[perturbed]
