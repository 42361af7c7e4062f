"""A scan node taken apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..ir.graph import Graph, Node, Value


@dataclass(frozen=True)
class Scan:
    """A scan node's consts, carry and xs, outside and inside its body."""

    node: Node

    @property
    def body(self) -> Graph:
        """The function of one step."""
        return self.node.regions[0]

    @property
    def length(self) -> int:
        """Number of steps."""
        return int(self.node.attrs["length"])

    @property
    def parts(self) -> tuple[slice, slice, slice]:
        """Where the consts, the carry and the xs stand among the inputs."""
        n, k = self.node.attrs["num_consts"], self.node.attrs["num_carry"]
        return slice(0, n), slice(n, n + k), slice(n + k, None)

    @property
    def carried(self) -> int:
        """Number of outputs that are the final carry."""
        return int(self.node.attrs["num_carry"])

    @property
    def sliced(self) -> Sequence[Value]:
        """What a step is given of the xs, and what it leaves in the ys."""
        return (*self.body.inputs[self.parts[2]], *self.body.outputs[self.carried :])
