"""XLA's optimised text, read for what devices tell each other.

An instruction counts as often as it runs: those in the body of a loop whose trips XLA knows count
once for each. Groups of devices come in three notations, of which each means a partition:

    {{0,1},{2,3}}                                  as they are
    [2,2]<=[4]T(0)                                 rows of an iota, reshaped and transposed
    mesh['a'=2,'b'=2] {'b'}                        along axes of a mesh of XLA's own
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np

KINDS = "all-reduce all-gather reduce-scatter all-to-all collective-permute collective-broadcast"
_COLLECTIVE = re.compile(
    rf"^\s*(?:ROOT )?%?[\w.-]+ = (.*?) ({'|'.join(KINDS.split())})(-start)?\((.*)$"
)
_HEAD = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\) -> .*\{$")
_ARRAY = re.compile(r"([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:body|to_apply|calls|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{(.*?)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_BITS = re.compile(r"\d+")
_PAIRS = re.compile(r"source_target_pairs=\{(.*?\})\}")
_LISTED = re.compile(r"replica_groups=\{(\{.*?\})\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(
    r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((?:\[([\d,]+)\])?(?:T\(([\d,]+)\))?\))? "
    r"\{([^}]*)\}"
)
_NAME = re.compile(r'op_name="([^"]*)"')
_FRAME = re.compile(r"stack_frame_id=(\d+)")
_LINE = re.compile(r'source_file="([^"]*)"(?: source_line=(\d+))?')

Groups = frozenset[frozenset[int]]


@dataclass(frozen=True)
class Message:
    """One collective of the compiled program.

    `bytes` are those of the whole that a device takes part in, each time that it runs; `count`
    is how often it does. `groups` are of positions on the mesh, None where not told; `lines` are
    of its stack, innermost first.
    """

    kind: str
    bytes: int
    count: int
    groups: Groups | None
    name: str
    lines: tuple[tuple[str, int | None], ...]


def messages(text: str) -> list[Message]:
    """Return the collectives of an optimised module."""
    module = _Module(text)
    return [
        _message(found, module.runs[name], module)
        for name, lines in module.computations.items()
        for line in lines
        if (found := _COLLECTIVE.match(line)) and module.runs.get(name)
    ]


def _message(found: re.Match[str], count: int, module: _Module) -> Message:
    kind, rest = found[2], found[4]
    groups = _groups(rest, module.devices)
    size = max(map(len, groups), default=1) if groups else module.devices
    total = sum(_bytes(*array) for array in _ARRAY.findall(found[1]))
    if kind == "reduce-scatter":
        total *= size
    elif found[3] and kind == "all-gather":  # operands stand beside the results
        total = total * size // (size + 1)
    elif found[3] and kind == "collective-permute":
        total //= 2
    name = _NAME.search(rest)
    return Message(kind, total, count, groups, name[1] if name else "", module.lines(rest))


def _bytes(dtype: str, dims: str) -> int:
    bits = _BITS.search(dtype)
    width = 8 if dtype == "pred" or bits is None else int(bits[0])
    return width * prod(map(int, filter(None, dims.split(",")))) // 8


def _ints(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def _groups(text: str, devices: int) -> Groups | None:
    """The devices that speak with each other."""
    for pattern, read in ((_PAIRS, _listed), (_LISTED, _listed), (_IOTA, _iota), (_MESH, _mesh)):
        if found := pattern.search(text):
            return read(found)
    whole = "replica_groups={}" in text
    return frozenset([frozenset(range(devices))]) if whole else None


def _listed(found: re.Match[str]) -> Groups:
    return frozenset(frozenset(_ints(each)) for each in re.findall(r"\{([\d,]*)\}", found[1]))


def _iota(found: re.Match[str]) -> Groups:
    shape, dims, order = _ints(found[1]), _ints(found[2]), found[3]
    ids = np.arange(prod(dims)).reshape(dims)
    rows = (ids.transpose(_ints(order)) if order else ids).reshape(shape)
    return frozenset(frozenset(row) for row in rows.reshape(shape[0], -1).tolist())


def _mesh(found: re.Match[str]) -> Groups | None:
    names, sizes = [], []
    for axis in found[1].split(","):
        name, _, size = axis.partition("=")
        names.append(name)
        sizes.append(int(size))
    wanted = [axis.strip() for axis in found[4].split(",") if axis.strip()]
    if not all(axis in names for axis in wanted):  # a part of an axis
        return None
    ids = np.arange(prod(sizes))
    if found[2]:
        ids = ids.reshape(_ints(found[2]))
        ids = ids.transpose(_ints(found[3])) if found[3] else ids
    return along(ids.reshape(sizes), [names.index(axis) for axis in wanted])


def along(ids: np.ndarray, axes: Sequence[int]) -> Groups:
    """The groups of the elements of `ids` that differ along `axes` alone."""
    rest = [i for i in range(ids.ndim) if i not in axes]
    count = prod(ids.shape[i] for i in axes)
    rows = ids.transpose([*rest, *axes]).reshape(-1, count).tolist()
    return frozenset(frozenset(row) for row in rows)


@dataclass(frozen=True)
class _Module:
    """A module's computations, how often each runs, and its tables of lines."""

    text: str

    @cached_property
    def devices(self) -> int:
        found = re.search(r"num_partitions=(\d+)", self.text)
        return int(found[1]) if found else 1

    @cached_property
    def _parts(self) -> tuple[dict[str, list[str]], str]:
        computations: dict[str, list[str]] = {}
        entry, current = "", None
        for line in self.text.splitlines():
            if head := _HEAD.match(line):
                current = computations.setdefault(head[2], [])
                entry = head[2] if head[1] else entry
            elif line.startswith("}"):
                current = None
            elif current is not None:
                current.append(line)
        return computations, entry

    @property
    def computations(self) -> dict[str, list[str]]:
        return self._parts[0]

    @cached_property
    def runs(self) -> dict[str, int]:
        """How often each computation that is reached from the entry runs."""
        computations, entry = self._parts
        found: dict[str, int] = {}

        def visit(name: str, times: int) -> None:
            found[name] = found.get(name, 0) + times
            for line in computations.get(name, ()):
                trips = _TRIPS.search(line) if " while(" in line else None
                for called in _called(line):
                    visit(called, times * int(trips[1]) if trips else times)

        visit(entry, 1)
        return found

    def lines(self, text: str) -> tuple[tuple[str, int | None], ...]:
        """The stack of an instruction, innermost first."""
        if found := _LINE.search(text):
            return ((found[1], int(found[2]) if found[2] else None),)
        frame = _FRAME.search(text)
        return tuple(self._stack(int(frame[1]))) if frame else ()

    def _stack(self, frame: int) -> Iterator[tuple[str, int | None]]:
        seen = set()
        while frame in self._frames and frame not in seen:
            seen.add(frame)
            place, above = self._frames[frame]
            file, line = self._places[place]
            yield self._files.get(file, ""), line
            frame = above

    @cached_property
    def _files(self) -> Mapping[int, str]:
        return {
            int(i): name
            for i, name in re.findall(r'^(\d+) "(.*)"$', self._table("FileNames"), re.M)
        }

    @cached_property
    def _places(self) -> Mapping[int, tuple[int, int]]:
        rows = re.findall(
            r"^(\d+) \{file_name_id=(\d+).*? line=(\d+)", self._table("FileLocations"), re.M
        )
        return {int(i): (int(file), int(line)) for i, file, line in rows}

    @cached_property
    def _frames(self) -> Mapping[int, tuple[int, int]]:
        pattern = r"^(\d+) \{file_location_id=(\d+)(?: parent_frame_id=(\d+))?"
        rows = re.findall(pattern, self._table("StackFrames"), re.M)
        return {int(i): (int(place), int(above or 0)) for i, place, above in rows}

    def _table(self, name: str) -> str:
        start = self.text.find(f"\n{name}\n")
        return self.text[start + len(name) + 2 :].partition("\n\n")[0] if start >= 0 else ""


def _called(line: str) -> Iterator[str]:
    """The computations that an instruction runs, but for those of reductions and fusions."""
    if " while(" in line or " call(" in line or " conditional(" in line or "-start(" in line:
        yield from (name for name in _CALLED.findall(line))
        for branches in _BRANCHES.findall(line):
            yield from (name.strip().lstrip("%") for name in branches.split(","))
