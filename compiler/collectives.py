"""What the devices of a compiled program tell each other, told in terms of the user's program.

Some collectives stand in the program (`psum` in a `shard_map`), most are put there by XLA's
partitioner: the sum of a gradient over the batch, the gathering of a parameter that is divided.
Both are read off the compiled program, with the line and the phase of the node they belong to.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import prod
from typing import Any, overload

import jax
import numpy as np

from ..ir.graph import Graph
from ..ir.ops.shard_map import meshes_of
from ..ir.source import innermost
from ..ir.tables import bytes_text, count_text, table
from ..runtime.hlo import Groups, Message, along, messages

PHASES = ("backward", "update")
_NO_SCOPE = re.compile(r"^(\w+\(.*\)|while|body|cond|branch_\d+_fun|closed_call|shard_map)$")


@dataclass(frozen=True)
class Collective:
    """One collective: `count` runs in a step, each of `bytes` that a device has a part in.

    `axes` are those of the mesh whose devices speak with each other; `("?",)` where that cannot be
    told. `phase` is forward, backward or update; `source` is `file:line`.
    """

    kind: str
    bytes: int
    count: int
    axes: tuple[str, ...]
    phase: str
    source: str
    scope: str

    @property
    def total_bytes(self) -> int:
        """Bytes of all runs in a step."""
        return self.bytes * self.count


@dataclass(frozen=True)
class Collectives(Sequence[Collective]):
    """The collectives of one compiled step; prints as a table, equal rows as one."""

    items: tuple[Collective, ...]

    @overload
    def __getitem__(self, index: int) -> Collective: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Collective, ...]: ...

    def __getitem__(self, index: int | slice) -> Collective | tuple[Collective, ...]:
        """Return one, or some."""
        return self.items[index]

    def __len__(self) -> int:
        """Number of instructions in the program."""
        return len(self.items)

    def __iter__(self) -> Iterator[Collective]:
        """Each instruction, as it stands in the program."""
        return iter(self.items)

    @property
    def bytes(self) -> int:
        """Bytes of all runs in a step."""
        return sum(each.total_bytes for each in self.items)

    def by(self, field: str) -> Mapping[str, int]:
        """Bytes in a step by `"kind"`, `"phase"`, `"axes"`, `"source"` or `"scope"`."""
        found: dict[str, int] = {}
        for each in self.items:
            key = getattr(each, field)
            key = ", ".join(key) if isinstance(key, tuple) else key
            found[key] = found.get(key, 0) + each.total_bytes
        return found

    def __str__(self) -> str:
        """Table by kind, axes, phase and line, the largest first."""
        groups: dict[tuple[str, ...], list[Collective]] = {}
        for each in self.items:
            place = f"{each.source}  {each.scope}".strip()
            key = (each.kind, ", ".join(each.axes), each.phase, place)
            groups.setdefault(key, []).append(each)
        order = sorted(groups.items(), key=lambda group: -_total(group[1]))
        rows = [
            (
                kind,
                axes,
                phase,
                count_text(sum(each.count for each in found)),
                bytes_text(_total(found)),
                place,
            )
            for (kind, axes, phase, place), found in order
        ]
        runs = count_text(sum(each.count for each in self.items))
        total = ("total", "", "", runs, bytes_text(self.bytes), "")
        return table(("collective", "axes", "phase", "runs", "bytes", "where"), rows, [total])


def _total(found: Iterable[Collective]) -> int:
    return sum(each.total_bytes for each in found)


def collectives_of(text: str, compiled: Any, graph: Graph) -> Collectives:
    """Read the collectives off XLA's text of a compiled step."""
    named = _named_groups(_meshes(compiled, graph))
    return Collectives(tuple(_told(message, named) for message in messages(text)))


def _told(message: Message, named: Mapping[Groups, tuple[str, ...]]) -> Collective:
    names = _names(message.name)
    phase = Counter(map(_phase, names)).most_common(1)[0][0]
    scopes = list(dict.fromkeys(map(_scope, names)))
    scope = scopes[0] if len(scopes) == 1 else f"{len(scopes)} scopes or more"
    axes = _axes(message, named)
    source = innermost(message.lines)
    return Collective(message.kind, message.bytes, message.count, axes, phase, source, scope)


def _names(name: str) -> list[list[str]]:
    """The name stacks of an instruction: of merged ones `jit(f)/(a/add:b/add`, cut at a length."""
    _, merged, rest = name.partition("/(")
    listed = rest.rstrip(")").split(":") if merged else [name]
    if len(listed) > 1 and not name.endswith(")"):
        listed.pop()
    return [[part for part in each.split("/") if not _NO_SCOPE.match(part)] for each in listed]


def _phase(parts: Sequence[str]) -> str:
    return next((part for part in reversed(parts) if part in PHASES), "forward")


def _scope(parts: Sequence[str]) -> str:
    return "/".join(part for part in parts[:-1] if part not in PHASES)


def _axes(message: Message, named: Mapping[Groups, tuple[str, ...]]) -> tuple[str, ...]:
    groups = message.groups
    if groups is None:
        return ("?",)
    if message.kind != "collective-permute":
        return named.get(groups, ("?",))
    # Of pairs: the fewest axes along which each pair lies.
    found = (names for wholes, names in named.items() if _within(groups, wholes))
    return min(found, key=len, default=("?",))


def _within(pairs: Groups, wholes: Groups) -> bool:
    return all(any(pair <= whole for whole in wholes) for pair in pairs)


def _named_groups(meshes: Iterable[Mapping[str, int]]) -> dict[Groups, tuple[str, ...]]:
    """The groups of devices along each choice of the axes of a mesh, by positions."""
    found: dict[Groups, tuple[str, ...]] = {}
    for mesh in meshes:
        names = list(mesh)
        ids = np.arange(prod(mesh.values())).reshape([mesh[name] for name in names])
        wide = [i for i, name in enumerate(names) if mesh[name] > 1]
        for count in range(1, len(wide) + 1):
            for axes in combinations(wide, count):
                found.setdefault(along(ids, axes), tuple(names[i] for i in axes))
    return found


def _meshes(compiled: Any, graph: Graph) -> Iterator[Mapping[str, int]]:
    """The meshes that shardings of arguments, results and nodes name."""
    for sharding in jax.tree.leaves((compiled.input_shardings, compiled.output_shardings)):
        if isinstance(sharding, jax.sharding.NamedSharding):
            yield {str(name): size for name, size in sharding.mesh.shape.items()}
    for mesh in meshes_of(graph):
        yield {str(name): size for name, size in mesh.shape.items()}
