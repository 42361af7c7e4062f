"""One op, one record: name, shape rule, lowering, VJP, FLOPs, effects.

A rule is a plain function. Rules that many ops share are made by the small factories here.

    shape(inputs, attrs, regions)          -> types of the outputs
    lower(args, attrs, regions, run)       -> JAX arrays; `run(region, *args)` runs a region
    vjp(b, node, cts, needs)               -> one cotangent or None for each input
    linearise(b, node, needs, ad)          -> (outputs, pullback), for ops with regions
    jvp(b, node, tangents, ad)             -> (outputs, tangents), for ops with regions
    flops(node)                            -> floating-point operations, a FMA counts as two

A VJP is written against the builder `b` alone, so that the same rule emits nodes in the static
pass and runs at once on a tape. `None` is the symbolic zero: no work is emitted for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from . import jax_compat
from .types import ArrayType, type_of

if TYPE_CHECKING:
    from .builder import Builder
    from .graph import Graph, Node, Value

Attrs = Mapping[str, Any]
Cts = Sequence["Value | None"]
Pullback = Callable[["Builder", Cts], Cts]
ShapeRule = Callable[[Sequence["Value"], Attrs, Sequence["Graph"]], tuple[ArrayType, ...]]
LowerRule = Callable[[Sequence[Any], Attrs, Sequence["Graph"], Callable[..., list[Any]]], list[Any]]
VjpRule = Callable[["Builder", "Node", Cts, Sequence[bool]], Cts]
FlopsRule = Callable[["Node"], int]


class Differentiator(Protocol):
    """What `passes/autodiff` lends to the rules of ops that have regions."""

    def activity(self, region: Graph, active: Sequence[bool]) -> Sequence[bool]:
        """Tell which outputs depend differentiably on the active inputs."""

    def split(
        self,
        region: Graph,
        active: Sequence[bool],
        store: Sequence[int] = (),
        seeds: Sequence[bool] | None = None,
        fixed: Sequence[int] = (),
    ) -> Split:
        """Split a region into a forward part that saves residuals and a backward part.

        Inputs at the positions `store` cannot be read again later and are stored if needed.
        `seeds` tells which outputs have cotangents; by default all of inexact type.
        Inputs at the positions `fixed` are the same each time that the region runs.
        """

    def linear_tape(
        self, b: Builder, region: Graph, inputs: Sequence[Value | None]
    ) -> tuple[Sequence[Value | None], Pullback]:
        """Emit the part of a region without tangents; pull back through the linear rest."""

    def inline(
        self,
        b: Builder,
        region: Graph,
        inputs: Sequence[Value],
        active: Sequence[bool],
        known: Mapping[Value, Value] = MappingProxyType({}),
    ) -> tuple[Sequence[Value], Pullback]:
        """Emit a region's nodes in place, `known` values apart, and give its pullback."""


@dataclass(frozen=True, slots=True)
class Split:
    """A region split for reverse mode.

    `once`:     fixed inputs              -> what is the same in every run
    `forward`:  inputs ++ first of `once` -> outputs ++ stored residuals
    `backward`: residuals ++ cotangents   -> cotangents of the active inputs
    `residuals` tells where each of backward's leading inputs comes from: `("input", i)` is the
    region's own input i, `("once", i)` is once's output i, `("stored", j)` is forward's j-th
    extra output. Without fixed inputs `once` is empty.
    `seeds` are the positions of the outputs whose cotangents `backward` takes.
    """

    once: Graph
    forward: Graph
    backward: Graph
    residuals: tuple[tuple[str, int], ...]
    seeds: tuple[int, ...]


class ForwardDifferentiator(Protocol):
    """What `passes/autodiff` lends to the forward rules of ops that have regions."""

    def activity(self, region: Graph, active: Sequence[bool]) -> Sequence[bool]:
        """Tell which outputs depend differentiably on the active inputs."""

    def inline(
        self, b: Builder, region: Graph, inputs: Sequence[Value], tangents: Cts
    ) -> tuple[Sequence[Value], Cts]:
        """Emit a region's nodes in place; gives its outputs and their tangents."""

    def region(
        self, region: Graph, active: Sequence[bool], wanted: Sequence[bool] | None = None
    ) -> Graph:
        """Carry tangents: inputs ++ active inputs' tangents -> outputs ++ wanted tangents."""

    def linear_tape(
        self, b: Builder, region: Graph, inputs: Sequence[Value | None]
    ) -> tuple[Sequence[Value | None], Pullback]:
        """Emit the part of a region without tangents; pull back through the linear rest."""


class JvpRule(Protocol):
    """Forward mode of an op with regions: emit its outputs and their tangents."""

    def __call__(
        self, b: Builder, node: Node, tangents: Cts, ad: ForwardDifferentiator
    ) -> tuple[Sequence[Value], Cts]:
        """See the module's docstring."""


class LineariseRule(Protocol):
    """Reverse mode of an op with regions: emit its outputs, return its pullback."""

    def __call__(
        self, b: Builder, node: Node, needs: Sequence[bool], ad: Differentiator
    ) -> tuple[Sequence[Value], Pullback]:
        """See the module's docstring."""


class LaterRule(Protocol):
    """A custom rule that is read when it is asked for: see `custom_jvp_call` for the regions.

    `perturbed` tells which inputs have tangents, `seeded` which outputs have cotangents.
    `order` is that of the first derivative that asks for it.
    """

    @property
    def order(self) -> int:
        """1 for the rule of a function of the program, 2 for one inside such a rule, ..."""

    def forward(self, perturbed: Sequence[bool]) -> Graph:
        """The region `jvp` of a `custom_jvp_call`, `fwd` of a `custom_vjp_call`."""

    def backward(self, perturbed: Sequence[bool], seeded: Sequence[bool]) -> Graph:
        """The region `bwd` of a `custom_vjp_call`."""


def no_flops(node: Node) -> int:
    """Data movement: no arithmetic."""
    return 0


def one_flop(node: Node) -> int:
    """One operation for each output element."""
    return sum(value.type.size for value in node.outputs)


def flop_per_input(node: Node) -> int:
    """One operation for each element of the first input, as in a reduction."""
    return node.inputs[0].type.size


@dataclass(frozen=True, slots=True, eq=False)
class Op:
    """The record of one op; see the module's docstring for the rules.

    `vjp` is None where no rule exists: differentiating through the op is then an error, unless
    `linearise` is there. Forward mode transposes `vjp` unless `jvp` is there.
    `effect` names what keeps a node from being removed, merged or moved.
    `foreign` marks a primitive that the tables do not list and that passes through unchanged.
    `rule` is the custom rule of a call whose regions do not hold it.
    """

    name: str
    shape: ShapeRule
    lower: LowerRule
    vjp: VjpRule | None = None
    linearise: LineariseRule | None = None
    jvp: JvpRule | None = None
    flops: FlopsRule = no_flops
    effect: str = ""
    foreign: bool = False
    rule: LaterRule | None = None


def bind_primitive(name: str) -> LowerRule:
    """Lowering that binds JAX's primitive of the same name."""

    def lower(
        args: Sequence[Any], attrs: Attrs, regions: Sequence[Graph], run: Callable[..., list[Any]]
    ) -> list[Any]:
        return jax_compat.bind(name, args, attrs)

    return lower


def call(function: Callable[..., Any]) -> LowerRule:
    """Lowering that calls `function(*args, **attrs)`, which returns one array or several."""

    def lower(
        args: Sequence[Any], attrs: Attrs, regions: Sequence[Graph], run: Callable[..., list[Any]]
    ) -> list[Any]:
        out = function(*args, **attrs)
        return list(out) if isinstance(out, tuple | list) else [out]

    return lower


def shape_by_jax(lower: LowerRule) -> ShapeRule:
    """Shape rule that asks JAX's own abstract evaluation; remembers the answers.

    For ops whose rule is long and whose use is rare. Raises what JAX raises.
    """
    known: dict[Any, tuple[ArrayType, ...]] = {}

    def shape(
        inputs: Sequence[Value], attrs: Attrs, regions: Sequence[Graph]
    ) -> tuple[ArrayType, ...]:
        types = tuple(value.type for value in inputs)
        key = (types, repr(sorted(attrs.items())), jnp.result_type(float))
        if key not in known:
            structs = [jax.ShapeDtypeStruct(t.shape, t.dtype, weak_type=t.weak) for t in types]
            outs = jax.eval_shape(lambda *args: lower(args, attrs, (), _no_regions), *structs)
            known[key] = tuple(map(type_of, outs))
        return known[key]

    return shape


def _no_regions(*args: Any) -> list[Any]:
    raise TypeError("this op has no regions")


def primitive_op(name: str, shape: ShapeRule | None = None, **rules: Any) -> Op:
    """Record of an op that lowers to JAX's primitive of the same name."""
    lower = bind_primitive(name)
    return Op(name, shape or shape_by_jax(lower), lower, **rules)


def no_gradient(b: Builder, node: Node, cts: Cts, needs: Sequence[bool]) -> Cts:
    """VJP of an op whose derivative is zero almost everywhere or not defined: stop here."""
    return [None] * len(node.inputs)


def per_operand(*rules: Callable[..., Value | None] | None) -> VjpRule:
    """VJP from one function for each operand, `rule(b, ct, out, *inputs, **attrs)`.

    For ops with one output. `None` stands for an operand without derivative. A function is
    called only where its cotangent is needed.
    """

    def vjp(b: Builder, node: Node, cts: Cts, needs: Sequence[bool]) -> Cts:
        (ct,), (out,) = cts, node.outputs
        return [
            rule(b, ct, out, *node.inputs, **node.attrs) if rule and needed else None
            for rule, needed in zip(rules, needs, strict=True)
        ]

    return vjp


def same_type(inputs: Sequence[Value], attrs: Attrs, regions: Sequence[Graph]) -> tuple[ArrayType]:
    """Shape rule of unary element-wise ops."""
    return (inputs[0].type,)


def hashable(x: Any) -> Any:
    """Hashable form of an attribute value, for keys; arrays by their bytes.

    Raises `TypeError` (when hashed) for what has no such form.
    """
    kind = type(x)
    if kind is tuple or kind is list:
        return tuple(map(hashable, x))
    if kind is np.ndarray or isinstance(x, np.generic):
        return (x.dtype, x.shape, x.tobytes())
    return (kind, x)
