"""What the page knows of a program and of its stages.

    order, added, removed    runs of node numbers: start, length, start, length, ...
    changed                  node, what differs, node, ...
    again                    nodes that compute a second time what a forward node has computed
    fused                    values that exist inside the loop of their one reader alone
    memory                   see `memory.py`

A stage that changed nothing is `same` and holds no more than its name and time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..device import DeviceSpec
from ..diff import Change, Difference, diff
from ..fusion import inlined
from ..graph import Graph, Value
from ..liveness import Liveness, liveness
from .again import computed_again
from .memory import memory_data
from .tables import Tables, runs

if TYPE_CHECKING:
    from .write import StageLike


def program_data(
    stages: Sequence[StageLike], device: DeviceSpec, donated: Collection[int] = ()
) -> dict[str, Any]:
    """Tables of all nodes and values, and what holds of each stage."""
    tables = Tables(device)
    regions: dict[int, Liveness] = {}
    before: Graph | None = None
    rows = []
    for stage in stages:
        row: dict[str, Any] = {"name": stage.name, "seconds": round(stage.seconds, 4)}
        if stage.graph is before:
            row["same"] = True
        else:
            live = liveness(stage.graph, donated, fused=True, known=regions)
            row |= _stage(tables, stage.graph, before) | {"memory": memory_data(tables, live)}
        rows.append(row)
        before = stage.graph
    return {"stages": rows, **tables.data()}


def _stage(tables: Tables, graph: Graph, before: Graph | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "inputs": [tables.value(v) for v in graph.inputs],
        "order": tables.nodes(graph),
        "outputs": [tables.value(v) for v in graph.outputs],
        "again": runs(sorted(map(tables.node, computed_again(graph)))),
        "fused": runs(sorted(map(tables.value, _fused(graph)))),
    }
    if before is not None:
        found = [*_changes(diff(before, graph))]
        for kind in ("added", "removed"):
            row[kind] = runs(tables.node(each.node) for each in found if each.kind == kind)
        row["changed"] = [
            number
            for each in found
            if each.kind == "changed"
            for number in (tables.node(each.node), tables.text("; ".join(each.what)))
        ]
    return row


def _changes(difference: Difference) -> Iterator[Change]:
    for change in difference.changes:
        yield change
        for inner in change.regions.values():
            yield from _changes(inner)


def _fused(graph: Graph) -> Iterator[Value]:
    yield from inlined(graph)
    for node in graph.nodes:
        for region in node.regions:
            yield from _fused(region)
