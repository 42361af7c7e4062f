"""jaxpr -> Graph: each equation becomes a node, with its line and scope.

Sub-jaxprs become regions, imported once for each jaxpr object. What becomes of an equation's
parameters is told by the tables of `parameters.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from ..ir import jax_compat
from ..ir.builder import Builder
from ..ir.errors import TraceError
from ..ir.graph import UNKNOWN, Graph, Literal, Node, Origin, Phase, Value
from ..ir.jax_compat import trace_context
from ..ir.op import Differentiator, Op, Pullback
from ..ir.ops import OPS
from ..ir.ops.custom import with_rule
from ..ir.ops.foreign import by_derivation, foreign
from ..ir.phases import outermost
from ..ir.spec import spec_of
from ..ir.types import ArrayType, type_of
from .custom_rules import Later, jvp_rule, vjp_rule
from .diagnose import CONCRETE
from .fallback import derive
from .parameters import FROM_TYPES, NORMALISE, OPENED, Open, plain
from .python_call import refuse_to_differentiate

# A custom rule often calls the very function that it belongs to. Rules inside rules are imported
# down to this depth, which serves derivatives of this order; deeper ones when they are asked for.
RULE_DEPTH = 3

_CUSTOM: dict[str, Callable[[Any], dict[str, Any]]] = {
    "custom_jvp_call": jvp_rule,
    "custom_vjp_call": vjp_rule,
}


class Importer:
    """Imports jaxprs; remembers sub-jaxprs by identity for one program."""

    def __init__(self) -> None:
        """Start with nothing remembered."""
        self._regions: dict[tuple[int, int], tuple[Any, Graph]] = {}

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
        jaxpr = jax_compat.without_refs(jaxpr)
        constvars, consts, invars, eqns, outvars = jax_compat.jaxpr_parts(jaxpr)
        env: dict[Any, Value] = {}
        nodes: list[Node] = []
        last: set[Node] = set()
        for var, const in zip(constvars, consts, strict=True):
            nodes.append(_constant(const, _type(var)))
            env[var] = nodes[-1].output
        labels = [*names, *([None] * (len(invars) - len(names)))]
        for var, label in zip(invars, labels, strict=True):
            env[var] = Value(_typed(var), label)
        inputs = tuple(env[var] for var in invars)
        for eqn in eqns:
            stack = str(eqn.source_info.name_stack)
            node = self._node(eqn, stack, env, depth, library)
            parts = _IN_STEPS[node.op.name](node) if node.op.name in _IN_STEPS else (node,)
            parts = (*parts[:-1], *_constrained(parts[-1]))
            nodes += parts
            if "transpose(" in stack.partition("jvp(")[0]:  # of no function's own gradient
                last.update(parts)
        outputs = tuple(_operand(var, env) for var in outvars)
        return Graph(name, inputs, outermost(nodes, last), outputs)

    def _node(self, eqn: Any, stack: str, env: dict[Any, Value], depth: int, library: bool) -> Node:
        op, attrs, regions = self._translate(eqn, depth)
        inputs = tuple(_operand(var, env) for var in eqn.invars)
        outputs = tuple(Value(_typed(var)) for var in eqn.outvars)
        env.update(zip(eqn.outvars, outputs, strict=True))
        origin, phase = _origin(stack, None if library else eqn.source_info.traceback)
        return Node(op, inputs, outputs, attrs, regions, origin, phase)

    def _translate(self, eqn: Any, depth: int) -> tuple[Op, Mapping[str, Any], tuple[Graph, ...]]:
        name, params = eqn.primitive.name, eqn.params
        if not jax_compat.is_named(eqn.primitive):
            return foreign(eqn.primitive, bool(eqn.effects), _rule_of(name)), dict(params), ()
        if name in _CUSTOM:
            return self._custom(eqn, depth)
        if name == "program_call":
            return _of_program(params["held"].graph)
        opened = OPENED[name](eqn) if name in OPENED else None
        if opened is not None:
            label, jaxpr = opened
            body = self.graph(jaxpr, "expanded", depth=depth, library=True)
            return OPS["jit"], {"name": label}, (body,)
        normalise = NORMALISE.get(name)
        if name == "scatter" and params["update_jaxpr"] is not None:  # scatter_apply's function
            return foreign(eqn.primitive, False, _rule_of(name)), dict(params), ()
        if normalise is not None:
            attrs, bodies = normalise(params)
            if name == "shard_map":
                imported = partial(self.region, params["jaxpr"], depth)
                return OPS[name], attrs, (jax_compat.inside_shard_map(params, imported),)
            regions = tuple(self.region(body, depth) for body in bodies)
            return OPS[name], attrs, regions
        op = OPS.get(name) or foreign(eqn.primitive, bool(eqn.effects), _rule_of(name))
        if op.foreign:
            return op, dict(params), ()
        attrs = plain(params, jax_compat.IMPLIED.get(name, {}))
        return op, attrs | {key: of(eqn) for key, of in FROM_TYPES.get(name, {}).items()}, ()

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
        """Import a custom rule with its function, or leave it to be imported when it is needed.

        So it is with one that raises, as nobody may ever ask for the derivative; but where it asks
        for a value, the function may be recorded in place of staged.
        """
        call = self.region(eqn.params["call_jaxpr"], depth)
        name = jax_compat.custom_name(eqn.params)
        if depth < RULE_DEPTH and not eqn.params["symbolic_zeros"]:
            try:
                regions = (call, *self._rules(eqn, name, call, depth))
                return OPS[eqn.primitive.name], {"name": name}, regions
            except CONCRETE:
                raise
            except Exception:  # it is raised again where a derivative asks
                pass
        library = jax_compat.is_library(eqn.params["call_jaxpr"])
        later = Later(eqn, depth + 1, partial(_read_rule, name, depth + 1, library))
        return with_rule(eqn.primitive.name, later), {"name": name}, (call,)

    def _rules(self, eqn: Any, name: str, call: Graph, depth: int) -> tuple[Graph, ...]:
        """Import the rule; for JAX's own functions once for all calls with an equal body."""
        library = jax_compat.is_library(eqn.params["call_jaxpr"])
        rule = _Rule(name, depth, call, trace_context(), self, eqn)
        if library:
            graphs, reusable = _library_rules(rule)
            return graphs if reusable else rule.imported(library=True)
        return rule.imported(library=False)


@dataclass(frozen=True)
class _Rule:
    """A custom rule as a key: equal ones of one library are the same."""

    name: str
    depth: int
    call: Graph
    context: Hashable
    importer: Importer = field(compare=False)
    eqn: Any = field(compare=False)

    def imported(self, *, library: bool) -> tuple[Graph, ...]:
        """Trace the rule and import its parts."""
        parts = _CUSTOM[self.eqn.primitive.name](self.eqn)
        return tuple(
            self.importer.graph(jaxpr, f"{self.name}_{part}", (), self.depth + 1, library)
            for part, jaxpr in parts.items()
        )


def _read_rule(name: str, depth: int, library: bool, part: str, jaxpr: Any) -> Graph:
    return Importer().graph(jaxpr, f"{name}_{part}", (), depth, library)


@lru_cache(maxsize=256)
def _library_rules(rule: _Rule) -> tuple[tuple[Graph, ...], bool]:
    """Import a rule once, and tell whether it serves again: not if it closes over a tracer."""
    graphs = rule.imported(library=True)
    constants = [n for g in graphs for n in g.walk() if n.op.name == "constant"]
    return graphs, not any(isinstance(n.attrs["value"], jax.core.Tracer) for n in constants)


def _untwisted(node: Node) -> tuple[Node, ...]:
    """`reshape` that permutes dimensions first (`lax.reshape(x, sizes, dimensions)`) as two ops."""
    attrs = dict(node.attrs)
    order = attrs.pop("dimensions", None)
    if order is None:
        return (node,)
    (x,) = node.inputs
    turned = Value(x.type.with_shape(tuple(x.shape[i] for i in order)))
    return (
        _before(node, "transpose", x, turned, {"permutation": tuple(order)}),
        replace(node, inputs=(turned,), attrs=attrs),
    )


def _converted(node: Node) -> tuple[Node, ...]:
    """`mul` that names the dtype of its result: operands are converted first, as JAX lowers it."""
    attrs = dict(node.attrs)
    dtype = attrs.pop("out_dtype", None)
    if dtype is None:
        return (node,)
    kind = {"new_dtype": np.dtype(dtype), "weak_type": False}
    wide = tuple(Value(ArrayType(x.shape, kind["new_dtype"])) for x in node.inputs)
    steps = (
        _before(node, "convert_element_type", x, y, kind)
        for x, y in zip(node.inputs, wide, strict=True)
    )
    return (*steps, replace(node, inputs=wide, attrs=attrs))


def _type(var: Any) -> ArrayType:
    """Type of a variable. Raises `TraceError` where it is no array."""
    if isinstance(var.aval, jax.ref.AbstractRef):
        raise TraceError(
            f"a graph wants arrays, found a mutable one that was made outside, {var.aval}\n  make "
            "it in the function with jax.new_ref, or take its value and return the new one"
        )
    if not hasattr(var.aval, "shape"):
        raise TraceError(f"a graph wants arrays, found a value of type {var.aval}")
    return type_of(var)


def _typed(var: Any) -> ArrayType:
    """Type of a variable, with how it lies on explicit axes of a mesh."""
    kind = _type(var)
    sharding = getattr(var.aval, "sharding", None)
    if sharding is None or sharding.mesh.empty:
        return kind
    return kind.spread(spec_of(sharding, kind.ndim))


def _constrained(node: Node) -> tuple[Node, ...]:
    """An op that says how its result lies on explicit axes, as two: such axes are left to XLA."""
    key = next((key for key in ("sharding", "out_sharding") if key in node.attrs), None)
    sharding = None if key is None else node.attrs[key]
    if node.op.name in ("sharding_constraint", "device_put") or len(node.outputs) != 1:
        return (node,)
    if not isinstance(sharding, NamedSharding):
        return (node,)
    made = Value(node.output.type)
    attrs = {"dst_sharding": sharding, "src_sharding": sharding, "concrete_mesh": None}
    bare = {name: value for name, value in node.attrs.items() if name != key}
    told = Node(OPS["reshard"], (made,), node.outputs, attrs, (), node.origin, node.phase)
    return replace(node, outputs=(made,), attrs=bare), told


def _before(node: Node, op: str, x: Value, y: Value, attrs: Mapping[str, Any]) -> Node:
    """The node `y = op(x)` that belongs to the equation of `node`."""
    return Node(OPS[op], (x,), (y,), attrs, (), node.origin, node.phase)


# Equations that are more than one node.
_IN_STEPS: Mapping[str, Callable[[Node], tuple[Node, ...]]] = {
    "reshape": _untwisted,
    "mul": _converted,
}


def _origin(stack: str, traceback: Any) -> tuple[Origin, Phase]:
    """One fresh origin for each equation; the phase is read from JAX's own name stack."""
    phase: Phase = "backward" if "transpose(" in stack else "forward"
    return Origin(None, plain_scope(stack), traceback), phase


def _read(jaxpr: Any, name: str) -> Graph:
    return Importer().graph(jaxpr, name, library=True)


def _of_body(
    b: Builder, node: Node, needs: Sequence[bool], ad: Differentiator
) -> tuple[Sequence[Value], Pullback]:
    """The function that a batching rule belongs to; the rule is for batches alone."""
    return ad.inline(b, _read(node.attrs["call"], node.op.name), node.inputs, needs)


# Primitives without a record whose derivative is known from their parameters.
FOREIGN: dict[str, Callable[..., Any]] = {
    "custom_vmap_call": _of_body,
    "python_call": refuse_to_differentiate,
}
_BY_JAX = by_derivation(partial(derive, read=_read))


def _rule_of(name: str) -> Callable[..., Any]:
    """Reverse mode of a primitive that the tables do not list."""
    return FOREIGN.get(name, _BY_JAX)


def import_jaxpr(jaxpr: Any, name: str, names: Sequence[str | None] = ()) -> Graph:
    """Import a closed jaxpr as a graph called `name`; `names` label its inputs."""
    return Importer().graph(jaxpr, name, names)


def import_open(
    jaxpr: Any, name: str, names: Sequence[str | None] = ()
) -> tuple[Graph, Sequence[Any]]:
    """Import a closed jaxpr with its constants as leading inputs; returns them beside it.

    They may be tracers of an outer trace, which a graph must not hold.
    """
    jaxpr = jax_compat.without_refs(jaxpr)
    constvars, consts, invars, eqns, outvars = jax_compat.jaxpr_parts(jaxpr)
    opened = Open((), (), (*constvars, *invars), eqns, outvars)
    labels = [*([None] * len(constvars)), *names]
    return Importer().graph(opened, name, labels), list(consts)


def _operand(var: Any, env: Mapping[Any, Value]) -> Value:
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


def _of_program(graph: Graph) -> tuple[Op, Mapping[str, Any], tuple[Graph, ...]]:
    """Return the one node that a program consists of, or a call of the program."""
    if len(graph.nodes) == 1:
        (node,) = graph.nodes
        if (node.inputs, node.outputs) == (graph.inputs, graph.outputs):
            return node.op, node.attrs, node.regions
    return OPS["jit"], {"name": graph.name}, (graph,)
