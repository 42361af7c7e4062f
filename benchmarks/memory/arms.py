"""What the memory benchmarks share: compiled steps, their peaks, and their times in turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from steps import step_of

from backpass.bench.measure import calls_for, interleave

RATE = 1e-4
XLA = {"xla_disable_hlo_passes": "cse_barrier_expander"}


@dataclass(frozen=True)
class Arm:
    """A compiled step, its peak and its temporaries in bytes."""

    name: str
    step: Any
    peak: int
    temp: int
    predicted: int = 0
    rounds: int = 0


@dataclass(frozen=True)
class Case:
    """A model with its parameters and its batch."""

    model: Any
    params: Any
    batch: Any
    rate: Any

    @classmethod
    def of(cls, model: Any) -> Case:
        """Draw parameters and a batch."""
        import jax
        import jax.numpy as jnp

        params, batch = model.init(jax.random.key(0)), model.batch(jax.random.key(1))
        return cls(model, params, batch, jnp.float32(RATE))

    def stock(self, name: str, loss: Any, options: dict[str, Any] | None = None) -> Arm:
        """Compile a step by JAX alone."""
        import jax

        step = step_of(jax.value_and_grad, loss)
        jitted = jax.jit(step, donate_argnums=0, compiler_options=options)
        return _arm(name, jitted.lower(self.params, self.batch, self.rate).compile())

    def ours(self, budget: int | None) -> Arm:
        """Compile a step under a budget. Raises `bp.BudgetError`."""
        import backpass as bp

        step = bp.compile(
            step_of(bp.value_and_grad, self.model.loss), donate_argnums=0, memory_budget=budget
        )
        return _arm("ours", step.lower(self.params, self.batch, self.rate).compile())

    def least(self) -> int:
        """The smallest budget that is feasible."""
        import backpass as bp

        try:
            self.ours(1)
        except bp.BudgetError as error:
            return error.minimum_bytes
        raise AssertionError("a step within a byte")

    def timed(self, arms: Sequence[Arm], repeats: int) -> dict[int, float]:
        """Median over rounds of each arm's time, relative to that of the first; by `id`."""
        import jax
        import jax.numpy as jnp

        state = {id(arm): jax.tree.map(jnp.copy, self.params) for arm in arms}

        def run(arm: Arm) -> Callable[[], None]:
            def once() -> None:
                state[id(arm)], value = arm.step(state[id(arm)], self.batch, self.rate)
                jax.block_until_ready((state[id(arm)], value))

            return once

        runs = {str(id(arm)): run(arm) for arm in arms}
        samples = interleave(runs, repeats, max(map(calls_for, runs.values())))
        base = samples[str(id(arms[0]))].wall
        return {
            int(name): statistics.median(a / b for a, b in zip(found.wall, base, strict=True))
            for name, found in samples.items()
        }


def _arm(name: str, compiled: Any) -> Arm:
    m = compiled.memory_analysis()
    total = m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes
    plan = getattr(compiled, "plan", None)
    told = (plan.predicted_bytes, plan.rounds) if plan is not None else ()
    return Arm(name, compiled, int(total - m.alias_size_in_bytes), m.temp_size_in_bytes, *told)
