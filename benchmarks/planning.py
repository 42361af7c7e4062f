"""How long it takes to plan a step for a memory budget: seconds, by nodes of the joint graph.

    python benchmarks/planning.py
    python benchmarks/planning.py --sizes 10000 --profile

A program is an unrolled training step of N joint nodes or a few more: `mlp` is a chain of equal
layers, `gpt` a decoder of equal blocks, `mixed` a chain whose layers all have different widths, so
that nothing repeats. `plan` is the first answer for a budget, `next` that for another one after
it; `xla` is XLA's own compile of the plain step, which is left out beyond 20,000 nodes. Seconds are
those of the CPU, all threads together.
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


def stepped(loss: Callable[..., Any]) -> Callable[..., Any]:
    """Return one step of gradient descent."""
    import jax

    import backpass as bp

    def step(params: Any, data: Any) -> Any:
        value, grads = bp.value_and_grad(loss)(params, data)
        return value, jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)

    return step


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
    step = bp.compile(stepped(loss), donate_argnums=0, passes=passes)
    clock = {}

    def timed(name: str, run: Callable[[], Any]) -> Any:
        start = process_time()
        found = run()
        clock[name] = process_time() - start
        return found

    with collection_paused():
        lowered = step.lower(*args)
        donated = frozenset(range(len(jax.tree.leaves(args[0]))))
        planner = Planner(lowered.graph, DEVICES["cpu"], donated)
        fixed = sum(v.type.nbytes for v in lowered.graph.inputs)
        if profiler is not None:
            profiler.enable()
        most = timed("plain", lambda: planner.plain.bytes)
        for name, part in BUDGETS.items():
            timed(name, lambda part=part: planner.fastest(fixed + part * (most - fixed)))
        if profiler is not None:
            profiler.disable()
    clock["plan"] += clock.pop("plain")
    if len(lowered.graph.nodes) <= XLA_LARGEST:
        built = step._programs.of(args, {})
        bound = step._binding.lower(built, args, {})
        timed("xla", bound.compile)
    return Result(program, len(lowered.graph.nodes), clock)


def profile(program: str, size: int, top: int = 25) -> str:
    """Return the functions that take most of the time."""
    profiler = cProfile.Profile()
    planned(program, size, profiler)
    text = io.StringIO()
    stats = pstats.Stats(profiler, stream=text).strip_dirs()
    stats.sort_stats("tottime").print_stats(top)
    return text.getvalue()


def cells(result: Result) -> list[str]:
    """Return a row of the table as text."""
    told = dict(result.seconds)
    if "xla" in told:
        told["plan / xla"] = told["plan"] / told["xla"]
    return [f"{told[name]:.2f}" if name in told else "-" for name in NAMES]


def main(argv: Sequence[str] | None = None) -> list[Result]:
    """Plan every program at every size; print seconds and return the results."""
    options = parser(__doc__)
    options.add_argument("--sizes", nargs="+", type=int, metavar="N", help="default 1k 10k 100k")
    options.add_argument("--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    options.add_argument("--profile", action="store_true", help="top functions, on stderr")
    args = options.parse_args(argv)
    stamp = environment()
    sizes = args.sizes or ([100, 200] if args.tiny else [1000, 10_000, 100_000])
    results, rows = [], []
    for program in args.programs:
        planned(program, 100)  # imports and tables that are made once a process
        for size in sizes:
            result = planned(program, size)
            results.append(result)
            note(f"{program} {result.nodes}: {result.seconds['plan']:.2f} s")
            rows.append([f"{program} {result.nodes:,}", *cells(result)])
            if args.profile:
                note(profile(program, size))
    columns = ("CPU seconds", *NAMES)
    finish(stamp, [(columns, rows)], [asdict(r) for r in results], args.json)
    return results


BUDGETS = {"plan": 0.6, "next": 0.4}  # of the plain step's bytes beyond the arguments
NAMES = (*BUDGETS, "xla", "plan / xla")


if __name__ == "__main__":
    import sys

    fix_allocator("--default-allocator" in sys.argv)
    main()
