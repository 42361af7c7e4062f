"""What is most often the matter, by the op in which trouble began."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from ...ir.fusion import is_fusible
from ...ir.graph import Graph, Literal, Node, Value
from .locate import Birth

_LOG = "log wants numbers above 0: add a small number, clamp, or use jax.nn.log_softmax or log1p"
_ROOT = "the root of a negative number; clamp, or add a small number below the root"
_EXP = (
    "exp overflows above 88 in float32, 11 in float16: subtract the maximum first, or use "
    "jax.nn.softmax, jax.nn.logsumexp, jax.nn.softplus"
)
_DIV = "a division by 0 or by what underflowed: add a small number to the divisor"
_RANGE = "sums and products beyond the dtype's range: scale the operands or use a wider dtype"
_SLOPE = {
    "sqrt": "the slope of sqrt is infinite at 0: add a small number below the root",
    "pow": "the slope of x**y is infinite or undefined at x = 0: add a small number to x",
    "abs": "the slope of abs is undefined at complex 0",
}
_SLOPES = frozenset(("div", "mul", "pow", "integer_pow"))  # ops that derivatives are made of
_HINTS: Mapping[str, str] = MappingProxyType(
    {
        "log": _LOG,
        "log1p": "log1p wants numbers above -1",
        "sqrt": _ROOT,
        "rsqrt": _DIV,
        "div": _DIV,
        "exp": _EXP,
        "exp2": _EXP,
        "expm1": _EXP,
        "acos": "acos wants numbers between -1 and 1: clip them",
        "asin": "asin wants numbers between -1 and 1: clip them",
        "acosh": "acosh wants numbers from 1 on",
        "atanh": "atanh wants numbers between -1 and 1: clip them",
        "pow": "a negative number to a power that is no integer, or 0 to a negative power",
        "sub": "infinity minus infinity: in a softmax, a row that is masked from end to end",
        "cholesky": "the matrix is not positive definite: add a multiple of the identity",
        **dict.fromkeys(("mul", "add", "square", "integer_pow"), _RANGE),
        **dict.fromkeys(("dot_general", "reduce_sum", "conv_general_dilated"), _RANGE),
        "convert_element_type": "the numbers are beyond the range of the narrower dtype",
    }
)


def hint_of(birth: Birth, graph: Graph, mask: Node | None = None) -> str:
    """Return what is most often the matter, or the empty string.

    `graph` is the whole program, `mask` the `select_n` that hides the bad value, if one does.
    """
    node = birth.node
    if node is None:
        return ""
    if mask is not None:
        return (
            f"the where at {mask.source or 'an unknown line'} keeps this value out of the result, "
            "but not out of the gradient, as 0 times infinity or NaN is NaN: make the operand safe "
            "too, where(ok, f(where(ok, x, 1)), 0)"
        )
    slopes = (
        _SLOPE.get(twin.op.name)
        for _, twin in _twins(node, graph)
        if birth.phase == "backward" or _is_slope(node, twin)
    )
    return next(filter(None, slopes), _HINTS.get(node.op.name, ""))


def mask_of(node: Node, graph: Graph) -> Node | None:
    """The `select_n` that all that a node computes comes to in the pass forward, where one is.

    Of a node of the pass backward, what the node computes that it differentiates.
    """
    found: dict[Graph, set[Value]] = {}
    for where, twin in _twins(node, graph):
        found.setdefault(where, set()).update(twin.outputs)
    masks = [_mask(where, seen, where is graph) for where, seen in found.items()]
    return next((mask for mask in masks if mask is not None), None)


def _mask(graph: Graph, seen: set[Value], whole: bool) -> Node | None:
    """The first `select_n` between `seen` and the end of a graph; none if a way leads past it."""
    masks: list[Node] = []
    read: set[Value] = set()
    for user in graph.nodes:
        here = seen.intersection(user.inputs)
        read |= here
        if not here or user.phase != "forward":
            continue
        if user.op.name == "select_n":
            masks.append(user)
        elif user.regions and not is_fusible(user):
            return None
        else:
            seen.update(v for v in user.outputs if v.type.is_inexact)
    past = whole and any(v in graph.outputs or v not in read for v in seen)
    return masks[0] if masks and not past else None


def factors_of(node: Node, graph: Graph) -> list[Value]:
    """What the results of a node of the pass backward are multiplied with."""
    if node.phase != "backward":
        return []
    seen, factors = set(node.outputs), []
    for user in graph.nodes:
        if not seen.intersection(user.inputs) or not is_fusible(user):
            continue
        others = [v for v in user.inputs if v not in seen and not isinstance(v, Literal)]
        if user.op.name == "mul" and others:
            factors += others
        else:
            seen.update(user.outputs)
    return factors


def _twins(node: Node, graph: Graph) -> list[tuple[Graph, Node]]:
    """The nodes of the pass forward that `node` may be the derivative of, with their graphs.

    They stem from the same call. What `jax.grad` differentiated shares a line and a value with it.
    """
    found = [
        (where, each)
        for where, each in _nodes(graph)
        if each.phase == "forward" and each.origin is node.origin
    ]
    if node.op.name not in _SLOPES or any(each is not node for _, each in found):
        return found
    return found + [
        (where, each)
        for where, each in _nodes(graph)
        if each.phase == "forward"
        and each is not node
        and each.source == node.source != ""
        and each.op.name in _HINTS
        and not set(node.inputs).isdisjoint((*each.inputs, *each.outputs))
    ]


def _nodes(graph: Graph) -> Iterator[tuple[Graph, Node]]:
    """The nodes of a graph, and then those of their regions, with the graphs that they stand in."""
    for each in graph.nodes:
        yield graph, each
    for each in graph.nodes:
        for region in each.regions:
            yield from _nodes(region)


def _is_slope(node: Node, twin: Node) -> bool:
    """True where JAX differentiated a root: the slope `0.5 / sqrt(x)` in the pass forward."""
    return (
        node.op.name == "div"
        and isinstance(node.inputs[0], Literal)
        and float(node.inputs[0].data.real) == 0.5
        and twin.op.name == "sqrt"
        and node.inputs[1] is twin.output
    )
