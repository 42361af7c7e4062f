"""A training step in several arms: ours, plain JAX, and `jax.checkpoint` by hand.

A step is loss, gradients and SGD, with the parameters donated. Each arm keeps its own state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..compiler.budget import peak_bytes
from ..compiler.compile import compile
from ..compiler.gradients import value_and_grad
from ..runtime.xla import obeyed
from .measure import Samples, calls_for, interleave
from .models.model import PLAIN, Remat
from .task import RATE, Arm, Task

# How a JAX user saves memory by hand, the usual ways first.
POLICIES: Mapping[str, Remat] = {
    "nothing": Remat(jax.checkpoint),
    "dots": Remat(partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_saveable)),
    "dots_no_batch": Remat(
        partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable)
    ),
    **{f"groups of {n}": Remat(jax.checkpoint, n) for n in (2, 4, 6)},
    **{f"nested {n}": Remat(jax.checkpoint, n, nested=True) for n in (2, 4, 6)},
}


def step_of(value_and_grad: Callable[..., Any], loss: Callable[..., Any]) -> Callable[..., Any]:
    """Return the training step, with gradients by either one."""

    def step(params: Any, batch: Any, rate: Any) -> Any:
        value, grads = value_and_grad(loss)(params, batch)
        return jax.tree.map(lambda p, g: p - rate * g, params, grads), value

    return step


def ours(task: Task, passes: str | None = None, budget: int | None = None) -> Arm:
    """Compile a step, under a budget where one is given. Raises `BudgetError`."""
    step = step_of(value_and_grad, task.model.loss)
    compiled = compile(
        step, donate_argnums=0, passes=passes, memory_budget=budget, precision=task.precision
    )
    return jitted("backpass", compiled, task)


def stock(
    task: Task, name: str = "jax", remat: Remat = PLAIN, options: Mapping[str, Any] | None = None
) -> Arm:
    """Compile a step by JAX alone, with `options` of its compiler."""
    model = task.model if remat is PLAIN else task.build(remat=remat)
    step = step_of(jax.value_and_grad, model.loss)
    given = None if options is None else dict(options)
    return jitted(name, jax.jit(step, donate_argnums=0, compiler_options=given), task)


def checkpointed(task: Task, policy: str) -> Arm:
    """Compile a step with `jax.checkpoint` around blocks, which XLA is kept from undoing."""
    return stock(task, f"jax-checkpoint {policy}", POLICIES[policy], obeyed(None))


def by_torch(task: Task, compiled: bool) -> Arm:
    """Make the step of PyTorch, eager or by its compiler."""
    from .pytorch.arm import arm

    return arm(task, compiled)


# Each peer's arms by name.
PEERS: Mapping[str, Mapping[str, Callable[[Task], Arm]]] = {
    "jax": {"jax": stock},
    "jax-checkpoint": {
        f"jax-checkpoint {name}": partial(checkpointed, policy=name) for name in list(POLICIES)[:3]
    },
    "torch": {"torch": partial(by_torch, compiled=False)},
    "torch-compile": {"torch-compile": partial(by_torch, compiled=True)},
}


def jitted(name: str, step: Any, task: Task) -> Arm:
    """Compile ahead of time and read XLA's report."""
    start = perf_counter()
    program = step.lower(task.params, task.batch, jnp.float32(RATE)).compile()
    seconds = perf_counter() - start
    report = program.memory_analysis()
    state: list[Any] = []
    rate = jnp.float32(RATE)

    def once() -> None:
        if not state:
            state.append(jax.tree.map(jnp.copy, task.params))
        state[0], value = program(state[0], task.batch, rate)
        jax.block_until_ready((state[0], value))

    def first(rate: float) -> tuple[float, list[np.ndarray[Any, Any]]]:
        params = jax.tree.map(jnp.copy, task.params)
        params, value = program(params, task.batch, jnp.float32(rate))
        return float(value), [np.asarray(leaf) for leaf in jax.tree.leaves(params)]

    return Arm(name, once, first, seconds, report.temp_size_in_bytes, peak_bytes(report), program)


def in_turns(arms: Sequence[Arm], repeats: int) -> list[Samples]:
    """Time steps of the arms in turns, after some to warm up; in their order."""
    runs = {str(i): arm.once for i, arm in enumerate(arms)}
    calls = {name: calls_for(run) for name, run in runs.items()}
    return [*interleave(runs, repeats, calls).values()]


def differences(
    params: Any,
    ours: tuple[float, Sequence[np.ndarray[Any, Any]]],
    theirs: tuple[float, Sequence[np.ndarray[Any, Any]]],
) -> tuple[float, float]:
    """Return relative differences of the loss and of the gradients, from steps at `CHECK_RATE`.

    That of a gradient leaf is to its largest element, or to a thousandth of the largest of all
    leaves where that is more.
    """
    starts = [np.asarray(leaf).astype(np.float64) for leaf in jax.tree.leaves(params)]
    size = [np.abs(b - p).max() for p, b in zip(starts, theirs[1], strict=True)]
    least = max(max(size) * 1e-3, 1e-30)
    apart = [np.abs(a - b).max() for a, b in zip(ours[1], theirs[1], strict=True)]
    loss = abs(ours[0] - theirs[0]) / abs(theirs[0])
    return loss, max(float(a / max(s, least)) for a, s in zip(apart, size, strict=True))
