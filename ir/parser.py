"""Reads the canonical text form; its grammar stands in `ir/printer.py`.

Written by hand, in one pass over the text, for text that nobody vouches for: sizes and depths are
bounded, nothing is evaluated or unpickled, and whatever is wrong ends in a `ParseError` that
shows the line and a caret. Types are taken at their word: `verify` holds them against the ops.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast, get_args

from .attr_reader import AttrReader
from .attrs import plain_attrs
from .graph import UNKNOWN, Graph, Literal, Node, Origin, Phase, Value
from .jax_compat import primitive
from .lexer import BLANKS, LINE_END, NAME, PATH, PLACE, Cursor
from .numbers import NUMBER, read_number
from .op import Op
from .ops import OPS
from .ops.foreign import foreign
from .printer import HEADER, VERSION
from .resources import READ_LIMIT, TYPE, Reader, read_type
from .types import ArrayType, dtype_from_name

_HEADER = re.compile(r"backpass\.ir[ \t]+([0-9]{1,9})[ \t\r]*(?:\n|\Z)")
_VALUE = re.compile(r"%([0-9]{1,9})")
_DEFINITION = re.compile(r"%([0-9]{1,9})[ \t]*:[ \t]*")
_OPERANDS = re.compile(r"\(((?:%[0-9]{1,9}(?:, (?=%))?)*)\)")
_LITERAL = re.compile(rf"(True|False|{NUMBER.pattern}):([a-z][a-z0-9_]*)(\*?)(?!\[)")
_LABEL = re.compile(rf"({'|'.join(get_args(Phase))})[ \t]*:")
_RETURN = re.compile(r"return(?![A-Za-z0-9_.\-(])")
_GRAPH = re.compile(r"graph(?=[ \t])")
_SIMPLE_ATTRS = re.compile(r'\{[^{}"@/\n]{0,2000}\}')
_LINE = re.compile(
    rf"%(?P<number>[0-9]{{1,9}}): (?P<type>{TYPE.pattern}) = (?P<op>{NAME.pattern})"
    rf"\((?P<operands>[^()\n]*)\)(?: (?P<attrs>{_SIMPLE_ATTRS.pattern}))?"
    rf"(?: +of %(?P<of>[0-9]{{1,9}}))?"
    rf"(?: +@ (?P<source>{PLACE.pattern}+)(?: +(?P<scope>{PLACE.pattern}+))?)?\n"
)
_PARTS = ("number", "type", "op", "operands", "attrs", "of", "source", "scope")
_OF = re.compile(r"of[ \t]+(?:%([0-9]{1,9})|#([0-9]{1,9}))")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a text may cost: characters, nodes, how deep graphs and values nest, bytes."""

    characters: int = 1 << 28
    nodes: int = 1 << 21
    depth: int = 40
    constant_bytes: int = READ_LIMIT


LIMITS = Limits()


def parse(
    text: str, ops: Mapping[str, Op] = OPS, limits: Limits = LIMITS, *, opaque: bool = False
) -> Graph:
    """Read a graph from its canonical text; equal to the graph that was printed.

    Args:
        text: what `str(graph)` or `print_graph(graph)` gave.
        ops: the table that op names are looked up in; a name that it lacks and that is one of
            JAX's primitives makes a foreign op.
        limits: how long and how deep a text may be, and how many bytes its constants may hold.
        opaque: Python objects that the text only names are read as `attrs.Opaque`: such a graph
            can be looked at and compared, not run.

    Raises:
        ParseError: whatever is not in the grammar, with line, column and a caret.
    """
    cursor = Cursor(text)
    if len(text) > limits.characters:
        cursor.fail(f"the text has {len(text)} characters, the limit is {limits.characters}")
    cursor.skip()
    header = cursor.take(_HEADER)
    if header is None:
        cursor.fail(f"expected {HEADER!r} at the top")
    if int(header.group(1)) != VERSION:
        version = f"version {header.group(1)} of the text form"
        cursor.fail(f"this is {version}, backpass reads version {VERSION}", header.start(1))
    parser = _Parser(cursor, ops, limits, Reader(text, limits.constant_bytes), opaque)
    graph = parser.graph("forward")
    cursor.skip()
    if cursor.pos != parser.constants.start:
        cursor.fail("expected the end of the text after the graph")
    return graph


@dataclass(slots=True)
class _Draft:
    """A node as it was read, before its origin is known."""

    at: int
    op: Op
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    attrs: Mapping[str, Any]
    phase: Phase
    of: tuple[str | None, str | None] | None = None
    place: tuple[str, str] | None = None
    regions: list[Graph] = field(default_factory=list)


@dataclass(slots=True)
class _Scope:
    """What one graph has defined so far; `definers` are positions of nodes."""

    values: dict[str, Value] = field(default_factory=dict)
    definers: dict[str, int] = field(default_factory=dict)
    drafts: list[_Draft] = field(default_factory=list)


class _Parser:
    def __init__(
        self,
        cursor: Cursor,
        ops: Mapping[str, Op],
        limits: Limits,
        constants: Reader,
        opaque: bool,
    ) -> None:
        self.cursor, self.ops, self.limits, self.constants = cursor, ops, limits, constants
        self.depth = self.nodes = 0
        self.reader = AttrReader(
            cursor, constants, lambda: self.graph("forward"), limits.depth, opaque
        )
        self.types: dict[str, ArrayType] = {}
        self.literals: dict[str, tuple[Any, ArrayType]] = {}
        self.known_attrs: dict[tuple[str, str, ArrayType | None], dict[str, Any]] = {}

    # Graphs

    def graph(self, phase: Phase) -> Graph:
        cursor = self.cursor
        cursor.skip()
        if cursor.take(_GRAPH) is None:
            cursor.fail("expected a graph: `graph name(inputs) { ... }`")
        self.depth += 1
        if self.depth > self.limits.depth:
            cursor.fail(f"graphs nest deeper than {self.limits.depth}")
        cursor.skip()
        name = cursor.word(NAME, "the name of a graph")
        scope = _Scope()
        cursor.expect("(", "before the inputs of a graph")
        inputs = [self.define(scope, *found) for found in self.until(")", self.definition)]
        cursor.expect("{", "before the nodes of a graph")
        self.body(scope, phase)
        outputs = self.returned(scope)
        cursor.expect("}", "after what a graph returns")
        self.depth -= 1
        return Graph(name, tuple(inputs), self.nodes_of(scope), outputs)

    def until(self, close: str, read: Callable[[], Any]) -> list[Any]:
        """Read `item, item, ... close`."""
        found: list[Any] = []
        while not self.cursor.at(close):
            self.cursor.skip()
            found.append(read())
            if not self.cursor.at(","):
                self.cursor.expect(close, "or a comma")
                break
        return found

    def body(self, scope: _Scope, phase: Phase) -> None:
        """Read labels, nodes and their regions up to `return`."""
        cursor, drafts = self.cursor, scope.drafts
        while True:
            cursor.skip()
            if cursor.text.startswith("%", cursor.pos):
                drafts.append(self.line(scope, phase) or self.node(scope, phase))
            elif (label := cursor.take(_LABEL)) is not None:
                phase = cast(Phase, label.group(1))
            elif cursor.take(_RETURN) is not None:
                return
            elif _GRAPH.match(cursor.text, cursor.pos) is None:
                drafts.append(self.node(scope, phase))
            elif drafts:
                drafts[-1].regions.append(self.graph(drafts[-1].phase))
            else:
                cursor.fail("a region belongs to the node above it, and here is none")

    def returned(self, scope: _Scope) -> tuple[Value, ...]:
        cursor = self.cursor
        cursor.skip()
        if cursor.text.startswith("}", cursor.pos):
            return ()
        found = [self.operand(scope)]
        while cursor.at(","):
            cursor.skip()
            found.append(self.operand(scope))
        return tuple(found)

    # Nodes

    def line(self, scope: _Scope, phase: Phase) -> _Draft | None:
        """Read a node of the usual form, all parts of which were seen before, at one stroke.

        None, and the cursor stays, for any other: `node` reads it, and finds its faults.
        """
        cursor = self.cursor
        match = _LINE.match(cursor.text, cursor.pos)
        if match is None:
            return None
        number, kind, name, operands, attrs, of, source, inner = match.group(*_PARTS)
        type, op = self.types.get(kind), self.ops.get(name)
        known = None if type is None else self.known_attrs.get((name, attrs or "", type))
        if type is None or op is None or known is None or number in scope.values:
            return None
        inputs = []
        for operand in operands.split(", ") if operands else ():
            literal = self.literals.get(operand)
            value = scope.values.get(operand[1:]) if literal is None else Literal(*literal)
            if value is None or (literal is None and operand[0] != "%"):
                return None
            inputs.append(value)
        self.count_node()
        cursor.pos = match.end()
        scope.values[number] = output = Value(type)
        scope.definers[number] = len(scope.drafts)
        place = None if source is None else (source, inner or "")
        link = None if of is None else (of, None)
        return _Draft(match.start(), op, tuple(inputs), (output,), known, phase, link, place)

    def count_node(self) -> None:
        self.nodes += 1
        if self.nodes > self.limits.nodes:
            self.cursor.fail(f"the text has more than {self.limits.nodes} nodes")

    def node(self, scope: _Scope, phase: Phase) -> _Draft:
        """Read one node up to the end of its line."""
        cursor = self.cursor
        start = cursor.pos
        self.count_node()
        definitions: list[tuple[str, Value, int]] = []
        while cursor.text.startswith("%", cursor.pos):
            definitions.append(self.definition())
            if not cursor.at(","):
                cursor.expect("=", "after the outputs of a node")
            cursor.skip()
        op = self.op()
        inputs = self.operands(scope)
        attrs = self.attrs(op.name, [value for _, value, _ in definitions])
        outputs = tuple([self.define(scope, *found) for found in definitions])
        scope.definers.update((number, len(scope.drafts)) for number, _, _ in definitions)
        draft = _Draft(start, op, inputs, outputs, attrs, phase)
        self.tail(draft)
        return draft

    def definition(self) -> tuple[str, Value, int]:
        """Read `%3: f32[8] path`; gives the number, the value and the place."""
        cursor = self.cursor
        start = cursor.pos
        match = cursor.take(_DEFINITION)
        if match is None:
            cursor.fail("expected a value and its type, such as `%0: f32[8]`")
        type = self.type()
        cursor.take(BLANKS)
        path = cursor.take(PATH)
        name = cursor.string() if path is None else path.group()
        return match.group(1), Value(type, name), start

    def define(self, scope: _Scope, number: str, value: Value, at: int) -> Value:
        if scope.values.setdefault(number, value) is not value:
            self.cursor.fail(f"%{number} is defined twice", at)
        return value

    def type(self) -> ArrayType:
        """Read a type; the same text gives the same object."""
        match = TYPE.match(self.cursor.text, self.cursor.pos)
        known = self.types.get(match.group()) if match else None
        if known is None or match is None:
            known = read_type(self.cursor)
            return self.types.setdefault(str(known), known)
        self.cursor.pos = match.end()
        return known

    def op(self) -> Op:
        cursor = self.cursor
        start = cursor.pos
        name = cursor.word(NAME, "a node `%0: type = op(...)`, a label or `return`")
        effectful = cursor.text.startswith("!", cursor.pos)
        cursor.pos += effectful
        found = self.ops.get(name)
        if found is not None:
            return found
        try:
            return foreign(primitive(name), effectful)
        except KeyError:
            cursor.fail(f"unknown op {name!r}, neither in the tables nor one of JAX's", start)

    def operands(self, scope: _Scope) -> tuple[Value, ...]:
        cursor = self.cursor
        plain = cursor.take(_OPERANDS)
        if plain is None:
            cursor.expect("(", "before the operands of an op")
            return tuple(self.until(")", lambda: self.operand(scope)))
        try:
            numbers = plain.group(1)
            return tuple([scope.values[n[1:]] for n in numbers.split(", ")]) if numbers else ()
        except KeyError as error:
            number = error.args[0]
            at = re.compile(rf"%{number}\b").search(cursor.text, plain.start())
            cursor.fail(f"%{number} is not defined above", at.start() if at else None)

    def operand(self, scope: _Scope) -> Value:
        cursor = self.cursor
        start = cursor.pos
        match = cursor.take(_VALUE)
        if match is not None:
            if match.group(1) not in scope.values:
                cursor.fail(f"%{match.group(1)} is not defined above", start)
            return scope.values[match.group(1)]
        literal = cursor.take(_LITERAL)
        if literal is None:
            cursor.fail("expected an operand such as `%0` or `0.5:f32`")
        text, _, _, name, star = literal.groups()
        try:
            dtype = dtype_from_name(name)
            found = (read_number(text, dtype), ArrayType((), dtype, bool(star)))
            self.literals[literal.group()] = found
            return Literal(*found)
        except KeyError:
            cursor.fail(f"unknown dtype {name!r}", start)
        except ValueError as error:
            cursor.fail(str(error), start)

    def attrs(self, op: str, outputs: Sequence[Value]) -> Mapping[str, Any]:
        """Read attributes; a text without quotes and braces is read once and remembered."""
        cursor = self.cursor
        cursor.take(BLANKS)
        start = cursor.pos
        bare = not cursor.text.startswith("{", start)
        simple = None if bare else cursor.take(_SIMPLE_ATTRS)
        if not bare and simple is None:
            cursor.pos = start + 1
            return self.reader.attrs(op, plain_attrs(op, outputs))
        key = (op, simple.group() if simple else "", outputs[0].type if outputs else None)
        found = self.known_attrs.get(key)
        if found is None:
            found = plain_attrs(op, outputs)
            if simple is not None:
                cursor.pos = start + 1
                found = self.reader.attrs(op, found)
            self.known_attrs[key] = found
        return found

    def tail(self, draft: _Draft) -> None:
        """Read `of %3 @ source scope` and the end of the line."""
        cursor = self.cursor
        cursor.take(BLANKS)
        of = cursor.take(_OF)
        if of is not None:
            draft.of = cast("tuple[str | None, str | None]", of.groups())
            cursor.take(BLANKS)
        if cursor.text.startswith("@", cursor.pos):
            cursor.pos += 1
            cursor.take(BLANKS)
            source = cursor.word(PLACE, "a source such as `model.py:41`")
            cursor.take(BLANKS)
            scope = cursor.take(PLACE)
            draft.place = (source, scope.group() if scope else cursor.string() or "")
        if cursor.take(LINE_END) is None:
            cursor.fail("expected the end of the line after a node")

    # Origins

    def nodes_of(self, scope: _Scope) -> tuple[Node, ...]:
        """Make the nodes; a backward node gets the very origin of its forward node."""
        drafts = scope.drafts
        targets = [None if draft.of is None else self.target(scope, draft) for draft in drafts]
        linked = set(targets)
        origins = [
            UNKNOWN if draft.place is None and i not in linked else Origin(*draft.place or ("",))
            for i, draft in enumerate(drafts)
        ]
        return tuple(
            [
                Node(
                    draft.op,
                    draft.inputs,
                    draft.outputs,
                    draft.attrs,
                    tuple(draft.regions),
                    origins[i if target is None else target],
                    draft.phase,
                )
                for i, (draft, target) in enumerate(zip(drafts, targets, strict=True))
            ]
        )

    def target(self, scope: _Scope, draft: _Draft) -> int:
        """Position of the forward node that a backward node differentiates."""
        assert draft.of is not None
        number, position = draft.of
        index = scope.definers.get(number, -1) if number else int(position or 0)
        drafts: Sequence[_Draft] = scope.drafts
        if not 0 <= index < len(drafts) or drafts[index].phase != "forward":
            self.cursor.fail("`of` wants a forward node of the same graph", draft.at)
        if draft.phase != "backward":
            self.cursor.fail("`of` stands at a backward node alone", draft.at)
        if draft.place is not None and draft.place != (drafts[index].place or ("", "")):
            self.cursor.fail(
                "a backward node has the source and scope of its forward node", draft.at
            )
        return index
