"""Loop distribution: sums over the steps, and products that no step waits for, after the loop."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ...ir.builder import Builder
from ...ir.graph import Graph, Literal, Node, Value
from ...ir.tables import bytes_text
from ..autodiff.invariant import needed
from .kinds import Kinds
from .tails import Tail, tails
from .totals import Term, Total, totals
from .trips import has_rule, product, stacked, up
from .walk import Loop, OverScans

SHARE = 0.6  # of the bytes that a backward loop reads of stacks, for those that it leaves
_VIEWS = frozenset("reshape transpose squeeze convert_element_type slice neg".split())


@dataclass(frozen=True)
class Defer(OverScans):
    """What a scan's steps add up, or make for its ys alone, is made after the loop.

        scan(s, c) { .. s + x_t^T . g_t }  ->  scan(c) { .. } stacks x and g;  s + x^T . g
        scan(c) { .. y_t = h_t . w }       ->  scan(c) { .. } stacks h;        y = h . w

    The first is a weight's gradient: a product over all steps and the batch takes the place of a
    product of few rows in each step, and of reading and writing the sum there. So it pays where
    twice the sum is more than `ratio` times what has to be stacked anew. What is among the xs or ys
    anyway, as the states of the forward loop are, costs nothing, and sums of what is stacked, such
    as a bias's gradient, come along. The second pays where `w` is larger than what has to be
    stacked anew, `ratio` times.

    What a backward loop stacks may take a `SHARE` of what it reads of stacks, so that there is no
    more at once than when all the forward loop's values wait, most of which `restack` frees. In a
    function that will be differentiated new stacks may take half of what a step makes, as with
    `hoist`. In other loops they may take `room` times what the others do, by default nothing:
    gradients are accumulated by micro-batches so that there are no such stacks. With `innermost`
    loops around loops stay as they are.
    """

    ratio: float = 1.0
    room: float = 0.0
    innermost: bool = False

    name: ClassVar[str] = "defer"

    def offered(self, b: Builder, loop: Loop) -> Sequence[Value] | None:
        """See the class."""
        if self.innermost and not loop.is_innermost:
            return None
        kinds = Kinds(loop)
        stacks = Stacks(kinds, self._limit(loop, kinds))
        sums = self._sums(totals(loop, kinds.invariant), loop, stacks)
        ends = self._ends(tails(kinds), loop, kinds, stacks)
        if not sums and not ends:
            return None
        return _written(b, loop, stacks, sums, ends)

    def _limit(self, loop: Loop, kinds: Kinds) -> float:
        """Bytes a step that may be stacked anew."""
        room = self.room * kinds.stacks
        if loop.node.phase == "backward":
            left = set(loop.body.outputs[loop.carried :])
            room = max(room, SHARE * (kinds.stacks - _bytes(left)) - _bytes(left))
        return max(room, kinds.made() / 2 if loop.differentiated else 0.0)

    def _sums(self, found: Sequence[Total], loop: Loop, stacks: Stacks) -> list[Total]:
        """The sums that are deferred: what needs the same new stacks pays for them together."""
        chosen: list[Total] = []
        for total in sorted(found, key=lambda total: -_size(loop, total)):
            if total in chosen:
                continue
            new = stacks.new(total.leaves)
            group = [t for t in found if t not in chosen and stacks.new(t.leaves) <= new]
            gain = sum(2 * _size(loop, t) for t in group if any(x.product for x in t.terms))
            if (gain or not new) and gain >= self.ratio * _bytes(new):
                if stacks.take(new):
                    chosen += group
                    continue
                reason = _too_large(loop, stacks, new)
                loop.tell("sum after a loop", total.line, _size(loop, total), reason)
        for total in chosen:
            size = 2 * loop.length * _size(loop, total)
            told = f"not read and written by {loop.length} steps, which are summed at once"
            loop.tell("sum after a loop", total.line, size, gain=told)
        return chosen

    def _ends(self, found: Sequence[Tail], loop: Loop, kinds: Kinds, stacks: Stacks) -> list[Tail]:
        """The products for ys alone that are deferred."""
        chosen: list[Tail] = []
        for tail in found:
            if any(not set(tail.nodes).isdisjoint(other.nodes) for other in chosen):
                continue
            new = stacks.new(dict.fromkeys(tail.leaves))
            size = next(v for v in tail.product.inputs if v in kinds.invariant).type.nbytes
            if size < self.ratio * _bytes(new):
                continue
            if not stacks.take(new, tail.between(kinds.body)):
                loop.tell("product after a loop", tail.product, size, _too_large(loop, stacks, new))
                continue
            chosen.append(tail)
            gain = f"not read again by {loop.length} steps, which share one product"
            loop.tell("product after a loop", tail.product, (loop.length - 1) * size, gain=gain)
        return chosen


class Stacks:
    """What is stacked of a loop's steps: its xs and ys, what moves data of them, and new ones."""

    def __init__(self, kinds: Kinds, limit: float) -> None:
        """`limit` is the bytes a step that may be stacked anew."""
        self.kinds = kinds
        self.limit = limit
        _, _, xs = kinds.scan.parts
        self.xs = dict(zip(kinds.body.inputs[xs], kinds.scan.node.inputs[xs], strict=True))
        self.known = {*self.xs, *kinds.body.outputs[kinds.scan.carried :]}
        self.added: dict[Value, None] = {}

    def new(self, leaves: Iterable[Value]) -> set[Value]:
        """Those of the leaves that are in no stack yet."""
        return {v for v in leaves if not self._there(v)}

    def take(self, values: set[Value], more: int = 0) -> bool:
        """Stack values anew, if there is room for them and for so many bytes more."""
        if values or more:
            if _bytes(self.added.keys() | values) + more > self.limit:
                return False
            order = {v: i for i, n in enumerate(self.kinds.body.nodes) for v in n.outputs}
            self.added.update(dict.fromkeys(sorted(values, key=lambda v: order.get(v, -1))))
        return True

    def view(self, value: Value) -> Node | None:
        """The node that moves data of a stack to make a value, if one does."""
        node = self.kinds.body.producer.get(value)
        if node is None or node.op.name not in _VIEWS or value in self.known | self.added.keys():
            return None
        return node if has_rule(node, (True,), self.kinds.scan.length) else None

    def _there(self, value: Value) -> bool:
        if value in self.known or value in self.added:
            return True
        node = self.view(value)
        return node is not None and self._there(node.inputs[0])


def _written(
    b: Builder, loop: Loop, stacks: Stacks, sums: Sequence[Total], ends: Sequence[Tail]
) -> Sequence[Value]:
    """Emit the loop without what is deferred, and that after it."""
    body, node = loop.body, loop.node
    consts, carry, xs = loop.parts
    gone = {total.at for total in sums} | {i for tail in ends for i in tail.outputs}
    kept = [i for i in range(len(body.outputs)) if i not in gone]
    outputs = (*(body.outputs[i] for i in kept), *stacks.added)
    states = [i for i in kept if i < loop.carried]
    inputs = (*body.inputs[consts], *(body.inputs[carry][i] for i in states), *body.inputs[xs])
    given = (*node.inputs[consts], *(node.inputs[carry][i] for i in states), *node.inputs[xs])
    step = Graph(body.name, inputs, tuple(needed(body.nodes, outputs)), outputs)
    found = b.emit("scan", given, {**node.attrs, "num_carry": len(states)}, (step,))

    first = len(states)
    after = After(b, loop, stacks, dict(zip(outputs[first:], found[first:], strict=True)))
    results = dict(zip(kept, found, strict=False))
    for tail in ends:
        results.update(after.tail(tail))
    for total in sums:
        results[total.at] = after.total(total)
    return [results[i] for i in range(len(body.outputs))]


class After:
    """Emits what is made after a loop, of the stacks that the loop leaves and was given."""

    def __init__(self, b: Builder, loop: Loop, stacks: Stacks, made: dict[Value, Value]) -> None:
        """`made` are the stacks by the values of a step that are in them."""
        self.b = b
        self.loop = loop
        self.stacks = stacks
        self.outer = {**stacks.xs, **made}
        self.once = dict(stacks.kinds.fixed)

    def stack(self, value: Value) -> Value:
        """A value of all steps."""
        if value not in self.outer:
            node = self.stacks.view(value)
            assert node is not None, value
            found = stacked(self.b, node, (self.stack(node.inputs[0]),), (True,))
            assert found is not None, node
            (self.outer[value],) = found
        return self.outer[value]

    def constant(self, value: Value) -> Value:
        """A value that is the same in each step."""
        if isinstance(value, Literal):
            return value
        for node in needed(self.loop.body.nodes, (value,)):
            if node.outputs[0] not in self.once:
                operands = [self.once.get(v, v) for v in node.inputs]
                copy = self.b.clone(node, operands, self.loop.origin(node))
                self.once.update(zip(node.outputs, copy.outputs, strict=True))
        return self.once[value]

    def tail(self, tail: Tail) -> dict[int, Value]:
        """The ys that a product makes, by their places."""
        kinds, origin = self.stacks.kinds, self.b.origin
        made: dict[Value, Value] = {}
        for node in tail.nodes:
            self.b.origin = self.loop.origin(node)
            varies = [not isinstance(v, Literal) and v not in kinds.invariant for v in node.inputs]
            operands = [
                made[v] if v in made else self.stack(v) if on else self.constant(v)
                for v, on in zip(node.inputs, varies, strict=True)
            ]
            found = stacked(self.b, node, operands, varies)
            assert found is not None, node
            made.update(zip(node.outputs, found, strict=True))
        self.b.origin = origin
        self.outer.update(made)
        return {i: made[self.loop.body.outputs[i]] for i in tail.outputs}

    def total(self, total: Total) -> Value:
        """The last sum, what the first began with included."""
        first = self.loop.node.inputs[self.loop.parts[1]][total.at]
        origin, result = self.b.origin, None if self._is_zero(first) else first
        for term in total.terms:
            self.b.origin = self.loop.origin(term.line or total.nodes[0])
            value = self._summed(term)
            if result is None:
                result = self.b.neg(value) if term.negative else value
            else:
                result = self.b.sub(result, value) if term.negative else self.b.add(result, value)
        self.b.origin = origin
        assert result is not None
        return result

    def _summed(self, term: Term) -> Value:
        """A term of all steps; casts of its chain come first, so that it is summed in more bits."""
        b, chain = self.b, list(term.chain)
        dtype = chain[-1].output.dtype if chain else term.root.dtype
        widened = dtype != term.root.dtype
        if term.product is not None:
            (xc, yc), (xn, yn) = term.product.attrs["dimension_numbers"]
            dims = (((0, *up(xc)), (0, *up(yc))), (up(xn), up(yn)))
            more = {"preferred_element_type": dtype} if widened else {}
            x, y = map(self.stack, term.leaves)
            value = product(b, term.product, x, y, dims, **more)
        else:
            value = b.convert(self.stack(term.root), dtype)
            axes: tuple[int, ...] = ()
            if chain and chain[0].op.name == "reduce_sum":
                axes = up(chain.pop(0).attrs["axes"])
            value = b.reduce_sum(value, (0, *axes))
        for node in chain:
            if node.op.name != "convert_element_type":
                value = b.emit(node.op, (value,), node.attrs)[0]
        return value

    def _is_zero(self, value: Value) -> bool:
        """True for zeros that were made just before."""
        node = next((n for n in reversed(self.b.nodes) if value in n.outputs), None)
        if node is None or node.op.name != "broadcast_in_dim":
            return False
        (number,) = node.inputs
        return isinstance(number, Literal) and number.data == 0


def _bytes(values: Iterable[Value]) -> int:
    return sum(value.type.nbytes for value in values)


def _size(loop: Loop, total: Total) -> int:
    """Bytes of a sum."""
    return loop.body.outputs[total.at].type.nbytes


def _too_large(loop: Loop, stacks: Stacks, values: Iterable[Value]) -> str:
    size = bytes_text(loop.length * _bytes(values))
    room = bytes_text(int(loop.length * stacks.limit))
    return f"what it reads of all steps would take {size} in new stacks, which may take {room}"
