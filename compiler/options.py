"""What a user asks `bp.compile` for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import jax

from ..ir.errors import ArgumentError
from ..passes import (
    PASSES,
    Canonicalise,
    Fuse,
    Pass,
    Restack,
    Unroll,
    default,
    parse_pipeline,
    planned,
)
from ..passes.microbatch import Microbatch, with_microbatch
from ..passes.pipeline import Without
from ..passes.precision import Autocast, with_precision
from ..runtime.device import row_of
from .arguments import Arguments
from .budget import Planning
from .diagnose import caller_line

AUTO = "auto"
_DEBUG = (None, True, False, "strict", "verify-fusions", "nan")


@dataclass(frozen=True)
class Options:
    """Passes and checks, and JAX's own options, `jit`.

    With `health`, new names of parameters by their paths, a `Health` is returned as well.
    `place` is the platform that passes are for and its row in `DEVICES`; of what is here if empty.
    """

    jit: Mapping[str, Any]
    passes: tuple[Pass, ...] | Without | None = None
    precision: str | None = None
    accumulate_steps: int | str | None = None
    debug: bool | str = False
    health: Mapping[str, str] | None = None
    max_traces: int | None = None
    planning: Planning = field(default_factory=Planning)
    place: tuple[str, str] | tuple[()] = ()

    @property
    def pipelines(self) -> tuple[tuple[Pass, ...], ...]:
        """The passes, then those whose result a planner may start from as well.

        By default what loops do and stack is chosen for speed; see `passes.planned` for others.
        """
        if isinstance(self.passes, tuple):
            return (self.adapted(self.passes),)
        platform, row = self.place or place_of(jax.local_devices()[0])
        tiny = (Unroll(),) if platform == "cpu" else ()
        usual = (*default(platform), Restack(row), *tiny)
        return tuple(self.adapted(self._of(way)) for way in (usual, *planned(platform)))

    def _of(self, usual: tuple[Pass, ...]) -> tuple[Pass, ...]:
        return self.passes.of(usual) if isinstance(self.passes, Without) else usual

    @property
    def casts(self) -> tuple[Pass, ...]:
        """The passes that decide dtypes, where a precision is asked for."""
        return () if self.precision is None else (Canonicalise(), Autocast(self.precision))

    def adapted(self, passes: tuple[Pass, ...]) -> tuple[Pass, ...]:
        """The passes with what the other options add to them."""
        if self.precision is not None:
            passes = with_precision(passes, Autocast(self.precision))
        if isinstance(self.accumulate_steps, int):
            passes = with_microbatch(passes, Microbatch(self.accumulate_steps))
        if self.debug == "verify-fusions":
            passes = tuple(replace(p, verify=True) if isinstance(p, Fuse) else p for p in passes)
        return passes

    @cached_property
    def for_jit(self) -> dict[str, Any]:
        """JAX's options: shardings are those of the result alone, where more is returned."""
        shardings = self.jit.get("out_shardings")
        if self.health is None or shardings is None:
            return dict(self.jit)
        return {**self.jit, "out_shardings": (shardings, None)}

    def static(self, fun: Callable[..., Any]) -> Arguments:
        """Which arguments of `fun` are static."""
        return _named(fun, self.jit["static_argnums"], self.jit["static_argnames"])

    def donated(self, fun: Callable[..., Any]) -> Arguments:
        """Which arguments of `fun` are donated, as if they were static ones."""
        return _named(fun, self.jit["donate_argnums"], self.jit["donate_argnames"])


def place_of(device: jax.Device) -> tuple[str, str]:
    """The platform of a device and its row in `DEVICES`."""
    return device.platform, row_of(device)


def checked_debug(debug: Any) -> bool | str:
    """Return the option `debug`. Raises `ArgumentError`."""
    if debug not in _DEBUG:
        wanted = "a boolean, 'strict', 'verify-fusions' or 'nan'"
        raise ArgumentError(f"debug wants {wanted}, got {debug!r}")
    return debug or False


def checked_steps(steps: Any) -> int | str | None:
    """Return the option `accumulate_steps`. Raises `ArgumentError`."""
    if steps is None or (isinstance(steps, str) and steps == AUTO):
        return steps
    if isinstance(steps, int) and not isinstance(steps, bool) and steps > 0:
        return steps
    raise ArgumentError(f"accumulate_steps wants a number, 1 or more, or 'auto', got {steps!r}")


def checked_health(health: Any) -> dict[str, str] | None:
    """Return no new names where `health` is asked for. Raises `ArgumentError`."""
    if not isinstance(health, bool):
        raise ArgumentError(
            f"health wants True or False, got {health!r}\n  with True a call returns (result, "
            "bp.Health)"
        )
    return {} if health else None


def pipeline_of(passes: Any) -> tuple[Pass, ...] | Without:
    """Read a pipeline, or take passes as they are. Raises `ArgumentError`."""
    if isinstance(passes, str):
        return parse_pipeline(passes, PASSES)
    found = tuple(passes) if isinstance(passes, Iterable) else (passes,)
    if not all(map(callable, found)):
        raise ArgumentError(
            "passes wants a pipeline such as 'canonicalise,autodiff,cse' or a sequence of passes, "
            f"got {passes!r}\n  at {caller_line()}"
        )
    return found


def _named(fun: Callable[..., Any], numbers: Any, names: Any) -> Arguments:
    """Which arguments are meant, by position and by name, each implying the other."""
    by_number = {numbers} if isinstance(numbers, int) else set(numbers or ())
    by_name = {names} if isinstance(names, str) else set(names or ())
    try:
        parameters = list(inspect.signature(fun).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    by_number = {n % len(parameters) if n < 0 and parameters else n for n in by_number}
    for i, parameter in enumerate(parameters):
        if parameter.kind in plain and (i in by_number or parameter.name in by_name):
            by_number.add(i)
            by_name.add(parameter.name)
    return Arguments(fun, frozenset(by_number), frozenset(by_name))
