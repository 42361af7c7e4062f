"""XLA's options on CPU that backpass sets besides those that a user gives, whose word counts first.

JAX takes them for a program that is compiled by itself, and refuses them for a part of another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any

import jax

from ..ir.jax_compat import is_part

Options = dict[str, Any]

# Which operations XLA:CPU gives to the library YNNPACK: all that it would, but for convolutions.
# There that works on one core where Eigen works on all (`benchmarks/convolutions.py`).
LIBRARY = "xla_cpu_experimental_ynn_fusion_type"
_FASTER = {LIBRARY: "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"}
_HAVE_IT = ("0.10.", "0.11.", "0.12.")  # of jaxlib; XLA refuses an option that it does not know
_JAXLIB = version("jaxlib")

# The first of these passes of XLA expands fences before the last merging of equal nodes, which
# undoes every plan. The second makes one kernel of a small loop: XLA aborts the process where a
# fence is in it.
_LEFT_OUT = ("cse_barrier_expander", "small-while-loop-hoisting")


def chosen(options: Options | None, *, planned: bool) -> Options | None:
    """XLA's options for a program, also for one that has the fences of a plan."""
    found = faster(options)
    return obeyed(found) if planned else found


def faster(options: Options | None) -> Options | None:
    """XLA's options with those that make programs faster.

    | option | what it does |
    |---|---|
    | `xla_cpu_experimental_ynn_fusion_type` | convolutions are computed by Eigen |
    """
    if jax.default_backend() != "cpu" or not _JAXLIB.startswith(_HAVE_IT):
        return options
    return {**_FASTER, **(options or {})}


def obeyed(options: Options | None) -> Options | None:
    """XLA's options with which fences hold."""
    if jax.default_backend() != "cpu":
        return options
    name = "xla_disable_hlo_passes"
    given = filter(None, str((options or {}).get(name, "")).split(","))
    return {**(options or {}), name: ",".join([*given, *_LEFT_OUT])}


@dataclass(eq=False)
class Jitted:
    """`fun` by `jax.jit`, with options that make it faster where it is a program by itself."""

    fun: Callable[..., Any]

    def __call__(self, *args: Any) -> Any:
        """Run it, or become a part of what JAX is tracing."""
        return (self._part if is_part() else self._alone)(*args)

    @cached_property
    def _alone(self) -> Any:
        return jax.jit(self.fun, compiler_options=faster(None))

    @cached_property
    def _part(self) -> Any:
        return jax.jit(self.fun)
