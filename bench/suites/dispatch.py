"""Steady-state cost of calling a compiled step.

The arrays are tiny, so that a call is nearly all dispatch: flatten the pytree, find the program,
hand over the buffers, wrap the outputs. A sample is a block of calls that waits once, at its end;
blocks of the arms take turns. `control` is `time` of JAX's step by itself, a second turn of it in
each round, so that its distance from 1 is noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp

from ...compiler.compile import compile
from ...compiler.gradients import value_and_grad
from ..measure import interleave, ratio
from ..rows import Row, Setup

RATIOS = ("time", "cpu", "control")
FIGURES = ("us",)
CALLS = {"tiny": 2}  # in a block
MANY = 100


@dataclass(frozen=True)
class Case:
    """A step of a dict of `leaves` arrays that gives back as many, or the loss alone."""

    leaves: int
    updates: bool
    donates: bool = False

    def __str__(self) -> str:
        """`150 to 150, donated`."""
        out = self.leaves if self.updates else 1
        return f"{self.leaves} to {out}" + (", donated" if self.donates else "")

    def step(self, value_and_grad: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function to compile."""

        def loss(params: Any) -> Any:
            return sum(jnp.vdot(p, p) for p in jax.tree.leaves(params))

        def step(params: Any) -> Any:
            value, grads = value_and_grad(loss)(params)
            if not self.updates:
                return value
            return jax.tree.map(lambda p, g: p - 1e-4 * g, params, grads)

        return step

    def params(self) -> dict[str, Any]:
        """Return leaves of four numbers each."""
        return {f"layer{i}": jnp.full(4, 1.0) for i in range(self.leaves)}


def cases(size: str) -> Mapping[str, Case]:
    """Return the cases by name."""
    n = 3 if size == "tiny" else 150
    made = Case(n, True), Case(n, True, donates=True), Case(n, False), Case(1, True)
    return {str(case): case for case in made}


def measure(suite: str, case: str, what: Case, setup: Setup) -> list[Row]:
    """Compile, warm up, and time blocks in turns."""
    donate = 0 if what.donates else None
    theirs = jax.jit(what.step(jax.value_and_grad), donate_argnums=donate)
    ours = compile(what.step(value_and_grad), donate_argnums=donate, passes=setup.passes)
    calls = CALLS.get(setup.size, MANY)
    steps: dict[str, Callable[..., Any]] = {"jax": theirs, "backpass": ours, "control": theirs}
    blocks = {name: _block(step, what, calls) for name, step in steps.items()}
    interleave(blocks, 2)
    samples = interleave(blocks, setup.repeats)
    a, b, c = samples["backpass"], samples["jax"], samples["control"]
    ratios = {
        "time": ratio(a.wall, b.wall),
        "cpu": ratio(a.cpu, b.cpu),
        "control": ratio(c.wall, b.wall),
    }
    seconds = {f"{name}_seconds": [s / calls for s in each.wall] for name, each in samples.items()}
    return [Row(suite, case, "jax", ratios, {"us": 1e6 * median(a.wall) / calls, **seconds})]


def _block(step: Callable[..., Any], case: Case, calls: int) -> Callable[[], None]:
    """Return `calls` calls in a row; what a step gives back as parameters goes into the next."""
    state = [case.params()]

    def updates() -> None:
        params = state[0]
        for _ in range(calls):
            params = step(params)
        state[0] = jax.block_until_ready(params)

    def reads() -> None:
        params = state[0]
        for _ in range(calls):
            value = step(params)
        jax.block_until_ready(value)

    return updates if case.updates else reads
