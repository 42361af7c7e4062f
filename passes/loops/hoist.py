"""Loop-invariant code motion, and the products of what a loop is given, for all steps at once."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from typing import ClassVar

from ...ir.builder import Builder
from ...ir.fusion import MOVES, is_fusible
from ...ir.graph import Graph, Node, Value
from ...ir.tables import bytes_text
from ..autodiff.invariant import CHEAP, hoist, needed
from .forms import prepared
from .kinds import Kinds
from .trips import stacked
from .walk import Loop, OverScans


@dataclass(frozen=True)
class Hoist(OverScans):
    """Work of a scan's body that does not depend on its carry is done before the loop.

        scan(c, x_t)  { .. f(w) .. }      ->  s = f(w);      scan(c, x_t) { .. s .. }
        scan(c, x_t)  { .. x_t . w .. }   ->  p = x . w;     scan(c, p_t) { .. p_t .. }
        scan(c, x_t)  { [x_t, c] . w }    ->  p = x . w[:d]; scan(c, p_t) { p_t + c . w[d:] }

    The first kind, the same in each step, is done once, unless it is cheap or makes more than it
    reads. The second, a product with a constant of the loop of what depends on the step alone, is
    one product over all steps, its operand made by what `trips.py` has rules for. It pays where a
    step reads more of `w` than the product's result and operand are large, `ratio` times: these go
    through memory once more. Where `x` is concatenated with what depends on the carry (third
    kind), the product is divided.

    The results are there for all steps at once. In a function that is differentiated they may take
    half of what a step makes, as a backward loop has that stacked for it. In other loops they may
    take `room` times what a step is given and leaves in stacks: by default nothing, so that a
    program takes no more memory than without. Runs before autodiff, so that the gradients by `w`
    are one product as well. With `innermost` loops around loops stay as they are.
    """

    ratio: float = 1.0
    room: float = 0.0
    innermost: bool = False

    name: ClassVar[str] = "hoist"

    def offered(self, b: Builder, loop: Loop) -> Sequence[Value] | None:
        """See the class."""
        if self.innermost and not loop.is_innermost:
            return None
        kinds = Kinds(loop)
        found = self._early(kinds)
        body = prepared(kinds)
        if body is not loop.body:
            other = replace(loop, node=replace(loop.node, regions=(body,)))
            parts = self._early(Kinds(other))
            new = parts.tried - found.tried
            if new and new <= parts.moved:
                loop, kinds, found = other, Kinds(other), parts
        once = _invariant(kinds, found, differentiated=loop.differentiated)
        _tell(loop, kinds, found, once)
        if not found.moved and not once:
            return None
        return _written(b, loop, kinds, found, once)

    def _early(self, kinds: Kinds) -> Early:
        """The products that are done before the loop, those that gain most for their bytes first.

        What no more room is left for stays.
        """
        loop = kinds.scan
        assert isinstance(loop, Loop)
        products = [node for node in kinds.body.nodes if _is_product(node, kinds)]
        paying = {}
        for node in products:
            cost, gain = _bytes(_ways({node}, kinds)), _constant(node, kinds).type.nbytes
            if gain >= self.ratio * cost:
                paying[node] = gain / max(cost, 1)
        moved: frozenset[Node] = frozenset()
        for node in sorted(paying, key=paying.__getitem__, reverse=True):
            way = _ways({*moved, node}, kinds)
            if _bytes(way) <= self._limit(loop, kinds, way):
                moved |= {n for n in way if n.op.name == "dot_general"}
        return Early(frozenset(products), moved, frozenset(paying) - moved)

    def _limit(self, loop: Loop, kinds: Kinds, way: Sequence[Node]) -> float:
        """Bytes a step that may be there for all steps."""
        made = kinds.made(without=way) / 2 if loop.differentiated else 0.0
        return max(self.room * kinds.stacks, made)


@dataclass(frozen=True)
class Early:
    """Products that might be done before the loop; those that are, and those too large for it."""

    tried: frozenset[Node]
    moved: frozenset[Node]
    large: frozenset[Node]


def _is_product(node: Node, kinds: Kinds) -> bool:
    return node.op.name == "dot_general" and node.output in kinds.parallel


def _constant(node: Node, kinds: Kinds) -> Value:
    """The operand that is the same in each step."""
    return next(v for v in node.inputs if v not in kinds.parallel)


def _ways(products: Set[Node], kinds: Kinds) -> list[Node]:
    """Products, and what they need of nodes that depend on the step alone."""
    nodes = [n for n in kinds.body.nodes if not kinds.parallel.isdisjoint(n.outputs)]
    return needed(nodes, [node.output for node in products])


def _bytes(nodes: Sequence[Node]) -> int:
    """Bytes of what they make, but for movement of data."""
    return sum(v.type.nbytes for n in nodes if n.op.name not in MOVES for v in n.outputs)


def _invariant(kinds: Kinds, found: Early, *, differentiated: bool) -> list[Value]:
    """The values that are the same in each step and worth to be made once.

    Not what only moves data, nor element-wise work that makes more than it reads. Where there will
    be gradients, what is rounded to fewer bits than it is made of stays: they add up in its type.
    """
    body = kinds.body
    read = dict.fromkeys(v for node in _rest(kinds, found) for v in node.inputs)
    wanted = []
    for value in read:
        maker = body.producer.get(value)
        if maker is None or value not in kinds.invariant or maker.op.name in CHEAP:
            continue
        way = needed(body.nodes, [value])
        given = {v for n in way for v in n.inputs if v in kinds.fixed}
        grows = value.type.nbytes > sum(v.type.nbytes for v in given)
        widest = max((v.dtype.itemsize for v in given if v.type.is_inexact), default=0)
        rounded = value.type.is_inexact and value.dtype.itemsize < widest
        if not (grows and all(map(is_fusible, way))) and not (rounded and differentiated):
            wanted.append(value)
    return wanted


def _rest(kinds: Kinds, found: Early) -> list[Node]:
    """The nodes of a step that are left without the products, those of constants apart."""
    nodes = [
        n
        for n in kinds.body.nodes
        if n not in found.moved and kinds.invariant.isdisjoint(n.outputs)
    ]
    return needed(nodes, kinds.body.outputs)


def _written(
    b: Builder, loop: Loop, kinds: Kinds, found: Early, once: Sequence[Value]
) -> Sequence[Value]:
    """Emit what is done before the loop, and the loop."""
    body, node = loop.body, loop.node
    moved = _ways(found.moved, kinds)
    rest = _rest(kinds, found)
    made = {v for n in moved for v in n.outputs}
    wanted = dict.fromkeys(once)
    wanted.update(
        (v, None) for n in moved for v in n.inputs if v in kinds.invariant and v in body.producer
    )
    left = [n for n in body.nodes if n in set(rest) or not kinds.invariant.isdisjoint(n.outputs)]
    parts = hoist(body.name, list(kinds.fixed), left, body.outputs, list(wanted))

    outer = dict(kinds.fixed)
    outer.update(zip(body.inputs[loop.parts[2]], node.inputs[loop.parts[2]], strict=True))
    results, _ = b.inline(parts.once, list(kinds.fixed.values()), node.origin)
    outer.update(zip(parts.once.outputs, results, strict=True))
    for each in moved:
        b.origin, b.phase = loop.origin(each), each.phase
        operands = [outer.get(v, v) for v in each.inputs]
        stacks = [v in kinds.parallel for v in each.inputs]
        values = stacked(b, each, operands, stacks)
        assert values is not None, each
        outer.update(zip(each.outputs, values, strict=True))

    inside = {v for n in rest for v in n.outputs}
    nodes = needed(parts.nodes, body.outputs)
    read = dict.fromkeys(v for n in nodes for v in n.inputs) | dict.fromkeys(body.outputs)
    slices = [v for v in read if v in made and v not in inside]
    b.origin, b.phase = node.origin, node.phase
    consts, carry, xs = loop.parts
    inputs = (*body.inputs[consts], *parts.shared, *body.inputs[carry], *body.inputs[xs], *slices)
    given = (*node.inputs[consts], *(outer[v] for v in parts.shared), *node.inputs[carry])
    given += (*node.inputs[xs], *(outer[v] for v in slices))
    attrs = {**node.attrs, "num_consts": node.attrs["num_consts"] + len(parts.shared)}
    step = Graph(body.name, inputs, tuple(nodes), body.outputs)
    return b.emit("scan", given, attrs, (step,))


def _tell(loop: Loop, kinds: Kinds, found: Early, once: Sequence[Value]) -> None:
    """Take note of what moves and of what does not."""
    for node in (n for n in kinds.body.nodes if n in found.moved):
        size = (loop.length - 1) * _constant(node, kinds).type.nbytes
        gain = f"not read again by {loop.length} steps, which share one product"
        loop.tell("product before a loop", node, size, gain=gain)
    for node in (n for n in kinds.body.nodes if n in found.large):
        size = loop.length * node.output.type.nbytes
        reason = f"its results for all steps would take {bytes_text(size)} of memory"
        loop.tell("product before a loop", node, size, reason)
    for value in once:
        size = (loop.length - 1) * value.type.nbytes
        gain = f"not made again by {loop.length} steps"
        loop.tell("constant of a loop", loop.body.producer[value], size, gain=gain)
