"""How long it takes to plan a step for a memory budget: seconds, by nodes of the joint graph.

    python benchmarks/planning.py
    python benchmarks/planning.py --sizes 10000 --profile
    python benchmarks/planning.py --sizes 1000 --models resnet unet

A program is an unrolled training step of N joint nodes or a few more: `mlp` is a chain of equal
layers, `gpt` a decoder of equal blocks, `mixed` a chain whose layers all have different widths, so
that nothing repeats. `plan` is the first answer for a budget, `next` that for another one after
it; `xla` is XLA's own compile of the plain step, which is left out beyond 20,000 nodes. Of the
models of `backpass bench memory` the whole way to a plan is told, with tracing and the passes of
each form, and XLA's compile of `jax.jit`'s step. Seconds are those of the CPU, all threads
together.
"""

from __future__ import annotations

import cProfile
import io
import pstats
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from time import process_time
from typing import Any

from script import finish, parser

from backpass.bench.measure import environment, fix_allocator, note
from backpass.bench.suites.memory import SMALL
from backpass.runtime.device import live_spec

XLA_LARGEST = 20_000


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

    widths = [64 + (37 * i) % 251 for i in range(size // 28)]
    return loss, ([(shape(64, n), shape(n, 64)) for n in widths], shape(512, 64))


def gpt(size: int) -> tuple[Callable[..., Any], Any]:
    """Return the loss of a decoder of equal blocks, and its arguments."""
    from backpass.bench.models.sequences import gpt

    layers = max(1, size // 150)
    model = gpt(layers=layers, width=64, heads=2, length=64, batch=2, vocabulary=256)
    return model.loss, model.shapes()


PROGRAMS = {"mlp": mlp, "gpt": gpt, "mixed": mixed}


def stepped(loss: Callable[..., Any], by: Callable[..., Any]) -> Callable[..., Any]:
    """Return one step of gradient descent; `by` is a `value_and_grad`."""
    import jax

    def step(params: Any, *data: Any) -> Any:
        value, grads = by(loss)(params, *data)
        return value, jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)

    return step


class Clock(dict[str, float]):
    """CPU seconds by name."""

    def timed(self, name: str, run: Callable[[], Any]) -> Any:
        """Return what `run` does, and remember how long it took."""
        start = process_time()
        found = run()
        self[name] = process_time() - start
        return found


def planned(program: str, size: int, profiler: cProfile.Profile | None = None) -> Result:
    """Plan one program for two budgets; compile it plain where it is small enough."""
    import jax

    import backpass as bp
    from backpass.compiler.program import collection_paused
    from backpass.ir.device import DEVICES
    from backpass.passes import DEFAULT
    from backpass.passes.rematerialise import Planner

    loss, args = PROGRAMS[program](size)
    passes = [each for each in DEFAULT if each.name != "roll"]  # every layer is to be planned
    step = bp.compile(stepped(loss, bp.value_and_grad), donate_argnums=0, passes=passes)
    clock = Clock()
    with collection_paused():
        lowered = step.lower(*args)
        donated = frozenset(range(len(jax.tree.leaves(args[0]))))
        planner = Planner(lowered.graph, DEVICES["cpu"], donated)
        fixed = sum(v.type.nbytes for v in lowered.graph.inputs)
        if profiler is not None:
            profiler.enable()
        most = clock.timed("plain", lambda: planner.plain.bytes)
        for name, part in BUDGETS.items():
            clock.timed(name, lambda part=part: planner.fastest(fixed + part * (most - fixed)))
        if profiler is not None:
            profiler.disable()
    clock["plan"] += clock.pop("plain")
    if len(lowered.graph.nodes) <= XLA_LARGEST:
        built = step._programs.of(args, {})
        bound = step._binding.lower(built, args, {})
        clock.timed("xla", bound.compile)
    return Result(program, len(lowered.graph.nodes), clock)


def modelled(name: str) -> Result:
    """Plan one of the memory suite's steps for two budgets; compile `jax.jit`'s."""
    import jax

    import backpass as bp
    from backpass.compiler.budget import peak_bytes

    model = SMALL[name]()
    args = model.shapes()
    plain = jax.jit(stepped(model.loss, jax.value_and_grad), donate_argnums=0).lower(*args)
    clock = Clock()
    stats = clock.timed("xla", plain.compile).memory_analysis()
    fixed = stats.argument_size_in_bytes
    for column, part in MODEL_BUDGETS.items():
        budget = int(fixed + part * (peak_bytes(stats) - fixed))
        step = stepped(model.loss, bp.value_and_grad)
        step = bp.compile(step, donate_argnums=0, memory_budget=budget)
        lowered = clock.timed(column, lambda step=step: step.lower(*args))
    return Result(name, len(lowered.graph.nodes), clock)


def profile(program: str, size: int, top: int = 25) -> str:
    """Return the functions that take most of the time."""
    profiler = cProfile.Profile()
    planned(program, size, profiler)
    text = io.StringIO()
    stats = pstats.Stats(profiler, stream=text).strip_dirs()
    stats.sort_stats("tottime").print_stats(top)
    return text.getvalue()


def cells(result: Result, names: Sequence[str]) -> list[str]:
    """Return a row of the table as text; what takes longest, of XLA's compile, ends it."""
    told = dict(result.seconds)
    if "xla" in told:
        told["plan / xla"] = max(told[name] for name in names if name in told) / told["xla"]
    shown = (f"{told[name]:.2f}" if name in told else "-" for name in (*names, "xla", "plan / xla"))
    return [f"{result.program} {result.nodes:,}", *shown]


def main(argv: Sequence[str] | None = None) -> list[Result]:
    """Plan every program at every size, and every model; print seconds and return the results."""
    options = parser(__doc__)
    options.add_argument("--sizes", nargs="+", type=int, metavar="N", help="default 1k 10k 100k")
    options.add_argument("--programs", nargs="*", choices=PROGRAMS, default=list(PROGRAMS))
    options.add_argument("--models", nargs="*", choices=SMALL, help="default all, with --tiny none")
    options.add_argument("--profile", action="store_true", help="top functions, on stderr")
    args = options.parse_args(argv)
    stamp = environment()
    sizes = args.sizes or ([100, 200] if args.tiny else [1000, 10_000, 100_000])
    models = ([] if args.tiny else list(SMALL)) if args.models is None else args.models
    planned("mlp", 100)  # imports and tables that are made once a process
    live_spec()
    parts: dict[tuple[str, ...], list[Result]] = {tuple(BUDGETS): [], tuple(MODEL_BUDGETS): []}
    sized, whole = parts.values()
    for model in models:  # first: the larger programs leave much for the collector to look at
        whole.append(modelled(model))
        note(f"{model}: {max(whole[-1].seconds.values()):.2f} s at most")
    for program in args.programs:
        for size in sizes:
            sized.append(planned(program, size))
            note(f"{program} {sized[-1].nodes}: {sized[-1].seconds['plan']:.2f} s")
            if args.profile:
                note(profile(program, size))
    tables = [
        (("CPU seconds", *names, "xla", "plan / xla"), [cells(each, names) for each in found])
        for names, found in parts.items()
        if found
    ]
    finish(stamp, tables, [asdict(r) for r in (*sized, *whole)], args.json)
    return [*sized, *whole]


BUDGETS = {"plan": 0.6, "next": 0.4}  # of the plain step's bytes beyond the arguments
MODEL_BUDGETS = {"of 0.8": 0.8, "of 0.5": 0.5}  # the same


if __name__ == "__main__":
    import sys

    fix_allocator("--default-allocator" in sys.argv)
    main()
