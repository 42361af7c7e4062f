"""Why a function is traced again: what tells its arguments from those of the nearest trace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..ir.jax_compat import context_changes
from ..ir.liveness import argument_of
from ..ir.types import ArrayType, dtype_name
from .arguments import Signature

_WIDTH = 32  # characters that are shown of a long value

ADVICE: Mapping[str, str] = {
    "shape": "pad it to a few fixed shapes and mask what was added",
    "dtype": "convert it to one dtype before the call",
    "weak type": "pass an array, jnp.asarray(x, dtype), in place of a Python number at every call",
    "tree": "give every call the same leaves in the same containers, zeros where there is nothing",
    "static": "pass it as an array and not as a static argument if it decides no shape, or one of "
    "few values",
    "object": "it is equal to itself alone: make it once and pass the same object, or give its "
    "class __eq__ and __hash__",
    "setting": "set JAX's options and the mesh once, before the first call",
    "sharding": "place it on the mesh in the same way before every call, with jax.device_put",
    "outer": "pass what the function closes over as arguments",
}


@dataclass(frozen=True)
class Cause:
    """One difference: `what` is another than before, `change` tells how; `kind` as in `ADVICE`.

    Traces of the same `what` have the same cause, whatever the values were.
    """

    kind: str
    what: str
    change: str = ""

    def __str__(self) -> str:
        """`args[1]['x'] dimension 1: 128 -> 131`."""
        return f"{self.what}: {self.change}" if self.change else self.what

    @property
    def advice(self) -> str:
        """What keeps it from causing further traces."""
        return ADVICE.get(self.kind, "")


FIRST = Cause("first", "first call")
OUTER = Cause("outer", "values of an outer trace")
_ABSENT = object()
_EQ: Any = object.__eq__


def causes(new: Signature, earlier: Sequence[Signature]) -> tuple[Cause, ...]:
    """What tells `new` from the nearest of the earlier signatures, the latest of these; not empty.

    Signatures are all the same only for a function that closes over values of an outer trace.
    """
    if not earlier:
        return (FIRST,)
    return min((tuple(_differences(old, new)) for old in reversed(earlier)), key=len) or (OUTER,)


def _differences(old: Signature, new: Signature) -> Iterator[Cause]:
    yield from _statics(dict(old.static), dict(new.static))
    settings = {}
    for name, was, now in context_changes(old.context, new.context):
        # On a mesh JAX has two settings of it, of which one is enough.
        on_mesh = "mesh" in name
        what, text = ("JAX's mesh", _axes) if on_mesh else (name, str)
        settings[what] = Cause("setting", what, _brief(text(was), text(now)))
    yield from settings.values()
    if old.tree != new.tree:
        yield from _trees(old, new)
    else:
        yield from _leaves(old, new, placed=not settings)


def _statics(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Cause]:
    for name in dict.fromkeys((*old, *new)):
        was, now = old.get(name, _ABSENT), new.get(name, _ABSENT)
        if was is _ABSENT or now is _ABSENT or was != now:
            texts = ["its default" if x is _ABSENT else repr(x) for x in (was, now)]
            by_identity = now is not _ABSENT and getattr(type(now), "__eq__", _EQ) is _EQ
            kind = "object" if by_identity else "static"
            yield Cause(kind, f"static argument {name}", _brief(*texts))


def _trees(old: Signature, new: Signature) -> Iterator[Cause]:
    before, after = set(old.paths), set(new.paths)
    named = [(path, "new leaf", "given") for path in new.paths if path not in before]
    named += [(path, "no leaf", "left out") for path in old.paths if path not in after]
    for path, leaf, whole in named:
        name = argument_of(path)
        yield Cause("tree", f"tree of {name}", whole if path == name else f"{leaf} {path}")
    if not named:
        trees, others = _arguments(old.tree), _arguments(new.tree)
        for name, tree in others.items():
            if name in trees and trees[name] != tree:
                texts = [str(each)[len("PyTreeDef(") : -1] for each in (trees[name], tree)]
                yield Cause("tree", f"tree of {name}", _brief(*texts))
        for name in trees.keys() ^ others.keys():
            yield Cause("tree", f"tree of {name}", "left out" if name in trees else "given")


def _leaves(old: Signature, new: Signature, *, placed: bool) -> Iterator[Cause]:
    """Differences of types; then of placement on a mesh, where that is asked for."""
    alike = True
    for path, was, now in zip(new.paths, old.types, new.types, strict=True):
        if was != now:
            alike = False
            yield _leaf(path, was, now)
    if placed and alike and old.placed != new.placed:
        for path, place, other in zip(new.paths, old.placed, new.placed, strict=True):
            if place != other:
                texts = [str(getattr(x.sharding, "spec", x.sharding)) for x in (place, other)]
                yield Cause("sharding", f"{path} sharding", _brief(*texts))


def _leaf(path: str, was: ArrayType, now: ArrayType) -> Cause:
    """The one difference of two types that matters most."""
    if was.dtype != now.dtype:
        names = (dtype_name(was.dtype), dtype_name(now.dtype))
        return Cause("dtype", f"{path} dtype", " -> ".join(names))
    if was.ndim != now.ndim:
        return Cause("shape", f"{path} rank", f"{was} -> {now}")
    pairs = enumerate(zip(was.shape, now.shape, strict=True))
    dims = [(i, a, b) for i, (a, b) in pairs if a != b]
    if len(dims) == 1:
        ((i, a, b),) = dims
        return Cause("shape", f"{path} dimension {i}", f"{a} -> {b}")
    if dims:
        numbers = ", ".join(str(i) for i, _, _ in dims)
        return Cause("shape", f"{path} dimensions {numbers}", f"{was} -> {now}")
    return Cause("weak type", f"{path} weak type", f"{was} -> {now}")


def _arguments(tree: Any) -> dict[str, Any]:
    """The tree of each argument, by its name."""
    positional, named = tree.children()
    found: dict[str, Any] = {}
    for group, form in ((positional, "args[{}]"), (named, "{}")):
        _, names = group.node_data()
        found.update(zip(map(form.format, names), group.children(), strict=True))
    return found


def _axes(mesh: Any) -> str:
    """Names and sizes of a mesh's axes."""
    return ", ".join(f"{n}={size}" for n, size in getattr(mesh, "shape_tuple", ())) or "none"


def _brief(was: str, now: str) -> str:
    """`was -> now`; of long texts, what comes about the first character that differs."""
    start = next((i for i, (a, b) in enumerate(zip(was, now, strict=False)) if a != b), 0)
    start = max(0, start - _WIDTH // 4) if max(len(was), len(now)) > _WIDTH else 0

    def cut(text: str) -> str:
        part = text[start : start + _WIDTH]
        return ("..." if start else "") + part + ("..." if start + _WIDTH < len(text) else "")

    return f"{cut(was)} -> {cut(now)}"
