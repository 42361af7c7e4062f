"""What becomes of an equation's parameters: a node's attributes, and the jaxprs of its regions.

By the name of the primitive. What JAX adds for its own use is dropped, so that attributes print
and compare.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..ir import jax_compat

Regions = tuple[Any, ...]
Normalise = Callable[[Mapping[str, Any]], tuple[dict[str, Any], Regions]]


class Open(NamedTuple):
    """The parts of a jaxpr, its constants turned into inputs."""

    constvars: tuple[Any, ...]
    consts: tuple[Any, ...]
    invars: tuple[Any, ...]
    eqns: Sequence[Any]
    outvars: Sequence[Any]


def plain(params: Mapping[str, Any], implied: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters without those that have their usual value, NumPy integers made Python's."""
    return {
        key: _plain_value(value)
        for key, value in params.items()
        if not (key in implied and value is implied[key])
    }


def _places(eqn: Any) -> int:
    """Return the number of places that an `all_to_all` splits a dimension between."""
    axis = eqn.params["split_axis"]
    before, after = (var.aval.shape[axis] for var in (eqn.invars[0], eqn.outvars[0]))
    return before // after if after else 1


def _plain_value(value: Any) -> Any:
    if isinstance(value, np.integer):
        return int(value)
    if type(value) is tuple:
        return tuple(map(_plain_value, value))
    return value


def _keeping(*keys: str, bodies: Sequence[str]) -> Normalise:
    """Keep the parameters `keys`; import the jaxprs under `bodies` as regions."""

    def normalise(params: Mapping[str, Any]) -> tuple[dict[str, Any], Regions]:
        return {key: params[key] for key in keys}, tuple(params[body] for body in bodies)

    return normalise


def _scan(params: Mapping[str, Any]) -> tuple[dict[str, Any], Regions]:
    consts, carry = jax_compat.scan_layout(params)
    kept = {key: params[key] for key in ("length", "reverse", "unroll")}
    return {"num_consts": consts, "num_carry": carry, **kept}, (params["jaxpr"],)


def _cond(params: Mapping[str, Any]) -> tuple[dict[str, Any], Regions]:
    platforms = params.get("branches_platforms")
    return {"platforms": platforms} if platforms else {}, tuple(params["branches"])


def _reduce(params: Mapping[str, Any]) -> tuple[dict[str, Any], Regions]:
    return {"dimensions": _plain_value(tuple(params["dimensions"]))}, (params["jaxpr"],)


def _reduce_window(params: Mapping[str, Any]) -> tuple[dict[str, Any], Regions]:
    jaxpr = params["jaxpr"]
    body = Open(jaxpr.constvars, params["consts"], jaxpr.invars, jaxpr.eqns, jaxpr.outvars)
    return plain({k: v for k, v in params.items() if k not in ("jaxpr", "consts")}, {}), (body,)


def _linear_call(params: Mapping[str, Any]) -> tuple[dict[str, Any], Regions]:
    """The transpose ignores what the function alone closes over."""
    held = params["num_callee_consts"]
    closed, consts = params["transpose_thunk"]()
    constvars, _, invars, eqns, outvars = jax_compat.jaxpr_parts(jax_compat.without_refs(closed))
    own, rest = invars[: len(consts)], invars[len(consts) :]
    unused = jax_compat.jaxpr_parts(params["callee"])[2][:held]
    back = Open((*constvars, *own), tuple(consts), (*unused, *rest), eqns, outvars)
    return {"residuals": held + params["num_res"]}, (params["callee"], back)


def _shard_map(params: Mapping[str, Any]) -> tuple[dict[str, Any], Regions]:
    kept = {key: params[key] for key in ("mesh", "in_specs", "out_specs", "check_vma")}
    return {**kept, "manual_axes": jax_compat.newly_manual(params)}, (params["jaxpr"],)


def _linear_solve(params: Mapping[str, Any]) -> tuple[dict[str, Any], Regions]:
    names = ("matvec", "vecmat", "solve", "transpose_solve")
    lengths = tuple(int(getattr(params["const_lengths"], name)) for name in names)
    bodies = tuple(getattr(params["jaxprs"], name) for name in names)
    return {"const_lengths": lengths}, tuple(body for body in bodies if body is not None)


def _select_by_name(params: Mapping[str, Any]) -> tuple[dict[str, Any], Regions]:
    return plain({**params, "select_prim": params["select_prim"].name}, {}), ()


def _scatter(params: Mapping[str, Any]) -> tuple[dict[str, Any], Regions]:
    return {k: v for k, v in params.items() if not k.startswith("update_")}, ()


def _expanded(eqn: Any) -> tuple[str, Any] | None:
    if not jax_compat.expands(eqn):
        return None
    return type(eqn.params["_prim"]).__name__, jax_compat.expanded(eqn)


def _remat_opt(eqn: Any) -> tuple[str, Any]:
    """The forward part of a `custom_vjp` with `optimize_remat`, whose residuals XLA may drop."""
    return "optimize_remat", eqn.params["fwd_jaxpr"]


# Calls that are replaced by what they call: `(name, jaxpr)`, or None to leave one as it is.
OPENED: dict[str, Callable[[Any], tuple[str, Any] | None]] = {
    "call_hi_primitive": _expanded,
    "remat_opt": _remat_opt,
}

# Attributes that JAX's rules read off the types of the operands, and ours cannot.
FROM_TYPES: dict[str, dict[str, Callable[[Any], Any]]] = {
    "all_to_all": {"axis_size": _places},
    "reshard": {"src_sharding": lambda eqn: eqn.invars[0].aval.sharding},
}

NORMALISE: dict[str, Normalise] = {
    "jit": _keeping("name", bodies=["jaxpr"]),
    "closed_call": _keeping(bodies=["call_jaxpr"]),
    "eval_jaxpr": _keeping(bodies=["call_jaxpr"]),
    "remat2": _keeping("prevent_cse", "policy", bodies=["jaxpr"]),
    "scan": _scan,
    "while": _keeping("cond_nconsts", "body_nconsts", bodies=["cond_jaxpr", "body_jaxpr"]),
    "cond": _cond,
    "reduce": _reduce,
    "reduce_window": _reduce_window,
    "linear_call": _linear_call,
    "shard_map": _shard_map,
    "custom_linear_solve": _linear_solve,
    "select_and_scatter_add": _select_by_name,
    "select_and_gather_add": _select_by_name,
    **dict.fromkeys(
        ("scatter", "scatter-add", "scatter-sub", "scatter-mul", "scatter-min", "scatter-max"),
        _scatter,
    ),
}
