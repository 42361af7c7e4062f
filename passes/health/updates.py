"""Which output of a step is which input's new value: `step(params, ...) -> (params, ...)`.

An output is the update of an input when it has its type and the path that it has in its argument
(`args[0]['w']`, `[1]['w']`), and is computed from it not by way of gradients alone. Of several
the shallowest counts; several of those are paired with inputs in their order, or are unknown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax.numpy as jnp

from ...ir.builder import Builder
from ...ir.graph import Graph, Literal, Node, Value
from .statistics import widened

_ARGUMENT = re.compile(r"args\[\d+\]|\w+")
_KEY = re.compile(r"\[[^\]]*\]|\.\w+")


@dataclass(frozen=True, eq=False)
class Flow:
    """Inputs that each value is computed from, gradients not followed; `behind`: backward nodes do.

    Sets are the bits of integers: bit i is that of input i.
    """

    reached: Mapping[Value, int]
    behind: int


def flow(graph: Graph) -> Flow:
    """Follow the inputs through a graph."""
    reached = {value: 1 << i for i, value in enumerate(graph.inputs)}
    behind = 0
    for node in graph.nodes:
        if node.op.name == "gradients":
            continue
        bits = 0
        for value in node.inputs:
            bits |= reached.get(value, 0)
        if bits:
            reached.update(dict.fromkeys(node.outputs, bits))
            behind |= bits if _is_backward(node) else 0
    return Flow(reached, behind)


def _is_backward(node: Node) -> bool:
    inner = (n for region in node.regions for n in region.walk())
    return node.phase == "backward" or any(n.phase == "backward" for n in inner)


def updates(graph: Graph, paths: Sequence[str], found: Flow) -> dict[Value, Value]:
    """New values of inputs, among the outputs, whose `paths` are such as `[0]['w']`."""
    alike: dict[tuple[str, object], list[int]] = {}
    for i, value in enumerate(graph.inputs):
        if value.type.is_inexact:
            rest = _ARGUMENT.sub("", value.name or "", count=1)
            alike.setdefault((rest, value.type.strong()), []).append(i)
    new: dict[Value, Value] = {}
    for (rest, kind), places in alike.items():
        ends = [
            (output, path)
            for output, path in zip(graph.outputs, paths, strict=True)
            if output.type.strong() == kind and path.endswith(rest) and _is_whole(path, rest)
        ]
        new.update(_paired(graph, places, ends, found))
    return new


def update_of(b: Builder, graph: Graph, old: Value, new: Value) -> Value:
    """`u` where `new = old + u` or `old - u`, else `new - old`.

    The former is known before `new`, which can then take the memory of `old`. Where rounding may
    leave next to nothing of it, in half precision, it is the latter.
    """
    node = graph.producer.get(new)
    if node is not None and node.op.name in ("add", "sub") and old.dtype.itemsize >= 4:
        others = [v for v in node.inputs if v is not old]
        ordered = node.op.name == "add" or node.inputs[0] is old
        if len(others) == 1 and ordered and others[0].shape == old.shape:
            return others[0]
    return b.sub(_rounded(b, new), widened(b, old))


def _rounded(b: Builder, new: Value) -> Value:
    """As it will be: in a loop XLA keeps more bits of a narrow number than it stores."""
    wide = widened(b, new)
    if wide.dtype == new.dtype:
        return wide
    kind = jnp.finfo(new.dtype)  # type: ignore[no-untyped-call]
    bits = {"exponent_bits": kind.nexp, "mantissa_bits": kind.nmant}
    return b.emit("reduce_precision", (wide,), bits)[0]


def _is_whole(path: str, rest: str) -> bool:
    """True where what is before `rest` in a path is keys of its own."""
    return not _KEY.sub("", path[: len(path) - len(rest)])


def _paired(
    graph: Graph, places: Sequence[int], ends: Sequence[tuple[Value, str]], found: Flow
) -> dict[Value, Value]:
    best: dict[int, list[Value]] = {}
    for i in places:
        mine = [
            (len(_KEY.findall(path)), output)
            for output, path in ends
            if not isinstance(output, Literal) and found.reached.get(output, 0) >> i & 1
        ]
        least = min((depth for depth, _ in mine), default=0)
        best[i] = [output for depth, output in mine if depth == least]
    sure: dict[int, Value] = {}
    while ready := [i for i, outputs in best.items() if len(outputs) == 1]:
        sure |= {i: best.pop(i)[0] for i in ready}
        taken = set(sure.values())
        best = {i: [v for v in outputs if v not in taken] for i, outputs in best.items()}
    several = {i: outputs for i, outputs in best.items() if outputs}
    first = next(iter(several.values()), [])
    if len(first) == len(several) and all(outputs == first for outputs in several.values()):
        sure |= dict(zip(several, first, strict=True))
    return {graph.inputs[i]: output for i, output in sure.items()}
