"""A warning of large arrays that a function closes over: they become a part of its program.

Names are those of variables that hold the very array, found from the function's closure and the
globals that it reads, through the functions, objects and pytrees that stand there.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from types import CodeType, ModuleType
from typing import Any

import jax
import numpy as np

from ..ir.errors import ConstantWarning
from ..ir.graph import Graph, Value
from ..ir.jax_compat import captured_bytes
from ..ir.tables import bytes_text
from ..ir.types import ArrayType
from .diagnose import caller_level, caller_line, defined_at

# XLA:CPU took 0.02 s a MiB to read a constant, and 0.1 s a MiB where it computed with one while
# compiling: this many bytes are a second or so of each compile. JAX's own limit is 2 GB.
LIMIT = 16 << 20
_SHOWN = 6
_SEARCHED = 2000  # functions and objects that are looked into for a name
Place = tuple[int, int]


@dataclass
class Captured:
    """One array that a program holds: its type, and the first line that reads it."""

    value: Any
    type: ArrayType
    source: str


def captured(graph: Graph) -> list[Captured]:
    """The arrays that a traced graph and its regions hold, each once, the largest first."""
    found: dict[Place, Captured] = {}
    _collect(graph, found)
    return sorted(found.values(), key=lambda each: -each.type.nbytes)


def _collect(graph: Graph, found: dict[Place, Captured]) -> None:
    for node in graph.nodes:
        value = node.attrs.get("value")
        if node.op.name == "constant" and not isinstance(value, jax.core.Tracer):
            kept = found.setdefault(_place(value), Captured(value, node.output.type, ""))
            kept.source = kept.source or _first_line(graph, node.output)
        for region in node.regions:
            _collect(region, found)


def _first_line(graph: Graph, value: Value) -> str:
    """The line that reads a value first, inside of regions where the node has none."""
    for node in graph.users.get(value, ()):
        if node.source:
            return node.source
        for region in node.regions:
            if len(region.inputs) == len(node.inputs):
                inner = region.inputs[node.inputs.index(value)]
                if found := _first_line(region, inner):
                    return found
    return ""


def _place(value: Any) -> Place:
    """What tells arrays apart: JAX holds another view of the memory of one of NumPy's."""
    if isinstance(value, np.ndarray):
        return int(value.__array_interface__["data"][0]), value.nbytes
    return id(value), 0


def warn_of_captured(fun: Callable[..., Any], graph: Graph) -> bool:
    """Warn where the arrays that `fun` closes over are large; tells whether they are."""
    asked = captured_bytes()
    limit = LIMIT if asked is None else asked
    held = (n for n in graph.walk() if n.op.name == "constant")
    if limit < 0 or sum(n.output.type.nbytes for n in held) < max(limit, 1):
        return False
    arrays = captured(graph)
    total = sum(each.type.nbytes for each in arrays)
    if total < limit:
        return False
    names = _names(fun, {_place(each.value) for each in arrays[:_SHOWN]})
    rows = [_row(each, names.get(_place(each.value), "")) for each in arrays[:_SHOWN]]
    if len(arrays) > _SHOWN:
        rest = sum(each.type.nbytes for each in arrays[_SHOWN:])
        rows.append(f"    {len(arrays) - _SHOWN} more, {bytes_text(rest)}")
    warnings.warn(
        f"{defined_at(fun)} closes over {bytes_text(total)} of arrays, which become a part of its "
        "program: each compile reads them, and each executable holds a copy, which XLA's report of "
        "its memory leaves out\n"
        + "\n".join(rows)
        + f"\n  at {caller_line()}; pass them as arguments; "
        "jax.config.update('jax_captured_constants_warn_bytes', n) sets another limit, -1 none",
        ConstantWarning,
        caller_level(),
    )
    return True


def _row(each: Captured, name: str) -> str:
    known = f"{name}: " if name else ""
    used = f", read at {each.source}" if each.source else ""
    return f"    {known}{each.type}, {bytes_text(each.type.nbytes)}{used}"


def _names(fun: Callable[..., Any], wanted: set[Place]) -> dict[Place, str]:
    """A name for each of the arrays that a variable holds, by `_place`."""
    found: dict[Place, str] = {}
    seen: set[int] = set()
    waiting: list[tuple[str, Any]] = [("", fun)]
    while waiting and len(seen) < _SEARCHED and len(found) < len(wanted):
        name, value = waiting.pop(0)
        if isinstance(value, np.ndarray | jax.Array):
            if _place(value) in wanted:
                found.setdefault(_place(value), name)
        elif id(value) not in seen and not isinstance(value, ModuleType | type):
            seen.add(id(value))
            waiting += _inside(name, value)
    return found


def _inside(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """What a function, an object or a pytree holds, with names."""
    if isinstance(value, functools.partial):
        own = name or "partial"
        yield from (("", value.func), (f"{own}.args", value.args), (own, value.keywords))
    elif inspect.ismethod(value):
        yield from (("", value.__func__), ("self", value.__self__))
    elif inspect.isfunction(value):
        yield from _variables(value)
        yield "", getattr(value, "__wrapped__", None)
    else:
        leaves = jax.tree_util.tree_leaves_with_path(value)
        if leaves and leaves[0][1] is not value:
            yield from ((name + jax.tree_util.keystr(path), leaf) for path, leaf in leaves)
        elif hasattr(value, "__dict__"):
            yield from ((f"{name}.{key}".lstrip("."), x) for key, x in vars(value).items())


def _variables(fun: Any) -> Iterator[tuple[str, Any]]:
    """The variables that a function and those defined in it take from around it."""
    codes = list(_codes(fun.__code__))
    for name, cell in zip(fun.__code__.co_freevars, fun.__closure__ or (), strict=True):
        with suppress(ValueError):  # not assigned yet
            yield name, cell.cell_contents
    for name in dict.fromkeys(name for code in codes for name in code.co_names):
        if name in fun.__globals__:
            yield name, fun.__globals__[name]


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from _codes(const)
