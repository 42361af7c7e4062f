"""What ops that call a region share: types of its outputs, running it, inlining it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..op import Attrs, Differentiator, Pullback
from ..types import ArrayType

if TYPE_CHECKING:
    from ..builder import Builder
    from ..graph import Graph, Node, Value

Run = Callable[..., list[Any]]


def region_types(
    inputs: Sequence[Value], attrs: Attrs, regions: Sequence[Graph]
) -> tuple[ArrayType, ...]:
    """Shape rule: the outputs of the first region."""
    return tuple(value.type for value in regions[0].outputs)


def call_region(args: Sequence[Any], attrs: Attrs, regions: Sequence[Graph], run: Run) -> list[Any]:
    """Lowering: run the first region."""
    return run(regions[0], *args)


def inline_region(
    b: Builder, node: Node, needs: Sequence[bool], ad: Differentiator
) -> tuple[Sequence[Value], Pullback]:
    """Reverse mode: of the first region's nodes, in place of the call."""
    return ad.inline(b, node.regions[0], node.inputs, needs)
