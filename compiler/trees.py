"""Pytrees as JSON, and back where the classes of their nodes may be unknown.

    0                                         a leaf
    null                                      None
    {"kind": "dict", "keys": [...], "of": [...]}
    {"kind": "list" | "tuple", "of": [...]}
    {"kind": "named", "name": "module:Class", "keys": [...], "of": [...]}      a NamedTuple
    {"kind": "other", "name": "module:Class", "keys": [...], "of": [...]}      any other node

A node whose class is not imported becomes a stand-in with the same paths. No module is imported
because a file names it.
"""

from __future__ import annotations

import keyword
import sys
from collections import OrderedDict, namedtuple
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from typing import Any

import jax
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey

from ..ir.errors import ExportError
from ..ir.records import read

_DICTS = {"dict": dict, "ordered": OrderedDict}
_KEYS: Mapping[str, tuple[type, str]] = {
    "attribute": (GetAttrKey, "name"),
    "item": (DictKey, "key"),
    "place": (SequenceKey, "idx"),
    "index": (FlattenedIndexKey, "key"),
}
# The keys of nodes by their kind, as `read` takes it.
_WANTED: Mapping[str, Any] = {
    **dict.fromkeys(("list", "tuple"), tuple[()]),
    **dict.fromkeys(_DICTS, tuple[str | int | bool, ...]),
    "named": tuple[str, ...],
    "other": tuple[tuple[str, str | int | bool], ...],
}


@dataclass(frozen=True)
class _Node:
    """A node of a tree in JSON."""

    kind: str
    of: tuple[Any, ...]
    keys: tuple[Any, ...] = ()
    name: str = ""


@jax.tree_util.register_pytree_with_keys_class
@dataclass(frozen=True)
class StandIn:
    """A node of a pytree whose class is not known here; its children by attribute or by item."""

    name: str
    keys: tuple[Any, ...]
    children: tuple[Any, ...]

    def __getattr__(self, name: str) -> Any:
        """A child that is an attribute of the real class."""
        return self._child(GetAttrKey(name), AttributeError)

    def __getitem__(self, key: Any) -> Any:
        """A child that is an item, or has a place in the real class."""
        return self._child(SequenceKey(key) if SequenceKey(key) in self.keys else DictKey(key))

    def _child(self, key: Any, error: type[Exception] = KeyError) -> Any:
        keys = self.__dict__.get("keys", ())
        if key in keys:
            return self.children[keys.index(key)]
        raise error(f"{self.__dict__.get('name')} has no {key}")

    def __repr__(self) -> str:
        """The name of the class, and the children."""
        parts = (f"{k}={v!r}" for k, v in zip(self.keys, self.children, strict=True))
        return f"<{self.name.rpartition(':')[2]} {', '.join(parts)}>"

    def tree_flatten_with_keys(self) -> tuple[list[tuple[Any, Any]], Any]:
        """As JAX wants it."""
        return list(zip(self.keys, self.children, strict=True)), (self.name, self.keys)

    @classmethod
    def tree_unflatten(cls, aux: Any, children: Sequence[Any]) -> StandIn:
        """As JAX wants it."""
        return cls(aux[0], aux[1], tuple(children))


def one_level(tree: Any) -> tuple[list[tuple[Any, Any]], Any] | None:
    """The children of a node by key, and how to make it again; None for a leaf."""
    found, made = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is not tree)
    if found and not found[0][0]:
        return None
    return [(path[0], child) for path, child in found], made


def written(tree: Any) -> Any:
    """Describe a tree. Raises `ExportError` for a key that JSON can't hold."""
    if tree is None:
        return None
    level = one_level(tree)
    if level is None:
        return 0
    children, _ = level
    of = [written(child) for _, child in children]
    if isinstance(tree, StandIn):
        keys = [_key(tree.name, key) for key, _ in children]
        return {"kind": "other", "name": tree.name, "keys": keys, "of": of}
    kind = type(tree)
    if kind in (list, tuple):
        return {"kind": kind.__name__, "of": of}
    name = f"{kind.__module__}:{kind.__qualname__}"
    if isinstance(tree, dict) and all(isinstance(key, DictKey) for key, _ in children):
        of_dict = "ordered" if isinstance(tree, OrderedDict) else "dict"
        return {"kind": of_dict, "keys": [_plain(name, k.key) for k, _ in children], "of": of}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return {"kind": "named", "name": name, "keys": list(tree._fields), "of": of}
    keys = [_key(name, key) for key, _ in children]
    return {"kind": "other", "name": name, "keys": keys, "of": of}


def built(spec: Any, leaves: Iterator[Any], known: Mapping[Any, Any]) -> Any:
    """Make the tree of a description; `known` are nodes that the caller has shown (`nodes_of`)."""
    if spec is None:
        return None
    if spec == 0:
        return next(leaves)
    children = [built(each, leaves, known) for each in spec["of"]]
    kind = spec["kind"]
    if kind in ("list", "tuple"):
        return children if kind == "list" else tuple(children)
    if kind in _DICTS:
        return _DICTS[kind](zip(spec["keys"], children, strict=True))
    if kind == "named":
        return _named(spec["name"], tuple(spec["keys"]))(*children)
    keys = tuple(_KEYS[kind][0](value) for kind, value in spec["keys"])
    made = known.get((spec["name"], keys))
    return made.unflatten(children) if made else StandIn(spec["name"], keys, tuple(children))


def leaves_of(spec: Any) -> int:
    """Count the leaves of a description. Raises `ValueError` for what is none."""
    if spec is None:
        return 0
    if spec == 0:
        return 1
    node = read(_Node, spec, "tree")
    if node.kind not in _WANTED:
        raise ValueError(f"a tree has no nodes of kind {node.kind[:40]!r}")
    keys = read(_WANTED[node.kind], list(node.keys), "keys")
    named = keys if node.kind == "named" else ()
    sound = all(key.isidentifier() and not keyword.iskeyword(key) for key in named)
    sound &= not any(key.startswith("_") for key in named)
    sound &= node.kind != "other" or all(kind in _KEYS for kind, _ in keys)
    wanted = 0 if node.kind in ("list", "tuple") else len(node.of)
    if not sound or (len(keys), len(set(keys))) != (wanted, wanted):
        raise ValueError(f"the keys of a {node.kind} in a tree make no sense: {keys}")
    try:
        return sum(map(leaves_of, node.of))
    except RecursionError:
        raise ValueError("a tree nests too deep") from None


def needs_nodes(spec: Any) -> bool:
    """True where a description has nodes that `known` may tell how to make."""
    if not spec:
        return False
    return spec["kind"] == "other" or any(map(needs_nodes, spec["of"]))


def nodes_of(tree: Any) -> dict[Any, Any]:
    """How to make each node of a class of its own in a tree, by its class and keys.

    None where nodes of one class differ in more than their children.
    """
    found: dict[Any, Any] = {}

    def look(node: Any) -> None:
        level = one_level(node)
        if level is None:
            return
        children, made = level
        kind = type(node)
        key = f"{kind.__module__}:{kind.__qualname__}", tuple(k for k, _ in children)
        found[key] = made if found.get(key, made) == made else None
        for _, child in children:
            look(child)

    look(tree)
    return found


def _key(name: str, key: Any) -> list[Any]:
    for kind, (made, attribute) in _KEYS.items():
        if type(key) is made:
            return [kind, _plain(name, getattr(key, attribute))]
    raise ExportError(f"a {name} has the key {key!r}, which a file can't hold")


def _plain(name: str, key: Any) -> Any:
    if type(key) in (str, int, bool):
        return key
    raise ExportError(
        f"a {name} has the key {key!r}, which a file can't hold: strings and integers can be kept"
    )


def _named(name: str, fields: tuple[str, ...]) -> Any:
    """The NamedTuple of that name, if its module is imported, or one like it."""
    module, _, path = name.partition(":")
    found: Any = None
    try:
        found = reduce(getattr, path.split("."), sys.modules[module])
    except (KeyError, AttributeError):
        pass
    if isinstance(found, type) and getattr(found, "_fields", None) == fields:
        return found
    return _stand_in(path.rpartition(".")[2], fields)


@cache
def _stand_in(name: str, fields: tuple[str, ...]) -> Any:
    sound = name.isidentifier() and not keyword.iskeyword(name)
    return namedtuple(name if sound else "StandIn", fields)  # noqa: PYI024
