"""Reverse mode: emit a region's nodes, then walk them backwards by the chain rule.

For y = f(x) the pullback maps a cotangent of y to one of x. Walking the nodes in reverse order,
each op's VJP turns the cotangents of its outputs into contributions to those of its inputs,
which are summed where a value is read more than once. `None` is the symbolic zero.

Source: Linnainmaa 1970; Griewank and Walther, "Evaluating Derivatives", 2008, chapter 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from ...ir.builder import Builder
from ...ir.errors import DifferentiationError, MissingRuleError
from ...ir.graph import Graph, Literal, Node, Origin, Phase, Value
from ...ir.op import Cts, Pullback, Split, no_gradient
from ...ir.ops import OPS
from ...ir.ops.tangents import grown
from .partition import partition

NOTHING: Mapping[Value, Value] = {}


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One node of the tape: as it stood in the region, as it was emitted, how to pull back."""

    node: Node
    emitted: Node | None
    pullback: Pullback | None
    needs: tuple[bool, ...]
    origin: Origin


def propagates(node: Node) -> bool:
    """True when a derivative can flow through the node at all."""
    return node.op.vjp is not no_gradient and any(v.type.is_inexact for v in node.outputs)


CALLS = frozenset(("jit", "closed_call", "eval_jaxpr", "remat2"))
CUSTOM = frozenset(("custom_jvp_call", "custom_vjp_call"))


@dataclass(frozen=True, slots=True)
class Reverse:
    """The differentiator that the rules of ops with regions are given.

    `outermost`: nothing around will differentiate again, so a custom rule that this derivative
    has no use for is dropped and its function inlined.
    """

    outermost: bool = False

    def activity(self, region: Graph, active: Sequence[bool]) -> Sequence[bool]:
        """Tell which outputs depend differentiably on the active inputs."""
        live = {v for v, a in zip(region.inputs, active, strict=True) if a and v.type.is_inexact}
        for node in region.nodes:
            needs = [value in live for value in node.inputs]
            if any(needs) and propagates(node):
                reached = zip(node.outputs, self.reached(node, needs), strict=True)
                live.update(v for v, on in reached if on and v.type.is_inexact)
        return [value in live for value in region.outputs]

    def inline(
        self,
        b: Builder,
        region: Graph,
        inputs: Sequence[Value],
        active: Sequence[bool],
        known: Mapping[Value, Value] = NOTHING,
    ) -> tuple[Sequence[Value], Pullback]:
        """Emit a region's nodes in place and give its pullback.

        Values in `known` are read from there and not computed again.
        """
        within, phase = b.origin, b.phase
        env = dict(zip(region.inputs, inputs, strict=True))
        live = {v for v, a in zip(region.inputs, active, strict=True) if a and v.type.is_inexact}
        tape: list[Step] = []
        origins: dict[Origin, Origin] = {}
        for node in region.nodes:
            origin = moved(node.origin, within, origins)
            needs = tuple(value in live for value in node.inputs)
            on_tape = any(needs) and propagates(node)
            operands = [env.get(value, value) for value in node.inputs]
            step = self._emit(b, node, operands, needs, origin, on_tape)
            outputs = step.emitted.outputs if step.emitted else ()
            env.update(zip(node.outputs, outputs, strict=True))
            env.update((v, known[v]) for v in node.outputs if v in known)
            if on_tape:
                live.update(v for v in node.outputs if v.type.is_inexact)
                tape.append(_reading(step, env))
        b.origin, b.phase = within, phase

        def pullback(b: Builder, cts: Cts) -> Cts:
            return walk_back(b, region, tape, cts)

        return [env.get(value, value) for value in region.outputs], pullback

    def _emit(
        self,
        b: Builder,
        node: Node,
        operands: Sequence[Value],
        needs: tuple[bool, ...],
        origin: Origin,
        on_tape: bool,
    ) -> Step:
        outer = b.origin
        if not on_tape or node.op.linearise is None:
            return Step(node, self._clone(b, node, operands, origin), None, needs, origin)
        b.origin = origin
        asked = Node(node.op, tuple(operands), node.outputs, node.attrs, node.regions, origin)
        outputs, pullback = node.op.linearise(b, asked, needs, self)
        b.origin = outer
        emitted = Node(node.op, tuple(operands), tuple(outputs), node.attrs, node.regions, origin)
        return Step(node, emitted, pullback, needs, origin)

    def _clone(self, b: Builder, node: Node, operands: Sequence[Value], origin: Origin) -> Node:
        if not (self.outermost and node.op.name in CUSTOM):
            return b.clone(node, operands, origin)
        outputs, _ = b.inline(node.regions[0], operands, origin)
        return Node(node.op, tuple(operands), outputs, node.attrs, node.regions, origin)

    def linear_tape(
        self,
        b: Builder,
        region: Graph,
        inputs: Sequence[Value | None],
        phase: Phase = "backward",
    ) -> tuple[Sequence[Value | None], Pullback]:
        """Emit what does not depend on the inputs given as None; the rest is linear in them.

        The linear part is never run: its pullback is its transpose, and the VJP rules of linear
        ops read only their other operands. All nodes take the origin of the rule's caller.
        """
        env = {v: x for v, x in zip(region.inputs, inputs, strict=True) if x is not None}
        linear = {v for v, x in zip(region.inputs, inputs, strict=True) if x is None}
        tape: list[Step] = []
        origin = b.origin
        for node in region.nodes:
            operands = [env.get(value, value) for value in node.inputs]
            needs = tuple(value in linear for value in node.inputs)
            if any(needs) and propagates(node):
                step, outputs = self._linear_step(b, node, operands, needs)
                tape.append(step)
                for value, at_zero, on in zip(
                    node.outputs, outputs, self.reached(node, needs), strict=True
                ):
                    if on:
                        linear.add(value)
                    else:
                        env[value] = at_zero
            elif not any(needs):
                copy = self._clone(b, node, operands, origin)
                env.update(zip(node.outputs, copy.outputs, strict=True))

        def pullback(b: Builder, cts: Cts) -> Cts:
            start = len(b.nodes)
            found = walk_back(b, region, tape, cts, phase)
            _check_linear(region, b.nodes[start:], linear)
            return found

        def primal(value: Value) -> Value | None:
            return value if isinstance(value, Literal) else env.get(value)

        return [primal(value) for value in region.outputs], pullback

    def reached(self, node: Node, needs: Sequence[bool]) -> Sequence[bool]:
        """Tell which outputs of a node depend on the needed inputs."""
        attrs, regions = node.attrs, node.regions
        if node.op.name == "optimization_barrier":
            return needs
        if node.op.name == "cond":
            each = [self.activity(branch, needs[1:]) for branch in regions]
            return [any(outs) for outs in zip(*each, strict=True)]
        if node.op.name == "scan":
            carry = slice(attrs["num_consts"], attrs["num_consts"] + attrs["num_carry"])
            return grown(regions[0], list(needs), carry, self)
        if node.op.name in CALLS:
            return self.activity(regions[0], needs)
        return [True] * len(node.outputs)

    def _linear_step(
        self, b: Builder, node: Node, operands: Sequence[Value], needs: tuple[bool, ...]
    ) -> tuple[Step, Sequence[Value]]:
        """Tape of a linear node, and its outputs where what is absent is zero.

        One with regions is linearised at zero, as good a point as any.
        """
        absent = Node(node.op, tuple(operands), node.outputs, node.attrs, node.regions, b.origin)
        if node.op.linearise is None or node.op.vjp is not None:
            outputs = operands if node.op.name == "optimization_barrier" else node.outputs
            return Step(node, absent, None, needs, b.origin), outputs
        at = [b.zeros(x) if need else x for x, need in zip(operands, needs, strict=True)]
        asked = Node(node.op, tuple(at), node.outputs, node.attrs, node.regions, b.origin)
        outputs, pullback = node.op.linearise(b, asked, needs, self)
        return Step(node, absent, pullback, needs, b.origin), outputs

    def split(
        self,
        region: Graph,
        active: Sequence[bool],
        store: Sequence[int] = (),
        seeds: Sequence[bool] | None = None,
        fixed: Sequence[int] = (),
    ) -> Split:
        """Split a region into a forward part that saves residuals and a backward part."""
        b = Builder(OPS)
        inputs = [Value(value.type, value.name) for value in region.inputs]
        outputs, pullback = self.inline(b, region, inputs, active)
        seeds = seeds or [value.type.is_inexact for value in region.outputs]
        where = tuple(i for i, seeded in enumerate(seeds) if seeded)
        cts = {i: Value(region.outputs[i].type.strong()) for i in where}
        end = len(b.nodes)
        b.phase = "backward"
        found = pullback(b, [cts.get(i) for i in range(len(outputs))])
        wanted = [
            b.zeros(value) if ct is None else ct
            for ct, value, is_active in zip(found, region.inputs, active, strict=True)
            if is_active
        ]
        forward, backward = b.nodes[:end], b.nodes[end:]
        return partition(
            region.name, inputs, forward, backward, outputs, cts, wanted, frozenset(store), fixed
        )


def _check_linear(region: Graph, nodes: Sequence[Node], absent: Set[Value]) -> None:
    """Raise `DifferentiationError` where a transposed node reads a value that was never there."""
    for node in nodes:
        if not absent.isdisjoint(node.inputs):
            raise DifferentiationError(
                f"{region.name} wants to be transposed and is not linear: {node.op.name!r} reads "
                f"the cotangent's own value\n  at {node.source or 'unknown line'}; use reverse "
                "mode, or write the rule so that it is linear in the cotangent"
            )


def moved(origin: Origin, within: Origin, done: dict[Origin, Origin]) -> Origin:
    """Return the origin inside the scope of the node whose region is inlined."""
    if not within.scope and origin.known:
        return origin
    if origin not in done:
        done[origin] = origin.under(within)
    return done[origin]


def _reading(step: Step, env: Mapping[Value, Value]) -> Step:
    """Let the tape's node show the values that stand for its outputs."""
    node = step.emitted
    outputs = tuple(env[value] for value in step.node.outputs)
    if node is None or outputs == node.outputs:
        return step
    shown = Node(node.op, node.inputs, outputs, node.attrs, node.regions, node.origin)
    return Step(step.node, shown, step.pullback, step.needs, step.origin)


def walk_back(
    b: Builder, region: Graph, tape: Sequence[Step], cts: Cts, phase: Phase = "backward"
) -> Cts:
    """Cotangents of the region's inputs from those of its outputs."""
    found: dict[Value, Value] = {}

    def accumulate(value: Value, ct: Value | None) -> None:
        if ct is not None and not isinstance(value, Literal):
            found[value] = b.add_any(found[value], ct) if value in found else ct

    outer: tuple[Origin, Phase] = (b.origin, b.phase)
    b.phase = phase
    for value, ct in zip(region.outputs, cts, strict=True):
        accumulate(value, ct)
    for step in reversed(tape):
        given = [found.pop(value, None) for value in step.node.outputs]
        if all(ct is None for ct in given):
            continue
        b.origin = step.origin
        for value, ct, needed in zip(
            step.node.inputs, pull(b, step, given), step.needs, strict=True
        ):
            if needed:
                accumulate(value, ct)
    b.origin, b.phase = outer
    return [found.get(value) for value in region.inputs]


def pull(b: Builder, step: Step, cts: Cts) -> Cts:
    """Cotangents of one node's inputs. Raises `MissingRuleError`."""
    if step.pullback is not None:
        return step.pullback(b, cts)
    node = step.emitted
    assert node is not None
    if node.op.vjp is None:
        raise missing_rule(node, step.origin)
    return node.op.vjp(b, node, cts, step.needs)


def missing_rule(node: Node, origin: Origin) -> MissingRuleError:
    """Say which op has no rule, where it stands, and what to do."""
    where = f"\n  at {origin.source or 'unknown line'}"
    scope = f" in {origin.scope}" if origin.scope else ""
    return MissingRuleError(
        f"no VJP rule for {node.op.name!r}, which stands between an input and the loss"
        f"{where}{scope}; use another formulation, wrap it in jax.lax.stop_gradient, or give "
        "it a rule of its own with jax.custom_vjp"
    )
