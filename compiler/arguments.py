"""How a call's arguments divide into arrays and static values, and what decides on its program."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax

from ..ir.jax_compat import on_no_mesh, struct_of, trace_context
from ..ir.types import ArrayType, Spec, type_of
from .diagnose import check_results, in_place_of, mutable_array, not_an_array


@dataclass(frozen=True)
class Signature:
    """What decides whether a program can be used again: leaf types, tree, static values.

    `context` is JAX's own: x64, matmul precision, the mesh and the like. `specs` tell how the
    leaves lie on a mesh, or are empty.
    """

    paths: tuple[str, ...]
    types: tuple[ArrayType, ...]
    tree: Any
    static: tuple[tuple[str, Hashable], ...]
    context: Hashable = None
    placed: tuple[Any, ...] = ()
    specs: tuple[Spec, ...] = ()

    @cached_property
    def structs(self) -> list[jax.ShapeDtypeStruct]:
        """The leaves as `jax.ShapeDtypeStruct`s; on a mesh, with what their types tell of it."""
        if self.placed:
            return list(self.placed)
        return [jax.ShapeDtypeStruct(t.shape, t.dtype, weak_type=t.weak) for t in self.types]


@dataclass(frozen=True)
class Arguments:
    """How a call's arguments divide into arrays and static values."""

    fun: Callable[..., Any]
    static_positions: frozenset[int]
    static_names: frozenset[str]

    def signature(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Signature:
        """Signature of a call. Raises `ArgumentError` for a leaf that is no array."""
        dynamic, static = self.divide(args, kwargs)
        leaves, tree = jax.tree_util.tree_flatten_with_path(dynamic)
        paths = tuple(path_text(path) for path, _ in leaves)
        types = tuple(self._type(path, leaf) for path, (_, leaf) in zip(paths, leaves, strict=True))
        placed = () if on_no_mesh() else tuple(struct_of(leaf) for _, leaf in leaves)
        return Signature(paths, types, tree, static, trace_context(), placed)

    def listed(
        self, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[list[tuple[str, Any]], Sequence[tuple[str, Any]]]:
        """Return the array leaves and the static values, each with its path."""
        dynamic, static = self.divide(args, kwargs)
        leaves = jax.tree_util.tree_leaves_with_path(dynamic)
        return [(path_text(path), leaf) for path, leaf in leaves], static

    def divide(
        self, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[dict[int, Any], dict[str, Any]], tuple[tuple[str, Hashable], ...]]:
        """Return `((arrays by position, arrays by name), static values)`."""
        positional = {i: x for i, x in enumerate(args) if i not in self.static_positions}
        named = {k: x for k, x in kwargs.items() if k not in self.static_names}
        static = [(f"args[{i}]", args[i]) for i in sorted(self.static_positions) if i < len(args)]
        static += [(k, kwargs[k]) for k in sorted(self.static_names) if k in kwargs]
        return (positional, named), tuple(static)

    def flat(self, args: Sequence[Any], kwargs: Mapping[str, Any], tree: Any) -> Callable[..., Any]:
        """Return the function of the array leaves alone, static values as in this call."""

        def flat(*leaves: Any) -> Any:
            positional, named = jax.tree.unflatten(tree, leaves)
            full = [positional.get(i, x) for i, x in enumerate(args)]
            return check_results(self.fun, self.fun(*full, **{**kwargs, **named}))

        return in_place_of(self.fun, flat)

    def _type(self, path: str, leaf: Any) -> ArrayType:
        try:
            kind = jax.typeof(leaf)
        except TypeError:
            raise not_an_array(self.fun, path, leaf) from None
        if isinstance(kind, jax.ref.AbstractRef):
            raise mutable_array(self.fun, path, kind)
        return type_of(leaf if isinstance(leaf, jax.core.Tracer) else kind)


def path_text(path: Any) -> str:
    """`args[0]['w']` for a leaf of a positional argument, `name['w']` for that of a named one.

    `path` is that in `(args, kwargs)`.
    """
    group, argument, *rest = path
    place = getattr(argument, "idx", None) if group.idx == 0 else None
    place = getattr(argument, "key", None) if place is None else place
    first = f"args[{place}]" if group.idx == 0 else str(place)
    return first + jax.tree_util.keystr(tuple(rest))
