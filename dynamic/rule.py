"""One operation as two programs: forward with what it saves, and backward by our chain rules.

y = f(x)            forward: x -> y, hidden
ct of x             backward: saved x, saved y, hidden, ct of y -> ct of x

What backward reads are inputs and outputs where that is cheap: the rest is made again from them,
as an operation's derivative is then a function of tensors that have a history, and can be
differentiated again. Products, convolutions and the like in between are `hidden` results of the
forward program.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp

from ..compiler.derivatives import vjp
from ..compiler.importer import import_jaxpr
from ..compiler.program_call import plain
from ..ir.evaluate import run
from ..ir.fusion import is_fusible
from ..ir.graph import Graph, Literal, Node, Value
from ..ir.types import ArrayType
from ..passes import Cse, Dce, Simplify
from ..passes.autodiff import Reverse
from ..runtime.lower import lowered
from ..runtime.xla import Jitted


@dataclass(frozen=True, eq=False)
class Rule:
    """The backward half of an operation at some shapes.

    `inputs` and `outputs` are positions of the arrays that it reads; `hidden` of them were made
    for it. `active` are the positions of the inputs that it gives cotangents of, `seeded` those
    of the outputs that it takes cotangents of, of types `types`.
    """

    name: str
    fun: Callable[..., Any]
    backward: Graph
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    hidden: int
    active: tuple[int, ...]
    seeded: tuple[int, ...]
    types: tuple[ArrayType, ...]
    arity: int

    @property
    def reads(self) -> int:
        """How many arrays backward reads besides cotangents."""
        return len(self.inputs) + len(self.outputs) + self.hidden

    @cached_property
    def place(self) -> dict[int, int]:
        """For each seeded output its number among them."""
        return {i: k for k, i in enumerate(self.seeded)}

    def apply(self, saved: Sequence[Any], cts: Sequence[Any]) -> list[Any]:
        """Cotangents of the active inputs, from those of the seeded outputs; None is zero."""
        given = [
            jnp.zeros(kind.shape, kind.dtype) if ct is None else ct
            for ct, kind in zip(cts, self.types, strict=True)
        ]
        return run(self.backward, [*saved, *given], annotate=False)

    @cached_property
    def run(self) -> Callable[..., Any]:
        """`apply` as a program of its own."""
        return Jitted(self.apply)

    @cached_property
    def function(self) -> Callable[..., Any]:
        """Backward as a function of what it reads, to be recorded itself: `(*saved, *cts)`."""

        def backward(*args: Any) -> tuple[Any, ...]:
            count = len(args) - len(self.types)
            return tuple(self.apply(args[:count], args[count:]))

        backward.__name__ = f"{self.name}_backward"
        return backward

    @cached_property
    def from_inputs(self) -> Callable[..., Any]:
        """Backward as a function of all the operation's inputs: `(*inputs, *cts)`."""

        def backward(*args: Any) -> tuple[Any, ...]:
            xs, cts = list(args[: self.arity]), args[self.arity :]

            def of_active(*chosen: Any) -> list[Any]:
                full = list(xs)
                for i, x in zip(self.active, chosen, strict=True):
                    full[i] = x
                leaves = jax.tree.leaves(self.fun(*full))
                return [leaves[i] for i in self.seeded]

            _, pullback = vjp(of_active, *(xs[i] for i in self.active))
            return tuple(pullback(list(cts)))

        backward.__name__ = f"{self.name}_backward"
        return backward


class Saved:
    """The hidden results of an operation, and its rule; a pytree."""

    __slots__ = ("hidden", "rule")

    def __init__(self, rule: Rule, hidden: tuple[Any, ...]) -> None:
        """Of arrays or tracers."""
        self.rule, self.hidden = rule, hidden


jax.tree_util.register_pytree_node(Saved, lambda saved: (saved.hidden, saved.rule), Saved)


@dataclass(frozen=True, eq=False)
class Operation:
    """A function of arrays, its other arguments being settled.

    `active` are the positions of the arrays that are differentiated by; without any, it is just
    compiled.
    """

    name: str
    fun: Callable[..., Any]
    active: tuple[int, ...] = ()

    @cached_property
    def run(self) -> Callable[..., Any]:
        """The function's result; with active arrays, `(result, Saved)`. Compiled for each shape."""
        return Jitted(self._forward if self.active else self.fun)

    def _forward(self, *arrays: Any) -> tuple[Any, Saved]:
        """Staged once for each choice of shapes."""
        jaxpr, shapes = jax.make_jaxpr(self.fun, return_shape=True)(*arrays)
        graph = Dce()(plain(import_jaxpr(jaxpr, self.name)))
        active = [i in self.active for i in range(len(arrays))]
        reached = Reverse().activity(graph, active)
        seeds = [on and v.type.is_inexact for on, v in zip(reached, graph.outputs, strict=True)]
        forward, rule = self._divided(graph, active, seeds)
        outs = lowered(forward, [value.type for value in forward.outputs])(*arrays)
        count = len(graph.outputs)
        tree = jax.tree.structure(shapes)
        return jax.tree.unflatten(tree, outs[:count]), Saved(rule, tuple(outs[count:]))

    def _divided(
        self, graph: Graph, active: Sequence[bool], seeds: Sequence[bool]
    ) -> tuple[Graph, Rule]:
        """The forward graph, whose last outputs are hidden ones, and the rule."""
        split = Reverse().split(graph, active, seeds=seeds)
        first, second = split.forward, split.backward
        count = len(graph.outputs)
        place = {value: i for i, value in reversed(list(enumerate(first.inputs)))}
        made = {value: i for i, value in reversed(list(enumerate(first.outputs[:count])))}
        read = [
            first.inputs[at] if kind == "input" else first.outputs[count + at]
            for kind, at in split.residuals
        ]
        again, start = _again(first, {*place, *made}, read)
        env = dict(zip(second.inputs, read, strict=False))
        nodes = (*again, *(_with(node, env) for node in second.nodes))
        inputs = [v for v in first.inputs if v in start]
        outputs = [v for v in dict.fromkeys(first.outputs[:count]) if v in start and v not in place]
        hidden = [v for v in dict.fromkeys(_defined(first)) if v in start and v not in made]
        cts = second.inputs[len(read) :]
        wanted = tuple(env.get(v, v) for v in second.outputs)
        backward = Graph(second.name, (*inputs, *outputs, *hidden, *cts), nodes, wanted)
        rule = Rule(
            name=self.name,
            fun=self.fun,
            backward=Dce()(Cse()(Simplify()(backward))),
            inputs=tuple(place[v] for v in inputs),
            outputs=tuple(made[v] for v in outputs),
            hidden=len(hidden),
            active=self.active,
            seeded=tuple(i for i, on in enumerate(seeds) if on),
            types=tuple(v.type for v in cts),
            arity=len(graph.inputs),
        )
        outs = (*first.outputs[:count], *hidden)
        return Dce()(Graph(first.name, first.inputs, first.nodes, outs)), rule


def _defined(graph: Graph) -> list[Value]:
    return [value for node in graph.nodes for value in node.outputs]


def _with(node: Node, env: dict[Value, Value]) -> Node:
    inputs = tuple(env.get(v, v) for v in node.inputs)
    return Node(node.op, inputs, node.outputs, node.attrs, node.regions, node.origin, node.phase)


def _again(
    forward: Graph, known: Set[Value], wanted: Sequence[Value]
) -> tuple[list[Node], set[Value]]:
    """Nodes that make `wanted` again, in order, and the values that they start from.

    They start from what is `known`, and from what is dear to make.
    """
    maker = {value: node for node in forward.nodes for value in node.outputs}
    again: set[Node] = set()
    start: set[Value] = set()
    pending = [v for v in wanted if not isinstance(v, Literal)]
    while pending:
        value = pending.pop()
        node = maker.get(value)
        if value in known or node is None or node.regions or not is_fusible(node):
            start.add(value)
        elif node not in again:
            again.add(node)
            pending += [v for v in node.inputs if not isinstance(v, Literal)]
    return [node for node in forward.nodes if node in again], start
