"""What commands share: programs by name, and lists in an option."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from ..compiler.compile import compile
from ..compiler.function import CompiledFunction
from ..compiler.stages import Lowered
from ..compiler.target import check_call, load_target, parse_spec
from ..ir.errors import ArgumentError


def add_passes(parser: argparse.ArgumentParser) -> None:
    """Add the option `--passes`."""
    told = "a pipeline in place of the usual one; --passes=-NAME,-NAME to leave some out"
    parser.add_argument("--passes", help=told)


def call_of(target: str, specs: Sequence[str]) -> tuple[Callable[..., Any], Sequence[Any]]:
    """Load FILE_OR_MODULE:FUNCTION, and the types given or its example arguments."""
    function, example = load_target(target)
    args = [parse_spec(text) for text in specs] or example()
    check_call(target, function, args)
    return function, args


def lowered(target: str, specs: Sequence[str], passes: str | None) -> Lowered:
    """Lower FILE_OR_MODULE:FUNCTION for the types given, or for its example arguments."""
    function, args = call_of(target, specs)
    if not isinstance(function, CompiledFunction) or passes is not None:
        function = compile(getattr(function, "__wrapped__", function), passes=passes)
    return function.lower(*args)


def parts(text: str) -> list[str]:
    """Parts of an option such as `a,b`."""
    return [part.strip() for part in text.split(",") if part.strip()]


def no_stage(name: str, known: Sequence[str]) -> ArgumentError:
    """Return the error that lists the stages."""
    return ArgumentError(f"there is no stage {name!r}; the stages are {', '.join(known)}")
