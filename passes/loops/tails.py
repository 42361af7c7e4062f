"""Products of a loop that nothing in it waits for: their results are stacked, and no more."""

from __future__ import annotations

from dataclasses import dataclass

from ...ir.fusion import is_fusible
from ...ir.graph import Graph, Literal, Node, Value
from ..autodiff.invariant import needed
from .kinds import Kinds
from .trips import has_rule


@dataclass(frozen=True, eq=False)
class Tail:
    """A product with a constant of the loop, and the element-wise work after it: `nodes`.

    `outputs` are the places of the ys that it makes, `leaves` what it reads of each step.
    """

    product: Node
    nodes: tuple[Node, ...]
    outputs: tuple[int, ...]
    leaves: tuple[Value, ...]

    def between(self, body: Graph) -> int:
        """Bytes a step of products above those of the ys: results that are not stacked today."""
        products = (node for node in self.nodes if node.op.name == "dot_general")
        made = sum(node.output.type.nbytes for node in products)
        return max(0, made - sum(body.outputs[i].type.nbytes for i in self.outputs))


def tails(kinds: Kinds) -> list[Tail]:
    """The products that may be made after the loop."""
    body, carried = kinds.body, kinds.scan.carried
    core = set(needed(body.nodes, body.outputs[:carried]))
    found = []
    for node in body.nodes:
        constants = [value in kinds.invariant for value in node.inputs]
        if node.op.name == "dot_general" and sum(constants) == 1 and node not in core:
            tail = _tail(kinds, node)
            if tail is not None:
                found.append(tail)
    return found


def _tail(kinds: Kinds, product: Node) -> Tail | None:
    """Return a product with all that reads it; None if there is no rule for some of that."""
    body, carried = kinds.body, kinds.scan.carried
    made: set[Value] = set()
    nodes: list[Node] = []
    leaves: dict[Value, None] = {}
    for node in body.nodes:
        if node is not product and made.isdisjoint(node.inputs):
            continue
        varies = [not isinstance(v, Literal) and v not in kinds.invariant for v in node.inputs]
        if not (is_fusible(node) or node.op.name == "dot_general"):
            return None
        if not has_rule(node, varies, kinds.scan.length):
            return None
        nodes.append(node)
        given = (v for v, on in zip(node.inputs, varies, strict=True) if on and v not in made)
        leaves.update(dict.fromkeys(given))
        made.update(node.outputs)
    outputs = tuple(i for i, v in enumerate(body.outputs) if i >= carried and v in made)
    return Tail(product, tuple(nodes), outputs, tuple(leaves)) if outputs else None
