"""jaxpr -> Graph: each equation becomes a node, with its line and scope.

Sub-jaxprs become regions, imported once for each jaxpr object. What JAX adds to an equation's
parameters for its own use is dropped, so that attrs print and compare.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ..ir import jax_compat
from ..ir.graph import UNKNOWN, Graph, Literal, Node, Origin, Phase, Value
from ..ir.op import Op
from ..ir.ops import OPS
from ..ir.ops.foreign import foreign
from ..ir.types import ArrayType, type_of
from .custom_rules import jvp_rule, vjp_rule

Regions = tuple[Any, ...]
Normalise = Callable[[Mapping[str, Any]], tuple[dict[str, Any], Regions]]

# A custom rule often calls the very function that it belongs to. Rules inside rules are imported
# down to this depth, which serves derivatives of this order; deeper, the function's own body does.
RULE_DEPTH = 2


class Importer:
    """Imports jaxprs; remembers sub-jaxprs by identity for one program."""

    def __init__(self) -> None:
        """Start with nothing remembered."""
        self._regions: dict[tuple[int, int], tuple[Any, Graph]] = {}
        self._library_rules: dict[tuple[str, int, Graph], tuple[Graph, ...]] = {}

    def graph(
        self,
        jaxpr: Any,
        name: str,
        names: Sequence[str | None] = (),
        depth: int = 0,
        library: bool = False,
    ) -> Graph:
        """Import a closed jaxpr; `names` are the paths of its arguments.

        The equations of a `library` function show the line of their caller.
        """
        constvars, consts, invars, eqns, outvars = jax_compat.jaxpr_parts(jaxpr)
        env: dict[Any, Value] = {}
        nodes: list[Node] = []
        for var, const in zip(constvars, consts, strict=True):
            nodes.append(_constant(const, type_of(var)))
            env[var] = nodes[-1].output
        labels = [*names, *([None] * (len(invars) - len(names)))]
        for var, label in zip(invars, labels, strict=True):
            env[var] = Value(type_of(var), label)
        inputs = tuple(env[var] for var in invars)
        for eqn in eqns:
            nodes.append(self._node(eqn, env, depth, library))
        outputs = tuple(_read(var, env) for var in outvars)
        return Graph(name, inputs, tuple(nodes), outputs)

    def _node(self, eqn: Any, env: dict[Any, Value], depth: int, library: bool) -> Node:
        op, attrs, regions = self._translate(eqn, depth)
        inputs = tuple(_read(var, env) for var in eqn.invars)
        outputs = tuple(Value(type_of(var)) for var in eqn.outvars)
        env.update(zip(eqn.outvars, outputs, strict=True))
        origin, phase = _origin(eqn.source_info, library)
        return Node(op, inputs, outputs, attrs, regions, origin, phase)

    def _translate(self, eqn: Any, depth: int) -> tuple[Op, Mapping[str, Any], tuple[Graph, ...]]:
        name, params = eqn.primitive.name, eqn.params
        if name in _CUSTOM:
            return self._custom(eqn, depth)
        if name == "call_hi_primitive" and jax_compat.expands(eqn):
            body = self.graph(jax_compat.expanded(eqn), "expanded", depth=depth, library=True)
            return OPS["jit"], {"name": type(params["_prim"]).__name__}, (body,)
        normalise = _NORMALISE.get(name)
        if name == "scatter" and params["update_jaxpr"] is not None:  # scatter_apply's function
            return foreign(eqn.primitive), dict(params), ()
        if normalise is not None:
            attrs, bodies = normalise(params)
            if name == "shard_map":
                imported = partial(self.region, params["jaxpr"], depth)
                return OPS[name], attrs, (jax_compat.inside_shard_map(params, imported),)
            regions = tuple(self.region(body, depth) for body in bodies)
            return OPS[name], attrs, regions
        op = OPS.get(name) or foreign(eqn.primitive, bool(eqn.effects))
        if op.foreign:
            return op, dict(params), ()
        attrs = _plain(params, jax_compat.IMPLIED.get(name, {}))
        if name == "all_to_all":
            attrs["axis_size"] = _places(eqn)
        if name == "reshard":
            attrs["src_sharding"] = eqn.invars[0].aval.sharding
        return op, attrs, ()

    def region(self, body: Any, depth: int = 0) -> Graph:
        """Import a sub-jaxpr once; a graph passes through."""
        if isinstance(body, Graph):
            return body
        key = (id(body), depth)
        if key not in self._regions:
            name, library = jax_compat.jaxpr_name(body), jax_compat.is_library(body)
            graph = self.graph(body, name, depth=depth, library=library)
            self._regions[key] = (body, graph)
        return self._regions[key][1]

    def _custom(self, eqn: Any, depth: int) -> tuple[Op, Mapping[str, Any], tuple[Graph, ...]]:
        """Import a custom rule with its function; past `RULE_DEPTH`, the function alone."""
        call = self.region(eqn.params["call_jaxpr"], depth)
        name = jax_compat.custom_name(eqn.params)
        if depth >= RULE_DEPTH:
            return OPS["jit"], {"name": name}, (call,)
        regions = (call, *self._rules(eqn, name, call, depth))
        return OPS[eqn.primitive.name], {"name": name}, regions

    def _rules(self, eqn: Any, name: str, call: Graph, depth: int) -> tuple[Graph, ...]:
        """Import the rule; for JAX's own functions once for all calls with an equal body."""
        library = jax_compat.is_library(eqn.params["call_jaxpr"])
        key = (name, depth, call)
        if library and key in self._library_rules:
            return self._library_rules[key]
        rules = tuple(
            self.graph(jaxpr, f"{name}_{part}", depth=depth + 1, library=library)
            for part, jaxpr in _CUSTOM[eqn.primitive.name](eqn).items()
        )
        if library:
            self._library_rules[key] = rules
        return rules


def _origin(info: Any, library: bool) -> tuple[Origin, Phase]:
    """One fresh origin for each equation; the phase is read from JAX's own name stack."""
    stack = str(info.name_stack)
    phase: Phase = "backward" if "transpose(" in stack else "forward"
    return Origin(None, plain_scope(stack), None if library else info.traceback), phase


def import_jaxpr(jaxpr: Any, name: str, names: Sequence[str | None] = ()) -> Graph:
    """Import a closed jaxpr as a graph called `name`; `names` label its inputs."""
    return Importer().graph(jaxpr, name, names)


def import_open(
    jaxpr: Any, name: str, names: Sequence[str | None] = ()
) -> tuple[Graph, Sequence[Any]]:
    """Import a closed jaxpr with its constants as leading inputs; returns them beside it.

    They may be tracers of an outer trace, which a graph must not hold.
    """
    constvars, consts, invars, eqns, outvars = jax_compat.jaxpr_parts(jaxpr)
    opened = _Open((), (), (*constvars, *invars), eqns, outvars)
    labels = [*([None] * len(constvars)), *names]
    return Importer().graph(opened, name, labels), list(consts)


class _Open(NamedTuple):
    """The parts of a jaxpr, its constants turned into inputs."""

    constvars: tuple[Any, ...]
    consts: tuple[Any, ...]
    invars: tuple[Any, ...]
    eqns: Sequence[Any]
    outvars: Sequence[Any]


def _read(var: Any, env: Mapping[Any, Value]) -> Value:
    if hasattr(var, "val"):
        kind = type_of(var)
        return Literal(jax_compat.as_numpy_scalar(var.val, kind.dtype), kind)
    return env[var]


def _constant(const: Any, kind: ArrayType) -> Node:
    return Node(OPS["constant"], (), (Value(kind),), {"value": const}, (), UNKNOWN)


def plain_scope(stack: str) -> str:
    """Return the user's scope without JAX's wrappers: `jvp(a)/b` -> `a/b`."""
    for wrapper in ("transpose(", "jvp(", "vmap("):
        while wrapper in stack:
            start = stack.index(wrapper)
            end = _closing(stack, start + len(wrapper))
            stack = stack[:start] + stack[start + len(wrapper) : end] + stack[end + 1 :]
    return "/".join(part for part in stack.split("/") if part)


def _closing(text: str, start: int) -> int:
    depth = 1
    for i in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if depth == 0:
            return i
    return len(text)


def _plain(params: Mapping[str, Any], implied: Mapping[str, Any]) -> dict[str, Any]:
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
    return {}, tuple(params["branches"])


def _shard_map(params: Mapping[str, Any]) -> tuple[dict[str, Any], Regions]:
    kept = {key: params[key] for key in ("mesh", "in_specs", "out_specs", "check_vma")}
    return {**kept, "manual_axes": jax_compat.newly_manual(params)}, (params["jaxpr"],)


def _linear_solve(params: Mapping[str, Any]) -> tuple[dict[str, Any], Regions]:
    names = ("matvec", "vecmat", "solve", "transpose_solve")
    lengths = tuple(int(getattr(params["const_lengths"], name)) for name in names)
    bodies = tuple(getattr(params["jaxprs"], name) for name in names)
    return {"const_lengths": lengths}, tuple(body for body in bodies if body is not None)


def _select_by_name(params: Mapping[str, Any]) -> tuple[dict[str, Any], Regions]:
    return _plain({**params, "select_prim": params["select_prim"].name}, {}), ()


def _scatter(params: Mapping[str, Any]) -> tuple[dict[str, Any], Regions]:
    return {k: v for k, v in params.items() if not k.startswith("update_")}, ()


_CUSTOM: dict[str, Callable[[Any], dict[str, Any]]] = {
    "custom_jvp_call": jvp_rule,
    "custom_vjp_call": vjp_rule,
}

_NORMALISE: dict[str, Normalise] = {
    "jit": _keeping("name", bodies=["jaxpr"]),
    "closed_call": _keeping(bodies=["call_jaxpr"]),
    "eval_jaxpr": _keeping(bodies=["call_jaxpr"]),
    "remat2": _keeping("prevent_cse", "policy", bodies=["jaxpr"]),
    "scan": _scan,
    "while": _keeping("cond_nconsts", "body_nconsts", bodies=["cond_jaxpr", "body_jaxpr"]),
    "cond": _cond,
    "shard_map": _shard_map,
    "custom_linear_solve": _linear_solve,
    "select_and_scatter_add": _select_by_name,
    "select_and_gather_add": _select_by_name,
    "gradients": lambda params: ({"wrt": params["wrt"]}, (params["held"].graph,)),
    **dict.fromkeys(
        ("scatter", "scatter-add", "scatter-sub", "scatter-mul", "scatter-min", "scatter-max"),
        _scatter,
    ),
}
