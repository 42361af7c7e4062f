"""The pass manager: a sequence of passes, and the record of what each did.

    pipeline ::= pass (',' pass)* | '-' name (',' '-' name)*
    pass     ::= name [ '{' option '=' value (',' option '=' value)* '}' ]

`-restack,-unroll` are the usual passes without these.

The same spelling serves Python, the command line and cache keys: `autodiff,cse,dce`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from time import perf_counter
from typing import Any, Protocol

from ..ir.errors import ArgumentError
from ..ir.graph import Graph
from ..ir.verifier import verify


class Pass(Protocol):
    """A pure function of a graph that returns the same object when it changes nothing."""

    @property
    def name(self) -> str:
        """The pass's name, as it is spelled in a pipeline."""

    def __call__(self, graph: Graph) -> Graph:
        """Return the rewritten graph."""


@dataclass(frozen=True, slots=True)
class Stage:
    """The program after one step: `traced`, then each pass by its name; `seconds` it took.

    `report` tells, when it is called, what the pass did and did not do, where it can tell.
    """

    name: str
    graph: Graph
    seconds: float
    report: Callable[[], tuple[Any, ...]] = tuple

    def __repr__(self) -> str:
        """Name, size and time."""
        return f"<Stage {self.name}: {len(self.graph.nodes)} nodes, {self.seconds:.3f} s>"


def run_passes(
    graph: Graph, passes: Iterable[Pass], *, seconds: float = 0.0, check: bool = False
) -> tuple[Stage, ...]:
    """Run `passes` in order; the first stage is `traced`, which took `seconds`.

    With `check` every graph is verified. Raises `GraphError` when a pass breaks it.
    """
    stages = [Stage("traced", graph, seconds)]
    if check:
        verify(graph)
    for each in passes:
        start, before = perf_counter(), graph
        graph = each(before)
        seconds = perf_counter() - start
        tells = getattr(each, "report", None)
        stages.append(Stage(each.name, graph, seconds, partial(tells, before) if tells else tuple))
        if check:
            verify(graph)
    return tuple(stages)


@dataclass(frozen=True)
class Without:
    """The usual passes but for some."""

    names: frozenset[str]

    def of(self, usual: Iterable[Pass]) -> tuple[Pass, ...]:
        """Return what is left of the `usual` ones."""
        return tuple(each for each in usual if each.name not in self.names)


_PASS = re.compile(r"\s*([a-z_]+)\s*(?:\{([^}]*)\})?\s*(?:,|$)")


def parse_pipeline(text: str, known: Mapping[str, type[Any]]) -> tuple[Pass, ...] | Without:
    """Read a pipeline such as `canonicalise,autodiff,cse`, or `-restack`: the usual one without it.

    Raises `ArgumentError` for an unknown pass or option, naming the known ones.
    """
    if text.lstrip().startswith("-"):
        return _without(text, known)
    found: list[Pass] = []
    position = 0
    while position < len(text):
        match = _PASS.match(text, position)
        if match is None:
            raise ArgumentError(f"expected a pass name at {text[position:]!r} in passes={text!r}")
        name, options = match[1], match[2] or ""
        found.append(_configured(_known(name, known), options))
        position = match.end()
    return tuple(found)


def _without(text: str, known: Mapping[str, type[Any]]) -> Without:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.startswith("-") for part in parts):
        raise ArgumentError(
            f"expected passes to run, or passes to leave out as in '-cse,-dce', got passes={text!r}"
        )
    return Without(frozenset(_known(part[1:].strip(), known).name for part in parts))


def _known(name: str, known: Mapping[str, type[Any]]) -> type[Any]:
    if name not in known:
        raise ArgumentError(f"there is no pass {name!r}; the passes are {', '.join(known)}")
    return known[name]


def _configured(kind: type[Any], text: str) -> Pass:
    defaults = {field.name: field.default for field in fields(kind)}
    options: dict[str, Any] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, _, value = (word.strip() for word in part.partition("="))
        if name not in defaults:
            raise ArgumentError(f"pass {kind.name!r} has no option {name!r}; it has {[*defaults]}")
        try:
            options[name] = _value(value, defaults[name])
        except (KeyError, ValueError):
            wanted = type(defaults[name]).__name__
            raise ArgumentError(
                f"option {name!r} of pass {kind.name!r} wants {wanted}, got {value!r}"
            ) from None
    return kind(**options)  # type: ignore[no-any-return]


def _value(text: str, default: Any) -> Any:
    """Read an option of the type that its default has."""
    if isinstance(default, bool):
        return {"true": True, "false": False}[text.lower()]
    return type(default)(text) if isinstance(default, int | float) else text


def spelled(passes: Sequence[Pass] | Without) -> str:
    """Return the pipeline's text form: options that have their default are left out."""
    if isinstance(passes, Without):
        return ",".join(f"-{name}" for name in sorted(passes.names))
    return ",".join(map(_spelled, passes))


def _spelled(each: Any) -> str:
    changed = [
        f"{field.name}={getattr(each, field.name)}"
        for field in fields(each)
        if getattr(each, field.name) != field.default
    ]
    return f"{each.name}{{{','.join(changed)}}}" if changed else str(each.name)
