"""Running a graph: each node by its op's lowering, on arrays or on JAX's tracers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from .errors import ArgumentError
from .graph import Graph, Literal, Node, Value
from .jax_compat import source_context


def evaluate(graph: Graph, *args: Any) -> list[Any]:
    """Run `graph` on `args`, one array for each input; returns a list, one for each output.

    Works op by op on concrete arrays, and stages into the caller's trace under `jax.jit`.

    Raises:
        ArgumentError: the number of arguments is not that of the inputs.
    """
    return run(graph, args, annotate=False)


def run(graph: Graph, args: Sequence[Any], *, annotate: bool) -> list[Any]:
    """Evaluate; with `annotate` the user's lines and scopes reach the HLO."""
    if len(args) != len(graph.inputs):
        raise ArgumentError(f"{graph.name} takes {len(graph.inputs)} arguments, got {len(args)}")
    env: dict[Value, Any] = dict(zip(graph.inputs, args, strict=True))

    def read(value: Value) -> Any:
        return value.data if isinstance(value, Literal) else env[value]

    def region(body: Graph, *operands: Any) -> list[Any]:
        return run(body, operands, annotate=annotate)

    for node in graph.nodes:
        origin = node.origin
        where = source_context(origin.traceback, _stack(node)) if annotate else nullcontext()
        with where:
            operands = [read(value) for value in node.inputs]
            outs = node.op.lower(operands, node.attrs, node.regions, region)
        env.update(zip(node.outputs, outs, strict=True))
    return [read(value) for value in graph.outputs]


def _stack(node: Node) -> str:
    """The scope of a node, its phase in front where it is not forward: profilers show both."""
    phase = "" if node.phase == "forward" else node.phase
    return "/".join(part for part in (phase, node.scope) if part)
