"""The canonical text form, version 1: `parse(str(graph)) == graph`.

    text     ::= 'backpass.ir 1' graph resources?
    graph    ::= 'graph' name '(' input,* ')' '{' (label | node)* return '}'
    input    ::= value ':' type path?                        %0: f32[64,32] params['w']
    label    ::= ('forward' | 'backward' | 'update') ':'     the phase of what follows
    node     ::= (output,+ '=')? op '!'? '(' operand,* ')' attrs? of? place? newline graph*
    output   ::= value ':' type path?
    operand  ::= value | number ':' dtype '*'?               %3, 0.5:f32
    attrs    ::= '{' (key '=' value | '-' key),* '}'         see ir/attrs.py
    of       ::= 'of' (value | '#' position)                 the forward node it differentiates
    place    ::= '@' source scope?                           model.py:41 block/mlp
    return   ::= 'return' operand,*
    type     ::= dtype '[' size,* ']' '*'?                   see ir/types.py
    value    ::= '%' number

Numbers are local to a graph: a region reads its own inputs alone. The graphs under a node are its
regions; they begin in the node's phase. `!` marks a foreign op with effects. A line may be broken
after a comma. Attributes stand in the order of their names, plain ones are left out (see
ir/attrs.py), so that equal graphs have equal text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cached_property

from .attrs import AttrPrinter, opaque
from .graph import Graph, Literal, Node, Phase, Value
from .lexer import NAME, PATH, PLACE, word
from .numbers import format_number
from .resources import WRITE_LIMIT, Writer
from .types import dtype_name

VERSION = 1
HEADER = f"backpass.ir {VERSION}"

_COLUMNS = 120  # of code; the tail comes on top
_OF_COLUMN, _PLACE_COLUMN = 80, 88  # what stands to the right of the code
_PART = re.compile(r'(?:"(?:[^"\\]|\\.)*"|,(?! )|[^",])+(?:, )?')
_TAB = 16  # where the code is longer, at the next stop
_SOURCE_WIDTH = 16


def print_graph(graph: Graph, *, resource_limit: int = WRITE_LIMIT) -> str:
    """Return the canonical text of `graph`, which `parse` reads back.

    Args:
        graph: any graph.
        resource_limit: how many bytes of compressed constants are written in all; constants
            beyond it are only named, and such text is for people alone.
    """
    constants = Writer(resource_limit)
    lines = [HEADER, "", *_Body(graph, constants, "", "forward").lines()]
    return "\n".join([*lines, *constants.section(), ""])


def node_texts(graph: Graph, count: int) -> list[str]:
    """One line for each of the first `count` nodes of `graph`, without regions; for people."""
    body = _Body(graph, Writer(0), "", "forward")
    return [re.sub(r"\n\s*", " ", body.node(node, "")) for node in graph.nodes[:count]]


def excerpt(graph: Graph, position: int, around: int = 3) -> str:
    """Print the lines of the node at `position`, marked, and of some nodes `around` it."""
    body = _Body(graph, Writer(0), "", "forward")
    start = max(0, position - around)
    shown = []
    for i, node in enumerate(graph.nodes[start : position + around + 1], start):
        mark = "> " if i == position else "  "
        shown += [mark + line for line in body.node(node, "").split("\n")]
    return "\n".join(shown)


class _Body:
    """One graph of a text: the numbers of its values, its indentation and first phase."""

    def __init__(self, graph: Graph, constants: Writer, indent: str, phase: Phase) -> None:
        self.graph, self.constants, self.indent, self.phase = graph, constants, indent, phase
        self.printer = AttrPrinter(constants, self._attribute_graph)
        self.names: dict[Value, str] = {}
        for value in graph.inputs:
            self.names.setdefault(value, f"%{len(self.names)}")
        for node in graph.nodes:
            for value in node.outputs:
                self.names.setdefault(value, f"%{len(self.names)}")

    def lines(self) -> Iterator[str]:
        graph, phase, inner = self.graph, self.phase, self.indent + "  "
        yield self._signature()
        for node in graph.nodes:
            if node.phase != phase:
                phase = node.phase
                yield f"{self.indent}{phase}:"
            yield self.node(node, inner)
            for region in node.regions:
                yield from _Body(region, self.constants, inner + "  ", phase).lines()
        returned = ", ".join(map(self.operand, graph.outputs))
        yield _fold(f"{inner}return {returned}".rstrip(), inner)
        yield f"{self.indent}}}"

    def node(self, node: Node, indent: str) -> str:
        """Print a node without its regions; more than one line where it is long."""
        name = word(node.op.name, NAME) + "!" * (node.op.foreign and bool(node.op.effect))
        operands = ", ".join(map(self.operand, node.inputs))
        code = f"{indent}{name}({operands})"
        if node.outputs:
            code = f"{indent}{', '.join(map(self._definition, node.outputs))} = {name}({operands})"
        attrs = self.printer.attrs(node)
        if attrs:
            code = f"{code} {{{', '.join(attrs)}}}"
        if len(code) > _COLUMNS:
            code = _fold(code, indent)
        of, place = self._of(node), _place(node)
        width = len(code) - code.rfind("\n") - 1
        if of:
            beside = f"{of:<{_PLACE_COLUMN - _OF_COLUMN - 2}}  {place}".rstrip()
            return f"{code}{' ' * _gap(width, _OF_COLUMN)}{beside}"
        return f"{code}{' ' * _gap(width, _PLACE_COLUMN)}{place}" if place else code

    def operand(self, value: Value) -> str:
        if isinstance(value, Literal):
            return literal_text(value)
        return self.names.get(value) or f"undefined<{value.type}>"

    def _definition(self, value: Value) -> str:
        path = "" if value.name is None else f" {word(value.name, PATH)}"
        return f"{self.names[value]}: {value.type}{path}"

    def _signature(self) -> str:
        inputs = list(map(self._definition, self.graph.inputs))
        start = f"{self.indent}graph {word(self.graph.name, NAME)}("
        line = f"{start}{', '.join(inputs)}) {{"
        if len(line) <= _COLUMNS:
            return line
        each = f",\n{self.indent}    ".join(inputs)
        return f"{start}\n{self.indent}    {each}\n{self.indent}) {{"

    def _of(self, node: Node) -> str:
        forward = self.graph.forward_of.get(node) if node.phase == "backward" else None
        return "" if forward is None else f"of {self._reference(forward)}"

    def _reference(self, node: Node) -> str:
        return self.names[node.outputs[0]] if node.outputs else f"#{self._positions[node]}"

    @cached_property
    def _positions(self) -> Mapping[Node, int]:
        return {node: i for i, node in enumerate(self.graph.nodes)}

    def _attribute_graph(self, graph: Graph) -> str:
        indent = self.indent + "    "
        return "\n".join(_Body(graph, self.constants, indent, "forward").lines()).lstrip()


def _gap(width: int, column: int) -> int:
    """Blanks up to `column`, at least two; past it, up to the next stop."""
    return column - width if width <= column - 2 else (width + 1) // _TAB * _TAB + _TAB - width


def _place(node: Node) -> str:
    source, scope = node.source, node.scope
    if not source and not scope:
        return ""
    place = f"@ {word(source, PLACE)}"
    return f"{place:<{_SOURCE_WIDTH}}  {word(scope, PLACE)}" if scope else place


def literal_text(value: Literal) -> str:
    """`0.5:f32`, as an operand is written."""
    if getattr(value.data, "dtype", None) != value.dtype:  # only a broken graph has such a thing
        return opaque(value.data)
    kind = str(value.type) if value.type.shape else dtype_name(value.type.dtype)
    star = "*" if value.type.weak and not value.type.shape else ""
    return f"{format_number(value.data)}:{kind}{star}"


def _fold(code: str, indent: str) -> str:
    """Break a long line after commas outside of strings, the rest of it indented by six."""
    if len(code) <= _COLUMNS or "\n" in code:
        return code
    lines = [""]
    for part in _PART.findall(code):
        if lines[-1] and len(lines[-1]) + len(part.rstrip()) > _COLUMNS:
            lines[-1] = lines[-1].rstrip()
            lines.append(f"{indent}      ")
        lines[-1] += part
    return "\n".join(lines)
