"""Where a source file can be changed so that a test should notice, and how."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

_OPERATORS: dict[type, type] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}

ASSERTS = ("strict", "frozen", "slots")


@dataclass(frozen=True)
class Mutant:
    """A file with one expression or statement in place of another: `before` at `line`."""

    path: Path
    line: int
    start: int
    stop: int
    before: str
    after: str

    def applied(self, source: str) -> str:
        """The text of the changed file."""
        return source[: self.start] + self.after + source[self.stop :]

    def __str__(self) -> str:
        return f"{self.path}:{self.line}  {_short(self.before)}  ->  {_short(self.after)}"


def mutants(path: Path, source: str) -> Iterator[Mutant]:
    """Every change of a file, in order. Annotations, messages and docstrings stay as they are."""
    starts = _line_starts(source)
    for node in _evaluated(ast.parse(source)):
        for changed in _changes(node):
            start = starts(node.lineno, node.col_offset)
            stop = starts(node.end_lineno, node.end_col_offset)
            after = ast.unparse(changed)
            if isinstance(node, ast.expr):
                after = f"({after})"
            yield Mutant(path, node.lineno, start, stop, source[start:stop], after)


def _line_starts(source: str):
    lines = source.splitlines(keepends=True)
    offsets = [0]
    for line in lines:
        offsets.append(offsets[-1] + len(line))

    def at(line: int, column: int) -> int:
        """Columns of `ast` count bytes of UTF-8."""
        return offsets[line - 1] + len(lines[line - 1].encode()[:column].decode())

    return at


def _evaluated(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run: no annotations, nothing in an f-string, whose places are not exact.

    What only asserts stays as it is: `strict=True`, and records that are `frozen` and have `slots`.
    """
    if isinstance(node, ast.JoinedStr) or isinstance(node, ast.keyword) and node.arg in ASSERTS:
        return
    if hasattr(node, "lineno"):
        yield node
    for name, field in ast.iter_fields(node):
        if name in ("annotation", "returns", "type_params"):
            continue
        for child in field if isinstance(field, list) else [field]:
            if isinstance(child, ast.AST):
                yield from _evaluated(child)


def _changes(node: ast.AST) -> Iterator[ast.AST]:
    """A node with one thing changed."""
    match node:
        case ast.Compare(ops=ops):
            for i, op in enumerate(ops):
                if type(op) in _OPERATORS:
                    changed = deepcopy(node)
                    changed.ops[i] = _OPERATORS[type(op)]()
                    yield changed
        case ast.BoolOp(op=op) | ast.BinOp(op=op) if type(op) in _OPERATORS:
            changed = deepcopy(node)
            changed.op = _OPERATORS[type(op)]()
            yield changed
        case ast.UnaryOp(op=ast.Not()):
            yield node.operand
        case ast.UnaryOp(op=ast.USub()):
            yield node.operand
        case ast.Constant(value=bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(value=int() as value):
            yield ast.Constant(value + 1)
        case ast.If() | ast.While():
            pass  # the test is an expression of its own
        case ast.Return(value=ast.expr() as value) if not _is_no(value):
            yield ast.Return(ast.Constant(None))
        case ast.Break():
            yield ast.Continue()
        case ast.Continue():
            yield ast.Break()
        case ast.IfExp(test=test, body=body, orelse=orelse):
            yield ast.IfExp(test, orelse, body)
        case ast.Expr(value=ast.Call()):
            yield ast.Pass()


def _is_no(node: ast.expr) -> bool:
    """None, or False, which is the same to whoever asks; True in its place is another change."""
    return isinstance(node, ast.Constant) and (node.value is None or node.value is False)


def _short(text: str, most: int = 60) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= most else flat[: most - 3] + "..."
