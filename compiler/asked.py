"""A function and what was asked of it: all that is known before its first call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from ..ir.types import Spec
from .arguments import Arguments
from .options import Options
from .placement import placement


@dataclass(frozen=True)
class Asked:
    """A function, its options, and how its arguments are taken apart."""

    fun: Callable[..., Any]
    options: Options
    name: str
    arguments: Arguments
    donates: Arguments

    @classmethod
    def of(cls, fun: Callable[..., Any], options: Options) -> Asked:
        """Read the options that name arguments. Raises `ArgumentError`."""
        name = getattr(fun, "__name__", type(fun).__name__)
        return cls(fun, options, name, options.static(fun), options.donated(fun))

    def leaves(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """The array leaves of a call."""
        dynamic, _ = self.arguments.divide(args, kwargs)
        return jax.tree.leaves(dynamic)

    def donated(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> frozenset[int]:
        """Positions of the array leaves whose buffers the outputs may take over."""
        away = self.donates
        (positional, named), _ = self.arguments.divide(args, kwargs)
        groups = [(i in away.static_positions, x) for i, x in positional.items()]
        groups += [(k in away.static_names, named[k]) for k in sorted(named)]
        flags = [donated for donated, tree in groups for _ in jax.tree.leaves(tree)]
        return frozenset(i for i, donated in enumerate(flags) if donated)

    def placement(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Spec, ...]:
        """How the array leaves of a call lie on a mesh; see `compiler/placement.py`."""
        return placement(self.arguments, args, kwargs, self.options.jit.get("in_shardings"))
