"""What commands share: programs by name, and lists in an option."""

from __future__ import annotations

from collections.abc import Sequence

from ..compiler.compile import compile
from ..compiler.function import CompiledFunction
from ..compiler.stages import Lowered
from ..compiler.target import load_target, parse_spec
from ..ir.errors import ArgumentError


def lowered(target: str, specs: Sequence[str], passes: str | None) -> Lowered:
    """Lower FILE_OR_MODULE:FUNCTION for the types given, or for its example arguments."""
    function, example = load_target(target)
    args = [parse_spec(text) for text in specs] or example()
    if not isinstance(function, CompiledFunction) or passes is not None:
        function = compile(getattr(function, "__wrapped__", function), passes=passes)
    return function.lower(*args)


def parts(text: str) -> list[str]:
    """Parts of an option such as `a,b`."""
    return [part.strip() for part in text.split(",") if part.strip()]


def no_stage(name: str, known: Sequence[str]) -> ArgumentError:
    """Return the error that lists the stages."""
    return ArgumentError(f"there is no stage {name!r}; the stages are {', '.join(known)}")
