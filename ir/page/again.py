"""Which nodes of a backward pass compute again what the forward pass has computed.

A node runs again if a forward node has the same op, attributes and operands, fences
(`optimization_barrier`) aside. What a scan reads of a stack is, at each step, what another scan
put there. What needs no operand, such as an `iota`, is not counted.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import count

from ..fingerprint import attrs_key, fingerprint
from ..graph import Graph, Literal, Node, Value

_FENCES = frozenset(("optimization_barrier", "fetch", "offload"))


def computed_again(graph: Graph) -> set[Node]:
    """Nodes that compute again what a forward node computes, those in regions included."""
    numbering = _Numbering()
    numbering.graph(graph, [numbering.fresh() for _ in graph.inputs], False)
    return numbering.again


class _Numbering:
    """Numbers values: equal ones are equal values."""

    def __init__(self) -> None:
        self.numbers = count()
        self.known: dict[Hashable, int] = {}
        self.forward: set[int] = set()  # nodes that ran in the forward pass
        self.prints: dict[int, Hashable] = {}
        self.element: dict[int, int] = {}  # of a stack, at each step
        self.again: set[Node] = set()

    def fresh(self) -> int:
        return next(self.numbers)

    def number(self, *key: Hashable) -> int:
        return self.known.setdefault(key, self.fresh())

    def graph(self, graph: Graph, inputs: Sequence[int], late: bool) -> list[int]:
        """Number a graph; `late` inside a backward node. Gives the numbers of its outputs."""
        have = dict(zip(graph.inputs, inputs, strict=True))

        def operand(value: Value) -> int:
            if isinstance(value, Literal):
                return self.number(value.type, repr(value.data))
            return have[value]

        for node in graph.nodes:
            operands = [operand(v) for v in node.inputs]
            have.update(zip(node.outputs, self._node(node, operands, late), strict=True))
        return [operand(v) for v in graph.outputs]

    def _node(self, node: Node, operands: Sequence[int], late: bool) -> list[int]:
        if node.op.name in _FENCES:
            return [*operands]
        late = late or node.phase != "forward"
        regions = tuple(map(self._print, node.regions))
        number = self.number(node.op, attrs_key(node.attrs), tuple(operands), regions)
        if not late:
            self.forward.add(number)
        elif number in self.forward and not all(isinstance(v, Literal) for v in node.inputs):
            self.again.add(node)
        results = [self.number(number, k) for k in range(len(node.outputs))]
        for region in node.regions:
            self._region(node, region, operands, results, late)
        return results

    def _print(self, region: Graph) -> Hashable:
        return self.prints.setdefault(id(region), fingerprint(region))

    def _region(
        self,
        node: Node,
        region: Graph,
        operands: Sequence[int],
        results: Sequence[int],
        late: bool,
    ) -> None:
        size, name = len(region.inputs), node.op.name
        given = operands[1:] if name == "cond" else operands
        if name == "while" or len(given) != size:
            given = [self.fresh() for _ in range(size)]
        if name != "scan":
            self.graph(region, given, late)
            return
        consts, carry = node.attrs["num_consts"], node.attrs["num_carry"]
        carried = [self.fresh() for _ in range(carry)]
        steps = [self.element.setdefault(v, self.fresh()) for v in given[consts + carry :]]
        outputs = self.graph(region, [*given[:consts], *carried, *steps], late)
        for stack, value in zip(results[carry:], outputs[carry:], strict=True):
            self.element.setdefault(stack, value)
