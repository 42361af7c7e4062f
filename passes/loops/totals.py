"""Carries of a loop that are only ever added to, and what is added to them.

total' = total + a_t - b_t,   total read nowhere else
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Set
from dataclasses import dataclass

from ...ir.graph import Graph, Literal, Node, Value
from ...ir.types import is_complex
from ..scan import Scan

_SUMS = frozenset(("add", "add_any"))
# Linear maps of one operand that may be applied to the sum instead of to what is summed.
_LINEAR = frozenset("reshape transpose squeeze neg copy reduce_sum".split())


@dataclass(frozen=True, eq=False)
class Term:
    """What is added in each step, the chain applied to `root`; subtracted if `negative`.

    `product` makes the root where that is a product of two operands that differ from step to step.
    """

    root: Value
    product: Node | None
    chain: tuple[Node, ...]
    negative: bool

    @property
    def leaves(self) -> tuple[Value, ...]:
        """What has to be known of all steps."""
        return self.product.inputs if self.product else (self.root,)

    @property
    def line(self) -> Node | None:
        """The node to tell of: the product, or the first of the chain."""
        return self.product or next(iter(self.chain), None)


@dataclass(frozen=True, eq=False)
class Total:
    """The carry at a place, and its terms; `nodes` are the sums."""

    at: int
    terms: tuple[Term, ...]
    nodes: tuple[Node, ...]

    @property
    def leaves(self) -> dict[Value, None]:
        """What has to be known of all steps, each value once."""
        return dict.fromkeys(v for term in self.terms for v in term.leaves)

    @property
    def line(self) -> Node:
        """The node to tell of."""
        return next((term.line for term in self.terms if term.line), self.nodes[0])


def totals(scan: Scan, invariant: Set[Value]) -> list[Total]:
    """The carries that are sums of terms over the steps."""
    body = scan.body
    reads = Counter(v for node in body.nodes for v in node.inputs)
    reads.update(body.outputs)
    _, carry, _ = scan.parts
    found = []
    for at, value in enumerate(body.inputs[carry]):
        chain = list(_sums(body, reads, value, body.outputs[at]))
        if chain:
            terms = [
                term
                for node, other, negative in chain
                for term in _terms(body, reads, invariant, other, negative)
            ]
            if all(invariant.isdisjoint(term.leaves) for term in terms):
                found.append(Total(at, tuple(terms), tuple(node for node, *_ in chain)))
    return found


def _sums(
    body: Graph, reads: Counter[Value], value: Value, last: Value
) -> Iterator[tuple[Node, Value, bool]]:
    """From a carry to its next value: each sum on the way, and what it adds; nothing if it is not.

    Every value on the way has one reader.
    """
    steps = []
    while value is not last:
        if reads[value] != 1 or not (users := body.users.get(value, ())):
            return
        (node,) = users
        left, right = node.inputs if len(node.inputs) == 2 else (None, None)
        other = right if left is value else left
        negative = node.op.name == "sub" and left is value
        if node.op.name not in _SUMS and not negative or other is None:
            return
        if isinstance(other, Literal) or other.type.strong() != value.type.strong():
            return
        steps.append((node, other, negative))
        value = node.output
    if reads[last] == 1:
        yield from steps


def _terms(
    body: Graph, reads: Counter[Value], invariant: Set[Value], value: Value, negative: bool
) -> Iterator[Term]:
    """A value as a sum of terms: sums that nobody else reads are taken apart."""
    node = body.producer.get(value)
    if node is not None and reads[value] == 1 and node.op.name in _SUMS:
        if all(x.shape == value.shape and not isinstance(x, Literal) for x in node.inputs):
            for x in node.inputs:
                yield from _terms(body, reads, invariant, x, negative)
            return
    chain: list[Node] = []
    while node is not None and reads[value] == 1 and (node.op.name in _LINEAR or _widens(node)):
        chain.append(node)
        (value,) = node.inputs
        node = body.producer.get(value)
    product = None
    if node is not None and reads[value] == 1 and node.op.name == "dot_general":
        product = node if invariant.isdisjoint(node.inputs) else None
    yield Term(value, product, tuple(reversed(chain)), negative)


def _widens(node: Node) -> bool:
    """True for a cast of real floating numbers to more bits, which keeps every sum."""
    if node.op.name != "convert_element_type":
        return False
    before, after = node.inputs[0].type, node.output.type
    floating = before.is_inexact and after.is_inexact
    wider = after.dtype.itemsize >= before.dtype.itemsize
    return floating and wider and not (is_complex(before.dtype) or is_complex(after.dtype))
