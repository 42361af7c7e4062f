"""How long it takes to plan a step for a memory budget: seconds, by nodes of the joint graph.

    python benchmarks/planning.py
    python benchmarks/planning.py --sizes 10000 --profile

A program is an unrolled training step of N joint nodes or a few more: `mlp` is a chain of equal
layers, `gpt` a decoder of equal blocks, `mixed` a chain whose layers all have different widths, so
that nothing repeats. `plan` is the first answer for a budget in the middle of what is possible,
`next` another budget's after it; `xla` is XLA's own compile of the plain step, which is left out
beyond 10,000 nodes, and the last column `plan` / `xla`. Seconds are those of the CPU, all threads
together.
"""

from __future__ import annotations

import cProfile
import io
import pstats
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from measure import environment, finish, note, parser

XLA_LARGEST = 12_000


@dataclass(frozen=True)
class Result:
    """Seconds to plan one program; `nodes` are those of the joint graph."""

    program: str
    nodes: int
    seconds: dict[str, float]


def shape(*sizes: int) -> Any:
    """Return an argument in float32."""
    import jax
    import jax.numpy as jnp

    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def mlp(size: int) -> tuple[Callable[..., Any], Any]:
    """Return a loss over layers `tanh(x @ w + b)`, 14 joint nodes each, and its arguments."""
    import jax.numpy as jnp

    def loss(params: Any, x: Any) -> Any:
        for w, b in params:
            x = jnp.tanh(x @ w + b)
        return jnp.mean(x**2)

    return loss, ([(shape(64, 64), shape(64))] * (size // 14), shape(512, 64))


def mixed(size: int) -> tuple[Callable[..., Any], Any]:
    """Return a loss over layers of different widths and functions."""
    import jax
    import jax.numpy as jnp

    def loss(params: Any, x: Any) -> Any:
        for i, (up, down) in enumerate(params):
            h = x @ up
            h = jax.nn.gelu(h) if i % 3 else jnp.sin(h) * h
            x = x + h @ down
        return jnp.mean(x**2)

    widths = [64 + (37 * i) % 251 for i in range(size // 40)]
    return loss, ([(shape(64, n), shape(n, 64)) for n in widths], shape(512, 64))


def gpt(size: int) -> tuple[Callable[..., Any], Any]:
    """Return the loss of a decoder of equal blocks, and its arguments."""
    import jax
    from workloads import gpt

    layers = max(1, size // 150)
    model = gpt(layers=layers, width=64, heads=2, length=64, batch=2, vocabulary=256)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return model.loss, (jax.eval_shape(model.init, key), jax.eval_shape(model.batch, key))


PROGRAMS = {"mlp": mlp, "gpt": gpt, "mixed": mixed}


def stepped(loss: Callable[..., Any]) -> Callable[..., Any]:
    """Return one step of gradient descent."""
    import jax

    import backpass as bp

    def step(params: Any, data: Any) -> Any:
        value, grads = bp.value_and_grad(loss)(params, data)
        return value, jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)

    return step


def planned(program: str, size: int, profiler: cProfile.Profile | None = None) -> Result:
    """Plan one program for two budgets, and compile it without one where it is small enough."""
    import jax

    import backpass as bp
    from backpass.ir.device import DEVICES
    from backpass.passes.rematerialise import Frontier

    loss, args = PROGRAMS[program](size)
    lowered = bp.compile(stepped(loss), donate_argnums=0).lower(*args)
    donated = frozenset(range(len(jax.tree.leaves(args[0]))))
    clock = {}

    def timed(name: str, run: Callable[[], Any]) -> Any:
        start = process_time()
        found = run()
        clock[name] = process_time() - start
        return found

    frontier = Frontier(lowered.graph, DEVICES["cpu"], donated)
    if profiler is not None:
        profiler.enable()
    with collection_paused():
        timed("plan", lambda: frontier.fastest(middle(frontier, 0.5)))
        timed("next", lambda: frontier.fastest(middle(frontier, 0.3)))
    if profiler is not None:
        profiler.disable()
    if len(lowered.graph.nodes) <= XLA_LARGEST:
        stock = jax.jit(lambda *args: lowered_call(lowered.graph)(*args), donate_argnums=0)
    return Result(program, len(lowered.graph.nodes), clock)
