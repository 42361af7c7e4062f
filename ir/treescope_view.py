"""A graph in Treescope, the pretty-printer of notebooks: its layers unfold down to the nodes.

Only Treescope calls this, through `__treescope_repr__`; nothing else imports it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

from treescope import rendering_parts as parts

from .cost import cost
from .graph import Graph, Node
from .printer import node_texts
from .tables import bytes_text, count_text

_NODES = 2000  # that are shown of a graph; a page of many more opens slowly

Line = tuple[Node, str]


def graph_view(graph: Graph, path: str | None = None, name: str = "graph") -> Any:
    """Rendering of a graph: figures, arguments, then its phases and their layers."""
    total = cost(graph)
    size = sum(value.type.nbytes for value in graph.inputs)
    figures = (
        f"{count_text(len(graph.nodes))} nodes, {count_text(total.flops)} FLOPs, "
        f"{bytes_text(size)} of arguments"
    )
    return fold(f"{name} {graph.name}: {figures}", list(_body(graph)), path, opened=True)


def fold(label: str, children: Sequence[Any], path: str | None = None, opened: bool = False) -> Any:
    """A line that unfolds into others; `opened` from the start where there is room."""
    if not children:
        return parts.build_one_line_tree_node(label, path)
    state = parts.ExpandState.EXPANDED if opened else parts.ExpandState.COLLAPSED
    inside = parts.siblings(" {", parts.indented_children(children), "}")
    return parts.build_custom_foldable_tree_node(
        label=parts.text(label),
        contents=parts.fold_condition(collapsed=parts.text(" {...}"), expanded=inside),
        path=path,
        expand_state=state,
    )


def text_lines(text: str) -> list[Any]:
    """A text of several lines as children."""
    return [parts.text(line) for line in text.split("\n")]


def _body(graph: Graph) -> Iterator[Any]:
    """Arguments, layers and results of a graph or of a region."""
    if graph.inputs:
        typed = (f"{value.type} {value.name or ''}".rstrip() for value in graph.inputs)
        yield fold(f"{len(graph.inputs)} inputs", [parts.text(each) for each in typed])
    shown = list(zip(graph.nodes, node_texts(graph, _NODES), strict=False))
    for phase, lines in groupby(shown, lambda line: line[0].phase):
        mine = list(lines)
        yield fold(_counted(phase, mine), list(_layers(mine, 0)), opened=True)
    if len(shown) < len(graph.nodes):
        left = count_text(len(graph.nodes) - len(shown))
        yield parts.text(f"{left} more nodes: to_html(path) shows all")
    yield fold(f"{len(graph.outputs)} outputs", [parts.text(str(v.type)) for v in graph.outputs])


def _layers(lines: Sequence[Line], depth: int) -> Iterator[Any]:
    """Nodes in their order, those next to each other in one layer below its name."""
    for name, found in groupby(lines, _part(depth)):
        if name:
            mine = list(found)
            yield fold(_counted(name, mine), list(_layers(mine, depth + 1)))
        else:
            for node, line in found:
                yield fold(line, [fold(r.name, list(_body(r))) for r in node.regions])


def _part(depth: int) -> Callable[[Line], str]:
    """The scope's part at a depth, or the empty string."""
    return lambda line: next(iter(line[0].scope.split("/")[depth : depth + 1]), "")


def _counted(name: str, lines: Sequence[Line]) -> str:
    return f"{name}: {count_text(len(lines))} node{'s' * (len(lines) != 1)}"
